"""`unfog compare`: equal models differ by exactly nothing, worse ones are told apart, and all is sampled alike."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from unfog.cli.main import main
from unfog.data import modality
from unfog.evaluation.compare import Comparison, Model, check_alike, compare, load_alike
from unfog.recipes.recipe import Recipe
from unfog.runs.run import load
from unfog.runtime.errors import UserError

COUNT = 130
"""The least that the judge of the digits compares."""


def twin(path: Path, folder: Path, noise: float = 0.0) -> Path:
    """A copy of a run whose weights are disturbed."""
    folder.mkdir(parents=True)
    shutil.copy(path / "recipe.json", folder)
    weights = load_file(path / "model.safetensors")
    draw = torch.Generator().manual_seed(0)
    for name, tensor in weights.items():
        weights[name] = tensor + noise * torch.randn(tensor.shape, generator=draw)
    save_file(weights, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def models(
    tiny: Callable[..., Recipe], train_into: Callable[[Recipe, str], Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """A run, a copy of it that asks for other sampling, a worse one, and a folder with the first and the last."""
    folder = tmp_path_factory.mktemp("models")
    good = train_into(tiny("training.images=2048"), "good")
    found = {
        "good": twin(good, folder / "good"),
        "twin": twin(good, folder / "twin"),
        "worse": twin(good, folder / "worse", 0.1),
    }
    recipe = load(found["twin"], "cpu").recipe.set(
        "solver=heun", "grid=karras", "sampling.steps=9", "sampling.batch=32"
    )
    (found["twin"] / "recipe.json").write_text(recipe.to_json())
    twin(good, folder / "seeds" / "0")
    twin(good, folder / "seeds" / "1", 0.1)
    return {**found, "seeds": folder / "seeds"}


@pytest.fixture(scope="module")
def found(models: dict[str, Path]) -> Comparison:
    """All four beside the first."""
    return compare(load_alike(list(models.values()), "cpu"), list(models), COUNT)


def test_a_run_differs_from_its_copy_by_nothing(found: Comparison) -> None:
    """The same weights, noises, labels and settings, whatever the copy's recipe says of sampling."""
    good, copy = found.models[:2]
    assert copy.scores == good.scores
    assert copy.nfe == good.nfe
    for metric in (found.fidelity, "adherence"):
        gap = copy.differences[metric]
        assert gap.interval is not None
        assert (gap.value, gap.interval.low) == (0, -gap.interval.high)
        assert not gap.told_apart
    assert all(gap.value == 0 for gap in copy.differences.values())


def test_a_worse_model_is_told_apart_and_ranked_last(found: Comparison) -> None:
    worse = found.models[2].differences[found.fidelity]
    assert worse.interval is not None
    assert 0 < worse.interval.low < worse.value
    assert worse.told_apart
    assert worse.value == found.models[2].value(found.fidelity) - found.models[0].value(found.fidelity)
    assert [model.name for model in found.ranked().models][-1] == "worse"
    said = found.verdict()
    assert "worse is worse in frechet/classifier and adherence than good. Worse, without an interval to tell" in said
    assert re.search(r"frechet/pixels \([\d.]+ to [\d.]+\)", said)  # else nobody would see it
    assert said.count("without an interval") <= 2  # not of the copy


def test_what_is_better_than_real_data_is_not_called_worse(found: Comparison) -> None:
    """A distance that rises from below its floor, but not beyond it, says nothing."""
    good, worse = found.models[0], found.models[2]
    name = "frechet/pixels"
    floor = good.scores[name][0].floor

    def at(model: Model, value: float) -> Model:
        return replace(
            model, scores={**model.scores, name: [replace(model.scores[name][0], value=value, low=None, high=None)]}
        )

    def said(value: float) -> bool:
        models = [at(good, 0.5 * floor), at(worse, value)]
        return name in replace(found, models=models).verdict().split("Worse, without")[-1]

    assert not said(0.9 * floor)
    assert said(2 * floor)


def test_the_reference_can_be_the_best(models: dict[str, Path]) -> None:
    loaded = load_alike([models["worse"], models["good"]], "cpu")
    best = compare(loaded, ["worse", "good"], COUNT, steps=2, guidance=1.0, reference=None)
    assert best.reference == "good"
    assert not best.models[1].differences
    assert best.models[0].nfe == 2  # two steps without guidance
    gap = best.models[0].differences[best.fidelity]
    assert gap.interval is not None
    assert gap.interval.low > 0


def test_several_seeds_are_one_model(found: Comparison, models: dict[str, Path]) -> None:
    """Its runs are sampled from noises of their own, the first from those of all others."""
    seeds, good = found.models[3], found.models[0]
    assert seeds.runs == [str(models["seeds"] / name) for name in ("0", "1")]
    each = seeds.scores[found.fidelity]
    assert each[0] == good.scores[found.fidelity][0]
    assert each[1].value != found.models[2].scores[found.fidelity][0].value  # the same weights, of other noises
    assert seeds.value(found.fidelity) == pytest.approx((each[0].value + each[1].value) / 2)
    spread = abs(each[1].value - each[0].value) / np.sqrt(2)
    assert seeds.line(found.fidelity).endswith(f"± {spread:.3g} over 2 runs")
    gap = seeds.differences[found.fidelity]
    assert gap.value == pytest.approx(seeds.value(found.fidelity) - good.value(found.fidelity))
    assert gap.told_apart


def test_the_table_says_what_can_be_told(found: Comparison) -> None:
    lines = found.table().split("\n\n")[0].splitlines()
    assert lines[0].startswith(f"{found.fidelity} (n = {COUNT})")
    assert "over 2 runs" in lines[4]
    assert lines[5].split()[:2] == ["real", "data"]
    assert "of the way to noise" in lines[3] or "like noise" in lines[3]
    assert lines[7] == "difference to good"
    assert [line.split()[0] for line in lines[8:]] == ["twin", "worse", "seeds"]
    assert [line.endswith("not told apart") for line in lines[8:10]] == [True, False]
    text = found.table()
    assert "intervals over noises, not over trainings" in " ".join(text.split())
    last = " ".join(text.split("\n\n")[-1].split())
    assert last.startswith("twin is not told apart from good.")
    assert re.search(r" is worse in frechet/\S+( and adherence)? than good\.", last)
    assert "solver dpmpp-2m, grid uniform, 4 steps" in text
    processors = r"\((R|TM)\)"  # as their makers call them
    assert not re.findall(r"\b[A-Z][A-Za-z0-9]+\(", re.sub(processors, "", text))  # no names of Python classes
    assert max(map(len, text.splitlines())) <= 100


def test_other_protocols_are_refused(found: Comparison, models: dict[str, Path]) -> None:
    other = compare(load_alike([models["good"]], "cpu"), ["good"], COUNT + 1)
    with pytest.raises(UserError, match="cannot be compared"):
        _ = other.models[0].scores[found.fidelity][0] - found.models[0].scores[found.fidelity][0]


def test_the_verb_writes_a_sheet_and_numbers_beside_the_runs(
    models: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", str(models["good"]), str(models["twin"]), "-n", str(COUNT), "--device", "cpu"]) == 0
    folder = models["good"].parent / "compare"
    out, said = capsys.readouterr()
    assert str(folder / "sheet.png") in out
    assert "not told apart" in out
    assert re.match(rf"{COUNT} samples of each of 2 runs will take up to about [\d.]+ (s|minutes)\n", said)
    plain = json.loads((folder / "comparison.json").read_text())
    assert [model["name"] for model in plain["models"]] == [str(models[name]) for name in ("good", "twin")]
    assert plain["models"][1]["differences"][plain["fidelity"]] == {"value": 0, "interval": [0, 0]}
    with Image.open(folder / "sheet.png") as picture:
        pixels = np.asarray(picture)
    side = modality.images.cells(torch.zeros(1, 1, 8, 8, dtype=torch.uint8))[0][0].height
    pairs = [pixels[top : top + 2 * side] for top in range(len(pixels) - 2 * side + 1)]
    equal = [(pair[:side] == pair[side:]).all(0) & (pair.std(0) > 10) for pair in pairs]
    assert max(columns.sum() for columns in equal) >= 4 * side  # a sample of each model, one above the other


def test_models_of_other_data_are_refused(models: dict[str, Path], points_run: Path) -> None:
    with pytest.raises(UserError, match="cannot be compared: their data differ"):
        load_alike([models["good"], points_run], "cpu")


def test_models_of_other_sizes_are_refused_for_that(models: dict[str, Path]) -> None:
    small = load(models["good"], "cpu")
    large = replace(small, path=Path("large"), recipe=replace(small.recipe, shape=(1, 16, 16)))
    with pytest.raises(UserError, match=r"good has rows of 1×8×8 and large of 1×16×16, which have no score in common"):
        check_alike(small, large)


def test_what_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(tmp_path), str(tmp_path / "b")]) == 2
    assert "is no run folder and holds none" in capsys.readouterr().err


def test_unconditional_models_have_no_adherence(unconditional_run: Path) -> None:
    run = load(unconditional_run, "cpu")
    one = compare([[run], [run]], ["a", "b"], COUNT, steps=2)
    assert "adherence" not in one.models[0].scores
    assert one.models[1].differences[one.fidelity].interval == (0, 0)
