"""The critic of an autoencoder: a PatchGAN discriminator of real and reconstructed images."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unfog.networks.autoencoder import Autoencoder
from unfog.networks.layers import conv, gather
from unfog.networks.unet import group_norm


class Critic(nn.Module):
    """Downsampling convolutions, and one logit per patch: larger means more realistic.

    Source: Isola et al. 2017, Image-to-Image Translation with Conditional Adversarial Networks, section 3.2.2.
    """

    def __init__(self, channels: int, *, dims: int = 2, widths: Sequence[int] = (32, 64, 128)) -> None:
        """Judge images of `channels` channels."""
        super().__init__()
        wide = (channels, *widths)
        self.halving = nn.ModuleList(gather(dims, wide[i], wide[i + 1], 2) for i in range(len(widths)))
        self.mixing = nn.ModuleList(conv(dims, width, width) for width in widths)
        self.norms = nn.ModuleList(group_norm(width, 8) for width in widths)
        self.out = conv(dims, widths[-1], 1, kernel=1)

    def features(self, x: Tensor) -> list[Tensor]:
        """Return the features of images at each level, `(batch, width, *space)`."""
        features = []
        for halve, mix, norm in zip(self.halving, self.mixing, self.norms, strict=True):
            x = F.leaky_relu(norm(mix(F.leaky_relu(halve(x), 0.2))), 0.2)
            features.append(x)
        return features

    def forward(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the features of images, `(batch, channels, *space)`, and the logits, `(batch, 1, *patches)`."""
        features = self.features(x)
        return features, self.out(features[-1])


class Criticised(nn.Module):
    """An autoencoder, and the critic, if there is one, that judges its pictures while both are trained."""

    def __init__(self, autoencoder: Autoencoder, critic: Critic | None) -> None:
        """Join the two."""
        super().__init__()
        self.autoencoder, self.critic = autoencoder, critic


def with_frozen_weights(critic: Critic, x: Tensor) -> tuple[list[Tensor], Tensor]:
    """Return critic(x) with gradients for `x` but none for the critic's weights."""
    frozen = {name: parameter.detach() for name, parameter in critic.named_parameters()}
    judged: tuple[list[Tensor], Tensor] = torch.func.functional_call(critic, frozen, (x,))
    return judged
