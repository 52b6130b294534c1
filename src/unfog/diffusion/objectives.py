"""What a denoiser is trained to do."""

from torch import Tensor

from unfog.diffusion.denoiser import Denoiser
from unfog.diffusion.likelihood import bound_term
from unfog.diffusion.schedules import expand
from unfog.diffusion.times import Times
from unfog.diffusion.weightings import Weighting
from unfog.networks.conditioning import Cond

STEPS = 1000
"""Steps into which the bound cuts a clock without steps of its own."""


def denoising_loss(
    denoiser: Denoiser,
    x0: Tensor,
    cond: Cond | None = None,
    *,
    times: Times,
    weighting: Weighting,
    u: Tensor,
    noise: Tensor,
    bound: float = 1e-3,
    bin_width: float | None = None,
) -> Tensor:
    """Return w(t)·mean((output(x_t, t) - (a·x0 + b·eps))²) for each sample; with learned variance, plus the bound.

    The second part, bound·T·(its term at t), teaches the variance alone: the mean in it is held fixed.

    Args:
        denoiser: The denoiser in training.
        x0: Clean data, `(batch, *shape)`, about unit variance.
        cond: The condition of each sample, or None.
        times: Maps `u` to times.
        weighting: The weight of each time.
        u: Uniform numbers in [0, 1), `(batch,)`.
        noise: Standard normal noise, shaped like `x0`.
        bound: How much the variational bound, in bits per dimension, counts where the variance is learned.
        bin_width: Distance of neighbouring values of discrete data, None for continuous data.

    Returns: The loss of each sample, `(batch,)`, float32.
    Source: Ho et al. 2020, eq. 14, for every target and weighting; Nichol & Dhariwal 2021, eq. 16, for the bound.
    """
    schedule = denoiser.schedule
    t = times(u, schedule)
    x_t = schedule.add_noise(x0, noise, t)
    output, fraction = denoiser.output(x_t, t, cond)
    error = output.float() - denoiser.target.of(x0, noise, t, schedule)
    squares = error.square().flatten(1).mean(1)
    loss = expand(weighting(schedule, denoiser.target, t), squares) * squares
    if fraction is None:
        return loss
    steps = schedule.steps or STEPS
    place = t / schedule.t_max * steps
    s = ((place.round() if schedule.steps else place) - 1).clamp(min=0) * schedule.t_max / steps
    held = denoiser.target.solve(output.detach(), x_t, t, schedule)._replace(variance_fraction=fraction)
    return loss + bound * steps * bound_term(schedule, held, x0, x_t, t, s, bin_width=bin_width).float()
