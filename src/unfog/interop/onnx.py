"""Export of denoisers and decoders to ONNX, with the coefficients for a sampler as JSON, and the sampler."""

import copy
import json
import logging
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unfog.data.codecs import Identity, Latents, Pixels
from unfog.interop.export import vacant
from unfog.networks.autoencoder import Autoencoder
from unfog.networks.conditioning import Cond
from unfog.recipes.build import known_of
from unfog.recipes.choices import Choices, compute_by
from unfog.recipes.conditions import ClassConditioning, NoConditioning
from unfog.recipes.latents import LatentCodec
from unfog.recipes.recipe import Recipe
from unfog.recipes.settings import FixedVariance
from unfog.runs.run import Run
from unfog.runtime.errors import UserError
from unfog.runtime.files import disk, locked, write_whole
from unfog.runtime.version import __version__

REGISTRY = logging.getLogger("torch.onnx._internal.exporter._registration")
"""What says which operators can be exported."""


class Bare(nn.Module):
    """A network with plain tensors as inputs: the condition is a vector, tokens, or absent."""

    def __init__(self, network: nn.Module, field: str) -> None:
        """Wrap a network; `field` is the field of `Cond`, "vector" or "tokens", or "" if unconditional."""
        super().__init__()
        self.network, self.field = network, field

    def forward(self, x: Tensor, time: Tensor, cond: Tensor | None = None) -> Tensor:
        """Return the output for states, times and conditions."""
        condition = Cond(**{self.field: cond}) if self.field else None
        output: Tensor = self.network(x, time, condition)
        return output


class Decoder(nn.Module):
    """Latents to images in [-1, 1]."""

    def __init__(self, autoencoder: Autoencoder) -> None:
        """Wrap an autoencoder."""
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, z: Tensor) -> Tensor:
        """Return images."""
        return self.autoencoder.decode(z)


def export(run: Run, folder: Path, steps: int | None = None) -> None:
    """Write denoiser.onnx, decoder.onnx for latents, sampler.json and sample.py, which samples with NumPy.

    The JSON holds the network time, alpha, sigma, and the target's coefficients for each step of DDIM, the name and the
    embedding of each class, the last one for 'no label', the size of a picture and the scale of guidance. Of a flow map
    it holds what each step adds to the embedding; guidance that was learned is among the embeddings.

    Args:
        run: The run.
        folder: Destination; must be empty or not exist.
        steps: Steps of the grid; default: the recipe's.

    Raises: UserError: If the model is conditioned on anything but classes, or the extra is not installed.
        EnvironmentFailure: If the disk fails.
    """
    with locked(folder):
        _export(run, folder, steps)


def _export(run: Run, folder: Path, steps: int | None) -> None:
    """Write the folder, whose lock is held."""
    vacant(folder)
    fit(run.recipe)
    try:
        import_module("onnxscript")
    except ImportError:
        raise UserError("ONNX export needs onnx and onnxscript: pip install 'unfog[onnx]'") from None
    sampler, shape = run.sampler(steps=steps), known_of(run.recipe).shape
    rows = _rows(run, sampler.settings.guidance)
    inputs: list[Tensor] = [torch.zeros(2, *shape), torch.zeros(2)]
    names = ["x", "time"]
    if rows is not None:
        inputs, names = [*inputs, rows[:1].repeat(2, 1)], [*names, "cond"]
    network: Any = copy.deepcopy(run.denoiser.network)
    compute_by([network], Choices())  # ONNX knows the operators, not the kernel, and plain products fix a batch's size
    _write(Bare(network, "" if rows is None else "vector"), inputs, names, folder / "denoiser.onnx")
    codec = sampler.codec
    if isinstance(codec, Latents):
        _write(Decoder(codec.autoencoder), [torch.zeros(2, *shape)], ["z"], folder / "decoder.onnx")
    schedule, times = run.denoiser.schedule, sampler.grid(run.denoiser.schedule, sampler.settings.steps)
    clamped = times.clamp(min=schedule.t_first)
    a, b = run.denoiser.target.coefficients(schedule, clamped)
    plain = {
        "unfog": __version__,
        "solver": "ddim",
        "steps": sampler.settings.steps,
        "shape": shape,
        "size": run.recipe.shape[1:] if run.recipe.shape is not None and run.recipe.modality.pixels else None,
        "pixels": isinstance(codec.plain, Pixels) and shown_as_png(run.recipe),
        "classes": [] if run.denoiser.embedder is None else list(run.recipe.classes),
        "time": run.denoiser.time_input(clamped).tolist(),
        "alpha": schedule.alpha(times).tolist(),
        "sigma": schedule.sigma(times).tolist(),
        "seen_alpha": schedule.alpha(clamped).tolist(),
        "seen_sigma": schedule.sigma(clamped).tolist(),
        "a": torch.as_tensor(a).expand(len(times)).tolist(),
        "b": torch.as_tensor(b).expand(len(times)).tolist(),
        "guidance": sampler.settings.guidance if run.denoiser.guidance is None else 1.0,
        "learned_guidance": None if run.denoiser.guidance is None else sampler.settings.guidance,
        "spans": _spans(run, times),
        "clip": sampler.settings.clip and codec.bounds is not None,
        "rows": None if rows is None else rows.tolist(),
    }
    write_whole(folder / "sampler.json", json.dumps(plain).encode())
    write_whole(folder / "sample.py", Path(__file__).with_name("onnx_sample.py").read_bytes())


def fit(recipe: Recipe) -> None:
    """Check that a recipe's model can be exported to ONNX.

    Raises: UserError: If it cannot, with the reason.
    """
    if not recipe.objective.denoises:
        raise UserError(f"only denoisers can be exported to ONNX, not the objective {recipe.kind('objective')!r}")
    if not isinstance(recipe.codec, Pixels | Identity | LatentCodec):
        raise UserError(
            f"the exported sampler has no codec {recipe.kind('codec')!r}: it knows pixels, identity and latents"
        )
    if recipe.sampling.threshold is not None:
        raise UserError(
            "the exported sampler knows no dynamic thresholding: set sampling.threshold=null in recipe.json"
        )
    if not isinstance(recipe.conditioning, NoConditioning | ClassConditioning):
        kind = recipe.kind("conditioning")
        raise UserError(f"only unconditional and class-conditional models can be exported to ONNX, not {kind}")
    if recipe.inputs.input_scale != "none" or not isinstance(recipe.variance, FixedVariance):
        raise UserError("only models with inputs.input_scale=none and variance=fixed can be exported to ONNX")


def shown_as_png(recipe: Recipe) -> bool:
    """Return whether the rows of a recipe are grey or colour pictures."""
    return recipe.shape is not None and recipe.modality.pixels and recipe.shape[0] in (1, 3)


def _rows(run: Run, guidance: float) -> Tensor | None:
    """Return the embedding of each class, the last row for 'no label'; None for a network that takes no vector.

    Args:
        run: The run.
        guidance: The scale that the embeddings hold, where the model learned to be guided.
    """
    denoiser, rows = run.denoiser, None
    if denoiser.embedder is not None:
        rows = denoiser.embedder(torch.arange(len(run.recipe.classes) + 1)).vector
    elif denoiser.span is not None:
        rows = torch.zeros(1, denoiser.network.embedding_dim)
    if rows is not None and denoiser.guidance is not None:
        rows = rows + denoiser.guidance(torch.full((1,), guidance))
    return None if rows is None else rows.detach()


def _spans(run: Run, times: Tensor) -> list[list[float]] | None:
    """Return what a flow map adds to the embedding in each step; None for other models."""
    if run.denoiser.span is None:
        return None
    found: list[list[float]] = run.denoiser.spans(times[:-1], times[1:]).detach().tolist()
    return found


def _write(module: nn.Module, inputs: list[Tensor], names: list[str], path: Path) -> None:
    """Export a module for any batch size."""
    shapes = tuple({0: torch.export.Dim("rows", min=1, max=65_536)} for _ in inputs)
    with warnings.catch_warnings(), disk(path):
        warnings.simplefilter("ignore")  # the exporter warns about its own internals
        REGISTRY.setLevel(logging.ERROR)  # and of torchvision's operators, which no network here has
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
