"""Layers that multiply bytes: y = w·(x / scale) in int8, for sampling on processors that have such products.

Weights are int8 with a scale for each output, inputs uint8 with one scale and zero point for the layer, from the range
that its inputs had in a calibration; sums are int32 and outputs bfloat16. The products are oneDNN's.

Source: Jacob et al. 2018, Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference,
section 2.
"""

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from unfog.runtime.native import Function, Kernels, function

NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
CAPABLE = ("avx512_vnni", "avx_vnni", "amx_int8")
"""Instructions of which a processor needs one: others lose bits in products of bytes, or time."""
FEWEST = 16
"""Inputs and outputs of a layer below which conversions cost more than the products save."""
MOST = 255
Layer = nn.Conv2d | nn.Linear


class Range(NamedTuple):
    """The least and the greatest number that a layer was given, 0 being between."""

    low: float = 0.0
    high: float = 0.0

    def with_numbers(self, x: Tensor) -> "Range":
        """Return the range that holds those of a tensor, too."""
        low, high = torch.aminmax(x.detach().float())
        return Range(min(self.low, float(low)), max(self.high, float(high)))

    @property
    def scale(self) -> float:
        """How far apart neighbouring bytes are."""
        return max(self.high - self.low, 1e-12) / MOST

    @property
    def zero(self) -> int:
        """The byte that stands for 0."""
        return round(-self.low / self.scale)


def able() -> bool:
    """Return whether this processor has such products."""
    return any(torch.cpu.get_capabilities().get(name) for name in CAPABLE)


def quantized(x: Tensor, scale: float, zero: int) -> Tensor:
    """Return round(x / scale) + zero as uint8 between 0 and 255, with the memory format of `x`, which is dense."""
    kernels = KERNELS.get()
    y = torch.empty_like(x, dtype=torch.uint8)
    if kernels is None or x.dtype not in NAMES:
        return y.copy_((x.float() / scale + zero).round().clamp(0, MOST))
    kernels[x.dtype](x.data_ptr(), y.data_ptr(), x.numel(), scale, zero)
    return y


class Int8(nn.Module):
    """A convolution or a linear map in int8."""

    def __init__(self, layer: Layer, seen: Range) -> None:
        """Take over a layer's weights, for inputs of a range."""
        super().__init__()
        weight = layer.weight.detach().float()
        scales = weight.flatten(1).abs().amax(1).clamp(min=1e-12) / 127
        self.scale, self.zero = seen.scale, seen.zero
        bytes_of = (weight / scales.view(-1, *[1] * (weight.ndim - 1))).round().to(torch.int8)
        self.register_buffer("weight", bytes_of, persistent=False)
        self.register_buffer("scales", scales, persistent=False)
        self.register_buffer("zeros", torch.zeros(len(scales), dtype=torch.int64), persistent=False)
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().float(), requires_grad=False)
        self.how = (layer.stride, layer.padding, layer.dilation, layer.groups) if isinstance(layer, nn.Conv2d) else None
        self._packed: dict[tuple[int, ...], Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        """Map `(batch, inputs, height, width)`, or `(*places, inputs)`, as the layer does."""
        kind = torch.bfloat16 if torch.is_autocast_enabled("cpu") else x.dtype
        x = x.contiguous(memory_format=torch.channels_last) if self.how else x.contiguous()
        parts = (quantized(x, self.scale, self.zero), self.scale, self.zero)
        weights = (self._weight(x), self.scales, self.zeros, self.bias)
        if self.how is None:
            y = torch.ops.onednn.qlinear_pointwise(*parts, *weights, 1.0, 0, kind, "none", [], "")
        else:
            y = torch.ops.onednn.qconv_pointwise(*parts, *weights, *self.how, 1.0, 0, kind, "none", [], "")
        result: Tensor = y
        return result

    def _weight(self, x: Tensor) -> Tensor:
        """Return the weights as oneDNN wants them for inputs of a shape."""
        shape = tuple(x.shape)
        if shape not in self._packed:
            assert isinstance(self.weight, Tensor)
            if self.how is None:
                self._packed[shape] = torch.ops.onednn.qlinear_prepack(self.weight, list(shape))
            else:
                ways = (self.how[0], self.how[1], self.how[2], self.how[3], list(shape))
                self._packed[shape] = torch.ops.onednn.qconv_prepack(
                    self.weight, self.scales, self.scale, self.zero, *ways
                )
        return self._packed[shape]


def fitting(layer: nn.Module) -> bool:
    """Return whether a layer can be computed in int8, and is large enough for it."""
    if isinstance(layer, nn.Conv2d):
        plain = layer.groups == 1 and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
        return plain and min(layer.in_channels, layer.out_channels) >= FEWEST
    return type(layer) is nn.Linear and min(layer.in_features, layer.out_features) >= FEWEST


def quantize(network: nn.Module, calibrate: Callable[[], object]) -> int:
    """Compute a network's large layers in int8 from now on.

    A layer takes part if it was called in the calibration with more places than rows: layers that see one vector for
    each row, such as those of the time, cost nothing.

    Args:
        network: The network, which is changed.
        calibrate: Runs it on what it will see.

    Returns: How many layers are in int8.
    """
    seen: dict[nn.Module, Range] = {}

    def note(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if inputs[0].ndim > 2:
            seen[layer] = seen.get(layer, Range()).with_numbers(inputs[0])

    hooks = [part.register_forward_pre_hook(note) for part in network.modules() if fitting(part)]
    try:
        calibrate()
    finally:
        for hook in hooks:
            hook.remove()
    for parent in list(network.modules()):
        for name, part in list(parent.named_children()):
            if part in seen:
                assert isinstance(part, Layer)
                setattr(parent, name, Int8(part, seen[part]))
    return len(seen)


def _read(found: ctypes.CDLL) -> dict[torch.dtype, Function]:
    """Return the functions for each type of numbers."""
    arguments = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_long, ctypes.c_float, ctypes.c_float)
    return {kind: function(found, f"{name}_quantize", *arguments) for kind, name in NAMES.items()}


def _agree(kernels: dict[torch.dtype, Function]) -> bool:
    """Return whether the kernels give the formula's bytes for a few numbers."""
    for kind, kernel in kernels.items():
        x = torch.linspace(-3, 4, 1001).to(kind)
        y = torch.empty_like(x, dtype=torch.uint8)
        kernel(x.data_ptr(), y.data_ptr(), x.numel(), 0.02, 90)
        exact = (x.double() / 0.02 + 90).clamp(0, MOST)
        if not torch.allclose(y.double(), exact, rtol=0, atol=0.501):
            return False
    return True


KERNELS = Kernels(Path(__file__).with_suffix(".cpp"), _read, _agree)
"""The compiled kernels."""
