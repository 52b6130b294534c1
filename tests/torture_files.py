"""Gives broken files to the command line, thousands of them, and tells which were not met with exit code 0, 1 or 2.

    python -m tests.torture_files --count 2000
    python -m tests.torture_files --kind recipe --seed 17

Every case is a function of its kind and its seed. A case fails if a traceback or a signal ends it, if it hangs, takes
too much memory, writes outside its output folder, or exits with 1 although nothing but the file was wrong.
"""

import argparse
import contextlib
import gzip
import hashlib
import io
import json
import os
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import numpy as np
import torch
from rich.console import Console

from tests import mutate
from tests.conftest import PATIENCE
from unfog.cli.main import main
from unfog.cli.terminal import LONGEST
from unfog.recipes.presets import recipe
from unfog.runs.run import train

MEMORY = 3 << 29
"""Bytes by which the process may grow in a case."""
SPACE = 12 << 30
"""Bytes of address space of a case in a process of its own."""
TINY = (
    *("network.width=8", "training.images=8", "training.batch=4", "training.reports=1"),
    *("sampling.steps=2", "sampling.batch=4", "sampling.guidance=1"),
)
IDX = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
Arguments = list[str | Path]


@dataclass(frozen=True)
class Ended:
    """How a case ended: its exit code, and what is wrong with that."""

    kind: str
    seed: int
    code: int | None
    seconds: float
    trouble: str = ""


class Shop:
    """Good inputs, made once: two small runs that can go on, pictures, and the classic files."""

    def __init__(self, root: Path) -> None:
        """Make them in a folder."""
        self.root, draw = root, random.Random(0)
        self.data = root / "data"
        for place in range(8):
            file = self.data / "ab"[place % 2] / f"{place}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(mutate.good_picture("png RGB", draw))
        quiet = Console(quiet=True)
        settings = ("conditioning=image", "conditioning.factor=2")
        self.run = train(self._recipe(), root / "run", device="cpu", console=quiet).path
        self.image_run = train(self._recipe(*settings), root / "image_run", device="cpu", console=quiet).path
        longer = self._recipe("training.images=16").to_json()
        plain = json.loads((self.run / "recipe.json").read_text())
        plain["training"] = json.loads(longer)["training"]  # so that a resumed training has two steps left
        (self.run / "recipe.json").write_text(json.dumps(plain, indent=1))
        arrays = [
            np.frombuffer(draw.randbytes(12 * 64), np.uint8).reshape(12, 8, 8),
            np.arange(12, dtype=np.uint8) % 10,
        ]
        self.idx = [_idx(array) for array in (*arrays, arrays[0][:4], arrays[1][:4])]
        names = ("data_batch_1.bin", "test_batch.bin")
        self.cifar = {name: b"".join(bytes([one % 10]) + draw.randbytes(3072) for one in range(8)) for name in names}

    def _recipe(self, *settings: str):  # type: ignore[no-untyped-def]
        return recipe("folder", str(self.data)).set(*TINY, *settings)

    def copy_run(self, folder: Path, *names: str) -> Path:
        """Copy parts of the run into a folder."""
        for name in names:
            target = folder / "run" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if (self.run / name).is_dir():
                shutil.copytree(self.run / name, target)
            else:
                shutil.copy(self.run / name, target)
        return folder / "run"


def _idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


# ------------------------------------------------------------------------------- the kinds of broken files

CPU = ("--device", "cpu")
SETTINGS = (*(word for setting in TINY for word in ("--set", setting)), *CPU)


def _sample(folder: Path, draw: random.Random) -> Arguments:
    """Return a command that reads a run folder and writes to `out`."""
    run, out = folder / "run", folder / "out"
    steps = draw.choice(((), ("--steps", "2")))
    return draw.choice(
        (
            ["sample", run, "-n", "1", *steps],
            ["sample", run, "-n", "5", "--label", "a"],
            ["film", run, "-n", "2", *steps],
        )
    ) + ["--out", out, *CPU]


def broken_recipe(shop: Shop, folder: Path, draw: random.Random) -> Arguments:
    """A recipe of a stranger, sampled."""
    run = shop.copy_run(folder, "recipe.json", "model.safetensors")
    (run / "recipe.json").write_bytes(mutate.mutate_recipe((shop.run / "recipe.json").read_text(), draw))
    if draw.random() < 0.05:
        return ["evaluate", run, "--likelihood", "1", *CPU]
    return _sample(folder, draw)


def broken_weights(shop: Shop, folder: Path, draw: random.Random) -> Arguments:
    """Weights of a stranger, sampled."""
    run = shop.copy_run(folder, "recipe.json", "model.safetensors")
    weights = (shop.run / "model.safetensors").read_bytes()
    (run / "model.safetensors").write_bytes(mutate.mutate_safetensors(weights, draw))
    return _sample(folder, draw)


def _resume(shop: Shop, folder: Path) -> tuple[Path, Path, Arguments]:
    run = shop.copy_run(folder, "recipe.json", "model.safetensors", "metrics.jsonl", "checkpoints")
    return run, max((run / "checkpoints").iterdir()), ["train", "--resume", run, *CPU]


def broken_recipe_resumed(shop: Shop, folder: Path, draw: random.Random) -> Arguments:
    """A recipe of a stranger, whose training goes on; one that is to train for days is no mistake, and left alone."""
    run, _, command = _resume(shop, folder)
    good = (run / "recipe.json").read_text()
    raw = mutate.mutate_recipe(good, draw)
    with contextlib.suppress(ValueError, RecursionError, KeyError, TypeError):
        if float(json.loads(raw)["training"]["images"]) > 64 * float(json.loads(raw)["training"]["batch"]):
            raw = good.encode()
    (run / "recipe.json").write_bytes(raw)
    return command


def broken_state(shop: Shop, folder: Path, draw: random.Random) -> Arguments:
    """A checkpoint's state."""
    _, newest, command = _resume(shop, folder)
    (newest / "state.json").write_bytes(mutate.mutate_json((newest / "state.json").read_text(), draw))
    return command


def broken_checkpoint(shop: Shop, folder: Path, draw: random.Random) -> Arguments:
    """A checkpoint's tensors, in most cases with the checksum of what they became."""
    _, newest, command = _resume(shop, folder)
    raw = mutate.mutate_safetensors((newest / "state.safetensors").read_bytes(), draw)
    (newest / "state.safetensors").write_bytes(raw)
    if draw.random() < 0.8:
        state = {**json.loads((newest / "state.json").read_text()), "sha256": hashlib.sha256(raw).hexdigest()}
        (newest / "state.json").write_text(json.dumps(state))
    return command


def broken_metrics(shop: Shop, folder: Path, draw: random.Random) -> Arguments:
    """The lines of an earlier training."""
    run, _, command = _resume(shop, folder)
    (run / "metrics.jsonl").write_bytes(mutate.mutate_lines((run / "metrics.jsonl").read_bytes(), draw))
    return command


def links(shop: Shop, folder: Path, draw: random.Random) -> Arguments:
    """A run in whose folder links stand where unfog writes, and lead to a file of somebody else."""
    run, _, command = _resume(shop, folder)
    names = ["loss.png", ".loss.png.part", ".metrics.jsonl.part", ".recipe.json.part", ".model.safetensors.part"]
    names += ["metrics.jsonl", "checkpoints/000000004", "checkpoints/.000000004.part", "samples/000000004.png"]
    names += [f"samples/seed-0/{one}" for one in ("00000-0.png", ".00000-0.png.part", "sheet.png")]
    names += [f"samples/seed-0/{one}" for one in ("samples.json", "sampling.json")]
    names += ["samples", "samples/seed-0"] if draw.random() < 0.2 else []
    for name in draw.sample(names, draw.randrange(1, len(names))):
        place = run / name
        with contextlib.suppress(OSError):
            place.parent.mkdir(parents=True, exist_ok=True)
            place.unlink(missing_ok=True)
            place.symlink_to(folder / "sentinel" / draw.choice(("file", "new")))
    return command if draw.random() < 0.6 else ["sample", run, "-n", "2", *CPU]


def broken_request(shop: Shop, folder: Path, draw: random.Random) -> Arguments:
    """The record of an earlier request, and its pictures, in the output folder."""
    run, out = shop.copy_run(folder, "recipe.json", "model.safetensors"), folder / "out"
    out.mkdir()
    request = {"n": 3, "model": "x", "asked": None, "solver": "y", "grid": "z", "settings": "", "seed": 0}
    (out / "sampling.json").write_bytes(mutate.mutate_json(json.dumps(request), draw))
    for name in ("00000.png", "00002-2.png", "9" * 40 + ".png", "²²²²².png"):
        (out / name).write_bytes(mutate.mutate_picture(draw)[1])
    return ["sample", run, "-n", "2", "--out", out, *CPU]


def _train_folder(folder: Path) -> Arguments:
    return ["train", "folder", "--data", folder / "data", "--size", "8", "--out", folder / "out", *SETTINGS]


def broken_pictures(shop: Shop, folder: Path, draw: random.Random) -> Arguments:
    """Pictures among good ones, and what else may lie there under a picture's name."""
    shutil.copytree(shop.data / "a", folder / "data")
    for place in range(draw.choice((1, 2, 6))):
        suffix, raw = mutate.mutate_picture(draw)
        (folder / "data" / f"x{place}.{suffix}").write_bytes(raw)
    if draw.random() < 0.1:
        (folder / "data" / "y.png").symlink_to(draw.choice(("/dev/zero", "/dev/null", "y.png", "nowhere")))
        os.mkfifo(folder / "data" / "z.png")
    return _train_folder(folder)


def broken_arrays(shop: Shop, folder: Path, draw: random.Random) -> Arguments:
    """Array files among good pictures, or alone."""
    if draw.random() < 0.5:
        shutil.copytree(shop.data / "a", folder / "data")
    for place in range(4):
        (folder / "data").mkdir(exist_ok=True)
        (folder / "data" / f"x{place}.npy").write_bytes(mutate.mutate_array(draw))
    return _train_folder(folder)


def broken_metadata(shop: Shop, folder: Path, draw: random.Random) -> Arguments:
    """`metadata.jsonl`, of labels, several labels, texts or numbers."""
    shutil.copytree(shop.data, folder / "data")
    known = draw.choice(({"label": "x"}, {"label": ["x", "y"]}, {"text": "a red thing"}, {"values": [0.5, -1]}))
    kind = {"text": "text", "values": "values"}.get(next(iter(known)), "labels" if "y" in str(known) else "classes")
    files = sorted(path.relative_to(folder / "data").as_posix() for path in (folder / "data").rglob("*.png"))
    lines = [json.dumps({"file_name": file, **known}).encode() for file in files]
    (folder / "data" / "metadata.jsonl").write_bytes(mutate.mutate_lines(b"\n".join(lines), draw))
    if draw.random() < 0.1:
        os.mkfifo(folder / "data" / "a" / "pipe.png")
        with (folder / "data" / "metadata.jsonl").open("ab") as file:
            file.write(b"\n" + json.dumps({"file_name": "a/pipe.png", **known}).encode())
    more = ["--set", f"conditioning={kind}"] if draw.random() < 0.7 else []
    more += ["--set", "conditioning.count=2"] if more and kind == "values" else []
    return [*_train_folder(folder), *more]


def broken_idx(shop: Shop, folder: Path, draw: random.Random) -> Arguments:
    """One of the four files of MNIST."""
    (folder / "data").mkdir()
    chosen = draw.randrange(4)
    for place, (name, good) in enumerate(zip(IDX, shop.idx, strict=True)):
        packed = draw.random() < 0.5
        if place != chosen:
            raw = gzip.compress(good, mtime=0) if packed else good
        else:
            raw = mutate.mutate_packed(good, draw) if packed else mutate.mutate_idx(good, draw)
        (folder / "data" / (f"{name}.gz" if packed else name)).write_bytes(raw)
    return ["train", draw.choice(("mnist", "fashion")), "--data", folder / "data", "--out", folder / "out", *SETTINGS]


def broken_cifar(shop: Shop, folder: Path, draw: random.Random) -> Arguments:
    """A file of CIFAR-10."""
    (folder / "data").mkdir()
    for name, good in shop.cifar.items():
        raw = mutate.mutate_bytes(good, draw, len(good)) if draw.random() < 0.6 else good
        (folder / "data" / name).write_bytes(raw)
    return ["train", "cifar10", "--data", folder / "data", "--out", folder / "out", *SETTINGS]


def broken_archive(shop: Shop, folder: Path, draw: random.Random) -> Arguments:
    """The archive of CIFAR-10 in the cache."""
    (folder / "cache").mkdir()
    files = {f"cifar-10-batches-bin/{name}": raw for name, raw in shop.cifar.items()}
    (folder / "cache" / "cifar-10-binary.tar.gz").write_bytes(mutate.mutate_archive(files, draw))
    return ["train", "cifar10", "--out", folder / "out", *SETTINGS]


def broken_image(shop: Shop, folder: Path, draw: random.Random) -> Arguments:
    """A picture that a model is asked by."""
    suffix, raw = mutate.mutate_picture(draw) if draw.random() < 0.8 else ("npy", mutate.mutate_array(draw))
    (folder / f"asked.{suffix}").write_bytes(raw)
    asked = ["--image", folder / f"asked.{suffix}", "--out", folder / "out"]
    return ["sample", shop.image_run, "-n", "1", "--steps", "1", *asked, *CPU]


FOREIGN = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(/tmp/x) (w) file\n%%EOF\n",
    b"%PDF-1.4\n1 0 obj<</Type/Catalog>>endobj\n",
    b"\xd7\xcd\xc6\x9a" + bytes(18) + b"\x01\x00\t\x00\x00\x03",
    b"8BPS\x00\x01" + bytes(6) + b"\x00\x03\x00\x00\x00\t\x00\x00\x00\t\x00\x08\x00\x03",
    b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
    b"SIMPLE  =                    T" + bytes(2850),
    b"\x80\x04\x95\x1a\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x8c\x06system\x93.",
    b"PK\x03\x04" + bytes(26),
    b"#!/bin/sh\ntouch here\n",
    b"#define a_width 9\n#define a_height 9\nstatic char a_bits[] = {0x00};",
)
"""The beginnings of files of other formats, for some of which Pillow would run a program or read another file."""


def foreign(shop: Shop, folder: Path, draw: random.Random) -> Arguments:
    """Files of other formats under the names of pictures: as data, as what a model is asked by, in a run's folder."""
    raw, suffix = draw.choice(FOREIGN), draw.choice(("png", "jpg", "tif", "gif", "webp"))
    where = draw.randrange(3)
    if where == 0:
        shutil.copytree(shop.data, folder / "data")
        (folder / "data" / "a" / f"x.{suffix}").write_bytes(raw)
        return _train_folder(folder)
    if where == 1:
        (folder / f"asked.{suffix}").write_bytes(raw)
        return [
            "sample",
            shop.image_run,
            "-n",
            "1",
            "--image",
            folder / f"asked.{suffix}",
            "--out",
            folder / "out",
            *CPU,
        ]
    run = shop.copy_run(folder, "recipe.json", "model.safetensors")
    (run / "evaluation").mkdir()
    (run / "evaluation" / draw.choice(("levels.png", "samples.png"))).write_bytes(raw)
    return ["report", run, "--out", folder / "out", *CPU]


def odd(shop: Shop, folder: Path, draw: random.Random) -> Arguments:
    """A run folder with a link that leads out of it, in a circle or nowhere, a pipe or a device, in any place."""
    run, _, command = _resume(shop, folder)
    names = (
        "recipe.json",
        "model.safetensors",
        "metrics.jsonl",
        "evaluation.json",
        "data.json",
        "loss.png",
        "note.txt",
    )
    inner = (
        "evaluation/levels.png",
        "bench/results.jsonl",
        "autoencoder/recipe.json",
        "text/tokenizer",
        "samples",
        "x/y/z",
    )
    place = run / draw.choice((*names, *inner))
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)
    if draw.random() < 0.3:
        os.mkfifo(place)
    else:
        secret = folder / "sentinel" / "file"
        target = draw.choice(
            (secret, secret.parent, "/dev/zero", "/proc/self/environ", ".", "..", "nowhere", place.name)
        )
        place.symlink_to(target)
    return draw.choice((command, _sample(folder, draw), ["report", run, "--out", folder / "out", *CPU]))


def damaged_beside(shop: Shop, folder: Path, draw: random.Random) -> Arguments:
    """Whole checkpoints beside damaged ones, earlier and later: the training goes on from a whole one."""
    _, newest, command = _resume(shop, folder)
    for step in draw.sample(range(1, 40), draw.randrange(1, 5)):
        if (other := newest.with_name(f"{step:09}")) == newest:
            continue
        shutil.copytree(newest, other)
        file = other / draw.choice(("state.json", "state.safetensors"))
        raw = file.read_bytes()
        file.write_bytes(draw.choice((b"", raw[: len(raw) // 2], mutate.mutate_bytes(raw, draw))))
    return command


KINDS: dict[str, Callable[[Shop, Path, random.Random], Arguments]] = {
    "recipe": broken_recipe,
    "recipe-resumed": broken_recipe_resumed,
    "weights": broken_weights,
    "state": broken_state,
    "checkpoint": broken_checkpoint,
    "metrics": broken_metrics,
    "links": links,
    "request": broken_request,
    "pictures": broken_pictures,
    "arrays": broken_arrays,
    "metadata": broken_metadata,
    "idx": broken_idx,
    "cifar": broken_cifar,
    "archive": broken_archive,
    "image": broken_image,
    "foreign": foreign,
    "odd": odd,
    "damaged-beside": damaged_beside,
}


# ----------------------------------------------------------------------------------------- one case


class Hang(BaseException):
    """No ending in time; no `except Exception` holds it back."""


@contextlib.contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Raise `Hang` in the block after some seconds."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def snapshot(folder: Path, *allowed: str) -> dict[str, str]:
    """Return what lies in a folder, but for some of its parts: names, kinds, and a hash of what files hold."""
    found: dict[str, str] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name.split("/")[0] not in allowed:
            plain = path.is_file() and not path.is_symlink()
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest() if plain else f"{path.lstat().st_mode:o}"
    return found


def run_case(kind: str, seed: int, shop: Shop, base: Path, alone: bool = False) -> Ended:
    """Make a case in a new folder, run it in this process or in one of its own, and look at what it left."""
    folder = base / f"{kind}-{seed}"
    (folder / "sentinel").mkdir(parents=True)
    (folder / "sentinel" / "file").write_text("mine")
    (folder / "here").mkdir()
    arguments = [str(word) for word in KINDS[kind](shop, folder, random.Random(f"{kind} {seed}"))]
    allowed = ("out", "cache") if "--out" in arguments else ("out", "cache", "run")
    before = snapshot(folder, *allowed), snapshot(shop.root)
    began = time.monotonic()
    code, error, trouble = (_alone if alone else _inside)(arguments, folder)
    seconds = time.monotonic() - began
    lines = error.strip().splitlines()
    if not trouble and code not in (0, 1, 2):
        trouble = f"exit code {code}: {error[-500:]}"
    elif "Traceback" in error:
        trouble = trouble or f"a traceback: {error[-1500:]}"
    elif code == 1 and "memory" not in error and kind != "links":  # where a link stands in the way, the disk refuses
        trouble = f"exit code 1 for a broken file: {error[-500:]}"
    elif code and not (lines[-1].startswith("unfog: ") and len(lines[-1]) < 8 * LONGEST):
        trouble = trouble or f"no sentence: {error[-500:]}"
    if before != (snapshot(folder, *allowed), snapshot(shop.root)):
        trouble += " and something was written elsewhere"
    shutil.rmtree(folder)
    return Ended(kind, seed, code, seconds, trouble)


def _inside(arguments: list[str], folder: Path) -> tuple[int | None, str, str]:
    """Run the command line in this process; return its exit code, its errors, and what is wrong."""
    out, error = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
    threads, home, cache = torch.get_num_threads(), Path.cwd(), os.environ.get("UNFOG_CACHE")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    code, trouble = None, ""
    os.chdir(folder / "here")
    os.environ["UNFOG_CACHE"] = str(folder / "cache")
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error), warnings.catch_warnings():
            warnings.simplefilter("default")  # as they are outside of tests
            with alarm(PATIENCE):
                code = main(arguments)
    except SystemExit as ended:
        trouble = f"the line was not read (exit code {ended.code})"
    except Hang:
        trouble = f"no end after {PATIENCE:.0f} s: {traceback.format_exc()[-1500:]}"
    except Exception:
        trouble = traceback.format_exc()[-1500:]
    finally:
        os.chdir(home)
        torch.set_num_threads(threads)
        os.environ.pop("UNFOG_CACHE")
        os.environ.update({} if cache is None else {"UNFOG_CACHE": cache})
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak)
    if grown > MEMORY:
        trouble += f" and it took {grown >> 20} MiB"
    return code, _text(error), trouble


def _text(stream: io.TextIOWrapper) -> str:
    stream.flush()
    buffer = stream.buffer
    assert isinstance(buffer, io.BytesIO)
    return buffer.getvalue().decode("utf-8", "replace")


LIMITED = f"""
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, ({SPACE}, {SPACE}))
from unfog.cli.main import main
sys.exit(main())
"""


def _alone(arguments: list[str], folder: Path) -> tuple[int | None, str, str]:
    """Run the command line as a program with little address space."""
    environment = {**os.environ, "UNFOG_CACHE": str(folder / "cache")}
    try:
        ended = subprocess.run(
            [sys.executable, "-c", LIMITED, *arguments],
            capture_output=True,
            timeout=PATIENCE,
            cwd=folder / "here",
            env=environment,
        )
    except subprocess.TimeoutExpired as error:
        return None, (error.stderr or b"").decode("utf-8", "replace"), f"no end after {PATIENCE:.0f} s"
    return ended.returncode, ended.stderr.decode("utf-8", "replace"), ""


# ----------------------------------------------------------------------------------------- many cases


def table(ended: list[Ended]) -> str:
    """Return a line for each kind: cases, exit codes, failures, and the slowest case."""
    rows = [f"{'kind':<16}{'cases':>6}{'code 0':>8}{'code 1':>8}{'code 2':>8}{'failed':>8}{'slowest':>10}"]
    for kind in (*KINDS, "all"):
        some = [one for one in ended if kind in (one.kind, "all")]
        if some:
            codes = "".join(f"{sum(one.code == code for one in some):>8}" for code in (0, 1, 2))
            failed, slowest = sum(bool(one.trouble) for one in some), max(one.seconds for one in some)
            rows.append(f"{kind:<16}{len(some):>6}{codes}{failed:>8}{slowest:>8.1f} s")
    return "\n".join(rows)


def torture(count: int, first: int, processes: int) -> list[Ended]:
    """Run so many cases, all kinds in turn, and the last of them as programs."""
    ended = []
    with tempfile.TemporaryDirectory() as root:
        shop = Shop(Path(root) / "shop")
        for place in range(count):
            seed, kind = divmod(place, len(KINDS))
            one = run_case(list(KINDS)[kind], first + seed, shop, Path(root), alone=place >= count - processes)
            ended.append(one)
            if one.trouble:
                print(f"FAILED --kind {one.kind} --seed {one.seed}: {one.trouble}\n", flush=True)
    return ended


def start() -> int:
    """Read the command line of this program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000, help="number of cases")
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--processes", type=int, default=50, help="how many of them run as programs")
    parser.add_argument("--kind", choices=list(KINDS), help="replay one case of this kind")
    parser.add_argument("--seed", type=int, default=0, help="its seed")
    given = parser.parse_args()
    if given.kind:
        with tempfile.TemporaryDirectory() as root:
            print(run_case(given.kind, given.seed, Shop(Path(root) / "shop"), Path(root)))
        return 0
    ended = torture(given.count, given.first, given.processes)
    print(table(ended))
    return int(any(one.trouble for one in ended))


if __name__ == "__main__":
    sys.exit(start())
