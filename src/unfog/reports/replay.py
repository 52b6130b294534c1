"""`unfog replay`: the exact batch, times and noise of any step of a run, and the loss of each row."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from unfog.data.buckets import rows_of_training
from unfog.data.pictures import save_picture
from unfog.data.source import Batch
from unfog.diffusion.denoiser import Denoiser
from unfog.diffusion.schedules import Schedule
from unfog.diffusion.times import Importance
from unfog.generation.sampler import shown
from unfog.recipes.build import build_codec
from unfog.recipes.conditions import captions
from unfog.recipes.objective import Draw, OneLoss, Seen
from unfog.runs.reopening import reopen
from unfog.runtime.errors import UserError
from unfog.runtime.files import disk, write_whole
from unfog.runtime.lines import aligned
from unfog.runtime.tensors import load_into, read_tensors
from unfog.training.budget import trace_of
from unfog.training.trainer import Trainer

LATEST = 10**12
"""Latest step that can be replayed: the rows before it are counted in 64 bits."""


@dataclass(frozen=True)
class Row:
    """One row of a batch.

    Attributes:
        place: Its place in the batch, from 0.
        row: Its number in the training set, from 0.
        file: Where it comes from, for pictures of a folder.
        shows: Its caption, class or values, where the data have any.
        dropped: Whether its condition was dropped.
        t: Its time.
        s: The time that it leads to, for flow maps.
        log_snr: The log-SNR at time `t`, of models of numbers.
        loss: Its loss.
    """

    place: int
    row: int
    file: str
    shows: str
    dropped: bool
    t: float
    s: float | None
    log_snr: float | None
    loss: float


@dataclass(frozen=True)
class Replay:
    """A step with its batch drawn again.

    Attributes:
        step: Its number, from 1.
        seed: Seed of the run.
        weights: Under which weights the losses are.
        note: What may differ from the training besides the weights; empty if nothing does.
        loss: The mean loss, each row weighed as in the training.
        rows: The rows.
        draw: Everything random in the batch, with the times as the training spread them.
        picture: Clean rows, or where a flow map is to lead, above noisy ones.
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
        """Return a line for each row, and the largest and the median loss; empty columns are omitted."""
        heads = ("place", "row", "file", "shows", "condition", "t", "s", "log-SNR", "loss")
        columns = [column for column in zip(heads, *map(_cells, self.rows), strict=True) if any(column[1:])]
        lines = [f"step {self.step}: loss {self.loss:.4g} under {self.weights}"]
        if self.note:
            lines.append(self.note)
        lines.append(aligned(list(zip(*columns, strict=True))))
        median = float(torch.tensor([row.loss for row in self.rows]).nanmedian())
        lines.append(f"largest: {self.worst.loss:.4g} at place {self.worst.place}; median: {median:.4g}")
        return "\n".join(lines)

    def write(self, folder: Path) -> str:
        """Write step-N.json and step-N.png; return where they are.

        Raises: EnvironmentFailure: If the disk fails.
        """
        with disk(folder):
            folder.mkdir(parents=True, exist_ok=True)
        rows = [{name: _plain(value) for name, value in asdict(row).items()} for row in self.rows]
        plain = {"step": self.step, "seed": self.seed, "weights": self.weights, "note": self.note}
        text = json.dumps({**plain, "loss": _plain(self.loss), "rows": rows}, indent=1)
        write_whole(folder / f"step-{self.step}.json", text.encode())
        save_picture(self.picture, folder / f"step-{self.step}.png")
        above = "x0" if all(row.s is None for row in self.rows) else "where it is to lead"
        return f"{above} above x_t: {folder / f'step-{self.step}.png'}, and the rest in the .json next to it"


def _cells(row: Row) -> tuple[str, ...]:
    """Return a row of a batch as cells of a table."""
    dropped = "dropped" if row.dropped else ""
    leads = "" if row.s is None else f"{row.s:.4f}"
    ratio = "" if row.log_snr is None else f"{row.log_snr:.2f}"
    numbers = (f"{row.t:.4f}", leads, ratio, f"{row.loss:.4g}")
    return (str(row.place), str(row.row), row.file, row.shows, dropped, *numbers)


def replay(path: str | Path, step: int, device: str = "auto") -> Replay:
    """Draw the batch of a step again, and measure the loss of each row with the dropout of that step.

    The weights are those of the newest checkpoint from before the step: exactly the weights of the step if it was
    written right before. Where there is none they are those of the run's model.

    Args:
        path: The run folder.
        step: Number of the optimizer step, from 1, as in metrics.jsonl; it need not have been taken yet.
        device: Where to compute.

    Returns: The step.
    Raises: UserError: If the folder is no run folder, its data changed, its model is no denoiser and its objective does
        not say what the network is given, or there is no such step.
    """
    path = Path(path)
    if not 1 <= step <= LATEST:
        raise UserError(f"steps count from 1, as in metrics.jsonl: there is no step {step}")
    trainer = reopen(path, device)
    own = getattr(type(trainer.objective), "seen", None) is not OneLoss.seen  # it says what its network is given
    schedule = trainer.recipe.schedule if own else trainer.denoiser.schedule
    weights, exact = _restore(trainer, path, step)
    note = ""
    if isinstance(trainer.recipe.times, Importance) and not exact:
        note = (
            f"times=importance: times follow the losses of the steps before, and are those of step {step} only where "
            f"there is a checkpoint of step {step - 1}"
        )
    trainer.step = step - 1
    if trainer.trace is not None:
        whole, place = trace_of(path), step - 1 - trainer.settings.began // trainer.settings.batch
        if 0 <= place < len(whole.progress):
            trainer.trace = whole.before(place)
            torch.set_num_threads(whole.threads[place])
    draw, weight = trainer.prepare(trainer.draws(trainer.step))
    first = next(iter(trainer.trained))  # the loss that the training reports
    with torch.random.fork_rng():
        losses = torch.cat([losses[first].detach().cpu() for losses in trainer.portions(draw)])
    draw = Draw(*(None if part is None else part.cpu() for part in draw))  # type: ignore[arg-type]  # no condition
    loss = float((losses * weight.to(losses)).mean())
    seen = trainer.objective.seen(draw, trainer.context())
    rows = tuple(_rows(trainer, draw, losses, seen, schedule))
    return Replay(step, trainer.recipe.seed, weights, note, loss, rows, draw, _picture(trainer, seen, schedule))


def _restore(trainer: Trainer, path: Path, step: int) -> tuple[str, bool]:
    """Load the newest weights from before a step; return what they are, and whether the step saw just these."""
    try:
        trainer.restore(step - 1)
        return f"the checkpoint of step {trainer.step}", trainer.step == step - 1
    except UserError:  # no checkpoint is so old
        where = path / "model.safetensors"
        load_into(trainer.model, read_tensors(where), where)
        trainer.model.eval()
        return "the averaged weights of the run, since no checkpoint is from before it", False


def _rows(trainer: Trainer, draw: Draw, losses: Tensor, seen: Seen, schedule: Schedule) -> Iterator[Row]:
    """Yield the rows of the trainer's next batch, with their losses."""
    numbers, files, shows = trainer.draws.rows(trainer.step), [""] * len(seen.t), [""] * len(seen.t)
    if seen.rows is None:
        batch = rows_of_training(trainer.data.train).take(numbers)
        files, shows = list(batch.files or files), _shows(batch, trainer.recipe.classes)
    else:
        numbers = seen.rows.numpy()
    log_snr = schedule.log_snr(seen.t).tolist() if isinstance(trainer.model, Denoiser) else [None] * len(seen.t)
    for place in range(len(seen.t)):
        yield Row(
            place,
            int(numbers[place]),
            files[place],
            shows[place],
            draw.condition is not None and seen.rows is None and bool(draw.drop[place]),
            float(seen.t[place]),
            None if seen.s is None else float(seen.s[place]),
            log_snr[place],
            float(losses[place]),
        )


def _picture(trainer: Trainer, seen: Seen, schedule: Schedule) -> Image.Image:
    """Draw what rows lead to above what the network is given."""
    codec, between = build_codec(trainer.recipe), seen.s is not None and seen.rows is not None
    above = shown(seen.aim, schedule, seen.s) if between and seen.s is not None else seen.aim
    noisy = shown(seen.x_t, schedule, seen.t)
    names = ("x_s" if between else "x0", "x_t")
    return trainer.recipe.modality.paired(codec.decode(above), codec.decode(noisy), names=names)


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
