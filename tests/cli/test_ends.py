"""How commands end: by Ctrl-C, in folders that are not for us to write, and with names and files that are no text."""

import gc
import io
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from unfog import __main__ as program
from unfog.cli import main as commands
from unfog.cli import terminal
from unfog.cli.main import main
from unfog.interop.card import facts
from unfog.runs.run import load
from unfog.runtime import files
from unfog.training import checkpoint


@pytest.fixture
def interrupts() -> None:
    """Put the handler of Ctrl-C back, and the pace of the garbage collection."""
    before, pace = signal.getsignal(signal.SIGINT), gc.get_threshold()
    yield
    signal.signal(signal.SIGINT, before)
    gc.set_threshold(*pace)


@pytest.mark.parametrize("handler", [signal.default_int_handler, signal.SIG_IGN])
def test_ctrl_c_outside_of_a_verb_leaves_no_traceback(
    handler: Callable[..., object], interrupts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the modules load it ends the process at once, within a verb it is a sentence; where it is ignored it is."""
    seen = []
    signal.signal(signal.SIGINT, handler)
    monkeypatch.setattr(commands, "main", lambda started: seen.append(signal.getsignal(signal.SIGINT)) or 0)
    assert program.command() == 0
    assert gc.isenabled()
    assert gc.get_threshold()[0] == program.OBJECTS
    seen.append(signal.getsignal(signal.SIGINT))
    assert seen == [handler, signal.SIG_DFL if handler is signal.default_int_handler else handler]


class Closed(io.StringIO):
    """A stream that cannot be written."""

    def flush(self) -> None:
        """Fail."""
        raise OSError("no space left")


@pytest.mark.parametrize(
    ("codes", "stream", "left"), [([3], io.StringIO(), [3]), ([], io.StringIO(), []), ([0], Closed(), [])]
)
def test_the_process_ends_at_once_unless_something_is_to_be_told(
    codes: list[int], stream: io.StringIO, left: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bug's traceback, and words that cannot be written, are Python's to end with."""
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    monkeypatch.setattr(sys, "stdout", stream)
    program._leave(codes)
    assert ended == left


@pytest.mark.parametrize("words", [["sample"], ["tune", "nowhere", "--bogus"]])
def test_a_usage_error_ends_cleanly_while_libraries_load(words: list[str]) -> None:
    """With one core they are surely still being loaded then."""
    command = [sys.executable, "-m", "unfog", *words]
    pinned = {0} if not hasattr(os, "sched_getaffinity") else {min(os.sched_getaffinity(0))}

    def pin() -> None:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, pinned)

    for _ in range(3):
        ended = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=pin)
        assert ended.returncode == 2
        assert "corrupted" not in ended.stderr


def test_what_is_registered_to_run_at_the_end_runs(tmp_path: Path) -> None:
    """And the exit code is the command's."""
    part, trace = tmp_path / "part.py", tmp_path / "trace"
    part.write_text(f"import atexit, pathlib\natexit.register(pathlib.Path({str(trace)!r}).touch)\n")
    command = [sys.executable, "-m", "unfog", "plan", "nowhere", "--import", str(part)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "nowhere" in ended.stderr
    assert trace.is_file()


def test_ctrl_c_within_an_import_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Some libraries turn it into an error of their own."""

    def interrupted() -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as error:
            raise ImportError("numpy failed to import") from error

    monkeypatch.setitem(commands.VERBS, "recipes", interrupted)
    assert main(["recipes"]) == 130
    assert capsys.readouterr().err == "unfog: stopped\n"


@pytest.mark.parametrize("words", [["recipes"], ["recipe", "digits"], ["plan", "nowhere"], ["train", "digits"]])
def test_a_reader_that_goes_ends_no_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    """Both streams are pipes that nobody reads, as behind `| head`; the exit code is that of the work."""
    small = ("width=8", "images=64", "reports=1", "sampling.steps=2", "sampling.batch=64")
    if words[0] == "train":
        words = [*words, "--out", str(tmp_path), "--device", "cpu", *(f"--set={one}" for one in small)]
    with monkeypatch.context() as patch, ExitStack() as ends:
        for name in ("stdout", "stderr"):
            reader, writer = os.pipe()
            os.close(reader)
            patch.setattr(sys, name, ends.enter_context(os.fdopen(writer, "w")))  # closing it flushes what is left
        assert main(words) == (2 if words[0] == "plan" else 0)
    assert words[0] != "train" or (tmp_path / "model.safetensors").is_file()


def test_a_silent_verb_says_that_it_is_at_work(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said: list[str] = []

    def slow() -> None:
        while "unfog recipes: at work for 0:00:00" not in "".join(said):
            said.append(capsys.readouterr().err)

    monkeypatch.setattr(terminal, "EVERY", 0.1)
    monkeypatch.setitem(commands.VERBS, "recipes", slow)
    assert main(["recipes"]) == 0


def test_the_first_sign_of_life_comes_after_five_seconds_and_others_after_fifteen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [100.0]

    class Over(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            now[0] += timeout or 0
            return now[0] > 140

    monkeypatch.setattr(terminal, "EVERY", 15.0)
    monkeypatch.setattr("unfog.cli.terminal.time.monotonic", lambda: now[0])
    heard = io.StringIO()
    terminal._signs_of_life("report", (terminal.Lasting(io.StringIO()), terminal.Lasting(heard)), Over())
    assert [line[-7:] for line in heard.getvalue().splitlines()] == ["0:00:05", "0:00:20", "0:00:35"]


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["explain", "--step", "5"], "x_t"),
        (["evaluate", "--likelihood", "4"], "bits"),
        (["replay", "--step", "1"], "loss"),
        pytest.param(["evaluate", "-n", "359"], "frechet", marks=pytest.mark.slow),
    ],
)
def test_what_was_measured_is_printed_where_nothing_can_be_written(
    digits_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], shown: str
) -> None:
    def refused(path: Path, folder: bool = False) -> None:
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr(files, "sync", refused)
    assert main([words[0], str(digits_run), *words[1:], "--device", "cpu"]) == 1
    printed = capsys.readouterr()
    assert shown in printed.out
    assert "cannot write" in printed.err
    assert "Read-only file system" in printed.err


@pytest.mark.parametrize("verb", ["sample", "train"])
def test_a_folder_that_is_no_text_is_refused_before_any_work(
    digits_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    """Safetensors could not write there: such a training was 'damaged' at its end."""
    odd = tmp_path / os.fsdecode(b"run\xff")
    words = [verb, "digits", "--out", str(odd)]
    if verb == "sample":
        (tmp_path / "link").symlink_to(digits_run)
        (tmp_path / "link").rename(odd)
        words = [verb, str(odd)]
    assert main([*words, "--device", "cpu"]) == 2
    assert "is not valid UTF-8, and no weights can be kept there: rename it" in capsys.readouterr().err
    assert os.listdir(os.fsencode(tmp_path)) == ([os.fsencode(odd.name)] if verb == "sample" else [])


def test_only_our_own_numbers_are_those_of_steps(tmp_path: Path) -> None:
    for name in ("²", "٣٣٣٣٣٣٣٣٣", "000000007", "000000010", "1000000000", "7", "9" * 200):
        (tmp_path / name).mkdir()
    assert [path.name for path in checkpoint.steps(tmp_path)] == ["000000007", "000000010", "1000000000"]


OTHERS = (
    "[]",
    "null",
    "{",
    '{"evaluations": [1], "protocol": ""}',
    '{"evaluations": [{"guidance": 1, "scores": []}], "protocol": ""}',
    '{"evaluations": [{"guidance": 1, "scores": {"a": {"value": "x", "floor": 1, "n": 1}}}], "protocol": ""}',
    '{"evaluations": {"a": 1}, "protocol": ""}',
    '{"psnr": 20.0, "rows": 9}',
)


@pytest.mark.parametrize("text", OTHERS)
def test_an_evaluation_of_another_form_is_called_one(broken: Path, text: str) -> None:
    """In the report, and on the page of measurements of the playground."""
    (broken / "evaluation.json").write_text(text)
    said = facts(load(broken, "cpu"))["Evaluation"]
    assert said == ["Unknown: evaluation.json has no scores of samples. Run `unfog evaluate` again."]
