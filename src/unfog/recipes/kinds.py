"""The names of a recipe's parts: from a name to its class, and from a value to its name.

A part is a frozen dataclass whose fields are its options. The built-in parts are listed by address, so that this table
imports none of them and may name classes of any floor; a user's own parts are registered as classes.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import field as dataclass_field
from dataclasses import fields, is_dataclass, make_dataclass
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple, get_type_hints

from torch import nn

from unfog.diffusion.names import NAMES
from unfog.runtime.errors import EnvironmentFailure, UserError, unknown

if TYPE_CHECKING:
    from unfog.data.modality import Modality


def _of_diffusion(field: str) -> dict[str, str | type]:
    """Return the parts of a field whose names are those of `unfog.diffusion`."""
    return {kind: f"diffusion.{address}" for kind, address in NAMES[field].items()}


KINDS: dict[str, dict[str, str | type]] = {
    "data": {
        "points": "recipes.sources:Points",
        "digits": "recipes.sources:Digits",
        "mnist": "recipes.sources:MNIST",
        "fashion": "recipes.sources:Fashion",
        "cifar10": "recipes.sources:CIFAR10",
        "idx": "recipes.sources:Idx",
        "folder": "recipes.sources:Folder",
        "shards": "recipes.sources:Shards",
        "shapes": "recipes.sources:CaptionedShapes",
        "grammar": "recipes.sources:Grammar",
        "textfile": "recipes.sources:TextFile",
        "tones": "recipes.sources:Tones",
        "recordings": "recipes.sources:Recordings",
        "videos": "recipes.sources:Videos",
        "scans": "recipes.sources:Scans",
        "columns": "recipes.sources:Columns",
        "moving": "recipes.sources:MovingDigits",
        "solids": "recipes.sources:Solids",
        "oscillators": "recipes.sources:Oscillators",
        "embedded": "recipes.embedded:Embedded",
        "portion": "recipes.portions:Portion",
        "stacked": "recipes.portions:Stacked",
        "elsewhere": "recipes.sources:Elsewhere",
        "given": "recipes.sources:Given",
    },
    "augment": {"flip-crop": "data.source:Augment", "geometry": "data.geometry:Geometry"},
    "codec": {
        "pixels": "data.codecs:Pixels",
        "identity": "data.codecs:Identity",
        "latents": "recipes.latents:LatentCodec",
        "characters": "data.characters:Characters",
        "spectrogram": "data.sounds:Spectrogram",
        "complex-spectrogram": "data.waves:ComplexSpectrogram",
        "standardised": "data.series:Standardised",
    },
    "network": {
        "compact": "recipes.networks:CompactSpec",
        "unet": "recipes.networks:UNetSpec",
        "conditional-unet": "recipes.networks:ConditionalUNetSpec",
        "dit": "recipes.networks:DiTSpec",
        "joint-dit": "recipes.networks:JointDiTSpec",
        "minimal": "recipes.networks:MinimalSpec",
        "mlp": "recipes.networks:MLPSpec",
        "autoencoder": "recipes.networks:AutoencoderSpec",
        "tower": "recipes.networks:TowerSpec",
        "gan": "recipes.networks:GANSpec",
        "ladder": "recipes.networks:LadderSpec",
        "gated": "recipes.networks:GatedSpec",
    },
    "objective": {
        "denoising": "training.objectives.denoising:Denoising",
        "reconstruction": "training.objectives.reconstruction:Reconstruction",
        "distillation": "training.objectives.distillation:Distillation",
        "progressive": "training.objectives.progressive:Progressive",
        "flow-map": "training.objectives.flow_map:FlowMap",
        "masked": "training.objectives.masked:Masked",
        "contrastive": "training.objectives.contrastive:Contrastive",
        "adversarial": "training.objectives.adversarial:Adversarial",
        "variational": "training.objectives.variational:Variational",
        "autoregressive": "training.objectives.autoregressive:Autoregressive",
        "cascade": "training.objectives.cascade:Cascade",
    },
    "conditioning": {
        "classes": "recipes.conditions:ClassConditioning",
        "labels": "recipes.conditions:LabelsConditioning",
        "values": "recipes.conditions:ValuesConditioning",
        "text": "recipes.conditions:TextConditioning",
        "pretrained": "recipes.text_encoders:PretrainedConditioning",
        "image": "recipes.planes:ImageConditioning",
        "spectrogram": "recipes.hearing:SpectrogramConditioning",
        "caption": "recipes.embedded:CaptionConditioning",
        "embedding": "recipes.encoders:EmbeddingConditioning",
        "several": "recipes.several:SeveralConditions",
        "none": "recipes.conditions:NoConditioning",
    },
    "inputs": {"scaled": "recipes.settings:Inputs"},
    "schedule": _of_diffusion("schedule"),
    "target": _of_diffusion("target"),
    "variance": {"fixed": "recipes.settings:FixedVariance", "learned": "recipes.settings:LearnedVariance"},
    "times": _of_diffusion("times"),
    "weighting": _of_diffusion("weighting"),
    "optimizer": {"adamw": "recipes.optimizers:AdamW", "muon": "recipes.optimizers:Muon"},
    "ema": {"power": "recipes.settings:PowerAverage", "exponential": "recipes.settings:ExponentialAverage"},
    "training": {"images": "recipes.settings:Training"},
    "solver": _of_diffusion("solver"),
    "grid": _of_diffusion("grid"),
    "sampling": {"batches": "recipes.settings:Sampling"},
}
"""The kinds of each field of a recipe: name -> class or address of a class."""

DECIDED_BY_DATA = frozenset({"channels", "outputs", "dims", "context", "shape", "pixels", "conditional", "spectral"})
"""Parameters of a network that follow from data, condition or objective and therefore are not options."""


class Option(NamedTuple):
    """One option of a part: its annotation, and its default, `inspect.Parameter.empty` if it has none."""

    annotation: Any
    default: object


@contextmanager
def refusing(what: str) -> Iterator[None]:
    """Turn a constructor's errors into a UserError that begins with `what`."""
    try:
        yield
    except (UserError, EnvironmentFailure):
        raise
    except (ValueError, TypeError, ArithmeticError, LookupError, RuntimeError) as error:
        raise UserError(f"{what}: {error}") from error


def register(field: str, kind: str, part: type | Callable[..., object], *, modality: "Modality | None" = None) -> None:
    """Give a part of your own a name that recipes can use.

    Args:
        field: Field of the recipe, for instance `"schedule"`.
        kind: The new name.
        part: A frozen dataclass whose fields are the options; for `"network"` also an `nn.Module` class whose keyword
            parameters are the options, and for `"data"` also a function that returns the `Data`.
        modality: What the rows of such a function are, if not points, images or arrays; a dataclass has a class
            attribute of that name instead.

    Raises: UserError: If there is no such field, the name is taken, `part` is of another type, has an option `kind`,
        or has no use for a modality.
    """
    if field not in KINDS:
        raise unknown("recipe field", field, KINDS)
    if kind in KINDS[field]:
        raise UserError(f"the {field} {kind!r} is registered already: choose another name")
    if modality is not None and (field != "data" or isinstance(part, type)):
        raise UserError("modality goes with a function that returns data; a dataclass has an attribute of that name")
    made = _as_class(field, part, modality)
    if any(option.name == "kind" for option in fields(made)):
        raise UserError(f"the {field} {kind!r} has an option 'kind', by which recipes name the part itself: rename it")
    KINDS[field][kind] = made


def _as_class(field: str, part: type | Callable[..., object], modality: "Modality | None") -> type:
    """Return the dataclass of a part's options."""
    if isinstance(part, type) and is_dataclass(part):
        return part
    if field == "network" and isinstance(part, type) and issubclass(part, nn.Module):
        return _spec(part.__name__, part, DECIDED_BY_DATA)
    if field == "data" and callable(part) and not isinstance(part, type):
        return _spec(getattr(part, "__name__", "data"), part, frozenset(), modality=modality)
    raise UserError(f"a {field} must be registered as a frozen dataclass whose fields are its options, not as {part!r}")


def _spec(name: str, build: Callable[..., object], given: frozenset[str], **members: object) -> type:
    """Return a dataclass of a callable's options, whose `build` calls it with them and with the `given` parameters.

    `members` are further attributes of the class.
    """
    hints = _hints(build)
    parameters = inspect.signature(build).parameters
    options: list[tuple[str, Any, Any]] = []
    for parameter in parameters.values():
        if parameter.name not in given:
            default = {} if parameter.default is parameter.empty else {"default": parameter.default}
            options.append((parameter.name, hints.get(parameter.name, Any), dataclass_field(**default)))

    def built(self: Any, **decided: object) -> object:
        taken = {name: value for name, value in decided.items() if name in parameters}
        own = {one.name: getattr(self, one.name) for one in fields(self)}
        with refusing(f"{name} cannot be built with {own}"):
            return build(**taken, **own)

    return make_dataclass(name, options, frozen=True, namespace={"build": built, **members})


def class_of(field: str, kind: str) -> type[Any]:
    """Return the class of a name.

    Raises: UserError: If the name is unknown; the message suggests the nearest known one.
    """
    try:
        home = KINDS[field][kind]
    except KeyError:
        raise unknown(field, kind, KINDS[field]) from None
    return home if isinstance(home, type) else _imported(home)


@cache
def _imported(address: str) -> type[Any]:
    """Return the class at an address of the table, `module:class`."""
    module, _, name = address.partition(":")
    found: type[Any] = getattr(import_module(f"unfog.{module}"), name)
    return found


def kind_of(field: str, value: object) -> str:
    """Return the name of a value's class.

    Raises: UserError: If it has none.
    """
    own = type(value)
    address = f"{own.__module__.removeprefix('unfog.')}:{own.__qualname__}"
    for kind, home in KINDS[field].items():
        if home is own or home == address:
            return kind
    raise UserError(
        f"the {field} {own.__name__} has no name, which a run folder needs to refer to it: give it one with "
        f"unfog.register({field!r}, NAME, {own.__name__})"
    )


def options_of(kind: type[object]) -> Mapping[str, Option]:
    """Return the options of a class: the parameters of its constructor."""
    return _options(kind)  # type: ignore[arg-type]  # mypy considers classes unhashable


@cache
def _options(kind: Callable[..., object]) -> Mapping[str, Option]:
    """Return the parameters of a callable."""
    hints, parameters = _hints(kind), inspect.signature(kind).parameters
    return {name: Option(hints.get(name, Any), parameter.default) for name, parameter in parameters.items()}


def _hints(build: Callable[..., object]) -> dict[str, Any]:
    """Return the annotations of a callable's parameters."""
    return get_type_hints(inspect.getattr_static(build, "__init__") if isinstance(build, type) else build)
