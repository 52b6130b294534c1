"""Downloads from the Hugging Face hub: only of what a user names, and said beforehand."""

import re
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from unfog.runtime import distributed
from unfog.runtime.errors import EnvironmentFailure, UserError

SUFFIXES = frozenset({".json", ".txt", ".safetensors", ".model"})
"""Suffixes of the files of a model: nothing that could run."""
WANTED = sorted(f"*{suffix}" for suffix in SUFFIXES)
"""Files of a model that are read: neither pickles nor code."""


def is_name(source: str) -> bool:
    """Return whether a text has the form of a model's name on the hub, `owner/name`."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", source) is not None


def downloaded(name: str) -> Path:
    """Return the folder of a model on the hub, from the hub's cache or else downloaded.

    A download is announced on standard error: what, from where, and how large.

    Args:
        name: The model's name, `owner/name`, as the user gave it.

    Raises: UserError: If there is no such model, or huggingface_hub is not installed.
        EnvironmentFailure: If the download fails.
    """
    try:
        hub = import_module("huggingface_hub")
    except ImportError:
        raise UserError(
            f"{name} is not a folder, and downloading from the hub needs huggingface_hub: pip install 'unfog[text]'"
        ) from None
    try:
        if not distributed.rank():
            print(f"fetching {name} from {_address(hub)}/{name}{_size(hub, name)}", file=sys.stderr)
        return Path(hub.snapshot_download(name, allow_patterns=WANTED))
    except hub.errors.RepositoryNotFoundError:
        raise UserError(f"there is no folder {name}, and no such model on the hub: check the name") from None
    except (OSError, hub.errors.HfHubHTTPError, RuntimeError) as error:
        raise EnvironmentFailure(f"{name} cannot be downloaded from the hub: {str(error).splitlines()[0]}") from error


def cached(name: str) -> Path | None:
    """Return the folder of a model in the hub's cache, without any call of the network, or None."""
    try:
        hub = import_module("huggingface_hub")
    except ImportError:
        return None
    try:
        return Path(hub.snapshot_download(name, local_files_only=True))
    except (OSError, ValueError):
        return None


def _address(hub: Any) -> str:
    """Return the address of the hub."""
    return str(getattr(hub.constants, "ENDPOINT", "https://huggingface.co"))


def _size(hub: Any, name: str) -> str:
    """Return the size of what would be downloaded, in words; nothing where the hub does not say."""
    try:
        files = hub.HfApi().model_info(name, files_metadata=True, timeout=10).siblings or []
    except hub.errors.RepositoryNotFoundError:
        raise
    except Exception:  # an announcement: whatever is wrong shows in the download itself
        return ""
    kept = hub.utils.filter_repo_objects(files, allow_patterns=WANTED, key=lambda file: file.rfilename)
    return f" ({sum(file.size or 0 for file in kept) / 1e6:,.1f} MB, less what is in its cache)"
