"""Objectives of one's own: several losses with an optimizer each, frozen weights, own state, and previews that fail."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from unfog.recipes.build import build_data
from unfog.recipes.kinds import KINDS, register
from unfog.recipes.objective import Context, Draw, Generator, OneLoss
from unfog.recipes.presets import recipe
from unfog.recipes.recipe import Recipe
from unfog.runs.run import fit, load, refit
from unfog.runtime.errors import UserError
from unfog.training import checkpoint
from unfog.training.trainer import Trainer

QUIET = Console(quiet=True)


@dataclass(frozen=True)
class Pair(OneLoss):
    """Two scalars a and b, and one that is frozen: loss a is (a - 1)² + a·b, loss b is (b - 2)² + a·b."""

    draws: ClassVar[bool] = True
    shown: bool = True
    counter: str = "pair/steps"

    def build(self, recipe: Recipe, most: int) -> nn.Module:
        model = nn.Module()
        for name, value in (("a", 3.0), ("b", -1.0), ("frozen", 5.0)):
            model.register_parameter(name, nn.Parameter(torch.tensor([value])))
        return model

    def trained(self, model: nn.Module) -> dict[str, list[nn.Parameter]]:
        return {"a": [model.a], "b": [model.b]}  # type: ignore[list-item]

    def check(self, model: nn.Module, held_out: Any, context: Context) -> None: ...

    def state(self, context: Context) -> dict[str, Tensor]:
        return {self.counter: torch.zeros(1)}

    def losses(self, model: Any, batch: Draw, context: Context) -> dict[str, Tensor]:
        both, rows = model.a * model.b + 0 * model.frozen, batch.u.new_ones(len(batch.u), dtype=torch.float32)
        return {"a": rows * ((model.a - 1) ** 2 + both), "b": rows * ((model.b - 2) ** 2 + both)}

    def update(self, batch: Draw, losses: Tensor, context: Context) -> dict[str, Tensor]:
        return {self.counter: context.state[self.counter] + 1}

    def measured(self, model: Any, batch: Draw, context: Context) -> Tensor:
        return self.losses(model, batch, context)["a"]

    def preview(self, model: nn.Module, held_out: Any, context: Context) -> None:
        if not self.shown:
            raise RuntimeError("no such colour")

    def generator(self, recipe: Recipe, model: nn.Module) -> Generator | None:
        return None if not self.shown else lambda count, *_, **__: torch.full((count, 2), float(model.a.detach()))  # type: ignore[arg-type,return-value]


@pytest.fixture(autouse=True)
def pair(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(KINDS, "objective", dict(KINDS["objective"]))
    register("objective", "pair", Pair)
    return


def chosen(*settings: str) -> Recipe:
    small = ("training.images=256", "training.batch=32", "training.reports=2", "optimizer.warmup=0")
    return recipe("points").set("objective=pair", "optimizer.weight_decay=0", "optimizer.clip=1000", *small, *settings)


def trainer_of(folder: Path, *settings: str) -> Trainer:
    return Trainer(*build_data(chosen(*settings)), folder, torch.device("cpu"))


def test_each_loss_moves_only_its_own_parameters(tmp_path: Path) -> None:
    """The gradients are those of each loss for its own parameter, and the frozen one has none."""
    trainer = trainer_of(tmp_path)
    trainer.descend(trainer.draws(0))
    model: Any = trainer.model
    assert float(model.a.grad) == pytest.approx(2 * (3 - 1) - 1)  # of loss a, not of loss b
    assert float(model.b.grad) == pytest.approx(2 * (-1 - 2) + 3)
    assert model.frozen.grad is None
    assert float(model.frozen.detach()) == 5
    assert float(model.a.detach()) < 3
    assert float(model.b.detach()) > -1


@pytest.mark.parametrize(
    "counter", ["pair/steps", "weights/a", "average/a", "optimizer-a/a:step", "state/steps", "state", "steps"]
)
def test_optimizers_and_state_are_saved_and_resumed_to_the_bit(tmp_path: Path, counter: str) -> None:
    """Also if the state has the name of another part of the checkpoint."""
    named = f"objective.counter={counter}"
    whole, first = trainer_of(tmp_path / "whole", named), trainer_of(tmp_path / "first", named)
    for step in range(6):
        whole.descend(whole.draws(step))
        if step < 3:
            first.descend(first.draws(step))
    first.save()
    again = trainer_of(tmp_path / "first", named)
    again.restore()
    assert float(again.state[counter]) == 3
    for step in range(3, 6):
        again.descend(again.draws(step))
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], tensor), name
    assert float(again.state[counter]) == 6


def saved_with(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> Path:
    """Save a trainer of two steps, and change the tensors of its checkpoint."""
    trainer, where = trainer_of(folder), folder / "checkpoints"
    for step in range(2):
        trainer.descend(trainer.draws(step))
    trainer.save()
    tensors, state = checkpoint.latest(where)
    change(tensors)
    shutil.rmtree(where)
    checkpoint.save(where, state["step"], tensors, state)
    return where


def test_a_checkpoint_from_before_the_state_was_a_part_is_restored(tmp_path: Path) -> None:
    saved_with(tmp_path, lambda tensors: tensors.update({"pair/steps": tensors.pop("state/pair/steps")}))
    again = trainer_of(tmp_path)
    again.restore()
    assert float(again.state["pair/steps"]) == 2


def test_a_checkpoint_whose_state_does_not_fit_is_refused(tmp_path: Path) -> None:
    where = saved_with(tmp_path / "missing", lambda tensors: tensors.pop("state/pair/steps"))
    with pytest.raises(UserError, match=rf"{where} does not fit the recipe: it lacks the objective's pair/steps"):
        trainer_of(tmp_path / "missing").restore()
    saved_with(tmp_path / "unknown", lambda tensors: tensors.update({"state/other": torch.zeros(1)}))
    with pytest.raises(UserError, match=r"does not fit the recipe: it holds other$"):
        trainer_of(tmp_path / "unknown").restore()
    saved_with(tmp_path / "wrong", lambda tensors: tensors.update({"state/pair/steps": torch.zeros(2)}))
    with pytest.raises(UserError, match=r"does not fit the recipe: pair/steps has another shape"):
        trainer_of(tmp_path / "wrong").restore()


def test_a_whole_training_is_sampled_by_its_generator(tmp_path: Path) -> None:
    fit(chosen(), tmp_path / "run", console=QUIET)
    run = load(tmp_path / "run")
    samples = run.sample(3)
    assert samples.shape == (3, 2)
    assert float(samples[0, 0]) < 3
    refit(tmp_path / "run", console=QUIET)  # a finished run is left as it is
    assert torch.equal(run.generator()(3), samples)
    assert not run.denoises
    with pytest.raises(UserError, match=r"the objective 'pair', not a denoiser: only its samples"):
        _ = run.denoiser
    with pytest.raises(UserError, match=r"the objective 'pair', which is not sampled step by step"):
        run.sampler()
    with pytest.raises(UserError, match=r"the objective 'pair', which takes no steps and no negative: omit"):
        run.sample(3, steps=5, negative="x")


def test_a_preview_that_fails_costs_no_training(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"the preview failed \(no such colour\); the training continues"):
        fit(chosen("objective.shown=false"), tmp_path / "run", console=QUIET)
    assert len(list((tmp_path / "run" / "checkpoints").glob("0*"))) >= 1
    with pytest.raises(UserError, match="the objective 'pair', which draws no samples"):
        load(tmp_path / "run").generator()


@dataclass(frozen=True)
class Faulty(Pair):
    """A pair with one fault."""

    fault: str = ""

    def trained(self, model: nn.Module) -> dict[str, list[nn.Parameter]]:
        return {"nothing": {}, "empty": {"a": []}}.get(self.fault, super().trained(model))

    def losses(self, model: Any, batch: Draw, context: Context) -> dict[str, Tensor]:
        losses = super().losses(model, batch, context)
        faults = {
            "scalar": {name: loss.mean() for name, loss in losses.items()},
            "other names": {"c": losses["a"]},
            "constant": {name: torch.ones(len(loss)) for name, loss in losses.items()},
        }
        return faults.get(self.fault, losses)

    def update(self, batch: Draw, losses: Tensor, context: Context) -> dict[str, Tensor]:
        return super().update(batch, losses, context) | ({"more": torch.ones(1)} if self.fault == "state" else {})


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("nothing", "'faulty' names a loss that trains no parameters, or none"),
        ("empty", "'faulty' names a loss that trains no parameters, or none"),
        ("scalar", r"a loss of shape \(32,\) as 'a', a number per row, not one of shape \(\)"),
        ("other names", r"a loss of shape \(32,\) as 'a', a number per row, not none"),
        ("constant", "the loss 'a' does not depend on the parameters that it trains"),
        ("state", r"keeps its names \['pair/steps'\]: update returned \['pair/steps', 'more'\]"),
    ],
)
def test_a_faulty_objective_gets_a_sentence_at_its_first_step(tmp_path: Path, fault: str, sentence: str) -> None:
    register("objective", "faulty", Faulty)
    settings = "objective=faulty", f"objective.fault={fault}"
    with pytest.raises(UserError, match=sentence):
        fit(chosen(*settings), tmp_path / "run", console=QUIET)


def test_an_option_named_kind_is_refused() -> None:
    """Recipes name the part itself so: its folder could not be read."""

    @dataclass(frozen=True)
    class Named(Pair):
        kind: str = "buf"

    with pytest.raises(UserError, match="'named' has an option 'kind', by which recipes name the part itself: rename"):
        register("objective", "named", Named)
