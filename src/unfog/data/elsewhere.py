"""Placeholder for the training data of imported models."""

from unfog.data.source import Data
from unfog.runtime.errors import UserError


def elsewhere() -> Data:
    """Stand for the training data of an imported model, which is not available.

    Raises: UserError: Always.
    """
    raise UserError(
        "the training data of an imported model is not available: it can be sampled, edited and exported; to train it "
        "further, start a run with the same network and init_from"
    )
