"""Text for a terminal: sentences in lines that every terminal holds, and cells in columns."""

import textwrap
from collections.abc import Sequence

WIDE = 100
"""Characters of a line."""


def counted(count: int, what: str) -> str:
    """Return a number of things in words."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def lines_of(sentence: str, hanging: int = 0) -> list[str]:
    """Return a sentence in lines, all but the first indented by so many characters; none for an empty one."""
    return textwrap.wrap(
        sentence, WIDE, subsequent_indent=" " * hanging, break_long_words=False, break_on_hyphens=False
    )


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Return rows of cells as text in columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
