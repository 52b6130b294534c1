"""Texts: rows of characters, the embedded grammar, and files."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unfog.data import grammar as of_grammar
from unfog.data.characters import GAP, Characters, alphabet_of, codes, lines_of, text_of, texts
from unfog.data.grammar import entropy, grammar, kind_of
from unfog.data.modality import arrays
from unfog.data.pictures import UnreadableError
from unfog.data.source import Source
from unfog.data.textfile import textfile
from unfog.runtime.errors import UserError

LETTERS = "abcdé —日\n"


def all_of(source: Source) -> list[str]:
    """Return the texts of a source."""
    return lines_of(texts, source.take(np.arange(len(source))).x)


# Rows


@given(st.text(LETTERS, max_size=9))
def test_a_text_is_a_row_and_back(text: str) -> None:
    row = codes([text], 9)
    assert row.shape == (1, 1, 9)
    assert text_of(row[0]) == text
    codec = Characters("".join(sorted(LETTERS)))
    encoded = codec.encode(row)
    assert encoded.shape == (1, *codec.shape((1, 9)))
    assert torch.equal(encoded.sum(1), torch.ones(1, 9))
    assert torch.equal(codec.decode(encoded), row)


def test_what_is_not_known_stays_so() -> None:
    codec = Characters("ab")
    row = codes([f"a{chr(GAP)}b"], 4)
    encoded = codec.encode(row)
    assert encoded[0].argmax(0).tolist() == [1, 0, 2, 0]
    assert encoded[0].sum(0).tolist() == [1, 0, 1, 1]
    assert torch.equal(codec.decode(encoded), row)
    ended = torch.eye(3)[[1, 0, 2, 1]].T[None]
    assert codec.decode(ended)[0, 0].tolist() == [97, 0, 0, 0], "ends follow an end"
    assert codec.decode(torch.tensor([[[0.1, -5.0], [0.2, -4.0], [0.0, -9.0]]]))[0, 0].tolist() == [97, 97]


def test_long_texts_are_cut_and_strange_characters_refused() -> None:
    assert text_of(codes(["abcdef"], 4)[0]) == "abcd"
    with pytest.raises(UserError, match="does not know the character 'x' 'é'"):
        Characters("ab").encode(codes(["axbéx"], 5))
    for wrong in ("aba", "a\0", "a░"):
        with pytest.raises(UserError, match="each character once"):
            Characters(wrong)


def test_files_and_sheets(tmp_path: Path) -> None:
    row = codes(["né\nzwei"], 12)
    texts.write(row, tmp_path / "a.txt")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "né\nzwei"
    assert torch.equal(texts.read(tmp_path / "a.txt", (1, 12)), row)
    with pytest.raises(UnreadableError, match="more than 4 characters"):
        texts.read(tmp_path / "a.txt", (1, 4))
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe")
    for wrong in ("b.txt", "none.txt"):
        with pytest.raises(UnreadableError):
            texts.read(tmp_path / wrong, (1, 12))
    short, long = (texts.sheet(codes(["abc"] * 4, length), 2) for length in (12, 200))
    assert long.height > short.height
    assert lines_of(arrays, torch.zeros(2, 3)) == []
    assert texts.describe((1, 12)) == "texts of up to 12 characters"


# The grammar


def test_the_grammar_makes_what_it_accepts() -> None:
    data = grammar(3000, seed=3)
    for part in data:
        rows = part.take(np.arange(len(part)))
        assert rows.labels is not None
        kinds = [kind_of(text) for text in lines_of(texts, rows.x)]
        assert kinds == [of_grammar.KINDS[label] for label in rows.labels.tolist()]
    assert not set(all_of(data.train)) & set(all_of(data.heldout))
    assert all_of(grammar(3000, seed=3).train) == all_of(data.train)
    assert all_of(grammar(3000, seed=4).train) != all_of(data.train)
    with pytest.raises(UserError, match="must be 100 or more"):
        grammar(99)
    for largest in (0, 100):
        with pytest.raises(UserError, match="largest must be from 1 to 99"):
            grammar(100, largest=largest)


@pytest.mark.parametrize("largest", [1, 19, 99])
def test_sums_are_of_numbers_up_to_the_largest(largest: int) -> None:
    sums = [text.split() for text in all_of(grammar(9000, largest=largest).train) if "+" in text]
    numbers = [int(words[place]) for words in sums for place in (0, 2)]
    assert (min(numbers), max(numbers)) == (0, largest)
    assert {kind_of(" ".join(words), largest) for words in sums} == {"sum"}
    assert largest == 1 or {kind_of(" ".join(words), largest - 1) for words in sums} == {"sum", None}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "30 February 2000",
        "29 February 1900",
        "0 March 2000",
        "01 March 2000",
        "1 march 2000",
        "1 March 1899",
        "31 April 2001",
        "1 + 1 = 3",
        "01 + 1 = 2",
        "100 + 1 = 101",
        "10 + 1 = 11",
        "1 + 1 = 2 ",
        "a owl sees a cat",
        "an cat sees a owl",
        "an old cat see a dog",
        "two owl see a cat",
        "two owls sees a cat",
        "the owls see a cat",
        "a cat sees",
        "a cat sees a dog sees a dog",
        "a old old cat sees a dog",
        "a cat  sees a dog",
    ],
)
def test_what_the_grammar_does_not_make(text: str) -> None:
    assert kind_of(text) is None


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("29 February 2000", "date"),
        ("0 + 9 = 9", "sum"),
        ("9 + 9 = 18", "sum"),
        ("an odd owl sees two red birds", "sentence"),
        ("three ants know an ant", "sentence"),
    ],
)
def test_what_the_grammar_makes(text: str, kind: str) -> None:
    assert kind_of(text) == kind


def test_the_entropy_is_that_of_the_enumerated_grammar() -> None:
    """Of dates and sums by counting; of a phrase by the probability of each of its 288 texts, which all differ."""
    phrases = {}
    for article, adjective, noun in itertools.product(
        of_grammar.ARTICLES, ("", *of_grammar.ADJECTIVES), of_grammar.NOUNS
    ):
        first = "an" if article == "a" and (adjective or noun)[0] in "aeiou" else article
        chance = 1 / 4 * (1 / 2 if not adjective else 1 / 16) / 8
        phrases[f"{first} {adjective} {noun}", article in ("two", "three")] = chance
    assert len(phrases) == 288
    assert sum(phrases.values()) == pytest.approx(1)
    phrase = -sum(chance * math.log2(chance) for chance in phrases.values())
    days = np.arange("1900-01-01", "2100-01-01", dtype="datetime64[D]").size
    for largest, known in ((9, entropy()), (19, entropy(19)), (99, entropy(99))):
        kinds = math.log2(days) + 2 * math.log2(largest + 1) + 2 * phrase + 3
        assert known == pytest.approx(math.log2(3) + kinds / 3)


# Files


def test_lines_are_rows(tmp_path: Path) -> None:
    lines = [f"line {place % 70} é" for place in range(140)]
    (tmp_path / "a.txt").write_text("﻿" + "\r\n".join([*lines, "", "  "]), encoding="utf-8")
    data = textfile(str(tmp_path / "a.txt"))
    assert data.train.shape == (1, 16)
    assert sorted(all_of(data.train) + all_of(data.heldout)) == sorted(lines)
    assert not set(all_of(data.train)) & set(all_of(data.heldout)), "equal lines stay together"
    assert alphabet_of(data) == " 0123456789eilné"
    cut = textfile(str(tmp_path / "a.txt"), length=6)
    assert cut.train.shape == (1, 6)
    assert cut.train.source.notes == ("140 of 140 lines are longer than 6 characters and cut there",)  # type: ignore[attr-defined]


def test_a_running_text_is_cut_into_windows(tmp_path: Path) -> None:
    text = "".join(chr(97 + place % 26) for place in range(9000)) + "0123456789" * 100
    (tmp_path / "a.txt").write_text(text)
    data = textfile(str(tmp_path / "a.txt"))
    assert data.train.shape == (1, 128)
    train, heldout = all_of(data.train), all_of(data.heldout)
    assert train[:2] == [text[:128], text[64:192]]
    assert not any(sign.isdigit() for one in train for sign in one), "the last tenth is held out"
    assert all(sign.isdigit() for one in heldout for sign in one)
    assert textfile(str(tmp_path / "a.txt"), length=32).train.shape == (1, 32)


@pytest.mark.parametrize(
    ("content", "options", "sentence"),
    [
        (b"one\ntwo \xe9\n", {}, "line 2, is not UTF-8: save the file in that encoding"),
        (b"a\0b", {}, r"holds the character U\+0000"),
        ("a░b".encode(), {}, r"holds the character U\+2591"),
        (b"short", {}, "has 5 characters: a running text of 7,111 or more"),
        (b"one\n" * 50, {"rows": "lines"}, "has 50 lines that are not empty: 100 or more"),
        (b"", {"rows": "lines"}, "has 0 lines"),
        (b"one\n" * 200, {"length": 1}, "data.length must lie between 2 and 4096"),
        (None, {}, "is no file: give the path of a text in UTF-8"),
    ],
)
def test_no_texts(tmp_path: Path, content: bytes | None, options: dict[str, object], sentence: str) -> None:
    if content is not None:
        (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(UserError, match=sentence):
        textfile(str(tmp_path / "a.txt"), **options)  # type: ignore[arg-type]


def test_too_many_characters_and_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("".join(chr(point) for point in range(5000, 9100)), encoding="utf-8")
    with pytest.raises(UserError, match="has 4,100 different characters: 4,096 are the limit"):
        textfile(str(tmp_path / "a.txt"))
    monkeypatch.setattr("unfog.data.textfile.LARGEST", 100)
    with pytest.raises(UserError, match="holds 12,300 bytes: a text may have 100"):
        textfile(str(tmp_path / "a.txt"))
