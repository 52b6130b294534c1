"""objective=flow-map: which times its rows have, what it is sampled by, and that it is a run like any other."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import unfog
from unfog.data.codecs import Pixels
from unfog.diffusion.solvers import DDIM
from unfog.interop.export import export_model
from unfog.recipes.objective import Context, Draw
from unfog.recipes.presets import recipe
from unfog.recipes.recipe import Recipe
from unfog.runs.distilling import student_of
from unfog.runs.run import Run, load, resume
from unfog.runs.tuning import tune
from unfog.runtime.errors import UserError
from unfog.training.objectives.flow_map import FlowMap
from unfog.training.plan import plan

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def jumping(train_into: Callable[[Recipe, str], Path], tiny: Callable[..., Recipe]) -> Run:
    return load(train_into(tiny("objective=flow-map"), "jumping"), "cpu")


def _draw(count: int, first: int = 0) -> Draw:
    """Rows with numbers of their own."""
    zeros = torch.zeros(count, 1, 8, 8)
    u = (torch.arange(count).double() + 0.5) / count
    return Draw(zeros, None, torch.zeros(count, dtype=torch.bool), u, zeros, numbers=torch.arange(first, first + count))


def _ways(objective: FlowMap, count: int = 4096, first: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    return objective.ways(_draw(count, first), Context(recipe("digits"), Pixels()))


def test_rows_are_shared_out_as_the_options_say() -> None:
    objective = FlowMap(straight=0.25, to_data=0.6, from_noise=0.1)
    t, s = _ways(objective)
    jump = s < t
    assert float((~jump).double().mean()) == pytest.approx(0.25, abs=0.03)
    assert float((s[jump] == 0).double().mean()) == pytest.approx(0.6, abs=0.03)
    assert float((t[jump] == 1).double().mean()) == pytest.approx(0.1, abs=0.03)
    assert torch.equal(t[~jump], s[~jump])
    assert (t[~jump] < 1).all()
    between = (s / t)[jump & (s > 0)]
    assert float(between.mean()) == pytest.approx(0.5, abs=0.03)
    assert torch.equal(_ways(objective, 8, 100)[1] < 1, _ways(objective, 8, 100)[1] < 1)
    assert not torch.equal(_ways(objective, 64, 0)[1], _ways(objective, 64, 64)[1])


def test_the_ratio_falls_from_one_to_the_last_and_stays() -> None:
    objective = FlowMap(last=0.01, fall=0.5)
    assert [round(objective.ratio(progress), 6) for progress in (0, 0.25, 0.5, 1)] == [1, 0.1, 0.01, 0.01]


@pytest.mark.parametrize("wrong", [{"straight": 1.5}, {"to_data": -0.1}, {"last": 0.0}, {"fall": 2.0}])
def test_options_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"objective\."):
        FlowMap(**wrong)


def test_it_is_sampled_by_ddim_in_four_steps_unless_another_way_is_chosen() -> None:
    found = recipe("digits").set("objective=flow-map")
    assert (found.solver, found.sampling.steps, found.sampling.clip) == (DDIM(), 4, False)
    other = recipe("digits").set("objective=flow-map", "solver=heun", "sampling.steps=9", "sampling.clip=true")
    assert (other.kind("solver"), other.sampling.steps, other.sampling.clip) == ("heun", 9, True)
    again = other.set("objective.last=0.1")
    assert (again.kind("solver"), again.sampling.steps) == ("heun", 9)


def test_a_flow_map_is_a_run_like_any_other(jumping: Run, tmp_path: Path) -> None:
    whole = jumping.sample(70, guidance=2.0)
    assert torch.equal(jumping.sample(3, guidance=2.0), whole[:3])
    for steps in (1, 2):
        assert not torch.equal(jumping.sample(3, steps=steps), jumping.sample(3))
    with pytest.raises(UserError, match="diffusers has no pipeline"):
        export_model(jumping, tmp_path / "diffusers")
    with pytest.raises(UserError, match="is a flow map, which is sampled in few steps as it is"):
        student_of(jumping.path)
    with pytest.raises(UserError, match="which jumps along trajectories"):
        tune(jumping, [2], console=QUIET)


def test_the_step_that_leads_is_the_jump(jumping: Run) -> None:
    """One step of ddim from noise leads where the map says, not where the denoiser points."""
    sampler = jumping.sampler(steps=1, guidance=1.0)
    condition = sampler.condition(64)
    (step,) = list(sampler.steps(0, condition))
    denoiser = jumping.denoiser
    x = sampler.start(0, denoiser.schedule, torch.tensor(1.0).double())
    assert denoiser.embedder is not None
    with torch.inference_mode(), jumping.arithmetic():
        one, zero = torch.ones(64).double(), torch.zeros(64).double()
        jump = denoiser(x, one, denoiser.embedder(condition), zero)
        still = denoiser(x, one, denoiser.embedder(condition))
    near = float((step.x - jump.x0).abs().max())
    assert near < 0.1 * float((step.x - still.x0).abs().max())


def test_it_resumes_to_the_bit(train_into: Callable[[Recipe, str], Path], tiny: Callable[..., Recipe]) -> None:
    chosen = tiny("objective=flow-map", "training.images=256", "training.reports=4", "network.dropout=0.1")
    whole = load(train_into(chosen, "whole"), "cpu")
    steps: list[int] = []
    out = whole.path.parent / "part"
    unfog.train(chosen, out, stop=lambda: steps.append(1) or len(steps) > 3, device="cpu", console=QUIET)
    again = resume(out, device="cpu", console=QUIET)
    assert all(
        torch.equal(one, other) for one, other in zip(whole.model.parameters(), again.model.parameters(), strict=True)
    )


def test_held_out_loss_is_that_of_a_denoiser(jumping: Run) -> None:
    objective = jumping.recipe.objective
    assert isinstance(objective, FlowMap)
    random = torch.Generator().manual_seed(0)
    draw = _draw(16)._replace(
        x0=torch.randn(16, 1, 8, 8, generator=random), noise=torch.randn(16, 1, 8, 8, generator=random)
    )
    draw = draw._replace(condition=torch.arange(16) % 10)
    with torch.inference_mode():
        early, late = (
            objective.measured(jumping.model, draw, Context(jumping.recipe, Pixels(), progress)) for progress in (0, 1)
        )
        moving = objective.losses(jumping.model, draw, Context(jumping.recipe, Pixels(), 0.5))["loss"]
    assert torch.equal(early, late)
    assert not torch.equal(moving, late)


def test_no_variance_can_be_learned_and_its_training_can_be_planned(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no variance to learn"):
        unfog.train(recipe("digits").set("objective=flow-map", "variance=learned"), tmp_path, console=QUIET)
    small = recipe("digits").set("objective=flow-map", "network.width=8", "training.images=512")
    assert plan(small, device="cpu", console=QUIET).steps > 0


def test_it_learns_in_bfloat16(train_into: Callable[[Recipe, str], Path], tiny: Callable[..., Recipe]) -> None:
    chosen = tiny("objective=flow-map", "training.images=64", "training.precision=bfloat16", "network.dropout=0.1")
    assert load(train_into(chosen, "low"), "cpu").sample(2).shape == (2, 1, 8, 8)
