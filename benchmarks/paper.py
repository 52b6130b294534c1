"""Prediction against measurement: the time of a training step from counted operations, alone and on several processes.

    python benchmarks/paper.py --out docs/speed/paper

What `unfog plan --device h100` computes for another machine is computed here for this one: its
products, memory and calls are timed in about a second, and each recipe's step is predicted and then measured.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Literal

import rig
import startup
import torch
import training
import tyro
from rich.progress import track

from unfog.data.source import Data, InMemory
from unfog.recipes.networks import CompactSpec
from unfog.recipes.recipe import Recipe
from unfog.recipes.sources import Digits
from unfog.runtime import distributed
from unfog.training.paper import exchange, step_of, this_machine
from unfog.training.work import work_of

CPU = torch.device("cpu")
RECIPES = {
    "digits": ((1, 8, 8), ("network=compact", "optimizer.lr=5e-3")),
    "mnist": ((1, 28, 28), ("network.width=64", "network.patch=2", "optimizer=muon")),
    "cifar10": ((3, 32, 32), ("network.width=96", "network.patch=2", "network.blocks=2", "training.batch=128")),
    "folder, 64 pixels": ((3, 64, 64), ("network.width=64", "network.patch=4", "training.batch=32")),
    "tutorial": ((1, 8, 8), ("network=minimal", "optimizer=adamw", "optimizer.lr=1e-3")),
    "a transformer": ((3, 32, 32), ("network=dit", "network.width=192")),
}
"""Shapes and settings of what is predicted."""
SHARED = ((3, 32, 32), ("network.width=64", "network.patch=2", "training.batch=48"))
"""The same of what several processes train."""


def recipes(rounds: int) -> rig.Table:
    """Predict and measure steps, in turns."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in RECIPES}
    with TemporaryDirectory() as folder:
        for name in track(
            [name for _ in range(rounds) for name in RECIPES], "steps", console=rig.CONSOLE, transient=True
        ):
            shape, settings = RECIPES[name]
            step, trainer = training.ours(shape, Path(folder), CPU, *settings)
            work = work_of(trainer.recipe, trainer.data.train, trainer.settings.batch, trainer.precision)
            found[name].append((step_of(work, this_machine(trainer.precision)).seconds, _median(step)))
    rows = []
    for name, pairs in found.items():
        predicted, measured = (median(column) for column in zip(*pairs, strict=True))
        rows.append(
            {
                "step of": name,
                "predicted, ms": 1e3 * predicted,
                "measured, ms": 1e3 * measured,
                "predicted / measured": predicted / measured,
            }
        )
    return rig.Table("Steps", f"Medians of {rounds} rounds, all in turn.", rows)


def _median(step: Callable[[], object], seconds: float = 3.0) -> float:
    """Return the median seconds of a step."""
    step()
    step()
    times: list[float] = []
    while sum(times) < seconds or len(times) < 5:
        started = time.perf_counter()
        step()
        times.append(time.perf_counter() - started)
    return median(times)


def processes(counts: Sequence[int]) -> rig.Table:
    """Predict and measure steps of several processes of one thread, which share the cores and sum gradients by gloo."""
    link = json.loads(_run(2, "link").splitlines()[-1])
    torch.set_num_threads(1)
    machine = replace(this_machine("bfloat16"), link=link, hosted=max(counts))
    shape, settings = SHARED
    recipe = Recipe("bench", Digits(), CompactSpec(), shape=shape).set(*settings)
    source = Data(*(InMemory(torch.zeros(8, *shape, dtype=torch.uint8)) for _ in range(2))).train
    rows = []
    for count in track(counts, "processes", console=rig.CONSOLE, transient=True):
        share = max(1.0, count / (os.cpu_count() or 1))
        alone = share * step_of(work_of(recipe, source, recipe.training.batch // count), machine).seconds
        measured, parameters = json.loads(_run(count, "shared").splitlines()[-1])
        predicted = alone + exchange(machine, parameters, count)
        rows.append(
            {
                "processes": count,
                "predicted, ms": 1e3 * predicted,
                "measured, ms": 1e3 * measured,
                "predicted / measured": predicted / measured,
            }
        )
    note = (
        f"Batches of {recipe.training.batch}, {' '.join(settings)}; one thread each on {os.cpu_count()} cores; two "
        f"processes sum {link / 1e9:.2f} GB of gradients a second."
    )
    return rig.Table("Processes", note, rows)


def _run(count: int, part: str) -> str:
    """Run this file on some processes, and return what it prints."""
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", str(count), "--standalone"]
    return startup.spent([sys.executable, *launch, "paper.py", "--part", part]).said


def link() -> None:
    """Print the bytes a second at which two processes sum gradients, by the rule of `exchange`."""
    with distributed.joined():
        gradients = [torch.ones(200_000) for _ in range(10)]
        seconds = _agreed(lambda: distributed.total(gradients))
        if not distributed.rank():
            print(json.dumps(4 * 2_000_000 / seconds))


def _agreed(call: Callable[[], object], times: int = 15) -> float:
    """Return the median seconds of a call that all processes take together."""
    found = []
    for _ in range(times):
        started = time.perf_counter()
        call()
        found.append(distributed.agreed(time.perf_counter() - started))
    return median(found[3:])


def shared() -> None:
    """Train on one of several processes, and print the seconds of a step and the parameters."""
    torch.set_num_threads(1)
    with distributed.joined(), TemporaryDirectory() as folder:
        step, trainer = training.ours(SHARED[0], Path(folder), CPU, *SHARED[1])
        seconds = _agreed(step)
        if not distributed.rank():
            print(json.dumps([seconds, sum(parameter.numel() for parameter in trainer.model.parameters())]))


def main(out: Path = Path("runs/speed/paper"), rounds: int = 3, *, part: Literal["", "link", "shared"] = "") -> None:
    """Predict, measure and write tables.

    Args:
        out: OUT.md and OUT.json are written.
        rounds: How often each recipe has its turn.
        part: On processes that torchrun started: measure only their exchange, or only a step that they share.
    """
    if part:
        {"link": link, "shared": shared}[part]()
        return
    rig.write([recipes(rounds), processes((1, 2, 3, 4))], out, CPU, "Prediction and measurement")


if __name__ == "__main__":
    tyro.cli(main)
