"""Edits of pictures by a trained model: restyled, filled in, continued, led back to their noise, varied and mixed."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import update_wrapper
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from unfog.data.codecs import Codec, Latents
from unfog.data.modality import images
from unfog.diffusion.denoiser import Denoise
from unfog.diffusion.editing import Inpainting, begin, check_strength, climbing, late, rising, spherical, varied
from unfog.diffusion.sampling import follow, trajectory
from unfog.diffusion.solvers import DDIM, Solver
from unfog.generation.sampler import Sampler
from unfog.recipes.conditions import Asked, Depicting
from unfog.runtime.errors import UserError, whole_number
from unfog.runtime.randomness import normal

Given = ParamSpec("Given")
Made = TypeVar("Made")


Margins = tuple[int, int, int, int]
"""Pixels on the left, right, top and bottom."""


class Beginning(NamedTuple):
    """Where an edit begins.

    Attributes:
        denoise: The model, wrapped as the edit needs it.
        x: The state at the first of the times.
        times: The times.
    """

    denoise: Denoise
    x: Tensor
    times: Tensor


@dataclass(frozen=True)
class Canvas:
    """A picture as the model sees it: continued to sides that the network can halve, and encoded.

    Rows of other kinds, of series, clips or volumes, have the shape that the model was trained on.

    Attributes:
        sampler: The sampler whose model edits it.
        picture: uint8, `(1, channels, height, width)`, or another row as stored.
    """

    sampler: Sampler
    picture: Tensor

    def __post_init__(self) -> None:
        """Check that the model is one of such pictures."""
        stored, shape = self.sampler.stored, tuple(self.picture.shape[1:])
        if not self.sampler.modality.pixels:
            if shape != stored:
                what = self.sampler.modality.describe(stored)
                raise UserError(f"the model was trained on {what}, and the row given is of shape {shape}")
            if self.sampler.codec.shape(stored) != stored:
                raise UserError(
                    "the model diffuses something else than what is stored, such as spectrograms of sounds, whose "
                    "places cannot be kept: only pictures, series, tables, clips and volumes can be edited"
                )
        elif not images.fits(shape, self.picture.dtype):
            raise UserError("a picture to edit is uint8 of shape (channels, height, width)")
        if shape[0] != stored[0]:
            raise UserError(f"the model was trained on pictures of {stored[0]} channels, and this one has {shape[0]}")
        if self.sampler.conditioning.planes(self.sampler.known):
            raise UserError(
                "a model conditioned on images cannot edit: use one conditioned on classes, text or nothing"
            )

    @property
    def behind(self) -> list[int]:
        """The padding after each side that lets the network halve it, as `F.pad` takes it."""
        codec = self.sampler.codec
        multiple = self.sampler.denoiser.network.multiple * (
            codec.autoencoder.factor if isinstance(codec, Latents) else 1
        )
        return [amount for side in reversed(self.picture.shape[2:]) for amount in (0, -side % multiple)]

    @property
    def codec(self) -> Codec:
        """The codec of pictures of this size."""
        codec = self.sampler.codec
        if not isinstance(codec, Latents):
            return codec
        height, width = (side + pad for side, pad in zip(self.picture.shape[2:], self.behind[3::-2], strict=True))
        return replace(codec, stored=(self.picture.shape[1], height, width))

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.sampler.device

    @torch.no_grad()
    def encode(self, picture: Tensor) -> Tensor:
        """Return a picture of this size as the model sees it, `(1, *shape)`."""
        padded = F.pad(picture.float(), self.behind, mode="replicate").to(picture) if any(self.behind) else picture
        return self.codec.encode(padded.to(self.device))

    def decode(self, z: Tensor) -> Tensor:
        """Return states as pictures of this size, on the CPU."""
        inside: tuple[Any, ...] = (..., *(slice(side) for side in self.picture.shape[2:]))
        return self.codec.decode(z)[inside].cpu()

    def noise(self, purpose: str, step: int, first: int, shape: tuple[int, ...]) -> Tensor:
        """Return the noise of a batch of samples."""
        count = self.sampler.size
        return normal(self.sampler.seed, purpose, step, first, count, shape).to(self.device)

    def batches(
        self,
        count: int,
        asked: Asked,
        start: Callable[[Denoise, Tensor, int], Beginning],
        solver: Solver,
        free: bool = False,
    ) -> Iterator[Tensor]:
        """Yield edited pictures in batches; number i is the same in whatever request it comes.

        Args:
            count: How many.
            asked: What they should show.
            start: Maps (model, times, number of the first sample) to where the batch begins.
            solver: The rule of a step.
            free: Whether they may show anything, so that `asked` does not matter.
        """
        if count < 1:
            raise UserError(f"the number of pictures must be 1 or more, not {count}")
        count = whole_number("the number of pictures", count, 1)
        condition, size = None if free else self.sampler.condition(count, asked), self.sampler.size
        for first in range(0, count, size):
            denoise, times = replace(self.sampler, solver=solver).denoise(self.sampler.padded(condition, first))
            yield self._end(start(denoise, times, first), solver, first)[: count - first]

    @torch.inference_mode()
    def _end(self, begun: Beginning, solver: Solver, first: int) -> Tensor:
        """Return the pictures that a batch ends with."""

        def noise(step: int, like: Tensor) -> Tensor:
            return self.noise("step", step, first, tuple(like.shape[1:]))

        x = begun.x
        if len(begun.times) > 1:
            for step in trajectory(begun.denoise, x, begun.times, solver, noise=noise):
                x = step.x
        return self.decode(x)


def shown(sampler: Sampler, picture: Tensor, asked: Asked) -> Asked:
    """Return what an edited picture shows: what is asked, or what it shows by itself, where the model takes that."""
    own = sampler.conditioning
    return own.depicted(sampler.known, picture[None]) if asked is None and isinstance(own, Depicting) else asked


def _in_its_arithmetic(
    edit: Callable[Concatenate[Sampler, Given], Made],
) -> Callable[Concatenate[Sampler, Given], Made]:
    """Let an edit compute in the arithmetic of its sampler."""

    def compute(sampler: Sampler, /, *given: Given.args, **named: Given.kwargs) -> Made:
        with sampler.arithmetic():
            return edit(sampler, *given, **named)

    update_wrapper(compute, edit)
    return compute


@_in_its_arithmetic
def restyle(sampler: Sampler, picture: Tensor, strength: float, count: int = 1, asked: Asked = None) -> Tensor:
    """Return versions of a picture: noised up to a moment, and sampled from there.

    Args:
        sampler: Of the model.
        picture: uint8, `(channels, height, width)`.
        strength: How much of the way to pure noise: 0 gives the picture itself, 1 a new one.
        count: How many versions.
        asked: What they should show.

    Returns: uint8, `(count, channels, height, width)`.
    Raises: UserError: If the strength is no share, or the model is none of such pictures.
    Source: Meng et al. 2022, SDEdit.
    """
    canvas, asked = Canvas(sampler, picture[None]), shown(sampler, picture, asked)
    check_strength(strength)
    if strength == 0:
        return canvas.picture.expand(count, -1, -1, -1).clone()
    x0 = canvas.encode(canvas.picture)

    def start(denoise: Denoise, times: Tensor, first: int) -> Beginning:
        eps = canvas.noise("start", 0, first, tuple(x0.shape[1:]))
        x = begin(denoise.schedule, x0.expand_as(eps), eps, times, strength)
        return Beginning(denoise, x, late(times, strength))

    return torch.cat(list(canvas.batches(count, asked, start, sampler.solver)))


@_in_its_arithmetic
def inpaint(
    sampler: Sampler,
    picture: Tensor,
    mask: Tensor,
    count: int = 1,
    asked: Asked = None,
    *,
    repeats: int = 4,
    jump: int = 4,
) -> Tensor:
    """Return versions of a picture with a part redrawn; what is known stays as it is, to the bit.

    Args:
        sampler: Of the model.
        picture: uint8, `(channels, height, width)`, or another row as stored.
        mask: Where something new is wanted: bool, `(height, width)`, or of the shape of the picture.
        count: How many versions.
        asked: What they should show.
        repeats: How often each step is walked, so that new and known come to fit; 1 is no climb.
        jump: Steps down before a climb.

    Returns: As many rows as stored: uint8, `(count, channels, height, width)`.
    Raises: UserError: If the mask is of another size, or all of it is one value.
    """
    canvas, repeats = Canvas(sampler, picture[None]), whole_number("the number of repeats", repeats, 1)
    asked = shown(sampler, picture, asked)
    if mask.shape not in (picture.shape[1:], picture.shape):
        raise UserError(f"the mask is of {tuple(mask.shape)} pixels, and the picture of {tuple(picture.shape[1:])}")
    if bool(mask.all()) or not bool(mask.any()):
        what = "white: nothing is known; to draw a new picture use `unfog sample`" if mask.any() else "black"
        raise UserError(f"the mask is all {what}; white is redrawn, and black is kept")
    mask = mask.expand(picture.shape)
    known = canvas.encode(torch.where(mask, _mean_of(canvas.picture, ~mask), canvas.picture))
    new = mask[None].float()
    if any(canvas.behind):
        new = F.pad(new, canvas.behind, mode="replicate")
    new = (new if new.shape == known.shape else F.adaptive_max_pool2d(new[:, :1], known.shape[2:])).to(known)
    solver = sampler.solver if repeats == 1 or sampler.solver.stochastic else DDIM(eta=1.0)

    def start(denoise: Denoise, times: Tensor, first: int) -> Beginning:
        eps = canvas.noise("start", 0, first, tuple(known.shape[1:]))
        x = denoise.schedule.add_noise(known.expand_as(eps), eps, times[0])
        pure = begin(denoise.schedule, known.expand_as(eps), eps, times, 1.0)
        steps = climbing(times, jump, repeats) if repeats > 1 else times
        return Beginning(Inpainting(denoise, known, new), torch.lerp(x, pure, new), steps)

    made = torch.cat(list(canvas.batches(count, asked, start, solver)))
    return torch.where(mask, made, canvas.picture)


def _mean_of(picture: Tensor, known: Tensor) -> Tensor:
    """Return the mean of the known places of each channel, 0 where there are none, as a picture."""
    channels = len(known)
    total = torch.where(known, picture.float(), 0.0).reshape(channels, -1).sum(1)
    mean = (total / known.reshape(channels, -1).sum(1).clamp(min=1)).reshape(1, channels, *[1] * (known.ndim - 1))
    return (mean if picture.is_floating_point() else mean.round()).to(picture).expand_as(picture)


@_in_its_arithmetic
def outpaint(sampler: Sampler, picture: Tensor, margins: Margins, count: int = 1, asked: Asked = None) -> Tensor:
    """Return versions of a picture that go on beyond its edges.

    Args:
        sampler: Of the model.
        picture: uint8, `(channels, height, width)`.
        margins: Pixels to add on the left, right, top and bottom.
        count: How many versions.
        asked: What they should show.

    Returns: uint8, `(count, channels, height + top + bottom, width + left + right)`.
    Raises: UserError: If the margins are none.
    """
    if any(side < 0 for side in margins) or not any(margins):
        raise UserError(f"margins are pixels on the left, right, top and bottom, one of them above 0, not {margins}")
    margins = cast(Margins, tuple(whole_number("a margin in pixels", side, 0) for side in margins))
    wide = F.pad(picture[None].float(), margins, mode="replicate").to(torch.uint8)[0]
    mask = F.pad(torch.zeros(picture.shape[1:]), margins, value=1.0).bool()
    return inpaint(sampler, wide, mask, count, asked)


@_in_its_arithmetic
def invert(sampler: Sampler, picture: Tensor, asked: Asked = None) -> tuple[Tensor, Tensor]:
    """Return the noise that a picture comes from, and what the model makes of it again, both without guidance.

    Args:
        sampler: Of the model; a solver that draws noise is replaced by DDIM.
        picture: uint8, `(channels, height, width)`.
        asked: What it shows.

    Returns: The noise over its deviation, `(1, *shape)`, and the picture, `(channels, height, width)`.
    """
    canvas = Canvas(sampler, picture[None])
    denoise, times, solver = _deterministic(canvas, shown(sampler, picture, asked), 1)
    x0 = canvas.encode(canvas.picture)
    back = rising(times, denoise.schedule)
    with torch.inference_mode():
        x = follow(denoise, denoise.schedule.alpha(back[0]).to(x0) * x0, back, solver)
        again = follow(denoise, x, times, solver)
    return (x / denoise.schedule.sigma(times[0]).to(x)).cpu(), canvas.decode(again)[0]


@_in_its_arithmetic
def from_noise(sampler: Sampler, picture: Tensor, z: Tensor, asked: Asked = None) -> Tensor:
    """Return the pictures of noises, without guidance and by the rule that `invert` uses.

    Args:
        sampler: Of the model.
        picture: A picture of the size that is wanted, uint8, `(channels, height, width)`.
        z: Noises of deviation 1, `(count, *shape)`.
        asked: What they should show, all the same, or a row of numbers for each.

    Returns: uint8, `(count, channels, height, width)`.
    """
    canvas, asked = Canvas(sampler, picture[None]), shown(sampler, picture, asked)
    parts = []
    for first in range(0, len(z), sampler.size):
        part = z[first : first + sampler.size]
        own = asked[first : first + len(part)] if isinstance(asked, Tensor) and len(asked) == len(z) else asked
        denoise, times, solver = _deterministic(canvas, own, len(part))
        with torch.inference_mode():
            x = follow(denoise, denoise.schedule.sigma(times[0]).to(part) * part.to(canvas.device), times, solver)
        parts.append(canvas.decode(x))
    return torch.cat(parts)


def _deterministic(canvas: Canvas, asked: Asked, count: int) -> tuple[Denoise, Tensor, Solver]:
    """Return the model without guidance, the times, and a rule that draws no noise."""
    sampler = canvas.sampler
    solver = DDIM() if sampler.solver.stochastic or sampler.solver.memory else sampler.solver
    settings = replace(sampler.settings, guidance=1.0, guidance_interval=None, guidance_rescale=0.0, clip=False)
    plain = replace(sampler, solver=solver, settings=settings, negative=None)
    return *plain.denoise(plain.condition(count, asked)), solver


@_in_its_arithmetic
def interpolate(
    sampler: Sampler, first: Tensor, second: Tensor, count: int, asked: Asked = None, *, fresh: bool = False
) -> Tensor:
    """Return pictures on the way from one to another: the noises of both, mixed along the arc between them.

    So are what both show, where the model is conditioned on embeddings, and nothing else is asked for.

    Args:
        sampler: Of the model.
        first: uint8, `(channels, height, width)`.
        second: Of the same shape.
        count: Pictures, the two ends included; 2 or more.
        asked: What they should show.
        fresh: Whether one noise of the sampler's seed takes the place of those of the ends, for a model that is
            conditioned on embeddings: only what the pictures show then changes, and the ends only resemble them.

    Returns: uint8, `(count, channels, height, width)`.
    Raises: UserError: If `count` is below 2, or `fresh` goes with a model that knows nothing else of the ends.
    Source: Song et al. 2021, Denoising Diffusion Implicit Models, section 5.3; Ramesh et al. 2022, Hierarchical
    Text-Conditional Image Generation with CLIP Latents, section 3.2, for embeddings.
    """
    count = whole_number("the number of pictures", count, 0)
    if count < 2:
        raise UserError(f"an interpolation has 2 pictures or more, both ends included, not {count}")
    ends = [shown(sampler, picture, asked) for picture in (first, second)]
    if fresh:
        if not isinstance(ends[0], Tensor) or asked is not None:
            raise UserError("`fresh` is for models that are conditioned on embeddings, and without a prompt: omit it")
        z = _one_noise(sampler, first, count)
    else:
        start, end = (invert(sampler, picture, asked)[0] for picture in (first, second))
        z = torch.cat([spherical(start, end, place / (count - 1)) for place in range(count)])
    return from_noise(sampler, first, z, _along(ends[0], ends[1], count) if asked is None else asked)


def _one_noise(sampler: Sampler, picture: Tensor, count: int) -> Tensor:
    """Return one noise of the sampler's seed for all of `count` pictures of this one's shape."""
    shape = tuple(Canvas(sampler, picture[None]).encode(picture[None]).shape[1:])
    return normal(sampler.seed, "fresh", 0, 0, 1, shape).expand(count, *shape)


def _along(start: Asked, end: Asked, count: int, whole: float = 1.0) -> Asked:
    """Return the conditions on the arc between two, `(count, numbers)`, if they are numbers; up to a share of it."""
    if not isinstance(start, Tensor) or not isinstance(end, Tensor):
        return None
    return torch.cat([spherical(start, end, whole * place / (count - 1)) for place in range(count)])


@_in_its_arithmetic
def steer(
    sampler: Sampler,
    picture: Tensor,
    before: str,
    after: str,
    amount: float = 0.4,
    count: int = 5,
    *,
    fresh: bool = True,
) -> Tensor:
    """Return pictures on the way from one to what it would be if it showed something else: a text diff.

    From the embedding z of the picture towards the unit vector of z(after) - z(before), along the arc between the two.

    Args:
        sampler: Of a model that is conditioned on embeddings.
        picture: uint8, `(channels, height, width)`.
        before: What it shows.
        after: What it should show.
        amount: How far the last picture is along the arc, from 0 to 1; from 0.25 to 0.5 is usual.
        count: Pictures, 2 or more, of which the first shows what the given one does.
        fresh: Whether all come from one noise of the sampler's seed, so that only what the embedding says changes. Else
            from the noise of the picture, as in the source: the first then is the picture itself, and the others may
            keep more of it than is wanted.

    Returns: uint8, `(count, channels, height, width)`.
    Raises: UserError: If the model is conditioned on something else, or the texts mean the same.
    Source: Ramesh et al. 2022, Hierarchical Text-Conditional Image Generation with CLIP Latents, section 3.3.
    """
    own, count = sampler.conditioning, whole_number("the number of pictures", count, 0)
    if not isinstance(own, Depicting):
        raise UserError("only models that are conditioned on embeddings can be steered by texts: train a decoder")
    if not 0 <= amount <= 1 or count < 2:
        raise UserError(f"the amount must be from 0 to 1 and the pictures 2 or more, not {amount:g} and {count}")
    start = own.depicted(sampler.known, picture[None])
    from_text, to_text = own.written(sampler.known, [before, after])
    if torch.allclose(from_text, to_text, atol=1e-3):
        raise UserError(f"{before!r} and {after!r} mean the same to the model: give texts that differ")
    change = to_text - from_text
    end = (change * (start.norm() / change.norm()))[None]
    if fresh:
        z = _one_noise(sampler, picture, count)
    else:
        own_noise = invert(sampler, picture)[0]
        z = own_noise.expand(count, *own_noise.shape[1:])
    return from_noise(sampler, picture, z, _along(start, end, count, amount))


@_in_its_arithmetic
def vary(sampler: Sampler, picture: Tensor, amount: float, count: int = 1, asked: Asked = None) -> Tensor:
    """Return variations of a picture: its noise with some other noise mixed in.

    Args:
        sampler: Of the model.
        picture: uint8, `(channels, height, width)`.
        amount: Of the other noise, from 0 to 1.
        count: How many.
        asked: What they should show.

    Returns: uint8, `(count, channels, height, width)`.
    """
    count = whole_number("the number of pictures", count, 1)
    z = invert(sampler, picture, asked)[0]
    other = torch.cat([normal(sampler.seed, "vary", 0, place, 1, tuple(z.shape[1:])) for place in range(count)])
    return from_noise(sampler, picture, varied(z, other, amount), asked)
