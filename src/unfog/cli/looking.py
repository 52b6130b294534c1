"""Verbs that inspect data, recipes and runs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from unfog.cli import arguments
from unfog.cli.options import (
    AcceptChangedData,
    Device,
    Flat,
    LabelFrom,
    MovedData,
    RunFolder,
    Seed,
    SomeFloat,
    SomeInt,
    SomePath,
    SomeText,
    Training,
)
from unfog.runtime.errors import UserError

if TYPE_CHECKING:
    from unfog.data.inspect import Report
    from unfog.data.inspecting import Inspected


def inspect(
    path: tyro.conf.Positional[Path],
    /,
    *,
    kind: SomeText = None,
    label_from: LabelFrom = None,
    json: SomePath = None,
    sheet: SomePath = None,
    budget: SomeText = None,
) -> None:
    """Check data before training: what they are, what is not used, what is wrong, how to train on them.

    Reads every picture, sound, video, volume, series, or a text. Problems do not change the exit code, which is 0.

    For example:

      unfog inspect my_pictures
      unfog inspect my_sounds
      unfog inspect scans --kind volumes
      unfog inspect my_pictures --label-from prefix
      unfog inspect my_pictures --json found.json --sheet found.png
      unfog inspect my_pictures --budget 10m

    Args:
        path: Folder or archive of pictures, as for `unfog train folder`; a folder of other files; a text or a series.
        kind: What the files are: pictures, audio, video, volumes, series or text. Default: what most of them are, where
            arrays count as pictures.
        label_from: What the class of a picture is, as for `unfog train folder`: folder, parent, path, prefix, csv or
            csv:COLUMN.
        json: Also write all findings to this file, picture by picture.
        sheet: Also write this PNG of the pictures as training sees them, faulty ones first.
        budget: Also suggest the size for this training time, for instance 10m, and say what to expect of pictures.
    """
    from unfog.data.inspect import inspect as look_over
    from unfog.data.inspecting import kind_of
    from unfog.data.labels import AUTO

    if sheet is not None and sheet.resolve().is_relative_to(path.resolve()):
        raise UserError(f"{sheet} would be one of the pictures: choose a --sheet outside of {path}")
    chosen = kind_of(path) if kind is None else kind
    if chosen not in (None, "pictures"):
        _inspect_other(path, chosen, label_from or AUTO, json, sheet, budget)
        return
    with arguments.writing(json, "--json"), arguments.writing(sheet, "--sheet"):
        report = look_over(path, label_from=label_from or AUTO)
        side, expected = _within(path, budget) if budget is not None and report.refusal is None else (None, None)
        print(report.text(side, budget))
        if expected is not None:
            print(expected)
        _write(report, json, sheet, "pictures")


def _inspect_other(
    path: Path, kind: str, label_from: str, json: Path | None, sheet: Path | None, budget: str | None
) -> None:
    """Inspect data that are no pictures."""
    from unfog.data.inspecting import look_over

    if budget is not None:
        raise UserError(
            f"--budget goes with pictures; `unfog plan {kind} --data {path} --budget {budget}` says what it gives"
        )
    with arguments.writing(json, "--json"), arguments.writing(sheet, "--sheet"):
        report = look_over(path, kind, label_from)
        print(report.text())
        _write(report, json, sheet, "rows")


def _write(report: "Report | Inspected", json: Path | None, sheet: Path | None, what: str) -> None:
    """Write the findings and the sheet where they are wanted, and say where they are."""
    from unfog.data.pictures import save_picture
    from unfog.runtime.files import output, write_output

    if json is not None:
        write_output(json, report.to_json().encode())
        print(f"all findings: {json}")
    if sheet is not None and (drawn := report.sheet()) is not None:
        with output(sheet) as part:
            save_picture(drawn, part)
        print(f"{what}: {sheet}")


def _within(path: Path, budget: str) -> tuple[int | None, str | None]:
    """Return the side that fits a budget, if one was chosen, and what to expect."""
    from unfog.training.proportion import expectation

    chosen = Training(data=str(path), budget=budget)
    recipe, size = chosen.proportioned("folder")
    side = getattr(recipe.data, "size", None) if size is not None else None
    return side, expectation(recipe, chosen.seconds)


def recipe(
    recipe: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RECIPE|RUN", help_behavior_hint="")] = "",
    /,
    *,
    training: Flat[Training],
) -> None:
    """Explain the settings of a recipe or a run: what each one is now, what it does, and what else it can be.

    Takes the options of train, which change what is shown: an option of another kind is shown once that is chosen.

    For example:

      unfog recipe digits
      unfog recipe digits --set solver=heun --set optimizer=muon
      unfog recipe folder --data my_pictures --size 32
      unfog recipe runs/digits

    Args:
        recipe: Name of a recipe, which `unfog recipes` lists, or a run folder.
    """
    import shutil

    from unfog.recipes.presets import RECIPES
    from unfog.runs.run import read_recipe

    if recipe not in RECIPES and ("/" in recipe or Path(recipe).is_dir()):
        found = read_recipe(Path(recipe)).set(*training.set)
    else:
        found = training.recipe(recipe)
    width = min(120, shutil.get_terminal_size((100, 24)).columns)
    about = (RECIPES[recipe].__doc__ or "").split("\n")[0] if recipe in RECIPES else found.name
    print(f"{recipe}: {about}\nChange a setting with --set NAME=VALUE, in `unfog train`, `plan` and here.\n")
    print(found.explain(width))


def recipes() -> None:
    """List the recipes; `unfog recipe NAME` explains one."""
    from rich.console import Console
    from rich.table import Table

    from unfog.recipes.presets import RECIPES

    rows = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for name, build in RECIPES.items():
        rows.add_row(f"[bold]{name}[/]", (build.__doc__ or "").split("\n")[0])
    Console().print(rows)


def explain(
    run: RunFolder,
    /,
    *,
    step: int,
    row: int = 0,
    prompt: SomeText = None,
    seed: Seed = 0,
    out: SomePath = None,
    device: Device = "auto",
) -> None:
    """Show the equations of one denoising step with this run's own numbers, in the terminal and as a page.

    A held-out row is noised to the time of the step. Shows beta, alpha bar and SNR, the network's input and output, the
    resulting x0 and eps, the weight in the loss, and the posterior of the previous step. Of a model conditioned on text
    it also shows where each word is attended to, and how much attention moves between words during the denoising.

    For example:

      unfog explain runs/digits --step 500
      unfog explain runs/digits --step 900 --row 3 --out explained
      unfog explain runs/shapes --step 500 --prompt "a large red circle left of a small blue square"

    Args:
        step: Step of the schedule, from 1 (almost clean data) to the last, often 1000 (pure noise).
        row: Number of the held-out row.
        prompt: Text whose words are followed through the denoising. Default: the caption of the row.
        out: Folder for the pages. Default: RUN/explain.
    """
    from unfog.reports.attended import attended
    from unfog.reports.explain import explain as work_out
    from unfog.runs.run import load
    from unfog.runtime.files import locked

    folder = arguments.folder(out or run / "explain")
    loaded = load(run, device)
    arguments.folder(folder, loaded.recipe)
    with locked(folder):
        found = work_out(loaded, step, row, seed)
        words = attended(loaded, prompt, found.caption, seed)
        print(found.text())
        if words is not None:
            print(f"\n{words.text()}")
        print(f"\npage: {found.write(folder, f'step-{step}')}")
        if words is not None:
            print(f"attention: {words.write(folder)}")


def report(
    run: RunFolder,
    /,
    *,
    guidance: SomeFloat = None,
    steps: SomeInt = None,
    seed: int = 0,
    out: SomePath = None,
    data: MovedData = None,
    accept_changed_data: AcceptChangedData = False,
    device: Device = "auto",
) -> None:
    """Write a report on a run as one self-contained HTML file, and as Markdown.

    Draws samples, a film, and the training rows nearest to the samples; includes the results of evaluate and bench if
    there are any.

    For example:

      unfog report runs/digits
      unfog report runs/digits --guidance 1 --seed 3 --out my_report

    Args:
        guidance: Scale of classifier-free guidance of the samples; 1 is off. Default: the recipe's.
        steps: Steps of the solver; default: the recipe's.
        seed: Seed of the samples.
        out: Folder for report.html, report.md and the pictures. Default: RUN/report.
    """
    from dataclasses import replace

    from rich.console import Console

    from unfog.reports.report import report as gather
    from unfog.runs.data import Changed, moved
    from unfog.runs.run import load
    from unfog.runtime.files import locked

    folder = arguments.folder(out or run / "report")
    loaded = load(run, device)
    loaded = replace(loaded, recipe=moved(loaded.recipe, data))
    arguments.folder(folder, loaded.recipe)
    with locked(folder):
        changed: Changed = "accept" if accept_changed_data else "refuse"
        found = gather(loaded, folder, seed, changed, guidance=guidance, steps=steps, console=Console(stderr=True))
        print(f"report: {found.write()}")
