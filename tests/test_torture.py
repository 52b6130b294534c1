"""The short form of the torture; `make torture` is the long one."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_ten_kills_lose_nothing() -> None:
    """In a process of its own, since a fork must come before any thread."""
    command = [sys.executable, "-m", "tests.torture", "--kills", "10", "--images", "3840"]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "kills=10" in done.stdout
