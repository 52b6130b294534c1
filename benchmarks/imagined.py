"""What is measured of a prior and a decoder of the captioned shapes, as one run, next to a direct model of text.

    python benchmarks/imagined.py runs/dalle [--direct runs/shapes] [-n 500]

Prints the figures, and writes them, with strips of interpolations and text diffs, to RUN/imagined.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import unfog
from unfog.data.pictures import save_picture
from unfog.data.shapes import Part, Scene, Shapes
from unfog.evaluation.intervals import of_mean
from unfog.evaluation.shapes_reader import matches
from unfog.generation.cascading import Cascading
from unfog.recipes.conditions import Depicting
from unfog.runs.run import Run

SCENES: tuple[tuple[Part, int], ...] = (("seen", 1), ("seen", 2), ("new", 2))
"""Kinds of held-out scenes, and how many things they have."""
TEXTS = (("a large red circle", "a large blue circle"), ("a large green square", "a large green triangle"))
"""What pictures are led from and to."""


def prompts(part: Part, things: int, count: int) -> list[str]:
    """Return captions of held-out scenes of so many things."""
    source, found, row = Shapes(part=part, seed=0), [], 0
    while len(found) < count:
        caption = source.scene(row).caption
        found += [caption] if len(Scene.parse(caption).things) == things else []
        row += 1
    return found


def shown(run: Run, texts: list[str]) -> NDArray[np.float64]:
    """Return which samples show what their captions say, by the exact reader."""
    drawn = run.sample(len(texts), prompt=texts)
    return np.array(
        [float(matches(one, Scene.parse(text)).all) for one, text in zip(drawn.numpy(), texts, strict=True)]
    )


def unit(rows: Tensor) -> Tensor:
    """Return embeddings of length 1."""
    return torch.nn.functional.normalize(rows, dim=1)


def varied(run: Run, pictures: Tensor, training: Tensor) -> dict[str, object]:
    """Measure variations of pictures: whether they are nearer to their source than to any training picture."""
    sampler = run.editor()
    own, known = sampler.conditioning, sampler.known
    assert isinstance(own, Depicting)
    drawn = sampler(len(pictures), pictures)
    source, made, others = (unit(own.depicted(known, rows)) for rows in (pictures, drawn, training))
    to_source, to_others = (made * source).sum(1), (made @ others.T).amax(1)
    nearer = (to_source > to_others).double().numpy()
    pairs = source @ source.T
    return {
        "variations nearer to their source than to any training picture": [float(nearer.mean()), *of_mean(nearer)],
        "mean cosine with the source": float(to_source.mean()),
        "mean cosine with the nearest of the training pictures": float(to_others.mean()),
        "mean cosine of random pairs": float(pairs[~torch.eye(len(pairs), dtype=torch.bool)].mean()),
        "training pictures": len(training),
    }


def main() -> None:
    """Measure a run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--direct", type=Path)
    parser.add_argument("-n", type=int, default=500)
    given = parser.parse_args()
    run, out = unfog.load(given.run), given.run / "imagined"
    assert isinstance(run.generator(), Cascading), "a cascade of prior and decoder"
    out.mkdir(exist_ok=True)
    found: dict[str, object] = {}
    models = {"prior and decoder": run} | ({"direct": unfog.load(given.direct)} if given.direct else {})
    for name, model in models.items():
        for part, things in SCENES:
            marks = shown(model, prompts(part, things, given.n))
            found[f"{name}: {things} thing(s), {part}"] = [float(marks.mean()), *of_mean(marks)]
            print(f"{name}: {things} thing(s), {part}: {found[f'{name}: {things} thing(s), {part}']}", flush=True)
    held = Shapes(part="seen").take(np.arange(200)).x
    found |= varied(run, held, Shapes(part="train").take(np.arange(10_000)).x)
    strips = [run.interpolate(held[2 * place], held[2 * place + 1], count=9, fresh=True) for place in range(6)]
    save_picture(run.recipe.modality.sheet(torch.cat(strips), 9), out / "interpolated.png")
    steered = [run.steer(run.sample(1, prompt=before)[0], before, after, count=9) for before, after in TEXTS]
    save_picture(run.recipe.modality.sheet(torch.cat(steered), 9), out / "steered.png")
    sampler = run.editor()
    varying = [torch.cat([one[None], sampler(8, one[None])]) for one in held[:6]]
    save_picture(run.recipe.modality.sheet(torch.cat(varying), 9), out / "varied.png")
    for name, value in found.items():
        print(f"{name}: {value}")
    (out / "imagined.json").write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
