"""Progressive distillation: two steps in one, stage by stage, each from the student of the last."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from unfog.data.codecs import Identity
from unfog.diffusion.sampling import follow
from unfog.recipes.objective import Context, Draw
from unfog.recipes.presets import recipe
from unfog.runs.distilling import distill, student_of
from unfog.runs.run import Run, load, resume, train
from unfog.runtime.errors import UserError
from unfog.training.objectives.progressive import Progressive
from unfog.training.objectives.teachers import STAGE, TEACHER

QUIET = Console(quiet=True)
FEW = ("training.reports=2", "optimizer.warmup=64")


def _student(teacher: Path, out: Path, images: int = 512, points: int = 4, **options: object) -> Run:
    given: dict[str, Any] = {"how": "progressive", "points": points, "images": images, "settings": FEW, **options}
    return distill(teacher, out, console=QUIET, **given)


@pytest.fixture(scope="module")
def fast(digits_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return _student(digits_run, tmp_path_factory.mktemp("halved") / "run")


def _draw(count: int) -> Draw:
    """Rows with times in each part of the clock."""
    random = torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(count, 1, 8, 8, generator=random) for _ in range(2))
    u = (torch.arange(count).double() + 0.5) / count
    return Draw(
        x0 + 0.3, torch.arange(count) % 10, torch.zeros(count, dtype=torch.bool), u, noise, numbers=torch.arange(count)
    )


def test_stages_halve_the_steps_and_share_the_training() -> None:
    objective = Progressive(teacher="x", first=16, last=2)
    assert objective.stages == 3
    assert [objective.stage(progress) for progress in (0, 0.3, 0.34, 0.6, 0.67, 1)] == [0, 0, 1, 1, 2, 2]
    context = Context(recipe("digits"), Identity())
    for stage, steps in enumerate((8, 4, 2)):
        t, middle, s = objective.times(_draw(64), context, stage)
        ends = [place / steps for place in range(1, steps + 1)]
        assert sorted(set(t.tolist())) == pytest.approx(ends)
        torch.testing.assert_close(t - s, torch.full_like(t, 1 / steps))
        torch.testing.assert_close(middle, (t + s) / 2)


@pytest.mark.parametrize(("first", "last"), [(16, 16), (12, 8), (6, 4), (8, 0), (2, 4)])
def test_steps_that_cannot_be_halved_are_refused(first: int, last: int) -> None:
    with pytest.raises(UserError, match="steps are halved"):
        Progressive(first=first, last=last)


def test_the_first_teacher_is_the_guided_model(digits_run: Path) -> None:
    """A step of the student is to lead where two of the run's own sampling lead."""
    run = load(digits_run, "cpu", "float32")
    chosen = student_of(digits_run, how="progressive", points=4)
    assert isinstance(chosen.objective, Progressive)
    objective = replace(chosen.objective, low=2.0, high=2.0)
    draw, context = _draw(64), Context(chosen, Identity())
    t, middle, s = objective.times(draw, context, 0)
    scales = objective._scales(draw, context)
    assert torch.equal(scales, torch.full((64,), 2.0))
    x = chosen.schedule.add_noise(draw.x0, draw.noise, t)
    with torch.inference_mode():
        led = x
        for start, end in ((t, middle), (middle, s)):
            pair = objective._pair(run.denoiser, draw, scales, led, start, end, first=True)
            led = chosen.schedule.add_noise(pair.x0, pair.eps, end)
    sampler = run.sampler(solver="ddim", guidance=2.0, steps=4)
    sampler = replace(sampler, settings=replace(sampler.settings, clip=False))
    denoise, _ = sampler.denoise(draw.condition)
    for row in (5, 40):
        times = torch.stack([t[row], middle[row], s[row]])
        torch.testing.assert_close(follow(denoise, x, times, sampler.solver)[row], led[row], rtol=1e-4, atol=1e-4)


def test_the_next_teacher_is_the_average_where_a_stage_begins(fast: Run) -> None:
    objective = fast.recipe.objective
    assert isinstance(objective, Progressive)
    context = Context(fast.recipe, Identity(), averaged=fast.model)
    before = objective.state(context)
    assert int(before[STAGE]) == -1
    first = objective.update(_draw(4), torch.zeros(4), replace(context, state=before))
    assert int(first[STAGE]) == 0
    assert first.keys() == before.keys()
    for name, tensor in fast.model.state_dict().items():
        assert torch.equal(first[f"{TEACHER}{name}"], tensor)
    same = objective.update(_draw(4), torch.zeros(4), replace(context, state=first, progress=0.4))
    assert all(same[name] is tensor for name, tensor in first.items())
    second = objective.update(_draw(4), torch.zeros(4), replace(context, state=first, progress=0.5))
    assert int(second[STAGE]) == 1


def test_a_student_draws_in_one_step_and_in_more(fast: Run, digits_run: Path) -> None:
    assert fast.recipe.sampling.steps == 1
    whole = fast.sample(5, guidance=1.5)
    assert torch.equal(fast.sample(2, guidance=1.5), whole[:2])
    assert not torch.equal(whole, fast.sample(5, steps=2, guidance=1.5))
    assert not torch.equal(whole, fast.sample(5, guidance=1.0))
    with pytest.raises(UserError, match="is a student already"):
        student_of(fast.path)


def test_it_resumes_to_the_bit(digits_run: Path, tmp_path: Path) -> None:
    whole = _student(digits_run, tmp_path / "whole", 320)
    steps: list[int] = []
    _student(digits_run, tmp_path / "part", 320, stop=lambda: bool(steps.append(1)) or len(steps) > 6)
    again = resume(tmp_path / "part", device="cpu", console=QUIET)
    pairs = zip(whole.model.parameters(), again.model.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_without_a_teacher_or_by_an_unknown_way_it_is_refused(digits_run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="objective=progressive needs a teacher"):
        train(recipe("digits").set("objective=progressive"), tmp_path / "run", console=QUIET)
    with pytest.raises(UserError, match="way to distil"):
        student_of(digits_run, how="slowly")  # type: ignore[arg-type]  # it is unknown
