"""Several conditions at once: packed and unpacked, asked and dropped singly, trained and sampled."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.conftest import MakeRecipe
from unfog.data.shapes import SHAPES, Scene, Shapes
from unfog.data.source import Batch, Data, InMemory
from unfog.recipes.conditions import (
    ClassConditioning,
    Known,
    LabelsConditioning,
    TextConditioning,
    ValuesConditioning,
)
from unfog.recipes.kinds import KINDS, register
from unfog.recipes.planes import ImageConditioning
from unfog.recipes.presets import recipe
from unfog.recipes.recipe import Recipe
from unfog.recipes.several import SeveralConditions
from unfog.runs.run import load
from unfog.runtime.errors import UserError

KNOWN = Known((1, 8, 8), ("a", "b", "c"), ("one", "two"))
PARTS = (
    ClassConditioning(dropout=0.5),
    ValuesConditioning(count=2, dropout=0.25),
    TextConditioning(width=32, length=4),
)
SEVERAL = SeveralConditions(parts=PARTS)
ROWS = Batch(
    torch.zeros(3, 1, 8, 8, dtype=torch.uint8),
    torch.tensor([2, 0, 1]),
    ["red circle", "", "blue"],
    torch.tensor([[0.25, -1.5], [3e-8, 7.0], [0.0, -0.0]]),
)


def read(u: Tensor) -> Tensor:
    condition = SEVERAL.read(KNOWN, ROWS, torch.zeros(3, 1, 8, 8), u)
    assert condition is not None
    return condition


def embedded(condition: Tensor, drop: Tensor | None = None) -> Any:
    torch.manual_seed(0)
    embedder = SEVERAL.build(KNOWN, 16)
    assert embedder is not None
    return embedder(condition, drop), embedder


def test_the_condition_is_the_sum_of_its_parts() -> None:
    """To the bit what each embedder makes of its own condition."""
    cond, embedder = embedded(read(torch.ones(3, 4)))
    own = {name: part.read(KNOWN, ROWS, ROWS.x, torch.ones(3, 4)) for name, part in SEVERAL.named.items()}
    parts = {name: part(own[name]) for name, part in zip(own, embedder.parts, strict=True)}
    assert torch.equal(cond.vector, torch.stack([one.vector for one in parts.values()]).sum(0))
    assert torch.equal(cond.tokens, parts["text"].tokens)
    assert torch.equal(cond.mask, parts["text"].mask)


@pytest.mark.parametrize("place", range(3))
def test_each_part_is_dropped_by_a_number_of_its_own(place: int) -> None:
    u = torch.ones(3, 4)
    u[:, place] = 0.01
    cond, embedder = embedded(read(u))
    own = {name: part.read(KNOWN, ROWS, ROWS.x, u) for name, part in SEVERAL.named.items()}
    dropped = torch.ones(3, dtype=torch.bool)
    vectors = [
        embedder.parts[number](own[name], dropped if number == place else None).vector
        for number, name in enumerate(own)
    ]
    torch.testing.assert_close(cond.vector, torch.stack(vectors).sum(0))


def test_all_together_are_dropped_as_nothing() -> None:
    cond, embedder = embedded(read(torch.ones(3, 4)), torch.tensor([True, False, True]))
    null = embedder.null(3)
    torch.testing.assert_close(cond.vector[[0, 2]], null.vector[[0, 2]])
    assert not torch.equal(cond.vector[1], null.vector[1])
    assert torch.equal(cond.mask[[0, 2]], null.mask[[0, 2]])
    for name in SEVERAL.named:
        assert torch.equal(SEVERAL.ask(KNOWN, {}, 2)[:, 0], torch.zeros(2)), name  # type: ignore[index]


def test_a_request_names_parts() -> None:
    """What is not named is dropped, and what is named is what the part alone would take."""
    asked: dict[str, Any] = {"classes": "b", "text": ["red", "blue"]}
    condition = SEVERAL.ask(KNOWN, asked, 2)
    assert condition is not None
    assert condition[:, 0].tolist() == [1, 1]
    assert condition[:, 1].tolist() == [1, 1]
    assert condition[:, 2].tolist() == [0, 0]  # no numbers
    assert condition[:, 5].tolist() == [1, 1]
    words = PARTS[2].ask(KNOWN, ["red", "blue"], 2)
    assert torch.equal(condition[:, 6:], words)  # type: ignore[arg-type]
    assert torch.equal(SEVERAL.ask(KNOWN, "red", 2), SEVERAL.ask(KNOWN, {"text": "red"}, 2))  # type: ignore[arg-type]
    assert torch.equal(SEVERAL.ask(KNOWN, None, 2)[:, 5], torch.ones(2))  # type: ignore[index]  # captions in turn


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (3, "conditioned on classes, values, text: ask with names"),
        ({"clases": 1}, "unknown condition 'clases': did you mean 'classes'"),
        ({"classes": 7}, "out of range"),
        ({"values": [1.0]}, "2"),
    ],
)
def test_requests_that_cannot_be(asked: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        SEVERAL.ask(KNOWN, asked, 2)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ((), "2 to 4 different ones, not none"),
        ((ClassConditioning(),), "2 to 4 different ones, not classes"),
        ((ClassConditioning(), ClassConditioning()), "not classes, classes"),
        ((ClassConditioning(), ImageConditioning()), "conditioning=image cannot be combined"),
    ],
)
def test_parts_that_cannot_stand_side_by_side(parts: tuple[Any, ...], words: str) -> None:
    with pytest.raises(UserError, match=words):
        SeveralConditions(parts=parts)


def test_flags_are_no_bits_of_numbers() -> None:
    """Labels are whole numbers in both worlds."""
    several = SeveralConditions(parts=(LabelsConditioning(), ValuesConditioning()))
    rows = Batch(ROWS.x, torch.tensor([[True, False, True]] * 3), None, torch.tensor([[0.5]] * 3))
    condition = several.read(KNOWN, rows, torch.zeros(3, 1, 8, 8), torch.ones(3, 4))
    embedder = several.build(KNOWN, 16)
    assert condition is not None
    assert embedder is not None
    labels = embedder.parts[0](rows.labels)  # type: ignore[attr-defined]
    values = embedder.parts[1](rows.values)  # type: ignore[attr-defined]
    torch.testing.assert_close(embedder(condition).vector, labels.vector + values.vector)


def test_the_setting_of_the_command_line() -> None:
    chosen = recipe("digits").set('conditions=["classes", {"kind": "values", "count": 2}]')
    assert chosen.conditioning == SeveralConditions(parts=(ClassConditioning(), ValuesConditioning(count=2)))
    assert Recipe.from_json(chosen.to_json()) == chosen
    with pytest.raises(UserError, match="unknown conditioning 'clases'"):
        recipe("digits").set('conditions=["clases", "values"]')


def labelled_shapes(count: int = 48, side: int = 32) -> Data:
    """Captioned shapes with the shape of the first thing as class and the number of things as value."""
    drawn = Shapes(count, side, 2)
    batch = drawn.take(np.arange(count))
    assert batch.captions is not None
    scenes = [Scene.parse(caption) for caption in batch.captions]
    labels = torch.tensor([SHAPES.index(scene.things[0].shape) for scene in scenes])
    values = torch.tensor([[float(len(scene.things)) - 1.5] for scene in scenes])
    rows = InMemory(batch.x, labels, tuple(SHAPES), batch.captions, values)
    return Data(rows, rows)


def test_class_numbers_and_text_are_trained_and_sampled_each_left_out_in_turn(
    tiny: MakeRecipe, train_into: Callable[[Recipe, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(KINDS, "data", dict(KINDS["data"]))
    register("data", "labelled-shapes", labelled_shapes)
    text = json.dumps({"kind": "text", "width": 32, "layers": 1, "length": 20})
    chosen = tiny("data=labelled-shapes", "network.patch=2", "training.images=64", "sampling.steps=2")
    chosen = chosen.set(
        f'conditions=["classes", "values", {str(text).replace(chr(39), chr(34))}]', "sampling.guidance=2"
    )
    run = load(train_into(chosen, "several"), "cpu")
    with torch.no_grad():  # two optimizer steps leave the classes where they began: near nothing
        for parameter in run.denoiser.parameters():
            parameter.add_(0.05)
    whole: dict[str, Any] = {"classes": "circle", "values": [0.5], "text": "a small red circle"}
    everything = run.sample(2, whole)
    assert everything.shape == (2, 3, 32, 32)
    for name in whole:
        rest = {other: value for other, value in whole.items() if other != name}
        assert not torch.equal(run.sample(2, rest), everything), name
    assert torch.equal(run.sample(1, whole), everything[:1])
    named = run.sample(2, label="circle", values=[0.5], prompt="a small red circle")
    assert torch.equal(named, everything)
    assert torch.equal(run.sample(2, prompt="a small red circle"), run.sample(2, {"text": "a small red circle"}))
    with pytest.raises(UserError, match="this model does not take `image`: use any of `label`, `values`, `prompt`"):
        run.sample(2, image=torch.zeros(3, 32, 32))
