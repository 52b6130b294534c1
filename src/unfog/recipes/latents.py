"""Latent diffusion as a part of a recipe: a trained autoencoder as a codec."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from torch import Tensor

from unfog.data.codecs import Codec, Latents
from unfog.networks.autoencoder import Autoencoder
from unfog.recipes.build import Undrawn, build_autoencoder
from unfog.recipes.networks import AutoencoderSpec
from unfog.recipes.recipe import Recipe
from unfog.recipes.settings import positive
from unfog.runtime.contained import check_contained
from unfog.runtime.errors import UserError
from unfog.runtime.files import read_bounded
from unfog.runtime.tensors import load_into, read_tensors

PREFIX = "autoencoder."
SMALL = 10_000_000
"""Parameters that a recipe may ask for even if the weights file holds fewer: the mismatch is then reported by name."""


@dataclass(frozen=True)
class LatentCodec:
    """Diffusion in the latents of an autoencoder: smaller latents are faster, but detail that they lose stays lost.

    The options but `path` describe the autoencoder that is trained first where `path` is empty.

    Attributes:
        path: Run folder of an autoencoder, which is copied into the new run; if empty, one is trained first.
        factor: How many times smaller the sides of a latent are: 2, 4, 8 or another power of two.
        channels: Channels of its latents.
        width: Channels of its finest level.
        images: Pictures that it is trained on.
        share: Fraction of a budget for its training.
    """

    path: str = ""
    factor: int = 4
    channels: int = 4
    width: int = 32
    images: int = 100_000
    share: float = 0.4

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.factor < 2 or self.factor & (self.factor - 1):
            raise UserError(f"codec.factor must be a power of two, 2 or more, not {self.factor}")
        if not 0 < self.share < 1:
            raise UserError(f"codec.share must lie between 0 and 1, not {self.share}")
        positive(**{"codec.channels": self.channels, "codec.width": self.width, "codec.images": self.images})

    def build(self, stored: tuple[int, ...]) -> Codec:
        """Return the codec for pictures of a shape.

        Raises: UserError: If there is no autoencoder, or it is for pictures of another shape.
        """
        if not self.path:
            raise UserError("the autoencoder is not trained yet: `unfog train` does that first")
        return Latents(autoencoder(self.path, stored[0]), stored)


def autoencoder(path: str | Path, channels: int) -> Autoencoder:
    """Return the autoencoder of a run folder, ready to use.

    Raises: UserError: If there is none, it is damaged, or it is for another number of channels.
    """
    where = Path(path)
    check_contained(where)
    for name in ("recipe.json", "model.safetensors"):
        if not (where / name).is_file():
            raise UserError(f"{where} is not the run folder of an autoencoder (it has no {name}): check codec.path")
    found = _loaded(where, (where / "model.safetensors").stat().st_mtime_ns)
    if found.channels != channels:
        raise UserError(f"the autoencoder in {where} is for pictures of {found.channels} channels, not {channels}")
    return found


@lru_cache(maxsize=4)
def _loaded(where: Path, changed: int) -> Autoencoder:
    """Return an autoencoder, loaded once as long as its file does not change."""
    weights = read_tensors(where / "model.safetensors")
    try:
        recipe = Recipe.from_json(read_bounded(where / "recipe.json"))
        if recipe.shape is None or not isinstance(recipe.network, AutoencoderSpec):
            raise UserError(f"its network is {recipe.kind('network')!r}, not an autoencoder")
        most = max(SMALL, sum(tensor.numel() for tensor in weights.values()))
        with Undrawn():
            made = build_autoencoder(recipe, most).autoencoder
    except UserError as error:
        raise UserError(f"{where / 'recipe.json'}: {error}: check codec.path") from None
    own = {name.removeprefix(PREFIX): value for name, value in weights.items() if name.startswith(PREFIX)}
    load_into(made, own, where / "model.safetensors")
    return made.eval().requires_grad_(False)


def weights_of(made: Autoencoder) -> dict[str, Tensor]:
    """Return the weights of an autoencoder under the names in its run folder."""
    return {f"{PREFIX}{name}": tensor for name, tensor in made.state_dict().items()}
