"""A recipe: everything that a run needs, as named parts with typed options, and as JSON."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from unfog.data.codecs import Codec
from unfog.data.source import Data
from unfog.diffusion.denoiser import Denoiser
from unfog.networks.autoencoder import Autoencoder
from unfog.networks.conditioning import Embedder
from unfog.networks.critic import Critic
from unfog.networks.layers import Network
from unfog.recipes.conditions import Conditioning, Known, captions
from unfog.recipes.kinds import KINDS, Config, check_value, fits, part
from unfog.recipes.latents import Compressor, LatentCodec
from unfog.recipes.settings import Inputs, LearnedVariance, Reconstruction
from unfog.runtime.errors import UserError, unknown
from unfog.runtime.files import MOST_JSON, parse_json

VERSION = 1
"""Version of the recipe format."""
PATHS = (("codec", "path"), ("conditioning", "path"))
"""Options that name what lies in the run folder."""
PROMPTS = 64
"""Captions, at most, that a recipe keeps as examples."""
PARAMETERS, TENSORS = 1_000_000_000, 10_000
"""Parameters of a denoiser, and tensors that hold them, at most."""
VALUES = 1 << 28
"""Numbers in a batch of rows, at most: 1 GiB of them."""


@dataclass(frozen=True)
class Recipe:
    """Everything needed to run a training again, and to use its result.

    Attributes:
        name: The recipe's name.
        seed: Seed of every draw.
        shape: Shape of one row of the data; None until the data were looked at.
        classes: Names of the classes that the model was trained on.
        prompts: Some captions of held-out rows, for models that are told a text.
    """

    name: str
    data: Config
    network: Config
    augment: Config = part("augment", "flip-crop")
    codec: Config = part("codec", "pixels")
    objective: Config = part("objective", "denoising")
    conditioning: Config = part("conditioning", "classes")
    inputs: Config = part("inputs", "scaled")
    schedule: Config = part("schedule", "flow")
    target: Config = part("target", "flow")
    variance: Config = part("variance", "fixed")
    times: Config = part("times", "logit-normal")
    weighting: Config = part("weighting", "unit")
    optimizer: Config = part("optimizer", "adamw")
    ema: Config = part("ema", "power")
    training: Config = part("training", "images")
    solver: Config = part("solver", "dpmpp-2m")
    grid: Config = part("grid", "uniform")
    sampling: Config = part("sampling", "batches")
    seed: int = 0
    shape: tuple[int, ...] | None = None
    classes: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()

    def set(self, *settings: str) -> "Recipe":
        """Return the recipe with settings of the form `path=value` applied in turn.

        `schedule=cosine` chooses a kind with its defaults, `schedule.steps=500` sets an option, `seed=3` the
        seed. Values are parsed as JSON, else taken as text.

        Raises: UserError: For an unknown path (with the nearest right one) or a value of the wrong type.
        """
        recipe = self
        for setting in settings:
            path, equals, text = setting.partition("=")
            if not equals:
                raise UserError(f"--set takes path=value, for instance network.width=48, not {setting!r}")
            recipe = recipe._set(path.strip(), _parse(text))
        return recipe

    def _set(self, path: str, value: object) -> "Recipe":
        name, dot, option = path.partition(".")
        if path in ("seed", "name"):
            check_value(path, value, {"seed": int, "name": str}[path])
            return self._with(path, value)
        if name not in KINDS or (dot and option not in self._config(name).known):
            raise unknown("setting", path, self._paths())
        config = self._config(name)
        if dot:
            return self._with(name, Config(name, config.kind, {**config.options, option: value}))
        if not isinstance(value, str):
            raise UserError(f"{name} takes one of {', '.join(sorted(KINDS[name]))}, not {value!r}")
        return self._with(name, Config(name, value))

    def _with(self, name: str, value: Any) -> "Recipe":
        return replace(self, **{name: value})

    def _config(self, name: str) -> Config:
        config: Config = getattr(self, name)
        return config

    def _paths(self) -> list[str]:
        """Return every path that `set` takes."""
        options = [f"{name}.{option}" for name in KINDS for option in self._config(name).known]
        return ["seed", "name", *KINDS, *options]

    def beside(self, folder: Path, relative: bool = False) -> "Recipe":
        """Return the recipe with the paths of what lies in its run folder counted from there, or made absolute."""
        found = self
        for name, option in PATHS:
            config = self._config(name)
            path = config.options.get(option)
            if path:
                if relative and Path(path).resolve().is_relative_to(folder.resolve()):
                    path = Path(path).resolve().relative_to(folder.resolve()).as_posix()
                elif (folder / path).exists():
                    path = str(folder.resolve() / path)
                found = found._with(name, Config(name, config.kind, {**config.options, option: path}))
        return found

    def to_json(self) -> str:
        """Return the recipe as JSON text."""
        plain: dict[str, Any] = {"version": VERSION}
        for one in fields(self):
            value = getattr(self, one.name)
            plain[one.name] = value.to_json() if isinstance(value, Config) else value
        return json.dumps(plain, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Recipe":
        """Read a recipe; it can name registered kinds and nothing else.

        Raises: UserError: If it is damaged, from a newer version, or names something unknown.
        """
        try:
            plain = parse_json(text)
        except ValueError as error:
            raise UserError(f"the recipe is no JSON ({error})") from None
        if not isinstance(plain, dict) or not fits(plain.get("version"), int) or plain["version"] < 1:
            raise UserError("the recipe has no version: it is no recipe of unfog")
        if plain.pop("version") > VERSION:
            raise UserError(f"the recipe is of a newer version than {VERSION}: update unfog")
        known = {one.name for one in fields(cls)}
        for name in plain:
            if name not in known:
                raise unknown("recipe field", name, known)
        values: dict[str, Any] = {name: value for name, value in plain.items() if name not in KINDS}
        values.update({name: Config.from_json(name, value) for name, value in plain.items() if name in KINDS})
        shape = values.get("shape")
        check_value("shape", shape, list[int] | None)
        for name in ("classes", "prompts"):
            check_value(name, values.get(name, []), list[str])
            values[name] = tuple(values.get(name, []))
        check_value("seed", values.get("seed", 0), int)
        check_value("name", values.get("name"), str)
        if shape is not None and not (1 <= len(shape) <= 4 and min(shape) >= 1 and max(shape) <= VALUES):
            raise UserError(f"the recipe's shape {shape} is that of no data")
        values["shape"] = None if shape is None else tuple(shape)
        for name in ("data", "network"):
            if name not in values:
                raise UserError(f"the recipe names no {name}")
        return cls(**values)

    def build_data(self) -> tuple["Recipe", Data]:
        """Return the data, and the recipe with their shape, classes and some captions written in."""
        data: Data = self.data.build()
        found = replace(self, shape=data.train.shape, classes=data.train.classes)
        if self.conditioning.kind in ("text", "pretrained"):
            rows = np.linspace(0, len(data.heldout) - 1, min(len(data.heldout), PROMPTS)).astype(np.int64)
            prompts = captions(data.heldout.take(rows), found.classes)
            found = replace(found, prompts=tuple(dict.fromkeys(prompts)))
        if len(found.to_json()) > MOST_JSON:
            raise UserError(
                f"the names of {len(found.classes):,} classes, or the captions, are too long to be kept in a recipe of "
                f"{MOST_JSON:,} bytes: make them fewer or shorter"
            )
        return found, data

    @property
    def known(self) -> Known:
        """What the model knows of its data."""
        assert self.shape is not None, "build_data comes first"
        return Known(self.build_codec().shape(self.shape), self.classes, self.prompts, self.shape)

    def build_codec(self) -> Codec:
        """Return the codec.

        Raises: UserError: If it is one of latents, and their autoencoder is missing or does not fit the data.
        """
        made = self.codec.build()
        if isinstance(made, LatentCodec):
            assert self.shape is not None, "build_data comes first"
            made = made.build(self.shape)
        codec: Codec = made
        return codec

    @property
    def compresses(self) -> bool:
        """Whether an autoencoder is what is trained."""
        return isinstance(self.objective.build(), Reconstruction)

    def build_denoiser(self, most: int = PARAMETERS) -> Denoiser:
        """Return the denoiser with freshly drawn weights, a function of the recipe alone.

        Args:
            most: Parameters that it may have.

        Raises: UserError: If shape, schedule and target do not fit together, or it would be too large.
        """
        self._check_values()
        inputs: Inputs = self.inputs.build()
        build = partial(self._build_modules, self.known)
        with torch.random.fork_rng():
            self._check_parameters(most, build)
            torch.manual_seed(self.seed & (2**64 - 1))
            network, embedder = build()
            return Denoiser(
                network,
                self.schedule.build(),
                self.target.build(),
                embedder=embedder,
                input_scale=inputs.input_scale,
                network_time=inputs.network_time,
                sigma_data=inputs.sigma_data,
                learned_variance=isinstance(self.variance.build(), LearnedVariance),
            )

    def build_compressor(self, most: int = PARAMETERS) -> Compressor:
        """Return the autoencoder with freshly drawn weights, and its critic if it has one.

        Raises: UserError: If the network is none for pictures of this shape, or would be too large.
        """
        self._check_values()
        with torch.random.fork_rng():
            self._check_parameters(most, self._build_compressor)
            torch.manual_seed(self.seed & (2**64 - 1))
            return self._build_compressor()

    def _build_compressor(self) -> Compressor:
        """Return what has weights where an autoencoder is trained."""
        assert self.shape is not None
        objective: Reconstruction = self.objective.build()
        dims = len(self.shape) - 1
        network = self.network.build(channels=self.shape[0], dims=dims)
        if not isinstance(network, Autoencoder):
            raise UserError(f"objective=reconstruction trains network=autoencoder, not {self.network.kind!r}")
        self._check_sides(network.multiple, self.shape)
        return Compressor(network, Critic(self.shape[0], dims=dims) if objective.criticised else None)

    def compressing(self) -> "Recipe":
        """Return the recipe of the autoencoder in whose latents this one works."""
        settings: LatentCodec = self.codec.build()
        levels = settings.factor.bit_length() - 1
        widths = [settings.width, *[2 * settings.width] * levels]
        reports = self.training.options["reports"]
        return Recipe(
            f"{self.name}-autoencoder",
            data=self.data,
            augment=self.augment,
            network=part("network", "autoencoder", latent=settings.channels, widths=widths),
            objective=part("objective", "reconstruction"),
            conditioning=part("conditioning", "none"),
            optimizer=part("optimizer", "muon", lr=3e-3),
            training=part("training", "images", images=settings.images, batch=32, reports=min(4, reports)),
            seed=self.seed,
        )

    def _check_values(self) -> None:
        """Raise a UserError for batches that hold too many numbers."""
        assert self.shape is not None, "build_data comes first"
        for name in ("training", "sampling"):
            batch = getattr(self, name).options.get("batch", 1)
            if batch * math.prod(self.shape) > VALUES:
                shape = "×".join(map(str, self.shape))
                raise UserError(f"{name}.batch={batch} rows of {shape} are more than {VALUES:,} numbers: lower it")

    def _build_modules(self, known: Known) -> tuple[Network, Embedder | None]:
        """Return what has weights: the network, and the embedder of the condition."""
        channels = known.shape[0]
        told: Conditioning = self.conditioning.build()
        network: Network = self.network.build(
            channels=channels + told.planes(known),
            outputs=(1 + isinstance(self.variance.build(), LearnedVariance)) * channels,
            dims=len(known.shape) - 1,
            context=told.context,
        )
        if isinstance(network, Autoencoder):
            raise UserError("network=autoencoder goes with objective=reconstruction: use the recipe 'autoencoder'")
        self._check_sides(network.multiple, known.shape)
        return network, told.build(known, network.embedding_dim)

    def _check_parameters(self, most: int, build: Callable[[], object]) -> None:
        """Raise a UserError for more parameters than `most`: on torch's meta device they take no memory."""
        parameters = tensors = 0

        def count(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
            nonlocal parameters, tensors
            parameters, tensors = parameters + parameter.numel(), tensors + 1
            if parameters > most or tensors > TENSORS:
                raise UserError(
                    f"the recipe asks for more than {most:,} parameters, or more than {TENSORS:,} tensors of them: "
                    f"make the network {self.network.kind!r} smaller"
                )

        hook = register_module_parameter_registration_hook(count)
        try:
            with torch.device("meta"), _Undrawn():
                build()
        except (UserError, RuntimeError):  # any other mistake shows when they are built in earnest
            if parameters > most or tensors > TENSORS:
                raise
        finally:
            hook.remove()

    def _check_sides(self, multiple: int, shape: tuple[int, ...]) -> None:
        """Raise a UserError where the network cannot halve the sides of what it sees."""
        for side in shape[1:]:
            if side % multiple:
                low, high = side // multiple * multiple, -(-side // multiple) * multiple
                near = f"{low} or {high}" if low else str(high)
                raise UserError(
                    f"the network {self.network.kind!r} needs sides that are multiples of {multiple}, not {side}: "
                    f"use {near} (data.size where the data are a folder), or another network"
                )


class _Undrawn(TorchFunctionMode):
    """Leaves weights undrawn: drawing them on the meta device loads torch's compiler, most of a second."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function, but for those of torch.nn.init."""
        if getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def _parse(text: str) -> object:
    """Return the JSON value of a text, or the text itself; NaN and infinity are texts."""
    try:
        parsed: object = parse_json(text, parse_constant=lambda name: name)
    except ValueError:
        return text
    return parsed
