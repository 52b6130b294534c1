"""Verbs that train, plan a training or inspect one."""

from pathlib import Path
from typing import Literal

import tyro

from unfog.cli import arguments
from unfog.cli.options import Settings, Trackers
from unfog.runtime.errors import UserError


def train(
    recipe: tyro.conf.Positional[str] = "",
    /,
    *,
    data: str | None = None,
    size: int | None = None,
    out: Path | None = None,
    budget: str | None = None,
    set: Settings = (),
    resume: Path | None = None,
    init_from: Path | None = None,
    log: Trackers = (),
    device: str = "auto",
    precision: Literal["auto", "float32", "bfloat16"] = "auto",
) -> None:
    """Train a recipe into a run folder, or resume a run that was stopped.

    For example:

      unfog train digits --out runs/digits
      unfog train mnist --data my/mnist --budget 10m --out runs/mnist
      unfog train folder --data my_pictures --size 32 --set network.width=96
      unfog train digits --set schedule=cosine --set target=v --out runs/cosine-v
      unfog train --resume runs/digits

    Args:
        recipe: Name of a recipe; `unfog recipes` lists them.
        data: Path of the data, for recipes that read files.
        size: Side of the pictures, for the recipe 'folder'.
        out: Run folder. Default: runs/RECIPE.
        budget: Training time, for instance 90s, 10m or 2h, instead of the recipe's number of images.
        set: Change a setting of the recipe, as path=value; may be repeated.
        resume: Resume this run folder.
        init_from: Start from the weights of this run folder.
        log: Also log to this tracker, in addition to metrics.jsonl and the progress bar; may be repeated.
        device: cpu, cuda, cuda:1, mps, or auto.
        precision: Arithmetic of the network; auto chooses what is faster on the device.
    """
    from unfog.data.modality import has_plane
    from unfog.reports.plots import draw_plane
    from unfog.runs import run

    if resume is not None:
        if recipe or data or size or out or budget or set or init_from or precision != "auto":
            raise UserError("--resume continues a run unchanged: give it alone, or start a new run with --init-from")
        folder = resume
        run.refit(folder, device=device, log=log)
    else:
        chosen = arguments.chosen(recipe, data, size, set, precision)
        seconds = None if budget is None else arguments.seconds(budget)
        folder = out or Path("runs") / recipe
        run.fit(chosen, folder, budget=seconds, init_from=init_from, device=device, log=log)
    finished = run.read_recipe(folder)
    if not finished.objective.draws:
        measured = finished.kind("network") == "autoencoder"
        print(f"trained: {folder}" + (f"   (measure it with `unfog evaluate {folder}`)" if measured else ""))
        return
    if has_plane(finished.modality, finished.shape):
        draw_plane(run.load(folder, device), folder / "plane.png")
        print(f"field and trajectories: {folder / 'plane.png'}")
    condition = {"values": " --values ...", "image": " --image FILE"}.get(finished.kind("conditioning"), "")
    print(f"trained: {folder}   (sample it with `unfog sample {folder} -n 64{condition}`)")


def plan(
    recipe: tyro.conf.Positional[str] = "",
    /,
    *,
    data: str | None = None,
    size: int | None = None,
    budget: str | None = None,
    set: Settings = (),
    device: str = "auto",
    precision: Literal["auto", "float32", "bfloat16"] = "auto",
) -> None:
    """Estimate a training before it starts: time, memory, disk, and how many images fit a budget.

    Runs about twenty steps and one report in a temporary folder, which is removed afterwards.

    For example:

      unfog plan digits
      unfog plan mnist --data my/mnist --budget 2h
      unfog plan folder --data my_pictures --size 64 --set training.batch=128

    Args:
        recipe: Name of a recipe; `unfog recipes` lists them.
        data: Path of the data, for recipes that read files.
        size: Side of the pictures, for the recipe 'folder'.
        budget: Training time, for instance 90s, 10m or 2h, instead of the recipe's number of images.
        set: Change a setting of the recipe, as path=value; may be repeated.
        device: cpu, cuda, cuda:1, mps, or auto.
        precision: Arithmetic of the network; auto chooses what is faster on the device.
    """
    from unfog.training.plan import plan as measure

    chosen = arguments.chosen(recipe, data, size, set, precision)
    print(measure(chosen, budget=None if budget is None else arguments.seconds(budget), device=device).table())


def average(
    run: tyro.conf.Positional[Path],
    /,
    *,
    length: float,
    out: Path,
) -> None:
    """Average the weights of a trained run over another length, into a new run folder.

    Needs snapshots, which `unfog train --set training.snapshots=32` keeps.

    For example:

      unfog average runs/digits --length 0.15 --out runs/digits-15
      unfog average runs/digits --length 0.05 --out runs/digits-05

    Args:
        run: Run folder.
        length: Width of the average relative to the training, above 0 and below 0.289; most recipes use 0.10.
        out: The new run folder.
    """
    from unfog.runs.average import average as make

    made = make(run, length, out)
    print(
        f"averaged: {out}   (up to step {made.step} with gamma {made.gamma:.2f}, the profile within {made.error:.1%};"
    )
    print(f"compare it with `unfog compare {run} {out}`)")


def replay(
    run: tyro.conf.Positional[Path],
    /,
    *,
    step: int,
    out: Path | None = None,
    device: str = "auto",
) -> None:
    """Reproduce any training step: its rows, conditions, times and noise, and the loss of each row.

    Writes step-N.png, clean rows above noisy ones, and step-N.json. The losses are those of the newest checkpoint
    before the step, or of the run's model if there is none.

    For example:

      unfog replay runs/digits --step 140
      unfog replay runs/digits --step 1 --out spikes

    Args:
        run: Run folder.
        step: Number of the optimizer step, from 1, as in metrics.jsonl, whose lines average the last 20 steps.
        out: Folder for picture and numbers. Default: RUN/replay.
        device: cpu, cuda, cuda:1, mps, or auto.
    """
    from unfog.reports.replay import replay as draw_again

    folder = arguments.folder(out or run / "replay")
    print(draw_again(run, step, device).write(folder))
