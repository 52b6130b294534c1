"""Weights as safetensors: written atomically, read with a clear error for each fault."""

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from unfog.runtime import distributed
from unfog.runtime.errors import UserError
from unfog.runtime.files import unreadable, whole

FLOATS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
"""Dtypes that are converted to each other when weights are loaded."""


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as safetensors, atomically, with the permissions of the umask."""
    with whole(path) as part:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, part)
        mask = os.umask(0)
        os.umask(mask)
        part.chmod(0o666 & ~mask)  # safetensors writes 0600


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises: UserError: If the file is missing, truncated or not safetensors.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing: the run has no weights (yet)")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise unreadable(path, error, "restore it, or train again") from error


def load_into(module: torch.nn.Module, tensors: Mapping[str, Tensor], where: Path) -> None:
    """Load tensors into a module with the same names and shapes.

    Raises: UserError: If names, shapes or dtypes differ, or a value is not finite.
    """
    own = module.state_dict()
    for name in own.keys() | tensors.keys():
        if name not in tensors or name not in own:
            raise UserError(f"{where} does not match the recipe next to it: the weight {name} is only in one of them")
        if own[name].shape != tensors[name].shape:
            shapes = f"{tuple(tensors[name].shape)} where the recipe expects {tuple(own[name].shape)}"
            raise UserError(f"{where} does not match the recipe next to it: the weight {name} has the shape {shapes}")
        dtypes = {tensors[name].dtype, own[name].dtype}
        if len(dtypes) > 1 and not dtypes <= FLOATS:
            raise UserError(f"{where} does not match the recipe next to it: the weight {name} is {tensors[name].dtype}")
        if not tensors[name].to(own[name].dtype).isfinite().all():
            raise UserError(f"{where} is damaged (the weight {name} is not finite): restore it, or train again")
    module.load_state_dict({name: distributed.shared_as(value, own[name]) for name, value in tensors.items()})
