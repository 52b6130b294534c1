"""How well encoders of pictures and texts find what belongs together, on held-out rows."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from unfog.evaluation.intervals import Interval, of_mean, plain
from unfog.evaluation.judge import spread
from unfog.recipes.conditions import captions
from unfog.recipes.encoders import encoder
from unfog.runs.data import Changed, moved, read_data
from unfog.runs.reading import read_recipe
from unfog.runtime.brief import brief
from unfog.runtime.errors import UserError
from unfog.runtime.files import write_whole
from unfog.runtime.lines import lines_of
from unfog.runtime.progress import working
from unfog.runtime.provenance import provenance
from unfog.training.objectives.contrastive import exchanged

AMONG, ROWS = 100, 2000
"""Captions, or pictures, among which one is sought; and held-out rows, at most, by default."""


@dataclass(frozen=True)
class Retrieval:
    """Shares of held-out rows that are found again, and cosines of embeddings.

    Attributes:
        rows: Number of rows.
        among: Rows among which one is sought.
        chance: Share of rows that would be found by chance, where equal captions count as one.
        caption: Share of pictures whose nearest caption is their own, with its 95 % interval.
        picture: Share of captions whose nearest picture has them, with its 95 % interval.
        detail: Share of pictures nearer to their caption than to the same with one word exchanged, with its 95 %
            interval; None where no word can be.
        matched: Mean cosine of a picture and its caption.
        others: Mean cosine of a picture and another one's caption.
        pictures: Mean cosine of two pictures.
    """

    rows: int
    among: int
    chance: float
    caption: tuple[float, Interval]
    picture: tuple[float, Interval]
    detail: tuple[float, Interval] | None
    matched: float
    others: float
    pictures: float

    __repr__ = brief

    def table(self) -> str:
        """Return the figures as text."""
        found = [
            f"{name:<34} {shares[0]:6.1%}   [{shares[1][0]:.1%}, {shares[1][1]:.1%}]"
            for name, shares in (
                (f"its caption, of {self.among}", self.caption),
                (f"its picture, of {self.among}", self.picture),
                ("not a caption off by a word", self.detail),
            )
            if shares is not None
        ]
        words = (
            f"{self.rows:,} held-out rows; by chance {self.chance:.1%}. Equal captions count as one. Cosines: "
            f"{self.matched:.2f} of a picture and its caption, {self.others:.2f} of a picture and another caption, "
            f"{self.pictures:.2f} of two pictures."
        )
        return "\n".join(["found first", *found, "", *lines_of(words)])

    def write(self, folder: Path) -> None:
        """Write evaluation.json."""
        names = ("rows", "among", "chance", "caption", "picture", "detail", "matched", "others", "pictures")
        scores = {name: plain(getattr(self, name)) for name in names}
        write_whole(folder / "evaluation.json", json.dumps({"measured": plain(provenance()), **scores}).encode())


def retrieval(
    path: Path, count: int | None = None, *, data: str | None = None, changed: Changed = "warn", console: Console
) -> Retrieval:
    """Measure the encoders of a run folder on held-out rows, in groups of at most 100.

    Args:
        path: The run folder.
        count: Rows, at most; default: 2,000.
        data: Folder of the data, if it was moved.
        changed: What to do where the data are not those of the training.
        console: Shows the progress.

    Raises: UserError: If it holds no encoders, or its data hold out fewer than two rows.
    """
    recipe, rows = read_data(path, moved(read_recipe(path), data), changed)
    found, held = encoder(path, "the run"), rows.heldout
    most = min(ROWS if count is None else count, len(held))
    if most < 2:
        raise UserError(f"{len(held)} held-out rows are too few: 2 or more are needed")
    among = min(AMONG, most)
    groups = [spread(most, len(held))[number :: most // among][:among] for number in range(most // among)]
    ranks: list[tuple[Tensor, Tensor]] = []
    cosines, chances, details = [], [], []
    with working("embeddings", len(groups), console=console) as work:
        for places in groups:
            batch = held.take(np.sort(places))
            texts = captions(batch, recipe.classes)
            words = found.words(texts)
            off = exchanged(words, (torch.arange(among) + 0.5) / among)
            parts = found.pictures(batch.x), found.written(words), found.written(off)
            one, other, wrong = (x / found.dim**0.5 for x in parts)
            nearer = (one * other).sum(1) > (one * wrong).sum(1)
            details += nearer[(off != words).any(1)].tolist()
            ranks.append(found_first(one @ other.T, texts))
            cosines.append(means(one, other))
            chances += [texts.count(text) / among for text in texts]
            work.advance(1)
    total = among * len(groups)
    hits = [torch.cat([rank[side] for rank in ranks]).double().numpy() for side in range(2)]
    shares = [(float(hit.mean()), of_mean(hit)) for hit in hits]
    detail = (float(np.mean(details)), of_mean(np.array(details, dtype=np.float64))) if len(details) > 1 else None
    matched, others, pictures = np.mean(cosines, 0).tolist()
    chance = float(np.mean(chances))
    return Retrieval(total, among, chance, shares[0], shares[1], detail, matched, others, pictures)


def found_first(cosines: Tensor, texts: list[str]) -> tuple[Tensor, Tensor]:
    """Return for which pictures the nearest caption is theirs, and for which captions the nearest picture has them.

    Args:
        cosines: Of pictures and captions, `(rows, rows)`.
        texts: The captions.
    """

    def right(nearest: Tensor) -> Tensor:
        return torch.tensor([texts[place] == texts[best] for place, best in enumerate(nearest.tolist())])

    return right(cosines.argmax(1)), right(cosines.argmax(0))


def means(pictures: Tensor, texts: Tensor) -> list[float]:
    """Return the mean cosines of pictures with their captions, with others, and with each other."""
    across, among = pictures @ texts.T, pictures @ pictures.T
    apart = ~torch.eye(len(pictures), dtype=torch.bool)
    return [float(across.diagonal().mean()), float(across[apart].mean()), float(among[apart].mean())]
