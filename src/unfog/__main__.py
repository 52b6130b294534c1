"""`unfog`, `python -m unfog`, and so `torchrun -m unfog`."""

import atexit
import gc
import os
import signal
import sys
import time
from contextlib import suppress

from unfog.runtime import ahead

BEGAN = time.monotonic()
"""When the process began, but for the start of Python."""


OBJECTS = 50_000
"""Between two collections of garbage: while Python loads, hundreds of thousands are made and none is garbage."""


def start() -> int:
    """Run the command line and return its exit code; the process then ends without Python being taken apart.

    Freeing one by one what torch has made would take a quarter of the time of `import torch`.
    """
    codes: list[int] = []
    atexit.register(_leave, codes)  # what is registered first runs last
    try:
        codes.append(command())
    except SystemExit as ended:  # of the parser, which has said what is wrong
        codes += [ended.code] if isinstance(ended.code, int) else []
        raise
    return codes[0]


def command() -> int:
    """Run the command line, and return its exit code; Ctrl-C while Python loads or unloads it ends without words."""
    gc.set_threshold(OBJECTS, 20, 100)
    interrupted = signal.getsignal(signal.SIGINT)
    noisy = interrupted is signal.default_int_handler  # and not ignored, as in the background of a shell
    if noisy:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    ahead.torch(sys.argv[1:])
    from unfog.cli.main import main

    if noisy:
        signal.signal(signal.SIGINT, interrupted)
    code = main(started=BEGAN)
    if noisy:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    return code


def _leave(codes: list[int]) -> None:
    """End the process with the command's exit code; with none, or if what was said cannot be written, Python ends."""
    if codes:
        with suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(codes[0])
    ahead.wait()


if __name__ == "__main__":
    sys.exit(start())
