"""Texts as rows of characters: what such a row is, and how characters become vectors."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Self, final

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from unfog.data.codecs import Unlearned
from unfog.data.lettering import font_of, readable
from unfog.data.modality import Modality
from unfog.data.pictures import UnreadableError, tile
from unfog.data.source import Data
from unfog.runtime.errors import UserError
from unfog.runtime.files import write_whole

END, GAP = 0, 0x2591
"""Code points of what follows a text in its row, and of a place that is not known, ░."""
ACROSS, LETTER, LINE = 64, 7, 15
"""Letters on a line of a sheet, and the pixels of a letter and of a line."""
PORTION = 1 << 14
"""Rows in which an alphabet is looked for at a time."""


def codes(texts: list[str], length: int) -> Tensor:
    """Return texts as code points, int32 `(texts, 1, length)`, each followed by ends; longer ones are cut."""
    rows = np.zeros((len(texts), 1, length), dtype=np.int32)
    for row, text in zip(rows, texts, strict=True):
        points = [ord(sign) for sign in text[:length]]
        row[0, : len(points)] = points
    return torch.from_numpy(rows)


def text_of(row: Tensor) -> str:
    """Return a row of code points, `(1, length)`, as a text: what stands before the first end."""
    points = row.flatten().tolist()
    return "".join(map(chr, points[: points.index(END)] if END in points else points))


def alphabet_of(data: Data) -> str:
    """Return the characters of a data set in the order of their code points, without the end."""
    points: set[int] = set()
    for part in data:
        for rows in np.array_split(np.arange(len(part)), -(-len(part) // PORTION)):
            points |= set(torch.unique(part.take(rows).x).tolist())
    return "".join(map(chr, sorted(points - {END})))


@final
@dataclass(frozen=True)
class Texts(Modality):
    """Texts, int32 code points `(1, length)`: a `.txt` each in UTF-8. A text that is shorter ends in zeros."""

    name: ClassVar[str] = "texts"
    suffix: ClassVar[str] = ".txt"
    suffixes: ClassVar[frozenset[str]] = frozenset({".txt"})
    axes: ClassVar[tuple[str, ...]] = ("channel", "character")

    def describe(self, shape: tuple[int, ...]) -> str:
        """Return the texts with their length."""
        return f"texts of up to {shape[-1]} characters"

    def sheet(self, samples: Tensor, columns: int, side: int | None = None) -> Image.Image:
        """Write texts below each other; long ones take several lines."""
        length = samples.shape[-1]
        across, lines = min(length, ACROSS), -(-length // ACROSS)
        font = font_of(12)
        cells = []
        for row in samples:
            cell = Image.new("RGB", (LETTER * across + 8, LINE * lines + 4), "white")
            draw, shown = ImageDraw.Draw(cell), text_of(row)
            for place in range(lines):
                draw.text((4, 2 + LINE * place), readable(shown[place * across : (place + 1) * across]), "black", font)
            cells.append(torch.from_numpy(np.asarray(cell).transpose(2, 0, 1).copy()))
        return tile(torch.stack(cells), max(1, min(columns, 3 * ACROSS // (2 * across))))

    def write(self, samples: Tensor, path: Path) -> None:
        """Write a text file."""
        write_whole(path, text_of(samples[0]).encode("utf-8", "surrogatepass"))

    def read(self, path: Path, shape: tuple[int, ...]) -> Tensor:
        """Return the row of a text file."""
        try:
            with path.open("rb") as file:
                text = file.read(4 * shape[-1] + 1).decode("utf-8", "surrogatepass")
        except (OSError, UnicodeDecodeError) as error:
            raise UnreadableError(str(error)) from error
        if len(text) > shape[-1]:
            raise UnreadableError(f"it has more than {shape[-1]} characters")
        return codes([text], shape[-1])


texts = Texts()


def lines_of(modality: Modality, samples: Tensor) -> list[str]:
    """Return rows as texts where they are texts, else nothing."""
    return [text_of(row) for row in samples] if modality == texts else []


@dataclass(frozen=True)
class Characters(Unlearned):
    """Code points to x0, a one for each place at its character and zeros elsewhere, `(characters, length)`.

    Places of zeros alone are not known: they decode to ░.

    Attributes:
        alphabet: The characters of the data, without the end, which stands before them; filled in from the data.
    """

    alphabet: str = ""
    bounds: tuple[float, float] | None = field(default=None, init=False)
    bin_width: float | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        """Check that no character stands twice."""
        if len(set(self.alphabet)) < len(self.alphabet) or {chr(END), chr(GAP)} & set(self.alphabet):
            raise UserError("codec.alphabet must hold each character once, and neither U+0000 nor ░")

    def fitted(self, data: Data, modality: Modality) -> Self:
        """Return it with the alphabet of the data, if it has none yet."""
        return self if self.alphabet else replace(self, alphabet=alphabet_of(data))

    def shape(self, stored: tuple[int, ...]) -> tuple[int, ...]:
        """Return (characters and the end, length)."""
        return (1 + len(self.alphabet), stored[-1])

    def encode(self, x: Tensor) -> Tensor:
        """Map code points, `(batch, 1, length)`, to ones and zeros, float32 `(batch, characters, length)`.

        Raises: UserError: For a character that the alphabet lacks.
        """
        known = torch.tensor([END, *map(ord, self.alphabet)], device=x.device)
        order = known.argsort()
        places = torch.searchsorted(known[order], x[:, 0].long().contiguous()).clamp(max=len(known) - 1)
        numbers = order[places]
        gaps = x[:, 0] == GAP
        if not bool((gaps | (known[numbers] == x[:, 0])).all()):
            strange = x[:, 0][~gaps & (known[numbers] != x[:, 0])]
            shown = " ".join(repr(chr(int(point))) for point in torch.unique(strange)[:5])
            raise UserError(f"the model does not know the character {shown}: use those of its data")
        ones = torch.nn.functional.one_hot(numbers, len(known)) * ~gaps[..., None]
        return ones.transpose(1, 2).float()

    def decode(self, z: Tensor) -> Tensor:
        """Map each place to the character of its largest number, or to ░ where all are 0; ends follow an end."""
        known = torch.tensor([END, *map(ord, self.alphabet)], dtype=torch.int32, device=z.device)
        gaps, found = (z == 0).all(1), known[z.argmax(1)]
        ended = ((found == END) & ~gaps).cummax(1).values
        return torch.where(gaps, GAP, found.masked_fill(ended, END))[:, None].to(torch.int32)
