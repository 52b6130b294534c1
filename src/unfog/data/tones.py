"""Tones, included: synthesised sounds of ten kinds, and an exact reader of them."""

import math

import numpy as np
import torch
from numpy.typing import NDArray

from unfog.data.sounds import FULL
from unfog.data.source import Data, InMemory, split
from unfog.runtime.errors import UserError
from unfog.runtime.randomness import stream

RATE, LENGTH = 8000, 6016
"""Samples a second, and samples of a sound: 0.75 s."""
MOTIONS, TIMBRES = ("steady", "rising", "falling", "trembling", "pulsing"), ("pure", "rich")
KINDS = tuple(f"{motion} {timbre}" for motion in MOTIONS for timbre in TIMBRES)
"""How the pitch or the loudness moves, and whether there are harmonics."""
PITCHES = (220.0, 440.0)
"""Hertz in the middle of a sound, least and largest, evenly spread in octaves."""
SLIDE, SWING, BEAT = 1.0, 0.06, 6.0
"""Octaves of a slide, share of the pitch by which it trembles, and beats a second of what trembles and pulses."""
HARMONICS = (1.0, 0.6, 0.5, 0.35, 0.25)
"""Amplitudes of a rich sound's harmonics."""
FEWEST, MOST = 100, 1_000_000
"""Rows, at least and at most."""
WINDOW, HOP = 512, 64
"""Samples of a frame in which the pitch is read, and from one frame to the next."""
Reals = NDArray[np.float64]


def tones(count: int = 10_000, seed: int = 0) -> Data:
    """Synthesise sounds of 0.75 s, a tenth of each kind; a tenth is held out.

    A kind says how a sound moves (steady, rising or falling by an octave, trembling in pitch, pulsing in loudness) and
    whether it is pure or has five harmonics. Pitch, loudness, phases and the beginning are random.

    Args:
        count: Number of sounds.
        seed: Seed of the sounds.

    Returns: Rows, int16 `(1, 6016)` at 8,000 samples a second, with their kinds as classes.
    Raises: UserError: If the count is out of range.
    """
    if not FEWEST <= count <= MOST:
        raise UserError(f"data.count must be from {FEWEST} to {MOST:,}, not {count}")
    labels = np.arange(count) % len(KINDS)
    u = stream(seed, "tones").random((count, 5))
    x = np.stack([sound(int(label), row) for label, row in zip(labels, u, strict=True)])
    rows = torch.from_numpy(np.round(x * FULL).astype(np.int16))[:, None]
    return split(InMemory(rows, torch.from_numpy(labels), KINDS), 0.1)


def sound(kind: int, u: Reals) -> Reals:
    """Return a sound of a kind in [-1, 1], `(6016,)`, from five numbers in [0, 1).

    They are pitch, loudness, the phases of wave and beat, and the beginning.
    """
    motion, rich = MOTIONS[kind // 2], TIMBRES[kind % 2] == "rich"
    time = np.arange(LENGTH) / RATE
    whole = LENGTH / RATE
    pitch = PITCHES[0] * (PITCHES[1] / PITCHES[0]) ** u[0]
    beat = np.sin(2 * math.pi * (BEAT * time + u[3]))
    share = time / whole - 0.5
    slide = {"rising": SLIDE, "falling": -SLIDE}.get(motion, 0.0) * share
    hertz = pitch * 2**slide * (1 + SWING * beat * (motion == "trembling"))
    phase = 2 * math.pi * (np.cumsum(hertz) / RATE + u[2])
    waves = sum(size * np.sin((place + 1) * phase) for place, size in enumerate(HARMONICS if rich else (1.0,)))
    loud = (0.25 + 0.35 * u[1]) / (1.6 if rich else 1.0)
    begin, end = 0.05 * u[4], whole - 0.03
    envelope = np.clip((time - begin) / 0.02, 0, 1) * np.clip((end - time) / 0.05, 0, 1)
    if motion == "pulsing":
        envelope = envelope * (0.55 + 0.45 * beat)
    result: Reals = loud * envelope * waves
    return result


def kinds(sounds: NDArray[np.int16]) -> NDArray[np.int64]:
    """Return the kind of each sound, int16 `(n, 1, 6016)`, -1 where none can be read."""
    return np.array([read(one[0] / FULL) for one in sounds], dtype=np.int64)


def read(x: Reals) -> int:
    """Return the kind of a sound in [-1, 1], `(6016,)`, by formulas: -1 if it is silent, or no tone.

    The pitch of each frame is the frequency whose harmonics have the most power. Its slope says rising or falling, its
    swing at six beats a second trembling, that of the loudness pulsing; the power of the second to fifth harmonics,
    pure or rich. Of a tone these harmonics have nearly all of the power.
    """
    frames = np.lib.stride_tricks.sliding_window_view(x, WINDOW)[::HOP] * np.hanning(WINDOW)
    spectra = np.abs(np.fft.rfft(frames, 4 * WINDOW)) ** 2
    power = spectra.sum(1)
    if power.max() < 1e-3:
        return -1
    hertz = np.arange(spectra.shape[1]) * RATE / (4 * WINDOW)
    asked = np.geomspace(PITCHES[0] / 2**0.7, PITCHES[1] * 2**0.7, 240)
    places = np.round(asked[:, None] * np.arange(1, 6) / hertz[1]).astype(int)
    each = spectra[:, places.clip(max=spectra.shape[1] - 1)] * (places < spectra.shape[1])
    first = each[:, :, 0] + 0.3 * each[:, :, 1:].sum(2)
    best = first.argmax(1)
    loud = power > 0.03 * power.max()
    if loud.sum() < 20:
        return -1
    octaves = np.log2(asked[best])
    harmonics = np.take_along_axis(each, best[:, None, None], 1)[:, 0]
    wide = 4 * 2  # bins of the main lobe of the window
    near = np.zeros(len(power))
    for place in range(5):
        centre = places[best, place]
        left, right = (centre - wide).clip(0, spectra.shape[1]), (centre + wide + 1).clip(0, spectra.shape[1])
        sums = np.pad(np.cumsum(spectra, 1), ((0, 0), (1, 0)))
        rows = np.arange(len(power))
        near += sums[rows, right] - sums[rows, left]
    if float((near / power)[loud].mean()) < 0.7:
        return -1
    rich = float(harmonics[loud, 1:].sum() / harmonics[loud].sum()) > 0.15
    time = np.arange(len(power)) * HOP / RATE
    slope, level = np.polyfit(time[loud], octaves[loud], 1)
    swing = _swing((octaves - slope * time - level)[loud], time[loud])
    quiet = np.log2(power.clip(min=1e-12))
    inner = slice(8, -10)
    pulse = _swing(quiet[inner] - quiet[inner].mean(), time[inner])
    if abs(slope) > 0.6:
        motion = "rising" if slope > 0 else "falling"
    elif pulse > 1.0:
        motion = "pulsing"
    else:
        motion = "trembling" if swing > 0.03 else "steady"
    return 2 * MOTIONS.index(motion) + int(rich)


def _swing(values: Reals, time: Reals) -> float:
    """Return the amplitude of the beat in some values."""
    angle = 2 * math.pi * BEAT * time
    waves = np.stack([np.sin(angle), np.cos(angle), np.ones_like(time)], 1)
    found = np.linalg.lstsq(waves, values, rcond=None)[0]
    return float(np.hypot(found[0], found[1]))
