"""Command lines in processes of their own that start at once, forked from one that has imported everything.

A new Python process spends six seconds on imports before it trains, and torchrun starts one more process for itself.
Where neither is what a test is about, its processes are forked.
"""

import atexit
import multiprocessing
import os
import shutil
import signal
import socket
import sys
import tempfile
from pathlib import Path

from tests.conftest import PATIENCE

ROOT = Path(tempfile.mkdtemp())
"""Holds what the processes print."""
atexit.register(shutil.rmtree, ROOT, ignore_errors=True)
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.preloaded"])


def _run(arguments: list[str], environment: dict[str, str], folder: Path) -> None:
    """Be the program `unfog`, whose words go into files."""
    import torch

    from unfog.cli.main import main

    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)  # sums depend on the number of threads
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which whoever started the tests may have ignored, as nohup does
    for stream, name in ((1, "out"), (2, "error")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT), stream)
    code = main(arguments)
    sys.stdout.flush()
    sys.exit(code)


class Forked:
    """A command line that runs in a forked process."""

    def __init__(self, *arguments: str | Path, **environment: str) -> None:
        self.folder = Path(tempfile.mkdtemp(dir=ROOT))
        words = [str(word) for word in arguments]
        given = (words, {**os.environ, **environment}, self.folder)
        self.process = CONTEXT.Process(target=_run, args=given, daemon=True)  # it ends with the tests, whatever fails
        self.process.start()

    @property
    def returncode(self) -> int | None:
        """The exit code, minus the number of a signal that killed it; None while it runs."""
        return self.process.exitcode

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to the process if it still runs."""
        if self.process.exitcode is None and self.process.pid is not None:
            os.kill(self.process.pid, number)

    def ended(self) -> tuple[str, str]:
        """Wait for the end, and return what was printed, and on standard error."""
        self.process.join(PATIENCE)
        assert self.process.exitcode is not None, f"not ended after {PATIENCE:.0f} s"
        return (self.folder / "out").read_text(), (self.folder / "error").read_text()


def together(processes: int, *arguments: str | Path) -> str:
    """Run a command line in several processes that find each other as those of torchrun do; return what they print."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    begun = [Forked(*arguments, RANK=str(rank), LOCAL_RANK=str(rank), **shared) for rank in range(processes)]
    said = [one.ended() for one in begun]
    assert [one.returncode for one in begun] == [0] * processes, [error for _, error in said]
    return "".join(out for out, _ in said)
