"""What a model conditioned on text attends to: each word of a caption, at each place, step by step."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unfog.data.lettering import readable
from unfog.data.modality import Modality
from unfog.data.text import words_of
from unfog.networks.attention import Attend
from unfog.recipes.several import words_read
from unfog.reports.html import page, table
from unfog.runs.run import Run
from unfog.runtime.errors import UserError
from unfog.runtime.files import disk, whole, write_whole
from unfog.runtime.lines import aligned, lines_of

STEPS = 6
"""Steps of the denoising that are shown, at most."""
START = "(start)"
"""How the token before the first word is called."""
SHOWN = 32
"""Words in the picture, at most; the table has all."""
SIDE, GAP = 96, 6
"""Pixels of the longer side of a cell, and between cells."""


class Shares(NamedTuple):
    """Shares of the variance of a table of words and steps; they add up to 1, or all are NaN where nothing varies."""

    word: float
    step: float
    interaction: float


def decomposed(mass: Tensor) -> Shares:
    """Split the variance of a table m, `(words, steps)`, by a two-way analysis of variance.

    m[w, s] = mean + a[w] + b[s] + r[w, s], with a[w] = mean of row w - mean and b[s] = mean of column s - mean. The
    sums of squares add up: sum (m - mean)² = steps·sum a² + words·sum b² + sum r², and the shares are these three over
    the whole. Where every word keeps its attention at all steps, the interaction is 0; where each word has steps of its
    own, and all words get equal attention in the mean of the steps, it is 1. Where places attend to words only, as in
    cross-attention, all columns have the same sum, and the share of the step alone is 0.

    Args:
        mass: Any table, `(words, steps)`.

    Source: Fisher 1925, Statistical Methods for Research Workers, chapter VII.
    """
    m = mass.double()
    mean = m.mean()
    a, b = m.mean(1, keepdim=True) - mean, m.mean(0, keepdim=True) - mean
    parts = (a, b, m - mean - a - b)
    squares = [float(part.expand_as(m).square().sum()) for part in parts]
    total = sum(squares)
    if total <= 1e-20 * float(m.square().sum()):  # nothing but rounding
        return Shares(math.nan, math.nan, math.nan)
    return Shares(*(part / total for part in squares))


@dataclass(frozen=True, eq=False)
class Attended:
    """What one sample attended to while it was denoised.

    Attributes:
        prompt: The caption.
        words: The words that the model reads, after the start token.
        times: The times of the steps.
        mass: The attention of a word at a step: the mean of its weight over places, heads and layers, `(words, steps)`.
        maps: The same without the mean over places, `(words, steps, height, width)`; None where rows are no pictures.
        x0: The x0 predicted at each step, as stored, `(steps, *stored)`.
        modality: What a row is.
    """

    prompt: str
    words: tuple[str, ...]
    times: tuple[float, ...]
    mass: Tensor
    maps: Tensor | None
    x0: Tensor
    modality: Modality

    @property
    def shares(self) -> Tensor:
        """The share of each word in the attention to all words of a step, `(words, steps)`: columns add up to 1."""
        return self.mass / self.mass.sum(0)

    @property
    def moved(self) -> float:
        """Total-variation distance of the words' shares p between the first and the last step: sum |p - p'| / 2."""
        return float((self.shares[:, 0] - self.shares[:, -1]).abs().sum() / 2)

    @property
    def variance(self) -> Shares:
        """Shares of the variance of `mass` that word, step and their interaction have."""
        return decomposed(self.mass)

    @property
    def figures(self) -> list[str]:
        """What the attention says of words and steps, in sentences."""
        word, step, interaction = (f"{share:.1%}" for share in self.variance)
        moved = (
            f"From the first step to the last, {self.moved:.1%} of the attention moves to other words (total-variation "
            "distance)."
        )
        if math.isnan(self.variance.word):
            return [moved, "Attention differs neither between words nor between steps."]
        return [
            moved,
            f"Of the variance over words and steps, the word alone explains {word}, the step alone {step}, and their "
            f"interaction {interaction}.",
            "A model that read each word at steps of its own would have an interaction near 100%; one in which every "
            "word keeps its attention, 0%.",
        ]

    def rows(self) -> list[tuple[str, ...]]:
        """Return a row of cells for each word: the word, its share at each step and their mean."""
        shares = torch.cat([self.shares, self.shares.mean(1, keepdim=True)], 1).tolist()
        return [(word, *(f"{share:.1%}" for share in row)) for word, row in zip(self.words, shares, strict=True)]

    @property
    def heads(self) -> tuple[str, ...]:
        """The heads of the columns of `rows`."""
        return ("word", *(f"t = {t:.3g}" for t in self.times), "mean")

    def text(self) -> str:
        """Return it for the terminal."""
        lines = [line for sentence in self.figures for line in lines_of(sentence)]
        cells = [f"  {line}" for line in aligned([self.heads, *self.rows()]).splitlines()]
        return "\n".join([f"Attention to the words of {self.prompt!r}, in shares of each step", *cells, *lines])

    def markdown(self, picture: str | None) -> str:
        """Return it as Markdown, with the name of the file of its picture."""
        title = f"Attention to the words of {self.prompt!r}"
        lines = [f"# {title}", "", *self.figures]
        if picture:
            lines += ["", f"![Where each word is attended to, step by step]({picture})"]
        about = (
            "The share of each word in the attention to all words, its weight averaged over places, heads and layers:"
        )
        return "\n".join([*lines, "", about, "", *table(self.heads, self.rows()), ""])

    def draw(self, path: Path) -> None:
        """Draw a row for each word and a column for each step: where the word is attended to, over the predicted x0.

        The brightness of a row is scaled to its largest weight.

        Raises: EnvironmentFailure: If the disk fails.
        """
        from matplotlib.figure import Figure  # here, since they take a second to import
        from matplotlib.patheffects import withStroke

        assert self.maps is not None
        canvas, cell = self._canvas()
        height, width = canvas.shape[:2]
        figure = Figure(figsize=((width + 150) / 100, (height + 110) / 100), layout="constrained")
        panel = figure.subplots()
        panel.imshow(canvas)
        panel.set(xticks=[GAP + cell[1] / 2 + column * (cell[1] + GAP) for column in range(len(self.times))])
        panel.set(yticks=[GAP + cell[0] / 2 + row * (cell[0] + GAP) for row in range(1 + len(self.maps[:SHOWN]))])
        panel.set_xticklabels([f"t = {t:.3g}" for t in self.times])
        labels = ["predicted x0", *map(readable, self.words[:SHOWN])]
        panel.set_yticklabels(labels, parse_math=False)
        panel.tick_params(length=0, labeltop=True, labelbottom=False)
        panel.spines[:].set_visible(False)
        outlined = [withStroke(linewidth=2, foreground="black")]
        for row, shares in enumerate(self.shares[:SHOWN].tolist(), 1):
            for column, share in enumerate(shares):
                place = (GAP + column * (cell[1] + GAP) + 4, GAP + row * (cell[0] + GAP) + 4)
                panel.text(*place, f"{share:.0%}", color="white", fontsize=8, va="top", path_effects=outlined)
        title = f"{readable(self.prompt)}\nbright: where the word is attended to; numbers: its share of the attention"
        figure.suptitle(title, fontsize=10, parse_math=False, wrap=True)
        with whole(path) as part:
            figure.savefig(part, dpi=100, format="png")

    def _canvas(self) -> tuple[np.ndarray[Any, Any], tuple[int, int]]:
        """Return the cells next to each other, `(height, width, 3)` from 0 to 1, and height and width of a cell."""
        from matplotlib import colormaps

        assert self.maps is not None
        sides = self.x0.shape[-2:]
        cell = (max(1, SIDE * sides[0] // max(sides)), max(1, SIDE * sides[1] // max(sides)))
        drawn = [self.modality.sheet(x0[None], 1, 0).convert("RGB").resize(cell[::-1], 0) for x0 in self.x0]
        pictures = np.stack([np.asarray(one) for one in drawn]) / 255
        grey = pictures.mean(-1, keepdims=True)
        rows = [pictures]
        for maps in F.interpolate(self.maps[:SHOWN].float(), size=cell, mode="bilinear"):
            heat = colormaps["inferno"]((maps / maps.max().clamp(min=1e-12)).numpy())[..., :3]
            rows.append(heat * (0.7 + 0.3 * grey))
        padded = np.pad(np.stack(rows), [(0, 0), (0, 0), (GAP, 0), (GAP, 0), (0, 0)], constant_values=1.0)
        count, steps, high, wide, colours = padded.shape
        return padded.transpose(0, 2, 1, 3, 4).reshape(count * high, steps * wide, colours), cell

    def write(self, folder: Path) -> Path:
        """Write attention.html, attention.md and, of pictures, attention.png; return where the page is.

        Raises: EnvironmentFailure: If the disk fails.
        """
        with disk(folder):
            folder.mkdir(parents=True, exist_ok=True)
        picture = None if self.maps is None else "attention.png"
        if picture:
            self.draw(folder / picture)
        text = self.markdown(picture)
        write_whole(folder / "attention.md", text.encode())
        write_whole(folder / "attention.html", page(text, f"Attention to {self.prompt!r}", folder).encode())
        return folder / "attention.html"


@contextmanager
def recording(network: nn.Module) -> Iterator[list[Tensor]]:
    """Record softmax(q·k / sqrt(d)) of every masked attention in a network, as long as the context lasts.

    Fused kernels return no weights, so they are computed a second time, in float32, from the queries and keys that
    `Attend` was given. Attention to words is what is masked: texts are padded, pictures are not.

    Yields: A list, to which each call of an `Attend` adds its weights, `(batch, heads, queries, keys)`.
    """
    found: list[Tensor] = []

    def listen(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        q, k, _, *masks = inputs
        if masks and masks[0] is not None:
            with torch.autocast(q.device.type, enabled=False):
                scores = q.float() @ k.float().mT * q.shape[-1] ** -0.5
            found.append(torch.softmax(scores.masked_fill(~masks[0], -torch.inf), dim=-1))

    hooks = [module.register_forward_hook(listen) for module in network.modules() if isinstance(module, Attend)]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def attended(run: Run, prompt: str | None, caption: str = "", seed: int = 0) -> Attended | None:
    """Draw the run's first sample under a prompt, and record what it attends to; None if its network reads no words.

    At a few steps, first and last among them, the network is evaluated once more; what it attends to without a
    condition, for guidance, does not count.

    Args:
        run: The run.
        prompt: The text; of several conditions the others are dropped.
        caption: What is taken in place of a prompt that is None; blank for none.
        seed: Seed of the noise.

    Raises: UserError: If a prompt is given that has no words, or whose words the network does not read.
    """
    length, text = words_read(run.recipe.conditioning), caption if prompt is None else prompt
    words = (START, *words_of(text)[: (length or 1) - 1])
    found = [] if len(words) == 1 else [*_moments(run, text, seed)]
    if not found or not found[0].layers:
        if prompt is None:
            return None
        if length is not None and not found:
            raise UserError("`prompt` has no words whose attention could be shown: give one with words")
        raise UserError("this model attends to no words, so it has nothing to show of them: omit `prompt`")
    assert length is not None
    layers = [[_on_words(layer, moment.tokens, length, len(words)) for layer in moment.layers] for moment in found]
    mass = torch.stack([torch.stack([layer.mean(1) for layer in step]).mean(0) for step in layers], 1)
    sampler = run.sampler()
    x0 = sampler.codec.decode(torch.cat([moment.x0 for moment in found]).cpu())
    maps, space = None, sampler.shape[1:]
    if run.recipe.modality.pixels and len(space) == 2:
        steps = [torch.stack([_resized(layer, space) for layer in step]).mean(0) for step in layers]
        maps = torch.stack(steps, 1)
    times = tuple(moment.t for moment in found)
    return Attended(text, words, times, mass.double(), maps, x0, run.recipe.modality)


class _Moment(NamedTuple):
    """One step: its time, the predicted x0, the weights of each layer, and how many tokens the network was given."""

    t: float
    x0: Tensor
    layers: Sequence[Tensor]
    tokens: int


def _moments(run: Run, prompt: str, seed: int) -> Iterator[_Moment]:
    """Yield a few steps of the sampling of one sample, whose attention is recorded."""
    sampler = run.sampler(seed=seed)
    one = replace(sampler, settings=replace(sampler.settings, batch=1))
    condition = one.condition(1, prompt)
    assert condition is not None
    embedder = run.denoiser.embedder
    assert embedder is not None
    with run.arithmetic(), torch.inference_mode():
        tokens = embedder(condition.to(one.device)).tokens
        denoise, times = one.denoise(condition)
        x = one.start(0, denoise.schedule, times[0])
    last = len(times) - 2
    chosen = {round(place * last / (STEPS - 1)) for place in range(STEPS)}
    for number, step in enumerate(one.steps(0, condition)):
        if number in chosen:
            with recording(run.denoiser) as layers, run.arithmetic(), torch.inference_mode():
                denoise(x, step.t)
            weights = [layer[0].mean(0).cpu() for layer in layers]  # with guidance the row under the condition is first
            yield _Moment(float(step.t), step.prediction.x0, weights, 0 if tokens is None else tokens.shape[1])
        x = step.x


def _on_words(weights: Tensor, tokens: int, length: int, words: int) -> Tensor:
    """Return the weights of the words alone, at the places alone: `(words, places)`.

    Args:
        weights: Weights of a layer, `(queries, keys)`. In joint attention the places are the first of both.
        tokens: Tokens of the condition, the last of the keys.
        length: Tokens of the text with its padding, the last of them.
        words: Words of the text.
    """
    queries, keys = weights.shape
    places = (keys - tokens) or queries
    return weights[:places, keys - length : keys - length + words].T


def _resized(weights: Tensor, space: tuple[int, ...]) -> Tensor:
    """Return weights at the places of a layer, `(words, places)`, at those of the state: `(words, height, width)`."""
    places = weights.shape[1]
    sides = (tuple(math.ceil(side / factor) for side in space) for factor in range(1, max(space) + 1))
    grid = next((grid for grid in sides if math.prod(grid) == places), None)
    assert grid is not None, f"{places} places are no grid of {space}"
    return F.interpolate(weights.reshape(1, -1, *grid), size=space, mode="bilinear")[0]
