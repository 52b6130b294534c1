"""What draws samples, whatever the objective: what requests, evaluation and reports see."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple, Protocol, final, runtime_checkable

import torch
from torch import Tensor

from unfog.data.codecs import Codec
from unfog.data.modality import Modality
from unfog.networks.direct import Likelihood
from unfog.recipes.conditions import Asked, Conditioning, Known
from unfog.runtime.device import Arithmetic, free_memory
from unfog.runtime.errors import UserError, whole_number

FILMED = 64
"""Samples of a film, at most, unless a batch has more."""


class Moment(NamedTuple):
    """How samples stand at one time of their denoising, in the space of the diffusion.

    Attributes:
        t: The time.
        x: The states, scaled down to unit variance where they exceed it, `(count, *shape)`.
        x0: What the model takes them to become; at the last time the samples themselves.
        number: Of the time, from 0.
        last: Number of the last time.
    """

    t: float
    x: Tensor
    x0: Tensor
    number: int
    last: int

    def kept(self, most: int) -> bool:
        """Say whether this moment is one of at most `most` that show the whole, first and last among them."""
        return self.number * (most - 1) % max(self.last, most - 1) < most - 1


@runtime_checkable
class Stepwise(Protocol):
    """A `Drawing` whose samples can be watched as they emerge."""

    @property
    def codec(self) -> Codec:
        """Maps states to what is stored."""
        ...

    def arithmetic(self) -> AbstractContextManager[object]:
        """Return the context in which the network computes."""
        ...

    def moments(self, count: int, asked: Asked = None) -> Iterator[Moment]:
        """Yield how samples 0 to `count` - 1 stand at every step, from the beginning to the samples themselves."""
        ...


@runtime_checkable
class Likely(Protocol):
    """A `Drawing` that can say how likely rows are."""

    known: Known
    seed: int

    @property
    def size(self) -> int:
        """Rows in a batch."""
        ...

    @property
    def likelihood(self) -> Likelihood:
        """What is known of log p(x)."""
        ...

    @property
    def measured(self) -> str:
        """How it is measured, in words."""
        ...

    def bits(self, x: Tensor, condition: Tensor | None, first: int = 0) -> Tensor:
        """Return -log2 p of rows as stored, or a bound of it, in bits a number, `(batch,)`.

        Args:
            x: Rows, `(batch, *shape)`.
            condition: The condition of each, `(batch, ...)`, or None.
            first: Number of the first row, which random numbers depend on.

        Raises: UserError: If the model knows none.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Drawing(ABC):
    """Draws samples in batches; sample i is the same in every request.

    Attributes:
        conditioning: Reads the condition of a request.
        known: What the model knows about its data.
        seed: Seed of the noise.
        precision: Arithmetic of the network.
        takes: The options of sampling that it has, besides the seed.
    """

    takes: ClassVar[frozenset[str]] = frozenset()
    conditioning: Conditioning
    known: Known
    seed: int = 0
    precision: Arithmetic = "float32"

    @property
    @abstractmethod
    def size(self) -> int:
        """Samples in a batch."""

    @property
    @abstractmethod
    def classes(self) -> int:
        """Number of classes that the model is conditioned on; 0 if it is not conditioned on one class."""

    @property
    @abstractmethod
    def described(self) -> dict[str, object]:
        """What samples depend on in addition to model and condition, as plain values by name."""

    @abstractmethod
    def check(self, condition: Tensor | None) -> None:
        """Refuse settings that do not fit the model.

        Raises: UserError: If they do not.
        """

    @abstractmethod
    def batches(self, condition: Tensor | None, count: int, skip: int = 0) -> Iterator[Tensor]:
        """Return samples 0 to `count` - 1 under a condition in batches on the CPU, except for the first `skip` batches.

        Several processes share the batches out, and all of them yield all.
        """

    @final
    @property
    def stored(self) -> tuple[int, ...]:
        """Shape of one sample as it is stored."""
        return self.known.stored or self.known.shape

    @final
    @property
    def modality(self) -> Modality:
        """What a sample is."""
        return self.known.modality

    @final
    def condition(self, count: int, asked: Asked = None) -> Tensor | None:
        """Return the condition of each sample, `(count, ...)`; None for unconditional models.

        Args:
            count: Number of samples.
            asked: What they should show: one thing for all or one for each: classes, prompts, values or pictures, as
                the model was trained; None asks for all classes, or some held-out captions, in turn.

        Raises: UserError: If the model cannot take the request.
        """
        return self.conditioning.ask(self.known, asked, count)

    @final
    def padded(self, condition: Tensor | None, first: int) -> Tensor | None:
        """Return the condition of one batch, whose first sample has this number, the last one repeated to fill it."""
        if condition is None:
            return None
        return condition[torch.arange(first, first + self.size).clamp(max=len(condition) - 1)]

    @final
    def batches_of(self, count: int) -> int:
        """Return in how many batches so many samples are drawn."""
        return -(-count // self.size)

    @final
    def counted(self, count: int) -> int:
        """Return a number of samples, checked.

        Raises: UserError: If it is no whole number, 1 or more, or the samples do not fit into the free memory.
        """
        count = whole_number("the number of samples", count, 1)
        needed, free = 4 * count * math.prod(self.stored), free_memory(torch.device("cpu"))
        if needed > free:
            raise UserError(
                f"{count:,} samples take {needed / 2**30:,.1f} GiB and {free / 2**30:,.1f} are free: draw fewer at a "
                "time, or let `unfog sample` write them to files"
            )
        return count

    def __call__(
        self, count: int, asked: Asked = None, *, seed: int | None = None, condition: Tensor | None = None
    ) -> Tensor:
        """Return `count` samples, `(count, *shape)`, as stored: uint8 for pictures.

        Args:
            count: Number of samples.
            asked: What they should show, see `condition`.
            seed: Seed of the noise; default: its own.
            condition: The condition as the model takes it, `(count, ...)`, where it is known already.

        Raises: UserError: If `count` is below 1, or the model cannot take the request.
        """
        count = self.counted(count)
        if seed is not None:
            return replace(self, seed=seed)(count, asked, condition=condition)
        condition = self.condition(count, asked) if condition is None else condition
        return torch.cat(list(self.batches(condition, count)))
