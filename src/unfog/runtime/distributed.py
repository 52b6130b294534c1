"""One job on several processes, started by torchrun and connected by torch.distributed.

Every process does the same work in the same order on its own share of the rows. They exchange sums and rows; only
rank 0 writes files and prints. With a single process everything here is a no-op.
"""

import os
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from unfog.runtime.errors import EnvironmentFailure, UserError


def rank() -> int:
    """Return the rank of this process, 0 for the first or only one."""
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def share(count: int, what: str) -> slice:
    """Return this process's slice of `count` rows.

    Raises: UserError: If the number of processes does not divide `count`.
    """
    per_process, rest = divmod(count, size())
    if rest:
        raise UserError(f"{what} of {count} cannot be divided evenly among {size()} processes: choose a multiple")
    return slice(rank() * per_process, (rank() + 1) * per_process)


def total(tensors: Iterable[Tensor]) -> None:
    """Replace tensors in place by their sums over all processes, in one all-reduce.

    All processes get bit-identical sums.
    """
    parts = list(tensors)
    if size() == 1 or not parts:
        return
    flat = torch.cat([part.reshape(-1).to(_device(), torch.float32) for part in parts])
    with _exchange():
        dist.all_reduce(flat)
    for part, summed in zip(parts, torch.split(flat, [part.numel() for part in parts]), strict=True):
        part.copy_(summed.view_as(part))


def gather(rows: Tensor) -> Tensor:
    """Return the rows of all processes in rank order; every process has the same number of rows."""
    if size() == 1:
        return rows
    own = rows.to(_device()).contiguous()
    parts = [torch.empty_like(own) for _ in range(size())]
    with _exchange():
        dist.all_gather(parts, own)
    return torch.cat(parts).to(rows.device)


def agreed(number: float) -> float:
    """Return the number of rank 0 on all processes: for values that differ between them, such as clocks."""
    if size() == 1:
        return number
    value = torch.tensor(number, dtype=torch.float64, device=_device())
    with _exchange():
        dist.broadcast(value, 0)
    return float(value)


def most(number: int) -> int:
    """Return the maximum of a number over all processes."""
    if size() == 1:
        return number
    value = torch.tensor(number, device=_device())
    with _exchange():
        dist.all_reduce(value, dist.ReduceOp.MAX)
    return int(value)


def shard(module: nn.Module) -> None:
    """Shard the weights of a module's children over the processes (FSDP2), gathered block by block when used.

    Gradients are summed over the processes, not averaged.

    Source: Zhao et al. 2023, PyTorch FSDP; here `fully_shard` of torch.distributed.fsdp.
    """
    from torch.distributed.fsdp import fully_shard  # here, since the import takes more than a second

    if size() == 1:
        return
    for parameter in module.parameters():
        parameter.data = parameter.data.contiguous()  # sharding splits along the rows
    for child in module.children():
        blocks: list[nn.Module] = []
        for inner in child.modules():
            if isinstance(inner, nn.ModuleList):
                blocks.extend(inner)
        for part in (*reversed(blocks), child):  # innermost first
            sharded = fully_shard(part)
            sharded.set_gradient_divide_factor(1.0)
            sharded.set_force_sum_reduction_for_comms(True)  # gloo supports no other reduction


def reshard(module: nn.Module) -> None:
    """Free the gathered weights that the outermost parts of a sharded module keep after a call without gradients."""
    for part in module.modules():
        if callable(free := getattr(part, "reshard", None)):
            free()


def full(tensor: Tensor) -> Tensor:
    """Return the full tensor, gathered if it is sharded."""
    whole: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return whole


def local(tensor: Tensor) -> Tensor:
    """Return the local shard of a tensor, or the tensor itself if it is not sharded."""
    held: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return held


def shared_as(tensor: Tensor, pattern: Tensor) -> Tensor:
    """Return a full tensor, sharded like `pattern`."""
    if not hasattr(pattern, "placements"):
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(pattern, DTensor)
    return distribute_tensor(tensor.to(pattern.device), pattern.device_mesh, pattern.placements)


@contextmanager
def joined() -> Iterator[None]:
    """Connect the processes that torchrun started, and disconnect them at the end; no-op for a single process.

    A process that waits more than UNFOG_TIMEOUT seconds (default: 600) for another one fails.

    Raises: EnvironmentFailure: If another process died, or did not respond in time.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    needed = ("RANK", "MASTER_ADDR", "MASTER_PORT", *(["LOCAL_RANK"] if torch.cuda.is_available() else []))
    missing = [name for name in needed if name not in os.environ]
    if missing:
        raise UserError(
            f"WORLD_SIZE asks for {os.environ['WORLD_SIZE']} processes, but {', '.join(missing)} is not set: start "
            "them with torchrun, or unset WORLD_SIZE"
        )
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    limit = timedelta(seconds=float(os.environ.get("UNFOG_TIMEOUT", "600")))
    with _exchange():
        store, rank, size = next(rendezvous("env://", timeout=limit))
        if (
            os.environ.get("GROUP_WORLD_SIZE") == "1"
        ):  # torchrun restarts reuse the store, which still lists dead processes
            store = PrefixStore(f"restart {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=limit)
        yield
        dist.destroy_process_group()


@contextmanager
def _exchange() -> Iterator[None]:
    """Raise an EnvironmentFailure for torch's errors about lost processes; other errors pass through."""
    try:
        yield
    except RuntimeError as error:
        signs = ("gloo", "NCCL", "closed by peer", "Connection", "Timed out", "timed out")
        if isinstance(error, EnvironmentFailure) or not any(sign in str(error) for sign in signs):
            raise
        if threading.current_thread() is threading.main_thread():
            signal.signal(
                signal.SIGTERM, signal.SIG_IGN
            )  # torchrun now ends this process too: what it lost comes first
        which = f"process {os.environ.get('RANK', 0)} of {os.environ.get('WORLD_SIZE', 1)}"
        raise EnvironmentFailure(
            f"{which} lost another process, or waited too long for it: check the output of the others; the last "
            f"checkpoint is intact ({str(error).strip().splitlines()[0]})"
        ) from error


def _device() -> torch.device:
    """Return the device on which the backend exchanges tensors."""
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
