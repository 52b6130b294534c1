"""The playground as a person uses it: in a headless Chromium, tab by tab. Screenshots go to build/screenshots."""

import base64
import io
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.app.playground import served
from tests.conftest import PATIENCE
from unfog.data.pictures import read_picture, tile
from unfog.recipes.build import build_data
from unfog.recipes.presets import recipe
from unfog.runs.run import load, train
from unfog.runtime.lines import counted

CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # Chromium itself looks names up
)
SHOTS = Path(__file__).parents[2] / "build" / "screenshots"
WIDTHS = {1280: 1000, 390: 844}
"""Of the screenshots, and their heights."""
MISSING = not (find_spec("playwright") and Path(CHROMIUM).exists())
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(MISSING, reason="playwright or Chromium is not here: `make test-app` installs both"),
]


@pytest.fixture(scope="module")
def shown_run(digits_run: Path) -> Path:
    """A run on digits: a real one, for the screenshots of the pages, where PLAYGROUND_RUN names it."""
    return Path(os.environ.get("PLAYGROUND_RUN", digits_run))


@pytest.fixture(scope="module")
def address(shown_run: Path) -> Iterator[str]:
    with served(shown_run) as found:
        yield found


class Visit:
    """A page in the browser, and what went wrong or out on it."""

    def __init__(self, browser: Any, address: str) -> None:
        self.address, self.errors, self.requests = address, [], []
        self.page = browser.new_page(viewport={"width": 1280, "height": WIDTHS[1280]})
        self.page.set_default_timeout(1000 * PATIENCE)
        self.page.on("console", lambda message: message.type == "error" and self.errors.append(message.text))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(address)
        self.page.get_by_role("button", name="Generate").wait_for()

    def tab(self, name: str) -> None:
        self.page.get_by_role("tab", name=name, exact=True).click()

    def panel(self) -> Any:
        return self.page.locator("[role=tabpanel]:visible").first

    def fill(self, label: str, text: str) -> None:
        field = self.panel().get_by_label(label, exact=True).locator("visible=true").first
        field.fill(text)
        field.press("Tab")

    def press(self, name: str) -> None:
        self.panel().get_by_role("button", name=name, exact=True).locator("visible=true").click()

    def source(self, label: str) -> str:
        """Where the picture with a label comes from; empty if there is none."""
        found = self.panel().locator(".block:visible", has_text=label).locator("img:visible")
        return str(found.first.get_attribute("src")) if found.count() else ""

    def pixels(self, source: str) -> np.ndarray:
        """The picture at an address, as grey pixels."""
        if source.startswith("data:"):
            data = base64.b64decode(source.split(",", 1)[1])
        else:
            data = self.page.request.get(source).body()
        return np.asarray(Image.open(io.BytesIO(data)).convert("L")).astype(int)

    def until(self, what: Callable[[], Any], seconds: float = PATIENCE) -> Any:
        """Wait until something holds, and return it."""
        deadline = time.monotonic() + seconds
        while not (found := what()):
            assert time.monotonic() < deadline, "nothing came"
            self.page.wait_for_timeout(20)
        return found

    def text(self, label: str) -> str:
        block = self.panel().locator(".block:visible", has=self.page.get_by_text(label, exact=True))
        return str(block.locator("textarea:visible").first.input_value())

    def shoot(self, name: str) -> None:
        SHOTS.mkdir(parents=True, exist_ok=True)
        for width, height in WIDTHS.items():
            self.page.set_viewport_size({"width": width, "height": height})
            self.page.wait_for_timeout(300)
            self.page.screenshot(path=SHOTS / f"{name}-{width}.png", full_page=True)
        self.page.set_viewport_size({"width": 1280, "height": WIDTHS[1280]})


@pytest.fixture(scope="module")
def visit(address: str) -> Iterator[Visit]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as player:
        browser = player.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        found = Visit(browser, address)
        yield found
        browser.close()
    own = [error for error in found.errors if "favicon" not in error]
    assert own == []
    outside = {url for url in found.requests if not url.startswith((address, "data:", "blob:"))}
    assert outside == set()


@pytest.fixture
def picture(shown_run: Path, tmp_path: Path) -> Path:
    """A held-out digit, enlarged."""
    path = tmp_path / "picture.png"
    digit = build_data(load(shown_run, "cpu").recipe)[1].heldout.take(np.array([3])).x
    tile(digit, 1, enlarge=8, gap=0).save(path)
    return path


def test_samples_appear_while_they_are_denoised(visit: Visit, shown_run: Path) -> None:
    visit.tab("Generate")
    visit.fill("Show", "3")
    visit.fill("Steps (0: the run's own)", "300")
    visit.fill("Seed", "5")
    panel = visit.panel()
    count = panel.get_by_label("number input for Count").locator("visible=true").first
    count.fill("1")
    count.press("Tab")
    begun = time.monotonic()
    visit.press("Generate")
    seen: list[str] = []
    first = 0.0
    while not visit.text("Progress").startswith("300 steps"):
        source = visit.source("x_t: as it is now")
        if source and source not in seen:
            seen.append(source)
            first = first or time.monotonic() - begun
        assert time.monotonic() - begun < PATIENCE
        visit.page.wait_for_timeout(15)
    print(f"first frame after {first:.2f} s, {len(seen)} frames")
    assert len(seen) >= 3
    final = visit.until(lambda: visit.source("x_t: as it is now"))
    wanted = load(shown_run, "cpu").sample(1, "3", steps=300, seed=5)[0, 0].numpy().astype(int)
    assert np.abs(visit.pixels(final) - wanted).max() <= 1
    assert "--label 3" in visit.text("The same on the command line")
    visit.shoot("generate")


def test_the_film_is_scrubbed(visit: Visit) -> None:
    visit.tab("Generate")
    visit.fill("Show", "6")
    visit.fill("Steps (0: the run's own)", "12")
    visit.press("Generate")
    visit.until(lambda: visit.text("Progress").startswith("12 steps"))
    last = visit.pixels(visit.until(lambda: visit.source("x_t: as it is now")))
    number = visit.panel().get_by_label("number input for Moment of the film").locator("visible=true").first
    number.fill("0")
    number.press("Tab")
    visit.until(lambda: not np.array_equal(visit.pixels(visit.source("x_t: as it is now")), last))


def test_two_settings_are_compared(visit: Visit) -> None:
    visit.tab("Compare")
    visit.fill("Show", "8")
    steps = visit.panel().get_by_label("Steps (0: the run's own)").locator("visible=true")
    for place, value in enumerate(("3", "6")):
        steps.nth(place).fill(value)
        steps.nth(place).press("Tab")
    visit.press("Compare")
    visit.until(lambda: visit.text("Difference in numbers").startswith("mean difference"))
    visit.until(lambda: visit.source("Difference"))
    visit.press("Draw the sweep")
    visit.until(lambda: visit.panel().locator("img:visible").count() >= 7)
    visit.shoot("compare")


def test_a_picture_of_ones_own_is_fogged(visit: Visit, picture: Path) -> None:
    visit.tab("Fog")
    visit.panel().locator("input[type=file]").first.set_input_files(picture)
    visit.until(lambda: visit.panel().locator("img:visible").count() >= 6)
    gallery = visit.panel().locator(".block:visible", has_text="x_t").locator("img:visible")
    before = gallery.first.get_attribute("src")
    t = visit.panel().get_by_label("number input for t, from clean data to pure noise").locator("visible=true").first
    t.fill("0.4")
    t.press("Tab")
    visit.until(lambda: gallery.first.get_attribute("src") != before)
    visit.shoot("fog")


def test_a_painted_part_is_made_anew(visit: Visit, picture: Path) -> None:
    visit.tab("Edit")
    visit.fill("Show", "3")
    count = visit.panel().get_by_label("number input for Count").locator("visible=true").first
    count.fill("1")
    count.press("Tab")
    visit.panel().get_by_role("tab", name="Inpaint").click()
    board = visit.panel().locator(".block:visible", has_text="paint what is")
    canvas = board.locator("canvas:visible").first
    canvas.wait_for()
    visit.page.wait_for_timeout(1500)  # the board says nowhere that it is ready
    board.locator("input[type=file]").first.set_input_files(picture)
    visit.page.wait_for_timeout(1500)
    box = canvas.bounding_box()
    across, down = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    visit.page.mouse.move(across - 20, down)
    visit.page.mouse.down()
    visit.page.mouse.move(across + 20, down, steps=8)
    visit.page.mouse.up()
    visit.page.wait_for_timeout(500)
    visit.press("Inpaint")
    source = visit.until(lambda: visit.source("Result"))
    made, given = visit.pixels(source), read_picture(picture, 1, 8, 8)[0].astype(int)
    kept = made == given
    assert 8 <= kept.sum() < 64, kept
    visit.shoot("edit")


def test_the_measures_are_read(visit: Visit) -> None:
    visit.tab("Measure")
    visit.press("Look")
    visit.page.get_by_role("heading", name="Cost").locator("visible=true").wait_for()
    assert visit.panel().locator("img:visible").count() >= 1
    visit.shoot("measure")


def test_a_mistake_is_a_toast(visit: Visit) -> None:
    visit.tab("Generate")
    visit.fill("Show", "eleven")
    visit.press("Generate")
    toast = visit.page.get_by_text("eleven").locator("visible=true").first
    toast.wait_for()
    assert "Traceback" not in visit.page.content()


NAME = "<img src=x onerror=window.hit=1>"


def test_a_strangers_names_are_text(visit: Visit, digits_run: Path, tmp_path: Path) -> None:
    """Of runs and classes, in choices, toasts and Markdown: the browser makes no element of them, and asks nobody."""
    folder = shutil.copytree(digits_run, tmp_path / NAME)
    recipe = json.loads((folder / "recipe.json").read_text())
    (folder / "recipe.json").write_text(json.dumps({**recipe, "classes": [NAME, *recipe["classes"][1:]]}))
    scores = {f"![]({digits_run.name}) {NAME}": {"value": 1.0, "floor": 1.0, "ceiling": 0.0, "n": 9}}
    kept = {"evaluations": [{"guidance": 1.0, "scores": scores}], "protocol": NAME}
    (folder / "evaluation.json").write_text(json.dumps(kept))
    with served(folder) as address:
        visit = Visit(visit.page.context.browser, address)
        for words in (NAME, "8 <b>bold</b>"):
            visit.tab("Edit")
            visit.fill("Show", words)
            visit.press("Restyle")
            visit.page.get_by_text("give a picture").or_(visit.page.get_by_text("<b>bold</b>")).last.wait_for()
        visit.tab("Generate")
        visit.fill("Show", f"0 {NAME}")
        visit.press("Generate")
        visit.page.get_by_test_id("toast-body").get_by_text(NAME).last.wait_for()
        visit.tab("Measure")
        visit.press("Look")
        visit.page.get_by_role("heading", name=NAME).locator("visible=true").wait_for()
        visit.page.get_by_text(f"Protocol: {NAME}").wait_for()
        assert visit.page.evaluate("window.hit") is None
        assert visit.page.locator("img[src=x], b:text('bold'), img[src*=digits]").count() == 0
        asked = [url for url in visit.requests if url.rstrip("/").endswith(("/x", "/digits"))]
        visit.page.close()
    assert asked == []


@pytest.mark.parametrize(("name", "tag"), [("audio", "audio"), ("video", "video")])
def test_what_lasts_plays(visit: Visit, tmp_path: Path, name: str, tag: str) -> None:
    """Sounds and clips play in the page, from what it holds itself, and their clock moves."""
    own = ("codec.rounds=2",) if name == "audio" else ("data.frames=8",)
    quick = ("data.count=100", "network.width=8", "network.middle=1", "batch=8", "images=32", "training.reports=1")
    train(recipe(name).set(*quick, *own, "sampling.steps=2"), tmp_path / name)
    with served(tmp_path / name) as address:
        visit.page.goto(address)
        visit.page.get_by_role("button", name="Generate").wait_for()
        visit.press("Generate")
        media = visit.page.locator(tag).first
        media.wait_for(state="attached")
        length = visit.until(lambda: media.evaluate("one => one.readyState >= 2 && one.duration"))
        assert 0.3 < length < 10
        media.evaluate("one => { one.muted = true; one.loop = true; return one.play(); }")
        visit.until(lambda: media.evaluate("one => one.currentTime > 0.1"))
        visit.shoot(f"plays-{name}")
        visit.page.goto(visit.address)
        visit.page.get_by_role("button", name="Generate").wait_for()
    visit.requests[:] = [url for url in visit.requests if not url.startswith(address)]


def test_blind_votes_are_counted_and_survive_a_restart(visit: Visit, digits_run: Path, tmp_path: Path) -> None:
    """One run is always preferred, and stands left half of the time; the page says nothing of who stands where."""
    other = shutil.copytree(digits_run, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    save_file({name: 1.2 * one for name, one in weights.items()}, other / "model.safetensors")
    liked, sides = load(digits_run, "cpu"), []

    def matching(guest: Visit, wanted: np.ndarray) -> str | None:
        """The side that shows a picture, once both sides show one."""
        sources = {side: guest.source(side) for side in ("Left", "Right")}
        if not all(sources.values()):
            return None
        assert not any(name in source for name in (digits_run.name, other.name) for source in sources.values())
        found = [side for side in sources if np.abs(guest.pixels(sources[side]) - wanted).max() <= 1]
        return found[0] if len(found) == 1 else None

    for first in (0, 4):
        with served(digits_run, other, options=("--votes", str(tmp_path / "votes.jsonl"))) as address:
            guest = Visit(visit.page.context.browser, address)
            guest.tab("Blind comparison")
            guest.press("Same")
            guest.page.get_by_text("show two samples first").first.wait_for()
            guest.press("Show two samples")
            for number in range(first, first + 4):
                wanted = liked.sample(1, str(number), seed=number)[0, 0].numpy().astype(int)
                sides.append(guest.until(partial(matching, guest, wanted)))
                assert guest.text("Both are to show") == str(number)
                said = guest.text("Votes on these two runs")
                assert said.startswith(f"{counted(number, 'vote')}: digits was preferred in {number}, other in 0")
                guest.page.wait_for_timeout(400)  # a vote that comes at once is taken for a double click
                guest.press(sides[-1])
                guest.until(partial(lambda one, before: one.text("Votes on these two runs") != before, guest, said))
            assert f"digits was preferred in {first + 4}, other in 0" in guest.text("Votes on these two runs")
            if first:
                guest.shoot("blind")
            guest.page.close()
    assert sorted(sides) == ["Left"] * 4 + ["Right"] * 4


def test_a_denoising_is_stopped(visit: Visit) -> None:
    visit.tab("Generate")
    visit.fill("Show", "3")
    visit.fill("Steps (0: the run's own)", "1000")
    visit.press("Generate")
    visit.until(lambda: "of 1000" in visit.text("Progress"))
    visit.press("Stop")
    visit.page.wait_for_timeout(2000)  # a frame that was on its way may still come
    before = visit.text("Progress")
    visit.page.wait_for_timeout(2000)
    assert visit.text("Progress") == before
    assert not before.startswith("1000 steps")
