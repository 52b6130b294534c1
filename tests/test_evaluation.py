"""Evaluation: scores against brute force, and cheats that the scores together must unmask."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from unfog.data.classic import digits
from unfog.data.points import points
from unfog.data.source import Data, InMemory
from unfog.errors import UserError
from unfog.evaluation.metrics import Rows, block_coverage, coverage, fit_reader, nearest_distances
from unfog.evaluation.report import Evaluation, Judge, Scores, evaluate, table

Labels = NDArray[np.int64]
PASS = {"accuracy": 0.95, "distance_median": 0.8, "distance_low": 0.8, "coverage": 0.8}
"""What samples must reach: an accuracy, and shares of what real held-out digits score."""


def all_distances(a: Rows, b: Rows) -> Rows:
    distances: Rows = np.sqrt(((a[:, None] - b[None]) ** 2).sum(-1))
    return distances


def random_sets(seed: int, samples: int, rows: int, features: int) -> tuple[Rows, Rows]:
    draw = np.random.default_rng(seed)
    return draw.normal(0.3, 0.8, (samples, features)), draw.normal(0, 1, (rows, features))


sizes = {
    "seed": st.integers(0, 10**6),
    "samples": st.integers(1, 30),
    "rows": st.integers(7, 40),
    "features": st.integers(1, 4),
}


@given(**sizes)
def test_nearest_distances_by_brute_force(seed: int, samples: int, rows: int, features: int) -> None:
    x, train = random_sets(seed, samples, rows, features)
    nearest = all_distances(x, train).min(1)
    found = nearest_distances(x, train)
    assert found.median == pytest.approx(np.median(nearest), abs=1e-9)
    assert found.low == pytest.approx(np.percentile(nearest, 5), abs=1e-9)


@given(k=st.integers(1, 6), **sizes)
def test_coverage_by_brute_force(k: int, seed: int, samples: int, rows: int, features: int) -> None:
    x, train = random_sets(seed, samples, rows, features)
    radius = np.sort(all_distances(train, train), 1)[:, k]  # the row itself stands at place 0
    expected = (all_distances(train, x).min(1) <= radius).mean()
    assert coverage(x, train, k) == pytest.approx(expected)


def test_distances_go_from_samples_to_the_training_set() -> None:
    """One sample on each of two training rows of many: the other direction would see the far rows."""
    train = np.array([[0.0], [10.0], [20.0], [30.0]])
    found = nearest_distances(np.array([[0.0], [11.0], [2.0]]), train)
    assert (found.median, found.low) == (1.0, pytest.approx(0.1))


def test_coverage_counts_training_rows_and_not_samples() -> None:
    """Two clusters, and all samples in one of them: a score of the samples would be perfect."""
    train = np.array([[0.0], [1.0], [2.0], [100.0], [101.0], [102.0], [103.0], [104.0], [105.0]])
    samples = np.full((50, 1), 1.0)
    assert coverage(samples, train, k=2) == pytest.approx(3 / 9)
    one_each = np.array([[1.0], [103.0]])
    assert coverage(one_each, train, k=2) == pytest.approx(7 / 9)  # 100 and 101 have nearer neighbours
    far = np.full((50, 1), 50.0)
    assert coverage(far, train, k=2) == 0.0
    assert coverage(train, train, k=1) == 1.0


def test_coverage_needs_neighbours() -> None:
    rows = np.arange(5.0)[:, None]
    with pytest.raises(UserError, match="k = 5 needs more than 5 training rows, not 5"):
        coverage(rows, rows, k=5)
    assert coverage(rows, rows, k=4) == 1.0


def test_block_coverage_is_the_mean_over_whole_blocks() -> None:
    samples, train = random_sets(3, 35, 30, 2)
    expected = np.mean([coverage(samples[first : first + 10], train) for first in (0, 10, 20)])
    assert block_coverage(samples, train, 10) == pytest.approx(expected)
    assert block_coverage(samples, train, 35) == coverage(samples, train)


# ----------------------------------------------------------------------------------------- the real digits


@pytest.fixture(scope="module")
def real() -> Data:
    return digits()


@pytest.fixture(scope="module")
def judge(real: Data) -> Judge:
    return Judge(*real)


def ratios(judge: Judge, found: Scores) -> dict[str, float]:
    """Return an accuracy and shares, as `PASS` has them."""
    shares = Evaluation(found, judge.held_out, 1.0, 1, 1, "").ratios
    return {**shares, "accuracy": found.accuracy}


def passes(judge: Judge, rows: Rows, labels: Labels) -> bool:
    found = ratios(judge, judge.score(rows, labels))
    return all(found[name] >= least for name, least in PASS.items())


def test_the_reader_reads_digits_that_it_never_saw(real: Data, judge: Judge) -> None:
    x, labels = real.heldout.take(np.arange(len(real.heldout)))
    assert labels is not None
    rows = x.flatten(1).double().numpy()
    assert fit_reader(judge.rows, judge.labels).score(rows, labels.numpy()) > 0.97
    assert judge.held_out.accuracy > 0.97
    assert judge.reader.score(rows, (labels.numpy() + 1) % 10) < 0.02  # it is the labels that are read


def test_the_judge_compares_like_with_like(real: Data, judge: Judge) -> None:
    assert (len(judge.rows), judge.block) == (len(real.train), len(real.heldout))
    assert 0.5 < judge.held_out.coverage < 0.8
    assert 0 < judge.held_out.distance_low < judge.held_out.distance_median


def test_real_digits_pass(real: Data, judge: Judge) -> None:
    x, labels = real.heldout.take(np.arange(len(real.heldout)))
    assert labels is not None
    rows = x.flatten(1).double().numpy()
    assert passes(judge, rows, labels.numpy())
    assert ratios(judge, judge.score(rows, labels.numpy())) == pytest.approx(
        {**dict.fromkeys(PASS, 1.0), "accuracy": judge.held_out.accuracy}
    )


def test_real_digits_pass_a_judge_that_saw_others(real: Data) -> None:
    """Half of the held-out digits judged beside the other half: the criterion must leave room for chance."""
    rows = np.arange(len(real.heldout))
    x, labels = real.heldout.take(rows[1::2])
    assert labels is not None
    other = Judge(real.train, InMemory(*real.heldout.take(rows[::2]), real.heldout.classes))
    assert passes(other, x.flatten(1).double().numpy(), labels.numpy())


def test_class_averages_fail(judge: Judge) -> None:
    """They are read without a mistake and lie far from every training digit, but cover little."""
    labels = np.arange(1000) % 10
    averages = np.stack([judge.rows[judge.labels == label].mean(0) for label in range(10)]).round()
    found = ratios(judge, judge.score(averages[labels], labels))
    assert found["accuracy"] == 1.0
    assert min(found["distance_median"], found["distance_low"]) > 0.8  # coverage alone unmasks them
    assert found["coverage"] < 0.5
    assert not passes(judge, averages[labels], labels)


def copies(judge: Judge, spread: bool) -> NDArray[np.int64]:
    """Choose 1,000 training rows: at random, or all classes in turn as an evaluation draws them."""
    draw = np.random.default_rng(0)
    if not spread:
        return draw.permutation(len(judge.rows))[:1000]
    turns = [draw.permutation(np.flatnonzero(judge.labels == label)) for label in range(10)]
    return np.array([turns[number % 10][number // 10] for number in range(1000)])


@pytest.mark.parametrize("spread", [False, True], ids=["at random", "classes in turn"])
@pytest.mark.parametrize("level", [2, 10, 20, 24, 26, 28, 30, 32, 34, 36, 40])
@pytest.mark.parametrize("clipped", [False, True], ids=["raw", "as pixels"])
def test_noisy_copies_fail(judge: Judge, level: float, clipped: bool, spread: bool) -> None:
    """Where the noise is large enough to look new (from about 30 of 255 on), it no longer covers."""
    chosen = copies(judge, spread)
    noisy = judge.rows[chosen] + level * np.random.default_rng(1).standard_normal((1000, judge.rows.shape[1]))
    rows = noisy.round().clip(0, 255) if clipped else noisy
    assert not passes(judge, rows, judge.labels[chosen])


def test_some_noisy_copies_fool_all_scores_but_one(judge: Judge) -> None:
    """Accuracy and both distances alone would let them pass: this is why coverage is among the scores."""
    chosen = copies(judge, spread=False)
    noisy = judge.rows[chosen] + 36 * np.random.default_rng(1).standard_normal((1000, judge.rows.shape[1]))
    found = ratios(judge, judge.score(noisy.round().clip(0, 255), judge.labels[chosen]))
    assert [name for name, least in PASS.items() if found[name] < least] == ["coverage"]


def test_copies_cover_but_lie_too_near(judge: Judge) -> None:
    """And this is why coverage is not enough."""
    chosen = copies(judge, spread=False)
    found = ratios(judge, judge.score(judge.rows[chosen], judge.labels[chosen]))
    assert found == {**found, "accuracy": 1.0, "distance_median": 0.0, "distance_low": 0.0}
    assert found["coverage"] > 1.1


def test_wrong_labels_fail(real: Data, judge: Judge) -> None:
    x, labels = real.heldout.take(np.arange(len(real.heldout)))
    assert labels is not None
    assert not passes(judge, x.flatten(1).double().numpy(), np.roll(labels.numpy(), 1))


def test_fewer_rows_than_a_block_are_scored_whole(judge: Judge) -> None:
    assert judge.score(judge.rows[:50], judge.labels[:50]).coverage == coverage(judge.rows[:50], judge.rows)


# ------------------------------------------------------------------------------------------------- edges


def test_a_judge_needs_classes() -> None:
    rows = InMemory(torch.zeros(10, 1, 2, 2, dtype=torch.uint8))
    with pytest.raises(UserError, match="reads classes"):
        Judge(rows, rows)


def labelled(count: int, classes: int, seed: int) -> InMemory:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 256, (count, 1, 2, 2), dtype=torch.uint8, generator=draw)
    return InMemory(x, torch.arange(count) % classes, tuple(str(name) for name in range(classes)))


def test_one_class_cannot_be_read() -> None:
    with pytest.raises(UserError):
        Judge(labelled(20, 1, 0), labelled(10, 1, 1))


def test_a_judge_needs_more_rows_than_neighbours() -> None:
    with pytest.raises(UserError, match="more than 5 training rows"):
        Judge(labelled(5, 2, 0), labelled(5, 2, 1))


def test_points_can_be_judged() -> None:
    data = points(count=400)
    found = Judge(*data).held_out
    assert found.accuracy > 0.9


def test_a_score_of_zero_has_no_shares() -> None:
    """Users' folders hold duplicates: held-out rows at distance 0 must not stop the report."""
    train = labelled(40, 2, 0)
    judge = Judge(train, InMemory(train.x[:10], train.labels[:10] if train.labels is not None else None, ("0", "1")))
    assert judge.held_out.distance_median == 0
    one = Evaluation(judge.held_out, judge.held_out, 1.0, 20, 20, "the protocol")
    assert "the protocol" in table([one])


def test_an_evaluation_needs_as_many_samples_as_held_out_rows(judge: Judge) -> None:
    with pytest.raises(UserError, match="compares with 359 held-out rows: ask for -n 359 or more"):
        evaluate(None, judge, 358, guidance=1.0)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------- table


def an_evaluation(guidance: float = 1.0) -> Evaluation:
    samples, held_out = Scores(0.9, 100.0, 50.0, 0.6), Scores(1.0, 200.0, 200.0, 0.8)
    return Evaluation(samples, held_out, guidance, 20, 40, "1000 samples, seed 0")


def test_ratios() -> None:
    assert an_evaluation().ratios == pytest.approx(
        {"accuracy": 0.9, "distance_median": 0.5, "distance_low": 0.25, "coverage": 0.75}
    )


def test_an_evaluation_as_plain_values() -> None:
    plain = an_evaluation(1.5).to_json()
    assert plain["guidance"] == 1.5
    assert plain["protocol"] == "1000 samples, seed 0"
    assert plain["samples"] == {"accuracy": 0.9, "distance_median": 100.0, "distance_low": 50.0, "coverage": 0.6}
    assert plain["ratios"] == an_evaluation().ratios


def test_the_table_says_everything() -> None:
    text = table([an_evaluation(1.0), an_evaluation(1.5), an_evaluation(3.0)])
    lines = text.splitlines()
    for guidance in ("1", "1.5", "3"):
        (line,) = (line for line in lines if line.startswith(f"guidance {guidance} "))
        for cell in ("90.0%", "100 (0.50)", "50 (0.25)", "0.600 (0.75)"):
            assert cell in line
    (real,) = (line for line in lines if line.startswith("real, held out"))
    assert "100.0%" in real
    assert "0.800" in real
    assert "(0." not in real
    assert "1000 samples, seed 0" in lines[-1]
