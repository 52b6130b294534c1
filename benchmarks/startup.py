"""Start-up and memory: what a command takes from a cold process, against `import torch` and `import diffusers`.

    python benchmarks/startup.py --out runs/speed/startup

Each command is a process of its own, in turn in every round; its peak of memory is what the system counted. Training
memory is that of three steps of DDPM's CIFAR-10 network, 35.7 million parameters, in batches of 64.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import NamedTuple

import rig
import torch
import tyro
from rich.progress import track

import unfog

HERE = Path(__file__).parent
SIDES = ("diffusers", "unfog float32", "unfog", "unfog gradient checkpointing")


COUNTER = """
import os, sys, time
started, silent = time.perf_counter(), [(os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0)]
cached = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
process = os.posix_spawn(sys.argv[1], sys.argv[1:], cached, file_actions=silent)
_, status, usage = os.wait4(process, 0)
print(time.perf_counter() - started, usage.ru_maxrss)
sys.exit(os.waitstatus_to_exitcode(status))
"""


class Spent(NamedTuple):
    """What a process took: seconds, and bytes at its peak; and what it said."""

    seconds: float
    peak: int
    said: str


def spent(command: Sequence[str]) -> Spent:
    """Run a command from a small process that counts what it took.

    Raises: subprocess.CalledProcessError: If it fails.
    """
    counter = [sys.executable, "-I", "-S", "-c", COUNTER, *command]  # a child inherits the peak of a large parent
    *said, counts = subprocess.run(counter, check=True, stdout=subprocess.PIPE, text=True, cwd=HERE).stdout.splitlines()
    seconds, peak = counts.split()
    return Spent(float(seconds), int(peak) * (1 if sys.platform == "darwin" else 1024), "\n".join(said))


def starts(rounds: int) -> rig.Table:
    """Measure commands."""
    python, command = sys.executable, [sys.executable, "-m", "unfog"]
    with TemporaryDirectory() as made:
        folder = Path(made)
        short = ("training.images=640", "training.reports=1", "conditioning=none", "sampling.guidance=1")
        unfog.train(unfog.recipe("digits").set(*short), folder / "digits")
        commands = {
            "import torch": [python, "-c", "import torch"],
            "import diffusers": [python, "-c", "import diffusers"],
            "UNet2DModel and a scheduler": [python, "-c", "from diffusers import DDPMScheduler, UNet2DModel"],
            "import unfog": [python, "-c", "import unfog"],
            "unfog --help": [*command, "--help"],
            "unfog sample RUN -n 1": [*command, "sample", str(folder / "digits"), "-n", "1"],
            "unfog train digits, first step": [python, "startup.py", "--first-step-only"],
        }
        found: dict[str, list[Spent]] = {name: [] for name in commands}
        turns = [name for _ in range(rounds) for name in commands]
        for name in track(turns, "start-up", console=rig.CONSOLE, transient=True):
            found[name].append(spent(commands[name]))
    torch_alone = median(one.seconds for one in found["import torch"])
    rows = [
        {
            "command": name,
            "seconds": (seconds := median(one.seconds for one in each)),
            "to import torch": seconds / torch_alone,
            "peak MB": max(one.peak for one in each) / 1e6,
        }
        for name, each in found.items()
    ]
    return rig.Table("Start-up", f"Median of {rounds} cold processes each, files in the system's cache.", rows)


def first_step() -> None:
    """Train digits until the first optimizer step is done, and end the process there."""
    from unfog.training.trainer import Trainer

    descend = Trainer.descend

    def once(self: Trainer, *given: object) -> float:
        descend(self, *given)  # type: ignore[arg-type]
        os._exit(0)

    Trainer.descend = once  # type: ignore[method-assign,assignment]
    with TemporaryDirectory() as folder:
        unfog.train(unfog.recipe("digits"), Path(folder) / "run")


def three_steps(side: str, batch: int) -> None:
    """Take three training steps of the CIFAR-10 network."""
    import training
    from twins import Answer, twins

    device, pair = torch.device("cpu"), twins("cifar10")
    if side == "diffusers":
        step = training.theirs(Answer(pair.theirs), torch.randn(batch, *pair.shape), low=False, last=False)
    else:
        more = {
            "unfog": (),
            "unfog float32": ("training.precision=float32",),
            "unfog gradient checkpointing": ("training.gradient_checkpointing=true",),
        }[side]
        with TemporaryDirectory() as folder:
            step, _ = training.ours(
                pair.shape, Path(folder), device, *training.unet("cifar10"), f"training.batch={batch}", *more
            )
    for _ in range(3):
        step()


def memory(batch: int) -> rig.Table:
    """Measure the peak of memory in training."""
    found = {}
    for side in track(SIDES, "memory", console=rig.CONSOLE, transient=True):
        found[side] = spent([sys.executable, "startup.py", "--side", side, "--batch", str(batch)])
    empty = spent([sys.executable, "startup.py", "--side", "unfog", "--batch", "1"]).peak
    rows = [
        {
            "training": side,
            "peak GB": one.peak / 1e9,
            "to diffusers": one.peak / found["diffusers"].peak,
            "above a batch of 1": (one.peak - empty) / 1e9 if side != "diffusers" else None,
        }
        for side, one in found.items()
    ]
    note = (
        f"Batches of {batch}; a batch of 1 takes {empty / 1e9:.2f} GB here: the rest is mostly activations. "
        "diffusers' process has the system's allocator as it comes, which gives back what is freed."
    )
    return rig.Table("Memory in training", note, rows)


def main(
    out: Path = Path("runs/speed/startup"),
    rounds: int = 7,
    batch: int = 64,
    first_step_only: bool = False,
    side: str = "",
) -> None:
    """Measure and write a table.

    Args:
        out: OUT.md and OUT.json are written.
        rounds: Processes of each command, of which the median counts.
        batch: Batch of the training whose memory is measured.
        first_step_only: Only train to the first step.
        side: Only take three steps of this side.
    """
    if first_step_only:
        first_step()
    elif side:
        three_steps(side, batch)
    else:
        rig.write([starts(rounds), memory(batch)], out, torch.device("cpu"), "Start-up and memory")


if __name__ == "__main__":
    tyro.cli(main)
