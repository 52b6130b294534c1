"""`--import FILE` on every verb: the file runs first, parts that it registers have names, mistakes get a sentence."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import unfog
from unfog.cli.main import VERBS, main
from unfog.recipes.kinds import KINDS

PARTS = """
from dataclasses import dataclass
import unfog
from my_helper import STEPS

@dataclass(frozen=True)
class Slow(unfog.RectifiedFlow):
    steps_of_mine: int = STEPS

unfog.register("schedule", "mine", Slow)
"""
SMALL = ["--set", "network.width=8", "--set", "training.images=64", "--set", "training.reports=1", "--device", "cpu"]


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Forget what was registered and imported."""
    for field, kinds in KINDS.items():
        monkeypatch.setitem(KINDS, field, dict(kinds))
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith("unfog_imported_") or name == "my_helper":
            del sys.modules[name]


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """A file that registers a schedule, and imports another that lies next to it."""
    (tmp_path / "my_helper.py").write_text("STEPS = 7\n")
    path = tmp_path / "my_parts.py"
    path.write_text(PARTS)
    return path


def test_a_part_of_ones_own_is_trained_and_sampled(parts: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "run")
    assert main(["train", "digits", "--set", "schedule=mine", *SMALL, "--out", out, "--import", str(parts)]) == 0
    assert unfog.load(out, "cpu").recipe.to_json().count('"steps_of_mine": 7') == 1
    for words in (["--import", str(parts), "sample", out], ["sample", out, f"--import={parts}"]):
        assert main([*words, "-n", "1", "--steps", "2", "--device", "cpu"]) == 0


def test_without_the_file_the_name_is_unknown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "digits", "--set", "schedule=mine", *SMALL, "--out", str(tmp_path / "run")]) == 2
    assert "unknown schedule 'mine'" in capsys.readouterr().err


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_verb_runs_the_file_first(verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "parts.py"
    file.write_text("print('it ran')\n")
    with pytest.raises(SystemExit):
        main([verb, "--import", str(file), "--help"])
    assert capsys.readouterr().out.startswith("it ran\n")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("x = 1\n\ndef f():\n    raise KeyError('a')\n\nf()\n", "parts.py, line 4: KeyError: 'a'"),
        ("x = 1\nif x\n", "parts.py, line 2: SyntaxError: expected ':'"),
        ("import unfog\nunfog.register('schedule', 'cosine', int)\n", "parts.py, line 2: UserError: the schedule"),
        ("import nothing_like_it\n", "parts.py, line 1: ModuleNotFoundError: No module named 'nothing_like_it'"),
    ],
)
def test_a_file_that_raises(text: str, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "parts.py"
    file.write_text(text)
    for _ in range(2):  # what failed is tried again
        assert main(["recipes", "--import", str(file)]) == 2
        error = capsys.readouterr().err
        assert sentence in error
        assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--import", "none.py"], "none.py: there is no such file"),
        (["--import", "{folder}"], "there is no such file"),
        (["--import", "{folder}/parts.txt"], "parts.txt: this is no Python file"),
        (["--import"], "--import takes a Python file"),
        (["--import", "--help"], "--import takes a Python file"),
    ],
)
def test_what_is_no_file(words: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "parts.txt").write_text("x = 1")
    assert main(["recipes", *[word.format(folder=tmp_path) for word in words]]) == 2
    assert sentence in capsys.readouterr().err


def test_the_help_names_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "--import FILE" in capsys.readouterr().out
