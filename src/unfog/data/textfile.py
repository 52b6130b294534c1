"""A text file as a data set: a row for each of its lines, or for each window of a running text."""

from pathlib import Path
from typing import Literal

import numpy as np

from unfog.data.characters import END, GAP, codes
from unfog.data.source import Data, InMemory, MissingDataError, Subset, split
from unfog.runtime.errors import UserError

Rows = Literal["auto", "lines", "windows"]
LARGEST, MOST = 1 << 28, 4096
"""Bytes of a file, and different characters in it, at most."""
SHORT, WINDOW, LONGEST = 256, 128, 4096
"""Characters of a line up to which lines are rows by themselves, of a window, and of a row, at most."""
FEWEST = 100
"""Rows, at least."""
HELD = 0.1
"""Share of the rows, or of a running text, that is held out."""


def textfile(path: str = "", rows: Rows = "auto", length: int | None = None) -> Data:
    """Read a text in UTF-8.

    Lines are rows if there are a hundred or more and none is longer than 256 characters; a tenth of the different lines
    is held out. A running text is cut into windows of 128 characters, each beginning in the middle of the one before;
    the last tenth of the text is held out.

    Args:
        path: Path of the file.
        rows: "lines", "windows", or "auto", which decides by the rule above.
        length: Characters of a row. Default: those of the longest line, or 128.

    Returns: Rows of code points, int32 `(1, length)`.
    Raises: UserError: If the file is missing, too large, of another encoding, or too short.
    """
    if not path:
        raise UserError("no text was given: set data.path")
    if length is not None and not 2 <= length <= LONGEST:
        raise UserError(f"data.length must lie between 2 and {LONGEST}, not {length}")
    text = _read(Path(path).expanduser())
    lines = [line for line in text.splitlines() if line.strip()]
    longest = max((len(line) for line in lines), default=0)
    if rows == "lines" or (rows == "auto" and len(lines) >= FEWEST and longest <= SHORT):
        return _of_lines(path, lines, length or min(-(-longest // 8) * 8, LONGEST))
    return _of_windows(path, text, length or WINDOW)


def _of_lines(path: str, lines: list[str], length: int) -> Data:
    """Return a row for each line."""
    if len(lines) < FEWEST:
        raise UserError(f"{path} has {len(lines)} lines that are not empty: {FEWEST} or more make a data set of lines")
    cut = sum(len(line) > length for line in lines)
    notes = (f"{cut:,} of {len(lines):,} lines are longer than {length} characters and cut there",) if cut else ()
    shown = [line[:length] for line in lines]
    return split(InMemory(codes(shown, length), notes=notes), HELD, shown)


def _of_windows(path: str, text: str, length: int) -> Data:
    """Return a row for each window; none stands in both parts."""
    starts = np.arange(0, len(text) - length + 1, max(1, length // 2))
    border = len(text) - int(HELD * len(text))
    train, heldout = np.flatnonzero(starts + length <= border), np.flatnonzero(starts >= border)
    if len(train) < FEWEST or not len(heldout):
        least = round(FEWEST * length / 2 / (1 - HELD))
        raise UserError(f"{path} has {len(text):,} characters: a running text of {least:,} or more makes a data set")
    source = InMemory(codes([text[start : start + length] for start in starts], length))
    return Data(Subset(source, train), Subset(source, heldout))


def _read(path: Path) -> str:
    """Return the text of a file."""
    if not path.is_file():
        raise MissingDataError(f"{path} is no file", "give the path of a text in UTF-8")
    size = path.stat().st_size
    if size > LARGEST:
        raise UserError(f"{path} holds {size:,} bytes: a text may have {LARGEST:,}; give a part of it")
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}, line {line}, is not UTF-8: save the file in that encoding") from None
    strange = {chr(END), chr(GAP)} & set(text)
    if strange:
        raise UserError(f"{path} holds the character U+{ord(min(strange)):04X}, which marks ends and gaps: remove it")
    if len(set(text)) > MOST:
        raise UserError(f"{path} has {len(set(text)):,} different characters: {MOST:,} are the limit")
    return text
