"""Training rows as they are drawn: images, or latents encoded once and cached."""

import hashlib
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from numpy.lib.format import open_memmap
from rich.console import Console
from torch import Tensor

from unfog.data.buckets import Turns, rows_of_training, shapes_of
from unfog.data.codecs import PORTION, Codec, Identity, Latents
from unfog.data.fingerprint import rows_digest
from unfog.data.source import Augment, Augmentation, Batch, Data, Indices, Source
from unfog.runtime import distributed
from unfog.runtime.errors import UserError
from unfog.runtime.files import locked, whole
from unfog.runtime.progress import duration, track

MOST = 1 << 34
"""Largest cache of latents in bytes; larger data sets are encoded on the fly."""
ENCODING = 0.8
"""Share of the time after the autoencoder that encoding may take, at most."""


def check_time(count: int, taken: float, share: float, budget: float) -> None:
    """Refuse a budget in which encoding takes nearly all of the time that the autoencoder leaves to the model.

    Args:
        count: Pictures to encode.
        taken: Seconds that it takes.
        share: Which part of the budget trains the autoencoder.
        budget: Seconds of the whole training.

    Raises: UserError: If it does.
    """
    if taken > ENCODING * (1 - share) * budget:
        raise UserError(
            f"the budget of {duration(budget)} is too short: {duration(share * budget)} of it train an autoencoder, "
            f"and encoding {count:,} pictures with it takes about {duration(taken)} more: give "
            f"{2 * taken / (1 - share):.0f}s or more, or a smaller size"
        )


class Flip:
    """Chooses between the latents of an image and its mirror image, with the same draws as `Augment`."""

    def __init__(self, flip: bool) -> None:
        """Choose the mirror image with probability 1/2 if `flip`."""
        self.augment = Augment(flip=flip)

    def numbers(self, seed: int, position: int, count: int) -> None:
        """Say nothing of it."""

    def __call__(self, x: Tensor, seed: int, position: int) -> Tensor:
        """Return one latent per row of `(batch, 1 or 2, *shape)`."""
        which = torch.arange(x.shape[1]).expand(len(x), 1, 1, -1)
        return x[torch.arange(len(x)), self.augment(which, seed, position)[:, 0, 0, 0]]


class Encoded:
    """Latents of a source, with the annotations of its rows."""

    slow: ClassVar[bool] = False

    def __init__(self, source: Source, x: Tensor) -> None:
        """Take the latents `x` of `source`, optionally with those of mirror images: `(rows, 1 or 2, *shape)`."""
        self.source, self.x = source, x
        self.shape, self.classes = tuple(x.shape[2:]), source.classes

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.x)

    def take(self, indices: Indices) -> Batch:
        """Return the latents with these indices."""
        return self.about(indices)._replace(x=self.x[torch.from_numpy(indices)])

    def about(self, indices: Indices) -> Batch:
        """Return the annotations of these rows."""
        return self.source.about(indices)


class Prepared(NamedTuple):
    """The data of a training.

    Attributes:
        train: The training rows.
        heldout: The held-out rows.
        codec: Encodes the rows.
        augment: Augments the rows before encoding.
    """

    train: Source
    heldout: Source
    codec: Codec
    augment: Augmentation | Flip

    def encode(self, x: Tensor) -> Tensor:
        """Encode rows without augmentation."""
        return x[:, 0] if isinstance(self.augment, Flip) else self.codec.encode(x)


def prepared(data: Data, codec: Codec, augment: Augmentation, folder: Path) -> Prepared:
    """Return the rows of a data set; for a latent codec, encode them once and cache them in `folder`/latents.

    Raises: UserError: If `augment.crop` is set, since shifted images would have to be encoded again.
        EnvironmentFailure: If the disk fails.
    """
    rows = rows_of_training(data.train)
    if not isinstance(codec, Latents):
        return Prepared(rows, data.heldout, codec, augment)
    if augment.crop or augment.told:
        what = "augment.crop" if augment.crop else "augment=geometry"
        raise UserError(f"{what} does not work with latents, which are encoded only once: choose augment=flip-crop")
    numbers = int(np.prod(codec.shape(codec.stored))) * (1 + augment.flip)
    if 4 * numbers * (len(rows) + len(data.heldout)) > MOST:
        return Prepared(rows, data.heldout, codec, augment)
    where = folder / "latents"
    train = [_encoded(part, codec, augment.flip, where / "train") for part in shapes_of(data.train)]
    heldout = _encoded(data.heldout, codec, False, where / "heldout")
    return Prepared(train[0] if len(train) == 1 else Turns(train), heldout, Identity(), Flip(augment.flip))


def cached(source: Source, codec: Latents, flip: bool, folder: Path) -> Tensor | None:
    """Return the latents of training rows, `(rows, *shape)`, that a training left in its folder, if it did."""
    path = _cache(source, codec, flip, folder / "latents" / "train")
    return torch.from_numpy(np.load(path, mmap_mode="c"))[:, 0] if path.is_file() else None


def _cache(source: Source, codec: Latents, flip: bool, where: Path) -> Path:
    """Return the file of the latents of a source: its name says of which rows, and by which autoencoder."""
    key = hashlib.sha256(repr((rows_digest(source), flip)).encode())
    for tensor in codec.autoencoder.state_dict().values():
        key.update(tensor.cpu().numpy().tobytes())
    return where.with_name(f"{where.name}-{key.hexdigest()[:12]}.npy")


def _encoded(source: Source, codec: Latents, flip: bool, where: Path) -> Encoded:
    """Return the latents of a source from its cache file, which is written if missing."""
    path = _cache(source, codec, flip, where)
    if not path.is_file() and not distributed.rank():
        with locked(path.parent, wait=True):
            if not path.is_file():
                with whole(path) as part:
                    _write(source, codec, flip, part)
    distributed.agreed(0)  # wait until rank 0 has written the file
    return Encoded(source, torch.from_numpy(np.load(path, mmap_mode="c")))


def _write(source: Source, codec: Latents, flip: bool, path: Path) -> None:
    """Encode all rows into an array file."""
    shape = (len(source), 1 + flip, *codec.shape(source.shape))
    latents = open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
    parts = np.array_split(np.arange(len(source)), -(-len(source) // PORTION))
    for part in track(parts, "encoding", console=Console(stderr=True)):
        x = source.take(part).x
        latents[part, 0] = codec.encode(x).numpy()
        if flip:
            latents[part, 1] = codec.encode(x.flip(-1)).numpy()
    latents.flush()
