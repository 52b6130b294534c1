"""`unfog compare`: models side by side on the same noises, and whether their scores differ significantly."""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from unfog.data.modality import Modality
from unfog.data.pictures import save_picture
from unfog.evaluation.distances import Moments, Rows, frechet_of_moments, moments
from unfog.evaluation.effort import LIMIT, ONCE, of_runs
from unfog.evaluation.intervals import Interval, Scored, bootstrap, of_difference, plain
from unfog.evaluation.judge import Judge, spread, told
from unfog.evaluation.report import draw, heldout_conditions
from unfog.evaluation.wording import CEILING, FLOOR, LEGEND, in_words, lower, position, standing
from unfog.generation.drawing import Drawing
from unfog.generation.sampler import Sampler
from unfog.recipes.build import build_codec
from unfog.runs.data import read_data
from unfog.runs.run import Run, load
from unfog.runtime.brief import brief
from unfog.runtime.errors import UserError
from unfog.runtime.files import disk, write_whole
from unfog.runtime.lines import aligned, counted, lines_of
from unfog.runtime.progress import duration, working
from unfog.runtime.provenance import Provenance
from unfog.runtime.version import __version__

RESAMPLES = 200
"""Resamples of a paired interval."""
ADHERENCE = "adherence"
WORSE = 0.1
"""Share by which a score without an interval must be worse to be named."""
COLUMNS = 16
"""Samples of each model in the sheet."""


@dataclass(frozen=True)
class Difference:
    """How far a score lies from the reference model's, with its paired interval where there is one."""

    value: float
    interval: Interval | None

    @property
    def told_apart(self) -> bool:
        """Whether the interval excludes 0."""
        return self.interval is not None and not self.interval.low <= 0 <= self.interval.high


@dataclass(frozen=True)
class Model:
    """The scores of one model.

    Attributes:
        name: The folder as it was given.
        runs: Its run folders: more than one for several seeds.
        nfe: Network evaluations for each sample; None for a model that is not sampled step by step.
        scores: For each metric the score of each run.
        differences: For each metric the distance from the reference model; empty for that one itself.
    """

    name: str
    runs: list[str]
    nfe: int | None
    scores: dict[str, list[Scored]]
    differences: dict[str, Difference]

    __repr__ = brief

    def value(self, metric: str) -> float:
        """Return the mean of a score over the model's runs."""
        return float(np.mean([score.value for score in self.scores[metric]]))

    def line(self, metric: str) -> str:
        """Return a score as text: with its interval, or with the spread over runs where there are several."""
        scores = self.scores[metric]
        if len(scores) == 1:
            return f"{number(scores[0].value)}{span(scores[0])}"
        deviation = float(np.std([score.value for score in scores], ddof=1))
        return f"{number(self.value(metric))}  ± {number(deviation)} over {len(scores)} runs"


@dataclass(frozen=True)
class Comparison:
    """Models that were measured alike.

    Attributes:
        models: Their scores, in the order given.
        reference: Name of the model that the others are compared with.
        fidelity: Name of the score that ranks.
        settings: How all of them were sampled.
        shown: Samples of the first run of each model, of the same noises and labels.
        labels: What each of them was asked to show.
        modality: What a sample is.
        measured: Where the figures come from.
    """

    models: list[Model]
    reference: str
    fidelity: str
    settings: str
    shown: list[Tensor] = field(repr=False)
    labels: list[str] = field(repr=False)
    modality: Modality
    measured: Provenance

    __repr__ = brief

    def write(self, folder: Path) -> str:
        """Write comparison.json, and sheet.png with a row for each model; return where they are.

        Raises: EnvironmentFailure: If the disk fails.
        """
        with disk(folder):
            folder.mkdir(parents=True, exist_ok=True)
        figures = {part.name: plain(getattr(self, part.name)) for part in fields(self) if part.name != "shown"}
        text = json.dumps({**figures, "shown": [], "unfog": __version__}, indent=1)
        write_whole(folder / "comparison.json", text.encode())
        names = [model.name for model in self.models]
        short = [Path(name).name for name in names]
        names = short if len(set(short)) == len(short) else names
        sheet = self.modality.compared(self.shown, names, self.labels, self.settings)
        save_picture(sheet, folder / "sheet.png")
        return f"side by side: {folder / 'sheet.png'}\nnumbers:      {folder / 'comparison.json'}"

    def ranked(self) -> "Comparison":
        """Return the same with the least Fréchet distance first."""
        order = sorted(range(len(self.models)), key=lambda place: self.models[place].value(self.fidelity))
        models, shown = [self.models[place] for place in order], [self.shown[place] for place in order]
        return replace(self, models=models, shown=shown)

    def table(self) -> str:
        """Return a block with differences for fidelity and adherence, and a line for each of the other scores."""
        blocks, others = [], [["other scores", *(model.name for model in self.models), FLOOR, CEILING]]
        for metric in dict.fromkeys(metric for model in self.models for metric in model.scores):
            if metric in (self.fidelity, ADHERENCE):
                blocks += [self._block(metric), ""]
            else:
                others.append(self._row(metric))
        protocol = self.models[0].scores[self.fidelity][0].protocol
        how = f"{self.settings}; {protocol}; 95 % intervals over noises, not over trainings."
        notes = [
            *lines_of(how),
            *(part for line in LEGEND for part in lines_of(line)),
            *lines_of(f"{self.measured}."),
            "",
            *lines_of(self.verdict()),
        ]
        return "\n".join([*blocks, aligned(others), "", *notes])

    def verdict(self) -> str:
        """Return in a sentence for each model where it differs from the reference more than by chance."""
        said = []
        for model in self.models:
            if model.name == self.reference:
                continue
            found = {metric: gap for metric, gap in model.differences.items() if gap.told_apart}
            better = [name for name, gap in found.items() if (gap.value < 0) == lower(name)]
            worse = [name for name in found if name not in better]
            parts = [
                f"{how} in {' and '.join(names)}" for how, names in (("better", better), ("worse", worse)) if names
            ]
            found_out = f"{', '.join(parts)} than" if parts else "not told apart from"
            said.append(f"{model.name} is {found_out} {self.reference}.{self._worse(model)}")
        return " ".join(said)

    def _worse(self, model: Model) -> str:
        """Return which scores without an interval are worse than the reference model's by more than a tenth."""
        base = next(one for one in self.models if one.name == self.reference)
        found = []
        for name, gap in model.differences.items():
            before, after = base.value(name), model.value(name)
            away = after - before if lower(name) else before - after
            real = not any(position(name, score) for score in model.scores[name])  # like real data, or beyond
            if gap.interval is None and away > WORSE * abs(before) and not real:
                found.append(f"{name} ({number(before)} to {number(after)})")
        return f" Worse, without an interval to tell whether by chance: {', '.join(found)}." if found else ""

    def _block(self, metric: str) -> str:
        """Return a score of all models with their differences to the reference model, and its ends."""
        models = [model for model in self.models if metric in model.scores]
        score = models[0].scores[metric][0]
        rows = [[f"{metric} (n = {score.n})", "", ""]]
        for model in models:
            alone = standing(metric, model.scores[metric][0]) if len(model.runs) == 1 else ""
            rows.append([f"  {model.name}", model.line(metric), alone])
        rows.append([f"  {FLOOR}", number(score.floor), ""])
        rows.append([f"  {CEILING}", number(score.ceiling), ""])
        rows.append([f"difference to {self.reference}", "", ""])
        rows += [[f"  {model.name}", *_difference(model, metric)] for model in models if metric in model.differences]
        return aligned(rows)

    def _row(self, metric: str) -> list[str]:
        """Return a score of all models without differences, and its ends."""
        having = [model for model in self.models if metric in model.scores]
        score = having[0].scores[metric][0]
        values = [number(model.value(metric)) if model in having else "-" for model in self.models]
        return [f"  {metric}", *values, number(score.floor), number(score.ceiling)]


def _difference(model: Model, metric: str) -> tuple[str, str]:
    """Return the difference to the reference model as text, and a note where it may be 0."""
    gap = model.differences[metric]
    if gap.interval is None:
        return f"{gap.value:+.3g}", ""
    low, high = gap.interval
    return f"{gap.value:+.3g}  [{low:+.3g}, {high:+.3g}]", "" if gap.told_apart else "not told apart"


def number(value: float) -> str:
    """Return a number with three significant digits."""
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def span(score: Scored) -> str:
    """Return the interval of a score as text, if it has one."""
    return "" if score.low is None or score.high is None else f"  [{number(score.low)}, {number(score.high)}]"


def members(path: Path) -> list[Path]:
    """Return the run folders behind an argument: itself, or those that lie in it.

    Raises: UserError: If there are none.
    """
    if (path / "recipe.json").exists():
        return [path]
    folders = sorted(file.parent for file in path.glob("*/recipe.json"))
    if not folders:
        raise UserError(f"{path} is no run folder and holds none: give a folder that `unfog train` wrote")
    return folders


def common_parent(paths: Sequence[Path]) -> Path:
    """Return the innermost folder that all paths lie in."""
    parents = {path.parent for path in paths}
    return parents.pop() if len(parents) == 1 else Path(os.path.commonpath([one.resolve() for one in parents]))


def load_alike(paths: Sequence[Path], device: str) -> list[list[Run]]:
    """Load the runs behind each argument, with the sampling of the first one, but each its own batch size.

    Where some are flow maps and the first is not, or the other way round, they keep their own but for the guidance.

    Raises: UserError: If they were trained on different data.
    """
    models = [[load(one, device) for one in members(path)] for path in paths]
    for run in (run for model in models for run in model):
        check_alike(models[0][0], run)
    return [[_as_first(run, models[0][0]) for run in model] for model in models]


def check_alike(first: Run, run: Run) -> None:
    """Raise a UserError unless two runs were trained on the same rows, at one size."""
    one, other = first.recipe.shape or (), run.recipe.shape or ()
    if one != other and len(one) == len(other):
        sizes = ["×".join(map(str, shape)) for shape in (one, other)]
        raise UserError(
            f"{first.path} has rows of {sizes[0]} and {run.path} of {sizes[1]}, which have no score in common: train "
            "both at one size, or see how far each is from real data with `unfog evaluate`"
        )
    for what in ("data", "shape", "classes"):
        if getattr(run.recipe, what) != getattr(first.recipe, what):
            raise UserError(
                f"{run.path} and {first.path} cannot be compared: their {what} differ; compare runs that were trained "
                "on the same data"
            )


def _as_first(run: Run, first: Run) -> Run:
    """Return a run with the solver, grid and sampling of the first one."""
    own = run.recipe.sampling
    if run.recipe.objective.jumps != first.recipe.objective.jumps:
        return replace(run, recipe=replace(run.recipe, sampling=replace(own, guidance=first.recipe.sampling.guidance)))
    sampling = replace(first.recipe.sampling, batch=own.batch)
    return replace(
        run, recipe=replace(run.recipe, solver=first.recipe.solver, grid=first.recipe.grid, sampling=sampling)
    )


def compare(
    models: Sequence[Sequence[Run]],
    names: Sequence[str],
    count: int = 1000,
    solver: str | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    *,
    seed: int = 0,
    reference: int | None = 0,
    console: Console | None = None,
    thorough: bool = False,
) -> Comparison:
    """Score models on the same noises and labels.

    Run i of every model is sampled from the noises of seed + i: runs of one model differ in training and in noise, and
    the difference of two models is that of the means over their runs.

    Args:
        models: The runs of each model, from `load_alike`.
        names: What each is called.
        count: Samples from each run.
        solver: Name of a solver. Default, as for the next two: the first recipe's.
        steps: Steps of the solver.
        guidance: Scale of classifier-free guidance.
        seed: Seed of the noises.
        reference: Number of the model that the others are compared with; None is the best one.
        console: Shows the progress.
        thorough: Whether the classifier that judges is the thorough one, as for `Judge`.

    Raises: UserError: If the runs cannot be sampled so, or there are too few samples.
    """
    first = models[0][0]

    def generator_of(run: Run, index: int) -> Drawing:
        return run.generator(solver=solver, steps=steps, guidance=guidance, seed=seed + index)

    generator = generator_of(first, 0)
    data, codec = read_data(first.path, first.recipe)[1], build_codec(first.recipe).plain
    if console is not None:
        all_runs = [run for model in models for run in model]
        with working("timing a portion", console=console):
            scale = first.recipe.sampling.guidance if guidance is None else guidance
            seconds = of_runs(all_runs, data, scale, solver, steps, codec, count, thorough)
        said = f"{count:,} samples of each of {len(all_runs)} runs will take up to about {duration(seconds)}"
        less = f"; a quarter of that with -n {count // 4}" if seconds > LIMIT and count >= 800 else ""
        console.print(said + less + (f"; {ONCE}" if thorough else ""), highlight=False)
    mirror = first.recipe.augment.flip
    reads = first.recipe.reads
    judge = Judge(data, codec, count, console=console, thorough=thorough, mirror=mirror, reads=reads)
    sampled: list[list[Sampled]] = []
    total = sum(generator_of(run, 0).batches_of(count) for model in models for run in model)
    with working(names[0], total, console=console) as work:
        for name, model in zip(names, models, strict=True):
            work.describe(name)
            runs = [
                _sampled(run, generator_of(run, index), judge, count, work.advance) for index, run in enumerate(model)
            ]
            sampled.append(runs)
    fidelity = next(iter(sampled[0][0].scores))
    base = _best(sampled, fidelity) if reference is None else reference
    measured = []
    for place, (name, model, mine) in enumerate(zip(names, models, sampled, strict=True)):
        scores = {metric: [one.scores[metric] for one in mine] for metric in mine[0].scores}
        differences = {} if place == base else _differences(mine, sampled[base], fidelity, judge)
        measured.append(Model(name, [str(run.path) for run in model], mine[0].nfe, scores, differences))
    settings = f"{count} samples, noises of seed {seed}"
    if isinstance(generator, Sampler):
        ways = {name: _way(generator_of(model[0], 0)) for name, model in zip(names, models, strict=True)}
        others = "".join(f"; {name}: {way}" for name, way in ways.items() if way != ways[names[0]])
        settings = f"{count} samples, {ways[names[0]]}, noises of seed {seed}{others}"
    shown = [mine[0].shown for mine in sampled]
    labels = _labels(first, judge, count, seed, len(shown[0]))
    return Comparison(measured, names[base], fidelity, settings, shown, labels, generator.modality, judge.measured)


def _way(generator: Drawing) -> str:
    """Return in words how samples are drawn."""
    if not isinstance(generator, Sampler):
        return "at once"
    rule, grid = in_words("solver", generator.solver), in_words("grid", generator.grid)
    steps = counted(generator.settings.steps, "step")
    return f"solver {rule}, grid {grid}, {steps}, guidance {generator.settings.guidance:g}"


def _labels(run: Run, judge: Judge, count: int, seed: int, many: int) -> list[str]:
    """Return what the samples on the sheet were asked to show, `many` of `count`; empty texts for nothing."""
    asked = told(heldout_conditions(run, judge, count, seed)[1], judge.classes)
    return [asked[place] for place in spread(many, count)] if asked and many <= count else [""] * many


@dataclass(frozen=True)
class Sampled:
    """The scores of one run, and of each sample what paired differences need."""

    scores: dict[str, Scored]
    features: Rows
    hits: Rows | None
    nfe: int | None
    shown: Tensor


def _sampled(run: Run, generator: Drawing, judge: Judge, count: int, advance: Callable[[], object]) -> Sampled:
    """Sample a run and score the samples."""
    condition, asked = heldout_conditions(run, judge, count, generator.seed)
    samples, nfe = draw(generator, count, condition, advance)
    shown = samples if generator.modality.together else samples[torch.from_numpy(spread(min(count, COLUMNS), count))]
    return Sampled(judge.score(samples, asked), judge.features(samples), judge.hits(samples, asked), nfe, shown)


def _best(sampled: "Sequence[Sequence[Sampled]]", metric: str) -> int:
    """Return the number of the model whose runs have the least mean score."""
    return int(np.argmin([np.mean([one.scores[metric].value for one in mine]) for mine in sampled]))


def _differences(
    mine: Sequence[Sampled], base: Sequence[Sampled], fidelity: str, judge: Judge
) -> dict[str, Difference]:
    """Return how far each score lies from that of the reference model, with intervals over the common noises.

    Raises: UserError: If the two were not measured alike.
    """
    both, differences = [*mine, *base], {}
    reference, blocks = moments(judge.first.train), len(both[0].features) // judge.m

    def gap(*values: float) -> float:
        return float(np.mean(values[: len(mine)]) - np.mean(values[len(mine) :]))

    def share(*rows: Rows) -> float:
        return gap(*(float(one.mean()) for one in rows))

    def distance(*rows: Rows) -> float:
        return gap(*(block_mean(one, blocks, reference) for one in rows))

    for metric in [name for name in mine[0].scores if name in base[0].scores]:
        first = base[0].scores[metric]
        value = gap(*(one.scores[metric] - first for one in both))  # refuses what was not measured alike
        interval = None
        if metric == fidelity:
            rows = [one.features[: blocks * judge.m] for one in both]
            interval = bootstrap(distance, *rows, resamples=RESAMPLES, method="halves", paired=True)
        elif metric == ADHERENCE:
            hits = [one.hits for one in both if one.hits is not None]
            alone = len(hits) == 2 and np.isin(hits, (0, 1)).all()
            interval = (
                of_difference(hits[0], hits[1]) if alone else bootstrap(share, *hits, resamples=RESAMPLES, paired=True)
            )
        differences[metric] = Difference(value, interval)
    return differences


def block_mean(rows: Rows, blocks: int, reference: Moments) -> float:
    """Return the mean Fréchet distance of equal blocks of rows."""
    return float(np.mean([frechet_of_moments(moments(part), reference) for part in np.array_split(rows, blocks)]))
