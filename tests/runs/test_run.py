"""A run folder is a model: samples that do not depend on the request, and folders that are refused in a sentence."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import unfog
from unfog.data.modality import images
from unfog.diffusion.denoiser import Condition, Denoiser
from unfog.diffusion.oracle import Mixture, MixtureDenoiser
from unfog.diffusion.targets import Prediction, V
from unfog.generation.drawing import Moment
from unfog.generation.sampler import Sampler
from unfog.recipes.conditions import NoConditioning
from unfog.recipes.kinds import KINDS, class_of
from unfog.recipes.presets import recipe
from unfog.reports.film import STILLS, Film, Still, film
from unfog.runs.run import Run, load
from unfog.runtime.device import Precision
from unfog.runtime.errors import UserError

SOLVERS = sorted(KINDS["solver"])
GRIDS = sorted(set(KINDS["grid"]) - {"times"})  # that one is a list of times and no rule
ON_GRIDS = [
    # the adaptive rule takes many steps of its own, whatever the grid
    pytest.param(solver, grid, marks=pytest.mark.slow if solver == "rk45" and grid != "uniform" else [])
    for solver in SOLVERS
    for grid in GRIDS
]


@pytest.fixture(scope="module")
def flow(digits_run: Path) -> Run:
    return load(digits_run, "cpu")


@pytest.fixture(scope="module")
def table(table_run: Path) -> Run:
    return load(table_run, "cpu")


# The same picture in every request


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_a_picture_is_the_same_in_every_request(digits_run: Path, precision: Precision, guidance: float) -> None:
    run = load(digits_run, "cpu", precision)
    assert run.precision == precision
    labels = [index % 8 for index in range(70)]  # those of sample i and of sample 64 + i are one
    whole = run.sample(70, labels, guidance=guidance)  # two batches
    assert whole.shape == (70, 1, 8, 8)
    assert whole.dtype == torch.uint8
    for count in (1, 7, 64):
        assert torch.equal(run.sample(count, labels[:count], guidance=guidance), whole[:count])
    assert not torch.equal(whole[0], whole[8])  # of one class, and yet another picture
    assert not torch.equal(whole[:6], whole[64:])


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_stochastic_solver_draws_for_each_picture(table_run: Path, precision: Precision) -> None:
    run = load(table_run, "cpu", precision)
    whole = run.sample(70, 3, solver="ancestral")
    for count in (1, 7, 64):
        assert torch.equal(run.sample(count, 3, solver="ancestral"), whole[:count])
    assert not torch.equal(whole, run.sample(70, 3, solver="ddim"))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_state_is_the_same_to_the_last_bit(table_run: Path, precision: Precision) -> None:
    # pixels are rounded, so the states before them say more
    run = load(table_run, "cpu", precision)
    sampler = run.sampler(guidance=1.5)
    alike, mixed = torch.full((64,), 5), torch.arange(5, 69) % 10
    with run.arithmetic():
        first, second = (list(sampler.steps(0, labels)) for labels in (alike, mixed))
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.x[::10], other.x[::10])
    assert not torch.equal(first[-1].x[1], second[-1].x[1])


def test_steps_taken_one_by_one_leave_the_callers_gradients_on(flow: Run) -> None:
    sampler = flow.sampler()
    steps = sampler.steps(0, sampler.condition(64))
    next(steps)
    between = torch.is_inference_mode_enabled()
    steps.close()  # type: ignore[attr-defined]
    assert not between
    assert not torch.is_inference_mode_enabled()


def test_the_precision_is_that_of_the_network(table_run: Path) -> None:
    states = []
    for precision in ("float32", "bfloat16"):
        run = load(table_run, "cpu", precision)
        with run.arithmetic():
            states.append(list(run.sampler().steps(0, torch.zeros(64, dtype=torch.long)))[-1].x)
    assert states[0].dtype == states[1].dtype == torch.float32
    assert not torch.equal(states[0], states[1])
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0.2)


def test_the_precision_is_the_recipes_unless_another_is_asked_for(digits_run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(digits_run, tmp_path / "run")
    assert load(folder, "cpu").precision == "float32"
    recipe = json.loads((folder / "recipe.json").read_text())
    recipe["training"]["precision"] = "bfloat16"
    (folder / "recipe.json").write_text(json.dumps(recipe))
    assert load(folder, "cpu").precision == "bfloat16"
    assert load(folder, "cpu", "float32").precision == "float32"


def test_the_batch_of_a_recipe_is_what_goes_through_the_network(flow: Run) -> None:
    seen: list[int] = []
    hook = flow.denoiser.network.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))  # type: ignore[attr-defined]
    try:
        flow.sample(70, steps=1, guidance=1)
        flow.sample(1, steps=1, guidance=1)
    finally:
        hook.remove()
    assert seen == [64, 64, 64]


@pytest.mark.parametrize(("batch", "holds", "tried"), [(64, 20, [64, 32, 16]), (10, 3, [10, 5, 2])])
def test_a_batch_that_memory_does_not_hold_is_drawn_in_portions(
    flow: Run, batch: int, holds: int, tried: list[int]
) -> None:
    sampler = flow.sampler(steps=2, guidance=1)
    sampler = replace(sampler, settings=replace(sampler.settings, batch=batch))
    whole, seen = sampler(batch + 3), []

    def full(_: object, inputs: tuple[Tensor, ...]) -> None:
        seen.append(len(inputs[0]))
        if len(inputs[0]) > holds:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    hook = flow.denoiser.network.register_forward_pre_hook(full)  # type: ignore[attr-defined]
    try:
        with pytest.warns(UserWarning, match="samples at a time do not fit the memory") as said:
            parts = list(sampler.batches(sampler.condition(batch + 3), batch + 3))
    finally:
        hook.remove()
    assert [len(part) for part in parts] == [batch, 3]  # as if memory were enough
    assert (torch.cat(parts).int() - whole.int()).abs().max() <= 1
    portions = -(-batch // tried[-1])
    assert seen == tried[:-1] + 2 * 2 * portions * tried[-1:]  # two steps of two batches
    assert len(said) == len(tried) - 1


def test_a_sample_that_memory_does_not_hold_is_an_error(flow: Run) -> None:
    def full(_: object, inputs: tuple[Tensor, ...]) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    hook = flow.denoiser.network.register_forward_pre_hook(full)  # type: ignore[attr-defined]
    try:
        with pytest.warns(UserWarning, match="do not fit the memory"), pytest.raises(torch.OutOfMemoryError):
            flow.sample(1, steps=1)
    finally:
        hook.remove()


def test_seeds_differ_and_repeat(flow: Run) -> None:
    first = flow.sample(4, seed=1)
    assert torch.equal(first, flow.sample(4, seed=1))
    for seed in (0, 2, -1, 1 + 2**40):  # more than 32 bits count
        assert not torch.equal(first, flow.sample(4, seed=seed))


def test_guidance_of_one_is_off_and_others_change_the_samples(flow: Run) -> None:
    assert torch.equal(flow.sample(4), flow.sample(4, guidance=1.5))  # the recipe's own
    assert not torch.equal(flow.sample(4, guidance=1), flow.sample(4, guidance=3))


# Labels


def test_labels_are_one_for_all_or_one_for_each_or_in_turn(flow: Run) -> None:
    turn = flow.sample(12)
    assert torch.equal(turn, flow.sample(12, [index % 10 for index in range(12)]))
    threes = flow.sample(12, 3)
    assert torch.equal(threes, flow.sample(12, [3] * 12))
    assert torch.equal(threes[3], turn[3])
    assert not torch.equal(threes[4], turn[4])


@pytest.mark.parametrize(
    ("label", "sentence"),
    [
        (10, "label 10 is out of range.*0 to 9"),
        (-1, "label -1 is out of range"),
        ([0, 99], "label 99 is out of range"),
        ([0, 1, 2], "3 labels or prompts do not fit 2 samples"),
        ([], "0 labels or prompts do not fit 2 samples"),
    ],
)
def test_labels_that_do_not_fit_are_refused(flow: Run, label: int | list[int], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        flow.sample(2, label)


def test_an_unconditional_run_takes_neither_label_nor_guidance(unconditional_run: Path) -> None:
    run = load(unconditional_run, "cpu")
    assert run.sample(3).shape == (3, 1, 8, 8)
    with pytest.raises(UserError, match="trained without conditions: omit the condition"):
        run.sample(3, 0)
    with pytest.raises(UserError, match="guidance needs a model that was trained with conditions"):
        run.sample(3, guidance=2)


# Every solver and every grid


@pytest.mark.parametrize(("solver", "grid"), ON_GRIDS)
@pytest.mark.parametrize("kind", ["flow", "table"])
def test_every_solver_runs_on_every_grid(kind: str, solver: str, grid: str, request: pytest.FixtureRequest) -> None:
    run: Run = request.getfixturevalue(kind)
    sampler = run.sampler(solver=solver, grid=grid, steps=5)
    steps = list(sampler.steps(0, sampler.condition(64)))
    assert len(steps) == 5
    assert all(step.x.isfinite().all() for step in steps)
    assert all(step.s < step.t for step in steps)
    assert float(steps[-1].s) == 0
    assert steps[-1].x.abs().max() <= 1.5  # x0 is clipped, so the end lies near the data
    assert torch.equal(run.sample(3, solver=solver, grid=grid, steps=5), sampler.codec.decode(steps[-1].x[:3]))


def test_a_velocity_solver_on_a_table_walks_the_clock_of_the_flow(table: Run) -> None:
    # there Euler is DDIM at the same noise levels
    euler, ddim = table.sampler(solver="euler", steps=10), table.sampler(solver="ddim", steps=10)
    labels = euler.condition(64)
    last = [list(sampler.steps(0, labels))[-1].x for sampler in (euler, ddim)]
    torch.testing.assert_close(last[0], last[1], rtol=0, atol=2e-3)
    schedule = table.denoiser.schedule
    first = next(iter(euler.steps(0, labels)))
    alpha, sigma = schedule.numbers(1.0)
    assert float(first.t) == pytest.approx(sigma / (alpha + sigma))


MEAN = (-0.6, -0.6)
MIXED = Mixture(
    torch.tensor([0.5, 0.5]).double(),
    torch.tensor([[-0.9, -0.6], [-0.3, -0.6]]).double(),
    torch.full((2, 2), 0.01).double(),
)


class Exact(Denoiser):
    """The exact denoiser of the mixture, as a run holds it."""

    def forward(self, x: Tensor, t: Tensor, cond: Condition | None = None) -> Prediction:
        return MixtureDenoiser(MIXED, self.schedule)(x, t)


def test_a_request_on_a_grid_that_is_too_coarse_is_warned_of() -> None:
    chosen = recipe("points").set("schedule=edm", "target=edm", "grid=uniform", "sampling.steps=20")
    chosen = replace(chosen, shape=(2,), conditioning=NoConditioning())
    with pytest.warns(UserWarning, match=r"last of 20 steps of the grid 'uniform' .* set grid=karras"):
        Sampler.of(chosen, Exact(torch.nn.Linear(1, 1), chosen.schedule)).check(None)
    chosen = chosen.set("grid=karras")
    Sampler.of(chosen, Exact(torch.nn.Linear(1, 1), chosen.schedule)).check(None)


def test_python_warns_of_such_a_grid_as_the_shell_does(flow: Run) -> None:
    """`unfog.sample`, and the samples and edits of a run; Python itself says it once."""
    chosen = flow.recipe.set("schedule=edm", "target=edm", "grid=uniform")
    model = unfog.Denoiser(flow.denoiser.network, unfog.EDM(), embedder=flow.denoiser.embedder)
    run = replace(flow, recipe=chosen, model=model)
    sentence = r"last of 20 steps of the grid 'uniform' .* set grid=karras"
    with pytest.warns(UserWarning, match=sentence) as said:
        run.sample(1, steps=20)
    assert len(said) == 1
    with pytest.warns(UserWarning, match=sentence):
        run.restyle(torch.zeros(1, 8, 8, dtype=torch.uint8), steps=20, strength=0.1, label=1)
    with pytest.warns(UserWarning, match=sentence):
        unfog.sample(Exact(torch.nn.Linear(1, 1), unfog.EDM()), (2, 2), 20, grid="uniform")
    run.sample(1, steps=20, grid="karras")
    unfog.sample(Exact(torch.nn.Linear(1, 1), unfog.EDM()), (2, 2), 20)


@pytest.mark.filterwarnings("ignore:the last of 20 steps")
@pytest.mark.parametrize("solver", ["euler", "heun", "adams-bashforth", "euler-ancestral", "rk45"])
@pytest.mark.parametrize("kind", ["sigmoid", "laplace", "cosine", "shifted", "zero-terminal-snr", "edm"])
def test_a_velocity_solver_of_a_run_finds_the_mean_whatever_the_schedule(kind: str, solver: str) -> None:
    """Its clock is the flow's; on the schedule's own 20 steps ended up to 100 away from a mean that is not zero."""
    chosen = recipe("points").set(f"schedule={kind}", f"solver={solver}", "grid=uniform", "sampling.steps=20")
    chosen = replace(chosen, shape=(2,), target=V(), conditioning=NoConditioning(), classes=())
    sampler = Sampler.of(chosen, Exact(torch.nn.Linear(1, 1), chosen.schedule, V()))
    x = list(sampler.steps(0, None))[-1].x
    assert x.mean(0).tolist() == pytest.approx(MEAN, abs=0.08), "of 1024 samples"
    drawn = unfog.sample(sampler.denoiser, (1024, 2), 20, solver=solver, grid="uniform")
    assert drawn.mean(0).tolist() == pytest.approx(MEAN, abs=0.08)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"solver": "dimm"}, "unknown solver 'dimm': did you mean 'ddim'"),
        ({"grid": "karas"}, "unknown grid 'karas': did you mean 'karras'"),
        ({"steps": 0}, r"sampling\.steps must be above 0, not 0"),
        ({"guidance": float("nan")}, "guidance.*nan"),
        ({"guidance": -0.5}, "guidance.*-0.5"),
    ],
)
def test_settings_that_cannot_be_met_are_refused(flow: Run, change: dict[str, str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        flow.sample(1, **change)  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [0, -1])
def test_a_count_below_one_is_refused(flow: Run, count: int) -> None:
    with pytest.raises(UserError, match="must be a whole number, 1 or more"):
        flow.sample(count)


def test_points_come_as_coordinates(points_run: Path) -> None:
    run = load(points_run, "cpu")
    points = run.sample(1030)  # two batches
    assert points.shape == (1030, 2)
    assert points.dtype == torch.float32
    assert torch.equal(run.sample(5), points[:5])
    assert points.isfinite().all()


# Films


@pytest.mark.parametrize("solver", ["dpmpp-2m", "ancestral", "heun"])
@pytest.mark.parametrize("kind", ["flow", "table"])
def test_a_film_ends_at_the_sample(kind: str, solver: str, request: pytest.FixtureRequest) -> None:
    run: Run = request.getfixturevalue(kind)
    stills = film(run.sampler(solver=solver, steps=6, seed=4), 3, 7).stills
    assert len(stills) == 7
    assert all(still.x.shape == still.x0.shape == still.state.shape == (3, 1, 8, 8) for still in stills)
    times = [still.t for still in stills]
    assert times == sorted(times, reverse=True)
    assert times[-1] == 0
    assert torch.equal(stills[-1].state, stills[-1].guess)
    assert torch.equal(stills[-1].x, run.sample(3, 7, solver=solver, steps=6, seed=4))
    assert not torch.equal(stills[0].x, stills[-1].x)


@pytest.mark.parametrize("solver", ["dpmpp-2m", "ancestral", "heun"])
def test_a_film_shows_every_step_of_the_denoising(flow: Run, solver: str) -> None:
    sampler = flow.sampler(solver=solver, steps=6, seed=4)
    stills = film(sampler, 3, 7).stills
    steps = list(sampler.steps(0, sampler.padded(sampler.condition(3, 7), 0)))
    assert torch.equal(stills[0].state, sampler.start(0, sampler.denoiser.schedule, steps[0].t)[:3])
    for before, step, after in zip(stills[:-1], steps, stills[1:], strict=True):
        assert (before.t, after.t) == (step.t, step.s)
        assert torch.equal(before.guess, step.prediction.x0[:3])
        assert torch.equal(after.state, step.x[:3])


@pytest.mark.parametrize("count", [0, 65])
def test_a_film_of_too_many_or_no_samples_is_refused(flow: Run, count: int) -> None:
    with pytest.raises(UserError, match="a film shows 1 to 64 samples"):
        film(flow.sampler(), count)


@pytest.mark.parametrize("solver", ["dpmpp-2m", "ancestral"])
@pytest.mark.parametrize("count", [1, 4, 7, 8])
def test_a_film_of_several_batches_ends_at_their_samples(flow: Run, solver: str, count: int) -> None:
    """Also each earlier moment is that of a film of one batch."""
    sampler = flow.sampler(solver=solver, steps=3, seed=4, batch=4)
    stills = film(sampler, count).stills
    assert torch.equal(stills[-1].x, sampler(count))
    for still, alone in zip(stills, film(sampler, min(count, 4)).stills, strict=True):
        assert torch.equal(still.state[:4], alone.state)
        assert torch.equal(still.guess[:4], alone.guess)
    with pytest.raises(UserError, match="a film shows 1 to 64 samples, not 65"):
        film(sampler, 65)


@pytest.mark.parametrize("steps", [1, 3, 12])
def test_a_film_has_a_frame_for_each_time_and_a_strip_of_at_most_eight(flow: Run, steps: int) -> None:
    shot = film(flow.sampler(steps=steps), 2)
    assert len(shot.frames()) == steps + 1
    ((wide, tall),) = {frame.size for frame in shot.frames()}
    assert wide > (2 * 9 + 1) * 8  # the names of the rows, and two pictures of 8 pixels and their gaps
    assert 0 < tall - 3 * (9 * 8 + 8 + 2) < 30  # the time
    width, height = shot.strip().size
    columns = min(8, steps + 1)
    assert 0 < width - columns * (9 * 8) - 8 < 250  # the names of the rows, and pictures of 8 pixels and their gaps
    assert 0 < height - 6 * (9 * 8 + 8 + 2) < 50  # the title


def test_a_film_shows_what_each_step_changes() -> None:
    """Grey where nothing happens, white where most is added; nothing follows the last moment."""
    x = torch.full((2, 1, 1, 1, 2), 128, dtype=torch.uint8)
    x[1, 0, 0, 0] = torch.tensor([191, 96])
    shot = Film(tuple(Still(1.0 - place, one, one, one, one) for place, one in enumerate(x)), images)
    change = shot.rows(0)[2].flatten().tolist()
    assert change == [255, 63]
    assert shot.rows(1)[2].flatten().tolist() == [128, 128]


def test_a_long_film_keeps_some_moments(flow: Run) -> None:
    """First and last among them, evenly spread, and the last is still the sample."""
    shot = film(flow.sampler(steps=150), 1)
    assert len(shot.stills) == STILLS
    assert torch.equal(shot.stills[-1].x, flow.sample(1, steps=150))
    assert shot.stills[0].t == film(flow.sampler(steps=1), 1).stills[0].t


@pytest.mark.parametrize("last", [1, 2, 58, 59, 60, 61, 118, 1000])
def test_kept_moments(last: int) -> None:
    x = torch.zeros(1)
    kept = [number for number in range(last + 1) if Moment(0.0, x, x, number, last).kept(60)]
    assert len(kept) == min(60, last + 1)
    assert (kept[0], kept[-1]) == (0, last)
    assert np.diff(kept).max() - np.diff(kept).min() <= 1


def test_a_film_of_points(points_run: Path) -> None:
    run = load(points_run, "cpu")
    shot = film(run.sampler(), 100)
    assert len(shot.frames()) == 5
    assert shot.strip().size == (5 * 160, 2 * 160)


# Folders that are no run


def test_load_returns_the_averaged_weights_ready_to_sample(digits_run: Path) -> None:
    run = unfog.load(str(digits_run), "cpu")
    weights = load_file(digits_run / "model.safetensors")
    assert run.denoiser.state_dict().keys() == weights.keys()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in run.denoiser.state_dict().items())
    assert not run.denoiser.training
    assert run.recipe.shape == (1, 8, 8)
    assert run.recipe.classes == tuple("0123456789")


def no_recipe(run: Path) -> None:
    (run / "recipe.json").unlink()


def newer(run: Path) -> None:
    _change(run, version=999)


def damaged(run: Path) -> None:
    (run / "recipe.json").write_text((run / "recipe.json").read_text()[:-20])


def not_text(run: Path) -> None:
    (run / "recipe.json").write_bytes(b"\xff\xfe\x00\x01")


def a_list(run: Path) -> None:
    (run / "recipe.json").write_text("[1, 2]")


def no_shape(run: Path) -> None:
    _change(run, shape=None)


def empty_shape(run: Path) -> None:
    _change(run, shape=[])


def unknown_kind(run: Path) -> None:
    _change(run, schedule={"kind": "lineer"})


def unknown_option(run: Path) -> None:
    _change(run, network={"kind": "compact", "widht": 8})


def no_weights(run: Path) -> None:
    (run / "model.safetensors").unlink()


def truncated_weights(run: Path) -> None:
    (run / "model.safetensors").write_bytes((run / "model.safetensors").read_bytes()[:-1000])


def empty_weights(run: Path) -> None:
    (run / "model.safetensors").write_bytes(b"")


def other_shapes(run: Path) -> None:
    plain = json.loads((run / "recipe.json").read_text())
    _change(run, network={**plain["network"], "width": 16})


def other_names(run: Path) -> None:
    weights = load_file(run / "model.safetensors")
    weights["stranger"] = weights.pop("network.patch_out.bias")
    save_file(weights, run / "model.safetensors")


def fewer_classes(run: Path) -> None:
    _change(run, classes=["a", "b"])


def _change(run: Path, **changes: object) -> None:
    plain = json.loads((run / "recipe.json").read_text())
    (run / "recipe.json").write_text(json.dumps({**plain, **changes}))


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (no_recipe, r"is no run folder \(it has no recipe\.json\)"),
        (newer, r"recipe\.json: .*version is newer.*update unfog"),
        (damaged, r"recipe\.json: the recipe is not valid JSON"),
        (not_text, r"recipe\.json: the recipe is not valid JSON"),
        (a_list, r"recipe\.json: the recipe has no version"),
        (no_shape, r"recipe\.json: the recipe names no shape"),
        (empty_shape, r"recipe\.json: .*shape"),
        (unknown_kind, r"recipe\.json: unknown schedule 'lineer': did you mean 'linear'"),
        (unknown_option, r"recipe\.json: unknown option .*'widht': did you mean 'width'"),
        (no_weights, r"model\.safetensors is missing"),
        (truncated_weights, r"model\.safetensors is damaged or truncated"),
        (empty_weights, r"model\.safetensors is damaged or truncated"),
        (other_shapes, r"model\.safetensors does not match the recipe.*the weight .* has the shape"),
        (other_names, r"model\.safetensors does not match the recipe.*the weight .* is only in one of them"),
        (fewer_classes, r"model\.safetensors does not match the recipe.*embedder\.table\.weight"),
    ],
)
def test_a_broken_run_folder_is_refused_in_one_sentence(
    broken: Path, damage: Callable[[Path], None], sentence: str
) -> None:
    assert load(broken, "cpu").path == broken
    damage(broken)
    with pytest.raises(UserError, match=sentence) as refused:
        load(broken, "cpu")
    assert str(broken) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_folder_that_does_not_exist_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no run folder"):
        load(tmp_path / "nowhere", "cpu")


# Requests in other forms


def test_labels_of_numpy_are_labels(digits_run: Path) -> None:
    run = load(digits_run, "cpu")
    assert torch.equal(run.sample(2, np.int64(3)), run.sample(2, [3, 3]))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="conditioned on labels, whole numbers"):
        run.sample(1, [3.9])  # type: ignore[list-item]


def test_naming_the_recipes_own_solver_keeps_its_options(digits_run: Path, broken: Path) -> None:
    recipe = load(digits_run, "cpu").recipe.set("solver=ddim", "solver.eta=0.5")
    (broken / "recipe.json").write_text(recipe.to_json())
    run = load(broken, "cpu")
    assert run.sampler(solver="ddim").solver == run.sampler().solver
    assert run.sampler(solver="euler").solver != run.sampler().solver


# Guidance of other kinds


def test_cfg_plus_plus_keeps_the_unconditional_noise_behind_clipping(flow: Run) -> None:
    sampler = flow.sampler(solver="ddim")
    plus = replace(sampler, settings=replace(sampler.settings, guidance_kind="cfg++", guidance=0.6))
    labels = plus.condition(64)
    assert labels is not None
    x, t = 2 * torch.randn(64, 1, 8, 8), torch.tensor(0.7, dtype=torch.float64)
    embedder = flow.denoiser.embedder
    assert embedder is not None
    free = flow.denoiser(x, t, embedder.null(64))
    found = plus.denoise(labels)[0](x, t)
    torch.testing.assert_close(found.eps, free.eps)
    assert found.x0.abs().max() <= 1
    assert torch.isfinite(list(plus.steps(0, labels))[-1].x).all()
    with pytest.raises(UserError, match="ddim or ancestral"):
        replace(plus, solver=class_of("solver", "dpmpp-2m")()).denoise(labels)


def test_guidance_on_an_interval_costs_two_evaluations_only_there(flow: Run) -> None:
    """Of ten steps at 1, 0.9 ... 0.1 those at 0.6, 0.5 and 0.4 are guided."""
    sampler = flow.sampler(solver="ddim", steps=10, guidance=2.0)
    part = replace(sampler, settings=replace(sampler.settings, guidance_interval=(0.35, 0.65)))
    rows: list[int] = []
    listener = flow.denoiser.network.register_forward_hook(lambda module, given, out: rows.append(len(out)))
    part(4)
    listener.remove()
    batch = sampler.size
    assert rows == [2 * batch if number in (4, 5, 6) else batch for number in range(10)]


def test_the_adaptive_rule_gives_each_picture_its_own_steps(flow: Run) -> None:
    """The states of a row are equal to the bit beside other labels."""
    sampler = flow.sampler(solver="rk45", steps=1)
    alike, mixed = torch.full((64,), 5), torch.arange(5, 69) % 10
    first, second = (next(sampler.steps(0, labels)).x for labels in (alike, mixed))
    assert torch.equal(first[::10], second[::10])
    assert not torch.equal(first[1], second[1])


@pytest.mark.parametrize("progress", [False, lambda done, of: None], ids=["silent", "watched"])
@pytest.mark.parametrize(
    ("count", "sentence"),
    [
        (10**12, r"1,000,000,000,000 samples take .* GiB and .* are free: draw fewer at a time"),
        (1.5, "the number of samples must be a whole number, 1 or more, not 1.5"),
        (0, "the number of samples must be a whole number, 1 or more, not 0"),
        ("4", "the number of samples must be a whole number, 1 or more, not '4'"),
    ],
)
def test_a_number_of_samples_that_cannot_be(flow: Run, count: int, sentence: str, progress: Any) -> None:
    with pytest.raises(UserError, match=sentence):
        flow.sample(count, label=3, progress=progress)


def test_numbers_of_any_integer_type(flow: Run) -> None:
    wanted = flow.sample(2, label=3, seed=5, steps=2)
    assert torch.equal(flow.sample(np.int64(2), label=3, seed=np.int64(5), steps=np.int32(2)), wanted)
    for seed in (None, 2**64, "5"):
        with pytest.raises(UserError, match="a seed must be"):
            flow.sample(2, label=3, seed=seed, steps=2)  # type: ignore[typeddict-item]
