"""`unfog report`: everything that is known about a run in one HTML file, and the same as Markdown."""

import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from unfog.data.modality import Modality, Playing
from unfog.data.pictures import UnreadableError, decoded, save_picture
from unfog.data.source import Data, Source
from unfog.generation.drawing import Drawing, Stepwise
from unfog.interop.card import facts, text
from unfog.interop.scores import scores
from unfog.recipes.build import build_codec
from unfog.recipes.words import in_words
from unfog.reports.film import Film, film
from unfog.reports.html import page
from unfog.runs.data import Changed, ChangedDataError, read_data
from unfog.runs.naming import in_a_line, settings_of
from unfog.runs.run import Run
from unfog.runtime.errors import UserError
from unfog.runtime.files import disk, whole, write_whole
from unfog.runtime.progress import working
from unfog.training.metrics import losses

SHOWN, FRAMED = 64, 8
"""Most samples on the sheet, and in the film."""
DRAWN = 1 << 20
"""Numbers in the samples that are drawn, at most, unless one batch has more: large pictures take long."""
PLAYED = 10
"""Samples that can be heard or seen moving."""
PAIRS = 16
"""Samples that are shown with their neighbours."""
ROWS, NUMBERS = 10_000, 1 << 26
"""Most training rows that are searched for neighbours, and most numbers in them."""
PATHS = (
    "Left, some pixels of the first sample while it is denoised: x_t, and dotted the x0 predicted from it. Right, the "
    "paths of all samples in the plane in which they vary most: each begins as noise and ends at its dot."
)
WIDEST = 1200
"""Most pixels in the width of a film."""
LOSSES = "The loss over the images seen"
"""Title of the first curves."""
KEPT = {
    "evaluation/levels.png": "The loss at each noise level",
    "evaluation/confusion.png": "What was asked for and what was read, of samples and of real held-out rows",
    "evaluation/samples.png": "Samples above held-out rows that show the same",
    "evaluation/memorisation.png": "The samples nearest to training rows, above those rows, in pixels and in features",
    "bench/bench.png": "Quality against network evaluations",
}
"""Pictures that other verbs write into a run folder, and their captions."""


@dataclass(frozen=True)
class Report:
    """A report on a run, with pictures.

    Attributes:
        title: Name of the run.
        markdown: The text.
        folder: Where text and pictures lie.
    """

    title: str
    markdown: str
    folder: Path

    def write(self) -> Path:
        """Write report.md and report.html, and return where the page is.

        Raises: EnvironmentFailure: If the disk fails.
        """
        write_whole(self.folder / "report.md", self.markdown.encode())
        html = page(self.markdown, self.title, self.folder)
        write_whole(self.folder / "report.html", html.encode())
        return self.folder / "report.html"


def report(
    run: Run,
    folder: Path,
    seed: int = 0,
    changed: Changed = "refuse",
    *,
    guidance: float | None = None,
    steps: int | None = None,
    console: Console | None = None,
) -> Report:
    """Collect what is known about a run, and draw samples, a film, and the samples' nearest training rows.

    Args:
        run: The run.
        folder: For the report and its pictures.
        seed: Seed of the noise of samples and film.
        changed: What to do where the data are not those that the run was trained on.
        guidance: Scale of classifier-free guidance of the samples. Default, as for the next: the recipe's.
        steps: Steps of the solver.
        console: Shows that it is at work.

    Raises: ChangedDataError: If they differ, and `changed` refuses them.
        EnvironmentFailure: If the disk fails.
    """
    generator = run.generator(guidance=guidance, steps=steps, seed=seed)  # a mistake shows before the data are read
    data: Data | UserError
    try:
        data = read_data(run.path, run.recipe, changed)[1]
    except ChangedDataError:
        raise
    except UserError as error:
        data = error  # sections that need the data say so
    with disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with working("drawing samples, a film and the nearest training rows", console=console):
        parts = _drawn(run, data, folder, generator)
    known = facts(run)
    curves: list[str] = []
    figure = losses(run.path)
    if figure is not None:
        with whole(folder / "loss.png") as part:
            figure.savefig(part, dpi=120, format="png")
        curves += [*_image("loss.png", LOSSES), f"{LOSSES}.", ""]
    for name, picture, caption in kept(run):
        save_picture(picture, folder / name)
        curves += [*_image(name, caption), f"{caption}.", ""]
    parts |= {"Data": known["Data"], "Cost": known["Cost"], "Evaluation": scores(run.path, whole=True)}
    parts |= {"Curves and pictures": curves, "Recipe": known["Recipe"]}
    return Report(run.path.resolve().name, text(run, parts), folder)


def kept(run: Run) -> list[tuple[str, Image.Image, str]]:
    """Return the pictures that other verbs wrote into a run folder: name in a report, pixels and caption.

    They are decoded, since a run of a stranger can hold anything under their names; what is no picture is left out
    with a warning.
    """
    found = []
    for name, caption in KEPT.items():
        if (run.path / name).is_file():
            try:
                found.append((name.replace("/", "-"), decoded(run.path / name), caption))
            except UnreadableError as error:
                warnings.warn(f"{run.path / name} is left out: {error}", stacklevel=2)
    return found


def _image(name: str, caption: str) -> list[str]:
    """Return a picture as lines of Markdown."""
    return [f"![{caption}]({name})", ""]


def _frames(sampler: Drawing) -> int:
    """Return how many samples stand side by side in a film."""
    return FRAMED if sampler.modality.together else max(1, min(FRAMED, WIDEST // max(64, sampler.stored[-1])))


def _drawn(run: Run, data: Data | UserError, folder: Path, generator: Drawing) -> dict[str, list[str]]:
    """Draw samples, their film and their neighbours, and return the sections on them."""
    try:
        asked = _asked(run, data)
        count = min(SHOWN, max(generator.size, DRAWN // math.prod(generator.stored)))
        samples = generator(count, asked)
        shot = None
        if isinstance(generator, Stepwise):
            shot = film(generator, min(_frames(generator), count), asked)
    except UserError as error:
        return {"Samples": [f"No samples could be drawn: {error}."]}
    settings = in_a_line(settings_of(generator))
    shows = in_words(generator.conditioning, generator.known, generator.condition(count, asked), asked, count)
    save_picture(generator.modality.labelled(samples, shows, settings), folder / "samples.png")
    return {
        "Samples": [
            *_image("samples.png", f"{count} samples"),
            *_played(generator.modality, samples, shows, folder),
            f"{count} samples: {settings}.",
        ],
        "Film": [] if shot is None else _film(shot, folder),
        "Nearest neighbours": _neighbours(run, data, samples, folder),
    }


def _played(modality: Modality, samples: Tensor, shows: list[str], folder: Path) -> list[str]:
    """Write what plays some samples that last, and return it as lines of Markdown."""
    if not isinstance(modality, Playing):
        return []
    files = modality.play(samples[:PLAYED], folder, "playing")
    said = [show or f"sample {place}" for place, show in enumerate(shows[:PLAYED])]
    if len(files) < len(said):
        said = [f"the first {len(said)} samples"] * len(files)
    return [line for file, what in zip(files, said, strict=True) for line in (f"{what}:", "", *_image(file.name, what))]


def _asked(run: Run, data: Data | UserError) -> Any:
    """Return the condition of the samples: the default, or a held-out row's where there is none.

    Raises: UserError: If that takes data that are not available.
    """
    kind = run.recipe.kind("conditioning")
    if kind not in ("values", "image", "spectrogram", "embedding"):
        return None
    if isinstance(data, UserError):
        raise data
    batch = data.heldout.take(np.arange(1))
    if kind == "image":
        return build_codec(run.recipe).encode(batch.x)
    if kind != "values" or batch.values is None:
        return batch.x
    return tuple(batch.values[0].tolist())


def _film(shot: Film, folder: Path) -> list[str]:
    """Write a film, and return the section on it."""
    files = shot.write(folder)
    paths = []
    if "paths" in files:
        paths = [*_image(files["paths"].name, "paths of some pixels, and of all samples"), PATHS]
    below = ", and the change until the next moment" if shot.numbers else ""
    return [
        *_image(files["film"].name, "film"),
        f"From top to bottom: x_t, the x0 predicted from it{below}.",
        "",
        *paths,
    ]


def _neighbours(run: Run, data: Data | UserError, samples: Tensor, folder: Path) -> list[str]:
    """Draw samples above the training rows nearest to them, and return the section on them."""
    if isinstance(data, UserError):
        return [f"Not available: {data}."]
    train = data.train
    rows = _some(train)
    flat = rows.float().flatten(1).numpy()
    nearest = NearestNeighbors(n_neighbors=1).fit(flat)
    distances, places = nearest.kneighbors(samples.float().flatten(1).numpy())
    closest = torch.from_numpy(np.argsort(distances[:, 0])[:PAIRS].copy())
    near = rows[torch.from_numpy(places[:, 0])[closest]]
    pairs = run.recipe.modality.paired(samples[closest], near, PAIRS, ("samples", "nearest training rows"))
    save_picture(pairs, folder / "neighbours.png")
    what = "all training rows" if len(rows) == len(train) else f"{len(rows):,} of {len(train):,} training rows"
    return [
        *_image("neighbours.png", "samples above their nearest training rows"),
        f"The {len(closest)} of {len(samples)} samples that are nearest to a training row, each above that row, by the "
        f"squared difference of their numbers, among {what}.",
    ]


def _some(train: Source) -> Tensor:
    """Return training rows, evenly spaced where there are many."""
    most = max(1, min(len(train), ROWS, NUMBERS // math.prod(train.shape)))
    places = np.linspace(0, len(train) - 1, most).astype(np.int64)
    return torch.cat([train.take(part).x for part in np.array_split(places, -(-len(places) // 1000))])
