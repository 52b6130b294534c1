"""Whether two versions of the code make the same bits: trainings, samples, edits, and a run handed over.

    python tests/bits.py REVISION       compares the working tree with a commit; exits with 1 where bits differ

Everything goes through the command line, so that the versions need not share any Python interface. Both run on this
machine in turn, since bits differ between processors.
"""

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
SMALL = ("training.images=512", "training.batch=32", "training.reports=1", "optimizer.warmup=128")
DIGITS = (*SMALL, "network.width=8", "sampling.steps=4", "sampling.batch=64")
LEARNED = ("variance=learned", "schedule=cosine", "target=eps", "times=discrete", "solver=ancestral")
RUNS: dict[str, tuple[str, tuple[str, ...]]] = {
    "points": ("points", (*SMALL, "network.width=16", "sampling.steps=4", "sampling.batch=1024")),
    "digits": ("digits", DIGITS),
    "shapes": ("shapes", (*SMALL, "network.width=16", "sampling.steps=4", "sampling.batch=64")),
    "latents": (
        "folder",
        (*SMALL, "codec=latents", "codec.width=8", "codec.images=256", "network.width=16", "sampling.batch=64"),
    ),
    "learned": ("digits", (*DIGITS, *LEARNED, "solver.variance=learned")),
    "importance": ("digits", (*DIGITS, "times=importance")),
    "muon": ("digits", (*DIGITS, "optimizer=muon", "optimizer.warmup=128", "network.width=32")),
    "sharded": ("digits", (*DIGITS, "training.sharded=true")),
}


@dataclass(frozen=True)
class Version:
    """One version of the code.

    Attributes:
        source: Folder with the package.
        where: Folder for what it makes.
    """

    source: Path
    where: Path

    def command(self, *words: str | Path) -> tuple[list[str], dict[str, str]]:
        """Return a call of the command line, and its environment."""
        rest = os.pathsep + os.environ["PYTHONPATH"] if "PYTHONPATH" in os.environ else ""
        environment = {**os.environ, "PYTHONPATH": f"{self.source}{rest}", "UNFOG_CACHE": str(self.where / "cache")}
        return [sys.executable, "-m", "unfog", *map(str, words)], environment

    def __call__(self, *words: str | Path, processes: int = 1) -> None:
        """Call the command line, and raise where it fails."""
        command, environment = self.command(*words)
        if processes > 1:
            launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
            command = [sys.executable, *launcher, *command[1:]]
            environment = {**environment, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, cwd=self.where, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")


def pictures(folder: Path) -> None:
    """Write a folder of pictures for the run in latents."""
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (24, 4, 4, 3), dtype=np.uint8)
    for place, values in enumerate(noise):
        Image.fromarray(values).resize((32, 32), Image.Resampling.BICUBIC).save(folder / f"{place:02}.png")


def digest(*paths: Path) -> str:
    """Return the SHA-256 of some files."""
    found = hashlib.sha256()
    for path in paths:
        found.update(path.read_bytes())
    return found.hexdigest()


def samples(folder: Path) -> list[Path]:
    """Return the pictures in a folder but for their sheet, which is laid out anew now and then."""
    return [path for path in sorted(folder.glob("*.png")) if path.name != "sheet.png"]


def values(folder: Path) -> str:
    """Return the SHA-256 of the samples in a folder: of the values of pictures, not of their compression."""
    found = hashlib.sha256()
    for path in samples(folder):
        with Image.open(path) as picture:
            found.update(np.asarray(picture).tobytes())
    for path in sorted([*folder.glob("*.csv"), *folder.glob("*.npy")]):
        found.update(path.read_bytes())
    return found.hexdigest()


def trained(version: Version) -> Iterator[tuple[str, str]]:
    """Yield the digests of some short trainings and of samples of each."""
    data = version.where / "pictures"
    pictures(data)
    for name, (recipe, settings) in RUNS.items():
        run = version.where / name
        words = [word for setting in settings for word in ("--set", setting)]
        source = ("--data", data) if recipe == "folder" else ()
        version("train", recipe, *source, *words, "--out", run, processes=2 if name == "sharded" else 1)
        yield f"{name}: model", digest(run / "model.safetensors")
        version("sample", run, "-n", "16", "--out", version.where / f"{name}-samples")
        yield f"{name}: samples", values(version.where / f"{name}-samples")


def edited(version: Version) -> Iterator[tuple[str, str]]:
    """Yield the digests of every edit of a picture of the digits."""
    run, given = version.where / "digits", version.where / "digits-samples"
    first, second = samples(given)[:2]
    mask = version.where / "mask.png"
    white = np.zeros((8, 8), dtype=np.uint8)
    white[:, 4:] = 255
    Image.fromarray(white).save(mask)
    edits: dict[str, tuple[str | Path, ...]] = {
        "restyle": ("--image", first, "--strength", "0.6"),
        "inpaint": ("--image", first, "--mask", mask),
        "outpaint": ("--image", first, "--right", "4"),
        "invert": ("--image", first, "--steps", "10"),
        "interpolate": ("--images", first, second, "--steps", "10"),
        "vary": ("--image", first, "--steps", "10"),
        "restore": ("--image", first, "--operator", "blur:1"),
    }
    for name, words in edits.items():
        out = version.where / f"edit-{name}"
        version("edit", name, run, *words, "--label", "3", "--out", out)
        yield f"edit: {name}", values(out)


def interrupted(version: Version) -> Path:
    """Begin a training, stop it after its first checkpoint, and return its folder."""
    run = version.where / "interrupted"
    often = ("training.checkpoint_minutes=1e-9", "training.images=2048")
    words = [word for setting in (*DIGITS, *often) for word in ("--set", setting)]
    command, environment = version.command("train", "digits", *words, "--out", run)
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while not list((run / "checkpoints").glob("0*")) and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
    if process.returncode != 130:
        raise SystemExit(f"the training was to be stopped and ended with {process.returncode}")
    return run


def handed_over(before: Version, after: Version) -> Iterator[tuple[str, str, str]]:
    """Yield what a run of `before` becomes where each version trains it on."""
    run = interrupted(before)
    copy = after.where / "handed-over"
    subprocess.run(["cp", "-r", run, copy], check=True)
    for version, folder in ((before, run), (after, copy)):
        version("train", "--resume", folder)
        version("sample", folder, "-n", "16", "--out", version.where / "resumed-samples")
    yield "resumed: model", digest(run / "model.safetensors"), digest(copy / "model.safetensors")
    yield "resumed: samples", *(values(one.where / "resumed-samples") for one in (before, after))
    version, folder = after, after.where / "old-samples"
    version("sample", before.where / "digits", "-n", "16", "--out", folder)
    yield "old run: samples", values(before.where / "digits-samples"), values(folder)


def compare(before: Version, after: Version) -> dict[str, tuple[str, str]]:
    """Return the digests of both versions by name."""
    made: list[Callable[[Version], Iterator[tuple[str, str]]]] = [trained, edited]
    found: dict[str, tuple[str, str]] = {}
    for make in made:
        for (name, old), (_, new) in zip(make(before), make(after), strict=True):
            print(f"{'same     ' if old == new else 'DIFFERENT'} {name:24} {old[:16]} {new[:16]}", flush=True)
            found[name] = old, new
    for name, old, new in handed_over(before, after):
        print(f"{'same     ' if old == new else 'DIFFERENT'} {name:24} {old[:16]} {new[:16]}", flush=True)
        found[name] = old, new
    return found


def main() -> int:
    """Compare the working tree with a commit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("revision", help="the commit before")
    parser.add_argument("--json", type=Path, help="file for the digests")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder)
        checkout, worktree = where / "checkout", ["git", "worktree"]
        subprocess.run([*worktree, "add", "--quiet", "--detach", checkout, chosen.revision], cwd=ROOT, check=True)
        try:
            versions = Version(checkout / "src", where / "before"), Version(ROOT / "src", where / "after")
            for version in versions:
                version.where.mkdir()
            found = compare(*versions)
        finally:
            subprocess.run([*worktree, "remove", "--force", checkout], cwd=ROOT, check=True)
    if chosen.json:
        chosen.json.write_text(json.dumps(found, indent=1) + "\n")
    return int(any(old != new for old, new in found.values()))


if __name__ == "__main__":
    sys.exit(main())
