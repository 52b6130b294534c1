"""The files of a folder of samples: a number, and what the sample was asked to show; and an index of them."""

import json
import re
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

from unfog.data.lettering import spelled
from unfog.diffusion.fitted import Fitted
from unfog.generation.drawing import Drawing
from unfog.generation.sampler import Sampler
from unfog.recipes.kinds import kind_of
from unfog.runtime.files import parse_json, read_bounded, whole

INDEX = "samples.json"
"""The index: JSON, since a condition may be a text with any characters, numbers, or several things by name."""
LONGEST, BYTES = 40, 120
"""Characters and bytes of a slug, at most: some file systems take 143 bytes in a name."""
NAME = re.compile(r"(\d{5,8})(?:-[^.]+)?", re.ASCII)
"""The stem of a sample's file; before there were slugs, it was the number alone."""
SHOWN = ("steps", "guidance", "temperature")
"""Options that titles name."""


def slug(text: str) -> str:
    """Return a text for a file's name: its letters and digits, and hyphens between its words.

    Letters keep their script and case, composed as Unicode's NFKC does; a text that has none is spelled out ("plus",
    "tulip"). No other character is kept, so that no name leads out of its folder or is special to a file system.
    """
    plain = unicodedata.normalize("NFKC", text[: 10 * LONGEST])
    words = _words(plain) or _words(" ".join(spelled(sign) for sign in plain[:8] if sign.isprintable() and sign != " "))
    short = "-".join(words)[:LONGEST]
    known = short.encode(sys.getfilesystemencoding(), "ignore").decode(sys.getfilesystemencoding())
    while len(known.encode()) > BYTES:
        known = known[:-1]
    return known.strip("-")


def _words(text: str) -> list[str]:
    """Return the runs of letters, marks and digits in a text."""
    kept = (sign if unicodedata.category(sign)[0] in "LMN" else " " for sign in text)
    return [word for word in "".join(kept).split() if any(unicodedata.category(sign)[0] != "M" for sign in word)]


def file_name(place: int, words: str, suffix: str) -> str:
    """Return the name of the file of sample number `place`, which is asked to show `words`."""
    about = slug(words)
    return f"{place:05}-{about}{suffix}" if about else f"{place:05}{suffix}"


def place_of(path: Path) -> int | None:
    """Return the number of the sample whose file this is, None if it is another file."""
    found = NAME.fullmatch(path.stem)
    if found is None or f"{int(found[1]):05}" != found[1] or not path.is_file():
        return None
    return int(found[1])


def numbered(folder: Path, suffix: str, most: int) -> dict[int, Path]:
    """Return the files of samples in a folder by their numbers, which are below `most`."""
    places = {path: place_of(path) for path in sorted(folder.glob(f"*{suffix}"))}
    return {place: path for path, place in places.items() if place is not None and place < most}


def written_pictures(folder: Path) -> list[Path]:
    """Return the pictures of samples in a folder, by their numbers; sheets and other files are none."""
    try:
        most = int(parse_json(read_bounded(folder / "sampling.json"))["n"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        most = sys.maxsize
    pictures = numbered(folder, ".png", most)
    return [pictures[place] for place in sorted(pictures)]


def settings_of(generator: Drawing) -> dict[str, object]:
    """Return how samples are drawn, by the names of the options: the seed, and what the model has besides."""
    if not isinstance(generator, Sampler):
        return {"seed": generator.seed, **{key: generator.described[key] for key in SHOWN if key in generator.takes}}
    settings = generator.settings
    rule = generator.solver
    solver = f"{rule.start} (tuned)" if isinstance(rule, Fitted) else kind_of("solver", rule)
    found = {"seed": generator.seed, "solver": solver, "steps": settings.steps, "guidance": settings.guidance}
    return found if generator.negative is None else {**found, "negative": generator.negative}


def in_a_line(settings: dict[str, object]) -> str:
    """Return settings as the title of a sheet."""
    return ", ".join(
        f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}" for key, value in settings.items()
    )


def write_index(folder: Path, files: Iterable[str], words: Sequence[str], settings: dict[str, object]) -> None:
    """Write for each sample its file, what it was asked to show, and how it was drawn: a JSON list, a line for each.

    Raises: EnvironmentFailure: If the disk fails.
    """
    with whole(folder / INDEX) as part, part.open("w", encoding="utf-8", errors="backslashreplace") as file:
        for place, (named, shows) in enumerate(zip(files, words, strict=True)):
            line = {"number": place, "file": named, "condition": shows, **settings}
            file.write(f"{',' if place else '['}\n{json.dumps(line, ensure_ascii=False)}")
        file.write("\n]\n")
