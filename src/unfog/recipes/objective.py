"""Objectives, what a model is trained to do: the contract between the trainer and a kind of model."""

import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol, runtime_checkable

from PIL import Image
from torch import Tensor, nn

from unfog.data.codecs import Codec
from unfog.data.source import Data, Indices
from unfog.runtime.device import Precision
from unfog.runtime.errors import UserError

if TYPE_CHECKING:
    from unfog.recipes.conditions import Asked
    from unfog.recipes.recipe import Recipe


class Draw(NamedTuple):
    """One batch with all its random numbers.

    Attributes:
        x0: Encoded rows, `(batch, *shape)`.
        condition: The condition of each row, `(batch, ...)`, or None.
        drop: Whether the condition of each row is dropped, `(batch,)`.
        u: Uniform numbers in [0, 1) for the times, `(batch,)`.
        noise: Standard normal noise, shaped like `x0`.
        changes: How each row was augmented, `(batch, numbers)`, where the network is told.
        numbers: The number of each row in the training, `(batch,)`, for further random numbers of its own.
    """

    x0: Tensor
    condition: Tensor | None
    drop: Tensor
    u: Tensor
    noise: Tensor
    changes: Tensor | None = None
    numbers: Tensor | None = None


class Seen(NamedTuple):
    """What the network is given of the rows of a batch, and what it is to lead to: for whoever looks at a step.

    Attributes:
        x_t: Its input, `(batch, *shape)`.
        t: The times of that, `(batch,)`.
        aim: Clean data, or the state that is led to, `(batch, *shape)`.
        s: The times that are led to, `(batch,)`; None for clean data.
        rows: Number of each row where it is none of the data, `(batch,)`; else None.
    """

    x_t: Tensor
    t: Tensor
    aim: Tensor
    s: Tensor | None = None
    rows: Tensor | None = None


HeldOut = Callable[[Indices], Draw]
"""(row numbers) -> those held-out rows as a batch whose times and noise never change."""


@dataclass(frozen=True)
class Context:
    """What an objective can use in addition to model and batch.

    Attributes:
        recipe: The recipe of the training.
        codec: Its codec.
        progress: Fraction of the training that is done, 0 to 1; 1 where it goes on after its end.
        precision: Arithmetic of the network.
        averaged: The averaged model, if there is one.
        state: The objective's own state, by name.
        shown: Samples in a picture of the progress, at most; None leaves their number to the objective.
        folder: The run folder.
    """

    recipe: "Recipe"
    codec: Codec
    progress: float = 0.0
    precision: Precision = "float32"
    averaged: nn.Module | None = None
    state: Mapping[str, Tensor] = field(default_factory=dict)
    shown: int | None = None
    folder: Path | None = None


def checked(losses: Mapping[str, Tensor], names: Collection[str], rows: int) -> Mapping[str, Tensor]:
    """Return the losses of a batch after checking that there is one for each name and row.

    Raises: UserError: If one is missing, or has another shape than `(rows,)`.
    """
    for name in names:
        loss = losses.get(name)
        if not isinstance(loss, Tensor) or tuple(loss.shape) != (rows,):
            found = "none" if loss is None else f"one of shape {tuple(loss.shape)}"
            raise UserError(
                f"an objective returns a loss of shape ({rows},) as {name!r}, a number per row, not {found}"
            )
    return losses


def warn_of_idle(recipe: "Recipe", names: Collection[str], why: str) -> None:
    """Warn of parts of a recipe, by their fields, that differ from their defaults and have no use for its objective."""
    usual = {one.name: one.default for one in fields(recipe)}
    if idle := [name for name in names if getattr(recipe, name) != usual[name]]:
        parts = ", ".join(f"{name}={recipe.kind(name)}" for name in idle)
        warnings.warn(f"objective={recipe.kind('objective')} has no use for {parts}: {why}", stacklevel=3)


class Generator(Protocol):
    """(count, condition, seed) -> samples: any model that draws, be it diffusion, few-step, GAN, VAE or other."""

    def __call__(
        self, count: int, asked: "Asked" = None, *, seed: int | None = None, condition: Tensor | None = None
    ) -> Tensor:
        """Return `count` samples in the stored form, `(count, *shape)`; sample i is the same in every request.

        Args:
            count: Number of samples.
            asked: The condition of a request, which the recipe's conditioning reads.
            seed: Seed of the noise. Default: the generator's own.
            condition: The condition as the conditioning read it, `(count, ...)`, instead of `asked`. Runs give this.
        """
        ...


class Objective(Protocol):
    """The losses that a training minimises. A value: everything that changes during a training is in its `state`."""

    draws: ClassVar[bool]
    """Whether its models can draw samples on their own."""
    denoises: ClassVar[bool]
    """Whether its models are denoisers, which are sampled step by step."""
    jumps: ClassVar[bool]
    """Whether its models are flow maps, which few steps of `ddim` sample."""

    def build(self, recipe: "Recipe", most: int) -> nn.Module:
        """Return the model with freshly drawn weights, a function of the recipe alone.

        Raises: UserError: If the parts do not fit together, or it would have more than `most` parameters.
        """
        ...

    def trained(self, model: nn.Module) -> dict[str, list[nn.Parameter]]:
        """Return the parameters to train, one list per optimizer, under the names of `losses`."""
        ...

    def ahead(self, recipe: "Recipe", shape: tuple[int, ...]) -> int:
        """Return the evaluations of the network, each of one row of this shape, that precede the first step."""
        ...

    def check(self, model: nn.Module, held_out: HeldOut, context: Context) -> None:
        """Fail early, before training, on what would otherwise fail at the first report.

        Raises: UserError: If the recipe cannot be sampled with its settings.
        """
        ...

    def state(self, context: Context) -> dict[str, Tensor]:
        """Return the state at the start of a training; checkpoints save all of it."""
        ...

    def prepare(self, batch: Draw, context: Context) -> tuple[Draw, Tensor]:
        """Return the batch as the objective needs it, and the weight of each row in the loss, `(batch,)`."""
        ...

    def losses(self, model: nn.Module, batch: Draw, context: Context) -> dict[str, Tensor]:
        """Return the loss of each row, `(batch,)`, one entry per optimizer."""
        ...

    def seen(self, batch: Draw, context: Context) -> Seen:
        """Return what the network is given of a batch in a step, for `unfog replay`."""
        ...

    def update(self, batch: Draw, losses: Tensor, context: Context) -> dict[str, Tensor]:
        """Return the state after a step, with the names that it began with.

        Args:
            batch: The batch that `prepare` returned.
            losses: The first loss of each of this process's rows, on the CPU.
            context: The context before the step.
        """
        ...

    def measured(self, model: nn.Module, batch: Draw, context: Context) -> Tensor:
        """Return the loss of held-out rows, `(batch,)`, with no term that depends on the progress."""
        ...

    def preview(self, model: nn.Module, held_out: HeldOut, context: Context) -> Image.Image | None:
        """Return a picture of the model's progress, or None."""
        ...

    def settle(self, model: nn.Module, data: Data, context: Context) -> None:
        """Finish a model that is about to be saved, for instance with statistics that its use needs."""
        ...

    def generator(self, recipe: "Recipe", model: nn.Module) -> Generator | None:
        """Return the generator of samples, or None if the model draws none."""
        ...


@runtime_checkable
class Choosing(Protocol):
    """An objective that goes with a network, an optimizer or a sampling of its own."""

    def beside(self, recipe: "Recipe") -> "Recipe":
        """Return a recipe with what suits the objective, where nothing else is chosen."""
        ...


class OneLoss:
    """Base of objectives that train all weights on one loss and keep no state."""

    denoises: ClassVar[bool] = False
    jumps: ClassVar[bool] = False

    def trained(self, model: nn.Module) -> dict[str, list[nn.Parameter]]:
        """Return all parameters."""
        return {"loss": list(model.parameters())}

    def ahead(self, recipe: "Recipe", shape: tuple[int, ...]) -> int:
        """Return 0."""
        return 0

    def check(self, model: nn.Module, held_out: HeldOut, context: Context) -> None:
        """Refuse nothing."""

    def state(self, context: Context) -> dict[str, Tensor]:
        """Return no state."""
        return {}

    def prepare(self, batch: Draw, context: Context) -> tuple[Draw, Tensor]:
        """Return the batch unchanged, and weights of 1."""
        return batch, batch.u.new_ones(len(batch.u))

    def seen(self, batch: Draw, context: Context) -> Seen:
        """Return the noised rows at the recipe's times."""
        t = context.recipe.times(batch.u, context.recipe.schedule)
        return Seen(context.recipe.schedule.add_noise(batch.x0, batch.noise, t), t, batch.x0)

    def update(self, batch: Draw, losses: Tensor, context: Context) -> dict[str, Tensor]:
        """Return the state unchanged."""
        return dict(context.state)

    def settle(self, model: nn.Module, data: Data, context: Context) -> None:
        """Leave the model unchanged."""
