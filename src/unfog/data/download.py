"""Files downloaded once, verified, and kept in a cache folder."""

import hashlib
import http.client
import shutil
import sys
import urllib.error
import urllib.request
from pathlib import Path

from unfog.runtime.errors import EnvironmentFailure
from unfog.runtime.files import disk, locked, whole


def fetch(url: str, path: Path, md5: str) -> Path:
    """Download `url` to `path` and verify it, unless `path` exists.

    Args:
        url: Address of the file.
        path: Destination, written atomically.
        md5: The published checksum.

    Returns: `path`.
    Raises: EnvironmentFailure: If the download fails, or the checksum differs.
    """
    if path.exists():
        return path
    with locked(path.parent, wait=True):
        return path if path.exists() else _download(url, path, md5)


def _download(url: str, path: Path, md5: str) -> Path:
    """Download and verify a file, into a folder whose lock is held."""
    with disk(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as part:
        try:
            print(f"downloading {url} to {path}", file=sys.stderr)
            with urllib.request.urlopen(url, timeout=30) as response, part.open("wb") as file:
                if (size := response.headers.get("Content-Length") or "").isdecimal():
                    print(f"downloading {int(size) / 1e6:,.1f} MB", file=sys.stderr)
                shutil.copyfileobj(response, file)
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
            raise EnvironmentFailure(
                f"cannot download {url} ({getattr(error, 'reason', error)}): "
                f"set data.path to a folder that contains {path.name}, or connect to the network"
            ) from error
        with part.open("rb") as file:
            if hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest() != md5:
                raise EnvironmentFailure(f"{url} differs from the published file (wrong MD5): try again")
    return path
