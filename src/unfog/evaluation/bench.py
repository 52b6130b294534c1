"""`unfog bench`: quality against network evaluations for solvers, grids and guidance, of one run or several."""

import bisect
import signal
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import replace
from functools import cache, partial
from itertools import product
from typing import NamedTuple

import torch
from rich.console import Console
from torch import Tensor, nn

from unfog.diffusion.denoiser import Denoiser
from unfog.diffusion.solvers import RungeKutta45
from unfog.evaluation.benched import Bench
from unfog.evaluation.compare import check_alike
from unfog.evaluation.distances import Rows
from unfog.evaluation.features import digest
from unfog.evaluation.intervals import INTERVALS
from unfog.evaluation.judge import Asked, Judge
from unfog.evaluation.leads import Cell, leads, read_features, write_features
from unfog.evaluation.report import draw, heldout_conditions, verdicts
from unfog.evaluation.results import Measured, Setting, append_result, read_results
from unfog.generation.sampler import Sampler
from unfog.recipes.build import build_codec
from unfog.recipes.fitting import extrapolates_far
from unfog.runs.data import read_data
from unfog.runs.run import Run
from unfog.runs.tuned import GRID, steps_of
from unfog.runtime.brief import in_full
from unfog.runtime.errors import Stopped, UserError
from unfog.runtime.files import locked, write_whole
from unfog.runtime.lines import counted
from unfog.runtime.progress import working
from unfog.runtime.version import __version__

SOLVERS = ("ddim", "euler", "heun", "dpmpp-2m", "dpmpp-3m", "unipc", "adams-bashforth", "ancestral")
NFE, FEW = (5, 8, 10, 15, 20, 35), (1, 2, 4, 8, 16, 32)
"""Numbers of evaluations by default, and where a flow map is measured."""


def bench(
    runs: Run | Sequence[Run],
    solvers: Sequence[str] = (),
    grids: Sequence[str] = (),
    guidance: Sequence[float] = (),
    nfe: Sequence[int] = (),
    *,
    count: int = 1000,
    seed: int = 0,
    console: Console | None = None,
) -> Bench:
    """Measure runs under every combination, from the same noises; earlier measurements are read from their folders.

    Args:
        runs: A run, or several that were trained on the same data: a teacher and its students, for instance.
        solvers: Names of solvers. Default: `SOLVERS`; of flow maps their own, whose steps are jumps.
        grids: Names of grids; default: the recipe's.
        guidance: Scales of guidance; 1, which is off, if empty.
        nfe: Network evaluations for each sample: of each combination the most steps that cost no more are measured.
            Default: `NFE`, or `FEW` where a run is a flow map.
        count: Samples of each.
        seed: Seed of the noises.
        console: Shows the progress.

    Raises: UserError: If a name is unknown, nothing can run, there are too few samples, or the data differ.
        Stopped: After Ctrl-C; finished measurements are kept.
    """
    each = [runs] if isinstance(runs, Run) else list(runs)
    if not each:
        raise UserError("nothing to measure: give a run")
    wanted = tuple(sorted(set(nfe or (FEW if any(run.recipe.objective.jumps for run in each) else NFE))))
    if wanted[0] < 1:
        raise UserError(f"a sample takes 1 network evaluation or more, not {wanted[0]}")
    settings = [_settings(run, solvers, grids, guidance) for run in each]
    first = each[0]
    for run in each[1:]:
        check_alike(first, run)
    if len({run.path.resolve() for run in each}) < len(each):
        raise UserError("one run is named twice: name each once")
    data, codec = read_data(first.path, first.recipe)[1], build_codec(first.recipe).plain
    judge = Judge(data, codec, count, console=console, reads=first.recipe.reads)
    heads = heads_of(each)
    plans = [_plan(run, own, wanted, seed, judge, count) for run, own in zip(each, settings, strict=True)]
    found = Bench(", ".join(str(run.path) for run in each), wanted, {}, {})
    features: dict[Cell, Rows] = {}
    for run, head, plan in zip(each, heads, plans, strict=True):
        own, rows = _measured(run, judge, plan, count, seed, console)
        named = {cell: (replace(cell[0], run=head), cell[1]) for cell in plan.cells}
        found.cells.update((named[cell], replace(one, setting=named[cell][0])) for cell, one in own.items())
        features |= {named[cell]: part for cell, part in rows.items()}
        found.left_out.update((f"{head}: {name}" if head else name, why) for name, why in plan.left_out.items())
        doubtful = {named[cell] for cell, (sampler, _) in plan.cells.items() if _doubtful(sampler)}
        found = replace(found, doubtful=found.doubtful | doubtful)
    return replace(found, leads=leads(found.cells, wanted, features, judge), near=_near(found, heads, features, judge))


def heads_of(runs: Sequence[Run]) -> list[str]:
    """Return what each of several runs is called: its folder's name, or its path where two have one name."""
    names = [run.path.resolve().name for run in runs]
    if len(runs) == 1:
        return [""]
    return names if len(set(names)) == len(names) else [str(run.path) for run in runs]


def _near(found: Bench, heads: Sequence[str], features: Mapping[Cell, Rows], judge: Judge) -> tuple[str, ...]:
    """Return for each run whether the samples of its recommended measurement are copies of training rows."""
    said = list[str]()
    for head in heads:
        own = {cell: one for cell, one in found.cells.items() if cell[0].run == head}
        best = replace(found, cells=own).recommended
        near = judge.near(next(features[cell] for cell, one in own.items() if one == best))
        said += verdicts({judge.first.extractor.name: near}, f", {head}" if head else "")
    return tuple(said)


def _measured(
    run: Run, judge: Judge, plan: "Plan", count: int, seed: int, console: Console | None
) -> tuple[dict[Cell, Measured], dict[Cell, Rows]]:
    """Return the measurements of a run, and the features of their samples: what its folder keeps, and the others."""
    keys = _keys(run, judge, plan, count, seed)
    folder = run.path / "bench"
    with locked(folder):
        known = read_results(folder / "results.jsonl")
        features = read_features(folder, {key for key in keys.values() if key in known}, count)
        todo = {keys[cell]: (cell[0], one) for cell, one in plan.cells.items() if keys[cell] not in features}
        done = len(features)
        try:
            for key, measured, rows in _measure(run, judge, todo, count, plan, console):
                known[key], features[key] = measured, rows
                write_features(folder, key, rows)
                append_result(folder / "results.jsonl", key, measured)
        except KeyboardInterrupt:
            kept = f"{len(features) - done} of {len(todo)} measurements are kept"
            raise Stopped(f"stopped; {kept}: run the same command again to resume", signal.SIGINT) from None
    cells = {cell: known[key] for cell, key in keys.items()}
    return cells, {cell: features[key] for cell, key in keys.items()}


def _doubtful(sampler: Sampler) -> bool:
    """Return whether the rule of a sampler is unreliable on its grid."""
    return extrapolates_far(sampler.solver, sampler.grid, sampler.settings.steps)


def _settings(run: Run, solvers: Sequence[str], grids: Sequence[str], guidance: Sequence[float]) -> list[Setting]:
    """Return every combination, each once.

    Raises: UserError: If a name is unknown, before anything takes time.
    """
    usual = (run.recipe.kind("solver"),) if run.recipe.objective.jumps else SOLVERS
    kinds = dict.fromkeys(solvers or usual), dict.fromkeys(grids or (run.recipe.kind("grid"), GRID))
    scales = dict.fromkeys(map(float, guidance or (1.0,)))
    settings = [Setting(*one) for one in product(*kinds, scales)]
    for setting in settings:
        _untuned(run, setting)
    return [one for one in settings if one.grid != GRID or GRID in grids or steps_of(run.path, _untuned(run, one))]


def _untuned(run: Run, setting: Setting) -> Sampler:
    """Return a sampler of a setting, with a grid of the recipe where the setting's is tuned."""
    grid = run.recipe.grid if setting.grid == GRID else setting.grid
    return run.sampler(solver=setting.solver, grid=grid, guidance=setting.guidance)


class Planned(NamedTuple):
    """A sampler, and the evaluations that it will take for each sample."""

    sampler: Sampler
    nfe: int


class Plan(NamedTuple):
    """What is to be measured of a run.

    Attributes:
        cells: For each setting and number of evaluations the longest sampling that costs no more.
        left_out: Settings that cannot run, and why.
        condition: What the samples are asked for, as the network takes it.
        asked: The same as the judge reads it.
    """

    cells: dict[Cell, Planned]
    left_out: dict[str, str]
    condition: Tensor | None
    asked: Asked


def _keys(run: Run, judge: Judge, plan: Plan, count: int, seed: int) -> dict[Cell, str]:
    """Return for each cell the key of its measurement: a hash of everything that the scores depend on."""
    versions = f"{__version__}, intervals {INTERVALS}"
    how = f"{versions}, {run.precision}, {count} samples of seed {seed}, {judge.first.extractor.key}, {judge.sets}"
    conditions = b"" if plan.condition is None else plan.condition.numpy().tobytes()
    common = digest((run.path / "model.safetensors").read_bytes(), conditions, how.encode())
    keys = {}
    for cell, (sampler, _) in plan.cells.items():
        keys[cell] = digest(in_full((common, sampler.solver, sampler.grid, sampler.settings)).encode())
    return keys


def _measure(
    run: Run,
    judge: Judge,
    todo: dict[str, tuple[Setting, Planned]],
    count: int,
    plan: Plan,
    console: Console | None,
) -> Iterator[tuple[str, Measured, Rows]]:
    """Sample and score what is to be measured, cheapest first, and yield each with its key and its features."""
    if not todo:
        return
    total = run.sampler().batches_of(count) * sum(planned.nfe for _, planned in todo.values())
    with working("sampling and scores", total, console=console) as work:
        for key, (setting, planned) in sorted(todo.items(), key=lambda item: item[1][1].nfe):
            work.describe(f"{setting.solver}, {counted(planned.nfe, 'evaluation')}")
            advance = partial(work.advance, planned.nfe)
            samples, nfe = draw(planned.sampler, count, plan.condition, advance)
            features = judge.features(samples)
            scores = *judge.fidelity_and_recall(features), judge.adherence(samples, plan.asked)
            assert nfe is not None  # it is a sampler's
            yield key, Measured(setting, planned.sampler.settings.steps, nfe, *scores), features


def _plan(run: Run, settings: Sequence[Setting], nfe: Sequence[int], seed: int, judge: Judge, count: int) -> Plan:
    """Return what is to be measured of a run.

    Raises: UserError: If a name is unknown, or nothing can run.
    """
    condition, asked = heldout_conditions(run, judge, count, seed)
    plan = Plan({}, {}, condition, asked)
    for setting in settings:
        name = f"{setting.solver}, grid {setting.grid}, guidance {setting.guidance:g}"
        if isinstance(_untuned(run, setting).solver, RungeKutta45):
            plan.left_out[name] = "it takes as many evaluations as its tolerances ask for"
            continue
        try:
            longest = _longest(run, setting, nfe, seed, condition)
        except UserError as error:
            plan.left_out[name] = str(error)
            continue
        plan.cells.update({(setting, wanted): planned for wanted, planned in longest.items()})
    if not plan.cells:
        why = "; ".join(f"{name}: {why}" for name, why in plan.left_out.items()) or "give larger numbers of evaluations"
        raise UserError(f"none of these settings can be measured: {why}")
    return plan


def _longest(run: Run, setting: Setting, nfe: Sequence[int], seed: int, condition: Tensor | None) -> dict[int, Planned]:
    """Return for each number of evaluations the sampling of the most steps that costs no more, where there is one."""

    @cache
    def planned(steps: int) -> Planned:
        sampler = run.sampler(
            solver=setting.solver, grid=setting.grid, guidance=setting.guidance, steps=steps, seed=seed
        )
        return Planned(sampler, _dry_run(sampler, condition))

    tuned, longest = setting.grid == GRID, {}
    numbers = steps_of(run.path, _untuned(run, setting)) if tuned else range(1, max(nfe) + 1)
    if not numbers:
        raise UserError(f"nothing is tuned for it: run `unfog tune {run.path} --solver {setting.solver} --save`")
    for wanted in nfe:
        fewer = bisect.bisect_right(numbers, wanted, key=lambda steps: planned(steps).nfe)
        if fewer:
            longest[wanted] = planned(numbers[fewer - 1])
    return longest


class _Idle(nn.Module):
    """A network that gives zeros and takes no time."""

    def __init__(self, denoiser: Denoiser) -> None:
        """Stand on the denoiser's device, with its number of outputs."""
        super().__init__()
        self.outputs = 1 + denoiser.learned_variance
        self.place = nn.Parameter(torch.zeros((), device=next(denoiser.parameters()).device), requires_grad=False)

    def forward(self, x: Tensor, time: Tensor, cond: object = None) -> Tensor:
        """Return zeros."""
        return x.new_zeros(len(x), self.outputs * x.shape[1], *x.shape[2:])


def _dry_run(sampler: Sampler, condition: Tensor | None) -> int:
    """Count the evaluations for each sample by drawing one from an idle network."""
    idle = copy(sampler.denoiser)
    idle._modules = {**idle._modules, "network": _Idle(sampler.denoiser)}  # a copy shares its parts otherwise
    single = replace(sampler, denoiser=idle, settings=replace(sampler.settings, batch=1))
    nfe = draw(single, 1, None if condition is None else condition[:1])[1]
    assert nfe is not None  # it is a sampler's
    return nfe


def save(run: Run, chosen: Measured) -> None:
    """Write a setting into the run's recipe, so that `sample` uses it."""
    recipe = run.recipe
    for part in ("solver", "grid"):
        kind = getattr(chosen.setting, part)
        if recipe.kind(part) != kind:  # of the same kind it keeps its options, which were measured
            recipe = recipe.set(f"{part}={kind}")
    recipe = recipe.set(f"sampling.steps={chosen.steps}", f"sampling.guidance={chosen.setting.guidance}")
    write_whole(run.path / "recipe.json", recipe.relocated(run.path, relative=True).to_json().encode())
