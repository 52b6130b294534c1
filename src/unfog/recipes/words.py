"""What samples are asked to show, in words: for the labels of sheets and the names of files."""

import torch
from torch import Tensor

from unfog.recipes.conditions import (
    Asked,
    ClassConditioning,
    Conditioning,
    Known,
    LabelsConditioning,
    ValuesConditioning,
    each,
)
from unfog.recipes.several import SeveralConditions


def in_words(conditioning: Conditioning, known: Known, condition: Tensor | None, asked: Asked, count: int) -> list[str]:
    """Return what each of `count` samples is asked to show; an empty text where that is nothing, or a picture.

    Args:
        conditioning: The kind of condition.
        known: What the model knows about its data.
        condition: The condition of each sample, as `Conditioning.ask` or `read` returned it.
        asked: What `ask` got: words cannot be read off the tokens of a text.
        count: Number of samples.
    """
    if condition is None:
        return [""] * count
    if isinstance(conditioning, SeveralConditions):
        return _of_each(conditioning, known, condition, asked, count)
    if isinstance(conditioning, ClassConditioning):
        return [known.classes[number] for number in condition.tolist()]
    if isinstance(conditioning, LabelsConditioning):
        return [", ".join(known.classes[place] for place in row.nonzero()[:, 0].tolist()) for row in condition]
    if isinstance(conditioning, ValuesConditioning):
        return [", ".join(f"{value:g}" for value in row) for row in condition.tolist()]
    if not conditioning.captioned:
        return [""] * count
    if asked is None:
        return [known.prompts[place % len(known.prompts)] if known.prompts else "" for place in range(count)]
    return [str(text) for text in each(asked, count, (str,))]


def _of_each(conditioning: SeveralConditions, known: Known, condition: Tensor, asked: Asked, count: int) -> list[str]:
    """Return what samples are asked to show of each of several conditions, joined by commas."""
    wanted = conditioning.wanted(asked)
    found: list[list[str]] = [[] for _ in range(count)]
    for name, (given, entries) in conditioning.unpacked(condition, known).items():
        if given.any() and (name in wanted or not conditioning.named[name].captioned):
            words = in_words(conditioning.named[name], known, entries, wanted.get(name), count)
            for row in torch.nonzero(given)[:, 0].tolist():
                found[row] += [words[row]] if words[row] else []
    return [", ".join(row) for row in found]
