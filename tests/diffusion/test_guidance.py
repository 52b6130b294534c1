"""Guidance on mixtures, whose conditional and unconditional scores are known exactly."""

import pytest
import torch
from torch import Tensor

from tests.diffusion.test_solvers import MIXTURE, SCHEDULES
from unfog.diffusion.denoiser import Denoise
from unfog.diffusion.guidance import CFGPlusPlus, ClassifierFree, ClassifierGuided, Interval, autoguidance
from unfog.diffusion.oracle import Mixture, MixtureDenoiser
from unfog.diffusion.sampling import follow
from unfog.diffusion.schedules import EDM, CosineContinuous, RectifiedFlow, Schedule
from unfog.diffusion.solvers import DDIM
from unfog.runtime.errors import UserError

LABEL = 1
"""Which component of the mixture the condition names."""
GIVEN = Mixture(torch.ones(1).double(), MIXTURE.means[LABEL : LABEL + 1], MIXTURE.variances[LABEL : LABEL + 1])
FLOW = RectifiedFlow()


def _gaussian(mean: Tensor, variance: float) -> Mixture:
    return Mixture(torch.ones(1).double(), mean[None], torch.full((1, len(mean)), variance, dtype=torch.float64))


def _states(count: int = 12, dim: int = 2) -> Tensor:
    return torch.randn(count, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


def _time(t: float | list[float]) -> Tensor:
    return torch.tensor(t, dtype=torch.float64)


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 2.5, 7.0])
@pytest.mark.parametrize("name", SCHEDULES)
def test_guided_score_of_two_gaussians(name: str, scale: float) -> None:
    """With one mean and variances c and u the guided score is -(w/S_c - (w - 1)/S_u)·(x - alpha·mean)."""
    schedule, mean = SCHEDULES[name], _time([0.4, -0.9])
    t, x = _time(0.45 * schedule.t_max), _states()
    alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
    conditional, free = (MixtureDenoiser(_gaussian(mean, variance), schedule) for variance in (0.2, 0.9))
    found = ClassifierFree(conditional, free, scale)(x, t)
    total = [alpha**2 * variance + sigma**2 for variance in (0.2, 0.9)]
    score = -(scale / total[0] - (scale - 1) / total[1]) * (x - alpha * mean)
    torch.testing.assert_close(found.eps, -sigma * score, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(alpha * found.x0 + sigma * found.eps, x, rtol=1e-9, atol=1e-9)


class _Refusing:
    """A denoiser that must not be asked."""

    schedule: Schedule = FLOW

    def __call__(self, x: Tensor, t: Tensor) -> None:
        raise AssertionError("guidance is off and the unconditional model was asked")


def test_scale_one_asks_one_model_only() -> None:
    x, conditional = _states(), MixtureDenoiser(GIVEN, FLOW)
    off: Denoise = _Refusing()  # type: ignore[assignment]
    found = ClassifierFree(conditional, off, 1.0, rescale=0.7)(x, _time(0.5))
    assert torch.equal(found.x0, conditional(x, _time(0.5)).x0)
    assert torch.equal(found.eps, conditional(x, _time(0.5)).eps)
    with pytest.raises(AssertionError, match="guidance is off"):
        ClassifierFree(conditional, off, 1.1)(x, _time(0.5))
    ClassifierFree(conditional, off, 3.0, Interval(0.2, 0.4))(x, _time(0.5))


def test_scale_zero_is_unconditional() -> None:
    x, free = _states(), MixtureDenoiser(MIXTURE, FLOW)
    found = ClassifierFree(MixtureDenoiser(GIVEN, FLOW), free, 0.0)(x, _time(0.5))
    torch.testing.assert_close(found.x0, free(x, _time(0.5)).x0, rtol=0, atol=1e-14)
    torch.testing.assert_close(found.eps, free(x, _time(0.5)).eps, rtol=0, atol=1e-14)


@pytest.mark.parametrize("rescale", [0.0, 0.6])
def test_interval_includes_its_ends_sample_by_sample(rescale: float) -> None:
    """At times of its own a sample gets what it gets alone: guided from 0.3 to 0.6, plain elsewhere."""
    conditional, free = MixtureDenoiser(GIVEN, FLOW), MixtureDenoiser(MIXTURE, FLOW)
    t = _time([0.29999, 0.3, 0.45, 0.6, 0.60001, 0.95])
    x = _states(len(t))
    within = ClassifierFree(conditional, free, 3.0, Interval(0.3, 0.6), rescale)
    always, plain, found = ClassifierFree(conditional, free, 3.0, None, rescale)(x, t), conditional(x, t), within(x, t)
    assert (always.x0 - plain.x0).abs().sum(1).min() > 1e-4
    for row, on in enumerate([False, True, True, True, False, False]):
        right = always if on else plain
        torch.testing.assert_close(found.x0[row], right.x0[row], rtol=0, atol=1e-12)
        torch.testing.assert_close(found.eps[row], right.eps[row], rtol=0, atol=1e-12)
        alone = within(x[row : row + 1], t[row])
        torch.testing.assert_close(found.x0[row], alone.x0[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize(("low", "high"), [(-0.1, 0.5), (0.5, 1.1), (0.5, 0.5), (0.7, 0.2), (0.1, float("nan"))])
def test_intervals_off_the_clock_are_refused(low: float, high: float) -> None:
    model = MixtureDenoiser(MIXTURE, FLOW)
    with pytest.raises(UserError, match=r"does not lie on the clock of RectifiedFlow, \[0, 1\]"):
        ClassifierFree(model, model, 2.0, Interval(low, high))
    ClassifierFree(MixtureDenoiser(MIXTURE, EDM()), model, 2.0, Interval(0.5, 80.0))
    ClassifierFree(model, model, 2.0, Interval(0.0, 1.0))


@pytest.mark.parametrize("rescale", [-0.1, 1.1, float("nan")])
def test_impossible_rescaling_is_refused(rescale: float) -> None:
    model = MixtureDenoiser(MIXTURE, FLOW)
    with pytest.raises(UserError, match="must lie between 0 and 1"):
        ClassifierFree(model, model, 2.0, rescale=rescale)


@pytest.mark.parametrize("share", [0.25, 0.7, 1.0])
def test_rescaling_gives_back_the_deviation(share: float) -> None:
    """Std of x0 is (1 - share)·guided + share·conditional for each sample, and the pair still adds up to x."""
    generator = torch.Generator().manual_seed(2)
    means, variances = (torch.rand(2, 16, dtype=torch.float64, generator=generator) for _ in range(2))
    both = Mixture(torch.tensor([0.5, 0.5]).double(), 2 * means - 1, 0.2 + variances)
    one = Mixture(torch.ones(1).double(), both.means[:1], both.variances[:1])
    conditional, free = MixtureDenoiser(one, FLOW), MixtureDenoiser(both, FLOW)
    x, t = _states(6, 16), torch.linspace(0.3, 0.9, 6, dtype=torch.float64)
    plain, guided = conditional(x, t), ClassifierFree(conditional, free, 4.0)(x, t)
    found = ClassifierFree(conditional, free, 4.0, rescale=share)(x, t)
    assert (guided.x0.std(1) / plain.x0.std(1) - 1).abs().max() > 0.01
    torch.testing.assert_close(found.x0.std(1), share * plain.x0.std(1) + (1 - share) * guided.x0.std(1))
    torch.testing.assert_close(FLOW.add_noise(found.x0, found.eps, t), x)


def test_autoguidance_goes_away_from_the_weaker_model() -> None:
    """Weaker + scale·(model - weaker), off at 1, within its interval."""
    better = MixtureDenoiser(MIXTURE, FLOW)
    weaker = MixtureDenoiser(Mixture(MIXTURE.weights, MIXTURE.means * 0.5, MIXTURE.variances * 2), FLOW)
    x, t = _states(), _time(0.5)
    good, bad, found = better(x, t), weaker(x, t), autoguidance(better, weaker, 2.0)(x, t)
    torch.testing.assert_close(found.x0, 2 * good.x0 - bad.x0)
    torch.testing.assert_close(found.eps, 2 * good.eps - bad.eps)
    assert torch.equal(autoguidance(better, weaker, 1.0)(x, t).x0, good.x0)
    assert torch.equal(autoguidance(better, weaker, 2.0, Interval(0.6, 1.0))(x, t).x0, good.x0)


def _classifier(schedule: Schedule) -> "ClassifierGuided":
    """Guidance of the unconditional mixture by the exact p(label | x_t)."""
    given, free = MixtureDenoiser(GIVEN, schedule), MixtureDenoiser(MIXTURE, schedule)

    def log_share(x: Tensor, t: Tensor) -> Tensor:
        return MIXTURE.weights[LABEL].log() + given.log_prob(x, t) - free.log_prob(x, t)

    return ClassifierGuided(free, log_share)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("inference", [False, True])
def test_the_exact_classifier_makes_the_conditional_denoiser(name: str, inference: bool) -> None:
    """Bayes: the score of p(x | y) is that of p(x) plus the gradient of log p(y | x), also where torch records none."""
    schedule = SCHEDULES[name]
    with torch.inference_mode(inference):
        x, t = _states() * 1.0, _time(0.4 * schedule.t_max)
        found, right = _classifier(schedule)(x, t), MixtureDenoiser(GIVEN, schedule)(x, t)
        free = MixtureDenoiser(MIXTURE, schedule)(x, t)
        assert float((free.eps - right.eps).abs().max()) > 1e-4
        torch.testing.assert_close(found.x0, right.x0, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(found.eps, right.eps, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("inference", [False, True])
def test_a_classifier_that_uses_the_time_in_its_graph(inference: bool) -> None:
    """Log p(y | x, t) = -t·|x|²/2 has the gradient -t·x; each sample has its own time."""
    with torch.inference_mode(inference):
        x, t = _states(3) * 1.0, _time([0.2, 0.5, 0.8]) * 1.0
        free = MixtureDenoiser(MIXTURE, FLOW)
        found = ClassifierGuided(free, lambda x, t: -t * (x**2).sum(1) / 2, scale=3.0)(x, t)
        torch.testing.assert_close(found.eps, free(x, t).eps + 3 * t[:, None] ** 2 * x)
        torch.testing.assert_close(FLOW.add_noise(found.x0, found.eps, t), x)


def test_classifier_guidance_reaches_its_limit_at_pure_noise() -> None:
    """At alpha = 0 the state says nothing, and x0 is the mean of the class; eps stays. Scale 0 is off."""
    schedule, x = CosineContinuous(), _states()
    free, guided = MixtureDenoiser(MIXTURE, schedule), _classifier(schedule)
    found, wanted = guided(x, _time(1.0)), MixtureDenoiser(GIVEN, schedule)(x, _time(1.0))
    torch.testing.assert_close(found.x0, wanted.x0, rtol=0, atol=0.01)
    assert (found.x0 - free(x, _time(1.0)).x0).abs().max() > 0.3
    torch.testing.assert_close(found.eps, wanted.eps)
    off = ClassifierGuided(free, guided.classifier, 0.0)
    assert torch.equal(off(x, _time(0.5)).eps, free(x, _time(0.5)).eps)
    assert not torch.equal(guided(x, _time(0.5)).eps, free(x, _time(0.5)).eps)


@pytest.mark.parametrize("scale", [0.0, 0.6, 1.0])
def test_cfg_plus_plus_steps_by_the_unconditional_noise(scale: float) -> None:
    """Chung et al. 2024, algorithm 2: a DDIM step is alpha_s·x0_guided + sigma_s·eps_unconditional."""
    x, times = _states(), _time([0.6, 0.35])
    given, free = MixtureDenoiser(GIVEN, FLOW)(x, times[0]), MixtureDenoiser(MIXTURE, FLOW)(x, times[0])
    model = CFGPlusPlus(MixtureDenoiser(GIVEN, FLOW), MixtureDenoiser(MIXTURE, FLOW), scale)
    found = follow(model, x, times, DDIM(), noise=lambda index, x: torch.zeros_like(x))
    guided = free.x0 + scale * (given.x0 - free.x0)
    torch.testing.assert_close(found, 0.65 * guided + 0.35 * free.eps)
    if scale:
        assert (FLOW.add_noise(*model(x, times[0])[:2], times[0]) - x).abs().max() > 1e-3
