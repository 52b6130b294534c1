"""Networks that draw pictures from random numbers in one call, be it a GAN, a VAE or a PixelCNN."""

from collections.abc import Sequence
from typing import ClassVar, Literal, Protocol, runtime_checkable

from torch import Tensor, nn

from unfog.networks.conditioning import Cond, Embedder

Likelihood = Literal["none", "bound", "exact"]
"""What is known of log p(x)."""


class DirectNetwork(Protocol):
    """(noise, uniform numbers, condition) -> pictures."""

    likelihood: ClassVar[Likelihood]
    """What is known of log p(x)."""
    embedding_dim: int
    """Length of `Cond.vector`."""
    noises: Sequence[tuple[int, ...]]
    """Shapes of the normal noise of one picture."""
    uniforms: tuple[int, ...] | None
    """Shape of the uniform numbers of one picture."""

    def pictures(self, noise: list[Tensor], u: Tensor | None, cond: Cond | None = None) -> Tensor:
        """Return pictures in [-1, 1], `(batch, *shape)`.

        Args:
            noise: Standard normal noise, `(batch, *shape)` for each of `noises`.
            u: Uniform numbers in [0, 1), `(batch, *uniforms)`.
            cond: The condition.
        """
        ...


@runtime_checkable
class LikelyNetwork(DirectNetwork, Protocol):
    """A network that knows how likely pictures are."""

    def log_prob(self, x: Tensor, noise: list[Tensor], cond: Cond | None = None) -> Tensor:
        """Return log p(x), or a draw of a bound of it, in nats, `(batch,)`.

        Args:
            x: Pictures in [-1, 1], `(batch, *shape)`.
            noise: Standard normal noise, `(batch, *shape)` for each of `noises`.
            cond: The condition.
        """
        ...


class DirectModel(nn.Module):
    """Such a network, and what embeds its condition.

    Attributes:
        network: The network.
        embedder: What embeds the condition, or None.
        judging: What embeds it for a critic, which is trained apart, or None.
    """

    def __init__(self, network: nn.Module, embedder: Embedder | None, judging: Embedder | None = None) -> None:
        """Join them."""
        super().__init__()
        self.network, self.embedder, self.judging = network, embedder, judging

    def cond(self, condition: Tensor | None, drop: Tensor | None = None, count: int = 0) -> Cond | None:
        """Return the condition as the network takes it: of rows, or of `count` pictures that have none."""
        return embedded(self.embedder, condition, drop, count)


def embedded(embedder: Embedder | None, condition: Tensor | None, drop: Tensor | None, count: int) -> Cond | None:
    """Return a condition embedded, the null condition where there is none, and None without an embedder."""
    if embedder is None:
        return None
    return embedder.null(count) if condition is None else embedder(condition, drop)
