"""Distillation: trajectories of a teacher, a student that jumps along them, and what is refused."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

import unfog
from unfog.cli.main import main
from unfog.data.codecs import Pixels
from unfog.diffusion.targets import Prediction
from unfog.generation.trajectories import Range, Trajectories, back, moved, portion
from unfog.interop.export import export_model
from unfog.recipes.objective import Context, Draw
from unfog.recipes.recipe import Recipe
from unfog.runs.distilling import distill, foreseen, student_of
from unfog.runs.reading import read_recipe
from unfog.runs.run import load, resume
from unfog.runs.teaching import kept
from unfog.runtime.errors import UserError
from unfog.training.hooks import Callback, Report
from unfog.training.objectives.distillation import Distillation
from unfog.training.objectives.teachers import guided
from unfog.training.plan import plan

QUIET = Console(quiet=True)
FEW = ("training.reports=2", "optimizer.warmup=64")


def student(
    teacher: Path,
    out: Path,
    images: int = 512,
    rows: int = 128,
    steps: int = 1,
    callbacks: Sequence[Callback] = (),
    stop: Callable[[], bool] | None = None,
) -> unfog.Run:
    length = {"rows": rows, "points": 4, "images": images, "steps": steps}
    return distill(teacher, out, **length, callbacks=callbacks, stop=stop, settings=FEW, console=QUIET)


@pytest.fixture(scope="module")
def fast(digits_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return student(digits_run, tmp_path_factory.mktemp("fast") / "run").path


def trajectories_of(run: Path) -> Path:
    (found,) = run.glob("trajectories-*")
    return found


# Trajectories


def test_a_portion_is_the_teachers_own_sampling(digits_run: Path) -> None:
    run = load(digits_run, "cpu", "float32")
    sampler = run.sampler(guidance=2.0, steps=4, solver="ddim")
    condition = torch.arange(64) % 10
    made = portion(sampler, condition, 0, 4, Range(2.0, 2.0))
    assert made.x.shape == (64, 5, 1, 8, 8)
    assert torch.equal(made.guidance, torch.full((64,), 2.0))
    # the same steps by hand, at the times that the portion has
    times = made.times[0]
    assert (times[0], times[-1]) == (1.0, 0.0)
    own = replace(sampler, grid=unfog.TimesGrid(times.tolist()))
    states = [step.x for step in own.steps(0, condition)]
    assert torch.equal(made.x[:, 0], own.start(0, run.denoiser.schedule, times[0]).half())
    for place, state in enumerate(states, 1):
        assert torch.equal(made.x[:, place], state.half())


def test_portions_spread_over_guidance_and_times(digits_run: Path) -> None:
    sampler = load(digits_run, "cpu", "float32").sampler()
    condition = torch.zeros(64, dtype=torch.int64)
    made = [portion(sampler, condition, number, 2, Range(1.0, 3.0)) for number in range(8)]
    scales = sorted(float(one.guidance[0]) for one in made)
    assert scales[0] >= 1.0
    assert scales[-1] - scales[0] > 1.0
    assert scales[-1] <= 3.0
    assert max(b - a for a, b in pairwise(scales)) < 0.8  # no gap: evenly there would be 0.25
    middles = {round(float(one.times[0, 1]), 6) for one in made}
    assert len(middles) == 8
    assert all(0.25 <= middle <= 0.75 for middle in middles)
    assert not torch.equal(made[0].x[:, 0], made[1].x[:, 0])


def test_times_move_towards_their_neighbours() -> None:
    times = torch.tensor([1.0, 0.6, 0.2, 0.0])
    assert torch.allclose(moved(times, 0.5), torch.tensor([1.0, 0.4, 0.1, 0.0]))
    assert torch.allclose(moved(times, -0.5), torch.tensor([1.0, 0.8, 0.4, 0.0]))
    assert torch.equal(moved(times, 0.0), times)


def test_states_of_another_clock_become_the_models_own() -> None:
    outer, inner = unfog.RectifiedFlow(), unfog.CosineContinuous()
    times = torch.tensor([0.9, 0.5, 0.1], dtype=torch.float64)
    own, sizes = back(outer, inner, times)
    x0, eps = torch.tensor([[0.7]]).double(), torch.tensor([[-1.3]]).double()
    for t, mine, size in zip(times, own, sizes, strict=True):
        assert torch.allclose(size * outer.add_noise(x0, eps, t), inner.add_noise(x0, eps, mine))
    same, ones = back(outer, outer, times)
    assert torch.equal(same, times)
    assert torch.equal(ones, torch.ones_like(times))


def test_damaged_trajectories_are_refused(fast: Path, tmp_path: Path) -> None:
    first = load_file(sorted(trajectories_of(fast).iterdir())[0])
    with pytest.raises(UserError, match="no trajectories of one model"):
        Trajectories.joined([{name: part for name, part in first.items() if name != "times"}])
    with pytest.raises(UserError, match="their times do not fit"):
        Trajectories.joined([{**first, "times": first["times"].flip(1)}])
    for damage in (
        {"x": first["x"] * float("nan")},
        {"guidance": first["guidance"] / 0},
        {name: part[:0] for name, part in first.items()},
    ):
        with pytest.raises(UserError, match="no finite numbers, or a file holds none"):
            Trajectories.joined([{**first, **damage}])
    run = tmp_path / "run"
    shutil.copytree(fast, run)
    for file in trajectories_of(run).iterdir():
        other = load_file(file)
        save_file({**other, "x": other["x"][..., :4].contiguous()}, file)
    with pytest.raises(UserError, match="trajectories of other data"):
        resume(run, images=64, console=QUIET)
    shutil.rmtree(run)
    shutil.copytree(fast, run)
    damaged = sorted(trajectories_of(run).iterdir())[0]
    damaged.write_bytes(damaged.read_bytes()[:-5])
    with pytest.raises(UserError, match=r"(?s)trajectories-.*remove"):
        resume(run, images=64, console=QUIET)


# The student


def test_a_student_is_a_run(fast: Path, digits_run: Path) -> None:
    run, teacher = load(fast, "cpu"), load(digits_run, "cpu")
    assert isinstance(run.recipe.objective, Distillation)
    assert not run.recipe.sampling.clip  # x0 of a pair that leads to a later time is no data
    assert run.recipe.objective.rows == 128 == kept(trajectories_of(fast))
    own = teacher.sampler().start(0, teacher.denoiser.schedule, torch.tensor(1.0))
    made = load_file(trajectories_of(fast) / "000000.safetensors")
    assert not torch.equal(made["x"][:, 0], own.half())  # whoever samples with seed 0 sees noise that is new to it
    sampler = run.sampler()
    assert (sampler.settings.steps, sampler.evaluations) == (1, 1)  # under guidance 1.5, too
    assert sampler.settings.guidance == teacher.recipe.sampling.guidance == 1.5
    assert run.sampler(steps=4).evaluations == 4
    whole = run.sample(70)
    assert torch.equal(run.sample(7), whole[:7])
    assert not torch.equal(run.sample(7, guidance=2.25), whole[:7])
    assert torch.equal(run.restyle(whole[0], strength=0.0, label=0)[0], whole[0])
    assert run.restyle(whole[0], strength=0.6, label=0, steps=4).shape == (1, 1, 8, 8)
    with pytest.warns(UserWarning, match="only ddim takes its jumps"):
        heun = run.sample(4, solver="heun", steps=4)
    assert heun.shape == (4, 1, 8, 8)
    assert (fast / "origin.json").exists()


def test_it_learns_to_jump(fast: Path, tmp_path: Path, digits_run: Path) -> None:
    losses: list[float] = []

    def note(report: Report) -> None:
        losses.append(report.held_out)

    student(digits_run, tmp_path / "hardly", images=64, callbacks=[note])
    student(digits_run, tmp_path / "longer", images=2048, callbacks=[note])
    assert losses[-1] < 0.5 * losses[1], losses


def test_the_last_trajectories_are_held_out(digits_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[bool, set[int]] = {True: set(), False: set()}
    missed = Distillation.missed

    def noting(self: Distillation, model: Any, found: Any, rows: Any, *ways: Any) -> torch.Tensor:
        seen[torch.is_inference_mode_enabled()] |= set(rows.tolist())
        return missed(self, model, found, rows, *ways)

    monkeypatch.setattr(Distillation, "missed", noting)
    student(digits_run, tmp_path / "run", images=256)
    assert seen[False] == set(range(120))  # two epochs
    assert seen[True] == set(range(120, 128))


def test_of_an_unconditional_teacher(unconditional_run: Path, tmp_path: Path) -> None:
    run = student(unconditional_run, tmp_path / "run", images=64, rows=64, steps=2)
    assert run.denoiser.guidance is None
    assert run.denoiser.span is not None
    assert run.sampler().evaluations == 2
    assert run.sample(3).shape == (3, 1, 8, 8)
    with pytest.raises(UserError, match="scales of guidance need a teacher"):
        student_of(unconditional_run, scales=(1.0, 2.0))


def test_of_a_teacher_on_a_table(table_run: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="sampled by dpmpp-2m, since ancestral draws noise"):
        run = student(table_run, tmp_path / "run", images=64, rows=64)
    assert run.sample(3).shape == (3, 1, 8, 8)


def test_resuming_repeats_the_bits(digits_run: Path, fast: Path, tmp_path: Path) -> None:
    teacher = tmp_path / "teacher"
    shutil.copytree(digits_run, teacher)
    seen: list[Report] = []

    def stop_after(report: Report) -> None:
        seen.append(report)

    stopped = student(teacher, tmp_path / "run", callbacks=[stop_after], stop=lambda: bool(seen)).path
    assert seen
    shutil.rmtree(teacher)  # it is no longer needed
    made = {file.name: file.stat().st_mtime_ns for file in trajectories_of(stopped).iterdir()}
    resume(stopped, console=QUIET)
    assert made == {file.name: file.stat().st_mtime_ns for file in trajectories_of(stopped).iterdir()}
    whole, again = (load_file(run / "model.safetensors") for run in (fast, stopped))
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_missing_trajectories_are_made_again(fast: Path, digits_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(fast, run)
    file = sorted(trajectories_of(run).iterdir())[1]
    before = file.read_bytes()
    file.unlink()
    resume(run, images=64, console=QUIET)
    assert file.read_bytes() == before
    shutil.rmtree(trajectories_of(run))
    plain = read_recipe(run)
    assert isinstance(plain.objective, Distillation)
    moved_away = replace(plain, objective=replace(plain.objective, teacher=str(tmp_path / "gone")))
    (run / "recipe.json").write_text(moved_away.to_json())
    with pytest.raises(UserError, match="gone is not there: `unfog train --resume .*run --teacher FOLDER`"):
        resume(run, images=64, console=QUIET)
    (run / "recipe.json").write_text(replace(plain, objective=replace(plain.objective, weights="0" * 64)).to_json())
    with pytest.raises(UserError, match="holds other weights than the teacher had"):
        resume(run, images=64, console=QUIET)


def test_a_teacher_that_was_moved_is_found_again(
    fast: Path, digits_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, away = tmp_path / "run", tmp_path / "gone"
    shutil.copytree(fast, run)
    file = sorted(trajectories_of(run).iterdir())[1]
    before = file.read_bytes()
    file.unlink()
    plain = read_recipe(run)
    assert isinstance(plain.objective, Distillation)
    (run / "recipe.json").write_text(replace(plain, objective=replace(plain.objective, teacher=str(away))).to_json())
    given = ["train", "--resume", str(run), "--images", "64", "--device", "cpu", "--teacher"]
    shutil.copytree(digits_run, tmp_path / "other")
    weights = load_file(tmp_path / "other" / "model.safetensors")
    save_file({name: part + 1 for name, part in weights.items()}, tmp_path / "other" / "model.safetensors")
    for wrong, sentence in ((away, "is not there"), (tmp_path / "other", "holds other weights than the teacher had")):
        assert main([*given, str(wrong)]) == 2
        assert sentence in " ".join(capsys.readouterr().err.split())
    shutil.copytree(digits_run, tmp_path / "new")
    assert main([*given, str(tmp_path / "new")]) == 0
    assert file.read_bytes() == before
    found = read_recipe(run).objective
    assert isinstance(found, Distillation)
    assert found.teacher == str((tmp_path / "new").resolve())
    capsys.readouterr()
    assert main([*given[:2], str(digits_run), "--teacher", str(tmp_path / "new")]) == 2
    assert "needs no teacher to be resumed" in " ".join(capsys.readouterr().err.split())
    assert main(["train", "digits", "--out", str(tmp_path / "x"), "--teacher", str(tmp_path / "new")]) == 2
    assert "--teacher is for --resume" in capsys.readouterr().err


def test_a_kept_teacher_is_not_needed_elsewhere(digits_run: Path, tmp_path: Path) -> None:
    teacher = tmp_path / "teacher"
    given: dict[str, Any] = {"rows": 128, "points": 4, "images": 512, "settings": FEW}
    shutil.copytree(digits_run, teacher)
    made = distill(teacher, tmp_path / "run", **given, keep_teacher=True, console=QUIET)
    shutil.rmtree(teacher)
    (tmp_path / "run").rename(tmp_path / "moved")
    file = sorted(trajectories_of(tmp_path / "moved").iterdir())[1]
    before = file.read_bytes()
    file.unlink()
    resume(tmp_path / "moved", images=64, console=QUIET)
    assert file.read_bytes() == before
    assert sorted(one.name for one in (tmp_path / "moved" / "teacher").iterdir()) == [
        "model.safetensors",
        "recipe.json",
    ]
    with pytest.raises(UserError, match="holds another run"):
        distill(digits_run, tmp_path / "moved", keep_teacher=True, console=QUIET)
    copy = tmp_path / "moved" / "teacher" / "model.safetensors"  # of another teacher it is not taken
    save_file({name: part + 1 for name, part in load_file(copy).items()}, copy)
    file.unlink()
    with pytest.raises(UserError, match="the teacher .*/teacher is not there"):
        resume(tmp_path / "moved", images=64, console=QUIET)
    assert not made.path.exists()


@pytest.mark.parametrize("how", ["trajectories", "progressive"])
def test_the_training_of_a_student_can_be_planned(
    digits_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    out = tmp_path / "fast"
    given = ["distill", str(digits_run), "--out", str(out), "--how", how, "--images", "640", "--points", "4", "--plan"]
    assert main([*given, "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert not out.exists()
    assert "640 images in" in printed
    assert ("teacher sampled first, for about" in printed) == (how == "trajectories")
    assert "expect" not in printed, "nothing was measured of students"
    assert main([*given, "--device", "h100"]) == 2
    assert "is not predicted: its steps depend on numbers" in " ".join(capsys.readouterr().err.split())


def test_a_plan_counts_the_teachers_evaluations(digits_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two a step under guidance, at most two fifths of a budget; no more trajectories than 1 GiB holds."""
    chosen = foreseen(student_of(digits_run, rows=1024, points=8))
    assert isinstance(chosen.objective, Distillation)
    assert chosen.objective.ahead(chosen, (1, 8, 8)) == 1024 * 8 * 2
    assert student_of(digits_run, how="progressive").objective.ahead(chosen, (1, 8, 8)) == 0
    assert replace(chosen.objective, low=1.0, high=1.0).ahead(chosen, (1, 8, 8)) == 1024 * 8
    assert replace(chosen.objective, rows=10**9).most(chosen, (1, 8, 8)) == 2**30 // (2 * 9 * 64)
    default = replace(chosen.objective, rows=0)
    lengths = {0: 4096, 200_000: 5000, 10**9: 65_536}
    assert {images: default.wanted(chosen.set(f"training.images={max(images, 1)}")) for images in lengths} == lengths
    assert default.wanted(chosen.set("training.seconds=60")) == 65_536
    plans = [plan(chosen, device="cpu", console=QUIET), plan(chosen, budget=20.0, device="cpu", console=QUIET)]
    assert plans[0].ahead > 0
    many = replace(chosen, objective=replace(chosen.objective, rows=65_536, points=64))
    assert (longer := plan(many, device="cpu", console=QUIET)).spent > longer.ahead > 20 * plans[0].ahead
    assert longer.seconds > longer.ahead
    assert plans[1].ahead <= 5.0
    monkeypatch.setattr("unfog.training.plan.SHARE", 0.0)
    assert plan(chosen, budget=20.0, device="cpu", console=QUIET).ahead == 0


def test_a_budget_bounds_the_trajectories(digits_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unfog.runs.teaching.SHARE", 0.0)
    run = distill(digits_run, tmp_path / "run", rows=640, points=4, budget=20.0, settings=FEW, console=QUIET)
    assert isinstance(run.recipe.objective, Distillation)
    assert run.recipe.objective.rows == 64 == kept(trajectories_of(run.path))


def test_of_a_teacher_sampled_by_cfg_plus_plus(digits_run: Path, tmp_path: Path) -> None:
    teacher = tmp_path / "teacher"
    shutil.copytree(digits_run, teacher)
    settings = ("solver=ddim", "sampling.guidance_kind=cfg++", "sampling.guidance=0.6")
    (teacher / "recipe.json").write_text(read_recipe(teacher).set(*settings).to_json())
    with pytest.warns(UserWarning, match="learns classifier-free guidance from 1 to 3"):
        run = student(teacher, tmp_path / "run", images=64, rows=64)
    assert run.recipe.sampling.guidance_kind == "classifier-free"
    assert run.sample(3, guidance=2.5).shape == (3, 1, 8, 8)


# What is refused


def test_what_cannot_be_distilled(fast: Path, digits_run: Path, tmp_path: Path, tiny: Callable[..., Recipe]) -> None:
    with pytest.raises(UserError, match="objective=distillation needs a teacher"):
        unfog.train(tiny("objective=distillation"), tmp_path / "none", device="cpu", console=QUIET)
    with pytest.raises(UserError, match="is a student already"):
        student_of(fast)
    with pytest.raises(UserError, match="no run folder"):
        student_of(tmp_path)
    with pytest.raises(UserError, match="the number of steps"):
        student_of(digits_run, steps=0)
    for wrong in ((2.0, 1.0), (2.0, 2.0), (-1.0, 2.0), (1.0, 1e30)):
        with pytest.raises(UserError, match="`scales` are the lowest and the highest of guidance, from 0 to 1000"):
            student_of(digits_run, scales=wrong)
    half = shutil.copytree(digits_run, tmp_path / "half")
    (half / "model.safetensors").unlink()
    with pytest.raises(UserError, match="model.safetensors is missing: the run has no weights"):
        student_of(half)
    assert student_of(digits_run, settings=("optimizer.warmup=64",)).optimizer.warmup == 64
    run = load(fast, "cpu")
    with pytest.raises(UserError, match=r"learned guidance from 1 to 2\.25, not 7"):
        run.sample(2, guidance=7)
    with pytest.raises(UserError, match="omit the negative one"):
        run.sample(2, negative="3")
    with pytest.raises(UserError, match="no pipeline for a model that jumps"):
        export_model(run, tmp_path / "diffusers")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"steps": 10_001}, "the number of steps must be a whole number from 1 to 1,000"),
        ({"points": 10**9}, "`points` must be a whole number from 2 to 1,000"),
        ({"rows": -5}, "`rows` must be a whole number, 0 or more"),
        ({"rows": 10}, "`rows` must be 64 or more, or 0 for as many as suit the training, not 10"),
        ({"rows": 64, "how": "progressive"}, "not from trajectories: omit `rows`"),
        ({"settings": ("network.width=16",)}, "has the network of its teacher: leave network out"),
        ({"settings": ("codec=pixels", "conditioning=none")}, "has the conditioning of its teacher"),
        ({"settings": ("objective=denoising",)}, "distill chooses the objective itself"),
        ({"settings": ("solver=heun",)}, "the only solver that takes jumps"),
        ({"settings": ("sampling.guidance=5",)}, r"learns guidance from 1 to 2\.25, and sampling.guidance is 5"),
        ({"points": 3, "settings": ("objective.points=2",)}, "objective.points is set, and `points` is given as well"),
        ({"steps": 2, "settings": ("sampling.steps=7",)}, "sampling.steps is set, and `steps` is given as well"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_work(
    digits_run: Path, tmp_path: Path, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(UserError, match=says):
        distill(digits_run, tmp_path / "x", console=QUIET, **options)
    assert not (tmp_path / "x").exists()


def test_two_lengths_and_a_teacher_that_is_not_needed(
    digits_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match="`images` and `budget` both say how long"):
        distill(digits_run, tmp_path / "x", images=64, budget=10.0, console=QUIET)
    with pytest.raises(UserError, match="in its checkpoints: omit `keep_teacher`"):
        distill(digits_run, tmp_path / "x", how="progressive", keep_teacher=True, console=QUIET)
    words = ["distill", str(digits_run), "--out", str(tmp_path / "x"), "--budget", "9s"]
    assert main([*words, "--images", "64"]) == 2
    assert "--images and --budget both say how long" in capsys.readouterr().err
    assert main([*words, "--how", "progressive", "--keep-teacher"]) == 2
    assert "omit --keep-teacher" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_trajectories_of_other_conditions_are_refused(fast: Path, tmp_path: Path) -> None:
    for name, condition in (
        ("classes", lambda given: given + 900),
        ("type", lambda given: given.float()),
        ("shape", lambda given: given[:, None].repeat(1, 3)),
        ("none", lambda given: None),
    ):
        run = shutil.copytree(fast, tmp_path / name)
        for file in trajectories_of(run).iterdir():
            parts = {**(whole := load_file(file)), "condition": condition(whole["condition"])}
            save_file({key: part.contiguous() for key, part in parts.items() if part is not None}, file)
        with pytest.raises(UserError, match="the conditions are not those of the data: remove the folder"):
            resume(run, images=64, console=QUIET)


@pytest.mark.parametrize("kept_too", [False, True])
def test_a_student_is_resumed_while_its_trajectories_are_made(
    digits_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept_too: bool
) -> None:
    """To the bit as if it had not been stopped, with a copy of the teacher also where that is gone."""
    teacher = shutil.copytree(digits_run, tmp_path / "teacher")
    length: dict[str, Any] = {"rows": 192, "points": 2, "images": 128, "settings": FEW, "console": QUIET}
    whole = distill(teacher, tmp_path / "whole", **length)

    made, portions = portion, []

    def stopped(*given: Any) -> Trajectories:
        if len(portions) == 2:
            raise KeyboardInterrupt
        portions.append(given[2])
        return made(*given)

    with monkeypatch.context() as patch:
        patch.setattr("unfog.runs.teaching.portion", stopped)
        with pytest.raises(KeyboardInterrupt):
            distill(teacher, tmp_path / "run", keep_teacher=kept_too, **length)
    assert not (tmp_path / "run" / "model.safetensors").exists()
    first = sorted(trajectories_of(tmp_path / "run").iterdir())
    assert len(first) == 2
    before = first[0].stat().st_mtime_ns
    if kept_too:
        shutil.rmtree(teacher)
    again = resume(tmp_path / "run", console=QUIET)
    assert first[0].stat().st_mtime_ns == before
    assert len(list(trajectories_of(tmp_path / "run").iterdir())) == 3
    assert torch.equal(again.sample(4), whole.sample(4))
    assert (tmp_path / "run" / "origin.json").is_file()


def test_a_student_inverts_and_varies_single_pictures(fast: Path) -> None:
    """Its scale of guidance is that of as many rows as there are, not of a portion."""
    run = load(fast, "cpu")
    picture = run.sample(1, label=3)
    assert run.vary(picture[0], amount=0.5, count=2, label=3).shape == (2, 1, 8, 8)


def test_weights_of_a_student_make_a_denoiser_that_is_sampled_as_one(fast: Path, digits_run: Path) -> None:
    own = read_recipe(digits_run)
    taken = own.starting_from(read_recipe(fast))
    assert (taken.solver, taken.sampling, taken.network) == (own.solver, own.sampling, own.network)
    student_too = read_recipe(fast)
    assert student_too.starting_from(replace(student_too, sampling=own.sampling)).sampling == own.sampling


def test_the_verb(digits_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "fast"
    few = ["--rows", "64", "--points", "2", "--images", "64", "--set", "training.reports=1"]
    assert main(["distill", str(digits_run), "--out", str(out), "--scales", "1", "2", "--steps", "2", *few]) == 0
    assert "trained: " in capsys.readouterr().out
    found = read_recipe(out)
    assert isinstance(found.objective, Distillation)
    assert found.objective.scales == (1.0, 2.0)
    assert found.sampling.steps == 2
    assert main(["distill", str(digits_run), "--out", str(out), *few]) == 2
    assert "holds another run" in capsys.readouterr().err
    assert main(["distill", str(digits_run), "--out", str(tmp_path / "x"), "--scales", "1", *few]) == 2
    assert "lowest and the highest scale of guidance" in capsys.readouterr().err


# Consistency tuning


def test_a_guided_pair_goes_through_the_same_state(digits_run: Path) -> None:
    run = load(digits_run, "cpu", "float32")
    schedule, random = run.recipe.schedule, torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(8, 1, 8, 8, generator=random) + 0.3 for _ in range(2))
    t = torch.linspace(0.2, 0.9, 8).double()
    batch = Draw(x0, torch.arange(8), torch.zeros(8, dtype=torch.bool), t, noise)
    x_t = schedule.add_noise(x0, noise, t)
    with torch.inference_mode():
        same = guided(run.denoiser, batch, x_t, t, torch.ones(8), Prediction(x0, noise))
        more = guided(run.denoiser, batch, x_t, t, torch.full((8,), 2.0), Prediction(x0, noise))
        plain = guided(run.denoiser, batch, x_t, t, torch.full((8,), 2.0))
    torch.testing.assert_close(same.x0, x0)
    assert not torch.allclose(more.x0, x0, atol=1e-2)
    torch.testing.assert_close(schedule.add_noise(more.x0, more.eps, t), x_t, rtol=1e-4, atol=1e-4)
    sampler = run.sampler(guidance=2.0)
    sampler = replace(sampler, settings=replace(sampler.settings, clip=False, batch=8))
    denoise, _ = sampler.denoise(batch.condition)
    with torch.inference_mode():
        torch.testing.assert_close(denoise(x_t, t).x0, plain.x0, rtol=1e-4, atol=1e-4)


def test_consistency_tuning_is_the_end_of_a_training_and_resumes(digits_run: Path, tmp_path: Path) -> None:
    settings = (*FEW, "objective.tuning=0.5")
    given: dict[str, Any] = {"rows": 64, "points": 2, "images": 320, "settings": settings, "console": QUIET}
    whole = distill(digits_run, tmp_path / "whole", **given)
    steps: list[int] = []
    distill(digits_run, tmp_path / "part", **given, stop=lambda: bool(steps.append(1)) or len(steps) > 6)
    again = resume(tmp_path / "part", device="cpu", console=QUIET)
    pairs = zip(whole.model.parameters(), again.model.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    plain = distill(digits_run, tmp_path / "plain", **{**given, "settings": FEW})
    assert not torch.equal(whole.sample(2), plain.sample(2))
    objective = whole.recipe.objective
    assert isinstance(objective, Distillation)
    assert [objective.consistent(progress) for progress in (0, 0.49, 0.5, 1)] == [False, False, True, True]
    assert not Distillation().consistent(1.0)


def test_tuning_leads_from_nearer_and_nearer(digits_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = load(digits_run, "cpu", "float32")
    chosen = student_of(digits_run).set("objective.tuning=0.5", "objective.last=0.01", "objective.from_noise=1")
    objective, given = chosen.objective, list[dict[str, Any]]()
    assert isinstance(objective, Distillation)
    monkeypatch.setattr(
        "unfog.training.objectives.distillation.flow_map_loss",
        lambda model, x0, cond, **named: given.append(named) or x0.flatten(1).mean(1),
    )
    zeros = torch.zeros(64, 1, 8, 8)
    batch = Draw(zeros, torch.arange(64) % 10, torch.zeros(64) > 0, torch.rand(64).double(), zeros)
    batch = batch._replace(numbers=torch.arange(64))
    for progress in (0.5, 0.75, 1.0):
        state = {"stage": torch.tensor(-1)}
        objective.losses(run.denoiser, batch, Context(chosen, Pixels(), progress, state=state))
    assert [round(one["ratio"], 6) for one in given] == [0.25, 0.05, 0.01]
    assert all((one["t"] == 1).all() and (one["s"] < 1).all() for one in given)
    assert 0.3 < float((given[0]["s"] == 0).double().mean()) < 0.7


def test_tuning_out_of_range_is_refused() -> None:
    wrongs: list[dict[str, Any]] = [{"tuning": 1.5}, {"tuning": -0.1}, {"last": 0.5}, {"last": 0.0}]
    for wrong in wrongs:
        with pytest.raises(UserError, match=r"objective\.tuning is a share of the training"):
            Distillation(**wrong)


@pytest.mark.parametrize("how", ["trajectories", "progressive"])
def test_a_student_learns_in_bfloat16(digits_run: Path, tmp_path: Path, how: Any) -> None:
    settings = (*FEW, "training.precision=bfloat16", *(["objective.tuning=0.5"] if how == "trajectories" else []))
    given: dict[str, Any] = {"points": 2, "images": 128, "settings": settings, "console": QUIET}
    if how == "trajectories":
        given["rows"] = 128
    run = distill(digits_run, tmp_path / "run", how=how, **given)
    assert run.recipe.training.precision == "bfloat16"
    assert run.sample(2).shape == (2, 1, 8, 8)
