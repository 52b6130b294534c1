"""Targets, times and weightings: rows that invert, refusals, quantiles, closed forms of the weights."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.diffusion.test_schedules import ALL, CONTINUOUS, NAMES, TABLES
from unfog.diffusion.schedules import EDM, CosineContinuous, LinearContinuous, RectifiedFlow, Schedule
from unfog.diffusion.tables import Linear
from unfog.diffusion.targets import X0, EDMTarget, Eps, Flow, Target, V
from unfog.diffusion.times import DiscreteTimes, Importance, LogitNormal, LogNormal, Times, Uniform, stratify
from unfog.diffusion.weightings import P2, EDMWeighting, MinSNR, OfSNR, SigmoidWeighting, Unit
from unfog.runtime.errors import UserError

TARGETS: list[Target] = [Eps(), X0(), V(), Flow(), EDMTarget()]


def _fits(target: Target, schedule: Schedule) -> bool:
    try:
        target.check(schedule)
    except UserError:
        return False
    return True


@pytest.mark.parametrize("schedule", ALL, ids=NAMES)
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: type(target).__name__)
@settings(max_examples=30, deadline=None)
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
    kinds = ("sigmoid", "sigmoid steep", "laplace", "laplace wide", "shifted linear", "shifted cosine")
    rates = {(name, "Flow") for name in ("linear", "quadratic", "cosine", *kinds)}
    ends = ("shifted flow", "shifted cosine", "shifted twice", "table of flow", "table zero terminal")
    no_signal = {(name, "Eps") for name in ("cosine", "cosine s=0", "flow", *ends)}
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


@pytest.mark.parametrize("times", [Uniform(), DiscreteTimes(), LogitNormal(), LogNormal(), Importance(LogNormal())])
@pytest.mark.parametrize("schedule", [RectifiedFlow(), EDM(), Linear()], ids=["flow", "edm", "table"])
def test_times_stay_on_the_clock(times: Times, schedule: Schedule) -> None:
    t = times(torch.cat([torch.zeros(1), torch.rand(500), torch.tensor([1 - 1e-16])]).double(), schedule)
    assert t.isfinite().all()
    assert (t >= schedule.t_first).all()
    assert (t <= schedule.t_max).all()


def test_uniform_times_on_a_table_are_ddpm_steps() -> None:
    """Each of the T steps, equally often; index 0 is the cleanest."""
    u = (torch.arange(4000).double() + 0.5) / 4000
    index = Uniform()(u, Linear()) * 1000 - 1
    torch.testing.assert_close(index, index.round(), rtol=0, atol=1e-9)
    assert torch.bincount(index.round().long()).tolist() == [4] * 1000
    torch.testing.assert_close(DiscreteTimes(1000)(u, Linear()), Uniform()(u, Linear()))


def test_logit_normal_quantiles() -> None:
    t = LogitNormal(mean=0.3, std=0.8)(torch.tensor([0.5, 0.841344746]).double(), RectifiedFlow())
    torch.testing.assert_close(torch.logit(t), torch.tensor([0.3, 1.1]).double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "build",
    [
        lambda: LogitNormal(std=0.0),
        lambda: LogNormal(std=0.0),
        lambda: DiscreteTimes(0),
        lambda: Importance(Uniform(), bins=0),
        lambda: Importance(Uniform(), window=0),
        lambda: Importance(Uniform(), floor=-0.1),
        lambda: Importance(Uniform(), floor=1.5),
        lambda: MinSNR(-1.0),
        lambda: P2(gamma=-1.0),
        lambda: P2(k=0.0),
        lambda: EDMWeighting(0.0),
        lambda: EDMTarget(0.0),
    ],
)
def test_impossible_values_are_refused(build: object) -> None:
    with pytest.raises(UserError):
        build()  # type: ignore[operator]


def test_min_snr_closed_forms() -> None:
    """min(SNR, g), min(1, g/SNR) and min(SNR, g)/(SNR + 1) for x0, eps and v: high SNRs are held down."""
    table = Linear()
    t = torch.linspace(0.001, 1, 50).double()
    snr = table.log_snr(t).exp()
    assert snr.max() > 5 > snr.min()
    torch.testing.assert_close(MinSNR(5)(table, X0(), t), snr.clamp(max=5))
    torch.testing.assert_close(MinSNR(5)(table, Eps(), t), (5 / snr).clamp(max=1))
    torch.testing.assert_close(MinSNR(5)(table, V(), t), snr.clamp(max=5) / (snr + 1))


def test_min_snr_is_finite_at_pure_noise() -> None:
    assert MinSNR()(RectifiedFlow(), V(), torch.tensor([1.0]).double()).isfinite().all()


def test_unit_weight_is_one() -> None:
    assert Unit()(Linear(), V(), torch.tensor([0.2, 0.9])).tolist() == [1, 1]


WEIGHTINGS: dict[str, OfSNR] = {
    "min-SNR": MinSNR(5.0),
    "P2": P2(gamma=0.7, k=1.3),
    "EDM": EDMWeighting(0.5),
    "sigmoid": SigmoidWeighting(bias=-1.0),
}
T = torch.linspace(0.02, 0.98, 49, dtype=torch.float64)


@pytest.mark.parametrize("schedule", [Linear(), LinearContinuous(), CosineContinuous()], ids=["table", "vp", "cosine"])
@pytest.mark.parametrize("name", WEIGHTINGS)
def test_weightings_are_their_closed_forms(name: str, schedule: Schedule) -> None:
    """Each row of the module's table, written out for x0, eps and v with an SNR computed on its own."""
    snr = (schedule.alpha(T) / schedule.sigma(T)) ** 2
    gate = 1 / (1 + snr * math.e)  # exp(-bias) with bias -1
    rows = {
        "min-SNR": (torch.minimum(snr, torch.tensor(5.0)), torch.minimum(torch.tensor(1.0), 5 / snr)),
        "P2": (snr / (1.3 + snr) ** 0.7, (1.3 + snr) ** -0.7),
        "EDM": (snr + 4, 1 + 4 / snr),
        "sigmoid": (snr * gate, gate),
    }
    x0, eps = rows[name]
    weighting = WEIGHTINGS[name]
    torch.testing.assert_close(weighting(schedule, X0(), T), x0, rtol=1e-9, atol=0)
    torch.testing.assert_close(weighting(schedule, Eps(), T), eps, rtol=1e-9, atol=0)
    torch.testing.assert_close(weighting(schedule, V(), T), x0 / (snr + 1), rtol=1e-9, atol=0)


def test_sigmoid_weight_is_a_sigmoid_of_the_log_snr() -> None:
    """Kingma & Gao write it on eps, as sigmoid(bias - log_snr)."""
    table = Linear()
    expected = torch.sigmoid(1.5 - table.log_snr(T))
    torch.testing.assert_close(SigmoidWeighting(1.5)(table, Eps(), T), expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("schedule", [EDM(), RectifiedFlow(), Linear()], ids=["edm", "flow", "table"])
@pytest.mark.parametrize("data", [0.5, 1.7])
def test_edm_weight_of_the_edm_target_is_one(schedule: Schedule, data: float) -> None:
    t = T * schedule.t_max
    torch.testing.assert_close(
        EDMWeighting(data)(schedule, EDMTarget(data), t), torch.ones_like(t), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("weighting", WEIGHTINGS.values(), ids=WEIGHTINGS)
@pytest.mark.parametrize("schedule", [EDM(), RectifiedFlow()], ids=["edm", "flow"])
def test_a_weight_on_x0_means_the_same_for_every_target(weighting: OfSNR, schedule: Schedule) -> None:
    """One network guesses x0; asked through any target, the weighted square has the same gradient."""
    generator = torch.Generator().manual_seed(0)
    x0, eps, matrix = (torch.randn(size, dtype=torch.float64, generator=generator) for size in ((9, 3), (9, 3), (3, 3)))
    t = schedule.time(torch.linspace(3, -3, 9, dtype=torch.float64))
    alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
    x_t = schedule.add_noise(x0, eps, t)

    def gradient(target: Target) -> Tensor:
        free = matrix.clone().requires_grad_()
        guess = torch.tanh(x_t @ free)
        output = target.of(guess, (x_t - alpha * guess) / sigma, t, schedule)
        squares = (output - target.of(x0, eps, t, schedule)).square().sum(1)
        (found,) = torch.autograd.grad((weighting(schedule, target, t) * squares).sum(), free)
        return found

    expected = gradient(X0())
    assert expected.abs().max() > 0.1
    for target in TARGETS[:1] + TARGETS[2:]:
        torch.testing.assert_close(gradient(target), expected, rtol=1e-8, atol=1e-8)


def test_log_normal_quantiles() -> None:
    """Median exp(mean), and exp(mean ± std) at one deviation, of sigma on the EDM clock; the same noise elsewhere."""
    u = torch.tensor([0.15865525393145707, 0.5, 0.8413447460685429], dtype=torch.float64)
    expected = torch.tensor([-2.4, -1.2, 0.0], dtype=torch.float64)
    torch.testing.assert_close(LogNormal(-1.2, 1.2)(u, EDM()).log(), expected, rtol=0, atol=1e-7)
    t = LogNormal(-1.2, 1.2)(u, RectifiedFlow())
    torch.testing.assert_close((t / (1 - t)).log(), expected, rtol=0, atol=1e-7)


HISTORIES = {
    "falling": torch.tensor([9.0, 4.0, 1.0, 0.25, 0.25, 0.04, 0.01, 0.0]).double(),
    "peaked": torch.tensor([0.0, 0.0, 0.0, 25.0, 0.0, 0.0, 0.0, 0.0]).double(),
    "even": torch.full((8,), 3.0).double(),
}


def _seen(squares: Tensor) -> Tensor:
    return torch.stack([squares, torch.full_like(squares, 50.0)])


def test_importance_without_a_history_changes_nothing() -> None:
    """Also with one bin that was seen nine times only, and where all losses were 0."""
    importance, u = Importance(Uniform(), bins=8), stratify(torch.rand(64, dtype=torch.float64))
    early = _seen(HISTORIES["falling"])
    early[1, 3] = 9
    for history in (importance.history(), early, _seen(torch.zeros(8).double())):
        moved, weight = importance.spread(u, history)
        assert torch.equal(moved, u)
        assert torch.equal(weight, torch.ones_like(u))
    early[1, 3] = 10
    assert not torch.equal(importance.spread(u, early)[0], u)


@pytest.mark.parametrize("squares", HISTORIES.values(), ids=HISTORIES)
def test_importance_keeps_every_mean(squares: Tensor) -> None:
    """The mean of weight·f over the moved numbers is the integral of f.

    Evenly spaced u make each bin's mean a midpoint sum, wrong by at most the weight of a few points at its edges:
    max(weight)·8 edges/400,000 points = 4e-4 with a floor of 0.05, whose largest weight is 20.
    """
    u = (torch.arange(400_000, dtype=torch.float64) + 0.5) / 400_000
    moved, weight = Importance(Uniform(), bins=8, floor=0.05).spread(u, _seen(squares))
    assert moved.min() >= 0
    assert moved.max() < 1
    for f, integral in (
        (torch.ones_like, 1.0),
        (lambda x: x, 1 / 2),
        (lambda x: x**2, 1 / 3),
        (torch.exp, math.e - 1),
        (lambda x: torch.cos(7 * x), math.sin(7) / 7),
    ):
        assert float((weight * f(moved)).mean()) == pytest.approx(integral, abs=4e-4)


@pytest.mark.parametrize("squares", HISTORIES.values(), ids=HISTORIES)
@pytest.mark.parametrize("floor", [0.05, 0.5, 1.0])
def test_importance_density(squares: Tensor, floor: float) -> None:
    """Shares of the root of the mean square, mixed with the floor; the weight is one over the density."""
    importance = Importance(Uniform(), bins=8, floor=floor)
    u = (torch.arange(8_000, dtype=torch.float64) + 0.5) / 8_000
    moved, weight = importance.spread(u, _seen(squares))
    roots = [math.sqrt(value) for value in squares.tolist()]
    place = (moved * 8).long()
    for k in range(8):
        share = (1 - floor) * roots[k] / sum(roots) + floor / 8
        assert float((place == k).double().mean()) == pytest.approx(share, abs=3e-4)
        for extreme in (weight[place == k].min(), weight[place == k].max()):
            assert float(extreme) == pytest.approx(1 / (8 * share), rel=1e-9)


def test_importance_update_is_a_literal_loop() -> None:
    """The plain mean of all squares while they fit the window, then a share k/window of each k new ones."""
    importance = Importance(Uniform(), bins=4, window=6)
    generator = torch.Generator().manual_seed(3)
    history, mean, count = importance.history(), [0.0] * 4, [0] * 4
    everything: list[list[float]] = [[] for _ in range(4)]
    for batch in (1, 3, 8, 2, 40, 5):
        u = torch.rand(batch, dtype=torch.float64, generator=generator)
        loss = torch.rand(batch, generator=generator) * 3
        history = importance.update(history, u, loss)
        for k in range(4):
            new = [float(value) ** 2 for place, value in zip(u, loss, strict=True) if k / 4 <= place < (k + 1) / 4]
            everything[k] += new
            count[k] += len(new)
            if new:
                share = min(1.0, len(new) / min(count[k], 6))
                mean[k] += share * (sum(new) / len(new) - mean[k])
        assert history[1].tolist() == count
        assert history[0].tolist() == pytest.approx(mean, rel=1e-9)
        for k in range(4):
            if 0 < count[k] <= 6:
                assert float(history[0, k]) == pytest.approx(sum(everything[k]) / count[k], rel=1e-9)
    assert max(count) > 6


def test_importance_lowers_the_variance() -> None:
    """A loss that is ten in one bin and 0.1 elsewhere: the variance falls to less than a tenth, at the same mean."""
    u = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000

    def loss(u: Tensor) -> Tensor:
        return torch.where(u < 1 / 8, 10.0, 0.1) * (1 + 0.3 * torch.cos(200 * u))

    importance = Importance(Uniform(), bins=8, window=10**6)
    moved, weight = importance.spread(u, importance.update(importance.history(), u, loss(u)))
    plain, weighted = loss(u), weight * loss(moved)
    assert float(weighted.mean()) == pytest.approx(float(plain.mean()), rel=1e-3)
    assert weighted.var() < plain.var() / 10
