"""The data doctor: each planted fault is found and named, nothing else is, and no file makes it fail."""

import io
import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from unfog.cli.main import main
from unfog.data.folder import list_pictures
from unfog.data.inspect import FINDINGS, NOTES, Report, inspect, quick
from unfog.data.source import Batch, Data, Indices, InMemory, split
from unfog.runtime.errors import UserError

SMALL = ("--set", "network.width=8", "--set", "training.images=64", "--set", "sampling.steps=2", "--device", "cpu")


def noise(seed: int, height: int = 32, width: int = 32, channels: int = 3) -> NDArray[np.uint8]:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save(pixels: NDArray[np.uint8], path: Path, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def found(report: Report) -> dict[str, list[str]]:
    """What was found, kind by kind, without the words."""
    return {kind: sorted(names) for kind, names in report.found.items() if names}


def write_metadata(root: Path, *lines: object) -> None:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (root / "metadata.jsonl").write_text("\n".join(texts) + "\n")


def healthy(root: Path, count: int = 6) -> Path:
    """Two classes of noise."""
    for index in range(count):
        save(noise(index), root / "cats" / f"{index}.png")
        save(noise(100 + index), root / "dogs" / f"{index}.png")
    return root


@pytest.fixture
def faulty(tmp_path: Path) -> Path:
    """A folder of classes with every fault that needs no metadata."""
    root = healthy(tmp_path / "data", 12)
    (root / "cats" / "text.png").write_text("no picture")
    cut = save(noise(50), root / "cats" / "cut.png")
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    save(noise(3), root / "dogs" / "twin.bmp")
    save(np.full((32, 32, 3), 7, np.uint8), root / "cats" / "blank.png")
    save(noise(51, 48, 32), root / "dogs" / "turned.png", exif=turned(6))
    save(noise(52, 16, 20), root / "dogs" / "tiny.png")
    save(noise(53, 40, 100), root / "dogs" / "banner.png")
    save(noise(54, 40, 80), root / "dogs" / "twice.png")  # the crop leaves just half of it
    save(noise(55, 17, 17), root / "dogs" / "nearly.png")  # not quite too small
    np.save(root / "dogs" / "two.npy", noise(56, channels=2))
    save(noise(57), root / "birds" / "lonely.png")
    return root


PLANTED = {
    "unreadable": ["cats/text.png"],
    "truncated": ["cats/cut.png"],
    "channels": ["dogs/two.npy"],
    "duplicate": ["dogs/twin.bmp"],
    "two labels": ["dogs/twin.bmp"],
    "constant": ["cats/blank.png"],
    "small": ["dogs/tiny.png"],
    "long": ["dogs/banner.png"],
    "few": ["birds"],
    "rotated": ["dogs/turned.png"],
    "odd": ["dogs/banner.png", "dogs/twin.bmp", "dogs/two.npy"],
}


def test_every_planted_fault_is_found_and_nothing_else(faulty: Path) -> None:
    report = inspect(faulty)
    assert found(report) == PLANTED
    assert not report.healthy
    assert (report.refusal, report.shape) == (None, (3, 32, 32))
    assert report.classes == {"dogs": 19, "cats": 15, "birds": 1}
    assert report.found["duplicate"]["dogs/twin.bmp"] == "same as cats/3.png"
    assert report.found["small"]["dogs/tiny.png"] == "20×16"
    assert report.found["rotated"]["dogs/turned.png"] == "orientation 6"
    assert report.found["odd"]["dogs/banner.png"] == "100×40"
    assert report.found["odd"]["dogs/twin.bmp"] == "BMP"
    assert "cannot identify" in report.found["unreadable"]["cats/text.png"]
    row = report.pictures["dogs/turned.png"]
    assert (row.height, row.width) == (32, 48)  # as it is seen, and not as it is stored


def test_the_report_and_the_json_name_them(faulty: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "found.json"
    assert main(["inspect", str(faulty), "--json", str(out)]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    for kind, names in PLANTED.items():
        line = next(line for line in shown.out.splitlines() if line.startswith(f"- {kind} ({len(names)}): "))
        assert all(name in line for name in names)
    assert "images: 35, 33 of them readable" in shown.out
    assert "PNG 31, BMP 1, NPY 1" in shown.out
    assert "width 17 to 100 (median 32)" in shown.out
    assert "classes: 3 (dogs 19, cats 15, birds 1)" in shown.out
    assert "healthy" not in shown.out
    plain = json.loads(out.read_text())
    assert {kind: sorted(names) for kind, names in plain["found"].items()} == PLANTED
    assert (plain["files"], len(plain["pictures"]), plain["healthy"], plain["refusal"]) == (35, 33, False, None)
    assert set(plain["pictures"]) == set(list_pictures(str(faulty)).files) - {"cats/text.png", "cats/cut.png"}
    assert plain["pictures"]["dogs/tiny.png"]["width"] == 20
    assert plain["sizes"]["width / height"] == {"min": 32 / 32, "median": 1.0, "max": 2.5}
    command = f"unfog train folder {faulty} --size 32"
    assert plain["suggestion"] == {"channels": 3, "side": 32, "command": command}
    assert f"suggested: channels 3, side 32: {command}" in shown.out


def test_many_names_are_all_in_the_json_and_few_in_the_report(tmp_path: Path) -> None:
    healthy(tmp_path, 5)
    for number in range(9):
        (tmp_path / "cats" / f"text{number}.png").write_text("no picture")
    report = inspect(tmp_path)
    assert "text4.png" in report.text()
    assert "text5.png" not in report.text()
    assert len(json.loads(report.to_json())["found"]["unreadable"]) == 9


def test_a_healthy_folder_is_called_healthy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = healthy(tmp_path / "my pictures")
    assert main(["inspect", str(root)]) == 0
    shown = capsys.readouterr()
    assert "healthy: no faults found" in shown.out
    assert "\n- " not in shown.out
    assert len(shown.out.splitlines()) <= 7
    assert f"unfog train folder '{root}' --size 32" in shown.out
    assert shown.err == ""


def test_a_turned_picture_alone_is_no_fault(tmp_path: Path) -> None:
    save(noise(0), healthy(tmp_path) / "cats" / "turned.png", exif=turned(3))
    report = inspect(tmp_path)
    assert report.healthy
    assert found(report) == {"rotated": ["cats/turned.png"]}
    assert set(NOTES) < set(FINDINGS)


def test_the_same_pixels_in_any_file(tmp_path: Path) -> None:
    """Grey is grey in any mode, and upright is upright; the same bytes in another shape are another picture."""
    grey = noise(0, 16, 32, 1)
    save(grey, tmp_path / "a.png")
    save(np.repeat(grey[..., None], 3, axis=2), tmp_path / "b.bmp")
    save(np.rot90(grey).copy(), tmp_path / "c.png", exif=turned(6))
    np.save(tmp_path / "d.npy", grey)
    save(grey.reshape(32, 16), tmp_path / "e.png")
    save(np.where(np.arange(512).reshape(16, 32) == 300, grey ^ 1, grey), tmp_path / "f.png")
    report = inspect(tmp_path)
    assert report.found["duplicate"] == dict.fromkeys(["b.bmp", "c.png", "d.npy"], "same as a.png")
    assert not report.found["constant"]


def test_one_other_pixel_is_not_constant(tmp_path: Path) -> None:
    for name, value in (("a", 0), ("b", 1)):
        pixels = np.zeros((8, 8), np.uint8)
        pixels[-1, -1] = value
        save(pixels, tmp_path / f"{name}.png")
    assert found(inspect(tmp_path)) == {"constant": ["a.png"]}


def test_loose_pictures_are_not_used_and_classes_stay(tmp_path: Path) -> None:
    save(noise(99), healthy(tmp_path) / "stray.png")
    report = inspect(tmp_path)
    assert found(report) == {"unused": ["stray.png"]}
    assert report.classes == {"cats": 6, "dogs": 6}
    assert not report.healthy
    assert "- unused (1): pictures outside of the class folders, which have no class" in report.text()


def test_odd_ones_are_those_unlike_the_rest(tmp_path: Path) -> None:
    """A twentieth of the pictures are no odd ones, less than that are; far off means four times, or twice as long."""
    for index in range(38):
        save(noise(index), tmp_path / f"{index:02}.png")
    for name in ("grey1", "grey2"):
        save(noise(len(name) + ord(name[-1]), channels=1), tmp_path / f"{name}.png")
    assert not found(inspect(tmp_path))
    save(noise(90, 130, 130), tmp_path / "large.png")
    save(noise(91, 128, 128), tmp_path / "four.png")
    assert found(inspect(tmp_path)) == {"odd": ["grey1.png", "grey2.png", "large.png"]}


def test_metadata_that_training_refuses_is_diagnosed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for index in range(10):
        save(noise(index), tmp_path / f"{index}.png")
    known = {"label": "cat", "values": [0.5]}
    write_metadata(
        tmp_path,
        *({"file_name": f"{index}.png", "text": "a cat", **known} for index in range(5)),
        {"file_name": "./5.png", "text": "  ", **known},
        {"file_name": "6.png", "label": "cat"},
        {"file_name": "7.png", "text": "a dog", "values": [1.0], "label": None},
        {"file_name": "gone.png", "text": "a bird", **known},
        {"file_name": "0.png", "text": "a tabby", **known},
        '{"file_name": "8.png"',
        {"file_name": "../9.png"},
    )
    with pytest.raises(UserError):
        list_pictures(str(tmp_path))
    report = inspect(tmp_path)
    assert found(report) == {
        "bad line": ["line 11", "line 12"],
        "repeated": ["0.png"],
        "orphaned": ["gone.png"],
        "unused": ["8.png", "9.png"],
        "no label": ["7.png"],
        "no text": ["6.png"],
        "no values": ["6.png"],
        "empty text": ["5.png"],
    }
    assert report.classes == {"cat": 7}
    assert sorted(report.captions) == ["a cat"] * 4 + ["a dog", "a tabby"]
    assert report.shared == pytest.approx(4 / 6)
    assert len(report.pictures) == 10
    assert main(["inspect", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "training refuses this folder" in shown
    assert "line 11: not a JSON object" in shown
    assert "captions: 6, 67% of them at more than one image" in shown
    assert "healthy" not in shown


def test_partial_captions_alone_are_reported(tmp_path: Path) -> None:
    for index in range(4):
        save(noise(index), tmp_path / f"{index}.png")
    write_metadata(tmp_path, *({"file_name": f"{i}.png", **({"text": f"{i}"} if i else {})} for i in range(4)))
    report = inspect(tmp_path)
    assert found(report) == {"no text": ["0.png"]}
    assert "'text' is missing for 0.png" in (report.refusal or "")
    assert not report.healthy


def test_healthy_metadata(tmp_path: Path) -> None:
    for index in range(10):
        save(noise(index), tmp_path / f"{index}.png")
    labels = [["red", "big"] if index < 5 else ["red"] for index in range(10)]
    write_metadata(tmp_path, *({"file_name": f"{i}.png", "text": f"{i}", "label": labels[i]} for i in range(10)))
    report = inspect(tmp_path)
    assert report.healthy, report.text()
    assert report.classes == {"red": 10, "big": 5}
    assert (len(report.captions), report.shared) == (10, 0)


def test_few_is_less_than_five_or_than_a_tenth(tmp_path: Path) -> None:
    for index in range(62):
        save(noise(index, 8, 8), tmp_path / f"{index}.png")
    sizes = {"all": range(62), "six": range(6), "seven": range(7), "four": range(4)}
    labels = [[name for name, rows in sizes.items() if index in rows] for index in range(62)]
    write_metadata(tmp_path, *({"file_name": f"{i}.png", "label": labels[i]} for i in range(62)))
    assert inspect(tmp_path).found["few"] == {"four": "4", "six": "6"}


def test_what_is_no_folder_of_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = healthy(tmp_path / "data")
    empty = tmp_path / "empty"
    empty.mkdir()
    for arguments, sentence in (
        ([str(tmp_path / "nowhere")], "nowhere is not a folder: pass"),
        ([str(root / "cats" / "0.png")], "0.png is not a folder: pass"),
        (["x" * 5000], "is not a folder: pass"),
        ([str(empty)], "empty contains no images"),
        ([str(root), "--json", str(empty)], "empty is a folder: give --json the path of a file"),
        ([str(root), "--sheet", str(empty)], "empty is a folder: give --sheet the path of a file"),
        ([str(root), "--sheet", str(root / "cats" / "sheet.png")], "would be one of the pictures"),
    ):
        assert main(["inspect", *arguments]) == 2
        shown = capsys.readouterr()
        assert sentence in shown.err
        assert shown.out == ""
    assert not (root / "cats" / "sheet.png").exists()


def test_nothing_readable_is_a_diagnosis(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, sheet = tmp_path / "data", tmp_path / "sheet.png"
    root.mkdir()
    (root / "a.png").write_text("no picture")
    (root / "b.npy").write_bytes(b"")
    assert main(["inspect", str(root), "--sheet", str(sheet), "--json", str(tmp_path / "x.json")]) == 0
    shown = capsys.readouterr()
    assert "- unreadable (2)" in shown.out
    assert "training refuses this folder: none of the images" in shown.out
    assert not sheet.exists()
    assert json.loads((tmp_path / "x.json").read_text())["suggestion"] is None


def test_one_readable_picture_is_no_set(tmp_path: Path) -> None:
    save(noise(0), tmp_path / "a.png")
    assert "fewer than 2 readable" in (inspect(tmp_path).refusal or "")


def test_no_file_makes_it_fail(tmp_path: Path) -> None:
    """Damage of every kind."""
    draw = random.Random(0)
    for suffix in (".png", ".jpg", ".gif", ".bmp", ".webp", ".tif", ".ppm", ".npy"):
        buffer = io.BytesIO()
        if suffix == ".npy":
            np.save(buffer, noise(0, 9, 9))
        else:
            Image.fromarray(noise(0, 9, 9)).save(buffer, format=Image.registered_extensions()[suffix], exif=turned(6))
        for trial in range(12):
            raw = bytearray(buffer.getvalue() if trial % 3 else buffer.getvalue()[: draw.randrange(buffer.tell())])
            for _ in range(draw.choice([1, 2, 8]) if raw else 0):
                raw[draw.randrange(min(len(raw), 150))] = draw.randrange(256)
            (tmp_path / f"{trial}{suffix}").write_bytes(raw)
    (tmp_path / "empty.png").touch()
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "dangling.png").symlink_to(tmp_path / "nowhere")
    assert main(["inspect", str(tmp_path), "--json", str(tmp_path / "found.json")]) == 0
    plain = json.loads((tmp_path / "found.json").read_text())
    assert plain["files"] == 8 * 12 + 1
    bad = {**plain["found"]["unreadable"], **plain["found"]["truncated"]}
    assert len(bad) + len(plain["pictures"]) == plain["files"]
    assert not {*bad} & {*plain["pictures"]}
    assert "empty.png" in bad


def test_names_that_no_terminal_can_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/odd\xff\n\x1b.png")).write_text("no picture")
    assert main(["inspect", str(tmp_path), "--json", str(tmp_path / "found.json")]) == 0
    shown = capsys.readouterr().out
    assert "odd\\udcff\\n\\x1b.png (" in shown
    assert "\x1b" not in shown
    assert "odd\udcff\n\x1b.png" in json.loads((tmp_path / "found.json").read_text())["found"]["unreadable"]


def test_a_sheet_shows_the_faulty_ones_first(faulty: Path, tmp_path: Path) -> None:
    for name in PLANTED["duplicate"] + PLANTED["channels"]:
        (faulty / name).unlink()  # so that the constant picture is the first that can be shown
    assert main(["inspect", str(faulty), "--sheet", str(tmp_path / "sheet.png")]) == 0
    with Image.open(tmp_path / "sheet.png") as picture:
        drawn = np.asarray(picture)
    rows = np.nonzero((drawn == 7).all(-1).sum(1) >= 64)[0]  # the constant picture, twofold
    assert (len(rows), rows[0] < 40) == (64, True)


def test_a_sheet_of_a_large_folder_is_spread_over_it(tmp_path: Path) -> None:
    for index in range(130):
        save(np.full((8, 8), index, np.uint8) + np.arange(8, dtype=np.uint8), tmp_path / f"{index:03}.png")
    drawn = inspect(tmp_path).sheet()
    assert drawn is not None
    values = np.asarray(drawn)[6:-1:54, 6:-1:54, 0]  # the first pixel of each
    assert values.max() >= 126


# ------------------------------------------------------------------------------------------- before training


def pictures(count: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (count, 1, 4, 4), dtype=np.uint8))


def as_data(*parts: object) -> Data:
    source = InMemory(*parts)
    return Data(source, source)


def test_quick_is_silent_about_healthy_rows() -> None:
    labels = torch.arange(100) % 2
    assert quick(as_data(pictures(100), labels, ("a", "b"), ("a text",) * 100)) == []
    assert quick(as_data(torch.zeros(50, 2))) == []  # points of the plane may lie where they like


@pytest.mark.parametrize(("count", "said"), [(9, False), (10, True)])
def test_quick_speaks_of_one_in_a_hundred(count: int, said: bool) -> None:
    x = pictures(1000)
    x[100 : 100 + count] = torch.arange(count, dtype=torch.uint8)[:, None, None, None]
    whole = quick(as_data(x))
    assert [sentence.split(": ")[0] for sentence in whole] == (
        ["10 of 1000 training rows are a single colour"] if said else []
    )
    x = pictures(1000)
    x[-count:] = x[:count]
    assert any("duplicates of another" in sentence for sentence in quick(as_data(x))) is said
    texts = (" ",) * count + ("a text",) * (1000 - count)
    assert (
        any("captioned without words" in sentence for sentence in quick(as_data(pictures(1000), None, (), texts)))
        is said
    )


@pytest.mark.parametrize("several", [False, True])
def test_quick_names_the_classes_that_hardly_occur(several: bool) -> None:
    labels = torch.tensor([0] * 150 + [1] * 3 + [2] * 4)
    held = torch.nn.functional.one_hot(labels).bool() if several else labels
    (sentence,) = quick(as_data(pictures(157), held, ("most", "scarce", "enough")))
    assert "scarce" in sentence
    assert "enough" not in sentence
    few = torch.arange(100)  # of many classes, none has much
    assert quick(as_data(pictures(100), few, tuple(map(str, range(110))))) == []


class Slow:
    """Rows that must be decoded, and that count how often they are."""

    shape, classes, slow = (1, 4, 4), (), True

    def __init__(self) -> None:
        self.taken: list[int] = []

    def __len__(self) -> int:
        return 5000

    def take(self, indices: Indices) -> Batch:
        self.taken += indices.tolist()
        return Batch(pictures(len(indices)))


def test_quick_decodes_no_more_than_it_says_and_spreads_it() -> None:
    slow = Slow()
    assert quick(Data(slow, slow)) == []
    assert len(slow.taken) == 200
    assert (slow.taken[0], slow.taken[-1]) == (0, 4999)
    kept = split(InMemory(pictures(1000)), 0.1)
    kept.train.source.x[:] = 5  # type: ignore[attr-defined]
    assert "of 900 training rows" in quick(kept)[0]


@pytest.mark.filterwarnings("default:.*training rows")  # so that it comes as a line, as it does outside of tests
def test_training_warns_of_what_it_sees(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "data"
    for index in range(12):
        save(noise(index, 8, 8), root / f"{index}.png")
        save(np.full((8, 8, 3), 7, np.uint8), root / f"blank{index}.png")
    assert main(["train", "folder", "--data", str(root), *SMALL, "--out", str(tmp_path / "run")]) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert len(said) == 2
    assert "of 22 training rows are a single colour: if they are files, `unfog inspect` lists them" in said[0]
    assert "of 22 training rows are duplicates of another" in said[1]
