"""The check of a card, rehearsed on the CPU: what it writes, what it keeps, and that it sees a fault."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import gpu_check
import numpy as np
import pytest
import rig
import torch

from unfog.diffusion.targets import Target


@pytest.fixture
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> gpu_check.Check:
    """Settings of a rehearsal of seconds, on a tiny part of CIFAR-10 that is noise."""
    monkeypatch.setattr("unfog.training.trainer.COMPILED", {"backend": "aot_eager", "dynamic": False})
    monkeypatch.setattr(gpu_check, "NETWORKS", {"minimal": ("network.width=8",)})
    # the two that it calls have tests of their own
    monkeypatch.setattr("rig.ceiling", lambda *given, **options: 1e12)
    monkeypatch.setattr("training.twin_rows", lambda *given: rig.Table("Twins", "", [{"images/s": 1.0}]))
    data, draw = tmp_path / "data", np.random.default_rng(0)
    data.mkdir()
    for name in ("data_batch_1.bin", "test_batch.bin"):
        rows = draw.integers(0, 256, (300, 3073), dtype=np.uint8)
        rows[:, 0] %= 10
        (data / name).write_bytes(rows.tobytes())
    return gpu_check.Check(torch.device("cpu"), data, tmp_path / "run", 0.05, 100, 1, 0.01)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch's tracer looks there
@pytest.mark.filterwarnings("ignore:.*samples of a report were one colour")
def test_a_call_does_all_parts_and_the_next_one_those_that_are_missing(
    quick: gpu_check.Check, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "check.json"

    def call() -> int:
        return gpu_check.main(out, quick.data, "cpu", quick.minutes, quick.samples, quick.rounds, quick.seconds)

    def interrupted(check: gpu_check.Check) -> gpu_check.Part:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setitem(gpu_check.PARTS, "training", interrupted)
        with pytest.raises(KeyboardInterrupt):
            call()
    first = json.loads(out.read_text())
    assert list(first["parts"]) == ["correctness", "throughput", "memory", "compilation"]
    assert call() == 0
    said = capsys.readouterr().err
    assert all(f"{name}: kept" in said for name in first["parts"])
    found = json.loads(out.read_text())
    assert {name: part for name, part in found["parts"].items() if name != "training"} == first["parts"]
    assert {"date", "torch", "unfog", "place"} <= found["machine"].keys()
    assert all(row["apart"] == 0 for row in found["parts"]["correctness"]["rows"])
    assert len(found["parts"]["correctness"]["rows"]) > 15
    assert all(row["peak, MiB"] > 0 for row in found["parts"]["memory"]["rows"])
    assert found["parts"]["compilation"]["losses apart"] < 1e-3
    scores = found["parts"]["training"]["scores"]
    distance = next(one for name, one in scores.items() if name.startswith("frechet/"))
    assert distance["value"] > distance["floor"]
    assert found["parts"]["training"]["rows"] == 300


def test_a_card_that_computes_something_else_fails_and_is_checked_again(
    quick: gpu_check.Check, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every second sample of the comparison is drawn by a target that is off by a hundredth."""
    solve, calls = Target.solve, []

    def off(target: Target, *given: object) -> object:
        calls.append(target)
        found = solve(target, *given)  # type: ignore[arg-type]
        return found._replace(x0=found.x0 * (1 + 0.01 * (len(calls) > 6)))

    monkeypatch.setattr(Target, "solve", off)
    rows = gpu_check._drawn(torch.device("cpu"))
    assert not all(row["passed"] for row in rows)
    out = tmp_path / "check.json"
    monkeypatch.setattr(gpu_check, "PARTS", {"correctness": lambda check: {"passed": False}})
    assert [gpu_check.main(out, device="cpu") for _ in range(2)] == [1, 1]
    monkeypatch.setattr(gpu_check, "PARTS", {"correctness": lambda check: {"passed": True}})
    assert gpu_check.main(out, device="cpu") == 0


def test_what_cannot_be_done_is_skipped_with_a_word(quick: gpu_check.Check, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    for name in ("sampling", "training", "twins"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert "unfog[bench]" in str(gpu_check.throughput(quick)["skipped"])
    assert "--data" in str(gpu_check.training_on_cifar10(replace(quick, data=None))["skipped"])
