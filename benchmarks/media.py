"""What is measured of sounds, clips, volumes and series, each next to real held-out rows.

    python benchmarks/media.py moving RUN          the digit as asked, the path, the speed, a second half from the first
    python benchmarks/media.py oscillators RUN     the distributions of frequency, amplitude and phase
    python benchmarks/media.py sounds RUN          read as asked, recall, copies, and faults one can hear
    python benchmarks/media.py vocoded RUN         recordings rebuilt from their spectrograms, next to Griffin-Lim
    python benchmarks/media.py enlarged RUN        pictures from smaller ones, next to bicubic

Each prints its figures and writes them to RUN/media.json.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor
from torch.nn import functional as F

import unfog
from unfog.data import moving, oscillators
from unfog.data.sounds import FULL
from unfog.data.spectra import griffin_lim, linear, power_of
from unfog.evaluation.judge import Judge
from unfog.recipes.build import build_codec, known_of
from unfog.recipes.hearing import SpectrogramConditioning
from unfog.runs.data import read_data
from unfog.runs.run import Run

SILENT, CLICK = 10 ** (-50 / 20), 8.0
"""RMS below which a sound is silent, and how many times larger than usual a second difference is in a click."""


def judged(run: Run, count: int) -> tuple[Judge, Tensor, Tensor | None]:
    """Return the judge of a run's data, samples, and their labels."""
    data = read_data(run.path, run.recipe)[1]
    judge = Judge(data, build_codec(run.recipe).plain, count, console=Console(stderr=True), reads=run.recipe.reads)
    labels = torch.arange(count) % len(run.recipe.classes) if run.recipe.classes else None
    samples = run.sample(count) if labels is None else run.sample(count, label=labels)
    return judge, samples, labels


def scores(judge: Judge, samples: Tensor, labels: Tensor | None) -> dict[str, object]:
    """Return the usual scores with their floors."""
    found: dict[str, object] = {}
    for name, one in judge.score(samples, labels).items():
        if name in ("adherence", "recall", "precision", "frechet/classifier", "frechet/pixels"):
            found[name] = [one.value, one.low, one.high, one.floor]
    for name, one in judge.copies(samples).items():
        found[f"near training rows/{name}"] = [one.near, one.expected]
    found["classifier reads held-out rows"] = judge.accuracy
    return found


# ------------------------------------------------------------------------------------------------ moving digits


def of_moving(run: Run, count: int) -> dict[str, object]:
    """Measure clips of moving digits."""
    judge, samples, labels = judged(run, count)
    found = scores(judge, samples, labels)
    real = judge.heldout.x[:count]
    for name, clips in (("samples", samples), ("held-out clips", real)):
        x = clips.numpy()
        found[f"path, {name}"] = float(np.sqrt((moving.strayed(x) ** 2).mean()))
        change = np.diff(x.astype(float), axis=2)
        found[f"frame differences, {name}: mean of |.|, of squares"] = [
            float(np.abs(change).mean()),
            float((change**2).mean()),
        ]
        found[f"speed, {name}: 5 %, median, 95 %"] = np.percentile(speeds(x), (5, 50, 95)).tolist()
    found["second half from the first"] = continued(run, real[:24])
    return found


def speeds(clips: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the median speed of each clip's centre, in pixels a frame."""
    steps = np.diff(moving.tracked(clips), axis=2)
    found: NDArray[np.float64] = np.median(np.hypot(steps[:, 0], steps[:, 1]), axis=1)
    return found


def continued(run: Run, clips: Tensor) -> dict[str, float]:
    """Let a model draw the second half of clips whose first half is given."""
    half = clips.shape[2] // 2
    known = torch.zeros(clips.shape[1:], dtype=torch.bool)
    known[:, :half] = True
    drawn = torch.cat([run.complete(clip, ~known, batch=1) for clip in clips])
    there = tracked_apart(drawn[:, :, half:], clips[:, :, half:])
    still = tracked_apart(clips[:, :, half - 1 : half].expand(-1, -1, half, -1, -1), clips[:, :, half:])
    return {
        "known frames are equal": float((drawn[:, :, :half] == clips[:, :, :half]).all()),
        "centre off by, pixels (RMS)": there,
        "centre off by if it stood still": still,
        "path of the whole": float(np.sqrt((moving.strayed(drawn.numpy()) ** 2).mean())),
    }


def tracked_apart(one: Tensor, other: Tensor) -> float:
    """Return the RMS distance of the centres of two sets of clips."""
    gap = moving.tracked(one.numpy()) - moving.tracked(other.numpy())
    return float(np.sqrt((gap**2).sum(1).mean()))


# ------------------------------------------------------------------------------------------------- oscillators


def of_oscillators(run: Run, count: int) -> dict[str, object]:
    """Measure series of oscillations."""
    samples = run.sample(count)
    held = read_data(run.path, run.recipe)[1].heldout
    found: dict[str, object] = {}
    for name, rows in (("samples", samples), ("held-out series", held.take(np.arange(min(count, len(held)))).x)):
        x = rows[:, 0].double().numpy()
        parts = oscillators.read(x)
        for what, values in zip(("frequency", "amplitude", "phase"), oscillators.cumulative(parts), strict=True):
            found[f"Kolmogorov-Smirnov of the {what}, {name}"] = kolmogorov(values)
        found[f"noise, {name}"] = float(((x - oscillators.curve(parts)) ** 2).mean() ** 0.5)
    gaps = torch.zeros(samples.shape[1:], dtype=torch.bool)
    gaps[:, 20:44] = True
    rows = held.take(np.arange(32)).x
    drawn = torch.cat([run.complete(row, gaps, batch=1) for row in rows])
    whole = oscillators.curve(oscillators.read(rows[:, 0].double().numpy()))
    found["imputed: known points are equal"] = bool((drawn[:, ~gaps] == rows[:, ~gaps]).all())
    found["imputed: off the curve by (RMS; the noise is 0.05)"] = float(
        ((drawn[:, 0, 20:44].double().numpy() - whole[:, 20:44]) ** 2).mean() ** 0.5
    )
    return found


def kolmogorov(values: NDArray[np.float64]) -> float:
    """Return the largest distance of an empirical distribution function from that of uniform numbers."""
    ordered, count = np.sort(values), len(values)
    return float(
        max(np.abs(ordered - np.arange(count) / count).max(), np.abs(ordered - np.arange(1, count + 1) / count).max())
    )


# ------------------------------------------------------------------------------------------------------ sounds


def of_sounds(run: Run, count: int) -> dict[str, object]:
    """Measure sounds."""
    judge, samples, labels = judged(run, count)
    found = scores(judge, samples, labels)
    for name, rows in (("samples", samples), ("held-out sounds", judge.heldout.x[:count])):
        found[f"faults, {name}"] = faults(rows)
    codec = build_codec(run.recipe)
    again = codec.decode(codec.encode(judge.heldout.x))
    back = judge.fidelity(again) if len(again) >= judge.m else None
    found["held-out sounds through the codec: distance, floor"] = None if back is None else [back.value, back.floor]
    return found


def faults(sounds: Tensor) -> dict[str, float]:
    """Return the shares of sounds that are clipped, silent, or have a click."""
    x = sounds.float().mean(1) / FULL
    clipped = (x.abs() > 0.999).float().mean(1) > 1e-3
    silent = x.square().mean(1).sqrt() < SILENT
    bends = x.diff(n=2, dim=1).abs()
    usual = F.avg_pool1d(bends[:, None], 201, 1, padding=100, count_include_pad=False)[:, 0]
    click = ((bends > CLICK * usual) & (bends > 0.1)).any(1)
    return {
        "clipped": float(clipped.float().mean()),
        "silent": float(silent.float().mean()),
        "clicks": float(click.float().mean()),
    }


# ---------------------------------------------------------------------------------------------------- vocoding


def of_vocoded(run: Run, count: int) -> dict[str, object]:
    """Measure recordings that are rebuilt from their spectrograms, by the model and by Griffin and Lim."""
    data = read_data(run.path, run.recipe)[1]
    judge = Judge(data, build_codec(run.recipe).plain, count, console=Console(stderr=True), reads=run.recipe.reads)
    held = data.heldout.take(np.linspace(0, len(data.heldout) - 1, min(count, len(data.heldout))).astype(int))
    conditioning, known = run.recipe.conditioning, known_of(run.recipe)
    assert isinstance(conditioning, SpectrogramConditioning)
    levels, mel = conditioning.levels(known, held.x), conditioning.mel(known)
    flat, length = levels.flatten(0, 1), held.x.shape[-1]
    waves = [griffin_lim(linear(power_of(one, mel), mel), mel, length) for one in torch.split(flat, 64)]
    theirs = (torch.cat(waves).view(held.x.shape).clamp(-1, 1) * FULL).round().to(torch.int16)
    ours = run.sample(len(held.x), condition=levels)
    found: dict[str, object] = {"classifier reads held-out rows": judge.accuracy}
    for name, sounds in (("the recordings", held.x), ("rebuilt", ours), ("Griffin-Lim", theirs)):
        own = judge.score(sounds, held.labels)
        distance, read = own["frechet/classifier"], own["adherence"]
        found[f"Fréchet distance and its floor, {name}"] = [distance.value, distance.floor]
        found[f"read as they were, {name}"] = [read.value, read.low, read.high]
        found[f"log-spectral distance in dB, {name}"] = apart(sounds, held.x)
        off = (conditioning.levels(known, sounds) - levels).square().mean().sqrt()
        found[f"spectrogram off by (dB, RMS), {name}"] = float(off) * -mel.floor / 2
        found[f"faults, {name}"] = faults(sounds)
    return found


def apart(one: Tensor, other: Tensor) -> float:
    """Return the log-spectral distance: the RMS over frequencies of the difference in decibels, mean over frames."""

    def levels(x: Tensor) -> Tensor:
        waves = torch.stft(x.flatten(0, 1).float() / FULL, 256, 64, window=torch.hann_window(256), return_complex=True)
        return 20 * torch.log10(waves.abs().clamp(min=1e-3))

    return float((levels(one) - levels(other)).square().mean(1).sqrt().mean())


# --------------------------------------------------------------------------------------------------- enlarging


def of_enlarged(run: Run, count: int, each: int = 8) -> dict[str, object]:
    """Measure pictures that are made from smaller ones."""
    data = read_data(run.path, run.recipe)[1]
    x = data.heldout.take(np.linspace(0, len(data.heldout) - 1, min(count, len(data.heldout))).astype(int)).x
    factor = run.recipe.conditioning.factor_of(known_of(run.recipe))
    small = F.avg_pool2d(x.float(), factor)
    bicubic = F.interpolate(small, scale_factor=float(factor), mode="bicubic").round().clamp(0, 255)
    drawn = torch.stack([run.sample(len(x), image=x, seed=seed) for seed in range(each)]).float()
    training = data.train.take(np.linspace(0, len(data.train) - 1, min(2000, len(data.train))).astype(int)).x.float()
    one = patches(training)
    floor, ours, theirs = (patch_distance(patches(rows), one) for rows in (x.float(), drawn[0], bicubic))
    again = F.avg_pool2d(drawn[0], factor)
    return {
        "PSNR of bicubic": psnr(bicubic, x),
        "PSNR of one sample": psnr(drawn[0], x),
        f"PSNR of the mean of {each}": psnr(drawn.mean(0), x),
        "Fréchet distance of 16×16 patches: held-out, samples, bicubic": [floor, ours, theirs],
        "above the floor, as a share of bicubic's": (ours - floor) / (theirs - floor),
        "made small again, off by (RMS of 255)": float((again - small).square().mean().sqrt()),
    }


def psnr(x: Tensor, wanted: Tensor) -> float:
    """Return the mean peak signal-to-noise ratio in decibels."""
    errors = (x - wanted.float()).square().flatten(1).mean(1)
    return float((10 * torch.log10(255**2 / errors.clamp(min=1e-3))).mean())


def patches(x: Tensor, side: int = 16) -> NDArray[np.float64]:
    """Return the features of patches, `(patches, d)`: means of 4×4 pixels, and the strength of the edges in them."""
    parts = x.unfold(2, side, side).unfold(3, side, side).permute(0, 2, 3, 1, 4, 5).reshape(-1, x.shape[1], side, side)
    grey = parts.mean(1, keepdim=True)
    down, across = grey.diff(dim=2).abs(), grey.diff(dim=3).abs()
    strengths = [F.adaptive_avg_pool2d(edge, 4).flatten(1) for edge in (down, across)]
    means = F.adaptive_avg_pool2d(parts, 4).flatten(1)
    features: NDArray[np.float64] = (torch.cat([means, *strengths], 1) / 255).double().numpy()
    return features


def patch_distance(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Return the Fréchet distance of patches."""
    from unfog.evaluation.distances import frechet

    return frechet(one, other)


KINDS = {
    "moving": of_moving,
    "oscillators": of_oscillators,
    "sounds": of_sounds,
    "vocoded": of_vocoded,
    "enlarged": of_enlarged,
}


def main() -> None:
    """Measure a run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("run", type=Path)
    parser.add_argument("-n", type=int, default=1000)
    given = parser.parse_args()
    found = KINDS[given.kind](unfog.load(given.run), given.n)
    for name, value in found.items():
        print(f"{name}: {value}")
    (given.run / "media.json").write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
