"""Verbs that measure quality and verify the solvers."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import tyro

from unfog.cli import arguments
from unfog.cli.options import (
    AcceptChangedData,
    Count,
    Counts,
    Device,
    JudgeKind,
    MovedData,
    Names,
    Numbers,
    RunFolders,
    Seed,
    SomeCount,
    SomeFloat,
    SomeInt,
    SomePath,
    SomeRuns,
    SomeText,
    Steps,
)
from unfog.runtime.errors import EnvironmentFailure, UserError

if TYPE_CHECKING:  # importing these takes long, and --help needs none of it
    from rich.console import Console

    from unfog.data.source import Data
    from unfog.runs.data import Changed
    from unfog.runs.run import Run


class Fitting(TypedDict):
    """How a judge is made."""

    batch: int
    thorough: bool
    inception: Path | None
    dinov2: Path | None


def evaluate(
    run: tyro.conf.Positional[Path],
    /,
    *,
    n: SomeCount = None,
    real: SomePath = None,
    guidance: Numbers = (),
    steps: Steps = None,
    batch: int = 256,
    judge: JudgeKind = "quick",
    inception: SomePath = None,
    dinov2: SomePath = None,
    likelihood: SomeInt = None,
    data: MovedData = None,
    accept_changed_data: AcceptChangedData = False,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Measure samples against held-out data and noise: fidelity, diversity, adherence, copies, loss by noise level.

    Writes RUN/evaluation.json and, in RUN/evaluation, samples.png (samples above held-out rows) and memorisation.png
    (samples above their nearest training rows) for the last guidance, and levels.png. The classifier that scores the
    samples is trained once on the run's own training rows and cached. With --likelihood it measures the bits per
    dimension of real rows instead, and writes them to RUN/likelihood.json.

    With --real, RUN is a folder of pictures from any model: they are compared with real pictures of the same size, and
    the scores are written to RUN/evaluation.json.

    For example:

      unfog evaluate runs/digits -n 1000
      unfog evaluate runs/mnist --guidance 1 1.5 2
      unfog evaluate runs/digits --likelihood 64
      unfog evaluate samples --real photos

    Args:
        run: Run folder, or with --real a folder of pictures.
        n: Number of samples, scored in blocks as large as the held-out set. Default: 5,000, or as many as take about
            two minutes; with --real, at most 5,000 pictures.
        real: Folder of real pictures to compare a folder of pictures with.
        guidance: Scales of classifier-free guidance to measure, 1 is off; default: 1 and the recipe's.
        batch: Pictures per batch of a feature extractor; does not change the result.
        inception: Weights of Inception-v3, to measure distances in its features as well (needs torch-fidelity).
        dinov2: Folder with DINOv2, to measure distances in its features as well (needs transformers).
        likelihood: Measure the likelihood of this many training and held-out rows instead of samples.
    """
    from rich.console import Console

    from unfog.runs.data import moved, read_data
    from unfog.runs.run import load, read_recipe
    from unfog.runtime.files import locked

    options: dict[str, object] = {"--guidance": guidance, "--steps": steps, "--likelihood": likelihood}
    thorough = judge == "thorough"
    options["--judge thorough"] = thorough
    changed: Changed = "accept" if accept_changed_data else "refuse"
    extractors = {"--inception": inception, "--dinov2": dinov2}
    console = Console(stderr=True)
    if real is not None:
        mine = {"--data": data, "--accept-changed-data": accept_changed_data}
        _refuse({**options, **mine}, "is for runs, and --real compares two folders of pictures: omit it")
        _evaluate_pictures(run, real, n, seed, batch, inception, dinov2, console)
        return
    recipe = read_recipe(run)
    if not recipe.objective.draws:
        _refuse(
            {**options, **extractors},
            f"is for models that draw samples, and {run} holds one of the objective {recipe.kind('objective')!r}",
        )
        with locked(run / "evaluation"):
            if recipe.kind("objective") == "contrastive":
                _evaluate_encoders(run, n, data, changed, console)
            else:
                _evaluate_autoencoder(run, n, seed, device, data, changed, console)
        return
    if likelihood is not None:
        _refuse({**options, **extractors, "--likelihood": None}, "is for samples, and --likelihood measures real rows")
    loaded = load(run, device)
    loaded = replace(loaded, recipe=moved(loaded.recipe, data))
    scales = guidance or (sorted({1.0, loaded.recipe.sampling.guidance}) if loaded.denoises else (1.0,))
    for scale in scales if likelihood is None else ():  # before pictures are read
        loaded.generator(guidance=scale, steps=steps)
    rows = read_data(run, loaded.recipe, changed)[1]
    with locked(run / "evaluation"):
        if likelihood is not None:
            _evaluate_likelihood(loaded, rows, likelihood, seed, console)
        else:
            fitting: Fitting = {"batch": batch, "thorough": thorough, "inception": inception, "dinov2": dinov2}
            _evaluate_samples(loaded, rows, n, tuple(scales), bool(guidance), steps, seed, fitting, console)


def _evaluate_pictures(
    samples: Path,
    real: Path,
    n: int | None,
    seed: int,
    batch: int,
    inception: Path | None,
    dinov2: Path | None,
    console: "Console",
) -> None:
    """Compare two folders of pictures, and write the scores."""
    from contextlib import nullcontext

    from unfog.evaluation.sets import evaluate as compare_sets
    from unfog.runtime.files import locked, write_whole

    most = 5000 if n is None else n
    with locked(samples) if samples.is_dir() else nullcontext():
        evaluated = compare_sets(
            samples, real, most=most, batch=batch, seed=seed, console=console, inception=inception, dinov2=dinov2
        )
        print(evaluated.table())  # first, since the folder may not be for us to write
        write_whole(samples / "evaluation.json", evaluated.to_json().encode())
    print(f"written: {samples / 'evaluation.json'}")


def _refuse(options: Mapping[str, object], why: str) -> None:
    """Refuse options that do not apply."""
    for name, value in options.items():
        if value not in (None, (), False):
            raise UserError(f"{name} {why}")


def _evaluate_encoders(run: Path, n: int | None, data: str | None, changed: "Changed", console: "Console") -> None:
    """Measure how well encoders find what belongs together, and write it."""
    from unfog.evaluation.retrieval import retrieval

    found = retrieval(run, n, data=data, changed=changed, console=console)
    print(found.table())
    found.write(run)
    print(f"written: {run / 'evaluation.json'}")


def _evaluate_autoencoder(
    run: Path, n: int | None, seed: int, device: str, data: str | None, changed: "Changed", console: "Console"
) -> None:
    """Measure the reconstructions of an autoencoder, and write scores and pictures."""
    from unfog.evaluation.reconstruction import reconstruction

    kept = reconstruction(run, n, seed, device, data=data, changed=changed, console=console)
    print(kept.table())
    kept.write(run)
    print(f"written: {run / 'evaluation.json'}, and originals above their reconstructions: {run / 'evaluation'}")


def _evaluate_likelihood(run: "Run", data: "Data", count: int, seed: int, console: "Console") -> None:
    """Measure the likelihood of real rows, and write it."""
    from unfog.evaluation.density import density
    from unfog.runtime.files import write_whole
    from unfog.runtime.progress import working

    with working(f"likelihood of {count} training and as many held-out rows", console=console):
        bits = density(run, data, count, seed)
    print(bits.table())
    write_whole(run.path / "likelihood.json", json.dumps(bits.to_json(), indent=1).encode())
    print(f"written: {run.path / 'likelihood.json'}")


def _evaluate_samples(
    run: "Run",
    data: "Data",
    n: int | None,
    scales: tuple[float, ...],
    chosen: bool,
    steps: int | None,
    seed: int,
    fitting: "Fitting",
    console: "Console",
) -> None:
    """Measure samples of a run at some scales of guidance, perhaps the user's choice; write scores and pictures."""
    from unfog.evaluation.effort import begin
    from unfog.evaluation.judge import Judge
    from unfog.evaluation.levels import measure_levels
    from unfog.evaluation.report import draw_sheets, evaluate_run, table, to_json
    from unfog.recipes.build import build_codec
    from unfog.runtime.files import disk, write_whole
    from unfog.runtime.progress import working

    codec = build_codec(run.recipe).plain
    planned = begin(run, data, scales, steps, seed, codec, n, chosen, console, fitting["thorough"])
    n, scales = planned.count, planned.scales
    mirror, reads = run.recipe.augment.flip, run.recipe.reads
    judge = Judge(data, codec, n, seed=seed, console=console, mirror=mirror, reads=reads, **fitting)
    evaluations = []
    for scale in scales:
        evaluations.append(evaluate_run(run, judge, n, guidance=scale, steps=steps, seed=seed, console=console))
    with working("loss by noise level", console=console):
        levels = measure_levels(run, judge, seed) if run.denoises else None
    width = getattr(run.recipe.network, "width", None)
    print(table(evaluations, judge, shlex.quote(str(run.path)), width))
    folder = run.path / "evaluation"
    with disk(folder):
        folder.mkdir(exist_ok=True)
    draw_sheets(evaluations[-1], judge, folder, run.recipe.modality)
    if levels is not None:
        levels.draw(folder / "levels.png")
    write_whole(run.path / "evaluation.json", to_json(evaluations, judge, levels, width).encode())
    print(f"written: {run.path / 'evaluation.json'}, and pictures: {folder}")


def bench(
    runs: SomeRuns = (),
    /,
    *,
    solvers: Names = (),
    grids: Names = (),
    guidance: Numbers = (),
    nfe: Counts = (),
    save: bool = False,
    schedules: SomeText = None,
    data: SomeText = None,
    budget: SomeText = None,
    out: SomePath = None,
    n: Count = 1000,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Measure quality against network evaluations and recommend sampling settings for a run; or compare schedules.

    Every combination starts from the same noise. Fréchet distances and recall are printed as tables and written to
    RUN/bench/bench.png and bench.json; earlier measurements are reused. Of several runs, for instance a teacher and its
    student, each is also compared with the first one at as many evaluations. With --schedules, it instead trains one
    small model per schedule, all else equal, and ranks them.

    For example:

      unfog bench runs/mnist
      unfog bench runs/mnist --solvers dpmpp-2m unipc --grids uniform karras --guidance 1 2 --save
      unfog bench runs/mnist runs/fast --guidance 2 --nfe 1 2 4 10 20
      unfog bench --schedules linear,quadratic,cosine,flow --data digits --budget 2m

    Args:
        runs: Run folders.
        solvers: Solvers to measure; default: eight of them, of flow maps the one whose steps are jumps.
        grids: Grids to measure them on; default: the recipe's.
        guidance: Scales of classifier-free guidance; default: 1, which is off.
        nfe: Network evaluations per sample; default: 5 8 10 15 20 35, with a flow map 1 2 4 8 16 32.
        save: Store the recommended setting in the run folder, so that `unfog sample` uses it.
        schedules: Noise schedules to compare, separated by commas.
        data: Recipe to train with each schedule; default: digits.
        budget: Training time on the first schedule, default: 2m; the others train on the same number of images.
        out: Folder for their runs; default: runs/schedules.
        n: Samples per combination.
    """
    from rich.console import Console

    from unfog.evaluation import bench as measure
    from unfog.runs.run import load
    from unfog.runtime.files import locked

    console = Console(stderr=True)
    of_runs: dict[str, object] = {"a run": runs, "--solvers": solvers, "--grids": grids, "--guidance": guidance}
    if schedules is not None:
        misplaced = {**of_runs, "--nfe": nfe, "--save": save}
        _refuse(misplaced, "does not go with --schedules, which trains: omit it")
        from unfog.evaluation.contest import schedules as rank
        from unfog.recipes.presets import recipe

        folder, seconds = arguments.folder(out or Path("runs/schedules")), arguments.seconds(budget or "2m")
        base, kinds = recipe(data or "digits"), schedules.split(",")
        with locked(folder):
            ranking = rank(base, kinds, folder, seconds, count=n, seed=seed, device=device, console=console)
            print(ranking.write(folder))
        return
    _refuse({"--data": data, "--budget": budget, "--out": out}, "goes with --schedules only: omit it")
    if not runs:
        raise UserError("nothing to measure: name a run folder, or the --schedules to train on")
    if save and len(runs) > 1:
        raise UserError("--save stores a setting in one run folder: name one")
    loaded, run = [load(one, device) for one in runs], runs[0]
    with locked(run if save else run / "bench"):
        measured = measure.bench(loaded, solvers, grids, guidance, nfe, count=n, seed=seed, console=console)
        print(measured.table())
        print(measured.write(run / "bench"))
        if save:
            measure.save(loaded[0], measured.recommended)
    if len(runs) > 1:
        return
    if save:
        print(f"stored in {run / 'recipe.json'}: `unfog sample {run}` uses the recommended setting now")
    else:
        print("(--save stores the recommended setting in the run folder, so that `unfog sample` uses it)")


def compare(
    runs: RunFolders,
    /,
    *,
    n: Count = 1000,
    guidance: SomeFloat = None,
    steps: SomeInt = None,
    solver: SomeText = None,
    judge: JudgeKind = "quick",
    seed: Seed = 0,
    out: SomePath = None,
    device: Device = "auto",
) -> None:
    """Compare models on the same noise: a sheet, and the differences of their scores with intervals.

    A folder that holds several run folders counts as one model, trained with several seeds.

    For example:

      unfog compare runs/cosine runs/flow
      unfog compare runs/small runs/large runs/larger --guidance 1.5 --steps 20

    Args:
        runs: Run folders, or folders of run folders; the others are compared with the first.
        n: Samples of each run.
        guidance: Scale of classifier-free guidance; 1 is off. Default: the first run's.
        steps: Steps of the solver; default: the first run's.
        solver: ddim, dpmpp-2m, unipc or another one; default: the first run's.
        out: Folder for sheet.png and comparison.json; default: `compare` next to the runs.
    """
    from rich.console import Console

    from unfog.evaluation import compare as sides
    from unfog.runtime.files import locked

    if not runs:
        raise UserError("name the run folders to compare: unfog compare RUN RUN ...")
    models, names = sides.load_alike(runs, device), [str(path) for path in runs]
    folder = arguments.folder(out or sides.common_parent(runs) / "compare")
    for one in (one for group in models for one in group):
        arguments.folder(folder, one.recipe)
    console = Console(stderr=True)
    with locked(folder):
        thorough = judge == "thorough"
        comparison = sides.compare(
            models, names, n, solver, steps, guidance, seed=seed, console=console, thorough=thorough
        )
        print(comparison.table())
        print(comparison.write(folder))


def verify(*, json: SomePath = None, peers: bool = False, learned: bool = False) -> None:
    """Verify the solvers on this machine: orders of convergence, and exact solutions in closed form.

    Takes one to three minutes and exits with 1 if a check fails. `--peers` measures the schedulers of an installed
    diffusers (and the samplers of k-diffusion) the same way instead; it needs the extra 'bench'. `--learned` trains
    small flow maps instead, and compares them with the exact ones.

    For example:

      unfog verify
      unfog verify --json verify.json
      unfog verify --peers
      unfog verify --learned

    Args:
        json: Also write every measurement to this file.
        peers: Measure other toolkits instead.
        learned: Train flow maps on mixtures of Gaussians, and measure by how much they miss the exact flow.
    """
    from rich.console import Console

    if peers and learned:
        raise UserError("--peers and --learned measure different things: give one of them")
    from unfog.proofs import learned as maps
    from unfog.proofs.diffusers_check import report
    from unfog.proofs.verify import Report
    from unfog.proofs.verify import verify as proof
    from unfog.runtime.files import write_output

    console = Console()
    with arguments.writing(json, "--json"):
        if json is not None and (json.is_file() or not json.exists()):  # fail early, before minutes are spent
            write_output(json, b"")
        proven: Report = report(console) if peers else maps.verify(console) if learned else proof(console)
        Console(width=max(console.width, 100)).print(proven.table())  # a pipe's 80 columns would cut the figures off
        if json is not None:
            write_output(json, proven.to_json().encode())
            print(f"measurements: {json}")
    if not proven.passed:
        raise EnvironmentFailure("verification failed: see the rows marked FAIL, and report them with this table")
