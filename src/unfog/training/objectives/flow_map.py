"""Flow maps from scratch: a denoiser that also learns, from the data alone, where its own flow leads."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from unfog.diffusion.denoiser import Denoiser
from unfog.diffusion.objectives import denoising_loss, flow_map_loss
from unfog.recipes.build import build_denoiser
from unfog.recipes.objective import Context, Draw, Seen
from unfog.recipes.recipe import Recipe
from unfog.runtime.errors import UserError
from unfog.runtime.randomness import uniform
from unfog.training.objectives.denoising import Denoising, condition_of


@dataclass(frozen=True)
class FlowMap(Denoising):
    """Denoising for some rows; for the others |output - target|²/r, the target leading to where a nearer time leads.

    At (t, s) the target is the pair from x_t to f(x_l, l, s), where the model itself leads from l = t + r·(s - t). The
    share r falls from 1, where the target is data and noise, exponentially to `last`. Sampled by ddim in any number of
    steps.

    Attributes:
        straight: Share of the rows that are trained as those of any denoiser, at s = t.
        to_data: Share of the others that lead to clean data; the rest leads to any time between.
        from_noise: Share of the others that start at pure noise; the rest starts at the recipe's times.
        last: r at the end.
        fall: Share of the training in which r falls.

    Source: Luo et al. 2025, SoFlow: Solution Flow Models for One-Step Generative Modeling, section 3; with the mean
        velocity as output, as in Geng et al. 2025, Mean Flows.
    """

    straight: float = 0.5
    to_data: float = 0.5
    from_noise: float = 0.25
    last: float = 0.01
    fall: float = 0.8
    jumps: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the shares."""
        shares = {name: getattr(self, name) for name in ("straight", "to_data", "from_noise")}
        if wrong := [name for name, value in shares.items() if not 0 <= value <= 1]:
            raise UserError(f"objective.{wrong[0]} is a share of the rows, from 0 to 1, not {shares[wrong[0]]:g}")
        if not (0 < self.last <= 1 and 0 < self.fall <= 1):
            raise UserError("objective.last and objective.fall must be above 0 and at most 1")

    def build(self, recipe: Recipe, most: int) -> nn.Module:
        """Return the flow map.

        Raises: UserError: If it is to learn a variance, which jumps do not have.
        """
        model = build_denoiser(recipe, most, span=True)
        if model.learned_variance:
            raise UserError("objective=flow-map has no variance to learn: use variance=fixed")
        return model

    def ratio(self, progress: float) -> float:
        """Return r at a share of the training."""
        return float(self.last ** min(1.0, progress / self.fall))

    def losses(self, model: nn.Module, batch: Draw, context: Context) -> dict[str, Tensor]:
        """Return the loss of each row."""
        assert isinstance(model, Denoiser)
        assert batch.numbers is not None
        t, s = self.ways(batch, context)
        cond = condition_of(model, batch)
        loss = flow_map_loss(model, batch.x0, cond, t=t, s=s, ratio=self.ratio(context.progress), noise=batch.noise)
        return {"loss": loss}

    def seen(self, batch: Draw, context: Context) -> Seen:
        """Return the noised rows, and the times that they lead to."""
        t, s = self.ways(batch, context)
        return Seen(context.recipe.schedule.add_noise(batch.x0, batch.noise, t), t, batch.x0, s)

    def ways(self, batch: Draw, context: Context) -> tuple[Tensor, Tensor]:
        """Return from which time each row leads to which, `(batch,)` each; to the same one where it is denoised."""
        assert batch.numbers is not None
        recipe, schedule = context.recipe, context.recipe.schedule
        drawn = uniform(recipe.seed, "jumps", 0, int(batch.numbers[0]), len(batch.numbers), 4)
        kind, start, end, share = torch.from_numpy(drawn).to(batch.u.device, batch.u.dtype).unbind(1)
        t, jump = recipe.times(batch.u, schedule), kind >= self.straight
        t = torch.where(jump & (start < self.from_noise), torch.full_like(t, schedule.t_max), t)
        return t, torch.where(jump, torch.where(end < self.to_data, 0.0, share * t), t)

    def measured(self, model: nn.Module, batch: Draw, context: Context) -> Tensor:
        """Return the denoising loss of each row, that of s = t: the other depends on the progress."""
        assert isinstance(model, Denoiser)
        return denoising_loss(
            model, batch.x0, condition_of(model, batch), times=context.recipe.times, u=batch.u, noise=batch.noise
        )
