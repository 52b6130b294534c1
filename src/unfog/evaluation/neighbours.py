"""Scores by nearest neighbours: precision and recall, density and coverage, and copies of training rows."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import betabinom
from sklearn.metrics.pairwise import euclidean_distances
from sklearn.neighbors import NearestNeighbors

from unfog.evaluation.distances import Rows, as_features, same_width, spans
from unfog.runtime.errors import UserError


class PRDC(NamedTuple):
    """Precision, recall, density and coverage."""

    precision: float
    recall: float
    density: float
    coverage: float


def _radii(rows: Rows, k: int) -> Rows:
    """Return each row's distance to its k-th nearest other row, `(n,)`, with room for rounding.

    The distances that are compared with it come from |x|² - 2x·y + |y|²: without room, copies of the very row that set
    a radius would fall in or out by chance.
    """
    radii = NearestNeighbors(n_neighbors=k).fit(rows).kneighbors()[0][:, -1]  # without an argument: others only
    room: Rows = np.sqrt(radii**2 + 1e-12 * rows.var(0).sum())
    return room


def prdc(real: ArrayLike, fake: ArrayLike, k: int = 5, block: int = 1024) -> PRDC:
    """Return how many samples are real-like and how much of the real data they reach.

    With B(x) the closed ball around x to its k-th nearest row of its own set,

        precision = share of fake rows in the B(real) of any real row       (samples that are like data)
        recall    = share of real rows in the B(fake) of any fake row       (data that are like samples)
        density   = mean over fake rows of the number of B(real) around them, over k
        coverage  = share of real rows with a fake row in their B(real)

    All depend on the numbers of rows: balls shrink as sets grow. Recall falls with more real rows (for the same fake
    balls it stays) and is fooled by far fake rows, whose balls are large; precision likewise by far real rows; coverage
    rises with more fake rows. Only density expects the same for any number of fake rows; of two samples of one
    distribution it expects 1, whatever k. Coverage then expects 1 - (n-1)…(n-k) / ((n+m-1)…(n+m-k)) for n real, m
    fake rows, about 1 - 2^-k for equal ones. So compare equal numbers, and report the floor, too: real held-out rows.

    Args:
        real: Features of real data, `(n, d)`, n > k.
        fake: Features of samples, `(m, d)`, m > k.
        k: Which neighbour sets the radius.
        block: Samples whose distances are in memory at a time; does not change the result.

    Raises: UserError: If a set has too few rows, values that are not finite, or another d, or if k is not positive.
    Source: Kynkäänniemi et al. 2019, eq. 1 and 2; Naeem et al. 2020, eq. 4, 5 and 9.
    """
    if k < 1:
        raise UserError(f"k counts neighbours from 1 on, not {k}")
    x, y = as_features(real, "real", k + 1), as_features(fake, "fake", k + 1)
    same_width(x, y)
    x, y = x - x.mean(0), y - x.mean(0)  # nearer to 0 the expanded squares round less
    real_radii, fake_radii = _radii(x, k), _radii(y, k)
    around = np.empty(len(y), dtype=np.int64)
    recalled, covered = np.zeros(len(x), dtype=bool), np.zeros(len(x), dtype=bool)
    for span in spans(len(y), block):
        distances = euclidean_distances(y[span], x)
        inside = distances <= real_radii
        around[span] = inside.sum(1)
        covered |= inside.any(0)
        recalled |= (distances <= fake_radii[span, None]).any(0)
    return PRDC(float((around > 0).mean()), float(recalled.mean()), float(around.mean() / k), float(covered.mean()))


class Entropy(NamedTuple):
    """Entropy in nats, and as a share of the largest possible one."""

    nats: float
    share: float


def entropy_over_classes(labels: ArrayLike, classes: int) -> Entropy:
    """Return -sum p log p of the classes' shares p, and that over log(classes): 1 for all classes alike, 0 for one.

    With n labels it is too low by about (classes - 1) / 2n (Miller & Madow 1955): compare equal numbers only.

    Args:
        labels: Class of each sample, integers `(n,)` in [0, classes).
        classes: How many there are, 2 or more.

    Raises: UserError: If there is no label, one is no class, or there are fewer than two classes.
    Source: Shannon 1948, section 6.
    """
    given = np.asarray(labels)
    if classes < 2:
        raise UserError(f"an entropy over classes needs 2 or more, not {classes}")
    if given.ndim != 1 or not given.size or not np.issubdtype(given.dtype, np.integer):
        raise UserError(f"labels must be whole numbers of shape (n,), not {given.dtype} of shape {given.shape}")
    if given.min() < 0 or given.max() >= classes:
        raise UserError(f"labels run from {given.min()} to {given.max()}, beyond the {classes} classes from 0 on")
    shares = np.bincount(given) / given.size
    seen = shares[shares > 0]
    nats = abs(float((seen * np.log(seen)).sum()))
    return Entropy(nats, nats / float(np.log(classes)))


class Nearest(NamedTuple):
    """For each row its nearest training row, the distance d1 to it, and d1/d2 with the second nearest row's d2."""

    row: NDArray[np.int64]
    distance: Rows
    ratio: Rows


@dataclass(frozen=True)
class Memorised:
    """Whether samples lie nearer to training rows than held-out rows do.

    Attributes:
        near: Share of samples whose distance d1 is within the held-out rows' 1st percentile.
        near_ratio: Share of samples whose d1/d2 is.
        expected: What both shares are on average if nothing was memorised.
        p_value: Chance of such shares or larger ones if samples were held-out data.
        copies: The verdict: whether `p_value` is below `alpha`.
        alpha: The share of honest models that the verdict may accuse.
        pairs: Sample and training row of the closest pairs, closest first.
    """

    near: float
    near_ratio: float
    expected: float
    p_value: float
    copies: bool
    alpha: float
    pairs: tuple[tuple[int, int], ...]


def _apart(x: Rows, y: Rows) -> Rows:
    """Return |x - y| row by row, from differences: exactly 0 for copies, which an expanded square is not."""
    distances = np.empty(len(x))
    for span in spans(len(x), 1024):
        distances[span] = np.linalg.norm(x[span] - y[span], axis=1)
    return distances


def _nearest(rows: Rows, versions: Rows, each: int, search: NearestNeighbors) -> Nearest:
    """Search the nearest and the second nearest training row, each of which has `each` versions."""
    nearest = search.kneighbors(rows, return_distance=False)
    owner = nearest // each
    other = (owner != owner[:, :1]).argmax(1)  # among each + 1 versions stand two rows or more
    first = _apart(rows, versions[nearest[:, 0]])
    second = _apart(rows, versions[nearest[np.arange(len(rows)), other]])
    ratio = np.divide(first, second, out=np.ones_like(first), where=second > 0)  # 0/0: a training row is there twice
    return Nearest(owner[:, 0], first, ratio)


def _judge(samples: Rows, heldout: Rows, rank: int) -> tuple[float, float]:
    """Return the share of samples within the held-out rows' `rank`-th least value, and its tail probability."""
    limit = np.sort(heldout)[rank - 1]
    held, count = int((heldout <= limit).sum()), int((samples <= limit).sum())
    return count / len(samples), float(betabinom.sf(count - 1, len(samples), held, len(heldout) + 1 - held))


def memorised(
    samples: ArrayLike, train: ArrayLike, heldout: ArrayLike, alpha: float = 0.001, pairs: int = 32
) -> Memorised:
    """Ask whether more than 1 % of samples lie within the 1st percentile of the held-out rows' distances to training.

    Two distances are read: d1 to the nearest training row, and d1/d2 with d2 to the second nearest *other* row, which
    sees copies whose distance is hidden by noise. Each has the tail of a beta-binomial: a binomial whose 1 % is itself
    only known from the held-out rows, m of them. p_value is twice the smaller tail (two looks). Samples must be
    independent, and drawn like the held-out rows: the same classes, the same resolution and rounding. A large p_value
    says that few samples are copies as these features see them, not that there are none.

    Few held-out rows cost sight: of 1,000 samples 5 % copies show from about 250 held-out rows on.

    Shifts hide copies in raw pixels. On 8×8 digits, copies shifted by a third of a pixel lie at 16.7 (median), honest
    held-out digits at 18.5, their 1st percentile at 10: none is found. Either give features that do not see shifts, or
    training rows in several versions: a distance to a row is then the least over its versions, for samples and
    held-out rows alike, and all such copies are found.

    Args:
        samples: Features, `(n, d)`.
        train: Features of all training rows, `(rows, d)`, or of versions of them, `(rows, versions, d)`; two or more.
        heldout: Features of real rows that were not trained on, `(m, d)`, m ≥ 100: below there is no 1st percentile.
        alpha: Chance of accusing an honest model.
        pairs: Closest pairs to name, at most.

    Raises: UserError: If a set has too few rows, values that are not finite, or another d.
    Source: Meehan et al. 2020 (held-out calibration); Yoon et al. 2023 (the ratio d1/d2).
    """
    stack = np.asarray(train, dtype=np.float64)
    each = stack.shape[1] if stack.ndim == 3 else 1
    versions = as_features(stack.reshape(-1, stack.shape[-1]) if stack.ndim == 3 else stack, "training", 2 * each)
    x, held = as_features(samples, "sample", 1), as_features(heldout, "held-out", 100)
    same_width(x, versions, held)
    search = NearestNeighbors(n_neighbors=each + 1).fit(versions)
    mine, real = _nearest(x, versions, each, search), _nearest(held, versions, each, search)
    rank = len(held) // 100
    near, near_tail = _judge(mine.distance, real.distance, rank)
    ratio, ratio_tail = _judge(mine.ratio, real.ratio, rank)
    p_value = min(1.0, 2 * min(near_tail, ratio_tail))
    order = np.lexsort((mine.ratio, mine.distance))[:pairs]
    closest = tuple((int(index), int(mine.row[index])) for index in order)
    return Memorised(near, ratio, rank / (len(held) + 1), p_value, p_value < alpha, alpha, closest)
