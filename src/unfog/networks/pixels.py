"""Distributions of a pixel, whose parameters a network predicts: Bernoulli, and mixtures of logistics."""

import math
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

LEVELS = 256
"""Values of a number of a pixel."""
HALF = 1 / (LEVELS - 1)
"""Half the distance between neighbouring values in [-1, 1]."""
NARROWEST = -7.0
"""The least log scale of a logistic."""


class PixelDistribution(Protocol):
    """p(x) of pixels x in [-1, 1], `(batch, channels, *space)`, given the parameters of each pixel."""

    def parameters(self, channels: int) -> int:
        """Return the parameters of a pixel of so many channels."""
        ...

    def uniforms(self, channels: int) -> int:
        """Return the uniform numbers that a draw of such a pixel takes."""
        ...

    def log_prob(self, given: Tensor, x: Tensor) -> Tensor:
        """Return log p(x) of each pixel in nats, `(batch, *space)`.

        Args:
            given: The parameters, `(batch, parameters, *space)`.
            x: The pixels, `(batch, channels, *space)`.
        """
        ...

    def draw(self, given: Tensor, u: Tensor) -> Tensor:
        """Return pixels, `(batch, channels, *space)`.

        Args:
            given: The parameters, `(batch, parameters, *space)`.
            u: Uniform numbers in [0, 1), `(batch, uniforms, *space)`.
        """
        ...

    def shown(self, given: Tensor, u: Tensor) -> Tensor:
        """Return the pixels that a model shows that draws them independently of each other: without their noise."""
        ...


class Bernoulli:
    """p(white) = sigmoid(logit), for numbers that are black or white: -1 or 1."""

    def parameters(self, channels: int) -> int:
        """Return a logit for each channel."""
        return channels

    def uniforms(self, channels: int) -> int:
        """Return one for each channel."""
        return channels

    def log_prob(self, given: Tensor, x: Tensor) -> Tensor:
        """Return log sigmoid(x·logit), summed over the channels."""
        return F.logsigmoid(given.float() * x.sign()).sum(1)

    def draw(self, given: Tensor, u: Tensor) -> Tensor:
        """Return white where u < sigmoid(logit)."""
        return 2.0 * (u < given.float().sigmoid()).float() - 1

    def shown(self, given: Tensor, u: Tensor) -> Tensor:
        """Return a draw: black and white are what the data are."""
        return self.draw(given, u)


class Logistics:
    """p(x) = sum of pi_k·[F((x + 1/255 - mu_k)/s_k) - F((x - 1/255 - mu_k)/s_k)], F the logistic function.

    The outermost of the 256 values have open bins. With several channels each depends on the ones before it: mu of the
    second is mu + c·x1, that of the third mu + c'·x1 + c''·x2.

    Source: Salimans et al. 2017, PixelCNN++, section 2.
    """

    def __init__(self, components: int = 5) -> None:
        """Mix so many logistics."""
        self.components = components

    def parameters(self, channels: int) -> int:
        """Return those of each component: its logit, mu and log s of each channel, and the coefficients."""
        return self.components * (1 + 2 * channels + self._pairs(channels))

    def uniforms(self, channels: int) -> int:
        """Return one that chooses the component, and one for each channel."""
        return 1 + channels

    def log_prob(self, given: Tensor, x: Tensor) -> Tensor:
        """Return log p of the bins of `x`."""
        logits, means, scales, coefficients = self._split(given, x.shape[1])
        means = self._coupled(means, coefficients, x)
        away, rate = x.float()[:, :, None] - means, (-scales).exp()
        above, below = rate * (away + HALF), rate * (away - HALF)
        middle = rate * away
        inside = above.sigmoid() - below.sigmoid()
        density = middle - scales - 2 * F.softplus(middle) + math.log(2 * HALF)  # where the difference rounds to 0
        bins = torch.where(inside > 1e-5, inside.clamp(min=1e-12).log(), density)
        first, last = (x < -1 + HALF)[:, :, None], (x > 1 - HALF)[:, :, None]
        bins = torch.where(first, F.logsigmoid(above), torch.where(last, -F.softplus(below), bins))
        return (bins.sum(1) + logits.log_softmax(1)).logsumexp(1)

    def draw(self, given: Tensor, u: Tensor) -> Tensor:
        """Return mu + s·log(u / (1 - u)) of a component that is drawn, rounded to the 256 values."""
        chosen, pixels = u[:, :1].float(), u[:, 1:].float().clamp(1e-5, 1 - 1e-5)
        return self._of_component(given, chosen, (pixels / (1 - pixels)).log())

    def shown(self, given: Tensor, u: Tensor) -> Tensor:
        """Return mu of a component that is drawn, rounded to the 256 values."""
        return self._of_component(given, u[:, :1].float(), torch.zeros_like(u[:, 1:].float()))

    def _of_component(self, given: Tensor, u: Tensor, noise: Tensor) -> Tensor:
        """Return mu + s·noise of the component that `u` chooses, channel by channel."""
        logits, means, scales, coefficients = self._split(given, noise.shape[1])
        place = (logits.softmax(1).cumsum(1) <= u).sum(1).clamp(max=self.components - 1)

        def own(part: Tensor) -> Tensor:
            index = place[:, None, None].expand(-1, part.shape[1], 1, *place.shape[1:])
            return part.gather(2, index)[:, :, 0]

        mean, scale, coefficient = own(means), own(scales).exp(), own(coefficients)
        found: list[Tensor] = []
        for channel in range(noise.shape[1]):
            first = channel * (channel - 1) // 2
            told = [coefficient[:, first + place] * one for place, one in enumerate(found)]
            one = sum(told, mean[:, channel]) + scale[:, channel] * noise[:, channel]
            found.append(((one.clamp(-1, 1) + 1) / (2 * HALF)).round() * 2 * HALF - 1)
        return torch.stack(found, 1)

    def _split(self, given: Tensor, channels: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return logits, `(batch, components, *space)`; means, log scales and coefficients with an axis before them."""
        space, pairs = given.shape[2:], self._pairs(channels)
        parts = torch.split(given.float(), [self.components * one for one in (1, channels, channels, pairs)], 1)
        logits, means, scales, coefficients = (part.reshape(len(given), -1, self.components, *space) for part in parts)
        return logits[:, 0], means, scales.clamp(min=NARROWEST), coefficients.tanh()

    def _coupled(self, means: Tensor, coefficients: Tensor, x: Tensor) -> Tensor:
        """Return the means of each channel, given the channels before it."""
        found = []
        for channel in range(x.shape[1]):
            first = channel * (channel - 1) // 2
            told = [coefficients[:, first + place] * x[:, place, None] for place in range(channel)]
            found.append(sum(told, means[:, channel]))
        return torch.stack(found, 1)

    @staticmethod
    def _pairs(channels: int) -> int:
        """Return the pairs of a channel and one before it."""
        return channels * (channels - 1) // 2


DISTRIBUTIONS: dict[str, PixelDistribution] = {"bernoulli": Bernoulli(), "logistic": Logistics()}
"""By the names that recipes use."""
