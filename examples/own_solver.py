"""A solver of your own, and a measurement of its order: run `python examples/own_solver.py`."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

import unfog
from unfog.diffusion.denoiser import Denoise
from unfog.diffusion.solvers import Noise, Solver, Step
from unfog.proofs.orders import problems


@dataclass(frozen=True)
class Midpoint(Solver):
    """x_s = x_t + (s - t)·v(m), with the velocity v at the middle m, half an Euler step ahead."""

    order = 2
    velocity = True

    def step(self, denoise: Denoise, x: Tensor, t: Tensor, s: Tensor, past: Sequence[Step], noise: Noise) -> Step:
        """Take half an Euler step, then a full step with the velocity there."""
        prediction = denoise(x, t)
        alpha_rate, sigma_rate = denoise.schedule.rates(t)
        middle, half = (t + s) / 2, float(s - t) / 2
        ahead = denoise(x + half * (alpha_rate * prediction.x0 + sigma_rate * prediction.eps), middle)
        alpha_rate, sigma_rate = denoise.schedule.rates(middle)
        return Step(t, s, x + 2 * half * (alpha_rate * ahead.x0 + sigma_rate * ahead.eps), prediction)


unfog.register("solver", "midpoint", Midpoint)  # now solver=midpoint works in recipes and in Run.sample
for problem in problems()[:4]:
    print(f"{problem.name:24} order {problem.order(Midpoint(), given=True):.2f} where {Midpoint.order} is stated")
