"""What the rows of a data set are: by contents, wherever they lie and whatever their dates."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unfog.data import folder as folders
from unfog.data.fingerprint import fingerprint, rows_digest
from unfog.data.folder import folder
from unfog.data.shapes import shapes
from unfog.data.source import InMemory, Subset, split


def paint(path: Path, shade: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(shade).integers(0, 256, (8, 8), dtype=np.uint8)).save(path)


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """Two classes of six pictures, all different."""
    for place, name in enumerate(("cat", "dog")):
        for number in range(6):
            paint(tmp_path / "pets" / name / f"{number}.png", 10 * place + number)
    return tmp_path / "pets"


@pytest.fixture(params=[False, True], ids=["in memory", "streamed"])
def streamed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if request.param:
        monkeypatch.setattr(folders, "IN_MEMORY", 1)
    return bool(request.param)


def swap(one: Path, other: Path) -> None:
    aside = one.with_name("aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "added": (lambda root: paint(root / "cat" / "new.png", 99), "1 file added (cat/new.png)"),
    "removed": (lambda root: (root / "cat" / "0.png").unlink(), "1 file removed (cat/0.png)"),
    "edited": (lambda root: paint(root / "dog" / "1.png", 98), "1 file edited (dog/1.png)"),
    "moved": (
        lambda root: (root / "cat" / "2.png").rename(root / "dog" / "of cats.png"),
        "1 file moved (cat/2.png to dog/of cats.png)",
    ),
    "swapped": (
        lambda root: swap(root / "cat", root / "dog"),
        "12 files edited (cat/0.png, cat/1.png, cat/2.png, ...)",
    ),
    "renamed": (
        lambda root: (root / "cat").rename(root / "lynx"),
        "6 files moved (cat/0.png to lynx/0.png, cat/1.png to lynx/1.png, cat/2.png to lynx/2.png, ...)",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changed_is_said(pets: Path, change: str, streamed: bool) -> None:
    before = fingerprint(folder(str(pets), size=8))
    act, words = CHANGES[change]
    act(pets)
    now = fingerprint(folder(str(pets), size=8), before)
    assert now.digest != before.digest
    assert before.differences(now) == words


def test_a_moved_or_copied_folder_is_the_same(pets: Path, streamed: bool) -> None:
    before = fingerprint(folder(str(pets), size=8))
    other = pets.with_name("copied")
    shutil.copytree(pets, other)  # the times of change are those of now
    for file in other.rglob("*.png"):
        os.utime(file, (1, 1))
    now = fingerprint(folder(str(other), size=8), before)
    assert (now.digest, before.differences(now)) == (before.digest, "")


def test_other_annotations_are_said(pets: Path, streamed: bool) -> None:
    for file in sorted(pets.rglob("*.png")):
        file.rename(pets / f"{file.parent.name}{file.name}")
    lines = [f'{{"file_name": "{file.name}", "text": "a {file.stem[:3]}"}}\n' for file in sorted(pets.glob("*.png"))]
    (pets / "metadata.jsonl").write_text("".join(lines))
    before = fingerprint(folder(str(pets), size=8))
    (pets / "metadata.jsonl").write_text("".join([*lines[:3], lines[3].replace("a cat", "a lion"), *lines[4:]]))
    now = fingerprint(folder(str(pets), size=8), before)
    assert before.differences(now) == "1 file with another label, caption or number (cat3.png)"


def test_another_share_is_another_set(pets: Path) -> None:
    before = fingerprint(folder(str(pets), size=8))
    now = fingerprint(folder(str(pets), size=8, heldout=0.3), before)
    assert before.differences(now) == "other rows are held out"
    assert before.held_out < now.held_out


def test_size_and_time_save_hashing(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = fingerprint(folder(str(pets), size=8))
    paint(pets / "dog" / "1.png", 98)
    read: list[str] = []

    def hashed(path: Path, size: int, changed: int) -> str:
        read.append(path.name)
        return "another"

    monkeypatch.setattr("unfog.data.fingerprint._hashed", hashed)
    assert fingerprint(folder(str(pets), size=8), before).digest != before.digest
    assert read == ["1.png"]


def test_rows_in_memory_are_their_contents() -> None:
    x = torch.randn(20, 2, generator=torch.Generator().manual_seed(0)) + 3
    labels = torch.arange(20) % 2

    def of(x: torch.Tensor, labels: torch.Tensor) -> str:
        return fingerprint(split(InMemory(x, labels, ("a", "b")), 0.2)).digest

    one = of(x, labels)
    assert one == of(x.clone(), labels.clone())
    assert one != of(x.flip(0), labels)
    assert one != of(x, 1 - labels)
    assert one != of(x + 1e-5, labels)
    assert "with other contents" in fingerprint(split(InMemory(x), 0.2)).differences(
        fingerprint(split(InMemory(x + 1), 0.2))
    )


def test_the_rows_of_one_source_have_an_order() -> None:
    source = InMemory(torch.arange(12.0).view(6, 2))
    some, others = (Subset(source, np.array(rows)) for rows in ([0, 1, 2], [1, 0, 2]))
    assert rows_digest(some) == rows_digest(Subset(source, np.array([0, 1, 2])))
    assert rows_digest(some) != rows_digest(others)


def test_rows_that_are_drawn_are_not_all_drawn() -> None:
    data = shapes(20_000, 32)
    assert (
        fingerprint(data).digest
        == fingerprint(shapes(20_000, 32)).digest
        != fingerprint(shapes(20_000, 32, seed=1)).digest
    )
