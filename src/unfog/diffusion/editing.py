"""Editing: known places held, a later start, the way back to the noise, and mixtures of noises.

All of it is wrappers and grids; no solver knows of it.
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
    """Known places get their known x0, and the eps that goes with it: eps = (x_t - alpha·x0)/sigma.

    A state then keeps its noise there, so that every solver leads the known places to what is known.

    Attributes:
        known: Clean data, `(batch, *shape)` or `(1, *shape)`.
        mask: 1 where something new is wanted and 0 where it is known, broadcast to `known`.

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
    """Raise a UserError for a strength that is no share."""
    if not 0 <= strength <= 1:
        raise UserError(f"the strength is a share from 0 (nothing changes) to 1 (nothing stays), not {strength}")


def late(times: Tensor, strength: float) -> Tensor:
    """Return the last share of falling times: `strength` of the steps, of 0 only the end.

    Source: Meng et al. 2022, SDEdit, section 3.
    """
    check_strength(strength)
    steps = len(times) - 1
    return times[steps - round(strength * steps) :]


def begin(schedule: Schedule, x0: Tensor, eps: Tensor, times: Tensor, strength: float) -> Tensor:
    """Return the state at the first of `late(times, strength)`: alpha·x0 + sigma·eps; of x0 nothing at strength 1."""
    if strength == 1:
        return expand(schedule.sigma(times[0]), x0) * eps
    return schedule.add_noise(x0, eps, late(times, strength)[0])


def climbing(times: Tensor, jump: int, repeats: int) -> Tensor:
    """Return falling times with climbs: after every `jump` steps back up by as many, until walked `repeats` times.

    A stochastic solver noises the state again where it climbs, so that what is new can come to fit what is known.

    Args:
        times: Falling times, `(steps + 1,)`.
        jump: Steps down before a climb.
        repeats: How often each step is walked; 1 is no climb.

    Source: Lugmayr et al. 2022, RePaint, section 4.2.
    """
    if jump < 1 or repeats < 1:
        raise UserError(f"a jump has 1 step or more and is walked once or more, not {jump} and {repeats}")
    found = [times[0]]
    for first in range(0, len(times) - 1, jump):
        down = list(times[first + 1 : first + 1 + jump])
        last = first + jump >= len(times) - 1  # from the end there is no way back: it is clean
        for again in range(1 if last else repeats):
            if again:
                found.append(times[first])
            found += down
    return torch.stack(found)


def rising(times: Tensor, schedule: Schedule) -> Tensor:
    """Return the way back: falling times in reverse, from the first trained time on.

    Source: Song et al. 2021, Denoising Diffusion Implicit Models, section 4.3; Mokady et al. 2023.
    """
    back = times.flip(0)
    back = back[back > schedule.t_first]
    return torch.cat([torch.tensor([schedule.t_first], dtype=torch.float64), back])


def spherical(a: Tensor, b: Tensor, share: float) -> Tensor:
    """Return the point on the arc from a to b: (sin((1 - s)·w)·a + sin(s·w)·b)/sin(w), w the angle between them.

    The angle is that of each row, so that a mixture of two noises is as long as they are.

    Args:
        a: `(batch, *shape)`.
        b: Of the same shape.
        share: s, from 0 (a) to 1 (b).

    Source: Shoemake 1985, Animating Rotation with Quaternion Curves.
    """
    flat_a, flat_b = (x.flatten(1).double() for x in (a, b))
    cosine = torch.nn.functional.cosine_similarity(flat_a, flat_b).clamp(-1, 1)
    angle = torch.arccos(cosine)
    near = angle.sin() < 1e-4  # on a line the arc is one
    safe = torch.where(near, torch.ones_like(angle), angle)
    first = torch.where(near, torch.full_like(angle, 1 - share), torch.sin((1 - share) * safe) / safe.sin())
    second = torch.where(near, torch.full_like(angle, share), torch.sin(share * safe) / safe.sin())
    return expand(first, a) * a + expand(second, b) * b


def varied(z: Tensor, other: Tensor, amount: float) -> Tensor:
    """Return sqrt(1 - amount²)·z + amount·other: of two normal noises a normal one, near z for small amounts."""
    if not 0 <= amount <= 1:
        raise UserError(f"the amount of change is a share from 0 to 1, not {amount}")
    return math.sqrt(1 - amount**2) * z + amount * other
