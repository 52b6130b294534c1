"""An objective of one's own: a small GAN of points, two optimizers, trained, saved and sampled like any other."""

import tempfile
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

import unfog
from unfog.recipes.objective import Context, Draw, Generator, HeldOut, OneLoss
from unfog.runtime.randomness import normal


def mlp(outputs: int) -> nn.Sequential:
    """Return a network on points of the plane."""
    return nn.Sequential(nn.Linear(2, 32), nn.SiLU(), nn.Linear(32, 32), nn.SiLU(), nn.Linear(32, outputs))


@dataclass(frozen=True)
class PointGAN(OneLoss):
    """The hinge losses of a generator and its critic, each with its own optimizer."""

    draws: ClassVar[bool] = True

    def build(self, recipe: unfog.Recipe, most: int) -> nn.Module:
        """Return both networks, a function of the recipe's seed."""
        with torch.random.fork_rng():
            torch.manual_seed(recipe.seed)
            return nn.ModuleDict({"generator": mlp(2), "critic": mlp(1)})

    def trained(self, model: nn.Module) -> dict[str, list[nn.Parameter]]:
        """Give each loss the parameters of its own network."""
        return {name: list(part.parameters()) for name, part in model.named_children()}

    def losses(self, model: Any, batch: Draw, context: Context) -> dict[str, Tensor]:
        """Return -C(G(z)), and max(0, 1 - C(x0)) + max(0, 1 + C(G(z)))."""
        fake, critic = model["generator"](batch.noise), model["critic"]
        hinge = (1 - critic(batch.x0)).relu() + (1 + critic(fake.detach())).relu()
        return {"generator": -critic(fake)[:, 0], "critic": hinge[:, 0]}

    def measured(self, model: nn.Module, batch: Draw, context: Context) -> Tensor:
        """Return the critic's loss."""
        return self.losses(model, batch, context)["critic"]

    def preview(self, model: nn.Module, held_out: HeldOut, context: Context) -> None:
        """Draw no picture."""

    def generator(self, recipe: unfog.Recipe, model: Any) -> Generator:
        """Return G; sample i has noise of its own."""
        return lambda count, *_, seed=0, **__: model["generator"](normal(seed or 0, "z", 0, 0, count, (2,)))


unfog.register("objective", "point-gan", PointGAN)
with tempfile.TemporaryDirectory() as folder:
    settings = ("objective=point-gan", "training.images=4096", "training.reports=1")
    print(unfog.train(unfog.recipe("points").set(*settings), f"{folder}/gan").sample(5))
