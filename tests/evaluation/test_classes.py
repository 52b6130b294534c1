"""Scores by class: the table of confusions against other computations, planted failures, and many classes."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import confusion_matrix, recall_score
from torch import Tensor

from unfog.data.classic import digits
from unfog.data.codecs import Pixels
from unfog.data.source import Data, InMemory
from unfog.evaluation import classifier
from unfog.evaluation.classes import Classes, by_class
from unfog.evaluation.distances import kernel_distance
from unfog.evaluation.judge import Judge
from unfog.evaluation.report import evaluate_run, table, to_json
from unfog.runs.run import load
from unfog.runtime.files import parse_json

MANY = 62


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge(digits(), Pixels(), 1000)


def glyphs(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Noisy pictures of 62 shapes, in turn."""
    shapes = torch.randint(0, 256, (MANY, 1, 8, 8), generator=torch.Generator().manual_seed(0)).float()
    labels = torch.arange(count) % MANY
    noise = 90 * torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    return (shapes[labels] + noise).clamp(0, 255).to(torch.uint8), labels


@pytest.fixture(scope="module")
def many() -> Iterator[Judge]:
    """Of 62 classes with odd names, after so little training that it confuses many."""
    names = ("\x1b[31mred", "$\\frac", "a name that is much too long for a table", *map(str, range(3, MANY)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifier, "EPOCHS", 0)
        patch.setattr(classifier, "STEPS", 60)
        data = Data(*(InMemory(*glyphs(620, seed), names) for seed in (1, 2)))
        yield Judge(data, Pixels(), 620)


@pytest.fixture(scope="module")
def crowd(many: Judge) -> tuple[Tensor, Tensor, Classes]:
    x, labels = glyphs(930, 3)
    found = by_class(many, x, labels)
    assert found is not None
    return x, labels, found


def test_the_table_of_confusions_is_that_of_another_computation(
    many: Judge, crowd: tuple[Tensor, Tensor, Classes]
) -> None:
    x, labels, found = crowd
    assert many.classifier is not None
    assert many.heldout.labels is not None
    with torch.no_grad():
        read, real = (many.classifier.network(many.codec.encode(part)).argmax(1) for part in (x, many.heldout.x))
    expected = confusion_matrix(labels, read, labels=range(MANY))
    assert (expected - np.diag(np.diag(expected))).sum() > 100  # so that rows and columns cannot be exchanged unseen
    assert np.array_equal(found.confusion, expected)
    assert np.array_equal(found.real, confusion_matrix(many.heldout.labels, real, labels=range(MANY)))
    for parts, ends in ((labels, read), "value"), ((many.heldout.labels, real), "floor"):
        shares = recall_score(*parts, average=None)
        assert [getattr(one.adherence, ends) for one in found.each] == pytest.approx(list(shares))
    assert [one.n for one in found.each] == [15] * MANY
    first = found.confusions()[0]
    assert expected[first] == (expected - np.diag(np.diag(expected))).max()


def test_many_classes_are_shown_by_the_worst(crowd: tuple[Tensor, Tensor, Classes], tmp_path: Path) -> None:
    """In a table that fits, with names that do nothing to a terminal; the whole is in the picture."""
    found = crowd[2]
    text = found.text()
    assert "the 8 worst of 62 classes" in text
    assert max(map(len, text.splitlines())) <= 100
    asked, read = found.confusions()[0]
    counts = np.array(found.confusion)
    names = [name if len(name) < 9 else "…" for name in found.names]
    if "…" not in (names[asked], names[read]):
        assert f"{names[asked]} read as {names[read]}: {counts[asked, read]} of 15 samples" in text
    assert all(line.isprintable() for line in text.splitlines())
    found.draw(tmp_path / "confusion.png")
    with Image.open(tmp_path / "confusion.png") as picture:
        assert min(picture.size) > 500


def test_a_class_that_fails_is_named(judge: Judge) -> None:
    """Held-out fives and eights where threes and ones were asked for, all else real."""
    labels = judge.heldout.labels
    assert labels is not None
    asked = torch.where(labels == 5, 3, torch.where(labels == 8, 1, labels))
    found = by_class(judge, judge.heldout.x, asked)
    assert found is not None
    assert found.confusion is not None
    assert found.confusion[3][5] > 30
    assert set(found.confusions()[:2]) == {(3, 5), (1, 8)}
    assert {one.name for one in found.worst()[:2]} == {"3", "1"}
    three, zero = found.each[3], found.each[0]
    assert three.distance is not None
    assert zero.distance is not None
    assert three.distance.value > 5 * max(three.distance.floor, 0.05)
    assert zero.distance.value == zero.distance.floor
    own = judge.features(judge.train.x)[judge.train.labels == 0]
    assert zero.distance.value == pytest.approx(kernel_distance(judge.heldout_features[labels == 0], own).value)
    assert zero.recall is not None
    assert zero.recall.value == zero.recall.floor > 0.8 > 0.2 > zero.recall.ceiling
    lines = found.text().splitlines()
    assert lines[4].split()[:2] == ["3", str(three.n)]  # below the head
    assert any(line.split()[0] == "3" and str(found.confusion[3][5]) in line for line in lines[12:])


def test_labels_of_which_several_hold_are_scored_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifier, "EPOCHS", 0)
    monkeypatch.setattr(classifier, "STEPS", 20)
    x, labels = glyphs(400, 1)
    both = torch.stack([labels % 2 == 0, labels % 3 == 0], 1)
    judge = Judge(
        Data(InMemory(x, both, ("even", "third")), InMemory(x[:200], both[:200], ("even", "third"))), Pixels(), 200
    )
    found = by_class(judge, x, both)
    assert found is not None
    assert found.confusion is None
    assert judge.classifier is not None
    with torch.no_grad():
        read = judge.classifier.network(judge.codec.encode(x)) > 0
    assert [one.adherence.value for one in found.each] == pytest.approx(
        [float(read[both[:, place], place].float().mean()) for place in range(2)]
    )
    assert "read as asked" in found.text()
    assert by_class(judge, x, None) is None


def test_an_evaluation_names_its_classes(judge: Judge, digits_run: Path) -> None:
    found = evaluate_run(load(digits_run, "cpu"), judge, 359, guidance=1.0, steps=2)
    assert found.classes is not None
    assert found.classes.confusion is not None
    kept = parse_json(to_json([found], judge, None))["evaluations"][0]["classes"]
    assert kept["confusion"] == [list(row) for row in found.classes.confusion]
    assert {"value", "low", "high", "n", "floor", "ceiling", "protocol"} == set(kept["each"][0]["adherence"])
    assert found.classes.text() in table([found], judge)
