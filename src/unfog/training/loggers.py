"""Loggers that send training metrics to TensorBoard and Weights & Biases."""

import json
import secrets
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from unfog.data.pictures import opened
from unfog.runtime.errors import UserError, unknown
from unfog.runtime.files import read_bounded, write_whole

Line = Mapping[str, float | None]
"""A line of metrics.jsonl: names and values."""


class Logger(Protocol):
    """Receives the metrics and samples of a training."""

    def line(self, line: Line) -> None:
        """Log a line of metrics.jsonl."""
        ...

    def picture(self, step: int, path: Path) -> None:
        """Log a sheet of samples."""
        ...

    def close(self) -> None:
        """Flush and close."""
        ...


class TensorBoard:
    """Event files in RUN/tensorboard, for `tensorboard --logdir`."""

    def __init__(self, folder: Path, recipe: str, step: int) -> None:
        """Open the event files; entries of later steps from an earlier training are purged.

        Raises: UserError: If TensorBoard is not installed.
        """
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UserError(
                "the logger tensorboard needs the extra 'tensorboard': pip install 'unfog[tensorboard]'"
            ) from None
        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
        self.writer.add_text("recipe", f"```json\n{recipe}\n```")

    def line(self, line: Line) -> None:
        """Log each value as a scalar."""
        for name, value in _figures(line).items():
            self.writer.add_scalar(name, value, int(line["step"] or 0))

    def picture(self, step: int, path: Path) -> None:
        """Log a sheet of samples."""
        import numpy as np

        with opened(path) as sheet:
            pixels = np.asarray(sheet.convert("RGB"))
        self.writer.add_image("samples", pixels, step, dataformats="HWC")

    def close(self) -> None:
        """Flush and close."""
        self.writer.close()


class WeightsAndBiases:
    """A Weights & Biases run, named after the run folder; WANDB_MODE=offline keeps it in RUN/wandb."""

    def __init__(self, folder: Path, recipe: str, step: int) -> None:
        """Start or resume the run.

        Raises: UserError: If wandb is not installed, or the login fails.
        """
        try:
            import wandb
        except ImportError:
            raise UserError("the logger wandb needs the extra 'wandb': pip install 'unfog[wandb]'") from None
        self.wandb: Any = wandb
        id_file, name = folder / "wandb.id", folder.resolve().name
        if not id_file.is_file():
            write_whole(id_file, secrets.token_hex(8).encode())
        options = {"id": read_bounded(id_file, 64), "resume": "allow", "dir": folder, "config": json.loads(recipe)}
        try:
            self.run = wandb.init(project="unfog", name=name, **options)
        except wandb.Error as error:
            why = str(error).splitlines()[0]
            raise UserError(
                f"wandb could not start a run ({why}): run `wandb login`, or set WANDB_MODE=offline"
            ) from None

    def line(self, line: Line) -> None:
        """Log the values."""
        self.run.log(_figures(line), step=int(line["step"] or 0))

    def picture(self, step: int, path: Path) -> None:
        """Log a sheet of samples."""
        self.run.log({"samples": self.wandb.Image(str(path))}, step=step)

    def close(self) -> None:
        """Finish the run."""
        self.run.finish()


LOGGERS: dict[str, Callable[[Path, str, int], Logger]] = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}
"""Loggers by name."""


def loggers(names: tuple[str, ...], folder: Path, recipe: str, step: int = 0) -> tuple[Logger, ...]:
    """Open the loggers of a run.

    Args:
        names: Names of loggers, from `LOGGERS`.
        folder: The run folder.
        recipe: The recipe as JSON.
        step: Completed training steps.

    Raises: UserError: If a name is unknown, or its package is not installed.
    """
    for name in names:
        if name not in LOGGERS:
            raise unknown("logger", name, LOGGERS)
    return tuple(LOGGERS[name](folder, recipe, step) for name in dict.fromkeys(names))


class Trackers:
    """The loggers of a training; a failing logger is disabled, and training continues."""

    def __init__(self, loggers: tuple[Logger, ...]) -> None:
        """Forward to these loggers."""
        self.loggers = list(loggers)

    def line(self, line: Line) -> None:
        """Log a line of metrics.jsonl to all."""
        self._call(lambda logger: logger.line(line))

    def picture(self, step: int, path: Path) -> None:
        """Log a sheet of samples to all."""
        self._call(lambda logger: logger.picture(step, path))

    def close(self) -> None:
        """Close all."""
        self._call(lambda logger: logger.close())

    def _call(self, call: Callable[[Logger], None]) -> None:
        """Call each logger; disable those that fail."""
        for logger in list(self.loggers):
            try:
                call(logger)
            except Exception as error:  # third-party code, often with a network
                warnings.warn(f"{type(logger).__name__} failed ({error}) and was disabled", stacklevel=2)
                self.loggers.remove(logger)


def _figures(line: Line) -> dict[str, float]:
    """Return the values of a line without its step."""
    return {name: value for name, value in line.items() if name != "step" and value is not None}
