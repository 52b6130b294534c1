"""`unfog`, `python -m unfog`, and so `torchrun -m unfog`."""

import gc
import signal
import sys
import time

BEGAN = time.monotonic()
"""When the process began, but for the start of Python."""


OBJECTS = 50_000
"""Between two collections of garbage: while Python loads, hundreds of thousands are made and none is garbage."""


def start() -> int:
    """Run the command line, and return its exit code; Ctrl-C while Python loads or unloads it ends without words."""
    gc.set_threshold(OBJECTS, 20, 100)
    interrupted = signal.getsignal(signal.SIGINT)
    noisy = interrupted is signal.default_int_handler  # and not ignored, as in the background of a shell
    if noisy:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from unfog.cli.main import main

    if noisy:
        signal.signal(signal.SIGINT, interrupted)
    code = main(started=BEGAN)
    if noisy:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    return code


if __name__ == "__main__":
    sys.exit(start())
