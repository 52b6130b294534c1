"""Embeddings of pictures and texts as parts of a recipe: of a trained dual encoder, which a path names."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from unfog.data.source import Batch
from unfog.networks.conditioning import Embedder, TextEncoder
from unfog.networks.dual import DualEncoder, MeaningEmbedding, Tower
from unfog.recipes.build import Undrawn, build_codec, drawn, known_of
from unfog.recipes.conditions import Asked, Known, WithNull, each
from unfog.recipes.latents import SMALL
from unfog.recipes.networks import TowerSpec
from unfog.recipes.recipe import Recipe
from unfog.runtime.brief import brief
from unfog.runtime.contained import check_contained
from unfog.runtime.errors import UserError
from unfog.runtime.files import read_bounded
from unfog.runtime.tensors import load_into, read_tensors

PORTION = 256
"""Rows that are embedded at a time."""
OPTION = "conditioning.path"
"""The setting that names the encoder of a decoder."""
FILES = ("recipe.json", "model.safetensors")
"""What a run folder needs to be an encoder."""


@dataclass(frozen=True, eq=False)
class Encoder:
    """A trained dual encoder, which maps rows and texts to embeddings of unit variance: of length sqrt(dim).

    Attributes:
        recipe: What it was made with.
        model: The two encoders.
        digest: SHA-256 of its weights.
    """

    recipe: Recipe
    model: DualEncoder
    digest: str

    __repr__ = brief

    @property
    def dim(self) -> int:
        """Length of an embedding, in numbers."""
        return self.model.dim

    @torch.no_grad()
    def pictures(self, x: Tensor) -> Tensor:
        """Return the embeddings of rows as stored, `(batch, *shape)`, on the CPU: `(batch, dim)`."""
        codec = build_codec(self.recipe)
        with torch.autocast("cpu", enabled=False):  # an edit computes in the arithmetic of its own model
            parts = [self.model.pictures(codec.encode(part)) for part in torch.split(x.cpu(), PORTION)]
        return lengthened(torch.cat(parts))

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Return the embeddings of texts, `(texts, dim)`."""
        return self.written(self.words(texts))

    def words(self, texts: Sequence[str]) -> Tensor:
        """Return texts as integers, `(texts, length)`."""
        words = self.recipe.conditioning.ask(known_of(self.recipe), list(texts), len(texts))
        assert words is not None
        return words

    @torch.no_grad()
    def written(self, words: Tensor) -> Tensor:
        """Return the embeddings of texts as integers, `(texts, length)`: `(texts, dim)`."""
        with torch.autocast("cpu", enabled=False):
            return lengthened(self.model.texts(words))


def build_dual(recipe: Recipe, most: int) -> DualEncoder:
    """Return both encoders with freshly drawn weights.

    Raises: UserError: If the parts do not fit together, or they would be too large.
    """
    return drawn(recipe, most, partial(_dual, recipe))


def _dual(recipe: Recipe) -> DualEncoder:
    """Return both encoders."""
    known = known_of(recipe)
    shape = known.shape
    tower: object = recipe.network.build(channels=shape[0], outputs=shape[0], dims=len(shape) - 1, context=None)
    if not isinstance(tower, Tower):
        raise UserError(f"objective=contrastive trains network=tower, not {recipe.kind('network')!r}")
    for side in shape[1:]:
        if side % tower.multiple:
            raise UserError(
                f"the network 'tower' needs sides that are multiples of {tower.multiple}, not {side}: set "
                "network.levels, or data.size where the data are files"
            )
    words = recipe.conditioning.build(known, tower.dim)
    if not isinstance(words, TextEncoder):
        raise UserError("objective=contrastive learns from captions: it goes with conditioning=text")
    return DualEncoder(tower, words)


def described(path: str | Path, option: str, shape: tuple[int, ...] | None = None) -> Recipe:
    """Return what the dual encoder of a run folder was made with, without its weights.

    Args:
        path: The run folder.
        option: The setting that names it, for messages.
        shape: Of the rows that it is to encode, if they are known.

    Raises: UserError: If there is none, or it was trained on rows of another shape.
    """
    if not path:
        raise UserError(f"which encoder? Train one with `unfog train encoder`, and set {option} to its run folder")
    where = Path(path).expanduser()
    check_contained(where)
    for name in FILES:
        if not (where / name).is_file():
            raise UserError(f"{where} is not the run folder of an encoder (it has no {name}): check {option}")
    try:
        recipe = Recipe.from_json(read_bounded(where / FILES[0])).relocated(where)
    except UserError as error:
        raise UserError(f"{where / FILES[0]}: {error}: check {option}") from None
    if recipe.shape is None or not isinstance(recipe.network, TowerSpec):
        raise UserError(f"{where} is no encoder, since its network is {recipe.kind('network')!r}: check {option}")
    if shape not in (None, recipe.shape):
        raise UserError(f"the encoder in {where} was trained on rows of {recipe.shape}, not of {shape}: use its size")
    return recipe


def encoder(path: str | Path, option: str, shape: tuple[int, ...] | None = None) -> Encoder:
    """Return the dual encoder of a run folder, ready to use; arguments and errors are those of `described`."""
    recipe, where = described(path, option, shape), Path(path).expanduser()
    return _loaded(where, recipe, (where / FILES[1]).stat().st_mtime_ns)


@lru_cache(maxsize=4)
def _loaded(where: Path, recipe: Recipe, changed: int) -> Encoder:
    """Return an encoder, loaded once as long as its files do not change."""
    weights = read_tensors(where / FILES[1])
    most = max(SMALL, sum(tensor.numel() for tensor in weights.values()))
    with Undrawn():
        model = build_dual(recipe, most)
    load_into(model, weights, where / FILES[1])
    with (where / FILES[1]).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Encoder(recipe, model.eval().requires_grad_(False), digest)


@dataclass(frozen=True)
class EmbeddingConditioning(WithNull):
    """Conditions on the embedding of the picture: the decoder of DALL-E 2.

    A request is a picture, whose embedding is taken, a text, or embeddings themselves, for instance those that a prior
    has drawn. The network gets it with the time embedding, and as tokens for cross-attention.

    Attributes:
        path: Run folder of the encoder, which is copied into the new run.
        tokens: Tokens that the embedding becomes.
        width: Entries of a token.

    Source: Ramesh et al. 2022, Hierarchical Text-Conditional Image Generation with CLIP Latents, section 2.1.
    """

    path: str = ""
    tokens: int = 8
    width: int = 128

    def __post_init__(self) -> None:
        """Check the numbers."""
        super().__post_init__()
        if not 1 <= self.tokens <= 256 or self.width < 1 or self.width % 32:
            raise UserError(
                "conditioning.tokens must be from 1 to 256 and conditioning.width a multiple of 32, not "
                f"{self.tokens} and {self.width}"
            )

    @property
    def context(self) -> int:  # type: ignore[override]  # an option here, a constant elsewhere
        """Entries of a token."""
        return self.width

    @property
    def encoder(self) -> Encoder:
        """The encoder."""
        return encoder(self.path, OPTION)

    def dim(self, known: Known) -> int:
        """Return the length of an embedding.

        Raises: UserError: If the encoder is missing, or was trained on rows of another shape.
        """
        spec = described(self.path, OPTION, known.stored or known.shape).network
        assert isinstance(spec, TowerSpec)
        return spec.dim

    def build(self, known: Known, dim: int) -> Embedder | None:
        """Return the embedder."""
        return MeaningEmbedding(self.dim(known), dim, tokens=self.tokens, context=self.width)

    def read(self, known: Known, batch: Batch, x0: Tensor, u: Tensor) -> Tensor | None:
        """Return the embeddings of rows, `(batch, dim)`."""
        return self.encoder.pictures(batch.x)

    def ask(self, known: Known, asked: Asked, count: int) -> Tensor | None:
        """Return the embedding for each sample, `(count, dim)`; one is used for all."""
        if isinstance(asked, str) or (isinstance(asked, Sequence) and asked and isinstance(asked[0], str)):
            return self.encoder.texts(each(asked, count, (str,)))
        if not isinstance(asked, Tensor):
            raise UserError("this model is conditioned on embeddings: give a picture as `image`, or a text as `prompt`")
        pictures = tuple(asked.shape[1:]) == (known.stored or known.shape)
        rows = self.depicted(known, asked) if pictures else asked
        if not pictures and not (rows.is_floating_point() and rows[:1].numel() == rows.shape[-1]):
            raise UserError(
                f"this model takes pictures of {known.stored or known.shape} or embeddings, not {tuple(asked.shape)}"
            )
        if rows.shape[1] != self.dim(known) or not len(rows) or not rows.isfinite().all():
            raise UserError(
                f"this model is conditioned on embeddings of {self.dim(known)} finite numbers, not on "
                f"{tuple(asked.shape)}"
            )
        return lengthened(rows.float())[torch.arange(count) % len(rows)]

    def following(self, known: Known, rows: Tensor) -> Tensor:
        """Return embeddings that a prior has drawn, `(batch, dim)`, at their length."""
        found = self.ask(known, rows, len(rows))
        assert found is not None, "embeddings"
        return found

    def written(self, known: Known, texts: Sequence[str]) -> Tensor:
        """Return the embeddings of texts, `(texts, dim)`."""
        return self.encoder.texts(texts)

    def depicted(self, known: Known, rows: Tensor) -> Tensor:
        """Return the embeddings of rows as stored, `(rows, dim)`.

        Raises: UserError: If they are of another shape.
        """
        return encoder(self.path, OPTION, tuple(rows.shape[1:])).pictures(rows)


def lengthened(rows: Tensor) -> Tensor:
    """Return embeddings, `(batch, dim)`, at their length, sqrt(dim)."""
    return math.sqrt(rows.shape[1]) * F.normalize(rows, dim=1)
