"""What a report may cost: held-out rows and samples on its sheet, in proportion to the length of the training."""

from dataclasses import dataclass, replace

import torch

from unfog.data.buckets import rows_of_training
from unfog.data.source import Data
from unfog.generation.sampler import Sampler
from unfog.generation.unmasking import Unmasking
from unfog.recipes.choices import REFERENCE, Choices
from unfog.recipes.recipe import Recipe

SHARE = 0.03
"""Share of the time that reports take, at most."""
FREE, LEAST = 5.0, 0.5
"""Seconds that each report may take whatever its share: of a training by images, and of one by the clock."""
HELD_OUT, FEW = 512, 8
"""Held-out rows on which the loss is measured, at most and at least."""
LOSS = 0.25
"""Share of a report for the held-out loss."""
SHEET, CROWD = 64, 1024
"""Samples on a sheet, at most, and on one where all share a panel."""
MANY = 1 << 20
"""More samples than any sheet shows."""


@dataclass(frozen=True)
class Reporting:
    """The size of reports.

    Attributes:
        rows: Held-out rows on which the loss is measured, at most.
        samples: Samples on a sheet, at most; 0 is no sheet.
        said: What is smaller than usual, in words; empty if nothing is.
    """

    rows: int = HELD_OUT
    samples: int = MANY
    said: str = ""

    def within(self, allowed: float, row: float, evaluations: int, usual: int) -> "Reporting":
        """Return reports that take `allowed` seconds.

        Args:
            allowed: Seconds.
            row: Seconds of a forward pass of one row.
            evaluations: Evaluations of the network that one sample takes; 0 if none are drawn.
            usual: Samples on a sheet where time does not matter.
        """
        if row * (self.rows + evaluations * usual) <= allowed:
            return self
        rows = min(self.rows, max(FEW, int(LOSS * allowed / row)))
        if not evaluations:
            return replace(self, rows=rows)
        samples = min(usual, max(0, int((allowed / row - rows) / evaluations)))
        if not samples:
            took = row * evaluations
            said = f"reports have no sheet, since one sample would take {took:,.0f} s: draw some afterwards"
        else:
            many = f"{samples} samples" if samples > 1 else "1 sample"
            said = f"sheets show {many} instead of {usual}, so that reports take only their share"
        return Reporting(rows, samples, said if samples < usual else self.said)


def allowed(seconds: float, reports: int, by_clock: bool) -> float:
    """Return the seconds that each of so many reports of a training may take.

    Args:
        seconds: What the training takes.
        reports: Their number.
        by_clock: Whether the training is by the clock; others have more room.
    """
    return max(LEAST if by_clock else FREE, SHARE * seconds / reports)


def fitting(seconds: float, report: float, reports: int) -> int:
    """Return how many of `reports` reports fit their share of `seconds`, at least 1."""
    return max(1, min(reports, int(SHARE * seconds / report)))


def evaluations(generator: object) -> int:
    """Return how many evaluations of the network a sample takes: 1 for what draws at once, 0 for what draws nothing."""
    if isinstance(generator, Sampler | Unmasking):
        return generator.evaluations
    return 0 if generator is None else 1


def arithmetic_of(device: torch.device, precision: str, choices: str = REFERENCE) -> str:
    """Return in words what computes, and with what numbers.

    Args:
        device: Where.
        precision: Of the network.
        choices: Those of the training.
    """
    count = torch.get_num_threads()
    threads = "" if device.type != "cpu" else f" with {count} threads" if count > 1 else " with 1 thread"
    return f"{device}{threads}, {precision}{', fused norms' if Choices.read(choices).fused else ''}"


def headline(recipe: Recipe, data: Data, parameters: int, conditional: bool, arithmetic: str) -> str:
    """Return one line on what is trained, on what data and how.

    Args:
        recipe: The recipe.
        data: Its data.
        parameters: Number of parameters.
        conditional: Whether the model is.
        arithmetic: From `arithmetic_of`.
    """
    rows = f"{len(rows_of_training(data.train)):,} {recipe.rows}, {len(data.heldout):,} held out"
    condition = f"conditioned on {recipe.kind('conditioning')}" if conditional else "unconditional"
    told = f"; {condition}" if recipe.objective.draws else ""  # what draws nothing has no condition to draw by
    patch = getattr(recipe.network, "patch", 1)  # fewer places than the size says: 48 pixels cost less than 32
    patches = f" on patches of {'×'.join([str(patch)] * len((recipe.shape or ())[1:]))}" if patch > 1 else ""
    return f"{rows}{told}; {parameters:,} parameters{patches}; {arithmetic}"
