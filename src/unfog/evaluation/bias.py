"""Bias and memorisation: how often a rare class is drawn, and how often training rows are copied, family by family."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from unfog.data.portions import portion
from unfog.data.source import Source
from unfog.evaluation.contest import train_or_resume
from unfog.evaluation.families import FAMILIES, Family
from unfog.evaluation.intervals import of_mean
from unfog.evaluation.judge import Judge
from unfog.evaluation.neighbours import memorised
from unfog.evaluation.rivals import Contest, judge_of
from unfog.evaluation.variations import QUARTER
from unfog.recipes.build import build_data, build_model
from unfog.recipes.portions import Portion
from unfog.recipes.recipe import Recipe
from unfog.runs.run import Run, load
from unfog.runtime.brief import brief
from unfog.runtime.errors import UserError
from unfog.runtime.lines import counted
from unfog.runtime.progress import duration, working

COMMON, RARE = 0.9, 0.1
"""Proportions of the first two classes in what is trained on; there are no others."""
SCALES = (1.0, 2.0, 4.0)
"""Scales of guidance, of the model that is conditioned on the class."""
MOST = 20_000
"""Training rows among which copies are looked for, at most."""
SHARES = {"": 1.0, "a quarter": 0.25, "a sixteenth": 1 / 16}
"""Shares of the training rows, for copies."""


@dataclass(frozen=True)
class Drawn:
    """How often the rare class is among samples.

    Attributes:
        family: Which draws them.
        how: Without a condition, or asked in the proportions of the training and with which guidance.
        share: The share that is read as the rare class, of those that are read as one of the two.
        low: Lower end of its exact interval.
        high: Upper end.
        trained: Its share in the training rows, read alike.
    """

    family: str
    how: str
    share: float
    low: float
    high: float
    trained: float

    @property
    def verdict(self) -> str:
        """What the interval says."""
        if self.low <= self.trained <= self.high:
            return "reflected"
        return "amplified" if self.high < self.trained else "lessened"


@dataclass(frozen=True)
class Copied:
    """How often samples lie as near to training rows as the nearest hundredth of held-out rows.

    Attributes:
        family: Which draws them.
        rows: Training rows.
        share: Of the samples.
        expected: The share for samples that copy nothing.
    """

    family: str
    rows: int
    share: float
    expected: float


@dataclass(frozen=True)
class Bias:
    """What was measured."""

    drawn: Sequence[Drawn]
    copied: Sequence[Copied]

    __repr__ = brief

    def tables(self) -> list[list[list[str]]]:
        """Return both as tables, the head first."""
        shares = [["the rare class among samples", "", "share", "trained on", "verdict"]]
        for one in self.drawn:
            span = f"{one.share:.1%} [{one.low:.1%}, {one.high:.1%}]"
            shares.append([one.family, one.how, span, f"{one.trained:.1%}", one.verdict])
        families = list(dict.fromkeys(one.family for one in self.copied))
        copies = [["copies of training rows", *families, "expected"]]
        for rows in sorted({one.rows for one in self.copied}):
            own = {one.family: one for one in self.copied if one.rows == rows}
            expected = next(iter(own.values())).expected
            copies.append([f"{rows:,} rows", *(f"{own[name].share:.1%}" for name in families), f"{expected:.1%}"])
        return [shares, copies]

    def plain(self) -> dict[str, object]:
        """Return it as JSON takes it."""
        return {"drawn": [asdict(one) for one in self.drawn], "copied": [asdict(one) for one in self.copied]}


def bias(contest: Contest, *, device: str = "auto", console: Console | None = None) -> Bias:
    """Train each family on two classes, 90 to 10, and on fewer and fewer rows, each for a quarter of the time.

    The first are trained without conditions, and diffusion also with the class, which it is then asked for as often as
    it was trained on it, with more and more guidance. A trained classifier of all classes reads the samples. Trainings
    that are finished are kept, and an interrupted one resumes.

    Args:
        contest: What is trained; with one seed.
        device: Where to compute.
        console: Shows the progress.

    Raises: UserError: If the data have no classes, or a family cannot be trained on them.
    """
    recipe, data = build_data(contest.recipe)
    for one in FAMILIES:  # so that what does not fit is refused before the minutes are spent
        build_model(_of(recipe, one))
    if len(recipe.classes) < 2:
        raise UserError("bias is measured on data with two classes or more, each row of one: omit it")
    two = (COMMON, RARE, *[0.0] * (len(recipe.classes) - 2))
    folder, budget = contest.out / "bias", QUARTER * contest.budget
    skewed = build_data(replace(recipe, data=Portion(recipe.data, classes=two)))[0]
    plain = {one.name: _of(skewed.set("conditioning=none"), one) for one in FAMILIES}
    smaller = {
        (one, words): _of(replace(recipe, data=Portion(recipe.data, share)) if share < 1 else recipe, one)
        for one in FAMILIES
        for words, share in SHARES.items()
    }
    if console is not None:
        many = len(plain) + 1 + len(smaller)
        console.print(f"bias: {counted(many, 'training')} of {duration(budget)}", highlight=False)
    for name, rival in plain.items():
        train_or_resume(rival, folder / f"{name.lower()}-two", budget, device, console)
    train_or_resume(skewed, folder / "diffusion-asked", budget, device, console)
    for (one, words), rival in smaller.items():
        train_or_resume(rival, _of_share(folder, one, words), budget, device, console)
    judge = judge_of(recipe, data, contest.count, console)
    with working("measuring bias", console=console):
        drawn = _drawn(folder, judge, skewed, contest.count, device)
        copied = [
            _copied(load(_of_share(folder, one, words), device), one, judge, portion(data, share).train, contest.count)
            for one in FAMILIES
            for words, share in SHARES.items()
        ]
    return Bias(drawn, copied)


def _of(recipe: Recipe, family: Family) -> Recipe:
    """Return a recipe as one of a family."""
    return build_data(recipe.set(*family.settings))[0]


def _of_share(folder: Path, family: Family, words: str) -> Path:
    """Return the folder of a training on a share of the rows."""
    return folder / "-".join([family.name.lower(), "of", *(words or "all").split()])


def _drawn(folder: Path, judge: Judge, skewed: Recipe, count: int, device: str) -> list[Drawn]:
    """Return how often the rare class is drawn by each family, and with guidance."""
    real = skewed.data.build().train
    trained = _rare(judge, real.take(np.linspace(0, len(real) - 1, min(len(real), 10_000)).astype(np.int64)).x).mean()

    def read(family: str, how: str, samples: Tensor) -> Drawn:
        rare = _rare(judge, samples)
        return Drawn(family, how, float(rare.mean()), *of_mean(rare), float(trained))

    found = []
    for family in FAMILIES:
        run = load(folder / f"{family.name.lower()}-two", device)
        found.append(read(family.name, "without a condition", run.sample(count)))
    asked = (torch.arange(count) >= round(COMMON * count)).long()
    for scale in SCALES:
        generator = load(folder / "diffusion-asked", device).generator(guidance=scale)
        samples = generator(count, condition=asked)
        found.append(read(FAMILIES[0].name, f"asked as trained, guidance {scale:g}", samples))
    return found


def _rare(judge: Judge, x: Tensor) -> NDArray[np.float64]:
    """Return 1 for each row that is read as the second class, 0 for the first; others are left out."""
    if judge.reads is not None:
        numbers = judge.reads(x)
    else:
        assert judge.classifier is not None, "rows with classes are read"
        numbers = judge.classifier.classes(judge.classifier(x))
    rare: NDArray[np.float64] = (numbers[(numbers == 0) | (numbers == 1)] == 1).astype(np.float64)
    return rare if len(rare) else np.zeros(1)


def _copied(run: Run, family: Family, judge: Judge, train: Source, count: int) -> Copied:
    """Return how often a training on some rows copies them, in the features of the classifier."""
    own = train.take(np.linspace(0, len(train) - 1, min(len(train), MOST)).astype(np.int64)).x
    found = memorised(judge.features(run.sample(count)), judge.features(own), judge.heldout_features)
    return Copied(family.name, len(train), found.near, found.expected)
