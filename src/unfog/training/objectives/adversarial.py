"""The adversarial objective: a GAN, a generator of pictures against a critic that tells them from real ones."""

from dataclasses import dataclass
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unfog.networks.conditioning import Cond
from unfog.networks.direct import DirectModel, embedded
from unfog.networks.gan import GAN
from unfog.recipes.direct import build_direct
from unfog.recipes.networks import GANSpec
from unfog.recipes.objective import Context, Draw
from unfog.recipes.optimizers import AdamW
from unfog.recipes.recipe import Recipe
from unfog.runtime.device import arithmetic
from unfog.runtime.errors import UserError
from unfog.training.objectives.direct import OfPixels, condition_of, direct_model, noises_of

Rule = Literal["relativistic", "hinge", "non-saturating"]
"""How critic and generator are scored."""


@dataclass(frozen=True)
class Adversarial(OfPixels):
    """Generator G and critic D, each with an optimizer of its own; f(t) = softplus(-t).

    "relativistic": D minimises f(D(x) - D(G(z))) + penalty/2·(|∇D(x)|² + |∇D(G(z))|²), G minimises f(D(G(z)) - D(x)).
    "non-saturating": D minimises f(D(x)) + f(-D(G(z))), and G minimises f(D(G(z))). "hinge": D minimises
    max(0, 1 - D(x)) + max(0, 1 + D(G(z))), and G minimises -D(G(z)). In the last two the critic's weights are
    divided by their largest singular values, and a penalty is added as in the first if there is one.

    Attributes:
        rule: The losses.
        penalty: Weight of the squared gradients of the critic.

    Source: Goodfellow et al. 2014, Generative Adversarial Nets; Miyato et al. 2018, Spectral Normalization for GANs;
    Huang et al. 2024, The GAN is dead; long live the GAN! (R3GAN), eq. 3 and 4.
    """

    network: ClassVar[type[GANSpec]] = GANSpec
    rule: Rule = "relativistic"
    penalty: float | None = None

    def __post_init__(self) -> None:
        """Check the weight."""
        if self.penalty is not None and self.penalty < 0:
            raise UserError(f"objective.penalty must be 0 or more, not {self.penalty}")

    @property
    def usual(self) -> AdamW:
        """AdamW without momentum."""
        return AdamW(lr=5e-4, beta1=0.0, beta2=0.99, weight_decay=0.0)

    @property
    def weight(self) -> float:
        """The penalty: 1 for the relativistic rule, 0 for the others, unless it is set."""
        return float(self.rule == "relativistic") if self.penalty is None else self.penalty

    def build(self, recipe: Recipe, most: int) -> nn.Module:
        """Return generator and critic."""
        return build_direct(recipe, most, GANSpec, True, spectral=self.rule != "relativistic")

    def trained(self, model: nn.Module) -> dict[str, list[nn.Parameter]]:
        """Return the parameters of both, each with those of its embedder."""
        model = direct_model(model)
        gan = _gan(model)
        pairs = {"generator": (gan.generator, model.embedder), "critic": (gan.critic, model.judging)}
        return {
            name: [one for part in parts if isinstance(part, nn.Module) for one in part.parameters()]
            for name, parts in pairs.items()
        }

    def losses(self, model: nn.Module, batch: Draw, context: Context) -> dict[str, Tensor]:
        """Return the losses of each row, of the generator and of the critic."""
        model = direct_model(model)
        critic, judged = _gan(model).critic, _judged(model, batch)
        fake = _gan(model).pictures(noises_of(model, batch, context), None, condition_of(model, batch))
        if not self.weight:
            real_logit, fake_logit = critic(batch.x0, judged), critic(fake.detach(), judged)
            penalty = torch.zeros_like(real_logit)
        else:
            with arithmetic("float32", batch.x0.device):  # squared gradients are small
                shown = [part.detach().float().requires_grad_().clone() for part in (batch.x0, fake)]
                real_logit, fake_logit = (critic(part, judged) for part in shown)
                steep = steepness(real_logit, shown[0]) + steepness(fake_logit, shown[1])
                penalty = self.weight / 2 * steep
        return {
            "generator": self._of_generator(critic(fake, judged), real_logit.detach()),
            "critic": self._of_critic(real_logit, fake_logit) + penalty,
        }

    def measured(self, model: nn.Module, batch: Draw, context: Context) -> Tensor:
        """Return the critic's loss without penalty: how well it tells pictures apart, not how good they are."""
        model = direct_model(model)
        critic, judged = _gan(model).critic, _judged(model, batch)
        fake = _gan(model).pictures(noises_of(model, batch, context), None, condition_of(model, batch))
        return self._of_critic(critic(batch.x0, judged), critic(fake, judged))

    def _of_critic(self, real: Tensor, fake: Tensor) -> Tensor:
        """Return the critic's loss of logits."""
        if self.rule == "relativistic":
            return F.softplus(fake - real)
        if self.rule == "hinge":
            return F.relu(1 - real) + F.relu(1 + fake)
        return F.softplus(-real) + F.softplus(fake)

    def _of_generator(self, fake: Tensor, real: Tensor) -> Tensor:
        """Return the generator's loss of logits."""
        if self.rule == "relativistic":
            return F.softplus(real - fake)
        return -fake if self.rule == "hinge" else F.softplus(-fake)


def steepness(logits: Tensor, x: Tensor) -> Tensor:
    """Return |∇ logit(x)|² of each row, `(batch,)`, differentiable."""
    (gradient,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
    return gradient.flatten(1).square().sum(1)


def _gan(model: DirectModel) -> GAN:
    """Return generator and critic."""
    return cast(GAN, model.network)


def _judged(model: DirectModel, batch: Draw) -> Cond | None:
    """Return what the critic is given of the rows of a batch."""
    return embedded(model.judging, batch.condition, batch.drop, len(batch.x0))
