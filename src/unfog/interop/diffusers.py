"""Import of diffusers models as run folders, without diffusers: networks, autoencoders, text encoders, schedulers."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unfog.data.codecs import Pixels
from unfog.diffusion.solvers import DDIM, Ancestral, Solver
from unfog.diffusion.times import DiscreteTimes, Uniform
from unfog.interop import configs, files, names, schedulers
from unfog.networks.autoencoder import Autoencoder
from unfog.recipes.conditions import ClassConditioning, Conditioning, NoConditioning
from unfog.recipes.latents import LatentCodec, weights_of
from unfog.recipes.networks import NetworkSpec, UNetSpec
from unfog.recipes.recipe import CodecSpec, Recipe
from unfog.recipes.settings import FixedVariance, Inputs, LearnedVariance, Sampling
from unfog.recipes.sources import Elsewhere
from unfog.recipes.text_encoders import ENCODER_FILES, ENCODERS, PretrainedConditioning
from unfog.runtime.contained import copy_flat
from unfog.runtime.errors import UserError
from unfog.runtime.files import disk, locked, write_whole
from unfog.runtime.tensors import write_tensors
from unfog.training.objectives.reconstruction import Reconstruction

IGNORED = ("safety_checker", "feature_extractor", "image_encoder")
"""Parts of pipelines that are ignored."""
KNOWN = ("unet", "scheduler", "vae", "vqvae", "text_encoder", "tokenizer", *IGNORED)


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


def import_model(source: str, out: Path, trust: Path | None = None) -> Imported:
    """Import a diffusers model as a run folder.

    Args:
        source: The model's folder, or its name on the hub.
        out: The new run folder.
        trust: A pickle of weights that may be loaded.

    Returns: The imported model.
    Raises: UserError: If the folder is not a model, or has unsupported parts or options, or `out` is taken.
        EnvironmentFailure: If the network or the disk fails.
    """
    with locked(out), files.meant(source):
        return _import(source, out, trust)


def _import(source: str, out: Path, trust: Path | None) -> Imported:
    """Import a model; values are not checked."""
    if (out / "model.safetensors").exists() or (out / "checkpoints").exists():
        raise UserError(f"{out} already contains a run: choose another folder")
    folder = files.found(source)
    if not (folder / "model_index.json").is_file() and (folder / "config.json").is_file():
        return _autoencoder_alone(folder, out, trust)
    index = _index(folder)
    where = folder / "unet" if (folder / "unet").is_dir() else folder
    given = files.config(where / "config.json")
    network = configs.network(given, str(where / "config.json"))
    place = folder / "scheduler" if (folder / "scheduler").is_dir() else folder
    sampled = schedulers.read(files.config(place / "scheduler_config.json"), str(place / "scheduler_config.json"))
    codec: CodecSpec = Pixels()
    coder, shape = None, _shape(given, str(where))
    kind = next((name for name in ("vae", "vqvae") if index.get(name)), None)
    if kind:
        coder = _autoencoder(folder / kind, trust)
        codec = LatentCodec(path="autoencoder")
        shape = (coder.made.channels, *(side * coder.made.factor for side in shape[1:]))
    conditioning, classes, embedder = _conditioning(folder, index, given, network)
    notes = sampled.notes + tuple(f"{name} is ignored" for name in IGNORED if index.get(name))
    recipe = Recipe(
        str(index.get("_class_name", "imported")),
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
    channels = given.get("in_channels", 4 if kind else 3)
    tensors = _denoiser(network, channels, files.weights(where, trust), str(where), embedder)
    _write(out, recipe, tensors, coder)
    if isinstance(conditioning, PretrainedConditioning):
        for name in ("text_encoder", "tokenizer"):
            copy_flat(folder / name, out / "text" / name, ENCODER_FILES)
    return Imported(recipe, sum(tensor.numel() for tensor in tensors.values()), notes)


def _index(folder: Path) -> dict[str, Any]:
    """Return the class of each part of a pipeline, by name, and the pipeline's own class."""
    if not (folder / "model_index.json").is_file():
        raise UserError(f"{folder} is not a diffusers folder: it has no model_index.json and no config.json")
    index = files.config(folder / "model_index.json")
    parts: dict[str, Any] = {"_class_name": index.get("_class_name")}
    for name, value in index.items():
        if isinstance(value, list) and len(value) == 2 and value[1] is not None:
            if name not in KNOWN:
                raise UserError(
                    f"{folder / 'model_index.json'}: the part {name} ({value[1]}) of {index.get('_class_name')} is not "
                    f"supported, only {', '.join(KNOWN)}"
                )
            parts[name] = str(value[1])
    for name in ("unet", "scheduler"):
        if name not in parts:
            raise UserError(f"{folder / 'model_index.json'} has no {name}: only pipelines with a U-Net are supported")
    return parts


def _shape(given: dict[str, Any], where: str) -> tuple[int, ...]:
    """Return the shape of a state."""
    size = given.get("sample_size")
    sides = size if isinstance(size, list) else [size, size]
    if len(sides) != 2 or not all(isinstance(side, int) and 0 < side <= 4096 for side in sides):
        raise UserError(f"{where}: sample_size must be one or two sides, not {size!r}: set it in config.json")
    return (int(given.get("in_channels", 3)), *sides)


def _conditioning(
    folder: Path, index: dict[str, Any], given: dict[str, Any], network: NetworkSpec
) -> tuple[Conditioning, tuple[str, ...], str | None]:
    """Return the conditioning, the names of the classes, and diffusers' name of the class embedding."""
    classes = given.get("num_class_embeds")
    if isinstance(network, UNetSpec):
        if classes is None:
            return NoConditioning(), (), None
        return (
            ClassConditioning(),
            tuple(str(number) for number in range(classes)),
            "class_embedding.weight",
        )
    if index.get("text_encoder") not in ENCODERS.values():
        raise UserError(
            f"{folder}: a UNet2DConditionModel must be conditioned on text, and the text encoder "
            f"{index.get('text_encoder')} is not supported, only {', '.join(dict.fromkeys(ENCODERS.values()))}"
        )
    encoder = PretrainedConditioning(path=str(folder))
    if encoder.context != given.get("cross_attention_dim", 1280):
        raise UserError(
            f"{folder}: the text encoder produces tokens of length {encoder.context}, but the U-Net expects "
            f"{given.get('cross_attention_dim', 1280)}"
        )
    return PretrainedConditioning(path="text"), (), None


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


def _denoiser(
    config: NetworkSpec, channels: int, theirs: dict[str, Tensor], where: str, embedder: str | None
) -> dict[str, Tensor]:
    """Return the weights of a denoiser with our names."""
    table = theirs.pop(embedder, None) if embedder else None
    context = theirs.get("mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight")
    with torch.device("meta"):
        network: object = config.build(
            channels=channels,
            outputs=len(theirs.get("conv_out.weight", torch.empty(channels))),
            dims=2,
            context=None if context is None else context.shape[1],
        )
    assert isinstance(network, nn.Module)
    weights = {f"network.{name}": tensor for name, tensor in names.ours(theirs, network, where).items()}
    if embedder:
        if table is None:
            raise UserError(f"{where} lacks {embedder}: weights and config do not match")
        # diffusers has no null class: a zero vector adds nothing to the time embedding
        weights["embedder.table.weight"] = torch.cat([table.float(), torch.zeros(1, table.shape[1])])
    return weights


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
    channels = given.get("in_channels", 3)
    with torch.device("meta"):  # so that a mismatch is found before memory is allocated
        sketch: object = config.build(channels=channels, outputs=channels, dims=2, context=None)
    if not isinstance(sketch, Autoencoder):
        raise UserError(f"{folder} contains a {given.get('_class_name')}, but an AutoencoderKL is needed")
    weights = names.ours(files.weights(folder, trust), sketch, str(folder))
    autoencoder: object = config.build(channels=channels, outputs=channels, dims=2, context=None)
    assert isinstance(autoencoder, Autoencoder)
    autoencoder.load_state_dict(weights, strict=False)
    scale, shift = given.get("scaling_factor", 0.18215), given.get("shift_factor") or 0.0
    numbers = all(isinstance(value, int | float) and math.isfinite(value) for value in (scale, shift))
    if not numbers or not scale:
        raise UserError(f"{folder / 'config.json'}: scaling_factor and shift_factor must be numbers, the first not 0")
    autoencoder.scale.fill_(scale)
    autoencoder.shift.fill_(shift)
    return Coder(config, autoencoder.eval(), int(given.get("sample_size", 32)))


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
