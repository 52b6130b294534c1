"""Replay and explanation of flow maps: where each row really starts, and where it leads."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console

from unfog.recipes.recipe import Recipe
from unfog.reports.explain import _work_out, explain
from unfog.reports.replay import replay
from unfog.runs.distilling import distill
from unfog.runs.run import load
from unfog.training.objectives.distillation import Distillation

QUIET = Console(quiet=True)
FEW = ("training.reports=1", "optimizer.warmup=64")


def test_a_flow_maps_rows_have_the_times_they_were_trained_at(
    train_into: Callable[[Recipe, str], Path], tiny: Callable[..., Recipe]
) -> None:
    run = train_into(tiny("objective=flow-map", "objective.from_noise=1", "objective.straight=0.5"), "mapped")
    found = replay(run, 3, "cpu")
    jumps = [row for row in found.rows if row.s != row.t]
    assert 4 < len(jumps) < 28
    assert {row.t for row in jumps} == {1.0}
    assert all(row.s is not None and row.s < 1 for row in jumps)
    assert " s " in found.table()
    assert any(row.shows for row in found.rows)


def test_an_explanation_shows_the_jump(
    train_into: Callable[[Recipe, str], Path], tiny: Callable[..., Recipe], digits_run: Path, tmp_path: Path
) -> None:
    """Of a flow map and of a student, with the numbers that the model gives when it is asked by hand."""
    made = distill(digits_run, tmp_path / "fast", rows=64, points=2, images=64, settings=FEW, console=QUIET)
    for path in (train_into(tiny("objective=flow-map"), "mapped"), made.path):
        run = load(path, "cpu", "float32")
        (title, lines) = list(explain(run, 700).parts.items())[-1]
        assert title == "A jump: f(x_t, t, 0), to clean data at once"
        said = {line.what: line.value for line in lines}
        assert ("guidance" in said) == (run.denoiser.guidance is not None)
        worked = _work_out(run, 700, 0, 0)
        cond = run.denoiser.embedder(worked.row.condition)
        if run.denoiser.guidance is not None:
            cond = cond.plus(run.denoiser.guidance(torch.tensor([run.recipe.sampling.guidance])))
        with torch.inference_mode():
            once = run.denoiser(worked.x_t, worked.at, cond, torch.zeros(()).double()).x0
        assert said["it leads to s"] == f"at s = 0 {float(once[0, 0, 4, 4]):+.4f}"
        assert not said["by way of t/2"].startswith(f"{float(once[0, 0, 4, 4]):+.4f}"), "it is no perfect map"
    assert "A jump" not in str(explain(load(digits_run, "cpu"), 700).parts.keys())


def test_a_students_rows_are_those_of_trajectories(digits_run: Path, tmp_path: Path) -> None:
    run = distill(digits_run, tmp_path / "fast", rows=64, points=4, images=256, settings=FEW, console=QUIET)
    found = replay(run.path, 3, "cpu")
    (folder,) = run.path.glob("trajectories-*")
    objective = load(run.path, "cpu").recipe.objective
    assert isinstance(objective, Distillation)
    assert folder.name == objective.folder(0)
    assert {row.row for row in found.rows} <= set(range(60))
    assert all(row.s is not None and row.s < row.t for row in found.rows)
    assert not any(row.shows or row.file for row in found.rows)
    assert found.loss == pytest.approx(torch.tensor([row.loss for row in found.rows]).mean().item(), rel=1e-4)


def test_a_denoisers_rows_lead_to_data(digits_run: Path) -> None:
    found = replay(digits_run, 3, "cpu")
    assert {row.s for row in found.rows} == {None}
    assert " s " not in found.table().splitlines()[1]
