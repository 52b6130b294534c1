"""Import of diffusers models as run folders, without diffusers: networks, autoencoders, text encoders, schedulers."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unfog.data.codecs import Pixels
from unfog.diffusion.solvers import DDIM, Ancestral, Solver
from unfog.diffusion.times import DiscreteTimes, Uniform
from unfog.interop import carried, configs, files, folders, names, schedulers
from unfog.interop.trial import tried
from unfog.networks.autoencoder import Autoencoder
from unfog.recipes.conditions import ClassConditioning, Conditioning, NoConditioning
from unfog.recipes.latents import LatentCodec, weights_of
from unfog.recipes.networks import NetworkSpec, UNetSpec
from unfog.recipes.recipe import CodecSpec, Recipe
from unfog.recipes.settings import FixedVariance, Inputs, LearnedVariance, Sampling
from unfog.recipes.sources import Elsewhere
from unfog.recipes.text_encoders import ENCODERS, PretrainedConditioning
from unfog.runtime.brief import brief
from unfog.runtime.contained import copy_flat
from unfog.runtime.errors import UserError
from unfog.runtime.files import LOCK, check_name, disk, locked, occupied, write_whole
from unfog.runtime.hub import SUFFIXES
from unfog.runtime.tensors import write_tensors
from unfog.training.objectives.reconstruction import Reconstruction

CLASS_TABLE = "class_embedding.weight"
SIDE, LARGEST = 4096, 1e6
"""The longest side of a state, and the largest scale and shift of latents."""
STAGING = ".importing"
"""Folder inside the new run in which it is written and tried out."""


@dataclass(frozen=True)
class Imported:
    """An imported model.

    Attributes:
        recipe: Our recipe for it.
        parameters: Number of parameters of the denoiser.
        notes: Differences from the original pipeline.
    """

    recipe: Recipe
    parameters: int
    notes: tuple[str, ...]
    __repr__ = brief


def import_model(source: str, out: Path, trust: Path | None = None) -> Imported:
    """Import a diffusers model as a run folder.

    Args:
        source: The model's folder, or its name on the hub.
        out: The new run folder.
        trust: A pickle of weights that may be loaded.

    Returns: The imported model.
    Raises: UserError: If the folder is not a model, has unsupported parts or options or weights that are not finite,
        does not run, or `out` is taken.
        EnvironmentFailure: If the network or the disk fails.
    """
    check_name(out)
    with locked(out), files.meant(source):
        if (out / "model.safetensors").exists() or (out / "checkpoints").exists():
            raise UserError(f"{out} already contains a run: choose another folder")
        if occupied(out) and any(one.name not in (STAGING, LOCK) for one in out.iterdir()):
            raise UserError(f"{out} is not empty: choose a new folder")
        staging = out / STAGING
        try:
            with disk(staging):
                shutil.rmtree(staging, ignore_errors=True)
                staging.mkdir()
            found = _import(source, staging, trust)
            found = replace(found, notes=found.notes + tried(staging, source))
            with disk(out):
                for one in sorted(staging.iterdir(), key=lambda path: path.name == "recipe.json"):
                    one.rename(out / one.name)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return found


def _import(source: str, out: Path, trust: Path | None) -> Imported:
    """Import a model; values are not checked."""
    folder = files.found(source)
    if _holds_autoencoder(folder):
        return _autoencoder_alone(folder, out, trust)
    parts = folders.model(folder)
    folder, where, index = parts.folder, parts.unet, parts.index
    given = files.config(where / "config.json")
    network = configs.network(given, str(where / "config.json"))
    if given["_class_name"] not in folders.NETWORKS:
        raise UserError(f"{where} contains a {given['_class_name']}, but a U-Net is needed")
    sampled = schedulers.read(parts.scheduler, str(folder / "scheduler"))
    codec: CodecSpec = Pixels()
    coder, shape = None, _shape(given, str(where))
    _check_channels(given, shape[0], sampled, str(where / "config.json"))
    kind = next((name for name in ("vae", "vqvae") if index.get(name)), None)
    if kind:
        coder = _autoencoder(folder / kind, trust)
        codec = LatentCodec(path="autoencoder")
        if coder.made.latent != shape[0]:
            raise UserError(
                f"{folder / kind}: its latents have {coder.made.latent} channels, but the U-Net takes {shape[0]}: "
                "the two belong to different models"
            )
        shape = (coder.made.channels, *(side * coder.made.factor for side in shape[1:]))
    weights = files.weights(where, trust)
    conditioning, classes, table = _conditioning(parts, given, network, weights)
    tensors = _denoiser(network, _channels(given), weights, str(where)) | table
    recipe = Recipe(
        str(index.get("_class_name") or given["_class_name"]),
        data=Elsewhere(),
        network=network,
        codec=codec,
        conditioning=conditioning,
        inputs=Inputs(network_time=sampled.network_time),
        schedule=sampled.schedule,
        target=sampled.target,
        variance=LearnedVariance() if _learned(sampled.solver) else FixedVariance(),
        times=Uniform() if sampled.network_time == "thousand" else DiscreteTimes(),
        solver=sampled.solver,
        grid=sampled.grid,
        sampling=_sampling(sampled, conditioning, coder is not None),
        shape=shape,
        classes=classes,
    )
    recipe, notes = carried.restored(recipe, folder, parts.scheduler)
    notes = sampled.notes + parts.notes + notes
    _write(out, recipe, tensors, coder)
    if isinstance(conditioning, PretrainedConditioning):
        for name in ("text_encoder", "tokenizer"):
            left = copy_flat(folder / name, out / "text" / name, SUFFIXES)
            notes += tuple(f"{name}/{one} is not used" for one in left)
        files.without_auto_map(out / "text")
    return Imported(recipe, sum(tensor.numel() for tensor in tensors.values()), notes)


def _holds_autoencoder(folder: Path) -> bool:
    """Return whether a folder holds a network that is no denoiser, by itself."""
    if (folder / "model_index.json").is_file() or not (folder / "config.json").is_file():
        return False
    return files.config(folder / "config.json").get("_class_name") not in folders.NETWORKS


def _channels(given: Mapping[str, Any]) -> int:
    """Return the channels that a U-Net takes."""
    default = 4 if given["_class_name"] == "UNet2DConditionModel" else 3
    return configs.whole(given, "in_channels", default, configs.WIDEST, "the U-Net's config.json")


def _check_channels(given: Mapping[str, Any], channels: int, sampled: schedulers.Sampled, where: str) -> None:
    """Raise a UserError unless a U-Net takes a state and returns one, or one with a learned variance."""
    outputs = configs.whole(given, "out_channels", channels, configs.WIDEST, where)
    if outputs == channels * (1 + _learned(sampled.solver)):
        return
    if outputs == 2 * channels or _learned(sampled.solver):
        raise UserError(
            f"{where}: it returns {outputs} channels for {channels}, which does not fit its scheduler: twice as many "
            "belong to a learned variance, DDPMScheduler with variance_type=learned_range"
        )
    raise UserError(
        f"{where}: the U-Net takes {channels} channels and returns {outputs}, so it needs a picture and a mask or the "
        "like next to the noisy state, which is not supported: import the model for text to image instead, whose runs "
        "`unfog edit inpaint` works with"
    )


def _shape(given: Mapping[str, Any], where: str) -> tuple[int, ...]:
    """Return the shape of a state."""
    size = given.get("sample_size")
    sides = size if isinstance(size, list) else [size, size]
    if len(sides) != 2 or not all(type(side) is int and 0 < side <= SIDE for side in sides):
        raise UserError(f"{where}: sample_size must be one or two sides, not {size!r:.60}: set it in config.json")
    return (_channels(given), *sides)


def _conditioning(
    parts: folders.Model, given: Mapping[str, Any], network: NetworkSpec, weights: dict[str, Tensor]
) -> tuple[Conditioning, tuple[str, ...], dict[str, Tensor]]:
    """Return the conditioning, the names of the classes, and the table of classes, taken from the weights."""
    if isinstance(network, UNetSpec):
        if given.get("num_class_embeds") is None:
            return NoConditioning(), (), {}
        return ClassConditioning(), *_classes(parts, given, network, weights)
    folder, index = parts.folder, parts.index
    if not parts.entries:
        raise UserError(
            f"{parts.unet}: a UNet2DConditionModel needs the rest of its pipeline, and there is no model_index.json in "
            f"{folder} or above: put it into the `unet` of a whole pipeline"
        )
    if index.get("text_encoder") not in ENCODERS.values():
        raise UserError(
            f"{folder}: a UNet2DConditionModel must be conditioned on text, and the text encoder "
            f"{index.get('text_encoder')} is not supported, only {', '.join(dict.fromkeys(ENCODERS.values()))}"
        )
    encoder = PretrainedConditioning(path=str(folder))
    context = configs.whole(given, "cross_attention_dim", 1280, configs.WIDEST, str(parts.unet / "config.json"))
    if encoder.context != context:
        raise UserError(
            f"{folder}: the text encoder produces tokens of length {encoder.context}, but the U-Net expects {context}"
        )
    return PretrainedConditioning(path="text"), (), {}


def _classes(
    parts: folders.Model, given: Mapping[str, Any], network: UNetSpec, weights: dict[str, Tensor]
) -> tuple[tuple[str, ...], dict[str, Tensor]]:
    """Return the names of the classes, and the table of their vectors with that of the null class as its last."""
    where, width = str(parts.unet), 4 * network.widths[0]
    table = weights.pop(CLASS_TABLE, None)
    if table is None:
        raise UserError(f"{where} lacks {CLASS_TABLE}: weights and config do not match")
    if tuple(table.shape) != (given["num_class_embeds"], width):
        raise UserError(
            f"{where}: {CLASS_TABLE} has the shape {tuple(table.shape)} where its config expects "
            f"{(given['num_class_embeds'], width)}: weights and config do not match"
        )
    vectors = names.finite(table, CLASS_TABLE, where)
    classes, null = carried.classes(parts.folder, parts.entries, given, len(vectors))
    if not null:  # diffusers has no null class: a zero vector adds nothing to the time embedding
        vectors = torch.cat([vectors, torch.zeros(1, width)])
    return classes, {"embedder.table.weight": vectors}


def _sampling(sampled: schedulers.Sampled, conditioning: Conditioning, latent: bool) -> Sampling:
    """Return the default sampling settings."""
    ddpm = isinstance(sampled.solver, Ancestral)
    return Sampling(
        steps=(sampled.schedule.steps or 1000) if ddpm and not latent else 50,
        guidance=7.5 if isinstance(conditioning, PretrainedConditioning) else 1.0,
        clip=sampled.clip and not latent,
        keep_eps=isinstance(sampled.solver, DDIM),  # diffusers does not recompute eps after clipping x0
        batch=1 if latent else 16,
    )


def _denoiser(config: NetworkSpec, channels: int, theirs: dict[str, Tensor], where: str) -> dict[str, Tensor]:
    """Return the weights of a denoiser with our names."""
    names.check_depth(config, theirs, where)
    context = theirs.get("mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight")
    with torch.device("meta"):
        network: object = config.build(
            channels=channels,
            outputs=len(theirs.get("conv_out.weight", torch.empty(channels))),
            dims=2,
            context=None if context is None else context.shape[1],
        )
    assert isinstance(network, nn.Module)
    return {f"network.{name}": tensor for name, tensor in names.ours(theirs, network, where).items()}


def _learned(solver: Solver) -> bool:
    """Return whether a rule takes a learned variance."""
    return isinstance(solver, Ancestral) and solver.variance == "learned"


@dataclass(frozen=True)
class Coder:
    """An imported autoencoder.

    Attributes:
        config: Our configuration of the same topology.
        made: The autoencoder with its weights.
        side: Side of its images.
    """

    config: NetworkSpec
    made: Autoencoder
    side: int


def _autoencoder(folder: Path, trust: Path | None) -> Coder:
    """Import an autoencoder."""
    given = files.config(folder / "config.json")
    config = configs.network(given, str(folder / "config.json"))
    channels = configs.whole(given, "in_channels", 3, configs.WIDEST, str(folder / "config.json"))
    side = configs.whole(given, "sample_size", 32, SIDE, str(folder / "config.json"))
    theirs = files.weights(folder, trust)
    names.check_depth(config, theirs, str(folder))
    with torch.device("meta"):  # so that a mismatch is found before memory is allocated
        sketch: object = config.build(channels=channels, outputs=channels, dims=2, context=None)
    if not isinstance(sketch, Autoencoder):
        raise UserError(f"{folder} contains a {given.get('_class_name')}, but an AutoencoderKL is needed")
    weights = names.ours(theirs, sketch, str(folder))
    autoencoder: object = config.build(channels=channels, outputs=channels, dims=2, context=None)
    assert isinstance(autoencoder, Autoencoder)
    autoencoder.load_state_dict(weights, strict=False)
    scale, shift = given.get("scaling_factor", 0.18215), given.get("shift_factor")
    shift = 0.0 if shift is None else shift
    if not all(type(value) in (int, float) and abs(value) <= LARGEST for value in (scale, shift)) or scale <= 0:
        raise UserError(f"{folder / 'config.json'}: scaling_factor and shift_factor must be numbers, the first above 0")
    autoencoder.scale.fill_(scale)
    autoencoder.shift.fill_(shift)
    return Coder(config, autoencoder.eval(), side)


def _autoencoder_alone(folder: Path, out: Path, trust: Path | None) -> Imported:
    """Import an autoencoder as a run folder, so that models can be trained in its latents."""
    coder = _autoencoder(folder, trust)
    recipe = _coder_recipe(coder, (coder.made.channels, coder.side, coder.side))
    _write(out, recipe, weights_of(coder.made), None)
    return Imported(recipe, sum(parameter.numel() for parameter in coder.made.parameters()), ())


def _coder_recipe(coder: Coder, shape: tuple[int, ...]) -> Recipe:
    """Return the recipe of an autoencoder."""
    return Recipe(
        "AutoencoderKL",
        data=Elsewhere(),
        network=coder.config,
        objective=Reconstruction(),
        conditioning=NoConditioning(),
        shape=shape,
    )


def _write(out: Path, recipe: Recipe, tensors: dict[str, Tensor], coder: Coder | None) -> None:
    """Write a run folder.

    Raises: EnvironmentFailure: If the disk fails.
    """
    if coder is not None:
        with disk(out):
            (out / "autoencoder").mkdir(exist_ok=True)
        inner = _coder_recipe(coder, recipe.shape or ())
        write_whole(out / "autoencoder" / "recipe.json", inner.to_json().encode())
        write_tensors(out / "autoencoder" / "model.safetensors", weights_of(coder.made))
    write_whole(out / "recipe.json", recipe.to_json().encode())
    write_tensors(out / "model.safetensors", tensors)
