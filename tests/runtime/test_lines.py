"""Sentences in lines, and cells in columns."""

from unfog.runtime.lines import WIDE, aligned, lines_of


def test_a_sentence_fills_lines_and_hangs() -> None:
    words = "word " * 50
    first, *rest = lines_of(f"speed   {words}", 8)
    assert first.startswith("speed   word")
    assert all(line.startswith("        word") for line in rest)
    assert max(map(len, [first, *rest])) <= WIDE
    assert lines_of("") == []
    path = "/" + "a" * (WIDE + 10)
    assert lines_of(f"look at {path}")[-1] == path  # a path can be copied


def test_cells_stand_in_columns() -> None:
    assert aligned([["a", "bb", ""], ["ccc", "d", "e"]]) == "a    bb\nccc  d   e"
