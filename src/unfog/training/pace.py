"""The speed of a training, and how many steps fit a budget."""

from dataclasses import dataclass

from unfog.runtime.errors import UserError
from unfog.runtime.progress import duration
from unfog.training.reporting import SHARE


@dataclass(frozen=True)
class Pace:
    """The speed of a training.

    Attributes:
        step: Seconds per optimizer step.
        report: Seconds per report, where nothing limits them.
        fixed: Seconds per report in addition, that nothing shortens; two reports are written in any case.
        close: Seconds in which the last checkpoint is written.
    """

    step: float
    report: float
    fixed: float = 0.0
    close: float = 0.0

    def fit(self, budget: float, spent: float, reports: int, share: float = 1.0) -> int:
        """Return the steps (budget - spent - close - reports) / step, reports in at most their share of what is left.

        Args:
            budget: Seconds in all.
            spent: Seconds before the first step.
            reports: How many reports there are.
            share: Which part of the user's budget this is: an autoencoder has its own.

        Raises: UserError: If not even one step fits.
        """
        steps = int((budget - spent - self.close - self.reports(max(0.0, budget - spent), reports)) / self.step)
        if steps < 1:
            least = 1 + (spent + self.step + self.close) / (1 - SHARE)
            raise UserError(
                f"the budget of {duration(budget / share)} is too short for one step: a step takes "
                f"{duration(self.step)} here, {duration(spent)} pass before the first one and {duration(self.close)} "
                f"after the last: give {least / share:.0f}s or more"
            )
        return steps

    def seconds(self, steps: int, reports: int) -> float:
        """Return the seconds that `steps` and `reports` take, to the last checkpoint."""
        steps_alone = steps * self.step
        return steps_alone + self.reports(steps_alone / (1 - SHARE), reports) + self.close

    def reports(self, seconds: float, count: int) -> float:
        """Return the seconds of reports: as long as each takes, and all together at most their share of the time."""
        fixed = self.fixed * max(2, min(count, int(SHARE * seconds / self.fixed))) if self.fixed else 0.0
        return min(count * self.report, SHARE * seconds) + fixed
