"""A sense of proportion: what to expect of a training, from measured runs and counted operations."""

import math
from collections.abc import Iterable
from itertools import combinations
from typing import Literal, NamedTuple

from torch import Tensor

from unfog.data.modality import images
from unfog.recipes.recipe import Recipe
from unfog.recipes.sources import CIFAR10, MNIST, Digits, Fashion, Folder, Shards
from unfog.runtime.progress import duration

Kind = Literal["digits", "letters", "fashion", "drawings", "photos"]
STAGES = (
    "noise in the colours of the pictures",
    "colours and blobs",
    "outlines",
    "{things} that one can name",
    "{things} much like real ones",
)
"""What one sees on a sheet, from the least to the most."""
NOISE, BLOBS, OUTLINES, NAMED, REAL = range(len(STAGES))
THINGS: dict[Kind, str] = {
    "digits": "digits",
    "letters": "letters",
    "fashion": "clothes",
    "drawings": "drawings",
    "photos": "things",
}
FLAT, FLAT_GREY = 0.18, 0.6
"""Share of neighbouring pixels that are equal, from which on colour pictures are drawings and grey ones letters.

Eight pictures each: CIFAR-10 0.05, emoji 0.30 to 0.49; MNIST 0.79, Fashion-MNIST 0.46."""
LIKE = 1.1
"""Factor in operations within which a training counts as the measured one."""
NEAR = 1.5
"""Factor in operations within which a run says something of another one."""
SAME = 1.25
"""The same, for runs that are as long: they widen what follows from two others."""
SPAN = 5.0
"""Factor in operations between two runs, at most, on whose power law others are taken to lie."""
SPREAD = 1.6
"""Factor by which the distance of a like run may differ: over three seeds and two recipes it was 1.1 to 1.5."""
SIDES = (64, 48, 32)
"""Sides that are suggested, where the pictures are no smaller."""


class Reached(NamedTuple):
    """What a training reached.

    Attributes:
        kind: Of pictures.
        side: Of a picture.
        images: On which it was trained.
        each: Operations that an image takes, in billions.
        stage: What its sheet shows, a place in `STAGES`.
        distance: The Fréchet distance in the features of the data's own classifier, at guidance 1.
        floor: That of held-out pictures.
        latent: Images on which an autoencoder was trained before, and the operations of each in billions.
        source: The page of the figures.
    """

    kind: Kind
    side: int
    images: int
    each: float
    stage: int
    distance: float | None
    floor: float | None
    latent: tuple[int, float] = (0, 0.0)
    source: str = "docs/proportion.md"

    @property
    def operations(self) -> float:
        """All operations of the training."""
        return 1e9 * (self.images * self.each + self.latent[0] * self.latent[1])


RUNS = (
    Reached("digits", 8, 1_280, 0.05, NOISE, 8.00, 0.178),
    Reached("digits", 8, 3_200, 0.05, OUTLINES, 5.09, 0.178),
    Reached("digits", 8, 6_400, 0.05, NAMED, 1.26, 0.178),
    Reached("digits", 8, 12_800, 0.05, NAMED, 0.530, 0.178),
    Reached("digits", 8, 75_008, 0.05, REAL, 0.227, 0.178, source="docs/measurements.md"),
    Reached("digits", 28, 2_560, 0.608, OUTLINES, 28.6, 0.411, source="docs/speed/race.md"),
    Reached("digits", 28, 6_720, 0.608, OUTLINES, 10.5, 0.411, source="docs/speed/race.md"),
    Reached("digits", 28, 16_256, 0.608, NAMED, 5.83, 0.411, source="docs/speed/race.md"),
    Reached("digits", 28, 33_301, 0.608, NAMED, 3.73, 0.411, source="docs/speed/race.md"),
    Reached("digits", 28, 54_208, 0.608, NAMED, 2.65, 0.411, source="docs/speed/race.md"),
    Reached("digits", 28, 95_509, 0.608, REAL, 1.91, 0.411, source="docs/speed/race.md"),
    Reached("fashion", 28, 17_152, 0.608, NAMED, 6.43, 0.585, source="docs/speed/race-fashion.md"),
    Reached("fashion", 28, 90_624, 0.608, NAMED, 2.15, 0.585, source="docs/speed/race-fashion.md"),
    Reached("fashion", 28, 290_560, 0.608, REAL, 0.527, 0.122, source="docs/measurements.md"),
    Reached("drawings", 32, 12_032, 0.797, BLOBS, 4.70, 0.946),
    Reached("drawings", 32, 56_768, 0.797, NAMED, 1.26, 0.966),
    Reached("drawings", 64, 12_000, 0.803, NOISE, 19.6, 0.841),
    Reached("drawings", 64, 43_776, 0.803, BLOBS, 1.73, 1.30),
    Reached("drawings", 64, 45_760, 0.803, BLOBS, 2.33, 1.25),
    Reached("drawings", 64, 95_552, 0.803, OUTLINES, 1.25, 1.30),
    Reached("drawings", 64, 139_648, 0.801, NAMED, 1.04, 0.688, (18_912, 4.5), "docs/latents.md"),
    Reached("drawings", 64, 272_416, 0.803, NAMED, 1.15, 0.688, source="docs/latents.md"),
    Reached("drawings", 128, 6_464, 0.80, NOISE, 21.7, 1.38, (448, 16.65)),
    Reached("drawings", 128, 19_872, 0.80, NOISE, 16.9, 1.38, (608, 16.65)),
    Reached("photos", 32, 12_032, 0.797, BLOBS, 3.61, 0.281),
    Reached("photos", 32, 55_424, 0.797, BLOBS, 1.41, 0.153),
    Reached("photos", 32, 112_704, 0.797, OUTLINES, 0.937, 0.153),
    Reached("photos", 64, 10_816, 0.803, NOISE, 9.33, 0.198),
    Reached("photos", 64, 12_000, 0.803, NOISE, 19.5, 0.313),
    Reached("photos", 64, 29_760, 0.803, BLOBS, 2.83, 0.157),
    Reached("photos", 64, 42_560, 0.803, BLOBS, 1.91, 0.198),
    Reached("photos", 128, 5_984, 0.80, NOISE, 12.2, 0.201, (800, 16.65)),
    Reached("photos", 128, 11_328, 0.80, NOISE, 7.58, 0.201, (1_184, 16.65)),
)
"""What was measured; docs/proportion.md says how."""


class Outlook(NamedTuple):
    """What to expect.

    Attributes:
        stage: A place in `STAGES`; None where no run says anything, or each took more operations.
        interpolated: Whether it follows from runs at another side, whose operations count with the square of the side.
        between: The Fréchet distance, from and to, and its floor; None where no run is near.
        named: Operations at which one can name what is seen; None where no run reached that.
    """

    stage: int | None
    interpolated: bool
    between: tuple[float, float, float] | None
    named: float | None


def kind_of(recipe: Recipe, x: Tensor) -> Kind | None:
    """Return the kind of a recipe's pictures: known, or guessed from a few of them; None if they are no pictures.

    Args:
        recipe: The recipe.
        x: A few rows as stored, `(rows, channels, height, width)`.
    """
    known: dict[type, Kind] = {Digits: "digits", MNIST: "digits", Fashion: "fashion", CIFAR10: "photos"}
    if type(recipe.data) in known:
        return known[type(recipe.data)]
    if not isinstance(recipe.data, Folder | Shards) or not images.fits(tuple(x.shape[1:]), x.dtype) or x.shape[-1] < 2:
        return None
    flat = float((x[..., 1:] == x[..., :-1]).all(1).float().mean())
    if x.shape[1] == 1:
        return "letters" if flat > FLAT_GREY else "fashion"
    return "drawings" if flat > FLAT else "photos"


def outlook(kind: Kind, side: int, operations: float, latents: bool, runs: Iterable[Reached] = RUNS) -> Outlook:
    """Say what pictures to expect after so many operations.

    Args:
        kind: Of pictures.
        side: The longer one.
        operations: Of the whole training.
        latents: Whether it works in the latents of an autoencoder.
        runs: What was measured.
    """
    # what can be named at a side need not be nameable at less than half of it
    alike = [run for run in runs if run.kind == _measured_as(kind) and run.side <= 2 * side]
    if not alike:
        return Outlook(None, False, None, None)
    needed = [(run.operations * (side / run.side) ** 2, run) for run in alike]
    reached = [(run.stage, run.side == side) for least, run in needed if least <= LIKE * operations]
    if not reached and min(needed)[1].stage == NOISE:  # less than noise is noise
        reached = [(NOISE, min(needed)[1].side == side)]
    stage, measured = max(reached, default=(None, True))
    # those of this side first
    named = [(run.side != side, least) for least, run in needed if run.stage >= NAMED]
    own = [run for run in alike if run.side == side and bool(run.latent[0]) == latents]
    between = None if kind == "letters" else _between(own, operations)
    return Outlook(stage, not measured, between, min(named)[1] if named else None)


def _measured_as(kind: Kind) -> Kind:
    """Return the kind whose runs say what to expect."""
    return "digits" if kind == "letters" else kind


def _between(runs: list[Reached], operations: float) -> tuple[float, float, float] | None:
    """Return the distance to expect: on the power law through the two nearest runs, or that of runs about as long.

    Both runs have about the same floor, since distances of other numbers of pictures are not comparable.
    """
    scored = sorted((run.operations, run.distance, run.floor) for run in runs if run.distance and run.floor)
    around = [
        (after / before, before, after, high, low, other)
        for (before, high, floor), (after, low, other) in combinations(scored, 2)
        if before <= operations <= after <= SPAN * before and max(floor, other) < NEAR * min(floor, other)
    ]
    if around:
        ratio, before, _, high, low, other = min(around)
        middle = high * (low / high) ** (math.log(operations / before) / math.log(ratio)) if ratio > 1 else high
        found = [middle, *(distance for done, distance, _ in scored if done / SAME <= operations <= SAME * done)]
        return min(found) / SPREAD, max(found) * SPREAD, other
    near = [(distance, floor) for done, distance, floor in scored if done / NEAR <= operations <= NEAR * done]
    if not near:
        return None
    return min(one for one, _ in near) / SPREAD, max(one for one, _ in near) * SPREAD, near[0][1]


def sentence(kind: Kind, side: int, operations: float, latents: bool, speed: float | None = None) -> str | None:
    """Return in one line what to expect of a training, and what would show more; None where nothing was measured.

    Args:
        kind: Of pictures.
        side: The longer one.
        operations: Of the whole training.
        latents: Whether it works in the latents of an autoencoder.
        speed: Operations a second.
    """
    found = outlook(kind, side, operations, latents)
    if found.stage is None and found.named is None:
        return None
    things = THINGS[kind]
    text = f"at {side} pixels" + ("" if speed is None else f" and {duration(operations / speed)}") + ": "
    if found.stage is None:
        text += "shorter than any measured run"
    else:
        where = "interpolated from other sizes" if found.interpolated else "from measured runs"
        text += f"{STAGES[found.stage].format(things=things)} ({where})"
    if found.between is not None:
        low, high, floor = found.between
        text += f", Fréchet distance {low:.2g} to {high:.2g} (real pictures {floor:.2g})"
    if found.stage is not None and found.stage >= NAMED:
        return text
    smaller = next((one for one in SIDES if one < side and _named(kind, one, operations)), None)
    ways = [f"{smaller} pixels"] if smaller is not None else []
    if found.named is not None and speed is not None:
        ways.append(duration(found.named / speed))
    if ways:
        return f"{text}; {' or '.join(ways)} for {things} that one can name"
    if found.named is None:
        return f"{text}; no measured run on {kind} was long enough for {things} that one can name"
    return text


def _named(kind: Kind, side: int, operations: float) -> bool:
    """Return whether one can name what a model draws at a side."""
    return (outlook(kind, side, operations, False).stage or 0) >= NAMED


def suggested(kind: Kind, most: int, operations: float) -> int | None:
    """Return the largest usual side at which one can name things, else the smallest at which most is to be seen.

    Args:
        kind: Of pictures.
        most: The largest side.
        operations: Of the whole training.

    Returns: The side; None where nothing was measured.
    """
    if not any(run.kind == _measured_as(kind) for run in RUNS):
        return None
    sides = [side for side in SIDES if side <= most] or [most]
    stages = {side: min(outlook(kind, side, operations, False).stage or NOISE, NAMED) for side in sides}
    return max(sides, key=lambda side: (stages[side], side if stages[side] == NAMED else -side))
