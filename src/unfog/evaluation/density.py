"""The likelihood of data under a run's model: bits per dimension of training and of held-out rows."""

from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from unfog.data.source import Batch, Data, Source
from unfog.diffusion.denoiser import Conditioned
from unfog.diffusion.grids import UniformGrid
from unfog.diffusion.likelihood import bits_per_dim, log_likelihood, variational_bound
from unfog.generation.drawing import Likely
from unfog.networks.conditioning import Cond
from unfog.recipes.build import build_codec, known_of
from unfog.runs.run import Run
from unfog.runtime.brief import brief
from unfog.runtime.errors import UserError
from unfog.runtime.randomness import normal, uniform

STEPS = 250
"""Steps of the variational bound on a schedule without steps of its own."""


@dataclass(frozen=True)
class Bits:
    """Bits per dimension of some rows, with the standard error of the mean.

    Attributes:
        flow: By the probability flow, with one random probe for each row (Hutchinson); None for texts, which have none.
        flow_error: Its standard error.
        bound: The variational bound, of the chain of Gaussian steps and so of another model than the flow; of texts
            that of unmasking, of VAEs that of their latents; None where the likelihood is exact.
        bound_error: Its standard error.
        exact: The exact likelihood, of autoregressive models.
        exact_error: Its standard error.
    """

    flow: float | None
    flow_error: float | None
    bound: float | None
    bound_error: float | None
    exact: float | None = None
    exact_error: float | None = None


@dataclass(frozen=True)
class Density:
    """The likelihood of training and held-out rows, and how it was measured."""

    train: Bits
    held_out: Bits
    protocol: str

    __repr__ = brief

    def to_json(self) -> dict[str, object]:
        """Return everything as plain values, without what was not measured."""
        bits = {part: _known(getattr(self, part)) for part in ("train", "held_out")}
        return {**bits, "protocol": self.protocol}

    def table(self) -> str:
        """Return the two rows as text."""
        ways = {"flow": "by the flow", "bound": "variational bound", "exact": "exact"}
        shown = {way: words for way, words in ways.items() if getattr(self.train, way) is not None}
        lines = [f"{'bits/dim':18}" + "".join(f"{words:>20}" for words in shown.values())]
        for name, bits in (("training rows", self.train), ("held out", self.held_out)):
            figures = [f"{getattr(bits, way):.3f} ± {getattr(bits, f'{way}_error'):.3f}" for way in shown]
            lines.append(f"{name:18}" + "".join(f"{figure:>20}" for figure in figures))
        return "\n".join([*lines, f"({self.protocol})"])


def _known(bits: Bits) -> dict[str, float]:
    """Return what was measured as plain values."""
    return {name: value for name, value in asdict(bits).items() if value is not None}


def density(run: Run, data: Data, count: int, seed: int = 0) -> Density:
    """Measure the likelihood of `count` rows of each split.

    Discrete data are dequantised: uniform noise of one bin's width is added, and the flow's density becomes the
    probability of the bin, in bits.

    Args:
        run: The run.
        data: The data that it was trained on.
        count: Rows of each split, evenly spread; at most all.
        seed: Seed of the noise and the probes.

    Raises: UserError: If there is no row.
    Source: Song et al. 2021, appendix D.2; Theis et al. 2016, section 3.1, for the dequantisation.
    """
    if count < 1:
        raise UserError(f"the likelihood needs 1 row or more, not {count}")
    generator = None if run.denoises or not run.recipe.objective.draws else run.generator(seed=seed)
    if isinstance(generator, Likely):
        protocol = f"{min(count, len(data.heldout))} held-out rows, seed {seed}; {generator.measured}"
        train, heldout = (_of_rows(run, generator, part, count) for part in data)
        return Density(train, heldout, f"{protocol}; ± standard error")
    steps = run.denoiser.schedule.steps or STEPS
    protocol = (
        f"{min(count, len(data.train))} training and {min(count, len(data.heldout))} held-out rows, seed {seed}; "
        f"rtol and atol 1e-4, one probe a row; bound in {steps} steps of {_variance(run)} variance, with open "
        "end bins; ± standard error"
    )
    return Density(_bits(run, data.train, count, steps, seed), _bits(run, data.heldout, count, steps, seed), protocol)


def _variance(run: Run) -> Literal["large", "learned"]:
    """Return the variance of the steps of the bound: learned, where the model did."""
    return "learned" if run.denoiser.learned_variance else "large"


def _bits(run: Run, source: Source, count: int, steps: int, seed: int) -> Bits:
    """Measure some rows of one split, in batches of the run's fixed size."""
    batch = run.sampler().size
    rows = np.linspace(0, len(source) - 1, min(count, len(source))).astype(np.int64)
    flows: list[Tensor] = []
    bounds: list[Tensor] = []
    for first in range(0, len(rows), batch):
        flow, bound = _batch_bits(run, source.take(rows[first : first + batch]), first, steps, seed)
        flows.append(flow)
        bounds.append(bound)
    return Bits(*_mean_and_error(torch.cat(flows)), *_mean_and_error(torch.cat(bounds)))


def _of_rows(run: Run, generator: Likely, source: Source, count: int) -> Bits:
    """Measure some rows of one split by what their generator knows."""
    rows = np.linspace(0, len(source) - 1, min(count, len(source))).astype(np.int64)
    found = []
    for first in range(0, len(rows), generator.size):
        part = source.take(rows[first : first + generator.size])
        box = torch.from_numpy(uniform(generator.seed, "likelihood condition", 0, first, len(part.x), 4))
        condition = run.recipe.conditioning.read(generator.known, part, part.x, box)
        found.append(generator.bits(part.x, condition, first))
    figures = _mean_and_error(torch.cat(found))
    return Bits(None, None, None, None, *figures) if generator.likelihood == "exact" else Bits(None, None, *figures)


def _mean_and_error(values: Tensor) -> tuple[float, float]:
    """Return the mean of values and its standard error, NaN for a single value."""
    values = values.double()
    error = float(values.std() / len(values) ** 0.5) if len(values) > 1 else float("nan")
    return float(values.mean()), error


def _batch_bits(run: Run, rows: Batch, first: int, steps: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return the bits per dimension of each row, `(n,)`, by the flow and by the bound.

    Args:
        run: The run.
        rows: The rows.
        first: Number of the first of them, which the random numbers depend on.
        steps: Steps of the bound.
        seed: Seed of the noise and the probes.
    """
    denoiser, codec = run.denoiser, build_codec(run.recipe)
    encoded = codec.encode(rows.x)
    x0 = encoded.to(next(denoiser.parameters()).device)
    model = Conditioned(denoiser, _cond(run, rows, encoded, first, seed))

    def noise(step: int, like: Tensor) -> Tensor:
        return normal(seed, "likelihood noise", step, first, len(like), tuple(like.shape[1:])).to(like.device)

    drawn = uniform(seed, "likelihood", 0, first, len(x0), 2 * x0[0].numel())
    shift, sign = torch.from_numpy(drawn).to(x0).reshape(len(x0), 2, *x0.shape[1:]).unbind(1)
    spread = x0 + (shift - 0.5) * codec.bin_width if codec.bin_width else x0
    probe = torch.where(sign < 0.5, -1.0, 1.0)[None]
    with run.arithmetic():
        flow = log_likelihood(model, spread, probes=probe, rtol=1e-4, atol=1e-4)
        times = UniformGrid()(denoiser.schedule, steps)
        width, bounds = codec.bin_width, codec.bounds
        bound = variational_bound(
            model, x0, times, noise=noise, variance=_variance(run), bin_width=width, bounds=bounds
        )
    return bits_per_dim(flow, spread, codec.bin_width).cpu(), bound.total.cpu()


def _cond(run: Run, rows: Batch, encoded: Tensor, first: int, seed: int) -> Cond | None:
    """Return what the network is conditioned on for these rows; None for unconditional models."""
    box = torch.from_numpy(uniform(seed, "likelihood condition", 0, first, len(encoded), 4))
    condition = run.recipe.conditioning.read(known_of(run.recipe), rows, encoded, box)
    embedder = run.denoiser.embedder
    if embedder is None or condition is None:
        return None
    return embedder(condition.to(next(run.denoiser.parameters()).device))
