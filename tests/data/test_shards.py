"""Shards that are read as they are trained on: every row once an epoch, to the bit again, and no file trusted."""

import io
import json
import os
import tarfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from unfog.data import headers, tars
from unfog.data import shards as streaming
from unfog.data.fingerprint import fingerprint
from unfog.data.folder import notes_of
from unfog.data.headers import indexed
from unfog.data.packed import tar_members
from unfog.data.shards import ShardRows, shards
from unfog.data.source import Data, ordered, windowed
from unfog.recipes.presets import recipe
from unfog.recipes.sources import Folder, Shards
from unfog.runs.run import resume, train
from unfog.runtime.errors import EnvironmentFailure, UserError

SIDE = 8


def png(value: int) -> bytes:
    """A grey picture of one value."""
    file = io.BytesIO()
    Image.new("L", (SIDE, SIDE), value).save(file, "PNG")
    return file.getvalue()


def pack(path: Path, files: Sequence[tuple[str, bytes]], kind: int = tarfile.USTAR_FORMAT, time: float = 0) -> Path:
    """Write a tar with Python's own module."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=kind) as tar:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size, member.mtime = len(content), time  # type: ignore[assignment]  # as WebDataset does
            tar.addfile(member, io.BytesIO(content))
    return path


def labelled(rows: Sequence[int]) -> list[tuple[str, bytes]]:
    """Files of a shard: picture k is grey of value k mod 256, of class k mod 3."""
    return [
        file for row in rows for file in ((f"{row:05}.png", png(row % 256)), (f"{row:05}.cls", f"{row % 3}\n".encode()))
    ]


def made(folder: Path, count: int, per: int) -> Path:
    """Write shards."""
    for first in range(0, count, per):
        pack(folder / f"{first // per:03}.tar", labelled(range(first, min(count, first + per))))
    return folder


def values(data: Data) -> tuple[list[int], list[int]]:
    """The grey values of the rows of both parts."""
    train, held = (part.take(np.arange(len(part))).x[:, 0, 0, 0].tolist() for part in data)
    return train, held


def shown(data: Data) -> list[int]:
    """The grey values of all rows."""
    train, held = values(data)
    return sorted(train + held)


FORMATS = [(tarfile.USTAR_FORMAT, 0.0), (tarfile.PAX_FORMAT, 0.0), (tarfile.PAX_FORMAT, 1.5), (tarfile.GNU_FORMAT, 0.0)]


@pytest.mark.parametrize(("kind", "time"), FORMATS)
@pytest.mark.parametrize("folder", ["", "train/", "a" * 60 + "/" + "b" * 60 + "/"])
def test_index_of_a_tar_is_that_of_python(tmp_path: Path, kind: int, time: float, folder: str) -> None:
    """Also with WebDataset's fractional times of change, with names that are too long for a header, and folders."""
    files = [(folder + name, content) for name, content in labelled(range(5))]
    files += [(folder + "notes.md", b"x"), ("5.JPG", png(5)), ("5.cls", b"1")]
    path = pack(tmp_path / "a.tar", files, kind, time)
    with tarfile.open(path) as tar:
        known = {member.name: (member.offset_data, member.size) for member in tar.getmembers()}
    found = indexed(path)
    assert [(int(row["offset"]), int(row["size"])) for row in found.rows] == [
        place for name, place in known.items() if name.endswith((".png", ".JPG"))
    ]
    assert found.classes == ("0", "1", "2")
    assert found.rows["label"].tolist() == [0, 1, 2, 0, 1, 1]


def test_all_headers_are_read_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The usual tars never take the slow way, which reads one header after another; a portion of them at a time."""
    monkeypatch.setattr(headers, "_in_turn", lambda path: pytest.fail("read in turn"))
    monkeypatch.setattr(headers, "PORTION", 3)
    for kind, when in FORMATS:
        path = pack(tmp_path / "a.tar", labelled(range(20)), kind, when)
        assert len(indexed(path).rows) == 20


@given(st.lists(st.binary(min_size=0, max_size=2000), max_size=6), st.booleans())
def test_contents_that_look_like_headers(
    tmp_path_factory: pytest.TempPathFactory, contents: list[bytes], inner: bool
) -> None:
    """A tar within a tar, and any bytes: only real headers are files."""
    folder = tmp_path_factory.mktemp("tars")
    files = [(f"{number}.png", content) for number, content in enumerate(contents)]
    if inner:
        files.append(("inner.png", pack(folder / "inner.tar", labelled(range(3))).read_bytes()))
    path = pack(folder / "outer.tar", files)
    places = [(place.offset, place.size) for _, place in tar_members(path)]
    assert [(int(row["offset"]), int(row["size"])) for row in indexed(path).rows] == places


def test_classes_and_captions(tmp_path: Path) -> None:
    """From `.cls`, `.txt` and `.json`; a picture is the first of its name."""
    texts = [((f"{row}.png", png(row)), (f"{row}.txt", f" picture {row}\n".encode())) for row in range(4)]
    pack(tmp_path / "texts" / "0.tar", [file for pair in texts for file in pair])
    lines = [{"label": "dog", "caption": "a dog"}, {"class": "cat", "text": "a cat"}] * 2
    both = [
        file
        for row, line in enumerate(lines)
        for file in ((f"{row}.png", png(row)), (f"{row}.seg.png", png(9)), (f"{row}.json", json.dumps(line).encode()))
    ]
    pack(tmp_path / "both" / "0.tar", both)
    named, told = shards(str(tmp_path / "texts")), shards(str(tmp_path / "both"))
    whole = [named.train._whole(np.arange(3)), named.heldout._whole(np.arange(1))]  # type: ignore[attr-defined]
    assert len(notes_of(named)) == len(notes_of(told)) == 1
    captions = [*(named.train.take(np.arange(3)).captions or ()), *(named.heldout.take(np.arange(1)).captions or ())]
    assert captions == [f"picture {row}" for row in np.concatenate(whole)]
    assert named.train.classes == ()
    assert told.train.classes == ("cat", "dog")
    batch = told.train.take(np.arange(len(told.train)))
    assert batch.labels is not None
    assert [f"a {told.train.classes[label]}" for label in batch.labels] == batch.captions
    pack(tmp_path / "some" / "0.tar", [*(file for pair in texts for file in pair), ("5.png", png(5))])
    assert notes_of(shards(str(tmp_path / "some")))[0] == "0.tar: without a caption, and given an empty one: 1 picture"
    pack(tmp_path / "twice" / "0.tar", [("0.png", png(1)), ("0.jpg", png(7)), ("1.png", png(2))])
    assert notes_of(shards(str(tmp_path / "twice")))[0] == (
        "0.tar: not used, since one before has the same name: 1 picture"
    )


@given(
    blocks=st.lists(st.integers(0, 9), min_size=1, max_size=8).filter(any),
    window=st.integers(1, 50),
    seed=st.integers(0, 3),
    position=st.integers(0, 60),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=8),
)
def test_windowed_order(blocks: list[int], window: int, seed: int, position: int, sizes: list[int]) -> None:
    """Every row once an epoch, the same in portions of any size, and another order in each epoch."""
    lengths = np.array(blocks)
    rows = int(lengths.sum())
    epoch = windowed(lengths, seed, 3 * rows, rows, window)
    assert sorted(epoch.tolist()) == list(range(rows))
    whole = windowed(lengths, seed, position, sum(sizes), window)
    starts = np.cumsum([0, *sizes[:-1]])
    parts = [windowed(lengths, seed, position + int(at), size, window) for at, size in zip(starts, sizes, strict=True)]
    assert np.array_equal(np.concatenate(parts), whole)


def test_window_bounds_what_is_open() -> None:
    """Rows of one window come from few blocks, shuffled, and from others in the next epoch."""
    lengths = np.full(50, 20)
    first = windowed(lengths, 0, 0, 100, 100)
    assert len(np.unique(first // 20)) == 5
    assert (np.diff(first) < 0).any()
    assert not np.array_equal(np.unique(first // 20), np.unique(windowed(lengths, 0, 1000, 100, 100) // 20))
    assert len(np.unique(windowed(lengths, 0, 0, 100, 1000) // 20)) > 30


@pytest.mark.parametrize(("count", "per"), [(2, 1), (9, 4), (60, 25), (61, 61)])
def test_every_row_once(tmp_path: Path, count: int, per: int) -> None:
    """Training and held-out rows are all rows, with their classes, and no row is in both."""
    data = shards(str(made(tmp_path, count, per)))
    train, held = values(data)
    assert sorted(train + held) == list(range(count))
    assert len(held) == max(1, count // 10) or count < 20
    order = ordered(data.train, 0, 0, len(data.train))
    batch = data.train.take(order)
    assert sorted(batch.x[:, 0, 0, 0].tolist()) == sorted(train)
    assert batch.labels is not None
    assert batch.labels.tolist() == (batch.x[:, 0, 0, 0] % 3).tolist()


def test_at_most_so_many_are_held_out(tmp_path: Path) -> None:
    """The option `heldout` bounds them."""
    data = shards(str(made(tmp_path, 100, 50)), heldout=3)
    assert len(data.heldout) == 3
    assert len(data.train) == 97


def test_names_say_what_is_held_out(tmp_path: Path) -> None:
    """`val` before `test`, of which the second is not used, which is said; where every name says it, none is."""
    names = {"a-train-0": range(10), "a-train-1": range(10, 20), "a-val-0": range(20, 25), "b/test/0": range(25, 30)}
    for name, rows in names.items():
        pack(tmp_path / f"{name}.tar", labelled(rows))
    data = shards(str(tmp_path))
    train, held = values(data)
    assert sorted(train) == list(range(20))
    assert held == list(range(20, 25))
    assert notes_of(data)[0] == "not used (1): shards named 'test', since those named 'val' are held out: 0.tar"
    assert sorted(ordered(data.train, 0, 0, 20).tolist()) == list(range(20))
    assert shown(shards(str(tmp_path / "b"))) == list(range(25, 30))


def test_two_ranks_share_the_rows(tmp_path: Path) -> None:
    """Each takes its slice of every batch: no row twice, every row once an epoch."""
    data = shards(str(made(tmp_path, 88, 30)), heldout=8)
    halves: list[list[int]] = [[], []]
    for step in range(10):
        rows = ordered(data.train, 0, 8 * step, 8)
        for rank in range(2):
            halves[rank] += rows[4 * rank : 4 * rank + 4].tolist()
    assert not set(halves[0]) & set(halves[1])
    assert sorted(halves[0] + halves[1]) == list(range(80))


@pytest.mark.filterwarnings("ignore:near-duplicates", "ignore:54 of 54")
def test_a_training_resumes_to_the_bit(tmp_path: Path) -> None:
    """Stopped after half of it and resumed, the weights are those of one that was not stopped."""
    data = made(tmp_path / "data", 60, 20)
    settings = ("training.images=96", "training.batch=8", "training.reports=1", "network.width=8", "data.window=16")
    chosen = recipe("folder", str(data)).set("data=shards", f"data.path={data}", *settings)
    train(chosen, out=tmp_path / "whole")
    steps = iter(range(7))
    train(chosen, out=tmp_path / "half", stop=lambda: next(steps) == 6)
    half, whole = (tmp_path / run / "model.safetensors" for run in ("half", "whole"))
    assert half.read_bytes() != whole.read_bytes()
    resume(tmp_path / "half")
    assert half.read_bytes() == whole.read_bytes()


def test_what_cannot_be_read_is_replaced(tmp_path: Path) -> None:
    """A damaged picture by another one, and a shard that changed by the next, each with one sentence."""
    files = labelled(range(20))
    files[8] = ("00004.png", b"no picture")
    pack(tmp_path / "0.tar", files)
    pack(tmp_path / "1.tar", labelled(range(20, 40)))
    data = shards(str(tmp_path))
    with pytest.warns(UserWarning, match=r"skipped .*0.tar/5: cannot identify its format"):
        train, held = values(data)
    assert 4 not in train + held
    before = data.train.take(np.arange(len(data.train))).x
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(data.train.take(np.arange(len(data.train))).x, before)  # said once
    os.utime(tmp_path / "1.tar", ns=(1, 1))
    with pytest.warns(UserWarning, match=r"1.tar is skipped: it changed since the training began"):
        now = data.train.take(np.arange(len(data.train)))
    assert set(now.x[:, 0, 0, 0].tolist()) <= set(range(20))
    (tmp_path / "0.tar").unlink()
    gone = pytest.raises(EnvironmentFailure, match="none of the shards")
    with pytest.warns(UserWarning, match=r"0.tar is skipped: .*No such file"), gone:
        data.train.take(np.arange(3))


def test_a_shard_that_is_cut_off(tmp_path: Path) -> None:
    """What is before the cut is used, and that is said; one without a header is refused."""
    whole = pack(tmp_path / "0.tar", labelled(range(20))).read_bytes()
    (tmp_path / "0.tar").write_bytes(whole[: 20 * 1024 + 700])
    data = shards(str(tmp_path))
    assert notes_of(data)[0] == "0.tar: it is cut off: what lies before, 10 pictures, is used"
    assert shown(data) == list(range(10))
    for content, why in ((b"\1" * 2000, "begins no header"), (b"", "contains 0 pictures in 1 shards")):
        (tmp_path / "0.tar").write_bytes(content)
        with pytest.raises(UserError, match=why):
            shards(str(tmp_path))


def test_shards_must_agree(tmp_path: Path) -> None:
    """All have classes or none, and so has every picture of one."""
    pack(tmp_path / "a" / "0.tar", labelled(range(4)))
    pack(tmp_path / "a" / "1.tar", [("9.png", png(9))])
    with pytest.raises(UserError, match=r"1.tar has no classes, and 1 other shards have some"):
        shards(str(tmp_path / "a"))
    pack(tmp_path / "b" / "0.tar", [*labelled(range(4)), ("9.png", png(9))])
    with pytest.raises(UserError, match=r"no class for 1 of its 5 pictures"):
        shards(str(tmp_path / "b"))
    with pytest.raises(UserError, match="contains no shards"):
        shards(str((tmp_path / "c").mkdir() or tmp_path / "c"))


def test_index_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the cache, by path, size and time; one that is damaged or cannot be written costs nothing but time."""
    monkeypatch.setenv("UNFOG_CACHE", str(tmp_path / "cache"))
    path = pack(tmp_path / "0.tar", labelled(range(12)))
    calls: list[Path] = []
    real = indexed
    monkeypatch.setattr(tars, "indexed", lambda path: calls.append(path) or real(path))

    def opened() -> list[int]:
        streaming._indexed.cache_clear()
        return shown(shards(str(path)))

    assert opened() == opened() == list(range(12))
    assert len(calls) == 1
    for file in (tmp_path / "cache" / "shards").iterdir():
        file.write_bytes(b"damaged")
        assert opened() == list(range(12))
    assert len(calls) == 3
    os.utime(path, ns=(time.time_ns(), 5))
    assert opened() == list(range(12))
    assert len(calls) == 4
    monkeypatch.setenv("UNFOG_CACHE", str(path))  # no folder can be made there
    tars._unkept.cache_clear()
    with pytest.warns(UserWarning, match="cannot be kept in .*: they are sought anew each time"):
        assert opened() == list(range(12))


def test_contents_are_compared(tmp_path: Path) -> None:
    """A shard with other pictures of the same sizes is another one."""
    data = shards(str(made(tmp_path, 40, 20)))
    before = fingerprint(data)
    assert fingerprint(shards(str(tmp_path)), before).digest == before.digest
    content = bytearray((tmp_path / "001.tar").read_bytes())
    content[512 + 45] ^= 1  # in the first picture
    (tmp_path / "001.tar").write_bytes(content)
    streaming._indexed.cache_clear()
    after = fingerprint(shards(str(tmp_path)), before)
    assert before.differences(after) == f"1 file edited ({tmp_path.name}/001.tar)"


def parquet(path: Path, rows: Sequence[int], group: int, names: bool = True) -> None:
    """Write a Parquet file as `datasets` does."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet as files

    table = pyarrow.table(
        {
            "image": [{"bytes": png(row % 256), "path": f"{row}.png"} for row in rows],
            "label": [row % 3 for row in rows] if names else [f"kind {row % 3}" for row in rows],
            "text": [f"picture {row}" for row in rows],
            "other": list(rows),
        }
    )
    if names:
        features = {"label": {"names": ["ant", "bee", "cow"]}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    files.write_table(table, path, row_group_size=group)


@pytest.mark.parametrize("names", [True, False])
def test_parquet(tmp_path: Path, names: bool) -> None:
    """Rows come by their row groups, with classes and captions; columns that are not read are said."""
    parquet(tmp_path / "a.parquet", range(25), 10, names)
    parquet(tmp_path / "b.parquet", range(25, 40), 10, names)
    data = shards(str(tmp_path))
    assert data.train.classes == (("ant", "bee", "cow") if names else ("kind 0", "kind 1", "kind 2"))
    assert notes_of(data)[0] == "a.parquet: columns that are not used: other"
    seen = []
    for part in data:
        batch = part.take(np.arange(len(part)))
        shown = batch.x[:, 0, 0, 0].tolist()
        assert batch.labels is not None
        assert batch.captions == [f"picture {value}" for value in shown]
        assert batch.labels.tolist() == [value % 3 for value in shown]
        seen += shown
    assert sorted(seen) == list(range(40))
    assert isinstance(data.train, ShardRows)
    assert [block for shard in data.train.shards for block in shard.blocks] == [10, 10, 5, 10, 5]
    before = fingerprint(data)
    parquet(tmp_path / "b.parquet", range(26, 41), 10, names)
    assert "edited" in before.differences(fingerprint(shards(str(tmp_path)), before))


def test_rows_of_parquet_without_a_class(tmp_path: Path) -> None:
    """Neither none nor -1, which `datasets` writes for what is not known, is taken for a class."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet as files

    features = {"huggingface": json.dumps({"info": {"features": {"label": {"names": ["ant", "bee"]}}}})}
    for labels in ([0, 1, -1], [0, None, 1]):
        table = pyarrow.table({"image": [{"bytes": png(row), "path": ""} for row in range(3)], "label": labels})
        files.write_table(table.replace_schema_metadata(features), tmp_path / "a.parquet")
        with pytest.raises(UserError, match="the column 'label' has rows without a class"):
            shards(str(tmp_path))


def test_row_groups_in_memory_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row group is kept while its rows are used, and given up for others."""
    from unfog.data import groups

    parquet(tmp_path / "a.parquet", range(100), 10)
    monkeypatch.setattr(groups, "KEPT", 10_000)
    monkeypatch.setattr(streaming, "BYTES", 3000)
    groups._groups.clear()
    data = shards(str(tmp_path))
    assert isinstance(data.train, ShardRows)
    assert 1 < data.train.window < 60
    for step in range(9):
        data.train.take(ordered(data.train, 0, 10 * step, 10))
        assert len(groups._groups) == 2 or sum(size for _, size in groups._groups.values()) <= 10_000


def test_large_shards_are_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recipes of folders read small shards at once, and large ones as they are trained on."""
    made(tmp_path, 40, 20)
    assert isinstance(recipe("folder", str(tmp_path)).data, Folder)
    monkeypatch.setattr(streaming, "WHOLE", 1000)
    chosen = recipe("folder", str(tmp_path))
    assert isinstance(chosen.data, Shards)
    assert chosen.data == Shards(path=str(tmp_path), size=(SIDE, SIDE), channels=1)
    assert chosen.sampling.guidance == 2
    with pytest.raises(UserError, match="omit `label_from`"):
        recipe("folder", str(tmp_path), label_from="parent")
    Image.new("L", (8, 8)).save(tmp_path / "own.png")
    assert isinstance(recipe("folder", str(tmp_path)).data, Folder)
