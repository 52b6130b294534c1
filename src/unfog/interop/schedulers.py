"""diffusers' scheduler configurations as schedule, target, solver and grid, and back.

docs/parity.md measures which of them agree, and where diffusers is wrong.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from unfog.data.codecs import Pixels
from unfog.diffusion.denoiser import Clock, NetworkTime
from unfog.diffusion.grids import Grid, KarrasGrid, LeadingGrid, LinspaceGrid, TrailingGrid, UniformGrid
from unfog.diffusion.schedules import RectifiedFlow, Schedule
from unfog.diffusion.solvers import (
    DDIM,
    Ancestral,
    DPMSolverPP2M,
    DPMSolverPPSDE2M,
    Euler,
    EulerAncestral,
    Heun,
    Solver,
    UniPC,
)
from unfog.diffusion.tables import Cosine, DiscreteSchedule, Linear, Quadratic, ZeroTerminalSNR
from unfog.diffusion.targets import Target
from unfog.interop.files import meant
from unfog.recipes.parse import named
from unfog.recipes.recipe import Recipe
from unfog.runtime.errors import UserError

Given = Mapping[str, Any]
"""A configuration."""
TARGETS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v", "flow_prediction": "flow"}
"""diffusers' prediction types, and our targets."""
FAMILIES = (
    "DDPM",
    "DDIM",
    "PNDM",
    "EulerDiscrete",
    "EulerAncestralDiscrete",
    "HeunDiscrete",
    "LMSDiscrete",
    "DPMSolverMultistep",
    "UniPCMultistep",
    "FlowMatchEulerDiscrete",
)
"""Schedulers that can be imported, without the suffix 'Scheduler'."""
_BETAS = {"HeunDiscrete": (0.00085, 0.012)}
"""Default `beta_start` and `beta_end` where they differ from DDPM's."""
_LINSPACE = ("EulerDiscrete", "EulerAncestralDiscrete", "HeunDiscrete", "LMSDiscrete")
_MULTISTEP = ("DPMSolverMultistep", "UniPCMultistep")
_MEANT = {
    "use_exponential_sigmas": (False, None),
    "use_beta_sigmas": (False, None),
    "use_lu_lambdas": (False, None),
    "use_flow_sigmas": (False, None),
    "use_dynamic_shifting": (False, None),
    "thresholding": (False, None),
    "invert_sigmas": (False, None),
    "stochastic_sampling": (False, None),
    "shift_terminal": (None, 0),
    "shift": (None, 1, 1.0),
    "timestep_type": (None, "discrete"),
    "interpolation_type": (None, "linear"),
    "predict_x0": (None, True),
    "clip_sample_range": (None, 1, 1.0),
    "sigma_min": (None,),
    "sigma_max": (None,),
}
"""Options of which only these values are supported."""


@dataclass(frozen=True)
class Sampled:
    """How a pipeline samples, as parts of a recipe.

    Attributes:
        schedule: The noise schedule.
        target: The prediction target of the network.
        solver: The solver.
        grid: The grid of sampling times.
        network_time: The time input of the network.
        clip: Whether x0 is clipped to the range of pixels.
        notes: Differences from the original pipeline.
    """

    schedule: Schedule
    target: Target
    solver: Solver
    grid: Grid
    network_time: NetworkTime
    clip: bool
    notes: tuple[str, ...]


def read(config: Given, where: str) -> Sampled:
    """Return a scheduler's configuration as parts of a recipe.

    Args:
        config: The scheduler_config.json.
        where: Its file, for error messages.

    Raises: UserError: For a scheduler or an option that is not supported.
    """
    with meant(where):
        return _read(config, where)


def _read(config: Given, where: str) -> Sampled:
    """Return a configuration as parts of a recipe; values are not checked."""
    name = str(config.get("_class_name", ""))
    family = name.removesuffix("Scheduler")
    if family not in FAMILIES:
        supported = ", ".join(f"{known}Scheduler" for known in FAMILIES)
        raise UserError(f"{where}: the scheduler {name or 'without a name'!r} is not supported, only {supported}")
    for option, values in _MEANT.items():
        if option in config and config[option] not in values:
            raise UserError(
                f"{where}: {name} with {option}={config[option]!r} is not supported: set it to {values[-1]!r}"
            )
    flow = family.startswith("FlowMatch")
    prediction = "flow_prediction" if flow else config.get("prediction_type", "epsilon")
    if prediction not in TARGETS:
        raise UserError(f"{where}: prediction_type {prediction!r} is not supported, only {', '.join(TARGETS)}")
    schedule = named("schedule", "flow") if flow else _schedule(config, family, where)
    # diffusers' rules of velocities work in (x/alpha, sigma/alpha), which ends at a number unless at pure noise
    solver, notes = _solver(config, family, where, "edm" if schedule.numbers(schedule.t_max)[0] > 0 else "flow")
    karras = bool(config.get("use_karras_sigmas"))
    return Sampled(
        schedule,
        named("target", TARGETS[prediction]),
        solver,
        _grid(config, family, where),
        "thousand" if flow else "whole" if karras and family in _MULTISTEP else "index",
        bool(config.get("clip_sample", family in ("DDPM", "DDIM"))),
        notes,
    )


def _schedule(config: Given, family: str, where: str) -> Schedule:
    """Return the noise schedule."""
    steps = config.get("num_train_timesteps", 1000)
    start, end = _BETAS.get(family, (1e-4, 0.02))
    ends = {"beta_start": float(config.get("beta_start", start)), "beta_end": float(config.get("beta_end", end))}
    kind = config.get("beta_schedule", "linear")
    given = config.get("trained_betas")
    schedule: Schedule
    if given is not None:
        products: list[float] = []
        product = 1.0
        for beta in given:
            product = product * (1 - float(beta))
            products.append(product)
        schedule = named("schedule", "table", alphas_cumprod=products)
    elif kind == "linear":
        schedule = named("schedule", "linear", steps=steps, **ends)
    elif kind == "scaled_linear":
        schedule = named("schedule", "quadratic", steps=steps, **ends)
    elif kind == "squaredcos_cap_v2":
        schedule = named("schedule", "cosine", steps=steps)
    else:
        known = "linear, scaled_linear, squaredcos_cap_v2"
        raise UserError(f"{where}: beta_schedule {kind!r} is not supported, only {known} and trained_betas")
    return ZeroTerminalSNR(schedule) if config.get("rescale_betas_zero_snr") else schedule


def _solver(config: Given, family: str, where: str, clock: Clock) -> tuple[Solver, tuple[str, ...]]:
    """Return the solver, and notes on differences."""
    if family == "DDPM":
        kind = config.get("variance_type", "fixed_small")
        known = {"fixed_small": "small", "fixed_small_log": "small", "fixed_large": "large", "learned_range": "learned"}
        if kind not in known:
            raise UserError(f"{where}: variance_type {kind!r} is not supported, only {', '.join(known)}")
        return named("solver", "ancestral", variance=known[kind]), ()
    if family == "DPMSolverMultistep":
        return _multistep(config, where), ()
    if family == "UniPCMultistep":
        return named("solver", "unipc", p=min(3, max(2, int(config.get("solver_order", 2))))), ()
    if family in ("PNDM", "LMSDiscrete"):
        note = "PNDM is not available: it is replaced by the similar Adams-Bashforth of order 4"
        return named("solver", "adams-bashforth", order=4, clock=clock), (note,) if family == "PNDM" else ()
    if family == "DDIM":
        return named("solver", "ddim"), ()
    rules = {"EulerAncestralDiscrete": "euler-ancestral", "HeunDiscrete": "heun"}
    return named("solver", rules.get(family, "euler"), clock=clock), ()


def _multistep(config: Given, where: str) -> Solver:
    """Return the solver for a DPMSolverMultistepScheduler."""
    kind, order = config.get("algorithm_type", "dpmsolver++"), config.get("solver_order", 2)
    rules = {
        ("dpmsolver++", 1): "ddim",
        ("dpmsolver++", 2): "dpmpp-2m",
        ("dpmsolver++", 3): "dpmpp-3m",
        ("sde-dpmsolver++", 2): "dpmpp-2m-sde",
    }
    if (kind, order) not in rules or config.get("solver_type", "midpoint") != "midpoint":
        known = ", ".join(f"{algorithm} of order {number}" for algorithm, number in rules)
        raise UserError(f"{where}: {kind} of order {order} is not supported, only {known}, of type midpoint")
    solver: Solver = named("solver", rules[kind, order])
    return solver


def _grid(config: Given, family: str, where: str) -> Grid:
    """Return the grid of sampling times."""
    if config.get("use_karras_sigmas"):
        return KarrasGrid()
    if family.startswith("FlowMatch"):
        return LinspaceGrid()
    linspace = family in (*_LINSPACE, *_MULTISTEP)
    spacing = config.get("timestep_spacing", "linspace" if linspace else "leading")
    offset = int(config.get("steps_offset", 0))
    drop = family in _MULTISTEP
    if family in ("DDIM", "PNDM"):  # other schedulers carry the option along but ignore it
        first = config.get("set_alpha_to_one", family == "DDIM") is False
    else:
        first = config.get("final_sigmas_type") == "sigma_min"
    if spacing == "leading":
        if family in ("DDIM", "PNDM") and not offset:  # their last step goes from the first index to itself
            first = False
        return LeadingGrid(offset=offset, drop_last=drop, end="first" if first else "data")
    if spacing == "linspace":
        return LinspaceGrid(drop_last=drop, end="first" if first and drop else "data")
    if spacing == "trailing":
        return TrailingGrid()
    raise UserError(f"{where}: timestep_spacing {spacing!r} is not supported, only leading, linspace, trailing")


def write(recipe: Recipe) -> dict[str, Any]:
    """Return the scheduler_config.json with which diffusers samples a recipe's model.

    Raises: UserError: If diffusers has no such schedule, target, solver or input scaling.
    """
    schedule, solver, inputs, target = recipe.schedule, recipe.solver, recipe.inputs, recipe.kind("target")
    if inputs.input_scale != "none":
        raise UserError(
            "diffusers does not scale the network's input: only models with inputs.input_scale=none can be exported"
        )
    if isinstance(schedule, RectifiedFlow) and target == "flow" and inputs.network_time == "thousand":
        if not isinstance(solver, Euler):
            raise UserError("diffusers only integrates flows with Euler: set solver=euler to export this model")
        return {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 1.0}
    predictions = {ours: theirs for theirs, ours in TARGETS.items()}
    if not isinstance(schedule, DiscreteSchedule) or inputs.network_time not in ("index", "whole") or target == "flow":
        raise UserError(
            "diffusers supports tables (linear, quadratic, cosine, ...) with network_time=index and the targets eps, "
            "x0 and v, and flow with the target flow: train such a model to export it"
        )
    if target not in predictions:
        raise UserError(f"diffusers has no prediction_type for the target {target!r}: export eps, x0 or v")
    spacing, extra = _spacing(recipe)
    common = {
        "num_train_timesteps": len(schedule.alphas_cumprod),
        **_betas(schedule),
        "prediction_type": predictions[target],
        "timestep_spacing": spacing,
        **extra,
    }
    return {**_family(solver, recipe), **common}


def _betas(schedule: DiscreteSchedule) -> dict[str, Any]:
    """Return diffusers' name of a schedule, or else its betas."""
    if isinstance(schedule, Linear | Quadratic):
        kind = "linear" if isinstance(schedule, Linear) else "scaled_linear"
        return {"beta_schedule": kind, "beta_start": schedule.beta_start, "beta_end": schedule.beta_end}
    if schedule == Cosine(schedule.steps or 0):
        return {"beta_schedule": "squaredcos_cap_v2"}
    alphas = (1.0, *schedule.alphas_cumprod)
    return {"trained_betas": [1 - after / before for before, after in pairwise(alphas)]}


def clips(recipe: Recipe) -> bool:
    """Return whether a recipe clips x0 when sampling."""
    return recipe.sampling.clip and isinstance(recipe.codec, Pixels)


def _spacing(recipe: Recipe) -> tuple[str, dict[str, Any]]:
    """Return diffusers' timestep spacing, and related options."""
    grid = recipe.grid
    if isinstance(grid, KarrasGrid):
        return "linspace", {"use_karras_sigmas": True}
    if isinstance(grid, UniformGrid | TrailingGrid):
        return "trailing", {}
    if isinstance(grid, LeadingGrid):
        return "leading", {"steps_offset": grid.offset, "set_alpha_to_one": grid.end == "data"}
    if isinstance(grid, LinspaceGrid):
        return "linspace", {}
    raise UserError(
        f"diffusers has no grid {recipe.kind('grid')!r}: set grid to uniform, trailing, leading, linspace or karras"
    )


def _family(solver: object, recipe: Recipe) -> dict[str, Any]:
    """Return the scheduler class of a solver, and its options."""
    clip = clips(recipe)
    if isinstance(solver, Ancestral) and solver.variance in ("small", "large"):
        return {"_class_name": "DDPMScheduler", "clip_sample": clip, "variance_type": f"fixed_{solver.variance}"}
    if isinstance(solver, DDIM) and math.isclose(solver.eta, 0):
        return {"_class_name": "DDIMScheduler", "clip_sample": clip and recipe.sampling.keep_eps}
    plain = {Euler: "EulerDiscrete", EulerAncestral: "EulerAncestralDiscrete", Heun: "HeunDiscrete"}
    multistep = {DPMSolverPP2M: "dpmsolver++", DPMSolverPPSDE2M: "sde-dpmsolver++"}
    if isinstance(solver, Heun) and solver.clock != "edm":
        raise UserError("diffusers' Heun works on the clock 'edm': set solver.clock=edm to export this model")
    for kind, name in plain.items():
        if type(solver) is kind:
            return {"_class_name": f"{name}Scheduler"}
    for kind, name in multistep.items():
        if type(solver) is kind:
            return {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": name, "solver_order": 2}
    if isinstance(solver, UniPC):
        return {"_class_name": "UniPCMultistepScheduler", "solver_order": solver.p}
    raise UserError(
        f"diffusers has no solver like {recipe.kind('solver')!r} with these options: set solver to ddim, ancestral, "
        "dpmpp-2m, unipc, euler or heun"
    )
