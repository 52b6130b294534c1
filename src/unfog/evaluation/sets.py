"""Scores of two sets of pictures without any run: samples of whatever model, and real pictures."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from unfog.data.codecs import Pixels
from unfog.data.folder import list_pictures, pictures_below
from unfog.data.listing import Listing
from unfog.data.modality import images
from unfog.data.pictures import UnreadableError, describe_picture, read_picture
from unfog.data.source import Data, InMemory, Subset
from unfog.evaluation.advice import advice
from unfog.evaluation.intervals import Scored, plain
from unfog.evaluation.judge import MEMORY, Judge, spread
from unfog.evaluation.neighbours import Memorised
from unfog.evaluation.report import about_judge, notes, verdicts
from unfog.evaluation.wording import score_table
from unfog.runs.naming import written_pictures
from unfog.runtime.brief import brief
from unfog.runtime.errors import UserError
from unfog.runtime.lines import lines_of
from unfog.runtime.randomness import stream

Pictures = Tensor | NDArray[np.uint8] | str | Path
"""uint8 `(count, channels, height, width)`, or a folder of pictures."""


@dataclass(frozen=True)
class Evaluated:
    """The scores of samples next to real pictures.

    Attributes:
        scores: By their names.
        copies: Whether the samples lie nearer to one half of the real pictures than the other half does, by names of
            features.
        samples: Number of samples.
        real: Number of real pictures, of which each half was used as a set of its own.
        judge: Made the scores.
    """

    scores: dict[str, Scored]
    copies: dict[str, Memorised]
    samples: int
    real: int
    judge: Judge

    __repr__ = brief

    def table(self) -> str:
        """Return the scores as a table, and the notes to read it."""
        counts = (
            f"{self.samples:,} samples; {self.real:,} real pictures, of which a random half stands for the training "
            "rows and the other for the held-out rows."
        )
        how = [*lines_of(counts), *notes(self.judge)]
        lines = [score_table({"samples": self.scores}), "", *how, *verdicts(self.copies)]
        return "\n".join([*lines, "", *lines_of(self._worst())])

    def _worst(self) -> str:
        """Return which figure is the worst, and what usually helps."""
        return advice({"samples": self.scores}, self.copies, guided=False)

    def to_json(self) -> str:
        """Return all of it as JSON, in the form that the evaluation of a run has."""
        scores = {"scores": plain(self.scores), "copies": plain(self.copies)}
        counts = {"samples": self.samples, "real": self.real}
        parts = {**about_judge(self.judge), **counts, "evaluations": [scores], "worst": self._worst()}
        return json.dumps(parts, indent=1)


def evaluate(
    samples: Pictures,
    real: Pictures,
    *,
    labels: Tensor | Sequence[int] | None = None,
    most: int | None = None,
    batch: int = 256,
    seed: int = 0,
    console: Console | None = None,
    inception: Path | None = None,
    dinov2: Path | None = None,
) -> Evaluated:
    """Score samples against real pictures: Fréchet and kernel distance, precision, recall, coverage, and copies.

    The real pictures are split into two random halves. Samples are compared with one half, and the other half in their
    place gives the floor. Where the real pictures have classes (sub-folders, `metadata.jsonl` or `labels`), a
    classifier of them gives the features, otherwise principal components of their pixels do.

    Args:
        samples: Samples of whatever model.
        real: Real pictures, of the same size and channels.
        labels: Class numbers of the real pictures, `(count,)`, where these are no folder.
        most: Samples that are used at most, evenly spread; all if None.
        batch: Pictures that go through an extractor at a time; does not change the result.
        seed: Seed of the noise and of the intervals.
        console: Shows the progress.
        inception: Weights of Inception-v3, to measure in its features too.
        dinov2: Folder with DINOv2, to measure in its features too.

    Raises: UserError: If the two differ in size or channels, or there are too few pictures in either.
    """
    drawn, reference = _read(samples, "samples", most), _read(real, "real")
    if labels is not None:
        reference = _with_labels(reference, labels)
    if drawn.shape != reference.shape:
        raise UserError(
            f"the samples are {_size(drawn.shape)} and the real pictures {_size(reference.shape)}: bring both to one "
            "size and number of channels"
        )
    order = stream(0, "halves of real pictures", index=len(reference)).permutation(len(reference))
    first, second = np.sort(order[: len(order) // 2]), np.sort(order[len(order) // 2 :])
    data = Data(Subset(reference, first), Subset(reference, second))
    judge = Judge(
        data,
        Pixels(),
        len(drawn),
        batch=batch,
        seed=seed,
        console=console,
        inception=inception,
        dinov2=dinov2,
        split="halves",
    )
    return Evaluated(judge.score(drawn.x), judge.copies(drawn.x), len(drawn), len(reference), judge)


def _size(shape: tuple[int, ...]) -> str:
    """Return the size of a picture in words."""
    channels, height, width = shape
    return f"{width}×{height} with {channels} channel{'s' if channels > 1 else ''}"


def _with_labels(real: InMemory, labels: Tensor | Sequence[int]) -> InMemory:
    """Return real pictures with the classes that the caller knows."""
    numbers = torch.as_tensor(labels)
    if numbers.shape != (len(real),) or numbers.is_floating_point() or numbers.dtype == torch.bool:
        raise UserError(f"labels must be {len(real)} whole numbers, one for each real picture")
    if len(numbers) and int(numbers.min()) < 0:
        raise UserError(f"labels must be 0 or more, not {int(numbers.min())}")
    names = tuple(str(number) for number in range(int(numbers.max()) + 1)) if len(numbers) else ()
    return InMemory(real.x, numbers.long(), names)


def _read(pictures: Pictures, name: str, most: int | None = None) -> InMemory:
    """Return pictures in memory, at most `most` of them, evenly spread."""
    if isinstance(pictures, str | Path):
        return _read_folder(Path(pictures), most)
    x = torch.as_tensor(pictures)
    if not images.fits(tuple(x.shape[1:]), x.dtype):
        raise UserError(
            f"{name} must be uint8 (count, channels, height, width) or a folder, not {x.dtype} {tuple(x.shape)}"
        )
    if most is not None and most < len(x):
        x = x[torch.from_numpy(spread(most, len(x)))]
    return InMemory(x)


def _read_folder(folder: Path, most: int | None) -> InMemory:
    """Return the pictures of a folder, which must all have one size; of a large folder as many as fit the memory.

    Of a folder that `unfog sample` wrote these are the samples, without their sheet. Pictures are grey if all of them
    are, in whatever mode they are stored: `unfog sample` writes grey samples as RGB files.
    """
    if not folder.is_dir() or not pictures_below(folder):
        raise UserError(f"{folder} holds no pictures: check its path")
    listing = list_pictures(str(folder))
    if (folder / "sampling.json").is_file():
        names = tuple(path.name for path in written_pictures(folder))
        listing = Listing(folder, names, None, ()) if names else listing
    first = folder / listing.files[0]
    limit = max(1, MEMORY // int(np.prod(_described(first))))
    count = min(len(listing.files), limit if most is None else min(limit, most))
    rows = [int(row) for row in spread(count, len(listing.files))]
    paths = [folder / listing.files[row] for row in rows]
    shapes = [_described(path) for path in paths]
    for path, shape in zip(paths, shapes, strict=True):
        if shape[1:] != shapes[0][1:] or (shape[0] != shapes[0][0] and not {shape[0], shapes[0][0]} <= {1, 3}):
            raise UserError(
                f"{path} is {_size(shape)} and {paths[0]} {_size(shapes[0])}: bring all pictures to one size"
            )
    channels = max(channels for channels, _, _ in shapes)
    x = torch.from_numpy(np.stack([_picture(path, (channels, *shapes[0][1:])) for path in paths]))
    if channels == 3 and bool((x == x[:, :1]).all()):
        x = x[:, :1]
    return InMemory(x, *listing.annotated(rows))


def _picture(path: Path, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Return the pixels of a picture."""
    try:
        return read_picture(path, *shape)
    except UnreadableError as error:
        raise UserError(f"{path} cannot be read ({error}): remove or repair it") from None


def _described(path: Path) -> tuple[int, int, int]:
    """Return channels, height and width of a picture."""
    try:
        return describe_picture(path)
    except UnreadableError as error:
        raise UserError(f"{path} cannot be read ({error}): remove or repair it") from None
