"""What a training takes on machines that one does not have: its operations, counted, against what a machine can do."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from unfog.networks.compact import Compact
from unfog.runtime.device import Precision, arithmetic
from unfog.runtime.errors import UserError
from unfog.training.rehearsal import Line
from unfog.training.work import Operation, recorded


@dataclass(frozen=True)
class Machine:
    """What a machine can do; the speeds are those that are reached, not those of a data sheet.

    Attributes:
        name: Its name.
        products: Operations a second of products in 16 bits.
        single: The same in 32 bits.
        moved: Bytes a second of operations that are no products, in 16 bits.
        moved_single: The same in 32 bits.
        call: Seconds to call an operation.
        ahead: Whether operations are called while others compute, as on a GPU.
        start: Seconds of a convolution in addition to its operations.
        memory: Bytes of memory.
        peak: Operations a second in 16 bits by the data sheet.
        link: Bytes a second in which each of several sends to others of the same host.
        network: The same to other hosts.
        hosted: How many of them a host has.
        latency: Seconds of a step of an exchange.
    """

    name: str
    products: float
    single: float
    moved: float
    moved_single: float
    call: float
    memory: float
    peak: float
    ahead: bool = True
    start: float = 0.0
    link: float = math.inf
    network: float = math.inf
    hosted: int = 1
    latency: float = 0.0


H100 = Machine(
    "H100",
    products=0.5 * 989e12,
    single=0.6 * 67e12,
    moved=0.8 * 3.35e12,
    moved_single=0.8 * 3.35e12,
    call=6e-6,
    memory=80e9,
    peak=989e12,
    link=0.75 * 450e9,
    network=0.75 * 50e9,
    hosted=8,
    latency=2e-5,
)
"""An H100 SXM. Peaks of NVIDIA's data sheet: 989 and 67 TFLOP/s (dense bfloat16; float32), 3.35 TB/s, 450 GB/s of
NVLink in each direction, eight cards a host and 50 GB/s of network each. The shares are what large products, copies and
exchanges reach; 6 microseconds is what torch takes to call an operation."""
A100 = replace(
    H100,
    name="A100",
    products=0.6 * 312e12,
    single=0.7 * 19.5e12,
    moved=0.8 * 2.04e12,
    moved_single=0.8 * 2.04e12,
    peak=312e12,
    link=0.75 * 300e9,
    network=0.75 * 25e9,
)
"""An A100 SXM of 80 GB, likewise."""
MACHINES = {"h100": H100, "a100": A100}
"""Machines by the names that `plan --device` takes, also as `8xh100`."""


class Step(NamedTuple):
    """The seconds of a step, by what bounds them.

    Attributes:
        products: Of operations that are bounded by products.
        moved: Of those that are bounded by memory.
        calls: Of calls: of operations that take less, or where nothing computes meanwhile, of all.
        exchange: Of the exchange between processes.
    """

    products: float
    moved: float
    calls: float
    exchange: float = 0.0

    @property
    def seconds(self) -> float:
        """All of them."""
        return sum(self)


def step_of(work: Sequence[Operation], machine: Machine) -> Step:
    """Predict a step: of each operation what takes longest, its products, its memory or its call (the roofline).

    Source: Williams et al. 2009, Roofline.
    """
    found = [0.0, 0.0, 0.0]
    for one in work:
        products, moved = (machine.products, machine.moved) if one.low else (machine.single, machine.moved_single)
        start = machine.start * one.convolution
        bounds = (start + one.products / products, one.moved / moved, machine.call * machine.ahead)
        found[2] += machine.call * (not machine.ahead)
        found[bounds.index(max(bounds))] += max(bounds)
    return Step(*found)


def exchange(machine: Machine, parameters: int, processes: int, sharded: bool = False) -> float:
    """Predict the seconds in which gradients are summed over processes, by rings over hosts.

    Each sends 2·(n - 1)/n of the bytes of the gradients, in float32. With sharded weights these are gathered twice as
    well and each keeps its part of the sums: 3·(n - 1)/n.

    Source: Patarasuk & Yuan 2009, Bandwidth Optimal All-reduce Algorithms for Clusters of Workstations; Rajbhandari et
    al. 2020, ZeRO, section 7.
    """
    if processes == 1:
        return 0.0
    times = 3 if sharded else 2
    between = machine.link if processes <= machine.hosted else machine.network * min(machine.hosted, processes)
    rounds = times * (min(processes, machine.hosted) - 1 + math.ceil(processes / machine.hosted) - 1)
    sent = times * (processes - 1) / processes * 4 * parameters
    return sent / min(machine.link, between) + rounds * machine.latency


def largest(machine: Machine, parameters: int, kept: float, each: float = 20.0) -> float:
    """Return the parameters of the largest model of a kind that fits a machine, about.

    Twice as wide a network has four times the parameters and keeps twice as much for the backward pass.

    Args:
        machine: The machine.
        parameters: Parameters of a model of the kind.
        kept: Bytes that its step keeps for the backward pass.
        each: Bytes of a parameter: weight, gradient, average and two moments.
    """
    own, room = each * parameters, machine.memory
    width = (math.sqrt(kept**2 + 4 * own * room) - kept) / (2 * own)
    return parameters * width**2


def this_machine(precision: Precision) -> Machine:
    """Measure this machine, in about a second: products, memory and calls as a step has them."""
    low = precision == "bfloat16"

    def convolve(weight: Tensor, x: Tensor) -> None:
        with arithmetic(precision, torch.device("cpu")):
            y = F.conv2d(x, weight, padding=1)
            torch.autograd.grad(y, (x, weight), torch.ones_like(y))

    def convolution(channels: int, side: int) -> tuple[int, float]:
        weight = torch.randn(channels, channels, 3, 3, requires_grad=True)
        x = torch.randn(64, channels, side, side).to(memory_format=torch.channels_last).requires_grad_()
        return 2 * 9 * channels**2 * 64 * side**2, _usual(lambda: convolve(weight, x)) / 3

    square, stored = torch.randn(384, 384), torch.randn(64 * 16**2, 64)
    network, x, t = Compact(1, width=8), torch.randn(2, 1, 4, 4), torch.rand(2)

    def pass_over(x: Tensor) -> None:
        F.silu(x)
        x + x
        F.layer_norm(x, x.shape[-1:])

    def passed(x: Tensor) -> float:
        return 7 * x.nbytes / _usual(lambda: pass_over(x))

    def small() -> None:
        with arithmetic(precision, torch.device("cpu")):
            torch.autograd.backward(network(x, t).sum())

    line, slow = Line.through(convolution(32, 8), convolution(64, 16)), passed(stored)
    single = 2 * 384**3 / _usual(lambda: square @ square)
    call = _usual(small) / len(recorded(small))  # in a network too small to compute
    products, moved = (1 / line.row, passed(stored.bfloat16())) if low else (single, slow)
    name = f"this machine with {torch.get_num_threads()} threads"
    return Machine(name, products, single, moved, slow, call, math.inf, products, False, line.call)


def _usual(call: Callable[[], object], seconds: float = 0.2) -> float:
    """Return the median seconds of a call."""
    call()
    began, spent = time.perf_counter(), list[float]()
    while time.perf_counter() - began < seconds:
        started = time.perf_counter()
        call()
        spent.append(time.perf_counter() - started)
    return median(spent)


def named(device: str) -> tuple[Machine, int] | None:
    """Return the machine that a name such as `h100` or `8xh100` means, and how many; None for devices of this one.

    Raises: UserError: If their number is none.
    """
    count, times, name = device.lower().rpartition("x")
    machine = MACHINES.get(name if times else device.lower())
    if machine is None:
        return None
    if times and not (count.isdecimal() and 1 <= int(count) <= 1 << 20):
        raise UserError(f"the device {device!r} means a number of {machine.name}s: give it as 8x{name}")
    return machine, int(count) if times else 1
