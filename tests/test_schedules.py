"""Schedules: agreement of their five functions, closed forms, and the stated limits at both ends."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unfog.diffusion import schedules
from unfog.diffusion.schedules import EDM, CosineContinuous, LinearContinuous, QuadraticContinuous, RectifiedFlow, Table
from unfog.errors import UserError

CONTINUOUS = {
    "linear": LinearContinuous(),
    "quadratic": QuadraticContinuous(),
    "cosine": CosineContinuous(),
    "cosine s=0": CosineContinuous(s=0.0),
    "flow": RectifiedFlow(),
    "edm": EDM(),
}
TABLES = {
    "linear": schedules.linear(),
    "quadratic": schedules.quadratic(),
    "cosine": schedules.cosine(),
    "short": schedules.linear(steps=7, beta_end=0.5),
}
ALL = [*CONTINUOUS.values(), *TABLES.values()]
NAMES = [*CONTINUOUS, *(f"table {name}" for name in TABLES)]


@pytest.mark.parametrize("schedule", ALL, ids=NAMES)
@given(share=st.floats(0, 1))
def test_time_inverts_log_snr(schedule: schedules.Schedule, share: float) -> None:
    """For |log_snr| up to 20, or as far as the schedule reaches, to 1e-10."""
    low = max(-20.0, float(schedule.log_snr(schedule.t_max)))
    log_snr = low + share * (20.0 - low)
    t = schedule.time(log_snr)
    assert 0 <= float(t) <= schedule.t_max
    assert float(schedule.log_snr(t)) == pytest.approx(log_snr, abs=1e-10)


@pytest.mark.parametrize("schedule", [s for s in ALL if not isinstance(s, EDM | RectifiedFlow)])
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
    for build, limit in ((schedules.linear, LinearContinuous()), (schedules.quadratic, QuadraticContinuous())):
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
        (lambda: schedules.linear(steps=1), "2 steps or more"),
        (lambda: schedules.linear(beta_end=1.5), "between 0 and 1"),
        (lambda: schedules.quadratic(beta_start=-1e-4), "above 0"),
        (lambda: schedules.table([0.5, 0.6]), "fall strictly"),
        (lambda: schedules.table([]), "fall strictly"),
        (lambda: LinearContinuous(beta_min=3.0, beta_max=1.0), "beta_min"),
        (lambda: EDM(sigma_max=0.0), "sigma_max"),
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
    assert schedules.linear() == schedules.linear()
    assert hash(LinearContinuous()) == hash(LinearContinuous())
    assert schedules.linear() != schedules.quadratic()
