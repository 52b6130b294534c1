"""Atomic writes, disk errors as one sentence, and bounded reading of untrusted files."""

import contextlib
import errno
import json
import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from unfog.runtime.errors import EnvironmentFailure, UserError

MOST_JSON, DEEPEST = 1 << 24, 32
"""Largest JSON file in bytes, and its deepest nesting."""
LOCK = ".lock"
"""Name of the lock in a folder that is written."""
FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
"""Errors of a folder in which this user may not write."""
POINTER = b"version https://git-lfs.github.com/spec/"
"""Beginning of the short text that stands in for a file where Git LFS has not fetched it."""


def read_bounded(path: Path, most: int = MOST_JSON) -> str:
    """Read a UTF-8 text of at most `most` bytes; undecodable bytes are replaced.

    Raises: UserError: If the file is larger; the rest is not read.
    """
    with path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise UserError(f"{path} has more than {most:,} bytes, so unfog did not write it: restore or remove it")
    return data.decode("utf-8", "replace")


def is_pointer(path: Path) -> bool:
    """Return whether a file is what stands in for another that Git LFS has not fetched."""
    try:
        with path.open("rb") as file:
            return file.read(len(POINTER)) == POINTER
    except OSError:
        return False


def unreadable(path: Path, error: Exception, cure: str) -> UserError:
    """Return why a file cannot be read, with what helps: `cure` where it is damaged.

    Args:
        path: The file.
        error: What its reader says.
        cure: What to do with a damaged file.
    """
    try:
        path.open("rb").close()
    except PermissionError:
        return UserError(f"{path} may not be read by you (permission denied): change its permissions with chmod")
    except OSError as failure:
        return UserError(f"{path} cannot be read ({failure.strerror}): check the disk")
    if is_pointer(path):
        return UserError(f"{path} is a Git LFS pointer and not the file itself: run `git lfs pull` in its repository")
    return UserError(f"{path} is damaged or truncated ({error}): {cure}")


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


def cache_folder() -> Path:
    """Return the cache folder: `$UNFOG_CACHE`, else `unfog` in `$XDG_CACHE_HOME` or `~/.cache`.

    Raises: EnvironmentFailure: If none of them is known.
    """
    own, shared = os.environ.get("UNFOG_CACHE"), os.environ.get("XDG_CACHE_HOME")
    if own or shared:
        return Path(own) if own else Path(shared or "") / "unfog"
    try:
        return Path.home() / ".cache" / "unfog"
    except RuntimeError:  # a container's user may have no entry and no HOME
        raise EnvironmentFailure("this user has no home folder: set UNFOG_CACHE to a folder for downloads") from None


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Write `path` atomically: yield a temporary path next to it, then sync and rename; remove it after an error.

    A link there is replaced, and what it leads to stays as it is.

    Raises: EnvironmentFailure: If the disk fails, or there is a folder, a pipe or a device at `path`.
    """
    if not _replaceable(path):
        what = "folder" if path.is_dir() else "pipe or a device"
        raise EnvironmentFailure(f"cannot write {path}: a {what} has this name, so remove it or choose another place")
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


def _replaceable(path: Path) -> bool:
    """Return whether there is a file, a link or nothing at a path."""
    try:
        mode = path.lstat().st_mode
    except OSError:  # whoever writes there gets to know why
        return True
    return stat.S_ISREG(mode) or stat.S_ISLNK(mode)


@contextlib.contextmanager
def output(path: Path) -> Iterator[Path]:
    """Write a file that the user named: as `whole`, but through links, and into pipes and devices as they are.

    Raises: EnvironmentFailure: If the disk fails, nobody reads the pipe any longer, or there is a folder at `path`.
    """
    descriptor, target = _descriptor(path), path.resolve()
    if descriptor is None and (_replaceable(target) or target.is_dir()):
        with whole(target) as part:
            yield part
        return
    with tempfile.TemporaryDirectory() as folder:
        part = Path(folder) / "part"
        yield part
        with disk(path), open(path if descriptor is None else os.dup(descriptor), "wb") as stream:
            for printed in (sys.stdout, sys.stderr):
                printed.flush()
            stream.write(part.read_bytes())


def _descriptor(path: Path) -> int | None:
    """Return the open file that a path such as /dev/stdout names: opening it anew would overwrite its beginning."""
    own = {Path(name).resolve() for name in ("/proc/self/fd", "/dev/fd")}
    for one in (path, path.parent / os.readlink(path) if path.is_symlink() else path):
        if one.name.isdecimal() and one.parent.resolve() in own:
            return int(one.name)
    return None


def write_output(path: Path, data: bytes) -> None:
    """Write a file that the user named, see `output`."""
    with output(path) as part:
        part.write_bytes(data)


def write_whole(path: Path, data: bytes) -> None:
    """Write a file atomically.

    Raises: EnvironmentFailure: If the disk fails.
    """
    with whole(path) as part:
        part.write_bytes(data)


@contextlib.contextmanager
def locked(folder: Path, wait: bool = False) -> Iterator[None]:
    """Make a folder and hold its lock, so that one process at a time writes there; a dead process holds none.

    Whoever holds it can take it again. A folder that was made here and in which nothing was written is removed.

    Args:
        folder: The folder.
        wait: Wait for another process instead of refusing; for caches, whose files are the same whoever writes them.

    Raises: UserError: If another process holds the lock, or the path is that of a file.
        EnvironmentFailure: If the disk fails.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: choose another `out`")
    made = [one for one in (folder, *folder.parents) if not one.exists()]
    try:
        with _held(folder / LOCK, folder, "choose another folder", wait):
            yield
    finally:
        with contextlib.suppress(OSError):
            for one in made:
                one.rmdir()


def check_name(path: Path) -> None:
    """Refuse a path that is no text, since safetensors can neither write nor read weights there.

    Raises: UserError: If its bytes are not UTF-8.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise UserError(f"the name {path} is not valid UTF-8, and no weights can be kept there: rename it") from None


@contextlib.contextmanager
def locked_file(path: Path) -> Iterator[None]:
    """Hold the lock of a file, in a file next to it, while one process works out what to write there.

    Pipes and devices have no lock, nor has what is open already.

    Raises: UserError: If another process holds the lock.
        EnvironmentFailure: If the disk fails.
    """
    target = path.resolve()
    if _descriptor(path) is not None or not _replaceable(target):
        yield
        return
    with _held(target.with_name(f".{target.name}{LOCK}"), path, "choose another file"):
        yield


@contextlib.contextmanager
def _held(path: Path, what: Path, cure: str, wait: bool = False) -> Iterator[None]:
    """Make the folder of a lock, and hold the lock; without the right to write there, whatever is written says so."""
    lock = FileLock(path.parent.resolve() / path.name, is_singleton=True)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout:  # which is an OSError, but no fault of the disk
        raise UserError(f"another process is writing {what}: wait until it is done, or {cure}") from None
    except OSError as error:
        if error.errno not in FORBIDDEN:
            with disk(what):
                raise
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            if lock.lock_counter == 1:  # the outermost of those that hold it
                path.unlink()  # while it is held: filelock drops a lock whose file it finds removed
        lock.release()


def occupied(folder: Path) -> bool:
    """Return whether a folder holds anything but its lock."""
    return any(one.name != LOCK for one in folder.iterdir())
