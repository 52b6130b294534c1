"""Adapters that send what a training tells to the trackers that people watch: TensorBoard, Weights & Biases."""

import json
import secrets
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from unfog.runtime.errors import UserError, unknown
from unfog.runtime.files import read_bounded, write_whole

Line = Mapping[str, float | None]
"""A line of metrics.jsonl."""


class Logger(Protocol):
    """Takes in what a training tells."""

    def line(self, line: Line) -> None:
        """Take in a line of metrics.jsonl."""
        ...

    def picture(self, step: int, path: Path) -> None:
        """Take in a sheet of samples."""
        ...

    def close(self) -> None:
        """Write what is left."""
        ...


class TensorBoard:
    """Event files in RUN/tensorboard, for `tensorboard --logdir`."""

    def __init__(self, folder: Path, recipe: str, step: int) -> None:
        """Open the files; what an earlier training wrote of later steps is hidden.

        Raises: UserError: If TensorBoard is missing.
        """
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UserError(
                "--log tensorboard needs the extra 'tensorboard': pip install 'unfog[tensorboard]'"
            ) from None
        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
        self.writer.add_text("recipe", f"```json\n{recipe}\n```")

    def line(self, line: Line) -> None:
        """Write a scalar for each figure."""
        for name, value in _figures(line).items():
            self.writer.add_scalar(name, value, int(line["step"] or 0))

    def picture(self, step: int, path: Path) -> None:
        """Write a sheet."""
        import numpy as np

        with Image.open(path) as sheet:
            pixels = np.asarray(sheet.convert("RGB"))
        self.writer.add_image("samples", pixels, step, dataformats="HWC")

    def close(self) -> None:
        """Write what is left."""
        self.writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases, named like the run folder; WANDB_MODE=offline keeps it in RUN/wandb."""

    def __init__(self, folder: Path, recipe: str, step: int) -> None:
        """Begin the run, or go on with it.

        Raises: UserError: If wandb is missing, or does not let us in.
        """
        try:
            import wandb
        except ImportError:
            raise UserError("--log wandb needs the extra 'wandb': pip install 'unfog[wandb]'") from None
        self.wandb: Any = wandb
        known, name = folder / "wandb.id", folder.resolve().name
        if not known.is_file():
            write_whole(known, secrets.token_hex(8).encode())
        options = {"id": read_bounded(known, 64), "resume": "allow", "dir": folder, "config": json.loads(recipe)}
        try:
            self.run = wandb.init(project="unfog", name=name, **options)
        except wandb.Error as error:
            why = str(error).splitlines()[0]
            raise UserError(f"wandb lets nobody in ({why}): run `wandb login`, or set WANDB_MODE=offline") from None

    def line(self, line: Line) -> None:
        """Send the figures."""
        self.run.log(_figures(line), step=int(line["step"] or 0))

    def picture(self, step: int, path: Path) -> None:
        """Send a sheet."""
        self.run.log({"samples": self.wandb.Image(str(path))}, step=step)

    def close(self) -> None:
        """Send what is left."""
        self.run.finish()


LOGGERS: dict[str, Callable[[Path, str, int], Logger]] = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}
"""By the names that `--log` takes."""


def loggers(names: tuple[str, ...], folder: Path, recipe: str, step: int = 0) -> tuple[Logger, ...]:
    """Open the loggers of a run.

    Args:
        names: Of the loggers, some of `LOGGERS`.
        folder: The run folder.
        recipe: The recipe as JSON.
        step: Steps that the training has taken.

    Raises: UserError: If a name is unknown, or what it needs is missing.
    """
    for name in names:
        if name not in LOGGERS:
            raise unknown("logger", name, LOGGERS)
    return tuple(LOGGERS[name](folder, recipe, step) for name in dict.fromkeys(names))


class Trackers:
    """The loggers of a training; one that fails is told nothing more, and costs no training."""

    def __init__(self, loggers: tuple[Logger, ...]) -> None:
        """Take them in."""
        self.loggers = list(loggers)

    def line(self, line: Line) -> None:
        """Tell all of them a line."""
        self._tell(lambda logger: logger.line(line))

    def picture(self, step: int, path: Path) -> None:
        """Tell all of them a sheet of samples."""
        self._tell(lambda logger: logger.picture(step, path))

    def close(self) -> None:
        """Have all of them write what is left."""
        self._tell(lambda logger: logger.close())

    def _tell(self, tell: Callable[[Logger], None]) -> None:
        """Tell each of them."""
        for logger in list(self.loggers):
            try:
                tell(logger)
            except Exception as error:  # a stranger's code, and often a network
                warnings.warn(f"{type(logger).__name__} failed ({error}) and is told nothing more", stacklevel=2)
                self.loggers.remove(logger)


def _figures(line: Line) -> dict[str, float]:
    """Return the figures of a line but for its step."""
    return {name: value for name, value in line.items() if name != "step" and value is not None}
