"""What metadata say of pictures: lines of `metadata.jsonl` and `metadata.csv`, and EDM's `dataset.json`."""

import csv
import io
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from unfog.data.packed import Member, Packed
from unfog.runtime.errors import UserError
from unfog.runtime.files import parse_json

LINE, LARGEST = 1 << 20, 1 << 28
"""Limits: characters per line of metadata, and bytes of a file that is read whole."""
TEXTS = ("text", "caption", "prompt")
"""Keys of a caption; the first that a line has is used."""
KNOWN = frozenset({"file_name", "label", "values", *TEXTS})
"""Keys that are read."""
NAMES = ("metadata.jsonl", "metadata.csv", "dataset.json")
"""Names of files of metadata; where several lie in one folder, the first of them is used."""


class Line(NamedTuple):
    """A line of metadata.

    Attributes:
        source: Name of the file of metadata.
        number: The line, from 1.
        entry: What it says, with `file_name` relative to the listed folder; or why it is invalid.
        others: Its keys that are not read.
    """

    source: str
    number: int
    entry: dict[str, object] | str
    others: tuple[str, ...] = ()


def decoded(data: bytes) -> str:
    """Return a text: UTF-16 where it begins with that mark, else UTF-8; undecodable bytes are replaced."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data.decode("utf-16", "replace")
    return data.decode("utf-8-sig", "replace")


def text_of(path: Path | Member, most: int = LARGEST) -> str:
    """Return the text of a file.

    Raises: UserError: If it has more bytes than `most`, or cannot be read.
    """
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}): change or remove it") from None
    if len(data) > most:
        raise UserError(f"{path} has more than {most:,} bytes: shorten it")
    return decoded(data)


def metadata_lines(root: Path | Packed, source: str = NAMES[0], where: str = "", rules: int = 2) -> Iterator[Line]:
    """Yield the lines of a file of metadata.

    Args:
        root: The folder that is listed.
        source: Name of the file, relative to it.
        where: Filter for the lines, see `folder`.
        rules: Version of the reading rules.
    """
    kind = PurePosixPath(source).name
    above = PurePosixPath(source).parent
    rows = {"metadata.csv": _csv, "dataset.json": _edm}.get(kind, _jsonl if rules > 1 else _jsonl_earlier)
    for number, row in rows(root / source):
        entry, others = _entry(row, rules)
        if isinstance(entry, dict):
            if rules == 1 and not _below(root, str(entry["file_name"])):
                entry = f"{entry['file_name']!r} is not a file below the folder"
            elif rules > 1:
                entry["file_name"] = (above / str(entry["file_name"])).as_posix()
        if isinstance(entry, str) or _holds(entry, where):
            key = where.partition("=")[0].strip()
            yield Line(source, number, entry, tuple(name for name in others if name != key))


def _holds(entry: Mapping[str, object], where: str) -> bool:
    """Return whether an entry matches the filter."""
    key, equals, text = where.partition("=")
    if where and not equals:
        raise UserError(f"data.where must be key=value, for instance group=Objects, not {where!r}")
    try:
        wanted: object = parse_json(text)
    except ValueError:
        wanted = text
    return not where or entry.get(key.strip()) in (wanted, text)


def _entry(row: object, rules: int) -> tuple[dict[str, object] | str, tuple[str, ...]]:
    """Return the entry of a row of metadata, or a message if it is invalid; and the keys that are not read."""
    if not isinstance(row, dict) or "file_name" not in row:
        return "not a JSON object with 'file_name'", ()
    entry = {str(key): value for key, value in row.items()}
    name = entry["file_name"]
    if not isinstance(name, str) or (rules > 1 and not _stays(name)):
        return f"{name!r} is not a file below the folder", ()
    given = [key for key in TEXTS if entry.get(key) is not None] if rules > 1 else []
    if given:
        entry["text"] = entry[given[0]]
    label, text = entry.get("label"), entry.get("text")
    names = label if isinstance(label, list) else []
    if isinstance(label, dict) or any(isinstance(item, dict | list | None) for item in names):
        return f"'label' must be a name or a list of names, not {label!r}", ()
    if isinstance(text, dict | list):
        return f"{(given or TEXTS)[0]!r} must be a string, not {text!r}", ()
    return entry, tuple(key for key in row if key not in KNOWN or key in given[1:])


def _stays(name: str) -> bool:
    """Return whether a name is that of a file below the folder, without resolving links."""
    try:
        name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # a lone surrogate
        return False
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and "\0" not in name


def _below(root: Path | Packed, name: str) -> bool:
    """Return whether a name lies below a folder, with symlinks resolved, as the first rules asked."""
    try:
        return isinstance(root, Path) and (root / name).resolve().is_relative_to(root.resolve())
    except (ValueError, RuntimeError):  # a null byte, a lone surrogate, a symlink loop
        return False


def _jsonl(path: Path | Member) -> Iterator[tuple[int, object]]:
    """Yield the rows of JSON lines."""
    with path.open("rb") as file:
        wide = file.read(2) in (b"\xff\xfe", b"\xfe\xff")
    if wide or isinstance(path, Member):
        for number, line in enumerate(text_of(path).split("\n"), 1):
            if line.strip():
                yield number, _parsed(line)
    else:
        yield from _jsonl_earlier(path)


def _jsonl_earlier(path: Path | Member) -> Iterator[tuple[int, object]]:
    """Yield the rows of JSON lines in UTF-8.

    Raises: UserError: If a line is too long.
    """
    with io.TextIOWrapper(path.open("rb"), encoding="utf-8-sig", errors="replace") as file:
        number = 0
        while line := file.readline(LINE + 1):
            number += 1
            if len(line) > LINE:
                raise UserError(f"{path} has a line of more than {LINE:,} characters: shorten it")
            if line.strip():
                yield number, _parsed(line)


def _parsed(line: str) -> object:
    """Return the JSON value of a line, or None."""
    try:
        value: object = parse_json(line)
    except ValueError:
        return None
    return value


def _csv(path: Path | Member) -> Iterator[tuple[int, object]]:
    """Yield the rows of a table whose first line names its columns; an empty cell says nothing.

    Numbers in the column `values` are separated by spaces, commas or semicolons.
    """
    table = csv.DictReader(io.StringIO(text_of(path)))
    try:
        for row in table:
            given: dict[str, object] = {str(key).strip(): cell for key, cell in row.items() if cell and key}
            if isinstance(cell := given.get("values"), str):
                words = re.split(r"[\s,;]+", cell.strip("[] "))
                given["values"] = [_number(word) for word in words if word]
            yield table.line_num, given
    except csv.Error as error:
        raise UserError(f"{path}, line {table.line_num}: {error}: correct the line") from None


def _number(word: str) -> object:
    """Return the number of a word, or the word."""
    try:
        return float(word)
    except ValueError:
        return word


def _edm(path: Path | Member) -> Iterator[tuple[int, object]]:
    """Yield the rows of EDM's `dataset.json`, {"labels": [[name, class], ...]}; without labels there are none.

    Source: Karras et al. 2022, `dataset_tool.py`.
    """
    try:
        rows = parse_json(text_of(path)).get("labels")
    except (ValueError, AttributeError):
        raise UserError(f"{path} is no description of a data set: correct or remove it") from None
    for number, row in enumerate(rows if isinstance(rows, list) else [], 1):
        pair = row if isinstance(row, list) and len(row) == 2 else [None, None]
        yield number, {"file_name": pair[0], "label": pair[1]}
