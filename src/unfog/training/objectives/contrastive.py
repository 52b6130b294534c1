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
from unfog.runtime.errors import UserError

MOST = 16
"""Exchanged texts for each row, at most."""
NEXT = 64
"""Texts that are looked at for another word."""
SHOWN, SIDE = 32, 12
"""Pictures and captions that are compared in a picture of the progress, and pixels for each."""


@dataclass(frozen=True)
class Contrastive(OneLoss):
    """-½·log softmax(s·<picture, text>) over the texts of a batch, and the same over its pictures.

    Of several rows with the same text each counts as right. Two terms make embeddings keep what telling the rows of a
    batch apart does not need: texts with one word exchanged, among which a picture's own is sought as well, for small
    differences in meaning; and the same loss between a picture and itself with noise, for what no text says. Under data
    parallelism a row is compared with those of its own process.

    Attributes:
        exchanged: Texts with one word exchanged for another text's, for each row.
        instances: Weight of the loss between pictures and noised ones; 0 leaves it out.
        noise: Standard deviation of that noise.

    Source: Radford et al. 2021, CLIP, figure 3; Yang et al. 2022, Unified Contrastive Learning, for equal texts;
    Yuksekgonul et al. 2023, When and Why Vision-Language Models Behave like Bags-of-Words, section 4, for exchanged
    words; Mu et al. 2022, SLIP, for pictures and noised ones.
    """

    draws: ClassVar[bool] = False
    exchanged: int = 2
    instances: float = 0.5
    noise: float = 0.2

    def __post_init__(self) -> None:
        """Check the numbers."""
        if not 0 <= self.exchanged <= MOST or not self.instances >= 0 or not self.noise >= 0:
            raise UserError(
                f"objective.exchanged must be from 0 to {MOST}, objective.instances and objective.noise 0 or more, not "
                f"{self.exchanged}, {self.instances} and {self.noise}"
            )

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
        others = [exchanged(words, (batch.u + place / self.exchanged) % 1) for place in range(self.exchanged)]
        pictures, every = model.pictures(batch.x0), torch.cat([words, *others])
        loss = contrastive(pictures, model.texts(every), every, model.sharpness)
        if not self.instances:
            return loss
        noised = model.pictures(batch.x0 + self.noise * batch.noise)
        rows = torch.arange(len(words), device=words.device)[:, None]
        return loss + self.instances * contrastive(pictures, noised, rows, model.sharpness)

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
        texts: Embeddings of length 1, `(texts, dim)`: those of the rows, and others among which theirs are sought.
        words: The texts as integers, `(texts, length)`: equal ones belong together.
        sharpness: The factor of the cosines.
    """
    logits, count = sharpness * pictures @ texts.T, len(pictures)
    same = (words[:count, None] == words).all(2).to(logits)
    own = same[:, :count]  # symmetric
    loss = F.cross_entropy(logits, same / same.sum(1, keepdim=True), reduction="none")
    return (loss + F.cross_entropy(logits[:, :count].T, own / own.sum(1, keepdim=True), reduction="none")) / 2


def exchanged(words: Tensor, u: Tensor) -> Tensor:
    """Return texts with one word exchanged for the one that another text of the batch has in its place.

    The other text is the next one in which the word differs, of as many as are looked at; where there is none the text
    stays.

    Args:
        words: Texts as integers, `(batch, length)`, with 0 for no word.
        u: Uniform numbers in [0, 1), `(batch,)`, which choose the place among those where another text differs.
    """
    count = len(words)
    rows = torch.arange(count, device=words.device)
    following = words[(rows[:, None] + rows[:NEXT]) % count]  # (text, how many further, place)
    differs = (following != words[:, None]) & (following != 0) & (words[:, None] != 0)
    possible = differs.any(1)
    places = possible.sum(1, keepdim=True)
    wanted = (u.float().to(words.device)[:, None] * places).long().clamp(max=(places - 1).clamp(min=0)) + 1
    place = ((possible.cumsum(1) == wanted) & possible).int().argmax(1)
    word = following[rows, differs[rows, :, place].int().argmax(1), place]
    found = words.clone()
    found[rows, place] = torch.where(possible[rows, place], word, found[rows, place])
    return found


def _dual(model: nn.Module) -> DualEncoder:
    """Cast a model."""
    assert isinstance(model, DualEncoder)
    return model
