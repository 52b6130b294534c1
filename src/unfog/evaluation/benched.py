"""What `unfog bench` found: quality against network evaluations, as tables, a plot and a recommendation."""

import json
from dataclasses import dataclass
from pathlib import Path

from unfog.evaluation.bench_plot import Curve, Point, draw_plot
from unfog.evaluation.compare import number, span
from unfog.evaluation.intervals import plain
from unfog.evaluation.leads import Cell, Lead
from unfog.evaluation.results import Measured, Setting
from unfog.evaluation.wording import CEILING, FLOOR
from unfog.runtime.brief import brief
from unfog.runtime.files import write_whole
from unfog.runtime.lines import aligned, counted, lines_of
from unfog.runtime.provenance import provenance
from unfog.runtime.version import __version__

NEAR = 0.1
"""How much worse than the best, as a share, the recommended setting may be."""


@dataclass(frozen=True)
class Bench:
    """Runs under many settings.

    Attributes:
        name: The run folders.
        nfe: The requested numbers of evaluations.
        cells: For each setting and requested number, the longest sampling that takes no more evaluations.
        left_out: Settings that could not run, and why.
        doubtful: Cells whose rule is unreliable on so few steps of such a grid: measured, and not recommended.
        leads: How the best tuned grid compares with the best other one, or the best of each run with that of the first.
        near: What is said of copies of training rows, of the recommended measurement of each run.
    """

    name: str
    nfe: tuple[int, ...]
    cells: dict[tuple[Setting, int], Measured]
    left_out: dict[str, str]
    doubtful: frozenset[Cell] = frozenset()
    leads: tuple[Lead, ...] = ()
    near: tuple[str, ...] = ()

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
        label = " ".join(filter(None, (setting.run, setting.solver)))
        if len({one.grid for one in settings}) > 1:
            label += f" {setting.grid}"
        if setting.guidance != 1 or len({one.guidance for one in settings}) > 1:
            label += f" ×{setting.guidance:g}"
        return label

    def describe(self, one: Measured) -> str:
        """Return a measurement as a sentence."""
        adherence = f", adherence {one.adherence.value:.1%}" if one.adherence else ""
        whose = f"{one.setting.run}, " if one.setting.run else ""
        guidance = f"guidance {one.setting.guidance:g}"
        return (
            f"{whose}{one.setting.solver}, grid {one.setting.grid}, {counted(one.steps, 'step')}, {guidance}: "
            f"{counted(one.nfe, 'evaluation')}, distance {number(one.fidelity.value)} {span(one.fidelity).strip()}, "
            f"recall {one.recall.value:.3f}{adherence}"
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
            "leads": [plain(lead._asdict()) for lead in self.leads],
            "near": self.near,
        }

    def table(self) -> str:
        """Return a row for each setting and a column for each number of evaluations, best ones marked."""
        guided = any(setting.guidance != 1 for setting, _ in self.cells)
        settings = dict.fromkeys(setting for setting, _ in self.cells)
        heads = ["evaluations up to", *map(str, self.nfe)]
        distances, recalls = [heads], [heads]
        for setting in settings:
            name = self.label(setting)
            distances.append([name, *(self._cell(setting, nfe, guided) for nfe in self.nfe)])
            recalls.append([name, *(self._recall(setting, nfe) for nfe in self.nfe)])
        score, recall = self.best.fidelity, self.best.recall
        scales = ["×2: guidance 2"] if any("×" in self.label(setting) for setting in settings) else []
        return "\n".join(
            [
                f"Fréchet distance{', in brackets adherence' if guided else ''}; * best with as many evaluations",
                aligned(distances),
                *scales,
                *lines_of(f"{FLOOR}: {number(score.floor)}; {CEILING}: {number(score.ceiling)} ({score.protocol})"),
                "",
                f"recall, the share of real data that is drawn; {FLOOR}: {recall.floor:.3f}",
                aligned(recalls),
                *(part for line in self._remarks() for part in lines_of(line)),
                *self.near,
                *lines_of(f"best:        {self.describe(self.best)}", 13),
                *lines_of(f"recommended: {self.describe(self.recommended)}", 13),
                *lines_of(f"{provenance()}; what was measured before is reused."),
            ]
        )

    def _remarks(self) -> list[str]:
        """Return what there is to say besides the figures."""
        return [
            *map(str, self.leads),
            *(f"left out: {name}: {why}" for name, why in self.left_out.items()),
            *self._doubts(),
        ]

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

    def _recall(self, setting: Setting, nfe: int) -> str:
        """Return the recall of one setting with so many evaluations."""
        one = self.cells.get((setting, nfe))
        return "-" if one is None else f"{one.recall.value:.3f}"

    def draw(self, path: Path) -> None:
        """Draw distance against evaluations into a PNG, a line for each setting, with the Pareto front.

        Raises: EnvironmentFailure: If the disk fails.
        """
        curves = self._curves()
        front = [curves[one.setting].points[self._line(one.setting).index(one)] for one in self.front]
        ticks = sorted({one.nfe for one in self.measured} & set(self.nfe)) or [one.nfe for one in self.front]
        score = self.best.fidelity
        title = f"{self.name}: {score.n} samples; bars as long as the 95 % intervals; points moved sideways"
        draw_plot(list(curves.values()), front, score.floor, ticks, title, path)

    def _curves(self) -> dict[Setting, Curve]:
        """Return a curve for each setting: runs and solvers differ in colour, grids and guidance in style."""
        settings = list(dict.fromkeys(setting for setting, _ in self.cells))
        drawn = list(dict.fromkeys((setting.run, setting.solver) for setting in settings))
        variants = list(dict.fromkeys((setting.grid, setting.guidance) for setting in settings))
        curves = {}
        for place, setting in enumerate(settings):
            points = [_point(one) for one in self._line(setting)]
            colour, variant = (
                drawn.index((setting.run, setting.solver)),
                variants.index((setting.grid, setting.guidance)),
            )
            curves[setting] = Curve(self.label(setting), colour, variant, points).moved(place, len(settings))
        return curves

    def _line(self, setting: Setting) -> list[Measured]:
        """Return the measurements of one setting by rising evaluations."""
        return sorted((one for one in self.measured if one.setting == setting), key=lambda one: one.nfe)


def _point(one: Measured) -> Point:
    """Return a measurement as a point of a plot."""
    low, high = one.fidelity.low or 0, one.fidelity.high or 0
    return Point(one.nfe, one.fidelity.value, (high - low) / 2)
