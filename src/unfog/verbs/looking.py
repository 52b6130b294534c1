"""Verbs that look at what is there."""

from pathlib import Path

import tyro

from unfog import arguments
from unfog.errors import UserError


def inspect(path: tyro.conf.Positional[Path], /, *, json: Path | None = None, sheet: Path | None = None) -> None:
    """Look a folder of pictures over before training on it: what it holds, what is wrong, and how to train on it.

    Reads every picture, one at a time. What is wrong is no failure: the exit code is 0.

    For example:

      unfog inspect my_pictures
      unfog inspect my_pictures --json found.json --sheet found.png

    Args:
        path: Folder of pictures, as for `unfog train folder --data`.
        json: Also write everything to this file, each picture named.
        sheet: Also draw pictures as training sees them into this PNG, the faulty ones first.
    """
    from unfog.data.inspect import inspect as look_over
    from unfog.data.pictures import save_picture
    from unfog.files import write_whole

    if sheet is not None and sheet.resolve().is_relative_to(path.resolve()):
        raise UserError(f"{sheet} would be one of the pictures: choose a --sheet outside of {path}")
    for option, file in (("--json", json), ("--sheet", sheet)):
        if file is not None:
            arguments.file(file, option)
    report = look_over(path)
    print(report.text())
    if json is not None:
        write_whole(json, report.to_json().encode())
        print(f"everything: {json}")
    if sheet is not None and (drawn := report.sheet()) is not None:
        save_picture(drawn, sheet)
        print(f"pictures: {sheet}")


def recipes() -> None:
    """List the recipes."""
    from rich.console import Console
    from rich.table import Table

    from unfog.recipes import RECIPES

    rows = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for name, build in RECIPES.items():
        rows.add_row(f"[bold]{name}[/]", (build.__doc__ or "").split("\n")[0])
    Console().print(rows)
