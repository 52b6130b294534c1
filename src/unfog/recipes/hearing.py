"""Conditioning on spectrograms: the task of a vocoder, which finds a waveform that has a given one."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from unfog.data.sounds import Sounds, spectrograms
from unfog.data.source import Batch
from unfog.data.spectra import Mel
from unfog.networks.conditioning import Embedder, PlanesEmbedding
from unfog.recipes.conditions import Asked, Known, WithNull
from unfog.runtime.errors import UserError

COMPRESSED, LOUD = 0.4, 4.0
"""The exponent of magnitudes that the network is given, and what they are multiplied by."""


@dataclass(frozen=True)
class SpectrogramConditioning(WithNull):
    """Conditions on the log-mel spectrogram of the sound, which has no phases, concatenated to the state.

    In a complex spectrogram it is stretched to the frequencies and frames of the state: for each channel of the sound
    the level, and a compressed magnitude such as the state has. In samples each band is a channel.

    Attributes:
        window: Samples of a frame.
        hop: Samples from one frame to the next.
        bands: Mel bands of a frame.
        floor: Decibels below full scale at which levels end.

    Source: Chen et al. 2021, WaveGrad: Estimating Gradients for Waveform Generation.
    """

    dropout: float = 0.0
    window: int = 512
    hop: int = 128
    bands: int = 64
    floor: float = -60.0

    def __post_init__(self) -> None:
        """Check the numbers."""
        super().__post_init__()
        if not 16 <= self.window <= 8192 or not 1 <= self.hop <= self.window:
            raise UserError(
                "conditioning.window must be from 16 to 8,192 and conditioning.hop at most as large, not "
                f"{self.window} and {self.hop}"
            )
        if not 4 <= self.bands <= 512 or not -200 <= self.floor < 0:
            raise UserError(
                "conditioning.bands must be from 4 to 512 and conditioning.floor from -200 to below 0, not "
                f"{self.bands} and {self.floor:g}"
            )

    def planes(self, known: Known) -> int:
        """Return the number of planes, including the one that marks a dropped condition."""
        channels = (known.stored or known.shape)[0]
        return channels * (self.bands if _samples(known) else 2) + 1

    def build(self, known: Known, dim: int) -> Embedder | None:
        """Return the embedder."""
        self.mel(known)
        return PlanesEmbedding((self.planes(known) - 1, *known.shape[1:]))

    def mel(self, known: Known) -> Mel:
        """Return how the spectrograms are taken.

        Raises: UserError: If the rows are no sounds.
        """
        if not isinstance(known.modality, Sounds):
            raise UserError("conditioning=spectrogram is for sounds: use another conditioning")
        return Mel(known.modality.rate, self.window, self.hop, self.bands, self.floor)

    def read(self, known: Known, batch: Batch, x0: Tensor, u: Tensor) -> Tensor | None:
        """Return the levels in [-1, 1], `(batch, planes, *space)`."""
        return self._stretched(known, self.levels(known, batch.x))

    def levels(self, known: Known, sounds: Tensor) -> Tensor:
        """Return the spectrograms of sounds, `(batch, channels, bands, frames)`, levels in [-1, 1]."""
        return spectrograms(sounds, self.mel(known))

    def ask(self, known: Known, asked: Asked, count: int) -> Tensor | None:
        """Return the planes of sounds, int16 `(count, channels, samples)`, or of levels as `levels` returns them.

        One sound is used for all samples.
        """
        if not isinstance(asked, Tensor):
            raise UserError("this model is conditioned on spectrograms: give a sound as `condition`")
        stored = known.stored or known.shape
        levels = asked if asked.is_floating_point() else self.levels(known, asked)
        wanted = (stored[0], self.bands, stored[1] // self.hop + 1)
        if tuple(levels.shape[1:]) != wanted or not len(levels):
            raise UserError(
                f"this model is conditioned on spectrograms of {wanted[2]} frames of {wanted[1]} bands, {wanted[0]} a "
                f"sound, not on {tuple(asked.shape[1:])}"
            )
        rows = self._stretched(known, levels[: min(count, len(levels))].float())
        return rows[torch.arange(count) % len(rows)]

    def _stretched(self, known: Known, levels: Tensor) -> Tensor:
        """Return levels at the places of the state."""
        if _samples(known):
            return F.interpolate(levels.flatten(1, 2), known.shape[1], mode="linear", align_corners=True)
        mel, (rows, frames) = self.mel(known), known.shape[1:]
        hertz = torch.arange(rows, dtype=torch.float64) * mel.rate / 2 / rows
        top = torch.log10(1 + torch.tensor(mel.rate / 2 / 700, dtype=torch.float64))
        places = torch.log10(1 + hertz / 700) / top * (self.bands + 1) - 1  # centre of band b is at (b + 1)/(bands + 1)
        places = places.clamp(0, self.bands - 1)
        low = places.floor().long().clamp(max=max(self.bands - 2, 0))
        share = (places - low).to(levels)[:, None]
        high = (low + 1).clamp(max=self.bands - 1)
        across = levels[:, :, low] * (1 - share) + levels[:, :, high] * share
        if across.shape[-1] != frames:
            stretched = F.interpolate(across.flatten(1, 2), frames, mode="linear", align_corners=True)
            across = stretched.view(*across.shape[:3], frames)
        decibels = (across.clamp(-1, 1) - 1) / 2 * -self.floor
        return torch.cat([across, LOUD * 10 ** (COMPRESSED * decibels / 20)], 1)


def _samples(known: Known) -> bool:
    """Return whether the state is a sound's own samples, not its spectrum."""
    return known.shape == (known.stored or known.shape)
