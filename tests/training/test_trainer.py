"""Training: draws, accumulation, averages, checkpoints, and runs that are stopped and go on to the bit."""

import dataclasses
import io
import json
import math
import os
import pty
import select
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from tests.conftest import MakeRecipe, until
from tests.forked import Forked
from unfog.data.source import Data, InMemory
from unfog.generation.sampler import Sampler
from unfog.recipes.build import build_data
from unfog.recipes.objective import Draw
from unfog.recipes.optimizers import AdamW
from unfog.recipes.presets import recipe
from unfog.recipes.recipe import Recipe
from unfog.recipes.settings import ExponentialAverage, PowerAverage
from unfog.runs.run import load, read_recipe, resume, train
from unfog.runtime.device import channels_last, choose_device, choose_precision, keep_memory
from unfog.runtime.errors import EnvironmentFailure, Stopped, UserError
from unfog.runtime.randomness import normal_on
from unfog.runtime.tensors import write_tensors
from unfog.training import checkpoint, loop
from unfog.training.draws import Draws, ahead, pinned
from unfog.training.ema import Averaged
from unfog.training.metrics import Metrics, read_metrics
from unfog.training.objectives.denoising import HISTORY
from unfog.training.trainer import Trainer

QUIET = Console(quiet=True)


def trainer_of(recipe: Recipe, folder: Path, device: str = "cpu") -> Trainer:
    found, data = build_data(recipe)
    return Trainer(found, data, folder, choose_device(device))


def copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in tensors.items()}


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def moments(trainer: Trainer) -> dict[str, Tensor]:
    names = [name for name, _ in trainer.denoiser.named_parameters()]
    return copied(checkpoint.optimizer_tensors(trainer.optimizers["loss"], names))


def assert_draws_equal(first: Draw, second: Draw) -> None:
    assert first.changes is None
    assert second.changes is None
    for mine, other in zip(first._replace(changes=first.u), second._replace(changes=second.u), strict=True):
        assert mine is not None
        assert other is not None
        assert torch.equal(mine, other)


# Draws


@pytest.fixture
def draws(tiny: MakeRecipe, tmp_path: Path) -> Draws:
    return trainer_of(tiny("augment.flip=true", "augment.crop=1"), tmp_path).draws


def test_a_draw_is_a_function_of_seed_and_step(draws: Draws) -> None:
    forward = {step: draws(step) for step in (0, 3, 50)}
    backward = {step: dataclasses.replace(draws)(step) for step in (50, 3, 0)}
    for step, draw in forward.items():
        assert_draws_equal(draw, backward[step])
    other = dataclasses.replace(draws, seed=draws.seed + 1)(3)
    for name in ("x0", "condition", "u", "noise"):
        assert not torch.equal(getattr(forward[3], name), getattr(forward[0], name)), name
        assert not torch.equal(getattr(forward[3], name), getattr(other, name)), name


def test_a_draw_does_not_depend_on_the_global_generator(draws: Draws) -> None:
    torch.manual_seed(1)
    first = draws(2)
    torch.manual_seed(2)
    assert_draws_equal(first, draws(2))


def test_a_draw_has_the_shapes_and_ranges_that_it_promises(draws: Draws) -> None:
    x0, labels, drop, u, noise, changes, numbers = draws(1)
    assert changes is None
    assert numbers is not None
    assert numbers.tolist() == list(range(32, 64))
    assert x0.shape == noise.shape == (32, 1, 8, 8)
    assert x0.min() >= -1
    assert x0.max() <= 1
    assert labels is not None
    assert labels.shape == drop.shape == u.shape == (32,)
    assert drop.dtype == torch.bool
    assert u.dtype == torch.float64


def test_stratified_times_fall_into_equal_parts(draws: Draws) -> None:
    assert torch.equal((draws(4).u * 32).floor(), torch.arange(32.0, dtype=torch.float64))
    free = dataclasses.replace(draws, stratified=False)(4).u
    assert ((free >= 0) & (free < 1)).all()
    assert not torch.equal((free * 32).floor().sort().values, torch.arange(32.0, dtype=torch.float64))


def test_labels_are_forgotten_at_the_rate_that_was_asked_for(draws: Draws) -> None:
    assert not dataclasses.replace(draws, dropout=0.0)(0).drop.any()
    assert dataclasses.replace(draws, dropout=1.0)(0).drop.all()
    share = torch.cat([dataclasses.replace(draws, dropout=0.3)(step).drop for step in range(60)]).double().mean()
    assert abs(share - 0.3) < 4 * math.sqrt(0.3 * 0.7 / 1920)


def test_an_epoch_shows_each_row_once(draws: Draws) -> None:
    rows = InMemory(torch.arange(64, dtype=torch.uint8).reshape(64, 1, 1, 1).repeat(1, 1, 8, 8), torch.arange(64))
    shuffle = dataclasses.replace(draws, source=rows)
    for epoch in (0, 3):
        seen = [label for step in (2 * epoch, 2 * epoch + 1) for label in shuffle(step).condition.tolist()]  # type: ignore[union-attr]
        assert sorted(seen) == list(range(64))
        assert seen != list(range(64))


def test_ahead_yields_what_direct_calls_return(draws: Draws) -> None:
    made = ahead(draws, 7)
    for step in (7, 8, 9, 10):
        assert_draws_equal(next(made), draws(step))
    made.close()  # type: ignore[attr-defined]


def test_ahead_raises_the_error_of_its_thread(draws: Draws) -> None:
    def failing(step: int) -> Draw:
        if step == 2:
            raise UserError("row 2 is gone")
        return draws(step)

    made = ahead(failing, 0)
    assert_draws_equal(next(made), draws(0))
    assert_draws_equal(next(made), draws(1))
    with pytest.raises(UserError, match="row 2 is gone"):
        next(made)


@pytest.mark.parametrize("taken", [1, 4])
def test_ahead_ends_its_thread_when_closed(draws: Draws, taken: int) -> None:
    workers: set[threading.Thread] = set()

    def noting(step: int) -> Draw:
        workers.add(threading.current_thread())
        return draws(step)

    made = ahead(noting, 0)
    for _ in range(taken):
        next(made)
    assert threading.current_thread() not in workers
    made.close()  # type: ignore[attr-defined]
    assert len(workers) == 1
    assert not workers.pop().is_alive()


# Optimizer steps


def test_accumulation_changes_neither_gradients_nor_weights(tiny: MakeRecipe, tmp_path: Path) -> None:
    settings = ("training.batch=64", "network.dropout=0", "optimizer.warmup=3000")
    whole = trainer_of(tiny(*settings), tmp_path)
    parts = trainer_of(tiny(*settings, "training.accumulate=4"), tmp_path)
    for step in range(3):
        draw = whole.draws(step)
        assert parts.descend(draw) == pytest.approx(whole.descend(draw), rel=1e-5)
        for mine, other in zip(parts.denoiser.parameters(), whole.denoiser.parameters(), strict=True):
            assert mine.grad is not None
            assert other.grad is not None
            torch.testing.assert_close(mine.grad, other.grad, rtol=0, atol=1e-5)
            torch.testing.assert_close(mine, other, rtol=0, atol=1e-5)
    assert any(parameter.grad.abs().max() > 1e-3 for parameter in whole.denoiser.parameters())  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "network",
    [
        ("unet", "network.blocks=3", "network.widths=[16,16,16]", "network.dropout=0.2"),
        ("compact", "network.blocks=3", "network.dropout=0.2"),
        ("dit", "network.depth=4", "network.width=64", "network.patch=1"),
    ],
    ids=lambda network: network[0],
)
def test_gradient_checkpointing_keeps_the_bits_and_not_the_activations(
    tmp_path: Path, network: tuple[str, ...]
) -> None:
    found = []
    for settings in ((), ("training.gradient_checkpointing=true",)):
        chosen = recipe("digits").set(f"network={network[0]}", *network[1:], "training.batch=32", *settings)
        trainer = trainer_of(chosen, tmp_path)
        sizes: dict[int, int] = {}

        def keep(tensor: Tensor, sizes: dict[int, int] = sizes) -> Tensor:
            sizes[tensor.data_ptr()] = tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = trainer.losses(trainer.draws(0))["loss"].mean()
        kept = sum(sizes.values()) - sum(parameter.numel() for parameter in trainer.denoiser.parameters())
        del loss
        for step in range(2):
            trainer.descend(trainer.draws(step))
        found.append((kept, trainer.denoiser.state_dict()))
    (whole, plain), (part, again) = found
    assert part < whole / 2
    assert_same(plain, again)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch's tracer looks there
def test_a_compiled_training_is_the_same_training(
    tiny: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced as for a GPU, and run by the interpreter: names, weights and averages stay what they were."""
    monkeypatch.setattr("unfog.training.trainer.COMPILED", {"backend": "aot_eager", "dynamic": False})
    plain, compiled = (trainer_of(tiny(f"training.compile={on}"), tmp_path) for on in ("false", "true"))
    for step in range(2):
        assert compiled.descend(plain.draws(step)) == pytest.approx(plain.descend(plain.draws(step)), rel=1e-5)
    for name, tensor in plain.denoiser.state_dict().items():
        torch.testing.assert_close(compiled.denoiser.state_dict()[name], tensor, rtol=1e-4, atol=1e-5)
    compiled.save()
    again = trainer_of(tiny(), tmp_path)
    again.restore()
    assert_same(compiled.averaged.model.state_dict(), again.averaged.model.state_dict())


def test_a_pinned_draw_is_the_same_draw(draws: Draws, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU nothing can be pinned: a copy stands in."""
    monkeypatch.setattr(Tensor, "pin_memory", Tensor.clone)
    assert_draws_equal(pinned(draws(3)), draws(3))


def test_a_device_draws_its_own_noise_as_a_function_of_seed_and_step(draws: Draws) -> None:
    own = dataclasses.replace(draws, normal=partial(normal_on, torch.device("cpu"), draws.batch))
    there, first = own(3), draws(3)
    assert torch.equal(there.noise, own(3).noise)
    assert not torch.equal(there.noise, first.noise)
    assert_draws_equal(there._replace(noise=first.noise), first)
    halves = [dataclasses.replace(own, part=part)(3).noise for part in (slice(0, 16), slice(16, 32))]
    assert torch.equal(torch.cat(halves), there.noise)
    assert dataclasses.replace(own, batch=40, part=None)(3).noise.shape == (40, 1, 8, 8)
    for other in (own(4), dataclasses.replace(own, seed=own.seed + 2**40)(3)):
        assert not torch.equal(other.noise, there.noise)
    noise = torch.cat([own(step).noise for step in range(40)])
    assert abs(float(noise.mean())) < 4 / noise.numel() ** 0.5
    assert abs(float(noise.var()) - 1) < 4 * (2 / noise.numel()) ** 0.5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_draws_its_noise_and_what_a_processor_does_else(tiny: MakeRecipe, tmp_path: Path) -> None:
    chosen = tiny("augment.flip=true", "augment.crop=1")
    here, there = (trainer_of(chosen, tmp_path, device).draws(3) for device in ("cpu", "cuda"))
    assert (there.x0.device.type, there.noise.device.type) == ("cpu", "cuda")
    assert_draws_equal(there._replace(noise=here.noise), here)
    in_parts = trainer_of(chosen.set("training.accumulate=2"), tmp_path, "cuda").draws(3)
    assert_draws_equal(in_parts, there)


@pytest.mark.parametrize(("wish", "options"), [(None, [(-4, 0), (-1, -1)]), ("1", [(-4, 0), (-1, -1)]), ("0", [])])
def test_memory_is_kept_unless_the_user_wants_it_back(
    monkeypatch: pytest.MonkeyPatch, wish: str | None, options: list[tuple[int, int]]
) -> None:
    """No mapping of its own for any block, and no trimming: the two options of glibc."""
    said: list[tuple[int, int]] = []
    library = SimpleNamespace(mallopt=lambda name, value: said.append((name, value)))
    monkeypatch.setattr("ctypes.CDLL", lambda name: library)
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.delenv("UNFOG_KEEP_MEMORY", raising=False)
    if wish is not None:
        monkeypatch.setenv("UNFOG_KEEP_MEMORY", wish)
    keep_memory()
    assert said == options
    monkeypatch.setattr("ctypes.CDLL", lambda name: SimpleNamespace())
    keep_memory()  # another C library


def test_channels_come_last_on_cuda(tiny: MakeRecipe, tmp_path: Path) -> None:
    denoiser = trainer_of(tiny("network=unet", "network.widths=[16,16]", "network.attention=[false,false]"), tmp_path)
    assert not channels_last(denoiser.denoiser, torch.device("cpu"))
    assert channels_last(denoiser.denoiser, torch.device("cuda"))


def test_accumulation_must_divide_the_batch(tiny: MakeRecipe) -> None:
    with pytest.raises(UserError, match="accumulate 5 must divide"):
        tiny("training.accumulate=5")


def test_dropout_is_a_function_of_seed_and_step(tiny: MakeRecipe, tmp_path: Path) -> None:
    first, second = (trainer_of(tiny("network.dropout=0.3", "optimizer.warmup=0"), tmp_path) for _ in range(2))
    for step in range(3):
        loss = first.descend(first.draws(step))
        torch.manual_seed(step + 1000)  # a generator that was used elsewhere
        assert second.descend(second.draws(step)) == loss
    assert_same(first.denoiser.state_dict(), second.denoiser.state_dict())


def test_the_rate_warms_up_stays_and_falls() -> None:
    adamw = AdamW(lr=1.0, warmup=100, decay=0.25)
    assert [adamw.rate(seen, 1000) for seen in (0, 25, 100, 750)] == [0, 0.25, 1, 1]
    assert adamw.rate(875, 1000) == pytest.approx(0.5)
    assert adamw.rate(999, 1000) == pytest.approx(0.004)
    assert adamw.rate(1000, 1000) == 0
    assert adamw.rate(1020, 1000) == 0  # the last batch may go beyond the end


def test_the_rate_without_a_total_or_a_warmup() -> None:
    adamw = AdamW(lr=2.0, warmup=100, decay=0.5)
    assert [adamw.rate(seen, None) for seen in (0, 50, 100, 10**9)] == [0, 1, 2, 2]
    assert AdamW(lr=2.0, warmup=0, decay=0.5).rate(0, 100) == 2
    assert AdamW(lr=2.0, warmup=0, decay=0.0).rate(99, 100) == 2


@pytest.mark.parametrize(
    "options", [{"lr": 0.0}, {"lr": -1.0}, {"clip": 0.0}, {"decay": 1.5}, {"beta2": 1.0}, {"warmup": -1}]
)
def test_optimizer_settings_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(UserError):
        AdamW(**options)  # type: ignore[arg-type]


def test_a_non_finite_step_changes_nothing_and_is_counted(tiny: MakeRecipe, tmp_path: Path) -> None:
    trainer = trainer_of(tiny("optimizer.warmup=0", "training.accumulate=2"), tmp_path)
    for step in range(2):
        trainer.descend(trainer.draws(step))
    weights, average = copied(trainer.denoiser.state_dict()), copied(trainer.averaged.model.state_dict())
    state = moments(trainer)
    draw = trainer.draws(2)
    draw.x0[-1] = math.inf  # one row, of the second portion, is enough
    assert math.isnan(trainer.descend(draw))
    assert (trainer.step, trainer.skipped, trainer.bad_in_row) == (3, 1, 1)
    assert_same(trainer.denoiser.state_dict(), weights)
    assert_same(trainer.averaged.model.state_dict(), average)
    assert_same(moments(trainer), state)
    assert math.isfinite(trainer.descend(trainer.draws(3)))
    assert (trainer.skipped, trainer.bad_in_row) == (1, 0)
    assert not torch.equal(trainer.denoiser.network.patch_out.bias, weights["network.patch_out.bias"])  # type: ignore[union-attr,arg-type]


@dataclasses.dataclass(frozen=True)
class Poisoned(Draws):
    """Draws that are no numbers from step 8 on."""

    def __call__(self, step: int) -> Draw:
        draw = super().__call__(step)
        return draw if step < 8 else draw._replace(x0=draw.x0 * math.nan)


def test_ten_non_finite_steps_in_a_row_stop_the_run_and_leave_it_finite(tiny: MakeRecipe, tmp_path: Path) -> None:
    trainer = trainer_of(tiny("training.images=1024", "training.reports=4"), tmp_path)
    trainer.draws = Poisoned(**vars(trainer.draws))
    loop.write_recipe(trainer)
    with pytest.raises(UserError, match=r"not finite 10 times in a row, at step 18.*lower optimizer\.lr") as stopped:
        loop.train(trainer, QUIET)
    assert f"from the last finite weights, with `init_from` {tmp_path}" in str(stopped.value)
    assert ("training.precision=float32" in str(stopped.value)) == (trainer.precision != "float32")
    tensors, state = checkpoint.latest(tmp_path / "checkpoints")
    assert state["step"] in (8, 16)
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    assert load(tmp_path, "cpu").sample(2).shape == (2, 1, 8, 8)


def test_samples_of_one_colour_are_warned_of(tiny: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sampler, "__call__", lambda self, count, condition: torch.full((count, 1, 8, 8), 7).byte())
    with pytest.warns(UserWarning, match="all samples of a report were one colour"):
        train(tiny("training.images=32"), tmp_path / "run", device="cpu", console=QUIET)


@pytest.mark.filterwarnings("ignore:all samples of a report were one colour")
def test_an_absurd_learning_rate_never_becomes_a_non_finite_model(tiny: MakeRecipe, tmp_path: Path) -> None:
    out = tmp_path / "run"
    settings = ("optimizer.lr=1e30", "optimizer.warmup=0", "training.images=1024", "training.reports=32")
    settings += ("training.precision=float32",)
    with pytest.raises(UserError, match=r"not finite 10 times in a row.*start .*optimizer\.lr than 1e\+30(,|$)"):
        train(tiny(*settings), out, device="cpu", console=QUIET)
    for file in out.rglob("*.safetensors"):
        assert all(tensor.isfinite().all() for tensor in load_file(file).values())


@pytest.mark.parametrize("which", ["denoiser", "averaged"])
def test_a_non_finite_model_is_never_written(tiny: MakeRecipe, tmp_path: Path, which: str) -> None:
    trainer = trainer_of(tiny(), tmp_path)
    trainer.descend(trainer.draws(0))
    trainer.save()
    before = (tmp_path / "model.safetensors").read_bytes()
    trainer.descend(trainer.draws(1))
    broken = trainer.denoiser if which == "denoiser" else trainer.averaged.model
    with torch.no_grad():
        next(broken.parameters()).view(-1)[0] = math.nan
    trainer.save()
    assert (tmp_path / "model.safetensors").read_bytes() == before
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["000000001"]


def test_the_held_out_loss_is_the_same_number_each_time(tiny: MakeRecipe, tmp_path: Path) -> None:
    trainer, twin = trainer_of(tiny(), tmp_path), trainer_of(tiny(), tmp_path)
    first = trainer.held_out_loss()
    torch.rand(5)
    assert trainer.held_out_loss() == first == twin.held_out_loss()
    for step in range(4):
        trainer.descend(trainer.draws(step))
    assert trainer.held_out_loss() != first


# Averages


@pytest.mark.parametrize("gamma", [1.0, 6.94, 16.97])
def test_the_power_average_of_a_ramp_is_its_closed_form(tiny: MakeRecipe, tmp_path: Path, gamma: float) -> None:
    trainer = trainer_of(tiny(), tmp_path)
    averaged = Averaged(trainer.denoiser, PowerAverage(gamma))
    last = 50
    for step in range(1, last + 1):
        with torch.no_grad():
            for parameter in trainer.denoiser.parameters():
                parameter.fill_(float(step))
        averaged.update(trainer.denoiser, step, 32)
    # a weight k counts k^(gamma+1) - (k-1)^(gamma+1), over n^(gamma+1): summed by parts
    expected = last - sum((k / last) ** (gamma + 1) for k in range(1, last))
    for parameter in averaged.model.parameters():
        torch.testing.assert_close(parameter, torch.full_like(parameter, expected), rtol=1e-5, atol=0)


@pytest.mark.parametrize(("gamma", "width"), [(6.94, 0.10), (16.97, 0.05)])
def test_the_power_average_has_the_width_that_it_names(gamma: float, width: float) -> None:
    profile, last = PowerAverage(gamma), 4000
    counts, left = [], 1.0
    for step in range(last, 0, -1):
        share = profile.share(step, 64)
        counts.append((step / last, left * share))
        left *= 1 - share
    mean = sum(place * count for place, count in counts)
    deviation = math.sqrt(sum((place - mean) ** 2 * count for place, count in counts))
    assert left == 0  # nothing is left of the weights before the first step
    assert deviation == pytest.approx(width, rel=0.01)


def test_the_exponential_average_warms_up_and_then_halves() -> None:
    profile = ExponentialAverage(half_life=1000)
    left = 1.0
    for step in range(10_001, 10_101):  # 100 steps of 10 images are one half-life
        left *= 1 - profile.share(step, 10)
    assert left == pytest.approx(0.5)
    assert profile.share(1, 10) == pytest.approx(1 - 0.5**10)
    assert profile.share(20, 10) == pytest.approx(1 - 0.5 ** (10 / 20))  # a tenth of the 200 images so far
    shares = [profile.share(step, 10) for step in range(1, 2001)]
    assert shares == sorted(shares, reverse=True)
    assert shares[999] == shares[1999]


@pytest.mark.parametrize("make", [lambda: PowerAverage(0.0), lambda: ExponentialAverage(-1.0)])
def test_averages_out_of_range_are_refused(make: Callable[[], object]) -> None:
    with pytest.raises(UserError, match=r"ema\."):
        make()


# Checkpoints


def plain(value: float) -> dict[str, Tensor]:
    return {"weight": torch.full((1000,), value)}


@pytest.fixture
def two_checkpoints(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoints"
    for step in (10, 20):
        checkpoint.save(folder, step, plain(step), {"note": step})
    return folder


def test_a_training_is_restored_whole(tiny: MakeRecipe, tmp_path: Path) -> None:
    trainer = trainer_of(tiny("optimizer.warmup=0"), tmp_path)
    for step in range(3):
        trainer.descend(trainer.draws(step))
    draw = trainer.draws(3)
    trainer.descend(draw._replace(x0=draw.x0 * math.nan))
    trainer.save()
    again = trainer_of(tiny("optimizer.warmup=0"), tmp_path)
    again.restore()
    assert (again.step, again.skipped, again.precision) == (4, 1, trainer.precision)
    assert_same(again.denoiser.state_dict(), trainer.denoiser.state_dict())
    assert_same(again.averaged.model.state_dict(), trainer.averaged.model.state_dict())
    assert_same(moments(again), moments(trainer))
    assert len(moments(again)) == 3 * len(list(trainer.denoiser.parameters()))
    for step in (4, 5):
        assert again.descend(again.draws(step)) == trainer.descend(trainer.draws(step))
    assert_same(again.denoiser.state_dict(), trainer.denoiser.state_dict())


def test_the_thread_count_is_restored(tiny: MakeRecipe, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        trainer = trainer_of(tiny(), tmp_path)
        trainer.save()
        torch.set_num_threads(1)
        trainer.restore()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_the_newest_two_checkpoints_are_kept(two_checkpoints: Path) -> None:
    checkpoint.save(two_checkpoints, 30, plain(30), {"note": 30})
    assert sorted(path.name for path in two_checkpoints.iterdir()) == ["000000020", "000000030"]
    tensors, state = checkpoint.latest(two_checkpoints)
    assert_same(tensors, plain(30))
    assert (state["step"], state["note"]) == (30, 30)


def test_damaged_checkpoints_take_no_whole_ones_place(two_checkpoints: Path) -> None:
    for step in (80, 95):
        (two_checkpoints / f"{step:09}").mkdir()
        (two_checkpoints / f"{step:09}" / "state.safetensors").write_bytes(b"damaged")

    def left(step: int) -> list[int]:
        checkpoint.save(two_checkpoints, step, plain(step), {})
        return [int(path.name) for path in checkpoint.steps(two_checkpoints)]

    assert left(21) == [20, 21, 80, 95]  # it was stopped a step after it fell back to 20
    assert left(30) == [21, 30, 80, 95]
    assert left(80) == [30, 80, 95]  # now a whole one
    assert left(90) == [80, 90, 95]
    assert left(100) == [90, 95, 100]
    assert left(110) == [100, 110]
    assert_same(checkpoint.latest(two_checkpoints)[0], plain(110))


def test_what_a_kill_left_half_written_is_cleared(two_checkpoints: Path) -> None:
    (two_checkpoints / ".000000013.part").mkdir()
    (two_checkpoints / ".000000013.part" / "state.safetensors").write_bytes(b"the first half")
    checkpoint.save(two_checkpoints, 30, plain(30), {})
    assert sorted(path.name for path in two_checkpoints.iterdir()) == ["000000020", "000000030"]


def test_a_step_is_saved_again_only_where_it_was_damaged(two_checkpoints: Path) -> None:
    checkpoint.save(two_checkpoints, 20, plain(21), {})
    assert_same(checkpoint.latest(two_checkpoints)[0], plain(20))
    (two_checkpoints / "000000020" / "state.safetensors").write_bytes(b"damaged")
    checkpoint.save(two_checkpoints, 20, plain(21), {})
    assert_same(checkpoint.latest(two_checkpoints)[0], plain(21))


def truncate(newest: Path) -> None:
    file = newest / "state.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def tamper(newest: Path) -> None:
    file = newest / "state.safetensors"
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(bytes(data))


def lose_state(newest: Path) -> None:
    (newest / "state.json").unlink()


def cut_state(newest: Path) -> None:
    file = newest / "state.json"
    file.write_text(file.read_text()[:-5])


def lose_tensors(newest: Path) -> None:
    (newest / "state.safetensors").unlink()


DAMAGES = [truncate, tamper, lose_state, cut_state, lose_tensors]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    two_checkpoints: Path, damage: Callable[[Path], None]
) -> None:
    damage(two_checkpoints / "000000020")
    with pytest.warns(UserWarning, match="000000020 is damaged"):
        tensors, state = checkpoint.latest(two_checkpoints)
    assert state["step"] == 10
    assert_same(tensors, plain(10))


@pytest.mark.filterwarnings("default:the checkpoint")
def test_no_whole_checkpoint_is_the_users_to_know(two_checkpoints: Path, tmp_path: Path) -> None:
    for path in two_checkpoints.iterdir():
        truncate(path)
    with pytest.warns(UserWarning, match="damaged"), pytest.raises(UserError, match="no intact checkpoint"):
        checkpoint.latest(two_checkpoints)
    with pytest.raises(UserError, match="no intact checkpoint"):
        checkpoint.latest(tmp_path / "nowhere")


def test_the_remains_of_a_crash_are_no_checkpoint(two_checkpoints: Path) -> None:
    (two_checkpoints / ".000000030.part").mkdir()
    (two_checkpoints / ".000000030.part" / "state.safetensors").write_bytes(b"half")
    assert checkpoint.latest(two_checkpoints)[1]["step"] == 20
    checkpoint.save(two_checkpoints, 30, plain(30), {})
    assert checkpoint.latest(two_checkpoints)[1]["step"] == 30
    assert sorted(path.name for path in two_checkpoints.iterdir()) == ["000000020", "000000030"]


def test_a_full_disk_loses_nothing(small_disk: Path) -> None:
    folder = small_disk / "checkpoints"
    large = {"weight": torch.rand(100_000)}  # 0.4 of 1 MB
    for step in (1, 2):
        checkpoint.save(folder, step, large, {})
    with pytest.raises(EnvironmentFailure, match="the disk is full; what was written before is intact"):
        checkpoint.save(folder, 3, large, {})
    tensors, state = checkpoint.latest(folder)
    assert state["step"] == 2
    assert_same(tensors, large)
    assert sorted(path.name for path in folder.iterdir()) == ["000000001", "000000002"]  # nor is it kept full


def test_a_full_disk_as_safetensors_says_it(two_checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("unfog.runtime.tensors.save_file", full)
    with pytest.raises(EnvironmentFailure, match=r"state\.safetensors: the disk is full"):
        checkpoint.save(two_checkpoints, 30, plain(30), {})
    tensors, state = checkpoint.latest(two_checkpoints)
    assert state["step"] == 20
    assert_same(tensors, plain(20))


def test_write_whole_leaves_the_file_and_nothing_else(tmp_path: Path) -> None:
    for data in (b"first", b"second"):
        checkpoint.write_whole(tmp_path / "file.json", data)
        assert (tmp_path / "file.json").read_bytes() == data
        assert [path.name for path in tmp_path.iterdir()] == ["file.json"]


def test_a_failed_write_leaves_no_part_file(tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    (taken / "inside").mkdir(parents=True)
    with pytest.raises(EnvironmentFailure, match=r"cannot write .*taken"):
        checkpoint.write_whole(taken, b"data")
    with pytest.raises(EnvironmentFailure, match=r"cannot write .*taken"):
        write_tensors(taken, plain(1))
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_written_weights_are_readable_for_whom_the_umask_lets_read(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_tensors(tmp_path / "model.safetensors", plain(1))
    finally:
        os.umask(before)
    assert (tmp_path / "model.safetensors").stat().st_mode & 0o777 == 0o640


# Metrics


def write_lines(path: Path, *steps: int) -> None:
    path.write_text("".join(json.dumps({"step": step, "images": 4 * step, "loss": 1.0}) + "\n" for step in steps))


def test_metrics_of_later_steps_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write_lines(path, 20, 40, 60, 80)
    metrics = Metrics(path, 4, 45)
    metrics.held_out(50, 0.5, 9)
    assert [line["step"] for line in read_metrics(path)] == [20, 40, 50]
    assert len(path.read_text().splitlines()) == 3


def test_a_cut_off_last_line_is_tolerated(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write_lines(path, 20, 40)
    with path.open("a") as file:
        file.write('{"step": 60, "ima')
    assert [line["step"] for line in read_metrics(path)] == [20, 40]
    Metrics(path, 4, 60).held_out(60, 0.25, 9)
    assert [line["step"] for line in read_metrics(path)] == [20, 40, 60]


@pytest.mark.parametrize("damage", [b"\xff\xfe\x80\n", b"\x00" * 40 + b"\n", b"\n"])
def test_a_damaged_line_costs_only_itself(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    write_lines(path, 20)
    path.write_bytes(path.read_bytes() + damage)
    Metrics(path, 4, 60).held_out(60, 0.25, 9)
    assert [line["step"] for line in read_metrics(path)] == [20, 60]


def test_metrics_average_twenty_steps_and_count_the_skipped(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path / "metrics.jsonl", 8, 0)
    for step in range(1, 21):
        metrics.add(step, math.nan if step == 7 else float(step), 0.5)
    for step in range(21, 41):
        metrics.add(step, math.nan, 0.5)
    first, second = read_metrics(tmp_path / "metrics.jsonl")
    assert (first["step"], first["images"], first["lr"], first["skipped"]) == (20, 160, 0.5, 1)
    assert first["loss"] == pytest.approx((210 - 7) / 19)
    assert first["images_per_second"] > 0
    assert (second["loss"], second["skipped"]) == (None, 20)


# Where and how it computes


@pytest.mark.parametrize("name", ["nonsense", "cuda:99", "mps:7", "meta", ""])
def test_an_unknown_device_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"is not available here.*use cpu"):
        choose_device(name)


def test_a_device_is_found() -> None:
    assert choose_device("cpu").type == "cpu"
    assert choose_device().type in ("cpu", "cuda", "mps")


def test_small_pictures_stay_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    assert choose_precision("auto", cpu, (1, 8, 8)) == "float32"
    assert choose_precision("auto", cpu, (2,)) == "float32"
    assert choose_precision("auto", cpu, (1, 28, 28)) == "bfloat16"
    assert choose_precision("bfloat16", cpu, (1, 8, 8)) == "bfloat16"
    assert choose_precision("float32", torch.device("cuda"), (3, 32, 32)) == "float32"
    assert choose_precision("auto", torch.device("cuda"), (1, 8, 8)) == "bfloat16"
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    assert choose_precision("auto", cpu, (1, 28, 28)) == "float32"


def test_bfloat16_trains_close_to_float32(tiny: MakeRecipe, tmp_path: Path) -> None:
    exact = trainer_of(tiny(), tmp_path)
    rough = trainer_of(tiny("training.precision=bfloat16"), tmp_path)
    losses = [trainer.descend(trainer.draws(0)) for trainer in (exact, rough)]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert all(parameter.dtype == torch.float32 for parameter in rough.denoiser.parameters())


# Whole runs


def last_step(run: Path) -> int:
    return int(checkpoint.steps(run / "checkpoints")[-1].name)  # a kill may leave a part of another beside them


def test_a_preview_shows_as_many_samples_whatever_the_batch(tiny: MakeRecipe, tmp_path: Path) -> None:
    sizes = []
    for batch in (8, 64):
        folder = tmp_path / str(batch)
        folder.mkdir()
        shown = trainer_of(tiny(f"sampling.batch={batch}"), folder).preview()
        assert shown is not None
        with Image.open(shown) as sheet:
            sizes.append(sheet.size)
    assert sizes[0] == sizes[1]


def test_a_run_folder_holds_what_it_promises(digits_run: Path) -> None:
    assert last_step(digits_run) == 16
    assert (digits_run / "samples" / "000000016.png").is_file()
    held_out = [line for line in read_metrics(digits_run / "metrics.jsonl") if "held_out_loss" in line]
    assert [line["step"] for line in held_out] == [16]
    assert_same(
        load_file(digits_run / "model.safetensors"),
        {
            name.removeprefix("average/"): tensor
            for name, tensor in load_file(digits_run / "checkpoints" / "000000016" / "state.safetensors").items()
            if name.startswith("average/")
        },
    )
    left = [path.name for path in digits_run.rglob(".*.part")]
    assert left == []


@dataclasses.dataclass(frozen=True)
class Interrupting(Draws):
    """Draws that send this process a signal at step 6."""

    def __call__(self, step: int) -> Draw:
        if step == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().__call__(step)


def test_a_stop_saves_and_gives_the_signals_back(tiny: MakeRecipe, tmp_path: Path) -> None:
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    trainer = trainer_of(tiny("training.images=100000"), tmp_path)
    trainer.draws = Interrupting(**vars(trainer.draws))
    with pytest.raises(Stopped, match="--resume") as stopped:
        loop.train(trainer, QUIET)
    assert stopped.value.code == 143
    assert last_step(tmp_path) == trainer.step
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers


def test_a_checkpoint_is_written_by_the_clock_too(tiny: MakeRecipe, tmp_path: Path) -> None:
    trainer = trainer_of(tiny("training.checkpoint_minutes=0.0001", "training.images=100000"), tmp_path)
    trainer.draws = Interrupting(**vars(trainer.draws))
    with pytest.raises(Stopped):
        loop.train(trainer, QUIET)
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2  # by the clock, and at the stop


def test_a_resumed_folder_must_be_a_run_with_a_checkpoint_and_its_data(
    digits_run: Path, tiny: MakeRecipe, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="is no run folder"):
        resume(tmp_path, device="cpu")
    text = (digits_run / "recipe.json").read_text()
    (tmp_path / "recipe.json").write_text(text)
    with pytest.raises(UserError, match="no intact checkpoint"):
        resume(tmp_path, device="cpu")
    (tmp_path / "recipe.json").write_text(text.replace('"9"', '"nine"'))
    with pytest.raises(UserError, match=r"data .* changed"):
        resume(tmp_path, device="cpu")


def test_init_from_starts_at_the_other_runs_weights(digits_run: Path, tiny: MakeRecipe, tmp_path: Path) -> None:
    # the first step has a learning rate of 0, so one step shows the start
    one = tiny("training.images=32", "seed=5")
    said = io.StringIO()
    out = train(one, tmp_path / "run", init_from=digits_run, device="cpu", console=Console(file=said, width=400)).path
    assert f"starting from {digits_run}: the learning rate rises again" in said.getvalue()
    assert_same(load_file(out / "model.safetensors"), load_file(digits_run / "model.safetensors"))
    fresh = train(one, tmp_path / "fresh", device="cpu", console=QUIET).path
    assert (fresh / "model.safetensors").read_bytes() != (out / "model.safetensors").read_bytes()


def test_init_from_takes_another_number_of_classes(digits_run: Path, tiny: MakeRecipe, tmp_path: Path) -> None:
    pictures = InMemory(torch.zeros(40, 1, 8, 8, dtype=torch.uint8), torch.arange(40) % 3, ("a", "b", "c"))
    recipe = dataclasses.replace(tiny(), shape=(1, 8, 8), classes=("a", "b", "c"))
    trainer = Trainer(recipe, Data(pictures, pictures), tmp_path, torch.device("cpu"))
    table = trainer.denoiser.state_dict()["embedder.table.weight"].clone()
    given = load_file(digits_run / "model.safetensors")
    trainer.start_from(given, digits_run)
    for denoiser in (trainer.denoiser, trainer.averaged.model):
        assert_same(denoiser.state_dict(), {**given, "embedder.table.weight": table})
    assert math.isfinite(trainer.descend(trainer.draws(0)))


def test_init_from_goes_between_conditional_and_unconditional(
    digits_run: Path, unconditional_run: Path, tiny: MakeRecipe, tmp_path: Path
) -> None:
    plain_trainer = trainer_of(tiny("conditioning=none", "sampling.guidance=1"), tmp_path)
    given = load_file(digits_run / "model.safetensors")
    plain_trainer.start_from(copied(given), digits_run)
    del given["embedder.table.weight"]
    assert_same(plain_trainer.denoiser.state_dict(), given)
    conditional = trainer_of(tiny(), tmp_path)
    conditional.start_from(load_file(unconditional_run / "model.safetensors"), unconditional_run)
    assert conditional.denoiser.embedder is not None


@pytest.mark.parametrize("setting", ["network.width=16", "network=minimal", "network.middle=1"])
def test_init_from_refuses_another_network(digits_run: Path, tiny: MakeRecipe, tmp_path: Path, setting: str) -> None:
    out = tmp_path / "run"
    with pytest.raises(UserError, match=r"model\.safetensors does not match .*the weight "):
        train(tiny(setting), out, init_from=digits_run, device="cpu", console=QUIET)
    assert not out.exists()


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("target=v", "target 'flow' instead of 'v'"),
        ("schedule=cosine", "schedule 'flow' instead of 'cosine'"),
        ("inputs.network_time=log_snr", "other inputs"),
    ],
)
def test_init_from_refuses_weights_of_another_meaning(
    digits_run: Path, tiny: MakeRecipe, tmp_path: Path, setting: str, told: str
) -> None:
    out = tmp_path / "run"
    with pytest.raises(UserError, match=f"were trained with .*{told}"):
        train(tiny(setting), out, init_from=digits_run, device="cpu", console=QUIET)
    assert not out.exists()


def test_a_recipe_takes_over_what_weights_mean(tiny: MakeRecipe, table_run: Path) -> None:
    source = read_recipe(table_run)
    mine = recipe("cifar10").starting_from(source)
    assert (mine.schedule, mine.target, mine.network, mine.times) == (
        source.schedule,
        source.target,
        source.network,
        source.times,
    )
    assert (mine.data, mine.training) == (
        recipe("cifar10").data,
        recipe("cifar10").training,
    )


# Exact resume: processes of their own, stopped by real signals

SETTINGS = (
    "network.width=8",
    "network.dropout=0.1",
    "training.images=3200",
    "training.batch=32",
    "training.reports=10",
    "optimizer.warmup=256",
    "sampling.steps=4",
    "sampling.batch=64",  # these runs are compared, and a measured one may differ
)


def begin(out: Path) -> Forked:
    options = [word for setting in SETTINGS for word in ("--set", setting)]
    return Forked("train", "digits", "--out", out, *options, "--device", "cpu")


def stop_after_a_checkpoint(process: Forked, out: Path, number: signal.Signals) -> None:
    until(lambda: list(out.glob("checkpoints/0*")) or process.returncode is not None)
    process.send_signal(number)


@dataclasses.dataclass(frozen=True)
class Family:
    """Runs of one recipe: one that was not interrupted, and others that were, with how each process ended."""

    folder: Path
    stopped: dict[str, tuple[int | None, str, int]]
    resumed: dict[str, tuple[int | None, str]]


STOPS = {"int": signal.SIGINT, "term": signal.SIGTERM, "hup": signal.SIGHUP, "kill": signal.SIGKILL}


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    folder = tmp_path_factory.mktemp("family")
    whole = begin(folder / "whole")
    running = {name: begin(folder / name) for name in STOPS}
    for name, process in running.items():
        stop_after_a_checkpoint(process, folder / name, STOPS[name])
    stopped = {}
    for name, process in running.items():
        message = process.ended()[1]
        stopped[name] = (process.returncode, message, last_step(folder / name))
    whole_message = whole.ended()[1]
    assert whole.returncode == 0, whole_message
    running = {name: Forked("train", "--resume", folder / name, "--device", "cpu") for name in (*STOPS, "whole")}
    resumed = {}
    for name, process in running.items():
        message = process.ended()[1]
        resumed[name] = (process.returncode, message)
    return Family(folder, stopped, resumed)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "code"), [("int", 130), ("term", 143), ("hup", 129), ("kill", -signal.SIGKILL)])
def test_a_signal_has_its_exit_code_and_the_run_can_go_on(family: Family, name: str, code: int) -> None:
    returncode, message, step = family.stopped[name]
    assert returncode == code, message
    assert step < 100  # it was stopped before its end
    if name != "kill":
        last = message.strip().splitlines()[-1]
        assert last.startswith("unfog: stopped and saved")
        assert f"--resume {family.folder / name}" in last
    assert "Traceback" not in message


@pytest.mark.slow
def test_a_terminal_that_is_closed_saves_too(tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = [
        word
        for setting in (*SETTINGS, "training.images=320000", "training.reports=1000")
        for word in ("--set", setting)
    ]
    process, terminal = pty.fork()
    if not process:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which nohup ignores
        os.execv(sys.executable, [sys.executable, "-m", "unfog", "train", "digits", "--out", str(out), *words])

    def trained() -> bool:
        if select.select([terminal], [], [], 0)[0]:  # or the training would wait for what is shown to be read
            os.read(terminal, 4096)
        return bool(list(out.glob("checkpoints/0*")))

    try:
        until(trained)
        os.close(terminal)
        ended: list[int] = []

        def stopped() -> bool:
            ended[:] = os.waitpid(process, os.WNOHANG)
            return ended[0] == process

        until(stopped)
    except AssertionError:
        os.kill(process, signal.SIGKILL)
        raise
    assert os.waitstatus_to_exitcode(ended[1]) == 129
    assert last_step(out) > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", [*STOPS])
def test_a_resumed_run_is_equal_to_the_bit(family: Family, name: str) -> None:
    returncode, message = family.resumed[name]
    assert returncode == 0, message
    whole, other = family.folder / "whole", family.folder / name
    assert last_step(whole) == last_step(other) == 100
    final = Path("checkpoints") / "000000100" / "state.safetensors"
    assert_same(load_file(whole / final), load_file(other / final))
    assert (whole / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
    assert (whole / "samples" / "000000100.png").read_bytes() == (other / "samples" / "000000100.png").read_bytes()

    def held_out(run: Path) -> list[tuple[float, float]]:
        lines = read_metrics(run / "metrics.jsonl")
        return [(line["step"], line["held_out_loss"]) for line in lines if "held_out_loss" in line]

    # what was stopped between its checkpoint and its report lacks that one report
    expected = [line for line in held_out(whole) if line in held_out(other) or line[0] != family.stopped[name][2]]
    assert len(expected) >= 9
    assert held_out(other) == expected


@pytest.mark.slow
def test_resuming_a_finished_run_changes_nothing_and_says_how_to_go_on(family: Family) -> None:
    returncode, message = family.resumed["whole"]
    assert returncode == 0, message
    whole = family.folder / "whole"
    said = " ".join(message.split())
    assert f"{whole} is finished" in said
    assert f"`unfog train --resume {whole} --images N`" in said
    assert "is finished" not in family.resumed["int"][1]
    assert [line["step"] for line in read_metrics(whole / "metrics.jsonl") if "held_out_loss" in line][-1] == 100
    assert len(list((whole / "checkpoints").iterdir())) == 2


# Every schedule with every target

SCHEDULES = (
    "linear",
    "quadratic",
    "cosine",
    "flow",
    "linear-continuous",
    "quadratic-continuous",
    "cosine-continuous",
)
TARGETS = ("eps", "x0", "v", "flow")
REFUSED = {
    ("cosine-continuous", "eps"),  # no signal at the end
    ("flow", "eps"),
    *((schedule, "flow") for schedule in ("linear", "quadratic", "cosine")),  # kinks
    *((f"{schedule}-continuous", "flow") for schedule in ("linear", "quadratic", "cosine")),  # infinite rates at 0
}
PAIRS = [(schedule, target) for schedule in SCHEDULES for target in TARGETS if (schedule, target) not in REFUSED]


@pytest.mark.slow
@pytest.mark.parametrize(("schedule", "target"), [*PAIRS, ("edm", "edm")])
def test_every_meaningful_pair_learns_and_samples(tiny: MakeRecipe, tmp_path: Path, schedule: str, target: str) -> None:
    settings = [f"schedule={schedule}", f"target={target}", "training.images=960", "optimizer.warmup=64"]
    if schedule == "edm":
        settings += ["inputs.input_scale=unit", "inputs.network_time=log_snr"]
    trainer = trainer_of(tiny(*settings), tmp_path)
    before = trainer.held_out_loss()
    losses = [trainer.descend(trainer.draws(step)) for step in range(30)]
    assert all(math.isfinite(loss) for loss in losses)
    assert trainer.skipped == 0
    assert sum(losses[-5:]) < sum(losses[:5])
    assert trainer.held_out_loss() < before
    sampler = Sampler.of(trainer.recipe, trainer.averaged.model)
    steps = list(sampler.steps(0, sampler.condition(sampler.size)))
    assert len(steps) == 4
    for step in steps:
        assert step.x.isfinite().all()
        assert step.prediction.eps.isfinite().all()
    assert steps[-1].x.std() > 0.01


@pytest.mark.parametrize(("schedule", "target"), sorted(REFUSED))
def test_a_pair_that_cannot_work_is_refused_before_anything_is_written(
    tiny: MakeRecipe, tmp_path: Path, schedule: str, target: str
) -> None:
    out = tmp_path / "run"
    with pytest.raises(UserError, match="target"):
        train(tiny(f"schedule={schedule}", f"target={target}"), out, device="cpu", console=QUIET)
    assert not out.exists()


# Importance-sampled times and learned variance


IMPORTANT = ("times=importance", "times.bins=4", "times.base=logit-normal", "training.batch=64")


def test_importance_follows_the_losses_and_is_restored_to_the_bit(tiny: MakeRecipe, tmp_path: Path) -> None:
    """After ten losses in each bin the draws change; the statistics are part of the checkpoint."""
    trainer = trainer_of(tiny(*IMPORTANT), tmp_path)
    trainer.descend(trainer.draws(0))
    assert trainer.state[HISTORY][1].tolist() == [16, 16, 16, 16]  # stratified, and not yet spread
    for step in range(1, 5):
        trainer.descend(trainer.draws(step))
    spread, weight = trainer.prepare(trainer.draws(5))
    assert weight.std() > 0.01
    assert not torch.equal(spread.u, trainer.draws(5).u)
    trainer.save()
    again = trainer_of(tiny(*IMPORTANT), tmp_path)
    again.restore()
    assert torch.equal(again.state[HISTORY], trainer.state[HISTORY])
    for step in (5, 6, 7):
        assert again.descend(again.draws(step)) == trainer.descend(trainer.draws(step))
    assert torch.equal(again.state[HISTORY], trainer.state[HISTORY])
    assert trainer.state[HISTORY][1].sum() == 8 * 64
    assert_same(again.denoiser.state_dict(), trainer.denoiser.state_dict())


def test_importance_of_earlier_checkpoints_is_restored_to_the_bit(tiny: MakeRecipe, tmp_path: Path) -> None:
    """They hold the statistics without the prefix of the objective's state."""
    trainer, where = trainer_of(tiny(*IMPORTANT), tmp_path), tmp_path / "checkpoints"
    for step in range(3):
        trainer.descend(trainer.draws(step))
    trainer.save()
    tensors, state = checkpoint.latest(where)
    tensors["times/losses"] = tensors.pop("state/times/losses")
    shutil.rmtree(where)
    checkpoint.save(where, 3, tensors, state)
    again = trainer_of(tiny(*IMPORTANT), tmp_path)
    again.restore()
    assert torch.equal(again.state[HISTORY], trainer.state[HISTORY])
    assert again.descend(again.draws(3)) == trainer.descend(trainer.draws(3))
    assert_same(again.denoiser.state_dict(), trainer.denoiser.state_dict())


def test_importance_is_the_same_in_portions(tiny: MakeRecipe, tmp_path: Path) -> None:
    whole, parts = (trainer_of(tiny(*IMPORTANT, f"training.accumulate={count}"), tmp_path) for count in (1, 4))
    for step in range(6):
        assert parts.descend(parts.draws(step)) == pytest.approx(whole.descend(whole.draws(step)), rel=1e-4)
    torch.testing.assert_close(parts.state[HISTORY], whole.state[HISTORY], rtol=1e-3, atol=1e-6)


def test_a_skipped_step_teaches_the_statistics_nothing(tiny: MakeRecipe, tmp_path: Path) -> None:
    trainer = trainer_of(tiny(*IMPORTANT), tmp_path)
    draw = trainer.draws(0)
    trainer.descend(draw._replace(x0=draw.x0 * math.nan))
    assert trainer.state[HISTORY].sum() == 0


@pytest.mark.parametrize("network", ["compact", "unet", "minimal", "dit"])
@pytest.mark.parametrize("schedule", ["linear", "cosine-continuous"])
def test_a_learned_variance_trains_and_samples(tmp_path: Path, network: str, schedule: str) -> None:
    settings = [f"schedule={schedule}", "target=v", "variance=learned", "variance.bound=0.01", f"network={network}"]
    settings += ["solver=ancestral", "solver.variance=learned", "training.images=960"]
    small = {"unet": ["network.widths=[8, 8]", "network.attention=[false, true]"], "dit": ["network.depth=1"]}
    settings += small.get(network, ["network.width=8"])
    trainer = trainer_of(recipe("digits").set(*settings, "sampling.steps=4"), tmp_path)
    losses = [trainer.descend(trainer.draws(step)) for step in range(12)]
    assert all(math.isfinite(loss) for loss in losses)
    assert trainer.skipped == 0
    sampler = Sampler.of(trainer.recipe, trainer.averaged.model)
    steps = list(sampler.steps(0, sampler.condition(sampler.size)))
    for step in steps:
        assert step.x.isfinite().all()
        assert step.prediction.variance_fraction is not None
        assert step.prediction.variance_fraction.shape == step.x.shape


def test_a_learned_variance_must_have_been_learned(tiny: MakeRecipe, tmp_path: Path) -> None:
    settings = ("schedule=linear", "target=v", "solver=ancestral", "solver.variance=learned")
    with pytest.raises(UserError, match="trained with variance=learned"):
        trainer_of(tiny(*settings), tmp_path)
