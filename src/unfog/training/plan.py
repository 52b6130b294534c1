"""What a training will take in time, memory and disk, measured on a few of its steps."""

import tempfile
import time
import warnings
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

import torch
from torch import Tensor

from unfog.data.folder import notes_of
from unfog.generation.sampler import Sampler
from unfog.recipes.build import build_autoencoder, build_data, check_latents
from unfog.recipes.latents import LatentCodec, weights_of
from unfog.recipes.recipe import Recipe
from unfog.recipes.settings import PORTION
from unfog.recipes.several import words_read
from unfog.runtime.device import choose_device, free_memory, peak_memory
from unfog.runtime.errors import UserError, seconds
from unfog.runtime.files import write_whole
from unfog.runtime.tensors import write_tensors
from unfog.training.checkpoint import KEPT
from unfog.training.ema import GAMMAS
from unfog.training.loop import batches, headline
from unfog.training.objectives.reconstruction import autoencoder_recipe
from unfog.training.stopwatch import Pace, Stopwatch
from unfog.training.trainer import Trainer

TRIED = (4, 8)
"""Rows of the two batches from which the memory of a row is measured."""
RESERVE = 0.1
"""Share of the free memory that is left for temporary tensors: workspaces, and gradients in the backward pass."""


@dataclass(frozen=True)
class Plan:
    """What a training takes.

    Attributes:
        headline: Its data, parameters, device and precision.
        rows: Rows of the training set.
        batch: Images in a step.
        steps: Optimizer steps.
        reports: Reports on the way.
        pace: Seconds of a step, and of a report with its checkpoint.
        spent: Seconds before the first step.
        memory: Bytes in use at the peak.
        most: How many rows the memory holds at a time; an estimate.
        checkpoint: Bytes of a checkpoint.
        rest: Bytes of everything else in the run folder.
        portion: Samples that are drawn at a time; None for models that are not sampled step by step.
        measured: Whether that number was measured, and not set in the recipe.
        first: The plan of the autoencoder that is trained before, if there is one to train.
    """

    headline: str
    rows: int
    batch: int
    steps: int
    reports: int
    pace: Pace
    spent: float
    memory: int
    most: int
    checkpoint: int
    rest: int
    portion: int | None = None
    measured: bool = False
    first: "Plan | None" = None

    @property
    def images(self) -> int:
        """Images that are seen, repeats counted."""
        return self.steps * self.batch

    @property
    def seconds(self) -> float:
        """Seconds from the start to the last report."""
        return self.spent + self.pace.seconds(self.steps, self.reports)

    @property
    def disk(self) -> int:
        """Most bytes in the run folder: a new checkpoint is whole before the oldest one goes."""
        return (KEPT + 1) * self.checkpoint + self.rest

    def table(self) -> str:
        """Return the plan as lines of text."""
        took = timedelta(seconds=round(self.seconds))
        thousand, epochs = 1000 * self.pace.step / self.batch, round(self.images / self.rows, 2)
        lines = {
            "speed": f"{thousand:,.2f} s for a thousand images, {self.pace.report:,.2f} s for a report",
            "length": f"{self.images:,} images in {self.steps:,} steps of {self.batch}, which are {epochs:,} epochs",
            "end": f"after {took} with {self.reports} reports: begun now, at {datetime.now() + took:%H:%M on %A %d %B}",
            "memory": f"{_bytes(self.memory)} at the peak; about {self.most:,} rows fit at a time (an estimate)",
            "disk": f"{_bytes(self.disk)}: {KEPT} checkpoints of {_bytes(self.checkpoint)}, one more while it is "
            f"written, and {_bytes(self.rest)} of weights and samples",
        }
        if self.portion is not None:
            lines["portion"] = _drawn(self.portion, self.measured)
        own = [self.headline, *(f"{name:<8}{text}" for name, text in lines.items())]
        if self.first is None:
            return "\n".join(own)
        return "\n".join(["first an autoencoder:", self.first.table(), "", "then the model in its latents:", *own])


def plan(recipe: Recipe, *, budget: float | None = None, device: str = "auto") -> Plan:
    """Take some steps of a training and one report in a temporary folder, and return what the whole training takes.

    Args:
        recipe: What is to be trained.
        budget: Seconds to use instead of the recipe's number of images.
        device: Where to compute.

    Returns: The plan; what was written is removed.
    Raises: UserError: If the recipe does not fit the data, or its batch the memory of the GPU.
        EnvironmentFailure: If disk or network fail.
    """
    started = time.monotonic()
    budget = None if budget is None else seconds("the budget", budget)
    recipe.training.check_budget(budget)
    recipe, data = build_data(recipe)
    for sentence in notes_of(data, words_read(recipe.conditioning)):
        warnings.warn(sentence, stacklevel=2)
    with tempfile.TemporaryDirectory(prefix="unfog-") as name, torch.random.fork_rng():
        folder, first = Path(name), None
        codec = recipe.codec
        if isinstance(codec, LatentCodec) and not codec.path:
            check_latents(recipe, codec.channels, codec.factor)
            share = None if budget is None else budget * codec.share
            first = plan(autoencoder_recipe(recipe, codec), budget=share, device=device)
            recipe = _with_untrained(recipe, codec, folder / "autoencoder")
            started = time.monotonic() - first.seconds
        trainer = Trainer(recipe, data, folder, choose_device(device))
        trainer.choose_portion()
        stepwise = isinstance(trainer.objective.generator(trainer.recipe, trainer.model), Sampler)
        settings, spent = trainer.settings, time.monotonic() - started
        pace = _measure(trainer)
        memory, most = peak_memory(trainer.device), _most_rows(trainer)
        checkpoint, model, sheet = (_size(folder / part) for part in ("checkpoints", "model.safetensors", "samples"))
    steps, reports = settings.steps, settings.reports
    if budget is not None:
        spent += pace.report  # a budget takes one more, to time it
        steps, reports = pace.fit(budget, spent, reports)
    rest = model * (1 + len(GAMMAS) * settings.snapshots) + reports * sheet
    return Plan(
        headline(trainer),
        len(data.train),
        settings.batch,
        steps,
        reports,
        pace,
        spent,
        memory,
        most,
        checkpoint,
        rest,
        trainer.recipe.sampling.portion if stepwise else None,
        recipe.sampling.batch is None,
        first,
    )


def _with_untrained(recipe: Recipe, codec: LatentCodec, folder: Path) -> Recipe:
    """Return a recipe in the latents of an untrained autoencoder, as large and as slow as the one to be trained."""
    inner = replace(autoencoder_recipe(recipe, codec), shape=recipe.shape)
    folder.mkdir()
    write_whole(folder / "recipe.json", inner.to_json().encode())
    write_tensors(folder / "model.safetensors", weights_of(build_autoencoder(inner).autoencoder))
    return replace(recipe, codec=replace(codec, path=str(folder)))


def _measure(trainer: Trainer) -> Pace:
    """Take steps until enough of them and a report are timed, and write a checkpoint, which counts to the report.

    Raises: UserError: If a portion of the batch does not fit the memory of the GPU.
    """
    stopwatch, draws, pace = Stopwatch(), batches(trainer), None
    try:
        while pace is None:
            trainer.descend(next(draws))
            pace = stopwatch.measure(trainer)
    except torch.OutOfMemoryError:
        accumulate = trainer.settings.accumulate
        raise UserError(
            f"{_portion(trainer)} rows at a time do not fit the memory of {trainer.device}: lower training.batch, or "
            f"cut it into more portions than {accumulate} with training.accumulate"
        ) from None
    began = time.monotonic()
    trainer.save()
    return replace(pace, report=pace.report + time.monotonic() - began)


def _portion(trainer: Trainer) -> int:
    """Return the rows that are in memory at a time."""
    return trainer.settings.batch // trainer.settings.accumulate


def _most_rows(trainer: Trainer) -> int:
    """Return how many rows fit the free memory at a time, from what the losses of two small batches keep."""
    free = free_memory(trainer.device)
    few, more = (_kept(trainer, rows) for rows in TRIED)
    each = (more - few) / (TRIED[1] - TRIED[0])
    return max(_portion(trainer), int((1 - RESERVE) * free / each))


def _kept(trainer: Trainer, rows: int) -> int:
    """Return the bytes that the loss of some rows keeps for the backward pass; what rows share counts once."""
    kept: dict[int, torch.UntypedStorage] = {}  # alive, so that no later one takes the same address

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage
        return tensor.detach()  # the tensor itself would hold its own graph

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        trainer.losses(replace(trainer.draws, batch=rows, part=None)(0))
    return sum(storage.nbytes() for storage in kept.values())


def _size(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    return sum(one.stat().st_size for one in (path, *path.rglob("*")) if one.is_file())


def _drawn(portion: int, measured: bool) -> str:
    """Return in words how many samples are drawn at a time, and why."""
    why = "as set in the recipe"
    if measured and portion < PORTION:
        why = f"one sample takes at most a quarter of the time that it would with {PORTION}"
    elif measured:
        why = "with fewer, one sample would hardly take less time, or a thousand more than 5 % longer"
    return f"{portion} samples are drawn at a time: {why}"


def _bytes(count: int) -> str:
    """Return a number of bytes in words."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"
