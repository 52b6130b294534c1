"""The command line: thin verbs over the library. What they need is imported when they are called."""

import json
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from unfog import __version__
from unfog.errors import EnvironmentFailure, Stopped, UserError, unknown

Settings = Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="PATH=VALUE")]
Count = Annotated[int, tyro.conf.arg(aliases=["-n"])]


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
    device: str = "auto",
    precision: Literal["auto", "float32", "bfloat16"] = "auto",
) -> None:
    """Train a recipe into a run folder, or go on with a run that was stopped.

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
        out: Run folder; runs/RECIPE if left away.
        budget: Time to use instead of the recipe's number of images, for instance 90s, 10m or 2h.
        set: Change a part of the recipe; may be given again and again.
        resume: Go on with this run folder.
        init_from: Start from the weights of this run folder.
        device: cpu, cuda, cuda:1, mps, or auto.
        precision: Arithmetic of the network; auto chooses what is faster there.
    """
    from unfog import run
    from unfog.evaluation.plots import draw_plane
    from unfog.recipes import recipe as find

    if resume is not None:
        if recipe or data or size or out or budget or set or init_from or precision != "auto":
            raise UserError("--resume goes on with a run as it is: give it alone, or start anew with --init-from")
        folder = resume
        finished = run.resume(folder, device=device)
    else:
        if not recipe:
            raise UserError("name a recipe to train, for instance 'digits'; `unfog recipes` lists them")
        seconds = None if budget is None else _seconds(budget)
        chosen = find(recipe, data, size).set(*set)
        if precision != "auto":
            chosen = chosen.set(f"training.precision={precision}")
        folder = out or Path("runs") / recipe
        finished = run.train(chosen, folder, budget=seconds, init_from=init_from, device=device)
    if finished.recipe.shape == (2,):
        draw_plane(finished, folder / "plane.png")
        print(f"field and trajectories: {folder / 'plane.png'}")
    print(f"trained: {folder}   (sample it with `unfog sample {folder} -n 64`)")


def sample(
    run: tyro.conf.Positional[Path],
    /,
    *,
    n: Count = 64,
    label: str | None = None,
    solver: str | None = None,
    steps: int | None = None,
    grid: str | None = None,
    guidance: float | None = None,
    seed: int = 0,
    out: Path | None = None,
    device: str = "auto",
    precision: Literal["auto", "float32", "bfloat16"] = "auto",
) -> None:
    """Draw samples from a run folder: a sheet, and each picture as a PNG.

    For example:

      unfog sample runs/digits -n 64
      unfog sample runs/digits -n 16 --label 3 --guidance 1.5 --seed 7 --out threes
      unfog sample runs/digits --solver ddim --steps 50

    Args:
        run: Run folder.
        n: Number of samples.
        label: Class to draw, by its name or its number; all classes in turn if left away.
        solver: ddim, dpmpp-2m, unipc or any other (see the README); the recipe's if left away.
        steps: Steps of the solver.
        grid: uniform, karras, trailing or any other; the recipe's if left away.
        guidance: Scale of classifier-free guidance; 1 is off.
        seed: Seed of the noise; sample i depends on the seed and on i alone.
        out: Folder for the pictures; RUN/samples/seed-SEED if left away.
        device: cpu, cuda, cuda:1, mps, or auto.
        precision: Arithmetic of the network.
    """
    from unfog.data.pictures import save_picture, sheet, tile
    from unfog.files import disk, write_whole
    from unfog.run import load

    folder = _folder(out or run / "samples" / f"seed-{seed}")
    loaded = load(run, device, precision)
    chosen = _label(label, loaded.recipe.classes)
    samples = loaded.sample(n, chosen, solver=solver, steps=steps, grid=grid, guidance=guidance, seed=seed)
    classes = len(loaded.recipe.classes)
    columns = max(1, round(n**0.5))
    if label is None and 1 < classes <= 16:  # so that each column is one class
        columns = classes * max(1, round(columns / classes))
    settings = {
        "n": n,
        "label": chosen,
        "solver": solver,
        "steps": steps,
        "grid": grid,
        "guidance": guidance,
        "seed": seed,
    }
    with disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / "sampling.json").exists():  # an earlier request's pictures must not stand among these
            for old in folder.glob("[0-9]" * 5 + ".png"):
                old.unlink()
        write_whole(folder / "sampling.json", json.dumps({"run": str(run), **settings}, indent=1).encode())
        save_picture(sheet(samples, columns), folder / "sheet.png")
        if samples.ndim == 2:
            (folder / "points.csv").write_text("".join(f"{','.join(map(str, row))}\n" for row in samples.tolist()))
        else:
            for index, picture in enumerate(samples):
                save_picture(tile(picture[None], 1, gap=0), folder / f"{index:05}.png")
    print(f"{n} samples: {folder / 'sheet.png'}")


def film(
    run: tyro.conf.Positional[Path],
    /,
    *,
    n: Count = 8,
    label: str | None = None,
    solver: str | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    seed: int = 0,
    out: Path | None = None,
    device: str = "auto",
) -> None:
    """Show the denoising: a strip (PNG) and an animation (GIF), x_t above the predicted x0.

    For example:

      unfog film runs/digits
      unfog film runs/digits --label 8 --steps 40 --out films

    Args:
        run: Run folder.
        n: Samples in the animation; the strip shows the first three.
        label: Class to draw, by its name or its number; all classes in turn if left away.
        solver: ddim, dpmpp-2m, unipc or any other (see the README); the recipe's if left away.
        steps: Steps of the solver, one frame for each and one for the start.
        guidance: Scale of classifier-free guidance; 1 is off.
        seed: Seed of the noise.
        out: Folder for strip.png and film.gif; RUN/film if left away.
        device: cpu, cuda, cuda:1, mps, or auto.
    """
    from unfog.data.pictures import save_film, save_picture
    from unfog.files import disk
    from unfog.run import film as shoot
    from unfog.run import load

    folder = _folder(out or run / "film")
    loaded = load(run, device)
    sampler = loaded.sampler(solver=solver, steps=steps, guidance=guidance, seed=seed)
    strip, frames = shoot(loaded, sampler, n, _label(label, loaded.recipe.classes))
    with disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
        save_picture(strip, folder / "strip.png")
        save_film(frames, folder / "film.gif", milliseconds=80)
    print(f"strip: {folder / 'strip.png'}\nfilm:  {folder / 'film.gif'}")


def evaluate(
    run: tyro.conf.Positional[Path],
    /,
    *,
    n: Count = 1000,
    guidance: tuple[float, ...] = (),
    steps: int | None = None,
    likelihood: int | None = None,
    seed: int = 0,
    device: str = "auto",
) -> None:
    """Measure class-conditional samples beside real held-out data, and write RUN/evaluation.json.

    A support-vector classifier fitted on real training rows reads the samples; distances to the nearest
    training row show copies, coverage shows what is missing. With --likelihood the bits per dimension of real rows
    are measured instead, and written to RUN/likelihood.json.

    For example:

      unfog evaluate runs/digits
      unfog evaluate runs/digits -n 1000 --guidance 1 1.5
      unfog evaluate runs/digits --likelihood 64

    Args:
        run: Run folder.
        n: Number of samples, at least as many as held-out rows.
        guidance: Scales of classifier-free guidance to measure, 1 is off; 1 and the recipe's if left away.
        steps: Steps of the solver.
        likelihood: Rows of each split whose likelihood is measured, instead of samples.
        seed: Seed of the noise.
        device: cpu, cuda, cuda:1, mps, or auto.
    """
    from unfog.evaluation.density import density
    from unfog.evaluation.report import Judge, table
    from unfog.evaluation.report import evaluate as measure
    from unfog.files import write_whole
    from unfog.run import load

    loaded = load(run, device)
    data = loaded.recipe.build_data()[1]
    if likelihood is not None:
        bits = density(loaded, data, likelihood, seed)
        write_whole(run / "likelihood.json", json.dumps(bits.to_json(), indent=1).encode())
        print(bits.table())
        print(f"written: {run / 'likelihood.json'}")
        return
    judge = Judge(*data)
    scales = guidance or sorted({1.0, loaded.recipe.sampling.options["guidance"]})
    found = [measure(loaded, judge, n, guidance=scale, steps=steps, seed=seed) for scale in scales]
    write_whole(run / "evaluation.json", json.dumps([one.to_json() for one in found], indent=1).encode())
    print(table(found))
    print(f"written: {run / 'evaluation.json'}")


def verify(*, json: Path | None = None, peers: bool = False) -> None:
    """Prove that the solvers are right, on this machine: orders of convergence and answers in closed form.

    Takes one to three minutes, and exits with 1 if anything fails. `--peers` puts the schedulers of an installed
    diffusers (and the samplers of k-diffusion) through the same measurement instead; it needs the extra 'bench'.

    For example:

      unfog verify
      unfog verify --json verify.json
      unfog verify --peers

    Args:
        json: Also write every measurement to this file.
        peers: Measure other toolkits instead.
    """
    from rich.console import Console

    from unfog.evaluation.peers import report
    from unfog.evaluation.verify import Report
    from unfog.evaluation.verify import verify as proof
    from unfog.files import disk, write_whole

    console = Console()
    if json is not None:  # what cannot be written shows before the minutes are spent
        if json.is_dir():
            raise UserError(f"{json} is a folder: give --json the name of a file")
        with disk(json):
            json.parent.mkdir(parents=True, exist_ok=True)
            write_whole(json, b"")
    found: Report = report(console) if peers else proof(console)
    console.print(found.table())
    if json is not None:
        with disk(json):
            write_whole(json, found.to_json().encode())
        print(f"measurements: {json}")
    if not found.passed:
        raise EnvironmentFailure("verification failed: see the rows marked FAIL, and report them with this table")


def recipes() -> None:
    """List the recipes."""
    from rich.console import Console
    from rich.table import Table

    from unfog.recipes import RECIPES

    rows = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for name, build in RECIPES.items():
        rows.add_row(f"[bold]{name}[/]", (build.__doc__ or "").split("\n")[0])
    Console().print(rows)


def _folder(path: Path) -> Path:
    """Return a path that is a folder or can become one."""
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file: choose another --out")
    return path


def _label(text: str | None, classes: tuple[str, ...]) -> int | None:
    """Return the number of a class that is given by its name or its number."""
    if text is None or text in classes:
        return None if text is None else classes.index(text)
    try:
        return int(text)
    except ValueError:
        raise unknown("label", text, classes) from None


def _seconds(text: str) -> float:
    """Return the seconds of a text like 90s, 10m or 2h."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(s|m|min|h|)", text.strip())
    if not found or float(found[1]) == 0:
        raise UserError(f"--budget takes a time like 90s, 10m or 2h, not {text!r}")
    return float(found[1]) * {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600}[found[2]]


def _warn(message: Warning | str, *rest: Any, **more: Any) -> None:
    """Show a warning as one line."""
    print(f"warning: {message}", file=sys.stderr)


VERBS: dict[str, Callable[..., None]] = {
    "train": train,
    "sample": sample,
    "film": film,
    "evaluate": evaluate,
    "verify": verify,
    "recipes": recipes,
}


def main(argv: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments without the program's name; those of the process if None.

    Returns: 0 done; 1 the environment failed; 2 the user's mistake; 128 + signal if stopped.
    """
    arguments = sys.argv[1:] if argv is None else argv
    if "--version" in arguments[:1]:
        print(f"unfog {__version__}")
        return 0
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            tyro.extras.subcommand_cli_from_dict(
                VERBS,
                prog="unfog",
                args=arguments,
                description="Train, sample and measure diffusion models.",
                config=(tyro.conf.OmitArgPrefixes,),
            )
    except UserError as error:
        print(f"unfog: {error}", file=sys.stderr)
        return 2
    except EnvironmentFailure as error:
        print(f"unfog: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("unfog: stopped", file=sys.stderr)
        return 130
    except Stopped as error:
        print(f"unfog: {error}", file=sys.stderr)
        return error.code
    return 0
