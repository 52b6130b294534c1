"""A network of your own in a recipe: call `python examples/own_network.py`."""

import tempfile
from typing import ClassVar

import torch
from torch import Tensor, nn

import unfog
from unfog.networks.conditioning import Cond


class Fourier(nn.Module):
    """Points through one wide layer of random sines, told the time beside them."""

    channels_last: ClassVar[bool] = False

    def __init__(self, channels: int, *, width: int = 256) -> None:
        """Build the network; the options are the keywords with annotations, `channels` comes from the data."""
        super().__init__()
        self.embedding_dim, self.multiple = width, 1  # the length of a condition's vector; sides need be multiples
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
