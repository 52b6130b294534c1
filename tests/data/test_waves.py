"""Complex spectrograms: nothing is lost, energy is conserved, and a steady tone has one phase."""

import math

import numpy as np
import pytest
import torch

from unfog.data.sounds import FULL, LOUDEST
from unfog.data.source import Batch, Data
from unfog.data.tones import tones
from unfog.data.waves import ComplexSpectrogram
from unfog.recipes.build import build_data
from unfog.recipes.presets import recipe
from unfog.runtime.errors import UserError


def noise(count: int = 3, channels: int = 1, length: int = 1024, size: float = 0.2) -> torch.Tensor:
    x = size * torch.randn(count, channels, length, generator=torch.Generator().manual_seed(1)) + 0.05
    return (x.clamp(-LOUDEST, LOUDEST) * FULL).round().to(torch.int16)


@pytest.mark.parametrize(("power", "channels"), [(1.0, 1), (0.4, 2), (0.3, 1)])
def test_sounds_come_back(power: float, channels: int) -> None:
    codec, x = ComplexSpectrogram(window=64, power=power, gain=3.0), noise(channels=channels)
    z = codec.encode(x)
    assert z.shape == (3, *codec.shape(tuple(x.shape[1:]))) == (3, 2 * channels, 32, 33)
    back = codec.decode(z).int() - x.int()
    # all but the highest frequency, whose share of white noise is 1/64 of the energy
    assert float(back.float().square().mean()) < 1.5 / 64 * float((x.float() - x.float().mean()).square().mean())
    calm = torch.from_numpy(np.sin(0.3 * np.arange(1024)) * 9000).round().to(torch.int16)[None, None]
    calm = calm.expand(1, channels, -1)
    assert float((codec.decode(codec.encode(calm)).int() - calm.int())[..., 64:-64].abs().max()) <= 2


def test_energy_is_conserved() -> None:
    """Parseval: each sample is in two frames, whose squared windows add up to 1; half of the frequencies are kept."""
    x = noise(length=8192)
    z = ComplexSpectrogram(window=256, power=1.0, gain=1.0).encode(x)
    energy = (x.double() / FULL).square().sum()
    once = z[:, :, 0].double().square().sum()  # the mean, which has no negative frequency
    assert float(2 * z.double().square().sum() - once) == pytest.approx(float(energy), rel=0.02)


def test_a_steady_tone_has_one_phase_and_one_magnitude() -> None:
    codec = ComplexSpectrogram(window=256, power=0.5, gain=1.0)
    for band in (5, 20, 21):
        wave = 0.4 * np.cos(2 * math.pi * band / 256 * np.arange(4096) + 1.0)
        z = codec.encode(torch.from_numpy(wave * FULL).round().to(torch.int16)[None, None])[0, :, :, 4:-4]
        inside = torch.complex(z[0], z[1])[band]
        assert float(inside.abs().std() / inside.abs().mean()) < 0.01
        turn = torch.angle(inside[1:] / inside[:-1])
        assert float(turn.abs().max()) < 0.01
        middle = math.sqrt(0.4 / 2 * float(torch.sin(math.pi * (torch.arange(256) + 0.5) / 256).sum()) / 16)
        assert float(inside.abs().mean()) == pytest.approx(middle, rel=0.01)  # |c| = A/2·sum(w)/sqrt(N), to the 0.5


def test_a_click_has_one_phase_at_all_frequencies() -> None:
    """In the middle of an even frame, from the beginning of which the phases of all waves are counted."""
    x = torch.zeros(1, 1, 4096, dtype=torch.int16)
    x[..., 6 * 128] = 9000
    real, imaginary = ComplexSpectrogram(window=256, power=0.5, gain=1.0).encode(x)[0, :, :, 6]
    assert float(real.min()) > 0.1
    assert float(imaginary.abs().max()) < 1e-3


def test_quiet_parts_are_lifted() -> None:
    codec, x = ComplexSpectrogram(power=0.4, gain=1.0), noise(length=2048)
    loud, quiet = (codec.encode(one).std() for one in (x, (x.float() / 100).round().to(torch.int16)))
    assert float(loud / quiet) == pytest.approx(100**0.4, rel=0.05)


def test_what_would_clip_is_made_quieter() -> None:
    codec = ComplexSpectrogram(gain=1.0)
    wave = codec.decode(3 * codec.encode(noise(size=0.5)))
    assert int(wave.abs().max()) == pytest.approx(LOUDEST * FULL, abs=1)
    assert torch.equal(codec.decode(torch.zeros(1, 2, 128, 9)), torch.zeros(1, 1, 1024, dtype=torch.int16))


def test_the_gain_is_that_of_the_data() -> None:
    data = tones(100)
    found, _ = build_data(recipe("vocoder").set("data.count=100"))
    assert isinstance(found.codec, ComplexSpectrogram)
    z = found.codec.encode(data.train.take(np.arange(len(data.train))).x)
    assert float(z.std()) == pytest.approx(0.5, rel=0.02)
    again, _ = build_data(found)
    assert again.codec == found.codec
    silent = Data(*[_Silent()] * 2)
    codec = ComplexSpectrogram().fitted(silent, found.modality)
    assert codec.gain is not None
    assert math.isfinite(codec.gain)


class _Silent:
    shape, classes, slow = (1, 1024), (), False

    def __len__(self) -> int:
        return 4

    def take(self, indices: np.ndarray) -> Batch:
        return Batch(torch.zeros(len(indices), 1, 1024, dtype=torch.int16))

    about = take


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ComplexSpectrogram(rate=10), "codec.rate must be from 1,000"),
        (lambda: ComplexSpectrogram(window=255), "an even number"),
        (lambda: ComplexSpectrogram(power=0.0), "codec.power must be above 0"),
        (lambda: ComplexSpectrogram(gain=-1.0), "codec.gain above 0"),
        (lambda: ComplexSpectrogram().shape((1, 1000)), "a multiple of 128 samples"),
        (lambda: ComplexSpectrogram().shape((3, 28, 28)), "takes sounds"),
    ],
)
def test_misuse(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(UserError, match=message):
        make()
