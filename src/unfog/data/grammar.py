"""Texts of a small grammar, included: dates, sums and sentences, with an exact checker and a known entropy."""

import calendar
import math
import re

import numpy as np
import torch

from unfog.data.characters import codes
from unfog.data.source import Data, InMemory, split
from unfog.runtime.errors import UserError
from unfog.runtime.randomness import stream

LENGTH = 48
"""Characters of a row."""
KINDS = ("date", "sum", "sentence")
YEARS, LARGEST, MOST = (1900, 2099), 9, 99
"""The years of dates, first and last; the largest number that is added, by default and at most. Numbers of one digit
are what the recipe learns in its time; see `docs/measurements.md` for larger ones."""
MONTHS = tuple(calendar.month_name[1:])
ARTICLES = ("a", "the", "two", "three")
ADJECTIVES = ("big", "small", "old", "young", "red", "angry", "quiet", "odd")
NOUNS = ("cat", "dog", "owl", "horse", "bird", "ant", "king", "robot")
VERBS = ("see", "like", "follow", "hear", "paint", "find", "know", "greet")
FEWEST = 100
"""Rows, at least."""


def grammar(count: int = 200_000, seed: int = 0, largest: int = LARGEST) -> Data:
    """Draw texts, a third of each kind; a tenth of the different texts is held out.

    A date is a day of 1900 to 2099, each as likely: "29 February 2024". A sum adds two numbers, each pair as likely:
    "7 + 5 = 12". A sentence is a subject, a verb and an object that agree in number: "two old owls see an
    ant"; articles, verbs and nouns are as likely each, and half of the nouns have an adjective.

    Args:
        count: Number of rows.
        seed: Seed of the texts.
        largest: The largest number that is added, from 1 to 99. Adding numbers of two digits takes long to learn.

    Returns: Rows of 48 characters, with their kinds as classes.
    Raises: UserError: For less than a hundred rows, or a largest number out of range.
    """
    if not 1 <= largest <= MOST:
        raise UserError(f"data.largest must be from 1 to {MOST}, not {largest}")
    if count < FEWEST:
        raise UserError(f"data.count must be {FEWEST} or more, not {count}")
    draw = stream(seed, "grammar")
    labels = np.arange(count) % len(KINDS)
    makes = (_date, lambda draw: _sum(draw, largest), _sentence)
    texts = [makes[label](draw) for label in labels]
    rows = InMemory(codes(texts, LENGTH), torch.from_numpy(labels), KINDS)
    return split(rows, 0.1, texts)


def entropy(largest: int = LARGEST) -> float:
    """Return the entropy of a text in bits, its kind among them, with sums of numbers up to `largest`."""
    first, last = YEARS
    days = sum(366 if calendar.isleap(year) else 365 for year in range(first, last + 1))
    adjective = 1 + math.log2(len(ADJECTIVES)) / 2  # whether there is one, and which
    phrase = math.log2(len(ARTICLES)) + adjective + math.log2(len(NOUNS))
    kinds = math.log2(days), 2 * math.log2(largest + 1), 2 * phrase + math.log2(len(VERBS))
    return math.log2(len(KINDS)) + sum(kinds) / len(kinds)


def kind_of(text: str, largest: int = LARGEST) -> str | None:
    """Return the kind of a text, None if the grammar does not make it with sums of numbers up to `largest`."""
    if found := re.fullmatch(r"([1-9]\d?) (\w+) (\d{4})", text):
        day, month, year = int(found[1]), found[2], int(found[3])
        if month in MONTHS and YEARS[0] <= year <= YEARS[1]:
            return "date" if day <= calendar.monthrange(year, 1 + MONTHS.index(month))[1] else None
        return None
    if found := re.fullmatch(r"(0|[1-9]\d?) \+ (0|[1-9]\d?) = (0|[1-9]\d{0,2})", text):
        one, other, total = map(int, found.groups())
        return "sum" if max(one, other) <= largest and one + other == total else None
    return "sentence" if _is_sentence(text.split(" ")) else None


def _date(draw: np.random.Generator) -> str:
    """Draw a day, each as likely."""
    first = np.datetime64(f"{YEARS[0]}-01-01")
    days = int((np.datetime64(f"{YEARS[1] + 1}-01-01") - first).astype(int))
    year, month, day = str(first + int(draw.integers(days))).split("-")
    return f"{int(day)} {MONTHS[int(month) - 1]} {year}"


def _sum(draw: np.random.Generator, largest: int) -> str:
    """Draw a sum of numbers up to `largest`."""
    one, other = (int(number) for number in draw.integers(0, largest + 1, 2))
    return f"{one} + {other} = {one + other}"


def _sentence(draw: np.random.Generator) -> str:
    """Draw a sentence."""
    subject, several = _phrase(draw)
    verb = VERBS[int(draw.integers(len(VERBS)))]
    return f"{subject} {verb if several else verb + 's'} {_phrase(draw)[0]}"


def _phrase(draw: np.random.Generator) -> tuple[str, bool]:
    """Draw article, perhaps an adjective, and a noun, and return whether they are several."""
    article = ARTICLES[int(draw.integers(len(ARTICLES)))]
    adjective = ADJECTIVES[int(draw.integers(len(ADJECTIVES)))] if draw.integers(2) else ""
    noun, several = NOUNS[int(draw.integers(len(NOUNS)))], article in ("two", "three")
    return " ".join(filter(None, (_before(article, adjective or noun), adjective, noun + "s" * several))), several


def _before(article: str, word: str) -> str:
    """Return an article as it stands before a word."""
    return "an" if article == "a" and word[0] in "aeiou" else article


def _is_sentence(words: list[str]) -> bool:
    """Return whether words are subject, verb and object that agree."""
    verbs = [place for place, word in enumerate(words) if word in VERBS or word.removesuffix("s") in VERBS]
    if len(verbs) != 1:
        return False
    subject, verb, thing = words[: verbs[0]], words[verbs[0]], words[verbs[0] + 1 :]
    several = _several(subject)
    return several is not None and _several(thing) is not None and (verb in VERBS) == several


def _several(words: list[str]) -> bool | None:
    """Return whether a phrase stands for several, None if it is none."""
    if len(words) not in (2, 3) or (len(words) == 3 and words[1] not in ADJECTIVES):
        return None
    article, noun = words[0], words[-1]
    several = article in ("two", "three")
    if several and noun.endswith("s") and noun[:-1] in NOUNS:
        return True
    singular = article == "the" or (article in ("a", "an") and article == _before("a", words[1]))
    return False if singular and noun in NOUNS else None
