"""Editing: inpainting, image to image, inversion and interpolation.

All of it is done by wrappers and grids; solvers are not involved.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from unfog.diffusion.denoiser import Wrapped
from unfog.diffusion.schedules import Schedule, expand
from unfog.diffusion.targets import Prediction
from unfog.runtime.errors import UserError


@dataclass(frozen=True)
class Inpainting(Wrapped):
    """Known places get their known x0, and eps = (x_t - alpha·x0)/sigma to match it.

    The state then keeps its noise in these places, so that every solver ends at the known values.

    Attributes:
        known: Clean data, `(batch, *shape)` or `(1, *shape)`.
        mask: 1 where new content is wanted, 0 where it is known; broadcast to `known`.

    Source: Lugmayr et al. 2022, RePaint, eq. 8.
    """

    known: Tensor
    mask: Tensor

    def __call__(self, x: Tensor, t: Tensor) -> Prediction:
        """Predict (x0, eps)."""
        found, known = self.denoise(x, t), self.known.to(x)
        x0 = torch.lerp(known, found.x0, self.mask.to(x))
        sigma = self.schedule.sigma(t)
        if not (sigma > 0).all():
            return found._replace(x0=x0)
        eps = (x - expand(self.schedule.alpha(t), x) * known) / expand(sigma, x)
        return found._replace(x0=x0, eps=torch.lerp(eps, found.eps, self.mask.to(x)))


def check_strength(strength: float) -> None:
    """Raise a UserError unless the strength lies in [0, 1]."""
    if not 0 <= strength <= 1:
        raise UserError(f"strength must lie between 0 (nothing changes) and 1 (nothing is kept), not {strength}")


def late(times: Tensor, strength: float) -> Tensor:
    """Return the last `strength` of the steps of falling times; with strength 0 only the last time.

    Source: Meng et al. 2022, SDEdit, section 3.
    """
    check_strength(strength)
    steps = len(times) - 1
    return times[steps - round(strength * steps) :]


def begin(schedule: Schedule, x0: Tensor, eps: Tensor, times: Tensor, strength: float) -> Tensor:
    """Return alpha·x0 + sigma·eps at the first of `late(times, strength)`; at strength 1 nothing of x0 is in it."""
    if strength == 1:
        return expand(schedule.sigma(times[0]), x0) * eps
    return schedule.add_noise(x0, eps, late(times, strength)[0])


def climbing(times: Tensor, jump: int, repeats: int) -> Tensor:
    """Return falling times that jump back up by `jump` steps, so that each step is taken `repeats` times.

    A stochastic solver re-noises the state at each jump, which lets the new content harmonise with the known.

    Args:
        times: Falling times, `(steps + 1,)`.
        jump: Steps down before each jump back.
        repeats: How often each step is taken; 1 means no jumps.

    Source: Lugmayr et al. 2022, RePaint, section 4.2.
    """
    if jump < 1 or repeats < 1:
        raise UserError(f"jump and repeats must be 1 or more, not {jump} and {repeats}")
    found = [times[0]]
    for first in range(0, len(times) - 1, jump):
        down = list(times[first + 1 : first + 1 + jump])
        last = first + jump >= len(times) - 1  # the end is clean data: no jump from there
        for again in range(1 if last else repeats):
            if again:
                found.append(times[first])
            found += down
    return torch.stack(found)


def rising(times: Tensor, schedule: Schedule) -> Tensor:
    """Return the times of an inversion: falling times in reverse, starting at the first trained time.

    Source: Song et al. 2021, Denoising Diffusion Implicit Models, section 4.3; Mokady et al. 2023.
    """
    back = times.flip(0)
    back = back[back > schedule.t_first]
    return torch.cat([torch.tensor([schedule.t_first], dtype=torch.float64), back])


def spherical(a: Tensor, b: Tensor, share: float) -> Tensor:
    """Return (sin((1 - s)·w)·a + sin(s·w)·b)/sin(w), the point on the arc from a to b, w the angle between them.

    The angle is taken per row, so that a mixture of two noises has the norm of noise.

    Args:
        a: `(batch, *shape)`.
        b: Of the same shape.
        share: s, from 0 (a) to 1 (b).

    Source: Shoemake 1985, Animating Rotation with Quaternion Curves.
    """
    flat_a, flat_b = (x.flatten(1).cpu().double() for x in (a, b))  # MPS has no float64
    cosine = torch.nn.functional.cosine_similarity(flat_a, flat_b).clamp(-1, 1)
    angle = torch.arccos(cosine)
    near = angle.sin() < 1e-4  # (anti)parallel: interpolate on a straight line
    safe = torch.where(near, torch.ones_like(angle), angle)
    first = torch.where(near, torch.full_like(angle, 1 - share), torch.sin((1 - share) * safe) / safe.sin())
    second = torch.where(near, torch.full_like(angle, share), torch.sin(share * safe) / safe.sin())
    return expand(first, a) * a + expand(second, b) * b


def varied(z: Tensor, other: Tensor, amount: float) -> Tensor:
    """Return sqrt(1 - amount²)·z + amount·other: standard normal if both are, and near z for small amounts."""
    if not 0 <= amount <= 1:
        raise UserError(f"amount must lie between 0 and 1, not {amount}")
    return math.sqrt(1 - amount**2) * z + amount * other
