"""What guidance does: adherence, recall and Fréchet distance over its scale, always on and on an interval of times.

    python benchmarks/guidance.py runs/mnist runs/shapes --n 1000 --out docs/images/guidance.png

Beside the runs stands a mixture with labels, whose conditional and unconditional denoisers are exact: what guidance
does there no training can be blamed for. A table goes to standard output, and the plot to --out.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
import tyro
from matplotlib.figure import Figure
from rich.console import Console

from unfog.diffusion.grids import UniformGrid
from unfog.diffusion.guidance import ClassifierFree, Interval
from unfog.diffusion.oracle import Mixture, MixtureDenoiser
from unfog.diffusion.sampling import follow
from unfog.diffusion.schedules import RectifiedFlow
from unfog.diffusion.solvers import DPMSolverPP2M
from unfog.evaluation.distances import frechet
from unfog.evaluation.judge import Judge
from unfog.evaluation.neighbours import prdc
from unfog.evaluation.report import heldout_conditions
from unfog.recipes.build import build_codec, build_data
from unfog.runs.run import Run, load
from unfog.runtime.randomness import normal

BETWEEN = Interval(0.2, 0.8)
"""Share of the clock on which interval guidance is on: chosen beforehand, the same for all."""


class Point(NamedTuple):
    """What one scale does."""

    scale: float
    adherence: float
    recall: float
    frechet: float


@dataclass(frozen=True)
class Curves:
    """What all scales do, for guidance that is always on and for guidance on an interval."""

    name: str
    always: list[Point]
    between: list[Point]


def mixture(count: int) -> Callable[[float, Interval | None], Point]:
    """Return the measurement on three classes of two overlapping blobs each, in the plane."""
    angles = torch.arange(6, dtype=torch.float64) * torch.pi / 3
    means = torch.stack([angles.cos(), angles.sin()], 1) * torch.tensor([[1.0], [0.6]] * 3, dtype=torch.float64)
    data = Mixture(torch.full((6,), 1 / 6, dtype=torch.float64), means, torch.full((6, 2), 0.09, dtype=torch.float64))
    classes = [Mixture(data.weights[k : k + 2] * 3, means[k : k + 2], data.variances[k : k + 2]) for k in (0, 2, 4)]
    schedule, generator = RectifiedFlow(), torch.Generator().manual_seed(0)
    real = data.sample(count, generator)
    start = normal(0, "start", 0, 0, count, (2,)).double()

    def measure(scale: float, interval: Interval | None) -> Point:
        parts = []
        for each, part in enumerate(classes):
            known = MixtureDenoiser(part, schedule)
            guided = ClassifierFree(known, MixtureDenoiser(data, schedule), scale, interval)
            parts.append(follow(guided, start[each::3], UniformGrid()(schedule, 60), DPMSolverPP2M()))
        right = sum(
            int((torch.stack([one.log_prob(x) for one in classes]).argmax(0) == each).sum())
            for each, x in enumerate(parts)
        )
        x = torch.cat(parts)
        return Point(scale, right / count, prdc(real.numpy(), x.numpy()).recall, frechet(real.numpy(), x.numpy()))

    return measure


def model(run: Run, count: int, console: Console) -> Callable[[float, Interval | None], Point]:
    """Return the measurement on samples of a run."""
    judge = Judge(build_data(run.recipe)[1], build_codec(run.recipe), count, console=console)
    condition, asked = heldout_conditions(run, judge, count)
    t_max = run.denoiser.schedule.t_max

    def measure(scale: float, interval: Interval | None) -> Point:
        ends = "null" if interval is None else [end * t_max for end in interval]
        chosen = replace(run, recipe=run.recipe.set(f"sampling.guidance_interval={ends}"))
        with run.arithmetic():
            samples = chosen.sampler(guidance=scale)(count, condition=condition)
        adherence = judge.adherence(samples, asked)
        assert adherence is not None, "guidance is judged by what was asked for"
        return Point(scale, adherence.value, judge.recall(samples).value, judge.fidelity(samples).value)

    return measure


def draw(curves: list[Curves], path: Path) -> None:
    """Draw a column for each subject: adherence and recall over the scale, and the distance over adherence."""
    figure = Figure(figsize=(4 * len(curves), 7), layout="constrained")
    axes = figure.subplots(2, len(curves), squeeze=False)
    for column, one in enumerate(curves):
        upper, lower = axes[:, column]
        scales = [point.scale for point in one.always]
        upper.plot(scales, [point.adherence for point in one.always], "C0o-", label="adherence")
        upper.plot(scales, [point.recall for point in one.always], "C1s-", label="recall")
        upper.plot(scales, [point.adherence for point in one.between], "C0o:", label="adherence, interval")
        upper.plot(scales, [point.recall for point in one.between], "C1s:", label="recall, interval")
        upper.set(title=one.name, xlabel="scale of guidance (1 is off)", ylim=(0, 1.02))
        for style, name, points in (("C2o-", "always on", one.always), ("C3s:", "on an interval", one.between)):
            lower.plot([p.adherence for p in points], [p.frechet for p in points], style, label=name)
            for p in points:
                lower.annotate(f"{p.scale:g}", (p.adherence, p.frechet), fontsize=7)
        lower.set(xlabel="adherence", ylabel="Fréchet distance", yscale="log")
        for panel in (upper, lower):
            panel.grid(alpha=0.3)
            panel.legend(fontsize="small")
    figure.savefig(path, dpi=110)


def main(
    runs: tyro.conf.Positional[tuple[Path, ...]] = (),
    /,
    n: int = 1000,
    scales: tuple[float, ...] = (1, 1.5, 2, 3, 5),
    out: Path = Path("guidance.png"),
) -> None:
    """Measure, print and draw.

    Args:
        runs: Run folders, in addition to the mixture.
        n: Samples for each scale.
        scales: Scales of guidance.
        out: PNG to write.
    """
    console, curves = Console(stderr=True), []
    for subject in ("mixture", *runs):
        measure = mixture(3 * (n // 3)) if subject == "mixture" else model(load(subject), n, console)
        always = [measure(scale, None) for scale in scales]
        curves.append(Curves(Path(subject).name, always, [measure(scale, BETWEEN) for scale in scales]))
        name, span = curves[-1].name, f"on {BETWEEN.low} to {BETWEEN.high} of the clock"
        print(f"{name:12} scale  adherence  recall  Fréchet   | {span}")
        for one, other in zip(always, curves[-1].between, strict=True):
            cells = [f"{p.adherence:9.3f}  {p.recall:6.3f}  {p.frechet:8.3f}" for p in (one, other)]
            print(f"{'':12} {one.scale:5g}  {cells[0]}  | {cells[1]}", flush=True)
    draw(curves, out)


if __name__ == "__main__":
    tyro.cli(main)
