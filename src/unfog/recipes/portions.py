"""Data sets that are made of another one: a part of its rows, or three of them at a time."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from numpy import int64
from numpy.typing import NDArray
from torch import Tensor

from unfog.data.modality import Modality
from unfog.data.source import Data
from unfog.recipes.sources import DataSpec, Digits, Looking


@dataclass(frozen=True)
class Portion:
    """Some rows of another data set, see `unfog.data.portions.portion`.

    Attributes:
        rows: The data set.
        share: Share of its training rows that is kept; the held-out rows stay.
        classes: Proportions of the classes, of training and held-out rows. Default: those of the data.
    """

    rows: DataSpec = field(default_factory=Digits)
    share: float = 1.0
    classes: Sequence[float] = ()

    @property
    def modality(self) -> Modality | None:
        """What a row is, if the data set says it."""
        found: object = getattr(self.rows, "modality", None)
        return found if isinstance(found, Modality) else None

    @property
    def computed(self) -> bool:
        """Whether the rows are a function of the recipe alone."""
        return bool(getattr(self.rows, "computed", False))

    @property
    def reads(self) -> Callable[[Tensor], NDArray[int64]] | None:
        """What reads the classes of rows by formulas, where the data can be read so."""
        found: Callable[[Tensor], NDArray[int64]] | None = getattr(self.rows, "reads", None)
        return found

    def looked(self) -> "Portion":
        """Return it with what the files of the data set say of it."""
        return replace(self, rows=self.rows.looked()) if isinstance(self.rows, Looking) else self

    def build(self) -> Data:
        """Read the data set, and keep some rows.

        Raises: UserError: If it cannot be read, or nothing would be left.
        """
        from unfog.data.portions import portion

        return portion(self.rows.build(), self.share, self.classes)


@dataclass(frozen=True)
class Stacked:
    """Three pictures of another data set as red, green and blue of one, see `unfog.data.stacked.stacked`.

    Attributes:
        rows: The data set, of pictures with one channel.
        count: Training rows.
    """

    rows: DataSpec = field(default_factory=Digits)
    count: int = 20_000

    @property
    def computed(self) -> bool:
        """Whether the rows are a function of the recipe alone."""
        return bool(getattr(self.rows, "computed", False))

    def looked(self) -> "Stacked":
        """Return it with what the files of the data set say of it."""
        return replace(self, rows=self.rows.looked()) if isinstance(self.rows, Looking) else self

    def build(self) -> Data:
        """Read the data set, and stack its rows.

        Raises: UserError: If it cannot be read, or its rows are no pictures of one channel.
        """
        from unfog.data.stacked import stacked

        return stacked(self.rows.build(), self.count)
