"""Load torch's libraries in a thread, while Python loads what needs none of them.

A sixth of `import torch` is the system's loader, which binds some hundred thousand symbols and needs no Python for it.
The rest of the command line takes about as long to load.
"""

import importlib
import importlib.util
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

LIBRARIES = ("libtorch_global_deps.so", "libtorch_cpu.so")
"""In torch's order; the first is visible to all others, as torch loads it."""
FIRST = """
array asyncio binascii bisect contextvars csv ctypes datetime fcntl hashlib heapq inspect json math pickle random select
shutil socket ssl struct subprocess zlib
"""
"""Modules of the standard library with libraries of their own: while the system loads one library, it loads no other,
and the command line would wait for it."""
THREADS: list[threading.Thread] = []
"""What has been begun."""
WITHOUT = {"-h", "--help", "--version"}
"""Words with which a command needs no torch."""


def torch(words: Sequence[str]) -> threading.Thread | None:
    """Begin to load torch's libraries for a command line, where the system is Linux.

    A library that is missing or cannot be loaded is left to `import torch`, which then says so.

    Args:
        words: The command's, without the program's name.

    Returns: The thread; None if none was begun.
    """
    if sys.platform != "linux" or not words or WITHOUT & set(words):
        return None
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    for name in FIRST.split():
        importlib.import_module(name)
    thread = threading.Thread(target=_load, args=(Path(spec.origin).parent / "lib",), daemon=True)
    thread.start()
    THREADS.append(thread)
    return thread


def wait() -> None:
    """Wait until all is loaded: a process that ends while a library is loaded can corrupt its memory."""
    for thread in THREADS:
        thread.join()


def _load(folder: Path) -> None:
    """Load the libraries in a folder; calls by ctypes leave Python to other threads."""
    import ctypes

    system = ctypes.CDLL(None)
    flags = os.RTLD_NOW | os.RTLD_GLOBAL
    for name in LIBRARIES:
        system.dlopen(os.fsencode(folder / name), flags)
        flags = os.RTLD_NOW
