"""How a folder is read: what is common is taken, what is not used is said, and runs of before read as they did."""

import io
import json
import os
import sys
import tarfile
import unicodedata
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, ImageCms
from rich.console import Console

from unfog.cli.main import main
from unfog.data import packed as packing
from unfog.data import pictures
from unfog.data import walk as walking
from unfog.data.fingerprint import fingerprint
from unfog.data.folder import Streamed, folder, list_pictures, notes_of
from unfog.data.inspect import inspect
from unfog.data.listing import natural
from unfog.data.pictures import Reading, describe_picture, fitted, read_picture
from unfog.data.source import Data, split_groups, split_rows
from unfog.recipes.build import build_data
from unfog.recipes.conditions import ClassConditioning, Known
from unfog.recipes.presets import recipe
from unfog.recipes.recipe import Recipe
from unfog.recipes.sources import Folder
from unfog.runs.run import train
from unfog.runtime.errors import UserError

QUIET = Console(quiet=True)


def draw(path: Path, value: float = 0, mode: str = "L", side: int = 8, **options: object) -> Path:
    """Write a picture of one value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = {"I;16": np.uint16, "F": np.float32, "I": np.int32}.get(mode)
    picture = Image.new(mode, (side, side), value if kind is None else 0)
    if kind is not None:
        picture = Image.fromarray(np.full((side, side), value, kind))
    picture.save(path, **options)
    return path


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding=encoding)
    return path


def lines(root: Path, *entries: object) -> None:
    write(root / "metadata.jsonl", "\n".join(map(json.dumps, entries)))


def rows(data: Data) -> list[tuple[list[str], list[int] | None, list[int]]]:
    """Files, labels and the first value of each row, of both parts."""
    found = []
    for part in data:
        batch = part.take(np.arange(len(part)))
        labels = None if batch.labels is None else batch.labels.tolist()
        found.append((batch.files or [], labels, batch.x[:, 0, 0, 0].tolist()))
    return found


def said(root: Path, **options: object) -> str:
    """What training says of a folder, and `inspect` too."""
    notes = " | ".join(notes_of(folder(str(root), **options)))
    report = inspect(root)
    assert ("not used" in notes) == bool(report.found["unused"])
    assert not (report.healthy and report.found["unused"])
    return notes


# ------------------------------------------------------------------------------------ as runs of before read


def classes_of_numbers(root: Path) -> Path:
    for place, name in enumerate(("1", "2", "10", "11", "cat")):
        for number in range(4):
            draw(root / name / f"{number}.png", 40 * place + number)
            write(root / name / f"{number}.txt", "a caption")
    draw(root / "1" / "y.jfif", 9, format="JPEG")
    return root


def deep(root: Path) -> Path:
    for number, value in enumerate((100, 4095, 1000, 2000)):
        draw(root / f"{number}.png", value, "I;16")
    return root


def tagged(root: Path) -> Path:
    for number in range(12):
        draw(root / f"{number:02}.png", 20 * number)
    texts = [f"{'1girl' if number % 3 else 'solo'}, tag {number}" for number in range(12)]
    lines(root, *({"file_name": f"{n:02}.png", "text": text, "label": str(n % 4 * 5)} for n, text in enumerate(texts)))
    return root


def in_parts(root: Path) -> Path:
    for part, count in (("train", 6), ("val", 3)):
        for name in ("a", "b"):
            for number in range(count):
                draw(root / part / name / f"{number}.png", number + 10 * (name == "b") + 100 * (part == "val"))
    return root


def test_the_first_rules_read_as_they_did(tmp_path: Path) -> None:
    """What the version before these rules gave, copied from it: classes, order, split, pixels."""
    root = str(classes_of_numbers(tmp_path / "classes"))
    listing = list_pictures(root, rules=1)
    assert (listing.classes, listing.captions) == (("1", "10", "11", "2", "cat"), None)
    train, held = rows(folder(root, rules=1))
    assert held == (["11/0.png", "11/2.png"], [2, 2], [120, 122])
    assert train[1] == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4]
    draw(tmp_path / "classes" / "stray.png", 250)
    assert list_pictures(root, rules=1).labels is None
    listing = list_pictures(str(in_parts(tmp_path / "parts")), rules=1)
    assert (listing.classes, listing.held) == (("train", "val"), None)
    assert rows(folder(str(deep(tmp_path / "deep")), rules=1)) == [
        (["1.png", "2.png", "3.png"], None, [16, 4, 8]),
        (["0.png"], None, [0]),
    ]
    data = folder(str(tagged(tmp_path / "tagged")), together=":,", rules=1)
    assert rows(data)[1] == (["00.png", "03.png", "06.png", "09.png"], [0, 3, 2, 1], [0, 60, 120, 180])
    assert data.train.classes == ("0", "5", "10", "15")


def test_a_recipe_of_before_keeps_the_first_rules(tmp_path: Path) -> None:
    now = recipe("folder", str(classes_of_numbers(tmp_path)))
    assert isinstance(now.data, Folder)
    assert now.data.rules == 4
    assert Recipe.from_json(now.to_json()) == now
    plain = json.loads(now.to_json())
    del plain["data"]["rules"], plain["data"]["range"]
    before = Recipe.from_json(json.dumps(plain)).data
    assert isinstance(before, Folder)
    assert before.rules == 1
    assert before.build().train.classes == ("1", "10", "11", "2", "cat")
    with pytest.raises(UserError, match="data.rules must be from 1 to 4, not 5"):
        folder(str(tmp_path), rules=5)


# ------------------------------------------------------------------------------------ there but not used


def test_what_is_not_used_has_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = classes_of_numbers(tmp_path)
    draw(root / "stray.png", 250)
    for name in (
        "metadata.parquet",
        "a.heic",
        "film.mp4",
        "b.mp4",
        "alone.txt",
        "README.md",
        "cat/.hidden.png",
        ".kept/x.png",
        ".git/x.png",
    ):
        write(root / name, "x")
    (root / "cat" / "gone.png").symlink_to("nowhere.png")
    (root / "cat" / "itself.png").symlink_to("itself.png")
    (root / "cat" / "above").symlink_to(root)
    os.mkfifo(root / "cat" / "pipe.png")
    for name in ("film.gif", "pages.tif", "film.webp", "film.png", "film.avif"):
        draw(root / "2" / name, 3, save_all=True, append_images=[Image.new("L", (8, 8), 200)])
    (root / "secret").mkdir()
    real = os.scandir

    def scandir(path: Path) -> object:
        if Path(path).name == "secret":  # the superuser, whom tests may run as, reads all
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(walking.os, "scandir", scandir)
    notes = said(root)
    for sentence in (
        "not used (1): pictures outside of the class folders, which have no class: move them into one: stray.png",
        "not used (1): pictures of a kind that is not read: convert them to PNG or JPEG: a.heic",
        "not used (2): of a kind that is not read: b.mp4, film.mp4",
        "metadata in a form that is not read: write them as metadata.jsonl or metadata.csv: metadata.parquet",
        "not used (1): captions without a picture: alone.txt",
        "not used (2): hidden, since their names begin with a dot: .kept, cat/.hidden.png",
        "not used (2): links that lead nowhere: cat/gone.png, cat/itself.png",
        "not used (1): links to folders that are read anyway: cat/above",
        "not used (1): neither files nor folders: cat/pipe.png",
        "(5): pictures of which only the first page or frame is read: 2/film.avif, 2/film.gif, 2/film.png, ...",
        "not used (1): folders that may not be read (permission denied): change their permissions: secret",
        "without a caption, and given an empty one: 6 pictures (1/y.jfif, 2/film.avif, 2/film.gif, ...)",
    ):
        assert sentence in notes
    assert "README" not in notes
    assert ".git" not in notes


@pytest.mark.filterwarnings("always")  # so that the terminal shows them
def test_train_and_plan_say_it_and_inspect_is_not_content(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = in_parts(tmp_path / "data")
    draw(root / "test" / "a" / "0.png", 9)
    write(root / "train" / "a" / "odd.psd", "x")
    small = ("--data", str(root), "--size", "8", "--set", "network.width=8", "--device", "cpu")
    tiny = ("--set", "training.images=32", "--set", "training.reports=1", "--set", "sampling.steps=1")
    for verb in (("plan",), ("train", "--out", str(tmp_path / "run"))):
        assert main([verb[0], "folder", *small, *tiny, *verb[1:]]) == 0
        told = capsys.readouterr().err
        assert "not used (1): pictures of a part that is not held out, since val/ is: test/a/0.png" in told
        assert "convert them to PNG or JPEG: train/a/odd.psd" in told
        assert "held out: 6 pictures in val/; data.heldout is not used" in told
    data = folder(str(root))
    assert data.train.classes == ("a", "b")
    for part, source in zip(("train", "val"), data, strict=True):
        files = source.about(np.arange(len(source))).files or []
        assert {name.split("/")[0] for name in files} == {part}
    assert main(["inspect", str(root), "--json", str(tmp_path / "found.json")]) == 0
    shown = capsys.readouterr().out
    assert "- unused (1): pictures of a kind that is not read: convert them to PNG or JPEG: train/a/odd.psd" in shown
    assert "- note: held out: 6 pictures in val/" in shown
    assert "healthy" not in shown
    assert set(json.loads((tmp_path / "found.json").read_text())["found"]["unused"]) == {
        "test/a/0.png",
        "train/a/odd.psd",
    }


def test_long_captions_are_named(tmp_path: Path) -> None:
    for number in range(3):
        draw(tmp_path / f"{number}.png", number)
        write(tmp_path / f"{number}.txt", "word " * (31 + number))
    data = folder(str(tmp_path))
    assert "(2): the ends of captions, of which the model reads 31 words" in notes_of(data, 32)[-1]
    assert notes_of(data, 34) == notes_of(data) == ()
    assert inspect(tmp_path).found["long text"] == {"1.png": "32 words", "2.png": "33 words"}


# ------------------------------------------------------------------------------------ what is common is read


def test_names_that_look_like_papers_are_data(tmp_path: Path) -> None:
    for name in ("license_plates/1.png", "license_plates/README.md", "readme/2.png", "licence.png", "__MACOSX/3.png"):
        draw(tmp_path / name, format="PNG")
    listing = list_pictures(str(tmp_path))
    assert listing.files == ("license_plates/1.png", "readme/2.png")
    assert listing.unused.names == {
        "pictures outside of the class folders, which have no class: move them into one": ["licence.png"]
    }


def test_captions_beside_pictures(tmp_path: Path) -> None:
    for number in range(4):
        draw(tmp_path / f"{number}.png", number)
    write(tmp_path / "0.txt", " a red\n circle ")
    write(tmp_path / "1.caption", "\u00fcber", "utf-16")
    write(tmp_path / "2.txt", "\ufeffa \u00e9")
    listing = list_pictures(str(tmp_path))
    assert listing.captions == ("a red circle", "\u00fcber", "a \u00e9", "")
    (tmp_path / "3.txt").write_bytes("\u00fc".encode("latin-1"))
    assert list_pictures(str(tmp_path)).notes == (
        "1 captions are neither UTF-8 nor marked as UTF-16: convert them (3.png)",
    )
    (tmp_path / "3.txt").unlink()
    (tmp_path / "1.caption").unlink()
    (tmp_path / "2.txt").unlink()
    listing = list_pictures(str(tmp_path))
    assert listing.captions is None
    assert "captions, since 3 of 4 pictures have none: 0.txt" in listing.unused.sentences()[0]


def test_metadata_in_other_forms(tmp_path: Path) -> None:
    """A table, other keys, sub-folders, UTF-16, names in another spelling of accents, links, parts."""
    for name in ("train/\u00e9.png", "train/b.png", "validation/c.png", "validation/d.png"):
        draw(tmp_path / name)
    (tmp_path / "train" / "link.png").symlink_to(draw(tmp_path.parent / "outside.png"))
    table = 'file_name,caption,label,values,artist\n{},"a, b",10,"1 2",x\nb.png,c,9,3;4,y\nlink.png,d,9,"5,6",\n'
    write(tmp_path / "train" / "metadata.csv", table.format(unicodedata.normalize("NFD", "\u00e9.png")), "utf-8-sig")
    held = [{"file_name": f"{name}.png", "prompt": name, "label": "9", "values": [7, 8]} for name in "cd"]
    write(tmp_path / "validation" / "metadata.jsonl", "\n".join(map(json.dumps, held)), "utf-16")
    listing = list_pictures(str(tmp_path))
    assert listing.files == (
        "train/b.png",
        "train/link.png",
        "train/\u00e9.png",
        "validation/c.png",
        "validation/d.png",
    )
    assert listing.captions == ("c", "d", "a, b", "c", "d")
    assert (listing.classes, listing.labels) == (("9", "10"), (0, 0, 1, 0, 0))
    assert listing.values == ((3, 4), (5, 6), (1, 2), (7, 8), (7, 8))
    assert listing.held == (False, False, False, True, True)
    assert listing.unused.sentences() == ("not used (1): keys of metadata.csv, which unfog does not read: artist",)
    assert list_pictures(str(tmp_path), "artist=x").files == ("train/\u00e9.png",)


@pytest.mark.parametrize("name", ["../x.png", "/x.png", "a/../../x.png"])
def test_no_form_of_metadata_leaves_the_folder(tmp_path: Path, name: str) -> None:
    draw(tmp_path / "in" / "a.png")
    write(tmp_path / "in" / "metadata.csv", f"file_name\n{name}\n")
    with pytest.raises(UserError, match="metadata.csv, line 2: .* is not a file below the folder"):
        list_pictures(str(tmp_path / "in"))


def test_the_layout_of_edm(tmp_path: Path) -> None:
    names = [f"0000{number % 2}/img{number}.png" for number in range(6)]
    for name in names:
        draw(tmp_path / name)
    pairs = [[name, number % 3] for number, name in enumerate(names)]
    write(tmp_path / "dataset.json", json.dumps({"labels": pairs}))
    listing = list_pictures(str(tmp_path))
    assert listing.classes == ("0", "1", "2")
    assert dict(zip(listing.files, listing.labels or (), strict=True)) == dict(map(tuple, pairs))
    write(tmp_path / "dataset.json", json.dumps({"labels": None}))
    assert list_pictures(str(tmp_path)).labels is None  # 00000 and 00001 are no classes


def test_links_parts_and_kohyas_names(tmp_path: Path) -> None:
    for number in range(2):
        draw(tmp_path / "elsewhere" / f"{number}.png", number)
        draw(tmp_path / "data" / "train" / "10_cat" / f"{number}.png", 10 + number)
        draw(tmp_path / "data" / "test" / "5_dog" / f"{number}.png", 20 + number)
    draw(tmp_path / "data" / "test" / "1_cow" / "0.png", 30)
    (tmp_path / "data" / "train" / "5_dog").symlink_to(tmp_path / "elsewhere")
    listing = list_pictures(str(tmp_path / "data"))
    assert (listing.classes, listing.labels) == (("5_dog", "10_cat"), (0, 0, 1, 1, 0, 0))
    assert listing.held == (True, True, False, False, False, False)
    notes = said(tmp_path / "data")
    assert "names such as 10_cat are not used as repeats" in notes or "names such as 1_cow are not" in notes
    assert "held-out pictures of a class that is not in the training part: test/1_cow/0.png" in notes


def test_a_vehicle_is_no_part(tmp_path: Path) -> None:
    for name in ("car/a.png", "train/b.png", "test/c.png"):
        draw(tmp_path / name)
    assert list_pictures(str(tmp_path)).classes == ("car", "test", "train")


def test_one_name_in_two_spellings_is_one_class(tmp_path: Path) -> None:
    for name in ("\u00e9", "e\u0301", "f"):
        draw(tmp_path / name / f"{len(name)}.png")
    listing = list_pictures(str(tmp_path))
    assert listing.classes == ("f", "\u00e9")
    assert "accents" in listing.notes[0]


def test_most_pictures_beside_folders_make_no_classes(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "c.png", "x/d.png", "y/e.png"):
        draw(tmp_path / name)
    listing = list_pictures(str(tmp_path))
    assert (listing.labels, len(listing.files)) == (None, 5)
    assert "are not used as classes" in listing.notes[0]


def test_colour_profiles_are_converted(tmp_path: Path) -> None:
    """A profile whose red and green are swapped shows it; one that is damaged, or sRGB's own, changes nothing."""
    own = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    entry = {own[at : at + 4]: at for at in range(132, 132 + 12 * 20, 12)}
    red, green = entry[b"rXYZ"], entry[b"gXYZ"]
    other = bytearray(own.replace(b"s\0R\0G\0B", b"o\0t\0h\0r").replace(b"sRGB", b"othr"))
    other[red + 4 : red + 12], other[green + 4 : green + 12] = own[green + 4 : green + 12], own[red + 4 : red + 12]
    for name, profile, colour in (("swapped", bytes(other), 1), ("own", own, 0), ("damaged", b"x" * 200, 0)):
        for mode, value in (("RGB", (255, 0, 0)), ("RGBA", (255, 0, 0, 255))):
            path = draw(tmp_path / f"{name}.png", value, mode, icc_profile=profile)  # type: ignore[arg-type]
            seen = read_picture(path, 3, 8, 8)[:, 0, 0]
            assert int(seen.argmax()) == colour, name
            assert name != "own" or seen.tolist() == [255, 0, 0]


@pytest.mark.parametrize(("suffix", "kind"), [("jfif", "JPEG"), ("jpe", "JPEG"), ("avif", "AVIF")])
def test_further_suffixes(tmp_path: Path, suffix: str, kind: str) -> None:
    for number in range(2):
        draw(tmp_path / f"{number}.{suffix}", 100, format=kind)
    assert describe_picture(tmp_path / f"0.{suffix}")[1:] == (8, 8)
    assert rows(folder(str(tmp_path)))[0][2][0] == pytest.approx(100, abs=1)


# ------------------------------------------------------------------------------------ archives


def shards(root: Path) -> list[Path]:
    """Two tars as WebDataset writes them, and what lies in them as a folder."""
    for number in range(6):
        draw(root / "plain" / f"{number:04}.png", 20 * number)
        write(root / "plain" / f"{number:04}.txt", f"thing {number}")
        write(root / "plain" / f"{number:04}.cls", str(number % 3 * 5))
    found = []
    for place in range(2):
        path = root / "shards" / f"{place}.tar"
        path.parent.mkdir(exist_ok=True)
        form = (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT)[place]
        with tarfile.open(path, "w", format=form) as file:
            for name in sorted(path.name for path in (root / "plain").iterdir()):
                if int(name[:4]) // 3 == place:
                    file.add(root / "plain" / name, f"./{name}")
            link = tarfile.TarInfo("link.png")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            file.addfile(link)
        found.append(path)
    return found


def test_shards_are_read_as_the_folder_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards(tmp_path)
    plain, packed = folder(str(tmp_path / "plain")), folder(str(tmp_path / "shards"))
    assert rows(plain) == rows(packed)
    assert packed.train.classes == ("0", "5", "10")
    assert list_pictures(str(tmp_path / "shards")).captions == tuple(f"thing {number}" for number in range(6))
    one, other = fingerprint(plain), fingerprint(packed)
    assert one.digest == other.digest
    assert not inspect(tmp_path / "shards").found["unused"]
    monkeypatch.setattr("unfog.data.folder.IN_MEMORY", 0)
    streamed = folder(str(tmp_path / "shards"), workers=1)
    try:
        assert rows(streamed) == rows(plain)
    finally:
        for part in streamed:
            assert isinstance(part, Streamed)
            for pool in part._pool:
                pool.shutdown()


def test_a_zip_is_read_as_the_folder_is(tmp_path: Path) -> None:
    root = in_parts(tmp_path / "plain")
    np.save(root / "train" / "a" / "z.npy", np.full((8, 8), 77, np.uint8))
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(root.rglob("*")):
            file.write(path, path.relative_to(root))
        file.writestr("__MACOSX/train/a/._0.png", "x")
    assert rows(folder(str(tmp_path / "x.zip"))) == rows(folder(str(root)))
    assert recipe("folder", str(tmp_path / "x.zip")).data.build().train.shape == (1, 8, 8)


def test_long_names_in_tars(tmp_path: Path) -> None:
    name = f"{'a' * 90}/{'b' * 120}/\u00e9.png"
    draw(tmp_path / "x.png", 50)
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT):
        own = name if form != tarfile.USTAR_FORMAT else f"{'a' * 90}/{'b' * 60}.png"
        with tarfile.open(tmp_path / "x.tar", "w", format=form) as file:
            file.add(tmp_path / "x.png", own)
            file.add(tmp_path / "x.png", "y.png")
        assert list_pictures(str(tmp_path / "x.tar")).files == tuple(sorted([own, "y.png"]))


def test_hostile_archives_get_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = shards(tmp_path)[0].read_bytes()
    head = bytearray(good[:512])
    head[124:136] = b"\x80" + (1 << 60).to_bytes(11, "big")  # a file of an exabyte
    head[148:156] = b" " * 8
    head[148:156] = f"{sum(head):06o}\0 ".encode()
    back = bytearray(head)
    back[124:136] = b"-0000001000\0"  # which would lead back to this header for ever
    back[148:156] = b" " * 8
    back[148:156] = f"{sum(back):06o}\0 ".encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("a.png", b"x")
    directory = bytearray(buffer.getvalue())
    directory[-10:-6] = (0xFFFFFFF0).to_bytes(4, "little")
    for name, data in (
        ("noise.tar", bytes(range(256)) * 8),
        ("cut.tar", good[:700]),
        ("negative.tar", bytes(back) + good[512:]),
        ("huge.tar", bytes(head) + good[512:]),
        ("packed.tar", b"\x1f\x8b" + bytes(range(250)) * 8),
        ("noise.zip", b"PK" + bytes(1000)),
        ("directory.zip", bytes(directory)),
        ("cut.zip", buffer.getvalue()[:-5]),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=f"{name} is no whole archive"):
            list_pictures(str(tmp_path / name))
    monkeypatch.setattr(packing, "MEMBERS", 3)
    with pytest.raises(UserError, match="holds more than 3 files"):
        list_pictures(str(tmp_path / "shards"))


@pytest.mark.parametrize("name", ["x.tar.gz", "x.7z", "x.arrow"])
def test_what_must_be_unpacked_is_said(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    for read in (partial(recipe, "folder"), inspect):
        with pytest.raises(UserError, match=f"{name} is not a folder but packed: unpack it"):
            read(str(tmp_path / name))


@pytest.mark.parametrize(("shape", "dtype"), [((8, 9), "u1"), ((8, 9, 3), ">u2"), ((3, 8, 9), "f4"), ((8, 9, 6), "u1")])
def test_one_array_is_a_set(tmp_path: Path, shape: tuple[int, ...], dtype: str) -> None:
    """As its rows are in files of their own; of an `.npz` the labels are read too."""
    numbers = np.random.default_rng(0).integers(0, 256, (12, *shape))
    rows_of = (numbers / 255 if dtype == "f4" else numbers * 257 if dtype == ">u2" else numbers).astype(dtype)
    for place, row in enumerate(rows_of):
        (tmp_path / "plain").mkdir(exist_ok=True)
        np.save(tmp_path / "plain" / f"{place:02}.npy", np.moveaxis(row, 0, 2) if shape == (3, 8, 9) else row)
    np.save(tmp_path / "x.npy", rows_of)
    labels = np.arange(12) % 3 * 5
    np.savez(tmp_path / "x.npz", images=rows_of, labels=labels, more=labels)
    for name, rules in (("x.npy", 3), ("x.npz", 2)):  # by the third, labels spread what is held out
        plain = folder(str(tmp_path / "plain"), size=[8, 9], rules=rules)
        data = folder(str(tmp_path / name), size=[8, 9], rules=rules)
        assert rows(data)[0][0] == rows(plain)[0][0]
        for one, other in zip(data, plain, strict=True):
            places = np.arange(len(one))
            assert np.array_equal(one.take(places).x.numpy(), other.take(places).x.numpy())
    batch = data.train.about(np.arange(len(data.train)))
    assert data.train.classes == ("0", "5", "10")
    assert batch.labels is not None
    assert batch.labels.tolist() == [int(name[:2]) % 3 for name in batch.files or ()]
    assert "of a kind that is not read: more (array)" in notes_of(data)[0]


def test_arrays_that_are_no_sets_get_a_sentence(tmp_path: Path) -> None:
    good = np.zeros((5, 8, 8), np.uint8)
    np.savez_compressed(tmp_path / "packed.npz", good)
    np.save(tmp_path / "one.npy", np.zeros((64, 64, 3), np.uint8))
    np.save(tmp_path / "flat.npy", np.zeros((64, 64), np.uint8))
    np.save(tmp_path / "objects.npy", np.array([[[object()]]]), allow_pickle=True)
    np.save(tmp_path / "fortran.npy", np.asfortranarray(good))
    np.save(tmp_path / "cut.npy", good)
    (tmp_path / "cut.npy").write_bytes((tmp_path / "cut.npy").read_bytes()[:-1])
    (tmp_path / "noise.npy").write_bytes(bytes(200))
    header = str({"descr": "|u1", "fortran_order": False, "shape": (1 << 40, 8, 8)}).ljust(117) + "\n"
    huge = b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header.encode()
    (tmp_path / "huge.npy").write_bytes(huge)
    for name, why in (
        ("packed.npz", "compressed: save them with numpy.savez"),
        ("one.npy", "is one picture"),
        ("flat.npy", "is no set of pictures"),
        ("objects.npy", "Python objects"),
        ("fortran.npy", "Fortran order"),
        ("cut.npy", "cut off"),
        ("huge.npy", "cut off"),
        ("noise.npy", "magic"),
    ):
        with pytest.raises(UserError, match=f"{name} .*{why}"):
            folder(str(tmp_path / name))


class Table:
    """What is used of pyarrow, over two columns that are not read and five pictures."""

    def __init__(self, path: Path) -> None:
        self.rows = json.loads(path.read_text())
        features = {"info": {"features": {"label": {"names": ["b", "a"]}}}}
        metadata = {b"huggingface": json.dumps(features).encode()}
        self.schema_arrow = SimpleNamespace(names=list(self.rows[0]), metadata=metadata)
        group = SimpleNamespace(total_byte_size=len(self.rows))
        self.metadata = SimpleNamespace(num_row_groups=1, row_group=lambda _: group)

    def iter_batches(self, batch_size: int, columns: list[str]) -> Iterator[SimpleNamespace]:
        for row in self.rows:
            cells = {name: row[name] for name in columns} | {"image": {"bytes": bytes(row["image"]), "path": None}}
            yield SimpleNamespace(to_pylist=partial(list, [cells]))


def test_parquet_of_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for pyarrow, which is an extra; without it, one sentence."""
    for part, count in (("train-00000-of-00001", 5), ("validation-00000-of-00001", 2)):
        found = []
        for number in range(count):
            image = list(draw(tmp_path / "x.png", 20 * number).read_bytes())
            found.append({"image": image, "label": number % 2, "caption": f"no {number}", "author": "x"})
        write(tmp_path / "data" / f"{part}.parquet", json.dumps(found))
    (tmp_path / "x.png").unlink()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"pyarrow is missing: install it with pip install 'unfog\[parquet\]'"):
        folder(str(tmp_path))
    parquet = SimpleNamespace(ParquetFile=Table)
    monkeypatch.setitem(sys.modules, "pyarrow", SimpleNamespace(parquet=parquet))
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", parquet)
    data = folder(str(tmp_path))
    train, held = rows(data)
    assert (train[1], train[2], held[1], held[2]) == ([1, 0, 1, 0, 1], [0, 20, 40, 60, 80], [1, 0], [0, 20])
    assert data.train.classes == ("a", "b")
    assert data.heldout.about(np.arange(2)).captions == ["no 0", "no 1"]
    assert "validation-00000-of-00001.parquet/author (column)" in notes_of(data)[0]
    monkeypatch.setattr("unfog.data.tables.TOTAL", 100)
    with pytest.raises(UserError, match="more than 100 bytes of pictures: unpack them"):
        folder(str(tmp_path / "data" / "train-00000-of-00001.parquet"))


# ------------------------------------------------------------------------------------ the set decides


def test_twelve_bits_fill_the_range(tmp_path: Path) -> None:
    root = deep(tmp_path)
    assert sorted(value for _, _, values in rows(folder(str(root))) for value in values) == [6, 62, 125, 255]
    notes = said(root)
    assert "numbers from 100 to 4095 in 4 pictures" in notes
    assert "0 is black and 4095 white (data.range=[0,4095])" in notes
    filled, _ = build_data(recipe("folder", str(root)))
    draw(root / "more.png", 60_000, "I;16")
    again, data = build_data(Recipe.from_json(filled.to_json()))
    assert again.data == filled.data  # the scale of a run stays
    assert max(rows(data)[0][2]) == 255
    (root / "more.png").unlink()
    data = folder(str(root), range=[0, 1000])
    assert sorted(value for _, _, values in rows(data) for value in values) == [26, 255, 255, 255]
    for span in ([1, 1], [2, 1], [0], [0, float("nan")]):
        with pytest.raises(UserError, match=r"data.range must be \[black, white\]"):
            folder(str(root), range=span)


@pytest.mark.parametrize(
    ("values", "mode", "expected"),
    [
        ((0.5, 1.25, 2.5), "F", [51, 128, 255]),  # by itself each would end at 1 or at 255
        ((0.0, 0.5, 0.25), "F", [0, 64, 128]),
        ((-1.0, 0.0, 1.0), "F", [0, 128, 255]),
        ((-1000, 0, 1000), "I", [0, 128, 255]),
        ((-1000.0, 0.0, 1000.0), "F", [0, 128, 255]),
    ],
)
def test_one_scale_for_signed_and_floating_numbers(
    tmp_path: Path, values: tuple[float, ...], mode: str, expected: list[int]
) -> None:
    for number, value in enumerate(values):
        draw(tmp_path / "tiff" / f"{number}.tif", value, mode)
        kind = np.float32 if mode == "F" else np.int16
        (tmp_path / "array").mkdir(exist_ok=True)
        np.save(tmp_path / "array" / f"{number}.npy", np.full((8, 8), value, kind))
    for form in ("tiff", "array"):
        found = [value for _, _, part in rows(folder(str(tmp_path / form))) for value in part]
        assert sorted(found) == expected, form


def test_signed_sixteen_bits(tmp_path: Path) -> None:
    """Computed tomography: -1024 is air, which a format's own range would cut off."""
    for number, value in enumerate((-1024, 0, 1024)):
        data = np.full((8, 8), value, "<i2")
        tags = {256: 8, 257: 8, 258: 16, 259: 1, 262: 1, 273: 8, 277: 1, 278: 8, 279: 128, 339: 2}
        body = b"II*\0" + (8 + 128).to_bytes(4, "little") + data.tobytes() + len(tags).to_bytes(2, "little")
        for tag, content in tags.items():
            kind = 3 if tag not in (273, 279) else 4
            body += tag.to_bytes(2, "little") + kind.to_bytes(2, "little") + b"\1\0\0\0" + content.to_bytes(4, "little")
        (tmp_path / f"{number}.tif").write_bytes(body + bytes(4))
    assert sorted(value for _, _, part in rows(folder(str(tmp_path))) for value in part) == [0, 128, 255]


def test_kinds_without_a_common_scale_and_numbers_that_are_none(tmp_path: Path) -> None:
    draw(tmp_path / "a.tif", 0.5, "F")
    draw(tmp_path / "b.png", 4000, "I;16")
    with pytest.raises(UserError, match="fractions up to 0.5 and whole numbers up to 4000: convert them"):
        folder(str(tmp_path))
    draw(tmp_path / "b.png", 3)
    draw(tmp_path / "c.tif", float("nan"), "F")
    draw(tmp_path / "d.tif", 1.5, "F")
    with pytest.warns(UserWarning, match=r"c\.tif \(its values are not all finite\)"):
        folder(str(tmp_path))


def test_names_are_in_the_order_of_people(tmp_path: Path) -> None:
    names = ["10", "2", "b10", "b9", "cat", "01", "1", "\u00c9", "B1"]
    assert sorted(names, key=natural) == ["B1", "b9", "b10", "cat", "\u00c9", "01", "1", "2", "10"]
    for number in range(1, 12):
        draw(tmp_path / str(number) / "x.png", number)
    train, held = rows(folder(str(tmp_path)))
    assert [label + 1 for label in (train[1] or []) + (held[1] or [])] == train[2] + held[2]


def test_a_number_never_draws_another_number() -> None:
    """`--label 1` does not draw '02'."""

    def number(label: int | str, *classes: str) -> list[int]:
        found = ClassConditioning().ask(Known((1, 8, 8), classes, ()), label, 1)
        assert found is not None
        return found.tolist()

    for label, classes in (("1", ("01", "02", "10")), ("0", ("1", "2", "11")), ("2", ("1", "3", "11"))):
        with pytest.raises(UserError, match="may mean the class"):
            number(label, *classes)
    assert number("1", "1", "2", "11") == [0]
    assert number("02", "01", "02", "10") == [1]
    assert number("1", "cat", "dog") == [1]
    assert number(1, "1", "2", "11") == [1]
    assert number("2", "cat", "dog", "5") == [2]
    with pytest.raises(UserError, match="may mean the class"):
        number("1", "cat", "dog", "01")


def test_about_a_tenth_is_held_out_or_it_is_said(tmp_path: Path) -> None:
    names = [f"{number}.png" for number in range(50)]
    for share in (0.1, 0.3):
        parts = split_groups(names, share)
        assert parts is not None
        assert all(np.array_equal(one, other) for one, other in zip(parts, split_rows(names, share), strict=True))
    many = [f"{number // 3}" if number < 40 else "1girl" for number in range(120)]
    parts = split_groups(many, 0.1)
    assert parts is not None
    assert 6 <= len(parts[1]) <= 18
    for size, text in ((120, "1girl"), (12, "a photo of sks dog")):
        root = tmp_path / text
        for number in range(size):
            draw(root / f"{number}.png", number)
            lead = text if 3 * number < 2 * size or size == 12 else "2girls"
            write(root / f"{number}.txt", f"{lead}, tag {number}" if size == 120 else text)
        data = folder(str(root), together=":,")
        assert len(data.heldout) == max(1, round(0.1 * size))
        assert "held out one by one, since their captions make groups too large" in " ".join(notes_of(data))


def test_a_part_without_readable_pictures_is_refused(tmp_path: Path) -> None:
    for number in range(3):
        draw(tmp_path / "train" / f"{number}.png", number)
    write(tmp_path / "val" / "0.png", "no picture")
    with (
        pytest.warns(UserWarning, match="skipped 1 of 4"),
        pytest.raises(UserError, match="no readable pictures in one of its parts"),
    ):
        folder(str(tmp_path))


@pytest.mark.filterwarnings("ignore:.*a single colour")
def test_pictures_of_six_channels_are_sampled_as_arrays(tmp_path: Path) -> None:
    for number in range(12):
        (tmp_path / "data").mkdir(exist_ok=True)
        np.save(tmp_path / "data" / f"{number}.npy", np.full((8, 8, 6), 20 * number, np.uint8))
    small = ("network.width=8", "training.images=32", "training.reports=1", "sampling.steps=1", "optimizer.warmup=8")
    run = train(recipe("folder", str(tmp_path / "data")).set(*small), tmp_path / "run", device="cpu", console=QUIET)
    assert main(["sample", str(run.path), "-n", "2", "--out", str(tmp_path / "out"), "--device", "cpu"]) == 0
    assert sorted(path.name for path in (tmp_path / "out").glob("*.npy")) == ["00000.npy", "00001.npy"]
    assert describe_picture(tmp_path / "out" / "00000.npy") == (6, 8, 8)


def photo(path: Path, width: int, height: int, orientation: int = 1) -> Path:
    """Write a JPEG with waves of many lengths, down to four pixels."""
    down, across = np.mgrid[:height, :width]
    lengths = ((4.3, 1, 0), (9.7, 0, 1), (31, 1, 1), (90, 1, -1), (300, 0, 1))
    waves = sum(np.sin(2 * np.pi * (across * right + down * below) / length) for length, right, below in lengths)
    colours = np.stack([128 + 20 * waves, 110 + 18 * waves[::-1], 140 - 15 * waves], axis=-1)
    pixels = colours.clip(0, 255).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, quality=92, exif=exif)
    return path


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize(
    ("width", "height", "size", "part"),
    [(640, 480, (60, 80), 4), (640, 480, (48, 48), 4), (1000, 300, (64, 64), 2), (640, 480, (240, 320), 1)],
)
def test_a_large_jpeg_is_decoded_in_part(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    width: int,
    height: int,
    size: tuple[int, int],
    part: int,
    orientation: int,
) -> None:
    """Twice the size is left at least, turned as it is shown, and the pixels are those of the whole but for a few."""
    path = photo(tmp_path / "a.jpg", width, height, orientation)
    sides = size if orientation == 1 else size[::-1]
    whole = read_picture(path, 3, *sides, Reading(coarse=False))
    seen: list[tuple[int, int]] = []
    monkeypatch.setattr(pictures, "fitted", lambda one, *to: seen.append(one.size) or fitted(one, *to))
    coarse = read_picture(path, 3, *sides)
    across, down = (width, height) if orientation == 1 else (height, width)
    assert seen == [(-(-across // part), -(-down // part))]
    assert min(seen[0][0] / sides[1], seen[0][1] / sides[0]) >= 2 or part == 1
    off = abs(coarse.astype(int) - whole)
    assert off.mean() < 1.2
    assert np.array_equal(coarse, whole) == (part == 1)


def test_runs_of_before_decode_whole_jpegs(tmp_path: Path) -> None:
    """By the rules of their time, to the bit; other formats are always decoded whole."""
    for number in range(4):
        photo(tmp_path / f"{number}.jpg", 320 + number, 240)
        with Image.open(tmp_path / f"{number}.jpg") as picture:
            picture.save(tmp_path / f"{number}.png")
    for rules, alike in ((3, True), (4, False)):
        data = folder(str(tmp_path), size=32, rules=rules)
        batch = data.train.take(np.arange(len(data.train)))
        for pixels, file in zip(batch.x.numpy(), batch.files or (), strict=True):
            whole = np.array_equal(pixels, read_picture(tmp_path / file, 3, 32, 32, Reading(coarse=False)))
            assert whole == (alike or file.endswith("png"))
