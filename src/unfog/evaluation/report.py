"""How good the samples of a run are, beside what real held-out data score."""

from dataclasses import asdict, dataclass

import numpy as np
from torch import Tensor

from unfog.data.source import Batch, Source
from unfog.errors import UserError
from unfog.evaluation.metrics import Rows, block_coverage, coverage, fit_reader, nearest_distances
from unfog.run import Run

ROWS = 10_000
"""Training rows, at most, that classifier and neighbours are fitted on."""
K = 5


@dataclass(frozen=True)
class Scores:
    """What one set of rows scores.

    Attributes:
        accuracy: Share that the classifier reads as their label.
        distance_median: Median distance to the nearest training row, in pixel values.
        distance_low: 5th percentile of that distance.
        coverage: Share of training rows that are covered, in blocks as large as the held-out set.
    """

    accuracy: float
    distance_median: float
    distance_low: float
    coverage: float


@dataclass(frozen=True)
class Evaluation:
    """The scores of samples and of real held-out rows, and how they were obtained."""

    samples: Scores
    held_out: Scores
    guidance: float
    steps: int
    nfe_per_sample: int
    protocol: str

    @property
    def ratios(self) -> dict[str, float | None]:
        """Return each score of the samples over that of the held-out rows; None where that is 0."""
        mine, real = asdict(self.samples), asdict(self.held_out)
        return {name: mine[name] / real[name] if real[name] else None for name in mine}

    def to_json(self) -> dict[str, object]:
        """Return everything as plain values."""
        return {**asdict(self), "ratios": self.ratios}


class Judge:
    """A classifier and neighbours fitted on real training rows."""

    def __init__(self, train: Source, heldout: Source) -> None:
        """Fit on up to 10,000 rows.

        Raises: UserError: If the rows have no classes, or one.
        """
        if not train.classes:
            raise UserError("this evaluation reads classes, and the run's data have none")
        self.rows, self.labels = _rows(_first(train))
        if len(np.unique(self.labels)) < 2:
            raise UserError("this evaluation tells classes apart, and the run's data have only one")
        self.reader = fit_reader(self.rows, self.labels)
        real, labels = _rows(_first(heldout))
        self.block = len(real)
        self.held_out = self.score(real, labels)

    def score(self, rows: Rows, labels: "np.typing.NDArray[np.int64]") -> Scores:
        """Score rows, `(count, features)`, that are meant to show `labels`, `(count,)`."""
        distances = nearest_distances(rows, self.rows)
        covered = (
            block_coverage(rows, self.rows, self.block, K) if len(rows) >= self.block else coverage(rows, self.rows, K)
        )
        return Scores(float(self.reader.score(rows, labels)), distances.median, distances.low, covered)


def evaluate(
    run: Run, judge: Judge, count: int, *, guidance: float, steps: int | None = None, seed: int = 0
) -> Evaluation:
    """Score `count` samples of a run, all classes in turn.

    Args:
        run: The run.
        judge: Fitted on the run's data.
        count: Number of samples; at least as many as held-out rows, so that coverage can be compared.
        guidance: Scale of classifier-free guidance; 1 is off.
        steps: Steps of the solver; the recipe's if None.
        seed: Seed of the noise.

    Raises: UserError: If there are fewer samples than held-out rows.
    """
    if count < judge.block:
        raise UserError(f"the evaluation compares with {judge.block} held-out rows: ask for -n {judge.block} or more")
    sampler = run.sampler(guidance=guidance, steps=steps, seed=seed)
    labels = sampler.labels(count)
    if labels is None:
        raise UserError("this evaluation reads classes, and the run's model was trained without them")
    calls: list[object] = []
    listener = run.denoiser.network.register_forward_hook(lambda *call: calls.append(None))  # type: ignore[attr-defined]
    with run.arithmetic():
        samples = sampler(count)
    listener.remove()
    evaluations = len(calls) // -(-count // sampler.settings.batch)
    protocol = (
        f"{count} samples, classes in turn, seed {seed}; classifier, distances and coverage (k = {K}, in blocks of "
        f"{judge.block}) in raw pixels against {len(judge.rows)} training rows; {judge.block} held-out rows"
    )
    rows, wanted = _rows(Batch(samples, labels))
    return Evaluation(
        judge.score(rows, wanted), judge.held_out, guidance, sampler.settings.steps, evaluations, protocol
    )


def _first(source: Source) -> Batch:
    """Return evenly spread rows, at most 10,000."""
    return source.take(np.linspace(0, len(source) - 1, min(len(source), ROWS)).astype(np.int64))


def _rows(batch: Batch) -> "tuple[Rows, np.typing.NDArray[np.int64]]":
    """Return a batch as flat rows, and its labels."""
    assert isinstance(batch.labels, Tensor)
    return batch.x.flatten(1).double().numpy(), batch.labels.numpy()


def table(found: list[Evaluation]) -> str:
    """Return evaluations as a table, with the real held-out rows in the last line."""
    lines = [
        "                    accuracy   nearest-neighbour distance      coverage",
        " " * 31 + "median      5th percentile",
    ]
    for one in found:
        name = f"guidance {one.guidance:g}"
        lines.append(_line(name, one.samples, one.ratios))
    lines.append(_line("real, held out", found[0].held_out, None))
    return "\n".join([*lines, f"({found[0].protocol}; in brackets: share of the held-out rows' score)"])


def _line(name: str, scores: Scores, ratios: dict[str, float | None] | None) -> str:
    """Return one line of the table."""

    def cell(key: str, text: str) -> str:
        if ratios is None:
            return text
        ratio = ratios[key]
        return f"{text} (-)" if ratio is None else f"{text} ({ratio:.2f})"

    cells = (
        cell("distance_median", f"{scores.distance_median:.0f}"),
        cell("distance_low", f"{scores.distance_low:.0f}"),
        cell("coverage", f"{scores.coverage:.3f}"),
    )
    return f"{name:18}  {scores.accuracy:7.1%}    {cells[0]:12}{cells[1]:18}{cells[2]}"
