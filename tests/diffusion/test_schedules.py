"""Schedules: agreement of their five functions, closed forms, and the stated limits at both ends."""

import copy
import math
from dataclasses import dataclass

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mpmath import mpf
from torch import Tensor

from unfog.diffusion import schedules, tables
from unfog.diffusion.schedules import (
    EDM,
    CosineContinuous,
    Laplace,
    LinearContinuous,
    QuadraticContinuous,
    RectifiedFlow,
    Schedule,
    Shifted,
    Sigmoid,
    as_time,
)
from unfog.diffusion.solvers import DPMSolver2
from unfog.diffusion.tables import DiscreteSchedule, Table
from unfog.diffusion.targets import Eps, Prediction
from unfog.runtime.errors import UserError

CONTINUOUS: dict[str, Schedule] = {
    "linear": LinearContinuous(),
    "quadratic": QuadraticContinuous(),
    "cosine": CosineContinuous(),
    "cosine s=0": CosineContinuous(s=0.0),
    "flow": RectifiedFlow(),
    "edm": EDM(),
    "sigmoid": Sigmoid(),
    "sigmoid steep": Sigmoid(start=0.0, end=3.0, tau=0.4, floor=1e-4),
    "laplace": Laplace(),
    "laplace wide": Laplace(mu=-1.0, b=2.0, tail=1e-4),
    "shifted flow": Shifted(RectifiedFlow(), 3.0),
    "shifted linear": Shifted(LinearContinuous(), 2.0),
    "shifted edm": Shifted(EDM(), 0.5),
    "shifted cosine": Shifted(CosineContinuous(), 4.0),
    "shifted twice": Shifted(Shifted(RectifiedFlow(), 3.0), 0.7),
}
TABLES: dict[str, Schedule] = {
    "linear": tables.Linear(),
    "quadratic": tables.Quadratic(),
    "cosine": tables.Cosine(),
    "short": tables.Linear(steps=7, beta_end=0.5),
    "of sigmoid": tables.Discrete(Sigmoid()),
    "of flow": tables.Discrete(RectifiedFlow(), 50),
    "zero terminal": tables.ZeroTerminalSNR(tables.Linear()),
    "shifted": Shifted(tables.Quadratic(), 2.0),
}
ALL = [*CONTINUOUS.values(), *TABLES.values()]
NAMES = [*CONTINUOUS, *(f"table {name}" for name in TABLES)]


@pytest.mark.parametrize("schedule", ALL, ids=NAMES)
@settings(max_examples=40, deadline=None)
@given(share=st.floats(0, 1))
def test_time_inverts_log_snr(schedule: schedules.Schedule, share: float) -> None:
    """For |log_snr| up to 20, or as far as the schedule reaches, to 1e-10."""
    low = max(-20.0, float(schedule.log_snr(schedule.t_max)))
    log_snr = low + share * (20.0 - low)
    t = schedule.time(log_snr)
    assert 0 <= float(t) <= schedule.t_max
    assert float(schedule.log_snr(t)) == pytest.approx(log_snr, abs=1e-10)


def _exact(schedule: Schedule, t: mpf) -> tuple[mpf, mpf]:
    """Alpha and sigma from the formulas of the papers, in as many digits as mpmath is set to."""
    one = mpf(1)
    if isinstance(schedule, Shifted):
        alpha, sigma = _exact(schedule.base, t)
        sigma *= mpf(schedule.shift)
        size = {"variance": mpmath.hypot(alpha, sigma), "sum": alpha + sigma, "signal": alpha}[schedule.keeps]
        return alpha / size, sigma / size
    if isinstance(schedule, RectifiedFlow):
        return 1 - t, t
    if isinstance(schedule, EDM):
        return one, t
    if isinstance(schedule, LinearContinuous):
        low, high = mpf(schedule.beta_min), mpf(schedule.beta_max)
        signal = mpmath.exp(-low * t - (high - low) * t**2 / 2)
    elif isinstance(schedule, QuadraticContinuous):
        low, high = mpmath.sqrt(schedule.beta_min), mpmath.sqrt(schedule.beta_max)
        signal = mpmath.exp(((low**3) - (low + (high - low) * t) ** 3) / (3 * (high - low)))
    elif isinstance(schedule, CosineContinuous):
        s = mpf(schedule.s)
        signal = (mpmath.cos((t + s) / (1 + s) * mpmath.pi / 2) / mpmath.cos(s / (1 + s) * mpmath.pi / 2)) ** 2
    elif isinstance(schedule, Sigmoid):
        start, end, tau, floor = (mpf(v) for v in (schedule.start, schedule.end, schedule.tau, schedule.floor))
        first, here, last = (1 / (1 + mpmath.exp(-x / tau)) for x in (start, start + t * (end - start), end))
        signal = floor + (1 - floor) * (last - here) / (last - first)
    elif isinstance(schedule, Laplace):
        tail = mpf(schedule.tail)
        depth = mpmath.log(2 * t) if t <= 0.5 else -mpmath.log(tail + (1 - tail) * 2 * (1 - t))
        signal = 1 / (1 + mpmath.exp(schedule.b * depth - schedule.mu))
    else:
        assert isinstance(schedule, DiscreteSchedule)
        signal = _entry(schedule, t * schedule.steps)
    return mpmath.sqrt(signal), mpmath.sqrt(1 - signal)


def _entry(table: DiscreteSchedule, place: mpf) -> mpf:
    """Alpha² between two entries of a table."""
    left = min(int(mpmath.floor(place)), len(table.alphas_cumprod) - 1)
    start, end = (mpf(v) for v in (1.0, *table.alphas_cumprod)[left : left + 2])
    weight = place - left
    if left == 0:
        return 1 - weight * (1 - end)
    if end == 0:
        return (1 - weight) ** 2 * start
    odds = (start / (1 - start)) ** (1 - weight) * (end / (1 - end)) ** weight
    return odds / (1 + odds)


def _within_20(schedule: Schedule, share: float) -> float:
    """A time at which |log_snr| is at most 20."""
    low = max(-20.0, float(schedule.log_snr(schedule.t_max)))
    return float(schedule.time(low + share * (20.0 - low)))


@pytest.mark.parametrize("schedule", ALL, ids=NAMES)
@settings(max_examples=25, deadline=None)
@given(share=st.floats(0, 1))
def test_values_to_ten_digits(schedule: Schedule, share: float) -> None:
    """Alpha, sigma and log_snr against 80 digits: 1e-10 of each, though the time is given in float64 alone."""
    t = _within_20(schedule, share)
    with mpmath.workdps(80):
        alpha, sigma = _exact(schedule, mpf(t))
        assert float(schedule.alpha(t)) == pytest.approx(float(alpha), rel=1e-10)
        assert float(schedule.sigma(t)) == pytest.approx(float(sigma), rel=1e-10)
        assert float(schedule.log_snr(t)) == pytest.approx(float(2 * mpmath.log(alpha / sigma)), abs=1e-10)


@pytest.mark.parametrize("schedule", CONTINUOUS.values(), ids=CONTINUOUS)
@settings(max_examples=25, deadline=None)
@given(share=st.floats(0, 1))
def test_rates_to_ten_digits(schedule: Schedule, share: float) -> None:
    """log_snr' = 2(alpha'/alpha - sigma'/sigma) to a share of 1e-10, and both rates to 1e-10 of the larger.

    The oracle is a central difference in 80 digits with a step of t·1e-25. Within |log_snr| <= 20 both ends are
    more than 1e-9 parts away, so that it is off by (1e-25/1e-9)² = 1e-32 of itself, and the rounding adds 1e-55.
    """
    t = _within_20(schedule, share)
    rates = [float(rate) for rate in schedule.rates(t)]
    with mpmath.workdps(80):
        h = mpf(t) * mpf(10) ** -25
        above, below = _exact(schedule, mpf(t) + h), _exact(schedule, mpf(t) - h)
        exact = [float((up - down) / (2 * h)) for up, down in zip(above, below, strict=True)]
        log_snr_rate = float(mpmath.log(above[0] / below[0] * below[1] / above[1]) / h)
    assert rates == pytest.approx(exact, abs=1e-10 * max(map(abs, exact)))
    found = 2 * (rates[0] / float(schedule.alpha(t)) - rates[1] / float(schedule.sigma(t)))
    assert found == pytest.approx(log_snr_rate, rel=1e-10)


@pytest.mark.parametrize("schedule", [s for s in ALL if s.keeps == "variance"])
def test_variance_preserving(schedule: schedules.Schedule) -> None:
    t = torch.linspace(0, 1, 501, dtype=torch.float64)
    torch.testing.assert_close(schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2, torch.ones_like(t), rtol=0, atol=1e-14)


@pytest.mark.parametrize("schedule", ALL, ids=NAMES)
def test_ends(schedule: schedules.Schedule) -> None:
    """T = 0 is clean data on every schedule, and the log-SNR falls all the way."""
    assert float(schedule.alpha(0.0)) == pytest.approx(1, abs=1e-15)
    assert float(schedule.sigma(0.0)) == 0
    assert float(schedule.log_snr(0.0)) == math.inf
    log_snr = schedule.log_snr(torch.linspace(0, schedule.t_max, 301, dtype=torch.float64))
    assert (log_snr[1:].diff() < 0).all()


def test_pure_noise() -> None:
    """Flow and continuous cosine end at alpha = 0 exactly; tables and linear keep a known rest of signal."""
    assert float(RectifiedFlow().alpha(1.0)) == 0
    assert float(CosineContinuous().alpha(1.0)) == 0
    assert float(TABLES["cosine"].alpha(1.0)) == pytest.approx(1 / 20_291, rel=1e-4)
    assert float(TABLES["linear"].alpha(1.0)) == pytest.approx(0.00635, abs=5e-6)
    assert float(EDM().log_snr(80.0)) == pytest.approx(-2 * math.log(80))


def test_ends_of_the_further_schedules() -> None:
    """Sigmoid keeps its floor, Laplace its tail, and a shift moves the log-SNR of either end by -2·log(shift)."""
    assert float(Sigmoid(floor=1e-4).alpha(1.0)) == pytest.approx(0.01, rel=1e-12)
    assert float(Sigmoid(floor=0.0).alpha(1.0)) == 0
    assert float(Laplace(mu=1.0, b=0.5, tail=1e-4).log_snr(1.0)) == pytest.approx(1 + 0.5 * math.log(1e-4), abs=1e-12)
    assert float(Shifted(RectifiedFlow(), 3.0).alpha(1.0)) == 0
    assert float(Shifted(CosineContinuous(), 3.0).alpha(1.0)) == 0
    assert float(Shifted(EDM(), 3.0).log_snr(80.0)) == pytest.approx(-2 * math.log(240), abs=1e-12)
    for name in ("of flow", "zero terminal"):
        assert float(TABLES[name].alpha(1.0)) == 0
        assert float(TABLES[name].sigma(1.0)) == 1
        assert float(TABLES[name].log_snr(1.0)) == -math.inf


@pytest.mark.parametrize("schedule", ALL, ids=NAMES)
def test_log_snrs_beyond_the_end_give_the_end(schedule: Schedule) -> None:
    """Below the last log-SNR the answer is t_max, also where that log-SNR is finite."""
    assert float(schedule.time(math.inf)) == 0
    if not isinstance(schedule, EDM) and schedule is not CONTINUOUS["shifted edm"]:
        assert float(schedule.time(-2000.0)) == pytest.approx(schedule.t_max, abs=1e-12)


def test_sigmoid_is_chens() -> None:
    """The function of Chen 2023, algorithm 1, whose gamma is alpha²."""

    def gamma(t: float, start: float, end: float, tau: float) -> float:
        first, last = (1 / (1 + math.exp(-v / tau)) for v in (start, end))
        here = 1 / (1 + math.exp(-(t * (end - start) + start) / tau))
        return (last - here) / (last - first)

    for start, end, tau in ((-3.0, 3.0, 1.0), (0.0, 3.0, 0.3), (-3.0, 3.0, 0.9)):
        for t in (0.01, 0.2, 0.5, 0.83, 0.99):
            found = float(Sigmoid(start, end, tau, floor=0.0).alpha(t)) ** 2
            assert found == pytest.approx(gamma(t, start, end, tau), rel=1e-9)


def test_laplace_is_hangs() -> None:
    """The closed form mu - b·sgn(0.5 - t)·log(1 - 2|t - 0.5|); the tail shows as b·tail/(1 - t) at most."""
    for t in (1e-6, 0.1, 0.37, 0.5, 0.6, 0.9):
        right = 0.4 - 0.8 * math.copysign(1, 0.5 - t) * math.log(1 - 2 * abs(t - 0.5))
        assert float(Laplace(0.4, 0.8, tail=1e-9).log_snr(t)) == pytest.approx(right, abs=1e-8)


def test_uniform_times_of_laplace_are_laplace_distributed() -> None:
    """P(log_snr > x) = exp(-(x - mu)/b)/2 above mu: the time is the share of the distribution above it."""
    for x in (0.0, 0.5, 3.0):
        assert float(Laplace(mu=0.0, b=0.5).time(x)) == pytest.approx(math.exp(-x / 0.5) / 2, rel=1e-12)


@settings(deadline=None)
@given(t=st.floats(0, 1), shift=st.floats(0.05, 20))
def test_shifted_flow_is_esser(t: float, shift: float) -> None:
    """Flow at s·t/(1 + (s - 1)·t), with alpha + sigma = 1; and two shifts multiply."""
    moved = shift * t / (1 + (shift - 1) * t)
    found = Shifted(RectifiedFlow(), shift)
    assert float(found.sigma(t)) == pytest.approx(moved, abs=1e-14)
    assert float(found.alpha(t)) == pytest.approx(1 - moved, abs=1e-14)
    assert float(Shifted(found, 1.5).sigma(t)) == pytest.approx(
        float(Shifted(RectifiedFlow(), 1.5 * shift).sigma(t)), abs=1e-13
    )


@pytest.mark.parametrize("base", [LinearContinuous(), EDM(), CosineContinuous(), TABLES["cosine"]])
def test_shifts_move_the_log_snr(base: Schedule) -> None:
    """log_snr - 2·log(shift) on the same clock, and what the base keeps at 1 stays there."""
    t = torch.linspace(0.05, 0.95, 19).double() * base.t_max
    found = Shifted(base, 2.5)
    torch.testing.assert_close(found.log_snr(t), base.log_snr(t) - 2 * math.log(2.5), rtol=0, atol=1e-11)
    assert (found.t_max, found.steps, found.keeps) == (base.t_max, base.steps, base.keeps)
    kept = found.alpha(t) if isinstance(base, EDM) else found.alpha(t) ** 2 + found.sigma(t) ** 2
    torch.testing.assert_close(kept, torch.ones_like(t), rtol=0, atol=1e-14)


def test_zero_terminal_snr_is_lins_algorithm_1() -> None:
    """The published lines, on betas: the first entry stays, the last becomes 0."""
    betas = torch.linspace(0.01, math.sqrt(0.02), 1000, dtype=torch.float64) ** 2
    root = (1 - betas).cumprod(0).sqrt()
    root_0, root_t = root[0].clone(), root[-1].clone()
    root = (root - root_t) * root_0 / (root_0 - root_t)
    found = tables.ZeroTerminalSNR(tables.Quadratic())
    assert isinstance(found, DiscreteSchedule)
    torch.testing.assert_close(torch.tensor(found.alphas_cumprod, dtype=torch.float64), root**2, rtol=1e-9, atol=1e-18)
    assert found.alphas_cumprod[0] == pytest.approx(1 - betas[0].item(), rel=1e-12)
    assert found.alphas_cumprod[-1] == 0


@pytest.mark.parametrize("name", ["sigmoid", "flow", "edm", "shifted twice"])
def test_discrete_tables_agree_at_their_steps(name: str) -> None:
    """The table has the log-SNR of the schedule at every (i + 1)/T of the clock; EDM's state is scaled alone."""
    schedule = CONTINUOUS[name]
    table = tables.Discrete(schedule, 40)
    t = torch.arange(1, 40).double() / 40
    torch.testing.assert_close(table.log_snr(t), schedule.log_snr(t * schedule.t_max), rtol=0, atol=1e-9)


@pytest.mark.parametrize("schedule", ALL, ids=NAMES)
def test_all_pass_their_own_check(schedule: Schedule) -> None:
    schedule.check()


@dataclass(frozen=True)
class _Written(Schedule):
    """A user's own schedule, with noise from `start` on that turns back at `turn`."""

    start: float = 0.0
    turn: float = 2.0

    def alpha(self, t: Tensor | float) -> Tensor:
        return torch.ones_like(schedules.as_time(t))

    def sigma(self, t: Tensor | float) -> Tensor:
        t = schedules.as_time(t)
        return self.start + torch.where(t > self.turn, 2 * self.turn - t, t)

    def time(self, log_snr: Tensor | float) -> Tensor:
        return torch.exp(-schedules.as_time(log_snr) / 2) - self.start


def test_check_refuses_schedules_that_are_none() -> None:
    _Written().check()
    with pytest.raises(UserError, match=r"_Written does not fall between t = 0\.7 and t = 0\.701"):
        _Written(turn=0.7).check()
    with pytest.raises(UserError, match="_Written has noise at t = 0"):
        _Written(start=0.1).check()


def test_tables_against_their_definition() -> None:
    """The literal loops of the papers, at t = (i + 1)/T."""
    steps = 1000
    betas = {
        "linear": [1e-4 + (0.02 - 1e-4) * i / (steps - 1) for i in range(steps)],
        "quadratic": [(0.01 + (math.sqrt(0.02) - 0.01) * i / (steps - 1)) ** 2 for i in range(steps)],
        "cosine": [min(0.999, 1 - _cosine(i + 1, steps) / _cosine(i, steps)) for i in range(steps)],
    }
    for name, values in betas.items():
        signal = 1.0
        for i, beta in enumerate(values):
            signal *= 1 - beta
            if i % 97 == 0 or i == steps - 1:
                t = (i + 1) / steps
                assert float(TABLES[name].alpha(t)) ** 2 == pytest.approx(signal, rel=1e-9), (name, i)
                assert float(TABLES[name].sigma(t)) ** 2 == pytest.approx(1 - signal, rel=1e-9), (name, i)


def _cosine(step: int, steps: int) -> float:
    return math.cos((step / steps + 0.008) / 1.008 * math.pi / 2) ** 2


def test_table_between_its_entries() -> None:
    """The log-SNR is linear between entries, alpha-bar below the first."""
    table = Table((0.9, 0.5, 0.1))
    middle = (float(table.log_snr(1 / 3)) + float(table.log_snr(2 / 3))) / 2
    assert float(table.log_snr(0.5)) == pytest.approx(middle, abs=1e-12)
    assert float(table.alpha(1 / 6)) ** 2 == pytest.approx(0.95, abs=1e-12)


def test_continuous_cosine_is_the_table_in_the_limit() -> None:
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    torch.testing.assert_close(TABLES["cosine"].alpha(t), CosineContinuous().alpha(t), rtol=1e-10, atol=0)


def test_continuous_linear_is_the_limit_of_tables() -> None:
    """With T steps, beta_i = beta(t)/T: the difference falls as 1/T."""
    t = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    for build, limit in ((tables.Linear, LinearContinuous()), (tables.Quadratic, QuadraticContinuous())):
        table = build(steps=20_000, beta_start=0.1 / 20_000, beta_end=20 / 20_000)
        torch.testing.assert_close(table.log_snr(t), limit.log_snr(t), rtol=0, atol=2e-3)


@pytest.mark.parametrize("schedule", CONTINUOUS.values(), ids=CONTINUOUS)
def test_rates_are_derivatives(schedule: schedules.Schedule) -> None:
    t = torch.tensor([0.05, 0.3, 0.7, 0.95], dtype=torch.float64) * schedule.t_max
    h = 1e-6
    alpha_rate, sigma_rate = schedule.rates(t)
    torch.testing.assert_close(
        alpha_rate, (schedule.alpha(t + h) - schedule.alpha(t - h)) / (2 * h), rtol=1e-6, atol=1e-7
    )
    torch.testing.assert_close(
        sigma_rate, (schedule.sigma(t + h) - schedule.sigma(t - h)) / (2 * h), rtol=1e-6, atol=1e-7
    )


def test_rates_are_refused() -> None:
    with pytest.raises(UserError, match="kinks"):
        TABLES["linear"].rates(0.5)
    with pytest.raises(UserError, match="infinite at t"):
        LinearContinuous().rates(torch.tensor([0.0, 0.5]))


def test_add_noise_has_the_stated_moments() -> None:
    generator = torch.Generator().manual_seed(0)
    x0 = torch.full((20_000, 2), 0.7)
    eps = torch.randn(x0.shape, generator=generator)
    x_t = TABLES["linear"].add_noise(x0, eps, 0.4)
    assert x_t.dtype == torch.float32
    assert float(x_t.mean()) == pytest.approx(0.7 * float(TABLES["linear"].alpha(0.4)), abs=0.02)
    assert float(x_t.std()) == pytest.approx(float(TABLES["linear"].sigma(0.4)), rel=0.02)


def test_add_noise_takes_one_time_or_one_for_each() -> None:
    x0, eps = torch.randn(3, 1, 4, 4), torch.randn(3, 1, 4, 4)
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    flow = RectifiedFlow()
    together = flow.add_noise(x0, eps, t)
    for row in range(3):
        torch.testing.assert_close(together[row], flow.add_noise(x0, eps, t[row])[row])
    with pytest.raises(ValueError, match="do not match a batch"):
        flow.add_noise(x0, eps, t[:2])


def test_forward_steps_compose_to_the_jump() -> None:
    """The tutorials' claim: T small steps and the closed form are the same Gaussian."""
    mean, variance = 1.0, 0.0
    for i in range(1000):
        beta = 1e-4 + (0.02 - 1e-4) * i / 999
        mean, variance = math.sqrt(1 - beta) * mean, (1 - beta) * variance + beta
    assert mean == pytest.approx(float(TABLES["linear"].alpha(1.0)), rel=1e-9)
    assert variance == pytest.approx(float(TABLES["linear"].sigma(1.0)) ** 2, rel=1e-9)


@pytest.mark.parametrize("schedule", ALL, ids=NAMES)
@settings(max_examples=25, deadline=None)
@given(later=st.floats(0.05, 1), share=st.floats(0.01, 0.99))
def test_posterior_agrees_with_bayes(schedule: schedules.Schedule, later: float, share: float) -> None:
    """q(x_s | x_t, x0) from the joint Gaussian of (x_s, x_t) given x0."""
    t, s = later * schedule.t_max, share * later * schedule.t_max
    x_t, x0 = torch.tensor([[1.3]]).double(), torch.tensor([[-0.4]]).double()
    mean, variance = schedule.posterior(x_t, x0, t, s)
    alpha_t, sigma_t, alpha_s, sigma_s = (float(f(u)) for u in (t, s) for f in (schedule.alpha, schedule.sigma))
    covariance = alpha_t / alpha_s * sigma_s**2
    expected = alpha_s * x0 + covariance / sigma_t**2 * (x_t - alpha_t * x0)
    torch.testing.assert_close(mean, expected, rtol=1e-9, atol=1e-9)
    assert float(variance) == pytest.approx(sigma_s**2 - covariance**2 / sigma_t**2, rel=1e-6, abs=1e-9)


def test_posterior_is_ddpm_eq_6_and_7() -> None:
    table, i = TABLES["linear"], 499
    bars = [float(table.alpha((j + 1) / 1000)) ** 2 for j in (i - 1, i)]
    beta = 1 - bars[1] / bars[0]
    x_t, x0 = torch.randn(4, 3).double(), torch.randn(4, 3).double()
    mean, variance = table.posterior(x_t, x0, (i + 1) / 1000, i / 1000)
    from_x0 = math.sqrt(bars[0]) * beta / (1 - bars[1])
    from_xt = math.sqrt(1 - beta) * (1 - bars[0]) / (1 - bars[1])
    torch.testing.assert_close(mean, from_x0 * x0 + from_xt * x_t, rtol=1e-9, atol=1e-9)
    assert float(variance) == pytest.approx(beta * (1 - bars[0]) / (1 - bars[1]), rel=1e-9)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: tables.Linear(steps=1), "2 steps or more"),
        (lambda: tables.Linear(beta_end=1.5), "between 0 and 1"),
        (lambda: tables.Quadratic(beta_start=-1e-4), "above 0"),
        (lambda: tables.Table((0.5, 0.6)), "fall strictly"),
        (lambda: tables.Table(()), "fall strictly"),
        (lambda: LinearContinuous(beta_min=3.0, beta_max=1.0), "beta_min"),
        (lambda: EDM(sigma_max=0.0), "sigma_max"),
        (lambda: Sigmoid(start=3.0, end=-3.0), "start < end"),
        (lambda: Sigmoid(tau=0.0), "tau above 0"),
        (lambda: Sigmoid(floor=1.0), "floor in"),
        (lambda: Laplace(b=0.0), "b above 0"),
        (lambda: Laplace(tail=0.0), "tail in"),
        (lambda: Shifted(EDM(), 0.0), "shift of a schedule"),
        (lambda: tables.Discrete(EDM(), 1), "2 steps or more"),
        (lambda: tables.ZeroTerminalSNR(RectifiedFlow()), "needs a discrete schedule"),
        (lambda: tables.ZeroTerminalSNR(tables.Table((0.5,))), "needs a discrete schedule"),
    ],
)
def test_impossible_schedules_are_refused(build: object, words: str) -> None:
    with pytest.raises(UserError, match=words):
        build()  # type: ignore[operator]


def test_first_trained_time() -> None:
    assert TABLES["linear"].t_first == 1 / 1000
    for schedule in CONTINUOUS.values():
        assert float(schedule.log_snr(schedule.t_first)) == pytest.approx(14, abs=1e-9)


def test_schedules_are_values() -> None:
    assert tables.Linear() == tables.Linear()
    assert hash(LinearContinuous()) == hash(LinearContinuous())
    assert tables.Linear() != tables.Quadratic()
    assert tables.Linear(100) != tables.Linear(200)
    assert repr(tables.Linear(100)) == "Linear(steps=100, beta_start=0.0001, beta_end=0.02)"
    assert (Shifted(EDM(9.0), 2.0).t_max, Shifted(Table((0.9, 0.5))).steps) == (9.0, 2)
    assert tables.Discrete().base == CosineContinuous()
    assert tables.ZeroTerminalSNR().base == tables.Linear()
    for schedule in (*TABLES.values(), *CONTINUOUS.values()):
        assert hash(schedule) == hash(copy.deepcopy(schedule))
        assert schedule == copy.deepcopy(schedule)


def test_discrete_schedules_speak_the_language_of_the_tutorials() -> None:
    """betas, alphas_cumprod and timesteps 0 ... T - 1."""
    schedule = tables.Linear(50, 1e-3, 0.3)
    torch.testing.assert_close(schedule.betas, torch.linspace(1e-3, 0.3, 50, dtype=torch.float64), rtol=1e-11, atol=0)
    assert Table.from_betas(schedule.betas).alphas_cumprod == pytest.approx(schedule.alphas_cumprod, rel=1e-12)
    t = schedule.from_timesteps(torch.tensor([0, 20, 49]))
    torch.testing.assert_close(schedule.alpha(t) ** 2, torch.tensor(schedule.alphas_cumprod).double()[[0, 20, 49]])
    assert float(schedule.from_timesteps(49)) == 1
    for wrong in (50, -1, torch.tensor(0.5)):
        with pytest.raises(UserError, match="whole numbers from 0 to 49"):
            schedule.from_timesteps(wrong)  # type: ignore[arg-type]


# What is remembered at single times


def test_what_a_schedule_remembers_is_what_it_would_compute() -> None:
    schedule = LinearContinuous()
    times = torch.linspace(0.01, 1, 50, dtype=torch.float64)
    for _ in range(2):
        for t in times:
            for name in ("alpha", "sigma", "log_snr", "rates"):
                single, row = getattr(schedule, name)(t), getattr(schedule, name)(times[times == t])
                pairs = zip(single, row, strict=True) if name == "rates" else [(single, row)]
                for one, many in pairs:
                    torch.testing.assert_close(one, many[0], rtol=1e-14, atol=0)
    assert LinearContinuous(beta_max=10).alpha(times[7]) != schedule.alpha(times[7])


def test_what_was_remembered_without_gradients_can_be_used_with_them() -> None:
    schedule = LinearContinuous()
    with torch.inference_mode():
        schedule.alpha(0.5)
    x = torch.randn(3, requires_grad=True)
    (x / schedule.alpha(torch.tensor(0.5).double())).sum().backward()
    assert x.grad is not None
    t = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    schedule.sigma(t).backward()
    assert t.grad == pytest.approx(float(schedule.rates(0.5)[1]))


def test_no_more_is_remembered_than_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedules, "_MOST", 10)
    schedule = CosineContinuous()
    for t in torch.linspace(0, 1, 100):
        schedule.alpha(t)
    assert len(schedule.__dict__["_known"]) <= 10


@pytest.mark.parametrize(
    "schedule", [RectifiedFlow(), CosineContinuous(), tables.Linear()], ids=["flow", "cosine", "table"]
)
def test_nobody_can_change_what_is_remembered(schedule: Schedule) -> None:
    """What a schedule gives at a single time may be changed in place, and the next answer is right all the same."""
    t, wanted = torch.tensor(0.5, dtype=torch.float64), as_time([0.5])
    for name in ("alpha", "sigma", "log_snr"):
        for _ in range(2):  # the first answer and the remembered one
            getattr(schedule, name)(0.5).mul_(2)
            getattr(schedule, name)(t).zero_()
        assert getattr(schedule, name)(t) == getattr(schedule, name)(wanted)[0]
    assert schedule.numbers(0.5) == (float(schedule.alpha(t)), float(schedule.sigma(t)))
    if not schedule.steps:
        for rate in schedule.rates(t):
            rate.fill_(7)
        assert torch.stack(schedule.rates(t)).tolist() == torch.cat(schedule.rates(wanted)).tolist()
    state, eps = torch.ones(2, 3), torch.zeros(2, 3)
    before = Eps().solve(eps, state, t, schedule)
    before.x0.mul_(5)
    torch.testing.assert_close(Eps().solve(eps, state, t, schedule).x0 * 5, before.x0)


def test_a_denoiser_that_changes_its_time_does_not_change_the_solver() -> None:
    """The rule that looks at a time in between remembers it, and gives away copies of it."""
    schedule, t, s = RectifiedFlow(), as_time(0.6), as_time(0.4)

    class Careless:
        def __init__(self) -> None:
            self.schedule, self.seen = schedule, list[float]()

        def __call__(self, x: Tensor, t: Tensor) -> Prediction:
            self.seen.append(float(t))
            if self.seen[-1] != 0.6:
                t.zero_()
            return Prediction(x, x)

    careless = Careless()
    for _ in range(2):
        DPMSolver2().step(careless, torch.ones(1, 2), t, s, (), torch.zeros_like)
    assert careless.seen[1] == careless.seen[3] != 0
