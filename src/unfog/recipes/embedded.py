"""What a prior learns: embeddings of the rows of another data set, given the embeddings of their captions."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Self

from torch import Tensor

from unfog.data.embedded import embedded
from unfog.data.modality import Modality
from unfog.data.series import Table
from unfog.data.source import Batch, Data
from unfog.networks.conditioning import Embedder, NumbersEmbedding
from unfog.recipes.conditions import Asked, Known, WithNull, captions, prompted
from unfog.recipes.encoders import OPTION as OF_CONDITION
from unfog.recipes.encoders import described, encoder
from unfog.recipes.networks import TowerSpec
from unfog.recipes.sources import CaptionedShapes, DataSpec, Looking
from unfog.runtime.errors import UserError

OPTION = "data.path"
"""The setting that names the encoder."""


@dataclass(frozen=True)
class Embedded:
    """Embeddings of the rows of another data set, with its captions, see `unfog.data.embedded.embedded`.

    Attributes:
        rows: The data set.
        path: Run folder of the encoder.
        weights: SHA-256 of its weights; filled in.
    """

    modality: ClassVar[Modality] = Table()
    rows: DataSpec = field(default_factory=CaptionedShapes)
    path: str = ""
    weights: str = ""

    @property
    def computed(self) -> bool:
        """Whether the rows are a function of the recipe and of the encoder's weights."""
        return bool(getattr(self.rows, "computed", False))

    def looked(self) -> "Embedded":
        """Return it with the encoder's path made absolute, and what its weights are."""
        found = encoder(self.path, OPTION)
        rows = self.rows.looked() if isinstance(self.rows, Looking) else self.rows
        path = str(Path(self.path).expanduser().resolve())
        return replace(self, rows=rows, path=path, weights=self.weights or found.digest)

    def build(self) -> Data:
        """Read the rows, whose embeddings are computed as they are taken.

        Raises: UserError: If there is no encoder, it is another one than before, or for other rows.
        """
        data = self.rows.build()
        found = encoder(self.path, OPTION, data.train.shape)
        if self.weights not in ("", found.digest):
            raise UserError(f"the encoder in {self.path} has other weights than it had: set {OPTION} to that of before")
        return embedded(data, found.pictures, found.dim)


@dataclass(frozen=True)
class CaptionConditioning(WithNull):
    """Conditions on the embedding of the caption, which is near that of the picture: a prior's condition.

    Where the data have no captions, the names of the classes are the text.

    Attributes:
        path: Run folder of the encoder, which is copied into the new run. Default: that of the data.

    Source: Ramesh et al. 2022, Hierarchical Text-Conditional Image Generation with CLIP Latents, section 2.2.
    """

    captioned: ClassVar[bool] = True
    path: str = ""

    def beside(self, data: object) -> Self:
        """Return it with the encoder of data that are embeddings, if it has none of its own."""
        return replace(self, path=data.path) if isinstance(data, Embedded) and not self.path else self

    def build(self, known: Known, dim: int) -> Embedder | None:
        """Return the embedder."""
        spec = described(self.path, OF_CONDITION).network
        assert isinstance(spec, TowerSpec)
        return NumbersEmbedding(spec.dim, dim)

    def read(self, known: Known, batch: Batch, x0: Tensor, u: Tensor) -> Tensor | None:
        """Return the embeddings of captions, `(batch, dim)`."""
        return encoder(self.path, OF_CONDITION).texts(captions(batch, known.classes))

    def ask(self, known: Known, asked: Asked, count: int) -> Tensor | None:
        """Return the embeddings of prompts; without a request, of the known prompts in turn."""
        return encoder(self.path, OF_CONDITION).texts(prompted(known, asked, count))
