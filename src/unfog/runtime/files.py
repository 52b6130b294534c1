"""Files that are whole or absent, a failing disk as one sentence, and what strangers wrote, read within bounds."""

import contextlib
import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from unfog.runtime.errors import EnvironmentFailure, UserError

MOST_JSON, DEEPEST = 1 << 24, 32
"""Bytes of a JSON file, and how deep its values may be nested, at most."""


def read_bounded(path: Path, most: int = MOST_JSON) -> str:
    """Read a text of at most `most` bytes, damaged signs replaced.

    Raises: UserError: If it is larger; no more of it was read.
    """
    with path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise UserError(f"{path} has more than {most:,} bytes, so it is not what unfog wrote: restore or remove it")
    return data.decode("utf-8", "replace")


def parse_json(text: str, **options: Any) -> Any:
    """Parse JSON whose values are nested at most 32 deep, which whoever walks through them can rely on.

    Raises: ValueError: If it is no JSON, or nested deeper.
    """
    deep = ValueError(f"values are nested more than {DEEPEST} deep")
    try:
        found = json.loads(text, **options)
    except RecursionError:
        raise deep from None
    layer = [found]
    for _ in range(DEEPEST):
        inner = (one.values() if isinstance(one, dict) else one for one in layer if isinstance(one, dict | list))
        layer = [one for values in inner for one in values]
    if any(isinstance(one, dict | list) for one in layer):
        raise deep
    return found


@contextlib.contextmanager
def disk(what: Path) -> Iterator[None]:
    """Turn a failing disk into one sentence.

    Raises: EnvironmentFailure: If the disk is full, read-only or not ours to write.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        full = getattr(error, "errno", None) == errno.ENOSPC or "os error 28" in str(error)
        why = "the disk is full" if full else str(error)
        raise EnvironmentFailure(f"cannot write {what}: {why}; what was written before is intact") from error


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; sync and rename it afterwards, or remove it after an error.

    Raises: EnvironmentFailure: If the disk fails.
    """
    rank = os.environ.get("RANK", "0")  # of several processes that write the same, the last one stays
    part = path.with_name(f".{path.name}.part" if rank == "0" else f".{path.name}.{rank}.part")
    with disk(path):
        part.unlink(missing_ok=True)  # a link that lies there would lead the writing elsewhere
        try:
            yield part
            sync(part)
            os.replace(part, path)
            sync(path.parent)
        finally:
            part.unlink(missing_ok=True)


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that it is whole or absent.

    Raises: EnvironmentFailure: If the disk fails.
    """
    with whole(path) as part:
        part.write_bytes(data)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder, so that no other process writes it; the system lets go when the process dies.

    Raises: UserError: If another process holds it.
    """
    lock = FileLock(folder / ".lock")
    try:
        with disk(folder):
            lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"another process is writing {folder}: wait for its end, or choose another --out") from None
    try:
        yield
    finally:
        lock.release()
