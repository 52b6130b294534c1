"""What a row is: which modality it has, how it is shown, written and read, and that every part asks the modality."""

import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import unfog
from unfog.cli.main import main
from unfog.data.modality import (
    Modality,
    arrays,
    has_plane,
    images,
    modality_of,
    modality_of_rows,
    paired,
    planes,
    points,
    sheet,
)
from unfog.data.pictures import UnreadableError, tile
from unfog.data.source import Data, InMemory, split
from unfog.recipes.kinds import KINDS
from unfog.recipes.recipe import Recipe
from unfog.runs.run import load
from unfog.runtime.errors import UserError

SOURCE = Path(__file__).parents[2] / "src" / "unfog"


def pixels(picture: Image.Image) -> np.ndarray:
    """Return a picture as an array."""
    return np.asarray(picture.convert("RGB"))


def grey(count: int, *shape: int) -> Tensor:
    """Return bytes that all differ a little."""
    return (torch.arange(count * int(np.prod(shape))) % 251).to(torch.uint8).reshape(count, *shape)


@pytest.mark.parametrize(
    ("shape", "dtype", "wanted", "words"),
    [
        ((1,), None, points, "points in 1 dimension"),
        ((2,), torch.float32, points, "points in 2 dimensions"),
        ((1, 28, 28), None, images, "images of 1×28×28"),
        ((3, 8, 8), torch.uint8, images, "images of 3×8×8"),
        ((6, 8, 8), torch.uint8, planes, "images of 6×8×8"),
        ((2, 8, 8), None, planes, "images of 2×8×8"),
        ((3, 8, 8), torch.float32, arrays, "arrays of 3×8×8"),
        ((2, 64), None, arrays, "arrays of 2×64"),
        ((1, 8, 8, 8), torch.float32, arrays, "arrays of 1×8×8×8"),
    ],
)
def test_the_modality_of_rows(shape: tuple[int, ...], dtype: torch.dtype | None, wanted: Modality, words: str) -> None:
    assert modality_of(shape, dtype) == wanted
    assert wanted.describe(shape) == words
    if dtype is not None:
        assert modality_of_rows(torch.zeros(2, *shape, dtype=dtype)) == wanted


@pytest.mark.parametrize("shape", [(), (1, 2, 3, 4, 5)])
def test_rows_of_no_modality_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="rows of shape .* are of no known modality: use 1 to 4 axes, or give"):
        modality_of(shape)


def test_only_points_of_two_coordinates_have_a_plane() -> None:
    assert has_plane(points, (2,))
    assert not has_plane(points, (3,))
    assert not has_plane(arrays, (2,))
    assert not has_plane(points, None)


ROWS: list[tuple[Modality, Tensor]] = [
    (points, torch.tensor([[0.5, -1.25], [3.0, 1e-8]])),
    (images, grey(1, 1, 5, 4)),
    (images, grey(1, 3, 5, 4)),
    (planes, grey(1, 6, 5, 4)),
    (arrays, torch.linspace(-2, 2, 12).reshape(1, 2, 6)),
    (arrays, torch.linspace(-2, 2, 24).reshape(1, 1, 2, 3, 4)),
]


@pytest.mark.parametrize(("modality", "rows"), ROWS, ids=lambda value: getattr(value, "name", "rows"))
def test_what_is_written_is_read_again(modality: Modality, rows: Tensor, tmp_path: Path) -> None:
    path = tmp_path / f"x{modality.suffix}"
    modality.write(rows, path)
    again = modality.read(path, tuple(rows.shape[1:]))
    assert again.dtype == rows.dtype
    assert torch.equal(again, rows)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(("modality", "rows"), ROWS, ids=lambda value: getattr(value, "name", "rows"))
def test_what_is_damaged_is_unreadable(modality: Modality, rows: Tensor, tmp_path: Path) -> None:
    path = tmp_path / f"x{modality.suffix}"
    with pytest.raises(UnreadableError):
        modality.read(path, tuple(rows.shape[1:]))
    for damage in (b"", b"\x93NUMPY", b"one, two\n"):
        path.write_bytes(damage or b"\0")
        with pytest.raises(UnreadableError):
            modality.read(path, tuple(rows.shape[1:]))


def test_rows_of_another_shape_are_unreadable(tmp_path: Path) -> None:
    points.write(torch.zeros(3, 2), tmp_path / "x.csv")
    with pytest.raises(UnreadableError, match="not every line is one of points in 3 dimensions"):
        points.read(tmp_path / "x.csv", (3,))
    arrays.write(torch.zeros(1, 2, 6), tmp_path / "x.npy")
    with pytest.raises(UnreadableError, match="it has the shape 2×6, not that of arrays of 2×7"):
        arrays.read(tmp_path / "x.npy", (2, 7))


def test_sheets_of_points_and_images() -> None:
    assert sheet(grey(4, 1, 8, 8), 2).size == (6 * 19, 6 * 19)
    assert sheet(torch.zeros(4, 2), 2).size == (480, 480)
    assert points.sheet(torch.zeros(4, 2), 2, 160).size == (160, 160)
    assert images.sheet(grey(4, 1, 8, 8), 2, 16).size == (2 * 19, 2 * 19)
    assert np.array_equal(pixels(images.sheet(grey(3, 3, 8, 8), 2)), pixels(tile(grey(3, 3, 8, 8), 2, 6)))


@pytest.mark.parametrize("modality", [images, arrays], ids=lambda one: one.name)
def test_a_single_picture_as_it_is_has_no_frame(modality: Modality) -> None:
    one = grey(1, 1, 8, 6)
    assert np.array_equal(pixels(modality.sheet(one, 1, 0))[..., 0], one[0, 0].numpy())
    assert modality.sheet(grey(2, 1, 8, 6), 2, 0).size == (2 * 7 + 1, 10)


def test_pairs_stand_above_each_other_or_side_by_side() -> None:
    assert paired(torch.zeros(9, 2), torch.ones(9, 2)).size == (960, 480)
    above = torch.zeros(3, 1, 8, 8, dtype=torch.uint8)
    drawn = pixels(paired(above, above + 255, 2))
    assert drawn.shape == (4 * 10 * 6, 19 * 6, 3)
    assert drawn[10, 10, 0] == 0
    assert drawn[60 + 10, 10, 0] == 255
    assert paired(torch.zeros(3, 2, 20), torch.zeros(3, 2, 20)).size == arrays.paired(*[torch.zeros(3, 2, 20)] * 2).size


def test_curves_of_series() -> None:
    """High values are drawn above low ones, over the whole range of the sheet; each channel has its colour."""
    series = torch.stack([torch.full((1, 20), 3.0), torch.full((1, 20), -1.0)])
    drawn = pixels(arrays.sheet(series, 2, 40))
    heights = [np.nonzero((half != 255).any(2)[2:-2, 4:-4].all(1))[0] for half in np.split(drawn[:, :-1], 2, axis=1)]
    assert [len(one) for one in heights] == [1, 1]
    assert heights[0][0] < 5
    assert heights[1][0] > 33
    two = pixels(arrays.sheet(torch.tensor([[[0.0, 0.0], [1.0, 1.0]]]), 1, 40))
    assert len(np.unique(two[2:-2, 4:-4].reshape(-1, 3), axis=0)) == 3


def test_of_volumes_the_middle_slice_is_shown() -> None:
    volume = torch.zeros(1, 1, 5, 4, 4)
    volume[0, 0, 2, :, :2] = 1.0
    drawn = pixels(arrays.sheet(volume, 1, 0))[..., 0]
    assert (drawn[:, :2] == 255).all()
    assert (drawn[:, 2:] == 0).all()


@pytest.mark.parametrize("shape", [(2, 16), (1, 1), (1, 4, 4), (2, 4, 4, 4)])
@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf"), 1e300])
def test_odd_values_can_be_shown(shape: tuple[int, ...], value: float) -> None:
    rows = torch.zeros(3, *shape, dtype=torch.float64)
    rows[0] = value
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert min(arrays.sheet(rows, 2).size) > 0


def series() -> Data:
    """Sines of two channels."""
    phase = torch.linspace(0, 6.28, 400)[:, None]
    line = torch.linspace(0, 6.28, 16)
    return split(InMemory(torch.stack([torch.sin(line + phase), torch.cos(line + phase)], 1)), 0.1)


def volumes() -> Data:
    """Balls of several sizes."""
    line = torch.linspace(-1, 1, 8)
    distance = (line[:, None, None] ** 2 + line[:, None] ** 2 + line**2)[None]
    return split(InMemory(torch.tanh(4 * (torch.linspace(0.2, 1, 200)[:, None, None, None] - distance))[:, None]), 0.1)


SHORT = (
    "codec=identity",
    "network.width=8",
    "conditioning=none",
    "sampling.guidance=1",
    "sampling.steps=3",
    "training.images=128",
    "training.batch=32",
    "training.reports=1",
)


@pytest.fixture
def kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A table of names that is as before when the test is over."""
    for field, table in KINDS.items():
        monkeypatch.setitem(KINDS, field, dict(table))


@pytest.mark.usefixtures("kinds")
@pytest.mark.parametrize("data", [series, volumes])
def test_other_arrays_train_and_sample(
    data: Callable[[], Data], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a picture of the progress and a checkpoint; samples are files of arrays, and the request resumes."""
    unfog.register("data", "mine", data)
    folder, out = tmp_path / "run", tmp_path / "out"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = unfog.train(unfog.recipe("digits").set("data=mine", *SHORT), folder, device="cpu")
    assert len(list((folder / "samples").glob("*.png"))) == 1
    assert len(list((folder / "checkpoints").iterdir())) == 1
    assert "arrays of " in capsys.readouterr().err
    command = ["sample", str(folder), "-n", "5", "--out", str(out), "--device", "cpu"]
    assert main(command) == 0
    wanted = run.sample(5)
    for place, sample in enumerate(wanted):
        assert np.array_equal(np.load(out / f"{place:05}.npy"), sample.numpy())
    with Image.open(out / "sheet.png") as drawn:
        title = f"5 samples of run: seed 0, solver dpmpp-2m, steps {run.recipe.sampling.steps}, guidance 1"
        assert np.array_equal(pixels(drawn), pixels(arrays.labelled(wanted, [""] * 5, title)))
    (out / "00003.npy").unlink()
    assert main(command) == 0
    assert torch.equal(arrays.read(out / "00003.npy", tuple(wanted.shape[1:]))[0], wanted[3])
    (out / "00001.npy").write_bytes(b"x")
    capsys.readouterr()
    assert main(command) == 2
    assert "a file in" in capsys.readouterr().err
    assert main([*command, "--steps", "2"]) == 2
    assert "holds the arrays of another request" in capsys.readouterr().err
    assert torch.equal(load(folder, "cpu").sample(5), wanted)


@pytest.mark.usefixtures("kinds")
@pytest.mark.parametrize("data", [series, volumes])
@pytest.mark.filterwarnings("ignore:all samples of a report were one colour")
def test_other_arrays_have_reports(data: Callable[[], Data], tmp_path: Path) -> None:
    """Films, reports, replays and explanations show them, too."""
    unfog.register("data", "mine", data)
    folder = tmp_path / "run"
    unfog.train(unfog.recipe("digits").set("data=mine", *SHORT), folder, device="cpu")
    for verb in ("film", "report", "replay", "explain"):
        step = ["--step", "2"] if verb in ("replay", "explain") else []
        assert main([verb, str(folder), *step, "--device", "cpu"]) == 0, verb
    assert {"film", "report", "explain"} <= {path.name for path in folder.iterdir()}


def many(shape: tuple[int, ...]) -> Data:
    """Noisy sines along the last axis, enough of them to be evaluated."""
    drawn = torch.Generator().manual_seed(0)
    one, line = (1200, *[1] * len(shape)), torch.linspace(0, 6.28, shape[-1])
    rows = torch.sin(line + 6.28 * torch.rand(one, generator=drawn)) + 0.1 * torch.randn(1200, *shape, generator=drawn)
    return split(InMemory(rows), 0.1)


@pytest.mark.usefixtures("kinds")
@pytest.mark.parametrize("shape", [(1, 64), pytest.param((1, 4, 8, 8), marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore:all samples of a report were one colour")
def test_other_arrays_are_evaluated(shape: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unfog.evaluation.judge.RESAMPLES", 40)
    unfog.register("data", "mine", lambda: many(shape))
    folder = tmp_path / "run"
    unfog.train(unfog.recipe("digits").set("data=mine", *SHORT), folder, device="cpu")
    assert main(["evaluate", str(folder), "-n", "100", "--device", "cpu"]) == 0
    (evaluation,) = json.loads((folder / "evaluation.json").read_text())["evaluations"]
    distance = next(score for name, score in evaluation["scores"].items() if name.startswith("frechet"))
    assert distance["floor"] < distance["value"]  # two steps of training are no model yet
    assert (folder / "evaluation" / "samples.png").is_file()


class Words(Modality):
    """Rows of seven axes that are words."""

    name, suffix = "words", ".txt"

    def describe(self, shape: tuple[int, ...]) -> str:
        """Say so."""
        return "words"

    def sheet(self, samples: Tensor, columns: int, side: int | None = None) -> Image.Image:
        """Draw nothing but red."""
        return Image.new("RGB", (columns, -(-len(samples) // columns)), "red")

    def write(self, samples: Tensor, path: Path) -> None:
        """Write the numbers."""
        path.write_text(json.dumps(samples.tolist()))

    def read(self, path: Path, shape: tuple[int, ...]) -> Tensor:
        """Read the numbers."""
        return torch.tensor(json.loads(path.read_text())).reshape(1, *shape)


@pytest.mark.usefixtures("kinds")
def test_a_data_set_names_a_modality_of_its_own(tmp_path: Path) -> None:
    """It shows and writes what rows of this shape would else be shown and written as."""
    unfog.register("data", "words", series, modality=Words())
    unfog.register("data", "plain", series)
    recipe = unfog.recipe("digits").set("data=words", *SHORT)
    run = unfog.train(recipe, tmp_path / "run", device="cpu")
    assert isinstance(run.recipe.modality, Words)
    assert run.recipe.rows == "words"
    assert isinstance(run.sampler().modality, Words)
    with Image.open(next((tmp_path / "run" / "samples").glob("*.png"))) as drawn:
        assert (pixels(drawn) == [255, 0, 0]).all(-1).sum() == 64  # a pixel for each sample
    assert main(["sample", str(tmp_path / "run"), "-n", "2", "--device", "cpu", "--out", str(tmp_path / "out")]) == 0
    assert sorted(path.name for path in (tmp_path / "out").glob("0*")) == ["00000.txt", "00001.txt"]
    plain = run.recipe.set("data=plain")
    assert plain.modality == arrays
    assert "modality" not in json.loads(run.recipe.to_json())["data"]


@pytest.mark.usefixtures("kinds")
def test_shapes_of_recipes() -> None:
    """More axes than any network takes are refused, but where the data say what they are."""
    unfog.register("data", "words", series, modality=Words())
    plain = json.loads(unfog.recipe("digits").to_json())
    for shape in ([], [0, 2], [1, 2, 3, 4, 5], [1 << 29]):
        with pytest.raises(UserError, match="is not a shape of data"):
            Recipe.from_json(json.dumps({**plain, "shape": shape}))
    assert Recipe.from_json(json.dumps({**plain, "shape": [1, 2, 3, 4]})).modality == arrays
    words = Recipe.from_json(json.dumps({**plain, "data": {"kind": "words"}, "shape": [1, 2, 3, 4, 5]}))
    assert isinstance(words.modality, Words)


@pytest.mark.usefixtures("kinds")
def test_a_modality_goes_with_a_function_of_data() -> None:
    with pytest.raises(UserError, match="modality goes with a function that returns data"):
        unfog.register("schedule", "mine", unfog.RectifiedFlow, modality=Words())


def test_nothing_else_asks_for_the_rank_of_a_row() -> None:
    """Outside of networks, a rank is that of labels, times, matrices, files, or of a memory format."""
    ranks = re.compile(r"(\w+)\.ndim (?:[=!<>]=?|not in|in) |len\(([\w.]*(?:shape|stored)[^()]*)\) (?:[=!<>]=?|in) ")
    allowed = {
        "array",  # of a file
        "given",  # labels
        "labels",
        "numbers",
        "output",
        "parameter",
        "picture",  # which the reader of shapes is shown
        "pictures",  # of an IDX file
        "rows",  # of features, and of values that are asked for
        "shape",  # in runtime/device.py, where large states are worth another precision, and of a file
        "squeezed",  # of a file
        "stack",
        "t",
        "targets",
        "times",
        "value",
        "wanted",
        "weights",  # of a kernel that filters pictures
        "x",  # in runtime/device.py, and in runs/dataset.py, where rows need an axis of their own
    }
    known = {"x": {"runtime/device.py", "runs/dataset.py"}, "shape": {"runtime/device.py", "data/scans.py"}}
    found = [
        (match[1] or match[2], str(path.relative_to(SOURCE)))
        for path in SOURCE.rglob("*.py")
        if path.name != "modality.py" and path.parent.name != "networks"
        for match in ranks.finditer(path.read_text(encoding="utf-8"))
    ]
    assert found
    assert [one for one in found if one[0] not in allowed or one[1] not in known.get(one[0], {one[1]})] == []


def test_sets_are_compared_by_what_they_show() -> None:
    """A block for each label, in which row i of each set stands in one column."""
    above, below = grey(3, 1, 8, 8), 255 - grey(3, 1, 8, 8)
    drawn = pixels(images.compared((above, below), ("one", "two"), ("cat", "dog", "cat"), "seed 0"))
    (cats, gap), (others, _) = images.cells(above), images.cells(below)
    cell = cats[0].height
    column = np.concatenate([pixels(cats[0]), pixels(others[0])])
    places = [
        (top, left)
        for top in range(drawn.shape[0] - 2 * cell + 1)
        for left in range(drawn.shape[1] - cell + 1)
        if np.array_equal(drawn[top : top + 2 * cell, left : left + cell], column)
    ]
    assert len(places) == 1
    top, left = places[0]
    after = drawn[top : top + 2 * cell, left + cell - gap : left + 2 * cell - gap]
    assert np.array_equal(after[gap:, gap:], np.concatenate([pixels(cats[2]), pixels(others[2])])[gap:, gap:])
    turned = images.compared((above, below), ("one", "two"), ("10", "9", "10"), "seed 0")
    same = images.compared((above[[1, 0, 2]], below[[1, 0, 2]]), ("one", "two"), ("9", "10", "10"), "seed 0")
    assert np.array_equal(pixels(turned), pixels(same))  # in natural order
    panels = points.compared((torch.randn(9, 2), torch.randn(9, 2)), ("one", "two"), [""] * 9, "seed 0")
    assert panels.width > 200
