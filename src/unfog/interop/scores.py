"""The figures of evaluation.json as Markdown, for model cards and reports; also those of files of before."""

import re
import shlex
from pathlib import Path
from typing import Any

from unfog.evaluation.intervals import Protocol, Scored, Sets
from unfog.evaluation.wording import CEILING, FLOOR, LEGEND, standing
from unfog.runtime.errors import UserError
from unfog.runtime.files import parse_json, read_bounded

UNKNOWN = "Unknown: evaluation.json has no scores of samples. Run `unfog evaluate` again."
NAMED = re.compile(r"(?<!\w)RUN(?!\w)")
"""What commands in evaluation.json call the run."""
HEADS = ("score", "guidance", "value", "95 % interval", FLOOR, CEILING, "samples", "how good")
"""Of the table of scores."""
MALFORMED = (ValueError, KeyError, TypeError, AttributeError, OverflowError, UserError)
"""What a file of another form raises."""


def plain(words: object) -> str:
    """Return words of a stranger's as Markdown that shows them as they are: no link, no picture, no HTML."""
    return re.sub(r"([\\`*_\[\]<>&|!#~$])", r"\\\1", " ".join(str(words).split()))


def scores(run: Path, whole: bool = False) -> list[str]:
    """Return the results of `unfog evaluate` as lines of Markdown: scores, those of each class, and how they came.

    Args:
        run: The run folder.
        whole: Whether this is for the run's own report: with the whole table of confusions, which is as wide as there
            are classes, and with commands that name the run.
    """
    file = run / "evaluation.json"
    if not file.is_file():
        return ["Not evaluated: `unfog evaluate` was not run."]
    try:
        return _markdown(parse_json(read_bounded(file)), shlex.quote(str(run)) if whole else None)
    except MALFORMED:
        return [UNKNOWN]


def _markdown(results: Any, run: str | None) -> list[str]:
    """Return a file's contents as lines, with the table of confusions if the run is named."""
    rows: list[list[str]] = []
    for evaluation in results["evaluations"]:
        guidance = evaluation.get("guidance")
        scale = "" if guidance is None else f"{guidance:.4g}"
        rows += [[plain(name), scale, *_cells(name, score)] for name, score in evaluation["scores"].items()]
    if not rows:
        return [UNKNOWN]
    lines = [
        *([plain(NAMED.sub(lambda _: run or "RUN", str(results["worst"]))), ""] if results.get("worst") else []),
        *_table(HEADS, rows),
        "",
        plain(LEGEND[0]),
        "",
        f"Protocol: {plain(results['protocol'])}.",
    ]
    for name, extractor in results.get("extractors", {}).items():
        lines.append(f"Judge: {plain(name)} {plain(extractor['key'])}, {extractor['features']:d} features.")
    if results.get("measured"):
        lines.append(f"{plain(_sentence(results['measured']))}.")
    classes = results["evaluations"][-1].get("classes")
    return lines if classes is None else [*lines, *_classes(classes, run is not None)]


def _cells(name: str, score: Any) -> list[str]:
    """Return value, interval, ends, number of samples and how good it is.

    Files of before have intervals that lie elsewhere than the value, of the Fréchet distance without its bias: no
    interval is shown of those.
    """
    value, low, high = score["value"], score.get("low"), score.get("high")
    if low is not None and not low <= value <= high:
        low = high = None
    one = Scored(value, low, high, score["n"], score["floor"], score["ceiling"], Protocol(name, "", Sets("", 0, 0)))
    interval = "" if one.low is None else f"{one.low:.4g} to {one.high:.4g}"
    values = (f"{one.value:.4g}", interval, f"{one.floor:.4g}", f"{one.ceiling:.4g}")
    return [*values, plain(one.n), standing(name, one)]


def _sentence(measured: Any) -> str:
    """Return where the figures come from."""
    return f"Measured {measured['date']} on {measured['machine']} by unfog {measured['version']}: {measured['command']}"


def _classes(classes: Any, confusions: bool) -> list[str]:
    """Return the scores of each class, and the whole table of confusions."""
    heads = ("class", "samples", "read as asked", "95 % interval", FLOOR, "distance", FLOOR, "recall", FLOOR)
    rows = []
    for one in classes["each"]:
        read = one["adherence"]
        figures = (f"{read['value']:.3f}", f"{read['low']:.3f} to {read['high']:.3f}", f"{read['floor']:.3f}")
        cells = [plain(one["name"]), plain(one["n"]), *figures]
        for score in (one["distance"], one["recall"]):
            cells += ["", ""] if score is None else [f"{score['value']:.3f}", f"{score['floor']:.3f}"]
        rows.append(cells)
    lines = ["", "### By class", "", *_table(heads, rows)]
    if not confusions or classes["confusion"] is None:
        return lines
    names = [plain(name) for name in classes["names"]]
    counts = zip(names, classes["confusion"], strict=True)
    table = [[name, *(f"{count:d}" if count else "" for count in row)] for name, row in counts]
    return [*lines, "", "### What was asked for and what was read", "", *_table(("asked / read as", *names), table)]


def _table(heads: tuple[str, ...], rows: list[list[str]]) -> list[str]:
    """Return a table as lines of Markdown, its cells escaped before."""
    return [f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *rows)]
