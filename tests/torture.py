"""Kill a training again and again, resume it each time, and compare its end with that of one that was left in peace.

    python -m tests.torture --kills 200

Half of the kills wait until a checkpoint is being written. The trainings are forked from this process, which has
imported all that they need, so that a life of a tenth of a second is spent on training and not on importing.
"""

import contextlib
import os
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import tyro

import tests.preloaded  # noqa: F401
from unfog.cli.main import main
from unfog.training import checkpoint

SETTINGS = (
    "network.width=8",
    "training.batch=32",
    "optimizer.warmup=256",
    "sampling.steps=1",
    "sampling.batch=4",
)


@dataclass
class Outcome:
    """What happened.

    Attributes:
        kills: Trainings that were killed.
        writing: How many of them while a checkpoint was being written.
        early: How many before their first checkpoint, so that they began anew.
        runs: Runs that came to their end, each equal to the one in peace.
    """

    kills: int = 0
    writing: int = 0
    early: int = 0
    runs: int = 0


def fork(arguments: list[str], said: Path) -> int:
    """Run the command line in a child, its words in a file; return its number."""
    child = os.fork()
    if child == 0:
        file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        os._exit(main(arguments))
    return child


def command(out: Path, images: int) -> list[str]:
    """Return how to begin a run, with a report every six steps, or to go on with it if it has a checkpoint."""
    if checkpoint.steps(out / "checkpoints"):
        return ["train", "--resume", str(out), "--device", "cpu"]
    length = f"training.images={images}", f"training.reports={images // (6 * 32)}"
    options = [word for setting in (*SETTINGS, *length) for word in ("--set", setting)]
    return ["train", "digits", "--out", str(out), "--device", "cpu", *options]


def over(child: int, patience: float, sign: Callable[[], bool]) -> int | None:
    """Wait until a child ends, for which its exit code is returned, or a sign is there, or patience is out."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline and not sign():
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.0002)
    return None


def writing(out: Path, since: int) -> bool:
    """Say whether a checkpoint is being written that was begun after a time, in nanoseconds."""
    with contextlib.suppress(FileNotFoundError):  # it has got its name in between
        return any(part.stat().st_ctime_ns > since for part in out.glob("checkpoints/.*.part"))
    return False


def reported(said: Path) -> int:
    """Return the last step whose checkpoint the training said it had written."""
    lines = [line.split() for line in said.read_text().splitlines() if "held-out loss" in line]
    return int(lines[-1][0].replace(",", "")) // 32 if lines else 0


def newest(out: Path) -> int:
    """Return the step of the newest checkpoint; each that bears a name must be whole."""
    if not checkpoint.steps(out / "checkpoints"):
        return 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of a damaged one
        step: int = checkpoint.latest(out / "checkpoints")[1]["step"]
    return step


def torture(folder: Path, kills: int, images: int, seed: int = 0) -> Outcome:
    """Kill the given number of times, and check after each kill and at each end."""
    torch.set_num_threads(1)  # a fork would not take other threads along
    draws, outcome, said = np.random.default_rng(seed), Outcome(), folder / "said.txt"
    peace = folder / "peace"
    child = fork(command(peace, images), said)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, said.read_text()
    while True:
        out = folder / f"run{outcome.runs}"
        since = time.time_ns()
        child = fork(command(out, images), said)
        if outcome.kills < kills:
            if outcome.kills % 2:
                code = over(child, 60, partial(writing, out, since))
                time.sleep(float(draws.uniform(0, 0.02)))
            else:
                code = over(child, float(draws.uniform(0, 1)), lambda: False)
        else:
            code = over(child, 600, lambda: False)
        if code is None:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            outcome.kills += 1
            outcome.writing += writing(out, since)
            outcome.early += not checkpoint.steps(out / "checkpoints")
            assert newest(out) >= reported(said), f"a checkpoint that was reported is missing: {said.read_text()}"
            continue
        assert code == 0, said.read_text()
        outcome.runs += 1
        for name in ("model.safetensors", f"checkpoints/{newest(peace):09}/state.safetensors"):
            assert (out / name).read_bytes() == (peace / name).read_bytes(), f"{out / name} differs"
        if outcome.kills >= kills:
            return outcome


def tortured(kills: int = 200, images: int = 19200, seed: int = 0) -> None:
    """Torture in a temporary folder.

    Args:
        kills: How often.
        images: Length of a training.
        seed: Seed of the moments.
    """
    with tempfile.TemporaryDirectory() as folder:
        print(torture(Path(folder), kills, images, seed))


if __name__ == "__main__":
    sys.exit(tyro.cli(tortured))
