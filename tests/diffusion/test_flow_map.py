"""Flow maps: the pair that leads from one time to another, on Gaussian data whose exact map is known."""

import itertools
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

import unfog
from unfog.diffusion.denoiser import Conditioned
from unfog.diffusion.schedules import EDM, CosineContinuous, LinearContinuous, RectifiedFlow, Schedule, as_time
from unfog.diffusion.targets import V
from unfog.networks.conditioning import ClassEmbedding, Cond
from unfog.networks.layers import ScalarEmbedding
from unfog.runtime.errors import UserError

MEAN, VARIANCE = 0.7, 0.3


def exact(schedule: Schedule, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """Where the probability flow of N(0.7, 0.3) leads from `t` to `s`: a standardised state keeps its value."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = ((schedule.alpha(at), schedule.sigma(at)) for at in (t, s))
    ratio = ((alpha_s**2 * VARIANCE + sigma_s**2) / (alpha_t**2 * VARIANCE + sigma_t**2)).sqrt()
    return alpha_s * MEAN + ratio * (x - alpha_t * MEAN)


class Far(ScalarEmbedding):
    """The length of the way itself in place of an embedding."""

    def __init__(self) -> None:
        nn.Module.__init__(self)

    def forward(self, number: Tensor) -> Tensor:
        return number[:, None].double()


class Exact(nn.Module):
    """The mean velocity of the exact map of N(0.7, 0.3) by rectified flow, whose time is sigma/(alpha + sigma)."""

    embedding_dim = 1

    def forward(self, x: Tensor, time: Tensor, cond: Cond) -> Tensor:
        assert cond.vector is not None
        t, far = time.double()[:, None] / 1000, cond.vector
        flow, short = RectifiedFlow(), far < 1e-6
        s = torch.where(short, t - 1e-6, t - far)  # at s = t the velocity itself
        return ((x - exact(flow, x.double(), t, s)) / (t - s)).float()


def flow_map() -> unfog.Denoiser:
    return unfog.Denoiser(Exact(), RectifiedFlow(), network_time="thousand", span=Far())


SCHEDULES = [RectifiedFlow(), CosineContinuous(), LinearContinuous(), EDM()]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda one: type(one).__name__)
def test_a_pair_goes_through_both_states(schedule: Schedule) -> None:
    x_t, x_s = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.7
    t = schedule.t_max * torch.tensor([0.2, 0.4, 0.6, 0.9, 0.99], dtype=torch.float64)
    s = t * torch.tensor([0.0, 0.5, 0.9, 0.1, 0.0], dtype=torch.float64)
    x0, eps = schedule.pair(x_t, x_s, t, s)
    assert torch.allclose(schedule.add_noise(x0, eps, t), x_t, atol=1e-9)
    assert torch.allclose(schedule.add_noise(x0, eps, s), x_s, atol=1e-9)
    data, noise = schedule.pair(schedule.add_noise(x_t, x_s, t), schedule.add_noise(x_t, x_s, s), t, s)
    assert torch.allclose(data, x_t, atol=1e-6)
    assert torch.allclose(noise, x_s, atol=1e-6)


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_any_number_of_steps_ends_where_the_flow_does(steps: int) -> None:
    noise = torch.randn(64, 2, generator=torch.Generator().manual_seed(1))
    found = unfog.sample(flow_map(), (64, 2), steps, solver="ddim", noise=noise)
    wanted = exact(RectifiedFlow(), noise, as_time(1.0), as_time(0.0)).float()
    assert torch.allclose(found, wanted, atol=1e-5)
    assert abs(float(found.mean()) - MEAN) < 0.2


def test_other_solvers_see_an_ordinary_denoiser() -> None:
    noise = torch.randn(64, 2, generator=torch.Generator().manual_seed(1))
    wanted = exact(RectifiedFlow(), noise, as_time(1.0), as_time(0.0)).float()
    few = unfog.sample(flow_map(), (64, 2), 4, solver="heun", noise=noise)
    many = unfog.sample(flow_map(), (64, 2), 200, solver="heun", noise=noise)
    assert float((few - wanted).abs().max()) > 1e-3  # a step along the velocity at its beginning is no jump
    assert torch.allclose(many, wanted, atol=1e-3)


def test_predictions_lead_to_the_next_end_below() -> None:
    model = Conditioned(flow_map(), None, as_time([1.0, 0.5, 0.25]))
    asked = as_time([1.0, 0.75, 0.5, 0.25, 0.1])
    assert model._next(asked).tolist() == [0.5, 0.5, 0.25, 0.0, 0.0]
    assert float(model._next(as_time(0.5 + 1e-12))) == 0.25  # which is 0.5 but for the rounding of clocks
    assert Conditioned(flow_map(), None)._next(asked) is None


def test_only_a_flow_map_knows_another_time() -> None:
    plain = unfog.Denoiser(nn.Identity(), RectifiedFlow())
    with pytest.raises(UserError, match="only a flow map"):
        plain.output(torch.zeros(2, 2), as_time(0.5), None, as_time(0.2))
    plain = unfog.Denoiser(unfog.Compact(1, width=8), CosineContinuous(), V())
    assert Conditioned(plain, None, as_time([0.5, 0.0]))._next(as_time(0.7)) is None


def test_before_training_span_and_guidance_change_nothing() -> None:
    torch.manual_seed(0)
    network, x = unfog.Compact(1, width=8), torch.randn(3, 1, 8, 8)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.05)
    plain = unfog.Denoiser(network, RectifiedFlow())
    dim = network.embedding_dim
    more = unfog.Denoiser(network, RectifiedFlow(), span=ScalarEmbedding(dim), guidance=ScalarEmbedding(dim, 1.0, 3.0))
    t, s = as_time([0.9, 0.5, 0.1]), as_time([0.2, 0.5, 0.0])
    for one, other in itertools.product([None, Cond(torch.randn(3, dim))], [None, s]):
        assert torch.equal(plain.output(x, t, one)[0], more.output(x, t, one, other)[0])
    assert more.span is not None
    nn.init.normal_(more.span.linear_2.weight)
    assert not torch.equal(more.output(x, t, None, s)[0], more.output(x, t, None, None)[0])


def test_guidance_evaluates_a_flow_map_with_its_ends() -> None:
    torch.manual_seed(0)
    network, embedder = unfog.Compact(1, width=8), ClassEmbedding(3, 32)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.05)
    model = unfog.Denoiser(network, RectifiedFlow(), embedder=embedder, span=ScalarEmbedding(32))
    assert model.span is not None
    nn.init.normal_(model.span.linear_2.weight, std=0.1)
    labels, noise = torch.tensor([0, 2]), torch.randn(2, 1, 8, 8)
    once = unfog.sample(model, (2, 1, 8, 8), 1, solver="ddim", noise=noise, cond=labels, guidance=2.0)
    one, zero = as_time(1.0), as_time(0.0)
    with torch.no_grad():
        x0 = [model(noise, one, cond, zero).x0 for cond in (embedder(labels), embedder.null(2))]
    assert torch.allclose(once, x0[1] + 2 * (x0[0] - x0[1]), atol=1e-5)


# Learned from data


class Straight(nn.Module):
    """The exact map where all data are one point, c = (0.7, -0.2): its velocity eps - c is the same all the way."""

    embedding_dim = 1

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor, time: Tensor, cond: Cond) -> Tensor:
        return self.gain * (x - POINT) / (time / 1000)[:, None].float()


POINT = torch.tensor([0.7, -0.2])


def straight() -> unfog.Denoiser:
    return unfog.Denoiser(Straight(), RectifiedFlow(), network_time="thousand", span=Far())


def rows(count: int = 64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Data, noise, and times of which a third are equal."""
    random = torch.Generator().manual_seed(3)
    noise = torch.randn(count, 2, generator=random)
    t = 0.2 + 0.8 * torch.rand(count, generator=random, dtype=torch.float64)
    s = t * torch.rand(count, generator=random, dtype=torch.float64)
    s[::3] = t[::3]
    s[1::6] = 0
    return POINT.expand(count, 2), noise, t, s


@pytest.mark.parametrize("ratio", [1.0, 0.3, 0.01])
def test_the_exact_map_has_no_loss_and_another_one_has(ratio: float) -> None:
    x0, noise, t, s = rows()
    loss = unfog.flow_map_loss(straight(), x0, t=t, s=s, ratio=ratio, noise=noise)
    assert loss.shape == (64,)
    assert loss.max() < 1e-6
    other = straight()
    with torch.no_grad():
        other.network.gain.fill_(1.1)  # type: ignore[attr-defined]
    missed = unfog.flow_map_loss(other, x0, t=t, s=s, ratio=ratio, noise=noise)
    assert missed[s < t].mean() > 1e3 * loss.max()
    assert missed[s == t].min() > 1e-4


def test_rows_at_one_time_have_the_loss_of_a_denoiser() -> None:
    model, (x0, noise, t, _) = flow_map(), rows()
    model.network.weight = nn.Parameter(torch.zeros(()))  # type: ignore[assignment]
    found = unfog.flow_map_loss(model, x0, t=t, s=t, ratio=0.1, noise=noise)
    x_t = RectifiedFlow().add_noise(x0, noise, t)
    output, _ = model.output(x_t, t, None, t)
    torch.testing.assert_close(found, (output - (noise - x0)).square().mean(1))


def faults() -> dict[str, object]:
    """What is put in the place of which name."""
    pair, add = Schedule.pair, Schedule.add_noise
    calls = itertools.count()

    def other_noise(self: Schedule, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        return add(self, x0, noise.flip(0) if next(calls) % 3 == 1 else noise, t)

    return {
        "wrong sign of s - t": ("pair", lambda self, x_t, x_s, t, s: pair(self, x_t, 2 * x_t - x_s, t, s)),
        "other noise": ("add_noise", other_noise),
    }


@pytest.mark.parametrize("fault", list(faults()))
def test_a_fault_is_a_loss_of_the_exact_map(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x0, noise, t, s = rows()
    monkeypatch.setattr(Schedule, *faults()[fault])  # type: ignore[misc]
    assert unfog.flow_map_loss(straight(), x0, t=t, s=s, ratio=0.3, noise=noise)[s < t].mean() > 0.05


def test_no_gradient_goes_through_the_target() -> None:
    model, (x0, noise, t, s) = straight(), rows()
    gain = model.network.gain
    assert isinstance(gain, Tensor)
    with torch.no_grad():
        gain.fill_(1.1)
    loss = unfog.flow_map_loss(model, x0, t=t, s=s, ratio=0.3, noise=noise).sum()
    (found,) = torch.autograd.grad(loss, gain)
    x_t, flow = RectifiedFlow().add_noise(x0, noise, t), RectifiedFlow()
    nearer = t + 0.3 * (s - t)
    with torch.no_grad():
        led = model(flow.add_noise(x0, noise, nearer), nearer, None, s)
        ahead = flow.pair(x_t, flow.add_noise(led.x0, led.eps, s), t, torch.where(s < t, s, 0.5 * t))
        target = torch.where((s < t)[:, None], ahead[1] - ahead[0], noise - x0)
    output, _ = model.output(x_t, t, None, s)
    squares = (output - target).square().mean(1)
    (wanted,) = torch.autograd.grad(torch.where(s < t, squares / 0.3, squares).sum(), gain)
    torch.testing.assert_close(found, wanted)
    assert wanted.abs() > 1


class Dropping(Straight):
    """Half of the outputs are dropped."""

    def forward(self, x: Tensor, time: Tensor, cond: Cond) -> Tensor:
        return nn.functional.dropout(super().forward(x, time, cond), 0.5)


def test_both_sides_drop_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a target hardly nearer would be far from the output."""
    model = unfog.Denoiser(Dropping(), RectifiedFlow(), network_time="thousand", span=Far())
    x0, noise, t, s = rows()
    jump = (s < t) & (s > 0)

    def loss() -> float:
        torch.manual_seed(0)
        found = unfog.flow_map_loss(model, x0, t=t, s=s, ratio=1e-3, noise=noise)[jump]
        return 1e-3 * float(found.detach().mean())

    same = loss()
    monkeypatch.setattr("unfog.diffusion.objectives.same_draws", nullcontext)
    assert loss() > 20 * same
    torch.manual_seed(0)
    before = torch.rand(1)
    torch.manual_seed(0)
    unfog.flow_map_loss(straight(), x0, t=t, s=s, ratio=0.5, noise=noise)
    assert torch.equal(torch.rand(1), before)


def test_what_is_no_flow_map_is_refused() -> None:
    x0, noise, t, s = rows()
    plain = unfog.Denoiser(Straight(), RectifiedFlow(), network_time="thousand")
    with pytest.raises(UserError, match="needs a denoiser with a span"):
        unfog.flow_map_loss(plain, x0, t=t, s=s, ratio=0.5, noise=noise)
    with pytest.raises(UserError, match="leads to earlier times"):
        unfog.flow_map_loss(straight(), x0, t=s, s=t, ratio=0.5, noise=noise)
    with pytest.raises(UserError, match="by a ratio above 0"):
        unfog.flow_map_loss(straight(), x0, t=t, s=s, ratio=0.0, noise=noise)
