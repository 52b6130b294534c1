"""Spectrograms and their inverse: levels are what the docstrings say, and sounds come back from them."""

import numpy as np
import pytest
import torch

from unfog.data.spectra import Mel, filters, griffin_lim, linear, log_mel, power_of, spectrogram

RATE = 8000
MEL = Mel(RATE, 512, 128, 64)


def sine(hertz: float, size: float = 1.0, samples: int = 4096) -> torch.Tensor:
    return (size * torch.sin(2 * torch.pi * hertz * torch.arange(samples) / RATE))[None]


def test_a_sine_of_full_scale_has_the_power_of_its_band_and_half_the_size_six_decibels_less() -> None:
    frame = spectrogram(sine(1000), MEL)[0, :, 16]
    assert frame.argmax() == (filters(MEL)[:, round(1000 / (RATE / 512))]).argmax()
    assert 0.5 < float(frame.sum()) < 2.5
    difference = log_mel(sine(1000, 0.5), MEL)[0, :, 16].max() - log_mel(sine(1000, 0.25), MEL)[0, :, 16].max()
    assert float(difference) == pytest.approx(2 * 20 * np.log10(2) / 80, abs=1e-3)


def test_silence_is_the_floor_and_nothing_is_below_it() -> None:
    assert torch.equal(log_mel(torch.zeros(1, 1024), MEL), torch.full((1, 64, 9), -1.0))
    assert float(log_mel(1e-9 * torch.randn(1, 1024), MEL).min()) == -1


def test_filters_agree_with_those_of_transformers() -> None:
    audio_utils = pytest.importorskip("transformers.audio_utils")
    theirs = audio_utils.mel_filter_bank(257, 20, 0.0, RATE / 2, RATE, norm=None, mel_scale="htk")
    assert np.allclose(filters(Mel(RATE, 512, 128, 20)).numpy().T, theirs, atol=1e-5)


def test_every_band_hears_something_however_narrow_it_is() -> None:
    for mel in (MEL, Mel(RATE, 128, 64, 64), Mel(48_000, 1024, 256, 128)):
        assert bool((filters(mel).sum(1) > 0.1).all())


def test_powers_come_back_from_levels() -> None:
    power = torch.rand(2, 64, 9) + 1e-3
    level = 2 * (10 * torch.log10(power) + 80) / 80 - 1
    assert torch.allclose(power_of(level.clamp(max=1), MEL), power.clamp(max=1), rtol=1e-4)


def test_the_spectrum_of_a_mel_is_not_negative_and_has_this_mel() -> None:
    torch.manual_seed(3)
    spectrum = torch.rand(1, 257, 5) ** 4
    power = filters(MEL) @ spectrum
    found = linear(power, MEL, 300)
    assert float(found.min()) >= 0
    assert float((filters(MEL) @ found - power).abs().max()) < 0.02 * float(power.max())


def test_phases_are_found_for_a_sound() -> None:
    """The spectrum of what comes back is nearer to the one that was asked for with each of some rounds."""
    torch.manual_seed(0)
    x = sine(440, 0.3) + sine(1234, 0.2) + 0.01 * torch.randn(1, 4096)
    window = torch.hann_window(512)

    def spectrum(sound: torch.Tensor) -> torch.Tensor:
        return torch.stft(sound, 512, 128, window=window, return_complex=True, pad_mode="constant").abs()

    wanted = (spectrum(x) * 2 / window.sum()) ** 2
    misses = []
    for rounds in (0, 5, 60):
        again = spectrum(griffin_lim(wanted, MEL, 4096, rounds))
        misses.append(float((again - spectrum(x)).norm() / spectrum(x).norm()))
    assert misses[0] > misses[1] > misses[2]
    assert misses[2] < 0.1
    slower = spectrum(griffin_lim(wanted, MEL, 4096, 60, momentum=0.0))
    assert float((slower - spectrum(x)).norm() / spectrum(x).norm()) > 1.3 * misses[2]
    assert torch.equal(griffin_lim(wanted, MEL, 4096), griffin_lim(wanted, MEL, 4096))  # nothing is random
