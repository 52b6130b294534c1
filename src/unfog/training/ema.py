"""The averaged weights: what `sample` uses, and averages of any other length from snapshots of two."""

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
from unfog.runtime.errors import UserError
from unfog.runtime.tensors import read_tensors

GAMMAS = (16.97, 6.94)
"""Exponents of the averages that snapshots hold: lengths of 0.05 and 0.10."""
LONGEST = 12**-0.5
"""Length of a plain mean, whose exponent is 0."""
COARSE = 0.1
"""Error of a profile, relative to its size, above which an average is refused.

Weights that walk at random are then off by up to a twelfth of the way from the average to the last of them."""


class Averaged:
    """A copy of a model whose weights follow the trained ones: average += share·(weights - average)."""

    def __init__(self, model: nn.Module, profile: Average) -> None:
        """Start at the weights of `model` and follow them as `profile` says."""
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.profile = profile

    @torch.no_grad()
    def update(self, model: nn.Module, step: int, batch: int) -> None:
        """Take in the weights after optimizer step `step` (1, 2, ...) of `batch` images."""
        mine: list[Tensor] = [distributed.local(parameter) for parameter in self.model.parameters()]
        new: list[Tensor] = [distributed.local(parameter.detach()) for parameter in model.parameters()]
        torch._foreach_lerp_(mine, new, self.profile.share(step, batch))


class EMA(nn.Module):
    """A copy of any module whose parameters and buffers follow it: average += share·(new - average).

    Buffers that hold whole numbers are copied. The copy is called like the module: `ema(x, t)`, or `ema.module`.
    """

    updates: Tensor

    def __init__(self, module: nn.Module, average: Average | None = None) -> None:
        """Start at the numbers of `module`.

        Args:
            module: What is trained; it is copied, and never changed.
            average: How long the average is: `PowerAverage` (the default) or `ExponentialAverage`.
        """
        super().__init__()
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
    """How much the weights of each moment count in a power average: p(tau) = (gamma + 1)·tau^gamma / t^(gamma + 1).

    An average over steps is exactly this integral over weights that stay as they are from step to step.

    Attributes:
        gamma: Exponent.
        t: The moment of the average; later weights do not count.
    """

    gamma: float
    t: float

    def inner(self, other: "Profile") -> float:
        """Return ∫ p·q = (g + 1)(h + 1)/(g + h + 1) · s^h/t^(h + 1), with (g, s) the one that ends first.

        Beyond s the product is 0; up to s it is (g + 1)(h + 1)·tau^(g + h) / (s^(g + 1)·t^(h + 1)), and the integral
        of tau^(g + h) is s^(g + h + 1)/(g + h + 1).
        """
        (g, s), (h, t) = sorted((self, other), key=lambda profile: profile.t)
        inner: float = (g + 1) * (h + 1) / (g + h + 1) * (s / t) ** h / t
        return inner


class Reconstruction(NamedTuple):
    """An average that was not kept in training.

    Attributes:
        tensors: The weights.
        gamma: Its exponent.
        error: Distance of its profile from the wanted one, relative to that one's size.
        step: The step at whose end it stands, that of the last snapshot.
    """

    tensors: dict[str, Tensor]
    gamma: float
    error: float
    step: int


def gamma_of(length: float) -> float:
    """Return the exponent of the profile whose standard deviation is `length`·t.

    Its tau/t is distributed as Beta(gamma + 1, 1), with the variance (gamma + 1)/((gamma + 2)²·(gamma + 3)). So gamma
    is the one positive root of gamma³ + 7·gamma² + (16 - 1/length²)·gamma + 12 - 1/length².

    Raises: UserError: If the length is not above 0 and below 0.289.
    """
    if not 0 < length < LONGEST:
        raise UserError(f"the length of an average lies above 0 and below {LONGEST:.3f}, a plain mean, not at {length}")
    inverse = max(length, 1e-6) ** -2  # so that it stays a number
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


def combine(known: Sequence[Profile], wanted: Profile) -> tuple[NDArray[np.float64], float]:
    """Return the combination of profiles that is nearest to another one: least |Σ x_i·p_i - p|² under Σ x_i = 1.

    Where weights never change, the sum keeps them. With A_ij = <p_i, p_j>, b_i = <p_i, p> and a multiplier m the least
    is where A·x + m = b.

    Args:
        known: The profiles p_i.
        wanted: The profile p.

    Returns: The coefficients x, and |Σ x_i·p_i - p| / |p|.
    Source: Karras et al. 2024, Analyzing and Improving the Training Dynamics of Diffusion Models, section 3 and
    appendix C; the sum is ours.
    """
    square = np.array([[one.inner(other) for other in known] for one in known])
    right = np.array([one.inner(wanted) for one in known])
    ones = np.ones((len(known), 1))
    system = np.block([[square, ones], [ones.T, np.zeros((1, 1))]])
    x = np.linalg.lstsq(system, np.append(right, 1.0), rcond=None)[0][:-1]
    size = wanted.inner(wanted)
    return x, math.sqrt(max(0.0, x @ square @ x - 2 * (x @ right) + size) / size)


def reconstruct(folder: Path, length: float) -> Reconstruction:
    """Return the average of any length at the last of the snapshots in a folder.

    Args:
        folder: Holds snapshots of the averages with the exponents `GAMMAS`, each named after its step.
        length: Standard deviation of the average's profile, relative to the steps so far.

    Raises: UserError: If there is no snapshot, or the length is out of range, or too short for them.
    """
    gamma = gamma_of(length)
    files = sorted(path for path in folder.glob("*.safetensors") if path.stem.isdigit())
    if not files:
        raise UserError(f"{folder} holds no snapshots of averages: train with --set training.snapshots=32 to have them")
    step = int(files[-1].stem)
    known = [Profile(one, int(file.stem) / step) for file in files for one in GAMMAS]
    shares, error = combine(known, Profile(gamma, 1.0))
    if error > COARSE:
        raise UserError(
            f"an average of the length {length} misses its profile by {error:.0%} with the snapshots ({len(files)}) in "
            f"{folder}: ask for one nearer to 0.05 or 0.1, or train with more than that in training.snapshots"
        )
    tensors: dict[str, Tensor] = {}
    for file, pair in zip(files, shares.reshape(-1, len(GAMMAS)).tolist(), strict=True):
        share = dict(zip(map(str, GAMMAS), pair, strict=True))
        for name, tensor in read_tensors(file).items():
            exponent, _, weight = name.partition("/")
            tensors[weight] = tensors.get(weight, 0) + share[exponent] * tensor.double()
    return Reconstruction(tensors, gamma, error, step)
