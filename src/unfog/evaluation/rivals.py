"""`unfog rivals`: diffusion, GAN, VAE and autoregressive models, trained on the same data for the same time."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from unfog.data.source import Data
from unfog.data.stacked import modes, stacked
from unfog.evaluation.contest import train_or_resume
from unfog.evaluation.density import Bits, density
from unfog.evaluation.families import FAMILIES, STUDENT, Family
from unfog.evaluation.habits import Habits, remembered
from unfog.evaluation.judge import Judge
from unfog.evaluation.report import evaluate_run
from unfog.evaluation.sharpness import sharpness
from unfog.evaluation.trained import MAIN, Figure, Trained, kept
from unfog.evaluation.variations import Variation, of_all
from unfog.recipes.build import build_codec, build_data, build_model
from unfog.recipes.portions import Stacked
from unfog.recipes.recipe import Recipe
from unfog.runs.distilling import distill
from unfog.runs.run import Run, load, resume
from unfog.runtime.brief import brief
from unfog.runtime.errors import UserError
from unfog.runtime.lines import counted
from unfog.runtime.progress import duration, working
from unfog.runtime.randomness import stream

LIKELY = 64
"""Rows whose likelihood is measured: that of a diffusion model is an integral for each."""
MANY = 64
"""Pictures in a portion whose seconds are measured."""
LEAST = 48
"""Seconds of a training, at least, where variations are trained for a sixteenth of them."""
KEPT = "rival.json"
"""What was measured, in the run folder."""


@dataclass(frozen=True)
class Entry:
    """A training: of which family, how it differs, its recipe, folder and seconds."""

    family: Family
    recipe: Recipe
    folder: Path
    budget: float
    variation: str = MAIN

    __repr__ = brief

    def train(self, device: str, console: Console | None) -> None:
        """Train, or resume what was stopped; a student has a teacher of half the time.

        Raises: UserError: If the folder holds another run.
        """
        if not self.family.taught:
            train_or_resume(self.recipe, self.folder, self.budget, device, console)
            return
        teacher, half = self.folder.with_name(f"{self.folder.name}-teacher"), self.budget / 2
        train_or_resume(self.recipe, teacher, half, device, console)
        if (self.folder / "checkpoints").exists():
            resume(self.folder, device=device, console=console)
        else:
            distill(teacher, self.folder, budget=half, device=device, console=console)


@dataclass(frozen=True)
class Contest:
    """What is trained and how it is measured.

    Attributes:
        recipe: What diffusion trains; the others take its data, condition and batch.
        out: Folder for the runs.
        budget: Seconds of each training.
        seeds: Trainings of each family.
        count: Samples to score each with.
        all: Whether variations are trained as well, see `variations.of_all`, and a student.
    """

    recipe: Recipe
    out: Path
    budget: float
    seeds: int = 1
    count: int = 1000
    all: bool = False

    __repr__ = brief

    def __post_init__(self) -> None:
        """Check the number of seeds."""
        if self.seeds < 1:
            raise UserError(f"a family is trained with one seed or more, not {self.seeds}")

    @property
    def families(self) -> tuple[Family, ...]:
        """The families that are compared."""
        return (*FAMILIES, STUDENT) if self.all else FAMILIES

    def entries(self, data: Data) -> list[Entry]:
        """Return all trainings, the first ones those of the table.

        Raises: UserError: If a family cannot be trained on the data.
        """
        if self.all and self.budget < LEAST:
            raise UserError(
                f"a budget of {self.budget:g} s is too short for variations, of which the shortest takes a sixteenth: "
                f"give {LEAST} s or more"
            )
        chosen = {one.name: build_data(self.recipe.set(*one.settings), data)[0] for one in self.families}
        for rival in chosen.values():  # so that what does not fit is refused before the minutes are spent
            build_model(rival)
        found = [
            Entry(one, self._seeded(chosen[one.name], seed), self.out / f"{one.name.lower()}-{seed}", self.budget)
            for one in self.families
            for seed in range(self.seeds)
        ]
        if self.all:
            found += [
                self._varied(family, chosen[family.name], way)
                for way in of_all(chosen[FAMILIES[0].name])
                for family in FAMILIES
                if way.suits(chosen[family.name])
            ]
        return found

    def _seeded(self, recipe: Recipe, seed: int) -> Recipe:
        """Return a recipe with another seed."""
        return replace(recipe, seed=self.recipe.seed + seed)

    def _varied(self, family: Family, recipe: Recipe, way: Variation) -> Entry:
        """Return a training that differs, for a share of the time."""
        folder = self.out / "variations" / f"{family.name.lower()}-{way.key}"
        return Entry(family, way.of(recipe), folder, self.budget * way.share, way.name)


def rivals(contest: Contest, *, device: str = "auto", console: Console | None = None) -> list[Trained]:
    """Train each family for the same time, once with each seed, and measure all alike.

    Trainings and measurements that are finished are kept, and an interrupted one resumes.

    Args:
        contest: What is trained.
        device: Where to compute.
        console: Shows the progress.

    Returns: What was measured, family by family, and then the variations.
    Raises: UserError: If a family cannot be trained on the data, or the folder holds other runs.
    """
    recipe, data = build_data(contest.recipe)
    entries = contest.entries(data)
    if console is not None:
        total = sum(entry.budget for entry in entries)
        console.print(
            f"{counted(len(entries), 'training')} of up to {duration(contest.budget)}, {duration(total)} in all, and "
            "some minutes to measure; stopped, it resumes with the same command",
            highlight=False,
        )
    for entry in entries:
        entry.train(device, console)
    judge = judge_of(recipe, data, contest.count, console)
    found = []
    for entry in entries:
        one = kept(entry.folder / KEPT, contest.count)
        if one is None:
            with working(f"measuring {entry.folder.name}", console=console):
                one = measured(load(entry.folder, device), entry, judge, data, contest.count)
            one.keep(entry.folder / KEPT, contest.count)
        found.append(one)
    return found


def judge_of(recipe: Recipe, data: Data, count: int, console: Console | None) -> Judge:
    """Return what judges models of a recipe's data, which was filled in, by so many samples."""
    return Judge(
        data, build_codec(recipe).plain, count, console=console, mirror=recipe.augment.flip, reads=recipe.reads
    )


def habits_of(contest: Contest, *, device: str = "auto", console: Console | None = None) -> Habits | None:
    """Return how the diffusion model of a contest draws; None if its rows are no pictures.

    Raises: UserError: If it was not trained.
    """
    recipe, data = build_data(contest.recipe)
    if not recipe.modality.pixels:
        return None
    folder = contest.out / f"{FAMILIES[0].name}-0"
    judge = judge_of(recipe, data, contest.count, console)
    with working("how diffusion draws", console=console):
        return remembered(folder / "habits.json", load(folder, device), judge, contest.count)


def measured(run: Run, entry: Entry, judge: Judge, data: Data, count: int) -> Trained:
    """Measure one training; of a variation only its samples."""
    if isinstance(run.recipe.data, Stacked):
        return _of(run, entry, {"modes": _modes(run, judge, data, count)})
    found = evaluate_run(run, judge, count, guidance=run.recipe.sampling.guidance, seed=run.recipe.seed)
    scores = {name: Figure(one.value, one.low, one.high, one.floor, one.ceiling) for name, one in found.scores.items()}
    if run.recipe.modality.pixels:
        scores |= sharpness(found.samples, judge.heldout.x, judge.noise)
    copies = next(iter(found.copies.values()), None)
    one = _of(run, entry, scores, *((copies.near, copies.expected) if copies else ()))
    if entry.variation != MAIN:
        return one
    bits, way = _likelihood(run, data)
    return replace(one, single=_seconds(run, 1), portion=_seconds(run, MANY), bits=bits, way=way)


def _of(
    run: Run, entry: Entry, scores: dict[str, Figure], copies: float | None = None, expected: float | None = None
) -> Trained:
    """Return what is known of a training, with its scores."""
    parameters = sum(parameter.numel() for parameter in run.model.parameters())
    seed, images = run.recipe.seed, run.recipe.training.images
    return Trained(entry.family.name, seed, images, parameters, scores, copies, expected, variation=entry.variation)


def _modes(run: Run, judge: Judge, data: Data, count: int) -> Figure:
    """Return how many of the combinations of three classes samples of stacked pictures reach."""
    classifier, classes = judge.classifier, len(judge.classes)
    assert classifier is not None, "rows with classes are read"

    def reached(x: Tensor) -> float:
        return float(modes([classifier.classes(classifier(plane)) for plane in torch.split(x, 1, 1)], classes))

    real = stacked(data, count, count).heldout.take(np.arange(count)).x
    noise = judge.noise[:, :1].repeat(-(-count // len(judge.noise)), 1, 1, 1)[:count]
    others = [noise[stream(0, "noise to stack", place).permutation(count)] for place in range(2)]
    return Figure(reached(run.sample(count)), None, None, reached(real), reached(torch.cat([noise, *others], 1)))


def _likelihood(run: Run, data: Data) -> tuple[tuple[float, float] | None, str]:
    """Return the bits a number of held-out rows and their error, None where the model knows none, and the way."""
    try:
        bits: Bits = density(run, data, LIKELY).held_out
    except UserError:
        return None, ""
    for way in ("exact", "flow", "bound"):
        if (value := getattr(bits, way)) is not None:
            return (value, getattr(bits, f"{way}_error")), way
    return None, ""


def _seconds(run: Run, count: int) -> float:
    """Return the seconds a picture takes where so many are drawn together, the median of three times."""
    generator = run.generator(batch=count)
    generator(count)  # the first call sets up what the others use
    times = []
    for seed in range(3):
        began = time.perf_counter()
        generator(count, seed=seed)
        times.append(time.perf_counter() - began)
    return float(np.median(times)) / count


def of_families(found: Sequence[Trained]) -> dict[str, list[Trained]]:
    """Return trainings by the names of their families."""
    return {name: [one for one in found if one.family == name] for name in dict.fromkeys(one.family for one in found)}
