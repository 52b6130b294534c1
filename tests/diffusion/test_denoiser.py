"""The oracle, the denoiser, its wrappers, guidance, grids and the loss."""

import pytest
import torch
from torch import Tensor, nn

from tests.diffusion.test_solvers import MIXTURE
from unfog.diffusion.denoiser import (
    Clipped,
    Conditioned,
    Denoiser,
    Rescheduled,
    edm_clock,
    side_by_side,
)
from unfog.diffusion.grids import Grid, KarrasGrid, LogSNRGrid, TimesGrid, UniformGrid
from unfog.diffusion.guidance import ClassifierFree
from unfog.diffusion.objectives import denoising_loss
from unfog.diffusion.oracle import Mixture, MixtureDenoiser
from unfog.diffusion.schedules import EDM, CosineContinuous, LinearContinuous, RectifiedFlow, Schedule
from unfog.diffusion.tables import Linear
from unfog.diffusion.targets import X0, EDMTarget, Eps, Flow, Prediction, Target, V
from unfog.diffusion.times import Uniform
from unfog.diffusion.weightings import MinSNR, Unit
from unfog.generation.thresholding import Thresholded
from unfog.networks.compact import Compact
from unfog.networks.conditioning import ClassEmbedding, Cond
from unfog.runtime.errors import UserError


class Recorder(nn.Module):
    """A network that answers with a fixed output and remembers what it was shown."""

    channels_last = False
    embedding_dim = 4
    multiple = 1

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.answer = output
        self.shown: tuple[Tensor, Tensor, Cond | None] | None = None

    def forward(self, x: Tensor, time: Tensor, cond: Cond | None = None) -> Tensor:
        self.shown = (x, time, cond)
        return self.answer


@pytest.mark.parametrize("schedule", [Linear(), RectifiedFlow(), EDM()], ids=["table", "flow", "edm"])
def test_oracle_is_the_score(schedule: Schedule) -> None:
    """Tweedie: eps = -sigma·grad log p_t(x), and x0 follows from x_t = alpha·x0 + sigma·eps."""
    t = torch.tensor(0.3).double()
    alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
    x = torch.randn(40, 2, dtype=torch.float64, requires_grad=True)
    (score,) = torch.autograd.grad(MIXTURE.noised(alpha, sigma).log_prob(x).sum(), x)
    found = MixtureDenoiser(MIXTURE, schedule)(x.detach(), t)
    torch.testing.assert_close(found.eps, -sigma * score)
    torch.testing.assert_close(alpha * found.x0 + sigma * found.eps, x.detach())


def test_oracle_at_its_ends() -> None:
    """At pure noise the guess is the mean; at clean data it is the state itself."""
    denoise = MixtureDenoiser(MIXTURE, RectifiedFlow())
    x = torch.randn(5, 2).double()
    mean = (MIXTURE.weights[:, None] * MIXTURE.means).sum(0)
    torch.testing.assert_close(denoise(x, torch.tensor(1.0)).x0, mean.expand(5, 2))
    torch.testing.assert_close(denoise(x, torch.tensor(0.0)).x0, x)


def test_mixture_density_integrates_to_one() -> None:
    line = torch.linspace(-5, 5, 401).double()
    places = torch.cartesian_prod(line, line)
    assert float(MIXTURE.log_prob(places).exp().sum() * (10 / 400) ** 2) == pytest.approx(1, abs=1e-6)


def test_points_have_an_oracle_too() -> None:
    """Components of no variance: the exact denoiser of a finite data set."""
    points = torch.tensor([[1.0, 0.0], [-1.0, 0.5]]).double()
    mixture = Mixture(torch.full((2,), 0.5).double(), points, torch.zeros(2, 2).double())
    found = MixtureDenoiser(mixture, RectifiedFlow())(torch.tensor([[0.9, 0.05]]).double(), torch.tensor(0.05))
    torch.testing.assert_close(found.x0, points[:1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("target", [Eps(), X0(), V(), EDMTarget()], ids=lambda target: type(target).__name__)
def test_denoiser_solves_the_two_equations(target: Target) -> None:
    """A network that answers right leads to the right pair, at times for each sample."""
    table, x0, eps = Linear(), torch.randn(3, 1, 4, 4), torch.randn(3, 1, 4, 4)
    t = torch.tensor([0.1, 0.5, 0.9]).double()
    denoiser = Denoiser(Recorder(target.of(x0, eps, t, table)), table, target)
    found = denoiser(table.add_noise(x0, eps, t), t)
    torch.testing.assert_close(found.x0, x0, rtol=0, atol=1e-4)
    torch.testing.assert_close(found.eps, eps, rtol=0, atol=1e-4)


def test_network_time() -> None:
    """T·t - 1 is the table's index to the last digit; the others as documented."""
    shown = Recorder(torch.zeros(1000, 2))
    denoiser = Denoiser(shown, Linear(), Eps(), network_time="index")
    denoiser.output(torch.zeros(1000, 2), torch.arange(1, 1001).double() / 1000)
    assert shown.shown is not None
    torch.testing.assert_close(shown.shown[1], torch.arange(1000).float(), rtol=0, atol=0)
    thousand = Denoiser(shown, EDM(), X0(), network_time="thousand")
    assert float(thousand.time_input(torch.tensor(40.0).double())) == 500
    quarter = Denoiser(shown, EDM(), X0(), network_time="log_snr")
    assert float(quarter.time_input(torch.tensor(40.0).double())) == pytest.approx(torch.tensor(40.0).log().item() / 4)
    with pytest.raises(UserError, match="discrete steps"):
        Denoiser(shown, EDM(), X0(), network_time="index")


def test_unit_input_has_unit_variance() -> None:
    """Karras' c_in = 1/sqrt(sigma² + sigma_data²)."""
    shown = Recorder(torch.zeros(2, 3))
    denoiser = Denoiser(shown, EDM(), EDMTarget(), input_scale="unit", sigma_data=0.5)
    denoiser.output(torch.ones(2, 3), torch.tensor(2.0).double())
    assert shown.shown is not None
    torch.testing.assert_close(shown.shown[0], torch.full((2, 3), (4 + 0.25) ** -0.5))


def test_time_is_clamped_to_the_first_trained_one() -> None:
    """x0 has no solution for eps at t = 0: the denoiser answers as at the first trained time."""
    shown = Recorder(torch.zeros(2, 3))
    denoiser = Denoiser(shown, Linear(), X0(), network_time="index")
    found = denoiser(torch.ones(2, 3), torch.tensor(0.0))
    assert found.eps.isfinite().all()
    assert shown.shown is not None
    assert shown.shown[1].tolist() == [0, 0]


def test_clipped() -> None:
    """x0 is held, and (x0, eps) still add up to the state unless eps is kept."""
    flow = RectifiedFlow()
    denoise = MixtureDenoiser(MIXTURE, flow)
    x, t = 3 * torch.randn(30, 2).double(), torch.tensor(0.4).double()
    free, held = denoise(x, t), Clipped(denoise, -0.3, 0.3)(x, t)
    assert (free.x0.abs() > 0.3).any()
    assert held.x0.abs().max() == 0.3
    torch.testing.assert_close(flow.add_noise(held.x0, held.eps, t), x)
    torch.testing.assert_close(Clipped(denoise, -0.3, 0.3, keep_eps=True)(x, t).eps, free.eps)


def test_dynamic_thresholding() -> None:
    """Rows that reach beyond the range are scaled into it by their own percentile; others are only clipped."""

    def fixed(x: torch.Tensor, t: torch.Tensor) -> Prediction:
        return Prediction(x0, torch.zeros_like(x0))

    x0 = torch.linspace(-1, 1, 201).double() * torch.tensor([[0.5], [4.0], [1.0]]).double()
    x0[2, 0] = -9  # one outlier is beyond the percentile
    fixed.schedule = RectifiedFlow()  # type: ignore[attr-defined]
    held = Thresholded(fixed, percentile=0.9)(torch.zeros_like(x0), torch.tensor(0.4).double())  # type: ignore[arg-type]
    assert torch.equal(held.x0[0], x0[0])
    s = float(x0[1].abs().quantile(0.9))
    torch.testing.assert_close(held.x0[1], x0[1].clamp(-s, s) / s)
    torch.testing.assert_close(held.x0[2], x0[2].clamp(-1, 1))
    torch.testing.assert_close(fixed.schedule.add_noise(held.x0, held.eps, torch.tensor(0.4).double()), 0 * x0)  # type: ignore[attr-defined]
    assert float(Clipped(fixed)(torch.zeros_like(x0), torch.tensor(0.4).double()).x0[1].abs().mean()) > 0.8  # type: ignore[arg-type]


def test_rescheduled_predicts_the_same() -> None:
    """The exact denoiser of one schedule, moved to another, is the exact denoiser of the other."""
    x, t = torch.randn(20, 2).double(), torch.tensor(0.37).double()
    for inner in (LinearContinuous(), CosineContinuous(), EDM()):
        moved = Rescheduled(MixtureDenoiser(MIXTURE, inner), RectifiedFlow())(x, t)
        right = MixtureDenoiser(MIXTURE, RectifiedFlow())(x, t)
        torch.testing.assert_close(moved.x0, right.x0, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(moved.eps, right.eps, rtol=1e-8, atol=1e-8)


def test_the_edm_clock_ends_at_the_noise_level() -> None:
    table = Linear()
    assert edm_clock(table).t_max == pytest.approx(float(table.sigma(1.0) / table.alpha(1.0)))
    with pytest.raises(UserError, match="pure noise"):
        edm_clock(RectifiedFlow())


def test_guidance_on_a_labelled_mixture() -> None:
    """Scale 1 is off, 0 is unconditional, and the guided eps is that of p(x)^(1-w)·p(x|c)^w exactly."""
    flow, x, t = RectifiedFlow(), torch.randn(20, 2).double(), torch.tensor(0.5).double()
    label = Mixture(torch.ones(1).double(), MIXTURE.means[:1], MIXTURE.variances[:1])
    conditional, free = MixtureDenoiser(label, flow), MixtureDenoiser(MIXTURE, flow)
    assert torch.equal(ClassifierFree(conditional, free, 1)(x, t).x0, conditional(x, t).x0)
    torch.testing.assert_close(ClassifierFree(conditional, free, 0)(x, t).x0, free(x, t).x0)
    y = x.clone().requires_grad_()
    alpha, sigma = float(flow.alpha(t)), float(flow.sigma(t))
    log_p = 3 * label.noised(alpha, sigma).log_prob(y) - 2 * MIXTURE.noised(alpha, sigma).log_prob(y)
    (score,) = torch.autograd.grad(log_p.sum(), y)
    guided = ClassifierFree(conditional, free, 3)(x, t)
    torch.testing.assert_close(guided.eps, -sigma * score)
    torch.testing.assert_close(flow.add_noise(guided.x0, guided.eps, t), x)


def test_conditioned_passes_the_condition_on() -> None:
    shown = Recorder(torch.zeros(2, 3))
    embedder = ClassEmbedding(3, 4)
    cond = embedder(torch.tensor([0, 2]))
    Conditioned(Denoiser(shown, RectifiedFlow(), Flow()), cond)(torch.ones(2, 3), torch.tensor(0.5))
    assert shown.shown is not None
    assert shown.shown[2] is cond


@pytest.mark.parametrize("many", [True, False], ids=["a time each", "one time"])
@pytest.mark.parametrize("variance", [True, False])
def test_one_denoiser_under_two_conditions_is_evaluated_once(variance: bool, many: bool) -> None:
    torch.manual_seed(0)
    network, calls = Compact(1, outputs=1 + variance, width=8), []
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    network.register_forward_hook(lambda module, given, out: calls.append(len(given[0])))
    embedder = ClassEmbedding(3, network.embedding_dim)
    denoiser = Denoiser(network, RectifiedFlow(), Flow(), embedder=embedder, learned_variance=variance)
    guided, free = (Conditioned(denoiser, cond) for cond in (embedder(torch.tensor([0, 2])), embedder.null(2)))
    x, t = torch.randn(2, 1, 4, 4), torch.tensor([0.3, 0.8]) if many else torch.tensor(0.3)
    found = side_by_side(guided, free, x, t)
    assert calls == [4]
    for prediction, model in zip(found, (guided, free), strict=True):
        for part, expected in zip(prediction, model(x, t), strict=True):
            torch.testing.assert_close(part, expected)
    side_by_side(guided, Conditioned(denoiser, None), x, t)
    assert calls == [4, 2, 2, 2, 2]


def test_conditions_follow_each_other_in_every_form() -> None:
    full = Cond(*(torch.randn(2, 3) for _ in range(4)))
    assert torch.equal(full.followed_by(full).tokens[2:], full.tokens)
    assert Cond(vector=full.vector).followed_by(Cond(vector=full.vector)).mask is None


GRIDS: list[Grid] = [UniformGrid(), LogSNRGrid(), KarrasGrid()]


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: type(grid).__name__)
@pytest.mark.parametrize(
    "schedule", [Linear(), RectifiedFlow(), EDM(), CosineContinuous()], ids=["table", "flow", "edm", "cosine"]
)
def test_grids_fall_from_noise_to_data(grid: Grid, schedule: Schedule) -> None:
    for steps in (1, 2, 25):
        times = grid(schedule, steps)
        assert len(times) == steps + 1
        assert times[0] == schedule.t_max
        assert times[-1] == 0
        assert (times.diff() < 0).all()


def test_uniform_grid_on_a_table_is_every_step() -> None:
    torch.testing.assert_close(UniformGrid()(Linear(), 1000), torch.arange(1000, -1, -1).double() / 1000)


def test_karras_grid_is_its_formula() -> None:
    times = KarrasGrid()(EDM(80.0), 18)
    high, low = 80 ** (1 / 7), float(torch.exp(torch.tensor(-5.0).double())) ** (1 / 7)
    expected = [(high + i / 17 * (low - high)) ** 7 for i in range(18)]
    torch.testing.assert_close(times[:-1], torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=0)


def test_log_snr_grid_is_even() -> None:
    log_snr = Linear().log_snr(LogSNRGrid()(Linear(), 12)[1:-1])  # the first time is t_max, a little beyond -10
    torch.testing.assert_close(log_snr.diff(), log_snr.diff()[0].expand(10))


def test_impossible_grids_are_refused() -> None:
    with pytest.raises(UserError, match="number of steps must be a whole number, 1 or more"):
        UniformGrid()(Linear(), 0)
    with pytest.raises(UserError, match="rho"):
        KarrasGrid(0.0)
    with pytest.raises(UserError, match="shares of t_max"):
        TimesGrid((1.0, 0.5, 0.0))(Linear(), 5)
    with pytest.raises(UserError, match="do not fall"):
        TimesGrid((1.0, 0.5, 0.7, 0.0))(Linear(), 3)
    assert TimesGrid((1.0, 0.3, 0.0))(EDM(), 2).tolist() == [80, 24, 0]


def test_loss_is_the_weighted_square() -> None:
    """Against a literal computation, at the expected times, for each sample."""
    table, target = Linear(), V()
    x0, noise = torch.randn(4, 1, 3, 3), torch.randn(4, 1, 3, 3)
    answer = torch.randn(4, 1, 3, 3)
    u = torch.tensor([0.1, 0.4, 0.6, 0.9]).double()
    for weighting in (Unit(), MinSNR()):
        loss = denoising_loss(
            Denoiser(Recorder(answer), table, target), x0, times=Uniform(), weighting=weighting, u=u, noise=noise
        )
        for row in range(4):
            t = Uniform()(u[row : row + 1], table)
            right = float(table.alpha(t)) * noise[row] - float(table.sigma(t)) * x0[row]
            weight = float(weighting(table, target, t))
            assert float(loss[row]) == pytest.approx(weight * float((answer[row] - right).square().mean()), rel=1e-5)


def test_the_exact_denoiser_minimises_the_loss() -> None:
    """The oracle's loss is below that of the oracle with a small error added, for eps on a mixture."""
    flow = RectifiedFlow()
    oracle = MixtureDenoiser(MIXTURE, flow)
    generator = torch.Generator().manual_seed(0)
    x0 = MIXTURE.sample(4000, generator)
    noise = torch.randn(x0.shape, dtype=torch.float64, generator=generator)
    t = torch.tensor(0.6).double()
    right = oracle(flow.add_noise(x0, noise, t), t)
    best = (Flow().of(right.x0, right.eps, t, flow) - (noise - x0)).square().mean()
    worse = (Flow().of(right.x0 + 0.1, right.eps, t, flow) - (noise - x0)).square().mean()
    assert best < worse
