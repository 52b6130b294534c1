"""Targets, times and weightings: rows that invert, refusals, quantiles, closed forms of the weights."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from test_schedules import ALL, CONTINUOUS, NAMES, TABLES
from unfog.diffusion.schedules import EDM, LinearContinuous, RectifiedFlow, Schedule, linear
from unfog.diffusion.targets import X0, EDMTarget, Eps, Flow, Target, V
from unfog.diffusion.times import Discrete, LogitNormal, Times, Uniform, stratify
from unfog.diffusion.weightings import MinSNR, Unit
from unfog.errors import UserError

TARGETS: list[Target] = [Eps(), X0(), V(), Flow(), EDMTarget()]


def _fits(target: Target, schedule: Schedule) -> bool:
    try:
        target.check(schedule)
    except UserError:
        return False
    return True


@pytest.mark.parametrize("schedule", ALL, ids=NAMES)
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: type(target).__name__)
@given(share=st.floats(0, 1))
def test_rows_invert(schedule: Schedule, target: Target, share: float) -> None:
    """Solving what `of` says gives back (x0, eps), at every trained time."""
    if not _fits(target, schedule):
        return
    t = schedule.t_first + share * (schedule.t_max - schedule.t_first)
    x0, eps = torch.tensor([[0.3, -1.2]]).double(), torch.tensor([[0.9, 0.1]]).double()
    x_t = schedule.add_noise(x0, eps, t)
    found = target.solve(target.of(x0, eps, t, schedule), x_t, t, schedule)
    torch.testing.assert_close(found.x0, x0, rtol=0, atol=1e-8)
    torch.testing.assert_close(found.eps, eps, rtol=0, atol=1e-8)


def test_refused_pairs() -> None:
    """The pairs without a solution, and no others among the common ones."""
    refused = {
        (name, type(target).__name__)
        for name, schedule in [*CONTINUOUS.items(), *((f"table {name}", table) for name, table in TABLES.items())]
        for target in TARGETS
        if not _fits(target, schedule)
    }
    tables = {(f"table {name}", "Flow") for name in TABLES}
    rates = {("linear", "Flow"), ("quadratic", "Flow"), ("cosine", "Flow")}
    no_signal = {("cosine", "Eps"), ("cosine s=0", "Eps"), ("flow", "Eps")}
    assert refused == tables | rates | no_signal


def test_refusals_say_why() -> None:
    with pytest.raises(UserError, match=r"Eps cannot be solved at t = 1 .* alpha = 0: use the target v, x0 or flow"):
        Eps().check(RectifiedFlow())
    with pytest.raises(UserError, match="rates of LinearContinuous are infinite"):
        Flow().check(LinearContinuous())


def test_edm_row_is_karras_preconditioning() -> None:
    """D(x) = c_skip·x + c_out·F, table 1 of Karras et al. 2022."""
    sigma, data = 1.7, 0.5
    x, output = torch.randn(5, 2).double(), torch.randn(5, 2).double()
    skip = data**2 / (sigma**2 + data**2)
    out = sigma * data / math.sqrt(sigma**2 + data**2)
    torch.testing.assert_close(EDMTarget(data).solve(output, x, sigma, EDM()).x0, skip * x + out * output)


def test_v_is_minus_the_edm_row_at_unit_data() -> None:
    t = torch.linspace(0.1, 0.9, 9).double()
    for mine, theirs in zip(
        V().coefficients(TABLES["linear"], t), EDMTarget(1.0).coefficients(TABLES["linear"], t), strict=True
    ):
        torch.testing.assert_close(mine, -theirs)


def test_flow_target_on_the_flow_is_noise_minus_data() -> None:
    x0, eps = torch.randn(3, 4), torch.randn(3, 4)
    torch.testing.assert_close(Flow().of(x0, eps, 0.3, RectifiedFlow()), eps - x0)


def test_stratified_numbers_fill_every_part() -> None:
    u = stratify(torch.rand(64, dtype=torch.float64))
    assert (u * 64).floor().tolist() == list(range(64))


@pytest.mark.parametrize("times", [Uniform(), Discrete(), LogitNormal()])
@pytest.mark.parametrize("schedule", [RectifiedFlow(), EDM(), linear()], ids=["flow", "edm", "table"])
def test_times_stay_on_the_clock(times: Times, schedule: Schedule) -> None:
    t = times(torch.cat([torch.zeros(1), torch.rand(500), torch.tensor([1 - 1e-16])]).double(), schedule)
    assert t.isfinite().all()
    assert (t >= schedule.t_first).all()
    assert (t <= schedule.t_max).all()


def test_uniform_times_on_a_table_are_ddpm_steps() -> None:
    """Each of the T steps, equally often; index 0 is the cleanest."""
    u = (torch.arange(4000).double() + 0.5) / 4000
    index = Uniform()(u, linear()) * 1000 - 1
    torch.testing.assert_close(index, index.round(), rtol=0, atol=1e-9)
    assert torch.bincount(index.round().long()).tolist() == [4] * 1000
    torch.testing.assert_close(Discrete(1000)(u, linear()), Uniform()(u, linear()))


def test_logit_normal_quantiles() -> None:
    t = LogitNormal(mean=0.3, std=0.8)(torch.tensor([0.5, 0.841344746]).double(), RectifiedFlow())
    torch.testing.assert_close(torch.logit(t), torch.tensor([0.3, 1.1]).double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("build", [lambda: LogitNormal(std=0.0), lambda: Discrete(0), lambda: MinSNR(-1.0)])
def test_impossible_values_are_refused(build: object) -> None:
    with pytest.raises(UserError):
        build()  # type: ignore[operator]


def test_min_snr_closed_forms() -> None:
    """min(SNR, g), min(1, g/SNR) and min(SNR, g)/(SNR + 1) for x0, eps and v: high SNRs are held down."""
    table = linear()
    t = torch.linspace(0.001, 1, 50).double()
    snr = table.log_snr(t).exp()
    assert snr.max() > 5 > snr.min()
    torch.testing.assert_close(MinSNR(5)(table, X0(), t), snr.clamp(max=5))
    torch.testing.assert_close(MinSNR(5)(table, Eps(), t), (5 / snr).clamp(max=1))
    torch.testing.assert_close(MinSNR(5)(table, V(), t), snr.clamp(max=5) / (snr + 1))


def test_min_snr_is_finite_at_pure_noise() -> None:
    assert MinSNR()(RectifiedFlow(), V(), torch.tensor([1.0]).double()).isfinite().all()


def test_unit_weight_is_one() -> None:
    assert Unit()(linear(), V(), torch.tensor([0.2, 0.9])).tolist() == [1, 1]
