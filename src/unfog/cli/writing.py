"""The verb that completes what is given in part: texts, series, rows of tables, clips and volumes."""

from pathlib import Path
from typing import TYPE_CHECKING

from unfog.cli.options import Count, Guidance, RunFolder, Seed, SomeFloat, SomePath, SomeText, Steps
from unfog.runtime.errors import UserError

if TYPE_CHECKING:
    from unfog.runs.run import Run


def complete(
    run: RunFolder,
    /,
    *,
    text: SomeText = None,
    file: SomePath = None,
    after: SomeFloat = None,
    label: SomeText = None,
    gap: str = "_",
    more: bool = False,
    n: Count = 4,
    steps: Steps = None,
    guidance: Guidance = None,
    seed: Seed = 0,
    out: SomePath = None,
    device: str = "auto",
) -> None:
    """Fill in gaps or continue a beginning: of a text, or of a series, a table's row, a clip or a volume in a file.

    Texts are printed, a line each. Of a file what is known is kept to the bit; the completed rows are written as files
    of its kind, with a sheet.

    For example:

      unfog edit complete runs/text --text "7 + _ = 12"
      unfog edit complete runs/text --text "two old " --label sentence -n 8
      unfog edit complete runs/series --file gaps.csv        (empty cells are filled in)
      unfog edit complete runs/series --file past.csv --after 0.75 -n 20
      unfog edit complete runs/video --file clip.gif --after 0.5

    Args:
        text: The text, with a gap for each character that is not known. Without gaps it is a beginning.
        file: A CSV, GIF or array file of the run's kind, instead of a text. Empty cells are missing.
        after: The share of the file's moments or frames that is kept; the rest is redrawn.
        label: Class of the results, by name or number. Default: any.
        gap: The character that marks an unknown one.
        more: Characters may follow the text, too.
        n: Number of results.
        out: Folder for the rows. Default: RUN/completed.
        device: cpu, cuda, cuda:1, mps, or auto.
    """
    from unfog.runs import asking
    from unfog.runs.completing import complete as completed
    from unfog.runs.run import load

    if (text is None) == (file is None):
        raise UserError("give --text for a model of texts, or --file for a row of another kind")
    loaded = load(run, device)
    if file is not None:
        if more or gap != "_":
            raise UserError(
                "--gap and --more go with --text: in a file empty cells are missing, or what is behind --after"
            )
        _of_file(loaded, file, after, label, n, steps, guidance, seed, out)
        return
    if after is not None or out is not None:
        raise UserError("--after and --out go with --file: a text is continued behind its end, and printed")
    asked, given = asking.asked(loaded.recipe, label=label), str(text)
    for line in completed(loaded, given, n, asked, gap=gap, more=more, steps=steps, guidance=guidance, seed=seed):
        print(line.encode("unicode_escape").decode())


def _of_file(
    run: "Run",
    file: Path,
    after: float | None,
    label: str | None,
    n: int,
    steps: int | None,
    guidance: float | None,
    seed: int,
    out: Path | None,
) -> None:
    """Complete the row in a file, and write the results."""
    from unfog.cli import arguments
    from unfog.data.pictures import save_picture
    from unfog.runtime.files import disk

    folder = arguments.folder(out or run.path / "completed")
    arguments.folder(folder, run.recipe)
    guidance = 1.0 if label is None and guidance is None else guidance
    rows = run.complete(file, after=after, count=n, label=label, steps=steps, guidance=guidance, seed=seed)
    modality = run.recipe.modality
    with disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if modality.together:
        modality.write(rows, folder / f"{modality.name}{modality.suffix}")
    else:
        for place, row in enumerate(rows):
            modality.write(row[None], folder / f"{place:05}{modality.suffix}")
    save_picture(modality.labelled(rows, [f"{file.name}, completed"] * n), folder / "sheet.png")
    print(f"{n} {modality.name}: {folder / 'sheet.png'}")
