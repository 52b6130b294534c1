"""Ways to compute: measured when a training begins, written into the run, and never measured again."""

import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import get_args

import pytest
import torch

from tests.conftest import MakeRecipe
from unfog.networks import modulated
from unfog.networks.attention import Form
from unfog.recipes.build import build_data
from unfog.recipes.choices import Choices, attend_by, attentions, norms
from unfog.recipes.recipe import Recipe
from unfog.runs.reading import read_recipe
from unfog.runs.run import load, train
from unfog.runtime.errors import UserError
from unfog.training import choices as module
from unfog.training.trainer import Trainer

compiled = pytest.mark.skipif(not modulated.KERNELS.available(build=True), reason="needs a C++ compiler")
Ratios = dict[str, float | None]
FORMS = {"bfloat16": "fused-attention", "float32": "plain-attention"}
"""The form of attention that the rule does not take."""


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Ratios:
    """What is measured, by way, on a machine with bf16; with a cache of its own."""
    found: Ratios = {"bfloat16": 1.2, "fused-norm": 1.1, "attention": 1.0, "flash": 0.9}
    cache = tmp_path / "cache"

    def ratio(step: Callable[[], float], compute: Callable[[bool], None]) -> float | None:
        compute(True)
        assert step() > 0
        compute(False)
        names = compute.__code__.co_names
        if "attend_by" in names:
            return found["flash" if "flash" in (compute.__defaults__ or ()) else "attention"]
        return found["fused-norm" if "fuse" in names else "bfloat16"]

    monkeypatch.delenv("UNFOG_CHOICES")
    monkeypatch.setattr(module, "cache_folder", lambda: cache)
    monkeypatch.setattr(module, "has_bfloat16", lambda: True)
    monkeypatch.setattr(module, "_ratio", ratio)
    monkeypatch.setattr(module, "disturbed", lambda: False)
    return found


def _trainer(recipe: Recipe, folder: Path) -> Trainer:
    recipe, data = build_data(recipe)
    return Trainer(recipe, data, folder, torch.device("cpu"))


@compiled
@pytest.mark.parametrize(
    ("bfloat16", "fused", "chosen"),
    [
        (1.2, 1.1, "bfloat16 fused-norm"),
        (1.2, 1.02, "bfloat16"),
        (1.02, 1.1, "float32 fused-norm"),
        (0.5, 0.9, "float32"),
    ],
)
def test_what_is_faster_is_chosen(
    measured: Ratios, tiny: MakeRecipe, tmp_path: Path, bfloat16: float, fused: float, chosen: str
) -> None:
    """By more than what noise could be."""
    measured |= {"bfloat16": bfloat16, "fused-norm": fused}
    trainer = _trainer(tiny(), tmp_path)
    before = [parameter.clone() for parameter in trainer.model.parameters()]
    own = {} if not attentions(trainer.model) else {FORMS[chosen.split()[0]]: 1.0, "flash-attention": 0.9}
    assert module.choose(trainer) == {"bfloat16": bfloat16, "fused-norm": fused, **own}
    assert trainer.recipe.training.choices == trainer.settings.choices == chosen
    assert trainer.precision == chosen.split()[0]
    assert {part.fused for part in norms(trainer.model)} == {"fused-norm" in chosen}
    assert {part.fused for part in norms(trainer.averaged.model)} == {"fused-norm" in chosen}
    assert all(torch.equal(one, other) for one, other in zip(before, trainer.model.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in trainer.model.parameters())


@pytest.mark.parametrize("network", ["unet", "dit", "compact"])
@pytest.mark.parametrize(("bfloat16", "form"), [(1.2, "fused"), (0.9, "plain")])
def test_another_attention_is_chosen_where_it_is_faster(
    measured: Ratios, tiny: MakeRecipe, tmp_path: Path, network: str, bfloat16: float, form: str
) -> None:
    """In every network that has some, and its samples agree up to rounding."""
    measured |= {"bfloat16": bfloat16, "fused-norm": 0.9, "attention": 1.5}
    own = {
        "unet": ["network.widths=[32,32]", "network.attention=[true,true]"],
        "dit": ["network.width=64", "network.depth=2"],
        "compact": ["network.middle=1"],
    }
    trainer = _trainer(tiny(f"network={network}", *own[network]), tmp_path)
    assert attentions(trainer.model)
    ratios = module.choose(trainer)
    assert ratios[f"{form}-attention"] == 1.5
    assert trainer.settings.choices.split()[1:] == [f"{form}-attention"]
    for model in (trainer.model, trainer.averaged.model):
        assert {part.form for part in attentions(model)} == {form}
    draw, _ = trainer.prepare(trainer.draws(0))
    trainer.precision = "float32"
    losses = []
    for one in get_args(Form):
        attend_by([trainer.model], one)
        losses.append(trainer.losses(draw)["loss"])
    assert all(torch.allclose(losses[0], other, rtol=1e-4, atol=1e-5) for other in losses[1:])


@compiled
@pytest.mark.parametrize(("other", "flash", "chosen"), [(1.2, 1.3, "flash"), (1.4, 1.3, "fused"), (1.0, 1.02, "rule")])
def test_the_fastest_attention_is_chosen(
    measured: Ratios, tiny: MakeRecipe, tmp_path: Path, other: float, flash: float, chosen: str
) -> None:
    """Of three, for heads for which there is a kernel; wider heads are not timed with it."""
    measured |= {"attention": other, "flash": flash}
    unet = ("network=unet", "network.widths=[32,32]", "network.attention=[true,true]")
    trainer = _trainer(tiny(*unet, "network.head=8"), tmp_path)
    assert module.choose(trainer)["flash-attention"] == flash
    assert {part.form for part in attentions(trainer.averaged.model)} == {chosen}
    assert "flash-attention" not in module.choose(_trainer(tiny(*unet, "network.head=32"), tmp_path))


@compiled
def test_a_choice_is_kept_for_the_same_training_on_this_machine(
    measured: Ratios, tiny: MakeRecipe, tmp_path: Path
) -> None:
    """So that the same command gives the same bits; a damaged cache is measured anew."""
    module.choose(_trainer(tiny(), tmp_path))
    measured |= {"bfloat16": 0.5, "fused-norm": 0.5}
    again = _trainer(tiny(), tmp_path)
    assert {"bfloat16": 1.2, "fused-norm": 1.1}.items() <= module.choose(again).items()
    assert again.settings.choices == "bfloat16 fused-norm"
    other = _trainer(tiny("network.width=16"), tmp_path)
    module.choose(other)
    assert other.settings.choices == "float32"
    for path in (tmp_path / "cache" / "choices").glob("*.json"):
        path.write_text('{"choices": "quantum", "ratios": {}}')
    module.choose(again := _trainer(tiny(), tmp_path))
    assert again.settings.choices == "float32"


@pytest.mark.parametrize(("seconds", "times"), [(59.0, False), (61.0, True)])
def test_a_short_budget_is_not_spent_on_timing(
    measured: Ratios, tiny: MakeRecipe, tmp_path: Path, seconds: float, times: bool
) -> None:
    """It takes the rule, even where the cache keeps another choice, so that the bits do not depend on that."""
    measured |= {"bfloat16": 1.2, "fused-norm": 0.9}
    module.choose(_trainer(tiny(), tmp_path))
    trainer = _trainer(tiny(f"training.seconds={seconds}"), tmp_path)
    assert bool(module.choose(trainer)) == times
    assert trainer.settings.choices == ("bfloat16" if times else "reference")


def test_disturbed_timings_decide_nothing(measured: Ratios, tiny: MakeRecipe, tmp_path: Path) -> None:
    measured |= {"bfloat16": None, "fused-norm": None, "attention": None, "flash": None}
    trainer = _trainer(tiny(), tmp_path)
    with pytest.warns(UserWarning, match="other programs disturbed the timing by which the fastest kernels are chosen"):
        assert module.choose(trainer) == {}
    assert trainer.settings.choices == "reference"
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("when", [1, 2])
def test_a_shared_machine_decides_nothing(
    measured: Ratios, tiny: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: int
) -> None:
    """Before or after the timing: beside other programs float32 was five times as fast as bfloat16, and was kept."""
    measured |= {"bfloat16": 5.0}
    looks = iter([when == 1, when == 2])
    monkeypatch.setattr(module, "disturbed", lambda: next(looks))
    trainer = _trainer(tiny(), tmp_path)
    with pytest.warns(UserWarning, match="other programs disturbed the timing by which the fastest kernels are chosen"):
        assert module.choose(trainer) == {}
    assert (trainer.settings.choices, trainer.precision) == ("reference", "float32")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(("factors", "ratio"), [((1, 1, 1, 1, 3), 2.0), ((1, 3, 3), None)])
def test_the_least_time_counts_and_a_restless_machine_is_noticed(factors: tuple[int, ...], ratio: float | None) -> None:
    """Steps of 10 and 5 ms, some of them three times as long."""
    restless, ways = cycle(factors), [False]

    def compute(new: bool) -> None:
        ways[0] = new

    found = module._ratio(lambda: (0.005 if ways[0] else 0.01) * next(restless), compute)
    assert found == (None if ratio is None else pytest.approx(ratio))
    assert not ways[0]


@compiled
def test_a_run_computes_as_it_began(
    measured: Ratios, tiny: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sampling and training on read what was chosen and time nothing, and the same command gives the same bits."""
    run = train(tiny(), out=tmp_path / "run")
    monkeypatch.setattr(module, "_measured", None)  # calling it is an error
    assert run.recipe.training.choices == "bfloat16 fused-norm"
    assert run.precision == "bfloat16"
    assert {part.fused for part in norms(load(run.path, "cpu").denoiser)} == {True}
    again = train(tiny(), out=tmp_path / "again")
    assert (run.path / "model.safetensors").read_bytes() == (again.path / "model.safetensors").read_bytes()
    assert torch.equal(run.sample(2), again.sample(2))
    assert run.extend(images=64).recipe.training.choices == "bfloat16 fused-norm"


@pytest.mark.parametrize("setting", ["reference", "float32", "fused-norm"])
def test_what_the_recipe_names_is_not_measured(
    tiny: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    monkeypatch.delenv("UNFOG_CHOICES")
    monkeypatch.setattr(module, "_ratio", None)
    trainer = _trainer(tiny(f"training.choices={setting}"), tmp_path)
    assert module.choose(trainer) == {}
    assert trainer.settings.choices == setting
    assert trainer.precision == "float32"  # of pictures of 8 pixels


@pytest.mark.parametrize("text", ["", "fast", "float32 bfloat16", "auto fused-norm", "plain-attention fused-attention"])
def test_other_words_are_refused(tiny: MakeRecipe, text: str) -> None:
    with pytest.raises(
        UserError, match=r"training\.choices is auto, reference, or some of float32, bfloat16, fused-norm"
    ):
        tiny(f"training.choices={text}")


def test_words_are_read_as_they_are_written() -> None:
    for choices in module.ALL:
        assert Choices.read(str(choices)) == choices


def test_runs_of_before_compute_as_they_did(digits_run: Path, tmp_path: Path) -> None:
    plain = json.loads((digits_run / "recipe.json").read_text())
    del plain["training"]["choices"]
    assert Recipe.from_json(json.dumps(plain)).training.choices == "reference"


def test_a_strangers_run_compiles_nothing(digits_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it names and is not there is said, and computed by torch's operators."""
    recipe = read_recipe(digits_run)
    foreign = replace(recipe, training=replace(recipe.training, choices="float32 fused-norm"))
    monkeypatch.setattr("unfog.networks.modulated.KERNELS.available", lambda: False)
    monkeypatch.setattr("unfog.runtime.native._compile", None)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.json").write_text(foreign.to_json())
    (tmp_path / "run" / "model.safetensors").write_bytes((digits_run / "model.safetensors").read_bytes())
    with pytest.warns(
        UserWarning, match="computed by torch's operators, since the kernel that it names is not compiled"
    ):
        found = load(tmp_path / "run", "cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert found.sample(1).shape == load(digits_run, "cpu").sample(1).shape
