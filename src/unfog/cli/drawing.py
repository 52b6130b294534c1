"""The verbs sample and film."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from unfog.cli import arguments, terminal
from unfog.cli.options import Count, Drawing, Flat, RunFolder, SomePath
from unfog.runtime.errors import Stopped

if TYPE_CHECKING:
    from unfog.generation.drawing import Drawing as Generator


TEXTS = 16
"""Texts that are printed, at most."""


def sample(
    run: RunFolder,
    /,
    *,
    drawing: Flat[Drawing],
    n: Count = 64,
    out: SomePath = None,
    precision: Literal["auto", "float32", "bfloat16", "int8"] = "auto",
) -> None:
    """Draw samples from a run: a sheet with labels, each picture as a PNG, and samples.json, which lists them.

    A picture's name is its number and what it is asked to show, as in 00012-cat.png.

    For example:

      unfog sample runs/digits -n 64
      unfog sample runs/digits --label 3,5,8 -n 30
      unfog sample runs/digits -n 16 --label 3 --guidance 1.5 --seed 7 --out threes
      unfog sample runs/digits --solver ddim --steps 50
      unfog sample runs/shapes -n 16 --prompt "a small red circle above a large blue square"
      unfog sample runs/shapes --prompts prompts.txt
      unfog sample runs/mnist -n 50000 --out many      (resumes where it was stopped)

    Args:
        n: Number of samples.
        out: Folder for the pictures. Default: RUN/samples/seed-SEED, seed-SEED-2 and so on if that holds other samples.
        precision: Arithmetic of the network; auto is the recipe's; int8 is faster on a CPU, and by how much
            less exact is said.
    """
    import signal

    from rich.console import Console

    from unfog.generation.sampler import Sampler
    from unfog.runs.model import opened
    from unfog.runs.requests import sample_into
    from unfog.runs.tuned import told

    folder = arguments.folder(out or run / "samples" / f"seed-{drawing.seed}")
    loaded = opened(run, drawing.device, "auto" if precision == "int8" else precision)
    arguments.folder(folder, loaded.recipe)
    asked = drawing.asked(loaded.recipe)
    if precision == "int8":
        loaded = loaded.quantized(n, asked)
        print(loaded.quantization, file=sys.stderr)
    generator = loaded.generator(**drawing.sampling())
    if drawing.grid is None and isinstance(generator, Sampler) and (how := told(run, generator)):
        print(terminal.plain(how), file=sys.stderr)
    try:
        folder = sample_into(folder, loaded, generator, n, asked, beside=out is None, console=Console(stderr=True))
    except KeyboardInterrupt:
        raise Stopped("stopped: run the same command again to resume", signal.SIGINT) from None
    for text in _texts(folder, generator, n):
        print(text)
    print(f"{n} samples: {folder / 'sheet.png'}, listed in {folder / 'samples.json'}")
    print(_further(run, None if out is None else folder, generator))


def _texts(folder: Path, generator: "Generator", n: int) -> list[str]:
    """Return the first of the samples where they are texts; what a terminal would obey is spelled out."""
    from unfog.data.characters import lines_of
    from unfog.runs.naming import numbered

    if generator.modality.suffix != ".txt":
        return []
    files = numbered(folder, ".txt", min(n, TEXTS))
    rows = [generator.modality.read(files[place], generator.stored)[0] for place in sorted(files)]
    return [text.encode("unicode_escape").decode() for row in rows for text in lines_of(generator.modality, row[None])]


def _further(run: Path, folder: Path | None, generator: "Generator") -> str:
    """Return how to measure and to show what was drawn; also by itself, where it lies in a folder of its own."""
    model = shlex.quote(str(run))
    lines = [f"measure the model: unfog evaluate {model}; show it with film and curves: unfog report {model}"]
    if folder is not None and generator.modality.suffix == ".png":
        drawn = shlex.quote(str(folder))
        lines.append(
            f"compare these pictures with real ones of their size: unfog evaluate {drawn} --real REAL_PICTURES"
        )
    return "\n".join(lines)


def film(
    run: RunFolder,
    /,
    *,
    drawing: Flat[Drawing],
    n: Count = 8,
    out: SomePath = None,
) -> None:
    """Show the denoising as a strip of pictures, an animation and trajectories.

    Each sample is shown as x_t, with the predicted x0 and the change in the next step below it. Writes strip.png,
    film.gif, paths.png (the value of some pixels over time, and the path of every sample along two principal
    components), and film.mp4 if the extra 'video' is installed. The animation has a frame for the start and for each
    step, at most 60. Of texts the characters appear; they have no paths.

    For example:

      unfog film runs/digits
      unfog film runs/digits --label 8 --steps 40 --out films

    Args:
        n: Samples in the animation; the strip shows the first three.
        out: Folder for the files. Default: RUN/film.
    """
    from unfog.generation.drawing import Stepwise
    from unfog.reports.film import film as shoot
    from unfog.runs.run import load
    from unfog.runtime.files import locked

    folder = arguments.folder(out or run / "film")
    loaded = load(run, drawing.device)
    arguments.folder(folder, loaded.recipe)
    drawn = loaded.generator(**drawing.sampling())
    sampler = drawn if isinstance(drawn, Stepwise) else loaded.sampler(**drawing.sampling())  # which says why not
    asked = drawing.asked(loaded.recipe)
    with locked(folder):
        found = shoot(sampler, n, asked).write(folder)
    print("\n".join(f"{what + ':':6} {path}" for what, path in found.items()))
