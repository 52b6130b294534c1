"""objective=contrastive: the loss in closed form, equal texts, and an encoder that learns what belongs together."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import unfog
from unfog.networks.dual import SHARPEST, DualEncoder, MeaningEmbedding, Tower
from unfog.recipes.build import build_codec, build_data
from unfog.recipes.encoders import encoder
from unfog.recipes.objective import Context, Draw
from unfog.recipes.presets import recipe
from unfog.runs.data import read_data
from unfog.runs.reading import read_recipe
from unfog.runtime.errors import UserError
from unfog.training.objectives.contrastive import Contrastive, contrastive, exchanged


def test_the_loss_of_two_pairs_is_that_of_a_logistic_choice() -> None:
    angle = torch.tensor([0.3, 1.4])
    pictures = torch.stack([angle.cos(), angle.sin()], 1)
    texts = F.normalize(torch.tensor([[1.0, 0.2], [0.1, 1.0]]))
    cosines, sharpness = (pictures @ texts.T).double(), 7.0
    found = contrastive(pictures, texts, torch.tensor([[1, 5], [1, 6]]), torch.tensor(sharpness))
    for row in range(2):
        gaps = [cosines[row, 1 - row] - cosines[row, row], cosines[1 - row, row] - cosines[row, row]]
        wanted = sum(math.log1p(math.exp(sharpness * float(gap))) for gap in gaps) / 2
        assert float(found[row]) == pytest.approx(wanted, rel=1e-5)


def test_rows_with_equal_texts_belong_together() -> None:
    """Three rows, two of one text: whichever of the two a picture is nearest to counts as right."""
    pictures, texts = torch.eye(3)[[0, 0, 1]], torch.eye(3)[[0, 0, 1]]
    words, sharp = torch.tensor([[1, 5], [1, 5], [1, 6]]), torch.tensor(50.0)
    assert torch.allclose(contrastive(pictures, texts, words, sharp), torch.tensor([math.log(2), math.log(2), 0.0]))
    apart = torch.tensor([[1, 5], [1, 7], [1, 6]])
    swapped = contrastive(pictures[[1, 0, 2]], texts, words, sharp)
    assert torch.allclose(swapped, contrastive(pictures, texts, words, sharp))
    mixed = contrastive(pictures[[0, 2, 1]], texts, apart, sharp)
    assert float(mixed[1]) > 10


def test_a_text_is_also_sought_among_others_that_no_row_has() -> None:
    """They are wrong for every picture but where they equal its own, and no picture is sought for them."""
    pictures, sharpness = F.normalize(torch.tensor([[1.0, 0.3], [0.2, 1.0]])), torch.tensor(5.0)
    texts = F.normalize(torch.tensor([[1.0, 0.1], [0.1, 1.0], [1.0, 0.5], [0.1, 1.0]]))
    words = torch.tensor([[1, 5], [1, 6], [1, 7], [1, 6]])
    found = contrastive(pictures, texts, words, sharpness)
    logits = 5.0 * pictures @ texts.T
    to_text = logits[0].logsumexp(0) - logits[0, 0], logits[1].logsumexp(0) - (logits[1, 1] + logits[1, 3]) / 2
    to_picture = [logits[:, row].logsumexp(0) - logits[row, row] for row in range(2)]
    assert torch.allclose(found, (torch.stack(to_text) + torch.stack(to_picture)) / 2)


def test_exchanged_texts_differ_in_one_word_that_another_text_has_there() -> None:
    words = torch.tensor([[1, 5, 7, 0], [1, 5, 8, 9], [1, 6, 7, 4], [1, 5, 7, 0]])
    places = set()
    for u in torch.linspace(0, 0.999, 7):
        found = exchanged(words, u.repeat(4))
        changed = found != words
        assert changed.sum(1).tolist() == [1] * 4
        assert not changed[:, 0].any()  # all begin with the same
        assert not changed[[0, 3], 3].any()  # a text does not grow
        for row, place in changed.nonzero().tolist():
            assert found[row, place] in words[:, place]
            assert found[row, place] != 0
            places.add((row, place))
    assert {place for row, place in places if row == 0} == {1, 2}
    assert torch.equal(exchanged(words[[0, 3]], torch.zeros(2)), words[[0, 3]])
    assert torch.equal(exchanged(words[:1], torch.zeros(1)), words[:1])


def test_what_no_text_says_is_kept_if_that_is_asked_for() -> None:
    """By the same loss between pictures and noised ones: weight 2 times a half of both directions."""
    made, _ = build_data(recipe("encoder").set("network.width=8", "network.dim=12", "data.count=100"))
    model = made.objective.build(made, 10**8)
    x0, words = torch.randn(4, 3, 32, 32), F.pad(torch.tensor([[1, 5]]), (0, 18)).repeat(4, 1)
    none = torch.zeros(4, dtype=torch.bool)
    batch = Draw(x0, words, none, torch.rand(4), torch.randn_like(x0))
    context = Context(made, build_codec(made))
    without, with_it = (Contrastive(instances=weight).measured(model, batch, context) for weight in (0.0, 2.0))
    pictures, noised = model.pictures(x0), model.pictures(x0 + 0.2 * batch.noise)
    logits = model.sharpness * pictures @ noised.T
    wanted = F.cross_entropy(logits, torch.arange(4), reduction="none")
    wanted = wanted + F.cross_entropy(logits.T, torch.arange(4), reduction="none")
    assert torch.allclose(with_it - without, wanted, atol=1e-5)


def test_captions_are_sought_among_exchanged_ones() -> None:
    """As many for each row as there are to be, each with a word of another place."""
    made, _ = build_data(recipe("encoder").set("network.width=8", "network.dim=12", "data.count=100"))
    model = made.objective.build(made, 10**8)
    words = F.pad(torch.tensor([[1, 5, 7], [1, 6, 7], [1, 6, 8]]), (0, 17))
    batch = Draw(torch.randn(3, 3, 32, 32), words, torch.zeros(3, dtype=torch.bool), torch.rand(3), torch.zeros(1))
    found = Contrastive(exchanged=2, instances=0).measured(model, batch, Context(made, build_codec(made)))
    every = torch.cat([words, exchanged(words, batch.u), exchanged(words, (batch.u + 0.5) % 1)])
    wanted = contrastive(model.pictures(batch.x0), model.texts(every), every, model.sharpness)
    assert torch.allclose(found, wanted, atol=1e-6)
    plain = contrastive(model.pictures(batch.x0), model.texts(words), words, model.sharpness)
    assert not torch.allclose(found, plain, atol=1e-3)


def test_embeddings_have_length_one_and_know_places() -> None:
    torch.manual_seed(0)
    made = recipe("encoder").set("network.width=8", "network.dim=12", "data.count=100")
    made, _ = build_data(made)
    model = made.objective.build(made, 10**8)
    assert isinstance(model, DualEncoder)
    x0 = torch.randn(4, 3, 32, 32)
    for rows in (
        model.pictures(x0),
        model.texts(torch.tensor([[1, 5, 0], [1, 6, 7]]).repeat(2, 1).repeat(1, 7)[:, :20]),
    ):
        assert rows.shape == (4, 12)
        assert torch.allclose(rows.norm(dim=1), torch.ones(4), atol=1e-5)
    assert not torch.allclose(model.pictures(x0), model.pictures(x0.flip(3)), atol=1e-3)  # left and right differ
    model.scale.data.fill_(20.0)
    assert model.sharpness.item() == SHARPEST


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder of digits and their names, which is learnt in seconds."""
    out = tmp_path_factory.mktemp("encoder") / "run"
    small = ("network.width=16", "network.levels=1", "network.dim=16", "conditioning.width=32", "conditioning.layers=0")
    made = recipe("encoder").set("data=digits", "codec=pixels", *small, "lr=3e-3", "reports=2")
    unfog.fit(made.set("images=16000", "batch=128"), out)
    return out


def test_it_learns_what_belongs_together(trained: Path) -> None:
    found = encoder(trained, "conditioning.path")
    rows = read_data(trained, read_recipe(trained))[1].heldout.take(np.arange(100))
    assert rows.labels is not None
    names = found.texts([str(digit) for digit in range(10)])
    read = (found.pictures(rows.x) @ names.T).argmax(1)
    assert float((read == rows.labels).float().mean()) > 0.85
    assert torch.allclose(found.pictures(rows.x).norm(dim=1), torch.full((100,), 4.0), atol=1e-4)
    assert list((trained / "samples").glob("*.png"))


def test_what_is_dropped_becomes_the_null_condition() -> None:
    torch.manual_seed(0)
    embed, numbers = MeaningEmbedding(4, 6, tokens=2, context=8), torch.randn(3, 4) + 0.5
    torch.nn.init.normal_(embed.missing)
    found, whole, null = embed(numbers, torch.tensor([False, True, False])), embed(numbers), embed.null(3)
    for one, given, none in ((found.vector, whole.vector, null.vector), (found.tokens, whole.tokens, null.tokens)):
        assert one is not None
        assert given is not None
        assert none is not None
        assert torch.equal(one[0], given[0])
        assert torch.equal(one[1], none[1])
        assert not torch.allclose(given[1], none[1])
    assert found.tokens is not None
    assert found.tokens.shape == (3, 2, 8)


def test_embeddings_do_not_depend_on_the_arithmetic_around_them(trained: Path) -> None:
    found = encoder(trained, "conditioning.path")
    x = torch.randint(0, 256, (2, 1, 8, 8), dtype=torch.uint8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        there = found.pictures(x), found.texts(["a red circle"])
    assert torch.equal(there[0], found.pictures(x))
    assert torch.equal(there[1], found.texts(["a red circle"]))


def test_it_draws_nothing(trained: Path) -> None:
    with pytest.raises(UserError, match="encoders of pictures and texts, which draw nothing"):
        unfog.load(trained)


def test_a_loss_of_zero_is_drawn(tmp_path: Path) -> None:
    """As that of a batch of one row, which cannot be mistaken."""
    small = ("network.width=8", "network.levels=1", "network.dim=8", "conditioning.width=32", "conditioning.layers=0")
    made = recipe("encoder").set("data=digits", *small, "images=2", "batch=1", "reports=1")
    unfog.fit(made, tmp_path / "run")
    assert (tmp_path / "run" / "loss.png").is_file()


def test_misuse() -> None:
    with pytest.raises(UserError, match="trains network=tower, not 'compact'"):
        _build("network=compact")
    with pytest.raises(UserError, match="learns from captions"):
        _build("conditioning=none")
    with pytest.raises(UserError, match="multiples of 64, not 32"):
        _build("network.levels=6")
    with pytest.raises(UserError, match="exchanged must be from 0 to 16"):
        _build("objective.exchanged=17")
    with pytest.raises(ValueError, match="levels"):
        Tower(3, levels=0)


def _build(*settings: str) -> None:
    made, _ = build_data(recipe("encoder").set("data.count=100", *settings))
    made.objective.build(made, 10**8)
