"""The playground's page in a process of its own, for the tests that ask it."""

import re
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.conftest import PATIENCE


@contextmanager
def served(*runs: Path, options: Sequence[str] = ()) -> Iterator[str]:
    """Serve run folders, yield the page's address, and look at what the terminal said."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    words = [sys.executable, "-m", "unfog", "app", *map(str, runs), "--port", str(port), *options]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    said = process.stdout.readline()
    address = re.search(r"http://127\.0\.0\.1:\d+/", said)
    assert address, said + process.stdout.read()
    try:
        yield address[0]
    finally:
        process.terminate()
        rest = process.communicate(timeout=PATIENCE)[0]
        assert process.returncode == 143
        assert "unfog: the playground is closed" in rest
    assert "Traceback" not in rest, rest[rest.index("Traceback") - 2000 :][:6000]
