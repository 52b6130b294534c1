"""The facts about a run, and its model card."""

import hashlib
from collections.abc import Mapping

import numpy as np

from unfog.data.buckets import rows_of_training, shapes_of
from unfog.data.source import InMemory, Source, Subset
from unfog.interop.scores import plain, scores
from unfog.runs.data import read_data
from unfog.runs.origin import origin_of
from unfog.runs.run import Run
from unfog.runtime.errors import UserError
from unfog.runtime.version import __version__
from unfog.training.metrics import EVERY, read_metrics


def card(run: Run, notes: tuple[str, ...] = ()) -> str:
    """Return the model card of a run: data, training cost, evaluation, limits and recipe."""
    head = ["---", "library_name: diffusers", "tags: [unfog, diffusion]", "---", ""]
    parts = facts(run)
    recipe = parts.pop("Recipe")
    return "\n".join(head) + "\n" + text(run, {**parts, "Limits": [f"- {note}" for note in notes], "Recipe": recipe})


def facts(run: Run) -> dict[str, list[str]]:
    """Return the facts about a run: for each heading its lines of Markdown."""
    return {
        "Data": _data(run),
        "Cost": _cost(run),
        "Evaluation": scores(run.path),
        "Recipe": ["```json", run.recipe.relocated(run.path, relative=True).to_json().strip(), "```"],
    }


def text(run: Run, parts: Mapping[str, list[str]]) -> str:
    """Join sections into one text titled with the run's name; empty sections are omitted."""
    parameters = sum(parameter.numel() for parameter in run.model.parameters())
    lines = [f"# {plain(run.path.resolve().name)}", ""]
    what = "A diffusion model" if run.denoises else f"A model of the objective `{run.recipe.kind('objective')}`"
    lines.append(f"{what} with {parameters:,} parameters, trained with unfog {__version__}.")
    for head, part in parts.items():
        lines += ["", f"## {head}", "", *part] if part else []
    return "\n".join([*lines, ""])


def _data(run: Run) -> list[str]:
    """Return a description of the training data."""
    recipe = run.recipe
    classes = len(recipe.classes)
    line = f"Kind `{recipe.kind('data')}`, {recipe.rows}{f', {classes} classes' if classes else ''}."
    try:
        train = read_data(run.path, recipe)[1].train
    except UserError as error:
        return [line, f"Hash unknown: {plain(error)}."]
    hashes = "; ".join(digest(one) for one in shapes_of(train))
    return [line, f"{len(rows_of_training(train)):,} training rows, SHA-256 of {hashes}."]


def digest(source: Source) -> str:
    """Return the hash of rows in memory, else of their file names, else of the first thousand rows."""
    rows = np.arange(len(source))
    inner = source.source if isinstance(source, Subset) else source
    if not isinstance(inner, InMemory):
        files = source.about(rows).files
        if files is not None:
            return f"their files' names: {hashlib.sha256(chr(10).join(files).encode()).hexdigest()}"
        rows = rows[:1000]
    sha = hashlib.sha256()
    for part in np.array_split(rows, -(-len(rows) // 1000)):
        sha.update(source.take(part).x.numpy().tobytes())
    what = "the rows" if len(rows) == len(source) else f"the first {len(rows):,} rows"
    return f"{what}: {sha.hexdigest()}"


def _cost(run: Run) -> list[str]:
    """Return the cost of the training."""
    lines, origin = read_metrics(run.path / "metrics.jsonl"), origin_of(run.path)
    begun = [] if origin is None else ["", f"The training {plain(origin)}."]
    if not lines:
        return ["Unknown.", *begun]
    batch = run.recipe.training.batch
    seconds = sum(EVERY * batch / line["images_per_second"] for line in lines if line.get("images_per_second"))
    cost = [f"{lines[-1]['images']:,} images including repeats, in batches of {batch}: {seconds:,.0f} s of steps."]
    memory = max((line["memory_MiB"] for line in lines if line.get("memory_MiB")), default=None)
    return [*cost, *([] if memory is None else [f"Peak memory: {memory:,.0f} MiB."]), *begun]
