"""Which classes fail: scores of the samples of each class, and the table of what was asked and what was read."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from unfog.evaluation.distances import Rows, kernel_distance
from unfog.evaluation.intervals import Interval, Protocol, Scored, of_mean
from unfog.evaluation.judge import Asked, Judge, known, some
from unfog.evaluation.neighbours import prdc
from unfog.evaluation.wording import FLOOR, figure, shown
from unfog.runtime.files import whole
from unfog.runtime.lines import WIDE, aligned, lines_of

Counts = NDArray[np.int64]
"""How many rows of each class were read as each class, `(classes, classes)`: asked down, read across."""
NEIGHBOURS, FEWEST = 5, 8
"""The neighbour that sets the radius of a ball, and the rows from which on recall is measured."""
COMPARED = 500
"""Most rows of a class that are compared, on either side."""
WORST = 8
"""Classes and confusions that are listed where there are too many for a whole table."""
HOW = (
    "(distance: MMD² in the classifier's features, on average 0 for rows like those of the class, so it can be "
    "negative; real data: held-out rows of the class; brackets: 95 % intervals)"
)
"""What must be known to read the table."""
NAMED, WRITTEN = 100, 16
"""Most classes that are named in the picture, and most whose counts stand in it."""


@dataclass(frozen=True)
class OfClass:
    """The scores of the samples of one class, label or word.

    Attributes:
        name: Of the class.
        n: Samples that were asked to show it.
        adherence: Share of them that the classifier reads as asked.
        distance: Kernel distance (MMD²) in the first features to training rows of the class; it expects 0 for samples
            like those rows, however many there are. None for fewer than 3 rows.
        recall: Share of training rows of the class that the samples reach; None for fewer than 8 rows.
    """

    name: str
    n: int
    adherence: Scored
    distance: Scored | None
    recall: Scored | None


@dataclass(frozen=True)
class Classes:
    """The samples of a run by what they were asked to show.

    Attributes:
        each: A class each, in the order of the data; without those that no sample was asked to show.
        names: Of all classes.
        confusion: Samples by what was asked (a row each) and what was read (a column each); None for labels and words,
            several of which hold at a time.
        real: The same of held-out rows: what the classifier itself confuses.
    """

    each: tuple[OfClass, ...]
    names: tuple[str, ...]
    confusion: tuple[tuple[int, ...], ...] | None
    real: tuple[tuple[int, ...], ...] | None

    def worst(self) -> list[OfClass]:
        """Return the classes by how much less often than real rows they are read as asked, worst first."""
        return sorted(self.each, key=lambda one: (one.adherence.value - one.adherence.floor, one.adherence.value))

    def confusions(self) -> list[tuple[int, int]]:
        """Return asked and read class of all confusions, most frequent first."""
        if self.confusion is None:
            return []
        counts = np.array(self.confusion)
        pairs = [(int(asked), int(read)) for asked, read in np.argwhere(counts) if asked != read]
        return sorted(pairs, key=lambda pair: -int(counts[pair]))

    def text(self) -> str:
        """Return the scores of the classes and the table of confusions; of many only the worst and most frequent."""
        table = self._whole()
        listed = self.worst() if table is None and len(self.each) > WORST else list(self.each)
        few = listed[:WORST] if len(listed) < len(self.each) or table is None else listed
        head = "by class" if len(few) == len(self.each) else f"the {len(few)} worst of {len(self.each)} classes"
        rows = [[head, "n", "read as asked", FLOOR, "distance", FLOOR, "recall", FLOOR]]
        for one in few:
            cells = [cell for score in (one.distance, one.recall) for cell in _pair(score)]
            ends = [figure(one.adherence), f"{one.adherence.floor:.3f}"]
            rows.append([shown(one.name), str(one.n), *ends, *cells])
        if max(map(len, aligned(rows).splitlines())) > WIDE:  # long names
            rows = [[cell.split(" [")[0] for cell in row] for row in rows]
        return "\n".join([aligned(rows), "", *([table] if table else self._listed()), *lines_of(HOW)])

    def _whole(self) -> str | None:
        """Return the table of confusions, if it is narrow enough."""
        if self.confusion is None or sum(len(shown(name)) + 2 for name in self.names) > WIDE:
            return None
        rows = [["asked / read as", *map(shown, self.names)]]
        for name, counts in zip(self.names, self.confusion, strict=True):
            rows.append([shown(name), *(str(count or "·") for count in counts)])
        return aligned(rows)

    def _listed(self) -> list[str]:
        """Return the most frequent confusions as lines."""
        lines = []
        for asked, read in self.confusions()[:WORST]:
            assert self.confusion is not None
            assert self.real is not None
            count, total = self.confusion[asked][read], sum(self.confusion[asked])
            real, of = self.real[asked][read], sum(self.real[asked])
            names = f"{shown(self.names[asked])} read as {shown(self.names[read])}"
            lines.append(f"{names}: {count} of {total} samples, {real} of {of} real rows")
        return ["most frequent confusions:", *(f"  {line}" for line in lines)] if lines else []

    def draw(self, path: Path) -> None:
        """Draw the table of confusions into a PNG, next to that of real rows: shares of each class that was asked.

        Raises: EnvironmentFailure: If the disk fails.
        """
        from matplotlib.figure import Figure  # here, since matplotlib takes half a second to import

        if self.confusion is None or self.real is None:
            return
        side = 2.0 + min(len(self.names), NAMED) * (0.22 if len(self.names) <= WRITTEN else 0.13)
        canvas = Figure(figsize=(2 * side + 1, side + 0.6), layout="constrained")
        for axes, counts, title in zip(
            canvas.subplots(1, 2), (self.confusion, self.real), ("samples", f"{FLOOR}, held out"), strict=True
        ):
            table = np.array(counts, dtype=float)
            shares = table / np.maximum(table.sum(1, keepdims=True), 1)
            picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
            axes.set(title=title, xlabel="read as", ylabel="asked for")
            places = range(len(self.names)) if len(self.names) <= NAMED else ()
            labels = [shown(self.names[place]) for place in places]
            size = 8 if len(labels) <= WRITTEN else 6
            axes.set_xticks(places, labels, rotation=90, fontsize=size, parse_math=False)
            axes.set_yticks(places, labels, fontsize=size, parse_math=False)
            for row, column in np.argwhere(table) if len(self.names) <= WRITTEN else ():
                colour = "white" if shares[row, column] > 0.5 else "black"
                axes.text(column, row, f"{table[row, column]:.0f}", ha="center", va="center", fontsize=7, color=colour)
        canvas.colorbar(picture, ax=canvas.axes, shrink=0.8, label="share of the class that was asked for")
        with warnings.catch_warnings(), whole(path) as part:
            warnings.filterwarnings("ignore", "Glyph .* missing")  # a name in a script that the font lacks
            canvas.savefig(part, dpi=120, format="png")


def _pair(score: Scored | None) -> tuple[str, str]:
    """Return a score and its floor as cells."""
    return ("-", "-") if score is None else (figure(score), f"{score.floor:.3f}")


def by_class(judge: Judge, samples: Tensor, asked: Asked) -> Classes | None:
    """Return the scores of each class; None where the classifier cannot read what was asked.

    Distance and recall are measured in the first features, for as many training and held-out rows of the class as there
    are; recall for equal numbers. Floors are those of held-out rows of the class, ceilings those of noise.

    Args:
        judge: Has the classifier and the real rows.
        samples: Rows as stored.
        asked: What each was asked to show.
    """
    wanted, reader = judge.readable(asked), judge.classifier
    if reader is None or wanted is None:
        return None
    rows = [part for part in (judge.readable(known(real)) for real in (judge.train, judge.heldout)) if part is not None]
    if len(rows) < 2:
        return None
    drawn = judge.features(samples)
    mine, train, held = (reader.shows(part) for part in (wanted, *rows))
    read, read_held, read_noise = (
        reader.reads(features) for features in (drawn, judge.heldout_features, judge.first.noise)
    )
    names = reader.words or tuple(
        judge.classes[place] if place < len(judge.classes) else str(place) for place in range(reader.outputs)
    )
    each = []
    for place in np.flatnonzero(mine.any(0) & train.any(0) & held.any(0)):
        here, there = (np.flatnonzero(part[:, place]) for part in (mine, held))
        hits = read[here, place].astype(float)
        low, high = of_mean(hits, judge.seed)
        ends = float(read_held[there, place].mean()), float(read_noise[:, place].mean())
        adherence = Scored(float(hits.mean()), low, high, len(here), *ends, _protocol(judge, "adherence"))
        sets = drawn[here], judge.heldout_features[there], judge.first.noise[: max(FEWEST, len(here))]
        own = judge.train_features[train[:, place]]
        distance = _distance(own, sets, _protocol(judge, "distance"))
        recall = _recall(own, sets, _protocol(judge, "recall"))
        each.append(OfClass(names[place], len(here), adherence, distance, recall))
    tables = (None, None) if reader.several else (_confusion(mine, read), _confusion(held, read_held))
    return Classes(tuple(each), tuple(names), *tables)


def _protocol(judge: Judge, score: str) -> Protocol:
    """Return how a score of classes was measured."""
    return Protocol(f"{score} by class", f"{judge.first.extractor.name} {judge.first.extractor.key}", judge.sets)


def _confusion(asked: NDArray[np.bool_], read: NDArray[np.bool_]) -> tuple[tuple[int, ...], ...]:
    """Return how many rows of each class were read as each class, from one-hot rows, `(n, classes)`."""
    counts: Counts = asked.T.astype(np.int64) @ read.astype(np.int64)
    return tuple(tuple(row) for row in counts.tolist())


def _distance(train: Rows, sets: Sequence[Rows], protocol: Protocol) -> Scored | None:
    """Return the kernel distance of samples of a class to training rows of it, with that of held-out rows and noise."""
    if min(len(train), *map(len, sets)) < 3:
        return None
    own = train[some(min(COMPARED, len(train)), len(train))]
    (value, error), floor, ceiling = (kernel_distance(rows[:COMPARED], own) for rows in sets)
    interval = Interval(value - 1.96 * error, value + 1.96 * error)
    return Scored(value, *interval, min(COMPARED, len(sets[0])), floor.value, ceiling.value, protocol)


def _recall(train: Rows, sets: Sequence[Rows], protocol: Protocol) -> Scored | None:
    """Return the recall of a class, for equal numbers of training rows, samples, held-out rows and rows of noise."""
    count = min(COMPARED, len(train), *map(len, sets))
    if count < FEWEST:
        return None
    own = train[some(count, len(train))]
    value, floor, ceiling = (prdc(own, rows[some(count, len(rows))], NEIGHBOURS).recall for rows in sets)
    return Scored(value, None, None, count, floor, ceiling, protocol)
