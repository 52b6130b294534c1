"""Replay of flow maps: where each row really starts, and where it leads."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console

from unfog.recipes.recipe import Recipe
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
