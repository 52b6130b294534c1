"""Checkpoints as safetensors and JSON: written beside, synced, checked, renamed; old ones pruned afterwards."""

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unfog.recipes.schema import MOST_WHOLE, fits
from unfog.runtime import distributed
from unfog.runtime.errors import EnvironmentFailure, UserError
from unfog.runtime.files import disk, parse_json, read_bounded, sync, write_whole
from unfog.runtime.tensors import read_tensors, write_tensors

KEPT = 2
"""Checkpoints that stay; older ones are pruned after a new one was verified."""


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: list[str]) -> dict[str, Tensor]:
    """Return the optimizer's state as tensors named `parameter:entry`."""
    state: dict[int, dict[str, Tensor]] = optimizer.state_dict()["state"]
    return {
        f"{names[index]}:{entry}": distributed.full(value)
        for index, one in state.items()
        for entry, value in one.items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, names: list[str], tensors: Mapping[str, Tensor]) -> None:
    """Fill an optimizer from tensors named `parameter:entry`.

    A fused optimizer walks through memory, so a moment takes on the memory format of its weight.

    Raises: UserError: If it keeps other entries of a weight, or of other shapes.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    plain: dict[str, Any] = {**optimizer.state_dict(), "state": {}}
    wanted = _entries(optimizer, parameters)
    for name, value in tensors.items():
        parameter, _, entry = name.rpartition(":")
        index = names.index(parameter) if parameter in names else -1
        if wanted.get((index, entry)) != (value.shape, value.dtype):
            raise UserError(f"the checkpoint does not fit the recipe: the optimizer keeps no {name} of this shape")
        like = parameters[index]
        whole = value.shape == like.shape
        fitted = torch.empty_like(like).copy_(distributed.shared_as(value, like)) if whole else value
        plain["state"].setdefault(index, {})[entry] = fitted
    for index, entry in wanted:
        if index in plain["state"] and entry not in plain["state"][index]:
            raise UserError(f"the checkpoint is damaged: {names[index]}:{entry} is missing: use the one before it")
    optimizer.load_state_dict(plain)


def _entries(
    optimizer: torch.optim.Optimizer, parameters: list[Tensor]
) -> dict[tuple[int, str], tuple[torch.Size, torch.dtype]]:
    """Return what an optimizer keeps of its weights, by number and entry: a step of length 0 shows it."""
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    state: dict[int, dict[str, Tensor]] = optimizer.state_dict()["state"]
    return {(index, entry): (one.shape, one.dtype) for index, kept in state.items() for entry, one in kept.items()}


def save(folder: Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> Path:
    """Write the checkpoint of a step beside, verify it, name it `folder`/`step`, and only then prune older ones.

    What a killed process left half written goes with the older ones. A whole checkpoint of that step stays as it is,
    since the state of a step is one.

    Args:
        folder: The run's folder of checkpoints.
        step: Optimizer steps done.
        tensors: Everything that is a tensor.
        state: Everything else, as plain JSON values.

    Returns: The checkpoint's folder.
    Raises: EnvironmentFailure: If the disk fails; the checkpoints before are intact.
    """
    final = folder / f"{step:09}"
    part = folder / f".{final.name}.part"
    if _verified(final) is not None:
        return final
    with disk(final):
        shutil.rmtree(part, ignore_errors=True)
        try:
            part.mkdir(parents=True)
            write_tensors(part / "state.safetensors", tensors)
            plain = {**state, "step": step, "sha256": _digest(part / "state.safetensors")}
            write_whole(part / "state.json", json.dumps(plain, indent=1).encode())
            if _verified(part) is None:
                raise EnvironmentFailure(f"the checkpoint {final} does not read back as it was written: check the disk")
            shutil.rmtree(final, ignore_errors=True)
            os.replace(part, final)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        sync(folder)
    for old in (*steps(folder)[:-KEPT], *folder.glob(".*.part")):
        shutil.rmtree(old, ignore_errors=True)
    return final


def latest(folder: Path, most: int | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return tensors and state of the newest checkpoint that verifies; damaged ones are named in a warning.

    Args:
        folder: The run's folder of checkpoints.
        most: Steps that it may have done; any number if None.

    Raises: UserError: If there is none.
    """
    found = steps(folder)
    for candidate in reversed(found if most is None else [one for one in found if int(one.name) <= most]):
        state = _verified(candidate)
        if state is not None:
            return read_tensors(candidate / "state.safetensors"), state
        warnings.warn(f"the checkpoint {candidate} is damaged: the one before it is used", stacklevel=2)
    raise UserError(f"{folder} holds no whole checkpoint: start the training again without --resume")


def steps(folder: Path) -> list[Path]:
    """Return the checkpoints of a folder, whole or damaged, the oldest first."""
    return sorted(path for path in folder.glob("*") if path.name.isdigit())


def _verified(checkpoint: Path) -> dict[str, Any] | None:
    """Return the state of a checkpoint whose tensors have the checksum that it names, else None."""
    try:
        state = parse_json(read_bounded(checkpoint / "state.json"))
        whole = isinstance(state, dict) and state.get("sha256") == _digest(checkpoint / "state.safetensors")
    except (OSError, ValueError):
        return None
    return state if whole and fits(state.get("step"), int) and 0 <= state["step"] <= MOST_WHOLE else None


def _digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
