"""Stacked pictures: three of one channel as one of three, whose classes together are its mode."""

from collections.abc import Sequence

import numpy as np
import torch

from unfog.data.modality import images
from unfog.data.source import Data, Indices, InMemory, Source
from unfog.runtime.errors import UserError
from unfog.runtime.randomness import stream

CHANNELS = 3
"""Pictures that are stacked."""


def stacked(data: Data, count: int = 20_000, heldout: int = 2_000) -> Data:
    """Stack pictures of one channel: each row is three of them, drawn at random, as red, green and blue.

    Of ten classes there are 1,000 modes, all as likely if the classes are. Each part is made of its own rows.

    Args:
        data: Pictures of one channel.
        count: Training rows.
        heldout: Held-out rows.

    Raises: UserError: If the pictures have other channels.
    Source: Metz et al. 2017, Unrolled Generative Adversarial Networks; Lin et al. 2018, PacGAN, for the count of modes.
    """
    if min(count, heldout) < 1:
        raise UserError(f"stacked rows must be 1 or more, not {min(count, heldout)}")
    if not images.fits(data.train.shape) or data.train.shape[0] != 1:
        raise UserError("only pictures of one channel are stacked")
    return Data(_stack(data.train, count, 0), _stack(data.heldout, heldout, 1))


def _stack(source: Source, count: int, part: int) -> InMemory:
    """Return so many rows of three pictures each."""
    rows = stream(0, "stacked", part).integers(0, len(source), (CHANNELS, count))
    return InMemory(torch.cat([source.take(own).x for own in rows], 1))


def modes(read: Sequence[Indices], classes: int) -> int:
    """Return how many of classes³ modes rows reach.

    Args:
        read: The class of each of the three pictures of the rows, as a classifier reads it, `(rows,)` each.
        classes: Number of classes.
    """
    first, second, third = read
    return len(np.unique((first * classes + second) * classes + third))
