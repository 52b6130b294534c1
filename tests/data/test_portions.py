"""Parts of data sets, and stacked pictures."""

import numpy as np
import pytest
import torch

from unfog.data.classic import digits
from unfog.data.portions import portion
from unfog.data.source import Data, InMemory
from unfog.data.stacked import modes, stacked
from unfog.recipes.portions import Portion, Stacked
from unfog.recipes.presets import recipe
from unfog.recipes.recipe import Recipe
from unfog.recipes.sources import CaptionedShapes, Tones
from unfog.runtime.errors import UserError


def rows(count: int, classes: int = 4, labelled: bool = True) -> InMemory:
    """Rows that are their numbers."""
    x = torch.arange(count).reshape(-1, 1, 1, 1)
    labels = torch.arange(count) % classes if labelled else None
    return InMemory(x, labels, tuple(map(str, range(classes))))


def test_a_share_of_the_training_rows() -> None:
    data = Data(rows(1000), rows(100))
    train, heldout = portion(data, 0.25)
    assert len(train) == 250
    assert len(heldout) == 100
    kept = train.take(np.arange(250)).x.flatten()
    assert (kept.diff() > 0).all()  # each once, in their order
    assert 300 < kept.float().mean() < 700  # from all over
    assert torch.equal(kept, portion(data, 0.25).train.take(np.arange(250)).x.flatten())
    smaller = set(portion(data, 0.1).train.take(np.arange(100)).x.flatten().tolist())
    assert smaller < set(kept.tolist())  # a smaller share is a part of a larger one


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_proportions_of_the_classes(share: float) -> None:
    data = Data(rows(1000), rows(100))
    train, heldout = portion(data, share, (0.9, 0.1, 0, 0))
    for part, most in ((train, round(250 / 0.9) * share), (heldout, round(25 / 0.9))):
        labels = part.about(np.arange(len(part))).labels
        assert labels is not None
        counts = np.bincount(labels.numpy())
        assert len(part) == pytest.approx(most, abs=1)
        assert counts[1] / counts.sum() == pytest.approx(0.1, abs=0.05)
        assert len(counts) == 2


def test_classes_that_are_left_out_are_unknown() -> None:
    data = Data(rows(1000), rows(100))
    train, heldout = portion(data, 1.0, (0, 1, 0, 3))
    assert train.classes == heldout.classes == ("1", "3")
    batch = train.take(np.arange(len(train)))
    assert batch.labels is not None
    assert torch.equal(batch.labels, (batch.x.flatten() % 4 == 3).long())
    assert float(batch.labels.float().mean()) == pytest.approx(0.75, abs=0.01)
    assert portion(data, 1.0, (1, 1, 1, 3)).train.classes == data.train.classes


@pytest.mark.parametrize(
    ("share", "classes", "labelled", "words"),
    [
        (0.0, (), True, "above 0 and up to 1"),
        (1.5, (), True, "above 0 and up to 1"),
        (0.0001, (), True, "leaves none"),
        (1.0, (1.0, 1.0), True, "must be 4 proportions"),
        (1.0, (1.0, 1.0, -1.0, 0.0), True, "0 or more"),
        (1.0, (0.0, 0.0, 0.0, 0.0), True, "not all 0"),
        (1.0, (1.0, 1.0, 0.0, 0.0), False, "one class each"),
    ],
)
def test_what_leaves_nothing_is_refused(share: float, classes: tuple[float, ...], labelled: bool, words: str) -> None:
    with pytest.raises(UserError, match=words):
        portion(Data(rows(1000, labelled=labelled), rows(100, labelled=labelled)), share, classes)


def test_stacked_pictures_are_three_of_one_part_each() -> None:
    found = stacked(Data(rows(1000), rows(100)), 500, 50)
    assert (len(found.train), len(found.heldout), found.train.shape) == (500, 50, (3, 1, 1))
    x = found.train.take(np.arange(500)).x
    assert x.max() > 900
    assert found.heldout.take(np.arange(50)).x.max() < 100
    assert not torch.equal(x[:, 0], x[:, 1])
    assert torch.equal(x, stacked(Data(rows(1000), rows(100)), 500, 50).train.take(np.arange(500)).x)
    with pytest.raises(UserError, match="one channel"):
        stacked(CaptionedShapes(100).build())
    with pytest.raises(UserError, match="1 or more"):
        stacked(Data(rows(1000), rows(100)), 0)


def test_modes_are_the_combinations_that_are_reached() -> None:
    read = [np.array([0, 0, 1, 1]), np.array([0, 0, 0, 1]), np.array([2, 2, 2, 2])]
    assert modes(read, 3) == 3
    assert modes(read[::-1], 3) == 3
    every = np.array([(a, b, c) for a in range(3) for b in range(3) for c in range(3)]).T
    assert modes(list(every), 3) == 27


def test_as_parts_of_a_recipe() -> None:
    """They are read from JSON, and a plan of them is that of any data."""
    own = recipe("digits").set("data=portion", 'data.rows={"kind": "digits"}', "data.share=0.5")
    assert own.data == Portion(share=0.5)
    assert Recipe.from_json(own.to_json()) == own
    assert len(own.data.build().train) == round(0.5 * len(digits().train))
    assert own.data.computed
    assert Portion(Tones()).modality == Tones.modality
    assert Portion().modality is None  # pictures say what they are by their shape
    assert Stacked(count=10).build().train.shape == (3, 8, 8)
    assert Stacked(CaptionedShapes()).looked() == Stacked(CaptionedShapes())
