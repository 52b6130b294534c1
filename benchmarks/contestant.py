"""Trains one contestant of `race.py` against the clock, in a process of its own.

    python benchmarks/contestant.py lucidrains --data DIR --out runs/one --started $(date +%s) --moments 60 120

The clock began at --started, before Python did, and stands still only while weights are written, and between two steps
of a peer while there is a file named pause next to its folder. A peer is trained once and leaves its weights at each of
the moments; ours has a learning rate that falls to 0 at the end, so that each of its moments is a training of its own.
Nothing is imported that the contestant does not need.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from safetensors.torch import save_file

Kind = Literal["mnist", "fashion", "cifar10", "digits"]
OURS = "unfog"
MIRRORED: tuple[Kind, ...] = ("cifar10",)
"""Data sets of which the peers see every other picture as its mirror image, as ours does."""


@dataclass
class Clock:
    """Seconds since the process was asked for.

    Attributes:
        started: When that was, in seconds of the epoch.
        stood: Seconds that do not count.
    """

    started: float
    stood: float = 0.0

    @property
    def seconds(self) -> float:
        """What it shows."""
        return time.time() - self.started - self.stood

    @contextmanager
    def standing(self) -> Iterator[None]:
        """Let it stand still."""
        begun = time.time()
        yield
        self.stood += time.time() - begun


def main(
    name: tyro.conf.Positional[str],
    /,
    *,
    out: Path,
    started: float,
    moments: tuple[float, ...],
    kind: Kind = "mnist",
    data: Path | None = None,
    learning_rate: float | None = None,
    batch: int | None = None,
    seed: int = 0,
) -> None:
    """Train, and write trained.json last of all.

    Args:
        name: unfog, or one of the peers.
        out: Folder for weights.
        started: When the clock began, in seconds of the epoch.
        moments: Seconds at which weights are kept; for unfog one, at which it has ended.
        kind: The data set.
        data: Its folder.
        learning_rate: Of a peer; default: its own.
        batch: Of a peer; default: its own.
        seed: Of the weights, the order of the pictures and the noise.
    """
    clock = Clock(started)
    if name == OURS:
        found = train_ours(kind, data, out, clock, moments[-1], seed)
    else:
        found = train_peer(name, kind, data, out, clock, sorted(moments), learning_rate, batch, seed)
    plain = {**found, "threads": torch.get_num_threads(), "torch": torch.__version__}
    (out / "trained.json").write_text(json.dumps(plain, indent=1), encoding="utf-8")


def train_ours(kind: Kind, data: Path | None, out: Path, clock: Clock, seconds: float, seed: int) -> dict[str, Any]:
    """Train the recipe of the data set, without classes, to end at some seconds of the clock."""
    from rich.console import Console

    from unfog.recipes.presets import recipe
    from unfog.runs.run import train

    chosen = recipe(kind, None if data is None else str(data))
    chosen = chosen.set("conditioning=none", "sampling.guidance=1", f"seed={seed}")
    run = train(chosen, out / "run", budget=max(0.1, seconds - clock.seconds), console=Console(quiet=True))
    ended, training = clock.seconds, run.recipe.training
    snapshot = {"moment": seconds, "seconds": ended, "images": training.images, "file": "run"}
    parameters = sum(parameter.numel() for parameter in run.denoiser.parameters())
    rate = run.recipe.optimizer.lr
    return {
        "parameters": parameters,
        "learning_rate": rate,
        "batch": training.batch,
        "source": f"recipe {kind}",
        "precision": run.precision,
        "snapshots": [snapshot],
    }


def train_peer(
    name: str,
    kind: Kind,
    data: Path | None,
    out: Path,
    clock: Clock,
    moments: list[float],
    learning_rate: float | None,
    batch: int | None,
    seed: int,
) -> dict[str, Any]:
    """Train a peer until the last moment is over; a step that spans a moment is finished first."""
    from peers import PEERS

    from unfog.data import classic
    from unfog.data.source import shuffled

    source = getattr(classic, kind)(None if data is None else str(data)).train
    torch.manual_seed(seed)
    peer, snapshots, images = PEERS[name](learning_rate, batch, source.shape), [], 0
    while moments:
        with clock.standing():
            while (out.parent / "pause").exists():
                time.sleep(1)
        pictures = source.take(shuffled(len(source), seed, images, peer.batch)).x
        if kind in MIRRORED:
            pictures = torch.where(torch.rand(len(pictures), 1, 1, 1) < 0.5, pictures.flip(-1), pictures)
        peer.step(pictures.float() / 127.5 - 1)
        images += peer.batch
        if clock.seconds >= moments[0]:
            moment = max(one for one in moments if one <= clock.seconds)
            file = f"{moment:g}.safetensors"
            snapshots.append({"moment": moment, "seconds": clock.seconds, "images": images, "file": file})
            moments = [one for one in moments if one > moment]
            with clock.standing():
                save_file({key: one.contiguous() for key, one in peer.averaged().items()}, out / file)
    return {
        "parameters": sum(parameter.numel() for parameter in peer.network.parameters()),
        "learning_rate": peer.learning_rate,
        "batch": peer.batch,
        "source": peer.source,
        "precision": "float32",
        "snapshots": snapshots,
    }


if __name__ == "__main__":
    tyro.cli(main)
