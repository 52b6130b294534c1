"""softmax(q·k / sqrt(d))·v for heads of few channels, in one pass each way, by a kernel of our own (flash.cpp).

Scores are never in memory but those of one row. torch's own kernel is made for heads of 64 channels and more, and plain
products write all scores.

Source: Dao et al. 2022, FlashAttention, section 3 (what is kept for the way back).
"""

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from unfog.runtime.native import Function, Kernels, function

HEADS = (8, 16)
"""Channels of a head for which there is a kernel."""
NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
ARGUMENTS = (ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_long] * 4)


class Passes(NamedTuple):
    """The kernels of one type of numbers and one size of a head."""

    forward: Function
    backward: Function


def flash(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return softmax(q·k / sqrt(d))·v.

    Args:
        q: `(batch, heads, places, d)`, bfloat16 or float32, see `takes`.
        k: `(batch, heads, tokens, d)`.
        v: Shaped like `k`.

    Returns: Shaped like `q`, with the places before the heads in memory. Sums are in float32 also where `q` is not.
    """
    result: Tensor = _Flash.apply(q, k, v)  # type: ignore[no-untyped-call]  # torch's
    return result


def takes(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Return whether the kernel is there and computes such numbers."""
    parts = (q, k, v)
    plain = all(part.device.type == "cpu" and part.dtype == q.dtype and part.numel() > 0 for part in parts)
    plain &= q.dtype in NAMES and q.shape[-1] in HEADS and q.ndim == 4
    return plain and not torch.compiler.is_compiling() and KERNELS.get() is not None


def _read(found: ctypes.CDLL) -> dict[tuple[torch.dtype, int], Passes]:
    """Return the functions for each type of numbers and head."""
    return {
        (kind, head): Passes(*(function(found, f"{name}_{head}_{way}", *ARGUMENTS) for way in Passes._fields))
        for kind, name in NAMES.items()
        for head in HEADS
    }


def _agree(kernels: dict[tuple[torch.dtype, int], Passes]) -> bool:
    """Return whether all kernels agree with torch."""
    return all(_agrees(kernel, *key) for key, kernel in kernels.items())


def _agrees(kernel: Passes, kind: torch.dtype, head: int) -> bool:
    """Return whether a kernel gives torch's output for a few numbers."""
    numbers = torch.linspace(-2, 3, 2 * 3 * 19 * head).view(2, 3, 19, head)
    q, k, v = ((numbers * step).sin().to(kind) for step in (5, 7, 9))
    y, near = torch.empty_like(q), 1e-4 if kind == torch.float32 else 2e-2
    _call(kernel.forward, (q, k, v, y), torch.empty(2, 3, 19), q, k)
    exact = torch.softmax(q.float() @ k.float().mT * head**-0.5, -1) @ v.float()
    return torch.allclose(y.float(), exact, rtol=near, atol=near)


def _call(kernel: Function, parts: Sequence[Tensor], kept: Tensor, q: Tensor, k: Tensor) -> None:
    """Call a kernel with its parts, behind the fourth of which is `kept`, and their distances."""
    addresses = [part.data_ptr() for part in (*parts[:4], kept, *parts[4:])]
    strides = [part.stride(axis) for part in parts for axis in range(3)]
    kernel(
        (ctypes.c_void_p * len(addresses))(*addresses),
        (ctypes.c_long * len(strides))(*strides),
        *(q.shape[0], q.shape[1], q.shape[2], k.shape[2]),
    )


def _near(part: Tensor) -> Tensor:
    """Return numbers whose channels are next to each other in memory."""
    return part if part.stride(-1) == 1 else part.contiguous()


def _places_first(like: Tensor) -> Tensor:
    """Return room for numbers, `(batch, heads, places, d)`, whose heads are next to each other in memory."""
    batch, heads, places, head = like.shape
    return torch.empty(batch, places, heads, head, dtype=like.dtype).transpose(1, 2)


class _Flash(torch.autograd.Function):
    """`flash` with its gradients, from its inputs and one number for each row of scores."""

    @staticmethod
    def forward(ctx: FunctionCtx, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Compute the output."""
        kernels = KERNELS.get()
        assert kernels is not None
        kernel = kernels[q.dtype, q.shape[-1]]
        q, k, v = map(_near, (q, k, v))
        y, kept = _places_first(q), torch.empty(q.shape[:-1])
        _call(kernel.forward, (q, k, v, y), kept, q, k)
        ctx.save_for_backward(q, k, v, kept)
        ctx.kernel = kernel.backward  # type: ignore[attr-defined]  # torch's way of keeping things
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the gradients of q, k and v."""
        q, k, v, kept = ctx.saved_tensors  # type: ignore[attr-defined]  # as above
        dq, dk, dv = map(_places_first, (q, k, v))
        _call(ctx.kernel, (_near(dy), q, k, v, dq, dk, dv), kept, q, k)  # type: ignore[attr-defined]  # as above
        return dq, dk, dv


KERNELS = Kernels(Path(__file__).with_suffix(".cpp"), _read, _agree)
"""The compiled kernels."""
