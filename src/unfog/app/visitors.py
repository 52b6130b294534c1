"""Who the visitors of the playground are, and what each of them uploaded or was given."""

import re
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from pathlib import Path

TOTAL = 256 << 20
"""Most bytes of uploads that are kept at a time."""
SESSIONS = 10_000
"""Most sessions that are remembered, as many as Gradio keeps; the oldest are forgotten first."""
NAME = re.compile(r"[\w-]{1,64}", re.ASCII)
"""What a session, or a visitor in a cookie, may call itself."""


class Visitors:
    """The visitors' files and sessions, by the visitor's name, which is a secret between the page and a browser.

    Gradio keeps the uploads of all visitors in one folder, and serves and reads any file there for whoever names it.
    """

    def __init__(self) -> None:
        """Begin without any."""
        self._lock = threading.Lock()
        self._sessions: OrderedDict[str, str] = OrderedDict()
        self._files: dict[str, set[str]] = {}
        self._uploads: dict[str, int] = {}
        self.arriving = 0
        """Bytes of uploads that are on their way."""

    def admits(self, visitor: str, session: str, claim: bool = True) -> bool:
        """Return whether a session is the visitor's own, which one that nobody has yet becomes by `claim`."""
        with self._lock:
            owner = self._sessions.get(session)
            if owner is None and claim:
                self._sessions[session] = owner = visitor
                while len(self._sessions) > SESSIONS:
                    self._sessions.popitem(last=False)
            return owner in (None, visitor)

    def give(self, visitor: str, paths: Iterable[str], uploaded: bool = False) -> None:
        """Remember files as the visitor's own; the same path can be that of several, who sent the same bytes."""
        with self._lock:
            if len(self._files) % 1000 == 999:
                self._forget()
            for path in paths:
                try:
                    size = Path(path).stat().st_size
                except (OSError, ValueError):
                    continue
                self._files.setdefault(path, set()).add(visitor)
                if uploaded:
                    self._uploads[path] = size

    def owns(self, visitor: str | None, path: str) -> bool:
        """Return whether a file is the visitor's own: named as it was named to them, since no other way is needed."""
        return visitor is not None and visitor in self._files.get(path, ())

    def room(self) -> int:
        """Return how many bytes may still be uploaded, files that are gone forgotten."""
        with self._lock:
            self._forget()
            return TOTAL - self.arriving - sum(self._uploads.values())

    def _forget(self) -> None:
        """Forget files that are gone."""
        for path in [path for path in self._files if not Path(path).is_file()]:
            del self._files[path]
            self._uploads.pop(path, None)


def paths(value: object) -> Iterator[str]:
    """Yield every path in what a request gives for an input, or gets for an output, however deep."""
    if isinstance(value, dict):
        if isinstance(path := value.get("path"), str):
            yield path
        for part in value.values():
            yield from paths(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from paths(part)
