"""The blind comparison: two samples of two runs without their names, and one vote on each pair."""

import hashlib
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import NamedTuple

from PIL import Image
from torch import Tensor

from unfog.app.studio import PROMPTED, Studio, Wish, laid_out, player
from unfog.app.votes import CHOICES, Choice, Party, Vote, Votes, left_of, next_number
from unfog.recipes.recipe import Recipe
from unfog.recipes.several import SeveralConditions
from unfog.runtime.errors import UserError
from unfog.runtime.files import unreadable

OPEN = 1000
"""Most pairs that wait for their votes; the oldest are forgotten first."""
LASTS = 1800.0
"""Seconds that a pair waits for its vote, before its number is given to another."""
HASTE = 0.3
"""Seconds before which a vote is the second click of a double one, which was for the pair before."""
LONGEST = 500
"""Most characters of a condition that is typed: it is kept with every vote."""
NAMED = 20
"""Most conditions that a sentence names."""


class Shown(NamedTuple):
    """Two samples, and what belongs to them.

    Attributes:
        ticket: What their vote is given with.
        left: The left sample.
        right: The right one.
        players: HTML that plays each, where samples last.
        words: What both are to show.
        tally: The votes so far, in words.
    """

    ticket: str
    left: Image.Image
    right: Image.Image
    players: tuple[str, str]
    words: str
    tally: str


@dataclass(frozen=True)
class Comparison:
    """A pair that waits for its vote.

    Attributes:
        first: Name of the first run, and its digest.
        second: Those of the second one.
        left: The run that stands left.
        right: The other one.
        condition: What both show.
        seed: Seed of both, and the number of the comparison.
        since: When it was asked for or, once it was drawn, shown, in seconds of the monotonic clock.
    """

    first: tuple[str, str]
    second: tuple[str, str]
    left: Party
    right: Party
    condition: str
    seed: int
    since: float

    @property
    def pair(self) -> frozenset[str]:
        """The digests of both runs."""
        return frozenset((self.left.sha256, self.right.sha256))


class Booth:
    """Where people vote on the runs of a studio without knowing whose samples they see."""

    def __init__(self, studio: Studio, votes: Votes) -> None:
        """Begin without a pair.

        Args:
            studio: Draws the samples.
            votes: Keeps the votes.
        """
        self.studio, self.votes = studio, votes
        self._open: OrderedDict[str, Comparison] = OrderedDict()
        self._digests: dict[str, str] = {}
        self._lock = threading.Lock()

    def show(self, first: str, second: str, words: str = "", ticket: str | None = None) -> Shown:
        """Draw the next pair of two runs; one that was not voted on is shown again.

        Both samples are of the same condition and seed. The seed is the number of the comparison.

        Args:
            first: Name of a run.
            second: Name of another one.
            words: What both are to show; empty: what both know, in turn.
            ticket: Of the pair that was shown here before, if any.

        Raises: UserError: If the runs cannot be compared, neither or only one can show that, or no vote can be kept.
        """
        runs = [self.studio.run(name) for name in (first, second)]
        parties = [self._party(name) for name in (first, second)]
        if parties[0].sha256 == parties[1].sha256:
            raise UserError(f"{first} and {second} hold the same weights: choose two different runs")
        conditions = shared((first, runs[0].recipe), (second, runs[1].recipe), words.strip())
        self.votes.check()
        ticket, pair = self._allotted((first, second), parties, conditions, ticket)
        names = {parties[0]: first, parties[1]: second}
        try:
            wishes = [Wish(names[side], pair.condition, seed=pair.seed) for side in (pair.left, pair.right)]
            samples: list[Tensor] = [self.studio.pictures(wish) for wish in wishes]
            modality = runs[0].recipe.modality
            left, right = (laid_out(rows, modality) for rows in samples)
            players = (player(samples[0], modality), player(samples[1], modality))
            tally = self.votes.words(pair.first, pair.second)
        except BaseException:
            with self._lock:
                self._open.pop(ticket, None)
            raise
        with self._lock:
            self._open[ticket] = replace(pair, since=time.monotonic())
        return Shown(ticket, left, right, players, pair.condition, tally)

    def vote(self, ticket: str | None, choice: object) -> str:
        """Keep the vote on a pair, once, and return the tally of its runs in words.

        Args:
            ticket: Of the pair.
            choice: "left", "same" or "right".

        Raises: UserError: If there is no such pair or choice, or the pair came just now.
            EnvironmentFailure: If the disk fails; the pair can then be voted on again.
        """
        chosen = _chosen(choice)
        with self._lock:
            pair = self._open.get(ticket) if isinstance(ticket, str) else None
            if ticket is None or pair is None:
                raise UserError("there is nothing to vote on: show two samples first, each pair takes one vote")
            if time.monotonic() - pair.since < HASTE:
                raise UserError("these two samples came just now: look at both, then vote")
            now = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"
            self.votes.append(Vote(now, pair.left, pair.right, pair.condition, pair.seed, chosen))
            del self._open[ticket]
        return self.votes.words(pair.first, pair.second)

    def _party(self, name: str) -> Party:
        """Return a run, which is loaded, as votes know it."""
        path = self.studio.paths[name]
        with self._lock:
            if name not in self._digests:
                weights = path / "model.safetensors"
                try:
                    with weights.open("rb") as file:
                        self._digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
                except OSError as error:
                    raise unreadable(weights, error, "restore it") from None
            return Party(str(path), self._digests[name])

    def _allotted(
        self, names: tuple[str, str], parties: Sequence[Party], conditions: Sequence[str], before: str | None
    ) -> tuple[str, Comparison]:
        """Return a ticket and its comparison: the first number that has no vote and waits for none."""
        with self._lock:
            (votes, _), now = self.votes.read(), time.monotonic()
            late = [ticket for ticket, one in self._open.items() if now - one.since > LASTS or ticket == before]
            for ticket in late:
                del self._open[ticket]
            while len(self._open) >= OPEN:
                self._open.popitem(last=False)
            pair = frozenset(party.sha256 for party in parties)
            number = next_number(votes, pair, (one.seed for one in self._open.values() if one.pair == pair))
            left, right = sorted(parties, key=lambda party: party.sha256 != left_of(pair, number))
            first, second = ((name, party.sha256) for name, party in zip(names, parties, strict=True))
            condition = conditions[number % len(conditions)]
            found = Comparison(first, second, left, right, condition, number, now)
            ticket = secrets.token_urlsafe(16)
            self._open[ticket] = found
        return ticket, found


def shared(one: tuple[str, Recipe], other: tuple[str, Recipe], words: str) -> Sequence[str]:
    """Return what two runs can both be asked for: the words, or without any all that both know; "" if nothing is.

    Classes go by their names, since their numbers may mean different things in the two.

    Args:
        one: A run's name and recipe.
        other: Another one's.
        words: What both are to show; empty for no wish.

    Raises: UserError: If their samples are of different kinds or shapes, or they share no condition or not this one.
    """
    (first, recipe), (second, another) = one, other
    names = f"{first} and {second}"
    if recipe.modality != another.modality or recipe.shape != another.shape:
        raise UserError(f"{names} draw {recipe.rows} and {another.rows}: choose two runs whose samples are alike")
    if recipe.modality.together:
        raise UserError(f"{names} draw {recipe.modality.name}, of which one alone says nothing: use `unfog compare`")
    kinds = [recipe.kind("conditioning"), another.kind("conditioning")]
    if _free(recipe) and _free(another):
        if words:
            raise UserError(f"{names} are unconditional: leave empty what both are to show")
        return ("",)
    known = set(_named(another))
    common = [name for name in _named(recipe) if name in known and name == name.strip() != ""]
    typed = all(kind in PROMPTED for kind in kinds) or kinds == ["values"] * 2
    if not common and not typed:
        raise UserError(f"{names} share no condition: choose two runs of the same classes or captions")
    if not words and not common:
        raise UserError(f"say what {names} are both to show: neither has examples that the other one knows")
    if words and not typed and words not in common:
        more = ", ..." if len(common) > NAMED else ""
        raise UserError(f"{words[:80]!r} is nothing that both know: choose one of {', '.join(common[:NAMED])}{more}")
    if len(words) > LONGEST:
        raise UserError(f"what both are to show has {len(words):,} characters: give {LONGEST} or fewer")
    return [words] if words else common


def _named(recipe: Recipe) -> Sequence[str]:
    """Return the conditions that a model knows by name: some prompts, or its classes."""
    own, kind = recipe.conditioning, recipe.kind("conditioning")
    if kind in PROMPTED:
        return recipe.prompts
    kinds = set(own.named) if isinstance(own, SeveralConditions) else {kind}
    return recipe.classes if kinds & {"classes", "labels"} else ()


def _free(recipe: Recipe) -> bool:
    """Return whether a model is unconditional."""
    return recipe.kind("conditioning") == "none" or (recipe.kind("conditioning") == "classes" and not recipe.classes)


def _chosen(choice: object) -> Choice:
    """Return a choice, which may begin with a capital.

    Raises: UserError: If it is none.
    """
    for one in CHOICES:
        if isinstance(choice, str) and choice.lower() == one:
            return one
    raise UserError(f"a vote is one of {', '.join(CHOICES)}, not {str(choice)[:40]!r}")
