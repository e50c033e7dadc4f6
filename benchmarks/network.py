"""How fast the network runs: one forward pass, with masks for the best ten queries of each image.

python -m benchmarks.network                     this machine's CPU
python -m benchmarks.network --device cuda       a GPU, in float32 and bfloat16
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence

import torch

from benchmarks import machine
from idol import presets
from idol.model import IDOL

CASES = {
    # preset: padded input (height, width), batch on CPU, batch on GPU
    "tiny": ((128, 192), 8, 64),
    "ytvis19_r50": ((384, 640), 1, 16),
}
MASKS_PER_IMAGE = 10


def one_pass(model: IDOL, images: torch.Tensor, padding: torch.Tensor) -> None:
    """What detection asks of the network for a batch (B, 3, H, W): outputs, and a few masks."""
    outputs = model(images, padding)
    best = outputs.logits[-1].amax(-1).topk(MASKS_PER_IMAGE).indices
    for image in range(len(images)):
        model.masks(outputs, image, best[image])


def seconds(model: IDOL, batch: int, size: tuple[int, int], dtype: torch.dtype) -> list[float]:
    """Wall-clock seconds of each timed pass, after warm-up."""
    device = next(model.parameters()).device
    images = torch.randn(batch, 3, *size, device=device)
    padding = torch.zeros(batch, *size, dtype=torch.bool, device=device)
    times = []
    # The first passes compile, allocate and choose algorithms.
    for repeat in range(3 + 10 if device.type == "cuda" else 1 + 3):
        started = time.perf_counter()
        with torch.inference_mode(), torch.autocast(device.type, dtype, dtype != torch.float32):
            one_pass(model, images, padding)
        if device.type == "cuda":
            torch.cuda.synchronize()
        if repeat >= (3 if device.type == "cuda" else 1):
            times.append(time.perf_counter() - started)
    return times


def main(argv: Sequence[str] | None = None) -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--preset", choices=tuple(CASES), action="append")
    options = parser.parse_args(argv)
    print(machine.header(f"python -m benchmarks.network {' '.join(sys.argv[1:])}", options.device))
    print("| preset | input | batch | arithmetic | ms per image | images per s | peak GPU memory |")
    print("|---|---|---|---|---|---|---|")
    for preset in options.preset or CASES:
        size, cpu_batch, gpu_batch = CASES[preset]
        batch = gpu_batch if options.device == "cuda" else cpu_batch
        torch.manual_seed(0)
        model = IDOL(presets.by_name(preset)).eval().to(options.device)
        dtypes = [torch.float32]
        if options.device == "cuda":
            dtypes.append(torch.bfloat16)
        for dtype in dtypes:
            memory = "–"
            if options.device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            median = statistics.median(seconds(model, batch, size, dtype))
            if options.device == "cuda":
                memory = f"{torch.cuda.max_memory_allocated() / 2**20:.0f} MiB"
            print(
                f"| {preset} | {size[0]}x{size[1]} | {batch} | {str(dtype).removeprefix('torch.')} "
                f"| {1000 * median / batch:.1f} | {batch / median:.1f} | {memory} |"
            )


if __name__ == "__main__":
    main()
