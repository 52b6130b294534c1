"""`unfog rivals`: families trained alike, measured alike, and a table of them."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

import unfog
from unfog.cli.main import main
from unfog.evaluation import families as modules
from unfog.evaluation import rivals as room
from unfog.evaluation.contest import train_or_resume
from unfog.evaluation.families import FAMILIES, STUDENT, code_lines
from unfog.evaluation.rival_page import Page, spread, table, until, varied
from unfog.evaluation.rivals import Contest, rivals
from unfog.evaluation.trained import Figure, Trained, kept
from unfog.evaluation.variations import BASE, SHORT, STACKED, of_all
from unfog.recipes.build import build_data, build_model
from unfog.recipes.portions import Portion, Stacked
from unfog.recipes.presets import recipe
from unfog.runs.distilling import distill
from unfog.runtime.errors import UserError

QUIET = Console(quiet=True)
QUICK = (
    "training.batch=16",
    "training.reports=1",
    "training.choices=reference",
    "sampling.steps=3",
    "sampling.batch=64",
)
TRAINED = Trained("GAN", 0, 6400, 1000, {"recall": Figure(0.5, 0.4, 0.6, 0.9, 0.01)}, 0.02, 0.01, 0.1, 0.01)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings of 128 pictures instead of seconds, which a busy machine does not have."""

    def of_images(recipe: unfog.Recipe, folder: Path, budget: float, device: str, console: Console | None) -> None:
        train_or_resume(recipe.set("training.images=128"), folder, None, device, console)

    def student(teacher: Path, out: Path, *, budget: float, device: str, console: Console | None) -> None:
        distill(teacher, out, images=128, rows=64, device=device, console=console)

    for name, value in {"LIKELY": 4, "MANY": 8}.items():
        monkeypatch.setattr(room, name, value)
    for name, value in {"WATCHED": 8, "STEPS": 3}.items():
        monkeypatch.setattr(f"unfog.evaluation.habits.{name}", value)
    monkeypatch.setattr(room, "train_or_resume", of_images)
    monkeypatch.setattr(room, "distill", student)
    monkeypatch.setattr("unfog.evaluation.judge.RESAMPLES", 40)


@pytest.mark.slow
def test_families_are_trained_measured_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], short: None
) -> None:
    """A table, JSON and a sheet; what was measured is not measured again, unless with another number of samples."""
    words = ["rivals", "--data", "digits", "--budget", "3s", "-n", "300", "--out", str(tmp_path / "out")]
    for setting in QUICK[1:]:
        words += ["--set", setting]
    assert main([*words, "--set", "training.batch=32", "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    for name in ("diffusion", "GAN", "VAE", "autoregressive", "recall", "seconds a picture, alone", "collapsed"):
        assert name in printed
    written = json.loads((tmp_path / "out" / "rivals.json").read_text())
    trained = {one["family"]: one for one in written["trained"]}
    assert list(trained) == [family.name for family in FAMILIES]
    assert {name: one["way"] for name, one in trained.items()} == {
        "diffusion": "flow",
        "GAN": "",
        "VAE": "bound",
        "autoregressive": "exact",
    }
    assert trained["GAN"]["bits"] is None
    assert all(one["single"] > 0 and one["images"] >= 32 for one in trained.values())
    page = (tmp_path / "out" / "rivals.md").read_text()
    assert "![samples](rivals.png)" in page
    assert (tmp_path / "out" / "rivals.png").is_file()
    with monkeypatch.context() as patch:
        patch.setattr(room, "measured", lambda *given: pytest.fail("it is measured already"))
        assert main([*words, "--set", "training.batch=32", "--device", "cpu"]) == 0
    assert main([*words, "--set", "training.batch=16", "--device", "cpu"]) == 2
    assert "holds a run of another recipe" in capsys.readouterr().err
    for damaged in ("{}", "[]", "{", '{"count": 300, "scores": 1}'):
        (tmp_path / "out" / "gan-0" / "rival.json").write_text(damaged)
        assert kept(tmp_path / "out" / "gan-0" / "rival.json", 300) is None
    assert kept(tmp_path / "out" / "vae-0" / "rival.json", 400) is None
    assert kept(tmp_path / "out" / "vae-0" / "rival.json", 300) is not None


def test_what_a_family_cannot_learn_is_refused_before_any_training(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="codec=pixels|is of pixels|no pictures|knows classes only|cannot be built"):
        rivals(Contest(recipe("points"), tmp_path, 60), console=QUIET)
    with pytest.raises(UserError, match="one seed or more"):
        Contest(recipe("digits"), tmp_path, 60, 0)
    with pytest.raises(UserError, match="too short for variations.*48 s or more"):
        rivals(Contest(recipe("digits"), tmp_path, 40, all=True), console=QUIET)
    assert not list(tmp_path.iterdir())


def test_a_training_that_reaches_next_to_nothing_has_collapsed() -> None:
    assert not TRAINED.collapsed
    assert replace(TRAINED, scores={"recall": Figure(0.08, None, None, 0.9, 0.01)}).collapsed
    assert replace(TRAINED, scores={"coverage": Figure(0.0, None, None, 0.9, 0.01)}).collapsed
    assert not replace(TRAINED, scores={"frechet": Figure(0.0, None, None, 0.9, 0.01)}).collapsed


def test_a_table_has_the_spread_over_seeds() -> None:
    other = replace(TRAINED, seed=1, scores={"recall": Figure(0.3, 0.2, 0.4, 0.9, 0.01)}, bits=None)
    likely = replace(TRAINED, family="VAE", bits=(1.25, 0.125), way="bound")
    rows = {row[0]: row[1:] for row in table([TRAINED, other, likely])}
    assert rows[""] == ["GAN", "VAE", "real data", "noise"]
    assert rows["recall"] == ["0.4 (0.3 to 0.5)", "0.5", "0.9", "0.01"]
    assert rows["bits a number, held out"][:2] == ["none", "1.250 ± 0.125, bound"]
    assert rows["collapsed"][:2] == ["0 of 2", "0 of 1"]
    assert rows["copies, share near training rows"][2] == "0.01"
    assert spread([]) == "-"
    assert spread([1234.5]) == "1,234"
    page = Page([TRAINED, other], Contest(recipe("digits"), Path("out"), 180, 2, 300))
    assert "2 seeds" in page.notes()[0]
    assert not any("a quarter of the time" in note for note in page.notes())


def test_lines_of_code_are_those_that_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = '"""A module.\n\nOf two lines."""\n\n# why\nx = 1\n\n\ndef f() -> None:\n    """Do it."""\n    return "a"\n'
    monkeypatch.setattr(modules.inspect, "getsource", lambda module: text)
    assert code_lines("runtime.version") == 3


def test_families_have_modules_of_their_own() -> None:
    assert all(family.lines > 50 for family in (*FAMILIES, STUDENT))


def test_variations_change_what_they_say() -> None:
    first, data = build_data(recipe("digits"))
    ways = {way.key: way for way in of_all(first)}
    assert [ways[key].share for key in ("sixteenth", "quarter", "wide")] == [1 / 16, 0.25, 0.25]
    assert ways["quarter"].of(first) == first
    pace = first.optimizer.lr
    assert ways["slow"].of(first).optimizer.lr == pytest.approx(pace / 10**0.5)
    assert ways["fast"].of(first).optimizer.lr == pytest.approx(pace * 10**0.5)
    assert ways["wide"].of(first).network.width == 4 * first.network.width  # type: ignore[attr-defined]
    assert ways["narrow"].of(first).network.width == max(8, first.network.width // 4)  # type: ignore[attr-defined]
    part = ways["data"].of(first).data
    assert isinstance(part, Portion)
    assert len(part.build().train) == round(0.25 * len(data.train))
    assert not ways["parameters"].suits(first)  # it has them
    gan = build_data(recipe("digits").set("objective=adversarial"), data)[0]

    def parameters(of: unfog.Recipe) -> int:
        return sum(one.numel() for one in build_model(of).parameters())

    equal = ways["parameters"].of(gan)
    assert parameters(equal) == pytest.approx(parameters(first), rel=0.25)
    assert abs(parameters(equal) - parameters(first)) < abs(parameters(gan) - parameters(first))
    wide = ways["wide"].of(gan).network
    assert (wide.width, wide.critic) == (128, 192)  # type: ignore[attr-defined]
    stacks = ways["stacked"].of(gan)
    assert isinstance(stacks.data, Stacked)
    assert (stacks.shape, stacks.classes, stacks.kind("conditioning")) == ((3, 8, 8), (), "none")
    assert not ways["stacked"].suits(replace(first, shape=(3, 8, 8)))
    assert not ways["wide"].suits(replace(first, network=recipe("digits").set("network=unet").network))


def test_seconds_to_a_distance() -> None:
    curve = [(10.0, 8.0), (40.0, 4.0), (160.0, 2.0)]
    assert until(curve, 4.0) == "40"
    assert until(curve, 2**1.5) == "80"  # half-way between the logarithms
    assert until(curve, 8.0) == "at most 10"
    assert until(curve, 1.0) == "more than 160"
    late = 40 * 4 ** (math.log(9 / 4) / math.log(4.5))
    assert until([(10.0, 8.0), (40.0, 9.0), (160.0, 2.0)], 4.0) == f"{late:.3g}"
    assert until([], 1.0) == "-"


def test_a_table_of_variations() -> None:
    """Distances by variation and family; the spread of learning rates; modes of stacked pictures."""

    def one(family: str, variation: str, distance: float, recall: float = 0.5) -> Trained:
        scores = {"frechet/x": Figure(distance, None, None, 1, 50), "recall": Figure(recall, None, None, 0.9, 0.0)}
        return Trained(family, 0, 1, 1, scores, variation=variation)

    modes = {"modes": Figure(123.0, None, None, 632, 5)}
    found = [
        *(one("diffusion", name, value) for name, value in (("", 2), (SHORT, 8), (BASE, 4))),
        one("diffusion", "three times the learning rate", 6),
        *(one("GAN", name, value) for name, value in (("", 3), (SHORT, 30), (BASE, 9))),
        one("GAN", "three times the learning rate", 45, recall=0.01),
        Trained("GAN", 0, 1, 1, modes, variation=STACKED),
    ]
    rows = {row[0]: row[1:] for row in varied(found, 160)}
    assert rows["frechet/x"] == ["diffusion", "GAN"]
    assert rows[BASE] == ["4", "9"]
    assert rows["the whole time"] == ["2", "3"]
    late = 40 * 4 ** (math.log(9 / 4) / math.log(3))
    assert rows["seconds to 4, which diffusion has after a quarter"] == ["40", f"{late:.3g}"]
    assert rows["collapsed"] == ["0 of 3", "1 of 3"]
    assert rows["worst of the learning rates over the best"] == ["1.5", "5"]
    assert rows["modes of stacked pictures (632 of as many real ones)"] == ["-", "123"]
    assert varied([one("GAN", "", 3)], 160) == []
    assert [row[1] for row in table(found)][:2] == ["diffusion", "2"]  # of the main trainings alone


@pytest.mark.slow
def test_variations_are_trained_and_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, short: None) -> None:
    """A student with its teacher, and two variations of two families; all within the table."""
    monkeypatch.setattr(room, "FAMILIES", FAMILIES[:2])
    monkeypatch.setattr(room, "of_all", lambda first: [way for way in of_all(first) if way.key in ("data", "stacked")])
    contest = Contest(recipe("digits").set(*QUICK), tmp_path / "out", 60, count=300, all=True)
    found = rivals(contest, device="cpu", console=QUIET)
    assert [one.family for one in found if not one.variation] == ["diffusion", "GAN", "student"]
    stacks = [one for one in found if one.variation == STACKED]
    assert [one.family for one in stacks] == ["diffusion", "GAN"]
    assert all(1 <= one.scores["modes"].value <= 300 for one in stacks)
    assert stacks[0].scores["modes"].floor > 200
    assert (tmp_path / "out" / "student-0-teacher" / "model.safetensors").is_file()
    page = Page(found, contest)
    page.write("cpu")
    text = (tmp_path / "out" / "rivals.md").read_text()
    assert "| a quarter of the data |" in text
    assert "energy at high frequencies" in text
    assert [one.plain() for one in rivals(contest, device="cpu", console=QUIET)] == [one.plain() for one in found]
