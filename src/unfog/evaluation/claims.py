"""What tutorials claim of GANs, VAEs, autoregressive models and diffusion, and what was measured of it here."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from unfog.evaluation.bias import Bias
from unfog.evaluation.habits import Habits
from unfog.evaluation.intervals import of_mean
from unfog.evaluation.trained import MAIN, Trained
from unfog.evaluation.variations import BASE, SHORT, STACKED
from unfog.runtime.brief import brief

Verdict = Literal["holds", "holds in part", "does not hold here", "cannot be decided here"]
HOLDS: Verdict = "holds"
PARTLY: Verdict = "holds in part"
FAILS: Verdict = "does not hold here"
OPEN: Verdict = "cannot be decided here"
CLOSE = 0.9
"""Share of what real pictures have, from which a family has it too."""
TIMING = 1.5
"""A time is taken to be right up to this factor."""


@dataclass(frozen=True)
class Span:
    """A figure with its interval.

    Attributes:
        value: The figure, the mean over seeds where there are several.
        low: The lowest end of their intervals; None where there is but one training, and no interval of it.
        high: The highest end.
    """

    value: float
    low: float | None
    high: float | None

    def __str__(self) -> str:
        """Return it in words."""
        span = "" if self.low is None or self.high is None else f" [{self.low:.3g}, {self.high:.3g}]"
        return f"{self.value:.3g}{span}"

    def below(self, other: "Span") -> Verdict:
        """Return whether this is less than another: where the intervals are apart, it is decided."""
        if self.low is None or self.high is None or other.low is None or other.high is None:
            return OPEN
        if self.high < other.low:
            return HOLDS
        return FAILS if self.low > other.high else OPEN


@dataclass(frozen=True)
class Measured:
    """All that was measured.

    Attributes:
        found: The trainings.
        bias: Of a rare class, or None.
        habits: Of diffusion, or None.
    """

    found: Sequence[Trained]
    bias: Bias | None = None
    habits: Habits | None = None

    __repr__ = brief

    def some(self, family: str, variation: str = MAIN) -> list[Trained]:
        """Return the trainings of a family that differ so."""
        return [one for one in self.found if one.family == family and one.variation == variation]

    def score(self, family: str, name: str, variation: str = MAIN) -> Span | None:
        """Return a score, whose name begins so, over the seeds; None where it was not measured."""
        figures = [
            next((figure for key, figure in one.scores.items() if key.startswith(name)), None)
            for one in self.some(family, variation)
        ]
        known = [one for one in figures if one is not None]
        if not known:
            return None
        ends = [end for one in known for end in (one.low, one.high) if end is not None]
        values = [one.value for one in known]
        every = [*ends, *values] if ends or len(known) > 1 else []
        return Span(float(np.mean(values)), min(every, default=None), max(every, default=None))

    def real(self, name: str) -> float:
        """Return what real rows score."""
        return next(figure.floor for one in self.found for key, figure in one.scores.items() if key.startswith(name))

    def seconds(self, family: str) -> Span | None:
        """Return the seconds of one picture drawn alone."""
        times = [one.single for one in self.some(family) if one.single]
        return Span(float(np.mean(times)), min(times) / TIMING, max(times) * TIMING) if times else None

    def gone(self, family: str) -> Span | None:
        """Return the share of a family's trainings that collapsed, with its exact interval; short ones are left out."""
        marks = [float(one.collapsed) for one in self.found if one.family == family]
        kept = [
            mark
            for mark, one in zip(marks, (one for one in self.found if one.family == family), strict=True)
            if one.variation not in (SHORT, STACKED)
        ]
        return Span(float(np.mean(kept)), *of_mean(np.array(kept))) if kept else None


Decision = tuple[str, Verdict]
"""The figure, and what follows."""
NOTHING: Decision = ("not measured", OPEN)


@dataclass(frozen=True)
class Claim:
    """A claim: which tutorial makes it, what it says in our words, and what decides it."""

    source: str
    says: str
    decide: Callable[[Measured], Decision]

    __repr__ = brief


def together(verdicts: Sequence[Verdict]) -> Verdict:
    """Return the verdict on a claim that says several things."""
    if not verdicts:
        return OPEN
    if len(set(verdicts)) == 1:
        return verdicts[0]
    return PARTLY if HOLDS in verdicts else FAILS if FAILS in verdicts else OPEN


def less(measured: Measured, read: Callable[[str], Span | None], first: str, *others: str) -> Decision:
    """Decide whether a figure of one family is below those of others."""
    own, rest = read(first), {name: span for name in others if (span := read(name)) is not None}
    if own is None or not rest:
        return NOTHING
    shown = "; ".join(f"{name} {span}" for name, span in {first: own, **rest}.items())
    return shown, together([own.below(span) for span in rest.values()])


def more(measured: Measured, read: Callable[[str], Span | None], first: str, *others: str) -> Decision:
    """Decide whether a figure of one family is above those of others."""

    def turned(name: str) -> Span | None:
        span = read(name)
        if span is None:
            return None
        low, high = (None if end is None else -end for end in (span.high, span.low))
        return Span(-span.value, low, high)

    shown = [f"{name} {span}" for name in (first, *others) if (span := read(name)) is not None]
    return "; ".join(shown) or NOTHING[0], less(measured, turned, first, *others)[1]


def reaches(measured: Measured, name: str, family: str, share: float = CLOSE) -> Decision:
    """Decide whether a family has at least such a share of a score of real pictures."""
    own = measured.score(family, name)
    if own is None:
        return NOTHING
    real = measured.real(name)
    return f"{family} {own}; real {real:.3g}", Span(share * real, share * real, share * real).below(own)


def _of_score(name: str, variation: str = MAIN) -> Callable[[Measured], Callable[[str], Span | None]]:
    """Return what reads a score of a family."""
    return lambda measured: lambda family: measured.score(family, name, variation)


def _compared(
    how: Callable[..., Decision], read: Callable[[Measured], Callable[[str], Span | None]], *families: str
) -> Callable[[Measured], Decision]:
    """Return what compares the first of some families with the others."""
    return lambda measured: how(measured, read(measured), *families)


def _blurred(measured: Measured) -> Decision:
    """Decide whether the VAE has less energy at high frequencies than diffusion, and less than real pictures."""
    shown, first = less(measured, _of_score("energy")(measured), "VAE", "diffusion")
    if shown == NOTHING[0]:
        return NOTHING
    own, real = measured.score("VAE", "energy"), measured.real("energy")
    assert own is not None, "it was compared"
    return f"{shown}; real {real:.3g}", together([first, own.below(Span(real, real, real))])


def _scales(measured: Measured) -> Decision:
    """Decide whether diffusion's distance falls with time, data and width."""
    distance = "frechet"
    base, whole = measured.score("diffusion", distance, BASE), measured.score("diffusion", distance)
    pairs = {
        "time": (whole, base),
        "data": (base, measured.score("diffusion", distance, "a quarter of the data")),
        "width": (base, measured.score("diffusion", distance, "a quarter of the width")),
    }
    known = {name: (more, fewer) for name, (more, fewer) in pairs.items() if more is not None and fewer is not None}
    if not known:
        return NOTHING
    shown = "; ".join(f"{name}: {fewer} to {more}" for name, (more, fewer) in known.items())
    return shown, together([more.below(fewer) for more, fewer in known.values()])


def _degrades(measured: Measured) -> Decision:
    """Decide whether a GAN of four times the width is worse than one of the usual width."""
    own, wide = (measured.score("GAN", "frechet", name) for name in (BASE, "four times the width"))
    return NOTHING if own is None or wide is None else (f"{own} to {wide}", own.below(wide))


def _biased(measured: Measured) -> Decision:
    """Decide whether the rare class is drawn about as rarely as it was trained on, or more rarely."""
    if measured.bias is None:
        return NOTHING
    drawn = measured.bias.drawn
    shown = "; ".join(f"{one.family} ({one.how}) {one.share:.1%} [{one.low:.1%}, {one.high:.1%}]" for one in drawn)
    verdicts = [FAILS if one.verdict == "lessened" else HOLDS for one in drawn]
    return f"{shown}; trained on {drawn[0].trained:.1%}", together(verdicts)


def _in_order(measured: Measured) -> Decision:
    """Decide whether layout is there before texture."""
    if measured.habits is None:
        return NOTHING
    layout, texture = Span(*measured.habits.layout), Span(*measured.habits.texture)
    return f"there after {layout} and {texture} of the steps", layout.below(texture)


def _noisy(measured: Measured) -> Decision:
    """Decide whether sampling without noise collapses to few modes: recall below half of that with noise."""
    if measured.habits is None:
        return NOTHING
    recall = measured.habits.recall
    shown = f"recall {recall['ddim']:.3g} without noise, {recall['ancestral']:.3g} with, real {recall['real']:.3g}"
    if recall["ddim"] < 0.5 * recall["ancestral"]:
        return shown, HOLDS
    return shown, FAILS if recall["ddim"] > CLOSE * recall["ancestral"] else OPEN


def _simple(measured: Measured) -> Decision:
    """Decide whether diffusion takes the least code."""
    from unfog.evaluation.families import FAMILIES

    lines = {family.name: family.lines for family in FAMILIES}
    shown = "; ".join(f"{name} {count}" for name, count in lines.items())
    return shown, HOLDS if lines["diffusion"] == min(lines.values()) else FAILS


def _fast_student(measured: Measured) -> Decision:
    """Decide whether the student is as fast as a GAN, up to a factor of two, and better than it."""
    student, gan = measured.seconds("student"), measured.seconds("GAN")
    if student is None or gan is None:
        return NOTHING
    shown, better = less(measured, _of_score("frechet")(measured), "student", "GAN")
    near: Verdict = HOLDS if student.value <= 2 * gan.value else FAILS
    return f"seconds: student {student.value:.3g}, GAN {gan.value:.3g}; distance: {shown}", together([near, better])


CLAIMS = (
    Claim(
        "A, C",
        "training a GAN is unstable, VAE and diffusion are stable (share of trainings that collapsed)",
        lambda measured: more(measured, measured.gone, "GAN", "VAE", "diffusion"),
    ),
    Claim("A", "a GAN's pictures are very sharp (steepest gradients)", lambda m: reaches(m, "steepest", "GAN")),
    Claim("A", "diffusion's pictures are sharp (steepest gradients)", lambda m: reaches(m, "steepest", "diffusion")),
    Claim("A, C", "a VAE's pictures are blurred (energy at high frequencies)", _blurred),
    Claim(
        "A, C",
        "diffusion's pictures are better than a GAN's and a VAE's (Fréchet distance)",
        _compared(less, _of_score("frechet"), "diffusion", "GAN", "VAE"),
    ),
    Claim(
        "A, C",
        "a GAN misses modes that diffusion covers (recall)",
        _compared(less, _of_score("recall"), "GAN", "diffusion"),
    ),
    Claim(
        "A",
        "a GAN misses modes that diffusion covers (modes of stacked pictures)",
        _compared(less, _of_score("modes", STACKED), "GAN", "diffusion"),
    ),
    Claim("A", "a VAE covers the data well (recall)", lambda measured: reaches(measured, "recall", "VAE")),
    Claim("A", "diffusion covers the data well (recall)", lambda measured: reaches(measured, "recall", "diffusion")),
    Claim(
        "A",
        "diffusion follows its condition better than a GAN and a VAE (read as asked)",
        _compared(more, _of_score("adherence"), "diffusion", "GAN", "VAE"),
    ),
    Claim(
        "A, C",
        "GAN and VAE draw faster than diffusion (seconds a picture)",
        lambda measured: more(measured, measured.seconds, "diffusion", "GAN", "VAE"),
    ),
    Claim(
        "C",
        "an autoregressive model draws more slowly than diffusion (seconds a picture)",
        lambda measured: less(measured, measured.seconds, "diffusion", "autoregressive"),
    ),
    Claim(
        "C",
        "diffusion's pictures are more coherent as a whole than an autoregressive model's (read as asked)",
        _compared(more, _of_score("adherence"), "diffusion", "autoregressive"),
    ),
    Claim("A", "diffusion gets better with more time, data and width (Fréchet distance)", _scales),
    Claim("A", "a GAN gets worse where it is larger (Fréchet distance, four times the width)", _degrades),
    Claim("A", "diffusion is the simplest to build (lines of code)", _simple),
    Claim("A, C", "few steps close the gap in speed (a one-step student and a GAN)", _fast_student),
    Claim("A, C", "models reflect the bias of their data, and may amplify it (a rare class)", _biased),
    Claim("A", "layout comes first, texture later", _in_order),
    Claim("A", "noise in sampling keeps it from collapsing to few modes", _noisy),
)
"""In our words; A, B, C, D are the tutorials as `docs/tutorials.md` names them."""


def decided(measured: Measured) -> list[list[str]]:
    """Return all claims as a table, the head first."""
    rows = [["claim", "in", "measured", "verdict"]]
    for claim in CLAIMS:
        figure, verdict = claim.decide(measured)
        rows.append([claim.says, claim.source, figure, verdict])
    return rows
