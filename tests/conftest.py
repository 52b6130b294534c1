"""Small trained runs for read-only use, a disk that is quickly full, and how long a test waits for others.

Two profiles of hypothesis: `default` tries the same examples each time, `explore` (`make explore`) others and more.
"""

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from rich.console import Console

from unfog.recipes.presets import recipe
from unfog.recipes.recipe import Recipe
from unfog.runs.run import train

# A busy machine is slow, which is no fault of an example.
TIMELESS = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("default", TIMELESS, derandomize=True)
settings.register_profile("explore", TIMELESS, derandomize=False, max_examples=500, print_blob=True)
settings.load_profile("default")

MakeRecipe = Callable[..., Recipe]
PATIENCE = 600.0
"""Seconds that a test waits for another process, a server or a thread: minutes, since the machine may be busy."""


def until(holds: Callable[[], object], pause: float = 0.01) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline, f"nothing came in {PATIENCE:.0f} s"
        time.sleep(pause)


@pytest.fixture(autouse=True, scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache of the session's own, in which the classifier of the digits is trained once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNFOG_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        patch.setenv("UNFOG_CHOICES", "reference")  # tests compare bits, and machines differ
        yield


@pytest.fixture(autouse=True, scope="session")
def patient() -> Iterator[None]:
    """No signs of life from a verb that a busy machine makes slow: tests count the lines on standard error."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unfog.cli.terminal.EVERY", 600.0)
        yield


@pytest.fixture(scope="session")
def tiny() -> MakeRecipe:
    """Make a recipe of digits that trains in a second, with further settings."""

    def make(*settings: str) -> Recipe:
        small = ("network.width=8", "training.images=512", "training.batch=32", "training.reports=1")
        fixed = ("optimizer.warmup=128", "sampling.steps=4", "sampling.batch=64")  # a measured batch may differ
        return recipe("digits").set(*small, *fixed, *settings)

    return make


@pytest.fixture(scope="session")
def train_into(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Recipe, str], Path]:
    """Train a recipe into a new run folder, silently."""

    def begin(chosen: Recipe, name: str) -> Path:
        return train(chosen, tmp_path_factory.mktemp("runs") / name, device="cpu", console=Console(quiet=True)).path

    return begin


@pytest.fixture(scope="session")
def digits_run(tiny: MakeRecipe, train_into: Callable[[Recipe, str], Path]) -> Path:
    """A flow run on labelled digits."""
    return train_into(tiny(), "digits")


@pytest.fixture(scope="session")
def table_run(tiny: MakeRecipe, train_into: Callable[[Recipe, str], Path]) -> Path:
    """A run on a discrete schedule, sampled by the ancestral rule."""
    return train_into(tiny("schedule=linear", "target=eps", "times=discrete", "solver=ancestral"), "table")


@pytest.fixture(scope="session")
def unconditional_run(tiny: MakeRecipe, train_into: Callable[[Recipe, str], Path]) -> Path:
    """A run on digits whose model is unconditional."""
    return train_into(tiny("conditioning=none", "sampling.guidance=1"), "unconditional")


@pytest.fixture(scope="session")
def points_run(train_into: Callable[[Recipe, str], Path]) -> Path:
    """A run on points of the plane."""
    small = ("network.width=16", "training.images=2048", "training.batch=128", "training.reports=1")
    return train_into(recipe("points").set(*small, "sampling.steps=4"), "points")


@pytest.fixture
def broken(digits_run: Path, tmp_path: Path) -> Path:
    """A run folder for a test to break."""
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("recipe.json", "model.safetensors"):
        shutil.copy(digits_run / name, folder / name)
    return folder


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    where = tmp_path / "small_disk"
    where.mkdir()
    try:
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(where)], capture_output=True)
    except OSError as error:
        pytest.skip(f"no mount command to make a small disk with: {error}")
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.decode().strip()}")
    yield where
    subprocess.run(["umount", "-l", str(where)], check=True)
