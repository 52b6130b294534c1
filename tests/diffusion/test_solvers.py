"""Solvers against answers that are known exactly: mixtures of Gaussians and linear recursions."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from unfog.diffusion.denoiser import Clipped, Denoise, Rescheduled, edm_clock, on_clock
from unfog.diffusion.grids import LogSNRGrid, UniformGrid
from unfog.diffusion.oracle import Mixture, MixtureDenoiser
from unfog.diffusion.sampling import follow, trajectory
from unfog.diffusion.schedules import (
    EDM,
    CosineContinuous,
    Laplace,
    LinearContinuous,
    RectifiedFlow,
    Schedule,
    Shifted,
    Sigmoid,
    as_time,
)
from unfog.diffusion.solvers import (
    DDIM,
    AdamsBashforth,
    Ancestral,
    DPMSolver2,
    DPMSolverPP2M,
    DPMSolverPP3M,
    DPMSolverPPSDE2M,
    Euler,
    EulerAncestral,
    Heun,
    RungeKutta45,
    Solver,
    UniPC,
)
from unfog.diffusion.tables import Linear
from unfog.diffusion.targets import Prediction
from unfog.recipes.kinds import KINDS, class_of
from unfog.runtime.errors import UserError

MIXTURE = Mixture(
    weights=torch.tensor([0.3, 0.45, 0.25]).double(),
    means=torch.tensor([[0.8, -0.3], [-0.5, 0.6], [0.1, -0.7]]).double(),
    variances=torch.tensor([[0.30, 0.12], [0.20, 0.25], [0.10, 0.40]]).double(),
)


class Counting:
    """Notes the times at which a denoiser is asked."""

    def __init__(self, denoise: Denoise) -> None:
        self.denoise, self.schedule, self.times = denoise, denoise.schedule, list[float]()

    def __call__(self, x: Tensor, t: Tensor) -> Prediction:
        self.times.append(float(t))
        return self.denoise(x, t)


SCHEDULES: dict[str, Schedule] = {"linear": LinearContinuous(), "flow": RectifiedFlow(), "edm": EDM()}


@pytest.mark.parametrize("name", ["linear", "flow"])
def test_samples_have_the_moments_of_the_mixture(name: str) -> None:
    """From pure noise down to t = 0, mean and covariance of 20,000 samples are the mixture's."""
    schedule = SCHEDULES[name]
    generator = torch.Generator().manual_seed(0)
    x = float(schedule.sigma(1.0)) * torch.randn(20_000, 2, dtype=torch.float64, generator=generator)
    times = torch.linspace(1, 0, 61, dtype=torch.float64)
    found = follow(MixtureDenoiser(MIXTURE, schedule), x, times, DPMSolverPP2M())
    mean = (MIXTURE.weights[:, None] * MIXTURE.means).sum(0)
    second = (MIXTURE.weights[:, None] * (MIXTURE.variances + MIXTURE.means**2)).sum(0)
    torch.testing.assert_close(found.mean(0), mean, rtol=0, atol=0.02)
    torch.testing.assert_close(found.var(0), second - mean**2, rtol=0.04, atol=0)


@pytest.mark.parametrize("solver", [Ancestral(), Ancestral("large"), DDIM(1.0), DDIM(0.5)])
def test_stochastic_solvers_follow_the_exact_recursion(solver: Solver) -> None:
    """On a Gaussian the state stays Gaussian: its mean and variance obey a recursion in closed form."""
    table, data_mean, data_variance = Linear(), 0.4, 0.3
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

    found = follow(MixtureDenoiser(mixture, table), x, times, solver, noise=noise)
    assert float(found.mean()) == pytest.approx(mean, abs=5 * math.sqrt(variance / count))
    assert float(found.var()) == pytest.approx(variance, rel=5 * math.sqrt(2 / count))
    assert next(draws) == 19  # the last step draws nothing


def test_ancestral_is_the_posterior() -> None:
    """One step of DDPM: mean and variance of q(x_s | x_t, x0)."""
    table = Linear()
    denoise = MixtureDenoiser(MIXTURE, table)
    x, t, s = torch.randn(50, 2).double(), torch.tensor(0.7).double(), torch.tensor(0.65).double()
    z = torch.randn(50, 2).double()
    mean, variance = table.posterior(x, denoise(x, t).x0, t, s)
    step = Ancestral().step(denoise, x, t, s, (), lambda like: z)
    torch.testing.assert_close(step.x, mean + variance.sqrt() * z)
    torch.testing.assert_close(DDIM(1.0).step(denoise, x, t, s, (), lambda like: z).x, step.x)


def test_ancestral_is_the_tutorials_listing() -> None:
    """X = (x - beta/sqrt(1 - abar)·eps)/sqrt(alpha) + sqrt(beta)·z, with the large variance."""
    table, i = Linear(), 600
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
    table = Linear()
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
    torch.testing.assert_close(follow(denoise, x, times, Euler()), follow(denoise, x, times, DDIM()))


def test_euler_on_the_edm_clock_is_ddim_on_every_schedule() -> None:
    """In (x/alpha, sigma/alpha), where other toolkits run Euler, it is DDIM, even on a table."""
    table = Linear()
    denoise = MixtureDenoiser(MIXTURE, table)
    times = torch.linspace(1, 0, 11, dtype=torch.float64)
    x = torch.randn(20, 2).double()
    clock = edm_clock(table)
    moved = follow(Rescheduled(denoise, clock), x / float(table.alpha(1.0)), clock.time(table.log_snr(times)), Euler())
    torch.testing.assert_close(moved, follow(denoise, x, times, DDIM()), rtol=1e-8, atol=1e-8)


DRAWING = [Ancestral(), DDIM(0.5), DPMSolverPPSDE2M(), EulerAncestral(), Heun(churn=0.1)]


@pytest.mark.parametrize("solver", DRAWING, ids=lambda solver: type(solver).__name__)
def test_stochastic_solvers_refuse_to_climb(solver: Solver) -> None:
    with pytest.raises(UserError, match="its times must fall"):
        follow(MixtureDenoiser(MIXTURE, RectifiedFlow()), torch.randn(2, 2).double(), torch.tensor([0.2, 0.3]), solver)


@pytest.mark.parametrize("solver", DRAWING, ids=lambda solver: type(solver).__name__)
def test_stochastic_solvers_say_so(solver: Solver) -> None:
    assert solver.stochastic
    assert not type(solver)().stochastic or type(solver) not in (DDIM, Heun)


@pytest.mark.parametrize("build", [class_of("solver", kind) for kind in KINDS["solver"]], ids=KINDS["solver"])
def test_every_solver_goes_from_pure_noise_to_data(build: Callable[..., Solver]) -> None:
    """Where the log-SNR is infinite, at both ends of the flow, every rule falls back and stays finite and right."""
    flow, count = RectifiedFlow(), 4000
    x = torch.randn(count, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    times = torch.linspace(1, 0, 41, dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)

    def noise(step: int, like: Tensor) -> Tensor:
        return torch.randn(like.shape, dtype=like.dtype, generator=generator)

    found = follow(MixtureDenoiser(MIXTURE, flow), x, times, build(), noise=noise)
    mean = (MIXTURE.weights[:, None] * MIXTURE.means).sum(0)
    spread = (MIXTURE.weights[:, None] * (MIXTURE.variances + MIXTURE.means**2)).sum(0) - mean**2
    torch.testing.assert_close(found.mean(0), mean, rtol=0, atol=0.06)
    torch.testing.assert_close(found.var(0), spread, rtol=0.12, atol=0)


def test_churn_raises_the_noise_first() -> None:
    """The prediction is made at sigma/alpha·(1 + churn), within churn_min and churn_max only."""
    edm = EDM()
    counting = Counting(MixtureDenoiser(MIXTURE, edm))
    x = torch.zeros(3, 2).double()
    for solver, wanted in (
        (Heun(churn=0.3), 2.6),
        (Heun(churn=0.3, churn_min=3.0), 2.0),
        (Heun(churn=0.3, churn_max=1.0), 2.0),
    ):
        counting.times.clear()
        solver.step(counting, x, as_time(2.0), as_time(1.0), (), torch.ones_like)
        assert counting.times == pytest.approx([wanted, 1.0])


def test_learned_variance_lies_between_the_small_and_the_large() -> None:
    """Fraction 0 is beta-tilde, 1 is beta; a model without one is refused."""
    table, x, t, s = Linear(), torch.zeros(4, 2).double(), as_time(0.5), as_time(0.4)
    denoise = MixtureDenoiser(MIXTURE, table)

    class Fraction:
        schedule = table

        def __init__(self, fraction: float) -> None:
            self.fraction = fraction

        def __call__(self, x: Tensor, t: Tensor) -> Prediction:
            return denoise(x, t)._replace(variance_fraction=torch.full_like(x, self.fraction))

    for fraction, variance in ((0.0, "small"), (1.0, "large")):
        learned = Ancestral("learned").step(Fraction(fraction), x, t, s, (), torch.ones_like).x
        torch.testing.assert_close(learned, Ancestral(variance).step(denoise, x, t, s, (), torch.ones_like).x)
    with pytest.raises(UserError, match="no learned variance"):
        Ancestral("learned").step(denoise, x, t, s, (), torch.ones_like)


def test_unipc_moves_eps_and_keeps_x0() -> None:
    """The step's pair adds up to the corrected state, and its x0 is what the network said."""
    flow = RectifiedFlow()
    denoise = MixtureDenoiser(MIXTURE, flow)
    x = torch.randn(4, 2).double()
    first, second = list(trajectory(denoise, x, torch.tensor([0.9, 0.7, 0.5]).double(), UniPC()))
    torch.testing.assert_close(second.prediction.x0, denoise(first.x, first.s).x0)
    state = 0.3 * second.prediction.x0 + 0.7 * second.prediction.eps
    assert 1e-4 < float((state - first.x).abs().max()) < 0.1


@pytest.mark.parametrize("build", [DDIM, Heun, DPMSolver2, DPMSolverPP2M, DPMSolverPP3M, UniPC, AdamsBashforth])
def test_inversion_goes_all_the_way(build: Callable[[], Solver]) -> None:
    """From clean data to pure noise, where the log-SNR is infinite at both ends: near standard normal."""
    flow = RectifiedFlow()
    x = MIXTURE.sample(2000, torch.Generator().manual_seed(0))
    times = torch.linspace(0, 1, 101, dtype=torch.float64)
    found = follow(MixtureDenoiser(MIXTURE, flow), x, times, build())
    torch.testing.assert_close(found.mean(0), torch.zeros(2).double(), rtol=0, atol=0.1)
    torch.testing.assert_close(found.std(0), torch.ones(2).double(), rtol=0.1, atol=0)


def test_past_steps_go_on() -> None:
    """A trajectory cut in two, with its past handed over, is the trajectory."""
    denoise, x = MixtureDenoiser(MIXTURE, RectifiedFlow()), torch.randn(4, 2).double()
    times = torch.linspace(0.9, 0.1, 9, dtype=torch.float64)
    for solver in (DPMSolverPP3M(), UniPC(3), AdamsBashforth(4)):
        whole = list(trajectory(denoise, x, times, solver))
        rest = list(trajectory(denoise, whole[3].x, times[4:], solver, past=whole[4 - solver.memory : 4]))
        assert torch.equal(rest[-1].x, whole[-1].x)


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: AdamsBashforth(2.5), "order of adams-bashforth must be a whole number from 1 to 4, not 2.5"),  # type: ignore[arg-type]
        (lambda: AdamsBashforth(5), "from 1 to 4, not 5"),
        (lambda: UniPC(1), "whole number from 2 to 3, not 1"),
        (lambda: Heun(churn=0.5), "churn must lie between"),
        (lambda: EulerAncestral(0.0), "use euler for a rule without noise"),
        (lambda: RungeKutta45(atol=0.0), "atol above 0"),
    ],
)
def test_impossible_solvers_are_refused(build: Callable[[], Solver], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        build()


@pytest.mark.parametrize(
    ("times", "sentence"),
    [
        ([1.2, 0.5, 0.0], r"leave the clock of RectifiedFlow, \[0, 1\]"),
        ([0.9, math.nan, 0.0], "leave the clock"),
        ([0.9, 0.3, 0.5], "must fall at every step"),
        ([0.9, 0.5, 0.5], "must fall at every step"),
        ([0.9], "must have one axis and two or more entries"),
    ],
)
def test_impossible_times_are_refused(times: list[float], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        follow(MixtureDenoiser(MIXTURE, RectifiedFlow()), torch.randn(2, 2).double(), torch.tensor(times), DDIM())


class Zero:
    """The exact denoiser of data that are 0 everywhere."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule

    def __call__(self, x: Tensor, t: Tensor) -> Prediction:
        return Prediction(torch.zeros_like(x), x / self.schedule.sigma(t))


@pytest.mark.parametrize("steps", [1, 4, 20])
@pytest.mark.parametrize("solver", [DDIM(), Euler(), Heun(), AdamsBashforth(2), AdamsBashforth(4), EulerAncestral()])
@pytest.mark.parametrize(
    "schedule", [Shifted(RectifiedFlow(), 3.0), LinearContinuous(), CosineContinuous(), Sigmoid(), Laplace(), EDM()]
)
def test_the_last_step_leaves_no_noise_on_any_clock(schedule: Schedule, solver: Solver, steps: int) -> None:
    """Of data that are 0 all that is drawn is 0, also on clocks on which alpha and sigma are not affine."""
    times = UniformGrid()(schedule, steps)
    start = schedule.sigma(times[0]) * torch.randn(
        5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    generator = torch.Generator().manual_seed(1)

    def noise(step: int, like: Tensor) -> Tensor:
        return torch.randn(like.shape, dtype=like.dtype, generator=generator)

    end = follow(Zero(schedule), start, times, solver, noise=noise)
    assert float(end.abs().max()) < 1e-9


def test_the_clocks_of_a_solver() -> None:
    """A velocity runs on the flow's by default, everything else on the schedule's own; an unknown one is refused."""
    assert (Euler().clock, Heun(clock="edm").clock, DDIM().clock) == ("flow", "edm", "own")
    for made in (Euler, Heun, AdamsBashforth, EulerAncestral, RungeKutta45):
        with pytest.raises(UserError, match="unknown clock 'flaw': did you mean 'flow'"):
            made(clock="flaw")  # type: ignore[arg-type]
    denoise, times = MixtureDenoiser(MIXTURE, Linear()), torch.tensor([1.0, 0.5, 0.0]).double()
    assert on_clock(denoise, times, "own") == (denoise, times)
    for clock, outer in (("flow", RectifiedFlow()), ("edm", edm_clock(Linear()))):
        moved, there = on_clock(denoise, times, clock)  # type: ignore[arg-type]
        assert moved.schedule == outer
        torch.testing.assert_close(outer.log_snr(there[1]), Linear().log_snr(times[1]))
    with pytest.raises(UserError, match="ends at pure noise.*use the clock 'flow'"):
        on_clock(MixtureDenoiser(MIXTURE, RectifiedFlow()), times, "edm")


def test_velocity_solvers_refuse_tables() -> None:
    with pytest.raises(UserError, match="another clock"):
        follow(MixtureDenoiser(MIXTURE, Linear()), torch.randn(2, 2).double(), torch.tensor([0.3, 0.2]), Euler())


def test_eta_is_a_share() -> None:
    with pytest.raises(UserError, match="between 0 and 1"):
        DDIM(1.5)


def test_trajectory_yields_every_step() -> None:
    times = torch.linspace(1, 0, 6, dtype=torch.float64)
    x = torch.randn(3, 2).double()
    denoise = MixtureDenoiser(MIXTURE, RectifiedFlow())
    steps = list(trajectory(denoise, x, times, DPMSolverPP2M()))
    assert [float(step.s) for step in steps] == times[1:].tolist()
    torch.testing.assert_close(steps[-1].x, follow(denoise, x, times, DPMSolverPP2M()))


def test_float32_states_stay_float32() -> None:
    mixture = Mixture(*(part.float() for part in (MIXTURE.weights, MIXTURE.means, MIXTURE.variances)))
    for solver in (class_of("solver", kind)() for kind in KINDS["solver"]):
        found = follow(MixtureDenoiser(mixture, RectifiedFlow()), torch.randn(4, 2), torch.linspace(0.9, 0, 5), solver)
        assert found.dtype == torch.float32
        assert found.isfinite().all()


@pytest.mark.parametrize("solver", DRAWING[:4], ids=lambda solver: type(solver).__name__)
@pytest.mark.parametrize("shift", [1.0, 1.5, 3.0, 0.3])
def test_every_first_step_off_pure_noise_can_be_taken(solver: Solver, shift: float) -> None:
    """At alpha = 0 the noise that stays is 0 but for rounding, which may not go below."""
    schedule = Shifted(RectifiedFlow(), shift)
    denoise, x = MixtureDenoiser(MIXTURE, schedule), torch.zeros(1, 2).double()
    for grid in (UniformGrid(), LogSNRGrid()):
        for steps in range(1, 1001, 1 if isinstance(solver, Ancestral) else 8):
            t, s = grid(schedule, steps)[:2]
            assert solver.step(denoise, x, t, s, (), torch.zeros_like).x.isfinite().all(), steps


def test_a_highest_level_of_zero_is_a_level() -> None:
    """Nothing is churned up to 0, and all of it without a limit."""
    points, denoise = torch.zeros(1, 2, dtype=torch.float64), MixtureDenoiser(MIXTURE, EDM())
    t, s = torch.tensor(2.0).double(), torch.tensor(1.0).double()
    drawn: list[Tensor] = []

    def noise(x: Tensor) -> Tensor:
        drawn.append(x)
        return torch.ones_like(x)

    for highest, times in ((0.0, 0), (None, 1), (1.0, 1), (2.0, 2)):
        Heun(churn=0.1, churn_max=highest).step(denoise, points, t, s, (), noise)
        assert len(drawn) == times
