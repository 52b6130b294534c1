"""Requests for samples: each sample is written to its own file, and an interrupted request resumes.

Beside the files stand `sampling.json`, the request by which a folder is known again; `samples.json`, the index of the
samples; and `sheet.png`.
"""

import hashlib
import json
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from unfog.data.modality import Modality, Playing
from unfog.data.pictures import UnreadableError, save_picture
from unfog.generation.drawing import Drawing
from unfog.recipes.conditions import Asked
from unfog.recipes.words import in_words
from unfog.runs.asking import in_turn
from unfog.runs.model import Run
from unfog.runs.naming import INDEX, file_name, in_a_line, numbered, settings_of, write_index
from unfog.runtime import distributed
from unfog.runtime.errors import UserError
from unfog.runtime.files import disk, locked, parse_json, read_bounded, write_whole
from unfog.runtime.progress import track

SHEET, PLAYED, MOST = 400, 64, 10_000_000
"""Samples on a sheet, in a film of it, and in a request, at most."""


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

    def shows(self, condition: Tensor | None) -> list[str]:
        """Return what each sample is asked to show, in words, given the condition of each."""
        generator, asked = self.generator, in_turn(self.asked, self.count)
        return in_words(generator.conditioning, generator.known, condition, asked, self.count)

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

    @property
    def most(self) -> int:
        """How many labels or prompts are requested to be taken in turn."""
        several = self.asked.values() if isinstance(self.asked, Mapping) else [self.asked]
        return max(
            (len(one) for one in several if isinstance(one, tuple) and one and isinstance(one[0], str)), default=0
        )

    def identity(self) -> dict[str, object]:
        """Return what distinguishes this request from others, apart from the count, as plain values."""
        with (self.run.path / "model.safetensors").open("rb") as file:
            model = hashlib.file_digest(file, "sha256").hexdigest()
        asked: object = self.asked
        if isinstance(asked, Tensor):
            asked = hashlib.sha256(asked.numpy().tobytes()).hexdigest()[:16]
        identity: dict[str, object] = {"model": model[:16], "asked": asked, **self.generator.described}
        identity |= {"precision": self.run.precision, "device": self.run.device.type, **self.sides}
        plain: dict[str, object] = json.loads(json.dumps(identity))
        return plain

    @property
    def sides(self) -> dict[str, object]:
        """Return the size of the samples, where another one than the run's was asked for."""
        stored = self.generator.stored
        return {} if stored == self.run.recipe.shape else {"size": "x".join(map(str, reversed(stored[1:])))}

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


def _vacant(folder: Path, request: Request, identity: dict[str, object]) -> Path:
    """Return the folder, or its first neighbour, that may become this request's: FOLDER, FOLDER-2, ..."""
    number, found = 1, folder
    while not _fits(found, request, identity):
        number += 1
        found = folder.with_name(f"{folder.name}-{number}")
    return found


def _fits(folder: Path, request: Request, identity: dict[str, object]) -> bool:
    """Return whether a folder holds nothing, or samples of this request and no more than it asks for."""
    earlier = _earlier(folder / "sampling.json")
    if not earlier:
        return not folder.exists() or all(one.name.startswith(".") for one in folder.iterdir())  # as locks are
    written = earlier.get("n")
    same = all(earlier.get(name) == value for name, value in identity.items())
    return same and isinstance(written, int) and written <= request.count


def sample_into(
    folder: Path, run: Run, generator: Drawing, count: int, asked: Asked, *, beside: bool, console: Console
) -> Path:
    """Write samples 0 to `count` - 1, their index and a sheet; resume where an earlier call stopped.

    The modality decides on the file: a PNG for an image, one line of points.csv for a point. The name of a sample's own
    file is its number and what it is asked to show.

    Args:
        folder: The folder, which is created if it is missing.
        run: The run.
        generator: Draws the samples, one of the run's.
        count: Number of samples.
        asked: The condition.
        beside: Whether to take a neighbour, FOLDER-2 and so on, where the folder holds other samples.
        console: Shows the progress of requests of more than one batch.

    Returns: The folder that was written.
    Raises: UserError: If the folder holds another request, another process writes there, or the model cannot be
        conditioned on `asked`.
        Stopped: After Ctrl-C.
    """
    request = Request(run, generator, count, asked)
    condition = request.condition()
    if distributed.rank():
        first = int(distributed.agreed(0))
        deque(generator.batches(condition, count, first), maxlen=0)  # rank 0 gathers the shares of all
        return folder
    if (most := request.most) > count:
        console.print(f"{count} samples show the first {count} of {most}: -n {most} shows all", highlight=False)
    identity = request.identity()
    folder = _vacant(folder, request, identity) if beside else folder
    with locked(folder):
        present, shows = _claim(folder, request, identity), request.shows(condition)
        first = _first_batch(request, set(present))
        distributed.agreed(first)
        settings, modality = {**settings_of(generator), **request.sides}, request.modality

        def file_of(place: int) -> str:
            if modality.together:
                return f"{modality.name}{modality.suffix}"
            return present[place].name if place in present else file_name(place, shows[place], modality.suffix)

        if modality.together:
            samples = _write_together(folder / file_of(0), request, condition)
        else:
            _write_each(folder, file_of, request, condition, first, console)
            samples = _read([folder / file_of(place) for place in range(min(count, SHEET))], request)
        write_index(folder, map(file_of, range(count)), shows, settings)
        sheet = modality.labelled(samples, shows[: len(samples)], _title(request, len(samples), settings))
        save_picture(sheet, folder / "sheet.png")
        if isinstance(modality, Playing) and modality.suffix != ".wav":  # a sound has a file of its own that plays it
            modality.play(samples[:PLAYED], folder, "sheet")
    return folder


def _claim(folder: Path, request: Request, identity: dict[str, object]) -> dict[int, Path]:
    """Claim a folder for this request: check what it holds, and write `sampling.json`.

    Returns: The samples that are already there: their files by their numbers.
    Raises: UserError: If the folder holds other pictures, none of which is ever removed.
    """
    earlier = _earlier(folder / "sampling.json")
    same = all(earlier.get(name) == value for name, value in identity.items())
    written = earlier.get("n")
    present = numbered(folder, request.modality.suffix, max(request.count, written if isinstance(written, int) else 0))
    if not earlier and (present or any((folder / own).exists() for own in ("sheet.png", INDEX))):
        raise UserError(f"{folder} holds {request.files} that no request of unfog wrote: choose another folder")
    if earlier and not same:
        raise UserError(
            f"{folder} holds the {request.files} of another request (its sampling.json): choose another folder"
        )
    if any(place >= request.count for place in present):
        raise UserError(f"{folder} holds {written} samples of this request: ask for as many, or choose another folder")
    with disk(folder):
        (folder / INDEX).unlink(missing_ok=True)  # it says what is there, and is written last
        write_whole(folder / "sampling.json", json.dumps({"n": request.count, **identity}, indent=1).encode())
    return present


def _first_batch(request: Request, present: set[int]) -> int:
    """Return the number of the first batch to draw, or the number of batches if all are there.

    Samples that share a file are all drawn again.
    """
    if request.modality.together:
        return 0
    missing = next((place for place in range(request.count) if place not in present), None)
    return request.batches if missing is None else missing // request.size


def _write_together(path: Path, request: Request, condition: Tensor | None) -> Tensor:
    """Draw all samples, write them to one file, and return them."""
    drawn = torch.cat(list(request.generator.batches(condition, request.count)))
    request.modality.write(drawn, path)
    return drawn


def _write_each(
    folder: Path,
    file_of: Callable[[int], str],
    request: Request,
    condition: Tensor | None,
    first: int,
    console: Console,
) -> None:
    """Draw the batches from number `first` on, and write each sample to its file when its batch is done."""
    if first == request.batches:
        return
    if first:
        console.print(f"resuming after {first * request.size} of {request.count} samples")
    drawn = request.generator.batches(condition, request.count, first)
    batches = track(drawn, "sampling in batches", request.batches - first, console=console)
    for number, samples in enumerate(batches, first):
        for place, sample in enumerate(samples, number * request.size):
            request.modality.write(sample[None], folder / file_of(place))


def _read(files: Sequence[Path], request: Request) -> Tensor:
    """Return the samples in some files.

    Raises: UserError: If a file is damaged.
    """
    modality = request.modality
    try:
        return torch.cat([modality.read(file, request.generator.stored) for file in files])
    except UnreadableError as error:
        what = "picture" if modality.pixels else "file"
        raise UserError(
            f"a {what} in {files[0].parent} is damaged ({error}): delete it and repeat the command"
        ) from None


def _title(request: Request, shown: int, settings: dict[str, object]) -> str:
    """Return the title of a sheet: of what run it shows how many samples, and how they were drawn."""
    of = f"{shown}" if shown == request.count else f"the first {shown} of {request.count:,}"
    samples = "sample" if of == "1" else "samples"
    return f"{of} {samples} of {request.run.path.resolve().name}: {in_a_line(settings)}"


def _earlier(where: Path) -> dict[str, object]:
    """Return the request that a folder holds, empty if there is none; a damaged file counts as another request."""
    if not where.is_file():
        return {}
    try:
        request = parse_json(read_bounded(where))
    except ValueError:
        request = None
    return request if isinstance(request, dict) and request else {"damaged": True}
