"""`unfog bench`: evaluations that are counted, measurements that are kept, and the setting that is recommended."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from unfog.cli.main import main
from unfog.diffusion.solvers import UniPC
from unfog.evaluation import bench as module
from unfog.evaluation import contest
from unfog.evaluation.bench import bench, heads_of, save
from unfog.evaluation.benched import Bench
from unfog.evaluation.compare import compare, load_alike
from unfog.evaluation.contest import schedules
from unfog.evaluation.intervals import Protocol, Scored, Sets, plain
from unfog.evaluation.judge import Asked, Judge
from unfog.evaluation.results import Measured, Setting
from unfog.recipes.build import build_data, build_denoiser
from unfog.recipes.recipe import Recipe
from unfog.runs import run as runs
from unfog.runs.distilling import distill
from unfog.runs.run import Run, load, read_recipe
from unfog.runtime.errors import Stopped, UserError
from unfog.training.trainer import Trainer

COUNT = 130
"""The least that the judge of the digits compares."""
QUIET = Console(quiet=True)
PROTOCOL = Protocol("frechet/pixels", "pixels 0123", Sets("4567", 130, 0))
RECALL = Scored(0.5, None, None, 10, 0.9, 0, PROTOCOL)


@pytest.fixture(scope="module")
def run(digits_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run folder that a bench may write into."""
    folder = tmp_path_factory.mktemp("bench") / "run"
    folder.mkdir()
    for name in ("recipe.json", "model.safetensors"):
        shutil.copy(digits_run / name, folder / name)
    return load(folder, "cpu")


@pytest.fixture(scope="module")
def found(run: Run) -> Bench:
    """Two solvers and an adaptive one, with and without guidance."""
    return bench(run, ("ddim", "heun", "rk45"), (), (1, 2), (1, 4, 5), count=COUNT, console=QUIET)


@pytest.fixture
def evaluations(run: Run, found: Bench) -> list[int]:
    """The network's evaluations since `found`, one entry each."""
    calls: list[int] = []
    run.denoiser.network.register_forward_hook(lambda *call: calls.append(1))  # type: ignore[attr-defined]
    return calls


def test_no_sampling_costs_more_than_was_asked_and_one_more_step_would(found: Bench) -> None:
    """By the closed rules: DDIM costs n, Heun 2n - 1, guidance doubles both."""
    cost: dict[str, Callable[[int], int]] = {"ddim": lambda n: n, "heun": lambda n: 2 * n - 1}
    expected = {}
    for solver, rule in cost.items():
        for guidance in (1.0, 2.0):
            for wanted in (1, 4, 5):
                steps = max((n for n in range(1, 6) if rule(n) * guidance <= wanted), default=None)
                if steps is not None:
                    expected[Setting(solver, "uniform", guidance), wanted] = (steps, rule(steps) * guidance)
    assert {cell: (one.steps, one.nfe) for cell, one in found.cells.items()} == expected
    scores = {(one.fidelity.protocol.metric, one.recall.protocol.metric) for one in found.measured}
    assert scores == {("frechet/classifier", "recall")}


def test_an_adaptive_solver_is_left_out_with_a_reason(found: Bench) -> None:
    assert found.left_out.keys() == {f"rk45, grid uniform, guidance {scale}" for scale in (1, 2)}
    assert "left out: rk45, grid uniform, guidance 1: it takes as many evaluations as its" in found.table()


def test_solvers_that_the_schedule_does_not_suit_are_left_out(
    tiny: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = ("solver=ancestral", "solver.variance=learned")
    recipe = build_data(tiny("schedule=zero-terminal-snr", "target=v", "times=discrete", *own))[0]
    model = Run(tmp_path, recipe, build_denoiser(recipe).requires_grad_(False), "float32")
    settings = [Setting(solver, "uniform", 1.0) for solver in ("ddim", "ancestral")]
    monkeypatch.setattr(module, "heldout_conditions", lambda *given: (torch.zeros(1, dtype=torch.long), None))
    judge: Any = None
    plan = module._plan(model, settings, [5], 0, judge, 1)
    assert [(cell, one.nfe) for cell, one in plan.cells.items()] == [((settings[0], 5), 5)]
    assert (
        "needs a model that was trained with variance=learned" in plan.left_out["ancestral, grid uniform, guidance 1"]
    )
    with pytest.raises(UserError, match="none of these settings can be measured: ancestral.*variance=learned"):
        module._plan(model, settings[1:], [5], 0, judge, 1)


def test_measurements_are_reused(run: Run, found: Bench, evaluations: list[int]) -> None:
    again = bench(run, ("ddim", "heun", "rk45"), (), (1, 2), (1, 4, 5), count=COUNT, console=QUIET)
    assert again == found
    assert not evaluations
    more = bench(run, ("ddim",), (), (), (4, 5, 3), count=COUNT, console=QUIET)
    assert len(evaluations) == 3 * math.ceil(COUNT / 64)  # three steps of full batches, for what was new
    assert more.cells[Setting("ddim", "uniform", 1.0), 4] == found.cells[Setting("ddim", "uniform", 1.0), 4]


def test_other_noises_numbers_and_models_are_measured_anew(run: Run, found: Bench, evaluations: list[int]) -> None:
    def measure(model: Run, count: int = COUNT, seed: int = 0) -> float:
        before = len(evaluations)
        one = bench(model, ("ddim",), (), (), (1,), count=count, seed=seed, console=QUIET)
        assert len(evaluations) > before
        return one.best.fidelity.value

    first = found.cells[Setting("ddim", "uniform", 1.0), 1].fidelity.value
    assert len({first, measure(run, seed=1), measure(run, COUNT + 1)}) == 3
    other = run.path.parent / "other"
    shutil.copytree(run.path, other)
    weights = (other / "model.safetensors").read_bytes()
    (other / "model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    measure(replace(run, path=other))


def test_damaged_lines_are_measured_again(run: Run, found: Bench, evaluations: list[int]) -> None:
    path = run.path / "bench" / "results.jsonl"
    lines = path.read_text().splitlines()
    place = next(i for i, line in enumerate(lines) if json.loads(line)["nfe"] == 4 and '"ddim"' in line)
    missing = {key: value for key, value in json.loads(lines[place]).items() if key != "fidelity"}
    path.write_text("\n".join([*lines[:place], json.dumps(missing), *lines[place + 1 :], lines[0][:30]]))
    with pytest.warns(UserWarning, match="2 damaged lines are skipped and measured again"):
        again = bench(run, ("ddim", "heun", "rk45"), (), (1, 2), (1, 4, 5), count=COUNT, console=QUIET)
    steps = json.loads(lines[place])["nfe"]
    assert again == found
    assert len(evaluations) == steps * math.ceil(COUNT / 64)
    assert sorted(path.read_text().splitlines()) == sorted(lines)


def test_lines_of_an_earlier_version_are_measured_again(run: Run, found: Bench, evaluations: list[int]) -> None:
    """They kept the protocol as a sentence, or had no recall."""
    path = run.path / "bench" / "results.jsonl"
    text = path.read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    old, another = [line for line in lines if line["nfe"] == 4][:2]
    old["fidelity"]["protocol"] = "frechet/classifier by classifier 0123, blocks of 130 samples"
    del another["recall"]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.warns(UserWarning, match="2 lines of an earlier version are skipped and measured again"):
        again = bench(run, ("ddim", "heun", "rk45"), (), (1, 2), (1, 4, 5), count=COUNT, console=QUIET)
    assert again == found
    assert evaluations
    assert sorted(path.read_text().splitlines()) == sorted(text.splitlines())


def test_what_was_measured_before_a_stop_is_kept(
    run: Run, monkeypatch: pytest.MonkeyPatch, evaluations: list[int]
) -> None:
    adherence, calls = Judge.adherence, []

    def stop(judge: Judge, samples: torch.Tensor, asked: Asked) -> Scored | None:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return adherence(judge, samples, asked)

    monkeypatch.setattr(Judge, "adherence", stop)
    with pytest.raises(Stopped, match="1 of 2 measurements are kept: run the same command again") as stopped:
        bench(run, ("ancestral",), (), (), (1, 2), count=COUNT, console=QUIET)
    assert stopped.value.code == 130
    before = len(evaluations)
    bench(run, ("ancestral",), (), (), (1, 2), count=COUNT, console=QUIET)
    assert len(evaluations) - before == 2 * math.ceil(COUNT / 64)  # the first was kept, of one step


def test_a_saved_setting_is_what_sample_uses(run: Run, tmp_path: Path) -> None:
    shutil.copytree(run.path, tmp_path / "run")
    own = load(tmp_path / "run", "cpu")
    score = Scored(1, 1, 1, 1, 0, 2, PROTOCOL)
    save(own, Measured(Setting("heun", "karras", 2.0), 3, 10, score, score, None))
    again = load(tmp_path / "run", "cpu")
    asked = run.sample(4, solver="heun", grid="karras", steps=3, guidance=2.0)
    assert torch.equal(again.sample(4), asked)
    assert not torch.equal(run.sample(4), asked)
    assert (
        again.recipe.set("solver=dpmpp-2m", "grid=uniform", "sampling.steps=4", "sampling.guidance=1.5") == run.recipe
    )


def test_saving_keeps_the_options_that_were_measured(run: Run, tmp_path: Path) -> None:
    shutil.copytree(run.path, tmp_path / "run")
    own = replace(run, path=tmp_path / "run", recipe=run.recipe.set("solver=unipc", "solver.p=3"))
    score = Scored(1, 1, 1, 1, 0, 2, PROTOCOL)
    save(own, Measured(Setting("unipc", "uniform", 1.0), 3, 3, score, score, None))
    assert load(own.path, "cpu").recipe.solver == UniPC(p=3)


VALUES = (1.0, 1.05, 1.09, 1.11, 1.2, 2.0, 5.0, -0.5, -0.46, -0.44)
scores = st.lists(
    st.tuples(st.integers(1, 6), st.sampled_from(VALUES), st.sampled_from(["a", "b", "c"])), min_size=1, max_size=12
)


@given(scores)
def test_best_recommended_and_front_by_brute_force(rows: list[tuple[int, float, str]]) -> None:
    cells = {
        (Setting(name, "uniform", 1.0), nfe): Measured(
            Setting(name, "uniform", 1.0), nfe, nfe, Scored(value, value, value, 10, 0, 1, PROTOCOL), RECALL, None
        )
        for nfe, value, name in rows
    }
    one = Bench("run", (1, 2, 3, 4, 5, 6), cells, {})
    values = [(row.nfe, row.fidelity.value) for row in cells.values()]
    least = min(value for _, value in values)
    assert one.best.fidelity.value == least
    near = [(nfe, value) for nfe, value in values if value <= least + 0.1 * abs(least)]
    assert (one.recommended.nfe, one.recommended.fidelity.value) == min(near)
    surpassed = {mine: any(n <= mine[0] and v <= mine[1] and (n, v) != mine for n, v in values) for mine in set(values)}
    assert [(row.nfe, row.fidelity.value) for row in one.front] == sorted(
        mine for mine, worse in surpassed.items() if not worse
    )


def test_a_rule_that_extrapolates_too_far_is_measured_and_not_recommended(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A third-order multistep rule in few steps of most grids, however well it scored by chance."""
    settings = [Setting(solver, grid, 1.0) for solver in ("dpmpp-3m", "dpmpp-2m") for grid in ("karras", "log-snr")]
    monkeypatch.setattr(module, "heldout_conditions", lambda *given: (torch.zeros(1, dtype=torch.long), None))
    judge: Any = None
    plan = module._plan(run, settings, [10, 12, 24, 30], 0, judge, 1).cells
    doubtful = frozenset(cell for cell, (sampler, _) in plan.items() if module._doubtful(sampler))
    assert {(setting.grid, nfe) for setting, nfe in doubtful} == {("log-snr", 10)} | {
        ("karras", n) for n in (10, 12, 24)
    }
    assert {setting.solver for setting, _ in doubtful} == {"dpmpp-3m"}
    scores = {True: Scored(1.0, 0.9, 1.1, 10, 0, 2, PROTOCOL), False: Scored(1.5, 1.4, 1.6, 10, 0, 2, PROTOCOL)}
    cells = {cell: Measured(cell[0], cell[1], cell[1], scores[cell in doubtful], RECALL, None) for cell in plan}
    found = Bench("run", (10, 12, 24, 30), cells, {}, doubtful)
    assert found.best.setting.solver == "dpmpp-3m"
    assert found.recommended == cells[settings[2], 10]
    assert "not recommended: dpmpp-3m, grid karras, up to 24 steps: they are too long" in found.table()
    alone = {cell: one for cell, one in cells.items() if cell in doubtful}
    assert Bench("run", (10,), alone, {}, doubtful & alone.keys()).recommended.nfe == 10, "of nothing else"


def test_the_table_marks_the_best_of_each_column_and_shows_adherence_under_guidance(found: Bench) -> None:
    distances, recalls = found.table().split("\n\n")
    rows = {line.split("  ")[0].strip(): line for line in distances.splitlines()}
    shown = [line.split()[-3:] for line in recalls.splitlines() if line.startswith("ddim ×1")]
    setting = Setting("ddim", "uniform", 1.0)
    assert shown == [[f"{found.cells[setting, nfe].recall.value:.3f}" for nfe in found.nfe]]
    assert rows["evaluations up to"].split()[-3:] == ["1", "4", "5"]
    assert rows["heun ×2"].split()[2] == "-"  # one evaluation is too few for guidance
    for place, nfe in enumerate(found.nfe):
        values = {setting: one.fidelity.value for (setting, n), one in found.cells.items() if n == nfe}
        best = min(values, key=lambda setting: values[setting])
        cells = {name: line.split("  ") for name, line in rows.items() if " ×" in name}
        marked = [name for name, line in cells.items() if "*" in [cell for cell in line if cell.strip()][place + 1]]
        assert found.label(best) in marked
    assert "%)" in rows["ddim ×1"]


def test_the_verb_writes_plot_and_numbers_and_says_how_to_save(
    run: Run, found: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run.path, tmp_path / "run")
    arguments = ["bench", str(tmp_path / "run"), "-n", str(COUNT), "--solvers", "ddim", "heun", "--device", "cpu"]
    arguments += ["--guidance", "1", "2", "--nfe", "1", "4", "5"]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "--save stores the recommended setting" in out
    assert found.table().splitlines()[1] in out
    with Image.open(tmp_path / "run" / "bench" / "bench.png") as picture:
        assert picture.width > 900
        assert np.asarray(picture.convert("L")).std() > 10
    written = json.loads((tmp_path / "run" / "bench" / "bench.json").read_text())
    assert len(written["measured"]) == len(set(found.cells.values()))
    assert written["recommended"] == plain(found.recommended)
    assert written["recommended"]["fidelity"]["protocol"] == str(found.recommended.fidelity.protocol)
    assert f"recall {found.recommended.recall.value:.3f}" in " ".join(out.split())
    assert "near training rows in classifier: " in out
    assert main([*arguments, "--save"]) == 0
    assert "uses the recommended setting now" in capsys.readouterr().out
    recipe = read_recipe(tmp_path / "run")
    chosen = found.recommended
    assert (recipe.kind("solver"), recipe.sampling.steps) == (chosen.setting.solver, chosen.steps)
    assert recipe.sampling.guidance == chosen.setting.guidance


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "nothing to measure: name a run folder, or the --schedules to train on"),
        (["RUN", "--data", "digits"], "--data goes with --schedules only"),
        (["RUN", "--budget", "2m"], "--budget goes with --schedules only"),
        (["RUN", "--schedules", "flow,cosine"], "a run does not go with --schedules"),
        (["--schedules", "flow,cosine", "--nfe", "5"], "--nfe does not go with --schedules"),
        (["--schedules", "flow,cosine", "--save"], "--save does not go with --schedules"),
        (["--schedules", "flow"], "name two different schedules or more"),
        (["--schedules", "flow,flow"], "name two different schedules or more"),
        (["--schedules", "flow,cosin"], "unknown schedule 'cosin': did you mean 'cosine'"),
        (["--schedules", "cosine,flow", "--data", "tutorial"], "'index' needs a schedule of discrete steps"),
        (["RUN", "--solvers", "dimm"], "unknown solver 'dimm': did you mean 'ddim'"),
        (["RUN", "--nfe", "0"], "1 network evaluation or more, not 0"),
        (["RUN", "RUN", "--save"], "--save stores a setting in one run folder: name one"),
        (["RUN", "RUN"], "one run is named twice"),
        (["RUN", "-n", "20"], "20 samples are too few"),
    ],
)
def test_mistakes(
    run: Run,
    arguments: list[str],
    sentence: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    given = [str(run.path) if one == "RUN" else one for one in arguments]
    assert main(["bench", *given, "--device", "cpu"]) == 2
    assert sentence in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


# Several runs


def test_runs_are_compared_at_as_many_evaluations(
    run: Run,
    digits_run: Path,
    points_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A student takes its own solver, keeps its measurements in its own folder, and is set against its teacher."""
    teacher = Run(tmp_path / "teacher", run.recipe, run.model, run.precision)
    shutil.copytree(run.path, teacher.path, ignore=shutil.ignore_patterns("bench"))
    settings = ("training.reports=2", "optimizer.warmup=64")
    student = distill(digits_run, tmp_path / "fast", rows=64, points=2, images=64, settings=settings, console=QUIET)
    given: Any = {"guidance": (2,), "nfe": (1, 4), "count": COUNT, "console": QUIET}
    found = bench([teacher, student], ("ddim",), **given)
    cells = {(setting.run, setting.solver, nfe): one.steps for (setting, nfe), one in found.cells.items()}
    assert cells == {("teacher", "ddim", 4): 2, ("fast", "ddim", 1): 1, ("fast", "ddim", 4): 4}
    (lead,) = found.leads
    assert (lead.nfe, lead.one.setting.run, lead.other.setting.run) == (4, "fast", "teacher")
    assert str(lead) in " ".join(found.table().split())
    assert "fast ddim ×2" in found.table()
    said = " ".join(found.near)
    assert [f"near training rows in classifier, {name}: " in said for name in ("teacher", "fast")] == [True, True]
    monkeypatch.setattr(module, "FEW", (1, 4))
    alone = bench(student, **{**given, "nfe": ()})
    assert alone.nfe == (1, 4), "of a flow map fewer evaluations are of interest"
    assert {setting.solver for setting, _ in alone.cells} == {"ddim"}, "the others do not jump"
    assert {one.fidelity.value for one in alone.measured} < {one.fidelity.value for one in found.measured}
    assert not alone.leads
    arguments = ["bench", str(teacher.path), str(student.path), "--solvers", "ddim", "--guidance", "2", "--nfe", "4"]
    assert main([*arguments, "-n", str(COUNT), "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "4 evaluations: fast, ddim, grid uniform, compared with teacher, ddim, grid uniform: distance " in " ".join(
        out.split()
    )
    assert "--save" not in out
    loaded = load_alike([teacher.path, student.path], "cpu")
    ways = [(one.recipe.kind("solver"), one.recipe.sampling.steps, one.recipe.sampling.guidance) for (one,) in loaded]
    assert ways == [("dpmpp-2m", 4, 1.5), ("ddim", 1, 1.5)], "a student's steps are jumps"
    said = compare(loaded, ["teacher", "fast"], COUNT, console=QUIET).settings
    assert said.startswith(f"{COUNT} samples, solver dpmpp-2m, grid uniform, 4 steps, guidance 1.5, noises of seed 0; ")
    assert said.endswith("; fast: solver ddim, grid uniform, 1 step, guidance 1.5")
    with pytest.raises(UserError, match="cannot be compared: their data differ"):
        bench([teacher, load(points_run, "cpu")], ("ddim",), **given)


def test_no_runs_are_refused() -> None:
    with pytest.raises(UserError, match="nothing to measure: give a run"):
        bench([])


def test_runs_are_called_by_their_folders_or_paths(run: Run, tmp_path: Path) -> None:
    others = [replace(run, path=tmp_path / name) for name in ("a/run", "b/run", "b/x")]
    assert heads_of(others[:1]) == [""]
    assert heads_of(others[1:]) == ["run", "x"]
    assert heads_of(others) == [str(one.path) for one in others]


# Schedules


@pytest.mark.slow
def test_schedules_are_trained_alike_once_and_ranked(
    tiny: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One is trained on its budget and the other as long; neither twice, and a lost one again."""
    monkeypatch.setattr(contest, "SCHEDULE_STEPS", 3)
    recipe, names = tiny(), ["flow", "cosine"]

    def begin(chosen: Recipe = recipe) -> list[tuple[str, float]]:
        ranking = schedules(chosen, names, tmp_path, 8, count=COUNT, device="cpu", console=QUIET)
        assert ranking.reference == ranking.models[0].name
        assert not ranking.models[0].differences
        gap = ranking.models[1].differences[ranking.fidelity]
        assert gap.interval is not None
        assert gap.interval.low <= gap.value <= gap.interval.high
        assert ("not told apart" in ranking.table().split("\n\n")[0]) == (not gap.told_apart)
        return [(model.name, model.value(ranking.fidelity)) for model in ranking.models]

    first = begin()
    assert {name for name, _ in first} == set(names)
    assert first[0][1] <= first[1][1]
    held = [read_recipe(tmp_path / name) for name in names]
    assert [one.kind("schedule") for one in held] == names
    assert held[0].training == held[1].training != recipe.training
    assert [(one.kind("target"), one.kind("times"), one.seed) for one in held] == [("v", "uniform", 0)] * 2
    taken: list[Path] = []
    descend = Trainer.descend
    monkeypatch.setattr(Trainer, "descend", lambda self, draw: taken.append(self.folder) or descend(self, draw))
    shutil.rmtree(tmp_path / "cosine")
    assert begin() == first
    assert set(taken) == {tmp_path / "cosine"}
    with pytest.raises(UserError, match="flow holds a run of another recipe, seed or length"):
        begin(recipe.set("seed=1"))


def test_a_run_that_was_stopped_goes_on(
    tiny: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resumed: list[Path] = []
    monkeypatch.setattr(contest, "resume", lambda path, **rest: resumed.append(path))
    monkeypatch.setattr(contest, "load_alike", lambda paths, device: pytest.fail("far enough"))
    base = tiny("training.batch=32").set("target=v", "times=uniform")
    first, second = tmp_path / "flow", tmp_path / "linear"
    runs.train(base.set("schedule=flow"), first, budget=1, device="cpu", console=QUIET)
    as_long = replace(base.set("schedule=linear"), training=read_recipe(first).training)
    runs.train(as_long, second, follow=first, device="cpu", console=QUIET)
    with pytest.raises(pytest.fail.Exception, match="far enough"):
        schedules(base, ["flow", "linear"], tmp_path, 1, device="cpu", console=QUIET)
    assert resumed == [first, second]
    for changed, budget in ((base, 2), (base.set("training.batch=16"), 1), (base.set("seed=1"), 1)):
        with pytest.raises(UserError, match="flow holds a run of another recipe, seed or length"):
            schedules(changed, ["flow", "linear"], tmp_path, budget, device="cpu", console=QUIET)
