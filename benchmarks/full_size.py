"""A pipeline of the full size of Stable Diffusion 1.5, with random weights: imported, and asked for one step.

    python -m benchmarks.full_size --out /tmp/full

Writes the pipeline, 4 GB of it, with diffusers and transformers; imports and samples it in processes of their own, and
prints the seconds and the peak memory of each.
"""

import json
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch
import tyro
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from tests.interop.pipelines import BETAS, tokenizer


def write(folder: Path) -> None:
    """Write the pipeline."""
    torch.manual_seed(0)
    words = tokenizer(folder.with_name(f"{folder.name}-vocabulary"))
    text = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        hidden_act="quick_gelu",
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    made = StableDiffusionPipeline(
        vae=AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            sample_size=512,
        ),
        text_encoder=CLIPTextModel(text),
        tokenizer=words,
        unet=UNet2DConditionModel(sample_size=64, cross_attention_dim=768),
        scheduler=DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    made.save_pretrained(folder)


def measured(*words: str) -> dict[str, float]:
    """Run unfog, and return its seconds and its peak memory in GiB."""
    begun = time.time()
    code = (
        "import resource, sys; from unfog.cli.main import main; code = main(sys.argv[1:]); "
        "print('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    peak = int(done.stdout.rsplit("peak ", 1)[1])
    return {"seconds": round(time.time() - begun, 1), "peak_GiB": round(peak / 2**20, 2)}


def main(out: Path, keep: bool = False) -> None:
    """Write, import, sample.

    Args:
        out: Folder for it all, removed afterwards.
        keep: Do not remove it.
    """
    if not (out / "pipeline" / "model_index.json").exists():
        write(out / "pipeline")
    shutil.rmtree(out / "run", ignore_errors=True)
    found = {
        "writer_peak_GiB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "import": measured("import", str(out / "pipeline"), str(out / "run")),
        "one step": measured(
            "sample", str(out / "run"), "-n", "1", "--steps", "1", "--prompt", "red", "--precision", "float32"
        ),
    }
    print(json.dumps(found, indent=1))
    if not keep:
        shutil.rmtree(out)


if __name__ == "__main__":
    tyro.cli(main)
