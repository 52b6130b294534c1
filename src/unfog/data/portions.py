"""Parts of data sets: fewer rows, or other proportions of the classes."""

from collections.abc import Sequence

import numpy as np

from unfog.data.source import Data, Indices, Source, Subset
from unfog.runtime.errors import UserError
from unfog.runtime.randomness import stream


def portion(data: Data, share: float = 1.0, classes: Sequence[float] = ()) -> Data:
    """Keep some rows of a data set, each with the same probability as others of its class; the same on every call.

    Args:
        data: The data set.
        share: Share of the training rows that is kept; the held-out rows stay.
        classes: Proportions of the classes, in their order, 0 for none; training and held-out rows then have the most
            rows that these proportions allow. Default: those of the data.

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
    return Data(Subset(data.train, kept), Subset(data.heldout, heldout))


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
