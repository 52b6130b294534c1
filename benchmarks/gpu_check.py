"""One command for whoever has a card: is everything right there, and how fast is it?

    make gpu-check DATA=path/to/cifar-10-batches-bin
    python benchmarks/gpu_check.py --device cpu --minutes 0.2      # a rehearsal without a card

Five parts, together below eight minutes: correctness against the CPU to stated tolerances, throughput next to
diffusers, memory, compilation, and four minutes of training on CIFAR-10, or on whatever part of it DATA holds, scored
by the judge. Each finished part is kept in the output file, so that a second call goes on where the first one ended.
The file is small and made to be committed.
"""

import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import rig
import torch
import tyro
from rich.console import Console
from torch import Tensor

import unfog
from unfog.data.codecs import Pixels
from unfog.data.source import Data, InMemory
from unfog.evaluation.intervals import plain
from unfog.evaluation.judge import Judge
from unfog.evaluation.report import evaluate_run
from unfog.recipes.build import build_data
from unfog.recipes.kinds import KINDS, class_of
from unfog.recipes.presets import recipe
from unfog.recipes.recipe import Recipe
from unfog.runs.run import fit, load, refit
from unfog.runtime.device import choose_device, keep_memory, peak_memory
from unfog.runtime.errors import Stopped
from unfog.runtime.files import cache_folder
from unfog.training.loop import batches
from unfog.training.trainer import Trainer

Part = dict[str, object]
CLOSE = 1e-3
"""Largest difference from the CPU in float32, over the largest number of the CPU's result."""
ROUNDED = 5e-2
"""The same for losses and gradients as shipped: in bfloat16 on a card, with TF32 where torch allows it."""
NETWORKS = {
    "compact": ("network.width=16",),
    "unet": ("network.widths=[32,32]", "network.attention=[false,true]"),
    "dit": ("network.width=64", "network.depth=2", "network.head=32"),
    "minimal": ("network.width=16",),
}
"""Networks that take steps in both places, and what makes them small."""

LOOSE = {"rk45": {"rtol": 0.1, "atol": 0.1}}
"""Options of solvers that would evaluate the network a thousand times."""


@dataclass(frozen=True)
class Check:
    """What the parts share.

    Attributes:
        device: The card.
        data: Folder of CIFAR-10's binary files, or None.
        folder: Where the training lies until it is scored.
        minutes: Of the training.
        samples: Number of samples that are scored.
        rounds: Turns of each variant that is timed.
        seconds: Length of a turn.
    """

    device: torch.device
    data: Path | None
    folder: Path
    minutes: float
    samples: int
    rounds: int
    seconds: float


@contextmanager
def exact() -> Iterator[None]:
    """Turn TF32 off, which is not float32."""
    matrices, convolutions = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matrices, convolutions


def apart(there: Tensor, here: Tensor) -> float:
    """Return the largest difference over the largest number."""
    there, here = there.detach().cpu().double(), here.detach().double()
    return float((there - here).abs().max() / here.abs().max().clamp(min=1e-12))


def trainer_of(chosen: Recipe, data: Data, folder: str, device: torch.device) -> Trainer:
    """Return a trainer of a recipe whose data were looked at."""
    return Trainer(chosen, data, Path(folder), device)


def correctness(check: Check) -> Part:
    """Compare losses and gradients of every network, samples of every solver and edits with those of the CPU."""
    chosen, data = build_data(recipe("digits").set("training.batch=32"))
    rows: list[Part] = []
    with TemporaryDirectory() as folder:
        for kind, small in NETWORKS.items():
            made = chosen.set(f"network={kind}", *small)
            with exact():
                one = made.set("training.precision=float32")
                rows += _steps(f"{kind}, float32", one, data, folder, check.device, CLOSE)
            rows += _steps(f"{kind}, as shipped", made, data, folder, check.device, ROUNDED)
        with exact():
            rows += _drawn(check.device)
    return {"passed": all(row["passed"] for row in rows), "rows": rows}


def _steps(what: str, made: Recipe, data: Data, folder: str, device: torch.device, most: float) -> list[Part]:
    """Compare the losses of a batch and the gradients of its step, from equal noise."""
    found = []
    for place in (torch.device("cpu"), device):
        one, generator = trainer_of(made, data, folder, place), torch.Generator().manual_seed(0)
        with torch.no_grad():
            for weight in one.model.parameters():  # the last layer begins at 0, behind which nothing could be seen
                weight += 0.02 * torch.randn(weight.shape, generator=generator).to(place)
        draw = one.draws(0)
        noise = torch.randn(draw.noise.shape, generator=generator)
        draw = draw._replace(noise=noise)
        losses = next(one.portions(draw))["loss"].detach()
        one.descend(draw)
        gradients = [weight.grad.flatten() for weight in one.model.parameters() if weight.grad is not None]
        found.append((losses, torch.cat(gradients)))
    (here, slope), (there, slope_there) = found
    return [
        _row(f"losses of {what}", apart(there, here), most),
        _row(f"gradients of {what}", apart(slope_there, slope), most),
    ]


def _row(what: str, measured: float, most: float) -> Part:
    """Return a line of the comparison."""
    return {"what": what, "apart": measured, "at most": most, "passed": math.isfinite(measured) and measured <= most}


def _drawn(device: torch.device) -> list[Part]:
    """Compare samples of each solver, and of what starts from a picture, with an untrained network."""
    torch.manual_seed(0)
    network = unfog.Compact(1, width=16)
    for weight in network.parameters():
        torch.nn.init.normal_(weight, std=0.05)
    rows = []
    for kind in KINDS["solver"]:
        solver = class_of("solver", kind)(**LOOSE.get(kind, {}))
        found = [
            unfog.sample(unfog.Denoiser(network.to(place), unfog.CosineContinuous()), (4, 1, 8, 8), 6, solver=solver)
            for place in ("cpu", device)
        ]
        rows.append(_row(f"samples of {kind}", apart(found[1], found[0]), CLOSE))
    x0 = torch.linspace(-1, 1, 256).reshape(4, 1, 8, 8)
    found = []
    for place in (torch.device("cpu"), device):
        free = unfog.Conditioned(unfog.Denoiser(network.to(place), unfog.CosineContinuous()), None)
        filled = unfog.Inpainting(free, x0.to(place), (x0 > 0).float().to(place))
        times = unfog.UniformGrid()(free.schedule, 6)
        found.append(unfog.follow(filled, x0.to(place), times, unfog.DDIM()))
    return [*rows, _row("inpainting", apart(found[1], found[0]), CLOSE)]


def throughput(check: Check) -> Part:
    """Time training steps and whole samplings, and diffusers' at equal weights in the same run, if it is installed."""
    try:
        import sampling
        import training
    except ImportError as error:
        return {"skipped": f"{error}: pip install 'unfog[bench]'"}
    most = rig.ceiling(check.device, rounds=check.rounds, seconds=check.seconds)
    tables = [training.twin_rows("course", 64, most, check.rounds, check.seconds, check.device)]
    if check.device.type != "cpu":
        tables.append(training.twin_rows("cifar10", 64, most, check.rounds, check.seconds, check.device))
        tables.append(sampling.pipelines(check.rounds, check.seconds, check.device))
    return {"ceiling, TFLOP/s": most / 1e12, "tables": {table.title: list(table.rows) for table in tables}}


def _cifar(*settings: str) -> Recipe:
    """Return the recipe of CIFAR-10 as it is after a look at the data."""
    return replace(recipe("cifar10"), shape=(3, 32, 32), classes=tuple("0123456789")).set(*settings)


def _made_up() -> Data:
    """Return pictures of noise of CIFAR-10's shape."""
    rows = torch.randint(0, 256, (512, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(512) % 10
    return Data(*(InMemory(rows, labels, tuple("0123456789")) for _ in range(2)))


def memory(check: Check) -> Part:
    """Measure the peak memory of training steps of the recipe 'cifar10', with and without recomputed activations."""
    rows = []
    for again in ("false", "true"):
        with TemporaryDirectory() as folder:
            made = _cifar(f"training.gradient_checkpointing={again}", *_less(check))
            if check.device.type == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats(check.device)
            one = trainer_of(made, _made_up(), folder, check.device)
            for step in range(3):
                one.descend(one.draws(step))
            what = {"recomputed activations": again == "true", "batch": made.training.batch}
            rows.append({**what, "peak, MiB": peak_memory(check.device) / 2**20})
    return {"of": "the card" if check.device.type == "cuda" else "the process", "rows": rows}


def _less(check: Check) -> tuple[str, ...]:
    """Return what makes a rehearsal on a CPU short."""
    return ("network.width=8", "training.batch=8") if check.device.type == "cpu" else ()


def compilation(check: Check) -> Part:
    """Time steps of the recipe 'cifar10', compiled and not, and compare the losses of the third step."""
    calls: dict[str, Callable[[], object]] = {}
    losses, waits = {}, {}
    with TemporaryDirectory() as folder:
        for name, on in (("eager", "false"), ("compiled", "true")):
            made = _cifar(f"training.compile={on}", "network.dropout=0", *_less(check))
            one = trainer_of(made, _made_up(), folder, check.device)
            began = time.perf_counter()
            one.descend(one.draws(0))
            rig.finish(check.device)
            waits[name] = time.perf_counter() - began
            losses[name] = [one.descend(one.draws(step)) for step in (1, 2)][-1]
            coming = batches(one)
            calls[name] = lambda one=one, coming=coming: one.descend(next(coming))
        taken = rig.interleaved(
            calls, rounds=check.rounds, seconds=check.seconds, device=check.device, what="compilation"
        )
    off = abs(losses["compiled"] / losses["eager"] - 1)
    return {
        "passed": off <= ROUNDED,
        "losses apart": off,
        "at most": ROUNDED,
        "first step, s": waits,
        "step, ms": {name: 1e3 * seconds for name, seconds in taken.items()},
        "times as fast": taken["eager"] / taken["compiled"],
    }


def training_on_cifar10(check: Check) -> Part:
    """Train the recipe 'cifar10' for some minutes, and score its samples next to the floor."""
    if check.data is None:
        return {"skipped": "no CIFAR-10 at hand: give its binary version with --data (DATA=... for make)"}
    run, console = check.folder, Console(stderr=True)
    if (run / "checkpoints").is_dir():
        refit(run, device=str(check.device), console=console)
    else:
        chosen = recipe("cifar10", str(check.data)).set(*_less(check), "training.reports=2")
        fit(chosen, run, budget=60 * check.minutes, device=str(check.device), console=console)
    trained = load(run, str(check.device))
    data = build_data(trained.recipe)[1]
    judge = Judge(data, Pixels(), check.samples, console=console)
    found = evaluate_run(trained, judge, check.samples, guidance=trained.recipe.sampling.guidance, console=console)
    return {
        "minutes": check.minutes,
        "rows": len(data.train),
        "images": trained.recipe.training.images,
        "samples": check.samples,
        "scores": plain(found.scores),
    }


PARTS: dict[str, Callable[[Check], Part]] = {
    "correctness": correctness,
    "throughput": throughput,
    "memory": memory,
    "compilation": compilation,
    "training": training_on_cifar10,
}


def _kept(out: Path, machine: Part) -> dict[str, Part]:
    """Return the parts of an earlier call on the same machine and versions, without those that failed or were skipped.

    The date is that of the first call.
    """
    try:
        held = json.loads(out.read_text())
        before, parts = dict(held["machine"]), dict(held["parts"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    if {**before, "date": ""} != {**machine, "date": ""}:
        return {}
    machine["date"] = before["date"]
    return {name: part for name, part in parts.items() if part.get("passed", True) and "skipped" not in part}


def main(
    out: Path = Path("docs/speed/gpu-check.json"),
    data: Path | None = None,
    device: str = "auto",
    minutes: float = 4.0,
    samples: int = 2000,
    rounds: int = 3,
    seconds: float = 0.5,
) -> int:
    """Check a card and write one file.

    Args:
        out: The file; parts that it holds from this machine and these versions are not done again.
        data: Folder of CIFAR-10's binary files, all or some of them. Default: those in the cache, if there are any.
        device: cuda, cuda:1, mps, or cpu for a rehearsal.
        minutes: Length of the training.
        samples: Samples that are scored.
        rounds: Turns of each variant that is timed, of which the median counts.
        seconds: Length of a turn.

    Returns: 1 if a part failed, else 0.
    """
    keep_memory()
    chosen = choose_device(device)
    if data is None and (cache_folder() / "cifar-10-batches-bin").is_dir():
        data = cache_folder()
    check = Check(chosen, data, out.with_suffix(".run"), minutes, samples, rounds, seconds)
    machine = {**rig.machine(chosen), "place": chosen.type, "unfog": unfog.__version__}
    machine = json.loads(json.dumps(machine))
    parts = _kept(out, machine)
    for name, part in PARTS.items():
        if name in parts:
            print(f"{name}: kept from {out}", file=sys.stderr)
            continue
        began = time.perf_counter()
        try:
            found = part(check)
        except Stopped as stopped:
            print(f"{name}: stopped; the same command goes on from here", file=sys.stderr)
            return stopped.code
        parts[name] = {**found, "seconds": round(time.perf_counter() - began, 1)}
        verdict = found.get("skipped", "passed" if found.get("passed", True) else "FAILED")
        print(f"{name}: {verdict}, {parts[name]['seconds']} s", file=sys.stderr)
        out.parent.mkdir(parents=True, exist_ok=True)
        ordered = {one: parts[one] for one in PARTS if one in parts}
        text = json.dumps({"machine": machine, "parts": ordered}, indent=1, ensure_ascii=False)
        part_file = out.with_suffix(".part")
        part_file.write_text(text + "\n")
        part_file.replace(out)
    return 0 if all(part.get("passed", True) for part in parts.values()) else 1


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
