"""Two sets of pictures are scored without any run: tensors, arrays and folders."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from unfog.cli.main import main
from unfog.data.classic import digits
from unfog.data.pictures import save_picture, tile
from unfog.evaluation.sets import Evaluated, evaluate
from unfog.runtime.errors import UserError


def rows(count: int, held_out: bool = False) -> tuple[Tensor, Tensor]:
    """The first digits of a split, and their labels."""
    data = digits()
    batch = (data.heldout if held_out else data.train).take(np.arange(count))
    assert batch.labels is not None
    return batch.x, batch.labels


def write(pictures: Tensor, folder: Path) -> Path:
    """Write each picture as a PNG."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, picture in enumerate(pictures):
        save_picture(tile(picture[None], 1, gap=0), folder / f"{number:05}.png")
    return folder


@pytest.fixture(scope="module")
def honest() -> Evaluated:
    """Digits next to other digits."""
    return evaluate(rows(300, held_out=True)[0], rows(800)[0])


def test_real_pictures_score_as_the_floor_and_worse_ones_between_it_and_noise(honest: Evaluated) -> None:
    assert set(honest.scores) == {
        "frechet/pixels",
        "kernel/pixels",
        "precision",
        "recall",
        "density",
        "coverage",
    }
    faded = (0.8 * rows(300, held_out=True)[0].float()).round().to(torch.uint8)
    worse = evaluate(faded, rows(800)[0])
    for name in ("frechet/pixels", "precision", "coverage"):
        assert abs(honest.scores[name].position) < 0.1
    better, poorer = honest.scores["frechet/pixels"], worse.scores["frechet/pixels"]
    assert better.position + 0.1 < poorer.position < 1
    assert poorer - better > 0  # measured alike
    assert not honest.copies["pixels"].copies


def test_a_score_says_that_the_real_pictures_were_halved(honest: Evaluated) -> None:
    protocol = str(honest.scores["recall"].protocol)
    assert "against 300 rows of one half of the real data, floor of 300 rows of the other half" in protocol
    assert "300 samples; 800 real pictures" in honest.table()
    assert "no sign of copies" in " ".join(honest.table().split())


def test_copies_are_found() -> None:
    real = rows(800)[0]
    found = evaluate(torch.cat([rows(250, held_out=True)[0], real[:50]]), real)
    assert found.copies["pixels"].copies
    assert "COPIES" in found.table()


def test_labels_of_real_pictures_give_a_classifier() -> None:
    real, labels = rows(800)
    found = evaluate(rows(300, held_out=True)[0].numpy(), real, labels=labels.tolist())
    assert {"frechet/classifier", "frechet/pixels", "entropy"} <= set(found.scores)
    assert found.judge.accuracy is not None
    assert found.judge.accuracy > 0.9
    with pytest.raises(UserError, match="labels must be 800 whole numbers"):
        evaluate(real, real, labels=labels[:799])


def test_folders_score_as_their_tensors_do(
    honest: Evaluated, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples, real = rows(300, held_out=True)[0], rows(800)[0]
    drawn = write(samples, tmp_path / "samples")
    (drawn / "sampling.json").write_text('{"n": 300}')
    save_picture(tile(samples[:9], 3), drawn / "sheet.png")  # is no sample
    write(real, tmp_path / "real")
    command = ["evaluate", str(drawn), "--real", str(tmp_path / "real")]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert honest.table().partition("Measured")[0] in printed
    written = json.loads((drawn / "evaluation.json").read_text())
    assert written.pop("measured")["command"] == "unfog evaluate …/samples --real …/real"
    assert written == {name: part for name, part in json.loads(honest.to_json()).items() if name != "measured"}
    assert written["evaluations"][0]["scores"]["recall"]["value"] == honest.scores["recall"].value
    assert (written["samples"], written["real"]) == (300, 800)
    assert main([*command, "-n", "200"]) == 0
    assert "200 samples; 800 real pictures" in capsys.readouterr().out


def test_sub_folders_of_real_pictures_are_their_classes(tmp_path: Path) -> None:
    real, labels = rows(800)
    for label in range(10):
        write(real[labels == label], tmp_path / "real" / str(label))
    found = evaluate(write(rows(300, held_out=True)[0], tmp_path / "samples"), tmp_path / "real")
    assert "frechet/classifier" in found.scores


def test_what_cannot_be_compared_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x = rows(300)[0]
    with pytest.raises(UserError, match="the samples are 8×8 with 1 channel and the real pictures 8×8 with 3 channels"):
        evaluate(x, x.expand(-1, 3, -1, -1))
    with pytest.raises(UserError, match=r"samples must be uint8 .* or a folder, not torch.float32 \(300, 1, 8, 8\)"):
        evaluate(x.float(), x)
    with pytest.raises(UserError, match="the halves of the real rows have 75 rows, .*: give 200 real rows or more"):
        evaluate(x, x[:150])
    small, large, none = write(x, tmp_path / "small"), tmp_path / "large", tmp_path / "none"
    write(x.repeat(1, 1, 2, 2), large)
    none.mkdir()
    cases = [
        ([small, "--real", large], "the samples are 8×8 with 1 channel and the real pictures 16×16 with 1 channel"),
        ([small, "--real", none], f"{none} holds no pictures"),
        ([none, "--real", small], f"{none} holds no pictures"),
        ([small, "--real", small, "--guidance", "2"], "--guidance is for runs"),
        ([small, "--real", small, "-n", "50"], "50 samples are too few"),
    ]
    for arguments, sentence in cases:
        assert main(["evaluate", *map(str, arguments)]) == 2
        assert sentence in capsys.readouterr().err
    write(x[:1].repeat(1, 1, 2, 2), small / "odd")
    assert main(["evaluate", str(small), "--real", str(small)]) == 2
    assert "bring all pictures to one size" in capsys.readouterr().err


def test_grey_pictures_are_grey_in_any_mode(tmp_path: Path) -> None:
    """`unfog sample` writes RGB files, of grey data too; data sets of grey pictures seldom do."""
    samples, real = rows(300, held_out=True)[0], rows(800)[0]
    drawn, grey = write(samples, tmp_path / "samples"), tmp_path / "real"
    grey.mkdir()
    for number, picture in enumerate(real):
        Image.fromarray(picture[0].numpy(), "L").save(grey / f"{number:04}.png")
    assert evaluate(drawn, grey).scores == evaluate(samples, real).scores
