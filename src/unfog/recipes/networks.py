"""Network specs: the options of a network, which is built once the shape of the data is known.

The options and defaults are those of the classes in `unfog.networks`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import ClassVar, Protocol, cast

from torch import nn

from unfog.networks.autoencoder import Autoencoder
from unfog.networks.compact import Compact
from unfog.networks.conditional import ConditionalUNet
from unfog.networks.direct import DirectNetwork
from unfog.networks.dit import DiT
from unfog.networks.dual import Tower
from unfog.networks.gan import GAN
from unfog.networks.gated import GatedPixelCNN
from unfog.networks.joint import JointDiT
from unfog.networks.ladder import Ladder
from unfog.networks.layers import Network
from unfog.networks.minimal import Minimal
from unfog.networks.mlp import MLP
from unfog.networks.unet import UNet
from unfog.recipes.kinds import kind_of, refusing
from unfog.runtime.errors import UserError


class NetworkSpec(Protocol):
    """A network that is built once the data are known."""

    def build(self, *, channels: int, outputs: int, dims: int, context: int | None) -> Network:
        """Return the network with freshly drawn weights.

        Args:
            channels: Channels of the input.
            outputs: Channels of the output.
            dims: Spatial dimensions, 0 for points.
            context: Entries of a token of the condition, or None.
        """
        ...


@dataclass(frozen=True)
class Spec:
    """Base of the specs: the options of a class of networks."""

    network: ClassVar[type[nn.Module]]
    given: ClassVar[tuple[str, ...]] = ("channels", "outputs", "dims", "context")
    """The sizes that the class takes."""
    breadths: ClassVar[tuple[str, ...]] = ("width",)
    """Options of which the number of parameters is about the square."""

    def build(self, **sizes: int | None) -> Network:
        """Return the network with freshly drawn weights, see `NetworkSpec`.

        Raises: UserError: If the options do not fit each other or the sizes.
        """
        options = {one.name: getattr(self, one.name) for one in fields(self)}
        taken = {name: size for name, size in sizes.items() if name in self.given}
        with refusing(f"the network {kind_of('network', self)!r} cannot be built with {options}"):
            network: object = self.network(**taken, **options)
        return cast(Network, network)


@dataclass(frozen=True)
class CompactSpec(Spec):
    """The options of `Compact`."""

    network: ClassVar[type[nn.Module]] = Compact
    width: int = 32
    patch: int = 1
    blocks: int = 1
    middle: int = 2
    dropout: float = 0.0
    factorised: bool = False


@dataclass(frozen=True)
class UNetSpec(Spec):
    """The options of `UNet`."""

    network: ClassVar[type[nn.Module]] = UNet
    widths: Sequence[int] = (32, 64, 64)
    blocks: int = 2
    attention: Sequence[bool] = (False, True, True)
    head: int = 32
    dropout: float = 0.0
    groups: int = 32
    epsilon: float = 1e-5
    pad_behind: bool = False
    time_shift: int = 0
    sines_first: bool = False


@dataclass(frozen=True)
class ConditionalUNetSpec(Spec):
    """The options of `ConditionalUNet`."""

    network: ClassVar[type[nn.Module]] = ConditionalUNet
    widths: Sequence[int] = (64, 128, 128)
    blocks: int = 1
    attention: Sequence[bool] = (True, True, False)
    heads: Sequence[int] = (2, 4, 4)
    layers: int = 1
    dropout: float = 0.0
    groups: int = 32
    epsilon: float = 1e-5
    pad_behind: bool = False
    time_shift: int = 0
    sines_first: bool = False


@dataclass(frozen=True)
class DiTSpec(Spec):
    """The options of `DiT`."""

    network: ClassVar[type[nn.Module]] = DiT
    width: int = 128
    depth: int = 6
    head: int = 64
    patch: int = 2
    ratio: int = 4
    dropout: float = 0.0


@dataclass(frozen=True)
class JointDiTSpec(DiTSpec):
    """The options of `JointDiT`."""

    network: ClassVar[type[nn.Module]] = JointDiT


@dataclass(frozen=True)
class MinimalSpec(Spec):
    """The options of `Minimal`."""

    network: ClassVar[type[nn.Module]] = Minimal
    given: ClassVar[tuple[str, ...]] = ("channels", "outputs", "dims")
    width: int = 64


@dataclass(frozen=True)
class MLPSpec(Spec):
    """The options of `MLP`."""

    network: ClassVar[type[nn.Module]] = MLP
    given: ClassVar[tuple[str, ...]] = ("channels", "outputs", "dims")
    width: int = 128
    depth: int = 4


@dataclass(frozen=True)
class AutoencoderSpec(Spec):
    """The options of `Autoencoder`."""

    network: ClassVar[type[nn.Module]] = Autoencoder
    given: ClassVar[tuple[str, ...]] = ("channels", "dims")
    latent: int = 4
    widths: Sequence[int] = (32, 64, 64)
    blocks: int = 1
    groups: int = 32
    attention: bool = True
    quant: bool = True
    post_quant: bool = True


@dataclass(frozen=True)
class TowerSpec(Spec):
    """The options of `Tower`."""

    network: ClassVar[type[nn.Module]] = Tower
    given: ClassVar[tuple[str, ...]] = ("channels", "dims")
    width: int = 32
    levels: int = 3
    dim: int = 128


@dataclass(frozen=True)
class WholeSpec(Spec):
    """Base of the specs of networks that draw whole pictures, and are no denoisers."""

    objective: ClassVar[str]
    """What trains it."""

    def build(self, **sizes: int | None) -> Network:
        """Refuse: it is no denoiser."""
        kind = kind_of("network", self)
        raise UserError(f"network={kind} is no denoiser: it goes with objective={self.objective}")

    def whole(self, shape: tuple[int, ...], **decided: object) -> DirectNetwork:
        """Return the network for pictures of a shape, with what its objective decides.

        Raises: UserError: If the options do not fit each other or the shape.
        """
        options = {one.name: getattr(self, one.name) for one in fields(self)}
        sides = "×".join(map(str, shape))
        with refusing(f"the network {kind_of('network', self)!r} cannot be built for rows of {sides} with {options}"):
            network: object = self.network(shape, **decided, **options)
        return cast(DirectNetwork, network)


@dataclass(frozen=True)
class GANSpec(WholeSpec):
    """The options of `GAN`."""

    network: ClassVar[type[nn.Module]] = GAN
    given: ClassVar[tuple[str, ...]] = ("shape", "conditional", "spectral")
    objective: ClassVar[str] = "adversarial"
    breadths: ClassVar[tuple[str, ...]] = ("width", "critic")
    width: int = 32
    noise: int = 64
    critic: int = 48


@dataclass(frozen=True)
class LadderSpec(WholeSpec):
    """The options of `Ladder`."""

    network: ClassVar[type[nn.Module]] = Ladder
    given: ClassVar[tuple[str, ...]] = ("shape", "pixels")
    objective: ClassVar[str] = "variational"
    width: int = 32
    latent: int = 8


@dataclass(frozen=True)
class GatedSpec(WholeSpec):
    """The options of `GatedPixelCNN`."""

    network: ClassVar[type[nn.Module]] = GatedPixelCNN
    given: ClassVar[tuple[str, ...]] = ("shape", "pixels")
    objective: ClassVar[str] = "autoregressive"
    width: int = 48
    depth: int = 8
