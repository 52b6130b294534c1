"""What lasts can be played: in the report and on the page, with nothing loaded from anywhere."""

import base64
import io
import re
import wave
from pathlib import Path

import pytest
import torch

import unfog
from unfog.app.studio import player
from unfog.data.clips import Clips
from unfog.data.modality import images
from unfog.data.sounds import Sounds
from unfog.recipes.presets import recipe
from unfog.reports.html import page
from unfog.reports.report import report


def test_a_sound_is_inside_the_page_as_it_is() -> None:
    x = torch.randint(-9000, 9000, (2, 1, 800), dtype=torch.int16)
    html = player(x, Sounds(8000))
    found = re.findall(r'<audio controls title="sample (\d)" src="data:audio/wav;base64,([^"]+)"></audio>', html)
    assert [number for number, _ in found] == ["0", "1"]
    with wave.open(io.BytesIO(base64.b64decode(found[1][1]))) as file:
        assert file.readframes(800) == x[1].numpy().tobytes()
    assert player(torch.zeros(1, 1, 8, 8, dtype=torch.uint8), images) == ""


def test_clips_play_in_one_video() -> None:
    pytest.importorskip("av")
    html = player(torch.randint(0, 256, (3, 1, 4, 8, 8), dtype=torch.uint8), Clips())
    assert html.count("<video controls loop muted") == 1
    assert "http" not in html


def test_a_page_shows_what_lies_next_to_it_only(tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    Sounds(8000).write(torch.zeros(1, 1, 80, dtype=torch.int16), tmp_path / "outside.wav")
    Sounds(8000).write(torch.zeros(1, 1, 80, dtype=torch.int16), inner / "inside.wav")
    html = page('![here](inside.wav) ![there](../outside.wav) ![a" onerror="x](inside.wav)', "x", inner)
    assert html.count("<audio") == 2
    assert "there: missing" in html
    assert 'onerror="x' not in html.replace("&quot;", "")
    assert "media-src data:" in html


def test_the_report_of_sounds_plays_ten_of_them(tmp_path: Path) -> None:
    chosen = recipe("audio").set(
        "data.count=100", "network.width=8", "network.middle=1", "images=32", "batch=16", "sampling.steps=2"
    )
    run = unfog.train(chosen.set("codec.rounds=1", "training.reports=1"), tmp_path / "run")
    found = report(run, tmp_path / "report")
    html = found.write().read_text()
    assert html.count("<audio controls") == 10
    assert html.count("playing-") == 0  # nothing is loaded
    assert (tmp_path / "report" / "playing-09.wav").is_file()
