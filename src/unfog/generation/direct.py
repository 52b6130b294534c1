"""Pictures in one call of a network: of a GAN, of a VAE, or pixel by pixel."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor

from unfog.data.codecs import Codec
from unfog.generation.drawing import Drawing
from unfog.networks.conditioning import ClassEmbedding
from unfog.networks.direct import DirectModel, DirectNetwork, Likelihood, LikelyNetwork
from unfog.recipes.settings import Sampling
from unfog.runtime.brief import brief
from unfog.runtime.device import arithmetic
from unfog.runtime.errors import UserError
from unfog.runtime.randomness import normal, uniform

DRAWS = 8
"""Draws over which a bound of the likelihood is the mean."""


@dataclass(frozen=True)
class Direct(Drawing):
    """Draws pictures, each from random numbers of its own, in portions of one size.

    Attributes:
        model: The network, and what embeds its condition.
        codec: Maps pictures to what is stored.
        settings: The batch.
    """

    takes: ClassVar[frozenset[str]] = frozenset({"batch"})
    model: DirectModel
    codec: Codec
    settings: Sampling

    __repr__ = brief

    def __post_init__(self) -> None:
        """Refuse settings of other models."""
        self.settings.check_cold()

    @property
    def network(self) -> DirectNetwork:
        """The network."""
        return cast(DirectNetwork, self.model.network)

    @property
    def size(self) -> int:
        """Samples in a batch."""
        return self.settings.portion

    @property
    def classes(self) -> int:
        """Number of classes that the model is conditioned on; 0 if it is not conditioned on one class."""
        return len(self.known.classes) if isinstance(self.model.embedder, ClassEmbedding) else 0

    @property
    def described(self) -> dict[str, object]:
        """What samples depend on in addition to model and condition, as plain values by name."""
        return {"batch": self.size, "seed": self.seed}

    @property
    def likelihood(self) -> Likelihood:
        """What is known of log p(x)."""
        return self.network.likelihood

    @property
    def measured(self) -> str:
        """How likely rows are is measured so."""
        return "exact" if self.likelihood == "exact" else f"{DRAWS} draws of the bound a row"

    def check(self, condition: Tensor | None) -> None:
        """Refuse guidance.

        Raises: UserError: If it is on.
        """
        if self.settings.guidance != 1:
            raise UserError("only models that are sampled step by step take guidance: set sampling.guidance=1")

    @torch.inference_mode()
    def batches(self, condition: Tensor | None, count: int, skip: int = 0) -> Iterator[Tensor]:
        """Yield samples 0 to `count` - 1 under a condition in batches on the CPU, except for the first `skip`."""
        self.check(condition)
        device = next(self.model.parameters()).device
        for first in range(skip * self.size, count, self.size):
            given = self.padded(condition, first)
            shape, u = self.network.uniforms, None
            if shape is not None:
                numbers = uniform(self.seed, "pixels", 0, first, self.size, math.prod(shape))
                u = torch.from_numpy(numbers).float().reshape(self.size, *shape).to(device)
            with arithmetic(self.precision, device):
                cond = self.model.cond(None if given is None else given.to(device), count=self.size)
                x = self.network.pictures(noises(self.network, self.seed, "noise", first, self.size, device), u, cond)
            yield self.codec.decode(x.float())[: count - first].cpu()

    @torch.inference_mode()
    def bits(self, x: Tensor, condition: Tensor | None, first: int = 0) -> Tensor:
        """Return -log2 p of rows as stored in bits a number, `(batch,)`: exact, or the mean of draws of a bound.

        Args:
            x: Rows, `(batch, *shape)`.
            condition: The condition of each, `(batch, ...)`, or None.
            first: Number of the first row, which the random numbers depend on.

        Raises: UserError: If the model knows no likelihood.
        """
        network, device = self.network, next(self.model.parameters()).device
        if not isinstance(network, LikelyNetwork):
            raise UserError("a GAN knows no likelihood: it only draws pictures")
        x0 = self.codec.encode(x).to(device)
        total, draws = torch.zeros(len(x0)), DRAWS if network.noises else 1
        with arithmetic(self.precision, device):
            cond = self.model.cond(None if condition is None else condition.to(device), count=len(x0))
            for draw in range(draws):
                noise = noises(network, self.seed, f"likelihood {draw}", first, len(x0), device)
                total += network.log_prob(x0, noise, cond).cpu()
        return -total / draws / x0[0].numel() / math.log(2)


def noises(
    network: DirectNetwork, seed: int, purpose: str, first: int, count: int, device: torch.device
) -> list[Tensor]:
    """Return the normal noise of pictures `first` to `first + count - 1`, one tensor for each of `network.noises`."""
    return [
        normal(seed, f"{purpose} of level {level}", 0, first, count, tuple(shape)).to(device)
        for level, shape in enumerate(network.noises)
    ]
