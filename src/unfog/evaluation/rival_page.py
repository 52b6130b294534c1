"""Tables and page of `unfog rivals`."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import cast

import numpy as np
from torch import Tensor

from unfog.data.pictures import save_picture
from unfog.evaluation.bias import Bias
from unfog.evaluation.claims import CLOSE, Measured, decided
from unfog.evaluation.families import FAMILIES, STUDENT
from unfog.evaluation.habits import Habits
from unfog.evaluation.rivals import LIKELY, MANY, Contest, of_families
from unfog.evaluation.trained import GONE, MAIN, Trained
from unfog.evaluation.variations import BASE, QUARTER, SHORT, SIXTEENTH, STACKED
from unfog.runs.run import load
from unfog.runtime.brief import brief
from unfog.runtime.files import disk, write_whole
from unfog.runtime.lines import aligned, counted, lines_of
from unfog.runtime.progress import duration
from unfog.runtime.provenance import provenance

SHOWN = 10
"""Pictures of each family on the sheet."""
BIASED = (
    "The rare class: the second of the first two, trained on one to nine, of samples that a classifier of all classes "
    "reads as one of the two, with an exact 95 % interval; amplified: rarer than in the training. Copies: samples as "
    "near to training rows as the nearest hundredth of held-out rows, in the classifier's features. Each training has "
    "a quarter of the time."
)
Rows = list[list[str]]
"""Cells of a table, the head first."""


def table(found: Sequence[Trained]) -> Rows:
    """Return what was measured of the main trainings, a column for each family, with the spread over its seeds."""
    main = [one for one in found if one.variation == MAIN]
    of = of_families(main)
    metrics = list(dict.fromkeys(name for one in main for name in one.scores))
    rows = [["", *of, "real data", "noise"]]
    for metric in metrics:
        cells = [spread([one.scores[metric].value for one in some if metric in one.scores]) for some in of.values()]
        ends = next(one.scores[metric] for one in main if metric in one.scores)
        rows.append([metric, *cells, number(ends.floor), number(ends.ceiling)])
    near = [spread([one.copies for one in some if one.copies is not None]) for some in of.values()]
    expected = main[0].expected
    rows.append(["copies, share near training rows", *near, "-" if expected is None else number(expected), ""])
    own = {
        "seconds a picture, alone": [[one.single for one in some] for some in of.values()],
        f"seconds a picture, of {MANY}": [[one.portion for one in some] for some in of.values()],
        "pictures trained on": [[float(one.images) for one in some] for some in of.values()],
        "parameters": [[float(one.parameters) for one in some] for some in of.values()],
    }
    rows += [[name, *map(spread, columns), "", ""] for name, columns in own.items()]
    rows.append(["bits a number, held out", *(_bits(some) for some in of.values()), "", ""])
    gone = [f"{sum(one.collapsed for one in some)} of {len(some)}" for some in of.values()]
    rows.append(["collapsed", *gone, "", ""])
    lines = {family.name: str(family.lines) for family in (*FAMILIES, STUDENT)}
    return [*rows, ["lines of code of its own", *(lines[name] for name in of), "", ""]]


def varied(found: Sequence[Trained], budget: float) -> Rows:
    """Return the distances of variations, a column for each family, and what follows from them; empty without any."""
    others = [one for one in found if one.variation != MAIN]
    if not others:
        return []
    of = of_families(others)
    metric = _distance(found)
    rows = [[metric, *of]]
    for name in dict.fromkeys(one.variation for one in others if one.variation != STACKED):
        rows.append([name, *(_score(some, name, metric) for some in of.values())])
    main = of_families([one for one in found if one.variation == MAIN])
    rows.append(["the whole time", *(spread([one.scores[metric].value for one in main[name]]) for name in of)])
    first = next(iter(of.values()))
    aim = next((one.scores[metric].value for one in first if one.variation == BASE), 0.0)
    curves = [_curve([*some, *main[name]], metric, budget) for name, some in of.items()]
    rows.append(
        [f"seconds to {number(aim)}, which diffusion has after a quarter", *(until(one, aim) for one in curves)]
    )
    rows.append(["collapsed", *(_gone([*some, *main[name]]) for name, some in of.items())])
    rates = [[one.scores[metric].value for one in some if _of_rate(one)] for some in of.values()]
    rows.append(["worst of the learning rates over the best", *(_ratio(values) for values in rates)])
    stacks = next((one.scores["modes"] for one in others if one.variation == STACKED), None)
    if stacks is not None:
        reached = [_score(some, STACKED, "modes") for some in of.values()]
        rows.append([f"modes of stacked pictures ({number(stacks.floor)} of as many real ones)", *reached])
    return rows


def _curve(some: Sequence[Trained], metric: str, budget: float) -> list[tuple[float, float]]:
    """Return seconds of training and the distance after them, of those that differ in their time alone."""
    shares = {SHORT: SIXTEENTH, BASE: QUARTER, MAIN: 1.0}
    times = {name: [one.scores[metric].value for one in some if one.variation == name] for name in shares}
    return [(shares[name] * budget, float(np.mean(values))) for name, values in times.items() if values]


def until(curve: Sequence[tuple[float, float]], aim: float) -> str:
    """Return the seconds until a distance falls to an aim, linear between its logarithms.

    Args:
        curve: Seconds and distances, in the order of time.
        aim: The distance.
    """
    if not curve or min(distance for _, distance in curve) > aim:
        return f"more than {number(curve[-1][0])}" if curve else "-"
    if curve[0][1] <= aim:
        return f"at most {number(curve[0][0])}"
    (early, above), (late, below) = next(pair for pair in pairwise(curve) if pair[1][1] <= aim)
    share = np.log(above / aim) / np.log(above / below)
    return number(float(np.exp((1 - share) * np.log(early) + share * np.log(late))))


def _distance(found: Sequence[Trained]) -> str:
    """Return the name of the score by which trainings are compared: the first distance."""
    return next(name for name in found[0].scores if name.startswith("frechet"))


def _score(some: Sequence[Trained], variation: str, metric: str) -> str:
    """Return a score of one variation of a family."""
    values = [one.scores[metric].value for one in some if one.variation == variation and metric in one.scores]
    return spread(values)


def _of_rate(one: Trained) -> bool:
    """Return whether a training is one of those that differ in the learning rate alone."""
    return one.variation == BASE or "learning rate" in one.variation


def _gone(some: Sequence[Trained]) -> str:
    """Return how many trainings collapsed."""
    counted_ones = [one for one in some if one.variation not in (STACKED, SHORT)]
    return f"{sum(one.collapsed for one in counted_ones)} of {len(counted_ones)}"


def _ratio(values: Sequence[float]) -> str:
    """Return the largest of some numbers over the least."""
    return number(max(values) / min(values)) if len(values) > 1 and min(values) > 0 else "-"


def _bits(some: Sequence[Trained]) -> str:
    """Return the likelihood of a family as text."""
    if some[0].bits is None:
        return "none"
    if len(some) == 1:
        return f"{some[0].bits[0]:.3f} ± {some[0].bits[1]:.3f}, {some[0].way}"
    return f"{spread([one.bits[0] for one in some if one.bits])}, {some[0].way}"


def spread(values: Sequence[float]) -> str:
    """Return the mean of numbers, with the lowest and the highest where there are several."""
    if not values:
        return "-"
    if len(values) == 1:
        return number(values[0])
    return f"{number(float(np.mean(values)))} ({number(min(values))} to {number(max(values))})"


def number(value: float) -> str:
    """Return a number in three digits, or whole."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def in_markdown(rows: Rows) -> list[str]:
    """Return a table as lines of Markdown."""
    head, *body = [f"| {' | '.join(cells)} |" for cells in rows]
    return [head, f"|{'|'.join(['---'] * len(rows[0]))}|", *body]


@dataclass(frozen=True)
class Page:
    """What `unfog rivals` writes: rivals.json, rivals.md and rivals.png."""

    found: Sequence[Trained]
    contest: Contest
    bias: Bias | None = None
    habits: Habits | None = None

    __repr__ = brief

    def text(self) -> str:
        """Return the tables for a terminal."""
        return "\n\n".join(aligned(rows) for rows in self._tables())

    def _tables(self) -> list[Rows]:
        """Return the tables that there are."""
        own = [table(self.found), varied(self.found, self.contest.budget)]
        return [rows for rows in (*own, *(self.bias.tables() if self.bias else []), self.claims) if rows]

    @property
    def claims(self) -> Rows:
        """What tutorials claim, and what was measured of it."""
        return decided(Measured(self.found, self.bias, self.habits))

    def notes(self) -> list[str]:
        """Return what must be known to read the tables."""
        main = [one for one in self.found if one.variation == MAIN]
        seeds = len({one.seed for one in main})
        variations = (
            "Below: one training each, a quarter of the time unless it says otherwise; widths are multiples of 8. A "
            "student's time is half its teacher's."
        )
        return [
            f"{self.contest.recipe.name}: {duration(self.contest.budget)} of training each, {counted(seeds, 'seed')}, "
            f"{self.contest.count:,} samples conditioned on what held-out rows show.",
            "In brackets: the lowest and the highest of the seeds. Distances, recall and the like are those of `unfog "
            "evaluate`; real data: held-out rows in the samples' place.",
            "Energy at high frequencies: the share above half the Nyquist frequency. It and the gradients are best "
            "where they are real data's: less is blurred, more is noisy.",
            f"Bits of {LIKELY} held-out rows: of diffusion by its flow on dequantised rows, of the VAE a bound, of the "
            "autoregressive model exact; a GAN knows none. The three are not of quite the same thing.",
            f"Collapsed: recall or coverage below {GONE:.0%} of real data's.",
            *([variations] if len(main) < len(self.found) else []),
            *([BIASED] if self.bias else []),
            f"Claims of the tutorials, in our words: decided where intervals are apart, those of several seeds taken "
            f"together; 'sharp' and 'well' are {CLOSE:.0%} of what real data have. Of one training without an interval "
            "nothing is decided: give --seeds 3. What is not measured needs --all or --bias.",
            str(provenance()),
        ]

    def write(self, device: str = "auto") -> str:
        """Write tables and sheet into the folder of the runs; return where they are.

        Raises: EnvironmentFailure: If the disk fails.
        """
        folder, budget = self.contest.out, self.contest.budget
        title = f"# Rivals: {self.contest.recipe.name}, {duration(budget)} each"
        tables = [line for rows in self._tables() for line in (*in_markdown(rows), "")]
        text = "\n".join([title, "", *tables, *(f"- {note}" for note in self.notes()), "", "![samples](rivals.png)"])
        with disk(folder):
            folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / "rivals.md", (text + "\n").encode())
        trained = [one.plain() for one in self.found]
        everything: dict[str, object] = {"budget": budget, "count": self.contest.count, "trained": trained}
        if self.habits:
            everything["habits"] = asdict(self.habits)
        everything["claims"] = self.claims[1:]
        if self.bias:
            everything["bias"] = self.bias.plain()
        write_whole(folder / "rivals.json", json.dumps(everything, indent=1).encode())
        self._sheet(folder, device)
        return "\n".join(
            [*(line for note in self.notes() for line in lines_of(note)), f"written: {folder / 'rivals.md'}"]
        )

    def _sheet(self, folder: Path, device: str) -> None:
        """Write samples of the first training of each family, below each other."""
        names = list(dict.fromkeys(one.family for one in self.found))
        runs = [load(folder / f"{name.lower()}-0", device) for name in names]
        sets = [run.sample(SHOWN) for run in runs]
        shown = runs[0].recipe.classes
        labels = [shown[place % len(shown)] if shown else "" for place in range(SHOWN)]
        modality = runs[0].recipe.modality
        save_picture(modality.compared(cast(Sequence[Tensor], sets), names, labels, "samples"), folder / "rivals.png")
