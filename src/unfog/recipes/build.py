"""Building data, codec and models from a recipe."""

import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from unfog.data.buckets import shapes_of
from unfog.data.codecs import Codec
from unfog.data.pictures import sides_of
from unfog.data.source import Data, MissingDataError
from unfog.diffusion.denoiser import Denoiser
from unfog.networks.autoencoder import Autoencoder
from unfog.networks.conditioning import Embedder
from unfog.networks.critic import Critic, Criticised
from unfog.networks.layers import Network, ScalarEmbedding
from unfog.recipes.conditions import Beside, Known, captions
from unfog.recipes.recipe import VALUES, Fitted, Recipe
from unfog.recipes.settings import LearnedVariance
from unfog.recipes.sources import Folder, Looking
from unfog.runtime.errors import UserError
from unfog.runtime.files import MOST_JSON

Model = TypeVar("Model")
PROMPTS = 64
"""Captions that a recipe keeps as examples, at most."""
PARAMETERS, TENSORS = 1_000_000_000, 10_000
"""Most parameters of a model, and most tensors that hold them."""


def build_data(recipe: Recipe, data: Data | None = None) -> tuple[Recipe, Data]:
    """Read the data unless they are given; return the recipe with what they say filled in, and the data.

    That is shape, classes, captions, and the number of images of a length in epochs.

    Raises: UserError: If they are missing, damaged or too few, or their classes are too many for a recipe.
    """
    if data is None and isinstance(recipe.data, Looking):
        recipe = replace(recipe, data=recipe.data.looked())
    data = _read(recipe) if data is None else data
    every = shapes_of(data.train)
    filled = replace(
        recipe, shape=data.train.shape, classes=data.train.classes, shapes=tuple(one.shape for one in every[1:])
    )
    if isinstance(recipe.data, Folder):  # the scale and the shapes of a run stay, whatever is added to its data
        span = getattr(getattr(data.train, "source", data.train), "span", None)
        spec = recipe.data if span is None else replace(recipe.data, range=tuple(span))
        if isinstance(spec.buckets, int) and spec.buckets > 1:
            spec = replace(spec, buckets=tuple((one.shape[1], one.shape[2]) for one in every))
        filled = replace(filled, data=spec)
    if isinstance(recipe.conditioning, Beside):
        filled = replace(filled, conditioning=recipe.conditioning.beside(recipe.data))
    if isinstance(recipe.codec, Fitted):
        filled = replace(filled, codec=recipe.codec.fitted(data, filled.modality))
    if (epochs := recipe.training.epochs) is not None:
        filled = filled.set(f"training.images={max(1, round(epochs * sum(map(len, every))))}", "training.epochs=null")
    if recipe.conditioning.captioned:
        rows = np.linspace(0, len(data.heldout) - 1, min(len(data.heldout), PROMPTS)).astype(np.int64)
        prompts = captions(data.heldout.take(rows), filled.classes)
        filled = replace(filled, prompts=tuple(dict.fromkeys(prompts)))
    if len(filled.to_json()) > MOST_JSON:
        raise UserError(
            f"the names of {len(filled.classes):,} classes, or the captions, do not fit into a recipe of "
            f"{MOST_JSON:,} bytes: make them fewer or shorter"
        )
    return filled, data


def _read(recipe: Recipe) -> Data:
    """Read the data that a recipe names; for a run, whose recipe has a shape, say what helps there."""
    try:
        return recipe.data.build()
    except MissingDataError as error:
        if recipe.shape is None:
            raise
        cure = "the run was trained on it; put it back where it was, or change the path in the run's recipe.json"
        raise MissingDataError(error.what, cure) from error


def stored_shape(recipe: Recipe) -> tuple[int, ...]:
    """Return the shape of a stored row, which `build_data` filled in."""
    assert recipe.shape is not None, "build_data comes first"
    return recipe.shape


def build_codec(recipe: Recipe) -> Codec:
    """Return the codec.

    Raises: UserError: If it needs an autoencoder that is missing or does not fit the data.
    """
    return recipe.codec.build(stored_shape(recipe))


def known_of(recipe: Recipe) -> Known:
    """Return what a model of the recipe knows about its data."""
    stored = stored_shape(recipe)
    return Known(build_codec(recipe).shape(stored), recipe.classes, recipe.prompts, stored, recipe.modality)


def resized(recipe: Recipe, size: int | tuple[int, int]) -> Recipe:
    """Return the recipe of a run as that of a model of pictures of another size; warn if it was not trained on any.

    Args:
        recipe: The recipe.
        size: Side, or (height, width).

    Raises: UserError: If the rows are no pictures, or the network does not fit such a size.
    """
    channels, *sides = stored_shape(recipe)
    if not recipe.modality.pixels or len(sides) != 2:
        raise UserError(f"a size goes with pictures, and the model was trained on {recipe.rows}: omit `size`")
    shape = (channels, *(sides_of(size) or sides))
    trained = (stored_shape(recipe), *recipe.shapes)
    changed = replace(recipe, shape=shape)
    weightless(changed)
    if shape not in trained:
        known = ", ".join(f"{width}x{height}" for _, height, width in trained)
        warnings.warn(
            f"pictures of {shape[2]}x{shape[1]} can repeat or miss things: the model was trained on {known}",
            stacklevel=3,
        )
    return changed


def build_model(recipe: Recipe, most: int = PARAMETERS) -> nn.Module:
    """Return the model that the recipe's objective trains, with freshly drawn weights.

    Args:
        recipe: The recipe, with its shape filled in.
        most: Most parameters that it may have.

    Raises: UserError: If the parts do not fit together, or it would be too large.
    """
    return recipe.objective.build(recipe, most)


def build_denoiser(
    recipe: Recipe, most: int = PARAMETERS, *, span: bool = False, guidance: tuple[float, float] | None = None
) -> Denoiser:
    """Return the denoiser with freshly drawn weights, a function of the recipe alone.

    Args:
        recipe: The recipe, with its shape filled in.
        most: Most parameters that it may have.
        span: Whether it is a flow map.
        guidance: The lowest and the highest scale of guidance that it takes as a number, if it does.

    Raises: UserError: If shape, schedule and target do not fit together, or it would be too large.
    """
    inputs = recipe.inputs
    numbers = (0.0, 1.0) if span else None, guidance
    network, embedder, changes, told = drawn(recipe, most, partial(_parts, recipe, known_of(recipe), numbers))
    return Denoiser(
        network,
        recipe.schedule,
        recipe.target,
        embedder=embedder,
        input_scale=inputs.input_scale,
        network_time=inputs.network_time,
        sigma_data=inputs.sigma_data,
        learned_variance=isinstance(recipe.variance, LearnedVariance),
        changes=changes,
        span=told[0],
        guidance=told[1],
    )


def build_autoencoder(recipe: Recipe, most: int = PARAMETERS, *, criticised: bool = False) -> Criticised:
    """Return the autoencoder with freshly drawn weights, and its critic if it has one.

    Raises: UserError: If the network does not fit pictures of this shape, or would be too large.
    """
    return drawn(recipe, most, partial(_autoencoder, recipe, criticised))


def drawn(recipe: Recipe, most: int, build: Callable[[], Model]) -> Model:
    """Return the model of `build` with weights drawn from the recipe's seed, after checking its size.

    Raises: UserError: If it would have more than `most` parameters, or batches hold too many numbers.
    """
    _check_batches(recipe)
    with torch.random.fork_rng():
        _check_parameters(recipe, most, build)
        torch.manual_seed(recipe.seed & (2**64 - 1))
        return build()


def weightless(recipe: Recipe) -> nn.Module:
    """Return the model that the recipe's objective trains on the meta device: of any size, without numbers.

    Raises: UserError: If the parts do not fit together, or it would be too large.
    """

    def emptied(module: nn.Module, name: str, parameter: nn.Parameter) -> nn.Parameter:
        return nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)

    hook = register_module_parameter_registration_hook(emptied)  # type: ignore[arg-type]  # what it returns is taken
    try:
        with Undrawn():
            return build_model(recipe).to("meta")
    finally:
        hook.remove()


def _parts(
    recipe: Recipe, known: Known, numbers: Iterable[tuple[float, float] | None]
) -> tuple[Network, Embedder | None, nn.Linear | None, list[ScalarEmbedding | None]]:
    """Return the modules of a denoiser: the network, and what embeds condition, augmentation and further numbers."""
    channels, conditioning = known.shape[0], recipe.conditioning
    network = recipe.network.build(
        channels=channels + conditioning.planes(known),
        outputs=(1 + isinstance(recipe.variance, LearnedVariance)) * channels,
        dims=len(known.shape) - 1,
        context=conditioning.context,
    )
    if isinstance(network, Autoencoder):
        raise UserError("network=autoencoder goes with objective=reconstruction: use the recipe 'autoencoder'")
    stored = stored_shape(recipe)
    multiple = network.multiple * math.prod(stored[1:2]) // math.prod(known.shape[1:2])
    for shape in (stored, *recipe.shapes):
        _check_sides(recipe, multiple, shape)
    embedder, told = conditioning.build(known, network.embedding_dim), recipe.augment.told
    changes = nn.Linear(told, network.embedding_dim, bias=False) if told else None
    return (
        network,
        embedder,
        changes,
        [ScalarEmbedding(network.embedding_dim, *one) if one else None for one in numbers],
    )


def _autoencoder(recipe: Recipe, criticised: bool) -> Criticised:
    """Return the autoencoder, with a critic if wanted."""
    shape = stored_shape(recipe)
    dims = len(shape) - 1
    network: object = recipe.network.build(channels=shape[0], outputs=shape[0], dims=dims, context=None)
    if not isinstance(network, Autoencoder):
        raise UserError(f"objective=reconstruction trains network=autoencoder, not {recipe.kind('network')!r}")
    for one in (shape, *recipe.shapes):
        _check_sides(recipe, network.multiple, one)
    return Criticised(network, Critic(shape[0], dims=dims) if criticised else None)


def _check_batches(recipe: Recipe) -> None:
    """Raise a UserError if a batch would hold too many numbers."""
    shape = max((stored_shape(recipe), *recipe.shapes), key=math.prod)
    for name, batch in (("training", recipe.training.batch), ("sampling", recipe.sampling.portion)):
        if batch * math.prod(shape) > VALUES:
            sides = "×".join(map(str, shape))
            raise UserError(f"{name}.batch={batch} rows of {sides} are more than {VALUES:,} numbers: lower it")


def _check_parameters(recipe: Recipe, most: int, build: Callable[[], object]) -> None:
    """Raise a UserError for more than `most` parameters; they are counted on the meta device, without memory."""
    parameters = tensors = 0

    def count(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
        nonlocal parameters, tensors
        parameters, tensors = parameters + parameter.numel(), tensors + 1
        if parameters > most or tensors > TENSORS:
            raise UserError(
                f"the recipe asks for more than {most:,} parameters, or more than {TENSORS:,} tensors of them: "
                f"make the network {recipe.kind('network')!r} smaller"
            )

    hook = register_module_parameter_registration_hook(count)
    try:
        with torch.device("meta"), Undrawn():
            build()
    except (UserError, RuntimeError):  # any other error shows up in the actual build
        if parameters > most or tensors > TENSORS:
            raise
    finally:
        hook.remove()


def check_latents(recipe: Recipe, channels: int, factor: int) -> None:
    """Refuse pictures in whose latents the network cannot halve the sides, before an autoencoder is trained for them.

    Args:
        recipe: The recipe, with its shape filled in.
        channels: Channels of the latents.
        factor: How many times smaller their sides are.

    Raises: UserError: If the sides do not fit.
    """
    sizes = {"channels": channels, "outputs": channels, "dims": len(stored_shape(recipe)) - 1}
    with torch.device("meta"), Undrawn():
        network = recipe.network.build(**sizes, context=recipe.conditioning.context)
    for shape in (stored_shape(recipe), *recipe.shapes):
        _check_sides(recipe, factor * network.multiple, shape)


def _check_sides(recipe: Recipe, multiple: int, shape: tuple[int, ...]) -> None:
    """Raise a UserError if sides are no multiples of what the network, and latents where it works in them, need."""
    for side in shape[1:]:
        if side % multiple:
            low, high = side // multiple * multiple, -(-side // multiple) * multiple
            near = f"{low} or {high}" if low else str(high)
            raise UserError(
                f"the network {recipe.kind('network')!r} needs sides that are multiples of {multiple}, not {side}: "
                f"use {near} (`size`, or data.size, where the data are files), or another network"
            )


class Undrawn(TorchFunctionMode):
    """Skips the initialisation of weights, for models that get others, or none.

    It takes most of the time in which a model is built; on the meta device it loads torch's compiler.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function, unless it belongs to torch.nn.init."""
        if getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))
