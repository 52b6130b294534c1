"""Torch's libraries are loaded in a thread where that saves time, and nowhere else."""

import importlib.util
import json
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from unfog.runtime import ahead

LATER = """
import json, sys
from importlib.machinery import ExtensionFileLoader
from unfog.runtime import ahead
ahead._load = lambda folder: print(json.dumps([str(folder), "torch" in sys.modules]))
ahead.torch(["sample", "run"]).join()
before = set(sys.modules)
from unfog.cli.main import main
try:
    main(["sample", "--help"])
except SystemExit:
    pass
loaded = {name: sys.modules[name] for name in sys.modules.keys() - before}
print(json.dumps([n for n, one in loaded.items() if isinstance(getattr(one, "__loader__", 0), ExtensionFileLoader)]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="libraries are loaded ahead on Linux alone")
def test_the_command_line_loads_no_library_beside_them() -> None:
    """It would wait for theirs: the system loads one at a time."""
    said = subprocess.run([sys.executable, "-c", LATER], capture_output=True, text=True, check=True).stdout.splitlines()
    folder, loaded = json.loads(said[0])
    assert Path(folder, ahead.LIBRARIES[0]).is_file()
    assert not loaded
    assert json.loads(said[-1]) == []


@pytest.mark.parametrize(
    ("words", "platform", "torch"),
    [
        ([], "linux", True),
        (["sample", "--help"], "linux", True),
        (["--version"], "linux", True),
        (["sample", "run"], "win32", True),
        (["sample", "run"], "linux", False),
    ],
)
def test_where_nothing_is_gained_nothing_is_loaded(
    words: list[str], platform: str, torch: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    found = ModuleSpec("torch", None, origin="/lib/torch/__init__.py") if torch else None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found)
    monkeypatch.setattr(ahead, "_load", lambda folder: pytest.fail("loaded"))
    assert ahead.torch(words) is None


@pytest.mark.skipif(sys.platform != "linux", reason="libraries are loaded ahead on Linux alone")
def test_a_library_that_is_missing_or_broken_is_left_to_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / ahead.LIBRARIES[1]).write_bytes(b"no library")
    found = ModuleSpec("torch", None, origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found)
    thread = ahead.torch(["sample", "run"])
    assert thread is not None
    thread.join()
    assert not recwarn.list
