"""Denoisers and decoders as ONNX, with what a sampler must know beside them as JSON."""

import json
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unfog.data.codecs import Latents
from unfog.interop.export import vacant
from unfog.networks.autoencoder import Autoencoder
from unfog.networks.conditioning import Cond
from unfog.recipes.build import known_of
from unfog.recipes.conditions import ClassConditioning, NoConditioning
from unfog.runs.run import Run
from unfog.runtime.errors import UserError
from unfog.runtime.files import disk, write_whole


class Bare(nn.Module):
    """A network between plain tensors: what it is told is a vector or tokens, or nothing."""

    def __init__(self, network: nn.Module, told: str) -> None:
        """Wrap it; `told` is "vector", "tokens" or ""."""
        super().__init__()
        self.network, self.told = network, told

    def forward(self, x: Tensor, time: Tensor, cond: Tensor | None = None) -> Tensor:
        """Return the output for states, times and conditions."""
        given = Cond(**{self.told: cond}) if self.told else None
        output: Tensor = self.network(x, time, given)
        return output


class Decoder(nn.Module):
    """Latents to pictures in [-1, 1]."""

    def __init__(self, autoencoder: Autoencoder) -> None:
        """Wrap an autoencoder."""
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, z: Tensor) -> Tensor:
        """Return pictures."""
        return self.autoencoder.decode(z)


def export(run: Run, folder: Path, steps: int | None = None) -> None:
    """Write denoiser.onnx, in latents decoder.onnx too, and sampler.json: all that a sampler of DDIM needs.

    The JSON holds, for each step, the time as the network is told it, alpha and sigma and those of the target, and what
    the model can be told: a row for each class, the last one 'no label'.

    Args:
        run: The run.
        folder: Where to; must be empty or not there.
        steps: Steps of the grid; the recipe's if None.

    Raises: UserError: If the model is told something else than a class, or the extra is not installed.
        EnvironmentFailure: If the disk fails.
    """
    vacant(folder)
    if not isinstance(run.recipe.conditioning, NoConditioning | ClassConditioning):
        kind = run.recipe.kind("conditioning")
        raise UserError(f"only models that are told a class or nothing go to ONNX, not {kind}")
    if run.denoiser.input_scale != "none" or run.denoiser.learned_variance:
        raise UserError("only models with inputs.input_scale=none and variance=fixed go to ONNX")
    try:
        import_module("onnxscript")
    except ImportError:
        raise UserError("to write ONNX takes onnx and onnxscript: pip install 'unfog[onnx]'") from None
    sampler, shape = run.sampler(steps=steps), known_of(run.recipe).shape
    with disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
    rows = _rows(run)
    inputs: list[Tensor] = [torch.zeros(2, *shape), torch.zeros(2)]
    names = ["x", "time"]
    if rows is not None:
        inputs, names = [*inputs, rows[:1].repeat(2, 1)], [*names, "cond"]
    network: Any = run.denoiser.network
    _write(Bare(network, "" if rows is None else "vector"), inputs, names, folder / "denoiser.onnx")
    codec = sampler.codec
    if isinstance(codec, Latents):
        _write(Decoder(codec.autoencoder), [torch.zeros(2, *shape)], ["z"], folder / "decoder.onnx")
    schedule, times = run.denoiser.schedule, sampler.grid(run.denoiser.schedule, sampler.settings.steps)
    clamped = times.clamp(min=schedule.t_first)
    a, b = run.denoiser.target.coefficients(schedule, clamped)
    plain = {
        "shape": shape,
        "time": run.denoiser.time_input(clamped).tolist(),
        "alpha": schedule.alpha(times).tolist(),
        "sigma": schedule.sigma(times).tolist(),
        "seen_alpha": schedule.alpha(clamped).tolist(),
        "seen_sigma": schedule.sigma(clamped).tolist(),
        "a": torch.as_tensor(a).expand(len(times)).tolist(),
        "b": torch.as_tensor(b).expand(len(times)).tolist(),
        "guidance": sampler.settings.guidance,
        "clip": sampler.settings.clip and codec.bounds is not None,
        "rows": None if rows is None else rows.tolist(),
    }
    write_whole(folder / "sampler.json", json.dumps(plain).encode())


def _rows(run: Run) -> Tensor | None:
    """Return what the network is told of each class, the last row for 'no label'; None where it is told nothing."""
    if run.denoiser.embedder is None:
        return None
    count = len(run.recipe.classes)
    found = run.denoiser.embedder(torch.arange(count + 1)).vector
    assert found is not None
    return found.detach()


def _write(module: nn.Module, inputs: list[Tensor], names: list[str], path: Path) -> None:
    """Export a module for any number of rows."""
    shapes = tuple({0: torch.export.Dim("rows", min=1, max=65_536)} for _ in inputs)
    with warnings.catch_warnings(), disk(path):
        warnings.simplefilter("ignore")  # the exporter warns of its own insides
        torch.onnx.export(
            module.eval(),
            tuple(inputs),
            path,
            input_names=names,
            output_names=["output"],
            dynamo=True,
            dynamic_shapes=shapes,
            external_data=False,
            verbose=False,
        )
