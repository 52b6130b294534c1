"""Recipes: JSON and back, settings with their sentences, registered parts, and refusals before any training."""

import inspect
import json
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from unfog.data import classic
from unfog.data.source import Data, InMemory
from unfog.diffusion.denoiser import InputScale, NetworkTime
from unfog.diffusion.grids import Grid, KarrasGrid, LogSNRGrid, UniformGrid
from unfog.diffusion.schedules import EDM, Laplace, RectifiedFlow
from unfog.diffusion.solvers import DDIM, Heun
from unfog.diffusion.tables import Cosine, Linear, Table
from unfog.diffusion.times import LogitNormal, LogNormal, Times, Uniform
from unfog.recipes.build import build_data, build_denoiser, known_of
from unfog.recipes.fitting import doubt_grid, doubt_inputs, doubt_times
from unfog.recipes.kinds import DECIDED_BY_DATA, KINDS, class_of, kind_of, options_of, register
from unfog.recipes.networks import CompactSpec
from unfog.recipes.optimizers import AdamW
from unfog.recipes.parse import from_plain, named, options, to_plain
from unfog.recipes.presets import RECIPES, recipe
from unfog.recipes.recipe import VERSION, Recipe
from unfog.recipes.settings import Inputs
from unfog.recipes.sources import Digits, Folder
from unfog.recipes.versions import corrections
from unfog.runtime.errors import UserError
from unfog.training.trainer import Trainer

OF_FOLDERS = ("folder", "autoencoder", "text-to-image", "super-resolution")
EMBEDDED = ("encoder", "prior", "decoder")
"""Recipes of captioned pictures that need an encoder, or train one."""
NAMES = sorted(RECIPES)
TABLES = ("linear", "quadratic", "cosine")


def write_pictures(root: Path, names: list[str], side: int = 8, mode: str = "L") -> str:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new(mode, (side, side)).save(path)
    return str(root)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny folder with two classes."""
    return write_pictures(tmp_path_factory.mktemp("pictures"), ["a/1.png", "a/2.png", "b/3.png"])


def made(name: str, pictures: str) -> Recipe:
    if name == "table":
        table = Path(pictures).parent / "table.csv"
        table.write_text("a,b\n" + "".join(f"{place},{place % 7}\n" for place in range(200)))
        return recipe(name, str(table))
    size = 16 if name == "super-resolution" else None  # of pictures that are smaller there is nothing to be made
    return recipe(name, pictures, size) if name in OF_FOLDERS else recipe(name)


def looked_at(chosen: Recipe, *shape: int) -> Recipe:
    """Return a recipe as it is after its data were looked at."""
    return replace(chosen, shape=shape or (1, 8, 8), classes=tuple("0123456789"))


def plain(chosen: Recipe) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(chosen.to_json())
    return value


# ------------------------------------------------------------------------------------------------- JSON


@pytest.mark.parametrize("name", NAMES)
def test_json_round_trip(name: str, pictures: str) -> None:
    one = made(name, pictures)
    for chosen in (one, replace(one, shape=(1, 8, 8), classes=("ü", "b"), seed=2**63)):
        again = Recipe.from_json(chosen.to_json())
        assert again == chosen
        assert again.to_json() == chosen.to_json()
        assert (again.shape, again.classes, again.seed) == (chosen.shape, chosen.classes, chosen.seed)


@pytest.mark.parametrize("name", NAMES)
def test_json_names_every_option(name: str, pictures: str) -> None:
    """A later change of a default must not change a run that is on disk."""
    value = plain(made(name, pictures))
    assert value["version"] == VERSION
    assert set(value) == {"version", *(one.name for one in fields(Recipe))}
    assert value["training"]["batch"] == made(name, pictures).training.batch
    assert {"width", "widths"} & set(value["network"])
    assert not DECIDED_BY_DATA & set(value["network"])


REQUIRED: dict[str, dict[str, object]] = {
    "table": {"alphas_cumprod": [0.9, 0.5, 0.1]},
    "several": {"parts": ["classes", "values"]},
}
"""The options without a default, by kind."""


def default(field: str, kind: str) -> Any:
    """Return a kind with its defaults."""
    return named(field, kind, **REQUIRED.get(kind, {}))


@pytest.mark.parametrize("field", sorted(KINDS))
def test_every_kind_survives_json(field: str) -> None:
    for kind in KINDS[field]:
        value = default(field, kind)
        assert kind_of(field, value) == kind
        assert from_plain(field, json.loads(json.dumps(to_plain(field, value)))) == value
        assert list(to_plain(field, value)) == ["kind", *options_of(type(value))]


def test_missing_fields_get_their_defaults() -> None:
    chosen = Recipe.from_json(
        '{"version": 1, "name": "x", "data": {"kind": "digits"}, "network": {"kind": "compact", "width": 16}}'
    )
    assert chosen == Recipe("x", data=Digits(), network=CompactSpec(width=16), version=1)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("9" * 5000, "not valid JSON"),
        ("null", "no version"),
        ("[]", "no version"),
        ("{}", "no version"),
        ('{"version": "1"}', "no version"),
        ('{"version": true}', "no version"),
        ('{"version": 3}', "version is newer than 2: update unfog"),
        ('{"version": 99, "unheard-of": 1}', "version is newer"),
    ],
    ids=["empty", "cut", "deep", "long number", "null", "list", "object", "text", "bool", "next", "later"],
)
def test_what_is_no_recipe(text: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Recipe.from_json(text)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"network": "absent"}, "has no network"),
        ({"data": "absent"}, "has no data"),
        ({"name": "absent"}, "name must be str"),
        ({"networc": {}}, "unknown recipe field 'networc': did you mean 'network'"),
        ({"network": None}, "network must be an object with a 'kind'"),
        ({"network": "compact"}, "network must be an object with a 'kind'"),
        ({"network": {"width": 3}}, "network must be an object with a 'kind'"),
        ({"network": {"kind": 3}}, "network must be an object with a 'kind'"),
        ({"network": {"kind": "compct"}}, "unknown network 'compct': did you mean 'compact'"),
        ({"network": {"kind": "compact", "widht": 3}}, "unknown option of network 'compact' 'widht': .*'width'"),
        ({"network": {"kind": "compact", "channels": 3}}, "unknown option"),
        ({"network": {"kind": "compact", "width": True}}, "network.width must be int, not True"),
        ({"schedule": {"kind": "os.system"}}, "unknown schedule"),
        ({"seed": 1.5}, "seed must be int"),
        ({"seed": True}, "seed must be int"),
        ({"seed": None}, "seed must be int"),
        ({"name": 3}, "name must be str"),
        ({"shape": "8"}, "shape must be"),
        ({"shape": [1, 8.5]}, "shape must be"),
        ({"shape": [True, 8, 8]}, "shape must be"),
        ({"shape": []}, "shape"),
        ({"shape": [0, 8, 8]}, "shape"),
        ({"shape": [1, -8, 8]}, "shape"),
        ({"classes": "ab"}, "classes must be"),
        ({"classes": [1]}, "classes must be"),
        ({"classes": None}, "classes must be"),
        ({"grid": {"kind": "times", "shares": [1, float("nan"), 0]}}, "grid.shares must be"),
        ({"grid": {"kind": "times", "shares": [1, float("inf"), 0]}}, "grid.shares must be"),
        ({"optimizer": {"kind": "adamw", "lr": float("nan")}}, "optimizer.lr must be"),
    ],
)
def test_a_damaged_field_is_named(changes: dict[str, Any], sentence: str) -> None:
    value = {**plain(looked_at(recipe("digits"))), **changes}
    text = json.dumps({name: one for name, one in value.items() if one != "absent"})
    with pytest.raises(UserError, match=sentence):
        Recipe.from_json(text)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)


def parses_or_says_why(text: str) -> None:
    try:
        chosen = Recipe.from_json(text)
    except UserError as error:
        sentence = str(error)
        assert len(sentence) > 10
        return
    assert Recipe.from_json(chosen.to_json()).to_json() == chosen.to_json()


@given(anything)
@settings(deadline=None)
def test_any_json_is_a_recipe_or_a_user_error(value: Any) -> None:
    parses_or_says_why(json.dumps(value))


@given(st.text(max_size=50))
@settings(deadline=None)
def test_any_text_is_a_user_error(text: str) -> None:
    with pytest.raises(UserError):
        Recipe.from_json(text)


FIELDS = ["version", *(one.name for one in fields(Recipe))]


@given(name=st.sampled_from(FIELDS), value=anything, kind=st.data())
@settings(max_examples=150, deadline=None)
def test_a_mutated_recipe_is_a_recipe_or_a_user_error(name: str, value: Any, kind: st.DataObject) -> None:
    """Any field, or any option of any kind, replaced by anything."""
    whole = plain(looked_at(recipe("digits")))
    if name in KINDS and kind.draw(st.booleans()):
        part = to_plain(name, default(name, kind.draw(st.sampled_from(sorted(KINDS[name])))))
        whole[name] = {**part, kind.draw(st.sampled_from([*part, "other"])): value}
    else:
        whole[name] = value
    parses_or_says_why(json.dumps(whole))


@given(cut=st.integers(0, 3000), place=st.integers(0, 3000), sign=st.characters(codec="utf-8"))
@settings(deadline=None)
def test_a_damaged_recipe_is_a_recipe_or_a_user_error(cut: int, place: int, sign: str) -> None:
    text = recipe("digits").to_json()
    place %= len(text)
    parses_or_says_why(text[:place] + sign + text[place + 1 :])
    with pytest.raises(UserError):
        Recipe.from_json(text[: cut % (len(text) - 2)])


# ------------------------------------------------------------------------------------------------- set


@pytest.mark.parametrize(
    ("setting", "field", "option", "value"),
    [
        ("network.width=48", "network", "width", 48),
        (" network.width = 48", "network", "width", 48),
        ("optimizer.lr=1e-3", "optimizer", "lr", 1e-3),
        ("optimizer.lr=1", "optimizer", "lr", 1),
        ("augment.flip=true", "augment", "flip", True),
        ("training.precision=float32", "training", "precision", "float32"),
        ('training.precision="float32"', "training", "precision", "float32"),
        ("inputs.network_time=log_snr", "inputs", "network_time", "log_snr"),
        ("sampling.guidance=2", "sampling", "guidance", 2),
    ],
)
def test_set_an_option(setting: str, field: str, option: str, value: object) -> None:
    before = recipe("digits")
    after = before.set(setting)
    assert options(getattr(after, field))[option] == value
    assert replace(after, **{field: getattr(before, field)}) == before  # nothing else changes
    assert {**options(getattr(after, field)), option: 0} == {**options(getattr(before, field)), option: 0}


def test_set_a_kind_takes_its_defaults() -> None:
    chosen = recipe("digits").set("optimizer.lr=1", "schedule=cosine", "optimizer=adamw", 'solver="ddim"')
    assert chosen.schedule == Cosine()
    assert chosen.optimizer == AdamW()
    assert chosen.solver == DDIM()


def test_set_is_applied_in_turn() -> None:
    chosen = recipe("digits").set("schedule=cosine", "schedule.steps=500", "schedule.steps=400", "seed=3", "name=mine")
    assert (chosen.schedule.steps, chosen.seed, chosen.name) == (400, 3, "mine")
    assert recipe("digits").set() == recipe("digits")


def test_set_lists_texts_and_null(pictures: str) -> None:
    chosen = recipe("folder", pictures).set(
        "data.size=[16, 8]", "data.path=a=b", "network=unet", "network.widths=[8,16]", "data.channels=null"
    )
    assert isinstance(chosen.data, Folder)
    assert chosen.data.size == (16, 8)
    assert chosen.data.path == "a=b"  # only the first sign of equality parts path and value
    assert options(chosen.network)["widths"] == (8, 16)
    assert chosen.data.channels is None
    assert Recipe.from_json(chosen.to_json()) == chosen


def test_set_an_option_without_a_default() -> None:
    """A kind may need an option; it must then be possible to give it."""
    chosen = recipe("digits").set("schedule=table", "schedule.alphas_cumprod=[0.9, 0.5, 0.1]", "target=v")
    schedule = chosen.schedule
    assert isinstance(schedule, Table)
    assert schedule.alphas_cumprod == (0.9, 0.5, 0.1)


def test_an_option_that_is_missing_is_named() -> None:
    with pytest.raises(UserError, match="alphas_cumprod"):
        recipe("digits").set("schedule=table")


def test_the_settings_of_a_part_are_checked_together() -> None:
    """Neither 66 rows in 3 portions nor 64 in 33 could be set first."""
    training = recipe("digits").set("training.accumulate=3", "training.batch=66", "training.accumulate=33").training
    assert (training.batch, training.accumulate) == (66, 33)


def test_a_part_without_a_name_is_used_and_cannot_be_written() -> None:
    chosen = replace(recipe("digits"), schedule=Slow(3.0))
    assert chosen.set("network.width=8").schedule == Slow(3.0)
    with pytest.raises(UserError, match=r"the schedule Slow has no name.*unfog\.register\('schedule', NAME, Slow\)"):
        chosen.to_json()


@pytest.mark.parametrize("kind", KINDS["network"])
def test_specs_have_the_options_of_their_networks(kind: str) -> None:
    spec = class_of("network", kind)
    network = options_of(spec.network)
    assert dict(options_of(spec)) == {name: one for name, one in network.items() if name not in DECIDED_BY_DATA}
    assert set(spec.given) == DECIDED_BY_DATA & set(network)


@pytest.mark.parametrize("kind", sorted(set(KINDS["data"]) - {"given", "embedded", "portion", "stacked"}))
def test_specs_have_the_options_of_their_data(kind: str) -> None:
    module = {"mnist": classic, "fashion": classic, "digits": classic, "cifar10": classic}.get(kind)
    build = getattr(module or import_module(f"unfog.data.{kind}"), kind)
    own = {name: option.default for name, option in options_of(class_of("data", kind)).items()}
    taken = {name: one.default for name, one in inspect.signature(build).parameters.items()}
    taken.pop("glance", None)  # which is no setting: a plan looks at what a training reads
    assert own == taken


@pytest.mark.parametrize("field", sorted(KINDS))
def test_set_every_kind(field: str) -> None:
    for kind in KINDS[field]:
        needed = [f"{field}.{name}={json.dumps(value)}" for name, value in REQUIRED.get(kind, {}).items()]
        assert getattr(recipe("digits").set(f"{field}={kind}", *needed), field) == default(field, kind)


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("network.width", r"a setting must be path=value, for instance network\.width=48, not 'network\.width'"),
        ("", "a setting must be path=value"),
        ("=3", "unknown setting ''"),
        ("netwrk.width=3", r"unknown setting 'netwrk\.width': did you mean 'network\.width'"),
        ("network.widht=3", r"did you mean 'network\.width'"),
        ("network.=3", r"unknown setting 'network\.': did you mean 'network"),
        ("heigth=3", r"unknown setting 'heigth'"),
        ("shedule=cosine", "did you mean 'schedule'"),
        ("sed=3", "did you mean 'seed'"),
        ("seed.x=3", r"unknown setting 'seed\.x'"),
        ("shape=[1,8,8]", "unknown setting 'shape'"),
        ("version=2", "unknown setting 'version'"),
        ("schedule.steps=3", r"unknown setting 'schedule\.steps'"),  # the flow schedule has no steps
        ("schedule=cosin", "unknown schedule 'cosin': did you mean 'cosine'"),
        ("network=", "unknown network ''"),
        ("network=3", "network must be one of autoencoder, .*, not 3"),
        ("network=null", "network must be one of autoencoder"),
        ('network={"kind": "unet"}', "network must be one of autoencoder"),
        ("solver=qqqqq", "unknown solver 'qqqqq': choose one of adams-bashforth, "),
    ],
)
def test_set_names_what_is_unknown(setting: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        recipe("digits").set(setting)


@pytest.mark.parametrize(
    "setting",
    [
        "network.width=true",
        "network.width=3.5",
        "network.width=null",
        "network.width=wide",
        'network.width="48"',
        "network.width=[48]",
        "network.width=NaN",
        "optimizer.lr=true",
        "optimizer.lr=NaN",
        "optimizer.lr=Infinity",
        "optimizer.lr=-Infinity",
        "optimizer.lr=1e999",
        "optimizer.lr=fast",
        "optimizer.lr=null",
        "optimizer.lr={}",
        "augment.flip=1",
        "augment.flip=yes",
        "training.precision=float16",
        "training.precision=1",
        "inputs.network_time=thousands",
        "inputs.input_scale=units",
        "seed=true",
        "seed=1.5",
        "seed=null",
        "name=5",
    ],
)
def test_set_refuses_wrong_types(setting: str) -> None:
    path = setting.split("=")[0].replace(".", r"\.")
    with pytest.raises(UserError, match=f"^{path} must be .*, not "):
        recipe("digits").set(setting)


@pytest.mark.parametrize(
    ("kind", "setting"),
    [
        ("network=unet", "network.widths=[32, 64.5]"),
        ("network=unet", "network.widths=[true, 64, 64]"),
        ("network=unet", "network.widths=32"),
        ("network=unet", "network.widths="),
        ("network=unet", "network.attention=[0, 1, 1]"),
        ("data=folder", "data.size=true"),
        ("data=folder", "data.size=[8, true]"),
        ("data=folder", "data.size=big"),
        ("data=folder", "data.channels=true"),
        ("data=folder", "data.path=null"),
        ("data=mnist", "data.path=3"),
        ("grid=times", "grid.shares=[1, 1e999, 0]"),
        ("grid=times", "grid.shares=[1, true, 0]"),
        ("data=points", "data.shape=hexagon"),
    ],
)
def test_set_refuses_wrong_types_within(kind: str, setting: str) -> None:
    with pytest.raises(UserError, match="must be .*, not "):
        recipe("digits").set(kind, setting)


@pytest.mark.parametrize(
    ("field", "options"),
    [
        ("optimizer", {"lr": 0}),
        ("optimizer", {"lr": -1.0}),
        ("optimizer", {"lr": 10**400}),
        ("optimizer", {"clip": 0}),
        ("optimizer", {"decay": 1.5}),
        ("optimizer", {"beta1": 1.0}),
        ("optimizer", {"beta2": -0.1}),
        ("optimizer", {"weight_decay": -1}),
        ("optimizer", {"warmup": -1}),
        ("training", {"images": 0}),
        ("training", {"batch": 0}),
        ("training", {"batch": -64}),
        ("training", {"accumulate": 0}),
        ("training", {"accumulate": 5}),
        ("training", {"reports": 0}),
        ("training", {"checkpoint_minutes": 0}),
        ("sampling", {"steps": 0}),
        ("sampling", {"batch": 0}),
        ("sampling", {"guidance": -1}),
        ("sampling", {"guidance": 1001}),
        ("inputs", {"sigma_data": 0}),
        ("conditioning", {"dropout": 1.1}),
        ("augment", {"crop": -1}),
        ("ema", {"gamma": 0}),
        ("schedule:edm", {"sigma_max": 0}),
        ("schedule:edm", {"sigma_max": 10**400}),
        ("schedule:linear", {"steps": 1}),
        ("schedule:linear", {"beta_end": 1.0}),
        ("schedule:linear-continuous", {"beta_min": 0}),
        ("schedule:cosine", {"max_beta": 2.0}),
        ("schedule:cosine", {"s": -1}),
        ("schedule:cosine-continuous", {"s": -1}),
        ("schedule:cosine-continuous", {"s": -0.5}),
        ("schedule:table", {"alphas_cumprod": [0.5, 0.9]}),
        ("schedule:table", {"alphas_cumprod": []}),
        ("target:edm", {"sigma_data": 0}),
        ("target:edm", {"sigma_data": -1}),
        ("times:discrete", {"steps": 0}),
        ("times", {"std": 0}),
        ("weighting:min-snr", {"gamma": 0}),
        ("solver:ddim", {"eta": 1.5}),
        ("grid:karras", {"rho": 0}),
        ("ema:exponential", {"half_life": 0}),
        ("data:folder", {"path": "/no/such/folder"}),
    ],
    ids=lambda value: str(value)[:40],
)
def test_values_out_of_range(field: str, options: dict[str, Any]) -> None:
    """By the time of building at the latest: nothing is trained with such a value."""
    name, _, kind = field.partition(":")

    def read(part: Any) -> object:
        return part.build() if name == "data" else part

    with pytest.raises(UserError):
        read(named(name, kind or recipe("digits").kind(name), **options))


# ------------------------------------------------------------------------------------------------ build


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in NAMES
        if name not in (*OF_FOLDERS, "table", "mnist", "fashion", "cifar10", "cifar10-edm", *EMBEDDED)
    ],
)
def test_own_data_build(name: str) -> None:
    few = ("data.count=200",) if name in ("audio", "vocoder", "video", "volumes") else ()
    chosen, data = build_data(recipe(name).set(*few))
    assert chosen.shape == data.train.shape
    assert chosen.classes == data.train.classes
    denoiser = build_denoiser(chosen)
    again = build_denoiser(chosen)
    for one, other in zip(denoiser.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)
    x, t = torch.zeros(2, *known_of(chosen).shape), torch.full((2,), 0.5)
    cond = None if denoiser.embedder is None else denoiser.embedder.null(2)
    assert denoiser(x, t, cond).x0.shape == x.shape


@pytest.mark.parametrize(
    ("name", "shape"), [("mnist", (1, 28, 28)), ("fashion", (1, 28, 28)), ("cifar10", (3, 32, 32))]
)
def test_recipes_of_downloaded_data_build(name: str, shape: tuple[int, ...]) -> None:
    denoiser = build_denoiser(looked_at(recipe(name), *shape))
    x = torch.zeros(1, *shape)
    assert denoiser(x, torch.full((1,), 0.5)).x0.shape == x.shape


def test_the_folder_recipe_builds(pictures: str) -> None:
    chosen, data = build_data(recipe("folder", pictures))
    assert (chosen.shape, chosen.classes, len(data.train), len(data.heldout)) == ((1, 8, 8), ("a", "b"), 2, 1)
    assert build_denoiser(chosen).embedder is not None
    bare = build_denoiser(chosen.set("conditioning=none"))
    assert bare.embedder is None


def test_building_leaves_the_generator_alone() -> None:
    chosen = looked_at(recipe("digits"))
    torch.manual_seed(5)
    first = torch.rand(3)
    torch.manual_seed(5)
    build_denoiser(chosen)
    assert torch.equal(torch.rand(3), first)


def test_seeds_give_other_weights() -> None:
    chosen = looked_at(recipe("digits"))
    one, other = (next(build_denoiser(made).parameters()) for made in (chosen, chosen.set("seed=1")))
    assert not torch.equal(one, other)


@pytest.mark.parametrize("seed", [-1, 2**64 - 1, 2**64, 2**70, -(2**64)])
def test_any_whole_number_is_a_seed(seed: int) -> None:
    build_denoiser(looked_at(recipe("digits").set(f"seed={seed}")))


@pytest.mark.parametrize(
    ("settings", "side", "near"),
    [
        (("network=compact",), 7, "multiples of 2, not 7: use 6 or 8"),
        (("network=compact", "network.patch=2"), 30, "multiples of 4, not 30: use 28 or 32"),
        (("network=compact", "network.patch=4"), 3, "multiples of 8, not 3: use 8 "),
        (("network=unet",), 30, "multiples of 4, not 30: use 28 or 32"),
        (("network=minimal",), 9, "multiples of 2, not 9: use 8 or 10"),
    ],
)
def test_sides_that_do_not_fit_get_near_ones(settings: tuple[str, ...], side: int, near: str) -> None:
    chosen = recipe("digits").set(*settings)
    with pytest.raises(UserError, match=near):
        build_denoiser(looked_at(chosen, 1, 64, side))
    with pytest.raises(UserError, match=near):
        build_denoiser(looked_at(chosen, 1, side, 64))


@pytest.mark.parametrize(
    ("schedule", "target"),
    [
        ("cosine-continuous", "eps"),
        ("flow", "eps"),
        ("linear-continuous", "flow"),
        ("quadratic-continuous", "flow"),
        ("cosine-continuous", "flow"),
        *((table, "flow") for table in TABLES),
    ],
)
def test_pairs_that_do_not_fit_say_so(schedule: str, target: str) -> None:
    chosen = looked_at(recipe("digits").set(f"schedule={schedule}", f"target={target}"))
    name = type(chosen.schedule).__name__
    words = f"target {'Eps' if target == 'eps' else 'Flow'} .*schedule {name}.*: .*(use|choose)"
    with pytest.raises(UserError, match=words):  # both names, and what to do
        build_denoiser(chosen)


@pytest.mark.parametrize(
    ("schedule", "target"),
    [
        *((schedule, target) for schedule in ("linear-continuous", *TABLES) for target in ("eps", "x0", "v", "edm")),
        *(("cosine-continuous", target) for target in ("x0", "v")),
        *(("flow", target) for target in ("flow", "x0", "v")),
        *(("edm", target) for target in ("edm", "eps", "v", "flow")),
    ],
)
def test_pairs_that_fit(schedule: str, target: str) -> None:
    denoiser = build_denoiser(looked_at(recipe("digits").set(f"schedule={schedule}", f"target={target}")))
    assert denoiser(torch.ones(1, 1, 8, 8), torch.full((1,), 0.5)).x0.isfinite().all()


@pytest.mark.parametrize("schedule", ["flow", "linear-continuous", "cosine-continuous", "edm"])
def test_an_index_needs_a_table(schedule: str) -> None:
    chosen = looked_at(recipe("digits").set(f"schedule={schedule}", "target=v", "inputs.network_time=index"))
    with pytest.raises(UserError, match="network_time 'index' needs a schedule of discrete steps: use 'thousand'"):
        build_denoiser(chosen)
    build_denoiser(looked_at(recipe("digits").set("schedule=linear", "target=v", "inputs.network_time=index")))


@pytest.mark.parametrize("scale", get_args(InputScale))
@pytest.mark.parametrize("time", get_args(NetworkTime))
def test_whatever_a_denoiser_takes_a_recipe_can_ask_for(time: str, scale: str, tmp_path: Path) -> None:
    small = ("schedule=linear", "target=eps", "times=discrete", "network.width=8", "training.batch=8")
    chosen = recipe("digits").set(*small, f"inputs.network_time={time}", f"inputs.input_scale={scale}")
    chosen = Recipe.from_json(chosen.to_json())
    trainer = Trainer(*build_data(chosen), tmp_path, torch.device("cpu"))
    assert (trainer.denoiser.network_time, trainer.denoiser.input_scale) == (time, scale)
    assert math.isfinite(trainer.descend(trainer.draws(0)))


@pytest.mark.parametrize(
    "settings",
    [
        ("network=unet", "network.widths=[]", "network.attention=[]"),
        ("network=unet", "network.attention=[true]"),
        ("network=unet", "network.blocks=0"),
        ("network=unet", "network.head=0"),
        ("network=unet", "network.widths=[33, 64, 64]"),
        ("network.width=0",),
        ("network.width=-8",),
        ("network.width=1",),
        ("network.width=33",),
        ("network.patch=0",),
        ("network.blocks=-1",),
        ("network.dropout=1.5",),
        (f"network.width={10**30}",),
        ("network=minimal", "network.width=0"),
    ],
    ids=" ".join,
)
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors:UserWarning")
def test_networks_that_cannot_be(settings: tuple[str, ...]) -> None:
    """Refused when the network is made, and not by the first batch."""
    with pytest.raises(UserError):
        build_denoiser(looked_at(recipe("digits").set(*settings)))


@pytest.mark.parametrize("network", ["compact", "unet", "minimal"])
def test_points_need_the_network_for_points(network: str) -> None:
    with pytest.raises(UserError):
        build_denoiser(replace(recipe("points").set(f"network={network}"), shape=(2,)))


def test_pictures_need_a_network_for_pictures() -> None:
    with pytest.raises(UserError):
        build_denoiser(looked_at(recipe("digits").set("network=mlp")))


# --------------------------------------------------------------------------------------------- register


@pytest.fixture
def kinds() -> Iterator[None]:
    """Forget the kinds that a test registers."""
    before = {field: dict(known) for field, known in KINDS.items()}
    yield
    for field, known in before.items():
        KINDS[field].clear()
        KINDS[field].update(known)


@dataclass(frozen=True)
class Slow(RectifiedFlow):
    """A straight line with an option."""

    factor: float = 2.0


@pytest.mark.usefixtures("kinds")
def test_registered_parts_are_parts() -> None:
    register("schedule", "slow", Slow)
    chosen = looked_at(recipe("digits").set("schedule=slow", "schedule.factor=3"))
    assert chosen.schedule == Slow(3.0)
    assert Recipe.from_json(chosen.to_json()) == chosen
    assert build_denoiser(chosen).schedule == Slow(3)
    with pytest.raises(UserError, match=r"schedule\.factor must be float, not 'x'"):
        chosen.set("schedule.factor=x")


@pytest.mark.usefixtures("kinds")
def test_registered_functions_are_data() -> None:
    def stripes(count: int = 20) -> Data:
        rows = InMemory(torch.zeros(count, 1, 8, 8, dtype=torch.uint8))
        return Data(rows, rows)

    register("data", "stripes", stripes)
    chosen, data = build_data(recipe("digits").set("data=stripes", "data.count=7"))
    assert (len(data.train), chosen.shape, chosen.classes) == (7, (1, 8, 8), ())
    assert Recipe.from_json(chosen.to_json()) == chosen


@pytest.mark.usefixtures("kinds")
def test_what_cannot_be_registered() -> None:
    with pytest.raises(UserError, match="'cosine' is registered already: choose another name"):
        register("schedule", "cosine", Slow)
    with pytest.raises(UserError, match="unknown recipe field 'shedule': did you mean 'schedule'"):
        register("shedule", "slow", Slow)
    with pytest.raises(
        UserError, match="a schedule must be registered as a frozen dataclass whose fields are its options"
    ):
        register("schedule", "short", lambda: Linear(10))
    register("schedule", "slow", Slow)
    with pytest.raises(UserError, match="registered already"):
        register("schedule", "slow", Slow)


def test_a_strangers_recipe_cannot_name_what_is_not_registered() -> None:
    value = plain(recipe("digits"))
    value["schedule"] = {"kind": "slow", "factor": 2.0}
    with pytest.raises(UserError, match="unknown schedule 'slow'"):
        Recipe.from_json(json.dumps(value))


# ------------------------------------------------------------------------------------- the recipes' rules


@pytest.mark.parametrize("name", ["points", "digits", "tutorial"])
def test_recipes_with_own_data_take_no_path(name: str) -> None:
    with pytest.raises(UserError, match=f"{name if name != 'tutorial' else 'digits'}.*has its own data"):
        recipe(name, "somewhere")


@pytest.mark.parametrize("name", [name for name in NAMES if name not in (*OF_FOLDERS, *EMBEDDED, "shapes")])
def test_only_folders_are_resized(name: str) -> None:
    with pytest.raises(
        UserError,
        match="fixed size: omit size|texts have no size: omit it|no pictures: omit size|sizes and labels of its own",
    ):
        recipe(name, None, 16)


def test_unknown_recipes_get_the_nearest() -> None:
    with pytest.raises(UserError, match="unknown recipe 'digit': did you mean 'digits'"):
        recipe("digit")


@pytest.mark.parametrize("name", ["mnist", "fashion", "cifar10", "cifar10-edm"])
def test_a_path_reaches_the_data(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "somewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    path = Path(options(recipe(name, "somewhere").data)["path"])
    assert path == tmp_path / "somewhere"  # a run is gone on with from any folder
    assert options(recipe(name).data)["path"] is None


@pytest.mark.parametrize(
    ("side", "mode", "size", "width", "patch", "batch"),
    [
        (8, "L", 8, 48, 1, 64),
        (16, "L", 16, 48, 1, 64),
        (28, "L", 28, 48, 2, 64),
        (32, "RGB", 32, 64, 2, 64),
        (48, "RGB", 48, 64, 4, 64),
        (200, "RGB", 64, 64, 4, 32),
    ],
)
def test_the_rule_of_the_folder_recipe(
    tmp_path: Path, side: int, mode: str, size: int, width: int, patch: int, batch: int
) -> None:
    path = write_pictures(tmp_path, [f"{number}.png" for number in range(90)], side, mode)
    chosen = recipe("folder", path)
    assert options(chosen.data)["path"] == path
    assert (options(chosen.data)["size"], options(chosen.data)["channels"]) == ((size, size), 1 if mode == "L" else 3)
    assert (chosen.kind("network"), options(chosen.network)["width"]) == ("compact", width)
    assert (options(chosen.network)["patch"], options(chosen.training)["batch"]) == (patch, batch)
    assert options(chosen.training)["images"] == 200_000
    assert options(chosen.augment) == {"flip": True, "crop": 0}


def test_the_folder_recipe_with_a_size(pictures: str) -> None:
    chosen = recipe("folder", pictures, 64)
    assert (options(chosen.data)["size"], options(chosen.network)["patch"]) == (64, 4)
    assert options(chosen.augment)["flip"] is False  # there are classes, and some letters have a mirror image


@pytest.mark.parametrize("size", [0, -8, 5000])
def test_the_folder_recipe_with_a_size_that_cannot_be(pictures: str, size: int) -> None:
    with pytest.raises(UserError, match="size"):
        build_data(recipe("folder", pictures, size))


@pytest.mark.parametrize("count", [2, 20, 40, 71, 72])
def test_a_batch_is_never_more_than_the_training_set(tmp_path: Path, count: int) -> None:
    path = write_pictures(tmp_path, [f"{number}.png" for number in range(count)])
    chosen = recipe("folder", path)
    _, data = build_data(chosen)
    assert 1 <= options(chosen.training)["batch"] <= min(64, len(data.train))


def test_thirty_passes_over_many_pictures(tmp_path: Path) -> None:
    np.save(tmp_path / "0.npy", np.zeros((8, 8), np.uint8))
    for number in range(1, 7000):  # links cost nothing, and only few are looked at
        (tmp_path / f"{number}.npy").hardlink_to(tmp_path / "0.npy")
    assert options(recipe("folder", str(tmp_path)).training)["images"] == 210_000


def test_the_folder_recipe_needs_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needs a folder of pictures: give its path as `data`"):
        recipe("folder")
    with pytest.raises(UserError, match="does not exist"):
        recipe("folder", str(tmp_path / "absent"))
    with pytest.raises(UserError, match="contains no images"):
        recipe("folder", str(tmp_path))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (("optimizer=muon", "optimizer.weight_decay=0.2"), "weight_decay=0.2 now also holds"),
        (("variance=learned", "schedule=linear", "target=eps"), "the bound that teaches the variance"),
        (("optimizer=muon",), ""),
        ((), ""),
    ],
)
def test_corrected_formulas_are_said_of_older_recipes(settings: tuple[str, ...], told: str) -> None:
    new = recipe("digits").set(*settings)
    assert corrections(new) == []
    plain = json.loads(new.to_json())
    assert plain["version"] == 2
    old = Recipe.from_json(json.dumps({**plain, "version": 1}))
    assert (old.version, json.loads(old.to_json())["version"]) == (1, 1)
    assert [told in sentence for sentence in corrections(old)] == [True] * bool(told)


@pytest.mark.parametrize(
    ("schedule", "clock", "corrected"),
    [
        ("flow", "flow", False),
        ("edm", "edm", False),
        ("linear", "edm", False),
        ("cosine", "flow", True),
        ("sigmoid", "flow", True),
        ("linear-continuous", "flow", True),
    ],
)
def test_a_solver_of_before_keeps_its_clock_where_that_was_right(schedule: str, clock: str, corrected: bool) -> None:
    """Recipes from before solvers had a clock; one whose samples change says so."""
    plain = json.loads(recipe("points").set(f"schedule={schedule}", "solver=heun").to_json())
    assert plain["solver"].pop("clock") == "flow"
    plain["version"] = 1
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = Recipe.from_json(json.dumps(plain))
    assert found.solver == Heun(clock=clock)  # type: ignore[arg-type]
    assert [str(one.message) for one in said] == corrected * [
        f"Heun was inaccurate on this run's schedule, {type(found.schedule).__name__}, and is corrected: its samples "
        "differ from earlier ones"
    ]
    assert Recipe.from_json(found.to_json()) == found, "and then it is written down"


@pytest.mark.parametrize(
    ("settings", "times", "grid"),
    [
        (["schedule=edm"], LogNormal(), KarrasGrid()),
        (["schedule=laplace"], Uniform(), LogSNRGrid()),
        (["schedule=sigmoid"], Uniform(), LogSNRGrid()),
        (["schedule=cosine"], Uniform(), UniformGrid()),
        (["schedule=flow"], LogitNormal(), UniformGrid()),
        (["schedule=shifted"], LogitNormal(), LogSNRGrid()),
        (["schedule=edm", "times=logit-normal"], LogitNormal(), KarrasGrid()),
        (["schedule=edm", "times.mean=-1", "grid.rho=5"], LogNormal(mean=-1.0), KarrasGrid(rho=5.0)),
        (["schedule=edm", "grid=uniform"], LogNormal(), UniformGrid()),
    ],
)
def test_times_and_grid_follow_the_schedule_unless_they_are_chosen(
    settings: list[str], times: Times, grid: Grid
) -> None:
    for order in (settings, settings[::-1]):
        found = recipe("digits").set(*order)
        assert (found.times, found.grid) == (times, grid), order
    chosen = recipe("digits").set("times.mean=0.5", "grid=karras", "grid.rho=3").set("schedule=edm")
    assert (chosen.times, chosen.grid) == (LogitNormal(mean=0.5), KarrasGrid(rho=3.0)), "what was chosen stays"


def test_inputs_follow_the_schedule_unless_they_are_chosen() -> None:
    """The state of EDM grows to 80 and its clock with it, which the network never sees; runs of before keep theirs."""
    scaled = Inputs("unit", "log_snr")
    assert recipe("digits").set("schedule=edm", "target=edm").inputs == scaled
    assert recipe("digits").set("schedule=edm").set("schedule=flow").inputs == Inputs()
    assert recipe("digits").set("inputs.sigma_data=1", "schedule=edm").inputs == replace(scaled, sigma_data=1.0)
    assert recipe("digits").set("inputs.network_time=clock").set("schedule=edm").inputs == Inputs(network_time="clock")
    assert recipe("tutorial").set("schedule=cosine").inputs == Inputs(network_time="index")
    before = Recipe.from_json(recipe("digits").set("schedule=edm", "inputs.input_scale=none").to_json())
    assert before.set("sampling.steps=5").inputs == Inputs(network_time="log_snr")


@pytest.mark.parametrize(
    ("settings", "guidance"),
    [
        (["conditioning=none"], 1),
        (["conditioning.dropout=0"], 1),
        (["conditioning.dropout=0.2"], 1.5),
        (["lr=1e-3"], 1.5),
        (["conditioning=none", "guidance=3"], 3),  # which is refused where it is used
        (["sampling.guidance=3", "conditioning.dropout=0"], 3),
    ],
)
def test_guidance_is_off_without_conditions_to_drop_unless_it_is_chosen(settings: list[str], guidance: float) -> None:
    assert recipe("digits").set(*settings).sampling.guidance == guidance


@pytest.mark.parametrize(
    ("inputs", "cure"),
    [
        (Inputs(), "set inputs.input_scale=unit and inputs.network_time=log_snr"),
        (Inputs(network_time="log_snr"), "set inputs.input_scale=unit"),
        (Inputs("unit"), "set inputs.network_time=log_snr"),
    ],
)
def test_inputs_that_do_not_fit_are_warned_of(inputs: Inputs, cure: str) -> None:
    with pytest.warns(UserWarning, match=rf"on the schedule 'edm' .* {cure}$"):
        doubt_inputs(EDM(), inputs)
    doubt_inputs(EDM(), Inputs("unit", "clock"))
    doubt_inputs(RectifiedFlow(), inputs)


@pytest.mark.parametrize("schedule", sorted(set(KINDS["schedule"]) - {"table"}))
def test_times_and_grid_by_default_are_no_cause_for_doubt(schedule: str) -> None:
    found = recipe("digits").set(f"schedule={schedule}")
    doubt_times(found.schedule, found.times)
    doubt_grid(found.schedule, found.grid, 20)
    doubt_inputs(found.schedule, found.inputs)


def test_poor_times_and_grids_are_warned_of() -> None:
    with pytest.warns(UserWarning, match=r"only 0.0% of the times 'logit-normal' on .* 'edm'.*: set times=log-normal$"):
        doubt_times(EDM(), LogitNormal())
    with pytest.warns(UserWarning, match=r"last of 20 steps .* 'edm' begins at sigma/alpha 4,.*: set grid=karras$"):
        doubt_grid(EDM(), UniformGrid(), 20)
    with pytest.warns(UserWarning, match=r"'uniform' on the schedule 'laplace' .*: set grid=log-snr$"):
        doubt_grid(Laplace(), UniformGrid(), 20)
