"""The kernel for norm, scale, shift and SiLU: the formula's numbers, there and back, or the plain operators."""

import ctypes
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from unfog.networks import modulated as module
from unfog.networks.compact import Compact
from unfog.networks.layers import ChannelNorm
from unfog.networks.modulated import KERNELS, formula, modulated, takes
from unfog.recipes.choices import fuse
from unfog.runtime import native

compiled = pytest.mark.skipif(native.library(KERNELS.source, build=True) is None, reason="needs a C++ compiler")
KERNELS.available(build=True)  # one that is wrong is not used, and its tests fail


def _numbers(kind: torch.dtype, rows: int, channels: int) -> list[Tensor]:
    """Numbers with means that are not zero: x, scale, shift and a gradient."""
    torch.manual_seed(0)
    x, dy = (3 + 2 * torch.randn(5, 7, 3, channels)).to(kind), (1 + torch.randn(5, 7, 3, channels)).to(kind)
    return [x, 1 + torch.randn(rows, channels) / 3, torch.randn(rows, channels), dy]


def _gradients(
    of: Callable[..., Tensor], x: Tensor, scale: Tensor, shift: Tensor, dy: Tensor, act: bool
) -> list[Tensor]:
    """The output and the gradients of its inputs."""
    inputs = [part.detach().requires_grad_() for part in (x, scale, shift)]
    y = of(*inputs, 1e-5, act)
    return [y.detach(), *torch.autograd.grad(y, inputs, dy)]


@compiled
@pytest.mark.parametrize("act", [True, False])
@pytest.mark.parametrize(("rows", "channels"), [(1, 48), (5, 48), (5, 1), (1, 37), (5, 2048)])
@pytest.mark.parametrize(("kind", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 6e-3)])
def test_it_is_the_formula(kind: torch.dtype, tolerance: float, rows: int, channels: int, act: bool) -> None:
    """Compared with float64: float32 to rounding, bfloat16 to that of what is stored."""
    numbers = _numbers(kind, rows, channels)
    x, scale, shift, dy = numbers
    found = _gradients(modulated, x, scale, shift, dy, act)
    exact = _gradients(formula, x.double(), scale.double(), shift.double(), dy.double(), act)
    for one, other in zip(found, exact, strict=True):
        assert (one.double() - other).abs().max() <= tolerance * max(1.0, float(other.abs().max()))


@compiled
def test_a_row_depends_on_no_other_row_and_on_no_thread() -> None:
    x, scale, shift, dy = _numbers(torch.bfloat16, 5, 48)
    whole = _gradients(modulated, x, scale, shift, dy, True)
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    alone = [
        _gradients(modulated, x[i : i + 1], scale[i : i + 1], shift[i : i + 1], dy[i : i + 1], True) for i in range(5)
    ]
    torch.set_num_threads(count)
    for place, one in enumerate(whole):
        assert torch.equal(one, torch.cat([row[place] for row in alone]))


@compiled
def test_what_is_not_finite_stays_so() -> None:
    """A trainer skips the step; a kernel that hid it would train on."""
    x, scale, shift, _ = _numbers(torch.float32, 5, 48)
    for bad in (torch.nan, torch.inf):
        x[2, 3, 1, 5] = bad
        y = modulated(x, scale, shift, 1e-5, True)
        assert not y[2, 3, 1].isfinite().all()
        assert y[[0, 1, 3, 4]].isfinite().all()


@compiled
@pytest.mark.parametrize("affine", [True, False])
def test_a_norm_is_the_same_fused_or_not(affine: bool) -> None:
    norm, x = ChannelNorm(6, affine), (2 + torch.randn(3, 6, 4, 5)).to(memory_format=torch.channels_last)
    if affine:
        torch.nn.init.normal_(norm.norm.weight), torch.nn.init.normal_(norm.norm.bias)
    for modulation in (None, torch.randn(3, 12)):
        for act in (False, True):
            norm.fused = False
            plain = norm(x, modulation, act)
            norm.fused = True
            assert takes(x.movedim(1, -1))
            torch.testing.assert_close(norm(x, modulation, act), plain, rtol=1e-5, atol=1e-5)
    assert not takes(x.contiguous().movedim(1, -1))
    torch.testing.assert_close(norm(x.contiguous(), None, True), norm(x, None, True))


@compiled
def test_a_network_and_its_gradients_are_the_same_fused_or_not() -> None:
    torch.manual_seed(0)
    network, x = Compact(2, width=8, patch=2), torch.randn(3, 2, 8, 8).to(memory_format=torch.channels_last)
    for parameter in network.parameters():  # those that start at zero hide the rest
        torch.nn.init.normal_(parameter, std=0.2)
    found = []
    for fused in (False, True):
        fuse([network], fused)
        network.zero_grad()
        y = network(x, torch.tensor([1.0, 500.0, 999.0]))
        y.square().mean().backward()
        found.append([y.detach(), *(parameter.grad for parameter in network.parameters())])
    for plain, other in zip(*found, strict=True):
        torch.testing.assert_close(other, plain, rtol=1e-3, atol=1e-5)


# Without it


@pytest.fixture
def forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache without the kernel."""
    monkeypatch.setenv("UNFOG_CACHE", str(tmp_path / "cache"))
    KERNELS.forget()
    yield tmp_path / "cache"
    KERNELS.forget()


def test_nothing_is_compiled_unless_asked_for(forgotten: Path) -> None:
    assert not KERNELS.available()
    assert not forgotten.exists()
    norm, x = ChannelNorm(6), torch.randn(2, 6, 4, 4)
    norm.fused = True
    assert norm(x, act=True).shape == x.shape


@pytest.mark.parametrize("trouble", ["no compiler", "one that fails", "a folder that cannot be written"])
def test_without_a_compiler_there_is_no_kernel(
    forgotten: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    if trouble == "no compiler":
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.delenv("CXX", raising=False)
    elif trouble == "one that fails":
        monkeypatch.setenv("CXX", "false")
    else:
        forgotten.write_text("a file")
    assert not KERNELS.available(build=True)
    assert not list(tmp_path.rglob("*.so"))


@compiled
@pytest.mark.parametrize("damage", ["cut short", "wrong"])
def test_a_damaged_or_wrong_kernel_is_not_used(forgotten: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    path = forgotten / "native" / f"modulated-{native._key(KERNELS.source)}.so"
    path.parent.mkdir(parents=True)
    if damage == "cut short":
        path.write_bytes(b"\x7fELF")
    else:
        monkeypatch.setattr(module, "formula", lambda x, *rest: formula(x, *rest) + 1)
        assert native.library(KERNELS.source, build=True) is not None
        assert isinstance(native.library(KERNELS.source), ctypes.CDLL)
    assert not KERNELS.available(build=True)
