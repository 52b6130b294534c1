"""Pages about a run: the numbers of a step, and a report that needs nothing else."""

import base64
import json
import math
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from unfog.data.modality import images
from unfog.diffusion.schedules import EDM
from unfog.interop.card import facts
from unfog.recipes.build import build_data
from unfog.recipes.recipe import Recipe
from unfog.reports.explain import Explanation, explain
from unfog.reports.film import Film, Still
from unfog.reports.html import page, table
from unfog.reports.plots import draw_plane
from unfog.reports.report import report
from unfog.runs.run import Run, load
from unfog.runtime.errors import UserError

MakeRecipe = Callable[..., Recipe]


def values(found: Explanation) -> dict[str, str]:
    """The lines of an explanation by what they are."""
    return {line.what: line.value for part in found.parts.values() for line in part}


def last(text: str) -> float:
    """The last number of a text."""
    return float(re.findall(r"[-+]?\d+\.?\d*(?:e[-+]?\d+)?", text)[-1])


def first(text: str) -> float:
    """The first number of a text."""
    return float(re.findall(r"[-+]?\d+\.?\d*(?:e[-+]?\d+)?", text)[0])


# The numbers of a step


@pytest.mark.parametrize("step", [1, 2, 500, 999, 1000])
def test_a_step_of_ddpm_has_the_numbers_of_its_paper(table_run: Path, step: int) -> None:
    """Beta from 1e-4 to 0.02 in a thousand steps, and all that follows from it, worked out with numpy alone."""
    found = values(explain(load(table_run, "cpu"), step))
    beta = np.linspace(1e-4, 0.02, 1000)
    bar = np.cumprod(1 - beta)
    now, before = bar[step - 1], bar[step - 2] if step > 1 else 1.0
    expected = {
        "step": step,
        "this time": step / 1000,
        "signal left": now**0.5,
        "noise added": (1 - now) ** 0.5,
        "alpha bar": now,
        "signal to noise": now / (1 - now),
        "its logarithm": math.log(now / (1 - now)),
        "beta of this step": beta[step - 1],
        "time": step,
        "of the state": (1 - beta[step - 1]) ** 0.5 * (1 - before) / (1 - now),
        "of the data": before**0.5 * beta[step - 1] / (1 - now),
        "its variance": beta[step - 1] * (1 - before) / (1 - now),
        "weight of this time": 1,
        "the same weight on x0": now / (1 - now),
    }
    for name, value in expected.items():
        assert float(found[name]) == pytest.approx(value, rel=2e-4, abs=1e-12), name
    assert found["how often training draws it"] == "0.1000%"


@pytest.mark.parametrize("run", ["digits_run", "table_run", "points_run", "unconditional_run"])
def test_the_shown_numbers_obey_the_equations(run: str, request: pytest.FixtureRequest) -> None:
    """What is printed is consistent with itself: sums add up, the solved pair gives x_t again, the loss is weighed."""
    found = values(explain(load(request.getfixturevalue(run), "cpu"), 300))
    for name in ("state", "its mean", "a DDIM step"):
        if "=" not in found[name]:
            continue
        a, x, b, y, total = map(float, re.findall(r"[-+]?\d+\.\d+", found[name]))
        assert a * x + b * y == pytest.approx(total, abs=3e-4), name
    assert float(found["loss of this row"]) == pytest.approx(
        float(found["weight of this time"]) * float(found["squared error"]), rel=1e-3
    )
    alpha, sigma = float(found["signal left"]), float(found["noise added"])
    pairs = [
        [float(number) for number in re.findall(r"[-+]\d+\.\d+", found[name])]
        for name in ("so the data", "and the noise")
    ]
    answered, truth = zip(*pairs, strict=True)
    states = [alpha * x0 + sigma * eps for x0, eps in (answered, truth)]
    assert states[0] == pytest.approx(states[1], abs=5e-4)


def test_at_the_last_step_the_posterior_is_the_data(table_run: Path) -> None:
    found = values(explain(load(table_run, "cpu"), 1))
    assert (found["of the state"], found["of the data"], found["its variance"]) == ("0", "1", "0")
    assert last(found["its mean"]) == pytest.approx(float(re.findall(r"truth ([-+.\d]+)", found["so the data"])[0]))


def test_an_explanation_says_what_the_network_saw(digits_run: Path) -> None:
    run = load(digits_run, "cpu")
    found = explain(run, 500, row=3)
    labels = build_data(run.recipe)[1].heldout.take(np.array([3])).labels
    assert labels is not None
    assert values(found)["conditioned on"] == run.recipe.classes[int(labels[0])]
    assert found.pictures is not None
    assert found.pictures.shape == (4, 1, 8, 8)
    assert found.intro == "Held-out row 3; the numbers shown are those of channel 0, row 4, column 4."
    assert explain(run, 500, row=3).text() == found.text()
    assert explain(run, 500, row=3, seed=1).text() != found.text()


def test_what_a_model_is_told_of_labelled_pictures(tiny: MakeRecipe, train_into: Callable[[Recipe, str], Path]) -> None:
    """Not the label, where it is conditioned on something else."""
    run = load(train_into(tiny("conditioning=image", "conditioning.task=fill", "sampling.guidance=1"), "image"), "cpu")
    assert values(explain(run, 500))["conditioned on"] == "its image"
    assert "Samples" in report(run, run.path / "report").markdown


def test_a_report_draws_with_the_guidance_that_is_asked_for(digits_run: Path, tmp_path: Path) -> None:
    run = load(digits_run, "cpu")
    assert "steps 3, guidance 1.5" in report(run, tmp_path / "one", guidance=1.5, steps=3).markdown
    with pytest.raises(UserError, match="steps"):
        report(run, tmp_path / "none", steps=0)
    assert not (tmp_path / "none").exists()


def test_before_the_first_trained_time_the_network_is_asked_there(
    digits_run: Path, tiny: MakeRecipe, train_into: Callable[[Recipe, str], Path]
) -> None:
    run = load(digits_run, "cpu")
    assert run.denoiser.schedule.t_first > 1e-4
    assert "for the network" not in values(explain(run, 1))
    late = load(train_into(tiny("schedule=shifted", "schedule.base=flow", "schedule.shift=0.25"), "late"), "cpu")
    first_trained = late.denoiser.schedule.t_first
    assert 0.002 < first_trained < 0.005
    found = values(explain(late, 1))
    assert first(found["for the network"]) == pytest.approx(first_trained, rel=1e-4)
    assert float(found["time"]) == pytest.approx(1000 * first_trained, rel=1e-4)


@pytest.mark.parametrize(("step", "row"), [(0, 0), (1001, 0), (-3, 0), (5, 99999), (5, -1)])
def test_steps_and_rows_that_are_not_there(table_run: Path, step: int, row: int) -> None:
    with pytest.raises(UserError, match="not"):
        explain(load(table_run, "cpu"), step, row)


def test_where_the_data_are_gone_a_sample_is_explained(tiny: MakeRecipe, digits_run: Path, tmp_path: Path) -> None:
    from unfog.data.pictures import save_picture, tile

    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, picture in enumerate(load(digits_run, "cpu").sample(12)):
        save_picture(tile(picture[None], 1, gap=0), folder / f"{number}.png")
    from unfog.recipes.presets import recipe
    from unfog.runs.run import train

    small = ("network.width=8", "training.images=64", "training.batch=4", "training.reports=1", "sampling.steps=2")
    run = train(recipe("folder", str(folder), 8).set(*small), tmp_path / "run", device="cpu")
    assert explain(run, 500).intro.startswith("Held-out row 0")
    for file in folder.iterdir():
        file.unlink()
    found = explain(run, 500)
    assert found.intro.startswith("Sample 0, as the data are not available")
    written = report(run, tmp_path / "report").write().read_text()
    assert "Not available" in written


def test_explanations_are_written_as_pages(digits_run: Path, tmp_path: Path) -> None:
    found = explain(load(digits_run, "cpu"), 700)
    where = found.write(tmp_path, "step-700")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-700.html", "step-700.md", "step-700.png"]
    text = where.read_text()
    for line in (line for part in found.parts.values() for line in part):
        assert line.value.replace("<", "&lt;") in text
    with Image.open(tmp_path / "step-700.png") as picture:
        assert picture.height > 4 * 100  # one below the other, each next to its name


def test_another_clock(tiny: MakeRecipe, train_into: Callable[[Recipe, str], Path]) -> None:
    chosen = tiny(
        "schedule=edm", "target=edm", "times=log-normal", "inputs.input_scale=unit", "inputs.network_time=log_snr"
    )
    run = load(train_into(chosen, "edm"), "cpu")
    assert isinstance(run.denoiser.schedule, EDM)
    found = values(explain(run, 500))
    assert float(found["this time"]) == 40
    assert float(found["noise added"]) == 40
    assert float(found["time"]) == pytest.approx(math.log(40) / 4, rel=1e-4)


# Pages


class Seen(HTMLParser):
    """What a page would load, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [str(value) for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]

    def handle_data(self, data: str) -> None:
        self.text += data


def seen(text: str) -> Seen:
    found = Seen()
    found.feed(text)
    return found


def test_a_page_holds_its_pictures_and_loads_nothing(tmp_path: Path) -> None:
    Image.new("RGB", (3, 2), "red").save(tmp_path / "red.png")
    found = seen(page("# One\n\n![a red one](red.png)\n\n| a | b |\n|---|---|\n| 1 | 2 |", "Title", tmp_path))
    assert len(found.loads) == 1
    kind, data = found.loads[0].split(",")
    assert kind == "data:image/png;base64"
    assert base64.b64decode(data) == (tmp_path / "red.png").read_bytes()
    assert {"h1", "table", "td"} <= set(found.tags)


@pytest.mark.parametrize(
    "source", ["../secret.png", "/etc/passwd", "http://example.com/a.png", "gone.png", "notes.txt"]
)
def test_other_pictures_are_left_out(tmp_path: Path, source: str) -> None:
    folder = tmp_path / "page"
    folder.mkdir()
    Image.new("RGB", (3, 2), "red").save(tmp_path / "secret.png")
    (folder / "notes.txt").write_text("secret")
    found = seen(page(f"![a picture]({source})", "Title", folder))
    assert found.loads == []
    assert "a picture: missing" in found.text


def test_a_link_out_of_the_folder_is_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "page"
    folder.mkdir()
    Image.new("RGB", (3, 2), "red").save(tmp_path / "secret.png")
    (folder / "linked.png").symlink_to(tmp_path / "secret.png")
    assert seen(page("![x](linked.png)", "Title", folder)).loads == []


def test_html_in_names_is_text(tmp_path: Path) -> None:
    found = seen(page("# <script>alert(1)</script>\n\n![<b>](gone.png)", "<title>", tmp_path))
    assert "script" not in found.tags
    assert "alert(1)" in found.text


def test_cells_cannot_break_a_table(tmp_path: Path) -> None:
    lines = table(("a", "b"), [("q(x|y)", "two\nlines")])
    found = seen(page("\n".join(lines), "t", tmp_path))
    assert found.tags.count("td") == 2
    assert "q(x|y)" in found.text


# Reports


@pytest.mark.parametrize("run", ["digits_run", "table_run", "points_run", "unconditional_run"])
def test_a_report_has_every_part_and_needs_nothing(run: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    where = report(load(request.getfixturevalue(run), "cpu"), tmp_path).write()
    text = where.read_text()
    found = seen(text)
    assert found.loads
    assert all(source.startswith("data:image/") for source in found.loads)
    assert ": missing" not in found.text
    for head in (
        "Samples",
        "Film",
        "Nearest neighbours",
        "Data",
        "Cost",
        "Evaluation",
        "Curves and pictures",
        "Recipe",
    ):
        assert head in found.text, head
    assert "Peak memory" in found.text
    assert where.stat().st_size < 5e6
    markdown = (tmp_path / "report.md").read_text()
    for picture in re.findall(r"\]\(([^)]+)\)", markdown):
        assert (tmp_path / picture).is_file(), picture
    recipe = json.loads(re.findall(r"```json\n(.*?)\n```", markdown, re.DOTALL)[0])
    assert recipe == json.loads((request.getfixturevalue(run) / "recipe.json").read_text())


def small_batches(run: Path, to: Path, batch: int) -> Run:
    """Return a copy of a run that draws so many samples at a time."""
    folder = shutil.copytree(run, to)
    own = Recipe.from_json((folder / "recipe.json").read_text()).set(f"sampling.batch={batch}")
    (folder / "recipe.json").write_text(own.to_json())
    return load(folder, "cpu")


def test_a_report_shows_more_samples_than_a_batch(
    digits_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But no more large pictures than a batch."""
    run = small_batches(digits_run, tmp_path / "run", 4)
    assert "\n64 samples: seed 0, solver dpmpp-2m, steps 4" in report(run, tmp_path / "whole").markdown
    with Image.open(tmp_path / "whole" / "film.gif") as frame:
        assert 8 * (8 * 9) + 8 < frame.width < 9 * (8 * 9) + 100  # names, eight pictures of 64 pixels and their gaps
    monkeypatch.setattr("unfog.reports.report.DRAWN", 64 * 3)
    assert "\n4 samples: seed 0, solver dpmpp-2m, steps 4" in report(run, tmp_path / "large").markdown


def test_a_plane_shows_more_points_than_a_batch(points_run: Path, tmp_path: Path) -> None:
    pictures = []
    for batch in (1024, 16):
        run = small_batches(points_run, tmp_path / str(batch), batch)
        draw_plane(run, tmp_path / f"{batch}.png", 40)
        with Image.open(tmp_path / f"{batch}.png") as picture:
            pictures.append(np.asarray(picture.convert("L")).astype(int))
    assert (np.abs(pictures[0] - pictures[1]) > 64).mean() < 1e-3  # the same points, but for rounding


def test_a_report_shows_the_nearest_training_rows(
    digits_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that gives training rows back is seen to: each pair is one picture twice."""
    from unfog.data.modality import Images
    from unfog.generation.sampler import Sampler

    run = load(digits_run, "cpu")
    train = build_data(run.recipe)[1].train
    monkeypatch.setattr(Sampler, "__call__", lambda self, count, asked: train.take(np.arange(40, 40 + count)).x)
    pairs: list[tuple[torch.Tensor, torch.Tensor]] = []
    drawn = Images.paired

    def noting(self: Images, a: torch.Tensor, b: torch.Tensor, *more: Any) -> Image.Image:
        pairs.append((a, b))
        return drawn(self, a, b, *more)

    monkeypatch.setattr(Images, "paired", noting)
    report(run, tmp_path)
    assert torch.equal(*pairs[0])
    assert len(pairs[0][0]) == 16


def test_a_report_takes_in_what_other_verbs_drew(digits_run: Path, tmp_path: Path) -> None:
    """Beside its own pictures, of which one has the same name."""
    folder = tmp_path / "run"
    shutil.copytree(digits_run, folder)
    (folder / "evaluation").mkdir(exist_ok=True)
    Image.new("RGB", (5, 5), "red").save(folder / "evaluation" / "samples.png")
    where = report(load(folder, "cpu"), tmp_path / "report").write()
    with Image.open(where.parent / "evaluation-samples.png") as taken, Image.open(where.parent / "samples.png") as own:
        assert taken.size == (5, 5)
        assert own.size != (5, 5)
    assert base64.b64encode((folder / "evaluation" / "samples.png").read_bytes()).decode() in where.read_text()


def entry(value: float, low: float | None, high: float | None) -> dict[str, object]:
    """A score as evaluation.json has it."""
    return {"value": value, "low": low, "high": high, "n": 100, "floor": 0.2, "ceiling": 8.2, "protocol": "p"}


def test_a_report_shows_figures_with_all_that_they_need(broken: Path, tmp_path: Path) -> None:
    """Ends, interval, samples, judge, date, machine, command, version; classes, and the table of confusions."""
    read = {**entry(0.5, 0.4, 0.6), "floor": 0.9, "ceiling": 0.1}
    each = [{"name": "<b>|x", "n": 100, "adherence": read, "distance": None, "recall": read}]
    classes = {"each": each, "names": ["<b>|x", "y"], "confusion": [[50, 49], [0, 7]], "real": [[1, 0], [0, 1]]}
    new = {
        "measured": {
            "date": "2026-01-02",
            "machine": "a processor",
            "command": "unfog evaluate",
            "version": "9 (commit f)",
        },
        "protocol": "data d, evaluation seed 5",
        "extractors": {"classifier": {"key": "0123", "features": 16}},
        "evaluations": [{"guidance": 1.0, "scores": {"frechet/classifier": entry(1.0, 0.5, 1.5)}, "classes": classes}],
        "worst": "Worst: one, of TRUNKS. `unfog evaluate RUN --guidance 2`, RUN-longer",
    }
    (broken / "evaluation.json").write_text(json.dumps(new))
    found = report(load(broken, "cpu"), tmp_path / "report")
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in found.markdown.splitlines()]
    expected = ["frechet/classifier", "1", "1", "0.5 to 1.5", "0.2", "8.2", "100", "10% of the way to noise"]
    assert expected in rows
    assert ["y", "", "7"] in rows
    text = seen(found.write().read_text()).text
    for part in (
        "evaluation seed 5",
        "0123",
        "2026-01-02",
        "a processor",
        "9 (commit f)",
        f"Worst: one, of TRUNKS. `unfog evaluate {broken} --guidance 2`, {broken}-longer",
        "<b>|x",
        "49",
    ):
        assert part in text, part
    assert not re.findall(r"\b[A-Z][A-Za-z0-9]+\(\w*=", found.markdown)  # no names of Python classes
    assert "RUN-longer" in " ".join(facts(load(broken, "cpu"))["Evaluation"])  # a card names no folder of its maker's


def test_evaluations_of_before_are_still_read(broken: Path) -> None:
    """Without classes and date; an interval that lies elsewhere than its value, as they had, is not shown."""
    scores = {"frechet/classifier": entry(1.0, 0.2, 0.9), "kernel/classifier": entry(0.1, 0.0, 0.2)}
    old = {"protocol": "data d", "extractors": {}, "evaluations": [{"guidance": 1.5, "scores": scores}], "levels": None}
    (broken / "evaluation.json").write_text(json.dumps(old))
    lines = facts(load(broken, "cpu"))["Evaluation"]
    assert "| frechet/classifier | 1.5 | 1 |  | 0.2 | 8.2 | 100 | 10% of the way to noise |" in lines
    assert "| kernel/classifier | 1.5 | 0.1 | 0 to 0.2 | 0.2 | 8.2 | 100 | like real data |" in lines


def test_frames_of_a_film_have_one_size_and_say_what_they_show() -> None:
    """Whatever the clock: EDM's goes from 80 to 0."""
    x = torch.zeros(3, 1, 8, 8, dtype=torch.uint8)
    shot = tuple(Still(t, x, x, x, x) for t in (80.0, 9.5, 0.02))
    told = Film(shot, images, ("a long name of a class", "two", "three"))
    sizes = {frame.size for frame in told.frames()}
    assert len(sizes) == 1
    ((wide, tall),) = sizes
    strip = images.sheet(x, 3, 64)
    assert wide > strip.width + 50  # what each row is
    assert tall > 3 * strip.height + 10  # the time, and what was asked for
    frames = [np.asarray(frame) for frame in told.frames()]
    assert not np.array_equal(frames[0], frames[1])  # the time
    alone = Film(shot, images)
    assert not np.array_equal(np.asarray(alone.frame(0)), frames[0])
