"""Trajectories of a model's own sampling, from noise to data: what another one can be distilled from."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from unfog.diffusion.sampling import trajectory
from unfog.diffusion.schedules import Schedule
from unfog.generation.sampler import Sampler
from unfog.runtime.brief import brief
from unfog.runtime.errors import UserError

_STEPS = (0.7548776662466927, 0.5698402909980532)
"""Of the sequence that spreads guidance and times of portions evenly (Roberts 2018, the plastic number)."""
MOST = 1 << 30
"""Bytes of all states."""


@dataclass(frozen=True)
class Trajectories:
    """States of samples at falling times, the first of which is noise and the last clean data.

    Attributes:
        x: States, `(count, points + 1, *shape)`, float16.
        times: Their times on the schedule's clock, `(count, points + 1)`, float64.
        guidance: Scale of guidance of each, `(count,)`.
        condition: Condition of each, `(count, ...)`, or None.
    """

    x: Tensor
    times: Tensor
    guidance: Tensor
    condition: Tensor | None

    __repr__ = brief

    def __len__(self) -> int:
        """Return their number."""
        return len(self.x)

    def tensors(self) -> dict[str, Tensor]:
        """Return them as tensors by name."""
        found = {"x": self.x, "times": self.times, "guidance": self.guidance, "condition": self.condition}
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    @classmethod
    def joined(cls, parts: Iterable[Mapping[str, Tensor]]) -> "Trajectories":
        """Return what `tensors` returned of several, as one.

        Raises: UserError: If they are not trajectories of one model.
        """
        found = list(parts)
        try:
            with torch.autocast(
                "cpu", enabled=False
            ):  # a training reads them in bfloat16, which float64 is not joined in
                joined = {name: torch.cat([part[name] for part in found]) for name in found[0]}
            made = cls(joined["x"], joined["times"], joined["guidance"], joined.get("condition"))
        except (KeyError, IndexError, RuntimeError, TypeError) as error:
            raise UserError(f"they are no trajectories of one model ({error})") from None
        rows = {len(tensor) for tensor in joined.values()}
        fits = made.times.shape == made.x.shape[:2] and made.guidance.shape == made.x.shape[:1]
        if len(rows) > 1 or not fits or not made.times.diff(dim=1).lt(0).all():
            raise UserError("their times do not fit their states")
        floats = made.x.is_floating_point() and made.times.is_floating_point() and made.guidance.is_floating_point()
        finite = all(tensor.isfinite().all() for tensor in joined.values())
        if not (floats and finite) or any(not len(part["x"]) for part in found):
            raise UserError("some are no finite numbers, or a file holds none")
        return made


class Range(NamedTuple):
    """The lowest and the highest scale of guidance."""

    low: float
    high: float


def bytes_of(shape: tuple[int, ...], points: int) -> int:
    """Return the bytes of the states of one trajectory."""
    return 2 * (points + 1) * math.prod(shape)


def portion(sampler: Sampler, condition: Tensor | None, number: int, points: int, scales: Range) -> Trajectories:
    """Return the trajectories of one portion: samples number·size to number·size + size - 1.

    The portion has its own scale of guidance, and its own times: those of the sampler's grid, moved by up to half a
    step, so that all portions together know all times.

    Args:
        sampler: Draws them.
        condition: The condition of each, `(size, ...)`.
        number: Of the portion.
        points: Steps.
        scales: Between which the guidance lies.
    """
    near, far = ((0.5 + (number + 1) * step) % 1 for step in _STEPS)
    scale = scales.low + near * (scales.high - scales.low)
    settings = replace(sampler.settings, guidance=scale, steps=points)
    sampler = replace(sampler, settings=settings)
    states = []
    with torch.inference_mode(), sampler.arithmetic():
        denoise, times = sampler.denoise(condition)
        times = moved(times, far - 0.5)
        x = sampler.start(number * sampler.size, denoise.schedule, times[0])
        states.append(x.cpu())
        for step in trajectory(denoise, x, times, sampler.solver):
            states.append(step.x.cpu())
    own, sizes = back(denoise.schedule, sampler.denoiser.schedule, times)
    found = torch.stack([size * state for size, state in zip(sizes.tolist(), states, strict=True)], 1)
    if not found.isfinite().all():
        raise UserError("the samples of the teacher are not finite: distil another run")
    return Trajectories(
        found.half(), own.expand(sampler.size, -1).clone(), torch.full((sampler.size,), scale), condition
    )


def back(outer: Schedule, inner: Schedule, times: Tensor) -> tuple[Tensor, Tensor]:
    """Return times of the clock that a solver ran on as those of a model's own, and what states are multiplied by."""
    if outer == inner:
        return times, torch.ones_like(times)
    own = inner.time(outer.log_snr(times))
    ratio = torch.hypot(inner.alpha(own), inner.sigma(own)) / torch.hypot(outer.alpha(times), outer.sigma(times))
    return own, ratio


def moved(times: Tensor, share: float) -> Tensor:
    """Return falling times with those in between moved towards the next one (share above 0) or the one before."""
    middle = times[1:-1]
    neighbour = times[2:] if share > 0 else times[:-2]
    return torch.cat([times[:1], middle + abs(share) * (neighbour - middle), times[-1:]])
