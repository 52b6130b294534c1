"""`unfog rivals`: diffusion, GAN, VAE and autoregressive models, trained on the same data for the same time."""

import ast
import inspect
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from importlib import import_module
from pathlib import Path
from typing import cast

import numpy as np
from rich.console import Console
from torch import Tensor

from unfog.data.pictures import save_picture
from unfog.data.source import Data
from unfog.evaluation.contest import train_or_resume
from unfog.evaluation.density import Bits, density
from unfog.evaluation.judge import Judge
from unfog.evaluation.report import evaluate_run
from unfog.recipes.build import build_codec, build_data, build_model
from unfog.recipes.recipe import Recipe
from unfog.runs.run import Run, load
from unfog.runtime.brief import brief
from unfog.runtime.errors import UserError
from unfog.runtime.files import disk, parse_json, read_bounded, write_whole
from unfog.runtime.lines import aligned, counted, lines_of
from unfog.runtime.progress import duration, working
from unfog.runtime.provenance import provenance

LIKELY = 64
"""Rows whose likelihood is measured: that of a diffusion model is an integral for each."""
MANY = 64
"""Pictures in a portion whose seconds are measured."""
GONE = 0.1
"""A training has collapsed if its recall or its coverage is below this share of real data's."""
SHOWN = 10
"""Pictures of each family on the sheet."""


@dataclass(frozen=True)
class Family:
    """A family of models: its name, what makes a recipe one of it, and the modules that are its own."""

    name: str
    settings: tuple[str, ...]
    modules: tuple[str, ...]

    @property
    def lines(self) -> int:
        """Lines of code of its modules, without docstrings, comments and blank lines."""
        return sum(map(code_lines, self.modules))


FAMILIES = (
    Family(
        "diffusion",
        (),
        (
            "networks.compact",
            "diffusion.denoiser",
            "diffusion.objectives",
            "diffusion.schedules",
            "diffusion.solvers",
            "diffusion.targets",
            "training.objectives.denoising",
            "generation.sampler",
        ),
    ),
    Family("GAN", ("objective=adversarial",), ("networks.gan", "training.objectives.adversarial")),
    Family(
        "VAE", ("objective=variational",), ("networks.ladder", "networks.pixels", "training.objectives.variational")
    ),
    Family(
        "autoregressive",
        ("objective=autoregressive",),
        ("networks.gated", "networks.pixels", "training.objectives.autoregressive"),
    ),
)
"""The families, in the order of the table."""


@dataclass(frozen=True)
class Figure:
    """A score, with its interval where there is one, and what real and worthless samples score."""

    value: float
    low: float | None
    high: float | None
    floor: float
    ceiling: float


@dataclass(frozen=True)
class Trained:
    """What was measured of one training.

    Attributes:
        family: Name of its family.
        seed: Of the training.
        images: Pictures that it saw, repeats included.
        parameters: Of the model, a GAN's critic among them.
        scores: By their names.
        copies: Share of samples that lie as near to training rows as the nearest hundredth of held-out rows.
        expected: That share for samples that copy nothing.
        single: Seconds a picture, drawn alone.
        portion: Seconds a picture, of 64.
        bits: Bits a number of held-out rows, and their error; None where the family knows no likelihood.
        way: How they were measured: "flow", "bound" or "exact".
    """

    family: str
    seed: int
    images: int
    parameters: int
    scores: dict[str, Figure]
    copies: float
    expected: float
    single: float
    portion: float
    bits: tuple[float, float] | None
    way: str

    __repr__ = brief

    @property
    def collapsed(self) -> bool:
        """Whether its samples reach next to nothing of the data: a tenth of what real rows reach, or less."""
        reached = [self.scores[name] for name in ("recall", "coverage") if name in self.scores]
        return any(one.value < GONE * one.floor for one in reached)


def rivals(
    recipe: Recipe,
    out: Path,
    budget: float,
    seeds: int = 1,
    *,
    count: int = 1000,
    device: str = "auto",
    console: Console | None = None,
) -> list[Trained]:
    """Train each family for the same time, once with each seed, and measure all alike.

    Trainings and measurements in `out` that are finished are kept, and an interrupted one resumes.

    Args:
        recipe: What diffusion trains; the others take its data, condition and batch.
        out: Folder for the runs, each named after family and seed.
        budget: Seconds of each training.
        seeds: Trainings of each family.
        count: Samples to score each with.
        device: Where to compute.
        console: Shows the progress.

    Returns: What was measured, family by family.
    Raises: UserError: If a family cannot be trained on the data, or `out` holds other runs.
    """
    if seeds < 1:
        raise UserError(f"a family is trained with one seed or more, not {seeds}")
    entries = [(family, seed, out / f"{family.name.lower()}-{seed}") for family in FAMILIES for seed in range(seeds)]
    filled, data = build_data(recipe)
    chosen = {family.name: build_data(recipe.set(*family.settings), data)[0] for family in FAMILIES}
    for rival in chosen.values():  # so that what does not fit is refused before the minutes are spent
        build_model(rival)
    if console is not None:
        total = len(entries) * budget
        console.print(
            f"{counted(len(entries), 'training')} of {duration(budget)}, {duration(total)} in all, and some minutes "
            "to measure; stopped, it resumes with the same command",
            highlight=False,
        )
    for family, seed, folder in entries:
        train_or_resume(replace(chosen[family.name], seed=recipe.seed + seed), folder, budget, device, console)
    codec = build_codec(filled).plain
    judge = Judge(data, codec, count, console=console, mirror=filled.augment.flip, reads=filled.reads)
    found = []
    for family, seed, folder in entries:
        kept = folder / "rival.json"
        one = _kept(kept, count)
        if one is None:
            with working(f"measuring {folder.name}", console=console):
                one = _measured(load(folder, device), family, seed, judge, data, count)
            write_whole(kept, json.dumps({"count": count, **_plain(one)}, indent=1).encode())
        found.append(one)
    return found


def _measured(run: Run, family: Family, seed: int, judge: Judge, data: Data, count: int) -> Trained:
    """Measure one training."""
    found = evaluate_run(run, judge, count, guidance=run.recipe.sampling.guidance, seed=seed)
    scores = {name: Figure(one.value, one.low, one.high, one.floor, one.ceiling) for name, one in found.scores.items()}
    copies = next(iter(found.copies.values()), None)
    near, expected = (copies.near, copies.expected) if copies else (float("nan"), float("nan"))
    bits, way = _likelihood(run, data)
    parameters = sum(parameter.numel() for parameter in run.model.parameters())
    single, portion = _seconds(run, 1), _seconds(run, MANY)
    images = run.recipe.training.images
    return Trained(family.name, seed, images, parameters, scores, near, expected, single, portion, bits, way)


def _likelihood(run: Run, data: Data) -> tuple[tuple[float, float] | None, str]:
    """Return the bits a number of held-out rows and their error, None where the model knows none, and the way."""
    try:
        bits: Bits = density(run, data, LIKELY).held_out
    except UserError:
        return None, ""
    for way in ("exact", "flow", "bound"):
        if (value := getattr(bits, way)) is not None:
            return (value, getattr(bits, f"{way}_error")), way
    return None, ""


def _seconds(run: Run, count: int) -> float:
    """Return the seconds a picture takes where so many are drawn together, the median of three times."""
    generator = run.generator(batch=count)
    generator(count)  # the first call sets up what the others use
    times = []
    for seed in range(3):
        began = time.perf_counter()
        generator(count, seed=seed)
        times.append(time.perf_counter() - began)
    return float(np.median(times)) / count


def _plain(one: Trained) -> dict[str, object]:
    """Return what was measured as JSON takes it."""
    scores = {name: vars(figure) for name, figure in one.scores.items()}
    return {field.name: getattr(one, field.name) for field in fields(one)} | {"scores": scores}


def _kept(path: Path, count: int) -> Trained | None:
    """Return what was measured of a training before, with as many samples; None where it was not."""
    if not path.is_file():
        return None
    try:
        plain = parse_json(read_bounded(path))
        if plain.pop("count") != count:
            return None
        scores = {name: Figure(**figure) for name, figure in plain.pop("scores").items()}
        bits = plain.pop("bits")
        return Trained(scores=scores, bits=None if bits is None else (float(bits[0]), float(bits[1])), **plain)
    except (TypeError, KeyError, AttributeError, ValueError, IndexError):
        return None  # it is measured again


# ------------------------------------------------------------------------------------------------------------- tables


def table(found: Sequence[Trained]) -> list[list[str]]:
    """Return what was measured as rows of cells, a column for each family, with the spread over its seeds."""
    names = list(dict.fromkeys(one.family for one in found))
    of = {name: [one for one in found if one.family == name] for name in names}
    metrics = list(dict.fromkeys(name for one in found for name in one.scores))
    rows = [["", *names, "real data", "noise"]]
    for metric in metrics:
        cells = [spread([one.scores[metric].value for one in some if metric in one.scores]) for some in of.values()]
        ends = next(one.scores[metric] for one in found if metric in one.scores)
        rows.append([metric, *cells, number(ends.floor), number(ends.ceiling)])
    near = [spread([one.copies for one in some]) for some in of.values()]
    rows.append(["copies, share near training rows", *near, number(found[0].expected), ""])
    own = {
        "seconds a picture, alone": [[one.single for one in some] for some in of.values()],
        f"seconds a picture, of {MANY}": [[one.portion for one in some] for some in of.values()],
        "pictures trained on": [[float(one.images) for one in some] for some in of.values()],
        "parameters": [[float(one.parameters) for one in some] for some in of.values()],
    }
    rows += [[name, *map(spread, columns), "", ""] for name, columns in own.items()]
    rows.append(["bits a number, held out", *(_bits(some) for some in of.values()), "", ""])
    gone = [f"{sum(one.collapsed for one in some)} of {len(some)}" for some in of.values()]
    rows.append(["collapsed", *gone, "", ""])
    lines = {family.name: str(family.lines) for family in FAMILIES}
    return [*rows, ["lines of code of its own", *(lines[name] for name in names), "", ""]]


def _bits(some: Sequence[Trained]) -> str:
    """Return the likelihood of a family as text."""
    if some[0].bits is None:
        return "none"
    if len(some) == 1:
        return f"{some[0].bits[0]:.3f} ± {some[0].bits[1]:.3f}, {some[0].way}"
    return f"{spread([one.bits[0] for one in some if one.bits])}, {some[0].way}"


def spread(values: Sequence[float]) -> str:
    """Return the mean of numbers, with the lowest and the highest where there are several."""
    if not values:
        return "-"
    if len(values) == 1:
        return number(values[0])
    return f"{number(float(np.mean(values)))} ({number(min(values))} to {number(max(values))})"


def number(value: float) -> str:
    """Return a number in three digits, or whole."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


@dataclass(frozen=True)
class Page:
    """What `unfog rivals` writes: rivals.json, rivals.md and rivals.png."""

    found: Sequence[Trained]
    recipe: Recipe
    budget: float
    count: int

    __repr__ = brief

    def text(self) -> str:
        """Return the table for a terminal."""
        return aligned(table(self.found))

    def notes(self) -> list[str]:
        """Return what must be known to read the table."""
        seeds = len({one.seed for one in self.found})
        return [
            f"{self.recipe.name}: {duration(self.budget)} of training each, {counted(seeds, 'seed')}, {self.count:,} "
            "samples conditioned on what held-out rows show.",
            "In brackets: the lowest and the highest of the seeds. Distances, recall and the like are those of `unfog "
            "evaluate`; real data: held-out rows in the samples' place.",
            f"Bits of {LIKELY} held-out rows: of diffusion by its flow on dequantised rows, of the VAE a bound, of the "
            "autoregressive model exact; a GAN knows none. The three are not of quite the same thing.",
            f"Collapsed: recall or coverage below {GONE:.0%} of real data's.",
            str(provenance()),
        ]

    def write(self, folder: Path, device: str = "auto") -> str:
        """Write table and sheet; return where they are.

        Raises: EnvironmentFailure: If the disk fails.
        """
        rows = table(self.found)
        head, *body = [" | ".join(cells) for cells in rows]
        ruler = "|".join(["---"] * len(rows[0]))
        lines = [f"| {head} |", f"|{ruler}|", *(f"| {line} |" for line in body)]
        title = f"# Rivals: {self.recipe.name}, {duration(self.budget)} each"
        text = "\n".join([title, "", *lines, "", *(f"- {note}" for note in self.notes()), "", "![samples](rivals.png)"])
        with disk(folder):
            folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / "rivals.md", (text + "\n").encode())
        everything = {"budget": self.budget, "count": self.count, "trained": [_plain(one) for one in self.found]}
        write_whole(folder / "rivals.json", json.dumps(everything, indent=1).encode())
        self._sheet(folder, device)
        return "\n".join(
            [*(line for note in self.notes() for line in lines_of(note)), f"written: {folder / 'rivals.md'}"]
        )

    def _sheet(self, folder: Path, device: str) -> None:
        """Write samples of the first training of each family, below each other."""
        sets, names = [], []
        for family in dict.fromkeys(one.family for one in self.found):
            run = load(folder / f"{family.lower()}-{self.found[0].seed}", device)
            sets.append(run.sample(SHOWN))
            names.append(family)
        modality = run.recipe.modality
        shown = run.recipe.classes
        labels = [shown[place % len(shown)] if shown else "" for place in range(SHOWN)]
        save_picture(modality.compared(cast(Sequence[Tensor], sets), names, labels, "samples"), folder / "rivals.png")


def code_lines(module: str) -> int:
    """Return the lines of a module of unfog that hold code: no blank lines, comments and docstrings."""
    source = inspect.getsource(import_module(f"unfog.{module}"))
    tree = ast.parse(source)
    held = set(_docstrings(tree))
    return sum(
        1
        for place, line in enumerate(source.splitlines(), 1)
        if line.strip() and not line.strip().startswith("#") and place not in held
    )


def _docstrings(tree: ast.AST) -> Iterator[int]:
    """Yield the numbers of the lines of strings that are statements."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield from range(node.lineno, (node.end_lineno or node.lineno) + 1)
