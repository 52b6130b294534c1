"""What a training will take in time, memory and disk, from a few timed rows and counted operations."""

import tempfile
import time
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from unfog.data.alike import look_at
from unfog.data.buckets import rows_of_training
from unfog.data.codecs import Latents
from unfog.data.folder import IN_MEMORY, notes_of
from unfog.data.source import Data
from unfog.generation.portion import LONG, first_good
from unfog.generation.sampler import Sampler
from unfog.recipes.build import build_codec, build_data, check_latents, known_of
from unfog.recipes.latents import LatentCodec
from unfog.recipes.recipe import Recipe
from unfog.recipes.settings import PORTION
from unfog.recipes.several import words_read
from unfog.recipes.sources import Folder
from unfog.runtime.device import choose_device, free_memory
from unfog.runtime.errors import UserError, seconds, warning_of
from unfog.runtime.sharing import shared
from unfog.training.choices import choose_portion
from unfog.training.counting import rows_within
from unfog.training.ema import GAMMAS
from unfog.training.latents import check_time
from unfog.training.objectives.denoising import PORTIONS
from unfog.training.objectives.distillation import SHARE
from unfog.training.objectives.reconstruction import SHOWN, autoencoder_recipe, settled_on
from unfog.training.outlook import kind_of, sentence
from unfog.training.pace import Pace
from unfog.training.planned import Plan
from unfog.training.rehearsal import (
    MEMORY,
    TOO_MANY,
    Allowance,
    Line,
    Rehearsal,
    Untrained,
    allowance,
    encoding,
    fastest,
    rehearse,
    resident,
    undisturbed,
)
from unfog.training.reporting import HELD_OUT, SHEET, arithmetic_of, headline
from unfog.training.trainer import Trainer

TRIED = (4, 8)
"""Rows of the two batches from which the memory of a row is measured."""
RESERVE = 0.1
"""Share of the free memory that is left for temporary tensors: workspaces, and gradients in the backward pass."""
SECONDS = 10.0
"""For which a plan times steps, of the twenty that it takes at most."""
STARTUP = 2.0
"""Seconds that a command takes before it reads its data: torch is imported."""
BEGUN = 0.5
"""Seconds in which a training begins whose data are there."""
FEW, BYTES = 8, 1 << 26
"""Rows that are read, at most, and the bytes that they may take."""
DISK = 2e8
"""Bytes that are written in a second, at least, and read back to be compared."""


class Seen(NamedTuple):
    """What a look at the data says.

    Attributes:
        data: The data; of a folder the pictures are decoded only when asked for.
        x: A few rows.
        each: Seconds in which a picture is decoded; 0 where all rows are there.
        listed: Seconds that the look took.
        sought: Seconds in which near-duplicates of a picture are sought.
    """

    data: Data
    x: Tensor
    each: float
    listed: float
    sought: float

    @property
    def later(self) -> bool:
        """Whether pictures are decoded again for each step, since memory does not hold all of them."""
        return self.each > 0 and len(self) * int(np.prod(self.data.train.shape)) > IN_MEMORY

    def __len__(self) -> int:
        """Return the number of rows, those held out among them."""
        return len(rows_of_training(self.data.train)) + len(self.data.heldout)


def seen(recipe: Recipe) -> tuple[Recipe, Seen]:
    """Look at a recipe's data without decoding more than a few pictures; return the recipe filled in, and the look."""
    began = time.monotonic()
    glance = isinstance(recipe.data, Folder)
    recipe, data = build_data(recipe, recipe.data.build(glance=True) if isinstance(recipe.data, Folder) else None)
    listed = time.monotonic() - began
    size = int(np.prod(data.train.shape))
    rows = np.linspace(0, len(data.train) - 1, max(1, min(FEW, BYTES // size, len(data.train)))).astype(np.int64)
    began = time.monotonic()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what cannot be read is named when all is
        x = data.train.take(rows).x
    decoded, each = time.monotonic(), 0.0
    if glance:
        look_at(x)
        each = (decoded - began) / len(x)
    return recipe, Seen(data, x, each, listed, (time.monotonic() - decoded) / len(x))


def plan(recipe: Recipe, *, budget: float | None = None, device: str = "auto", console: Console | None = None) -> Plan:
    """Time some rows of a training, count the operations of the others, and return what the whole training takes.

    It trains nothing, takes at most 20 seconds, and at most 1.5 GB of memory.

    Args:
        recipe: What is to be trained.
        budget: Seconds to use instead of the recipe's number of images.
        device: Where to compute.
        console: Shows what is done; default: standard error.

    Returns: The plan; nothing stays on the disk.
    Raises: UserError: If the recipe does not fit the data, its batch the memory of the GPU, or the budget one step.
        EnvironmentFailure: If disk or network fail.
    """
    console = console or Console(stderr=True)
    console.print(f"planning {recipe.name}: takes at most 20 s, and trains nothing", highlight=False)
    budget = recipe.training.seconds if budget is None else seconds("the budget", budget)
    recipe.training.check_budget(budget)
    recipe = replace(recipe, training=replace(recipe.training, seconds=budget))
    recipe, look = seen(recipe)
    for note in notes_of(look.data, words_read(recipe.conditioning)):
        warnings.warn(note, warning_of(note), stacklevel=2)
    place, codec, until = choose_device(device), recipe.codec, allowance(SECONDS)
    if place.type == "cpu" and (busy := shared()):
        ratio = undisturbed(recipe, place) / fastest(recipe, place)
        now = f"; this plan is of now: an idle machine is about {ratio:.1f} times as fast"
        console.print(busy + now, highlight=False)
    with torch.random.fork_rng():
        if not (isinstance(codec, LatentCodec) and not codec.path):
            return _planned(recipe, look, budget, STARTUP, place, until, console)
        check_latents(recipe, codec.channels, codec.factor)
        half = Allowance(until.until - until.seconds / 2, until.memory)
        share = None if budget is None else budget * codec.share
        inner = replace(autoencoder_recipe(recipe, codec), shape=recipe.shape)
        first = _planned(inner, look, share, BEGUN, place, half, console, share=codec.share)
        return _planned(recipe, look, budget, STARTUP + first.seconds, place, until, console, first)


def _planned(
    recipe: Recipe,
    look: Seen,
    budget: float | None,
    spent: float,
    device: torch.device,
    allowed: Allowance,
    console: Console,
    first: Plan | None = None,
    share: float = 1.0,
) -> Plan:
    """Return the plan of one model, which begins after `spent` seconds; one of a share has its data already."""
    began, base = time.monotonic(), resident()
    small, each = _unencoded(recipe, first, device)
    with tempfile.TemporaryDirectory(prefix="unfog-") as name:
        found = rehearse(small, look.data, look.x, Path(name), device, allowed)
    console.print(f"{recipe.name}: {found.cost}", highlight=False)
    portion, choosing = _portion(small, found, allowed)
    encoded = _encoded(recipe, look)
    if first is not None and budget is not None and isinstance(recipe.codec, LatentCodec):
        idle = encoded * encoding(first.operations, undisturbed(recipe, device))  # as a training does
        check_time(encoded, idle, recipe.codec.share, budget)
    spent += choosing + each * encoded + (time.monotonic() - began) / 4
    if share == 1:
        spent += look.listed + len(look) * (look.each + look.sought) * (not look.later or each > 0)
    ahead = _ahead(small, found, budget)
    spent += ahead
    step = found.step(recipe)
    if look.later and not each:  # worker processes share the processor with the network
        step += look.each * recipe.training.batch / max(1, torch.get_num_threads())
    checkpoint, rest = _disk(recipe, found)
    pace = Pace(step, *_report(recipe, found, look, portion, first), close=2 * checkpoint / DISK)
    settings, reports = recipe.training, recipe.training.reports
    steps = settings.steps if budget is None else pace.fit(budget, spent, reports, share)
    chosen = found.trainer.settings if found.trainer else settings
    arithmetic = arithmetic_of(device, chosen.precision_on(device, recipe.shape or ()), chosen.choices)
    memory, most = _memory(found, look, base, settings.batch // settings.accumulate, device)
    return Plan(
        headline(recipe, look.data, found.whole.parameters, found.whole.conditional, arithmetic),
        len(rows_of_training(look.data.train)),
        settings.batch,
        steps,
        reports,
        pace,
        spent,
        memory,
        most,
        checkpoint,
        rest,
        portion,
        recipe.sampling.batch is None,
        first,
        found.whole.operations,
        found.rows,
        found.tried.operations / max(1, found.whole.operations),
        _expected(recipe, look, found, steps, first, spent + pace.seconds(steps, reports)),
        _chosen(found),
        ahead,
    )


def _ahead(recipe: Recipe, found: Rehearsal, budget: float | None) -> float:
    """Return the seconds in which a student's teacher is sampled, at most their share of a budget."""
    portions = recipe.objective.ahead(recipe, known_of(recipe).shape) / PORTION
    took = portions * found.evaluation(PORTION)
    return took if budget is None else min(took, SHARE * budget)


def _chosen(found: Rehearsal) -> str:
    """Return what was chosen to compute with, and how fast each way was that was tried."""
    if found.trainer is None or not found.ratios:
        return ""
    tried = ", ".join(f"{name} is {ratio:.2f} times as fast" for name, ratio in found.ratios.items())
    return f"{found.trainer.settings.choices} (measured here: {tried})"


def _expected(
    recipe: Recipe, look: Seen, found: Rehearsal, steps: int, first: Plan | None, seconds: float
) -> str | None:
    """Return in one line what to expect of a model's pictures, if it draws any and something was measured.

    Times in it are those of the whole command, as a budget is: `seconds` for this training, others in proportion.
    """
    if not recipe.objective.denoises or recipe.objective.jumps or (kind := kind_of(recipe, look.x)) is None:
        return None
    before = 0 if first is None else first.images * first.operations
    operations = before + steps * recipe.training.batch * found.whole.operations
    latents = isinstance(recipe.codec, LatentCodec)
    return sentence(kind, max(look.x.shape[2:]), operations, latents, operations / seconds)


def _unencoded(recipe: Recipe, first: Plan | None, device: torch.device) -> tuple[Recipe, float]:
    """Return a recipe with a codec that needs no training, and the seconds in which a picture is encoded."""
    codec = recipe.codec
    if not isinstance(codec, LatentCodec):
        return recipe, 0.0
    if not codec.path:
        assert first is not None
        return replace(recipe, codec=Untrained(codec.channels, codec.factor)), encoding(
            first.operations, fastest(recipe, device)
        )
    built = build_codec(recipe)
    assert isinstance(built, Latents)
    stand_in = Untrained(built.autoencoder.latent, built.autoencoder.factor)
    rows = torch.zeros(1, *recipe.shape or (), dtype=torch.uint8)
    began = time.monotonic()
    built.encode(rows[..., :256, :256])
    scale = np.prod(rows.shape[2:]) / np.prod(rows[..., :256, :256].shape[2:])
    return replace(recipe, codec=stand_in), float(scale) * (time.monotonic() - began)


def _portion(recipe: Recipe, found: Rehearsal, allowed: Allowance) -> tuple[int | None, float]:
    """Return how many samples are drawn at a time, None where a model draws none, and the seconds of choosing it."""
    trainer = found.trainer
    if not recipe.objective.draws:
        return None, 0.0
    if trainer is not None and not isinstance(trainer.objective.generator(trainer.recipe, trainer.model), Sampler):
        return None, 0.0
    if recipe.sampling.batch is not None:
        return recipe.sampling.batch, 0.0
    line = _drawing(recipe, found)
    sizes = (1,) if PORTION * line(1) > LONG else (1, PORTION, PORTION // 4)
    took = 2 * sum(map(line, sizes))
    held = PORTION * found.whole.kept / 4  # nothing is kept for a backward pass
    if trainer is None or found.tried != found.whole or 2 * took > allowed.seconds or held > allowed.memory:
        return first_good(line), took
    trainer.recipe = replace(trainer.recipe, sampling=recipe.sampling)
    choose_portion(trainer)
    return trainer.recipe.sampling.batch, took


def _drawing(recipe: Recipe, found: Rehearsal) -> Line:
    """Return the seconds of one evaluation while samples are drawn: with guidance a sample goes twice through.

    Through a student it does not, which takes the scale as a number.
    """
    numbered = found.trainer is not None and getattr(found.trainer.model, "guidance", None) is not None
    return found.evaluation.scaled(1.0, 2.0 if recipe.sampling.guidance != 1 and not numbered else 1.0)


def _encoded(recipe: Recipe, look: Seen) -> int:
    """Return how many pictures are encoded before the training, mirror images too."""
    return len(look) + recipe.augment.flip * len(rows_of_training(look.data.train))


def _report(
    recipe: Recipe, found: Rehearsal, look: Seen, portion: int | None, first: Plan | None
) -> tuple[float, float]:
    """Return the seconds of a held-out loss and a sheet of samples, and of what nothing shortens."""
    held_out = min(HELD_OUT, len(look.data.heldout))
    loss = found.evaluation.scaled(-(-held_out // recipe.training.batch), held_out)(1)
    if portion is None:  # reconstructions, and the statistics of latents at each checkpoint
        return loss, found.evaluation(SHOWN) + found.evaluation(settled_on(look.data.train)) / 2
    sheet = min(SHEET, PORTIONS * portion)
    decoding = 0.0 if first is None else sheet * first.pace.step / first.batch / 6
    return loss + recipe.sampling.steps * _drawing(recipe, found)(sheet) + decoding, 0.0


def _memory(found: Rehearsal, look: Seen, base: int, rows: int, device: torch.device) -> tuple[int, int]:
    """Return the bytes of a training at its peak, and how many rows fit the memory at a time, of which `rows` do."""
    each, trainer = float(found.whole.kept), found.trainer
    if trainer is not None and rows_within(found.tried, MEMORY - resident()) >= sum(TRIED):
        few, more = (_kept(trainer, count) for count in TRIED)
        each = (more - few) / (TRIED[1] - TRIED[0]) * found.whole.kept / max(1, found.tried.kept)
    stored = 0 if look.later or not look.each else len(look) * int(np.prod(look.data.train.shape))
    before = 0 if device.type == "cuda" else base + stored
    most = int((1 - RESERVE) * free_memory(device) / each)
    if most < rows and device.type == "cuda":
        raise UserError(TOO_MANY.format(rows=rows, device=device))
    return int(before + found.whole.state + rows * each), max(rows, most)


def _disk(recipe: Recipe, found: Rehearsal) -> tuple[int, int]:
    """Return the bytes of a checkpoint, and of everything else in the run folder."""
    settings, trainer = recipe.training, found.trainer
    kept = 1 + len(GAMMAS) * bool(settings.snapshots)
    model, moments = 4 * found.whole.parameters, 8 * found.whole.parameters
    if trainer is not None:
        model = _stored(trainer.model.state_dict())
        states = (optimizer.state_dict()["state"] for optimizer in trainer.optimizers.values())
        names = [name for name, _ in trainer.model.named_parameters()]
        moments = sum(
            _stored({f"{names[place % len(names)]}:{entry}": one for entry, one in entries.items()})
            for state in states
            for place, entries in state.items()
        )
    sheet = SHEET * int(np.prod(recipe.shape)) if recipe.shape is not None and recipe.modality.pixels else 0
    rest = model * (1 + len(GAMMAS) * settings.snapshots) + settings.reports * sheet
    return (1 + kept) * model + moments, rest


def _stored(tensors: Mapping[str, Tensor]) -> int:
    """Return the bytes of tensors in a safetensors file: the numbers, and a line of the head for each."""
    line = len('"weights/":{"dtype":"F32","shape":[64,64,3,3],"data_offsets":[1000000,2000000]},')
    return sum(tensor.nbytes + len(name) + line for name, tensor in tensors.items())


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
