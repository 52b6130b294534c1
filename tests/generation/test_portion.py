"""The portion in which samples are drawn: the rule on made-up timings, and what is measured of a network."""

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from torch import Tensor

from tests.conftest import MakeRecipe
from unfog.generation import portion as portions
from unfog.generation.portion import SIZES, first_good, measured, portion
from unfog.generation.sampler import Sampler
from unfog.recipes.recipe import Recipe
from unfog.recipes.settings import Sampling
from unfog.runs.run import begin, load, read_recipe, resume, train
from unfog.training.plan import plan

QUIET = Console(quiet=True)
TIMES = st.floats(1e-6, 1e3)


def timings(cost_of_call: float, cost_of_row: float) -> dict[int, float]:
    return {size: cost_of_call + cost_of_row * size for size in SIZES}


@pytest.mark.parametrize(
    ("costs", "best"),
    [
        (timings(0.0, 1.0), 16),  # large: one sample of 16 costs a quarter, a thousand as much as before
        (timings(1.0, 0.0), 64),  # tiny: only the calls cost anything
        (timings(1.0, 1.0), 64),  # 8 at a time would make a thousand 1.11 times as slow
        (timings(0.25, 1.0), 8),  # 8 at a time: 1.016 times; 16 make one sample only 3.95 times cheaper
        ({64: 64.0, 16: 8.0, 8: 2.0}, 16),  # more than in proportion
        ({64: 64.0, 16: 16.01, 8: 8.7, 4: 4.0}, 4),  # 16 are not cheap enough, and 8 slow a thousand
        ({64: math.inf, 16: 16.0, 8: 8.0}, 16),  # what memory holds
        (dict.fromkeys(SIZES, math.inf), 64),
    ],
)
def test_the_rule(costs: dict[int, float], best: int) -> None:
    assert portion(costs) == best


@given(st.fixed_dictionaries(dict.fromkeys(SIZES, TIMES)))
def test_what_is_chosen_keeps_both_promises_and_nothing_larger_does(costs: dict[int, float]) -> None:
    def keeps(size: int) -> bool:
        cheap = costs[size] <= costs[64] / 4
        return cheap and math.ceil(1000 / size) * costs[size] <= 1.05 * math.ceil(1000 / 64) * costs[64]

    good = [size for size in SIZES if keeps(size)]
    assert portion(costs) == max(good, default=64)


@given(TIMES, TIMES, st.sampled_from([2.0**-9, 0.5, 4.0]))
def test_only_ratios_count_and_no_more_is_measured_than_needed(call: float, row: float, scale: float) -> None:
    asked: list[int] = []
    costs = timings(call, row)

    def cost(size: int) -> float:
        asked.append(size)
        return costs[size]

    assert portion({size: scale * one for size, one in costs.items()}) == portion(costs) == first_good(cost)
    assert asked == list(SIZES[: len(asked)])
    smallest = asked[-1]
    slow = math.ceil(1000 / smallest) * costs[smallest] > 1.05 * math.ceil(1000 / 64) * costs[64]
    assert slow or smallest == portion(costs)
    assert all(math.ceil(1000 / one) * costs[one] <= 1.05 * 16 * costs[64] for one in asked[:-1])


# Measured


def slow(monkeypatch: pytest.MonkeyPatch, call: float, row: float) -> list[int]:
    """Let every evaluation take so many seconds, and note the rows of each."""
    seen: list[int] = []

    def took(sampler: Sampler, condition: Tensor | None, size: int) -> int:
        seen.append(size)
        return round(1e9 * (call + row * size))

    monkeypatch.setattr(portions, "_nanoseconds", took)
    return seen


def test_a_slow_network_is_timed_once_for_each_size(digits_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = load(digits_run, "cpu").sampler()
    seen = slow(monkeypatch, 0.0, 0.12)
    assert measured(sampler, None) == 16
    assert seen == [1, 1, 64, 16]  # the first evaluation is not counted if it is short
    seen = slow(monkeypatch, 0.0, 0.13)  # 64 rows would take more than eight seconds
    assert measured(sampler, None) == 16
    assert seen == [1, 1]
    seen = slow(monkeypatch, 1e-3, 0.0)
    assert measured(sampler, None) == 64
    assert seen == [size for size in (1, 64, 16) for _ in range(1 + 5)]


def test_choosing_kernels_is_not_timed(digits_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first evaluation of each size takes long, and all sizes cost the same."""
    seen: list[int] = []

    def took(sampler: Sampler, condition: Tensor | None, size: int) -> int:
        seen.append(size)
        return 10**6 if size in seen[:-1] else size * 10**7

    monkeypatch.setattr(portions, "_nanoseconds", took)
    assert measured(load(digits_run, "cpu").sampler(), None) == 64


def test_evaluations_are_those_of_the_sampler(digits_run: Path) -> None:
    """Of a whole portion, with guidance; and memory that does not hold it is no error."""
    sampler = load(digits_run, "cpu").sampler(guidance=2)
    seen: list[int] = []

    def full(_: object, inputs: tuple[Tensor, ...]) -> None:
        seen.append(len(inputs[0]))
        if len(inputs[0]) > 16:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    condition = sampler.condition(1)
    hook = sampler.denoiser.network.register_forward_pre_hook(full)  # type: ignore[attr-defined]
    try:
        assert portions._nanoseconds(sampler, condition, 4) < 10**11
        assert sum(seen) == 8
        assert measured(sampler, condition) == 8
    finally:
        hook.remove()
    wrong = sampler.denoiser.network.register_forward_pre_hook(lambda _, __: 1 / 0)  # type: ignore[attr-defined]
    with pytest.raises(ZeroDivisionError):
        portions._nanoseconds(sampler, condition, 4)
    wrong.remove()


# In a recipe


@pytest.fixture
def unset(tiny: MakeRecipe) -> Recipe:
    """A recipe that leaves the portion open."""
    return tiny("sampling.batch=null", "training.images=64")


def test_a_new_run_records_what_was_measured(unset: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow(monkeypatch, 0.0, 0.1)
    run = train(unset, tmp_path / "run", device="cpu", console=QUIET)
    assert json.loads((run.path / "recipe.json").read_text())["sampling"]["batch"] == 16
    assert [len(part) for part in run.sampler().batches(run.sampler().condition(20), 20)] == [16, 4]
    begun = begin(unset, tmp_path / "begun", device="cpu")
    assert begun.recipe.sampling.batch == read_recipe(tmp_path / "begun").sampling.batch == 16
    rows = torch.randint(0, 256, (40, 1, 8, 8), dtype=torch.uint8)
    plain = unset.set("conditioning=none", "sampling.guidance=1")
    own = train(plain, tmp_path / "own", dataset=rows, device="cpu", console=QUIET)
    assert own.recipe.sampling.batch == 16
    slow(monkeypatch, 0.1, 0.0)
    assert train(unset, tmp_path / "tiny", device="cpu", console=QUIET).recipe.sampling.batch == 64


def test_nothing_is_measured_where_the_portion_is_known(
    tiny: MakeRecipe, unset: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was set, or the run is an old one."""
    seen = slow(monkeypatch, 0.0, 0.1)
    run = train(tiny("sampling.batch=24", "training.images=64"), tmp_path / "set", device="cpu", console=QUIET)
    assert run.recipe.sampling.batch == 24
    plain = json.loads((run.path / "recipe.json").read_text())
    del plain["sampling"]["batch"]
    plain["training"]["images"] = 128
    (run.path / "recipe.json").write_text(json.dumps(plain))
    assert load(run.path, "cpu").sampler().size == 64
    assert resume(run.path, device="cpu", console=QUIET).sampler().size == 64
    assert seen == []


def test_weights_do_not_depend_on_the_portion(
    tiny: MakeRecipe, unset: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = []
    for name, row in (("large", 1.0), ("small", 0.0)):
        slow(monkeypatch, 1.0 - row, row)
        files.append(train(unset, tmp_path / name, device="cpu", console=QUIET).path / "model.safetensors")
    monkeypatch.undo()
    files.append(train(unset, tmp_path / "measured", device="cpu", console=QUIET).path / "model.safetensors")
    usual = tiny("training.images=64")
    files.append(train(usual, tmp_path / "usual", device="cpu", console=QUIET).path / "model.safetensors")
    assert len({file.read_bytes() for file in files}) == 1


def test_a_model_that_draws_nothing_is_not_measured(
    tiny: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = slow(monkeypatch, 0.0, 0.1)
    small = ("network=autoencoder", "objective=reconstruction", "conditioning=none", "network.widths=[8,8]")
    begun = begin(tiny(*small, "sampling.batch=null"), tmp_path / "run", device="cpu")
    assert begun.recipe.sampling.batch == 64
    assert seen == []


def test_a_plan_says_how_many_are_drawn_at_a_time(
    tiny: MakeRecipe, unset: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow(monkeypatch, 0.0, 0.1)
    assert "\nportion 16 samples are drawn at a time: one sample takes at most a quarter" in plan(unset).table()
    slow(monkeypatch, 0.1, 0.0)
    assert "\nportion 64 samples are drawn at a time: with fewer, one sample would hardly" in plan(unset).table()
    assert "\nportion 24 samples are drawn at a time: as set" in plan(tiny("sampling.batch=24")).table()


def test_a_recipe_is_open_about_it_until_then() -> None:
    assert (Sampling().batch, Sampling().portion, Sampling(batch=8).portion) == (None, 64, 8)
