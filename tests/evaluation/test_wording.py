"""How good a figure is, in words: one vocabulary, where it comes from, and what helps."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from unfog.cli.main import main
from unfog.diffusion.grids import KarrasGrid
from unfog.diffusion.solvers import DDIM
from unfog.evaluation.advice import advice, doubt
from unfog.evaluation.classes import Classes, OfClass
from unfog.evaluation.intervals import Protocol, Scored, Sets
from unfog.evaluation.neighbours import Memorised
from unfog.evaluation.wording import in_words, score_table, standing
from unfog.runtime import provenance
from unfog.runtime.provenance import commanded


def score(value: float, floor: float, ceiling: float, low: float | None = None, high: float | None = None) -> Scored:
    return Scored(value, low, high, 100, floor, ceiling, Protocol("m", "f", Sets("d", 100, 0)))


@pytest.mark.parametrize(
    ("name", "found", "words"),
    [
        ("recall", score(0.5, 0.9, 0.1), "50% of the way to noise"),
        ("recall", score(0.95, 0.9, 0.1), "like real data"),
        ("recall", score(0.05, 0.9, 0.1), "like noise"),
        ("recall", score(0.5, 0.3, 0.9), "noise scores as well"),
        ("frechet/pixels", score(1.0, 0.2, 8.2), "10% of the way to noise"),
        ("frechet/pixels", score(0.3, 0.2, 8.2, 0.1, 0.5), "like real data"),
        ("frechet/pixels", score(0.1, 0.2, 8.2), "like real data"),
        ("frechet/classifier", score(0.902, 0.202, 52.7, 0.551, 1.17), "4.5 times real data"),
        ("frechet/classifier", score(0.25, 0.202, 52.7, 0.21, 0.3), "1.2 times real data"),
        ("frechet/classifier", score(0.21, 0.202, 52.7), "like real data"),
        ("kernel/pixels", score(1.0, -0.2, 50.0), "2% of the way to noise"),
        ("adherence", score(0.9, 0.95, 0.1, 0.85, 0.94), "6% of the way to noise"),
        ("psnr", score(30.0, 100.0, 10.0), "1% of the way to one mean picture"),
        ("kernel/pixels", score(6319, -2473, 9000, -3846, 16484), "too uncertain to tell"),
    ],
)
def test_a_figure_stands_between_real_data_and_noise(name: str, found: Scored, words: str) -> None:
    assert standing(name, found) == words
    assert words in score_table({"a": {name: found}})


def test_sets_stand_below_each_other_in_lines_that_every_terminal_holds() -> None:
    found = score(0.902, 0.202, 52.7, 0.551, 1.17)
    sets = {f"guidance {scale}": {"frechet/classifier": found, "recall": score(0.5, 0.9, 0.1)} for scale in (1, 2, 3)}
    head, *lines = score_table(sets).splitlines()
    assert head.split() == ["score", "guidance", "value", "real", "data", "noise"]
    assert max(map(len, lines)) <= 100
    assert [line.split()[0] for line in lines] == ["frechet/classifier", "2", "3", "recall", "2", "3"]
    assert all(line.endswith("4.5 times real data") for line in lines[:3])
    assert ["0.202" in line for line in lines[:3]] == [True, False, False]  # one floor for all


def test_a_wider_network_is_advised_with_its_width() -> None:
    poor = {"samples": {"coverage": score(0.5, 0.9, 0.1)}}
    assert "(`--set network.width=96`, 64 now)" in advice(poor, width=64)
    assert "(`--set network.width=...`; `unfog recipe runs/a` shows its own)" in advice(poor, run="runs/a")


def test_more_steps_are_advised_only_where_there_are_any() -> None:
    for name in ("frechet/classifier", "precision"):
        poor = {"samples": {name: score(0.5, 0.9, 0.1) if name == "precision" else score(30.0, 0.2, 50.0)}}
        assert "more steps" in advice(poor)
        assert "steps" not in advice(poor, stepped=False)
        assert "train longer" in advice(poor, stepped=False)


def test_the_worst_figure_and_what_helps_are_named() -> None:
    good = {"frechet/pixels": score(0.3, 0.2, 8.2, 0.1, 0.5), "recall": score(0.9, 0.9, 0.1)}
    poor = {**good, "recall": score(0.5, 0.9, 0.1)}
    assert advice({"samples": good}) == "Every figure is like that of real data."
    near = advice({"samples": {**good, "recall": score(0.88, 0.9, 0.1)}})
    assert near.startswith(
        "Every figure is near that of real data; the worst is recall, 0.88 where real data scores 0.9"
    )
    said = advice({"guidance 1": good, "guidance 2": poor})
    assert said.startswith("Worst: recall (guidance 2), 0.5 where real data scores 0.9, 50% of the way to noise.")
    assert "What usually helps: guidance 1, which scores 0.9 here; train longer" in said
    assert "guidance" not in advice({"samples": poor}, guided=False)
    assert "What usually helps: more steps (`--steps 2`); " in advice({"samples": poor}, guided=False, jumps=1)
    assert "--steps" not in advice({"samples": poor}, guided=False, jumps=8), "enough"
    copied = Memorised(0.5, 0.5, 0.01, 0.0, True, 0.001, ())
    assert advice({"samples": good}, {"pixels": copied}).startswith("Worst: there are copies of training rows")
    assert advice({"samples": good}, {"pixels": replace(copied, copies=False)}) == advice({"samples": good})


def test_only_what_was_not_tried_is_advised_and_with_its_command() -> None:
    shy, keen = score(0.25, 0.6, 0.1), score(0.5, 0.6, 0.1)
    alone = advice({"guidance 1": {"adherence": shy}}, run="runs/a")
    assert (
        "helps: more guidance (`unfog evaluate runs/a --guidance 2 3`); train longer (`unfog train --init-from" in alone
    )
    assert "more guidance" in advice({"guidance 1": {"adherence": keen}, "guidance 3": {"adherence": shy}})
    assert "more guidance" not in advice({"guidance 3": {"adherence": shy}, "guidance 1": {"adherence": keen}})
    low, lower = score(0.7, 0.9, 0.1), score(0.6, 0.9, 0.1)
    assert "less guidance (`unfog evaluate RUN --guidance 1 3`)" in advice({"guidance 3": {"recall": low}})
    assert "less guidance" not in advice({"guidance 1": {"recall": lower}, "guidance 3": {"recall": low}})
    assert "less guidance" not in advice({"guidance 1": {"recall": low}})


def test_the_class_that_fails_most_is_named_whatever_is_the_worst_figure() -> None:
    """Unless all of them are read about as often as real rows."""
    dog, cat = (OfClass(name, 50, score(value, 0.9, 0.1), None, None) for name, value in (("dog", 0.4), ("cat", 0.87)))
    low = {"guidance 1": {"recall": score(0.5, 0.9, 0.1)}}
    said = advice(low, classes=Classes((cat, dog), ("cat", "dog"), None, None))
    assert " Of the classes dog fails most: 0.4 of its samples are read as asked, real data 0.9. What usually" in said
    assert "fails most" not in advice(
        low, classes=Classes((cat, replace(dog, adherence=cat.adherence)), (), None, None)
    )
    assert "fails most" not in advice(low, classes=Classes((dog,), ("dog",), None, None))


def test_a_weak_classifier_is_doubted() -> None:
    assert doubt(0.636).startswith("The classifier is a weak judge here: it misreads 36% of real rows.")
    assert doubt(0.95) == doubt(None) == ""
    assert doubt(0.636).endswith(", or give --judge thorough.")
    assert "--judge" not in doubt(0.636, thorough=True)


def test_parts_are_named_as_in_recipes() -> None:
    assert in_words("solver", DDIM()) == "ddim"
    assert in_words("solver", DDIM(eta=0.5)) == "ddim (eta=0.5)"
    assert in_words("grid", KarrasGrid()) == "karras"


def test_a_figure_tells_no_path_and_no_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of the command, date, processor and version; in Python that it was a call."""
    words = [
        "evaluate",
        str(tmp_path / "run"),
        "--data=~/pictures",
        "--real",
        "../../someone/photos",
        "runs/a",
        "-n",
        "9",
    ]
    with commanded(words):
        found = provenance.provenance()
    assert found.command == "unfog evaluate …/run --data=…/pictures --real …/photos runs/a -n 9"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", found.date)
    assert re.search(r", \d+ cores?", found.machine)
    assert provenance.platform.node() not in str(found).replace(found.command, "")
    assert provenance.provenance().command == "a call from Python"
    monkeypatch.setattr(provenance, "_git", lambda *words: None)
    provenance.version.cache_clear()
    assert provenance.version() == provenance.__version__
    monkeypatch.setattr(provenance, "_git", lambda folder, *words: "abc-dirty" if "describe" in words else "")
    provenance.version.cache_clear()
    assert provenance.version() == f"{provenance.__version__} (commit abc-dirty)"
    provenance.version.cache_clear()


def test_a_command_ends_with_its_line() -> None:
    assert main(["recipes"]) == 0
    assert provenance.COMMAND.get() == ()
