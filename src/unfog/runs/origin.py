"""Where a run came from: `origin.json` names the run whose weights were the start, and what they had seen."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from unfog.recipes.schema import fits
from unfog.runtime import distributed
from unfog.runtime.files import parse_json, read_bounded, write_whole
from unfog.training.metrics import read_metrics

NAME = "origin.json"


@dataclass(frozen=True)
class Origin:
    """The start of a training from the weights of another run.

    Attributes:
        run: Name of its folder.
        weights: SHA-256 of its averaged weights.
        images: Images that these weights had seen, those of its own origin among them; 0 where that is not known.
    """

    run: str
    weights: str
    images: int

    def __str__(self) -> str:
        """Return it in words."""
        seen = f", which had seen {self.images:,} images," if self.images else ""
        return f"started from the weights of {self.run}{seen} with SHA-256 {self.weights}"


def remember_origin(folder: Path, source: Path) -> None:
    """Write into a run folder from which run it starts.

    Raises: EnvironmentFailure: If the disk fails.
    """
    if distributed.rank():
        return
    weights = digest_of(source)
    lines, before = read_metrics(source / "metrics.jsonl"), origin_of(source)
    images = int(lines[-1]["images"]) if lines else 0
    found = Origin(source.resolve().name, weights, images + (before.images if before else 0))
    write_whole(folder / NAME, json.dumps(asdict(found), indent=1).encode())


def digest_of(run: Path) -> str:
    """Return the SHA-256 of a run's averaged weights."""
    with (run / "model.safetensors").open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def origin_of(folder: Path) -> Origin | None:
    """Return from which run a run started; None where it began anew, or the file is damaged."""
    where = folder / NAME
    if not where.is_file():
        return None
    try:
        kept = parse_json(read_bounded(where))
    except ValueError:
        return None
    if not isinstance(kept, dict) or not all(isinstance(kept.get(name), str) for name in ("run", "weights")):
        return None
    if not fits(kept.get("images"), int) or kept["images"] < 0:
        return None
    return Origin(kept["run"], kept["weights"], kept["images"])
