"""Distances, neighbours and intervals: closed forms, literal loops, other people's code, and planted copies."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.ndimage import shift
from scipy.stats import betabinom
from sklearn.datasets import load_digits

from unfog.evaluation.distances import (
    Moments,
    Rows,
    as_features,
    frechet,
    frechet_of_moments,
    kernel_distance,
    moments,
    spans,
)
from unfog.evaluation.intervals import Protocol, Scored, Sets, bootstrap, of_difference, of_mean
from unfog.evaluation.neighbours import entropy_over_classes, memorised, prdc
from unfog.runtime.errors import UserError


def draw(seed: int, *shape: int) -> Rows:
    return np.random.default_rng(seed).standard_normal(shape)


def a_rotation(seed: int, d: int) -> Rows:
    return np.linalg.qr(draw(seed, d, d))[0]


def a_covariance(seed: int, d: int) -> Rows:
    root = draw(seed, d, d)
    return root @ root.T / d


# ------------------------------------------------------------------------------------------ Fréchet distance


def test_frechet_of_gaussians_on_common_axes() -> None:
    """There it is |shift|² + sum (√s_a - √s_b)²."""
    turn = a_rotation(0, 4)
    a, b, apart = np.array([0.5, 1, 2, 0]), np.array([1, 1, 0.1, 3]), np.array([1.0, -2, 0, 0.5])
    found = frechet_of_moments(
        Moments(np.zeros(4), turn @ np.diag(a) @ turn.T), Moments(apart, turn @ np.diag(b) @ turn.T)
    )
    assert found == pytest.approx(apart @ apart + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum(), rel=1e-12)


def test_frechet_of_covariances_that_do_not_commute() -> None:
    """Of 2×2 matrices: tr √M = √(tr M + 2 √det M)."""
    a, b = np.array([[2.0, 0.5], [0.5, 1.0]]), np.array([[1.0, -0.8], [-0.8, 3.0]])
    assert np.abs(a @ b - b @ a).max() > 0.1
    crossed = np.sqrt(np.trace(a @ b) + 2 * np.sqrt(np.linalg.det(a) * np.linalg.det(b)))
    expected = np.trace(a) + np.trace(b) - 2 * crossed
    assert frechet_of_moments(Moments(np.ones(2), a), Moments(np.ones(2), b)) == pytest.approx(expected, rel=1e-12)


def test_frechet_of_samples_approaches_that_of_their_gaussians() -> None:
    a, b = Moments(np.zeros(3), a_covariance(1, 3)), Moments(np.array([0.3, 0, -1]), a_covariance(2, 3))
    x, y = (
        side.mean + draw(seed, 200_000, 3) @ np.linalg.cholesky(side.covariance).T for seed, side in ((3, a), (4, b))
    )
    assert frechet(x, y) == pytest.approx(frechet_of_moments(a, b), rel=0.01)


def test_moments_are_those_of_numpy() -> None:
    x = draw(0, 50, 4) + 100
    found = moments(x)
    np.testing.assert_allclose(found.mean, x.mean(0))
    np.testing.assert_allclose(found.covariance, np.cov(x.T), rtol=1e-12)


@given(seed=st.integers(0, 10**6), d=st.integers(1, 12))
@settings(max_examples=30, deadline=None)
def test_frechet_is_a_distance_that_knows_no_axes_and_no_order(seed: int, d: int) -> None:
    x, y = draw(seed, 2 * d + 3, d), 0.3 + 2 * draw(seed + 1, 3 * d + 5, d)
    turn = a_rotation(seed + 2, d)
    expected = frechet(x, y)
    assert expected > 0
    assert frechet(y, x) == pytest.approx(expected, rel=1e-9)
    assert frechet(x @ turn + 5, y @ turn + 5) == pytest.approx(expected, rel=1e-9)
    assert frechet(x[::-1], np.roll(y, 3, axis=0)) == pytest.approx(expected, rel=1e-9)
    assert frechet(3 * x, 3 * y) == pytest.approx(9 * expected, rel=1e-9)
    assert abs(frechet(x, x[::-1])) < 1e-12 * d


def test_frechet_of_dead_features_is_real_and_exact() -> None:
    """Constant and repeated features make the covariances singular: a root of their product may come out complex."""
    x, y = draw(0, 100, 5), draw(1, 100, 5)
    wide = [np.concatenate([rows, rows, np.ones((100, 3))], 1) for rows in (x, y)]
    assert frechet(wide[0], wide[1]) == pytest.approx(2 * frechet(x, y), rel=1e-6)
    assert abs(frechet(wide[0], wide[0])) < 1e-12


@pytest.mark.parametrize("swap", [False, True])
def test_frechet_needs_more_rows_than_features(swap: bool) -> None:
    x, y = draw(0, 9, 9), draw(1, 10, 9)
    with pytest.raises(UserError, match=f"{'second' if swap else 'first'} set has 9 rows of 9 features: give 10 rows"):
        frechet(*((y, x) if swap else (x, y)))
    assert frechet(y, y + 1) == pytest.approx(9)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_features_must_be_finite(bad: float) -> None:
    x = draw(0, 20, 3)
    x[4, 1] = bad
    for judge in (frechet, kernel_distance, prdc):
        with pytest.raises(UserError, match="not finite in 1 of 20 rows"):
            judge(draw(1, 20, 3), x)


def test_features_must_be_matrices_of_one_width() -> None:
    for judge in (frechet, kernel_distance, prdc):
        with pytest.raises(UserError, match="3 and 4 features"):
            judge(draw(0, 20, 3), draw(0, 20, 4))
    with pytest.raises(UserError, match=r"shape \(n, d\), not \(20,\)"):
        frechet(draw(0, 20), draw(0, 20))
    assert as_features(np.full((2, 1), 1e308), "large", 1).shape == (2, 1)  # its sum overflows, its values do not
    with pytest.raises(UserError, match="a block needs"):
        spans(3, 0)


# ------------------------------------------------------------------------------------------- kernel distance


def kernel_by_loops(x: Rows, y: Rows) -> float:
    def mean(a: Rows, b: Rows, own: bool) -> float:
        pairs = [(a[i] @ b[j] / a.shape[1] + 1) ** 3 for i in range(len(a)) for j in range(len(b)) if own or i != j]
        return float(np.mean(pairs))

    return mean(x, x, False) + mean(y, y, False) - 2 * mean(x, y, True)


def test_kernel_distance_by_loops() -> None:
    x, y = draw(0, 11, 3), 0.5 + draw(1, 7, 3)
    found = kernel_distance(x, y)
    assert found.value == pytest.approx(kernel_by_loops(x, y), rel=1e-12)
    variance = 0.0
    for left in ([kernel_by_loops(np.delete(x, i, 0), y) for i in range(11)],
                 [kernel_by_loops(x, np.delete(y, i, 0)) for i in range(7)]):  # fmt: skip
        variance += (len(left) - 1) * np.var(left)
    assert found.error == pytest.approx(variance**0.5, rel=1e-10)


def test_kernel_distance_knows_no_axes_and_no_order() -> None:
    x, y, turn = draw(0, 60, 5), 0.5 + draw(1, 40, 5), a_rotation(2, 5)
    expected = kernel_distance(x, y)
    for same in (kernel_distance(y, x), kernel_distance(x @ turn, y @ turn), kernel_distance(x[::-1], y[::-1])):
        assert same == pytest.approx(expected, rel=1e-10)


def test_kernel_distance_is_unbiased_and_its_error_is_honest() -> None:
    """Over 300 draws: the mean is that of a hundred times as many rows, and the standard errors match the spread."""
    many = [
        [kernel_distance(draw(2 * i, 30, 2), apart + draw(2 * i + 1, 30, 2)) for i in range(300)] for apart in (0, 1)
    ]
    truth = [0.0, kernel_distance(draw(1, 3000, 2), 1 + draw(2, 3000, 2)).value]
    for found, expected, (low, high) in zip(many, truth, ((1.0, 1.8), (0.9, 1.2)), strict=True):
        values = np.array([one.value for one in found])
        spread = values.std()
        assert abs(values.mean() - expected) < 3.5 * spread / 300**0.5
        assert low < np.sqrt(np.mean([one.error**2 for one in found])) / spread < high


# -------------------------------------------------------------------------- precision, recall, density, coverage


def prdc_by_loops(real: Rows, fake: Rows, k: int) -> tuple[float, ...]:
    def radius(rows: Rows, i: int) -> float:
        return sorted(float(np.linalg.norm(rows[i] - rows[j])) for j in range(len(rows)) if j != i)[k - 1]

    precise = recalled = covered = balls = 0
    for y in fake:
        hits = sum(np.linalg.norm(y - real[i]) <= radius(real, i) for i in range(len(real)))
        precise, balls = precise + (hits > 0), balls + hits
    for i, x in enumerate(real):
        recalled += any(np.linalg.norm(x - fake[j]) <= radius(fake, j) for j in range(len(fake)))
        covered += any(np.linalg.norm(x - y) <= radius(real, i) for y in fake)
    return precise / len(fake), recalled / len(real), balls / (k * len(fake)), covered / len(real)


@pytest.mark.parametrize(("k", "d"), [(1, 1), (3, 2), (5, 20)])
def test_prdc_by_loops(k: int, d: int) -> None:
    real, fake = draw(k, 25, d), 0.4 + 0.7 * draw(k + 1, 18, d)
    assert prdc(real, fake, k) == pytest.approx(prdc_by_loops(real, fake, k))


def test_precision_and_recall_are_not_swapped() -> None:
    real, one, wide = draw(0, 500, 2), 0.1 * draw(1, 500, 2), 5 * draw(2, 500, 2)
    collapsed, diverse = prdc(real, one), prdc(real, wide)
    assert collapsed.precision == 1
    assert collapsed.recall < 0.1
    assert collapsed.coverage < 0.2
    assert diverse.precision < 0.3
    assert diverse.recall > 0.9
    assert collapsed.density > 3 * diverse.density


def test_prdc_of_one_distribution_is_as_its_docstring_says() -> None:
    found = np.array([prdc(draw(i, 100, 3), draw(1000 + i, 60, 3), k=3) for i in range(40)])
    j = np.arange(1, 4)
    assert found[:, 2].mean() == pytest.approx(1, abs=0.05)
    assert found[:, 3].mean() == pytest.approx(1 - np.prod((100 - j) / (160 - j)), abs=0.02)


def test_far_rows_are_in_no_ball_and_copies_in_all() -> None:
    x = draw(0, 50, 3)
    assert prdc(x, x + 100) == (0, 0, 0, 0)
    same = prdc(x, x)
    assert (same.precision, same.recall, same.coverage) == (1, 1, 1)
    assert same.density == pytest.approx(6 / 5)  # the row itself and its five neighbours


def test_prdc_needs_more_rows_than_neighbours() -> None:
    with pytest.raises(UserError, match="fake set has 5 rows of 2 features: give 6"):
        prdc(draw(0, 6, 2), draw(1, 5, 2))
    with pytest.raises(UserError, match="from 1 on, not 0"):
        prdc(draw(0, 6, 2), draw(1, 6, 2), k=0)


def test_no_result_depends_on_blocks() -> None:
    x, y = draw(0, 300, 20), 0.2 + draw(1, 250, 20)
    for block in (1, 7, 100, 249):
        assert prdc(x, y, block=block) == prdc(x, y)
        assert kernel_distance(x, y, block=block) == pytest.approx(kernel_distance(x, y), rel=1e-10, abs=0)


# -------------------------------------------------------------------------------------------------- entropy


def test_entropy_over_classes() -> None:
    assert entropy_over_classes(np.arange(40) % 10, 10) == pytest.approx((np.log(10), 1))
    assert entropy_over_classes(np.arange(40) % 5, 10) == pytest.approx((np.log(5), np.log(5) / np.log(10)))
    assert entropy_over_classes([3, 3, 3], 10) == (0, 0)
    expected = -(0.25 * np.log(0.25) + 0.75 * np.log(0.75))
    assert entropy_over_classes([1, 0, 0, 0], 2).nats == pytest.approx(expected)


@pytest.mark.parametrize(
    ("labels", "classes", "says"),
    [
        ([0, 10], 10, "from 0 to 10, beyond the 10"),
        ([-1, 2], 10, "from -1 to 2"),
        ([], 10, "whole"),
        ([0.5], 10, "whole numbers"),
        ([0], 1, "2 or more"),
    ],
)
def test_labels_must_be_classes(labels: list[float], classes: int, says: str) -> None:
    with pytest.raises(UserError, match=says):
        entropy_over_classes(labels, classes)


# ---------------------------------------------------------------------------------------------- memorisation

PIXELS: Rows = load_digits().data


def shifted(rows: Rows, down: float, right: float) -> Rows:
    return np.stack([shift(row.reshape(8, 8), (down, right), order=1).ravel() for row in rows])


def versions(rows: Rows) -> Rows:
    """Return nine versions of each row, a third of a pixel apart, `(rows, 9, 64)`."""
    return np.stack([shifted(rows, i / 3, j / 3) for i in (-1, 0, 1) for j in (-1, 0, 1)], 1)


def split(seed: int) -> tuple[Rows, Rows, Rows]:
    """Return 597 training rows, 250 held-out ones and 950 that play an honest model's samples."""
    rows = PIXELS[np.random.default_rng(seed).permutation(len(PIXELS))]
    return rows[:597], rows[597:847], rows[847:]


def test_honest_samples_are_not_accused() -> None:
    found = [memorised(samples, train, heldout) for train, heldout, samples in map(split, range(20))]
    assert sum(one.copies for one in found) == 0
    assert sum(one.p_value < 0.05 for one in found) <= 4
    assert np.mean([one.near for one in found]) == pytest.approx(found[0].expected, abs=0.006)
    assert np.mean([one.near_ratio for one in found]) == pytest.approx(found[0].expected, abs=0.006)


@pytest.mark.parametrize("kind", ["exact", "noisy", "shifted"])
def test_planted_copies_are_found(kind: str) -> None:
    """50 among 1,000; shifted ones by versions of the training rows, among which their own shift is not."""
    train, heldout, samples = split(5)
    chosen = np.random.default_rng(0).choice(len(train), 50, replace=False)
    planted = train[chosen]
    if kind == "noisy":
        planted = planted + 0.5 * draw(1, 50, 64)
    if kind == "shifted":
        planted = shifted(planted, 0.3, -0.36)
    mixed = np.concatenate([samples, planted])
    found = memorised(mixed, versions(train) if kind == "shifted" else train, heldout, pairs=50)
    assert found.copies
    assert found.p_value < 0.001
    assert found.near >= 0.05
    truth = {(950 + i, int(row)) for i, row in enumerate(chosen)}
    assert len(truth & set(found.pairs)) >= 45
    if kind == "exact":
        assert found.pairs[0][0] == 950  # in order, and the first of equals first
    if kind == "shifted":
        assert not memorised(mixed, train, heldout).copies  # in raw pixels they lie as far as real digits
        assert not memorised(samples, versions(train), heldout).copies


def test_the_ratio_sees_copies_that_the_distance_does_not() -> None:
    """Rows of low and of high spread: copies of the latter with noise lie as far as the former's neighbours."""
    d = 20
    tight = lambda seed, n: 0.1 * draw(seed, n, d)  # noqa: E731
    loose = lambda seed, n: 50 + 10 * draw(seed, n, d)  # noqa: E731
    train, held, honest = (np.concatenate([tight(s, n), loose(s + 1, n)]) for s, n in ((0, 300), (2, 200), (4, 400)))
    copies = train[300:350] + 0.25 * draw(6, 50, d)
    found = memorised(np.concatenate([honest, copies]), train, held)
    assert found.near < 0.03
    assert found.near_ratio > 0.05
    assert found.copies


def test_memorised_by_hand() -> None:
    """On a line: distances, ratios, the order of pairs, and the tail."""
    train = np.array([[0.0], [10.0], [30.0]])
    heldout = np.linspace(1, 4.9, 200)[:, None]
    samples = np.array([[10.5], [0.25], [15.0], [32.0], [0.0]])
    found = memorised(samples, train, heldout, pairs=4)
    assert found.pairs == ((4, 0), (1, 0), (0, 1), (3, 2))
    assert found.near == 3 / 5  # the second least held-out distance is 1.02
    assert found.near_ratio == 4 / 5  # its ratio 1.02/8.98, and that of 32 is 2/22
    assert found.expected == 2 / 201
    assert found.p_value == pytest.approx(2 * betabinom.sf(3, 5, 2, 199))
    assert found.copies


def test_another_version_of_a_row_is_no_second_row() -> None:
    train = np.array([[[0.0], [1.0]], [[10.0], [11.0]]])
    heldout = np.linspace(3, 4.9, 200)[:, None]  # ratios from 2/7 on
    found = memorised(np.array([[0.4], [10.45]]), train, heldout)
    assert found.pairs == ((0, 0), (1, 1))
    assert found.near_ratio == 1  # 0.4/9.6 and 0.45/9.45; with the other version of the same row 0.4/0.6


def test_duplicates_in_the_training_set_accuse_nobody() -> None:
    """Where held-out rows are in the training set too, honest samples may be so."""
    train, heldout, samples = split(0)
    train = np.concatenate([train, heldout[:20], samples[:76]])
    found = memorised(samples, train, heldout)
    assert not found.copies
    twice = memorised(samples, np.concatenate([train, train]), heldout)
    assert twice.near_ratio == 1.0  # d1 = d2 everywhere, and so for the held-out rows: no evidence
    assert not twice.copies


def test_memorised_needs_rows() -> None:
    x = draw(0, 200, 2)
    with pytest.raises(UserError, match="held-out set has 99 rows of 2 features: give 100"):
        memorised(x, x, x[:99])
    with pytest.raises(UserError, match="training set has 1 rows"):
        memorised(x, x[:1], x)
    with pytest.raises(UserError, match="features: take both from one"):
        memorised(x, draw(0, 50, 9, 3), x)


# ------------------------------------------------------------------------------------------------- intervals


def test_an_interval_is_a_function_of_the_seed() -> None:
    x = draw(0, 50)
    first = bootstrap(np.mean, x, seed=3)
    assert bootstrap(np.mean, x, seed=3) == first
    assert bootstrap(np.mean, x, seed=4) != first
    assert first.low < x.mean() < first.high


@pytest.mark.parametrize("method", ["percentile", "halves"])
def test_an_interval_of_a_mean_is_the_normal_one(method: str) -> None:
    x, y = draw(0, 400), 1 + 2 * draw(1, 300)
    expected = y.mean() - x.mean() + 1.96 * np.sqrt(x.var() / 400 + y.var() / 300) * np.array([-1, 1])
    found = bootstrap(lambda a, b: b.mean() - a.mean(), x, y, resamples=4000, method=method)  # type: ignore[arg-type]
    np.testing.assert_allclose(found, expected, atol=0.02)


def test_level_and_skew() -> None:
    """The percentiles keep the skew of a squared mean, and halves hold the value."""
    x = 0.1 + draw(0, 100)
    square = lambda a: float(a.mean() ** 2)  # noqa: E731
    inner, outer = bootstrap(square, x, level=0.5), bootstrap(square, x)
    assert outer.low < inner.low < inner.high < outer.high
    halves = bootstrap(square, x, method="halves")
    assert halves.low <= square(x) <= halves.high


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"), [(0, 10, 0.0, 0.30850), (10, 10, 0.69150, 1.0), (2, 2, 0.15811, 1.0)]
)
def test_proportions_have_their_exact_interval(hits: int, count: int, low: float, high: float) -> None:
    """The ends where all or none are right: 1 - 0.025^(1/n) from there."""
    rows = np.r_[np.ones(hits), np.zeros(count - hits)]
    np.testing.assert_allclose(of_mean(rows), (low, high), atol=5e-6)


@pytest.mark.parametrize("share", [0.001, 0.3, 0.95, 0.999])
def test_intervals_of_proportions_hold_the_truth(share: float) -> None:
    """In 95 % of cases and more, where the percentiles do so in two of three."""
    draws = np.random.default_rng(0).binomial(1000, share, 2000)
    held = [of_mean(np.r_[np.ones(hits), np.zeros(1000 - hits)]) for hits in np.unique(draws)]
    inside = dict(zip(np.unique(draws), (one.low <= share <= one.high for one in held), strict=True))
    assert np.mean([inside[hits] for hits in draws]) >= 0.945


def test_other_means_are_resampled() -> None:
    rows = draw(0, 50) + 3
    assert of_mean(rows, seed=3) == bootstrap(np.mean, rows, seed=3)


def test_differences_of_proportions_hold_the_truth() -> None:
    """Two models right in 99.5 % and 98.5 % of 500 samples, most of them the same; and two that are always right."""
    rng, held = np.random.default_rng(0), 0
    for _ in range(1000):
        kinds = rng.choice(3, 500, p=[0.98, 0.015, 0.005])  # both right, only the first, only the second
        low, high = of_difference((kinds < 2).astype(float), (kinds != 1).astype(float))
        held += low <= 0.01 <= high
    assert 930 <= held <= 990
    low, high = of_difference(np.ones(100), np.ones(100))
    assert low == -high < 0


def test_pairs_cancel_what_two_models_share() -> None:
    """Scores on the same noises: with a common part the difference is known far better than each."""
    common = 5 * draw(0, 200)
    a, b = common + 0.1 * draw(1, 200), common + 0.1 + 0.1 * draw(2, 200)
    difference = lambda p, q: float(q.mean() - p.mean())  # noqa: E731
    paired, apart = bootstrap(difference, a, b, paired=True), bootstrap(difference, a, b)
    assert paired.high - paired.low < 0.1 * (apart.high - apart.low)
    assert 0 < paired.low < 0.1 < paired.high
    with pytest.raises(UserError, match="200 and 199"):
        bootstrap(difference, a, b[1:], paired=True)


@pytest.mark.parametrize("rows", [1, 3])
def test_intervals_need_rows_and_resamples(rows: int) -> None:
    with pytest.raises(UserError, match="rows or more"):
        bootstrap(np.mean, draw(0, rows), method="percentile" if rows == 1 else "halves")
    with pytest.raises(UserError, match="ask for more"):
        bootstrap(np.mean, draw(0, 10), resamples=39)
    with pytest.raises(UserError, match="ask for more"):
        bootstrap(np.mean, draw(0, 10), level=1.0)
    with pytest.raises(UserError, match="not finite"):
        bootstrap(lambda a: float("nan"), draw(0, 10))


def test_halves_hold_what_such_sets_score_and_percentiles_do_not() -> None:
    """Gaussians of 16 features and 200 rows, whose distance of 1 comes out at 1.85 on average; values lie inside."""
    shift_by = np.zeros(16)
    shift_by[0] = 1

    def sets(case: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return draw(2 * case, 200, 16), shift_by + draw(2 * case + 1, 200, 16)

    middle = np.mean([frechet(*sets(case)) for case in range(300)])
    assert middle == pytest.approx(1.85, abs=0.05)
    held = {"halves": 0, "percentile": 0}
    for case in range(30):
        x, y = sets(case)
        for method in held:
            low, high = bootstrap(frechet, x, y, resamples=80, seed=case, method=method)  # type: ignore[arg-type]
            held[method] += low <= middle <= high
            assert method == "percentile" or low <= frechet(x, y) <= high
    assert held["halves"] >= 25
    assert held["percentile"] <= 3


# ---------------------------------------------------------------------------------------------------- scores


PROTOCOL = Protocol("frechet/pixels", "pixels 12ab", Sets("34cd", 500, 0))


def a_score(value: float = 2.0) -> Scored:
    return Scored(value, value - 0.5, value + 0.5, 1000, 1.0, 5.0, PROTOCOL)


def test_scores_subtract_and_stand_between_floor_and_ceiling() -> None:
    assert a_score(2.0) - a_score(1.5) == 0.5
    assert (a_score(1.0).position, a_score(2.0).position, a_score(5.0).position) == (0, 0.25, 1)
    turned = replace(a_score(0.75), floor=0.8, ceiling=0.4)  # larger is better
    assert turned.position == pytest.approx(0.125)


def other(**changes: Any) -> Protocol:
    return replace(PROTOCOL, sets=replace(PROTOCOL.sets, **changes))


@pytest.mark.parametrize(
    ("different", "says"),
    [
        ({"protocol": other(seed=1)}, "one has 'evaluation seed 0' and the other 'evaluation seed 1'"),
        (
            {"protocol": replace(other(data="56ef"), features="inception 78")},
            "'frechet/pixels by pixels 12ab, data 34cd' and the other 'frechet/pixels by inception 78, data 56ef'",
        ),
        ({"n": 999}, "'n = 1000' and the other 'n = 999'"),
        ({"protocol": other(split="halves")}, "'.* held-out rows' and the other '.* of the other half'"),
        ({"protocol": replace(PROTOCOL, metric="kernel/pixels")}, "kernel"),
    ],
)
def test_scores_of_different_protocols_cannot_be_compared(different: dict[str, object], says: str) -> None:
    with pytest.raises(UserError, match=says):
        a_score() - replace(a_score(), **different)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [{"low": 3.0}, {"n": 0}, {"ceiling": float("inf")}, {"value": float("nan")}])
def test_a_score_must_make_sense(bad: dict[str, float]) -> None:
    with pytest.raises(UserError):
        replace(a_score(), **bad)


def test_a_score_may_have_no_interval_and_no_scale() -> None:
    plain = replace(a_score(), low=None, high=None)
    assert plain.position == 0.25
    with pytest.raises(UserError, match="nothing can be told apart"):
        _ = replace(plain, ceiling=1.0).position


# ---------------------------------------------------------------------------------------------------- parity


class Passed(torch.nn.Module):
    """A feature extractor that hands features on."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def tensors(d: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return draw(0, 300, d) @ a_rotation(1, d) * np.linspace(0.5, 2, d), 0.3 + draw(2, 250, d) @ a_covariance(3, d)


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize("d", [1, 8, 64])
def test_frechet_is_that_of_torchmetrics(d: int) -> None:
    fid = pytest.importorskip("torchmetrics.image.fid").FrechetInceptionDistance(feature=Passed(d))
    x, y = tensors(d)
    fid.update(torch.from_numpy(x), real=True)
    fid.update(torch.from_numpy(y), real=False)
    assert frechet(x, y) == pytest.approx(float(fid.compute()), rel=1e-9)


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance` will save:UserWarning")
@pytest.mark.parametrize("d", [1, 8, 64])
def test_kernel_distance_is_that_of_torchmetrics(d: int) -> None:
    x, y = (rows[:250] for rows in tensors(d))
    module = pytest.importorskip("torchmetrics.image.kid")
    kid = module.KernelInceptionDistance(feature=Passed(d), subsets=1, subset_size=250)  # all rows, in any order
    kid.update(torch.from_numpy(x), real=True)
    kid.update(torch.from_numpy(y), real=False)
    assert kernel_distance(x, y).value == pytest.approx(float(kid.compute()[0]), rel=1e-9)
