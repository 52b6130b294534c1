"""The kinds of parts that a recipe can name, and a part with its options, checked.

Each field of a recipe has a registry of kinds. A kind is a plain callable whose keyword parameters are its
options; their annotations are what a recipe's values are checked against.
"""

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Self, Union, get_args, get_origin, get_type_hints

from unfog.data import classic, codecs, elsewhere, folder, points, shapes
from unfog.data.source import Augment
from unfog.diffusion import grids, schedules, solvers, tables, targets, times, weightings
from unfog.networks.autoencoder import Autoencoder
from unfog.networks.compact import Compact
from unfog.networks.conditional import ConditionalUNet
from unfog.networks.dit import DiT
from unfog.networks.joint import JointDiT
from unfog.networks.minimal import Minimal
from unfog.networks.mlp import MLP
from unfog.networks.unet import UNet
from unfog.recipes.conditions import (
    ClassConditioning,
    ImageConditioning,
    LabelsConditioning,
    NoConditioning,
    TextConditioning,
    ValuesConditioning,
)
from unfog.recipes.latents import LatentCodec
from unfog.recipes.optimizers import AdamW, Muon
from unfog.recipes.settings import (
    Denoising,
    ExponentialAverage,
    FixedVariance,
    Inputs,
    LearnedVariance,
    PowerAverage,
    Reconstruction,
    Sampling,
    Training,
)
from unfog.recipes.text_encoders import PretrainedConditioning
from unfog.runtime.errors import EnvironmentFailure, UserError, unknown

Part = str | dict[str, Any]
"""A part inside a part: the name of a kind, or its tagged form `{"kind": ..., option: value, ...}`."""


def _inner(field: str, value: Part) -> Any:
    """Build the part inside a part."""
    return (Config(field, value) if isinstance(value, str) else Config.from_json(field, value)).build()


def _shifted(base: Part = "flow", shift: float = 3.0) -> schedules.Shifted:
    """Return any schedule with sigma/alpha larger by `shift`."""
    return schedules.Shifted(_inner("schedule", base), shift)


def _table(alphas_cumprod: Sequence[float]) -> tables.Table:
    """Return a table given entry by entry."""
    return tables.Table(tuple(float(value) for value in alphas_cumprod))


def _discrete(base: Part = "cosine-continuous", steps: int = 1000) -> tables.Discrete:
    """Return the table of any schedule."""
    return tables.Discrete(_inner("schedule", base), steps)


def _zero_terminal_snr(base: Part = "linear") -> tables.ZeroTerminalSNR:
    """Return a table, rescaled to end at pure noise."""
    return tables.ZeroTerminalSNR(_inner("schedule", base))


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
        "shapes": shapes.shapes,
        "elsewhere": elsewhere.elsewhere,
    },
    "augment": {"flip-crop": Augment},
    "codec": {"pixels": codecs.Pixels, "identity": codecs.Identity, "latents": LatentCodec},
    "network": {
        "compact": Compact,
        "unet": UNet,
        "conditional-unet": ConditionalUNet,
        "dit": DiT,
        "joint-dit": JointDiT,
        "minimal": Minimal,
        "mlp": MLP,
        "autoencoder": Autoencoder,
    },
    "objective": {"denoising": Denoising, "reconstruction": Reconstruction},
    "conditioning": {
        "classes": ClassConditioning,
        "labels": LabelsConditioning,
        "values": ValuesConditioning,
        "text": TextConditioning,
        "pretrained": PretrainedConditioning,
        "image": ImageConditioning,
        "none": NoConditioning,
    },
    "inputs": {"scaled": Inputs},
    "schedule": {
        "linear": tables.Linear,
        "quadratic": tables.Quadratic,
        "cosine": tables.Cosine,
        "table": _table,
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
        "discrete": times.DiscreteTimes,
        "log-normal": times.LogNormal,
        "logit-normal": times.LogitNormal,
        "importance": _importance,
    },
    "weighting": {
        "unit": weightings.Unit,
        "min-snr": weightings.MinSNR,
        "p2": weightings.P2,
        "edm": weightings.EDMWeighting,
        "sigmoid": weightings.SigmoidWeighting,
    },
    "optimizer": {"adamw": AdamW, "muon": Muon},
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

MOST = {
    "data.count": 10_000_000,
    "data.side": 4096,
    "data.workers": 256,
    "conditioning.length": 4096,
    "schedule.steps": 100_000,
    "times.bins": 100_000,
    "training.batch": 65_536,
    "sampling.batch": 65_536,
    "sampling.steps": 10_000,
}
"""The largest values of options that cost memory or time in proportion, for a recipe may come from a stranger. (What a
network costs is seen in its number of parameters.)"""
MOST_WHOLE, MOST_NUMBER, MOST_ENTRIES = 10**12, 1e30, 100_000
"""The largest size of any other whole number and of any other number, and the longest list."""
GIVEN = {"network": frozenset({"channels", "outputs", "dims", "context"})}
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
        filled = {name: default for name, (_, default) in known.items() if default is not inspect.Parameter.empty}
        for name, value in self.options.items():
            if name not in known:
                raise unknown(f"option of {self.field} {self.kind!r}", name, known)
            annotation = known[name][0]
            check_value(f"{self.field}.{name}", value, annotation)
            check_size(f"{self.field}.{name}", value)
            whole = isinstance(value, int) and annotation in (float, float | None)
            filled[name] = float(value) if whole else value  # torch refuses whole numbers above 2**31
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


def fits(value: object, annotation: Any) -> bool:
    """Return whether a plain value is what an annotation allows; numbers must be finite, and no truth values."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation is Any:
        return True
    if origin in (Union, UnionType):
        return any(fits(value, one) for one in arguments)
    if origin is Literal:
        return any(value == one and type(value) is type(one) for one in arguments)
    if origin is dict:
        return isinstance(value, dict)
    if origin in (list, tuple, Sequence):
        return isinstance(value, list | tuple) and all(fits(one, arguments[0]) for one in value)
    if annotation in (int, float):
        kinds = int if annotation is int else (int, float)
        return isinstance(value, kinds) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    return value is None if annotation in (None, NoneType) else isinstance(value, annotation)


def check_value(where: str, value: object, annotation: Any) -> None:
    """Raise a UserError for a value that its annotation does not allow."""
    if not fits(value, annotation):
        name = annotation.__name__ if isinstance(annotation, type) else str(annotation)
        for long in ("typing.", "collections.abc."):
            name = name.replace(long, "")
        raise UserError(f"{where} must be {name}, not {value!r}")


def check_size(where: str, value: object) -> None:
    """Raise a UserError for a number or a list that is larger than an option may be."""
    several = value if isinstance(value, list | tuple) else [value]
    if len(several) > MOST_ENTRIES:
        raise UserError(f"{where} may have {MOST_ENTRIES:,} entries at most, not {len(several):,}")
    for one in several:
        most = MOST.get(where, MOST_WHOLE if isinstance(one, int) else MOST_NUMBER)
        if isinstance(one, int | float) and abs(one) > most:
            raise UserError(f"{where} may be {most:,.13g} at most, not {one:.6g}: choose a smaller number")


def part(field: str, kind: str, **options: Any) -> Config:
    """Return one part of a recipe: `part("network", "compact", width=48)`."""
    return Config(field, kind, options)
