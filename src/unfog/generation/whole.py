"""Generators of objectives that are no samplers, with what evaluation and requests for samples need of a sampler."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from unfog.generation.drawing import Drawing
from unfog.recipes.conditions import ClassConditioning
from unfog.recipes.objective import Generator
from unfog.runtime.brief import brief
from unfog.runtime.device import arithmetic
from unfog.runtime.errors import UserError


@dataclass(frozen=True)
class Whole(Drawing):
    """A generator that draws all samples of a request in one call; the counterpart of `Sampler`.

    Attributes:
        generator: The objective's generator.
        device: Where the model computes.
    """

    generator: Generator
    device: torch.device

    __repr__ = brief

    @property
    def size(self) -> int:
        """Samples in a batch: all of them."""
        return sys.maxsize

    @property
    def classes(self) -> int:
        """Number of classes that the model is conditioned on; 0 if it is not conditioned on one class."""
        return len(self.known.classes) if isinstance(self.conditioning, ClassConditioning) else 0

    @property
    def described(self) -> dict[str, object]:
        """What samples depend on in addition to model and condition, as plain values by name."""
        return {"seed": self.seed}

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
        pixels = self.modality.pixels
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
