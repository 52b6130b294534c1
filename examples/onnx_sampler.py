"""Samples from a model that unfog exported to ONNX, with NumPy and onnxruntime only.

unfog export runs/digits model --to onnx
python examples/onnx_sampler.py model --count 16 --label 3 --out threes.png
"""

import argparse
import json
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image


def main() -> None:
    """Sample and write a picture."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=16)
    parser.add_argument("--label", type=int, help="class; default: all in turn")
    parser.add_argument("--guidance", type=float, help="scale, 1 is off; default: the recipe's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("samples.png"))
    words = parser.parse_args()
    known = json.loads((words.folder / "sampler.json").read_text())
    denoiser = onnxruntime.InferenceSession(words.folder / "denoiser.onnx")
    scale = known["guidance"] if words.guidance is None else words.guidance

    def output(x: np.ndarray, time: float, rows: np.ndarray | None) -> np.ndarray:
        """Evaluate the network."""
        given = {"x": x, "time": np.full(len(x), time, np.float32)}
        answer: np.ndarray = denoiser.run(None, given if rows is None else {**given, "cond": rows})[0]
        return answer

    x = (
        np.random.default_rng(words.seed).standard_normal((words.count, *known["shape"]), np.float32)
        * known["sigma"][0]
    )
    conditional = free = None
    if known["rows"] is not None:
        rows = np.array(known["rows"], np.float32)
        labels = np.arange(words.count) % (len(rows) - 1) if words.label is None else np.full(words.count, words.label)
        conditional, free = rows[labels], np.repeat(rows[-1:], words.count, 0)
    for step in range(len(known["time"]) - 1):
        alpha, sigma, a, b = (known[name][step] for name in ("seen_alpha", "seen_sigma", "a", "b"))
        x = x.astype(np.float32)
        found = output(x, known["time"][step], conditional)
        if conditional is not None and scale != 1:
            plain = output(x, known["time"][step], free)
            found = plain + scale * (found - plain)
        # x_t = alpha·x0 + sigma·eps and output = a·x0 + b·eps, solved for both
        determinant = b * alpha - a * sigma
        x0, eps = (b * x - sigma * found) / determinant, (alpha * found - a * x) / determinant
        if known["clip"]:
            x0 = x0.clip(-1, 1)
            eps = (x - alpha * x0) / sigma
        x = known["alpha"][step + 1] * x0 + known["sigma"][step + 1] * eps
    if (words.folder / "decoder.onnx").exists():
        decoder = onnxruntime.InferenceSession(words.folder / "decoder.onnx")
        x = decoder.run(None, {"z": x.astype(np.float32)})[0]
    pictures = ((x + 1) * 127.5).round().clip(0, 255).astype(np.uint8)
    across = np.concatenate(list(pictures.transpose(0, 2, 3, 1)), axis=1)
    Image.fromarray(across.squeeze()).save(words.out)


if __name__ == "__main__":
    main()
