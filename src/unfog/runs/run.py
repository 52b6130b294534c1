"""A run folder is a model: train one, resume its training, load it."""

import os
import shutil
import warnings
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from unfog.data.inspect import quick
from unfog.recipes.build import build_data, build_denoiser
from unfog.recipes.latents import LatentCodec, autoencoder
from unfog.recipes.recipe import Recipe
from unfog.recipes.text_encoders import PretrainedConditioning, copy_encoder
from unfog.runs.model import Run as Run
from unfog.runtime import distributed
from unfog.runtime.device import Precision, choose_device, choose_precision, keep_memory, place
from unfog.runtime.errors import EnvironmentFailure, UserError
from unfog.runtime.files import disk, locked, read_bounded, whole, write_whole
from unfog.runtime.tensors import load_into, read_tensors
from unfog.training.checkpoint import steps
from unfog.training.loop import Budget, write_recipe
from unfog.training.loop import train as run_loop
from unfog.training.metrics import draw_losses
from unfog.training.objectives.reconstruction import autoencoder_recipe
from unfog.training.trainer import Trainer

SMALL = 10_000_000
"""Parameters that a network may have even where the weights beside its recipe are fewer: they are compared by name."""


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
    if not recipe.objective.draws:
        raise UserError(
            f"{path} holds an autoencoder, which draws nothing by itself: train a model in its latents with --set "
            f"codec=latents --set codec.path={path}, or measure it with `unfog evaluate {path}`"
        )
    place_at = choose_device(device)
    weights = read_tensors(path / "model.safetensors")
    denoiser = build_denoiser(recipe, max(SMALL, sum(tensor.numel() for tensor in weights.values())))
    load_into(denoiser, weights, path / "model.safetensors")
    place(denoiser, place_at)
    assert recipe.shape is not None
    wanted = recipe.training.precision if precision == "auto" else precision
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
    check_vacant(out)
    if budget is not None and not budget > 0:
        raise UserError(f"the budget must be above 0 seconds, not {budget}")
    started = Budget(budget) if budget else None
    recipe, data = build_data(recipe)
    for sentence in quick(data):
        warnings.warn(sentence, stacklevel=2)
    recipe = taken_in(recipe, out)
    if isinstance(recipe.codec, LatentCodec) and not recipe.codec.path:
        recipe = _with_autoencoder(recipe, recipe.codec, out, budget, device, console, log)
    trainer = Trainer(recipe, data, out, choose_device(device))
    if init_from is not None:
        where = Path(init_from) / "model.safetensors"
        read_recipe(Path(init_from))
        trainer.start_from(read_tensors(where), where)
    with disk(out):
        out.mkdir(parents=True, exist_ok=True)
    _train(trainer, started, console, log)


def taken_in(recipe: Recipe, out: Path) -> Recipe:
    """Return a recipe whose autoencoder and text encoder, if it names some, were copied into a run folder.

    Raises: UserError: If one is missing, or does not fit the data.
    """
    codec, conditioning = recipe.codec, recipe.conditioning
    coder = codec.path if isinstance(codec, LatentCodec) else ""
    if isinstance(codec, LatentCodec) and coder:
        autoencoder(coder, (recipe.shape or (0,))[0])  # a mistake shows before anything is written
        recipe = replace(recipe, codec=replace(codec, path=str((out / "autoencoder").resolve())))
    if isinstance(conditioning, PretrainedConditioning):
        recipe = replace(recipe, conditioning=replace(conditioning, path=str((out / "text").resolve())))
    if distributed.rank() == 0:
        for name in ("recipe.json", "model.safetensors") if coder else ():
            own = out / "autoencoder" / name
            with disk(own):
                own.parent.mkdir(parents=True, exist_ok=True)
            with whole(own) as part:
                shutil.copyfile(Path(coder) / name, part)
        if isinstance(conditioning, PretrainedConditioning) and not (out / "text").exists():
            copy_encoder(conditioning.path, out / "text")
    distributed.agreed(0)
    return recipe


def _with_autoencoder(
    recipe: Recipe,
    codec: LatentCodec,
    out: Path,
    budget: float | None,
    device: str,
    console: Console | None,
    log: tuple[str, ...],
) -> Recipe:
    """Return a recipe in latents whose autoencoder was trained in the run folder."""
    own = out / "autoencoder"
    placed = replace(recipe, codec=replace(codec, path=str(own.resolve())))
    if distributed.rank() == 0:
        with disk(out):
            own.mkdir(parents=True, exist_ok=True)
        write_whole(out / "recipe.json", placed.beside(out, relative=True).to_json().encode())
    (console or Console(stderr=True)).print("first an autoencoder, then the model in its latents")
    share = None if budget is None else budget * codec.share
    fit(autoencoder_recipe(recipe, codec), own, budget=share, device=device, console=console, log=log)
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
    found, data = build_data(recipe)
    if (found.shape, found.classes) != (recipe.shape, recipe.classes):
        raise UserError(f"the data of {path} changed since it was trained: shape or classes differ from its recipe")
    return Trainer(recipe, data, path, choose_device(device))


def check_vacant(out: Path) -> None:
    """Raise a UserError for a path that cannot become a run folder."""
    if steps(out / "checkpoints") or (out / "model.safetensors").exists():
        raise UserError(f"{out} holds another run: choose another `out`, or go on with `unfog train --resume {out}`")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: choose another `out`")


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
