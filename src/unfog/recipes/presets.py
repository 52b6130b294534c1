"""The built-in recipes: plain functions that return a `Recipe`."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from unfog.data import idx
from unfog.data.characters import Characters
from unfog.data.classic import CLOTHES, existing
from unfog.data.codecs import Identity, Pixels
from unfog.data.geometry import Geometry
from unfog.data.labels import AUTO
from unfog.data.packed import ARCHIVES
from unfog.data.source import Augment
from unfog.diffusion.solvers import Ancestral
from unfog.diffusion.tables import Linear
from unfog.diffusion.targets import X0, Eps
from unfog.diffusion.times import DiscreteTimes, LogitNormal, Uniform
from unfog.recipes.conditions import ClassConditioning, NoConditioning, TextConditioning
from unfog.recipes.imagining import decoder_of, encoder_of, prior_of
from unfog.recipes.latents import LatentCodec
from unfog.recipes.media import audio, series, table, video, vocoder, volumes
from unfog.recipes.networks import AutoencoderSpec, CompactSpec, MinimalSpec, MLPSpec, UNetSpec
from unfog.recipes.optimizers import AdamW, Muon
from unfog.recipes.parse import named
from unfog.recipes.planes import ImageConditioning
from unfog.recipes.recipe import Recipe
from unfog.recipes.settings import ExponentialAverage, Inputs, PowerAverage, Sampling, Training
from unfog.recipes.sources import (
    CIFAR10,
    MNIST,
    CaptionedShapes,
    DataSpec,
    Digits,
    Fashion,
    Folder,
    Grammar,
    Idx,
    Points,
    Shards,
    TextFile,
)
from unfog.runtime.errors import UserError, unknown

Size = int | tuple[int, int]
"""The size of pictures: a side, or (height, width)."""


def points(data: str | None = None, size: Size | None = None) -> Recipe:
    """Points in the plane (moons, spiral, checkerboard): ten seconds, with every trajectory in view."""
    _no_path("points", data, size)
    return Recipe(
        "points",
        data=Points(),
        codec=Identity(),
        network=MLPSpec(),
        times=Uniform(),
        optimizer=AdamW(lr=3e-3),
        training=Training(images=160_000, batch=256, reports=2),
        sampling=Sampling(batch=1024),
    )


def digits(data: str | None = None, size: Size | None = None) -> Recipe:
    """1,797 handwritten digits of 8×8 pixels, included: a minute on two cores, no download."""
    _no_path("digits", data, size)
    return Recipe(
        "digits",
        data=Digits(),
        network=CompactSpec(),
        optimizer=AdamW(lr=5e-3),
        training=Training(images=75_000),
        sampling=Sampling(guidance=1.5),
    )


def mnist(data: str | None = None, size: Size | None = None) -> Recipe:
    """MNIST, 60,000 handwritten digits of 28×28 pixels: good results after ten minutes on two cores.

    With a path it reads any set of idx files, EMNIST for instance, see `unfog.data.idx.idx`.
    """
    return _idx("mnist", data, size)


def fashion(data: str | None = None, size: Size | None = None) -> Recipe:
    """Fashion-MNIST, 60,000 grey pictures of clothes, 28×28 pixels."""
    return _idx("fashion", data, size, () if data is None else CLOTHES)


IDX: dict[str, type[MNIST] | type[Fashion]] = {"mnist": MNIST, "fashion": Fashion}


def _idx(name: str, data: str | None, size: Size | None, names: tuple[str, ...] = ()) -> Recipe:
    """Return the recipe of grey pictures in idx files, downloaded or at a path.

    Args:
        name: Its name.
        data: The path of a set; None downloads the recipe's own.
        size: Side, or (height, width); default: as the pictures are, and 64 if they are larger.
        names: Names of the classes of the recipe's own set.
    """
    patch = 2
    if data is None:
        _no_path(name, None, size)
        source: MNIST | Fashion | Idx = IDX[name]()
    else:
        own = idx.sides_at(data) if idx.holds(data) else (28, 28)
        size = PIXELS if size is None and max(own) > PIXELS else size
        sides = own if size is None else (size, size) if isinstance(size, int) else size
        patch = 2 if all(side % 4 == 0 for side in sides) else 1
        source = Idx(_located(data, idx_files=True), size=size, names=names)
    return Recipe(
        name,
        data=source,
        network=CompactSpec(width=64, patch=patch),
        optimizer=Muon(lr=5e-3, warmup=500),
        training=Training(images=300_000),
        sampling=Sampling(guidance=2.0),
    )


def cifar10(data: str | None = None, size: Size | None = None) -> Recipe:
    """CIFAR-10, 50,000 colour pictures in ten classes, 32×32 pixels: 50 epochs, about two hours on two cores."""
    _no_path("cifar10", None, size)
    return Recipe(
        "cifar10",
        data=CIFAR10(path=_absolute(data)),
        augment=Augment(flip=True),
        network=CompactSpec(width=64, patch=2),
        optimizer=Muon(lr=5e-3),
        training=Training(images=2_500_000, batch=128, reports=20),
        sampling=Sampling(guidance=2.0),
    )


def cifar10_edm(data: str | None = None, size: Size | None = None) -> Recipe:
    """CIFAR-10 for one GPU with the settings of EDM: 59 million parameters, 200 million images.

    Source: Karras et al. 2022, appendix F (DDPM++, class-conditional, augmented).
    """
    _no_path("cifar10-edm", None, size)
    return Recipe(
        "cifar10-edm",
        data=CIFAR10(path=_absolute(data)),
        augment=Geometry(),
        network=UNetSpec(widths=(256, 256, 256), blocks=4, attention=(False, True, False), head=256, dropout=0.13),
        optimizer=AdamW(lr=1e-3, beta2=0.999, weight_decay=0.0, warmup=10_000_000, decay=0.0),
        ema=ExponentialAverage(half_life=500_000.0),
        training=Training(images=200_000_000, batch=512, reports=50),
        sampling=Sampling(steps=18),
    ).set("schedule=edm", "target=edm", "solver=heun")


def folder(data: str | None = None, size: Size | None = None, label_from: str = AUTO) -> Recipe:
    """Your own pictures: channels, size, network and batch are chosen to fit the folder.

    The rules: grey if all pictures are grey; the largest side of 8, 16, 28, 32, 48, 64 that the median picture
    reaches; above 64 pixels in the latents of an autoencoder that is trained first, with sides 4 times smaller, 8 times
    from 128 on; the compact network on patches of 1, 2, 4 pixels for sides up to 16, 32, 64 and more, 48 channels wide
    for grey and 64 for colour; batches of 64, of 32 from 64 pixels on, and at most the training set; half of the
    pictures mirrored left to right if they have no classes, captions or values; guidance 2 if they have classes; 30
    epochs, at least 200,000 pictures.
    A folder of idx files is trained on as by the recipe 'mnist'.
    """
    if data is not None and idx.holds(data) and not _pictures(data):
        if label_from != AUTO:
            raise UserError(f"the idx files in {data} have labels of their own: omit `label_from`")
        return _idx("folder", data, size)
    look = _looked("folder", data, size, label_from)
    side = look.side
    factor = 1 if side <= PIXELS else _factor(side)
    places = side // factor
    patch = 1 if places <= 16 else 2 if places <= 32 else 4
    return Recipe(
        "folder",
        data=look.data,
        codec=Pixels() if factor == 1 else LatentCodec(factor=factor),
        augment=Augment(flip=look.plain),
        network=CompactSpec(width=48 if look.channels == 1 else 64, patch=patch),
        optimizer=AdamW(lr=2e-3),
        sampling=Sampling(guidance=2.0 if look.classes > 1 else 1.0),
        training=Training(
            images=max(200_000, 30 * look.rows),
            batch=min(64 if side < 64 else 32, max(1, look.rows - max(1, round(0.1 * look.rows)))),
        ),
    )


def autoencoder(data: str | None = None, size: Size | None = None, label_from: str = AUTO) -> Recipe:
    """An autoencoder for your own pictures, in whose latents models are smaller and faster.

    The latents have 4 channels and sides 4 times smaller, 8 times from 128 pixels on.
    """
    look = _looked("autoencoder", data, size, label_from)
    levels = _factor(look.side).bit_length() - 1
    return Recipe(
        "autoencoder",
        data=look.data,
        augment=Augment(flip=True),
        network=AutoencoderSpec(widths=(32, *[64] * levels)),
        objective=named("objective", "reconstruction"),
        conditioning=NoConditioning(),
        optimizer=Muon(lr=3e-3),
        training=Training(images=max(100_000, 30 * look.rows), batch=32, reports=4),
    )


def text_to_image(data: str | None = None, size: Size | None = None, label_from: str = AUTO) -> Recipe:
    """Your own captioned pictures (1.txt next to 1.png, or metadata.jsonl): text in, pictures out.

    Above 32 pixels it trains an autoencoder first and then, in its latents, the compact network, which reads the
    captions by cross-attention; `network=conditional-unet` is Stable Diffusion's, and slower. Captions that are equal
    up to the first colon or comma are held out together, unless so many are, or they repeat as names of classes do.
    """
    look = _looked("text-to-image", data, size, label_from, together=":,")
    side = look.side
    if not look.captioned and not look.classes:
        raise UserError(f"{data} has no captions: put 1.txt next to 1.png, or add a metadata.jsonl with 'text'")
    return Recipe(
        "text-to-image",
        data=look.data,
        codec=Pixels() if side <= 32 else LatentCodec(factor=_factor(side)),
        network=CompactSpec(width=64, patch=2 if 16 < side <= 32 else 1, middle=4),
        conditioning=TextConditioning(),
        optimizer=Muon(lr=3e-3),
        training=Training(images=max(400_000, 30 * look.rows), batch=64),
        sampling=Sampling(guidance=4.0),
    )


def super_resolution(data: str | None = None, size: Size | None = None, label_from: str = AUTO) -> Recipe:
    """Your own pictures from smaller ones: learns to enlarge, by itself or as the second stage of a cascade.

    The small pictures are half as large; `--set conditioning.from=16` says otherwise. In training they get noise of up
    to half, and the model is given how much, so that it can enlarge what another model has drawn. The compact network
    works on patches of 2 pixels, 4 above 64; half of the pictures are mirrored.
    """
    look = _looked("super-resolution", data, size, label_from)
    if look.side < 16:
        raise UserError(f"pictures of {look.side} pixels are too small to be made from smaller ones: set size")
    return Recipe(
        "super-resolution",
        data=look.data,
        augment=Augment(flip=True),
        network=CompactSpec(width=48, patch=2 if look.side <= PIXELS else 4),
        conditioning=ImageConditioning(dropout=0.0, small=look.side // 2, noise=0.5),
        optimizer=Muon(lr=5e-3),
        training=Training(images=max(200_000, 30 * look.rows), batch=32),
        sampling=Sampling(steps=10),  # the small picture leaves little to decide: more steps only add noise
    )


PIXELS = 64
"""The largest side that the recipe 'folder' trains on in pixels, not in latents."""


def _factor(side: int) -> int:
    """Return how many times smaller the sides of latents are."""
    return 8 if side >= 128 else 4


class Look(NamedTuple):
    """What a look at pictures says.

    Attributes:
        data: How they are read.
        rows: How many there are.
        classes: How many classes they have.
        captioned: Whether they have captions.
        plain: Whether nothing is known of them.
        channels: 1 for grey pictures, 3 for colour.
        side: The longer side to which they are resized.
    """

    data: DataSpec
    rows: int
    classes: int
    captioned: bool
    plain: bool
    channels: int
    side: int


def _looked(name: str, data: str | None, size: Size | None, label_from: str, together: str = "") -> Look:
    """Look at the pictures of a folder, or of shards that are too large to be read at once."""
    from unfog.data.folder import list_pictures, look
    from unfog.data.shards import streams

    if data is None:
        raise UserError(f"the recipe {name!r} needs a folder of pictures: give its path as `data`")
    if streams(data):
        if label_from != AUTO:
            raise UserError("shards say the classes of their pictures themselves: omit `label_from`")
        return _streamed(data, size)
    listing = list_pictures(data, label_from=label_from)
    channels, height, width = look(listing)
    sides = (height, width) if size is None else size
    plain = not (listing.classes or listing.captions or listing.values)
    spec = Folder(path=_located(data), size=sides, channels=channels, label_from=label_from, together=together)
    side = sides if isinstance(sides, int) else max(sides)
    return Look(spec, len(listing.files), len(listing.classes), listing.captions is not None, plain, channels, side)


def _streamed(data: str, size: Size | None) -> Look:
    """Look at shards."""
    spec = Shards(path=_located(data), size=size)
    train, held = spec.build()
    channels, *sides = train.shape
    captioned = train.about(np.zeros(1, np.int64)).captions is not None
    spec = replace(spec, size=tuple(sides), channels=channels)
    rows, classes = len(train) + len(held), len(train.classes)
    return Look(spec, rows, classes, captioned, not (classes or captioned), channels, max(sides))


def _pictures(data: str) -> bool:
    """Return whether a folder holds pictures."""
    from unfog.data.folder import pictures_below

    return not idx.is_file(data) and bool(pictures_below(Path(data).expanduser()))


def shapes(data: str | None = None, size: Size | None = None) -> Recipe:
    """Text to image on drawn shapes with captions ("a small red circle above a large blue square"), no download.

    Predicts x0, whose background is flat: eps and velocities contain noise, which a short training does not remove from
    the background. Times lie nearer to the noise than usual, where the arrangement of the shapes is decided. The weight
    average is short: over the last tenth of the training it would tint the background by five of 255.
    """
    _no_path("shapes", data, None)
    if isinstance(size, tuple) and size[0] != size[1]:
        raise UserError("the pictures of the recipe 'shapes' are square: give size as one side")
    side = size[0] if isinstance(size, tuple) else size
    return Recipe(
        "shapes",
        data=CaptionedShapes(count=1_000_000, side=side or 32),
        network=CompactSpec(width=48, patch=2, middle=5),
        conditioning=TextConditioning(length=20),
        target=X0(),
        times=LogitNormal(mean=0.4),
        optimizer=Muon(lr=3e-3),
        ema=PowerAverage(gamma=100.0),
        training=Training(images=1_000_000, batch=64),
    )


def encoder(data: str | None = None, size: Size | None = None, label_from: str = AUTO) -> Recipe:
    """Encoders of pictures and captions, trained to recognise which belong together: CLIP's contrastive objective.

    Of your own captioned pictures, or of the captioned shapes, included. A prior and a decoder need one.
    """
    return encoder_of(_captioned(data, size, label_from))


def prior(data: str | None = None, size: Size | None = None, label_from: str = AUTO) -> Recipe:
    """DALL-E 2's prior: from a caption to the embedding of a picture, by diffusion.

    `--set data.path=runs/encoder` names the encoder. `unfog cascade` joins it with a decoder.
    """
    return prior_of(_captioned(data, size, label_from))


def decoder(data: str | None = None, size: Size | None = None, label_from: str = AUTO) -> Recipe:
    """DALL-E 2's decoder: from the embedding of a picture to such a picture.

    `--set conditioning.path=runs/encoder` names the encoder. By itself it draws variations of a picture, and what lies
    between two; network and training are those of the recipes `shapes` and `text-to-image`.
    """
    return decoder_of(_captioned(data, size, label_from))


def _captioned(data: str | None, size: Size | None, label_from: str) -> Recipe:
    """Return the recipe of text to image for captioned pictures, or for the captioned shapes."""
    if data is not None:
        return text_to_image(data, size, label_from)
    if label_from != AUTO:
        raise UserError("the captioned shapes have no labels: omit `label_from`")
    return shapes(None, size)


def text(data: str | None = None, size: Size | None = None) -> Recipe:
    """Text by masked diffusion: a text file of yours, or dates, sums and sentences, included."""
    if size is not None:
        raise UserError("texts have no size: omit it, and set data.length for the characters of a row")
    return Recipe(
        "text",
        data=Grammar() if data is None else TextFile(str(Path(data).expanduser().resolve())),
        network=CompactSpec(width=64, middle=3),
        codec=Characters(),
        objective=named("objective", "masked"),
        conditioning=ClassConditioning() if data is None else NoConditioning(),
        optimizer=Muon(lr=5e-3),
        training=Training(images=300_000, batch=128),
        sampling=Sampling(steps=48, temperature=0.7),
    )


def tutorial(data: str | None = None, size: Size | None = None) -> Recipe:
    """DDPM as in the tutorials, on digits: linear schedule, eps, discrete times, a two-level U-Net."""
    return replace(
        digits(data, size),
        name="tutorial",
        network=MinimalSpec(),
        inputs=Inputs(network_time="index"),
        schedule=Linear(),
        target=Eps(),
        times=DiscreteTimes(),
        optimizer=AdamW(lr=1e-3),
        solver=Ancestral(),
        sampling=Sampling(steps=1000),
        training=Training(images=75_000, reports=2),
    )


RECIPES: dict[str, Callable[..., Recipe]] = {
    "points": points,
    "digits": digits,
    "mnist": mnist,
    "fashion": fashion,
    "cifar10": cifar10,
    "cifar10-edm": cifar10_edm,
    "folder": folder,
    "autoencoder": autoencoder,
    "text-to-image": text_to_image,
    "super-resolution": super_resolution,
    "shapes": shapes,
    "encoder": encoder,
    "prior": prior,
    "decoder": decoder,
    "text": text,
    "audio": audio,
    "vocoder": vocoder,
    "video": video,
    "volumes": volumes,
    "series": series,
    "table": table,
    "tutorial": tutorial,
}
LABELLED = (
    "folder",
    "autoencoder",
    "text-to-image",
    "super-resolution",
    "encoder",
    "prior",
    "decoder",
    "audio",
    "vocoder",
    "video",
    "volumes",
    "series",
)
"""Recipes whose classes may come from different places."""


def recipe(name: str, data: str | None = None, size: Size | None = None, label_from: str = AUTO) -> Recipe:
    """Return the recipe with this name.

    Args:
        name: One of `RECIPES`.
        data: Path of the data, for the recipes that read files.
        size: Side of the pictures, or (height, width), for the recipes that resize them.
        label_from: What the class of a picture is, for the recipes of folders, see `unfog.data.folder.folder`.

    Raises: UserError: For an unknown name, or an argument that the recipe does not take.
    """
    if name not in RECIPES:
        raise unknown("recipe", name, RECIPES)
    if label_from == AUTO:
        return RECIPES[name](data, size)
    if name not in LABELLED:
        raise UserError(f"the data of the recipe {name!r} have labels of their own: omit `label_from`")
    return RECIPES[name](data, size, label_from)


def _absolute(path: str | None) -> str | None:
    """Return an absolute path, which stays valid wherever the run is used from."""
    return None if path is None else str(existing(path).resolve())


def _located(path: str | None, idx_files: bool = False) -> str:
    """Return the absolute path of a folder of pictures, of an archive of them, or of idx files."""
    if path is not None and idx_files and idx.is_file(path):
        return str(Path(path).expanduser().resolve())
    return str(existing(path or "", ARCHIVES).resolve())


def _no_path(name: str, data: str | None, size: Size | None) -> None:
    """Raise a UserError for arguments that a recipe does not take."""
    if data is not None:
        raise UserError(f"the recipe {name!r} has its own data: omit data, or use the recipe 'folder'")
    if size is not None:
        raise UserError(f"the pictures of the recipe {name!r} have a fixed size: omit size")
