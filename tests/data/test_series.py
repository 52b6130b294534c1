"""Series and tables: rows, files, codecs, windows, and all that goes wrong in them; oscillations and their reader."""

from pathlib import Path

import numpy as np
import pytest
import torch

from unfog.data import oscillators
from unfog.data.columns import columns, look
from unfog.data.folder import notes_of
from unfog.data.pictures import UnreadableError
from unfog.data.series import Series, Standardised, Table, cells_of
from unfog.recipes.presets import recipe
from unfog.runtime.errors import UserError


def write(path: Path, head: str, *rows: str) -> Path:
    path.write_text("\n".join([head, *rows]) + "\n", encoding="utf-8")
    return path


def drift(count: int, seed: int = 0) -> list[str]:
    """Return lines of two columns."""
    draw = np.random.default_rng(seed)
    return [f"{7 + np.sin(place / 5):.4f},{draw.gamma(2.0):.4f}" for place in range(count)]


def test_a_series_comes_back_with_its_columns(tmp_path: Path) -> None:
    modality, x = Series(("wind", "warm, dry")), torch.randn(1, 2, 9)
    x[0, 1, 4] = float("nan")
    modality.write(x, tmp_path / "x.csv")
    assert (tmp_path / "x.csv").read_text().splitlines()[0] == 'wind,"warm, dry"'
    assert "nan" not in (tmp_path / "x.csv").read_text()
    back = modality.read(tmp_path / "x.csv", (2, 9))
    assert torch.allclose(back, x, rtol=1e-6, equal_nan=True)
    turned = Series(("warm, dry", "wind")).read(tmp_path / "x.csv", (2, 9))  # columns are known by their names
    assert torch.allclose(turned, x.flip(1), rtol=1e-6, equal_nan=True)
    with pytest.raises(UnreadableError, match="lacks the column 'rain'"):
        Series(("wind", "rain")).read(tmp_path / "x.csv", (2, 9))
    with pytest.raises(UnreadableError, match="9 moments where the model has 8"):
        modality.read(tmp_path / "x.csv", (2, 8))


def test_rows_of_a_table_come_back(tmp_path: Path) -> None:
    x = torch.randn(5, 3)
    Table(("a", "b", "c")).write(x, tmp_path / "x.csv")
    assert torch.allclose(Table(("a", "b", "c")).read(tmp_path / "x.csv", (3,)), x, rtol=1e-6)
    assert Table(("a", "b")).describe((2,)) == "rows of a, b"


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_cells_are_separated_by_any_of_three_signs_and_may_be_missing(tmp_path: Path, mark: str) -> None:
    path = write(tmp_path / "x.csv", mark.join(["a", "b"]), mark.join(["1", "-2e3"]), mark.join(["", "NA"]))
    names, rows = cells_of(path)
    assert names == ("a", "b")
    assert rows[0] == [1, -2000]
    assert np.isnan(rows[1]).all()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "empty"),
        ("a,b\n1,2\n3\n", "row 3 has 1 cells where there are 2 columns"),
        ("a,a\n1,2\n", "two of its columns have one name"),
        ("a,b\n1,high\n", "row 2, column 'b': 'high' is no number"),
        ("a,b\n1,inf\n", "'inf' is no number"),
    ],
)
def test_damaged_cells_are_named(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(UnreadableError, match=said):
        cells_of(tmp_path / "x.csv")


def test_another_encoding_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes("a,b\n1,2\n3,ä\n".encode("latin-1"))
    with pytest.raises(UserError, match="line 3 is not UTF-8"):
        columns(str(tmp_path / "x.csv"))


def test_columns_come_to_one_scale_and_back() -> None:
    codec = Standardised((5.0, -1.0), (2.0, 0.5))
    x = torch.tensor([[[5.0, 7.0], [-1.0, 0.0]]])
    assert torch.equal(codec.encode(x), torch.tensor([[[0.0, 1.0], [0.0, 2.0]]]))
    assert torch.equal(codec.decode(codec.encode(x)), x)
    assert torch.equal(codec.encode(x[..., 0]), torch.zeros(1, 2))  # rows of a table
    with pytest.raises(UserError, match="deviations above 0"):
        Standardised((0.0,), (0.0,))


def test_windows_of_one_series_stand_in_one_part_only(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", "date,a,b", *[f"day {place},{row}" for place, row in enumerate(drift(900))])
    data = columns(str(path))
    train, held = (part.take(np.arange(len(part))).x for part in data)
    assert train.shape[1:] == held.shape[1:] == (2, 64)
    assert not {row.numpy().tobytes() for row in train[:, 1].unfold(1, 8, 1).reshape(-1, 8)} & {
        row.numpy().tobytes() for row in held[:, 1].unfold(1, 8, 1).reshape(-1, 8)
    }
    assert any("columns that hold no numbers: date" in note for note in notes_of(data))


def test_windows_with_missing_numbers_are_skipped_and_counted(tmp_path: Path) -> None:
    lines = drift(900)
    lines[300] = "7.1,"
    lines[500] = "strange,3"
    data = columns(str(write(tmp_path / "x.csv", "a,b", *lines)))
    said = "\n".join(notes_of(data))
    assert "with missing numbers, and skipped: 4 windows of" in said
    assert "1 cell that hold no number count as missing" in said
    assert all(bool(part.take(np.arange(len(part))).x.isfinite().all()) for part in data)


def test_the_files_of_a_folder_are_series_and_classes_are_folders(tmp_path: Path) -> None:
    for place in range(20):
        folder = tmp_path / ("calm", "windy")[place % 2]
        folder.mkdir(exist_ok=True)
        write(folder / f"{place}.csv", "a,b", *drift(50, place))
    write(tmp_path / "calm" / "short.csv", "a,b", *drift(10))
    write(tmp_path / "calm" / "other.csv", "a,c", *drift(50))
    (tmp_path / "windy" / "broken.csv").write_text("a,b\n1\n")
    np.save(tmp_path / "windy" / "pickled.npy", np.array([{}]), allow_pickle=True)
    data = columns(str(tmp_path))
    assert data.train.classes == ("calm", "windy")
    assert data.train.shape == (2, 48)
    assert len(data.train) + len(data.heldout) == 20
    said = "\n".join(notes_of(data))
    for part in ("short.csv", "10 moments, fewer than 48", "lacks the column 'b': calm/other.csv", "broken.csv"):
        assert part in said
    assert "pickled.npy" in said


def test_windows_of_a_file_with_missing_numbers_are_skipped(tmp_path: Path) -> None:
    for place in range(6):
        lines = drift(96, place)
        if place == 2:
            lines[70] = ",1"
        write(tmp_path / f"{place}.csv", "a,b", *lines)
    data = columns(str(tmp_path), length=48)
    assert len(data.train) + len(data.heldout) == 11
    assert all(bool(part.take(np.arange(len(part))).x.isfinite().all()) for part in data)
    assert any("whose windows are skipped: 1 file (2.csv)" in note for note in notes_of(data))


def test_the_codec_takes_its_numbers_from_the_training_rows(tmp_path: Path) -> None:
    path = str(write(tmp_path / "x.csv", "a,b", *[f"{40 + place % 9},7" for place in range(900)]))
    data = columns(path)
    codec = Standardised().fitted(data, Series(("a", "b")))
    z = codec.encode(data.train.take(np.arange(len(data.train))).x)
    assert float(z[:, 0].mean()) == pytest.approx(0, abs=1e-3)
    assert float(z[:, 0].std()) == pytest.approx(1, abs=1e-3)
    assert torch.equal(z[:, 1], torch.zeros_like(z[:, 1]))  # a column that never changes
    assert codec.fitted(data, Series()) is codec


def test_chosen_columns_are_used_in_their_order_and_missing_ones_are_named(tmp_path: Path) -> None:
    path = str(write(tmp_path / "x.csv", "a,b", *drift(400)))
    whole, turned = columns(path), columns(path, ["b", "a"])
    assert torch.equal(whole.train.take(np.arange(3)).x.flip(1), turned.train.take(np.arange(3)).x)
    with pytest.raises(UserError, match="lacks the column 'rain'; it has a, b"):
        columns(path, ["rain"])


def test_equal_rows_of_a_table_are_on_one_side(tmp_path: Path) -> None:
    lines = drift(60)
    data = columns(str(write(tmp_path / "x.csv", "a,b", *lines, *lines)), rows="table")
    train, held = ({row.numpy().tobytes() for row in part.take(np.arange(len(part))).x} for part in data)
    assert not train & held
    assert data.train.shape == (2,)


def test_parquet_and_arrays_are_read_alike(tmp_path: Path) -> None:
    pq, pa = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    values = np.random.default_rng(0).normal(3, 2, (500, 2)).astype(np.float32)
    np.save(tmp_path / "x.npy", values)
    table = pa.table({"a": values[:, 0], "b": values[:, 1], "name": ["x"] * 500})
    pq.write_table(table, tmp_path / "x.parquet")
    rows = [columns(str(tmp_path / name)).train.take(np.arange(4)).x for name in ("x.npy", "x.parquet")]
    assert torch.equal(*rows)
    (tmp_path / "y.parquet").write_bytes(b"PAR1 and nothing")
    with pytest.raises(UserError, match=r"y\.parquet cannot be read"):
        columns(str(tmp_path / "y.parquet"))


@pytest.mark.parametrize(
    ("options", "said"),
    [({"length": 7}, "multiple of 4"), ({"heldout": 0.0}, "data.heldout"), ({"rows": "table"}, "100 or more make")],
)
def test_options_that_do_not_fit_are_refused(tmp_path: Path, options: dict[str, object], said: str) -> None:
    path = str(write(tmp_path / "x.csv", "a,b", *drift(80)))
    with pytest.raises(UserError, match=said):
        columns(path, **options)  # type: ignore[arg-type]


def test_too_short_a_series_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give a longer series"):
        columns(str(write(tmp_path / "x.csv", "a,b", *drift(70))), length=64)
    with pytest.raises(UserError, match="is none of"):
        columns(str(write(tmp_path / "x.txt", "a,b", *drift(70))))
    with pytest.raises(UserError, match="does not exist"):
        columns(str(tmp_path / "no.csv"))


def test_the_recipes_fit_the_data(tmp_path: Path) -> None:
    path = str(write(tmp_path / "x.csv", "date,a,b", *[f"d,{row}" for row in drift(900)]))
    found = recipe("series", path)
    assert found.modality == Series(("a", "b"))
    assert look(path).length == 64
    assert recipe("table", path).modality == Table(("a", "b"))
    with pytest.raises(UserError, match="needs a CSV"):
        recipe("table")


def test_oscillations_are_read_exactly() -> None:
    data = oscillators.oscillators(2000, seed=5)
    x = data.train.take(np.arange(1000)).x[:, 0].double().numpy()
    found = oscillators.read(x)
    assert ((x - oscillators.curve(found)) ** 2).mean() ** 0.5 == pytest.approx(0.05, rel=0.1)
    for values in oscillators.cumulative(found):
        ordered = np.sort(values)
        assert np.abs(ordered - (np.arange(1000) + 0.5) / 1000).max() < 0.06  # 0.06: once in a thousand for a seed


def test_another_distribution_is_seen() -> None:
    parts = oscillators.Oscillation(np.full(50, 4.0), np.full(50, 1.0), np.linspace(0, 3, 50))
    found = oscillators.read(oscillators.curve(parts))
    assert np.allclose(found.cycles, 4, atol=1e-3)
    assert np.allclose(found.amplitude, 1, atol=1e-3)
    assert np.allclose(found.phase % (2 * np.pi), parts.phase, atol=1e-2)
    with pytest.raises(UserError, match="data.count"):
        oscillators.oscillators(3)
