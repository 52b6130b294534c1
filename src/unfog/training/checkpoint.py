"""Checkpoints as safetensors and JSON: written atomically and verified before older ones are pruned."""

import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unfog.recipes.schema import MOST_WHOLE, fits
from unfog.runtime import distributed
from unfog.runtime.errors import EnvironmentFailure, UserError
from unfog.runtime.files import disk, parse_json, read_bounded, sync, write_whole
from unfog.runtime.tensors import read_tensors, write_tensors

KEPT = 2
"""Whole checkpoints to keep; what is older than these is pruned once a new one is verified."""


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: list[str]) -> dict[str, Tensor]:
    """Return the optimizer's state as tensors named `parameter:entry`."""
    state: dict[int, dict[str, Tensor]] = optimizer.state_dict()["state"]
    tensors: dict[str, Tensor] = {}
    for index, entries in state.items():
        for entry, value in entries.items():
            tensors[f"{names[index]}:{entry}"] = distributed.full(value)
    return tensors


def restore_optimizer(optimizer: torch.optim.Optimizer, names: list[str], tensors: Mapping[str, Tensor]) -> None:
    """Restore an optimizer's state from tensors named `parameter:entry`.

    Fused optimizers iterate over raw memory, so a moment gets the memory format of its weight.

    Raises: UserError: If the optimizer has other entries, or entries of other shapes.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    plain: dict[str, Any] = {**optimizer.state_dict(), "state": {}}
    expected = _entries(optimizer, parameters)
    for name, value in tensors.items():
        parameter, _, entry = name.rpartition(":")
        index = names.index(parameter) if parameter in names else -1
        if expected.get((index, entry)) != (value.shape, value.dtype):
            raise UserError(f"the checkpoint does not match the recipe: the optimizer has no {name} of this shape")
        like = parameters[index]
        if value.shape == like.shape:
            value = torch.empty_like(like).copy_(distributed.shared_as(value, like))
        plain["state"].setdefault(index, {})[entry] = value
    for index, entry in expected:
        if index in plain["state"] and entry not in plain["state"][index]:
            raise UserError(f"the checkpoint is damaged ({names[index]}:{entry} is missing): use the previous one")
    optimizer.load_state_dict(plain)


def _entries(
    optimizer: torch.optim.Optimizer, parameters: list[Tensor]
) -> dict[tuple[int, str], tuple[torch.Size, torch.dtype]]:
    """Return shape and dtype of an optimizer's state by (parameter, entry), found by a step with learning rate 0."""
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    state: dict[int, dict[str, Tensor]] = optimizer.state_dict()["state"]
    layout: dict[tuple[int, str], tuple[torch.Size, torch.dtype]] = {}
    for index, entries in state.items():
        for entry, value in entries.items():
            layout[index, entry] = (value.shape, value.dtype)
    return layout


def flat(parts: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the tensors of several parts in one dict, under names `part/name`."""
    return {f"{kind}/{name}": tensor for kind, part in parts.items() for name, tensor in part.items()}


def whole(module: nn.Module) -> dict[str, Tensor]:
    """Return the state of a module, gathered if it is sharded over processes."""
    return {name: distributed.full(tensor) for name, tensor in module.state_dict().items()}


def finite(parts: Mapping[str, Mapping[str, Tensor]]) -> bool:
    """Return whether every tensor is finite."""
    return all(bool(tensor.isfinite().all()) for tensor in flat(parts).values())


def save(folder: Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> Path:
    """Write a checkpoint to a temporary folder, verify it, rename it to `folder`/`step`, then prune older ones.

    Partial checkpoints of killed processes are pruned too. An intact checkpoint of the same step is kept as it is: the
    state after a step is unique.

    Args:
        folder: The run's folder of checkpoints.
        step: Completed optimizer steps.
        tensors: All tensors of the state.
        state: Everything else, as JSON values.

    Returns: The checkpoint's folder.
    Raises: EnvironmentFailure: If the disk fails; earlier checkpoints stay intact.
    """
    final = folder / f"{step:09}"
    part = folder / f".{final.name}.part"
    if _verified(final) is not None:
        return final
    with disk(final):
        shutil.rmtree(part, ignore_errors=True)
        try:
            folder.mkdir(exist_ok=True)  # but not the run folder: it is gone if somebody moved it
            part.mkdir()
            write_tensors(part / "state.safetensors", tensors)
            plain = {**state, "step": step, "sha256": _digest(part / "state.safetensors")}
            write_whole(part / "state.json", json.dumps(plain, indent=1).encode())
            if _verified(part) is None:
                raise EnvironmentFailure(f"the checkpoint {final} differs when read back: check the disk")
            shutil.rmtree(final, ignore_errors=True)
            os.replace(part, final)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        sync(folder)
    _prune(folder, final)
    return final


def _prune(folder: Path, new: Path) -> None:
    """Remove what is older than the newest whole checkpoints, `new` among them, and what killed processes left.

    Damaged checkpoints take nobody's place: where later ones are damaged, as after a fall back to an earlier one,
    the whole ones stay.
    """
    present = steps(folder)
    whole = (path for path in reversed(present) if path != new and _verified(path) is not None)
    oldest = min([new, *islice(whole, KEPT - 1)])
    for old in (*(path for path in present if path < oldest), *folder.glob(".*.part")):
        shutil.rmtree(old, ignore_errors=True)


def latest(folder: Path, most: int | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return tensors and state of the newest intact checkpoint; warn about damaged ones.

    Args:
        folder: The run's folder of checkpoints.
        most: Latest step to consider; default: any.

    Raises: UserError: If there is no intact checkpoint.
    """
    candidates = steps(folder)
    if most is not None:
        candidates = [path for path in candidates if int(path.name) <= most]
    for candidate in reversed(candidates):
        state = _verified(candidate)
        if state is not None:
            return read_tensors(candidate / "state.safetensors"), state
        warnings.warn(f"the checkpoint {candidate} is damaged: falling back to the previous one", stacklevel=2)
    raise UserError(f"{folder} contains no intact checkpoint, so there is nothing to resume: train into a new folder")


def steps(folder: Path) -> list[Path]:
    """Return the checkpoints of a folder, intact or damaged, oldest first."""
    return sorted((path for path in folder.glob("*") if numbered(path.name)), key=lambda path: int(path.name))


def numbered(name: str) -> bool:
    """Return whether a name is the number of a step as unfog writes it."""
    return re.fullmatch(r"[0-9]{9,12}", name) is not None


def _verified(checkpoint: Path) -> dict[str, Any] | None:
    """Return the state of a checkpoint if its tensors have the recorded checksum, else None."""
    try:
        state = parse_json(read_bounded(checkpoint / "state.json"))
        intact = isinstance(state, dict) and state.get("sha256") == _digest(checkpoint / "state.safetensors")
    except (OSError, ValueError):
        return None
    return state if intact and fits(state.get("step"), int) and 0 <= state["step"] <= MOST_WHOLE else None


def _digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
