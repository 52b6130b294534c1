"""Averaged weights (EMA), and post-hoc averages of any length from snapshots of two."""

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from unfog.recipes.settings import Average, PowerAverage
from unfog.runtime import distributed
from unfog.runtime.brief import outline
from unfog.runtime.errors import UserError
from unfog.runtime.tensors import read_tensors
from unfog.training.checkpoint import numbered

GAMMAS = (16.97, 6.94)
"""Exponents of the averages in a snapshot: lengths of 0.05 and 0.10."""
LONGEST = 12**-0.5
"""Length of a plain mean (exponent 0)."""
COARSE = 0.1
"""Largest relative error of a profile for which an average is reconstructed.

At this error, for weights that follow a random walk, the average is off by up to a twelfth of its distance to the last
weights."""


class Averaged:
    """The averaged copy of a model: average += share·(weights - average)."""

    def __init__(self, model: nn.Module, profile: Average) -> None:
        """Start from the weights of `model`; `profile` sets the share of each step."""
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.profile = profile

    @torch.no_grad()
    def update(self, model: nn.Module, step: float, batch: int) -> None:
        """Update with the weights after optimizer step `step` (1, 2, ...) of `batch` images, see `Average.share`."""
        averages: list[Tensor] = [distributed.local(parameter) for parameter in self.model.parameters()]
        weights: list[Tensor] = [distributed.local(parameter.detach()) for parameter in model.parameters()]
        torch._foreach_lerp_(averages, weights, self.profile.share(step, batch))


class EMA(nn.Module):
    """A copy of any module whose parameters and buffers follow it: average += share·(new - average).

    Buffers that hold whole numbers are copied. The copy is called like the module: `ema(x, t)`, or `ema.module`.
    """

    updates: Tensor

    __repr__ = outline

    def __init__(self, module: nn.Module, average: Average | None = None) -> None:
        """Start at the numbers of `module`.

        Args:
            module: What is trained; it is copied, and never changed.
            average: How long the average is: `PowerAverage` (the default) or `ExponentialAverage`.

        Raises: UserError: If `average` is neither, for instance a decay.
        """
        super().__init__()
        if not (average is None or hasattr(average, "share")):
            raise UserError(f"the length of an average is PowerAverage() or ExponentialAverage(), not {average!r}")
        self.module = copy.deepcopy(module).eval().requires_grad_(False)
        self.average = average or PowerAverage()
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def update(self, module: nn.Module, batch: int = 1) -> None:
        """Take in the numbers of `module` after an optimizer step.

        Args:
            module: What is trained.
            batch: Rows in that step, which averages that count in rows need.
        """
        self.updates += 1
        share = self.average.share(int(self.updates), batch)
        kept = [*self.module.parameters(), *self.module.buffers()]
        for mine, new in zip(kept, [*module.parameters(), *module.buffers()], strict=True):
            if mine.is_floating_point() or mine.is_complex():
                mine.lerp_(new, share)
            else:
                mine.copy_(new)

    def train(self, mode: bool = True) -> "EMA":
        """Leave the copy in eval mode."""
        return self

    def forward(self, *args: Any, **words: Any) -> Any:
        """Call the copy."""
        return self.module(*args, **words)


class Profile(NamedTuple):
    """The profile of a power average, its weight on each time: p(tau) = (gamma + 1)·tau^gamma / t^(gamma + 1).

    An average over steps equals this integral over piecewise constant weights.

    Attributes:
        gamma: Exponent.
        t: Time of the average; p(tau) = 0 for tau > t.
    """

    gamma: float
    t: float

    def inner(self, other: "Profile") -> float:
        """Return ∫ p·q = (g + 1)(h + 1)/(g + h + 1) · s^h/t^(h + 1), where s ≤ t.

        Beyond s the product is 0; up to s it is (g + 1)(h + 1)·tau^(g + h) / (s^(g + 1)·t^(h + 1)), and the integral
        of tau^(g + h) is s^(g + h + 1)/(g + h + 1).
        """
        (g, s), (h, t) = sorted((self, other), key=lambda profile: profile.t)
        inner: float = (g + 1) * (h + 1) / (g + h + 1) * (s / t) ** h / t
        return inner


class Reconstruction(NamedTuple):
    """A post-hoc average, reconstructed from snapshots.

    Attributes:
        tensors: The weights.
        gamma: Exponent of its profile.
        error: Relative error of the reconstructed profile.
        step: Step of the average, that of the last snapshot.
    """

    tensors: dict[str, Tensor]
    gamma: float
    error: float
    step: int


def gamma_of(length: float) -> float:
    """Return the exponent of the profile whose standard deviation is `length`·t.

    Its tau/t is distributed as Beta(gamma + 1, 1), with the variance (gamma + 1)/((gamma + 2)²·(gamma + 3)). So gamma
    is the only positive root of gamma³ + 7·gamma² + (16 - 1/length²)·gamma + 12 - 1/length².

    Raises: UserError: If the length is not above 0 and below 0.289.
    """
    if not 0 < length < LONGEST:
        raise UserError(
            f"the length of an average must be above 0 and below {LONGEST:.3f} (a plain mean), not {length}"
        )
    inverse = max(length, 1e-6) ** -2  # avoids overflow
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


def combine(known: Sequence[Profile], wanted: Profile) -> tuple[NDArray[np.float64], float]:
    """Return the best combination of profiles: minimise |Σ x_i·p_i - p|² subject to Σ x_i = 1.

    The constraint keeps constant weights constant. With A_ij = <p_i, p_j>, b_i = <p_i, p> and a Lagrange multiplier m,
    the minimum satisfies A·x + m = b.

    Args:
        known: The profiles p_i.
        wanted: The profile p.

    Returns: The coefficients x, and |Σ x_i·p_i - p| / |p|.
    Source: Karras et al. 2024, Analyzing and Improving the Training Dynamics of Diffusion Models, section 3 and
    appendix C; the constraint is ours.
    """
    square = np.array([[profile.inner(other) for other in known] for profile in known])
    right = np.array([profile.inner(wanted) for profile in known])
    ones = np.ones((len(known), 1))
    system = np.block([[square, ones], [ones.T, np.zeros((1, 1))]])
    x = np.linalg.lstsq(system, np.append(right, 1.0), rcond=None)[0][:-1]
    size = wanted.inner(wanted)
    return x, math.sqrt(max(0.0, x @ square @ x - 2 * (x @ right) + size) / size)


def reconstruct(folder: Path, length: float) -> Reconstruction:
    """Reconstruct the average of any length at the last snapshot in a folder.

    Args:
        folder: Contains snapshots of the averages with exponents `GAMMAS`, each named after its step.
        length: Standard deviation of the average's profile, relative to the number of steps.

    Raises: UserError: If there are no snapshots, the length is out of range, or the snapshots are too few for it.
    """
    gamma = gamma_of(length)
    files = sorted(path for path in folder.glob("*.safetensors") if numbered(path.stem))
    if not files:
        raise UserError(f"{folder} contains no snapshots of averages: train with training.snapshots=32 to write them")
    step = int(files[-1].stem)
    known = [Profile(exponent, int(file.stem) / step) for file in files for exponent in GAMMAS]
    shares, error = combine(known, Profile(gamma, 1.0))
    if error > COARSE:
        raise UserError(
            f"an average of length {length} has an error of {error:.0%} with the {len(files)} snapshots in {folder}: "
            "choose a length closer to 0.05 or 0.1, or train with a larger training.snapshots"
        )
    tensors: dict[str, Tensor] = {}
    for file, pair in zip(files, shares.reshape(-1, len(GAMMAS)).tolist(), strict=True):
        share = dict(zip(map(str, GAMMAS), pair, strict=True))
        for name, tensor in read_tensors(file).items():
            exponent, _, weight = name.partition("/")
            tensors[weight] = tensors.get(weight, 0) + share[exponent] * tensor.double()
    return Reconstruction(tensors, gamma, error, step)
