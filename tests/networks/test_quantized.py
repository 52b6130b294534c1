"""Layers of bytes: the products of the layers that they replace, up to half a step of each number."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unfog.networks.compact import Compact
from unfog.networks.layers import Halving
from unfog.networks.quantized import KERNELS, Int8, Range, able, fitting, quantize, quantized

products = pytest.mark.skipif(not able(), reason="needs a processor with products of bytes")
KERNELS.available(build=True)


def _rebuilt(layer: Int8) -> Tensor:
    """The weights that a layer stands for."""
    assert isinstance(layer.weight, Tensor)
    assert isinstance(layer.scales, Tensor)
    return layer.weight.float() * layer.scales.view(-1, *[1] * (layer.weight.ndim - 1))


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kernel", [True, False])
def test_bytes_are_the_nearest_and_stop_at_the_ends(
    kind: torch.dtype, kernel: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not kernel:
        monkeypatch.setattr(KERNELS, "get", lambda: None)
    x = (1.3 * torch.randn(3, 5, 40, 70) + 0.4).to(kind).contiguous(memory_format=torch.channels_last)
    y = quantized(x, 0.02, 77)
    assert y.stride() == x.stride()
    exact = (x.double() / 0.02 + 77).clamp(0, 255)
    assert exact.min() == 0
    assert exact.max() == 255
    torch.testing.assert_close(y.double(), exact, rtol=0, atol=0.501)


def test_a_range_holds_zero_and_all_it_saw() -> None:
    seen = Range().with_numbers(torch.tensor([0.5, 2.0])).with_numbers(torch.tensor([1.0, 1.5]))
    assert seen == Range(0.0, 2.0)
    assert seen.zero == 0
    assert seen.scale == pytest.approx(2 / 255)
    both = seen.with_numbers(torch.tensor([-1.0]))
    assert both.zero == 85
    assert Range().scale > 0


@products
@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(16, 24, 3, padding=1),
        nn.Conv2d(16, 24, 3, padding=1, bias=False),
        nn.Conv2d(24, 16, 2, stride=2),
        nn.Conv2d(16, 16, 3, padding=2, dilation=2),
        nn.Conv2d(32, 16, 1),
        nn.Linear(16, 40),
        nn.Linear(40, 16, bias=False),
    ],
    ids=repr,
)
def test_products_are_those_of_the_rounded_numbers(layer: nn.Conv2d | nn.Linear) -> None:
    """With a mean that is not zero, so that a wrong zero point shows at the borders."""
    torch.manual_seed(0)
    inputs = layer.in_channels if isinstance(layer, nn.Conv2d) else layer.in_features
    shape = (3, inputs, 8, 10) if isinstance(layer, nn.Conv2d) else (3, 50, inputs)
    x = 2 + 1.5 * torch.randn(shape)
    seen = Range().with_numbers(x)
    small = Int8(layer, seen)
    rounded = ((x / seen.scale + seen.zero).round().clamp(0, 255) - seen.zero) * seen.scale
    for numbers in (x, x[:1]):  # weights are laid out once more for another shape
        torch.testing.assert_close(small(numbers), _by(layer, small, rounded[: len(numbers)]), rtol=1e-3, atol=2e-2)
    assert small(x).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert small(x.bfloat16()).dtype == torch.bfloat16
    error = (small(x) - layer(x)).square().mean().sqrt() / layer(x).square().mean().sqrt()
    assert 0 < error < 0.02


def _by(layer: nn.Conv2d | nn.Linear, small: Int8, x: Tensor) -> Tensor:
    """The products of a layer of bytes by torch's own operators."""
    if isinstance(layer, nn.Linear):
        return F.linear(x, _rebuilt(small), layer.bias)
    assert not isinstance(layer.padding, str)
    return F.conv2d(x, _rebuilt(small), layer.bias, layer.stride, layer.padding, layer.dilation)


def test_layers_that_cannot_be_or_are_too_small_stay() -> None:
    assert fitting(nn.Conv2d(16, 16, 3))
    assert fitting(nn.Linear(16, 16))
    for layer in (
        nn.Conv2d(15, 16, 3),
        nn.Conv2d(16, 15, 3),
        nn.Conv2d(16, 16, 3, groups=2),
        nn.Conv2d(16, 16, 3, padding="same"),
        nn.Conv2d(16, 16, 3, padding=1, padding_mode="reflect"),
        nn.Conv1d(16, 16, 3),
        nn.ConvTranspose2d(16, 16, 3),
        nn.Linear(15, 16),
    ):
        assert not fitting(layer)


@products
def test_a_network_keeps_what_sees_one_vector_a_row_and_what_was_not_called() -> None:
    torch.manual_seed(0)
    network = Compact(3, width=16, patch=2).eval()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.05)
    unused = nn.Conv2d(16, 16, 3)
    network.add_module("unused", unused)
    x, time = 1 + torch.randn(4, 3, 16, 16), torch.tensor([1.0, 300.0, 600.0, 900.0])
    with torch.inference_mode():
        exact = network(x, time)
        count = quantize(network, lambda: network(x, time))
        found = network(x, time)
    layers = [part for part in network.modules() if isinstance(part, Int8)]
    assert len(layers) == count > 10
    assert network.get_submodule("unused") is unused
    assert isinstance(network.time_embedding.linear_1, nn.Linear)
    assert isinstance(network.encoder[0].modulation, nn.Linear)
    assert isinstance(network.patch_in, nn.Conv2d)  # of 3 channels
    error = (found - exact).square().mean().sqrt() / exact.std()
    assert 0 < error < 0.05


@products
def test_strided_convolutions_take_part() -> None:
    layer = nn.Sequential(Halving(2, 16, pad_behind=True))
    x = 1 + torch.randn(2, 16, 8, 8)
    exact = layer(x)
    assert quantize(layer, lambda: layer(x)) == 1
    torch.testing.assert_close(layer(x), exact, rtol=0.05, atol=0.05)


def test_a_calibration_that_fails_leaves_the_network() -> None:
    layer = nn.Sequential(nn.Linear(16, 16))
    with pytest.raises(RuntimeError):
        quantize(layer, lambda: layer(torch.zeros(1, 2, 17)))
    assert isinstance(layer[0], nn.Linear)
    assert not layer[0]._forward_pre_hooks
