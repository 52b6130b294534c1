"""Data that are not here: those of imported models."""

from unfog.data.source import Data
from unfog.runtime.errors import UserError


def elsewhere() -> Data:
    """Stand for the data that a model of another toolkit was trained on.

    Raises: UserError: Whenever they are asked for.
    """
    raise UserError(
        "the model was imported, and what it was trained on is not here: it can be sampled, edited and exported; to "
        "train it on, begin a run of the same network with --init-from"
    )
