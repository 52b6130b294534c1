"""Verbs that train, plan a training or inspect one."""

import shlex
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from unfog.cli import arguments
from unfog.cli.options import (
    AcceptChangedData,
    Device,
    Flat,
    MovedData,
    Numbers,
    RunFolder,
    SomeInt,
    SomePath,
    SomeText,
    Training,
)
from unfog.runtime.errors import UserError
from unfog.runtime.lines import lines_of

if TYPE_CHECKING:  # importing it takes long, and --help needs none of it
    from unfog.recipes.recipe import Recipe

RecipeName = Annotated[
    tyro.conf.Positional[str],
    tyro.conf.arg(help="Name of a recipe; `unfog recipes` lists them.", metavar="[RECIPE]", help_behavior_hint=""),
]
DataPath = Annotated[
    tyro.conf.Positional[str],
    tyro.conf.arg(help="Path of the data; --data takes it too.", metavar="[PATH]", help_behavior_hint=""),
]
Trackers = Annotated[tuple[Literal["tensorboard", "wandb"], ...], tyro.conf.UseAppendAction]


def train(
    recipe: RecipeName = "",
    path: DataPath = "",
    /,
    *,
    training: Flat[Training],
    out: SomePath = None,
    resume: SomePath = None,
    init_from: SomePath = None,
    follow: SomePath = None,
    log: Trackers = (),
    teacher: SomePath = None,
    accept_changed_data: AcceptChangedData = False,
) -> None:
    """Train a recipe into a run folder, or resume a run that was stopped.

    For example:

      unfog train digits --out runs/digits
      unfog train mnist my/mnist --budget 10m --out runs/mnist
      unfog train folder my_pictures --size 64x48 --epochs 20 --set network.width=96
      unfog train digits --set schedule=cosine --set target=v --out runs/cosine-v
      unfog train --resume runs/digits
      unfog train --resume runs/digits --budget 10m
      unfog train --init-from runs/digits --budget 10m --out runs/longer      (keeps runs/digits, to compare)

    Args:
        out: Run folder. Default: runs/RECIPE.
        resume: Resume this run folder; with --images or --budget, train it on for so much more.
        init_from: Start from the weights of this run folder, with its network, schedule, target and sampling; without a
            recipe, with its data and all of its settings.
        follow: Repeat the steps of this run folder, trained with --budget; the same recipe gives the same bits.
        log: Also log to this tracker, in addition to metrics.jsonl and the progress bar.
        teacher: With --resume: where the teacher of a student is, if it was moved before all trajectories were made.
    """
    from unfog.runs import run
    from unfog.runs.reading import check_vacant
    from unfog.runs.reopening import restarted

    if resume is not None:
        if recipe or out or init_from or follow:
            raise _unchanged(resume)
        folder = resume
        _resume(folder, training, log, accept_changed_data, teacher)
    elif teacher is not None:
        raise UserError("--teacher is for --resume: a new student is trained by `unfog distill TEACHER --out NEW`")
    elif accept_changed_data:
        raise UserError("--accept-changed-data is for --resume: a new run takes the data as they are")
    else:
        place = out or Path("runs") / recipe
        if (out is not None or recipe) and not restarted(place):
            check_vacant(place)  # before pictures are read
        chosen, size = training.at(path).proportioned(recipe, init_from)
        if out is None and not recipe:
            raise UserError("--init-from without a recipe takes over all of its settings: give the new run an --out")
        folder = out or Path("runs") / recipe
        lengths = {"--budget": training.budget, "--images": training.images, "--epochs": training.epochs}
        if follow is not None and (given := [flag for flag, length in lengths.items() if length is not None]):
            raise UserError(f"--follow repeats the length of another run: omit {given[0]}")
        _say_what_to_expect(chosen, training.seconds, training.device, size)
        run.fit(
            chosen,
            folder,
            budget=training.seconds,
            init_from=init_from,
            follow=follow,
            device=training.device,
            log=log,
            started=arguments.began,
        )
    _ended(folder, training.device)


def _resume(folder: Path, training: Training, log: Trackers, accept_changed_data: bool, teacher: Path | None) -> None:
    """Resume a run, whose teacher may have been moved."""
    from unfog.runs import run
    from unfog.runs.teaching import found_again

    if training != Training(training.data, budget=training.budget, images=training.images, device=training.device):
        raise _unchanged(folder)
    if teacher is not None:
        found_again(folder, teacher)
    run.refit(
        folder,
        images=training.images,
        budget=training.seconds,
        data=training.data,
        accept_changed_data=accept_changed_data,
        device=training.device,
        log=log,
        started=arguments.began,
    )


def _unchanged(run: Path) -> UserError:
    """Return the error of settings for a run that is resumed."""
    return UserError(
        "--resume continues a run unchanged: give it alone, or with --images or --budget to train it further. "
        f"Other settings need a new run, which keeps the network: unfog train --init-from {shlex.quote(str(run))} "
        "--out NEW --set ...; another network or size begins anew"
    )


def distill(
    teacher: RunFolder,
    /,
    *,
    out: Path,
    how: Literal["trajectories", "progressive"] = "trajectories",
    steps: int = 1,
    budget: SomeText = None,
    images: SomeInt = None,
    rows: int = 0,
    points: int = 16,
    scales: Numbers = (),
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="PATH=VALUE")] = (),
    data: MovedData = None,
    keep_teacher: bool = False,
    plan: bool = False,
    device: Device = "auto",
) -> None:
    """Train a student of a run, which draws in one to four steps what that draws in many.

    The student has the teacher's network and begins with its weights. The teacher's own trajectories, from noise to
    data, are made first, and it learns to jump along them; with `--how progressive` it learns to take two steps in one,
    and is then its own teacher. It is a run folder like any other, which no longer needs the teacher.
    Stopped, it resumes with `unfog train --resume OUT`.

    For example:

      unfog distill runs/digits --out runs/fast --budget 5m
      unfog sample runs/fast -n 64 --steps 2
      unfog bench runs/fast --nfe 1 2 4

    Args:
        out: The new run folder.
        how: What it learns from.
        steps: Steps in which it is sampled by default; it can be sampled in any number.
        budget: Time for the whole command, of which at most a quarter is for the trajectories.
        images: Rows to train on, repeats included. Default: as many images as the teacher.
        rows: Trajectories; 0 for as many as suit the length of the training.
        points: Steps of each; with `--how progressive` those of the first teacher, halved until they are `--steps`.
        scales: The lowest and the highest scale of guidance that the student learns. Default: 1, which is off, and one
            and a half of the teacher's.
        set: Change a setting of the recipe.
        keep_teacher: Copy the teacher into the new folder, so that it can be moved before all trajectories are made.
        plan: Estimate time, memory and disk, and train nothing.
    """
    from unfog.runs import run
    from unfog.runs.data import moved
    from unfog.runs.distilling import check_length, foreseen, keep, student_of
    from unfog.runs.reading import check_vacant

    if len(scales) not in (0, 2):
        raise UserError("--scales takes the lowest and the highest scale of guidance, for instance --scales 1 3")
    check_vacant(out)
    length = None if budget is None else arguments.seconds(budget)
    check_length(images, length)
    between = (scales[0], scales[1]) if scales else None
    chosen = student_of(
        teacher, how=how, steps=steps, rows=rows, points=points, scales=between, images=images, settings=set
    )
    chosen = moved(chosen, data)
    if plan:
        _planned(foreseen(chosen), length, device)
        return
    if keep_teacher:
        keep(teacher, chosen, out)
    run.fit(
        chosen,
        out,
        budget=length,
        init_from=teacher,
        device=device,
        started=arguments.began,
    )
    _ended(out, device)


def _ended(folder: Path, device: str) -> None:
    """Say what was trained and what can be done with it; draw the plane of points."""
    from unfog.data.modality import has_plane
    from unfog.reports.plots import draw_plane
    from unfog.runs import run

    finished = run.read_recipe(folder)
    if not finished.objective.draws:
        measured = finished.kind("network") == "autoencoder"
        print(f"trained: {folder}" + (f"   (measure it with `unfog evaluate {folder}`)" if measured else ""))
        return
    if has_plane(finished.modality, finished.shape):
        draw_plane(run.load(folder, device), folder / "plane.png")
        print(f"field and trajectories: {folder / 'plane.png'}")
    takes = {"values": " --values ...", "image": " --image FILE", "embedding": " --image FILE"}
    condition = {**takes, "spectrogram": " --condition FILE"}.get(finished.kind("conditioning"), "")
    print(f"trained: {folder}   (sample it with `unfog sample {folder} -n 64{condition}`, measure it with evaluate)")


def plan(
    recipe: RecipeName = "",
    path: DataPath = "",
    /,
    *,
    training: Flat[Training],
) -> None:
    """Estimate a training before it starts: time, memory, disk, and how many images fit a budget.

    Times steps of a few rows and counts the operations of the others. Trains nothing, and takes at most 20 seconds
    and 1.5 GB of memory. A budget that is too short for one step is refused with how long a step takes. For
    accelerators that you do not have (h100, a100, 8xh100) all is predicted from counted operations.
    `unfog distill RUN --out OUT --plan` estimates the training of a student.

    For example:

      unfog plan digits
      unfog plan mnist my/mnist --budget 2h
      unfog plan folder my_pictures --size 64x48 --epochs 20
      unfog plan cifar10 --device 8xh100
    """
    chosen, size = training.at(path).proportioned(recipe)
    if size is not None:
        print(size, file=sys.stderr)
    _planned(chosen, training.seconds, training.device)


def _planned(recipe: "Recipe", budget: float | None, device: str) -> None:
    """Print what a training takes on a device, be it there or not."""
    from unfog.interop.reach import line as exports
    from unfog.training.paper import named
    from unfog.training.plan import plan as measure

    if (cards := named(device)) is not None:
        from unfog.training.forecast import forecast

        print(forecast(recipe, *cards, budget).table())
        return
    print(measure(recipe, budget=budget, device=device).table())
    print(*lines_of(f"{'export':<8}{exports(recipe)}", 8), sep="\n")


def _say_what_to_expect(recipe: "Recipe", budget: float | None, device: str, size: str | None) -> None:
    """Print the size that was chosen, and what to expect of pictures from a folder, or within a budget."""
    from unfog.recipes.sources import Folder, Shards
    from unfog.runtime.distributed import rank
    from unfog.training.proportion import expectation

    if rank() or not (isinstance(recipe.data, Folder | Shards) or budget is not None):
        return
    said = [size]
    with suppress(UserError):  # which the training itself says better
        said.append(expectation(recipe, budget, device))
    for line in said:
        print(*lines_of(line or ""), sep="\n", end="\n" if line else "", file=sys.stderr)


def average(
    run: RunFolder,
    /,
    *,
    length: float,
    out: Path,
) -> None:
    """Average the weights of a trained run over a shorter or longer stretch of training, into a new run folder.

    Needs snapshots, which `unfog train --set training.snapshots=32` keeps.

    For example:

      unfog train digits --set training.snapshots=32 --out runs/kept
      unfog average runs/kept --length 0.15 --out runs/kept-15

    Args:
        length: Length of the average as a fraction of training, above 0 and below 0.289; most recipes use 0.10.
        out: The new run folder.
    """
    from unfog.runs.average import average as make

    made = make(run, length, out)
    print(
        f"averaged: {out}   (up to step {made.step} with gamma {made.gamma:.2f}, the profile within {made.error:.1%};"
    )
    print(f"compare it with `unfog compare {run} {out}`)")


def replay(
    run: RunFolder,
    /,
    *,
    step: int,
    out: SomePath = None,
    device: Device = "auto",
) -> None:
    """Reproduce any training step: its rows, conditions, times and noise, and the loss of each row.

    Writes step-N.png, clean rows above noisy ones, and step-N.json. The losses are those of the newest checkpoint
    before the step, or of the run's model if there is none.

    For example:

      unfog replay runs/digits --step 140
      unfog replay runs/digits --step 1 --out spikes

    Args:
        step: Number of the optimizer step, from 1, as in metrics.jsonl (each line there averages 20 steps).
        out: Folder for picture and numbers. Default: RUN/replay.
    """
    from unfog.reports.replay import replay as draw_again
    from unfog.runs.run import read_recipe
    from unfog.runtime.files import locked

    folder = arguments.folder(out or run / "replay")
    read_recipe(run)  # nothing is made where there is no run
    with locked(folder):
        found = draw_again(run, step, device)
        print(found.table())
        print(found.write(folder))
