"""Atomic writes, disk errors as one sentence, and bounded reading of untrusted files."""

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
"""Largest JSON file in bytes, and its deepest nesting."""


def read_bounded(path: Path, most: int = MOST_JSON) -> str:
    """Read a UTF-8 text of at most `most` bytes; undecodable bytes are replaced.

    Raises: UserError: If the file is larger; the rest is not read.
    """
    with path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise UserError(f"{path} has more than {most:,} bytes, so unfog did not write it: restore or remove it")
    return data.decode("utf-8", "replace")


def parse_json(text: str, **options: Any) -> Any:
    """Parse JSON that is nested at most 32 levels deep, so that recursive code can rely on it.

    Raises: ValueError: If the text is not JSON, or nested deeper.
    """
    too_deep = ValueError(f"values are nested more than {DEEPEST} levels deep")
    try:
        parsed = json.loads(text, **options)
    except RecursionError:
        raise too_deep from None
    layer = [parsed]
    for _ in range(DEEPEST):
        deeper: list[Any] = []
        for value in layer:
            if isinstance(value, dict):
                deeper.extend(value.values())
            elif isinstance(value, list):
                deeper.extend(value)
        layer = deeper
    if any(isinstance(value, dict | list) for value in layer):
        raise too_deep
    return parsed


@contextlib.contextmanager
def disk(what: Path) -> Iterator[None]:
    """Turn disk errors into one sentence.

    Raises: EnvironmentFailure: If the disk is full, or the path is read-only or not writable.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        full = getattr(error, "errno", None) == errno.ENOSPC or "os error 28" in str(error)
        why = "the disk is full" if full else str(error)
        raise EnvironmentFailure(f"cannot write {what}: {why}; what was written before is intact") from error


def sync(path: Path) -> None:
    """Flush a file or folder to the disk (fsync)."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Write `path` atomically: yield a temporary path next to it, then sync and rename; remove it after an error.

    Raises: EnvironmentFailure: If the disk fails.
    """
    rank = os.environ.get("RANK", "0")  # if several processes write the same file, the last one wins
    part = path.with_name(f".{path.name}.part" if rank == "0" else f".{path.name}.{rank}.part")
    with disk(path):
        part.unlink(missing_ok=True)  # a symlink there would redirect the write
        try:
            yield part
            sync(part)
            os.replace(part, path)
            sync(path.parent)
        finally:
            part.unlink(missing_ok=True)


def write_whole(path: Path, data: bytes) -> None:
    """Write a file atomically.

    Raises: EnvironmentFailure: If the disk fails.
    """
    with whole(path) as part:
        part.write_bytes(data)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a folder against other writers; the lock is released when the process dies.

    Raises: UserError: If another process holds the lock.
    """
    lock = FileLock(folder / ".lock")
    try:
        with disk(folder):
            lock.acquire(timeout=0)
    except Timeout:
        raise UserError(
            f"another process is writing {folder}: wait until it is done, or choose another folder"
        ) from None
    try:
        yield
    finally:
        lock.release()
