"""One-line messages on the terminal, streams whose reader may go, signs of life, and exit codes."""

import io
import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from datetime import timedelta
from typing import Any, TextIO, cast

from unfog.runtime.errors import EnvironmentFailure, Note, Stopped, UserError, out_of_memory

LONGEST = 2000
"""Characters in a message, at most: some quote a value from a file."""
PARAMETER = re.compile(
    r"`(accept_changed_data|after|before|budget|condition|data|follow|fresh|image|init_from|label|label_from|mask|negative|"
    r"images|keep_teacher|out|points|prompt|resume|rows|scales|size|teacher|values)`"
)
"""A parameter as the library's messages name it; the flags of verbs have the same names."""


EVERY = 15.0
"""Seconds without a word after which a verb whose output goes to a pipe or a file says that it is at work."""


class Lasting:
    """A stream that goes quiet when its reader is gone, as behind `| head`, so that the work continues."""

    def __init__(self, stream: TextIO) -> None:
        """Wrap a stream."""
        self.stream = stream
        self.wrote = time.monotonic()

    def __getattr__(self, name: str) -> Any:
        """Be the stream in everything else."""
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Write, and flush whole lines: who reads a pipe sees them when they are said."""
        self.wrote = time.monotonic()
        try:
            self.stream.write(text)
            if "\n" in text:
                self.stream.flush()
        except BrokenPipeError:
            self._go_quiet()
        return len(text)

    def flush(self) -> None:
        """Flush."""
        try:
            self.stream.flush()
        except BrokenPipeError:
            self._go_quiet()

    def _go_quiet(self) -> None:
        """Lead what is still written nowhere, also what Python flushes at its very end."""
        with suppress(OSError), open(os.devnull, "w") as null:
            os.dup2(null.fileno(), self.stream.fileno())


@contextmanager
def lasting(verb: str) -> Iterator[None]:
    """Let both streams outlast their readers, and say now and then that a silent verb is at work.

    Args:
        verb: The verb; the playground, which waits for visitors, stays silent.
    """
    if sys.stdout is None or sys.stderr is None:  # closed by the shell: what is printed is lost
        yield
        return
    streams = out, err = Lasting(sys.stdout), Lasting(sys.stderr)
    sys.stdout, sys.stderr = (cast(TextIO, stream) for stream in streams)
    over = threading.Event()
    if verb != "app" and not err.isatty():
        threading.Thread(target=_signs_of_life, args=(verb, streams, over), daemon=True).start()
    try:
        yield
    finally:
        over.set()
        for stream in streams:
            stream.flush()
        sys.stdout, sys.stderr = out.stream, err.stream


def _signs_of_life(verb: str, streams: tuple[Lasting, Lasting], over: threading.Event) -> None:
    """Print a line whenever neither stream was written to for fifteen seconds, at the start for five."""
    started = time.monotonic()
    while not over.wait(EVERY / 15):
        now, last = time.monotonic(), max(stream.wrote for stream in streams)
        if now - last >= (EVERY if last > started else EVERY / 3):
            print(f"unfog {verb}: at work for {timedelta(seconds=round(now - started))}", file=streams[1])


def prepare() -> None:
    """Let the streams print file names that are not valid text."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def say(kind: str, message: object) -> None:
    """Print a message as one line of limited length, without control characters, which may come from a file."""
    text = str(message)
    if len(text) > LONGEST:
        text = f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}"
    print(f"{kind}: {plain(text)}", file=sys.stderr)


def plain(text: str) -> str:
    """Return a text with its control characters spelled out."""
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text)


def warn(message: Warning | str, *rest: Any, **more: Any) -> None:
    """Print a warning, or a note, as one line."""
    say("note" if isinstance(message, Note) else "warning", message)


def end(error: BaseException) -> int:
    """Print the error and return the exit code.

    Raises: BaseException: The error itself, if it is a bug.
    """
    if isinstance(error, UserError):
        code, words = 2, PARAMETER.sub(lambda found: f"--{found[1].replace('_', '-')}", str(error))
    elif isinstance(error, EnvironmentFailure):
        code, words = 1, str(error)
    elif isinstance(error, Stopped):
        code, words = error.code, str(error)
    elif _interrupted(error):
        code, words = 130, "stopped"
    elif isinstance(error, OSError) or out_of_memory(error):
        why = (str(error) or "out of memory").splitlines()[0]
        code, words = (
            1,
            f"the system reports an error ({why}): check the file or device that it names, or use less memory",
        )
    else:
        raise error
    say("unfog", words)
    return code


def _interrupted(error: BaseException) -> bool:
    """Return whether Ctrl-C is behind an error: a library that is being imported may turn it into one of its own."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, KeyboardInterrupt):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


@contextmanager
def together() -> Iterator[None]:
    """Join the processes that torchrun started, of which only the first one prints."""
    if os.environ.get("WORLD_SIZE", "1") == "1":  # importing torch takes a second, too long for --help
        yield
        return
    from unfog.runtime.distributed import joined, rank

    with joined(), ExitStack() as quiet:
        if rank():
            null = quiet.enter_context(open(os.devnull, "w"))
            quiet.enter_context(redirect_stdout(null))
            quiet.enter_context(redirect_stderr(null))  # its error is printed outside of this context
        yield
