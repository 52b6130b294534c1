"""The kernel for attention with small heads: torch's numbers, there and back, or the plain operators."""

import ctypes
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from unfog.networks.attention import Attend, Form, attend
from unfog.networks.flash import HEADS, KERNELS, flash, takes
from unfog.networks.unet import UNet
from unfog.recipes.choices import apply, attend_by, small
from unfog.runtime import native

compiled = pytest.mark.skipif(native.library(KERNELS.source, build=True) is None, reason="needs a C++ compiler")
KERNELS.available(build=True)  # one that is wrong is not used, and its tests fail
FORMS: tuple[Form, Form] = ("rule", "flash")


def _numbers(kind: torch.dtype, head: int, places: int, tokens: int) -> list[Tensor]:
    """Numbers with means that are not zero: q, k, v and a gradient."""
    torch.manual_seed(0)
    return [(1 + 2 * torch.randn(2, 3, count, head)).to(kind) for count in (places, tokens, tokens, places)]


def _gradients(of: Callable[..., Tensor], *numbers: Tensor) -> list[Tensor]:
    """The output and the gradients of q, k and v."""
    *given, dy = numbers
    inputs = [part.detach().requires_grad_() for part in given]
    y = of(*inputs)
    return [y.detach(), *torch.autograd.grad(y, inputs, dy)]


@compiled
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(("places", "tokens"), [(1, 1), (7, 16), (16, 15), (33, 50), (4, 300)])
@pytest.mark.parametrize(("kind", "tolerance"), [(torch.float32, 5e-6), (torch.bfloat16, 8e-3)])
def test_it_is_torchs(kind: torch.dtype, tolerance: float, head: int, places: int, tokens: int) -> None:
    """Compared with float64, with any number of rows and tokens."""
    numbers = _numbers(kind, head, places, tokens)
    found = _gradients(flash, *numbers)
    exact = _gradients(F.scaled_dot_product_attention, *(part.double() for part in numbers))
    torchs = _gradients(F.scaled_dot_product_attention, *(part.float() for part in numbers))
    for one, other, rough in zip(found, exact, torchs, strict=True):
        assert one.dtype == kind
        allowed = max(tolerance * max(1.0, float(other.abs().max())), 2 * float((rough.double() - other).abs().max()))
        assert (one.double() - other).abs().max() <= allowed


@compiled
@pytest.mark.parametrize("far", [-300.0, 300.0])
def test_scores_far_from_zero(far: float) -> None:
    """What pads the tokens has no weight, however small the others' scores are."""
    q, k = torch.full((1, 1, 3, 8), far), 1 + torch.arange(40).view(1, 1, 5, 8) / 4000
    v = torch.arange(40.0).view(1, 1, 5, 8)
    torch.testing.assert_close(flash(q, k, v), F.scaled_dot_product_attention(q, k, v), rtol=1e-3, atol=1e-3)


@compiled
def test_numbers_may_lie_anyhow_in_memory() -> None:
    """As a network's lie, q, k and v in one tensor; and with the channels apart."""
    torch.manual_seed(0)
    qkv, dy = torch.randn(2, 9, 3, 4, 8, requires_grad=True), torch.randn(2, 4, 9, 8)
    apart = torch.randn(3, 2, 4, 8, 9, requires_grad=True)
    for source, parts in ((qkv, qkv.permute(2, 0, 3, 1, 4)), (apart, apart.mT)):
        q, k, v = parts
        assert takes(q, k, v)
        y, exact = flash(q, k, v), F.scaled_dot_product_attention(q, k, v)
        torch.testing.assert_close(y, exact)
        for back in (dy, dy.mT.contiguous().mT):
            found, wanted = (torch.autograd.grad(one, source, back, retain_graph=True)[0] for one in (y, exact))
            torch.testing.assert_close(found, wanted)


@compiled
def test_a_head_depends_on_no_other_and_on_no_thread() -> None:
    numbers = _numbers(torch.bfloat16, 8, 19, 21)
    whole, count = _gradients(flash, *numbers), torch.get_num_threads()
    torch.set_num_threads(1)
    for head in range(3):
        alone = _gradients(flash, *(part[1:, head : head + 1] for part in numbers))
        assert all(torch.equal(one, every[1:, head : head + 1]) for one, every in zip(alone, whole, strict=True))
    torch.set_num_threads(count)


@compiled
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_stays_so(bad: float) -> None:
    q, k, v, _ = _numbers(torch.float32, 8, 5, 6)
    q[1, 2, 3, 4] = bad
    y = flash(q, k, v)
    assert not y[1, 2, 3].isfinite().all()
    assert y[0].isfinite().all()


@compiled
def test_what_the_kernel_does_not_take() -> None:
    """Other heads, types and masks are computed by torch's operators."""
    q = torch.randn(1, 2, 5, 8)
    assert takes(q, q, q)
    for other in (q[..., :4], q.double(), q.half(), q[:, :, :0], q[0]):
        assert not takes(other, other, other)
    mask = torch.tensor([True, True, False, True, True]).expand(1, 1, 5, 5)
    torch.testing.assert_close(attend(q, q, q, mask, "flash"), F.scaled_dot_product_attention(q, q, q, mask))
    wide = torch.randn(1, 2, 5, 24)
    assert torch.equal(attend(wide, wide, wide, form="flash"), attend(wide, wide, wide))


@compiled
def test_a_network_and_its_gradients_are_the_same() -> None:
    torch.manual_seed(0)
    network, x = UNet(2, widths=(16, 16), attention=(True, True), head=8, groups=4), torch.randn(3, 2, 8, 8)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    assert len(small(network)) == 11
    found: list[list[Tensor | None]] = []
    for form in FORMS:
        attend_by([network], form)
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


def test_a_strangers_run_compiles_nothing(forgotten: Path) -> None:
    """It is computed by torch's operators, which is said."""
    network = UNet(1, widths=(16,), attention=(True,), head=8)
    with pytest.warns(UserWarning, match="the run's attention is computed by torch's operators"):
        apply(network, "flash-attention")
    q = torch.randn(1, 2, 5, 8)
    layer = Attend(8)
    layer.form = "flash"
    assert torch.equal(layer(q, q, q), F.scaled_dot_product_attention(q, q, q))
    assert not forgotten.exists()


@compiled
@pytest.mark.parametrize("damage", ["cut short", "wrong"])
def test_a_damaged_or_wrong_kernel_is_not_used(forgotten: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    path = forgotten / "native" / f"flash-{native._key(KERNELS.source)}.so"
    path.parent.mkdir(parents=True)
    if damage == "cut short":
        path.write_bytes(b"\x7fELF")
    else:
        softmax = torch.softmax
        monkeypatch.setattr(torch, "softmax", lambda *given: softmax(*given) + 1)
        assert isinstance(native.library(KERNELS.source, build=True), ctypes.CDLL)
    assert not KERNELS.available(build=True)
