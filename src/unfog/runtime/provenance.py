"""What every figure says of where it comes from: date, machine, command and version."""

import os
import platform
import re
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path, PurePath

from unfog.runtime.version import __version__

COMMAND: ContextVar[tuple[str, ...]] = ContextVar("command", default=())
"""The words of the command line that is being run; empty in Python."""
ABROAD = re.compile(r"^(--[\w-]+=)?((?:[/~]|\.\.[/\\]|[A-Za-z]:\\).*)$", re.DOTALL)
"""A word, or a flag's value, that is a path from outside of the working folder, which may name a user or a machine."""
PATIENCE = 5.0
"""Seconds that git may take."""


@dataclass(frozen=True)
class Provenance:
    """Where figures come from.

    Attributes:
        date: When they were measured, in UTC.
        machine: Processor, its cores, and the GPU where there is one; neither its name nor its user's.
        command: The command line, paths outside of the working folder cut to their last part; of a call from Python
            that it was one.
        version: Of unfog, with the commit where the package lies in its own repository.
    """

    date: str
    machine: str
    command: str
    version: str

    def __str__(self) -> str:
        """Return all of it as one line."""
        return f"Measured {self.date} on {self.machine} by unfog {self.version}: {self.command}"


@contextmanager
def commanded(words: Sequence[str]) -> Iterator[None]:
    """Run a command line: figures that are measured meanwhile name it."""
    token = COMMAND.set(tuple(words))
    try:
        yield
    finally:
        COMMAND.reset(token)


def provenance() -> Provenance:
    """Return where figures that are measured now come from."""
    words = COMMAND.get()
    command = " ".join(["unfog", *map(_within, words)]) if words else "a call from Python"
    return Provenance(f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC", machine(), command, version())


def _within(word: str) -> str:
    """Return a word of a command line, a path from outside cut to its last part."""
    found = ABROAD.match(word)
    if not found:
        return word
    return f"{found[1] or ''}…/{PurePath(found[2].replace(os.sep, '/')).name}"


@cache
def machine() -> str:
    """Return the processor and its number of cores, and the GPU where there is one."""
    import torch  # here, since the command line sets its words before it takes the time to import torch

    named, cpuinfo = "", Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = re.findall(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(errors="replace"), re.MULTILINE)
        named = " ".join(lines[0].split()) if lines else ""
    processor = named or platform.processor() or platform.machine()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    text = f"{processor}, {cores} core{'s' if cores > 1 else ''}"
    return f"{text}, {torch.cuda.get_device_name()}" if torch.cuda.is_available() else text


@cache
def version() -> str:
    """Return the version, with the commit, and whether files differ from it, where the package lies in its repository.

    A package that is only installed below somebody's repository is none of its files, and has the version alone.
    """
    here = Path(__file__).parent
    if _git(here, "ls-files", "--error-unmatch", Path(__file__).name) is None:
        return __version__
    commit = _git(here, "describe", "--always", "--dirty", "--exclude=*")
    return f"{__version__} (commit {commit})" if commit else __version__


def _git(folder: Path, *words: str) -> str | None:
    """Return what git says of a folder; None where it is missing, fails or takes long."""
    try:
        done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=PATIENCE)
    except (OSError, subprocess.SubprocessError):
        return None
    return None if done.returncode else done.stdout.strip()
