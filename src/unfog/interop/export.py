"""Export of run folders as diffusers folders, with a model card."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unfog.data.codecs import Latents
from unfog.interop import carried, configs, files, names, schedulers
from unfog.interop.card import card
from unfog.networks.autoencoder import Autoencoder
from unfog.networks.conditional import ConditionalUNet
from unfog.networks.conditioning import ClassEmbedding
from unfog.networks.unet import UNet
from unfog.recipes.build import build_codec, known_of
from unfog.recipes.conditions import ClassConditioning, Conditioning, NoConditioning
from unfog.recipes.latents import LatentCodec
from unfog.recipes.networks import ConditionalUNetSpec, UNetSpec
from unfog.recipes.parse import options
from unfog.recipes.recipe import Recipe
from unfog.recipes.settings import FixedVariance
from unfog.recipes.text_encoders import PretrainedConditioning
from unfog.runs.run import Run, read_recipe
from unfog.runtime.contained import copy_flat
from unfog.runtime.errors import UserError
from unfog.runtime.files import check_name, disk, locked, occupied, write_whole
from unfog.runtime.hub import SUFFIXES
from unfog.runtime.tensors import write_tensors

WEIGHTS = "diffusion_pytorch_model.safetensors"
UNFIT = (
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "UniPCMultistepScheduler",
)
"""Schedulers that do not work with diffusers' pixel pipelines, which do not scale the model input
and pass a generator to every scheduler."""


def export_model(run: Run, folder: Path) -> tuple[str, ...]:
    """Export a run to a folder for diffusers' `DiffusionPipeline.from_pretrained`.

    Args:
        run: The run.
        folder: Destination; must be empty or not exist.

    Returns: What the exported pipeline cannot do that the run can.
    Raises: UserError: If diffusers cannot represent the model.
        EnvironmentFailure: If the disk fails.
    """
    check_name(folder)
    with locked(folder):
        return _export(run, folder)


def _export(run: Run, folder: Path) -> tuple[str, ...]:
    """Write the folder, whose lock is held."""
    vacant(folder)
    recipe, network, codec = run.recipe, run.denoiser.network, build_codec(run.recipe)
    scheduler = fit(recipe)
    assert isinstance(network, UNet | ConditionalUNet)
    channels, *sides = known_of(recipe).shape
    config = configs.config_of(network, options(recipe.network), channels, sides[0])
    weights = names.theirs(network)
    notes: tuple[str, ...] = ()
    if isinstance(run.denoiser.embedder, ClassEmbedding):
        weights["class_embedding.weight"] = run.denoiser.embedder.table.weight
        config["num_class_embeds"] = len(weights["class_embedding.weight"])
        notes = ("its pipeline is unconditional: call the U-Net with class_labels, of which the last means 'no label'",)
    if schedulers.clips(recipe) and not scheduler.get("clip_sample"):
        notes += ("diffusers does not clip x0 to the range of pixels, unlike sampling.clip here",)
    if recipe.sampling.threshold is not None:
        notes += ("the exported scheduler clips x0 plainly or not at all, unlike sampling.threshold here",)
    pipeline, parts = _pipeline(scheduler["_class_name"], recipe.conditioning, isinstance(codec, Latents))
    with disk(folder):
        for part in ("unet", "scheduler", *(part for part in parts if part in ("vae", "vqvae"))):
            (folder / part).mkdir(parents=True, exist_ok=True)
        for part in (part for part in parts if part in ("text_encoder", "tokenizer")):
            assert isinstance(recipe.conditioning, PretrainedConditioning)
            copy_flat(Path(recipe.conditioning.path) / part, folder / part, SUFFIXES)
            files.without_auto_map(folder / part)
    _json(folder / "unet" / "config.json", config)
    write_tensors(folder / "unet" / WEIGHTS, weights)
    _json(folder / "scheduler" / "scheduler_config.json", scheduler)
    if isinstance(codec, Latents):
        made_with = options(read_recipe(run.path / "autoencoder").network)
        where = folder / next(part for part in parts if part in ("vae", "vqvae"))
        _write_autoencoder(codec.autoencoder, made_with, where, recipe.shape or ())
    index = {"_class_name": pipeline, "unet": ["diffusers", config["_class_name"]]}
    _json(folder / "model_index.json", {**index, "scheduler": ["diffusers", scheduler["_class_name"]], **parts})
    write_whole(folder / carried.NAME, carried.write(recipe))
    write_whole(folder / "README.md", card(run, notes).encode())
    return notes


def fit(recipe: Recipe) -> dict[str, Any]:
    """Return the configuration of the scheduler with which diffusers samples a recipe's model.

    Args:
        recipe: The recipe; whether its pictures are square is checked once their shape is known.

    Raises: UserError: If diffusers cannot represent the model, with the reason.
    """
    if not recipe.objective.denoises:
        raise UserError(f"only denoisers can be exported to diffusers, not the objective {recipe.kind('objective')!r}")
    if recipe.objective.jumps:
        raise UserError("diffusers has no pipeline for a model that jumps to any time: export it to ONNX (`to` onnx)")
    if not isinstance(recipe.network, UNetSpec | ConditionalUNetSpec):
        raise names.unlike(type(recipe.network).__name__.removesuffix("Spec"))
    scheduler = schedulers.write(recipe)
    sides = (recipe.shape or (1, 1, 1))[1:]
    if len(sides) != 2 or sides[0] != sides[1]:
        raise UserError(f"diffusers' pipelines only generate square images, not {list(sides)}")
    if not isinstance(recipe.variance, FixedVariance):
        raise UserError("diffusers' pipelines do not support learned variances: train with variance=fixed to export")
    if not isinstance(recipe.conditioning, NoConditioning | ClassConditioning | PretrainedConditioning):
        raise UserError(
            "diffusers' pipelines are unconditional or conditioned on text encoded by CLIP: a model with "
            f"conditioning={recipe.kind('conditioning')} cannot be exported"
        )
    _pipeline(scheduler["_class_name"], recipe.conditioning, isinstance(recipe.codec, LatentCodec))
    return scheduler


def vacant(folder: Path) -> None:
    """Raise a UserError if a folder is not empty but for its lock."""
    if occupied(folder):
        raise UserError(f"{folder} already exists: choose a new folder")


def _pipeline(scheduler: str, conditioning: Conditioning, latent: bool) -> tuple[str, dict[str, Any]]:
    """Return the pipeline class for a model, and its parts other than U-Net and scheduler."""
    if isinstance(conditioning, PretrainedConditioning):
        if not latent:
            raise UserError("diffusers' text-to-image pipelines work in latents: train with codec=latents to export")
        parts: dict[str, Any] = {"vae": ["diffusers", "AutoencoderKL"]}
        parts |= {"text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"]}
        return "StableDiffusionPipeline", {**parts, "safety_checker": [None, None], "feature_extractor": [None, None]}
    if latent:
        return "LDMPipeline", {"vqvae": ["diffusers", "AutoencoderKL"]}
    if scheduler in UNFIT:
        raise UserError(
            f"diffusers' pixel pipelines do not work with {scheduler}: set solver to ddim, ancestral or dpmpp-2m"
        )
    return ("DDIMPipeline" if scheduler == "DDIMScheduler" else "DDPMPipeline"), {}


def _write_autoencoder(
    autoencoder: Autoencoder, made_with: Mapping[str, Any], folder: Path, shape: tuple[int, ...]
) -> None:
    """Write an autoencoder with a scaling factor of 1: shift and scale per channel are folded into its convolutions.

    With m the mean, z = (m - shift)·scale. The 1×1 convolution after the encoder then returns z and log var +
    2·log(scale) instead of m and log var, and the one before the decoder takes z instead of m.
    """
    weights = names.theirs(autoencoder)
    shift, scale = autoencoder.shift.flatten(), autoencoder.scale.flatten()
    config = configs.config_of(autoencoder, made_with, shape[0], shape[1])
    if bool((shift == 0).all()) and bool((scale == scale[0]).all()):
        config["scaling_factor"] = float(scale[0])
        config |= {"use_quant_conv": made_with["quant"], "use_post_quant_conv": made_with["post_quant"]}
    else:
        weights |= _folded(weights, shift, scale)
    _json(folder / "config.json", config)
    write_tensors(folder / WEIGHTS, weights)


def _folded(weights: dict[str, Tensor], shift: Tensor, scale: Tensor) -> dict[str, Tensor]:
    """Return the two 1×1 convolutions with shift and scale folded in."""
    latent = len(shift)
    plain: dict[str, Tensor] = {}
    for name, size in (("quant_conv", 2 * latent), ("post_quant_conv", latent)):
        plain[f"{name}.weight"] = weights.get(f"{name}.weight", torch.eye(size)[..., None, None])
        plain[f"{name}.bias"] = weights.get(f"{name}.bias", torch.zeros(size))
    rows = torch.cat([scale, torch.ones(latent)])
    offset = torch.cat([-shift * scale, 2 * scale.log()])
    quant = plain["quant_conv.weight"] * rows[:, None, None, None]
    bias = plain["post_quant_conv.bias"] + plain["post_quant_conv.weight"][..., 0, 0] @ shift
    return {
        "quant_conv.weight": quant,
        "quant_conv.bias": plain["quant_conv.bias"] * rows + offset,
        "post_quant_conv.weight": plain["post_quant_conv.weight"] / scale[:, None, None],
        "post_quant_conv.bias": bias,
    }


def _json(path: Path, plain: dict[str, Any]) -> None:
    """Write a configuration."""
    write_whole(path, (json.dumps(plain, indent=2) + "\n").encode())
