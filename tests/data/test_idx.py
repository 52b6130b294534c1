"""Sets of idx files: any number of classes, any labels and sides, transposed pictures, mapping files, several sets."""

import gzip
import re
from pathlib import Path

import numpy as np
import pytest

from tests.data.test_source import Bytes, everything, idx_bytes, write_idx_set
from unfog.data.idx import idx
from unfog.recipes.build import build_data, build_denoiser
from unfog.recipes.presets import recipe
from unfog.recipes.recipe import Recipe
from unfog.recipes.sources import MNIST, Idx
from unfog.runtime.errors import UserError

SIGNS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
FIRST = "train-images-idx3-ubyte"


def write_set(root: Path, name: str, labels: list[int], sides: tuple[int, int] = (8, 4), *, test: bool = True) -> Bytes:
    """Write a set whose test part is its training part; return its pictures."""
    root.mkdir(parents=True, exist_ok=True)
    pictures = np.random.default_rng(0).integers(0, 256, (len(labels), *sides), dtype=np.uint8)
    for part in ("train", "test")[: 1 + test]:
        for what, array in (("images-idx3", pictures), ("labels-idx1", np.array(labels, np.uint8))):
            (root / f"{name}{part}-{what}-ubyte.gz").write_bytes(gzip.compress(idx_bytes(array), 1))
    return pictures


def write_byclass(root: Path) -> Bytes:
    """Write a set as EMNIST's by class: 62 classes, two pictures each, transposed."""
    pictures = write_set(root, "emnist-byclass-", list(range(62)) * 2)
    (root / "emnist-byclass-mapping.txt").write_text("".join(f"{row} {ord(sign)}\n" for row, sign in enumerate(SIGNS)))
    return pictures


def test_sixty_two_classes_transposed_with_their_names(tmp_path: Path) -> None:
    pictures = write_byclass(tmp_path)
    for name in ("mnist", "folder"):
        chosen, data = build_data(recipe(name, str(tmp_path)))
        assert (chosen.kind("data"), chosen.shape, chosen.classes) == ("idx", (1, 4, 8), tuple(SIGNS))
        assert build_denoiser(chosen).embedder is not None
        for part in data:
            x, labels, *_ = everything(part)
            assert labels is not None
            assert np.array_equal(x[:, 0].numpy(), pictures.transpose(0, 2, 1))
            assert labels.tolist() == list(range(62)) * 2
    kept = idx(str(tmp_path), transposed=False).train
    assert np.array_equal(everything(kept).x[:, 0].numpy(), pictures)
    assert Recipe.from_json(chosen.to_json()) == chosen


def test_labels_from_one_are_named_by_their_first_character(tmp_path: Path) -> None:
    write_set(tmp_path, "emnist-letters-", [1, 2, 26, 2])
    assert idx(str(tmp_path)).train.classes == ("1", "2", "26")
    mapping = tmp_path / "emnist-letters-mapping.txt"
    mapping.write_text("".join(f"{row} {64 + row} {96 + row} \r\n" for row in range(1, 27)))
    train = idx(str(tmp_path)).train
    labels = everything(train).labels
    assert labels is not None
    assert (train.classes, labels.tolist()) == (("A", "B", "Z"), [0, 1, 2, 1])
    mapping.write_text("1 red apple\n2 pear\n26 300\n")
    assert idx(str(tmp_path)).train.classes == ("red apple", "pear", "Ĭ")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("1 65\n2 65\n", "mapping.txt, line 2: another label is named 'A' too"),
        ("1 65\n2\n", "line 2: not a label and the code"),
        ("1 65\n2 7\n", "line 2: not a label and the code"),
        ("1 65\nx 66\n", "line 2: not a label and the code"),
        ("1 65\n", "mapping.txt names no class for the label 2"),
    ],
    ids=["twice", "no code", "no character", "no label", "too short"],
)
def test_a_mapping_that_does_not_fit(tmp_path: Path, text: str, sentence: str) -> None:
    write_set(tmp_path, "", [1, 2])
    (tmp_path / "mapping.txt").write_text(text)
    with pytest.raises(UserError, match=sentence):
        idx(str(tmp_path))


def test_several_sets_are_named_and_chosen_by_a_file(tmp_path: Path) -> None:
    pictures = write_set(tmp_path / "gzip", "emnist-letters-", [1, 2])
    write_set(tmp_path / "gzip", "emnist-digits-", [0, 1])
    write_set(tmp_path / "gzip", "", [5, 6])
    for name in ("mnist", "folder"):
        with pytest.raises(UserError, match="3 sets .*MNIST's own names, emnist-digits, emnist-letters") as no:
            recipe(name, str(tmp_path))
        assert re.search(r"instance (\S+) instead", str(no.value))
    chosen, data = build_data(recipe("folder", str(tmp_path / "gzip" / f"emnist-letters-{FIRST}.gz")))
    assert chosen.classes == ("1", "2")
    assert np.array_equal(everything(data.train).x[:, 0].numpy(), pictures.transpose(0, 2, 1))


@pytest.mark.parametrize("below", ["", "raw", "MNIST"])
def test_the_names_of_other_packages(tmp_path: Path, below: str) -> None:
    """Torchvision's folder `raw`, and Kaggle's names with a dot; the compressed file of two is read."""
    pictures = write_set(tmp_path / below, "", [3, 1])
    for file in sorted((tmp_path / below).iterdir()):
        if file.name.startswith("test-"):
            name = file.name.replace("test-", "t10k-").replace("-idx", ".idx").removesuffix(".gz")
            file.with_name(name).write_bytes(gzip.decompress(file.read_bytes()))
            file.unlink()
    (tmp_path / below / FIRST).write_bytes(b"damaged")
    if below == "MNIST":
        with pytest.raises(UserError, match="contains neither train-images"):
            idx(str(tmp_path))
        return
    data = idx(str(tmp_path))
    assert data.train.classes == ("1", "3")
    for part in data:
        assert np.array_equal(everything(part).x[:, 0].numpy(), pictures)


def test_what_is_left_out_is_said(tmp_path: Path) -> None:
    write_set(tmp_path / "one", "", [0, 1] * 10, test=False)
    alone = idx(str(tmp_path / "one"))
    assert (len(alone.train), len(alone.heldout)) == (18, 2)
    write_set(tmp_path / "two", "", [0, 1, 7])
    name = tmp_path / "two" / "train-labels-idx1-ubyte.gz"
    name.write_bytes(gzip.compress(idx_bytes(np.array([0, 1, 1], np.uint8))))
    both = idx(str(tmp_path / "two"))
    assert [len(part) for part in both] == [3, 2]
    notes = [getattr(getattr(data.train, "source", data.train), "notes", ()) for data in (alone, both)]
    assert re.search("10% of the pictures are held out.*no test part", " ".join(notes[0]))
    assert re.search(r"not used \(1\): held-out pictures of a class", " ".join(notes[1]))


def test_files_that_do_not_fit_together(tmp_path: Path) -> None:
    write_set(tmp_path, "", [0, 1])
    with pytest.raises(UserError, match=r"label 1, but data\.names has 1 names"):
        idx(str(tmp_path), names=("a",))
    assert idx(str(tmp_path), names=("a", "b", "c")).train.classes == ("a", "b", "c")
    (tmp_path / "test-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx_bytes(np.zeros((2, 4, 4), np.uint8))))
    with pytest.raises(UserError, match="the test part has other classes or sides"):
        idx(str(tmp_path))
    (tmp_path / "test-images-idx3-ubyte.gz").unlink()
    with pytest.raises(UserError, match="neither test-images-idx3-ubyte.gz nor test-images-idx3-ubyte"):
        idx(str(tmp_path))


@pytest.mark.parametrize(
    ("sides", "size", "patch", "shape"),
    [
        ((28, 28), None, 2, (28, 28)),
        ((20, 30), None, 1, (20, 30)),
        ((105, 105), None, 2, (64, 64)),
        ((5, 5), 8, 2, (8, 8)),
        ((9, 9), (6, 8), 1, (6, 8)),
    ],
)
def test_the_recipe_fits_the_sides(
    tmp_path: Path, sides: tuple[int, int], size: int | tuple[int, int] | None, patch: int, shape: tuple[int, int]
) -> None:
    write_set(tmp_path, "", [0, 1], sides)
    chosen, data = build_data(recipe("mnist", str(tmp_path), size).set("network.width=8"))
    assert (getattr(chosen.network, "patch", None), data.train.shape) == (patch, (1, *shape))
    build_denoiser(chosen)


def test_runs_of_before_read_their_files_as_they_did(tmp_path: Path) -> None:
    """They name the set, not its form: ten classes, and MNIST's own files whatever lies next to them."""
    arrays = write_idx_set(tmp_path, packed=True)
    write_set(tmp_path, "emnist-letters-", [1, 2])
    before = recipe("mnist").set(f"data.path={tmp_path}")
    assert before.data == MNIST(str(tmp_path))
    found, data = build_data(Recipe.from_json(before.to_json()))
    assert found.classes == tuple("0123456789")
    assert np.array_equal(everything(data.train).x[:, 0].numpy(), arrays[0])


def test_fashion_keeps_its_names(tmp_path: Path) -> None:
    write_idx_set(tmp_path, packed=True)
    chosen, _ = build_data(recipe("fashion", str(tmp_path)))
    assert isinstance(chosen.data, Idx)
    assert (chosen.classes[0], len(chosen.classes)) == ("T-shirt", 10)


def test_a_folder_of_idx_files_is_named_where_pictures_are_needed(tmp_path: Path) -> None:
    write_set(tmp_path, "", [0, 1])
    with pytest.raises(UserError, match="contains no images .*idx files.*recipe 'mnist' or 'folder'"):
        recipe("autoencoder", str(tmp_path))
