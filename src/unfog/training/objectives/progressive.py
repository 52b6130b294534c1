"""Progressive distillation: a student that takes two steps of its teacher in one, and becomes the next teacher."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unfog.diffusion.denoiser import Denoiser
from unfog.diffusion.objectives import jump_loss
from unfog.diffusion.targets import Prediction
from unfog.recipes.build import PARAMETERS
from unfog.recipes.objective import Context, Draw, HeldOut, Seen
from unfog.runtime.errors import UserError
from unfog.runtime.randomness import uniform
from unfog.training.objectives.teachers import STAGE, Student, asked, guided, room, taken, teacher_of


@dataclass(frozen=True)
class Progressive(Student):
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

    first: int = 16
    last: int = 1

    def __post_init__(self) -> None:
        """Check the numbers."""
        if not 0 <= self.low <= self.high:
            raise UserError("objective.low must be 0 or more, and not above objective.high")
        ratio = self.first / max(self.last, 1)
        if self.last < 1 or self.first > 1024 or ratio < 2 or ratio != 2 ** round(math.log2(ratio)):
            raise UserError(
                f"steps are halved from objective.first, at most 1,024, to objective.last, as from 16 to 1: "
                f"{self.first} and {self.last} do not fit"
            )

    @property
    def stages(self) -> int:
        """How often the steps are halved."""
        return round(math.log2(self.first / self.last))

    def check(self, model: nn.Module, held_out: HeldOut, context: Context) -> None:
        """Refuse a student without a teacher, and what `Denoising` refuses."""
        if not self.teacher:
            raise UserError("objective=progressive needs a teacher: train with `unfog distill RUN --how progressive`")
        super().check(model, held_out, context)

    def state(self, context: Context) -> dict[str, Tensor]:
        """Return room for the teacher of a stage."""
        return room(self.build(context.recipe, PARAMETERS).state_dict())

    def stage(self, progress: float) -> int:
        """Return the stage at a share of the training."""
        return min(self.stages - 1, int(progress * self.stages))

    def update(self, batch: Draw, losses: Tensor, context: Context) -> dict[str, Tensor]:
        """Return the state, with the student's average as the teacher where a stage begins."""
        return taken(context, self.stage(context.progress))

    def losses(self, model: nn.Module, batch: Draw, context: Context) -> dict[str, Tensor]:
        """Return the loss of each row."""
        assert isinstance(model, Denoiser)
        stage = max(0, int(context.state[STAGE]))
        return {"loss": self._missed(model, teacher_of(model, context), batch, context, stage, first=stage == 0)}

    def measured(self, model: nn.Module, batch: Draw, context: Context) -> Tensor:
        """Return by how much one of the last steps misses two half ones of the model itself: of a flow nothing."""
        assert isinstance(model, Denoiser)
        return self._missed(model, model, batch, context, self.stages - 1, first=False)

    def seen(self, batch: Draw, context: Context) -> Seen:
        """Return the noised rows, and the times that they lead to."""
        times = self.times(batch, context, max(0, int(context.state[STAGE])))
        return Seen(context.recipe.schedule.add_noise(batch.x0, batch.noise, times[0]), times[0], batch.x0, times[2])

    def times(self, batch: Draw, context: Context, stage: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return from which time each row leads to which by one step of the student, with that halfway between."""
        steps = self.first // 2 ** (stage + 1)
        grid = context.recipe.grid(context.recipe.schedule, 2 * steps)
        place = 2 * (batch.u.cpu() * steps).long().clamp(max=steps - 1)
        return grid[place], grid[place + 1], grid[place + 2]

    def _missed(
        self, model: Denoiser, teacher: Denoiser, batch: Draw, context: Context, stage: int, *, first: bool
    ) -> Tensor:
        """Return the mean square of what a student misses two steps of a teacher by, `(batch,)`."""
        t, middle, s = self.times(batch, context, stage)
        x_t = context.recipe.schedule.add_noise(batch.x0, batch.noise, t)
        scales = self._scales(batch, context).to(x_t.device)
        with torch.no_grad():
            x_s = x_t
            for start, end in ((t, middle), (middle, s)):
                pair = self._pair(teacher, batch, scales, x_s, start, end, first=first)
                x_s = context.recipe.schedule.add_noise(pair.x0, pair.eps, end)
        return jump_loss(model, x_t, x_s, asked(model, batch, scales), t=t, s=s)

    def _pair(
        self, teacher: Denoiser, batch: Draw, scales: Tensor, x: Tensor, t: Tensor, s: Tensor, *, first: bool
    ) -> Prediction:
        """Return a teacher's prediction: the first one's is guided, that of a later one takes the scale as a number."""
        if first:
            return guided(teacher, batch, x, t, scales)
        own: Prediction = teacher(x, t, asked(teacher, batch, scales), s)
        return own

    def _scales(self, batch: Draw, context: Context) -> Tensor:
        """Return a scale of guidance for each row."""
        assert batch.numbers is not None
        drawn = uniform(context.recipe.seed, "scales", 0, int(batch.numbers[0]), len(batch.numbers))[:, 0]
        return torch.from_numpy(self.low + (self.high - self.low) * drawn).float()
