"""Model folders of other toolkits: locating them, and reading their configurations and weights as untrusted files."""

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from unfog.interop.names import unwrapped
from unfog.runtime.contained import check_contained
from unfog.runtime.errors import EnvironmentFailure, UserError, out_of_memory
from unfog.runtime.files import disk, parse_json, read_bounded, unreadable, write_whole
from unfog.runtime.hub import downloaded, is_name

STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
"""Names of weight files, without variant and suffix."""


def found(source: str) -> Path:
    """Return the folder of a model: an existing path, or a download from the hub.

    Raises: UserError: If there is no such folder or model.
        EnvironmentFailure: If the download fails.
    """
    folder = Path(source)
    if folder.is_dir():
        check_contained(folder)
        return folder
    if folder.exists() or not is_name(source):
        raise UserError(f"{source} is not a folder: pass a diffusers folder, or a name on the hub such as owner/name")
    return downloaded(source)


def without_auto_map(folder: Path) -> None:
    """Drop from the configurations in a copied folder what names code, of which nothing is copied."""
    with disk(folder):
        for file in sorted(folder.rglob("*.json")):
            if "auto_map" in (text := read_bounded(file)):
                with suppress(ValueError):
                    write_whole(file, (json.dumps(_without(parse_json(text), "auto_map"), indent=2) + "\n").encode())


def _without(value: Any, name: str) -> Any:
    """Return a JSON value without the entries of a name."""
    if isinstance(value, dict):
        return {key: _without(one, name) for key, one in value.items() if key != name}
    return [_without(one, name) for one in value] if isinstance(value, list) else value


@contextmanager
def meant(where: str) -> Iterator[None]:
    """Turn errors caused by untrusted values into one sentence.

    Raises: UserError: If a value is invalid.
    """
    try:
        yield
    except (UserError, EnvironmentFailure):
        raise
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RuntimeError) as error:
        if out_of_memory(error):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{where} contains an invalid value ({reason}): restore it") from error


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
    return unwrapped(_given(folder, trust), str(folder))


def _given(folder: Path, trust: Path | None) -> dict[str, Tensor]:
    """Read the weights of a folder as they are named there."""
    for file in _candidates(folder):
        if file.name.endswith(".json"):
            return _parts(file)
        return _shards(file) if "-of-" in file.name else _read(file)
    pickles = _pickles(folder)
    if trust is not None and any(trust.resolve() == file.resolve() for file in pickles):
        return _unpickled(trust)
    if pickles:
        raise UserError(
            f"{pickles[0]} is a pickle, which can run arbitrary code when loaded: convert it to safetensors, or set "
            f"trust to {pickles[0]}"
        )
    raise UserError(f"{folder} contains no weights: {STEMS[0]}.safetensors is missing")


def unused(folder: Path, parts: Iterable[str] = ()) -> list[str]:
    """Return the names of what lies in a model's folder and is not read.

    Args:
        folder: The folder of a pipeline, or of a part with weights.
        parts: Names that are read, other than weights.
    """
    candidates = _candidates(folder)
    read = {*parts, *(file.name for file in candidates[:1])}
    if candidates and (candidates[0].suffix == ".json" or "-of-" in candidates[0].name):
        variant = _variant(candidates[0])
        read |= {file.name for file in folder.glob("*-of-*.safetensors") if _variant(file) == variant}
        read |= set(_listed(candidates[0])) if candidates[0].suffix == ".json" else set()
    known = ("README", "LICENSE", "config.json", "model_index.json", "unfog.json")
    return sorted(
        one.name for one in folder.iterdir() if one.name not in read and not one.name.startswith((".", *known))
    )


def _candidates(folder: Path) -> list[Path]:
    """Return the weight files of a folder, the one to read first: full ones, then their index, then variants."""
    found = [folder / f"{stem}.safetensors" for stem in STEMS]
    found += [folder / f"{stem}.safetensors.index.json" for stem in STEMS]
    found += [file for stem in STEMS for file in sorted(folder.glob(f"{stem}-00001-of-*.safetensors"))]
    for stem in STEMS:  # diffusers and transformers write the variant before the suffix
        found += sorted(folder.glob(f"{stem}.safetensors.index.*.json"))
        found += sorted(folder.glob(f"{stem}.*.safetensors.index.json"))
        several = sorted(folder.glob(f"{stem}.*.safetensors")) + sorted(folder.glob(f"{stem}-*.*.safetensors"))
        found += [file for file in several if "-of-" not in file.name]
        found += [file for file in several if "-00001-of-" in file.name]
    return [file for file in found if file.is_file()]


def _pickles(folder: Path) -> list[Path]:
    """Return the weight files of a folder that are pickles."""
    return [file for stem in STEMS for file in sorted(folder.glob(f"{stem}*.bin"))]


def _variant(file: Path) -> str:
    """Return the variant in a name such as model.fp16-00001-of-00002.safetensors, or nothing."""
    name = re.sub(r"-\d+-of-\d+", "", file.name)
    return re.sub(r"^[a-z_]+\.?|\.?safetensors|\.index|\.json$", "", name).strip(".")


def _shards(first: Path) -> dict[str, Tensor]:
    """Read shards without an index, from the first of them."""
    tensors: dict[str, Tensor] = {}
    count = re.search(r"-00001-of-(\d{5})", first.name)
    for number in range(1, int(count[1]) + 1 if count else 2):
        file = first.with_name(first.name.replace("-00001-of-", f"-{number:05d}-of-"))
        if not file.is_file():
            raise UserError(f"{file} is missing, one of {count[1] if count else 1} parts: download it again")
        tensors |= _read(file)
    return tensors


def _read(file: Path) -> dict[str, Tensor]:
    """Read a safetensors file."""
    try:
        return load_file(file)
    except (SafetensorError, OSError, ValueError) as error:
        raise unreadable(file, error, "download it again") from error


def _parts(file: Path) -> dict[str, Tensor]:
    """Read the shards listed in an index."""
    tensors: dict[str, Tensor] = {}
    for name in _listed(file):
        tensors |= _read(file.parent / name)
    return tensors


def _listed(index: Path) -> list[str]:
    """Return the names of the shards in an index.

    Raises: UserError: If it lists none, or one in another folder.
    """
    names = config(index).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise UserError(f"{index} lists no weight files")
    for name in names.values():
        if Path(name).name != name:
            raise UserError(f"{index} lists {name!r}, which is not in the same folder")
    return sorted(set(names.values()))


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
