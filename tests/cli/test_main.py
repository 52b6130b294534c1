"""The command line: what each verb writes, and one sentence for every mistake and every failure."""

import json
import math
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import unfog
from unfog.cli import arguments
from unfog.cli.main import EDITS, VERBS, main
from unfog.cli.options import Training
from unfog.data import classic, modality
from unfog.networks.quantized import able
from unfog.recipes.sources import Folder
from unfog.runs import asking, requests
from unfog.runs.naming import written_pictures
from unfog.runs.run import load
from unfog.runtime.errors import UserError

SMALL = ("--set", "network.width=8", "--set", "training.images=64", "--set", "sampling.steps=2", "--device", "cpu")


class Outcome:
    """How a command ended: its exit code and what it printed."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


Call = Callable[..., Outcome]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Call the command line in this process."""

    def begin(*arguments: str | Path) -> Outcome:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return Outcome(code, *capsys.readouterr())

    return begin


@pytest.fixture
def refused(call: Call) -> Call:
    """Call the command line, and check that it ends with code 2 and one line that says what `expected` says.

    What is downloaded, planned or evaluated is said before.
    """

    def begin(expected: str, *arguments: str | Path, code: int = 2) -> Outcome:
        outcome = call(*arguments)
        assert outcome.code == code, outcome.err
        *before, last = outcome.err.strip().splitlines()
        assert all(re.match("downloading |planning |evaluating |reading |.*: this will take", line) for line in before)
        assert last.startswith("unfog: ")
        assert re.search(expected, last), last
        assert outcome.out == ""
        return outcome

    return begin


def write_pictures(folder: Path, count: int = 12, side: int = 8, seed: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        pixels = np.random.default_rng([seed, index]).integers(0, 256, (side, side), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:03}.png")
    return folder


# Mistakes in what to train


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["digitz"], "unknown recipe 'digitz': did you mean 'digits'"),
        (["xyzzyq"], "unknown recipe 'xyzzyq': choose one of audio, autoencoder, cifar10, cifar10-edm"),
        ([], "name a recipe to train"),
        (["digits", "--set", "network.widht=8"], r"unknown setting 'network\.widht': did you mean 'network\.width'"),
        (["digits", "--set", "netwrok=unet"], "unknown setting 'netwrok': did you mean 'network'"),
        (["digits", "--set", "schedule=cosin"], "unknown schedule 'cosin': did you mean 'cosine'"),
        (["digits", "--set", "solver=dimm"], "unknown solver 'dimm': did you mean 'ddim'"),
        (["digits", "--set", "grid=karas"], "unknown grid 'karas': did you mean 'karras'"),
        (["digits", "--set", "network.width"], r"a setting must be path=value, for instance .*'network\.width'"),
        (["digits", "--set", "network=3"], "network must be one of autoencoder.*not 3"),
        (["digits", "--set", "network.width=wide"], r"network\.width must be int, not 'wide'"),
        (["digits", "--set", "network.width=8.5"], r"network\.width must be int, not 8\.5"),
        (["digits", "--set", "training.stratified=1"], r"training\.stratified must be bool, not 1"),
        (["digits", "--set", "training.batch=true"], r"training\.batch must be int, not True"),
        (["digits", "--set", "optimizer.lr=NaN"], r"optimizer\.lr must be float, not 'NaN'"),
        (["digits", "--set", "training.precision=float16"], r"training\.precision must be .*not 'float16'"),
        (["digits", "--set", "seed=1.5"], r"seed must be int, not 1\.5"),
        (["digits", "--set", "training.batch=0"], r"batch must be above 0, not 0"),
        (["digits", "--set", "training.images=-5"], r"training\.images must be above 0, not -5"),
        (["digits", "--set", "training.accumulate=7"], r"training\.accumulate 7 must divide training\.batch 64"),
        (["digits", "--set", "optimizer.lr=-1.0"], r"lr must be above 0, not -1\.0"),
        (
            ["digits", "--set", "conditioning.dropout=1.5"],
            r"conditioning\.dropout must lie between 0 and 1, not 1\.5",
        ),
        (
            ["digits", "--set", "schedule=linear", "--set", "schedule.beta_end=2.0"],
            "every beta must lie .*correct beta",
        ),
        (["digits", "--set", "network.dropout=2.0"], "network 'compact' cannot be built with .*dropout"),
        (["digits", "--set", "network.width=-8"], "width"),
        (["digits", "--set", "network.width=0"], "width"),
        (["digits", "--set", "network.width=7"], "width"),
        (["digits", "--set", "network.patch=0"], "patch"),
        (["digits", "--set", "network.blocks=-1"], "blocks"),
        (["digits", "--set", "network.patch=8"], "sides that are multiples of 16, not 8: use 16"),
        (["digits", "--set", "target=eps"], "target Eps cannot be solved.*use the target v, x0 or flow"),
        (
            ["digits", "--set", "schedule=cosine"],
            "target Flow does not fit the schedule Cosine.*use its continuous form",
        ),
        (
            ["digits", "--set", "inputs.network_time=index"],
            "'index' needs a schedule of discrete steps: use 'thousand'",
        ),
        (
            ["digits", "--set", "conditioning=none", "--set", "guidance=2"],
            "guidance needs a model .*with conditions: .*sampling.guidance=1",
        ),
        (["digits", "--data", "somewhere"], "'digits' has its own data: omit data"),
        (["digits", "--size", "16"], "'digits' have a fixed size: omit size"),
        (["digits", "--budget", "soon"], "--budget takes a time like 90s, 10m, 2h or 1h30m, not 'soon'"),
        (["digits", "--budget", "0s"], "--budget takes a time like .*'0s'"),
        (["digits", "--budget", "10 parsecs"], "--budget takes a time like .*'10 parsecs'"),
        (["digits", "--budget=-5m"], "--budget takes a time like .*'-5m'"),
        (["digits", "--device", "gpu0"], "the device 'gpu0' is not available here.*use cpu"),
        (["digits", "--init-from", "nowhere"], "nowhere is no run folder"),
        (["mnist", "--data", "nowhere"], "data folder .*nowhere does not exist: check the path"),
        (["folder"], "needs a folder of pictures: give its path as --data"),
        (["folder", "--data", "nowhere"], "data folder .*nowhere does not exist: check the path"),
    ],
)
def test_a_mistake_in_what_to_train(refused: Call, tmp_path: Path, arguments: list[str], sentence: str) -> None:
    out = tmp_path / "run"
    if arguments[:1] == ["digits"]:  # the mistake comes behind the small settings, and so has the last word
        arguments = ["digits", *SMALL, *arguments[1:]]
    refused(sentence, "train", *arguments, "--out", out)
    assert not out.exists()


def test_data_that_hold_no_picture(refused: Call, tmp_path: Path) -> None:
    empty, text = tmp_path / "empty", tmp_path / "text"
    empty.mkdir()
    text.mkdir()
    (text / "notes.txt").write_text("no picture")
    file = tmp_path / "file.png"
    Image.new("L", (8, 8)).save(file)
    out = tmp_path / "run"
    refused(f"{empty} contains no images .*check the path", "train", "folder", "--data", empty, "--out", out)
    refused(f"{text} contains no images", "train", "folder", "--data", text, "--out", out)
    refused(f"{file} is not a folder", "train", "folder", "--data", file, "--out", out)
    refused(f"{empty} contains neither .*pass the folder", "train", "mnist", "--data", empty, "--out", out)
    refused(f"{empty} contains no data_batch", "train", "cifar10", "--data", empty, "--out", out)
    assert not out.exists()


@pytest.mark.filterwarnings("default:skipped")  # so that it comes as a line, as it does outside of tests
def test_unreadable_pictures_are_named_skipped_and_counted(call: Call, tmp_path: Path) -> None:
    data = write_pictures(tmp_path / "data")
    whole = (data / "003.png").read_bytes()
    (data / "003.png").write_bytes(whole[: len(whole) // 2])
    (data / "007.png").write_bytes(b"no picture at all")
    outcome = call("train", "folder", "--data", data, *SMALL, "--out", tmp_path / "run")
    assert outcome.code == 0, outcome.err
    warning = [line for line in outcome.err.splitlines() if line.startswith("warning: ")]
    assert len(warning) == 1
    assert "skipped 2 of 12 images" in warning[0]
    assert "003.png" in warning[0]
    assert "007.png" in warning[0]


def test_pictures_that_are_all_unreadable(refused: Call, tmp_path: Path) -> None:
    data = write_pictures(tmp_path / "data", 3)
    for file in data.iterdir():
        file.write_bytes(b"no picture at all")
    out = tmp_path / "run"
    refused(f"none of the images in {data} can be read", "train", "folder", "--data", data, *SMALL, "--out", out)
    whole = Path(write_pictures(tmp_path / "cut", 3))
    for file in whole.iterdir():  # the head is there, the pixels are not
        file.write_bytes(file.read_bytes()[:60])
    refused(f"none of the .*images in {whole} can be read", "train", "folder", "--data", whole, *SMALL, "--out", out)
    assert not out.exists()


@pytest.mark.parametrize("size", ["9", "0", "-8", "100000"])
def test_a_size_that_cannot_be(refused: Call, tmp_path: Path, size: str) -> None:
    data, out = write_pictures(tmp_path / "data"), tmp_path / "run"
    expected = "multiples of 2, not 9: use 8 or 10" if size == "9" else f"size.*{size}"
    refused(expected, "train", "folder", "--data", data, "--size", size, *SMALL, "--out", out)
    assert not out.exists()


@pytest.mark.parametrize("size", ["8x", "x8", "8x8x8", "large", "[8,16]", "8.5"])
def test_a_size_that_is_none(refused: Call, tmp_path: Path, size: str) -> None:
    expected = "--size takes a side or WIDTHxHEIGHT in pixels, for instance 64 or 256x192, not '"
    for verb in ("train", "plan"):
        refused(expected, verb, "folder", write_pictures(tmp_path / "data"), "--size", size)


def test_sides_that_do_not_fit_latents_are_refused_before_training(refused: Call, tmp_path: Path) -> None:
    data, out = write_pictures(tmp_path / "data"), tmp_path / "run"
    expected = "sides that are multiples of 16, not 76: use 64 or 80"
    refused(expected, "train", "folder", data, "--size", "96x76", *SMALL, "--out", out)
    refused(expected, "plan", "folder", data, "--size", "96x76", *SMALL)
    assert not out.exists()


def test_data_that_are_named_twice(refused: Call, tmp_path: Path) -> None:
    data = write_pictures(tmp_path / "data")
    for verb in ("train", "plan"):
        refused(f"the data are named twice, as {data} and as --data other", verb, "folder", data, "--data", "other")
        refused(f"{data} is no recipe but a path: name a recipe before it, for instance folder", verb, data)
        refused("'digits' has its own data: omit", verb, "digits", data)
    assert Training(data=f"{data}/../data").at(str(data)) == Training(data=str(data))


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--epochs", "2", "--budget", "1m"], "--epochs and --budget both say how long to train: give one"),
        (["--epochs", "2", "--set", "training.images=9"], "--epochs and --set training.images both say"),
        (
            ["--budget", "1m", "--set", "training.epochs=2"],
            r"--budget and --set training\.epochs both say how long to train",
        ),
        (["--budget", "1m", "--set", "images=9"], r"--budget and --set training\.images both say how long"),
        (["--epochs", "0"], r"training\.epochs must be above 0, not 0"),
        (["--epochs", "1e12"], r"training\.images may be at most 1,000,000,000,000"),
    ],
)
def test_lengths_that_cannot_be(refused: Call, tmp_path: Path, more: list[str], sentence: str) -> None:
    refused(sentence, "plan", "digits", *more)
    refused(sentence, "train", "digits", *more, "--out", tmp_path / "run")


@pytest.mark.parametrize("length", [("--budget", "1m"), ("--images", "9"), ("--epochs", "2")])
def test_what_follows_a_run_has_its_length(refused: Call, length: tuple[str, str]) -> None:
    refused(
        f"--follow repeats the length of another run: omit {length[0]}", "train", "digits", "--follow", "x", *length
    )


def test_a_folder_that_holds_another_run(refused: Call, digits_run: Path) -> None:
    before = (digits_run / "recipe.json").read_bytes(), (digits_run / "model.safetensors").read_bytes()
    sentence = f"{digits_run} holds another run: choose another --out, or resume it with `unfog train --resume"
    refused(sentence, "train", "digits", *SMALL, "--set", "seed=9", "--out", digits_run)
    assert before == ((digits_run / "recipe.json").read_bytes(), (digits_run / "model.safetensors").read_bytes())


def test_what_cannot_be_is_refused_before_pictures_are_read(
    refused: Call, digits_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading them takes minutes where there are many."""

    def reads(*rest: object, **more: object) -> None:
        raise AssertionError("pictures were read")

    for where in ("reports.report.read_data", "training.proportion.seen", "runs.data.read_data"):  # who imports first
        monkeypatch.setattr(f"unfog.{where}", reads)
    taken = ("--budget", "10m", "--out", digits_run)
    refused("holds another run", "train", "folder", digits_run / "samples", *taken)
    for verb in ("evaluate", "report"):
        refused("steps must be .*not 0", verb, digits_run, "--steps", 0, "--device", "cpu")


def test_an_output_that_is_a_file(refused: Call, digits_run: Path, tmp_path: Path) -> None:
    file = tmp_path / "taken"
    file.write_text("mine")
    refused(f"{file} is a file: choose another --out", "train", "digits", *SMALL, "--out", file)
    refused(f"{file} is a file: choose another --out", "sample", digits_run, "-n", 1, "--out", file)
    refused(f"{file} is a file: choose another --out", "film", digits_run, "-n", 1, "--out", file)
    assert file.read_text() == "mine"


@pytest.mark.parametrize(
    "more",
    [
        ["digits"],
        ["--set", "seed=1"],
        ["--out", "elsewhere"],
        ["--precision", "bfloat16"],
        ["--init-from", "other"],
        ["--size", "8"],
    ],
)
def test_resume_goes_alone(refused: Call, digits_run: Path, more: list[str]) -> None:
    first = [more[0]] if not more[0].startswith("-") else []
    sentence = "--resume continues a run unchanged: give it alone"
    refused(sentence, "train", *first, "--resume", digits_run, *more[len(first) :])


def test_resuming_what_is_no_run_or_has_no_checkpoint(refused: Call, broken: Path, tmp_path: Path) -> None:
    refused(f"{tmp_path} is no run folder", "train", "--resume", tmp_path, "--device", "cpu")
    refused(
        "contains no intact checkpoint, so there is nothing to resume", "train", "--resume", broken, "--device", "cpu"
    )


@pytest.mark.parametrize(
    "arguments", [[], ["--nonsense"], ["train", "--nonsense"], ["sample"], ["sample", "x", "-n", "many"]]
)
def test_a_line_that_cannot_be_read_has_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["report", "x", "--guidance", "two"], "--guidance: 'two' is not a number"),
        (["sample", "x", "--steps", "2.5"], "--steps: '2.5' is not a whole number"),
        (["sample", "x", "-n", "many"], "-n/--n: 'many' is not a whole number"),
        (["evaluate", "x", "--guidance", "1", "two"], "--guidance: 'two' is not a number"),
        (["bench", "x", "--nfe", "5", "ten"], "--nfe: 'ten' is not a whole number"),
        (["edit", "vary", "x", "--image", "y", "--amount", "much"], "--amount: 'much' is not a number"),
    ],
)
def test_a_word_that_is_no_number_gets_a_sentence(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert f"Error parsing {sentence}" in said
    assert "None" not in said


def test_a_mistyped_verb_or_folder_is_answered_with_the_one_that_is_meant(refused: Call, tmp_path: Path) -> None:
    refused("unknown verb 'trian': did you mean 'train'?", "trian")
    refused("unknown verb 'inpant': did you mean 'inpaint'?", "edit", "inpant")
    (tmp_path / "animals").mkdir()
    refused(f"did you mean {tmp_path / 'animals'}?", "inspect", tmp_path / "anmals")


# Failing surroundings


def test_a_full_disk_while_training(call: Call, small_disk: Path) -> None:
    # two checkpoints of this run do not fit beside each other, but the second picture does
    (small_disk / "filler").write_bytes(b"\0" * 200_000)
    out = small_disk / "run"
    settings = (*SMALL, "--set", "training.images=512", "--set", "training.reports=4", "--set", "network.width=8")
    outcome = call("train", "digits", *settings, "--out", out)
    assert outcome.code == 1
    failures = [line for line in outcome.err.splitlines() if line.startswith("unfog: ")]
    assert len(failures) == 1
    assert re.search(f"cannot write {out}.*the disk is full; what was written before is intact", failures[0])
    assert outcome.err.strip().endswith(failures[0])
    assert "Traceback" not in outcome.err
    assert load(out, "cpu").sample(1).shape == (1, 1, 8, 8)  # the first checkpoint's model
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["000000002"]  # the first, and no half of another


@pytest.mark.parametrize("verb", ["sample", "film"])
def test_a_full_disk_while_sampling(refused: Call, digits_run: Path, small_disk: Path, verb: str) -> None:
    filler = small_disk / "filler"
    with filler.open("wb") as file:
        file.write(b"\0" * ((1 << 20) - 8192))
    out = small_disk / "out"
    refused("the disk is full", verb, digits_run, "-n", 64, "--out", out, "--device", "cpu", code=1)
    left = [path.name for path in small_disk.rglob("*.part")]
    assert left == []


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Let every download go to a port where nobody listens; return the empty cache."""
    nobody = "http://127.0.0.1:9/"
    _redirect(monkeypatch, nobody)
    monkeypatch.setenv("UNFOG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def _redirect(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("no_proxy", "*")
    for name in ("_MNIST", "_FASHION"):
        monkeypatch.setitem(classic._MD5, url, classic._MD5[getattr(classic, name)])
        monkeypatch.setattr(classic, name, url)
    monkeypatch.setattr(classic, "_CIFAR", f"{url}cifar-10-binary.tar.gz")


@pytest.mark.parametrize("recipe", ["mnist", "fashion", "cifar10"])
def test_no_network(refused: Call, no_network: Path, tmp_path: Path, recipe: str) -> None:
    out = tmp_path / "run"
    sentence = r"cannot download http://127\.0\.0\.1:9/.*refused.*: set data.path to a folder .*, or connect"
    refused(sentence, "train", recipe, "--out", out, "--device", "cpu", code=1)
    assert not out.exists()
    left = [path.name for path in no_network.rglob("*") if path.is_file()]
    assert left == []


@pytest.fixture
def abrupt_server() -> Iterator[str]:
    """A server that hangs up on every request."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def hang_up() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(1000)

        thread = threading.Thread(target=hang_up, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/"
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_a_server_that_hangs_up(
    refused: Call, abrupt_server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _redirect(monkeypatch, abrupt_server)
    monkeypatch.setenv("UNFOG_CACHE", str(tmp_path / "cache"))
    refused("cannot download", "train", "mnist", "--out", tmp_path / "run", "--device", "cpu", code=1)
    assert not (tmp_path / "run").exists()


def test_a_cache_that_cannot_be_written(
    refused: Call, no_network: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    no_network.write_text("a file where the cache should be")
    refused("cannot write .*cache", "train", "mnist", "--out", tmp_path / "run", "--device", "cpu", code=1)


# Mistakes about a run folder


def newer(run: Path) -> None:
    plain = json.loads((run / "recipe.json").read_text())
    (run / "recipe.json").write_text(json.dumps({**plain, "version": 999}))


def no_weights(run: Path) -> None:
    (run / "model.safetensors").unlink()


def truncated_weights(run: Path) -> None:
    (run / "model.safetensors").write_bytes((run / "model.safetensors").read_bytes()[:-1000])


def other_shapes(run: Path) -> None:
    weights = load_file(run / "model.safetensors")
    weights["network.patch_out.bias"] = torch.zeros(7)
    save_file(weights, run / "model.safetensors")


def no_recipe(run: Path) -> None:
    (run / "recipe.json").unlink()


@pytest.mark.parametrize("verb", ["sample", "film", "evaluate"])
@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (no_recipe, r"is no run folder \(it has no recipe\.json\): give a folder that"),
        (newer, r"recipe\.json: the recipe's version is newer than 2: update unfog"),
        (no_weights, r"model\.safetensors is missing"),
        (truncated_weights, r"model\.safetensors is damaged or truncated .*: restore it, or train again"),
        (other_shapes, r"model\.safetensors does not match the recipe.*network\.patch_out\.bias has the shape \(7,\)"),
    ],
)
def test_a_broken_run_folder(
    refused: Call, broken: Path, verb: str, damage: Callable[[Path], None], sentence: str
) -> None:
    damage(broken)
    before = sorted(broken.rglob("*"))
    refused(sentence, verb, broken, "--device", "cpu")
    assert sorted(broken.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["sample", "-n", "0"], "the number of samples must be 1 or more, not 0"),
        (["sample", "-n", "-3"], "the number of samples must be 1 or more, not -3"),
        (["sample", "--steps", "-4"], "steps must be above 0, not -4"),
        (["sample", "--steps", "0"], "steps must be above 0, not 0"),
        (["sample", "--guidance", "nan"], "guidance .*nan"),
        (["sample", "--guidance", "inf"], "guidance .*inf"),
        (["sample", "--guidance", "-1"], r"guidance must lie between 0 and 1000, where 1 is off, not -1\.0"),
        (["sample", "--label", "10"], "the label 10 is out of range: this model knows 0 to 9"),
        (["sample", "--label", "-1"], "the label -1 is out of range"),
        (["sample", "--label", "three"], "unknown label 'three'"),
        (["sample", "--solver", "dimm"], "unknown solver 'dimm': did you mean 'ddim'"),
        (["sample", "--grid", "karas"], "unknown grid 'karas': did you mean 'karras'"),
        (["sample", "--device", "gpu0"], "the device 'gpu0' is not available here"),
        (["film", "-n", "1000"], "a film shows 1 to 64 samples, not 1000"),
        (["film", "-n", "0"], "a film shows 1 to 64 samples, not 0"),
        (["film", "--label", "10"], "the label 10 is out of range: this model knows 0 to 9"),
        (["film", "--steps", "-1"], "steps must be above 0, not -1"),
        (["film", "--solver", "hein"], "unknown solver 'hein': did you mean 'heun'"),
        (["evaluate", "-n", "10"], "10 samples are too few .* take 100 or more"),
        (["evaluate", "--guidance", "nan"], "guidance .*nan"),
        (["evaluate", "--steps", "0"], "steps must be above 0, not 0"),
    ],
)
def test_a_mistake_in_a_request(refused: Call, digits_run: Path, arguments: list[str], sentence: str) -> None:
    before = sorted(digits_run.rglob("*"))
    device = () if "--device" in arguments else ("--device", "cpu")
    refused(sentence, arguments[0], digits_run, *arguments[1:], *device)
    assert sorted(digits_run.rglob("*")) == before


def test_what_a_model_cannot_be_asked(refused: Call, digits_run: Path, unconditional_run: Path) -> None:
    refused("this model .conditioning=none. does not take --label", "sample", unconditional_run, "--label", 1)
    refused("does not take --prompt: use --label", "sample", digits_run, "--prompt", "a three")
    refused("does not take --prompt and --image", "film", digits_run, "--prompt", "a three", "--image", "3.png")
    refused("a negative condition needs guidance", "sample", digits_run, "--negative", 4, "--guidance", 1)


# What the verbs write


def test_train_writes_a_run_that_can_be_sampled(call: Call, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "run"
    outcome = call("train", "digits", *SMALL, "--set", "training.reports=1", "--out", out, "--precision", "float32")
    assert outcome.code == 0, outcome.err
    assert f"trained: {out}" in outcome.out
    assert "held-out loss" in outcome.err
    assert {"recipe.json", "model.safetensors", "metrics.jsonl", "checkpoints", "samples", "loss.png"} == {
        path.name for path in out.iterdir() if path.name != ".lock"
    }
    plain = json.loads((out / "recipe.json").read_text())
    assert plain["network"]["width"] == 8
    assert plain["training"]["precision"] == "float32"
    with Image.open(out / "loss.png") as picture:
        assert min(picture.size) > 100
    again = call("train", "--resume", out, "--device", "cpu")
    assert again.code == 0
    assert "loss" not in again.err  # nothing is trained again


def test_train_on_a_folder_of_classes(call: Call, tmp_path: Path) -> None:
    for seed, name in enumerate(("cats", "dogs")):
        write_pictures(tmp_path / "data" / name, 8, seed=seed)
    out = tmp_path / "run"
    outcome = call("train", "folder", "--data", tmp_path / "data", "--size", 16, *SMALL, "--out", out)
    assert outcome.code == 0, outcome.err
    run = load(out, "cpu")
    assert run.recipe.classes == ("cats", "dogs")
    assert run.sample(2).shape == (2, 1, 16, 16)


def test_train_for_epochs_on_pictures_that_are_not_square(call: Call, tmp_path: Path) -> None:
    data, out = write_pictures(tmp_path / "data", 20), tmp_path / "run"
    small = ("--size", "12x8", "--epochs", "3", *SMALL[:2], *SMALL[4:])
    outcome = call("train", "folder", data, *small, "--out", out)
    assert outcome.code == 0, outcome.err
    assert "unconditional" in outcome.err
    run = load(out, "cpu")
    assert (run.recipe.training.images, run.recipe.training.epochs) == (3 * 18, None)
    assert run.sample(2).shape == (2, 1, 8, 12)
    shown = call("plan", "folder", data, *small)
    assert re.search("images of 1×8×12.*length +54 images.* 3.0 epochs", shown.out, re.DOTALL), shown.out


def test_labels_from_file_names(call: Call, refused: Call, tmp_path: Path) -> None:
    for seed, name in enumerate(("cat_", "dog_")):
        for file in write_pictures(tmp_path / name, 4, seed=seed).iterdir():
            (tmp_path / "data").mkdir(exist_ok=True)
            shutil.move(file, tmp_path / "data" / f"{name}{file.name}")
    data = tmp_path / "data"
    for origin, settings in (("prefix", ()), (None, ("data.label_from=prefix",))):
        chosen = arguments.chosen("folder", str(data), None, settings, "auto", label_from=origin)
        assert (chosen.data, chosen.augment.flip) == (Folder(str(data), (8, 8), 1, label_from="prefix"), False)
    assert "classes: 2 (cat 4, dog 4)" in call("inspect", data, "--label-from", "prefix").out
    expected = "choose another --label-from .folder, parent, path, prefix, csv., or omit it"
    refused(expected, "train", "folder", data, "--label-from", "parent", "--out", tmp_path / "run")
    refused("the data of the recipe 'digits' have labels of their own", "plan", "digits", "--label-from", "prefix")


def test_train_from_another_run(call: Call, digits_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    outcome = call("train", "digits", *SMALL, "--init-from", digits_run, "--out", out)
    assert outcome.code == 0, outcome.err
    refusing = call(
        "train", "digits", *SMALL, "--set", "network.width=16", "--init-from", digits_run, "--out", tmp_path / "other"
    )
    assert refusing.code == 2
    assert "does not match" in refusing.err


def test_train_takes_over_what_weights_mean(call: Call, table_run: Path, tmp_path: Path) -> None:
    """A model of eps on a linear schedule is trained on as one."""
    out = tmp_path / "run"
    outcome = call("train", "digits", "--init-from", table_run, "--set", "training.images=64", "--out", out)
    assert outcome.code == 0, outcome.err
    kept = json.loads((out / "recipe.json").read_text())
    assert (kept["schedule"]["kind"], kept["target"]["kind"], kept["training"]["images"]) == ("linear", "eps", 64)
    refusing = call("train", "digits", "--init-from", table_run, "--set", "target=v", "--out", tmp_path / "other")
    assert refusing.code == 2
    assert "were trained with target 'eps' instead of 'v'" in refusing.err


def test_sample_writes_the_librarys_pixels(call: Call, digits_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    outcome = call("sample", digits_run, "-n", 12, "--seed", 7, "--out", out, "--steps", 3, "--device", "cpu")
    assert outcome.code == 0, outcome.err
    assert f"unfog evaluate {out} --real REAL_PICTURES" in outcome.out
    names = [f"{index:05}-{index % 10}.png" for index in range(12)]
    assert sorted(path.name for path in out.iterdir()) == [*names, "samples.json", "sampling.json", "sheet.png"]
    pixels = load(digits_run, "cpu").sample(12, seed=7, steps=3)
    for index, name in enumerate(names):
        with Image.open(out / name) as picture:
            assert picture.size == (8, 8)
            assert np.array_equal(np.asarray(picture.convert("L")), pixels[index, 0].numpy())
    listed = json.loads((out / "samples.json").read_text())
    assert [line["file"] for line in listed] == names
    drawn = {"seed": 7, "solver": "dpmpp-2m", "steps": 3, "guidance": load(digits_run, "cpu").recipe.sampling.guidance}
    assert listed[11] == {"number": 11, "file": names[11], "condition": "1", **drawn}
    title = f"12 samples of {digits_run.name}: seed 7, solver dpmpp-2m, steps 3, guidance {drawn['guidance']:g}"
    with Image.open(out / "sheet.png") as picture:
        wanted = modality.images.labelled(pixels, [str(index % 10) for index in range(12)], title)
        assert np.array_equal(np.asarray(picture), np.asarray(wanted))


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("10m", 600), ("1.5h", 5400), ("1h30m", 5400), ("4min30s", 270)]
)
def test_a_budget_is_a_time(text: str, seconds: float) -> None:
    assert arguments.seconds(text) == seconds


def test_a_mistyped_option_is_answered_with_those_of_its_verb(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["sample", "runs/x", "--guidnce", "1"])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.count("--guidance FLOAT") == 1
    assert "evaluate" not in said


def test_a_mistyped_folder_is_answered_with_the_one_that_is_meant(refused: Call, broken: Path, tmp_path: Path) -> None:
    (tmp_path / "animals").mkdir()
    refused(f"animal does not exist: did you mean {tmp_path / 'animals'}?", "plan", "folder", tmp_path / "animal")
    near = broken.with_name(f"{broken.name}s")
    refused(f"is no run folder .*: did you mean {broken}?", "sample", near, "-n", 1)
    refused(f"{broken} is a run, and this takes a recipe: .*train --resume {broken} --budget 10m", "plan", broken)


def test_a_second_request_leaves_the_pictures_of_the_first(
    call: Call, digits_run: Path, broken: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "12345.png").write_bytes(b"mine")  # was there before any request, so it is not unfog's to remove
    assert call("sample", digits_run, "-n", 1, "--out", out, "--device", "cpu").code == 0
    assert (out / "12345.png").read_bytes() == b"mine"
    assert call("sample", digits_run, "-n", 2, "--out", out, "--device", "cpu").code == 0
    assert (out / "12345.png").read_bytes() == b"mine"  # nor is it after one
    for more, place in (
        (["-n", 4], "seed-0"),
        (["-n", 3, "--label", 4], "seed-0-2"),
        (["-n", 2, "--label", 4], "seed-0-3"),  # fewer of the same: the other sheet shows three
        (["-n", 4, "--guidance", 3], "seed-0-4"),
        (["-n", 5], "seed-0"),  # resumes the first
        (["-n", 5, "--label", 4], "seed-0-2"),
    ):
        outcome = call("sample", broken, *more, "--device", "cpu")
        assert outcome.code == 0, outcome.err
        assert f"{broken / 'samples' / place / 'sheet.png'}, listed" in outcome.out
    counts = {path.name: len(list(path.glob("0*.png"))) for path in (broken / "samples").iterdir() if path.is_dir()}
    assert counts == {"seed-0": 5, "seed-0-2": 5, "seed-0-3": 2, "seed-0-4": 4}
    shows = json.loads((broken / "samples" / "seed-0-2" / "samples.json").read_text())
    assert [line["condition"] for line in shows] == ["4"] * 5


def test_many_samples_go_on_where_they_stopped(
    call: Call, refused: Call, digits_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, command = tmp_path / "out", ("sample", digits_run, "--out", tmp_path / "out", "--device", "cpu", "-n")
    save, written = requests.save_picture, []

    def interrupted(picture: Image.Image, path: Path) -> None:
        save(picture, path)
        written.append(path.name)
        if path.name == "00100-0.png" and len(written) == 101:
            raise KeyboardInterrupt

    for module in (modality, requests):
        monkeypatch.setattr(module, "save_picture", interrupted)
    stopped = call(*command, 150)
    assert (stopped.code, "run the same command again" in stopped.err) == (130, True)
    assert len(list(out.glob("*.png"))) == 101
    (out / "00070-0.png").rename(out / "00070.png")  # as versions before named it
    before = (out / "00000-0.png").stat().st_mtime_ns
    written.clear()
    again = call(*command, 150)
    assert (again.code, "resuming after 64 of 150" in again.err) == (0, True)
    names = [f"{index:05}.png" if index == 70 else f"{index:05}-{index % 10}.png" for index in range(150)]
    assert written == [*names[64:], "sheet.png"]
    assert [path.name for path in written_pictures(out)] == names
    assert [line["file"] for line in json.loads((out / "samples.json").read_text())] == names
    assert (out / "00000-0.png").stat().st_mtime_ns == before
    pixels = load(digits_run, "cpu").sample(150)
    for index in (0, 63, 64, 70, 100, 149):
        with Image.open(out / names[index]) as picture:
            assert np.array_equal(np.asarray(picture.convert("L")), pixels[index, 0].numpy())
    refused("holds the pictures of another request", *command, 150, "--guidance", 3)
    assert len(list(out.glob("0*.png"))) == 150
    refused("holds 150 samples of this request: ask for as many", *command, 20)
    assert len(list(out.glob("0*.png"))) == 150
    (out / "00001-1.png").write_bytes(b"xx")
    refused("a picture in .* is damaged .*: delete it", *command, 150)
    for damage in ("[", "[" * 100_000):
        (out / "sampling.json").write_text(damage)
        refused("holds the pictures of another request", *command, 150)
    (out / "sampling.json").unlink()
    refused("holds pictures that no request of unfog wrote", *command, 150)
    assert len(list(out.glob("0*.png"))) == 150


def test_a_request_that_cannot_be_met_touches_nothing(call: Call, refused: Call, unconditional_run: Path) -> None:
    command = ("sample", unconditional_run, "-n", 2, "--device", "cpu", "--seed", 9)
    assert call(*command).code == 0
    before = {path: path.read_bytes() for path in (unconditional_run / "samples" / "seed-9").iterdir()}
    refused("guidance needs a model", *command, "--guidance", 2)
    assert {path: path.read_bytes() for path in (unconditional_run / "samples" / "seed-9").iterdir()} == before


def test_prompts_in_turn_are_one_request(call: Call, tmp_path: Path) -> None:
    data, out = write_pictures(tmp_path / "data"), tmp_path / "run"
    lines = [{"file_name": path.name, "text": "a thing"} for path in sorted(data.glob("*.png"))]
    (data / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    text = ("--set", "conditioning=text", "--set", "conditioning.width=32")
    assert call("train", "folder", "--data", data, *SMALL, *text, "--out", out).code == 0
    for count in (1, 3):
        asked = ("--prompt", "red", "--prompt", "blue", "--out", tmp_path / "samples", "--device", "cpu")
        assert call("sample", out, "-n", count, *asked).code == 0
    assert json.loads((tmp_path / "samples" / "sampling.json").read_text())["asked"] == ["red", "blue"]
    found = load(out, "cpu").sample(3, ["red", "blue", "red"])
    with Image.open(tmp_path / "samples" / "00002-red.png") as picture:
        assert np.array_equal(np.asarray(picture.convert("L")), found[2, 0].numpy())


def test_sample_has_a_place_of_its_own_for_each_seed(call: Call, broken: Path) -> None:
    """What is drawn there belongs to the run, which is evaluated as a whole."""
    for seed in (0, 5):
        outcome = call("sample", broken, "-n", 1, "--seed", seed, "--device", "cpu")
        assert outcome.code == 0
        assert f"unfog evaluate {broken};" in outcome.out
        assert "--real" not in outcome.out
        assert (broken / "samples" / f"seed-{seed}" / "00000-0.png").is_file()


def test_sample_takes_every_option(call: Call, table_run: Path, tmp_path: Path) -> None:
    more = ["--label", 3, "--solver", "heun", "--grid", "karras", "--guidance", 2.5, "--precision", "bfloat16"]
    outcome = call("sample", table_run, "-n", 2, *more, "--out", tmp_path / "out", "--device", "cpu")
    assert outcome.code == 0, outcome.err
    pixels = load(table_run, "cpu", "bfloat16").sample(2, 3, solver="heun", grid="karras", guidance=2.5)
    with Image.open(tmp_path / "out" / "00001-3.png") as picture:
        assert np.array_equal(np.asarray(picture.convert("L")), pixels[1, 0].numpy())


@pytest.mark.skipif(not able(), reason="needs a processor with products of bytes")
def test_sample_in_int8_says_how_exact_it_is(call: Call, digits_run: Path, tmp_path: Path) -> None:
    more = ["-n", 2, "--label", 3, "--out", tmp_path / "out", "--device", "cpu"]
    outcome = call("sample", digits_run, *more, "--precision", "int8")
    assert outcome.code == 0, outcome.err
    assert re.search(r"int8 in \d+ layers: the predicted x0 differs by \d+\.\d % \(root mean square\)", outcome.err)
    pixels = load(digits_run, "cpu").quantized().sample(2, 3)
    with Image.open(tmp_path / "out" / "00001-3.png") as picture:
        assert np.array_equal(np.asarray(picture.convert("L")), pixels[1, 0].numpy())
    outcome = call("sample", digits_run, *more)
    assert outcome.code == 2  # the folder holds samples that were drawn in int8


def test_tune_shows_what_helps_and_keeps_it_only_if_asked(call: Call, broken: Path) -> None:
    few = ["--steps", 3, "--solver", "dpmpp-2m", "--guidance", 2, "--device", "cpu"]
    outcome = call("tune", broken, *few, "--rounds", 2)
    assert outcome.code == 0, outcome.err
    assert re.search(r"^3 +6 +\S+ +[\d.e-]+ +[\d.e-]+ +0\.\d+$", outcome.out, re.MULTILINE)
    assert "nothing is changed in the run folder: --save keeps it there" in outcome.out
    assert not (broken / "tuned.json").exists()
    outcome = call("tune", broken, *few, "--rounds", 2, "--save")
    assert f"kept in {broken / 'tuned.json'}" in outcome.out
    outcome = call("sample", broken, "-n", 1, *few)
    assert outcome.code == 0, outcome.err
    assert "3 steps of dpmpp-2m as tuned; --grid restores the usual ones" in outcome.err
    assert '"solver": "dpmpp-2m (tuned)"' in (broken / "samples" / "seed-0" / "samples.json").read_text()
    outcome = call("sample", broken, "-n", 1, *few, "--grid", "uniform")
    assert "tuned" not in outcome.err
    outcome = call("tune", broken, "--steps", 0, "--device", "cpu")
    assert outcome.code == 2
    assert "the number of steps must be" in outcome.err


def test_points_are_drawn_and_sampled_as_numbers(call: Call, tmp_path: Path) -> None:
    out = tmp_path / "run"
    settings = ("--set", "network.width=16", "--set", "training.images=1024", "--set", "training.reports=1")
    outcome = call("train", "points", *settings, "--set", "sampling.steps=3", "--out", out, "--device", "cpu")
    assert outcome.code == 0, outcome.err
    assert str(out / "plane.png") in outcome.out
    with Image.open(out / "plane.png") as picture:
        assert picture.size[0] > 3 * picture.size[1]  # panels beside each other
    assert call("sample", out, "-n", 5, "--out", tmp_path / "points", "--device", "cpu").code == 0
    assert sorted(path.name for path in (tmp_path / "points").iterdir()) == [
        "points.csv",
        "samples.json",
        "sampling.json",
        "sheet.png",
    ]
    lines = (tmp_path / "points" / "points.csv").read_text().splitlines()
    found = torch.tensor([[float(value) for value in line.split(",")] for line in lines])
    assert torch.equal(found, load(out, "cpu").sample(5))


@pytest.mark.parametrize("run", ["digits_run", "points_run"])
def test_film_writes_a_strip_animations_and_ways(
    call: Call, tmp_path: Path, run: str, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(run)
    outcome = call("film", folder, "-n", 3, "--steps", 5, "--out", tmp_path / "film", "--device", "cpu")
    assert outcome.code == 0, outcome.err
    names = ["film.gif", "film.mp4", "paths.png", "strip.png"]
    assert sorted(path.name for path in (tmp_path / "film").iterdir()) == names
    with av.open(tmp_path / "film" / "film.mp4") as video:
        assert sum(1 for _ in video.decode(video=0)) == 6 + 2000 // 80
    with Image.open(tmp_path / "film" / "film.gif") as film:
        assert film.n_frames == 6  # type: ignore[attr-defined]
    with Image.open(tmp_path / "film" / "strip.png") as strip:
        assert strip.size[0] >= 8 * 64
    assert str(tmp_path / "film" / "film.gif") in outcome.out


@pytest.mark.parametrize(
    "run",
    [
        pytest.param("digits_run", marks=pytest.mark.slow),
        pytest.param("table_run", marks=pytest.mark.slow),
        "points_run",
    ],
)
def test_evaluate_measures_the_likelihood(call: Call, tmp_path: Path, run: str, request: pytest.FixtureRequest) -> None:
    """Of pictures and of points, on flow and on a table; the same rows give the same figures."""
    shutil.copytree(request.getfixturevalue(run), tmp_path / "run")
    outcome = call("evaluate", tmp_path / "run", "--likelihood", 6, "--device", "cpu")
    assert outcome.code == 0, outcome.err
    written = (tmp_path / "run" / "likelihood.json").read_text()
    found = json.loads(written)
    for split in ("train", "held_out"):
        for value in found[split].values():
            assert math.isfinite(value)
    if run != "points_run":  # 8 bits a pixel is what knowing nothing costs
        assert 2 < found["held_out"]["flow"] < 12
        assert 2 < found["held_out"]["bound"] < 14
    assert "held out" in outcome.out
    if run != "table_run":  # whose thousand steps take long
        assert call("evaluate", tmp_path / "run", "--likelihood", 6, "--device", "cpu").code == 0
        assert (tmp_path / "run" / "likelihood.json").read_text() == written
    assert call("evaluate", tmp_path / "run", "--likelihood", 0, "--device", "cpu").code == 2
    ignored = call("evaluate", tmp_path / "run", "--likelihood", 6, "--guidance", 2, "--device", "cpu")
    assert ignored.code == 2
    assert "--guidance is for samples, and --likelihood measures real rows" in ignored.err


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["target=eps", "schedule=flow"], "Eps cannot be solved at t = 1"),
        (["target=eps", "schedule=zero-terminal-snr"], "Eps cannot be solved at t = 1"),
        (["schedule=shifted", "schedule.shift=-1"], "the shift of a schedule must be above 0, not -1"),
        (["schedule=shifted", "schedule.base=lineer"], "unknown schedule 'lineer': did you mean 'linear'"),
        (['schedule.kind="linear"'], "unknown setting 'schedule.kind'"),
        (["schedule=edm", "target=edm", "solver=adams-bashforth", "solver.order=2.5"], "solver.order must be int"),
        (["solver=adams-bashforth", "solver.order=7"], "whole number from 1 to 4, not 7"),
        (["solver=unipc", "solver.p=1"], "whole number from 2 to 3, not 1"),
        (["grid=times", "grid.shares=[1, 0.2, 0.5, 0.1, 0]"], "do not fall"),
        (["grid=times", "grid.shares=[1.5, 0.2, 0.15, 0.1, 0]"], "shares of t_max"),
        (["grid=leading", "grid.offset=900"], "leaves the clock"),
        (["sampling.guidance_interval=[0.2, 1.5]"], r"interval from 0.2 to 1.5 does not lie on the clock"),
        (["sampling.guidance_interval=[0.6, 0.2]"], "does not lie on the clock"),
        (["sampling.guidance_interval=[0.6]"], "guidance_interval must be two times"),
        (["sampling.guidance_kind=cfg++"], "cfg\\+\\+ works only with first-order rules"),
        (["schedule=table", "schedule.alphas_cumprod=[0.5, 0.6]"], "alphas_cumprod must fall strictly"),
        (["schedule=zero-terminal-snr", "schedule.base=flow"], "needs a discrete schedule of 2 steps or more"),
        (["times=importance", "times.bins=0"], "bins and window of 1 or more"),
        (["solver=euler", "solver.clock=edm", "schedule=zero-terminal-snr", "target=v"], "ends at pure noise"),
    ],
)
def test_impossible_mathematics_gets_a_sentence(call: Call, tmp_path: Path, settings: list[str], sentence: str) -> None:
    """Exit code 2, one line, and nothing written."""
    out = tmp_path / "run"
    words = [word for setting in ("sampling.steps=4", *settings) for word in ("--set", setting)]
    outcome = call("train", "digits", "--out", out, *words)
    assert outcome.code == 2
    assert re.search(sentence, outcome.err), outcome.err
    assert len(outcome.err.strip().splitlines()) == 1
    assert not out.exists()


def test_recipes_are_listed(call: Call) -> None:
    outcome = call("recipes")
    assert outcome.code == 0
    for name in ("points", "digits", "mnist", "fashion", "cifar10", "folder", "tutorial"):
        assert re.search(rf"^\s*{name} ", outcome.out, re.MULTILINE)


def test_the_settings_of_a_recipe_and_of_a_run_are_explained(call: Call, digits_run: Path, refused: Call) -> None:
    outcome = call("recipe", "digits", "--set", "lr=1e-4", "--set", "solver=heun")
    assert (outcome.code, outcome.err) == (0, "")
    for words in ("optimizer.lr = 0.0001", "Peak learning rate.", "short: lr", "solver.churn = 0.0", "unipc"):
        assert words in outcome.out
    assert "training.images = 512" in call("recipe", digits_run).out
    refused("is no run folder", "recipe", "runs/nowhere")
    refused("unknown recipe 'digts': did you mean 'digits'", "recipe", "digts")


def test_the_version_is_told(call: Call) -> None:
    outcome = call("--version")
    assert (outcome.code, outcome.out, outcome.err) == (0, f"unfog {unfog.__version__}\n", "")


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_help_holds_the_examples(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([verb, "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    examples = re.findall(r"^ +(unfog .+)$", VERBS[verb].__doc__ or "", re.MULTILINE)
    assert len(examples) >= (0 if verb == "recipes" else 2)
    for example in examples:
        assert example in shown


@pytest.mark.parametrize("verb", [*sorted(VERBS), *(f"edit {edit}" for edit in EDITS)])
def test_help_has_one_list_of_options(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([*verb.split(), "--help"])
    shown = capsys.readouterr().out
    assert len(re.findall(r"^\W*(?:\w+ )*options\W*$", shown, re.MULTILINE)) == 1
    assert not re.findall(r"--[a-z]+\.", shown)  # the name of a dataclass before that of its field
    words = " ".join(re.sub(r"[│|]", " ", shown).split())
    for flag, text in {"--device": "cpu, cuda, cuda:1, mps, or auto", "--guidance FLOAT": "is off"}.items():
        assert flag not in shown or text in words
    assert not re.findall(r"\{None\}|\(default: ?(?:None|'')?\)|--no-", words)  # what is said of nothing


def test_the_help_lists_the_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    for verb in ("train", "sample", "film", "evaluate", "recipes"):
        assert verb in shown


# As a program


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ})


@pytest.mark.parametrize(
    "act", ["import unfog", "from unfog.cli.main import main; main(['--help'])", "import unfog.cli.main"]
)
def test_nothing_heavy_is_imported_before_it_is_needed(act: str) -> None:
    heavy = ("torch", "numpy", "matplotlib", "sklearn", "PIL")
    code = (
        f"import atexit, sys; atexit.register(lambda: print('found', [n for n in {heavy} if n in sys.modules])); {act}"
    )
    found = python(code)
    assert found.returncode == 0, found.stderr
    assert found.stdout.endswith("found []\n")


def test_sampling_imports_no_library_that_it_does_not_use(digits_run: Path, tmp_path: Path) -> None:
    """Each of these takes a sixth of a second; a sheet's letters come from matplotlib's folder all the same."""
    words = ["sample", str(digits_run), "-n", "1", "--steps", "1", "--out", str(tmp_path / "one"), "--device", "cpu"]
    unused = ("matplotlib", "scipy", "sklearn", "unfog.training.trainer", "unfog.data.folder", "unfog.data.inspect")
    found = python(
        f"import sys; from unfog.cli.main import main; code = main({words}); "
        f"print('found', [n for n in {unused} if n in sys.modules]); sys.exit(code)"
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.endswith("found []\n")


def test_the_program_hands_its_exit_code_on(tmp_path: Path) -> None:
    program = shutil.which("unfog", path=str(Path(sys.executable).parent))
    if program is None:
        pytest.skip("the program is not installed beside this python")
    found = subprocess.run([program, "sample", str(tmp_path)], capture_output=True, text=True)
    assert found.returncode == 2
    said = [line for line in found.stderr.splitlines() if "at work for" not in line]  # on a busy machine
    assert len(said) == 1
    assert said[0].startswith(f"unfog: {tmp_path} is no run folder")
    assert found.stdout == ""


def test_comparing_nothing_is_a_sentence(refused: Call) -> None:
    refused("name the run folders to compare", "compare")


def test_a_home_folder_in_one_word_with_its_flag(
    call: Call, digits_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert call("sample", digits_run, "-n", 1, "--steps", 1, "--out=~/mine", "--device", "cpu").code == 0
    assert (tmp_path / "mine" / "00000-0.png").is_file()
    assert not (tmp_path / "~").exists()


def test_a_step_beyond_counting_is_a_sentence(refused: Call, digits_run: Path) -> None:
    refused("there is no step 1000000000000000000000000000000", "replay", digits_run, "--step", 10**30)


def test_processes_that_nobody_started(refused: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    refused("WORLD_SIZE asks for 2 processes, but RANK", "train", "digits", "--out", tmp_path / "run")


# What is asked, in turn


def conditions(out: Path) -> list[str]:
    return [line["condition"] for line in json.loads((out / "samples.json").read_text())]


def test_labels_in_turn(call: Call, refused: Call, digits_run: Path, tmp_path: Path) -> None:
    command = ("sample", digits_run, "--device", "cpu", "--steps", 1, "-n", 12, "--out")
    assert call(*command, tmp_path / "some", "--label", "3,5, 8").code == 0
    assert conditions(tmp_path / "some") == ["3", "5", "8"] * 4
    assert (tmp_path / "some" / "00004-5.png").is_file()
    assert call(*command, tmp_path / "all", "--label", "all").code == 0
    assert conditions(tmp_path / "all") == [str(number % 10) for number in range(12)]
    refused("unknown label 'cat'", *command, tmp_path / "none", "--label", "3,cat")
    few = call(*command[:-2], 12, "--out", tmp_path / "few", "--label", "all", "-n", 4)
    assert "4 samples show the first 4 of 10: -n 10 shows all" in few.err


def test_a_class_that_is_called_all_is_drawn(digits_run: Path) -> None:
    recipe = load(digits_run, "cpu").recipe
    named = replace(recipe, classes=("all", "a,b", *recipe.classes[2:]))
    with pytest.warns(UserWarning, match="'all' is a class of this model"):
        assert asking.labels(named, "all") == "all"
    assert asking.labels(named, "a,b") == "a,b"
    assert asking.labels(named, "2,3") == ("2", "3")
    assert asking.labels(named, "2, a,b,3") == ("2", "a,b", "3")
    assert asking.labels(recipe, "all") == recipe.classes


def test_prompts_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes("\ufeffa red circle\r\n\n  über \n".encode())
    assert asking.prompts_in(file) == ("a red circle", "über")
    for data, sentence in {
        b"\n \n": "holds 0 prompts",
        b"a\n\xff\n": "line 2, is not UTF-8",
        b"a\n" * 10_001: "holds 10,001 prompts: give 1 to 10,000",
        b"a" * (1 << 21): "more than 1,048,576 bytes",
    }.items():
        file.write_bytes(data)
        with pytest.raises(UserError, match=sentence):
            asking.prompts_in(file)
    with pytest.raises(UserError, match="cannot be read"):
        asking.prompts_in(tmp_path / "none")


def test_prompts_twice_are_refused(refused: Call, digits_run: Path) -> None:
    refused("give one of them", "sample", digits_run, "--prompt", "a", "--prompts", "b", "--device", "cpu")


def test_nothing_is_written_among_the_data(call: Call, refused: Call, tmp_path: Path) -> None:
    """Where the next training would read it."""
    data, run = write_pictures(tmp_path / "data" / "cats").parent, tmp_path / "run"
    write_pictures(data / "dogs", seed=1)
    refused("lies in .*, the data of the model", "train", "folder", "--data", data, *SMALL, "--out", data / "run")
    assert call("train", "folder", "--data", data, *SMALL, "--out", run).code == 0
    (tmp_path / "link").symlink_to(data)
    picture = data / "cats" / "0.png"
    before = sorted(data.rglob("*"))
    edit = ("edit", "restyle", run, "--image", picture, "--label", "cats")
    for verb in (("sample", run, "-n", 1), ("film", run), ("report", run), edit):
        for out in (data, data / "cats" / "new", tmp_path / "link" / "new"):
            refused(
                "lies in .*, the data of the model, .*: choose another --out", *verb, "--device", "cpu", "--out", out
            )
    assert sorted(data.rglob("*")) == before
    outcome = call("sample", run, "-n", 2, "--device", "cpu", "--out", tmp_path / "out")
    assert (tmp_path / "out" / "00001-dogs.png").is_file()
    assert f"unfog evaluate {tmp_path / 'out'} --real" in outcome.out
    assert f"unfog evaluate {run}" in outcome.out
