"""Data sources: where data are and how to read them. What reads them is imported when it does: sampling never does."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from unfog.data import points
from unfog.data.characters import texts
from unfog.data.clips import Clips
from unfog.data.labels import AUTO, RULES
from unfog.data.modality import Modality
from unfog.data.series import Series, Table
from unfog.data.sounds import Sounds
from unfog.data.source import Data
from unfog.data.volumes import volumes
from unfog.runtime.errors import UserError


class DataSpec(Protocol):
    """A data set that is read on demand.

    Where its rows are neither points, images nor arrays, a class attribute `modality` says what they are. Where they
    are a function of the spec alone, `computed = True` says that they cannot change. Where what a row shows can be read
    by formulas, a method `reads` maps rows to classes, -1 for what it cannot read, and takes the classifier's place.
    """

    def build(self) -> Data:
        """Read the data.

        Raises: UserError: If they are missing, damaged or too few.
        """
        ...


@runtime_checkable
class Looking(DataSpec, Protocol):
    """A data set whose modality depends on the files, and is filled in before they are read."""

    def looked(self) -> DataSpec:
        """Return the spec with what the files say of it; itself where all was chosen."""
        ...


@dataclass(frozen=True)
class Points:
    """Points in the plane, see `unfog.data.points.points`."""

    shape: points.Shape = "moons"
    count: int = 10_000
    noise: float = 0.05
    computed: ClassVar[bool] = True

    def build(self) -> Data:
        """Draw the points."""
        return points.points(self.shape, self.count, self.noise)


@dataclass(frozen=True)
class Digits:
    """The 1,797 handwritten digits that come with scikit-learn, see `unfog.data.classic.digits`."""

    computed: ClassVar[bool] = True

    def build(self) -> Data:
        """Read the digits."""
        from unfog.data import classic

        return classic.digits()


@dataclass(frozen=True)
class MNIST:
    """MNIST in a folder, or downloaded once, see `unfog.data.classic.mnist`."""

    path: str | None = None
    binary: bool = False

    def build(self) -> Data:
        """Read the set."""
        from unfog.data import classic

        return classic.mnist(self.path, binary=self.binary)


@dataclass(frozen=True)
class Fashion:
    """Fashion-MNIST in a folder, or downloaded once, see `unfog.data.classic.fashion`."""

    path: str | None = None
    binary: bool = False

    def build(self) -> Data:
        """Read the set."""
        from unfog.data import classic

        return classic.fashion(self.path, binary=self.binary)


@dataclass(frozen=True)
class CIFAR10:
    """CIFAR-10 in a folder, or downloaded once, see `unfog.data.classic.cifar10`."""

    path: str | None = None

    def build(self) -> Data:
        """Read the set."""
        from unfog.data import classic

        return classic.cifar10(self.path)


@dataclass(frozen=True)
class Idx:
    """A set of idx files in a folder, see `unfog.data.idx.idx`."""

    path: str = ""
    size: int | Sequence[int] | None = None
    transposed: bool | None = None
    names: Sequence[str] = ()

    def build(self) -> Data:
        """Read the set."""
        from unfog.data import idx

        return idx.idx(self.path, self.size, self.transposed, self.names)


@dataclass(frozen=True)
class Folder:
    """A folder of pictures, see `unfog.data.folder.folder`."""

    path: str = ""
    size: int | Sequence[int] | None = None
    channels: int | None = None
    heldout: float = 0.1
    workers: int = 2
    where: str = ""
    together: str = ""
    range: Sequence[float] | None = None
    rules: int = RULES
    label_from: str = AUTO
    buckets: int | Sequence[Sequence[int]] = 1
    before: ClassVar[Mapping[str, object]] = {"rules": 1}

    def build(self, glance: bool = False) -> Data:
        """Read the folder, or with `glance` only what its files are."""
        from unfog.data import folder

        return folder.folder(
            self.path,
            self.size,
            self.channels,
            self.heldout,
            self.workers,
            self.where,
            self.together,
            self.range,
            self.rules,
            self.label_from,
            glance,
            self.buckets,
        )


@dataclass(frozen=True)
class Shards:
    """Shards of pictures that are read as they are trained on, see `unfog.data.shards.shards`."""

    path: str = ""
    size: int | Sequence[int] | None = None
    channels: int | None = None
    heldout: int = 5000
    window: int | None = None

    def build(self) -> Data:
        """Index the shards."""
        from unfog.data import shards

        return shards.shards(self.path, self.size, self.channels, self.heldout, self.window)


@dataclass(frozen=True)
class CaptionedShapes:
    """Captioned shapes, drawn on demand, see `unfog.data.shapes.shapes`."""

    count: int = 100_000
    side: int = 32
    objects: int = 2
    seed: int = 0
    heldout: Literal["seen", "new"] = "seen"
    computed: ClassVar[bool] = True

    def build(self) -> Data:
        """Return the set."""
        from unfog.data import shapes

        return shapes.shapes(self.count, self.side, self.objects, self.seed, self.heldout)


@dataclass(frozen=True)
class Grammar:
    """Dates, sums and sentences of a small grammar, see `unfog.data.grammar.grammar`."""

    count: int = 200_000
    seed: int = 0
    largest: int = 9
    before: ClassVar[Mapping[str, object]] = {"largest": 99}
    modality: ClassVar[Modality] = texts
    computed: ClassVar[bool] = True

    def build(self) -> Data:
        """Draw the texts."""
        from unfog.data import grammar

        return grammar.grammar(self.count, self.seed, self.largest)


@dataclass(frozen=True)
class TextFile:
    """A text in UTF-8, by lines or by windows, see `unfog.data.textfile.textfile`."""

    path: str = ""
    rows: Literal["auto", "lines", "windows"] = "auto"
    length: int | None = None
    modality: ClassVar[Modality] = texts

    def build(self) -> Data:
        """Read the file."""
        from unfog.data import textfile

        return textfile.textfile(self.path, self.rows, self.length)


@dataclass(frozen=True)
class Tones:
    """Synthesised sounds of ten kinds, see `unfog.data.tones.tones`."""

    count: int = 10_000
    seed: int = 0
    modality: ClassVar[Modality] = Sounds(8000)
    computed: ClassVar[bool] = True

    def build(self) -> Data:
        """Synthesise the sounds."""
        from unfog.data import tones

        return tones.tones(self.count, self.seed)

    @staticmethod
    def reads(rows: Tensor) -> NDArray[np.int64]:
        """Return the kind of each sound, -1 where none can be read."""
        from unfog.data import tones

        return tones.kinds(rows.numpy())


@dataclass(frozen=True)
class Recordings:
    """A folder of sounds, see `unfog.data.recordings.recordings`."""

    path: str = ""
    rate: int | None = None
    length: int | None = None
    channels: int | None = None
    rows: Literal["auto", "clips", "windows"] = "auto"
    loudness: bool = True
    heldout: float = 0.1
    where: str = ""
    label_from: str = AUTO

    @property
    def modality(self) -> Modality:
        """Sounds of this rate."""
        return Sounds(self.rate or Sounds.rate)

    def looked(self) -> "Recordings":
        """Return it with the rate that suits the folder, if none was chosen: files of samples are written at it."""
        from unfog.data import recordings

        if self.rate is not None:
            return self
        return replace(self, rate=recordings.suited(recordings.surveyed(self.path, self.where, self.label_from)).rate)

    def build(self) -> Data:
        """Read the folder."""
        from unfog.data import recordings

        return recordings.recordings(**vars(self))


@dataclass(frozen=True)
class Videos:
    """A folder of videos, or of folders of frames, see `unfog.data.videos.videos`."""

    path: str = ""
    size: int | Sequence[int] | None = None
    frames: int | None = None
    fps: float | None = None
    channels: int | None = None
    rows: Literal["auto", "clips", "windows"] = "auto"
    heldout: float = 0.1
    where: str = ""
    label_from: str = AUTO

    @property
    def modality(self) -> Modality:
        """Clips at this rate."""
        return Clips(self.fps or Clips.fps)

    def looked(self) -> "Videos":
        """Return it with the rate that suits the folder, if none was chosen."""
        from unfog.data import videos

        if self.fps is not None:
            return self
        return replace(self, fps=videos.suited(videos.surveyed(self.path, self.where, self.label_from)).fps)

    def build(self) -> Data:
        """Read the folder."""
        from unfog.data import videos

        return videos.videos(**vars(self))


@dataclass(frozen=True)
class Scans:
    """A folder of volumes, see `unfog.data.scans.scans`."""

    path: str = ""
    size: int | Sequence[int] | None = None
    span: Sequence[float] | None = None
    heldout: float = 0.1
    where: str = ""
    label_from: str = AUTO
    modality: ClassVar[Modality] = volumes

    def build(self) -> Data:
        """Read the folder."""
        from unfog.data import scans

        return scans.scans(**vars(self))


@dataclass(frozen=True)
class Columns:
    """Series or a table, from a file or a folder, see `unfog.data.columns.columns`."""

    path: str = ""
    names: Sequence[str] = ()
    length: int | None = None
    rows: Literal["auto", "windows", "table"] = "auto"
    heldout: float = 0.1
    where: str = ""
    label_from: str = AUTO

    @property
    def modality(self) -> Modality:
        """Series or rows with these columns."""
        return Table(tuple(self.names)) if self.rows == "table" else Series(tuple(self.names))

    def looked(self) -> "Columns":
        """Return it with the columns that hold numbers, if none were chosen."""
        from unfog.data import columns

        if self.names:
            return self
        return replace(self, names=columns.look(self.path, self.rows, self.length, self.label_from).columns)

    def build(self) -> Data:
        """Read the file or the folder."""
        from unfog.data import columns

        return columns.columns(**vars(self))


@dataclass(frozen=True)
class MovingDigits:
    """Digits that fly and bounce off the walls, see `unfog.data.moving.moving`."""

    count: int = 20_000
    frames: int = 16
    seed: int = 0
    modality: ClassVar[Modality] = Clips(10.0)
    computed: ClassVar[bool] = True

    def build(self) -> Data:
        """Return the set, which is drawn as it is trained on."""
        from unfog.data import moving

        return moving.moving(self.count, self.frames, self.seed)


@dataclass(frozen=True)
class Solids:
    """Solids of voxels, see `unfog.data.solids.solids`."""

    count: int = 20_000
    seed: int = 0
    modality: ClassVar[Modality] = volumes
    computed: ClassVar[bool] = True

    def build(self) -> Data:
        """Draw the solids."""
        from unfog.data import solids

        return solids.solids(self.count, self.seed)

    @staticmethod
    def reads(rows: Tensor) -> NDArray[np.int64]:
        """Return the kind of each solid, -1 where none can be read."""
        from unfog.data import solids

        return solids.kinds(rows.numpy())


@dataclass(frozen=True)
class Oscillators:
    """Noisy oscillations, see `unfog.data.oscillators.oscillators`."""

    count: int = 50_000
    noise: float = 0.05
    seed: int = 0
    modality: ClassVar[Modality] = Series(("displacement",))
    computed: ClassVar[bool] = True

    def build(self) -> Data:
        """Draw the series."""
        from unfog.data import oscillators

        return oscillators.oscillators(self.count, self.noise, self.seed)


@dataclass(frozen=True)
class Elsewhere:
    """The data of an imported model, which are not available."""

    def build(self) -> Data:
        """Raise a UserError with the reason."""
        from unfog.data import elsewhere

        return elsewhere.elsewhere()


@dataclass(frozen=True)
class Given:
    """Rows that were given in Python as a dataset, which a run folder does not keep.

    Attributes:
        digest: Hash of their contents, by which they are known again.
    """

    digest: str = ""
    computed: ClassVar[bool] = True  # the digest is compared

    def build(self) -> Data:
        """Refuse, with what to do."""
        raise UserError(
            "this run was trained on a dataset that was given in Python, and its folder does not keep the data: it can "
            "be sampled, edited and exported; to resume the training, give them again: unfog.resume(path, dataset=...)"
        )
