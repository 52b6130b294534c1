"""How samples emerge from noise, moment by moment: a strip, a film, and the paths of their numbers."""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from unfog.data.lettering import labelled_sheet
from unfog.data.modality import Modality
from unfog.data.pictures import row_of, save_film, save_picture, save_video
from unfog.generation.drawing import Drawing, Stepwise
from unfog.generation.sampler import Sampler
from unfog.recipes.conditions import Asked
from unfog.recipes.words import in_words
from unfog.runs.asking import in_turn
from unfog.runs.naming import in_a_line, settings_of
from unfog.runtime.device import within
from unfog.runtime.errors import UserError
from unfog.runtime.files import disk, whole

MOMENTS, SAMPLES = 8, 3
"""Moments of a strip, and samples at most."""
STILLS = 60
"""Most frames of a film: of a long denoising only some moments are kept."""
MILLISECONDS = 80
"""Milliseconds that a frame is shown."""
KINDS = ("x_t", "predicted x0", "change")
"""What is shown of a moment, one below the other."""
PIXELS = 6
"""Numbers of a sample whose paths are drawn."""


class Still(NamedTuple):
    """One moment of a film, on the CPU.

    Attributes:
        t: The time.
        state: The states as they are diffused, `(count, *shape)`.
        guess: The predicted x0, shaped like `state`.
        x: The states as stored, `(count, *stored)`.
        x0: The predicted x0 as stored.
    """

    t: float
    state: Tensor
    guess: Tensor
    x: Tensor
    x0: Tensor


@dataclass(frozen=True)
class Film:
    """The denoising of some samples.

    Attributes:
        stills: The samples at each moment, from noise to data.
        modality: What a sample is.
        labels: What each sample is asked to show.
        title: How the samples were drawn.
        numbers: Whether the states are numbers, which have paths.
    """

    stills: tuple[Still, ...]
    modality: Modality
    labels: tuple[str, ...] = ()
    title: str = ""
    numbers: bool = True

    def rows(self, index: int) -> tuple[Tensor, ...]:
        """Return what is shown of one moment: x_t, the predicted x0, and what changes until the next moment.

        The change is centred on grey and scaled so that the largest change is black or white; it is shown of bytes, not
        of points and other numbers.

        Args:
            index: Number of the moment, from 0.

        Returns: As many as are shown, each as stored, `(count, *stored)`.
        """
        here, following = self.stills[index], self.stills[min(index + 1, len(self.stills) - 1)]
        if here.x.dtype != torch.uint8:
            return here.x, here.x0
        change = following.x.float() - here.x.float()
        grey = 127.5 + 127.5 * change / change.abs().max().clamp(min=1)
        return here.x, here.x0, grey.round().to(torch.uint8)

    def strip(self) -> Image.Image:
        """Draw eight moments from left to right, or all of fewer, of each sample x_t above x0 above the change."""
        moments = dict.fromkeys(round(index * (len(self.stills) - 1) / (MOMENTS - 1)) for index in range(MOMENTS))
        picked = [self.rows(moment) for moment in moments]
        if self.modality.together:
            columns = [[self.modality.sheet(row, 1, 160) for row in rows] for rows in picked]
            return row_of([row_of(column, down=True) for column in columns])
        strips = []
        for sample in range(min(len(picked[0][0]), SAMPLES)):
            shows = [self.labels[sample]] if sample < len(self.labels) and self.labels[sample] else []
            for kind, what in enumerate(KINDS[: len(picked[0])]):
                rows = torch.stack([rows[kind][sample] for rows in picked])
                strips.append((": ".join([*shows, what]), [self.modality.sheet(rows, len(picked), 64)]))
        return labelled_sheet(strips, title=self.title, stacked=True)

    def frame(self, index: int) -> Image.Image:
        """Draw one moment: its time and what is shown, all samples side by side, x_t above x0 above the change."""
        rows = self.rows(index)
        if self.modality.together:
            return row_of([self.modality.sheet(row, 1) for row in rows])
        digits = len(f"{max(still.t for still in self.stills):.2f}")  # so that all frames have one size
        shows = f": {', '.join(self.labels)}" if any(self.labels) else ""
        strips = [(what, [self.modality.sheet(row, len(row), 64)]) for what, row in zip(KINDS, rows, strict=False)]
        return labelled_sheet(strips, title=f"t = {self.stills[index].t:0{digits}.2f}{shows}", stacked=True)

    def frames(self) -> list[Image.Image]:
        """Draw all moments."""
        return [self.frame(index) for index in range(len(self.stills))]

    def draw_paths(self, path: Path) -> None:
        """Draw the paths of a few numbers of the first sample over time, and of all samples in a plane.

        The plane is that of the first two principal components of all states.

        Raises: EnvironmentFailure: If the disk fails.
        """
        from matplotlib.figure import Figure  # here, since they take a second to import
        from sklearn.decomposition import PCA

        times = [still.t for still in self.stills]
        x = torch.stack([still.state.float().flatten(1) for still in self.stills]).numpy()
        x0 = torch.stack([still.guess.float().flatten(1) for still in self.stills]).numpy()
        figure = Figure(figsize=(10, 4), layout="constrained")
        left, right = figure.subplots(1, 2)
        order = x[-1, 0].argsort()
        drawn = order[np.linspace(0, len(order) - 1, min(PIXELS, len(order))).astype(int)]
        for colour, place in enumerate(drawn):
            left.plot(times, x[:, 0, place], f"C{colour}", linewidth=1)
            left.plot(times, x0[:, 0, place], f"C{colour}:", linewidth=1)
        left.set(
            xlabel="time t, from noise to data",
            ylabel="value",
            title="pixels of the first sample: x_t, and the predicted x0 (dotted)",
        )
        left.invert_xaxis()
        plane = PCA(2, svd_solver="randomized", random_state=0).fit_transform(x.reshape(-1, x.shape[-1]))
        for colour, line in enumerate(plane.reshape(*x.shape[:2], 2).transpose(1, 0, 2)):
            right.plot(*line.T, f"C{colour % 10}.-", linewidth=1, markersize=3)
            right.plot(*line[-1], f"C{colour % 10}o")
        right.set(xlabel="first principal component", ylabel="second", title="one line a sample, from noise to its dot")
        with whole(path) as part:
            figure.savefig(part, dpi=110, format="png")

    def write(self, folder: Path) -> dict[str, Path]:
        """Write strip.png, film.gif, paths.png of numbers, and film.mp4 where PyAV is there; return where they are.

        Raises: EnvironmentFailure: If the disk fails.
        """
        with disk(folder):
            folder.mkdir(parents=True, exist_ok=True)
        files = {"strip": folder / "strip.png", "film": folder / "film.gif"}
        frames = self.frames()
        save_picture(self.strip(), files["strip"])
        save_film(frames, files["film"], MILLISECONDS)
        if self.numbers:
            files["paths"] = folder / "paths.png"
            self.draw_paths(files["paths"])
        if find_spec("av"):
            files["video"] = folder / "film.mp4"
            save_video(frames, files["video"], MILLISECONDS)
        return files


def film(sampler: Drawing, count: int, asked: Asked = None) -> Film:
    """Return the denoising of some samples.

    Args:
        sampler: Draws them, step by step.
        count: Number of samples.
        asked: The condition.

    Raises: UserError: If they are not drawn step by step, the count is out of range, or the model cannot be conditioned
        on `asked`.
    """
    if not isinstance(sampler, Stepwise):
        raise UserError("this model is not sampled step by step: only its samples can be drawn")
    asked = in_turn(asked, count)
    shot = tuple(within(sampler.arithmetic, stills(sampler, count, asked)))
    shows = in_words(sampler.conditioning, sampler.known, sampler.condition(count, asked), asked, count)
    title = in_a_line(settings_of(sampler))
    return Film(shot, sampler.modality, tuple(shows), title, isinstance(sampler, Sampler))


def stills(sampler: Stepwise, count: int, asked: Asked) -> Iterator[Still]:
    """Yield the stills of a film, at most `STILLS`, first and last among them; see `Sampler.moments`."""
    for moment in sampler.moments(count, asked):
        if moment.kept(STILLS):
            decoded = (sampler.codec.decode(state).cpu() for state in (moment.x, moment.x0))
            yield Still(moment.t, moment.x.cpu(), moment.x0.cpu(), *decoded)
