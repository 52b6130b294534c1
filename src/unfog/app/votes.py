"""Blind votes between two runs: which of them stands left, the file of votes, and their tally.

A run is known by the SHA-256 of its weights, so that a folder that is moved or copied keeps its votes, and one that is
trained on does not.
"""

import errno
import json
import os
import threading
from collections.abc import Iterable
from itertools import count
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np

from unfog.evaluation.intervals import Interval, of_mean
from unfog.runtime.errors import UserError
from unfog.runtime.files import disk, parse_json, read_bounded
from unfog.runtime.lines import counted
from unfog.runtime.randomness import stream

Choice = Literal["left", "same", "right"]
CHOICES: tuple[Choice, ...] = get_args(Choice)
FILE = Path("votes.jsonl")
"""Where votes are kept by default, in the folder in which the playground was started."""
LARGEST = 1 << 24
"""Most bytes of a file of votes: it is read as a whole."""
BLOCK = 8
"""Comparisons in which each run stands left equally often.

In a block of two whoever sees the tally grow knows the sides of every second pair; of eight, the last or two.
"""
SEED = 0
"""Of the sides."""
CURE = "start the playground with --votes and another file"


class Party(NamedTuple):
    """A run that is compared.

    Attributes:
        path: Its folder, as it was named.
        sha256: The digest of its weights.
    """

    path: str
    sha256: str


class Vote(NamedTuple):
    """What somebody preferred.

    Attributes:
        date: When, in UTC.
        left: The run whose sample stood left.
        right: The other one.
        condition: What both were to show; empty for unconditional models.
        seed: Seed of both samples, and the number of the comparison among those of this pair.
        choice: A side, or neither.
    """

    date: str
    left: Party
    right: Party
    condition: str
    seed: int
    choice: Choice

    @property
    def pair(self) -> frozenset[str]:
        """The digests of both runs."""
        return frozenset((self.left.sha256, self.right.sha256))

    @property
    def preferred(self) -> str | None:
        """The digest of the run that was preferred, if any."""
        return None if self.choice == "same" else (self.left if self.choice == "left" else self.right).sha256

    def line(self) -> bytes:
        """Return the vote as a line of JSON."""
        told = {**self._asdict(), "left": self.left._asdict(), "right": self.right._asdict()}
        return json.dumps(told).encode() + b"\n"


def read_vote(line: str) -> Vote | None:
    """Return the vote in a line of JSON, or None if there is none."""
    try:
        told = parse_json(line)
    except ValueError:
        return None
    match told:
        case {
            "date": str(date),
            "left": {"path": str(path), "sha256": str(digest)},
            "right": {"path": str(other_path), "sha256": str(other_digest)},
            "condition": str(condition),
            "seed": int(seed),
            "choice": "left" | "same" | "right" as choice,
        } if type(seed) is int and seed >= 0 and digest != other_digest:
            return Vote(date, Party(path, digest), Party(other_path, other_digest), condition, seed, choice)
    return None


def next_number(votes: Iterable[Vote], pair: frozenset[str], taken: Iterable[int] = ()) -> int:
    """Return the least number of a comparison of two runs that has no vote and is not taken."""
    known = {vote.seed for vote in votes if vote.pair == pair}.union(taken)
    return next(number for number in count() if number not in known)


def left_of(pair: frozenset[str], number: int, seed: int = SEED) -> str:
    """Return which run stands left in a comparison: by chance, and each in half of every `BLOCK` comparisons.

    Args:
        pair: The digests of both.
        number: Of the comparison among those of this pair; numbers from k·BLOCK to (k + 1)·BLOCK - 1 are a block.
        seed: Seed of the sides.
    """
    both, (block, place) = sorted(pair), divmod(number, BLOCK)
    order = stream(seed, f"the sides of {both[0]} and {both[1]}", block).permutation(BLOCK)
    return both[int(order[place]) % 2]


class Tally(NamedTuple):
    """The votes between two runs.

    Attributes:
        first: How often the first one was preferred.
        second: How often the second one was.
        same: How often neither was.
    """

    first: int
    second: int
    same: int

    @property
    def decided(self) -> int:
        """Votes for one of them."""
        return self.first + self.second

    @property
    def interval(self) -> Interval:
        """The exact 95 % interval of the first one's share of the decided votes (Clopper and Pearson)."""
        return of_mean(np.repeat([1.0, 0.0], [self.first, self.second]))

    def words(self, first: str, second: str) -> str:
        """Return the tally in words, with these names of the runs."""
        said = (
            f"{counted(self.decided + self.same, 'vote')}: {first} was preferred in {self.first:,}, {second} in "
            f"{self.second:,}, neither in {self.same:,}."
        )
        if not self.decided:
            return said
        low, high = self.interval
        share = f"{self.first / self.decided:.0%} of {counted(self.decided, 'decided vote')}"
        return f"{said} {first} has {share} (exact 95 % interval {low:.0%} to {high:.0%})."


def tally(votes: Iterable[Vote], first: str, second: str) -> Tally:
    """Count the votes between two runs, given by their digests."""
    own = [vote.preferred for vote in votes if vote.pair == {first, second}]
    return Tally(own.count(first), own.count(second), own.count(None))


class Votes:
    """A file of votes, one in a line; votes are only ever added."""

    def __init__(self, path: Path, runs: Iterable[Path]) -> None:
        """Remember where votes are kept.

        Args:
            path: The file, which need not be there yet.
            runs: Run folders, in which it must not lie: votes belong to no run.
        """
        self.path, self.runs = path, tuple(runs)
        self._lock = threading.Lock()

    def check(self) -> None:
        """Refuse a file that cannot take a vote; make it where there is none.

        Raises: UserError: If it lies in a run, is no file or full, or may not be written.
        """
        for run in self.runs:
            if self.path.resolve().is_relative_to(run.resolve()):
                raise UserError(f"{self.path} would lie in the run {run}, and votes belong to no run: {CURE}")
        try:
            if self.path.exists() and not self.path.is_file():
                raise UserError(f"votes cannot be kept in {self.path}, which is no file: {CURE}")
            with self.path.open("ab") as file:
                size = file.tell()
        except OSError as error:
            raise UserError(f"votes cannot be kept in {self.path} ({error.strerror}): {CURE}") from None
        if size > LARGEST - (1 << 16):
            raise UserError(f"{self.path} is full, with {LARGEST >> 20} MB of votes: {CURE}")

    def read(self) -> tuple[list[Vote], int]:
        """Return the votes in the file, and how many lines are none.

        Raises: UserError: If the file is too large or may not be read.
        """
        try:
            text = read_bounded(self.path, LARGEST)
        except FileNotFoundError:
            return [], 0
        except OSError as error:
            raise UserError(f"{self.path} cannot be read ({error.strerror}): {CURE}") from None
        found = [read_vote(line) for line in text.split("\n") if line.strip()]
        votes = [vote for vote in found if vote is not None]
        return votes, len(found) - len(votes)

    def append(self, vote: Vote) -> None:
        """Add a vote by a single write at the end of the file, so that no two writers mix their lines.

        Raises: EnvironmentFailure: If the disk fails.
        """
        line = vote.line()
        with self._lock, disk(self.path), self.path.open("a+b", buffering=0) as file:
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                line = line if file.read(1) == b"\n" else b"\n" + line  # after one that was cut off
            if file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(file.fileno())

    def words(self, first: tuple[str, str], second: tuple[str, str]) -> str:
        """Return the tally of two runs in words, with what was skipped.

        Args:
            first: Name and digest of the first run.
            second: Those of the second one.

        Raises: UserError: As by `read`.
        """
        votes, skipped = self.read()
        said = tally(votes, first[1], second[1]).words(first[0], second[0])
        verb = "is no vote and was" if skipped == 1 else "are no votes and were"
        return f"{said} {counted(skipped, 'line')} of {self.path.name} {verb} skipped." if skipped else said
