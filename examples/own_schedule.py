"""A schedule of your own in a recipe: run `python examples/own_schedule.py`."""

import tempfile
from dataclasses import dataclass

import torch
from torch import Tensor

import unfog
from unfog.diffusion.schedules import Schedule, as_time


@dataclass(frozen=True)
class Power(Schedule):
    """alpha = 1 - t^power, sigma = t: the flow schedule, with more time spent near the data."""

    power: float = 2.0

    def alpha(self, t: Tensor | float) -> Tensor:
        """Return 1 - t^power."""
        return 1 - as_time(t) ** self.power

    def sigma(self, t: Tensor | float) -> Tensor:
        """Return t."""
        return as_time(t).clone()

    def time(self, log_snr: Tensor | float) -> Tensor:
        """Invert by bisection in sixty steps; use a closed form if there is one."""
        low = torch.zeros_like(as_time(log_snr))
        high = torch.ones_like(low)
        for _ in range(60):
            middle = (low + high) / 2
            quiet = self.log_snr(middle) > log_snr
            low, high = torch.where(quiet, middle, low), torch.where(quiet, high, middle)
        return (low + high) / 2


Power().check()  # raises unless the log-SNR falls over the whole clock
unfog.register("schedule", "power", Power)
recipe = unfog.recipe("points").set("schedule=power", "schedule.power=1.5", "training.images=8000")
with tempfile.TemporaryDirectory() as folder:
    run = unfog.train(recipe, f"{folder}/moons")
    print(f"points drawn on the schedule 'power': {run.sample(256).shape}")
