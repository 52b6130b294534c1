"""What the playground does, without a browser: the pictures of the command line, and a sentence for every mistake."""

import json
import shlex
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from markdown_it import MarkdownIt
from PIL import Image

from unfog.app.studio import MOST, Studio, Wish, draw_curves, fog, laid_out, schedules
from unfog.cli.main import main
from unfog.data.modality import images
from unfog.generation import edits
from unfog.recipes.build import build_data
from unfog.recipes.recipe import Recipe
from unfog.runs.run import load
from unfog.runtime.errors import UserError


@pytest.fixture(scope="module")
def studio(digits_run: Path, table_run: Path, points_run: Path, unconditional_run: Path) -> Studio:
    return Studio([digits_run, table_run, points_run, unconditional_run], "cpu")


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.convert("RGB"))


@pytest.mark.parametrize("run", ["digits", "table", "unconditional"])
@pytest.mark.parametrize("count", [1, 4])
def test_the_last_shot_is_the_picture_of_the_command_line(studio: Studio, tmp_path: Path, run: str, count: int) -> None:
    """The line that the page shows, run as it stands, gives the same pixels."""
    words = "" if run == "unconditional" else "7"
    wish = Wish(run, words, steps=6, solver="ddim", seed=11, count=count)
    shots = list(studio.generate(wish))
    assert len(shots) == 7
    line = shlex.split(studio.command(wish))
    assert line[:2] == ["unfog", "sample"]
    assert main([*line[1:], "--device", "cpu", "--out", str(tmp_path)]) == 0
    pictures = [pixels(Image.open(path)) for path in sorted(tmp_path.glob("0*.png"))]
    assert len(pictures) == count
    if count == 1:
        assert np.array_equal(pixels(shots[-1].x), pictures[0])
    drawn = pixels(shots[-1].x)
    gap = int(count > 1)
    for place, picture in enumerate(pictures):
        top, left = (gap + number * (8 + gap) for number in divmod(place, 2))
        assert np.array_equal(drawn[top : top + 8, left : left + 8], picture)


def test_shots_differ_and_tell_how_far_it_is(studio: Studio) -> None:
    shots = list(studio.generate(Wish("digits", "3", steps=5)))
    assert len({shot.x.tobytes() for shot in shots}) >= 5
    assert [shot.words.split()[1] for shot in shots[:-1]] == ["0", "1", "2", "3", "4"]
    assert shots[-1].x.tobytes() == shots[-1].x0.tobytes()
    assert not studio.run("digits").denoiser.network._forward_hooks
    evaluations = int(shots[-1].words.split()[2])
    guided = load(studio.paths["digits"], "cpu").recipe.sampling.guidance != 1
    assert evaluations >= 5 * (1 + guided)


def test_more_samples_than_a_batch_are_watched_together(digits_run: Path, tmp_path: Path) -> None:
    """They are those of `sample`, and each costs as many evaluations as a single one."""
    folder = shutil.copytree(digits_run, tmp_path / "small")
    own = Recipe.from_json((folder / "recipe.json").read_text()).set("sampling.batch=2")
    (folder / "recipe.json").write_text(own.to_json())
    studio = Studio([folder], "cpu")
    one, several = (list(studio.generate(Wish("small", steps=5, count=count)))[-1] for count in (1, 5))
    drawn = studio.pictures(Wish("small", steps=5, count=5))
    assert several.x.tobytes() == laid_out(drawn, images).tobytes()
    assert several.words.split(",")[:2] == one.words.split(",")[:2]


def test_a_film_that_is_left_leaves_no_trace(studio: Studio) -> None:
    run = studio.run("digits")
    for _ in range(2):
        shots = studio.generate(Wish("digits", steps=5))
        next(shots)
        shots.close()
    assert not run.denoiser.network._forward_hooks


def test_comparing_a_setting_with_itself(studio: Studio) -> None:
    wish = Wish("digits", "5", steps=4, count=4)
    one, other, difference, words = studio.compare(wish, wish)
    assert one.tobytes() == other.tobytes()
    assert pixels(difference)[1:9, 1:9].max() == 0
    assert words.startswith("mean difference 0.00 of 255, the largest 0")
    *_, apart, words = studio.compare(wish, Wish("digits", "5", steps=4, count=4, solver="euler"))
    assert pixels(apart)[1:9, 1:9].max() > 0 or "0.00" in words


def test_a_row_through_seeds(studio: Studio) -> None:
    found = studio.sweep(Wish("digits", "2", steps=3), "seed", "1, 2,1")
    assert [caption for _, caption in found] == ["seed 1", "seed 2", "seed 1"]
    assert found[0][0].tobytes() == found[2][0].tobytes() != found[1][0].tobytes()


def test_guidance_of_zero_is_no_default(studio: Studio) -> None:
    """It forgets the condition, whatever the label."""
    found = [studio.sweep(Wish("digits", word, steps=3), "guidance", "0, 1") for word in ("2", "5")]
    assert found[0][0][0].tobytes() == found[1][0][0].tobytes()
    assert found[0][1][0].tobytes() != found[1][1][0].tobytes()


def test_mistakes_leave_no_hook(studio: Studio) -> None:
    for wish in (Wish("digits", "eleven"), Wish("digits", "3", negative="4", guidance=1.0)):
        with pytest.raises(UserError):
            list(studio.generate(wish))
    assert not studio.run("digits").denoiser.network._forward_hooks


def test_one_works_while_the_others_wait(studio: Studio) -> None:
    """Requests from several threads give what they give alone, and count their own evaluations."""
    wishes = [Wish("digits", str(word), steps=12, guidance=1.0, seed=word) for word in range(4)]
    alone = [studio.pictures(wish) for wish in wishes]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda wish: list(studio.generate(wish)), wishes))
    for shots, picture in zip(found, alone, strict=True):
        assert np.array_equal(pixels(shots[-1].x), pixels(laid_out(picture)))
        assert shots[-1].words.startswith("12 steps, 12 network evaluations")


def test_points(studio: Studio) -> None:
    assert len(list(studio.generate(Wish("points", count=3)))) == 5
    assert studio.compare(Wish("points"), Wish("points", seed=1))[3].startswith("mean distance")


def test_edits_are_those_of_the_house(studio: Studio, tmp_path: Path) -> None:
    run = load(studio.paths["digits"], "cpu")
    picture = build_data(run.recipe)[1].heldout.take(np.array([0])).x
    file = tmp_path / "picture.png"
    laid_out(picture).convert("L").save(file)
    wish = Wish("digits", "4", steps=4, count=4, seed=2)
    assert np.array_equal(pixels(studio.restyle(wish, str(file), 0.0))[1:9, 1:9], pixels(laid_out(picture)))
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[2:6, 2:6] = True
    white = Image.fromarray(mask.numpy().astype(np.uint8) * 255)
    drawn = pixels(studio.inpaint(wish, Image.open(file), white))
    sampler = run.sampler(steps=4, seed=2)
    wanted = edits.inpaint(sampler, picture[0], mask, 4, "4")
    assert np.array_equal(drawn, pixels(laid_out(wanted)))
    kept = drawn[1:9, 1:9, 0][~mask.numpy()]
    assert np.array_equal(kept, picture[0, 0].numpy()[~mask.numpy()])
    way = studio.interpolate(wish, str(file), str(file))
    assert way.size == (2 * 9 + 1, 2 * 9 + 1)


def test_fog_is_the_forward_process(tmp_path: Path) -> None:
    picture = tmp_path / "white.png"
    Image.fromarray(np.full((8, 8, 3), 255, dtype=np.uint8)).save(picture)
    clean = fog(picture, 0.0)
    assert [caption.split(":")[0] for _, caption in clean] == list(schedules())
    assert all(pixels(shown).min() == 255 for shown, _ in clean)
    for (shown, caption), schedule in zip(fog(picture, 0.5), schedules().values(), strict=True):
        alpha = float(schedule.alpha(schedule.t_max / 2))
        assert f"α {alpha:.2f}" in caption
        assert pixels(shown).std() > 0
    assert len({shown.tobytes() for shown, _ in fog(picture, 0.3)}) == len(schedules())
    assert fog(picture, 0.3)[0][0].tobytes() == fog(picture, 0.3)[0][0].tobytes()


def test_curves_mark_the_moment() -> None:
    panels = draw_curves(0.25).axes
    assert [panel.get_title() for panel in panels] == ["alpha", "sigma", "log SNR"]
    assert all(panel.lines[-1].get_xdata()[0] == 0.25 for panel in panels)
    assert len(panels[0].lines) == len(schedules()) + 1


def test_measures_are_read_from_the_run(studio: Studio) -> None:
    words, pictures = studio.measures("digits")
    assert "## Cost" in words
    assert next(caption for _, caption in pictures) == "The loss over the images seen"


MARKUP = "<img src=x onerror=alert(1)> ![](http:x) [y](z)"


def test_a_strangers_name_is_shown_as_it_is(digits_run: Path, tmp_path: Path) -> None:
    """No picture, link or HTML of a run's makes its way into what the page shows as Markdown."""
    folder = shutil.copytree(digits_run, tmp_path / MARKUP)
    scores = {MARKUP: {"value": 1.0, "floor": 1.0, "ceiling": 0.0, "n": 9}}
    kept = {"evaluations": [{"guidance": 1.0, "scores": scores}], "protocol": MARKUP}
    (folder / "evaluation.json").write_text(json.dumps(kept))
    words, _ = Studio([folder], "cpu").measures(MARKUP)
    card, _, recipe = words.partition("```json")
    html = MarkdownIt("commonmark").enable("table").render(card)
    assert html.count("&lt;img src=x onerror=alert(1)&gt; ![](http:x) [y](z)") == 3
    assert "<img" not in html
    assert "<a" not in html
    assert json.loads(recipe.partition("```")[0])


def test_scores_of_another_form_are_a_sentence(digits_run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(digits_run, tmp_path / "run")
    (folder / "evaluation.json").write_text('{"evaluations": [{"scores": []}], "protocol": ""}')
    assert "evaluation.json has no scores" in Studio([folder], "cpu").measures("run")[0]


def test_a_row_of_the_data(studio: Studio) -> None:
    data = build_data(load(studio.paths["digits"], "cpu").recipe)[1].heldout
    assert np.array_equal(pixels(studio.row("digits", 4))[..., 0], data.take(np.array([4])).x[0, 0].numpy())


MISTAKES = {
    "steps of zero": (lambda s: s.sweep(Wish("digits"), "steps", "0"), "1 to 1000 steps, not 0"),
    "no picture to fog": (lambda s: fog("pyproject.toml", 0.5), "cannot be read"),
    "a list as a run": (lambda s: s.run([]), "there is no run []"),
    "a list as a part": (lambda s: s.sweep(Wish("digits"), ["run"], "a"), "not ['run']"),
    "a list as a solver": (lambda s: Wish("digits", solver=["ddim"]), "not ['ddim']"),
    "a time that is none": (lambda s: draw_curves(float("nan")), "from 0 to 1, not to nan"),
    "no such run": (lambda s: s.run("../secrets"), "there is no run '../secrets' on this page"),
    "too many": (lambda s: Wish("digits", count=MOST + 1), "draws 1 to 16 pictures at once, not 17"),
    "none": (lambda s: Wish("digits", count=0), "not 0"),
    "too many steps": (lambda s: Wish("digits", steps=10**9), "1 to 1000 steps"),
    "a class that is none": (lambda s: list(s.generate(Wish("digits", "eleven"))), "eleven"),
    "words for an unconditional model": (lambda s: list(s.generate(Wish("unconditional", "3"))), "give no condition"),
    "no such solver": (lambda s: list(s.generate(Wish("digits", solver="hein"))), "did you mean 'heun'"),
    "a part that is none": (lambda s: s.sweep(Wish("digits"), "run", "a"), "not 'run'"),
    "values that are none": (lambda s: s.sweep(Wish("digits"), "steps", "a,b"), "no values of steps"),
    "no values": (lambda s: s.sweep(Wish("digits"), "steps", " , "), "give 1 to 16 values"),
    "no picture": (lambda s: s.restyle(Wish("digits", "3"), None, 0.5), "give a picture"),
    "no label for an edit": (lambda s: s.restyle(Wish("digits"), None, 0.5), "say what the picture shows"),
    "a row beyond": (lambda s: s.row("digits", 10**6), "held-out rows 0 to"),
    "a time beyond": (lambda s: fog("nowhere.png", 1.5), "from 0 to 1, not to 1.5"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_a_sentence(studio: Studio, name: str) -> None:
    work, sentence = MISTAKES[name]
    with pytest.raises(UserError) as caught:
        work(studio)
    assert sentence in str(caught.value)


def test_folders_that_are_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no run to show"):
        Studio([])
    with pytest.raises(UserError, match="is no run folder"):
        Studio([tmp_path])


def test_runs_of_one_name_are_told_apart(digits_run: Path, tmp_path: Path) -> None:
    (tmp_path / digits_run.name).symlink_to(digits_run)
    found = Studio([digits_run, tmp_path / digits_run.name])
    assert list(found.paths) == [str(digits_run), str(tmp_path / digits_run.name)]
