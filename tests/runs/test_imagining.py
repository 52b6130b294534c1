"""DALL-E 2's mechanism: a prior from captions to embeddings, a decoder of embeddings, both as one run, and edits."""

import json
import shutil
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

import unfog
from unfog.cli.main import main
from unfog.data.pictures import save_picture
from unfog.generation import edits
from unfog.recipes.embedded import CaptionConditioning, Embedded
from unfog.recipes.encoders import EmbeddingConditioning, encoder
from unfog.recipes.presets import recipe
from unfog.runs.cascades import cascade
from unfog.runs.data import read_data
from unfog.runtime.errors import UserError
from unfog.runtime.tensors import read_tensors, write_tensors

QUICK = ("images=64", "batch=16", "reports=1")
DRAWING = ("sampling.steps=2", "sampling.batch=2")
SMALL = ("network.width=8", "network.middle=1", *DRAWING)
WORDS = ("conditioning.width=32", "conditioning.layers=0")


class Made(NamedTuple):
    encoder: Path
    prior: Path
    decoder: Path
    both: Path


def train(chosen: unfog.Recipe, out: Path) -> None:
    """Train so shortly that samples are grey."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        unfog.train(chosen, out)


def shaken(run: Path) -> None:
    """Move the weights of a run, which are zero at the output in the beginning, so that conditions matter."""
    weights = read_tensors(run / "model.safetensors")
    rows = torch.Generator().manual_seed(3)
    moved = {name: one + 0.1 * torch.randn(one.shape, generator=rows) for name, one in weights.items()}
    write_tensors(run / "model.safetensors", moved)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Hardly trained."""
    root = tmp_path_factory.mktemp("imagining")
    paths = Made(*(root / name for name in Made._fields))
    first = recipe("encoder").set("network.width=8", "network.dim=16", "data.count=200", *WORDS, *QUICK)
    unfog.fit(first, paths.encoder)
    rows = json.dumps({"kind": "shapes", "count": 200})
    prior = recipe("prior").set(f"data.rows={rows}", f"data.path={paths.encoder}", "network.width=32")
    unfog.train(prior.set(*QUICK, *DRAWING), paths.prior)
    decoder = recipe("decoder").set("data.count=200", f"conditioning.path={paths.encoder}", *SMALL, *QUICK)
    train(decoder, paths.decoder)
    for run in (paths.prior, paths.decoder):
        shaken(run)
    cascade([paths.prior, paths.decoder], paths.both)
    return paths


@pytest.fixture
def pictures(made: Made) -> torch.Tensor:
    return read_data(made.decoder, unfog.load(made.decoder).recipe)[1].heldout.take(np.arange(4)).x


def test_a_prior_draws_embeddings(made: Made) -> None:
    run = unfog.load(made.prior)
    drawn = run.sample(3, prompt="a large red circle")
    assert drawn.shape == (3, 16)
    assert drawn.dtype == torch.float32
    assert not torch.equal(drawn, run.sample(3, prompt="a small blue cross"))
    conditioning, data = run.recipe.conditioning, run.recipe.data
    assert isinstance(conditioning, CaptionConditioning)
    assert conditioning.path == str((made.prior / "encoder").resolve())  # a copy: the folder is all that is needed
    assert isinstance(data, Embedded)
    assert data.weights == encoder(made.encoder, "data.path").digest
    rows = read_data(made.prior, run.recipe)[1].heldout.take(np.arange(2))
    assert rows.captions is not None
    source = read_data(made.decoder, unfog.load(made.decoder).recipe)[1].heldout.take(np.arange(2))
    assert torch.equal(rows.x, encoder(made.encoder, "data.path").pictures(source.x))
    assert rows.captions == source.captions


def test_a_decoder_takes_pictures_texts_and_embeddings(made: Made, pictures: torch.Tensor, tmp_path: Path) -> None:
    run, one = unfog.load(made.decoder), pictures[0]
    drawn = run.sample(2, image=one)
    assert drawn.shape == (2, 3, 32, 32)
    save_picture(unfog.load(made.decoder).recipe.modality.sheet(pictures[:1], 1, 32), tmp_path / "sheet.png")
    from PIL import Image

    Image.fromarray(one.permute(1, 2, 0).numpy()).save(tmp_path / "x.png")
    assert torch.equal(drawn, run.sample(2, image=tmp_path / "x.png"))
    assert torch.equal(drawn, run.sample(2, condition=tmp_path / "x.png"))
    own = encoder(made.encoder, "conditioning.path")
    assert torch.equal(drawn, run.sample(2, own.pictures(one[None])))
    assert torch.equal(drawn, run.sample(2, 3 * own.pictures(one[None])))  # their length does not matter
    assert not torch.equal(drawn, run.sample(2, image=pictures[1]))
    told = run.sample(2, prompt="a large red circle")
    assert torch.equal(told, run.sample(2, own.texts(["a large red circle"])))


def test_the_folder_of_a_decoder_is_all_that_is_needed(made: Made, pictures: torch.Tensor, tmp_path: Path) -> None:
    shutil.copytree(made.decoder, tmp_path / "moved")
    conditioning = json.loads((tmp_path / "moved" / "recipe.json").read_text())["conditioning"]
    assert conditioning["path"] == "encoder"
    moved = unfog.load(tmp_path / "moved").sample(2, image=pictures[0])
    assert torch.equal(moved, unfog.load(made.decoder).sample(2, image=pictures[0]))


def test_both_as_one_run(made: Made, tmp_path: Path) -> None:
    run, size = unfog.load(made.both), 2
    drawn = run.sample(3, prompt="a large red circle", seed=5)
    assert drawn.shape == (3, 3, 32, 32)
    assert torch.equal(run.sample(1, prompt="a large red circle", seed=5), drawn[:1])
    prior, decoder = (unfog.load(path, precision=run.precision) for path in (made.prior, made.decoder))
    first = prior.sample(2, prompt="a large red circle", seed=5, batch=size)
    assert torch.equal(decoder.sample(2, first, seed=5, batch=size), drawn[:2])
    assert run.recipe.modality.pixels
    shutil.copytree(made.both, tmp_path / "moved")
    assert torch.equal(unfog.load(tmp_path / "moved").sample(1, prompt="a large red circle", seed=5), drawn[:1])
    out = tmp_path / "drawn"
    assert main(["sample", str(made.both), "-n", "2", "--prompt", "a small cross", "--out", str(out)]) == 0
    assert len(list(out.glob("0*.png"))) == 2


def test_runs_of_another_encoder_do_not_fit(made: Made, tmp_path: Path) -> None:
    other = recipe("encoder").set("network.width=8", "network.dim=16", "data.count=200", "seed=1", *WORDS, *QUICK)
    unfog.fit(other, tmp_path / "encoder")
    decoder = recipe("decoder").set("data.count=200", f"conditioning.path={tmp_path / 'encoder'}", *SMALL, *QUICK)
    train(decoder, tmp_path / "decoder")
    with pytest.raises(UserError, match="have different encoders"):
        cascade([made.prior, tmp_path / "decoder"], tmp_path / "both")
    with pytest.raises(UserError, match="draws no embeddings"):
        cascade([made.decoder, made.decoder], tmp_path / "both")
    with pytest.raises(UserError, match="omit noise"):
        cascade([made.prior, made.decoder], tmp_path / "both", noise=0.1)
    spec = unfog.load(made.prior).recipe.data
    assert isinstance(spec, Embedded)
    with pytest.raises(UserError, match="has other weights than it had"):
        Embedded(spec.rows, str(tmp_path / "encoder"), spec.weights).build()


def test_variations_interpolations_and_steering(made: Made, pictures: torch.Tensor, tmp_path: Path) -> None:
    decoder, both = unfog.load(made.decoder), unfog.load(made.both)
    one, other = pictures[:2]
    options = {"steps": 4}
    varied = decoder.vary(one, amount=1.0, count=2, **options)
    assert varied.shape == (2, 3, 32, 32)
    assert torch.equal(varied, both.vary(one, amount=1.0, count=2, **options))  # by the decoder of the two
    way = decoder.interpolate(one, other, count=3, **options)
    assert torch.equal(way[0], decoder.invert(one, **options)[1])  # its own noise, and its own embedding
    assert torch.equal(way[2], decoder.invert(other, **options)[1])
    assert not torch.equal(way[1], way[0])
    fresh = decoder.interpolate(one, other, count=3, fresh=True, **options)
    assert not torch.equal(fresh[0], way[0])
    assert torch.equal(fresh[0], decoder.interpolate(one, one, count=2, fresh=True, **options)[1])
    assert not torch.equal(fresh, decoder.interpolate(one, other, count=3, fresh=True, seed=1, **options))
    with pytest.raises(UserError, match="`fresh` is for models that are conditioned on embeddings"):
        decoder.interpolate(one, other, prompt="red", fresh=True, **options)
    texts = ("a red circle", "a blue circle")
    for new, first in ((True, fresh[0]), (False, way[0])):
        steered = decoder.steer(one, *texts, amount=0.5, count=3, fresh=new, **options)
        assert torch.equal(steered[0], first)
        assert not torch.equal(steered[2], steered[0])
        assert torch.equal(decoder.steer(one, *texts, amount=0.0, count=2, fresh=new, **options)[1], first)
        halfway = decoder.steer(one, *texts, amount=0.25, count=2, fresh=new, **options)[1]
        assert torch.equal(halfway, steered[1])
    assert torch.equal(steered, decoder.steer(one, *texts, amount=0.5, count=3, fresh=False, **options))
    assert torch.equal(
        decoder.steer(one, *texts, count=2, **options), decoder.steer(one, *texts, count=2, fresh=True, **options)
    )
    with pytest.raises(UserError, match="mean the same"):
        decoder.steer(one, "red", "red")
    for wrong in ({"amount": 2.0}, {"count": 1}):
        with pytest.raises(UserError, match="the amount must be"):
            decoder.steer(one, *texts, **wrong)  # type: ignore[arg-type]  # misuse on purpose


def test_steering_leads_along_the_arc_to_the_difference_of_the_texts(
    made: Made, pictures: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """amount=1 leads to the embedding text(after) - text(before), at the length that embeddings have."""
    sampler = unfog.load(made.decoder).sampler(steps=4, guidance=1.0)
    own = encoder(made.encoder, "conditioning.path")
    end = own.texts(["blue"]) - own.texts(["red"])
    z = edits.invert(sampler, pictures[0])[0]
    wanted = edits.from_noise(sampler, pictures[0], z, 9 * end)
    steered = edits.steer(sampler, pictures[0], "red", "blue", 1.0, 2, fresh=False)[1:]
    assert (steered.int() - wanted.int()).abs().max() <= 1
    start = own.pictures(pictures[:1])
    middle = torch.nn.functional.normalize(start) + torch.nn.functional.normalize(end)  # halfway along the arc
    monkeypatch.setattr(edits, "from_noise", lambda sampler, picture, z, asked: asked)
    asked = edits.steer(sampler, pictures[0], "red", "blue", 0.5, 2)
    assert torch.allclose(asked[:1], start, atol=1e-5)
    assert float(torch.nn.functional.cosine_similarity(asked[1:], middle)) == pytest.approx(1, abs=1e-5)
    assert torch.allclose(asked.norm(dim=1), torch.full((2,), 4.0), atol=1e-4)


def test_on_the_command_line(made: Made, pictures: torch.Tensor, tmp_path: Path, digits_run: Path) -> None:
    from PIL import Image

    for name, one in zip("ab", pictures, strict=False):
        Image.fromarray(one.permute(1, 2, 0).numpy()).save(tmp_path / f"{name}.png")
    image, run = ["--image", str(tmp_path / "a.png")], str(made.both)
    texts = ["--before", "a red circle", "--after", "a blue circle"]
    few = ["--steps", "3"]
    for words in (
        ["vary", run, *image, "--amount", "1", "-n", "2"],
        ["interpolate", run, "--images", str(tmp_path / "a.png"), str(tmp_path / "b.png"), "-n", "3"],
        ["steer", run, *image, *texts, "-n", "2"],
    ):
        out = tmp_path / words[0]
        assert main(["edit", *words, *few, "--out", str(out), "--device", "cpu"]) == 0
        assert (out / "sheet.png").is_file()
    assert main(["edit", "steer", str(digits_run), *image, *texts, "--out", str(tmp_path / "no")]) == 2


@pytest.mark.parametrize(
    ("name", "setting"), [("prior", "data.path"), ("decoder", "conditioning.path")], ids=["prior", "decoder"]
)
def test_an_encoder_that_is_missing_or_none_is_named(
    name: str, setting: str, made: Made, digits_run: Path, tmp_path: Path
) -> None:
    plain = recipe(name)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=f"set {setting} to its run folder"):
        unfog.train(plain, tmp_path / "out")
    with pytest.raises(UserError, match=f"it has no recipe.json.*check {setting}"):
        unfog.train(plain.set(f"{setting}={tmp_path / 'empty'}"), tmp_path / "out")
    with pytest.raises(UserError, match="is no encoder, since its network is 'compact'"):
        unfog.train(plain.set(f"{setting}={digits_run}"), tmp_path / "out")
    shutil.copytree(made.encoder, tmp_path / "damaged")
    (tmp_path / "damaged" / "model.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(UserError, match="model.safetensors"):
        unfog.train(plain.set(f"{setting}={tmp_path / 'damaged'}"), tmp_path / "out")


def test_rows_of_another_shape_are_refused(made: Made, tmp_path: Path) -> None:
    own = EmbeddingConditioning(path=str(made.encoder))
    with pytest.raises(UserError, match=r"trained on rows of \(3, 32, 32\), not of \(3, 48, 48\)"):
        unfog.train(recipe("decoder", size=48).set(f"conditioning.path={made.encoder}", *QUICK), tmp_path / "out")
    run = unfog.load(made.decoder)
    for bad in (torch.zeros(1, 15), torch.full((1, 16), float("nan"))):
        with pytest.raises(UserError, match="embeddings of 16 finite numbers"):
            run.sample(1, bad)
    with pytest.raises(UserError, match="give a picture as `image`"):
        run.sample(1)
    assert own.dropout == 0.1


def test_a_stranger_reads_nothing_outside(made: Made, tmp_path: Path) -> None:
    shutil.copytree(made.decoder, tmp_path / "bad")
    plain = json.loads((tmp_path / "bad" / "recipe.json").read_text())
    plain["conditioning"]["path"] = str(made.encoder)
    (tmp_path / "bad" / "recipe.json").write_text(json.dumps(plain))
    with pytest.raises(UserError, match="outside of the run folder"):
        unfog.load(tmp_path / "bad")
