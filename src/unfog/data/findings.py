"""What an inspection can find: the kinds of findings, and pictures that are like others."""

from collections.abc import Mapping

import numpy as np
import torch
from PIL import Image, ImageOps

from unfog.data.alike import look_at
from unfog.data.heldout import FRAMED, contradictions, remarks
from unfog.data.listing import Listing
from unfog.data.pictures import Pixels
from unfog.data.text import WORDS

FINDINGS = {
    "unreadable": "training skips them; replace or remove them",
    "truncated": "their header is intact, but pixels are missing or damaged, so training skips them; get them again",
    "channels": "their number of channels differs from the data set's, so training skips them; convert or remove them",
    "duplicate": "the same pixels as another image; keep one, else training data leaks into the held-out part",
    "two labels": "the same picture as one with another label; correct one of them",
    "alike": "near-duplicates of another image (resized, recoded, mirrored, cropped); they are trained on together, or "
    "held out together",
    "border": f"a border of one colour, {FRAMED}",
    "constant": "a single colour; remove them, unless they are intended",
    "small": "half the suggested size or less, so upscaling blurs them",
    "long": "centre-cropping removes more than half; crop them yourself, or train with data.buckets=4",
    "bad line": "invalid lines of the metadata; correct them",
    "repeated": "listed more than once in the metadata; the last line is used",
    "orphaned": "listed in the metadata, but missing; add the files or remove the lines",
    "unused": "found, but not used",
    "long text": f"captions of more than {WORDS - 1} words; text-to-image ignores the rest; shorten them, or set "
    "conditioning.length",
    "no label": "without the 'label' that other lines have; set it in all lines or none",
    "no text": "without the 'text' that other lines have; set it in all lines or none",
    "no values": "without the 'values' that other lines have; set them in all lines or none",
    "empty text": "captions without words; describe the images",
    "few": "classes with fewer than 5 images, or than a tenth of the largest class; add images, or drop the class",
    "rotated": "rotated by their EXIF orientation; unfog applies it, other programs may not",
    "odd": "unusual format, mode, size or aspect ratio",
}
"""Kinds of findings, and what each means for training."""
NOTES = frozenset({"alike", "border", "rotated", "odd"})
"""Kinds that are not faults."""
COMPARED = 32
"""Side to which images are reduced in which near-duplicates are sought."""


def reduced(pixels: Pixels) -> Pixels:
    """Return a picture at a small size, cropped to a square as in training."""
    picture = ImageOps.fit(Image.fromarray(pixels.transpose(1, 2, 0)), (COMPARED, COMPARED), Image.Resampling.LANCZOS)
    return np.asarray(picture).transpose(2, 0, 1)


def compare(
    listing: Listing, small: Mapping[str, Pixels], found: dict[str, dict[str, str]]
) -> tuple[tuple[str, ...], bool]:
    """Record near-duplicates, double labels and borders among what training uses, and return what else there is to say.

    Returns: Sentences, and whether all pictures are grey, though saved in colour.
    """
    rows = [row for row, name in enumerate(listing.files) if name in small]
    names = [listing.files[row] for row in rows]
    look = look_at(torch.from_numpy(np.stack([small[name] for name in names]))) if rows else None
    if look is None:
        return (), False
    for one, other in zip(look.pairs.first.tolist(), look.pairs.second.tolist(), strict=True):
        if names[other] not in found["duplicate"]:  # both, side by side on the sheet, and counted as training does
            found["alike"].setdefault(names[one], f"like {names[other]}")
            found["alike"].setdefault(names[other], f"like {names[one]}")
    found["two labels"] = contradictions(listing, rows, look)
    found["border"] = {names[row]: "" for row in look.framed} if 2 * len(look.framed) < len(names) else {}
    return remarks(look, len(listing.files)), look.grey
