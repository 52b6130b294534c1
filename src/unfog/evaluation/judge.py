"""The judge of a data set: scores of samples, each next to what real held-out rows and what noise score."""

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
from unfog.data.modality import images
from unfog.data.shapes import Scene
from unfog.data.source import Batch, Data, Indices, Source
from unfog.evaluation import features as extractors
from unfog.evaluation.classifier import fit_classifier
from unfog.evaluation.distances import Rows, frechet, kernel_distance
from unfog.evaluation.features import Extractor, digest, features_of, fit_components, flat
from unfog.evaluation.intervals import Interval, Protocol, Scored, Sets, Split, bootstrap, of_mean
from unfog.evaluation.neighbours import Memorised, entropy_over_classes, memorised, prdc
from unfog.evaluation.shapes_reader import matches
from unfog.runs.requests import MOST
from unfog.runtime.errors import UserError
from unfog.runtime.progress import working
from unfog.runtime.provenance import provenance
from unfog.runtime.randomness import normal, stream

TRAINING, HELD_OUT, FITTED = 60_000, 10_000, 10_000
"""Most rows, evenly spread: of the training set, of the held-out set, and for principal components."""
MEMORY = 2**30
"""Most bytes that the rows of the training set take."""
NUMBERS, FEWEST = 2**26, 200
"""Most numbers in the rows that principal components are fitted on, and fewest rows: more large rows take minutes."""
VERSIONS = 2**25
"""Most encoded pixels of the training rows and their shifts among which copies are looked for."""
LEAST = 100
"""Held-out rows below which there is no first percentile of distances."""
RESAMPLED = 128
"""Most features for which the Fréchet distance is resampled: of more it takes too long."""
RESAMPLES = 200
"""For an interval of a mean over blocks."""
ALPHA = 0.001
"""Chance of calling an honest model's samples copies."""

Asked = Tensor | Sequence[str] | None
"""What samples were to show: labels, or captions."""
Reads = Callable[[Tensor], NDArray[np.int64]]
"""Rows as stored to classes, -1 for what cannot be read."""
Measure = Callable[[Rows], dict[str, float]]
"""Features to scores by their names."""


def spread(count: int, rows: int) -> Indices:
    """Return the row next to which each of `count` samples stands: all of them in turn, and the rest evenly spread."""
    whole, rest = divmod(count, rows)
    return np.concatenate([*[np.arange(rows)] * whole, np.linspace(0, rows - 1, rest).astype(np.int64)])


@dataclass(frozen=True)
class Space:
    """The features in which sets are compared: m training rows, m held-out rows and m pictures of noise, `(m, d)`."""

    extractor: Extractor
    train: Rows
    heldout: Rows
    noise: Rows


def some(count: int, rows: int) -> Indices:
    """Return `count` of `rows` rows, drawn at random, as intervals expect; always the same ones.

    Evenly spread rows of an ordered set are more balanced than drawn ones, for instance of digits sorted by class.
    """
    if count >= rows:
        return spread(count, rows)
    return np.sort(stream(0, "rows to judge", index=rows).permutation(rows)[:count])


def fitted(rows: int, numbers: int) -> int:
    """Return on how many of some rows, of so many numbers each, principal components are fitted."""
    return min(rows, FITTED, max(FEWEST, NUMBERS // numbers))


class Judge:
    """What samples are compared with, at the same number m of rows on both sides.

    m is the number of samples, or that of held-out rows if those are fewer. The references are m training rows. A score
    is the mean over disjoint blocks of m samples; its floor is the score of m held-out rows in the samples' place, its
    ceiling that of decoded noise.

    Attributes:
        m: See above.
        source: Where training rows come from.
        train: Training rows, at most 60,000, evenly spread.
        heldout: Held-out rows, at most 10,000, evenly spread.
        thorough: Whether the classifier is the thorough one.
        reads: Reads classes by formulas, where the data can be read so.
        classifier: Trained on `train`; None where the rows have neither classes nor captions.
        spaces: By the names of the features; the first is what diversity is measured in.
        sets: What samples are compared with, as a value.
        measured: Where its figures come from.
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
        split: Split = "held out",
        thorough: bool = False,
        mirror: bool = False,
        reads: Reads | None = None,
    ) -> None:
        """Read the rows, and fit or load what extracts features.

        Args:
            data: What the runs to be judged were trained on.
            codec: Encodes rows.
            count: Number of samples that will be judged.
            batch: Rows that go through an extractor at a time; does not change the result.
            seed: Seed of the noise and of the intervals.
            console: Shows the progress.
            inception: Weights of Inception-v3.
            dinov2: Weights of DINOv2.
            split: How training and held-out rows were separated.
            thorough: Whether the classifier is a larger one, trained for minutes.
            mirror: Whether a mirror image of a row is as good a row.
            reads: Maps rows to classes by formulas, -1 for what it cannot read; in the classifier's place where it is
                asked whether samples show what they should.

        Raises: UserError: If there are too few samples or held-out rows for the number of features.
        """
        self.codec, self.batch, self.seed, self.classes = codec, batch, seed, data.train.classes
        self.source = data.train
        self.split: Split = split
        self.thorough, self.reads = thorough, reads
        if batch < 1:
            raise UserError(f"the batch must be 1 or more, not {batch}")
        with working("reading held-out rows", console=console):
            self.heldout = rows_of(data.heldout, HELD_OUT)
        self.m = min(count, len(self.heldout.x))
        numbers = int(np.prod(data.train.shape))
        self._enough("pixels", min(features_of(len(data.train)), numbers), count)
        others: list[Extractor] = []  # loaded early, so that a mistake shows before the classifier is trained
        if inception:
            others.append(extractors.inception(inception))
        if dinov2:
            others.append(extractors.dinov2(dinov2))
        most = max(1, MEMORY // (numbers * self.heldout.x.element_size()))
        with working("reading training rows", console=console):
            self.train = rows_of(data.train, min(TRAINING, most))
        self.references, self.compared = some(self.m, len(self.train.x)), some(self.m, len(self.heldout.x))
        self.noise = codec.decode(normal(seed, "noise to judge", 0, 0, self.m, codec.shape(tuple(data.train.shape))))
        self.classifier = fit_classifier(self.train, codec, console, thorough=thorough, mirror=mirror)
        self.spaces: dict[str, Space] = {}
        with working("features of real rows", console=console):
            for extractor in [*self._own_extractors(), *others]:
                space = self._space(extractor)
                self._enough(extractor.name, space.train.shape[1], count)
                self.spaces[extractor.name] = space
        self.first = next(iter(self.spaces.values()))
        key = digest(*(part.numpy().tobytes() for part in (self.train.x[self.references], self.heldout.x)))
        self.sets = Sets(key, self.m, seed, split)
        self.measured = provenance()
        self._ends: dict[str, tuple[dict[str, float], dict[str, float]]] = {}

    def _own_extractors(self) -> list[Extractor]:
        """Return the classifier, where there is one, and the principal components."""
        count = fitted(len(self.train.x), self.train.x[0].numel())
        components = fit_components(self.train.x[spread(count, len(self.train.x))], self.codec)
        return [self.classifier, components] if self.classifier else [components]

    def _space(self, extractor: Extractor) -> Space:
        """Return the features of the rows that samples are compared with."""
        parts = (self.train.x[self.references], self.heldout.x[self.compared], self.noise)
        return Space(extractor, *(extractor(x, self.batch) for x in parts))

    def _enough(self, name: str, features: int, count: int) -> None:
        """Refuse fewer rows than can be compared: a half of them must be more than the features."""
        least = max(LEAST, 2 * features + 2)
        if count > MOST:
            raise UserError(f"{count} samples are too many: {MOST} is the limit")
        if count < least:
            raise UserError(
                f"{count} samples are too few to compare the {features} features of {name}: take {least} or more"
            )
        if self.m >= least:
            return
        few = f"too few to compare the {features} features of {name}"
        if self.split == "halves":
            raise UserError(
                f"the halves of the real rows have {self.m} rows, {few}: give {2 * least} real rows or more"
            )
        raise UserError(f"the data hold out {self.m} rows, {few}: hold out {least} or more")

    # -------------------------------------------------------------------------------------------- public scores

    @property
    def accuracy(self) -> float | None:
        """Share of the held-out rows that the classifier reads correctly."""
        shown = known(self.heldout)
        if self.classifier is None or shown is None:
            return None
        return float(self.classifier.right(self.heldout_features, shown).mean())

    def features(self, samples: Tensor) -> Rows:
        """Return the features of samples, `(n, d)`, in which fidelity and diversity are measured."""
        return self.first.extractor(samples, self.batch)

    def fidelity(self, samples: Tensor) -> Scored:
        """Return the Fréchet distance of samples to training rows, in the first features."""
        return self._frechet(self.first, self.features(samples))["frechet/" + self.first.extractor.name]

    def fidelity_and_recall(self, features: Rows) -> tuple[Scored, Scored]:
        """Return what `fidelity` and `recall` return of samples with these `features`."""
        distance = self._frechet(self.first, features)["frechet/" + self.first.extractor.name]
        return distance, self._diversity(features)["recall"]

    def near(self, features: Rows) -> Memorised:
        """Ask whether samples with these `features` lie nearer to training rows than held-out rows do."""
        return memorised(features, self.train_features, self.heldout_features, alpha=ALPHA)

    def recall(self, samples: Tensor) -> Scored:
        """Return how much of the training rows the samples reach."""
        return self._diversity(self.features(samples))["recall"]

    def adherence(self, samples: Tensor, asked: Asked) -> Scored | None:
        """Return the share of samples that show what was asked; None where that cannot be read.

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
        scores: dict[str, Scored] = {}
        for space in self.spaces.values():
            features = space.extractor(samples, self.batch)
            scores |= self._frechet(space, features) | self._kernel(space, features)
            if space is self.first:
                diversity = self._diversity(features) | self._entropy(features)
        return scores | diversity | self._adherence(samples, asked)

    def copies(self, samples: Tensor) -> dict[str, Memorised]:
        """Ask whether samples lie nearer to training rows than held-out rows do, in pixels and in the first features.

        In pixels the distance to a small set is the least over five versions of each row: itself, and shifted by one
        pixel each way. That to a large set is between principal components.
        """
        compared = {"pixels": self._pixels(samples)}
        if self.classifier:
            compared["classifier"] = (self.features(samples), self.heldout_features, self.train_features)
        verdicts = {}
        for name, (mine, heldout, train) in compared.items():
            verdicts[name] = memorised(mine, train, heldout, alpha=ALPHA / len(compared))
        return verdicts

    # ------------------------------------------------------------------------------------------------- parts

    def _pixels(self, samples: Tensor) -> tuple[Rows, Rows, Rows]:
        """Return samples, held-out rows and training rows as copies are looked for in pixels."""
        if images.fits(tuple(self.train.x.shape[1:])) and 5 * self.train.x.numel() <= VERSIONS:
            return flat(samples, self.codec), flat(self.heldout.x, self.codec), self._versions
        extractor = self.spaces["pixels"].extractor
        return extractor(samples), extractor(self.heldout.x), extractor(self.train.x)

    @cached_property
    def heldout_features(self) -> Rows:
        """Features of all held-out rows."""
        return self.features(self.heldout.x)

    @cached_property
    def train_features(self) -> Rows:
        """Features of all training rows."""
        return self.features(self.train.x)

    @cached_property
    def _versions(self) -> Rows:
        """Return the encoded training rows, each as it is and shifted, `(rows, 5, pixels)`."""
        wide = F.pad(self.codec.compared(self.train.x), (1, 1, 1, 1), mode="replicate")
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
        features_key = f"{space.extractor.name} {space.extractor.key}"
        scores = {}
        for name in each[0]:
            low, high = (intervals or {}).get(name, (None, None))
            protocol = Protocol(name, features_key, self.sets)
            value = float(np.mean([one[name] for one in each]))
            scores[name] = Scored(value, low, high, len(blocks) * self.m, floors[name], ceilings[name], protocol)
        return scores

    def _interval(self, statistic: Callable[..., float], rows: NDArray[Any], *others: Rows) -> Interval:
        """Return the interval of the mean of a statistic over blocks, with the bias of their size."""
        blocks = self._blocks(rows)

        def mean(x: NDArray[Any], *rest: Rows) -> float:
            return float(np.mean([statistic(part, *rest) for part in np.array_split(x, len(blocks))]))

        return bootstrap(mean, np.concatenate(blocks), *others, resamples=RESAMPLES, seed=self.seed, method="halves")

    def _frechet(self, space: Space, features: Rows) -> dict[str, Scored]:
        name, intervals = f"frechet/{space.extractor.name}", {}
        if features.shape[1] <= RESAMPLED:
            intervals[name] = self._interval(frechet, features, space.train)
        return self._scores(space, features, lambda x: {name: frechet(x, space.train)}, intervals)

    def _kernel(self, space: Space, features: Rows) -> dict[str, Scored]:
        name = f"kernel/{space.extractor.name}"
        distances = [kernel_distance(block, space.train) for block in self._blocks(features)]
        value, error = (float(np.mean(part)) for part in zip(*distances, strict=True))
        interval = Interval(value - 1.96 * error, value + 1.96 * error)  # blocks share references: no smaller error
        return self._scores(space, features, lambda x: {name: kernel_distance(x, space.train).value}, {name: interval})

    def _diversity(self, features: Rows) -> dict[str, Scored]:
        """Return precision, recall, density and coverage, for which no resampling gives an interval."""
        return self._scores(self.first, features, lambda x: prdc(self.first.train, x)._asdict())

    def _entropy(self, features: Rows) -> dict[str, Scored]:
        """Return the entropy over classes as a share of the largest, where there are classes; resampling biases it."""
        reader = self.classifier
        if reader is None or self.train.labels is None or self.train.labels.ndim > 1:
            return {}

        def share(x: Rows) -> float:
            return entropy_over_classes(reader.classes(x), reader.outputs).share

        return self._scores(self.first, features, lambda x: {"entropy": share(x)})

    def _adherence(self, samples: Tensor, asked: Asked) -> dict[str, Scored]:
        """Return the share of samples that show what was asked: by names, as a whole and by attributes."""
        marks = self._marks(samples, asked)
        if not marks:
            return {}
        if "adherence" not in self._ends:
            shown = known(pick(self.heldout, self.compared))
            ends = (self._marks(x, shown) for x in (self.heldout.x[self.compared], self.noise))
            floor, ceiling = ({name: float(rows.mean()) for name, rows in end.items()} for end in ends)
            self._ends["adherence"] = floor, ceiling
        floors, ceilings = self._ends["adherence"]
        exact = len(marks) > 1 or self.reads is not None or self.classifier is None
        how = "the exact reader" if exact or self.classifier is None else f"classifier {self.classifier.key}"
        scores = {}
        for name, rows in marks.items():
            low, high = of_mean(rows, self.seed)
            protocol = Protocol(name, how, self.sets)
            scores[name] = Scored(_mean(rows), low, high, len(rows), floors[name], ceilings[name], protocol)
        return scores

    def _marks(self, samples: Tensor, asked: Asked) -> dict[str, Rows]:
        """Return how right each sample is, `(n,)`, as a whole and by attributes; nothing where that cannot be read."""
        scenes = _scenes(asked)
        if scenes:
            return _scene_marks(samples, scenes)
        wanted = self.readable(asked)
        if self.reads is not None and isinstance(wanted, Tensor):
            return {"adherence": (self.reads(samples) == wanted.numpy()).astype(float)}
        if self.classifier is None or wanted is None:
            return {}
        return {"adherence": self.classifier.right(self.classifier(samples, self.batch), wanted)}

    def readable(self, asked: Asked) -> Asked:
        """Return what samples were to show as the classifier reads it; None where it does not read such things.

        The names of classes, for a model that takes them as text, become their numbers.
        """
        words = self.classifier is not None and bool(self.classifier.words)
        if not (words or asked is None or isinstance(asked, Tensor)) and set(asked) <= set(self.classes):
            asked = torch.tensor([self.classes.index(name) for name in asked])
        return None if self.classifier is None or isinstance(asked, Tensor) == words else asked


def _scene_marks(samples: Tensor, scenes: Sequence[Scene]) -> dict[str, Rows]:
    """Return which pictures of shapes show their scenes, as a whole and by attributes."""
    verdicts = [matches(picture, scene) for picture, scene in zip(samples.numpy(), scenes, strict=True)]
    marks = {"adherence": np.array([float(one.all) for one in verdicts])}
    for attribute in ("count", "colours", "shapes", "sizes", "relations"):
        marks[f"adherence/{attribute}"] = np.array([float(getattr(one, attribute)) for one in verdicts])
    return marks


def _mean(rows: Rows) -> float:
    return float(rows.mean())


def rows_of(source: Source, most: int) -> Batch:
    """Return at most `most` rows of a source, evenly spread."""
    return source.take(spread(min(most, len(source)), len(source)))


def pick(rows: Batch, places: Indices) -> Batch:
    """Return some rows of a batch."""
    chosen = torch.from_numpy(places)
    captions = None if rows.captions is None else [rows.captions[place] for place in places]
    x, labels, values = (None if part is None else part[chosen] for part in (rows.x, rows.labels, rows.values))
    assert x is not None
    return Batch(x, labels, captions, values)


def known(rows: Batch) -> Asked:
    """Return the labels or captions of rows: what samples can be asked to show."""
    return rows.labels if rows.labels is not None else rows.captions


def told(labels: Asked, classes: Sequence[str]) -> list[str]:
    """Return in words what was asked for, one text a row; none where it was nothing.

    Args:
        labels: Labels, captions or None.
        classes: Names of the classes.
    """
    if not isinstance(labels, Tensor):
        return list(labels or ())
    if labels.ndim == 1:
        return [classes[label] if label < len(classes) else str(label) for label in labels.tolist()]
    return [", ".join(classes[place] for place in row.nonzero().flatten().tolist()) for row in labels]


def _scenes(asked: Asked) -> list[Scene]:
    """Return the scenes that captions describe; none if one is outside the grammar of the captioned shapes."""
    try:
        return [] if asked is None or isinstance(asked, Tensor) else [Scene.parse(caption) for caption in asked]
    except UserError:
        return []
