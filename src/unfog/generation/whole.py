"""Generators of objectives that are no samplers, with what evaluation and requests for samples need of a sampler."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from unfog.data.modality import Modality, images
from unfog.recipes.conditions import Asked, ClassConditioning, Conditioning, Known
from unfog.recipes.objective import Generator
from unfog.runtime.device import Precision, arithmetic
from unfog.runtime.errors import UserError


@dataclass(frozen=True)
class Whole:
    """A generator that draws all samples of a request in one call; the counterpart of `Sampler`.

    Attributes:
        generator: The objective's generator.
        conditioning: Reads the condition of a request.
        known: What the model knows about its data.
        device: Where the model computes.
        precision: Arithmetic of the network.
        seed: Seed of the noise.
    """

    generator: Generator
    conditioning: Conditioning
    known: Known
    device: torch.device
    precision: Precision = "float32"
    seed: int = 0

    size: ClassVar[int] = sys.maxsize
    """Samples in a batch: all of them."""

    @property
    def stored(self) -> tuple[int, ...]:
        """Shape of one sample as it is stored."""
        return self.known.stored or self.known.shape

    @property
    def modality(self) -> Modality:
        """What a sample is."""
        return self.known.modality

    @property
    def classes(self) -> int:
        """Number of classes that the model is conditioned on; 0 if it is not conditioned on one class."""
        return len(self.known.classes) if isinstance(self.conditioning, ClassConditioning) else 0

    @property
    def described(self) -> dict[str, object]:
        """What samples depend on in addition to model and condition, as plain values by name."""
        return {"seed": self.seed}

    def condition(self, count: int, asked: Asked = None) -> Tensor | None:
        """Return the condition of each sample, `(count, ...)`; None for unconditional models.

        Raises: UserError: If the model cannot be conditioned on `asked`.
        """
        return self.conditioning.ask(self.known, asked, count)

    def check(self, condition: Tensor | None) -> None:
        """Refuse nothing: a generator has no settings."""

    @torch.inference_mode()
    def batches(self, condition: Tensor | None, count: int, skip: int = 0) -> Iterator[Tensor]:
        """Yield samples 0 to `count` - 1 on the CPU in one batch, or nothing if it is skipped."""
        if not skip:
            with arithmetic(self.precision, self.device):
                drawn = self.generator(count, seed=self.seed, condition=condition)
            self._check(drawn, count)
            yield drawn.cpu()

    def _check(self, drawn: object, count: int) -> None:
        """Refuse what are no samples as they are stored: every verb relies on it."""
        pixels = self.modality == images
        found = f"a {type(drawn).__name__}"
        if isinstance(drawn, Tensor):
            numbers = drawn.dtype == torch.uint8 if pixels else drawn.is_floating_point() and drawn.isfinite().all()
            if tuple(drawn.shape) == (count, *self.stored) and numbers:
                return
            found = f"{str(drawn.dtype).removeprefix('torch.')} of shape {tuple(drawn.shape)}"
        kind = "uint8" if pixels else "finite floats"
        raise UserError(
            f"a generator must return {kind} of shape {(count, *self.stored)}, and this one returns {found}"
        )

    def __call__(
        self, count: int, asked: Asked = None, *, seed: int | None = None, condition: Tensor | None = None
    ) -> Tensor:
        """Return `count` samples, `(count, *shape)`, as stored.

        Args:
            count: Number of samples.
            asked: The condition of the request.
            seed: Seed of the noise; default: its own.
            condition: The condition as the model takes it, `(count, ...)`, if it is known already.

        Raises: UserError: If `count` is below 1, the model cannot be conditioned on `asked`, or the generator returns
            anything else than so many samples.
        """
        if count < 1:
            raise UserError(f"the number of samples must be 1 or more, not {count}")
        seeded = self if seed is None else replace(self, seed=seed)
        return torch.cat(list(seeded.batches(self.condition(count, asked) if condition is None else condition, count)))
