"""One-line messages on the terminal, and exit codes."""

import io
import os
import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from typing import Any

from unfog.runtime.errors import EnvironmentFailure, Stopped, UserError, out_of_memory

LONGEST = 2000
"""Characters in a message, at most: some quote a value from a file."""
PARAMETER = re.compile(
    r"`(accept_changed_data|budget|data|follow|image|init_from|label|label_from|mask|negative|out|prompt|resume|size|"
    r"values)`"
)
"""A parameter as the library's messages name it; the flags of verbs have the same names."""


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
    plain = "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text)
    print(f"{kind}: {plain}", file=sys.stderr)


def warn(message: Warning | str, *rest: Any, **more: Any) -> None:
    """Print a warning as one line."""
    say("warning", message)


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
        code, words = 1, f"this machine refuses ({why}): look at the file, or ask for less at once"
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
