"""Likelihood: mixtures whose density is known, the terms of the bound in closed form, and learned variances."""

import math
import statistics
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from tests.diffusion.test_solvers import MIXTURE
from unfog.diffusion import integration
from unfog.diffusion.denoiser import Denoiser
from unfog.diffusion.guidance import ClassifierGuided
from unfog.diffusion.integration import integrate
from unfog.diffusion.likelihood import _surprise, bits_per_dim, bound_term, log_likelihood, variational_bound
from unfog.diffusion.objectives import denoising_loss
from unfog.diffusion.oracle import Mixture, MixtureDenoiser
from unfog.diffusion.schedules import EDM, LinearContinuous, RectifiedFlow, Schedule, expand
from unfog.diffusion.solvers import Variance, step_log_variance
from unfog.diffusion.tables import Linear
from unfog.diffusion.targets import X0, EDMTarget, Eps, Prediction, V
from unfog.diffusion.times import Uniform
from unfog.diffusion.weightings import Unit
from unfog.networks.conditioning import Cond
from unfog.proofs.orders import mixture
from unfog.runtime.errors import UserError

SCHEDULES: dict[str, Schedule] = {
    "linear": LinearContinuous(),
    "flow": RectifiedFlow(),
    "edm": EDM(),
    "table": Linear(),
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """On tensors so small more threads only wait for each other, on a busy machine for minutes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _eight() -> Mixture:
    """Three components in eight dimensions."""
    generator = _generator(1)
    means = torch.randn(3, 8, dtype=torch.float64, generator=generator) * 0.6
    variances = 0.05 + 0.4 * torch.rand(3, 8, dtype=torch.float64, generator=generator)
    return Mixture(torch.tensor([0.2, 0.5, 0.3]).double(), means, variances)


MIXTURES = {"2-D": MIXTURE, "8-D": _eight()}


def _probes(batch: int, dim: int) -> Tensor:
    """Random signs for each sample, times the rows of a Hadamard matrix: probe·probe' averages to the unit matrix."""
    rows = torch.ones(1, 1, dtype=torch.float64)
    while len(rows) < dim:
        rows = torch.cat([torch.cat([rows, rows], 1), torch.cat([rows, -rows], 1)])
    signs = torch.randint(0, 2, (batch, dim), generator=_generator(7)).double() * 2 - 1
    return rows[:, None] * signs


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("mixture", MIXTURES.values(), ids=MIXTURES)
def test_log_likelihood_of_a_mixture(name: str, mixture: Mixture) -> None:
    """Within 0.01 bits per dimension of each sample; with as many orthogonal sign probes as axes, the same."""
    x0 = mixture.sample(6, _generator())
    denoise = MixtureDenoiser(mixture, SCHEDULES[name])
    exact = log_likelihood(denoise, x0)
    wrong = bits_per_dim(exact, x0) - bits_per_dim(mixture.log_prob(x0), x0)
    assert wrong.abs().max() < 0.01
    estimated = log_likelihood(denoise, x0, probes=_probes(*x0.shape))
    torch.testing.assert_close(estimated, exact, rtol=0, atol=1e-3)


def test_log_likelihood_to_four_digits_on_the_flow() -> None:
    """Flow ends at pure noise and so has no error of the prior: what is left is that of the first trained time.

    There alpha is 1 - 9.1e-4, whose logarithm is 1.3e-3 bits for each axis, and sigma² is 8e-7.
    """
    x0 = MIXTURES["8-D"].sample(6, _generator())
    found = log_likelihood(MixtureDenoiser(MIXTURES["8-D"], RectifiedFlow()), x0, rtol=1e-7, atol=1e-7)
    wrong = bits_per_dim(found, x0) - bits_per_dim(MIXTURES["8-D"].log_prob(x0), x0)
    assert wrong.abs().max() < 2e-4


def test_one_random_probe_is_right_on_average() -> None:
    """Hutchinson's estimate with one probe of each sample: no bias at five standard errors, and no constant either."""
    generator = _generator(3)
    x0 = MIXTURE.sample(400, generator)
    probes = torch.randint(0, 2, (1, 400, 2), generator=generator).double() * 2 - 1
    wrong = log_likelihood(MixtureDenoiser(MIXTURE, RectifiedFlow()), x0, probes=probes) - MIXTURE.log_prob(x0)
    assert wrong.std() > 0.02
    assert abs(float(wrong.mean())) < 5 * float(wrong.std()) / 400**0.5


def test_log_likelihood_of_a_sample_is_its_own() -> None:
    """A neighbour far away, which needs other steps, changes nothing; nor does the mode in which torch runs."""
    denoise = MixtureDenoiser(MIXTURE, LinearContinuous())
    x0 = torch.cat([MIXTURE.sample(3, _generator()), torch.tensor([[6.0, -9.0]]).double()])
    together = log_likelihood(denoise, x0)
    for row in range(4):
        torch.testing.assert_close(together[row], log_likelihood(denoise, x0[row : row + 1])[0], rtol=1e-12, atol=1e-12)
    with torch.inference_mode():
        inside = log_likelihood(denoise, x0 * 1.0)
    torch.testing.assert_close(inside, together, rtol=1e-12, atol=1e-12)


def test_log_likelihood_keeps_the_shape_of_pictures() -> None:
    """Data of any rank, as long as the model answers in its shape."""

    class Picture:
        schedule: Schedule = RectifiedFlow()

        def __call__(self, x: Tensor, t: Tensor) -> Prediction:
            inner = MixtureDenoiser(MIXTURES["8-D"], self.schedule)(x.flatten(1), t)
            return Prediction(inner.x0.reshape(x.shape), inner.eps.reshape(x.shape))

    x0 = MIXTURES["8-D"].sample(3, _generator())
    flat = log_likelihood(MixtureDenoiser(MIXTURES["8-D"], RectifiedFlow()), x0)
    torch.testing.assert_close(log_likelihood(Picture(), x0.reshape(3, 2, 2, 2)), flat, rtol=1e-9, atol=1e-9)


def test_bits_per_dim() -> None:
    """A uniform density on [-1, 1]⁴ is 1 bit per axis; in 256 bins of width 2/256 a value costs 8 bits."""
    x0 = torch.zeros(3, 2, 2)
    uniform = torch.full((3,), -4 * math.log(2))
    torch.testing.assert_close(bits_per_dim(uniform, x0), torch.ones(3))
    torch.testing.assert_close(bits_per_dim(uniform, x0, bin_width=2 / 256), torch.full((3,), 8.0))


@pytest.mark.parametrize(("t", "s"), [(0.0, 2.0), (2.0, 0.0), (-1.0, 1.5)])
def test_integrate_known_equations(t: float, s: float) -> None:
    """dx/dt = -k·x + cos t, whose solution is written down, with a rate of its own for each sample."""
    k = torch.tensor([[0.2], [1.0], [3.0]]).double()

    def solution(x: Tensor, t: float, s: float) -> Tensor:
        def forced(u: float) -> Tensor:
            return (k * math.cos(u) + math.sin(u)) / (k**2 + 1)

        return (x - forced(t)) * torch.exp(-k * (s - t)) + forced(s)

    x = torch.tensor([[1.0, -2.0], [0.5, 3.0], [-0.7, 0.1]]).double()
    found = integrate(lambda x, u: -k * x + torch.cos(u)[:, None], x, t, s, 1e-9, 1e-9)
    torch.testing.assert_close(found, solution(x, t, s), rtol=1e-6, atol=1e-7)
    rough = integrate(lambda x, u: -k * x + torch.cos(u)[:, None], x, t, s, 1e-3, 1e-3)
    assert (rough - solution(x, t, s)).abs().max() > (found - solution(x, t, s)).abs().max()
    assert torch.equal(integrate(lambda x, u: x, x, t, t, 1e-9, 1e-9), x)


def test_integrate_is_of_fifth_order() -> None:
    """Over the same steps as the tolerance of a fourth-order error falls by 10⁵, the result's falls by more."""
    counts, errors = [], []
    for tolerance in (1e-4, 1e-9):
        calls = []

        def velocity(x: Tensor, t: Tensor, calls: list[int] = calls) -> Tensor:
            calls.append(1)
            return x * torch.cos(t)[:, None]

        found = integrate(velocity, torch.ones(1, 1).double(), 0.0, 6.0, tolerance, tolerance)
        errors.append(abs(float(found) - math.exp(math.sin(6.0))))
        counts.append(len(calls))
    assert errors[1] < 1e-7
    assert math.log(errors[0] / errors[1]) / math.log(counts[1] / counts[0]) > 4.5


def test_integrate_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A solution that leaves for infinity at t = 1 is refused, instead of a loop without end."""
    monkeypatch.setattr(integration, "MOST_STEPS", 200)
    with pytest.raises(UserError, match="200 steps did not reach rtol 1e-06"):
        integrate(lambda x, t: x**2, torch.ones(1, 1).double(), 0.0, 2.0, 1e-6, 1e-6)


GAUSSIAN = 0.3
"""The variance of the data of the bound's tests."""


def _gaussian(dim: int = 1) -> Mixture:
    variances = torch.full((1, dim), GAUSSIAN, dtype=torch.float64)
    return Mixture(torch.ones(1).double(), torch.zeros(1, dim).double(), variances)


def _known(schedule: Schedule, t: float, s: float) -> dict[str, float]:
    """What the closed forms of one step of Gaussian data are made of."""
    alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
    alpha_s, sigma_s = float(schedule.alpha(s)), float(schedule.sigma(s))
    large = sigma**2 - (alpha / alpha_s) ** 2 * sigma_s**2
    spread = GAUSSIAN * sigma**2 / (alpha**2 * GAUSSIAN + sigma**2)  # the variance of x0 given x_t
    return {
        "large": large,
        "small": large * sigma_s**2 / sigma**2,
        "offset": (alpha_s * large / sigma**2) ** 2 * spread,  # mean square of the two means' difference
        "spread": spread,
    }


@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize("schedule", [Linear(10, 0.02, 0.6), RectifiedFlow()], ids=["table", "flow"])
def test_bound_terms_of_gaussian_data(schedule: Schedule, variance: Variance) -> None:
    """Every expected term, the prior and the last step, at five standard errors of 40,000 values."""
    generator = _generator(4)
    x0 = _gaussian().sample(40_000, generator)
    times = torch.linspace(1, 0, 11, dtype=torch.float64)
    if isinstance(schedule, RectifiedFlow):
        times[0] = 0.97
    found = variational_bound(
        MixtureDenoiser(_gaussian(), schedule),
        x0,
        times,
        noise=lambda index, x: torch.randn(x.shape, dtype=torch.float64, generator=generator),
        variance=variance,
    )
    expected = []
    for index in range(9):
        step = _known(schedule, float(times[index]), float(times[index + 1]))
        ratio = step["small"] / step[variance]
        expected.append(0.5 * (ratio - math.log(ratio) - 1 + step["offset"] / step[variance]))
    last, before = (_known(schedule, float(times[i]), float(times[i + 1])) for i in (9, 8))
    width = last["large"] if variance == "large" else _stand_in(schedule, times)
    decoder = 0.5 * (last["spread"] / width + math.log(2 * math.pi * width))
    alpha, sigma, end = (float(v) for v in (schedule.alpha(times[0]), schedule.sigma(times[0]), schedule.sigma(1.0)))
    prior = 0.5 * ((sigma / end) ** 2 - math.log((sigma / end) ** 2) - 1 + alpha**2 * GAUSSIAN / end**2)
    assert before["small"] > 0
    assert found.terms.shape == (9, 40_000)
    for values, right in zip([*found.terms, found.decoder, found.prior], [*expected, decoder, prior], strict=True):
        assert abs(float(values.mean()) - right / math.log(2)) < 5 * float(values.std()) / 200 + 1e-12
    torch.testing.assert_close(found.total, found.prior + found.terms.sum(0) + found.decoder)


def _stand_in(schedule: Schedule, times: Tensor) -> float:
    """beta-tilde of the step that leads from 2t to t, for the last one's, which is 0."""
    return _known(schedule, float(2 * times[-2]), float(times[-2]))["small"]


def test_bound_is_above_the_truth_and_close() -> None:
    """A thousand ancestral steps of DDPM with the large variance, on an exact model of Gaussian data.

    The closed forms of all terms add up to the entropy and a little more: no estimate is in this part. The bound
    itself is compared with them at five standard errors; the truth is subtracted sample by sample, so that the
    data's own spread does not show.
    """
    generator, table = _generator(5), Linear()
    expected = [_known(table, i / 1000, (i - 1) / 1000) for i in range(1, 1001)]
    nats = 0.5 * (float(table.alpha(1.0)) / float(table.sigma(1.0))) ** 2 * GAUSSIAN
    for step in expected[1:]:
        ratio = step["small"] / step["large"]
        nats += 0.5 * (ratio - math.log(ratio) - 1 + step["offset"] / step["large"])
    nats += 0.5 * (expected[0]["spread"] / expected[0]["large"] + math.log(2 * math.pi * expected[0]["large"]))
    above = (nats - 0.5 * (math.log(2 * math.pi * GAUSSIAN) + 1)) / math.log(2)
    assert 0 < above < 0.03
    x0 = _gaussian(8).sample(1000, generator)
    found = variational_bound(
        MixtureDenoiser(_gaussian(8), table),
        x0,
        torch.arange(1000, -1, -1).double() / 1000,
        noise=lambda index, x: torch.randn(x.shape, dtype=torch.float64, generator=generator),
        variance="large",
    )
    gap = found.total - bits_per_dim(_gaussian(8).log_prob(x0), x0)
    error = float(gap.std()) / 1000**0.5
    assert error < 0.02
    assert abs(float(gap.mean()) - above) < 5 * error


@pytest.mark.parametrize("width", [0.01, 0.5])
def test_discretised_decoder_sums_to_one(width: float) -> None:
    """The masses of all bins, however narrow or wide beside the deviation; and a narrow bin is density times width."""
    table = Linear(10, 0.01, 0.3)
    t, s = torch.tensor(0.1).double(), torch.tensor(0.0).double()
    bins = torch.arange(-3, 3, width, dtype=torch.float64)[:, None]
    x_t, guess = torch.full_like(bins, 0.2), torch.full_like(bins, 0.137)

    def term(bin_width: float | None) -> Tensor:
        return bound_term(table, Prediction(guess, guess), bins, x_t, t, s, variance="large", bin_width=bin_width)

    assert float((2 ** -term(width)).sum()) == pytest.approx(1, abs=1e-9)
    assert term(width).isfinite().all()  # up to thirty deviations away, where the mass is far below 1e-300
    if width == 0.01:
        near = (bins - 0.137).abs()[:, 0] < 0.2
        torch.testing.assert_close(term(width)[near], term(None)[near] - math.log2(width), rtol=0, atol=0.02)


@pytest.mark.parametrize("mean", [-1.4, -1.0, -0.3, 0.8, 1.0])
@pytest.mark.parametrize("deviation", [1e-3, 0.02, 0.7])
def test_the_256_values_of_a_pixel_sum_to_one(mean: float, deviation: float) -> None:
    """The bins of black and white reach to infinity (Ho et al. 2020, eq. 13)."""
    values = (torch.arange(256, dtype=torch.float64) * 2 / 255 - 1)[:, None]
    width, spread = 2 / 255, torch.full_like(values, 2 * math.log(deviation))
    nats = _surprise(values, torch.full_like(values, mean), spread, width, (-1.0, 1.0))
    assert nats.isfinite().all()
    assert float(torch.exp(-nats).sum()) == pytest.approx(1, abs=1e-12)


def test_a_black_pixel_that_is_known_costs_half_a_normal() -> None:
    """With the mean at black, all mass below half a width is its own: Phi(w / 2 sigma)."""
    black, known = torch.tensor([[[-1.0]], [[2 * math.log(0.01)]]], dtype=torch.float64)
    nats = float(_surprise(black, black, known, 2 / 255, (-1.0, 1.0)))
    assert nats == pytest.approx(-math.log(statistics.NormalDist().cdf(1 / 255 / 0.01)), rel=1e-12)
    assert nats < float(_surprise(black, black, known, 2 / 255, None)) - 0.7


def test_bound_with_bins_costs_what_the_density_does() -> None:
    """With a narrow bin the decoder is its density's, less log2 of the width; the rest does not change."""
    generator, table = _generator(6), Linear(10, 0.02, 0.6)
    x0 = _gaussian(2).sample(5, generator)
    z = torch.randn(10, 5, 2, dtype=torch.float64, generator=generator)
    times = torch.arange(10, -1, -1).double() / 10
    bare, binned = (
        variational_bound(MixtureDenoiser(_gaussian(2), table), x0, times, noise=lambda i, x: z[i], bin_width=width)
        for width in (None, 1e-4)
    )
    torch.testing.assert_close(binned.decoder, bare.decoder - math.log2(1e-4), rtol=0, atol=1e-6)
    assert torch.equal(bare.terms, binned.terms)
    assert torch.equal(bare.prior, binned.prior)


class Fixed(nn.Module):
    """A network whose whole output is its parameter."""

    channels_last = False
    embedding_dim = 4
    multiple = 1

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.answer = nn.Parameter(answer)

    def forward(self, x: Tensor, time: Tensor, cond: Cond | None = None) -> Tensor:
        return self.answer


@pytest.mark.parametrize("shape", [(4, 3, 5, 5), (4, 2)])
def test_learned_variance_splits_the_channels(shape: tuple[int, ...]) -> None:
    """The first half is the output, the second v, with (v + 1)/2 the fraction."""
    batch, channels, *rest = shape
    answer, x, t = torch.randn(batch, 2 * channels, *rest), torch.randn(shape), torch.tensor(0.4).double()
    found = Denoiser(Fixed(answer), Linear(), V(), learned_variance=True)(x, t)
    plain = Denoiser(Fixed(answer[:, :channels]), Linear(), V())(x, t)
    assert torch.equal(found.x0, plain.x0)
    assert torch.equal(found.eps, plain.eps)
    assert plain.variance_fraction is None
    assert found.variance_fraction is not None
    torch.testing.assert_close(found.variance_fraction, (answer[:, channels:] + 1) / 2)


@pytest.mark.parametrize(("given", "learned", "wanted"), [(3, True, 6), (6, False, 3), (5, True, 6)])
def test_networks_of_another_width_are_refused(given: int, learned: bool, wanted: int) -> None:
    denoiser = Denoiser(Fixed(torch.zeros(2, given, 4, 4)), Linear(), Eps(), learned_variance=learned)
    kind = "with" if learned else "without"
    with pytest.raises(
        UserError, match=f"returns {given} channels, .* state of 3 {kind} a learned variance needs {wanted}"
    ):
        denoiser(torch.zeros(2, 3, 4, 4), torch.tensor(0.5))


def test_fraction_runs_from_the_small_to_the_large_variance() -> None:
    """Log beta-tilde at 0, log beta at 1, and the geometric mean between, by DDPM's own loop."""
    betas = [1e-4 + (0.02 - 1e-4) * i / 999 for i in range(1000)]
    bars = [1.0]
    for beta in betas:
        bars.append(bars[-1] * (1 - beta))
    index = [1, 40, 999]
    t = (torch.tensor(index).double() + 1) / 1000
    x = torch.zeros(3, 2).double()
    large = torch.tensor([math.log(betas[i]) for i in index], dtype=torch.float64)[:, None].expand(3, 2)
    tilde = [math.log(betas[i] * (1 - bars[i]) / (1 - bars[i + 1])) for i in index]
    small = torch.tensor(tilde, dtype=torch.float64)[:, None].expand(3, 2)
    for fraction, expected in ((0.0, small), (1.0, large), (0.5, (small + large) / 2)):
        prediction = Prediction(x, x, torch.full_like(x, fraction))
        found = step_log_variance(Linear(), prediction, x, t, t - 1 / 1000, "learned")
        torch.testing.assert_close(found.expand(3, 2), expected, rtol=0, atol=1e-9)
    for variance, expected in (("small", small), ("large", large)):
        found = step_log_variance(Linear(), Prediction(x, x), x, t, t - 1 / 1000, variance)
        torch.testing.assert_close(found.expand(3, 2), expected, rtol=0, atol=1e-9)
    with pytest.raises(UserError, match="no learned variance"):
        step_log_variance(Linear(), Prediction(x, x), x, t, t - 1 / 1000, "learned")


@pytest.mark.parametrize("bin_width", [None, 2 / 255])
@pytest.mark.parametrize("schedule", [Linear(), RectifiedFlow(), EDM()], ids=["table", "flow", "edm"])
def test_the_bound_teaches_the_variance_alone(schedule: Schedule, bin_width: float | None) -> None:
    """Its gradient is exactly 0 in the mean half, and finite and not 0 in the other, from the first step on."""
    generator = _generator(8)
    x0, noise = (torch.randn(5, 2, 3, 3, generator=generator).clamp(-1, 1) for _ in range(2))
    u = torch.tensor([0.0, 0.0015, 0.1, 0.5, 0.99]).double()
    answer = torch.randn(5, 4, 3, 3, generator=generator) / 3
    target = EDMTarget() if isinstance(schedule, EDM) else V()

    def gradient(bound: float) -> tuple[Tensor, Tensor, Tensor]:
        network = Fixed(answer.clone())
        denoiser = Denoiser(network, schedule, target, learned_variance=True)
        loss = denoising_loss(
            denoiser, x0, times=Uniform(), weighting=Unit(), u=u, noise=noise, bound=bound, bin_width=bin_width
        )
        (found,) = torch.autograd.grad(loss.sum(), network.answer)
        return loss, found[:, :2], found[:, 2:]

    (plain, mean, silent), (loss, mean_too, variance) = gradient(0.0), gradient(1e-3)
    assert loss.isfinite().all()
    assert variance.isfinite().all()
    assert torch.equal(mean_too, mean)
    assert (mean != 0).all()
    assert (silent == 0).all()
    assert (variance.flatten(1).abs().sum(1) > 0).all()
    assert loss.shape == (5,)
    assert not torch.equal(loss, plain)


def test_hybrid_loss_adds_the_bound_in_bits() -> None:
    """Simple + bound·T·term, with the term of the same draw computed beside it, on a table's own steps."""
    generator, table = _generator(9), Linear(20, 0.01, 0.4)
    x0, noise = torch.randn(6, 2, generator=generator), torch.randn(6, 2, generator=generator)
    u = torch.tensor([0.01, 0.07, 0.33, 0.52, 0.83, 0.99]).double()
    denoiser = Denoiser(Fixed(torch.randn(6, 4, generator=generator) / 3), table, Eps(), learned_variance=True)
    simple, hybrid = (
        denoising_loss(denoiser, x0, times=Uniform(), weighting=Unit(), u=u, noise=noise, bound=bound)
        for bound in (0.0, 0.25)
    )
    t = ((u * 20).floor() + 1) / 20
    x_t = table.add_noise(x0, noise, t)
    term = bound_term(table, denoiser(x_t, t), x0, x_t, t, ((u * 20).floor()) / 20)
    torch.testing.assert_close(hybrid - simple, (0.25 * 20 * term).float(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("index", [2, 9])
def test_the_learned_variance_is_that_of_the_true_step(index: int) -> None:
    """With the exact mean the fraction moves to the variance of q(x_s | x_t): beta-tilde + offset on Gaussian data."""
    table = Linear(20, 0.02, 0.5)
    t, s = (index + 1) / 20, index / 20
    step = _known(table, t, s)
    best = math.log((step["small"] + step["offset"]) / step["small"]) / math.log(step["large"] / step["small"])
    generator = _generator(10)
    x0, noise = _gaussian().sample(3000, generator), torch.randn(3000, 1, dtype=torch.float64, generator=generator)
    exact = MixtureDenoiser(_gaussian(), table)(table.add_noise(x0, noise, t), torch.tensor(t)).x0
    network = _Learning(exact)
    denoiser = Denoiser(network, table, X0(), learned_variance=True)
    optimizer = torch.optim.Adam([network.v], lr=0.05)
    u = torch.full((3000,), (index + 0.5) / 20, dtype=torch.float64)
    start = (float(network.v.detach()) + 1) / 2
    for _ in range(120):
        optimizer.zero_grad()
        denoising_loss(denoiser, x0, times=Uniform(), weighting=Unit(), u=u, noise=noise, bound=1.0).mean().backward()
        optimizer.step()
    found = (float(network.v.detach()) + 1) / 2
    assert abs(start - best) > 0.1
    assert found == pytest.approx(best, abs=0.04)


class _Learning(nn.Module):
    """A fixed answer beside one number that is learned."""

    channels_last = False
    embedding_dim = 4
    multiple = 1

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.answer, self.v = answer, nn.Parameter(torch.tensor(-2.0))

    def forward(self, x: Tensor, time: Tensor, cond: Cond | None = None) -> Tensor:
        return torch.cat([self.answer, self.v.double().expand(len(x), 1)], 1)


def test_guidance_takes_part_in_the_divergence() -> None:
    """Guided by the exact classifier, the likelihood is that of the class."""
    flow = RectifiedFlow()
    both = mixture(2, 2)
    chosen = torch.tensor([0, 2])
    weights = both.weights[chosen]
    part = Mixture(weights / weights.sum(), both.means[chosen], both.variances[chosen])

    def classifier(x: Tensor, t: Tensor) -> Tensor:
        def log_prob(model: Mixture) -> Tensor:
            alpha, sigma = (expand(value, x[:, None]) for value in (flow.alpha(t), flow.sigma(t)))
            return model.noised(alpha, sigma).log_joint(x).logsumexp(1)

        return log_prob(part) - log_prob(both)

    x = part.sample(8, torch.Generator().manual_seed(0)).requires_grad_()
    found = log_likelihood(ClassifierGuided(MixtureDenoiser(both, flow), classifier), x)
    assert not found.requires_grad
    torch.testing.assert_close(found, part.log_prob(x.detach()), rtol=0, atol=0.01)


@pytest.mark.parametrize("times", [[1.0, 0.75, 0.5], [0.0, 1.0], [2.0, 0.0], [1.0, 0.5, 0.5, 0.0], [1.0]])
def test_a_bound_needs_the_whole_clock(times: list[float]) -> None:
    denoise = MixtureDenoiser(mixture(2, 2), RectifiedFlow())
    with pytest.raises(ValueError, match="times that fall to 0"):
        variational_bound(
            denoise, torch.zeros(2, 2).double(), torch.tensor(times), noise=lambda _, x: torch.zeros_like(x)
        )


def test_data_that_are_not_finite_are_refused() -> None:
    denoise = MixtureDenoiser(mixture(2, 2), RectifiedFlow())
    with pytest.raises(ValueError, match="not finite"):
        log_likelihood(denoise, torch.tensor([[0.0, 1.0], [math.nan, 0.0]]).double())
