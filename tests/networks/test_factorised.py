"""Attention over space and then over time: what is written in loops gives the same."""

import pytest
import torch
from torch import Tensor

from unfog.networks.compact import Compact
from unfog.networks.factorised import Factorised
from unfog.networks.layers import ChannelNorm, SelfAttention


def attention() -> SelfAttention:
    return SelfAttention(ChannelNorm(8), 8, 4)


@pytest.mark.parametrize("space", [(3, 4), (5,)])
def test_it_is_space_in_each_frame_and_then_time_at_each_place(space: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    layer, x = Factorised(attention), torch.randn(2, 8, 6, *space)
    assert layer.space is not layer.time
    frames = torch.stack([layer.space(x[:, :, number]) for number in range(6)], 2)
    wanted = frames.flatten(3).clone()
    for place in range(wanted.shape[3]):
        wanted[..., place] = layer.time(frames.flatten(3)[..., place])
    torch.testing.assert_close(layer(x), wanted.reshape(x.shape))


def test_a_network_of_clips_takes_it_and_one_of_series_does_not() -> None:
    torch.manual_seed(0)
    network = Compact(1, dims=3, width=8, middle=1, factorised=True)
    torch.nn.init.normal_(network.patch_out.weight, std=0.1)  # type: ignore[union-attr, arg-type]
    x, time = torch.randn(1, 1, 4, 8, 8), torch.tensor([500.0])

    def changed(frame: int) -> Tensor:
        other = x.clone()
        other[:, :, 0] += 1
        return (network(other, time) - network(x, time))[:, :, frame].detach().abs().max()

    assert float(changed(3)) > 1e-4  # frames know of each other
    with pytest.raises(ValueError, match="needs time and space"):
        Compact(1, dims=1, factorised=True)
