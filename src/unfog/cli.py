"""The command line: thin verbs over the library. What they need is imported when they are called."""

import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import tyro

from unfog import __version__, arguments, terminal
from unfog.errors import EnvironmentFailure, Stopped, UserError

Settings = Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="PATH=VALUE")]
Prompts = Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="TEXT")]
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

    if resume is not None:
        if recipe or data or size or out or budget or set or init_from or precision != "auto":
            raise UserError("--resume goes on with a run as it is: give it alone, or start anew with --init-from")
        folder = resume
        run.refit(folder, device=device)
    else:
        chosen = arguments.chosen(recipe, data, size, set, precision)
        seconds = None if budget is None else arguments.seconds(budget)
        folder = out or Path("runs") / recipe
        run.fit(chosen, folder, budget=seconds, init_from=init_from, device=device)
    finished = run.read_recipe(folder)
    if finished.compresses:
        print(f"trained: {folder}   (measure it with `unfog evaluate {folder}`)")
        return
    if finished.shape == (2,):
        draw_plane(run.load(folder, device), folder / "plane.png")
        print(f"field and trajectories: {folder / 'plane.png'}")
    told = {"values": " --values ...", "image": " --image FILE"}.get(finished.conditioning.kind, "")
    print(f"trained: {folder}   (sample it with `unfog sample {folder} -n 64{told}`)")


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
    """Say what a training will take before it begins: time, memory, disk, and how much a budget holds.

    Takes about twenty steps and one report, in a temporary folder, and leaves nothing behind.

    For example:

      unfog plan digits
      unfog plan mnist --data my/mnist --budget 2h
      unfog plan folder --data my_pictures --size 64 --set training.batch=128

    Args:
        recipe: Name of a recipe; `unfog recipes` lists them.
        data: Path of the data, for recipes that read files.
        size: Side of the pictures, for the recipe 'folder'.
        budget: Time to use instead of the recipe's number of images, for instance 90s, 10m or 2h.
        set: Change a part of the recipe; may be given again and again.
        device: cpu, cuda, cuda:1, mps, or auto.
        precision: Arithmetic of the network; auto chooses what is faster there.
    """
    from unfog.training.plan import plan as measure

    chosen = arguments.chosen(recipe, data, size, set, precision)
    print(measure(chosen, budget=None if budget is None else arguments.seconds(budget), device=device).table())


def sample(
    run: tyro.conf.Positional[Path],
    /,
    *,
    n: Count = 64,
    label: str | None = None,
    prompt: Prompts = (),
    values: tuple[float, ...] = (),
    image: Path | None = None,
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
      unfog sample runs/shapes -n 16 --prompt "a small red circle above a large blue square"
      unfog sample runs/mnist -n 50000 --out many      (stop it, say it again, and it goes on)

    Args:
        run: Run folder.
        n: Number of samples.
        label: Class to draw, by its name or its number; all classes in turn if left away. Several labels with commas.
        prompt: Text to draw; given several times, in turn; some held-out captions in turn if left away.
        values: Numbers to ask for, of models that are told some.
        image: Picture, or folder of them in turn, for models that are told one (to colour, enlarge or fill).
        solver: ddim, dpmpp-2m, unipc or any other (see the README); the recipe's if left away.
        steps: Steps of the solver.
        grid: uniform, karras, trailing or any other; the recipe's if left away.
        guidance: Scale of classifier-free guidance; 1 is off.
        seed: Seed of the noise; sample i depends on the seed and on i alone.
        out: Folder for the pictures; RUN/samples/seed-SEED if left away.
        device: cpu, cuda, cuda:1, mps, or auto.
        precision: Arithmetic of the network.
    """
    import signal

    from rich.console import Console

    from unfog.run import load, sample_into

    folder = arguments.folder(out or run / "samples" / f"seed-{seed}")
    own = out is None and folder.resolve().is_relative_to(run.resolve())  # a link in a run may lead anywhere
    loaded = load(run, device, precision)
    sampler = loaded.sampler(solver=solver, steps=steps, grid=grid, guidance=guidance, seed=seed)
    asked = arguments.asked(loaded, label, prompt, values, image)
    try:
        sample_into(folder, loaded, sampler, n, asked, replace=own, console=Console(stderr=True))
    except KeyboardInterrupt:
        raise Stopped("stopped: the same command goes on where this one was", signal.SIGINT) from None
    print(f"{n} samples: {folder / 'sheet.png'}")


def film(
    run: tyro.conf.Positional[Path],
    /,
    *,
    n: Count = 8,
    label: str | None = None,
    prompt: Prompts = (),
    values: tuple[float, ...] = (),
    image: Path | None = None,
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
        label: Class to draw, by its name or its number; all classes in turn if left away. Several labels with commas.
        prompt: Text to draw; given several times, in turn; some held-out captions in turn if left away.
        values: Numbers to ask for, of models that are told some.
        image: Picture, or folder of them in turn, for models that are told one (to colour, enlarge or fill).
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

    folder = arguments.folder(out or run / "film")
    loaded = load(run, device)
    sampler = loaded.sampler(solver=solver, steps=steps, guidance=guidance, seed=seed)
    strip, frames = shoot(loaded, sampler, n, arguments.asked(loaded, label, prompt, values, image))
    with disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
        save_picture(strip, folder / "strip.png")
        save_film(frames, folder / "film.gif", milliseconds=80)
    print(f"strip: {folder / 'strip.png'}\nfilm:  {folder / 'film.gif'}")


def evaluate(
    run: tyro.conf.Positional[Path],
    /,
    *,
    n: Count = 5000,
    guidance: tuple[float, ...] = (),
    steps: int | None = None,
    batch: int = 256,
    inception: Path | None = None,
    dinov2: Path | None = None,
    likelihood: int | None = None,
    seed: int = 0,
    device: str = "auto",
) -> None:
    """Measure samples beside real held-out data and noise: fidelity, diversity, adherence, copies, loss by noise level.

    Writes RUN/evaluation.json, and in RUN/evaluation, of the last guidance, samples.png (samples above held-out rows)
    and memorisation.png (samples above the training rows nearest to them), and levels.png. The classifier that reads
    the samples is trained once, on the run's own training rows, and kept in the cache. With --likelihood the bits per
    dimension of real rows are measured instead, and written to RUN/likelihood.json.

    For example:

      unfog evaluate runs/digits -n 1000
      unfog evaluate runs/mnist --guidance 1 1.5 2
      unfog evaluate runs/digits --likelihood 64

    Args:
        run: Run folder.
        n: Number of samples; compared in blocks of as many as there are held-out rows.
        guidance: Scales of classifier-free guidance to measure, 1 is off; 1 and the recipe's if left away.
        steps: Steps of the solver.
        batch: Pictures that go through an extractor of features at a time; no part of the result.
        inception: Weights of Inception-v3, to measure in its features too (needs torch-fidelity).
        dinov2: Folder with DINOv2, to measure in its features too (needs transformers).
        likelihood: Rows of each split whose likelihood is measured, instead of samples.
        seed: Seed of the noise.
        device: cpu, cuda, cuda:1, mps, or auto.
    """
    from rich.console import Console

    from unfog.evaluation.density import density
    from unfog.evaluation.judge import Judge
    from unfog.evaluation.levels import measure_levels
    from unfog.evaluation.report import draw_sheets, table, to_json
    from unfog.evaluation.report import evaluate as measure
    from unfog.files import disk, write_whole
    from unfog.run import load, read_recipe

    if read_recipe(run).compresses:
        given = {"--guidance": guidance, "--steps": steps, "--likelihood": likelihood}
        for name, value in given.items():
            if value:
                raise UserError(f"{name} is for models that draw samples, and {run} holds an autoencoder")
        from unfog.evaluation.reconstruction import reconstruction

        kept = reconstruction(run, n, seed, device)
        kept.write(run)
        print(kept.table())
        print(f"written: {run / 'evaluation.json'}, and originals above what is left of them: {run / 'evaluation'}")
        return
    loaded = load(run, device)
    data = loaded.recipe.build_data()[1]
    if likelihood is not None:
        bits = density(loaded, data, likelihood, seed)
        write_whole(run / "likelihood.json", json.dumps(bits.to_json(), indent=1).encode())
        print(bits.table())
        print(f"written: {run / 'likelihood.json'}")
        return
    scales = guidance or sorted({1.0, loaded.recipe.sampling.options["guidance"]})
    for scale in scales:  # a mistake shows before the minutes are spent
        loaded.sampler(guidance=scale, steps=steps)
    codec, console = loaded.recipe.build_codec().plain, Console(stderr=True)
    judge = Judge(data, codec, n, batch=batch, seed=seed, console=console, inception=inception, dinov2=dinov2)
    found = [measure(loaded, judge, n, guidance=scale, steps=steps, seed=seed, console=console) for scale in scales]
    levels = measure_levels(loaded, judge, seed)
    folder = run / "evaluation"
    with disk(folder):
        folder.mkdir(exist_ok=True)
    draw_sheets(found[-1], judge, folder)
    levels.draw(folder / "levels.png")
    write_whole(run / "evaluation.json", to_json(found, judge, levels).encode())
    print(table(found, judge))
    print(f"written: {run / 'evaluation.json'}, and pictures: {folder}")


def bench(
    run: tyro.conf.Positional[Path | None] = None,
    /,
    *,
    solvers: tuple[str, ...] = (),
    grids: tuple[str, ...] = (),
    guidance: tuple[float, ...] = (),
    nfe: tuple[int, ...] = (),
    save: bool = False,
    schedules: str | None = None,
    data: str | None = None,
    budget: str | None = None,
    out: Path | None = None,
    n: Count = 1000,
    seed: int = 0,
    device: str = "auto",
) -> None:
    """Measure quality against network evaluations, and recommend how to sample a run; or compare schedules.

    Every combination is sampled from the same noises. A table, RUN/bench/bench.png and bench.json tell the Fréchet
    distances; what was measured before is not measured again. With --schedules, one small model is trained on each
    schedule instead, alike but for that, and all are ranked.

    For example:

      unfog bench runs/mnist
      unfog bench runs/mnist --solvers dpmpp-2m unipc --grids uniform karras --guidance 1 2 --save
      unfog bench --schedules linear,quadratic,cosine,flow --data digits --budget 2m

    Args:
        run: Run folder.
        solvers: Solvers to measure; eight of them if left away.
        grids: Grids to measure them on; the recipe's if left away.
        guidance: Scales of classifier-free guidance; 1, which is off, if left away.
        nfe: Network evaluations for each sample; 5 8 10 15 20 35 if left away.
        save: Store the recommended setting in the run folder, so that `unfog sample` uses it.
        schedules: Schedules to train on, between commas.
        data: Recipe to train on them; digits if left away.
        budget: Time for the first schedule, 2m if left away; the others see as many images.
        out: Folder for their runs; runs/schedules if left away.
        n: Samples of each.
        seed: Seed of the noise.
        device: cpu, cuda, cuda:1, mps, or auto.
    """
    from rich.console import Console

    from unfog.evaluation import bench as measure
    from unfog.run import load

    console = Console(stderr=True)
    of_runs: dict[str, object] = {"a run": run, "--solvers": solvers, "--grids": grids, "--guidance": guidance}
    misplaced: dict[str, object] = {"--data": data, "--budget": budget, "--out": out}
    if schedules is not None:
        misplaced = {**of_runs, "--nfe": nfe, "--save": save}
    for name, value in misplaced.items():
        if value:
            why = "goes with --schedules only" if schedules is None else "does not go with --schedules, which trains"
            raise UserError(f"{name} {why}: leave it away")
    if schedules is not None:
        from unfog.recipes import recipe

        folder, seconds, base = (
            arguments.folder(out or Path("runs/schedules")),
            arguments.seconds(budget or "2m"),
            recipe(data or "digits"),
        )
        kinds = schedules.split(",")
        ranking = measure.schedules(base, kinds, folder, seconds, count=n, seed=seed, device=device, console=console)
        print(ranking.write(folder))
        return
    if run is None:
        raise UserError("name a run folder to measure, or the --schedules to train on")
    loaded = load(run, device)
    settings = (solvers, grids, guidance, nfe)
    found = measure.bench(loaded, *settings, count=n, seed=seed, console=console)
    print(found.write(run / "bench"))
    if save:
        measure.save(loaded, found.recommended)
        print(f"stored in {run / 'recipe.json'}: `unfog sample {run}` uses the recommended setting now")
    else:
        print("(--save stores the recommended setting in the run folder, so that `unfog sample` uses it)")


def compare(
    runs: tyro.conf.Positional[tuple[Path, ...]],
    /,
    *,
    n: Count = 1000,
    guidance: float | None = None,
    steps: int | None = None,
    solver: str | None = None,
    seed: int = 0,
    out: Path | None = None,
    device: str = "auto",
) -> None:
    """Put models side by side on the same noises: a sheet, and the differences of their scores with intervals.

    A folder that holds several run folders counts as one model, trained with several seeds.

    For example:

      unfog compare runs/cosine runs/flow
      unfog compare runs/small runs/large runs/larger --guidance 1.5 --steps 20

    Args:
        runs: Run folders, or folders of run folders; the others are compared with the first.
        n: Samples of each run.
        guidance: Scale of classifier-free guidance; the first recipe's if left away, as all that follow.
        steps: Steps of the solver.
        solver: ddim, dpmpp-2m, unipc or any other.
        seed: Seed of the noise.
        out: Folder for sheet.png and comparison.json; `compare` beside the runs if left away.
        device: cpu, cuda, cuda:1, mps, or auto.
    """
    from rich.console import Console

    from unfog.evaluation import compare as sides

    models, names = sides.load_alike(runs, device), [str(path) for path in runs]
    folder = arguments.folder(out or sides.common_parent(runs) / "compare")
    console = Console(stderr=True)
    found = sides.compare(models, names, n, solver, steps, guidance, seed=seed, console=console)
    print(found.write(folder))


def replay(
    run: tyro.conf.Positional[Path],
    /,
    *,
    step: int,
    out: Path | None = None,
    device: str = "auto",
) -> None:
    """Draw any step of a training again: rows, conditions, times, noise, and the loss of each row.

    Writes step-N.png, clean rows above noisy ones, and step-N.json. The losses are under the newest checkpoint from
    before the step, else under the run's model.

    For example:

      unfog replay runs/digits --step 140
      unfog replay runs/digits --step 1 --out spikes

    Args:
        run: Run folder.
        step: Number of the optimizer step, from 1, as in metrics.jsonl, whose lines average the 20 steps up to theirs.
        out: Folder for picture and numbers; RUN/replay if left away.
        device: cpu, cuda, cuda:1, mps, or auto.
    """
    from unfog.evaluation.replay import replay as draw_again

    folder = arguments.folder(out or run / "replay")
    print(draw_again(run, step, device).write(folder))


def average(
    run: tyro.conf.Positional[Path],
    /,
    *,
    length: float,
    out: Path,
) -> None:
    """Average the weights of a run over another length after its training, into a run folder of its own.

    Needs snapshots, which `unfog train --set training.snapshots=32` keeps.

    For example:

      unfog average runs/digits --length 0.15 --out runs/digits-15
      unfog average runs/digits --length 0.05 --out runs/digits-05

    Args:
        run: Run folder.
        length: Width of the average, relative to the training: above 0 and below 0.289; most recipes' own has 0.10.
        out: The new run folder.
    """
    from unfog.run import average as make

    made = make(run, length, out)
    print(
        f"averaged: {out}   (up to step {made.step} with gamma {made.gamma:.2f}, the profile within {made.error:.1%};"
    )
    print(f"compare it with `unfog compare {run} {out}`)")


def inspect(path: tyro.conf.Positional[Path], /, *, json: Path | None = None, sheet: Path | None = None) -> None:
    """Look a folder of pictures over before training on it: what it holds, what is wrong, and how to train on it.

    Reads every picture, one at a time. What is wrong is no failure: the exit code is 0.

    For example:

      unfog inspect my_pictures
      unfog inspect my_pictures --json found.json --sheet found.png

    Args:
        path: Folder of pictures, as for `unfog train folder --data`.
        json: Also write everything to this file, each picture named.
        sheet: Also draw pictures as training sees them into this PNG, the faulty ones first.
    """
    from unfog.data.inspect import inspect as look_over
    from unfog.data.pictures import save_picture
    from unfog.files import write_whole

    if sheet is not None and sheet.resolve().is_relative_to(path.resolve()):
        raise UserError(f"{sheet} would be one of the pictures: choose a --sheet outside of {path}")
    for option, file in (("--json", json), ("--sheet", sheet)):
        if file is not None:
            arguments.file(file, option)
    report = look_over(path)
    print(report.text())
    if json is not None:
        write_whole(json, report.to_json().encode())
        print(f"everything: {json}")
    if sheet is not None and (drawn := report.sheet()) is not None:
        save_picture(drawn, sheet)
        print(f"pictures: {sheet}")


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
    from unfog.files import write_whole

    console = Console()
    if json is not None:  # what cannot be written shows before the minutes are spent
        arguments.file(json, "--json")
        write_whole(json, b"")
    found: Report = report(console) if peers else proof(console)
    console.print(found.table())
    if json is not None:
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


VERBS: dict[str, Callable[..., None]] = {
    "train": train,
    "inspect": inspect,
    "plan": plan,
    "sample": sample,
    "film": film,
    "evaluate": evaluate,
    "bench": bench,
    "compare": compare,
    "average": average,
    "replay": replay,
    "verify": verify,
    "recipes": recipes,
}


def main(argv: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments without the program's name; those of the process if None.

    Returns: 0 done; 1 the environment failed; 2 the user's mistake; 128 + signal if stopped.
    """
    words = sys.argv[1:] if argv is None else argv
    terminal.prepare()
    if "--version" in words[:1]:
        print(f"unfog {__version__}")
        return 0
    try:
        with warnings.catch_warnings():
            warnings.showwarning = terminal.warn
            warnings.filterwarnings("ignore", "Image size .* exceeds limit")  # such a picture is named as unreadable
            with terminal.together():
                tyro.extras.subcommand_cli_from_dict(
                    VERBS,
                    prog="unfog",
                    args=words,
                    description="Train, sample and measure diffusion models.",
                    config=(tyro.conf.OmitArgPrefixes,),
                )
    except (Exception, KeyboardInterrupt) as error:
        return terminal.end(error)
    return 0
