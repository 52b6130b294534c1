"""The playground's door by itself, in front of an application that only says what reached it."""

import asyncio
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from unfog.app import visitors
from unfog.app.door import COOKIE, VISITOR, Door
from unfog.app.visitors import Visitors

HOST = {"host": "127.0.0.1:7860"}


class Page:
    """A door, and how to ask it."""

    def __init__(self, folder: Path, host: str = "127.0.0.1", names: Iterable[str] = ()) -> None:
        self.visitors, self.folder = Visitors(), folder
        self.door = Door(self.answer, self.visitors, {"fog", 3}, folder, host, names)
        self.seen: list[tuple[str, bytes]] = []

    async def answer(self, scope: Any, receive: Any, send: Any) -> None:
        """Keep what came, and answer an upload as Gradio does, with where it lies."""
        body = (await receive())["body"]
        self.seen.append((scope[VISITOR], body))
        file = self.folder / str(len(body)) / "picture.png"
        if scope["path"].endswith("/upload"):
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(body)
            (self.folder / "tmp1").write_bytes(body)  # as an upload that breaks leaves it
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": json.dumps([str(file)]).encode()})

    def ask(self, path: str, body: bytes = b"", method: str = "GET", **headers: str) -> tuple[int, str, str]:
        """Return the status of an answer, what it says, and the cookie that it sets."""
        said: list[Any] = []

        async def send(message: Any) -> None:
            said.append(message)

        async def receive() -> Any:
            return {"type": "http.request", "body": body}

        where, _, query = path.partition("?")
        raw = [(name.replace("_", "-").encode(), text.encode()) for name, text in {**HOST, **headers}.items()]
        scope = {"type": "http", "method": method, "path": where, "query_string": query.encode(), "headers": raw}
        asyncio.run(self.door(scope, receive, send))
        cookie = dict(said[0]["headers"]).get(b"set-cookie", b"").decode().partition(";")[0]
        return said[0]["status"], b"".join(message.get("body", b"") for message in said).decode(), cookie

    def join(self, session: object, **headers: str) -> int:
        body = json.dumps({"data": [], "fn_index": 3, "session_hash": session, "event_data": 1}).encode()
        return self.ask("/gradio_api/queue/join", body, "POST", **headers)[0]


@pytest.fixture
def page(tmp_path: Path) -> Page:
    return Page(tmp_path)


OWN: list[dict[str, str]] = [
    {},
    {"host": "localhost:7860"},
    {"host": "LOCALHOST"},
    {"host": "[::1]:7860"},
    {"host": "127.9.9.9"},
    {"origin": "http://127.0.0.1:7860"},
    {"host": "tunnel.example", "origin": "https://tunnel.example"},
    {"origin": "https://tunnel.example"},
    {"x_forwarded_host": "tunnel.example"},
    {"sec_fetch_site": "same-origin"},
    {"sec_fetch_site": "none", "sec_fetch_mode": "navigate"},
    {"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate", "sec_fetch_dest": "document"},
]
FOREIGN: list[dict[str, str]] = [
    {"host": "evil.example"},
    {"host": "evil.example:7860"},
    {"host": "127.0.0.1.evil.example"},
    {"host": ""},
    {"host": "[::"},
    {"host": "10.0.0.1"},
    {"x_forwarded_host": "evil.example"},
    {"origin": "https://evil.example"},
    {"origin": "null"},
    {"origin": "http://["},
    {"origin": "http://127.0.0.1:8888"},
    {"origin": "http://localhost:7860"},
    {"sec_fetch_site": "cross-site", "sec_fetch_mode": "no-cors", "sec_fetch_dest": "image"},
    {"sec_fetch_site": "same-site", "sec_fetch_mode": "cors", "sec_fetch_dest": "empty"},
    {"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate", "sec_fetch_dest": "iframe"},
]


@pytest.mark.parametrize("headers", OWN, ids=str)
def test_the_page_answers_to_its_names(tmp_path: Path, headers: dict[str, str]) -> None:
    assert Page(tmp_path, names=["tunnel.example"]).ask("/", **headers)[0] == 200


@pytest.mark.parametrize("headers", FOREIGN, ids=str)
def test_foreign_names_and_pages_are_refused(page: Page, headers: dict[str, str]) -> None:
    for path, method in (("/", "GET"), ("/gradio_api/upload", "POST"), ("/gradio_api/run/fog", "POST")):
        assert page.ask(path, b"{}", method, **headers)[0] == 403
    assert page.seen == []


def test_a_page_for_all_answers_to_addresses_but_not_to_names(tmp_path: Path) -> None:
    """A name can be made to stand for this machine, a number cannot."""
    page = Page(tmp_path, "0.0.0.0")
    assert page.ask("/", host="10.0.0.1:7860")[0] == 200
    assert page.ask("/", host="evil.example")[0] == 403


def test_a_visitor_is_known_by_a_cookie_or_a_session(page: Page) -> None:
    cookie = page.ask("/")[2]
    assert cookie.startswith(COOKIE)
    assert page.ask("/", cookie=cookie)[2] == ""
    assert page.join("mine", cookie=cookie) == 200
    assert page.join("program") == 200
    first, again, mine, program = (visitor for visitor, _ in page.seen)
    assert first == again == mine != program
    for session, other in (("mine", {}), ("program", {"cookie": cookie}), ("mine", {"cookie": page.ask("/")[2]})):
        assert page.join(session, **other) == 403
        for path in ("queue/data?session_hash=", "heartbeat/", "call/fog/", "call/v2/fog/"):
            assert page.ask(f"/gradio_api/{path}{session}", **other)[0] == 403, path
    for session in ("", "a b", "x" * 65, 3, ["mine"]):
        assert page.join(session, cookie=cookie) == 400


def test_an_upload_is_its_visitors(page: Page) -> None:
    """It is served to nobody else, nor by another name, and what a broken one left is removed."""
    mine, other = page.ask("/")[2], page.ask("/")[2]
    status, said, _ = page.ask("/gradio_api/upload", b"picture", "POST", cookie=mine)
    assert status == 200
    (path,) = json.loads(said)
    assert page.ask(f"/gradio_api/file={path}", cookie=mine)[0] == 200
    assert page.ask(f"/gradio_api/file={path}", cookie=other)[0] == 403
    assert page.ask(f"/gradio_api/file={path}")[0] == 403
    assert page.ask(f"/gradio_api/file=/proc/self/root{path}", cookie=mine)[0] == 403
    assert [file for file in page.folder.iterdir() if file.is_file()] == []
    assert page.ask("/gradio_api/upload", b"picture", "POST", cookie=other)[0] == 200  # the same bytes: the same path
    assert page.ask(f"/gradio_api/file={path}", cookie=other)[0] == 200


def test_uploads_are_bounded_in_total(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until older ones are deleted; the sentence names the bound."""
    monkeypatch.setattr(visitors, "TOTAL", 1 << 20)
    monkeypatch.setattr("unfog.app.door.TOTAL", 1 << 20)
    sent = [page.ask("/gradio_api/upload", bytes(300_000 + n), "POST", content_length=str(300_000)) for n in range(4)]
    assert [status for status, _, _ in sent] == [200, 200, 200, 413]
    assert "at most 1 MB of uploads" in sent[3][1]
    assert page.visitors.arriving == 0
    Path(json.loads(sent[0][1])[0]).unlink()
    assert page.ask("/gradio_api/upload", bytes(300_000), "POST", content_length="300000")[0] == 200
    assert page.ask("/gradio_api/upload", bytes(11 << 20), "POST", content_length="1")[0] == 413


MALFORMED = [
    b"",
    b"[]",
    b"{",
    b"\xff",
    b"[" * 9000,
    b'{"data": NaN}',
    b'{"data": 1e999}',
    b'{"data": ["\\ud800"]}',
    b'{"fn_index": true}',
]
MALFORMED += [b'{"fn_index": 9}', b'{"fn_index": NaN}', b'{"session_hash": 1}', b'"' + bytes(1 << 19) + b'"']


@pytest.mark.parametrize("body", MALFORMED, ids=lambda body: repr(body[:20]))
def test_a_malformed_request_gets_a_sentence(page: Page, body: bytes) -> None:
    for path in ("run/fog", "queue/join", "call/fog"):
        status, said, _ = page.ask(f"/gradio_api/{path}", body, "POST")
        assert 400 <= status < 500
        assert "Traceback" not in json.loads(said)["error"]
    assert page.seen == []


def test_only_what_the_page_needs_reaches_gradio(page: Page) -> None:
    """Neither other routes, nor keys that are not for a visitor to say, nor a second value for a key."""
    body = b'{"session_hash": "theirs", "data": [1], "batched": true, "trigger_id": 1, "session_hash": "mine"}'
    assert page.ask("/gradio_api/run/fog", body, "POST")[0] == 200
    assert json.loads(page.seen.pop()[1]) == {"data": [1], "session_hash": "mine"}
    closed = "component_server proxy=http://x deep_link?session_hash=x file/etc/passwd stream/a/b vibe-edit runs token"
    for path in [*closed.split(), "dev/reload", "custom_component/x/client/component/y", "process_recording"]:
        for method in ("GET", "POST", "PUT"):
            assert page.ask(f"/gradio_api/{path}", b"{}", method)[0] >= 400, path
    assert page.ask("/monitoring")[0] == 404
    assert page.seen == []


def test_what_gradio_does_not_expect_is_a_sentence(page: Page, capsys: pytest.CaptureFixture[str]) -> None:
    page.door.app = lambda *_: asyncio.sleep(0, json.loads("["))  # raises
    status, said, _ = page.ask("/config")
    assert (status, json.loads(said)["error"]) == (400, "the page cannot answer this")
    assert capsys.readouterr().err.count("\n") == 1
