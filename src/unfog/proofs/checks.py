"""Proofs against answers in closed form: noise, guidance, clipping, weights, clocks, likelihoods."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from unfog.diffusion.denoiser import Clipped, Denoise, Denoiser, Rescheduled, Wrapped, edm_clock
from unfog.diffusion.grids import Grid, LeadingGrid, LinspaceGrid, TrailingGrid, UniformGrid
from unfog.diffusion.guidance import CFGPlusPlus, ClassifierFree, ClassifierGuided
from unfog.diffusion.likelihood import bits_per_dim, log_likelihood
from unfog.diffusion.oracle import Mixture, MixtureDenoiser
from unfog.diffusion.sampling import follow
from unfog.diffusion.schedules import LinearContinuous, RectifiedFlow, Schedule, as_time
from unfog.diffusion.solvers import (
    DDIM,
    Ancestral,
    DPMSolverPPSDE2M,
    EulerAncestral,
    Heun,
    RungeKutta45,
    Solver,
)
from unfog.diffusion.tables import Linear, Table
from unfog.diffusion.targets import EDMTarget, Eps, Prediction
from unfog.diffusion.weightings import P2, EDMWeighting, MinSNR, SigmoidWeighting
from unfog.networks.conditioning import Cond
from unfog.proofs.orders import SOLVERS, count, mixture, problems
from unfog.recipes.kinds import KINDS, class_of

Line = tuple[float, float]
"""alpha and sigma at one time of a grid."""
MEAN, VARIANCE = 0.4, 0.3
"""Mean and variance of the Gaussian data on which the stochastic rules are followed."""
FRACTION = 0.3
"""The variance fraction that the learned-variance rule is given."""


@dataclass(frozen=True)
class Proof:
    """One agreement with a known answer.

    Attributes:
        name: What was compared.
        deviation: The largest difference.
        limit: The largest one allowed.
    """

    name: str
    deviation: float
    limit: float

    @property
    def passed(self) -> bool:
        """Whether the difference is within the limit; NaN is not."""
        return self.deviation <= self.limit


def gaussian(mean: float, variance: float, dim: int = 1) -> Mixture:
    """Return one Gaussian as a mixture, float64."""
    center, spread = (torch.full((1, dim), value, dtype=torch.float64) for value in (mean, variance))
    return Mixture(as_time([1.0]), center, spread)


def _largest(measured: Tensor, wanted: Tensor) -> float:
    """Return the largest absolute difference."""
    return float((measured - wanted).abs().max())


# Stochastic rules: the formulas of the papers, through x_t, on data N(0.4, 0.3), in numpy


def _guess(x: np.ndarray, line: Line) -> np.ndarray:
    """Return E[x0 | x_t]."""
    alpha, sigma = line
    return np.asarray(MEAN + alpha * VARIANCE * (x - alpha * MEAN) / (alpha**2 * VARIANCE + sigma**2))


def _ddpm(variance: str) -> Callable[..., np.ndarray]:
    """Ho et al. 2020, eqs. 6, 7 and algorithm 2; Nichol & Dhariwal 2021, eq. 15."""

    def step(x: np.ndarray, z: np.ndarray, before: Line, after: Line, _: list[tuple[Line, np.ndarray]]) -> np.ndarray:
        bar_t, bar_s = before[0] ** 2, after[0] ** 2
        beta = 1 - bar_t / bar_s
        mean = math.sqrt(bar_s) * beta / (1 - bar_t) * _guess(x, before)
        mean = mean + math.sqrt(1 - beta) * (1 - bar_s) / (1 - bar_t) * x
        if bar_s == 1:
            return np.asarray(mean)
        small = beta * (1 - bar_s) / (1 - bar_t)
        learned = math.exp(FRACTION * math.log(beta) + (1 - FRACTION) * math.log(small))
        return np.asarray(mean + math.sqrt({"small": small, "large": beta, "learned": learned}[variance]) * z)

    return step


def _ddim(eta: float) -> Callable[..., np.ndarray]:
    """Song et al. 2021, eqs. 12 and 16."""

    def step(x: np.ndarray, z: np.ndarray, before: Line, after: Line, _: list[tuple[Line, np.ndarray]]) -> np.ndarray:
        bar_t, bar_s = before[0] ** 2, after[0] ** 2
        x0 = _guess(x, before)
        eps = (x - math.sqrt(bar_t) * x0) / math.sqrt(1 - bar_t)
        fresh = eta * math.sqrt((1 - bar_s) / (1 - bar_t)) * math.sqrt(1 - bar_t / bar_s)
        return np.asarray(math.sqrt(bar_s) * x0 + math.sqrt(1 - bar_s - fresh**2) * eps + fresh * z)

    return step


def _sde_2m(x: np.ndarray, z: np.ndarray, before: Line, after: Line, past: list[tuple[Line, np.ndarray]]) -> np.ndarray:
    """Lu et al. 2022, DPM-Solver++: SDE-DPM-Solver++(2M), midpoint."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = before, after
    x0 = _guess(x, before)
    past.append((before, x0))
    if sigma_s == 0:
        return x0
    h = math.log(alpha_s / sigma_s) - math.log(alpha_t / sigma_t)
    out = sigma_s / sigma_t * math.exp(-h) * x + alpha_s * (1 - math.exp(-2 * h)) * x0
    if len(past) > 1:
        (alpha, sigma), earlier = past[-2]
        ratio = (math.log(alpha_t / sigma_t) - math.log(alpha / sigma)) / h
        out = out + 0.5 * alpha_s * (1 - math.exp(-2 * h)) / ratio * (x0 - earlier)
    return np.asarray(out + sigma_s * math.sqrt(1 - math.exp(-2 * h)) * z)


def _euler_ancestral(eta: float) -> Callable[..., np.ndarray]:
    """Ancestral Euler in x0 + sigma·eps: sigma_up and sigma_down as k-diffusion has them."""

    def step(x: np.ndarray, z: np.ndarray, before: Line, after: Line, _: list[tuple[Line, np.ndarray]]) -> np.ndarray:
        t, s = before[1], after[1]
        up = min(s, eta * math.sqrt(s**2 * (t**2 - s**2) / t**2))
        down = math.sqrt(s**2 - up**2)
        return np.asarray(x + (x - _guess(x, before)) / t * (down - t) + up * z)

    return step


def _churned(churn: float, spread: float, most: float) -> Callable[..., np.ndarray]:
    """Karras et al. 2022, algorithm 2, with gamma = churn, S_noise = spread and S_tmax = most."""

    def step(x: np.ndarray, z: np.ndarray, before: Line, after: Line, _: list[tuple[Line, np.ndarray]]) -> np.ndarray:
        t, s = before[1], after[1]
        hat = t * (1 + churn) if t <= most else t
        x = x + math.sqrt(hat**2 - t**2) * spread * z
        slope = (x - _guess(x, (1, hat))) / hat
        euler = x + (s - hat) * slope
        if s == 0:
            return np.asarray(euler)
        return np.asarray(x + (s - hat) * (slope + (euler - _guess(euler, (1, s))) / s) / 2)

    return step


@dataclass(frozen=True)
class Fractioned(Wrapped):
    """A denoiser with the same variance fraction everywhere."""

    def __call__(self, x: Tensor, t: Tensor) -> Prediction:
        """Predict (x0, eps) and the fraction."""
        return self.denoise(x, t)._replace(variance_fraction=torch.full_like(x, FRACTION))


RECURSIONS: dict[str, tuple[Solver, bool, Callable[..., np.ndarray]]] = {
    "ancestral small": (Ancestral("small"), False, _ddpm("small")),
    "ancestral large": (Ancestral("large"), False, _ddpm("large")),
    "ancestral learned": (Ancestral("learned"), False, _ddpm("learned")),
    "ddim eta 0.5": (DDIM(0.5), False, _ddim(0.5)),
    "ddim eta 1": (DDIM(1.0), False, _ddim(1.0)),
    "dpmpp-2m-sde": (DPMSolverPPSDE2M(), False, _sde_2m),
    "euler-ancestral": (EulerAncestral(), True, _euler_ancestral(1.0)),
    "euler-ancestral 0.6": (EulerAncestral(0.6), True, _euler_ancestral(0.6)),
    "heun churn 0.2": (Heun(0.2, churn_max=100.0, churn_noise=1.003), True, _churned(0.2, 1.003, 100.0)),
}
"""Each stochastic rule, whether it runs on the EDM clock, and its published formula."""


def recursion(
    name: str,
    solver: Solver,
    edm: bool,
    formula: Callable[..., np.ndarray],
    grid: Grid | None = None,
    steps: int = 20,
) -> Proof:
    """Follow mean and variance of a stochastic rule on Gaussian data, and compare with its published formula.

    There every step is affine in the state and in its noise. So a batch whose rows hold nothing, the first state
    alone, and the noise of one step alone, shows the exact mean (the first row) and, as the sum of the squared
    differences from it, the exact variance: no draw is made.

    Args:
        name: How to call the rule.
        solver: The rule.
        edm: Whether it runs on the EDM clock.
        formula: Its published step.
        grid: Places the steps on a linear table; default: in equal steps.
        steps: Number of steps.
    """
    table = Linear()
    denoise: Denoise = Fractioned(MixtureDenoiser(gaussian(MEAN, VARIANCE), table))
    times = (grid or UniformGrid())(table, steps)
    if edm:
        clock = edm_clock(table)
        denoise, times = Rescheduled(denoise, clock), clock.time(table.log_snr(times)).clamp(max=clock.t_max)
    schedule = denoise.schedule
    x = torch.zeros(steps + 2, 1, dtype=torch.float64)
    x[1] = schedule.sigma(times[0])

    def alone(step: int, like: Tensor) -> Tensor:
        z = torch.zeros_like(like)
        z[2 + step] = 1
        return z

    reached = follow(denoise, x, times, solver, noise=alone).numpy()
    lines = [(float(schedule.alpha(t)), float(schedule.sigma(t))) for t in times]
    wanted, past = x.numpy(), []  # type: ignore[var-annotated]
    for step, (before, after) in enumerate(pairwise(lines)):
        wanted = formula(wanted, alone(step, x).numpy(), before, after, past)
    mean = abs(reached[0, 0] - wanted[0, 0])
    variance = abs(((reached[1:] - reached[0]) ** 2).sum() - ((wanted[1:] - wanted[0]) ** 2).sum())
    return Proof(f"moments: {name}", float(max(mean, variance)), 1e-9)


def recursions() -> list[Proof]:
    """Every stochastic rule."""
    return [recursion(name, *rest) for name, rest in RECURSIONS.items()]


# Schedules, costs, guidance, weights, clocks, likelihoods


def agreement() -> list[Proof]:
    """Schedules: time inverts log_snr, and alpha, sigma have it, where |log_snr| is at most 20."""
    proofs = []
    for kind in KINDS["schedule"]:
        schedule: Schedule = Table((0.9, 0.5, 0.1)) if kind == "table" else class_of("schedule", kind)()
        low = max(-20.0, float(schedule.log_snr(schedule.t_max)))
        wanted = torch.linspace(low, 20, 401, dtype=torch.float64)
        t = schedule.time(wanted)
        ratio = 2 * (schedule.alpha(t) / schedule.sigma(t)).log()
        worst = max(_largest(schedule.log_snr(t), wanted), _largest(ratio, wanted))
        proofs.append(Proof(f"schedule: {kind}", worst, 1e-10))
    return proofs


def evaluations() -> list[Proof]:
    """Ten steps onto clean data cost 10 evaluations; 19 in the rules that look twice, but for the last step."""
    stated = {name: 19 if name in ("heun", "dpm-solver-2") else 10 for name in SOLVERS}
    return [Proof(f"evaluations: {name}", abs(count(SOLVERS[name], 10) - wanted), 0) for name, wanted in stated.items()]


def inversions() -> list[Proof]:
    """Deterministic rules: 200 steps down and 200 up again lead back, as nearly as the order allows."""
    problem = problems()[-7]  # flow in steps of the log-SNR
    times = problem.times(200)
    proofs = []
    for name, solver in SOLVERS.items():
        there = follow(problem.denoise, problem.start, times, solver)
        back = follow(problem.denoise, there, times.flip(0), solver)
        proofs.append(Proof(f"inversion: {name}", _largest(back, problem.start), 0.2 if solver.order == 1 else 0.01))
    return proofs


def adaptive() -> list[Proof]:
    """The adaptive rule keeps its tolerance, within a factor of ten."""
    worst = 0.0
    for problem in problems()[:: len(problems()) // 4]:
        reached = follow(problem.denoise, problem.start, problem.times(1), RungeKutta45(1e-7, 1e-7))
        worst = max(worst, float((reached - problem.end).square().mean().sqrt()))
    return [Proof("error: rk45 at 1e-7", worst, 1e-6)]


def spacings(rule: Solver | None = None) -> list[Proof]:
    """DDIM on the spacings of tables, step by step: the previous time is the grid's next entry, not t - T // n."""
    grids = {"leading": LeadingGrid(), "trailing": TrailingGrid(), "linspace": LinspaceGrid()}
    return [recursion(f"ddim {name}", rule or DDIM(), False, _ddim(0.0), grid) for name, grid in grids.items()]


def clipping() -> list[Proof]:
    """With x0 clipped, DDPM is DDIM(eta = 1) and the posterior of the clipped x0: eps follows it."""
    table, x = Linear(), 2 * torch.randn(64, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    bare = MixtureDenoiser(mixture(2, 2), table)
    t, s = as_time(0.3), as_time(0.25)
    x0 = bare(x, t).x0
    held = x0.clamp(-0.2, 0.2)
    clipped = Clipped(bare, -0.2, 0.2)
    share = float((x0 != held).double().mean())
    wanted, _ = table.posterior(x, held, t, s)
    proofs = [Proof("clipping: share left alone", 1 - share, 0.9)]
    for name, solver in (("ancestral", Ancestral()), ("ddim eta 1", DDIM(1.0))):
        reached = solver.step(clipped, x, t, s, (), torch.zeros_like).x
        proofs.append(Proof(f"clipping: {name}", _largest(reached, wanted), 1e-10))
    return proofs


def guidance() -> list[Proof]:
    """Guided Gaussians are a Gaussian of precision w/S_c - (w - 1)/S_u; classifier guidance is Bayes' rule."""
    schedule, w, t = LinearContinuous(), 2.5, as_time(0.4)
    alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
    given, free = gaussian(0.7, 0.1), gaussian(-0.2, 0.5)
    x = torch.linspace(-2, 2, 41, dtype=torch.float64)[:, None]
    wide, narrow = alpha**2 * 0.5 + sigma**2, alpha**2 * 0.1 + sigma**2
    precision = w / narrow - (w - 1) / wide
    center = alpha * (w * 0.7 / narrow - (w - 1) * -0.2 / wide) / precision
    score = -precision * (x - center)
    models = MixtureDenoiser(given, schedule), MixtureDenoiser(free, schedule)
    guided = ClassifierFree(*models, w)(x, t)
    plus = CFGPlusPlus(*models, 0.6)(x, t)
    between = models[1](x, t).x0 * 0.4 + models[0](x, t).x0 * 0.6
    labelled = mixture(2, 2)
    chosen = torch.tensor([0, 2])
    weights = labelled.weights[chosen]
    part = Mixture(weights / weights.sum(), labelled.means[chosen], labelled.variances[chosen])
    y = x[:, :1] * as_time([1.0, -0.5])

    def classifier(state: Tensor, time: Tensor) -> Tensor:
        inside = MixtureDenoiser(part, schedule).log_prob(state, time)
        return weights.sum().log() + inside - MixtureDenoiser(labelled, schedule).log_prob(state, time)

    by_class = ClassifierGuided(MixtureDenoiser(labelled, schedule), classifier)(y, t)
    wanted = MixtureDenoiser(part, schedule)(y, t)
    return [
        Proof("guidance: classifier-free eps", _largest(guided.eps, -sigma * score), 1e-10),
        Proof("guidance: classifier-free x0", _largest(guided.x0, (x + sigma**2 * score) / alpha), 1e-10),
        Proof("guidance: cfg++ x0", _largest(plus.x0, between), 1e-10),
        Proof("guidance: cfg++ eps", _largest(plus.eps, models[1](x, t).eps), 0.0),
        Proof("guidance: classifier", _largest(by_class.x0, wanted.x0), 1e-10),
    ]


def weights() -> list[Proof]:
    """Closed forms on eps, where times of little noise have the smaller weights."""
    table, t = Linear(), torch.arange(1, 1001, dtype=torch.float64) / 1000
    snr = table.log_snr(t).exp()
    eps = {
        "min-snr": (MinSNR(5.0), (5 / snr).clamp(max=1)),
        "p2": (P2(), 1 / (1 + snr)),
        "sigmoid": (SigmoidWeighting(1.0), torch.sigmoid(1 - table.log_snr(t))),
    }
    proofs = [
        Proof(f"weighting: {name}", _largest(weighting(table, Eps(), t), wanted), 1e-10)
        for name, (weighting, wanted) in eps.items()
    ]
    edm = EDMWeighting(0.5)(table, EDMTarget(0.5), t)
    return [*proofs, Proof("weighting: edm", _largest(edm, torch.ones_like(t)), 1e-10)]


class _Listener(torch.nn.Module):
    """A network that records the times it is given, and returns zeros."""

    channels_last: ClassVar[bool] = False
    embedding_dim = multiple = 1

    def __init__(self) -> None:
        """Begin with no times."""
        super().__init__()
        self.times = torch.zeros(0)

    def forward(self, x: Tensor, time: Tensor, cond: Cond | None = None) -> Tensor:
        """Record the times."""
        self.times = time
        return torch.zeros_like(x)


def network_time() -> list[Proof]:
    """A network on a table is given the index 0 ... T - 1, exactly, when x_t was noised by that entry."""
    listener, table = _Listener(), Linear()
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    Denoiser(listener, table, Eps(), network_time="index")(torch.zeros(1000, 1), t)
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    entry = torch.cumprod(1 - betas, 0)[listener.times.round().long().clamp(0, 999)]
    off = (listener.times.double() - torch.arange(1000)).abs().max()
    worst = max(float(off), _largest(entry, table.alpha(t) ** 2))
    return [Proof("network time: index", worst, 1e-12)]


def likelihoods() -> list[Proof]:
    """Bits per dimension of mixtures in 2 and 8 dimensions, by the exact trace and by Hutchinson's estimate."""
    proofs = []
    for dim in (2, 8):
        known = mixture(dim, dim)
        generator = torch.Generator().manual_seed(0)
        x = known.sample(512, generator)
        signs = 2.0 * torch.randint(0, 2, (32, 512, dim), generator=generator).double() - 1
        truth = bits_per_dim(known.log_prob(x), x).mean()
        for name, schedule in (("linear", LinearContinuous()), ("flow", RectifiedFlow())):
            denoise = MixtureDenoiser(known, schedule)
            for kind, probes in (("exact", None), ("Hutchinson", signs)):
                bits = bits_per_dim(log_likelihood(denoise, x, probes=probes), x).mean()
                proofs.append(Proof(f"bits/dim: {dim}-D {name} {kind}", abs(float(bits - truth)), 0.01))
    return proofs


CHECKS: dict[str, Callable[[], list[Proof]]] = {
    "recursions": recursions,
    "schedules": agreement,
    "evaluations": evaluations,
    "inversions": inversions,
    "adaptive steps": adaptive,
    "spacings": spacings,
    "clipping": clipping,
    "guidance": guidance,
    "weightings": weights,
    "network time": network_time,
    "likelihoods": likelihoods,
}
"""Every proof apart from the orders, by its subject."""
