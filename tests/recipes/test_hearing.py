"""Conditioning on spectrograms, and the vocoder that it makes."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

import unfog
from unfog.cli.main import main
from unfog.data.sounds import FULL, Sounds
from unfog.data.source import Batch
from unfog.recipes.conditions import Known
from unfog.recipes.hearing import COMPRESSED, LOUD, SpectrogramConditioning
from unfog.recipes.presets import recipe
from unfog.runtime.errors import UserError

HALF = Known((2, 128, 57), (), (), (1, 7168), Sounds(8000))
SMALL = ("network.width=8", "network.middle=1", "sampling.steps=2", "sampling.batch=2", "data.count=100")


def beep(hertz: float, size: float = 0.5, length: int = 7168) -> torch.Tensor:
    wave = size * np.sin(2 * np.pi * hertz / 8000 * np.arange(length))
    return torch.from_numpy(np.round(wave * FULL)).to(torch.int16)[None, None]


@pytest.mark.parametrize("hertz", [250.0, 700.0, 1500.0, 3000.0])
def test_a_tone_is_where_its_frequency_is(hertz: float) -> None:
    """The centre of mass of the magnitudes over the rows, which are 31.25 Hz apart."""
    planes = SpectrogramConditioning().read(HALF, Batch(beep(hertz)), torch.empty(0), torch.empty(0))
    assert planes is not None
    assert planes.shape == (1, 2, 128, 57)
    level, magnitude = planes[0, :, :, 28]
    weight = ((level + 1) / 2) ** 30
    assert float((weight * torch.arange(128)).sum() / weight.sum()) * 31.25 == pytest.approx(hertz, rel=0.06)
    decibels = (level - 1) / 2 * 60
    assert torch.allclose(magnitude, LOUD * 10 ** (COMPRESSED * decibels / 20))
    assert float(decibels.max()) == pytest.approx(20 * math.log10(0.5), abs=3)


def test_levels_between_two_bands_are_interpolated() -> None:
    """Levels that rise by 0.02 a band, at the place of each row among the centres of the bands, even in mel."""
    levels = (-1 + 0.02 * torch.arange(64.0))[:, None].expand(2, 1, 64, 57)
    planes = SpectrogramConditioning().ask(HALF, levels, 2)
    assert planes is not None
    hertz = 31.25 * np.arange(128)
    places = np.log10(1 + hertz / 700) / np.log10(1 + 4000 / 700) * 65 - 1
    wanted = -1 + 0.02 * np.clip(places, 0, 63)
    assert np.allclose(planes[0, 0, :, 3].numpy(), wanted, atol=1e-5)


def test_several_sounds_are_taken_in_turn() -> None:
    own, sounds = SpectrogramConditioning(), torch.cat([beep(300), beep(900)])
    planes = own.ask(HALF, sounds, 3)
    assert planes is not None
    for place, one in enumerate((sounds[0], sounds[1], sounds[0])):
        alone = own.ask(HALF, one[None], 1)
        assert alone is not None
        assert torch.equal(planes[place], alone[0])


def test_samples_get_a_channel_for_each_band() -> None:
    known = Known((1, 7168), (), (), (1, 7168), Sounds(8000))
    own = SpectrogramConditioning(bands=16)
    planes = own.read(known, Batch(beep(500)), torch.empty(0), torch.empty(0))
    assert planes is not None
    assert planes.shape == (1, 16, 7168)
    assert own.planes(known) == 17
    levels = own.levels(known, beep(500))[0, 0]
    assert torch.allclose(planes[0, :, 0], levels[:, 0])
    assert torch.allclose(planes[0, :, -1], levels[:, -1], atol=1e-4)


def test_frames_of_another_hop_are_stretched() -> None:
    planes = SpectrogramConditioning(hop=256).read(HALF, Batch(beep(500)), torch.empty(0), torch.empty(0))
    assert planes is not None
    assert planes.shape == (1, 2, 128, 57)


@pytest.fixture(scope="module")
def vocoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vocoder of tones, hardly trained."""
    out = tmp_path_factory.mktemp("vocoder") / "run"
    unfog.train(recipe("vocoder").set(*SMALL, "images=32", "batch=8", "reports=1"), out)
    return out


def test_a_vocoder_takes_recordings_and_spectrograms(vocoder: Path, tmp_path: Path) -> None:
    run = unfog.load(vocoder)
    shape, modality = run.recipe.shape, run.recipe.modality
    assert shape is not None
    assert isinstance(modality, Sounds)
    x = (beep(440, 0.9 / (1 + 1e-9), shape[1]).float()).round().to(torch.int16)
    modality.write(x, tmp_path / "x.wav")
    drawn = run.sample(2, condition=str(tmp_path / "x.wav"))
    assert drawn.shape == (2, *shape)
    assert torch.equal(drawn, run.sample(2, condition=x[0]))
    conditioning = run.recipe.conditioning
    assert isinstance(conditioning, SpectrogramConditioning)
    levels = conditioning.levels(run.generator().known, x)
    assert torch.equal(drawn, run.sample(2, condition=levels))
    assert not torch.equal(drawn, run.sample(2, condition=beep(900, 0.9, shape[1])))
    loud = run.sample(1, condition=run.recipe.modality.read(tmp_path / "x.wav", shape))
    assert torch.equal(loud, drawn[:1])


def test_recordings_of_other_lengths_are_cut_or_continued_and_said(vocoder: Path, tmp_path: Path) -> None:
    pytest.importorskip("soundfile")
    run, shape = unfog.load(vocoder), unfog.load(vocoder).recipe.shape
    assert shape is not None
    Sounds(8000).write(beep(440, 0.5, 2 * shape[1])[0][None], tmp_path / "long.wav")
    Sounds(8000).write(beep(440, 0.5, 800)[0][None], tmp_path / "short.wav")
    with pytest.warns(UserWarning, match=r"long\.wav of .* s is cut"):
        run.sample(1, condition=tmp_path / "long.wav")
    with pytest.warns(UserWarning, match=r"short\.wav of 0\.1 s is followed by silence"):
        run.sample(1, condition=tmp_path / "short.wav")


def test_on_the_command_line(vocoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("soundfile")
    shape = unfog.load(vocoder).recipe.shape
    assert shape is not None
    Sounds(8000).write(beep(440, 0.5, shape[1]), tmp_path / "x.wav")
    out = tmp_path / "drawn"
    assert main(["sample", str(vocoder), "-n", "2", "--condition", str(tmp_path / "x.wav"), "--out", str(out)]) == 0
    assert len(list(out.glob("0*.wav"))) == 2
    capsys.readouterr()
    for given, message in (
        ([], "give a sound as --condition"),
        (["--condition", str(tmp_path / "none.wav")], "does not exist"),
        (["--image", str(tmp_path / "x.wav")], "does not take --image: use --condition"),
    ):
        assert main(["sample", str(vocoder), "-n", "1", *given]) == 2
        assert message in capsys.readouterr().err
    Sounds(8000).write(torch.zeros(1, *shape, dtype=torch.int16), tmp_path / "silent.wav")
    assert main(["sample", str(vocoder), "-n", "1", "--condition", str(tmp_path / "silent.wav")]) == 2
    assert "it is silent" in capsys.readouterr().err


def test_condition_is_the_other_name_of_every_condition(digits_run: Path) -> None:
    run = unfog.load(digits_run)
    assert torch.equal(run.sample(2, condition="3"), run.sample(2, label="3"))
    with pytest.raises(UserError, match="give `label` alone"):
        run.sample(2, condition="3", label=4)


def test_misuse(vocoder: Path) -> None:
    run = unfog.load(vocoder)
    with pytest.raises(UserError, match="conditioned on spectrograms of"):
        run.sample(1, condition=torch.zeros(1, 64, 9))
    with pytest.raises(UserError, match="is for sounds"):
        recipe("digits").set("conditioning=spectrogram").conditioning.build(Known((1, 8, 8), (), ()), 8)
    for bad in ({"hop": 0}, {"bands": 2}, {"floor": 3.0}, {"window": 4}):
        with pytest.raises(UserError):
            SpectrogramConditioning(**bad)  # type: ignore[arg-type]  # misuse on purpose
