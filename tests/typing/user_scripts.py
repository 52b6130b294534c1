"""What users write, for mypy alone: `mypy --strict` must find nothing in it; nothing here is run."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

import unfog


class Velocity(nn.Module):
    """A network of one's own that knows nothing of unfog."""

    def __init__(self) -> None:
        """Make the layers."""
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 64), nn.SiLU(), nn.Linear(64, 2))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Map state and time to an output."""
        output: Tensor = self.layers(torch.cat([x, t[:, None]], 1))
        return output


def own_loop(loader: list[Tensor]) -> Tensor:
    """Train and sample."""
    denoiser = unfog.Denoiser(Velocity(), unfog.RectifiedFlow())
    ema = unfog.EMA(denoiser)
    optimizer = torch.optim.AdamW(denoiser.parameters(), 3e-3)
    for x0 in loader:
        optimizer.zero_grad()
        unfog.denoising_loss(denoiser, x0).mean().backward()  # type: ignore[no-untyped-call]  # torch's own
        optimizer.step()
        ema.update(denoiser)
    return unfog.sample(denoiser, (64, 2), steps=20, solver="heun", grid=unfog.UniformGrid(), seed=1)


def own_choices(x0: Tensor) -> Tensor:
    """Everything given."""
    denoiser = unfog.Denoiser(
        unfog.Compact(1, width=16), unfog.Cosine(steps=500), unfog.V(), input_scale="unit", network_time="index"
    )
    return unfog.denoising_loss(
        denoiser,
        x0,
        times=unfog.Importance(unfog.Uniform()),
        weighting=unfog.MinSNR(5.0),
        u=torch.rand(len(x0)).double(),
    )


@dataclass(frozen=True)
class Slow(unfog.Schedule):
    """A schedule of one's own."""

    def alpha(self, t: Tensor | float) -> Tensor:
        """Return cos(t·pi/2)."""
        return torch.cos(torch.as_tensor(t, dtype=torch.float64) * torch.pi / 2)

    def sigma(self, t: Tensor | float) -> Tensor:
        """Return sin(t·pi/2)."""
        return torch.sin(torch.as_tensor(t, dtype=torch.float64) * torch.pi / 2)

    def time(self, log_snr: Tensor | float) -> Tensor:
        """Invert."""
        return torch.atan(torch.exp(-torch.as_tensor(log_snr, dtype=torch.float64) / 2)) * 2 / torch.pi


def low_level(x: Tensor) -> list[Tensor]:
    """Each step, from the exact denoiser of a mixture."""
    mixture = unfog.Mixture(torch.ones(1), torch.zeros(1, 2), torch.ones(1, 2))
    denoise = unfog.MixtureDenoiser(mixture, Slow())
    times = unfog.LogSNRGrid()(denoise.schedule, 10)
    return [step.x for step in unfog.trajectory(denoise, x, times, unfog.DDIM(eta=0.5))]


def tutorials() -> Tensor:
    """Timesteps and betas."""
    schedule = unfog.Linear(1000, 1e-4, 0.02)
    t = schedule.from_timesteps(torch.randint(0, 1000, (8,)))
    x0 = torch.zeros(8, 2)
    return schedule.add_noise(x0, torch.randn_like(x0), t) * schedule.betas.mean()


def whole_runs(folder: str) -> Tensor:
    """Train, load and sample a run."""
    run = unfog.train(unfog.recipe("digits"), folder)
    again: unfog.Run = unfog.load(folder)
    try:
        again.sample(16, seed=3)
    except unfog.UserError as error:
        print(error)
    return run.sample(16)


def other_toolkits(x: Tensor, sigma: Tensor) -> Tensor:
    """Wrap a denoiser as a model of k-diffusion, and take it back."""
    model = unfog.wrap_k(unfog.Denoiser(Velocity(), unfog.EDM()))
    return model(x, sigma) + unfog.unwrap_k(model)(x, torch.tensor(1.0)).x0
