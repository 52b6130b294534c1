"""Attention against torch's own, in each of the ways in which it is computed."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from unfog.networks import attention
from unfog.networks.attention import attend
from unfog.networks.conditioning import WordsLayer

PRECISE = {torch.float32: 1e-5, torch.bfloat16: 0.03}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("precision", PRECISE)
@pytest.mark.parametrize("places", [9, 300])
def test_attention_and_its_gradient_are_torchs(places: int, precision: torch.dtype, masked: bool) -> None:
    draw = torch.Generator().manual_seed(places)
    q, k, v, back = (torch.randn(2, 3, n, 16, generator=draw) for n in (places, 20, 20, places))
    mask = (torch.arange(20) < torch.tensor([20, 7])[:, None])[:, None, None] if masked else None
    found = []
    for numbers, function in ((precision, attend), (torch.float64, F.scaled_dot_product_attention)):
        given = [one.to(precision).to(numbers).requires_grad_() for one in (q, k, v)]
        out = function(*given, mask)
        found.append([out, *torch.autograd.grad(out, given, back.to(numbers))])
    for ours, exact in zip(*found, strict=True):
        torch.testing.assert_close(ours.double(), exact, rtol=PRECISE[precision], atol=PRECISE[precision])


@pytest.mark.parametrize("at_once", [1, 9 * 20, 4 * 9 * 20, 10**9])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_in_pieces_is_that_at_once(monkeypatch: pytest.MonkeyPatch, masked: bool, at_once: int) -> None:
    monkeypatch.setattr(attention, "_AT_ONCE", at_once)
    q, k, v = (torch.randn(5, 3, n, 16, dtype=torch.float64) for n in (9, 20, 20))
    mask = (torch.arange(20) < torch.randint(1, 21, (5, 1)))[:, None, None] if masked else None
    torch.testing.assert_close(attention.formula(q, k, v, mask), F.scaled_dot_product_attention(q, k, v, mask))


def test_a_layer_over_words_is_torchs() -> None:
    torch.manual_seed(0)
    ours = WordsLayer(64)
    theirs = nn.TransformerEncoderLayer(64, 2, 256, 0.0, "gelu", batch_first=True, norm_first=True)
    pairs = {
        "self_attn.in_proj_weight": "qkv.weight",
        "self_attn.in_proj_bias": "qkv.bias",
        "self_attn.out_proj.weight": "out.weight",
        "self_attn.out_proj.bias": "out.bias",
        "linear1.weight": "mlp.0.weight",
        "linear1.bias": "mlp.0.bias",
        "linear2.weight": "mlp.2.weight",
        "linear2.bias": "mlp.2.bias",
        **{
            f"norm{place}.{name}": f"{norm}.{name}"
            for place, norm in ((1, "norm"), (2, "norm_mlp"))
            for name in ("weight", "bias")
        },
    }
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.2)
    given = theirs.state_dict()
    ours.load_state_dict({name: given[source] for source, name in pairs.items()})
    h, mask = torch.randn(3, 11, 64), torch.arange(11) < torch.tensor([11, 4, 1])[:, None]
    torch.testing.assert_close(ours(h, mask)[mask], theirs(h, src_key_padding_mask=~mask)[mask], rtol=1e-4, atol=1e-5)
