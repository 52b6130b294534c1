"""Attention against torch's own, in each of the ways in which it is computed."""

import re
from functools import partial
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from unfog.networks import attention
from unfog.networks.attention import Form, attend
from unfog.networks.conditioning import WordsLayer

PRECISE = {torch.float32: 1e-5, torch.bfloat16: 0.03}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("precision", PRECISE)
@pytest.mark.parametrize("places", [9, 300])
@pytest.mark.parametrize("form", get_args(Form))
def test_attention_and_its_gradient_are_torchs(places: int, precision: torch.dtype, masked: bool, form: Form) -> None:
    draw = torch.Generator().manual_seed(places)
    q, k, v, back = (torch.randn(2, 3, n, 16, generator=draw) for n in (places, 20, 20, places))
    mask = (torch.arange(20) < torch.tensor([20, 7])[:, None])[:, None, None] if masked else None
    found = []
    ours = partial(attend, form=form)
    for numbers, function in ((precision, ours), (torch.float64, F.scaled_dot_product_attention)):
        given = [one.to(precision).to(numbers).requires_grad_() for one in (q, k, v)]
        out = function(*given, mask)
        found.append([out, *torch.autograd.grad(out, given, back.to(numbers))])
    for one, exact in zip(*found, strict=True):
        torch.testing.assert_close(one.double(), exact, rtol=PRECISE[precision], atol=PRECISE[precision])


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


def test_the_form_is_the_one_that_was_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rule: plain products in bfloat16 on a CPU, up to 1,024 places."""
    taken = []
    formula = attention.formula

    def noted(*arguments: torch.Tensor) -> torch.Tensor:
        taken.append(True)
        return formula(*arguments)

    monkeypatch.setattr(attention, "formula", noted)
    for form, dtype, places, plain in (
        ("rule", torch.bfloat16, 1024, True),
        ("rule", torch.bfloat16, 1025, False),
        ("rule", torch.float32, 9, False),
        ("plain", torch.float32, 9, True),
        ("plain", torch.bfloat16, 1025, True),
        ("fused", torch.bfloat16, 9, False),
    ):
        taken.clear()
        q = torch.randn(1, 1, places, 8, dtype=dtype)
        layer = attention.Attend()
        layer.form = form  # type: ignore[assignment]  # one of the words
        layer(q, q, q)
        assert bool(taken) == plain, (form, dtype, places)


def test_networks_leave_the_form_to_choose() -> None:
    """None calls `attend` by itself, past the part whose form a training chooses."""
    folder = Path(attention.__file__).parent
    calls = re.compile(r"(?<![.\w])attend\(")
    assert [path.name for path in folder.glob("*.py") if calls.search(path.read_text())] == ["attention.py"]
