"""A `repr` that fits on a screen: a class takes it by `__repr__ = brief`."""

from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

LONGEST, ENTRIES, PARTS = 100, 6, 18
"""Characters of a value, entries of a collection and parts of a module that are shown, at most."""


def brief(self: Any) -> str:
    """Return the name of an object's class with its fields, each cut where it is long."""
    names = [one.name for one in fields(self)] if is_dataclass(self) else self._fields
    shown = [f"{name}={short(getattr(self, name))}" for name in names if not name.startswith("_")]
    return f"{type(self).__name__}({', '.join(shown)})"


def short(value: object) -> str:
    """Return a value as text of limited length: modules by their size, arrays by their shape."""
    if isinstance(value, nn.Module):
        return f"<{type(value).__name__} of {parameters(value):,} parameters>"
    if isinstance(value, Tensor | np.ndarray):
        return f"<{str(value.dtype).removeprefix('torch.')} {'×'.join(map(str, value.shape)) or 'number'}>"
    if isinstance(value, list | tuple | dict | set | frozenset) and len(value) > ENTRIES:
        return f"<{type(value).__name__} of {len(value):,}>"
    text = " ".join(repr(value).split())
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def in_full(value: object) -> str:
    """Return a value as Python would show it, dataclasses with all of their fields: equal texts are equal values."""
    if is_dataclass(value) and not isinstance(value, type):
        shown = (f"{one.name}={in_full(getattr(value, one.name))}" for one in fields(value) if one.repr)
        return f"{type(value).__qualname__}({', '.join(shown)})"
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return f"({', '.join(map(in_full, value))}{',' if len(value) == 1 else ''})"
    return repr(value)


def parameters(module: nn.Module) -> int:
    """Return the number of a module's parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def outline(self: nn.Module) -> str:
    """Return the class and size of a module with those of its parts, one a line; torch prints every layer."""
    extra = self.extra_repr()
    lines = [f"{type(self).__name__} of {parameters(self):,} parameters{f': {extra}' if extra else ''}"]
    parts = list(self.named_children())
    lines += [f"  {name}: {type(part).__name__} of {parameters(part):,} parameters" for name, part in parts[:PARTS]]
    return "\n".join([*lines, *([f"  and {len(parts) - PARTS} more parts"] if len(parts) > PARTS else [])])
