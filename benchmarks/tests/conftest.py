"""The fixtures of the package's tests that those of the benchmarks use."""

from tests.conftest import cache, digits_run, tiny, train_into

__all__ = ["cache", "digits_run", "tiny", "train_into"]
