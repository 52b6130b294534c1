"""Words as numbers, without a vocabulary: no word is unknown, and nothing has to be learned or stored."""

import re
import unicodedata
import warnings
import zlib
from collections.abc import Sequence

import torch
from torch import Tensor


def words_of(text: str) -> list[str]:
    """Return the words and signs of a text, in small letters, each letter in its composed form."""
    return re.findall(r"\w+|[^\w\s]", unicodedata.normalize("NFC", text.lower()))


def tokenise(texts: Sequence[str], length: int, warn: bool = False) -> Tensor:
    """Return the words of texts as numbers, `(texts, length)`: 1 is the start, 0 fills up, a word is 2 or more.

    A word's number is the CRC-32 of its letters.

    Args:
        texts: Any texts; the empty one is the start alone.
        length: Most numbers in a row, the start counted; what is longer is cut.
        warn: Whether to say what was cut.
    """
    rows = torch.zeros(len(texts), length, dtype=torch.long)
    rows[:, 0] = 1
    for row, text in enumerate(texts):
        words = words_of(text)
        if warn and len(words) >= length:
            warnings.warn(
                f"a prompt of {len(words)} words was cut to the {length - 1} that this model takes: "
                f"left out is {' '.join(words[length - 1 :])!r}",
                stacklevel=2,
            )
        numbers = [max(2, zlib.crc32(word.encode("utf-8", "surrogatepass"))) for word in words[: length - 1]]
        rows[row, 1 : 1 + len(numbers)] = torch.tensor(numbers, dtype=torch.long)
    return rows
