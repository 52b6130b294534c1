"""What `unfog evaluate` says of a run: scores beside floor and ceiling, copies, and pictures of both."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from unfog.data.pictures import paired, save_picture
from unfog.evaluation.intervals import Scored
from unfog.evaluation.judge import Asked, Judge, known, pick, spread
from unfog.evaluation.levels import Levels
from unfog.evaluation.neighbours import Memorised
from unfog.generation.sampler import Sampler
from unfog.runs.run import Run
from unfog.runtime import distributed
from unfog.runtime.errors import UserError
from unfog.runtime.randomness import uniform

BETTER = {"frechet": "lower", "kernel": "lower"}
"""Of which scores lower values are better; of all others higher ones are."""
SHOWN, COLUMNS = 48, 16
"""Pictures of a sheet, and in a row."""


@dataclass(frozen=True)
class Evaluation:
    """The scores of a run's samples, and how they were drawn.

    Attributes:
        scores: By their names.
        copies: Whether the samples lie nearer to training rows than held-out rows do, by the features compared.
        guidance: Scale of classifier-free guidance.
        steps: Steps of the solver.
        nfe_per_sample: Evaluations of the network for each sample.
        seed: Seed of the samples' noise.
        samples: The samples as stored.
    """

    scores: dict[str, Scored]
    copies: dict[str, Memorised]
    guidance: float
    steps: int
    nfe_per_sample: int
    seed: int
    samples: Tensor = field(repr=False)


def told(run: Run, judge: Judge, count: int, seed: int = 0) -> tuple[Tensor | None, Asked]:
    """Return what `count` samples are asked to show: what held-out rows do, each as often as every other.

    Args:
        run: The run.
        judge: Has the held-out rows.
        count: Number of samples.
        seed: Seed of conditions that are drawn, as boxes to fill are.

    Returns: The condition as the model is told it, `(count, ...)`, and the labels or captions for `Judge.score`; both
        None for unconditional models.
    """
    sampler, rows = run.sampler(), pick(judge.heldout, spread(count, len(judge.heldout.x)))
    drawn = torch.from_numpy(uniform(seed, "condition to judge", 0, 0, count, 4))
    condition = sampler.conditioning.read(sampler.known, rows, judge.codec.encode(rows.x), drawn)
    return condition, None if condition is None else known(rows)


def bar(console: Console | None) -> Progress:
    """Return a progress bar that says what is at work and what time is left."""
    columns = (TextColumn("{task.description:32}"), BarColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=console is None)


def draw(
    run: Run,
    sampler: Sampler,
    count: int,
    condition: Tensor | None,
    advance: Callable[[], object] = lambda: None,
) -> tuple[Tensor, int]:
    """Draw samples and count what they cost.

    Args:
        run: The run.
        sampler: One of the run's.
        count: Number of samples.
        condition: What the model is told of each, `(count, ...)`, or None.
        advance: Called after every batch.

    Returns: The samples as stored, and the network's evaluations for each, as a hook on the network counted them: rows
        that went through it, over the rows of the batches, which are padded.
    """
    rows = 0

    def listen(module: object, arguments: tuple[Tensor, ...], output: object) -> None:
        nonlocal rows
        rows += len(arguments[0])

    listener = run.denoiser.network.register_forward_hook(listen)  # type: ignore[attr-defined]
    samples = []
    try:
        for batch in run.batches(sampler, condition, count):
            samples.append(batch)
            advance()
    finally:
        listener.remove()
    batches = -(-batches_of(sampler, count) // distributed.size())  # this process's
    return torch.cat(samples), rows // (batches * sampler.settings.batch)


def batches_of(sampler: Sampler, count: int) -> int:
    """Return in how many batches so many samples are drawn."""
    return -(-count // sampler.settings.batch)


def evaluate(
    run: Run,
    judge: Judge,
    count: int,
    *,
    guidance: float,
    steps: int | None = None,
    seed: int = 0,
    console: Console | None = None,
) -> Evaluation:
    """Score `count` samples of a run that are asked for what held-out rows show.

    Args:
        run: The run.
        judge: Fitted on the run's data.
        count: Number of samples, as many as the judge expects or more.
        guidance: Scale of classifier-free guidance; 1 is off.
        steps: Steps of the solver; the recipe's if None.
        seed: Seed of the noise.
        console: Shows the progress.

    Raises: UserError: If there are fewer samples than the judge compares.
    """
    if count < judge.m:
        raise UserError(f"this judge compares sets of {judge.m} rows: ask for -n {judge.m} or more")
    sampler = run.sampler(guidance=guidance, steps=steps, seed=seed)
    condition, asked = told(run, judge, count, seed)
    with bar(console) as progress:
        task = progress.add_task(f"sampling, guidance {guidance:g}", total=batches_of(sampler, count))
        samples, nfe = draw(run, sampler, count, condition, lambda: progress.advance(task))
    scores, copies = judge.score(samples, asked), judge.copies(samples)
    return Evaluation(scores, copies, guidance, sampler.settings.steps, nfe, seed, samples)


def table(found: Sequence[Evaluation], judge: Judge) -> str:
    """Return evaluations as a table: a line for each score, beside it the floor and the ceiling."""
    first = found[0]
    heads = ["score", "", *(f"guidance {one.guidance:g}" for one in found), "floor", "ceiling"]
    lines = [heads]
    for name, score in first.scores.items():
        cells = [_cell(one.scores[name]) for one in found]
        better = BETTER.get(name.split("/")[0], "higher")
        lines.append([name, better, *cells, f"{score.floor:.3f}", f"{score.ceiling:.3f}"])
    return "\n".join([aligned(lines), "", *_notes(found, judge)])


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Return rows of cells as text in columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _cell(score: Scored) -> str:
    """Return a value with its interval."""
    return f"{score.value:.3f}" if score.low is None else f"{score.value:.3f} [{score.low:.3f}, {score.high:.3f}]"


def _notes(found: Sequence[Evaluation], judge: Judge) -> list[str]:
    """Return what must be known to read the table, and the verdict on copies."""
    first = found[0]
    costs = ", ".join(str(one.nfe_per_sample) for one in found)
    asked = ", asked for what held-out rows show" if "adherence" in first.scores else ""
    notes = [
        f"{len(first.samples)} samples of seed {first.seed} in {first.steps} steps ({costs} evaluations){asked}.",
        f"{judge.protocol[0].upper()}{judge.protocol[1:]}.",
        "Ceiling: noise. Brackets: 95 %; those of the Fréchet distance are of whole distributions, without the bias",
        "of few rows that value and floor share.",
    ]
    for space in judge.spaces.values():
        reads = ""
        if space.extractor is judge.classifier:
            what = "words or labels" if judge.classifier.words else "classes"
            reads = f", which reads {judge.accuracy:.2%} of the {what} of held-out rows right"
        notes.append(f"{space.extractor.name}: {space.train.shape[1]} features, key {space.extractor.key}{reads}.")
    for one in found:
        for name, copies in one.copies.items():
            verdict = "COPIES: look at memorisation.png" if copies.copies else "no sign of copies"
            notes.append(
                f"near training rows in {name}, guidance {one.guidance:g}: {copies.near:.1%} of samples, by ratio "
                f"{copies.near_ratio:.1%}, expected {copies.expected:.1%}, p = {copies.p_value:.2g}: {verdict}"
            )
    return notes


def to_json(found: Sequence[Evaluation], judge: Judge, levels: Levels) -> str:
    """Return everything but the samples as JSON."""
    extractors = {
        name: {"key": space.extractor.key, "features": space.train.shape[1]} for name, space in judge.spaces.items()
    }
    evaluations = [
        {name: part for name, part in asdict(replace(one, samples=torch.empty(0))).items() if name != "samples"}
        for one in found
    ]
    plain = {
        "protocol": judge.protocol,
        "extractors": extractors,
        "classifier_accuracy": judge.accuracy,
        "evaluations": evaluations,
        "levels": asdict(levels),
    }
    return json.dumps(plain, indent=1)


def draw_sheets(found: Evaluation, judge: Judge, folder: Path) -> None:
    """Draw samples above the held-out rows that show the same, and the closest pairs of sample and training row.

    Raises: EnvironmentFailure: If the disk fails.
    """
    count = min(SHOWN, len(found.samples))
    places = torch.from_numpy(spread(count, len(found.samples)))
    real = torch.from_numpy(spread(len(found.samples), len(judge.heldout.x)))[places]
    save_picture(paired(found.samples[places], judge.heldout.x[real]), folder / "samples.png")
    pairs = [pair for copies in found.copies.values() for pair in copies.pairs[:COLUMNS]]
    samples, rows = (torch.tensor(part) for part in zip(*pairs, strict=True))
    save_picture(paired(found.samples[samples], judge.train.x[rows]), folder / "memorisation.png")
