"""Draw the pictures of the documentation from real runs: `make figures`, or `python benchmarks/figures.py --runs runs`.

Runs that are not there are named, and their pictures stay as they are.
"""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import tyro
from matplotlib.figure import Figure
from PIL import Image

from unfog.app.studio import fog, schedules
from unfog.data.lettering import labelled_sheet
from unfog.data.modality import sheet
from unfog.data.pictures import enlargement, row_of, save_picture, tile
from unfog.diffusion.tables import Linear
from unfog.generation.edits import inpaint
from unfog.generation.sampler import shown
from unfog.recipes.build import build_codec, build_data
from unfog.reports.explain import explain
from unfog.reports.film import film
from unfog.runs.naming import written_pictures
from unfog.runs.run import Run, load
from unfog.runtime.errors import UserError
from unfog.runtime.randomness import normal
from unfog.training.objectives.distillation import Distillation

SHOWN, VERSIONS = 10, 4
"""Pictures that are made anew, and how often each."""
STEPS = (0, 50, 100, 200, 400, 700, 1000)
"""Of the forward process."""


def held_out(run: Run, row: int) -> torch.Tensor:
    """Return a held-out picture as the diffusion sees it, `(1, *shape)`."""
    return build_codec(run.recipe).encode(build_data(run.recipe)[1].heldout.take(np.array([row])).x)


def draw_fog(run: Run, path: Path) -> None:
    """Draw one picture at some steps of the forward process of DDPM."""
    schedule, x0 = Linear(), held_out(run, 3)
    eps = normal(0, "figure", 0, 0, 1, tuple(x0.shape[1:]))
    states = [shown(schedule.add_noise(x0, eps, step / 1000), schedule, torch.tensor(step / 1000)) for step in STEPS]
    pictures = build_codec(run.recipe).decode(torch.cat(states))
    save_picture(tile(pictures, len(STEPS), enlargement(pictures.shape[-1], 112)), path)


def draw_schedules(run: Run, path: Path) -> None:
    """Draw signal and log-SNR of the schedules over time, above one picture in the fog of each."""
    picture = path.with_name("picture.png")
    save_picture(tile(build_data(run.recipe)[1].heldout.take(np.array([3])).x, 1, gap=0), picture)
    names, moments = list(schedules()), (0.1, 0.3, 0.5, 0.7, 0.9)
    figure = Figure(figsize=(10, 6.5), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=(1, 1.1))
    for panel, title in zip(upper.subplots(1, 2), ("signal's power, alpha²", "log SNR"), strict=True):
        for name, schedule in schedules().items():
            t = torch.linspace(0.001, 0.999, 300, dtype=torch.float64)
            values = schedule.alpha(t) ** 2 if title.startswith("signal") else schedule.log_snr(t)
            panel.plot(t, values, label=name, linewidth=1.3)
        panel.set(xlabel="t", title=title)
        panel.legend(fontsize="small")
    panels = lower.subplots(len(names), len(moments))
    for column, moment in enumerate(moments):
        for row, (fogged, _) in enumerate(fog(picture, moment)):
            panels[row, column].imshow(fogged)
            panels[row, column].set(xticks=[], yticks=[], xlabel=f"t = {moment}" * (row == len(names) - 1))
            panels[row, column].set_ylabel(names[row] * (column == 0), rotation=0, ha="right", va="center")
    figure.savefig(path, dpi=100)
    picture.unlink()


def draw_strip(run: Run, path: Path) -> None:
    """Draw the denoising of three samples."""
    save_picture(film(run.sampler(), 3).strip(), path)


def draw_film(run: Run, path: Path) -> None:
    """Draw the denoising of eight samples, moving."""
    with TemporaryDirectory() as folder:
        shutil.copyfile(film(run.sampler(), 8).write(Path(folder))["film"], path)


def draw_explained(run: Run, path: Path) -> None:
    """Draw what the network sees in the fog of step 500."""
    picture = explain(run, 500, row=3).picture()
    assert picture is not None
    save_picture(picture, path)


def draw_sheet(run: Run, path: Path) -> None:
    """Draw samples, a column for each class where there are some."""
    columns = len(run.recipe.classes) if 1 < len(run.recipe.classes) <= 16 else 10
    save_picture(sheet(run.sample(6 * columns), columns), path)


def draw_inpainted(run: Run, path: Path) -> None:
    """Draw held-out pictures, what is kept of each, and four ways in which the rest is made anew."""
    heldout = build_data(run.recipe)[1].heldout
    rows = heldout.take(np.linspace(3, len(heldout) - 1, SHOWN).astype(np.int64))
    side, sampler = rows.x.shape[-1], run.sampler(steps=20)
    sampler = replace(sampler, settings=replace(sampler.settings, batch=VERSIONS))
    mask = torch.zeros(rows.x.shape[2:], dtype=torch.bool)
    mask[side // 4 : -side // 4, side // 4 : -side // 4] = True
    drawn = [rows.x, torch.where(mask, 127, rows.x)]
    made = []
    for place, picture in enumerate(rows.x):
        asked = int(rows.labels[place]) if sampler.classes and rows.labels is not None else None
        with run.arithmetic():
            made.append(inpaint(sampler, picture, mask, VERSIONS, asked))
    save_picture(tile(torch.cat([*drawn, *torch.stack(made, 1)]), SHOWN, enlargement(side, 64)), path)


def draw_one_step(student: Run, path: Path) -> None:
    """Draw a teacher and below it its student in some numbers of steps, from the same noises."""
    objective = student.recipe.objective
    assert isinstance(objective, Distillation)
    teacher, guidance = load(objective.teacher), student.recipe.sampling.guidance
    count, usual = len(student.recipe.classes), student.recipe.grid
    blocks = [("teacher", teacher, steps) for steps in (1, 2, 4, 25)]
    blocks += [("student", student, steps) for steps in (1, 2, 4)]
    rows, gap = [], 0
    for name, run, steps in blocks:
        cells, gap = run.recipe.modality.cells(run.sample(count, steps=steps, guidance=guidance, grid=usual))
        rows.append((f"{name}, {steps} step{'s' if steps > 1 else ''}", cells))
    save_picture(labelled_sheet(rows, gap, stacked=True), path)


def draw_prompt(run: Run, path: Path) -> None:
    """Draw the README's prompt."""
    save_picture(sheet(run.sample(16, "a small red circle above a large blue square"), 8), path)


def draw_latent_or_pixel(folder: Path, path: Path) -> None:
    """Put samples in latents next to samples in pixels."""
    halves = []
    for name in ("latent", "pixel"):
        files = written_pictures(folder / name)[:32]
        if not files:
            raise FileNotFoundError(f"{folder / name} holds no pictures")
        pictures = [np.asarray(Image.open(file).convert("RGB")) for file in files]
        halves.append(sheet(torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2), 8))
    gap = Image.new("RGB", (16, halves[0].height), "white")
    save_picture(row_of([halves[0], gap, halves[1]]), path)


def kept(name: str) -> Callable[[Path, Path], None]:
    """Return what copies a picture that a verb or another benchmark drew into a folder."""
    return lambda folder, path: shutil.copyfile(folder / name, path) and None


def drawn(draw: Callable[[Run, Path], None]) -> Callable[[Path, Path], None]:
    """Return what draws a picture of the run in a folder."""
    return lambda folder, path: draw(load(folder), path)


FIGURES: dict[str, tuple[str, Callable[[Path, Path], None]]] = {
    "tour/fog.png": ("mnist", drawn(draw_fog)),
    "tour/schedules.png": ("mnist", drawn(draw_schedules)),
    "tour/loss.png": ("digits", kept("loss.png")),
    "tour/explain.png": ("mnist", drawn(draw_explained)),
    "tour/strip.png": ("mnist", drawn(draw_strip)),
    "tour/one-step.png": ("mnist-fast", drawn(draw_one_step)),
    "inpainted.png": ("mnist", drawn(draw_inpainted)),
    "inpainted-latents.png": ("emoji/latent", drawn(draw_inpainted)),
    "digits.png": ("digits", drawn(draw_sheet)),
    "strip.png": ("digits", drawn(draw_strip)),
    "film.gif": ("digits", drawn(draw_film)),
    "mnist.png": ("mnist", drawn(draw_sheet)),
    "levels.png": ("mnist", kept("evaluation/levels.png")),  # of `unfog evaluate`
    "bench.png": ("mnist", kept("bench/bench.png")),  # of `unfog bench`
    "fashion.png": ("fashion", drawn(draw_sheet)),
    "prompt.png": ("shapes", drawn(draw_prompt)),
    "autoencoder.png": ("emoji/autoencoder", kept("evaluation/pairs.png")),  # of benchmarks/emoji.py, as what follows
    "text-seen.png": ("emoji", kept("train.png")),
    "text-heldout.png": ("emoji", kept("heldout.png")),
    "latent-or-pixel.png": ("emoji", draw_latent_or_pixel),
}
"""Each picture: in which folder of the runs it is found, and how it is drawn; two more have benchmarks of their own."""


def main(runs: Path = Path("runs"), out: Path = Path("docs/images")) -> None:
    """Draw all pictures whose runs are there.

    Args:
        runs: Folder of the run folders digits, mnist, fashion and shapes, and of what other benchmarks wrote.
        out: Folder of the pictures.
    """
    (out / "tour").mkdir(parents=True, exist_ok=True)
    for name, (folder, draw) in FIGURES.items():
        try:
            draw(runs / folder, out / name)
            print(out / name)
        except (UserError, FileNotFoundError) as error:
            print(f"{out / name} stays: {error}")


if __name__ == "__main__":
    tyro.cli(main)
