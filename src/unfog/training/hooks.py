"""What a caller attaches to a training: trackers, callbacks after each report, and a question whether to stop."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from unfog.runtime import distributed
from unfog.runtime.brief import brief


@dataclass(frozen=True)
class Report:
    """How a training stands, after its checkpoint was written.

    Attributes:
        step: Optimizer steps so far.
        images: Images seen so far.
        loss: Running mean of the training loss.
        held_out: Loss of the averaged weights on held-out rows.
        picture: Sheet of samples, or None where none could be drawn.
    """

    step: int
    images: int
    loss: float
    held_out: float
    picture: Path | None

    __repr__ = brief


Callback = Callable[[Report], object]


@dataclass(frozen=True)
class Hooks:
    """What is attached to a training.

    Attributes:
        log: Names of trackers.
        callbacks: Functions that are called after each report, by the first process only. One that fails is disabled,
            and training continues.
        stop: Asked after each step; where it returns True, the state is saved and the training ends.
    """

    log: tuple[str, ...] = ()
    callbacks: tuple[Callback, ...] = ()
    stop: Callable[[], bool] | None = None
    _failed: list[Callback] = field(default_factory=list, compare=False)

    def tell(self, report: Report) -> None:
        """Call the callbacks that have not failed yet."""
        for callback in () if distributed.rank() else self.callbacks:
            if callback in self._failed:
                continue
            try:
                callback(report)
            except Exception as error:
                self._failed.append(callback)
                name = getattr(callback, "__name__", type(callback).__name__)
                warnings.warn(
                    f"the callback {name} failed and is disabled, training continues ({type(error).__name__}: {error})",
                    stacklevel=2,
                )
