"""The short form of the torture; `make torture` is the long one."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_ten_kills_lose_nothing() -> None:
    """In a process of its own, since a fork must come before any thread."""
    script = Path(__file__).with_name("torture.py")
    done = subprocess.run([sys.executable, script, "--kills", "10"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "kills=10" in done.stdout
