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
    with progress.working("importing it", console=Console(file=file)):
        until(lambda: "importing it: 0:00:00" in file.getvalue()[len(ended) :])
    with progress.working("looking", 4, console=Console(file=file)) as work:
        work.advance()
        until(lambda: "looking: 1 of 4, 0:00:00" in file.getvalue())
        work.describe("seeing")
        until(lambda: "seeing: 1 of 4" in file.getvalue())
    ended = file.getvalue()
    time.sleep(0.03)
    assert file.getvalue() == ended
    with progress.working("nothing", console=None) as silent:
        silent.advance()


def test_a_time_is_worded_as_one_would_say_it() -> None:
    times = {0.042: "0.042 s", 7.25: "7.2 s", 85: "85 s", 150: "2.5 minutes", 3000: "50 minutes", 7300: "2 hours"}
    assert {seconds: progress.duration(seconds) for seconds in times} == times
    assert progress.duration(400_000) == "5 days"


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
