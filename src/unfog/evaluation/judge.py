"""The judge of a data set: scores of samples, each beside what real held-out rows and what noise score."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor
from torch.nn import functional as F

from unfog.data.codecs import Codec
from unfog.data.shapes import Scene
from unfog.data.source import Batch, Data, Indices, Source
from unfog.evaluation import features as extractors
from unfog.evaluation.distances import Rows, frechet, kernel_distance
from unfog.evaluation.features import Extractor, digest, features_of, fit_classifier, fit_components, flat
from unfog.evaluation.intervals import Interval, Method, Scored, bootstrap
from unfog.evaluation.neighbours import Memorised, entropy_over_classes, memorised, prdc
from unfog.evaluation.shapes_reader import matches
from unfog.runs.requests import MOST
from unfog.runtime.errors import UserError
from unfog.runtime.randomness import normal, stream

TRAINING, HELD_OUT, FITTED = 60_000, 10_000, 10_000
"""Rows, evenly spread, at most: of the training set, of the held-out set, and for principal components."""
MEMORY = 2**30
"""Bytes, at most, that the rows of the training set take."""
VERSIONS = 2**25
"""Encoded pixels, at most, of the training rows and their shifts among which copies are looked for."""
LEAST = 100
"""Held-out rows below which there is no first percentile of distances."""
RESAMPLED = 128
"""Features up to which the Fréchet distance is quick enough to be resampled."""
RESAMPLES = 200
"""For an interval of a mean over blocks."""
ALPHA = 0.001
"""Chance of calling an honest model's samples copies."""

Asked = Tensor | Sequence[str] | None
"""What samples were asked to show: labels, or captions."""
Measure = Callable[[Rows], dict[str, float]]
"""Features to scores by their names."""


def spread(count: int, rows: int) -> Indices:
    """Return which of `rows` rows `count` samples stand beside: evenly spread, or all of them again and again."""
    return np.arange(count) % rows if count > rows else np.linspace(0, rows - 1, count).astype(np.int64)


@dataclass(frozen=True)
class Space:
    """The features in which sets are compared: m training rows, m held-out rows and m pictures of noise, `(m, d)`."""

    extractor: Extractor
    train: Rows
    heldout: Rows
    noise: Rows


def some(count: int, rows: int) -> Indices:
    """Return which of `rows` rows scores are compared with: drawn, always the same ones, since intervals expect that.

    Rows of a set in some order, evenly spread, would be more alike than drawn ones, of digits one class after another.
    """
    if count >= rows:
        return spread(count, rows)
    return np.sort(stream(0, "rows to judge", index=rows).permutation(rows)[:count])


class Judge:
    """What samples are compared with, at the same number m of rows on both sides.

    m is the number of samples, or that of held-out rows if those are fewer. The references are m training rows. A score
    is the mean over disjoint blocks of m samples; its floor is the score of m held-out rows in the samples' place, its
    ceiling that of decoded noise.

    Attributes:
        m: See above.
        train: Training rows, at most 60,000, evenly spread.
        heldout: Held-out rows, at most 10,000, evenly spread.
        classifier: Trained on `train`; None where the rows have neither classes nor captions.
        spaces: By the names of the features; the first is what diversity is measured in.
        protocol: How samples are measured, in parts between commas.
    """

    def __init__(
        self,
        data: Data,
        codec: Codec,
        count: int,
        *,
        batch: int = 256,
        seed: int = 0,
        console: Console | None = None,
        inception: Path | None = None,
        dinov2: Path | None = None,
    ) -> None:
        """Read the rows, and fit or load what extracts features.

        Args:
            data: What the runs to be judged were trained on.
            codec: Encodes rows.
            count: Number of samples that will be judged.
            batch: Rows that go through an extractor at a time; no part of the result.
            seed: Seed of the noise and of the intervals.
            console: Shows the progress.
            inception: Weights of Inception-v3.
            dinov2: Weights of DINOv2.

        Raises: UserError: If there are too few samples or held-out rows for the number of features.
        """
        self.codec, self.batch, self.seed, self.classes = codec, batch, seed, data.train.classes
        if batch < 1:
            raise UserError(f"the batch must be 1 or more, not {batch}")
        self.heldout = rows_of(data.heldout, HELD_OUT)
        self.m = min(count, len(self.heldout.x))
        self._enough("pixels", min(features_of(len(data.train)), int(np.prod(data.train.shape))), count)
        others = [make(path) for make, path in ((extractors.inception, inception), (extractors.dinov2, dinov2)) if path]
        size = int(np.prod(data.train.shape)) * self.heldout.x.element_size()
        self.train = rows_of(data.train, max(1, min(TRAINING, MEMORY // size)))
        self.references, self.compared = some(self.m, len(self.train.x)), some(self.m, len(self.heldout.x))
        noise = normal(seed, "noise to judge", 0, 0, self.m, tuple(data.train.shape))
        self.noise = codec.decode(noise)
        self.classifier = fit_classifier(self.train, codec, console)
        components = fit_components(self.train.x[spread(min(FITTED, len(self.train.x)), len(self.train.x))], codec)
        self.spaces: dict[str, Space] = {}
        own: list[Extractor] = [self.classifier] if self.classifier else []
        for extractor in [*own, components, *others]:
            parts = (self.train.x[self.references], self.heldout.x[self.compared], self.noise)
            space = Space(extractor, *(extractor(x, batch) for x in parts))
            self._enough(extractor.name, space.train.shape[1], count)
            self.spaces[extractor.name] = space
        self.first = next(iter(self.spaces.values()))
        key = digest(*(part.numpy().tobytes() for part in (self.train.x[self.references], self.heldout.x)))
        self.protocol = (
            f"data {key}, blocks of {self.m} samples, against {self.m} training rows, floor of {self.m} held-out rows, "
            f"seed {seed} of the judge"
        )
        self._ends: dict[str, tuple[dict[str, float], dict[str, float]]] = {}

    def _enough(self, name: str, features: int, count: int) -> None:
        """Refuse fewer rows than can be compared: a half of them must be more than the features."""
        least = max(LEAST, 2 * features + 2)
        if count > MOST:
            raise UserError(f"{count} samples are too many: ask for -n {MOST} or less")
        if count < least:
            raise UserError(
                f"{count} samples are too few to compare the {features} features of {name}: ask for -n {least} or more"
            )
        if self.m < least:
            raise UserError(
                f"the data hold out {self.m} rows, too few to compare the {features} features of {name}: hold out "
                f"{least} or more"
            )

    # ------------------------------------------------------------------------------------------ what others use

    @property
    def accuracy(self) -> float | None:
        """How much of the held-out rows the classifier reads right."""
        shown = known(self.heldout)
        if self.classifier is None or shown is None:
            return None
        return float(self.classifier.right(self._heldout_features, shown).mean())

    def features(self, samples: Tensor) -> Rows:
        """Return the features of samples, `(n, d)`, in which fidelity and diversity are measured."""
        return self.first.extractor(samples, self.batch)

    def fidelity(self, samples: Tensor) -> Scored:
        """Return the Fréchet distance of samples to training rows, in the first features."""
        return self._frechet(self.first, self.features(samples))["frechet/" + self.first.extractor.name]

    def recall(self, samples: Tensor) -> Scored:
        """Return how much of the training rows the samples reach."""
        return self._diversity(self.features(samples))["recall"]

    def adherence(self, samples: Tensor, asked: Asked) -> Scored | None:
        """Return how many samples show what was asked; None where that cannot be read.

        Args:
            samples: Rows as stored.
            asked: Labels, `(n,)` or `(n, labels)`, or captions; None if nothing was asked.
        """
        return self._adherence(samples, asked).get("adherence")

    def hits(self, samples: Tensor, asked: Asked) -> Rows | None:
        """Return how right each sample is, `(n,)`: what `adherence` is the mean of; None where that cannot be read."""
        return self._marks(samples, asked).get("adherence")

    def score(self, samples: Tensor, asked: Asked = None) -> dict[str, Scored]:
        """Return all scores by their names: fidelity in all features, diversity in the first, and adherence.

        Args:
            samples: Rows as stored, m of them or more.
            asked: What each was asked to show, or None.

        Raises: UserError: If there are fewer than m samples.
        """
        found: dict[str, Scored] = {}
        for space in self.spaces.values():
            features = space.extractor(samples, self.batch)
            found |= self._frechet(space, features) | self._kernel(space, features)
            if space is self.first:
                diversity = self._diversity(features) | self._entropy(features)
        return found | diversity | self._adherence(samples, asked)

    def copies(self, samples: Tensor) -> dict[str, Memorised]:
        """Ask whether samples lie nearer to training rows than held-out rows do, in pixels and in the first features.

        In pixels the distance to a small set is the least over five versions of each row: itself, and shifted by one
        pixel each way. That to a large set is between principal components.
        """
        sets = {}
        if len(self.train.x.shape) == 4 and 5 * self.train.x.numel() <= VERSIONS:
            sets["pixels"] = (*(flat(x, self.codec) for x in (samples, self.heldout.x)), self._versions)
        else:
            sets["pixels"] = tuple(self.spaces["pixels"].extractor(x) for x in (samples, self.heldout.x, self.train.x))
        if self.classifier:
            sets["classifier"] = (self.features(samples), self._heldout_features, self._train_features)
        return {
            name: memorised(mine, train, heldout, alpha=ALPHA / len(sets))
            for name, (mine, heldout, train) in sets.items()
        }

    # ------------------------------------------------------------------------------------------------- the parts

    @cached_property
    def _heldout_features(self) -> Rows:
        return self.features(self.heldout.x)

    @cached_property
    def _train_features(self) -> Rows:
        return self.features(self.train.x)

    @cached_property
    def _versions(self) -> Rows:
        """Return the encoded training rows, each as it is and shifted, `(rows, 5, pixels)`."""
        wide = F.pad(self.codec.encode(self.train.x), (1, 1, 1, 1), mode="replicate")
        height, width = self.train.x.shape[2:]
        places = ((1, 1), (0, 1), (2, 1), (1, 0), (1, 2))
        parts = [wide[..., down : down + height, right : right + width].flatten(1) for down, right in places]
        return torch.stack(parts, 1).double().numpy()

    def _blocks(self, rows: NDArray[Any]) -> list[NDArray[Any]]:
        """Return disjoint blocks of m rows.

        Raises: UserError: If there are fewer.
        """
        if len(rows) < self.m:
            raise UserError(f"this judge compares sets of {self.m} rows: give as many samples, not {len(rows)}")
        return [rows[first : first + self.m] for first in range(0, len(rows) - self.m + 1, self.m)]

    def _scores(
        self, space: Space, features: Rows, measure: Measure, intervals: Mapping[str, Interval] | None = None
    ) -> dict[str, Scored]:
        """Return the means of measures over blocks of samples, each with its floor and ceiling."""
        blocks = self._blocks(features)
        each = [measure(block) for block in blocks]
        first = next(iter(each[0]))
        if first not in self._ends:
            self._ends[first] = measure(space.heldout), measure(space.noise)
        floors, ceilings = self._ends[first]
        found = {}
        for name in each[0]:
            low, high = (intervals or {}).get(name, (None, None))
            protocol = f"{name} by {space.extractor.name} {space.extractor.key}, {self.protocol}"
            value = float(np.mean([one[name] for one in each]))
            found[name] = Scored(value, low, high, len(blocks) * self.m, floors[name], ceilings[name], protocol)
        return found

    def _interval(self, statistic: Callable[..., float], rows: NDArray[Any], *others: Rows, method: Method) -> Interval:
        """Return the interval of the mean of a statistic over blocks."""
        blocks = self._blocks(rows)

        def mean(x: NDArray[Any], *rest: Rows) -> float:
            return float(np.mean([statistic(part, *rest) for part in np.array_split(x, len(blocks))]))

        return bootstrap(mean, np.concatenate(blocks), *others, resamples=RESAMPLES, seed=self.seed, method=method)

    def _frechet(self, space: Space, features: Rows) -> dict[str, Scored]:
        name, intervals = f"frechet/{space.extractor.name}", {}
        if features.shape[1] <= RESAMPLED:
            intervals[name] = self._interval(frechet, features, space.train, method="halves")
        return self._scores(space, features, lambda x: {name: frechet(x, space.train)}, intervals)

    def _kernel(self, space: Space, features: Rows) -> dict[str, Scored]:
        name = f"kernel/{space.extractor.name}"
        found = [kernel_distance(block, space.train) for block in self._blocks(features)]
        value, error = (float(np.mean(part)) for part in zip(*found, strict=True))
        interval = Interval(value - 1.96 * error, value + 1.96 * error)  # blocks share references: no smaller error
        return self._scores(space, features, lambda x: {name: kernel_distance(x, space.train).value}, {name: interval})

    def _diversity(self, features: Rows) -> dict[str, Scored]:
        """Return precision, recall, density and coverage, for which no resampling gives an interval."""
        return self._scores(self.first, features, lambda x: prdc(self.first.train, x)._asdict())

    def _entropy(self, features: Rows) -> dict[str, Scored]:
        """Return the entropy over classes as a share of the largest, where there are classes."""
        reader = self.classifier
        if reader is None or self.train.labels is None or self.train.labels.ndim > 1:
            return {}

        def share(x: Rows) -> float:
            return entropy_over_classes(reader.classes(x), reader.outputs).share

        interval = self._interval(share, features, method="percentile")
        return self._scores(self.first, features, lambda x: {"entropy": share(x)}, {"entropy": interval})

    def _adherence(self, samples: Tensor, asked: Asked) -> dict[str, Scored]:
        """Return how many samples show what was asked, in all and by attributes, by names."""
        marks = self._marks(samples, asked)
        if not marks:
            return {}
        if "adherence" not in self._ends:
            shown = known(pick(self.heldout, self.compared))
            ends = (self._marks(x, shown) for x in (self.heldout.x[self.compared], self.noise))
            floor, ceiling = ({name: float(rows.mean()) for name, rows in end.items()} for end in ends)
            self._ends["adherence"] = floor, ceiling
        floors, ceilings = self._ends["adherence"]
        how = "the exact reader" if len(marks) > 1 or self.classifier is None else f"classifier {self.classifier.key}"
        found = {}
        for name, rows in marks.items():
            low, high = bootstrap(_mean, rows, seed=self.seed)
            protocol = f"{name} by {how}, {self.protocol}"
            found[name] = Scored(_mean(rows), low, high, len(rows), floors[name], ceilings[name], protocol)
        return found

    def _marks(self, samples: Tensor, asked: Asked) -> dict[str, Rows]:
        """Return how right each sample is, `(n,)`, in all and by attributes; nothing where that cannot be read."""
        scenes = _scenes(asked)
        if scenes:
            pairs = zip(samples.numpy(), scenes, strict=True)
            verdicts = [matches(picture, scene) for picture, scene in pairs]
            parts = ("count", "colours", "shapes", "sizes", "relations")
            by_part = {f"adherence/{part}": np.array([float(getattr(one, part)) for one in verdicts]) for part in parts}
            return {"adherence": np.array([float(one.all) for one in verdicts]), **by_part}
        words = self.classifier is not None and bool(self.classifier.words)
        if not (words or asked is None or isinstance(asked, Tensor)) and set(asked) <= set(self.classes):
            asked = torch.tensor([self.classes.index(name) for name in asked])  # a model that is told names of classes
        if self.classifier is None or asked is None or isinstance(asked, Tensor) == words:
            return {}
        return {"adherence": self.classifier.right(self.classifier(samples, self.batch), asked)}


def _mean(rows: Rows) -> float:
    return float(rows.mean())


def rows_of(source: Source, most: int) -> Batch:
    """Return evenly spread rows of a source, at most so many."""
    return source.take(spread(min(most, len(source)), len(source)))


def pick(rows: Batch, places: Indices) -> Batch:
    """Return some rows of a batch."""
    chosen = torch.from_numpy(places)
    captions = None if rows.captions is None else [rows.captions[place] for place in places]
    x, labels, values = (None if part is None else part[chosen] for part in (rows.x, rows.labels, rows.values))
    assert x is not None
    return Batch(x, labels, captions, values)


def known(rows: Batch) -> Asked:
    """Return what is known of rows, in the form in which samples are asked for."""
    return rows.labels if rows.labels is not None else rows.captions


def _scenes(asked: Asked) -> list[Scene]:
    """Return the scenes that captions describe; none if one is outside the grammar of the captioned shapes."""
    try:
        return [] if asked is None or isinstance(asked, Tensor) else [Scene.parse(caption) for caption in asked]
    except UserError:
        return []
