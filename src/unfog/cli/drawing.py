"""The verbs sample and film."""

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
    """Draw samples from a run: a sheet, and each picture as a PNG.

    For example:

      unfog sample runs/digits -n 64
      unfog sample runs/digits -n 16 --label 3 --guidance 1.5 --seed 7 --out threes
      unfog sample runs/digits --solver ddim --steps 50
      unfog sample runs/shapes -n 16 --prompt "a small red circle above a large blue square"
      unfog sample runs/mnist -n 50000 --out many      (resumes where it was stopped)

    Args:
        run: Run folder.
        n: Number of samples.
        label: Class, by name or number; separate several labels with commas. Default: all classes in turn.
        prompt: Text; several are used in turn. Default: some held-out captions in turn.
        negative: Text or class that the samples should not show: guidance leads away from it.
        values: Numbers, for models conditioned on numbers.
        image: Picture, or folder of pictures used in turn, for models conditioned on images (colour, enlarge, fill).
        solver: ddim, dpmpp-2m, unipc or another one of docs/settings.md. Default: the recipe's.
        steps: Steps of the solver.
        grid: uniform, karras, trailing or another one. Default: the recipe's.
        guidance: Scale of classifier-free guidance; 1 is off.
        seed: Seed of the noise; sample i depends only on the seed and i.
        out: Folder for the pictures. Default: RUN/samples/seed-SEED.
        device: cpu, cuda, cuda:1, mps, or auto.
        precision: Arithmetic of the network; auto is the recipe's.
    """
    import signal

    from rich.console import Console

    from unfog.runs import asking
    from unfog.runs.requests import sample_into
    from unfog.runs.run import load

    folder = arguments.folder(out or run / "samples" / f"seed-{seed}")
    own = out is None and folder.resolve().is_relative_to(run.resolve())  # a link in a run may lead anywhere
    loaded = load(run, device, precision)
    generator = loaded.generator(solver=solver, steps=steps, grid=grid, guidance=guidance, seed=seed, negative=negative)
    texts = arguments.prompts(prompt)
    asked = asking.asked(loaded.recipe, label=label, prompt=texts, values=values or None, image=image)
    try:
        sample_into(folder, loaded, generator, n, asked, replace=own, console=Console(stderr=True))
    except KeyboardInterrupt:
        raise Stopped("stopped: run the same command again to resume", signal.SIGINT) from None
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
    """Show the denoising as a strip of pictures, an animation and trajectories.

    Each sample is shown as x_t, below it the predicted x0 and the change in the next step. Writes strip.png, film.gif,
    ways.png (some pixels over time; all samples on two principal components), and film.mp4 if the extra 'video' is
    installed.

    For example:

      unfog film runs/digits
      unfog film runs/digits --label 8 --steps 40 --out films

    Args:
        run: Run folder.
        n: Samples in the animation; the strip shows the first three.
        label: Class, by name or number; separate several labels with commas. Default: all classes in turn.
        prompt: Text; several are used in turn. Default: some held-out captions in turn.
        negative: Text or class that the samples should not show: guidance leads away from it.
        values: Numbers, for models conditioned on numbers.
        image: Picture, or folder of pictures used in turn, for models conditioned on images (colour, enlarge, fill).
        solver: ddim, dpmpp-2m, unipc or another one of docs/settings.md. Default: the recipe's.
        steps: Steps of the solver; one frame for the start and for each step, for some of the steps if more than 59.
        grid: uniform, karras, trailing or another one. Default: the recipe's.
        guidance: Scale of classifier-free guidance; 1 is off.
        seed: Seed of the noise.
        out: Folder for the files. Default: RUN/film.
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
    found = shoot(sampler, n, asked).write(folder)
    print("\n".join(f"{what + ':':6} {path}" for what, path in found.items()))
