"""How probable the model holds given data: exactly, along the probability flow, and by the variational bound."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from unfog.diffusion.denoiser import Denoise, Rescheduled, edm_clock
from unfog.diffusion.integration import integrate
from unfog.diffusion.schedules import Schedule, expand
from unfog.diffusion.solvers import Variance, step_log_variance
from unfog.diffusion.targets import Prediction
from unfog.runtime.errors import UserError


def bits_per_dim(log_likelihood: Tensor, x0: Tensor, bin_width: float | None = None) -> Tensor:
    """Return -log2 p(x0) per dimension, `(batch,)`; with a bin width, of the bin around each value.

    Args:
        log_likelihood: log p(x0) in nats, `(batch,)`.
        x0: The data, `(batch, *shape)`; of discrete data, with uniform noise of one bin added (dequantised).
        bin_width: Distance of neighbouring values, 2/255 for 8-bit pictures on [-1, 1].
    """
    bits = -log_likelihood / (math.log(2) * x0[0].numel())
    return bits - math.log2(bin_width) if bin_width else bits


def log_likelihood(
    denoise: Denoise, x0: Tensor, *, probes: Tensor | None = None, rtol: float = 1e-5, atol: float = 1e-5
) -> Tensor:
    """Return log p(x0) = log N(x_T; 0, sigma_T²) + integral of div(velocity) + d·log alpha_first, in nats.

    The probability flow carries x0 from the first trained time to the noise at t_max. Below the first trained time
    the state is taken for alpha·x0. A table, which has no rates, is read on the EDM clock.

    Args:
        denoise: Predicts (x0, eps), at a time of its own for each sample.
        x0: Data, `(batch, *shape)`.
        probes: Random signs, `(probes, batch, *shape)`: the divergence is then Hutchinson's estimate, the mean of
            probe·d(velocity·probe)/dx. None computes it exactly, at one backward pass for each dimension.
        rtol: Relative error allowed in a step.
        atol: Absolute error allowed in a step.

    Returns: Natural logarithms of the density, `(batch,)`, without a gradient.
    Raises: UserError: If the data are not finite, or the schedule is a table that ends at pure noise.
    Source: Song et al. 2021, Score-Based Generative Modeling through SDEs, appendix D.2; Grathwohl et al. 2019.
    """
    if not x0.isfinite().all():
        raise UserError("the data hold numbers that are not finite: leave those rows out")
    start = denoise.schedule.t_first
    if denoise.schedule.steps:
        clock = edm_clock(denoise.schedule)
        log_snr = denoise.schedule.log_snr(start)
        denoise, start = Rescheduled(denoise, clock), float(clock.time(log_snr))
    schedule, size, batch = denoise.schedule, x0[0].numel(), len(x0)

    def rates(state: Tensor, t: Tensor) -> Tensor:
        """The velocity, and the divergence behind it."""
        alpha_rate, sigma_rate = (expand(rate, x0) for rate in schedule.rates(t))
        with torch.enable_grad():
            x = state[:, :size].reshape(x0.shape).clone().requires_grad_()
            prediction = denoise(x, t)
            velocity = alpha_rate * prediction.x0 + sigma_rate * prediction.eps
            divergence = _trace(velocity, x) if probes is None else _estimate(velocity, x, probes)
        return torch.cat([velocity.detach().flatten(1), divergence[:, None]], 1)

    with torch.inference_mode(False), torch.no_grad():
        x0 = x0.detach().clone()  # clones of what inference made may take part in gradients
        probes = None if probes is None else probes.clone()
        alpha = float(schedule.alpha(start))
        state = torch.cat([alpha * x0.flatten(1), x0.new_zeros(batch, 1)], 1)
        end = integrate(rates, state, start, schedule.t_max, rtol, atol)
        sigma = float(schedule.sigma(schedule.t_max))
        prior = -0.5 * ((end[:, :size] / sigma) ** 2 + math.log(2 * math.pi * sigma**2)).sum(1)
        return prior + end[:, size] + size * math.log(alpha)


def _trace(velocity: Tensor, x: Tensor) -> Tensor:
    """Return the sum of d(velocity_i)/dx_i for each sample."""
    flat = velocity.flatten(1)
    total = torch.zeros_like(flat[:, 0]).detach()
    for index in range(flat.shape[1]):
        (gradient,) = torch.autograd.grad(flat[:, index].sum(), x, retain_graph=True)
        total = total + gradient.flatten(1)[:, index]
    return total


def _estimate(velocity: Tensor, x: Tensor, probes: Tensor) -> Tensor:
    """Return the mean over the probes of probe·(dv/dx)·probe."""
    found = []
    for probe in probes:
        (gradient,) = torch.autograd.grad((velocity * probe).sum(), x, retain_graph=True)
        found.append((gradient * probe).flatten(1).sum(1))
    return torch.stack(found).mean(0)


class Bound(NamedTuple):
    """The variational bound on -log2 p(x0) per dimension, in the terms that add up to it.

    Attributes:
        prior: KL of q(x_T | x0) from N(0, sigma_T²), `(batch,)`.
        terms: KL of q(x_s | x_t, x0) from the model's step, for each step but the last, `(steps - 1, batch)`.
        decoder: -log2 of the last step's density at x0, or of its mass in the bin of x0, `(batch,)`.
    """

    prior: Tensor
    terms: Tensor
    decoder: Tensor

    @property
    def total(self) -> Tensor:
        """The bound, `(batch,)`."""
        return self.prior + self.terms.sum(0) + self.decoder


def variational_bound(
    denoise: Denoise,
    x0: Tensor,
    times: Tensor,
    *,
    noise: Callable[[int, Tensor], Tensor],
    variance: Variance = "small",
    bin_width: float | None = None,
) -> Bound:
    """Return prior + sum of KL(q(x_s | x_t, x0), p(x_s | x_t)) + decoder, at one draw of x_t for each t.

    Args:
        denoise: Predicts (x0, eps).
        x0: Data, `(batch, *shape)`.
        times: Falling times from t_max, or where the prior already holds, to 0, `(steps + 1,)`.
        noise: The noise of step i for data shaped so.
        variance: Which variance the model's steps have, see `Ancestral`.
        bin_width: Distance of neighbouring values of discrete data, None for a density.

    Returns: The terms in bits per dimension.
    Raises: UserError: If the times do not fall to 0 all the way.
    Source: Ho et al. 2020, eq. 5; Nichol & Dhariwal 2021, eqs. 4 to 7.
    """
    schedule, found = denoise.schedule, []
    if len(times) < 2 or times[0] > schedule.t_max or times[-1] != 0 or not (times.diff() < 0).all():
        raise UserError(f"the bound needs times that fall to 0, from t_max = {schedule.t_max:g} or below")
    with torch.inference_mode():
        for index, (t, s) in enumerate(pairwise(times.double().cpu().unbind())):
            x_t = schedule.add_noise(x0, noise(index, x0), t)
            found.append(bound_term(schedule, denoise(x_t, t), x0, x_t, t, s, variance=variance, bin_width=bin_width))
        alpha, sigma = schedule.alpha(times[0]), schedule.sigma(times[0])
        end = schedule.sigma(schedule.t_max)
        prior = _divergence(expand(alpha, x0) * x0, 2 * sigma.log(), torch.zeros_like(x0), 2 * end.log())
    return Bound(_per_dim(prior), torch.stack(found[:-1]) if found[1:] else x0.new_zeros(0, len(x0)), found[-1])


def bound_term(
    schedule: Schedule,
    prediction: Prediction,
    x0: Tensor,
    x_t: Tensor,
    t: Tensor,
    s: Tensor,
    *,
    variance: Variance = "learned",
    bin_width: float | None = None,
) -> Tensor:
    """Return KL(q(x_s | x_t, x0), p(x_s | x_t)), or -log2 p(x0 | x_t) where s = 0, in bits per dimension.

    Args:
        schedule: Gives the posterior.
        prediction: What the model holds x0 for, and its variance fraction.
        x0: Data, `(batch, *shape)`.
        x_t: Their noisy state.
        t: The later time, `()` or `(batch,)`.
        s: The earlier one, shaped like `t`.
        variance: "small", "large" or "learned".
        bin_width: For the last step: the width of the bin whose mass is meant, None for the density.

    Returns: One number for each sample, `(batch,)`.
    """
    log_variance = step_log_variance(schedule, prediction, x_t, t, s, variance)
    truth, true_variance = schedule.posterior(x_t, x0, t, s)
    mean, _ = schedule.posterior(x_t, prediction.x0, t, s)
    middle = _divergence(truth, expand(true_variance.log(), x0), mean, log_variance)
    last = torch.as_tensor(schedule.sigma(s) == 0)
    if not last.any():
        return _per_dim(middle)
    return torch.where(last.to(x0.device), _per_dim(_surprise(x0, mean, log_variance, bin_width)), _per_dim(middle))


def _divergence(mean: Tensor, log_variance: Tensor, other: Tensor, other_log_variance: Tensor) -> Tensor:
    """Return KL(N(mean, variance), N(other, other variance)) in nats, element by element."""
    narrower = log_variance - other_log_variance
    return 0.5 * (torch.exp(narrower) - narrower + (mean - other) ** 2 * torch.exp(-other_log_variance) - 1)


def _surprise(x: Tensor, mean: Tensor, log_variance: Tensor, bin_width: float | None) -> Tensor:
    """Return -log N(x; mean, variance), or of the normal mass between x - width/2 and x + width/2."""
    z = (x - mean) * torch.exp(-log_variance / 2)
    if bin_width is None:
        return 0.5 * (z**2 + log_variance + math.log(2 * math.pi))
    half = bin_width / 2 * torch.exp(-log_variance / 2)
    # with the sign turned so that both ends lie in the lower tail, where the difference does not cancel
    high, low = torch.special.log_ndtr(half - z.abs()), torch.special.log_ndtr(-half - z.abs())
    mass: Tensor = high + torch.log1p(-torch.exp(low - high))
    return -mass


def _per_dim(nats: Tensor) -> Tensor:
    """Return the mean over all but the batch, in bits."""
    return nats.flatten(1).mean(1) / math.log(2)
