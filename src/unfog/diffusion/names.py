"""The names of solvers, grids, schedules and targets."""

from collections.abc import Callable, Mapping
from typing import TypeVar

from unfog.diffusion import grids, schedules, solvers, tables, targets
from unfog.runtime.errors import UserError, unknown

Value = TypeVar("Value")

SOLVERS: dict[str, Callable[[], solvers.Solver]] = {
    "ancestral": solvers.Ancestral,
    "ddim": solvers.DDIM,
    "euler": solvers.Euler,
    "euler-ancestral": solvers.EulerAncestral,
    "heun": solvers.Heun,
    "dpm-solver-2": solvers.DPMSolver2,
    "dpmpp-2m": solvers.DPMSolverPP2M,
    "dpmpp-3m": solvers.DPMSolverPP3M,
    "dpmpp-2m-sde": solvers.DPMSolverPPSDE2M,
    "unipc": solvers.UniPC,
    "adams-bashforth": solvers.AdamsBashforth,
    "rk45": solvers.RungeKutta45,
}
GRIDS: dict[str, Callable[[], grids.Grid]] = {
    "uniform": grids.UniformGrid,
    "polynomial": grids.PolynomialGrid,
    "log-snr": grids.LogSNRGrid,
    "karras": grids.KarrasGrid,
    "leading": grids.LeadingGrid,
    "trailing": grids.TrailingGrid,
    "linspace": grids.LinspaceGrid,
    "times": grids.TimesGrid,
}
SCHEDULES: dict[str, Callable[[], schedules.Schedule]] = {
    "linear": tables.Linear,
    "quadratic": tables.Quadratic,
    "cosine": tables.Cosine,
    "table": tables.Table,
    "linear-continuous": schedules.LinearContinuous,
    "quadratic-continuous": schedules.QuadraticContinuous,
    "cosine-continuous": schedules.CosineContinuous,
    "flow": schedules.RectifiedFlow,
    "edm": schedules.EDM,
    "sigmoid": schedules.Sigmoid,
    "laplace": schedules.Laplace,
    "shifted": schedules.Shifted,
    "discrete": tables.Discrete,
    "zero-terminal-snr": tables.ZeroTerminalSNR,
}
TARGETS: dict[str, Callable[[], targets.Target]] = {
    "eps": targets.Eps,
    "x0": targets.X0,
    "v": targets.V,
    "flow": targets.Flow,
    "edm": targets.EDMTarget,
}


def named(what: str, given: Value | str, table: Mapping[str, Callable[[], Value]]) -> Value:
    """Return `given`, or if it is a name, the value of that name with default options.

    Args:
        what: The kind of value, for the error message.
        given: The value or its name.
        table: The known names.

    Raises: UserError: For an unknown name, with the nearest known one, or a class instead of its instance.
    """
    if isinstance(given, str):
        if given not in table:
            raise unknown(what, given, table)
        return table[given]()
    if isinstance(given, type):
        raise UserError(f"the {what} is the class {given.__name__}: write {given.__name__}()")
    return given
