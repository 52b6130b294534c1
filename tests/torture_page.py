"""Asks the playground, thousands of times, for what it must not give, and tells what it gave.

    python -m tests.torture_page --count 2000

Each request is a function of the seed and its number. Private files lie beside the page, and another visitor has
uploaded a picture and was given one: a request fails if an answer holds any of them, if a path that is not the asking
visitor's own is accepted anywhere, or if the page does not answer. The page's terminal must show no traceback.
"""

import argparse
import io
import json
import os
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image
from rich.console import Console

from tests.app.playground import served
from tests.conftest import PATIENCE
from unfog.recipes.presets import recipe
from unfog.runs.run import train

API = "gradio_api/"
ODD: list[object] = [
    *(None, True, "", " ", [], [[]], {}, {"": ""}, -1, 0, 0.5, 1e30, -(2**63), 2**64, 10**40, "NaN", "inf", "1e999"),
    *("../../etc/passwd", "<img src=x onerror=alert(1)>", "\u202e\x00", "x" * 3000, {"__type__": "update", "value": 1}),
]
"""Values that no field of the page has."""
RAW = ["NaN", "Infinity", "-Infinity", "1e999", '"\\ud800"', "[" * 4000, "{", '{"path":'.ljust(3000, "[")]
"""Values that only text can have."""
HOSTS = [
    "evil.example",
    "evil.example:{port}",
    "127.0.0.1.evil.example",
    "localhost.evil.example:{port}",
    "0.0.0.0.nip.io",
]
ORIGINS = ["https://evil.example", "null", "http://127.0.0.1:1", "http://localhost", "file://", "http://[", "127.0.0.1"]
ROUTES = {
    "GET": (
        *("", "config", "static/{}", "assets/{}", "svelte/{}", "monitoring", "monitoring/summary", "logout"),
        *("?deep_link={}", "{api}deep_link?session_hash={s}", "{api}file={}", "{api}file/{}", "{api}file={url}"),
        *("{api}proxy={}", "{api}proxy={url}", "{api}stream/{s}/0/1/playlist-file", "{api}info", "{api}openapi.json"),
        *("{api}heartbeat/{s}?x=1", "{api}queue/data?session_hash={s}", "{api}call/fog/{s}", "{api}call/v2/fog/{s}"),
        *("{api}custom_component/{s}/client/component/{}", "{api}vibe-code", "{api}dev/reload", "{api}runs"),
        *("{api}token", "{api}user", "{api}upload_progress?upload_id={s}", "{api}queue/status", "{api}app_id"),
    ),
    "POST": (
        *("{api}component_server", "{api}process_recording", "{api}vibe-edit", "{api}stream/{s}", "{api}reset"),
        *(
            "{api}cancel",
            "{api}queue/join",
            "{api}run/fog",
            "{api}api/{}",
            "{api}call/fog",
            "{api}call/v2/fog",
            "login",
        ),
    ),
    "HEAD": ("", "{api}file={}"),
    "PUT": ("{api}upload",),
    "DELETE": ("{api}file={}",),
}
"""What Gradio has, by methods."""


@dataclass
class Outcome:
    """What happened.

    Attributes:
        requests: How many were sent.
        kinds: How many of each kind.
        statuses: How many answers had each status; `refused` and `done` are those of the queue.
        own: Files that the page served, all of them the visitor's own.
        troubles: What must not be.
    """

    requests: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)
    own: int = 0
    troubles: list[str] = field(default_factory=list)


def noise(seed: int) -> bytes:
    """Return a picture whose bytes are like no other's."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def found(value: object) -> Iterator[str]:
    """Yield the paths in an answer."""
    if isinstance(value, dict):
        if isinstance(value.get("path"), str):
            yield value["path"]
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from found(part)


class Stranger:
    """A visitor who asks for what is not theirs."""

    def __init__(self, address: str, folder: Path, seed: int) -> None:
        """Plant private files, have another visitor use the page, and learn what it offers."""
        self.address, self.draw, self.outcome = address, random.Random(seed), Outcome()
        self.client, self.other = (httpx.Client(base_url=address, timeout=PATIENCE) for _ in range(2))
        config = self.client.get("config").json()
        self.other.get("config")
        self.parts = {part["id"]: part for part in config["components"]}
        self.endpoints = config["dependencies"]
        self.mine = self._upload(self.client, noise(seed + 1))
        theirs = self._upload(self.other, noise(seed + 2))
        picture = {"path": theirs, "meta": {"_type": "gradio.FileData"}}
        fogged = self._queued(self.other, "fog", json.dumps([picture, 0.5]), "theirs")
        self.private = [noise(seed + 3), b"nobody is to read this", noise(seed + 2)]
        for name, data in (("private.png", self.private[0]), ("secret.txt", self.private[1])):
            (folder / name).write_bytes(data)
        (folder / "linked.png").symlink_to(folder / "private.png")
        files = [str(folder / name) for name in ("private.png", "secret.txt", "linked.png")]
        files += [*found(fogged), theirs, "/etc/passwd", "/dev/zero", str(folder), sys.executable]
        relative = [os.path.relpath(path) for path in files]
        self.foreign = [*files, *relative, *(f"/proc/self/root{path}" for path in files), f"{address}config", "x\x00"]
        self.foreign += [f"file://{files[0]}", f"{Path(self.mine).parent}/../x/{files[0]}", str(Path(theirs).parent)]
        self.own = {self.mine}

    @staticmethod
    def _upload(client: httpx.Client, data: bytes) -> str:
        """Upload a picture, and return where it lies."""
        answer = client.post(f"{API}upload", files={"files": ("picture.png", data)}).raise_for_status()
        return str(answer.json()[0])

    def _queued(self, client: httpx.Client, name: str | int, data: str, session: str) -> Any:
        """Ask through the queue, and return the last message, or None where the request was refused."""
        number = name if isinstance(name, int) else next(e["id"] for e in self.endpoints if e["api_name"] == name)
        body = f'{{"data": {data}, "fn_index": {number}, "session_hash": {json.dumps(session)}}}'
        headers = {"content-type": "application/json"}
        joined = client.post(f"{API}queue/join", content=body.encode(), headers=headers)
        self._look(joined)
        if joined.status_code >= 400:
            return None
        with client.stream("GET", f"{API}queue/data", params={"session_hash": session}) as answer:
            for line in answer.iter_lines():
                if line.startswith("data:") and (message := json.loads(line[5:]))["msg"] == "process_completed":
                    return message
        return None

    def _look(self, answer: httpx.Response) -> httpx.Response:
        """Look for what is private in an answer."""
        self.outcome.statuses[str(answer.status_code)] += 1
        if any(data in answer.content for data in getattr(self, "private", ())):
            self.outcome.troubles.append(f"{answer.request.method} {answer.request.url} gave a private file")
        if answer.status_code >= 500 and "error" not in answer.text:
            self.outcome.troubles.append(f"{answer.request.method} {answer.request.url}: {answer.text[:200]}")
        return answer

    def named(self, path: str) -> dict[str, object]:
        """Return a file as a request may name it."""
        marks: list[dict[str, object]] = [{}, {"meta": {}}, {"meta": {"_type": "gradio.FileData"}}, {"is_stream": True}]
        marks += [{"url": f"{self.address}config"}, {"url": f"file://{path}"}, {"orig_name": "x.svg"}, {"size": 1}]
        return {"path": path, **self.draw.choice(marks), **self.draw.choice(marks)}

    def value(self, part: dict[str, Any]) -> object:
        """Return what a person could give for a field."""
        mine = {"path": self.mine, "meta": {"_type": "gradio.FileData"}}
        kinds = {"image": mine, "imageeditor": {"background": mine, "layers": [mine], "composite": mine}}
        label = part["props"].get("label") or ""
        fixed = 1 if label == "Count" or label.startswith("Steps") else part["props"].get("value")
        return kinds.get(part["type"], fixed)

    def call(self) -> None:
        """Ask an endpoint by any of its ways, mostly with a foreign file in it, or with what is no value of a field."""
        draw, end = self.draw, self.draw.choice(self.endpoints)
        data = [self.value(self.parts[number]) for number in end["inputs"]]
        foreign = draw.random() < 0.6
        place = draw.randrange(len(data) + (not data)) if data else 0
        wrong = self.named(draw.choice(self.foreign)) if foreign else draw.choice(ODD)
        if foreign and draw.random() < 0.5:
            own = self.named(self.mine)
            wrong = draw.choice([[wrong], {"value": wrong}, {"background": wrong}, {**own, "x": {"y": [wrong]}}])
            if draw.random() < 0.3:
                layers = [own] * draw.choice([0, 1, 40])
                wrong = {
                    "background": own,
                    "layers": [*layers, wrong],
                    "composite": own,
                    "id": draw.choice([None, "x"]),
                }
        if foreign or draw.random() < 0.7:  # else it is as a person would ask
            data[place : place + 1] = [wrong]
        if not foreign and draw.random() < 0.2:
            data = draw.choice([[], data[:-1], data * 9, None, {"x": 1}, "x"])  # type: ignore[list-item]
        text = json.dumps(data)
        if not foreign and draw.random() < 0.3:
            text = text.replace(json.dumps(wrong), draw.choice(RAW), 1)
        session = draw.choice(["", "theirs", *[f"mine-{self.outcome.requests}"] * 4])
        way = draw.choice(["queue", "queue", "run", "api", "call", "number"])
        if way == "queue":
            message = self._queued(self.client, end["id"], text, session)
            self._judge(message is not None and message["success"], foreign, end, wrong)
            self.own |= set(found(message)) if message and message["success"] else set()
            return
        number = f', "fn_index": {draw.choice([end["id"], -1, 99, "[]"])}' if way == "number" else ""
        body = f'{{"data": {text}, "session_hash": {json.dumps(session)}{number}}}'
        name = "x" if way == "number" else end["api_name"]
        headers = {"content-type": draw.choice(["application/json"] * 9 + ["text/plain"])}
        where = f"{API}{'run' if way == 'number' else way}/{name}"
        answer = self._look(self.client.post(where, content=body.encode(), headers=headers))
        if way == "call" and answer.status_code == 200:
            event = answer.json()["event_id"]
            self._judge("event: complete" in self._look(self.client.get(f"{where}/{event}")).text, foreign, end, wrong)
        elif way != "call":
            self._judge(answer.status_code == 200, foreign, end, wrong)
            self.own |= set(found(answer.json())) if answer.status_code == 200 else set()

    def _judge(self, done: bool, foreign: bool, end: dict[str, Any], wrong: object) -> None:
        """Count an endpoint's answer: a foreign file is never taken."""
        self.outcome.statuses["done" if done else "refused"] += 1
        if done and foreign:
            self.outcome.troubles.append(f"{end['api_name']} took {wrong}")

    def fetch(self) -> None:
        """Ask for a file: of the machine, of another visitor, or the asking one's own, which is served."""
        own = self.draw.choice(sorted(self.own))
        if self.draw.random() < 0.2:
            answer = self._look(self.client.get(f"{API}file={own}"))
            self.outcome.own += answer.status_code == 200
            if self._look(self.other.get(f"{API}file={own}")).status_code == 200:
                self.outcome.troubles.append(f"{own} was served to another visitor")
            return
        path = self.draw.choice(self.foreign).replace("\x00", "%00")
        way = self.draw.choice(
            ["file={}", "file=/{}", "file/{}", "stream/{}", "proxy={}", "upload/../{}", "../static/{}"]
        )
        api = self.draw.choice([API, API, API, "", API + "/"])
        answer = self._look(self.client.request(self.draw.choice(["GET", "HEAD", "POST"]), api + way.format(path)))
        if answer.status_code < 400:
            self.outcome.troubles.append(f"{way.format(path)} was answered with {answer.status_code}")

    def upload(self) -> None:
        """Upload what is no upload, or from elsewhere; a good one becomes the visitor's own."""
        name = self.draw.choice(["../../x.png", "/etc/x", "", ".", "a" * 300, "x\u202e.html", "x.svg", "state.json"])
        data = self.draw.choice(
            [noise(10**6 + self.draw.randrange(9)), b"", b"<svg onload=x>", b"%!PS\n(x) run", bytes(11 << 20)]
        )
        which = self.draw.choice(["files", "files", "x"])
        query = self.draw.choice(["", "?upload_id=x", "?upload_id=x&session_hash=theirs"])
        foreign = self.draw.random() < 0.3
        headers = {"origin": self.draw.choice(ORIGINS)} if foreign else {}
        if self.draw.random() < 0.3:
            headers["content-type"] = self.draw.choice(
                ["multipart/form-data", "multipart/form-data; boundary=x", "x/y"]
            )
        answer = self._look(self.client.post(f"{API}upload{query}", files={which: (name, data)}, headers=headers))
        if answer.status_code == 200:
            self.own |= set(answer.json())
            if foreign or "theirs" in query or len(data) > 10 << 20:
                self.outcome.troubles.append(f"an upload was taken: {headers} {query} {len(data)} bytes")

    def elsewhere(self) -> None:
        """Ask as a foreign page or under a foreign name."""
        port = httpx.URL(self.address).port
        host, origin = (self.draw.choice(names).format(port=port) for names in (HOSTS, ORIGINS))
        headers = self.draw.choice([{"host": host}, {"origin": origin}, {"x-forwarded-host": host}])
        if self.draw.random() < 0.2:
            headers = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors", "sec-fetch-dest": "image"}
        route = self.draw.choice(["", "config", f"{API}info", f"{API}file={self.mine}", f"{API}run/fog"])
        method = "POST" if "run/" in route else "GET"
        answer = self._look(self.client.request(method, route, headers=headers, json={"data": [None, 0.1]}))
        if answer.status_code < 400:
            self.outcome.troubles.append(f"{method} {route} was answered for {headers}")

    def wander(self) -> None:
        """Ask any route that Gradio has, with anything in it."""
        method = self.draw.choice(["GET", "GET", "POST", "POST", "HEAD", "PUT", "DELETE"])
        path = self.draw.choice([*self.foreign, "..%2f..%2fpyproject.toml", "%2e%2e/x", "x"]).replace("\x00", "%00")
        session = self.draw.choice(["theirs", "..", "%00", "x" * 99])
        route = self.draw.choice(ROUTES[method]).replace("{api}", API).replace("{s}", session)
        body = json.dumps(
            {self.draw.choice(["data", "event_id", "x"]): self.draw.choice(ODD), "session_hash": "theirs"}
        )
        content = self.draw.choice([body, *RAW, "", "null", "[]"]).encode() if method == "POST" else None
        where = route.replace("{url}", f"{self.address}config").replace("{}", path.lstrip("/"))
        headers = {"content-type": "application/json"}
        with self.client.stream(method, where, content=content, headers=headers) as answer:
            if "event-stream" in answer.headers.get("content-type", ""):  # which may never end
                self.outcome.troubles.append(f"{method} {where} listens to another visitor's session")
                return
            answer.read()
        self._look(answer)

    def ask(self, count: int) -> Outcome:
        """Send requests of all kinds, and at the end ask whether the page still works."""
        kinds: dict[str, tuple[Callable[[], None], int]] = {
            "call": (self.call, 5),
            "fetch": (self.fetch, 2),
            "upload": (self.upload, 1),
            "elsewhere": (self.elsewhere, 1),
            "wander": (self.wander, 2),
        }
        for _ in range(count):
            kind = self.draw.choices(list(kinds), [weight for _, weight in kinds.values()])[0]
            self.outcome.requests += 1
            self.outcome.kinds[kind] += 1
            try:
                kinds[kind][0]()
            except (httpx.InvalidURL, httpx.LocalProtocolError, UnicodeError):
                self.outcome.kinds["not sent"] += 1  # the client's own refusal
            except httpx.HTTPError as error:
                self.outcome.troubles.append(f"request {self.outcome.requests}, {kind}: {error!r}")
        mine = {"path": self.mine, "meta": {"_type": "gradio.FileData"}}
        last = self._queued(self.client, "fog", json.dumps([mine, 0.5]), "last")
        if not (last and last["success"]):
            self.outcome.troubles.append(f"the page no longer works: {str(last)[:300]}")
        self.client.close()
        self.other.close()
        return self.outcome


def main() -> int:
    """Train a small run, serve it, ask, and print what happened."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    small = ("network.width=8", "training.images=64", "training.batch=32", "training.reports=1", "sampling.steps=1")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        chosen = recipe("digits").set(*small, "optimizer.warmup=32", "sampling.batch=4")
        run = train(chosen, folder / "digits", device="cpu", console=Console(quiet=True)).path
        with served(run) as address:
            outcome = Stranger(address, folder, options.seed).ask(options.count)
            print(outcome, flush=True)
    return int(bool(outcome.troubles))


if __name__ == "__main__":
    sys.exit(main())
