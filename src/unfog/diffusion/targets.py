"""The second equation, output = a(t)·x0 + b(t)·eps: what a network predicts is a row of coefficients (a, b)."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, final

import torch
from torch import Tensor

from unfog.diffusion.schedules import Schedule, as_time, expand
from unfog.runtime.brief import brief
from unfog.runtime.errors import UserError


class Prediction(NamedTuple):
    """(x0, eps), the one currency between networks and solvers: predicted clean data and predicted noise.

    Attributes:
        x0: Clean data, `(batch, *shape)`.
        eps: The noise in the state, shaped like `x0`.
        variance_fraction: Where the log-variance of a step lies between the posterior's (0) and the forward one (1),
            shaped like `x0`; None for models without a learned variance.
    """

    x0: Tensor
    eps: Tensor
    variance_fraction: Tensor | None = None

    def __repr__(self) -> str:
        """Return the fields by their shapes."""
        return brief(self)


@dataclass(frozen=True)
class Target(ABC):
    """One row of coefficients (a, b); solving it together with the schedule gives (x0, eps)."""

    @abstractmethod
    def coefficients(self, schedule: Schedule, t: Tensor | float) -> tuple[Tensor, Tensor]:
        """Return (a, b) at time `t`, float64, shaped like `t`."""

    @final
    def determinant(self, schedule: Schedule, t: Tensor | float) -> Tensor:
        """Return D = b·alpha - a·sigma, which is 0 where output and state do not determine (x0, eps)."""
        a, b = self.coefficients(schedule, t)
        return b * schedule.alpha(t) - a * schedule.sigma(t)

    @final
    def check(self, schedule: Schedule) -> None:
        """Raise a UserError if this target cannot be trained or solved on `schedule`.

        The coefficients must be finite from t = 0 on, and D non-zero from the first trained time on.
        """
        name, clock = type(self).__name__, type(schedule).__name__
        ends = as_time([0.0, schedule.t_first, schedule.t_max])
        try:
            self.coefficients(schedule, ends)
        except UserError as error:
            raise UserError(f"the target {name} does not fit the schedule {clock}: {error}") from error
        singular = self.determinant(schedule, ends)[1:] == 0
        if singular.any():
            t = ends[1:][singular][0].item()
            alpha = schedule.alpha(t).item()
            raise UserError(
                f"the target {name} cannot be solved at t = {t:g} of the schedule {clock}, where alpha = {alpha:g}: "
                "use the target v, x0 or flow, or a schedule that keeps some signal to its end"
            )

    @final
    def of(self, x0: Tensor, eps: Tensor, t: Tensor | float, schedule: Schedule) -> Tensor:
        """Return output = a·x0 + b·eps, what the network should predict.

        Args:
            x0: Clean data, `(batch, *shape)`.
            eps: The noise in it, shaped like `x0`.
            t: Time, `()` or `(batch,)`.
            schedule: The schedule whose clock `t` is on.

        Returns: The regression target, shaped like `x0`.
        """
        a, b = self.coefficients(schedule, t)
        return expand(a, x0) * x0 + expand(b, x0) * eps

    @final
    def solve(self, output: Tensor, x_t: Tensor, t: Tensor | float, schedule: Schedule) -> Prediction:
        """Return x0 = (b·x_t - sigma·output)/D and eps = (alpha·output - a·x_t)/D.

        Args:
            output: The network's output, shaped like `x_t`.
            x_t: The noisy state, `(batch, *shape)`.
            t: Time, `()` or `(batch,)`, where D is not 0.
            schedule: The schedule whose clock `t` is on.

        Returns: The pair (x0, eps), each shaped like `x_t`.
        """
        shares = schedule._recall(self, t, partial(self._solution, schedule))
        b, sigma, alpha, a = (expand(share, x_t) for share in shares)
        return Prediction(b * x_t - sigma * output, alpha * output - a * x_t)

    @final
    def _solution(self, schedule: Schedule, t: Tensor | float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return b/D, sigma/D, alpha/D and a/D."""
        a, b = self.coefficients(schedule, t)
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        d = b * alpha - a * sigma
        return b / d, sigma / d, alpha / d, a / d


@dataclass(frozen=True)
class Eps(Target):
    """output = eps, the noise, as in DDPM.

    Source: Ho et al. 2020, eq. 11.
    """

    def coefficients(self, schedule: Schedule, t: Tensor | float) -> tuple[Tensor, Tensor]:
        """Return (0, 1)."""
        one = torch.ones_like(as_time(t))
        return one - 1, one


@dataclass(frozen=True)
class X0(Target):
    """output = x0, the clean data."""

    def coefficients(self, schedule: Schedule, t: Tensor | float) -> tuple[Tensor, Tensor]:
        """Return (1, 0)."""
        one = torch.ones_like(as_time(t))
        return one, one - 1


@dataclass(frozen=True)
class V(Target):
    """output = alpha·eps - sigma·x0.

    Source: Salimans & Ho 2022, Progressive Distillation, appendix D.
    """

    def coefficients(self, schedule: Schedule, t: Tensor | float) -> tuple[Tensor, Tensor]:
        """Return (-sigma, alpha)."""
        return -schedule.sigma(t), schedule.alpha(t)


@dataclass(frozen=True)
class Flow(Target):
    """output = alpha'·x0 + sigma'·eps, the velocity along the path from data to noise.

    Source: Lipman et al. 2023, Flow Matching, eq. 9.
    """

    def coefficients(self, schedule: Schedule, t: Tensor | float) -> tuple[Tensor, Tensor]:
        """Return (alpha', sigma')."""
        return schedule.rates(t)


@dataclass(frozen=True)
class EDMTarget(Target):
    """output = (sigma·x0/sigma_data - sigma_data·alpha·eps)/r, r² = sigma² + sigma_data²·alpha².

    Attributes:
        sigma_data: Standard deviation of the clean data.

    Source: Karras et al. 2022, table 1 (their c_skip and c_out).
    """

    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        """Check the deviation."""
        if not self.sigma_data > 0:
            raise UserError(f"sigma_data must be above 0, not {self.sigma_data}")

    def coefficients(self, schedule: Schedule, t: Tensor | float) -> tuple[Tensor, Tensor]:
        """Return (sigma/(sigma_data·r), -sigma_data·alpha/r)."""
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        r = torch.sqrt(sigma**2 + self.sigma_data**2 * alpha**2)
        return sigma / (self.sigma_data * r), -self.sigma_data * alpha / r
