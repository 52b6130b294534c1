"""Optimizers: AdamW, and Muon, which makes more progress per step."""

import inspect
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
"""Matrices with a shorter side are those of the first and last layers, which Muon leaves to AdamW."""


@dataclass(frozen=True)
class AdamW:
    """AdamW with linear warm-up and linear decay, both counted in images.

    Attributes:
        lr: Peak learning rate.
        beta1: Decay rate of the gradient's running mean.
        beta2: Decay rate of the running mean of its square.
        weight_decay: Weight decay, multiplied by the learning rate.
        warmup: Images over which the learning rate rises from 0.
        decay: Fraction of the run, at its end, over which it falls to 0.
        clip: Gradient norm to clip to.

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
            raise UserError(f"optimizer.decay must lie between 0 and 1, not {self.decay}")
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1 and self.weight_decay >= 0 and self.warmup >= 0):
            raise UserError("optimizer.beta1 and beta2 must lie in [0, 1), weight_decay and warmup be 0 or more")

    def build(
        self, module: nn.Module, precision: Precision = "float32", parameters: Sequence[nn.Parameter] | None = None
    ) -> torch.optim.Optimizer:
        """Return the optimizer of a module.

        Args:
            module: The module.
            precision: The arithmetic in which it is trained.
            parameters: Its parameters to train; None is all.
        """
        betas = (self.beta1, self.beta2)
        trained = list(module.parameters()) if parameters is None else parameters
        return _AdamW(trained, lr=self.lr, betas=betas, weight_decay=self.weight_decay, fused=True)

    def rate(self, seen: int, total: float | None) -> float:
        """Return the learning rate after `seen` of `total` images; without a total there is no decay.

        Under a budget, the total is what the whole time holds if it goes on as it went.
        """
        rise = min(1.0, seen / self.warmup) if self.warmup else 1.0
        fall = min(1.0, (total - seen) / (self.decay * total)) if total and self.decay else 1.0
        return self.lr * rise * max(0.0, fall)


class _Uncompiled(torch.optim.Optimizer):
    """An optimizer that imports no compiler: torch wraps these methods so that the first call does, for a second.

    Here they are what is wrapped, which differs only where they are compiled themselves.
    """

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)
    state_dict = inspect.unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.Optimizer.load_state_dict)


class _AdamW(_Uncompiled, torch.optim.AdamW):
    """torch's AdamW."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))


@dataclass(frozen=True)
class Muon(AdamW):
    """Muon for the matrices of the hidden layers, AdamW for everything else, at one learning rate.

    A matrix steps along its averaged gradient with all singular values set to 1, times 0.2·sqrt(its longer side), which
    gives its entries steps of AdamW's size. A convolution kernel is the matrix (outputs, inputs·positions).

    Attributes:
        momentum: Nesterov momentum of a matrix's gradient.

    Source: Jordan et al. 2024, Muon: An optimizer for hidden layers in neural networks; Liu et al. 2025, Muon is
    Scalable for LLM Training, section 2.2 (the factor).
    """

    momentum: float = 0.95

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        if not 0 <= self.momentum < 1:
            raise UserError(f"optimizer.momentum must lie in [0, 1), not {self.momentum}")

    def build(
        self, module: nn.Module, precision: Precision = "float32", parameters: Sequence[nn.Parameter] | None = None
    ) -> torch.optim.Optimizer:
        """Return the optimizer of a module, see `AdamW.build`."""
        tables = {id(part.weight) for part in module.modules() if isinstance(part, nn.Embedding)}
        hidden: list[nn.Parameter] = []
        rest: list[nn.Parameter] = []
        for parameter in list(module.parameters()) if parameters is None else parameters:
            sides = as_matrix(parameter).shape if parameter.ndim > 1 and id(parameter) not in tables else (0,)
            (hidden if min(sides) >= _THIN else rest).append(parameter)
        return _Muon(hidden, rest, self, getattr(torch, precision))


class _Muon(_Uncompiled):
    """Two groups: the matrices, and the rest, which an inner AdamW steps with the same groups and state."""

    def __init__(
        self, hidden: list[nn.Parameter], rest: list[nn.Parameter], options: Muon, square: torch.dtype
    ) -> None:
        """Keep the options; `square` is the arithmetic of `orthogonal`."""
        self.options, self.square = options, square
        betas = (options.beta1, options.beta2)
        decay = options.weight_decay
        self.rest = _AdamW([{"params": rest}], lr=options.lr, betas=betas, weight_decay=decay, fused=True)
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
    """View a weight of two or more axes as a matrix: the first axis by all others."""
    return weight.reshape(len(weight), -1)


def orthogonal(matrices: Tensor, square: torch.dtype = torch.float32) -> Tensor:
    """Bring all singular values of matrices close to 1, between about 0.7 and 1.2, and keep the singular vectors.

    Five steps X <- (a + b·XX' + c·(XX')²)·X from X / |X|: an odd polynomial of each singular value. For elongated
    matrices the factors are multiplied first, since they are only as large as the shorter side squared and commute
    with XX'; in bfloat16 that product would drift, unlike the steps themselves.

    Args:
        matrices: `(count, rows, columns)`.
        square: Arithmetic for matrices whose longer side is less than 1.5 times the shorter one.

    Returns: The matrices, with the same shape.
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
