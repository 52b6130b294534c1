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
    all: bool = False,
    bias: bool = False,
    out: Path = Path("runs/rivals"),
    n: Count = 1000,
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="PATH=VALUE")] = (),
    device: Device = "auto",
) -> None:
    """Train diffusion, a GAN, a VAE and an autoregressive model for the same time, and measure them alike.

    Writes rivals.md, a table with everything that is needed to read it and what tutorials claim with what was measured
    of it, rivals.json and a sheet. Stopped, it resumes with the same command.

    With --all it also trains a one-step student of diffusion, and each family with other learning rates, widths,
    numbers of parameters, times and amounts of data, most for a quarter of the time. With --bias it trains them on two
    classes, nine to one, and on fewer rows, to measure how often the rare class is drawn and training rows are copied.

    For example:

      unfog rivals --data digits --budget 3m --seeds 3
      unfog rivals --data mnist --set data.path=mnist --budget 10m --out runs/rivals-mnist

    Args:
        data: Recipe whose data are trained on: digits, mnist, fashion, cifar10 or another of pictures; or a folder of
            pictures.
        budget: Time of each training.
        seeds: Trainings of each family.
        all: Also a student, and variations: about three times the time of one seed.
        bias: Also what is biased and what is copied: about four times the time of one training more.
        out: Folder for their runs and for the table.
        n: Samples to score each with.
        set: Change a setting of the recipe that all have, for instance data.path.
    """
    from rich.console import Console

    from unfog.evaluation.bias import bias as measured_bias
    from unfog.evaluation.rival_page import Page
    from unfog.evaluation.rivals import Contest, habits_of
    from unfog.evaluation.rivals import rivals as measure
    from unfog.recipes.presets import RECIPES
    from unfog.runtime.files import locked

    named = data in RECIPES
    chosen = arguments.chosen(data if named else "folder", None if named else data, None, set, "auto", None, None)
    seconds = arguments.seconds(budget)
    with locked(arguments.folder(out, chosen)):
        contest = Contest(chosen, out, seconds, seeds, n, all)
        console = Console(stderr=True)
        found = measure(contest, device=device, console=console)
        skewed = measured_bias(contest, device=device, console=console) if bias else None
        page = Page(found, contest, skewed, habits_of(contest, device=device, console=console))
        print(page.text())
        print(page.write(device))
