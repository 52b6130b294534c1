"""Training throughput of the networks: images/s in each arithmetic and memory format, interleaved.

    python benchmarks/training.py [--shape 1,28,28] [--network compact] [--set width=40 patch=2] [--rounds 3]

Prints a Markdown table of medians, each as a ratio to float32 in the default memory format of the same run.
"""

import argparse
import platform
import statistics
import time

import torch

from unfog.blueprint import Recipe
from unfog.diffusion.objectives import denoising_loss
from unfog.optimizers import AdamW
from unfog.registry import part
from unfog.training.machine import arithmetic, choose_device


def one(recipe: Recipe, precision: str, channels_last: bool, batch: int, seconds: float, device: torch.device) -> float:
    """Return images/s of forward, backward and optimizer over some seconds."""
    denoiser = recipe.build_denoiser().to(device)
    x0 = torch.randn(batch, *recipe.shape, device=device)
    if channels_last:
        denoiser.to(memory_format=torch.channels_last)
        x0 = x0.to(memory_format=torch.channels_last)
    optimizer = AdamW().build(denoiser)
    times, weighting = recipe.times.build(), recipe.weighting.build()
    u, noise = torch.rand(batch, device=device).double(), torch.randn_like(x0)

    def step() -> None:
        cond = denoiser.embedder.null(batch) if denoiser.embedder else None
        with arithmetic(precision, device):
            loss = denoising_loss(denoiser, x0, cond, times=times, weighting=weighting, u=u, noise=noise).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    for _ in range(3):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    started, steps = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        step()
        steps += 1
        if device.type == "cuda":
            torch.cuda.synchronize()
    return steps * batch / (time.perf_counter() - started)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="1,28,28")
    parser.add_argument("--network", default="compact")
    parser.add_argument("--set", nargs="*", default=["width=40", "patch=2"])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    shape = tuple(int(side) for side in arguments.shape.split(","))
    recipe = Recipe("bench", part("data", "digits"), part("network", arguments.network), shape=shape)
    recipe = recipe.set(*(f"network.{setting}" for setting in arguments.set))
    device = choose_device(arguments.device)
    parameters = sum(parameter.numel() for parameter in recipe.build_denoiser().parameters())
    settings = [(p, c) for p in ("float32", "bfloat16") for c in (False, True)]
    found: dict[tuple[str, bool], list[float]] = {setting: [] for setting in settings}
    for _ in range(arguments.rounds):
        for setting in settings:
            found[setting].append(one(recipe, *setting, arguments.batch, arguments.seconds, device))
    base = statistics.median(found[settings[0]])
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"{arguments.network} {' '.join(arguments.set)}, {parameters:,} parameters, {arguments.shape}, {device}\n")
    print("| arithmetic | channels last | images/s | ratio |\n|---|---|---|---|")
    for (precision, last), speeds in found.items():
        median = statistics.median(speeds)
        print(f"| {precision} | {'yes' if last else 'no'} | {median:.0f} | {median / base:.2f} |")


if __name__ == "__main__":
    main()
