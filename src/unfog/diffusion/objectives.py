"""What a denoiser is trained to do."""

from torch import Tensor

from unfog.diffusion.denoiser import Denoiser
from unfog.diffusion.schedules import expand
from unfog.diffusion.times import Times
from unfog.diffusion.weightings import Weighting
from unfog.networks.conditioning import Cond


def denoising_loss(
    denoiser: Denoiser,
    x0: Tensor,
    cond: Cond | None = None,
    *,
    times: Times,
    weighting: Weighting,
    u: Tensor,
    noise: Tensor,
) -> Tensor:
    """Return w(t)·mean((output(x_t, t) - (a·x0 + b·eps))²) for each sample.

    Args:
        denoiser: The denoiser in training.
        x0: Clean data, `(batch, *shape)`, about unit variance.
        cond: The condition of each sample, or None.
        times: Maps `u` to times.
        weighting: The weight of each time.
        u: Uniform numbers in [0, 1), `(batch,)`.
        noise: Standard normal noise, shaped like `x0`.

    Returns: The weighted squared error of each sample, `(batch,)`, float32.
    Source: Ho et al. 2020, eq. 14, for every target and weighting.
    """
    t = times(u, denoiser.schedule)
    x_t = denoiser.schedule.add_noise(x0, noise, t)
    error = denoiser.output(x_t, t, cond).float() - denoiser.target.of(x0, noise, t, denoiser.schedule)
    squares = error.square().flatten(1).mean(1)
    return expand(weighting(denoiser.schedule, denoiser.target, t), squares) * squares
