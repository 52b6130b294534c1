"""The short form of the torture; `make torture` is the long one."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["torture", "--kills", "10", "--images", "3840"], "kills=10"),
        (["torture_together", "--count", "22"], "22 cases, 0 failed"),
    ],
)
def test_nothing_is_lost(words: list[str], said: str) -> None:
    """In a process of its own, since a fork must come before any thread."""
    command = [sys.executable, "-m", f"tests.{words[0]}", *words[1:]]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert said in done.stdout
