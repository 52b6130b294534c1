"""Fitting few steps to a run: for each number of steps the times, and the coefficients of a rule, that fit it best."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from torch import Tensor

from unfog.diffusion.fitted import shares_of
from unfog.diffusion.grids import TimesGrid
from unfog.diffusion.solvers import DPMSolverPP2M, RungeKutta45
from unfog.generation import tuning
from unfog.generation.sampler import Sampler
from unfog.generation.tuning import ROUNDS, Portion, Tuned, rows_for
from unfog.recipes.conditions import Asked
from unfog.recipes.fitting import default_grid
from unfog.recipes.kinds import kind_of
from unfog.runs import asking
from unfog.runs.run import Run, load
from unfog.runs.tuned import LONGEST, keep
from unfog.runtime import distributed
from unfog.runtime.errors import UserError, whole_number
from unfog.runtime.files import locked
from unfog.runtime.lines import counted
from unfog.runtime.progress import working

STEPS = (4, 5, 6, 8, 10)
"""Numbers of steps that are fitted by default."""
SEED = 0x70E5
"""Set in the seed of the noise, so that no sample that is drawn with the same seed was fitted."""


def tune(
    run: Run | str | Path,
    steps: Sequence[int] = STEPS,
    *,
    solver: str | None = None,
    guidance: float | None = None,
    asked: Asked = None,
    rounds: int = ROUNDS,
    save: bool = False,
    seed: int = 0,
    device: str = "auto",
    console: Console | None = None,
) -> list[Tuned]:
    """Fit few steps to a run: times, and coefficients of a solver, that end where many steps do.

    A linear solver with one evaluation a step becomes x_k = (sigma_k/sigma_0)·x_0 + alpha_k·sum_j<k S_kj·x0_j with free
    S and times; of others the times are free. They minimise the mean square distance to the end points of many steps.

    Args:
        run: A run, or its folder.
        steps: Numbers of steps.
        solver: The solver to start from; default: the recipe's where a step of it is linear and draws no noise, else
            dpmpp-2m.
        guidance: Scale of guidance; default: the recipe's.
        asked: What the samples show that are fitted, for models that draw nothing without.
        rounds: Changes of all numbers, at most.
        save: Whether to keep what helps in the run folder, where sampling finds it.
        seed: Seed of the noise.
        device: Where to compute, if `run` is a folder.
        console: Shows the progress; default: standard error.

    Returns: What was found for each number of steps, rising.
    Raises: UserError: If the model is no denoiser or a flow map, or the solver cannot be tuned.
    Source: Tong et al. 2024, LD3; Frankel et al. 2025, S4S.
    """
    loaded = run if isinstance(run, Run) else load(run, device)
    found = list(
        fit(loaded, steps, solver=solver, guidance=guidance, asked=asked, rounds=rounds, seed=seed, console=console)
    )
    better = [(sampler, tuned) for sampler, tuned in found if tuned.helps]
    if save and better:
        with locked(loaded.path):
            keep(loaded.path, better)
    return [tuned for _, tuned in found]


def fit(
    run: Run,
    steps: Sequence[int] = STEPS,
    *,
    solver: str | None = None,
    guidance: float | None = None,
    asked: Asked = None,
    rounds: int = ROUNDS,
    seed: int = 0,
    console: Console | None = None,
) -> Iterator[tuple[Sampler, Tuned]]:
    """Do as `tune` does, and yield each sampler with what was found for it."""
    numbers = sorted({whole_number("the number of steps", one, 1, LONGEST) for one in steps})
    rounds = whole_number("the number of rounds", rounds, 0)
    if distributed.size() > 1:
        raise UserError("unfog tune runs as one process: start it without torchrun")
    if run.denoiser.span is not None:
        raise UserError(
            f"{run.path} is a flow map, which jumps along trajectories: there is nothing to tune, raise steps"
        )
    chosen = solver or _usual(run)
    explicit = isinstance(run.recipe.grid, TimesGrid)  # of one number of steps, while the ends need many
    grid = default_grid(run.recipe.schedule) if explicit else run.recipe.grid
    samplers = [
        run.sampler(solver=chosen, grid=grid, steps=one, guidance=guidance, seed=seed ^ SEED) for one in numbers
    ]
    if samplers[0].solver.stochastic:
        raise UserError(f"the solver {chosen} draws noise at each step and cannot be tuned: use ddim or dpmpp-2m")
    if isinstance(samplers[0].solver, RungeKutta45):
        raise UserError(f"the solver {chosen} chooses its own steps and cannot be tuned: use ddim or dpmpp-2m")
    failed: list[UserError] = []
    with working("fitting", None, console=console or Console(stderr=True)) as work:
        for sampler in samplers:
            work.describe(f"{counted(sampler.settings.steps, 'step')}: where {chosen} should end")
            rows = rows_for(sampler)
            few = replace(sampler, settings=replace(sampler.settings, batch=rows))
            condition = _condition(few, 2 * rows, asked)
            fitted, others = (Portion.of(few, condition, first) for first in (0, rows))
            work.describe(f"{counted(sampler.settings.steps, 'step')}: fitting")
            try:
                found = tuning.tune(fitted, others, rounds=rounds, watch=work.advance)
            except UserError as error:  # of one number of steps, which costs the others nothing
                failed.append(error)
                warnings.warn(f"{counted(sampler.settings.steps, 'step')} not tuned: {error}", stacklevel=3)
                continue
            yield sampler, found
    if len(failed) == len(samplers):
        raise failed[0]


def _usual(run: Run) -> str:
    """Return the solver to start from: the recipe's, if it can be fitted."""
    sampler = run.sampler(steps=2, grid="uniform")
    own = run.recipe.kind("solver")
    times = sampler.grid(sampler.denoiser.schedule, 2)
    if shares_of(sampler.solver, sampler.denoiser.schedule, times) is not None:
        return own
    usual = kind_of("solver", DPMSolverPP2M())
    warnings.warn(
        f"{usual} is tuned instead of the run's {own}, which draws noise or evaluates the model twice a step: sample "
        f"with --solver {usual}",
        stacklevel=3,
    )
    return usual


def _condition(sampler: Sampler, count: int, asked: Asked) -> Tensor | None:
    """Return conditions of so many samples: what was asked for in turn, else all classes or some captions."""
    if asked is None:
        return sampler.condition(count)
    found = sampler.condition(count, asking.in_turn(asked, count))
    return found if found is None else found[:count]
