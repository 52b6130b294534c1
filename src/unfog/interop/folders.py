"""The parts of a diffusers model, wherever the user points: a pipeline, a bare U-Net, or a checkpoint of a training."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unfog.interop import files
from unfog.runtime.contained import check_contained
from unfog.runtime.errors import UserError

IGNORED = ("safety_checker", "feature_extractor", "image_encoder")
"""Parts of pipelines that are ignored."""
KNOWN = ("unet", "scheduler", "vae", "vqvae", "text_encoder", "tokenizer", *IGNORED)
NETWORKS = ("UNet2DModel", "UNet2DConditionModel")
"""Classes of denoisers."""
DEFAULT = {"_class_name": "DDPMScheduler"}
"""The scheduler of a U-Net without one."""


@dataclass(frozen=True)
class Model:
    """Where the parts of a model are.

    Attributes:
        folder: The pipeline, or the U-Net where it has none.
        unet: The folder of the U-Net.
        index: The class of each part of the pipeline, by name, and its own class.
        entries: model_index.json, or nothing.
        scheduler: The scheduler's configuration.
        notes: What was assumed, and what is not used.
    """

    folder: Path
    unet: Path
    index: Mapping[str, Any]
    entries: Mapping[str, Any]
    scheduler: Mapping[str, Any]
    notes: tuple[str, ...]


def model(given: Path) -> Model:
    """Return the parts of a model.

    Args:
        given: A pipeline, its U-Net, a bare U-Net, or a checkpoint of a training that has a U-Net.

    Raises: UserError: If there is no model, or it has parts that are not supported.
    """
    folder, unet, notes = given, None, []
    if not (given / "model_index.json").is_file():
        unet = given if (given / "config.json").is_file() else given / "unet"
        if not (unet / "config.json").is_file():
            raise UserError(f"{given} is not a diffusers folder: it has no model_index.json and no config.json")
        above = [parent for parent in unet.absolute().parents[:3] if (parent / "model_index.json").is_file()]
        folder = above[0] if above else given
        if above:
            check_contained(folder)
        notes += [f"all parts but the U-Net are those of {folder}"] if above else []
    entries = files.config(folder / "model_index.json") if (folder / "model_index.json").is_file() else {}
    if entries:
        index = _index(folder, entries)
    else:
        index = {"_class_name": None, "unet": files.config((unet or folder) / "config.json").get("_class_name")}
    place = folder / "scheduler" if (folder / "scheduler").is_dir() else folder
    unet = unet or (folder / "unet" if (folder / "unet").is_dir() else folder)
    if entries or (place / "scheduler_config.json").is_file():
        scheduler: Mapping[str, Any] = files.config(place / "scheduler_config.json")
    else:
        scheduler = DEFAULT
        notes.append("it has no scheduler: that of DDPM is assumed, with linear betas and the target eps")
    parts = [name for name in KNOWN if index.get(name) and (folder / name).is_dir()]
    within = unet.absolute().relative_to(folder.absolute()).parts[:1]  # of a checkpoint, its folder
    found = files.unused(folder, [*parts, *within, "scheduler_config.json", "scheduler"])
    if given not in (folder, unet):
        found += [f"{given.name}/{name}" for name in files.unused(given, ["unet"])]
    for part in parts if unet != folder else ():
        if part in ("vae", "vqvae"):
            found += [f"{part}/{name}" for name in files.unused(folder / part)]
    found += [f"{unet.name}/{name}" for name in files.unused(unet)] if unet != folder else []
    notes += [f"not used: {', '.join(found)}"] if found else []
    notes += [f"{name} is ignored" for name in IGNORED if index.get(name)]
    return Model(folder, unet, index, entries, scheduler, tuple(notes))


def _index(folder: Path, entries: Mapping[str, Any]) -> dict[str, Any]:
    """Return the class of each part of a pipeline, by name, and the pipeline's own class."""
    parts: dict[str, Any] = {"_class_name": entries.get("_class_name")}
    for name, value in entries.items():
        if isinstance(value, list) and len(value) == 2 and value[1] is not None:
            if name not in KNOWN:
                raise UserError(
                    f"{folder / 'model_index.json'}: the part {name} ({value[1]}) of {entries.get('_class_name')} is "
                    f"not supported, only {', '.join(KNOWN)}"
                )
            parts[name] = str(value[1])
    for name in ("unet", "scheduler"):
        if name not in parts:
            raise UserError(f"{folder / 'model_index.json'} has no {name}: only pipelines with a U-Net are supported")
    return parts
