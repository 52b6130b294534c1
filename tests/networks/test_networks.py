"""Networks: shapes in one, two and three dimensions, what conditions reach, and layers against literal formulas."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from unfog.networks.compact import Compact
from unfog.networks.conditional import ConditionalUNet
from unfog.networks.conditioning import ClassEmbedding, Cond
from unfog.networks.dit import DiT, positions
from unfog.networks.joint import JointBlock, JointDiT
from unfog.networks.layers import ChannelNorm, SelfAttention, conv, enlarged, sinusoidal
from unfog.networks.minimal import Minimal
from unfog.networks.mlp import MLP
from unfog.networks.unet import UNet

SPACE = {
    "unet": lambda dims: UNet(3, dims=dims, widths=(16, 32), attention=(False, True), blocks=1),
    "compact": lambda dims: Compact(3, dims=dims, width=16, patch=2),
    "minimal": lambda dims: Minimal(3, dims=dims, width=16),
    "dit": lambda dims: DiT(3, dims=dims, width=32, depth=2, head=16),
}


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("name", SPACE)
def test_shapes_in_every_dimension(name: str, dims: int) -> None:
    network = SPACE[name](dims)
    x = torch.randn(2, 3, *[8, 12, 4][:dims])
    assert network(x, torch.tensor([3.0, 700.0])).shape == x.shape
    assert all(side % network.multiple == 0 for side in x.shape[2:])


def test_points() -> None:
    assert MLP(2, width=16)(torch.randn(5, 2), torch.rand(5)).shape == (5, 2)


@pytest.mark.parametrize(
    "network",
    [UNet(1), Compact(1), Minimal(1, width=16), MLP(4, width=16), DiT(1, width=32, depth=2, head=16)],
    ids=lambda network: type(network).__name__,
)
def test_every_part_takes_part(network: nn.Module) -> None:
    """Time and condition change the output, and every parameter gets a gradient."""
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)  # the zeroed layers would hide what stands before them
    x = torch.randn(2, 4) if isinstance(network, MLP) else torch.randn(2, 1, 8, 8)
    time, cond = torch.tensor([10.0, 500.0]), Cond(torch.randn(2, network.embedding_dim))  # type: ignore[arg-type]
    plain = network(x, time)
    assert not torch.allclose(plain, network(x, time + 50))
    assert not torch.allclose(plain, network(x, time, cond))
    network(x, time, cond).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in network.parameters())


def test_samples_do_not_mix() -> None:
    for build in SPACE.values():
        network = build(2).eval()
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.1)
        x, time = torch.randn(3, 3, 8, 8), torch.tensor([1.0, 300.0, 900.0])
        torch.testing.assert_close(network(x, time)[1:2], network(x[1:2], time[1:2]), rtol=1e-4, atol=1e-4)


def test_residual_networks_start_at_zero() -> None:
    x, time = torch.randn(2, 1, 8, 8), torch.rand(2)
    assert Compact(1)(x, time).abs().max() == 0
    assert MLP(2, width=8)(torch.randn(2, 2), time).abs().max() == 0
    assert DiT(1, width=32, head=16)(x, time).abs().max() == 0


def test_unet_counts_of_the_course_network() -> None:
    """The topology is the ecosystem's: UNet2DModel of the course, (32, 64, 64) with two blocks, has 1,707,009."""
    network = UNet(1, widths=(32, 64, 64), blocks=2, attention=(False, True, True), head=8)
    assert sum(parameter.numel() for parameter in network.parameters()) == 1_707_009


def test_unet_cifar_size() -> None:
    """DDPM's CIFAR-10 network has 35.7 million parameters (Ho et al. 2020, appendix B)."""
    network = UNet(3, widths=(128, 256, 256, 256), blocks=2, attention=(False, True, False, False), head=256)
    assert sum(parameter.numel() for parameter in network.parameters()) / 1e6 == pytest.approx(35.7, abs=0.1)


@pytest.mark.parametrize(
    ("width", "depth", "millions"), [(384, 12, 33), (768, 12, 130), (1024, 24, 458), (1152, 28, 675)]
)
def test_dit_sizes(width: int, depth: int, millions: float) -> None:
    """DiT-S/2 to XL/2 as Peebles & Xie 2023, table 1, count them, without their class embedding of a million."""
    with torch.device("meta"):
        network = DiT(4, outputs=8, width=width, depth=depth, head=width // 16 if width == 1152 else 64)
    count = sum(parameter.numel() for parameter in network.parameters()) / 1e6
    assert count + 1001 * width / 1e6 == pytest.approx(millions, abs=0.6)


def test_dit_sees_places() -> None:
    """Two places with the same patch differ by where they stand; a shifted picture is no shifted answer."""
    places = positions((4, 6), 32, torch.zeros(1))
    assert places.shape == (24, 32)
    assert (torch.cdist(places, places) + 9 * torch.eye(24)).min() > 0.1
    network = DiT(1, width=32, depth=1, head=16, patch=2)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    x, time = torch.randn(1, 1, 8, 8), torch.tensor([5.0])
    assert not torch.allclose(network(x.roll(2, -1), time), network(x, time).roll(2, -1), atol=1e-3)


def test_dit_attention_formula() -> None:
    """A block with open gates, written out."""
    block = DiT(1, width=8, depth=1, head=4).blocks[0]
    nn.init.normal_(block.modulation.weight)
    h, embedding = torch.randn(2, 5, 8), torch.randn(2, 8)
    shift, scale, gate, shift2, scale2, gate2 = block.modulation(nn.functional.silu(embedding))[:, None].chunk(6, -1)

    def norm(value: torch.Tensor) -> torch.Tensor:
        return (value - value.mean(-1, keepdim=True)) / (value.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()

    q, k, v = block.qkv(norm(h) * (1 + scale) + shift).chunk(3, -1)
    heads = [
        (q[..., i : i + 4] @ k[..., i : i + 4].transpose(1, 2) / 2).softmax(-1) @ v[..., i : i + 4] for i in (0, 4)
    ]
    middle = h + gate * block.out(torch.cat(heads, -1))
    expected = middle + gate2 * block.mlp(norm(middle) * (1 + scale2) + shift2)
    torch.testing.assert_close(block(h, embedding, None), expected, rtol=1e-4, atol=1e-5)


def test_dit_heads_must_divide() -> None:
    with pytest.raises(ValueError, match="head 48 does not divide width 64"):
        DiT(1, width=64, head=48)


def test_unet_levels_must_match() -> None:
    with pytest.raises(ValueError, match="attention has 1 levels"):
        UNet(1, widths=(16, 32), attention=(True,))


def test_sinusoidal_formula() -> None:
    time, dim = 7.0, 8
    rates = [10_000 ** (-i / 4) for i in range(4)]
    expected = [math.cos(time * rate) for rate in rates] + [math.sin(time * rate) for rate in rates]
    torch.testing.assert_close(sinusoidal(torch.tensor([time]), dim)[0], torch.tensor(expected))


def test_channel_norm_formula() -> None:
    x = torch.randn(2, 6, 3, 5)
    expected = (x - x.mean(1, keepdim=True)) / (x.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(ChannelNorm(6, affine=False)(x), expected)


def test_attention_formula() -> None:
    """softmax(q·k/sqrt(d))·v with two heads, written out."""
    layer = SelfAttention(nn.Identity(), 8, head=4)
    x = torch.randn(2, 8, 3, 3)
    places = x.flatten(2).transpose(1, 2)
    q, k, v = layer.qkv(places).chunk(3, dim=-1)
    heads = []
    for head in (slice(0, 4), slice(4, 8)):
        weights = (q[..., head] @ k[..., head].transpose(1, 2) / 2).softmax(-1)
        heads.append(weights @ v[..., head])
    expected = x + layer.out(torch.cat(heads, -1)).transpose(1, 2).reshape(x.shape)
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)


def test_null_class() -> None:
    """A dropped label is the null class, and the null class is no class."""
    embedder = ClassEmbedding(3, 4)
    labels = torch.tensor([0, 1, 2])
    dropped = embedder(labels, torch.tensor([True, False, True])).vector
    assert dropped is not None
    null = embedder.null(1).vector
    assert null is not None
    assert torch.equal(dropped[0], null[0])
    assert torch.equal(dropped[2], null[0])
    assert torch.equal(dropped[1], embedder(labels).vector[1])
    assert not torch.equal(embedder(labels).vector[0], null[0])


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_enlarging_and_convolving_is_one_step(dims: int) -> None:
    x, layer = torch.randn(2, 3, *(5, 4, 3)[:dims], dtype=torch.float64), conv(dims, 3, 4).double()
    expected = layer(nn.functional.interpolate(x, scale_factor=2.0, mode="nearest"))
    torch.testing.assert_close(enlarged(x, layer), expected)


# Networks that read tokens

READERS = {
    "conditional": lambda dims: ConditionalUNet(
        3, dims=dims, context=12, widths=(16, 32), attention=(True, False), heads=(2, 4)
    ),
    "joint": lambda dims: JointDiT(3, dims=dims, context=12, width=32, depth=2, head=16),
}


def drawn(network: nn.Module) -> nn.Module:
    """Draw all weights: the zeroed layers would hide what stands before them."""
    for name, parameter in network.named_parameters():
        nn.init.normal_(parameter, mean=float("norm_" in name and name.endswith("weight")), std=0.1)
    return network


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("name", READERS)
def test_readers_in_every_dimension(name: str, dims: int) -> None:
    network = READERS[name](dims)
    x, tokens = torch.randn(2, 3, *[8, 12, 4][:dims]), torch.randn(2, 5, 12)
    assert network(x, torch.tensor([3.0, 700.0]), Cond(tokens=tokens)).shape == x.shape


@pytest.mark.parametrize("name", READERS)
def test_every_part_of_a_reader_takes_part(name: str) -> None:
    network = drawn(READERS[name](2))
    x, time, tokens = torch.randn(2, 3, 8, 8), torch.tensor([10.0, 500.0]), torch.randn(2, 5, 12)
    plain = network(x, time, Cond(tokens=tokens))
    assert not torch.allclose(plain, network(x, time + 50, Cond(tokens=tokens)))
    assert not torch.allclose(plain, network(x, time, Cond(tokens=tokens.roll(1, 0))))
    vector = Cond(torch.randn(2, network.embedding_dim), tokens)
    assert not torch.allclose(plain, network(x, time, vector))
    network(x, time, vector).square().sum().backward()
    idle = [name for name, one in network.named_parameters() if one.grad is None or not one.grad.abs().sum()]
    assert idle == []


@pytest.mark.parametrize("name", READERS)
def test_masked_tokens_are_as_if_they_were_not(name: str) -> None:
    network = drawn(READERS[name](2)).eval()
    x, time, tokens = torch.randn(2, 3, 8, 8), torch.tensor([10.0, 500.0]), torch.randn(2, 5, 12)
    mask = torch.tensor([[True] * 3 + [False] * 2] * 2)
    short = network(x, time, Cond(tokens=tokens[:, :3]))
    torch.testing.assert_close(network(x, time, Cond(tokens=tokens, mask=mask)), short, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(network(x, time, Cond(tokens=tokens)), short, atol=1e-3)


def test_a_joint_block_is_one_attention_over_both() -> None:
    """With one head and open gates, written out."""
    block = drawn(JointBlock(8, 8, 2, 0.0, last=False))
    h, words, embedding = torch.randn(2, 5, 8), torch.randn(2, 3, 8), torch.randn(2, 8)
    mask = torch.ones(2, 1, 1, 8, dtype=torch.bool)

    def norm(value: torch.Tensor) -> torch.Tensor:
        return (value - value.mean(-1, keepdim=True)) / (value.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()

    modulations, parts = [], []
    for stream, x in ((block.patches, h), (block.words, words)):
        modulations.append(stream.modulation(nn.functional.silu(embedding))[:, None].chunk(6, -1))
        seen = norm(x) * (1 + modulations[-1][1]) + modulations[-1][0]
        k, v = stream.kv(seen).chunk(2, -1)
        parts.append((stream.norm_q(stream.q(seen)), stream.norm_k(k), v))
    q, k, v = (torch.cat(pair, 1) for pair in zip(*parts, strict=True))
    attended = (q @ k.transpose(1, 2) / 8**0.5).softmax(-1) @ v
    expected = []
    for stream, x, (_, _, gate, shift, scale, gate2), part in zip(
        (block.patches, block.words), (h, words), modulations, attended.split([5, 3], 1), strict=True
    ):
        middle = x + gate * stream.out(part)
        expected.append(middle + gate2 * stream.mlp(norm(middle) * (1 + scale) + shift))
    for found, known in zip(block(h, words, mask, embedding), expected, strict=True):
        torch.testing.assert_close(found, known, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: ConditionalUNet(3), "it needs tokens"),
        (lambda: JointDiT(3), "it needs tokens"),
        (lambda: ConditionalUNet(3, context=4, heads=(2, 2)), "attention has 3 levels and heads has 2"),
        (lambda: ConditionalUNet(3, context=4, heads=(2, 3, 4)), "3 heads do not divide 128 channels"),
        (lambda: JointDiT(3, context=4, width=64, head=48), "head 48 does not divide width 64"),
    ],
)
def test_readers_that_cannot_be(build: Callable[[], nn.Module], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        build()


def test_a_joint_network_without_tokens() -> None:
    with pytest.raises(ValueError, match="pass cond with tokens"):
        READERS["joint"](2)(torch.randn(1, 3, 8, 8), torch.zeros(1))
