"""A run folder is a model: train one, load it, sample from it."""

import hashlib
import json
import os
import shutil
import warnings
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from unfog import distributed
from unfog.blueprint import Recipe
from unfog.compression import autoencoder
from unfog.conditions import Asked
from unfog.data.inspect import quick
from unfog.data.pictures import UnreadableError, read_picture, save_picture, sheet, tile
from unfog.diffusion.denoiser import Denoiser
from unfog.errors import EnvironmentFailure, UserError
from unfog.files import disk, locked, parse_json, read_bounded, whole, write_whole
from unfog.generation import Sampler
from unfog.pretrained import copy_encoder
from unfog.registry import part
from unfog.settings import Precision
from unfog.tensors import load_into, read_tensors, write_tensors
from unfog.training.checkpoint import steps
from unfog.training.ema import Reconstruction, reconstruct
from unfog.training.loop import Budget, write_recipe
from unfog.training.loop import train as run_loop
from unfog.training.machine import arithmetic, choose_device, choose_precision, keep_memory, place
from unfog.training.metrics import draw_losses
from unfog.training.trainer import Trainer

Part = TypeVar("Part")
SHEET, MOST = 400, 10_000_000
"""Samples on a sheet, and in a request, at most."""
SMALL = 10_000_000
"""Parameters that a network may have even where the weights beside its recipe are fewer: they are compared by name."""


@dataclass(frozen=True)
class Run:
    """A trained model in its folder.

    Attributes:
        path: The run folder.
        recipe: What it was made with.
        denoiser: The averaged weights, ready to sample.
        precision: Arithmetic of the network.
    """

    path: Path
    recipe: Recipe
    denoiser: Denoiser
    precision: Precision

    def sampler(
        self,
        *,
        solver: str | None = None,
        steps: int | None = None,
        grid: str | None = None,
        guidance: float | None = None,
        seed: int = 0,
        negative: Asked = None,
    ) -> Sampler:
        """Return the sampler of the recipe with some settings changed.

        Args:
            solver: Name of a solver.
            steps: Number of steps.
            grid: Name of a grid.
            guidance: Scale of classifier-free guidance; 1 is off.
            seed: Seed of the noise.
            negative: What samples shall not show, one thing for all.

        Raises: UserError: For an unknown name or a value out of range.
        """
        changes = {"steps": steps, "guidance": None if guidance is None else float(guidance)}
        given = {name: value for name, value in changes.items() if value is not None}
        recipe = replace(
            self.recipe,
            solver=self.recipe.solver if solver in (None, self.recipe.solver.kind) else part("solver", solver),
            grid=self.recipe.grid if grid in (None, self.recipe.grid.kind) else part("grid", grid),
            sampling=part("sampling", self.recipe.sampling.kind, **{**self.recipe.sampling.options, **given}),
        )
        return Sampler.of(recipe, self.denoiser, seed, negative)

    def sample(
        self,
        count: int,
        asked: Asked = None,
        *,
        solver: str | None = None,
        steps: int | None = None,
        grid: str | None = None,
        guidance: float | None = None,
        seed: int = 0,
        negative: Asked = None,
    ) -> Tensor:
        """Draw samples; number i is the same in whatever request it comes.

        Args:
            count: Number of samples.
            asked: What they shall show, one thing for all or one for each: a class, a prompt, values, or a picture,
                as the model was trained; None asks for all classes, or some held-out captions, in turn.
            solver: Name of a solver, for instance `"ddim"`; the recipe's if None.
            steps: Number of steps; the recipe's if None.
            grid: Name of a grid; the recipe's if None.
            guidance: Scale of classifier-free guidance, 1 is off; the recipe's if None.
            seed: Seed of the noise.
            negative: What samples shall not show, one thing for all: guidance leads away from it.

        Returns: uint8 pictures `(count, channels, height, width)`, or float32 points `(count, coordinates)`.
        Raises: UserError: For an unknown name or a value out of range.
        """
        sampler = self.sampler(solver=solver, steps=steps, grid=grid, guidance=guidance, seed=seed, negative=negative)
        with self.arithmetic():
            return sampler(count, asked)

    def batches(self, sampler: Sampler, condition: Tensor | None, count: int, skip: int = 0) -> Iterator[Tensor]:
        """Yield the batches of a sampler in the run's arithmetic, see `Sampler.batches`."""
        return self.computed(sampler.batches(condition, count, skip))

    def computed(self, parts: Iterator[Part]) -> Iterator[Part]:
        """Yield what an iterator gives, with the run's arithmetic while it computes and not in between."""
        while True:
            with self.arithmetic():
                found = next(parts, None)
            if found is None:
                return
            yield found

    def arithmetic(self) -> AbstractContextManager[object]:
        """Return the context in which the network computes."""
        return arithmetic(self.precision, next(self.denoiser.parameters()).device)


def load(path: str | Path, device: str = "auto", precision: Precision = "auto") -> Run:
    """Load a run folder.

    Args:
        path: The folder that a training wrote.
        device: Where the network computes.
        precision: "float32", "bfloat16", or "auto" for what the recipe names, which is by default what is faster there.

    Returns: The run, ready to sample.
    Raises: UserError: If the folder is no run folder, its recipe is from a newer version, or its weights are
        missing, truncated or of other shapes.
    """
    keep_memory()
    path = Path(path)
    recipe = read_recipe(path)
    if recipe.compresses:
        raise UserError(
            f"{path} holds an autoencoder, which draws nothing by itself: train a model in its latents with --set "
            f"codec=latents --set codec.path={path}, or measure it with `unfog evaluate {path}`"
        )
    place_at = choose_device(device)
    weights = read_tensors(path / "model.safetensors")
    denoiser = recipe.build_denoiser(max(SMALL, sum(tensor.numel() for tensor in weights.values())))
    load_into(denoiser, weights, path / "model.safetensors")
    place(denoiser, place_at)
    assert recipe.shape is not None
    wanted = recipe.training.build().precision if precision == "auto" else precision
    return Run(path, recipe, denoiser.eval().requires_grad_(False), choose_precision(wanted, place_at, recipe.shape))


def read_recipe(path: Path) -> Recipe:
    """Read the recipe of a run folder.

    Raises: UserError: If there is none, or it is damaged or from a newer version.
    """
    where = path / "recipe.json"
    if not where.is_file():
        raise UserError(f"{path} is no run folder (it has no recipe.json): give a folder that `unfog train` wrote")
    text = read_bounded(where)
    try:
        recipe = Recipe.from_json(text)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    if recipe.shape is None:
        raise UserError(f"{where}: the recipe names no shape, so the run never began: train it")
    return recipe.beside(path)


def train(
    recipe: Recipe,
    out: str | Path,
    *,
    budget: float | None = None,
    init_from: str | Path | None = None,
    device: str = "auto",
    console: Console | None = None,
) -> Run:
    """Train a recipe into a new run folder.

    Args:
        recipe: What to train.
        out: The run folder; must not hold another run.
        budget: Seconds to use instead of the recipe's number of images.
        init_from: Run folder whose averaged weights are the start.
        device: Where to compute.
        console: Shows the progress; standard error if None.

    Returns: The finished run.
    Raises: UserError: If the recipe does not fit the data, or the folder is taken.
        EnvironmentFailure: If disk or network fail.
    """
    fit(recipe, out, budget=budget, init_from=init_from, device=device, console=console)
    return load(out, device)


def fit(
    recipe: Recipe,
    out: str | Path,
    *,
    budget: float | None = None,
    init_from: str | Path | None = None,
    device: str = "auto",
    console: Console | None = None,
    log: tuple[str, ...] = (),
) -> None:
    """Train what a recipe describes, a denoiser or an autoencoder, as `train` does, and load nothing.

    What it tells is sent to the trackers named in `log`, too.
    """
    out = Path(out)
    if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) and steps(out / "checkpoints"):
        refit(out, device=device, console=console, log=log)  # torchrun began again after a process was lost
        return
    _check_vacant(out)
    if budget is not None and not budget > 0:
        raise UserError(f"the budget must be above 0 seconds, not {budget}")
    started = Budget(budget) if budget else None
    recipe, data = recipe.build_data()
    for sentence in quick(data):
        warnings.warn(sentence, stacklevel=2)
    recipe = _taken_in(recipe, out)
    if recipe.codec.kind == "latents" and not recipe.codec.options["path"]:
        recipe = _with_autoencoder(recipe, out, budget, device, console, log)
    trainer = Trainer(recipe, data, out, choose_device(device))
    if init_from is not None:
        where = Path(init_from) / "model.safetensors"
        read_recipe(Path(init_from))
        trainer.start_from(read_tensors(where), where)
    with disk(out):
        out.mkdir(parents=True, exist_ok=True)
    _train(trainer, started, console, log)


def _taken_in(recipe: Recipe, out: Path) -> Recipe:
    """Return a recipe whose autoencoder and text encoder, if it names some, were copied into a run folder.

    Raises: UserError: If one is missing, or does not fit the data.
    """
    coder, reader = (config.options.get("path") for config in (recipe.codec, recipe.conditioning))
    if coder:
        autoencoder(coder, (recipe.shape or (0,))[0])  # a mistake shows before anything is written
        recipe = recipe.set(f"codec.path={(out / 'autoencoder').resolve()}")
    if recipe.conditioning.kind == "pretrained":
        recipe = recipe.set(f"conditioning.path={(out / 'text').resolve()}")
    if distributed.rank() == 0:
        for name in ("recipe.json", "model.safetensors") if coder else ():
            own = out / "autoencoder" / name
            with disk(own):
                own.parent.mkdir(parents=True, exist_ok=True)
            with whole(own) as part:
                shutil.copyfile(Path(str(coder)) / name, part)
        if recipe.conditioning.kind == "pretrained" and not (out / "text").exists():
            copy_encoder(reader or "", out / "text")
    distributed.agreed(0)
    return recipe


def _with_autoencoder(
    recipe: Recipe, out: Path, budget: float | None, device: str, console: Console | None, log: tuple[str, ...]
) -> Recipe:
    """Return a recipe in latents whose autoencoder was trained in the run folder."""
    own = out / "autoencoder"
    placed = recipe.set(f"codec.path={own.resolve()}")
    if distributed.rank() == 0:
        with disk(out):
            own.mkdir(parents=True, exist_ok=True)
        write_whole(out / "recipe.json", placed.beside(out, relative=True).to_json().encode())
    (console or Console(stderr=True)).print("first an autoencoder, then the model in its latents")
    share = None if budget is None else budget * recipe.codec.options["share"]
    fit(recipe.compressing(), own, budget=share, device=device, console=console, log=log)
    return placed


def resume(path: str | Path, *, device: str = "auto", console: Console | None = None) -> Run:
    """Go on with a training from its newest whole checkpoint, to the bit as if it had never stopped.

    Args:
        path: The run folder.
        device: Where to compute.
        console: Shows the progress; standard error if None.

    Returns: The finished run.
    Raises: UserError: If the folder is no run folder, holds no checkpoint, or its data changed.
    """
    refit(path, device=device, console=console)
    return load(path, device)


def refit(path: str | Path, *, device: str = "auto", console: Console | None = None, log: tuple[str, ...] = ()) -> None:
    """Go on with a training, as `resume` does, and load nothing; one that broke off at its autoencoder begins there."""
    path = Path(path)
    own = path / "autoencoder"
    if steps(own / "checkpoints"):
        refit(own, device=device, console=console, log=log)
    trainer = reopen(path, device)
    if steps(path / "checkpoints") or not steps(own / "checkpoints"):
        trainer.restore()
    _train(trainer, None, console, log)


def reopen(path: Path, device: str = "auto") -> Trainer:
    """Return the trainer of a run folder as it began, before any checkpoint is restored.

    Raises: UserError: If the folder is no run folder, or its data changed.
    """
    recipe = read_recipe(path)
    found, data = recipe.build_data()
    if (found.shape, found.classes) != (recipe.shape, recipe.classes):
        raise UserError(f"the data of {path} changed since it was trained: shape or classes differ from its recipe")
    return Trainer(recipe, data, path, choose_device(device))


def average(path: str | Path, length: float, out: str | Path) -> Reconstruction:
    """Write a run folder whose model is an average of another length, made of the snapshots of a run.

    Args:
        path: A run that was trained with `training.snapshots`.
        length: Standard deviation of the average's profile, relative to the training up to the last snapshot: 0.10 is
            that of most recipes' own average, longer ones take in earlier weights.
        out: The new run folder; must not hold another run.

    Returns: The average.
    Raises: UserError: If there is no snapshot, the length is out of range or too short for them, or `out` is taken.
        EnvironmentFailure: If the disk fails.
    """
    where, out = Path(path) / "averages", Path(out)
    recipe = read_recipe(Path(path))
    if recipe.compresses:
        raise UserError(
            f"{path} holds an autoencoder, whose latents are measured for its own average: leave it as it is"
        )
    _check_vacant(out)
    found = reconstruct(where, length)
    denoiser = recipe.build_denoiser()
    load_into(denoiser, found.tensors, where)
    with disk(out):
        out.mkdir(parents=True, exist_ok=True)
    recipe = replace(_taken_in(recipe, out), ema=part("ema", "power", gamma=found.gamma))
    write_whole(out / "recipe.json", recipe.beside(out, relative=True).to_json().encode())
    write_tensors(out / "model.safetensors", denoiser.state_dict())
    return found


def _check_vacant(out: Path) -> None:
    """Raise a UserError for a path that cannot become a run folder."""
    if steps(out / "checkpoints") or (out / "model.safetensors").exists():
        raise UserError(f"{out} holds another run: choose another --out, or go on with `unfog train --resume {out}`")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: choose another --out")


def _train(trainer: Trainer, budget: Budget | None, console: Console | None, log: tuple[str, ...]) -> None:
    """Run the loop."""
    with nullcontext() if distributed.rank() else locked(trainer.folder):
        write_recipe(trainer)
        try:
            run_loop(trainer, console or Console(stderr=True), budget, log)
        except EnvironmentFailure:
            raise  # with no picture: a full disk has no room, and who lost a process is about to be stopped
        except BaseException:
            draw_losses(trainer.folder)
            raise
        draw_losses(trainer.folder)
    distributed.agreed(0)  # the others read what the first one wrote


def sample_into(
    folder: Path, run: Run, sampler: Sampler, count: int, asked: Asked, *, replace: bool, console: Console
) -> None:
    """Write samples 0 to `count` - 1 as a PNG each, `sampling.json` and a sheet; go on where an earlier call stopped.

    Args:
        folder: Where to; made if it is not there.
        run: The run.
        sampler: Draws the samples.
        count: Number of samples.
        asked: What they shall show.
        replace: Whether the pictures of another request may be removed.
        console: Shows the progress of requests of more than one batch.

    Raises: UserError: If the folder holds another request, or the model cannot take what is asked.
        Stopped: After Ctrl-C.
    """
    if not 1 <= count <= MOST:
        least = "1 or more" if count < 1 else f"{MOST:,} or less"
        raise UserError(f"the number of samples must be {least}, not {count}")
    condition = sampler.condition(count, in_turn(asked, count))
    sampler.denoise(None if condition is None else condition[:1])  # what cannot be met is refused with nothing touched
    with (run.path / "model.safetensors").open("rb") as file:
        model = hashlib.file_digest(file, "sha256").hexdigest()
    request = {
        "model": model[:16],
        "asked": asked if not isinstance(asked, Tensor) else hashlib.sha256(asked.numpy().tobytes()).hexdigest()[:16],
        **{name: repr(getattr(sampler, name)) for name in ("solver", "grid", "settings")},
        "seed": sampler.seed,
        **({} if sampler.negative is None else {"negative": sampler.negative}),
        "precision": run.precision,
        "device": next(run.denoiser.parameters()).device.type,
    }
    if distributed.rank():
        skip = int(distributed.agreed(0))
        deque(run.batches(sampler, condition, count, skip), maxlen=0)  # its share of each batch goes to the first
        return
    earlier = _earlier(folder / "sampling.json")
    same = {name: earlier.get(name) for name in request} == json.loads(json.dumps(request))
    written = earlier.get("n")
    most = max(count, written if isinstance(written, int) else 0)
    done = {place for place in map(_place, folder.glob("*.png")) if place is not None and place < most}
    if not earlier and (done or (folder / "sheet.png").exists()):
        raise UserError(f"{folder} holds pictures that no request of unfog wrote: choose another --out")
    if earlier and not replace and not same:
        raise UserError(f"{folder} holds the pictures of another request (its sampling.json): choose another --out")
    if not replace and any(place >= count for place in done):
        raise UserError(f"{folder} holds {written} samples of this request: ask for as many, or choose another --out")
    with disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for place in [place for place in done if not same or place >= count]:
            (folder / _name(place)).unlink()
            done.remove(place)
        write_whole(folder / "sampling.json", json.dumps({"n": count, **request}, indent=1).encode())
    size, batches = sampler.settings.batch, -(-count // sampler.settings.batch)
    points = len(sampler.shape) == 1
    skip = next((place // size for place in range(count) if points or place not in done), batches)
    distributed.agreed(skip)
    if points:
        drawn = torch.cat(list(run.batches(sampler, condition, count)))
        lines = "".join(f"{','.join(map(str, row))}\n" for row in drawn.tolist())
        write_whole(folder / "points.csv", lines.encode())
        save_picture(sheet(drawn, 1), folder / "sheet.png")
        return
    if skip < batches:
        if skip:
            console.print(f"going on after {skip * size} of {count} samples")
        coming = run.batches(sampler, condition, count, skip)
        quiet = batches == 1
        shown = track(coming, "sampling", total=batches - skip, console=console, disable=quiet, transient=True)
        for number, pictures in enumerate(shown, skip):
            for place, picture in enumerate(pictures, number * size):
                save_picture(tile(picture[None], 1, gap=0), folder / _name(place))
    channels = 3 if sampler.stored[0] == 3 else 1
    try:
        shown_first = range(min(count, SHEET))
        first = [read_picture(folder / _name(place), channels, *sampler.stored[1:]) for place in shown_first]
    except UnreadableError as error:
        raise UserError(f"a picture in {folder} is damaged ({error}): delete it and say the same again") from None
    columns = max(1, round(len(first) ** 0.5))
    if asked is None and 1 < sampler.classes <= 16:  # so that each column is one class
        columns = sampler.classes * max(1, round(columns / sampler.classes))
    save_picture(sheet(torch.from_numpy(np.stack(first)), columns), folder / "sheet.png")


def _name(place: int) -> str:
    """Return the name of the picture of sample number `place`."""
    return f"{place:05}.png"


def _place(path: Path) -> int | None:
    """Return the number of the sample whose picture this is, None if it is another file."""
    digits = path.stem
    place = int(digits) if digits.isascii() and digits.isdigit() else None
    return place if place is not None and path.name == _name(place) and path.is_file() else None


def in_turn(asked: Asked, count: int) -> Asked:
    """Return several prompts, a tuple of texts, one after the other, again and again; anything else as it is."""
    if isinstance(asked, tuple) and asked and isinstance(asked[0], str):
        return [asked[place % len(asked)] for place in range(count)]
    return asked


def _earlier(where: Path) -> dict[str, object]:
    """Return the request that a folder holds, empty if there is none; a damaged one is another request."""
    if not where.is_file():
        return {}
    try:
        found = parse_json(read_bounded(where))
    except ValueError:
        found = None
    return found if isinstance(found, dict) and found else {"damaged": True}
