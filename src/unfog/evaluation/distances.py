"""Distances between two sets of features: Fréchet and kernel distance. Arrays in, numbers out."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from unfog.runtime.errors import UserError

Rows = NDArray[np.float64]


def as_features(x: ArrayLike, name: str, least: int) -> Rows:
    """Return features in float64 after checking their shape, number and values.

    Args:
        x: Features, `(n, d)`.
        name: What the set is called in messages.
        least: The fewest rows that make sense.

    Raises: UserError: If `x` is no matrix, has fewer rows than `least` or a value that is not finite.
    """
    rows = np.asarray(x, dtype=np.float64)
    if rows.ndim != 2 or not rows.shape[1]:
        raise UserError(f"the {name} features must be of shape (n, d), not {rows.shape}")
    if len(rows) < least:
        raise UserError(f"the {name} set has {len(rows)} rows of {rows.shape[1]} features: give {least} rows or more")
    bad = int((~np.isfinite(rows)).any(1).sum())
    if bad:
        raise UserError(f"the {name} features are not finite in {bad} of {len(rows)} rows: remove these rows")
    return rows


def same_width(*sets: Rows) -> None:
    """Refuse sets with different numbers of features.

    Raises: UserError: If they differ.
    """
    widths = [rows.shape[1] for rows in sets]
    if len(set(widths)) > 1:
        raise UserError(f"the sets have {' and '.join(map(str, widths))} features: take both from one extractor")


def spans(count: int, block: int) -> Iterator[slice]:
    """Yield consecutive slices of at most `block` rows.

    Raises: UserError: If `block` is not positive.
    """
    if block < 1:
        raise UserError(f"a block needs 1 row or more, not {block}")
    return (slice(first, min(first + block, count)) for first in range(0, count, block))


class Moments(NamedTuple):
    """Mean, `(d,)`, and covariance, `(d, d)`, of a distribution of features."""

    mean: Rows
    covariance: Rows


def moments(x: ArrayLike, name: str = "given") -> Moments:
    """Return mean and covariance, sum (x - mean)(x - mean)ᵀ / (n - 1).

    Args:
        x: Features, `(n, d)`, with n > d: below, the covariance has no full rank and its root no meaning.
        name: What the set is called in messages.

    Raises: UserError: If there are fewer than d + 1 rows, or values that are not finite.
    """
    rows = as_features(x, name, 1)
    rows = as_features(rows, name, max(2, rows.shape[1] + 1))
    mean = rows.mean(0)
    centred = rows - mean
    return Moments(mean, centred.T @ centred / (len(rows) - 1))


def _root(covariance: Rows) -> Rows:
    """Return the symmetric square root; eigenvalues that rounding made negative count as 0."""
    values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    rounding = len(values) * np.finfo(values.dtype).eps * values.max()  # what is smaller is 0; its root would be large
    root: Rows = (vectors * np.sqrt(np.where(values > rounding, values, 0))) @ vectors.T
    return root


def frechet_of_moments(a: Moments, b: Moments) -> float:
    """Return |mu_a - mu_b|² + tr(S_a + S_b - 2 (S_a S_b)^½), the squared 2-Wasserstein distance of two Gaussians.

    The trace of the root is that of (S_a^½ S_b S_a^½)^½: the sum of the singular values of S_a^½ S_b^½. So no root
    of an unsymmetric matrix is taken, which can come out complex, and no small eigenvalue is squared.

    Args:
        a: Mean and covariance of one side.
        b: Of the other.

    Source: Dowson & Landau 1982; Heusel et al. 2017, eq. 6.
    """
    crossed = np.linalg.svd(_root(a.covariance) @ _root(b.covariance), compute_uv=False).sum()
    shift = a.mean - b.mean
    return float(shift @ shift + np.trace(a.covariance) + np.trace(b.covariance) - 2 * crossed)


def frechet(a: ArrayLike, b: ArrayLike) -> float:
    """Return the Fréchet distance of two sets: |mu_a - mu_b|² + tr(S_a + S_b - 2 (S_a S_b)^½).

    It is biased upward by about c/n with a c that depends on the model: compare equal numbers of rows only. It may
    come out below 0 by rounding. An interval of its mean over sets of this size, with that bias, is
    `bootstrap(frechet, a, b, method="halves")`, for n > 2d.

    Args:
        a: Features, `(n, d)`, n > d.
        b: Features, `(m, d)`, m > d.

    Raises: UserError: If a set has fewer than d + 1 rows, values that are not finite, or another d.
    Source: Heusel et al. 2017, eq. 6; Chong & Forsyth 2020, section 3, for the bias.
    """
    first, second = moments(a, "first"), moments(b, "second")
    same_width(first.covariance, second.covariance)
    return frechet_of_moments(first, second)


class KernelDistance(NamedTuple):
    """An estimate of a squared maximum mean discrepancy, and its standard error."""

    value: float
    error: float


def _sums(x: Rows, y: Rows, block: int, skip_own: bool = False) -> tuple[Rows, Rows]:
    """Return the row and the column sums of (x·y/d + 1)³, `(n,)` and `(m,)`, without a row's pair with itself."""
    by_row, by_column = np.empty(len(x)), np.zeros(len(y))
    for span in spans(len(x), block):
        kernel = (x[span] @ y.T / x.shape[1] + 1) ** 3
        if skip_own:
            kernel[np.arange(len(kernel)), np.arange(span.start, span.stop)] = 0
        by_row[span] = kernel.sum(1)
        by_column += kernel.sum(0)
    return by_row, by_column


def kernel_distance(a: ArrayLike, b: ArrayLike, block: int = 1024) -> KernelDistance:
    """Return the unbiased MMD² = mean k(a, a') + mean k(b, b') - 2 mean k(a, b), with k(x, y) = (x·y/d + 1)³.

    All pairs of the two sets count, once each, and no row is paired with itself: the value is that of the whole set
    and expects 0 for sets of one distribution, where it is negative half of the time. The standard error is the
    jackknife's, which leaves out each row of either set once. It is conservative, by up to √2 where the two
    distributions are equal. The error falls with n, the expected value does not.

    Args:
        a: Features, `(n, d)`, n ≥ 3.
        b: Features, `(m, d)`, m ≥ 3.
        block: Rows of the kernel matrix that are in memory at a time; does not change the result.

    Raises: UserError: If a set has fewer than 3 rows, values that are not finite, or another d.
    Source: Bińkowski et al. 2018, Demystifying MMD GANs, section 4; Gretton et al. 2012, eq. 3; Efron & Stein 1981.
    """
    x, y = as_features(a, "first", 3), as_features(b, "second", 3)
    same_width(x, y)
    n, m = len(x), len(y)
    within_x, within_y = _sums(x, x, block, skip_own=True)[0], _sums(y, y, block, skip_own=True)[0]
    from_x, from_y = _sums(x, y, block)
    inner_x, inner_y, cross = within_x.sum(), within_y.sum(), from_x.sum()
    mean_x, mean_y = inner_x / (n * (n - 1)), inner_y / (m * (m - 1))

    def jackknife(size: int, other: int, within: Rows, mean: float, between: Rows) -> float:
        """Return the variance from leaving out each of `size` rows, the other set as it is."""
        own = (within.sum() - 2 * within) / ((size - 1) * (size - 2))
        left = own + mean - 2 * (cross - between) / ((size - 1) * other)
        return (size - 1) / size * float(((left - left.mean()) ** 2).sum())

    variance = 0.0 + jackknife(n, m, within_x, mean_y, from_x) + jackknife(m, n, within_y, mean_x, from_y)
    return KernelDistance(float(mean_x + mean_y - 2 * cross / (n * m)), variance**0.5)
