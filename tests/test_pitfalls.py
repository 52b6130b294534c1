"""Known pitfalls that have no test elsewhere: each row of the page names tests that exist."""

import io
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unfog.cli import terminal
from unfog.cli.main import main
from unfog.data.folder import folder, list_pictures
from unfog.data.pictures import read_picture
from unfog.recipes.presets import recipe
from unfog.runtime.errors import UserError
from unfog.runtime.files import cache_folder

ROOT = Path(__file__).parent.parent


def _draw(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 9).save(root / name, format="PNG")
    return root


def test_every_report_has_a_row_and_every_named_test_exists() -> None:
    """Of the 69 rows, those without a test say that it can happen."""
    page = (ROOT / "docs" / "pitfalls.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| (.+?) \| (.+?) \| (.+?) \| (.+?) \|$", page, re.MULTILINE)
    assert [int(number) for number, *_ in rows] == list(range(1, 70))
    for number, seen, what, here, tests in rows:
        assert min(map(len, (seen, what, here))) > 4, number
        named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", tests)
        assert named or (tests == "none" and "**It can**" in here), number
        for path, name in named:
            assert re.search(rf"^def {name}\(", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE), name


def test_a_suffix_of_another_format_does_not_matter(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), (10, 20, 30)).save(tmp_path / "x.png", format="JPEG")
    assert abs(int(read_picture(tmp_path / "x.png", 3, 8, 8)[2].mean()) - 30) < 4


def test_what_archives_leave_is_no_class(tmp_path: Path) -> None:
    """Archives made on a Mac hold `__MACOSX` and `._x.png`."""
    _draw(tmp_path, "a/1.png", "b/2.png", "__MACOSX/a/._1.png", "__MACOSX/3.png", "a/._1.png")
    listing = list_pictures(str(tmp_path))
    assert (listing.files, listing.classes) == (("a/1.png", "b/2.png"), ("a", "b"))


def test_an_empty_folder_is_no_class(tmp_path: Path) -> None:
    _draw(tmp_path, "a/1.png", "c/2.png")
    (tmp_path / "b").mkdir()
    listing = list_pictures(str(tmp_path))
    assert (listing.classes, listing.labels) == (("a", "c"), (0, 1))


def test_any_name_is_a_name(tmp_path: Path) -> None:
    names = ("a b.png", "it's.png", 'a"b.png', "line\nbreak.png", "🐈.png", "猫.png", "$(x);.png", "-n.png", "%s{}.png")
    data = folder(str(_draw(tmp_path / "dir with 'quotes' 🐈", *names)))
    files = [name for part in data for name in part.take(np.arange(len(part))).files or []]
    assert sorted(files) == sorted(names)


def test_guidance_below_zero_is_refused() -> None:
    with pytest.raises(UserError, match="guidance must lie between 0 and 1000, where 1 is off, not -1"):
        recipe("digits").set("sampling.guidance=-1")


@pytest.mark.parametrize("name", ["model.ckpt", "model.safetensors", "model-10.pt", "x.pkl"])
def test_a_single_file_is_no_model_folder(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / name).write_bytes(b"\x80\x04")
    assert main(["import", str(tmp_path / name), str(tmp_path / "run")]) == 2
    assert name in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_without_a_home_there_is_a_sentence_or_a_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A container whose user has neither HOME nor an entry of its own."""

    def unknown() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", unknown)
    assert str(cache_folder()) == os.environ["UNFOG_CACHE"]
    for name in ("UNFOG_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert main(["train", "mnist", "--out", str(tmp_path / "run"), "--device", "cpu"]) == 1
    assert "no home folder: set UNFOG_CACHE" in capsys.readouterr().err


def test_a_terminal_of_ascii_takes_any_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """LANG=C in a container: the stream refuses what is not ASCII."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="ascii") for _ in range(2)]
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    terminal.prepare()
    print("caf\u00e9 \u732b")
    terminal.say("unfog", "caf\u00e9 \u732b")
    for stream in streams:
        stream.flush()
        assert rb"caf\xe9 \u732b" in stream.buffer.getvalue()  # type: ignore[attr-defined]
