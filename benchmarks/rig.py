"""What the benchmarks share: interleaved timing, the machine's name and ceiling, tables in Markdown and JSON."""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

CONSOLE = Console(stderr=True)
CONVOLUTIONS = ((64, 64, 32), (64, 128, 16), (32, 256, 16), (64, 128, 7), (64, 64, 14))
"""Batch, channels and side of the convolutions of which the fastest is a machine's ceiling."""


@dataclass(frozen=True)
class Table:
    """A part of the report.

    Attributes:
        title: Its heading.
        note: What was measured, and how.
        rows: One for each line, all with the same columns.
    """

    title: str
    note: str
    rows: Sequence[Mapping[str, object]]

    def markdown(self) -> str:
        """Return the table."""
        columns = list(self.rows[0])
        lines = [columns, ["---"] * len(columns), *([_shown(row[column]) for column in columns] for row in self.rows)]
        return f"## {self.title}\n\n{self.note}\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _shown(value: object) -> str:
    """Return three digits of a number, or a text."""
    if not isinstance(value, float):
        return "" if value is None else str(value)
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def machine(device: torch.device) -> dict[str, object]:
    """Return what was measured on."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        name = lines[0].partition(":")[2].strip() if lines else name
    able = [key for key, has in torch.cpu.get_capabilities().items() if has is True and "16" in key]
    found: dict[str, object] = {
        "date": date.today().isoformat(),
        "processor": name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instructions": " ".join(sorted(able)),
        "torch": torch.__version__,
    }
    if device.type == "cuda":
        found["device"] = torch.cuda.get_device_name(device)
    return found


def finish(device: torch.device) -> None:
    """Wait until a device has done what it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def interleaved(
    variants: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    seconds: float,
    device: torch.device,
    what: str,
) -> dict[str, float]:
    """Return the median over rounds of the seconds that a call of each variant takes, all in turn in every round.

    Args:
        variants: What to call; each twice before, untimed.
        rounds: How often each has its turn.
        seconds: How long a turn lasts, one call at least.
        device: What they compute on.
        what: Shown next to the progress.
    """
    for call in variants.values():
        call()
        call()
        finish(device)
    found: dict[str, list[float]] = {name: [] for name in variants}
    turns = [(name, call) for _ in range(rounds) for name, call in variants.items()]
    for name, call in track(turns, what, console=CONSOLE, transient=True):
        started, calls = time.perf_counter(), 0
        while not calls or time.perf_counter() - started < seconds:
            call()
            calls += 1
        finish(device)
        found[name].append((time.perf_counter() - started) / calls)
    return {name: statistics.median(times) for name, times in found.items()}


def training_flops(network: nn.Module, shape: Sequence[int]) -> int:
    """Return the floating-point operations of a network for one sample, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        torch.autograd.backward(network(torch.zeros(1, *shape), torch.zeros(1)).square().mean())
    network.zero_grad()
    flops: int = counter.get_total_flops()
    return flops


def ceiling(device: torch.device, *, rounds: int, seconds: float) -> float:
    """Return the most operations a second that 3×3 convolutions reach there and back, in bfloat16, channels last."""
    calls, flops = {}, {}
    for batch, channels, side in CONVOLUTIONS:
        layer = nn.Conv2d(channels, channels, 3, padding=1, device=device, dtype=torch.bfloat16)
        layer = layer.to(memory_format=torch.channels_last)
        x = torch.randn(batch, channels, side, side, device=device, dtype=torch.bfloat16)
        x = x.to(memory_format=torch.channels_last).requires_grad_()
        back = torch.ones_like(x)
        name = f"{batch}×{channels}×{side}×{side}"
        calls[name] = lambda layer=layer, x=x, back=back: layer(x).backward(back)
        flops[name] = 6 * 9 * batch * channels**2 * side**2
    taken = interleaved(calls, rounds=rounds, seconds=seconds, device=device, what="ceiling")
    return max(flops[name] / time for name, time in taken.items())


def write(tables: Sequence[Table], where: Path, device: torch.device, title: str) -> None:
    """Write tables to WHERE.md and WHERE.json."""
    stands = machine(device)
    named = ", ".join(f"{key} {value}" for key, value in stands.items())
    text = f"# {title}\n\n{named}.\n\n" + "\n".join(table.markdown() for table in tables)
    where.parent.mkdir(parents=True, exist_ok=True)
    where.with_suffix(".md").write_text(text)
    plain = {"machine": stands, "tables": [asdict(table) for table in tables]}
    where.with_suffix(".json").write_text(json.dumps(plain, indent=1, ensure_ascii=False) + "\n")
    print(text)
