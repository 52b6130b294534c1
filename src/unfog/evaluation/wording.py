"""The words and tables in which scores are shown: one vocabulary for how good a figure is."""

from collections.abc import Callable, Mapping

from unfog.evaluation.intervals import Scored
from unfog.recipes.kinds import options_of
from unfog.recipes.parse import to_plain
from unfog.runtime.lines import aligned

FLOOR, CEILING = "real data", "noise"
"""What the two ends of a score are called wherever they are shown."""
LEGEND = (
    "real data: the floor, what real rows score in place of the samples. noise: the ceiling, what noise scores.",
    "In brackets: 95 % intervals, where one is known to be valid. Of frechet and kernel, which are distances, lower "
    "values are better, of all other scores higher ones.",
)
"""What must be known to read a figure, below every table."""
LOWER = frozenset({"frechet", "kernel", "distance"})
"""Scores of which lower values are better; of all others higher ones are."""
SCALES: dict[str, Callable[[float], float]] = {"psnr": lambda decibels: 10 ** (-decibels / 10)}
"""Scores that are placed between their ends on another scale: decibels as the error that they stand for."""
ENDS = {"psnr": "one mean picture"}
"""Ceilings that are not of noise."""
APART, FAR = 0.9, 0.1
"""Share of a distance below which its floor must lie, and of the way to noise below which its multiple is said."""
LONGEST = 24
"""Characters of a class name in a table."""


def lower(name: str) -> bool:
    """Return whether lower values of a score are better."""
    return name.split("/")[0] in LOWER


def position(name: str, score: Scored) -> float | None:
    """Return where a score stands: 0 is like real data, 1 like noise; None where that cannot be told.

    It is 0 where the score is better than the floor, or the floor lies in its interval. It cannot be told where noise
    scores as well as real data, or where both lie in the interval.
    """
    scale = SCALES.get(name, float)
    value, floor, ceiling = (scale(one) for one in (score.value, score.floor, score.ceiling))
    sign = 1 if lower(name) or name in SCALES else -1
    if sign * (ceiling - floor) <= 0:
        return None
    if _holds(score, score.floor) and _holds(score, score.ceiling):
        return None
    return 0.0 if _holds(score, score.floor) else max(0.0, (value - floor) / (ceiling - floor))


def _holds(score: Scored, value: float) -> bool:
    """Return whether a value lies in a score's interval."""
    return score.low is not None and score.high is not None and score.low <= value <= score.high


def standing(name: str, score: Scored) -> str:
    """Return in words how good a score is: like real data, like noise, or how far it is from one to the other.

    A distance near that of real data is said as a multiple of it.
    """
    place, end = position(name, score), ENDS.get(name, CEILING)
    if place is None:
        return "too uncertain to tell" if _holds(score, score.ceiling) else f"{end} scores as well"
    if lower(name) and 0 < score.floor < APART * score.value and not _holds(score, score.floor) and place < FAR:
        return f"{score.value / score.floor:.2g} times {FLOOR}"  # of noise it is a few hundredths, which say little
    if place < 0.005:
        return f"like {FLOOR}"
    return f"like {end}" if place >= 1 else f"{place:.0%} of the way to {end}"


def figure(score: Scored) -> str:
    """Return a value with its interval, where there is one."""
    return f"{score.value:.3f}" if score.low is None else f"{score.value:.3f} [{score.low:.3f}, {score.high:.3f}]"


def score_table(columns: Mapping[str, Mapping[str, Scored]]) -> str:
    """Return scores as a table: a line for each score of each set of samples, with its ends and how good it is.

    Args:
        columns: By their heads the scores of each set; all sets have the same scores.
    """
    several, (first, *_) = len(columns) > 1, columns
    what, *shared = {of.rsplit(" ", 1)[0] for of in columns}  # "guidance", of "guidance 1" and "guidance 2"
    what = "of" if shared else what
    lines = [["score", *([what, "value"] if several else [first]), FLOOR, CEILING, ""]]
    for name in columns[first]:
        for of, scores in columns.items():
            score, once = scores[name], of == first
            ends = [f"{score.floor:.3f}", f"{score.ceiling:.3f}"] if once else ["", ""]
            which = [of if shared else of.removeprefix(f"{what} ")] if several else []
            lines.append([name if once else "", *which, figure(score), *ends, standing(name, score)])
    return aligned(lines)


def in_words(field: str, part: object) -> str:
    """Return a part of a recipe by its name in recipes, with the options that differ from their defaults."""
    named = to_plain(field, part)
    defaults = {name: option.default for name, option in options_of(type(part)).items()}
    own = [
        f"{name}={value}" for name, value in named.items() if name != "kind" and getattr(part, name) != defaults[name]
    ]
    return f"{named['kind']} ({', '.join(own)})" if own else str(named["kind"])


def shown(name: str) -> str:
    """Return a name from the data as a table shows it: short, and without characters that control a terminal."""
    plain = "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in name)
    return plain if len(plain) <= LONGEST else f"{plain[: LONGEST - 1]}…"
