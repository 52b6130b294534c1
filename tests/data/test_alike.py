"""Near-duplicates are found and stay on one side of the split, and what is held out is spread over the classes."""

import io
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from tests.data.test_reading import classes_of_numbers, rows, tagged
from unfog.data.alike import look_at
from unfog.data.folder import folder, notes_of
from unfog.data.inspect import inspect
from unfog.data.source import Data, split_classes, split_groups, split_rows
from unfog.recipes.presets import recipe
from unfog.runtime.errors import Note, warning_of

EDITS = ("mirrored", "resized", "recoded", "cropped", "brightness", "grey", "rotated", "watermark", "border")
Images = npt.NDArray[np.uint8]


def edited(pixels: Images, kind: str, draw: np.random.Generator) -> Image.Image:
    """A copy of a picture, as people make them."""
    picture = Image.fromarray(pixels)
    side = picture.width
    if kind == "mirrored":
        return ImageOps.mirror(picture)
    if kind == "resized":
        other = round(side * draw.choice([0.9, 1.1]))
        return picture.resize((other, other), Image.Resampling.BICUBIC)
    if kind == "recoded":
        picture.save(buffer := io.BytesIO(), "JPEG", quality=40)
        return Image.open(buffer).convert("RGB")
    if kind == "cropped":
        less = max(1, round(0.03 * side))
        left, top = (int(place) for place in draw.integers(0, less + 1, 2))
        return picture.crop((left, top, left + side - less, top + side - less))
    if kind == "brightness":
        return ImageEnhance.Brightness(picture).enhance(float(draw.choice([0.9, 1.1])))
    if kind == "grey":
        return picture.convert("L").convert("RGB")
    if kind == "rotated":
        return picture.rotate(float(draw.choice([-2, 2])), Image.Resampling.BICUBIC)
    if kind == "watermark":
        front = Image.new("RGBA", picture.size)
        place = [int(place) for place in draw.integers(1, side // 2, 2)]
        ImageDraw.Draw(front).text((place[0], place[1]), "(c) UF", fill=(*[int(draw.choice([0, 255]))] * 3, 150))
        return Image.alpha_composite(picture.convert("RGBA"), front).convert("RGB")
    return ImageOps.expand(
        picture, round(side * draw.choice([0.04, 0.06, 0.08])), int(draw.choice([0, 128, 255])) * 65793
    )


def with_copies(pictures: Images, count: int, seed: int, root: Path | None = None) -> tuple[Images, list[int]]:
    """Pictures, copies of some of them, and which each is of; also written to a folder."""
    draw = np.random.default_rng(seed)
    sources = draw.permutation(len(pictures))[:count].tolist()
    copies = [edited(pictures[row], EDITS[place % len(EDITS)], draw) for place, row in enumerate(sources)]
    if root is not None:
        for row, pixels in enumerate(pictures):
            Image.fromarray(pixels).save(root / f"{row:04}.png")
        for place, picture in enumerate(copies):
            picture.save(root / f"aug_{place:04}.png")
    side = pictures.shape[1]
    fitted = [np.asarray(picture.resize((side, side), Image.Resampling.LANCZOS)) for picture in copies]
    return np.concatenate([pictures, np.stack(fitted)]), [*range(len(pictures)), *sources]


def found(pictures: Images, owners: Sequence[int], base: int) -> tuple[int, int]:
    """How many copies are found, and how many pairs of different pictures are called alike."""
    look = look_at(torch.from_numpy(pictures.transpose(0, 3, 1, 2).copy()))
    assert look is not None
    pairs = list(zip(look.pairs.first.tolist(), look.pairs.second.tolist(), strict=True))
    copies = {other for one, other in pairs if owners[one] == owners[other]}
    wrong = {tuple(sorted((owners[one], owners[other]))) for one, other in pairs if owners[one] != owners[other]}
    assert min(copies) >= base
    return len(copies), len(wrong)


def sides(data: Data) -> list[set[str]]:
    """The files of both parts."""
    return [set(part.about(np.arange(len(part))).files or ()) for part in data]


def textures(count: int, side: int = 32, seed: int = 0) -> Images:
    """Unlike pictures, smooth as photographs are."""
    draw = np.random.default_rng(seed)
    small = draw.integers(0, 256, (count, side // 4, side // 4, 3), dtype=np.uint8)
    return np.stack([np.asarray(Image.fromarray(row).resize((side, side), Image.Resampling.BICUBIC)) for row in small])


def real(name: str) -> Path:
    """A folder of real data; skips where it is absent."""
    where = Path(os.environ.get("UNFOG_DATA") or Path(__file__).parents[3] / "shared" / "data") / name
    if not where.is_dir():
        pytest.skip(f"the data set {name} is not there: set UNFOG_DATA to the folder that holds it")
    return where


def cifar(count: int, seed: int) -> Images:
    """Some pictures of CIFAR-10."""
    sheet = np.asarray(Image.open(real("cifar10") / "train-0.webp").convert("RGB"))
    pictures = sheet.reshape(50, 32, 100, 32, 3).transpose(0, 2, 1, 3, 4).reshape(5000, 32, 32, 3)
    return pictures[np.random.default_rng(seed).permutation(5000)[:count]]


def test_copies_are_found_and_stay_on_one_side(tmp_path: Path) -> None:
    pictures, owners = with_copies(textures(60), 36, 0, tmp_path)
    assert found(pictures, owners, 60) == (36, 0)
    data = folder(str(tmp_path), size=32, heldout=0.2)
    trained, held = sides(data)
    assert 10 <= len(held) <= 28
    for place, source in enumerate(owners[60:]):
        assert (f"aug_{place:04}.png" in held) == (f"{source:04}.png" in held)
    assert trained | held == {path.name for path in tmp_path.iterdir()}
    assert "72 pictures are near-duplicates (resized, recoded, mirrored, cropped), in 36 groups" in notes_of(data)[0]
    report = inspect(tmp_path)
    assert len(report.found["alike"]) >= 34
    assert report.healthy


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_copies_of_photographs(tmp_path: Path, seed: int) -> None:
    """Of 150 copies at least 140 are found, and at most two false pairs, CIFAR-10's own near-duplicates among them."""
    pictures, owners = with_copies(cifar(1000, seed), 150, seed, tmp_path)
    copies, wrong = found(pictures, owners, 1000)
    assert copies >= 140
    assert wrong <= 2
    look = look_at(torch.from_numpy(pictures.transpose(0, 3, 1, 2).copy()))
    assert look is not None
    data = folder(str(tmp_path), size=32)
    held = sides(data)[1]
    names = [f"{row:04}.png" for row in range(1000)] + [f"aug_{place:04}.png" for place in range(150)]
    pairs = zip(look.pairs.first.tolist(), look.pairs.second.tolist(), strict=True)
    assert [(one, other) for one, other in pairs if (names[one] in held) != (names[other] in held)] == []
    assert 100 <= len(held) <= 130


@pytest.mark.slow
def test_skin_tones_are_near_duplicates() -> None:
    root = real("emoji")
    lines = [json.loads(line) for line in (root / "metadata.jsonl").read_text().splitlines()]
    known = {line["file_name"]: line for line in lines}
    data = folder(str(root), together=":,")
    source = data.train.source  # type: ignore[attr-defined]
    look = look_at(source.x)
    assert look is not None
    leads = [re.split("[:,]", known[name]["text"])[0].strip() for name in source.files]
    pairs = list(zip(look.pairs.first.tolist(), look.pairs.second.tolist(), strict=True))
    alike = {row for pair in pairs if leads[pair[0]] == leads[pair[1]] for row in pair}
    tones = {row for row, name in enumerate(source.files) if known[name]["skin_tone"]}
    assert (len(tones), len(tones & alike)) == (1875, pytest.approx(1845, abs=15))
    held = sides(data)[1]
    assert 176 <= len(held) <= 528
    assert not [pair for pair in pairs if (source.files[pair[0]] in held) != (source.files[pair[1]] in held)]


def test_things_that_all_look_alike_are_no_copies() -> None:
    """Strokes in one place of every picture, as in digits: only what is nearer than neighbours are is a copy."""
    draw = np.random.default_rng(0)
    pictures = np.zeros((300, 32, 32, 3), np.uint8)
    for row, bends in enumerate(draw.normal(0, 2, (300, 2, 7))):
        picture = Image.new("RGB", (32, 32))
        line = [(16 + float(right), 4 + 4 * place + float(down)) for place, (right, down) in enumerate(bends.T)]
        ImageDraw.Draw(picture).line(line, fill=(255, 255, 255), width=3)
        pictures[row] = np.asarray(picture)
    pictures[-1] = pictures[0]
    look = look_at(torch.from_numpy(pictures.transpose(0, 3, 1, 2).copy()))
    assert look is not None
    pairs = list(zip(look.pairs.first.tolist(), look.pairs.second.tolist(), strict=True))
    assert (0, 299) in pairs
    assert len(pairs) < 60


def captioned(root: Path, classes: int, each: int, text: str = "{name}") -> str:
    """Pictures whose captions are the names of their classes."""
    root.mkdir(parents=True)
    with (root / "metadata.jsonl").open("w") as file:
        for row, pixels in enumerate(textures(classes * each, 16)):
            Image.fromarray(pixels).save(root / f"{row:03}.png")
            line = text.format(name=f"flower{row % classes}", row=row)
            file.write(json.dumps({"file_name": f"{row:03}.png", "text": line}) + "\n")
    return str(root)


@pytest.mark.parametrize("text", ["{name}", "{name}, a photograph", "{name}: number {row}"])
def test_no_class_is_held_out_whole(tmp_path: Path, text: str) -> None:
    """Where captions are names of classes, a tenth of each is held out."""
    data = folder(captioned(tmp_path / "data", 10, 20, text), size=16, together=":,")
    captions = data.heldout.about(np.arange(len(data.heldout))).captions or []
    assert sorted(re.split("[:,]", caption)[0] for caption in captions) == [f"flower{row // 2}" for row in range(20)]
    assert "200 of 200" not in "".join(notes_of(data))
    assert "held out one by one, since their captions make groups too large" in "".join(notes_of(data))


def test_a_folder_per_class_is_read_by_a_text_recipe(tmp_path: Path) -> None:
    """Names of classes are captions there; each has a share in what is held out."""
    for row, pixels in enumerate(textures(60, 16)):
        (tmp_path / f"kind {row % 3}").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / f"kind {row % 3}" / f"{row}.png")
    data = recipe("text-to-image", str(tmp_path)).data.build()
    held = data.heldout.about(np.arange(len(data.heldout))).labels
    assert held is not None
    assert held.tolist() == [0, 0, 1, 1, 2, 2]


def test_what_is_held_out_is_spread_over_classes() -> None:
    names = [f"{row}.png" for row in range(120)]
    for share in (0.1, 0.3):
        parts = split_classes(names, ["one"] * 120, share)
        assert parts is not None
        assert all(np.array_equal(one, other) for one, other in zip(parts, split_rows(names, share), strict=True))
    threes = [str(row // 3) for row in range(120)]
    for one, other in zip(split_classes(threes, [""] * 120, 0.1) or (), split_groups(threes, 0.1) or (), strict=True):
        assert np.array_equal(one, other)
    classes = [f"{row % 24:02}" for row in range(120)]  # five of each: one of every second
    parts = split_classes(names, classes, 0.1)
    assert parts is not None
    assert len({classes[row] for row in parts[1]}) == len(parts[1]) == 12
    assert split_classes(names, names, 0.1) is None  # never the only one of a class


def test_more_is_held_out_where_groups_need_it(tmp_path: Path) -> None:
    """Frames of three films, and frames of one."""
    for films, share in ((3, "33%"), (1, "one by one")):
        root = tmp_path / str(films)
        root.mkdir()
        draw = np.random.default_rng(0)
        for film, pixels in enumerate(textures(films)):
            for frame in range(12):
                noisy = (pixels + draw.normal(0, 2, pixels.shape)).clip(0, 255).astype(np.uint8)
                Image.fromarray(noisy).save(root / f"{film} {frame}.png")
        data = folder(str(root), size=32)
        assert len(data.heldout) == (12 if films == 3 else 1)
        assert len({name[0] for name in sides(data)[1]}) == 1
        assert share in notes_of(data)[-1]
        assert ("each trained on or held out as a whole" in notes_of(data)[0]) == (films == 3)


def test_one_picture_under_two_labels_grey_and_borders_are_said(tmp_path: Path) -> None:
    for row, pixels in enumerate(textures(24)):
        (tmp_path / ("a", "b")[row % 2]).mkdir(exist_ok=True)
        grey = Image.fromarray(pixels).convert("L").convert("RGB")
        if row == 5:
            grey = ImageOps.expand(grey.crop((3, 3, 29, 29)), 3, (255, 0, 0)).convert("L").convert("RGB")
        grey.save(tmp_path / ("a", "b")[row % 2] / f"{row}.png")
        if row == 4:
            grey.resize((40, 40)).save(tmp_path / "b" / "again.png")
    notes = " | ".join(notes_of(folder(str(tmp_path), size=32)))
    assert "1 picture under two labels: correct one of each (b/again.png: b, and as a/4.png a)" in notes
    assert (
        "1 picture with a border of one colour, which is learnt too: crop it if that is not wanted (b/5.png)" in notes
    )
    assert "all pictures are grey but saved in colour: data.channels=1" in notes
    faulty = [note for note in notes_of(folder(str(tmp_path), size=32)) if warning_of(note) is not Note]
    assert len(faulty) == 1  # the others ask for nothing
    assert "under two labels" in faulty[0]
    report = inspect(tmp_path)
    assert report.found["two labels"] == {"b/again.png": "b, and as a/4.png a"}
    assert report.found["border"] == {"b/5.png": ""}
    assert not report.healthy
    assert "channels 1, side 32: " in report.text()
    assert report.text().endswith("--set data.channels=1 --set network.width=48")


def test_a_test_folder_that_repeats_the_training_is_said(tmp_path: Path) -> None:
    for row, pixels in enumerate(textures(20)):
        part = tmp_path / ("val" if row < 4 else "train")
        part.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(part / f"{row}.png")
        if row == 9:
            ImageOps.mirror(Image.fromarray(pixels)).save(tmp_path / "val" / "again.png")
    notes = " | ".join(notes_of(folder(str(tmp_path), size=32)))
    assert "near-duplicates of 1 held-out picture are trained on" in notes
    assert "(val/again.png like train/9.png)" in notes


def test_how_far_was_looked_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the limits, only pictures near by name are compared, or the first; what is not in memory, not at all."""
    for row, pixels in enumerate(textures(40)):
        Image.fromarray(pixels).save(tmp_path / f"{row:02}.png")
        if row in (3, 30):
            Image.fromarray(pixels).save(tmp_path / f"{row:02} again.png")
    Image.fromarray(textures(40)[3]).save(tmp_path / "99.png")
    monkeypatch.setattr("unfog.data.alike.WHOLE", 20)
    monkeypatch.setattr("unfog.data.alike.ROWS", 4)
    notes = notes_of(folder(str(tmp_path), size=32))
    assert "(03.png like 03 again.png, 30.png like 30 again.png)" in notes[0]
    assert notes[1] == "near-duplicates were sought among the 4 pictures that follow each by name"
    monkeypatch.setattr("unfog.data.alike.MOST", 20)
    monkeypatch.setattr("unfog.data.heldout.MOST", 20)
    notes = notes_of(folder(str(tmp_path), size=32))
    assert "in 1 group, " in notes[0]
    assert notes[1] == "near-duplicates were sought among the first 20 of 43 pictures"
    monkeypatch.setattr("unfog.data.folder.IN_MEMORY", 0)
    assert (
        "near-duplicates were not sought, since the pictures do not fit in memory" in notes_of(folder(str(tmp_path)))[0]
    )


def test_the_second_rules_split_as_they_did(tmp_path: Path) -> None:
    """What the version before gave, copied from it."""
    assert rows(folder(str(classes_of_numbers(tmp_path / "classes")), rules=2))[1][0] == ["11/0.png", "11/2.png"]
    assert rows(folder(str(tagged(tmp_path / "tagged")), together=":,", rules=2))[1][0] == ["03.png"]
    data = folder(captioned(tmp_path / "data", 10, 4), size=16, together=":,", rules=2)
    assert rows(data)[1][0] == ["005.png", "015.png", "025.png", "035.png"]  # a whole class
