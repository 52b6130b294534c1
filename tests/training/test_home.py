"""A run folder that is moved, deleted or replaced while it is trained."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from tests.conftest import MakeRecipe
from unfog.recipes.recipe import Recipe
from unfog.runs.run import fit, refit
from unfog.runtime.errors import EnvironmentFailure
from unfog.training import checkpoint, home
from unfog.training.hooks import Hooks

QUIET = Console(quiet=True)


def _moved(run: Path) -> None:
    run.rename(run.with_name("moved"))


def _replaced(run: Path) -> None:
    _moved(run)
    run.mkdir()
    (run / "mine").write_text("mine")


def _deleted(run: Path) -> None:
    shutil.rmtree(run)


def _emptied(run: Path) -> None:
    for one in run.iterdir():
        shutil.rmtree(one) if one.is_dir() else one.unlink()


def _taken(run: Path) -> None:
    shutil.rmtree(run)
    run.write_text("mine")


def contents(folder: Path) -> dict[str, bytes]:
    """Return what a run promises to be the same to the bit."""
    files = folder / "model.safetensors", checkpoint.steps(folder / "checkpoints")[-1] / "state.safetensors"
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


@pytest.fixture(scope="module")
def short(tiny: MakeRecipe) -> Recipe:
    """A training of four steps."""
    return tiny("training.reports=2", "training.images=128", "training.batch=32")


@pytest.fixture(scope="module")
def peace(short: Recipe, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What it ends with."""
    out = tmp_path_factory.mktemp("peace") / "run"
    fit(short, out, device="cpu", console=QUIET)
    return contents(out)


@pytest.mark.parametrize(
    ("act", "when", "where", "what"),
    [
        (_moved, "reported", "moved", "moved to .*moved"),
        (_moved, "saving", "moved", "moved to .*moved"),
        (_replaced, "reported", "moved", "moved to .*moved"),
        (_deleted, "saving", "run", "deleted"),
        (_emptied, "serializing", "run", "deleted"),
        (_taken, "reported", "run-2", "deleted"),
    ],
)
def test_the_progress_is_saved_and_goes_on(
    short: Recipe,
    peace: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    act: Callable[[Path], None],
    when: str,
    where: str,
    what: str,
) -> None:
    """The resumed training ends as one in peace does, and what somebody else put there stays as it was."""
    run, met, save, write = tmp_path / "run", [], checkpoint.save, checkpoint.write_tensors

    def meddle(moment: str) -> None:
        if moment == when and not met:
            met.append(moment)
            act(run)

    def saved(*words: object) -> None:
        meddle("saving")
        save(*words)

    monkeypatch.setattr(checkpoint, "save", saved)
    monkeypatch.setattr(checkpoint, "write_tensors", lambda *words: (meddle("serializing"), write(*words)))
    hooks = Hooks(callbacks=(lambda report: meddle("reported"),))
    with pytest.raises(EnvironmentFailure, match=rf"run was {what}.* while it was trained: stopped and saved") as said:
        fit(short, run, device="cpu", console=QUIET, hooks=hooks)
    found = re.search(r"`unfog train --resume (.*)`", str(said.value))
    assert found is not None
    resumed = Path(found[1])
    assert resumed == tmp_path / where
    assert {path.name for path in tmp_path.iterdir()} == {where} | ({"run"} if act in (_replaced, _taken) else set())
    if act is _replaced:
        assert [path.name for path in run.iterdir()] == ["mine"]
    refit(resumed, device="cpu", console=QUIET)
    assert contents(resumed) == peace


@pytest.mark.parametrize(("number", "gone"), [(2, True), (20, False), (24, False), (28, False)])
def test_only_what_is_missing_tells_of_a_folder_that_vanishes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, gone: bool
) -> None:
    """As safetensors words the errors of the system."""
    monkeypatch.setattr(home, "SETTLED", 0.0)
    kept = home.Home(tmp_path)
    assert kept.vanishing(EnvironmentFailure(f"cannot write x: I/O error: why (os error {number}) at path x")) == gone
    kept.close()
