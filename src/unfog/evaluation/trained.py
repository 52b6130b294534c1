"""What is measured of one training of a family, and how it is kept."""

import json
from dataclasses import dataclass, fields
from pathlib import Path

from unfog.runtime.brief import brief
from unfog.runtime.files import parse_json, read_bounded, write_whole

GONE = 0.1
"""A training has collapsed if its recall or its coverage is below this share of real data's."""
MAIN = ""
"""The variation that is none."""


@dataclass(frozen=True)
class Figure:
    """A score, with its interval where there is one, and what real and worthless samples score."""

    value: float
    low: float | None
    high: float | None
    floor: float
    ceiling: float


@dataclass(frozen=True)
class Trained:
    """What was measured of one training.

    Attributes:
        family: Name of its family.
        seed: Of the training.
        images: Pictures that it saw, repeats included.
        parameters: Of the model, a GAN's critic among them.
        scores: By their names.
        copies: Share of samples that lie as near to training rows as the nearest hundredth of held-out rows; None where
            it was not measured.
        expected: That share for samples that copy nothing.
        single: Seconds a picture, drawn alone; 0 where it was not measured.
        portion: Seconds a picture, of 64; likewise.
        bits: Bits a number of held-out rows, and their error; None where the family knows no likelihood.
        way: How they were measured: "flow", "bound" or "exact".
        variation: How the training differs from the others.
    """

    family: str
    seed: int
    images: int
    parameters: int
    scores: dict[str, Figure]
    copies: float | None = None
    expected: float | None = None
    single: float = 0.0
    portion: float = 0.0
    bits: tuple[float, float] | None = None
    way: str = ""
    variation: str = MAIN

    __repr__ = brief

    @property
    def collapsed(self) -> bool:
        """Whether its samples reach next to nothing of the data: a tenth of what real rows reach, or less."""
        reached = [self.scores[name] for name in ("recall", "coverage") if name in self.scores]
        return any(one.value < GONE * one.floor for one in reached)

    def plain(self) -> dict[str, object]:
        """Return it as JSON takes it."""
        scores = {name: vars(figure) for name, figure in self.scores.items()}
        return {field.name: getattr(self, field.name) for field in fields(self)} | {"scores": scores}

    def keep(self, path: Path, count: int) -> None:
        """Write what was measured with so many samples.

        Raises: EnvironmentFailure: If the disk fails.
        """
        write_whole(path, json.dumps({"count": count, **self.plain()}, indent=1).encode())


def kept(path: Path, count: int) -> Trained | None:
    """Return what was measured of a training before, with as many samples; None where it was not, or not whole."""
    if not path.is_file():
        return None
    try:
        plain = parse_json(read_bounded(path))
        if plain.pop("count") != count:
            return None
        scores = {name: Figure(**figure) for name, figure in plain.pop("scores").items()}
        bits = plain.pop("bits")
        return Trained(scores=scores, bits=None if bits is None else (float(bits[0]), float(bits[1])), **plain)
    except (TypeError, KeyError, AttributeError, ValueError, IndexError):
        return None  # it is measured again
