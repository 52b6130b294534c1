"""Verbs that measure."""

import json
from pathlib import Path

import tyro

from unfog.cli import arguments
from unfog.cli.options import Count
from unfog.runtime.errors import EnvironmentFailure, UserError


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
    from unfog.runs.run import load, read_recipe
    from unfog.runtime.files import disk, write_whole

    if not read_recipe(run).objective.draws:
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
    data = build_data(loaded.recipe)[1]
    if likelihood is not None:
        bits = density(loaded, data, likelihood, seed)
        write_whole(run / "likelihood.json", json.dumps(bits.to_json(), indent=1).encode())
        print(bits.table())
        print(f"written: {run / 'likelihood.json'}")
        return
    scales = guidance or sorted({1.0, loaded.recipe.sampling.guidance})
    for scale in scales:  # a mistake shows before the minutes are spent
        loaded.sampler(guidance=scale, steps=steps)
    codec, console = build_codec(loaded.recipe).plain, Console(stderr=True)
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
    from unfog.runs.run import load

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
        from unfog.recipes.presets import recipe

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

    from unfog.proofs.diffusers_check import report
    from unfog.proofs.verify import Report
    from unfog.proofs.verify import verify as proof
    from unfog.runtime.files import write_whole

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
