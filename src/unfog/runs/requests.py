"""Requests for samples: written picture by picture into a folder, and resumed where an earlier call stopped."""

import hashlib
import json
from collections import deque
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from unfog.data.pictures import UnreadableError, read_picture, save_picture, sheet, tile
from unfog.generation.sampler import Sampler
from unfog.recipes.conditions import Asked
from unfog.runs.run import Run
from unfog.runtime import distributed
from unfog.runtime.errors import UserError
from unfog.runtime.files import disk, parse_json, read_bounded, write_whole

SHEET, MOST = 400, 10_000_000
"""Samples on a sheet, and in a request, at most."""


def sample_into(
    folder: Path, run: Run, sampler: Sampler, count: int, asked: Asked, *, replace: bool, console: Console
) -> None:
    """Write samples 0 to `count` - 1 as a PNG each, `sampling.json` and a sheet; go on where an earlier call stopped.

    Args:
        folder: Where to; made if it is not there.
        run: The run.
        sampler: Draws the samples.
        count: Number of samples.
        asked: What they shall show.
        replace: Whether the pictures of another request may be removed.
        console: Shows the progress of requests of more than one batch.

    Raises: UserError: If the folder holds another request, or the model cannot take what is asked.
        Stopped: After Ctrl-C.
    """
    if not 1 <= count <= MOST:
        least = "1 or more" if count < 1 else f"{MOST:,} or less"
        raise UserError(f"the number of samples must be {least}, not {count}")
    condition = sampler.condition(count, in_turn(asked, count))
    sampler.denoise(None if condition is None else condition[:1])  # what cannot be met is refused with nothing touched
    with (run.path / "model.safetensors").open("rb") as file:
        model = hashlib.file_digest(file, "sha256").hexdigest()
    request = {
        "model": model[:16],
        "asked": asked if not isinstance(asked, Tensor) else hashlib.sha256(asked.numpy().tobytes()).hexdigest()[:16],
        **{name: repr(getattr(sampler, name)) for name in ("solver", "grid", "settings")},
        "seed": sampler.seed,
        **({} if sampler.negative is None else {"negative": sampler.negative}),
        "precision": run.precision,
        "device": next(run.denoiser.parameters()).device.type,
    }
    if distributed.rank():
        skip = int(distributed.agreed(0))
        deque(run.batches(sampler, condition, count, skip), maxlen=0)  # its share of each batch goes to the first
        return
    earlier = _earlier(folder / "sampling.json")
    same = {name: earlier.get(name) for name in request} == json.loads(json.dumps(request))
    written = earlier.get("n")
    most = max(count, written if isinstance(written, int) else 0)
    done = {place for place in map(_place, folder.glob("*.png")) if place is not None and place < most}
    if not earlier and (done or (folder / "sheet.png").exists()):
        raise UserError(f"{folder} holds pictures that no request of unfog wrote: choose another --out")
    if earlier and not replace and not same:
        raise UserError(f"{folder} holds the pictures of another request (its sampling.json): choose another --out")
    if not replace and any(place >= count for place in done):
        raise UserError(f"{folder} holds {written} samples of this request: ask for as many, or choose another --out")
    with disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for place in [place for place in done if not same or place >= count]:
            (folder / _name(place)).unlink()
            done.remove(place)
        write_whole(folder / "sampling.json", json.dumps({"n": count, **request}, indent=1).encode())
    size, batches = sampler.settings.batch, -(-count // sampler.settings.batch)
    points = len(sampler.shape) == 1
    skip = next((place // size for place in range(count) if points or place not in done), batches)
    distributed.agreed(skip)
    if points:
        drawn = torch.cat(list(run.batches(sampler, condition, count)))
        lines = "".join(f"{','.join(map(str, row))}\n" for row in drawn.tolist())
        write_whole(folder / "points.csv", lines.encode())
        save_picture(sheet(drawn, 1), folder / "sheet.png")
        return
    if skip < batches:
        if skip:
            console.print(f"going on after {skip * size} of {count} samples")
        coming = run.batches(sampler, condition, count, skip)
        quiet = batches == 1
        shown = track(coming, "sampling", total=batches - skip, console=console, disable=quiet, transient=True)
        for number, pictures in enumerate(shown, skip):
            for place, picture in enumerate(pictures, number * size):
                save_picture(tile(picture[None], 1, gap=0), folder / _name(place))
    channels = 3 if sampler.stored[0] == 3 else 1
    try:
        shown_first = range(min(count, SHEET))
        first = [read_picture(folder / _name(place), channels, *sampler.stored[1:]) for place in shown_first]
    except UnreadableError as error:
        raise UserError(f"a picture in {folder} is damaged ({error}): delete it and say the same again") from None
    columns = max(1, round(len(first) ** 0.5))
    if asked is None and 1 < sampler.classes <= 16:  # so that each column is one class
        columns = sampler.classes * max(1, round(columns / sampler.classes))
    save_picture(sheet(torch.from_numpy(np.stack(first)), columns), folder / "sheet.png")


def _name(place: int) -> str:
    """Return the name of the picture of sample number `place`."""
    return f"{place:05}.png"


def _place(path: Path) -> int | None:
    """Return the number of the sample whose picture this is, None if it is another file."""
    digits = path.stem
    place = int(digits) if digits.isascii() and digits.isdigit() else None
    return place if place is not None and path.name == _name(place) and path.is_file() else None


def in_turn(asked: Asked, count: int) -> Asked:
    """Return several prompts, a tuple of texts, one after the other, again and again; anything else as it is."""
    if isinstance(asked, tuple) and asked and isinstance(asked[0], str):
        return [asked[place % len(asked)] for place in range(count)]
    return asked


def _earlier(where: Path) -> dict[str, object]:
    """Return the request that a folder holds, empty if there is none; a damaged one is another request."""
    if not where.is_file():
        return {}
    try:
        found = parse_json(read_bounded(where))
    except ValueError:
        found = None
    return found if isinstance(found, dict) and found else {"damaged": True}
