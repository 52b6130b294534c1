"""Averages of other lengths, computed from a run's snapshots after training."""

from dataclasses import replace
from pathlib import Path

from unfog.recipes.build import Undrawn, build_model
from unfog.recipes.settings import PowerAverage
from unfog.runs.reading import check_vacant, read_recipe
from unfog.runs.taking import taken_in
from unfog.runtime.errors import UserError
from unfog.runtime.files import check_name, locked, write_whole
from unfog.runtime.tensors import load_into, write_tensors
from unfog.training.ema import Reconstruction, reconstruct


def average(path: str | Path, length: float, out: str | Path) -> Reconstruction:
    """Write a run folder whose model is an average of another length, computed from the snapshots of a run.

    Args:
        path: A run that was trained with `training.snapshots`.
        length: Standard deviation of the average's profile, relative to the training up to the last snapshot: 0.10 is
            that of most recipes' own average, longer ones take in earlier weights.
        out: The new run folder; must not hold another run.

    Returns: The average.
    Raises: UserError: If there is no snapshot, the length is out of range or too short for them, or `out` is taken.
        EnvironmentFailure: If the disk fails.
    """
    check_name(Path(out))
    with locked(Path(out)):
        return _average(Path(path), length, Path(out))


def _average(path: Path, length: float, out: Path) -> Reconstruction:
    """Write the run folder, whose lock is held."""
    where = path / "averages"
    recipe = read_recipe(path)
    if not recipe.objective.draws:
        raise UserError(
            f"{path} holds a model of the objective {recipe.kind('objective')!r}, which is finished for its own "
            "average: others can be made of models that draw samples"
        )
    check_vacant(out)
    averaged = reconstruct(where, length)
    with Undrawn():
        model = build_model(recipe)
    load_into(model, averaged.tensors, where)
    recipe = replace(taken_in(recipe, out), ema=PowerAverage(averaged.gamma))
    write_whole(out / "recipe.json", recipe.relocated(out, relative=True).to_json().encode())
    write_tensors(out / "model.safetensors", model.state_dict())
    return averaged
