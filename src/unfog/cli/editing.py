"""Verbs that edit pictures with a trained model."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from unfog.cli import arguments
from unfog.cli.options import Count, Flat, Inverting, Redrawing, RunFolder, Showing, SomePath

if TYPE_CHECKING:
    from torch import Tensor

    from unfog.generation.sampler import Sampler
    from unfog.recipes.conditions import Asked
    from unfog.runs.model import SamplingOptions

GIVEN = "the picture given"


def _model(
    run: Path, showing: Showing, sampling: "SamplingOptions", out: Path | None, free: bool = False
) -> "tuple[Sampler, Asked]":
    """Return the sampler of a run, and the requested condition; refuse an `out` among the run's data.

    With `free` there may be none: the model decides what the picture shows.
    """
    from unfog.runs import asking
    from unfog.runs.reading import check_apart
    from unfog.runs.run import load

    loaded = load(run, showing.device)
    check_apart(out or run, loaded.recipe)
    sampler = loaded.editor(**sampling)
    asked = asking.asked(loaded.recipe, label=showing.label, prompt=arguments.prompts(showing.prompt))
    return sampler, asked if free else asking.edited(loaded.recipe, sampler, asked)


def _written(
    pictures: "Tensor", folder: Path, first: "dict[str, Tensor]", sampler: "Sampler", asked: "Asked", what: str
) -> None:
    """Write each picture, and a sheet that begins with the given ones and says what the others are.

    Args:
        pictures: The results.
        folder: For them.
        first: What was given, by its name.
        sampler: Drew the results.
        asked: What they are to show.
        what: What they are.
    """
    import torch

    from unfog.data.modality import modality_of_rows
    from unfog.data.pictures import save_picture
    from unfog.recipes.words import in_words
    from unfog.runs.naming import in_a_line, settings_of
    from unfog.runtime.files import disk

    with disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
    modality = modality_of_rows(pictures)
    for place, picture in enumerate(pictures):
        modality.write(picture[None], folder / f"{place:05}{modality.suffix}")
    before = {name: one[None] for name, one in first.items() if one.shape == pictures.shape[1:]}
    shown = torch.cat([*before.values(), pictures])
    condition = None if asked is None else sampler.condition(1, asked)
    words = in_words(sampler.conditioning, sampler.known, condition, asked, 1)[0]
    labels = [*before] + [", ".join(filter(None, (what, words)))] * len(pictures)
    save_picture(modality.labelled(shown, labels, in_a_line(settings_of(sampler))), folder / "sheet.png")
    print(f"{len(pictures)} pictures: {folder / 'sheet.png'}{', after the original' if before else ''}")


def edit() -> None:
    """Edit pictures: restyle, inpaint, outpaint, restore, invert, interpolate, vary, steer; or texts: complete.

    `unfog edit VERB --help` explains each.

    For example:

      unfog edit restyle runs/digits --image three.png --label 3
      unfog edit inpaint runs/mnist --image 7.png --mask mask.png --label 7
    """


def restyle(
    run: RunFolder,
    /,
    *,
    redrawing: Flat[Redrawing],
    image: Path,
    strength: float = 0.6,
    n: Count = 4,
    out: SomePath = None,
) -> None:
    """Draw versions of a picture by noising it part of the way and sampling from there (image to image).

    The lower the strength, the fewer of the steps are taken.

    For example:

      unfog edit restyle runs/shapes --image mine.png --strength 0.5 --prompt "a large red circle"

    Args:
        image: The picture.
        strength: How much to change: 0 returns the picture itself, 1 ignores it.
        n: Number of versions.
        out: Folder for the pictures. Default: RUN/edits/restyle.
    """
    from unfog.generation import edits
    from unfog.runs import asking
    from unfog.runtime.files import locked

    sampler, asked = _model(run, redrawing, redrawing.sampling(), out)
    picture = asking.picture(image, sampler, redrawing.own_size)
    with locked(folder := out or run / "edits" / "restyle"):
        drawn = edits.restyle(sampler, picture, strength, n, asked)
        _written(drawn, folder, {GIVEN: picture}, sampler, asked, f"restyled, strength {strength:g}")


def inpaint(
    run: RunFolder,
    /,
    *,
    redrawing: Flat[Redrawing],
    image: Path,
    mask: Path,
    n: Count = 4,
    repeats: int = 4,
    out: SomePath = None,
) -> None:
    """Redraw the masked part of a picture; every other pixel is kept.

    For example:

      unfog edit inpaint runs/mnist --image seven.png --mask mask.png --label 7

    Args:
        image: The picture.
        mask: Picture of the same size: white is redrawn, black is kept.
        n: Number of versions.
        repeats: How often each step is repeated (RePaint): more blends in better and takes longer.
        out: Folder for the pictures. Default: RUN/edits/inpaint.
    """
    from unfog.generation import edits
    from unfog.runs import asking
    from unfog.runtime.files import locked

    sampler, asked = _model(run, redrawing, redrawing.sampling(), out)
    picture = asking.picture(image, sampler, redrawing.own_size)
    where = asking.mask(mask, image, sampler, redrawing.own_size)
    with locked(folder := out or run / "edits" / "inpaint"):
        drawn = edits.inpaint(sampler, picture, where, n, asked, repeats=repeats)
        _written(drawn, folder, {GIVEN: picture}, sampler, asked, "inpainted")


def outpaint(
    run: RunFolder,
    /,
    *,
    redrawing: Flat[Redrawing],
    image: Path,
    left: int = 0,
    right: int = 0,
    top: int = 0,
    bottom: int = 0,
    n: Count = 4,
    out: SomePath = None,
) -> None:
    """Extend a picture beyond its edges.

    For example:

      unfog edit outpaint runs/folder --image mine.png --right 32

    Args:
        image: The picture.
        left: Pixels to add on the left.
        right: Pixels to add on the right.
        top: Pixels to add at the top.
        bottom: Pixels to add at the bottom.
        n: Number of versions.
        out: Folder for the pictures. Default: RUN/edits/outpaint.
    """
    from unfog.generation import edits
    from unfog.runs import asking
    from unfog.runtime.files import locked

    sampler, asked = _model(run, redrawing, redrawing.sampling(), out)
    picture = asking.picture(image, sampler, redrawing.own_size)
    with locked(folder := out or run / "edits" / "outpaint"):
        drawn = edits.outpaint(sampler, picture, (left, right, top, bottom), n, asked)
        _written(drawn, folder, {}, sampler, asked, "outpainted")


def restore(
    run: RunFolder,
    /,
    *,
    redrawing: Flat[Redrawing],
    image: Path,
    operator: str,
    noise: float = 0.02,
    how: Literal["gradient", "pseudo-inverse"] = "gradient",
    clean: bool = False,
    n: Count = 4,
    out: SomePath = None,
) -> None:
    """Restore a picture that was blurred, made smaller, masked or cropped, and is noisy.

    Draws pictures that give this one when the same happens to them. Without --label or --prompt they may show anything.
    Writes each, a sheet, and mean.png, their mean, which is nearest to the truth on average.

    For example:

      unfog edit restore runs/mnist --image blurred.png --operator blur:1.5 --noise 0.05
      unfog edit restore runs/mnist --image seven.png --operator downsample:4 --clean

    Args:
        image: The picture.
        operator: What happened to it: blur:DEVIATION or downsample:FACTOR, in pixels; crop (the middle is left) or
            crop:LEFT,TOP; or a file, PNG or NPY: a mask of the picture's size, white where nothing is known, or a
            kernel (mask:FILE and kernel:FILE say which).
        noise: Standard deviation of its noise, as a share of the range from black to white.
        how: gradient, or pseudo-inverse, which is three to five times as fast and less exact.
        clean: The picture is a clean one: measure it so first, and report how well it is restored.
        n: Number of pictures to draw.
        out: Folder for the pictures. Default: RUN/edits/restore.
    """
    import torch

    from unfog.data.modality import modality_of_rows
    from unfog.data.pictures import resized
    from unfog.evaluation.reconstruction import psnr
    from unfog.generation import restoring
    from unfog.runs import asking
    from unfog.runs import restoring as reading
    from unfog.runtime.files import locked

    sampler, asked = _model(run, redrawing, redrawing.sampling(), out, free=True)
    asking.check_guided(asked, redrawing.guidance)
    given, known = reading.measurement(
        image, operator, sampler, noise=noise, own_size=redrawing.own_size, clean=clean, seed=redrawing.seed
    )
    with locked(folder := out or run / "edits" / "restore"):
        drawn = restoring.restore(sampler, given, n, asked, how)
        enlarged = torch.from_numpy(resized(given.picture.numpy(), *given.size))
        clean_too = {} if known is None else {GIVEN: known}
        first = {**clean_too, "as measured": enlarged}
        used = restoring.restoring(sampler, asked)
        _written(drawn, folder, first, used, asked, f"restored, {operator}, noise {noise:g}")
        mean = drawn.float().mean(0, keepdim=True).round().byte()
        modality_of_rows(mean).write(mean, folder / "mean.png")
        if known is not None:
            modality_of_rows(mean).write(given.picture[None], folder / "measured.png")
    misfit = given.misfit(drawn)
    print(f"measured again, they differ from the picture given by {misfit:.2f} times its noise; about 1 is right")
    if known is not None:
        one, several, before = (float(psnr(rows, known[None])[0]) for rows in (drawn[:1], mean, enlarged[None]))
        print(f"PSNR: {one:.1f} dB, their mean {several:.1f}, as measured {before:.1f}")


def invert(
    run: RunFolder,
    /,
    *,
    inverting: Flat[Inverting],
    image: Path,
    out: SomePath = None,
) -> None:
    """Find the noise that leads to a picture, draw the picture again from it, and report the difference.

    Writes noise.npy, of standard deviation 1, and a sheet of the picture and its reconstruction.

    For example:

      unfog edit invert runs/digits --image eight.png --label 8 --steps 50

    Args:
        image: The picture.
        out: Folder for noise and pictures. Default: RUN/edits/invert.
    """
    import io

    import numpy as np

    from unfog.evaluation.reconstruction import psnr
    from unfog.generation import edits
    from unfog.runs import asking
    from unfog.runtime.files import locked, write_whole

    sampler, asked = _model(run, inverting, inverting.sampling(), out)
    picture = asking.picture(image, sampler, False)
    with locked(folder := out or run / "edits" / "invert"):
        noise, again = edits.invert(sampler, picture, asked)
        _written(again[None], folder, {GIVEN: picture}, sampler, asked, "drawn from its noise")
        buffer = io.BytesIO()
        np.save(buffer, noise.numpy())
        write_whole(folder / "noise.npy", buffer.getvalue())
    print(f"PSNR of the reconstruction: {psnr(again[None], picture[None])[0]:.1f} dB; noise: {folder / 'noise.npy'}")


def interpolate(
    run: RunFolder,
    /,
    *,
    inverting: Flat[Inverting],
    images: tuple[Path, Path],
    n: Count = 9,
    fresh: bool = False,
    seed: int = 0,
    out: SomePath = None,
) -> None:
    """Interpolate between two pictures: invert both to noise and sample along the arc between the noises.

    For example:

      unfog edit interpolate runs/digits --images three.png eight.png --label 3

    Args:
        images: The two pictures.
        n: Number of pictures, the two ends included.
        fresh: For a model conditioned on embeddings: use one new noise instead of those of the two pictures, so that
            only what they show changes.
        seed: Seed of that noise.
        out: Folder for the pictures. Default: RUN/edits/interpolate.
    """
    from unfog.generation import edits
    from unfog.runs import asking
    from unfog.runtime.files import locked

    sampler, asked = _model(run, inverting, inverting.sampling(seed), out)
    first, second = (asking.picture(image, sampler, False) for image in images)
    with locked(folder := out or run / "edits" / "interpolate"):
        drawn = edits.interpolate(sampler, first, second, n, asked, fresh=fresh)
        _written(drawn, folder, {}, sampler, asked, "from the first picture to the second")


def vary(
    run: RunFolder,
    /,
    *,
    inverting: Flat[Inverting],
    image: Path,
    amount: float = 0.3,
    n: Count = 8,
    seed: int = 0,
    out: SomePath = None,
) -> None:
    """Draw variations of a picture: invert it to noise, mix in other noise, and sample.

    For example:

      unfog edit vary runs/digits --image eight.png --amount 0.4 --label 8

    Args:
        image: The picture.
        amount: How much other noise to mix in, from 0 to 1.
        n: Number of variations.
        seed: Seed of the other noise.
        out: Folder for the pictures. Default: RUN/edits/vary.
    """
    from unfog.generation import edits
    from unfog.runs import asking
    from unfog.runtime.files import locked

    sampler, asked = _model(run, inverting, inverting.sampling(seed), out)
    picture = asking.picture(image, sampler, False)
    with locked(folder := out or run / "edits" / "vary"):
        drawn = edits.vary(sampler, picture, amount, n, asked)
        _written(drawn, folder, {GIVEN: picture}, sampler, asked, f"varied, amount {amount:g}")


def steer(
    run: RunFolder,
    /,
    *,
    inverting: Flat[Inverting],
    image: Path,
    before: str,
    after: str,
    amount: float = 0.4,
    n: Count = 5,
    keep_noise: bool = False,
    out: SomePath = None,
) -> None:
    """Change what a picture shows by a change of text, with a model that is conditioned on embeddings (DALL-E 2).

    The way leads from the embedding of the picture towards the difference of those of the two texts.

    For example:

      unfog edit steer runs/decoder --image circle.png --before "a red circle" --after "a blue circle"

    Args:
        image: The picture.
        before: What it shows.
        after: What it should show.
        amount: How far the last picture is on the way, from 0 to 1.
        n: Number of pictures, the first of which shows what the given one does.
        keep_noise: Use the noise of the picture instead of one new noise for all: the first then is the picture itself,
            and the others may keep more of it than is wanted.
        out: Folder for the pictures. Default: RUN/edits/steer.
    """
    from unfog.generation import edits
    from unfog.runs import asking
    from unfog.runtime.files import locked

    sampler, _ = _model(run, inverting, inverting.sampling(), out, free=True)
    picture = asking.picture(image, sampler, False)
    with locked(folder := out or run / "edits" / "steer"):
        drawn = edits.steer(sampler, picture, before, after, amount, n, fresh=not keep_noise)
        _written(drawn, folder, {}, sampler, None, f"from {before!r} to {after!r}")
