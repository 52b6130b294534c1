"""`unfog bench`: quality against network evaluations for solvers, grids and guidance; and schedules, trained alike."""

import bisect
import json
import signal
import warnings
from collections.abc import Sequence
from copy import copy
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, get_type_hints

import torch
from rich.console import Console
from torch import Tensor, nn

from unfog.diffusion.denoiser import Denoiser
from unfog.diffusion.solvers import RungeKutta45
from unfog.evaluation.compare import (
    Comparison,
    compare,
    load_alike,
    number,
    span,
)
from unfog.evaluation.features import digest
from unfog.evaluation.intervals import Scored
from unfog.evaluation.judge import Judge
from unfog.evaluation.report import aligned, bar, batches_of, draw, told
from unfog.generation.sampler import Sampler
from unfog.recipes.build import build_codec, build_data, build_denoiser
from unfog.recipes.recipe import Recipe
from unfog.recipes.schema import fits
from unfog.runs.run import Run, read_recipe, resume, train
from unfog.runtime.errors import Stopped, UserError
from unfog.runtime.files import disk, parse_json, read_bounded, whole, write_whole
from unfog.runtime.version import __version__

SOLVERS = ("ddim", "euler", "heun", "dpmpp-2m", "dpmpp-3m", "unipc", "adams-bashforth", "ancestral")
NFE = (5, 8, 10, 15, 20, 35)
NEAR = 0.1
"""How much worse than the best, as a share, the recommended setting may be."""
RESULTS = 1 << 26
"""Bytes of the file of earlier measurements, at most."""
SCHEDULE_STEPS = 25
"""Steps with which schedules are compared: enough that the solver's error is small beside the models'."""


Read = TypeVar("Read")


def _typed(kind: type[Read], plain: dict[str, Any]) -> Read:
    """Return a dataclass of fields that are of their types."""
    made = kind(**plain)
    if not all(fits(getattr(made, name), annotation) for name, annotation in get_type_hints(kind).items()):
        raise ValueError(f"{plain} is no {kind.__name__}")
    return made


@dataclass(frozen=True)
class Setting:
    """A solver on a grid with a scale of guidance."""

    solver: str
    grid: str
    guidance: float


@dataclass(frozen=True)
class Measured:
    """What one setting with one number of steps cost and scored.

    Attributes:
        setting: Solver, grid and guidance.
        steps: Steps of the solver.
        nfe: Network evaluations for each sample, counted while sampling.
        fidelity: Fréchet distance.
        adherence: Share of samples that show what was asked, of models that are asked something.
    """

    setting: Setting
    steps: int
    nfe: int
    fidelity: Scored
    adherence: Scored | None

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> "Measured":
        """Read what `asdict` gave."""
        told = plain["adherence"]
        if not fits([plain["steps"], plain["nfe"]], list[int]):
            raise ValueError("steps and nfe are whole numbers")
        parts = (_typed(Setting, plain["setting"]), plain["steps"], plain["nfe"], _typed(Scored, plain["fidelity"]))
        return cls(*parts, None if told is None else _typed(Scored, told))


@dataclass(frozen=True)
class Bench:
    """A run under many settings.

    Attributes:
        name: The run folder.
        nfe: The evaluations that were asked for.
        cells: For each setting and evaluations asked for, the longest sampling that costs no more.
        left_out: Settings that could not run, and why.
    """

    name: str
    nfe: tuple[int, ...]
    cells: dict[tuple[Setting, int], Measured]
    left_out: dict[str, str]

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
        """The fewest evaluations within 10 % of the best distance; of several the least distance."""
        best = self.best.fidelity.value
        near = [one for one in self.measured if one.fidelity.value <= best + NEAR * abs(best)]
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
        grid = f" {setting.grid}" if len({one.grid for one in settings}) > 1 else ""
        return f"{setting.solver}{grid}" + (
            f" ×{setting.guidance:g}" if len({one.guidance for one in settings}) > 1 or setting.guidance != 1 else ""
        )

    def describe(self, one: Measured) -> str:
        """Return a measurement as a sentence."""
        told = f", adherence {one.adherence.value:.1%}" if one.adherence else ""
        return (
            f"{one.setting.solver}, grid {one.setting.grid}, {one.steps} steps, guidance {one.setting.guidance:g}: "
            f"{one.nfe} evaluations, distance {number(one.fidelity.value)}{span(one.fidelity)}{told}"
        )

    def write(self, folder: Path) -> str:
        """Write bench.json and bench.png; return the table, and where they are.

        Raises: EnvironmentFailure: If the disk fails.
        """
        write_whole(folder / "bench.json", json.dumps(self.to_json(), indent=1).encode())
        self.draw(folder / "bench.png")
        return f"{self.table()}\nplot:        {folder / 'bench.png'}\nnumbers:     {folder / 'bench.json'}"

    def to_json(self) -> dict[str, object]:
        """Return everything as plain values."""
        return {
            "unfog": __version__,
            "run": self.name,
            "nfe": self.nfe,
            "measured": [asdict(one) for one in self.measured],
            "front": [asdict(one) for one in self.front],
            "best": asdict(self.best),
            "recommended": asdict(self.recommended),
            "left_out": self.left_out,
        }

    def table(self) -> str:
        """Return a row for each setting and a column for each number of evaluations, best ones marked."""
        guided = any(setting.guidance != 1 for setting, _ in self.cells)
        best = {
            nfe: min((one.fidelity.value for (_, n), one in self.cells.items() if n == nfe), default=None)
            for nfe in self.nfe
        }

        def cell(setting: Setting, nfe: int) -> str:
            one = self.cells.get((setting, nfe))
            if one is None:
                return "-"
            told = f" ({one.adherence.value:.0%})" if guided and one.adherence else ""
            return f"{number(one.fidelity.value)}{'*' if one.fidelity.value == best[nfe] else ''}{told}"

        rows = [["evaluations up to", *map(str, self.nfe)]]
        rows += [
            [self.label(one), *(cell(one, nfe) for nfe in self.nfe)]
            for one in dict.fromkeys(one for one, _ in self.cells)
        ]
        score = self.best.fidelity
        return "\n".join(
            [
                f"Fréchet distance{', in brackets adherence' if guided else ''}; * best with as many evaluations",
                aligned(rows),
                f"real held-out data: {number(score.floor)}; worthless: {number(score.ceiling)}  ({score.protocol})",
                *(f"left out: {name}: {why}" for name, why in self.left_out.items()),
                f"best:        {self.describe(self.best)}",
                f"recommended: {self.describe(self.recommended)}",
            ]
        )

    def draw(self, path: Path) -> None:
        """Draw distance against evaluations into a PNG, a line for each setting, with the Pareto front.

        Values and the floor share the bias of few samples, of which the intervals are free: the bars have the length
        of these, but stand around the values.
        """
        from matplotlib.figure import Figure  # here, since matplotlib takes half a second to import
        from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

        settings = list(dict.fromkeys(setting for setting, _ in self.cells))
        solvers = list(dict.fromkeys(one.solver for one in settings))
        variants = list(dict.fromkeys((one.grid, one.guidance) for one in settings))
        floor = self.best.fidelity.floor
        least = 0.7 * min(one for one in (floor, *(each.fidelity.value for each in self.measured)) if one > 0)
        figure = Figure(figsize=(9, 5.5), layout="constrained")
        axes = figure.subplots()
        shift = {one: 1.08 ** ((place + 0.5) / len(settings) - 0.5) for place, one in enumerate(settings)}
        for setting in settings:  # equal points stand side by side
            line = sorted((one for one in self.measured if one.setting == setting), key=lambda one: one.nfe)
            x, y = zip(*((one.nfe * shift[setting], max(least, one.fidelity.value)) for one in line), strict=True)
            half = [((one.fidelity.high or 0) - (one.fidelity.low or 0)) / 2 for one in line]
            low, high = ([max(least, a + sign * b) for a, b in zip(y, half, strict=True)] for sign in (-1, 1))
            variant, colour = variants.index((setting.grid, setting.guidance)), f"C{solvers.index(setting.solver)}"
            style, marker = ("-", "--", ":", "-.")[variant % 4], "osD^v"[variant % 5]
            axes.plot(x, y, style, marker=marker, color=colour, linewidth=1, markersize=4, label=self.label(setting))
            axes.vlines(x, low, high, color=colour, linewidth=1.2, alpha=0.25)
        front = [(one.nfe * shift[one.setting], max(least, one.fidelity.value)) for one in self.front]
        axes.plot(*zip(*front, strict=True), "o", color="black", fillstyle="none", markersize=14, label="Pareto front")
        axes.axhline(max(least, floor), linestyle="--", color="0.4", label="real held-out data")
        axes.set(
            xscale="log",
            yscale="log",
            ylim=(least, None),
            xlabel="network evaluations for each sample",
            ylabel="Fréchet distance",
        )
        ticks = sorted({one.nfe for one in self.measured} & set(self.nfe)) or [one.nfe for one in self.front]
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 7)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        few = f"{self.best.fidelity.n} samples; bars as long as the 95 % intervals"
        axes.set_title(f"{self.name}: {few}", fontsize=10)
        axes.grid(alpha=0.3)
        figure.legend(loc="outside right center", fontsize=9, frameon=False)
        with whole(path) as part:
            figure.savefig(part, dpi=120, format="png")


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
    """Measure a run under every combination, from the same noises; what was measured before is read from its folder.

    Args:
        run: The run.
        solvers: Names of solvers; `SOLVERS` if empty.
        grids: Names of grids; the recipe's if empty.
        guidance: Scales of guidance; 1, which is off, if empty.
        nfe: Network evaluations for each sample, `NFE` if empty: of each combination the most steps that cost no more
            are measured.
        count: Samples of each.
        seed: Seed of the noises.
        console: Shows the progress.

    Raises: UserError: If a name is unknown, nothing can run, or there are too few samples.
        Stopped: After Ctrl-C; finished measurements are kept.
    """
    wanted, scales = tuple(sorted(set(nfe or NFE))), dict.fromkeys(map(float, guidance or (1.0,)))
    if wanted[0] < 1:
        raise UserError(f"a sample takes 1 network evaluation or more, not {wanted[0]}")
    kinds = dict.fromkeys(solvers or SOLVERS), dict.fromkeys(grids or (run.recipe.kind("grid"),))
    settings = [Setting(*one) for one in product(*kinds, scales)]
    for setting in settings:
        run.sampler(**asdict(setting))  # refuses unknown names before anything takes time
    judge = Judge(build_data(run.recipe)[1], build_codec(run.recipe).plain, count, console=console)
    condition, asked = told(run, judge, count, seed)
    plan, left_out = _plan(run, settings, wanted, seed, condition)
    path = run.path / "bench" / "results.jsonl"
    known = _read(path)
    told_bytes = b"" if condition is None else condition.numpy().tobytes()
    protocol = (
        f"{__version__}, {run.precision}, {count} samples of seed {seed}, {judge.first.extractor.key}, {judge.protocol}"
    )
    common = digest((run.path / "model.safetensors").read_bytes(), told_bytes, protocol.encode())
    keys = {
        cell: digest(repr((common, one.sampler.solver, one.sampler.grid, one.sampler.settings)).encode())
        for cell, one in plan.items()
    }
    todo = {keys[cell]: (cell[0], one) for cell, one in plan.items() if keys[cell] not in known}
    if todo:
        done = len(known)
        try:
            with bar(console) as progress:
                batches = batches_of(run.sampler(), count)
                task = progress.add_task("", total=batches * sum(one.nfe for _, one in todo.values()))
                for key, (setting, one) in sorted(todo.items(), key=lambda item: item[1][1].nfe):
                    progress.update(task, description=f"{setting.solver}, {one.nfe} evaluations")
                    advance = partial(progress.advance, task, one.nfe)
                    samples, cost = draw(run, one.sampler, count, condition, advance)
                    scores = judge.fidelity(samples), judge.adherence(samples, asked)
                    known[key] = Measured(setting, one.sampler.settings.steps, cost, *scores)
                    _append(path, key, known[key])
        except KeyboardInterrupt:
            raise Stopped(
                f"stopped; {len(known) - done} of {len(todo)} measurements are kept: the same command goes on",
                signal.SIGINT,
            ) from None
    return Bench(str(run.path), wanted, {cell: known[key] for cell, key in keys.items()}, left_out)


class Planned(NamedTuple):
    """A sampler, and the evaluations that it will take for each sample."""

    sampler: Sampler
    nfe: int


def _plan(
    run: Run, settings: Sequence[Setting], nfe: Sequence[int], seed: int, condition: Tensor | None
) -> tuple[dict[tuple[Setting, int], Planned], dict[str, str]]:
    """Return for each setting and number of evaluations the longest sampling that costs no more; and what cannot run.

    Raises: UserError: If a name is unknown, or nothing can run.
    """
    plan: dict[tuple[Setting, int], Planned] = {}
    left_out: dict[str, str] = {}
    for setting in settings:
        samplers: dict[int, Sampler] = {}

        @cache
        def cost(steps: int, setting: Setting = setting, samplers: dict[int, Sampler] = samplers) -> int:
            samplers[steps] = run.sampler(**asdict(setting), steps=steps, seed=seed)
            return _dry_run(run, samplers[steps], condition)

        name = f"{setting.solver}, grid {setting.grid}, guidance {setting.guidance:g}"
        if isinstance(run.sampler(**asdict(setting)).solver, RungeKutta45):
            left_out[name] = "it takes as many evaluations as its tolerances ask for"
            continue
        try:
            for wanted in nfe:
                if steps := bisect.bisect_right(range(1, wanted + 1), wanted, key=cost):
                    plan[setting, wanted] = Planned(samplers[steps], cost(steps))
        except UserError as error:
            left_out[name] = str(error)
            plan = {cell: one for cell, one in plan.items() if cell[0] != setting}
    if not plan:
        why = "; ".join(f"{name}: {why}" for name, why in left_out.items()) or "give --nfe larger numbers"
        raise UserError(f"none of these settings can be measured: {why}")
    return plan, left_out


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


def _dry_run(run: Run, sampler: Sampler, condition: Tensor | None) -> int:
    """Count the evaluations for each sample by drawing one from an idle network."""
    idle = copy(run.denoiser)
    idle._modules = {**run.denoiser._modules, "network": _Idle(run.denoiser)}  # a copy shares its parts otherwise
    single = replace(sampler, denoiser=idle, settings=replace(sampler.settings, batch=1))
    return draw(replace(run, denoiser=idle), single, 1, None if condition is None else condition[:1])[1]


def _read(path: Path) -> dict[str, Measured]:
    """Return what was measured before, by key; lines that are damaged are dropped with a warning."""
    found: dict[str, Measured] = {}
    damaged = 0
    for line in read_bounded(path, RESULTS).splitlines() if path.is_file() else []:
        try:
            plain = parse_json(line)
            found[str(plain["key"])] = Measured.from_json(plain)
        except (ValueError, KeyError, TypeError):
            damaged += 1
    if damaged:
        warnings.warn(f"{path}: {damaged} damaged lines are left out and measured again", stacklevel=2)
        write_whole(path, "".join(_line(key, one) for key, one in found.items()).encode())
    return found


def _line(key: str, one: Measured) -> str:
    return json.dumps({"key": key, **asdict(one)}) + "\n"


def _append(path: Path, key: str, one: Measured) -> None:
    """Add a measurement to those on the disk."""
    with disk(path):
        path.parent.mkdir(exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(_line(key, one))


def save(run: Run, chosen: Measured) -> None:
    """Write a setting into the run's recipe, so that `sample` uses it."""
    recipe = run.recipe
    for field in ("solver", "grid"):
        kind = getattr(chosen.setting, field)
        if recipe.kind(field) != kind:  # of the same kind it keeps its options, which were measured
            recipe = recipe.set(f"{field}={kind}")
    recipe = recipe.set(f"sampling.steps={chosen.steps}", f"sampling.guidance={chosen.setting.guidance}")
    write_whole(run.path / "recipe.json", recipe.beside(run.path, relative=True).to_json().encode())


def schedules(
    recipe: Recipe,
    names: Sequence[str],
    out: Path,
    budget: float,
    *,
    count: int = 1000,
    seed: int = 0,
    device: str = "auto",
    console: Console | None = None,
) -> Comparison:
    """Train a recipe on each of some schedules, alike but for the schedule, and rank them.

    All learn v at uniform times. The first one's budget fixes the number of images, and the others see as many.
    What is trained in `out` already stays, what was stopped goes on.

    Args:
        recipe: What to train.
        names: Kinds of schedules.
        out: Folder for the run folders, each named after its schedule.
        budget: Seconds for the first training.
        count: Samples to score each with.
        seed: Seed of the noises that are sampled from.
        device: Where to compute.
        console: Shows the progress.

    Returns: The comparison with the best one, best first.
    Raises: UserError: If a schedule does not fit, or `out` holds other runs.
    """
    if len(set(names)) < 2 or len(set(names)) < len(names):
        raise UserError("name two different schedules or more, for instance --schedules linear,quadratic,cosine,flow")
    contestants = [build_data(recipe.set(f"schedule={name}", "target=v", "times=uniform"))[0] for name in names]
    for one in contestants:
        build_denoiser(one)  # so that what does not fit is refused before the minutes are spent
    for place, (name, one) in enumerate(zip(names, contestants, strict=True)):
        folder = out / name
        if place:
            one = replace(one, training=read_recipe(out / names[0]).training)
        if (folder / "checkpoints").exists():
            there = read_recipe(folder)
            if there != (one if place else replace(one, training=there.training)):
                raise UserError(
                    f"{folder} holds a run of another recipe, seed or number of images: choose another --out"
                )
            resume(folder, device=device, console=console)
        else:
            train(one, folder, budget=None if place else budget, device=device, console=console)
    models = load_alike([out / name for name in names], device)
    found = compare(
        models, names, count, steps=SCHEDULE_STEPS, guidance=1.0, seed=seed, reference=None, console=console
    )
    return found.ranked()
