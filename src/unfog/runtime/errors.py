"""Errors shown to the user as one sentence: their own mistake, a failing environment, or a requested stop."""

import difflib
import math
from collections.abc import Iterable
from numbers import Real
from operator import index
from pathlib import Path

ELSEWHERE = {
    "ddpm": "ancestral",
    "dpm-solverpp": "dpmpp-2m",
    "epsilon": "eps",
    "euler-a": "euler-ancestral",
    "lms": "adams-bashforth",
    "plms": "adams-bashforth",
    "rectified-flow": "flow",
    "sample": "x0",
    "v-prediction": "v",
    "velocity": "flow",
}
"""What other toolkits call some of our parts."""


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


class Note(UserWarning):
    """Something to know, where nothing is wrong."""


class Remark(str):
    """A sentence of that kind, among others that warn."""


def warning_of(sentence: str) -> type[Warning]:
    """Return the category of a warning with this sentence."""
    return Note if isinstance(sentence, Remark) else UserWarning


def whole_number(what: str, value: object, least: int, most: int | None = None, bounds: str = "") -> int:
    """Return a whole number of any integer type.

    Args:
        what: What it is, as a message begins.
        value: The number.
        least: The least that it may be.
        most: The most that it may be.
        bounds: Both in words, where the numbers are long.

    Raises: UserError: If it is no whole number, or out of range.
    """
    wanted = f", {least:,} or more" if most is None else f" {bounds or f'from {least:,} to {most:,}'}"
    try:
        number = least - 1 if isinstance(value, bool) else index(value)  # type: ignore[arg-type]  # refused below
    except TypeError:
        number = int(value) if isinstance(value, float) and value.is_integer() else least - 1
    if number < least or (most is not None and number > most):
        raise UserError(f"{what} must be a whole number{wanted}, not {value!r}")
    return number


def seconds(what: str, value: object) -> float:
    """Return a time in seconds of any type of number.

    Args:
        what: What it is, as a message begins.
        value: The number.

    Raises: UserError: If it is no number, not above 0, or infinite.
    """
    number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else 0.0
    if not 0 < number < math.inf:
        raise UserError(f"{what} must be a number of seconds above 0, and finite, not {value!r}")
    return number


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error means out of memory, on the CPU or a GPU."""
    phrases = ("can't allocate memory", "out of memory", "bad_alloc", "ALLOC_FAILED")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(phrase in str(error) for phrase in phrases)
    )


def nearby(path: Path) -> str:
    """Return a folder that exists next to a missing one and has nearly its name, as a question; else nothing."""
    try:
        names = [one.name for one in path.parent.iterdir() if one.is_dir()][:10_000]
    except (OSError, ValueError):
        return ""
    near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.8)
    return f"did you mean {path.parent / near[0]}?" if near and near[0] != path.name else ""


def unknown(what: str, name: str, known: Iterable[str]) -> UserError:
    """Return the error for an unknown name, with the closest known one as a suggestion.

    Args:
        what: The kind of thing, for instance `"solver"`.
        name: What the user wrote.
        known: The valid names.

    Returns: A `UserError` to raise.
    """
    names = sorted(known)
    plain = name.lower().replace("_", "-").replace(" ", "-").replace("+", "p")
    elsewhere = ELSEWHERE.get(plain, "")
    near = [elsewhere] if elsewhere in names else difflib.get_close_matches(plain, names, n=1, cutoff=0.5)
    advice = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(names)}."
    return UserError(f"unknown {what} {name!r}: {advice}")
