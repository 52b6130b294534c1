"""Training throughput: diffusers' networks and ours of the same topology and weights, and our recipes' defaults.

    python benchmarks/training.py --out runs/speed/training

A step is all that a training does: rows and noise drawn, forward, backward, optimizer and averaged weights. Both sides
run in one process, one after the other, under one allocator: glibc that keeps what is freed, as our trainings have it,
or as it comes with UNFOG_KEEP_MEMORY=0. 'As shipped' is float32 in the default memory format, AdamW and EMAModel.
"""

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import peers
import rig
import torch
import tyro
from diffusers import DDPMScheduler
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from twins import TOPOLOGIES, Answer, twins

from unfog.data.source import Augment, Data, InMemory
from unfog.recipes.networks import CompactSpec
from unfog.recipes.presets import recipe
from unfog.recipes.recipe import Recipe
from unfog.recipes.sources import Digits
from unfog.runtime.device import choose_device, keep_memory
from unfog.training.choices import choose
from unfog.training.loop import batches
from unfog.training.trainer import Trainer

RECIPES = {"digits": (1, 8, 8), "mnist": (1, 28, 28), "cifar10": (3, 32, 32)}
"""Recipes, and the shapes of their pictures."""


def theirs(network: nn.Module, x0: Tensor, *, low: bool, last: bool) -> Callable[[], object]:
    """Return a training step as diffusers' examples have it.

    Args:
        network: Predicts the noise.
        x0: The batch.
        low: Whether under autocast to bfloat16.
        last: Whether channels-last.
    """
    network = copy.deepcopy(network)
    if last:
        network, x0 = network.to(memory_format=torch.channels_last), x0.to(memory_format=torch.channels_last)
    optimizer, scheduler = torch.optim.AdamW(network.parameters(), lr=1e-4), DDPMScheduler()
    average = EMAModel(network.parameters())

    def step() -> None:
        noise = torch.randn_like(x0)
        times = torch.randint(0, 1000, (len(x0),), device=x0.device)
        with torch.autocast(x0.device.type, torch.bfloat16, enabled=low):
            answer = network(scheduler.add_noise(x0, noise, times), times)
        optimizer.zero_grad()
        torch.autograd.backward(nn.functional.mse_loss(answer.float(), noise))
        optimizer.step()
        average.step(network.parameters())

    return step


def ours(
    shape: tuple[int, ...],
    folder: Path,
    device: torch.device,
    *settings: str,
    network: nn.Module | None = None,
    of: Recipe | None = None,
    measured: bool = False,
) -> tuple[Callable[[], object], Trainer]:
    """Return a training step on made-up pictures, and its trainer.

    Args:
        shape: Of the pictures.
        folder: Of the run.
        device: Where it trains.
        settings: Of the recipe.
        network: Whose weights it begins with.
        of: The recipe, with its own conditioning dropped.
        measured: Whether it computes as `unfog train` does, in what is fastest here, instead of by the usual ways.
    """
    pictures = torch.randint(0, 256, (4096, *shape), dtype=torch.uint8)
    own = of or Recipe("bench", Digits(), CompactSpec())
    bare = replace(own, data=Digits(), augment=Augment(), shape=shape).set("conditioning=none", *settings)
    trainer = Trainer(bare, Data(InMemory(pictures), InMemory(pictures[:64])), folder, device)
    if network is not None:
        trainer.denoiser.network.load_state_dict(network.state_dict())
    if measured:
        choose(trainer)
    coming = batches(trainer)
    return lambda: trainer.descend(next(coming)), trainer


def unet(name: str) -> tuple[str, ...]:
    """Return the settings of a recipe with our side of `twins(name)`."""
    network = TOPOLOGIES[name]
    return (
        "network=unet",
        f"network.widths={json.dumps(network.widths)}",
        f"network.attention={json.dumps(network.attends)}",
        f"network.head={network.head or max(network.widths)}",
        "optimizer=adamw",
        "schedule=linear",
        "target=eps",
    )


def _step(
    shape: tuple[int, ...], folder: Path, device: torch.device, network: nn.Module, settings: Sequence[str], *more: str
) -> Callable[[], object]:
    """Return a training step with a network's weights, computed in what is fastest here."""
    return ours(shape, folder, device, *settings, *more, network=network, measured=True)[0]


def twin_rows(name: str, batch: int, most: float, rounds: int, seconds: float, device: torch.device) -> rig.Table:
    """Measure one topology with the same weights on both sides."""
    torch.manual_seed(0)
    pair = twins(name)
    flops = {"diffusers": rig.training_flops(Answer(pair.theirs), pair.shape)}
    flops["unfog"] = rig.training_flops(pair.ours, pair.shape)
    x, time = torch.randn(4, *pair.shape), torch.rand(4) * 999
    with torch.inference_mode():
        apart = float((Answer(pair.theirs)(x, time) - pair.ours(x, time)).abs().max())
    x0, answering = torch.randn(batch, *pair.shape, device=device), Answer(pair.theirs).to(device)
    settings = (*unet(name), f"training.batch={batch}")
    with TemporaryDirectory() as folder:
        step = partial(_step, pair.shape, Path(folder), device, pair.ours, settings)
        calls = {
            "diffusers as shipped": theirs(answering, x0, low=False, last=False),
            "diffusers channels-last": theirs(answering, x0, low=False, last=True),
            "diffusers bfloat16": theirs(answering, x0, low=True, last=False),
            "diffusers bfloat16 channels-last": theirs(answering, x0, low=True, last=True),
            "unfog float32": step("training.precision=float32"),
            "unfog": step(),
        }
        taken = rig.interleaved(calls, rounds=rounds, seconds=seconds, device=device, what=name)
    shipped, best = taken["diffusers as shipped"], min(time for key, time in taken.items() if key.startswith("diff"))
    rows = [
        {
            "training": key,
            "images/s": batch / time,
            "GFLOP/s": batch / time * flops[key.split()[0]] / 1e9,
            "of the ceiling": f"{batch / time * flops[key.split()[0]] / most:.0%}",
            "to diffusers as shipped": shipped / time,
            "to its best": best / time,
        }
        for key, time in taken.items()
    ]
    size = sum(parameter.numel() for parameter in pair.ours.parameters()) / 1e6
    note = (
        f"{size:.2f} M parameters, {'×'.join(map(str, pair.shape))}, batches of {batch}. With the same weights the two "
        f"networks differ by at most {apart:.1e} in float32. Counted operations: "
        f"{flops['diffusers'] / 1e6:,.0f} million a training image at diffusers, {flops['unfog'] / 1e6:,.0f} here."
    )
    return rig.Table(f"Training: diffusers' {name} network", note, rows)


def default_rows(most: float, rounds: int, seconds: float, device: torch.device) -> rig.Table:
    """Measure our recipes' networks, and the peers' small defaults where they are installed."""
    rows, calls, images = [], {}, {}
    flops: dict[str, int] = {}
    with TemporaryDirectory() as folder:
        for name, shape in RECIPES.items():
            call, trainer = ours(shape, Path(folder), device, of=recipe(name), measured=True)
            plain = copy.deepcopy(trainer.denoiser.network).cpu()
            calls[f"unfog {name}"], images[f"unfog {name}"] = call, trainer.settings.batch
            flops[f"unfog {name}"] = rig.training_flops(plain, shape)
        for kind in peers.PEERS.values() if device.type == "cpu" else ():
            try:
                peer = kind(batch=64)
            except ImportError as error:
                rig.CONSOLE.print(f"{kind.name} is left out: {error}")
                continue
            x0 = torch.rand(64, *peers.SHAPE) * 2 - 1
            calls[kind.name], images[kind.name] = (lambda peer=peer, x0=x0: peer.step(x0)), 64
        taken = rig.interleaved(calls, rounds=rounds, seconds=seconds, device=device, what="defaults")
    for name, time in taken.items():
        speed = images[name] / time
        found = {"GFLOP/s": None, "of the ceiling": None}
        if name in flops:
            found = {"GFLOP/s": speed * flops[name] / 1e9, "of the ceiling": f"{speed * flops[name] / most:.0%}"}
        rows.append({"training": name, "batch": images[name], "images/s": speed, **found})
    note = (
        "Whole steps of the recipes' networks, optimizers and batches on made-up pictures without labels and "
        "augmentation, and of the peers' own examples on pictures of 28×28, float32 as shipped."
    )
    return rig.Table("Training: defaults", note, rows)


def tables(rounds: int, seconds: float, device: torch.device) -> list[rig.Table]:
    """Measure everything."""
    most = rig.ceiling(device, rounds=rounds, seconds=min(seconds, 1.0))
    stands = rig.Table(
        "The ceiling",
        "The fastest of five 3×3 convolutions, forward and backward, bfloat16, channels last.",
        [{"GFLOP/s": most / 1e9}],
    )
    return [
        stands,
        twin_rows("course", 64, most, rounds, seconds, device),
        twin_rows("cifar10", 16 if device.type == "cpu" else 128, most, rounds, seconds, device),
        default_rows(most, rounds, seconds, device),
    ]


def main(out: Path = Path("runs/speed/training"), rounds: int = 5, seconds: float = 4.0, device: str = "auto") -> None:
    """Measure and write a table.

    Args:
        out: OUT.md and OUT.json are written.
        rounds: Turns of each variant, of which the median counts.
        seconds: Length of a turn.
        device: cpu, cuda or auto.
    """
    keep_memory()
    chosen = choose_device(device)
    rig.write(tables(rounds, seconds, chosen), out, chosen, "Training throughput")


if __name__ == "__main__":
    tyro.cli(main)
