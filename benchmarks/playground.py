"""The playground's waiting times: from its start to its first page, and from the click to the first frame.

    python benchmarks/playground.py --run runs/digits

Prints the seconds of each round as JSON.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

import httpx
import tyro

FIELDS = ["", "", "", 0, 0, 0, 4, None]
"""Words, negative, solver, steps, guidance, seed, count, picture."""


def first_page(address: str, seconds: float = 60) -> float:
    """Return the seconds until the page answers."""
    begun = time.monotonic()
    while time.monotonic() - begun < seconds:
        try:
            if httpx.get(address, timeout=5).status_code == 200:
                return time.monotonic() - begun
        except httpx.HTTPError:
            time.sleep(0.02)
    raise SystemExit("no page came")


def first_frame(address: str, name: str, session: str) -> float:
    """Return the seconds until the first intermediate pictures come."""
    config = httpx.get(f"{address}/config").json()
    number = next(one["id"] for one in config["dependencies"] if one["api_name"] == "generate")
    begun = time.monotonic()
    body = {"data": [name, *FIELDS], "fn_index": number, "session_hash": session}
    httpx.post(f"{address}/gradio_api/queue/join", json=body).raise_for_status()
    found = 0.0
    with httpx.stream("GET", f"{address}/gradio_api/queue/data?session_hash={session}", timeout=60) as answer:
        for line in answer.iter_lines():
            if '"process_generating"' in line:
                found = found or time.monotonic() - begun
            if '"process_completed"' in line:
                return found
    return found


def main(run: Path, rounds: int = 5, port: int = 7869) -> None:
    """Measure.

    Args:
        run: Run folder.
        rounds: How often.
        port: Port of the page.
    """
    pages, frames = [], []
    for place in range(rounds):
        words = [sys.executable, "-m", "unfog", "app", str(run), "--port", str(port)]
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
        try:
            pages.append(round(first_page(f"http://127.0.0.1:{port}/"), 2))
            frames.append(round(first_frame(f"http://127.0.0.1:{port}", run.resolve().name, f"round{place}"), 2))
        finally:
            process.terminate()
            process.wait()
    print(json.dumps({"seconds_to_page": pages, "seconds_to_frame": frames}))


if __name__ == "__main__":
    tyro.cli(main)
