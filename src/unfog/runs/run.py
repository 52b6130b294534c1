"""A run folder is a model: train one, resume its training, load it."""

import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from rich.console import Console

from unfog.data.inspect import quick
from unfog.data.source import Data
from unfog.recipes.build import build_data, check_latents
from unfog.recipes.latents import LatentCodec
from unfog.recipes.presets import recipe as preset
from unfog.recipes.recipe import Recipe
from unfog.recipes.several import words_read
from unfog.recipes.sources import Given
from unfog.recipes.text_encoders import PretrainedConditioning, fetch_encoder
from unfog.recipes.versions import corrections
from unfog.runs.data import remember
from unfog.runs.dataset import Dataset, Read, fitted, read
from unfog.runs.model import Run as Model
from unfog.runs.model import opened
from unfog.runs.origin import remember_origin
from unfog.runs.reading import check_apart, check_vacant
from unfog.runs.reading import drawing_recipe as drawing_recipe
from unfog.runs.reading import read_recipe as read_recipe
from unfog.runs.reopening import reopen, restarted
from unfog.runs.taking import taken_in
from unfog.runs.teaching import taught, teacher_folder
from unfog.runtime import distributed
from unfog.runtime.device import Precision, choose_device
from unfog.runtime.errors import EnvironmentFailure, Stopped, UserError, seconds, warning_of, whole_number
from unfog.runtime.files import check_name, disk, locked, write_whole
from unfog.runtime.tensors import read_tensors
from unfog.training.budget import FOLLOWED, Budget, trace_of, write_followed
from unfog.training.checkpoint import steps
from unfog.training.choices import settle
from unfog.training.hooks import Callback, Hooks
from unfog.training.loop import ASKED, write_recipe
from unfog.training.loop import train as run_loop
from unfog.training.metrics import draw_losses
from unfog.training.objectives.distillation import Distillation
from unfog.training.objectives.reconstruction import autoencoder_recipe
from unfog.training.proportion import check_encoding
from unfog.training.trainer import Trainer

RISING = "the learning rate rises again and falls to the new end, so the loss may rise at first"
"""What is said of a training from weights that were trained before."""


@dataclass(frozen=True, repr=False)
class Run(Model):
    """A trained model in its folder, which can be trained on."""

    def extend(
        self,
        *,
        images: int | None = None,
        budget: float | None = None,
        dataset: Dataset | None = None,
        callbacks: Sequence[Callback] = (),
        log: Sequence[str] = (),
        stop: Callable[[], bool] | None = None,
        console: Console | None = None,
    ) -> "Run":
        """Train on in the same folder, as `resume` does, for so many images or seconds more.

        Args:
            images: Images to train on for; the result is a function of the run and this number, to the bit.
            budget: Seconds to train on for, instead.
            dataset: The dataset that `train` was given, if it was given one.
            callbacks: As those of `train`.
            log: Names of trackers.
            stop: As that of `train`.
            console: Shows the progress; default: standard error.

        Returns: The run as it is then; this one keeps its weights.
        Raises: UserError: If neither or both lengths are given, or as by `resume`.
        """
        if images is None and budget is None:
            raise UserError("say for how long to train on: give `images` or `budget`")
        return resume(
            self.path,
            images=images,
            budget=budget,
            dataset=dataset,
            callbacks=callbacks,
            log=log,
            stop=stop,
            device=str(self.device),
            console=console,
        )


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
    found = opened(path, device, precision)
    return Run(found.path, found.recipe, found.model, found.precision)


def train(
    recipe: Recipe | str,
    out: str | Path,
    *,
    budget: float | None = None,
    dataset: Dataset | None = None,
    callbacks: Sequence[Callback] = (),
    log: Sequence[str] = (),
    stop: Callable[[], bool] | None = None,
    init_from: str | Path | None = None,
    follow: str | Path | None = None,
    device: str = "auto",
    console: Console | None = None,
) -> Run:
    """Train a recipe into a new run folder.

    A `dataset` takes the place of the recipe's own data and is read into memory. It is uint8 (pixels from 0 to 255) or
    floats of about zero mean and unit variance, `(rows, *shape)`; or a torch Dataset whose items are tensors, arrays or
    images of Pillow, or pairs of one and a label (a class number, or a text). A tenth of the rows, chosen by their
    contents, is held out. The run folder keeps a hash of the rows, not the rows.

    Args:
        recipe: What to train, or the name of a recipe.
        out: The run folder; must not hold another run.
        budget: Seconds to use instead of the recipe's number of images, from this call to its return. Learning rate and
            averages then follow the time.
        dataset: What to train on, instead of the recipe's own data.
        callbacks: Functions that are called with a `Report` after each report. One that fails is disabled with a
            warning, and training continues.
        log: Names of trackers, "tensorboard" or "wandb".
        stop: Asked after each step; where it returns True, the training is saved and ends. `resume` continues it.
        init_from: Run folder whose averaged weights are the start.
        follow: Run folder of a training by budget, whose steps are repeated: as many, each at the same share of the
            training and with as many threads. The same recipe then gives the same bits.
        device: Where to compute.
        console: Shows the progress; default: standard error.

    Returns: The run as it was saved last.
    Raises: UserError: If the recipe does not fit the data, or the folder is taken.
        Stopped: After Ctrl-C, SIGTERM, or `stop` before there was a model to save.
        EnvironmentFailure: If disk or network fail.
    """
    fitting = partial(fit, recipe, out, budget=budget, dataset=dataset, init_from=init_from, follow=follow)
    return _stoppable(fitting, out, Hooks(tuple(log), tuple(callbacks), stop), device, console)


def _stoppable(act: Callable[..., None], out: str | Path, hooks: Hooks, device: str, console: Console | None) -> Run:
    """Train, and load the run, also where the caller's `stop` ended the training."""
    try:
        act(hooks=hooks, device=device, console=console)
    except Stopped as stopped:
        if stopped.code != 128 + ASKED or not (Path(out) / "model.safetensors").exists():
            raise
        (console or Console(stderr=True)).print(str(stopped), markup=False, highlight=False)
    return load(out, device)


def fit(
    recipe: Recipe | str,
    out: str | Path,
    *,
    budget: float | None = None,
    dataset: Dataset | None = None,
    init_from: str | Path | None = None,
    follow: str | Path | None = None,
    device: str = "auto",
    console: Console | None = None,
    log: tuple[str, ...] = (),
    hooks: Hooks | None = None,
    started: float | None = None,
) -> None:
    """Train what a recipe describes, a denoiser or an autoencoder, as `train` does, and load nothing.

    The trackers named in `log` are informed, or what `hooks` holds. The budget counts from the time `started`, by
    `time.monotonic`; default: now.
    """
    length = None if budget is None else seconds("the budget", budget)
    chosen, found = _chosen(recipe, dataset)
    chosen.training.check_budget(budget)
    if length is not None:
        chosen = replace(chosen, training=replace(chosen.training, seconds=length))
    own = chosen.training.seconds
    promised = None if own is None else Budget(own) if started is None else Budget(own, started)
    _fit(chosen, Path(out), found, promised, init_from, device, console, hooks or Hooks(log), follow)


def _chosen(recipe: Recipe | str, dataset: Dataset | None) -> tuple[Recipe, Read | None]:
    """Return the recipe and the dataset of a training."""
    chosen = preset(recipe) if isinstance(recipe, str) else recipe
    return chosen, None if dataset is None else read(dataset, chosen.conditioning.captioned)


def _fit(
    recipe: Recipe,
    out: Path,
    dataset: Read | None,
    budget: Budget | None,
    init_from: str | Path | None,
    device: str,
    console: Console | None,
    hooks: Hooks,
    pattern: str | Path | None = None,
    data: Data | None = None,
) -> None:
    """Train into a new run folder, whose lock is held from the look at what it holds to the last file."""
    trace = None if pattern is None else trace_of(Path(pattern))
    if trace is not None:
        recipe = replace(recipe, training=replace(recipe.training, seconds=recipe.training.seconds or trace.span))
    if restarted(out):
        _refit(out, dataset, device, console, hooks)
        return
    with _held(out):
        trainer = _begun(recipe, out, dataset, budget, init_from, device, console, hooks, data)
        if trace is not None and not distributed.rank():
            write_followed(trace, out)
        distributed.agreed(0)
        _train(trainer, budget, console, hooks)


def _held(folder: Path) -> AbstractContextManager[None]:
    """Return the lock of a run folder, which the first process holds for all.

    Raises: UserError: If the folder's name is no text.
    """
    check_name(folder)
    return nullcontext() if distributed.rank() else locked(folder)


def begin(
    recipe: Recipe | str,
    out: str | Path,
    *,
    dataset: Dataset | None = None,
    init_from: str | Path | None = None,
    device: str = "auto",
    console: Console | None = None,
) -> Trainer:
    """Return the trainer of a new run folder, whose steps the caller takes.

    One step is `trainer.descend(trainer.draws(trainer.step))`. `trainer.save()` writes a checkpoint and the model.

    Args:
        recipe: What to train, or the name of a recipe.
        out: The run folder; must not hold another run.
        dataset: What to train on, as for `train`.
        init_from: Run folder whose averaged weights are the start.
        device: Where to compute.
        console: Shows the progress of an autoencoder, where one is trained first; default: standard error.

    Raises: UserError: If the recipe does not fit the data, or the folder is taken.
        EnvironmentFailure: If disk or network fail.
    """
    chosen, found = _chosen(recipe, dataset)
    with _held(Path(out)):
        trainer = _begun(chosen, Path(out), found, None, init_from, device, console, Hooks())
        write_recipe(trainer)
        remember(trainer.folder, trainer.recipe, trainer.data)
    return trainer


def _begun(
    recipe: Recipe,
    out: Path,
    dataset: Read | None,
    budget: Budget | None,
    init_from: str | Path | None,
    device: str,
    console: Console | None,
    hooks: Hooks,
    known: Data | None = None,
) -> Trainer:
    """Return the trainer of a new run folder; an autoencoder, where one is missing, is trained first.

    Its `known` data are read, and what there is to say of them said.
    """
    check_vacant(out)
    check_apart(out, recipe)
    if init_from is not None:
        _check_meaning(recipe, read_recipe(Path(init_from)), init_from)
    recipe, data = build_data(recipe, known) if dataset is None else build_data(fitted(recipe, dataset), dataset.data)
    for sentence in quick(data, words_read(recipe.conditioning)) if known is None else ():
        warnings.warn(sentence, warning_of(sentence), stacklevel=5)
    if isinstance(recipe.conditioning, PretrainedConditioning):
        fetch_encoder(recipe.conditioning.path)
    recipe = taken_in(recipe, out)
    if isinstance(recipe.objective, Distillation):
        _place(recipe, out)  # so that it can be resumed while the trajectories are made
    recipe = taught(recipe, out, data, device, budget, console)
    if isinstance(recipe.codec, LatentCodec) and not recipe.codec.path:
        check_latents(recipe, recipe.codec.channels, recipe.codec.factor)
        if budget is not None:
            check_encoding(recipe, recipe.codec, data, budget.seconds, choose_device(device))
        recipe = _with_autoencoder(recipe, recipe.codec, out, data, budget, device, console, hooks)
    trainer = Trainer(recipe, data, out, choose_device(device))
    if init_from is not None:
        _start_from(trainer, Path(init_from), console)
    settle(trainer)
    return trainer


def _start_from(trainer: Trainer, source: Path, console: Console | None) -> None:
    """Give a trainer the averaged weights of another run."""
    where = source / "model.safetensors"
    trainer.start_from(read_tensors(where), where)
    remember_origin(trainer.folder, source)
    _say(console, f"starting from {source}: {RISING}")


def _place(recipe: Recipe, out: Path) -> None:
    """Write a recipe into a folder whose training has something to do before it begins."""
    if distributed.rank() == 0:
        with disk(out):
            out.mkdir(parents=True, exist_ok=True)
        write_whole(out / "recipe.json", recipe.relocated(out, relative=True).to_json().encode())
    distributed.agreed(0)


def _say(console: Console | None, text: str) -> None:
    """Print a line before a training begins."""
    (console or Console(stderr=True)).print(text, highlight=False)


def _check_meaning(recipe: Recipe, source: Recipe, where: str | Path) -> None:
    """Refuse weights that mean something else in another recipe; warn of those that mean it nearly.

    Raises: UserError: If schedule or target are of another kind, or the network's inputs and outputs differ.
    """
    kinds = [name for name in ("schedule", "target") if recipe.kind(name) != source.kind(name)]
    others = [name for name in ("inputs", "variance") if getattr(recipe, name) != getattr(source, name)]
    if recipe.kind("objective") == source.kind("objective") and (kinds or others):
        told = [f"{name} {source.kind(name)!r} instead of {recipe.kind(name)!r}" for name in kinds]
        raise UserError(
            f"the weights of {where} were trained with {', '.join(told + [f'other {name}' for name in others])}, so "
            "they would mean something else here: take these settings over, as `recipe.starting_from` does"
        )
    if recipe.schedule != source.schedule or recipe.target != source.target:
        warnings.warn(
            f"the schedule or target has other options than that of {where}, whose weights these were", stacklevel=6
        )


def _with_autoencoder(
    recipe: Recipe,
    codec: LatentCodec,
    out: Path,
    data: Data,
    budget: Budget | None,
    device: str,
    console: Console | None,
    hooks: Hooks,
) -> Recipe:
    """Return a recipe in latents whose autoencoder was trained in the run folder."""
    own = out / "autoencoder"
    placed = replace(recipe, codec=replace(codec, path=str(own.resolve())))
    _place(placed, out)
    (console or Console(stderr=True)).print("first an autoencoder, then the model in its latents")
    first, share = autoencoder_recipe(recipe, codec), None
    if budget is not None:
        share = Budget(budget.seconds * codec.share)
        first = replace(first, training=replace(first.training, seconds=share.seconds))
    _fit(first, own, None, share, None, device, console, hooks, data=data)
    return placed


def resume(
    path: str | Path,
    *,
    images: int | None = None,
    budget: float | None = None,
    dataset: Dataset | None = None,
    data: str | None = None,
    accept_changed_data: bool = False,
    callbacks: Sequence[Callback] = (),
    log: Sequence[str] = (),
    stop: Callable[[], bool] | None = None,
    device: str = "auto",
    console: Console | None = None,
) -> Run:
    """Resume a training from its newest whole checkpoint, to the bit as if it had never stopped, or train it on.

    A training that goes on after its end, or from where it stopped, keeps weights, optimizer and averages; its learning
    rate rises and falls once more over the new length.

    Args:
        path: The run folder.
        images: Train on for so many more images; the result is a function of the run and this number, to the bit.
        budget: Train on for so many seconds from this call.
        dataset: The dataset that `train` was given, with the same rows in the same order; a hash of them is compared.
        data: Folder of the data, if it was moved; the run remembers it.
        accept_changed_data: Continue with the data as they are now, if they are not those that the run was trained on.
        callbacks: As those of `train`.
        log: Names of trackers.
        stop: As that of `train`.
        device: Where to compute.
        console: Shows the progress; default: standard error.

    Returns: The run as it was saved last.
    Raises: UserError: If the folder is no run folder, holds no checkpoint, or its data changed.
        Stopped: After Ctrl-C or SIGTERM.
    """
    hooks = Hooks(tuple(log), tuple(callbacks), stop)
    fitting = partial(refit, path, images=images, budget=budget, dataset=dataset, data=data)
    fitting = partial(fitting, accept_changed_data=accept_changed_data)
    return _stoppable(fitting, path, hooks, device, console)


def refit(
    path: str | Path,
    *,
    images: int | None = None,
    budget: float | None = None,
    dataset: Dataset | None = None,
    data: str | None = None,
    accept_changed_data: bool = False,
    device: str = "auto",
    console: Console | None = None,
    log: tuple[str, ...] = (),
    hooks: Hooks | None = None,
    started: float | None = None,
) -> None:
    """Resume a training, as `resume` does, and load nothing; an interrupted autoencoder is finished first."""
    more = _further(images, budget, started)
    recipe = read_recipe(Path(path))
    found = None if dataset is None else read(dataset, recipe.conditioning.captioned)
    if not _refit(Path(path), found, device, console, hooks or Hooks(log), data, accept_changed_data, more):
        further = f"`unfog train --resume {path} --images N`, or --budget TIME"
        if isinstance(recipe.data, Given):
            further = f"unfog.resume({str(path)!r}, images=N, dataset=...)"
        (console or Console(stderr=True)).print(
            f"{path} is finished, with nothing left to train; to train it further: {further}", markup=False
        )


def _further(images: int | None, budget: float | None, started: float | None) -> int | Budget | None:
    """Return for how long a training is to go on beyond what was planned, None if it is not.

    Raises: UserError: If the number is none, or both are given.
    """
    if images is not None and budget is not None:
        raise UserError("`images` and `budget` both say how long to train on: give one of them")
    if images is not None:
        return whole_number("the number of images", images, 1)
    if budget is None:
        return None
    length = seconds("the budget", budget)
    return Budget(length) if started is None else Budget(length, started)


def _refit(
    path: Path,
    dataset: Read | None,
    device: str,
    console: Console | None,
    hooks: Hooks,
    data: str | None = None,
    accept_changed_data: bool = False,
    more: int | Budget | None = None,
) -> bool:
    """Resume a training, and return whether there was anything left to train."""
    read_recipe(path)  # no lock is taken where there is no run
    own = path / "autoencoder"
    with _held(path):
        if steps(own / "checkpoints"):
            _refit(own, dataset, device, console, hooks, data, accept_changed_data)
        trainer = reopen(path, device, dataset, data, accept_changed_data)
        begins = _taught_only(trainer.recipe, path)
        length = trainer.recipe.training.seconds if begins else None
        promised = None if length is None else Budget(length)
        trainer.recipe = taught(trainer.recipe, path, trainer.data, device, promised, console)
        for sentence in corrections(trainer.recipe):
            warnings.warn(f"a formula was corrected since {path} began: {sentence}", stacklevel=5)
        if begins is not None:
            _start_from(trainer, teacher_folder(begins, path), console)
        if begins or (steps(own / "checkpoints") and not steps(path / "checkpoints")):
            settle(trainer)  # its training begins now, after the teacher's trajectories, or its autoencoder
        else:
            trainer.restore()
        budget = more if isinstance(more, Budget) else None
        if more is not None:
            (path / FOLLOWED).unlink(missing_ok=True)
            trainer.extend(*((None, more.seconds) if isinstance(more, Budget) else (more, None)))
            _say(console, f"training on: {RISING}")
        left = not trainer.finished
        _train(trainer, budget or promised, console, hooks)
    return left


def _taught_only(recipe: Recipe, path: Path) -> Distillation | None:
    """Return the objective of a student that was stopped before its own training began; None for any other run."""
    begun = steps(path / "checkpoints") or (path / "model.safetensors").exists()
    return recipe.objective if isinstance(recipe.objective, Distillation) and not begun else None


def _train(trainer: Trainer, budget: Budget | None, console: Console | None, hooks: Hooks) -> None:
    """Run the loop."""
    write_recipe(trainer)
    remember(began := trainer.folder, trainer.recipe, trainer.data)
    try:
        run_loop(trainer, console or Console(stderr=True), budget, hooks)
    except EnvironmentFailure:
        if not (began / "data.json").exists() and trainer.folder.is_dir():  # it was deleted, and made anew
            remember(trainer.folder, trainer.recipe, trainer.data)
        raise  # with no picture: a full disk has no room, and who lost a process is about to be stopped
    except BaseException:
        draw_losses(trainer.folder)
        raise
    draw_losses(trainer.folder)
    distributed.agreed(0)  # the others read what the first one wrote
