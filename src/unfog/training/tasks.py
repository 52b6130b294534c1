"""What a training descends on: the loss of a denoiser, or of an autoencoder, and a picture of how far it is."""

import warnings
from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from unfog.data.pictures import paired, sheet
from unfog.data.source import Data, Indices
from unfog.diffusion.denoiser import Denoiser
from unfog.diffusion.objectives import denoising_loss
from unfog.generation.sampler import Sampler
from unfog.recipes.latents import Compressor, looked_at
from unfog.recipes.recipe import Recipe
from unfog.recipes.settings import Reconstruction
from unfog.training.draws import Draw

HeldOut = Callable[[Indices], Draw]
"""Rows that are held out, by number, as a batch whose times and noise never change."""
MEASURED = 512
"""Training rows, at most, of which the shift and the scale of latents are measured."""
BLANK = 1e-3
"""Deviation of samples, as stored, up to which they show nothing."""
SHOWN = 32
"""Pictures on the sheet of an autoencoder."""


class Task(Protocol):
    """One kind of training."""

    def build(self) -> nn.Module:
        """Return the model with freshly drawn weights."""
        ...

    def loss(self, model: nn.Module, draw: Draw, progress: float) -> Tensor:
        """Return the loss of each row of a batch on the model's device, `(batch,)`; progress runs from 0 to 1."""
        ...

    def measured(self, model: nn.Module, draw: Draw) -> Tensor:
        """Return the loss of held-out rows, which does not change with the progress."""
        ...

    def preview(self, model: nn.Module, held_out: HeldOut) -> Image.Image:
        """Return a picture of what the model can do."""
        ...

    def settle(self, model: nn.Module, data: Data) -> None:
        """Make ready for its use what is about to be saved."""
        ...


class Denoising:
    """A denoiser, and the recipe's loss."""

    def __init__(self, recipe: Recipe) -> None:
        """Build what the loss needs."""
        self.recipe = recipe
        self.times, self.weighting = recipe.times.build(), recipe.weighting.build()
        self.bound, self.bin_width = recipe.variance.build().bound, recipe.build_codec().bin_width

    def build(self) -> nn.Module:
        """Return the denoiser."""
        return self.recipe.build_denoiser()

    def loss(self, model: nn.Module, draw: Draw, progress: float = 0.0) -> Tensor:
        """Return the denoising loss of each row."""
        assert isinstance(model, Denoiser)
        cond = None
        if model.embedder is not None and draw.condition is not None:
            cond = model.embedder(draw.condition, draw.drop)
        return denoising_loss(
            model,
            draw.x0,
            cond,
            times=self.times,
            weighting=self.weighting,
            u=draw.u,
            noise=draw.noise,
            bound=self.bound,
            bin_width=self.bin_width,
        )

    def measured(self, model: nn.Module, draw: Draw) -> Tensor:
        """Return the same."""
        return self.loss(model, draw)

    def preview(self, model: nn.Module, held_out: HeldOut) -> Image.Image:
        """Return a sheet of samples."""
        assert isinstance(model, Denoiser)
        sampler = Sampler.of(self.recipe, model)
        points = len(sampler.shape) == 1
        columns = sampler.classes if 1 < sampler.classes <= 16 else 8
        count = 1024 if points else columns * max(1, sampler.settings.batch // columns)
        told = None if sampler.classes else held_out(np.arange(count)).condition
        samples = sampler(count, condition=told)
        if not samples.float().std() > BLANK:
            warnings.warn(
                "all samples of a report were one colour: if the sheets in the run folder stay so, lower optimizer.lr, "
                "or look at what is trained with `unfog inspect` and `unfog replay`",
                stacklevel=2,
            )
        return sheet(samples, columns)

    def settle(self, model: nn.Module, data: Data) -> None:
        """Leave it as it is."""


class Compressing:
    """An autoencoder and its critic, and the loss of what it gives back."""

    def __init__(self, recipe: Recipe) -> None:
        """Build what the loss needs."""
        self.recipe = recipe
        self.settings: Reconstruction = recipe.objective.build()

    def build(self) -> nn.Module:
        """Return autoencoder and critic."""
        return self.recipe.build_compressor()

    def loss(self, model: nn.Module, draw: Draw, progress: float) -> Tensor:
        """Return the loss of each row, and in it what the critic learns from."""
        assert isinstance(model, Compressor)
        restored, loss = self._restored(model, draw)
        if model.critic is None:
            return loss
        real, verdict = model.critic(draw.x0)
        _, verdict_restored = model.critic(restored.detach())
        critic = F.relu(1 - verdict).flatten(1).mean(1) + F.relu(1 + verdict_restored).flatten(1).mean(1)
        features, verdict = looked_at(model.critic, restored)
        apart = [(a - b.detach()).abs().flatten(1).mean(1) for a, b in zip(features, real, strict=True)]
        adversarial = self.settings.adversarial if progress >= 0.5 else 0.0
        seen: Tensor = loss + critic + self.settings.perceptual * torch.stack(apart).mean(0)
        return seen - adversarial * verdict.flatten(1).mean(1)

    def measured(self, model: nn.Module, draw: Draw) -> Tensor:
        """Return the loss without the critic's part."""
        assert isinstance(model, Compressor)
        return self._restored(model, draw)[1]

    def _restored(self, model: Compressor, draw: Draw) -> tuple[Tensor, Tensor]:
        """Return the picture of a draw from the posterior, and mean |x - x'| + kl·KL/numbers."""
        posterior = model.autoencoder.posterior(draw.x0)
        few = draw.noise.flatten(1)
        while few.shape[1] < posterior.mean[0].numel():  # latents may be larger than pictures
            few = torch.cat([few, few.flip(1)], 1)
        noise = few[:, : posterior.mean[0].numel()].reshape(posterior.mean.shape)
        restored = model.autoencoder.restore(posterior.draw(noise))
        apart = (restored - draw.x0).abs().flatten(1).mean(1)
        return restored, apart + self.settings.kl * posterior.divergence() / draw.x0[0].numel()

    def preview(self, model: nn.Module, held_out: HeldOut) -> Image.Image:
        """Return held-out pictures above what is left of them."""
        assert isinstance(model, Compressor)
        x0 = held_out(np.arange(SHOWN)).x0.to(next(model.parameters()).device)
        codec = self.recipe.build_codec()
        with torch.inference_mode():
            restored = model.autoencoder.restore(model.autoencoder.posterior(x0).mean)
        return paired(codec.decode(x0).cpu(), codec.decode(restored).cpu())

    def settle(self, model: nn.Module, data: Data) -> None:
        """Measure the shift and the scale of the latents."""
        assert isinstance(model, Compressor)
        rows = np.linspace(0, len(data.train) - 1, min(len(data.train), MEASURED)).astype(np.int64)
        device, codec = next(model.parameters()).device, self.recipe.build_codec()
        parts = np.array_split(rows, -(-len(rows) // 64))
        model.autoencoder.measure(codec.encode(data.train.take(part).x).to(device) for part in parts)


def task(recipe: Recipe) -> Task:
    """Return the task of a recipe."""
    return Compressing(recipe) if recipe.compresses else Denoising(recipe)
