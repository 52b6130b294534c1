"""What `unfog evaluate` says of a run: scores with floor and ceiling, copies, and pictures of both."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from unfog.data.modality import Modality
from unfog.data.pictures import save_picture
from unfog.evaluation.advice import advice, doubt
from unfog.evaluation.classes import Classes, by_class
from unfog.evaluation.intervals import Scored, plain
from unfog.evaluation.judge import Asked, Judge, known, pick, spread, told
from unfog.evaluation.levels import Levels
from unfog.evaluation.neighbours import Memorised
from unfog.evaluation.wording import LEGEND, score_table
from unfog.generation.drawing import Drawing
from unfog.generation.sampler import Sampler
from unfog.recipes.build import known_of
from unfog.runs.run import Run
from unfog.runtime import distributed
from unfog.runtime.brief import brief
from unfog.runtime.errors import UserError
from unfog.runtime.lines import counted, lines_of
from unfog.runtime.progress import working
from unfog.runtime.randomness import uniform

SHOWN, COLUMNS = 48, 16
"""Pictures on a sheet, and in a row."""


@dataclass(frozen=True)
class Evaluation:
    """The scores of a run's samples, and how they were drawn.

    Attributes:
        scores: By their names.
        copies: Whether the samples lie nearer to training rows than held-out rows do, by names of features.
        guidance: Scale of classifier-free guidance.
        steps: Steps of the solver; None for a model that is not sampled step by step, as with what follows.
        nfe_per_sample: Evaluations of the network for each sample.
        seed: Seed of the samples' noise.
        samples: The samples as stored.
        classes: The scores of each class; None where the classifier cannot read what was asked.
        jumps: Whether the model is a flow map.
    """

    scores: dict[str, Scored]
    copies: dict[str, Memorised]
    guidance: float
    steps: int | None
    nfe_per_sample: int | None
    seed: int
    samples: Tensor = field(repr=False)
    classes: Classes | None = field(default=None, repr=False)
    jumps: bool = False

    __repr__ = brief


def heldout_conditions(run: Run, judge: Judge, count: int, seed: int = 0) -> tuple[Tensor | None, Asked]:
    """Return the conditions of `count` samples: those of the held-out rows, each equally often.

    Args:
        run: The run.
        judge: Has the held-out rows.
        count: Number of samples.
        seed: Seed of conditions that are drawn, for instance boxes to fill.

    Returns: The condition as the model takes it, `(count, ...)`, and the labels or captions for `Judge.score`; both
        None for unconditional models.
    """
    rows = pick(judge.heldout, spread(count, len(judge.heldout.x)))
    drawn = torch.from_numpy(uniform(seed, "condition to judge", 0, 0, count, 4))
    condition = run.recipe.conditioning.read(known_of(run.recipe), rows, judge.codec.encode(rows.x), drawn)
    return condition, None if condition is None else known(rows)


def draw(
    generator: Drawing,
    count: int,
    condition: Tensor | None,
    advance: Callable[[], object] = lambda: None,
) -> tuple[Tensor, int | None]:
    """Draw samples and count what they cost.

    Args:
        generator: Draws them.
        count: Number of samples.
        condition: What each is conditioned on, `(count, ...)`, or None.
        advance: Called after every batch.

    Returns: The samples as stored, and the network's evaluations for each, counted by a hook on the network: rows that
        went through it, over the rows of the batches, which are padded; None for a generator that is no sampler.
    """
    samples = []
    if not isinstance(generator, Sampler):
        for batch in generator.batches(condition, count):
            samples.append(batch)
            advance()
        return torch.cat(samples), None
    rows = 0

    def listen(module: object, arguments: tuple[Tensor, ...], output: object) -> None:
        nonlocal rows
        rows += len(arguments[0])

    listener = generator.denoiser.network.register_forward_hook(listen)  # type: ignore[attr-defined]
    try:
        for batch in generator.batches(condition, count):
            samples.append(batch)
            advance()
    finally:
        listener.remove()
    batches = -(-generator.batches_of(count) // distributed.size())  # this process's
    return torch.cat(samples), rows // (batches * generator.size)


def evaluate_run(
    run: Run,
    judge: Judge,
    count: int,
    *,
    guidance: float,
    steps: int | None = None,
    seed: int = 0,
    console: Console | None = None,
) -> Evaluation:
    """Score `count` samples of a run, conditioned on what the held-out rows show.

    Args:
        run: The run.
        judge: Fitted on the run's data.
        count: Number of samples, as many as the judge expects or more.
        guidance: Scale of classifier-free guidance; 1 is off.
        steps: Steps of the solver. Default: the recipe's.
        seed: Seed of the noise.
        console: Shows the progress.

    Raises: UserError: If there are fewer samples than the judge compares.
    """
    if count < judge.m:
        raise UserError(f"this judge compares sets of {judge.m} rows: draw {judge.m} samples or more")
    generator = run.generator(guidance=guidance, steps=steps, seed=seed)
    condition, asked = heldout_conditions(run, judge, count, seed)
    with working(f"sampling, guidance {guidance:g}", generator.batches_of(count), console=console) as work:
        samples, nfe = draw(generator, count, condition, work.advance)
    with working(f"scores, guidance {guidance:g}", console=console):
        scores, copies, classes = judge.score(samples, asked), judge.copies(samples), by_class(judge, samples, asked)
    taken = generator.settings.steps if isinstance(generator, Sampler) else None
    return Evaluation(scores, copies, guidance, taken, nfe, seed, samples, classes, run.recipe.objective.jumps)


def table(evaluations: Sequence[Evaluation], judge: Judge, run: str = "RUN", width: int | None = None) -> str:
    """Return evaluations as a table, a line for each score with its floor and ceiling, and the notes to read it.

    Args:
        evaluations: Of the run, the recipe's guidance last.
        judge: Which made them.
        run: What the run is called in commands.
        width: Of its network.
    """
    first, columns = evaluations[0], _columns(evaluations)
    costs = ", ".join(str(one.nfe_per_sample) for one in evaluations)
    times = "evaluation" if costs == "1" else "evaluations"
    effort = f" in {counted(first.steps, 'step')} ({costs} {times})" if first.steps else ""
    asked = ", conditioned on what held-out rows show" if "adherence" in first.scores else ""
    drawn = f"{len(first.samples)} samples of seed {first.seed}{effort}{asked}."
    alone = (
        f"Scores of other numbers of samples are not comparable: `unfog compare {run} OTHER_RUN` measures both alike."
    )
    how = [*lines_of(drawn), *lines_of(alone), *notes(judge)]
    lines = [*lines_of(doubt(judge.accuracy, judge.thorough)), score_table(columns), "", *how]
    for one in evaluations:
        of = f", guidance {one.guidance:g}" if one.steps else ""
        lines += verdicts(one.copies, of, ": look at memorisation.png")
    classes = evaluations[-1].classes
    if classes is not None:
        of = f" (guidance {evaluations[-1].guidance:g})" if len(evaluations) > 1 else ""
        lines += ["", f"Samples by what they were asked to show{of}:", "", classes.text()]
    return "\n".join([*lines, "", *lines_of(_advice(evaluations, run, width))])


def _columns(evaluations: Sequence[Evaluation]) -> dict[str, dict[str, Scored]]:
    """Return the scores of each by what distinguishes it."""
    return {f"guidance {one.guidance:g}" if one.steps else "samples": one.scores for one in evaluations}


def conclusion(evaluations: Sequence[Evaluation], judge: Judge, width: int | None = None) -> str:
    """Return whether the judge can be believed, which figure of the last evaluation is the worst, and what helps.

    Args:
        evaluations: Of the run, the recipe's guidance last.
        judge: Which made them.
        width: Of the run's network.

    Returns: Sentences in which the run is called RUN.
    """
    return f"{doubt(judge.accuracy, judge.thorough)} {_advice(evaluations, 'RUN', width)}".strip()


def _advice(evaluations: Sequence[Evaluation], run: str, width: int | None) -> str:
    """Return which figure of the last evaluation is the worst, and what helps."""
    last = evaluations[-1]
    guided = last.steps is not None and "adherence" in last.scores
    jumps = last.steps if last.jumps else None
    stepped = last.steps is not None
    return advice(
        _columns(evaluations), last.copies, last.classes, guided, run=run, width=width, jumps=jumps, stepped=stepped
    )


def notes(judge: Judge) -> list[str]:
    """Return what must be known to read a table of scores: the protocol, and the features of the judge."""
    protocol = str(judge.sets)
    lines = [
        f"{protocol[0].upper()}{protocol[1:]}.",
        *LEGEND,
        "Those of the Fréchet distance are of its mean over sets of this size, whose bias the floor shares.",
    ]
    for space in judge.spaces.values():
        reads = ""
        if space.extractor is judge.classifier:
            what = "words or labels" if judge.classifier.words else "classes"
            reads = f", which reads {judge.accuracy:.2%} of the {what} of held-out rows correctly"
        kind = " (thorough)" if judge.thorough and space.extractor is judge.classifier else ""
        size = f"{space.train.shape[1]} features"
        lines.append(f"{space.extractor.name}{kind}: {size}, key {space.extractor.key}{reads}.")
    return [part for line in [*lines, f"{judge.measured}."] for part in lines_of(line)]


def verdicts(copies: Mapping[str, Memorised], of: str = "", advice: str = "") -> list[str]:
    """Return for each kind of features in a sentence how many samples are near training rows, and if they are copies.

    Args:
        copies: From `Judge.copies`.
        of: Which samples, behind the name of the features.
        advice: What to add to the verdict that there are copies.
    """
    lines = []
    for name, near in copies.items():
        verdict = f"COPIES{advice}" if near.copies else "no sign of copies"
        lines += lines_of(
            f"near training rows in {name}{of}: {near.near:.1%} of samples, by ratio {near.near_ratio:.1%}, "
            f"expected {near.expected:.1%}, p = {near.p_value:.2g}: {verdict}"
        )
    return lines


def to_json(evaluations: Sequence[Evaluation], judge: Judge, levels: Levels | None, width: int | None = None) -> str:
    """Return everything but the samples as JSON; `width` is that of the run's network."""
    rows = []
    for one in evaluations:
        rows.append({part.name: plain(getattr(one, part.name)) for part in fields(one) if part.name != "samples"})
    parts = {
        **about_judge(judge),
        "evaluations": rows,
        "worst": conclusion(evaluations, judge, width),
        "levels": plain(levels),
    }
    return json.dumps(parts, indent=1)


def about_judge(judge: Judge) -> dict[str, object]:
    """Return how samples were measured, as JSON takes it."""
    extractors = {}
    for name, space in judge.spaces.items():
        extractors[name] = {"key": space.extractor.key, "features": space.train.shape[1]}
    return {
        "measured": plain(judge.measured),
        "judge": "thorough" if judge.thorough else "quick",
        "judge_seed": judge.seed,
        "protocol": str(judge.sets),
        "extractors": extractors,
        "classifier_accuracy": judge.accuracy,
    }


def draw_sheets(evaluation: Evaluation, judge: Judge, folder: Path, modality: Modality) -> None:
    """Draw samples above real rows that show the same, the closest pairs of sample and training row, and confusions.

    Raises: EnvironmentFailure: If the disk fails.
    """
    samples = evaluation.samples
    places = torch.from_numpy(spread(min(SHOWN, len(samples)), len(samples)))
    real = torch.from_numpy(spread(len(samples), len(judge.heldout.x)))[places]
    taken = (
        "" if evaluation.steps is None else f"{counted(evaluation.steps, 'step')}, guidance {evaluation.guidance:g}, "
    )
    title = f"{taken}seed {evaluation.seed}"
    asked = known(pick(judge.heldout, real.numpy())) if "adherence" in evaluation.scores else None
    labels = told(asked, judge.classes) or [""] * len(places)
    pairs = modality.compared((samples[places], judge.heldout.x[real]), ("samples", "held-out rows"), labels, title)
    save_picture(pairs, folder / "samples.png")
    nearest = [pair for copies in evaluation.copies.values() for pair in copies.pairs[:COLUMNS]]
    chosen, rows = (torch.tensor(part) for part in zip(*nearest, strict=True))
    names = ("samples", "nearest training rows")
    copies = modality.paired(samples[chosen], judge.train.x[rows], COLUMNS, names, title)
    save_picture(copies, folder / "memorisation.png")
    if evaluation.classes is not None:
        evaluation.classes.draw(folder / "confusion.png")
