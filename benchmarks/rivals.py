"""Networks of diffusers, and ours of the same topology with the same weights."""

from collections import defaultdict
from typing import Any, NamedTuple

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from unfog.networks.unet import UNet

_PARTS = {
    "resnets": "block",
    "attentions": "attention",
    "conv_shortcut": "shortcut",
    "group_norm": "norm",
    "to_out.0": "out",
    "conv_norm_out": "norm_out",
}
"""What diffusers calls a part, and what we do."""


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
    ours.load_state_dict(renamed(theirs.state_dict(), blocks=2))
    return Twins(theirs, ours, (channels, 32, 32))


def renamed(state: dict[str, Tensor], blocks: int) -> dict[str, Tensor]:
    """Return the weights of a `UNet2DModel` with `blocks` blocks a level under our names."""
    found: dict[str, Tensor] = {}
    products: defaultdict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in state.items():
        for theirs, ours in _PARTS.items():
            name = name.replace(theirs, ours)
        words = name.split(".")
        if words[0] in ("down_blocks", "up_blocks"):
            way = words[0].removesuffix("_blocks")
            level, kind, place, *rest = words[1:]
            if kind.endswith("samplers"):
                words = [f"{way}sample", level, rest[-1]]
            else:
                words = [way, str(int(level) * (blocks + (way == "up")) + int(place)), kind, *rest]
        elif words[0] == "mid_block":
            words = ["middle", words[2] if words[1] == "block" else "0", words[1], *words[3:]]
        if words[-2] in ("to_q", "to_k", "to_v"):
            products[".".join([*words[:-2], "qkv", words[-1]])][words[-2]] = tensor
        else:
            found[".".join(words)] = tensor
    joined = {name: torch.cat([parts[word] for word in ("to_q", "to_k", "to_v")]) for name, parts in products.items()}
    return found | joined


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
