"""A grid of your own: run `python examples/own_grid.py`."""

from dataclasses import dataclass

import torch
from torch import Tensor

import unfog
from unfog.diffusion.grids import Grid, UniformGrid
from unfog.diffusion.schedules import RectifiedFlow, Schedule
from unfog.diffusion.solvers import DPMSolverPP2M


@dataclass(frozen=True)
class SineGrid(Grid):
    """t_i = t_max·(1 + cos(pi·i/steps))/2: small steps at both ends of the clock."""

    def place(self, schedule: Schedule, steps: int) -> Tensor:
        """Return `steps` + 1 times; `Grid` checks that they fall and stay on the clock."""
        return schedule.t_max * (1 + torch.cos(torch.linspace(0, torch.pi, steps + 1, dtype=torch.float64))) / 2


unfog.register("grid", "sine", SineGrid)  # now grid=sine works in recipes and in Run.sample
data = unfog.Mixture(torch.ones(2) / 2, torch.tensor([[-1.0], [1.0]]), torch.full((2, 1), 0.01))
exact, noise = unfog.MixtureDenoiser(data, RectifiedFlow()), torch.randn(4000, 1)
truth = unfog.follow(exact, noise, UniformGrid()(RectifiedFlow(), 500), DPMSolverPP2M())
for grid in (UniformGrid(), SineGrid()):
    found = unfog.follow(exact, noise, grid(RectifiedFlow(), 12), DPMSolverPP2M())
    print(f"{type(grid).__name__:12} error in 12 steps {(found - truth).square().mean().sqrt():.4f}")
