"""The playground's page, asked by programs: many at once, one too many, and one that leaves in the middle."""

import io
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio_client
import httpx
import numpy as np
import pytest
from PIL import Image

from tests.app.playground import served
from tests.conftest import PATIENCE, until
from tests.torture_page import Stranger
from unfog.cli.main import main
from unfog.runs.run import load

PLACES = 10
FIELDS = ("digits", "", "", "", 4, 0, 0, 1, None)
"""Run, words, negative, solver, steps, guidance, seed, count, picture."""


@pytest.fixture(scope="module")
def page(digits_run: Path, points_run: Path) -> Iterator[str]:
    """The address of a page."""
    with served(digits_run, points_run) as address:
        yield address


def client(page: str, folder: Path) -> Any:
    more = {"verbose": False, "analytics_enabled": False, "httpx_kwargs": {"timeout": PATIENCE}}
    return gradio_client.Client(page, download_files=str(folder), **more)


def generate(of: Any, **changes: object) -> Any:
    """Ask for samples, by the names of the fields."""
    names = ("run", "words", "negative", "solver", "steps", "guidance", "seed", "count", "image")
    return of.submit(*{**dict(zip(names, FIELDS, strict=True)), **changes}.values(), api_name="/generate")


def pixels(path: str | Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("L")).astype(int)


@pytest.mark.slow
def test_ten_at_once_each_get_the_picture_of_the_command_line(page: str, digits_run: Path, tmp_path: Path) -> None:
    run = load(digits_run, "cpu")
    clients = [client(page, tmp_path / str(number)) for number in range(10)]
    jobs = [generate(one, words=str(number), seed=100 + number) for number, one in enumerate(clients)]
    for number, job in enumerate(jobs):
        x, x0, words, line, png, gif, _, playing = job.result(timeout=PATIENCE)
        wanted = run.sample(1, str(number), steps=4, seed=100 + number)[0, 0].numpy().astype(int)
        for path in (x, x0, png):
            assert np.abs(pixels(path) - wanted).max() <= 1
        assert f"--label {number} " in line
        assert line.endswith(f"--seed {100 + number}")
        assert words.startswith("4 steps")
        assert playing == ""  # pictures do not last
        with Image.open(gif) as film:
            assert film.n_frames == 5


@pytest.mark.slow
def test_frames_come_while_it_is_denoised(page: str, tmp_path: Path) -> None:
    job = generate(client(page, tmp_path), steps=400, words="3")
    job.result(timeout=PATIENCE)
    shown = [pixels(output[0]) for output in job.outputs()]
    assert len(shown) >= 3
    assert len({one.tobytes() for one in shown}) >= 3


@pytest.mark.slow
def test_one_too_many_gets_a_sentence_and_one_that_leaves_makes_room(page: str, tmp_path: Path) -> None:
    """One works, ten wait, the next is sent away; when the working one hangs up, the others go on."""
    clients = [client(page, tmp_path / str(number)) for number in range(PLACES + 1)]
    leaving = Leaving(page, steps=1000, count=16)
    leaving.wait_for_frames(2)
    jobs = [generate(one, seed=number) for number, one in enumerate(clients[:PLACES])]
    until(lambda: sum(job.status().rank is not None for job in jobs) == PLACES)
    with pytest.raises(Exception, match=r"[Qq]ueue is full"):
        generate(clients[-1]).result(timeout=PATIENCE)
    assert leaving.frames < 1000
    leaving.hang_up()
    for job in jobs:
        assert job.result(timeout=PATIENCE)[2].startswith("4 steps")


def join(page: str, name: str, data: list[object], session: str) -> str:
    """Ask as a browser does, and return where the answers come from."""
    root = page.rstrip("/")
    config = httpx.get(f"{root}/config", timeout=PATIENCE).json()
    number = next(one["id"] for one in config["dependencies"] if one["api_name"] == name)
    body = {"data": data, "fn_index": number, "session_hash": session}
    httpx.post(f"{root}/gradio_api/queue/join", json=body, timeout=PATIENCE).raise_for_status()
    return f"{root}/gradio_api/queue/data?session_hash={session}"


class Leaving:
    """A client that begins a request and can hang up in the middle of it."""

    def __init__(self, page: str, steps: int, count: int) -> None:
        self.frames, self.left = 0, threading.Event()
        self.where = join(page, "generate", [*FIELDS[:4], steps, *FIELDS[5:7], count, FIELDS[8]], "leaving")
        self.thread = threading.Thread(target=self.read, daemon=True)
        self.thread.start()

    def read(self) -> None:
        with httpx.stream("GET", self.where, timeout=PATIENCE) as answer:
            for line in answer.iter_lines():
                self.frames += '"process_generating"' in line
                if self.left.is_set():
                    return

    def wait_for_frames(self, count: int) -> None:
        until(lambda: self.frames >= count)

    def hang_up(self) -> None:
        self.left.set()
        self.thread.join(timeout=PATIENCE)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"words": "eleven"}, "eleven"),
        ({"steps": 10**7}, "1 to 1000 steps"),
        ({"run": "/etc"}, "/etc"),
        ({"solver": "hein"}, "hein"),
        ({"negative": "3", "guidance": 1}, "guidance"),
        ({"count": 99}, "99"),
    ],
)
def test_a_mistake_is_a_toast(page: str, tmp_path: Path, changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(Exception, match=re.escape(sentence)) as caught:
        generate(client(page, tmp_path), **changes).result(timeout=PATIENCE)
    assert "Traceback" not in str(caught.value)


SECRET = "nobody is to read this"


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret.txt"
    path.write_text(SECRET)
    return path


@pytest.mark.parametrize("where", ["file={}", "file/{}", "stream/{}", "proxy=http://127.0.0.1:1/{}", "upload/../{}"])
def test_files_cannot_be_read_through_the_page(page: str, secret: Path, where: str, digits_run: Path) -> None:
    for path in (secret, Path("/etc/passwd"), Path("pyproject.toml").resolve(), digits_run / "recipe.json"):
        for prefix in ("", "gradio_api/"):
            answer = httpx.get(f"{page}{prefix}{where.format(path)}", follow_redirects=False, timeout=PATIENCE)
            assert answer.status_code >= 400, answer.text[:200]
            assert path.read_text()[:20] not in answer.text


def test_a_picture_cannot_be_a_path_of_the_machine(page: str, secret: Path, tmp_path: Path) -> None:
    """Who asks as a program may name a path where a picture is uploaded: only uploads are read."""
    picture = tmp_path / "private.png"
    Image.new("L", (8, 8), 200).save(picture)
    for path in (picture, secret, Path("/etc/passwd")):
        named = {"path": str(path), "meta": {"_type": "gradio.FileData"}}
        where = join(page, "restyle", [*FIELDS[:4], 4, 0, 0, 1, named, 0.0], path.stem)
        with httpx.stream("GET", where, timeout=PATIENCE) as answer:
            messages = [json.loads(line[5:]) for line in answer.iter_lines() if line.startswith("data:")]
        last = next(message for message in messages if message["msg"] == "process_completed")
        assert not last["success"]
        assert SECRET not in str(messages)


@pytest.mark.parametrize("meta", [{}, {"meta": {}}, {"meta": {"_type": "other"}}], ids=["none", "empty", "other"])
@pytest.mark.parametrize("way", ["{}", "/proc/self/root{}", "linked", "relative"])
def test_a_path_that_is_not_marked_as_a_file_is_not_read(
    page: str, tmp_path: Path, way: str, meta: dict[str, Any]
) -> None:
    """Gradio checks only paths that the request itself marks, and this one gave back any picture of the machine."""
    picture = tmp_path / "private.png"
    Image.new("L", (8, 8), 200).save(picture)
    (tmp_path / "linked").symlink_to(picture)
    ways = {"linked": str(tmp_path / "linked"), "relative": os.path.relpath(picture)}
    path = ways.get(way, way).format(picture)
    named = {"path": path, **meta}
    calls = {
        "fog": [named, 0.0],
        "restyle": [*FIELDS[:4], 4, 0, 0, 1, named, 0.0],
        "generate": [*FIELDS[:4], 1, 0, 0, 1, named],
        "interpolate": [*FIELDS[:4], 4, 0, 0, 1, named, named],
        "inpaint": [*FIELDS[:4], 4, 0, 0, 1, {"background": named, "layers": [named], "composite": named}],
    }
    for name, data in calls.items():
        answer = httpx.post(f"{page}gradio_api/run/{name}", json={"data": data}, timeout=PATIENCE)
        assert answer.status_code >= 400, (name, answer.text[:500])
        assert name == "inpaint" or "was not uploaded to this page" in answer.text, (name, answer.text[:500])


@pytest.mark.slow
@pytest.mark.parametrize("part", ["background", "layers", "composite"])
def test_no_part_of_a_painting_is_a_path_of_the_machine(part: str, tmp_path: Path) -> None:
    """Gradio refuses unmarked paths in a painting by itself, before the page's own check, which is asked here."""
    import gradio
    from gradio.components.image_editor import EditorData

    from unfog.app import FOLDER
    from unfog.app.page import painting

    uploaded, private = FOLDER / "uploaded.png", tmp_path / "private.png"
    for path in (uploaded, private):
        Image.new("RGBA", (8, 8), (9, 9, 9, 255)).save(path)

    def given(path: Path) -> EditorData:
        own = {"path": str(uploaded)}
        parts: dict[str, Any] = {"background": own, "layers": [own], "composite": own}
        return EditorData(**{**parts, part: [{"path": str(path)}] if part == "layers" else {"path": str(path)}})

    board = painting("picture")
    assert board.preprocess(given(uploaded)) is not None
    with pytest.raises(gradio.Error, match="was not uploaded to this page"):
        board.preprocess(given(private))


def uploaded(one: httpx.Client, data: bytes) -> dict[str, Any]:
    """Upload a picture, and return it as a browser names it."""
    answer = one.post("gradio_api/upload", files={"files": ("picture.png", data)}).raise_for_status()
    return {"path": answer.json()[0], "meta": {"_type": "gradio.FileData"}}


def png(*shape: int, mode: str = "L") -> bytes:
    file = io.BytesIO()
    Image.new(mode, shape[::-1]).save(file, "PNG")
    return file.getvalue()


def test_a_visitor_reads_only_their_own(page: str) -> None:
    """Gradio's folder is common to all: whoever knew the bytes of another's picture was given it."""
    mine, other = (httpx.Client(base_url=page, timeout=PATIENCE) for _ in range(2))
    with mine, other:
        for one in (mine, other):
            one.get("config")
        picture = uploaded(mine, png(8, 8))
        body = {"data": [picture, 0.5], "session_hash": "mine-alone"}
        drawn = mine.post("gradio_api/run/fog", json=body).raise_for_status().json()["data"][0]
        assert len(drawn) == 5
        for path in (picture["path"], drawn[0]["image"]["path"]):
            assert mine.get(f"gradio_api/file={path}").status_code == 200
            assert other.get(f"gradio_api/file={path}").status_code == 403
            assert httpx.get(f"{page}gradio_api/file={path}", timeout=PATIENCE).status_code == 403
            for way in ("run", "api"):
                answer = other.post(f"gradio_api/{way}/fog", json={"data": [{**picture, "path": path}, 0.5]})
                assert "was not uploaded to this page" in answer.text
            bare = other.post("gradio_api/run/fog", json={"data": [{"path": path}, 0.5], "session_hash": "other"})
            assert "was not uploaded to this page" in bare.text
        assert other.post("gradio_api/run/fog", json=body).status_code == 403
        assert other.post("gradio_api/queue/join", json={**body, "fn_index": 0}).status_code == 403
        assert uploaded(other, png(8, 8)) == picture  # the same bytes: now it is theirs, too
        assert other.get(f"gradio_api/file={picture['path']}").status_code == 200


@pytest.mark.parametrize(
    ("layers", "sentence"),
    [
        (["small"] * 5, "at most 4 layers"),
        (["large"], "16,777,216 pixels"),
        (["text"], "no picture"),
        (["other"], "a layer of (9, 8) pixels"),
        (["small"], "the mask is all white"),
    ],
    ids=["many", "large", "text", "other", "fair"],
)
def test_a_painting_is_bounded_from_its_headers(page: str, layers: list[str], sentence: str) -> None:
    """Some kilobytes of a picture are half a gigabyte of pixels."""
    with httpx.Client(base_url=page, timeout=PATIENCE) as one:
        one.get("config")
        data = {"small": png(8, 8), "other": png(8, 9), "large": png(8000, 8000, mode="1"), "text": b"%!PS\n(x) print"}
        assert len(data["large"]) < 20_000
        files = {name: uploaded(one, file) for name, file in data.items()}
        drawn = {"background": files["small"], "layers": [files[name] for name in layers], "composite": None}
        body = {"data": [FIELDS[0], "3", *FIELDS[2:4], 1, 0, 0, 1, drawn]}
        assert sentence in one.post("gradio_api/run/inpaint", json=body).json()["error"]


@pytest.mark.parametrize("value", ["[]", "{}", '["digits"]', "1e999", "-1e999", '"x"', "1" + "0" * 400, "null", "NaN"])
@pytest.mark.parametrize("place", range(len(FIELDS) - 1))
def test_what_no_field_holds_is_a_sentence(page: str, place: int, value: str) -> None:
    """A list as a run, numbers that are not finite, text where a number stands; `served` finds every traceback."""
    fields = [json.dumps(field) for field in (*FIELDS[:4], 1, *FIELDS[5:])]
    fields[place] = value
    body = f'{{"data": [{", ".join(fields)}]}}'.encode()
    headers = {"content-type": "application/json"}
    answer = httpx.post(f"{page}gradio_api/run/generate", content=body, headers=headers, timeout=PATIENCE)
    assert answer.status_code == 200 or len(answer.json()["error"]) > 20, answer.text
    assert "this is a bug" not in answer.text
    assert place or answer.status_code >= 400


@pytest.mark.parametrize(
    "changes", [{"words": "<img src=x onerror=alert(1)>"}, {"run": "<img src=x onerror=alert(1)>"}]
)
def test_a_toast_is_plain_text(page: str, tmp_path: Path, changes: dict[str, object]) -> None:
    """Gradio takes it for HTML: the words of others are escaped."""
    with pytest.raises(Exception, match="&lt;img src=x") as caught:
        generate(client(page, tmp_path), **changes).result(timeout=PATIENCE)
    assert "<img" not in str(caught.value)


def test_a_hundred_hostile_requests(page: str, tmp_path: Path) -> None:
    """`make torture-page` asks two thousand times."""
    outcome = Stranger(page, tmp_path, 0).ask(100)
    assert outcome.troubles == []
    assert outcome.own


def test_pictures_are_fetched_from_nowhere(page: str, tmp_path: Path) -> None:
    """An address in the place of a picture would have the page ask for it, and read without a bound."""
    named = {"path": f"{page}config", "url": f"{page}config", "meta": {"_type": "gradio.FileData"}}
    where = join(page, "restyle", [*FIELDS[:4], 4, 0, 0, 1, named, 0.0], "address")
    with httpx.stream("GET", where, timeout=PATIENCE) as answer:
        messages = [json.loads(line[5:]) for line in answer.iter_lines() if line.startswith("data:")]
    last = next(message for message in messages if message["msg"] == "process_completed")
    assert not last["success"]
    assert "fetches no pictures" in str(last)


def test_transparent_places_are_white(page: str, tmp_path: Path) -> None:
    """As they are on the command line: the page hands on the file as it is."""
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    file = gradio_client.handle_file(str(tmp_path / "clear.png"))
    one = client(page, tmp_path / "got")
    assert pixels(one.predict("digits", "3", "", "", 3, 0, 0, 1, file, 0.0, api_name="/restyle")).min() == 255


def test_a_file_that_is_no_picture_is_a_toast(page: str, secret: Path, tmp_path: Path) -> None:
    file = gradio_client.handle_file(str(secret))
    with pytest.raises(Exception, match="no picture that can be read"):
        client(page, tmp_path / "got").predict(*FIELDS[:-1], file, 0.0, api_name="/restyle")


def test_uploads_are_bounded(page: str) -> None:
    files = {"files": ("large.png", b"\x00" * (11 << 20))}
    assert httpx.post(f"{page}gradio_api/upload", files=files, timeout=PATIENCE).status_code == 413


def test_every_action_has_a_name(page: str, tmp_path: Path) -> None:
    found = client(page, tmp_path).view_api(return_format="dict", print_info=False)["named_endpoints"]
    names = {"/generate", "/compare", "/sweep", "/row", "/fog", "/restyle", "/inpaint", "/interpolate", "/measure"}
    names |= {"/blind", "/vote"}
    assert set(found) == names


def test_the_other_actions(page: str, tmp_path: Path, digits_run: Path) -> None:
    one, image = client(page, tmp_path / "got"), tmp_path / "picture.png"
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) * 4).save(image)
    file = gradio_client.handle_file(str(image))
    shared, rule = ("digits", "3", "", 5, 2), ("", 3, 0)
    same = one.predict(*shared, *rule, *rule, api_name="/compare")
    assert same[3].startswith("mean difference 0.00")
    row = one.predict(*shared, *rule, "seed", "1, 2", api_name="/sweep")
    assert [item["caption"] for item in row] == ["seed 1", "seed 2"]
    assert pixels(one.predict("digits", 0, api_name="/row")).shape == (8, 8)
    fogged, _ = one.predict(file, 0.5, api_name="/fog")
    assert len(fogged) == 5
    wish = ("digits", "3", "", "", 3, 0, 0, 1)
    assert np.array_equal(pixels(one.predict(*wish, file, 0.0, api_name="/restyle")), pixels(image))
    words, pictures = one.predict("digits", api_name="/measure")
    assert "## Cost" in words
    assert pictures
    assert json.loads(re.findall(r"```json\n(.*?)\n```", words, re.DOTALL)[0])["name"] == "digits"


def test_a_name_to_allow_is_a_name(capsys: pytest.CaptureFixture[str], digits_run: Path) -> None:
    assert main(["app", str(digits_run), "--allow-host", "https://page.example.org/"]) == 2
    assert "without scheme and port, not 'https://page.example.org/'" in capsys.readouterr().err


def test_without_gradio_it_is_a_sentence(digits_run: Path) -> None:
    code = "import sys; sys.modules['gradio'] = None; from unfog.cli.main import main; sys.exit(main(sys.argv[1:]))"
    words = [sys.executable, "-c", code, "app", str(digits_run)]
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ})
    assert done.returncode == 2
    assert done.stderr.strip() == "unfog: the playground needs the extra 'app': pip install 'unfog[app]'"


@pytest.mark.slow
def test_a_port_that_is_taken(page: str, digits_run: Path) -> None:
    port = page.rstrip("/").rsplit(":", 1)[1]
    words = [sys.executable, "-m", "unfog", "app", str(digits_run), "--port", port]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 1
    assert "choose another port" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
