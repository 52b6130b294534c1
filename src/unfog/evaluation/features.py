"""What pictures are compared by: principal components, and networks of others; `classifier` trains one here."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from sklearn.utils.extmath import randomized_svd
from torch import Tensor
from torch.nn import functional as F

from unfog.data.codecs import Codec
from unfog.data.modality import images
from unfog.evaluation.distances import Rows
from unfog.runtime.errors import UserError

FEATURES, FEW, LARGE = 64, 16, 10_000
"""Features of the classifier, and principal components: for large sets, from so many rows on, and for small ones.

Covariances of few rows are biased: of 64 features on 359 rows the Fréchet distance is mostly bias, of 16 it is not.
"""
DIGITS, LARGEST = 12, 1 << 34
"""Hexadecimal digits of a key, and bytes that the weights of a pretrained network may have, 16 GiB."""


class Extractor(Protocol):
    """Maps rows as they are stored to features.

    Attributes:
        name: What the features are called, for instance `"classifier"`.
        key: The first 12 hexadecimal digits of a hash of what they are made from.
    """

    @property
    def name(self) -> str:
        """What the features are called."""
        ...

    @property
    def key(self) -> str:
        """Twelve digits of a hash of what they are made from."""
        ...

    def __call__(self, x: Tensor, batch: int = 256) -> Rows:
        """Return the features of rows, `(n, d)`, `batch` rows at a time."""
        ...


def features_of(rows: int) -> int:
    """Return the number of features for a training set of so many rows."""
    return FEATURES if rows >= LARGE else FEW


def digest(*parts: bytes) -> str:
    """Return the first 12 hexadecimal digits of the SHA-256 of some bytes."""
    sha256 = hashlib.sha256()
    for part in parts:
        sha256.update(part)
    return sha256.hexdigest()[:DIGITS]


def in_batches(x: Tensor, batch: int, extract: Callable[[Tensor], Tensor]) -> Rows:
    """Apply a network to `batch` rows at a time."""
    with torch.inference_mode():
        rows: Rows = torch.cat([extract(part) for part in torch.split(x, batch)]).double().numpy()
    return rows


# -------------------------------------------------------------------------------------- principal components


@dataclass(frozen=True)
class Components:
    """Encoded pixels along the directions in which the training rows vary most, in the units of encoded pixels.

    Attributes:
        mean: Of the rows, `(pixels,)`.
        basis: Orthonormal directions, `(pixels, d)`.
        codec: Encodes rows.
        key: Of the rows.
    """

    mean: Rows
    basis: Rows
    codec: Codec
    key: str
    name: str = field(default="pixels", init=False)

    def __call__(self, x: Tensor, batch: int = 256) -> Rows:
        """Return the features of rows, `(n, d)`, `batch` rows at a time."""
        return np.concatenate([(flat(part, self.codec) - self.mean) @ self.basis for part in torch.split(x, batch)])


def flat(x: Tensor, codec: Codec) -> Rows:
    """Return encoded rows, `(n, pixels)`, in float64."""
    rows: Rows = codec.compared(x).flatten(1).double().numpy()
    return rows


def fit_components(x: Tensor, codec: Codec) -> Components:
    """Return the first principal components of rows, 64 or for small sets 16, or all if there are fewer."""
    rows = flat(x, codec)
    mean = rows.mean(0)
    directions = randomized_svd(rows - mean, min(features_of(len(rows)), rows.shape[1]), n_iter=7, random_state=0)[2]
    return Components(mean, directions.T, codec, digest(x.numpy().tobytes()))


# ------------------------------------------------------------------------------------- pretrained networks


@dataclass(frozen=True)
class Pretrained:
    """A network that was trained on other pictures.

    Attributes:
        name: What it is called.
        key: Of its weights.
        network: Maps RGB pictures, uint8 `(batch, 3, height, width)`, to features.
    """

    name: str
    key: str
    network: Callable[[Tensor], Tensor]

    def __call__(self, x: Tensor, batch: int = 256) -> Rows:
        """Return the features of pictures, `(n, d)`, `batch` pictures at a time."""
        if not images.fits(tuple(x.shape[1:]), x.dtype) or x.shape[1] not in (1, 3):
            raise UserError(f"{self.name} reads grey or RGB pictures: omit it for these data")
        return in_batches(x, batch, lambda part: self.network(part.expand(-1, 3, -1, -1)).flatten(1))


def inception(path: str | Path) -> Pretrained:
    """Return Inception-v3 of the Fréchet inception distance: the 2,048 features of its last pooling.

    Args:
        path: The weights that torch-fidelity publishes, `weights-inception-2015-12-05-6726825d.pth`.

    Raises: UserError: If torch-fidelity or the file is missing.
    Source: Heusel et al. 2017; Obukhov et al. 2020, torch-fidelity.
    """
    key = _key(path, "inception", "the file weights-inception-2015-12-05-6726825d.pth that torch-fidelity publishes")
    module = _package("torch_fidelity.feature_extractor_inceptionv3", "torch-fidelity", "inception")
    make = module.FeatureExtractorInceptionV3
    model = _loaded(lambda: make("inception", ["2048"], feature_extractor_weights_path=str(path)), path, "inception")
    return Pretrained("inception", key, lambda x: model(x)[0])


def dinov2(path: str | Path) -> Pretrained:
    """Return DINOv2: its class token of pictures that were enlarged to 224 pixels.

    Args:
        path: A folder as transformers writes it, for instance a copy of facebook/dinov2-base.

    Raises: UserError: If transformers or the folder is missing.
    Source: Oquab et al. 2023; Stein et al. 2023, Exposing flaws of generative model evaluation metrics.
    """
    key = _key(path, "dinov2", "a folder with config.json and model.safetensors of facebook/dinov2-base")
    make = _package("transformers", "transformers", "dinov2").AutoModel
    closed = {"trust_remote_code": False, "local_files_only": True, "use_safetensors": True}
    model = _loaded(lambda: make.from_pretrained(str(path), **closed).eval(), path, "dinov2")
    mean, deviation = (torch.tensor(one)[:, None, None] for one in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))

    def network(x: Tensor) -> Tensor:
        large = F.interpolate(x / 255, (224, 224), mode="bicubic", antialias=True)
        token: Tensor = model(pixel_values=(large - mean) / deviation).last_hidden_state[:, 0]
        return token

    return Pretrained("dinov2", key, network)


def _package(module: str, package: str, parameter: str) -> Any:
    """Import what an extractor needs."""
    try:
        return import_module(module)
    except ImportError as error:
        raise UserError(f"{parameter} needs {package}, which is not installed: pip install {package}") from error


def _loaded(load: Callable[[], Any], path: str | Path, parameter: str) -> Any:
    """Load weights with somebody else's code."""
    try:
        return load()
    except Exception as error:  # whatever it is: the file is not what that code expects
        raise UserError(f"{parameter} cannot use {path} ({error}): give the weights as they were published") from error


def _key(path: str | Path, parameter: str, what: str) -> str:
    """Return the key of a file, or of the files in a folder."""
    where = Path(path)
    files = sorted(one for one in where.iterdir() if one.is_file()) if where.is_dir() else [where]
    if not files or not files[0].is_file():
        raise UserError(f"{where} does not exist or is empty: {parameter} takes {what}")
    size = sum(one.stat().st_size for one in files)
    if size > LARGEST:
        raise UserError(f"{where} holds {size:,} bytes, more than {LARGEST:,}: {parameter} takes {what}")
    sha256 = hashlib.sha256()
    for one in files:
        with one.open("rb") as opened:
            while part := opened.read(1 << 22):
                sha256.update(part)
    return sha256.hexdigest()[:DIGITS]
