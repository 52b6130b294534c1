"""Several conditions at once: classes, numbers and text together, each requested and dropped on its own."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from unfog.data.source import Batch
from unfog.networks.conditioning import Embedder, SeveralEmbedding
from unfog.recipes.conditions import (
    Asked,
    ClassConditioning,
    Conditioning,
    Known,
    LabelsConditioning,
    TextConditioning,
    ValuesConditioning,
    WithNull,
)
from unfog.recipes.kinds import kind_of
from unfog.runtime.errors import UserError, unknown

MOST = 4
"""Conditions at once, at most: each is dropped by one of the four uniform numbers of a row."""


@dataclass(frozen=True)
class SeveralConditions(WithNull):
    """The model is conditioned on several things at once, and a request may name any of them.

    A row's condition is one row of whole numbers: for each part a flag, 1 where it is given, then its entries; those
    of float32 by their bits. Each part is dropped with its own probability, all together with `dropout`.

    Attributes:
        parts: Two to four of classes, labels, values and text, each once.
        dropout: Fraction of the rows whose conditions are all dropped in training, which guidance needs; 0.1 is usual.
    """

    parts: tuple[Conditioning, ...] = ()

    def __post_init__(self) -> None:
        """Check that the parts can be combined."""
        super().__post_init__()
        allowed = ClassConditioning | LabelsConditioning | ValuesConditioning | TextConditioning
        names = [kind_of("conditioning", part) for part in self.parts]
        if not 2 <= len(names) <= MOST or len(set(names)) < len(names):
            raise UserError(f"several conditions are 2 to {MOST} different ones, not {', '.join(names) or 'none'}")
        for name, part in zip(names, self.parts, strict=True):
            if not isinstance(part, allowed):
                raise UserError(f"conditioning={name} cannot be combined: use classes, labels, values or text")

    @property
    def named(self) -> dict[str, Conditioning]:
        """The parts by their names."""
        return {kind_of("conditioning", part): part for part in self.parts}

    @property
    def context(self) -> int | None:  # type: ignore[override]  # an option here, and nothing elsewhere
        """Length of a text token, if one of the parts is text."""
        return next((part.context for part in self.parts if part.context is not None), None)

    @property
    def captioned(self) -> bool:  # type: ignore[override]  # as above
        """Whether one of the parts is text."""
        return any(part.captioned for part in self.parts)

    def build(self, known: Known, dim: int) -> Embedder | None:
        """Return an embedder whose parts are those of the conditions."""
        embedders = [embedder for part in self.parts if (embedder := part.build(known, dim)) is not None]
        if len(embedders) < len(self.parts):
            raise UserError("conditioning=several with classes needs data with classes")
        return SeveralEmbedding(embedders, [_columns(part, known) for part in self.parts])

    def read(self, known: Known, batch: Batch, x0: Tensor, u: Tensor) -> Tensor | None:
        """Return the conditions of rows, `(batch, columns)` of int64; part i is dropped where u[:, i] < its dropout."""
        columns = []
        for place, (name, part) in enumerate(self.named.items()):
            entries = part.read(known, batch, x0, u)
            if entries is None:
                raise UserError(f"the data have no {name}, which the model is to be conditioned on")
            columns += [(u[:, place] >= part.dropout).long()[:, None], _packed(entries)]
        return torch.cat(columns, 1)

    def ask(self, known: Known, asked: Asked, count: int) -> Tensor | None:
        """Return the conditions of `count` samples; parts that a request does not name are dropped.

        Args:
            known: What is known of the data.
            asked: A mapping from the names of parts to what each is to be; a text alone is for the part `text`. None
                takes held-out captions in turn or, without text, all classes in turn.
            count: Number of samples.

        Raises: UserError: For an unknown part, or if `asked` is not a mapping.
        """
        parts = self.named
        wanted = self.wanted(asked)
        columns = []
        for name, part in parts.items():
            given = name in wanted
            size = _columns(part, known)
            entries = part.ask(known, wanted[name], count) if given else torch.zeros(count, size, dtype=torch.long)
            assert entries is not None
            columns += [torch.full((count, 1), int(given)), _packed(entries)]
        return torch.cat(columns, 1)

    def unpacked(self, condition: Tensor, known: Known) -> dict[str, tuple[Tensor, Tensor]]:
        """Return for each part which rows have it, `(batch,)`, and its entries as the part itself gives them."""
        found, first = {}, 0
        for name, part in self.named.items():
            size = _columns(part, known)
            given, entries = condition[:, first].bool(), condition[:, first + 1 : first + 1 + size]
            if isinstance(part, ValuesConditioning):
                entries = entries.int().view(torch.float32)
            found[name] = (given, entries[:, 0] if isinstance(part, ClassConditioning) else entries)
            first += 1 + size
        return found

    def wanted(self, asked: Asked) -> dict[str, Asked]:
        """Return the request for each part that the request names."""
        parts = self.named
        if asked is None:
            first = "text" if "text" in parts else next((name for name in parts if name in ("classes", "labels")), None)
            return {} if first is None else {first: None}
        if isinstance(asked, str) and "text" in parts:
            return {"text": asked}
        if not isinstance(asked, Mapping):
            names = ", ".join(parts)
            raise UserError(f"this model is conditioned on {names}: ask with names, for instance {{{names!r}: ...}}")
        for name in asked:
            if name not in parts:
                raise unknown("condition", str(name), parts)
        return dict(asked)


def words_read(conditioning: Conditioning) -> int | None:
    """Return how many words of a caption a model reads, with the start; None if it reads none, or by its own rules."""
    parts = conditioning.parts if isinstance(conditioning, SeveralConditions) else (conditioning,)
    return next((part.length for part in parts if isinstance(part, TextConditioning)), None)


def _columns(part: Conditioning, known: Known) -> int:
    """Return how many numbers a part takes for each row."""
    if isinstance(part, ValuesConditioning):
        return part.count
    if isinstance(part, TextConditioning):
        return part.length
    return len(known.classes) if isinstance(part, LabelsConditioning) else 1


def _packed(entries: Tensor) -> Tensor:
    """Return entries, `(batch, ...)`, as int64 `(batch, columns)`; numbers of float32 by their bits."""
    rows = entries.reshape(len(entries), -1)
    return rows.float().view(torch.int32).long() if rows.is_floating_point() else rows.long()
