"""The training of a run folder as it began."""

import os
from pathlib import Path

from unfog.recipes.sources import Given
from unfog.runs.data import Changed, moved, read_data
from unfog.runs.dataset import Read
from unfog.runs.reading import read_recipe
from unfog.runtime.device import choose_device
from unfog.runtime.errors import UserError
from unfog.training.checkpoint import steps
from unfog.training.trainer import Trainer


def reopen(
    path: Path,
    device: str = "auto",
    dataset: Read | None = None,
    data: str | None = None,
    accept_changed_data: bool = False,
) -> Trainer:
    """Return the trainer of a run folder as it began, before any checkpoint is restored.

    Args:
        path: The run folder.
        device: Where to compute.
        dataset: The dataset that it was trained on, if one was given.
        data: Folder of the data, if it was moved.
        accept_changed_data: Whether data that are not those of the training will do.

    Raises: UserError: If the folder is no run folder, or its data changed.
    """
    recipe = read_recipe(path)
    if dataset is not None and not isinstance(recipe.data, Given):
        raise UserError(f"{path} was not trained on a dataset that was given, and reads its own data: drop `dataset`")
    if dataset is not None and dataset.given != recipe.data:
        raise UserError(f"the dataset is not the one that {path} was trained on: give the same rows in the same order")
    recipe = moved(recipe, data)
    changed: Changed = "accept" if accept_changed_data else "refuse"
    found, rows = read_data(path, recipe, changed, None if dataset is None else dataset.data)
    if (found.shape, found.classes) != (recipe.shape, recipe.classes):
        raise UserError(f"the data of {path} changed since it was trained: shape or classes differ from its recipe")
    return Trainer(recipe, rows, path, choose_device(device))


def restarted(out: Path) -> bool:
    """Return whether torchrun began a training again after a process was lost: it then resumes from its checkpoint."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0 and bool(steps(out / "checkpoints"))
