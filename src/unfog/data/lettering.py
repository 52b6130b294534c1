"""Words on pictures: sheets whose rows carry a label, in letters that the font has.

The font is DejaVu Sans, which comes with matplotlib: it has Latin, Greek, Cyrillic, Hebrew, Arabic and many signs,
where that of Pillow has not even an é. A character that it lacks is spelled out, so that none becomes an empty box.
"""

import math
import re
import unicodedata
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

LONGEST = 400
"""Characters of a text that are looked at: names of classes and prompts may come from strangers."""
COLUMNS = 16
"""Cells of a block side by side, at most, where there are several blocks."""
MOST = 32
"""Columns of blocks that are tried, at most."""
USUAL = frozenset([*range(32, 127), *range(161, 384), *map(ord, "·×…–—")])
"""Some characters that the font has, so that matplotlib need not be imported to ask for them."""
WIDEST = 180
"""Pixels in the width of a label, at most, unless the cells are large."""
PAD = 4
"""Pixels around a text."""


def readable(text: str) -> str:
    """Return a text on one line, in letters that the font has; others are spelled out in brackets, as in "[tulip]"."""
    known, signs = USUAL if USUAL.issuperset(map(ord, text)) else _letters(), []
    for sign in " ".join(unicodedata.normalize("NFC", text[:LONGEST]).split()):
        if ord(sign) in known and sign.isprintable():
            signs.append(sign)
        elif sign.isprintable() and unicodedata.category(sign) != "Mn":  # marks only change the sign before them
            signs.append(f"[{spelled(sign)}]")
    return "".join(signs) + ("…" if len(text) > LONGEST else "")


def spelled(sign: str) -> str:
    """Return the name of a character as short as one knows it, for instance "tulip" or "han", else its number."""
    name = unicodedata.name(sign, "CJK")
    if name.startswith("CJK"):  # whose names are but their numbers
        return f"U+{ord(sign):04X}"
    return re.sub(r"^.*\b(?:LETTER|SYLLABLE|VOWEL SIGN) ", "", name).lower()


def labelled_sheet(
    blocks: Sequence[tuple[str, Sequence[Image.Image]]], gap: int = 0, title: str = "", stacked: bool = False
) -> Image.Image:
    """Lay cells out in blocks: a label at the left, and to its right what it names.

    Blocks stand below each other, in as many columns as bring the sheet near to a square. The label of a block that is
    alone joins the title, and its cells form a square.

    Args:
        blocks: For each the label, empty for none, and at least one cell; all cells have one size.
        gap: Pixels by which the frames of cells overlap.
        title: A line above all; longer ones are wrapped.
        stacked: Keep the blocks in one column.
    """
    cell = blocks[0][1][0].size
    if len(blocks) == 1 and not stacked:
        title, cells = " · ".join(part for part in (blocks[0][0], title) if part), blocks[0][1]
        across = max(1, round((len(cells) * cell[1] / cell[0]) ** 0.5))
        return _titled(_grid(cells, min(across, len(cells)), gap), title)
    font = font_of(min(max(12, cell[1] // 4), 20))
    labels = [_wrapped(label, font, max(WIDEST, cell[0]), cell[1] - 2 * PAD) for label, _ in blocks]
    beside = max((round(font.getlength(line)) for lines in labels for line in lines), default=-2 * PAD) + 2 * PAD
    counts = [len(cells) for _, cells in blocks]
    across, columns = _arranged(counts, beside, cell[0] - gap, cell[1] - gap, stacked)
    pictures = [_grid(cells, across, gap) for _, cells in blocks]
    wide = beside + across * (cell[0] - gap) + gap + (PAD if beside else 0)
    tall = max(sum(pictures[place].height + 2 for place in column) for column in columns)
    sheet = Image.new("RGB", (wide * len(columns), tall), "white")
    draw = ImageDraw.Draw(sheet)
    for number, column in enumerate(columns):
        top = 0
        for place in column:
            sheet.paste(pictures[place], (number * wide + beside, top))
            _write(draw, (number * wide, top, beside, cell[1]), labels[place], font)
            top += pictures[place].height + 2
    return _titled(sheet, title)


def _arranged(counts: list[int], beside: int, wide: int, tall: int, stacked: bool) -> tuple[int, list[list[int]]]:
    """Return how many cells stand side by side, and the blocks of each column: what comes nearest to a small square.

    That few blocks go on in a second row counts little, that many do counts much.

    Args:
        counts: Cells of each block.
        beside: Width of a label.
        wide: Width of a cell.
        tall: Its height.
        stacked: Whether there is one column.
    """
    longest = min(COLUMNS, max(counts))
    if stacked:
        return longest, [list(range(len(counts)))]
    best = (math.inf, longest, [list(range(len(counts)))])
    for across in range(longest, 0, -1):
        rows = [-(-count // across) for count in counts]
        broken = sum(count > across for count in counts) / len(counts) if across < longest else 0
        for columns in range(1, min(len(counts), MOST) + 1):
            found = _columns(rows, max(max(rows), -(-sum(rows) // columns)))
            height = max(sum(rows[place] for place in column) for column in found)
            side = (1 + broken) * max(len(found) * (beside + across * wide), height * tall)
            best = min(best, (side, across, found), key=lambda one: one[0])
    return best[1:]


def _columns(rows: list[int], most: int) -> list[list[int]]:
    """Return blocks in columns of at most so many rows, in their order."""
    columns: list[list[int]] = [[]]
    height = 0
    for place, row in enumerate(rows):
        if height + row > most:
            columns.append([])
            height = 0
        columns[-1].append(place)
        height += row
    return columns


def _grid(cells: Sequence[Image.Image], across: int, gap: int) -> Image.Image:
    """Lay cells out row by row, white where there are none."""
    width, height = cells[0].size
    down, across = -(-len(cells) // across), min(across, len(cells))
    picture = Image.new("RGB", (across * (width - gap) + gap, down * (height - gap) + gap), "white")
    for place, cell in enumerate(cells):
        row, column = divmod(place, across)
        picture.paste(cell, (column * (width - gap), row * (height - gap)))
    return picture


def _titled(picture: Image.Image, title: str) -> Image.Image:
    """Return a picture below its title."""
    font = font_of(14)
    width = max(picture.width, min(400, round(font.getlength(readable(title))) + 2 * PAD)) if title else picture.width
    lines = _wrapped(title, font, width - 2 * PAD, 4 * _line(font))
    if not lines:
        return picture
    above = len(lines) * _line(font) + 2 * PAD
    whole = Image.new("RGB", (width, above + picture.height), "white")
    whole.paste(picture, (0, above))
    _write(ImageDraw.Draw(whole), (0, 0, width, above), lines, font)
    return whole


def _write(
    draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int], lines: list[str], font: ImageFont.FreeTypeFont
) -> None:
    """Write lines into a box, `(left, top, width, height)`, half-way up."""
    left, top, _, height = box
    first = top + max(0, (height - len(lines) * _line(font)) // 2)
    for row, line in enumerate(lines):
        draw.text((left + PAD, first + row * _line(font)), line, fill="black", font=font)


def _wrapped(text: str, font: ImageFont.FreeTypeFont, width: int, height: int) -> list[str]:
    """Return a text in lines that fit into a box; the last one ends in an ellipsis where there is more."""
    lines: list[str] = []
    words, most = readable(text).split(), max(1, height // _line(font))
    while words:
        word = words.pop(0)
        joined = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(joined) <= width:
            lines[-1] = joined
        elif len(lines) == most:
            lines[-1] = _cut(f"{lines[-1]} {word}…", font, width)
            return lines
        else:
            kept = _cut(word, font, width) if len(lines) + 1 == most else _begun(word, font, width)
            lines.append(kept)
            if len(kept) < len(word) and len(lines) < most:
                words.insert(0, word[len(kept) :])
    return lines


def _begun(word: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """Return as much of a word as fits."""
    return next((word[:end] for end in range(len(word), 1, -1) if font.getlength(word[:end]) <= width), word[:1])


def _cut(line: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """Return a line that fits, with an ellipsis where something is missing."""
    if font.getlength(line) <= width:
        return line
    fits = (f"{line[:end].rstrip(' …')}…" for end in range(len(line) - 1, 0, -1))
    return next((one for one in fits if font.getlength(one) <= width), "…")


def _line(font: ImageFont.FreeTypeFont) -> int:
    """Return the height of a line."""
    return round(1.2 * font.size)


@cache
def _file() -> Path:
    """Return where the font is."""
    found = find_spec("matplotlib")  # not imported, which takes a fifth of a second
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"


@cache
def font_of(size: int) -> ImageFont.FreeTypeFont:
    """Return the font in a size, in pixels."""
    return ImageFont.truetype(_file(), size)


@cache
def _letters() -> frozenset[int]:
    """Return the characters that the font has."""
    from matplotlib.ft2font import FT2Font

    return frozenset(FT2Font(str(_file())).get_charmap())
