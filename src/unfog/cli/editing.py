"""Verbs that edit pictures with a trained model."""

from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from unfog.cli import arguments
from unfog.cli.options import Count, Prompts

if TYPE_CHECKING:
    from torch import Tensor

    from unfog.generation.sampler import Sampler
    from unfog.recipes.conditions import Asked


def _model(
    run: Path,
    label: str | None,
    prompt: Prompts,
    negative: str | None,
    steps: int | None,
    guidance: float | None,
    seed: int,
    device: str,
) -> "tuple[Sampler, Asked]":
    """Return the sampler of a run, and the requested condition."""
    from unfog.runs import asking
    from unfog.runs.run import load

    loaded = load(run, device)
    sampler = loaded.sampler(steps=steps, guidance=guidance, seed=seed, negative=negative)
    asked = asking.asked(loaded.recipe, label=label, prompt=arguments.prompts(prompt))
    return sampler, asking.edited(loaded.recipe, sampler, asked)


def _written(pictures: "Tensor", out: Path, first: "list[Tensor]") -> None:
    """Write each picture, and a sheet that begins with the given ones."""
    import torch

    from unfog.data.modality import images
    from unfog.data.pictures import save_picture
    from unfog.runtime.files import disk

    folder = arguments.folder(out)
    with disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for place, picture in enumerate(pictures):
        images.write(picture[None], folder / f"{place:05}{images.suffix}")
    shown = torch.cat([*(one[None] for one in first if one.shape == pictures.shape[1:]), pictures])
    save_picture(images.sheet(shown, min(8, len(shown))), folder / "sheet.png")
    print(f"{len(pictures)} pictures: {folder / 'sheet.png'}")


def edit() -> None:
    """Edit pictures: restyle, inpaint, outpaint, invert, interpolate, vary; see `unfog edit --help`.

    For example:

      unfog edit restyle runs/digits --image three.png --label 3
      unfog edit inpaint runs/mnist --image 7.png --mask mask.png --label 7
    """


def restyle(
    run: tyro.conf.Positional[Path],
    /,
    *,
    image: Path,
    strength: float = 0.6,
    n: Count = 4,
    label: str | None = None,
    prompt: Prompts = (),
    negative: str | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    own_size: bool = False,
    seed: int = 0,
    out: Path | None = None,
    device: str = "auto",
) -> None:
    """Draw versions of a picture by noising it part of the way and sampling from there (image to image).

    For example:

      unfog edit restyle runs/shapes --image mine.png --strength 0.5 --prompt "a large red circle"

    Args:
        run: Run folder.
        image: The picture.
        strength: 0 returns the picture itself, 1 ignores it.
        n: Number of versions.
        label: Class that they should show.
        prompt: Text that they should show.
        negative: Text or class that they should not show: guidance leads away from it.
        steps: Steps of the solver at strength 1; fewer are taken at lower strength.
        guidance: Scale of classifier-free guidance; 1 is off.
        own_size: Keep the picture's size instead of cropping and resizing it to the model's.
        seed: Seed of the noise.
        out: Folder for the pictures. Default: RUN/edits/restyle.
        device: cpu, cuda, cuda:1, mps, or auto.
    """
    from unfog.generation import edits
    from unfog.runs import asking

    sampler, asked = _model(run, label, prompt, negative, steps, guidance, seed, device)
    picture = asking.picture(image, sampler, own_size)
    found = edits.restyle(sampler, picture, strength, n, asked)
    _written(found, out or run / "edits" / "restyle", [picture])


def inpaint(
    run: tyro.conf.Positional[Path],
    /,
    *,
    image: Path,
    mask: Path,
    n: Count = 4,
    label: str | None = None,
    prompt: Prompts = (),
    negative: str | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    repeats: int = 4,
    own_size: bool = False,
    seed: int = 0,
    out: Path | None = None,
    device: str = "auto",
) -> None:
    """Redraw the masked part of a picture; every other pixel is kept.

    For example:

      unfog edit inpaint runs/mnist --image seven.png --mask mask.png --label 7

    Args:
        run: Run folder.
        image: The picture.
        mask: Picture of the same size: white is redrawn, black is kept.
        n: Number of versions.
        label: Class that they should show.
        prompt: Text that they should show.
        negative: Text or class that they should not show: guidance leads away from it.
        steps: Steps of the solver.
        guidance: Scale of classifier-free guidance; 1 is off.
        repeats: How often each step is taken (RePaint): more fit better and take longer; 1 is fastest.
        own_size: Keep the picture's size instead of cropping and resizing it to the model's.
        seed: Seed of the noise.
        out: Folder for the pictures. Default: RUN/edits/inpaint.
        device: cpu, cuda, cuda:1, mps, or auto.
    """
    from unfog.generation import edits
    from unfog.runs import asking

    sampler, asked = _model(run, label, prompt, negative, steps, guidance, seed, device)
    picture = asking.picture(image, sampler, own_size)
    where = asking.mask(mask, image, sampler, own_size)
    found = edits.inpaint(sampler, picture, where, n, asked, repeats=repeats)
    _written(found, out or run / "edits" / "inpaint", [picture])


def outpaint(
    run: tyro.conf.Positional[Path],
    /,
    *,
    image: Path,
    left: int = 0,
    right: int = 0,
    top: int = 0,
    bottom: int = 0,
    n: Count = 4,
    label: str | None = None,
    prompt: Prompts = (),
    steps: int | None = None,
    guidance: float | None = None,
    own_size: bool = False,
    seed: int = 0,
    out: Path | None = None,
    device: str = "auto",
) -> None:
    """Extend a picture beyond its edges.

    For example:

      unfog edit outpaint runs/folder --image mine.png --right 32

    Args:
        run: Run folder.
        image: The picture.
        left: Pixels to add on the left.
        right: Pixels to add on the right.
        top: Pixels to add at the top.
        bottom: Pixels to add at the bottom.
        n: Number of versions.
        label: Class that they should show.
        prompt: Text that they should show.
        steps: Steps of the solver.
        guidance: Scale of classifier-free guidance; 1 is off.
        own_size: Keep the picture's size instead of cropping and resizing it to the model's.
        seed: Seed of the noise.
        out: Folder for the pictures. Default: RUN/edits/outpaint.
        device: cpu, cuda, cuda:1, mps, or auto.
    """
    from unfog.generation import edits
    from unfog.runs import asking

    sampler, asked = _model(run, label, prompt, None, steps, guidance, seed, device)
    picture = asking.picture(image, sampler, own_size)
    found = edits.outpaint(sampler, picture, (left, right, top, bottom), n, asked)
    _written(found, out or run / "edits" / "outpaint", [])


def invert(
    run: tyro.conf.Positional[Path],
    /,
    *,
    image: Path,
    label: str | None = None,
    prompt: Prompts = (),
    steps: int | None = 50,
    out: Path | None = None,
    device: str = "auto",
) -> None:
    """Find the noise that leads to a picture, draw the picture again from it, and report the difference.

    Writes noise.npy, of standard deviation 1, and a sheet of the picture and its reconstruction.

    For example:

      unfog edit invert runs/digits --image eight.png --label 8 --steps 50

    Args:
        run: Run folder.
        image: The picture.
        label: Class that it shows.
        prompt: Text that it shows.
        steps: Steps to the noise, and as many back.
        out: Folder for noise and pictures. Default: RUN/edits/invert.
        device: cpu, cuda, cuda:1, mps, or auto.
    """
    import io

    import numpy as np

    from unfog.evaluation.reconstruction import psnr
    from unfog.generation import edits
    from unfog.runs import asking
    from unfog.runtime.files import write_whole

    sampler, asked = _model(run, label, prompt, None, steps, 1.0, 0, device)
    picture = asking.picture(image, sampler, False)
    noise, again = edits.invert(sampler, picture, asked)
    folder = out or run / "edits" / "invert"
    _written(again[None], folder, [picture])
    buffer = io.BytesIO()
    np.save(buffer, noise.numpy())
    write_whole(folder / "noise.npy", buffer.getvalue())
    print(f"PSNR of the reconstruction: {psnr(again[None], picture[None])[0]:.1f} dB; noise: {folder / 'noise.npy'}")


def interpolate(
    run: tyro.conf.Positional[Path],
    /,
    *,
    images: tuple[Path, Path],
    n: Count = 9,
    label: str | None = None,
    prompt: Prompts = (),
    steps: int | None = 50,
    out: Path | None = None,
    device: str = "auto",
) -> None:
    """Interpolate between two pictures: invert both to noise and sample along the arc between the noises.

    For example:

      unfog edit interpolate runs/digits --images three.png eight.png --label 3

    Args:
        run: Run folder.
        images: The two pictures.
        n: Number of pictures, the two ends included.
        label: Class that all show.
        prompt: Text that all show.
        steps: Steps to the noise, and as many back.
        out: Folder for the pictures. Default: RUN/edits/interpolate.
        device: cpu, cuda, cuda:1, mps, or auto.
    """
    from unfog.generation import edits
    from unfog.runs import asking

    sampler, asked = _model(run, label, prompt, None, steps, 1.0, 0, device)
    first, second = (asking.picture(image, sampler, False) for image in images)
    _written(edits.interpolate(sampler, first, second, n, asked), out or run / "edits" / "interpolate", [])


def vary(
    run: tyro.conf.Positional[Path],
    /,
    *,
    image: Path,
    amount: float = 0.3,
    n: Count = 8,
    label: str | None = None,
    prompt: Prompts = (),
    steps: int | None = 50,
    seed: int = 0,
    out: Path | None = None,
    device: str = "auto",
) -> None:
    """Draw variations of a picture: invert it to noise, mix in other noise, and sample.

    For example:

      unfog edit vary runs/digits --image eight.png --amount 0.4 --label 8

    Args:
        run: Run folder.
        image: The picture.
        amount: How much other noise to mix in, from 0 to 1.
        n: Number of variations.
        label: Class that they show.
        prompt: Text that they show.
        steps: Steps to the noise, and as many back.
        seed: Seed of the other noise.
        out: Folder for the pictures. Default: RUN/edits/vary.
        device: cpu, cuda, cuda:1, mps, or auto.
    """
    from unfog.generation import edits
    from unfog.runs import asking

    sampler, asked = _model(run, label, prompt, None, steps, 1.0, seed, device)
    picture = asking.picture(image, sampler, False)
    _written(edits.vary(sampler, picture, amount, n, asked), out or run / "edits" / "vary", [picture])
