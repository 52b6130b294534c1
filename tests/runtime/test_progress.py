"""Progress: a bar on a terminal; lines elsewhere, also while a single part takes long; nothing where none is wanted."""

import io
import re
import time

import pytest
from rich.console import Console

from tests.conftest import until
from unfog.runtime import progress


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines come at once."""
    monkeypatch.setattr(progress, "FIRST", 0.01)
    monkeypatch.setattr(progress, "EVERY", 0.01)


def test_a_pipe_gets_lines(quick: None) -> None:
    """Each says how much is done, and comes while a part is being worked on."""
    file = io.StringIO()
    for number, _ in enumerate(progress.track(range(3), "encoding", console=Console(file=file))):
        until(lambda number=number: f"encoding: {number} of 3, 0:00:00" in file.getvalue())
    for line in file.getvalue().splitlines():
        assert re.fullmatch(r"encoding: \d of 3, 0:00:0\d(, about 0:00:0\d left)?", line)
    ended = file.getvalue()
    with progress.working("importing it", Console(file=file)):
        until(lambda: "importing it: 0:00:00" in file.getvalue()[len(ended) :])


def test_short_work_says_nothing() -> None:
    file = io.StringIO()
    assert list(progress.track(iter("abc"), "encoding", 3, console=Console(file=file))) == ["a", "b", "c"]
    assert file.getvalue() == ""


def test_a_terminal_gets_a_bar_and_no_lines(quick: None) -> None:
    file = io.StringIO()
    for _ in progress.track(range(3), "encoding", console=Console(file=file, force_terminal=True)):
        time.sleep(0.02)
    assert "\x1b[" in file.getvalue()
    assert "of 3" not in file.getvalue()
    with progress.bar(None) as shown:
        assert list(shown.track([1, 2])) == [1, 2]
