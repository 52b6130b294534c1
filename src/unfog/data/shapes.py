"""Captioned images drawn on demand, without files or end: one to three plain things on light grey.

The grammar of captions is fixed:

    scene    = thing (relation thing)*          at most three things; a relation links neighbours
    thing    = "a" size colour shape
    relation = "above" | "below" | "left of" | "right of"

So "a small red circle above a large blue square left of a small green cross" means: the circle is above the square,
and the square is left of the cross. It says nothing about the circle and the cross.

Some combinations never occur in training, so that compositional generalisation can be measured (`novelty`). They are
fixed by seed 1 of the stream "shapes/held out": 4 of the 24 pairs (colour, shape), one for each shape and with 4
different colours, which makes 8 of the 48 kinds of thing; and 4 of the 32 triples (shape, "above" or "left of", shape),
where "below" and "right of" count as their mirror images. Every word, and every shape on each side of each relation,
does occur.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from unfog.data.source import Batch, Data, Indices
from unfog.runtime.errors import UserError, unknown
from unfog.runtime.randomness import stream, uniform

COLOURS = {
    "red": (220, 40, 40),
    "green": (30, 150, 60),
    "blue": (40, 80, 220),
    "yellow": (240, 200, 30),
    "purple": (150, 50, 180),
    "black": (30, 30, 30),
}
BACKGROUND = (224, 224, 224)
SHAPES = ("circle", "square", "triangle", "cross")
SIZES = {"small": 0.085, "large": 0.125}  # half the side of the box around a thing, as a share of the picture's
RELATIONS = ("above", "below", "left of", "right of")
MOST = 3

_SIZE_JITTER = 0.05  # three large things in a row just fit: 6 · 0.125 · 1.05 + 2 gaps + 2 margins = 0.975
_MARGIN, _GAP = 1 / 32, 1 / 16  # to the border and between boxes, as shares of the side
_CLEAR, _APART = 1.5, 1.2  # longer over shorter distance for a pair that the caption names, and for any other
SQUARE, ARM = 0.9, 0.36  # half the side of a square and half the width of a cross's arm, as shares of the half box

Part = Literal["train", "seen", "new"]
Reals = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Thing:
    """One thing in an image.

    Attributes:
        size: One of `SIZES`.
        colour: One of `COLOURS`.
        shape: One of `SHAPES`.
    """

    size: str
    colour: str
    shape: str

    def __post_init__(self) -> None:
        """Check the words."""
        for what, word, known in (("size", self.size, SIZES), ("colour", self.colour, COLOURS)):
            if word not in known:
                raise unknown(what, word, known)
        if self.shape not in SHAPES:
            raise unknown("shape", self.shape, SHAPES)

    @property
    def caption(self) -> str:
        """The thing as text."""
        return f"a {self.size} {self.colour} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """The contents of an image: things in the order of the caption.

    Attributes:
        things: One to three.
        relations: Between each thing and the next, from `RELATIONS`; one fewer than things.
    """

    things: tuple[Thing, ...]
    relations: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the number of things and the relations."""
        if not 1 <= len(self.things) <= MOST:
            raise UserError(f"a scene has 1 to {MOST} things, not {len(self.things)}")
        if len(self.relations) != len(self.things) - 1:
            raise UserError(f"{len(self.things)} things need {len(self.things) - 1} relations, not {self.relations}")
        for word in self.relations:
            if word not in RELATIONS:
                raise unknown("relation", word, RELATIONS)

    @property
    def caption(self) -> str:
        """The scene as text."""
        words = [self.things[0].caption]
        for relation, thing in zip(self.relations, self.things[1:], strict=True):
            words += [relation, thing.caption]
        return " ".join(words)

    @classmethod
    def parse(cls, caption: str) -> "Scene":
        """Return the scene that a caption describes; ignores case and a final full stop.

        Raises: UserError: If it is outside the grammar; the message names the word and the closest valid one.
        """
        words = caption.lower().strip().removesuffix(".").split()

        def take(what: str, known: tuple[str, ...]) -> str:
            if not words:
                raise UserError(f"the caption {caption!r} ends where a {what} is expected: {' | '.join(known)}")
            if words[0] not in known:
                raise unknown(f"{what} in the caption", words[0], known)
            return words.pop(0)

        things: list[Thing] = []
        relations: list[str] = []
        while True:
            take("first word of a thing", ("a",))
            size, colour = take("size", tuple(SIZES)), take("colour", tuple(COLOURS))
            things.append(Thing(size, colour, take("shape", SHAPES)))
            if not words:
                return cls(tuple(things), tuple(relations))
            side = take("relation", ("above", "below", "left", "right"))
            relations.append(side if side in RELATIONS else f"{side} {take('word of a relation', ('of',))}")


parse = Scene.parse


def _chosen() -> tuple[frozenset[tuple[str, str]], frozenset[tuple[str, str, str]]]:
    """Return the pairs (colour, shape) and triples (shape, relation, shape) that never occur in training."""
    order = uniform(1, "shapes/held out", 0, 0, 3, len(COLOURS)).argsort(axis=1)
    pairs = [(tuple(COLOURS)[int(place)], shape) for place, shape in zip(order[0], SHAPES, strict=False)]
    rows = [[int(place) for place in row if place < len(SHAPES)] for row in order[1:]]
    triples = [
        (SHAPES[first], relation, SHAPES[row[place + 2]])
        for relation, row in zip(("above", "left of"), rows, strict=True)
        for place, first in enumerate(row[:2])
    ]
    return frozenset(pairs), frozenset(triples)


HELD_OUT_PAIRS, HELD_OUT_TRIPLES = _chosen()


def novelty(scene: Scene) -> frozenset[str]:
    """Return which parts of a scene never occur in training: `"thing"`, `"relation"`, both, or none."""
    new = {"thing" for thing in scene.things if (thing.colour, thing.shape) in HELD_OUT_PAIRS}
    for first, relation, second in zip(scene.things, scene.relations, scene.things[1:], strict=False):
        triple = {
            "below": (second.shape, "above", first.shape),
            "right of": (second.shape, "left of", first.shape),
        }.get(relation, (first.shape, relation, second.shape))
        if triple in HELD_OUT_TRIPLES:
            new.add("relation")
    return frozenset(new)


def held_out(scene: Scene) -> bool:
    """Return whether a scene contains a combination that never occurs in training."""
    return bool(novelty(scene))


def coverage(shape: str, right: Reals, down: Reals, radius: float, *, blunt: bool = False) -> Reals:
    """Return the share of each pixel covered by a shape: ½ − (signed distance to its edge), clipped to [0, 1].

    The distance to a corner is taken from the lines that meet there, so that the sharp tip of a triangle shades pixels
    up to √5/2 above its box; all other edges end half a pixel outside.

    Args:
        shape: One of `SHAPES`.
        right: Offsets of the pixel centres to the right of the shape's centre; broadcast against `down`.
        down: Offsets below its centre.
        radius: Half the side of its bounding box, in pixels.
        blunt: Whether the tip of a triangle ends half a pixel outside its box, too.

    Returns: Coverage, of the broadcast shape.
    """
    x, y = np.abs(right), np.abs(down)
    distance: Reals
    if shape == "circle":
        distance = np.sqrt(x * x + y * y) - radius
    elif shape == "square":
        distance = np.maximum(x, y) - SQUARE * radius
    elif shape == "triangle":  # its tip is the middle of the upper side of the box, its base the lower side
        slope = (2 * x - down - radius) / np.sqrt(5)
        # with x, so that its feet stay inside the box
        distance = np.maximum(np.maximum(x, y if blunt else down) - radius, slope)
    else:
        distance = np.maximum(np.maximum(x, y) - radius, np.minimum(x, y) - ARM * radius)
    covered: Reals = np.clip(0.5 - distance, 0, 1)
    return covered


def draw(scene: Scene, side: int, stream: np.random.Generator) -> NDArray[np.uint8]:
    """Draw a scene, with random positions and sizes that vary by a few per cent.

    Args:
        scene: What to draw.
        side: Side of the image: 32 or more, a multiple of 8.
        stream: Source of randomness.

    Returns: Pixels, `(3, side, side)`. Things do not touch each other or the border.
    Raises: UserError: If `side` is invalid.
    """
    check_side(side)
    jitter = 1 + _SIZE_JITTER * (2 * stream.random(len(scene.things)) - 1)
    radii = [SIZES[thing.size] * float(factor) for thing, factor in zip(scene.things, jitter, strict=True)]
    centres = arrange(radii, scene.relations, stream)
    picture = _paint(scene, radii, centres, side, blunt=False)
    # Only the tip of a triangle can reach that far. Where it does not, it stays sharp.
    if any(thing.shape == "triangle" for thing in scene.things) and not _stands_free(picture, len(scene.things)):
        picture = _paint(scene, radii, centres, side, blunt=True)
    return picture


def _paint(
    scene: Scene, radii: list[float], centres: list[tuple[float, float]], side: int, *, blunt: bool
) -> NDArray[np.uint8]:
    """Paint things of these sizes at these places on the background."""
    pixel = np.arange(side) + 0.5
    ground = np.array(BACKGROUND, dtype=np.float64)[:, None, None]
    picture = np.broadcast_to(ground, (3, side, side))
    for thing, radius, (right, down) in zip(scene.things, radii, centres, strict=True):
        part = coverage(thing.shape, pixel - right * side, pixel[:, None] - down * side, radius * side, blunt=blunt)
        picture = picture + part * (np.array(COLOURS[thing.colour])[:, None, None] - ground)
    return (picture + 0.5).astype(np.uint8)


def _stands_free(picture: NDArray[np.uint8], things: int) -> bool:
    """Say whether the border is plain and so many separate spots are on the background."""
    from scipy import ndimage  # slow to import, and only drawing needs it

    painted = (picture != BACKGROUND[0]).any(0)
    if painted[[0, -1]].any() or painted[:, [0, -1]].any():
        return False
    return bool(ndimage.label(painted, np.ones((3, 3)))[1] == things)


def check_side(side: int) -> None:
    """Check the side of an image.

    Raises: UserError: If it is not a multiple of 8, 32 or more.
    """
    if side < 32 or side % 8:
        raise UserError(f"data.side must be a multiple of 8, 32 or more, not {side}")


def arrange(radii: list[float], relations: tuple[str, ...], stream: np.random.Generator) -> list[tuple[float, float]]:
    """Return the centres (right, down) of boxes in the unit square that satisfy these relations.

    Boxes keep a minimum distance. For pairs with a relation, the distance along its axis is at least 1.5 times that
    along the other axis; for all other pairs one is at least 1.2 times the other, so that every pair has a clear
    relation.

    Args:
        radii: Half the sides of the boxes, as shares of the image's side.
        relations: Between each box and the next.
        stream: Source of randomness.

    Returns: One centre per box.
    """
    steps = [(0 if word.endswith("of") else 1, word in ("above", "left of")) for word in relations]
    apart = [first + second + _GAP for first, second in pairwise(radii)]
    low = [[_MARGIN + radius] * 2 for radius in radii]
    high = [[1 - _MARGIN - radius] * 2 for radius in radii]
    for place in reversed(range(len(steps))):  # leave room for the boxes that follow on the same side
        axis, forward = steps[place]
        if forward:
            high[place][axis] = min(high[place][axis], high[place + 1][axis] - apart[place])
        else:
            low[place][axis] = max(low[place][axis], low[place + 1][axis] + apart[place])
    while True:
        centres = [[0.0, 0.0] for _ in radii]
        for place, u in enumerate(stream.random((len(radii), 2)).tolist()):
            lower, upper, axis = list(low[place]), list(high[place]), 0
            if place:
                axis, forward = steps[place - 1]
                before = centres[place - 1]
                if forward:
                    lower[axis] = max(lower[axis], before[axis] + apart[place - 1])
                else:
                    upper[axis] = min(upper[axis], before[axis] - apart[place - 1])
            centres[place][axis] = lower[axis] + u[axis] * (upper[axis] - lower[axis])
            other = 1 - axis
            if place:
                reach = abs(centres[place][axis] - before[axis]) / _CLEAR
                lower[other] = max(lower[other], before[other] - reach)
                upper[other] = min(upper[other], before[other] + reach)
            if lower[other] > upper[other]:
                break  # no room across the axis: start again
            centres[place][other] = lower[other] + u[other] * (upper[other] - lower[other])
        else:
            if len(radii) < 3 or _stand_apart(centres[0], centres[2], radii[0] + radii[2] + _GAP):
                return [(right, down) for right, down in centres]


def _stand_apart(first: list[float], second: list[float], apart: float) -> bool:
    """Return whether two centres are far enough apart, and clearly side by side or one above the other."""
    shorter, longer = sorted((abs(first[0] - second[0]), abs(first[1] - second[1])))
    return longer >= apart and longer >= _APART * shorter


@dataclass(frozen=True)
class Shapes:
    """A source of drawn images: row i is a function of (seed, part, i) alone, also beyond the nominal count.

    Attributes:
        count: Nominal number of rows.
        side: Side of an image.
        objects: Most things in an image, 1 to 3; k things are drawn with a probability proportional to k.
        seed: Seed of the data set.
        part: `"train"`; `"seen"`, other images of the same kinds of scene; or `"new"`, scenes that never occur in
            training.
    """

    count: int = 100_000
    side: int = 32
    objects: int = 2
    seed: int = 0
    part: Part = "train"
    classes: ClassVar[tuple[str, ...]] = ()
    slow: ClassVar[bool] = False  # 0.2 ms an image: less than a prefetching thread would cost

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_side(self.side)
        if self.count < 1:
            raise UserError(f"data.count must be 1 or more, not {self.count}")
        if not 1 <= self.objects <= MOST:
            raise UserError(f"data.objects must be from 1 to {MOST}, not {self.objects}")
        if self.part not in ("train", "seen", "new"):
            raise unknown("part of the shapes", self.part, ("train", "seen", "new"))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one row."""
        return (3, self.side, self.side)

    def __len__(self) -> int:
        """Return the nominal number of rows."""
        return self.count

    def scene(self, index: int) -> Scene:
        """Return the scene of row `index`."""
        return self._begin(index)[0]

    def take(self, indices: Indices) -> Batch:
        """Return the rows with these indices: uint8, `(batch, 3, side, side)`, with captions."""
        x = np.empty((len(indices), *self.shape), dtype=np.uint8)
        captions = []
        for row, index in enumerate(indices):
            scene, draws = self._begin(int(index))
            x[row] = draw(scene, self.side, draws)
            captions.append(scene.caption)
        return Batch(torch.from_numpy(x), captions=captions)

    def about(self, indices: Indices) -> Batch:
        """Return the captions of these rows."""
        return Batch(torch.empty(len(indices), 0), captions=[self.scene(int(index)).caption for index in indices])

    def _begin(self, index: int) -> tuple[Scene, np.random.Generator]:
        """Return the scene of a row, and its random stream after the scene was drawn."""
        draws = stream(self.seed, f"shapes/{self.part}", index)
        # P(k things) is proportional to k: invert the cumulative sum, proportional to k(k + 1)
        number = 1 + int((draws.random() * self.objects * (self.objects + 1) + 0.25) ** 0.5 - 0.5)
        while True:
            scene = random_scene(number, draws)
            if held_out(scene) == (self.part == "new"):
                return scene, draws


def random_scene(number: int, stream: np.random.Generator) -> Scene:
    """Return a random scene of `number` things, all words equally likely, held out or not."""
    u = stream.random((number, 4)).tolist()
    sizes, colours = tuple(SIZES), tuple(COLOURS)
    things = tuple(Thing(sizes[int(a * 2)], colours[int(b * len(colours))], SHAPES[int(c * 4)]) for a, b, c, _ in u)
    return Scene(things, tuple(RELATIONS[int(row[3] * 4)] for row in u[1:]))


def shapes(
    count: int = 100_000,
    side: int = 32,
    objects: int = 2,
    seed: int = 0,
    heldout: Literal["seen", "new"] = "seen",
) -> Data:
    """Draw captioned RGB images of one to three things.

    Args:
        count: Nominal number of training images; a tenth as many are held out.
        side: Side of an image: a multiple of 8, 32 or more.
        objects: Most things in an image, 1 to 3.
        seed: Seed of the data set.
        heldout: `"seen"`: other images of the same kinds of scene; `"new"`: only scenes with a combination that never
            occurs in training.

    Returns: The data set; its sources are `Shapes`.
    Raises: UserError: If a number is out of range.
    """
    train = Shapes(count, side, objects, seed)
    return Data(train, Shapes(max(1, count // 10), side, objects, seed, heldout))
