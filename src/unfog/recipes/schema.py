"""Types and bounds of the plain values in a recipe, which may come from an untrusted source."""

import sys
from collections.abc import Sequence
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from unfog.runtime.errors import UserError

Plain = None | bool | int | float | str | list["Plain"] | dict[str, "Plain"]
"""A JSON value."""

MOST = {
    "data.count": 10_000_000,
    "data.side": 4096,
    "data.workers": 256,
    "conditioning.length": 4096,
    "schedule.steps": 100_000,
    "times.bins": 100_000,
    "training.batch": 65_536,
    "training.seconds": 1e9,
    "sampling.batch": 65_536,
    "sampling.steps": 10_000,
}
"""The largest values of options whose cost in memory or time is proportional to them. (The cost of a network is bounded
by its number of parameters.)"""
MOST_WHOLE, MOST_NUMBER, MOST_ENTRIES = 10**12, 1e30, 100_000
"""The largest magnitude of any other integer and of any other number, and the longest list."""


def fits(value: object, annotation: Any) -> bool:
    """Return whether a plain value matches an annotation; numbers must be finite, and booleans are not numbers."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation is Any:
        return True
    if origin in (Union, UnionType):
        return any(fits(value, one) for one in arguments)
    if origin is Literal:
        return any(value == one and type(value) is type(one) for one in arguments)
    if origin is dict:
        return isinstance(value, dict)
    if origin in (list, tuple, Sequence):
        return isinstance(value, list | tuple) and all(fits(one, arguments[0]) for one in value)
    if annotation in (int, float):
        kinds = int if annotation is int else (int, float)
        return isinstance(value, kinds) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    return value is None if annotation in (None, NoneType) else isinstance(value, annotation)


def check_value(where: str, value: object, annotation: Any) -> None:
    """Raise a UserError for a value that does not match its annotation."""
    if not fits(value, annotation):
        name = annotation.__name__ if isinstance(annotation, type) else str(annotation)
        for long in ("typing.", "collections.abc."):
            name = name.replace(long, "")
        raise UserError(f"{where} must be {name}, not {value!r}")


def check_size(where: str, value: object) -> None:
    """Raise a UserError for a number or list above the bounds."""
    entries = value if isinstance(value, list | tuple) else [value]
    if len(entries) > MOST_ENTRIES:
        raise UserError(f"{where} may have at most {MOST_ENTRIES:,} entries, not {len(entries):,}")
    for entry in entries:
        most = MOST.get(where, MOST_WHOLE if isinstance(entry, int) else MOST_NUMBER)
        if isinstance(entry, int | float) and abs(entry) > most:
            raise UserError(f"{where} may be at most {most:,.13g}, not {entry:.6g}: choose a smaller number")
