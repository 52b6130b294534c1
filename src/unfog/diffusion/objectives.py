"""The denoising loss, and that of flow maps."""

from collections.abc import Iterator
from contextlib import contextmanager

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


def jump_loss(
    denoiser: Denoiser, x_t: Tensor, x_s: Tensor, cond: Condition | None = None, *, t: Tensor, s: Tensor
) -> Tensor:
    """Return mean((output(x_t, t, s) - target)²) for each sample, whose target leads from one known state to another.

    The target is that of the pair with x_t = alpha_t·x0 + sigma_t·eps and x_s = alpha_s·x0 + sigma_s·eps: with
    rectified flow the mean velocity between them.

    Args:
        denoiser: A flow map, with a span.
        x_t: States, `(batch, *shape)`.
        x_s: States of the same trajectories at earlier times.
        cond: As for `denoising_loss`.
        t: Times of `x_t`, `(batch,)`.
        s: Times of `x_s`, `(batch,)`.

    Returns: The loss of each sample, `(batch,)`, float32.
    Source: Luhman & Luhman 2021, Knowledge Distillation in Iterative Generative Models, for end points.
    """
    target = denoiser.target.of(*denoiser.schedule.pair(x_t, x_s, t, s), t, denoiser.schedule)
    output, _ = denoiser.output(x_t, t, denoiser.embedded(cond), s)
    return (output.float() - target).square().flatten(1).mean(1)


def flow_map_loss(
    denoiser: Denoiser,
    x0: Tensor,
    cond: Condition | None = None,
    *,
    t: Tensor,
    s: Tensor,
    ratio: float,
    noise: Tensor,
) -> Tensor:
    """Return mean((output(x_t, t, s) - target)²)/ratio for each sample, whose target leads from x_t to f(x_l, l, s).

    f(x_l, l, s) = alpha_s·x0 + sigma_s·eps of the denoiser's own pair at l = t + ratio·(s - t), a little nearer to s,
    without gradient, on the same data, noise and dropout. At s = t the target is that of any denoiser, of weight 1.

    Args:
        denoiser: A flow map, with a span.
        x0: Clean data, `(batch, *shape)`.
        cond: As for `denoising_loss`.
        t: Times, `(batch,)`.
        s: Times not above `t`, `(batch,)`.
        ratio: Between 0 and 1; at 1 the target is data and noise, so that nothing but their mean is learned.
        noise: Standard normal noise, shaped like `x0`.

    Returns: The loss of each sample, `(batch,)`, float32.
    Raises: UserError: If the denoiser is no flow map, or `s` is above `t`.
    Source: Luo et al. 2025, SoFlow, section 3, with the weight on the square of the mean velocity.
    """
    if denoiser.span is None:
        raise UserError("the loss of flow maps needs a denoiser with a span: Denoiser(..., span=ScalarEmbedding(dim))")
    if bool((s > t).any()) or not 0 < ratio <= 1:
        raise UserError("a flow map leads to earlier times, by a ratio above 0 and at most 1")
    schedule, jump = denoiser.schedule, s < t
    cond = denoiser.embedded(cond)
    x_t, nearer = schedule.add_noise(x0, noise, t), t + ratio * (s - t)
    with torch.no_grad(), same_draws(x0.device):
        led = denoiser(schedule.add_noise(x0, noise, nearer), nearer, cond, s)
        x_s = schedule.add_noise(led.x0, led.eps, s)
        there = schedule.pair(x_t, x_s, t, torch.where(jump, s, 0.5 * t))  # where s = t anything, which is not used
        far = jump.to(x0.device).view(-1, *[1] * (x0.ndim - 1))
        pair = [torch.where(far, ahead, own) for ahead, own in zip(there, (x0, noise), strict=True)]
        target = denoiser.target.of(pair[0], pair[1], t, schedule)
    output, _ = denoiser.output(x_t, t, cond, s)
    squares = (output.float() - target).square().flatten(1).mean(1)
    return squares * torch.where(jump, 1 / ratio, 1.0).to(squares)


@contextmanager
def same_draws(device: torch.device) -> Iterator[None]:
    """Let what follows draw the same random numbers as what is done in this context, dropout for instance."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield
