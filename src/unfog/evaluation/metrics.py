"""Scores of a set of samples against real data, on plain arrays of rows."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors
from sklearn.svm import SVC

from unfog.errors import UserError

Rows = NDArray[np.float64]


def fit_reader(x: Rows, labels: NDArray[np.int64]) -> SVC:
    """Return a support-vector classifier of rows, fitted on real data.

    Args:
        x: Rows, `(count, features)`.
        labels: Their classes, `(count,)`.
    """
    return SVC(C=10.0, gamma="scale").fit(x, labels)


class Distances(NamedTuple):
    """Distances from samples to their nearest training rows: median and 5th percentile."""

    median: float
    low: float


def nearest_distances(samples: Rows, train: Rows) -> Distances:
    """Return how far samples lie from the training set: far below held-out data means copies.

    Args:
        samples: Rows, `(count, features)`.
        train: Rows, `(rows, features)`.
    """
    distances = NearestNeighbors(n_neighbors=1).fit(train).kneighbors(samples)[0][:, 0]
    return Distances(float(np.median(distances)), float(np.percentile(distances, 5)))


def coverage(samples: Rows, train: Rows, k: int = 5) -> float:
    """Return the share of training rows with a sample within the distance to their k-th nearest neighbour.

    It depends on the number of samples: compare equal numbers only.

    Args:
        samples: Rows, `(count, features)`.
        train: Rows, `(rows, features)`, more than `k` of them.
        k: Which neighbour sets the radius.

    Raises: UserError: If there are too few training rows.
    Source: Naeem et al. 2020, Reliable Fidelity and Diversity Metrics for Generative Models, eq. 5.
    """
    if len(train) <= k:
        raise UserError(f"coverage with k = {k} needs more than {k} training rows, not {len(train)}")
    radius = NearestNeighbors(n_neighbors=k + 1).fit(train).kneighbors(train)[0][:, k]
    to_sample = NearestNeighbors(n_neighbors=1).fit(samples).kneighbors(train)[0][:, 0]
    return float((to_sample <= radius).mean())


def block_coverage(samples: Rows, train: Rows, size: int, k: int = 5) -> float:
    """Return the mean coverage over disjoint blocks of `size` samples."""
    blocks = max(1, len(samples) // size)
    return float(np.mean([coverage(samples[i * size : (i + 1) * size], train, k) for i in range(blocks)]))
