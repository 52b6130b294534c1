"""Rows of series, tables, clips and volumes to complete: read from files, with what is missing in them."""

from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from unfog.data.pictures import UnreadableError
from unfog.generation.sampler import Sampler
from unfog.runtime.errors import UserError

Row = str | Path | Tensor | NDArray[Any]
"""A path, or a row as stored, `(channels, ...)`."""


def incomplete(row: Row, missing: Tensor | None, after: float | None, sampler: Sampler) -> tuple[Tensor, Tensor]:
    """Return a row as stored, and what of it is missing, bool of its shape.

    Args:
        row: The row.
        missing: What is missing, of the row's shape or without its channels. Default: what is NaN.
        after: Instead, the share of the first axis behind the channels that is kept.
        sampler: Of the model.

    Raises: UserError: If it cannot be read, or nothing of it is missing.
    """
    given = _read(Path(row), sampler) if isinstance(row, str | Path) else torch.as_tensor(row).cpu()
    if tuple(given.shape) != sampler.stored:
        what = sampler.modality.describe(sampler.stored)
        raise UserError(f"the model was trained on {what}, {sampler.stored}, and the row is of {tuple(given.shape)}")
    gaps = given.isnan() if given.is_floating_point() else torch.zeros(given.shape, dtype=torch.bool)
    if missing is not None:
        if missing.shape not in (given.shape, given.shape[1:]):
            raise UserError(f"what is missing is of {tuple(missing.shape)}, and the row of {tuple(given.shape)}")
        gaps = gaps | missing.bool()
    if after is not None:
        gaps = gaps | _behind(given, after)
    if not bool(gaps.any()):
        raise UserError("nothing of the row is missing: leave cells empty, or say with `after` what share is kept")
    return given, gaps


def _behind(row: Tensor, after: float) -> Tensor:
    """Return what stands behind a share of the moments or frames."""
    if not 0 < after < 1:
        raise UserError(f"`after` must be a share between 0 and 1, not {after:g}")
    if not row.shape[1:]:
        raise UserError("the rows of a table have no order in time: leave cells empty instead of `after`")
    length = row.shape[1]
    place = torch.arange(length) >= round(after * length)
    return place.reshape(1, length, *[1] * (row.ndim - 2)).expand(row.shape)


def _read(path: Path, sampler: Sampler) -> Tensor:
    """Return the row in a file.

    Raises: UserError: If it cannot be read, or has another shape.
    """
    if not path.is_file():
        raise UserError(f"{path} is no file: check the path")
    try:
        rows = sampler.modality.read(path, sampler.stored)
    except UnreadableError as error:
        raise UserError(f"{path} cannot be read ({error}): correct it") from None
    if len(rows) != 1:
        raise UserError(f"{path} holds {len(rows)} rows: give a file with one")
    return rows[0]
