"""Datasets that are given in Python: tensors, arrays, and torch Datasets, as the data of a run."""

import hashlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from operator import index
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from unfog.data.codecs import Identity, Pixels
from unfog.data.source import Data, InMemory, split
from unfog.recipes.conditions import ClassConditioning
from unfog.recipes.recipe import Recipe
from unfog.recipes.sources import Given
from unfog.runtime.errors import UserError

Dataset = Tensor | NDArray[Any] | TorchDataset[Any]
"""uint8 or floats, `(rows, *shape)`; or rows by index, each a tensor, an array or an image of Pillow, or a pair of that
and a label: a class number, or a text."""
HELD_OUT = 0.1
"""Share of the rows that is held out."""
FEWEST, MOST_CLASSES = 10, 100_000
"""Rows at least, and classes at most."""


NARROW, WIDE = 0.01, 20.0
"""Standard deviations of floats beyond which a warning says that they are not of unit variance."""


class Read(NamedTuple):
    """A dataset, read.

    Attributes:
        data: The training rows and the held-out rows.
        given: What a recipe keeps of it.
    """

    data: Data
    given: Given


def read(dataset: Dataset, captioned: bool = False) -> Read:
    """Read a dataset into memory, and hold out a tenth of its rows, chosen by the hashes of their contents.

    Equal rows are never on both sides, and the order of the rows does not matter to what is held out.

    Args:
        dataset: The rows.
        captioned: Whether texts are captions, and not names of classes.

    Raises: UserError: If the rows are too few, differ in shape or type, are neither uint8 nor finite floats, or only
        some have labels.
    """
    x, labels = _rows(dataset)
    if len(x) < FEWEST:
        raise UserError(f"a dataset has {FEWEST} rows or more, of which a tenth is held out, not {len(x)}")
    if x.is_floating_point() and not x.isfinite().all():
        raise UserError("the dataset holds numbers that are not finite: remove those rows")
    names = [hashlib.sha256(row.numpy().tobytes()).hexdigest() for row in x]
    if len(set(names)) == 1:
        raise UserError("all rows of the dataset are equal, so none can be held out")
    if x.is_floating_point() and not NARROW < float(x.std()) < WIDE:
        warnings.warn(
            f"the dataset's numbers have a standard deviation of {float(x.std()):.3g}, and models learn data of about "
            "zero mean and unit variance: normalise them",
            stacklevel=4,
        )
    source = _annotated(x, labels, captioned, getattr(dataset, "classes", None))
    about = repr((str(x.dtype), tuple(x.shape), source.classes, source.captions)).encode()
    own = b"" if source.labels is None else source.labels.numpy().tobytes()
    digest = hashlib.sha256(about + own + "".join(names).encode()).hexdigest()
    return Read(split(source, HELD_OUT, names), Given(digest))


def fitted(recipe: Recipe, dataset: Read) -> Recipe:
    """Return a recipe for a dataset: floats are used as they are, and without labels there is no guidance."""
    recipe = replace(recipe, data=dataset.given)
    if isinstance(recipe.codec, Pixels) and dataset.data.train.take(np.arange(1)).x.is_floating_point():
        recipe = replace(recipe, codec=Identity())
    if isinstance(recipe.conditioning, ClassConditioning) and not dataset.data.train.classes:
        recipe = replace(recipe, sampling=replace(recipe.sampling, guidance=1.0))
    return recipe


def _rows(dataset: Dataset) -> tuple[Tensor, list[int | str] | None]:
    """Return the rows as one tensor, uint8 or float32, and their labels if they have some."""
    if isinstance(dataset, Tensor | np.ndarray):
        x = _tensor(dataset, "the dataset")
        if x.ndim < 2:
            raise UserError(f"a dataset is of shape (rows, *shape), not {tuple(x.shape)}")
        return _plain(x), None
    if isinstance(dataset, Mapping) or not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise UserError(
            f"a dataset is a tensor, an array, or a torch Dataset with a length and rows by index, not a "
            f"{type(dataset).__name__}"
        )
    rows: list[Tensor] = []
    labels: list[int | str | None] = []
    for row, label in _items(dataset):
        if rows and (row.shape, row.dtype) != (rows[0].shape, rows[0].dtype):
            raise UserError(
                f"row {len(rows)} of the dataset is {_described(row)}, and the first {_described(rows[0])}: make all "
                "alike, for instance by a transform"
            )
        rows.append(row)
        labels.append(label)
    if not rows:
        raise UserError("the dataset is empty")
    known = [label for label in labels if label is not None]
    if known and len(known) < len(rows):
        raise UserError(f"{len(known)} of the {len(rows)} rows of the dataset have a label: give one to all or to none")
    return torch.stack(rows), known or None


def _items(dataset: Any) -> Iterator[tuple[Tensor, int | str | None]]:
    """Yield the rows of a torch Dataset with their labels."""
    for number in range(len(dataset)):
        item = dataset[number]
        parts = tuple(item) if isinstance(item, tuple | list) else (item,)
        if not 1 <= len(parts) <= 2:
            raise UserError(f"row {number} of the dataset has {len(parts)} parts: give the row, or the row and a label")
        yield _row(parts[0], number), _label(parts[1], number) if len(parts) == 2 else None


def _row(item: object, number: int) -> Tensor:
    """Return a row as a tensor."""
    if isinstance(item, Image.Image):
        pixels = np.array(item.convert("L" if item.mode in ("1", "L", "LA", "I", "F") else "RGB"))
        return torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1).transpose(2, 0, 1).copy())
    if not isinstance(item, Tensor | np.ndarray) or not item.ndim:
        raise UserError(
            f"row {number} of the dataset is a {type(item).__name__}: give a tensor, an array or an image of Pillow"
        )
    return _plain(_tensor(item, f"row {number} of the dataset"))


def _tensor(rows: Tensor | NDArray[Any], what: str) -> Tensor:
    """Return rows as a dense tensor on the CPU."""
    if isinstance(rows, np.ma.MaskedArray) or (isinstance(rows, Tensor) and rows.layout != torch.strided):
        raise UserError(f"{what} is masked or sparse: give plain numbers")
    if isinstance(rows, np.ndarray):
        if rows.dtype.kind not in "bufi":
            raise UserError(f"{what} holds {rows.dtype} instead of numbers")
        rows = np.ascontiguousarray(rows.astype(rows.dtype.newbyteorder("="), copy=False))  # as torch takes it
    return torch.as_tensor(rows).detach().cpu()


def _plain(x: Tensor) -> Tensor:
    """Return rows as uint8 or float32."""
    if x.dtype != torch.uint8 and not x.is_floating_point():
        raise UserError(
            f"a dataset holds uint8, which are pixels from 0 to 255, or floats of about unit variance, not "
            f"{str(x.dtype).removeprefix('torch.')}: convert it"
        )
    return x if x.dtype == torch.uint8 else x.float()


def _label(label: object, number: int) -> int | str:
    """Return a label: a class number or a text."""
    if isinstance(label, str):
        return label
    try:
        found = index(label)  # type: ignore[arg-type]  # what has no index is refused
    except TypeError:
        raise UserError(f"the label of row {number} is neither a whole number nor a text: {label!r}") from None
    if not 0 <= found < MOST_CLASSES:
        raise UserError(f"the label of row {number} is {found}: class numbers are from 0 to {MOST_CLASSES - 1:,}")
    return found


def _annotated(x: Tensor, labels: list[int | str] | None, captioned: bool, names: Sequence[object] | None) -> InMemory:
    """Return rows with their labels as a source.

    Args:
        x: The rows.
        labels: A label for each row, or None.
        captioned: Whether texts are captions.
        names: What the dataset calls its classes, if it does.
    """
    if labels is None:
        return InMemory(x)
    texts = [label for label in labels if isinstance(label, str)]
    numbers = [label for label in labels if isinstance(label, int)]
    if texts and numbers:
        raise UserError("the labels of the dataset are numbers in some rows and texts in others: use one of them")
    if texts and captioned:
        return InMemory(x, captions=tuple(texts))
    if texts:
        classes = sorted(set(texts))
        number = {name: place for place, name in enumerate(classes)}
        return InMemory(x, torch.tensor([number[text] for text in texts]), tuple(classes))
    count = max(numbers) + 1
    named = names is not None and len(names) >= count and all(isinstance(name, str) for name in names)
    classes = [str(name) for name in names] if named and names is not None else [str(place) for place in range(count)]
    return InMemory(x, torch.tensor(numbers), tuple(classes))


def _described(row: Tensor) -> str:
    """Return type and shape of a row in words."""
    return f"{str(row.dtype).removeprefix('torch.')} of shape {tuple(row.shape)}"
