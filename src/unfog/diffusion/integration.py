"""An adaptive Runge-Kutta integrator for ordinary differential equations; the exact likelihood uses it."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from unfog.diffusion.schedules import expand
from unfog.runtime.errors import UserError

_STAGES = (
    (0.0, ()),
    (1 / 5, (1 / 5,)),
    (3 / 10, (3 / 40, 9 / 40)),
    (4 / 5, (44 / 45, -56 / 15, 32 / 9)),
    (8 / 9, (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729)),
    (1.0, (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656)),
    (1.0, (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84)),
)
"""Node and weights of each stage; the last one is the fifth-order result."""
_ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)
"""Fifth-order weights minus fourth-order weights: the error estimate."""
MOST_STEPS = 10_000


def integrate(
    velocity: Callable[[Tensor, Tensor], Tensor], x: Tensor, t: float, s: float, rtol: float, atol: float
) -> Tensor:
    """Solve dx/dt = velocity(x, t) from `t` to `s` with Dormand and Prince's pair of orders 5 and 4.

    Each sample has its own step sizes, so that its result does not depend on the batch: the root mean square of
    error/(atol + rtol·|x|) stays below 1 in every step.

    Args:
        velocity: The right-hand side, a function of a state and times `(batch,)`.
        x: The state at `t`, `(batch, *shape)`.
        t: Start.
        s: End, before or after `t`.
        rtol: Relative error allowed per step.
        atol: Absolute error allowed per step.

    Returns: The state at `s`.
    Raises: UserError: If a sample takes more than 10,000 steps.
    Source: Dormand & Prince 1980, A Family of Embedded Runge-Kutta Formulae.
    """
    now = torch.full((len(x),), t, dtype=torch.float64)
    h = (s - now) / 10
    first = velocity(x, now)
    if not first.isfinite().all():
        raise UserError("the velocity is not finite at the start of the integration: check the state and the model")
    for _ in range(MOST_STEPS):
        if (now == s).all():
            return x
        h = torch.where(h.abs() < (s - now).abs(), h, s - now)
        length, slopes, state = expand(h, x), [first], x
        for place, weights in _STAGES[1:]:
            state = x + length * _combined(weights, slopes)
            slopes.append(velocity(state, now + place * h))
        allowed = atol + rtol * torch.maximum(x.abs(), state.abs())
        worst = (length * _combined(_ERROR, slopes) / allowed).square().flatten(1).mean(1).sqrt().cpu().double()
        good = worst <= 1
        now = torch.where(good, torch.where(h == s - now, s, now + h), now)
        keep = good.to(x.device).reshape(-1, *([1] * (x.ndim - 1)))
        x, first = torch.where(keep, state, x), torch.where(keep, slopes[-1], first)
        h = h * (0.9 * worst.clamp(min=1e-10) ** -0.2).nan_to_num(0.2).clamp(0.2, 5.0)
    raise UserError(f"{MOST_STEPS} steps did not reach rtol {rtol:g} and atol {atol:g}: allow larger errors")


def _combined(weights: Sequence[float], slopes: Sequence[Tensor]) -> Tensor:
    """Return the weighted sum of the slopes."""
    return sum((weight * slope for weight, slope in zip(weights, slopes, strict=True)), torch.zeros_like(slopes[0]))
