"""The denoising loss."""

import torch
from torch import Tensor

from unfog.diffusion.defaults import times_of
from unfog.diffusion.denoiser import Condition, Denoiser
from unfog.diffusion.likelihood import bound_term
from unfog.diffusion.names import named
from unfog.diffusion.schedules import as_time, expand
from unfog.diffusion.times import Times, stratify
from unfog.diffusion.weightings import Unit, Weighting
from unfog.runtime.errors import UserError

STEPS = 1000
"""Steps of the variational bound on continuous schedules."""


def denoising_loss(
    denoiser: Denoiser,
    x0: Tensor,
    cond: Condition | None = None,
    *,
    times: Times | str | None = None,
    weighting: Weighting | str | None = None,
    u: Tensor | None = None,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
    bound: float = 1e-3,
    bin_width: float | None = None,
    bounds: tuple[float, float] | None = None,
) -> Tensor:
    """Return w(t)·mean((output(x_t, t) - (a·x0 + b·eps))²) for each sample; with learned variance, plus the bound.

    The second part, bound·T·(its term at t), trains the variance only: the mean in it is detached.

    Args:
        denoiser: The denoiser to train.
        x0: Clean data, `(batch, *shape)`, about unit variance.
        cond: The condition of each sample, or None; a tensor goes through the denoiser's embedder, if it has one.
        times: Maps `u` to times, or a name. Default: log-normal on `EDM`, logit-normal on `RectifiedFlow`, else
            uniform.
        weighting: The weight of each time, or a name. Default: 1 in the target's own space.
        u: Uniform numbers in [0, 1), `(batch,)`. Default: drawn, one in each of `batch` equal parts.
        noise: Standard normal noise, shaped like `x0`. Default: drawn.
        generator: Draws `u` and `noise` if they are not given, on the device of `x0`. Default: torch's own.
        bound: Weight of the variational bound, in bits per dimension, where the variance is learned.
        bin_width: Distance between neighbouring values of discrete data, None for continuous data.
        bounds: The lowest and the highest of those values.

    Returns: The loss of each sample, `(batch,)`, float32.
    Raises: UserError: If shapes do not match, or the data are not floating-point.
    Source: Ho et al. 2020, eq. 14, for every target and weighting; Nichol & Dhariwal 2021, eq. 16, for the bound.
    """
    schedule = denoiser.schedule
    for what, given in (("data", x0), ("noise", x0 if noise is None else noise)):
        if not isinstance(given, Tensor) or not given.ndim:
            raise UserError(f"the {what} must be a tensor, (batch, *shape), not {given!r}")
    if not x0.is_floating_point():
        raise UserError(f"the data are {x0.dtype}: scale them to floating-point numbers of about unit variance first")
    if u is None:
        dtype = torch.float32 if x0.device.type == "mps" else torch.float64  # which MPS lacks
        u = stratify(as_time(torch.rand(len(x0), dtype=dtype, device=x0.device, generator=generator)))
    if u.shape != x0.shape[:1]:
        raise UserError(f"u has the shape {tuple(u.shape)}, where {len(x0)} rows of data need ({len(x0)},)")
    if noise is None:
        noise = torch.randn(x0.shape, dtype=x0.dtype, device=x0.device, generator=generator)
    t = named("times", times or times_of(schedule))(u, schedule)
    x_t = schedule.add_noise(x0, noise, t)
    output, fraction = denoiser.output(x_t, t, denoiser.embedded(cond))
    error = output.float() - denoiser.target.of(x0, noise, t, schedule)
    squares = error.square().flatten(1).mean(1)
    loss = expand(named("weighting", weighting or Unit())(schedule, denoiser.target, t), squares) * squares
    if fraction is None:
        return loss
    steps = schedule.steps or STEPS
    place = t / schedule.t_max * steps
    s = ((place.round() if schedule.steps else place) - 1).clamp(min=0) * schedule.t_max / steps
    held = denoiser.target.solve(output.detach(), x_t, t, schedule)._replace(variance_fraction=fraction)
    term = bound_term(schedule, held, x0, x_t, t, s, bin_width=bin_width, bounds=bounds)
    return loss + bound * steps * term.float()
