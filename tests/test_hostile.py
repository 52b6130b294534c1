"""Files of strangers: what they may claim, where they may lead, and what the command line makes of broken ones."""

import hashlib
import io
import json
import os
import re
import resource
import shutil
import socket
import stat
import struct
import sys
import tarfile
import tempfile
import tracemalloc
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file, save_file

from tests import mutate
from tests.torture_files import KINDS as BROKEN
from tests.torture_files import Shop, run_case
from unfog.cli import terminal
from unfog.cli.main import main
from unfog.data import classic
from unfog.data.classic import read_idx
from unfog.data.folder import list_pictures
from unfog.data.pictures import UnreadableError, describe_picture, read_picture
from unfog.evaluation import results
from unfog.generation.sampler import Sampler
from unfog.networks.minimal import Minimal
from unfog.recipes import build
from unfog.recipes.build import build_data, build_denoiser
from unfog.recipes.kinds import KINDS, class_of, options_of, register
from unfog.recipes.presets import recipe
from unfog.recipes.recipe import Recipe
from unfog.recipes.schema import MOST, fits
from unfog.reports.report import kept
from unfog.runs import model, reading
from unfog.runs.run import load, resume, train
from unfog.runtime import contained
from unfog.runtime.contained import check_contained, copy_flat
from unfog.runtime.errors import EnvironmentFailure, UserError
from unfog.runtime.files import DEEPEST, parse_json, read_bounded, whole
from unfog.runtime.hub import SUFFIXES
from unfog.training.metrics import read_metrics

SEEDS = 10
"""Cases of each kind here; `python -m tests.torture_files` runs thousands."""


def _device(path: Path) -> None:
    """Make a device that gives zeros without end."""
    try:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5))
    except PermissionError:
        pytest.skip("only root makes devices")


def _socket(path: Path) -> None:
    """Leave the file of a socket."""
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as made:
        made.bind(f"{folder}/0")  # a path of any length is refused
        os.rename(f"{folder}/0", path)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """Good inputs to break."""
    return Shop(tmp_path_factory.mktemp("shop"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", BROKEN)
def test_broken_files_end_with_a_sentence(shop: Shop, tmp_path: Path, kind: str) -> None:
    """No traceback, no hang, nothing written elsewhere, and exit code 0 or 2."""
    ended = [run_case(kind, seed, shop, tmp_path) for seed in range(SEEDS)]
    assert [one for one in ended if one.trouble] == []


def test_a_case_that_fails_is_seen(shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By each of the ways in which it can."""

    def ends(code: int, error: str, act: Callable[[], object] = lambda: None) -> Callable[..., int]:
        def instead(arguments: list[str]) -> int:
            act()
            print(error, file=sys.stderr)
            return code

        return instead

    def outside() -> None:
        Path("written").touch()  # the working folder is none for output

    def crash() -> None:
        raise KeyError("x")

    cases = {
        "exit code 3": ends(3, "unfog: x"),
        "KeyError": ends(0, "", crash),
        "a traceback": ends(2, "Traceback"),
        "exit code 1": ends(1, "unfog: x"),
        "no sentence": ends(2, "x"),
        "written elsewhere": ends(0, "", outside),
    }
    for sentence, instead in cases.items():
        monkeypatch.setattr("tests.torture_files.main", instead)
        assert sentence in run_case("weights", 0, shop, tmp_path).trouble
    monkeypatch.setattr("tests.torture_files.main", ends(2, "unfog: x"))
    assert run_case("weights", 0, shop, tmp_path).trouble == ""


# JSON


def depth(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(depth, inner), default=0)


nested = st.recursive(
    st.none() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(value=nested, around=st.integers(0, DEEPEST + 3), named=st.booleans())
@settings(max_examples=60, deadline=None)
def test_json_is_parsed_down_to_a_depth(value: Any, around: int, named: bool) -> None:
    for _ in range(around):
        value = {"in": value} if named else [value]
    if depth(value) <= DEEPEST:
        assert parse_json(json.dumps(value)) == value
    else:
        with pytest.raises(ValueError, match="nested more than 32 levels deep"):
            parse_json(json.dumps(value))


@pytest.mark.parametrize("text", ["[" * 10**6, '{"a":' * 10**6, "[" * 10**5 + "]" * 10**5])
def test_json_of_any_depth_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match="nested more than 32 levels deep"):
        parse_json(text)


def huge(path: Path, size: int = 10**12) -> Path:
    """Write a file that claims a terabyte and takes no place."""
    with path.open("wb") as file:
        file.truncate(size)
    return path


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"x has more than 100 bytes.*restore or remove it"):
        read_bounded(huge(tmp_path / "x"), 100)
    assert read_bounded(huge(tmp_path / "x", 100), 100) == "\0" * 100


@pytest.mark.parametrize("name", ["recipe.json", "model.safetensors"])
def test_a_run_of_huge_files(broken: Path, name: str) -> None:
    huge(broken / name)
    with pytest.raises(UserError, match=name):
        load(broken, "cpu")


# Numbers in a recipe


ABSURD = [
    ("network.width=100000", "more than 1,000,000,000 parameters"),
    ("network.width=1000000000", "the network 'compact' cannot be built with .*1000000000"),
    ("network.width=1000000000000", "the network 'compact' cannot be built with .*1000000000000"),
    ("network.width=1000000000000000", r"network\.width may be at most 1,000,000,000,000"),
    ("network.blocks=1000000000", "10,000 tensors"),
    ("network.middle=1000000000", "10,000 tensors"),
    ("network.patch=1000000", "more than 1,000,000,000 parameters"),
    ("network=dit network.depth=1000000000", "10,000 tensors"),
    ("network=dit network.ratio=1000000000", "more than 1,000,000,000 parameters"),
    ("network=minimal network.width=1000000", "more than 1,000,000,000 parameters"),
    ("conditioning=text conditioning.layers=1000000000", "10,000 tensors"),
    ("conditioning=text conditioning.width=32000000000", "more than 1,000,000,000 parameters"),
    ("conditioning=text conditioning.length=1000000000", r"conditioning\.length may be at most 4,096"),
    ("conditioning=values conditioning.count=1000000000000", "more than 1,000,000,000 parameters"),
    ("training.batch=1000000000000", r"training\.batch may be at most 65,536, not 1e\+12"),
    ("sampling.batch=1000000000000", r"sampling\.batch may be at most 65,536"),
    ("sampling.steps=1000000000000", r"sampling\.steps may be at most 10,000"),
    ("training.images=1" + "0" * 30, r"training\.images may be at most 1,000,000,000,000"),
    ("schedule=linear schedule.steps=1000000000", r"schedule\.steps may be at most 100,000"),
    ('schedule=shifted schedule.base={"kind":"cosine","steps":1000000000}', r"schedule\.steps may be at most 100,000"),
    ("times=importance times.bins=1000000000", r"times\.bins may be at most 100,000"),
    ("optimizer.lr=1e300", r"optimizer\.lr may be at most 1e\+30"),
    ("augment.crop=100000000000000", r"augment\.crop may be"),
    (
        "grid=times grid.shares=[" + "0.5," * 100_000 + "0]",
        r"grid\.shares may have at most 100,000 entries, not 100,001",
    ),
    ("network.width=" + "[" * 1000 + "]" * 1000, r"network\.width must be int"),
    ("schedule=shifted schedule.base=" + '{"kind":"shifted","base":' * 500 + '"flow"' + "}" * 500, r"schedule"),
]


@pytest.mark.parametrize(("words", "sentence"), ABSURD, ids=[words[:50] for words, _ in ABSURD])
def test_an_absurd_number_gets_a_sentence(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, words: str, sentence: str
) -> None:
    more = [word for setting in words.split() for word in ("--set", setting)]
    before = resident()
    assert main(["train", "digits", *more, "--out", str(tmp_path / "run"), "--device", "cpu"]) == 2
    assert resident() - before < 1 << 29
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert re.search(sentence, error), error
    assert not (tmp_path / "run").exists()


def resident() -> int:
    """The most bytes that this process ever took."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def looked_at(*words: str) -> Recipe:
    return replace(recipe("digits").set(*words), shape=(1, 8, 8), classes=tuple("0123456789"))


@pytest.mark.parametrize(
    "words",
    [
        ("network.width=8",),
        ("network=dit", "network.width=64", "network.depth=1"),
        ("network=unet", "network.widths=[8, 8]", "network.attention=[false, true]"),
        ("network=minimal", "network.width=8", "conditioning=none"),
        ("network.width=8", "conditioning=text", "conditioning.width=32"),
        ("network.width=8", "conditioning=image"),
    ],
)
def test_the_bound_counts_every_parameter(words: tuple[str, ...]) -> None:
    """Exactly as many are allowed, and one less is not; and what is drawn afterwards is the same."""
    chosen = looked_at(*words)
    weights = build_denoiser(chosen).state_dict()
    count = sum(tensor.numel() for tensor in weights.values())
    again = build_denoiser(chosen, count).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in weights.items())
    with pytest.raises(UserError, match=f"more than {count - 1:,} parameters"):
        build_denoiser(chosen, count - 1)


def test_a_network_that_is_refused_takes_no_memory() -> None:
    """Ten times as many bytes as this would show."""
    chosen = looked_at("network.width=4096", "conditioning=none")  # 3.5 GB
    before = resident()
    with pytest.raises(UserError, match="more than 50,000,000 parameters"):
        build_denoiser(chosen, 50_000_000)
    assert resident() - before < 100 << 20


def test_a_network_of_the_users_own_that_meta_does_not_suit(monkeypatch: pytest.MonkeyPatch) -> None:
    """It looks at its weights while it is made, which can only be done with real ones."""

    class Looks(Minimal):
        def __init__(self, channels: int, *, outputs: int | None = None, dims: int = 2, width: int = 8) -> None:
            super().__init__(channels, outputs=outputs, dims=dims, width=width)
            self.norm = float(self.out.weight.norm())

    monkeypatch.setitem(KINDS, "network", dict(KINDS["network"]))
    register("network", "looks", Looks)
    assert build_denoiser(looked_at("network=looks", "conditioning=none")).network.norm > 0


def test_a_batch_of_rows_is_bounded() -> None:
    large = replace(looked_at(), shape=(3, 2048, 2048))
    with pytest.raises(UserError, match=r"training\.batch=64 rows of 3×2048×2048 are more than 268,435,456 numbers"):
        build_denoiser(large)


OPTIONS = [
    (field, kind, name)
    for field, kinds in KINDS.items()
    if field != "data"
    for kind in kinds
    for name, (annotation, _) in options_of(class_of(field, kind)).items()
    if fits(1, annotation) or fits(0.5, annotation)
]


@given(option=st.sampled_from(OPTIONS), number=st.sampled_from(mutate.NUMBERS))
@settings(max_examples=150, deadline=None)
def test_a_recipe_of_any_number_is_built_or_refused(option: tuple[str, str, str], number: float) -> None:
    """Every part that it names is made, and its sampler draws."""
    field, kind, name = option
    plain = json.loads(
        looked_at("network.width=8", "sampling.steps=2", "sampling.batch=2", "sampling.guidance=1").to_json()
    )
    more = {"alphas_cumprod": [0.5, 0.1]} if kind == "table" else {}
    plain[field] = {**({} if plain[field]["kind"] != kind else plain[field]), **more, "kind": kind, name: number}
    if field == "sampling" and name in ("steps", "batch") and fits(number, int):
        number = min(number, 20) if number <= MOST[f"sampling.{name}"] else number  # what is allowed may take long
        plain[field][name] = number
    try:
        chosen = Recipe.from_json(json.dumps(plain))
        denoiser = build_denoiser(chosen).eval()
        Sampler.of(chosen, denoiser)(1)
    except UserError as error:
        assert len(str(error)) > 10  # noqa: PT017  # whether it comes is what the number decides


# Weights and checkpoints


def test_a_recipe_cannot_ask_for_more_weights_than_there_are(broken: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = json.loads((broken / "recipe.json").read_text())
    plain["network"]["width"] = 1024
    (broken / "recipe.json").write_text(json.dumps(plain))
    with pytest.raises(UserError, match="more than 10,000,000 parameters"):
        load(broken, "cpu")
    monkeypatch.setattr(reading, "SMALL", 0)
    plain["network"]["width"] = 10
    (broken / "recipe.json").write_text(json.dumps(plain))
    with pytest.raises(UserError, match=r"asks for more than [\d,]+ parameters"):
        load(broken, "cpu")


def claims(head: dict[str, Any], body: bytes = b"") -> bytes:
    text = json.dumps(head).encode()
    return struct.pack("<Q", len(text)) + text + body


@pytest.mark.parametrize(
    "raw",
    [
        claims({"a": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}}),
        claims({"a": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4]}}, bytes(4)),
        claims({"a": {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 4]}}, bytes(4)),
        claims(
            {name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for name in ("a", "b")}, bytes(4)
        ),  # one over the other
        claims({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, bytes(7)),
        claims({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, bytes(9)),
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 10**9) + b"{}",
        struct.pack("<Q", 200_000) + b'{"a":' * 40_000,
        b"",
        b"\x80\x02c",
    ],
    ids=[
        "claims",
        "short",
        "overflow",
        "overlap",
        "truncated",
        "longer",
        "head 2^63",
        "head 10^9",
        "deep",
        "empty",
        "pickle",
    ],
)
def test_weights_that_claim_what_is_not_there(broken: Path, raw: bytes) -> None:
    (broken / "model.safetensors").write_bytes(raw)
    with pytest.raises(UserError, match=r"model\.safetensors is damaged or truncated"):
        load(broken, "cpu")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda tensor: tensor.fill_(float("nan")), "is not finite"),
        (lambda tensor: tensor.double().fill_(1e300), "is not finite"),
        (lambda tensor: tensor.to(torch.int32), "is torch.int32"),
        (lambda tensor: tensor.to(torch.complex64), "is torch.complex64"),
        (lambda tensor: tensor.to(torch.float8_e4m3fn), "is torch.float8"),
    ],
)
def test_weights_of_no_use(broken: Path, change: Callable[[torch.Tensor], torch.Tensor], sentence: str) -> None:
    weights = load_file(broken / "model.safetensors")
    name = "network.patch_out.bias"
    save_file({**weights, name: change(weights[name].clone())}, broken / "model.safetensors")
    with pytest.raises(UserError, match=f"{name} {sentence}"):
        load(broken, "cpu")


def test_half_precision_weights_are_read(broken: Path) -> None:
    weights = {name: tensor.bfloat16() for name, tensor in load_file(broken / "model.safetensors").items()}
    save_file(weights, broken / "model.safetensors")
    own = load(broken, "cpu").denoiser.state_dict()
    assert all(torch.equal(tensor.float(), own[name]) for name, tensor in weights.items())


@pytest.fixture
def unfinished(shop: Shop, tmp_path: Path) -> Path:
    """A run that has two steps left, to break."""
    return shop.copy_run(tmp_path, "recipe.json", "model.safetensors", "metrics.jsonl", "checkpoints")


@pytest.mark.filterwarnings("default:the checkpoint")
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"threads": 10**9}, "state.json of the newest checkpoint in .* is damaged"),
        ({"threads": 0}, "is damaged"),
        ({"threads": "4"}, "is damaged"),
        ({"threads": True}, "is damaged"),
        ({"skipped": -1}, "is damaged"),
        ({"skipped": None}, "is damaged"),
        ({"precision": "float8"}, "is damaged"),
        ({"step": -1}, "no intact checkpoint"),
        ({"step": 10**30}, "no intact checkpoint"),
        ({"step": True}, "no intact checkpoint"),
    ],
)
def test_a_state_that_cannot_be(unfinished: Path, change: dict[str, object], sentence: str) -> None:
    threads = torch.get_num_threads()
    for where in (unfinished / "checkpoints").glob("*/state.json"):
        where.write_text(json.dumps({**json.loads(where.read_text()), **change}))
    with pytest.raises(UserError, match=sentence):
        resume(unfinished, device="cpu")
    assert torch.get_num_threads() == threads


def forge(run: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change the tensors of the newest checkpoint, and its checksum."""
    newest = max((run / "checkpoints").iterdir())
    tensors = load_file(newest / "state.safetensors")
    change(tensors)
    save_file(tensors, newest / "state.safetensors")
    digest = hashlib.sha256((newest / "state.safetensors").read_bytes()).hexdigest()
    (newest / "state.json").write_text(
        json.dumps({**json.loads((newest / "state.json").read_text()), "sha256": digest})
    )


WEIGHT = "optimizer/network.patch_in.weight"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda tensors: tensors.pop(f"{WEIGHT}:exp_avg"), r"network\.patch_in\.weight:exp_avg is missing"),
        (lambda tensors: tensors.pop("weights/network.patch_in.weight"), "only in one of them"),
        (lambda tensors: tensors.update({f"{WEIGHT}:exp_avg": torch.zeros(3)}), "has no .*exp_avg of this shape"),
        (lambda tensors: tensors.update({f"{WEIGHT}:stranger": torch.zeros(3)}), "has no .*:stranger"),
        (lambda tensors: tensors.update({f"{WEIGHT}:step": torch.zeros((), dtype=torch.int64)}), "has no .*:step"),
        (lambda tensors: tensors.update({"optimizer/stranger:step": torch.zeros(())}), "has no stranger:step"),
        (lambda tensors: tensors.update({"optimizer/stranger": torch.zeros(())}), "has no stranger"),
        (
            lambda tensors: tensors.update({"times/losses": torch.zeros(2, 3)}),
            "does not fit the recipe: it holds times/losses",
        ),
    ],
)
def test_a_forged_checkpoint(
    unfinished: Path, change: Callable[[dict[str, torch.Tensor]], object], sentence: str
) -> None:
    forge(unfinished, change)
    with pytest.raises(UserError, match=sentence):
        resume(unfinished, device="cpu")


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_looking_at_the_optimizer_changes_no_weight(optimizer: str, shop: Shop, tmp_path: Path) -> None:
    """A resumed run is equal to the bit to one that never stopped: the step of length 0 leaves nothing behind."""
    quiet = Console(quiet=True)
    words = (f"optimizer={optimizer}", "network.width=32", "optimizer.warmup=0", "training.checkpoint_minutes=1e-9")
    small = ("training.batch=4", "training.reports=1", "sampling.steps=1", "sampling.batch=2", "sampling.guidance=1")
    chosen = recipe("folder", str(shop.data)).set(*small, *words)
    straight = train(chosen.set("training.images=16"), tmp_path / "straight", device="cpu", console=quiet)
    halted = train(chosen.set("training.images=16"), tmp_path / "halted", device="cpu", console=quiet)
    newest = max((halted.path / "checkpoints").iterdir())
    shutil.rmtree(newest)
    (halted.path / "model.safetensors").unlink()
    resumed = resume(halted.path, device="cpu", console=quiet)
    for name, tensor in straight.denoiser.state_dict().items():
        assert torch.equal(tensor, resumed.denoiser.state_dict()[name]), name


@pytest.mark.parametrize(
    "line",
    [
        "[]",
        "3",
        "{}",
        '{"step": 1}',
        '{"step": "1", "images": 4}',
        '{"step": 1, "images": 4, "loss": "x"}',
        '{"step": 1, "images": 4, "loss": [1]}',
        '{"step": 1, "images": 4, "loss": NaN}',
        '{"step": 1, "images": ' + "9" * 400 + "}",
        "[" * 100_000,
    ],
)
def test_a_line_of_metrics_that_cannot_be_is_left_out(tmp_path: Path, line: str) -> None:
    good = {"step": 20, "images": 80, "loss": 0.5, "held_out_loss": None}
    (tmp_path / "metrics.jsonl").write_text(f"{line}\n{json.dumps(good)}\n")
    assert read_metrics(tmp_path / "metrics.jsonl") == [good]


# Names that lead elsewhere


def test_a_link_beside_a_file_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    (tmp_path / ".x.part").symlink_to("mine")
    with whole(tmp_path / "x") as part:
        part.write_text("new")
    assert ((tmp_path / "mine").read_text(), (tmp_path / "x").read_text()) == ("mine", "new")
    assert not (tmp_path / "x").is_symlink()


@pytest.mark.parametrize("name", ["loss.png", "metrics.jsonl", "model.safetensors", "samples", "text/text_encoder"])
@pytest.mark.parametrize("act", [resume, load])
def test_a_run_leads_nowhere_else(unfinished: Path, tmp_path: Path, name: str, act: Callable[..., object]) -> None:
    """Neither a file nor a folder in it, whoever opens it, and whether it is read or written."""
    (tmp_path / "mine").mkdir()
    path = unfinished / name
    path.parent.mkdir(exist_ok=True)
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    path.symlink_to(os.path.relpath(tmp_path / "mine", path.parent))
    with pytest.raises(UserError, match=rf"run/{name} is a link to .*mine, which is outside of .*run: replace it"):
        act(unfinished, device="cpu")
    assert list((tmp_path / "mine").iterdir()) == []


@pytest.mark.parametrize("make", [os.mkfifo, _device, _socket], ids=["pipe", "device", "socket"])
@pytest.mark.parametrize("verb", ["sample", "report", "evaluate"])
def test_a_run_holds_only_files(
    broken: Path, capsys: pytest.CaptureFixture[str], make: Callable[[Path], None], verb: str
) -> None:
    (broken / "evaluation").mkdir()
    make(broken / "evaluation" / "levels.png")
    assert main([verb, str(broken), "--device", "cpu"]) == 2
    assert re.search(r"levels.png is neither a file nor a folder, but a pipe or a device", capsys.readouterr().err)


@pytest.mark.parametrize("where", ["{}", "../mine"])
def test_a_recipe_names_nothing_outside_of_its_run(broken: Path, tmp_path: Path, where: str) -> None:
    (tmp_path / "mine").mkdir()
    plain = json.loads((broken / "recipe.json").read_text())
    plain["codec"] = {"kind": "latents", "path": where.format(tmp_path / "mine")}
    (broken / "recipe.json").write_text(json.dumps(plain))
    with pytest.raises(UserError, match="mine is outside of the run folder, where nothing is read"):
        load(broken, "cpu")


def test_links_within_a_folder_are_its_own(tmp_path: Path) -> None:
    """As those of trackers are, and those from a snapshot in the hub's cache to its blobs."""
    run = tmp_path / "models--a--b" / "snapshots" / "1"
    (run / "wandb" / "run-1").mkdir(parents=True)
    (run / "wandb" / "latest-run").symlink_to("run-1")
    (run / "loop").symlink_to(".")
    (run / "config.json").symlink_to("../../blobs/0")
    check_contained(run)
    (run / "other").symlink_to("../../refs/main")
    with pytest.raises(UserError, match="outside"):
        check_contained(run)
    (run / "other").unlink()
    elsewhere = tmp_path / "snapshots" / "1"
    shutil.copytree(run, elsewhere, symlinks=True)
    with pytest.raises(UserError, match="outside"):
        check_contained(elsewhere)


def test_a_folder_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contained, "MOST_ENTRIES", 3)
    folder = tmp_path / "model"
    folder.mkdir()
    for name in "abc":
        (folder / name).touch()
    check_contained(folder)
    (folder / "d").touch()
    with pytest.raises(UserError, match="more than 3 entries"):
        check_contained(folder)


def test_only_files_of_an_encoder_are_copied(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("config.json", "vocab.txt", "model.safetensors", "modeling.py", "pytorch_model.bin"):
        (source / name).write_text(name)
    (source / "again").symlink_to(".")
    (source / "same.json").symlink_to("config.json")
    copy_flat(source, tmp_path / "target", SUFFIXES)
    copied = {one.name: one.read_text() for one in (tmp_path / "target").iterdir()}
    assert copied.keys() == {"config.json", "vocab.txt", "model.safetensors", "same.json"}
    assert copied["same.json"] == "config.json"


def test_a_copy_that_the_disk_does_not_hold_is_not_begun(tmp_path: Path) -> None:
    """A file can claim any length without taking room."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_text("{}")
    with (source / "model.safetensors").open("wb") as file:
        file.truncate(1 << 43)
    with pytest.raises(EnvironmentFailure, match="make room"):
        copy_flat(source, tmp_path / "target", SUFFIXES)
    assert list((tmp_path / "target").iterdir()) == []


def test_what_pretends_to_be_a_picture_is_not_in_the_report(broken: Path, tmp_path: Path) -> None:
    (broken / "evaluation").mkdir()
    (broken / "evaluation" / "levels.png").write_text("root:x:0:0")
    with pytest.warns(UserWarning, match=r"levels.png is left out: cannot identify its format"):
        assert kept(load(broken, "cpu")) == []


def test_a_request_that_claims_endless_pictures(broken: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "sampling.json").write_text('{"n": 1000000000000000000}')
    (out / f"{'9' * 100}.png").write_bytes(b"mine")
    assert main(["sample", str(broken), "-n", "1", "--out", str(out), "--device", "cpu"]) == 2
    assert (out / f"{'9' * 100}.png").read_bytes() == b"mine"


# Pictures and arrays


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("side", [10_000, 20_000])
def test_a_bomb_is_too_large(tmp_path: Path, side: int) -> None:
    (tmp_path / "x.png").write_bytes(mutate.bomb(side))
    for read in (lambda: read_picture(tmp_path / "x.png", 1, 8, 8), lambda: describe_picture(tmp_path / "x.png")):
        with pytest.raises(UnreadableError, match="too large"):
            read()


@pytest.mark.filterwarnings("default")
def test_a_bomb_in_a_folder_is_skipped_in_one_line(
    shop: Shop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(shop.data / "a", tmp_path / "data")
    (tmp_path / "data" / "bomb.png").write_bytes(mutate.bomb(10_000))
    words = [word for one in ("network.width=8", "training.images=4", "sampling.steps=1") for word in ("--set", one)]
    data = ["--data", str(tmp_path / "data"), "--out", str(tmp_path / "run")]
    assert main(["train", "folder", *data, *words, "--device", "cpu"]) == 0
    warned = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert len(warned) == 1
    assert "skipped 1 of 5" in warned[0]
    assert "bomb.png (too large" in warned[0]


def test_other_formats_are_not_tried(tmp_path: Path) -> None:
    """Pillow gives PostScript to another program to draw."""
    (tmp_path / "x.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")
    with Image.open(tmp_path / "x.png") as seen:
        assert seen.format == "EPS"
    for read in (lambda: read_picture(tmp_path / "x.png", 1, 8, 8), lambda: describe_picture(tmp_path / "x.png")):
        with pytest.raises(UnreadableError, match="cannot identify"):
            read()


@pytest.mark.parametrize("name", ["x.png", "x.npy"])
def test_a_pipe_is_not_waited_for(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    for read in (lambda: read_picture(tmp_path / name, 1, 8, 8), lambda: describe_picture(tmp_path / name)):
        with pytest.raises(UnreadableError, match="no such file"):
            read()


def array_file(shape: str, kind: str = "|u1", size: int = 64) -> bytes:
    head = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117).encode() + b"\n"
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(head)) + head + bytes(size)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (array_file("(1000000, 1000000)"), "."),
        (array_file("(1000000000000,)"), "."),
        (array_file("(8, 8)", "|O"), "Python objects"),
        (array_file("(1, 1, 1000)", size=1000), "1000 channels, but the data set has 1"),
        (array_file("(10000, 10000)", size=0), "too large"),
    ],
    ids=["square", "row", "objects", "channels", "pixels"],
)
def test_an_array_that_claims_too_much(tmp_path: Path, raw: bytes, reason: str) -> None:
    (tmp_path / "x.npy").write_bytes(raw)
    if reason == "too large":  # all of it there, and none of it on the disk
        with (tmp_path / "x.npy").open("r+b") as file:
            file.truncate(len(raw) + 10**8)
    tracemalloc.start()
    try:
        with pytest.raises(UnreadableError, match=reason):
            read_picture(tmp_path / "x.npy", 1, 8, 8)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


# The classic sets


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        (b"\0\0\x08\3" + struct.pack(">III", 2**30, 8, 8), "contains 0 values, but its header says"),
        (b"\0\0\x08\3" + struct.pack(">III", 2, 2, 2) + bytes(1 << 24), "contains more values, but its header says"),
        (b"\0\0\x08\xff" + b"\0\0\0\1" * 255 + b"x", "not an idx file"),
    ],
    ids=["claims", "bomb", "axes"],
)
@pytest.mark.parametrize("packed", [False, True])
def test_an_idx_file_takes_no_more_memory_than_it_should(
    tmp_path: Path, raw: bytes, sentence: str, packed: bool
) -> None:
    path = tmp_path / ("x.gz" if packed else "x")
    path.write_bytes(_gzip(raw) if packed else raw)
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=sentence):
            read_idx(path)
        assert tracemalloc.get_traced_memory()[1] < 2 << 20
    finally:
        tracemalloc.stop()


def _gzip(raw: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    return packer.compress(raw) + packer.flush()


def test_an_idx_file_has_a_largest_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classic, "LARGEST", 1000)
    (tmp_path / "x").write_bytes(b"\0\0\x08\1" + struct.pack(">I", 1001) + bytes(1001))
    with pytest.raises(UserError, match="contains more than 1,000 values: use a smaller data set"):
        read_idx(tmp_path / "x")
    (tmp_path / "x").write_bytes(b"\0\0\x08\1" + struct.pack(">I", 1000) + bytes(1000))
    assert read_idx(tmp_path / "x").shape == (1000,)


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache for an archive."""
    monkeypatch.setenv("UNFOG_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache"


def pack(shelf: Path, *members: tuple[tarfile.TarInfo, bytes]) -> None:
    with tarfile.open(shelf / "cifar-10-binary.tar.gz", "w:gz") as archive:
        for member, data in members:
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


@pytest.mark.parametrize(
    "member",
    [
        tarfile.TarInfo("../outside"),
        tarfile.TarInfo("cifar-10-batches-bin/../../outside"),
        link("cifar-10-batches-bin/x", "../../../outside"),
        link("cifar-10-batches-bin/x", "/etc/passwd", tarfile.LNKTYPE),
        link("cifar-10-batches-bin/x", "cifar-10-batches-bin/missing", tarfile.LNKTYPE),
        link("cifar-10-batches-bin/x", "", tarfile.CHRTYPE),
    ],
    ids=["above", "around", "link", "hard link", "hard link to nothing", "device"],
)
def test_an_archive_stays_in_its_folder(shelf: Path, tmp_path: Path, member: tarfile.TarInfo) -> None:
    pack(shelf, (member, b""))
    with pytest.raises(UserError, match=r"cifar-10-binary\.tar\.gz is damaged .*remove it"):
        classic.cifar10()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache"]
    assert [path.name for path in shelf.iterdir()] == ["cifar-10-binary.tar.gz"]


def test_an_archive_has_a_largest_size(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "cifar-10-batches-bin/data_batch_1.bin"
    monkeypatch.setattr(classic, "LARGEST", 4000)
    pack(shelf, (tarfile.TarInfo(name), bytes(3073)), (tarfile.TarInfo(f"{name}2"), bytes(3073)))
    with pytest.raises(UserError, match="more than 100 files or 4,000 bytes"):
        classic.cifar10()
    pack(shelf, *((tarfile.TarInfo(f"{name}{number}"), b"") for number in range(102)))
    with pytest.raises(UserError, match="more than 100 files"):
        classic.cifar10()


def test_a_file_of_cifar_has_a_largest_size(tmp_path: Path) -> None:
    huge(tmp_path / "data_batch_1.bin", 3073 * 10**9)
    with pytest.raises(UserError, match=r"data_batch_1\.bin is damaged"):
        classic.cifar10(str(tmp_path))


# Folders


def test_a_line_of_metadata_has_a_largest_length(tmp_path: Path) -> None:
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "' + "a" * (1 << 20) + '"}')
    with pytest.raises(UserError, match="line of more than 1,048,576 characters"):
        list_pictures(str(tmp_path))
    huge(tmp_path / "metadata.jsonl")
    with pytest.raises(UserError, match="line of more than"):
        list_pictures(str(tmp_path))


def test_labels_over_all_files_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [
        json.dumps({"file_name": f"{file}.png", "label": [f"{file}-{one}" for one in range(9)]}) for file in range(9)
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    assert len(list_pictures(str(tmp_path)).classes) == 81
    monkeypatch.setattr("unfog.data.listing.MARKS", 9 * 81 - 1)
    with pytest.raises(UserError, match="81 labels for 9 files are too many"):
        list_pictures(str(tmp_path))


def test_many_classes_are_numbered_at_once(tmp_path: Path) -> None:
    lines = [json.dumps({"file_name": f"{file}.png", "label": file}) for file in range(3000)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    listing = list_pictures(str(tmp_path))
    assert listing.labels is not None
    assert [listing.classes[int(label)] for label in listing.labels[:9]] == [name[:-4] for name in listing.files[:9]]  # type: ignore[arg-type]


def test_names_that_no_recipe_holds_are_refused(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the run could be trained, and never be read."""
    monkeypatch.setattr(build, "MOST_JSON", 100)
    with pytest.raises(UserError, match="the names of 2 classes, or the captions, do not fit"):
        build_data(recipe("folder", str(shop.data)))


# The command line


def test_a_sentence_stays_one_line_and_steers_no_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "dig\x1b[2J\nits\u2028"]) == 2
    assert capsys.readouterr().err.startswith(r"unfog: unknown recipe 'dig\x1b[2J\nits\u2028'")
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "\x1b]0;mine\x07\n"}))
    assert main(["train", "folder", "--data", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert error[:-1].isprintable()


def test_a_sentence_is_not_endless(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "digits", "--set", "network.width=" + json.dumps(["x"] * 5000)]) == 2
    error = capsys.readouterr().err
    assert len(error) < terminal.LONGEST + 50
    assert error.startswith("unfog: network.width must be int, not ['x'")
    assert error.endswith("'x']\n")


def test_a_name_that_is_no_text_can_be_printed(
    digits_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sample", str(digits_run), "-n", "1", "--out", str(tmp_path / "caf\udce9"), "--device", "cpu"]) == 0
    assert r"caf\udce9" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (PermissionError(13, "Permission denied", "x"), 1),
        (OSError(5, "Input/output error"), 1),
        (MemoryError(), 1),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to"), 1),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"), 1),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), 1),
    ],
)
def test_a_machine_that_refuses(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, code: int
) -> None:
    def refuse(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(model, "opened", refuse)
    assert main(["sample", "x"]) == code
    said = capsys.readouterr().err
    assert said.startswith("unfog: the system reports an error (")
    assert len(said.splitlines()) == 1


def test_a_mistake_in_the_code_is_still_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(model, "opened", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        main(["sample", "x"])


@pytest.mark.parametrize("verb", ["evaluate", "compare", "bench"])
def test_samples_without_end_are_refused(verb: str, broken: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [str(broken)] * (2 if verb == "compare" else 1)
    assert main([verb, *runs, "-n", "1000000000000", "--device", "cpu"]) == 2
    assert "samples are too many: 10000000 is the limit" in capsys.readouterr().err


# What was measured before


PROTOCOL = {"metric": "m", "features": "f", "sets": {"data": "d", "block": 100, "seed": 0, "split": "held out"}}
MEASURED = {
    "key": "k",
    "setting": {"solver": "ddim", "grid": "uniform", "guidance": 1.0},
    "steps": 5,
    "nfe": 5,
    "fidelity": {"value": 1.0, "low": 0.9, "high": 1.1, "n": 100, "floor": 0.1, "ceiling": 9.0, "protocol": PROTOCOL},
    "recall": {"value": 0.5, "low": None, "high": None, "n": 100, "floor": 0.9, "ceiling": 0.0, "protocol": PROTOCOL},
    "adherence": None,
}


@pytest.mark.parametrize(
    "change",
    [
        {"steps": "5"},
        {"nfe": 5.5},
        {"setting": {"solver": ["ddim"], "grid": "uniform", "guidance": 1.0}},
        {"setting": {"solver": "ddim", "grid": "uniform", "guidance": "1"}},
        {"fidelity": {**MEASURED["fidelity"], "protocol": []}},  # type: ignore[dict-item]
        {"fidelity": {**MEASURED["fidelity"], "protocol": {**PROTOCOL, "metric": 1}}},  # type: ignore[dict-item]
        {"fidelity": {**MEASURED["fidelity"], "protocol": {**PROTOCOL, "sets": None}}},  # type: ignore[dict-item]
        {"fidelity": {**MEASURED["fidelity"], "value": "1"}},  # type: ignore[dict-item]
        {"fidelity": None},
        {"recall": 0.5},
        {"adherence": 3},
        {"deep": json.loads("[" * 40 + "]" * 40)},
    ],
)
def test_a_damaged_measurement_is_left_out(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text(json.dumps(MEASURED) + "\n" + json.dumps({**MEASURED, "key": "other", **change}) + "\n")
    with pytest.warns(UserWarning, match="1 damaged lines are skipped"):
        assert set(results.read_results(path)) == {"k"}
