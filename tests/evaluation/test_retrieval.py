"""How encoders are measured: whether what belongs together is found first."""

import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import unfog
from unfog.cli.main import main
from unfog.evaluation.retrieval import found_first, means
from unfog.recipes.presets import recipe


def test_what_is_found_first() -> None:
    cosines = torch.tensor([[0.9, 0.1, 0.8], [0.2, 0.3, 0.4], [0.7, 0.0, 0.6]])
    by_picture, by_text = found_first(cosines, ["a", "b", "c"])
    assert by_picture.tolist() == [True, False, False]  # the second is nearest to "c", the third to "a"
    assert by_text.tolist() == [True, True, False]
    same, _ = found_first(cosines, ["a", "b", "a"])
    assert same.tolist() == [True, False, True]  # equal captions count as one


def test_mean_cosines() -> None:
    angles = torch.tensor([0.1, 0.5, 1.3])
    rows = torch.stack([angles.cos(), angles.sin()], 1)
    turned = torch.stack([(angles + 0.2).cos(), (angles + 0.2).sin()], 1)
    matched, others, among = means(rows, turned)
    assert matched == pytest.approx(float(torch.tensor(0.2).cos()))
    gaps = [a + 0.2 - b for i, a in enumerate(angles) for j, b in enumerate(angles) if i != j]
    assert others == pytest.approx(float(torch.stack(gaps).cos().mean()), rel=1e-5)
    assert among == pytest.approx(
        float(torch.stack([a - b for i, a in enumerate(angles) for j, b in enumerate(angles) if i != j]).cos().mean())
    )
    assert F.cosine_similarity(rows, turned).mean() == pytest.approx(matched)


def test_an_encoder_is_evaluated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    small = ("network.width=8", "network.levels=1", "network.dim=8", "conditioning.width=32", "conditioning.layers=0")
    unfog.fit(recipe("encoder").set("data=digits", *small, "images=64", "batch=32", "reports=1"), run)
    assert main(["evaluate", str(run), "-n", "150"]) == 0
    said = capsys.readouterr().out
    assert "its caption, of 100" in said
    assert "not a caption off by a word" in said
    found = json.loads((run / "evaluation.json").read_text())
    assert found["rows"] == 100  # whole groups
    assert 0.1 <= found["chance"] < 0.13  # ten names, nearly even among the hundred
    low, high = found["caption"][1]
    assert low <= found["caption"][0] <= high
    low, high = found["detail"][1]  # of names of digits every other one is off by a word
    assert low <= found["detail"][0] <= high
    assert "machine" in json.dumps(found["measured"])
    assert main(["evaluate", str(run), "--guidance", "2"]) == 2
