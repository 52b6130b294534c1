"""Coverage of `make test`, by slipcover: it changes bytecode instead of tracing, so that tests take hardly longer.

A pytest plugin, `-p tests.covering`, loaded before anything is imported from unfog. Each process writes what it ran to
build/covered; `python -m slipcover --merge` adds them up.
"""

import json
import os
from pathlib import Path

import slipcover
from slipcover.importer import FileMatcher, ImportManager

ROOT = Path(__file__).parent.parent
OUT = ROOT / "build" / "covered"
"""One file of each process."""

_matcher = FileMatcher()
_matcher.addSource(ROOT / "src" / "unfog")
_covering = slipcover.Slipcover(source=[str(ROOT / "src" / "unfog")])
_manager = ImportManager(_covering, _matcher)
_manager.__enter__()  # as long as the process lives


def pytest_sessionfinish() -> None:
    """Write what this process ran."""
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / f"{os.getpid()}.json").write_text(json.dumps(_covering.get_coverage()))
