"""Inverse problems: data from a linear measurement of them, y = A·x0 + noise·n.

All of it is done by wrappers, which shift x0 towards what was measured; solvers are not involved.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from unfog.diffusion.denoiser import Wrapped
from unfog.diffusion.grids import LOUD
from unfog.diffusion.schedules import Schedule, as_time, expand
from unfog.diffusion.targets import Prediction
from unfog.generation.operators import Operator
from unfog.runtime.errors import UserError

SOLVED, ITERATIONS = 1e-4, 100
"""Relative residual at which a linear system counts as solved, and iterations at most."""
POWER = 30
"""Iterations that find the largest eigenvalue of A·Aᵀ."""


@dataclass(frozen=True)
class Measured(Wrapped):
    """Base of wrappers that shift a prediction towards a measurement y = A·x0 + noise·n, n standard normal.

    Attributes:
        operator: A.
        measurement: y, `(batch, ...)`, or `(1, ...)` for all rows.
        noise: Standard deviation of the measurement's noise, above 0, in the units of y.
    """

    operator: Operator
    measurement: Tensor
    noise: float

    def __post_init__(self) -> None:
        """Check the noise."""
        if not (self.noise > 0 and math.isfinite(self.noise)):
            raise UserError(
                f"the noise of a measurement must be above 0, not {self.noise}: for one without noise give how finely "
                "it was rounded, such as 0.002 for bytes"
            )

    def shifted(self, prediction: Prediction, shift: Tensor, t: Tensor) -> Prediction:
        """Return the prediction with x0 shifted, and eps so that alpha·x0 + sigma·eps stays x_t."""
        ratio = expand(self.schedule.alpha(t) / self.schedule.sigma(t), shift)
        return prediction._replace(x0=prediction.x0 + shift, eps=prediction.eps - ratio * shift)

    def residual(self, x0: Tensor) -> Tensor:
        """Return y - A·x0.

        Raises: UserError: If A makes another shape of x0 than the measurement has.
        """
        made = self.operator(x0)
        if made.shape[1:] != self.measurement.shape[1:]:
            raise UserError(
                f"the operator makes {tuple(made.shape[1:])} of a row, and the measurement has "
                f"{tuple(self.measurement.shape[1:])}"
            )
        return self.measurement.to(made) - made


@dataclass(frozen=True)
class PseudoInverse(Measured):
    """x0 + r²·Aᵀ·(r²·A·Aᵀ + noise²)⁻¹·(y - A·x0), r² = deviation²·sigma²/(deviation²·alpha² + sigma²).

    The mean of p(x0 | x_t, y) where p(x0 | x_t) is taken to be normal around x0 with variance r². It is exact for
    normal data of equal variance in all directions, needs no gradient of the network, and without noise puts the
    measured part into x0 by the pseudo-inverse of A.

    Attributes:
        deviation: Standard deviation of clean data around their mean.

    Source: Song et al. 2023, Pseudoinverse-Guided Diffusion Models for Inverse Problems, the derivative of x0 being its
    value for such data, which gives the proximal step of Zhu et al. 2023, Denoising Diffusion Models for Plug-and-Play
    Image Restoration.
    """

    deviation: float = 0.5

    def __call__(self, x: Tensor, t: Tensor) -> Prediction:
        """Predict (x0, eps), given the measurement."""
        prediction = self.denoise(x, t)
        back, variance = adjoint(self.operator, x), _variance(self.deviation, self.schedule, t)

        def covariance(v: Tensor) -> Tensor:
            return expand(variance, v).to(v) * self.operator(back(v)) + self.noise**2 * v

        solved = conjugate_gradients(covariance, self.residual(prediction.x0), ITERATIONS)
        return self.shifted(prediction, expand(variance, x).to(x) * back(solved), t)


@dataclass(frozen=True)
class GradientGuided(Measured):
    """x0 + C·Aᵀ·(A·C·Aᵀ + noise²)⁻¹·(y - A·x0), C = (sigma²/alpha)·∂x0/∂x_t, the covariance of p(x0 | x_t).

    C is what the model itself says of it, so this is exact for normal data of any covariance. The system is solved by
    a few iterations of conjugate gradients, each a derivative of the network. With 0 iterations (A·C·Aᵀ + noise²)⁻¹ is
    the number 1/(r²·|A|² + noise²), r² as for `PseudoInverse`: diffusion posterior sampling, which shifts along the
    gradient of |y - A·x0|². Towards alpha = 0 both C and alpha vanish: below log-SNR -10 the shift at -10 is used.

    Attributes:
        iterations: Of conjugate gradients.
        deviation: Standard deviation of clean data around their mean, for 0 iterations.

    Source: Chung et al. 2023, Diffusion Posterior Sampling for General Noisy Inverse Problems; for the covariance Rozet
    et al. 2024, Learning Diffusion Priors from Observations by Expectation Maximization.
    """

    iterations: int = 3
    deviation: float = 0.5

    def __call__(self, x: Tensor, t: Tensor) -> Prediction:
        """Predict (x0, eps), given the measurement."""
        t = as_time(t)
        noisy = torch.minimum(t, self.schedule.time(-LOUD))
        with torch.inference_mode(False), torch.enable_grad():
            state = x.clone().requires_grad_()
            found = self.denoise(state, noisy.clone())
            residual = self.residual(found.x0.detach())
            back = adjoint(self.operator, x)
            alpha, sigma = self.schedule.alpha(noisy), self.schedule.sigma(noisy)
            scale = expand(sigma**2 / alpha, x).to(x)

            def spread(v: Tensor) -> Tensor:
                """Return C·Aᵀ·v."""
                return scale * torch.autograd.grad(found.x0, state, back(v), retain_graph=True)[0]

            if self.iterations:
                solved = conjugate_gradients(
                    lambda v: self.operator(spread(v)) + self.noise**2 * v, residual, self.iterations
                )
            else:
                variance = expand(_variance(self.deviation, self.schedule, noisy), residual).to(residual)
                solved = residual / (variance * largest(self.operator, x) + self.noise**2)
            shift = spread(solved).detach()
        prediction = found._replace(x0=found.x0.detach(), eps=found.eps.detach()) if _same(t, noisy) else None
        return self.shifted(prediction or self.denoise(x, t), shift, t)


def _same(one: Tensor, other: Tensor) -> bool:
    """Return whether two times are the same."""
    return bool((one == other).all())


def _variance(deviation: float, schedule: Schedule, t: Tensor) -> Tensor:
    """Return r² of `PseudoInverse`, shaped like `t`."""
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    return deviation**2 * sigma**2 / (deviation**2 * alpha**2 + sigma**2)


def adjoint(operator: Operator, like: Tensor) -> Operator:
    """Return Aᵀ of the operator A on rows shaped like `like`, `(batch, *shape)`: its derivative, backwards.

    Raises: UserError: If A is not linear: if it makes something of nothing.
    """
    with torch.inference_mode(False), torch.enable_grad():
        nothing = torch.zeros(like.shape, dtype=like.dtype, device=like.device, requires_grad=True)
        made = operator(nothing)
    if bool(made.any()):
        raise UserError("the operator of a measurement must be linear: this one makes something else than 0 of 0")

    def back(v: Tensor) -> Tensor:
        with torch.inference_mode(False):
            return torch.autograd.grad(made, nothing, v.expand(made.shape).clone(), retain_graph=True)[0]

    return back


def conjugate_gradients(matrix: Operator, b: Tensor, iterations: int) -> Tensor:
    """Solve matrix·v = b for each row, a symmetric positive definite matrix, from v = 0.

    A row stops where its residual is a ten-thousandth of b, or where a direction has no positive curvature, as the
    derivative of a network may have.

    Args:
        matrix: v -> matrix·v, rows apart.
        b: `(batch, ...)`.
        iterations: At most so many.

    Source: Hestenes & Stiefel 1952.
    """

    def dot(one: Tensor, other: Tensor) -> Tensor:
        return (one * other).flatten(1).sum(1).reshape(-1, *[1] * (b.ndim - 1))

    v, left, along = torch.zeros_like(b), b, b
    square = dot(left, left)
    enough = SOLVED**2 * square
    for _ in range(iterations):
        turned = matrix(along)
        curvature = dot(along, turned)
        going = (square > enough) & (curvature > 0)
        if not going.any():
            break
        step = torch.where(going, square / curvature.clamp(min=1e-30), 0.0)
        v, left = v + step * along, left - step * turned
        before, square = square, torch.where(going, dot(left, left), square)
        along = torch.where(going, left + square / before.clamp(min=1e-30) * along, along)
    return v


def largest(operator: Operator, like: Tensor) -> float:
    """Return the largest eigenvalue of A·Aᵀ by iterated powers, from the row of ones.

    Args:
        operator: A.
        like: Rows that it takes, `(batch, *shape)`.
    """
    back = adjoint(operator, like[:1])
    with torch.no_grad():
        v = operator(torch.ones(like[:1].shape, dtype=like.dtype, device=like.device))
        for _ in range(POWER):
            v = operator(back(v / v.norm()))
        return float(v.norm())
