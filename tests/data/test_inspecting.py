"""Inspection of sounds, videos, volumes, series and texts, in Python and on the command line."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unfog.cli.main import main
from unfog.data.inspecting import kind_of, look_over

sf = pytest.importorskip("soundfile")


def sounds(folder: Path) -> Path:
    folder.mkdir()
    for place in range(12):
        beep = 0.3 * np.sin(np.arange(3000 + 50 * place) * (0.2 + 0.2 * (place % 2)))
        sf.write(folder / f"{'ab'[place % 2]}_{place}.wav", beep, 8000)
    (folder / "a_broken.wav").write_bytes(b"RIFF")
    return folder


def test_sounds_are_reported_with_what_is_wrong(tmp_path: Path) -> None:
    folder = sounds(tmp_path / "sounds")
    assert kind_of(folder) == "audio"
    report = look_over(folder, "audio", "prefix")
    text = report.text()
    for part in (
        "recordings: 13, 12 of them readable",
        "samples a second 8000; channels 1",
        "classes: 2 (",
        "a_broken.wav",
        f"suggested: unfog train audio --data {folder} --label-from prefix",
    ):
        assert part in text
    assert report.sheet() is not None
    plain = json.loads(report.to_json())
    assert plain["refusal"] is None
    assert plain["rows"]["train"] + plain["rows"]["held out"] == 12


def test_the_command_looks_at_what_most_files_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = sounds(tmp_path / "sounds")
    picture, found = tmp_path / "sheet.png", tmp_path / "found.json"
    assert main(["inspect", str(folder), "--sheet", str(picture), "--json", str(found)]) == 0
    assert "audio: " in capsys.readouterr().out
    with Image.open(picture) as drawn:
        assert drawn.width > 100
    assert json.loads(found.read_text())["kind"] == "audio"
    assert main(["inspect", str(folder), "--budget", "10m"]) == 2
    assert "unfog plan audio" in capsys.readouterr().err
    assert main(["inspect", str(folder), "--kind", "music"]) == 2
    assert "unknown kind of data" in capsys.readouterr().err


def test_what_training_refuses_is_said(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    report = look_over(tmp_path / "x.csv", "series")
    assert report.refusal is not None
    assert "training refuses them" in report.text()
    assert report.sheet() is None


def test_series_volumes_and_texts_are_looked_at(tmp_path: Path) -> None:
    lines = [f"{np.sin(place / 5):.3f},{place % 9}" for place in range(600)]
    (tmp_path / "x.csv").write_text("a,b\n" + "\n".join(lines))
    assert kind_of(tmp_path / "x.csv") == "series"
    assert "columns: a, b" in look_over(tmp_path / "x.csv", "series").text()
    (tmp_path / "x.txt").write_text("".join(f"a line of text number {place}\n" for place in range(300)))
    assert kind_of(tmp_path / "x.txt") == "text"
    assert "different ones" in look_over(tmp_path / "x.txt", "text").text()
    (tmp_path / "scans").mkdir()
    for place in range(4):
        np.save(tmp_path / "scans" / f"{place}.npy", np.random.default_rng(place).random((9, 9, 9)))
    assert kind_of(tmp_path / "scans") is None  # arrays may be pictures
    assert "voxels 9×9×9; numbers float64" in look_over(tmp_path / "scans", "volumes").text()


def test_clips_are_looked_at(tmp_path: Path) -> None:
    pytest.importorskip("av")
    for place in range(4):
        frames = [Image.new("L", (16, 16), 10 * number + place) for number in range(8)]
        frames[0].save(tmp_path / f"{place}.gif", save_all=True, append_images=frames[1:], duration=100)
    text = look_over(tmp_path, "video").text()
    assert "sizes 16×16; frames 8; frames a second 10" in text


def test_pictures_are_inspected_as_before(tmp_path: Path) -> None:
    for place in range(3):
        Image.new("RGB", (8, 8), (place, 0, 0)).save(tmp_path / f"{place}.png")
    sf.write(tmp_path / "beep.wav", np.zeros(100), 8000)
    assert kind_of(tmp_path) is None
    assert kind_of(tmp_path / "nowhere") is None
