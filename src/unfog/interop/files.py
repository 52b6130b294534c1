"""Model folders of other toolkits: locating them, and reading their configurations and weights as untrusted files."""

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

from unfog.runtime.contained import check_contained
from unfog.runtime.errors import EnvironmentFailure, UserError
from unfog.runtime.files import parse_json, read_bounded, unreadable

STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
"""Names of weight files, without variant and suffix."""
WANTED = ["*.json", "*.txt", "*.safetensors", "*.model"]
"""Files downloaded from the hub: everything but pickles."""


def found(source: str) -> Path:
    """Return the folder of a model: an existing path, or a download from the hub.

    Raises: UserError: If there is no such folder or model.
        EnvironmentFailure: If the download fails.
    """
    folder = Path(source)
    if folder.is_dir():
        check_contained(folder)
        return folder
    if folder.exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        raise UserError(f"{source} is not a folder: pass a diffusers folder, or a name on the hub such as owner/name")
    try:
        hub = import_module("huggingface_hub")
    except ImportError:
        raise UserError(
            f"{source} is not a folder, and downloading from the hub needs huggingface_hub: pip install 'unfog[text]'"
        ) from None
    try:
        return Path(hub.snapshot_download(source, allow_patterns=WANTED))
    except hub.errors.RepositoryNotFoundError:
        raise UserError(f"there is no folder {source}, and no such model on the hub: check the name") from None
    except (OSError, hub.errors.HfHubHTTPError, RuntimeError) as error:
        raise EnvironmentFailure(f"{source} cannot be downloaded from the hub: {str(error).splitlines()[0]}") from error


@contextmanager
def meant(where: str) -> Iterator[None]:
    """Turn errors caused by untrusted values into one sentence.

    Raises: UserError: If a value is invalid.
    """
    try:
        yield
    except UserError:
        raise
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, ArithmeticError) as error:
        raise UserError(f"{where} contains an invalid value ({error}): restore it") from error


def config(file: Path) -> dict[str, Any]:
    """Read a configuration.

    Raises: UserError: If it is missing, or not a JSON object.
    """
    if not file.is_file():
        raise UserError(f"{file} is missing: the folder is incomplete")
    try:
        read: Any = parse_json(read_bounded(file))
    except ValueError as error:
        raise UserError(f"{file} is not JSON ({error})") from None
    if not isinstance(read, dict):
        raise UserError(f"{file} is not a JSON object")
    return read


def weights(folder: Path, trust: Path | None = None) -> dict[str, Tensor]:
    """Read the weights of a folder, from one file or several shards.

    Args:
        folder: The folder.
        trust: A pickle of weights that may be loaded, with a loader restricted to tensors.

    Raises: UserError: If there are no weights but pickles, or a file is damaged.
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
            f"{pickles[0]} is a pickle, which can run arbitrary code when loaded: convert it to safetensors, or set "
            f"trust to {pickles[0]}"
        )
    raise UserError(f"{folder} contains no weights: {STEMS[0]}.safetensors is missing")


def _read(file: Path) -> dict[str, Tensor]:
    """Read a safetensors file."""
    try:
        return load_file(file)
    except (SafetensorError, OSError, ValueError) as error:
        raise unreadable(file, error, "download it again") from error


def _parts(file: Path) -> dict[str, Tensor]:
    """Read the shards listed in an index."""
    names = config(file).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise UserError(f"{file} lists no weight files")
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(names.values())):
        if Path(name).name != name:
            raise UserError(f"{file} lists {name!r}, which is not in the same folder")
        tensors |= _read(file.parent / name)
    return tensors


def _unpickled(file: Path) -> dict[str, Tensor]:
    """Read a pickle of tensors."""
    try:
        read = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling can raise anything
        raise UserError(
            f"{file} is not a pickle of weights only: convert it to safetensors where it was created"
        ) from error
    if not isinstance(read, dict) or not all(isinstance(value, Tensor) for value in read.values()):
        raise UserError(f"{file} does not contain a dictionary of named weights")
    return read
