"""What is learnt, as an open part: the contract between the trainer and a kind of model, and what both pass around."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol

from PIL import Image
from torch import Tensor, nn

from unfog.data.codecs import Codec
from unfog.data.source import Data, Indices
from unfog.runtime.device import Precision

if TYPE_CHECKING:
    from unfog.recipes.conditions import Asked
    from unfog.recipes.recipe import Recipe


class Draw(NamedTuple):
    """One batch with all its random numbers.

    Attributes:
        x0: Encoded rows, `(batch, *shape)`.
        condition: The condition of each row, `(batch, ...)`, or None.
        drop: True where the condition is dropped, `(batch,)`.
        u: Uniform numbers in [0, 1) for the times, `(batch,)`.
        noise: Standard normal noise, shaped like `x0`.
    """

    x0: Tensor
    condition: Tensor | None
    drop: Tensor
    u: Tensor
    noise: Tensor


HeldOut = Callable[[Indices], Draw]
"""Held-out rows, by number, as a batch whose times and noise never change."""


@dataclass(frozen=True)
class Context:
    """What an objective may look at besides model and batch.

    Attributes:
        recipe: The recipe of the training.
        codec: Its codec.
        progress: Share of the training that is done, 0 to 1.
        precision: Arithmetic of the network.
        averaged: The averaged model, where there is one.
        state: The objective's own state, by name.
    """

    recipe: "Recipe"
    codec: Codec
    progress: float = 0.0
    precision: Precision = "float32"
    averaged: nn.Module | None = None
    state: Mapping[str, Tensor] = field(default_factory=dict)


class Generator(Protocol):
    """Whatever draws samples: diffusion, few-step models, GANs, VAEs and autoregressive models alike."""

    def __call__(self, count: int, asked: "Asked" = None, *, seed: int | None = None) -> Tensor:
        """Return `count` samples as they are stored, `(count, *shape)`; sample i is sample i in every request.

        Args:
            count: Number of samples.
            asked: What they should show, as the model was conditioned.
            seed: Seed of the noise; None is the generator's own.
        """
        ...


class Objective(Protocol):
    """What a training descends on. A value: whatever changes during a training is in its `state`."""

    draws: ClassVar[bool]
    """Whether its models draw samples by themselves."""

    def build(self, recipe: "Recipe", most: int) -> nn.Module:
        """Return what has weights, freshly drawn, a function of the recipe alone.

        Raises: UserError: If the parts do not fit together, or it would have more than `most` parameters.
        """
        ...

    def trained(self, model: nn.Module) -> dict[str, list[nn.Parameter]]:
        """Return the parameters that are trained, a list for each optimizer; names are those of `losses`."""
        ...

    def check(self, model: nn.Module, held_out: HeldOut, context: Context) -> None:
        """Refuse what would only fail at the first report.

        Raises: UserError: If the recipe cannot be sampled as it says.
        """
        ...

    def state(self, context: Context) -> dict[str, Tensor]:
        """Return the state at the beginning of a training; it is saved with each checkpoint, by its names."""
        ...

    def prepare(self, batch: Draw, context: Context) -> tuple[Draw, Tensor]:
        """Return a batch as the objective wants it, and the weight of each row in the loss, `(batch,)`."""
        ...

    def losses(self, model: nn.Module, batch: Draw, context: Context) -> dict[str, Tensor]:
        """Return the loss of each row, `(batch,)`, for each optimizer."""
        ...

    def update(self, batch: Draw, losses: Tensor, context: Context) -> dict[str, Tensor]:
        """Return the state after a step.

        Args:
            batch: The batch as `prepare` gave it.
            losses: The first of the losses of this process's rows, on the CPU.
            context: Of before the step.
        """
        ...

    def measured(self, model: nn.Module, batch: Draw, context: Context) -> Tensor:
        """Return the loss of held-out rows, `(batch,)`, which does not change with the progress."""
        ...

    def preview(self, model: nn.Module, held_out: HeldOut, context: Context) -> Image.Image | None:
        """Return a picture of what the model can do, or None."""
        ...

    def settle(self, model: nn.Module, data: Data, context: Context) -> None:
        """Prepare a model that is about to be saved for its use."""
        ...

    def generator(self, recipe: "Recipe", model: nn.Module) -> Generator | None:
        """Return what draws samples, or None where the model does not."""
        ...


class OneLoss:
    """What objectives share that train all weights on one loss and keep no state."""

    def trained(self, model: nn.Module) -> dict[str, list[nn.Parameter]]:
        """Return all parameters."""
        return {"loss": list(model.parameters())}

    def state(self, context: Context) -> dict[str, Tensor]:
        """Return no state."""
        return {}

    def prepare(self, batch: Draw, context: Context) -> tuple[Draw, Tensor]:
        """Return the batch as it is, and weights of 1."""
        return batch, batch.u.new_ones(len(batch.u))

    def update(self, batch: Draw, losses: Tensor, context: Context) -> dict[str, Tensor]:
        """Return the state as it is."""
        return dict(context.state)

    def settle(self, model: nn.Module, data: Data, context: Context) -> None:
        """Leave the model as it is."""
