"""The fixtures of the package's tests that those of the benchmarks use; all of these are slow."""

from pathlib import Path

import pytest

from tests.conftest import cache, digits_run, tiny, train_into

__all__ = ["cache", "digits_run", "tiny", "train_into"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave the tests of the benchmarks to `make test-all`."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.slow)
