"""Time to quality: how near the pictures of each toolkit come to real ones, by seconds of training from a cold start.

    python benchmarks/race.py --data DIR --tune                  the learning rates of the peers, three each
    python benchmarks/race.py --data DIR --minutes 30            the race; run it again to resume
    python benchmarks/race.py --report                           table and picture once more
    python benchmarks/race.py --data DIR --kind cifar10 --no-shipped --minutes 60 --ours-minutes 60 --moments 900 \
        --seeds 1 --only unfog lucidrains diffusers              an hour of CIFAR-10 each, after --tune

Unconditional; each toolkit with its own network, loss, optimizer, average and sampler (see `peers.py`), and once more
with a tuned learning rate. Each run is a process of its own, whose clock begins before its imports. Pictures are drawn
and scored off the clock: 25 evaluations of the network each, against the training set in the features of the classifier
of `unfog evaluate`, next to the score of held-out pictures. Writes race.md, race.json and race.png into OUT/KIND, and
there NAME.json for each run. Takes several hours, most of them for drawing; a file named pause in OUT/KIND, or in
OUT/KIND/tune, holds a peer and its clock between two steps for as long as the machine is needed for something else.
"""

import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib as mpl
import tyro
from contestant import OURS, Kind
from matplotlib import pyplot as plt
from peers import PEERS, drawn
from rich.console import Console
from safetensors.torch import load_file

from unfog.data.modality import sheet
from unfog.data.pictures import save_picture
from unfog.evaluation.judge import Judge
from unfog.evaluation.report import draw
from unfog.recipes.build import build_codec, build_data
from unfog.recipes.presets import recipe
from unfog.runs.run import load
from unfog.runtime.files import write_whole

MOMENTS = (15, 30, 60, 120, 180, 300, 450, 600, 900, 1200, 1500, 1800)
"""Seconds at which weights are kept."""
TICKS = (15, 30, 60, 120, 300, 600, 1200)
EVALUATIONS = 25
TUNED_WITH = 256
"""Pictures that tell which learning rate is best."""
FACTORS = (1, 3, 10)
"""Of a peer's own learning rate, tried."""
DISTANCES = (50, 20, 10, 5, 2, 1)
"""For the table of when each is reached."""
NAMES = (OURS, *PEERS)
THOROUGH: tuple[Kind, ...] = ("cifar10",)
"""Data sets whose pictures the quick judge reads too badly."""

Score = dict[str, Any]
"""A distance as plain values."""


@dataclass(frozen=True)
class Entry:
    """A run that takes part.

    Attributes:
        contestant: Who.
        moments: Seconds at which weights are kept.
        learning_rate: Of a peer.
        batch: Of a peer.
        seed: Of the training.
    """

    contestant: str
    moments: tuple[float, ...]
    learning_rate: float | None = None
    batch: int | None = None
    seed: int = 0

    @property
    def name(self) -> str:
        """All that the run depends on, as a name of a file."""
        options = "" if self.learning_rate is None else f"-lr{self.learning_rate:g}-batch{self.batch}"
        return f"{self.contestant}{options}-{self.moments[-1]:g}s-seed{self.seed}"

    @property
    def label(self) -> str:
        """What it is called in the table."""
        if self.contestant == OURS:
            return OURS
        own = PEERS[self.contestant]
        given = (self.learning_rate, self.batch) == (own.rate, own.size)
        return f"{self.contestant}, as shipped" if given else f"{self.contestant}, tuned"

    def arguments(self) -> list[str]:
        """Return the arguments of `contestant.py`."""
        given = ["--moments", *(f"{moment:g}" for moment in self.moments), "--seed", str(self.seed)]
        if self.learning_rate is not None:
            given += ["--learning-rate", repr(self.learning_rate), "--batch", str(self.batch)]
        return [self.contestant, *given]


@dataclass(frozen=True)
class Race:
    """Where a race on one data set lies.

    Attributes:
        kind: The data set.
        data: Its folder.
        out: Folder of the runs.
    """

    kind: Kind
    data: Path | None
    out: Path

    def trained(self, entry: Entry) -> dict[str, Any]:
        """Train, unless that is done, and return what the contestant says of it."""
        where = self.out / entry.name
        if not (where / "trained.json").exists():
            shutil.rmtree(where, ignore_errors=True)
            where.mkdir(parents=True)
            print(f"training {entry.name}", flush=True)
            script = str(Path(__file__).parent / "contestant.py")
            given = [] if self.data is None else ["--data", str(self.data)]
            command = [sys.executable, script, *entry.arguments(), *given, "--kind", self.kind, "--out", str(where)]
            subprocess.run([*command, "--started", repr(time.time())], check=True)
        found: dict[str, Any] = json.loads((where / "trained.json").read_text(encoding="utf-8"))
        return found

    def run(
        self,
        entry: Entry,
        n: int,
        moments: Collection[float] = MOMENTS,
        then: Callable[[], object] = lambda: None,
    ) -> dict[str, Any]:
        """Train and score, as far as that is not done, and return the run as it stands in NAME.json.

        Args:
            entry: The run.
            n: Pictures that are scored, of each snapshot.
            moments: Of which snapshots, besides the last.
            then: Called after each new score.
        """
        result = self.result(entry) or {"label": entry.label, "contestant": entry.contestant, "seed": entry.seed}
        if "snapshots" not in result:
            result |= self.trained(entry)
        for snapshot in reversed(result["snapshots"]):  # what counts most comes first
            asked = snapshot["moment"] in moments or snapshot is result["snapshots"][-1]
            if asked and "score" not in snapshot:
                snapshot["score"] = self.score(entry, snapshot["file"], n, EVALUATIONS)
                self.write(entry, result)
                then()
        return result

    def default(self, entry: Entry, n: int) -> None:
        """Score the last snapshot of a finished run with the contestant's own sampler, unless that is done."""
        result = self.result(entry)
        if result and "default" not in result:
            result["default"] = self.score(entry, result["snapshots"][-1]["file"], n, None)
            self.write(entry, result)

    def score(self, entry: Entry, file: str, n: int, evaluations: int | None) -> Score:
        """Return the Fréchet distance of pictures that are drawn now."""
        where = self.out / entry.name
        print(f"drawing {n} pictures of {entry.name}/{file}", flush=True)
        begun = time.time()
        if entry.contestant == OURS:
            model = load(where / file)
            pictures, spent = draw(model.sampler(steps=evaluations), n, None)
        else:
            peer = PEERS[entry.contestant](shape=tuple(judge(self.kind, self.data, n).train.x.shape[1:]))
            peer.network.load_state_dict(load_file(where / file))
            pictures, spent = drawn(peer, n, evaluations)
        took = time.time() - begun
        save_picture(sheet(pictures[:100], 10), where / f"{Path(file).stem}-{spent}.png")
        found = judge(self.kind, self.data, n).fidelity(pictures)
        parts = {name: getattr(found, name) for name in ("value", "low", "high", "n", "floor", "ceiling")}
        parts["protocol"] = str(found.protocol)
        return {**parts, "evaluations": spent, "drawing_seconds": took}

    def result(self, entry: Entry) -> dict[str, Any] | None:
        """Return what is known of a run, or None."""
        file = self.out / f"{entry.name}.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None

    def write(self, entry: Entry, result: dict[str, Any]) -> None:
        """Write NAME.json."""
        write_whole(self.out / f"{entry.name}.json", json.dumps(result, indent=1).encode())

    def report(self) -> None:
        """Write race.md, race.json and race.png of all runs that have a score."""
        files = sorted(one for one in self.out.glob("*-seed*.json"))
        points = collect(json.loads(file.read_text(encoding="utf-8")) for file in files)
        if points:  # none at the beginning
            write_whole(self.out / "race.json", json.dumps(points, indent=1).encode())
            write_whole(self.out / "race.md", page(points, self.kind).encode())
            picture(points, self.out / "race.png")


@cache
def judge(kind: Kind, data: Path | None, n: int) -> Judge:
    """Return the judge of n pictures of a data set, whose held-out rows are its test set."""
    chosen, rows = build_data(recipe(kind, None if data is None else str(data)))
    console, thorough = Console(stderr=True), kind in THOROUGH
    return Judge(rows, build_codec(chosen), n, console=console, thorough=thorough, mirror=chosen.augment.flip)


def collect(results: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a point for each contestant, moment and sampler: means over runs, and their range or the interval."""
    groups: dict[tuple[Any, ...], list[tuple[dict[str, Any], dict[str, Any], Score]]] = {}
    for result in results:
        for snapshot in result.get("snapshots", []):
            scores = [(False, snapshot.get("score"))]
            if snapshot is result["snapshots"][-1]:
                scores.append((True, result.get("default")))
            for own, score in scores:
                if score is not None:
                    key = (own, result["label"], result["learning_rate"], result["batch"], score["n"])
                    groups.setdefault((*key, snapshot["moment"]), []).append((result, snapshot, score))
    return [_point(own, label, found) for (own, label, *_), found in sorted(groups.items())]


def _point(own: bool, label: str, found: Sequence[tuple[dict[str, Any], dict[str, Any], Score]]) -> dict[str, Any]:
    """Return the mean over runs of one contestant at one moment."""
    first, values = found[0], [score["value"] for _, _, score in found]
    low, high = (first[2]["low"], first[2]["high"]) if len(found) == 1 else (min(values), max(values))
    names = ("learning_rate", "batch", "parameters", "precision", "source", "threads", "torch")
    return {
        "label": label,
        "own_sampler": own,
        "runs": len(found),
        "seconds": _mean(snapshot["seconds"] for _, snapshot, _ in found),
        "images": _mean(snapshot["images"] for _, snapshot, _ in found),
        "distance": _mean(values),
        "low": low,
        "high": high,
        **{name: first[2][name] for name in ("n", "evaluations", "floor", "ceiling", "protocol")},
        **{name: first[0][name] for name in names},
    }


def _mean(values: Iterable[float]) -> float:
    every = list(values)
    return sum(every) / len(every)


def row(*cells: object) -> str:
    """Return a line of a Markdown table."""
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def page(points: Sequence[dict[str, Any]], kind: Kind) -> str:
    """Return the tables: when each distance is reached, all points, and each contestant's own sampler."""
    race, own = ([one for one in points if one["own_sampler"] == which] for which in (False, True))
    lines = [f"# Time to quality: {kind}", ""]
    threads = ", ".join(str(one) for one in sorted({one["threads"] for one in points}))
    lines += [f"Written by `benchmarks/race.py`; torch {points[0]['torch']}, threads: {threads}.", ""]
    if race:
        labels = list(dict.fromkeys(one["label"] for one in race))
        lines += [
            "Seconds from a cold start to the first moment below that has a Fréchet distance of no more than",
            "",
            row("contestant", *DISTANCES),
            row(*["---"] * (1 + len(DISTANCES))),
        ]
        for label in labels:
            mine = [one for one in race if one["label"] == label]
            lines.append(row(label, *(when(mine, distance) for distance in DISTANCES)))
        lines += ["", "All moments, each with " + _counts(race) + " (with several runs the range over them):", ""]
        lines += [*table(race), ""]
    if own:
        lines += ["The last moment of each, with its own sampler:", "", *table(own), ""]
    names = ("contestant", "parameters", "learning rate", "batch", "arithmetic", "settings from")
    lines += [row(*names), row(*["---"] * len(names))]
    seen = {(one["label"], one["learning_rate"], one["batch"]): one for one in points}
    for (label, rate, batch), one in seen.items():
        lines.append(row(label, f"{one['parameters']:,}", f"{rate:g}", batch, one["precision"], one["source"]))
    return "\n".join([*lines, ""])


def when(points: Sequence[dict[str, Any]], distance: float) -> str:
    """Return the first seconds at which a distance is reached, as text."""
    found = [one["seconds"] for one in points if one["distance"] <= distance]
    return f"{min(found):.0f}" if found else f"not in {max(one['seconds'] for one in points):.0f}"


def _counts(points: Sequence[dict[str, Any]]) -> str:
    """Say with how many pictures and evaluations."""
    found = dict.fromkeys((one["n"], one["evaluations"]) for one in points)
    return ", ".join(f"{n:,} pictures of {evaluations} evaluations" for n, evaluations in found)


def table(points: Sequence[dict[str, Any]]) -> list[str]:
    """Return the lines of a table of points."""
    names = (
        "contestant",
        "runs",
        "seconds",
        "images seen",
        "n",
        "evaluations",
        "distance",
        "interval",
        "held-out data",
    )
    lines = [row(*names), row(*["---"] * len(names))]
    for one in points:
        interval = "" if one["low"] is None else f"{one['low']:.3g} to {one['high']:.3g}"
        cells = (one["label"], one["runs"], f"{one['seconds']:.0f}", f"{one['images']:,.0f}", one["n"])
        lines.append(row(*cells, one["evaluations"], f"{one['distance']:.3g}", interval, f"{one['floor']:.3g}"))
    return lines


def picture(points: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw distance against seconds, both on logarithmic axes."""
    race = [one for one in points if not one["own_sampler"]]
    mpl.use("Agg")
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for label in dict.fromkeys(one["label"] for one in race):
        mine = sorted((one for one in race if one["label"] == label), key=lambda one: one["seconds"])
        style = {"linewidth": 2.5} if label == OURS else {"linestyle": "--" if "shipped" in label else "-"}
        x, y = ([one[name] for one in mine] for name in ("seconds", "distance"))
        (line,) = axes.plot(x, y, marker="o", markersize=4, label=label, **style)
        low, high = ([one["distance"] if one[end] is None else one[end] for one in mine] for end in ("low", "high"))
        axes.fill_between(x, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    for floor in dict.fromkeys(one["floor"] for one in race):
        axes.axhline(floor, color="grey", linestyle=":", label="real held-out pictures")
    axes.set(xscale="log", yscale="log", xlabel="seconds from a cold start", ylabel="Fréchet distance")
    shown = [moment for moment in TICKS if axes.get_xlim()[0] <= moment <= axes.get_xlim()[1]]
    axes.set_xticks(shown, labels=[str(moment) for moment in shown])
    axes.set_xticks([], minor=True)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def until(minutes: float) -> tuple[float, ...]:
    """Return the moments of a run of so many minutes, the last of which is its end."""
    return (*(moment for moment in MOMENTS if moment < 60 * minutes), 60 * minutes)


def find_rates(race: Race, names: Sequence[str], minutes: float) -> None:
    """Try the learning rates of peers, and write the best to tuned.json."""
    trial = Race(race.kind, race.data, race.out / "tune")
    found = tuned(race)
    for name in names:
        own = PEERS[name]
        entries = [Entry(name, (60 * minutes,), factor * own.rate, own.tuned_size) for factor in FACTORS]
        scores = {one.learning_rate: trial.run(one, TUNED_WITH)["snapshots"][-1]["score"]["value"] for one in entries}
        best = min(scores, key=lambda rate: scores[rate] if math.isfinite(scores[rate]) else math.inf)
        tried = {f"{rate:g}": value for rate, value in scores.items()}
        found[name] = {"learning_rate": best, "batch": own.tuned_size, "minutes": minutes, "tried": tried}
        write_whole(race.out / "tuned.json", json.dumps(found, indent=1).encode())
        print(f"{name}: {best:g} of {tried}", flush=True)


def tuned(race: Race) -> dict[str, Any]:
    """Return what --tune has found so far."""
    file = race.out / "tuned.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def entries(
    race: Race,
    names: Sequence[str],
    minutes: float,
    ours_minutes: float,
    seeds: int,
    moments: Collection[float] = MOMENTS,
    shipped: bool = True,
) -> list[Entry]:
    """Return the runs of a race: ours for each moment and seed, the peers as shipped if wanted, the peers as tuned."""
    peers, found = [name for name in names if name != OURS], []
    if OURS in names:
        ends = [one for one in until(ours_minutes) if one in moments or one == 60 * ours_minutes]
        found = [Entry(OURS, (end,), seed=seed) for seed in range(seeds) for end in ends]
    found += [Entry(name, until(minutes), PEERS[name].rate, PEERS[name].size) for name in peers if shipped]
    best = tuned(race)
    for name in peers:
        if name in best:
            found.append(Entry(name, until(minutes), best[name]["learning_rate"], best[name]["batch"]))
        else:
            print(f"{name} takes no part with a tuned learning rate: run --tune first")
    return list(dict.fromkeys(found))


def main(
    data: Path | None = None,
    out: Path = Path("runs/race"),
    kind: Kind = "mnist",
    minutes: float = 30.0,
    ours_minutes: float = 5.0,
    only: tuple[str, ...] = NAMES,
    seeds: int = 3,
    n: int = 1000,
    n_default: int = 256,
    moments: tuple[float, ...] = MOMENTS,
    tune_minutes: float = 3.0,
    tune: bool = False,
    shipped: bool = True,
    report: bool = False,
) -> None:
    """Run what is not done yet.

    Args:
        data: Folder of the data set; default: downloaded.
        out: Where the runs go, in a folder for each data set.
        kind: The data set.
        minutes: That a peer trains.
        ours_minutes: That ours trains at most.
        only: Contestants.
        seeds: Trainings of ours.
        n: Pictures from each moment.
        n_default: Pictures from the last moment with the contestant's own sampler, of up to 1,000 evaluations; 0: none.
        moments: Seconds after which pictures are drawn, which takes a peer longer than to train, and each of which is a
            training of ours; the last moment always counts, and others can be asked for later.
        tune_minutes: That each learning rate is tried.
        tune: Find learning rates, and do not race.
        shipped: Let the peers take part as shipped, too, not only with the learning rate that --tune found.
        report: Only write the report.
    """
    unknown = set(only) - set(NAMES)
    if unknown:
        raise SystemExit(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    os.environ.setdefault("UNFOG_CACHE", str(out.resolve() / "cache"))
    race = Race(kind, data, out / kind)
    if tune:
        find_rates(race, [name for name in only if name != OURS], tune_minutes)
    elif not report:
        runs = entries(race, only, minutes, ours_minutes, seeds, moments, shipped)
        for entry in runs:
            race.run(entry, n, moments, race.report)
        for entry in runs if n_default else []:
            race.default(entry, n_default)
            race.report()
    race.report()
    print((race.out / "race.md").read_text(encoding="utf-8") if (race.out / "race.md").exists() else "nothing yet")


if __name__ == "__main__":
    tyro.cli(main)
