"""How often a run draws captioned shapes right, by the exact reader: one thing and two, of combinations seen and new.

    python benchmarks/shapes.py runs/shapes --n 200 --out docs/images/shapes.png

Every attribute, the number of things and their relation must be as the prompt says, and nothing else in the picture.
The prompts are the same for every run. A table goes to standard output, and a sheet, a row for each part, to --out.
"""

from itertools import count, islice
from pathlib import Path
from typing import get_args

import torch
import tyro

from unfog.data.modality import sheet
from unfog.data.pictures import save_picture
from unfog.data.shapes import Part, Shapes
from unfog.evaluation.shapes_reader import matches
from unfog.runs.run import load

PROMPTS = 20261121
"""Seed of the prompts, which no training has."""
SHOWN = 12
"""Pictures of each part on the sheet."""


def main(
    run: tyro.conf.Positional[Path], /, n: int = 200, guidance: float | None = None, out: Path | None = None
) -> None:
    """Draw, read and count.

    Args:
        run: Run folder of the recipe `shapes`.
        n: Prompts of each part.
        guidance: Scale of classifier-free guidance; default: the recipe's.
        out: PNG to write.
    """
    loaded = load(run)
    side = (loaded.recipe.shape or ())[-1]
    shown = []
    print(f"{n} prompts each    all right  count  colours  shapes  sizes  relations")
    for part in get_args(Part)[1:]:
        source = Shapes(side=side, objects=2, seed=PROMPTS, part=part)
        for things in (1, 2):
            scenes = list(islice((one for one in map(source.scene, count()) if len(one.things) == things), n))
            pictures = loaded.sample(n, [scene.caption for scene in scenes], guidance=guidance)
            verdicts = [matches(picture, scene) for picture, scene in zip(pictures.numpy(), scenes, strict=True)]
            names = ("all", "count", "colours", "shapes", "sizes", "relations")
            shares = [sum(getattr(verdict, name) for verdict in verdicts) / n for name in names]
            print(f"{part:5} {things} of them  " + "  ".join(f"{share:8.1%}" for share in shares), flush=True)
            print(f"      for instance: {scenes[0].caption}")
            shown.append(pictures[:SHOWN])
    if out:
        save_picture(sheet(torch.cat(shown), SHOWN), out)


if __name__ == "__main__":
    tyro.cli(main)
