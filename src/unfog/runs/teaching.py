"""Trajectories of a teacher, which a distillation learns from: made once, and kept in the run folder."""

import time
import warnings
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from safetensors import SafetensorError, safe_open

from unfog.data.source import Data, ordered
from unfog.diffusion.denoiser import Denoiser
from unfog.diffusion.solvers import DPMSolverPP2M
from unfog.generation.sampler import Sampler
from unfog.generation.trajectories import MOST, bytes_of, portion
from unfog.recipes.build import build_codec, known_of
from unfog.recipes.recipe import Recipe
from unfog.runs.origin import digest_of
from unfog.runs.reading import drawing_recipe, read_model
from unfog.runtime import distributed
from unfog.runtime.device import choose_device
from unfog.runtime.errors import UserError
from unfog.runtime.files import disk, unreadable
from unfog.runtime.progress import track
from unfog.runtime.randomness import uniform
from unfog.runtime.tensors import write_tensors
from unfog.training.budget import Budget
from unfog.training.objectives.distillation import Distillation

SEED = 0x7E4C4E2
"""Set in the seed of the teacher's noise, so that no sample of the same seed is learned from."""
SHARE = 0.4
"""Of a budget for the trajectories, at most."""


def taught(
    recipe: Recipe, out: Path, data: Data, device: str, budget: Budget | None, console: Console | None
) -> Recipe:
    """Return the recipe of a training after making the trajectories that it learns from, if it is a distillation.

    What the run folder holds of them is kept. Within a budget there are as many as two fifths of it allow.

    Args:
        recipe: The recipe, with its shape filled in.
        out: The run folder.
        data: The data, whose conditions they have.
        device: Where to compute.
        budget: Of the training.
        console: Shows the progress.

    Raises: UserError: If they are missing, and the teacher is not there or is another one.
    """
    objective = recipe.objective
    if not isinstance(objective, Distillation):
        return recipe
    if not objective.teacher:
        raise UserError("objective=distillation needs a teacher: train with `unfog distill RUN`, or unfog.distill")
    folder = out / objective.folder(recipe.seed)
    if not distributed.rank() and kept(folder) < objective.rows:
        _make(recipe, objective, folder, data, device, budget, console)
    distributed.agreed(0)
    return replace(recipe, objective=replace(objective, rows=kept(folder)))


def kept(folder: Path) -> int:
    """Return how many trajectories a folder holds.

    Raises: UserError: If a file is damaged.
    """
    found = 0
    for file in folder.glob("*.safetensors"):
        try:
            with safe_open(file, framework="pt") as opened:
                found += opened.get_slice("times").get_shape()[0]
        except (SafetensorError, OSError) as error:
            raise unreadable(file, error, "remove it, and it is made again") from error
    return found


def _make(
    recipe: Recipe,
    objective: Distillation,
    folder: Path,
    data: Data,
    device: str,
    budget: Budget | None,
    console: Console | None,
) -> None:
    """Make the trajectories that are missing."""
    sampler = _teacher(recipe, objective, device)
    rows = min(objective.rows, MOST // bytes_of(sampler.shape, objective.points))
    if rows < objective.rows:
        warnings.warn(
            f"{rows:,} trajectories are made, since {objective.rows:,} would take more than 1 GiB: objective.points=8 "
            "allows more",
            stacklevel=2,
        )
    with disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    numbers = range(max(1, rows // sampler.size))
    for number in track(numbers, "trajectories of the teacher", console=console or Console(stderr=True)):
        if budget is not None and number and time.monotonic() - begun > SHARE * budget.seconds:
            break
        where = folder / f"{number:06}.safetensors"
        if not where.exists():
            made = portion(
                sampler, _condition(recipe, sampler, data, number), number, objective.points, objective.scales
            )
            write_tensors(where, made.tensors())


def _teacher(recipe: Recipe, objective: Distillation, device: str) -> Sampler:
    """Return the sampler of a student's teacher.

    Raises: UserError: If it is not there, or is another one.
    """
    path = Path(objective.teacher)
    if not (path / "model.safetensors").is_file():
        raise UserError(f"the teacher {path} is not there: put it back, or distil another run")
    if digest_of(path) != objective.weights:
        raise UserError(f"{path} holds other weights than the teacher had: put those back, or distil it anew")
    own = drawing_recipe(path)
    model = read_model(path, own, choose_device(device))
    assert isinstance(model, Denoiser)
    assert own.shape is not None
    precision = own.training.precision_on(choose_device(device), own.shape)
    found = Sampler.of(own, model, seed=own.seed ^ SEED, precision=precision)
    solver = DPMSolverPP2M() if found.solver.stochastic else found.solver
    return replace(found, solver=solver, settings=replace(found.settings, guidance_kind="classifier-free"))


def _condition(recipe: Recipe, sampler: Sampler, data: Data, number: int) -> torch.Tensor | None:
    """Return the conditions of a portion: those of training rows, in an order of their own."""
    seed, first = recipe.seed ^ SEED, number * sampler.size
    rows = data.train.take(ordered(data.train, seed, first, sampler.size))
    x0 = build_codec(recipe).encode(rows.x)
    drawn = torch.from_numpy(uniform(seed, "condition", 0, first, sampler.size, 4))
    return recipe.conditioning.read(known_of(recipe), rows, x0, drawn)
