"""The reconstruction objective: an autoencoder, trained to restore its input from a small latent."""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from unfog.data.source import Data, Source
from unfog.networks.critic import Criticised, with_frozen_weights
from unfog.recipes.build import build_autoencoder
from unfog.recipes.conditions import NoConditioning
from unfog.recipes.latents import LatentCodec
from unfog.recipes.networks import AutoencoderSpec
from unfog.recipes.objective import Context, Draw, HeldOut, OneLoss
from unfog.recipes.optimizers import Muon
from unfog.recipes.recipe import Recipe
from unfog.recipes.settings import Training
from unfog.runtime.errors import UserError

MEASURED, FEWEST, NUMBERS = 512, 64, 1 << 23
"""Training rows on which the shift and the scale of latents are measured: at most, at least, and the numbers in them.

Of pictures of 128 pixels 512 would take five seconds at each checkpoint; these have 43,000 places in 170.
"""
SHOWN = 32
"""Pictures on the sheet of an autoencoder."""


@dataclass(frozen=True)
class Reconstruction(OneLoss):
    """mean |x - x'| + kl·KL/numbers + perceptual·F + adversarial·A: an autoencoder, optionally with a critic.

    x' is decoded from a draw from the posterior and KL in nats. F is the distance in the features of a critic that is
    trained at the same time to tell real pictures from restored ones, and A the critic's score, which counts from the
    middle of the training on.

    Attributes:
        kl: Weight of the divergence from N(0, 1).
        perceptual: Weight of the distance in the critic's features; 0 is off.
        adversarial: Weight of the critic's score; 0 is off.

    Source: Rombach et al. 2022, appendix G; Larsen et al. 2016, Autoencoding beyond Pixels, eq. 7 (features).
    """

    draws: ClassVar[bool] = False
    kl: float = 1e-3
    perceptual: float = 0.0
    adversarial: float = 0.0

    def __post_init__(self) -> None:
        """Check the weights."""
        if min(self.kl, self.perceptual, self.adversarial) < 0:
            raise UserError("objective.kl, objective.perceptual and objective.adversarial must be 0 or more")

    @property
    def criticised(self) -> bool:
        """Whether there is a critic."""
        return bool(self.perceptual or self.adversarial)

    def build(self, recipe: Recipe, most: int) -> nn.Module:
        """Return autoencoder and critic."""
        return build_autoencoder(recipe, most, criticised=self.criticised)

    def losses(self, model: nn.Module, batch: Draw, context: Context) -> dict[str, Tensor]:
        """Return the loss of each row, including the critic's own, since both share one optimizer."""
        model = _criticised(model)
        restored, loss = self._restored(model, batch)
        if model.critic is None:
            return {"loss": loss}
        real, verdict = model.critic(batch.x0)
        _, verdict_restored = model.critic(restored.detach())
        critic = F.relu(1 - verdict).flatten(1).mean(1) + F.relu(1 + verdict_restored).flatten(1).mean(1)
        features, verdict = with_frozen_weights(model.critic, restored)
        apart = [(a - b.detach()).abs().flatten(1).mean(1) for a, b in zip(features, real, strict=True)]
        adversarial = self.adversarial if context.progress >= 0.5 else 0.0
        seen: Tensor = loss + critic + self.perceptual * torch.stack(apart).mean(0)
        return {"loss": seen - adversarial * verdict.flatten(1).mean(1)}

    def measured(self, model: nn.Module, batch: Draw, context: Context) -> Tensor:
        """Return the loss without the critic's terms."""
        return self._restored(_criticised(model), batch)[1]

    def _restored(self, model: Criticised, batch: Draw) -> tuple[Tensor, Tensor]:
        """Return x', decoded from a draw from the posterior, and mean |x - x'| + kl·KL/numbers."""
        posterior = model.autoencoder.posterior(batch.x0)
        few = batch.noise.flatten(1)
        while few.shape[1] < posterior.mean[0].numel():  # latents may be larger than pictures
            few = torch.cat([few, few.flip(1)], 1)
        noise = few[:, : posterior.mean[0].numel()].reshape(posterior.mean.shape)
        restored = model.autoencoder.restore(posterior.draw(noise))
        apart = (restored - batch.x0).abs().flatten(1).mean(1)
        return restored, apart + self.kl * posterior.divergence() / batch.x0[0].numel()

    def preview(self, model: nn.Module, held_out: HeldOut, context: Context) -> Image.Image:
        """Return held-out pictures above their reconstructions."""
        autoencoder, codec = _criticised(model).autoencoder, context.codec
        x0 = held_out(np.arange(SHOWN)).x0.to(next(model.parameters()).device)
        with torch.inference_mode():
            restored = autoencoder.restore(autoencoder.posterior(x0).mean)
        names = ("held-out rows", "reconstructions")
        return context.recipe.modality.paired(codec.decode(x0).cpu(), codec.decode(restored).cpu(), names=names)

    def settle(self, model: nn.Module, data: Data, context: Context) -> None:
        """Measure the shift and the scale of the latents."""
        rows = np.linspace(0, len(data.train) - 1, settled_on(data.train)).astype(np.int64)
        device, codec = next(model.parameters()).device, context.codec
        parts = np.array_split(rows, -(-len(rows) // 64))
        _criticised(model).autoencoder.measure(codec.encode(data.train.take(part).x).to(device) for part in parts)

    def generator(self, recipe: Recipe, model: nn.Module) -> None:
        """Return None: an autoencoder draws no samples on its own."""


def settled_on(train: Source) -> int:
    """Return on how many training rows the shift and the scale of latents are measured."""
    return min(len(train), MEASURED, max(FEWEST, NUMBERS // math.prod(train.shape)))


def _criticised(model: nn.Module) -> Criticised:
    """Cast a model to an autoencoder with its critic."""
    assert isinstance(model, Criticised)
    return model


def autoencoder_recipe(recipe: Recipe, codec: LatentCodec) -> Recipe:
    """Return the recipe of the autoencoder in whose latents a recipe works."""
    widths = (codec.width, *[2 * codec.width] * (codec.factor.bit_length() - 1))
    return Recipe(
        f"{recipe.name}-autoencoder",
        data=recipe.data,
        augment=recipe.augment,
        network=AutoencoderSpec(latent=codec.channels, widths=widths),
        objective=Reconstruction(),
        conditioning=NoConditioning(),
        optimizer=Muon(lr=3e-3),
        training=Training(images=codec.images, batch=32, reports=min(4, recipe.training.reports)),
        seed=recipe.seed,
    )
