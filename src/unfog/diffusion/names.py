"""The names of schedules, targets, times, weightings, solvers and grids.

The parts are listed by address, `module:class` in this folder, so that this table imports none of them.
"""

from importlib import import_module
from typing import TypeVar

from unfog.runtime.errors import UserError, unknown

Value = TypeVar("Value")

NAMES: dict[str, dict[str, str]] = {
    "schedule": {
        "linear": "tables:Linear",
        "quadratic": "tables:Quadratic",
        "cosine": "tables:Cosine",
        "table": "tables:Table",
        "linear-continuous": "schedules:LinearContinuous",
        "quadratic-continuous": "schedules:QuadraticContinuous",
        "cosine-continuous": "schedules:CosineContinuous",
        "flow": "schedules:RectifiedFlow",
        "edm": "schedules:EDM",
        "sigmoid": "schedules:Sigmoid",
        "laplace": "schedules:Laplace",
        "shifted": "schedules:Shifted",
        "discrete": "tables:Discrete",
        "zero-terminal-snr": "tables:ZeroTerminalSNR",
    },
    "target": {
        "eps": "targets:Eps",
        "x0": "targets:X0",
        "v": "targets:V",
        "flow": "targets:Flow",
        "edm": "targets:EDMTarget",
    },
    "times": {
        "uniform": "times:Uniform",
        "discrete": "times:DiscreteTimes",
        "log-normal": "times:LogNormal",
        "logit-normal": "times:LogitNormal",
        "importance": "times:Importance",
    },
    "weighting": {
        "unit": "weightings:Unit",
        "min-snr": "weightings:MinSNR",
        "p2": "weightings:P2",
        "edm": "weightings:EDMWeighting",
        "sigmoid": "weightings:SigmoidWeighting",
    },
    "solver": {
        "ancestral": "solvers:Ancestral",
        "ddim": "solvers:DDIM",
        "euler": "solvers:Euler",
        "euler-ancestral": "solvers:EulerAncestral",
        "heun": "solvers:Heun",
        "dpm-solver-2": "solvers:DPMSolver2",
        "dpmpp-2m": "solvers:DPMSolverPP2M",
        "dpmpp-3m": "solvers:DPMSolverPP3M",
        "dpmpp-2m-sde": "solvers:DPMSolverPPSDE2M",
        "unipc": "solvers:UniPC",
        "adams-bashforth": "solvers:AdamsBashforth",
        "rk45": "solvers:RungeKutta45",
    },
    "grid": {
        "uniform": "grids:UniformGrid",
        "polynomial": "grids:PolynomialGrid",
        "log-snr": "grids:LogSNRGrid",
        "karras": "grids:KarrasGrid",
        "leading": "grids:LeadingGrid",
        "trailing": "grids:TrailingGrid",
        "linspace": "grids:LinspaceGrid",
        "times": "grids:TimesGrid",
    },
}
"""The parts of each kind: name -> address."""


def named(what: str, given: Value | str) -> Value:
    """Return `given`, or if it is a name, the value of that name with default options.

    Args:
        what: The kind of value, a key of `NAMES`.
        given: The value or its name.

    Raises: UserError: For an unknown name, with the nearest known one, a class instead of its instance, or another
        thing.
    """
    if isinstance(given, str):
        if given not in NAMES[what]:
            raise unknown(what, given, NAMES[what])
        module, _, name = NAMES[what][given].partition(":")
        value: Value = getattr(import_module(f"unfog.diffusion.{module}"), name)()
        return value
    if isinstance(given, type):
        raise UserError(f"the {what} is the class {given.__name__}: write {given.__name__}()")
    if not (callable(given) or hasattr(given, "step")):
        raise UserError(f"the {what} must be a value or one of {', '.join(NAMES[what])}, not {given!r}")
    return given


def name_of(what: str, value: object) -> str:
    """Return the name of a value, or that of its class where it has none."""
    kind = type(value).__name__
    return next((name for name, address in NAMES[what].items() if address.endswith(f":{kind}")), kind)
