"""Parts of data sets: fewer rows, or other proportions of the classes."""

from collections.abc import Sequence

import numpy as np
import torch

from unfog.data.source import Batch, Data, Indices, Source, Subset
from unfog.runtime.errors import UserError
from unfog.runtime.randomness import stream


def portion(data: Data, share: float = 1.0, classes: Sequence[float] = ()) -> Data:
    """Keep some rows of a data set, each with the same probability as others of its class; the same on every call.

    Args:
        data: The data set.
        share: Share of the training rows that is kept; the held-out rows stay.
        classes: Proportions of the classes, in their order, 0 for a class that is left out; training and held-out rows
            then have the most rows that these proportions allow. Default: those of the data.

    Returns: The parts, in the order of their rows.
    Raises: UserError: If nothing would be left, or the rows have no class each.
    """
    if not 0 < share <= 1:
        raise UserError(f"data.share must be above 0 and up to 1, not {share:g}")
    train, heldout = (_proportioned(part, classes) if classes else np.arange(len(part)) for part in data)
    count = round(share * len(train))
    if count < 1 or not len(heldout):
        raise UserError(f"a share of {share:g} of {len(train):,} training rows leaves none: raise data.share")
    kept = np.sort(train[stream(0, "portion").permutation(len(train))[:count]])
    parts = Subset(data.train, kept), Subset(data.heldout, heldout)
    if not classes or all(classes):
        return Data(*parts)
    left = [place for place, one in enumerate(classes) if one]
    return Data(*(Renumbered(part, left) for part in parts))


class Renumbered:
    """Rows of some of the classes of a source, which are numbered from 0 in their order."""

    def __init__(self, source: Source, left: Sequence[int]) -> None:
        """Take rows of the classes `left` alone."""
        self.source = source
        self.shape, self.slow, self.classes = source.shape, source.slow, tuple(source.classes[one] for one in left)
        self.numbers = torch.full((len(source.classes),), -1)
        self.numbers[list(left)] = torch.arange(len(left))

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.source)

    def take(self, indices: Indices) -> Batch:
        """Return the rows with these indices."""
        return self._renumbered(self.source.take(indices))

    def about(self, indices: Indices) -> Batch:
        """Return the annotations of these rows."""
        return self._renumbered(self.source.about(indices))

    def _renumbered(self, batch: Batch) -> Batch:
        """Return rows with the new numbers of their classes."""
        assert batch.labels is not None, "rows of classes"
        return batch._replace(labels=self.numbers[batch.labels])


def _proportioned(source: Source, classes: Sequence[float]) -> Indices:
    """Return rows whose classes have these proportions, as many as there can be."""
    labels = source.about(np.arange(len(source))).labels
    if labels is None or labels.ndim != 1:
        raise UserError("proportions of classes need rows with one class each: omit data.classes")
    if len(classes) != len(source.classes) or min(classes) < 0 or not sum(classes) > 0:
        raise UserError(
            f"data.classes must be {len(source.classes)} proportions, one for each class, 0 or more and not all 0, "
            f"not {', '.join(f'{one:g}' for one in classes)}"
        )
    numbers = labels.numpy()
    counts = np.bincount(numbers, minlength=len(classes))
    total = min(counts[place] / one for place, one in enumerate(classes) if one)
    rows = []
    for place, one in enumerate(classes):
        own = np.flatnonzero(numbers == place)
        order = stream(0, "proportion", place).permutation(len(own))
        rows.append(own[order[: round(total * one)]])
    return np.sort(np.concatenate(rows))
