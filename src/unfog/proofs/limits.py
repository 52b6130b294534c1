"""Orders of stochastic rules, in distribution, and stated orders where they do not hold."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from unfog.diffusion.oracle import MixtureDenoiser
from unfog.diffusion.sampling import follow
from unfog.diffusion.schedules import EDM, Laplace, Schedule
from unfog.diffusion.solvers import AdamsBashforth, Heun, Solver
from unfog.proofs.checks import MEAN, RECURSIONS, VARIANCE, Fractioned, gaussian
from unfog.proofs.orders import GRIDS, TOLERANCE, Problem, problems

CHURN = 4.0
"""The churn of all steps together, S_churn, where that of one step is this over their number."""


@dataclass(frozen=True)
class Limit:
    """The order of a rule in distribution, or where it is not that of its kind.

    Attributes:
        name: The rule and the place.
        stated: The order that is stated there.
        found: The measured orders by problem.
    """

    name: str
    stated: int
    found: dict[str, float]

    @property
    def passed(self) -> bool:
        """Whether every order is as stated."""
        return all(abs(order - self.stated) <= TOLERANCE for order in self.found.values())


def _error(solver: Solver, problem: Problem, steps: int) -> float:
    """Return how far mean or variance of Gaussian data are off at the end, if they are right at the start.

    As in `recursion`, each row of the batch holds one part: the mean, the first state, the noise of each step.
    """
    schedule, times = problem.schedule, problem.times(steps)
    (alpha, sigma), (alpha_s, sigma_s) = schedule.numbers(times[0]), schedule.numbers(times[-1])
    x = torch.full((steps + 2, 1), alpha * MEAN, dtype=torch.float64)
    x[1] += math.sqrt(alpha**2 * VARIANCE + sigma**2)

    def alone(step: int, like: Tensor) -> Tensor:
        z = torch.zeros_like(like)
        z[2 + step] = 1
        return z

    denoise = Fractioned(MixtureDenoiser(gaussian(MEAN, VARIANCE), schedule))
    reached = follow(denoise, x, times, solver, noise=alone)
    mean = float(reached[0]) - alpha_s * MEAN
    variance = float((reached[1:] - reached[0]).square().sum()) - (alpha_s**2 * VARIANCE + sigma_s**2)
    return max(abs(mean), abs(variance))


def in_distribution(
    name: str, stated: int, rule: Callable[[int], Solver], where: Sequence[Problem], steps: int = 80
) -> Limit:
    """Fit the order of a rule of so many steps in mean and variance, on Gaussian data.

    Args:
        name: Its name.
        stated: The order that is stated.
        rule: The rule by the number of steps.
        where: Schedules and grids.
        steps: The order is measured between so many steps and twice as many.
    """
    found = {}
    for problem in where:
        few, many = (_error(rule(number), problem, number) for number in (steps, 2 * steps))
        found[problem.name] = math.log2(few / many)
    return Limit(f"in distribution: {name}", stated, found)


def around_the_kink(schedule: Schedule, u: Tensor) -> Tensor:
    """Equal steps of the log-SNR from -1/2 to 1: the kink of `Laplace`, at 0, lies a third of the way."""
    return schedule.time(1.5 * u - 0.5)


def on_a_kink() -> Limit:
    """Fit the order of Adams-Bashforth 4 on the own clock of `Laplace`.

    Between 160 steps and four times as many, so that the kink lies at the same third of a step.
    """
    problem, rule = Problem("laplace, 2-D", Laplace(), 2, around_the_kink), AdamsBashforth(4, clock="own")
    few, many = (problem.error(rule, steps, given=True) for steps in (160, 640))
    return Limit("order: adams-bashforth 4 on a kink", 2, {problem.name: math.log(few / many, 4)})


def limits() -> list[Limit]:
    """Fit every stochastic rule on each schedule and each grid once; Heun with churn and Adams-Bashforth on a kink."""
    some = problems()[:: len(GRIDS) + 1]
    edm = [Problem(f"edm, 2-D, {name}", EDM(), 2, GRIDS[name]) for name in ("karras", "log-snr")]
    rules = {name: solver for name, (solver, *_) in RECURSIONS.items() if not isinstance(solver, Heun)}
    return [
        *(in_distribution(name, rule.order, partial(_same, rule), some) for name, rule in rules.items()),
        in_distribution(f"heun churn {CHURN:g}/steps", 2, lambda steps: Heun(CHURN / steps), some),
        in_distribution("heun churn 0.2", Heun(0.2).order, partial(_same, Heun(0.2)), edm),
        on_a_kink(),
    ]


def _same(rule: Solver, steps: int) -> Solver:
    """Return the same rule for every number of steps."""
    return rule
