"""`unfog verify --learned`: flow maps that are trained here, against the exact one of a mixture of Gaussians.

The exact map Phi(x, t, s) follows the probability flow of the mixture's own denoiser from t to s. A learned map f is
off by its end points, |f(x, 1, 0) - Phi(x, 1, 0)|, and by its composition, |f(f(x, 1, r), r, 0) - f(x, 1, 0)|, which is
0 for a flow. Both are root mean squares over noise, as shares of the spread of the data, which is the root mean square
distance from their mean.
"""

import copy
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from unfog.diffusion.denoiser import Denoiser
from unfog.diffusion.grids import UniformGrid
from unfog.diffusion.objectives import flow_map_loss, jump_loss
from unfog.diffusion.oracle import Mixture, MixtureDenoiser
from unfog.diffusion.sampling import follow, trajectory
from unfog.diffusion.schedules import RectifiedFlow
from unfog.diffusion.solvers import Heun
from unfog.networks.layers import ScalarEmbedding
from unfog.networks.mlp import MLP
from unfog.proofs.orders import mixture
from unfog.runtime.brief import brief
from unfog.runtime.progress import working
from unfog.runtime.version import __version__

FLOW = RectifiedFlow()
LIMITS = {2: 0.03, 8: 0.06}
"""By the number of dimensions, how far end points may be off; compositions, which join two maps, twice as far."""
CONTROL = 0.3
"""How far an untrained map is off, at least."""
WIDTH, BATCH, RATE = 64, 512, 3e-3
"""Features of the network, rows of a batch, and learning rate."""
HALFWAY = 0.5
"""The time r between."""
MEASURED = 4096
"""Points of noise."""
POINTS = 32
"""Steps of a trajectory to learn from."""
Loss = Callable[[Denoiser, torch.Generator, float], Tensor]
"""(map, random numbers, share of the training that is done) -> the loss of each row of a batch."""


@dataclass(frozen=True)
class Learned:
    """A map that was trained, and by how much it is off.

    Attributes:
        name: How it was trained.
        dim: Number of dimensions.
        ends: Of its end points.
        composed: Of its compositions.
        untrained: Of the end points before the training.
    """

    name: str
    dim: int
    ends: float
    composed: float
    untrained: float

    @property
    def limit(self) -> float:
        """How far its end points may be off."""
        return LIMITS[self.dim]

    @property
    def passed(self) -> bool:
        """Whether it is a flow map, and was none before."""
        return self.ends <= self.limit and self.composed <= 2 * self.limit and self.untrained >= CONTROL


@dataclass(frozen=True)
class Report:
    """All that was measured."""

    rows: list[Learned]

    __repr__ = brief

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""
        return all(row.passed for row in self.rows)

    def to_json(self) -> str:
        """Return all of it as JSON text."""
        rows = [{**asdict(row), "limit": row.limit, "passed": row.passed} for row in self.rows]
        return json.dumps({"unfog": __version__, "passed": self.passed, "learned": rows}, indent=1) + "\n"

    def table(self) -> Table:
        """Return a line for each map."""
        found = Table(box=None, padding=(0, 1, 0, 0), caption_justify="left")
        found.add_column("what", no_wrap=True)
        for column in ("limit", "end points", "composition", "untrained"):
            found.add_column(column, justify="right", no_wrap=True)
        found.add_column("", no_wrap=True, min_width=4)
        for row in self.rows:
            numbers = (f"{one:.1%}" for one in (row.ends, row.composed, row.untrained))
            verdict = "pass" if row.passed else "[bold red]FAIL[/]"
            found.add_row(f"{row.name}, {row.dim}-D", f"≤ {row.limit:.0%}", *numbers, verdict)
        found.caption = (
            "Root mean squares as shares of the spread of the data, which are mixtures of four Gaussians.\n"
            "end points: from noise to data in one step, compared with the exact flow.\n"
            "composition: two steps compared with one, at most twice the limit; of a flow they are equal.\n"
            f"untrained: end points before the training, at least {CONTROL:.0%}."
        )
        return found


def of_data(data: Mixture, last: float = 0.02, straight: float = 0.6) -> Loss:
    """Return the loss of a flow map that is learned from data alone, at points that are noised data.

    The pair of each point is the mean of all data and noise that lead there, which is what more and more draws tend to:
    what is measured is the map that is learned, not the noise of the draws.

    Args:
        data: Is drawn from.
        last: The ratio of `flow_map_loss` at the end of its fall, four fifths of the training.
        straight: Share of the rows that are denoised.
    """
    exact = MixtureDenoiser(data, FLOW)

    def loss(model: Denoiser, random: torch.Generator, progress: float) -> Tensor:
        x0 = data.sample(BATCH, random).float()
        noise, drawn = torch.randn(x0.shape, generator=random), torch.rand(BATCH, 3, generator=random).double()
        jump = drawn[:, 0] >= straight
        t = (0.5 * (drawn[:, 1] + drawn[:, 1].sqrt())).clamp(min=1e-3)
        t = torch.where(jump & (torch.rand(BATCH, generator=random) < 0.25), 1.0, t)
        s = torch.where(jump, torch.where(drawn[:, 0] < (1 + straight) / 2, 0.0, drawn[:, 2] * t), t)
        x0, noise, _ = exact(FLOW.add_noise(x0, noise, t).double(), t)
        x0, noise = x0.float(), noise.float()
        return flow_map_loss(model, x0, t=t, s=s, ratio=last ** min(1.0, progress / 0.8), noise=noise)

    return loss


def of_trajectories(data: Mixture, count: int = 8192) -> Loss:
    """Return the loss of a flow map that is learned along exact trajectories."""
    start = torch.randn(count, data.means.shape[1], generator=torch.Generator().manual_seed(1)).double()
    times = UniformGrid()(FLOW, POINTS)
    with torch.inference_mode():
        steps = [step.x.float() for step in trajectory(MixtureDenoiser(data, FLOW), start, times, Heun())]
    states = torch.stack([start.float(), *steps]).clone()

    def loss(model: Denoiser, random: torch.Generator, progress: float) -> Tensor:
        rows = torch.randint(count, (BATCH,), generator=random)
        drawn = torch.rand(BATCH, 3, generator=random)
        first = torch.where(drawn[:, 0] < 0.25, 0, (drawn[:, 1] * POINTS).long())
        then = torch.where(drawn[:, 2] < 0.5, POINTS, first + 1 + (2 * drawn[:, 2] - 1) * (POINTS - first)).long()
        then = then.clamp(max=POINTS)
        return jump_loss(model, states[first, rows], states[then, rows], t=times[first], s=times[then])

    return loss


KINDS: dict[str, Callable[[Mixture], Loss]] = {"from data": of_data, "along trajectories": of_trajectories}
STEPS = {
    ("from data", 2): 5000,
    ("from data", 8): 3700,
    ("along trajectories", 2): 1000,
    ("along trajectories", 8): 1200,
}
"""Steps of the training, by how it learns and in how many dimensions."""


def untrained(dim: int, seed: int = 0) -> Denoiser:
    """Return a map before its training."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Denoiser(MLP(dim, width=WIDTH), FLOW, span=ScalarEmbedding(WIDTH))


def trained(
    model: Denoiser, loss: Loss, steps: int, seed: int = 0, watch: Callable[[], object] | None = None
) -> Denoiser:
    """Train a map, and return its average over the last steps."""
    random = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), RATE, betas=(0.9, 0.99), weight_decay=0.0)
    average = copy.deepcopy(model)
    for step in range(steps):
        rate = RATE * min(1.0, (step + 1) / 200, (steps - step) / (0.4 * steps))
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        torch.autograd.backward(loss(model, random, step / steps).mean())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            decay = min(0.998, (1 + step) / (10 + step))
            torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
        if watch is not None:
            watch()
    return average


def led(model: Denoiser, x: Tensor, t: float, s: float) -> Tensor:
    """Return where a map leads from time `t` to time `s`."""
    times = [torch.full((len(x),), one, dtype=torch.float64) for one in (t, s)]
    with torch.inference_mode():
        pair = model(x, times[0], None, times[1])
        return FLOW.add_noise(pair.x0, pair.eps, times[1])


def measured(model: Denoiser, data: Mixture) -> tuple[float, float]:
    """Return by how much a map's end points are off, and its compositions."""
    noise = torch.randn(MEASURED, data.means.shape[1], generator=torch.Generator().manual_seed(2))
    exact = follow(MixtureDenoiser(data, FLOW), noise.double(), UniformGrid()(FLOW, 128), Heun()).float()
    spread = (exact - exact.mean(0)).square().sum(1).mean().sqrt()
    once, twice = led(model, noise, 1.0, 0.0), led(model, led(model, noise, 1.0, HALFWAY), HALFWAY, 0.0)
    off = [(one - other).square().sum(1).mean().sqrt() / spread for one, other in ((once, exact), (twice, once))]
    return float(off[0]), float(off[1])


def verify(console: Console | None = None) -> Report:
    """Train a map in each way and number of dimensions, and measure it.

    Args:
        console: Where the bar goes; a quiet one hides it.
    """
    rows, threads = [], torch.get_num_threads()
    torch.set_num_threads(1)  # such small products are slower on several
    try:
        with working("flow maps", sum(STEPS.values()), console=console or Console()) as work:
            for dim in LIMITS:
                data = mixture(dim, dim)
                before = measured(untrained(dim), data)[0]
                for name, kind in KINDS.items():
                    work.describe(f"{name}, {dim}-D")
                    model = trained(untrained(dim), kind(data), STEPS[name, dim], watch=lambda: work.advance(1))
                    rows.append(Learned(name, dim, *measured(model, data), before))
    finally:
        torch.set_num_threads(threads)
    return Report(rows)
