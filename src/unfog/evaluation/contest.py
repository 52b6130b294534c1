"""`unfog bench --schedules`: schedules that are trained alike and ranked."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from unfog.diffusion.denoiser import Denoiser
from unfog.evaluation.compare import Comparison, compare, load_alike
from unfog.recipes.build import build_data, build_model
from unfog.recipes.recipe import Recipe
from unfog.runs.run import read_recipe, resume, train
from unfog.runtime.errors import UserError

SCHEDULE_STEPS = 25
"""Steps with which schedules are compared: enough that the solver's error is small compared with the models'."""


def schedules(
    recipe: Recipe,
    names: Sequence[str],
    out: Path,
    budget: float,
    *,
    count: int = 1000,
    seed: int = 0,
    device: str = "auto",
    console: Console | None = None,
) -> Comparison:
    """Train a recipe on each of some schedules, alike but for the schedule, and rank them.

    All learn v at uniform times. The first one uses the budget, and the others repeat its steps.
    Runs in `out` that are finished are kept, and interrupted ones resume.

    Args:
        recipe: What to train.
        names: Kinds of schedules.
        out: Folder for the run folders, each named after its schedule.
        budget: Seconds for the first training.
        count: Samples to score each with.
        seed: Seed of the noises that are sampled from.
        device: Where to compute.
        console: Shows the progress.

    Returns: The comparison with the best one, best first.
    Raises: UserError: If a schedule does not fit, or `out` holds other runs.
    """
    if len(set(names)) < 2 or len(set(names)) < len(names):
        raise UserError("name two different schedules or more, for instance linear, quadratic, cosine and flow")
    contestants = [build_data(recipe.set(f"schedule={name}", "target=v", "times=uniform"))[0] for name in names]
    for contestant in contestants:  # so that what does not fit is refused before the minutes are spent
        if not isinstance(build_model(contestant), Denoiser):
            kind = contestant.kind("objective")
            raise UserError(f"schedules are compared on denoisers, and the objective {kind!r} trains none: change it")
    first, *others = zip(names, contestants, strict=True)
    train_or_resume(first[1], out / first[0], budget, device, console)
    for name, contestant in others:
        length = read_recipe(out / first[0]).training
        by_clock = None if length.seconds is None else out / first[0]
        train_or_resume(replace(contestant, training=length), out / name, None, device, console, by_clock)
    models = load_alike([out / name for name in names], device)
    comparison = compare(
        models, names, count, steps=SCHEDULE_STEPS, guidance=1.0, seed=seed, reference=None, console=console
    )
    return comparison.ranked()


def train_or_resume(
    recipe: Recipe,
    folder: Path,
    budget: float | None,
    device: str,
    console: Console | None,
    follow: Path | None = None,
) -> None:
    """Train a recipe into a folder, or finish the run that is there.

    Args:
        recipe: What to train.
        folder: The run folder.
        budget: Seconds, which fix the length of the training; if None, the recipe does.
        device: Where to compute.
        console: Shows the progress.
        follow: Run whose length it repeats.

    Raises: UserError: If the folder holds a run of another recipe.
    """
    if not (folder / "checkpoints").exists():
        train(recipe, folder, budget=budget, follow=follow, device=device, console=console)
        return
    present = read_recipe(folder)
    seconds = recipe.training.seconds if budget is None else budget
    same_length = present.training.seconds == seconds and (seconds or present.training.images == recipe.training.images)
    if not same_length or _asked(present, recipe) != _asked(recipe, recipe):
        raise UserError(f"{folder} holds a run of another recipe, seed or length: choose another folder")
    resume(folder, device=device, console=console)


def _asked(recipe: Recipe, wanted: Recipe) -> Recipe:
    """Return a recipe without its length, and without what a training measures where `wanted` leaves that to it."""
    training = replace(recipe.training, images=1, seconds=None, began=0, choices=wanted.training.choices)
    sampling = recipe.sampling if wanted.sampling.batch is not None else replace(recipe.sampling, batch=None)
    return replace(recipe, training=training, sampling=sampling)
