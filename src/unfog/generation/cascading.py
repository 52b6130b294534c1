"""Cascades: a model draws, and one or more others draw again, given what the one before has drawn."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from unfog.generation.drawing import Drawing
from unfog.generation.sampler import Sampler
from unfog.recipes.conditions import Following
from unfog.runtime.brief import brief


@dataclass(frozen=True, kw_only=True)
class Cascading(Drawing):
    """Draws samples of the first stage, each of which the next ones enlarge or, if it is an embedding, decode.

    Seed and condition are those of the first stage; every stage begins with noise of its own from the same seed. All
    stages draw as many samples at a time, so that sample i is the same in every request.

    Attributes:
        stages: The samplers, the first one of the smallest pictures, or of embeddings.

    Source: Ho et al. 2022, Cascaded Diffusion Models for High Fidelity Image Generation; Ramesh et al. 2022,
    Hierarchical Text-Conditional Image Generation with CLIP Latents.
    """

    takes: ClassVar[frozenset[str]] = frozenset({"steps", "guidance", "solver", "grid", "negative"})
    stages: tuple[Sampler, ...]

    __repr__ = brief

    @property
    def size(self) -> int:
        """Samples in a batch: as many as suits the stage that takes the fewest."""
        return min(stage.size for stage in self.stages)

    @property
    def classes(self) -> int:
        """Number of classes that the first stage is conditioned on."""
        return self.stages[0].classes

    @property
    def described(self) -> dict[str, object]:
        """What samples depend on in addition to model and condition, as plain values by name."""
        first, *others = (stage.described for stage in self._together())
        shown = {name: getattr(self.stages[0].settings, name) for name in ("steps", "guidance")}
        return {**first, **shown, **{f"stage {place}": own for place, own in enumerate(others, 2)}}

    def check(self, condition: Tensor | None) -> None:
        """Refuse settings of the first stage that do not fit its model; the others keep those of their runs."""
        self.stages[0].check(condition)

    def batches(self, condition: Tensor | None, count: int, skip: int = 0) -> Iterator[Tensor]:
        """Yield samples 0 to `count` - 1 on the CPU in batches, but for the first `skip` batches."""
        first_stage, *others = self._together()
        for start in range(skip * self.size, count, self.size):
            x = _last(first_stage, start, first_stage.padded(condition, start))
            for stage in others:
                assert isinstance(stage.conditioning, Following), "what a cascade is made of"
                x = _last(stage, start, stage.conditioning.following(stage.known, x))
            yield x[: count - start].cpu()

    def _together(self) -> tuple[Sampler, ...]:
        """Return the stages with the seed of the request, all of one number of samples at a time."""
        return tuple(
            replace(
                stage,
                seed=self.seed,
                precision=self.precision,
                settings=replace(stage.settings, batch=self.size),
            )
            for stage in self.stages
        )


def _last(stage: Sampler, first: int, condition: Tensor | None) -> Tensor:
    """Return a batch of a stage, decoded."""
    for step in stage.steps(first, condition):
        x = step.x
    with torch.inference_mode(), stage.arithmetic():
        return stage.codec.decode(x).cpu()
