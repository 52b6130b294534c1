"""Recipes: everything that a run needs, as values and as JSON."""

import json
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unfog.data.codecs import Codec, Identity, Pixels
from unfog.data.modality import MODALITIES, Modality, modality_of
from unfog.data.source import Augment, Augmentation, Data
from unfog.diffusion.grids import Grid, UniformGrid
from unfog.diffusion.schedules import EDM, RectifiedFlow, Schedule
from unfog.diffusion.solvers import DDIM, DPMSolverPP2M, Solver, VelocitySolver
from unfog.diffusion.targets import Flow, Target
from unfog.diffusion.times import LogitNormal, Times
from unfog.diffusion.weightings import Unit, Weighting
from unfog.recipes import describe
from unfog.recipes.conditions import ClassConditioning, Conditioning
from unfog.recipes.fitting import default_grid, default_inputs, default_times
from unfog.recipes.kinds import KINDS, class_of, kind_of, options_of
from unfog.recipes.networks import NetworkSpec
from unfog.recipes.objective import Choosing, Objective
from unfog.recipes.optimizers import AdamW
from unfog.recipes.parse import changed, from_plain, parse_value, to_plain
from unfog.recipes.schema import check_value
from unfog.recipes.settings import (
    Average,
    FixedVariance,
    Inputs,
    LearnedVariance,
    PowerAverage,
    Sampling,
    Training,
)
from unfog.recipes.sources import DataSpec
from unfog.recipes.vocabulary import path_of, unknown_setting
from unfog.runtime.errors import UserError, unknown
from unfog.runtime.files import parse_json
from unfog.runtime.lines import counted

Part = TypeVar("Part")
VERSION = 2
"""Version of the recipe format and of the formulas that it means, see `recipes.versions`."""
MEANING = ("network", "inputs", "schedule", "target", "variance")
"""Fields that say what the weights of a denoiser compute."""
USE = ("times", "weighting", "solver", "grid", "sampling")
"""Fields that say how such a denoiser is trained and sampled."""
FOLLOWING: dict[str, Callable[[Schedule], object]] = {
    "times": default_times,
    "grid": default_grid,
    "inputs": default_inputs,
}
"""Fields whose default depends on the schedule."""
JUMPS = 4
"""Steps in which a flow map is sampled by default."""
LOUDEST = 1000.0
"""sigma/alpha up to which solvers of velocities begin well on the clock of sigma/alpha."""
VALUES = 1 << 28
"""Numbers in a batch, at most: 1 GiB in float32."""


class CodecSpec(Protocol):
    """A codec that is built once the shape of a stored row is known."""

    def build(self, stored: tuple[int, ...]) -> Codec:
        """Return the codec.

        Raises: UserError: If it needs an autoencoder that is missing or for rows of another shape.
        """
        ...


@runtime_checkable
class Fitted(CodecSpec, Protocol):
    """A codec with numbers that are filled in from the data of a training."""

    def fitted(self, data: Data, modality: Modality) -> CodecSpec:
        """Return the codec with its numbers; itself if it has them already."""
        ...


def _denoising() -> Objective:
    """Return the objective of diffusion models."""
    return cast(Objective, class_of("objective", "denoising")())


@dataclass(frozen=True, repr=False)
class Recipe:
    """Everything needed to repeat a training and to use its result.

    Attributes:
        name: The recipe's name.
        data: Where the rows come from.
        network: The network that is trained.
        augment: Random augmentation of the rows.
        codec: How stored rows become what is diffused, and samples become rows again.
        objective: What the model is trained to do.
        conditioning: What the model is conditioned on.
        inputs: The scaling of the network's inputs.
        schedule: How much signal and noise a state has at each time, alpha(t) and sigma(t).
        target: What the network predicts.
        variance: Whether the model learns the variance of a step.
        times: The distribution of training times.
        weighting: The weight of each time in the loss.
        optimizer: The optimizer, its learning rate and how that changes.
        ema: How the weights are averaged over the training; samples come from the average.
        training: Length, batch and reports of the training.
        solver: How a sampling step gets from one time to the next.
        grid: The times of the sampling steps.
        sampling: Steps, guidance, clipping and batch of sampling.
        seed: Seed of every random draw.
        shape: Shape of one row of the data; None until the data have been read.
        classes: Names of the classes that the model was trained on.
        prompts: Some captions of held-out rows, for models conditioned on text.
        shapes: Shapes of other rows that batches of the training take turns with.
        version: Version of unfog's recipes that it was written for.
    """

    name: str
    data: DataSpec
    network: NetworkSpec
    augment: Augmentation = Augment()
    codec: CodecSpec = Pixels()
    objective: Objective = field(default_factory=_denoising)
    conditioning: Conditioning = ClassConditioning()
    inputs: Inputs = Inputs()
    schedule: Schedule = RectifiedFlow()
    target: Target = Flow()
    variance: FixedVariance | LearnedVariance = FixedVariance()
    times: Times = LogitNormal()
    weighting: Weighting = Unit()
    optimizer: AdamW = AdamW()
    ema: Average = PowerAverage()
    training: Training = Training()
    solver: Solver = DPMSolverPP2M()
    grid: Grid = UniformGrid()
    sampling: Sampling = Sampling()
    seed: int = 0
    shape: tuple[int, ...] | None = None
    classes: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()
    shapes: tuple[tuple[int, ...], ...] = ()
    version: int = VERSION

    def __repr__(self) -> str:
        """Return the parts, one a line, with the options that differ from their defaults."""
        return describe.brief(self)

    def explain(self, width: int = 100) -> str:
        """Return every setting with its value, what it does and what else it can be, as text of this many columns."""
        return describe.text(self, width)

    def starting_from(self, source: "Recipe") -> "Recipe":
        """Return this recipe with the network of another one, and how that is asked, trained and sampled.

        Data, conditioning, optimizer, averages and length stay. Of a flow map only the network and how it is asked are
        taken, unless this is one as well: a denoiser is not sampled by jumps.
        """
        names = MEANING if source.objective.jumps and not self.objective.jumps else (*MEANING, *USE)
        return replace(self, **{name: getattr(source, name) for name in names})

    def anew(self) -> "Recipe":
        """Return the recipe of a run as that of a run that has not begun: its data have not been read yet."""
        training = replace(self.training, began=0)
        return replace(self, training=training, shape=None, classes=(), prompts=(), shapes=())

    @property
    def modality(self) -> Modality:
        """What a row is: what the data's specification says, else what its shape and codec suggest.

        Raises: UserError: If rows of such a shape are of no modality.
        """
        if self._own is not None:
            return self._own
        assert self.shape is not None, "the data were looked at"
        return modality_of(self.shape, torch.float32 if isinstance(self.codec, Identity) else None)

    @property
    def rows(self) -> str:
        """What the rows are, in words: "images of 1×28×28"."""
        others = f" and {counted(len(self.shapes), 'other shape')}" if self.shapes else ""
        return self.modality.describe(self.shape or ()) + others

    @property
    def reads(self) -> Callable[[Tensor], NDArray[np.int64]] | None:
        """What reads the classes of rows by formulas, where the data can be read so."""
        found: Callable[[Tensor], NDArray[np.int64]] | None = getattr(self.data, "reads", None)
        return found

    @property
    def _own(self) -> Modality | None:
        """The modality that the data's specification names."""
        own: object = getattr(self.data, "modality", None)
        return own if isinstance(own, Modality) else None

    @property
    def _known(self) -> bool:
        """Whether rows of the recipe's shape are of some modality."""
        return self._own is not None or any(one.fits(self.shape or ()) for one in MODALITIES)

    def kind(self, field: str) -> str:
        """Return the name of the part in a field, for instance `"cosine"` for `"schedule"`."""
        return kind_of(field, getattr(self, field))

    def set(self, *settings: str) -> "Recipe":
        """Return the recipe with settings of the form `path=value` applied, those of one part in order.

        `schedule=cosine` chooses a kind with its defaults, `schedule.steps=500` sets an option, `seed=3` the
        seed, and `lr=1e-3` is short for `optimizer.lr=1e-3` (see `recipes.vocabulary`). Values are parsed as JSON,
        or else taken as text. The settings of one part are checked together.
        Times, grid and inputs follow a new schedule, wherever it stands, where they are still the old one's defaults.
        Guidance that is not chosen is off with a conditioning that is never dropped, since that leaves nothing to
        guide away from. An objective with a network of its own brings it, and its optimizer. With one whose models
        jump, solver and steps that are not chosen are ddim in 4 steps, without clipping.

        Raises: UserError: For an unknown path (with the nearest known one) or a value of the wrong type.
        """
        found = self._with([setting for setting in settings if _decides(setting)])
        for name, default in FOLLOWING.items():
            if getattr(self, name) == default(self.schedule):
                found = replace(found, **cast(Any, {name: default(found.schedule)}))
        if type(found.objective) is not type(self.objective) and isinstance(found.objective, Choosing):
            found = found.objective.beside(found)
        found = found._with([setting for setting in settings if not _decides(setting)])
        paths = [path_of(setting) for setting in settings]
        conditioned = any(path.partition(".")[0] in ("conditioning", "conditions") for path in paths)
        if conditioned and not found.conditioning.dropout and "sampling.guidance" not in paths:
            found = replace(found, sampling=replace(found.sampling, guidance=1.0))
        if found.objective.jumps and type(found.objective) is not type(self.objective):
            usual = {"sampling.steps": JUMPS, "sampling.clip": False}
            own = {path.partition(".")[2]: value for path, value in usual.items() if path not in paths}
            chosen = any(path.partition(".")[0] == "solver" for path in paths)
            solver = found.solver if chosen else DDIM()
            found = replace(found, solver=solver, sampling=replace(found.sampling, **cast(Any, own)))
        return found

    def _with(self, settings: Iterable[str]) -> "Recipe":
        """Return the recipe with settings applied in order."""
        own: dict[str, Any] = {}
        of_parts: dict[str, list[tuple[str, object]]] = {}
        for setting in settings:
            path, equals, text = setting.partition("=")
            if not equals:
                raise UserError(f"a setting must be path=value, for instance network.width=48, not {setting!r}")
            given, value = path.strip(), parse_value(text)
            path = path_of(setting)
            if path == "conditions":  # several at once, in short
                of_parts["conditioning"] = [("", "several"), ("parts", value)]
                continue
            name, dot, option = path.partition(".")
            if path in ("seed", "name"):
                check_value(path, value, {"seed": int, "name": str}[path])
                own[path] = value
                continue
            earlier = of_parts.get(name, [])
            if name not in KINDS or (dot and option not in self._options(name, earlier)):
                raise unknown_setting(given, self._meanings(of_parts), self._kinds(of_parts))
            if not option:
                if not isinstance(value, str):
                    listed = ", ".join(f"{name}.{one}" for one in self._options(name, earlier))
                    rest = f"; its options are {listed}" if listed else ""
                    raise UserError(f"{name} must be one of {', '.join(sorted(KINDS[name]))}, not {value!r}{rest}")
                class_of(name, value)  # report an unknown kind before unknown options of it
            of_parts[name] = [*earlier, (option, value)]
        parts = {name: changed(getattr(self, name), name, given) for name, given in of_parts.items()}
        return replace(self, **own, **parts)

    def _part(self, name: str, earlier: Iterable[tuple[str, object]]) -> type[Any]:
        """Return the class of a part after some of its settings have been applied."""
        kinds = [value for option, value in earlier if not option]
        return class_of(name, str(kinds[-1])) if kinds else type(getattr(self, name))

    def _options(self, name: str, earlier: Iterable[tuple[str, object]]) -> Iterable[str]:
        """Return the options of a part after some of its settings have been applied."""
        return options_of(self._part(name, earlier))

    def _kinds(self, of_parts: dict[str, list[tuple[str, object]]]) -> dict[str, str]:
        """Return the kind of each part after some settings have been applied."""
        given = {name: [str(value) for option, value in of_parts.get(name, []) if not option] for name in KINDS}
        return {name: [describe.name_of(name, getattr(self, name)), *kinds][-1] for name, kinds in given.items()}

    def _meanings(self, of_parts: dict[str, list[tuple[str, object]]]) -> dict[str, str]:
        """Return what each path that `set` accepts does."""
        own = describe.meanings(Recipe)
        found = {name: own[name] for name in ("seed", "name", *KINDS)}
        for name in KINDS:
            texts = describe.meanings(self._part(name, of_parts.get(name, [])))
            found |= {
                f"{name}.{option}": texts.get(option, "") for option in self._options(name, of_parts.get(name, []))
            }
        return found

    def relocated(self, folder: Path, relative: bool = False) -> "Recipe":
        """Return the recipe with paths into its run folder made absolute, or relative to the folder."""
        return replace(
            self,
            codec=_placed(self.codec, folder, relative),
            conditioning=_placed(self.conditioning, folder, relative),
            objective=_placed(self.objective, folder, relative),
        )

    def to_json(self) -> str:
        """Return the recipe as JSON text.

        Raises: UserError: If a part has no name.
        """
        plain: dict[str, Any] = {"version": self.version}
        for one in fields(self):
            value = getattr(self, one.name)
            plain[one.name] = to_plain(one.name, value) if one.name in KINDS else value
        return json.dumps(plain, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Recipe":
        """Read a recipe, which can refer to registered kinds only.

        Raises: UserError: If it is damaged, from a newer version, or refers to something unknown.
        """
        try:
            plain = parse_json(text)
        except ValueError as error:
            raise UserError(f"the recipe is not valid JSON ({error})") from None
        if not isinstance(plain, dict) or not _is_version(plain.get("version")):
            raise UserError("the recipe has no version: it is not a recipe of unfog")
        if plain["version"] > VERSION:
            raise UserError(f"the recipe's version is newer than {VERSION}: update unfog")
        known = {one.name for one in fields(cls)}
        for name in plain:
            if name not in known:
                raise unknown("recipe field", name, known)
        for name in ("data", "network"):
            if name not in plain:
                raise UserError(f"the recipe has no {name}")
        values: dict[str, Any] = {
            name: _as_written(from_plain(name, value), value) if name in KINDS else value
            for name, value in plain.items()
        }
        if (
            plain["version"] == 1
            and isinstance(values.get("solver"), VelocitySolver)
            and "clock" not in plain["solver"]
        ):
            values["solver"] = _as_before(values["solver"], values.get("schedule", cls.schedule))
        shape = values.get("shape")
        check_value("shape", shape, list[int] | None)
        for name in ("classes", "prompts"):
            check_value(name, values.get(name, []), list[str])
            values[name] = tuple(values.get(name, []))
        check_value("seed", values.get("seed", 0), int)
        check_value("name", values.get("name"), str)
        values["shape"] = None if shape is None else tuple(shape)
        check_value("shapes", others := values.get("shapes", []), list[list[int]])
        values["shapes"] = tuple(tuple(one) for one in others)
        recipe = cls(**values)
        for one in () if recipe.shape is None else (recipe.shape, *recipe.shapes):
            fits = replace(recipe, shape=one)._known and len(one) == len(recipe.shape or ())
            if not (one and min(one) >= 1 and max(one) <= VALUES and fits):
                raise UserError(f"the recipe's shape {list(one)} is not a shape of data")
        return recipe


def _decides(setting: str) -> bool:
    """Return whether a setting is of schedule or objective, on which the defaults of others depend."""
    return path_of(setting).partition(".")[0] in ("schedule", "objective")


def _as_before(solver: VelocitySolver, schedule: Schedule) -> VelocitySolver:
    """Return the solver of a recipe from before solvers had a clock, on the one that it ran on then if that was right.

    That was sigma/alpha on tables, and the schedule's own otherwise. Right were the first unless it ends at very much
    noise, and of the second the clocks of `RectifiedFlow` and `EDM`, since elsewhere the last step left noise.
    """
    alpha, sigma = schedule.numbers(schedule.t_max)
    if sigma <= LOUDEST * alpha and (schedule.steps or isinstance(schedule, EDM)):
        return replace(solver, clock="edm")
    if not isinstance(schedule, RectifiedFlow) and alpha > 0:
        warnings.warn(
            f"{type(solver).__name__} was inaccurate on this run's schedule, {type(schedule).__name__}, and is "
            "corrected: its samples differ from earlier ones",
            stacklevel=2,
        )
    return solver


def _as_written(part: Part, plain: object) -> Part:
    """Return a part with what its missing options were before they existed."""
    before: Mapping[str, object] = getattr(type(part), "before", {})
    missing = {name: value for name, value in before.items() if isinstance(plain, dict) and name not in plain}
    return replace(cast(Any, part), **missing) if missing else part


def _is_version(value: object) -> bool:
    """Return whether a value is a version number."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _placed(part: Part, folder: Path, relative: bool) -> Part:
    """Return a part with its path, if it has one, made absolute, or relative to a run folder."""
    path = getattr(part, "path", None)
    if not path:
        return part
    if relative and Path(path).resolve().is_relative_to(folder.resolve()):
        path = Path(path).resolve().relative_to(folder.resolve()).as_posix()
    elif (folder / path).exists():
        path = str(folder.resolve() / path)
    placed: Part = replace(cast(Any, part), path=path)
    return placed
