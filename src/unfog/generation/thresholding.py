"""How x0 is kept in the range of the data while sampling: clipped, or by dynamic thresholding."""

from dataclasses import dataclass

import torch
from torch import Tensor

from unfog.diffusion.denoiser import Clipped, Denoise, Wrapped
from unfog.diffusion.schedules import expand
from unfog.diffusion.targets import Prediction
from unfog.recipes.settings import Sampling


@dataclass(frozen=True)
class Thresholded(Wrapped):
    """x0 clipped to [-s, s] and multiplied by bound/s; s is the percentile of |x0| in each row, or the bound if larger.

    At high guidance x0 leaves the range of the data, and plain clipping saturates it. eps = (x_t - alpha·x0)/sigma is
    recomputed unless `keep_eps`.

    Attributes:
        bound: The largest |x0| of the data.
        percentile: The share of the numbers of a row that s holds.
        keep_eps: Whether eps is kept.

    Source: Saharia et al. 2022, Photorealistic Text-to-Image Diffusion Models with Deep Language Understanding
    (Imagen), section 2.3.
    """

    bound: float = 1.0
    percentile: float = 0.995
    keep_eps: bool = False

    def __call__(self, x: Tensor, t: Tensor) -> Prediction:
        """Predict (x0, eps) with x0 in the range."""
        found = self.denoise(x, t)
        size = expand(found.x0.float().abs().flatten(1).quantile(self.percentile, 1).clamp(min=self.bound), x)
        x0 = torch.clamp(found.x0, -size, size) * (self.bound / size)
        sigma = self.schedule.sigma(t)
        if self.keep_eps or not (sigma > 0).all():
            return found._replace(x0=x0)
        return found._replace(x0=x0, eps=(x - expand(self.schedule.alpha(t), x) * x0) / expand(sigma, x))


def bounded(denoise: Denoise, settings: Sampling, bounds: tuple[float, float] | None) -> Denoise:
    """Return a denoiser whose x0 stays in the range of the data, if the settings say so and there is one."""
    if not settings.clip or bounds is None:
        return denoise
    keep_eps = settings.keep_eps or settings.guidance_kind == "cfg++"
    if settings.threshold is None:
        return Clipped(denoise, *bounds, keep_eps=keep_eps)
    return Thresholded(denoise, bounds[1], settings.threshold, keep_eps)
