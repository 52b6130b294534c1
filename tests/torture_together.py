"""Two processes at once, signals at random moments, and folders that are moved or changed under a process.

    python -m tests.torture_together --count 1000

Each case is a function of its number. It fails on a traceback, on a hang, on an exit code that is not one of those
promised, or if anything that was finished or reported is lost.
"""

import contextlib
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
import tyro

import tests.preloaded  # noqa: F401
import unfog.evaluation.judge
import unfog.interop.diffusers
import unfog.interop.export
import unfog.reports.report  # noqa: F401
from unfog.cli.main import main
from unfog.training import checkpoint

CPU = ("--device", "cpu")
LENGTH = 640
TINY = (
    *("network.width=8", "training.batch=32", f"training.images={LENGTH}", "training.reports=5"),
    *("sampling.steps=2", "sampling.batch=4", "optimizer.warmup=64"),
)
SET = tuple(word for setting in TINY for word in ("--set", setting))
WRITING: dict[str, tuple[str, ...]] = {
    "train": ("train", "digits", "--out", "OUT", *SET, *CPU),
    "sample": ("sample", "RUN", "-n", "9", "--out", "OUT", *CPU),
    "other sample": ("sample", "RUN", "-n", "5", "--seed", "3", "--out", "OUT", *CPU),
    "film": ("film", "RUN", "-n", "2", "--out", "OUT", *CPU),
    "restyle": ("edit", "restyle", "RUN", "--image", "PICTURE", "--label", "3", "--out", "OUT", *CPU),
    "explain": ("explain", "RUN", "--step", "5", "--out", "OUT", *CPU),
    "replay": ("replay", "RUN", "--step", "3", "--out", "OUT", *CPU),
    "report": ("report", "RUN", "--out", "OUT", *CPU),
    "compare": ("compare", "RUN", "RUN", "-n", "100", "--out", "OUT", *CPU),
    "likelihood": ("evaluate", "RUN", "--likelihood", "4", *CPU),
    "inspect": ("inspect", "DATA", "--json", "OUT"),
}
REFUSED = re.compile(r"another process is writing|already exists|holds another run|pictures of another request")
PATIENCE = 300.0


class Trouble(Exception):
    """A promise that was not kept."""


class Shop:
    """A finished run, its data and a picture, and what the same commands give when left in peace."""

    def __init__(self, root: Path) -> None:
        """Make them in a folder."""
        self.root, self.peace = root, root / "peace"
        self.data, self.folder_run = root / "data", root / "folder_run"
        self.ended(self.start(["train", "digits", "--out", self.peace, *SET, *CPU], root / "said"), root / "said", {0})
        self.picture = next((self.peace / "samples").glob("*.png"))
        for place in range(24):
            (self.data / "ab"[place % 2]).mkdir(parents=True, exist_ok=True)
            shutil.copy(self.picture, target := self.data / "ab"[place % 2] / f"{place}.png")
            target.write_bytes(target.read_bytes() + bytes([place]))  # each file is another
        folder = ["train", "folder", "--data", self.data, "--out", self.folder_run, *SET, *CPU]
        small = ["--set", "data.size=8", "--set", "data.channels=1", "--set", "training.images=128"]
        self.ended(self.start([*folder, *small], root / "said"), root / "said", {0})

    def words(self, verb: str, folder: Path) -> list[str | Path]:
        """Return a command that writes into a folder of its own."""
        known = {"RUN": folder / "run", "OUT": folder / "out", "DATA": self.data, "PICTURE": self.picture}
        return [known.get(word, word) for word in WRITING[verb]]

    def start(self, words: list[str | Path], said: Path) -> int:
        """Run the command line in a child that has imported everything, its words in a file; return its number."""
        child = os.fork()
        if child:
            return child
        file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        try:
            code = main([str(word) for word in words])
        except KeyboardInterrupt:  # before or after the verb, where the program itself ends without words
            code = 130
        except BaseException:
            traceback.print_exc()
            code = 99
        with contextlib.suppress(KeyboardInterrupt):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)

    def ended(self, child: int, said: Path, codes: set[int]) -> tuple[int, str]:
        """Wait for a child; return its exit code and what it said."""
        deadline = time.monotonic() + PATIENCE
        while not (found := os.waitpid(child, os.WNOHANG))[0]:
            if time.monotonic() > deadline:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                raise Trouble(f"no end after {PATIENCE:.0f} s: {said.read_text()}")
            time.sleep(0.002)
        code, text = os.waitstatus_to_exitcode(found[1]), said.read_text(errors="replace")
        if code not in codes or "Traceback" in text:
            raise Trouble(f"exit code {code}: {text[-2000:]}")
        return code, text

    def same_as_in_peace(self, run: Path) -> None:
        """Compare a finished training with that in peace."""
        newest = checkpoint.steps(run / "checkpoints")[-1].name
        for name in ("model.safetensors", f"checkpoints/{newest}/state.safetensors"):
            if (run / name).read_bytes() != (self.peace / name).read_bytes():
                raise Trouble(f"{name} differs from that of a training in peace")


def finished(shop: Shop, verb: str, folder: Path) -> None:
    """Look at what a verb left when it was done."""
    if verb == "train":
        shop.same_as_in_peace(folder / "out")
    if verb.endswith("sample"):
        count = 9 if verb == "sample" else 5
        pictures = sorted(path.name for path in (folder / "out").glob("0*.png"))
        if pictures != [f"{place:05}-{place}.png" for place in range(count)]:  # classes in turn
            raise Trouble(f"{verb} left {pictures}")


def together(shop: Shop, draw: random.Random, folder: Path) -> str:
    """Two verbs that write into one folder: one of them is done, the other too or refused, and nothing is mixed."""
    first = draw.choice(list(WRITING))
    second = draw.choice(("sample", "other sample")) if first.endswith("sample") else first
    files = folder / "first", folder / "second"
    children = [shop.start(shop.words(first, folder), files[0])]
    time.sleep(draw.choice((0.0, draw.uniform(0, 0.4))))
    children.append(shop.start(shop.words(second, folder), files[1]))
    ended = [shop.ended(child, said, {0, 2}) for child, said in zip(children, files, strict=True)]
    for code, text in ended:
        if code == 2 and not REFUSED.search(text):
            raise Trouble(f"{first} and {second}: {text}")
    if ended[0][0] and ended[1][0]:
        raise Trouble(f"{first} and {second}: neither was done: {ended}")
    if (first == second or ended[0][0] or ended[1][0]) and "--out" in WRITING[first]:
        finished(shop, second if ended[0][0] else first, folder)
    return first


def interrupted(shop: Shop, draw: random.Random, folder: Path) -> str:
    """A signal at a random moment: a sentence or the signal's own code, and the same command is done afterwards."""
    verb, said = draw.choice(list(WRITING)), folder / "said"
    number = draw.choice((signal.SIGINT, signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
    child = shop.start(shop.words(verb, folder), said)
    time.sleep(draw.uniform(0, 1.5))
    os.kill(child, number)
    shop.ended(child, said, {0, 128 + number, -number})
    again = shop.words(verb, folder)
    if verb == "train" and checkpoint.steps(folder / "out" / "checkpoints"):
        again = ["train", "--resume", folder / "out", *CPU]
    shop.ended(shop.start(again, said), said, {0})
    finished(shop, verb, folder)
    return f"{verb} {number.name}"


def moved(shop: Shop, draw: random.Random, folder: Path) -> str:
    """A run folder that is moved, deleted or replaced while it is trained: it goes on where it says it was saved."""
    act, run, said = draw.choice(("move", "delete", "replace")), folder / "out", folder / "said"
    child = shop.start(shop.words("train", folder), said)
    deadline = time.monotonic() + PATIENCE
    while not (run / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(draw.uniform(0, 0.5))
    if act == "delete":
        shutil.rmtree(run, ignore_errors=True)
    else:
        run.rename(folder / "elsewhere")
    if act == "replace":
        run.mkdir()
        (run / "mine").write_text("mine")
    code, text = shop.ended(child, said, {0, 1})
    if code:
        found = re.search(r"resume with `unfog train --resume (.*)`", text)
        if found is None:
            raise Trouble(f"after {act}: {text[-2000:]}")
        resumed = Path(found[1])
        shop.ended(shop.start(["train", "--resume", resumed, *CPU], said), said, {0})
        shop.same_as_in_peace(resumed)
    elif act != "delete":
        shop.same_as_in_peace(folder / "elsewhere")
    return f"{act}: {'saved' if code else 'done before'}"


def changed(shop: Shop, draw: random.Random, folder: Path) -> str:
    """Data that change after a training are refused with what changed; those that were only moved are the same."""
    act, said = draw.choice(("add", "remove", "edit", "relabel", "move")), folder / "said"
    run, data = folder / "folder_run", folder / "data"
    shutil.copytree(shop.folder_run, run)
    shutil.copytree(shop.data, data)
    files = sorted(data.rglob("*.png"))
    one, other = draw.sample(files, 2)
    if act == "add":
        shutil.copy(one, one.with_name("new.png"))
    elif act == "remove":
        one.unlink()
    elif act == "edit":
        one.write_bytes(other.read_bytes() + b"more")
    elif act == "relabel":
        one.rename(data / ("b" if one.parent.name == "a" else "a") / one.name)
    verb = draw.choice((["train", "--resume", run], ["evaluate", run, "--likelihood", "2"], ["report", run]))
    code, text = shop.ended(shop.start([*verb, "--data", data, *CPU], said), said, {0, 2})
    if code != (0 if act == "move" else 2) or (code and "changed since it was trained" not in text):
        raise Trouble(f"{act}, {verb[0]}: exit code {code}: {text[-2000:]}")
    return f"{act} {verb[0]}"


KINDS: tuple[Callable[[Shop, random.Random, Path], str], ...] = (
    *(together, interrupted, moved, together, interrupted),
    *(together, interrupted, moved, together, interrupted, changed),
)


def tortured(count: int = 1000, first: int = 0) -> None:
    """Torture in a temporary folder.

    Args:
        count: Number of cases.
        first: Number of the first case.
    """
    torch.set_num_threads(1)  # a fork would not take other threads along
    outcomes: Counter[str] = Counter()
    failed, began = 0, time.monotonic()
    with tempfile.TemporaryDirectory() as root:
        shop = Shop(Path(root))
        for number in range(first, first + count):
            kind, folder = KINDS[number % len(KINDS)], Path(root) / str(number)
            folder.mkdir()
            shutil.copytree(shop.peace, folder / "run")
            try:
                outcome = kind(shop, random.Random(f"{kind.__name__} {number}"), folder)
                outcomes[f"{kind.__name__}: {outcome}"] += 1
            except Trouble as trouble:
                failed += 1
                print(f"FAILED --first {number} --count 1 ({kind.__name__}): {trouble}\n", flush=True)
            shutil.rmtree(folder)
    for name, times in sorted(outcomes.items()):
        print(f"{times:5} {name}")
    print(f"{count} cases, {failed} failed, in {time.monotonic() - began:.0f} s")
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    tyro.cli(tortured)
