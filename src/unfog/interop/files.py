"""Folders of other toolkits: where they lie, and their configurations and weights, read as a stranger's files are."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from unfog.runtime.errors import EnvironmentFailure, UserError
from unfog.runtime.files import parse_json, read_bounded

STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
"""What files of weights are called, without variant and suffix."""
WANTED = ["*.json", "*.txt", "*.safetensors", "*.model"]
"""What is fetched from the hub: everything but pickles."""


def found(source: str) -> Path:
    """Return the folder of a model: a path, or a name on the hub, from where it is fetched.

    Raises: UserError: If there is none.
        EnvironmentFailure: If the network fails.
    """
    folder = Path(source)
    if folder.is_dir():
        return folder
    if folder.exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        raise UserError(
            f"{source} is no folder: give one that diffusers wrote, or a name on the hub such as owner/name"
        )
    try:
        hub = import_module("huggingface_hub")
    except ImportError:
        raise UserError(
            f"{source} is no folder here, and to fetch it from the hub takes huggingface_hub: pip install 'unfog[text]'"
        ) from None
    try:
        return Path(hub.snapshot_download(source, allow_patterns=WANTED))
    except hub.errors.RepositoryNotFoundError:
        raise UserError(f"there is no folder {source} here, and no such model on the hub: check the name") from None
    except (OSError, hub.errors.HfHubHTTPError, RuntimeError) as error:
        raise EnvironmentFailure(f"{source} cannot be fetched from the hub: {str(error).splitlines()[0]}") from error


@contextmanager
def meant(where: str) -> Iterator[None]:
    """Turn what goes wrong with a stranger's values into one sentence.

    Raises: UserError: If a value is not of the kind that its name promises.
    """
    try:
        yield
    except UserError:
        raise
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, ArithmeticError) as error:
        raise UserError(f"{where} holds a value that means nothing ({error}): restore it") from error


def config(file: Path) -> dict[str, Any]:
    """Return a configuration.

    Raises: UserError: If it is missing, or no JSON object.
    """
    if not file.is_file():
        raise UserError(f"{file} is missing: the folder is not whole")
    try:
        read: Any = parse_json(read_bounded(file))
    except ValueError as error:
        raise UserError(f"{file} is no JSON ({error})") from None
    if not isinstance(read, dict):
        raise UserError(f"{file} is no JSON object")
    return read


def weights(folder: Path, trust: Path | None = None) -> dict[str, Tensor]:
    """Return the weights of a folder, out of one file or several.

    Args:
        folder: Holds them.
        trust: A pickle of weights that may be read, by a reader that makes nothing but tensors of it.

    Raises: UserError: If there are none but pickles, or a file is damaged.
    """
    whole = [folder / f"{stem}.safetensors" for stem in STEMS]
    variants = [file for stem in STEMS for file in sorted(folder.glob(f"{stem}.*.safetensors"))]
    listed = [folder / f"{stem}.safetensors.index.json" for stem in STEMS]
    pickles = [file for stem in STEMS for file in sorted(folder.glob(f"{stem}*.bin"))]
    for file in whole:
        if file.is_file():
            return _read(file)
    for file in listed:
        if file.is_file():
            return _parts(file)
    for file in variants:
        if "-of-" not in file.name:
            return _read(file)
    if trust is not None and any(trust.resolve() == file.resolve() for file in pickles):
        return _unpickled(trust)
    if pickles:
        raise UserError(
            f"{pickles[0]} is a pickle, which can run any program when it is read: convert it to safetensors, or name "
            f"it with --trust {pickles[0]}"
        )
    raise UserError(f"{folder} holds no weights: {STEMS[0]}.safetensors is missing")


def _read(file: Path) -> dict[str, Tensor]:
    """Read a safetensors file."""
    try:
        return load_file(file)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{file} is damaged or truncated ({error}): fetch it again") from error


def _parts(file: Path) -> dict[str, Tensor]:
    """Read the files that an index names."""
    names = config(file).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise UserError(f"{file} names no files of weights")
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(names.values())):
        if Path(name).name != name:
            raise UserError(f"{file} names {name!r}, which is not beside it")
        tensors |= _read(file.parent / name)
    return tensors


def _unpickled(file: Path) -> dict[str, Tensor]:
    """Read a pickle of tensors."""
    try:
        read = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a pickle may fail in any way
        raise UserError(f"{file} is no pickle of weights alone: convert it to safetensors where it was made") from error
    if not isinstance(read, dict) or not all(isinstance(one, Tensor) for one in read.values()):
        raise UserError(f"{file} holds something else than weights by their names")
    return read
