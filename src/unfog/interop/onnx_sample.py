"""Draws samples from a model that unfog exported to ONNX, with onnxruntime and NumPy only.

python sample.py --count 16 --label 3 --out pictures

or, from Python in this folder: from sample import draw; pictures = draw(".", count=16, label="3")
"""

import argparse
import json
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import onnxruntime


def draw(
    folder: str | Path, count: int, label: str | None = None, guidance: float | None = None, seed: int = 0
) -> np.ndarray:
    """Return samples by DDIM: uint8 pictures (count, height, width, channels), else float32 rows (count, ...)."""
    known = json.loads((Path(folder) / "sampler.json").read_text(encoding="utf-8"))
    network = onnxruntime.InferenceSession(Path(folder) / "denoiser.onnx")
    if known.get("learned_guidance") is not None and guidance not in (None, known["learned_guidance"]):
        raise SystemExit(f"this model was exported for guidance {known['learned_guidance']:g}: omit the scale")
    guidance = known["guidance"] if guidance is None or known.get("learned_guidance") is not None else guidance
    spans = known.get("spans")  # of a flow map what is added to the condition for the length of each step
    rows = (
        None if known["rows"] is None else np.array(known["rows"], np.float32)
    )  # one per class, the last for 'no class'
    x = np.random.default_rng(seed).standard_normal((count, *known["shape"]), np.float32) * known["sigma"][0]
    for step, time in enumerate(known["time"][:-1]):
        alpha, sigma, a, b = (known[name][step] for name in ("seen_alpha", "seen_sigma", "a", "b"))
        x = x.astype(np.float32)
        given = {"x": x, "time": np.full(count, time, np.float32)}
        if rows is None:
            output = network.run(None, given)[0]
        else:
            free_rows = rows[[-1] * count]
            asked = rows[numbers(known, count, label)] if known["classes"] else free_rows
            far = np.array(spans[step], np.float32) if spans else np.float32(0)
            output = network.run(None, {**given, "cond": asked + far})[0]
            if guidance != 1:
                free = network.run(None, {**given, "cond": free_rows + far})[0]
                output = free + guidance * (output - free)
        # x_t = alpha·x0 + sigma·eps and output = a·x0 + b·eps, solved for both
        determinant = b * alpha - a * sigma
        x0, eps = (b * x - sigma * output) / determinant, (alpha * output - a * x) / determinant
        if known["clip"]:
            x0 = x0.clip(-1, 1)
            eps = (x - alpha * x0) / sigma
        x = known["alpha"][step + 1] * x0 + known["sigma"][step + 1] * eps
    if (Path(folder) / "decoder.onnx").exists():
        x = onnxruntime.InferenceSession(Path(folder) / "decoder.onnx").run(None, {"z": x.astype(np.float32)})[0]
    if not known["pixels"]:
        plain: np.ndarray = x.astype(np.float32)
        return plain
    height, width = known["size"]
    pictures: np.ndarray = ((x + 1) * 127.5).round().clip(0, 255).astype(np.uint8)
    return pictures.transpose(0, 2, 3, 1)[:, :height, :width]


def numbers(known: dict[str, list[str]], count: int, label: str | None) -> list[int]:
    """Return the class of each sample: all in turn, or those that are named, by name or number, in turn."""
    classes = known["classes"]
    named = classes if label is None else [label] if label in classes else label.split(",")
    for name in named:
        if name not in classes and not (name.isdigit() and int(name) < len(classes)):
            raise SystemExit(f"there is no class {name!r}: choose from {', '.join(classes)}, or a number from 0")
    found = [classes.index(name) if name in classes else int(name) for name in named]
    return [found[place % len(found)] for place in range(count)]


def write(path: Path, picture: np.ndarray) -> None:
    """Write a grey or colour picture (height, width, channels) as a PNG."""
    height, width, channels = picture.shape
    lines = b"".join(b"\0" + row.tobytes() for row in picture)
    parts = {b"IHDR": struct.pack(">IIBBBBB", width, height, 8, 0 if channels == 1 else 2, 0, 0, 0)}
    parts |= {b"IDAT": zlib.compress(lines), b"IEND": b""}
    file = b"\x89PNG\r\n\x1a\n"
    for kind, data in parts.items():
        file += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    path.write_bytes(file)


def main() -> None:
    """Read the command line, sample, and write one file per sample, or one picture of all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent, help="exported model; default: this one")
    parser.add_argument("--count", type=int, default=16)
    parser.add_argument("--label", help="class by name or number, several separated by commas; default: all in turn")
    parser.add_argument("--guidance", type=float, help="scale, 1 is off; default: the recipe's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("samples"), help="folder, or a .png for one row of all")
    words = parser.parse_args()
    known = json.loads((words.folder / "sampler.json").read_text(encoding="utf-8"))
    if words.label is not None and not known["classes"]:
        raise SystemExit("this model has no classes: omit --label")
    drawn = draw(words.folder, words.count, words.label, words.guidance, words.seed)
    if not known["pixels"]:
        words.out.mkdir(parents=True, exist_ok=True)
        np.save(words.out / "samples.npy", drawn)
    elif words.out.suffix.lower() == ".png":
        words.out.parent.mkdir(parents=True, exist_ok=True)
        write(words.out, np.concatenate(list(drawn), 1))
    else:
        words.out.mkdir(parents=True, exist_ok=True)
        classes = numbers(known, words.count, words.label) if known["classes"] else []
        for index, picture in enumerate(drawn):
            name = re.sub(r"\W+", "-", known["classes"][classes[index]])[:40] if classes else ""
            write(words.out / f"{index:05}-{name}.png".replace("-.", "."), picture)
    print(f"{words.count} samples: {words.out}")


if __name__ == "__main__":
    main()
