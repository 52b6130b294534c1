"""The classifier that rows are compared by: a small network that is trained here, once for each set."""

import math
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F

from unfog.data.codecs import Codec
from unfog.data.modality import images
from unfog.data.source import Batch, shuffled
from unfog.evaluation.distances import Rows
from unfog.evaluation.features import FEATURES, LARGE, digest, features_of, in_batches
from unfog.runtime.device import arithmetic, choose_precision, in_channels_last
from unfog.runtime.errors import EnvironmentFailure, UserError
from unfog.runtime.files import cache_folder, locked
from unfog.runtime.progress import working
from unfog.runtime.tensors import load_into, read_tensors, write_tensors

EPOCHS, STEPS, BATCH = 2, 200, 128
"""The classifier is trained for two epochs, or for 200 steps on small sets."""
ROWS, PASSES, PORTION = 300_000, 40, 256
"""The thorough one is trained on so many rows, repeats counted, in at most so many passes: six of CIFAR-10."""
WIDTHS = (64, 128, 192)
"""Channels of its blocks, each of which halves the sides; the last holds for all further ones."""
SHIFT, SMOOTHING, DECAY = 16, 0.1, 0.05
"""It sees pictures shifted by up to a sixteenth of their side, with smoothed labels, under this weight decay."""
SIDE, DEEP = 32, 8
"""Positions of the shorter side after the first layer, from twice as many pixels on; of volumes and clips fewer."""
LAYERS: dict[int, tuple[type[nn.Module], type[nn.Module], type[nn.Module]]] = {
    1: (nn.Conv1d, nn.BatchNorm1d, nn.MaxPool1d),
    2: (nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d),
    3: (nn.Conv3d, nn.BatchNorm3d, nn.MaxPool3d),
}
"""Layers by the number of sides."""
DROPOUT = 0.3
"""Without it the features separate training rows from held-out ones: their precision is 0.75, not 0.86 (digits)."""
FREQUENT = 0.01
"""Words are read that stand in at least this share of the captions, and are missing in as many."""
THOROUGH, VERSION = 1, 2
"""Raise one with every change that gives other weights on the same rows: to the constants above, `_network`, `_train`.

Cached classifiers of another version are not used.
"""


@dataclass(frozen=True)
class Classifier:
    """A small network that reads classes, or the words of captions; the 64 or 16 features before its last layer.

    Attributes:
        network: Rows to features, and features to logits.
        codec: Encodes rows.
        words: What is read where there are no classes.
        key: Of its weights.
        several: Whether several labels or words hold at a time, and not one class.
    """

    network: nn.Sequential
    codec: Codec
    words: tuple[str, ...] = ()
    key: str = ""
    several: bool = False
    name: str = field(default="classifier", init=False)

    def __call__(self, x: Tensor, batch: int = 256) -> Rows:
        """Return the features of rows, `(n, d)`, `batch` rows at a time."""
        return in_batches(x, batch, lambda part: self.network[0](self.codec.compared(part)))

    def right(self, features: Rows, asked: Tensor | Sequence[str]) -> Rows:
        """Return how right each row is, `(n,)`: whether its class is, or the share of its labels or words that are.

        Args:
            features: Of rows, `(n, d)`.
            asked: Labels, `(n,)` or `(n, labels)` of bool, or a caption for each.
        """
        logits, wanted = self._logits(features), _targets(asked, self.words).numpy()
        if wanted.ndim == 1:
            classes: Rows = (logits.argmax(1) == wanted).astype(float)
            return classes
        shares: Rows = ((logits > 0) == wanted).mean(1)
        return shares

    def classes(self, features: Rows) -> NDArray[np.int64]:
        """Return the class of each row, `(n,)`."""
        classes: NDArray[np.int64] = self._logits(features).argmax(1)
        return classes

    def reads(self, features: Rows) -> NDArray[np.bool_]:
        """Return what each row is read as, `(n, outputs)`: its one class, or each label or word on its own."""
        logits = self._logits(features)
        read: NDArray[np.bool_] = logits > 0 if self.several else np.arange(self.outputs) == logits.argmax(1)[:, None]
        return read

    def shows(self, asked: Tensor | Sequence[str]) -> NDArray[np.bool_]:
        """Return what each row was asked to show, `(n, outputs)`, from labels or captions."""
        wanted = _targets(asked, self.words).numpy()
        shown: NDArray[np.bool_] = np.arange(self.outputs) == wanted[:, None] if wanted.ndim == 1 else wanted
        return shown

    @property
    def outputs(self) -> int:
        """How many classes, labels or words are read."""
        return len(self.network[1].bias)  # type: ignore[arg-type]

    def _logits(self, features: Rows) -> Rows:
        weight, bias = (part.detach().double().numpy() for part in self.network[1].parameters())
        logits: Rows = features @ weight.T + bias
        return logits


def fit_classifier(
    rows: Batch, codec: Codec, console: Console | None = None, *, thorough: bool = False, mirror: bool = False
) -> Classifier | None:
    """Return the classifier of a set, from the cache if the same version was trained on the same rows before.

    Args:
        rows: What to train it on.
        codec: Encodes rows.
        console: Shows the progress.
        thorough: Train a larger one for longer: CIFAR-10 takes six minutes on two cores, and 89 % of its held-out
            pictures are read correctly, instead of 72 %.
        mirror: Whether a mirror image of a row is as good a row; the thorough one sees both.

    Returns: The classifier; None if the rows have neither several classes nor captions with words to tell them apart.
    """
    known = rows.labels if rows.labels is not None else rows.captions
    if known is None:
        return None
    words = () if isinstance(known, Tensor) else _vocabulary(known)
    targets = _targets(known, words)
    several = targets.ndim > 1
    outputs = targets.shape[1] if several else int(targets.max()) + 1
    if outputs < (1 if several else 2):
        return None
    network = _network(tuple(codec.compared(rows.x[:1]).shape[1:]), outputs, features_of(len(rows.x)), thorough)
    version = f"classifier {VERSION}, words {words!r}" + (f", thorough {THOROUGH}, mirror {mirror}" if thorough else "")
    name = digest(version.encode(), *(part.numpy().tobytes() for part in (rows.x, targets)))
    path = cache_folder() / "features" / f"{name}.safetensors"
    try:
        load_into(network, read_tensors(path), path)
    except UserError:  # not there, or damaged
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            lesson = Lesson.thorough(len(rows.x), mirror) if thorough else Lesson.quick(len(rows.x))
            _train(network, codec, rows.x, targets, lesson, console)
        # a cache that cannot be written costs time, and nothing else
        with suppress(EnvironmentFailure, UserError), locked(path.parent, wait=True):
            write_tensors(path, network.state_dict())
    key = digest(*(part.contiguous().numpy().tobytes() for part in network.state_dict().values()))
    return Classifier(network.eval().requires_grad_(False), codec, words, key, several)


def _vocabulary(captions: Sequence[str]) -> tuple[str, ...]:
    """Return the words that some captions have and others have not, the 64 most even ones, sorted."""
    each = [set(caption.lower().split()) for caption in captions]
    shares = {word: sum(word in one for one in each) / len(each) for word in sorted(set().union(*each))}
    telling = [word for word, share in shares.items() if FREQUENT <= share <= 1 - FREQUENT]
    return tuple(sorted(sorted(telling, key=lambda word: abs(shares[word] - 0.5))[:FEATURES]))


def _targets(asked: Tensor | Sequence[str], words: tuple[str, ...]) -> Tensor:
    """Return class numbers, `(n,)`, or which labels or words are there, `(n, outputs)` of bool."""
    if isinstance(asked, Tensor):
        return asked
    each = [set(caption.lower().split()) for caption in asked]
    return torch.tensor([[word in one for word in words] for one in each], dtype=torch.bool).reshape(len(each), -1)


@dataclass(frozen=True)
class Lesson:
    """How a classifier is trained.

    Attributes:
        steps: Of the optimizer.
        batch: Rows in a step.
        decay: Of the weights.
        smoothing: Of the labels.
        shift: Share of a picture's side by which it is shifted at most is 1/`shift`; 0 for none.
        mirror: Whether half of the pictures are mirrored.
    """

    steps: int
    batch: int = BATCH
    decay: float = 0.01
    smoothing: float = 0.0
    shift: int = 0
    mirror: bool = False

    @classmethod
    def quick(cls, rows: int) -> "Lesson":
        """Return the usual one: two passes, or 200 steps."""
        return cls(expected_steps(rows))

    @classmethod
    def thorough(cls, rows: int, mirror: bool) -> "Lesson":
        """Return the longer one."""
        steps = max(STEPS, min(ROWS, PASSES * rows) // PORTION)
        return cls(steps, PORTION, DECAY, SMOOTHING, SHIFT, mirror)

    def varied(self, x: Tensor) -> Tensor:
        """Return pictures shifted and mirrored at random; other rows as they are."""
        if not self.shift or not images.fits(tuple(x.shape[1:])):
            return x
        tall, wide = (side // self.shift for side in x.shape[2:])
        padded = F.pad(x, (wide, wide, tall, tall), mode="replicate")
        count = torch.arange(len(x))[:, None, None]
        top, left = (torch.randint(0, 2 * most + 1, (len(x), 1, 1)) for most in (tall, wide))
        rows, columns = torch.arange(x.shape[2])[:, None], torch.arange(x.shape[3])
        if self.mirror:
            turned = torch.rand(len(x), 1, 1) < 0.5
            columns = torch.where(turned, columns.flip(0), columns)
        return padded[count, :, top + rows, left + columns].movedim(-1, 1)


def _network(shape: tuple[int, ...], outputs: int, features: int, thorough: bool = False) -> nn.Sequential:
    """Return a network in two parts, to features and to logits; its first weights are always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if thorough and images.fits(shape):
            layers, wide = _blocks(*shape)
        else:
            layers, wide = _convolutions(*shape) if shape[1:] else _perceptron(math.prod(shape))
            layers += [nn.Flatten(), nn.Dropout(DROPOUT)]
        layers += [nn.Linear(wide, features), nn.BatchNorm1d(features), nn.ReLU()]
        return nn.Sequential(nn.Sequential(*layers), nn.Linear(features, outputs))


def _blocks(channels: int, height: int, width: int) -> tuple[list[nn.Module], int]:
    """Return the first layers of the thorough one, and how many numbers they give: the largest of each channel.

    Each block is a convolution, a halving of the sides, and a second convolution, as in Jordan 2024, 94 % on CIFAR-10
    in 3.29 seconds on a single GPU.
    """

    def convolution(inner: int, outer: int, kernel: int = 3, stride: int = 1) -> list[nn.Module]:
        return [nn.Conv2d(inner, outer, kernel, stride, padding=1, bias=False), nn.BatchNorm2d(outer), nn.ReLU()]

    stride = max(1, min(height, width) // SIDE)
    layers, inner, side = convolution(channels, 32, stride + 2, stride), 32, min(height, width) // stride
    for outer in (*WIDTHS, *[WIDTHS[-1]] * 3):
        if side <= 4:
            break
        first, *rest = convolution(inner, outer)
        layers += [first, nn.MaxPool2d(2), *rest, *convolution(outer, outer)]
        inner, side = outer, side // 2
    return [*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten()], inner


def _convolutions(channels: int, *sides: int) -> tuple[list[nn.Module], int]:
    """Return the first layers for rows with sides, and how many numbers they give: pooled to a side of 8 or less.

    The first one steps over large pictures so that 32 to 63 positions remain of the shorter side: it sees every pixel,
    and a picture of 128 pixels costs as much as one of 32.
    """
    convolution, norm, pool = LAYERS[len(sides)]
    layers: list[nn.Module] = []
    stride = max(1, min(sides) // (DEEP if len(sides) > 2 else SIDE))
    for depth in (32, 64, 128, 128, 128):
        layers += [convolution(channels, depth, stride + 2, stride, padding=1), norm(depth), nn.ReLU()]
        sides, stride = tuple(side // stride for side in sides), 1
        if min(sides) > 4:
            layers.append(pool(2))
            sides = tuple(side // 2 for side in sides)
        channels = depth
        if depth > 32 and max(sides) <= 8:
            break
    return layers, channels * math.prod(sides)


def _perceptron(numbers: int) -> tuple[list[nn.Module], int]:
    """Return the first layers for rows without sides, and how many numbers they give."""
    wide = 128
    return [nn.Flatten(), nn.Linear(numbers, wide), nn.ReLU()], wide


def _train(
    network: nn.Sequential, codec: Codec, x: Tensor, targets: Tensor, lesson: Lesson, console: Console | None
) -> None:
    """Train in an order that is always the same; the thorough one in bfloat16 where the processor has it."""
    rate, what = 4e-3, "training the classifier" + (", which is kept for later" if lesson.shift else "")
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=lesson.decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=lesson.steps)
    device = torch.device("cpu")
    precision = choose_precision("auto", device, tuple(x.shape[1:])) if lesson.shift else "float32"
    if lesson.shift and images.fits(tuple(x.shape[1:])):
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
    network.train()
    with working(what, lesson.steps, console=console) as work:
        for step in range(lesson.steps):
            rows = torch.from_numpy(shuffled(len(x), 0, step * lesson.batch, lesson.batch))
            seen, wanted = lesson.varied(codec.compared(x[rows])), targets[rows]
            with arithmetic(precision, device):
                logits = network(in_channels_last(seen) if lesson.shift else seen).float()
            if wanted.ndim == 1:
                loss = F.cross_entropy(logits, wanted, label_smoothing=lesson.smoothing)
            else:
                loss = F.binary_cross_entropy_with_logits(logits, wanted.float())
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
            work.advance()


def expected_steps(rows: int) -> int:
    """Return in how many steps the classifier of so many rows is trained."""
    return max(EPOCHS * rows // BATCH, STEPS)


def trial_step(x: Tensor, codec: Codec, thorough: bool = False) -> float:
    """Return seconds of a step of the training of a classifier of such rows; the first, which is slow, rarely counts.

    Args:
        x: Some rows.
        codec: Encodes rows.
        thorough: Whether of the thorough one, in float32.
    """
    network = _network(tuple(codec.compared(x[:1]).shape[1:]), 2, features_of(LARGE), thorough).train()
    rows = codec.compared(x[torch.arange(BATCH) % len(x)])
    with torch.random.fork_rng(devices=[]):  # dropout draws
        for _ in range(2):
            began = time.monotonic()
            torch.autograd.backward(network(rows).square().mean())
            seconds = time.monotonic() - began
            if seconds > 1:
                break
    return seconds
