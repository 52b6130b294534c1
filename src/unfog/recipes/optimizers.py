"""The optimizers as values: AdamW, and Muon, which takes more from each step."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unfog.recipes.settings import positive
from unfog.runtime import distributed
from unfog.runtime.device import Precision
from unfog.runtime.errors import UserError

_THIN = 32
"""Matrices with a thinner side are the first and last layers, whose entries Muon leaves to AdamW."""


@dataclass(frozen=True)
class AdamW:
    """AdamW with a warm-up and a linear decay that are counted in images.

    Attributes:
        lr: Peak learning rate.
        beta1: Averaging of the gradient.
        beta2: Averaging of its square.
        weight_decay: Decay of the weights, multiplied by the learning rate.
        warmup: Images over which the learning rate rises from 0.
        decay: Share of the run, at its end, over which it falls to 0.
        clip: Largest norm of the gradient.

    Source: Loshchilov & Hutter 2019, Decoupled Weight Decay Regularization.
    """

    lr: float = 2e-3
    beta1: float = 0.9
    beta2: float = 0.99
    weight_decay: float = 0.01
    warmup: int = 3000
    decay: float = 0.5
    clip: float = 1.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        positive(lr=self.lr, clip=self.clip)
        if not 0 <= self.decay <= 1:
            raise UserError(f"optimizer.decay is a share of the run between 0 and 1, not {self.decay}")
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1 and self.weight_decay >= 0 and self.warmup >= 0):
            raise UserError("optimizer.beta1 and beta2 lie in [0, 1), weight_decay and warmup are not below 0")

    def build(
        self, module: nn.Module, precision: Precision = "float32", parameters: Sequence[nn.Parameter] | None = None
    ) -> torch.optim.Optimizer:
        """Return the optimizer of a module that is trained in an arithmetic.

        Args:
            module: The module.
            precision: Its arithmetic.
            parameters: Those of its parameters that are trained; all if None.
        """
        betas = (self.beta1, self.beta2)
        trained = list(module.parameters()) if parameters is None else parameters
        return torch.optim.AdamW(trained, lr=self.lr, betas=betas, weight_decay=self.weight_decay, fused=True)

    def rate(self, seen: int, total: int | None) -> float:
        """Return the learning rate after `seen` of `total` images; without a total, before any decay."""
        rise = min(1.0, seen / self.warmup) if self.warmup else 1.0
        fall = min(1.0, (total - seen) / (self.decay * total)) if total and self.decay else 1.0
        return self.lr * rise * max(0.0, fall)


@dataclass(frozen=True)
class Muon(AdamW):
    """Muon for the matrices of the hidden layers, AdamW for everything else, at one learning rate.

    A matrix steps along its averaged gradient with all singular values made 1, times 0.2·sqrt(its longer side), which
    gives its entries the size of AdamW's steps. A kernel is the matrix (outputs, inputs·places).

    Attributes:
        momentum: Averaging of the gradient of a matrix, with Nesterov's look ahead.

    Source: Jordan et al. 2024, Muon: An optimizer for hidden layers in neural networks; Liu et al. 2025, Muon is
    Scalable for LLM Training, section 2.2 (the factor).
    """

    momentum: float = 0.95

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        if not 0 <= self.momentum < 1:
            raise UserError(f"optimizer.momentum lies in [0, 1), not {self.momentum}")

    def build(
        self, module: nn.Module, precision: Precision = "float32", parameters: Sequence[nn.Parameter] | None = None
    ) -> torch.optim.Optimizer:
        """Return the optimizer of a module that is trained in an arithmetic, see `AdamW.build`."""
        tables = {id(part.weight) for part in module.modules() if isinstance(part, nn.Embedding)}
        hidden: list[nn.Parameter] = []
        rest: list[nn.Parameter] = []
        for parameter in list(module.parameters()) if parameters is None else parameters:
            sides = as_matrix(parameter).shape if parameter.ndim > 1 and id(parameter) not in tables else (0,)
            (hidden if min(sides) >= _THIN else rest).append(parameter)
        return _Muon(hidden, rest, self, getattr(torch, precision))


class _Muon(torch.optim.Optimizer):
    """Two groups: the matrices, and the rest, which an AdamW inside steps with the same groups and state."""

    def __init__(
        self, hidden: list[nn.Parameter], rest: list[nn.Parameter], options: Muon, square: torch.dtype
    ) -> None:
        """Take over the options; `square` is the arithmetic of `orthogonal`."""
        self.options, self.square = options, square
        betas = (options.beta1, options.beta2)
        self.rest = torch.optim.AdamW([{"params": rest}], lr=options.lr, betas=betas, fused=True)
        both = [{"params": hidden}, *self.rest.param_groups]
        super().__init__(both, {"lr": options.lr, "weight_decay": options.weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]  # no closure
        """Take a step."""
        group = self.param_groups[0]
        alike: dict[torch.Size, list[Tensor]] = {}
        for weight in group["params"]:
            if weight.grad is not None:
                alike.setdefault(as_matrix(weight).shape, []).append(weight)
        for shape, weights in alike.items():
            ahead = []
            for weight in weights:
                gradient = weight.grad
                assert gradient is not None
                if weight not in self.state:
                    self.state[weight] = {"momentum": torch.zeros_like(weight)}
                average = self.state[weight]["momentum"].lerp_(gradient, 1 - self.options.momentum)
                ahead.append(as_matrix(distributed.full(torch.lerp(gradient, average, self.options.momentum))))
            size = group["lr"] * 0.2 * math.sqrt(max(shape))
            for weight, turned in zip(weights, orthogonal(torch.stack(ahead), self.square), strict=True):
                step = distributed.shared_as(turned.reshape(weight.shape), weight)
                weight.mul_(1 - group["lr"] * group["weight_decay"]).sub_(step, alpha=size)
        self.rest.state, self.rest.param_groups = self.state, self.param_groups[1:]
        self.rest.step()


def as_matrix(weight: Tensor) -> Tensor:
    """View a weight of two axes or more as a matrix: the first axis by all others."""
    return weight.reshape(len(weight), -1)


def orthogonal(matrices: Tensor, square: torch.dtype = torch.float32) -> Tensor:
    """Bring all singular values of matrices close to 1, between about 0.7 and 1.2, and leave their directions.

    Five steps X <- (a + b·XX' + c·(XX')²)·X from X / |X|: an odd polynomial that acts on each singular value. For long
    matrices the factors are multiplied first, since they are no larger than the shorter side squared and commute with
    XX'; in bfloat16 that would drift, the steps themselves do not.

    Args:
        matrices: `(count, rows, columns)`.
        square: Arithmetic for matrices whose longer side is less than 1.5 times the shorter one.

    Returns: As many matrices of the same shape.
    Source: Jordan et al. 2024 (the coefficients); Kovarik 1970 (the iteration).
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    wide = matrices.mT if matrices.shape[1] > matrices.shape[2] else matrices
    x = wide / (wide.norm(dim=(1, 2), keepdim=True) + 1e-30)
    if 2 * x.shape[2] < 3 * x.shape[1]:
        x = x.to(square)
        for _ in range(5):
            gram = x @ x.mT
            x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
        x = x.to(matrices.dtype)
    else:
        gram, product = x @ x.mT, None
        for step in range(5):
            factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
            factor.diagonal(dim1=1, dim2=2).add_(a)
            product = factor if product is None else factor @ product
            if step < 4:
                gram = factor @ (factor @ gram)
        x = product @ x
    found: Tensor = x if wide is matrices else x.mT
    return found
