"""Pictures of many shapes: how shapes are chosen, whose turn a batch is, and a training with them."""

import json
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from unfog.data import buckets, folder
from unfog.data.buckets import LEAST, Turns, candidates, crops, rows_of_training, shapes_of, turn
from unfog.data.fingerprint import fingerprint
from unfog.data.folder import notes_of
from unfog.data.pictures import describe_picture, read_picture
from unfog.data.source import Data, InMemory, Subset
from unfog.interop.card import card
from unfog.recipes.build import build_data, build_denoiser
from unfog.recipes.presets import recipe
from unfog.recipes.recipe import Recipe
from unfog.recipes.sources import Folder
from unfog.reports.replay import replay
from unfog.runs.requests import sample_into
from unfog.runs.run import Run, load, resume, train
from unfog.runtime.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:pictures are cropped:unfog.runtime.errors.Note")
WIDE, TALL = (24, 40), (40, 24)
QUIET = Console(quiet=True)
HELD = 14
"""Pictures of 136 that are held out, a tenth of each class."""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes; 60 wide pictures, 40 tall ones and 36 squares, each with a value and a corner of its own."""
    root, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for number, (height, width) in enumerate([(60, 96)] * 60 + [(96, 60)] * 40 + [(70, 70)] * 36):
        pixels = rng.integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
        where = root / ("even", "odd")[number % 2]
        where.mkdir(exist_ok=True)
        Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST).save(where / f"{number:03}.png")
    return root


def read(path: Path, most: int | list[list[int]] = 3, **options: object) -> Data:
    """The folder in buckets of about 32×32."""
    return folder.folder(str(path), 32, buckets=most, **options)  # type: ignore[arg-type]


def chosen(path: Path, *settings: str) -> Recipe:
    """A training of a second."""
    small = ("network.width=8", "training.images=320", "training.batch=16", "training.reports=2", "sampling.steps=2")
    fixed = ("optimizer.warmup=64", "sampling.batch=4", "data.buckets=3", "augment.flip=true")
    return recipe("folder", str(path), 32).set(*small, *fixed, *settings)


@given(st.integers(8, 600), st.integers(8, 600))
def test_candidates(height: int, width: int) -> None:
    """The first is the shape itself; no other has more pixels or a side more than twice as long as its square's."""
    own, *others = candidates((height, width))
    assert own == (height, width)
    assert len({own, *others}) == 1 + len(others)
    for down, across in others:
        assert down * across <= height * width
        assert max(down, across) ** 2 <= 4 * height * width
        assert min(down, across) ** 2 >= height * width / 4
        assert (down % 4, across % 4) == (0, 0) or height * width < 64


def lost(sides: tuple[int, int], to: tuple[int, int]) -> float:
    """The share of a picture that centre-cropping to the aspect ratio of `to` cuts away, from the definition."""
    height, width = sides
    scale = min(height / to[0], width / to[1])
    return 1 - scale * to[0] * scale * to[1] / (height * width)


@given(st.lists(st.tuples(st.integers(20, 200), st.integers(20, 200)), min_size=1, max_size=90), st.integers(1, 6))
def test_each_picture_has_the_shape_that_keeps_most(sides: list[tuple[int, int]], most: int) -> None:
    """Of the chosen ones, which are at most as many as asked, and most pictures have the first."""
    base = (32, 32)
    found = crops(sides, base, most)
    counts = np.bincount(found.which, minlength=len(found.sides))
    assert 1 <= len(found.sides) <= most
    assert list(counts) == sorted(counts, reverse=True)
    assert len(found.sides) == 1 or counts.min() > 0
    kept = [lost(own, found.sides[place]) for own, place in zip(sides, found.which, strict=True)]
    assert np.allclose(kept, [min(lost(own, to) for to in found.sides) for own in sides])
    assert found.lost == pytest.approx(np.mean(kept))
    assert found.alone == pytest.approx(np.mean([lost(own, base) for own in sides]))


def test_few_pictures_have_no_shape_of_their_own() -> None:
    """Fewer than 32 are cropped to another shape."""
    many, few = [(60, 96)] * 50, [(96, 60)] * (LEAST - 1)
    assert crops([*many, *few], (32, 32), 4).sides == (WIDE,)
    assert crops([*many, *few, (96, 60)], (32, 32), 4).sides == (WIDE, TALL)
    assert crops([(60, 96)] * 5, (32, 32), 4).sides == (WIDE,)
    between = [(70, 70)] * 10  # their shape is chosen first, and the others leave it too few
    assert crops([*[(56, 72)] * 34, *[(72, 56)] * 33, *between], (32, 32), 4).sides == ((28, 36), (36, 28))


@given(st.lists(st.integers(1, 12), min_size=1, max_size=5))
def test_turns_are_spread_evenly(rows: list[int]) -> None:
    """In the order of their moments, (j + 1/2)/n, found here by sorting; each source has as many turns as rows."""
    moments = [(Fraction(2 * j + 1, 2 * n), which, j) for which, n in enumerate(rows) for j in range(3 * n)]
    expected = [(which, j) for _, which, j in sorted(moments)][: 2 * sum(rows)]
    assert [turn(rows, step) for step in range(2 * sum(rows))] == expected
    assert Counter(which for which, _ in expected[: sum(rows)]) == Counter(dict(enumerate(rows)))


def test_a_late_turn_is_found_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A resumed run begins at any step: no step before is looked at."""
    looked: list[int] = []
    monkeypatch.setattr(buckets, "min", lambda *given, **key: looked.append(1) or min(*given, **key), raising=False)
    rows = [900_001, 70_003, 11]
    which, earlier = turn(rows, 10**9)
    assert len(looked) < 20
    assert earlier == pytest.approx(10**9 * rows[which] / sum(rows), abs=2)


def test_every_row_comes_once_an_epoch() -> None:
    """Of each source; a batch has the rows of one, whatever the part of it that is asked for."""
    parts = [InMemory(torch.full((n, 1, side, 4), side, dtype=torch.uint8)) for n, side in ((24, 8), (12, 4), (4, 2))]
    source = Turns(parts)
    batches = [source.order(5, 4 * step, 4) for step in range(20)]
    assert sorted(np.concatenate(batches[:10])) == sorted(np.concatenate(batches[10:])) == list(range(40))
    assert [tuple(source.take(rows).x.shape) for rows in batches[:2]] == [(4, 1, 8, 4), (4, 1, 4, 4)]
    assert np.array_equal(source.order(5, 4 * 17, 4), batches[17])
    assert not np.array_equal(source.order(6, 0, 4), batches[0])
    with pytest.raises(ValueError, match="one shape, not of 2"):
        source.take(np.array([0, 39]))


@pytest.mark.parametrize("later", [False, True])
def test_pictures_are_cropped_to_their_shape(pictures: Path, monkeypatch: pytest.MonkeyPatch, later: bool) -> None:
    """Whether they fit in memory or not: pixels and classes are those of the file; what is held out is not trained on.

    The data set is that of the most frequent shape.
    """
    if later:
        monkeypatch.setattr(folder, "IN_MEMORY", 1)
    data = read(pictures, workers=1)
    parts = shapes_of(data.train)
    assert [part.shape for part in parts] == [(3, *WIDE), (3, *TALL), (3, 32, 32)]
    assert data.heldout.shape == data.train.shape == (3, *WIDE)
    assert len(data.train) + len(data.heldout) == 60
    assert sum(map(len, parts)) == 136 - HELD
    seen = set()
    for part in (*parts, data.heldout):
        batch = part.take(np.arange(len(part)))
        assert batch.files is not None
        assert batch.labels is not None
        for pixels, label, file in zip(batch.x, batch.labels, batch.files, strict=True):
            assert np.array_equal(pixels, read_picture(pictures / file, *part.shape))
            assert part.classes[int(label)] == Path(file).parent.name
        assert not seen & set(batch.files)
        seen |= set(batch.files)
    assert len(seen) == 136 - HELD + len(data.heldout)  # what is held out of the other shapes is not used
    (note,) = [note for note in notes_of(data) if "cropped" in note]
    assert "60 to 40x24, 40 to 24x40, 36 to 32x32 pixels" in note
    assert "those of 40x24" in note


def test_one_shape_is_as_before(pictures: Path) -> None:
    """The default crops all pictures to one, and training rows have no others."""
    data = read(pictures, 1)
    assert data.train.shape == (3, 32, 32)
    assert len(data.train) + len(data.heldout) == 136
    assert rows_of_training(data.train) is data.train


@pytest.mark.parametrize("most", [0, 17, -1])
def test_number_of_shapes(pictures: Path, most: int) -> None:
    with pytest.raises(UserError, match=rf"data\.buckets must be from 1 to 16, .*not {most}"):
        read(pictures, most)


def test_nothing_is_left_to_hold_out(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "parts_of", lambda *given, **by_name: folder.Parts(np.arange(136), np.array([0])))
    monkeypatch.setattr(buckets, "crops", lambda *given: folder.Crops((WIDE, TALL), np.arange(136) % 2 ^ 1))
    with pytest.raises(UserError, match=r"too few to hold one out: change data\.buckets"):
        read(pictures)


def test_shapes_that_are_given(pictures: Path) -> None:
    """Their order stays, whatever is frequent; one to which no picture is nearest is left out."""
    data = read(pictures, [[40, 24], [24, 40], [24, 40], [8, 64]])
    assert [part.shape for part in shapes_of(data.train)] == [(3, *TALL), (3, *WIDE)]
    assert data.heldout.shape == (3, *TALL)
    for wrong in ([], [[24]], [[0, 8]], [[8, 5000]], [[8, 8 + one] for one in range(17)]):
        with pytest.raises(UserError, match=r"data\.buckets must be"):
            read(pictures, wrong)


def test_shapes_stay_whatever_is_added(run: Run, pictures: Path, tmp_path: Path) -> None:
    """Those of a run are in its recipe: new pictures of another shape change nothing else."""
    assert isinstance(run.recipe.data, Folder)
    assert run.recipe.data.buckets == (WIDE, TALL, (32, 32))
    more = tmp_path / "more"
    copytree(pictures, more)
    for number in range(200):
        Image.new("RGB", (30, 120), (number, 0, 0)).save(more / "odd" / f"new{number}.png")
    again, data = build_data(replace(run.recipe, data=replace(run.recipe.data, path=str(more))))
    assert (again.shape, again.shapes) == (run.recipe.shape, run.recipe.shapes)
    assert sum(map(len, shapes_of(data.train))) > 136 - HELD + 150


def test_a_changed_picture_of_another_shape_is_noticed(pictures: Path, tmp_path: Path) -> None:
    """The fingerprint of the data holds every shape."""
    copy = tmp_path / "copy"
    for name in ("even", "odd"):
        (copy / name).mkdir(parents=True)
        for file in (pictures / name).iterdir():
            (copy / name / file.name).write_bytes(file.read_bytes())
    before = fingerprint(read(copy))
    assert before.train == 136 - HELD
    tall = next(file for file in (shapes_of(read(copy).train)[1].about(np.arange(3)).files or ()))
    Image.new("RGB", (60, 96)).save(copy / tall)
    assert f"edited ({tall})" in before.differences(fingerprint(read(copy)))


@pytest.fixture(scope="module")
def run(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A short training."""
    return train(chosen(pictures), tmp_path_factory.mktemp("runs") / "run", device="cpu", console=QUIET)


def test_training_takes_turns(run: Run, pictures: Path) -> None:
    """The run knows its shapes, counts every picture, and its steps can be shown again."""
    assert run.recipe.shape == (3, *WIDE)
    assert run.recipe.shapes == ((3, *TALL), (3, 32, 32))
    assert "and 2 other shapes" in run.recipe.rows
    assert Recipe.from_json(run.recipe.to_json()) == run.recipe
    assert run.recipe.anew().shapes == ()
    assert f"{136 - HELD} training rows" in card(run)
    files = {row.file for step in range(1, 11) for row in replay(run.path, step).rows}
    sides = {describe_picture(pictures / file) for file in files}
    assert sides == {(3, 60, 96), (3, 96, 60), (3, 70, 70)}
    epochs = train(chosen(pictures, "training.epochs=1"), run.path.parent / "epoch", console=QUIET)
    assert epochs.recipe.training.images == 136 - HELD


def test_resumed_to_the_bit(run: Run, pictures: Path, tmp_path: Path) -> None:
    """A training that was stopped half-way goes on with the same turns."""

    def stop() -> bool:
        counted.append(1)
        return len(counted) == 9

    counted: list[int] = []
    where = tmp_path / "run"
    train(chosen(pictures), where, device="cpu", console=QUIET, stop=stop)
    resumed = resume(where, device="cpu", console=QUIET)
    assert (where / "model.safetensors").read_bytes() == (run.path / "model.safetensors").read_bytes()
    assert resumed.recipe == run.recipe


def test_other_sizes(run: Run, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    """Samples have the size that is asked for; one that was not trained on is warned of, one that cannot be refused."""
    assert run.sample(2, size=TALL).shape == (2, 3, *TALL)
    assert run.sample(2).shape == (2, 3, *WIDE)
    assert not [one for one in recwarn if "can repeat" in str(one.message)]
    with pytest.warns(UserWarning, match="pictures of 48x32 can repeat or miss things.* on 40x24, 24x40, 32x32"):
        assert run.sample(2, size=(32, 48)).shape == (2, 3, 32, 48)
    with pytest.raises(UserError, match="multiples of 4, not 37"):
        run.sample(1, size=37)
    with pytest.raises(UserError, match="from 1 to 4096"):
        run.sample(1, size=5000)
    found = [
        sample_into(tmp_path / "s", run, run.generator(size=size), 2, None, beside=True, console=QUIET)
        for size in (None, TALL, TALL)
    ]
    assert [one.name for one in found] == ["s", "s-2", "s-2"]  # the second is another request, the third the same
    assert json.loads((tmp_path / "s-2" / "samples.json").read_text())[0]["size"] == "24x40"
    assert describe_picture(next((tmp_path / "s-2").glob("00000*"))) == (3, *TALL)


def test_points_have_no_size(points_run: Path) -> None:
    with pytest.raises(UserError, match="a size goes with pictures"):
        load(points_run).sample(1, size=8)


def test_latents_of_every_shape(pictures: Path, tmp_path: Path) -> None:
    """Each shape is encoded once, by itself."""
    latent = ("codec=latents", "codec.factor=2", "codec.width=8", "codec.images=64", "network.patch=1")
    made = train(chosen(pictures, *latent), tmp_path / "run", device="cpu", console=QUIET)
    caches = sorted(np.load(file).shape for file in (tmp_path / "run" / "latents").glob("train-*.npy"))
    assert {one[1:] for one in caches} == {(2, 4, 16, 16), (2, 4, 20, 12), (2, 4, 12, 20)}
    assert sum(one[0] for one in caches) == 136 - HELD
    assert made.sample(1, size=TALL).shape == (1, 3, *TALL)


def test_large_shapes_are_bounded(pictures: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is reckoned with the largest, not with the first."""
    monkeypatch.setattr(folder, "IN_MEMORY", 136 * 3 * 2000)
    assert isinstance(read(pictures).heldout, Subset)
    assert isinstance(read(pictures, [[24, 40], [64, 40]]).heldout, folder.Streamed)
    with pytest.raises(UserError, match="rows of 3×4096×4096 are more than"):
        build_denoiser(replace(run.recipe, shapes=((3, 4096, 4096),)))


@pytest.mark.parametrize("others", [[[3]], [[3, 0, 8]], [[3, 1 << 29, 8]], [[3, 8, 8], []], "x", [3], [["a"]]])
def test_a_strangers_shapes(run: Run, others: object) -> None:
    """A recipe that was written by hand."""
    plain = json.loads(run.recipe.to_json()) | {"shapes": others}
    with pytest.raises(UserError, match="shape"):
        Recipe.from_json(json.dumps(plain))


def test_shapes_that_the_network_cannot_halve(run: Run) -> None:
    """They are refused before the training, as sides of the first shape are."""
    other = replace(run.recipe.set("network.patch=8"), shape=(3, 32, 32), shapes=((3, 24, 40),))
    with pytest.raises(UserError, match="multiples of 16, not 24"):
        build_denoiser(other)
    build_denoiser(replace(other, shapes=((3, 16, 64),)))
