"""Distilling a run: a student with its network, which draws in one to four steps what that draws in many."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

from rich.console import Console

from unfog.diffusion.grids import TimesGrid
from unfog.diffusion.solvers import DDIM
from unfog.recipes.fitting import default_grid
from unfog.recipes.recipe import MEANING, Recipe
from unfog.recipes.settings import Sampling
from unfog.recipes.vocabulary import path_of
from unfog.runs.dataset import Dataset
from unfog.runs.origin import digest_of
from unfog.runs.reading import check_vacant, drawing_recipe
from unfog.runs.run import Run, train
from unfog.runs.teaching import copy_teacher
from unfog.runtime.errors import UserError, unknown, whole_number
from unfog.training.hooks import Callback
from unfog.training.objectives.denoising import Denoising
from unfog.training.objectives.distillation import FEWEST, POINTS, Distillation
from unfog.training.objectives.progressive import Progressive

How = Literal["trajectories", "progressive"]
"""What a student learns from."""
WIDER = 1.5
"""How far above the recipe's guidance the student learns it."""
USUAL, STRONGEST = 3.0, 1000.0
"""Highest guidance that the student of a teacher sampled by cfg++ learns; and that any learns."""


def distill(
    teacher: str | Path,
    out: str | Path,
    *,
    how: How = "trajectories",
    steps: int = 1,
    rows: int = 0,
    points: int = 16,
    scales: tuple[float, float] | None = None,
    images: int | None = None,
    budget: float | None = None,
    settings: Sequence[str] = (),
    keep_teacher: bool = False,
    dataset: Dataset | None = None,
    callbacks: Sequence[Callback] = (),
    log: Sequence[str] = (),
    stop: Callable[[], bool] | None = None,
    device: str = "auto",
    console: Console | None = None,
) -> Run:
    """Train a student of a run, which draws in one to four steps what that draws in many.

    The student has the teacher's network and begins with its weights. By "trajectories" the teacher's own are made
    first, and the student learns to jump along them; by "progressive" it takes two steps in one, from `points` steps of
    the teacher on, and is then its own teacher. It is a run like any other.

    Args:
        teacher: Run folder of a trained denoiser.
        out: The new run folder; must not hold another run.
        how: "trajectories" or "progressive".
        steps: In which the student is sampled by default; it can be sampled in any number.
        rows: Trajectories; 0 for as many as suit the length of the training.
        points: Steps of each, or of the first teacher.
        scales: The lowest and the highest scale of guidance that it learns. Default: 1 to one and a half of the
            teacher's.
        images: Rows to train on, repeats included. Default: as many images as the teacher.
        budget: Seconds for all of it, instead.
        settings: Settings of the recipe, as those of `Recipe.set`.
        keep_teacher: Copy the teacher into the new folder, so that it can be moved before all trajectories are made.
        dataset: The dataset that the teacher was given, if it was given one.
        callbacks: As those of `train`.
        log: Names of trackers.
        stop: As that of `train`.
        device: Where to compute.
        console: Shows the progress; default: standard error.

    Raises: UserError: If the teacher is no denoiser, is a student itself, or is not there.
    """
    check_length(images, budget)
    recipe = student_of(
        teacher, how=how, steps=steps, rows=rows, points=points, scales=scales, images=images, settings=settings
    )
    if keep_teacher:
        keep(Path(teacher), recipe, Path(out))
    return train(
        recipe,
        out,
        budget=budget,
        dataset=dataset,
        callbacks=callbacks,
        log=log,
        stop=stop,
        init_from=teacher,
        device=device,
        console=console,
    )


def student_of(
    teacher: str | Path,
    *,
    how: How = "trajectories",
    steps: int = 1,
    rows: int = 0,
    points: int = 16,
    scales: tuple[float, float] | None = None,
    images: int | None = None,
    settings: Sequence[str] = (),
) -> Recipe:
    """Return the recipe of a student: that of its teacher with the objective of distillation.

    Args:
        teacher: Run folder of a trained denoiser.
        how: As for `distill`.
        steps: In which the student is sampled by default; it can be sampled in any number.
        rows: Trajectories of the teacher; 0 for as many as suit the length of the training.
        points: Steps of each, or of the first teacher.
        scales: The lowest and the highest scale of guidance that it learns. Default: 1 to one and a half of the
            teacher's, where that was trained with conditions that are dropped at times.
        images: Rows to train on, repeats included. Default: as many images as the teacher.
        settings: Settings of the recipe, as those of `Recipe.set`; not of what a student has from its teacher.

    Raises: UserError: If the run is no denoiser, or a student already, or settings do not fit each other.
    """
    path = Path(teacher)
    recipe = _teaching(path)
    if how not in get_args(How):
        raise unknown("way to distil", how, get_args(How))
    steps = whole_number("the number of steps", steps, 1, POINTS)
    points, rows = whole_number("`points`", points, 2, POINTS), whole_number("`rows`", rows, 0)
    if how == "progressive" and rows:
        raise UserError("a progressive student learns from its own steps, not from trajectories: omit `rows`")
    if 0 < rows < FEWEST:
        raise UserError(f"`rows` must be {FEWEST} or more, or 0 for as many as suit the training, not {rows}")
    _check_apart(
        settings, {"objective.rows": rows != 0, "objective.points": points != 16, "sampling.steps": steps != 1}
    )
    low, high = _between(recipe, path, scales)
    known = (str(path.resolve()), digest_of(path), low, high)
    objective = Progressive(*known, points, steps) if how == "progressive" else Distillation(*known, rows, points)
    sampling = Sampling(steps, guidance=min(max(recipe.sampling.guidance, low), high), clip=False)
    grid = default_grid(recipe.schedule) if isinstance(recipe.grid, TimesGrid) else recipe.grid
    training = replace(recipe.training, seconds=None, choices="auto")
    student = replace(
        recipe.anew(),
        name=f"{recipe.name}-distilled",
        objective=objective,
        solver=DDIM(),
        grid=grid,
        sampling=sampling,
        training=replace(training, began=0),
    )
    if images is not None:
        student = student.set(f"training.images={whole_number('the number of images', images, 1)}")
    return _adjusted(student, settings)


def _teaching(path: Path) -> Recipe:
    """Return the recipe of a teacher.

    Raises: UserError: If the run is no denoiser, or a student already, or has no weights.
    """
    recipe = drawing_recipe(path)
    if isinstance(recipe.objective, Distillation | Progressive):
        raise UserError(f"{path} is a student already: distil its teacher, {recipe.objective.teacher}")
    if recipe.objective.jumps:
        raise UserError(f"{path} is a flow map, which is sampled in few steps as it is: distil an ordinary denoiser")
    if not isinstance(recipe.objective, Denoising):
        raise UserError(
            f"{path} holds a model of the objective {recipe.kind('objective')!r}, and only a denoiser can be distilled"
        )
    if not (path / "model.safetensors").is_file():
        raise UserError(f"{path / 'model.safetensors'} is missing: the run has no weights (yet)")
    if recipe.solver.stochastic:
        warnings.warn(
            f"the teacher is sampled by dpmpp-2m, since {recipe.kind('solver')} draws noise at each step, which a "
            "student cannot foresee",
            stacklevel=2,
        )
    return recipe


def _between(recipe: Recipe, path: Path, scales: tuple[float, float] | None) -> tuple[float, float]:
    """Return between which scales a student learns guidance.

    Raises: UserError: If they were chosen and are none, or its teacher knows no guidance.
    """
    usual = _scales(recipe)
    low, high = scales or usual
    if scales and usual == (1.0, 1.0):
        raise UserError(
            f"scales of guidance need a teacher whose conditions were dropped at times, as those of {path} were not: "
            "omit them"
        )
    if scales and not 0 <= low < high <= STRONGEST:
        raise UserError(
            f"`scales` are the lowest and the highest of guidance, from 0 to {STRONGEST:g}, not {low:g} and {high:g}"
        )
    return low, high


def check_length(images: int | None, budget: float | None) -> None:
    """Refuse two lengths of one training."""
    if images is not None and budget is not None:
        raise UserError("`images` and `budget` both say how long to train: give one of them")


def keep(teacher: Path, student: Recipe, out: Path) -> None:
    """Copy a teacher into the folder of its student.

    Raises: UserError: If the student's checkpoints hold it, or the folder is taken.
    """
    if isinstance(student.objective, Progressive):
        raise UserError("a progressive student has its teacher in its checkpoints: omit `keep_teacher`")
    check_vacant(out)
    copy_teacher(teacher, out)


def _check_apart(settings: Sequence[str], given: Mapping[str, bool]) -> None:
    """Refuse settings that were given twice: by a parameter of `distill` of the same name, and by a path."""
    for setting in settings:
        if given.get(path := path_of(setting)):
            raise UserError(f"{path} is set, and `{path.partition('.')[2]}` is given as well: give one of them")


def _adjusted(student: Recipe, settings: Sequence[str]) -> Recipe:
    """Return a student's recipe with settings changed.

    Raises: UserError: If they change what a student has from its teacher, or ask for a guidance that it does not learn.
    """
    found = student.set(*settings)
    if type(found.objective) is not type(student.objective):
        raise UserError("distill chooses the objective itself: train without it, or leave the objective out")
    for name in (*MEANING, "codec", "conditioning"):
        if getattr(found, name) != getattr(student, name):
            raise UserError(f"a student has the {name} of its teacher: leave {name} out of the settings")
    if not found.solver.leads:
        raise UserError("a student is sampled by ddim, the only solver that takes jumps: leave solver out")
    assert isinstance(found.objective, Distillation | Progressive)
    low, high = found.objective.scales
    if not low <= found.sampling.guidance <= high:
        raise UserError(
            f"the student learns guidance from {low:g} to {high:g}, and sampling.guidance is "
            f"{found.sampling.guidance:g}: `scales` sets the two"
        )
    return found


def foreseen(student: Recipe) -> Recipe:
    """Return a student's recipe for `unfog.training.plan.plan`, which makes no trajectories."""
    if not isinstance(student.objective, Distillation):
        return student
    return replace(student, objective=replace(student.objective, teacher="", weights=""))


def _scales(recipe: Recipe) -> tuple[float, float]:
    """Return between which scales the student of a recipe's model learns guidance by default."""
    if not recipe.conditioning.dropout or recipe.kind("conditioning") == "none":
        return 1.0, 1.0
    if recipe.sampling.guidance_kind == "cfg++":
        warnings.warn(
            f"the student learns classifier-free guidance from 1 to {USUAL:g}, since cfg++ has no scale for none",
            stacklevel=3,
        )
        return 1.0, USUAL
    return 1.0, max(WIDER, WIDER * recipe.sampling.guidance)
