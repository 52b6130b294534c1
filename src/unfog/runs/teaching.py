"""Trajectories of a teacher, which a distillation learns from: made once, and kept in the run folder."""

import shutil
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
from unfog.runs.reading import drawing_recipe, read_model, read_recipe
from unfog.runtime import distributed
from unfog.runtime.device import choose_device
from unfog.runtime.errors import UserError
from unfog.runtime.files import disk, locked, unreadable, whole, write_whole
from unfog.runtime.progress import duration, track
from unfog.runtime.randomness import uniform
from unfog.runtime.tensors import write_tensors
from unfog.training.budget import Budget
from unfog.training.objectives.distillation import SHARE, Distillation

SEED = 0x7E4C4E2
"""Set in the seed of the teacher's noise, so that no sample of the same seed is learned from."""
COPY, PARTS = "teacher", ("recipe.json", "model.safetensors", "autoencoder", "text")
"""Where a student's folder holds a copy of its teacher, and what of it."""


def taught(
    recipe: Recipe, out: Path, data: Data, device: str, budget: Budget | None, console: Console | None
) -> Recipe:
    """Return the recipe of a training after making the trajectories that it learns from, if it is a distillation.

    What the run folder holds of them is kept. Within a budget there are as many as a quarter of it allows.

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
    if not distributed.rank() and kept(folder) < objective.wanted(recipe):
        _make(recipe, objective, out, data, device, budget, console)
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
                found += (opened.get_slice("times").get_shape() or [0])[0]
        except (SafetensorError, OSError) as error:
            raise unreadable(file, error, "remove it, and it is made again") from error
    return found


def _make(
    recipe: Recipe,
    objective: Distillation,
    out: Path,
    data: Data,
    device: str,
    budget: Budget | None,
    console: Console | None,
) -> None:
    """Make the trajectories that are missing in a run folder."""
    sampler, folder = _teacher(objective, out, device), out / objective.folder(recipe.seed)
    rows, wanted = objective.most(recipe, sampler.shape), objective.wanted(recipe)
    if rows < wanted and objective.rows:
        warnings.warn(
            f"{rows:,} trajectories are made, since {wanted:,} would take more than 1 GiB: objective.points=8 "
            "allows more",
            stacklevel=2,
        )
    if sampler.size * bytes_of(sampler.shape, objective.points) > MOST:
        raise UserError(
            f"{objective.points} steps of trajectories of {'×'.join(map(str, sampler.shape))} take more than 1 GiB: "
            "lower objective.points (`points`)"
        )
    with disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    numbers, said = range(max(1, rows // sampler.size)), console or Console(stderr=True)
    most = "" if budget is None else f", for at most {duration(SHARE * budget.seconds)}"
    for number in track(numbers, f"trajectories of the teacher{most}", console=said):
        if budget is not None and number and time.monotonic() - begun > SHARE * budget.seconds:
            break
        where = folder / f"{number:06}.safetensors"
        if not where.exists():
            made = portion(
                sampler, _condition(recipe, sampler, data, number), number, objective.points, objective.scales
            )
            write_tensors(where, made.tensors())
    said.print(f"{kept(folder):,} trajectories of the teacher", highlight=False)


def copy_teacher(teacher: Path, out: Path) -> None:
    """Copy what samples are drawn with from a run into the folder of its student.

    Raises: EnvironmentFailure: If the disk fails.
    """
    if not distributed.rank():
        for name in PARTS:
            for file in (teacher / name, *(teacher / name).rglob("*")):
                if file.is_file():
                    own = out / COPY / file.relative_to(teacher)
                    with disk(own):
                        own.parent.mkdir(parents=True, exist_ok=True)
                    with whole(own) as part:
                        shutil.copyfile(file, part)
    distributed.agreed(0)


def found_again(student: Path, teacher: Path) -> None:
    """Write into the recipe of a student where its teacher is now.

    Raises: UserError: If the run has no teacher, or this is another one.
    """
    recipe = read_recipe(student)
    if not isinstance(recipe.objective, Distillation):
        raise UserError(f"{student} needs no teacher to be resumed: omit `teacher`")
    _checked(teacher, student, recipe.objective)
    objective = replace(recipe.objective, teacher=str(teacher.resolve()))
    if not distributed.rank():
        found = replace(recipe, objective=objective).relocated(student, relative=True)
        with locked(student):
            write_whole(student / "recipe.json", found.to_json().encode())
    distributed.agreed(0)


def _checked(teacher: Path, student: Path, objective: Distillation) -> Path:
    """Return the folder of a student's teacher.

    Raises: UserError: If it is not there, or is another one.
    """
    helps = f"`unfog train --resume {student} --teacher FOLDER` takes it from where it is"
    if not (teacher / "model.safetensors").is_file():
        raise UserError(f"the teacher {teacher} is not there: {helps}")
    if not _same(teacher, objective):
        raise UserError(f"{teacher} holds other weights than the teacher had: {helps}, or distil it anew")
    return teacher


def _same(folder: Path, objective: Distillation) -> bool:
    """Return whether a folder holds the weights of a student's teacher."""
    return (folder / "model.safetensors").is_file() and digest_of(folder) == objective.weights


def teacher_folder(objective: Distillation, out: Path) -> Path:
    """Return the folder of a student's teacher: the copy in its own, or where it was.

    Raises: UserError: If it is not there, or is another one.
    """
    copy = out / COPY
    return copy if _same(copy, objective) else _checked(Path(objective.teacher), out, objective)


def _teacher(objective: Distillation, out: Path, device: str) -> Sampler:
    """Return the sampler of a student's teacher, which its own folder may hold.

    Raises: UserError: If it is not there, or is another one.
    """
    path = teacher_folder(objective, out)
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
