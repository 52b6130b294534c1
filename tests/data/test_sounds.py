"""Sounds: rows, files, sheets, the codec, and folders of recordings with all that goes wrong in them."""

import warnings
import wave
from pathlib import Path

import numpy as np
import pytest
import torch

from unfog.data.folder import notes_of
from unfog.data.pictures import UnreadableError
from unfog.data.sounds import FULL, Sounds, Spectrogram
from unfog.data.tones import KINDS, kinds, tones
from unfog.recipes.build import build_data
from unfog.recipes.presets import recipe
from unfog.runtime.errors import UserError

sf = pytest.importorskip("soundfile")
from unfog.data import recordings as readers  # noqa: E402
from unfog.data.recordings import recordings  # noqa: E402


def beep(seconds: float, hertz: float = 440.0, rate: int = 8000, size: float = 0.3) -> np.ndarray:
    return size * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twenty beeps of two kinds, and five that are of no use or need something."""
    for place in range(20):
        suffix = ("wav", "flac", "ogg", "wav")[place % 4]
        sf.write(
            tmp_path / f"{'ab'[place % 2]}_{place}.{suffix}", beep(0.4 + 0.01 * place, 300 + 200 * (place % 2)), 8000
        )
    return tmp_path


def test_a_wav_comes_back_to_the_bit(tmp_path: Path) -> None:
    for channels in (1, 2):
        x = torch.randint(-FULL, FULL + 1, (1, channels, 777), dtype=torch.int16)
        Sounds(11_025).write(x, tmp_path / "x.wav")
        assert torch.equal(Sounds(11_025).read(tmp_path / "x.wav", (channels, 777)), x)
        heard, rate = sf.read(tmp_path / "x.wav", dtype="int16", always_2d=True)  # by another program
        assert rate == 11_025
        assert np.array_equal(heard.T, x[0].numpy())


@pytest.mark.parametrize(("shape", "rate"), [((1, 776), 8000), ((2, 777), 8000), ((1, 777), 8001)])
def test_a_wav_of_another_length_rate_or_number_of_channels_is_refused(
    tmp_path: Path, shape: tuple[int, int], rate: int
) -> None:
    Sounds(8000).write(torch.zeros(1, 1, 777, dtype=torch.int16), tmp_path / "x.wav")
    with pytest.raises(UnreadableError, match="777 samples at 8,000 a second"):
        Sounds(rate).read(tmp_path / "x.wav", shape)
    (tmp_path / "x.wav").write_bytes(b"RIFF")
    with pytest.raises(UnreadableError):
        Sounds(rate).read(tmp_path / "x.wav", shape)


def test_a_sheet_shows_where_a_sound_is_loud_and_how_high_it_is() -> None:
    x = torch.zeros(2, 1, 8000, dtype=torch.int16)
    x[0, 0, 4000:] = torch.from_numpy(beep(0.5, 3000, size=0.9) * FULL).to(torch.int16)
    x[1, 0, 4000:] = torch.from_numpy(beep(0.5, 200, size=0.9) * FULL).to(torch.int16)
    drawn = np.asarray(Sounds(8000).sheet(x, 2)).astype(int)
    wave_ = drawn[:40, :130].sum(2)
    blue = wave_ < 600
    assert blue[:, 70:].sum() > 20 * blue[:, 5:60].sum()
    high, low = drawn[45:-1, 1:129], drawn[45:-1, 130:258]
    assert high[:, 100].argmin(0)[0] < low[:, 100].argmin(0)[0]  # low sounds are below


def test_levels_come_back_as_a_sound_of_these_levels() -> None:
    x = tones(100, seed=4).train.take(np.arange(12)).x
    codec = Spectrogram()
    z = codec.encode(x)
    assert z.shape[1:] == codec.shape((1, 6016)) == (1, 64, 48)
    assert -1 <= float(z.min()) < float(z.max()) <= 1
    back = codec.decode(z)
    assert back.dtype == torch.int16
    assert back.shape == x.shape
    assert float((codec.encode(back) - z).abs().mean()) < 0.06
    assert codec.compared(x).shape[1:] == (1, 40, 48)
    loud = codec.decode(torch.full((1, 1, 64, 8), 1.0))
    assert int(loud.abs().max()) == round(0.99 * FULL)  # what would clip is made quieter
    assert torch.equal(codec.decode(z[3:4]), back[3:4])  # sound i is sound i, whatever stands beside it


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rate": 10}, "codec.rate"),
        ({"hop": 300}, "codec.hop"),
        ({"bands": 1}, "codec.bands"),
        ({"floor": 3.0}, "floor"),
    ],
)
def test_a_spectrogram_that_cannot_be_is_refused(options: dict[str, float], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Spectrogram(**options)  # type: ignore[arg-type]


def test_samples_that_are_no_multiple_of_the_hop_are_refused() -> None:
    with pytest.raises(UserError, match="multiple of 128 samples"):
        Spectrogram().shape((1, 6017))
    with pytest.raises(UserError, match="takes sounds"):
        Spectrogram().shape((3, 16, 16))


def test_tones_are_read_exactly_also_after_their_phases_were_lost() -> None:
    data = tones(400, seed=2)
    batch = data.heldout.take(np.arange(len(data.heldout)))
    assert batch.labels is not None
    assert np.array_equal(kinds(batch.x.numpy()), batch.labels.numpy())
    assert len(data.train.classes) == len(KINDS) == 10
    some, codec = batch.x[:20], Spectrogram(rounds=30)
    assert np.array_equal(kinds(codec.decode(codec.encode(some)).numpy()), batch.labels[:20].numpy())


def test_noise_silence_and_speech_like_sounds_are_no_tones() -> None:
    draw = np.random.default_rng(0)
    noise = (3000 * draw.standard_normal((20, 1, 6016))).astype(np.int16)
    chord = sum(beep(0.752, hertz, size=0.2) for hertz in (233.0, 371.0, 640.0, 1010.0, 1490.0, 2210.0))
    others = np.stack([np.zeros(6016), chord[:6016] * FULL]).astype(np.int16)[:, None]
    assert set(kinds(np.concatenate([noise, others])).tolist()) == {-1}


def test_a_folder_is_read_with_what_it_is_and_what_is_done_with_it(folder: Path) -> None:
    data = recordings(str(folder), label_from="prefix")
    assert data.train.classes == ("a", "b")
    assert len(data.train) + len(data.heldout) == 20
    batch = data.train.take(np.arange(len(data.train)))
    assert batch.x.dtype == torch.int16
    peaks = batch.x.abs().amax((1, 2))
    assert int(peaks.min()) == int(peaks.max()) == round(0.9 * FULL)
    quiet = recordings(str(folder), label_from="prefix", loudness=False).train.take(np.arange(5)).x
    assert int(quiet.abs().max()) < 0.35 * FULL


def test_what_is_wrong_in_a_folder_is_said_and_the_rest_is_used(folder: Path) -> None:
    sf.write(folder / "a_silent.wav", np.zeros(3000), 8000)
    sf.write(folder / "b_stereo.wav", np.stack([beep(0.4), beep(0.4, 600)], 1), 8000)
    sf.write(folder / "a_fast.wav", beep(0.4, rate=44_100), 44_100)
    sf.write(folder / "b_clipped.wav", np.clip(9 * beep(0.4), -1, 1), 8000)
    sf.write(folder / "a_nan.wav", np.full(3000, np.nan, np.float32), 8000, subtype="FLOAT")
    (folder / "a_empty.wav").write_bytes(b"")
    (folder / "b_broken.ogg").write_bytes(b"OggS and then nothing")
    (folder / "notes.pdf").write_bytes(b"%PDF")
    data = recordings(str(folder), label_from="prefix")
    said = "\n".join(notes_of(data))
    for part in (
        "skipped 4 of 27 recordings",
        "it is silent: a_silent.wav",
        "it holds numbers that are not finite: a_nan.wav",
        "resampled to 8,000 samples a second: 1 recording",
        "mixed to mono: 1 recording",
        "full scale: 1 recording (b_clipped.wav)",
        "not used (1): of a kind that is not read: notes.pdf",
    ):
        assert part in said
    assert len(data.train) + len(data.heldout) == 23


def test_a_resampled_sound_keeps_its_pitch(tmp_path: Path) -> None:
    for place in range(4):
        sf.write(tmp_path / f"{place}.wav", beep(0.5, 440, 44_100), 44_100)
    data = recordings(str(tmp_path), rate=8000, length=4000)
    x = data.train.take(np.arange(1)).x[0, 0].numpy().astype(float)
    spectrum = np.abs(np.fft.rfft(x * np.hanning(len(x))))
    assert spectrum.argmax() * 8000 / len(x) == pytest.approx(440, abs=2)


def test_all_channels_are_heard(tmp_path: Path) -> None:
    for place in range(4):
        sf.write(tmp_path / f"{place}.wav", np.stack([np.zeros(4000), beep(0.5)], 1), 8000)
    mono = recordings(str(tmp_path), channels=1, length=4000, loudness=False)
    x = mono.train.take(np.arange(1)).x[0, 0].numpy() / FULL
    assert np.abs(x).max() == pytest.approx(0.15, abs=0.01)  # the mean of silence and 0.3
    both = recordings(str(tmp_path), length=4000, loudness=False).train.take(np.arange(1)).x[0]
    assert both.shape == (2, 4000)
    assert int(both[0].abs().max()) == 0


def test_a_file_of_too_many_samples_is_refused_by_its_header(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "SAMPLES", 4000)
    with pytest.raises(UnreadableError, match="too large: its 4,720 samples are more than 4,000"):
        readers.header(folder / "b_19.wav")


def test_another_container_is_refused_whatever_its_name(tmp_path: Path) -> None:
    for place in range(3):
        sf.write(tmp_path / f"{place}.wav", beep(0.4), 8000)
    sf.write(str(tmp_path / "other.wav"), beep(0.4), 8000, format="AIFF")
    assert any("its container AIFF is not read: other.wav" in note for note in notes_of(recordings(str(tmp_path))))


def test_long_recordings_become_windows_and_those_of_one_stay_together(tmp_path: Path) -> None:
    for place in range(6):
        sf.write(tmp_path / f"{place}.wav", beep(3.0 + 0.1 * place), 8000)
    data = recordings(str(tmp_path), length=4000)
    assert any("rows are windows of 0.5 s" in note for note in notes_of(data))
    files = [set(part.take(np.arange(len(part))).files or ()) for part in data]
    assert not files[0] & files[1]
    assert len(data.train) + len(data.heldout) == sum(-(-round(24_000 + 800 * place) // 4000) for place in range(6))
    short = recordings(str(tmp_path), length=4000, rows="clips")
    assert len(short.train) + len(short.heldout) == 6
    assert any("cut to 0.5 s: 6 recordings" in note for note in notes_of(short))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rate": 7}, "data.rate must be from"),
        ({"channels": 3}, "data.channels 1 or 2"),
        ({"length": 3}, "data.length must be from 16 samples"),
        ({"length": 10**7}, "data.length must be from 16 samples"),
        ({"heldout": 1.0}, "data.heldout must be between"),
    ],
)
def test_options_out_of_range_are_refused(folder: Path, options: dict[str, float], said: str) -> None:
    with pytest.raises(UserError, match=said):
        recordings(str(folder), **options)  # type: ignore[arg-type]


def test_a_folder_without_sounds_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="contains no recordings"):
        recordings(str(tmp_path))
    (tmp_path / "x.wav").write_bytes(b"nothing")
    with pytest.raises(UserError, match="none of the 1 recordings"):
        recordings(str(tmp_path))


def test_a_playlist_that_is_named_like_a_sound_reaches_nothing(tmp_path: Path) -> None:
    sf.write(tmp_path / "secret.wav", beep(0.4), 8000)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "x.mp3").write_text(f"#EXTM3U\n{tmp_path / 'secret.wav'}\n")
    with pytest.raises(UserError, match="none of the 1 recordings"):
        recordings(str(tmp_path / "in"))


def test_a_rate_that_nobody_chose_is_that_of_the_files(tmp_path: Path) -> None:
    """Samples are written at it: a wrong one would change their pitch."""
    for place in range(12):
        sf.write(tmp_path / f"{place}.wav", beep(0.4 + place / 100, rate=16_000), 16_000)
    chosen = recipe("audio").set("data=recordings", f"data.path={tmp_path}", "data.length=6016")
    assert build_data(chosen)[0].modality == Sounds(16_000)


def test_the_recipe_fits_the_folder(folder: Path) -> None:
    found = recipe("audio", str(folder), label_from="prefix")
    assert isinstance(found.codec, Spectrogram)
    assert (found.codec.rate, found.codec.window, found.codec.hop) == (8000, 512, 128)
    length = found.data.length  # type: ignore[attr-defined]
    assert length % 128 == 0
    assert (length // 128 + 1) % 8 == 0
    assert length / 8000 >= 0.58
    assert found.sampling.guidance == 2
    assert found.modality == Sounds(8000)
    with pytest.raises(UserError, match="no pictures: omit size"):
        recipe("audio", str(folder), 32)
    with wave.open(str(folder / "long.wav"), "wb") as file:  # a header that lies about its length
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(b"\0\0" * 10)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        recipe("audio", str(folder), label_from="prefix")
