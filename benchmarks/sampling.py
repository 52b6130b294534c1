"""Sampling: the same network in diffusers' pipelines and in ours, and what the solvers cost in addition.

    python benchmarks/sampling.py --out runs/speed/sampling

The network is that of diffusers' course with the same weights, pictures of 32×32. A thousand evaluations take minutes,
so that each scheduler and solver is timed over ten of its steps at both sides, and the whole is those times its steps.
What the solvers cost in addition to the network is timed on one that does nothing.
"""

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import rig
import torch
import training
import tyro
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, SchedulerMixin
from torch import Tensor, nn
from twins import Answer, twins

from unfog.diffusion.denoiser import Clipped, Conditioned, Denoise, Denoiser
from unfog.diffusion.grids import Grid, UniformGrid
from unfog.diffusion.sampling import trajectory
from unfog.diffusion.schedules import RectifiedFlow
from unfog.diffusion.solvers import Solver
from unfog.diffusion.tables import Linear
from unfog.diffusion.targets import Eps, Flow, Prediction
from unfog.recipes.choices import apply
from unfog.recipes.kinds import KINDS, class_of
from unfog.runtime.device import Precision, arithmetic, choose_device, choose_precision, keep_memory

RULES: dict[str, tuple[type[SchedulerMixin], str, int]] = {
    "DDPM": (DDPMScheduler, "ancestral", 1000),
    "DDIM": (DDIMScheduler, "ddim", 50),
    "DPM-Solver++(2M)": (DPMSolverMultistepScheduler, "dpmpp-2m", 20),
}
"""The scheduler of diffusers, our solver and the steps."""
TIMED = 10
"""Steps that are timed."""


class Idle(nn.Module):
    """A network that says the state itself."""

    def forward(self, x: Tensor, time: Tensor, cond: object = None) -> Tensor:
        """Return `x`."""
        return x


def theirs(network: nn.Module, kind: type[SchedulerMixin], steps: int, x: Tensor) -> Callable[[], object]:
    """Return what takes ten steps of a diffusers pipeline."""
    scheduler = kind()

    @torch.no_grad()
    def call() -> Tensor:
        scheduler.set_timesteps(steps)
        state = x
        for timestep in scheduler.timesteps[:TIMED]:
            state = scheduler.step(network(state, timestep), timestep, state).prev_sample
        return state

    return call


def ours(network: nn.Module, kind: str, steps: int, x: Tensor, *, low: bool) -> Callable[[], object]:
    """Return what takes ten steps of ours, x0 clipped as diffusers does it."""
    denoiser = Denoiser(network, Linear(), Eps(), network_time="index")
    denoise = Clipped(Conditioned(denoiser, None))
    solver: Solver = class_of("solver", kind)()
    times = UniformGrid()(denoiser.schedule, steps)

    @torch.inference_mode()
    def call() -> Tensor:
        state = x
        with arithmetic("bfloat16" if low else "float32", x.device):
            for step in islice(trajectory(denoise, x, times, solver), TIMED):
                state = step.x
        return state

    return call


def as_a_run(network: nn.Module, shape: tuple[int, ...], device: torch.device) -> Precision:
    """Let a network compute as a run does that was trained here, and return its arithmetic."""
    with TemporaryDirectory() as folder:
        _, trainer = training.ours(shape, Path(folder), device, *training.unet("course"), measured=True)
    apply(network, trainer.settings.choices)
    return trainer.precision


def pipelines(rounds: int, seconds: float, device: torch.device) -> rig.Table:
    """Measure whole samplings of 16 and 64 pictures."""
    torch.manual_seed(0)
    pair = twins("course")
    answering, network = Answer(pair.theirs).to(device).eval(), pair.ours.to(device).eval().requires_grad_(False)
    low = as_a_run(network, pair.shape, device) == "bfloat16"
    rows = []
    for batch in (16, 64):
        x = torch.randn(batch, *pair.shape, device=device)
        calls: dict[str, Callable[[], object]] = {}
        for name, (kind, solver, steps) in RULES.items():
            calls[f"{name} diffusers"] = theirs(answering, kind, steps, x)
            calls[f"{name} unfog float32"] = ours(network, solver, steps, x, low=False)
            calls[f"{name} unfog"] = ours(network, solver, steps, x, low=low)
        taken = rig.interleaved(calls, rounds=rounds, seconds=seconds, device=device, what=f"{batch} pictures")
        for name, (_, _, steps) in RULES.items():
            whole = {side: taken[f"{name} {side}"] * steps / TIMED for side in ("diffusers", "unfog float32", "unfog")}
            rows += [
                {
                    "sampling": f"{batch} pictures, {name}, {steps} steps",
                    "with": side,
                    "seconds": time,
                    "to diffusers": whole["diffusers"] / time,
                }
                for side, time in whole.items()
            ]
    note = (
        "The course's network with the same weights; as shipped, float32, at diffusers. Ten steps of each are timed, "
        "and the seconds worked out for all."
    )
    return rig.Table("Sampling", note, rows)


def solver_costs(rounds: int, seconds: float, device: torch.device) -> rig.Table:
    """Measure what each solver costs in addition to the network, by the evaluation and by the step."""
    pair = twins("course")
    network = pair.ours.to(device).eval().requires_grad_(False)
    low = choose_precision("auto", device, pair.shape)
    x, time = torch.randn(16, *pair.shape, device=device), torch.full((16,), 500.0, device=device)

    @torch.inference_mode()
    def bare() -> None:
        with arithmetic(low, device):
            network(x, time)

    evaluation = rig.interleaved({"bare": bare}, rounds=rounds, seconds=seconds, device=device, what="bare")["bare"]
    steps, rows = 50, []
    for kind in KINDS["solver"]:
        solver: Solver = class_of("solver", kind)()
        calls, counts = {}, {}
        for size, state in (("16×1×32×32", x), ("1×8×8", torch.randn(1, 1, 8, 8, device=device))):
            denoise, times, count = _idle(solver, steps)
            calls[size] = lambda denoise=denoise, times=times, solver=solver, state=state: _run(
                denoise, times, solver, state
            )
            calls[size]()
            counts[size] = count[0]
        taken = rig.interleaved(calls, rounds=rounds, seconds=seconds / 10, device=device, what=kind)
        large, small = taken.values()
        rows.append(
            {
                "solver": kind,
                "draws noise": "yes" if solver.stochastic else "",
                "µs an evaluation, 16×1×32×32": large / counts["16×1×32×32"] * 1e6,
                "of the bare network": f"{large / counts['16×1×32×32'] / evaluation:.2%}",
                "µs a step, 1×1×8×8": small / steps * 1e6,
            }
        )
    note = (
        f"Fifty steps with a network that does nothing, and the noise of torch's generator. An evaluation of the "
        f"course's network, 16 pictures, takes {evaluation * 1e3:.1f} ms here."
    )
    return rig.Table("Beside the network", note, rows)


def _idle(solver: Solver, steps: int) -> tuple[Denoise, Tensor, list[int]]:
    """Return a denoiser that does nothing, times for a solver, and a count of the evaluations of its next run."""
    network, count = Idle(), [0]
    flow: Denoise = Conditioned(Denoiser(network, RectifiedFlow(), Flow()), None)
    grid: Grid = UniformGrid()
    times = grid(flow.schedule, steps)

    class Counting:
        schedule = flow.schedule

        def __call__(self, x: Tensor, t: Tensor) -> Prediction:
            count[0] += 1
            return flow(x, t)

    return Counting(), times[:-1], count


@torch.inference_mode()
def _run(denoise: Denoise, times: Tensor, solver: Solver, x: Tensor) -> None:
    """Take all steps."""
    for _ in trajectory(denoise, x, times, solver):
        pass


def tables(rounds: int, seconds: float, device: torch.device) -> list[rig.Table]:
    """Measure everything."""
    return [pipelines(rounds, seconds, device), solver_costs(rounds, seconds, device)]


def main(out: Path = Path("runs/speed/sampling"), rounds: int = 5, seconds: float = 1.0, device: str = "auto") -> None:
    """Measure and write a table.

    Args:
        out: OUT.md and OUT.json are written.
        rounds: Turns of each variant, of which the median counts.
        seconds: Length of a turn.
        device: cpu, cuda or auto.
    """
    keep_memory()
    chosen = choose_device(device)
    rig.write(tables(rounds, seconds, chosen), out, chosen, "Sampling")


if __name__ == "__main__":
    tyro.cli(main)
