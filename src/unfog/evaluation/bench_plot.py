"""The plot of `unfog bench`: distance against network evaluations, with the Pareto front."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from unfog.runtime.files import whole

STYLES, MARKERS = ("-", "--", ":", "-."), "osD^v"

FEW = 4
"""Settings up to which all intervals are drawn."""


class Point(NamedTuple):
    """A measurement: evaluations, distance, and half the length of its interval."""

    nfe: float
    distance: float
    half: float


@dataclass(frozen=True)
class Curve:
    """The measurements of one setting.

    Attributes:
        label: Name of the setting.
        colour: Number of its colour: one for each run and solver.
        variant: Number of its style: one for each grid and guidance.
        points: By rising evaluations.
    """

    label: str
    colour: int
    variant: int
    points: list[Point]

    def moved(self, place: int, places: int) -> "Curve":
        """Return the curve a little to the side, so that equal points of several curves stand next to each other."""
        shift = 1.08 ** ((place + 0.5) / places - 0.5)
        return Curve(
            self.label, self.colour, self.variant, [point._replace(nfe=point.nfe * shift) for point in self.points]
        )


def draw_plot(
    curves: Sequence[Curve], front: Sequence[Point], floor: float, ticks: Sequence[int], title: str, path: Path
) -> None:
    """Draw distance against evaluations into a PNG, a line for each setting, with the Pareto front.

    Values and the floor share the bias of few samples, and the intervals are free of it: the bars have the length of
    the intervals, but stand around the values. Of many settings only points of the front have some.

    Args:
        curves: The settings, all positioned.
        front: Points of the curves that nothing surpasses.
        floor: Distance of real held-out data.
        ticks: Evaluations that are written below the axis.
        title: Title of the plot.
        path: The file.

    Raises: EnvironmentFailure: If the disk fails.
    """
    from matplotlib.figure import Figure  # here, since matplotlib takes half a second to import

    distances = [point.distance for curve in curves for point in curve.points]
    least = 0.7 * min(distance for distance in [floor, *distances] if distance > 0)  # the axis is logarithmic
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.subplots()
    for curve in curves:
        _draw_curve(axes, curve, least, curve.points if len(curves) <= FEW else front)
    x, y = [point.nfe for point in front], [max(least, point.distance) for point in front]
    axes.plot(x, y, "o", color="black", fillstyle="none", markersize=14, label="Pareto front")
    axes.axhline(max(least, floor), linestyle="--", color="0.4", label="real data")
    axes.set(xscale="log", yscale="log", ylim=(least, None))
    axes.set(xlabel="network evaluations per sample", ylabel="Fréchet distance")
    _set_ticks(axes, ticks)
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right center", fontsize=9, frameon=False)
    with whole(path) as part:
        figure.savefig(part, dpi=120, format="png")


def _draw_curve(axes: Any, curve: Curve, least: float, barred: Sequence[Point]) -> None:
    """Draw one setting: a line through its points, and a bar for the interval of some."""
    colour, style = f"C{curve.colour}", STYLES[curve.variant % len(STYLES)]
    marker = MARKERS[curve.variant % len(MARKERS)]
    x = [point.nfe for point in curve.points]
    y = [max(least, point.distance) for point in curve.points]
    axes.plot(x, y, style, marker=marker, color=colour, linewidth=1, markersize=4, label=curve.label)
    for value, point in zip(y, curve.points, strict=True):
        if point in barred:
            low, high = max(least, value - point.half), value + point.half
            axes.vlines(point.nfe, low, high, color=colour, linewidth=1.2, alpha=0.25)


def _set_ticks(axes: Any, ticks: Sequence[int]) -> None:
    """Write evaluations below the axis, and plain numbers next to the other."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 7)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
