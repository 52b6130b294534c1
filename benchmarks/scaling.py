"""Scaling: the cost of a training image and the peak of memory against batch, resolution, parameters and processes.

    python benchmarks/scaling.py --out docs/scaling

Each point is a process of its own that trains the compact network on made-up pictures for some seconds; a curve is a
panel of OUT.png, and a table in OUT.md and OUT.json. Processes share two cores: one of two threads, or two of one.
"""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import rig
import startup
import torch
import tyro
from matplotlib.figure import Figure
from rich.progress import track

from unfog.runtime import distributed
from unfog.runtime.device import choose_device

WIDE = ("network.width=64", "network.patch=2")
"""The network of the recipe mnist, on colour pictures."""


def curves() -> dict[str, dict[str, tuple[int, tuple[str, ...], int]]]:
    """Return what is measured: for each curve and place on it the side, settings and processes."""
    adamw, muon = (*WIDE, "optimizer=adamw"), (*WIDE, "optimizer=muon")
    return {
        "batch, AdamW": {str(n): (32, (*adamw, f"training.batch={n}"), 1) for n in (1, 4, 16, 64, 256)},
        "batch, Muon": {str(n): (32, (*muon, f"training.batch={n}"), 1) for n in (1, 4, 16, 64, 256)},
        "side, patches of 2": {str(n): (n, (*adamw, "training.batch=16"), 1) for n in (8, 16, 32, 64, 128)},
        "side, patches of a sixteenth": {
            str(n): (n, (*adamw, "training.batch=16", f"network.patch={max(1, n // 16)}"), 1)
            for n in (8, 16, 32, 64, 128)
        },
        "width": {str(n): (32, (*adamw, "training.batch=64", f"network.width={n}"), 1) for n in (16, 32, 64, 128)},
        "processes, AdamW": {str(n): (32, (*adamw, "training.batch=64"), n) for n in (1, 2)},
        "processes, Muon": {str(n): (32, (*muon, "training.batch=64"), n) for n in (1, 2)},
    }


def point(side: int, settings: Sequence[str], seconds: float, device: torch.device) -> None:
    """Train for some seconds, and print seconds an image, operations an image, parameters and the arithmetic."""
    import training

    with distributed.joined(), TemporaryDirectory() as folder:
        step, trainer = training.ours((3, side, side), Path(folder), device, *settings)
        for _ in range(3):
            step()
        rig.finish(device)
        times: list[float] = []
        while sum(times) < seconds or len(times) < 5:
            started = time.perf_counter()
            step()
            rig.finish(device)
            times.append(distributed.agreed(time.perf_counter() - started))
        if not distributed.rank():
            network = trainer.denoiser.network.cpu()
            parameters = sum(parameter.numel() for parameter in network.parameters())
            flops = rig.training_flops(network, (3, side, side))
            print(json.dumps([median(times) / trainer.settings.batch, flops, parameters, trainer.precision]))


def measure(seconds: float, device: torch.device) -> list[rig.Table]:
    """Measure all curves."""
    made: dict[str, list[dict[str, object]]] = {}
    places = [(curve, place, *what) for curve, along in curves().items() for place, what in along.items()]
    for curve, place, side, settings, processes in track(places, "scaling", console=rig.CONSOLE, transient=True):
        python = [sys.executable]
        if processes > 1:
            python += ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--standalone"]
        command = [*python, "scaling.py", "--device", str(device), "--seconds", str(seconds), "--side", str(side)]
        found = startup.spent([*command, *(word for one in settings for word in ("--set", one))])
        each, flops, parameters, precision = json.loads(found.said.splitlines()[-1])
        made.setdefault(curve, []).append(
            {
                curve.split(",")[0]: place,
                "ms an image": each * 1e3,
                "GFLOP/s": flops / each / 1e9,
                "peak GB": found.peak / 1e9,
                "M parameters": parameters / 1e6,
                "arithmetic": precision,
            }
        )
    notes = {curve: " ".join(next(iter(along.values()))[1]) for curve, along in curves().items()}
    return [
        rig.Table(curve[0].upper() + curve[1:], f"Settings of the first row: `{notes[curve]}`.", rows)
        for curve, rows in made.items()
    ]


def draw(tables: Sequence[rig.Table], path: Path) -> None:
    """Draw cost and memory of every curve."""
    figure = Figure(figsize=(11, 6), layout="constrained")
    axes = figure.subplots(2, 4, sharey="row")
    for column, kind in enumerate(("Batch", "Side", "Width", "Processes")):
        for table in tables:
            if table.title.startswith(kind):
                along = [float(str(next(iter(row.values())))) for row in table.rows]
                for place, what in enumerate(("ms an image", "peak GB")):
                    heights = [float(str(row[what])) for row in table.rows]
                    axes[place][column].loglog(along, heights, "o-", label=table.title)
                    axes[place][column].set_ylabel(what if not column else "")
                    axes[place][column].set_xticks(along, [f"{one:g}" for one in along], minor=False)
                    axes[place][column].minorticks_off()
        axes[0][column].set_title(kind)
        axes[0][column].legend(fontsize=7)
    figure.savefig(path, dpi=110)


def main(
    out: Path = Path("runs/speed/scaling"),
    seconds: float = 3.0,
    device: str = "auto",
    side: int | None = None,
    set: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
) -> None:
    """Measure and write tables and a picture.

    Args:
        out: OUT.md, OUT.json and OUT.png are written.
        seconds: Training time of each point.
        device: cpu, cuda or auto.
        side: Measure only one point, of this side, and print it.
        set: Settings of that point.
    """
    chosen = choose_device(device)
    if side is not None:
        point(side, set, seconds, chosen)
        return
    tables = measure(seconds, chosen)
    rig.write(tables, out, chosen, "Scaling")
    draw(tables, out.with_suffix(".png"))


if __name__ == "__main__":
    tyro.cli(main)
