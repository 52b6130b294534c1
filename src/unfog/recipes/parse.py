"""Reading and writing parts of a recipe as the plain values of `recipe.json` and of `path=value`."""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast, get_args, get_origin

from unfog.recipes.kinds import KINDS, class_of, kind_of, options_of, refusing
from unfog.recipes.schema import Plain, check_size, check_value
from unfog.runtime.errors import UserError, unknown
from unfog.runtime.files import parse_json

PLAIN_TYPES = (int, float, str, bool, dict, list, tuple)


def options(value: object) -> dict[str, Any]:
    """Return the options of a part by name."""
    return {name: getattr(value, name) for name in options_of(type(value))}


def to_plain(field: str, value: object) -> dict[str, Plain]:
    """Return the tagged form of a part, `{"kind": ..., option: value, ...}`.

    A part inside a part is written as its name alone if all its options have their defaults.

    Raises: UserError: If the part has no name.
    """
    return {"kind": kind_of(field, value), **{name: _plain(field, one) for name, one in options(value).items()}}


def _plain(field: str, value: object) -> Plain:
    """Return the value of an option as a JSON value."""
    if isinstance(value, list | tuple):
        return [_plain(field, one) for one in value]
    if isinstance(value, dict):
        return {str(name): _plain(field, one) for name, one in value.items()}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    inner = to_plain(field, value)
    kind = str(inner["kind"])
    defaults = all(getattr(value, name) == option.default for name, option in options_of(type(value)).items())
    return kind if defaults else inner


def from_plain(field: str, plain: object) -> Any:
    """Return the part of a tagged form; omitted options have their defaults.

    Raises: UserError: For an unknown kind or option, or a value of the wrong type, out of range or too large.
    """
    if not isinstance(plain, dict) or not isinstance(plain.get("kind"), str):
        raise UserError(f"the recipe's {field} must be an object with a 'kind'")
    kind, given = plain["kind"], {name: value for name, value in plain.items() if name != "kind"}
    made = class_of(field, kind)
    known = options_of(made)
    values = {}
    for name, value in given.items():
        if name not in known:
            raise unknown(f"option of {field} {kind!r}", name, known)
        values[name] = _value(field, name, value, known[name].annotation)
    defaults = {name: one.default for name, one in known.items() if one.default is not inspect.Parameter.empty}
    with refusing(f"the {field} {kind!r} cannot be built with {defaults | values}"):
        return made(**values)


def _value(field: str, name: str, value: object, annotation: Any) -> object:
    """Return the value of an option, checked against its annotation; a nested part belongs to the same field."""
    where = f"{field}.{name}"
    if _is_part(annotation):
        return from_plain(field, {"kind": value} if isinstance(value, str) else value)
    if get_origin(annotation) is tuple and _is_part(get_args(annotation)[0]):
        check_value(where, value, list[Any])
        check_size(where, value)
        part = get_args(annotation)[0]
        return tuple(_value(field, name, one, part) for one in cast(Sequence[object], value))
    check_value(where, value, annotation)
    check_size(where, value)
    if isinstance(value, int) and not isinstance(value, bool) and annotation in (float, float | None):
        return float(value)  # torch rejects integers above 2**31
    return _frozen(value)


def _frozen(value: object) -> object:
    """Return a value with tuples instead of lists."""
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value


def _is_part(annotation: Any) -> bool:
    """Return whether the values of an annotation are parts."""
    return isinstance(annotation, type) and annotation not in PLAIN_TYPES and get_origin(annotation) is None


def changed(part: object, field: str, settings: Iterable[tuple[str, object]]) -> Any:
    """Return a part with settings `("", kind)` or `(option, value)` applied in order and checked together.

    Raises: UserError: As `from_plain`.
    """
    plain: Mapping[str, object] = to_plain(field, part)
    for option, value in settings:
        if option:
            plain = {**plain, option: value}
        elif isinstance(value, str):
            plain = {"kind": value}
        else:
            raise UserError(f"{field} must be one of {', '.join(sorted(KINDS[field]))}, not {value!r}")
    return from_plain(field, plain)


def parse_value(text: str) -> object:
    """Return the JSON value of a text, or the text itself if it is not JSON; NaN and infinity stay text."""
    try:
        parsed: object = parse_json(text, parse_constant=lambda name: name)
    except ValueError:
        return text
    return parsed


def named(field: str, kind: str, **options: object) -> Any:
    """Return the part with this name and options, checked as those of an untrusted recipe.

    Raises: UserError: As `from_plain`.
    """
    return from_plain(field, {"kind": kind, **options})
