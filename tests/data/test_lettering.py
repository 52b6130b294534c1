"""Sheets with labels: whose rows are whose, in letters that can be read."""

import numpy as np
import pytest
import torch
from PIL import Image

from unfog.data import lettering
from unfog.data.lettering import labelled_sheet, readable
from unfog.data.modality import arrays, images, points


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Łódź, über, кошка, αβ", "Łódź, über, кошка, αβ"),
        ("花 한글 🌷", "[U+82B1] [han][geul] [tulip]"),
        ("a\n\tb\x1b[31m\u202e\ud800", "a b[31m"),
        ("e\u0301", "é"),
        ("x" * 500, "x" * 400 + "…"),
    ],
)
def test_no_character_becomes_a_box(text: str, shown: str) -> None:
    assert readable(text) == shown


@pytest.mark.parametrize("classes", [3, 62, 200])
def test_each_class_has_its_own_block(classes: int) -> None:
    """Its pictures stand in one row, and the label at their left."""
    numbers = torch.arange(2 * classes).remainder(classes)
    colours = torch.stack([numbers, 255 - numbers, torch.full_like(numbers, 7)], 1).to(torch.uint8)
    samples = colours[:, :, None, None].expand(-1, 3, 8, 8)
    drawn = np.asarray(images.labelled(samples, [f"class {number}" for number in numbers.tolist()]))
    packed = drawn.astype(np.int64) @ (1 << 16, 1 << 8, 1)
    for colour in colours[:classes].numpy():
        down, right = np.nonzero(packed == colour.astype(np.int64) @ (1 << 16, 1 << 8, 1))
        assert len(down) == 2 * 48**2
        assert (np.ptp(down), np.ptp(right)) == (47, 48 + 6 + 47)  # two pictures of 8 pixels, sixfold, side by side
        label = drawn[down.min() : down.max(), right.min() - 50 : right.min() - 8]
        assert (label.min() < 60, label.max()) == (True, 255)
    assert max(drawn.shape[:2]) < 2.5 * min(drawn.shape[:2])


def test_a_block_alone_is_a_square_below_its_label() -> None:
    drawn = images.labelled(torch.zeros(16, 1, 8, 8, dtype=torch.uint8), ["a very small cat"] * 16, "seed 3")
    assert drawn.width == 4 * 54 + 6
    assert 4 * 54 + 20 < drawn.height < 4 * 54 + 50
    assert images.labelled(torch.zeros(16, 1, 8, 8, dtype=torch.uint8), [""] * 16).size == (222, 222)


def test_long_labels_end_in_an_ellipsis_and_leave_the_pictures_alone() -> None:
    cells = [Image.new("RGB", (60, 60), "red")]
    for label in ("word " * 300, "w" * 300, "花" * 300):
        drawn = np.asarray(labelled_sheet([(label, cells), ("b", cells)]))
        assert drawn.shape[1] < 260
        assert (drawn == [255, 0, 0]).all(-1).sum() == 2 * 60 * 60


def test_floats_are_on_one_scale_in_all_blocks() -> None:
    samples = torch.tensor([0.0, 1.0, 0.0, 0.5])[:, None, None, None].expand(-1, 1, 8, 8)
    drawn = np.asarray(arrays.labelled(samples, ["a", "b", "a", "c"]))
    assert ((drawn == 128).all(-1).sum(), (drawn == 0).all(-1).sum() >= 2 * 48**2) == (48**2, True)


def test_points_have_a_panel_for_each_class() -> None:
    one = points.labelled(torch.zeros(4, 2), ["a"] * 4, "seed 0")
    two = points.labelled(torch.zeros(4, 2), ["a", "b", "a", "b"], "seed 0")
    assert (one.width, two.height > 400) == (480, True)


def test_usual_characters_are_in_the_font() -> None:
    """They are taken to be without a look at the font, which would import matplotlib."""
    assert lettering._letters() >= lettering.USUAL
    assert readable("Ærøskøbing · 20 × 3 …") == "Ærøskøbing · 20 × 3 …"
