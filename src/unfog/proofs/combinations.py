"""Every solver on every schedule and its default grid, at few steps and on data whose mean is not zero."""

from collections.abc import Collection
from functools import partial

import torch
from torch import Tensor

from unfog.diffusion.defaults import grid_of
from unfog.diffusion.denoiser import on_clock
from unfog.diffusion.grids import Grid
from unfog.diffusion.names import NAMES
from unfog.diffusion.oracle import Mixture, MixtureDenoiser
from unfog.diffusion.sampling import follow
from unfog.diffusion.schedules import Schedule, as_time
from unfog.diffusion.solvers import DDIM, RungeKutta45, Solver
from unfog.diffusion.tables import Linear, Table
from unfog.proofs.checks import Proof
from unfog.recipes.fitting import default_grid
from unfog.recipes.kinds import class_of

COUNTS = (10, 20)
"""Numbers of steps."""
WORSE = 5.0
"""How many times worse than DDIM a deterministic rule may be."""
FIRST_ORDER, MEAN = 0.15, 0.05
"""Largest error of DDIM, and how far the mean of a stochastic rule may lie from the truth: the data lie 0.6 away from
0, and 0.3 to both sides of their mean."""


def _data() -> Mixture:
    """Return two clusters with the mean (-0.6, -0.6)."""
    means = torch.tensor([[-0.9, -0.6], [-0.3, -0.6]]).double()
    return Mixture(as_time([0.5, 0.5]), means, torch.full((2, 2), 0.01).double())


def _made(kind: str) -> Schedule:
    """Return the schedule of a name with its default options; a table gets the entries of the linear one."""
    made: Schedule = Table(Linear().alphas_cumprod) if kind == "table" else class_of("schedule", kind)()
    return made


def _noise(generator: torch.Generator, step: int, like: Tensor) -> Tensor:
    """Draw noise in pairs of opposite sign, which has no mean."""
    half = torch.randn(len(like) // 2, like.shape[1], generator=generator, dtype=like.dtype)
    return torch.cat([half, -half])


def _drawn(schedule: Schedule, solver: Solver, grid: Grid, steps: int) -> Tensor:
    """Return 128 samples, always from the same noise."""
    denoise, times = on_clock(MixtureDenoiser(_data(), schedule), grid(schedule, steps), solver.clock)
    generator = torch.Generator().manual_seed(0)
    start = float(denoise.schedule.sigma(times[0])) * _noise(generator, -1, torch.zeros(128, 2).double())
    return follow(denoise, start, times, solver, noise=partial(_noise, generator))


def combinations(
    kinds: Collection[str] = tuple(NAMES["schedule"]), solvers: dict[str, Solver] | None = None
) -> list[Proof]:
    """Return the worst that each rule does on the default grids of some schedules, of recipes and of `sample`.

    Of DDIM that is its error, of other deterministic rules their error as a multiple of DDIM's, and of stochastic ones
    how far the mean of the samples lies from that of the exact flow.

    Args:
        kinds: Names of schedules.
        solvers: Rules by name. Default: all but the adaptive one, which is the exact flow here and has its own proof.
    """
    rules = solvers or {name: class_of("solver", name)() for name in NAMES["solver"] if name != "rk45"}
    worst = dict.fromkeys(["ddim", *rules], 0.0)
    for schedule in map(_made, kinds):
        grids = dict.fromkeys([default_grid(schedule), grid_of(schedule)])
        exact = _drawn(schedule, RungeKutta45(1e-6, 1e-6), grid_of(schedule), 1)
        for grid, steps in ((grid, steps) for grid in grids for steps in COUNTS):
            first = _rms(_drawn(schedule, DDIM(), grid, steps) - exact)
            worst["ddim"] = max(worst["ddim"], first)
            for name, solver in rules.items():
                if name == "ddim":
                    continue
                off = _drawn(schedule, solver, grid, steps) - exact
                found = float(off.mean(0).abs().max()) if solver.stochastic else _rms(off) / first
                worst[name] = max(worst[name], found)
    limits = {name: MEAN if solver.stochastic else WORSE for name, solver in rules.items()}
    return [Proof(f"defaults: {name}", found, {**limits, "ddim": FIRST_ORDER}[name]) for name, found in worst.items()]


def _rms(difference: Tensor) -> float:
    """Return the root mean square."""
    return float(difference.square().mean().sqrt())
