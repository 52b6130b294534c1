"""Cascades of runs as one run folder, which `sample`, `evaluate` and the playground treat as a run."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import nn

from unfog.generation.sampler import Sampler
from unfog.recipes.build import known_of
from unfog.recipes.embedded import Embedded
from unfog.recipes.encoders import EmbeddingConditioning
from unfog.recipes.planes import ImageConditioning
from unfog.recipes.recipe import Recipe
from unfog.runs.reading import check_vacant
from unfog.runs.run import Run, load
from unfog.runs.taking import taken_in
from unfog.runtime.errors import UserError
from unfog.runtime.files import check_name, disk, locked, write_whole
from unfog.runtime.tensors import write_tensors
from unfog.training.objectives.cascade import MOST, Cascade


def cascade(paths: Sequence[str | Path], out: str | Path, noise: float | None = None) -> Path:
    """Write a run folder whose samples are drawn small by one run, and enlarged by the next ones.

    Or drawn as embeddings by a prior, and decoded by the next one.

    The folder holds the recipes and the weights of all: the runs may be removed.

    Args:
        paths: The runs, that of the smallest pictures first.
        out: The new run folder; must not hold another run.
        noise: The share of noise in the small pictures that a stage enlarges, for stages that were trained with some;
            default: `conditioning.noise_at` of each.

    Returns: The folder.
    Raises: UserError: If the runs do not fit each other, or `out` is taken.
        EnvironmentFailure: If the disk fails.
    """
    if not 2 <= len(paths) <= MOST:
        raise UserError(f"a cascade has 2 to {MOST} runs, not {len(paths)}")
    runs = [load(path, "cpu") for path in paths]
    recipes = [runs[0].recipe, *(_at(run, noise) for run in runs[1:])]
    for run in runs:
        if not isinstance(run.generator(), Sampler):
            raise UserError(f"{run.path} is not sampled step by step: the stages of a cascade are")
    for before, run, recipe in zip(runs, runs[1:], recipes[1:], strict=False):
        _check(before, run, recipe)
    out = Path(out)
    check_name(out)
    with locked(out):
        check_vacant(out)
        taken = []  # with what the stages need of other runs in their folders
        for place, recipe in enumerate(recipes, 1):
            folder = out / str(place)
            with disk(folder):
                folder.mkdir(parents=True, exist_ok=True)
            taken.append(taken_in(recipe, folder))
            write_whole(folder / "recipe.json", taken[-1].relocated(folder, relative=True).to_json().encode())
        first, last = taken[0], taken[-1]
        whole = replace(
            last,
            name="cascade",
            objective=Cascade(str(out.resolve()), len(runs)),
            **{name: getattr(first, name) for name in ("network", "inputs", "schedule", "target", "variance")},
            **{name: getattr(first, name) for name in ("times", "weighting", "solver", "grid", "sampling")},
            **{name: getattr(first, name) for name in ("conditioning", "classes", "prompts")},
        )
        whole = replace(whole, sampling=replace(whole.sampling, batch=min(one.sampling.portion for one in recipes)))
        write_tensors(out / "model.safetensors", nn.ModuleList(run.model for run in runs).state_dict())
        write_whole(out / "recipe.json", whole.relocated(out, relative=True).to_json().encode())
    return out


def _at(run: Run, noise: float | None) -> Recipe:
    """Return the recipe of a further stage, with the share of noise in what it is given.

    Raises: UserError: If it neither enlarges nor decodes, or was trained with less noise.
    """
    conditioning = run.recipe.conditioning
    enlarges = isinstance(conditioning, ImageConditioning) and conditioning.task == "enlarge"
    if not enlarges and not isinstance(conditioning, EmbeddingConditioning):
        raise UserError(
            f"{run.path} neither enlarges pictures nor decodes embeddings: train it with `unfog train "
            "super-resolution`, or `unfog train decoder`"
        )
    if noise is None:
        return run.recipe
    if not isinstance(conditioning, ImageConditioning):
        raise UserError(f"{run.path} decodes embeddings, which are given without noise: omit noise")
    if not 0 <= noise <= conditioning.noise:
        raise UserError(
            f"{run.path} was trained with noise of up to {conditioning.noise:g} in the small pictures, not {noise:g}"
        )
    return replace(run.recipe, conditioning=replace(conditioning, noise_at=noise))


def _check(before: Run, run: Run, recipe: Recipe) -> None:
    """Refuse stages that do not fit each other."""
    known, conditioning = known_of(recipe), recipe.conditioning
    if isinstance(conditioning, EmbeddingConditioning):
        data = before.recipe.data
        if not isinstance(data, Embedded):
            raise UserError(f"{before.path} draws no embeddings, which {run.path} decodes: train it as a prior")
        if data.weights != conditioning.encoder.digest:
            raise UserError(f"{before.path} and {run.path} have different encoders: train both with the same one")
        return
    assert isinstance(conditioning, ImageConditioning)
    small, factor = known_of(before.recipe).stored or (), conditioning.factor_of(known)
    wanted = (known.shape[0], *(side // factor for side in known.shape[1:]))
    if tuple(small) != wanted:
        sides = ["×".join(map(str, shape)) for shape in (wanted, small)]
        raise UserError(f"{run.path} enlarges pictures of {sides[0]}, and {before.path} draws {sides[1]}")
