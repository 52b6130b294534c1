"""The verb rivals."""

from pathlib import Path
from typing import Annotated

import tyro

from unfog.cli import arguments
from unfog.cli.options import Count, Device


def rivals(
    *,
    data: str = "digits",
    budget: str = "3m",
    seeds: int = 1,
    out: Path = Path("runs/rivals"),
    n: Count = 1000,
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="PATH=VALUE")] = (),
    device: Device = "auto",
) -> None:
    """Train diffusion, a GAN, a VAE and an autoregressive model for the same time, and measure them alike.

    Writes rivals.md, a table with everything that is needed to read it, rivals.json and a sheet. Stopped, it resumes
    with the same command.

    For example:

      unfog rivals --data digits --budget 3m --seeds 3
      unfog rivals --data mnist --set data.path=mnist --budget 10m --out runs/rivals-mnist

    Args:
        data: Recipe whose data are trained on: digits, mnist, fashion, cifar10 or another of pictures; or a folder of
            pictures.
        budget: Time of each training.
        seeds: Trainings of each family.
        out: Folder for their runs and for the table.
        n: Samples to score each with.
        set: Change a setting of the recipe that all have, for instance data.path.
    """
    from rich.console import Console

    from unfog.evaluation.rivals import Page
    from unfog.evaluation.rivals import rivals as measure
    from unfog.recipes.presets import RECIPES
    from unfog.runtime.files import locked

    named = data in RECIPES
    chosen = arguments.chosen(data if named else "folder", None if named else data, None, set, "auto", None, None)
    seconds = arguments.seconds(budget)
    with locked(arguments.folder(out, chosen)):
        found = measure(chosen, out, seconds, seeds, count=n, device=device, console=Console(stderr=True))
        page = Page(found, chosen, seconds, n)
        print(page.text())
        print(page.write(out, device))
