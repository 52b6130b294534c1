"""Gaussian mixtures, whose denoiser is known exactly: solvers are tested against it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from unfog.diffusion.schedules import Schedule, as_time, expand
from unfog.diffusion.targets import Prediction
from unfog.runtime.brief import brief
from unfog.runtime.errors import UserError

ROUNDED = 1e-3
"""How far the sum of weights, which may be of low precision, may lie from 1."""


@dataclass(frozen=True)
class Mixture:
    """p(x0) = sum_k w_k·N(x0; mean_k, diag(variance_k)).

    Attributes:
        weights: w_k, `(components,)`, summing to 1.
        means: `(components, dim)`.
        variances: Variance along each axis, `(components, dim)`; 0 makes a component a point.
    """

    weights: Tensor
    means: Tensor
    variances: Tensor

    __repr__ = brief

    def __post_init__(self) -> None:
        """Check the weights.

        Raises: UserError: If they are not one for each component, 0 or more and summing to 1.
        """
        weights = self.weights
        if weights.shape != self.means.shape[-2:-1]:
            raise UserError(
                f"a mixture has one weight for each row of its means, not weights of shape {tuple(weights.shape)} and "
                f"means of shape {tuple(self.means.shape)}"
            )
        if not (bool((weights >= 0).all()) and abs(float(weights.sum()) - 1) < ROUNDED):
            raise UserError(
                f"the weights of a mixture are 0 or more and sum to 1, not to {float(weights.sum()):g}: divide them by "
                "their sum"
            )

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw `count` points, `(count, dim)`."""
        component = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        z = torch.randn(count, self.means.shape[1], dtype=self.means.dtype, generator=generator)
        return self.means[component] + self.variances[component].sqrt() * z

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p(x) in nats, `(batch,)`, of points `(batch, dim)`."""
        return self.log_joint(x).logsumexp(1)

    def noised(self, alpha: Tensor, sigma: Tensor) -> "Mixture":
        """Return the mixture of alpha·x0 + sigma·eps, alpha and sigma of shape `()` or `(batch, 1, 1)`."""
        return Mixture(self.weights, alpha * self.means, alpha**2 * self.variances + sigma**2)

    def log_joint(self, x: Tensor) -> Tensor:
        """Return log(w_k·N(x; mean_k, variance_k)), `(batch, components)`."""
        z = (x[:, None] - self.means) ** 2 / self.variances
        return self.weights.log() - 0.5 * (z + (2 * torch.pi * self.variances).log()).sum(-1)


@dataclass(frozen=True)
class MixtureDenoiser:
    """The exact (E[x0 | x_t], E[eps | x_t]) of a mixture under a schedule.

    Within component k, with S = alpha²·variance + sigma² and the residual r = (x_t - alpha·mean)/S:
    x0 = mean + alpha·variance·r and eps = sigma·r; the components are weighted by their posterior.
    Both are finite at alpha = 0 and, if no component is a point, at sigma = 0.
    """

    mixture: Mixture
    schedule: Schedule

    def __call__(self, x: Tensor, t: Tensor) -> Prediction:
        """Predict (x0, eps) exactly, for `x` of shape `(batch, dim)` and `t` of shape `()` or `(batch,)`."""
        alpha, sigma = (
            expand(value, x[:, None]).to(x.dtype) for value in (self.schedule.alpha(t), self.schedule.sigma(t))
        )
        noised = self.mixture.noised(alpha, sigma)
        posterior = noised.log_joint(x).softmax(1)[..., None]
        residual = (x[:, None] - noised.means) / noised.variances
        x0 = (posterior * (self.mixture.means + alpha * self.mixture.variances * residual)).sum(1)
        return Prediction(x0, (sigma * posterior * residual).sum(1))

    def log_prob(self, x: Tensor, t: Tensor) -> Tensor:
        """Return log p(x_t) in nats, `(batch,)`; its gradient is the score."""
        alpha, sigma = (float(value) for value in (self.schedule.alpha(t), self.schedule.sigma(t)))
        return self.mixture.noised(as_time(alpha), as_time(sigma)).log_joint(x).logsumexp(1)
