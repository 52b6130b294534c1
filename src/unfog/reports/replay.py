"""`unfog replay`: the exact batch, times and noise of any step of a run, and the loss of each row."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from PIL import Image

from unfog.data.pictures import paired, save_picture
from unfog.data.source import Batch
from unfog.diffusion.times import Importance
from unfog.evaluation.report import aligned
from unfog.generation.sampler import shown
from unfog.recipes.build import build_codec
from unfog.recipes.conditions import captions
from unfog.recipes.objective import Draw
from unfog.runs.run import reopen
from unfog.runtime.errors import UserError
from unfog.runtime.files import disk, write_whole
from unfog.runtime.tensors import load_into, read_tensors


@dataclass(frozen=True)
class Row:
    """One row of a batch.

    Attributes:
        place: Its place in the batch, from 0.
        row: Its number in the training set, from 0.
        file: Where it comes from, for pictures of a folder.
        shows: Its caption, class or values, where the data have any.
        dropped: Whether the model was not told its condition.
        t: Its time.
        log_snr: The log-SNR at that time.
        loss: Its loss.
    """

    place: int
    row: int
    file: str
    shows: str
    dropped: bool
    t: float
    log_snr: float
    loss: float


@dataclass(frozen=True)
class Replay:
    """A step, drawn again.

    Attributes:
        step: Its number, from 1.
        seed: Seed of the run.
        weights: Under which weights the losses are.
        note: What of it may differ from what the training saw; empty if nothing does but the weights.
        loss: The mean loss, each row weighed as in the training.
        rows: The rows.
        draw: Everything random in the batch, with the times as the training spread them.
        picture: Clean rows above noisy ones.
    """

    step: int
    seed: int
    weights: str
    note: str
    loss: float
    rows: tuple[Row, ...]
    draw: Draw
    picture: Image.Image

    @property
    def worst(self) -> Row:
        """The row with the largest loss, or one without a finite loss."""
        return max(self.rows, key=lambda row: (not math.isfinite(row.loss), row.loss))

    def table(self) -> str:
        """Return a line for each row, and what stands out; columns that are empty are left out."""
        heads = ("place", "row", "file", "shows", "condition", "t", "log-SNR", "loss")
        lines = [
            (
                str(row.place),
                str(row.row),
                row.file,
                row.shows,
                "dropped" * row.dropped,
                f"{row.t:.4f}",
                f"{row.log_snr:.2f}",
                f"{row.loss:.4g}",
            )
            for row in self.rows
        ]
        columns = [column for column in zip(heads, *lines, strict=True) if any(column[1:])]
        middle = float(torch.tensor([row.loss for row in self.rows]).nanmedian())
        worst = f"largest: {self.worst.loss:.4g} at place {self.worst.place}; median: {middle:.4g}"
        title = f"step {self.step}: loss {self.loss:.4g} under {self.weights}"
        return "\n".join([title, *filter(None, [self.note]), aligned(list(zip(*columns, strict=True))), worst])

    def write(self, folder: Path) -> str:
        """Write step-N.json and step-N.png; return the table, and where they are.

        Raises: EnvironmentFailure: If the disk fails.
        """
        with disk(folder):
            folder.mkdir(parents=True, exist_ok=True)
        rows = [{name: _plain(value) for name, value in asdict(row).items()} for row in self.rows]
        plain = {"step": self.step, "seed": self.seed, "weights": self.weights, "note": self.note}
        text = json.dumps({**plain, "loss": _plain(self.loss), "rows": rows}, indent=1)
        write_whole(folder / f"step-{self.step}.json", text.encode())
        save_picture(self.picture, folder / f"step-{self.step}.png")
        return f"{self.table()}\nx0 above x_t: {folder / f'step-{self.step}.png'}, and all of it in the .json beside it"


def replay(path: str | Path, step: int, device: str = "auto") -> Replay:
    """Draw a step of a run again, and measure the loss of each row with the dropout of that step.

    The weights are those of the newest checkpoint from before the step, and so just those that the step saw where it
    was written right before; else they are those of the run's model.

    Args:
        path: The run folder.
        step: Number of the optimizer step, from 1, as in metrics.jsonl; it need not have been taken yet.
        device: Where to compute.

    Returns: The step.
    Raises: UserError: If the folder is no run folder, its data changed, or there is no such step.
    """
    path = Path(path)
    if step < 1:
        raise UserError(f"steps count from 1, as in metrics.jsonl: there is no step {step}")
    trainer = reopen(path, device)
    try:
        trainer.restore(step - 1)
        weights, exact = f"the checkpoint of step {trainer.step}", trainer.step == step - 1
    except UserError:  # none is so old
        where = path / "model.safetensors"
        load_into(trainer.denoiser, read_tensors(where), where)
        trainer.denoiser.eval()
        weights, exact = "the averaged weights of the run, since no checkpoint is from before it", False
    note = ""
    if isinstance(trainer.recipe.times, Importance) and not exact:
        note = (
            f"times=importance: times follow the losses of the steps before, and are those of step {step} only where "
            f"there is a checkpoint of step {step - 1}"
        )
    trainer.step = step - 1
    draw, weight = trainer.prepare(trainer.draws(trainer.step))
    with torch.random.fork_rng():
        losses = torch.cat([losses["loss"].detach().cpu() for losses in trainer.portions(draw)])
    draw = Draw(*(None if part is None else part.cpu() for part in draw))  # type: ignore[arg-type]  # no condition
    schedule, codec = trainer.denoiser.schedule, build_codec(trainer.recipe)
    t = trainer.recipe.times(draw.u, schedule)
    noisy = shown(schedule.add_noise(draw.x0, draw.noise, t), schedule, t)
    numbers = trainer.draws.rows(trainer.step)
    batch = trainer.data.train.take(numbers)
    dropped = draw.drop.tolist() if trainer.denoiser.embedder else [False] * len(t)
    columns = (
        range(len(t)),
        numbers.tolist(),
        batch.files or [""] * len(t),
        _shows(batch, trainer.recipe.classes),
        dropped,
        t.tolist(),
        schedule.log_snr(t).tolist(),
        losses.tolist(),
    )
    return Replay(
        step,
        trainer.recipe.seed,
        weights,
        note,
        float((losses * weight.to(losses)).mean()),
        tuple(Row(*row) for row in zip(*columns, strict=True)),
        draw,
        paired(codec.decode(draw.x0), codec.decode(noisy)),
    )


def _shows(batch: Batch, classes: Sequence[str]) -> list[str]:
    """Return what is known of each row, as text."""
    if batch.captions is not None or (batch.labels is not None and classes):
        return captions(batch, classes)
    if batch.values is not None:
        return [", ".join(f"{value:g}" for value in row) for row in batch.values.tolist()]
    return [""] * len(batch.x)


def _plain(value: object) -> object:
    """Return a value as JSON has it, which knows no NaN and no infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
