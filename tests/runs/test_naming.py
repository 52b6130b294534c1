"""Names of files of samples: safe, bounded, and read back."""

import json
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unfog.runs.naming import INDEX, file_name, place_of, slug, write_index, written_pictures


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("cat", "cat"),
        ("A small red circle!", "A-small-red-circle"),
        ("../../etc/passwd", "etc-passwd"),
        ("C:\\con.png\0", "C-con-png"),
        ("e\u0301te\u0301", "été"),
        ("ﬁsh", "fish"),
        ("हिन्दी", "हिन्दी"),
        ("🌷", "tulip"),
        ("+", "plus-sign"),
        ("\u202e\ud800", ""),
        ("", ""),
        ("word " * 50, "-".join(["word"] * 8)),
    ],
)
def test_slugs(text: str, wanted: str) -> None:
    assert slug(text) == wanted


@given(st.text(max_size=60), st.integers(0, 9_999_999))
def test_any_text_makes_a_safe_name_that_is_read_back(text: str, place: int) -> None:
    name = file_name(place, text, ".png")
    assert Path(name).name == name
    assert not set(name) & set('/\\:*?"<>|\0')
    assert len(name.encode()) <= 140
    assert name == unicodedata.normalize("NFC", name)
    assert not name.removesuffix(".png").endswith(("-", ".", " "))


def test_numbers_come_from_names_of_both_kinds(tmp_path: Path) -> None:
    names = ["00002.png", "00000-cat.png", "00001-a-b.png", "100000-cat.png"]
    others = ["1-cat.png", "000001.png", "00003-cat.v2.png", "cat.png", "sheet.png", "00004cat.png", "٠٠٠٠٥.png"]
    for name in names + others:
        (tmp_path / name).touch()
    assert [path.name for path in written_pictures(tmp_path)] == [names[1], names[2], names[0], names[3]]
    assert [name for name in others if place_of(tmp_path / name) is not None] == []
    (tmp_path / "sampling.json").write_text('{"n": 3}')
    assert [path.name for path in written_pictures(tmp_path)] == [names[1], names[2], names[0]]


def test_the_index_takes_any_text(tmp_path: Path) -> None:
    words = ['a "b"\n', "\ud800", "花"]
    write_index(tmp_path, (f"{place}.png" for place in range(3)), words, {"seed": 1, "steps": 4})
    lines = json.loads((tmp_path / INDEX).read_text(encoding="utf-8"))
    assert [line["condition"] for line in lines] == words
    assert lines[2] == {"number": 2, "file": "2.png", "condition": "花", "seed": 1, "steps": 4}
