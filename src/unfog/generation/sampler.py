"""From a denoiser to samples: fixed batches, one stream of noise for each sample, conditions and guidance."""

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from unfog.data.codecs import Codec
from unfog.diffusion.denoiser import Conditioned, Denoise, Denoiser, on_clock
from unfog.diffusion.fitted import FittedGrid
from unfog.diffusion.grids import Grid
from unfog.diffusion.guidance import CFGPlusPlus, ClassifierFree, Interval
from unfog.diffusion.sampling import trajectory
from unfog.diffusion.schedules import Schedule, expand
from unfog.diffusion.solvers import Ancestral, Solver, Step
from unfog.diffusion.targets import Prediction
from unfog.generation.drawing import FILMED, Drawing, Moment
from unfog.generation.thresholding import bounded
from unfog.networks.conditioning import ClassEmbedding, Cond
from unfog.recipes.build import build_codec, known_of
from unfog.recipes.conditions import Asked
from unfog.recipes.fitting import doubt_grid
from unfog.recipes.recipe import Recipe
from unfog.recipes.settings import Sampling
from unfog.runtime import distributed
from unfog.runtime.brief import brief, in_full
from unfog.runtime.device import Arithmetic, arithmetic, within
from unfog.runtime.errors import UserError, out_of_memory
from unfog.runtime.randomness import normal


@dataclass(frozen=True)
class Sampler(Drawing):
    """Draws samples so that number i is the same, to the bit, in whatever request it comes.

    Attributes:
        denoiser: The model.
        codec: Maps samples back to what is stored.
        solver: The rule of one step.
        grid: Places the steps.
        settings: Steps, guidance, clipping and batch.
        conditioning: Reads requests.
        known: What the model knows of its data.
        seed: Seed of the noise.
        negative: What the samples should not show: guidance leads away from it instead of from nothing.
    """

    denoiser: Denoiser
    codec: Codec
    solver: Solver
    grid: Grid
    settings: Sampling
    negative: Asked = None

    __repr__ = brief

    def __post_init__(self) -> None:
        """Refuse settings of other models."""
        self.settings.check_cold()

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        denoiser: Denoiser,
        seed: int = 0,
        negative: Asked = None,
        precision: Arithmetic = "float32",
    ) -> "Sampler":
        """Return the sampler that a recipe describes."""
        return cls(
            denoiser,
            build_codec(recipe),
            recipe.solver,
            recipe.grid,
            recipe.sampling,
            negative,
            precision=precision,
            conditioning=recipe.conditioning,
            known=known_of(recipe),
            seed=seed,
        )

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return next(self.denoiser.parameters()).device

    def arithmetic(self) -> AbstractContextManager[object]:
        """Return the context in which the model computes."""
        return arithmetic(self.precision, self.device)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample as it is diffused."""
        return self.known.shape

    @property
    def classes(self) -> int:
        """Number of classes that the model is conditioned on; 0 if it is not conditioned on one class."""
        return len(self.known.classes) if isinstance(self.denoiser.embedder, ClassEmbedding) else 0

    @property
    def size(self) -> int:
        """Samples in a batch."""
        return self.settings.portion

    @property
    def evaluations(self) -> int:
        """Evaluations of the network that one sample takes, counted on a denoiser of one number."""
        counting = _Counting(self.denoiser.schedule)
        denoise, times = on_clock(counting, self.grid(counting.schedule, self.settings.steps), self.solver.clock)
        for _ in trajectory(denoise, torch.zeros(1, 1), times, self.solver, noise=lambda step, like: like):
            pass
        return counting.calls * (1 if self.settings.guidance == 1 or self.denoiser.guidance is not None else 2)

    @property
    def described(self) -> dict[str, object]:
        """What samples depend on in addition to model and condition, as plain values by name."""
        settings = replace(self.settings, batch=self.size)
        parts = {"solver": self.solver, "grid": self.grid, "settings": settings}
        named: dict[str, object] = {name: in_full(part) for name, part in parts.items()}
        named["seed"] = self.seed
        return named if self.negative is None else {**named, "negative": self.negative}

    def check(self, condition: Tensor | None) -> None:
        """Refuse settings that do not fit the model, and warn of a grid that does not.

        Raises: UserError: If they do not.
        """
        self.denoise(None if condition is None else condition[:1])
        self.doubt()

    def doubt(self) -> None:
        """Warn of a grid that does not fit the schedule, unless it was fitted, and of a solver that takes no jumps."""
        if self.denoiser.span is not None and not self.solver.leads:
            warnings.warn(
                "this model is a flow map, and only ddim takes its jumps: another solver uses it as a denoiser, which "
                "students do not learn to be",
                stacklevel=2,
            )
        if not isinstance(self.grid, FittedGrid):
            doubt_grid(self.denoiser.schedule, self.grid, self.settings.steps)

    def denoise(self, condition: Tensor | None) -> tuple[Denoise, Tensor]:
        """Return the wrapped denoiser for the condition of one batch, on the solver's clock, and the times there.

        Without a condition a conditional model predicts as it learned to where its condition was dropped.
        """
        times = self.grid(self.denoiser.schedule, self.settings.steps)
        ends = times if self.solver.leads else None
        embedder, device = self.denoiser.embedder, self.device
        nothing = None if embedder is None or condition is not None else _at(embedder.null(self.size), device)
        denoise: Denoise = Conditioned(self.denoiser, nothing, ends)
        if embedder is not None and condition is not None:
            embedded = embedder(condition.to(device))  # first, since it gathers the weights that are sharded
            free = embedder.null(len(condition))
            if self.negative is not None:
                avoided = self.conditioning.ask(self.known, self.negative, len(condition))
                assert avoided is not None
                free = embedder(avoided.to(device))
            pair = tuple(Conditioned(self.denoiser, _at(cond, device), ends) for cond in (embedded, free))
            denoise = (
                self._guided(*pair) if self.denoiser.guidance is None else self._as_guided(pair[0], len(condition))
            )
        if self.negative is not None and self.settings.guidance == 1:
            raise UserError("a negative condition needs guidance: set guidance above 1")
        if condition is None and self.settings.guidance != 1:
            raise UserError(
                "guidance needs a model that was trained with conditions: set it to 1 (sampling.guidance=1 in a recipe)"
            )
        denoise = bounded(denoise, self.settings, self.codec.bounds)
        learned = isinstance(self.solver, Ancestral) and self.solver.variance == "learned"
        if learned and not self.denoiser.learned_variance:
            raise UserError("solver.variance 'learned' needs a model that was trained with variance=learned")
        return on_clock(denoise, times, self.solver.clock)

    def _as_guided(self, conditional: Conditioned, rows: int) -> Denoise:
        """Return a model that learned to predict as if it was guided, with the scale among the conditions of rows."""
        learned, scale = self.denoiser.guidance, self.settings.guidance
        assert learned is not None
        if not learned.low <= scale <= learned.high:
            raise UserError(
                f"this model learned guidance from {learned.low:g} to {learned.high:g}, not {scale:g}: choose one "
                "between, or train a student with other `scales`"
            )
        if self.negative is not None:
            raise UserError("this model learned guidance away from no condition: omit the negative one")
        known = conditional.cond if isinstance(conditional.cond, Cond) else Cond()
        scales = torch.full((rows,), scale, device=self.device)
        return replace(conditional, cond=known.plus(learned(scales)))

    def _guided(self, conditional: Denoise, free: Denoise) -> Denoise:
        """Return the guided denoiser that the settings describe."""
        settings = self.settings
        if settings.guidance_kind == "cfg++":
            if not self.solver.pairwise:
                raise UserError("cfg++ works only with first-order rules of the pair: solver ddim or ancestral")
            return CFGPlusPlus(conditional, free, settings.guidance)
        interval = None if settings.guidance_interval is None else Interval(*settings.guidance_interval)
        return ClassifierFree(conditional, free, settings.guidance, interval, settings.guidance_rescale)

    def start(self, first: int, schedule: Schedule, t: Tensor) -> Tensor:
        """Return sigma(t)·z for samples `first` to `first + batch - 1`: what every solver begins with."""
        start = normal(self.seed, "start", 0, first, self.size, self.shape)
        return (schedule.sigma(t) * start).to(self.device)

    def steps(self, first: int, condition: Tensor | None) -> Iterator[Step]:
        """Yield the steps of one full batch: samples `first` to `first + batch - 1`.

        Args:
            first: Number of the first sample.
            condition: The condition of each sample of the batch, or None.

        Yields: The steps, in the space of the diffusion.
        """
        return within(self.arithmetic, self._steps(first, condition))

    @torch.inference_mode()  # as a decorator it is off while the caller holds a step
    def _steps(self, first: int, condition: Tensor | None) -> Iterator[Step]:
        """Yield the steps, computed in whatever arithmetic is set."""

        def noise(step: int, like: Tensor) -> Tensor:
            return normal(self.seed, "step", step, first, self.size, self.shape).to(like.device)

        denoise, times = self.denoise(condition)
        x = self.start(first, denoise.schedule, times[0])
        yield from trajectory(denoise, x, times, self.solver, noise=noise)

    def batches(self, condition: Tensor | None, count: int, skip: int = 0) -> Iterator[Tensor]:
        """Return samples 0 to `count` - 1 under a condition in batches on the CPU, but for the first `skip` batches.

        Several processes share the batches out, and all of them yield all.
        """
        if condition is not None and len(condition) != count:
            raise UserError(f"{len(condition)} conditions do not fit {count} samples")
        return within(self.arithmetic, self._batches(condition, count, skip))

    def _batches(self, condition: Tensor | None, count: int, skip: int) -> Iterator[Tensor]:
        """Yield the batches, computed in whatever arithmetic is set."""
        size = portion = self.size
        for start in range(skip * size, count, size * distributed.size()):
            first = start + size * distributed.rank()
            drawn, portion = self._fitting(first, self.padded(condition, first), portion)
            for place, batch in enumerate(torch.split(distributed.gather(drawn), size)):
                if (left := count - start - place * size) > 0:
                    yield batch[:left].cpu()

    def _fitting(self, first: int, condition: Tensor | None, portion: int) -> tuple[Tensor, int]:
        """Return a batch in portions that memory holds, and their size: of `portion` samples, or a half, or a half.

        In smaller portions samples are the same but for rounding.
        """
        while True:
            part = replace(self, settings=replace(self.settings, batch=portion))
            places = range(0, self.size, portion)
            try:
                drawn = [part._last(first + place, part.padded(condition, place)) for place in places]
                return torch.cat(drawn)[: self.size], portion
            except (RuntimeError, MemoryError) as error:
                if portion == 1 or distributed.size() > 1 or not out_of_memory(error):  # others would wait for one
                    raise
            portion //= 2
            warnings.warn(
                f"{2 * portion} samples at a time do not fit the memory: they are drawn {portion} at a time, which "
                "lowering sampling.batch would do from the start",
                stacklevel=2,
            )

    def _last(self, first: int, condition: Tensor | None) -> Tensor:
        """Return a full batch, decoded."""
        for step in self.steps(first, condition):
            x = step.x
        return self.codec.decode(x)

    def moments(self, count: int, asked: Asked = None) -> Iterator[Moment]:
        """Yield how samples 0 to `count` - 1 stand at every time of the grid, from noise to data.

        Args:
            count: Number of samples.
            asked: What they should show, see `condition`.

        Raises: UserError: If `count` is not between 1 and 64, or the size of a batch if that is larger.
        """
        most = max(FILMED, self.size)
        if not 1 <= count <= most:
            raise UserError(f"a film shows 1 to {most} samples, not {count}")
        condition = self.condition(count, asked)
        denoise, times = self.denoise(self.padded(condition, 0))
        starts = [self.start(first, denoise.schedule, times[0]) for first in range(0, count, self.size)]
        x, last = torch.cat(starts)[:count], len(times) - 1
        for number, step in enumerate(self.together(count, condition)):
            yield Moment(float(step.t), shown(x, denoise.schedule, step.t), step.prediction.x0, number, last)
            x = step.x
        yield Moment(float(times[-1]), x, x, last, last)

    def together(self, count: int, condition: Tensor | None) -> Iterator[Step]:
        """Yield the steps of samples 0 to `count` - 1, the batches of which advance together.

        Args:
            count: Number of samples.
            condition: The condition of each sample, `(count, ...)`, or None.
        """
        firsts = range(0, count, self.size)
        for steps in zip(*(self.steps(first, self.padded(condition, first)) for first in firsts), strict=True):
            x0, eps = (torch.cat([getattr(step.prediction, name) for step in steps])[:count] for name in ("x0", "eps"))
            x = torch.cat([step.x for step in steps])[:count]
            yield Step(steps[0].t, steps[0].s, x, Prediction(x0, eps))


class _Counting:
    """Counts how often a solver evaluates a denoiser."""

    def __init__(self, schedule: Schedule) -> None:
        """Begin at 0."""
        self.schedule, self.calls = schedule, 0

    def __call__(self, x: Tensor, t: Tensor) -> Prediction:
        """Count."""
        self.calls += 1
        return Prediction(x, torch.zeros_like(x), torch.zeros_like(x))


def _at(cond: Cond, device: torch.device) -> Cond:
    """Return a condition on a device."""
    parts = (getattr(cond, field.name) for field in fields(cond))
    return Cond(*(None if part is None else part.to(device) for part in parts))


def shown(x: Tensor, schedule: Schedule, t: Tensor) -> Tensor:
    """Return states at time `t`, `()` or `(batch,)`, for the eye: scaled down to unit variance where they exceed it."""
    return x / expand(torch.hypot(schedule.alpha(t), schedule.sigma(t)).clamp(min=1), x)
