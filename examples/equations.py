"""DDPM's equations, each as one line of code: run `python examples/equations.py`."""

import torch

from unfog.diffusion.denoiser import Denoiser
from unfog.diffusion.grids import UniformGrid
from unfog.diffusion.objectives import denoising_loss
from unfog.diffusion.oracle import Mixture, MixtureDenoiser
from unfog.diffusion.sampling import follow
from unfog.diffusion.solvers import DDIM, Ancestral
from unfog.diffusion.tables import Linear
from unfog.diffusion.targets import Eps
from unfog.diffusion.times import Uniform
from unfog.diffusion.weightings import Unit
from unfog.networks.mlp import MLP

torch.manual_seed(0)
schedule = Linear()  # beta from 1e-4 to 0.02 in 1000 steps
data = Mixture(torch.tensor([0.5, 0.5]), torch.tensor([[-1.0, 0.0], [1.0, 0.0]]), torch.full((2, 2), 0.02))
x0, eps = data.sample(256), torch.randn(256, 2)

# q(x_t | x_0) = N(sqrt(alpha_bar)·x_0, (1 - alpha_bar)·I): the jump to any time
t = torch.tensor(0.5)
x_t = schedule.add_noise(x0, eps, t)

# The loss |eps - eps_theta(x_t, t)|² of each sample, at a random step of the 1000
denoiser = Denoiser(MLP(2), schedule, Eps(), network_time="index")
loss = denoising_loss(denoiser, x0, times=Uniform(), weighting=Unit(), u=torch.rand(256), noise=eps)
print(f"loss of an untrained network, which predicts 0: {loss.mean():.3f} (the variance of eps)")

# q(x_s | x_t, x_0): mean and variance of one step back
mean, variance = schedule.posterior(x_t, x0, 0.5, 0.499)
print(f"posterior variance of step 500: {variance:.5f}")

# Sampling, with the exact denoiser of the data: DDPM in 1000 steps, DDIM in 50
exact, noise = MixtureDenoiser(data, schedule), torch.randn(2000, 2)
for solver, steps in ((Ancestral("large"), 1000), (DDIM(), 50)):
    found = follow(exact, noise, UniformGrid()(schedule, steps), solver)
    print(f"{type(solver).__name__:9} {steps:4} steps: mean |x| {found[:, 0].abs().mean():.3f} where 1 is right")
