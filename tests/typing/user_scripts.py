"""What users write, for mypy alone: `mypy --strict` must find nothing in it; nothing here is run."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

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


def a_recipe_of_values() -> unfog.Recipe:
    """Each part as a value."""
    return unfog.Recipe(
        "mine",
        data=unfog.Folder(path="pictures", size=32),
        network=unfog.CompactSpec(width=32),
        augment=unfog.Augment(flip=True),
        codec=unfog.LatentCodec(factor=4),
        objective=unfog.Denoising(),
        conditioning=unfog.TextConditioning(width=64),
        inputs=unfog.Inputs(input_scale="unit"),
        schedule=unfog.Cosine(),
        target=unfog.V(),
        variance=unfog.LearnedVariance(),
        times=unfog.DiscreteTimes(),
        weighting=unfog.MinSNR(5.0),
        optimizer=unfog.Muon(lr=3e-3),
        ema=unfog.ExponentialAverage(),
        training=unfog.Training(images=512),
        solver=unfog.DDIM(eta=0.5),
        grid=unfog.KarrasGrid(),
        sampling=unfog.Sampling(steps=10),
    )


def asked_by_name(run: unfog.Run) -> Tensor:
    """Conditions, portions and progress."""
    run.sample(16, label=3)
    run.sample(2, label=["three", "eight"], negative="one", guidance=2.0)
    run.sample(4, prompt="a small red circle", batch=1, progress=lambda done, total: print(done, total))
    run.sample(4, values=(0.5, 0.1), solver=unfog.DDIM(eta=0.5), grid="karras", progress=True)
    return run.sample(4, image="grey.png")


def edits(run: unfog.Run, picture: Tensor, mask: Tensor) -> Tensor:
    """Each edit, by paths, tensors and arrays."""
    noise, again = run.invert("mine.png", label=3, steps=20)
    run.inpaint(picture, mask, count=2, prompt="a cat", repeats=1, seed=3)
    run.outpaint(picture.numpy(), right=4)
    run.interpolate(picture, again, count=5, label=3)
    run.vary(picture, amount=0.2, count=2)
    run.restore("small.png", "downsample:4", noise=0.05, how="pseudo-inverse", count=2, own_size=True)
    run.restore(picture, unfog.Blur(1.5), label=3)
    return run.restyle(picture, strength=0.6, label=3, count=noise.shape[0])


def on_report(report: unfog.Report) -> None:
    """Print how it stands."""
    print(report.step, report.images, report.loss, report.held_out, report.picture)


def own_data(x: Tensor, labels: Tensor) -> unfog.Run:
    """Tensors, arrays and torch Datasets."""
    unfog.train("digits", out="runs/x", dataset=x)
    unfog.train("digits", out="runs/y", dataset=x.numpy(), budget=60, log=("tensorboard",), stop=lambda: False)
    dataset = TensorDataset(x, labels)
    unfog.train("digits", out="runs/z", dataset=dataset, callbacks=[on_report])
    return unfog.resume("runs/z", dataset=dataset)


def step_by_step(samples: Tensor, real: Tensor) -> str:
    """Take the steps of a run, and measure samples."""
    trainer: unfog.Trainer = unfog.begin("digits", "runs/x")
    while not trainer.finished:
        trainer.descend(trainer.draws(trainer.step))
    trainer.save()
    return unfog.evaluate(samples, real).table()


def other_toolkits(x: Tensor, sigma: Tensor) -> Tensor:
    """Wrap a denoiser as a model of k-diffusion, and take it back."""
    model = unfog.wrap_k(unfog.Denoiser(Velocity(), unfog.EDM()))
    return model(x, sigma) + unfog.unwrap_k(model)(x, torch.tensor(1.0)).x0
