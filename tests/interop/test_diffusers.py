"""Models of diffusers: their networks with our code, whole pipelines, and what is refused."""

import json
import re
import runpy
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.conftest import MakeRecipe
from unfog.cli.main import main
from unfog.diffusion.sampling import trajectory
from unfog.interop import configs, names, onnx, schedulers
from unfog.interop.diffusers import import_model
from unfog.interop.reach import line
from unfog.networks.conditioning import Cond
from unfog.recipes import text_encoders as pretrained
from unfog.recipes.build import build_codec, known_of
from unfog.recipes.kinds import kind_of
from unfog.recipes.presets import recipe
from unfog.runs.distilling import distill
from unfog.runs.run import Run, load, train
from unfog.runtime.errors import UserError

pipelines = pytest.importorskip("tests.interop.pipelines", reason="diffusers or transformers is not installed")
diffusers = pytest.importorskip("diffusers")

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' own
TIMES = torch.tensor([3.0, 700.0])


def relative(found: Tensor, known: Tensor) -> float:
    """The largest difference over the largest value."""
    return float((found - known).abs().max() / known.abs().max())


def ours(theirs: Any, **given: Any) -> Any:
    """Our network of the topology and with the weights of one of diffusers."""
    made = configs.network(json.loads(json.dumps(dict(theirs.config))) | {"_class_name": type(theirs).__name__}, "it")
    network = made.build(channels=theirs.config.in_channels, dims=2, **given)
    network.load_state_dict(names.ours(theirs.state_dict(), network, "it"), strict=False)
    return network.eval()


# Networks


@pytest.mark.parametrize(
    ("name", "more"), [*((name, {}) for name in pipelines.PLAIN), ("course", {"attention_head_dim": 16})]
)
@torch.no_grad()
def test_unconditional_networks_are_equal(name: str, more: dict[str, int]) -> None:
    theirs = pipelines.plain(name, **more)
    x = torch.randn(2, theirs.config.in_channels, 16, 16, generator=torch.Generator().manual_seed(0))
    assert relative(ours(theirs)(x, TIMES), theirs(x, TIMES).sample) < 1e-5


@pytest.mark.parametrize("name", list(pipelines.CONDITIONAL))
@torch.no_grad()
def test_conditional_networks_are_equal(name: str) -> None:
    theirs = pipelines.conditional(name)
    draws = torch.Generator().manual_seed(0)
    x, tokens = torch.randn(2, 4, 8, 8, generator=draws), torch.randn(2, 77, pipelines.WIDTH, generator=draws)
    network = ours(theirs, context=pipelines.WIDTH)
    assert relative(network(x, TIMES, Cond(tokens=tokens)), theirs(x, TIMES, tokens).sample) < 1e-5
    other = network(x, TIMES, Cond(tokens=tokens.flip(0)))
    assert relative(other, theirs(x, TIMES, tokens).sample) > 1e-2, "the tokens must count"


@pytest.mark.parametrize("options", [{}, {"use_quant_conv": False, "use_post_quant_conv": False}])
@torch.no_grad()
def test_autoencoders_are_equal(options: dict[str, Any]) -> None:
    theirs = pipelines.autoencoder(**options)
    network, x = ours(theirs), torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    known, found = theirs.encode(x).latent_dist, network.posterior(x)
    assert relative(found.mean, known.mean) < 1e-5
    assert relative(found.log_variance, known.logvar) < 1e-5
    assert relative(network.restore(known.mean), theirs.decode(known.mean).sample) < 1e-5


@pytest.mark.parametrize(
    "theirs",
    [
        pipelines.plain("course"),
        pipelines.conditional("sd1"),
        pipelines.conditional("sd2"),
        pipelines.autoencoder(),
    ],
    ids=["plain", "sd1", "sd2", "autoencoder"],
)
def test_names_lead_there_and_back(theirs: Any) -> None:
    context = {"context": pipelines.WIDTH} if "Condition" in type(theirs).__name__ else {}
    found, known = names.theirs(ours(theirs, **context)), theirs.state_dict()
    assert found.keys() == known.keys()
    assert all(torch.equal(found[name].reshape(known[name].shape), known[name]) for name in known)


def test_names_of_old_files_are_known() -> None:
    theirs = pipelines.autoencoder()
    words = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    old = {}
    for name, tensor in theirs.state_dict().items():
        for new, word in words.items():
            name = name.replace(f".{new}.", f".{word}.")
        old[name] = tensor
    assert old.keys() != theirs.state_dict().keys()
    network = ours(theirs)
    again = names.ours(old, network, "it")
    assert all(torch.equal(again[name], tensor) for name, tensor in network.state_dict().items() if name in again)


# Whole pipelines


@pytest.fixture(scope="module")
def pictured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A pipeline of text to image, and its folder."""
    folder = tmp_path_factory.mktemp("sd") / "sd1"
    return pipelines.stable_diffusion(folder), folder


def imported(folder: Path, out: Path, scheduler: Any) -> Run:
    """A folder of diffusers with another scheduler, imported."""
    copy = out / "with-scheduler"
    shutil.copytree(folder, copy)
    scheduler.save_pretrained(copy / "scheduler")
    import_model(str(copy), out / "run")
    return load(out / "run", "cpu", "float32")


SCHEDULERS = {
    "ddim": lambda config: diffusers.DDIMScheduler.from_config(config),
    "euler": lambda config: diffusers.EulerDiscreteScheduler.from_config(config),
    "heun": lambda config: diffusers.HeunDiscreteScheduler.from_config(config),
    "lms": lambda config: diffusers.LMSDiscreteScheduler.from_config(config),
    "euler-ancestral": lambda config: diffusers.EulerAncestralDiscreteScheduler.from_config(config),
    "dpmpp-2m-karras": lambda config: diffusers.DPMSolverMultistepScheduler.from_config(config, use_karras_sigmas=True),
    "unipc": lambda config: diffusers.UniPCMultistepScheduler.from_config(config),
}


def drawn_by_both(pipe: Any, folder: Path, tmp_path: Path) -> tuple[Tensor, Tensor]:
    """Our picture and that of diffusers from the same latents, at guidance 7.5 and with a negative prompt."""
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)  # both draw the noise of their steps from the global generator
    known = pipe(
        "a red fox", negative_prompt="blue", guidance_scale=7.5, num_inference_steps=10, latents=noise, output_type="pt"
    ).images
    run = imported(folder, tmp_path, pipe.scheduler)
    sampler = run.sampler(steps=10, guidance=7.5, negative="blue")
    with torch.inference_mode():
        denoise, times = sampler.denoise(sampler.condition(1, "a red fox"))
        # of these the state is x/alpha, of the size sigma/alpha; diffusers begins with some at sqrt(1 + that²)
        start = noise * float(getattr(pipe.scheduler, "init_noise_sigma", 1.0))
        torch.manual_seed(1)
        for step in trajectory(denoise, start, times, sampler.solver):
            last = step.x
        codec: Any = sampler.codec
        found = codec.autoencoder.decode(last)
    assert float(known.std()) > 0.05, "a picture of one colour shows nothing"
    return (found / 2 + 0.5).clamp(0, 1), known


@pytest.mark.parametrize("name", list(SCHEDULERS))
def test_text_to_image_is_that_of_diffusers(pictured: tuple[Any, Path], tmp_path: Path, name: str) -> None:
    """The decoded picture is equal to 1e-3."""
    pipe, folder = pictured
    pipe.scheduler = SCHEDULERS[name](diffusers.DDIMScheduler.load_config(folder, subfolder="scheduler"))
    found, known = drawn_by_both(pipe, folder, tmp_path)
    assert float((found - known).abs().max()) < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddim", "dpmpp-2m-karras"])
def test_the_second_stable_diffusion_too(tmp_path: Path, name: str) -> None:
    """With linear projections, heads for each level, and v for a target."""
    pipe = pipelines.stable_diffusion(tmp_path / "sd2", "sd2", prediction_type="v_prediction")
    pipe.scheduler = SCHEDULERS[name](pipe.scheduler.config)
    found, known = drawn_by_both(pipe, tmp_path / "sd2", tmp_path)
    assert float((found - known).abs().max()) < 1e-3
    assert load(tmp_path / "run", "cpu").recipe.kind("target") == "v"


def test_a_prompt_and_a_negative_prompt_matter(pictured: tuple[Any, Path], tmp_path: Path) -> None:
    run = imported(pictured[1], tmp_path, diffusers.DDIMScheduler.load_config and pictured[0].scheduler)
    first = run.sample(2, "a red fox", steps=3)
    assert first.shape == (2, 3, 32, 32)
    assert torch.equal(first[:1], run.sample(1, "a red fox", steps=3))
    assert not torch.equal(first, run.sample(2, "an owl", steps=3))
    assert not torch.equal(first, run.sample(2, "a red fox", steps=3, negative="blue"))
    with pytest.raises(UserError, match="needs guidance: set guidance above 1"):
        run.sample(1, "a red fox", steps=3, guidance=1.0, negative="blue")


def test_pixels_are_those_of_diffusers(tmp_path: Path) -> None:
    pipe = pipelines.pixels(tmp_path / "pipe", scheduler=diffusers.DDIMScheduler(timestep_spacing="trailing"))
    import_model(str(tmp_path / "pipe"), tmp_path / "run")
    run = load(tmp_path / "run", "cpu", "float32")
    noise = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    sampler = run.sampler(steps=8)
    with torch.inference_mode():
        denoise, times = sampler.denoise(None)
        for step in trajectory(denoise, noise, times, sampler.solver):
            found = step.x
        pipe.scheduler.set_timesteps(8)
        x = noise
        for timestep in pipe.scheduler.timesteps:
            x = pipe.scheduler.step(pipe.unet(x, timestep).sample, timestep, x).prev_sample
    torch.testing.assert_close(found, x, atol=1e-3, rtol=1e-3)


def test_a_class_is_told_as_there(tmp_path: Path) -> None:
    """Where theirs has an embedding of classes, ours has too, and no condition adds nothing."""
    theirs = pipelines.plain("cifar10", num_class_embeds=4)
    theirs.save_pretrained(tmp_path / "pipe" / "unet")
    diffusers.DDIMScheduler().save_pretrained(tmp_path / "pipe" / "scheduler")
    index = {
        "_class_name": "DDIMPipeline",
        "unet": ["diffusers", "UNet2DModel"],
        "scheduler": ["diffusers", "DDIMScheduler"],
    }
    (tmp_path / "pipe" / "model_index.json").write_text(json.dumps(index))
    import_model(str(tmp_path / "pipe"), tmp_path / "run")
    run = load(tmp_path / "run", "cpu", "float32")
    x, labels = torch.randn(2, 3, 16, 16), torch.tensor([3, 1])
    with torch.no_grad():
        assert run.denoiser.embedder is not None
        found = run.denoiser.network(x, TIMES, run.denoiser.embedder(labels))
        assert relative(found, theirs(x, TIMES, labels).sample) < 1e-5
        nothing = run.denoiser.embedder.null(2).vector
    assert nothing is not None
    assert not nothing.any()
    assert run.recipe.classes == ("0", "1", "2", "3")


def test_an_autoencoder_alone_is_one_to_train_in_the_latents_of(tmp_path: Path, digits_run: Path) -> None:
    theirs = pipelines.autoencoder(shift_factor=0.3)
    theirs.save_pretrained(tmp_path / "vae")
    assert main(["import", str(tmp_path / "vae"), str(tmp_path / "run")]) == 0
    found = recipe("cifar10").set("codec=latents", f"codec.path={tmp_path / 'run'}").codec.build((3, 32, 32))
    x = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        known = (theirs.encode(x / 127.5 - 1).latent_dist.mean - 0.3) * 0.18215
        torch.testing.assert_close(found.encode(x), known, atol=1e-5, rtol=1e-4)


def test_a_full_recipe_is_what_the_folder_said(pictured: tuple[Any, Path], tmp_path: Path) -> None:
    found = import_model(str(pictured[1]), tmp_path / "run")
    assert found.notes == ()
    written = load(tmp_path / "run", "cpu").recipe
    assert (written.kind("schedule"), written.kind("target"), written.kind("solver")) == ("quadratic", "eps", "ddim")
    assert (written.shape, known_of(written).shape) == ((3, 32, 32), (4, 8, 8))
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "autoencoder",
        "model.safetensors",
        "recipe.json",
        "text",
    ]


# Schedulers


@pytest.mark.parametrize(
    ("config", "parts"),
    [
        ({"_class_name": "DDPMScheduler"}, ("linear", "eps", "ancestral", "leading", "index", True)),
        (
            {"_class_name": "DDPMScheduler", "variance_type": "learned_range"},
            ("linear", "eps", "ancestral", "leading", "index", True),
        ),
        (
            {
                "_class_name": "DDIMScheduler",
                "prediction_type": "v_prediction",
                "rescale_betas_zero_snr": True,
                "timestep_spacing": "trailing",
            },
            ("zero-terminal-snr", "v", "ddim", "trailing", "index", True),
        ),
        (
            {"_class_name": "PNDMScheduler", **pipelines.BETAS},
            ("quadratic", "eps", "adams-bashforth", "leading", "index", False),
        ),
        ({"_class_name": "EulerDiscreteScheduler"}, ("linear", "eps", "euler", "linspace", "index", False)),
        (
            {"_class_name": "EulerAncestralDiscreteScheduler"},
            ("linear", "eps", "euler-ancestral", "linspace", "index", False),
        ),
        ({"_class_name": "HeunDiscreteScheduler"}, ("linear", "eps", "heun", "linspace", "index", False)),
        (
            {"_class_name": "DPMSolverMultistepScheduler", "use_karras_sigmas": True},
            ("linear", "eps", "dpmpp-2m", "karras", "whole", False),
        ),
        (
            {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++"},
            ("linear", "eps", "dpmpp-2m-sde", "linspace", "index", False),
        ),
        (
            {"_class_name": "DPMSolverMultistepScheduler", "solver_order": 3},
            ("linear", "eps", "dpmpp-3m", "linspace", "index", False),
        ),
        (
            {"_class_name": "UniPCMultistepScheduler", "beta_schedule": "squaredcos_cap_v2"},
            ("cosine", "eps", "unipc", "linspace", "index", False),
        ),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, ("flow", "flow", "euler", "linspace", "thousand", False)),
        (
            {"_class_name": "DDIMScheduler", "trained_betas": [0.1, 0.2, 0.3], "prediction_type": "sample"},
            ("table", "x0", "ddim", "leading", "index", True),
        ),
    ],
    ids=lambda value: value.get("_class_name") if isinstance(value, dict) else "",
)
def test_schedulers_are_read(config: dict[str, Any], parts: tuple[Any, ...]) -> None:
    found = schedulers.read(config, "it")
    kinds = tuple(kind_of(field, getattr(found, field)) for field in ("schedule", "target", "solver", "grid"))
    assert (*kinds, found.network_time, found.clip) == parts
    if kinds[2] in ("euler", "euler-ancestral", "heun", "adams-bashforth"):
        assert found.solver.clock == ("flow" if kinds[0] == "flow" else "edm")
    assert bool(found.notes) == (config["_class_name"] == "PNDMScheduler")


@pytest.mark.parametrize(
    "name", ["DDIM", "DDPM", "EulerDiscrete", "HeunDiscrete", "DPMSolverMultistep", "UniPCMultistep"]
)
def test_tables_are_those_of_diffusers(name: str) -> None:
    """Whatever the class's default betas are."""
    for options in ({}, pipelines.BETAS, {"beta_schedule": "squaredcos_cap_v2"}):
        theirs = getattr(diffusers, f"{name}Scheduler")(**options)
        config = {**theirs.config, "_class_name": f"{name}Scheduler"}
        table = schedulers.read(json.loads(json.dumps(dict(config), default=list)), "it").schedule
        known = theirs.alphas_cumprod.double()
        torch.testing.assert_close(torch.tensor(table.alphas_cumprod).double(), known, atol=1e-6, rtol=1e-4)


# Out


def trained(tiny: MakeRecipe, path: Path, *more: str) -> Run:
    """A small U-Net on digits that diffusers can have."""
    small = ("network=unet", "network.widths=[8, 8]", "network.attention=[false, true]", "network.groups=8")
    table = ("schedule=linear", "target=eps", "times=discrete", "inputs.network_time=index", "conditioning=none")
    images = ("training.images=512", "sampling.guidance=1", "sampling.clip=false", "network.head=8", *more)
    chosen = tiny().set(*small, *table, *images)
    return train(chosen, path, device="cpu", console=Console(quiet=True))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("solver", "more"), [("ancestral", ()), ("ddim", ()), ("dpmpp-2m", ()), ("ddim", ("target=v",))]
)
def test_diffusers_draws_the_same_picture(tiny: MakeRecipe, tmp_path: Path, solver: str, more: tuple[str, ...]) -> None:
    """Train here, export, and diffusers samples the same from the same noise; import, and the weights are the same."""
    run = trained(tiny, tmp_path / "run", f"solver={solver}", *more)
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out")]) == 0
    pipe = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "out")
    pipe.set_progress_bar_config(disable=True)
    sampler, steps = load(tmp_path / "run", "cpu", "float32").sampler(steps=10), 10
    noise = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    drawn = [torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(1, 20)]
    with torch.inference_mode():
        denoise, times = sampler.denoise(None)
        for step in trajectory(denoise, noise, times, sampler.solver, noise=lambda i, like: drawn[i]):
            found = step.x
    given = iter([noise, *drawn])
    module = sys.modules[type(pipe).__module__]
    steps_of = sys.modules[type(pipe.scheduler).__module__]
    with (
        patch.object(module, "randn_tensor", lambda *_, **__: next(given)),
        patch.object(steps_of, "randn_tensor", lambda *_, **__: next(given), create=True),
    ):
        known = pipe(batch_size=2, num_inference_steps=steps, output_type="np").images
    known = torch.from_numpy(known).permute(0, 3, 1, 2) * 2 - 1
    torch.testing.assert_close(found.clamp(-1, 1), known, atol=2e-3, rtol=1e-3)
    assert main(["import", str(tmp_path / "out"), str(tmp_path / "again")]) == 0
    again = load(tmp_path / "again", "cpu")
    for name, tensor in run.denoiser.state_dict().items():
        assert torch.equal(again.denoiser.state_dict()[name], tensor), name
    assert again.recipe.schedule == run.recipe.schedule
    assert again.recipe.kind("solver") == solver


def test_the_card_tells_what_is_known(tiny: MakeRecipe, tmp_path: Path) -> None:
    run = trained(tiny, tmp_path / "run", "solver=ddim", "training.batch=16")
    assert main(["evaluate", str(tmp_path / "run"), "-n", "100", "--steps", "3", "--device", "cpu"]) == 0
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out")]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    parameters = sum(one.numel() for one in run.denoiser.parameters())
    for words in (
        f"{parameters:,} parameters",
        "SHA-256 of the rows: ",
        "512 images",
        "| frechet/classifier | 1 |",
        '"kind": "unet"',
    ):
        assert words in card, words
    assert str(tmp_path) not in card


@pytest.mark.slow
def test_latents_are_exported_with_their_autoencoder(tiny: MakeRecipe, tmp_path: Path) -> None:
    own = ("codec=latents", "codec.factor=2", "codec.width=32", "codec.channels=2", "codec.images=256")
    run = trained(tiny, tmp_path / "run", "solver=ddim", *own)
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out")]) == 0
    pipe = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "out")
    pipe.set_progress_bar_config(disable=True)
    z = torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    codec: Any = build_codec(run.recipe)
    with torch.no_grad():
        known = pipe.vqvae.decode(z / pipe.vqvae.config.scaling_factor).sample
        torch.testing.assert_close(codec.autoencoder.decode(z), known, atol=1e-4, rtol=1e-3)
        x = torch.rand(2, 1, 8, 8) * 2 - 1
        encoded = pipe.vqvae.encode(x).latent_dist
        torch.testing.assert_close(codec.autoencoder.encode(x), encoded.mean, atol=1e-4, rtol=1e-3)
        posterior = codec.autoencoder.posterior(x)
        deviation = (posterior.log_variance / 2).exp() * codec.autoencoder.scale
        torch.testing.assert_close(encoded.std, deviation, atol=1e-4, rtol=1e-3)
    assert pipe(batch_size=1, num_inference_steps=2, output_type="np").images.shape == (1, 8, 8, 1)


def test_a_text_model_goes_there_and_back(pictured: tuple[Any, Path], tmp_path: Path) -> None:
    import_model(str(pictured[1]), tmp_path / "run")
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out")]) == 0
    pipe = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "out")
    pipe.set_progress_bar_config(disable=True)
    first, second = pictured[0].unet.state_dict(), pipe.unet.state_dict()
    assert all(torch.equal(first[name].reshape(second[name].shape), second[name]) for name in second)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    pictured[0].scheduler = diffusers.DDIMScheduler.from_pretrained(pictured[1], subfolder="scheduler")
    given = {"num_inference_steps": 4, "latents": noise, "output_type": "pt"}
    known, found = (one("a red fox", **given).images for one in (pictured[0], pipe))
    torch.testing.assert_close(found, known, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (["network=compact", "network.width=8"], "diffusers has no network like Compact"),
        (
            ["schedule=cosine-continuous", "times=uniform", "inputs.network_time=thousand", "target=v"],
            "diffusers supports tables",
        ),
        (["inputs.input_scale=unit"], "only models with inputs.input_scale=none can be exported"),
        (["solver=euler"], "pixel pipelines do not work with EulerDiscreteScheduler"),
        (["solver=unipc"], "pixel pipelines do not work with UniPCMultistepScheduler"),
        (["solver=dpmpp-3m"], "diffusers has no solver like 'dpmpp-3m'"),
        (["grid=polynomial", "solver=ddim"], "diffusers has no grid 'polynomial'"),
        (["variance=learned", "solver=ancestral"], "do not support learned variances"),
        (["network.widths=[8, 12]", "network.head=4", "solver=ddim"], "group norms whose 8 groups divide all widths"),
        (["conditioning=labels", "solver=ddim"], "conditioning=labels cannot be exported"),
    ],
)
def test_what_diffusers_does_not_have(
    tiny: MakeRecipe, tmp_path: Path, changes: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    trained(tiny, tmp_path / "run", "training.images=32", *changes)
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out")]) == 2
    assert sentence in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_flows_and_classes_are_exported(tiny: MakeRecipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flow = ("schedule=flow", "target=flow", "times=logit-normal", "inputs.network_time=thousand", "solver=euler")
    run = trained(tiny, tmp_path / "run", *flow, "conditioning=classes")
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out")]) == 0
    assert "call the U-Net with class_labels" in capsys.readouterr().out
    theirs = diffusers.UNet2DModel.from_pretrained(tmp_path / "out" / "unet")
    x, labels = torch.randn(2, 1, 8, 8), torch.tensor([3, 10])
    with torch.no_grad():
        assert run.denoiser.embedder is not None
        found = run.denoiser.network(x, TIMES, run.denoiser.embedder(labels))
        assert relative(found, theirs(x, TIMES, labels).sample) < 1e-5
    config = json.loads((tmp_path / "out" / "scheduler" / "scheduler_config.json").read_text())
    assert config["_class_name"] == "FlowMatchEulerDiscreteScheduler"


def test_nothing_is_overwritten(digits_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("mine")
    assert main(["export", str(digits_run), str(tmp_path)]) == 2
    assert "already exists: choose a new folder" in capsys.readouterr().err
    assert main(["import", str(tmp_path), str(digits_run)]) == 2
    assert "already contains a run: choose another folder" in capsys.readouterr().err


# ONNX


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        (),
        ("codec=latents", "codec.factor=2", "codec.width=4", "codec.images=64"),
        ("network.middle=1", "training.choices=float32 plain-attention"),
    ],
)
def test_numpy_draws_from_onnx(
    tiny: MakeRecipe, tmp_path: Path, more: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exported script, with NumPy alone, draws what we draw by DDIM from the same noise, guidance and all."""
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr("unfog.networks.attention._AT_ONCE", 1)  # plain products in pieces, as many as the batch says
    chosen = tiny("solver=ddim", "sampling.guidance=2", *more)
    train(chosen, tmp_path / "run", device="cpu", console=Console(quiet=True))
    draws_alike(tmp_path, monkeypatch, 6)


@pytest.mark.slow
@pytest.mark.parametrize("conditioning", ["classes", "none"])
def test_numpy_draws_a_student_from_onnx(
    tiny: MakeRecipe, tmp_path: Path, conditioning: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Span and learned guidance are among the embeddings of the classes."""
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    quiet, teacher = Console(quiet=True), tmp_path / "teacher"
    train(tiny(f"conditioning={conditioning}"), teacher, device="cpu", console=quiet)
    distill(teacher, tmp_path / "run", rows=64, points=4, images=512, device="cpu", console=quiet)
    draws_alike(tmp_path, monkeypatch, 2)
    if conditioning == "classes":
        monkeypatch.setattr(sys, "argv", ["sample.py", "--guidance", "2"])
        with pytest.raises(SystemExit, match=r"exported for guidance 1\.5"):
            runpy.run_path(str(tmp_path / "out" / "sample.py"), run_name="__main__")


def draws_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """The exported script draws what we draw by DDIM from the same noise."""
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out"), "--to", "onnx", "--steps", str(steps)]) == 0
    script = tmp_path / "out" / "sample.py"
    words = [str(script), "--count", "3", "--seed", "5", "--out", str(tmp_path / "drawn.png")]
    monkeypatch.setattr(sys, "argv", words)
    runpy.run_path(str(script), run_name="__main__")
    run = load(tmp_path / "run", "cpu", "float32")
    sampler = replace(run.sampler(steps=steps), settings=replace(run.sampler(steps=steps).settings, batch=3))
    noise = torch.from_numpy(np.random.default_rng(5).standard_normal((3, *known_of(run.recipe).shape), np.float32))
    with torch.inference_mode():
        asked = None if run.denoiser.embedder is None else torch.arange(3)
        denoise, times = sampler.denoise(asked)
        for step in trajectory(denoise, denoise.schedule.sigma(times[0]) * noise, times, sampler.solver):
            x = step.x
        known = sampler.codec.decode(x)
    with Image.open(tmp_path / "drawn.png") as picture:
        found = np.asarray(picture)
    np.testing.assert_allclose(found.astype(int), np.concatenate(list(known[:, 0].numpy()), 1).astype(int), atol=1)


class Still:
    """A session of onnxruntime whose network predicts a velocity of 0: what is drawn is the noise."""

    def __init__(self, path: Path) -> None:
        assert path.name == "denoiser.onnx"

    def run(self, names: None, given: dict[str, np.ndarray]) -> list[np.ndarray]:
        assert given["cond"].shape == (len(given["x"]), 2)
        return [0 * given["x"]]


@pytest.fixture
def exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """An exported folder, in which to call the script."""
    onnxruntime = pytest.importorskip("onnxruntime")
    monkeypatch.setattr(onnxruntime, "InferenceSession", Still)
    folder = tmp_path / "exported"
    folder.mkdir()
    shutil.copy(Path(onnx.__file__).with_name("onnx_sample.py"), folder / "sample.py")
    steps = {"time": [999, 500, 0], "alpha": [0, 0.5, 1], "sigma": [1, 0.5, 0], "seen_alpha": [0, 0.5, 1]}
    rest = {"seen_sigma": [1, 0.5, 0], "a": [-1] * 3, "b": [1] * 3, "guidance": 2, "clip": True, "pixels": True}
    rest |= {"shape": [3, 4, 6], "size": [4, 5], "classes": ["cat", "a dog/2"], "rows": [[0, 1], [1, 0], [0, 0]]}
    (folder / "sampler.json").write_text(json.dumps({**steps, **rest}))

    def call(*words: str, out: Path) -> Path:
        monkeypatch.setattr(sys, "argv", ["sample.py", *words, "--out", str(out)])
        runpy.run_path(str(folder / "sample.py"), run_name="__main__")
        return out

    return call


def test_the_exported_script_writes_folders(exported: Callable[..., Path], tmp_path: Path) -> None:
    """With a class in each name; a traceback before."""
    out = exported("--count", "3", out=tmp_path / "new" / "folder")
    assert sorted(path.name for path in out.iterdir()) == ["00000-cat.png", "00001-a-dog-2.png", "00002-cat.png"]
    with Image.open(out / "00001-a-dog-2.png") as picture:
        assert (picture.size, picture.mode) == ((5, 4), "RGB")
        one = np.asarray(picture)
    row = exported("--count", "3", "--label", "a dog/2", out=tmp_path / "row.png")
    with Image.open(row) as picture:
        assert picture.size == (15, 4)
        np.testing.assert_array_equal(np.asarray(picture)[:, 5:10], one)  # sample 1 is sample 1
    assert [path.name for path in exported("--count", "1", "--label", "1", out=tmp_path / "d").iterdir()] == [
        "00000-a-dog-2.png"
    ]
    with pytest.raises(SystemExit, match="no class 'cow': choose from cat, a dog/2"):
        exported("--label", "cow", out=tmp_path / "none")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ((), r"to ONNX; not to diffusers: diffusers has no network like Compact: train with network=unet"),
        (("network=unet", "solver=euler"), "^to diffusers and ONNX$"),
        (("conditioning=labels", "network=unet"), "^not to diffusers: .*set solver=euler.*; not to ONNX: only uncond"),
        (("schedule=edm", "target=edm"), "not to ONNX: only models with inputs.input_scale=none"),
    ],
)
def test_what_a_recipe_can_be_exported_to_is_known_before(settings: tuple[str, ...], said: str) -> None:
    assert re.search(said, line(recipe("digits").set(*settings)))


def test_onnx_takes_classes_or_nothing(tiny: MakeRecipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ("conditioning=labels", "training.images=32")
    train(tiny(*small), tmp_path / "run", device="cpu", console=Console(quiet=True))
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out"), "--to", "onnx"]) == 2
    assert "only unconditional and class-conditional models can be exported to ONNX" in capsys.readouterr().err


# What is refused


@pytest.fixture
def broken(pictured: tuple[Any, Path], tmp_path: Path) -> Path:
    """A copy of a pipeline for a test to break."""
    shutil.copytree(pictured[1], tmp_path / "broken")
    return tmp_path / "broken"


def change(file: Path, **entries: Any) -> None:
    """Change entries of a JSON file; None takes one away."""
    found = {**json.loads(file.read_text()), **entries}
    file.write_text(json.dumps({name: value for name, value in found.items() if value != "away"}))


def lacking(folder: Path, name: str) -> None:
    """Take one weight of a U-Net away."""
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({one: tensor for one, tensor in load_file(file).items() if one != name}, file)


REFUSED: dict[str, tuple[Any, str]] = {
    "no folder": (lambda f: shutil.rmtree(f), "is not a folder: pass a diffusers folder"),
    "empty": (
        lambda f: (f / "model_index.json").unlink(),
        "needs the rest of its pipeline, and there is no model_index.json",
    ),
    "nothing": (
        lambda f: shutil.rmtree(f / "unet") or (f / "model_index.json").unlink(),
        "has no model_index.json and no config.json",
    ),
    "index": (lambda f: (f / "model_index.json").write_text("{"), "model_index.json is not JSON"),
    "list": (lambda f: (f / "model_index.json").write_text("[]"), "is not a JSON object"),
    "no unet": (lambda f: change(f / "model_index.json", unet="away"), "has no unet"),
    "part": (lambda f: change(f / "model_index.json", transformer=["diffusers", "X"]), "the part transformer (X)"),
    "encoder": (
        lambda f: change(f / "model_index.json", text_encoder=["transformers", "Bert"]),
        "encoder Bert is not supported",
    ),
    "class": (
        lambda f: change(f / "unet" / "config.json", _class_name="UNet3D"),
        "the class 'UNet3D' is not supported, only UNet2DModel",
    ),
    "option": (
        lambda f: change(f / "unet" / "config.json", addition_embed_type="text"),
        "addition_embed_type='text' is not supported",
    ),
    "block": (
        lambda f: change(f / "unet" / "config.json", down_block_types=["XDown"] * 3),
        "the block 'XDown' is not supported",
    ),
    "mirror": (
        lambda f: change(f / "unet" / "config.json", up_block_types=["UpBlock2D"] * 3),
        "must mirror down_block_types",
    ),
    "heads": (
        lambda f: change(f / "unet" / "config.json", attention_head_dim=[2, 2]),
        "attention_head_dim must be a number above 0, or one",
    ),
    "layers": (
        lambda f: change(f / "unet" / "config.json", layers_per_block=[1, 2, 1]),
        "must be the same for all levels",
    ),
    "widths": (lambda f: change(f / "unet" / "config.json", block_out_channels="away"), "has no block_out_channels"),
    "shapes": (
        lambda f: change(f / "unet" / "config.json", block_out_channels=[32, 64, 32]),
        "weights and config do not match",
    ),
    "deeper": (lambda f: change(f / "unet" / "config.json", layers_per_block=3), "weights and config do not match"),
    "shallower": (lambda f: change(f / "unet" / "config.json", layers_per_block=1), "has the unexpected weight"),
    "size": (lambda f: change(f / "unet" / "config.json", sample_size=None), "sample_size must be one or two sides"),
    "context": (
        lambda f: change(f / "unet" / "config.json", cross_attention_dim=5),
        "produces tokens of length 32, but the U-Net expects 5",
    ),
    "no config": (lambda f: (f / "unet" / "config.json").unlink(), "config.json is missing"),
    "no weights": (lambda f: (f / "unet" / "diffusion_pytorch_model.safetensors").unlink(), "contains no weights"),
    "key": (lambda f: lacking(f, "conv_norm_out.bias"), "lacks conv_norm_out.bias"),
    "truncated": (
        lambda f: (f / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"x" * 50),
        "damaged or truncated",
    ),
    "scheduler": (
        lambda f: change(f / "scheduler" / "scheduler_config.json", _class_name="LCMScheduler"),
        "the scheduler 'LCMScheduler' is not supported",
    ),
    "betas": (
        lambda f: change(f / "scheduler" / "scheduler_config.json", beta_schedule="odd"),
        "beta_schedule 'odd' is not supported",
    ),
    "prediction": (
        lambda f: change(f / "scheduler" / "scheduler_config.json", prediction_type="odd"),
        "prediction_type 'odd' is not supported",
    ),
    "spacing": (
        lambda f: change(f / "scheduler" / "scheduler_config.json", timestep_spacing="odd"),
        "timestep_spacing 'odd' is not supported",
    ),
    "threshold": (
        lambda f: change(f / "scheduler" / "scheduler_config.json", thresholding=True),
        "thresholding=True is not supported",
    ),
    "scale": (lambda f: change(f / "vae" / "config.json", scaling_factor="x"), "must be numbers"),
    "vae": (
        lambda f: change(f / "vae" / "config.json", down_block_types=["Odd"] * 3),
        "down_block_types must be DownEncoderBlock2D",
    ),
}
"""How a folder is broken, and what is said of it."""


@pytest.mark.parametrize("case", list(REFUSED))
def test_folders_that_are_refused(broken: Path, tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str]) -> None:
    breaks, sentence = REFUSED[case]
    breaks(broken)
    assert main(["import", str(broken), str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert len(said.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


PLAIN = st.none() | st.booleans() | st.integers(-(10**12), 10**12) | st.floats() | st.text(max_size=5)
VALUES = PLAIN | st.lists(PLAIN | st.sampled_from(["DownBlock2D", "CrossAttnDownBlock2D"]), max_size=5)
KNOWN = {
    "plain": dict(pipelines.plain("cifar10").config),
    "conditional": dict(pipelines.conditional("sd1").config),
    "autoencoder": dict(pipelines.autoencoder().config),
}
CLASSES = {"plain": "UNet2DModel", "conditional": "UNet2DConditionModel", "autoencoder": "AutoencoderKL"}


@given(which=st.sampled_from(list(KNOWN)), place=st.integers(0, 100), value=VALUES)
@settings(max_examples=300, deadline=None)
def test_strangers_networks_are_read_or_refused(which: str, place: int, value: object) -> None:
    config = json.loads(json.dumps(KNOWN[which])) | {"_class_name": CLASSES[which]}
    config[sorted(config)[place % len(config)]] = value
    with suppress(UserError), torch.device("meta"):
        configs.network(config, "it").build(channels=4, outputs=4, dims=2, context=32)


@given(which=st.sampled_from(schedulers.FAMILIES), key=st.text(max_size=3), place=st.integers(0, 100), value=VALUES)
@settings(max_examples=300, deadline=None)
def test_strangers_schedulers_are_read_or_refused(which: str, key: str, place: int, value: object) -> None:
    config = {**getattr(diffusers, f"{which}Scheduler")().config, "_class_name": f"{which}Scheduler"}
    config = json.loads(json.dumps(config, default=list))
    config[sorted(config)[place % len(config)] if place else key] = value
    with suppress(UserError):
        schedulers.read(config, "it")


def test_a_pickle_is_read_only_where_it_is_named(
    broken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = broken / "unet" / "diffusion_pytorch_model.safetensors"
    tensors, pickled = load_file(file), broken / "unet" / "diffusion_pytorch_model.bin"
    file.unlink()
    torch.save(tensors, pickled)
    assert main(["import", str(broken), str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert "is a pickle, which can run arbitrary code when loaded" in said
    assert f"convert it to safetensors, or set trust to {pickled}" in said
    assert main(["import", str(broken), str(tmp_path / "run"), "--trust", str(pickled)]) == 0
    torch.save({"x": Path()}, pickled)
    assert main(["import", str(broken), str(tmp_path / "other"), "--trust", str(pickled)]) == 2
    assert "is not a pickle of weights only" in capsys.readouterr().err


def test_weights_in_several_files_and_in_half_precision(broken: Path, tmp_path: Path) -> None:
    import_model(str(broken), tmp_path / "whole")
    file = broken / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    names_of = sorted(tensors)
    parts = {"a.safetensors": names_of[::2], "b.safetensors": names_of[1::2]}
    for name, several in parts.items():
        save_file({one: tensors[one] for one in several}, broken / "unet" / name)
    index = {"weight_map": {one: name for name, several in parts.items() for one in several}}
    (broken / "unet" / f"{file.name}.index.json").write_text(json.dumps(index))
    file.unlink()
    import_model(str(broken), tmp_path / "parts")
    whole, again = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    for one in (broken / "unet").glob("*.safetensors*"):
        one.unlink()
    save_file(
        {name: one.half() for name, one in tensors.items()},
        broken / "unet" / "diffusion_pytorch_model.fp16.safetensors",
    )
    import_model(str(broken), tmp_path / "half")
    half = load_file(tmp_path / "half" / "model.safetensors")
    assert {one.dtype for one in half.values()} == {torch.float32}
    assert all(torch.allclose(whole[name], half[name], atol=1e-3, rtol=1e-3) for name in whole)


def test_a_tokenizer_without_its_vocabulary(broken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for file in (broken / "tokenizer").iterdir():
        if file.name != "tokenizer_config.json":
            file.unlink()
    assert main(["import", str(broken), str(tmp_path / "run")]) == 2
    assert "tokenizer" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_without_transformers_one_sentence(
    pictured: tuple[Any, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And what needs no text works: the import itself reads no text encoder."""
    pretrained.encoder.cache_clear()
    for name in ("transformers", "huggingface_hub", "diffusers"):
        monkeypatch.setitem(sys.modules, name, None)
    assert main(["import", str(pictured[1]), str(tmp_path / "run")]) == 0
    assert main(["sample", str(tmp_path / "run"), "-n", "1", "--prompt", "a", "--device", "cpu"]) == 2
    assert "conditioning=pretrained needs transformers: pip install 'unfog[text]'" in capsys.readouterr().err
    assert main(["import", "some/model", str(tmp_path / "other")]) == 2
    assert "downloading from the hub needs huggingface_hub: pip install 'unfog[text]'" in capsys.readouterr().err


def test_without_a_network_the_hub_is_an_environment_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import huggingface_hub

    def fail(*given: object, **more: object) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", fail)
    assert main(["import", "some/model", str(tmp_path / "run")]) == 1
    assert "some/model cannot be downloaded from the hub: no route to host" in capsys.readouterr().err


# Training with a pretrained encoder


@pytest.mark.slow
def test_a_model_is_trained_on_clip(pictured: tuple[Any, Path], tiny: MakeRecipe, tmp_path: Path) -> None:
    """With the names of classes as captions; the encoder is copied, and the run stands alone."""
    encoder = tmp_path / "encoder"
    for name in ("text_encoder", "tokenizer"):
        shutil.copytree(pictured[1] / name, encoder / name)
    chosen = tiny("conditioning=pretrained", f"conditioning.path={encoder}", "conditioning.length=12")
    run = train(chosen, tmp_path / "run", device="cpu", console=Console(quiet=True))
    shutil.rmtree(encoder)
    pretrained.encoder.cache_clear()
    assert not any("text" in name for name in run.denoiser.state_dict())
    found = load(tmp_path / "run", "cpu")
    assert json.loads((tmp_path / "run" / "recipe.json").read_text())["conditioning"]["path"] == "text"
    assert torch.equal(found.sample(2, "3"), run.sample(2, "3"))
    assert not torch.equal(found.sample(2, "3"), found.sample(2, "7"))


def test_dropped_prompts_are_the_empty_one(pictured: tuple[Any, Path]) -> None:
    embedding = pretrained.TokensEmbedding(str(pictured[1]), 10)
    tokens = pretrained.encoder(str(pictured[1]), 10)(["red", "blue"])
    found = embedding(tokens, torch.tensor([False, True])).tokens
    assert found is not None
    assert torch.equal(found[0], tokens[0])
    nothing = embedding.null(1).tokens
    assert nothing is not None
    assert torch.equal(found[1], nothing[0])


def test_t5_hides_what_fills_up_the_length(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

    words = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1, "red": 2, "fox": 3, "<unk>": 4}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(tmp_path / "tokenizer")
    config = T5Config(vocab_size=5, d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2)
    theirs = pipelines.shaken(T5EncoderModel(config))
    theirs.save_pretrained(tmp_path / "text_encoder")
    embedding = pretrained.TokensEmbedding(str(tmp_path), 6)
    cond = embedding(pretrained.encoder(str(tmp_path), 6)(["red fox", "fox"]))
    assert cond.mask is not None
    assert cond.mask.tolist() == [[True, True, False, False, False, False], [True, False, False, False, False, False]]
    known = theirs(torch.tensor([[2, 3]])).last_hidden_state
    assert cond.tokens is not None
    torch.testing.assert_close(cond.tokens[0, :2], known[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("", "needs an encoder: set conditioning.path"),
        ("{folder}", "holds no text encoder"),
        ("{digits}", "holds no text encoder"),
    ],
)
def test_encoders_that_are_none(tiny: MakeRecipe, digits_run: Path, tmp_path: Path, path: str, sentence: str) -> None:
    given = path.format(folder=tmp_path, digits=digits_run)
    with pytest.raises(UserError, match=sentence):
        train(tiny("conditioning=pretrained", f"conditioning.path={given}"), tmp_path / "run", device="cpu")
