"""Verbs that train, plan a training or inspect one."""

from pathlib import Path
from typing import Annotated, Literal

import tyro

from unfog.cli import arguments
from unfog.cli.options import AcceptChangedData, Device, Flat, RunFolder, SomePath, Training
from unfog.runtime.errors import UserError

RecipeName = Annotated[
    tyro.conf.Positional[str],
    tyro.conf.arg(help="Name of a recipe; `unfog recipes` lists them.", metavar="[RECIPE]", help_behavior_hint=""),
]
Trackers = Annotated[tuple[Literal["tensorboard", "wandb"], ...], tyro.conf.UseAppendAction]


def train(
    recipe: RecipeName = "",
    /,
    *,
    training: Flat[Training],
    out: SomePath = None,
    resume: SomePath = None,
    init_from: SomePath = None,
    log: Trackers = (),
    accept_changed_data: AcceptChangedData = False,
) -> None:
    """Train a recipe into a run folder, or resume a run that was stopped.

    For example:

      unfog train digits --out runs/digits
      unfog train mnist --data my/mnist --budget 10m --out runs/mnist
      unfog train folder --data my_pictures --size 32 --set network.width=96
      unfog train digits --set schedule=cosine --set target=v --out runs/cosine-v
      unfog train --resume runs/digits

    Args:
        out: Run folder. Default: runs/RECIPE.
        resume: Resume this run folder.
        init_from: Start from the weights of this run folder, with its network, schedule, target and sampling.
        log: Also log to this tracker, in addition to metrics.jsonl and the progress bar.
    """
    from unfog.data.modality import has_plane
    from unfog.reports.plots import draw_plane
    from unfog.runs import run

    if resume is not None:
        if recipe or out or init_from or training != Training(data=training.data, device=training.device):
            raise UserError("--resume continues a run unchanged: give it alone, or start a new run with --init-from")
        folder = resume
        accept = accept_changed_data
        run.refit(folder, data=training.data, accept_changed_data=accept, device=training.device, log=log)
    elif accept_changed_data:
        raise UserError("--accept-changed-data is for --resume: a new run takes the data as they are")
    else:
        chosen = training.recipe(recipe, init_from)
        folder = out or Path("runs") / recipe
        run.fit(chosen, folder, budget=training.seconds, init_from=init_from, device=training.device, log=log)
    finished = run.read_recipe(folder)
    if not finished.objective.draws:
        measured = finished.kind("network") == "autoencoder"
        print(f"trained: {folder}" + (f"   (measure it with `unfog evaluate {folder}`)" if measured else ""))
        return
    if has_plane(finished.modality, finished.shape):
        draw_plane(run.load(folder, training.device), folder / "plane.png")
        print(f"field and trajectories: {folder / 'plane.png'}")
    condition = {"values": " --values ...", "image": " --image FILE"}.get(finished.kind("conditioning"), "")
    print(f"trained: {folder}   (sample it with `unfog sample {folder} -n 64{condition}`)")


def plan(
    recipe: RecipeName = "",
    /,
    *,
    training: Flat[Training],
) -> None:
    """Estimate a training before it starts: time, memory, disk, and how many images fit a budget.

    Runs about twenty steps and one report in a temporary folder, which is removed afterwards.

    For example:

      unfog plan digits
      unfog plan mnist --data my/mnist --budget 2h
      unfog plan folder --data my_pictures --size 64 --set training.batch=128
    """
    from unfog.interop.reach import line as exports
    from unfog.training.plan import plan as measure

    chosen = training.recipe(recipe)
    print(measure(chosen, budget=training.seconds, device=training.device).table())
    print(f"{'export':<8}{exports(chosen)}")


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
