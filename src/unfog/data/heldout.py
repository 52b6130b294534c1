"""Which pictures of a folder are held out: about a share, spread over classes, with near-duplicates on one side."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from unfog.data.alike import MOST, Look, Pairs, groups_of
from unfog.data.listing import Listing, few
from unfog.data.source import Indices, split_classes, split_groups, split_rows
from unfog.runtime.errors import Remark, UserError
from unfog.runtime.lines import counted


class Parts(NamedTuple):
    """Places of the pictures that are trained on, and of those that are held out, and what to say of it."""

    train: Indices
    held: Indices
    notes: tuple[str, ...] = ()


def parts_of(
    listing: Listing, rows: Sequence[int], heldout: float, together: str, rules: int, look: Look | None = None
) -> Parts:
    """Return which of some pictures are held out.

    By the third rules near-duplicates stay on one side, captions that begin alike too as far as each leaves room for
    others, and of each class, or of each caption that many pictures share, about the same share is held out.

    Args:
        listing: The folder.
        rows: The files that are used.
        heldout: The share to hold out, unless the folder itself says what is.
        together: Delimiters, see `folder`.
        rules: Version of the reading rules.
        look: What was seen of the pictures.

    Raises: UserError: If the folder says what is held out, and nothing of it, or nothing else, is readable.
    """
    names = [listing.files[row] for row in rows]
    if listing.held is not None:
        held = np.array([listing.held[row] for row in rows])
        if held.all() or not held.any():
            raise UserError(
                f"{listing.root} has no readable {listing.many} in one of its parts: add some, or remove it"
            )
        return Parts(np.flatnonzero(~held), np.flatnonzero(held), _leaks(names, held, look))
    leads = _leads(listing, rows, together) if together else None
    if rules < 3:
        return _before(names, leads, heldout, together, rules)
    spread = {} if leads is None else _spread(listing, rows, leads, heldout)
    bound = [name if lead in spread else lead for name, lead in zip(names, leads or names, strict=True)]
    classes = _classes(listing, rows) or [lead if lead in spread else "" for lead in leads or names]
    notes = _spread_said(spread, len(names), together)
    copies = np.arange(len(names)) if look is None else groups_of(look.pairs, len(names))
    for groups in (_joined(copies, bound), _joined(copies, names)):
        if (parts := split_classes(groups, classes, heldout)) is not None:
            return Parts(*parts, notes)
        if (parts := split_groups(groups, heldout)) is not None:
            return Parts(*parts, notes)
    return _more(names, groups, bound, heldout, notes)


def _leads(listing: Listing, rows: Sequence[int], together: str) -> list[str]:
    """Return the beginning of each caption."""
    captions = listing.captions or ()
    if not captions:
        return [listing.files[row] for row in rows]
    return [re.split(f"[{re.escape(together)}]", captions[row], maxsplit=1)[0].strip() for row in rows]


def _before(names: list[str], groups: list[str] | None, heldout: float, together: str, rules: int) -> Parts:
    """Return the parts by the first and the second rules."""
    if groups is None:
        return Parts(*split_rows(names, heldout))
    if rules == 1:
        return Parts(*split_rows(groups, heldout))
    if (parts := split_groups(groups, heldout)) is not None:
        return Parts(*parts)
    (largest, count), *_ = Counter(groups).most_common(1)
    return Parts(*split_rows(names, heldout), (_too_large(largest, count, len(names), together, ""),))


def _too_large(largest: str, count: int, total: int, together: str, which: str) -> str:
    """Say that captions do not keep pictures together."""
    return (
        f"pictures{which} are held out one by one, since their captions make groups too large for that: {count:,} of "
        f"{total:,} begin with {largest[:40]!r} (data.together={together!r})"
    )


FEW = 4
"""Pictures that captions may keep together in any set."""


def _spread(listing: Listing, rows: Sequence[int], leads: Sequence[str], heldout: float) -> dict[str, int]:
    """Return the beginnings of captions that are classes, not variants of one thing, with their numbers of pictures.

    They are where half of their captions or more repeat others, or where they are half of what is held out.
    """
    members: dict[str, list[int]] = {}
    for row, lead in zip(rows, leads, strict=True):
        members.setdefault(lead, []).append(row)
    most = max(FEW, heldout * len(rows) / 2)
    texts = listing.captions or listing.files
    distinct = {lead: len({texts[row] for row in own}) for lead, own in members.items()}
    return {
        lead: len(own)
        for lead, own in members.items()
        if len(own) > 1 and (2 * distinct[lead] <= len(own) or len(own) > most)
    }


def _spread_said(spread: dict[str, int], total: int, together: str) -> tuple[str, ...]:
    """Say which captions do not keep pictures together."""
    if not spread:
        return ()
    largest = max(sorted(spread), key=lambda lead: spread[lead])
    which = "" if sum(spread.values()) == total else f" with {len(spread):,} of the captions"
    return (_too_large(largest, spread[largest], total, together, which),)


def _classes(listing: Listing, rows: Sequence[int]) -> list[str] | None:
    """Return the name of each picture's class; None where there are none, or several for each picture."""
    labels = [] if listing.labels is None else [listing.labels[row] for row in rows]
    names = [listing.classes[label] for label in labels if isinstance(label, int)]
    return names if names and len(names) == len(labels) else None


def _joined(copies: Indices, names: Sequence[str]) -> list[str]:
    """Return for each row the first name of those that are bound to it, by their group or by equal names."""
    number = {name: place for place, name in enumerate(dict.fromkeys(names))}
    rows = np.arange(len(names))
    nodes = len(rows) + np.array([number[name] for name in names])
    leaders = np.unique(copies, return_index=True)[1][np.unique(copies, return_inverse=True)[1]]
    links = Pairs(np.concatenate([rows, rows]), np.concatenate([leaders, nodes]), np.zeros(0, bool), 0, 0)
    group = groups_of(links, len(rows) + len(number))[: len(rows)]
    least: dict[int, str] = {}
    for one, name in zip(group.tolist(), names, strict=True):
        least[one] = min(name, least.get(one, name))
    return [least[one] for one in group.tolist()]


def _more(names: list[str], groups: list[str], bound: list[str], heldout: float, notes: tuple[str, ...]) -> Parts:
    """Hold out the smallest groups of near-duplicates, or where most are one group, pictures one by one; and say so."""
    counts = Counter(groups)
    chosen: set[str] = set()
    rows = 0
    for name in sorted(sorted(counts), key=lambda name: counts[name]):
        if 2 * rows < heldout * len(names):
            chosen.add(name)
            rows += counts[name]
    share = rows / len(names)
    if share > 0.5:
        how = "one by one" if bound == names else "by their captions"
        why = f"nearly all pictures are near-duplicates of one another: they are held out {how}, and measures of "
        parts = split_groups(bound, heldout) or split_rows(names, heldout)
        return Parts(*parts, (*notes, why + "what was memorised mean nothing"))
    held = np.array([name in chosen for name in groups])
    why = (
        f"{share:.0%} of the pictures are held out, not data.heldout={heldout:g}, since near-duplicates stay on one "
        f"side and make {len(counts):,} groups only"
    )
    return Parts(np.flatnonzero(~held), np.flatnonzero(held), (*notes, why))


def _leaks(names: Sequence[str], held: npt.NDArray[np.bool_], look: Look | None) -> tuple[str, ...]:
    """Say which pictures of a part that the folder holds out have near-duplicates in the training part."""
    if look is None:
        return ()
    pairs = [(one, other) for one, other in _pairs(look) if held[one] != held[other]]
    if not pairs:
        return ()
    rows = {one if held[one] else other for one, other in pairs}
    return (
        f"near-duplicates of {counted(len(rows), 'held-out picture')} are trained on, so that memorisation scores "
        f"well: remove them ({few([_pair(names, *pair) for pair in pairs])})",
    )


def _pairs(look: Look) -> list[tuple[int, int]]:
    """Return the pairs that are alike."""
    return list(zip(look.pairs.first.tolist(), look.pairs.second.tolist(), strict=True))


def _pair(names: Sequence[str], one: int, other: int) -> str:
    """Name a pair."""
    return f"{names[other]} like {names[one]}"


def findings(listing: Listing, rows: Sequence[int], look: Look | None, held: Indices) -> tuple[str, ...]:
    """Say what a look at pictures found: near-duplicates, one picture under two labels, grey as colour, borders.

    Args:
        listing: The folder.
        rows: The files that are used.
        look: What was seen of them.
        held: Places of those that are held out.
    """
    if look is None:
        return ()
    names = [listing.files[row] for row in rows]
    notes: list[str] = []
    pairs = _pairs(look)
    if pairs:
        alike = {row for pair in pairs for row in pair}
        groups = len(set(groups_of(look.pairs, len(names))[sorted(alike)].tolist()))
        apart = np.isin(look.pairs.first, held) != np.isin(look.pairs.second, held)
        side = "" if apart.any() else ", each trained on or held out as a whole"
        notes.append(
            Remark(
                f"{len(alike):,} pictures are near-duplicates (resized, recoded, mirrored, cropped), in "
                f"{counted(groups, 'group')}{side} ({few([_pair(names, *pair) for pair in pairs])})"
            )
        )
    if twice := contradictions(listing, rows, look):
        pictures = few([f"{name}: {why}" for name, why in twice.items()])
        notes.append(f"{counted(len(twice), 'picture')} under two labels: correct one of each ({pictures})")
    if len(look.framed) and 2 * len(look.framed) < len(names):
        framed = [names[row] for row in look.framed]
        bordered = counted(len(framed), "picture")
        notes.append(Remark(f"{bordered} with a border of one colour, {FRAMED} ({few(framed)})"))
    return (*notes, *remarks(look, len(names)))


def remarks(look: Look, total: int) -> tuple[str, ...]:
    """Say that pictures in colour are grey, and how far near-duplicates were sought."""
    notes: list[str] = [GREY] if look.grey else []
    if look.pairs.looked < total and look.pairs.looked == MOST:
        notes.append(Remark(f"near-duplicates were sought among the first {MOST:,} of {total:,} pictures"))
    if look.pairs.reach < look.pairs.looked:
        among = f"among the {look.pairs.reach:,} pictures that follow each by name"
        notes.append(Remark(f"near-duplicates were sought {among}"))
    return tuple(notes)


FRAMED = "which is learnt too: crop it if that is not wanted"
"""What is said of borders."""
GREY = Remark(
    "all pictures are grey but saved in colour: data.channels=1 with network.width=48 trains on a third of the "
    "numbers, with a network of about half the cost"
)


def contradictions(listing: Listing, rows: Sequence[int], look: Look) -> dict[str, str]:
    """Return the pictures that are there before with another class, each with both classes."""
    names = [listing.files[row] for row in rows]
    classes = _classes(listing, rows)
    if classes is None:
        return {}
    pairs = zip(_pairs(look), look.pairs.same.tolist(), strict=True)
    return {
        names[other]: f"{classes[other]}, and as {names[one]} {classes[one]}"
        for (one, other), same in pairs
        if same and classes[one] != classes[other]
    }
