"""Numbers on the command line: a word that is none gets one sentence."""

from collections.abc import Callable
from typing import get_args, get_origin

from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

Number = int | float
Parsed = Number | tuple[Number, ...] | None
REGISTRY = ConstructorRegistry()
"""How options are read from words, beyond what tyro knows."""
KINDS: dict[type[Number], str] = {int: "a whole number", float: "a number"}


@REGISTRY.primitive_rule
def read_numbers(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Parsed] | None:
    """Return how an option is read that is a number, a number or None, or several numbers; None for others."""
    for kind, what in KINDS.items():
        if info.type in (kind, kind | None):
            return _spec(kind, what, several=False)
        if get_origin(info.type) is tuple and get_args(info.type) == (kind, ...):
            return _spec(kind, what, several=True)
    return None


def _spec(kind: Callable[[str], Number], what: str, several: bool) -> PrimitiveConstructorSpec[Parsed]:
    """Return how one number or several are read."""

    def one(word: str) -> Number:
        try:
            return kind(word)
        except ValueError:
            raise ValueError(f"{word!r} is not {what}") from None

    def read(words: list[str]) -> Parsed:
        return tuple(map(one, words)) if several else one(words[0])

    def written(value: Parsed) -> list[str]:
        return [str(part) for part in (value if isinstance(value, tuple) else (value,))]

    metavar = "INT" if kind is int else "FLOAT"
    return PrimitiveConstructorSpec("*" if several else 1, metavar, read, lambda value: True, written)
