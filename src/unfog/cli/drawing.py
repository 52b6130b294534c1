"""Verbs that draw."""

from pathlib import Path
from typing import Literal

import tyro

from unfog.cli import arguments
from unfog.cli.options import Count, Prompts
from unfog.runtime.errors import Stopped


def sample(
    run: tyro.conf.Positional[Path],
    /,
    *,
    n: Count = 64,
    label: str | None = None,
    prompt: Prompts = (),
    negative: str | None = None,
    values: tuple[float, ...] = (),
    image: Path | None = None,
    solver: str | None = None,
    steps: int | None = None,
    grid: str | None = None,
    guidance: float | None = None,
    seed: int = 0,
    out: Path | None = None,
    device: str = "auto",
    precision: Literal["auto", "float32", "bfloat16"] = "auto",
) -> None:
    """Draw samples from a run folder: a sheet, and each picture as a PNG.

    For example:

      unfog sample runs/digits -n 64
      unfog sample runs/digits -n 16 --label 3 --guidance 1.5 --seed 7 --out threes
      unfog sample runs/digits --solver ddim --steps 50
      unfog sample runs/shapes -n 16 --prompt "a small red circle above a large blue square"
      unfog sample runs/mnist -n 50000 --out many      (stop it, say it again, and it goes on)

    Args:
        run: Run folder.
        n: Number of samples.
        label: Class to draw, by its name or its number; all classes in turn if left away. Several labels with commas.
        prompt: Text to draw; given several times, in turn; some held-out captions in turn if left away.
        negative: What the samples shall not show, a text or a class: guidance leads away from it.
        values: Numbers to ask for, of models that are told some.
        image: Picture, or folder of them in turn, for models that are told one (to colour, enlarge or fill).
        solver: ddim, dpmpp-2m, unipc or any other (see the README); the recipe's if left away.
        steps: Steps of the solver.
        grid: uniform, karras, trailing or any other; the recipe's if left away.
        guidance: Scale of classifier-free guidance; 1 is off.
        seed: Seed of the noise; sample i depends on the seed and on i alone.
        out: Folder for the pictures; RUN/samples/seed-SEED if left away.
        device: cpu, cuda, cuda:1, mps, or auto.
        precision: Arithmetic of the network; auto is what the recipe names.
    """
    import signal

    from rich.console import Console

    from unfog.runs import asking
    from unfog.runs.requests import sample_into
    from unfog.runs.run import load

    folder = arguments.folder(out or run / "samples" / f"seed-{seed}")
    own = out is None and folder.resolve().is_relative_to(run.resolve())  # a link in a run may lead anywhere
    loaded = load(run, device, precision)
    sampler = loaded.sampler(solver=solver, steps=steps, grid=grid, guidance=guidance, seed=seed, negative=negative)
    texts = arguments.prompts(prompt)
    asked = asking.asked(loaded.recipe, label=label, prompt=texts, values=values or None, image=image)
    try:
        sample_into(folder, loaded, sampler, n, asked, replace=own, console=Console(stderr=True))
    except KeyboardInterrupt:
        raise Stopped("stopped: the same command goes on where this one was", signal.SIGINT) from None
    print(f"{n} samples: {folder / 'sheet.png'}")


def film(
    run: tyro.conf.Positional[Path],
    /,
    *,
    n: Count = 8,
    label: str | None = None,
    prompt: Prompts = (),
    negative: str | None = None,
    values: tuple[float, ...] = (),
    image: Path | None = None,
    solver: str | None = None,
    steps: int | None = None,
    grid: str | None = None,
    guidance: float | None = None,
    seed: int = 0,
    out: Path | None = None,
    device: str = "auto",
) -> None:
    """Show the denoising: a strip, an animation, and the ways of some numbers.

    Of each sample x_t stands above the predicted x0, and that above what the next step changes. Written are strip.png,
    film.gif, ways.png (some pixels over time; all samples in the plane of two principal components), and film.mp4
    where the extra 'video' is installed.

    For example:

      unfog film runs/digits
      unfog film runs/digits --label 8 --steps 40 --out films

    Args:
        run: Run folder.
        n: Samples in the animation; the strip shows the first three.
        label: Class to draw, by its name or its number; all classes in turn if left away. Several labels with commas.
        prompt: Text to draw; given several times, in turn; some held-out captions in turn if left away.
        negative: What the samples shall not show, a text or a class: guidance leads away from it.
        values: Numbers to ask for, of models that are told some.
        image: Picture, or folder of them in turn, for models that are told one (to colour, enlarge or fill).
        solver: ddim, dpmpp-2m, unipc or any other (see the README); the recipe's if left away.
        steps: Steps of the solver, one frame for each and one for the start; of more than 59 some are shown.
        grid: uniform, karras, trailing or any other; the recipe's if left away.
        guidance: Scale of classifier-free guidance; 1 is off.
        seed: Seed of the noise.
        out: Folder for it; RUN/film if left away.
        device: cpu, cuda, cuda:1, mps, or auto.
    """
    from unfog.reports.film import film as shoot
    from unfog.runs import asking
    from unfog.runs.run import load

    folder = arguments.folder(out or run / "film")
    loaded = load(run, device)
    sampler = loaded.sampler(solver=solver, steps=steps, grid=grid, guidance=guidance, seed=seed, negative=negative)
    texts = arguments.prompts(prompt)
    asked = asking.asked(loaded.recipe, label=label, prompt=texts, values=values or None, image=image)
    found = shoot(loaded, sampler, n, asked).write(folder)
    print("\n".join(f"{what + ':':6} {path}" for what, path in found.items()))
