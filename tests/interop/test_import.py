"""What `import` takes, carries over and refuses: it ends with 'imported' only after the run was tried."""

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.conftest import MakeRecipe
from unfog.cli.main import main
from unfog.interop.diffusers import import_model
from unfog.recipes import text_encoders
from unfog.runs.run import load, train
from unfog.runtime.errors import UserError
from unfog.runtime.tensors import write_tensors

pipelines = pytest.importorskip("tests.interop.pipelines", reason="diffusers or transformers is not installed")
diffusers = pytest.importorskip("diffusers")
WEIGHTS = "diffusion_pytorch_model.safetensors"


def change(file: Path, **entries: Any) -> None:
    """Change entries of a JSON file."""
    file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pipeline of pixels with four classes."""
    folder = tmp_path_factory.mktemp("small") / "small"
    sizes: dict[str, Any] = {"sample_size": 8, "in_channels": 1, "out_channels": 1, "block_out_channels": (8, 8)}
    kinds = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    more = {"norm_num_groups": 4, "layers_per_block": 1, "num_class_embeds": 4}
    unet = pipelines.shaken(diffusers.UNet2DModel(**sizes, **kinds, **more))
    diffusers.DDIMPipeline(unet, diffusers.DDIMScheduler()).save_pretrained(folder)
    return folder


@pytest.fixture
def copy(small: Path, tmp_path: Path) -> Path:
    """A copy of it for a test to change."""
    shutil.copytree(small, tmp_path / "given")
    return tmp_path / "given"


def weights(run: Path) -> dict[str, Tensor]:
    """The weights of a run."""
    return load_file(run / "model.safetensors")


def same(first: Path, second: Path) -> bool:
    """Whether two runs have the same weights."""
    one, other = weights(first), weights(second)
    return one.keys() == other.keys() and all(torch.allclose(one[name], other[name], atol=1e-2) for name in one)


# There and back


def test_classes_and_samples_come_back(tiny: MakeRecipe, tmp_path: Path) -> None:
    """The names, the null class, guidance and clipping: the samples are equal to the bit."""
    # groups of one channel would remove what a class adds
    network = ("network=unet", "network.widths=[8, 8]", "network.attention=[false, true]", "network.groups=4")
    table = ("schedule=linear", "target=x0", "times=discrete", "inputs.network_time=index", "network.head=8")
    own = ("sampling.guidance=2.5", "sampling.clip=true", "sampling.steps=4", "solver=ddim", "training.images=64")
    chosen = tiny().set(*network, *table, *own)
    run = train(chosen, tmp_path / "run", device="cpu", console=Console(quiet=True))
    recipe = json.loads((tmp_path / "run" / "recipe.json").read_text())
    names_of = ["dog", "cat", *map(str, range(8))]
    (tmp_path / "run" / "recipe.json").write_text(json.dumps({**recipe, "classes": names_of}))
    write_tensors(tmp_path / "run" / "model.safetensors", pipelines.shaken(run.model).state_dict())
    run = load(tmp_path / "run", "cpu", "float32")
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out")]) == 0
    import_model(str(tmp_path / "out"), tmp_path / "again")
    again = load(tmp_path / "again", "cpu", "float32")
    assert again.recipe.classes == tuple(names_of)
    assert again.recipe.sampling == run.recipe.sampling
    for options in ({"label": "cat"}, {"label": 1, "guidance": 1.0}, {}):
        assert torch.equal(run.sample(4, **options), again.sample(4, **options))
    assert not torch.equal(again.sample(4, label="cat"), again.sample(4, label="dog"))
    change(tmp_path / "out" / "scheduler" / "scheduler_config.json", beta_end=0.01)
    assert any(
        "the scheduler was changed" in note for note in import_model(str(tmp_path / "out"), tmp_path / "b").notes
    )
    assert load(tmp_path / "b", "cpu").recipe.classes == tuple(names_of)


@pytest.mark.parametrize(("count", "null"), [(4, False), (3, True)])
def test_names_of_classes_of_others(copy: Path, tmp_path: Path, count: int, null: bool) -> None:
    """Where there is one name fewer than there are vectors, the last vector is that of no class."""
    named = {str(number): f"class {number}" for number in range(count)}
    change(copy / "model_index.json", id2label=named)
    import_model(str(copy), tmp_path / "run")
    assert load(tmp_path / "run", "cpu").recipe.classes == tuple(named.values())
    table = weights(tmp_path / "run")["embedder.table.weight"]
    theirs = load_file(copy / "unet" / WEIGHTS)["class_embedding.weight"]
    assert torch.equal(table[-1], theirs[-1] if null else torch.zeros_like(table[-1]))


# Layouts


def renamed(folder: Path, rename: Callable[[str], str]) -> None:
    """Rename the weights of a U-Net."""
    tensors = load_file(folder / "unet" / WEIGHTS)
    save_file({rename(name): tensor for name, tensor in tensors.items()}, folder / "unet" / WEIGHTS)


def halved(folder: Path, shards: str = "", index: str = "") -> None:
    """Write a variant in half precision beside the weights, whole or in two shards."""
    tensors = {name: tensor.half() for name, tensor in load_file(folder / "unet" / WEIGHTS).items()}
    if not shards:
        save_file(tensors, folder / "unet" / "diffusion_pytorch_model.fp16.safetensors")
        return
    parts = [list(tensors)[::2], list(tensors)[1::2]]
    files = [shards.format(number) for number in (1, 2)]
    for file, part in zip(files, parts, strict=True):
        save_file({name: tensors[name] for name in part}, folder / "unet" / file)
    if index:
        listed = {name: file for file, part in zip(files, parts, strict=True) for name in part}
        (folder / "unet" / index).write_text(json.dumps({"weight_map": listed}))


def checkpoint(folder: Path) -> str:
    """Make a checkpoint of a training inside a pipeline."""
    for name in ("unet", "unet_ema"):
        shutil.copytree(folder / "unet", folder / "checkpoint-500" / name)
    (folder / "checkpoint-500" / "optimizer.bin").write_bytes(b"x")
    return "checkpoint-500"


FP16 = "diffusion_pytorch_model.fp16-0000{}-of-00002.safetensors"
LATE = "diffusion_pytorch_model-0000{}-of-00002.fp16.safetensors"
LAYOUTS: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "wrapped": (lambda f: renamed(f, lambda name: f"_orig_mod.module.{name}"), "", ""),
    "wrapped inside": (lambda f: renamed(f, lambda name: name.replace("blocks.", "blocks._orig_mod.")), "", ""),
    "variant": (halved, "", "unet/diffusion_pytorch_model.fp16.safetensors"),
    "shards": (lambda f: halved(f, FP16, "diffusion_pytorch_model.safetensors.index.fp16.json"), "", "unet/diffusion_"),
    "only a variant": (lambda f: (halved(f), (f / "unet" / WEIGHTS).unlink()), "", ""),
    "only shards": (lambda f: (halved(f, FP16), (f / "unet" / WEIGHTS).unlink()), "", ""),
    "only late shards": (lambda f: (halved(f, LATE), (f / "unet" / WEIGHTS).unlink()), "", ""),
    "only listed shards": (
        lambda f: (
            halved(f, FP16, "diffusion_pytorch_model.safetensors.index.fp16.json"),
            (f / "unet" / WEIGHTS).unlink(),
        ),
        "",
        "",
    ),
    "unet": (lambda f: None, "unet", "all parts but the U-Net are those of"),
    "alone": (lambda f: (f / "model_index.json").unlink(), "", ""),
    "bare": (
        lambda f: [(f / "model_index.json").unlink(), shutil.rmtree(f / "scheduler")],
        "unet",
        "it has no scheduler: that of DDPM is assumed",
    ),
    "checkpoint": (checkpoint, "checkpoint-500", "not used: checkpoint-500/optimizer.bin, checkpoint-500/unet_ema"),
    "unet of a checkpoint": (checkpoint, "checkpoint-500/unet", "all parts but the U-Net are those of"),
    "more": (lambda f: (f / "model.ckpt").write_bytes(b"x"), "", "not used: model.ckpt"),
}
"""How a folder is laid out, what of it is given, and what is said."""


@pytest.mark.parametrize("case", list(LAYOUTS))
def test_layouts(small: Path, copy: Path, tmp_path: Path, case: str) -> None:
    lay, inside, said = LAYOUTS[case]
    lay(copy)
    import_model(str(small), tmp_path / "plain")
    notes = import_model(str(copy / inside), tmp_path / "run").notes
    assert same(tmp_path / "plain", tmp_path / "run")
    assert (said in " ".join(notes)) if said else not notes
    assert load(tmp_path / "run", "cpu").sample(1, steps=2).shape == (1, 1, 8, 8)


# What is refused


def spoiled(folder: Path, name: str, change: Callable[[Tensor], Tensor]) -> None:
    """Change one weight."""
    tensors = load_file(folder / "unet" / WEIGHTS)
    save_file({**tensors, name: change(tensors[name])}, folder / "unet" / WEIGHTS)


def painting(folder: Path) -> None:
    """Let a U-Net take a picture and a mask."""
    change(folder / "unet" / "config.json", in_channels=3)
    spoiled(folder, "conv_in.weight", lambda weight: weight.repeat(1, 3, 1, 1))


KEY = "mid_block.attentions.0.to_k.weight"
REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "inpainting": (
        painting,
        "takes 3 channels and returns 1, so it needs a picture and a mask or the like next to the noisy state, which "
        "is not supported: import the model for text to image instead",
    ),
    "nan": (lambda f: spoiled(f, KEY, lambda w: w * torch.nan), f"the weight {KEY} is not finite"),
    "infinite": (lambda f: spoiled(f, "conv_out.bias", lambda w: w + torch.inf), "the weight conv_out.bias is not"),
    "nan class": (lambda f: spoiled(f, "class_embedding.weight", lambda w: w * torch.nan), "class_embedding.weight is"),
    "double": (lambda f: spoiled(f, KEY, lambda w: w.double() + 1e300), f"the weight {KEY} is not finite"),
    "whole numbers": (lambda f: spoiled(f, KEY, lambda w: w.to(torch.int8)), "of torch.int8, for instance quantized"),
    "wide key": (lambda f: spoiled(f, KEY, lambda w: w[:, :4].contiguous()), f"{KEY} has the shape (8, 4)"),
    "long key": (lambda f: spoiled(f, KEY, lambda w: torch.cat([w, w])), f"{KEY} has the shape (16, 8)"),
    "flat key": (lambda f: spoiled(f, KEY, lambda w: w.flatten()), f"{KEY} has the shape (64,)"),
    "one number": (lambda f: spoiled(f, KEY, lambda w: w.sum()), f"{KEY} has the shape ()"),
    "classes": (lambda f: change(f / "unet" / "config.json", num_class_embeds=10**12), "class_embedding.weight has"),
    "groups": (lambda f: change(f / "unet" / "config.json", norm_num_groups=3), "must divide each of block_out"),
    "head": (lambda f: change(f / "unet" / "config.json", attention_head_dim=0), "attention_head_dim must be a whole"),
    "deep": (lambda f: change(f / "unet" / "config.json", layers_per_block=64), "weights and config do not match"),
    "variance": (
        lambda f: change(f / "unet" / "config.json", out_channels=2),
        "belong to a learned variance, DDPMScheduler with variance_type=learned_range",
    ),
    "twice": (
        lambda f: save_file(
            (t := load_file(f / "unet" / WEIGHTS)) | {f"module.{KEY}": t[KEY].clone()}, f / "unet" / WEIGHTS
        ),
        f"has the weight {KEY} twice",
    ),
    "a part": (
        lambda f: (halved(f, FP16), (f / "unet" / WEIGHTS).unlink(), (f / "unet" / FP16.format(2)).unlink()),
        "is missing, one of 00002 parts",
    ),
    "names": (lambda f: change(f / "model_index.json", id2label={"0": "a"}), "names 1 classes, but the U-Net has 4"),
    "carried": (lambda f: (f / "unfog.json").write_text('{"classes": 1}'), "must be lists of texts"),
}


@pytest.mark.parametrize("case", list(REFUSED))
def test_what_is_refused_leaves_nothing(
    copy: Path, tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, sentence = REFUSED[case]
    spoil(copy)
    assert main(["import", str(copy), str(tmp_path / "run")]) == 2
    said = capsys.readouterr()
    assert sentence in said.err
    assert len(said.err.strip().splitlines()) == 1
    assert "imported" not in said.out
    assert not (tmp_path / "run").exists()


def test_a_run_that_does_not_run_is_none(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever else is wrong shows when the network is run, before there is a run."""

    def fail(*given: object) -> Tensor:
        raise RuntimeError("shapes cannot be multiplied\nand more")

    monkeypatch.setattr("unfog.networks.unet.Ladder.forward", fail)
    with pytest.raises(UserError, match=r"its network does not run \(shapes cannot be multiplied\)"):
        import_model(str(copy), tmp_path / "run")
    assert not (tmp_path / "run").exists()


BAD = [0, -1, 10**12, 1.5, float("nan"), "x", None, [], {}, True, 10**400]


KEYS = {
    "unet/config.json": [
        *("sample_size", "in_channels", "out_channels", "block_out_channels", "layers_per_block", "norm_num_groups"),
        *("attention_head_dim", "num_class_embeds", "norm_eps", "downsample_padding", "freq_shift", "dropout"),
        *("mid_block_scale_factor", "attn_norm_num_groups", "time_embedding_dim", "flip_sin_to_cos"),
    ],
    "scheduler/scheduler_config.json": [
        *("num_train_timesteps", "beta_start", "beta_end", "steps_offset", "trained_betas", "clip_sample_range"),
        *("clip_sample", "set_alpha_to_one", "rescale_betas_zero_snr"),
    ],
}
CASES = [(file, key, value) for file, keys in KEYS.items() for key in keys for value in BAD]


def imports_or_refuses(copy: Path, out: Path, file: str, key: str, value: object) -> None:
    """Import a folder with one value of a configuration changed; nothing is left of a refused one."""
    before = (copy / file).read_text()
    change(copy / file, **{key: value})
    with suppress(UserError):
        import_model(str(copy), out)
        shutil.rmtree(out)
    assert not out.exists()
    (copy / file).write_text(before)


OF_TEXT = {
    "unet/config.json": [
        *("sample_size", "in_channels", "out_channels", "cross_attention_dim", "attention_head_dim"),
        *("num_attention_heads", "transformer_layers_per_block", "num_class_embeds", "norm_num_groups"),
        *("conv_in_kernel", "projection_class_embeddings_input_dim", "use_linear_projection"),
    ],
    "vae/config.json": [
        *("in_channels", "out_channels", "latent_channels", "block_out_channels", "layers_per_block"),
        *("norm_num_groups", "sample_size", "scaling_factor", "shift_factor", "use_quant_conv", "force_upcast"),
    ],
    "text_encoder/config.json": [
        *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size"),
        *("max_position_embeddings", "layer_norm_eps", "eos_token_id", "model_type", "architectures"),
    ],
    "tokenizer/tokenizer_config.json": ["model_max_length", "tokenizer_class", "pad_token"],
}
"""Keys of a model that draws what a text says."""


def test_some_numbers_in_configs(copy: Path, tmp_path: Path) -> None:
    """Each key with one of the values in turn."""
    for number, (file, key) in enumerate((file, key) for file, keys in KEYS.items() for key in keys):
        imports_or_refuses(copy, tmp_path / "run", file, key, BAD[number % len(BAD)])


@pytest.mark.slow
@pytest.mark.parametrize("value", BAD, ids=lambda value: repr(value)[:6])
def test_all_numbers_in_configs(copy: Path, tmp_path: Path, value: object) -> None:
    for file, keys in KEYS.items():
        for key in keys:
            imports_or_refuses(copy, tmp_path / "run", file, key, value)


@pytest.mark.slow
@pytest.mark.parametrize("file", list(OF_TEXT))
def test_all_numbers_in_configs_of_text(tmp_path: Path, file: str) -> None:
    pipelines.stable_diffusion(tmp_path / "given")
    for key in OF_TEXT[file]:
        for value in BAD:
            text_encoders.encoder.cache_clear()
            text_encoders._kind.cache_clear()
            imports_or_refuses(tmp_path / "given", tmp_path / "run", file, key, value)
