"""A run that was just written, tried out: built, loaded, and run once on the smallest input."""

from pathlib import Path

import torch
from torch import Tensor

from unfog.networks.autoencoder import Autoencoder
from unfog.networks.conditioning import ClassEmbedding, Cond, Embedder
from unfog.recipes.build import build_codec
from unfog.recipes.latents import LatentCodec, autoencoder
from unfog.recipes.text_encoders import PretrainedConditioning, encoder, installed
from unfog.runs.run import load, read_recipe
from unfog.runtime.errors import UserError
from unfog.training.objectives.reconstruction import Reconstruction


def tried(folder: Path, source: str) -> tuple[str, ...]:
    """Build the model of a run folder, load its weights, and run it once.

    Args:
        folder: The run folder.
        source: Where the model is from, for error messages.

    Returns: What could not be tried.
    Raises: UserError: If any of this fails, or a value that comes out is not finite.
    """
    recipe = read_recipe(folder)
    assert recipe.shape is not None
    try:
        with torch.inference_mode():
            if isinstance(recipe.objective, Reconstruction):
                _restores(autoencoder(folder, recipe.shape[0]), recipe.shape[0], source)
                return ()
            notes = _draws(folder, recipe.conditioning, source)
            if isinstance(recipe.codec, LatentCodec):
                _restores(autoencoder(recipe.codec.path, recipe.shape[0]), recipe.shape[0], source)
                build_codec(recipe)
    except (RuntimeError, AssertionError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{source} was read, but its network does not run ({first}): check its configs") from error
    return notes


def _draws(folder: Path, conditioning: object, source: str) -> tuple[str, ...]:
    """Run the denoiser of a run once; return what could not be tried."""
    denoiser = load(folder, "cpu", "float32").denoiser
    text = isinstance(conditioning, PretrainedConditioning)
    alone = text and not installed()
    if isinstance(conditioning, PretrainedConditioning) and not alone:
        for name, tensor in encoder(conditioning.path, conditioning.length).network.state_dict().items():
            _check(tensor, f"the weight {name} of its text encoder", source)
    embedder = None if alone else denoiser.embedder
    weights = denoiser.state_dict()
    side = int(getattr(denoiser.network, "multiple", 1))
    x = _tiny(weights["network.conv_in.weight"].shape[1], side)
    output, _ = denoiser.output(x, torch.tensor([denoiser.schedule.t_max / 2]), _cond(embedder, weights, alone))
    _check(output, "the output of its network", source)
    encoder.cache_clear()
    return ("transformers is not installed, so its text encoder was not tried",) if alone else ()


def _cond(embedder: Embedder | None, weights: dict[str, Tensor], alone: bool) -> Cond | None:
    """Return a condition: the first class, the empty prompt, or zeros where there is no text encoder."""
    if alone:
        context = next(tensor.shape[1] for name, tensor in weights.items() if name.endswith(".kv.weight"))
        return Cond(tokens=torch.zeros(1, 1, context))
    if embedder is None:
        return None
    return embedder(torch.tensor([0])) if isinstance(embedder, ClassEmbedding) else embedder.null(1)


def _restores(coder: Autoencoder, channels: int, source: str) -> None:
    """Encode and decode a tiny picture."""
    _check(coder.decode(coder.encode(_tiny(channels, coder.factor))), "the output of its autoencoder", source)


def _tiny(channels: int, side: int) -> Tensor:
    """Return one small input of noise, twice as large as its strides: group norms need several values each."""
    return torch.randn(1, channels, 2 * side, 2 * side, generator=torch.Generator().manual_seed(0))


def _check(values: Tensor, what: str, source: str) -> None:
    """Raise a UserError for values that are not finite."""
    if values.is_floating_point() and not bool(values.isfinite().all()):
        raise UserError(f"{source}: {what} is not finite: use weights from before they broke")
