"""Volumes: rows, files, sheets, folders with all that goes wrong in them; solids and their reader."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from unfog.data import solids
from unfog.data.folder import notes_of
from unfog.data.pictures import UnreadableError
from unfog.data.scans import Header, header, scans
from unfog.data.volumes import volumes
from unfog.recipes.presets import recipe
from unfog.runtime.errors import UserError


def block(seed: int, shape: tuple[int, int, int] = (12, 10, 9)) -> np.ndarray:
    """Return a bright block in a dark volume."""
    volume = np.zeros(shape, np.float32)
    volume[2 + seed % 3 : 7, 2:6, 3:8] = 40 + seed
    return volume


@pytest.mark.parametrize("channels", [1, 2])
def test_a_volume_comes_back(tmp_path: Path, channels: int) -> None:
    x = torch.randint(0, 256, (1, channels, 5, 6, 7), dtype=torch.uint8)
    volumes.write(x, tmp_path / "x.npy")
    assert torch.equal(volumes.read(tmp_path / "x.npy", (channels, 5, 6, 7)), x)
    with pytest.raises(UnreadableError, match="none of volumes of 5×6×8"):
        volumes.read(tmp_path / "x.npy", (channels, 5, 6, 8))


def test_a_sheet_shows_the_middle_slices_and_the_surface() -> None:
    x = torch.zeros(1, 1, 16, 16, 16, dtype=torch.uint8)
    x[0, 0, 8, 2:6, 9:12] = 255
    drawn = np.asarray(volumes.sheet(x, 1))
    first = drawn[1 : 1 + 48, 1 : 1 + 48, 0]
    assert np.array_equal(first[::3, ::3], x[0, 0, 8].numpy())
    pytest.importorskip("skimage")
    assert (drawn[:, 60:] < 250).any()
    assert volumes.sheet(x.expand(40, -1, -1, -1, -1), 8).width < 8 * 60  # many have slices alone


def test_files_of_three_kinds_are_read_and_resized(tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    for place in range(12):
        volume = block(place)
        if place % 3 == 0:
            np.save(tmp_path / f"{place}.npy", volume)
        elif place % 3 == 1:
            np.savez_compressed(tmp_path / f"{place}.npz", volume)
        else:
            name = f"{place}.nii" + (".gz" if place % 2 else "")
            nibabel.save(nibabel.Nifti1Image(volume[..., None], np.eye(4)), tmp_path / name)
    data = scans(str(tmp_path), 8)
    assert data.train.shape == (1, 8, 8, 8)
    assert len(data.train) + len(data.heldout) == 12
    x = data.train.take(np.arange(len(data.train))).x
    assert int(x.max()) == 255
    assert int(x.min()) == 0
    assert any("resized to one shape" in note for note in notes_of(data))
    assert recipe("volumes", str(tmp_path)).data.build().train.shape == (1, 8, 8, 8)


def test_what_is_wrong_is_said_and_the_rest_is_used(tmp_path: Path) -> None:
    for place in range(6):
        np.save(tmp_path / f"{place}.npy", block(place))
    np.save(tmp_path / "nan.npy", np.full((9, 9, 9), np.nan, np.float32))
    np.save(tmp_path / "pickled.npy", np.array([{}]), allow_pickle=True)
    np.save(tmp_path / "flat.npy", np.zeros((9, 9)))
    np.save(tmp_path / "words.npy", np.full((9, 9, 9), "x"))
    (tmp_path / "broken.npy").write_bytes(b"\x93NUMPY")
    (tmp_path / "broken.npz").write_bytes(b"PK")
    (tmp_path / "broken.nii.gz").write_bytes(b"\x1f\x8b and nothing")
    data = scans(str(tmp_path))
    assert len(data.train) + len(data.heldout) == 6
    said = "\n".join(notes_of(data))
    assert "skipped 7 of 13 volumes" in said
    for part in ("pickled objects, which are not read: pickled.npy", "not finite: nan.npy", "flat.npy", "words.npy"):
        assert part in said


def test_a_header_that_claims_much_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with (tmp_path / "huge.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "<f4", "fortran_order": False, "shape": (10_000, 10_000, 10_000)}
        )
    with zipfile.ZipFile(tmp_path / "huge.npz", "w") as archive:
        archive.write(tmp_path / "huge.npy", "arr_0.npy")
    for name in ("huge.npy", "huge.npz"):
        with pytest.raises(UnreadableError, match="too large"):
            header(tmp_path / name)


def test_booleans_and_bytes_keep_their_scale(tmp_path: Path) -> None:
    for place in range(4):
        np.save(tmp_path / f"{place}.npy", block(place, (8, 8, 8)) > 0)
    assert set(scans(str(tmp_path)).train.take(np.arange(2)).x.unique().tolist()) == {0, 255}
    chosen = scans(str(tmp_path), span=(-1.0, 1.0)).train.take(np.arange(2)).x.unique().tolist()
    assert chosen == [128, 255]
    with pytest.raises(UserError, match="data.span"):
        scans(str(tmp_path), span=(1.0, 1.0))
    with pytest.raises(UserError, match="data.size"):
        scans(str(tmp_path), 500)
    assert header(tmp_path / "0.npy") == Header((8, 8, 8), np.dtype(bool))


def test_solids_are_read_exactly() -> None:
    data = solids.solids(300, seed=3)
    batch = data.train.take(np.arange(100))
    assert batch.labels is not None
    assert np.array_equal(solids.kinds(batch.x.numpy()), batch.labels.numpy())
    found = solids.read(batch.x[0].numpy())
    assert found is not None
    again = solids.drawn(found.kind, found.axis, np.array([found.size]), np.array([found.centre]))[0]
    assert np.abs(255 * again - batch.x[0, 0].numpy()).max() < 2


def test_what_is_no_solid_of_the_kinds_is_not_read() -> None:
    places = np.arange(16) + 0.5 - 8
    squashed = np.sqrt((places[:, None, None] / 6) ** 2 + (places[:, None] / 4) ** 2 + (places / 3) ** 2)
    two = np.maximum(
        solids.drawn(0, 0, np.array([3.0]), np.array([[4.0, 4, 4]])),
        solids.drawn(1, 0, np.array([3.0]), np.array([[12.0, 12, 12]])),
    )[0]
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 16)) / 255
    for shares in (np.clip(0.5 - 4 * (squashed - 1), 0, 1), two, noise, np.zeros((16, 16, 16))):
        assert solids.read(np.round(255 * shares).astype(np.uint8)[None]) is None


def test_the_volume_of_a_solid_is_what_the_reader_begins_with() -> None:
    for kind in range(5):
        unit, behind = solids._unit(kind)
        shares = solids.drawn(kind, 1, np.array([5.5]), np.array([[8.0, 8, 8]]))[0]
        assert shares.sum() == pytest.approx(unit * 5.5**3, rel=0.05)
        middle = (shares.sum((0, 2)) * (np.arange(16) + 0.5)).sum() / shares.sum()
        assert middle == pytest.approx(8 + behind * 5.5, abs=0.1)
