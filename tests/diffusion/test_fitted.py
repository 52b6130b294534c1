"""Fitted rules: any linear solver is one of them, to rounding."""

import pytest
import torch

from unfog.diffusion.denoiser import on_clock
from unfog.diffusion.fitted import Fitted, followed, shares_of
from unfog.diffusion.grids import Grid, KarrasGrid, LogSNRGrid, UniformGrid
from unfog.diffusion.oracle import Mixture, MixtureDenoiser
from unfog.diffusion.sampling import follow, trajectory
from unfog.diffusion.schedules import EDM, CosineContinuous, RectifiedFlow, Schedule
from unfog.diffusion.solvers import (
    DDIM,
    AdamsBashforth,
    Ancestral,
    DPMSolver2,
    DPMSolverPP2M,
    DPMSolverPP3M,
    Euler,
    Heun,
    Solver,
    UniPC,
)
from unfog.diffusion.tables import Linear
from unfog.runtime.errors import UserError

MIXTURE = Mixture(
    weights=torch.tensor([0.3, 0.7]).double(),
    means=torch.tensor([[0.8, -0.3], [-0.5, 0.6]]).double(),
    variances=torch.tensor([[0.30, 0.12], [0.20, 0.25]]).double(),
)
LINEAR: tuple[Solver, ...] = (DDIM(), Euler(), DPMSolverPP2M(), DPMSolverPP3M(), UniPC(), AdamsBashforth())
SCHEDULES: tuple[tuple[Schedule, Grid], ...] = (
    (RectifiedFlow(), UniformGrid()),
    (CosineContinuous(), LogSNRGrid()),
    (EDM(), KarrasGrid()),
    (Linear(), LogSNRGrid()),
)


def _start(schedule: Schedule, times: torch.Tensor) -> torch.Tensor:
    """Noise at the first time."""
    noise = torch.randn(50, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return schedule.numbers(times[0])[1] * noise


@pytest.mark.parametrize("solver", LINEAR, ids=lambda solver: type(solver).__name__)
@pytest.mark.parametrize(("schedule", "grid"), SCHEDULES, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_a_linear_solver_is_a_fitted_rule(solver: Solver, schedule: Schedule, grid: Grid, steps: int) -> None:
    times = grid(schedule, steps)
    denoise, own = on_clock(MixtureDenoiser(MIXTURE, schedule), times, solver.clock)
    exact = follow(denoise, _start(denoise.schedule, own), own, solver)
    shares = shares_of(solver, schedule, times)
    assert shares is not None
    rule = Fitted(tuple(times.tolist()), shares)
    found = follow(MixtureDenoiser(MIXTURE, schedule), _start(schedule, times), times, rule)
    torch.testing.assert_close(found, exact / denoise.schedule.numbers(own[-1])[0], rtol=1e-6, atol=1e-6)
    again, _ = followed(MixtureDenoiser(MIXTURE, schedule), _start(schedule, times), times, shares)
    torch.testing.assert_close(again, found, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("solver", [Heun(), DPMSolver2(), Ancestral()], ids=lambda solver: type(solver).__name__)
def test_a_solver_that_is_not_linear_in_one_prediction_a_step_is_none(solver: Solver) -> None:
    assert shares_of(solver, RectifiedFlow(), UniformGrid()(RectifiedFlow(), 5)) is None


def test_what_is_known_is_not_evaluated_again() -> None:
    schedule = RectifiedFlow()
    times = UniformGrid()(schedule, 4)
    shares = shares_of(DPMSolverPP2M(), schedule, times)
    assert shares is not None
    denoise, start = MixtureDenoiser(MIXTURE, schedule), _start(schedule, times)
    whole, predictions = followed(denoise, start, times, shares)
    assert len(predictions) == 4
    for count in range(5):
        part, more = followed(denoise, start, times, shares, predictions[:count])
        assert torch.equal(part, whole)
        assert all(one is other for one, other in zip(more[:count], predictions, strict=False))


def test_a_rule_refuses_other_times_and_other_shapes() -> None:
    denoise, rule = MixtureDenoiser(MIXTURE, RectifiedFlow()), Fitted((1.0, 0.4, 0.0), ((1.0,), (-0.2, 1.2)))
    own = torch.tensor([1.0, 0.4, 0.0], dtype=torch.float64)
    start = _start(RectifiedFlow(), own)
    follow(denoise, start, own, rule)
    for other in ([1.0, 0.5, 0.0], [1.0, 0.4, 0.1], [1.0, 0.0], [1.0, 0.4, 0.2, 0.0], [0.4, 0.0]):
        times = torch.tensor(other, dtype=torch.float64)
        with pytest.raises(UserError, match="takes the steps that it was fitted to"):
            list(trajectory(denoise, start, times, rule))
    for shares in ((), ((1.0,),), ((1.0,), (1.0,)), ((1.0, 2.0), (1.0, 2.0))):
        with pytest.raises(UserError, match="a row for each step"):
            Fitted((1.0, 0.4, 0.0), shares)
