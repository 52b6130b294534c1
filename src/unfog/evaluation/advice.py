"""The last line of an evaluation: which figure is the worst, and what usually helps."""

import math
import re
from collections.abc import Mapping

from unfog.evaluation.classes import Classes
from unfog.evaluation.intervals import Scored
from unfog.evaluation.neighbours import Memorised
from unfog.evaluation.wording import FLOOR, position, shown, standing

LONGER = (
    "train longer (`unfog train --init-from RUN --budget 10m --out RUN-longer`, then `unfog compare RUN RUN-longer`), "
    "or a larger network (WIDER)"
)
STEPS = r"; more steps( or another solver \(`unfog bench` finds them\))?"
"""What is advised only where a model takes steps."""
WIDTH, WIDER, STEP = "`--set network.width=...`; `unfog recipe RUN` shows its own", 1.5, 16
"""What is said of a network's width where that is not known; how much wider one is advised, and the unit of it."""
HELPS = {
    "frechet": f"{LONGER}; more steps or another solver (`unfog bench` finds them)",
    "kernel": f"{LONGER}; more steps or another solver (`unfog bench` finds them)",
    "precision": f"more guidance; {LONGER}; more steps",
    "density": f"more guidance; {LONGER}; more steps",
    "recall": f"less guidance; {LONGER}; more varied training data",
    "coverage": f"less guidance; {LONGER}; more varied training data",
    "entropy": f"less guidance; {LONGER}; more training data of the rare classes",
    "adherence": f"more guidance; {LONGER}; more training data of the classes that fail",
    "psnr": "train the autoencoder longer; more channels in its latents, or less downsampling",
}
"""What usually helps against a bad figure."""
AGAINST_COPIES = "more training data, augment=flip-crop, fewer images of training, or a smaller network"
MORE, LESS = "more guidance; ", "less guidance; "
"""Advice that is for conditional models only."""
WEAK = 0.8
"""Share of real rows that a classifier must read correctly to be believed where it contradicts the eye."""
MANY = 8
"""Steps of a flow map from which on more of them are not advised."""
NEAR, BETTER = 0.05, 0.02
"""Of the way to noise: up to where a figure is near its floor, and from where on another guidance is better."""


def advice(
    columns: Mapping[str, Mapping[str, Scored]],
    copies: Mapping[str, Memorised] | None = None,
    classes: Classes | None = None,
    guided: bool = True,
    helps: str | None = None,
    run: str = "RUN",
    width: int | None = None,
    jumps: int | None = None,
    stepped: bool = True,
) -> str:
    """Return which figure is the worst of the last set of samples, and what usually helps.

    Args:
        columns: The scores of each set, by what distinguishes it, for instance `guidance 1.5`.
        copies: Whether the last set holds copies.
        classes: Its scores by class.
        guided: Whether the model takes guidance.
        helps: Name of the score whose advice holds for all, for models that draw nothing.
        run: The run, in commands.
        width: Of its network, where it has one.
        jumps: Of a flow map, in how many steps it was sampled.
        stepped: Whether the model is sampled step by step.
    """
    *others, last = columns
    if copies and any(one.copies for one in copies.values()):
        return f"Worst: there are copies of training rows among the samples. What usually helps: {AGAINST_COPIES}."
    places = {name: place for name, score in columns[last].items() if (place := position(name, score)) is not None}
    if not places:
        return f"No figure tells samples from {FLOOR}."
    name = max(places, key=lambda one: places[one])
    score = columns[last][name]
    of = f" ({last})" if others else ""
    figures = f"{name}{of}, {score.value:.3g} where {FLOOR} scores {score.floor:.3g}, {standing(name, score)}"
    if not places[name]:
        return f"Every figure is like that of {FLOOR}."
    if places[name] < NEAR:
        return f"Every figure is near that of {FLOOR}; the worst is {figures}."
    better = [
        f"{other}, which scores {columns[other][name].value:.3g} here; "
        for other in others
        if (place := position(name, columns[other][name])) is not None and place < places[name] - BETTER
    ]
    cure = "".join(reversed(better)) + _helps(helps or name, list(columns) if guided else [])
    if jumps is not None and jumps < MANY:
        cure = f"more steps (`--steps {2 * jumps}`); {cure}"
    if not stepped:
        cure = re.sub(STEPS, "", cure)
    wider = WIDTH if width is None else f"`--set network.width={STEP * math.ceil(WIDER * width / STEP)}`, {width} now"
    cure = cure.replace("WIDER", wider).replace("RUN", run)
    return f"Worst: {figures}.{_failing(name, classes)} What usually helps: {cure}."


def doubt(accuracy: float | None, thorough: bool = False) -> str:
    """Return what to say of a classifier that misreads many real rows; nothing of others.

    Args:
        accuracy: Share of real rows that it reads correctly; None where there is none.
        thorough: Whether it is the thorough one.
    """
    if accuracy is None or accuracy >= WEAK:
        return ""
    return (
        f"The classifier is a weak judge here: it misreads {1 - accuracy:.0%} of real rows. Look at the samples "
        f"before you believe its figures{'' if thorough else ', or give --judge thorough'}."
    )


def _helps(name: str, columns: list[str]) -> str:
    """Return what helps against a bad score; of guidance only what was not tried.

    Args:
        name: Of the score.
        columns: The scales of guidance that were measured, for instance `guidance 1.5`; empty without guidance.
    """
    text = HELPS.get(name.split("/")[0], LONGER)
    scales = [float(one.split()[1]) for one in columns if re.fullmatch(r"guidance [\d.e+-]+", one)]
    if text.startswith(MORE):
        tried = not scales or max(scales) > scales[-1]
        wider = f"{scales[-1] + 1:g} {scales[-1] + 2:g}" if scales else ""
        text = (
            text.removeprefix(MORE)
            if tried
            else text.replace(MORE, f"more guidance (`unfog evaluate RUN --guidance {wider}`); ", 1)
        )
    if text.startswith(LESS):
        tried = not scales or min(scales) < scales[-1] or scales[-1] <= 1
        narrower = "" if tried else f"less guidance (`unfog evaluate RUN --guidance 1 {scales[-1]:g}`); "
        text = text.replace(LESS, narrower, 1)
    return text


def _failing(name: str, classes: Classes | None) -> str:
    """Return the class whose samples are least often read as asked, if that is much less often than real rows are."""
    if classes is None or len(classes.each) < 2 or name.startswith("psnr"):
        return ""
    one = classes.worst()[0]
    read = f"{one.adherence.value:.3g} of its samples are read as asked, {FLOOR} {one.adherence.floor:.3g}"
    fails = one.adherence.value < one.adherence.floor - NEAR
    return f" Of the classes {shown(one.name)} fails most: {read}." if fails else ""
