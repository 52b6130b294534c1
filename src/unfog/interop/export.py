"""Run folders as folders of diffusers, with a model card beside."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unfog.data.codecs import Latents
from unfog.interop import configs, names, schedulers
from unfog.interop.card import card
from unfog.networks.autoencoder import Autoencoder
from unfog.networks.conditional import ConditionalUNet
from unfog.networks.conditioning import ClassEmbedding
from unfog.networks.unet import UNet
from unfog.runs.run import Run, read_recipe
from unfog.runtime.errors import UserError
from unfog.runtime.files import disk, write_whole
from unfog.runtime.tensors import write_tensors

WEIGHTS = "diffusion_pytorch_model.safetensors"
UNFIT = (
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "UniPCMultistepScheduler",
)
"""Schedulers that diffusers' pipelines of pixels fail with: they scale no state for the network, and give all a
generator."""


def export_model(run: Run, folder: Path) -> tuple[str, ...]:
    """Write a folder that diffusers' `DiffusionPipeline.from_pretrained` reads.

    Args:
        run: The run.
        folder: Where to; must be empty or not there.

    Returns: What the folder can not do that the run can.
    Raises: UserError: If diffusers has no such model.
        EnvironmentFailure: If the disk fails.
    """
    vacant(folder)
    recipe, network, codec = run.recipe, run.denoiser.network, run.recipe.build_codec()
    if not isinstance(network, UNet | ConditionalUNet):
        raise names.unlike(network)
    scheduler = schedulers.write(recipe)
    channels, *sides = recipe.known.shape
    if len(sides) != 2 or sides[0] != sides[1]:
        raise UserError(f"diffusers' pipelines draw square pictures, and these are {sides}")
    if run.denoiser.learned_variance:
        raise UserError("diffusers' pipelines take no learned variance: train with variance=fixed to export")
    config = configs.config_of(network, recipe.network.options, channels, sides[0])
    weights = names.theirs(network)
    notes: tuple[str, ...] = ()
    if isinstance(run.denoiser.embedder, ClassEmbedding):
        weights["class_embedding.weight"] = run.denoiser.embedder.table.weight
        config["num_class_embeds"] = len(weights["class_embedding.weight"])
        notes = ("its pipeline tells no classes: call the U-Net with class_labels, of which the last is 'no label'",)
    elif recipe.conditioning.kind not in ("none", "pretrained"):
        raise UserError(
            "diffusers' pipelines tell a model nothing, or a text read by CLIP: a model with "
            f"conditioning={recipe.conditioning.kind} can not be exported"
        )
    if schedulers.clips(recipe) and not scheduler.get("clip_sample"):
        notes += ("x0 is not held to the range of pixels there, as it is here (sampling.clip)",)
    pipeline, parts = _pipeline(scheduler["_class_name"], recipe.conditioning.kind, isinstance(codec, Latents))
    with disk(folder):
        for part in ("unet", "scheduler", *(part for part in parts if part in ("vae", "vqvae"))):
            (folder / part).mkdir(parents=True, exist_ok=True)
        for part in (part for part in parts if part in ("text_encoder", "tokenizer")):
            shutil.copytree(Path(recipe.conditioning.options["path"]) / part, folder / part)
    _json(folder / "unet" / "config.json", config)
    write_tensors(folder / "unet" / WEIGHTS, weights)
    _json(folder / "scheduler" / "scheduler_config.json", scheduler)
    if isinstance(codec, Latents):
        options = read_recipe(run.path / "autoencoder").network.options
        where = folder / next(part for part in parts if part in ("vae", "vqvae"))
        _write_autoencoder(codec.autoencoder, options, where, recipe.shape or ())
    index = {"_class_name": pipeline, "unet": ["diffusers", config["_class_name"]]}
    _json(folder / "model_index.json", {**index, "scheduler": ["diffusers", scheduler["_class_name"]], **parts})
    write_whole(folder / "README.md", card(run, notes).encode())
    return notes


def vacant(folder: Path) -> None:
    """Raise a UserError for a path to which nothing can be exported."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there already: choose a new folder")


def _pipeline(scheduler: str, told: str, latent: bool) -> tuple[str, dict[str, Any]]:
    """Return the pipeline that samples a model, and which parts it has besides U-Net and scheduler."""
    if told == "pretrained":
        if not latent:
            raise UserError("diffusers' text to image works in latents: train with codec=latents to export")
        parts: dict[str, Any] = {"vae": ["diffusers", "AutoencoderKL"]}
        parts |= {"text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"]}
        return "StableDiffusionPipeline", {**parts, "safety_checker": [None, None], "feature_extractor": [None, None]}
    if latent:
        return "LDMPipeline", {"vqvae": ["diffusers", "AutoencoderKL"]}
    if scheduler in UNFIT:
        raise UserError(
            f"diffusers' pipelines of pixels do not work with {scheduler}: set solver to ddim, ancestral or dpmpp-2m"
        )
    return ("DDIMPipeline" if scheduler == "DDIMScheduler" else "DDPMPipeline"), {}


def _write_autoencoder(made: Autoencoder, options: Mapping[str, Any], folder: Path, shape: tuple[int, ...]) -> None:
    """Write an autoencoder whose one scaling factor is 1: shift and scale of each channel are in its convolutions.

    With m the mean, z = (m - shift)·scale; the convolution of one place that ends the encoder gives z and log var +
    2·log(scale) instead of m and log var, and the one that begins the decoder takes z instead of m.
    """
    weights = names.theirs(made)
    shift, scale = made.shift.flatten(), made.scale.flatten()
    config = configs.config_of(made, options, shape[0], shape[1])
    if bool((shift == 0).all()) and bool((scale == scale[0]).all()):
        config["scaling_factor"] = float(scale[0])
        config |= {"use_quant_conv": options["quant"], "use_post_quant_conv": options["post_quant"]}
    else:
        weights |= _folded(weights, shift, scale)
    _json(folder / "config.json", config)
    write_tensors(folder / WEIGHTS, weights)


def _folded(weights: dict[str, Tensor], shift: Tensor, scale: Tensor) -> dict[str, Tensor]:
    """Return the two convolutions of one place with shift and scale in them."""
    latent, found = len(shift), {}
    for name, size in (("quant_conv", 2 * latent), ("post_quant_conv", latent)):
        found[f"{name}.weight"] = weights.get(f"{name}.weight", torch.eye(size)[..., None, None])
        found[f"{name}.bias"] = weights.get(f"{name}.bias", torch.zeros(size))
    rows = torch.cat([scale, torch.ones(latent)])
    offset = torch.cat([-shift * scale, 2 * scale.log()])
    into = found["quant_conv.weight"] * rows[:, None, None, None]
    bias = found["post_quant_conv.bias"] + found["post_quant_conv.weight"][..., 0, 0] @ shift
    return {
        "quant_conv.weight": into,
        "quant_conv.bias": found["quant_conv.bias"] * rows + offset,
        "post_quant_conv.weight": found["post_quant_conv.weight"] / scale[:, None, None],
        "post_quant_conv.bias": bias,
    }


def _json(path: Path, plain: dict[str, Any]) -> None:
    """Write a configuration."""
    write_whole(path, (json.dumps(plain, indent=2) + "\n").encode())
