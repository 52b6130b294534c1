"""The loss at each noise level, on training and on held-out rows, and the least that the training rows allow."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from unfog.data.codecs import Codec, Latents
from unfog.data.source import Batch
from unfog.evaluation.judge import Judge, pick, spread
from unfog.recipes.build import build_codec
from unfog.runs.run import Run
from unfog.runtime.brief import brief
from unfog.runtime.files import whole
from unfog.runtime.randomness import normal, uniform
from unfog.training.latents import cached

LEVELS, ROWS, NOISIEST, CLEANEST = 16, 128, -8.0, 10.0
"""Noise levels, rows of each split, and the log-SNRs between which the levels lie."""


WORK, FEWEST = 2**33, 16
"""Most products of the exact denoiser at a level, and fewest rows: of large pictures 128 rows take minutes."""
ENCODED = 2**25
"""Numbers of training rows that are encoded, at most: 700 pictures of 128 pixels, some seconds."""


@dataclass(frozen=True)
class Level:
    """Mean losses at one noise level.

    Attributes:
        log_snr: The level.
        train: The model's loss on training rows.
        heldout: On held-out rows.
        optimum_train: The loss on training rows of the exact denoiser of the training set, which has memorised all of
            it: no model has less on the whole set. None where no row has a training row of its condition.
        optimum_heldout: Its loss on held-out rows: far above the model's where the model has not memorised.
    """

    log_snr: float
    train: float
    heldout: float
    optimum_train: float | None
    optimum_heldout: float | None


@dataclass(frozen=True)
class Levels:
    """Losses by noise level, and how they were measured."""

    levels: tuple[Level, ...]
    protocol: str

    __repr__ = brief

    def draw(self, path: Path) -> None:
        """Draw the losses over the noise levels.

        Raises: EnvironmentFailure: If the disk fails.
        """
        from matplotlib.figure import Figure  # here, since matplotlib takes half a second to import

        figure = Figure(figsize=(7, 4.5), layout="constrained")
        axes = figure.subplots()
        names = (
            ("train", "C0o-", "model, training rows"),
            ("heldout", "C1o-", "model, held-out rows"),
            ("optimum_train", "C0--", "least possible loss on training rows (all memorised)"),
            ("optimum_heldout", "C1--", "what memorising costs on held-out rows"),
        )
        for name, style, label in names:
            losses = [(one.log_snr, getattr(one, name)) for one in self.levels if getattr(one, name) is not None]
            axes.plot([x for x, _ in losses], [y for _, y in losses], style, label=label, markersize=3, linewidth=1)
        model = [loss for one in self.levels for loss in (one.train, one.heldout)]
        axes.set(xlabel="log-SNR: noise on the left, data on the right", ylabel="loss", yscale="log")
        # the exact denoiser's loss falls to nothing on training rows, and rises out of the picture on held-out ones
        axes.set_ylim(min(model) / 100, max(model) * 100)
        axes.grid(alpha=0.3, which="both")
        axes.legend(fontsize="small")
        with whole(path) as part:
            figure.savefig(part, dpi=120, format="png")


def rows_for(numbers: int) -> int:
    """Return on how many rows of each split losses are measured, for training rows of so many numbers in all."""
    return max(FEWEST, min(ROWS, WORK // numbers))


def empirical_x0(x_t: Tensor, alpha: float, sigma: float, train: Tensor, block: int = 64) -> Tensor:
    """Return E[x0 | x_t] where the data are training rows, all equally likely: sum_i w_i·row_i.

    The weights w are the softmax over i of -|x_t - alpha·row_i|² / (2·sigma²).

    Args:
        x_t: Noisy rows, alpha·x0 + sigma·eps, `(n, pixels)`, float64.
        alpha: Coefficient of the signal.
        sigma: Coefficient of the noise, above 0.
        train: The rows, `(rows, pixels)`.
        block: Noisy rows whose weights are in memory at a time; does not change the result.

    Returns: The exact prediction, shaped like `x_t`.
    Source: Karras et al. 2022, appendix B.3.
    """
    squares, predictions = train.square().sum(1) / 2, []
    for part in torch.split(x_t, block):
        weights = ((part @ train.T - alpha * squares) * (alpha / sigma**2)).softmax(1)
        counting = (weights > 1e-15).any(0)  # with little noise only a few rows do
        predictions.append(weights[:, counting] @ train[counting])
    return torch.cat(predictions)


def measure_levels(run: Run, judge: Judge, seed: int = 0) -> Levels:
    """Measure mean((output - (a·x0 + b·eps))²) at 16 log-SNRs, for a run and the exact denoiser of its training set.

    The same rows have the same noise at every level. On a table the levels are those of its steps. A conditional model
    is compared with the denoiser of the training rows of the same condition.

    Args:
        run: The run.
        judge: Has the rows of both splits.
        seed: Seed of the noise.

    Source: for the optimum, see `empirical_x0`.
    """
    schedule, codec = run.denoiser.schedule, build_codec(run.recipe)
    ends = float(schedule.log_snr(schedule.t_max)), float(schedule.log_snr(schedule.t_first))
    t = schedule.time(torch.linspace(max(ends[0], NOISIEST), min(ends[1], CLEANEST), LEVELS, dtype=torch.float64))
    if schedule.steps:
        t = torch.from_numpy(np.unique((t * schedule.steps).round().clamp(min=1).numpy())[::-1] / schedule.steps)
    codes = _codes(run, judge, codec)
    train = torch.empty(0, 0) if codes is None else codes.flatten(1).double()
    groups = [] if codes is None else _conditions(run, judge.train, codes, seed)[1]
    count = rows_for(train.numel()) if codes is not None else FEWEST
    losses: list[list[float]] = []
    optima: list[list[float | None]] = []
    for part, split in enumerate((judge.train, judge.heldout)):
        rows = pick(split, spread(min(count, len(split.x)), len(split.x)))
        x0 = codec.encode(rows.x)
        eps = normal(seed, "noise levels", part, 0, len(x0), tuple(x0.shape[1:]))
        condition, keys = _conditions(run, rows, x0, seed)
        losses.append(_losses(run, x0, eps, condition, t))
        optima.append(_optimum(run, x0, eps, keys, groups, train, t))
    levels = [Level(*one) for one in zip(schedule.log_snr(t).tolist(), *losses, *optima, strict=True)]
    protocol = (
        f"at most {count} evenly spread rows of each split, the same noise at each level, seed {seed}; squared error "
        f"of the target {run.recipe.kind('target')} without weights; exact denoiser of {len(train)} training rows"
    )
    if codes is None:
        protocol += ", since encoding all of them would take long, and no training left their latents in the run folder"
    return Levels(tuple(levels), protocol)


def _codes(run: Run, judge: Judge, codec: Codec) -> Tensor | None:
    """Return the training rows as the network sees them; None where they are latents that would take long to encode."""
    x = judge.train.x
    if isinstance(codec, Latents):
        found = cached(judge.source, codec, run.recipe.augment.flip, run.path)
        if found is not None and len(found) == len(x):
            return found
        if x.numel() > ENCODED:
            return None
    return codec.encode(x)


def _conditions(run: Run, rows: Batch, x0: Tensor, seed: int) -> tuple[Tensor | None, list[bytes]]:
    """Return the condition of rows, encoded as `x0`, and the same as a key for each row."""
    sampler = run.sampler()
    drawn = torch.from_numpy(uniform(seed, "condition of levels", 0, 0, len(rows.x), 4))
    condition = sampler.conditioning.read(sampler.known, rows, x0, drawn)
    if condition is None:
        return None, [b""] * len(rows.x)
    return condition, [one.numpy().tobytes() for one in condition]


def _losses(run: Run, x0: Tensor, eps: Tensor, condition: Tensor | None, times: Tensor) -> list[float]:
    """Return the model's mean loss at each time."""
    denoiser, size = run.denoiser, run.sampler().size
    device = next(denoiser.parameters()).device
    losses = []
    with torch.inference_mode(), run.arithmetic():
        for t in times:
            total = 0.0
            for first in range(0, len(x0), size):
                clean, noise = (part[first : first + size].to(device) for part in (x0, eps))
                cond = None
                if denoiser.embedder is not None and condition is not None:
                    cond = denoiser.embedder(condition[first : first + size].to(device))
                x_t, each = denoiser.schedule.add_noise(clean, noise, t), t.expand(len(clean))
                output = denoiser.output(x_t, each, cond)[0].float()
                wanted = denoiser.target.of(clean, noise, each, denoiser.schedule)
                total += float((output - wanted).cpu().double().square().flatten(1).mean(1).sum())
            losses.append(total / len(x0))
    return losses


def _optimum(
    run: Run, x0: Tensor, eps: Tensor, keys: list[bytes], groups: list[bytes], train: Tensor, times: Tensor
) -> list[float | None]:
    """Return the mean loss of the exact denoiser at each time, over the rows whose condition was trained on."""
    schedule, target = run.denoiser.schedule, run.denoiser.target
    clean, noise = (part.flatten(1).double() for part in (x0, eps))
    totals, count = np.zeros(len(times)), 0
    for key in sorted(set(keys) & set(groups)):
        here = torch.tensor([one == key for one in keys])
        same = train[torch.tensor([one == key for one in groups])]
        count += int(here.sum())
        for place, t in enumerate(times):
            alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
            off = empirical_x0(alpha * clean[here] + sigma * noise[here], alpha, sigma, same) - clean[here]
            # x_t is the same on both sides, so that eps is off by -alpha/sigma of what x0 is off by
            error = target.of(off, -alpha / sigma * off, t, schedule)
            totals[place] += float(error.square().mean(1).sum())
    return [float(total / count) if count else None for total in totals]
