"""A run that began with the weights of another one says so."""

import hashlib
import json
from pathlib import Path

import pytest
from rich.console import Console

from tests.conftest import MakeRecipe
from unfog.interop.card import facts
from unfog.runs.origin import NAME, Origin, origin_of
from unfog.runs.run import train

QUIET = Console(quiet=True)


def test_a_run_names_where_its_weights_came_from(digits_run: Path, tiny: MakeRecipe, tmp_path: Path) -> None:
    """Its own origin counts the images of all before it."""
    short = tiny("training.images=64")
    first = train(short, tmp_path / "first", init_from=digits_run, device="cpu", console=QUIET)
    second = train(short, tmp_path / "second", init_from=first.path, device="cpu", console=QUIET)
    before = int(json.loads((digits_run / "metrics.jsonl").read_text().splitlines()[-1])["images"])
    weights = hashlib.sha256((digits_run / "model.safetensors").read_bytes()).hexdigest()
    assert origin_of(digits_run) is None
    assert origin_of(first.path) == Origin(digits_run.name, weights, before)
    found = origin_of(second.path)
    assert found is not None
    assert (found.run, found.images) == ("first", before + 64)
    assert f"which had seen {before + 64:,} images" in " ".join(facts(second)["Cost"])
    assert "started" not in " ".join(facts(first.__class__(digits_run, first.recipe, first.model, "float32"))["Cost"])


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"run": 1, "weights": "a", "images": 2}', '{"run": "a", "weights": "b", "images": -1}']
)
def test_a_damaged_origin_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / NAME).write_text(text)
    assert origin_of(tmp_path) is None
