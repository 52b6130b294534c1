"""A recipe: everything that a run needs, as named parts with typed options, and as JSON.

Each field of a recipe has a registry of kinds. A kind is a plain callable whose keyword parameters are its
options; their annotations are what a recipe's values are checked against.
"""

import inspect
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from dataclasses import field as dataclass_field
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Self, Union, get_args, get_origin, get_type_hints

import torch

from unfog.data import classic, codecs, folder, points
from unfog.data.codecs import Codec
from unfog.data.source import Augment, Data
from unfog.diffusion import grids, schedules, solvers, tables, targets, times, weightings
from unfog.diffusion.denoiser import Denoiser
from unfog.errors import EnvironmentFailure, UserError, unknown
from unfog.networks.compact import Compact
from unfog.networks.dit import DiT
from unfog.networks.minimal import Minimal
from unfog.networks.mlp import MLP
from unfog.networks.unet import UNet
from unfog.settings import (
    AdamW,
    ClassConditioning,
    ExponentialAverage,
    FixedVariance,
    Inputs,
    LearnedVariance,
    NoConditioning,
    PowerAverage,
    Sampling,
    Training,
)

VERSION = 1
"""Version of the recipe format."""

Part = str | dict[str, Any]
"""A part inside a part: the name of a kind, or its tagged form `{"kind": ..., option: value, ...}`."""


def _inner(field: str, value: Part) -> Any:
    """Build the part inside a part."""
    return (Config(field, value) if isinstance(value, str) else Config.from_json(field, value)).build()


def _shifted(base: Part = "flow", shift: float = 3.0) -> schedules.Shifted:
    """Return any schedule with sigma/alpha larger by `shift`."""
    return schedules.Shifted(_inner("schedule", base), shift)


def _discrete(base: Part = "cosine-continuous", steps: int = 1000) -> tables.Table:
    """Return the table of any schedule."""
    return tables.discrete(_inner("schedule", base), steps)


def _zero_terminal_snr(base: Part = "linear") -> tables.Table:
    """Return a table, rescaled to end at pure noise."""
    return tables.zero_terminal_snr(_inner("schedule", base))


def _importance(base: Part = "uniform", bins: int = 32, window: int = 100, floor: float = 0.05) -> times.Importance:
    """Return times that are drawn where the loss is large, out of any distribution."""
    return times.Importance(_inner("times", base), bins, window, floor)


KINDS: dict[str, dict[str, Callable[..., Any]]] = {
    "data": {
        "points": points.points,
        "digits": classic.digits,
        "mnist": classic.mnist,
        "fashion": classic.fashion,
        "cifar10": classic.cifar10,
        "folder": folder.folder,
    },
    "augment": {"flip-crop": Augment},
    "codec": {"pixels": codecs.Pixels, "identity": codecs.Identity},
    "network": {"compact": Compact, "unet": UNet, "dit": DiT, "minimal": Minimal, "mlp": MLP},
    "conditioning": {"classes": ClassConditioning, "none": NoConditioning},
    "inputs": {"scaled": Inputs},
    "schedule": {
        "linear": tables.linear,
        "quadratic": tables.quadratic,
        "cosine": tables.cosine,
        "table": tables.table,
        "linear-continuous": schedules.LinearContinuous,
        "quadratic-continuous": schedules.QuadraticContinuous,
        "cosine-continuous": schedules.CosineContinuous,
        "flow": schedules.RectifiedFlow,
        "edm": schedules.EDM,
        "sigmoid": schedules.Sigmoid,
        "laplace": schedules.Laplace,
        "shifted": _shifted,
        "discrete": _discrete,
        "zero-terminal-snr": _zero_terminal_snr,
    },
    "target": {
        "eps": targets.Eps,
        "x0": targets.X0,
        "v": targets.V,
        "flow": targets.Flow,
        "edm": targets.EDMTarget,
    },
    "variance": {"fixed": FixedVariance, "learned": LearnedVariance},
    "times": {
        "uniform": times.Uniform,
        "discrete": times.Discrete,
        "log-normal": times.LogNormal,
        "logit-normal": times.LogitNormal,
        "importance": _importance,
    },
    "weighting": {
        "unit": weightings.Unit,
        "min-snr": weightings.MinSNR,
        "p2": weightings.P2,
        "edm": weightings.EDMWeighting,
        "sigmoid": weightings.Sigmoid,
    },
    "optimizer": {"adamw": AdamW},
    "ema": {"power": PowerAverage, "exponential": ExponentialAverage},
    "training": {"images": Training},
    "solver": {
        "ancestral": solvers.Ancestral,
        "ddim": solvers.DDIM,
        "euler": solvers.Euler,
        "euler-ancestral": solvers.EulerAncestral,
        "heun": solvers.Heun,
        "dpm-solver-2": solvers.DPMSolver2,
        "dpmpp-2m": solvers.DPMSolverPP2M,
        "dpmpp-3m": solvers.DPMSolverPP3M,
        "dpmpp-2m-sde": solvers.DPMSolverPPSDE2M,
        "unipc": solvers.UniPC,
        "adams-bashforth": solvers.AdamsBashforth,
        "rk45": solvers.RungeKutta45,
    },
    "grid": {
        "uniform": grids.UniformGrid,
        "polynomial": grids.PolynomialGrid,
        "log-snr": grids.LogSNRGrid,
        "karras": grids.KarrasGrid,
        "leading": grids.LeadingGrid,
        "trailing": grids.TrailingGrid,
        "linspace": grids.LinspaceGrid,
        "times": grids.TimesGrid,
    },
    "sampling": {"batches": Sampling},
}

GIVEN = {"network": frozenset({"channels", "outputs", "dims"})}
"""Parameters of a field's kinds that the data decide, and that are therefore no options."""


def register(field: str, kind: str, build: Callable[..., Any]) -> None:
    """Let recipes name a part of the user's own.

    Args:
        field: Field of the recipe, for instance `"schedule"`.
        kind: New name.
        build: Callable whose annotated keyword parameters are the options and that returns the part.

    Raises: UserError: If there is no such field, or the name is taken.
    """
    if field not in KINDS:
        raise unknown("recipe field", field, KINDS)
    if kind in KINDS[field]:
        raise UserError(f"the {field} {kind!r} is registered already: choose another name")
    KINDS[field][kind] = build


def build_kind(field: str, kind: str) -> Callable[..., Any]:
    """Return the callable behind a name, or raise with the nearest right name."""
    try:
        return KINDS[field][kind]
    except KeyError:
        raise unknown(field, kind, KINDS[field]) from None


@cache
def _parameters(build: Callable[..., Any], given: frozenset[str]) -> dict[str, tuple[Any, Any]]:
    """Return annotation and default of each option of a kind: its parameters but those that are `given`."""
    hints = get_type_hints(build if inspect.isfunction(build) else build.__init__)
    found = inspect.signature(build).parameters
    return {name: (hints.get(name, Any), one.default) for name, one in found.items() if name not in given}


@dataclass(frozen=True)
class Config:
    """One part of a recipe: the kind's name and all of its options.

    Attributes:
        field: Field of the recipe.
        kind: Registered name.
        options: Every option with its value; those not given at construction get their defaults.

    Raises: UserError: For an unknown kind or option, or a value of the wrong type.
    """

    field: str
    kind: str
    options: Mapping[str, Any] = dataclass_field(default_factory=dict)

    def __post_init__(self) -> None:
        """Fill in the defaults and check names and types."""
        known = self.known
        for name, value in self.options.items():
            if name not in known:
                raise unknown(f"option of {self.field} {self.kind!r}", name, known)
            _check_value(f"{self.field}.{name}", value, known[name][0])
        defaults = {name: default for name, (_, default) in known.items() if default is not inspect.Parameter.empty}
        filled = {**defaults, **self.options}
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in filled.items()}
        object.__setattr__(self, "options", plain)

    @property
    def known(self) -> dict[str, tuple[Any, Any]]:
        """Annotation and default of each option that the kind takes."""
        return _parameters(build_kind(self.field, self.kind), GIVEN.get(self.field, frozenset()))

    def build(self, **given: Any) -> Any:
        """Make the part; of `given`, what the kind takes is passed on.

        Raises: UserError: For a value out of range.
        """
        build = build_kind(self.field, self.kind)
        taken = inspect.signature(build).parameters
        try:
            return build(**{name: value for name, value in given.items() if name in taken}, **self.options)
        except (UserError, EnvironmentFailure):
            raise
        except (ValueError, TypeError, ArithmeticError, LookupError, RuntimeError) as error:
            raise UserError(
                f"the {self.field} {self.kind!r} cannot be made of {dict(self.options)}: {error}"
            ) from error

    def to_json(self) -> dict[str, Any]:
        """Return the tagged form, `{"kind": ..., option: value, ...}`."""
        return {"kind": self.kind, **self.options}

    @classmethod
    def from_json(cls, field: str, value: object) -> Self:
        """Read the tagged form of a field."""
        if not isinstance(value, dict) or not isinstance(value.get("kind"), str):
            raise UserError(f"the recipe's {field} is no object with a 'kind'")
        return cls(field, value["kind"], {name: option for name, option in value.items() if name != "kind"})


def _fits(value: object, annotation: Any) -> bool:
    """Return whether a plain value is what an annotation allows; numbers must be finite, and no truth values."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation is Any:
        return True
    if origin in (Union, UnionType):
        return any(_fits(value, one) for one in arguments)
    if origin is Literal:
        return any(value == one and type(value) is type(one) for one in arguments)
    if origin is dict:
        return isinstance(value, dict)
    if origin in (list, tuple, Sequence):
        return isinstance(value, list | tuple) and all(_fits(one, arguments[0]) for one in value)
    if annotation in (int, float):
        kinds = int if annotation is int else (int, float)
        return isinstance(value, kinds) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    return value is None if annotation in (None, NoneType) else isinstance(value, annotation)


def _check_value(where: str, value: object, annotation: Any) -> None:
    """Raise a UserError for a value that its annotation does not allow."""
    if not _fits(value, annotation):
        name = annotation.__name__ if isinstance(annotation, type) else str(annotation)
        for long in ("typing.", "collections.abc."):
            name = name.replace(long, "")
        raise UserError(f"{where} must be {name}, not {value!r}")


def part(field: str, kind: str, **options: Any) -> Config:
    """Return one part of a recipe: `part("network", "compact", width=48)`."""
    return Config(field, kind, options)


@dataclass(frozen=True)
class Recipe:
    """Everything needed to run a training again, and to use its result.

    Attributes:
        name: The recipe's name.
        seed: Seed of every draw.
        shape: Shape of one row of the data; None until the data were looked at.
        classes: Names of the classes that the model was trained on.
    """

    name: str
    data: Config
    network: Config
    augment: Config = part("augment", "flip-crop")
    codec: Config = part("codec", "pixels")
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
            _check_value(path, value, {"seed": int, "name": str}[path])
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
            plain = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"the recipe is no JSON ({error})") from None
        if not isinstance(plain, dict) or not _fits(plain.get("version"), int) or plain["version"] < 1:
            raise UserError("the recipe has no version: it is no recipe of unfog")
        if plain.pop("version") > VERSION:
            raise UserError(f"the recipe is of a newer version than {VERSION}: update unfog")
        known = {one.name for one in fields(cls)}
        for name in plain:
            if name not in known:
                raise unknown("recipe field", name, known)
        values: dict[str, Any] = {name: value for name, value in plain.items() if name not in KINDS}
        values.update({name: Config.from_json(name, value) for name, value in plain.items() if name in KINDS})
        shape, classes = values.get("shape"), values.get("classes", [])
        _check_value("shape", shape, list[int] | None)
        _check_value("classes", classes, list[str])
        _check_value("seed", values.get("seed", 0), int)
        _check_value("name", values.get("name"), str)
        if shape is not None and (not shape or min(shape) < 1):
            raise UserError(f"the recipe's shape {shape} is that of no data")
        values.update(shape=None if shape is None else tuple(shape), classes=tuple(classes))
        for name in ("data", "network"):
            if name not in values:
                raise UserError(f"the recipe names no {name}")
        return cls(**values)

    def build_data(self) -> tuple["Recipe", Data]:
        """Return the data, and the recipe with their shape and classes written in."""
        data: Data = self.data.build()
        return replace(self, shape=data.train.shape, classes=data.train.classes), data

    def build_codec(self) -> Codec:
        """Return the codec."""
        codec: Codec = self.codec.build()
        return codec

    def build_denoiser(self) -> Denoiser:
        """Return the denoiser with freshly drawn weights, a function of the recipe alone.

        Raises: UserError: If shape, schedule and target do not fit together.
        """
        assert self.shape is not None, "build_data comes first"
        inputs: Inputs = self.inputs.build()
        with torch.random.fork_rng():
            torch.manual_seed(self.seed & (2**64 - 1))
            learned = isinstance(self.variance.build(), LearnedVariance)
            channels = self.shape[0]
            network = self.network.build(channels=channels, outputs=(1 + learned) * channels, dims=len(self.shape) - 1)
            self._check_sides(network.multiple)
            embedder = self.conditioning.build().build(len(self.classes), network.embedding_dim)
            return Denoiser(
                network,
                self.schedule.build(),
                self.target.build(),
                embedder=embedder,
                input_scale=inputs.input_scale,
                network_time=inputs.network_time,
                sigma_data=inputs.sigma_data,
                learned_variance=learned,
            )

    def _check_sides(self, multiple: int) -> None:
        """Raise a UserError where the network cannot halve the sides of the data."""
        assert self.shape is not None
        for side in self.shape[1:]:
            if side % multiple:
                low, high = side // multiple * multiple, -(-side // multiple) * multiple
                near = f"{low} or {high}" if low else str(high)
                raise UserError(
                    f"the network {self.network.kind!r} needs sides that are multiples of {multiple}, not {side}: "
                    f"use {near} (data.size where the data are a folder), or another network"
                )


def _parse(text: str) -> object:
    """Return the JSON value of a text, or the text itself; NaN and infinity are texts."""
    try:
        return json.loads(text, parse_constant=lambda name: name)
    except (ValueError, RecursionError):
        return text
