"""How well a model restores held-out pictures, next to what is usual without one.

    python benchmarks/restoration.py runs/mnist runs/fashion --n 100

Each picture is made four times smaller, or blurred, with noise, and restored: by bicubic interpolation (or not
at all, where it is as large), by a Wiener filter with the spectrum of the training pictures, its strength tuned on some
of them, by the best linear estimate there is, from their mean and covariance, and by the model, without labels.
PSNR in dB, the mean over pictures and half the width of its 95 % interval.
"""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import tyro
from torch import Tensor

from unfog.evaluation.reconstruction import psnr
from unfog.generation.operators import Blur, Downsample, Operator
from unfog.generation.restoring import How, Measurement, measured, restore
from unfog.recipes.build import build_data
from unfog.runs.run import load

OPERATORS: dict[str, Operator] = {"downsample:4": Downsample(4), "blur:1.5": Blur(1.5)}
TUNED, STRENGTHS = 64, np.logspace(-3, 3, 25)
"""Training pictures that the strength of the Wiener filter is tuned on, and the strengths."""
Restorer = Callable[[Measurement], Tensor]
"""Restores a picture, `(channels, height, width)` of 0 to 255."""


def enlarged(given: Measurement, mode: str = "bicubic") -> Tensor:
    """Return what was measured at the size of the picture, `(channels, height, width)` of 0 to 255."""
    rows = torch.nn.functional.interpolate(given.picture[None].float(), size=given.size, mode=mode)
    return rows[0].clamp(0, 255)


def wiener(train: Tensor, operator: Operator, noise: float) -> Restorer:
    """Return the Wiener filter of an operator: conj(H)·S/(|H|²·S + strength·N) of the spectra.

    Args:
        train: Training pictures, uint8 `(count, 1, height, width)`.
        operator: What measures.
        noise: Its noise.
    """
    height, width = train.shape[2:]
    rows = train.double()
    mean = rows.mean()
    spectrum = torch.fft.fft2(rows - mean).abs().square().mean((0, 1))
    point = torch.zeros(1, 1, height, width, dtype=torch.float64)
    point[..., height // 2, width // 2] = 1
    factor = operator.factor if isinstance(operator, Downsample) else 1
    if factor == 1:
        spread = torch.fft.fft2(torch.roll(operator(point)[0, 0], (-(height // 2), -(width // 2)), (0, 1)))
    else:  # a block's mean in each of its places is about a box filter there
        box = torch.zeros(height, width, dtype=torch.float64)
        box[:factor, :factor] = 1 / factor**2
        spread = torch.fft.fft2(torch.roll(box, (-(factor // 2), -(factor // 2)), (0, 1)))
    power = (255 * noise) ** 2 * height * width

    def restored(given: Measurement, strength: float) -> Tensor:
        seen = torch.fft.fft2(enlarged(given, "bilinear" if factor > 1 else "nearest").double() - mean)
        filtered = spread.conj() * spectrum / (spread.abs().square() * spectrum + strength * power)
        return (torch.fft.ifft2(filtered * seen).real + mean).clamp(0, 255).float()

    some = [(one, measured(one, operator, noise, seed)) for seed, one in enumerate(train[:TUNED])]
    scores = [np.mean([quality(restored(given, s), one) for one, given in some]) for s in STRENGTHS]
    best = float(STRENGTHS[int(np.argmax(scores))])
    return lambda given: restored(given, best)


def linear(train: Tensor, operator: Operator, noise: float) -> Restorer:
    """Return the linear estimate of least mean square error, m + C·Aᵀ·(A·C·Aᵀ + noise²)⁻¹·(y - A·m).

    Args:
        train: Training pictures, uint8 `(count, 1, height, width)`.
        operator: What measures.
        noise: Its noise.
    """
    shape = train.shape[1:]
    rows = train.flatten(1).double() / 127.5 - 1
    mean, covariance = rows.mean(0), torch.cov(rows.T)
    matrix = operator(torch.eye(rows.shape[1], dtype=torch.float64).reshape(-1, *shape)).flatten(1).T
    seen = matrix @ covariance @ matrix.T + (2 * noise) ** 2 * torch.eye(len(matrix), dtype=torch.float64)
    gain = torch.linalg.solve(seen, matrix @ covariance).T

    def restored(given: Measurement) -> Tensor:
        found = mean + gain @ (given.values.flatten().double() - matrix @ mean)
        return ((found + 1) * 127.5).clamp(0, 255).float().reshape(shape)

    return restored


def quality(found: Tensor, clean: Tensor) -> float:
    """Return the PSNR of a picture, after rounding to bytes."""
    return float(psnr(found.round().to(torch.uint8)[None], clean[None])[0])


def told(name: str, scores: list[float], rest: str = "") -> None:
    """Print a line of the table."""
    half = 1.96 * float(np.std(scores, ddof=1)) / len(scores) ** 0.5
    print(f"  {name:34} {np.mean(scores):6.2f} ± {half:.2f}{rest}", flush=True)


def main(
    runs: tyro.conf.Positional[tuple[Path, ...]], /, n: int = 100, count: int = 8, noise: float = 0.05, steps: int = 25
) -> None:
    """Measure and print.

    Args:
        runs: Run folders of models of grey pictures.
        n: Held-out pictures.
        count: Samples of which the mean is taken.
        noise: Standard deviation of the noise, as a share of the range from black to white.
        steps: Of the solver.
    """
    for path in runs:
        run = load(path)
        sampler = run.sampler(steps=steps)
        _, data = build_data(run.recipe)
        train, clean = data.train.take(np.arange(min(len(data.train), 20_000))).x, data.heldout.take(np.arange(n)).x
        for name, operator in OPERATORS.items():
            given = [measured(one, operator, noise, seed) for seed, one in enumerate(clean)]
            print(f"{path}, {name}, noise {noise:g}, {n} held-out pictures, {steps} steps")
            usual: dict[str, Restorer] = {
                "bicubic" if isinstance(operator, Downsample) else "as measured": enlarged,
                "Wiener filter, tuned": wiener(train, operator, noise),
                "best linear estimate": linear(train, operator, noise),
            }
            for title, restorer in usual.items():
                told(title, [quality(restorer(one), real) for one, real in zip(given, clean, strict=True)])
            ways: tuple[How, ...] = ("pseudo-inverse", "gradient")
            for how in ways:
                began = time.perf_counter()
                drawn = [restore(sampler, one, count, None, how).float() for one in given]
                seconds = (time.perf_counter() - began) / n
                misfit = np.mean([one.misfit(rows[:1].byte()) for one, rows in zip(given, drawn, strict=True)])
                told(f"{how}, one sample", [quality(r[0], c) for r, c in zip(drawn, clean, strict=True)])
                rest = f"   misfit {misfit:.2f}, {seconds:.1f} s a picture"
                told(
                    f"{how}, mean of {count}", [quality(r.mean(0), c) for r, c in zip(drawn, clean, strict=True)], rest
                )


if __name__ == "__main__":
    tyro.cli(main)
