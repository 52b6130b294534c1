"""How well a model of the embedded grammar writes: by the grammar's own checker, and by its entropy.

    python benchmarks/texts.py runs/text --n 1000

Validity is the share of samples that the grammar makes, by kind as asked; recall the share of its small parts (months,
verbs, articles, tens of sums and the like) that samples hold at all; bits a row of held-out texts stand next to the
entropy of the grammar. Gaps: a part of held-out texts is hidden and filled in, and the whole is checked again.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import tyro

from unfog.data.characters import END, GAP, lines_of, text_of
from unfog.data.grammar import ADJECTIVES, ARTICLES, KINDS, MONTHS, NOUNS, VERBS, entropy, kind_of
from unfog.evaluation.intervals import of_mean
from unfog.generation.unmasking import Order, Unmasking
from unfog.recipes.sources import Grammar
from unfog.runs.run import load
from unfog.runtime.randomness import stream

PARTS = (
    *MONTHS,
    *(f"{decade}" for decade in range(190, 210)),
    *(f"= {tens}" for tens in range(1, 20)),
    *ARTICLES,
    *ADJECTIVES,
    *NOUNS,
    *VERBS,
)
"""Small parts of texts: months, decades, tens of results of sums, and words."""


def parts_of(text: str) -> Iterator[str]:
    """Yield the parts that a text holds."""
    words = set(re.findall(r"[A-Za-z]+|\d+", text))
    for part in PARTS:
        if part.startswith("= "):
            if re.search(rf"= {part[2:]}\d$", text):
                yield part
        elif part.isdigit():
            if re.search(rf" {part}\d$", text):
                yield part
        elif part in words or f"{part}s" in words:
            yield part


def share(good: list[bool]) -> str:
    """Return a share with its interval."""
    low, high = of_mean(np.array(good, dtype=np.float64))
    return f"{np.mean(good):.3f} [{low:.3f}, {high:.3f}]"


def main(
    run: tyro.conf.Positional[Path],
    /,
    n: int = 1000,
    steps: int | None = None,
    order: Order | None = None,
    seed: int = 0,
) -> None:
    """Measure and print.

    Args:
        run: A run of the recipe 'text' on the embedded grammar.
        n: Samples, held-out texts and filled texts.
        steps: Steps of unmasking. Default: the recipe's.
        order: Which characters are found first. Default: as the recipe says.
        seed: Of the samples.
    """
    loaded = load(run)
    found, spec = loaded.generator(steps=steps, seed=seed), loaded.recipe.data
    assert isinstance(found, Unmasking)
    found = replace(found, order=order or found.order)
    assert isinstance(spec, Grammar)
    drawn = lines_of(found.modality, found(n))
    kinds = [KINDS[place % len(KINDS)] for place in range(n)]
    right = [kind_of(text, spec.largest) == kind for text, kind in zip(drawn, kinds, strict=True)]
    print(f"{run}: {n} samples in {found.settings.steps} steps, order {found.order}, kinds in turn")
    print(f"  valid and as asked     {share(right)}")
    for kind in KINDS:
        own = [good for good, one in zip(right, kinds, strict=True) if one == kind]
        print(f"    {kind:20} {share(own)}")
    print(f"  different texts        {len(set(drawn)) / n:.3f}")
    data = spec.build()
    rows = np.linspace(0, len(data.heldout) - 1, n).astype(np.int64)
    real, labels = data.heldout.take(rows).x, data.heldout.take(rows).labels
    held, made = (
        {part for text in texts for part in parts_of(text)} for texts in (lines_of(found.modality, real), drawn)
    )
    print(
        f"  recall of parts        {len(made & held) / len(held):.3f} of the {len(held)} that as many real texts hold"
    )
    for name, condition in (("given the kind", labels), ("without it", None)):
        portions = torch.arange(n).split(64)
        bits = torch.cat(
            [found.bits(real[p], None if condition is None else condition[p], int(p[0])) for p in portions]
        )
        mean, error = float(bits.mean()) * real.shape[-1], float(bits.std()) * real.shape[-1] / n**0.5
        known = entropy(spec.largest) - (0 if condition is None else np.log2(len(KINDS)))
        print(f"  bits a row, {name:14} {mean:.2f} ± {error:.2f}, entropy {known:.2f}: {mean / known - 1:+.1%}")
    train = {text_of(row) for row in data.train.take(np.arange(len(data.train))).x}
    print(f"  copies of training texts {np.mean([text in train for text in drawn]):.3f}")
    draw, good = stream(seed, "gaps"), []
    for place, row in enumerate(real):
        length = int((row != END).sum())
        first = int(draw.integers(0, length - 2))
        masked = row.clone()
        masked[:, first : first + int(draw.integers(2, 8))] = GAP
        masked[row == END] = END
        (whole,) = lines_of(found.modality, found.completed(masked[None], 1, labels[place : place + 1]))
        good.append(kind_of(whole, spec.largest) is not None)
    print(f"  filled gaps, valid     {share(good)}")


if __name__ == "__main__":
    tyro.cli(main)
