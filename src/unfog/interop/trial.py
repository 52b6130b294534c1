"""One evaluation of an imported model, before it is called imported."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch

from unfog.networks.autoencoder import Autoencoder
from unfog.networks.conditioning import Cond
from unfog.recipes.build import known_of
from unfog.recipes.text_encoders import PretrainedConditioning
from unfog.runs.run import load
from unfog.runtime.errors import UserError

UNTRIED = "its text encoder was not tried, since transformers is not installed: pip install 'unfog[text]'"


@torch.no_grad()
def tried(folder: Path) -> tuple[str, ...]:
    """Load an imported run and evaluate its network once, on the smallest state, and its text encoder on no text.

    Returns: What could not be tried.
    Raises: UserError: If a part cannot be built or loaded, or its output is not finite.
    """
    run = load(folder, "cpu", "float32")
    conditioning, (channels, *_) = run.recipe.conditioning, known_of(run.recipe).shape
    side = 2 * int(cast(Any, run.denoiser.network).multiple)  # of one number a group norm has no deviation
    x, t = torch.zeros(1, channels, side, side), torch.tensor([run.denoiser.schedule.t_max / 2])
    notes: tuple[str, ...] = ()
    cond = None
    if isinstance(conditioning, PretrainedConditioning) and find_spec("transformers") is None:
        cond, notes = Cond(tokens=torch.zeros(1, 2, conditioning.context)), (UNTRIED,)
    elif run.denoiser.embedder is not None:
        cond = run.denoiser.embedder.null(1)
    if not run.denoiser(x, t, cond).x0.isfinite().all():
        raise UserError(f"the network of {folder} returned numbers that are not finite: its weights are damaged")
    return notes


@torch.no_grad()
def tried_autoencoder(autoencoder: Autoencoder, where: Path) -> None:
    """Encode and decode the smallest picture.

    Raises: UserError: If the result is not finite.
    """
    side = 2 * autoencoder.factor
    x = torch.zeros(1, autoencoder.channels, side, side)
    if not autoencoder.decode(autoencoder.encode(x)).isfinite().all():
        raise UserError(f"the autoencoder of {where} returned numbers that are not finite: its weights are damaged")
