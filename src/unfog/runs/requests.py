"""Requests for samples: each sample is written to its own file, and an interrupted request resumes."""

import hashlib
import json
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from unfog.data.modality import Modality
from unfog.data.pictures import UnreadableError, save_picture
from unfog.generation.drawing import Drawing
from unfog.recipes.conditions import Asked
from unfog.runs.run import Run
from unfog.runtime import distributed
from unfog.runtime.errors import UserError
from unfog.runtime.files import disk, locked, parse_json, read_bounded, write_whole
from unfog.runtime.progress import track

SHEET, MOST = 400, 10_000_000
"""Samples on a sheet, and in a request, at most."""


@dataclass(frozen=True)
class Request:
    """A request for samples of a run: everything on which their bits depend, and their number.

    Attributes:
        run: The run.
        generator: Draws the samples.
        count: Number of samples.
        asked: The condition.
    """

    run: Run
    generator: Drawing
    count: int
    asked: Asked

    def condition(self) -> Tensor | None:
        """Return the condition of each sample.

        Raises: UserError: If the number of samples is out of range, or the model cannot be conditioned on `asked`.
        """
        if not 1 <= self.count <= MOST:
            least = "1 or more" if self.count < 1 else f"{MOST:,} or less"
            raise UserError(f"the number of samples must be {least}, not {self.count}")
        condition = self.generator.condition(self.count, in_turn(self.asked, self.count))
        self.generator.check(condition)
        return condition

    def identity(self) -> dict[str, object]:
        """Return what distinguishes this request from others, apart from the count, as plain values."""
        with (self.run.path / "model.safetensors").open("rb") as file:
            model = hashlib.file_digest(file, "sha256").hexdigest()
        asked: object = self.asked
        if isinstance(asked, Tensor):
            asked = hashlib.sha256(asked.numpy().tobytes()).hexdigest()[:16]
        identity: dict[str, object] = {"model": model[:16], "asked": asked, **self.generator.described}
        identity |= {"precision": self.run.precision, "device": self.run.device.type}
        plain: dict[str, object] = json.loads(json.dumps(identity))
        return plain

    @property
    def size(self) -> int:
        """Samples in a batch."""
        return self.generator.size

    @property
    def batches(self) -> int:
        """Batches in which all samples are drawn."""
        return self.generator.batches_of(self.count)

    @property
    def modality(self) -> Modality:
        """What a sample is."""
        return self.generator.modality

    @property
    def files(self) -> str:
        """What its files hold, in messages."""
        return "pictures" if self.modality.pixels else self.modality.name


def sample_into(
    folder: Path, run: Run, generator: Drawing, count: int, asked: Asked, *, replace: bool, console: Console
) -> None:
    """Write samples 0 to `count` - 1, `sampling.json` and a sheet; resume where an earlier call stopped.

    The modality decides on the file: a PNG for an image, one line of points.csv for a point.

    Args:
        folder: The folder, which is created if it is missing.
        run: The run.
        generator: Draws the samples, one of the run's.
        count: Number of samples.
        asked: The condition.
        replace: Whether files of another request may be removed.
        console: Shows the progress of requests of more than one batch.

    Raises: UserError: If the folder holds another request, another process writes there, or the model cannot be
        conditioned on `asked`.
        Stopped: After Ctrl-C.
    """
    request = Request(run, generator, count, asked)
    condition = request.condition()
    if distributed.rank():
        first = int(distributed.agreed(0))
        deque(generator.batches(condition, count, first), maxlen=0)  # rank 0 gathers the shares of all
        return
    with locked(folder):
        first = _first_batch(request, _claim(folder, request, replace))
        distributed.agreed(first)
        if request.modality.together:
            _write_together(folder, request, condition)
            return
        _write_each(folder, request, condition, first, console)
        _write_sheet(folder, request)


def _claim(folder: Path, request: Request, replace: bool) -> set[int]:
    """Claim a folder for this request: check what it holds, remove what does not belong, and write `sampling.json`.

    Returns: The numbers of the samples whose pictures are already there.
    Raises: UserError: If the folder holds pictures that must not be removed.
    """
    identity, earlier = request.identity(), _earlier(folder / "sampling.json")
    same = all(earlier.get(name) == value for name, value in identity.items())
    written = earlier.get("n")
    present = _written(folder, request.modality.suffix, max(request.count, written if isinstance(written, int) else 0))
    if not earlier and (present or (folder / "sheet.png").exists()):
        raise UserError(f"{folder} holds {request.files} that no request of unfog wrote: choose another folder")
    if earlier and not replace and not same:
        raise UserError(
            f"{folder} holds the {request.files} of another request (its sampling.json): choose another folder"
        )
    if not replace and any(place >= request.count for place in present):
        raise UserError(f"{folder} holds {written} samples of this request: ask for as many, or choose another folder")
    kept = {place for place in present if same and place < request.count}
    with disk(folder):
        for place in present - kept:
            (folder / _name(place, request.modality.suffix)).unlink()
        write_whole(folder / "sampling.json", json.dumps({"n": request.count, **identity}, indent=1).encode())
    return kept


def _first_batch(request: Request, present: set[int]) -> int:
    """Return the number of the first batch to draw, or the number of batches if all are there.

    Samples that share a file are all drawn again.
    """
    if request.modality.together:
        return 0
    missing = next((place for place in range(request.count) if place not in present), None)
    return request.batches if missing is None else missing // request.size


def _write_together(folder: Path, request: Request, condition: Tensor | None) -> None:
    """Draw all samples, and write them to one file, with a picture."""
    drawn = torch.cat(list(request.generator.batches(condition, request.count)))
    request.modality.write(drawn, folder / f"{request.modality.name}{request.modality.suffix}")
    save_picture(request.modality.sheet(drawn, 1), folder / "sheet.png")


def _write_each(folder: Path, request: Request, condition: Tensor | None, first: int, console: Console) -> None:
    """Draw the batches from number `first` on, and write each sample when its batch is done."""
    if first == request.batches:
        return
    if first:
        console.print(f"resuming after {first * request.size} of {request.count} samples")
    drawn = request.generator.batches(condition, request.count, first)
    batches = track(drawn, "sampling in batches", request.batches - first, console=console)
    modality = request.modality
    for number, samples in enumerate(batches, first):
        for place, sample in enumerate(samples, number * request.size):
            modality.write(sample[None], folder / _name(place, modality.suffix))


def _write_sheet(folder: Path, request: Request) -> None:
    """Write a sheet of the first samples; without a condition, a model of few classes has one class per column.

    Raises: UserError: If a file is damaged.
    """
    modality, stored, classes = request.modality, request.generator.stored, request.generator.classes
    try:
        files = [folder / _name(place, modality.suffix) for place in range(min(request.count, SHEET))]
        samples = torch.cat([modality.read(file, stored) for file in files])
    except UnreadableError as error:
        what = "picture" if modality.pixels else "file"
        raise UserError(f"a {what} in {folder} is damaged ({error}): delete it and repeat the command") from None
    columns = max(1, round(len(samples) ** 0.5))
    if request.asked is None and 1 < classes <= 16:
        columns = classes * max(1, round(columns / classes))
    save_picture(modality.sheet(samples, columns), folder / "sheet.png")


def _written(folder: Path, suffix: str, most: int) -> set[int]:
    """Return the numbers, below `most`, of the samples whose files are in a folder."""
    places = (_place(path) for path in folder.glob(f"*{suffix}"))
    return {place for place in places if place is not None and place < most}


def _name(place: int, suffix: str) -> str:
    """Return the name of the file of sample number `place`."""
    return f"{place:05}{suffix}"


def _place(path: Path) -> int | None:
    """Return the number of the sample whose file this is, None if it is another file."""
    digits = path.stem
    place = int(digits) if digits.isascii() and digits.isdigit() else None
    return place if place is not None and path.name == _name(place, path.suffix) and path.is_file() else None


def written_pictures(folder: Path) -> list[Path]:
    """Return the pictures of samples in a folder, by their numbers; sheets and other files are none."""
    numbers = {_place(path): path for path in folder.glob("*.png")}
    return [numbers[place] for place in sorted(place for place in numbers if place is not None)]


def in_turn(asked: Asked, count: int) -> Asked:
    """Return several prompts, a tuple of texts, in turn for each of `count` samples; anything else as it is."""
    if isinstance(asked, tuple) and asked and isinstance(asked[0], str):
        return [asked[place % len(asked)] for place in range(count)]
    return asked


def _earlier(where: Path) -> dict[str, object]:
    """Return the request that a folder holds, empty if there is none; a damaged file counts as another request."""
    if not where.is_file():
        return {}
    try:
        request = parse_json(read_bounded(where))
    except ValueError:
        request = None
    return request if isinstance(request, dict) and request else {"damaged": True}
