"""What each setting of a recipe does: read from the docstrings of its parts, so that there is no second list."""

import inspect
import json
import re
import textwrap
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, Protocol, Union, get_args, get_origin

from unfog.recipes.kinds import KINDS, kind_of, options_of
from unfog.recipes.vocabulary import SHORT
from unfog.runtime.errors import UserError

NOT_CHOSEN = frozenset({"elsewhere", "given"})
"""Kinds that stand for data which only Python or another toolkit has."""
SEE = re.compile(r",? see `unfog\.(data\.[\w.]+)\.(\w+)`\.?")
"""Where the docstring of a part leaves its options to that of a function."""
COLUMN, LONGEST = 36, 60
"""Where the text about a setting begins, and the characters of a value, at most."""
WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


class Setting(NamedTuple):
    """One setting of a recipe.

    Attributes:
        path: Its name, as `--set` and `recipe.json` know it.
        value: Its value in the recipe.
        meaning: What it does, with its unit.
        choices: What else it can be.
    """

    path: str
    value: object
    meaning: str
    choices: str


class Recipelike(Protocol):
    """What is described: a recipe, whose fields are its parts."""

    @property
    def name(self) -> str:
        """The recipe's name."""
        ...

    @property
    def seed(self) -> int:
        """Seed of every random draw."""
        ...


def described(recipe: Recipelike) -> list[Setting]:
    """Return every setting of a recipe, each part followed by its options."""
    of_parts = meanings(type(recipe))
    found = []
    for field in KINDS:
        part = getattr(recipe, field)
        kind = name_of(field, part)
        whole = summary(type(part)) if len(KINDS[field]) == 1 else f"{of_parts[field]} {kind}: {summary(type(part))}"
        found.append(Setting(field, kind, whole, alternatives(field, kind)))
        texts = meanings(type(part))
        for option, (annotation, _) in options_of(type(part)).items():
            value = getattr(part, option)
            found.append(Setting(f"{field}.{option}", value, texts.get(option, ""), allowed(annotation)))
    return [*found, Setting("seed", recipe.seed, of_parts["seed"], WORDS[int])]


def name_of(field: str, part: object) -> str:
    """Return the name of a part's kind, or that of its class where it has none."""
    try:
        return kind_of(field, part)
    except UserError:
        return type(part).__name__


def summary(part: type) -> str:
    """Return what a kind of part is: the first paragraph of its docstring."""
    network = getattr(part, "network", None)
    said = inspect.getdoc(part if network is None else network) or ""
    return SEE.sub(".", said.split("\n\n")[0].replace("\n", " "))


def alternatives(field: str, kind: str) -> str:
    """Return the other kinds of a part, in words."""
    others = [one for one in KINDS[field] if one not in NOT_CHOSEN | {kind}]
    return f"or {', '.join(others)}" if others else ""


def meanings(part: type) -> dict[str, str]:
    """Return what each option of a part does, by name.

    The text is that of "Attributes:" in the docstring of the class or of a base. The options of networks are described
    where the network is built, those of data where they are read.
    """
    return _meanings(part)


@cache
def _meanings(part: type) -> dict[str, str]:
    """Read the docstrings."""
    texts: dict[str, str] = {}
    for one in reversed(part.__mro__):
        own = inspect.cleandoc(one.__doc__ or "")
        texts |= {**_entries(own, "Args"), **_entries(own, "Attributes")}
        if (elsewhere := SEE.search(own)) is not None:
            read = getattr(import_module(f"unfog.{elsewhere[1]}"), elsewhere[2])
            texts |= _entries(inspect.getdoc(read) or "", "Args")
    network = getattr(part, "network", None)
    return texts if network is None else {**texts, **_entries(inspect.getdoc(network.__init__) or "", "Args")}


def _entries(text: str, section: str) -> dict[str, str]:
    """Return the entries of a section of a docstring in Google's style, each as one line."""
    found = re.search(rf"^{section}:\n((?:    .*\n?|\n)+)", text, re.MULTILINE)
    entries = re.findall(r"^    (\w+): (.*(?:\n {5,}.*)*)", found[1] if found else "", re.MULTILINE)
    return {name: " ".join(lines.split()) for name, lines in entries}


def allowed(annotation: Any) -> str:
    """Return what values an annotation allows, in words."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return _either([str(one) for one in inner])
    if origin in (Union, UnionType):
        return _either(["null" if one in (None, NoneType) else allowed(one) for one in inner])
    if origin in (list, tuple, Sequence):
        each = allowed(inner[0]).removeprefix("a ").removeprefix("whole ")
        return "a list of true and false" if inner[0] is bool else f"a list of {each}s"
    return WORDS.get(annotation, "another part, by its name")


def _either(words: Sequence[str]) -> str:
    """Return choices in words."""
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def text(recipe: Recipelike, width: int = 100) -> str:
    """Return every setting of a recipe with its value, what it does and what else it can be, as lines of text."""
    lines: list[str] = []
    short = {long: name for name, long in SHORT.items()}
    for path, value, meaning, choices in described(recipe):
        notes = [choices, f"short: {short[path]}"] if path in short else [choices]
        head = f"{'  ' * path.count('.')}{path} = {shown(value)}"
        said = f"{meaning} [{'; '.join(filter(None, notes))}]" if any(notes) else meaning
        body = textwrap.wrap(said, max(20, width - COLUMN), break_on_hyphens=False) or [""]
        if len(head) >= COLUMN - 1:
            lines.append(head)
            head = ""
        lines += [f"{first:{COLUMN}}{line}" for first, line in zip([head, *[""] * len(body)], body, strict=False)]
    return "\n".join(lines)


def brief(recipe: Recipelike, width: int = 100) -> str:
    """Return the parts of a recipe, one a line, with the options that differ from their defaults."""
    lines = [f"Recipe {recipe.name!r}"]
    for field in KINDS:
        part = getattr(recipe, field)
        known = options_of(type(part))
        changed = [
            f"{name}={shown(value)}" for name, one in known.items() if (value := getattr(part, name)) != one.default
        ]
        line = f"  {field:13} {' '.join([name_of(field, part), *changed])}"
        lines.append(line if len(line) <= width else f"{line[: width - 3]}...")
    return "\n".join([*lines, f"  {'seed':13} {recipe.seed}"])


def shown(value: object) -> str:
    """Return a value as it is written after `--set PATH=`, cut where it is long."""
    plain = json.dumps(value, default=repr) if isinstance(value, list | tuple | bool | None) else str(value)
    return plain if len(plain) <= LONGEST else f"{plain[: LONGEST - 3]}..."
