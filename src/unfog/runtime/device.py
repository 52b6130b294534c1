"""Choosing the device and the precision of a network, and measuring memory."""

import ctypes
import os
import re
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from unfog.runtime.errors import UserError

Part = TypeVar("Part")
Precision = Literal["auto", "float32", "bfloat16"]
Arithmetic = Precision | Literal["int8"]
"""In which samples are drawn."""

SMALL = 12
"""Up to this side, bf16 does not pay off for images on a CPU: conversions cost more than the products save."""

COMPILED: dict[str, Any] = {"mode": "reduce-overhead", "dynamic": False}
"""Arguments of `torch.compile`: CUDA graphs where available, one batch size."""
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
"""Option numbers from glibc's malloc.h. Setting the first to -1 disables trimming, the second to 0 disables mmap."""


def keep_memory() -> None:
    """Make glibc reuse freed memory instead of returning it to the system, unless UNFOG_KEEP_MEMORY=0 is set.

    By default glibc returns large blocks at once, and the system zeroes every page when they are allocated again.
    Keeping them cuts the time of a step to 0.65 to 0.95, and raises peak memory by up to a sixth. Other C libraries and
    allocators are not touched.
    """
    if sys.platform == "linux" and os.environ.get("UNFOG_KEEP_MEMORY") != "0":
        set_option = getattr(ctypes.CDLL(None), "mallopt", None)
        if set_option is not None:
            set_option(_M_MMAP_MAX, 0)
            set_option(_M_TRIM_THRESHOLD, -1)


def choose_device(name: str = "auto") -> torch.device:
    """Return the named device; for "auto" CUDA, else Apple's MPS, else the CPU.

    Raises: UserError: If the named device is not available.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        probe = torch.zeros(1, device=torch.device(name))
        probe.cpu()
    except (RuntimeError, AssertionError, NotImplementedError):
        raise UserError(f"the device {name!r} is not available here: omit device, or use cpu") from None
    return probe.device  # with its index: other threads have their own current device


def choose_precision(wanted: Precision, device: torch.device, shape: tuple[int, ...]) -> Precision:
    """Return the precision in which the network computes.

    "auto" means bfloat16 on CUDA, and on CPUs with bf16 instructions for images with sides above 12; float32
    elsewhere. Measured on two cores with AMX: no difference for 8×8 images, 1.1 to 1.5 times faster for 28×28.

    Args:
        wanted: The recipe's setting.
        device: The device of the network.
        shape: Shape of one sample.

    Returns: "float32" or "bfloat16".
    """
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bfloat16"
    large = len(shape) > 2 and min(shape[1:]) > SMALL
    return "bfloat16" if device.type == "cpu" and has_bfloat16() and large else "float32"


FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}
"""The channels-last format by the number of axes."""


def has_bfloat16() -> bool:
    """Return whether the CPU has instructions for bf16."""
    return any(torch.cpu.get_capabilities().get(name) for name in ("amx_bf16", "avx512_bf16"))


def channels_last(model: nn.Module, device: torch.device) -> bool:
    """Return whether to use the channels-last memory format: always on CUDA, elsewhere if the network prefers it."""
    return device.type == "cuda" or any(getattr(part, "channels_last", False) for part in model.children())


def in_channels_last(x: Tensor) -> Tensor:
    """Return a batch in channels-last format where it has a height and a width, or these and a depth."""
    return x.to(memory_format=FORMATS[x.ndim]) if x.ndim in FORMATS else x


def place(model: nn.Module, device: torch.device) -> None:
    """Move a model to a device, with its weights in channels-last format where that is faster."""
    model.to(device)
    if channels_last(model, device) and all(parameter.ndim != 3 for parameter in model.parameters()):
        for parameter in model.parameters():
            if parameter.ndim in FORMATS:
                parameter.data = parameter.data.contiguous(memory_format=FORMATS[parameter.ndim])


def arithmetic(precision: Arithmetic, device: torch.device) -> AbstractContextManager[object]:
    """Return the context for running the network: autocast for bfloat16, and between layers of int8; else no change."""
    if device.type == "meta":
        return nullcontext()  # it computes nothing
    return torch.autocast(device.type, torch.bfloat16, enabled=precision in ("bfloat16", "int8"))


def within(context: Callable[[], AbstractContextManager[object]], parts: Iterator[Part]) -> Iterator[Part]:
    """Yield what an iterator gives, computed in a context that is left while the caller holds a part."""
    while True:
        with context():
            part = next(parts, None)
        if part is None:
            return
        yield part


def compute_again(network: nn.Module) -> None:
    """Recompute activations in the backward pass: the blocks in a network's `ModuleList`s keep only their inputs.

    Source: Chen et al. 2016, Training Deep Nets with Sublinear Memory Cost.
    """
    for blocks in [part for part in network.modules() if isinstance(part, nn.ModuleList)]:
        for block in blocks:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def free_memory(device: torch.device) -> int:
    """Return the free memory in bytes, including what torch's allocator caches on a GPU."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    meminfo = Path("/proc/meminfo")
    # not MemFree: the page cache can be reclaimed
    available = re.search(r"MemAvailable:\s+(\d+) kB", meminfo.read_text()) if meminfo.is_file() else None
    return int(available[1]) * 1024 if available else os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def peak_memory(device: torch.device) -> int:
    """Return the peak memory in bytes: of the GPU, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
