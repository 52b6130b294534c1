"""The contrastive objective: encoders of pictures and texts, trained to recognise which belong together."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from unfog.networks.dual import DualEncoder
from unfog.recipes.encoders import build_dual
from unfog.recipes.objective import Context, Draw, HeldOut, OneLoss
from unfog.recipes.recipe import Recipe

SHOWN, SIDE = 32, 12
"""Pictures and captions that are compared in a picture of the progress, and pixels for each."""


@dataclass(frozen=True)
class Contrastive(OneLoss):
    """-½·log softmax(s·<picture, text>) over the texts of a batch, and the same over its pictures.

    Of several rows with the same text each counts as right. Under data parallelism a row is compared with those of its
    own process.

    Source: Radford et al. 2021, CLIP, figure 3; Yang et al. 2022, Unified Contrastive Learning, for equal texts.
    """

    draws: ClassVar[bool] = False

    def build(self, recipe: Recipe, most: int) -> nn.Module:
        """Return both encoders."""
        return build_dual(recipe, most)

    def losses(self, model: nn.Module, batch: Draw, context: Context) -> dict[str, Tensor]:
        """Return the loss of each row."""
        return {"loss": self.measured(model, batch, context)}

    def measured(self, model: nn.Module, batch: Draw, context: Context) -> Tensor:
        """Return the loss of each row, in nats."""
        model, words = _dual(model), batch.condition
        assert words is not None, "a caption for each row"
        return contrastive(model.pictures(batch.x0), model.texts(words), words, model.sharpness)

    def preview(self, model: nn.Module, held_out: HeldOut, context: Context) -> Image.Image | None:
        """Return the cosines of held-out pictures, a row each, and their captions, as shades: the diagonal is right."""
        model, batch = _dual(model), held_out(np.arange(SHOWN))
        device = next(model.parameters()).device
        assert batch.condition is not None, "a caption for each row"
        with torch.inference_mode():
            cosines = model.pictures(batch.x0.to(device)) @ model.texts(batch.condition.to(device)).T
        shades = (255 * cosines.clamp(0, 1)).round().byte().cpu()
        return Image.fromarray(shades.numpy()).resize((SIDE * SHOWN, SIDE * SHOWN), Image.Resampling.NEAREST)

    def generator(self, recipe: Recipe, model: nn.Module) -> None:
        """Return None: encoders draw no samples."""


def contrastive(pictures: Tensor, texts: Tensor, words: Tensor, sharpness: Tensor) -> Tensor:
    """Return the loss of each row, `(batch,)`.

    Args:
        pictures: Embeddings of length 1, `(batch, dim)`.
        texts: Embeddings of length 1, `(batch, dim)`.
        words: The texts as integers, `(batch, length)`: rows with equal ones belong together.
        sharpness: The factor of the cosines.
    """
    logits = sharpness * pictures @ texts.T
    same = (words[:, None] == words).all(2).to(logits)
    wanted = same / same.sum(1, keepdim=True)  # symmetric but for its scale, and the scale of equal rows is equal
    return (F.cross_entropy(logits, wanted, reduction="none") + F.cross_entropy(logits.T, wanted, reduction="none")) / 2


def _dual(model: nn.Module) -> DualEncoder:
    """Cast a model."""
    assert isinstance(model, DualEncoder)
    return model
