"""Networks of diffusers, and ours of the same topology with the same weights."""

from typing import Any, NamedTuple

from diffusers import UNet2DModel
from torch import Tensor, nn

from unfog.interop import names
from unfog.networks.unet import UNet


class Topology(NamedTuple):
    """What both sides build: channels of a picture, and widths, attention and its heads level by level."""

    channels: int
    widths: tuple[int, ...]
    attends: tuple[bool, ...]
    head: int | None


TOPOLOGIES = {
    "course": Topology(1, (32, 64, 64), (False, True, True), 8),
    "cifar10": Topology(3, (128, 256, 256, 256), (False, True, False, False), None),
}


class Twins(NamedTuple):
    """Two networks that compute the same.

    Attributes:
        theirs: Of diffusers.
        ours: Of unfog.
        shape: Shape of one state.
    """

    theirs: UNet2DModel
    ours: UNet
    shape: tuple[int, ...]


def twins(name: str) -> Twins:
    """Return the network of diffusers' course, of 1.7 million parameters, or that of DDPM for CIFAR-10, of 35.7.

    Args:
        name: "course" or "cifar10".
    """
    channels, widths, attends, head = TOPOLOGIES[name]
    theirs = UNet2DModel(
        sample_size=32,
        in_channels=channels,
        out_channels=channels,
        layers_per_block=2,
        block_out_channels=widths,
        down_block_types=tuple("AttnDownBlock2D" if one else "DownBlock2D" for one in attends),
        up_block_types=tuple("AttnUpBlock2D" if one else "UpBlock2D" for one in reversed(attends)),
        attention_head_dim=head,
    )
    ours = UNet(channels, widths=widths, blocks=2, attention=attends, head=head or max(widths))
    ours.load_state_dict(names.ours(theirs.state_dict(), ours, name))
    return Twins(theirs, ours, (channels, 32, 32))


class Answer(nn.Module):
    """A network of diffusers that answers with a tensor."""

    def __init__(self, network: UNet2DModel) -> None:
        """Wrap it."""
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, time: Tensor, cond: Any = None) -> Tensor:
        """Map a state and times to its output."""
        answer: Tensor = self.network(x, time).sample
        return answer
