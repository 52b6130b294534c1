"""Progressive distillation: a student that takes two steps of its teacher in one, and becomes the next teacher."""

import copy
import math
from dataclasses import dataclass
from typing import ClassVar
from weakref import WeakKeyDictionary

import torch
from PIL import Image
from torch import Tensor, nn

from unfog.diffusion.denoiser import Denoiser
from unfog.diffusion.objectives import jump_loss
from unfog.diffusion.schedules import expand
from unfog.diffusion.targets import Prediction
from unfog.generation.trajectories import Range
from unfog.networks.conditioning import Cond
from unfog.recipes.build import PARAMETERS, build_denoiser
from unfog.recipes.objective import Context, Draw, Generator, HeldOut, OneLoss, Seen
from unfog.recipes.recipe import Recipe
from unfog.runtime.errors import UserError
from unfog.runtime.randomness import uniform
from unfog.training.objectives.denoising import Denoising

_PLAIN = Denoising()
_FROZEN: WeakKeyDictionary[nn.Module, tuple[int, Denoiser]] = WeakKeyDictionary()
"""Of each model that is trained the stage and its teacher, which is made of the objective's state."""
STAGE, TEACHER = "stage", "teacher/"


@dataclass(frozen=True)
class Progressive(OneLoss):
    """|output - target|², the target leading in one step where two steps of the teacher lead; then half as many steps.

    In stage r of log2(first/last) the student takes first/2^(r+1) steps on the recipe's grid, its teacher twice as
    many. The first teacher is the model of a run, under guidance; the next one the student's own average. `unfog
    distill --how progressive` sets the options.

    Attributes:
        teacher: Run folder of the first teacher, whose weights the student begins with.
        weights: SHA-256 of them.
        low: Lowest scale of guidance.
        high: Highest scale of guidance; where it is above `low`, the student takes the scale as a number.
        first: Steps of the first teacher.
        last: Steps of the student at the end.

    Source: Salimans & Ho 2022, Progressive Distillation for Fast Sampling of Diffusion Models, algorithm 2; Meng et al.
        2023, On Distillation of Guided Diffusion Models, for the scale.
    """

    teacher: str = ""
    weights: str = ""
    low: float = 1.0
    high: float = 1.0
    first: int = 16
    last: int = 1
    draws: ClassVar[bool] = True
    jumps: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the numbers."""
        if not 0 <= self.low <= self.high:
            raise UserError("objective.low must be 0 or more, and not above objective.high")
        ratio = self.first / max(self.last, 1)
        if self.last < 1 or ratio < 2 or ratio != 2 ** round(math.log2(ratio)):
            raise UserError(
                f"steps are halved from objective.first to objective.last, as from 16 to 1: {self.first} and "
                f"{self.last} do not fit"
            )

    @property
    def stages(self) -> int:
        """How often the steps are halved."""
        return round(math.log2(self.first / self.last))

    @property
    def scales(self) -> Range:
        """Between which the guidance lies."""
        return Range(self.low, self.high)

    def build(self, recipe: Recipe, most: int) -> nn.Module:
        """Return the student."""
        return build_denoiser(recipe, most, span=True, guidance=self.scales if self.low < self.high else None)

    def check(self, model: nn.Module, held_out: HeldOut, context: Context) -> None:
        """Refuse a student without a teacher, and what `Denoising` refuses."""
        if not self.teacher:
            raise UserError("objective=progressive needs a teacher: train with `unfog distill RUN --how progressive`")
        _PLAIN.check(model, held_out, context)

    def state(self, context: Context) -> dict[str, Tensor]:
        """Return room for the teacher of a stage; there is none before the first step, when the student is its own."""
        weights = self.build(context.recipe, PARAMETERS).state_dict()
        return {STAGE: torch.tensor(-1), **{f"{TEACHER}{name}": tensor for name, tensor in weights.items()}}

    def stage(self, progress: float) -> int:
        """Return the stage at a share of the training."""
        return min(self.stages - 1, int(progress * self.stages))

    def update(self, batch: Draw, losses: Tensor, context: Context) -> dict[str, Tensor]:
        """Return the state, with the student's average as the teacher where a stage begins."""
        now = self.stage(context.progress)
        if now == int(context.state[STAGE]):
            return dict(context.state)
        assert context.averaged is not None
        weights = context.averaged.state_dict()
        kept = {f"{TEACHER}{name}": tensor.detach().cpu().clone() for name, tensor in weights.items()}
        return {STAGE: torch.tensor(now), **kept}

    def losses(self, model: nn.Module, batch: Draw, context: Context) -> dict[str, Tensor]:
        """Return the loss of each row."""
        assert isinstance(model, Denoiser)
        teacher, stage = _teacher(model, context), self.stage(context.progress)
        return {"loss": self._missed(model, teacher, batch, context, stage, guided=int(context.state[STAGE]) < 1)}

    def measured(self, model: nn.Module, batch: Draw, context: Context) -> Tensor:
        """Return by how much one of the last steps misses two half ones of the model itself: of a flow nothing."""
        assert isinstance(model, Denoiser)
        return self._missed(model, model, batch, context, self.stages - 1, guided=False)

    def seen(self, batch: Draw, context: Context) -> Seen:
        """Return the noised rows, and the times that they lead to."""
        times = self.times(batch, context, self.stage(context.progress))
        return Seen(context.recipe.schedule.add_noise(batch.x0, batch.noise, times[0]), times[0], batch.x0, times[2])

    def times(self, batch: Draw, context: Context, stage: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return from which time each row leads to which by one step of the student, with that halfway between."""
        steps = self.first // 2 ** (stage + 1)
        grid = context.recipe.grid(context.recipe.schedule, 2 * steps)
        place = 2 * (batch.u.cpu() * steps).long().clamp(max=steps - 1)
        return grid[place], grid[place + 1], grid[place + 2]

    def _missed(
        self, model: Denoiser, teacher: Denoiser, batch: Draw, context: Context, stage: int, *, guided: bool
    ) -> Tensor:
        """Return the mean square of what a student misses two steps of a teacher by, `(batch,)`."""
        t, middle, s = self.times(batch, context, stage)
        x_t = context.recipe.schedule.add_noise(batch.x0, batch.noise, t)
        scales = self._scales(batch, context).to(x_t.device)
        with torch.no_grad():
            x_s = x_t
            for start, end in ((t, middle), (middle, s)):
                pair = self._pair(teacher, batch, scales, x_s, start, end, guided=guided)
                x_s = context.recipe.schedule.add_noise(pair.x0, pair.eps, end)
        return jump_loss(model, x_t, x_s, _cond(model, batch, scales), t=t, s=s)

    def _pair(
        self, teacher: Denoiser, batch: Draw, scales: Tensor, x: Tensor, t: Tensor, s: Tensor, *, guided: bool
    ) -> Prediction:
        """Return a teacher's prediction: the first one's is guided, that of a later one takes the scale as a number."""
        if not guided:
            own: Prediction = teacher(x, t, _cond(teacher, batch, scales), s)
            return own
        if teacher.embedder is None or batch.condition is None:
            plain: Prediction = teacher(x, t)
            return plain
        given, free = teacher.embedder(batch.condition), teacher.embedder.null(len(x))
        conditional, other = teacher(x, t, given), teacher(x, t, free)
        scale = expand(scales, x)
        pairs = zip(conditional[:2], other[:2], strict=True)
        x0, eps = (without + scale * (with_it - without) for with_it, without in pairs)
        return Prediction(x0, eps)

    def _scales(self, batch: Draw, context: Context) -> Tensor:
        """Return a scale of guidance for each row."""
        assert batch.numbers is not None
        drawn = uniform(context.recipe.seed, "scales", 0, int(batch.numbers[0]), len(batch.numbers))[:, 0]
        return torch.from_numpy(self.low + (self.high - self.low) * drawn).float()

    def preview(self, model: nn.Module, held_out: HeldOut, context: Context) -> Image.Image:
        """Return a sheet of samples."""
        return _PLAIN.preview(model, held_out, context)

    def generator(self, recipe: Recipe, model: nn.Module) -> Generator:
        """Return the recipe's sampler."""
        return _PLAIN.generator(recipe, model)


def _cond(model: Denoiser, batch: Draw, scales: Tensor) -> Cond | None:
    """Return what a student is given of the rows of a batch, besides state and times."""
    cond = None
    if model.embedder is not None and batch.condition is not None:
        cond = model.embedder(batch.condition)
    if model.guidance is not None:
        cond = (cond or Cond()).plus(model.guidance(scales))
    return cond


def _teacher(model: Denoiser, context: Context) -> Denoiser:
    """Return the teacher of the stage: of the weights in the state, before the first step the model as it is."""
    stage = int(context.state[STAGE])
    known = _FROZEN.get(model)
    if known is None or known[0] != stage:
        teacher = copy.deepcopy(model).eval().requires_grad_(False)
        if stage >= 0:
            size = len(TEACHER)
            teacher.load_state_dict(
                {name[size:]: tensor for name, tensor in context.state.items() if name.startswith(TEACHER)}
            )
        _FROZEN[model] = known = (stage, teacher)
    return known[1]
