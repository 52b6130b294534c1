"""What a step costs, counted and not measured: operations and memory of one row, without computing or storing any."""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from unfog.data.source import Source
from unfog.recipes.build import build_codec, build_model, known_of, weightless
from unfog.recipes.objective import Context, Draw
from unfog.recipes.recipe import Recipe

META = torch.device("meta")
"""The device whose tensors have shapes and no numbers."""


@dataclass(frozen=True)
class Cost:
    """What one row costs in training.

    Attributes:
        operations: Floating-point operations forward and backward; a multiplication and an addition are two.
        forward: Those of the forward pass.
        kept: Bytes that the forward pass keeps for the backward pass, in float32.
        parameters: Of the model.
        conditional: Whether the model has a condition.
    """

    operations: int
    forward: int
    kept: int
    parameters: int
    conditional: bool = False

    @property
    def state(self) -> int:
        """Bytes of the weights and of what a training keeps of each: gradient, average, two moments."""
        return 5 * 4 * self.parameters


def cost(recipe: Recipe, source: Source) -> Cost:
    """Count what a row costs, on the meta device, whatever its size.

    Only an objective that looks at its numbers is counted on a row that is really computed.

    Args:
        recipe: The recipe, with its shape filled in.
        source: Gives the annotations of a row.

    Raises: UserError: If the parts of the recipe do not fit together.
    """
    try:
        return _counted(recipe, source, META)
    except (RuntimeError, NotImplementedError) as error:
        if "meta" not in str(error):
            raise
        return _counted(recipe, source, torch.device("cpu"))


def _counted(recipe: Recipe, source: Source, device: torch.device) -> Cost:
    """Count what a row costs on a device."""
    model = weightless(recipe) if device == META else build_model(recipe)
    batch = row(recipe, source, device)
    kept: dict[int, torch.UntypedStorage] = {}  # alive, so that no later one takes the same address

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage
        return tensor

    context = started(Context(recipe, build_codec(recipe)))
    parameters = list(model.parameters())
    with FlopCounterMode(display=False) as counter:
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            losses = recipe.objective.losses(model, batch, context)
        forward = counter.get_total_flops()
        torch.stack([loss.mean() for loss in losses.values()]).sum().backward()  # type: ignore[no-untyped-call]
        operations = counter.get_total_flops()
    own = {parameter.untyped_storage()._cdata for parameter in parameters}  # weights are kept once, not per row
    stored = sum(storage.nbytes() for key, storage in kept.items() if key not in own)
    conditional = getattr(model, "embedder", None) is not None
    return Cost(operations, forward, stored, sum(parameter.numel() for parameter in parameters), conditional)


def started(context: Context) -> Context:
    """Return the context of a training's first step."""
    return replace(context, state=context.recipe.objective.state(context))


def row(recipe: Recipe, source: Source, device: torch.device) -> Draw:
    """Return one row as a step takes it, with its time and its condition on a device."""
    known = known_of(recipe)
    x0 = torch.zeros(1, *known.shape)
    batch = source.about(np.zeros(1, dtype=np.int64))._replace(
        x=torch.zeros(1, *(known.stored or ()), dtype=torch.uint8)
    )
    condition = recipe.conditioning.read(known, batch, x0, torch.full((1, 4), 0.5))
    given = None if condition is None else condition.to(device)
    x0 = x0.to(device)
    drop, u = torch.zeros(1, dtype=torch.bool, device=device), torch.full((1,), 0.5)
    return Draw(x0, given, drop, u, torch.empty_like(x0), numbers=torch.zeros(1, dtype=torch.int64))


def rows_within(cost: Cost, memory: float) -> int:
    """Return how many rows a step may have beside the weights and what belongs to them."""
    return max(0, math.floor((memory - cost.state) / (KEPT * max(1, cost.kept))))


KEPT = 1.8
"""Memory of a row over what is counted: gradients on the way back, workspaces."""
