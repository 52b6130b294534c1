"""The playground's door: what is refused before Gradio reads a word of it.

A browser asks for any page that a foreign page tells it to ask for, and a foreign name may stand for this machine (DNS
rebinding). Gradio offers more than the page needs, some of it to anybody, and raises where a request is malformed.
"""

import asyncio
import ipaddress
import json
import math
import re
import secrets
import sys
from collections.abc import Awaitable, Callable, Iterable, MutableMapping, Set
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

from unfog.app.visitors import NAME, TOTAL, Visitors
from unfog.runtime.files import parse_json

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

LARGEST = 10 << 20
"""Most bytes of an uploaded file."""
LONGEST = 1 << 18
"""Most bytes of another request."""
COOKIE = "unfog-visitor"
VISITOR = "unfog.visitor"
"""Where a request's scope names its visitor."""
API = "/gradio_api"
OPEN = re.compile(
    rf"/|/(config|theme\.css|favicon\.ico|manifest\.json|robots\.txt)/?|/(assets|static|svelte)/.*"
    rf"|{API}/(info|openapi\.json|app_id|startup-events|upload_progress|user|queue/status|theme\.css)/?"
)
"""What anybody may get: the page and its assets."""
OWN = re.compile(rf"{API}/(queue/data|heartbeat/(?P<session>[^/]*)|call/(v2/)?[^/]+/(?P<event>[^/]*))")
"""What belongs to a session."""
ASKED = re.compile(rf"{API}/(?P<kind>run|api|call/v2|call|queue|cancel|reset|upload)(/(?P<name>[^/]*))?/?")
"""What is posted."""
FILE = f"{API}/file="
KEYS = ("data", "fn_index", "session_hash", "event_id", "simple_format")
"""What a request is about; the rest is not for strangers to say."""


class Refusal(Exception):
    """A request is refused: the status, and one sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        """Take both."""
        super().__init__(sentence)
        self.status = status


class Request(NamedTuple):
    """What the door reads of a request.

    Attributes:
        method: Such as GET.
        path: Where to, decoded.
        query: The last value of each key.
        headers: By names in lower case.
    """

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]


class Door:
    """An ASGI application in front of another, which it asks only what the page needs and what the visitor may."""

    def __init__(
        self,
        app: Callable[..., Awaitable[None]],
        visitors: Visitors,
        endpoints: Set[str | int],
        folder: Path,
        host: str,
        names: Iterable[str] = (),
    ) -> None:
        """Stand in front of an application.

        Args:
            app: The application.
            visitors: Who is known.
            endpoints: Names and numbers of what can be asked.
            folder: Where it puts uploads.
            host: The address that is listened on.
            names: Further names that the page has, of tunnels or proxies.
        """
        self.app, self.visitors, self.endpoints, self.folder = app, visitors, endpoints, folder
        self.names = {name.lower() for name in names}
        self.own = {"localhost", host.strip("[]").lower()}
        self.anywhere = host.strip("[]") in ("0.0.0.0", "::", "")
        self._storing = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand a request on, or refuse it."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        begun = False

        async def answer(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._admit(scope, receive, answer)
        except Exception as error:  # of malformed requests that Gradio does not expect
            if not isinstance(error, Refusal):
                words = f"unfog: a request for {scope['path'][:80]!r} failed: {error!r:.200}"
                print(words, file=sys.stderr, flush=True)
            if begun:
                with suppress(Exception):  # it may have been the end
                    await send({"type": "http.response.body", "body": b""})
            else:
                await _reply(send, error if isinstance(error, Refusal) else Refusal(400, "the page cannot answer this"))

    async def _admit(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check where a request comes from, who asks, and for what.

        Raises: Refusal: If it is refused.
        """
        asked = _read(scope)
        self._check_origin(asked)
        cookie = _cookie(asked.headers)
        if asked.method == "POST" and (found := ASKED.fullmatch(asked.path)):
            kind, name = found["kind"], found["name"]
            body = b"" if kind == "upload" else await _body(receive, LONGEST, "a request")
            told = self._checked(kind, name, body) if body or kind != "upload" else {}
            session = told.get("session_hash", asked.query.get("session_hash"))
            visitor, send = self._visitor(scope, send, cookie, session)
            if kind == "upload":
                await self._store(scope, receive, send, visitor)
            else:
                await self.app(*_with_body(scope, receive, json.dumps(told).encode()), send)
            return
        if asked.method not in ("GET", "HEAD", "OPTIONS"):
            raise Refusal(405, "the page does not take such requests")
        own = OWN.fullmatch(asked.path)
        session = own["session"] if own and own["session"] is not None else asked.query.get("session_hash")
        visitor, send = self._visitor(scope, send, cookie, session)
        event = own["event"] if own else None
        if event is not None and not (NAME.fullmatch(event) and self.visitors.admits(visitor, event, claim=False)):
            raise Refusal(403, "this is no answer to a request of yours")
        if asked.path.startswith(FILE):
            if not self.visitors.owns(visitor, asked.path.removeprefix(FILE)):
                raise Refusal(403, "this is no file that you uploaded to this page or were given by it")
        elif not (own or OPEN.fullmatch(asked.path)):
            raise Refusal(404, "the page has nothing of this name")
        await self.app(scope, receive, send)

    def _check_origin(self, asked: Request) -> None:
        """Refuse names that are not the page's, and requests that other pages make.

        Raises: Refusal: If the request names a foreign host, or comes from a foreign page.
        """
        host = asked.headers.get("host", "")
        for given in (host, asked.headers.get("x-forwarded-host", host).split(",")[0].strip()):
            if not self._is_own(name := _name(given)):
                sentence = f"this page does not answer to the name {name[:80]!r}"
                raise Refusal(403, f"{sentence}: `unfog app --allow-host NAME` admits the name of a tunnel or proxy")
        foreign = Refusal(403, "this page answers only to itself: another page asked")
        origin = asked.headers.get("origin")
        if origin is not None:
            _, _, place = origin.partition("://")
            if place.lower() != host.lower() and _name(place) not in self.names:
                raise foreign
        elif asked.headers.get("sec-fetch-site") in ("cross-site", "same-site"):
            followed = asked.headers.get("sec-fetch-mode") == "navigate", asked.headers.get("sec-fetch-dest")
            if followed != (True, "document") or asked.path != "/":  # a link to the page is not the other page's doing
                raise foreign

    def _is_own(self, name: str) -> bool:
        """Return whether a name is the page's own; numbers cannot be made to mean another machine."""
        if name in self.own or name in self.names:
            return True
        try:
            return ipaddress.ip_address(name).is_loopback or self.anywhere
        except ValueError:
            return False

    def _visitor(self, scope: Scope, send: Send, cookie: str | None, session: str | None) -> tuple[str, Send]:
        """Return who asks, and how to answer; a session that is named must be theirs.

        A browser, or a program that keeps cookies, is known by its cookie, any other program by the session it names.

        Raises: Refusal: If the session is another visitor's, or badly named.
        """
        visitor = cookie
        if session is not None:
            if not NAME.fullmatch(session):
                raise Refusal(400, "a session has a name of letters and digits")
            visitor = cookie or f"session {session}"
            if not self.visitors.admits(visitor, session):
                raise Refusal(403, "this session is another visitor's")
        scope[VISITOR] = visitor = visitor or secrets.token_urlsafe(24)
        return visitor, send if cookie or session else _introducing(send, visitor)

    def _checked(self, kind: str, name: str | None, body: bytes) -> dict[str, Any]:
        """Return what a request says, for the endpoint it names.

        Raises: Refusal: If it is malformed, or there is no such endpoint.
        """
        try:
            told = parse_json(body.decode(), parse_constant=_no_number, parse_float=_finite)
            json.dumps(told, ensure_ascii=False).encode()  # half a character cannot be answered
        except ValueError as error:
            raise Refusal(400, f"the request is no JSON that can be read ({str(error)[:80]})") from None
        if not isinstance(told, dict):
            raise Refusal(400, "the request is not a JSON object")
        session, number = told.get("session_hash"), told.get("fn_index")
        if session is None:
            told.pop("session_hash", None)
        elif not isinstance(session, str):
            raise Refusal(400, "session_hash is not text")
        if number is not None and (type(number) is not int or number not in self.endpoints):
            raise Refusal(404, "there is no endpoint of this number")
        if kind in ("run", "api", "call", "call/v2") and number is None and name not in self.endpoints:
            raise Refusal(404, f"there is no endpoint {str(name)[:80]!r}")
        if kind == "queue" and (name != "join" or number is None or session is None):
            raise Refusal(400, "a request in the queue names its endpoint and its session")
        return told if kind == "call/v2" else {key: told[key] for key in KEYS if key in told}

    async def _store(self, scope: Scope, receive: Receive, send: Send, visitor: str) -> None:
        """Hand on an upload, one at a time, once it is here as a whole, and remember whose it is.

        Raises: Refusal: If it is larger than the page's bound, or the page holds too much.
        """
        length = next((value for name, value in scope["headers"] if name == b"content-length"), b"")
        expected = int(length) if length.isdigit() else LARGEST
        if min(expected, LARGEST) > self.visitors.room():
            raise Refusal(413, f"the page keeps at most {TOTAL >> 20} MB of uploads, for an hour: try again later")
        self.visitors.arriving += min(expected, LARGEST)
        said: list[bytes] = []
        status = 0

        async def overheard(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            said.append(message.get("body", b""))
            if status == 200 and not message.get("more_body") and message["type"] == "http.response.body":
                self.visitors.give(visitor, json.loads(b"".join(said)), uploaded=True)
            await send(message)

        try:
            body = await _body(receive, LARGEST + LONGEST, f"an upload: {LARGEST >> 20} MB")
            async with self._storing:
                try:
                    await self.app(*_with_body(scope, receive, body), overheard)
                finally:
                    for left in self.folder.iterdir():  # of an upload that failed in the middle
                        if left.is_file():
                            left.unlink()
        finally:
            self.visitors.arriving -= min(expected, LARGEST)


def _read(scope: Scope) -> Request:
    """Return what the door reads of a request, and leave out of it what only a proxy of Gradio's may say."""
    scope["headers"] = [(name, value) for name, value in scope["headers"] if name.lower() != b"x-gradio-server"]
    headers: dict[str, str] = {}
    for name, value in scope["headers"]:
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        headers[key] = f"{headers[key]},{text}" if key in headers else text  # two hosts are none
    query = dict(parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True))
    return Request(scope["method"], scope["path"], query, headers)


def _name(host: str) -> str:
    """Return the name in a Host header, without port and brackets."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


def _cookie(headers: dict[str, str]) -> str | None:
    """Return the visitor's name in the cookies, if there is one."""
    cookies = dict(part.strip().partition("=")[::2] for part in headers.get("cookie", "").split(";"))
    value = cookies.get(COOKIE, "")
    return value if len(value) >= 32 and NAME.fullmatch(value) else None


def _introducing(send: Send, visitor: str) -> Send:
    """Return how to answer a visitor that is new: with a cookie."""
    cookie = f"{COOKIE}={visitor}; Path=/; HttpOnly; SameSite=Lax".encode()

    async def introduced(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), (b"set-cookie", cookie)]}
        await send(message)

    return introduced


def _no_number(word: str) -> float:
    """Refuse NaN and the infinities, which JSON does not have."""
    raise ValueError(f"{word[:40]} is no number")


def _finite(word: str) -> float:
    """Return a number, unless it is so large that it would be infinite."""
    number = float(word)
    return number if math.isfinite(number) else _no_number(word)


async def _body(receive: Receive, most: int, what: str) -> bytes:
    """Return the whole body of a request.

    Raises: Refusal: If it is longer than that, or the client left.
    """
    parts, length, more = [], 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Refusal(400, "the client left")
        parts.append(message.get("body", b""))
        length, more = length + len(parts[-1]), message.get("more_body", False)
        if length > most:
            raise Refusal(413, f"this is more than the page takes for {what}")
    return b"".join(parts)


def _with_body(scope: Scope, receive: Receive, body: bytes) -> tuple[Scope, Receive]:
    """Return a request with another body, and how to read it: at once."""
    kept = [(name, value) for name, value in scope["headers"] if name not in (b"content-length", b"transfer-encoding")]
    scope["headers"] = [*kept, (b"content-length", str(len(body)).encode())]
    first = True

    async def received() -> Message:
        nonlocal first
        if first:
            first = False
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return scope, received


async def _reply(send: Send, refusal: Refusal) -> None:
    """Answer with a sentence."""
    body = json.dumps({"error": str(refusal), "detail": str(refusal)}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
