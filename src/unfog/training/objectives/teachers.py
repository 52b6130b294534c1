"""The teacher of a student: its weights are part of the objective's state, so that a training needs no other run."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar
from weakref import WeakKeyDictionary

import torch
from PIL import Image
from torch import Tensor, nn

from unfog.diffusion.denoiser import Denoiser
from unfog.diffusion.schedules import expand
from unfog.diffusion.targets import Prediction
from unfog.generation.trajectories import Range
from unfog.networks.conditioning import Cond
from unfog.recipes.build import build_denoiser
from unfog.recipes.objective import Context, Draw, Generator, HeldOut, OneLoss
from unfog.recipes.recipe import Recipe
from unfog.training.objectives.denoising import Denoising

_PLAIN = Denoising()

_FROZEN: WeakKeyDictionary[nn.Module, tuple[int, Denoiser]] = WeakKeyDictionary()
"""Of each model that is trained the stage and its teacher, which is made of the objective's state."""
STAGE, TEACHER = "stage", "teacher/"


@dataclass(frozen=True)
class Student(OneLoss):
    """What all students have: a flow map with the network of a teacher, which begins with its weights.

    Attributes:
        teacher: Run folder of the teacher.
        weights: SHA-256 of its weights.
        low: Lowest scale of guidance.
        high: Highest scale of guidance; where it is above `low`, the student takes the scale as a number.
    """

    teacher: str = ""
    weights: str = ""
    low: float = 1.0
    high: float = 1.0
    draws: ClassVar[bool] = True
    denoises: ClassVar[bool] = True
    jumps: ClassVar[bool] = True

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

    def preview(self, model: nn.Module, held_out: HeldOut, context: Context) -> Image.Image:
        """Return a sheet of samples."""
        return _PLAIN.preview(model, held_out, context)

    def generator(self, recipe: Recipe, model: nn.Module) -> Generator:
        """Return the recipe's sampler."""
        return _PLAIN.generator(recipe, model)


def room(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return an objective's state before the first step, when the student is its own teacher, with room for one."""
    return {STAGE: torch.tensor(-1), **{f"{TEACHER}{name}": tensor for name, tensor in weights.items()}}


def taken(context: Context, stage: int) -> dict[str, Tensor]:
    """Return the state with the student's average as the teacher, where a stage begins; else the state as it is."""
    if stage == int(context.state[STAGE]):
        return dict(context.state)
    assert context.averaged is not None
    weights = context.averaged.state_dict()
    kept = {f"{TEACHER}{name}": tensor.detach().cpu().clone() for name, tensor in weights.items()}
    return {STAGE: torch.tensor(stage), **kept}


def teacher_of(model: Denoiser, context: Context) -> Denoiser:
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


def asked(model: Denoiser, batch: Draw, scales: Tensor) -> Cond | None:
    """Return what a student is given of the rows of a batch, besides state and times: condition and guidance."""
    cond = None
    if model.embedder is not None and batch.condition is not None:
        cond = model.embedder(batch.condition)
    if model.guidance is not None:
        cond = (cond or Cond()).plus(model.guidance(scales))
    return cond


def guided(
    teacher: Denoiser, batch: Draw, x: Tensor, t: Tensor, scales: Tensor, own: Prediction | None = None
) -> Prediction:
    """Return (x0, eps) + (scale - 1)·(conditional - unconditional) of a teacher, the pair by default its conditional.

    Args:
        teacher: An ordinary denoiser.
        batch: The rows, with their conditions.
        x: States, `(batch, *shape)`.
        t: Their times, `(batch,)`.
        scales: Scale of guidance of each, `(batch,)`.
        own: Another pair through `x` in the place of the conditional one, for instance data and noise.
    """
    if teacher.embedder is None or batch.condition is None:
        plain: Prediction = own or teacher(x, t)
        return plain
    conditional = teacher(x, t, teacher.embedder(batch.condition))
    free = teacher(x, t, teacher.embedder.null(len(x)))
    more, start = expand(scales - 1, x), own or conditional
    return Prediction(start.x0 + more * (conditional.x0 - free.x0), start.eps + more * (conditional.eps - free.eps))
