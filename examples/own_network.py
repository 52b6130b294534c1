"""A network of your own in a recipe: run `python examples/own_network.py`."""

import tempfile
from typing import ClassVar

import torch
from torch import Tensor, nn

import unfog
from unfog.networks.conditioning import Cond


class Fourier(nn.Module):
    """One wide layer of random sines of the point and the time, then an MLP."""

    channels_last: ClassVar[bool] = False

    def __init__(self, channels: int, *, width: int = 256) -> None:
        """Build the network; annotated keyword parameters are its options, `channels` comes from the data."""
        super().__init__()
        self.embedding_dim, self.multiple = width, 1  # length of a condition's vector; sides are multiples of 1
        self.frequencies = nn.Linear(channels + 1, width)
        self.out = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, channels))

    def forward(self, x: Tensor, time: Tensor, cond: Cond | None = None) -> Tensor:
        """Map `(batch, channels)` and times `(batch,)` to an output shaped like `x`."""
        h = torch.sin(3 * self.frequencies(torch.cat([x, time[:, None] / 1000], 1)))
        output: Tensor = self.out(h if cond is None or cond.vector is None else h + cond.vector)
        return output


unfog.register("network", "fourier", Fourier)
recipe = unfog.recipe("points").set("network=fourier", "network.width=128", "training.images=8000")
with tempfile.TemporaryDirectory() as folder:
    run = unfog.train(recipe, f"{folder}/moons")
    print(f"points drawn by the network 'fourier': {run.sample(256).shape}")
