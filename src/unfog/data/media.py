"""Folders of files that are no pictures: listed by the same rules, read into memory, bad ones skipped and counted."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from unfog.data.classic import existing
from unfog.data.current import list_current
from unfog.data.heldout import parts_of
from unfog.data.labels import AUTO, RULES
from unfog.data.listing import Kind, Listing, few
from unfog.data.pictures import UnreadableError
from unfog.data.source import Data, InMemory, Subset
from unfog.runtime.errors import UserError

MOST = 1 << 32
"""Bytes that the rows of a set may take, 4 GiB."""
REASONS = 8
"""Reasons that a sentence lists, at most."""
FEWEST = 2
"""Rows, at least."""
About = TypeVar("About")


@dataclass(frozen=True)
class Survey(Generic[About]):
    """What the headers of the files in a folder say.

    Attributes:
        listing: The files that can be read.
        about: What the header of each says.
        bad: Those that cannot, with the reasons.
    """

    listing: Listing
    about: tuple[About, ...]
    bad: dict[str, str]


def survey(
    path: str,
    kind: Kind,
    header: Callable[[Path], About],
    where: str = "",
    label_from: str = AUTO,
) -> Survey[About]:
    """List the files of a folder, and read the header of each.

    Args:
        path: The folder: class sub-folders, `metadata.jsonl`, or just files.
        kind: The kind of files that are sought.
        header: Reads the header of a file, and raises an UnreadableError for one that cannot be used.
        where: Filter for the lines of metadata, see `folder.folder`.
        label_from: What the class of a file is, see `folder.folder`.

    Raises: UserError: If the folder is missing, or no file in it can be read.
    """
    listing = list_current(existing(path), [], where, label_from, kind)
    about: dict[str, About] = {}
    bad: dict[str, str] = {}
    assert isinstance(listing.root, Path)
    for name in listing.files:
        try:
            about[name] = header(listing.root / name)
        except UnreadableError as error:
            bad[name] = str(error)
    if not about:
        raise UserError(f"none of the {len(bad):,} {kind.many} in {listing.root} can be read: {told(bad)}")
    good = listing.some([row for row, name in enumerate(listing.files) if name in about])
    return Survey(good, tuple(about[name] for name in good.files), bad)


def told(bad: dict[str, str]) -> str:
    """Return what is wrong with files, each reason with the first names, the most frequent reasons first."""
    reasons: dict[str, list[str]] = {}
    for name, why in bad.items():
        reasons.setdefault(why, []).append(name)
    ordered = sorted(reasons.items(), key=lambda one: -len(one[1]))
    said = [f"{why}{f' ({len(names):,})' if len(names) > 1 else ''}: {few(names)}" for why, names in ordered]
    return "; ".join(said[:REASONS]) + (f"; and {len(said) - REASONS} other reasons" if len(said) > REASONS else "")


def gathered(
    found: Survey[About],
    rows_of: Callable[[Path, About], Iterable[NDArray[np.generic]]],
    shape: tuple[int, ...],
    dtype: type[np.generic],
    heldout: float,
    notes: Callable[[], Sequence[str]],
    kind: Kind,
) -> Data:
    """Read the files of a folder into memory, and hold out a share of them; the rows of one file stay together.

    Args:
        found: The files.
        rows_of: Reads the rows of a file, and raises an UnreadableError for one that is skipped.
        shape: Shape of a row.
        dtype: Its type.
        heldout: Share of the files to hold out, of each class by the hash of their names.
        notes: What to say of the data before training, once they are read.
        kind: The kind of the files.

    Raises: UserError: If less than two files can be read, or the rows do not fit.
    """
    if not 0 < heldout < 1:
        raise UserError(f"data.heldout must be between 0 and 1, not {heldout}")
    listing, bad, size = found.listing, dict(found.bad), 0
    rows: list[NDArray[np.generic]] = []
    origin: list[int] = []
    assert isinstance(listing.root, Path)
    for place, (name, about) in enumerate(zip(listing.files, found.about, strict=True)):
        try:
            for row in rows_of(listing.root / name, about):
                rows.append(row.astype(dtype, copy=False).reshape(shape))
                origin.append(place)
                size += rows[-1].nbytes
                if size > MOST:
                    raise UserError(
                        f"the rows of {listing.root} take more than {MOST >> 30} GiB: make them shorter or smaller, or "
                        "give fewer files"
                    )
        except UnreadableError as error:
            bad[name] = str(error)
    readable = sorted(set(origin))
    if len(readable) < FEWEST:
        why = f": {told(bad)}" if bad else ""
        raise UserError(
            f"{listing.root} contains {len(readable)} readable {kind.many}: a data set needs {FEWEST} or more{why}"
        )
    parts = parts_of(listing, readable, heldout, "", RULES)
    held = {readable[place] for place in parts.held.tolist()}
    of = np.array(origin)
    inside = np.array([place in held for place in origin])
    said = [*listing.unused.sentences(), *listing.notes, *notes(), *parts.notes]
    if bad:
        said.insert(0, f"skipped {len(bad):,} of {len(listing.files) + len(found.bad):,} {kind.many}: {told(bad)}")
    source = InMemory(torch.from_numpy(np.stack(rows)), *listing.annotated(of.tolist()), listing.root, tuple(said))
    return Data(Subset(source, np.flatnonzero(~inside)), Subset(source, np.flatnonzero(inside)))
