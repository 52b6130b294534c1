"""Attention over time and space, one after the other: of video, where all places at once would be too many."""

from collections.abc import Callable

from torch import Tensor, nn


class Factorised(nn.Module):
    """Attention among the places of each frame, then at each place over time.

    For T frames of P places it computes T·P² + P·T² scores instead of (T·P)².

    Source: Ho et al. 2022, Video Diffusion Models, section 3.
    """

    def __init__(self, attention: Callable[[], nn.Module]) -> None:
        """Build both attentions, each a map of `(batch, channels, *space)` to the same shape."""
        super().__init__()
        self.space, self.time = attention(), attention()

    def forward(self, x: Tensor) -> Tensor:
        """Map `(batch, channels, frames, *space)` to the same shape."""
        batch, channels, frames, *space = x.shape
        h: Tensor = self.space(x.transpose(1, 2).flatten(0, 1)).view(batch, frames, channels, *space)
        places = h.flatten(3).permute(0, 3, 2, 1).flatten(0, 1)  # (batch·places, channels, frames)
        h = self.time(places).view(batch, -1, channels, frames)
        return h.permute(0, 2, 3, 1).reshape(x.shape)
