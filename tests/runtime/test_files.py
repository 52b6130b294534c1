"""Folders and files that are written: one process at a time, and the others get a sentence."""

import fcntl
import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from tests.conftest import until
from tests.forked import Forked
from unfog.cli.main import main
from unfog.data.classic import read_idx
from unfog.data.pictures import UnreadableError, describe_picture
from unfog.runs import run as runs
from unfog.runtime import files, tensors
from unfog.runtime.errors import EnvironmentFailure, UserError
from unfog.runtime.files import locked, locked_file, write_output, write_whole

TRAIN = ("train", "digits", "--device", "cpu", "--set", "network.width=8", "--set", "sampling.batch=64")


@contextmanager
def another(lock: Path) -> Iterator[None]:
    """Hold a lock as another process does."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(lock, os.O_RDWR | os.O_CREAT)
    fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(handle)


def test_a_lock_is_held_within_it_and_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "out"
    with locked(folder):
        with locked(folder):  # whoever holds it can take it again
            pass
        assert (folder / ".lock").exists()
    assert not (tmp_path / "new").exists()  # nothing was written
    with locked(folder):
        (folder / "file").touch()
    assert [path.name for path in folder.iterdir()] == ["file"]
    with locked_file(folder / "file"):
        assert (folder / ".file.lock").exists()
    assert [path.name for path in folder.iterdir()] == ["file"]


def test_what_another_process_writes_is_refused_until_it_is_done(tmp_path: Path) -> None:
    with another(tmp_path / ".lock"):
        with (
            pytest.raises(UserError, match=f"another process is writing {tmp_path}: wait until it is done"),
            locked(tmp_path),
        ):
            pass
        assert (tmp_path / ".lock").exists()
    with locked(tmp_path):
        pass


def test_a_folder_in_which_nobody_may_write_needs_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(files.FileLock, "acquire", refuse)
    with locked(tmp_path):
        pass


@pytest.mark.parametrize(
    ("lock", "command"),
    [
        ("out", "train digits --out out"),
        ("run", "train --resume run"),
        ("out", "sample run -n 4 --out out"),
        ("run/samples/seed-0", "sample run -n 4"),
        ("out", "film run --out out"),
        ("out", "edit restyle run --image three.png --label 3 --out out"),
        ("out", "edit inpaint run --image three.png --mask three.png --label 3 --out out"),
        ("out", "edit outpaint run --image three.png --label 3 --left 4 --out out"),
        ("out", "edit invert run --image three.png --label 3 --out out"),
        ("out", "edit interpolate run --images three.png three.png --label 3 --out out"),
        ("out", "edit vary run --image three.png --label 3 --out out"),
        ("run/evaluation", "evaluate run -n 359"),
        ("run/evaluation", "evaluate run --likelihood 8"),
        ("pictures", "evaluate pictures --real pictures"),
        ("run/bench", "bench run"),
        ("run", "bench run --save"),
        ("out", "bench --schedules cosine,flow --out out"),
        ("out", "compare run run --out out"),
        ("out", "average run --length 0.15 --out out"),
        ("out", "replay run --step 1 --out out"),
        ("out", "explain run --step 500 --out out"),
        ("out", "report run --out out"),
        ("out", "import pictures out"),
        ("out", "export run out"),
        ("out", "export run out --to onnx"),
        ("found.json", "verify --json found.json"),
        ("found.json", "inspect pictures --json found.json"),
        ("sheet.png", "inspect pictures --sheet sheet.png"),
    ],
)
def test_every_verb_that_writes_holds_a_lock(
    lock: str,
    command: str,
    digits_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(digits_run, "run", copy_function=os.link)
    picture = digits_run / "samples" / "000000016.png"
    Path("three.png").symlink_to(picture)
    Path("pictures").mkdir()
    Path("pictures", "0.png").symlink_to(picture)
    where = Path(f".{lock}.lock") if "." in lock else Path(lock, ".lock")
    with another(where):
        assert main(command.split()) == 2
    assert re.fullmatch(
        rf"unfog: another process is writing {re.escape(lock)}: wait until it is done, or choose another \w+\n",
        capsys.readouterr().err,
    )
    assert {path.name for path in Path().iterdir()} <= {"run", "three.png", "pictures", "out", where.name}
    if lock == "out":
        assert [path.name for path in Path("out").iterdir()] == [".lock"]


def test_what_is_no_file_is_written_through_where_the_user_named_it(tmp_path: Path) -> None:
    """And a link stays a link; a folder is refused."""
    pipe, link, taken = (tmp_path / name for name in ("pipe", "link", "taken"))
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_output(pipe, b"through")
    assert (os.read(reader, 99), pipe.is_fifo()) == (b"through", True)
    os.close(reader)
    link.symlink_to("target")
    write_output(link, b"data")
    assert (link.is_symlink(), (tmp_path / "target").read_bytes()) == (True, b"data")
    taken.mkdir()
    with pytest.raises(EnvironmentFailure, match="a folder has this name"):
        write_output(taken, b"data")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["link", "pipe", "taken", "target"]


@pytest.mark.parametrize("name", ["null", "stdout", "/proc/self/fd/1"])
def test_devices_and_what_is_printed_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    """Standard output is a file here, of which nothing that was printed before is overwritten.

    The names are those of /dev, in a folder where a fault does no harm.
    """
    monkeypatch.chdir(tmp_path)
    Path("pictures").mkdir()
    Image.fromarray(np.eye(8, dtype=np.uint8)).save("pictures/0.png")
    Path("stdout").symlink_to("/proc/self/fd/1")
    try:
        os.mknod("null", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    except PermissionError:
        Path("null").symlink_to("/dev/null")
    before = os.lstat(name).st_mode
    print("first")
    assert main(["inspect", "pictures", "--json", name]) == 0
    assert os.lstat(name).st_mode == before
    printed = capfd.readouterr().out
    assert printed.startswith("first\n")
    assert ('"files"' in printed or '"pictures"' in printed) == (name != "null")
    assert printed.endswith(f"all findings: {name}\n")


def test_a_run_writes_into_no_pipe_and_no_device(tmp_path: Path) -> None:
    """There a stranger may have put them."""
    os.mkfifo(tmp_path / "evaluation.json")
    with pytest.raises(EnvironmentFailure, match="a pipe or a device has this name"):
        write_whole(tmp_path / "evaluation.json", b"data")


@pytest.mark.slow
def test_two_trainings_into_one_folder_are_one(tmp_path: Path) -> None:
    out = tmp_path / "run"
    first = Forked(*TRAIN, "--out", out, "--set", "training.images=2048", "--set", "training.batch=32")
    until(lambda: (out / ".lock").exists() or first.returncode is not None)
    second = Forked(*TRAIN, "--out", out)
    _, error = second.ended()
    assert (second.returncode, error) == (
        2,
        f"unfog: another process is writing {out}: wait until it is done, or choose another folder\n",
    )
    assert first.returncode is None, "the first was done before the second had begun"
    first.ended()
    assert first.returncode == 0
    model = load_file(out / "model.safetensors")
    third = Forked(*TRAIN, "--out", out)  # not at once, but afterwards
    assert "holds another run" in third.ended()[1]
    assert third.returncode == 2
    assert all((tensor == load_file(out / "model.safetensors")[name]).all() for name, tensor in model.items())


@pytest.mark.slow
def test_two_requests_into_one_folder_do_not_mix(digits_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "many"

    def request(seed: int) -> Forked:
        words = ("--out", out, "--device", "cpu", "--steps", "8", "--seed", str(seed))
        return Forked("sample", digits_run, "-n", "640", *words)

    both = [request(seed) for seed in (1, 2)]
    said = [one.ended()[1] for one in both]
    assert sorted(one.returncode or 0 for one in both) == [0, 2], said
    winner, loser = sorted(both, key=lambda one: one.returncode or 0)
    refusal = said[both.index(loser)]
    assert "another process is writing" in refusal or "holds the pictures of another request" in refusal
    alone = tmp_path / "alone"
    again = Forked(
        "sample",
        digits_run,
        "-n",
        "640",
        "--out",
        alone,
        "--device",
        "cpu",
        "--steps",
        "8",
        "--seed",
        str(both.index(winner) + 1),
    )
    again.ended()
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in alone.iterdir())
    assert all((out / path.name).read_bytes() == path.read_bytes() for path in alone.glob("*.png"))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_loss_that_was_never_finite_leaves_nothing_to_start_from(
    precision: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    settings = ("--set", "optimizer.lr=1e30", "--set", "optimizer.warmup=0", "--precision", precision)
    assert main([*TRAIN, *settings, "--out", str(out)]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert not list(out.glob("checkpoints/*"))
    other = " or training.precision=float32" if precision == "bfloat16" else ""
    assert said.endswith(f"nothing was saved yet; start anew with a lower optimizer.lr than 1e+30{other}")


def test_a_git_lfs_pointer_is_called_one(broken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    model = broken / "model.safetensors"
    model.write_text(pointer)
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("0.png", "1.png"):
        (photos / name).write_text(pointer)
    idx = tmp_path / "train-images-idx3-ubyte.gz"
    idx.write_text(pointer)
    assert main(["sample", str(broken)]) == 2
    assert f"{model} is a Git LFS pointer and not the file itself: run `git lfs pull`" in capsys.readouterr().err
    with pytest.raises(UserError, match="idx3-ubyte.gz is a Git LFS pointer"):
        read_idx(idx)
    with pytest.raises(UserError, match="idx3-ubyte is a Git LFS pointer"):
        read_idx(idx.rename(idx.with_suffix("")))
    with pytest.raises(UnreadableError, match="Git LFS pointer"):
        describe_picture(photos / "0.png")


def test_a_file_that_may_not_be_read_is_not_called_damaged(
    digits_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(_: object) -> None:
        raise FileNotFoundError(2, "No such file or directory")  # which safetensors says of a file it may not open

    own = Path.open

    def refuse(path: Path, *words: str, **options: Any) -> Any:
        if path.suffix == ".safetensors":
            raise PermissionError(13, "Permission denied")
        return own(path, *words, **options)

    monkeypatch.setattr(tensors, "load_file", missing)
    monkeypatch.setattr(Path, "open", refuse)
    assert main(["sample", str(digits_run)]) == 2
    said = capsys.readouterr().err
    assert "model.safetensors may not be read by you (permission denied)" in said
    assert "damaged" not in said


def test_data_of_a_run_that_are_gone_are_put_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, run = tmp_path / "data", tmp_path / "run"
    data.mkdir()
    for place in range(20):
        Image.fromarray(np.random.default_rng(place).integers(0, 256, (8, 8), np.uint8)).save(data / f"{place}.png")
    words = ["--data", str(data), "--out", str(run), "--size", "8", "--set", "training.images=64", "--device", "cpu"]
    small = ["--set", "network.width=8", "--set", "training.batch=32", "--set", "sampling.batch=64"]
    assert main(["train", "folder", *words, *small]) == 0
    data.rename(tmp_path / "elsewhere")
    for verb in (["evaluate", str(run)], ["bench", str(run)], ["train", "--resume", str(run)]):
        capsys.readouterr()
        assert main(verb) == 2
        assert f"{data} does not exist: the run was trained on it; put it back" in capsys.readouterr().err
    assert main(["train", "folder", "--data", str(data)]) == 2
    assert "check the path" in capsys.readouterr().err


@pytest.mark.parametrize(
    "setting", ["network.width=16", "target=v", "schedule=cosine", "data.size=16", "training.images=9"]
)
def test_settings_on_resume_are_refused_before_anything_is_read(
    setting: str, digits_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("build_data", "read_tensors", "Trainer"):
        monkeypatch.setattr(runs, name, None)
    assert main(["train", "--resume", str(digits_run), "--set", setting]) == 2
    said = capsys.readouterr().err
    assert "--resume continues a run unchanged: give it alone, or with --images or --budget to train it further" in said
