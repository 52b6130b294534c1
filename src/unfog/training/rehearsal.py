"""A training in small: the steps of a few rows are timed, and what a whole step takes follows from them."""

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from unfog.data.codecs import Unlearned
from unfog.data.source import Batch, Data, Indices, Source
from unfog.recipes.recipe import Recipe
from unfog.runtime.device import arithmetic, peak_memory
from unfog.runtime.errors import UserError, out_of_memory
from unfog.training.choices import Ratios, choose
from unfog.training.counting import KEPT, Cost, cost, rows_within
from unfog.training.trainer import Trainer

SLOWEST = 2e10
"""Operations a second that any machine is taken to reach: what would take too long at this speed is not tried."""
BURST = 1.0
"""Seconds for which a step is repeated where it is shorter: of one short step the clock says little."""
MEMORY, LEAST = 1_400_000_000, 500_000_000
"""Bytes that the process may have in use while it is timed, and how many more it may take in any case."""
REACHED = 0.5
"""Share of the fastest convolution's speed that networks of the recipes reach, 0.33 to 0.8 (docs/speed.md)."""
FORWARD = 0.8
"""The same of an encoder, which has no backward pass (3,523 pictures of 128 pixels in 34 s)."""

TOO_MANY = (
    "{rows} rows at a time do not fit the memory of {device}: lower training.batch, or cut it into more portions with "
    "training.accumulate"
)
"""What is said where a portion does not fit a GPU."""


@dataclass(frozen=True)
class Line:
    """seconds = call + row·rows, what so many rows take together.

    Attributes:
        call: Seconds that a call takes, whatever its rows.
        row: Seconds of each row.
    """

    call: float
    row: float

    @classmethod
    def through(cls, few: tuple[int, float], more: tuple[int, float]) -> "Line":
        """Return the line through two points (rows, seconds), with neither part below 0, exact at the second."""
        (rows, seconds), most = few, more[1] / more[0]
        slope = (more[1] - seconds) / (more[0] - rows) if more[0] > rows else most
        slope = min(max(slope, 0.0), most)
        return cls(more[1] - slope * more[0], slope)

    def __call__(self, rows: float) -> float:
        """Return the seconds of so many rows."""
        return self.call + self.row * rows

    def scaled(self, calls: float, rows: float) -> "Line":
        """Return a line whose two parts are so many times as long."""
        return Line(calls * self.call, rows * self.row)


class Allowance(NamedTuple):
    """What a rehearsal may take.

    Attributes:
        until: When it ends, by `time.monotonic`.
        memory: Bytes that it may take in addition to those in use.
    """

    until: float
    memory: float

    @property
    def seconds(self) -> float:
        """Seconds that are left."""
        return max(0.0, self.until - time.monotonic())


def allowance(seconds: float) -> Allowance:
    """Return what may be taken from now on, so that the process stays below `MEMORY`."""
    return Allowance(time.monotonic() + seconds, max(LEAST, MEMORY - resident()))


def resident() -> int:
    """Return the bytes that the process has in memory, or where that is not known, had at most."""
    statm = Path("/proc/self/statm")
    if statm.is_file():
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return peak_memory(torch.device("cpu"))


@dataclass(frozen=True)
class Imagined:
    """A source whose rows are a few real ones again and again, cropped to a shape, with all rows' annotations.

    Attributes:
        source: The real one.
        x: A few of its rows.
        shape: Shape of a row.
    """

    source: Source
    x: Tensor
    shape: tuple[int, ...]
    slow: ClassVar[bool] = False

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.source.classes

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.source)

    def take(self, indices: Indices) -> Batch:
        """Return rows with these annotations."""
        rows = self.x[torch.from_numpy(indices % len(self.x))]
        inside: tuple[Any, ...] = (..., *map(slice, self.shape[1:]))
        return self.about(indices)._replace(x=rows[inside])

    def about(self, indices: Indices) -> Batch:
        """Return the annotations of these rows."""
        return self.source.about(indices)


@dataclass(frozen=True)
class Untrained(Unlearned):
    """Stands for an autoencoder: its latents have the right shape, and any numbers.

    Attributes:
        latent: Channels of a latent.
        factor: How many times smaller its sides are.
    """

    latent: int
    factor: int
    bounds: tuple[float, float] | None = field(default=None, init=False)
    bin_width: float | None = field(default=None, init=False)

    def shape(self, stored: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of a latent."""
        return (self.latent, *(-(-side // self.factor) for side in stored[1:]))

    def encode(self, x: Tensor) -> Tensor:
        """Return latents."""
        return torch.zeros(len(x), *self.shape(tuple(x.shape[1:])), device=x.device)

    def decode(self, z: Tensor) -> Tensor:
        """Return grey pictures."""
        return torch.zeros(len(z), 1, *(self.factor * side for side in z.shape[2:]), dtype=torch.uint8)


@dataclass(frozen=True)
class Rehearsal:
    """What was timed, and what follows from it.

    Attributes:
        whole: What a row of the recipe costs.
        tried: What a row costs in what was timed: less where a whole one is too large or takes too long.
        line: Seconds of a step in rows of the recipe.
        rows: How many rows were timed; none where the seconds follow from a convolution's speed.
        trainer: Took the steps, None where there were none.
        ratios: How many times as fast as the reference other ways to compute were, where they were timed.
    """

    whole: Cost
    tried: Cost
    line: Line
    rows: tuple[int, ...]
    trainer: Trainer | None
    ratios: Ratios = field(default_factory=Ratios)

    @property
    def speed(self) -> float:
        """Operations a second in a large batch."""
        return self.whole.operations / self.line.row if self.line.row else math.inf

    @property
    def cost(self) -> str:
        """Operations of an image, and those of a second, in words."""
        known = math.isfinite(self.speed)
        timed = f", {self.speed / 1e9:,.0f} billion a second" if known else "; other programs disturbed its timing"
        return f"{self.whole.operations / 1e9:,.2f} billion operations an image{timed}"

    @property
    def evaluation(self) -> Line:
        """Seconds of the network's evaluation without gradients."""
        share = self.whole.forward / max(1, self.whole.operations)
        return self.line.scaled(share, share)

    def step(self, recipe: Recipe) -> float:
        """Return the seconds of an optimizer step."""
        training = recipe.training
        return training.accumulate * self.line(training.batch / training.accumulate)


def rehearse(
    recipe: Recipe, data: Data, x: Tensor, folder: Path, device: torch.device, allowed: Allowance
) -> Rehearsal:
    """Time a training's steps with as many rows as time and memory allow, at most its own, and no larger than that.

    Args:
        recipe: The recipe, with its shape filled in and a codec that needs no training.
        data: Its rows, of which only the annotations are read.
        x: A few rows as stored.
        folder: Where nothing is written.
        device: Where to compute.
        allowed: What it may take.

    Raises: UserError: If the parts of the recipe do not fit together.
    """
    whole = cost(recipe, data.train)
    found = affordable(recipe, whole, data.train, allowed)
    if found is None:
        seconds = whole.operations / (REACHED * fastest(recipe, device))
        return Rehearsal(whole, whole, Line(0.0, seconds), (), None)
    small, tried = found
    trainer = Trainer(small, Data(*(Imagined(part, x, small.shape or ()) for part in data)), folder, device)
    portion = recipe.training.batch // recipe.training.accumulate
    ratios = choose(trainer) if tried == whole and rows_within(tried, allowed.memory) >= small.training.batch else {}
    line, rows = timed(lambda rows: _step(trainer, rows), portion, rows_within(tried, allowed.memory), allowed)
    return Rehearsal(whole, tried, line.scaled(1.0, whole.operations / max(1, tried.operations)), rows, trainer, ratios)


def affordable(recipe: Recipe, whole: Cost, source: Source, allowed: Allowance) -> tuple[Recipe, Cost] | None:
    """Return the recipe with batches of one portion, its sides halved until a row is small enough, and a row's cost.

    Returns: None if even the smallest row is too large, or the weights are.
    """
    small, tried = recipe, whole
    room, operations = allowed.memory - whole.state, SLOWEST * max(1.0, allowed.seconds) / 4
    while rows_within(tried, allowed.memory) < 1 or tried.operations > operations:
        larger = max(KEPT * tried.kept / room, tried.operations / operations) if room > 0 else math.inf
        # work grows with the square of a side, and with its fourth power in attention
        part = 2 ** max(1, math.ceil(math.log2(max(larger, 1.0)) / 3)) if larger < math.inf else 0
        channels, *sides = small.shape or (0,)
        if not part or not sides or any(side % part for side in sides):
            return None
        small = replace(small, shape=(channels, *(side // part for side in sides)))
        try:
            tried = cost(small, source)
        except UserError:  # the network takes no sides as small
            return None
    return replace(small, training=replace(small.training, accumulate=1, sharded=False, snapshots=0)), tried


def timed(take: Callable[[int], float], portion: int, most: int, allowed: Allowance) -> tuple[Line, tuple[int, ...]]:
    """Time steps of one row, and then of two numbers of rows, or of the whole portion if there is time.

    Args:
        take: Takes a step of so many rows, and returns its seconds.
        portion: Rows of a step.
        most: How many the memory holds.
        allowed: What it may take.

    Returns: Seconds in rows, and the numbers of rows that were timed.
    """
    first = take(1)  # kernels are chosen during the first step of each size
    if 2 * first > allowed.seconds:
        return Line(0.0, first), (1,)
    single = take(1)
    most = min(portion, max(1, most), int(allowed.seconds / (2.5 * single)))  # each size twice, the smaller a quarter
    if most <= 1:
        return Line(0.0, single), (1,)
    if most == portion:
        return Line.through((1, single), (portion, _mean(take, portion, allowed))), (portion,)
    few = max(1, most // 4)
    less = single if few == 1 else _mean(take, few, allowed)
    return Line.through((few, less), (most, _mean(take, most, allowed))), (few, most)


def _mean(take: Callable[[int], float], rows: int, allowed: Allowance) -> float:
    """Return the mean seconds of a step of so many rows: of one, or of as many as take a second."""
    take(rows)
    spent, count = take(rows), 1
    while spent < min(BURST, allowed.seconds):
        spent, count = spent + take(rows), count + 1
    return spent / count


def _step(trainer: Trainer, rows: int) -> float:
    """Take a step of so many rows, and return its seconds.

    Raises: UserError: If they do not fit the memory of the GPU.
    """
    draws = replace(trainer.draws, batch=rows, part=None)
    began = time.monotonic()
    try:
        trainer.descend(draws(trainer.step))
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise UserError(TOO_MANY.format(rows=rows, device=trainer.device)) from None
    return time.monotonic() - began


def encoding(operations: float, speed: float) -> float:
    """Return the seconds in which a picture is encoded: in the forward pass of one half of an autoencoder.

    Args:
        operations: Of a picture in the training of the autoencoder, six times as many.
        speed: Of the fastest convolution.
    """
    return operations / 6 / (FORWARD * speed)


def undisturbed(recipe: Recipe, device: torch.device) -> float:
    """Return what `fastest` is on a machine that nobody else uses, about: other programs make threads wait.

    One thread is hardly disturbed as long as there is a core for it, and several compute at most that many times as
    much.
    """
    found, count = fastest(recipe, device), torch.get_num_threads()
    if device.type != "cpu" or count == 1:
        return found
    torch.set_num_threads(1)
    try:
        return max(found, count * fastest(recipe, device))
    finally:
        torch.set_num_threads(count)


def fastest(recipe: Recipe, device: torch.device) -> float:
    """Return the operations a second of a 3×3 convolution of 64 channels, forward and backward."""
    weight = torch.randn(64, 64, 3, 3, device=device, requires_grad=True)
    x = torch.randn(16, 64, 32, 32, device=device, requires_grad=True)
    precision = recipe.training.precision_on(device, recipe.shape or ())

    def take(count: int) -> float:
        began = time.monotonic()
        with arithmetic(precision, device):
            float(torch.autograd.grad(F.conv2d(x, weight, padding=1).float().sum(), weight)[0].sum())
        return time.monotonic() - began

    take(1)
    seconds = min(take(1) for _ in range(3))
    return 4 * 9 * 64**2 * 16 * 32**2 / seconds
