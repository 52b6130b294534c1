"""Solvers against answers that are known exactly: mixtures of Gaussians and linear recursions."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from unfog.diffusion.denoiser import Clipped, Denoise, Rescheduled, edm_clock
from unfog.diffusion.oracle import Mixture, MixtureDenoiser
from unfog.diffusion.sampling import sample, trajectory
from unfog.diffusion.schedules import EDM, CosineContinuous, LinearContinuous, RectifiedFlow, Schedule, linear
from unfog.diffusion.solvers import DDIM, Ancestral, DPMSolverPP2M, Euler, Heun, Solver
from unfog.diffusion.targets import Prediction
from unfog.errors import UserError

MIXTURE = Mixture(
    weights=torch.tensor([0.3, 0.45, 0.25]).double(),
    means=torch.tensor([[0.8, -0.3], [-0.5, 0.6], [0.1, -0.7]]).double(),
    variances=torch.tensor([[0.30, 0.12], [0.20, 0.25], [0.10, 0.40]]).double(),
)


class Counting:
    """Counts the evaluations of a denoiser."""

    def __init__(self, denoise: Denoise) -> None:
        self.denoise, self.schedule, self.count = denoise, denoise.schedule, 0

    def __call__(self, x: Tensor, t: Tensor) -> Prediction:
        self.count += 1
        return self.denoise(x, t)


def _interior(schedule: Schedule, edge: float = 6.0) -> tuple[float, float]:
    """The times between which |log_snr| is at most 6."""
    return float(schedule.time(max(-edge, float(schedule.log_snr(schedule.t_max))))), float(schedule.time(edge))


def _grid(schedule: Schedule, steps: int, warp: Callable[[Tensor], Tensor]) -> Tensor:
    """Steps through the interior, even or warped, in the clock of the order tests: half the log-SNR."""
    start, end = (float(schedule.log_snr(t)) for t in _interior(schedule))
    u = warp(torch.linspace(0, 1, steps + 1, dtype=torch.float64))
    return schedule.time(start + (end - start) * u)


WARPS: dict[str, Callable[[Tensor], Tensor]] = {
    "uniform": lambda u: u,
    "non-uniform": lambda u: u + 0.12 * torch.sin(2 * math.pi * u),
}
SCHEDULES: dict[str, Schedule] = {
    "linear": LinearContinuous(),
    "cosine": CosineContinuous(),
    "flow": RectifiedFlow(),
    "edm": EDM(),
}


def _noised(schedule: Schedule, t: float, count: int = 200) -> Tensor:
    """Exact draws of x_t."""
    generator = torch.Generator().manual_seed(3)
    x0 = MIXTURE.sample(count, generator)
    return schedule.add_noise(x0, torch.randn(x0.shape, dtype=torch.float64, generator=generator), t)


@pytest.mark.parametrize("warp", WARPS.values(), ids=WARPS)
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_orders_of_convergence(schedule: Schedule, warp: Callable[[Tensor], Tensor]) -> None:
    """Euler 1, DDIM 1, Heun 2, DPM++(2M) 2, each within 0.1, fitted over 80 to 320 steps in the interior."""
    denoise = MixtureDenoiser(MIXTURE, schedule)
    x = _noised(schedule, float(_grid(schedule, 1, warp)[0]))
    exact = sample(denoise, x, _grid(schedule, 3000, warp), Heun())
    counts = [80, 160, 320]
    for solver in (Euler(), DDIM(), Heun(), DPMSolverPP2M()):
        errors = [
            (sample(denoise, x, _grid(schedule, steps, warp), solver) - exact).square().mean().sqrt()
            for steps in counts
        ]
        logs = [(math.log(steps), math.log(float(error))) for steps, error in zip(counts, errors, strict=True)]
        order = -_slope(logs)
        assert order == pytest.approx(solver.order, abs=0.1), (type(solver).__name__, order, errors)


def _slope(points: list[tuple[float, float]]) -> float:
    """Least squares."""
    x_mean, y_mean = (sum(axis) / len(points) for axis in zip(*points, strict=True))
    return sum((x - x_mean) * (y - y_mean) for x, y in points) / sum((x - x_mean) ** 2 for x, _ in points)


def test_wrong_step_sizes_in_2m_lose_the_order() -> None:
    """The order test can fail: the last step where this one belongs is seen on non-uniform grids, and only there."""

    class Swapped(DPMSolverPP2M):
        def step(self, denoise, x, t, s, past, noise):  # type: ignore[no-untyped-def]
            right = super().step(denoise, x, t, s, past, noise)
            if not past:
                return right
            before, now, then = (float(denoise.schedule.log_snr(u)) / 2 for u in (past[-1].t, t, s))
            x0, slope = right.prediction.x0, (then - now) / (2 * (now - before))
            data = x0 + slope * (x0 - past[-1].prediction.x0)
            swap = math.expm1(now - then) - math.expm1(before - now)
            return right._replace(x=right.x + float(denoise.schedule.alpha(s)) * swap * data)

    schedule = RectifiedFlow()
    denoise = MixtureDenoiser(MIXTURE, schedule)
    orders = {}
    for name, warp in WARPS.items():
        x = _noised(schedule, float(_grid(schedule, 1, warp)[0]))
        exact = sample(denoise, x, _grid(schedule, 3000, warp), Heun())
        errors = [float((sample(denoise, x, _grid(schedule, n, warp), Swapped()) - exact).norm()) for n in (80, 320)]
        orders[name] = math.log(errors[0] / errors[1]) / math.log(4)
    assert orders["uniform"] == pytest.approx(2, abs=0.1)
    assert orders["non-uniform"] < 1.5


@pytest.mark.parametrize("name", ["linear", "flow"])
def test_samples_have_the_moments_of_the_mixture(name: str) -> None:
    """From pure noise down to t = 0, mean and covariance of 20,000 samples are the mixture's."""
    schedule = SCHEDULES[name]
    generator = torch.Generator().manual_seed(0)
    x = float(schedule.sigma(1.0)) * torch.randn(20_000, 2, dtype=torch.float64, generator=generator)
    times = torch.linspace(1, 0, 61, dtype=torch.float64)
    found = sample(MixtureDenoiser(MIXTURE, schedule), x, times, DPMSolverPP2M())
    mean = (MIXTURE.weights[:, None] * MIXTURE.means).sum(0)
    second = (MIXTURE.weights[:, None] * (MIXTURE.variances + MIXTURE.means**2)).sum(0)
    torch.testing.assert_close(found.mean(0), mean, rtol=0, atol=0.02)
    torch.testing.assert_close(found.var(0), second - mean**2, rtol=0.04, atol=0)


@pytest.mark.parametrize("solver", [Ancestral(), Ancestral("large"), DDIM(1.0), DDIM(0.5)])
def test_stochastic_solvers_follow_the_exact_recursion(solver: Solver) -> None:
    """On a Gaussian the state stays Gaussian: its mean and variance obey a recursion in closed form."""
    table, data_mean, data_variance = linear(), 0.4, 0.3
    mixture = Mixture(
        torch.ones(1).double(), torch.full((1, 1), data_mean).double(), torch.full((1, 1), data_variance).double()
    )
    generator = torch.Generator().manual_seed(1)
    count = 200_000
    x = torch.randn(count, 1, dtype=torch.float64, generator=generator)
    times = torch.linspace(1, 0, 21, dtype=torch.float64)
    mean, variance = 0.0, 1.0
    for t, s in zip(times[:-1].tolist(), times[1:].tolist(), strict=True):
        alpha_t, sigma_t, alpha_s, sigma_s = (float(f(u)) for u in (t, s) for f in (table.alpha, table.sigma))
        total = alpha_t**2 * data_variance + sigma_t**2
        forward = sigma_t**2 - (alpha_t / alpha_s) ** 2 * sigma_s**2
        posterior = forward * sigma_s**2 / sigma_t**2
        if isinstance(solver, DDIM):
            removed = added = solver.eta**2 * posterior
        else:
            removed, added = posterior, (forward if solver.variance == "large" else posterior)
        added = added if sigma_s > 0 else 0.0
        keep = math.sqrt(sigma_s**2 - removed)
        # x0 and eps are affine in x: x0 = m + alpha·v·r, eps = sigma·r, r = (x - alpha·m)/total
        gain = (alpha_s * alpha_t * data_variance + keep * sigma_t) / total
        mean = alpha_s * data_mean + gain * (mean - alpha_t * data_mean)
        variance = gain**2 * variance + added
    draws = iter(range(10**6))

    def noise(step: int, like: Tensor) -> Tensor:
        next(draws)
        return torch.randn(like.shape, dtype=like.dtype, generator=generator)

    found = sample(MixtureDenoiser(mixture, table), x, times, solver, noise=noise)
    assert float(found.mean()) == pytest.approx(mean, abs=5 * math.sqrt(variance / count))
    assert float(found.var()) == pytest.approx(variance, rel=5 * math.sqrt(2 / count))
    assert next(draws) == 19  # the last step draws nothing


def test_ancestral_is_the_posterior() -> None:
    """One step of DDPM: mean and variance of q(x_s | x_t, x0)."""
    table = linear()
    denoise = MixtureDenoiser(MIXTURE, table)
    x, t, s = torch.randn(50, 2).double(), torch.tensor(0.7).double(), torch.tensor(0.65).double()
    z = torch.randn(50, 2).double()
    mean, variance = table.posterior(x, denoise(x, t).x0, t, s)
    step = Ancestral().step(denoise, x, t, s, (), lambda like: z)
    torch.testing.assert_close(step.x, mean + variance.sqrt() * z)
    torch.testing.assert_close(DDIM(1.0).step(denoise, x, t, s, (), lambda like: z).x, step.x)


def test_ancestral_is_the_tutorials_listing() -> None:
    """X = (x - beta/sqrt(1 - abar)·eps)/sqrt(alpha) + sqrt(beta)·z, with the large variance."""
    table, i = linear(), 600
    denoise = MixtureDenoiser(MIXTURE, table)
    t, s = torch.tensor((i + 1) / 1000).double(), torch.tensor(i / 1000).double()
    bar, before = float(table.alpha(t)) ** 2, float(table.alpha(s)) ** 2
    beta = 1 - bar / before
    x, z = torch.randn(50, 2).double(), torch.randn(50, 2).double()
    eps = denoise(x, t).eps
    listing = (x - beta / math.sqrt(1 - bar) * eps) / math.sqrt(1 - beta) + math.sqrt(beta) * z
    torch.testing.assert_close(Ancestral("large").step(denoise, x, t, s, (), lambda like: z).x, listing)


@pytest.mark.parametrize(("keep_eps", "equal"), [(False, True), (True, False)])
def test_ddpm_is_ddim_only_where_eps_follows_the_clipped_x0(keep_eps: bool, equal: bool) -> None:
    """The formula through x_t and the pair form agree when eps is recomputed after clipping."""
    table = linear()
    clipped = Clipped(MixtureDenoiser(MIXTURE, table), -0.2, 0.2, keep_eps=keep_eps)
    x, t, s = 2 * torch.randn(50, 2).double(), torch.tensor(0.3).double(), torch.tensor(0.25).double()
    z = torch.zeros(50, 2).double()
    mean, _ = table.posterior(x, clipped(x, t).x0, t, s)
    assert torch.allclose(DDIM(1.0).step(clipped, x, t, s, (), lambda like: z).x, mean, atol=1e-12) == equal


@pytest.mark.parametrize("name", ["flow", "edm"])
def test_euler_is_ddim_where_the_schedule_is_affine(name: str) -> None:
    schedule = SCHEDULES[name]
    denoise = MixtureDenoiser(MIXTURE, schedule)
    times = schedule.t_max * torch.linspace(1, 0, 11, dtype=torch.float64)
    x = float(schedule.sigma(times[0])) * torch.randn(20, 2).double()
    torch.testing.assert_close(sample(denoise, x, times, Euler()), sample(denoise, x, times, DDIM()))


def test_euler_on_the_edm_clock_is_ddim_on_every_schedule() -> None:
    """In (x/alpha, sigma/alpha), where other toolkits run Euler, it is DDIM, even on a table."""
    table = linear()
    denoise = MixtureDenoiser(MIXTURE, table)
    times = torch.linspace(1, 0, 11, dtype=torch.float64)
    x = torch.randn(20, 2).double()
    clock = edm_clock(table)
    moved = sample(Rescheduled(denoise, clock), x / float(table.alpha(1.0)), clock.time(table.log_snr(times)), Euler())
    torch.testing.assert_close(moved, sample(denoise, x, times, DDIM()), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(("solver", "evaluations"), [(Euler(), 10), (DDIM(), 10), (Heun(), 19), (DPMSolverPP2M(), 10)])
def test_evaluations(solver: Solver, evaluations: int) -> None:
    """Heun with n steps costs 2n - 1."""
    counting = Counting(MixtureDenoiser(MIXTURE, RectifiedFlow()))
    times = torch.linspace(1, 0, 11, dtype=torch.float64)
    sample(counting, torch.randn(4, 2).double(), times, solver)
    assert counting.count == evaluations


@pytest.mark.parametrize("solver", [DDIM(), Heun(), DPMSolverPP2M()])
def test_inversion_returns(solver: Solver) -> None:
    """An ascending grid undoes a descending one, up to the solver's error."""
    schedule = RectifiedFlow()
    denoise = MixtureDenoiser(MIXTURE, schedule)
    times = torch.linspace(0.95, 0.05, 401, dtype=torch.float64)
    x = torch.randn(20, 2).double()
    back = sample(denoise, sample(denoise, x, times, solver), times.flip(0), solver)
    assert float((back - x).abs().max()) < (0.1 if solver.order == 1 else 2e-3)


@pytest.mark.parametrize("solver", [Ancestral(), DDIM(0.5)])
def test_stochastic_solvers_refuse_to_climb(solver: Solver) -> None:
    with pytest.raises(UserError, match="must fall"):
        sample(MixtureDenoiser(MIXTURE, linear()), torch.randn(2, 2).double(), torch.tensor([0.2, 0.3]), solver)


def test_velocity_solvers_refuse_tables() -> None:
    with pytest.raises(UserError, match="Rescheduled"):
        sample(MixtureDenoiser(MIXTURE, linear()), torch.randn(2, 2).double(), torch.tensor([0.3, 0.2]), Euler())


def test_eta_is_a_share() -> None:
    with pytest.raises(UserError, match="between 0 and 1"):
        DDIM(1.5)


def test_trajectory_yields_every_step() -> None:
    times = torch.linspace(1, 0, 6, dtype=torch.float64)
    x = torch.randn(3, 2).double()
    denoise = MixtureDenoiser(MIXTURE, RectifiedFlow())
    steps = list(trajectory(denoise, x, times, DPMSolverPP2M()))
    assert [float(step.s) for step in steps] == times[1:].tolist()
    torch.testing.assert_close(steps[-1].x, sample(denoise, x, times, DPMSolverPP2M()))


def test_float32_states_stay_float32() -> None:
    mixture = Mixture(*(part.float() for part in (MIXTURE.weights, MIXTURE.means, MIXTURE.variances)))
    for solver in (Euler(), Heun(), DDIM(0.3), Ancestral(), DPMSolverPP2M()):
        found = sample(MixtureDenoiser(mixture, RectifiedFlow()), torch.randn(4, 2), torch.linspace(0.9, 0, 5), solver)
        assert found.dtype == torch.float32
        assert found.isfinite().all()
