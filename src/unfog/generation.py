"""From a denoiser to samples: fixed batches, one stream of noise for each sample, labels and guidance."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import index

import torch
from torch import Tensor

from unfog.data.codecs import Codec
from unfog.diffusion.denoiser import Clipped, Conditioned, Denoise, Denoiser, Rescheduled, edm_clock
from unfog.diffusion.grids import Grid
from unfog.diffusion.guidance import CFGPlusPlus, ClassifierFree, Interval
from unfog.diffusion.sampling import trajectory
from unfog.diffusion.schedules import Schedule
from unfog.diffusion.solvers import Ancestral, Solver, Step
from unfog.errors import UserError
from unfog.randomness import normal
from unfog.registry import Recipe
from unfog.settings import Sampling


@dataclass(frozen=True)
class Sampler:
    """Draws samples so that number i is the same, to the bit, in whatever request it comes.

    Attributes:
        denoiser: The model.
        shape: Shape of one sample.
        codec: Maps samples back to what is stored.
        solver: The rule of one step.
        grid: Places the steps.
        settings: Steps, guidance, clipping and batch.
        seed: Seed of the noise.
    """

    denoiser: Denoiser
    shape: tuple[int, ...]
    codec: Codec
    solver: Solver
    grid: Grid
    settings: Sampling
    seed: int = 0

    @classmethod
    def of(cls, recipe: Recipe, denoiser: Denoiser, seed: int = 0) -> "Sampler":
        """Return the sampler that a recipe describes."""
        assert recipe.shape is not None
        settings: Sampling = recipe.sampling.build()
        solver, grid = recipe.solver.build(), recipe.grid.build()
        return cls(denoiser, recipe.shape, recipe.build_codec(), solver, grid, settings, seed)

    @property
    def classes(self) -> int:
        """Number of classes of the model; 0 if it is unconditional."""
        return self.denoiser.embedder.classes if self.denoiser.embedder else 0

    def labels(self, count: int, label: int | Sequence[int] | None = None) -> Tensor | None:
        """Return the label of each sample: as asked, else the classes in turn; None for unconditional models.

        Raises: UserError: If a label is out of range or the model knows no classes.
        """
        if not self.classes:
            if label is not None:
                raise UserError("this model was trained without classes: leave the label away")
            return None
        wanted = [place % self.classes for place in range(count)] if label is None else label
        try:
            given = [index(one) for one in wanted] if isinstance(wanted, Iterable) else [index(wanted)] * count
        except TypeError:
            raise UserError(f"labels are whole numbers, not {label!r}") from None
        chosen = torch.tensor(given, dtype=torch.long)
        if len(chosen) != count:
            raise UserError(f"{len(chosen)} labels do not fit {count} samples")
        for value in chosen.tolist():
            if not 0 <= value < self.classes:
                raise UserError(f"the label {value} is out of range: this model knows 0 to {self.classes - 1}")
        return chosen

    def denoise(self, labels: Tensor | None) -> tuple[Denoise, Tensor]:
        """Return the wrapped denoiser for one batch of labels, and the times at which to call it.

        A velocity solver on a table, which has no rates, works on the EDM clock at the same noise levels.
        """
        denoise: Denoise = Conditioned(self.denoiser, None)
        labels = None if labels is None else labels.to(next(self.denoiser.parameters()).device)
        if self.denoiser.embedder is not None and labels is not None:
            free = Conditioned(self.denoiser, self.denoiser.embedder.null(len(labels)))
            denoise = self._guided(Conditioned(self.denoiser, self.denoiser.embedder(labels)), free)
        elif self.settings.guidance != 1:
            raise UserError(
                "guidance needs a model that was trained with classes: set it to 1 (sampling.guidance=1 in a recipe)"
            )
        if self.settings.clip and self.codec.bounds is not None:
            denoise = Clipped(denoise, *self.codec.bounds, keep_eps=self.settings.guidance_kind == "cfg++")
        learned = isinstance(self.solver, Ancestral) and self.solver.variance == "learned"
        if learned and not self.denoiser.learned_variance:
            raise UserError("solver.variance 'learned' needs a model that was trained with variance=learned")
        schedule = self.denoiser.schedule
        times = self.grid(schedule, self.settings.steps)
        if self.solver.velocity and schedule.steps:
            clock = edm_clock(schedule)
            # rounding may lead a last digit past the end of the clock
            return Rescheduled(denoise, clock), clock.time(schedule.log_snr(times)).clamp(max=clock.t_max)
        return denoise, times

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
        start = normal(self.seed, "start", 0, first, self.settings.batch, self.shape)
        return (schedule.sigma(t) * start).to(next(self.denoiser.parameters()).device)

    @torch.inference_mode()  # as a decorator it is off while the caller holds a step
    def steps(self, first: int, labels: Tensor | None) -> Iterator[Step]:
        """Yield the steps of one full batch: samples `first` to `first + batch - 1`.

        Args:
            first: Number of the first sample.
            labels: A label for each sample of the batch, or None.

        Yields: The steps, in the space of the diffusion.
        """

        def noise(step: int, like: Tensor) -> Tensor:
            return normal(self.seed, "step", step, first, self.settings.batch, self.shape).to(like.device)

        denoise, times = self.denoise(labels)
        x = self.start(first, denoise.schedule, times[0])
        yield from trajectory(denoise, x, times, self.solver, noise=noise)

    def batches(self, count: int, label: int | Sequence[int] | None = None) -> Iterator[Tensor]:
        """Yield samples 0 to `count` - 1 in batches, decoded, on the CPU."""
        labels = self.labels(count, label)
        for first in range(0, count, self.settings.batch):
            size = min(self.settings.batch, count - first)
            for step in self.steps(first, self._padded(labels, first)):
                x = step.x
            yield self.codec.decode(x[:size]).cpu()

    def _padded(self, labels: Tensor | None, first: int) -> Tensor | None:
        """Return the labels of one batch, the last one repeated to fill it."""
        if labels is None:
            return None
        rows = torch.arange(first, first + self.settings.batch).clamp(max=len(labels) - 1)
        return labels[rows]

    def __call__(self, count: int, label: int | Sequence[int] | None = None) -> Tensor:
        """Return `count` samples, `(count, *shape)`, as stored: uint8 for pictures.

        Args:
            count: Number of samples.
            label: One label for all, one for each, or None for all classes in turn.

        Raises: UserError: If `count` is below 1 or a label is out of range.
        """
        if count < 1:
            raise UserError(f"the number of samples must be 1 or more, not {count}")
        return torch.cat(list(self.batches(count, label)))

    def film(self, count: int, label: int | Sequence[int] | None = None) -> list[tuple[Tensor, Tensor]]:
        """Return the decoded (x_t, predicted x0) of samples 0 to `count` - 1 at every time of the grid.

        Returns: One pair for each time, each part `(count, *shape)`; at the last time both are the sample.
        Raises: UserError: If `count` is not between 1 and the size of a batch.
        """
        if not 1 <= count <= self.settings.batch:
            raise UserError(f"a film shows 1 to {self.settings.batch} samples, not {count}")
        labels = self._padded(self.labels(count, label), 0)
        denoise, times = self.denoise(labels)
        x, moments = self.start(0, denoise.schedule, times[0]), []
        for step in self.steps(0, labels):
            moments.append((self._shown(x, denoise.schedule, step.t), step.prediction.x0))
            x = step.x
        moments.append((x, x))
        return [(self.codec.decode(x[:count]).cpu(), self.codec.decode(x0[:count]).cpu()) for x, x0 in moments]

    @staticmethod
    def _shown(x: Tensor, schedule: Schedule, t: Tensor) -> Tensor:
        """Return a state for the eye: where the noise exceeds unit variance, scaled down to it."""
        return x / max(1.0, float(torch.hypot(schedule.alpha(t), schedule.sigma(t))))
