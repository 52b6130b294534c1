"""What is said about settings: each one is explained, other toolkits' words lead to ours, short names are taken."""

import json

import pytest

from tests.recipes.test_recipe import default
from unfog.recipes import describe
from unfog.recipes.kinds import KINDS, class_of, options_of
from unfog.recipes.presets import recipe
from unfog.recipes.vocabulary import OTHERS, SHORT
from unfog.runtime.errors import UserError


@pytest.mark.parametrize("field", sorted(KINDS))
def test_every_option_of_every_kind_is_explained(field: str) -> None:
    """From a docstring, in words of some length; without one the program could say nothing of it."""
    for kind in KINDS[field]:
        part = class_of(field, kind)
        assert len(describe.summary(part)) > 15
        assert "see `" not in describe.summary(part)
        texts = describe.meanings(part)
        for option, (annotation, _) in options_of(part).items():
            assert len(texts.get(option, "")) > 10, f"{field}={kind}: {option} is not described in a docstring"
            assert describe.allowed(annotation)


def test_what_is_shown_can_be_set() -> None:
    """Every setting with its value, in the form that `set` takes."""
    chosen = recipe("digits").set("schedule=cosine", "solver=heun", "network=unet", "target=v")
    found = describe.described(chosen)
    assert [one.path for one in found if "." not in one.path] == [*KINDS, "seed"]
    for one in found:
        value = one.value if isinstance(one.value, str) else json.dumps(one.value)
        again = chosen.set(f"{one.path}={value}")
        assert again == chosen or "." not in one.path  # a kind takes its defaults
    shown = chosen.explain(90)
    assert max(map(len, shown.splitlines())) <= 90
    for words in ("network.widths = [32, 64, 64]", "S_churn divided", "[auto, float32 or bfloat16", "short: lr]"):
        assert words in shown


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("learning_rate", "optimizer.lr"),
        ("learning-rate", "optimizer.lr"),
        ("lerning_rate", "optimizer.lr"),
        ("training.lr", "optimizer.lr"),
        ("optimiser.learning_rate", "optimizer.lr"),
        ("batch_size", "training.batch"),
        ("num_epochs", "training.epochs"),
        ("cfg", "sampling.guidance"),
        ("ema_decay", "ema.gamma"),
        ("model.width", "network.width"),
        ("hidden_size", "network.width"),
        ("network.dropuot", "network.dropout"),
        ("sampler", "solver"),
        ("prediction_type", "target"),
        ("num_inference_steps", "sampling.steps"),
        ("fp16", "training.precision"),
        ("hflip", "augment.flip"),
        ("p_uncond", "conditioning.dropout"),
    ],
)
def test_a_word_leads_to_the_setting_that_is_meant(written: str, meant: str) -> None:
    with pytest.raises(UserError, match=f"unknown setting .*: did you mean '{meant}'"):
        recipe("digits").set(f"{written}=3")


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("steps", ("'sampling.steps' (steps of the solver)", "'training.images' (images to train on")),
        ("dropout", ("'network.dropout'", "'conditioning.dropout'")),
        ("clip", ("'optimizer.clip'", "'sampling.clip'")),
    ],
)
def test_an_ambiguous_word_names_what_it_may_mean(written: str, meant: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as refused:
        recipe("digits").set(f"{written}=3")
    assert all(one in str(refused.value) for one in meant)


def test_an_option_of_another_kind_is_called_one() -> None:
    with pytest.raises(UserError, match="eta is an option of solver=ddim or euler-ancestral, but this recipe has"):
        recipe("digits").set("solver.eta=1")
    with pytest.raises(UserError, match="whose options are beta_min, beta_max"):
        recipe("digits").set("schedule=linear-continuous", "schedule.steps=3")
    with pytest.raises(UserError, match=r"ema must be one of .*, not 0.999; its options are ema\.gamma"):
        recipe("digits").set("ema=0.999")
    with pytest.raises(UserError, match=r"the settings are seed, data, augment \(flip, crop\), .*`unfog recipe`"):
        recipe("digits").set("nonsense=1")


def test_short_names_are_written_long() -> None:
    values = {"precision": '"float32"', "flip": "true", "guidance": "2.0", "lr": "0.001", "weight_decay": "0.5"}
    for short, long in SHORT.items():
        value = values.get(short, "64")
        chosen = recipe("digits").set(f"{short}={value}")
        assert chosen == recipe("digits").set(f"{long}={value}")
        field, _, option = long.partition(".")
        assert json.loads(chosen.to_json())[field][option] == json.loads(value)
    assert len(SHORT) == 10
    chosen = recipe("digits").set("optimizer=muon", "lr=1e-3", "optimizer.momentum=0.9")
    assert (chosen.kind("optimizer"), chosen.optimizer.lr) == ("muon", 1e-3)


def test_other_words_name_settings_that_exist() -> None:
    """Of some kind of the part; a word of ours that became a setting's name would shadow it."""
    known = {
        "seed",
        *KINDS,
        *(f"{name}.{option}" for name in KINDS for kind in KINDS[name] for option in _of(name, kind)),
    }
    for word, meant in OTHERS.items():
        assert set(meant) <= known, word
        assert word not in KINDS
    assert set(SHORT.values()) <= known


def _of(name: str, kind: str) -> list[str]:
    """The options of a kind."""
    return list(options_of(type(default(name, kind))))


def test_a_recipe_fits_on_a_screen() -> None:
    table = ",".join(str(1 - (index + 1) / 1001) for index in range(1000))
    chosen = recipe("digits").set("schedule=table", f"schedule.alphas_cumprod=[{table}]", "target=v")
    lines = repr(chosen).splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 100
    assert "optimizer     adamw lr=0.005" in repr(chosen)
