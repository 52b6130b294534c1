"""Verbs that exchange models with other toolkits."""

from pathlib import Path
from typing import Annotated, Literal

import tyro

from unfog.cli.options import RunFolder, SomeInt, SomePath
from unfog.runtime.errors import UserError


def import_(
    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SOURCE")],
    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")],
    /,
    *,
    trust: SomePath = None,
) -> None:
    """Import a diffusers model as a run folder, to sample from, edit with or fine-tune.

    Reads folders with a UNet2DModel or UNet2DConditionModel, an AutoencoderKL, a CLIP or T5 text encoder and most
    schedulers, without needing diffusers; an AutoencoderKL alone becomes an autoencoder, and new models can
    train in its latents.

    For example:

      unfog import my/stable-diffusion runs/sd
      unfog import google/ddpm-cifar10-32 runs/ddpm
      unfog sample runs/sd -n 4 --prompt "a lighthouse in the fog" --negative "blurry"

    Args:
        source: Folder, or name on the hub.
        out: The new run folder.
        trust: Pickle file in the source folder that you trust, to read weights from. Default: safetensors only.
    """
    from rich.console import Console

    from unfog.interop.diffusers import import_model
    from unfog.runtime.progress import working

    with working(f"importing {source}", console=Console(stderr=True)):
        found = import_model(source, out, trust)
    for note in found.notes:
        print(f"note: {note}")
    recipe = found.recipe
    shape = "×".join(map(str, recipe.shape or ()))
    kinds = f"{recipe.kind('network')}, schedule {recipe.kind('schedule')}, target {recipe.kind('target')}"
    print(f"imported: {out}   ({found.parameters:,} parameters, pictures of {shape}; {kinds})")
    if not recipe.objective.draws:
        print(f"(train in its latents with `unfog train ... --set codec=latents --set codec.path={out}`)")


def export(
    run: RunFolder,
    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FOLDER")],
    /,
    *,
    to: Literal["diffusers", "onnx"] = "diffusers",
    steps: SomeInt = None,
) -> None:
    """Export a run as a diffusers folder with a model card, or as ONNX.

    For diffusers the network must be unet or conditional-unet, either on a discrete schedule with the target eps, x0
    or v and network_time=index, or on a flow. ONNX takes any network that is unconditional or conditioned on a class;
    the folder holds sample.py, which samples with onnxruntime and NumPy only. `unfog plan` says before a training what
    its model can be exported to.

    For example:

      unfog export runs/mine my_model
      unfog export runs/digits my_model --to onnx --steps 20

    Args:
        out: The new folder.
        to: The format.
        steps: Steps of the sampler, for ONNX. Default: the recipe's.
    """
    from rich.console import Console

    from unfog.interop import export as folders
    from unfog.runs.run import load
    from unfog.runtime.progress import working

    loaded = load(run, "cpu", "float32")
    if to == "onnx":
        from unfog.interop.onnx import export as write

        with working(f"exporting {run}", console=Console(stderr=True)):
            write(loaded, out, steps)
        print(f"exported: {out}   (sample it with `python {out / 'sample.py'} --count 16 --out samples`)")
        return
    if steps is not None:
        raise UserError("--steps goes with --to onnx: diffusers takes the number of steps when it samples")
    with working(f"exporting {run}", console=Console(stderr=True)):
        notes = folders.export_model(loaded, out)
    for note in notes:
        print(f"note: {note}")
    print(f"exported: {out}   (DiffusionPipeline.from_pretrained({str(out)!r}))")
