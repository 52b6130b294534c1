"""What fits a schedule, where a user names nothing: target, training times and grid."""

from unfog.diffusion.grids import Grid, KarrasGrid, LogSNRGrid, UniformGrid
from unfog.diffusion.schedules import RectifiedFlow, Schedule
from unfog.diffusion.targets import EDMTarget, Eps, Flow, Target, V
from unfog.diffusion.times import LogitNormal, LogNormal, Times, Uniform


def target_of(schedule: Schedule) -> Target:
    """Return the target that a schedule is trained with: flow, edm or eps; v where eps cannot be solved.

    The velocity where alpha + sigma is 1 (`RectifiedFlow`, and shifted ones), the EDM target where alpha is 1. Where
    alpha² + sigma² is 1, as on all discrete schedules, eps, or v if the schedule ends at pure noise.
    """
    if schedule.keeps == "sum":
        return Flow()
    if schedule.keeps == "signal":
        return EDMTarget()
    return Eps() if schedule.numbers(schedule.t_max)[0] > 0 else V()


def times_of(schedule: Schedule) -> Times:
    """Return log-normal times for EDM, logit-normal ones for flows, uniform ones for all others."""
    times: dict[str, Times] = {"signal": LogNormal(), "sum": LogitNormal(), "variance": Uniform()}
    return times[schedule.keeps]


def grid_of(schedule: Schedule) -> Grid:
    """Return the Karras grid for EDM, equal steps for `RectifiedFlow`, equal steps of the log-SNR elsewhere.

    Equal steps of the clock end too early before the data on most schedules: on the linear one 20 steps of the
    log-SNR are four times as exact.
    """
    if schedule.keeps == "signal":
        return KarrasGrid()
    return UniformGrid() if isinstance(schedule, RectifiedFlow) else LogSNRGrid()
