"""What a person sees as one sentence: their own mistake, a failing environment, and a stop that they ordered."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A request that cannot be met as asked: says what is wrong, where, and what to do. Exit code 2."""


class EnvironmentFailure(RuntimeError):
    """Disk, memory or network failed while the request itself was fine. Exit code 1."""


class Stopped(Exception):
    """A run was asked to stop by a signal, and did so without loss. Exit code 128 and the signal's number."""

    def __init__(self, message: str, number: int) -> None:
        """Say how to go on, and which signal it was."""
        super().__init__(message)
        self.code = 128 + number


def out_of_memory(error: BaseException) -> bool:
    """Say whether an error means that memory is full: Python's, torch's or a GPU's."""
    torch_says = ("can't allocate memory", "out of memory", "bad_alloc", "ALLOC_FAILED")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in torch_says)
    )


def unknown(what: str, name: str, known: Iterable[str]) -> UserError:
    """Return the error for a name that is not among `known`, with the nearest right one.

    Args:
        what: The kind of thing that was named, for instance `"solver"`.
        name: What the user wrote.
        known: The names that would have been right.

    Returns: A `UserError` to raise.
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    advice = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(names)}."
    return UserError(f"unknown {what} {name!r}: {advice}")
