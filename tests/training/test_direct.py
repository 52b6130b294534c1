"""Objectives whose models draw pictures in one call: GANs, VAEs and autoregressive networks."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor

import unfog
from unfog.cli.main import main
from unfog.data.classic import binarised
from unfog.data.codecs import Pixels
from unfog.data.source import Data, InMemory
from unfog.generation.direct import Direct
from unfog.networks.conditioning import Cond
from unfog.networks.direct import DirectModel
from unfog.networks.gan import PictureCritic, halvings
from unfog.networks.gated import GatedPixelCNN
from unfog.networks.ladder import Ladder, gaussian_divergence
from unfog.networks.pixels import DISTRIBUTIONS, Bernoulli, Logistics, PixelDistribution
from unfog.recipes.objective import Context, Draw
from unfog.recipes.presets import recipe
from unfog.recipes.recipe import Recipe
from unfog.runs.run import Run, fit, load
from unfog.runtime.errors import UserError
from unfog.training.objectives.adversarial import Adversarial, Rule, steepness
from unfog.training.objectives.direct import direct_model, noises_of
from unfog.training.objectives.variational import Variational

QUIET = Console(quiet=True)
FAMILIES = ("adversarial", "variational", "autoregressive")
SMALL = {
    "adversarial": ("network.width=8", "network.critic=8"),
    "variational": ("network.width=8",),
    "autoregressive": ("network.width=8", "network.depth=2"),
}
VALUES = torch.arange(256) / 127.5 - 1


def small(family: str, *settings: str) -> Recipe:
    return recipe("digits").set(
        f"objective={family}", *SMALL[family], "training.images=1280", "training.reports=1", *settings
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    folder = tmp_path_factory.mktemp("families")
    for family in FAMILIES:
        fit(small(family), folder / family, console=QUIET, device="cpu")
    return {family: load(folder / family) for family in FAMILIES}


def other_logistic(x: Tensor, mean: float, scale: float) -> Tensor:
    """Return log p of the bins, by torch's own logistic function in float64."""

    def below(edge: Tensor) -> Tensor:
        return torch.special.expit((edge.double() - mean) / scale)

    low, high = below(x - 1 / 255), below(x + 1 / 255)
    low, high = torch.where(x <= -1, 0.0, low), torch.where(x >= 1, 1.0, high)
    return (high - low).log()


def test_a_mixture_of_logistics_is_the_sum_of_its_bins() -> None:
    """Two components with means that are not zero, against a formula of its own."""
    share, means, scales = torch.tensor([0.3, 0.7]), (-0.4, 0.55), (0.1, 0.03)
    given = torch.cat([share.log(), torch.tensor(means), torch.tensor(scales).log()])[None, :, None]
    found = Logistics(2).log_prob(given, VALUES[None, None])[0]
    parts = [
        one.log() + other_logistic(VALUES, *both)
        for one, both in zip(share, zip(means, scales, strict=True), strict=True)
    ]
    torch.testing.assert_close(found.double(), torch.stack(parts).logsumexp(0), atol=2e-3, rtol=2e-3)
    assert float(found.exp().sum()) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("channels", [1, 3])
def test_distributions_of_a_pixel_sum_to_one(channels: int) -> None:
    """Over all colours of five values a channel, of a mixture whose bins are as coarse, and of black and white."""
    torch.manual_seed(0)
    bernoulli = Bernoulli()
    given = torch.randn(1, bernoulli.parameters(channels), 1)
    both = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * channels).reshape(-1, channels, 1)
    assert float(bernoulli.log_prob(given.expand(len(both), -1, 1), both).exp().sum()) == pytest.approx(1)
    if channels == 1:
        logistics = Logistics(3)
        given = torch.randn(1, logistics.parameters(1), 1).expand(256, -1, 1)
        assert float(logistics.log_prob(given, VALUES[:, None, None]).exp().sum()) == pytest.approx(1, abs=1e-4)


def test_channels_depend_on_the_ones_before() -> None:
    """The mean of the second is mu + c·x1 where x1 is drawn; its neighbours do not matter."""
    logistics = Logistics(1)
    given = torch.zeros(1, logistics.parameters(3), 1)
    given[:, 1:4, 0] = torch.tensor([0.2, 0.1, -0.3])
    given[:, 4:7] = -6.0
    given[:, 7:10, 0] = torch.tensor([0.5, -0.4, 0.8])
    c = given[0, 7:10, 0].tanh()
    first = round((0.2 + 1) * 127.5) / 127.5 - 1
    second = 0.1 + c[0] * first
    third = -0.3 + c[1] * first + c[2] * second
    shown = logistics.shown(given, torch.full((1, 4, 1), 0.5))[0, :, 0]
    torch.testing.assert_close(shown, torch.tensor([first, second, third]), atol=0.01, rtol=0)
    drawn = logistics.draw(
        given.expand(4000, -1, 1), torch.rand(4000, 4, 1, generator=torch.Generator().manual_seed(0))
    )
    torch.testing.assert_close(drawn.mean(0)[:, 0], shown, atol=0.01, rtol=0)
    assert float(logistics.log_prob(given, shown[None, :, None])) > float(
        logistics.log_prob(given, (shown + torch.tensor([0.0, 0.05, 0.0]))[None, :, None])
    )


def test_draws_have_the_probabilities() -> None:
    given = torch.tensor([0.4, -1.3])[None, :, None].expand(20_000, -1, 1)
    u = torch.rand(20_000, 2, 1, generator=torch.Generator().manual_seed(1))
    white = (Bernoulli().draw(given, u) > 0).double().mean(0)[:, 0]
    torch.testing.assert_close(white, given[0, :, 0].double().sigmoid(), atol=0.015, rtol=0)
    logistics = Logistics(2)
    given = torch.tensor([0.5, -0.5, -0.4, 0.55, math.log(0.1), math.log(0.03)])[None, :, None]
    u = torch.rand(40_000, 2, 1, generator=torch.Generator().manual_seed(2))
    drawn = logistics.draw(given.expand(40_000, -1, 1), u).flatten()
    expected = logistics.log_prob(given.expand(256, -1, 1), VALUES[:, None, None])[:, 0].exp()
    places = ((drawn + 1) * 127.5).round().long()
    found = torch.bincount(places, minlength=256) / 40_000
    assert float((found.cumsum(0) - expected.cumsum(0)).abs().max()) < 0.012  # Kolmogorov-Smirnov at 1 in 100,000


@pytest.mark.parametrize(("pixels", "channels"), [(Bernoulli(), 1), (Bernoulli(), 3), (Logistics(2), 3)])
def test_a_pixel_is_given_those_before_it_and_no_other(pixels: PixelDistribution, channels: int) -> None:
    """Also the pictures drawn with kept features are those drawn by the whole network, pixel by pixel."""
    torch.manual_seed(0)
    network = GatedPixelCNN((channels, 5, 6), pixels, width=8, depth=3)
    torch.nn.init.normal_(network.last.weight, std=0.5)
    x = torch.rand(1, channels, 5, 6, requires_grad=True)
    for row, column in ((0, 0), (2, 3), (4, 5)):
        (gradient,) = torch.autograd.grad(network(x)[0, :, row, column].sum(), x, retain_graph=True, allow_unused=True)
        seen = gradient.abs().sum((0, 1)).flatten() > 0
        assert not seen[row * 6 + column :].any()
        assert bool(seen[max(0, row * 6 + column - 1)]) == (row + column > 0)
    u = torch.rand(3, *network.uniforms or (), dtype=torch.float64)
    with torch.no_grad():
        drawn, slow = network.draw(u), torch.zeros(3, channels, 5, 6)
        for row in range(5):
            for column in range(6):
                place = (slice(None), slice(None), slice(row, row + 1), slice(column, column + 1))
                slow[place] = pixels.draw(network(slow)[place], u[place])
    assert torch.equal(drawn, slow)


def test_the_probabilities_of_a_pixelcnn_sum_to_one() -> None:
    """Over all 64 black and white pictures of 2 by 3 pixels."""
    torch.manual_seed(0)
    network = GatedPixelCNN((1, 2, 3), Bernoulli(), width=8, depth=2)
    torch.nn.init.normal_(network.last.weight, std=0.5)
    every = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 6).reshape(-1, 1, 2, 3)
    with torch.no_grad():
        assert float(network.log_prob(every, []).exp().sum()) == pytest.approx(1, abs=1e-5)


def test_the_divergence_is_that_of_torch() -> None:
    torch.manual_seed(0)
    further, wider, spread, mean = torch.randn(4, 5)
    p = torch.distributions.Normal(mean, spread.exp())
    q = torch.distributions.Normal(mean + further, (spread + wider).exp())
    torch.testing.assert_close(gaussian_divergence(further, wider, spread), torch.distributions.kl_divergence(q, p))


def test_the_bound_lies_below_the_likelihood() -> None:
    """Of pictures of 4 by 4 pixels: log p by importance sampling with the prior's own draws, in many draws."""
    torch.manual_seed(0)
    network = Ladder((1, 4, 4), Bernoulli(), width=8, latent=2)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    x = torch.where(torch.rand(1, 1, 4, 4) < 0.5, -1.0, 1.0).expand(20_000, -1, -1, -1)
    with torch.no_grad():
        noise = [torch.randn(20_000, *shape) for shape in network.noises]
        bound = network.bound(x, noise)
        prior = network(noise)
        likelihood = network.pixels.log_prob(prior.given, x).flatten(1).sum(1).logsumexp(0) - math.log(20_000)
    error = float(bound.std()) / 20_000**0.5
    assert float(bound.mean()) < float(likelihood) + 4 * error
    assert float(bound.mean()) > float(likelihood) - 5
    assert float(prior.divergence.abs().max()) == 0


def test_steepness_is_the_squared_gradient() -> None:
    torch.manual_seed(0)
    critic = PictureCritic((1, 8, 8), 4, None, spectral=False)
    x = torch.randn(3, 1, 8, 8)
    found = steepness(critic(shown := x.clone().requires_grad_()), shown)
    for row in range(3):
        jacobian = torch.autograd.functional.jacobian(lambda one: critic(one[None])[0], x[row])
        assert found[row].item() == pytest.approx(float(jacobian.square().sum()), rel=1e-4)
    (found.sum()).backward()
    assert critic.look.get_parameter("weight").grad is not None


@pytest.mark.parametrize("rule", get_args(Rule))
def test_the_losses_of_a_gan(rule: Rule) -> None:
    """Against formulas of their own, with the logits of a critic."""
    objective = Adversarial(rule=rule, penalty=0.0)
    real, fake = torch.tensor([0.3, -2.0]), torch.tensor([1.5, 0.4])
    critic, generator = objective._of_critic(real, fake), objective._of_generator(fake, real)
    expected = {
        "relativistic": ((1 + (fake - real).exp()).log(), (1 + (real - fake).exp()).log()),
        "hinge": ((1 - real).clamp(min=0) + (1 + fake).clamp(min=0), -fake),
        "non-saturating": (-(real.sigmoid().log() + (1 - fake.sigmoid()).log()), -fake.sigmoid().log()),
    }[rule]
    torch.testing.assert_close(critic, expected[0])
    torch.testing.assert_close(generator, expected[1])


def test_only_the_relativistic_rule_has_a_penalty_by_itself() -> None:
    assert Adversarial().weight == 1
    assert Adversarial("hinge").weight == 0
    assert Adversarial("hinge", 0.5).weight == 0.5
    with pytest.raises(UserError, match="objective.penalty must be 0 or more"):
        Adversarial(penalty=-1.0)
    with pytest.raises(UserError, match="objective.warmup must be from 0 to 1"):
        Variational(warmup=2.0)


def test_a_critic_of_the_hinge_rule_is_steep_by_one_a_layer() -> None:
    torch.manual_seed(0)
    critic = PictureCritic((1, 8, 8), 4, None, spectral=True)
    for _ in range(30):
        critic(torch.randn(2, 1, 8, 8))
    weight = critic.features.weight
    assert torch.linalg.matrix_norm(weight, 2).item() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(
    ("sides", "times"), [((28, 28), 2), ((32, 32), 3), ((8, 8), 1), ((6, 6), 0), ((27, 28), 0), ((), 0)]
)
def test_sides_are_halved_while_they_are_even(sides: tuple[int, ...], times: int) -> None:
    """Points have no sides."""
    assert halvings(sides) == times


@pytest.mark.parametrize("family", FAMILIES)
def test_an_objective_brings_its_network_wherever_it_stands(family: str) -> None:
    made = recipe("mnist").set("network.width=16", "lr=1e-4", f"objective={family}")
    assert made.kind("network") == {"adversarial": "gan", "variational": "ladder", "autoregressive": "gated"}[family]
    assert vars(made.network)["width"] == 16
    assert made.optimizer.lr == 1e-4
    assert made.sampling.guidance == 1
    assert made.conditioning.dropout == 0
    assert Recipe.from_json(made.to_json()) == made


@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_like_any_other(family: str, runs: dict[str, Run], tmp_path: Path) -> None:
    """Sample i is the same in every request; a class is what it is asked for; the sheet is there."""
    run = runs[family]
    many = run.sample(20, seed=3)
    assert many.shape == (20, 1, 8, 8)
    assert many.dtype == torch.uint8
    assert torch.equal(run.sample(5, seed=3), many[:5])
    assert torch.equal(load(run.path).sample(20, seed=3), many)
    assert not torch.equal(run.sample(20, seed=4), many)
    threes = run.sample(4, label=3, seed=3)
    assert torch.equal(threes[3], many[3])
    assert not torch.equal(threes[2], many[2])
    assert list((run.path / "samples").glob("*.png"))
    assert main(["sample", str(run.path), "-n", "3", "--out", str(tmp_path / "out")]) == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_a_stopped_training_resumes_to_the_bit(family: str, runs: dict[str, Run], tmp_path: Path) -> None:
    stops = iter([False] * 7 + [True])
    unfog.train(small(family), tmp_path / "run", stop=lambda: next(stops), device="cpu", console=QUIET)
    unfog.resume(tmp_path / "run", device="cpu", console=QUIET)
    whole, resumed = (load(path).model.state_dict() for path in (runs[family].path, tmp_path / "run"))
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_plan_promises_nothing_that_was_measured_of_denoisers(
    family: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "digits", "--set", f"objective={family}", "--budget", "30s", "--device", "cpu"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "expect" not in printed
    assert f"only denoisers can be exported to diffusers, not the objective '{family}'" in printed


@pytest.mark.parametrize(
    ("verb", "why"),
    [
        ("film RUN", "is not sampled step by step"),
        ("bench RUN", "takes no solver"),
        ("tune RUN", "denoiser"),
        ("distill RUN --out OUT", "only a denoiser can be distilled"),
        ("explain RUN --step 5", "not a denoiser"),
        ("replay RUN --step 1", "no denoiser"),
        ("export RUN OUT --to onnx", "only denoisers can be exported to ONNX"),
        ("export RUN OUT", "not a denoiser"),
        ("evaluate RUN --guidance 2", "takes no guidance"),
        ("sample RUN --steps 5", "takes no steps"),
    ],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_family_cannot_do_is_a_sentence(
    family: str, verb: str, why: str, runs: dict[str, Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = {"RUN": str(runs[family].path), "OUT": str(tmp_path / "out")}
    assert main([words.get(word, word) for word in verb.split()]) == 2
    assert why in " ".join(capsys.readouterr().err.split())


def test_likelihoods(runs: dict[str, Run], capsys: pytest.CaptureFixture[str]) -> None:
    """Exact, a bound, or none at all."""
    for family in ("variational", "autoregressive"):
        assert main(["evaluate", str(runs[family].path), "-n", "50", "--likelihood", "16"]) == 0
        found = json.loads((runs[family].path / "likelihood.json").read_text())
        way = {"variational": "bound", "autoregressive": "exact"}[family]
        assert set(found["held_out"]) == {way, f"{way}_error"}
        assert 0.5 < found["held_out"][way] < 8
    capsys.readouterr()
    assert main(["evaluate", str(runs["adversarial"].path), "-n", "50", "--likelihood", "16"]) == 2
    assert "a GAN knows no likelihood" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        (("objective=variational", "network=compact"), "objective=variational trains network=ladder, not 'compact'"),
        (("network=gan",), "network=gan is no denoiser: it goes with objective=adversarial"),
        (("objective=autoregressive", "codec=identity"), "codec"),
        (("objective=adversarial", "sampling.guidance=2"), "set sampling.guidance=1"),
        (("objective=autoregressive", "objective.pixels=bernoulli"), "black or white"),
        (("objective=variational", "conditioning=values"), "knows classes only"),
        (("objective=variational", "network.width=0"), "width must be 1 or more"),
    ],
)
def test_what_does_not_fit_is_refused(settings: tuple[str, ...], why: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=why):
        fit(recipe("digits").set(*settings, "training.images=64"), tmp_path / "run", console=QUIET)


def test_parts_of_denoisers_have_no_use(tmp_path: Path) -> None:
    made = small("variational", "schedule=cosine", "training.images=64")
    with pytest.warns(UserWarning, match="has no use for schedule=cosine"):
        fit(made, tmp_path / "run", console=QUIET)


def test_names_of_distributions_are_those_of_recipes() -> None:
    assert set(DISTRIBUTIONS) == {"logistic", "bernoulli"}


def test_a_generator_of_pictures_is_direct(runs: dict[str, Run]) -> None:
    found = runs["autoregressive"].generator()
    assert isinstance(found, Direct)
    assert isinstance(found.model, DirectModel)
    assert found.likelihood == "exact"
    assert np.isfinite(float(found.bits(found(4), torch.tensor([0, 1, 2, 3])).mean()))


def test_pixels_are_drawn_white_with_their_brightness() -> None:
    """Always the same, and training and held-out rows differ."""
    grey = InMemory(torch.tensor([0, 51, 204, 255], dtype=torch.uint8).expand(20_000, 1, 1, 4).clone())
    drawn, again = binarised(Data(grey, grey)), binarised(Data(grey, grey))
    rows = np.arange(20_000)
    x, held = drawn.train.take(rows).x, drawn.heldout.take(rows).x
    assert set(x.unique().tolist()) == {0, 255}
    white = (x == 255).double().mean(0).flatten()
    torch.testing.assert_close(white, torch.tensor([0.0, 0.2, 0.8, 1.0], dtype=torch.float64), atol=0.015, rtol=0)
    assert torch.equal(x, again.train.take(rows).x)
    assert not torch.equal(x, held)


def test_the_likelihood_of_a_colour_is_that_of_its_channels_in_turn() -> None:
    """Of one component, against a formula of its own: each channel's mean leads on from those before."""
    means, scales, c = (0.2, 0.1, -0.3), (0.1, 0.2, 0.15), torch.tensor([0.5, -0.4, 0.8]).tanh()
    given = torch.zeros(1, Logistics(1).parameters(3), 1)
    given[0, 1:, 0] = torch.tensor([*means, *map(math.log, scales), 0.5, -0.4, 0.8])
    x = torch.tensor([40, 200, 90]) / 127.5 - 1
    led = [means[0], means[1] + float(c[0] * x[0]), means[2] + float(c[1] * x[0] + c[2] * x[1])]
    expected = sum(float(other_logistic(x[place], led[place], scales[place])) for place in range(3))
    assert float(Logistics(1).log_prob(given, x[None, :, None])) == pytest.approx(expected, abs=2e-3)


def drawn(*numbers: int) -> Draw:
    """Return rows with these numbers in the training, all of class 3."""
    count = len(numbers)
    x0 = torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8).expand(count, -1, -1, -1)
    u, drop = torch.full((count,), 0.5, dtype=torch.float64), torch.zeros(count, dtype=torch.bool)
    return Draw(x0, torch.full((count,), 3), drop, u, torch.zeros_like(x0), numbers=torch.tensor(numbers))


def test_the_divergence_counts_in_full_after_the_warm_up(runs: dict[str, Run]) -> None:
    run = runs["variational"]
    context = Context(run.recipe, Pixels())
    with torch.no_grad():
        first, half, whole = (
            Variational(warmup=0.2).losses(run.model, drawn(0, 1), replace(context, progress=progress))["loss"]
            for progress in (0.0, 0.1, 0.2)
        )
        torch.testing.assert_close(half, (first + whole) / 2)
        assert (whole > first).all()
        torch.testing.assert_close(whole, Variational().measured(run.model, drawn(0, 1), context))


def test_the_penalty_is_half_the_squared_gradients_times_its_weight(runs: dict[str, Run]) -> None:
    run = runs["adversarial"]
    losses = {
        weight: Adversarial(penalty=weight).losses(run.model, drawn(0, 1), Context(run.recipe, Pixels()))["critic"]
        for weight in (0.0, 1.0, 3.0)
    }
    more = losses[1.0] - losses[0.0]
    assert (more > 0).all()
    torch.testing.assert_close(losses[3.0] - losses[0.0], 3 * more, rtol=1e-3, atol=1e-5)


def test_critic_and_generator_have_embedders_of_their_own(runs: dict[str, Run]) -> None:
    model = direct_model(runs["adversarial"].model)
    trained = {name: set(map(id, parameters)) for name, parameters in Adversarial().trained(model).items()}
    assert not trained["generator"] & trained["critic"]
    assert trained["generator"] | trained["critic"] == set(map(id, model.parameters()))
    assert isinstance(model.judging, torch.nn.Module)
    assert all(id(one) in trained["critic"] for one in model.judging.parameters())


def test_a_critic_reads_the_condition() -> None:
    torch.manual_seed(0)
    critic, x = PictureCritic((1, 8, 8), 4, 6, spectral=False), torch.randn(2, 1, 8, 8)
    logits = [critic(x, Cond(vector=torch.full((2, 6), value))) for value in (-1.0, 1.0)]
    assert not torch.allclose(*logits)
    torch.testing.assert_close((logits[0] + logits[1]) / 2, critic(x))


@pytest.mark.parametrize("family", FAMILIES)
def test_no_two_portions_are_alike(family: str, runs: dict[str, Run]) -> None:
    """Neither of samples of one class, nor of noise in the training."""
    run = runs[family]
    threes = run.sample(16, label=3, batch=8)
    assert not torch.equal(threes[:8], threes[8:])
    model, context = direct_model(run.model), Context(run.recipe, Pixels())
    first, second = (noises_of(model, drawn(*numbers), context) for numbers in ((0, 1), (64, 65)))
    assert all(not torch.equal(*pair) for pair in zip(first, second, strict=True))
    both = noises_of(model, drawn(64, 65, 66), context)
    assert all(torch.equal(one, other[:2]) for one, other in zip(second, both, strict=True))
