"""Files that are whole or absent, and a failing disk as one sentence."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from unfog.errors import EnvironmentFailure


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
    part = path.with_name(f".{path.name}.part")
    with disk(path):
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
