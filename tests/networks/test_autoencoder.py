"""Autoencoders: the network, its loss and its training, its latents as a codec, and models in them."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from tests.conftest import MakeRecipe
from unfog.cli.main import main
from unfog.data.codecs import Latents, Pixels
from unfog.data.source import Augment, Data, InMemory
from unfog.evaluation.reconstruction import psnr, reconstruction
from unfog.generation import edits
from unfog.interop.scores import scores
from unfog.networks.autoencoder import Autoencoder, Posterior, tiled
from unfog.networks.critic import Critic, Criticised, with_frozen_weights
from unfog.recipes.build import PARAMETERS, build_codec, build_data, known_of
from unfog.recipes.latents import LatentCodec
from unfog.recipes.objective import Context, Draw
from unfog.recipes.parse import options
from unfog.recipes.presets import recipe
from unfog.recipes.recipe import Recipe
from unfog.recipes.sources import Digits
from unfog.runs.average import average
from unfog.runs.data import read_data
from unfog.runs.run import fit, load, read_recipe, refit, train
from unfog.runtime.errors import Stopped, UserError
from unfog.training import latents, loop, proportion
from unfog.training import plan as planning
from unfog.training.latents import Encoded, Flip, check_time
from unfog.training.objectives.reconstruction import Reconstruction, settled_on
from unfog.training.plan import plan
from unfog.training.trainer import Trainer

QUIET = Console(quiet=True)
SMALL = ("network.widths=[8, 8]", "network.groups=4", "network.latent=2", "training.images=512", "training.batch=32")


@pytest.fixture(scope="module")
def compress(tiny: MakeRecipe) -> MakeRecipe:
    """Make a recipe of an autoencoder of digits, half their side, with further settings."""

    def make(*more: str) -> Recipe:
        kinds = ("network=autoencoder", "objective=reconstruction", "conditioning=none", "training.reports=1")
        return recipe("digits").set(*kinds, *SMALL, "optimizer.warmup=64", *more)

    return make


@pytest.fixture(scope="module")
def coder(compress: MakeRecipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a small autoencoder."""
    out = tmp_path_factory.mktemp("coder") / "run"
    fit(compress("training.images=4096"), out, device="cpu", console=QUIET)
    return out


@pytest.fixture(scope="module")
def latent_run(tiny: MakeRecipe, coder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in the latents of it."""
    out = tmp_path_factory.mktemp("latent") / "run"
    train(tiny("codec=latents", f"codec.path={coder}"), out, device="cpu", console=QUIET)
    return out


def size_of(path: Path) -> tuple[int, int]:
    """The width and the height of a picture."""
    with Image.open(path) as picture:
        return picture.size


# The network


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_latents_are_smaller_by_the_factor(dims: int) -> None:
    network = Autoencoder(3, dims=dims, latent=5, widths=[4, 8, 8], groups=4)
    x = torch.randn(2, 3, *[8] * dims)
    assert network.factor == 4
    assert network.encode(x).shape == (2, 5, *[2] * dims)
    assert network.decode(network.encode(x)).shape == x.shape


def test_the_divergence_is_that_of_the_library() -> None:
    torch.manual_seed(0)
    mean, log_variance = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4)
    known = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(torch.zeros(()), torch.ones(())))
    torch.testing.assert_close(Posterior(mean, log_variance).divergence(), known.flatten(1).sum(1))


def test_a_draw_has_the_mean_and_the_deviation_of_the_posterior() -> None:
    posterior = Posterior(torch.full((1, 1, 300, 300), 2.0), torch.full((1, 1, 300, 300), math.log(9.0)))
    drawn = posterior.draw(torch.randn(1, 1, 300, 300, generator=torch.Generator().manual_seed(0)))
    assert float(drawn.mean()) == pytest.approx(2, abs=0.05)
    assert float(drawn.std()) == pytest.approx(3, abs=0.05)


def test_measured_latents_have_mean_zero_and_variance_one() -> None:
    torch.manual_seed(0)
    network = Autoencoder(1, latent=3, widths=[8, 8], groups=4).eval()
    x = torch.rand(40, 1, 8, 8) * 2 - 1
    before = network.decode(network.encode(x))
    network.measure(iter(x.split(16)))
    z = network.encode(x).transpose(0, 1).flatten(1)
    torch.testing.assert_close(z.mean(1), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(z.std(1), torch.ones(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(network.decode(network.encode(x)), before, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"widths": []}, "levels must be 1 or more"),
        ({"latent": 0}, "latent must be 1 or more"),
        ({"widths": [8, 0]}, "width 0 must be 1 or more"),
    ],
)
def test_a_network_that_cannot_be(options: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Autoencoder(1, **options)  # type: ignore[arg-type]


# Tiles


def enlarge(z: Tensor) -> Tensor:
    """A decoder that looks at no neighbours: each place becomes four by four."""
    return z.repeat_interleave(4, -1).repeat_interleave(4, -2)


@given(height=st.integers(3, 60), width=st.integers(3, 60), tile=st.integers(5, 20), overlap=st.integers(1, 2))
@settings(max_examples=60)
def test_tiles_of_a_decoder_that_sees_no_neighbours_are_the_whole(
    height: int, width: int, tile: int, overlap: int
) -> None:
    z = torch.randn(2, 3, height, width)
    torch.testing.assert_close(tiled(enlarge, z, 4, tile, overlap), enlarge(z), atol=1e-5, rtol=1e-5)


def test_no_tile_is_larger_than_asked_and_seams_do_not_show() -> None:
    torch.manual_seed(0)
    network = Autoencoder(1, latent=2, widths=[8, 8], groups=4, attention=False).eval()
    seen = []

    def decode(z: Tensor) -> Tensor:
        seen.append(z.shape[2:])
        return network.restore(z)

    z = torch.randn(1, 2, 40, 25)
    with torch.no_grad():
        found = tiled(decode, z, 2, tile=20, overlap=8)
    assert found.shape == (1, 1, 80, 50)
    assert {max(shape) for shape in seen} == {20}
    # at a seam the picture changes no more than anywhere else
    jump = found.diff(dim=2).abs().mean((0, 1, 3))
    assert float(jump.max()) < 4 * float(jump.mean())


# The loss


def test_the_loss_is_the_distance_and_the_divergence(compress: MakeRecipe, tmp_path: Path) -> None:
    found, data = build_data(compress("objective.kl=0.25"))
    trainer = Trainer(found, data, tmp_path, torch.device("cpu"))
    draw = trainer.draws(0)
    model = trainer.model
    assert isinstance(model, Criticised)
    posterior = model.autoencoder.posterior(draw.x0)
    restored = model.autoencoder.restore(posterior.draw(draw.noise.flatten(1)[:, :32].reshape(-1, 2, 4, 4)))
    known = (restored - draw.x0).abs().mean((1, 2, 3)) + 0.25 * posterior.divergence() / 64
    torch.testing.assert_close(trainer.losses(draw)["loss"], known)


def pictures_draw(x0: Tensor) -> Draw:
    """A batch of pictures with noise."""
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    return Draw(x0, None, torch.zeros(len(x0), dtype=torch.bool), torch.zeros(len(x0)), noise)


def test_the_critic_and_the_autoencoder_learn_each_for_itself(compress: MakeRecipe) -> None:
    """The critic's gradient is that of its hinge loss alone; the autoencoder's has none of that in it."""
    found, data = build_data(compress("objective.adversarial=0.5", "objective.perceptual=0.3"))
    objective, codec = found.objective, build_codec(found)
    assert isinstance(objective, Reconstruction)
    model = objective.build(found, PARAMETERS)
    assert isinstance(model, Criticised)
    assert model.critic is not None
    x0 = Pixels().encode(data.train.take(np.arange(8)).x)
    draw = pictures_draw(x0)

    def gradients(loss: Tensor, part: torch.nn.Module) -> list[Tensor]:
        return list(torch.autograd.grad(loss.sum(), list(part.parameters()), allow_unused=True, retain_graph=True))

    restored, plain = objective._restored(model, draw)
    whole = objective.losses(model, draw, Context(found, codec, 1.0))["loss"]
    real, fake = model.critic(x0)[1], model.critic(restored.detach())[1]
    hinge = torch.relu(1 - real).mean((1, 2, 3)) + torch.relu(1 + fake).mean((1, 2, 3))
    for one, other in zip(gradients(whole, model.critic), gradients(hinge, model.critic), strict=True):
        torch.testing.assert_close(one, other)
    features, verdict = with_frozen_weights(model.critic, restored)
    apart = torch.stack(
        [(a - b.detach()).abs().mean((1, 2, 3)) for a, b in zip(features, model.critic.features(x0), strict=True)]
    )
    known = plain + 0.3 * apart.mean(0) - 0.5 * verdict.mean((1, 2, 3))
    for one, other in zip(gradients(whole, model.autoencoder), gradients(known, model.autoencoder), strict=True):
        torch.testing.assert_close(one, other)
    # and in the first half of the training its verdict does not count
    early = objective.losses(model, draw, Context(found, codec, 0.2))["loss"] + 0.5 * -verdict.mean((1, 2, 3))
    torch.testing.assert_close(early, whole)


def test_a_critic_learns_to_tell_two_kinds_of_pictures_apart() -> None:
    torch.manual_seed(0)
    critic = Critic(1, widths=[8, 16])
    optimizer = torch.optim.Adam(critic.parameters(), 3e-3)
    smooth, rough = torch.rand(64, 1, 1, 1).expand(-1, -1, 8, 8), torch.rand(64, 1, 8, 8)
    for _ in range(60):
        real, fake = critic(smooth)[1], critic(rough)[1]
        loss = torch.relu(1 - real).mean() + torch.relu(1 + fake).mean()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    assert float(loss.detach()) < 0.2


# Training one


def test_a_trained_autoencoder_gives_back_pictures_that_it_never_saw(coder: Path) -> None:
    found = reconstruction(coder, 300, device="cpu")
    quality = found.psnr
    assert quality.low is not None
    assert quality.high is not None
    assert 14 < quality.low < quality.value < quality.high < quality.floor == 100
    mean = read_data(coder, read_recipe(coder))[1].train.take(np.arange(1438)).x.double().mean(0).round()
    apart = (found.originals.double() - mean).square().flatten(1).mean(1)
    assert quality.ceiling == pytest.approx(float((10 * torch.log10(255**2 / apart)).mean()))
    assert "of the way to one mean picture" in found.table()
    assert found.numbers == 2
    assert found.pictures.shape == found.originals.shape
    assert found.fidelity.value < found.fidelity.ceiling


def test_too_few_held_out_pictures_are_a_sentence(coder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which says what helps: asking for more of them does not."""
    monkeypatch.setattr("unfog.evaluation.reconstruction.LEAST", 360)
    with pytest.raises(UserError, match="359 held-out pictures are too few: 360 of them take about 1,000 in all"):
        reconstruction(coder, 300, device="cpu")


def test_resuming_an_autoencoder_is_exact(compress: MakeRecipe, tmp_path: Path) -> None:
    chosen = compress("training.reports=2", "objective.adversarial=0.1")
    for name in ("whole", "parts"):
        fit(chosen, tmp_path / name, device="cpu", console=QUIET)
    last = sorted((tmp_path / "parts" / "checkpoints").iterdir())[-1]
    for file in last.iterdir():
        file.unlink()
    last.rmdir()
    (tmp_path / "parts" / "model.safetensors").unlink()
    refit(tmp_path / "parts", device="cpu", console=QUIET)
    assert (tmp_path / "whole" / "model.safetensors").read_bytes() == (
        tmp_path / "parts" / "model.safetensors"
    ).read_bytes()


def test_psnr_in_closed_form() -> None:
    black = torch.zeros(3, 1, 4, 4, dtype=torch.uint8)
    other = torch.stack([black[0], black[0] + 255, black[0] + 51])
    assert psnr(other, black).tolist() == pytest.approx([100, 0, 20 * math.log10(5)])


def test_the_command_line_measures_it(coder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(coder), "-n", "100", "--device", "cpu"]) == 0
    assert "dB" in capsys.readouterr().out
    written = json.loads((coder / "evaluation.json").read_text())
    assert written["evaluations"][0]["scores"]["psnr"]["value"] > 10
    assert any(line.startswith("| psnr |") for line in scores(coder))
    assert size_of(coder / "evaluation" / "pairs.png")[0] > 100


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["sample"], "holds an autoencoder, which draws nothing by itself"),
        (["evaluate", "--guidance", "2"], "is for models that draw samples, and"),
        (["evaluate", "--guidance", "2"], "holds one of the objective 'reconstruction'"),
        (["replay", "--step", "1"], "is the training of the objective 'reconstruction', whose model is no denoiser"),
    ],
)
def test_what_an_autoencoder_cannot_do(
    coder: Path, arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([arguments[0], str(coder), *arguments[1:]]) == 2
    assert sentence in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (["network=compact"], "objective=reconstruction trains network=autoencoder, not 'compact'"),
        (["objective=denoising"], "network=autoencoder goes with objective=reconstruction"),
        (["network.widths=[8, 8, 8, 8, 8]"], "needs sides that are multiples of 16, not 8"),
        (["objective.kl=-1"], "must be 0 or more"),
    ],
)
def test_recipes_of_autoencoders_that_cannot_be(
    compress: MakeRecipe, tmp_path: Path, changes: list[str], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        fit(compress(*changes), tmp_path / "run", device="cpu", console=QUIET)


# Latents


def test_pictures_of_odd_sides_are_padded_and_cut_back() -> None:
    torch.manual_seed(0)
    codec = Latents(Autoencoder(3, latent=2, widths=[4, 4, 4], groups=2).eval(), (3, 13, 10))
    x = torch.randint(0, 256, (20, 3, 13, 10), dtype=torch.uint8)
    z = codec.encode(x)
    assert tuple(z.shape) == (20, *codec.shape((3, 13, 10))) == (20, 2, 4, 3)
    assert codec.decode(z).shape == x.shape
    assert codec.decode(z).dtype == torch.uint8


def test_a_mirrored_latent_is_drawn_where_the_picture_would_be_mirrored() -> None:
    pictures = torch.arange(40, dtype=torch.uint8).reshape(10, 1, 2, 2)
    x = torch.stack([pictures, pictures.flip(-1)], 1)
    assert torch.equal(Flip(True)(x, 5, 100), Augment(flip=True)(pictures, 5, 100))
    assert torch.equal(Flip(False)(x, 5, 100), pictures)


def test_what_is_known_of_rows_stays(tmp_path: Path) -> None:
    source = InMemory(
        torch.zeros(5, 1, 4, 4, dtype=torch.uint8), torch.arange(5), ("a", "b"), tuple("vwxyz"), None, tuple("12345")
    )
    found = Encoded(source, torch.arange(10.0).reshape(5, 1, 2, 1, 1)).take(np.array([3, 0]))
    assert found.x.flatten().tolist() == [6, 7, 0, 1]
    assert (found.labels.tolist(), found.captions, found.files) == ([3, 0], ["y", "v"], ["4", "1"])  # type: ignore[union-attr]


def test_latents_are_encoded_once_and_again_where_the_autoencoder_is_another(
    latent_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = tmp_path / "run"
    shutil.copytree(latent_run, copied)
    files = sorted(path.name for path in (copied / "latents").iterdir())
    assert len(files) == 2
    with monkeypatch.context() as patch:
        patch.setattr(latents, "_write", lambda *given: pytest.fail("encoded again"))
        Trainer(*build_data(load(copied, "cpu").recipe), copied, torch.device("cpu"))
    weights = load_file(copied / "autoencoder" / "model.safetensors")
    weights["autoencoder.shift"] += 1
    save_file(weights, copied / "autoencoder" / "model.safetensors")
    trainer = Trainer(*build_data(load(copied, "cpu").recipe), copied, torch.device("cpu"))
    assert len({path.name for path in (copied / "latents").iterdir()} - set(files)) == 2
    rows = trainer.data.train.take(trainer.draws.rows(0))
    torch.testing.assert_close(trainer.draws(0).x0, build_codec(trainer.recipe).encode(rows.x), atol=1e-5, rtol=1e-4)


def test_a_model_in_latents(latent_run: Path, coder: Path) -> None:
    run = load(latent_run, "cpu")
    assert run.recipe.shape == (1, 8, 8)
    assert known_of(run.recipe).shape == (2, 4, 4)
    assert json.loads((latent_run / "recipe.json").read_text())["codec"]["path"] == "autoencoder"
    pictures = run.sample(5)
    assert pictures.shape == (5, 1, 8, 8)
    assert torch.equal(run.sample(3), pictures[:3])
    # the draws are those of the pictures' latents
    trainer = Trainer(run.recipe, build_data(run.recipe)[1], latent_run, torch.device("cpu"))
    rows = trainer.data.train.take(trainer.draws.rows(0))
    torch.testing.assert_close(trainer.draws(0).x0, build_codec(run.recipe).encode(rows.x), atol=1e-5, rtol=1e-4)


def test_known_pixels_stay_to_the_bit_in_latents_too(latent_run: Path) -> None:
    """What the autoencoder loses of them is pasted again behind the decoder."""
    run = load(latent_run, "cpu")
    picture = build_data(run.recipe)[1].heldout.take(np.zeros(1, dtype=np.int64)).x[0]
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[3:, 2:7] = True
    found = edits.inpaint(run.sampler(steps=4), picture, mask, 3, 3, repeats=2)
    assert torch.equal(found[:, :, ~mask], picture[:, ~mask].expand(3, -1, -1))
    assert not torch.equal(found[0], found[1])


def test_the_run_folder_holds_its_autoencoder(
    latent_run: Path, coder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """So that it can be moved, and the first one may go."""
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for name in ("recipe.json", "model.safetensors", "autoencoder/recipe.json", "autoencoder/model.safetensors"):
        (moved / name).parent.mkdir(exist_ok=True)
        (moved / name).write_bytes((latent_run / name).read_bytes())
    assert torch.equal(load(moved, "cpu").sample(4), load(latent_run, "cpu").sample(4))
    for verb in (["sample", "-n", "4"], ["film", "-n", "2"], ["evaluate", "-n", "100", "--guidance", "1"]):
        assert main([verb[0], str(moved), *verb[1:], "--device", "cpu"]) == 0
    (picture,) = (moved / "samples" / "seed-0").glob("00000*.png")
    assert size_of(picture) == (8, 8)
    (moved / "autoencoder" / "model.safetensors").unlink()
    assert main(["sample", str(moved), "--out", str(tmp_path / "x")]) == 2
    assert "is not the run folder of an autoencoder" in capsys.readouterr().err


def test_an_average_takes_its_autoencoder_along(tiny: MakeRecipe, coder: Path, tmp_path: Path) -> None:
    chosen = tiny("codec=latents", f"codec.path={coder}", "training.snapshots=16")
    fit(chosen, tmp_path / "run", device="cpu", console=QUIET)
    average(tmp_path / "run", 0.1, tmp_path / "average")
    shutil.rmtree(tmp_path / "run")
    assert json.loads((tmp_path / "average" / "recipe.json").read_text())["codec"]["path"] == "autoencoder"
    assert load(tmp_path / "average", "cpu").sample(2).shape == (2, 1, 8, 8)
    with pytest.raises(UserError, match="objective 'reconstruction', which is finished for its own average"):
        average(coder, 0.1, tmp_path / "other")


def test_what_a_bench_stores_stays_in_its_folder(tiny: MakeRecipe, coder: Path, tmp_path: Path) -> None:
    fit(tiny("codec=latents", f"codec.path={coder}"), tmp_path / "run", device="cpu", console=QUIET)
    words = ["--nfe", "2", "4", "-n", "100", "--solvers", "ddim", "--save", "--device", "cpu"]
    assert main(["bench", str(tmp_path / "run"), *words]) == 0
    assert json.loads((tmp_path / "run" / "recipe.json").read_text())["codec"]["path"] == "autoencoder"


@pytest.mark.slow
def test_resuming_in_latents_is_exact(tiny: MakeRecipe, coder: Path, tmp_path: Path) -> None:
    chosen = tiny("codec=latents", f"codec.path={coder}", "training.reports=2", "augment.flip=true")
    for name in ("whole", "parts"):
        fit(chosen, tmp_path / name, device="cpu", console=QUIET)
    last = sorted((tmp_path / "parts" / "checkpoints").iterdir())[-1]
    for file in last.iterdir():
        file.unlink()
    last.rmdir()
    refit(tmp_path / "parts", device="cpu", console=QUIET)
    assert (tmp_path / "whole" / "model.safetensors").read_bytes() == (
        tmp_path / "parts" / "model.safetensors"
    ).read_bytes()


OWN = ("codec=latents", "codec.factor=2", "codec.width=4", "codec.channels=2", "codec.images=256")


def test_without_an_autoencoder_one_is_trained_first(tiny: MakeRecipe, tmp_path: Path) -> None:
    run = train(tiny(*OWN), tmp_path / "run", device="cpu", console=QUIET)
    assert run.sample(2).shape == (2, 1, 8, 8)
    inner = json.loads((tmp_path / "run" / "autoencoder" / "recipe.json").read_text())
    assert inner["network"]["latent"] == 2
    assert inner["training"]["images"] == 256


def test_a_plan_has_both_trainings(tiny: MakeRecipe) -> None:
    found = plan(tiny(*OWN, "sampling.batch=4"), budget=100, device="cpu")
    assert found.first is not None
    assert "first an autoencoder:" in found.table()
    assert "then the model in its latents:" in found.table()
    assert found.first.seconds <= 41
    assert found.first.seconds + found.pace.seconds(found.steps, found.reports) < 101
    assert found.spent >= found.first.seconds


def test_a_budget_that_ends_before_the_latents_are_encoded_is_refused_at_once(
    tiny: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proportion, "undisturbed", lambda recipe, device: 1e5)  # operations a second
    with pytest.raises(UserError, match=r"60 s is too short: 24 s of it .* encoding 1,797 pictures"):
        train(tiny(*OWN), tmp_path / "run", budget=60, device="cpu", console=QUIET)
    assert not (tmp_path / "run" / "autoencoder").exists()
    monkeypatch.setattr(planning, "undisturbed", lambda recipe, device: 1e5)
    with pytest.raises(UserError, match=r"60 s is too short: 24 s of it .* encoding 1,797 pictures"):
        plan(tiny(*OWN, "sampling.batch=4"), budget=60, device="cpu")


def test_encoding_leaves_a_fifth_of_the_time_to_the_model() -> None:
    check_time(1000, 28.0, 0.4, 60.0)
    with pytest.raises(UserError, match=r"encoding 1,000 pictures with it takes about 29 s more: give 97s or more"):
        check_time(1000, 29.0, 0.4, 60.0)
    check_time(1000, 29.0, 0.4, 97.0)


@pytest.mark.slow
def test_a_training_that_stops_at_its_autoencoder_goes_on_there(
    tiny: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tiny(*OWN), tmp_path / "whole", device="cpu", console=QUIET)
    descend: Callable[..., float] = Trainer.descend

    def stop(trainer: Trainer, draw: object) -> float:
        found = descend(trainer, draw)
        if trainer.step == 3:
            loop.signal.raise_signal(loop.signal.SIGINT)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "descend", stop)
        with pytest.raises(Stopped):
            train(tiny(*OWN, "sampling.batch=null"), tmp_path / "parts", device="cpu", console=QUIET)
    assert not (tmp_path / "parts" / "checkpoints").exists()
    monkeypatch.setattr("unfog.training.choices.measured", lambda sampler, condition: 8)
    refit(tmp_path / "parts", device="cpu", console=QUIET)
    for name in ("autoencoder/model.safetensors", "model.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()
    assert load(tmp_path / "parts", "cpu").recipe.sampling.batch == 8  # measured when its own training began


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (["codec.path=nowhere"], "nowhere is not the run folder of an autoencoder"),
        (["codec.path={digits}"], "its network is 'compact', not an autoencoder"),
        (["codec.factor=3"], "codec.factor must be a power of two"),
        (["codec.share=1"], "codec.share must lie between 0 and 1"),
        (["codec.path={coder}", "augment.crop=1"], "augment.crop does not work with latents"),
        (["codec.path={coder}", "conditioning=image"], "is for pictures in pixels"),
        (["codec.path={coder}", "network.patch=8"], "needs sides that are multiples of"),
    ],
)
def test_latents_that_cannot_be(
    tiny: MakeRecipe, coder: Path, digits_run: Path, tmp_path: Path, changes: list[str], sentence: str
) -> None:
    given = [change.format(coder=coder, digits=digits_run) for change in changes]
    with pytest.raises(UserError, match=sentence):
        train(tiny("codec=latents", *given), tmp_path / "run", device="cpu", console=QUIET)


def test_an_autoencoder_of_other_pictures_is_refused(coder: Path) -> None:
    with pytest.raises(UserError, match="is for pictures of 1 channels, not 3"):
        recipe("cifar10").set("codec=latents", f"codec.path={coder}").codec.build((3, 32, 32))


# Recipes


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of captioned pictures of 128 pixels a side."""
    root = tmp_path_factory.mktemp("photographs")
    draws = np.random.default_rng(0)
    lines = []
    for number in range(24):
        colour = draws.integers(0, 256, 3)
        picture = np.tile(colour.astype(np.uint8), (128, 128, 1))
        picture[:64] //= 2
        Image.fromarray(picture).save(root / f"{number}.png")
        lines.append(json.dumps({"file_name": f"{number}.png", "text": f"thing {number // 2}: kind {number % 2}"}))
    (root / "metadata.jsonl").write_text("\n".join(lines))
    return root


def test_large_pictures_are_diffused_in_latents(photographs: Path) -> None:
    data = str(photographs)
    assert recipe("folder", data, 64).kind("codec") == "pixels"
    assert recipe("folder", data, 128).codec == LatentCodec(factor=8)
    assert options(recipe("folder", data, 96).codec)["factor"] == 4
    assert options(recipe("autoencoder", data, 128).network)["widths"] == (32, 64, 64, 64)
    assert recipe("text-to-image", data, 64).kind("codec") == "latents"


def test_what_begins_alike_is_held_out_together(photographs: Path) -> None:
    found = build_data(recipe("text-to-image", str(photographs), 16).set("data.heldout=0.25"))[1]
    sides = [
        {text.split(":")[0] for text in side.about(np.arange(len(side))).captions or []}
        for side in (found.train, found.heldout)
    ]
    assert not sides[0] & sides[1]
    assert (len(sides[0]), len(sides[1])) == (9, 3)


READERS = {
    "compact": ["network.width=8", "network.middle=1"],
    "conditional-unet": ["network.widths=[8, 8]", "network.attention=[true, true]", "network.heads=[1, 1]"],
    "joint-dit": ["network.width=16", "network.head=8", "network.depth=2"],
}
"""Networks that read text, and how they are made small."""


@pytest.mark.parametrize(
    "network",
    [pytest.param(name, marks=[] if name == "compact" else pytest.mark.slow) for name in READERS],
)
@pytest.mark.filterwarnings("ignore:.*near-duplicates")  # smooth pictures made by one rule
def test_text_to_image_in_one_command(photographs: Path, tmp_path: Path, network: str) -> None:
    small = [f"network={network}", *READERS[network], "training.images=64", "training.batch=8", "training.reports=1"]
    small += ["codec.width=4", "codec.images=64", "conditioning.width=32", "sampling.batch=8"]
    settings = [word for one in small for word in ("--set", one)]
    out = str(tmp_path / "run")
    data = ["--data", str(photographs), "--size", "64", "--device", "cpu"]
    assert main(["train", "text-to-image", *data, "--out", out, *settings]) == 0
    assert main(["sample", out, "-n", "2", "--prompt", "thing 3", "--steps", "2", "--device", "cpu"]) == 0
    assert size_of(tmp_path / "run" / "samples" / "seed-0" / "00000-thing-3.png") == (64, 64)


def test_text_to_image_needs_captions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in "ab":
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    assert main(["train", "text-to-image", "--data", str(tmp_path)]) == 2
    assert "has no captions: put 1.txt next to 1.png, or add a metadata.jsonl" in capsys.readouterr().err


@pytest.mark.parametrize(("rows", "side", "count"), [(40, 8, 40), (9000, 32, 512), (9000, 128, 170), (9000, 512, 64)])
def test_latents_are_settled_on_fewer_large_pictures(rows: int, side: int, count: int) -> None:
    pictures = InMemory(torch.zeros(1, 3, side, side, dtype=torch.uint8).expand(rows, -1, -1, -1))
    assert settled_on(pictures) == count


def test_data_are_read_once_for_both_trainings(
    tiny: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decoding 10,000 pictures of 128 pixels and seeking near-duplicates takes 16 seconds of a budget."""
    reads = []
    build = Digits.build

    def counted(self: Digits) -> Data:
        reads.append(1)
        return build(self)

    monkeypatch.setattr(Digits, "build", counted)
    train(tiny(*OWN), tmp_path / "run", device="cpu", console=QUIET)
    assert len(reads) == 1
