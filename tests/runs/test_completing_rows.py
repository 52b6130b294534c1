"""Series, rows of tables, clips and volumes are completed: what is known stays, to the bit, and the rest is drawn."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import unfog
from unfog.data import oscillators
from unfog.recipes.presets import recipe
from unfog.runs.run import Run
from unfog.runtime.errors import UserError


def trained(path: Path, name: str, *settings: str, data: Path | None = None) -> Run:
    """Train for a moment."""
    chosen = recipe(name, None if data is None else str(data))
    return unfog.train(chosen.set("training.batch=8", "training.reports=1", *settings), path)


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Run:
    settings = ("data.count=300", "network.width=8", "network.middle=1", "images=400", "sampling.steps=4")
    return trained(tmp_path_factory.mktemp("series") / "run", "series", *settings)


def test_missing_points_of_a_series_are_drawn_and_the_others_stay(series: Run) -> None:
    row = oscillators.oscillators(100).train.take(np.array([0])).x[0].clone()
    row[0, 10:30] = float("nan")
    drawn = series.complete(row, count=3)
    known = ~row.isnan()
    assert drawn.shape == (3, 1, 64)
    assert torch.equal(drawn[:, known], row[known].expand(3, -1))
    assert bool(drawn.isfinite().all())
    assert float(drawn[:, 0, 10:30].std(0).min()) > 0  # three versions
    assert torch.equal(series.complete(row, count=1), drawn[:1])  # version i is version i


def test_a_forecast_keeps_the_beginning(series: Run) -> None:
    row = torch.randn(1, 64)
    drawn = series.complete(row, after=0.75, count=2)
    assert torch.equal(drawn[:, :, :48], row[:, :48].expand(2, -1, -1))
    assert not torch.equal(drawn[0, :, 48:], drawn[1, :, 48:])
    where = torch.zeros(64, dtype=torch.bool)
    where[48:] = True
    assert torch.equal(series.complete(row, where, count=2), drawn)


@pytest.mark.parametrize(
    ("row", "options", "said"),
    [
        (torch.zeros(1, 64), {}, "nothing of the row is missing"),
        (torch.zeros(1, 60), {}, "trained on series of 64 moments of displacement"),
        (torch.zeros(1, 64), {"after": 1.5}, "`after` must be a share"),
        (torch.full((1, 64), float("nan")), {}, "nothing is known"),
        (torch.zeros(1, 64), {"missing": torch.ones(7, dtype=torch.bool)}, r"what is missing is of \(7,\)"),
    ],
)
def test_what_cannot_be_completed_is_refused(
    series: Run, row: torch.Tensor, options: dict[str, object], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        series.complete(row, **options)  # type: ignore[arg-type]


def test_a_file_with_empty_cells_is_completed_on_the_command_line(series: Run, tmp_path: Path) -> None:
    from unfog.cli.main import main

    lines = ["displacement", *[f"{np.sin(place / 3):.4f}" if place % 5 else "" for place in range(64)]]
    (tmp_path / "gaps.csv").write_text("\n".join(lines).replace("\n\n", '\n""\n') + "\n")
    out = tmp_path / "filled"
    assert (
        main(["edit", "complete", str(series.path), "--file", str(tmp_path / "gaps.csv"), "-n", "2", "--out", str(out)])
        == 0
    )
    back = series.recipe.modality.read(out / "00001.csv", (1, 64))
    assert float(back[0, 0, 1]) == pytest.approx(np.sin(1 / 3), abs=1e-4)
    assert (out / "sheet.png").is_file()
    assert main(["edit", "complete", str(series.path), "--file", str(tmp_path / "no.csv")]) == 2
    assert main(["edit", "complete", str(series.path)]) == 2
    assert main(["edit", "complete", str(series.path), "--file", str(tmp_path / "gaps.csv"), "--more"]) == 2


def test_columns_of_a_table_are_filled_in_from_the_others(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    rows = "".join(f"{a:.4f},{b:.4f}\n" for a, b in draw.normal(4, 2, (300, 2)))
    (tmp_path / "x.csv").write_text("a,b\n" + rows)
    run = trained(tmp_path / "run", "table", "images=2000", "network.width=16", data=tmp_path / "x.csv")
    drawn = run.complete(torch.tensor([3.0, float("nan")]), count=4)
    assert drawn[:, 0].tolist() == [3.0] * 4
    assert len(set(drawn[:, 1].tolist())) == 4
    with pytest.raises(UserError, match="no order in time"):
        run.complete(torch.tensor([3.0, 1.0]), after=0.5)


def test_frames_that_are_known_stay(tmp_path: Path) -> None:
    settings = (
        "data.count=100",
        "data.frames=4",
        "network.width=8",
        "network.middle=1",
        "images=64",
        "sampling.steps=2",
    )
    run = trained(tmp_path / "run", "video", *settings)
    clip = torch.randint(0, 256, (1, 4, 20, 20), dtype=torch.uint8)
    drawn = run.complete(clip, after=0.5, count=2, repeats=1)
    assert torch.equal(drawn[:, :, :2], clip[:, :2].expand(2, -1, -1, -1, -1))
    assert not torch.equal(drawn[0], drawn[1])
    run.recipe.modality.write(clip[None], tmp_path / "clip.gif")
    assert torch.equal(run.complete(tmp_path / "clip.gif", after=0.5, count=2, repeats=1), drawn)


def test_sounds_are_not_completed(tmp_path: Path) -> None:
    settings = (
        "data.count=100",
        "network.width=8",
        "network.middle=1",
        "images=16",
        "sampling.steps=2",
        "codec.rounds=1",
    )
    run = trained(tmp_path / "run", "audio", *settings)
    with pytest.raises(UserError, match="spectrograms of sounds, whose places cannot be kept"):
        run.complete(torch.zeros(1, 6016, dtype=torch.int16), after=0.5)
    sampler = replace(run.sampler(), seed=3)
    assert sampler(2, None).shape == (2, 1, 6016)
