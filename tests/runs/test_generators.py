"""Models that are no denoisers, seen by every verb that needs no more than their samples."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from unfog.app.studio import Studio, Wish
from unfog.cli.main import main
from unfog.data.modality import points
from unfog.evaluation.contest import schedules
from unfog.generation.whole import Whole
from unfog.recipes.kinds import KINDS, register
from unfog.recipes.objective import Context, Draw, Generator, OneLoss
from unfog.recipes.presets import recipe
from unfog.recipes.recipe import Recipe
from unfog.runs.average import average
from unfog.runs.run import fit, load
from unfog.runtime.errors import UserError
from unfog.runtime.randomness import normal


@dataclass(frozen=True)
class Templates(OneLoss):
    """|x0 - mean of its class|²; a sample is the mean of its class plus noise."""

    draws: ClassVar[bool] = True

    def build(self, recipe: Recipe, most: int) -> nn.Module:
        assert recipe.shape is not None
        model = nn.Module()
        model.register_parameter("means", nn.Parameter(torch.zeros(len(recipe.classes), *recipe.shape)))
        return model

    def losses(self, model: Any, batch: Draw, context: Context) -> dict[str, Tensor]:
        return {"loss": ((batch.x0 - model.means[batch.condition]) ** 2).flatten(1).mean(1)}

    def measured(self, model: Any, batch: Draw, context: Context) -> Tensor:
        return self.losses(model, batch, context)["loss"]

    def preview(self, model: nn.Module, held_out: Any, context: Context) -> None: ...

    def generator(self, recipe: Recipe, model: Any) -> Generator:
        def draw(
            count: int, asked: object = None, *, seed: int | None = None, condition: Tensor | None = None
        ) -> Tensor:
            assert asked is None  # runs give the condition
            assert condition is not None
            x = model.means[condition] + 0.3 * normal(seed or 0, "z", 0, 0, count, tuple(model.means.shape[1:]))
            return ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)

        return draw


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(KINDS, "objective", dict(KINDS["objective"]))
        register("objective", "templates", Templates)
        patch.setattr("unfog.evaluation.judge.RESAMPLES", 40)
        folder = tmp_path_factory.mktemp("runs") / "templates"
        settings = ("objective=templates", "training.images=25600", "training.reports=1", "optimizer.lr=0.05")
        fit(recipe("digits").set(*settings, "optimizer=adamw"), folder, console=Console(quiet=True))
        yield folder


def test_samples_are_written_with_their_condition(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sample i is the same in every request, and the request for more goes on where the first ended."""
    assert main(["sample", str(path), "-n", "20", "--seed", "3", "--out", str(tmp_path / "a")]) == 0
    assert "20 samples" in capsys.readouterr().out
    few = load(path).sample(5, seed=3)
    assert torch.equal(load(path).sample(20, seed=3)[:5], few)
    assert not torch.equal(load(path).sample(5, seed=4), few)
    threes = load(path).sample(4, label=3, seed=3)
    assert torch.equal(threes[3], few[3])  # without a request all classes are drawn in turn
    assert not torch.equal(threes[2], few[2])
    sampling = json.loads((tmp_path / "a" / "sampling.json").read_text())
    assert sampling["seed"] == 3
    assert "solver" not in sampling
    assert main(["sample", str(path), "-n", "30", "--seed", "3", "--out", str(tmp_path / "a")]) == 0
    assert len(list((tmp_path / "a").glob("0*.png"))) == 30


def test_evaluation_gives_each_held_out_condition(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(path), "-n", "1000"]) == 0
    printed = capsys.readouterr().out
    assert "1000 samples of seed 0, conditioned on what held-out rows show." in printed
    assert "guidance" not in printed
    written = json.loads((path / "evaluation.json").read_text())
    (evaluation,) = written["evaluations"]
    assert evaluation["scores"]["adherence"]["value"] > 0.5  # in another order it would be about 0.1
    assert evaluation["steps"] is None
    assert evaluation["nfe_per_sample"] is None
    assert written["levels"] is None
    assert (path / "evaluation" / "samples.png").is_file()


def test_a_report_has_samples_and_no_film(path: Path, tmp_path: Path) -> None:
    assert main(["report", str(path), "--out", str(tmp_path)]) == 0
    text = (tmp_path / "report.md").read_text()
    assert "A model of the objective `templates` with 640 parameters" in text
    assert "64 samples: seed 0." in text
    assert "## Nearest neighbours" in text
    assert "## Film" not in text


def test_comparing_with_a_denoiser(path: Path, digits_run: Path, tmp_path: Path) -> None:
    """Either may come first."""
    for number, pair in enumerate(((path, digits_run), (digits_run, path))):
        out = tmp_path / str(number)
        assert main(["compare", *map(str, pair), "-n", "1000", "--out", str(out)]) == 0
        models = json.loads((out / "comparison.json").read_text())["models"]
        assert {model["name"]: model["nfe"] is None for model in models} == {str(path): True, str(digits_run): False}


def test_the_playground_draws_and_refuses_edits(path: Path) -> None:
    studio = Studio([path], "cpu")
    (shot,) = studio.generate(Wish(path.name, count=2))
    assert shot.words.startswith("drawn in one go")
    assert shot.x == shot.x0
    with pytest.raises(UserError, match="takes no steps: omit"):
        list(studio.generate(Wish(path.name, steps=3)))
    with pytest.raises(UserError, match="is not sampled step by step"):
        studio.restyle(Wish(path.name), None, 0.5)
    assert "templates" in studio.measures(path.name)[0]


@pytest.mark.parametrize(
    ("verb", "why"),
    [
        ("film RUN", "is not sampled step by step"),
        ("bench RUN", "takes no solver"),
        ("explain RUN --step 5", "not a denoiser"),
        ("evaluate RUN --guidance 2", "takes no guidance"),
        ("evaluate RUN --likelihood 8", "not a denoiser"),
        ("sample RUN --steps 5", "takes no steps"),
        ("export RUN OUT", "not a denoiser"),
        ("replay RUN --step 1", "no denoiser"),
    ],
)
def test_verbs_that_need_a_denoiser_say_so(
    verb: str, why: str, path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [{"RUN": str(path), "OUT": str(tmp_path / "out")}.get(word, word) for word in verb.split()]
    assert main(words) == 2
    printed = " ".join(capsys.readouterr().err.split())
    assert "objective 'templates'" in printed
    assert why in printed


def test_averages_of_other_lengths_are_made_of_any_model_that_draws(path: Path, tmp_path: Path) -> None:
    small = ("objective=templates", "training.images=512", "training.batch=32", "training.reports=1")
    fit(recipe("digits").set(*small, "training.snapshots=16"), tmp_path / "run", console=Console(quiet=True))
    average(tmp_path / "run", 0.1, tmp_path / "average")
    made = load(tmp_path / "average")
    assert not made.denoises
    torch.testing.assert_close(made.model.state_dict(), load(tmp_path / "run").model.state_dict(), rtol=0, atol=1e-3)
    assert made.sample(3).shape == (3, 1, 8, 8)


def test_schedules_are_compared_on_denoisers_only(path: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="compared on denoisers, and the objective 'templates' trains none"):
        schedules(recipe("digits").set("objective=templates"), ["flow", "linear"], tmp_path / "out", 1.0)
    assert not (tmp_path / "out").exists()


@dataclass(frozen=True)
class Mute(Templates):
    """The same loss of a model that draws nothing."""

    draws: ClassVar[bool] = False


def test_a_model_that_neither_draws_nor_is_an_autoencoder_is_named_by_its_objective(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(KINDS, "objective", dict(KINDS["objective"]))
    register("objective", "mute", Mute)
    run = tmp_path / "run"
    words = ["objective=mute", "training.images=64", "training.batch=32", "training.reports=1"]
    assert main(["train", "digits", "--out", str(run), *(f"--set={word}" for word in words)]) == 0
    assert "unfog evaluate" not in capsys.readouterr().out
    for verb, sentence in (
        (["evaluate", str(run)], "with the network 'compact': only autoencoders and models that draw samples can be"),
        (["evaluate", str(run), "--guidance", "2"], "is for models that draw samples, and"),
        (
            ["average", str(run), "--length=0.1", f"--out={tmp_path / 'out'}"],
            "others can be made of models that draw samples",
        ),
    ):
        assert main(verb) == 2
        printed = " ".join(capsys.readouterr().err.split())
        assert "objective 'mute'" in printed
        assert "holds an autoencoder" not in printed
        assert sentence in printed


BAD = {
    "none": None,
    "an array": np.zeros((4, 1, 8, 8), dtype=np.uint8),
    "few": torch.zeros(2, 1, 8, 8, dtype=torch.uint8),
    "floats": torch.zeros(4, 1, 8, 8),
    "another shape": torch.zeros(4, 1, 5, 8, dtype=torch.uint8),
}


@pytest.mark.parametrize("fault", BAD)
def test_what_is_no_sample_is_refused(fault: str, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before a file is written."""
    monkeypatch.setattr(Templates, "generator", lambda self, recipe, model: lambda count, *_, **__: BAD[fault])
    sentence = r"a generator must return uint8 of shape \(4, 1, 8, 8\), and this one returns "
    with pytest.raises(UserError, match=sentence):
        load(path).sample(4)
    assert main(["sample", str(path), "-n", "4", "--out", str(tmp_path)]) == 2
    assert not list(tmp_path.glob("*.png"))


def test_numbers_that_are_not_finite_are_refused(path: Path) -> None:
    whole = load(path).generator()
    assert isinstance(whole, Whole)
    known = whole.known._replace(shape=(2,), stored=(2,), own=points)
    for value, good in ((float("nan"), False), (0.5, True)):
        made = replace(whole, known=known, generator=lambda count, *_, **__: torch.full((count, 2), value))  # noqa: B023
        if good:
            assert made(3, 0).shape == (3, 2)
        else:
            with pytest.raises(UserError, match="must return finite floats of shape"):
                made(3, 0)
