"""Trainings by the clock: they end with their budget on machines of any mood, and can be repeated to the bit."""

import io
import itertools
import json
import math
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

import unfog
from tests.conftest import MakeRecipe
from unfog.cli.main import main
from unfog.evaluation.contest import schedules
from unfog.recipes.optimizers import AdamW
from unfog.recipes.settings import PowerAverage
from unfog.reports.replay import replay
from unfog.runs.run import read_recipe, resume, train
from unfog.runtime.errors import UserError
from unfog.runtime.tensors import write_tensors
from unfog.training import budget as clocks
from unfog.training import loop
from unfog.training import reports as reporting
from unfog.training.budget import EXIT, Budget, Clocked, Following, Trace, followed, trace_of
from unfog.training.metrics import Display, Metrics, losses, read_metrics
from unfog.training.reporting import HELD_OUT, Reporting, allowed, fitting
from unfog.training.threads import Threads

QUIET = Console(quiet=True)


class Machine:
    """A clock that steps move."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(clocks, "clock", lambda: self.now)

    def train(self, pacer: Clocked, seconds: Iterator[float]) -> list[float]:
        """Take steps of so many seconds until the training ends; return its progress after each."""
        done: list[float] = []
        while not done or done[-1] < 1:
            pacer.begin()
            self.now += next(seconds)
            pacer.end()
            done.append(pacer.trace.now)
        return done


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine whose clock stands still between steps."""
    return Machine(monkeypatch)


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Give the number of threads back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


PACES: dict[str, Callable[[int], float]] = {
    "steady": lambda step: 0.25,
    "ever slower": lambda step: 0.1 + 0.002 * step,
    "twice as fast": lambda step: 0.25 if step < 40 else 0.125,
    "eleven times slower for a while": lambda step: 0.25 * (11 if 30 <= step < 40 else 1),
    "a pause": lambda step: 20.0 if step == 50 else 0.25,
}


@pytest.mark.parametrize("name", PACES)
def test_the_end_is_that_of_the_budget_whatever_happens_on_the_way(machine: Machine, name: str) -> None:
    """One disturbance of 50 s cut the length to 255 of 360 s, since the plan was never raised again."""
    trace, pace = Trace(), PACES[name]
    pacer = Clocked(trace, Budget(100, machine.now - 7), adapt=False)
    pacer.reported(3.0)
    done = machine.train(pacer, (pace(step) for step in itertools.count()))
    last = pace(len(done) - 1)
    assert abs(machine.now - (100 - 7 + 100 - 3 - EXIT)) <= last / 2 + 1e-9
    assert done == sorted(done)
    assert trace.progress[0] == 0
    assert len(trace.progress) == len(trace.threads) == len(done)


def test_progress_is_the_share_of_the_time(machine: Machine) -> None:
    """And where the last report takes longer than was thought, the rest of it falls to the time that is left."""
    trace = Trace()
    pacer = Clocked(trace, Budget(41 + EXIT, machine.now), adapt=False)
    for step in range(20):
        pacer.begin()
        assert trace.now == pytest.approx(step / 41)
        machine.now += 1
        pacer.end()
    pacer.reported(1.0)
    half = trace.now
    pacer.begin()
    machine.now += 5
    pacer.end()
    assert trace.now == pytest.approx(half + (1 - half) * 5 / 20)
    assert pacer.left == pytest.approx(15)


def test_the_end_is_that_of_a_step(machine: Machine) -> None:
    """A report that takes more time than was left does not end a step before it began."""
    trace = Trace()
    pacer = Clocked(trace, Budget(10 + EXIT, machine.now), adapt=False)
    for seconds in (1.0, 1.0, 20.0):
        pacer.begin()
        assert trace.progress[-1] < 1
        pacer.end()
        assert trace.now < 1
        machine.now += seconds
    pacer.begin()
    assert trace.progress[-1] < 1
    pacer.end()
    assert trace.now == 1


def test_all_processes_end_with_the_first_one(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each began at a time of its own, and one that took a step more would wait for the others for ever."""
    monkeypatch.setattr(clocks.distributed, "agreed", lambda end: 150.0)
    assert Clocked(Trace(), Budget(10, machine.now + 0.2), adapt=False).left == pytest.approx(50 - EXIT)


def test_a_budget_that_is_too_short_says_what_a_step_takes(machine: Machine) -> None:
    pacer = Clocked(Trace(), Budget(5, machine.now - 4.5), adapt=False)
    with pytest.raises(UserError, match=r"5 s is too short: it took 4.5 s to begin, one step takes 2 s .*45"):
        machine.train(pacer, itertools.repeat(2.0))


def test_the_average_follows_the_time(machine: Machine) -> None:
    """With steady steps it is that of a training by images; a slow step counts for more, a pause does not."""
    trace = Trace()
    pacer = Clocked(trace, Budget(1000, machine.now), adapt=False)
    paces = [0.5] * 30 + [20.0] + [0.5] * 5 + [2.0] * 30
    numbers = []
    for seconds in paces:
        pacer.begin()
        numbers.append(trace.steps)
        machine.now += seconds
        pacer.end()
    assert numbers[:31] == pytest.approx(list(range(1, 32)))
    assert numbers[32] == pytest.approx(1 + (15 + 20) / 0.5 + 1, abs=1)  # the pause counts as time, not as a pace
    assert numbers[-1] == pytest.approx(1 + (sum(paces) - 2) / 2)
    assert PowerAverage().share(numbers[0], 32) == 1


def test_a_trace_is_read_as_it_was_written_and_damage_is_found(tmp_path: Path) -> None:
    trace = Trace([0.0, 0.25, 0.5], [2, 1, 2], 0.75, 12.5)
    assert Trace.of(trace.tensors(), tmp_path) == trace
    assert trace.before(3) == trace
    assert trace.before(1) == Trace([0.0], [2], 0.25, 12.5)
    whole = trace.tensors()
    for name, wrong in {
        "progress": torch.tensor([0.0, 0.5, 0.25, 0.75], dtype=torch.float64),
        "threads": torch.tensor([2, 100_000, 2]),
        "span": torch.tensor(math.nan, dtype=torch.float64),
    }.items():
        with pytest.raises(UserError, match="is damaged"):
            Trace.of({**whole, name: wrong}, tmp_path)
    with pytest.raises(UserError, match="no trace"):
        Trace.of({"progress": whole["progress"]}, tmp_path)


class Cores:
    """A machine of two cores: seconds of a step by the number of threads, and by what else runs."""

    def __init__(self, most: int = 2) -> None:
        self.now, self.busy = 0.0, False
        torch.set_num_threads(most)
        self.threads = Threads(lambda: self.now)

    def steps(self, count: int) -> list[int]:
        """Take steps; return the threads of each."""
        used = []
        for _ in range(count):
            used.append(torch.get_num_threads())
            seconds = {1: 0.17, 2: 1.1 if self.busy else 0.1}[used[-1]]
            self.now += seconds
            self.threads.after(seconds)
        return used


def test_threads_follow_the_machine_in_both_directions() -> None:
    """Two threads beside one busy loop are eleven times slower than idle, and one is not."""
    cores = Cores()
    idle = cores.steps(1000)
    assert idle.count(1) <= 3  # one trial at the beginning
    cores.busy = True
    assert cores.steps(400).count(2) <= 12
    cores.busy = False
    assert cores.steps(400).count(1) <= 200  # the next look can be half a minute away
    assert cores.steps(300).count(1) <= 3


def test_one_thread_stays_one() -> None:
    cores = Cores(most=1)
    assert set(cores.steps(50)) == {1}


def test_reports_take_their_share() -> None:
    full = Reporting()
    assert full.within(10.0, 1e-3, 20, 64) == full
    smaller = full.within(1.0, 1e-3, 20, 64)
    assert 0.25 <= 1e-3 * (smaller.rows + 20 * smaller.samples) <= 1.0
    assert 0 < smaller.samples < 64
    assert "instead of 64" in smaller.said
    none = full.within(1.0, 0.5, 30, 64)
    assert (none.samples, none.rows) == (0, 8)
    assert "one sample would take 15 s" in none.said
    assert full.within(0.1, 1e-3, 0, 64).rows == 25
    assert allowed(1000, 10, by_clock=True) == 3
    assert allowed(1000, 10, by_clock=False) == 5
    assert fitting(1000, 10, 8) == 3
    assert fitting(1000, 100, 8) == 1
    assert full.rows == HELD_OUT


@contextmanager
def even(seconds: float = 0.02) -> Iterator[None]:
    """Let each look at the clock take so many seconds, so that what fits a budget does not depend on the machine."""
    looks, began = itertools.count(1), time.monotonic()
    with pytest.MonkeyPatch.context() as patch:
        for module in (clocks, reporting):
            patch.setattr(module, "clock", lambda: began + seconds * next(looks))
        yield


@pytest.fixture(scope="module")
def clocked(tiny: MakeRecipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was trained by the clock."""
    out = tmp_path_factory.mktemp("clocked") / "run"
    with even():
        train(tiny("training.images=1000000000"), out, budget=4, device="cpu", console=QUIET)
    return out


def test_a_run_by_the_clock_is_whole_and_says_what_it_saw(clocked: Path) -> None:
    recipe, trace = read_recipe(clocked), trace_of(clocked)
    assert recipe.training.seconds == 4
    assert 41 < len(trace.progress) < (4 - EXIT) / 0.04  # two looks at the clock a step
    assert recipe.training.images == 32 * len(trace.progress) < 1_000_000_000
    assert trace.now == 1
    rates = [line["lr"] for line in read_metrics(clocked / "metrics.jsonl") if "lr" in line]
    assert rates[-1] < 0.5 * max(rates)
    before = (clocked / "model.safetensors").read_bytes()
    resume(clocked, device="cpu", console=QUIET)
    assert (clocked / "model.safetensors").read_bytes() == before


def test_the_rate_falls_with_the_time() -> None:
    rule = AdamW(lr=1.0, warmup=0, decay=0.5)
    for share in (0.25, 0.5, 0.75, 0.99):
        assert rule.rate(300, 300 / share) == pytest.approx(min(1.0, (1 - share) / 0.5))


def test_a_training_by_the_clock_can_be_repeated_to_the_bit(clocked: Path, tiny: MakeRecipe, tmp_path: Path) -> None:
    """On another day, with another load; also where the repetition is stopped on the way."""
    out, calls = tmp_path / "again", itertools.count()
    train(tiny(), out, follow=clocked, stop=lambda: next(calls) == 5, device="cpu", console=QUIET)
    assert 0 < trace_of(out).now < 1
    assert followed(out) is not None
    resume(out, device="cpu", console=QUIET)
    one, other = (load_file(run / "model.safetensors") for run in (clocked, out))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert trace_of(out) == trace_of(clocked)
    plain = train(tiny("training.images=64"), tmp_path / "plain", device="cpu", console=QUIET)
    with pytest.raises(UserError, match="was not trained by the clock"):
        train(tiny(), tmp_path / "none", follow=plain.path, device="cpu", console=QUIET)


def test_a_stopped_training_by_the_clock_resumes_with_the_time_that_was_left(tiny: MakeRecipe, tmp_path: Path) -> None:
    out, calls = tmp_path / "run", itertools.count()
    with even():
        train(tiny(), out, budget=4, stop=lambda: next(calls) == 20, device="cpu", console=QUIET)
        stopped = trace_of(out)
        assert 0.2 < stopped.now < 0.5
        resume(out, device="cpu", console=QUIET)
    ended = trace_of(out)
    assert 25 < len(ended.progress) < 80  # the last report and the exit count once more
    assert ended.progress[: len(stopped.progress)] == stopped.progress
    assert ended.span == stopped.span
    assert ended.now == 1


def test_a_step_of_a_run_by_the_clock_is_replayed_at_its_progress(
    clocked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []
    prepare = loop.Trainer.prepare
    monkeypatch.setattr(loop.Trainer, "prepare", lambda self, draw: seen.append(self.progress) or prepare(self, draw))
    replay(clocked, 9, "cpu")
    assert seen == [trace_of(clocked).progress[8]]


def test_a_sheet_that_does_not_fit_is_left_out(
    tiny: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At 608 pixels they took all the time."""
    monkeypatch.setattr(reporting, "evaluations", lambda generator: 10**9)
    with even():
        train(tiny(), tmp_path / "run", budget=3, device="cpu", console=QUIET)
    assert not (tmp_path / "run" / "samples").exists()
    assert any("held_out_loss" in line for line in read_metrics(tmp_path / "run" / "metrics.jsonl"))


def test_a_loss_of_few_rows_says_of_how_many(tiny: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Reporting, "within", lambda self, *rest: Reporting(8, 0))
    said = io.StringIO()
    run = train(tiny("training.images=128"), tmp_path / "few", device="cpu", console=Console(file=said, width=200))
    losses = [line for line in read_metrics(run.path / "metrics.jsonl") if "held_out_loss" in line]
    assert {line["held_out_rows"] for line in losses} == {8}
    assert len(re.findall(r"held-out loss [\d.]+ \(of 8 rows\)", said.getvalue())) == len(losses)
    monkeypatch.undo()
    said = io.StringIO()
    run = train(tiny("training.images=128"), tmp_path / "all", device="cpu", console=Console(file=said, width=200))
    assert "rows)" not in said.getvalue()


def test_fewer_threads_are_said_at_the_end(machine: Machine) -> None:
    pacer = Clocked(Trace(), Budget(10, machine.now), adapt=True)
    assert pacer.threads is not None
    pacer.threads.most = 4
    pacer.trace.threads = [4] * 95 + [2] * 5
    assert pacer.fewer() == ""
    pacer.trace.threads = [4] * 60 + [2] * 40
    assert pacer.fewer().startswith("40% of the steps were computed with fewer than 4 threads")
    assert Clocked(Trace(), Budget(10, machine.now), adapt=False).fewer() == ""


@pytest.mark.parametrize("span", [(0.1, 1.3), (0.11, 0.13), (3, 4000)])
def test_the_ticks_of_the_losses_are_numbers_that_one_reads(tmp_path: Path, span: tuple[float, float]) -> None:
    low, high = span
    lines = [{"step": step, "images": 9000 * step, "loss": high - (high - low) * step / 20} for step in range(21)]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    figure = losses(tmp_path)
    assert figure is not None
    figure.canvas.draw()
    (axes,) = figure.axes
    bottom, top = axes.get_ylim()
    values = [tick for tick in axes.get_yticks() if bottom <= tick <= top]
    labels = [label.get_text() for label in axes.get_yticklabels(minor=False)]
    assert len(values) >= 3
    assert all(re.fullmatch(r"[\d.]*", label) for label in labels)
    assert "100,000" in [label.get_text() for label in axes.get_xticklabels()]


@pytest.mark.parametrize(("solver", "evaluations"), [("ddim", 4), ("heun", 7), ("dpmpp-2m", 4)])
def test_evaluations_of_a_sample_are_counted(tiny: MakeRecipe, tmp_path: Path, solver: str, evaluations: int) -> None:
    run = train(tiny(f"solver={solver}", "training.images=32"), tmp_path / "run", device="cpu", console=QUIET)
    sampler = run.sampler()
    assert reporting.evaluations(sampler) == evaluations * (1 if sampler.settings.guidance == 1 else 2)
    assert reporting.evaluations(None) == 0


def test_a_pipe_hears_of_the_training_from_time_to_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr("unfog.training.metrics.time.monotonic", lambda: now[0])
    metrics = Metrics(tmp_path / "metrics.jsonl", 10, 0)
    with Display(Console(width=200)) as display:
        for step in range(1, 101):
            now[0] += 1.0
            display.advance(10 * step, step / 100, None, metrics)
    lines = capsys.readouterr().out.splitlines()
    assert 7 <= len(lines) <= 8
    assert "10 images/s" in lines[0]
    assert "0:01:27 left" in lines[0]


def test_a_budget_needs_a_unit(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "digits", "--budget", "5"]) == 2
    assert "--budget 5 has no unit: write 5m or 5s" in capsys.readouterr().err


@pytest.mark.slow
def test_schedules_are_compared_at_equal_length(tmp_path: Path) -> None:
    """The first is trained by the clock, and the others take its steps."""
    recipe = unfog.recipe("digits").set("network.width=8", "training.batch=32", "sampling.batch=64")
    schedules(recipe, ["flow", "cosine"], tmp_path, 6, count=100, device="cpu", console=QUIET)
    assert trace_of(tmp_path / "flow") == trace_of(tmp_path / "cosine")
    lengths = [json.loads((tmp_path / name / "recipe.json").read_text())["training"] for name in ("flow", "cosine")]
    assert lengths[0] == lengths[1]
    schedules(recipe, ["flow", "cosine"], tmp_path, 6, count=100, device="cpu", console=QUIET)


def test_a_following_pacer_sets_the_threads() -> None:
    pacer = Following(Trace(), Trace([0.0, 0.5], [1, 2], 1.0, 3.0))
    pacer.begin()
    assert torch.get_num_threads() == 1
    pacer.end()
    assert pacer.left == pytest.approx(1.5)
    pacer.begin()
    assert torch.get_num_threads() == 2
    pacer.end()
    assert pacer.trace == Trace([0.0, 0.5], [1, 2], 1.0, 3.0)


def test_a_damaged_pattern_is_refused(tmp_path: Path) -> None:
    write_tensors(tmp_path / clocks.FOLLOWED, {"progress": torch.zeros(2)})
    with pytest.raises(UserError, match="no trace of a training by the clock"):
        followed(tmp_path)
