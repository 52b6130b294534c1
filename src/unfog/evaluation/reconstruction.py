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
from unfog.evaluation.advice import advice
from unfog.evaluation.distances import Rows
from unfog.evaluation.effort import effort_of_pictures
from unfog.evaluation.intervals import Protocol, Scored, bootstrap, plain
from unfog.evaluation.judge import LEAST, Judge, spread
from unfog.evaluation.report import about_judge, notes
from unfog.evaluation.wording import ENDS, score_table
from unfog.recipes.latents import autoencoder
from unfog.recipes.networks import AutoencoderSpec
from unfog.runs.data import Changed, moved, read_data
from unfog.runs.run import read_recipe
from unfog.runtime.brief import brief
from unfog.runtime.device import arithmetic, choose_device
from unfog.runtime.errors import UserError
from unfog.runtime.files import disk, write_whole
from unfog.runtime.lines import lines_of
from unfog.runtime.progress import working

SHOWN = 48
"""Pictures on the sheet."""
PORTION = 16
"""Pictures that are reconstructed at a time."""
BEST = 100.0
"""PSNR of pictures that do not differ."""


@dataclass(frozen=True)
class Reconstructed:
    """How well an autoencoder reconstructs held-out pictures.

    Attributes:
        psnr: Mean of 10·log10(255²/MSE) over pictures, in dB, with its 95 % interval over pictures. Its floor is 100,
            of pictures that nothing was done to, its ceiling that of the mean training picture.
        fidelity: Fréchet distance of the reconstructions from training rows.
        judge: Measured it.
        numbers: Numbers of a picture over those of its latent.
        originals: The pictures.
        pictures: Their reconstructions.
    """

    psnr: Scored
    fidelity: Scored
    judge: Judge = field(repr=False)
    numbers: float
    originals: Tensor = field(repr=False)
    pictures: Tensor = field(repr=False)

    __repr__ = brief

    def table(self) -> str:
        """Return the figures as text."""
        ends = f"PSNR in dB, {len(self.pictures)} held-out pictures: 100 where nothing differs, the ceiling is "
        lines = [
            score_table({"reconstructions": self.scores}),
            "",
            *lines_of(f"{ends}{ENDS['psnr']}."),
            f"A latent has {self.numbers:.1f} times fewer numbers than a picture.",
            *notes(self.judge),
        ]
        return "\n".join([*lines, "", *lines_of(self.worst())])

    @property
    def scores(self) -> dict[str, Scored]:
        """Both scores by name."""
        return {"psnr": self.psnr, f"frechet/{self.judge.first.extractor.name}": self.fidelity}

    def worst(self) -> str:
        """Return which figure is the worst, and what usually helps."""
        return advice({"reconstructions": self.scores}, helps="psnr")

    def write(self, folder: Path) -> None:
        """Write evaluation.json, and in evaluation/ the sheet: originals above their reconstructions."""
        with disk(folder):
            (folder / "evaluation").mkdir(exist_ok=True)
        places = torch.from_numpy(spread(min(SHOWN, len(self.pictures)), len(self.pictures)))
        names = ("originals", "reconstructions")
        pairs = paired(self.originals[places], self.pictures[places], names=names)
        save_picture(pairs, folder / "evaluation" / "pairs.png")
        scores = {"evaluations": [{"scores": plain(self.scores)}], "worst": self.worst(), "numbers": self.numbers}
        text = json.dumps({**about_judge(self.judge), **scores}, indent=1)
        write_whole(folder / "evaluation.json", text.encode())


def psnr(pictures: Tensor, originals: Tensor) -> Rows:
    """Return 10·log10(255²/MSE) of each picture in dB, `(n,)`; 100 where nothing differs.

    Args:
        pictures: uint8, `(n, channels, *space)`.
        originals: As many.
    """
    apart = (pictures.double() - originals.double()).square().flatten(1).mean(1)
    decibels: Rows = (10 * torch.log10(255**2 / apart.clamp(min=255**2 / 10 ** (BEST / 10)))).numpy()
    return decibels


def reconstruction(
    path: Path,
    count: int | None = None,
    seed: int = 0,
    device: str = "auto",
    *,
    data: str | None = None,
    changed: Changed = "warn",
    console: Console | None = None,
) -> Reconstructed:
    """Measure the autoencoder of a run folder on held-out pictures.

    Args:
        path: The run folder.
        count: Pictures, at most; None for as many as take about two minutes.
        seed: Seed of the intervals.
        device: Where to compute.
        data: Folder of the data, if it was moved.
        changed: What to do where the data are not those of the training.
        console: Shows the progress, and first what it will take.

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
    precision = recipe.training.precision_on(place, shape)

    def again(x: Tensor) -> Tensor:
        with torch.inference_mode(), arithmetic(precision, place):
            return codec.decode(codec.encode(x.to(place))).cpu()

    with working("timing a portion", console=console):
        planned = effort_of_pictures(rows, codec.plain, again, count)
    if console is not None:
        console.print(f"{path}: {planned}", highlight=False, markup=False, soft_wrap=True)
    judge = Judge(rows, codec.plain, planned.count, seed=seed, console=console)
    originals = judge.heldout.x[torch.from_numpy(spread(judge.m, len(judge.heldout.x)))]
    with working("reconstructions", judge.m, console=console) as work:
        parts = []
        for part in torch.split(originals, PORTION):
            parts.append(again(part))
            work.advance(len(part))
        pictures = torch.cat(parts)
    each = psnr(pictures, originals)
    numbers = float(np.prod(shape) / np.prod(codec.shape(shape)))
    interval = bootstrap(lambda rows: float(rows.mean()), each, seed=seed)
    total = torch.stack([part.double().sum(0) for part in torch.split(judge.train.x, 1000)]).sum(0, keepdim=True)
    mean = (total / len(judge.train.x)).round().to(torch.uint8)
    ceiling = float(psnr(mean.expand_as(originals), originals).mean())
    protocol = Protocol("psnr", "pixels", judge.sets)
    quality = Scored(float(each.mean()), *interval, len(each), BEST, ceiling, protocol)
    return Reconstructed(quality, judge.fidelity(pictures), judge, numbers, originals, pictures)
