"""What is known of a run, and the model card that tells it."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from unfog.data.source import InMemory, Source, Subset
from unfog.recipes.build import build_data
from unfog.runs.run import Run
from unfog.runtime.errors import UserError
from unfog.runtime.files import parse_json, read_bounded
from unfog.runtime.version import __version__
from unfog.training.metrics import EVERY, read_metrics


def card(run: Run, notes: tuple[str, ...] = ()) -> str:
    """Return a model card: what the model is, on what it was trained, what that cost, and what was measured."""
    head = ["---", "library_name: diffusers", "tags: [unfog, diffusion]", "---", ""]
    found = facts(run)
    recipe = found.pop("Recipe")
    return "\n".join(head) + "\n" + text(run, {**found, "Limits": [f"- {note}" for note in notes], "Recipe": recipe})


def facts(run: Run) -> dict[str, list[str]]:
    """Return what is known of a run: the heads, and under each the lines of Markdown."""
    return {
        "Data": _data(run),
        "Cost": _cost(run),
        "Evaluation": _evaluation(run.path),
        "Recipe": ["```json", run.recipe.beside(run.path, relative=True).to_json().strip(), "```"],
    }


def text(run: Run, parts: Mapping[str, list[str]]) -> str:
    """Return parts as one text under the run's name; empty ones are left out."""
    parameters = sum(parameter.numel() for parameter in run.denoiser.parameters())
    lines = [f"# {run.path.resolve().name}", ""]
    lines.append(f"A diffusion model of {parameters:,} parameters by unfog {__version__}.")
    for head, part in parts.items():
        lines += ["", f"## {head}", "", *part] if part else []
    return "\n".join([*lines, ""])


def _data(run: Run) -> list[str]:
    """Return what is known of the training data."""
    recipe = run.recipe
    shape, classes = "×".join(map(str, recipe.shape or ())), len(recipe.classes)
    line = f"Kind `{recipe.kind('data')}`, rows of {shape}{f', {classes} classes' if classes else ''}."
    try:
        train = build_data(recipe)[1].train
    except UserError as error:
        return [line, f"Their hash is not known: {error}."]
    return [line, f"{len(train):,} rows to train on, SHA-256 of {digest(train)}."]


def digest(source: Source) -> str:
    """Return the hash of rows that are in memory, else of the names of their files, else of the first thousand rows."""
    rows = np.arange(len(source))
    inner = source.source if isinstance(source, Subset) else source
    if not isinstance(inner, InMemory):
        files = source.about(rows).files
        if files is not None:
            return f"their files' names: {hashlib.sha256(chr(10).join(files).encode()).hexdigest()}"
        rows = rows[:1000]
    found = hashlib.sha256()
    for part in np.array_split(rows, -(-len(rows) // 1000)):
        found.update(source.take(part).x.numpy().tobytes())
    what = "the rows" if len(rows) == len(source) else f"the first {len(rows):,} rows"
    return f"{what}: {found.hexdigest()}"


def _cost(run: Run) -> list[str]:
    """Return what the training cost."""
    lines = read_metrics(run.path / "metrics.jsonl")
    if not lines:
        return ["Not known."]
    batch = run.recipe.training.batch
    seconds = sum(EVERY * batch / line["images_per_second"] for line in lines if line.get("images_per_second"))
    found = [f"{lines[-1]['images']:,} images, repeats counted, in batches of {batch}: {seconds:,.0f} s of steps."]
    memory = max((line["memory_MiB"] for line in lines if line.get("memory_MiB")), default=None)
    return found if memory is None else [*found, f"Memory at the peak: {memory:,.0f} MiB."]


def _evaluation(path: Path) -> list[str]:
    """Return what `unfog evaluate` found."""
    file, rows = path / "evaluation.json", []
    try:
        found: Any = parse_json(read_bounded(file)) if file.is_file() else {"evaluations": [], "protocol": ""}
        for one in found["evaluations"]:
            for name, score in one["scores"].items():
                cells = (name, *(f"{value:.4g}" for value in (one["guidance"], score["value"], score["floor"])))
                rows.append(f"| {' | '.join(cells)} | {score['n']} |")
    except (ValueError, KeyError, TypeError):
        rows = []
    if not rows:
        return ["Not measured: `unfog evaluate` was not run."]
    head = ["| score | guidance | value | of held-out rows | samples |", "|---|---|---|---|---|"]
    return [*head, *rows, "", f"Protocol: {found['protocol']}."]
