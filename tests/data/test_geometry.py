"""Augmentation of which the network is told: what the numbers say is what happens, and none is nothing."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from unfog.data.codecs import Latents
from unfog.data.geometry import NUMBERS, Geometry
from unfog.networks.autoencoder import Autoencoder
from unfog.recipes.build import build_data, build_denoiser
from unfog.recipes.presets import recipe
from unfog.runs.run import load, resume, train
from unfog.runtime.errors import UserError
from unfog.training.latents import prepared
from unfog.training.trainer import Trainer

SIDES = ((8, 8), (6, 10))


def pictures(height: int, width: int, count: int = 2) -> Tensor:
    """Smooth pictures, no two alike, that no symmetry leaves as they are."""
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    rows = [torch.stack([40 + 90 * x + 60 * y * y, 200 - 80 * x * y + 9 * row]) for row in range(count)]
    return torch.stack(rows).round().to(torch.uint8)


def numbers(**named: float) -> Tensor:
    """What one picture is changed by."""
    names = ("mirrored", "upside", "size", "cos", "sin", "long", "wide", "right", "down")
    return torch.tensor([[named.get(name, 0.0) for name in names]])


@pytest.mark.parametrize(("height", "width"), SIDES)
def test_what_is_told_is_what_happens(height: int, width: int) -> None:
    """Mirrors and none to the bit; quarter and half turns, shifts and enlargements as other functions make them."""
    x, geometry = pictures(height, width, 1), Geometry()
    assert torch.equal(geometry.changed(x, numbers()), x)
    assert torch.equal(geometry.changed(x, numbers(mirrored=1.0)), x.flip(-1))
    assert torch.equal(geometry.changed(x, numbers(mirrored=1.0, upside=1.0)), x.flip(-1, -2))
    half = geometry.changed(x, numbers(cos=-2.0, sin=0.0))
    assert (half.int() - x.flip(-1, -2).int()).abs().max() <= 1
    shifted = geometry.changed(x, numbers(right=1 / (geometry.shift * width)))  # by one pixel
    assert (shifted[..., 1:].int() - x[..., :-1].int()).abs().max() <= 1
    lower = geometry.changed(x, numbers(down=-2 / (geometry.shift * height)))
    assert (lower[..., :-2, :].int() - x[..., 2:, :].int()).abs().max() <= 1
    turned = geometry.changed(x, numbers(cos=-1.0, sin=1.0))
    edge = (width - height) // 2  # of what is not square only the middle stays
    middle, before = (image[..., edge : width - edge].int() for image in (turned, x))
    assert min((middle - before.rot90(way, (-2, -1))).abs().max() for way in (1, -1)) <= 1
    larger = geometry.changed(x.float(), numbers(size=1 / geometry.scale))  # twice as large: contrasts are halved
    half, one = (image[0, 0, height // 2, -2] - image[0, 0, height // 2, 1] for image in (larger, x.float()))
    assert half / one == pytest.approx(0.5, abs=0.1)


def test_stretching_keeps_the_area() -> None:
    """A stretching by direction 0 widens by as much as it flattens; along 90 degrees it is the other way."""
    geometry = Geometry(scale=1.0)
    along, across = (geometry._inverse(numbers(long=a, wide=b), 1.0)[0, :, :2] for a, b in ((1.0, 0.0), (0.0, 1.0)))
    assert torch.allclose(along, torch.tensor([[0.5, 0.0], [0.0, 2.0]]), atol=1e-6)
    assert torch.allclose(across, torch.tensor([[2.0, 0.0], [0.0, 0.5]]), atol=1e-6)


@given(st.integers(0, 3), st.integers(0, 500), st.lists(st.integers(1, 7), min_size=1, max_size=4))
def test_numbers_are_a_function_of_the_position(seed: int, position: int, sizes: list[int]) -> None:
    """The same in batches of any size."""
    geometry = Geometry()
    whole = geometry.numbers(seed, position, sum(sizes))
    parts, at = [], position
    for size in sizes:
        parts.append(geometry.numbers(seed, at, size))
        at += size
    assert torch.equal(torch.cat(parts), whole)


def test_how_often_pictures_are_changed() -> None:
    """Each kind with its probability, half of all mirrored, and sizes of unit variance."""
    found = Geometry(probability=0.3).numbers(1, 0, 20_000)
    assert found.shape == (20_000, NUMBERS)
    changed = (found != 0).float().mean(0)
    for number, share in enumerate((0.5, 0.15, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3)):
        assert changed[number] == pytest.approx(share, abs=0.02)
    sizes = found[found[:, 2] != 0, 2]
    assert sizes.mean() == pytest.approx(0, abs=0.05)
    assert sizes.std() == pytest.approx(1, abs=0.05)
    assert torch.allclose((found[:, 3] + 1) ** 2 + found[:, 4] ** 2, torch.ones(20_000), atol=1e-5)
    still = Geometry(probability=0.0).numbers(1, 0, 1000)
    assert not still[:, 1:].any()


def test_values_are_checked() -> None:
    for wrong in ({"probability": 1.5}, {"rotation": -0.1}, {"scale": -1.0}, {"shift": float("nan")}):
        with pytest.raises(UserError, match=r"augment\."):
            Geometry(**wrong)
    with pytest.raises(UserError, match="only applies to images"):
        Geometry().changed(torch.zeros(2, 5), torch.zeros(2, NUMBERS))


def test_the_network_is_told(tmp_path: Path) -> None:
    """The loss depends on the numbers, which are learnt; without a condition, too; samples need none."""
    for conditioning in ("classes", "none"):
        chosen, data = build_data(recipe("digits").set("augment=geometry", f"conditioning={conditioning}"))
        trainer = Trainer(chosen, data, tmp_path, torch.device("cpu"))
        draw = trainer.draws(0)
        for step in range(2):
            position, own = 64 * step, trainer.draws(step)
            told = chosen.augment.numbers(chosen.seed, position, 64)
            assert told is not None
            assert own.changes is not None
            assert torch.equal(own.changes, told)
            rows = data.train.take(trainer.draws.rows(step)).x
            assert torch.equal(own.x0, trainer.codec.encode(chosen.augment(rows, chosen.seed, position)))
        assert draw.changes is not None
        for parameter in trainer.model.parameters():  # some begin at 0, where nothing would depend on anything
            torch.nn.init.normal_(parameter, std=0.1)
        told = trainer.losses(draw)["loss"]
        untold = trainer.losses(draw._replace(changes=None))["loss"]
        same = (draw.changes == 0).all(1)
        assert not torch.allclose(told[~same], untold[~same], rtol=1e-3)
        torch.testing.assert_close(told[same], untold[same], rtol=1e-4, atol=1e-5)
        told.mean().backward()
        assert trainer.denoiser.changes is not None
        assert trainer.denoiser.changes.weight.grad.abs().sum() > 0  # type: ignore[union-attr]
    assert build_denoiser(chosen.set("augment=flip-crop")).changes is None


def test_a_run_with_it(tmp_path: Path) -> None:
    """Trained, stopped, resumed to the bit and sampled; the recipe names it; another run may begin with its weights."""
    chosen = recipe("digits").set("augment=geometry", "training.images=128", "training.reports=1")
    train(chosen, tmp_path / "whole")
    steps = iter(range(2))
    train(chosen, tmp_path / "half", stop=lambda: next(steps) == 1)
    resume(tmp_path / "half")
    half, whole = (tmp_path / run / "model.safetensors" for run in ("half", "whole"))
    assert half.read_bytes() == whole.read_bytes()
    run = load(tmp_path / "whole")
    assert run.recipe.kind("augment") == "geometry"
    assert run.sample(2, label=3).shape == (2, 1, 8, 8)
    plain = recipe("digits").set("training.images=64", "training.reports=1")
    train(plain, tmp_path / "plain", init_from=tmp_path / "whole")
    train(chosen.set("training.images=64"), tmp_path / "told", init_from=tmp_path / "plain")


def test_latents_refuse_it(tmp_path: Path) -> None:
    chosen, data = build_data(recipe("digits").set("augment=geometry"))
    codec = Latents(Autoencoder(1, widths=(32,), latent=2), (1, 8, 8))
    with pytest.raises(UserError, match="augment=geometry does not work with latents"):
        prepared(data, codec, chosen.augment, tmp_path)
