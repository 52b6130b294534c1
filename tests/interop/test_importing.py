"""What is understood of a model folder, what is refused, and what goes there and back."""

import json
import re
import shutil
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import MakeRecipe
from tests.interop.test_diffusers import trained
from unfog.cli.main import main
from unfog.interop import diffusers as importing
from unfog.interop import ours as ours_file
from unfog.interop.diffusers import import_model
from unfog.runs.run import load
from unfog.runtime.errors import UserError

pipelines = pytest.importorskip("tests.interop.pipelines", reason="diffusers or transformers is not installed")
diffusers = pytest.importorskip("diffusers")


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a pipeline of text to image."""
    folder = tmp_path_factory.mktemp("sd") / "sd1"
    pipelines.stable_diffusion(folder)
    return folder


@pytest.fixture
def broken(good: Path, tmp_path: Path) -> Path:
    """A copy of it for a test to break."""
    shutil.copytree(good, tmp_path / "broken")
    return tmp_path / "broken"


def test_wrappers_and_variants_are_understood(broken: Path, tmp_path: Path) -> None:
    """And what was not read is said; full precision is preferred."""
    unet = broken / "unet"
    file = unet / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    plain = import_model(str(broken), tmp_path / "plain")
    assert plain.notes == ()
    expected = load_file(tmp_path / "plain" / "model.safetensors")
    wrapped = {
        f"_orig_mod.module.{name}".replace("mid_block.", "mid_block._orig_mod."): tensors[name] for name in tensors
    }
    save_file(wrapped, file)
    save_file({name: one.half() for name, one in tensors.items()}, unet / "diffusion_pytorch_model.fp16.safetensors")
    found = import_model(str(broken), tmp_path / "wrapped")
    again = load_file(tmp_path / "wrapped" / "model.safetensors")
    assert all(torch.equal(again[name], tensor) for name, tensor in expected.items())
    note = "the weights are read from {}, and not from {}"
    assert note.format(file.name, "diffusion_pytorch_model.fp16.safetensors") in found.notes
    save_file(wrapped | {"conv_in.bias": tensors["conv_in.bias"].clone()}, file)
    with pytest.raises(UserError, match="some weights twice, with and without the prefix of a wrapper"):
        import_model(str(broken), tmp_path / "twice")
    file.unlink()
    (unet / "diffusion_pytorch_model.fp16.safetensors").unlink()
    names_of, parts = sorted(tensors), {}
    for place in range(2):
        part = f"diffusion_pytorch_model.fp16-0000{place + 1}-of-00002.safetensors"
        save_file({name: tensors[name].half() for name in names_of[place::2]}, unet / part)
        parts |= dict.fromkeys(names_of[place::2], part)
    (unet / "diffusion_pytorch_model.safetensors.index.fp16.json").write_text(json.dumps({"weight_map": parts}))
    import_model(str(broken), tmp_path / "shards")
    half = load_file(tmp_path / "shards" / "model.safetensors")
    assert all(torch.allclose(expected[name], half[name], atol=1e-3, rtol=1e-3) for name in expected)


def test_a_pickle_that_was_not_needed_is_named(broken: Path, tmp_path: Path) -> None:
    trusted = broken / "unet" / "diffusion_pytorch_model.bin"
    torch.save({}, trusted)
    notes = import_model(str(broken), tmp_path / "run", trusted).notes
    assert notes == (f"the weights are read from diffusion_pytorch_model.safetensors, and not from {trusted}",)


def _poisoned(folder: Path) -> None:
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["conv_in.bias"][0] = torch.nan
    save_file(tensors, file)


def _overflowing(folder: Path) -> None:
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["conv_in.bias"] += 1e38
    tensors["conv_norm_out.weight"] += 1e38
    tensors["conv_out.weight"] += 1e38
    save_file(tensors, file)


@pytest.mark.parametrize(
    ("breaks", "sentence"),
    [
        (_poisoned, "the weight conv_in.bias is not finite: the model is damaged"),
        (_overflowing, "returned numbers that are not finite"),
        (lambda f: (f / "text_encoder" / "model.safetensors").unlink(), "the text encoder in .* cannot be loaded"),
    ],
)
def test_what_cannot_be_run_is_not_imported(
    broken: Path, tmp_path: Path, breaks: Callable[[Path], None], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    breaks(broken)
    assert main(["import", str(broken), str(tmp_path / "run")]) == 2
    said = capsys.readouterr()
    assert re.search(sentence, said.err)
    assert "imported" not in said.out
    assert not (tmp_path / "run").exists()


def test_a_model_that_takes_a_mask_is_refused(broken: Path, tmp_path: Path) -> None:
    pipelines.conditional("sd1", in_channels=9).save_pretrained(broken / "unet")
    with pytest.raises(UserError, match="takes 9 channels where the state has 4, as models do that take a mask"):
        import_model(str(broken), tmp_path / "run")
    assert not (tmp_path / "run").exists()


ODD = (10**12, -1, 0, 1.5, float("nan"), "x", None, [], True)
UNET = ("in_channels", "out_channels", "sample_size", "norm_num_groups", "freq_shift", "attention_head_dim")
VAE = ("latent_channels", "in_channels", "sample_size", "norm_num_groups")


@pytest.mark.parametrize(("file", "key"), [*(("unet", key) for key in UNET), *(("vae", key) for key in VAE)])
def test_odd_numbers_take_no_memory(
    broken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, key: str
) -> None:
    """They are refused with a sentence, or mean what they are taken for; what is written is not looked at here."""
    monkeypatch.setattr(importing, "_write", lambda *rest: None)
    monkeypatch.setattr(importing, "tried", lambda out: ())
    config = broken / file / "config.json"
    good = config.read_text()
    for value in ODD:
        config.write_text(json.dumps({**json.loads(good), key: value}))
        tracemalloc.start()
        with suppress(UserError):
            import_model(str(broken), tmp_path / "run")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1 << 27, f"{key}={value!r} takes {peak:,} bytes"


@pytest.mark.parametrize("count", ODD[:-1])
def test_odd_numbers_of_classes_take_no_memory(tmp_path: Path, count: object) -> None:
    with pytest.raises(UserError, match="num_class_embeds must be a whole number from 1 to 100,000"):
        ours_file.class_names(tmp_path, {}, {"num_class_embeds": count})


def _alone(tmp_path: Path, *more: str) -> Path:
    """A pipeline of pixels whose U-Net lies where a training keeps it; return the U-Net's folder."""
    pipelines.pixels(tmp_path / "pipe", scheduler=diffusers.DDIMScheduler(prediction_type="v_prediction"))
    unet = tmp_path.joinpath(*more)
    unet.parent.mkdir(parents=True, exist_ok=True)
    if unet != tmp_path / "pipe" / "unet":
        shutil.copytree(tmp_path / "pipe" / "unet", unet)
    return unet


@pytest.mark.parametrize(
    ("given", "unet"),
    [("pipe/unet",) * 2, ("pipe/checkpoint-5/unet",) * 2, ("pipe/checkpoint-5", "pipe/checkpoint-5/unet")],
)
def test_a_unet_in_its_pipeline_is_completed_from_it(tmp_path: Path, given: str, unet: str) -> None:
    _alone(tmp_path, *unet.split("/"))
    found = import_model(str(tmp_path / given), tmp_path / "run")
    assert (
        found.notes[0]
        == f"only the U-Net is that of {tmp_path / unet}: the other parts are those of {tmp_path / 'pipe'}"
    )
    assert found.recipe.kind("target") == "v"


def test_a_unet_alone_is_taken_for_that_of_ddpm(tmp_path: Path) -> None:
    """And that this is a guess is said; with its scheduler next to it there is nothing to guess."""
    unet = _alone(tmp_path, "away", "far", "from", "unet")
    found = import_model(str(unet), tmp_path / "run")
    assert any("taken to be a DDPMScheduler with its defaults" in note for note in found.notes)
    assert (found.recipe.kind("target"), found.recipe.kind("schedule")) == ("eps", "linear")
    shutil.copytree(tmp_path / "pipe" / "scheduler", unet / "scheduler")
    again = import_model(str(unet), tmp_path / "again")
    assert again.recipe.kind("target") == "v"
    assert not any("taken to be" in note for note in again.notes)


def test_classes_and_settings_go_there_and_back(tiny: MakeRecipe, tmp_path: Path) -> None:
    """Names, the null class and the scale of guidance: the same samples come out, to rounding."""
    guided = ("conditioning=classes", "sampling.guidance=2.5", "sampling.steps=4", "solver=ddim")
    run = trained(tiny, tmp_path / "run", "training.images=64", *guided)
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out")]) == 0
    assert main(["import", str(tmp_path / "out"), str(tmp_path / "back")]) == 0
    back = load(tmp_path / "back", "cpu", "float32")
    assert back.recipe.classes == run.recipe.classes
    kept = ("steps", "guidance", "clip", "keep_eps")
    assert [getattr(back.recipe.sampling, name) for name in kept] == [
        getattr(run.recipe.sampling, name) for name in kept
    ]
    assert run.denoiser.embedder is not None
    assert back.denoiser.embedder is not None
    null = run.denoiser.embedder.null(1).vector
    assert null is not None
    assert null.abs().max() > 0
    assert torch.equal(back.denoiser.embedder.null(1).vector, null)
    difference = back.sample(3, "7").float() - load(tmp_path / "run", "cpu", "float32").sample(3, "7").float()
    assert difference.abs().max() <= 1


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "is not JSON"),
        ('{"version": 2}', "has the version 2, not 1: update unfog"),
        ('{"version": 1, "classes": [1], "sampling": {}}', "is damaged: restore it, or remove it"),
        ('{"version": 1, "classes": ["a"], "sampling": {"solver": 1}}', "is damaged: restore it, or remove it"),
        ('{"version": 1, "classes": ["a"], "sampling": {}}', "names 1 classes, but the network has 3"),
    ],
)
def test_a_file_of_ours_that_cannot_be_is_refused(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "unfog.json").write_text(text)
    with pytest.raises(UserError, match=sentence):
        ours_file.class_names(tmp_path, {}, {"num_class_embeds": 4})


def test_names_of_classes_of_a_pipeline_are_read(tmp_path: Path) -> None:
    labels = {"1": "dog", "0": "cat"}
    assert ours_file.class_names(tmp_path, {"id2label": labels}, {"num_class_embeds": 2}) == (("cat", "dog"), False)
    with pytest.raises(UserError, match="id2label must name each of the 3 classes"):
        ours_file.class_names(tmp_path, {"id2label": labels}, {"num_class_embeds": 3})
