"""Files that are whole or absent, and a failing disk as one sentence."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from unfog.errors import EnvironmentFailure, UserError


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
