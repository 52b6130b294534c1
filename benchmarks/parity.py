"""How far unfog's trajectories lie from those of diffusers' schedulers, with one and the same network.

    .venv/bin/python benchmarks/parity.py

Writes docs/parity.md. The network is the exact denoiser of a mixture of Gaussians, in float64: each scheduler asks it
for what it was made for, noise or velocity, with its own scaled inputs and timesteps.
"""

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import diffusers
import torch
from torch import Tensor

from unfog.diffusion.denoiser import Denoise, Rescheduled, edm_clock
from unfog.diffusion.grids import KarrasGrid, LeadingGrid, LinspaceGrid, TrailingGrid, UniformGrid
from unfog.diffusion.oracle import Mixture, MixtureDenoiser
from unfog.diffusion.sampling import follow, trajectory
from unfog.diffusion.schedules import EDM, RectifiedFlow, Schedule, Shifted, as_time
from unfog.diffusion.solvers import (
    DDIM,
    AdamsBashforth,
    Ancestral,
    DPMSolver2,
    DPMSolverPP2M,
    DPMSolverPP3M,
    DPMSolverPPSDE2M,
    Euler,
    EulerAncestral,
    Heun,
    Solver,
    Step,
    UniPC,
)
from unfog.diffusion.tables import Table
from unfog.diffusion.targets import EDMTarget, Flow, Prediction

TOLERANCE = 1e-5
"""The largest difference of two states that are called equal."""
MIXTURE = Mixture(
    weights=as_time([0.3, 0.45, 0.25]),
    means=as_time([[0.8, -0.3], [-0.5, 0.6], [0.1, -0.7]]),
    variances=as_time([[0.30, 0.12], [0.20, 0.25], [0.10, 0.40]]),
)
TABLE = Table(tuple(diffusers.DDPMScheduler().alphas_cumprod.tolist()))
"""diffusers' linear table, whose entries are rounded to float32: ours is 'linear' before the rounding."""
CLOCK = edm_clock(TABLE)
FLOW = RectifiedFlow()
LEARNED = 0.3
"""What a network that learned its variance says of it: v, everywhere."""
PAGE = Path(__file__).parent.parent / "docs" / "parity.md"

Scheduler = Any
"""One of diffusers' schedulers; they share no useful type."""
Network = Callable[[Tensor, Tensor], Tensor]
"""(scaled state, timestep) -> output: what diffusers calls a model."""


@dataclass(frozen=True)
class Learned:
    """A denoiser that says of its variance what a network with the constant output `LEARNED` says."""

    denoise: Denoise

    @property
    def schedule(self) -> Schedule:
        """The denoiser's schedule."""
        return self.denoise.schedule

    def __call__(self, x: Tensor, t: Tensor) -> Prediction:
        """Predict (x0, eps) and the variance fraction."""
        return self.denoise(x, t)._replace(variance_fraction=torch.full_like(x, (LEARNED + 1) / 2))


ON_TABLE, ON_FLOW, ON_EDM = (MixtureDenoiser(MIXTURE, schedule) for schedule in (TABLE, FLOW, EDM()))
ON_CLOCK = Rescheduled(ON_TABLE, CLOCK)


def eps(x: Tensor, timestep: Tensor) -> Tensor:
    """Return the noise in a state of the table at an index, which need not be whole."""
    return ON_TABLE(x, (timestep.double() + 1) / len(TABLE.alphas_cumprod)).eps


def eps_and_variance(x: Tensor, timestep: Tensor) -> Tensor:
    """Return the noise, and the constant that stands for a learned variance."""
    return torch.cat([eps(x, timestep), torch.full_like(x, LEARNED)], dim=1)


def velocity(x: Tensor, timestep: Tensor) -> Tensor:
    """Return the velocity of the straight path at 1000·t."""
    t = timestep.double() / 1000
    return Flow().of(*ON_FLOW(x, t)[:2], t, FLOW)


def preconditioned(x: Tensor, timestep: Tensor) -> Tensor:
    """Return the output of EDM's network, which is shown x/sqrt(sigma² + 1/4) and ln(sigma)/4."""
    sigma = (4 * timestep.double()).exp()
    return EDMTarget().of(*ON_EDM(x * (sigma**2 + 0.25).sqrt(), sigma)[:2], sigma, ON_EDM.schedule)


@dataclass(frozen=True)
class Pair:
    """A scheduler of diffusers and what should be the same here.

    Attributes:
        scheduler: Its class, with its settings.
        solver: Our rule.
        times: Our times.
        denoise: Our network.
        network: The same one, as diffusers asks for it.
        given: What its `set_timesteps` is given; default: the number of steps.
        options: What its `step` is given besides.
        levels: Whether the network gets the noise level of the scheduler's step, and not its timestep, which with
            sigmas between the table's entries is a rounded one.
        note: What had to be chosen, or what is wrong with the scheduler.
    """

    scheduler: partial[Scheduler]
    solver: Solver
    times: Tensor
    denoise: Denoise = ON_TABLE
    network: Network = eps
    given: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    levels: bool = False
    note: str = ""

    @property
    def name(self) -> str:
        """The scheduler's name and our rule."""
        given = ((f.name, getattr(self.solver, f.name), f.default) for f in fields(self.solver))  # type: ignore[arg-type]
        words = ", ".join(f"{name}={value!r}" for name, value, default in given if value != default)
        return f"{self.scheduler.func.__name__.removesuffix('Scheduler')} = {type(self.solver).__name__}({words})"

    @property
    def settings(self) -> str:
        """The scheduler's settings, as one writes them."""
        words = [f"{name}={value!r}" for name, value in self.scheduler.keywords.items()]
        words += [f"{name}={value!r}" for name, value in self.options.items()]
        return ", ".join(words + [f"{name} given" for name in self.given if name != "num_inference_steps"])

    @property
    def steps(self) -> int:
        """Number of diffusers' steps."""
        return int(self.given.get("num_inference_steps", len(self.times) - 1))

    @property
    def id(self) -> str:
        """Name, settings and steps in one line."""
        return f"{self.name}, {self.settings}, {self.steps} steps"


def draw(step: int, like: Tensor) -> Tensor:
    """Return the noise of a step, the same for both."""
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(step), dtype=torch.float64)


def start(pair: Pair, count: int = 64) -> Tensor:
    """Return a state at the first of a pair's times."""
    noise = torch.randn(count, 2, generator=torch.Generator().manual_seed(2**32), dtype=torch.float64)
    return noise * size(pair.denoise.schedule, pair.times[0])


def size(schedule: Schedule, t: Tensor) -> Tensor:
    """Return sqrt(alpha² + sigma²), the scale of a state."""
    return torch.hypot(schedule.alpha(t), schedule.sigma(t))


def widen(scheduler: Scheduler) -> None:
    """Turn a scheduler's tensors from float32 to float64, for beta = 1 - a/b loses four digits near the data."""
    for name, value in vars(scheduler).items():
        if isinstance(value, Tensor) and value.dtype == torch.float32:
            setattr(scheduler, name, value.double())


def ours(pair: Pair, x: Tensor) -> list[Tensor]:
    """Return our states behind each step."""
    with torch.inference_mode():
        return [step.x for step in trajectory(pair.denoise, x, pair.times, pair.solver, noise=draw)]


def theirs(pair: Pair, x: Tensor, exact: tuple[Tensor, ...] = ()) -> list[Tensor]:
    """Return diffusers' states behind each step; the first states may be replaced by exact ones."""
    scheduler = pair.scheduler()
    widen(scheduler)
    scheduler.set_timesteps(**(pair.given or {"num_inference_steps": pair.steps}))
    widen(scheduler)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)  # else one that finds its first timestep twice begins at the second
    module, states = sys.modules[type(scheduler).__module__], []
    for index, timestep in enumerate(scheduler.timesteps):
        x = exact[index] if index < len(exact) else x
        fed = timestep
        if pair.levels:
            fed = len(TABLE.alphas_cumprod) * TABLE.time(-2 * scheduler.sigmas[index].log()) - 1
        scaled = scheduler.scale_model_input(x, timestep) if hasattr(scheduler, "scale_model_input") else x
        output = pair.network(scaled, fed)
        noise = draw(index, x)
        with patch.object(module, "randn_tensor", lambda *_, noise=noise, **__: noise, create=True):
            x = scheduler.step(output, timestep, x, **pair.options).prev_sample
        # a rule of two evaluations calls `step` for each of them
        if getattr(scheduler, "state_in_first_order", True) or index == len(scheduler.timesteps) - 1:
            states.append(x)
    return states


def largest_difference(pair: Pair) -> float:
    """Return the largest difference between the two trajectories, over the scale of a state at each time."""
    x = start(pair)
    left, right = ours(pair, x), theirs(pair, x)
    left += left[-1:] * (len(right) - len(left))  # where diffusers' last step stands still ours is left out
    sizes = [size(pair.denoise.schedule, t) for t in pair.times[1:]]
    sizes += sizes[-1:] * (len(right) - len(sizes))
    differences = [float((a - b).abs().max() / c) for a, b, c in zip(left, right, sizes, strict=True)]
    return math.inf if any(math.isnan(value) for value in differences) else max(differences)


def flow_to(x: Tensor, begin: Tensor, end: Tensor, steps: int = 1000) -> Tensor:
    """Return the exact solution on the table from `begin` to `end`, to about seven digits."""
    low, high = float(TABLE.log_snr(begin)), min(float(TABLE.log_snr(end)), 30.0)
    times = TABLE.time(torch.linspace(low, high, steps, dtype=torch.float64))
    times[0] = begin
    times = torch.cat([times, end[None]]) if float(end) == 0 else torch.cat([times[:-1], end[None]])
    return follow(ON_TABLE, x, times, DPMSolverPP3M())


def errors(pair: Pair) -> tuple[float, float]:
    """Return our and diffusers' root mean square distance from the exact solution, at the last of a pair's times."""
    x = start(pair, 1000)
    exact = flow_to(x, pair.times[0], pair.times[-1])
    return rms(ours(pair, x)[-1] - exact), rms(theirs(pair, x)[-1] - exact)


def rms(x: Tensor) -> float:
    """Return the root mean square."""
    return float(x.square().mean().sqrt())


def karras(steps: int) -> Tensor:
    """Return Karras' times on the table, from its own highest to its own lowest level."""
    first, last = (float(torch.exp(-TABLE.log_snr(t) / 2)) for t in (TABLE.t_first, 1.0))
    return KarrasGrid(sigma_max=last, sigma_min=first)(TABLE, steps)


def on_clock(times: Tensor) -> Tensor:
    """Return the times of the EDM clock at which the table has the same noise level."""
    return CLOCK.time(TABLE.log_snr(times)).clamp(max=CLOCK.t_max)


def third_order(steps: int) -> Pair:
    """Return the third-order multistep rule at equal steps of the log-SNR."""
    low, high = (float(TABLE.log_snr(t)) for t in (1.0, TABLE.t_first))
    times = TABLE.time(torch.linspace(low, high, steps, dtype=torch.float64))
    scheduler = partial(
        diffusers.DPMSolverMultistepScheduler, solver_order=3, use_exponential_sigmas=True, lower_order_final=False
    )
    note = "the weight of the quadratic term is half of what the integral gives, so that the rule is of second order"
    return Pair(scheduler, DPMSolverPP3M(), torch.cat([times, as_time([0.0])]), levels=True, note=note)


def third_order_errors(steps: int) -> tuple[float, float]:
    """Return our and diffusers' error at the first trained time, of rules whose first two steps are exact."""
    pair = third_order(steps)
    times, x = pair.times[:-1], [start(pair, 200)]
    for t, s in pairwise(times[:3]):
        x.append(flow_to(x[-1], t, s, 100))
    exact = flow_to(x[-1], times[2], times[-1])
    past = [Step(times[i], times[i + 1], x[i + 1], ON_TABLE(x[i], times[i])) for i in range(2)]
    left = list(trajectory(ON_TABLE, x[-1], times[2:], pair.solver, past=past))[-1].x
    return rms(left - exact), rms(theirs(pair, x[0], tuple(x))[-2] - exact)


def pairs() -> list[Pair]:
    """Return the pairs that are equal."""
    return [*on_the_table(), *multistep(), *behind_the_edm_clock(), *other_schedules()]


def on_the_table() -> list[Pair]:
    """Return the pairs of DDPM and DDIM."""
    ddpm = partial(diffusers.DDPMScheduler, clip_sample=False)
    ddim = partial(diffusers.DDIMScheduler, clip_sample=False)
    learned = {"denoise": Learned(ON_TABLE), "network": eps_and_variance}
    leading, trailing = LeadingGrid()(TABLE, 50), TrailingGrid()(TABLE, 50)
    found = []
    for times in (UniformGrid()(TABLE, 1000), leading):
        found += [
            Pair(partial(ddpm, variance_type="fixed_small"), Ancestral(), times),
            Pair(partial(ddpm, variance_type="fixed_large"), Ancestral("large"), times),
            Pair(partial(ddpm, variance_type="learned_range"), Ancestral("learned"), times, **learned),
        ]
    found += [
        Pair(partial(ddpm, timestep_spacing="trailing"), Ancestral(), trailing),
        Pair(partial(ddpm, timestep_spacing="linspace"), Ancestral(), LinspaceGrid()(TABLE, 50)),
    ]
    for one, offset in ((True, 0), (True, 1), (False, 1)):
        times = LeadingGrid(offset=offset, end="data" if one else "first")(TABLE, 50)
        found.append(Pair(partial(ddim, set_alpha_to_one=one, steps_offset=offset), DDIM(), times))
    still = "diffusers' last step leads from the first timestep to itself; unfog has no such step"
    return [
        *found,
        Pair(
            partial(ddim, set_alpha_to_one=False), DDIM(), leading[:-1], given={"num_inference_steps": 50}, note=still
        ),
        Pair(ddim, DDIM(0.5), leading, options={"eta": 0.5}),
        Pair(ddim, DDIM(1.0), leading, options={"eta": 1.0}),
        Pair(partial(ddim, timestep_spacing="trailing"), DDIM(), trailing),
        Pair(partial(ddim, timestep_spacing="trailing"), DDIM(0.5), trailing, options={"eta": 0.5}),
    ]


def multistep() -> list[Pair]:
    """Return the pairs of DPM-Solver++ and UniPC."""
    dpm, unipc = diffusers.DPMSolverMultistepScheduler, diffusers.UniPCMultistepScheduler
    linspace = LinspaceGrid(drop_last=True)(TABLE, 20)
    first = LinspaceGrid(drop_last=True, end="first")(TABLE, 20)
    note = "the network gets the sigma of each step, since diffusers rounds the timesteps between the table's entries"
    shown = {"levels": True, "note": note}
    short = "in its last but one step diffusers falls to order 2 unless lower_order_final is off, and then its last "
    short += "step cannot lead to clean data: final_sigmas_type='sigma_min'"
    sde = partial(dpm, algorithm_type="sde-dpmsolver++")
    high = partial(unipc, solver_order=3, lower_order_final=False, final_sigmas_type="sigma_min")
    return [
        Pair(partial(dpm, solver_order=2), DPMSolverPP2M(), linspace),
        Pair(partial(dpm, timestep_spacing="leading"), DPMSolverPP2M(), LeadingGrid(drop_last=True)(TABLE, 20)),
        Pair(partial(dpm, timestep_spacing="trailing"), DPMSolverPP2M(), TrailingGrid()(TABLE, 20)),
        Pair(partial(dpm, use_karras_sigmas=True), DPMSolverPP2M(), karras(20), **shown),
        Pair(partial(dpm, final_sigmas_type="sigma_min"), DPMSolverPP2M(), first),
        Pair(sde, DPMSolverPPSDE2M(), linspace),
        Pair(partial(sde, use_karras_sigmas=True), DPMSolverPPSDE2M(), karras(20), **shown),
        Pair(partial(unipc, solver_order=2), UniPC(2), linspace),
        Pair(partial(unipc, solver_order=2, use_karras_sigmas=True), UniPC(2), karras(20), **shown),
        Pair(high, UniPC(3), first, note=short),
    ]


def behind_the_edm_clock() -> list[Pair]:
    """Return the pairs of the schedulers that work in (x/alpha, sigma/alpha)."""
    linspace, clock_karras = on_clock(LinspaceGrid()(TABLE, 28)), on_clock(karras(28))
    whole = "28 steps, whose linspace timesteps are whole: between two entries diffusers interpolates sigma, and "
    whole += "unfog its logarithm"
    found = []
    betas = {"beta_start": 1e-4, "beta_end": 0.02}  # the defaults of Heun and KDPM2 are others
    rules = {
        diffusers.EulerDiscreteScheduler: Euler(),
        diffusers.EulerAncestralDiscreteScheduler: EulerAncestral(),
        diffusers.HeunDiscreteScheduler: Heun(),
        diffusers.LMSDiscreteScheduler: AdamsBashforth(4),
        diffusers.KDPM2DiscreteScheduler: DPMSolver2(),
    }
    for kind, solver in rules.items():
        found.append(Pair(partial(kind, **betas, timestep_spacing="linspace"), solver, linspace, ON_CLOCK, note=whole))
    for kind, solver in rules.items():
        if kind not in (diffusers.EulerAncestralDiscreteScheduler, diffusers.KDPM2DiscreteScheduler):
            # the ancestral one has no Karras sigmas, and KDPM2 rounds the timesteps of its own
            found.append(Pair(partial(kind, **betas, use_karras_sigmas=True), solver, clock_karras, ON_CLOCK))
    return found


def other_schedules() -> list[Pair]:
    """Return the pairs of flow matching and EDM."""
    flow = diffusers.FlowMatchEulerDiscreteScheduler
    uniform = UniformGrid()(FLOW, 20)
    shares = "the sigmas 1 - i/n are given, as pipelines do; by default diffusers shifts the last one twice"
    edm = KarrasGrid(sigma_max=80.0, sigma_min=0.002)(ON_EDM.schedule, 20)
    on_flow, on_edm = (ON_FLOW, velocity), (ON_EDM, preconditioned)
    return [
        Pair(partial(flow), Euler(), LinspaceGrid()(FLOW, 20), *on_flow),
        Pair(
            partial(flow, shift=3.0),
            Euler(),
            Shifted(FLOW, 3.0).sigma(uniform),
            *on_flow,
            given={"sigmas": uniform[:-1].tolist()},
            note=shares,
        ),
        Pair(partial(diffusers.EDMEulerScheduler), Euler(), edm, *on_edm),
        Pair(partial(diffusers.EDMDPMSolverMultistepScheduler, solver_order=2), DPMSolverPP2M(), edm, *on_edm),
    ]


def faults() -> list[Pair]:
    """Return the pairs that differ because diffusers is not right."""
    return [*wrong_times(), third_order(20), *noisy_ends()]


def wrong_times() -> list[Pair]:
    """Return the pairs in which diffusers steps to a time that is not the grid's next one."""
    ddim = partial(diffusers.DDIMScheduler, clip_sample=False)
    note = "the previous timestep is taken as t - 1000 // n, which is not the grid's next one"
    return [
        Pair(partial(ddim, timestep_spacing="linspace"), DDIM(), LinspaceGrid()(TABLE, 50), note=note),
        Pair(partial(ddim, timestep_spacing="linspace"), DDIM(), LinspaceGrid()(TABLE, 400), note=note),
        Pair(partial(ddim, timestep_spacing="trailing"), DDIM(), TrailingGrid()(TABLE, 400), note=note),
    ]


def noisy_ends() -> list[Pair]:
    """Return the pairs in which diffusers draws noise in the step onto clean data."""
    ddpm = partial(diffusers.DDPMScheduler, clip_sample=False, variance_type="fixed_large")
    note = "noise of the variance beta is added in the last step too, where its timestep is not 0"
    return [
        Pair(partial(ddpm, timestep_spacing="trailing"), Ancestral("large"), TrailingGrid()(TABLE, 50), note=note),
        Pair(partial(ddpm, steps_offset=1), Ancestral("large"), LeadingGrid(offset=1)(TABLE, 50), note=note),
    ]


def row(*cells: object) -> str:
    """Return a line of a Markdown table."""
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def page() -> str:
    """Return the page, from figures measured now."""
    equal, wrong = pairs(), faults()
    lines = [
        "# Parity with diffusers",
        "",
        "Each row pairs a scheduler of diffusers with the rule of unfog that should be equal, gives both the same "
        "network, start and noise, and compares their trajectories.",
        f"Written by `.venv/bin/python benchmarks/parity.py` with diffusers {diffusers.__version__}.",
        "",
        "The network is the exact denoiser of a mixture of Gaussians, in float64, on diffusers' linear table of 1,000 "
        "steps; the largest difference is over all states of a trajectory, each over its scale sqrt(alpha² + sigma²). "
        "diffusers' float32 tables are widened to float64; most of its schedulers still round the state to float32 in "
        "each step, which leaves the differences near 1e-6.",
        "",
        "Euler, Heun, LMS and KDPM2 of diffusers work in (x/alpha, sigma/alpha): unfog's rules are called "
        "through `Rescheduled(denoise, edm_clock(table))`.",
        "",
        row("pair", "settings", "steps", "largest difference", "verdict"),
        row(*["---"] * 5),
    ]
    for pair in equal + wrong:
        found = largest_difference(pair)
        verdict = "equal" if found <= TOLERANCE else "**differs**"
        lines.append(row(pair.name, pair.settings or "defaults", pair.steps, f"{found:.1e}", verdict))
    lines += ["", "## What had to be chosen", ""]
    for note in dict.fromkeys(pair.note for pair in equal if pair.note):
        names = dict.fromkeys(f"`{pair.scheduler.func.__name__}`" for pair in equal if pair.note == note)
        lines.append(f"- {', '.join(names)}: {note}.")
    lines.append("- Heun and KDPM2 have other default betas than the rest: both ends are given.")
    lines += ["", "## Where diffusers is not right", ""]
    for note in dict.fromkeys(pair.note for pair in wrong):
        names = dict.fromkeys(f"`{pair.scheduler.func.__name__}`" for pair in wrong if pair.note == note)
        lines.append(f"- {', '.join(names)}: {note}.")
    lines += [
        "",
        "Root mean square distance from the exact solution of the probability-flow equation, at clean data:",
        "",
        row("scheduler", "settings", "steps", "ours", "diffusers"),
        row(*["---"] * 5),
    ]
    for pair in wrong_times():
        left, right = (f"{value:.1e}" for value in errors(pair))
        lines.append(row(pair.scheduler.func.__name__, pair.settings, pair.steps, left, right))
    lines += [
        "",
        "In few steps the two errors of DDIM with a wrong previous time, its own and that of the time, can partly "
        "cancel; in many steps only the second remains.",
        "",
        "The third-order rule at equal steps of the log-SNR down to the first trained time, after two exact steps:",
        "",
        row("steps", "ours", "order", "diffusers", "order"),
        row(*["---"] * 5),
    ]
    before: tuple[float, float] | None = None
    for steps in (20, 40, 80, 160):
        now = third_order_errors(steps)
        orders = [f"{math.log2(a / b):.2f}" for a, b in zip(before, now, strict=True)] if before else ["", ""]
        lines.append(row(steps, f"{now[0]:.1e}", orders[0], f"{now[1]:.1e}", orders[1]))
        before = now
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)


if __name__ == "__main__":
    main()
