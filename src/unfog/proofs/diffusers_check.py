"""`unfog verify --peers`: the samplers of other installed toolkits in the harness that measures ours.

A peer is run unchanged on our grids: its noise levels are replaced by those of a problem, and the exact denoiser
stands in for the model. Its state lives in a space of its own, into which `Rescheduled` maps the problem.
"""

import importlib
import importlib.metadata
import json
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import lru_cache, partial
from types import ModuleType
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from torch import Tensor

from unfog.diffusion.denoiser import Denoise, Rescheduled
from unfog.diffusion.sampling import trajectory
from unfog.diffusion.schedules import EDM, CosineContinuous, LinearContinuous, RectifiedFlow, Schedule
from unfog.diffusion.solvers import Solver
from unfog.diffusion.targets import EDMTarget, Eps, Flow, Prediction, Target, V
from unfog.proofs.orders import SOLVERS, Problem, exact, problems
from unfog.runtime.errors import UserError
from unfog.runtime.progress import bar
from unfog.runtime.version import __version__

TOLERANCE = 0.35
"""How far below the stated order a measured one may lie: peers are measured at fewer steps than our own rules."""
EVEN = ("edm, 3-D, uniform", "edm, 3-D, log-snr")
"""Equal steps of sigma/alpha, and of its logarithm: there a rule with frozen weights may keep its order."""
UNEVEN = ("flow, 8-D, karras", "flow, 8-D, warped")
"""With the even ones these are all grids, once each."""
TABLE = LinearContinuous()
"""What the rows of a table are taken from."""
NOISE, PRESERVING, FLOW = EDM(), CosineContinuous(s=0), RectifiedFlow()
"""The spaces of peers: (alpha, sigma) = (1, t), (cos, sin) and (1 - t, t)."""

Past = Sequence[tuple[Tensor, Prediction]]
"""Exact earlier states and the predictions there, the latest last."""


def _size(schedule: Schedule, t: Tensor) -> float:
    """Return sqrt(alpha² + sigma²), by whose ratio states scale between schedules at equal log-SNR."""
    return float(torch.hypot(schedule.alpha(t), schedule.sigma(t)))


@lru_cache
def chosen() -> tuple[Problem, ...]:
    """Return the problems on which peers are measured."""
    return tuple(problem for problem in problems() if problem.name in EVEN + UNEVEN)


@dataclass(frozen=True)
class Peer(ABC):
    """A sampler of another toolkit.

    Attributes:
        name: What it is called here.
        stated: The order that its paper or its parameter states.
        ours: Our rule of the same name, if there is one.
        space: The schedule in which its state lives.
        calls: Evaluations of the model in one step of the grid.
        memory: How many past steps it can be given.
        single: Whether it computes in float32, so that a high order shows at few steps only.
    """

    name: str
    stated: int
    ours: Solver | None
    space: Schedule = NOISE
    calls: int = 1
    memory: int = 0
    single: bool = False

    @abstractmethod
    def run(self, denoise: Denoise, x: Tensor, times: Tensor, past: Past) -> Tensor:
        """Return the state at the last time.

        Args:
            denoise: The exact denoiser in the peer's space.
            x: State at the time after those of `past`, `(batch, dim)`, float64.
            times: All times, those of `past` among them, on the clock of the space.
            past: What went before.
        """

    @property
    def steps(self) -> int:
        """At how many steps, and twice as many, the order is measured."""
        return 40 if self.single and self.stated > 2 else 80

    def end(self, problem: Problem, steps: int, given: bool) -> Tensor:
        """Return where the peer leads, with `given` from exact past steps, as a state of the problem."""
        space, own = self.space, problem.times(steps)
        denoise, times = Rescheduled(problem.denoise, space), space.time(problem.schedule.log_snr(own))
        scales = [_size(space, time) / _size(problem.schedule, t) for time, t in zip(times, own, strict=True)]
        first = self.memory if given else 0
        exactly = problem.before(steps) if first else [problem.start]
        states = [x * scale for x, scale in zip(exactly, scales, strict=False)]
        past = [(states[i], denoise(states[i], times[i])) for i in range(first)]
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of numpy, of how peers mix tensors and arrays
            return self.run(denoise, states[first], times, past).double() / scales[-1]

    def reference(self, problem: Problem, steps: int) -> Tensor:
        """Return where our rule leads, begun alone, in the same space (iPNDM's own clock is sigma/alpha)."""
        assert self.ours is not None
        space = self.space if self.space is FLOW else NOISE
        own = problem.times(steps)
        times = space.time(problem.schedule.log_snr(own))
        x = problem.start * (_size(space, times[0]) / _size(problem.schedule, own[0]))
        with torch.inference_mode():
            for step in trajectory(Rescheduled(problem.denoise, space), x, times, self.ours):
                x = step.x
        return x / (_size(space, times[-1]) / _size(problem.schedule, own[-1]))


Layout = Callable[[Any, Tensor, Tensor], Tensor]
"""Puts levels (and times) into a scheduler and returns the times at which it asks for the model."""


def plain(scheduler: Any, times: Tensor, levels: Tensor) -> Tensor:
    """One evaluation at the start of each step."""
    scheduler.sigmas = levels
    return times[:-1]


def ends(scheduler: Any, times: Tensor, levels: Tensor) -> Tensor:
    """One at either end of each step: Heun."""
    scheduler.sigmas = levels.repeat_interleave(2)[1:-1]
    return times.repeat_interleave(2)[1:-1]


def middle(scheduler: Any, times: Tensor, levels: Tensor) -> Tensor:
    """One at the start of each step and one in the middle of its log-SNR."""
    between = (levels[1:] * levels[:-1]).sqrt()
    scheduler.sigmas = levels.repeat_interleave(2)[1:]
    scheduler.sigmas_interpol = torch.cat([levels[:1], between.repeat_interleave(2)])
    return torch.stack([times[:-1], between], dim=1).flatten()


def circle(scheduler: Any, times: Tensor, levels: Tensor) -> Tensor:
    """One at the start of each step; iPNDM keeps sigma and alpha apart."""
    scheduler.betas, scheduler.alphas = PRESERVING.sigma(times), PRESERVING.alpha(times)
    return times[:-1]


@dataclass(frozen=True, kw_only=True)
class Diffusers(Peer):
    """A scheduler of diffusers that follows any noise levels; its name is that of the class, and its order.

    Attributes:
        config: Its settings.
        output: What it expects of the model.
        layout: Where it keeps its levels.
        keeps: Under which name it remembers past predictions of which kind.
    """

    config: dict[str, Any] = field(default_factory=dict)
    output: Target = Eps()
    layout: Layout = plain
    keeps: tuple[str, str] = ("model_outputs", "x0")

    def run(self, denoise: Denoise, x: Tensor, times: Tensor, past: Past) -> Tensor:
        """Call `step` with exact model outputs; the timestep is a key only."""
        scheduler = getattr(diffusers(), f"{self.name.split()[0]}Scheduler")(**self.config)
        scheduler.set_timesteps(len(times) - 1)
        levels = self.space.sigma(times) / (1 if self.space is FLOW else self.space.alpha(times))
        calls = self.layout(scheduler, times, levels)
        scheduler.timesteps = torch.arange(len(calls), dtype=torch.float64)
        scheduler.set_begin_index(len(past))
        if past:
            name, kind = self.keeps
            setattr(scheduler, name, [getattr(prediction, kind) for _, prediction in past])
            if name == "model_outputs":  # room for the prediction to come, and how many there are
                order = self.config["solver_order"]
                scheduler.model_outputs = ([None] * order + scheduler.model_outputs)[-order:]
                scheduler.lower_order_nums = len(past)
                scheduler.last_sample, scheduler.this_order = past[-1][0], len(past)  # for UniPC's corrector
        for key, t in list(zip(scheduler.timesteps, calls, strict=True))[len(past) :]:
            if hasattr(scheduler, "scale_model_input"):  # some warn where it was not asked; the input stays exact
                scheduler.scale_model_input(x, key)
            prediction = denoise(x, t)
            output = self.output.of(prediction.x0, prediction.eps, t, self.space)
            x = scheduler.step(output, key, x, return_dict=False)[0]
        return x


def diffusers() -> ModuleType:
    """Import diffusers, without its warnings about packages that only its pipelines need."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module("diffusers")


INTERIOR = {"lower_order_final": False, "final_sigmas_type": "sigma_min"}
"""Without these, some schedulers take their last steps, which are interior ones here, by a rule of lower order."""


def schedulers() -> list[Diffusers]:
    """Return the schedulers of diffusers that are measured on any levels."""
    first, second, third = ({"solver_order": order, **INTERIOR} for order in (1, 2, 3))
    deis = [{"solver_order": order, "lower_order_final": False} for order in (2, 3)]
    eps, edm, flow, vp = ("model_outputs", "eps"), EDMTarget(), Flow(), PRESERVING
    dpm2, dpm3, fourth = (SOLVERS[name] for name in ("dpmpp-2m", "dpmpp-3m", "adams-bashforth 4"))
    return [
        Diffusers("EulerDiscrete", 1, SOLVERS["euler"], single=True),
        Diffusers("EDMEuler", 1, SOLVERS["euler"], single=True, output=edm),
        Diffusers("FlowMatchEulerDiscrete", 1, SOLVERS["euler"], FLOW, single=True, output=flow),
        Diffusers("DPMSolverMultistep 1", 1, SOLVERS["ddim"], vp, single=True, config=first),
        Diffusers("HeunDiscrete", 2, SOLVERS["heun"], calls=2, layout=ends),
        Diffusers("FlowMatchHeunDiscrete", 2, SOLVERS["heun"], FLOW, calls=2, single=True, output=flow, layout=ends),
        Diffusers("KDPM2Discrete", 2, SOLVERS["dpm-solver-2"], calls=2, layout=middle),
        Diffusers("DPMSolverSinglestep 2", 2, None, vp, config=second),
        Diffusers("DPMSolverMultistep 2", 2, dpm2, vp, memory=1, single=True, config=second),
        Diffusers("DPMSolverMultistep 3", 3, dpm3, vp, memory=2, single=True, config=third),
        Diffusers("EDMDPMSolverMultistep 2", 2, dpm2, memory=1, config=second, output=edm),
        Diffusers("EDMDPMSolverMultistep 3", 3, dpm3, memory=2, config=third, output=edm),
        # With the corrector, the order is one above that of the predictor (Zhao et al. 2023, theorem 3.1).
        Diffusers("UniPCMultistep 2", 3, SOLVERS["unipc p=2"], vp, memory=2, config=second),
        Diffusers("UniPCMultistep 3", 4, SOLVERS["unipc p=3"], vp, memory=3, config=third),
        # Polynomials in log(sigma/alpha), where our Adams-Bashforth has them in sigma/alpha: no rule of ours.
        Diffusers("DEISMultistep 2", 2, None, vp, memory=1, config=deis[0], keeps=eps),
        Diffusers("DEISMultistep 3", 3, None, vp, memory=2, config=deis[1], keeps=eps),
        Diffusers("LMSDiscrete", 4, fourth, memory=3, keeps=("derivatives", "eps")),
        Diffusers("IPNDM", 4, fourth, vp, memory=3, output=V(), layout=circle, keeps=("ets", "eps")),
    ]


@dataclass(frozen=True, kw_only=True)
class KDiffusion(Peer):
    """A sampler of k-diffusion, `function(model, x, sigmas)` with `model(x, sigma)` giving x0."""

    function: str

    def run(self, denoise: Denoise, x: Tensor, times: Tensor, past: Past) -> Tensor:
        """Call the function on the levels, without its own bar."""

        def model(state: Tensor, sigma: Tensor, **_: Any) -> Tensor:
            return denoise(state, sigma.flatten()[0]).x0

        sampling = importlib.import_module("k_diffusion.sampling")
        reached: Tensor = getattr(sampling, self.function)(model, x, times, disable=True)
        return reached


def functions() -> list[KDiffusion]:
    """Return the deterministic samplers of k-diffusion."""
    cases: list[tuple[str, int, Solver, int]] = [
        ("sample_euler", 1, SOLVERS["euler"], 1),
        ("sample_heun", 2, SOLVERS["heun"], 2),
        ("sample_dpm_2", 2, SOLVERS["dpm-solver-2"], 2),
        ("sample_lms", 4, SOLVERS["adams-bashforth 4"], 1),
        ("sample_dpmpp_2m", 2, SOLVERS["dpmpp-2m"], 1),
    ]
    return [KDiffusion(name, order, ours, calls=calls, function=name) for name, order, ours, calls in cases]


@dataclass(frozen=True)
class Row:
    """What was measured of one peer.

    Attributes:
        name: What it is called.
        stated: The order that it states.
        orders: The measured order on each problem, from exact past steps where it can be given any.
        alone: The same begun alone; None where it reads no past or can be given none.
        ours: The same of our rule of that name, begun alone.
        error_10: Root mean square error at 10 evaluations, over all problems.
        error_20: The same at 20.
        apart: Root mean square distance from where our rule leads in 20 steps, the largest; None where there is none.
    """

    name: str
    stated: int
    orders: dict[str, float]
    alone: dict[str, float] | None
    ours: dict[str, float] | None
    error_10: float
    error_20: float
    apart: float | None

    @property
    def verdict(self) -> str:
        """The orders in words."""
        kept = [name for name, order in self.orders.items() if order >= self.stated - TOLERANCE]
        if len(kept) == len(self.orders):
            return "as stated"
        return "lost, uneven" if set(kept) & set(EVEN) else "order lost"


def _rms(difference: Tensor) -> float:
    return max(float(difference.square().mean().sqrt()), 1e-16)


def _fit(error: Callable[[Problem, int], float], steps: int) -> dict[str, float]:
    """Return the order on each problem between `steps` and twice as many."""
    return {problem.name: math.log2(error(problem, steps) / error(problem, 2 * steps)) for problem in chosen()}


def measure(peer: Peer) -> Row:
    """Fit the order of a peer, and that of our rule of the same name."""

    def theirs(problem: Problem, steps: int, given: bool = False) -> float:
        return _rms(peer.end(problem, steps, given) - problem.end)

    def our(problem: Problem, steps: int) -> float:
        return _rms(peer.reference(problem, steps) - problem.end)

    def total(calls: int) -> float:
        errors = [theirs(problem, calls // peer.calls) for problem in chosen()]
        return math.sqrt(sum(error**2 for error in errors) / len(errors))

    alone = _fit(theirs, peer.steps)
    given = _fit(lambda problem, steps: theirs(problem, steps, True), peer.steps) if peer.memory else alone
    ours = apart = None
    if peer.ours is not None:
        ours = _fit(our, peer.steps)
        apart = max(_rms(peer.end(one, 20, False) - peer.reference(one, 20)) for one in chosen())
    return Row(peer.name, peer.stated, given, alone if peer.memory else None, ours, total(10), total(20), apart)


@dataclass(frozen=True)
class Spaced:
    """DDIM of diffusers, whose steps are rows of its table, under one of its spacings.

    Its previous time is t - T // n whatever the grid, in a table of T rows and n steps. Where the grid says otherwise
    (`linspace`; `trailing` where n does not divide T) the state is no longer at the time that the model is given.
    """

    spacing: str
    rows: int = 1000

    def keys(self, steps: int) -> tuple[Any, Tensor]:
        """Return the scheduler and those of its rows at which |log_snr| is at most 2."""
        scheduler = diffusers().DDIMScheduler(self.rows, timestep_spacing=self.spacing, clip_sample=False)
        scheduler.set_timesteps(steps)
        levels = TABLE.log_snr((scheduler.timesteps.double() + 1) / self.rows)
        return scheduler, scheduler.timesteps[levels.abs() <= 2]

    def errors(self, steps: int) -> tuple[int, float, float]:
        """Return the number of interior steps, the error behind them and the distance from our DDIM on these times."""
        problem = next(one for one in chosen() if one.name == EVEN[0])
        scheduler, keys = self.keys(steps)
        scheduler.alphas_cumprod = TABLE.alpha((torch.arange(self.rows, dtype=torch.float64) + 1) / self.rows) ** 2
        times = (keys.double() + 1) / self.rows
        ratios = (TABLE.sigma(times) / TABLE.alpha(times)).tolist()
        denoise = Rescheduled(problem.denoise, TABLE)
        z, z_end = exact(problem.denoise, problem.start, [float(problem.times(1)[0]), ratios[0], ratios[-1]])[1:]
        x = start = z * float(TABLE.alpha(times[0]))
        with torch.inference_mode():
            for key, t in zip(keys[:-1], times[:-1], strict=True):
                x = scheduler.step(denoise(x, t).eps, int(key), x, return_dict=False)[0]
            *_, ours = trajectory(denoise, start, times, SOLVERS["ddim"])
        return len(keys) - 1, _rms(x / float(TABLE.alpha(times[-1])) - z_end), _rms(x - ours.x)

    def measure(self) -> Row:
        """Fit the order between 80 and 160 steps of the whole table, and look at 10 and 20 in the interior."""
        (few, error, _), (many, less, _) = self.errors(80), self.errors(160)
        orders = {EVEN[0]: math.log(error / less) / math.log(many / few)}
        numbers = [next(n for n in range(wanted, self.rows) if len(self.keys(n)[1]) > wanted) for wanted in (10, 20)]
        (_, error_10, _), (_, error_20, apart) = map(self.errors, numbers)
        return Row(f"DDIM, {self.spacing}", 1, orders, None, None, error_10, error_20, apart)


@dataclass(frozen=True)
class Report:
    """Everything that was measured of other toolkits."""

    rows: list[Row]
    versions: dict[str, str]

    @property
    def passed(self) -> bool:
        """True: what other toolkits do never fails our own verification."""
        return True

    def to_json(self) -> str:
        """Return all of it as JSON text, with the versions of the toolkits."""
        rows = [{**asdict(row), "verdict": row.verdict} for row in self.rows]
        return json.dumps({"unfog": __version__, "versions": self.versions, "peers": rows}, indent=1) + "\n"

    def table(self) -> Table:
        """Return one line for each peer."""
        named = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        rows = Table(box=None, padding=(0, 1, 0, 0), caption_justify="left")
        rows.add_column("what", no_wrap=True)
        for column in ("stated", "measured", "alone", "ours", "apart"):
            rows.add_column(column, justify="right", no_wrap=True)
        rows.add_column("", no_wrap=True)
        for row in self.rows:
            spans = [_span(orders) for orders in (row.orders, row.alone, row.ours)]
            apart = "" if row.apart is None else f"{row.apart:.0e}"
            rows.add_row(row.name, str(row.stated), *spans, apart, row.verdict)
        rows.caption = (
            f"{named}\n"
            "measured: order on four grids, from exact past steps where the peer reads any;\n"
            "  of DDIM, in its table of 1000 entries at 80 and 160 steps.\n"
            "alone, ours: begun alone, and our rule of the same name begun alone.\n"
            "apart: distance from our state after 20 steps; 1e-7 is the rounding of float32.\n"
            "--json also keeps the errors after 10 and 20 evaluations."
        )
        return rows


def _span(orders: dict[str, float] | None) -> str:
    if not orders:
        return ""
    low, high = f"{min(orders.values()):.2f}", f"{max(orders.values()):.2f}"
    return low if low == high else f"{low}–{high}"


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "of unknown version"


def report(console: Console | None = None) -> Report:
    """Measure every peer of the toolkits that are installed, with a progress bar.

    Args:
        console: Where the bar goes; a quiet one hides it.

    Raises: UserError: If none is installed.
    """
    tasks: list[tuple[str, Callable[[], Row]]] = []
    versions: dict[str, str] = {}
    with suppress(ModuleNotFoundError):
        diffusers()
        versions["diffusers"] = _version("diffusers")
        tasks += [(peer.name, partial(measure, peer)) for peer in schedulers()]
        spaced = [Spaced(spacing) for spacing in ("leading", "trailing", "linspace")]
        tasks += [(f"DDIM, {one.spacing}", one.measure) for one in spaced]
    with suppress(ModuleNotFoundError):
        importlib.import_module("k_diffusion.sampling")
        versions["k-diffusion"] = _version("k-diffusion")
        tasks += [(peer.name, partial(measure, peer)) for peer in functions()]
    if not tasks:
        raise UserError("no other toolkit is installed: pip install 'unfog[bench]' brings diffusers")
    columns = (TextColumn("{task.description:32}"), BarColumn(), TimeRemainingColumn())
    rows: list[Row] = []
    with bar(console or Console(), *columns) as progress:
        all_of_them = progress.add_task("", total=len(tasks))
        for name, run in tasks:
            progress.update(all_of_them, description=name)
            rows.append(run())
            progress.advance(all_of_them)
    return Report(rows, versions)
