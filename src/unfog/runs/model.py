"""A trained model: samples of it, and edits of pictures by it."""

from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self, TypedDict, TypeVar, Unpack, cast

import numpy as np
import torch
from torch import Tensor, nn

from unfog.diffusion.denoiser import Denoiser
from unfog.diffusion.grids import Grid
from unfog.diffusion.solvers import Solver
from unfog.generation import edits
from unfog.generation.cascading import Cascading
from unfog.generation.drawing import Drawing
from unfog.generation.operators import Operator
from unfog.generation.quantizing import ROWS, Quantization, in_int8
from unfog.generation.restoring import How, restore
from unfog.generation.sampler import Sampler
from unfog.generation.whole import Whole
from unfog.recipes.build import known_of, resized
from unfog.recipes.conditions import Asked, Depicting
from unfog.recipes.kinds import kind_of
from unfog.recipes.objective import Generator
from unfog.recipes.parse import changed, named
from unfog.recipes.recipe import Recipe
from unfog.runs import asking, restoring, rowing, tuned
from unfog.runs.asking import Label, Picture, Prompt, Values
from unfog.runs.progress import Progress, watched
from unfog.runs.reading import drawing_recipe, read_model
from unfog.runs.rowing import Row
from unfog.runtime.brief import parameters
from unfog.runtime.device import Arithmetic, Precision, arithmetic, choose_device, keep_memory
from unfog.runtime.errors import UserError

Part = TypeVar("Part")
INVERTED = 50
"""Steps of an inversion, which needs more than sampling does."""


class SamplingOptions(TypedDict, total=False):
    """How samples are drawn. What is not given is the recipe's.

    Attributes:
        solver: A solver, for instance `DDIM(eta=0.5)`, or its name, `"ddim"`.
        steps: Number of steps.
        grid: A grid, or its name; "tuned" is what `unfog tune` found, which is also the default where it fits.
        guidance: Scale of classifier-free guidance; 1 is off.
        temperature: Of models that draw from probabilities, such as of texts: below 1 samples are likelier and less
            diverse.
        seed: Seed of the noise; default: 0.
        negative: What samples should not show, one thing for all: guidance leads away from it.
        batch: Samples computed at a time; another number than the recipe's changes them by rounding.
        size: Side of the pictures, or (height, width); default: the shape that the model was trained on most.
    """

    solver: str | Solver | None
    steps: int | None
    grid: str | Grid | None
    guidance: float | None
    temperature: float | None
    seed: int
    negative: Asked
    batch: int | None
    size: int | tuple[int, int] | None


class EditOptions(SamplingOptions, total=False):
    """How a picture is edited, in addition to how samples are drawn.

    Attributes:
        label: Class that the result shows; a model of classes needs one.
        prompt: Text that the result shows.
    """

    label: Label | None
    prompt: Prompt | None


@dataclass(frozen=True)
class Run:
    """A trained model in its folder.

    A picture to edit is a path, an image of Pillow, or uint8 `(channels, height, width)` as a tensor or array. Files
    and images are cropped and resized to the model's size unless `own_size` is set; tensors and arrays never are.

    Attributes:
        path: The run folder.
        recipe: What it was made with.
        model: The averaged weights, ready to sample.
        precision: Arithmetic of the network.
        quantization: What int8 changes, if the network computes in it.
    """

    path: Path
    recipe: Recipe
    model: nn.Module
    precision: Arithmetic
    quantization: Quantization | None = None

    def __repr__(self) -> str:
        """Return where the run is, and what it holds."""
        recipe = self.recipe
        what = f"{recipe.kind('network')} of {parameters(self.model):,} parameters"
        rows = "" if recipe.shape is None else f", {recipe.rows}"
        classes = f", {len(recipe.classes)} classes" if recipe.classes else ""
        return f"Run({str(self.path)!r}: {what}{rows}{classes}, {self.precision} on {self.device})"

    @property
    def denoises(self) -> bool:
        """Whether the model is a denoiser."""
        return isinstance(self.model, Denoiser)

    @property
    def denoiser(self) -> Denoiser:
        """The model, if it is a denoiser.

        Raises: UserError: If it is another kind of model.
        """
        if not isinstance(self.model, Denoiser):
            raise UserError(f"{self._kind}, not a denoiser: only its samples can be drawn, evaluated and reported on")
        return self.model

    @property
    def _kind(self) -> str:
        """What the folder holds, as the beginning of a sentence."""
        return f"{self.path} holds a model of the objective {self.recipe.kind('objective')!r}"

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return next(self.model.parameters()).device

    def generator(self, **options: Unpack[SamplingOptions]) -> Drawing:
        """Return what draws samples, whatever the objective.

        Args:
            **options: See `SamplingOptions`. A model that is not a denoiser takes `seed`, and what its kind has.

        Raises: UserError: For an unknown name, a value out of range, or an option that the model does not take.
        """
        numbers = {"steps": options.get("steps"), "batch": options.get("batch")}
        changes: dict[str, object] = {
            name: int(value) if isinstance(value, np.integer) else value for name, value in numbers.items()
        }
        for name, number in (("guidance", options.get("guidance")), ("temperature", options.get("temperature"))):
            changes[name] = None if number is None else float(number)
        given = {name: value for name, value in changes.items() if value is not None}
        recipe = replace(
            self.recipe,
            solver=_chosen("solver", self.recipe.solver, options.get("solver")),
            grid=_chosen("grid", self.recipe.grid, None if options.get("grid") == tuned.GRID else options.get("grid")),
            sampling=changed(self.recipe.sampling, "sampling", given.items()),
        )
        if (size := options.get("size")) is not None:
            recipe = resized(recipe, size)
        seed, negative = options.get("seed", 0), options.get("negative")
        found = self.recipe.objective.generator(recipe, self.model)
        if isinstance(found, Sampler):
            found = replace(found, seed=seed, negative=negative, precision=self.precision)
            return self._as_tuned(found, options.get("grid"))
        if found is None:
            raise UserError(f"{self._kind}, which draws no samples")
        drawing = found if isinstance(found, Drawing) else self._whole(found, recipe)
        wanted = {name: value for name, value in options.items() if value is not None} | {"seed": None}
        for name in ("guidance", "temperature"):
            if wanted.get(name) == 1:
                del wanted[name]  # it is off
        if refused := wanted.keys() - drawing.takes - {"seed"}:
            names = " and no ".join(name for name in wanted if name in refused)
            raise UserError(f"{self._kind}, which takes no {names}: omit what it does not take")
        return replace(drawing, seed=seed, precision=self.precision)

    def _whole(self, found: Generator, recipe: Recipe) -> Whole:
        """Return a generator that draws all samples at once as one that draws them in batches."""
        known = known_of(recipe)
        return Whole(found, self.device, conditioning=recipe.conditioning, known=known)

    def _as_tuned(self, sampler: Sampler, grid: str | Grid | None) -> Sampler:
        """Return a sampler that draws as `unfog tune` found, unless another grid is asked for."""
        found = tuned.fitting(self.path, sampler) if grid in (None, tuned.GRID) else None
        if found is None and grid == tuned.GRID:
            steps = sampler.settings.steps
            raise UserError(f"nothing is tuned for {steps} steps of this solver and guidance: run `unfog tune`")
        return sampler if found is None else found.applied(sampler)

    def sampler(self, **options: Unpack[SamplingOptions]) -> Sampler:
        """Return the sampler of the recipe with some settings changed.

        Args:
            **options: See `SamplingOptions`.

        Raises: UserError: For an unknown name, a value out of range, or a model that is not sampled step by step.
        """
        found = self.generator(**options)
        if not isinstance(found, Sampler):
            raise UserError(f"{self._kind}, which is not sampled step by step: only its samples can be drawn")
        return found

    def quantized(self, count: int = 1, asked: Asked = None) -> Self:
        """Return the run with the large layers of its network in int8, which is faster and less exact.

        The result's `quantization` says how much less.

        Args:
            count: Number of samples that are drawn afterwards.
            asked: What they show, as for `sample`. It matters only for models that draw nothing without, such as those
                that enlarge pictures: the ranges of their numbers are measured on the first that is asked for.

        Raises: UserError: If there is no processor or layer for it.
        """
        sampler = self.sampler()
        try:
            condition = sampler.condition(2 * ROWS)
        except UserError:
            condition = sampler.condition(count, asking.in_turn(asked, count))
            condition = None if condition is None else condition[:1].expand(2 * ROWS, *condition.shape[1:])
        found, quantization = in_int8(sampler, condition)
        return replace(self, model=found.denoiser, precision="int8", quantization=quantization)

    def sample(
        self,
        count: int,
        asked: Asked = None,
        *,
        label: Label | None = None,
        prompt: Prompt | None = None,
        values: Values | None = None,
        image: Picture | None = None,
        condition: Picture | None = None,
        progress: Progress = False,
        **options: Unpack[SamplingOptions],
    ) -> Tensor:
        """Draw samples; number i is the same in whatever request it comes.

        At most one of `asked`, `label`, `prompt`, `values`, `image` and `condition` is given, and it is for all samples
        or has one entry for each. Without any, all classes, or some held-out captions, are drawn in turn.

        Args:
            count: Number of samples.
            asked: What they show, in the form that the model takes.
            label: A class by its number or name, for models that are conditioned on labels.
            prompt: A text, for models that are conditioned on text.
            values: Numbers, for models that are conditioned on numbers.
            image: A picture as for edits, for models that are conditioned on images; or a folder of them, in turn.
            condition: What the model is conditioned on, whatever that is: for a vocoder a recording, a folder of them,
                int16 `(channels, samples)`, or the levels of a spectrogram, float32 `(channels, bands, frames)`.
            progress: True for a bar on standard error, or a function that is called with the number of samples done and
                the number of all, after each batch.
            **options: See `SamplingOptions`, for instance `solver="ddim", steps=50, guidance=1.5, seed=7`.

        Returns: uint8 pictures `(count, channels, height, width)`, or float32 points `(count, coordinates)`.
        Raises: UserError: For an unknown name, a value out of range, or a condition that the model does not take.
        """
        wanted = asking.asked(self.recipe, label=label, prompt=prompt, values=values, image=image, condition=condition)
        if asked is not None and wanted is not None:
            raise UserError("a condition is given twice, by its place and by its name: give it once")
        generator = self.generator(**options)
        if isinstance(generator, Sampler):
            generator.doubt()
        wanted = asked if wanted is None else wanted
        if progress is False:
            return generator(count, wanted)
        count = generator.counted(count)
        batches = generator.batches(generator.condition(count, wanted), count)
        return torch.cat(list(watched(batches, count, progress)))

    def restyle(
        self,
        picture: Picture,
        *,
        strength: float = 0.6,
        count: int = 1,
        own_size: bool = False,
        **options: Unpack[EditOptions],
    ) -> Tensor:
        """Return versions of a picture, `(count, channels, height, width)`; see `unfog.restyle`.

        Args:
            picture: The picture.
            strength: How much of the way to pure noise: 0 gives the picture itself, 1 a new one.
            count: How many versions.
            own_size: Whether a picture from a file keeps its size.
            **options: See `EditOptions`.

        Raises: UserError: If the picture cannot be read, or the model cannot edit it.
        """
        sampler, asked = self._editor(options)
        return edits.restyle(sampler, asking.picture(picture, sampler, own_size), strength, count, asked)

    def inpaint(
        self,
        picture: Picture,
        mask: Picture,
        *,
        count: int = 1,
        repeats: int = 4,
        own_size: bool = False,
        **options: Unpack[EditOptions],
    ) -> Tensor:
        """Return versions of a picture with the masked part drawn anew; see `unfog.inpaint`.

        Args:
            picture: The picture.
            mask: Like the picture, white where it is drawn anew; or `(height, width)` of bool.
            count: How many versions.
            repeats: How often each step is walked (RePaint); 1 is quick.
            own_size: Whether a picture from a file keeps its size.
            **options: See `EditOptions`.

        Returns: uint8, `(count, channels, height, width)`.
        Raises: UserError: If picture or mask cannot be read or differ in size, or the model cannot edit it.
        """
        sampler, asked = self._editor(options)
        where = asking.mask(mask, picture, sampler, own_size)
        return edits.inpaint(sampler, asking.picture(picture, sampler, own_size), where, count, asked, repeats=repeats)

    def complete(
        self,
        row: Row,
        missing: Tensor | None = None,
        *,
        after: float | None = None,
        count: int = 1,
        repeats: int = 10,
        **options: Unpack[EditOptions],
    ) -> Tensor:
        """Return versions of a series, a clip, a volume or a row of a table with what is missing drawn anew.

        Args:
            row: As stored, `(channels, ...)`, or a file of the run's kind; missing numbers are NaN, or empty cells.
            missing: What is drawn anew: bool, of the row's shape or without its channels. Default: missing numbers.
            after: Instead, the share of moments or frames that is kept: the rest is drawn anew, as a forecast.
            count: How many versions.
            repeats: How often each step is walked (RePaint); 1 is quick. In a gap of three eighths of an oscillation 4
                is three times as far off as 10.
            **options: See `EditOptions`. Without a label or a prompt the row may show anything.

        Returns: As many rows as stored; what is known stays as it is, to the bit.
        Raises: UserError: If the row cannot be read, nothing or all of it is missing, or the model cannot edit it.
        """
        sampler, asked = self._editor(options, free=True)
        asking.check_guided(asked, options.get("guidance"))
        given, where = rowing.incomplete(row, missing, after, sampler)
        return edits.inpaint(sampler, given, where, count, asked, repeats=repeats)

    def restore(
        self,
        picture: Picture,
        operator: str | Operator,
        *,
        noise: float = 0.02,
        how: How = "gradient",
        count: int = 1,
        own_size: bool = False,
        **options: Unpack[EditOptions],
    ) -> Tensor:
        """Return pictures that give a blurred, smaller, masked or cropped one when measured; see `unfog.restore`.

        Args:
            picture: What was measured.
            operator: What measured it: a linear map, or its name such as "blur:1.5", "downsample:4", "crop", or the
                path of a mask or kernel, see `unfog edit restore`.
            noise: Standard deviation of its noise, as a share of the range from black to white.
            how: "gradient", or "pseudo-inverse", which is faster and less exact.
            count: How many.
            own_size: Whether the result has the size that fits a picture from a file, instead of the model's.
            **options: See `EditOptions`. Without a label or a prompt the pictures may show anything.

        Returns: uint8, `(count, channels, height, width)`.
        Raises: UserError: If picture, operator and model do not fit.
        """
        sampler, asked = self._editor(options, free=True)
        asking.check_guided(asked, options.get("guidance"))
        given, _ = restoring.measurement(picture, operator, sampler, noise=noise, own_size=own_size)
        return restore(sampler, given, count, asked, how)

    def outpaint(
        self,
        picture: Picture,
        *,
        left: int = 0,
        right: int = 0,
        top: int = 0,
        bottom: int = 0,
        count: int = 1,
        own_size: bool = False,
        **options: Unpack[EditOptions],
    ) -> Tensor:
        """Return versions of a picture that continue beyond its edges; see `unfog.outpaint`.

        Args:
            picture: The picture.
            left: Pixels to add there.
            right: Pixels to add there.
            top: Pixels to add there.
            bottom: Pixels to add there.
            count: How many versions.
            own_size: Whether a picture from a file keeps its size.
            **options: See `EditOptions`.

        Returns: uint8, `(count, channels, height + top + bottom, width + left + right)`.
        Raises: UserError: If no margin is above 0, or the model cannot edit the picture.
        """
        sampler, asked = self._editor(options)
        margins = left, right, top, bottom
        return edits.outpaint(sampler, asking.picture(picture, sampler, own_size), margins, count, asked)

    def invert(self, picture: Picture, **options: Unpack[EditOptions]) -> tuple[Tensor, Tensor]:
        """Return the noise that a picture comes from, and the picture drawn from it; see `unfog.invert`.

        Args:
            picture: The picture.
            **options: See `EditOptions`; without `steps` there are 50.

        Returns: The noise over its deviation, `(1, *shape)`, and the picture, uint8 `(channels, height, width)`.
        Raises: UserError: If the picture cannot be read, or the model cannot edit it.
        """
        sampler, asked = self._inverter(options)
        return edits.invert(sampler, asking.picture(picture, sampler, False), asked)

    def interpolate(
        self, first: Picture, second: Picture, *, count: int = 9, fresh: bool = False, **options: Unpack[EditOptions]
    ) -> Tensor:
        """Return pictures on the way from one to another, both ends included; see `unfog.interpolate`.

        Args:
            first: A picture.
            second: Another.
            count: How many, 2 or more.
            fresh: Whether one noise of the seed takes the place of those of the ends, for models of embeddings.
            **options: See `EditOptions`; without `steps` there are 50.

        Returns: uint8, `(count, channels, height, width)`.
        Raises: UserError: If a picture cannot be read, or the model cannot edit it.
        """
        sampler, asked = self._inverter(options)
        start, end = (asking.picture(one, sampler, False) for one in (first, second))
        return edits.interpolate(sampler, start, end, count, asked, fresh=fresh)

    def vary(self, picture: Picture, *, amount: float = 0.3, count: int = 1, **options: Unpack[EditOptions]) -> Tensor:
        """Return variations of a picture, from noise near that which it comes from; see `unfog.vary`.

        Args:
            picture: The picture.
            amount: Of the other noise, from 0 to 1.
            count: How many.
            **options: See `EditOptions`; without `steps` there are 50.

        Returns: uint8, `(count, channels, height, width)`.
        Raises: UserError: If the picture cannot be read, or the model cannot edit it.
        """
        sampler, asked = self._inverter(options)
        return edits.vary(sampler, asking.picture(picture, sampler, False), amount, count, asked)

    def steer(
        self,
        picture: Picture,
        before: str,
        after: str,
        *,
        amount: float = 0.4,
        count: int = 5,
        fresh: bool = True,
        **options: Unpack[SamplingOptions],
    ) -> Tensor:
        """Return pictures on the way from one to what it would be if it showed something else; see `unfog.steer`.

        Args:
            picture: The picture.
            before: What it shows.
            after: What it should show.
            amount: How far the last one is on the way, from 0 to 1.
            count: How many, 2 or more; the first shows what the picture does.
            fresh: Whether all come from one new noise, or from that of the picture, which the first then is itself.
            **options: See `SamplingOptions`; without `steps` there are 50.

        Returns: uint8, `(count, channels, height, width)`.
        Raises: UserError: If the picture cannot be read, or the model is not conditioned on embeddings.
        """
        sampler, _ = self._inverter(cast(EditOptions, options))
        return edits.steer(sampler, asking.picture(picture, sampler, False), before, after, amount, count, fresh=fresh)

    def editor(self, **options: Unpack[SamplingOptions]) -> Sampler:
        """Return the sampler by which pictures are edited: that of the run, or of a cascade's decoder.

        Args:
            **options: See `SamplingOptions`.

        Raises: UserError: As `sampler`.
        """
        found = self.generator(**options)
        if not isinstance(found, Cascading) or not isinstance(found.stages[-1].conditioning, Depicting):
            return self.sampler(**options)
        last = found.stages[-1]
        given = {"steps": options.get("steps"), "batch": options.get("batch"), "guidance": options.get("guidance")}
        changes = {name: value for name, value in given.items() if value is not None}
        settings = changed(last.settings, "sampling", changes.items())
        return replace(last, settings=settings, seed=found.seed, precision=self.precision)

    def _editor(self, options: EditOptions, free: bool = False) -> tuple[Sampler, Asked]:
        """Return the sampler of an edit, and what the result shows; with `free` that may be anything."""
        drawing = {name: value for name, value in options.items() if name not in ("label", "prompt")}
        sampler = self.editor(**cast(SamplingOptions, drawing))
        sampler.doubt()
        label, prompt = options.get("label"), options.get("prompt")
        asked = asking.asked(self.recipe, label=label, prompt=prompt)
        return sampler, asked if free else asking.edited(self.recipe, sampler, asked)

    def _inverter(self, options: EditOptions) -> tuple[Sampler, Asked]:
        """Return the sampler of an edit that goes through the noise of a picture, which knows no guidance."""
        return self._editor({**options, "steps": options.get("steps") or INVERTED, "guidance": 1.0})

    def arithmetic(self) -> AbstractContextManager[object]:
        """Return the context in which the network computes."""
        return arithmetic(self.precision, self.device)


def _chosen(field: str, own: Part, wanted: str | Part | None) -> Part:
    """Return a recipe's own part, or the one that is wanted, by its name or as a value."""
    if isinstance(wanted, str):
        return own if wanted == kind_of(field, own) else cast(Part, named(field, wanted))
    return own if wanted is None else wanted


def opened(path: str | Path, device: str = "auto", precision: Precision = "auto") -> Run:
    """Load a run folder, as `unfog.load` does, for use and not to be trained on: that takes nothing of a training.

    Args:
        path: The folder that a training wrote.
        device: Where the network computes.
        precision: Its arithmetic.
    """
    keep_memory()
    path = Path(path)
    recipe = drawing_recipe(path)
    place_at = choose_device(device)
    assert recipe.shape is not None
    wanted = recipe.training.precision_on(place_at, recipe.shape) if precision == "auto" else precision
    return Run(path, recipe, read_model(path, recipe, place_at), wanted)
