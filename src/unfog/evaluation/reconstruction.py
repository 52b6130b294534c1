"""How well an autoencoder reconstructs held-out pictures: PSNR, and the Fréchet distance of reconstructions."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from unfog.data.codecs import Latents
from unfog.data.modality import paired
from unfog.data.pictures import save_picture
from unfog.evaluation.distances import Rows
from unfog.evaluation.intervals import Interval, Scored, bootstrap, plain
from unfog.evaluation.judge import LEAST, Judge, spread
from unfog.recipes.latents import autoencoder
from unfog.recipes.networks import AutoencoderSpec
from unfog.runs.data import Changed, moved, read_data
from unfog.runs.run import read_recipe
from unfog.runtime.brief import brief
from unfog.runtime.device import arithmetic, choose_device, choose_precision
from unfog.runtime.errors import UserError
from unfog.runtime.files import disk, write_whole

SHOWN = 48
"""Pictures on the sheet."""


@dataclass(frozen=True)
class Reconstructed:
    """How well an autoencoder reconstructs held-out pictures.

    Attributes:
        psnr: Mean of 10·log10(255²/MSE) over pictures, in dB.
        interval: Its 95 % interval, over pictures.
        fidelity: Fréchet distance of the reconstructions from training rows.
        numbers: Numbers of a picture over those of its latent.
        originals: The pictures.
        pictures: Their reconstructions.
    """

    psnr: float
    interval: Interval
    fidelity: Scored
    numbers: float
    originals: Tensor = field(repr=False)
    pictures: Tensor = field(repr=False)

    __repr__ = brief

    def table(self) -> str:
        """Return the figures as text."""
        low, high = self.interval
        distance = self.fidelity
        return "\n".join(
            [
                f"PSNR of {len(self.pictures)} held-out pictures: {self.psnr:.2f} dB [{low:.2f}, {high:.2f}]",
                f"Fréchet distance of reconstructions: {distance.value:.3f}, of held-out pictures themselves "
                f"{distance.floor:.3f}, of noise {distance.ceiling:.3f}",
                f"a latent has {self.numbers:.1f} times fewer numbers than a picture",
            ]
        )

    def write(self, folder: Path) -> None:
        """Write evaluation.json, and in evaluation/ the sheet: originals above their reconstructions."""
        with disk(folder):
            (folder / "evaluation").mkdir(exist_ok=True)
        places = torch.from_numpy(spread(min(SHOWN, len(self.pictures)), len(self.pictures)))
        save_picture(paired(self.originals[places], self.pictures[places]), folder / "evaluation" / "pairs.png")
        figures = {"psnr": self.psnr, "interval": self.interval, "fidelity": plain(self.fidelity)}
        write_whole(folder / "evaluation.json", json.dumps(figures, indent=1).encode())


def psnr(pictures: Tensor, originals: Tensor) -> Rows:
    """Return 10·log10(255²/MSE) of each picture in dB, `(n,)`; 100 where nothing differs.

    Args:
        pictures: uint8, `(n, channels, *space)`.
        originals: As many.
    """
    apart = (pictures.double() - originals.double()).square().flatten(1).mean(1)
    decibels: Rows = (10 * torch.log10(255**2 / apart.clamp(min=255**2 / 1e10))).numpy()
    return decibels


def reconstruction(
    path: Path,
    count: int,
    seed: int = 0,
    device: str = "auto",
    *,
    data: str | None = None,
    changed: Changed = "warn",
) -> Reconstructed:
    """Measure the autoencoder of a run folder on held-out pictures.

    Args:
        path: The run folder.
        count: Pictures, at most.
        seed: Seed of the intervals.
        device: Where to compute.
        data: Folder of the data, if it was moved.
        changed: What to do where the data are not those of the training.

    Raises: UserError: If it holds no autoencoder, or its data hold out too few pictures.
    """
    recipe = read_recipe(path)
    if not isinstance(recipe.network, AutoencoderSpec):
        raise UserError(
            f"{path} holds a model of the objective {recipe.kind('objective')!r} with the network "
            f"{recipe.kind('network')!r}: only autoencoders and models that draw samples can be evaluated"
        )
    recipe, rows = read_data(path, moved(recipe, data), changed)
    assert recipe.shape is not None
    place, shape = choose_device(device), recipe.shape
    codec = Latents(autoencoder(path, shape[0]), shape)
    if len(rows.heldout) < LEAST:
        raise UserError(f"{len(rows.heldout)} held-out pictures are too few: {LEAST} of them take about 1,000 in all")
    judge = Judge(rows, codec.plain, min(count, len(rows.heldout)), seed=seed, console=Console(stderr=True))
    originals = judge.heldout.x[torch.from_numpy(spread(judge.m, len(judge.heldout.x)))]
    with arithmetic(choose_precision(recipe.training.precision, place, shape), place):
        pictures = codec.decode(codec.encode(originals.to(place))).cpu()
    each = psnr(pictures, originals)
    numbers = float(np.prod(shape) / np.prod(codec.shape(shape)))
    interval = bootstrap(lambda rows: float(rows.mean()), each, seed=seed)
    return Reconstructed(float(each.mean()), interval, judge.fidelity(pictures), numbers, originals, pictures)
