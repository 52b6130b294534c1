"""SiLU(norm(x)·scale + shift) in one pass over memory and one back, by a kernel of our own (modulated.cpp)."""

import ctypes
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F

from unfog.runtime.native import Function, Kernels, function

NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
MOST = 2048
"""Channels of a place, at most."""
Passes = tuple[Function, Function]
"""There and back."""


def formula(x: Tensor, scale: Tensor, shift: Tensor, epsilon: float, act: bool) -> Tensor:
    """Compute `modulated` by torch's operators."""
    rows = (-1, *[1] * (x.ndim - 2), x.shape[-1])
    h = F.layer_norm(x, x.shape[-1:], eps=epsilon) * scale.view(rows) + shift.view(rows)
    return F.silu(h) if act else h


def modulated(x: Tensor, scale: Tensor, shift: Tensor, epsilon: float, act: bool) -> Tensor:
    """Return SiLU(norm(x)·scale + shift), with a norm over the last axis; without SiLU unless `act`.

    Args:
        x: `(rows, *places, channels)`, contiguous, bfloat16 or float32, see `takes`.
        scale: `(rows, channels)`, or one row for all, float32.
        shift: Shaped like `scale`.
        epsilon: Added to the variance.
        act: Whether SiLU follows.

    Returns: Shaped like `x`. Sums and products are in float32 also where `x` is not.
    """
    result: Tensor = _Modulated.apply(x, scale, shift, epsilon, act)  # type: ignore[no-untyped-call]  # torch's
    return result


def takes(x: Tensor) -> bool:
    """Return whether the kernel is there and computes such numbers, `(rows, *places, channels)`."""
    plain = x.device.type == "cpu" and x.dtype in NAMES and x.is_contiguous() and x.numel() > 0 and x.shape[-1] <= MOST
    return plain and not torch.compiler.is_compiling() and KERNELS.get() is not None


def _read(found: ctypes.CDLL) -> dict[torch.dtype, Passes]:
    """Return the functions there and back for each type of numbers."""
    sizes = (ctypes.c_long, ctypes.c_long, ctypes.c_int, ctypes.c_long, ctypes.c_float, ctypes.c_int)
    there, back = (*[ctypes.c_void_p] * 4, *sizes), (*[ctypes.c_void_p] * 7, *sizes)
    return {
        kind: (function(found, f"{name}_forward", *there), function(found, f"{name}_backward", *back))
        for kind, name in NAMES.items()
    }


def _agree(kernels: dict[torch.dtype, Passes]) -> bool:
    """Return whether the kernels give the formula's outputs for a few numbers."""
    scale, shift = torch.linspace(-1, 2, 74).view(2, 37), torch.linspace(1, -1, 74).view(2, 37)
    for kind, (forward, _) in kernels.items():
        x = torch.linspace(-3, 4, 2 * 3 * 37).square().view(2, 3, 37).to(kind)
        y, near = torch.empty_like(x), 1e-4 if kind == torch.float32 else 2e-2
        _forward(forward, x, scale, shift, y, 1e-5, True)
        if not torch.allclose(y.float(), formula(x.float(), scale, shift, 1e-5, True), rtol=near, atol=near):
            return False
    return True


def _sizes(x: Tensor, scale: Tensor) -> tuple[int, int, int, int]:
    """Return rows, places, channels, and the distance of two rows of `scale`."""
    channels = x.shape[-1]
    return len(x), x.numel() // len(x) // channels, channels, channels if len(scale) > 1 else 0


def _forward(kernel: Function, x: Tensor, scale: Tensor, shift: Tensor, y: Tensor, epsilon: float, act: bool) -> None:
    """Call a kernel."""
    kernel(*(part.data_ptr() for part in (x, scale, shift, y)), *_sizes(x, scale), epsilon, act)


class _Modulated(torch.autograd.Function):
    """`modulated` with its gradients, from x, scale and shift alone: the rest is computed again."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, scale: Tensor, shift: Tensor, epsilon: float, act: bool) -> Tensor:
        """Compute the output."""
        kernels = KERNELS.get()
        assert kernels is not None
        scale, shift, y = scale.contiguous(), shift.contiguous(), torch.empty_like(x)
        _forward(kernels[x.dtype][0], x, scale, shift, y, epsilon, act)
        ctx.save_for_backward(x, scale, shift)
        ctx.rest = kernels[x.dtype][1], epsilon, act  # type: ignore[attr-defined]  # torch's way of keeping things
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, dy: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        """Compute the gradients of x, scale and shift."""
        x, scale, shift = ctx.saved_tensors  # type: ignore[attr-defined]  # as above
        kernel, epsilon, act = ctx.rest  # type: ignore[attr-defined]  # as above
        dy, dx = dy.contiguous(), torch.empty_like(x)
        both = torch.empty(2, len(x), x.shape[-1])
        parts = (dy, x, scale, shift, dx, *both)
        kernel(*(part.data_ptr() for part in parts), *_sizes(x, scale), epsilon, act)
        dscale, dshift = both if len(scale) == len(x) else both.sum(1, keepdim=True)
        return dx, dscale, dshift, None, None


KERNELS = Kernels(Path(__file__).with_suffix(".cpp"), _read, _agree)
"""The compiled kernels."""
