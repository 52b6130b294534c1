"""Where classes come from: folders, file names or metadata, as the user says."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unfog.data.folder import folder, list_pictures
from unfog.data.inspect import inspect
from unfog.recipes.build import build_data
from unfog.recipes.presets import recipe
from unfog.recipes.recipe import Recipe
from unfog.runtime.errors import UserError

NAMES = ("a/back/dog-2.png", "a/front/cat 1.png", "a/front/cat_2.png", "b/back/dog.png", "b/front/cat_3.png")


def write(root: Path, names: tuple[str, ...] = NAMES) -> str:
    for seed, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(root / name)
    return str(root)


def classes_of(path: str, label_from: str) -> dict[str, str]:
    listing = list_pictures(path, label_from=label_from)
    labels = [label for label in listing.labels or () if isinstance(label, int)]
    return {name: listing.classes[label] for name, label in zip(listing.files, labels, strict=True)}


@pytest.mark.parametrize(
    ("label_from", "labels"),
    [
        ("folder", ["a", "a", "a", "b", "b"]),
        ("parent", ["back", "front", "front", "back", "front"]),
        ("path", ["a/back", "a/front", "a/front", "b/back", "b/front"]),
        ("prefix", ["dog", "cat", "cat", "dog", "cat"]),
        ("csv", ["1", "2", "2", "1", "1"]),
        ("csv:kind", ["x", "x", "y", "y", "x"]),
    ],
)
@pytest.mark.parametrize("below", ["", "train/"])
def test_labels_from_each_origin(tmp_path: Path, label_from: str, labels: list[str], below: str) -> None:
    """Also below `train/`, with the class of `test/` known, and with the captions of metadata."""
    names = tuple(below + name for name in NAMES)
    path = write(tmp_path, names)
    held = ("test/a/back/dog_9.png",) if below else ()
    write(tmp_path, held)
    numbers = ["1", "2", "2", "1", "1", "1"]
    rows = zip((*names, *held), numbers, ["x", "x", "y", "y", "x", "x"], strict=False)
    lines = [f"{name},{number},{kind},text {number}" for name, number, kind in rows]
    (tmp_path / "metadata.csv").write_text("\n".join(["file_name,label,kind,text", *lines]))
    found = classes_of(path, label_from)
    assert [found[name] for name in names] == labels
    listing = list_pictures(path, label_from=label_from)
    assert listing.captions is not None
    assert (None if listing.held is None else sum(listing.held)) == (1 if below else None)
    said = " ".join((*listing.unused.sentences(), *listing.notes))
    assert ("label_from=path keeps them apart" in said) == (label_from == "parent")
    assert ("keys of metadata.csv, which unfog does not read: kind" in said) == (label_from != "csv:kind")


def test_the_default_is_what_it_was(tmp_path: Path) -> None:
    path = write(tmp_path)
    assert classes_of(path, "auto") == {name: name[0] for name in NAMES}
    before = list_pictures(path, rules=1)
    with pytest.raises(UserError, match="first rules of reading know no `label_from`"):
        list_pictures(path, rules=1, label_from="parent")
    assert before.classes == ("a", "b")


@pytest.mark.parametrize(
    ("label_from", "names", "sentence"),
    [
        (
            "prefix",
            ("1.png", "2.png", "3.png"),
            r"each picture in .* its own class \(1, 2, 3\).*_, - or a space",
        ),
        ("prefix", ("x_1.png", "x_2.png"), "labels from prefix make x the only class in .*choose another `label_from`"),
        ("folder", ("1.png", "2.png"), "labels from folder make none the only class"),
        ("csv", ("x_1.png", "y_1.png"), "no metadata.csv or metadata.jsonl with a column 'label'"),
        ("csv:sort", ("x_1.png", "y_1.png"), "no metadata.csv or metadata.jsonl with a column 'sort'"),
        ("Prefix", ("x_1.png", "y_1.png"), "unknown origin of labels 'Prefix': did you mean 'prefix'"),
    ],
)
def test_labels_that_cannot_be(tmp_path: Path, label_from: str, names: tuple[str, ...], sentence: str) -> None:
    path = write(tmp_path, names)
    with pytest.raises(UserError, match=sentence):
        folder(path, label_from=label_from)


def test_pictures_without_a_class_are_said(tmp_path: Path) -> None:
    path = write(tmp_path, ("x_1.png", "x_2.png", "y-1.png", "_3.png"))
    listing = list_pictures(path, label_from="prefix")
    assert listing.files == ("x_1.png", "x_2.png", "y-1.png")
    assert listing.unused.sentences() == ("not used (1): pictures that have no class by their prefix: _3.png",)


def test_parts_below_the_classes_are_said_to_be_none(tmp_path: Path) -> None:
    names = ("cats/train/1.png", "cats/test/2.png", "dogs/train/3.png", "dogs/test/4.png")
    listing = list_pictures(write(tmp_path, names))
    assert (listing.classes, listing.held) == (("cats", "dogs"), None)
    assert "test and train below other folders hold nothing out: put them above" in " ".join(listing.notes)


def test_recipe_and_inspection_take_the_origin(tmp_path: Path) -> None:
    path = write(tmp_path, tuple(f"{'xy'[row % 2]}_{row}.png" for row in range(20)))
    plain, chosen = recipe("folder", path), recipe("folder", path, label_from="prefix")
    assert (plain.augment.flip, chosen.augment.flip) == (True, False)
    found, data = build_data(chosen)
    assert (found.classes, data.train.classes) == (("x", "y"), ("x", "y"))
    assert Recipe.from_json(found.to_json()) == found
    report = inspect(path, label_from="prefix")
    assert report.classes == {"x": 10, "y": 10}
    assert "--label-from prefix" in report.text()
    with pytest.raises(UserError, match="the data of the recipe 'digits' have labels of their own: omit `label_from`"):
        recipe("digits", label_from="prefix")
