"""Conditions: each embedder with its null, how rows and requests are read, and cross-attention."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from unfog.data.shapes import COLOURS, RELATIONS, SHAPES, SIZES
from unfog.data.source import Batch
from unfog.data.text import tokenise
from unfog.networks.compact import Compact
from unfog.networks.conditioning import Cond, TextEncoder
from unfog.networks.dit import DiT
from unfog.networks.layers import CrossAttention
from unfog.networks.unet import UNet
from unfog.recipes.conditions import (
    ClassConditioning,
    Conditioning,
    Known,
    LabelsConditioning,
    NoConditioning,
    TextConditioning,
    ValuesConditioning,
    captions,
)
from unfog.recipes.planes import ImageConditioning
from unfog.recipes.presets import recipe
from unfog.recipes.recipe import Recipe
from unfog.runs.run import load
from unfog.runtime.errors import UserError

KNOWN = Known((3, 8, 8), ("cat", "dog", "5"), ("a red dog", "a cat"))
KINDS: dict[str, tuple[Conditioning, object]] = {
    "classes": (ClassConditioning(), [0, 2, 1, 1]),
    "labels": (LabelsConditioning(), ["cat,dog", "", "5", "dog"]),
    "values": (ValuesConditioning(count=2), [[0.0, 1.0], [1.0, 0.0], [2.0, -1.0], [0.5, 0.5]]),
    "text": (TextConditioning(width=32, length=8), ["a cat", "a big red dog, asleep", "dog", "zzyzx"]),
    "image": (ImageConditioning(task="enlarge"), torch.linspace(-1, 1, 4 * 192).reshape(4, 3, 8, 8)),
}


def parts(cond: Cond) -> list[Tensor]:
    return [part for part in (cond.vector, cond.tokens, cond.mask, cond.concat) if part is not None]


@pytest.mark.parametrize("kind", KINDS)
def test_dropped_is_null_and_the_rest_stays(kind: str) -> None:
    conditioning, asked = KINDS[kind]
    torch.manual_seed(0)
    embedder = conditioning.build(KNOWN, 16)
    assert embedder is not None
    for parameter in embedder.parameters():  # type: ignore[attr-defined]
        torch.nn.init.normal_(parameter, std=0.3)  # a learned null starts at zero
    condition = conditioning.ask(KNOWN, asked, 4)  # type: ignore[arg-type]
    assert condition is not None
    drop = torch.tensor([True, False, True, False])
    whole, some, null = embedder(condition), embedder(condition, drop), embedder.null(4)
    for full, part, none in zip(parts(whole), parts(some), parts(null), strict=True):
        torch.testing.assert_close(part[drop].float(), none[drop].float(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(part[~drop].float(), full[~drop].float(), rtol=1e-5, atol=1e-6)
    assert any(not torch.equal(full, none) for full, none in zip(parts(whole), parts(null), strict=True))


def test_an_empty_prompt_is_the_null() -> None:
    text = TextConditioning(width=32, length=8)
    encoder = text.build(KNOWN, 16)
    condition = text.ask(KNOWN, "", 2)
    assert encoder is not None
    assert condition is not None
    for one, other in zip(parts(encoder(condition)), parts(encoder.null(2)), strict=True):
        assert torch.equal(one, other)


def test_a_text_does_not_depend_on_those_beside_it() -> None:
    torch.manual_seed(0)
    encoder = TextEncoder(16, width=32, layers=2, length=12).eval()
    texts = ["a cat", "a very long text about nothing much at all", "", "dog"]
    together = encoder(tokenise(texts, 12))
    for row, text in enumerate(texts):
        alone = encoder(tokenise([text], 12))
        for one, many in zip(parts(alone), parts(together), strict=True):
            torch.testing.assert_close(one[0].float(), many[row].float(), rtol=1e-5, atol=1e-6)


def test_a_word_knows_its_neighbours_without_any_attention() -> None:
    encoder = TextEncoder(16, width=32, layers=0, length=20).eval()
    cond = encoder(tokenise(["the red one is far from here", "the blue one is far from here"], 20))
    assert cond.tokens is not None
    changed = (cond.tokens[0] - cond.tokens[1]).detach().abs().amax(1) > 1e-6
    assert changed.nonzero().flatten().tolist() == list(range(2 + TextEncoder.REACH + 1))  # the colour is word 2


def test_words_are_read_whatever_they_are() -> None:
    rows = tokenise(["A Red dog.", "a red dog .", "", "\udcff 漢字 \0"], 8)
    assert torch.equal(rows[0], rows[1])
    assert rows[2].tolist() == [1] + [0] * 7
    assert (rows[3] > 1).sum() >= 2
    words = {word for text in (*COLOURS, *SHAPES, *SIZES, *RELATIONS, "a") for word in text.split()}
    numbers = tokenise([" ".join(sorted(words))], 40)[0]
    rooms = {(int(n) % TextEncoder.ROWS, int(n) // TextEncoder.ROWS % TextEncoder.ROWS) for n in numbers if n > 1}
    assert len(rooms) == len(words)


@given(st.lists(st.text(max_size=60), min_size=1, max_size=4), st.integers(2, 9))
@settings(max_examples=60, deadline=None)
def test_any_text_fits(texts: list[str], length: int) -> None:
    rows = tokenise(texts, length)
    assert rows.shape == (len(texts), length)
    assert (rows[:, 0] == 1).all()
    assert (rows >= 0).all()


def test_a_long_prompt_is_cut_aloud() -> None:
    text = TextConditioning(width=32, length=4)
    with pytest.warns(UserWarning, match="a prompt of 5 words was truncated .* limit of 3: omitted is 'dog asleep'"):
        condition = text.ask(KNOWN, "a big red dog asleep", 1)
    assert torch.equal(condition, tokenise(["a big red"], 4))  # type: ignore[arg-type]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text.ask(KNOWN, "a big red", 1)
        text.read(KNOWN, Batch(torch.zeros(1), captions=["a big red dog asleep"]), torch.zeros(1), torch.zeros(1, 4))


def test_without_a_request_all_come_in_turn() -> None:
    def asked(kind: str) -> Tensor:
        found = KINDS[kind][0].ask(KNOWN, None, 4)
        assert found is not None
        return found

    assert asked("classes").tolist() == [0, 1, 2, 0]
    assert asked("labels").long().argmax(1).tolist() == [0, 1, 2, 0]
    assert torch.equal(asked("text"), tokenise(["a red dog", "a cat"] * 2, 8))


def test_labels_by_name_and_number() -> None:
    assert ClassConditioning().ask(KNOWN, ["dog", 0, "5", "2"], 4).tolist() == [1, 0, 2, 2]  # type: ignore[union-attr]
    several = LabelsConditioning().ask(KNOWN, ["cat, 5", "", 1], 3)
    assert several.tolist() == [[True, False, True], [False] * 3, [False, True, False]]  # type: ignore[union-attr]
    assert ValuesConditioning(count=2).ask(KNOWN, (1, 2), 3).tolist() == [[1, 2]] * 3  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("conditioning", "asked", "says"),
    [
        (ClassConditioning(), 3, "the label 3 is out of range: this model knows 0 to 2"),
        (ClassConditioning(), -1, "out of range"),
        (ClassConditioning(), "dgo", "unknown label 'dgo': did you mean 'dog'?"),
        (ClassConditioning(), 1.5, "conditioned on labels, whole numbers or text, not on 1.5"),
        (ClassConditioning(), [0, 1, 2], "3 labels or prompts do not fit 2 samples"),
        (TextConditioning(), 3, "conditioned on text, not on 3"),
        (TextConditioning(), ["a"], "1 labels or prompts do not fit 2 samples"),
        (LabelsConditioning(), "cat,cow", "unknown label 'cow'"),
        (LabelsConditioning(), torch.zeros(2, 4), "need a condition of shape (2, 3), not (2, 4)"),
        (ValuesConditioning(), None, "conditioned on 1 numbers, not on None"),
        (ValuesConditioning(), "red", "conditioned on 1 numbers, not on 'red'"),
        (ValuesConditioning(count=2), [1.0], "need a condition of shape (2, 2), not (2, 1)"),
        (ValuesConditioning(), [float("nan")], "finite numbers"),
        (ImageConditioning(), None, "conditioned on images: give one"),
        (ImageConditioning(), torch.zeros(1, 1, 8, 8), "of shape (3, 8, 8), not (1, 8, 8)"),
        (NoConditioning(), 0, "trained without conditions"),
    ],
)
def test_what_cannot_be_asked(conditioning: Conditioning, asked: object, says: str) -> None:
    with pytest.raises(UserError) as caught:
        conditioning.ask(KNOWN, asked, 2)  # type: ignore[arg-type]
    assert says in str(caught.value)


def test_what_the_data_do_not_tell() -> None:
    rows, u = Batch(torch.zeros(2, 3, 8, 8)), torch.zeros(2, 4)
    with pytest.raises(UserError, match="needs captions or classes"):
        TextConditioning().read(KNOWN, rows, rows.x, u)
    with pytest.raises(UserError, match="give 0 values for a row, where conditioning.count is 1"):
        ValuesConditioning().read(KNOWN, rows, rows.x, u)
    with pytest.raises(UserError, match="several labels: train with conditioning=labels"):
        ClassConditioning().read(KNOWN, rows._replace(labels=torch.ones(2, 3).bool()), rows.x, u)
    with pytest.raises(UserError, match="needs data with labels"):
        LabelsConditioning().build(KNOWN._replace(classes=()), 8)
    with pytest.raises(UserError, match="does not divide"):
        ImageConditioning(factor=3).build(KNOWN, 8)
    with pytest.raises(UserError, match="multiple of 32"):
        TextConditioning(width=70)
    with pytest.raises(UserError, match="must lie between 0 and 1"):
        TextConditioning(dropout=1.5)


def test_names_of_classes_serve_as_captions() -> None:
    rows = Batch(torch.zeros(2), labels=torch.tensor([1, 2]))
    assert captions(rows, KNOWN.classes) == ["dog", "5"]
    several = rows._replace(labels=torch.tensor([[True, False, True], [False, False, False]]))
    assert captions(several, KNOWN.classes) == ["cat, 5", ""]
    assert captions(rows._replace(captions=["x", "y"]), KNOWN.classes) == ["x", "y"]


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_planes_of_pictures(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x0 = torch.rand(3, 3, 8, 8, generator=generator) * 2 - 1
    u = torch.rand(3, 4, generator=generator).double()

    def planes(task: str) -> Tensor:
        found = ImageConditioning(task=task, factor=4).read(KNOWN, Batch(x0), x0, u)  # type: ignore[arg-type]
        assert found is not None
        return found

    torch.testing.assert_close(planes("colour"), x0.mean(1, keepdim=True))
    small = planes("enlarge")
    torch.testing.assert_close(small[:, :, 4:, :4], x0[:, :, 4:, :4].mean((2, 3), keepdim=True).expand(-1, -1, 4, 4))
    picture, mask = planes("fill").split([3, 1], 1)
    assert torch.equal(picture, x0 * (1 - mask))
    for row in mask[:, 0]:
        box = row.nonzero()
        low, high = box.min(0).values, box.max(0).values
        sides = high - low + 1
        assert len(box) == sides.prod()  # one full box
        assert ((sides >= 2) & (sides <= 6)).all()


def test_cross_attention_is_its_formula() -> None:
    torch.manual_seed(0)
    layer = CrossAttention(8, 5, head=4)
    x, tokens = torch.randn(2, 8, 3, 3), torch.randn(2, 4, 5)
    assert torch.equal(layer(x, Cond(tokens=tokens)), x)  # starts as the identity
    assert torch.equal(layer(x, None), x)
    torch.nn.init.normal_(layer.out.weight)  # type: ignore[arg-type]
    mask = torch.tensor([[True, True, False, False], [True] * 4])
    found = layer(x, Cond(tokens=tokens, mask=mask))
    q = layer.q(layer.norm(x).flatten(2).transpose(1, 2))
    k, v = layer.kv(tokens).chunk(2, -1)
    for row in range(2):
        count = int(mask[row].sum())
        for place in range(9):
            heads = []
            for part in (slice(0, 4), slice(4, 8)):
                scores = torch.stack([q[row, place, part] @ k[row, one, part] / 2 for one in range(count)])
                heads.append(sum(w * v[row, one, part] for one, w in enumerate(scores.softmax(0))))
            expected = x[row].flatten(1)[:, place] + layer.out(torch.cat(heads))  # type: ignore[arg-type]
            torch.testing.assert_close(found[row].flatten(1)[:, place], expected)
    far = tokens.clone()
    far[0, 2:] = 1e3  # behind the mask nothing is seen
    assert torch.equal(layer(x, Cond(tokens=far, mask=mask)), found)


@pytest.mark.parametrize("build", [Compact, UNet, DiT])
def test_networks_hear_every_form_of_condition(build: type[Compact] | type[UNet] | type[DiT]) -> None:
    torch.manual_seed(0)
    network = build(3 + 2, outputs=3, context=6)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    x, time = torch.randn(2, 3, 8, 8), torch.tensor([3.0, 500.0])
    cond = Cond(torch.randn(2, network.embedding_dim), torch.randn(2, 4, 6), None, torch.randn(2, 2, 8, 8))
    base = network(x, time, cond)
    assert base.shape == x.shape
    changes: list[dict[str, Tensor]] = [
        {"vector": torch.zeros(2, network.embedding_dim)},
        {"tokens": torch.zeros(2, 4, 6)},
        {"mask": torch.tensor([[True, False, False, False]] * 2)},
        {"concat": torch.zeros(2, 2, 8, 8)},
    ]
    for change in changes:
        other = network(x, time, Cond(**{**vars(cond), **change}))
        assert not torch.allclose(other, base, atol=1e-4), change


def write_folder(root: Path) -> Path:
    root.mkdir()
    draw = np.random.default_rng(0)
    lines = []
    for number in range(40):
        pixels = draw.integers(0, 255, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"{number}.png")
        labels = [name for place, name in enumerate(("big", "red", "round")) if number >> place & 1]
        more = {"label": labels, "text": " ".join(labels) or "plain", "values": [number / 40, 1]}
        lines.append(json.dumps({"file_name": f"{number}.png", **more}))
    (root / "metadata.jsonl").write_text("\n".join(lines))
    return root


@pytest.mark.parametrize(
    ("kind", "more", "asked"),
    [
        ("labels", (), "big,round"),
        ("values", ("conditioning.count=2",), (0.5, 1.0)),
        ("text", ("conditioning.width=32",), "red thing"),
        ("image", ("conditioning.task=colour",), torch.zeros(1, 3, 8, 8)),
        ("image", ("conditioning.task=fill",), torch.zeros(1, 3, 8, 8)),
    ],
)
def test_every_kind_trains_and_samples(
    tmp_path: Path, train_into: Callable[[Recipe, str], Path], kind: str, more: tuple[str, ...], asked: object
) -> None:
    small = ("network.width=8", "training.images=320", "training.batch=16", "training.reports=1", "sampling.steps=2")
    small = (*small, "optimizer.warmup=0", "optimizer.lr=0.02", "network.patch=2")
    folder = write_folder(tmp_path / "pictures")
    chosen = recipe("folder", str(folder), 8).set(*small, f"conditioning={kind}", *more, "conditioning.dropout=0.5")
    run = load(train_into(chosen, f"conditioned-{kind}"), "cpu")
    guided = run.sample(3, asked, guidance=20)
    assert guided.shape == (3, 3, 8, 8)
    assert torch.equal(guided[:1], run.sample(1, asked, guidance=20))
    assert not torch.equal(guided, run.sample(3, asked, guidance=0))  # that is unconditional
    assert bool(run.recipe.prompts) == (kind == "text")
