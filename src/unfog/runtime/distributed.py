"""One job over many processes, which torchrun starts and torch.distributed connects.

Every process does the same work in the same order on its own share of the rows; sums and rows are exchanged, and the
first process alone writes files and talks. Alone, everything here does nothing.
"""

import os
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
    """Return the number of this process; 0 is the first."""
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def share(count: int, what: str) -> slice:
    """Return which of `count` rows are this process's.

    Raises: UserError: If they cannot be shared out evenly.
    """
    each, rest = divmod(count, size())
    if rest:
        raise UserError(f"{what} of {count} cannot be shared out evenly to {size()} processes: choose a multiple")
    return slice(rank() * each, (rank() + 1) * each)


def total(tensors: Iterable[Tensor]) -> None:
    """Replace tensors by their sums over all processes, in one exchange.

    The sum is taken in one order, and is the same to the bit everywhere.
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
    """Return the rows of all processes, which have equally many, in the order of the processes."""
    if size() == 1:
        return rows
    there = rows.to(_device()).contiguous()
    found = [torch.empty_like(there) for _ in range(size())]
    with _exchange():
        dist.all_gather(found, there)
    return torch.cat(found).to(rows.device)


def agreed(number: float) -> float:
    """Return the number that the first process gives: for what differs between them, such as clocks."""
    if size() == 1:
        return number
    told = torch.tensor(number, dtype=torch.float64, device=_device())
    with _exchange():
        dist.broadcast(told, 0)
    return float(told)


def most(number: int) -> int:
    """Return the largest number that a process gives."""
    if size() == 1:
        return number
    told = torch.tensor(number, device=_device())
    with _exchange():
        dist.all_reduce(told, dist.ReduceOp.MAX)
    return int(told)


def shard(module: nn.Module) -> None:
    """Keep a share of each weight of a module's parts here, and gather those of a block while it computes.

    Gradients come summed over the processes.

    Source: Zhao et al. 2023, PyTorch FSDP; its second form in torch.distributed.fsdp.
    """
    from torch.distributed.fsdp import fully_shard  # here, since the import takes more than a second

    if size() == 1:
        return
    for parameter in module.parameters():
        parameter.data = parameter.data.contiguous()  # shares are cut from rows
    for called in module.children():
        listed = [part for inner in called.modules() if isinstance(inner, nn.ModuleList) for part in inner]
        for part in (*reversed(listed), called):  # the inner ones first
            sharded = fully_shard(part)
            sharded.set_gradient_divide_factor(1.0)
            sharded.set_force_sum_reduction_for_comms(True)  # gloo can do no other


def full(tensor: Tensor) -> Tensor:
    """Return the whole of a tensor, of which each process may hold a share."""
    whole: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return whole


def local(tensor: Tensor) -> Tensor:
    """Return the share of a tensor that this process holds."""
    held: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return held


def shared_as(tensor: Tensor, pattern: Tensor) -> Tensor:
    """Return a whole tensor, shared out as another one is."""
    if not hasattr(pattern, "placements"):
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(pattern, DTensor)
    return distribute_tensor(tensor.to(pattern.device), pattern.device_mesh, pattern.placements)


@contextmanager
def joined() -> Iterator[None]:
    """Connect the processes that torchrun started, and part at the end; alone, do nothing.

    Processes that wait longer than UNFOG_TIMEOUT seconds (600) for another give it up.

    Raises: EnvironmentFailure: If another process was lost, or did not answer in time.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    limit = timedelta(seconds=float(os.environ.get("UNFOG_TIMEOUT", "600")))
    with _exchange():
        store, rank, size = next(rendezvous("env://", timeout=limit))
        if os.environ.get("GROUP_WORLD_SIZE") == "1":  # torchrun restarts with the old store: the addresses of the dead
            store = PrefixStore(f"restart {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=limit)
        yield
        dist.destroy_process_group()


@contextmanager
def _exchange() -> Iterator[None]:
    """Turn what torch says of a lost process into a sentence; other errors pass."""
    try:
        yield
    except RuntimeError as error:
        signs = ("gloo", "NCCL", "closed by peer", "Connection", "Timed out", "timed out")
        if isinstance(error, EnvironmentFailure) or not any(sign in str(error) for sign in signs):
            raise
        which = f"process {os.environ.get('RANK', 0)} of {os.environ.get('WORLD_SIZE', 1)}"
        raise EnvironmentFailure(
            f"{which} lost another one, or waited too long for it: look at what the others said; the last checkpoint "
            f"is intact ({str(error).strip().splitlines()[0]})"
        ) from error


def _device() -> torch.device:
    """Return where tensors must be to be exchanged."""
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
