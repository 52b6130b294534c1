"""What a training will take: the arithmetic of budgets, memory that grows with the batch, and nothing left behind."""

import importlib
import math
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

import unfog
from tests.conftest import MakeRecipe
from unfog.cli.main import main
from unfog.recipes.build import build_data
from unfog.recipes.objective import Draw
from unfog.recipes.presets import recipe
from unfog.recipes.recipe import Recipe
from unfog.runtime.device import peak_memory
from unfog.runtime.errors import UserError, seconds
from unfog.training import plan as planning
from unfog.training.pace import Pace
from unfog.training.plan import plan
from unfog.training.reporting import arithmetic_of, headline
from unfog.training.trainer import Trainer

QUIET = Console(quiet=True)


@pytest.fixture(autouse=True)
def rooms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders go, but for the one that torch makes when counting imports its compiler."""
    importlib.import_module("torch._dynamo")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


# Arithmetic


@pytest.mark.parametrize(("report", "steps"), [(0.0, 1949), (2.5, 1909), (50.0, 1890), (5000.0, 1890)])
def test_reports_take_at_most_three_hundredths_of_a_budget(report: float, steps: int) -> None:
    """(1000 - 20 - 5 - reports) / 0.5, where eight reports take 0, 20 and at most 29.4 seconds."""
    pace = Pace(0.5, report, close=5.0)
    assert pace.fit(1000, 20.5, 8) == steps
    assert 998 < 20.5 + pace.seconds(steps, 8) <= 1001


def test_what_nothing_shortens_is_paid_twice_at_least() -> None:
    """Of the statistics of latents, which each checkpoint of an autoencoder measures."""
    pace = Pace(0.5, 0.0, fixed=10.0)
    assert pace.reports(100, 8) == 20  # their share would be 3
    assert pace.reports(1000, 8) == 30
    assert pace.reports(1e6, 8) == 80
    assert pace.fit(100, 5.0, 8) == 150
    assert 99 < 5 + pace.seconds(150, 8) <= 100


def test_a_budget_too_short_for_one_step_says_how_long_one_takes() -> None:
    with pytest.raises(
        UserError, match=r"of 20 s is too short for one step: a step takes 3.5 s here, 18 s pass before"
    ):
        Pace(3.5, 10.0, close=1.0).fit(20, 18.0, 8)
    assert Pace(3.5, 10.0, close=1.0).fit(float(re.findall(r"give (\d+)s", _said(20))[0]), 18.0, 8) == 1
    with pytest.raises(UserError, match="of 50 s is too short for one step"):  # of which an autoencoder has a part
        Pace(3.5, 10.0, close=1.0).fit(20, 18.0, 8, share=0.4)


def _said(budget: float) -> str:
    """What is said of a budget that is too short."""
    with pytest.raises(UserError) as refused:
        Pace(3.5, 10.0, close=1.0).fit(budget, 18.0, 8)
    return str(refused.value)


@pytest.mark.parametrize("budget", [math.inf, math.nan, 0, -1.0, True, "2m"])
def test_a_budget_is_a_number_of_seconds(budget: float, tmp_path: Path) -> None:
    """An infinite one trained for ever."""
    with pytest.raises(UserError, match="budget must be a number of seconds above 0, and finite"):
        plan(recipe("digits"), budget=budget)
    with pytest.raises(UserError, match="budget must be a number of seconds above 0, and finite"):
        unfog.train("digits", tmp_path / "run", budget=budget)
    assert seconds("it", np.int64(3)) == 3.0


def test_what_fits_takes_no_longer_than_the_budget_and_one_step_more_does() -> None:
    pace = Pace(0.37, 0.2, close=1.3)
    steps = pace.fit(600, 33.3, 20)
    assert pace.seconds(steps, 20) + 33.3 <= 600 < pace.seconds(steps + 1, 20) + 33.3


# Memory


def test_what_a_loss_keeps_is_counted_to_the_byte(tiny: MakeRecipe, tmp_path: Path) -> None:
    found, data = build_data(tiny())
    trainer = Trainer(found, data, tmp_path, torch.device("cpu"))
    weight = torch.ones(64, requires_grad=True)

    def losses(draw: Draw) -> dict[str, torch.Tensor]:
        scaled = draw.x0.flatten(1) * weight  # keeps the rows
        return {"loss": (scaled * scaled.exp()).sum(1)}  # keeps both factors, one of which exp() keeps too

    trainer.losses = losses  # type: ignore[method-assign]
    counts = [planning._kept(trainer, rows) for rows in (1, 2, 7)]
    assert [count - counts[0] for count in counts] == [0, 3 * 256, 18 * 256]


@pytest.mark.parametrize("network", ["compact", "unet", "minimal", "dit"])
def test_what_a_network_keeps_is_linear_in_the_batch(tmp_path: Path, network: str) -> None:
    small = {"unet": ["network.widths=[8, 8]", "network.attention=[false, true]"], "dit": ["network.depth=1"]}
    chosen = recipe("digits").set(f"network={network}", *small.get(network, ["network.width=8"]))
    found, data = build_data(chosen)
    trainer = Trainer(found, data, tmp_path, torch.device("cpu"))
    first, second, third = (planning._kept(trainer, rows) for rows in (4, 8, 24))
    assert third - second == 4 * (second - first) > 0


def test_free_memory_but_for_a_tenth_holds_rows(tiny: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen, counts = tiny(), []
    kept = planning._kept
    monkeypatch.setattr(planning, "_kept", lambda trainer, rows: counts.append(kept(trainer, rows)) or counts[-1])
    monkeypatch.setattr(planning, "resident", lambda: 0)  # other tests may have left this process no room to try rows
    for free in (10**9, 2 * 10**9):
        monkeypatch.setattr(planning, "free_memory", lambda device, free=free: free)
        most = plan(chosen, device="cpu", console=QUIET).most
        assert most == int(0.9 * free / ((counts[1] - counts[0]) / 4))
    monkeypatch.setattr(planning, "free_memory", lambda device: 0)
    assert (
        plan(chosen.set("training.accumulate=2"), device="cpu", console=QUIET).most == 16
    )  # as many as were seen to fit


def test_memory_is_that_of_this_machine() -> None:
    cpu = torch.device("cpu")
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 10**8 < peak_memory(cpu) < total
    assert 10**7 < planning.free_memory(cpu) < total
    status = Path("/proc/self/status")
    if status.is_file():  # the kernel's own high-water mark; that of a parent process may be above it
        mark = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
        assert mark is not None
        assert peak_memory(cpu) > 0.95 * 1024 * int(mark[1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_rows_that_fit_a_gpu_are_about_those_that_do(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = recipe("digits").set("network.width=96", "training.reports=1")
    monkeypatch.setattr(planning, "free_memory", lambda device: 2 * 10**9)
    most = plan(chosen, device="cuda").most
    found, data = build_data(chosen.set(f"training.batch={most}"))
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(found, data, Path(folder), torch.device("cuda"))
        for step in range(2):
            held = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            trainer.descend(trainer.draws(step))
    assert 1.2 * 10**9 < torch.cuda.max_memory_allocated() - held < 2.2 * 10**9


# Plans


def test_a_plan_has_the_recipes_own_length_and_leaves_nothing(tiny: MakeRecipe, rooms: Path) -> None:
    before = torch.random.get_rng_state()
    found = plan(tiny("training.images=1000", "training.reports=3"), device="cpu")
    assert (found.steps, found.batch, found.images, found.reports) == (32, 32, 1024, 3)
    assert found.rows == 1438
    assert found.most >= 32
    assert found.seconds > found.pace.seconds(32, 3) > 0
    assert list(rooms.iterdir()) == []
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_plan_says_that_others_use_the_machine(
    tiny: MakeRecipe, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(planning, "shared", lambda: "one thread is 11.0 times as fast as 2 now")
    monkeypatch.setattr(planning, "fastest", lambda recipe, device: 1e11)
    monkeypatch.setattr(planning, "undisturbed", lambda recipe, device: 4e11)
    plan(tiny("training.images=320"), device="cpu", console=Console(stderr=True, width=200))
    said = capsys.readouterr().err
    assert "one thread is 11.0 times as fast as 2 now" in said
    assert "an idle machine is about 4.0 times as fast" in said


def _size(path: Path) -> int:
    """The bytes of a file, or of all files in a folder."""
    return sum(one.stat().st_size for one in (path, *path.rglob("*")) if one.is_file())


def test_the_disk_is_what_a_run_folder_takes(tiny: MakeRecipe, train_into: Callable[[Recipe, str], Path]) -> None:
    chosen = tiny("training.reports=4")
    found, run = plan(chosen, device="cpu", console=QUIET), train_into(chosen, "measured")
    checkpoints = list((run / "checkpoints").iterdir())
    assert len(checkpoints) == 2
    assert found.checkpoint == pytest.approx(_size(checkpoints[0]), rel=0.01)
    written = sum(_size(run / name) for name in ("checkpoints", "model.safetensors", "samples"))
    assert found.disk == pytest.approx(written + found.checkpoint, rel=0.05)


def test_a_budget_is_filled(tiny: MakeRecipe) -> None:
    found = plan(tiny("training.reports=5"), budget=1e5, device="cpu", console=QUIET)
    assert found.spent > planning.STARTUP
    assert 1e5 - found.pace.step < found.seconds <= 1e5


def test_a_table_tells_all_of_it() -> None:
    found = planning.Plan(
        "a headline", 1000, 64, 2000, 8, Pace(0.032, 3.0), 12.0, 5 * 10**8, 4321, 2 * 10**6, 10**9, timed=(4, 16)
    )
    whole = found.table().replace("\n" + " " * 8, " ")  # lines that hang
    lines = dict(line.split(maxsplit=1) for line in whole.splitlines()[1:])
    assert found.table().startswith("a headline\n")
    assert lines["speed"] == "0.50 s for a thousand images, 0.29 s for a report (timed on 4 and 16 rows)"  # of 3
    assert lines["length"] == "128,000 images in 2,000 steps of 64, which are 128.0 epochs"
    assert re.fullmatch(r"after 0:01:18 with 8 reports: begun now, at \d\d:\d\d on \w+ \d\d \w+", lines["end"])
    assert lines["memory"] == "500.0 MB at the peak; about 4,321 rows fit at a time (an estimate)"
    assert lines["disk"].startswith("1.0 GB: 2 checkpoints of 2.0 MB, one more while it is written, and 1.0 GB of")


def test_a_batch_that_does_not_fit_gets_a_sentence(
    tiny: MakeRecipe, monkeypatch: pytest.MonkeyPatch, rooms: Path
) -> None:
    def full(trainer: Trainer, draw: Draw) -> float:
        if len(draw.x0) == 16:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 0.0

    monkeypatch.setattr(Trainer, "descend", full)
    with pytest.raises(UserError, match="16 rows at a time do not fit the memory of cpu: lower training.batch, or cut"):
        plan(tiny("training.accumulate=2"), device="cpu")
    assert list(rooms.iterdir()) == []


def test_the_first_line_says_what_computes() -> None:
    count = torch.get_num_threads()
    try:
        for threads, words in ((1, "cpu with 1 thread, float32"), (2, "cpu with 2 threads, float32")):
            torch.set_num_threads(threads)
            assert arithmetic_of(torch.device("cpu"), "float32") == words
    finally:
        torch.set_num_threads(count)
    assert arithmetic_of(torch.device("cuda"), "bfloat16", "bfloat16 fused-norm") == "cuda, bfloat16, fused norms"


def test_the_first_line_names_the_patches(tiny: MakeRecipe) -> None:
    """Pictures of 48 pixels have fewer places than those of 32 where they are cut into larger patches."""
    for patch, text in (
        (1, "; 1,234 parameters; cpu, float32"),
        (2, "; 1,234 parameters on patches of 2×2; cpu, float32"),
    ):
        recipe, data = build_data(tiny(f"network.patch={patch}"))
        assert headline(recipe, data, 1234, True, "cpu, float32").endswith("conditioned on classes" + text)


# The command line


SMALL = ("--set", "network.width=8", "--set", "sampling.steps=2", "--device", "cpu")


def test_the_verb_plans_what_train_would_train(
    rooms: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(rooms)
    assert main(["plan", "digits", *SMALL, "--precision", "bfloat16", "--budget", "2h"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 100
    head, *lines = re.sub(r"\n(?:        |(?=bfloat16))", " ", out).splitlines()  # those that hang, and the headline
    assert head.startswith("1,438 images of 1×8×8, 359 held out; conditioned on classes; ")
    assert re.search(r"cpu with \d+ threads?, bfloat16$", head)
    shown = dict(line.split(maxsplit=1) for line in lines)
    assert list(shown) == ["speed", "length", "end", "memory", "disk", "portion", "expect", "export"]
    assert re.match(r"after (1:59:5\d|2:00:00) with 8 reports", shown["end"])
    assert shown["expect"].startswith("at 8 pixels and 2 hours: ")  # as long as the budget, reports and all
    assert shown["export"].startswith("to ONNX; not to diffusers: diffusers has no network like Compact: train with")
    assert list(rooms.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "name a recipe to train"),
        (["digitz"], "did you mean 'digits'"),
        (["digits", "--set", "network.widht=8"], "did you mean 'network.width'"),
        (["digits", "--budget", "soon"], "--budget takes a time like 90s, 10m, 2h or 1h30m, not 'soon'"),
        (["digits", "--size", "16"], "omit size"),
        (["folder", "--data", "nowhere"], "nowhere does not exist"),
    ],
)
def test_mistakes_are_those_of_train(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str], rooms: Path
) -> None:
    printed = []
    for verb in ("plan", "train"):
        assert main([verb, *arguments, *(["--out", str(rooms / "run")] if verb == "train" else [])]) == 2
        printed.append(capsys.readouterr().err)
    assert sentence in printed[0]
    assert printed[0] == printed[1]
    assert list(rooms.iterdir()) == []
