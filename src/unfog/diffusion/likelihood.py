"""Exact and variational likelihoods."""

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
    """Return -log2 p(x0) per dimension, `(batch,)`; with a bin width, of the bin that holds each value.

    Args:
        log_likelihood: log p(x0) in nats, `(batch,)`.
        x0: The data, `(batch, *shape)`; discrete data are dequantised with uniform noise of one bin.
        bin_width: Distance between neighbouring values, 2/255 for 8-bit images on [-1, 1].
    """
    bits = -log_likelihood / (math.log(2) * x0[0].numel())
    return bits - math.log2(bin_width) if bin_width else bits


def log_likelihood(
    denoise: Denoise, x0: Tensor, *, probes: Tensor | None = None, rtol: float = 1e-5, atol: float = 1e-5
) -> Tensor:
    """Return log p(x0) = log N(x_T; 0, sigma_T²) + integral of div(velocity) + d·log alpha_first, in nats.

    The probability flow takes x0 from the first trained time to the noise at t_max; the state at the first trained
    time is taken to be alpha·x0. Discrete schedules, which have no rates, are integrated on the EDM clock.

    Args:
        denoise: Predicts (x0, eps), with one time per sample.
        x0: Data, `(batch, *shape)`.
        probes: Random signs, `(probes, batch, *shape)`: the divergence is then Hutchinson's estimate, the mean of
            probe·d(velocity·probe)/dx. None computes it exactly, with one backward pass per dimension.
        rtol: Relative error allowed per step.
        atol: Absolute error allowed per step.

    Returns: Log densities in nats, `(batch,)`, without a gradient.
    Raises: UserError: If the data are not finite, or a discrete schedule ends at pure noise.
    Source: Song et al. 2021, Score-Based Generative Modeling through SDEs, appendix D.2; Grathwohl et al. 2019.
    """
    if not x0.isfinite().all():
        raise UserError("the data contain numbers that are not finite: remove those rows")
    start = denoise.schedule.t_first
    if denoise.schedule.steps:
        clock = edm_clock(denoise.schedule)
        log_snr = denoise.schedule.log_snr(start)
        denoise, start = Rescheduled(denoise, clock), float(clock.time(log_snr))
    schedule, size, batch = denoise.schedule, x0[0].numel(), len(x0)

    def rates(state: Tensor, t: Tensor) -> Tensor:
        """Return the velocity with its divergence appended."""
        alpha_rate, sigma_rate = (expand(rate, x0) for rate in schedule.rates(t))
        with torch.enable_grad():
            x = state[:, :size].reshape(x0.shape).clone().requires_grad_()
            prediction = denoise(x, t)
            velocity = alpha_rate * prediction.x0 + sigma_rate * prediction.eps
            divergence = _trace(velocity, x) if probes is None else _estimate(velocity, x, probes)
        return torch.cat([velocity.detach().flatten(1), divergence[:, None]], 1)

    with torch.inference_mode(False), torch.no_grad():
        x0 = x0.detach().clone()  # tensors made in inference mode cannot take part in autograd, their clones can
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
    """The variational bound on -log2 p(x0) per dimension, term by term.

    Attributes:
        prior: KL(q(x_T | x0), N(0, sigma_T²)), `(batch,)`.
        terms: KL(q(x_s | x_t, x0), p(x_s | x_t)) of each step but the last, `(steps - 1, batch)`.
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
    bounds: tuple[float, float] | None = None,
) -> Bound:
    """Return prior + sum of KL(q(x_s | x_t, x0), p(x_s | x_t)) + decoder, with one draw of x_t per t.

    Args:
        denoise: Predicts (x0, eps).
        x0: Data, `(batch, *shape)`.
        times: Falling times, `(steps + 1,)`, from t_max, or from where the prior already holds, to 0.
        noise: (step, data) -> standard normal noise shaped like the data.
        variance: The variance of the model's steps, see `Ancestral`.
        bin_width: Distance between neighbouring values of discrete data, None for a density.
        bounds: The lowest and the highest of those values, whose bins reach to infinity; None if there are no such.

    Returns: The terms in bits per dimension.
    Raises: UserError: If the times do not fall at every step, down to 0.
    Source: Ho et al. 2020, eqs. 5 and 13; Nichol & Dhariwal 2021, eqs. 4 to 7.
    """
    schedule, found = denoise.schedule, []
    if len(times) < 2 or times[0] > schedule.t_max or times[-1] != 0 or not (times.diff() < 0).all():
        raise UserError(f"the bound needs times that fall to 0 from t_max = {schedule.t_max:g} or below")
    with torch.inference_mode():
        for index, (t, s) in enumerate(pairwise(times.double().cpu().unbind())):
            x_t = schedule.add_noise(x0, noise(index, x0), t)
            prediction = denoise(x_t, t)
            found.append(
                bound_term(schedule, prediction, x0, x_t, t, s, variance=variance, bin_width=bin_width, bounds=bounds)
            )
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
    bounds: tuple[float, float] | None = None,
) -> Tensor:
    """Return KL(q(x_s | x_t, x0), p(x_s | x_t)), or -log2 p(x0 | x_t) where s = 0, in bits per dimension.

    Args:
        schedule: The schedule.
        prediction: The model's prediction at `t`.
        x0: Data, `(batch, *shape)`.
        x_t: Their noisy state at `t`, shaped like `x0`.
        t: The later time, `()` or `(batch,)`.
        s: The earlier time, shaped like `t`.
        variance: "small", "large" or "learned".
        bin_width: For the last step: the width of the bin whose mass is used, None for the density.
        bounds: The lowest and the highest value of discrete data, whose bins reach to infinity.

    Returns: Bits per dimension of each sample, `(batch,)`.
    """
    log_variance = step_log_variance(schedule, prediction, x_t, t, s, variance)
    truth, true_variance = schedule.posterior(x_t, x0, t, s)
    mean, _ = schedule.posterior(x_t, prediction.x0, t, s)
    middle = _divergence(truth, expand(true_variance.log(), x0), mean, log_variance)
    last = torch.as_tensor(schedule.sigma(s) == 0)
    if not last.any():
        return _per_dim(middle)
    surprise = _surprise(x0, mean, log_variance, bin_width, bounds)
    return torch.where(last.to(x0.device), _per_dim(surprise), _per_dim(middle))


def _divergence(mean: Tensor, log_variance: Tensor, other: Tensor, other_log_variance: Tensor) -> Tensor:
    """Return KL(N(mean, variance), N(other, other variance)) in nats, elementwise."""
    narrower = log_variance - other_log_variance
    return 0.5 * (torch.exp(narrower) - narrower + (mean - other) ** 2 * torch.exp(-other_log_variance) - 1)


def _surprise(
    x: Tensor, mean: Tensor, log_variance: Tensor, bin_width: float | None, bounds: tuple[float, float] | None
) -> Tensor:
    """Return -log N(x; mean, variance), or -log of the normal mass in the bin of x, which is open at the bounds."""
    z = (x - mean) * torch.exp(-log_variance / 2)
    if bin_width is None:
        return 0.5 * (z**2 + log_variance + math.log(2 * math.pi))
    half = bin_width / 2 * torch.exp(-log_variance / 2)
    # flip the sign so that both ends lie in the lower tail, where the difference does not cancel
    high, low = torch.special.log_ndtr(half - z.abs()), torch.special.log_ndtr(-half - z.abs())
    mass: Tensor = high + torch.log1p(-torch.exp(low - high))
    if bounds is not None:
        lowest, highest = bounds
        mass = torch.where(x < lowest + bin_width / 2, torch.special.log_ndtr(half + z), mass)
        mass = torch.where(x > highest - bin_width / 2, torch.special.log_ndtr(half - z), mass)
    return -mass


def _per_dim(nats: Tensor) -> Tensor:
    """Return the mean over all axes but the batch, in bits."""
    return nats.flatten(1).mean(1) / math.log(2)
