"""Orders of convergence, fitted on mixtures of Gaussians whose probability flow is known to twelve digits."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from unfog.diffusion.denoiser import Denoise, Wrapped
from unfog.diffusion.oracle import Mixture, MixtureDenoiser
from unfog.diffusion.sampling import follow, trajectory
from unfog.diffusion.schedules import EDM, CosineContinuous, LinearContinuous, RectifiedFlow, Schedule, as_time
from unfog.diffusion.solvers import (
    DDIM,
    AdamsBashforth,
    DPMSolver2,
    DPMSolverPP2M,
    DPMSolverPP3M,
    Euler,
    Heun,
    Solver,
    Step,
    UniPC,
)
from unfog.diffusion.targets import Prediction

TOLERANCE = 0.1
"""How far a measured order may lie from the stated one."""
COUNTS = {1: 80, 2: 80, 3: 160, 4: 320}
"""An order is measured between so many steps and twice as many: the higher, the later it shows."""
SOLVERS: dict[str, Solver] = {
    "euler": Euler(),
    "ddim": DDIM(),
    "heun": Heun(),
    "dpm-solver-2": DPMSolver2(),
    "dpmpp-2m": DPMSolverPP2M(),
    "dpmpp-3m": DPMSolverPP3M(),
    "unipc p=2": UniPC(2),
    "unipc p=3": UniPC(3),
    "adams-bashforth 2": AdamsBashforth(2),
    "adams-bashforth 3": AdamsBashforth(3),
    "adams-bashforth 4": AdamsBashforth(4),
}
"""The deterministic rules whose order is fitted."""


def mixture(dim: int, seed: int, components: int = 4) -> Mixture:
    """Return a mixture of about unit variance, drawn from a seed, float64."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    weights = 0.5 + draw(components)
    return Mixture(weights / weights.sum(), 2 * draw(components, dim) - 1, 0.1 + 0.3 * draw(components, dim))


def _levels(schedule: Schedule, span: float) -> tuple[float, float]:
    """Return the interior of the clock: the log-SNRs from -span, or the schedule's end, to span."""
    return max(-span, float(schedule.log_snr(schedule.t_max))), span


def uniform(schedule: Schedule, u: Tensor) -> Tensor:
    """Equal steps of the clock, where |log_snr| is at most 2: nearer to the data they are too coarse for any fit."""
    loud, quiet = _levels(schedule, 2.0)
    return torch.lerp(schedule.time(loud), schedule.time(quiet), u)


def log_snr(schedule: Schedule, u: Tensor) -> Tensor:
    """Equal steps of the log-SNR, where it is at most 6."""
    loud, quiet = _levels(schedule, 6.0)
    return schedule.time(loud + (quiet - loud) * u)


def karras(schedule: Schedule, u: Tensor) -> Tensor:
    """Equal steps of (sigma/alpha)^(1/7), where |log_snr| is at most 6."""
    high, low = (math.exp(-level / 14) for level in _levels(schedule, 6.0))
    return schedule.time(-14 * torch.log(high + (low - high) * u))


def warped(schedule: Schedule, u: Tensor) -> Tensor:
    """The log-SNR in steps that a fixed random smooth warp of u stretches and shrinks."""
    amplitudes = np.random.default_rng(7).uniform(-1, 1, 4)
    waves = (
        amplitude * 0.04 / (k + 1) * torch.sin(2 * math.pi * (k + 1) * u) for k, amplitude in enumerate(amplitudes)
    )
    return log_snr(schedule, u + sum(waves, torch.zeros_like(u)))


GRIDS: dict[str, Callable[[Schedule, Tensor], Tensor]] = {
    "uniform": uniform,
    "log-snr": log_snr,
    "karras": karras,
    "warped": warped,
}
"""The four grids, each a map from u in [0, 1] to falling times."""


@dataclass(frozen=True)
class Counting(Wrapped):
    """A denoiser that counts its evaluations."""

    calls: list[float]

    def __call__(self, x: Tensor, t: Tensor) -> Prediction:
        """Predict (x0, eps) and note the (latest) time."""
        self.calls.append(float(t.max()))
        return self.denoise(x, t)


def exact(denoise: Denoise, x: Tensor, times: Sequence[float]) -> list[Tensor]:
    """Return the states of the probability flow at each time, by an independent Runge-Kutta rule of order 8.

    On schedules that reach alpha = 0 the flow is followed in the schedule's own clock, else as dz/dr = eps with
    z = x/alpha and r = sigma/alpha, which is regular down to clean data.

    Args:
        denoise: The exact denoiser.
        x: State at the first time, `(batch, dim)`, float64.
        times: Where to stop.

    Returns: One state for each time; the first is `x`.
    Source: Hairer, Nørsett & Wanner 1993 (DOP853, as scipy has it).
    """
    schedule = denoise.schedule
    own = float(schedule.alpha(times[0])) == 0

    def size(t: float) -> float:
        return 1.0 if own else float(schedule.alpha(t))

    def place(t: float) -> float:
        return t if own else float(schedule.sigma(t)) / float(schedule.alpha(t))

    def slope(r: float, z: np.ndarray) -> np.ndarray:
        t = as_time(r) if own else schedule.time(-2 * as_time(r).log())
        prediction = denoise(torch.from_numpy(z).reshape(x.shape) * size(float(t)), t)
        if not own:
            return prediction.eps.numpy().ravel()
        alpha_rate, sigma_rate = schedule.rates(t)
        return (alpha_rate * prediction.x0 + sigma_rate * prediction.eps).numpy().ravel()

    states, z = [x], (x / size(times[0])).numpy().ravel()
    for t, s in pairwise(times):
        z = solve_ivp(slope, (place(t), place(s)), z, method="DOP853", rtol=1e-13, atol=1e-13).y[:, -1]
        states.append(torch.from_numpy(z.copy()).reshape(x.shape) * size(s))
    return states


@dataclass(frozen=True)
class Problem:
    """One mixture under one schedule on one grid."""

    name: str
    schedule: Schedule
    dim: int
    grid: Callable[[Schedule, Tensor], Tensor]

    @cached_property
    def denoise(self) -> MixtureDenoiser:
        """The exact denoiser."""
        return MixtureDenoiser(mixture(self.dim, seed=self.dim), self.schedule)

    def times(self, steps: int) -> Tensor:
        """Return the times of `steps` steps."""
        return self.grid(self.schedule, torch.linspace(0, 1, steps + 1, dtype=torch.float64))

    @cached_property
    def start(self) -> Tensor:
        """States drawn at the first time, `(16, dim)`."""
        generator = torch.Generator().manual_seed(self.dim)
        x0 = self.denoise.mixture.sample(16, generator)
        eps = torch.randn(x0.shape, dtype=torch.float64, generator=generator)
        return self.schedule.add_noise(x0, eps, float(self.times(1)[0]))

    @cached_property
    def end(self) -> Tensor:
        """Where they lead."""
        return exact(self.denoise, self.start, self.times(1).tolist())[-1]

    @lru_cache  # noqa: B019  # problems live as long as the module
    def before(self, steps: int) -> list[Tensor]:
        """Return the exact states at the first four times of `steps` steps."""
        return exact(self.denoise, self.start, self.times(steps)[:4].tolist())

    def error(self, solver: Solver, steps: int, given: bool) -> float:
        """Return the root mean square error at the end; with `given`, of a rule that begins with exact past steps."""
        times, first = self.times(steps), solver.memory if given else 0
        states = self.before(steps) if first else [self.start]
        past = [Step(times[i], times[i + 1], states[i + 1], self.denoise(states[i], times[i])) for i in range(first)]
        x = states[first]
        with torch.inference_mode():
            for step in trajectory(self.denoise, x, times[first:], solver, past=past):
                x = step.x
        return float((x - self.end).square().mean().sqrt())

    def order(self, solver: Solver, given: bool) -> float:
        """Return the order of convergence."""
        steps = COUNTS[min(solver.order, 4)]
        few, many = (max(self.error(solver, number, given), 1e-15) for number in (steps, 2 * steps))
        return math.log2(few / many)


@lru_cache
def problems() -> tuple[Problem, ...]:
    """Return every schedule, each with a mixture of its own dimension, on every grid."""
    cases: list[tuple[str, Schedule, int]] = [
        ("linear", LinearContinuous(), 2),
        ("cosine", CosineContinuous(), 4),
        ("flow", RectifiedFlow(), 8),
        ("edm", EDM(), 3),
    ]
    return tuple(
        Problem(f"{name}, {dim}-D, {label}", schedule, dim, grid)
        for name, schedule, dim in cases
        for label, grid in GRIDS.items()
    )


@lru_cache
def whole() -> Problem:
    """Return the problem that runs from pure noise to clean data: flow, two dimensions, equal steps."""
    return Problem("flow, 2-D, all of the clock", RectifiedFlow(), 2, lambda _, u: 1 - u)


def count(solver: Solver, steps: int) -> int:
    """Return how often a rule calls the denoiser on a grid from near pure noise to clean data."""
    counting = Counting(MixtureDenoiser(mixture(2, 2), RectifiedFlow()), [])
    times = torch.linspace(0.99, 0, steps + 1, dtype=torch.float64)
    follow(counting, torch.zeros(1, 2, dtype=torch.float64), times, solver)
    return len(counting.calls)


@dataclass(frozen=True)
class Order:
    """What was measured of one deterministic rule.

    Attributes:
        solver: Its name.
        stated: The order that it promises.
        exact: The measured order on each problem, begun with exact past steps.
        alone: The same where the rule begins by itself, on four of them; None where it reads no past.
        end: The order over the whole clock, with the first-order step onto clean data.
        error_10: Root mean square error over the whole clock at 10 evaluations or just below.
        error_20: The same at 20.
    """

    solver: str
    stated: int
    exact: dict[str, float]
    alone: dict[str, float] | None
    end: float
    error_10: float
    error_20: float

    @property
    def within(self) -> bool:
        """Whether every order with exact starting values is as stated."""
        return all(abs(order - self.stated) <= TOLERANCE for order in self.exact.values())

    @property
    def ends(self) -> bool:
        """Whether onto clean data, where every rule is of first order, the error falls as fast as that at least."""
        return self.end > 1 - TOLERANCE

    @property
    def passed(self) -> bool:
        """Whether both hold."""
        return self.within and self.ends


def measure(name: str, solver: Solver) -> Order:
    """Fit the order of a deterministic rule, its behaviour at the end, and its errors at 10 and 20 evaluations.

    Args:
        name: Its name.
        solver: The rule; its `order` is what is stated.

    Returns: The measurements.
    """
    orders = {problem.name: problem.order(solver, given=True) for problem in problems()}
    some = problems()[:: len(GRIDS) + 1]  # each schedule and each grid once
    alone = {problem.name: problem.order(solver, given=False) for problem in some} if solver.memory else None

    def error(calls: int) -> float:
        steps = next(steps for steps in range(calls, 0, -1) if count(solver, steps) <= calls)
        return whole().error(solver, steps, given=False)

    end = whole().order(solver, given=False)
    return Order(name, solver.order, orders, alone, end, error(10), error(20))
