"""Where a network computes and in what arithmetic, by a short rule."""

import ctypes
import os
import re
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from unfog.runtime.errors import UserError

Part = TypeVar("Part")
Precision = Literal["auto", "float32", "bfloat16"]

SMALL = 12
"""Pictures of at most this side gain nothing from bf16 on a CPU: its conversions outweigh its products."""

COMPILED: dict[str, Any] = {"mode": "reduce-overhead", "dynamic": False}
"""How a network is compiled: with CUDA graphs where there are some, for one batch size."""
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
"""Numbers of two options in glibc's malloc.h: -1 turns the first one off, 0 blocks of their own the second."""


def keep_memory() -> None:
    """Have the C library keep what a step frees for the next one, unless UNFOG_KEEP_MEMORY=0 is set.

    Glibc gives large blocks back to the system at once, and the system clears every page of them again. Where it keeps
    them a step takes 0.65 to 0.95 of the time, and its peak of memory is up to a sixth higher. Other C libraries and
    allocators are left as they are.
    """
    if sys.platform == "linux" and os.environ.get("UNFOG_KEEP_MEMORY") != "0":
        set_option = getattr(ctypes.CDLL(None), "mallopt", None)
        if set_option is not None:
            set_option(_M_MMAP_MAX, 0)
            set_option(_M_TRIM_THRESHOLD, -1)


def choose_device(name: str = "auto") -> torch.device:
    """Return a device: CUDA, else Apple's MPS, else the CPU, unless one is named.

    Raises: UserError: If the named device does not exist here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        probe = torch.zeros(1, device=torch.device(name))
        probe.cpu()
    except (RuntimeError, AssertionError, NotImplementedError):
        raise UserError(f"the device {name!r} does not exist here: leave --device away, or use cpu") from None
    return probe.device  # with its number, which threads would not know


def choose_precision(wanted: Precision, device: torch.device, shape: tuple[int, ...]) -> Precision:
    """Return the arithmetic of the network.

    "auto" is bfloat16 on CUDA, and on CPUs with bf16 instructions for pictures with sides above 12; float32
    elsewhere. Measured on two cores with AMX: 8×8 pictures as fast in both, 28×28 ones 1.1 to 1.5 times as fast.

    Args:
        wanted: What the recipe asks for.
        device: Where the network computes.
        shape: Shape of one sample.

    Returns: "float32" or "bfloat16".
    """
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bfloat16"
    able = any(torch.cpu.get_capabilities().get(name) for name in ("amx_bf16", "avx512_bf16"))
    large = len(shape) > 2 and min(shape[1:]) > SMALL
    return "bfloat16" if device.type == "cpu" and able and large else "float32"


def channels_last(model: nn.Module, device: torch.device) -> bool:
    """Return whether pictures are to have their channels last in memory: always on CUDA, elsewhere as networks say."""
    return device.type == "cuda" or any(getattr(part, "channels_last", False) for part in model.children())


def place(model: nn.Module, device: torch.device) -> None:
    """Move a model to its device, and its weights to channels-last where its network is faster so."""
    model.to(device)
    if channels_last(model, device) and all(parameter.ndim in (0, 1, 2, 4) for parameter in model.parameters()):
        for parameter in model.parameters():
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


def arithmetic(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Return the context in which the network runs: autocast for bfloat16, nothing for float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


def within(context: Callable[[], AbstractContextManager[object]], parts: Iterator[Part]) -> Iterator[Part]:
    """Yield what an iterator gives, computed in a context that is left while the caller holds a part."""
    while True:
        with context():
            part = next(parts, None)
        if part is None:
            return
        yield part


def compute_again(network: nn.Module) -> None:
    """Have the members of a network's lists, which are its blocks, keep no more than what they are given.

    Source: Chen et al. 2016, Training Deep Nets with Sublinear Memory Cost.
    """
    for blocks in [part for part in network.modules() if isinstance(part, nn.ModuleList)]:
        for block in blocks:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def free_memory(device: torch.device) -> int:
    """Return the bytes that are free, those among them that torch keeps on a GPU for its next tensors."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    meminfo = Path("/proc/meminfo")
    # free pages would leave out what the caches of files give back
    found = re.search(r"MemAvailable:\s+(\d+) kB", meminfo.read_text()) if meminfo.is_file() else None
    return int(found[1]) * 1024 if found else os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def peak_memory(device: torch.device) -> int:
    """Return the most bytes that were in use: on the GPU, or by this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
