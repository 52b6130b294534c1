"""The work of a training step, operation by operation: recorded from a step that computes nothing."""

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from unfog.data.source import Source
from unfog.recipes.build import build_codec, weightless
from unfog.recipes.objective import Context
from unfog.recipes.recipe import Recipe
from unfog.runtime.device import Precision, arithmetic, in_channels_last, place
from unfog.training.counting import META, row, started

READ = 0.5
"""What is read from a tensor that has no numbers: a time on every clock, and true."""
CPU = torch.device("cpu")


class Operation(NamedTuple):
    """One operation of a step.

    Attributes:
        products: Floating-point operations of a matrix product or convolution; 0 for all others.
        moved: Bytes that are read and written.
        low: Whether it computes in 16 bits.
        convolution: Whether it is a convolution, or one's backward pass.
    """

    products: int
    moved: int
    low: bool
    convolution: bool = False


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]  # as torch has it
    """Records operations as they are called."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: list[Operation] = []

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        """Record an operation, unless it only looks at a tensor in another way."""
        if func is torch.ops.aten._local_scalar_dense.default:
            return READ
        given = kwargs or {}
        found = func(*args, **given)
        if func.namespace != "aten" or func.is_view or func is torch.ops.aten._unsafe_view.default:
            return found
        tensors = [one for one in tree_leaves((args, given, found)) if isinstance(one, Tensor)]
        count: Callable[..., int] | None = flop_registry.get(func._overloadpacket)
        products = 0 if count is None else count(*args, **given, out_val=found)
        low = any(one.dtype in (torch.bfloat16, torch.float16) for one in tensors)
        convolution = "convolution" in func.name()
        self.operations.append(Operation(products, sum(one.nbytes for one in tensors), low, convolution))
        return found


def recorded(call: Callable[[], object]) -> list[Operation]:
    """Return the operations of a call."""
    recorder = _Recorder()
    with recorder:
        call()
    return recorder.operations


def work_of(recipe: Recipe, source: Source, rows: int, precision: Precision = "bfloat16") -> list[Operation]:
    """Return the operations of a training step: forward, backward, clipping, optimizer and average.

    Args:
        recipe: The recipe, with its shape filled in and a codec that needs no training.
        source: Gives the annotations of a row.
        rows: Rows of a step.
        precision: The arithmetic of the network.

    Raises: UserError: If the parts of the recipe do not fit together.
    """
    recipe = copy.deepcopy(recipe)  # its schedule keeps what it computed, which here has no numbers
    model, batch = weightless(recipe), row(recipe, source, CPU)
    place(model, META)
    context = started(Context(recipe, build_codec(recipe), precision=precision))
    with ExitStack() as stack:
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        trained = recipe.objective.trained(model.to_empty(device="cpu"))
        parts = {name: part for name, part in batch._asdict().items() if part is not None}
        batch = batch._replace(**{name: part.repeat(rows, *[1] * (part.ndim - 1)) for name, part in parts.items()})
        batch = batch._replace(x0=in_channels_last(batch.x0))
        optimizers = [recipe.optimizer.build(model, precision, parameters) for parameters in trained.values()]

        def step() -> None:
            for optimizer in optimizers:
                optimizer.zero_grad()
            with arithmetic(precision, CPU):
                losses = recipe.objective.losses(model, batch, context)
            for number, (name, parameters) in enumerate(trained.items(), 1):
                torch.autograd.backward(losses[name].mean(), inputs=parameters, retain_graph=number < len(trained))
                torch.nn.utils.clip_grad_norm_(parameters, recipe.optimizer.clip)
            for optimizer in optimizers:
                optimizer.step()

        recorded(step)  # which makes the optimizers' state
        found = recorded(step)
    average = 3 * 4 * sum(parameter.numel() for parameter in model.parameters())
    return [*found, Operation(0, average, False)]
