"""The batch of step k: rows, augmentation, conditions, times and noise, all functions of (seed, k)."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from queue import Queue

import torch
from torch import Tensor

from unfog.data.codecs import Codec
from unfog.data.source import Augmentation, Batch, Indices, Source, ordered
from unfog.diffusion.times import stratify
from unfog.recipes.objective import Draw
from unfog.runtime.randomness import normal, uniform
from unfog.training.latents import Flip


@dataclass(frozen=True)
class Draws:
    """The batches of a run, by number.

    Attributes:
        source: The rows.
        codec: Encodes the rows.
        augment: Augments the rows before encoding.
        batch: Rows per batch.
        seed: Seed of the run.
        read: (rows, encoded rows, uniform numbers) -> condition.
        dropout: Probability with which a condition is dropped.
        stratified: Whether times are stratified over the batch.
        part: This process's slice of a batch; default: all rows.
        normal: Draws the noise.
    """

    source: Source
    codec: Codec
    augment: Augmentation | Flip
    batch: int
    seed: int
    read: Callable[[Batch, Tensor, Tensor], Tensor | None]
    dropout: float
    stratified: bool
    part: slice | None = None
    normal: Callable[[int, str, int, int, int, tuple[int, ...]], Tensor] = normal

    def rows(self, step: int) -> Indices:
        """Return the row indices of a step, `(batch,)`, or this process's part of them."""
        return ordered(self.source, self.seed, step * self.batch, self.batch)[self.part or slice(None)]

    def __call__(self, step: int) -> Draw:
        """Return the batch of a step, or this process's part of it."""
        part = self.part or slice(0, self.batch)
        first, count = part.start, part.stop - part.start
        position = step * self.batch + first
        rows = self.source.take(self.rows(step))
        x0 = self.codec.encode(self.augment(rows.x, self.seed, position))
        condition = self.read(rows, x0, torch.from_numpy(uniform(self.seed, "condition", step, first, count, 4)))
        u = torch.from_numpy(uniform(self.seed, "times", step, 0, self.batch)[:, 0])
        # the stream's name is historical: another name would change every run
        drop = torch.from_numpy(uniform(self.seed, "labels", step, first, count)[:, 0] < self.dropout)
        if self.stratified:
            u = stratify(u)
        noise = self.normal(self.seed, "noise", step, first, count, tuple(x0.shape[1:]))
        changes, numbers = self.augment.numbers(self.seed, position, count), torch.arange(position, position + count)
        return Draw(x0, condition, drop, u[part], noise, changes, numbers)


def pinned(draw: Draw) -> Draw:
    """Return a batch with its CPU tensors in pinned memory, for asynchronous copies to a GPU."""
    parts = {name: part for name, part in draw._asdict().items() if part is not None and part.device.type == "cpu"}
    return draw._replace(**{name: part.pin_memory() for name, part in parts.items()})


def portions(draw: Draw, size: int) -> Iterator[Draw]:
    """Split a batch into micro-batches of `size` rows."""
    for first in range(0, len(draw.x0), size):
        rows = slice(first, first + size)
        yield Draw(*(None if part is None else part[rows] for part in draw))  # type: ignore[arg-type]  # no condition


def in_turn(draw: Callable[[int], Draw], first: int) -> Iterator[Draw]:
    """Yield draw(first), draw(first + 1), ... lazily, without end."""
    return (draw(step) for step in count(first))


def ahead(draw: Callable[[int], Draw], first: int, depth: int = 2) -> Iterator[Draw]:
    """Yield the same batches as `in_turn`, prefetched in a thread.

    Pays off for slow sources and for GPUs. On a CPU the thread slows the network down more than it helps (MNIST:
    200 ms a step instead of 140).

    Args:
        draw: Returns the batch of a step.
        first: First step.
        depth: Most batches in the queue.

    Yields: The batches in order. An error in the thread is re-raised here.
    """
    queue: Queue[Draw | BaseException] = Queue(depth)
    stop = threading.Event()

    def work() -> None:
        try:
            for step in count(first):
                queue.put(draw(step))
                if stop.is_set():
                    return
        except BaseException as error:  # re-raised in the caller's thread
            queue.put(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            item = queue.get()
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        while thread.is_alive():
            while not queue.empty():
                queue.get_nowait()
            thread.join(0.05)
