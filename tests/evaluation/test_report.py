"""The judge and what `unfog evaluate` writes: known answers, planted copies, collapsed and over-diverse generators."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from unfog.cli.main import main
from unfog.data.classic import digits
from unfog.data.codecs import Identity, Pixels
from unfog.data.shapes import Shapes
from unfog.data.source import Batch, Data, InMemory
from unfog.evaluation import classifier, features
from unfog.evaluation.distances import Rows, frechet, kernel_distance
from unfog.evaluation.judge import Judge, some, spread
from unfog.evaluation.neighbours import prdc
from unfog.evaluation.report import evaluate_run, heldout_conditions, table
from unfog.runs.run import load
from unfog.runtime.errors import UserError


@pytest.fixture(autouse=True, scope="module")
def fewer_resamples() -> Iterator[None]:
    """Wider intervals, sooner."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unfog.evaluation.judge.RESAMPLES", 40)
        yield


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge(digits(), Pixels(), 1000)


def held(judge: Judge, count: int) -> Batch:
    """Held-out digits, which play an honest model's samples."""
    rows = torch.from_numpy(spread(count, len(judge.heldout.x)))
    assert judge.heldout.labels is not None
    return Batch(judge.heldout.x[rows], judge.heldout.labels[rows])


def noisy(x: Tensor, level: float) -> Tensor:
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    return (x + level * noise).round().clamp(0, 255).to(torch.uint8)


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gaussian_judge(count: int = 400) -> Judge:
    """Of points of a Gaussian without classes, 400 of them held out."""
    return Judge(Data(InMemory(draw(0, 1000, 2)), InMemory(draw(1, 400, 2))), Identity(), count)


# ------------------------------------------------------------------------------------------- known answers


def test_scores_of_points_are_those_of_their_plain_coordinates() -> None:
    """Two principal components of two coordinates only turn them: all distances stay."""
    judge, samples = gaussian_judge(), 0.3 + draw(2, 900, 2)
    found = judge.score(samples)
    assert list(found) == ["frechet/pixels", "kernel/pixels", "precision", "recall", "density", "coverage"]
    train = judge.train.x[torch.from_numpy(some(400, 1000))].double().numpy()
    blocks = [samples[:400].double().numpy(), samples[400:800].double().numpy()]
    heldout, noise = (x.double().numpy() for x in (judge.heldout.x, judge.noise))
    measures: dict[str, Callable[[Rows], float]] = {
        "frechet/pixels": lambda x: frechet(x, train),
        "precision": lambda x: prdc(train, x).precision,
        "recall": lambda x: prdc(train, x).recall,
        "density": lambda x: prdc(train, x).density,
        "coverage": lambda x: prdc(train, x).coverage,
    }
    for name, measure in measures.items():
        score = found[name]
        assert score.value == pytest.approx(np.mean([measure(block) for block in blocks]), rel=1e-5)
        assert score.floor == pytest.approx(measure(heldout), rel=1e-5)
        assert score.ceiling == pytest.approx(measure(noise), rel=1e-5)
        assert score.n == 800
    kernel, turned = found["kernel/pixels"], judge.spaces["pixels"].extractor
    expected = [kernel_distance(turned(part), turned(judge.train.x[torch.from_numpy(some(400, 1000))]))
                for part in (samples[:400], samples[400:800])]  # fmt: skip
    assert kernel.value == pytest.approx(np.mean([one.value for one in expected]))
    assert kernel.high == pytest.approx(kernel.value + 1.96 * np.mean([one.error for one in expected]))
    frechets = found["frechet/pixels"]
    assert frechets.low is not None
    assert frechets.high is not None
    assert frechets.low < 0.18 < frechets.high  # |0.3, 0.3|²
    assert (found["recall"].low, found["recall"].high) == (None, None)


def test_parts_of_the_scores_are_the_scores(judge: Judge) -> None:
    rows = held(judge, 718)
    x = noisy(rows.x, 20)
    found = judge.score(x, rows.labels)
    assert list(found) == [
        "frechet/classifier", "kernel/classifier", "frechet/pixels", "kernel/pixels",
        "precision", "recall", "density", "coverage", "entropy", "adherence",
    ]  # fmt: skip
    assert judge.fidelity(x) == found["frechet/classifier"]
    assert judge.recall(x) == found["recall"]
    assert judge.adherence(x, rows.labels) == found["adherence"]
    hits = judge.hits(x, rows.labels)
    assert hits is not None
    assert found["adherence"].value == hits.mean()
    assert judge.features(x).shape == (718, 16)
    assert judge.adherence(x, None) is None
    assert "adherence" not in judge.score(x)


def test_held_out_rows_score_the_floor_and_noise_the_ceiling(judge: Judge) -> None:
    rows = held(judge, 359)
    for x, end in ((rows.x, "floor"), (judge.noise, "ceiling")):
        for name, score in judge.score(x, rows.labels).items():
            assert score.value == pytest.approx(getattr(score, end)), name
    assert judge.accuracy == judge.score(rows.x, rows.labels)["adherence"].floor > 0.98


def test_worse_samples_score_worse(judge: Judge) -> None:
    rows = held(judge, 359)
    positions = [
        [score.position for score in judge.score(noisy(rows.x, level), rows.labels).values()] for level in (0, 40, 80)
    ]
    assert (np.diff(positions, axis=0)[:, [0, 1, 2, 3, 4, 6, 7, 9]] > 0).all()  # but recall and entropy
    assert judge.score(rows.x, (rows.labels + 1) % 10)["adherence"].value < 0.02  # type: ignore[operator]


def test_the_same_numbers_twice_and_in_any_batch(judge: Judge) -> None:
    rows = held(judge, 400)
    x = noisy(rows.x, 30)
    first = judge.score(x, rows.labels)
    assert Judge(digits(), Pixels(), 1000).score(x, rows.labels) == first
    for batch in (10, 1000):
        other = Judge(digits(), Pixels(), 1000, batch=batch).score(x, rows.labels)
        for name, score in first.items():
            assert other[name].value == pytest.approx(score.value, rel=1e-5, abs=1e-5), name
            assert other[name].protocol == score.protocol


# ------------------------------------------------------------------------ collapsed, over-diverse, copied


def test_a_collapsed_generator_is_precise_and_recalls_little(judge: Judge) -> None:
    rows = held(judge, 718)
    assert rows.labels is not None
    ones = rows.x[rows.labels == 0]
    found = judge.score(ones[torch.arange(718) % 12], torch.zeros(718, dtype=torch.long))
    assert found["precision"].value > found["precision"].floor - 0.1
    assert found["recall"].value < 0.2
    assert found["coverage"].value < 0.2
    assert found["entropy"].value < 0.1
    assert found["adherence"].value > 0.95


def test_collapsed_and_over_diverse_points() -> None:
    judge = gaussian_judge()
    collapsed, diverse = judge.score(0.1 * draw(3, 400, 2)), judge.score(6 * draw(4, 400, 2))
    assert collapsed["precision"].value == 1
    assert collapsed["recall"].value < 0.1
    assert diverse["precision"].value < 0.3
    assert diverse["recall"].value > 0.9


@pytest.mark.parametrize("kind", ["exact", "shifted"])
def test_planted_copies_are_found(judge: Judge, kind: str) -> None:
    """50 among 1,000; also those that are shifted by a pixel, by their pixels, as versions of the rows are searched."""
    honest = held(judge, 950).x
    chosen = torch.arange(50) * 28
    planted = judge.train.x[chosen]
    if kind == "shifted":
        planted = torch.cat([planted[..., :1], planted[..., :-1]], -1)
    found = judge.copies(torch.cat([honest, planted]))
    assert found["pixels"].copies
    pairs = {(950 + place, int(row)) for place, row in enumerate(chosen)}
    assert len(pairs & set(found["pixels"].pairs)) >= 30
    if kind == "exact":
        assert found["classifier"].copies
    assert not any(one.copies for one in judge.copies(honest).values())


def test_copies_in_a_set_too_large_for_shifts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unfog.evaluation.judge.VERSIONS", 0)
    judge = Judge(digits(), Pixels(), 1000)
    found = judge.copies(torch.cat([held(judge, 950).x, judge.train.x[:50]]))
    assert found["pixels"].copies
    assert found["pixels"].pairs[0] == (950, 0)


# ----------------------------------------------------------------------------------------------- protocols


def test_scores_of_different_protocols_are_not_compared(judge: Judge) -> None:
    x = held(judge, 359).x
    mine = judge.fidelity(x)
    assert mine - judge.fidelity(noisy(x, 10)) < 0
    fewer, other = Judge(digits(), Pixels(), 200), Judge(digits(), Pixels(), 1000, seed=1)
    turned = Judge(Data(digits().train, InMemory(digits().heldout.take(np.arange(358)).x)), Pixels(), 358)
    for score in (fewer.fidelity(x[:200]), other.fidelity(x), turned.fidelity(x[:358]), judge.recall(x)):
        with pytest.raises(UserError, match="cannot be compared"):
            mine - score
    for part in ("classifier", "blocks of 359", "359 held-out rows", "seed 0"):
        assert part in str(mine.protocol)


def test_too_few_rows_are_refused_with_the_least_number() -> None:
    data = digits()
    large = Data(InMemory(torch.zeros(10_000, 1, 8, 8, dtype=torch.uint8)), data.heldout)
    with pytest.raises(UserError, match=r"129 samples are too few to compare the 64 features of pixels: .* 130 or"):
        Judge(large, Pixels(), 129)
    with pytest.raises(UserError, match=r"99 samples are too few to compare the 16 features of pixels: .* 100 or"):
        Judge(data, Pixels(), 99)
    few = Data(data.train, InMemory(data.heldout.take(np.arange(50)).x))
    with pytest.raises(UserError, match="hold out 50 rows, too few to compare the 16 features of pixels: hold out 100"):
        Judge(few, Pixels(), 1000)
    with pytest.raises(UserError, match="99 samples are too few .* 100 or more"):
        gaussian_judge(99)
    judge = gaussian_judge()
    for measure in (judge.score, judge.fidelity, judge.recall):
        with pytest.raises(UserError, match="compares sets of 400 rows: give as many samples, not 399"):
            measure(draw(0, 399, 2))
    with pytest.raises(UserError, match="batch must be 1 or more"):
        Judge(data, Pixels(), 200, batch=0)


def test_the_features_of_others_are_compared_too(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = features.Pretrained("inception", "0" * 12, lambda x: x.float()[:, :, ::2, ::2].flatten(1))
    monkeypatch.setattr(features, "inception", lambda path: wide)
    judge = Judge(digits(), Pixels(), 200, inception=Path("weights"))
    found = judge.score(held(judge, 200).x)
    assert {"frechet/inception", "kernel/inception"} < set(found)
    many = features.Pretrained("inception", "0" * 12, lambda x: x.float().repeat(1, 3, 1, 1).flatten(1))
    monkeypatch.setattr(features, "inception", lambda path: many)
    with pytest.raises(UserError, match="the 576 features of inception: take 1154 or more"):
        Judge(digits(), Pixels(), 200, inception=Path("weights"))


def test_spread() -> None:
    assert spread(3, 5).tolist() == [0, 2, 4]
    assert spread(5, 5).tolist() == [0, 1, 2, 3, 4]
    assert spread(13, 5).tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 2, 4]  # the rest are no mere first rows
    assert spread(7, 3).tolist() == [0, 1, 2, 0, 1, 2, 0]


# ----------------------------------------------------------------------------------------------- captions


def test_the_exact_reader_reads_captioned_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifier, "EPOCHS", 0)
    monkeypatch.setattr(classifier, "STEPS", 2)
    data = Data(Shapes(140, 32, 2), Shapes(140, 32, 2, part="seen"))
    judge = Judge(data, Pixels(), 140)
    assert judge.classifier is not None
    assert {"red", "circle", "above", "small"} < set(judge.classifier.words)
    other = Shapes(140, 32, 2, seed=1).take(np.arange(140))
    assert other.captions is not None
    found = judge.score(other.x, other.captions)
    for part in ("", "/count", "/colours", "/shapes", "/sizes", "/relations"):
        score = found[f"adherence{part}"]
        assert score.value > 0.95
        assert (score.floor > 0.95, score.ceiling) == (True, 0)
        assert score.protocol.features == "the exact reader"
    recoloured = [caption.translate(str.maketrans({})).replace("red", "green") for caption in other.captions]
    wrong = judge.score(other.x, recoloured)
    assert wrong["adherence/colours"].value < wrong["adherence/shapes"].value
    assert wrong["adherence"].value < found["adherence"].value
    assert judge.adherence(other.x, ["no such grammar"] * 140) is not None  # then it is the classifier that reads
    assert "entropy" not in found


def test_names_of_classes_are_read_as_classes(judge: Judge) -> None:
    rows = held(judge, 359)
    assert rows.labels is not None
    assert judge.adherence(rows.x, [str(label) for label in rows.labels.tolist()]) == judge.adherence(
        rows.x, rows.labels
    )


# ---------------------------------------------------------------------------------------------------- runs


@pytest.fixture
def run(digits_run: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("recipe.json", "model.safetensors"):
        shutil.copy(digits_run / name, folder / name)
    return folder


def test_samples_are_asked_for_what_held_out_rows_show(judge: Judge, digits_run: Path, unconditional_run: Path) -> None:
    condition, asked = heldout_conditions(load(digits_run, "cpu"), judge, 400)
    rows = held(judge, 400)
    assert rows.labels is not None
    assert isinstance(asked, Tensor)
    assert condition is not None
    assert torch.equal(condition, rows.labels)
    assert torch.equal(asked, rows.labels)
    assert heldout_conditions(load(unconditional_run, "cpu"), judge, 400) == (None, None)


def test_an_evaluation_scores_the_run_s_samples(judge: Judge, digits_run: Path) -> None:
    run = load(digits_run, "cpu")
    found = evaluate_run(run, judge, 359, guidance=2.0, steps=2)
    rows = held(judge, 359)
    assert torch.equal(found.samples, run.sample(359, rows.labels, guidance=2.0, steps=2))
    assert found.scores == judge.score(found.samples, rows.labels)
    assert (found.nfe_per_sample, found.steps) == (4, 2)
    with pytest.raises(UserError, match="sets of 359 rows: draw 359 samples or more"):
        evaluate_run(run, judge, 358, guidance=1.0)
    text = table([found, replace(found, guidance=3.0)], judge)
    assert max(map(len, text.splitlines())) <= 120
    for part in (
        judge.first.extractor.key,
        "guidance 2",
        "guidance 3",
        "no sign of copies",
        "floor",
        "ceiling",
        f"reads {judge.accuracy:.2%}",
    ):
        assert part in text
    copied = replace(found, copies={name: replace(one, copies=True) for name, one in found.copies.items()})
    assert "COPIES: look at memorisation.png" in table([copied], judge)


def test_evaluate_writes_scores_and_pictures(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["evaluate", str(run), "-n", "359", "--steps", "2", "--device", "cpu"]
    assert main(arguments) == 0
    text, written = capsys.readouterr().out, (run / "evaluation.json").read_text()
    found = json.loads(written)
    assert [one["guidance"] for one in found["evaluations"]] == [1, 1.5]
    assert [one["nfe_per_sample"] for one in found["evaluations"]] == [2, 4]
    assert set(found["extractors"]) == {"classifier", "pixels"}
    assert found["classifier_accuracy"] > 0.98
    assert len(found["levels"]["levels"]) == 16
    for one in found["evaluations"]:
        assert {"near", "p_value", "pairs"} < set(one["copies"]["pixels"])
        assert {"value", "low", "high", "n", "floor", "ceiling", "protocol"} == set(one["scores"]["recall"])
    assert "frechet/classifier" in text
    for name in ("samples", "memorisation", "levels"):
        with Image.open(run / "evaluation" / f"{name}.png") as picture:
            assert min(picture.size) > 100
    assert found.pop("measured").keys() == {"date", "machine", "command", "version"}
    assert main(arguments) == 0
    again = json.loads((run / "evaluation.json").read_text())
    assert {name: part for name, part in again.items() if name != "measured"} == found


def test_evaluations_of_the_network_are_counted(judge: Judge, run: Path) -> None:
    """Heun in 3 steps looks 5 times, twice as often with guidance."""
    path = run / "recipe.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "solver": {"kind": "heun"}}))
    found = [evaluate_run(load(run, "cpu"), judge, 359, guidance=scale, steps=3) for scale in (1.0, 2.0)]
    assert [one.nfe_per_sample for one in found] == [5, 10]


@pytest.mark.parametrize("name", ["unconditional_run", "points_run"])
def test_other_runs_are_evaluated_too(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    shutil.copytree(request.getfixturevalue(name), tmp_path / "run")
    assert main(["evaluate", str(tmp_path / "run"), "-n", "200", "--steps", "2", "--device", "cpu"]) == 0
    found = json.loads((tmp_path / "run" / "evaluation.json").read_text())["evaluations"][0]["scores"]
    assert ("adherence" in found) == (name == "points_run")
    assert "entropy" in found


def test_a_thorough_judge_is_asked_for(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(classifier, "ROWS", 10_000)
    command = ["evaluate", str(run), "-n", "200", "--steps", "2", "--guidance", "1", "--device", "cpu"]
    found = []
    for kind in ("quick", "thorough"):
        assert main([*command, "--judge", kind]) == 0
        out, err = capsys.readouterr()
        results = json.loads((run / "evaluation.json").read_text())
        assert results["judge"] == kind
        assert ("classifier (thorough): 16 features" in out) == (kind == "thorough")
        assert ("the thorough judge is trained for minutes" in err) == (kind == "thorough")
        found.append(results["extractors"]["classifier"]["key"])
    assert found[0] != found[1]
    assert main([*command[:2], "--likelihood", "8", "--judge", "thorough"]) == 2
    assert "--judge thorough is for samples" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["-n", "10"], "10 samples are too few to compare the 16 features of pixels: take 100 or more"),
        (["-n", "0"], "0 samples are too few"),
        (["--batch", "0"], "the batch must be 1 or more, not 0"),
        (["--guidance", "nan"], "guidance"),
        (["--steps", "0"], "steps must be above 0, not 0"),
        (["--dinov2", "nowhere"], "nowhere does not exist or is empty: dinov2 takes a folder"),
        (["--inception", "nowhere"], "nowhere does not exist or is empty: inception takes the file"),
    ],
)
def test_a_mistake_in_a_request(run: Path, arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(run.rglob("*"))
    assert main(["evaluate", str(run), *arguments, "--device", "cpu"]) == 2
    *_, line = capsys.readouterr().err.strip().splitlines()  # after those of the progress
    assert says in line
    assert sorted(run.rglob("*")) == before
