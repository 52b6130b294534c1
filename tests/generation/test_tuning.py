"""Few steps fitted to a model: nearer to where many steps end, on samples that were not fitted."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from unfog.diffusion.fitted import Fitted
from unfog.diffusion.solvers import DPMSolverPP2M
from unfog.generation import tuning
from unfog.generation.sampler import Sampler
from unfog.generation.tuning import Numbers, Portion, Tuned, rows_for, tune
from unfog.recipes.recipe import Recipe
from unfog.runs.run import Run, load
from unfog.runtime.errors import UserError

ROWS = 16


@pytest.fixture(scope="module")
def run(digits_run: Path) -> Run:
    return load(digits_run, "cpu")


def _portions(sampler: Sampler) -> tuple[Portion, Portion]:
    """Samples to fit, and others."""
    sampler = replace(sampler, settings=replace(sampler.settings, batch=ROWS))
    condition = sampler.condition(2 * ROWS)
    return Portion.of(sampler, condition, 0), Portion.of(sampler, condition, ROWS)


def _tuned(run: Run, steps: int, solver: str = "dpmpp-2m", rounds: int = 3, guidance: float = 2.0) -> Tuned:
    """What a few rounds give."""
    sampler = run.sampler(steps=steps, solver=solver, guidance=guidance, seed=7)
    return tune(*_portions(sampler), rounds=rounds)


@pytest.mark.parametrize(("solver", "steps"), [("dpmpp-2m", 4), ("ddim", 2), ("unipc", 3), ("heun", 3), ("ddim", 1)])
def test_other_samples_end_nearer(run: Run, solver: str, steps: int) -> None:
    found = _tuned(run, steps, solver)
    assert found.after <= found.before
    if steps > 1:
        assert found.helps
        assert found.after < (0.95 if solver == "heun" else 0.85) * found.before
    assert isinstance(found.solver, Fitted) == (solver != "heun")
    assert len(found.grid.shares) == steps + 1
    assert found.grid.shares[0] == 1
    assert found.grid.shares[-1] == 0


def test_the_distance_is_that_of_the_sampler_which_it_makes(run: Run) -> None:
    """On samples that the fit saw nothing of, drawn by the sampler itself."""
    sampler = run.sampler(steps=4, solver="dpmpp-2m", guidance=2.0, seed=7)
    found = tune(*_portions(sampler), rounds=3)
    _, others = _portions(sampler)
    own = replace(others.sampler, solver=found.solver, grid=found.grid)
    ends = [step.x for step in own.steps(others.first, others.condition)][-1]
    assert float(others.missed(ends).mean()) == pytest.approx(found.after, rel=1e-4)
    new = replace(others.sampler, seed=8)
    fresh = Portion.of(new, others.condition, 0)
    fitted, usual = replace(new, solver=found.solver, grid=found.grid), replace(new, grid=tuning.grids()[found.usual])
    missed = [
        float(fresh.missed([step.x for step in one.steps(0, others.condition)][-1]).mean()) for one in (fitted, usual)
    ]
    assert missed[0] < 0.8 * missed[1]


def test_a_change_is_found_by_evaluating_no_more_than_it_changes(run: Run) -> None:
    """What is kept of the predictions makes no difference."""
    portion, _ = _portions(run.sampler(steps=4, solver="dpmpp-2m", guidance=2.0))
    schedule = portion.sampler.denoiser.schedule
    times = portion.sampler.grid(schedule, 4)
    numbers = Numbers(times, tuning._shares(portion.sampler, times))
    _, known = portion.drawn(numbers)
    tried = tuning._tried(numbers, schedule)
    assert len(tried) == 3 + 10
    assert [first for first, _, _ in tried] == [1, 2, 3, 1, 2, 2, 3, 3, 3, 4, 4, 4, 4]
    for first, _, other in tried:
        assert torch.equal(portion.drawn(other, known[:first])[0], portion.drawn(other)[0])
        assert not torch.equal(portion.drawn(other)[0], portion.drawn(numbers)[0])


def test_one_round_that_does_not_help_others_is_not_the_end(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    portions = _portions(run.sampler(steps=4, solver="dpmpp-2m", guidance=2.0, seed=7))
    _, start, missed = tuning._best(portions[1], tuning.grids())
    better, _ = tuning._changed(portions[0], start, tuning.DAMPING, lambda evaluations: None)
    assert better is not None
    assert start.shares is not None
    worse = start._replace(shares=[[1.1 * one for one in row] for row in start.shares])
    found = iter([worse, better, worse, worse, better])
    monkeypatch.setattr(tuning, "_changed", lambda *given: (next(found), 0.01))
    tuned = tune(*portions)
    assert tuned.before == pytest.approx(float(missed.mean()))
    assert tuned.after == pytest.approx(float(portions[1].missed(portions[1].drawn(better)[0]).mean()))
    assert next(found) is better  # after two rounds that did not help it is


def test_without_a_round_nothing_helps(run: Run) -> None:
    found = _tuned(run, 4, rounds=0)
    assert found.before == found.after
    assert found.better == 0
    assert not found.helps


def test_with_cfg_plus_plus_only_times_are_fitted(
    train_into: Callable[[Recipe, str], Path], tiny: Callable[..., Recipe]
) -> None:
    """Its pair is not that of x_t, which a rule of x0 alone would lose."""
    plus = load(train_into(tiny("sampling.guidance_kind=cfg++", "sampling.guidance=0.6", "solver=ddim"), "plus"), "cpu")
    found = _tuned(plus, 3, "ddim", guidance=0.6)
    assert not isinstance(found.solver, Fitted)
    with pytest.raises(UserError, match="a single step has nothing to tune"):
        _tuned(plus, 1, "ddim", guidance=0.6)


def test_what_cannot_be_tuned_is_refused(run: Run) -> None:
    with pytest.raises(UserError, match="draws noise at each step"):
        _tuned(run, 4, "ancestral")


def test_models_that_are_not_finite_are_refused(digits_run: Path) -> None:
    run = load(digits_run, "cpu")
    with torch.no_grad():
        next(run.denoiser.network.parameters()).fill_(float("nan"))  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="not finite"):
        _portions(run.sampler(steps=4, solver="dpmpp-2m"))


def test_large_samples_are_fewer(run: Run) -> None:
    sampler = run.sampler(steps=10, solver="dpmpp-2m")
    assert rows_for(sampler) == 64
    large = replace(sampler, known=sampler.known._replace(shape=(3, 256, 256)))
    assert 4 <= rows_for(large) < 8
    assert DPMSolverPP2M() == sampler.solver
