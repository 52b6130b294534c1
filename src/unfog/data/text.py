"""Tokenisation without a vocabulary: words become hashes, so no word is unknown and nothing is stored."""

import re
import unicodedata
import warnings
import zlib
from collections.abc import Sequence

import torch
from torch import Tensor

WORDS = 32
"""Words and punctuation marks of a text that a model reads, by default, with the start."""


def words_of(text: str) -> list[str]:
    """Return the words and punctuation marks of a text, in lower case and Unicode NFC."""
    return re.findall(r"\w+|[^\w\s]", unicodedata.normalize("NFC", text.lower()))


def tokenise(texts: Sequence[str], length: int, warn: bool = False) -> Tensor:
    """Return texts as integers, `(texts, length)`: 1 is the start, 0 is padding, a word is 2 or more.

    A word's number is its CRC-32.

    Args:
        texts: Any texts; the empty text is only the start.
        length: Tokens per text including the start; longer texts are truncated.
        warn: Whether to warn about truncated texts.
    """
    rows = torch.zeros(len(texts), length, dtype=torch.long)
    rows[:, 0] = 1
    for row, text in enumerate(texts):
        words = words_of(text)
        if warn and len(words) >= length:
            warnings.warn(
                f"a prompt of {len(words)} words was truncated to this model's limit of {length - 1}: "
                f"omitted is {' '.join(words[length - 1 :])!r}",
                stacklevel=2,
            )
        numbers = [max(2, zlib.crc32(word.encode("utf-8", "surrogatepass"))) for word in words[: length - 1]]
        rows[row, 1 : 1 + len(numbers)] = torch.tensor(numbers, dtype=torch.long)
    return rows
