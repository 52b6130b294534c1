"""`unfog bench`: quality against network evaluations for solvers, grids and guidance."""

import bisect
import json
import signal
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import asdict, dataclass, field, replace
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from torch import Tensor, nn

from unfog.diffusion.denoiser import Denoiser
from unfog.diffusion.solvers import RungeKutta45
from unfog.evaluation.bench_plot import Curve, Point, draw_plot
from unfog.evaluation.compare import number, span
from unfog.evaluation.distances import Rows
from unfog.evaluation.features import digest
from unfog.evaluation.intervals import INTERVALS, plain
from unfog.evaluation.judge import Asked, Judge
from unfog.evaluation.leads import Cell, Lead, leads, read_features, write_features
from unfog.evaluation.report import draw, heldout_conditions
from unfog.evaluation.results import Measured, Setting, append_result, read_results
from unfog.evaluation.wording import CEILING, FLOOR
from unfog.generation.sampler import Sampler
from unfog.recipes.build import build_codec
from unfog.recipes.fitting import extrapolates_far
from unfog.runs.data import read_data
from unfog.runs.run import Run
from unfog.runs.tuned import GRID, steps_of
from unfog.runtime.brief import brief, in_full
from unfog.runtime.errors import Stopped, UserError
from unfog.runtime.files import locked, write_whole
from unfog.runtime.lines import aligned, lines_of
from unfog.runtime.progress import working
from unfog.runtime.provenance import provenance
from unfog.runtime.version import __version__

SOLVERS = ("ddim", "euler", "heun", "dpmpp-2m", "dpmpp-3m", "unipc", "adams-bashforth", "ancestral")
NFE = (5, 8, 10, 15, 20, 35)
NEAR = 0.1
"""How much worse than the best, as a share, the recommended setting may be."""


@dataclass(frozen=True)
class Bench:
    """A run under many settings.

    Attributes:
        name: The run folder.
        nfe: The requested numbers of evaluations.
        cells: For each setting and requested number, the longest sampling that takes no more evaluations.
        left_out: Settings that could not run, and why.
        doubtful: Cells whose rule is unreliable on so few steps of such a grid: measured, and not recommended.
        leads: For each requested number how the best tuned grid compares with the best other one, where there are both.
    """

    name: str
    nfe: tuple[int, ...]
    cells: dict[tuple[Setting, int], Measured]
    left_out: dict[str, str]
    doubtful: frozenset[Cell] = frozenset()
    leads: dict[int, Lead] = field(default_factory=dict)

    __repr__ = brief

    @property
    def measured(self) -> list[Measured]:
        """All that was measured, once each."""
        return list(dict.fromkeys(self.cells.values()))

    @property
    def best(self) -> Measured:
        """The least Fréchet distance."""
        return min(self.measured, key=lambda one: (one.fidelity.value, one.nfe))

    @property
    def recommended(self) -> Measured:
        """The fewest evaluations within 10 % of the best distance, none of them doubtful; the least such distance."""
        sound = [one for cell, one in self.cells.items() if cell not in self.doubtful] or self.measured
        best = min(one.fidelity.value for one in sound)
        near = [one for one in sound if one.fidelity.value <= best + NEAR * abs(best)]
        return min(near, key=lambda one: (one.nfe, one.fidelity.value))

    @property
    def front(self) -> list[Measured]:
        """The Pareto front: what nothing of as few evaluations or fewer surpasses, cheapest first."""
        front: list[Measured] = []
        for one in sorted(self.measured, key=lambda one: (one.nfe, one.fidelity.value)):
            if not front or one.fidelity.value < front[-1].fidelity.value:
                front.append(one)
        return front

    def label(self, setting: Setting) -> str:
        """Return the name of a setting, as far as the settings differ."""
        settings = [one for one, _ in self.cells]
        label = setting.solver
        if len({one.grid for one in settings}) > 1:
            label += f" {setting.grid}"
        if setting.guidance != 1 or len({one.guidance for one in settings}) > 1:
            label += f" ×{setting.guidance:g}"
        return label

    def describe(self, one: Measured) -> str:
        """Return a measurement as a sentence."""
        adherence = f", adherence {one.adherence.value:.1%}" if one.adherence else ""
        return (
            f"{one.setting.solver}, grid {one.setting.grid}, {one.steps} steps, guidance {one.setting.guidance:g}: "
            f"{one.nfe} evaluations, distance {number(one.fidelity.value)}{span(one.fidelity)}{adherence}"
        )

    def write(self, folder: Path) -> str:
        """Write bench.json and bench.png; return where they are.

        Raises: EnvironmentFailure: If the disk fails.
        """
        write_whole(folder / "bench.json", json.dumps(self.to_json(), indent=1).encode())
        self.draw(folder / "bench.png")
        return f"plot:        {folder / 'bench.png'}\nnumbers:     {folder / 'bench.json'}"

    def to_json(self) -> dict[str, object]:
        """Return everything as plain values."""
        return {
            "unfog": __version__,
            "written": plain(provenance()),
            "run": self.name,
            "nfe": self.nfe,
            "measured": plain(self.measured),
            "front": plain(self.front),
            "best": plain(self.best),
            "recommended": plain(self.recommended),
            "left_out": self.left_out,
            "leads": {nfe: plain(lead._asdict()) for nfe, lead in self.leads.items()},
        }

    def table(self) -> str:
        """Return a row for each setting and a column for each number of evaluations, best ones marked."""
        guided = any(setting.guidance != 1 for setting, _ in self.cells)
        rows = [["evaluations up to", *map(str, self.nfe)]]
        for setting in dict.fromkeys(setting for setting, _ in self.cells):
            rows.append([self.label(setting), *(self._cell(setting, nfe, guided) for nfe in self.nfe)])
        score = self.best.fidelity
        return "\n".join(
            [
                f"Fréchet distance{', in brackets adherence' if guided else ''}; * best with as many evaluations",
                aligned(rows),
                *lines_of(f"{FLOOR}: {number(score.floor)}; {CEILING}: {number(score.ceiling)} ({score.protocol})"),
                *(part for nfe, lead in self.leads.items() for part in lines_of(f"tuned, {nfe} evaluations: {lead}")),
                *(part for name, why in self.left_out.items() for part in lines_of(f"left out: {name}: {why}")),
                *(part for doubt in self._doubts() for part in lines_of(doubt)),
                *lines_of(f"best:        {self.describe(self.best)}", 13),
                *lines_of(f"recommended: {self.describe(self.recommended)}", 13),
                *lines_of(f"{provenance()}; what was measured before is reused."),
            ]
        )

    def _doubts(self) -> list[str]:
        """Return a line for each setting that is not recommended in some numbers of steps."""
        least: dict[Setting, int] = {}
        for setting, nfe in self.doubtful:
            least[setting] = max(least.get(setting, 0), self.cells[setting, nfe].steps)
        return [
            f"not recommended: {setting.solver}, grid {setting.grid}, up to {steps} steps: they are too long or too "
            "uneven for its extrapolation, use dpmpp-2m"
            for setting, steps in sorted(least.items(), key=str)
        ]

    def _cell(self, setting: Setting, nfe: int, guided: bool) -> str:
        """Return the distance of one setting with so many evaluations, and with guidance its adherence."""
        one = self.cells.get((setting, nfe))
        if one is None:
            return "-"
        best = min(other.fidelity.value for (_, wanted), other in self.cells.items() if wanted == nfe)
        mark = "*" if one.fidelity.value == best else ""
        adherence = f" ({one.adherence.value:.0%})" if guided and one.adherence else ""
        return f"{number(one.fidelity.value)}{mark}{adherence}"

    def draw(self, path: Path) -> None:
        """Draw distance against evaluations into a PNG, a line for each setting, with the Pareto front.

        Raises: EnvironmentFailure: If the disk fails.
        """
        curves = self._curves()
        front = [curves[one.setting].points[self._line(one.setting).index(one)] for one in self.front]
        ticks = sorted({one.nfe for one in self.measured} & set(self.nfe)) or [one.nfe for one in self.front]
        score = self.best.fidelity
        title = f"{self.name}: {score.n} samples; bars as long as the 95 % intervals"
        draw_plot(list(curves.values()), front, score.floor, ticks, title, path)

    def _curves(self) -> dict[Setting, Curve]:
        """Return a curve for each setting: solvers differ in colour, grids and guidance in style."""
        settings = list(dict.fromkeys(setting for setting, _ in self.cells))
        solvers = list(dict.fromkeys(setting.solver for setting in settings))
        variants = list(dict.fromkeys((setting.grid, setting.guidance) for setting in settings))
        curves = {}
        for place, setting in enumerate(settings):
            points = [_point(one) for one in self._line(setting)]
            colour, variant = solvers.index(setting.solver), variants.index((setting.grid, setting.guidance))
            curves[setting] = Curve(self.label(setting), colour, variant, points).moved(place, len(settings))
        return curves

    def _line(self, setting: Setting) -> list[Measured]:
        """Return the measurements of one setting by rising evaluations."""
        return sorted((one for one in self.measured if one.setting == setting), key=lambda one: one.nfe)


def _point(one: Measured) -> Point:
    """Return a measurement as a point of a plot."""
    low, high = one.fidelity.low or 0, one.fidelity.high or 0
    return Point(one.nfe, one.fidelity.value, (high - low) / 2)


def bench(
    run: Run,
    solvers: Sequence[str] = (),
    grids: Sequence[str] = (),
    guidance: Sequence[float] = (),
    nfe: Sequence[int] = (),
    *,
    count: int = 1000,
    seed: int = 0,
    console: Console | None = None,
) -> Bench:
    """Measure a run under every combination, from the same noises; earlier measurements are read from its folder.

    Args:
        run: The run.
        solvers: Names of solvers; `SOLVERS` if empty.
        grids: Names of grids; default: the recipe's.
        guidance: Scales of guidance; 1, which is off, if empty.
        nfe: Network evaluations for each sample, `NFE` if empty: of each combination the most steps that cost no more
            are measured.
        count: Samples of each.
        seed: Seed of the noises.
        console: Shows the progress.

    Raises: UserError: If a name is unknown, nothing can run, or there are too few samples.
        Stopped: After Ctrl-C; finished measurements are kept.
    """
    wanted = tuple(sorted(set(nfe or NFE)))
    if wanted[0] < 1:
        raise UserError(f"a sample takes 1 network evaluation or more, not {wanted[0]}")
    settings = _settings(run, solvers, grids, guidance)
    judge = Judge(read_data(run.path, run.recipe)[1], build_codec(run.recipe).plain, count, console=console)
    condition, asked = heldout_conditions(run, judge, count, seed)
    plan, left_out = _plan(run, settings, wanted, seed, condition)
    keys = _keys(run, judge, plan, count, seed, condition)
    path = run.path / "bench" / "results.jsonl"
    with locked(path.parent):
        known = read_results(path)
        features = read_features(path.parent, {key for key in keys.values() if key in known}, count)
        todo = {keys[cell]: (cell[0], one) for cell, one in plan.items() if keys[cell] not in features}
        done = len(features)
        try:
            for key, measured, rows in _measure(run, judge, todo, count, condition, asked, console):
                known[key], features[key] = measured, rows
                write_features(path.parent, key, rows)
                append_result(path, key, measured)
        except KeyboardInterrupt:
            kept = f"{len(features) - done} of {len(todo)} measurements are kept"
            raise Stopped(f"stopped; {kept}: run the same command again to resume", signal.SIGINT) from None
    doubtful = frozenset(cell for cell, (sampler, _) in plan.items() if _doubtful(sampler))
    cells = {cell: known[key] for cell, key in keys.items()}
    ahead = leads(cells, wanted, {cell: features[key] for cell, key in keys.items()}, judge)
    return Bench(str(run.path), wanted, cells, left_out, doubtful, ahead)


def _doubtful(sampler: Sampler) -> bool:
    """Return whether the rule of a sampler is unreliable on its grid."""
    return extrapolates_far(sampler.solver, sampler.grid, sampler.settings.steps)


def _settings(run: Run, solvers: Sequence[str], grids: Sequence[str], guidance: Sequence[float]) -> list[Setting]:
    """Return every combination, each once.

    Raises: UserError: If a name is unknown, before anything takes time.
    """
    kinds = dict.fromkeys(solvers or SOLVERS), dict.fromkeys(grids or (run.recipe.kind("grid"), GRID))
    scales = dict.fromkeys(map(float, guidance or (1.0,)))
    settings = [Setting(*one) for one in product(*kinds, scales)]
    for setting in settings:
        _untuned(run, setting)
    return [one for one in settings if one.grid != GRID or GRID in grids or steps_of(run.path, _untuned(run, one))]


def _untuned(run: Run, setting: Setting) -> Sampler:
    """Return a sampler of a setting, with a grid of the recipe where the setting's is tuned."""
    return run.sampler(**{**asdict(setting), "grid": run.recipe.grid if setting.grid == GRID else setting.grid})


class Planned(NamedTuple):
    """A sampler, and the evaluations that it will take for each sample."""

    sampler: Sampler
    nfe: int


def _keys(
    run: Run, judge: Judge, plan: dict[Cell, Planned], count: int, seed: int, condition: Tensor | None
) -> dict[Cell, str]:
    """Return for each cell the key of its measurement: a hash of everything that the scores depend on."""
    versions = f"{__version__}, intervals {INTERVALS}"
    how = f"{versions}, {run.precision}, {count} samples of seed {seed}, {judge.first.extractor.key}, {judge.sets}"
    conditions = b"" if condition is None else condition.numpy().tobytes()
    common = digest((run.path / "model.safetensors").read_bytes(), conditions, how.encode())
    keys = {}
    for cell, (sampler, _) in plan.items():
        keys[cell] = digest(in_full((common, sampler.solver, sampler.grid, sampler.settings)).encode())
    return keys


def _measure(
    run: Run,
    judge: Judge,
    todo: dict[str, tuple[Setting, Planned]],
    count: int,
    condition: Tensor | None,
    asked: Asked,
    console: Console | None,
) -> Iterator[tuple[str, Measured, Rows]]:
    """Sample and score what is to be measured, cheapest first, and yield each with its key and its features."""
    if not todo:
        return
    total = run.sampler().batches_of(count) * sum(planned.nfe for _, planned in todo.values())
    with working("sampling and scores", total, console=console) as work:
        for key, (setting, planned) in sorted(todo.items(), key=lambda item: item[1][1].nfe):
            work.describe(f"{setting.solver}, {planned.nfe} evaluations")
            advance = partial(work.advance, planned.nfe)
            samples, nfe = draw(planned.sampler, count, condition, advance)
            scores = judge.fidelity(samples), judge.adherence(samples, asked)
            assert nfe is not None  # it is a sampler's
            yield key, Measured(setting, planned.sampler.settings.steps, nfe, *scores), judge.features(samples)


def _plan(
    run: Run, settings: Sequence[Setting], nfe: Sequence[int], seed: int, condition: Tensor | None
) -> tuple[dict[Cell, Planned], dict[str, str]]:
    """Return for each setting and number of evaluations the longest sampling that costs no more; and what cannot run.

    Raises: UserError: If a name is unknown, or nothing can run.
    """
    plan: dict[Cell, Planned] = {}
    left_out: dict[str, str] = {}
    for setting in settings:
        name = f"{setting.solver}, grid {setting.grid}, guidance {setting.guidance:g}"
        if isinstance(_untuned(run, setting).solver, RungeKutta45):
            left_out[name] = "it takes as many evaluations as its tolerances ask for"
            continue
        try:
            longest = _longest(run, setting, nfe, seed, condition)
        except UserError as error:
            left_out[name] = str(error)
            continue
        plan |= {(setting, wanted): planned for wanted, planned in longest.items()}
    if not plan:
        why = "; ".join(f"{name}: {why}" for name, why in left_out.items()) or "give larger numbers of evaluations"
        raise UserError(f"none of these settings can be measured: {why}")
    return plan, left_out


def _longest(run: Run, setting: Setting, nfe: Sequence[int], seed: int, condition: Tensor | None) -> dict[int, Planned]:
    """Return for each number of evaluations the sampling of the most steps that costs no more, where there is one."""

    @cache
    def planned(steps: int) -> Planned:
        sampler = run.sampler(**asdict(setting), steps=steps, seed=seed)
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
