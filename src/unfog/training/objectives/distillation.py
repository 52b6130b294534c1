"""Distillation: a flow map that learns to jump along the trajectories of a trained model."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from unfog.data.source import Indices, shuffled
from unfog.diffusion.denoiser import Denoiser
from unfog.diffusion.objectives import jump_loss
from unfog.generation.trajectories import Range, Trajectories
from unfog.networks.conditioning import Cond
from unfog.recipes.build import build_denoiser, stored_shape
from unfog.recipes.objective import Context, Draw, Generator, HeldOut, OneLoss, Seen
from unfog.recipes.recipe import Recipe
from unfog.runtime.errors import UserError
from unfog.runtime.randomness import uniform
from unfog.runtime.tensors import read_tensors
from unfog.training.objectives.denoising import Denoising

_PLAIN = Denoising()


@dataclass(frozen=True)
class Distillation(OneLoss):
    """|output - (a·x0* + b·eps*)|² for the pair that leads from one state of a teacher's trajectory to a later one.

    x_t = alpha_t·x0* + sigma_t·eps* and x_s = alpha_s·x0* + sigma_s·eps*: with rectified flow the mean velocity between
    them. `unfog distill` sets the first four options.

    Attributes:
        teacher: Run folder of the teacher.
        weights: SHA-256 of its weights.
        low: Lowest scale of guidance.
        high: Highest scale of guidance; where it is above `low`, the student takes the scale as a number.
        rows: Trajectories.
        points: Steps of each.
        from_noise: Share of the rows that start at pure noise; the others start anywhere on the way.
        to_data: Share of the rows that lead to clean data; the others lead to any later point.

    Source: Luhman & Luhman 2021, Knowledge Distillation in Iterative Generative Models (end points); Geng et al. 2025,
        Mean Flows for One-step Generative Modeling, section 3 (mean velocity).
    """

    teacher: str = ""
    weights: str = ""
    low: float = 1.0
    high: float = 1.0
    rows: int = 4096
    points: int = 16
    from_noise: float = 0.25
    to_data: float = 0.5
    draws: ClassVar[bool] = True
    jumps: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the numbers."""
        if not (0 <= self.low <= self.high and self.rows >= 64 and self.points >= 2):
            raise UserError("objective.rows must be 64 or more, points 2 or more, and low not above high")
        if not (0 <= self.from_noise <= 1 and 0 <= self.to_data <= 1):
            raise UserError("objective.from_noise and objective.to_data must lie between 0 and 1")

    def folder(self, seed: int) -> str:
        """Return where a run folder holds the trajectories: its name says of which weights, drawn how."""
        drawn = repr((self.weights, self.low, self.high, self.points, seed))
        return f"trajectories-{hashlib.sha256(drawn.encode()).hexdigest()[:12]}"

    @property
    def scales(self) -> Range:
        """Between which the guidance lies."""
        return Range(self.low, self.high)

    def build(self, recipe: Recipe, most: int) -> nn.Module:
        """Return the student."""
        return build_denoiser(recipe, most, span=True, guidance=self.scales if self.low < self.high else None)

    def check(self, model: nn.Module, held_out: HeldOut, context: Context) -> None:
        """Refuse what `Denoising` refuses."""
        _PLAIN.check(model, held_out, context)

    def losses(self, model: nn.Module, batch: Draw, context: Context) -> dict[str, Tensor]:
        """Return the loss of each row."""
        found = self.trajectories(context)
        return {"loss": self.missed(model, found, *self.drawn(found, batch, context))}

    def drawn(self, found: Trajectories, batch: Draw, context: Context) -> tuple[Indices, Indices, Indices]:
        """Return which trajectories take the place of a batch's rows, and from which of their points to which."""
        assert batch.numbers is not None
        held, seed = held_out_of(found), context.recipe.seed
        first, count = int(batch.numbers[0]), len(batch.numbers)
        rows = shuffled(len(found) - held, seed, first, count)
        far = uniform(seed, "jumps", 0, first, count, 2)
        return rows, *self.ways(batch.u.numpy(), far, found.times.shape[1] - 1)

    def seen(self, batch: Draw, context: Context) -> Seen:
        """Return the states of the trajectories, with their own numbers."""
        found = self.trajectories(context)
        rows, start, end = self.drawn(found, batch, context)
        states = (found.x[rows, at].float() for at in (start, end))
        times = (found.times[rows, at] for at in (start, end))
        (x_t, x_s), (t, s) = states, times
        return Seen(x_t, t, x_s, s, torch.from_numpy(rows))

    def ways(self, u: np.ndarray, drawn: np.ndarray, points: int) -> tuple[Indices, Indices]:
        """Return from which point of its trajectory each row leads to which, by three uniform numbers."""
        later = 1 + (u - self.from_noise) / max(1 - self.from_noise, 1e-9) * (points - 1)
        start = np.where(u < self.from_noise, 0, later).astype(np.int64).clip(0, points - 1)
        end = np.where(drawn[:, 0] < self.to_data, points, start + 1 + drawn[:, 1] * (points - start))
        return start, end.astype(np.int64).clip(max=points)

    def missed(self, model: nn.Module, found: Trajectories, rows: Indices, start: Indices, end: Indices) -> Tensor:
        """Return the mean square of what a student misses the pair of each jump by, `(batch,)`."""
        assert isinstance(model, Denoiser)
        device = next(model.parameters()).device
        x_t, x_s = (found.x[rows, at].float().to(device) for at in (start, end))
        t, s = (found.times[rows, at] for at in (start, end))
        cond = None
        if model.embedder is not None and found.condition is not None:
            cond = model.embedder(found.condition[rows].to(device))
        if model.guidance is not None:
            cond = (cond or Cond()).plus(model.guidance(found.guidance[rows].to(device)))
        return jump_loss(model, x_t, x_s, cond, t=t, s=s)

    def measured(self, model: nn.Module, batch: Draw, context: Context) -> Tensor:
        """Return what one jump from noise to data misses on trajectories that are held out."""
        found = self.trajectories(context)
        assert batch.numbers is not None
        held = held_out_of(found)
        rows = len(found) - held + batch.numbers.numpy() % held
        zero = np.zeros(len(rows), dtype=np.int64)
        return self.missed(model, found, rows, zero, zero + found.times.shape[1] - 1)

    def trajectories(self, context: Context) -> Trajectories:
        """Return the trajectories in the run folder.

        Raises: UserError: If there are none, or they are damaged.
        """
        assert context.folder is not None
        where = context.folder / self.folder(context.recipe.seed)
        files = sorted(where.glob("*.safetensors"))
        if not files:
            raise UserError(f"{where} holds no trajectories: resume the training, which makes them")
        found = _read(tuple(files), tuple(file.stat().st_mtime_ns for file in files))
        shape = context.codec.shape(stored_shape(context.recipe))
        if found.x.shape[1:] != (self.points + 1, *shape):
            raise UserError(f"{where} holds trajectories of other data: remove the folder to have them made again")
        return found

    def preview(self, model: nn.Module, held_out: HeldOut, context: Context) -> Image.Image:
        """Return a sheet of samples."""
        return _PLAIN.preview(model, held_out, context)

    def generator(self, recipe: Recipe, model: nn.Module) -> Generator:
        """Return the recipe's sampler."""
        return _PLAIN.generator(recipe, model)


def held_out_of(found: Trajectories) -> int:
    """Return how many trajectories, the last ones, are not trained on."""
    return max(1, len(found) // 16)


@lru_cache(1)
def _read(files: Sequence[Path], changed: Sequence[int]) -> Trajectories:
    """Return the trajectories of files, read once as long as they do not change."""
    try:
        return Trajectories.joined(read_tensors(file) for file in files)
    except UserError as error:
        raise UserError(f"{files[0].parent}: {error}: remove the folder to have them made again") from None
