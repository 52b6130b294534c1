"""Emoji in latents: how much an autoencoder keeps, latents against pixels, and whether prompts are drawn.

    python benchmarks/emoji.py --data DIR --stage autoencoder --minutes 20
    python benchmarks/emoji.py --data DIR --stage latent --minutes 15      (and pixel: the same data and budget)
    python benchmarks/emoji.py --data DIR --stage text --minutes 40
    python benchmarks/emoji.py --data DIR --stage retrieval                (the reader, and its score of the samples)

DIR is a folder of emoji with a metadata.jsonl that has "text" and "skin_tone". Pictures that differ in the skin tone
alone are left out, and what shares a base name, the caption up to a colon or comma, is held out together. Each stage
writes OUT/STAGE and prints a line of JSON; what is done is not done again.
"""

import json
import time
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional as F

from unfog.data.modality import sheet
from unfog.data.pictures import save_picture
from unfog.data.source import Data
from unfog.evaluation.judge import Judge
from unfog.evaluation.reconstruction import reconstruction
from unfog.evaluation.report import draw
from unfog.recipes.build import build_codec, build_data
from unfog.recipes.presets import recipe
from unfog.recipes.recipe import Recipe
from unfog.runs.run import fit, load

FILTER = ("data.where=skin_tone=false", "data.together=:,")
PROMPTS, EACH, TOP = 50, 4, 10
"""Prompts that are asked for, pictures of each, and how far up the own caption must rank."""
STEPS, BATCH, FEATURES = 2000, 64, 256
"""Of the reader's training, and its last features."""
Stage = Literal["autoencoder", "latent", "pixel", "text", "retrieval"]


def base(name: str, data: Path) -> Recipe:
    """Return a recipe on the emoji without skin tones."""
    return recipe(name, str(data), 64).set(*FILTER)


def trained(chosen: Recipe, out: Path, seconds: float) -> float:
    """Train against the clock unless that is done, and return the seconds that it took."""
    took = out / "seconds.json"
    if not took.exists():
        begun = time.time()
        fit(chosen, out, budget=seconds, console=Console(stderr=True))
        took.write_text(json.dumps(time.time() - begun), encoding="utf-8")
    return float(json.loads(took.read_text(encoding="utf-8")))


def compare(chosen: Recipe, out: Path, seconds: float, count: int) -> dict[str, object]:
    """Train, and return what a picture costs to train on and to draw, and the distance of drawn ones."""
    took = trained(chosen, out, seconds)
    run = load(out)
    data = build_data(run.recipe)[1]
    sampler = run.sampler(guidance=1.0, steps=20)
    begun = time.time()
    pictures, spent = draw(sampler, count, sampler.condition(count))
    each = (time.time() - begun) / count
    found = Judge(data, build_codec(run.recipe).plain, count, console=Console(stderr=True)).fidelity(pictures)
    save_picture(sheet(pictures[:64], 8), out / "sheet.png")
    images = run.recipe.training.images
    return {
        "seconds": took,
        "images": images,
        "parameters": sum(one.numel() for one in run.denoiser.parameters()),
        "milliseconds_to_draw": 1000 * each,
        "evaluations": spent,
        "distance": found.value,
        "floor": found.floor,
        "n": found.n,
    }


# ------------------------------------------------------------------------------------------------ the reader


class Reader(nn.Module):
    """Pictures to a logit for each caption."""

    def __init__(self, captions: int) -> None:
        """Tell so many captions apart."""
        super().__init__()
        widths = (3, 32, 64, 128, FEATURES)
        blocks: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            blocks += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.GroupNorm(8, outputs), nn.SiLU()]
            blocks += [nn.Conv2d(outputs, outputs, 3, padding=1, stride=2), nn.GroupNorm(8, outputs), nn.SiLU()]
        self.body = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.2))
        self.head = nn.Linear(4 * FEATURES, captions)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, `(batch, captions)`, of pictures in [-1, 1]."""
        logits: Tensor = self.head(self.body(x))
        return logits


def seen(x: Tensor, draws: torch.Generator) -> Tensor:
    """Return pictures turned, moved, scaled, lit and noised at random, as the reader learns from them."""
    count = len(x)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=draws)

    angle, scale = uniform(-0.25, 0.25), uniform(0.85, 1.2)
    rows = [torch.cos(angle) * scale, -torch.sin(angle) * scale, uniform(-0.15, 0.15)]
    more = [torch.sin(angle) * scale, torch.cos(angle) * scale, uniform(-0.15, 0.15)]
    grid = F.affine_grid(torch.stack([torch.stack(rows, 1), torch.stack(more, 1)], 1), list(x.shape), False)
    x = F.grid_sample(x, grid, padding_mode="border", align_corners=False)
    x = x * uniform(0.75, 1.25, 1, 1, 1) + uniform(-0.15, 0.15, 3, 1, 1)
    return x + uniform(0, 0.15, 1, 1, 1) * torch.randn(x.shape, generator=draws)


def unseen(x: Tensor, draws: torch.Generator) -> Tensor:
    """Return pictures made small and large again, sheared, and with a hole: changes that the reader never saw."""
    count, side = len(x), x.shape[-1]
    x = F.interpolate(F.avg_pool2d(x, 2), scale_factor=2.0, mode="bilinear")
    shear = 0.3 * (torch.rand(count, generator=draws) - 0.5)
    plain = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]).repeat(count, 1, 1)
    plain[:, 0, 1] = shear
    x = F.grid_sample(x, F.affine_grid(plain, list(x.shape), False), padding_mode="border", align_corners=False)
    corner = torch.randint(0, side - 12, (count, 2), generator=draws)
    at = torch.arange(side)
    inside = [(at >= corner[:, i : i + 1]) & (at < corner[:, i : i + 1] + 12) for i in range(2)]
    return torch.where((inside[0][:, :, None] & inside[1][:, None])[:, None], torch.zeros(()), x)


def reader(x: Tensor, out: Path) -> Reader:
    """Return the reader, trained on all pictures unless that is done."""
    network, file = Reader(len(x)), out / "reader.pt"
    if file.exists():
        network.load_state_dict(torch.load(file, weights_only=True))
        return network.eval()
    torch.manual_seed(0)
    draws = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, STEPS)
    for _ in track(range(STEPS), "reader"):
        rows = torch.randint(0, len(x), (BATCH,), generator=draws)
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(network(seen(x[rows], draws)), rows, label_smoothing=0.1)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
    out.mkdir(parents=True, exist_ok=True)
    torch.save(network.state_dict(), file)
    return network.eval()


@torch.inference_mode()
def ranks(network: Reader, x: Tensor, rows: Tensor) -> Tensor:
    """Return how many captions rank above the own one, `(batch,)`."""
    logits = torch.cat([network(part) for part in torch.split(x, 256)])
    return (logits > logits.gather(1, rows[:, None])).sum(1)


def share(found: Tensor, most: int) -> float:
    """Return the share of ranks below some."""
    return float((found < most).float().mean())


def retrieval(data: Data, out: Path) -> dict[str, object]:
    """Score the samples of the text model by the reader."""
    sides = [side.take(np.arange(len(side))) for side in (data.train, data.heldout)]
    x = torch.cat([side.x for side in sides]).float() / 127.5 - 1
    captions = [caption for side in sides for caption in side.captions or []]
    network = reader(x, out / "retrieval")
    every, draws = torch.arange(len(x)), torch.Generator().manual_seed(1)
    known = ranks(network, unseen(x, draws), every)
    found: dict[str, object] = {
        "captions": len(captions),
        "reader_top1": share(known, 1),
        "reader_top10": share(known, TOP),
        "chance": TOP / len(captions),
    }
    run = load(out / "text")
    split = len(sides[0].captions or [])
    for name, rows in (("train", every[:split]), ("heldout", every[split:])):
        chosen = rows[torch.linspace(0, len(rows) - 1, PROMPTS).round().long()]
        prompts = [captions[row] for row in chosen.tolist() for _ in range(EACH)]
        pictures = run.sample(len(prompts), prompts)
        place = ranks(network, pictures.float() / 127.5 - 1, chosen.repeat_interleave(EACH))
        found[f"{name}_top10"] = share(place, TOP)
        found[f"{name}_prompts_top10"] = share(place.view(PROMPTS, EACH)[:, 0], TOP)
        found[f"{name}_top1"] = share(place, 1)
        rows_of = pictures.view(PROMPTS, EACH, *pictures.shape[1:])[:, 0]
        real = ((x[chosen] + 1) * 127.5).round().to(torch.uint8)
        pairs = torch.stack([rows_of, real], 1).flatten(0, 1)[:48]
        save_picture(sheet(pairs, 12), out / f"{name}.png")
        (out / f"{name}.txt").write_text("\n".join(captions[row] for row in chosen.tolist()), encoding="utf-8")
    return found


def main(data: Path, stage: Stage, out: Path = Path("runs/emoji"), minutes: float = 20.0, n: int = 150) -> None:
    """Run one stage.

    Args:
        data: Folder of the emoji.
        stage: Which.
        out: Where runs and figures go.
        minutes: Of training.
        n: Pictures that are compared, at most as many as are held out.
    """
    seconds = 60 * minutes
    if stage == "autoencoder":
        took = trained(base("autoencoder", data), out / stage, seconds)
        kept = reconstruction(out / stage, n)
        kept.write(out / stage)
        low, high = kept.interval
        found = {"seconds": took, "psnr": kept.psnr, "low": low, "high": high, "distance": kept.fidelity.value}
        found |= {"floor": kept.fidelity.floor, "smaller": kept.numbers}
    elif stage in ("latent", "pixel"):
        chosen = base("folder", data).set("conditioning=none")
        if stage == "latent":
            chosen = chosen.set("codec=latents", "network.patch=1")
        found = compare(chosen, out / stage, seconds, n)
    elif stage == "text":
        found = {"seconds": trained(base("text-to-image", data), out / stage, seconds)}
    else:
        found = retrieval(build_data(base("text-to-image", data))[1], out)
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{stage}.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    print(json.dumps(found))


if __name__ == "__main__":
    tyro.cli(main)
