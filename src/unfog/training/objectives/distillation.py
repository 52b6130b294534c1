"""Distillation: a flow map that learns to jump along the trajectories of a trained model."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from unfog.data.source import Indices, shuffled
from unfog.diffusion.denoiser import Denoiser
from unfog.diffusion.objectives import flow_map_loss, jump_loss
from unfog.diffusion.targets import Prediction
from unfog.generation.trajectories import MOST, Trajectories, bytes_of
from unfog.networks.conditioning import Cond
from unfog.recipes.build import PARAMETERS, stored_shape
from unfog.recipes.objective import Context, Draw, HeldOut, Seen
from unfog.recipes.recipe import Recipe
from unfog.runtime.errors import UserError
from unfog.runtime.randomness import uniform
from unfog.runtime.tensors import read_tensors
from unfog.training.objectives.teachers import Student, asked, guided, room, taken, teacher_of

SHARE = 0.25
"""Of a budget for the trajectories, at most."""
FEW, MANY, REPEATED = 4096, 65_536, 40
"""The fewest and the most trajectories that are made by default, and how often a training sees each in between."""
FEWEST, POINTS = 64, 1000
"""The fewest trajectories, and the most steps of each."""
REMADE = "remove the folder to have them made again"
IMAGINED = 64
"""Trajectories of a training that is only planned."""
NEARER = 0.25
"""How much nearer the target of consistency tuning leads from at first."""


@dataclass(frozen=True)
class Distillation(Student):
    """|output - (a·x0* + b·eps*)|² for the pair that leads from one state of a teacher's trajectory to a later one.

    x_t = alpha_t·x0* + sigma_t·eps* and x_s = alpha_s·x0* + sigma_s·eps*: with rectified flow the mean velocity between
    them. `unfog distill` sets the first four options.

    Attributes:
        teacher: Run folder of the teacher.
        weights: SHA-256 of its weights.
        low: Lowest scale of guidance.
        high: Highest scale of guidance; where it is above `low`, the student takes the scale as a number.
        rows: Trajectories; 0 for as many as suit the length of the training.
        points: Steps of each.
        from_noise: Share of the rows that start at pure noise; the others start anywhere on the way.
        to_data: Share of the rows that lead to clean data; the others lead to any later point.
        tuning: Share of the training, at its end, for consistency tuning: rows of the data, noised, that are to lead
            where the student leads from a little nearer.
        last: How much nearer at the end, as a share of the way; a quarter at first.

    Source: Luhman & Luhman 2021, Knowledge Distillation in Iterative Generative Models (end points); Geng et al. 2025,
        Mean Flows for One-step Generative Modeling, section 3 (mean velocity); Geng et al. 2024, Consistency Models
        Made Easy, for the tuning.
    """

    rows: int = 0
    points: int = 16
    from_noise: float = 0.25
    to_data: float = 0.5
    tuning: float = 0.0
    last: float = 0.01

    def __post_init__(self) -> None:
        """Check the numbers."""
        if not 0 <= self.low <= self.high:
            raise UserError("objective.low must be 0 or more, and not above objective.high")
        if self.rows and self.rows < FEWEST:
            raise UserError(f"objective.rows must be {FEWEST} or more, or 0 for as many as suit the training")
        if not 2 <= self.points <= POINTS:
            raise UserError(f"objective.points must be from 2 to {POINTS:,}, not {self.points}")
        if not (0 <= self.from_noise <= 1 and 0 <= self.to_data <= 1):
            raise UserError("objective.from_noise and objective.to_data must lie between 0 and 1")
        if not (0 <= self.tuning <= 1 and 0 < self.last <= NEARER):
            raise UserError(f"objective.tuning is a share of the training, and objective.last above 0 up to {NEARER}")

    def check(self, model: nn.Module, held_out: HeldOut, context: Context) -> None:
        """Refuse trajectories whose conditions are not those of the data, and what `Denoising` refuses."""
        if self.teacher and self.files(context):
            self._check_conditions(self.trajectories(context), held_out(np.arange(1)).condition, context)
        super().check(model, held_out, context)

    def _check_conditions(self, found: Trajectories, wanted: Tensor | None, context: Context) -> None:
        """Refuse conditions that have another form than a row of the data has.

        Raises: UserError: If they do, or name a class that there is not.
        """
        given = found.condition
        same = (given is None) == (wanted is None)
        if given is not None and wanted is not None:
            same = given.shape[1:] == wanted.shape[1:] and given.dtype == wanted.dtype
            if same and context.recipe.classes and given.shape[1:] == () and not given.is_floating_point():
                same = int(given.min()) >= 0 and int(given.max()) < len(context.recipe.classes)
        assert context.folder is not None
        if not same or not bool(found.guidance.ge(self.low).logical_and(found.guidance.le(self.high)).all()):
            where = context.folder / self.folder(context.recipe.seed)
            raise UserError(f"{where}: the conditions are not those of the data: {REMADE}")

    def folder(self, seed: int) -> str:
        """Return where a run folder holds the trajectories: its name says of which weights, drawn how."""
        drawn = repr((self.weights, self.low, self.high, self.points, seed))
        return f"trajectories-{hashlib.sha256(drawn.encode()).hexdigest()[:12]}"

    def state(self, context: Context) -> dict[str, Tensor]:
        """Return room for the teacher, whose guidance consistency tuning needs."""
        return room(self.build(context.recipe, PARAMETERS).state_dict()) if self.tuning else {}

    def update(self, batch: Draw, losses: Tensor, context: Context) -> dict[str, Tensor]:
        """Return the state, with the weights that the student begins with as its teacher."""
        return taken(context, 0) if self.tuning else {}

    def losses(self, model: nn.Module, batch: Draw, context: Context) -> dict[str, Tensor]:
        """Return the loss of each row."""
        if self.consistent(context.progress):
            return {"loss": self.tuned(model, batch, context)}
        found = self.trajectories(context)
        return {"loss": self.missed(model, found, *self.drawn(found, batch, context))}

    def consistent(self, progress: float) -> bool:
        """Return whether a share of the training belongs to consistency tuning."""
        return self.tuning > 0 and progress >= 1 - self.tuning

    def tuned(self, model: nn.Module, batch: Draw, context: Context) -> Tensor:
        """Return the loss of consistency tuning, `(batch,)`: `flow_map_loss` on data, under a scale of each row."""
        assert isinstance(model, Denoiser)
        t, s, scales = self.spread(batch, context)
        x_t = context.recipe.schedule.add_noise(batch.x0, batch.noise, t)
        with torch.no_grad():
            own = Prediction(batch.x0, batch.noise)
            pair = guided(teacher_of(model, context), batch, x_t, t, scales.to(x_t.device), own)
        done = (context.progress - 1 + self.tuning) / self.tuning
        ratio = NEARER * (self.last / NEARER) ** done
        cond = asked(model, batch, scales.to(x_t.device))
        return flow_map_loss(model, pair.x0, cond, t=t, s=s, ratio=ratio, noise=pair.eps)

    def spread(self, batch: Draw, context: Context) -> tuple[Tensor, Tensor, Tensor]:
        """Return of each row in consistency tuning the times between which it is to lead, and the scale of guidance."""
        assert batch.numbers is not None
        drawn = uniform(context.recipe.seed, "tuning", 0, int(batch.numbers[0]), len(batch.numbers), 4)
        start, end, share, scale = torch.from_numpy(drawn).unbind(1)
        t = context.recipe.times(batch.u.cpu(), context.recipe.schedule)
        t = torch.where(start < self.from_noise, context.recipe.schedule.t_max, t)
        s = torch.where(end < self.to_data, 0.0, share * t)
        return t, s, (self.low + (self.high - self.low) * scale).float()

    def drawn(self, found: Trajectories, batch: Draw, context: Context) -> tuple[Indices, Indices, Indices]:
        """Return which trajectories take the place of a batch's rows, and from which of their points to which."""
        assert batch.numbers is not None
        held, seed = held_out_of(found), context.recipe.seed
        first, count = int(batch.numbers[0]), len(batch.numbers)
        rows = shuffled(len(found) - held, seed, first, count)
        far = uniform(seed, "jumps", 0, first, count, 2)
        return rows, *self.ways(batch.u.numpy(), far, found.times.shape[1] - 1)

    def seen(self, batch: Draw, context: Context) -> Seen:
        """Return the states of the trajectories, with their own numbers; in consistency tuning the noised rows."""
        if self.consistent(context.progress):
            t, s, _ = self.spread(batch, context)
            return Seen(context.recipe.schedule.add_noise(batch.x0, batch.noise, t), t, batch.x0, s)
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

        Without a teacher, as in a training that is only planned, all states are 0.

        Raises: UserError: If there are none, or they are damaged.
        """
        if not self.teacher:
            return self.imagined(context)
        assert context.folder is not None
        where, files = context.folder / self.folder(context.recipe.seed), self.files(context)
        if not files:
            raise UserError(f"{where} holds no trajectories: resume the training, which makes them")
        found = _read(tuple(files), tuple(file.stat().st_mtime_ns for file in files))
        shape = context.codec.shape(stored_shape(context.recipe))
        if found.x.shape[1:] != (self.points + 1, *shape):
            raise UserError(f"{where} holds trajectories of other data: {REMADE}")
        return found

    def files(self, context: Context) -> list[Path]:
        """Return the files of the trajectories that the run folder holds."""
        assert context.folder is not None
        return sorted((context.folder / self.folder(context.recipe.seed)).glob("*.safetensors"))

    def imagined(self, context: Context) -> Trajectories:
        """Return trajectories of zeros, which take no memory."""
        schedule = context.recipe.schedule
        shape = (IMAGINED, self.points + 1)
        x = torch.zeros((), dtype=torch.float16).expand(*shape, *context.codec.shape(stored_shape(context.recipe)))
        times = torch.linspace(schedule.t_max, 0, self.points + 1, dtype=torch.float64).expand(shape)
        return Trajectories(x, times, torch.full((IMAGINED,), self.high), None)

    def wanted(self, recipe: Recipe) -> int:
        """Return how many trajectories are to be made: `rows`, or by the length of the training.

        Within a budget as many as its share allows, else so many that making them takes about a fifth of the time: a
        trajectory of 16 steps under guidance is 32 evaluations, as many as training on ten rows takes.
        """
        if self.rows:
            return self.rows
        return MANY if recipe.training.seconds else min(MANY, max(FEW, recipe.training.images // REPEATED))

    def most(self, recipe: Recipe, shape: tuple[int, ...]) -> int:
        """Return how many trajectories are made of states of a shape: as many as are wanted and 1 GiB holds."""
        return min(self.wanted(recipe), MOST // bytes_of(shape, self.points))

    def ahead(self, recipe: Recipe, shape: tuple[int, ...]) -> int:
        """Return the evaluations of the trajectories: a step of each is one, or two under guidance."""
        return self.most(recipe, shape) * self.points * (2 if self.low < self.high else 1)


def held_out_of(found: Trajectories) -> int:
    """Return how many trajectories, the last ones, are not trained on."""
    return max(1, len(found) // 16)


@lru_cache(1)
def _read(files: Sequence[Path], changed: Sequence[int]) -> Trajectories:
    """Return the trajectories of files, read once as long as they do not change."""
    try:
        return Trajectories.joined(read_tensors(file) for file in files)
    except UserError as error:
        raise UserError(f"{files[0].parent}: {error}: {REMADE}") from None
