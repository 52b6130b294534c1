"""The denoising objective: a diffusion model, trained to separate data from noise."""

import warnings
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from PIL import Image
from torch import Tensor, nn

from unfog.diffusion.denoiser import Denoiser
from unfog.diffusion.objectives import denoising_loss
from unfog.diffusion.times import Importance
from unfog.generation.sampler import Sampler
from unfog.networks.conditioning import Cond
from unfog.recipes.build import build_denoiser
from unfog.recipes.fitting import doubt_grid, doubt_inputs, doubt_times
from unfog.recipes.objective import Context, Draw, Generator, HeldOut, OneLoss
from unfog.recipes.recipe import Recipe
from unfog.recipes.words import in_words
from unfog.runtime import distributed
from unfog.runtime.lines import counted
from unfog.training.reporting import CROWD, SHEET

BLANK = 1e-3
"""Standard deviation of stored samples up to which they count as blank."""
PORTIONS = 8
"""Portions of samples on a sheet, at most: large models draw one at a time."""
HISTORY = "times/losses"
"""Name of the statistics of importance-sampled times."""


@dataclass(frozen=True)
class Denoising(OneLoss):
    """w(t)·|target - output|², a denoiser trained at the recipe's times, with its weighting."""

    draws: ClassVar[bool] = True
    denoises: ClassVar[bool] = True

    def build(self, recipe: Recipe, most: int) -> nn.Module:
        """Return the denoiser."""
        return build_denoiser(recipe, most)

    def check(self, model: nn.Module, held_out: HeldOut, context: Context) -> None:
        """Build the sampler's denoiser once, which raises a UserError if that fails; warn of poor choices."""
        sampler = Sampler.of(context.recipe, _denoiser(model))
        sampler.denoise(held_out(np.zeros(1, dtype=np.int64)).condition)
        doubt_times(context.recipe.schedule, context.recipe.times)
        doubt_inputs(context.recipe.schedule, context.recipe.inputs)
        doubt_grid(context.recipe.schedule, context.recipe.grid, context.recipe.sampling.steps)

    def state(self, context: Context) -> dict[str, Tensor]:
        """Return empty statistics of importance-sampled times, if the recipe uses them."""
        times = context.recipe.times
        return {HISTORY: times.history()} if isinstance(times, Importance) else {}

    def prepare(self, batch: Draw, context: Context) -> tuple[Draw, Tensor]:
        """Return the batch and its weights, with importance-sampled times if the recipe uses them."""
        times = context.recipe.times
        if not isinstance(times, Importance):
            return super().prepare(batch, context)
        u, weight = times.spread(batch.u, context.state[HISTORY])
        return batch._replace(u=u), weight

    def losses(self, model: nn.Module, batch: Draw, context: Context) -> dict[str, Tensor]:
        """Return the denoising loss of each row."""
        return {"loss": self.measured(model, batch, context)}

    def update(self, batch: Draw, losses: Tensor, context: Context) -> dict[str, Tensor]:
        """Update the statistics with the losses of all processes."""
        times = context.recipe.times
        if not isinstance(times, Importance):
            return super().update(batch, losses, context)
        u, losses = distributed.gather(batch.u), distributed.gather(losses)
        return {HISTORY: times.update(context.state[HISTORY], u, losses)}

    def measured(self, model: nn.Module, batch: Draw, context: Context) -> Tensor:
        """Return the denoising loss of each row."""
        denoiser, recipe = _denoiser(model), context.recipe
        return denoising_loss(
            denoiser,
            batch.x0,
            condition_of(denoiser, batch),
            times=recipe.times,
            weighting=recipe.weighting,
            u=batch.u,
            noise=batch.noise,
            bound=recipe.variance.bound,
            bin_width=context.codec.bin_width,
            bounds=context.codec.bounds,
        )

    def preview(self, model: nn.Module, held_out: HeldOut, context: Context) -> Image.Image:
        """Return a sheet of samples."""
        sampler = Sampler.of(context.recipe, _denoiser(model), precision=context.precision)
        most = min(SHEET, PORTIONS * sampler.size)
        at_once = replace(
            sampler.settings, batch=max(most, sampler.size)
        )  # a sheet is no request that must be repeated
        sampler = replace(sampler, settings=at_once)
        whole = sampler.classes if 1 < sampler.classes <= most else 8  # of as many a sheet has a multiple
        count = CROWD if sampler.modality.together else whole * max(1, most // whole)
        if context.shown is not None and context.shown < count:
            count = context.shown - context.shown % whole if context.shown > whole else context.shown
            sampler = replace(sampler, settings=replace(at_once, batch=count))
        named = sampler.classes or sampler.conditioning.captioned
        condition = sampler.condition(count) if named else held_out(np.arange(count)).condition
        samples = sampler(count, condition=condition)
        if not samples.float().std() > BLANK:
            warnings.warn(
                "all samples of a report were one colour: if later sheets in the run folder are, too, lower "
                "optimizer.lr, or check the training data with `unfog inspect` and `unfog replay`",
                stacklevel=2,
            )
        labels = in_words(sampler.conditioning, sampler.known, condition, None, count)
        settings = sampler.settings
        return sampler.modality.labelled(
            samples, labels, f"{counted(settings.steps, 'step')}, guidance {settings.guidance:g}"
        )

    def generator(self, recipe: Recipe, model: nn.Module) -> Generator:
        """Return the recipe's sampler."""
        return Sampler.of(recipe, _denoiser(model))


def condition_of(denoiser: Denoiser, batch: Draw) -> Cond | None:
    """Return what the network is given of the rows of a batch, besides state and time."""
    cond = None
    if denoiser.embedder is not None and batch.condition is not None:
        cond = denoiser.embedder(batch.condition, batch.drop)
    if denoiser.changes is not None and batch.changes is not None:
        cond = (cond or Cond()).plus(denoiser.changes(batch.changes))
    return cond


def _denoiser(model: nn.Module) -> Denoiser:
    """Cast a model to a denoiser."""
    assert isinstance(model, Denoiser)
    return model
