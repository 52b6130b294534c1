"""Kernels in C++, compiled when a training first wants them, with the machine's own compiler, and kept in the cache."""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Generic, TypeVar, cast

from unfog.runtime.errors import EnvironmentFailure, UserError
from unfog.runtime.files import cache_folder, locked, whole

FLAGS = (
    *("-O3", "-march=native", "-std=c++17", "-fopenmp", "-fPIC", "-shared"),
    # sums in any order and reciprocals, but infinite and undefined numbers stay what they are
    *("-fno-math-errno", "-fno-trapping-math", "-fassociative-math", "-fno-signed-zeros", "-freciprocal-math"),
)
"""Options of GCC and Clang."""
PATIENCE = 120.0
"""Seconds that a compiler may take; it takes one."""
Functions = TypeVar("Functions")
Function = Callable[..., None]


class Kernels(Generic[Functions]):
    """The functions of a source file, once they are compiled, and only if they are right: a compiler may be wrong."""

    def __init__(
        self, source: Path, read: Callable[[ctypes.CDLL], Functions], right: Callable[[Functions], bool]
    ) -> None:
        """Look nothing up.

        Args:
            source: As of `library`.
            read: Takes the functions from the library.
            right: Whether they give the known outputs for a few numbers.
        """
        self.source, self._read, self._right = source, read, right
        self._found: list[Functions | None] = []

    def get(self) -> Functions | None:
        """Return the functions; None where they were not compiled, or are wrong."""
        if not self._found:
            found = library(self.source)
            functions = None if found is None else self._read(found)
            self._found = [functions if functions is not None and self._right(functions) else None]
        return self._found[0]

    def available(self, build: bool = False) -> bool:
        """Return whether the functions are there and right, after compiling them if `build`."""
        if build and self.get() is None and library(self.source, build=True) is not None:
            self.forget()
        return self.get() is not None

    def forget(self) -> None:
        """Look the functions up again when they are wanted next."""
        self._found = []


def function(found: ctypes.CDLL, name: str, *arguments: type) -> Function:
    """Return a function of a library that returns nothing, with the types of its arguments."""
    kernel = getattr(found, name)
    kernel.argtypes, kernel.restype = list(arguments), None
    return cast(Function, kernel)


def library(source: Path, *, build: bool = False) -> ctypes.CDLL | None:
    """Return a compiled source file, from the cache if it was compiled for this processor before.

    Args:
        source: A C++ file that includes nothing but standard headers and those that lie next to it.
        build: Whether to compile it where it is not in the cache.

    Returns: The library; None where it is not there, or there is no compiler, or no folder to write to.
    """
    try:
        path = cache_folder() / "native" / f"{source.stem}-{_key(source)}.so"
        if not path.is_file() and (not build or not _compile(source, path)):
            return None
        return ctypes.CDLL(str(path))
    except (OSError, EnvironmentFailure, UserError):  # it costs time, and nothing else
        return None


def _compile(source: Path, path: Path) -> bool:
    """Compile a file, and return whether that worked."""
    compiler = next(
        filter(None, map(shutil.which, filter(None, (os.environ.get("CXX"), "c++", "g++", "clang++")))), None
    )
    if compiler is None:
        return False
    with locked(path.parent, wait=True):
        if path.is_file():  # by another process in the meantime
            return True
        with whole(path) as part:
            command = [compiler, *FLAGS, "-x", "c++", str(source), "-o", str(part)]
            try:
                subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE)
            except subprocess.SubprocessError as error:
                raise UserError(f"{compiler} could not compile {source.name}") from error
    return True


def _key(source: Path) -> str:
    """Return what the machine code depends on, as a name: source, headers next to it, options and processor."""
    texts = [path.read_text() for path in (source, *sorted(source.parent.glob("*.h")))]
    return hashlib.sha256(repr((texts, FLAGS, processor())).encode()).hexdigest()[:16]


@cache
def processor() -> str:
    """Return the processor with what it can do."""
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return f"{platform.machine()} {platform.processor()}"
    lines = info.read_text().split("\n\n")[0].splitlines()
    return "\n".join(line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part")))
