"""Data whose rows are embeddings of those of another data set: what a prior learns to draw."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

from unfog.data.embedded import embedded
from unfog.data.modality import Modality
from unfog.data.series import Table
from unfog.data.source import Data
from unfog.recipes.encoders import encoder
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
