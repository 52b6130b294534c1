"""Averages of any length from snapshots of two: the mathematics, what a training keeps, and the model that is made."""

import math
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from safetensors.torch import load_file
from scipy.integrate import quad
from torch import Tensor, nn

from tests.conftest import MakeRecipe
from unfog.cli.main import main
from unfog.recipes.build import build_data
from unfog.recipes.objective import Draw
from unfog.recipes.parse import options
from unfog.recipes.recipe import Recipe
from unfog.recipes.settings import PowerAverage, Training
from unfog.runs.average import average
from unfog.runs.run import load, resume
from unfog.runtime.errors import Stopped, UserError
from unfog.runtime.tensors import write_tensors
from unfog.training import ema, loop
from unfog.training.draws import Draws
from unfog.training.ema import GAMMAS, Averaged, Profile, combine, gamma_of, reconstruct
from unfog.training.trainer import Trainer

QUIET = Console(quiet=True)


def length_of(gamma: float) -> float:
    """Return the standard deviation of Beta(gamma + 1, 1)."""
    return math.sqrt((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3)))


def density(profile: Profile, tau: float) -> float:
    return (profile.gamma + 1) * tau**profile.gamma / profile.t ** (profile.gamma + 1) if tau <= profile.t else 0.0


# Profiles


@pytest.mark.parametrize(("length", "gamma"), [(0.05, 16.97), (0.10, 6.94)])
def test_the_published_pairs(length: float, gamma: float) -> None:
    assert gamma_of(length) == pytest.approx(gamma, abs=0.005)


@settings(deadline=None)
@given(st.floats(0.01, 200))
def test_a_gamma_comes_back_from_its_length(gamma: float) -> None:
    assert gamma_of(length_of(gamma)) == pytest.approx(gamma, rel=1e-6, abs=1e-8)


def test_the_length_is_the_standard_deviation_of_the_profile() -> None:
    profile = Profile(gamma_of(0.15), 1.0)
    mass, mean, square = (quad(lambda tau, k=k: tau**k * density(profile, tau), 0, 1)[0] for k in range(3))
    assert mass == pytest.approx(1)
    assert math.sqrt(square - mean**2) == pytest.approx(0.15, rel=1e-9)


@pytest.mark.parametrize("length", [0.0, -0.1, 12**-0.5, 0.3, math.nan, math.inf])
def test_a_length_that_cannot_be_is_refused(length: float) -> None:
    with pytest.raises(UserError, match=r"the length of an average must be above 0 and below 0\.289"):
        gamma_of(length)


@pytest.mark.parametrize("length", [1e-300, 1e-9])
def test_a_length_near_nothing_is_still_a_length(length: float) -> None:
    assert math.isfinite(gamma_of(length))


@settings(deadline=None)
@given(st.floats(0.1, 30), st.floats(0.1, 30), st.floats(0.05, 1), st.floats(0.05, 1))
def test_inner_products_are_integrals(first: float, second: float, s: float, t: float) -> None:
    one, other = Profile(first, s), Profile(second, t)
    integral = quad(lambda tau: density(one, tau) * density(other, tau), 0, min(s, t), epsabs=1e-12)[0]
    assert one.inner(other) == pytest.approx(integral, rel=1e-6)
    assert one.inner(other) == other.inner(one)


def profiles(count: int) -> list[Profile]:
    return [Profile(gamma, (place + 1) / count) for place in range(count) for gamma in GAMMAS]


def test_a_known_profile_is_combined_of_itself() -> None:
    known = profiles(5)
    shares, error = combine(known, known[-1])
    np.testing.assert_allclose(shares, [0] * 9 + [1], atol=1e-6)
    assert error < 1e-6


@pytest.mark.parametrize("length", [0.07, 0.15, 0.25])
def test_the_combination_is_the_nearest_whose_sum_is_one(length: float) -> None:
    known, wanted = profiles(4), Profile(gamma_of(length), 1.0)
    shares, error = combine(known, wanted)
    assert shares.sum() == pytest.approx(1)

    def distance(x: np.ndarray) -> float:
        def square(tau: float) -> float:
            made = sum(share * density(one, tau) for share, one in zip(x, known, strict=True))
            return (made - density(wanted, tau)) ** 2

        breaks = [0.25, 0.5, 0.75]  # where profiles end
        return math.sqrt(quad(square, 0, 1, points=breaks, limit=200)[0] / wanted.inner(wanted))

    assert error == pytest.approx(distance(shares), rel=1e-4)
    draw = np.random.default_rng(0)
    for _ in range(5):
        shift = draw.standard_normal(len(shares))
        assert distance(shares + 1e-2 * (shift - shift.mean())) > error


# Weights


STEPS = 512


@torch.no_grad()  # as a decorator it is off while the caller holds a layer
def walk(seed: int = 0) -> Iterator[nn.Linear]:
    """Yield a layer whose weights walk at random, ever slower, and whose bias stays."""
    stream = torch.Generator().manual_seed(seed)
    layer = nn.Linear(60, 50)
    for parameter in layer.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=stream))
    for step in range(STEPS):
        layer.weight += torch.randn(layer.weight.shape, generator=stream) / math.sqrt(step + 10)
        yield layer


def snapshots(folder: Path, count: int, *others: float) -> list[dict[str, Tensor]]:
    """Write snapshots of a walk; return the averages with other exponents at its end, and its last weights."""
    averages = [Averaged(next(walk()), PowerAverage(gamma)) for gamma in (*GAMMAS, *others)]  # type: ignore[arg-type]
    folder.mkdir(parents=True, exist_ok=True)
    for step, layer in enumerate(walk(), 1):
        for one in averages:
            one.update(layer, step, 64)
        if step % (STEPS // count) == 0:
            kept = zip(GAMMAS, averages, strict=False)
            tensors = {f"{gamma}/{name}": part for gamma, one in kept for name, part in one.model.state_dict().items()}
            write_tensors(folder / f"{step:09}.safetensors", tensors)
    return [one.model.state_dict() for one in averages[len(GAMMAS) :]] + [layer.state_dict()]


@pytest.mark.parametrize("length", [0.03, 0.07, 0.15, 0.22])
def test_more_snapshots_make_the_average_exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: float) -> None:
    monkeypatch.setattr(ema, "COARSE", math.inf)
    errors, residuals = [], []
    for count in (2, 4, 8, 16, 32):
        direct, last = snapshots(tmp_path / str(count), count, gamma_of(length))
        made = reconstruct(tmp_path / str(count), length)
        away = (made.tensors["weight"] - direct["weight"]).norm() / (last["weight"] - direct["weight"]).norm()
        errors.append(float(away))
        residuals.append(made.error)
        torch.testing.assert_close(made.tensors["bias"].float(), direct["bias"], rtol=1e-5, atol=1e-5)
        assert made.step == STEPS
    assert errors == sorted(errors, reverse=True)
    assert residuals == sorted(residuals, reverse=True)
    assert errors[-1] < 0.02


def test_what_the_snapshots_hold_comes_back(tmp_path: Path) -> None:
    """0.10 and 0.05 are the snapshots' own averages, but for the digits of their exponents."""
    snapshots(tmp_path, 4)
    held = load_file(tmp_path / f"{STEPS:09}.safetensors")
    for gamma in GAMMAS:
        made = reconstruct(tmp_path, length_of(gamma))
        torch.testing.assert_close(made.tensors["weight"].float(), held[f"{gamma}/weight"], rtol=1e-4, atol=1e-5)
        assert made.error < 1e-5


def test_snapshots_that_are_too_few_are_refused(tmp_path: Path) -> None:
    snapshots(tmp_path, 1)
    with pytest.raises(UserError, match=r"of length 0.02 has an error of [1-9]\d% with the 1 snapshots in "):
        reconstruct(tmp_path, 0.02)
    assert reconstruct(tmp_path, 0.1).error < 0.01
    with pytest.raises(UserError, match=r"contains no snapshots of averages: train with training\.snapshots=32"):
        reconstruct(tmp_path / "none", 0.1)


# Training


@dataclass(frozen=True)
class Interrupting(Draws):
    """Draws that send this process a signal at step 6."""

    def __call__(self, step: int) -> Draw:
        if step == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().__call__(step)


def trainer_of(recipe: Recipe, folder: Path) -> Trainer:
    found, data = build_data(recipe)
    folder.mkdir()
    trainer = Trainer(found, data, folder, torch.device("cpu"))
    loop.write_recipe(trainer)
    return trainer


@pytest.fixture(scope="module")
def kept(tiny: MakeRecipe, train_into: Callable[[Recipe, str], Path]) -> Path:
    """A run with snapshots, and an average of its own that is longer than theirs."""
    return train_into(tiny("training.snapshots=8", "ema.gamma=3", "optimizer.warmup=0", "network.dropout=0.1"), "kept")


def test_snapshots_are_evenly_spaced_and_hold_the_averages(kept: Path, tiny: MakeRecipe, tmp_path: Path) -> None:
    assert sorted(int(path.stem) for path in (kept / "averages").iterdir()) == [2, 4, 6, 8, 10, 12, 14, 16]
    trainer = trainer_of(
        tiny("ema.gamma=16.97", "optimizer.warmup=0", "network.dropout=0.1", "training.snapshots=0"), tmp_path / "own"
    )
    for step in range(6):
        trainer.descend(trainer.draws(step))
    held = load_file(kept / "averages" / "000000006.safetensors")
    for name, tensor in trainer.averaged.model.state_dict().items():
        assert torch.equal(held[f"16.97/{name}"], tensor), name
    assert {name.split("/")[0] for name in held} == {"16.97", "6.94"}


def test_a_stopped_run_keeps_its_snapshots_to_the_bit(kept: Path, tmp_path: Path) -> None:
    out = tmp_path / "stopped"
    trainer = trainer_of(load(kept, "cpu").recipe, out)
    trainer.draws = Interrupting(**vars(trainer.draws))
    with pytest.raises(Stopped):
        loop.train(trainer, QUIET)
    assert 6 <= trainer.step < 16
    resume(out, device="cpu", console=QUIET)
    for path in (kept / "averages").iterdir():
        assert (out / "averages" / path.name).read_bytes() == path.read_bytes(), path.name
    final = Path("checkpoints") / "000000016" / "state.safetensors"
    first, second = load_file(kept / final), load_file(out / final)
    assert {name.split("/")[0] for name in first} == {"weights", "average", "16.97", "6.94", "optimizer"}
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_without_snapshots_nothing_is_kept(digits_run: Path) -> None:
    assert Training().snapshots == 0
    assert not (digits_run / "averages").exists()
    names = load_file(next((digits_run / "checkpoints").iterdir()) / "state.safetensors")
    assert {name.split("/")[0] for name in names} == {"weights", "average", "optimizer"}


def test_a_number_of_snapshots_below_none_is_refused() -> None:
    with pytest.raises(UserError, match=r"training\.snapshots must be 0 or more, not -1"):
        Training(snapshots=-1)


def test_a_snapshot_that_is_not_finite_is_not_written(tiny: MakeRecipe, tmp_path: Path) -> None:
    trainer = trainer_of(tiny("training.snapshots=2"), tmp_path / "run")
    trainer.descend(trainer.draws(0))
    with torch.no_grad():
        next(trainer.averages["6.94"].model.parameters()).view(-1)[0] = math.nan
    trainer.snapshot()
    assert list((tmp_path / "run").rglob("*.safetensors")) == []


# The verb


def test_an_average_is_a_run(kept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The run's own average has gamma 3: made of snapshots it is the same model."""
    out = tmp_path / "deep" / "average"
    assert main(["average", str(kept), "--length", str(length_of(3)), "--out", str(out)]) == 0
    assert "up to step 16 with gamma 3.00, the profile within" in capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == ["model.safetensors", "recipe.json"]
    own, made = load_file(kept / "model.safetensors"), load_file(out / "model.safetensors")
    last = load_file(kept / "checkpoints" / "000000016" / "state.safetensors")
    assert own.keys() == made.keys()
    away = sum(float((own[name] - made[name]).square().sum()) for name in own)
    moved = sum(float((own[name] - last[f"weights/{name}"]).square().sum()) for name in own)
    assert 0 < away < 0.05**2 * moved
    assert {name: tensor.dtype for name, tensor in own.items()} == {name: tensor.dtype for name, tensor in made.items()}
    run = load(out, "cpu")
    assert options(run.recipe.ema)["gamma"] == pytest.approx(3)
    assert run.sample(2).shape == (2, 1, 8, 8)


def test_what_cannot_be_averaged(
    kept: Path, digits_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in kept.rglob("*") if path.is_file()}
    for run, length, out, sentence in (
        (digits_run, "0.1", tmp_path / "out", "contains no snapshots of averages"),
        (kept, "0.3", tmp_path / "out", "must be above 0 and below 0.289"),
        (kept, "0.01", tmp_path / "out", "has an error of"),
        (kept, "0.1", kept, "holds another run: choose another --out"),
        (tmp_path, "0.1", tmp_path / "out", "is no run folder"),
    ):
        assert main(["average", str(run), "--length", length, "--out", str(out)]) == 2
        assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert {path: path.read_bytes() for path in kept.rglob("*") if path.is_file()} == before
    with pytest.raises(UserError, match="is a file: choose another `out`"):
        average(kept, 0.1, kept / "recipe.json")
