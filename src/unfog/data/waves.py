"""Complex spectrograms: sounds with their phases, as models diffuse them that are given a spectrogram without."""

from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor

from unfog.data.codecs import Unlearned
from unfog.data.modality import Modality
from unfog.data.sounds import FULL, Sounds, spectrograms, stored
from unfog.data.source import Data
from unfog.data.spectra import Mel
from unfog.runtime.errors import UserError

LOOKED, DEVIATION = 512, 0.5
"""Training rows of which the gain is measured, at most, and the deviation that it leads to."""
QUIET = 1e-12
"""Magnitude below which a number has no direction."""


@dataclass(frozen=True)
class ComplexSpectrogram(Unlearned):
    """Samples of 16 bits to short-time spectra, real and imaginary parts as channels, and back without loss of phase.

    z = gain·|c|^power · c/|c|, so that quiet parts count as well as loud ones. c is taken with a sine window, which
    conserves energy, and its phase is that of a wave that runs on from the first sample: so a steady tone has nearly
    the same phase in all frames. The highest frequency is omitted.

    Attributes:
        rate: Samples a second.
        window: Samples of a frame, twice the hop.
        power: The exponent by which magnitudes are compressed, from above 0 to 1.
        gain: What the result is multiplied by; filled in from the data, so that its deviation is 0.5.
        bounds: None: spectra are unbounded.
        bin_width: None: they are continuous.

    Source: Richter et al. 2023, Speech Enhancement and Dereverberation with Diffusion-based Generative Models, eq. 15.
    """

    rate: int = 8000
    window: int = 256
    power: float = 0.4
    gain: float | None = None
    bounds: tuple[float, float] | None = field(default=None, init=False)
    bin_width: float | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        """Check the numbers."""
        if not 1000 <= self.rate <= 192_000:
            raise UserError(f"codec.rate must be from 1,000 to 192,000 samples a second, not {self.rate}")
        if not 16 <= self.window <= 8192 or self.window % 2:
            raise UserError(f"codec.window must be an even number from 16 to 8,192, not {self.window}")
        if not 0 < self.power <= 1 or not 0 < (1.0 if self.gain is None else self.gain) <= 1e6:
            raise UserError(
                f"codec.power must be above 0 and at most 1, and codec.gain above 0, not {self.power:g} and {self.gain}"
            )

    def fitted(self, data: Data, modality: Modality) -> Self:
        """Return it with the gain that training rows need, if it has none yet, and their rate."""
        if not isinstance(modality, Sounds) or self.gain is not None:
            return self
        rows = np.linspace(0, len(data.train) - 1, min(LOOKED, len(data.train))).astype(np.int64)
        deviation = float(self.encode(data.train.take(rows).x).std())
        return replace(self, rate=modality.rate, gain=float(f"{DEVIATION / max(deviation, 1e-6):.6g}"))

    @property
    def hop(self) -> int:
        """Samples from one frame to the next."""
        return self.window // 2

    def shape(self, stored: tuple[int, ...]) -> tuple[int, ...]:
        """Return (2·channels, frequencies, frames).

        Raises: UserError: If the rows are no sounds, or their samples no multiple of the hop.
        """
        channels, *samples = stored
        if samples != [sum(samples[:1])] or samples[0] % self.hop:
            raise UserError(
                f"the codec 'complex-spectrogram' takes sounds, (channels, samples), of a multiple of {self.hop} "
                f"samples, not rows of {stored}"
            )
        return 2 * channels, self.hop, samples[0] // self.hop + 1

    def encode(self, x: Tensor) -> Tensor:
        """Map samples, `(batch, channels, samples)`, to float32 `(batch, 2·channels, frequencies, frames)`."""
        window = self._window(x.device)
        waves = torch.stft(
            x.flatten(0, 1).float() / FULL,
            self.window,
            self.hop,
            window=window,
            pad_mode="constant",
            normalized=True,
            return_complex=True,
        )
        waves = waves[:, :-1]
        waves = waves * self._turned(waves)
        size = waves.abs().clamp(min=QUIET)
        waves = (self.gain or 1.0) * waves * size ** (self.power - 1)
        return torch.view_as_real(waves).permute(0, 3, 1, 2).reshape(len(x), -1, *waves.shape[1:])

    def decode(self, z: Tensor) -> Tensor:
        """Map spectra to samples, as many as reach to the middle of the last frame; what would clip is made quieter."""
        parts = z.float().reshape(-1, 2, *z.shape[2:]) / (self.gain or 1.0)
        size = parts.square().sum(1, keepdim=True).sqrt().clamp(min=QUIET)
        parts = parts * size ** (1 / self.power - 1)
        waves = torch.complex(parts[:, 0], parts[:, 1])
        waves = waves * self._turned(waves)
        waves = torch.cat([waves, torch.zeros_like(waves[:, :1])], 1)
        length = (z.shape[-1] - 1) * self.hop
        x = torch.istft(
            waves, self.window, self.hop, window=self._window(z.device), length=length, normalized=True
        ).reshape(len(z), -1, length)
        return stored(x)

    def compared(self, x: Tensor) -> Tensor:
        """Return spectrograms of frames of 32 ms, `(batch, channels, bands, frames)`."""
        return spectrograms(x, Mel.usual(self.rate))

    def _window(self, device: torch.device) -> Tensor:
        """Return a sine window, whose squares add up to 1 where two frames overlap."""
        n = torch.arange(self.window, device=device, dtype=torch.float32) + 0.5
        return torch.sin(torch.pi * n / self.window)

    def _turned(self, waves: Tensor) -> Tensor:
        """Return the signs by which the phase of each frame, counted from its middle, becomes that of the whole."""
        k, j = (torch.arange(count, device=waves.device) for count in waves.shape[1:])
        return 1.0 - 2.0 * (k[:, None] * (j + 1) % 2)
