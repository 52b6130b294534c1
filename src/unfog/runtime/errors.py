"""Errors shown to the user as one sentence: their own mistake, a failing environment, or a requested stop."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """The user's mistake: says what is wrong, where, and what to do. Exit code 2."""


class EnvironmentFailure(RuntimeError):
    """Disk, memory or network failed; the request itself was fine. Exit code 1."""


class Stopped(Exception):
    """A run stopped on a signal without losing anything. Exit code: 128 + the signal's number."""

    def __init__(self, message: str, number: int) -> None:
        """Take a message that says how to resume, and the signal's number."""
        super().__init__(message)
        self.code = 128 + number


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error means out of memory, on the CPU or a GPU."""
    phrases = ("can't allocate memory", "out of memory", "bad_alloc", "ALLOC_FAILED")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(phrase in str(error) for phrase in phrases)
    )


def unknown(what: str, name: str, known: Iterable[str]) -> UserError:
    """Return the error for an unknown name, with the closest known one as a suggestion.

    Args:
        what: The kind of thing, for instance `"solver"`.
        name: What the user wrote.
        known: The valid names.

    Returns: A `UserError` to raise.
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    advice = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(names)}."
    return UserError(f"unknown {what} {name!r}: {advice}")
