"""The loss by noise level: the exact denoiser of a set against loops and an oracle, and no model below it."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from tests.conftest import MakeRecipe
from unfog.diffusion.oracle import Mixture, MixtureDenoiser
from unfog.diffusion.schedules import EDM
from unfog.evaluation import classifier, levels
from unfog.evaluation.judge import Judge, pick, spread
from unfog.evaluation.levels import Level, Levels, empirical_x0, measure_levels
from unfog.recipes.build import build_codec, build_data
from unfog.runs.run import Run, load, train
from unfog.runtime.randomness import normal
from unfog.training.latents import cached


@pytest.fixture(autouse=True, scope="module")
def no_classifier(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No classifier is needed here: a bad one will do, and not into the common cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNFOG_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(classifier, "EPOCHS", 0)
        patch.setattr(classifier, "STEPS", 2)
        yield


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@cache
def judged(path: Path) -> tuple[Run, Judge]:
    run = load(path, "cpu")
    return run, Judge(build_data(run.recipe)[1], build_codec(run.recipe), 200)


@pytest.mark.parametrize("sigma", [0.01, 0.3, 1.0, 20.0])
def test_the_exact_denoiser_by_loops(sigma: float) -> None:
    x_t, train, alpha = draw(0, 7, 3), draw(1, 30, 3), 0.8
    found = empirical_x0(x_t, alpha, sigma, train, block=4)
    for row, guess in zip(x_t, found, strict=True):
        exponents = [-float(((row - alpha * one) ** 2).sum()) / (2 * sigma**2) for one in train]
        weights = np.exp(np.array(exponents) - max(exponents))
        expected = (weights / weights.sum()) @ train.numpy()
        np.testing.assert_allclose(guess.numpy(), expected, rtol=1e-9, atol=1e-12)


def test_the_exact_denoiser_is_that_of_a_mixture_of_points() -> None:
    train, x_t = draw(1, 30, 3), draw(0, 7, 3)
    mixture = Mixture(torch.full((30,), 1 / 30, dtype=torch.float64), train, torch.zeros(30, 3, dtype=torch.float64))
    expected = MixtureDenoiser(mixture, EDM())(x_t, torch.tensor(0.7, dtype=torch.float64)).x0
    torch.testing.assert_close(empirical_x0(x_t, 1.0, 0.7, train), expected)


@pytest.mark.parametrize("sigma", [0.1, 0.3, 1.0])
def test_nobody_beats_the_exact_denoiser_on_the_training_set(sigma: float) -> None:
    """Not even the exact denoiser of the distribution that the rows were drawn from; on new rows that one wins."""
    truth = Mixture(
        torch.full((2,), 0.5, dtype=torch.float64),
        torch.tensor([[-1.0, 0.0], [1.0, 0.5]], dtype=torch.float64),
        torch.full((2, 2), 0.04, dtype=torch.float64),
    )
    rows = truth.sample(1640, torch.Generator().manual_seed(0))
    train, new = rows[:40], rows[40:]
    losses = {}
    for name, clean in (("train", train), ("new", new)):
        x0 = clean.repeat(16_000 // len(clean), 1)
        x_t = x0 + sigma * draw(2, *x0.shape)
        theirs = MixtureDenoiser(truth, EDM())(x_t, torch.tensor(sigma, dtype=torch.float64)).x0
        losses[name] = [float((one - x0).square().mean()) for one in (empirical_x0(x_t, 1.0, sigma, train), theirs)]
    assert losses["train"][0] < losses["train"][1]
    assert losses["new"][0] > losses["new"][1]


@pytest.mark.parametrize("name", ["digits_run", "table_run", "unconditional_run"])
def test_levels_of_a_run(name: str, request: pytest.FixtureRequest) -> None:
    found = measure_levels(*judged(request.getfixturevalue(name)))
    levels = [one.log_snr for one in found.levels]
    assert levels == sorted(levels)
    assert len(levels) > 10
    for one in found.levels:
        assert one.optimum_train is not None
        assert 0 <= one.optimum_train < one.train
    assert found.levels[-1].optimum_heldout > 10 * found.levels[-1].heldout  # type: ignore[operator]  # a mere memory


def test_levels_are_a_function_of_the_seed(table_run: Path) -> None:
    run, judge = judged(table_run)
    found = measure_levels(run, judge)
    assert measure_levels(run, judge) == found
    assert measure_levels(run, judge, seed=1).levels[5].train != found.levels[5].train


def test_one_level_by_hand(digits_run: Path) -> None:
    """By a literal pass over the same rows and noise; and so for the exact denoiser."""
    run, judge = judged(digits_run)
    found = measure_levels(run, judge, seed=3)
    rows = pick(judge.heldout, spread(128, 359))
    assert rows.labels is not None
    x0 = judge.codec.encode(rows.x)
    eps = normal(3, "noise levels", 1, 0, 128, (1, 8, 8))
    one = found.levels[7]
    t = run.denoiser.schedule.time(one.log_snr)
    x_t = run.denoiser.schedule.add_noise(x0, eps, t)
    assert run.denoiser.embedder is not None
    with torch.inference_mode():
        output = run.denoiser.output(x_t, t.expand(128), run.denoiser.embedder(rows.labels))[0]
    expected = float((output - (eps - x0)).square().mean())  # the velocity of the flow
    assert one.heldout == pytest.approx(expected, rel=1e-5)
    assert judge.train.labels is not None
    losses = []
    for row, noisy, noise, label in zip(x0.double(), x_t.double(), eps.double(), rows.labels, strict=True):
        same = judge.codec.encode(judge.train.x[judge.train.labels == label]).flatten(1).double()
        alpha, sigma = float(1 - t), float(t)
        guess = empirical_x0(noisy.reshape(1, -1), alpha, sigma, same).reshape(1, 8, 8)
        losses.append(float((((noisy - alpha * guess) / sigma - guess) - (noise - row)).square().mean()))
    assert one.optimum_heldout == pytest.approx(np.mean(losses), rel=1e-5)


def test_a_told_model_is_compared_with_rows_of_its_class(digits_run: Path, unconditional_run: Path) -> None:
    """Far in the noise the best guess is the mean, of the class or of all: its error is the variance around it."""
    for path, conditional in ((digits_run, True), (unconditional_run, False)):
        run, judge = judged(path)
        noisiest = measure_levels(run, judge).levels[0]
        assert judge.train.labels is not None
        x = judge.train.x.flatten(1).double() / 127.5 - 1
        groups = [judge.train.labels == label for label in range(10)] if conditional else [torch.ones(len(x)).bool()]
        variance = sum(float((x[g] - x[g].mean(0)).square().mean(1).sum()) for g in groups) / len(x)
        assert noisiest.optimum_train == pytest.approx(variance, rel=0.1)


def test_a_condition_without_training_rows_has_no_optimum(tmp_path: Path) -> None:
    found = Levels((Level(-1.0, 1.0, 2.0, None, None), Level(1.0, 0.5, 0.6, 0.0, None)), "")
    found.draw(tmp_path / "levels.png")
    assert (tmp_path / "levels.png").exists()


def test_latents_are_those_that_the_training_left(
    tiny: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Encoding all training rows takes minutes; where nobody did, and they are many, there is no exact denoiser."""
    own = ("codec=latents", "codec.factor=2", "codec.width=4", "codec.channels=2", "codec.images=64")
    path = train(tiny(*own, "training.images=64"), tmp_path / "run", device="cpu", console=Console(quiet=True)).path
    run = load(path, "cpu")
    codec = build_codec(run.recipe)
    judge = Judge(build_data(run.recipe)[1], codec.plain, 200)
    found = measure_levels(run, judge)
    assert found.levels[0].optimum_train is not None
    monkeypatch.setattr(levels, "cached", lambda *rest: None)
    alone = measure_levels(run, judge)  # encoded again
    for one, other in zip(found.levels, alone.levels, strict=True):
        assert other.optimum_train == pytest.approx(one.optimum_train, rel=1e-3, abs=1e-9)
        assert (other.train, other.heldout) == (one.train, one.heldout)
    monkeypatch.setattr(levels, "ENCODED", 1000)
    none = measure_levels(run, judge)
    assert all(one.optimum_train is None and one.optimum_heldout is None for one in none.levels)
    assert "no training left their latents" in none.protocol
    none.draw(tmp_path / "levels.png")
    monkeypatch.undo()
    left = cached(judge.source, codec, False, path)  # type: ignore[arg-type]  # it is one of latents
    assert left is not None
    assert torch.allclose(left, codec.encode(judge.train.x), atol=1e-5)
    assert cached(judge.source, codec, True, path) is None  # type: ignore[arg-type]
