"""Data: codecs, splits and shuffles, augmentation, the classic files, downloads, folders of pictures, sheets."""

import contextlib
import gzip
import hashlib
import http.server
import io
import json
import os
import random
import socket
import struct
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from unfog.data import pictures
from unfog.data.classic import cifar10, digits, existing, fashion, mnist, read_idx
from unfog.data.codecs import Codec, Identity, Pixels
from unfog.data.download import fetch
from unfog.data.folder import Streamed, folder, list_pictures, look
from unfog.data.pictures import UnreadableError, describe_picture, read_picture
from unfog.data.points import Shape, points
from unfog.data.source import Augment, Batch, Data, InMemory, Source, Subset, shuffled, split
from unfog.runtime.errors import EnvironmentFailure, UserError
from unfog.runtime.files import cache_folder

Bytes = NDArray[np.uint8]
IDX_NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def everything(source: Source) -> Batch:
    return source.take(np.arange(len(source), dtype=np.int64))


def rows_of(source: Source) -> list[int]:
    assert isinstance(source, Subset)
    return source.rows.tolist()


# ----------------------------------------------------------------------------------------------- codecs


def test_pixels_return_every_value() -> None:
    values = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    codec = Pixels()
    z = codec.encode(values)
    assert z.dtype == torch.float32
    assert codec.bounds == (float(z.min()), float(z.max())) == (-1.0, 1.0)
    assert torch.equal(codec.decode(z), values)


def test_pixels_round_to_the_nearest_and_stop_at_the_ends() -> None:
    z = torch.tensor([-5.0, -1.0, 0.4 / 127.5 - 1, 0.6 / 127.5 - 1, 1.0, 7.0])
    assert Pixels().decode(z).tolist() == [0, 0, 0, 1, 255, 255]


def test_identity_keeps_points() -> None:
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    codec: Codec = Identity()
    assert codec.bounds is None
    assert torch.equal(codec.decode(codec.encode(x)), x)
    assert codec.encode(x.double()).dtype == torch.float32


# ------------------------------------------------------------------------------------- splits and order


@given(count=st.integers(2, 80), share=st.floats(0.01, 0.99))
def test_split_is_a_partition(count: int, share: float) -> None:
    source = InMemory(torch.arange(count)[:, None])
    data, again = split(source, share), split(source, share)
    train, heldout = rows_of(data.train), rows_of(data.heldout)
    assert sorted(train + heldout) == list(range(count))
    assert len(heldout) == min(max(1, round(share * count)), count - 1)
    assert (train, heldout) == (rows_of(again.train), rows_of(again.heldout))
    assert everything(data.train).x[:, 0].tolist() == train


def test_split_follows_the_names_and_not_the_order() -> None:
    names = [f"picture {number}" for number in range(40)]
    mixed = random.Random(0).sample(names, 40)
    source = InMemory(torch.arange(40)[:, None])
    first, second = split(source, 0.25, names), split(source, 0.25, mixed)
    assert {names[row] for row in rows_of(first.heldout)} == {mixed[row] for row in rows_of(second.heldout)}


def test_split_keeps_what_is_held_out_when_rows_are_added() -> None:
    """A picture that is added must not send all the others across the line."""
    names = [f"{number}.png" for number in range(200)]
    before = split(InMemory(torch.zeros(199, 1)), 0.1, names[:199])
    after = split(InMemory(torch.zeros(200, 1)), 0.1, names)
    moved = {names[row] for row in rows_of(before.heldout)} ^ {names[row] for row in rows_of(after.heldout)}
    assert len(moved) <= 2


def test_subset_passes_shape_classes_and_labels_on() -> None:
    source = InMemory(torch.arange(6).reshape(6, 1, 1, 1), torch.tensor([0, 1, 2, 0, 1, 2]), ("a", "b", "c"))
    part = Subset(source, np.array([5, 1]))
    assert (len(part), part.shape, part.classes) == (2, (1, 1, 1), ("a", "b", "c"))
    x, labels, *_ = part.take(np.array([1, 0, 0]))
    assert labels is not None
    assert (x.flatten().tolist(), labels.tolist()) == ([1, 5, 5], [1, 2, 2])


@given(rows=st.integers(1, 40), seed=st.integers(0, 2**40), position=st.integers(0, 300), cuts=st.data())
def test_shuffled_does_not_depend_on_the_cut(rows: int, seed: int, position: int, cuts: st.DataObject) -> None:
    sizes = cuts.draw(st.lists(st.integers(0, 30), min_size=1, max_size=6))
    whole = shuffled(rows, seed, position, sum(sizes))
    starts = np.cumsum([0, *sizes[:-1]])
    parts = [shuffled(rows, seed, position + int(start), size) for start, size in zip(starts, sizes, strict=True)]
    assert np.array_equal(np.concatenate(parts), whole)


@given(rows=st.integers(1, 60), seed=st.integers(0, 2**40), epoch=st.integers(0, 50))
def test_each_epoch_is_a_permutation(rows: int, seed: int, epoch: int) -> None:
    assert sorted(shuffled(rows, seed, epoch * rows, rows).tolist()) == list(range(rows))


def test_epochs_and_seeds_differ() -> None:
    first, second = shuffled(100, 0, 0, 200).reshape(2, 100)
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, shuffled(100, 1, 0, 100))


# ------------------------------------------------------------------------------------------- augmentation


def noise_pictures(count: int, height: int = 6, width: int = 5) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 2, height, width), dtype=torch.uint8, generator=draw)


@given(flip=st.booleans(), crop=st.integers(0, 3), cut=st.integers(0, 12), position=st.integers(0, 10**6))
def test_augment_does_not_depend_on_the_cut(flip: bool, crop: int, cut: int, position: int) -> None:
    x, augment = noise_pictures(12), Augment(flip, crop)
    whole = augment(x, 3, position)
    cuts = [augment(part, 3, position + start) for part, start in ((x[:cut], 0), (x[cut:], cut)) if len(part)]
    assert torch.equal(torch.cat(cuts), whole)
    assert (whole.shape, whole.dtype) == (x.shape, x.dtype)


def test_no_augmentation_is_free() -> None:
    x = noise_pictures(3)
    assert Augment()(x, 0, 0) is x


def test_flip_mirrors_about_half_of_the_rows() -> None:
    x = noise_pictures(400)
    flipped = Augment(flip=True)(x, 0, 0)
    mirrored = [bool(torch.equal(new, old.flip(-1))) for new, old in zip(flipped, x, strict=True)]
    same = [bool(torch.equal(new, old)) for new, old in zip(flipped, x, strict=True)]
    assert all(one != other for one, other in zip(mirrored, same, strict=True))
    assert 150 < sum(mirrored) < 250  # five standard deviations about 200
    assert not torch.equal(flipped, Augment(flip=True)(x, 1, 0))


def test_crop_shifts_each_way_and_repeats_the_border() -> None:
    x = noise_pictures(300)
    shifts = set()
    for new, old in zip(Augment(crop=1)(x, 0, 0), x, strict=True):
        padded = np.pad(old.numpy(), ((0, 0), (1, 1), (1, 1)), mode="edge")
        fits = [
            (down, right)
            for down in range(3)
            for right in range(3)
            if np.array_equal(new.numpy(), padded[:, down : down + 6, right : right + 5])
        ]
        assert len(fits) == 1
        shifts.update(fits)
    assert len(shifts) == 9


def test_crop_below_zero_is_refused() -> None:
    with pytest.raises(UserError, match=r"augment\.crop"):
        Augment(crop=-1)


@pytest.mark.parametrize("augment", [Augment(flip=True), Augment(crop=1)], ids=["flip", "crop"])
def test_points_are_not_augmented_as_pictures(augment: Augment) -> None:
    """Mirroring a point would swap its coordinates: other data, silently."""
    with pytest.raises(UserError):
        augment(torch.zeros(3, 2), 0, 0)


# --------------------------------------------------------------------------------------- points and digits


@pytest.mark.parametrize("shape", ["moons", "spiral", "checkerboard"])
def test_points(shape: Shape) -> None:
    data = points(shape, count=4000)
    again = points(shape, count=4000)
    (x, labels, *_), (held_x, held_labels, *_) = everything(data.train), everything(data.heldout)
    assert labels is not None
    assert held_labels is not None
    assert torch.equal(x, everything(again.train).x)
    assert (len(x), len(held_x)) == (3600, 400)
    assert x.dtype == torch.float32
    assert data.train.shape == (2,)
    whole, marks = torch.cat([x, held_x]).double(), torch.cat([labels, held_labels])
    assert whole.mean(0).abs().max() < 1e-6
    assert marks.bincount().tolist() == [2000, 2000]
    assert len(data.train.classes) == 2
    reader = KNeighborsClassifier(5).fit(x.numpy(), labels.numpy())
    assert reader.score(held_x.numpy(), held_labels.numpy()) > 0.85  # labels belong to their points


@pytest.mark.parametrize("shape", ["moons", "spiral", "checkerboard"])
def test_points_have_unit_variance(shape: Shape) -> None:
    """Around the mean of each coordinate: schedules and solvers count on it."""
    whole = torch.cat([everything(part).x for part in points(shape, count=4000)]).double()
    assert float(whole.var(0, correction=0).mean()) == pytest.approx(1, abs=1e-5)


def test_checkerboard_has_empty_squares() -> None:
    x, labels, *_ = everything(points("checkerboard", count=4000, noise=0.0).train)
    assert labels is not None
    cells = ((x - x.min(0).values) / (x.max(0).values - x.min(0).values) * 4).floor().clamp(max=3).long()
    agrees = (cells.sum(1) % 2 == labels).float().mean()
    assert agrees > 0.99  # the extreme points only nearly reach the edge of the board


@pytest.mark.parametrize("count", [-1, 0, 1])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_too_few_points_are_refused(count: int) -> None:
    with pytest.raises(UserError):
        points(count=count)


def test_digits_are_the_real_ones() -> None:
    data = digits()
    pixels, labels = load_digits(return_X_y=True)
    assert (len(data.train), len(data.heldout)) == (1438, 359)
    assert data.train.shape == (1, 8, 8)
    assert data.train.classes == tuple("0123456789")
    for part in data:
        x, marks, *_ = everything(part)
        assert marks is not None
        assert x.dtype == torch.uint8
        assert np.array_equal(np.round(x.flatten(1).numpy() * (16 / 255)), pixels[rows_of(part)])
        assert np.array_equal(marks.numpy(), labels[rows_of(part)])
    assert not set(rows_of(data.train)) & set(rows_of(data.heldout))


# ---------------------------------------------------------------------------------------------- idx files


def idx_bytes(array: Bytes) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + b"".join(struct.pack(">I", side) for side in array.shape) + array.tobytes()


def write_idx_set(root: Path, packed: bool, counts: tuple[int, int] = (6, 3)) -> list[Bytes]:
    draw = np.random.default_rng(0)
    arrays: list[Bytes] = []
    for count in counts:
        arrays += [draw.integers(0, 256, (count, 4, 5), dtype=np.uint8), np.arange(count, dtype=np.uint8)]
    for name, array in zip(IDX_NAMES, arrays, strict=True):
        raw = idx_bytes(array)
        root.joinpath(f"{name}.gz" if packed else name).write_bytes(gzip.compress(raw) if packed else raw)
    return arrays


@pytest.mark.parametrize("packed", [True, False], ids=["gz", "plain"])
@pytest.mark.parametrize(("read", "first"), [(mnist, "0"), (fashion, "T-shirt")])
def test_idx_files(tmp_path: Path, packed: bool, read: Callable[[str], Data], first: str) -> None:
    arrays = write_idx_set(tmp_path, packed)
    data = read(str(tmp_path))
    for part, pixels, labels in ((data.train, *arrays[:2]), (data.heldout, *arrays[2:])):
        x, marks, *_ = everything(part)
        assert marks is not None
        assert np.array_equal(x[:, 0].numpy(), pixels)
        assert np.array_equal(marks.numpy(), labels)
        assert (part.shape, part.classes[0], len(part.classes)) == ((1, 4, 5), first, 10)


def test_idx_files_in_the_cache_need_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNFOG_CACHE", str(tmp_path))
    (tmp_path / "mnist").mkdir()
    write_idx_set(tmp_path / "mnist", packed=True)
    assert len(mnist().train) == 6


def _shorten(raw: bytes) -> bytes:
    return raw[:-3]


def _damage(raw: bytes) -> bytes:
    return raw[:20] + bytes(byte ^ 255 for byte in raw[20:30]) + raw[30:]


@pytest.mark.parametrize("change", [_shorten, _damage, lambda raw: b"", lambda raw: b"text"])
def test_damaged_gz_is_named(tmp_path: Path, change: Callable[[bytes], bytes]) -> None:
    write_idx_set(tmp_path, packed=True)
    file = tmp_path / f"{IDX_NAMES[0]}.gz"
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(UserError, match=IDX_NAMES[0]):
        mnist(str(tmp_path))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (_shorten, "values, but its header says"),
        (lambda raw: raw + b"\0", "values, but its header says"),
        (lambda raw: b"\0\0\x0d" + raw[3:], "not an idx file of unsigned bytes"),
        (lambda raw: raw[:9], "not an idx file of unsigned bytes"),
        (lambda raw: b"", "not an idx file of unsigned bytes"),
        (lambda raw: b"\0\0\x08\xff", "not an idx file of unsigned bytes"),
        (lambda raw: raw[:4] + b"\xff" * 12 + raw[16:], "values, but its header says"),
    ],
    ids=["truncated", "too long", "other type", "half a head", "empty", "many axes", "huge sizes"],
)
def test_damaged_idx_is_named(tmp_path: Path, change: Callable[[bytes], bytes], sentence: str) -> None:
    write_idx_set(tmp_path, packed=False)
    file = tmp_path / IDX_NAMES[2]
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(UserError, match=f"{IDX_NAMES[2]}.*{sentence}"):
        mnist(str(tmp_path))


@given(place=st.integers(0, 60), byte=st.integers(0, 255), end=st.integers(0, 200))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_damage_of_an_idx_file_is_a_user_error(tmp_path: Path, place: int, byte: int, end: int) -> None:
    good = idx_bytes(np.arange(24, dtype=np.uint8).reshape(2, 3, 4))
    for name, raw in (("a", bytearray(good)), ("a.gz", bytearray(gzip.compress(good, mtime=0)))):
        raw[place % len(raw)] = byte
        (tmp_path / name).write_bytes(raw[:end])
        try:
            found = read_idx(tmp_path / name)
        except UserError:
            continue
        assert found.dtype == np.uint8


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        (np.zeros(5, np.uint8), "does not have one label for each image"),
        (np.zeros((6, 1), np.uint8), "does not have one label for each image"),
        (np.full(6, 10, np.uint8), "contains the label 10, but there are 10 classes"),
    ],
    ids=["fewer", "two axes", "out of range"],
)
def test_labels_that_do_not_fit(tmp_path: Path, labels: Bytes, sentence: str) -> None:
    write_idx_set(tmp_path, packed=False)
    (tmp_path / IDX_NAMES[1]).write_bytes(idx_bytes(labels))
    with pytest.raises(UserError, match=sentence):
        mnist(str(tmp_path))


def test_pictures_without_pictures(tmp_path: Path) -> None:
    write_idx_set(tmp_path, packed=False, counts=(0, 3))
    with pytest.raises(UserError, match=IDX_NAMES[1]):
        mnist(str(tmp_path))


def test_a_missing_idx_file_is_named(tmp_path: Path) -> None:
    write_idx_set(tmp_path, packed=False)
    (tmp_path / IDX_NAMES[3]).unlink()
    with pytest.raises(UserError, match=f"neither {IDX_NAMES[3]}.gz nor {IDX_NAMES[3]}"):
        mnist(str(tmp_path))


@pytest.mark.parametrize("read", [mnist, fashion, cifar10, folder], ids=lambda read: read.__name__)
def test_the_folder_must_be_one(tmp_path: Path, read: Callable[[str], Data]) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read(str(tmp_path / "absent"))
    (tmp_path / "file").write_text("text")
    with pytest.raises(UserError, match="is not a folder"):
        read(str(tmp_path / "file"))


@pytest.mark.parametrize("path", ["~no-such-user-at-all/pictures", "a" * 5000], ids=["unknown home", "too long"])
def test_a_path_that_cannot_be_is_a_user_error(path: str) -> None:
    with pytest.raises(UserError):
        existing(path)


# ------------------------------------------------------------------------------------------------ cifar10


def write_cifar(root: Path, train_files: int = 2) -> tuple[Bytes, Bytes]:
    """Write small CIFAR-10 files; returns the labels and the pixels of the training files."""
    root.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(0)
    parts = []
    for name in [f"data_batch_{number}" for number in range(1, train_files + 1)] + ["test_batch"]:
        records = draw.integers(0, 256, (4, 3073), dtype=np.uint8)
        records[:, 0] = draw.integers(0, 10, 4)
        records.tofile(root / f"{name}.bin")
        parts.append(records)
    train = np.concatenate(parts[:-1])
    return train[:, 0], train[:, 1:].reshape(-1, 3, 32, 32)


@pytest.mark.parametrize("nested", [True, False])
def test_cifar_files(tmp_path: Path, nested: bool) -> None:
    labels, pixels = write_cifar(tmp_path / "cifar-10-batches-bin" if nested else tmp_path)
    data = cifar10(str(tmp_path))
    x, marks, *_ = everything(data.train)
    assert marks is not None
    assert np.array_equal(x.numpy(), pixels)
    assert np.array_equal(marks.numpy(), labels)
    assert (len(data.heldout), data.train.shape, data.train.classes[9]) == (4, (3, 32, 32), "truck")


@pytest.mark.parametrize(
    "raw", [b"", bytes(3072), bytes([10]) + bytes(3072)], ids=["empty", "one byte short", "label out of range"]
)
def test_damaged_cifar_is_named(tmp_path: Path, raw: bytes) -> None:
    write_cifar(tmp_path)
    (tmp_path / "data_batch_2.bin").write_bytes(raw)
    with pytest.raises(UserError, match=r"data_batch_2\.bin is damaged"):
        cifar10(str(tmp_path))


def test_cifar_without_its_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no data_batch"):
        cifar10(str(tmp_path))
    write_cifar(tmp_path)
    (tmp_path / "test_batch.bin").unlink()
    with pytest.raises(UserError, match=r"test_batch\.bin is missing"):
        cifar10(str(tmp_path))


@pytest.fixture
def packed_cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that holds the archive, as after a download."""
    write_cifar(tmp_path / "made" / "cifar-10-batches-bin")
    cache = tmp_path / "cache"
    cache.mkdir()
    with tarfile.open(cache / "cifar-10-binary.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "made" / "cifar-10-batches-bin", "cifar-10-batches-bin")
    monkeypatch.setenv("UNFOG_CACHE", str(cache))
    return cache


def test_cifar_is_unpacked_from_the_cache(packed_cifar: Path) -> None:
    assert len(cifar10().train) == 8
    assert len(cifar10().train) == 8  # from the unpacked files


def test_an_interrupted_unpacking_is_done_again(packed_cifar: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped behind the first file, it leaves nothing that could pass for the whole set."""

    def stop_halfway(archive: tarfile.TarFile, path: str, **_: object) -> None:
        half = Path(path) / "cifar-10-batches-bin"
        half.mkdir()
        (half / "data_batch_1.bin").write_bytes(bytes(100))
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(tarfile.TarFile, "extractall", stop_halfway)
        with pytest.raises(KeyboardInterrupt):
            cifar10()
    assert len(cifar10().train) == 8


def test_a_damaged_archive_is_one_sentence(packed_cifar: Path) -> None:
    archive = packed_cifar / "cifar-10-binary.tar.gz"
    archive.write_bytes(archive.read_bytes()[:2000])
    with pytest.raises((UserError, EnvironmentFailure)):
        cifar10()


# ----------------------------------------------------------------------------------------------- download

CONTENT = b"what was published" * 1000
MD5 = hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()


class Publisher(http.server.BaseHTTPRequestHandler):
    """Serves one file whole, and breaks off in several ways."""

    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.path == "/silent":
            return
        if self.path == "/missing":
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        if self.path == "/file":
            self.wfile.write(CONTENT)
            return
        self.wfile.write(CONTENT[:1000])
        self.wfile.flush()
        if self.path == "/reset":  # lingering for no time at all makes the close a reset
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


class Server(http.server.ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """A connection that was broken on purpose is no news."""


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[str]]]:
    """The address of a server, and the list of what it was asked for."""
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")
    handler = type("Handler", (Publisher,), {"asked": []})
    with Server(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}", handler.asked
        server.shutdown()
        thread.join()


def test_fetch_brings_the_file_once(tmp_path: Path, published: tuple[str, list[str]]) -> None:
    address, asked = published
    path = tmp_path / "new" / "folder" / "file.bin"
    assert fetch(f"{address}/file", path, MD5) == path
    assert path.read_bytes() == CONTENT
    assert fetch(f"{address}/file", path, MD5) == path
    assert asked == ["/file"]
    assert list(path.parent.iterdir()) == [path]


def test_fetch_refuses_another_file(tmp_path: Path, published: tuple[str, list[str]]) -> None:
    with pytest.raises(EnvironmentFailure, match="differs from the published file"):
        fetch(f"{published[0]}/file", tmp_path / "file.bin", "0" * 32)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", ["/missing", "/short", "/reset", "/silent"])
def test_a_failing_download_leaves_nothing(tmp_path: Path, published: tuple[str, list[str]], path: str) -> None:
    with pytest.raises(EnvironmentFailure):
        fetch(f"{published[0]}{path}", tmp_path / "file.bin", MD5)
    assert list(tmp_path.iterdir()) == []


def test_a_refused_connection_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.socket() as taken:  # bound but not listening: nobody else can answer there
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(EnvironmentFailure, match=r"cannot download .*set data\.path to .*file\.bin"):
            fetch(f"http://127.0.0.1:{taken.getsockname()[1]}/x", tmp_path / "file.bin", MD5)
    assert list(tmp_path.iterdir()) == []


def test_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNFOG_CACHE", "/somewhere/own")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere/else")
    assert cache_folder() == Path("/somewhere/own")
    monkeypatch.delenv("UNFOG_CACHE")
    assert cache_folder() == Path("/somewhere/else/unfog")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "unfog"


# -------------------------------------------------------------------------------------- reading a picture


def save(picture: Image.Image | Bytes, path: Path, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    made = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    made.save(path, **options)
    return path


def flat(mode: str, colour: object, side: int = 8) -> Image.Image:
    return Image.new(mode, (side, side), colour)


def palette(transparent: bool) -> Image.Image:
    """Left half red, right half blue; the blue is transparent where asked."""
    picture = Image.new("P", (8, 8), 0)
    picture.putpalette([255, 0, 0, 0, 0, 255])
    picture.paste(1, (4, 0, 8, 8))
    if transparent:
        picture.info["transparency"] = 1
    return picture


@pytest.mark.parametrize(
    ("picture", "suffix", "colour", "grey"),
    [
        (flat("L", 100), "png", (100, 100, 100), 100),
        (flat("RGB", (10, 20, 30)), "png", (10, 20, 30), 18),
        (flat("RGBA", (10, 20, 30, 255)), "png", (10, 20, 30), 18),
        (flat("RGBA", (0, 0, 0, 0)), "png", (255, 255, 255), 255),
        (flat("RGBA", (255, 0, 0, 51)), "png", (255, 204, 204), 219),
        (flat("LA", (40, 255)), "png", (40, 40, 40), 40),
        (flat("LA", (40, 0)), "png", (255, 255, 255), 255),
        (flat("1", 1), "png", (255, 255, 255), 255),
        (flat("1", 0), "png", (0, 0, 0), 0),
        (flat("I;16", 257 * 100), "png", (100, 100, 100), 100),
        (flat("I;16", 65535), "tif", (255, 255, 255), 255),
        (flat("I", 30), "tif", (30, 30, 30), 30),
        (flat("F", 30.0), "tif", (30, 30, 30), 30),
        (flat("CMYK", (0, 255, 255, 0)), "tif", (255, 0, 0), 76),
        (flat("CMYK", (0, 0, 0, 0)), "jpg", (255, 255, 255), 255),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else None,
)
def test_modes(tmp_path: Path, picture: Image.Image, suffix: str, colour: tuple[int, int, int], grey: int) -> None:
    path = save(picture, tmp_path / f"x.{suffix}")
    seen = read_picture(path, 3, 8, 8)
    assert (seen.shape, seen.dtype) == ((3, 8, 8), np.uint8)
    assert np.array_equal(seen, np.broadcast_to(np.array(colour)[:, None, None], (3, 8, 8)))
    assert np.array_equal(read_picture(path, 1, 8, 8), np.full((1, 8, 8), grey))


@pytest.mark.parametrize("transparent", [True, False])
def test_palettes(tmp_path: Path, transparent: bool) -> None:
    seen = read_picture(save(palette(transparent), tmp_path / "x.png"), 3, 8, 8)
    assert seen[:, 0, 0].tolist() == [255, 0, 0]
    assert seen[:, 0, 7].tolist() == ([255, 255, 255] if transparent else [0, 0, 255])


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_have_one_scale(tmp_path: Path, suffix: str) -> None:
    """A dark picture must stay dark: the scale is the format's, and not the picture's own."""
    dark = read_picture(save(flat("I;16", 200), tmp_path / f"dark.{suffix}"), 1, 8, 8)
    light = read_picture(save(flat("I;16", 60_000), tmp_path / f"light.{suffix}"), 1, 8, 8)
    assert (int(dark.max()), int(light.max())) == (1, 233)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("suffix", ["tiff", "ppm", "npy"])
def test_values_that_are_not_finite_are_refused(tmp_path: Path, suffix: str, value: float) -> None:
    """One in a float TIFF, PFM or array: NaN would have made the whole picture black, or any grey."""
    values = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    values[3, 4] = value
    path = tmp_path / f"x.{suffix}"
    if suffix == "npy":
        np.save(path, values)
    else:
        Image.fromarray(values).save(path, format={"tiff": "TIFF", "ppm": "PPM"}[suffix])
    with pytest.raises(UnreadableError, match="not all finite|not finite|not all between 0 and 1"):
        read_picture(path, 1, 8, 8)


def test_float_tiff_follows_the_rule_of_float_arrays(tmp_path: Path) -> None:
    """Floats in [0, 1] are the full range, wherever they come from; black would be a silent loss."""
    seen = read_picture(save(flat("F", 1.0), tmp_path / "x.tif"), 1, 8, 8)
    assert int(seen.min()) == 255


@pytest.mark.parametrize(
    ("picture", "channels"),
    [
        (flat("L", 0), 1),
        (flat("1", 0), 1),
        (flat("LA", (0, 0)), 1),
        (flat("I;16", 0), 1),
        (flat("RGB", (0, 0, 0)), 3),
        (flat("RGBA", (0, 0, 0, 0)), 3),
        (palette(False), 3),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else None,
)
def test_description(tmp_path: Path, picture: Image.Image, channels: int) -> None:
    assert describe_picture(save(picture.resize((7, 5)), tmp_path / "x.png")) == (channels, 5, 7)


def test_centre_is_cut_exactly(tmp_path: Path) -> None:
    """Without a change of scale no pixel may change, in whatever direction the picture is too long."""
    pixels = np.random.default_rng(0).integers(0, 256, (10, 14, 3), dtype=np.uint8)
    wide = read_picture(save(pixels, tmp_path / "wide.png"), 3, 10, 10)
    assert np.array_equal(wide, pixels[:, 2:12].transpose(2, 0, 1))
    tall = read_picture(save(pixels.transpose(1, 0, 2), tmp_path / "tall.png"), 3, 10, 10)
    assert np.array_equal(tall, pixels[:, 2:12].transpose(2, 1, 0))
    banner = read_picture(tmp_path / "wide.png", 3, 4, 14)
    assert np.array_equal(banner, pixels[3:7].transpose(2, 0, 1))


def test_cut_then_resize(tmp_path: Path) -> None:
    """White square in the middle of black: cut at its sides, so that only the filter's tails see any black."""
    pixels = np.zeros((16, 32), np.uint8)
    pixels[:, 8:24] = 255
    seen = read_picture(save(pixels, tmp_path / "x.png"), 1, 4, 4)[0]
    assert (seen[:, 1:3] == 255).all()
    assert (seen == seen[:1]).all()
    assert seen.min() > 230
    quarters = np.kron(np.array([[0, 60], [120, 180]], np.uint8), np.ones((16, 16), np.uint8))
    small = read_picture(save(quarters, tmp_path / "y.png"), 1, 8, 8)[0].astype(int)
    assert np.abs(small[1::4, 1::4] - [[0, 60], [120, 180]]).max() <= 12  # what Lanczos overshoots at edges
    assert small.shape == (8, 8)


@pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (3, 2), (6, -1), (8, 1)])
@pytest.mark.parametrize(("suffix", "options"), [("png", {}), ("tif", {}), ("tif", {"compression": "tiff_lzw"})])
def test_pictures_are_turned_upright(
    tmp_path: Path, orientation: int, turns: int, suffix: str, options: dict[str, object]
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 9), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = np.rot90(pixels, turns)
    path = save(pixels, tmp_path / f"x.{suffix}", exif=exif, **options)
    assert np.array_equal(read_picture(path, 1, *upright.shape)[0], upright)
    assert describe_picture(path) == (1, *upright.shape)


def save_array(array: object, path: Path) -> Path:
    np.save(path, array, allow_pickle=True)
    return path


@pytest.mark.parametrize(
    ("array", "channels", "expected"),
    [
        (np.full((4, 4), 7, np.uint8), 1, [7]),
        (np.full((4, 4), 7, np.uint8), 3, [7, 7, 7]),
        (np.full((4, 4), 257 * 7, np.uint16), 1, [7]),
        (np.full((4, 4), 257 * 7, ">u2"), 1, [7]),
        (np.full((4, 4), 0.2, np.float32), 1, [51]),
        (np.full((4, 4), 0.2, np.float64), 1, [51]),
        (np.full((4, 4, 1), 1.0, np.float16), 1, [255]),
        (np.full((4, 4, 3), [1, 2, 3], np.uint8), 3, [1, 2, 3]),
        (np.full((4, 4, 3), [10, 20, 30], np.uint8), 1, [18]),
        (np.full((4, 4, 5), [1, 2, 3, 4, 5], np.uint8), 5, [1, 2, 3, 4, 5]),
        (np.asfortranarray(np.full((4, 4, 2), [1, 2], np.uint8)), 2, [1, 2]),
    ],
)
def test_arrays(tmp_path: Path, array: NDArray[np.generic], channels: int, expected: list[int]) -> None:
    path = save_array(array, tmp_path / "x.npy")
    seen = read_picture(path, channels, 2, 2)
    assert np.array_equal(seen, np.broadcast_to(np.array(expected)[:, None, None], (channels, 2, 2)))
    assert describe_picture(path) == (1 if array.ndim == 2 else array.shape[2], 4, 4)


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.array([[object()]]), "Python objects"),
        (np.array([[np.nan]]), "between 0 and 1"),
        (np.array([[1.5]]), "between 0 and 1"),
        (np.array([[-0.1]]), "between 0 and 1"),
        (np.zeros((4, 4), np.int64), "int64"),
        (np.zeros(4, np.uint8), "not an image"),
        (np.zeros((2, 2, 2, 2), np.uint8), "not an image"),
        (np.zeros((0, 4), np.uint8), "not an image"),
        (np.zeros((4, 4, 2), np.uint8), "2 channels, but the data set has 3"),
    ],
    ids=["pickle", "NaN", "above 1", "below 0", "integers", "one axis", "four axes", "empty", "two planes"],
)
def test_unreadable_arrays(tmp_path: Path, array: NDArray[np.generic], reason: str) -> None:
    with pytest.raises(UnreadableError, match=reason):
        read_picture(save_array(array, tmp_path / "x.npy"), 3, 2, 2)


def test_an_archive_named_npy_is_unreadable(tmp_path: Path) -> None:
    """`numpy.load` goes by the content, and returns something that is no array at all."""
    with (tmp_path / "x.npy").open("wb") as file:
        np.savez(file, np.zeros((4, 4), np.uint8))
    with pytest.raises(UnreadableError):
        read_picture(tmp_path / "x.npy", 1, 2, 2)
    with pytest.raises(UnreadableError):
        describe_picture(tmp_path / "x.npy")


@pytest.mark.parametrize("header", [b"{'descr': '|u1',\n", b"{'descr': '|u1', b'shape': (4, 4)}"])
def test_a_damaged_array_head_is_unreadable(tmp_path: Path, header: bytes) -> None:
    padded = header.ljust(118)
    raw = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(padded)) + padded + bytes(16)
    (tmp_path / "x.npy").write_bytes(raw)
    with pytest.raises(UnreadableError):
        read_picture(tmp_path / "x.npy", 1, 2, 2)
    with pytest.raises(UnreadableError):
        describe_picture(tmp_path / "x.npy")


def _good_files() -> list[tuple[str, bytes]]:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8))
    files = []
    for suffix in (".png", ".jpg", ".gif", ".bmp", ".webp", ".ppm"):
        buffer = io.BytesIO()
        picture.save(buffer, format=Image.registered_extensions()[suffix])
        files.append((suffix, buffer.getvalue()))
    buffer = io.BytesIO()
    np.save(buffer, np.zeros((4, 4, 3), np.uint8))
    return [*files, (".npy", buffer.getvalue())]


@pytest.mark.parametrize(("suffix", "good"), _good_files(), ids=lambda value: value if isinstance(value, str) else "")
@pytest.mark.filterwarnings("ignore")  # Pillow warns of much that it then reads all the same
def test_any_damage_is_unreadable_or_a_picture(tmp_path: Path, suffix: str, good: bytes) -> None:
    draw = random.Random(0)
    path = tmp_path / f"x{suffix}"
    for trial in range(60):
        raw = bytearray(good if trial % 3 else good[: draw.randrange(len(good))])
        for _ in range(draw.choice([1, 2, 8]) if raw else 0):
            raw[draw.randrange(min(len(raw), 150))] = draw.randrange(256)
        path.write_bytes(raw)
        with contextlib.suppress(UnreadableError):
            assert read_picture(path, 3, 4, 4).shape == (3, 4, 4)


# ------------------------------------------------------------------------------------ listing a folder


def make_folder(root: Path, names: dict[str, int], side: int = 8, mode: str = "L") -> Path:
    """Write one-coloured pictures: a name and a grey value each."""
    for name, value in names.items():
        save(flat(mode, value if mode == "L" else (value, value, value), side), root / name)
    return root


def test_sub_folders_are_classes(tmp_path: Path) -> None:
    make_folder(tmp_path, {f"{name}/{value}.png": value for name, value in (("b", 1), ("a", 2), ("a", 3), ("b", 4))})
    (tmp_path / "empty").mkdir()
    listing = list_pictures(str(tmp_path))
    assert listing.files == ("a/2.png", "a/3.png", "b/1.png", "b/4.png")
    assert (listing.classes, listing.labels) == (("a", "b"), (0, 0, 1, 1))
    data = folder(str(tmp_path))
    for part in data:
        x, labels, *_ = everything(part)
        assert labels is not None
        assert [int(value in (1, 4)) for value in x[:, 0, 0, 0].tolist()] == labels.tolist()
    assert len(data.train) + len(data.heldout) == 4


@pytest.mark.parametrize("names", [("a.png", "b.png"), ("only/a.png", "only/b.png"), ("a.png", "sub/b.png")])
def test_no_classes(tmp_path: Path, names: tuple[str, ...]) -> None:
    listing = list_pictures(str(make_folder(tmp_path, dict.fromkeys(names, 0))))
    assert (listing.files, listing.labels, listing.classes) == (tuple(sorted(names)), None, ())


def test_suffixes_in_any_case_and_nothing_else(tmp_path: Path) -> None:
    save(flat("L", 5), tmp_path / "A.JPG")
    save(flat("L", 5), tmp_path / "b.Png")
    save(flat("L", 5), tmp_path / ".hidden.png")
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "folder.png").mkdir()
    assert list_pictures(str(tmp_path)).files == ("A.JPG", "b.Png")


def test_hidden_folders_are_no_classes(tmp_path: Path) -> None:
    """Notebooks and file managers leave thumbnails and copies in hidden folders."""
    make_folder(tmp_path, {"a/1.png": 0, "b/2.png": 0, ".ipynb_checkpoints/3.png": 0, "a/.thumbs/4.png": 0})
    listing = list_pictures(str(tmp_path))
    assert (listing.files, listing.classes) == (("a/1.png", "b/2.png"), ("a", "b"))


def test_an_empty_folder_says_what_it_looked_for(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no picture")
    with pytest.raises(UserError, match=r"contains no images \(.*\.png.*check the path"):
        folder(str(tmp_path))


def test_without_a_path_nothing_is_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder in which the command happens to run is nobody's wish."""
    monkeypatch.chdir(make_folder(tmp_path, {"a.png": 0, "b.png": 0}))
    with pytest.raises(UserError):
        folder()


def write_metadata(root: Path, *lines: object) -> None:
    texts = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines]
    (root / "metadata.jsonl").write_text("\n".join(texts) + "\n", encoding="utf-8")


def test_metadata_with_labels(tmp_path: Path) -> None:
    make_folder(tmp_path, {"x/one.png": 10, "two.png": 2, "three.png": 10, "unlisted.png": 0})
    entries = [{"file_name": name, "label": label} for name, label in (("x/one.png", 10), ("two.png", 2))]
    write_metadata(tmp_path, *entries, "", {"file_name": "three.png", "label": "10"})
    listing = list_pictures(str(tmp_path))
    assert listing.files == ("three.png", "two.png", "x/one.png")
    assert (listing.classes, listing.labels) == (("2", "10"), (1, 0, 1))  # numbers in their own order
    assert listing.captions is None


def test_metadata_with_texts(tmp_path: Path) -> None:
    make_folder(tmp_path, {"a.png": 0, "b.png": 0})
    write_metadata(tmp_path, {"file_name": "b.png", "text": "second"}, {"file_name": "a.png", "text": "first"})
    listing = list_pictures(str(tmp_path))
    assert (listing.captions, listing.labels, listing.classes) == (("first", "second"), None, ())


@pytest.mark.parametrize(("key", "value"), [("label", 1), ("text", "t"), ("values", [0.5])])
def test_what_some_lines_lack_is_said(tmp_path: Path, key: str, value: object) -> None:
    """Else a model would be conditioned on less than its user thinks, without a word."""
    write_metadata(tmp_path, {"file_name": "a.png", key: value}, {"file_name": "b.png"}, {"file_name": "c.png"})
    with pytest.raises(UserError, match=rf"'{key}' is missing for b.png \(2 in all\): set it in all lines"):
        list_pictures(str(tmp_path))


@pytest.mark.parametrize("sign", ["\u2028", "\x85", "ü"])
def test_a_caption_may_hold_any_sign(tmp_path: Path, sign: str) -> None:
    """JSON allows the line separators of Unicode inside a text: only a line feed ends a line of the file."""
    write_metadata(tmp_path, {"file_name": "a.png", "text": f"one{sign}two"})
    assert list_pictures(str(tmp_path)).captions == (f"one{sign}two",)


@pytest.mark.parametrize(
    "line",
    ['{"file_name": "a.png"', "[1]", "3", '"file_name"', '{"name": "a.png"}', "null", "[" * 100_000],
    ids=["damaged", "list", "number", "text", "other key", "null", "deep"],
)
def test_a_damaged_line_is_numbered(tmp_path: Path, line: str) -> None:
    write_metadata(tmp_path, {"file_name": "b.png"}, line)
    with pytest.raises(UserError, match=r"metadata\.jsonl, line 2: not a JSON object with 'file_name'"):
        list_pictures(str(tmp_path))


@pytest.mark.parametrize("name", ["../outside.png", "/outside.png", "x/../../outside.png", 5, None, "a\0.png"])
def test_metadata_stays_in_the_folder(tmp_path: Path, name: object) -> None:
    write_metadata(tmp_path, {"file_name": name})
    with pytest.raises(UserError, match=r"line 1: .* is not a file below the folder"):
        list_pictures(str(tmp_path))


def grouped(root: Path, *texts: str) -> None:
    """A folder of captioned pictures, every second one with the key "kind"."""
    make_folder(root, {f"{place}.png": 20 * place for place in range(len(texts))})
    entries = [{"file_name": f"{place}.png", "text": text} for place, text in enumerate(texts)]
    write_metadata(
        root, *(one | ({"kind": True, "size": "7"} if place % 2 else {}) for place, one in enumerate(entries))
    )


@pytest.mark.parametrize("where", ["kind=true", "size=7", ' size ="7"'])
def test_some_lines_of_metadata(tmp_path: Path, where: str) -> None:
    """The value is JSON, or a text."""
    grouped(tmp_path, "a", "b", "c", "d", "e", "f")
    assert list_pictures(str(tmp_path), where).files == ("1.png", "3.png", "5.png")
    data = folder(str(tmp_path), heldout=0.4, where=where)
    assert sorted([*data.train.about(np.arange(2)).captions, *data.heldout.about(np.arange(1)).captions]) == [  # type: ignore[misc]
        "b",
        "d",
        "f",
    ]


@pytest.mark.parametrize(
    ("where", "sentence"),
    [
        ("kind", "data.where must be key=value, for instance group=Objects, not 'kind'"),
        ("kind=false", "no line of .* matches kind=false: check data.where"),
    ],
)
def test_a_choice_of_lines_that_is_none(tmp_path: Path, where: str, sentence: str) -> None:
    grouped(tmp_path, "a", "b")
    with pytest.raises(UserError, match=sentence):
        folder(str(tmp_path), where=where)


def test_a_choice_of_lines_needs_lines(tmp_path: Path) -> None:
    make_folder(tmp_path, {"a.png": 1, "b.png": 2})
    with pytest.raises(UserError, match=r"data\.where selects lines of metadata\.jsonl, but .* has none"):
        folder(str(tmp_path), where="kind=1")
    with pytest.raises(UserError, match=r"data\.together splits by captions, but the folder has none"):
        folder(str(tmp_path), together=":")


def test_what_belongs_together_is_held_out_together(tmp_path: Path) -> None:
    grouped(
        tmp_path,
        *(f"thing {place // 3}{sign} kind {place % 3}" for place, sign in zip(range(30), ":,:" * 10, strict=True)),
    )
    for share in (0.1, 0.25, 0.5):
        data = folder(str(tmp_path), heldout=share, together=":,")
        names = [
            {text[:7] for text in side.about(np.arange(len(side))).captions or []}
            for side in (data.train, data.heldout)
        ]
        assert not names[0] & names[1]
        assert len(data.train) + len(data.heldout) == 30
        assert len(data.heldout) % 3 == 0


def test_the_first_rules_refuse_one_group(tmp_path: Path) -> None:
    grouped(tmp_path, "same: a", "same: b", "same: c")
    with pytest.raises(UserError, match="all rows belong to one group, so none can be held out"):
        folder(str(tmp_path), together=":", rules=1)


def test_links_in_metadata_are_followed(tmp_path: Path) -> None:
    """The hub's cache is a folder of links; the first rules refused them."""
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "link.png").symlink_to(save(flat("L", 0), tmp_path / "outside.png"))
    write_metadata(inside, {"file_name": "link.png"})
    assert list_pictures(str(inside)).files == ("link.png",)
    with pytest.raises(UserError, match="is not a file below the folder"):
        list_pictures(str(inside), rules=1)


def test_empty_metadata(tmp_path: Path) -> None:
    make_folder(tmp_path, {"a.png": 0})
    write_metadata(tmp_path, "", "  ")
    with pytest.raises(UserError, match="lists no images"):
        list_pictures(str(tmp_path))


# ------------------------------------------------------------------------------------ reading a folder


@pytest.mark.parametrize(
    ("sides", "expected"),
    [([5], 8), ([8], 8), ([15], 8), ([16], 16), ([27], 16), ([28], 28), ([33], 32), ([63], 48), ([900], 64)],
)
def test_look_takes_the_largest_side_that_the_pictures_reach(tmp_path: Path, sides: list[int], expected: int) -> None:
    for number, side in enumerate(sides):
        save(flat("L", 0, side), tmp_path / f"{number}.png")
    assert look(list_pictures(str(tmp_path))) == (1, expected, expected)


def test_look_goes_by_the_median_of_the_shorter_sides(tmp_path: Path) -> None:
    for number, (width, height) in enumerate(((300, 9), (17, 200), (16, 16), (64, 64), (31, 30))):
        save(Image.new("L", (width, height)), tmp_path / f"{number}.png")
    assert look(list_pictures(str(tmp_path))) == (1, 16, 16)


def test_one_coloured_picture_makes_a_coloured_set(tmp_path: Path) -> None:
    make_folder(tmp_path, {"a.png": 0, "b.png": 0})
    save(flat("RGB", (0, 0, 0)), tmp_path / "c.png")
    assert look(list_pictures(str(tmp_path)))[0] == 3
    assert folder(str(tmp_path)).train.shape == (3, 8, 8)
    assert folder(str(tmp_path), channels=1).train.shape == (1, 8, 8)


def test_look_reads_no_more_than_it_says(tmp_path: Path) -> None:
    """Two of three: a coloured third picture may be missed, a third of three may not be opened."""
    make_folder(tmp_path, {f"{number}.png": 0 for number in range(7)})
    listing = list_pictures(str(tmp_path))
    opened = []
    real = pictures.Image.open

    def counting(path: Path, **more: Any) -> Image.Image:
        opened.append(path)
        return real(path, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures.Image, "open", counting)
        look(listing, sample=4)
    assert 2 <= len(opened) <= 4


@pytest.mark.parametrize(("size", "shape"), [(4, (1, 4, 4)), ([4, 6], (1, 4, 6)), (None, (1, 8, 8))])
def test_sizes(tmp_path: Path, size: int | list[int] | None, shape: tuple[int, ...]) -> None:
    make_folder(tmp_path, {"a.png": 1, "b.png": 2})
    data = folder(str(tmp_path), size=size)
    assert data.train.shape == data.heldout.shape == everything(data.train).x.shape[1:] == shape


@pytest.mark.parametrize("size", [0, -8, 5000, [8], [8, 8, 8], [], [8, 0], [8, 4097]])
def test_sizes_that_cannot_be(tmp_path: Path, size: int | list[int]) -> None:
    make_folder(tmp_path, {"a.png": 1, "b.png": 2})
    with pytest.raises(UserError, match=r"data\.size must be a side or \[height, width\], from 1 to 4096"):
        folder(str(tmp_path), size=size)


@pytest.mark.parametrize(
    "options",
    [{"heldout": 0.0}, {"heldout": 1.0}, {"heldout": -0.5}, {"channels": 0}, {"channels": -1}, {"workers": 0}],
)
def test_options_that_cannot_be(tmp_path: Path, options: dict[str, float]) -> None:
    make_folder(tmp_path, {"a.png": 1, "b.png": 2})
    with pytest.raises(UserError, match=f"data.{next(iter(options))}"):
        folder(str(tmp_path), **options)


def test_heldout_share(tmp_path: Path) -> None:
    make_folder(tmp_path, {f"{number}.png": number for number in range(20)})
    data = folder(str(tmp_path), heldout=0.3)
    assert (len(data.train), len(data.heldout)) == (14, 6)
    values = [value for part in data for value in everything(part).x[:, 0, 0, 0].tolist()]
    assert sorted(values) == list(range(20))


def cut_off(path: Path) -> None:
    """Leave the first half of a picture whose pixels are noise, so that the second half is really missing."""
    save(np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_damaged_pictures_are_named_skipped_and_counted(tmp_path: Path) -> None:
    make_folder(tmp_path, {f"{name}/{value}.png": value for value, name in enumerate("aabb")})
    cut_off(tmp_path / "a" / "cut.png")
    (tmp_path / "b" / "text.png").write_text("no picture")
    with pytest.warns(UserWarning, match=r"skipped 2 of 6 images .*a/cut\.png \(.+\); b/text\.png \(.+\)") as caught:
        data = folder(str(tmp_path), size=8)
    assert len(caught) == 1
    assert len(data.train) + len(data.heldout) == 4
    for part in data:  # labels must not slip when a row is left out
        x, labels, *_, files = everything(part)
        assert labels is not None
        assert files is not None
        assert [value // 2 for value in x[:, 0, 0, 0].tolist()] == labels.tolist()
        assert [int(Path(file).stem) for file in files] == x[:, 0, 0, 0].tolist()


def test_many_damaged_pictures_are_not_all_named(tmp_path: Path) -> None:
    make_folder(tmp_path, {"y.png": 0, "z.png": 0})
    for number in range(5):
        (tmp_path / f"{number}.png").write_text("no picture")
    with pytest.warns(UserWarning, match=r"skipped 5 of 7 .*0\.png .*1\.png .*2\.png .*; \.\.\.$"):
        folder(str(tmp_path))


def test_no_readable_picture(tmp_path: Path) -> None:
    for name in ("a.png", "b.jpg"):
        (tmp_path / name).write_text("no picture")
    with pytest.raises(UserError, match=r"none of the .*images .* can be read"):
        folder(str(tmp_path))


def test_none_fits_the_channels(tmp_path: Path) -> None:
    """The folder can be looked at, but no file can be read in the asked form."""
    make_folder(tmp_path, {"a.png": 0, "b.png": 0})
    with pytest.raises(UserError, match=r"none of the 2 images .*3 channels, but the data set has 4"):
        folder(str(tmp_path), channels=4)


def test_one_picture_is_no_set(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="contains one image: a data set needs 2 or more"):
        folder(str(make_folder(tmp_path, {"a.png": 0})))


def test_one_picture_is_no_streamed_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a held-out row there is nothing to measure on, however large the rows are."""
    monkeypatch.setattr("unfog.data.folder.IN_MEMORY", 0)
    with pytest.raises(UserError, match="2 or more"):
        folder(str(make_folder(tmp_path, {"a.png": 0})))


def stop(data: Data) -> None:
    for part in data:
        assert isinstance(part, Streamed)
        for pool in part._pool:
            pool.shutdown()


def test_streamed_rows_equal_those_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    for number in range(10):
        save(draw.integers(0, 256, (11, 13, 3), dtype=np.uint8), tmp_path / f"{number % 2}/{number}.png")
    kept = folder(str(tmp_path), size=8, heldout=0.3)
    monkeypatch.setattr("unfog.data.folder.IN_MEMORY", 100)
    streamed = folder(str(tmp_path), size=8, heldout=0.3, workers=1)
    try:
        for one, other in zip(streamed, kept, strict=True):
            assert (len(one), one.shape, one.classes) == (len(other), other.shape, other.classes)
            indices = np.array([*range(len(one)), 0, 0])[::-1].copy()
            (x, labels, *_), (kept_x, kept_labels, *_) = one.take(indices), other.take(indices)
            assert labels is not None
            assert kept_labels is not None
            assert torch.equal(x, kept_x)
            assert torch.equal(labels, kept_labels)
    finally:
        stop(streamed)


def test_a_damaged_streamed_picture_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in brings its own label, is warned of once, and never comes from the other side of the split."""
    monkeypatch.setattr("unfog.data.folder.IN_MEMORY", 0)
    names = [f"{number % 2}/{number:02d}.png" for number in range(20)]
    make_folder(tmp_path, {name: 10 * number for number, name in enumerate(names)})
    files = list_pictures(str(tmp_path)).files
    plan = split(InMemory(torch.zeros(20, 1)), 0.5, files)
    held = set(rows_of(plan.heldout))
    victim = next(row for row in rows_of(plan.train) if (row + 1) % 20 in held)
    cut_off(tmp_path / files[victim])
    data = folder(str(tmp_path), heldout=0.5, workers=1)
    try:
        assert isinstance(data.train, Streamed)
        assert data.train.files == tuple(files[row] for row in rows_of(plan.train))
        with pytest.warns(UserWarning, match=rf"skipped {files[victim]}") as caught:
            x, labels, *_, files_of = everything(data.train)
        assert len(caught) == 1
        everything(data.train)  # a second warning would be an error here
        assert labels is not None
        seen = [value // 10 for value in x[:, 0, 0, 0].tolist()]
        assert [number % 2 for number in seen] == labels.tolist()
        assert files_of == [names[number] for number in seen]
        assert len(seen) == 10
        for row, number in zip(rows_of(plan.train), seen, strict=True):
            if row != victim:
                assert files[row] == names[number]
        leaked = {names[number] for number in seen} & {files[row] for row in held}
        assert not leaked
    finally:
        stop(data)


# ------------------------------------------------------------------------------------ sheets and films


def test_tile_puts_each_picture_in_its_place() -> None:
    x = noise_pictures(5, height=3, width=4)[:, :1]
    sheet = np.asarray(pictures.tile(x, columns=2, gap=1))
    assert sheet.shape == (3 * 4 + 1, 2 * 5 + 1, 3)
    expected = np.full_like(sheet, 96)
    for index in range(5):
        top, left = 1 + index // 2 * 4, 1 + index % 2 * 5
        expected[top : top + 3, left : left + 4] = x[index, 0].numpy()[..., None]
    assert np.array_equal(sheet, expected)


def test_tile_shows_colours_and_grows_pixels() -> None:
    x = torch.tensor([10, 20, 30], dtype=torch.uint8).reshape(1, 3, 1, 1).expand(1, 3, 2, 2)
    sheet = np.asarray(pictures.tile(x, columns=1, enlarge=3, gap=0))
    assert sheet.shape == (6, 6, 3)
    assert (sheet == [10, 20, 30]).all()
    two = np.asarray(pictures.tile(x[:, :2], columns=1, gap=0))  # of two channels the first is shown
    assert (two == 10).all()


@pytest.mark.parametrize(("side", "wanted", "factor"), [(8, 64, 8), (28, 64, 2), (64, 64, 1), (500, 64, 1), (8, 48, 6)])
def test_enlargement(side: int, wanted: int, factor: int) -> None:
    assert pictures.enlargement(side, wanted) == factor


def test_scatter_draws_points_where_they_are() -> None:
    drawn = np.asarray(pictures.scatter(torch.tensor([[1.5, 2.0], [9.0, 0.0]]), side=101, limit=3.0))
    down, right = np.nonzero((drawn != 255).any(axis=2))
    assert len(down) == 4  # one dot of 2 by 2 pixels; the other point is outside the window
    assert abs(right.mean() - 75) <= 1  # 1.5 of ±3 is at three quarters
    assert abs(down.mean() - (100 - 250 / 3)) <= 1  # up is up


def test_rows_of_pictures() -> None:
    left, right = flat("RGB", (255, 0, 0), 4), flat("RGB", (0, 0, 255), 4)
    assert pictures.row_of([left, right]).size == (8, 4)
    below = pictures.row_of([left, right], down=True)
    assert (below.size, below.getpixel((0, 0)), below.getpixel((0, 7))) == ((4, 8), (255, 0, 0), (0, 0, 255))


def test_save_picture_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_text("old")
    picture = flat("RGB", (1, 2, 3))
    pictures.save_picture(picture, path)
    assert os.listdir(tmp_path) == ["x.png"]
    with Image.open(path) as saved:
        assert np.array_equal(np.asarray(saved), np.asarray(picture))


def test_save_film(tmp_path: Path) -> None:
    frames = [flat("RGB", (40 * number, 0, 0)) for number in range(5)]
    pictures.save_film(frames, tmp_path / "x.gif", 80)
    assert os.listdir(tmp_path) == ["x.gif"]
    with Image.open(tmp_path / "x.gif") as film:
        assert film.n_frames == 5
        times, colours = [], []
        for number in range(5):
            film.seek(number)
            times.append(film.info["duration"])
            colours.append(film.convert("RGB").getpixel((0, 0)))
    assert times == [80, 80, 80, 80, 2000]
    assert colours == [(40 * number, 0, 0) for number in range(5)]


def test_a_film_needs_a_frame(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="one frame"):
        pictures.save_film([], tmp_path / "x.gif", 80)


# ----------------------------------------------------------------------------------------- the real sets


def real_data(*names: str) -> str:
    """Return a folder of the real data sets, or skip the test and say which one is missing."""
    root = Path(os.environ.get("UNFOG_DATA") or Path(__file__).parents[3] / "shared" / "data")
    place = root.joinpath(*names)
    if not place.is_dir():
        pytest.skip(f"the data set {'/'.join(names)} is not there: set UNFOG_DATA to the folder that holds it")
    return str(place)


@pytest.mark.parametrize(("name", "read"), [("mnist", mnist), ("fashion", fashion)])
def test_the_real_idx_sets(name: str, read: Callable[[str], Data]) -> None:
    data = read(real_data(name))
    assert (len(data.train), len(data.heldout), data.train.shape) == (60_000, 10_000, (1, 28, 28))
    labels = data.heldout.take(np.arange(10_000)).labels
    assert labels is not None
    assert sorted(set(labels.tolist())) == list(range(10))


def test_the_real_cifar10() -> None:
    data = cifar10(real_data("cifar10", "cifar-10-batches-bin"))
    assert (len(data.train), len(data.heldout), data.train.shape) == (50_000, 10_000, (3, 32, 32))
