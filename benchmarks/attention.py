"""Times attention, forward and back, as torch fuses it and as the formula is written out, side by side.

    python benchmarks/attention.py --threads 1

The ratio is that of the fused one to the formula: above 1 the formula is quicker. `unfog.networks.attention` chooses.
"""

import statistics
import time

import torch
import tyro
from torch.nn import functional as F

from unfog.networks import attention

SIZES = ((32, 4, 20, 20, 32), (32, 3, 64, 20, 32), (32, 1, 64, 64, 96), (32, 2, 256, 256, 64), (8, 4, 1024, 1024, 64))


def main(threads: int = 1, repeat: int = 9) -> None:
    """Print a table.

    Args:
        threads: Threads to compute with.
        repeat: Timings of each, of which the median counts.
    """
    torch.set_num_threads(threads)
    print("batch heads places tokens d   numbers    torch ms  formula ms  ratio")
    for size in SIZES:
        batch, heads, places, tokens, d = size
        for numbers in (torch.bfloat16, torch.float32):
            q, k, v = (
                torch.randn(batch, n, heads, d, dtype=numbers).transpose(1, 2).requires_grad_()
                for n in (places, tokens, tokens)
            )
            spent: dict[str, list[float]] = {"torch": [], "formula": []}
            for _ in range(repeat):
                for name, function in (("torch", F.scaled_dot_product_attention), ("formula", attention.formula)):
                    begun = time.perf_counter()
                    function(q, k, v).sum().backward()
                    spent[name].append(1000 * (time.perf_counter() - begun))
            fused, written = (statistics.median(found) for found in spent.values())
            words = " ".join(f"{number:5}" for number in size)
            print(f"{words}  {numbers!s:15} {fused:8.2f}  {written:8.2f}  {fused / written:5.2f}", flush=True)


if __name__ == "__main__":
    tyro.cli(main)
