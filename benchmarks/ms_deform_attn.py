"""Time deformable attention, our CPU kernels beside plain PyTorch (grid_sample).

python -m benchmarks.ms_deform_attn [--seconds 1] [--threads 1 2]
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks import machine
from ops import cpu, ms_deform_attn

Levels = list[tuple[int, int]]

# 360 × 640 pixels at strides 8, 16, 32, 64, and the tiny preset's 128 × 192.
LEVELS_360P: Levels = [(45, 80), (23, 40), (12, 20), (6, 10)]
LEVELS_TINY: Levels = [(16, 24), (8, 12), (4, 6), (2, 3)]


def case(
    levels: Levels, images: int, heads: int, channels: int, queries: int | None, points: int = 4
) -> tuple[Tensor, Levels, Tensor, Tensor]:
    """Arguments as in a network: offsets of about two pixels around a token's or a box's centre.

    queries: None takes one query for every token, as the encoder does
    """
    torch.manual_seed(0)
    pixels = sum(h * w for h, w in levels)
    if queries is None:
        centres = torch.cat(
            [
                torch.cartesian_prod((torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w)
                for h, w in levels
            ]
        ).flip(-1)
    else:
        centres = torch.rand(queries, 2)
    rows = (images, len(centres), heads, len(levels), points)
    sizes = torch.tensor([(w, h) for h, w in levels])[:, None]
    locations = centres[None, :, None, None, None] + 2 * torch.randn(*rows, 2) / sizes
    weights = torch.randn(*rows).flatten(-2).softmax(-1).view(rows)
    return torch.randn(images, pixels, heads, channels), levels, locations, weights


CASES = {
    "360p encoder, 8 × 32": case(LEVELS_360P, 1, 8, 32, None),
    "360p decoder, 300 queries": case(LEVELS_360P, 1, 8, 32, 300),
    "tiny encoder, 8 images, 4 × 16": case(LEVELS_TINY, 8, 4, 16, None),
}


def measure(functions: dict[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """Milliseconds of the fastest run of each; the turns alternate, so a busy moment hits all."""
    best = dict.fromkeys(functions, float("inf"))
    for function in functions.values():
        function()
    end = time.perf_counter() + seconds
    turns = 0
    while turns < 3 or time.perf_counter() < end:
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            best[name] = min(best[name], 1000 * (time.perf_counter() - start))
        turns += 1
    return best


def functions_of(
    arguments: tuple[Tensor, Levels, Tensor, Tensor],
) -> dict[str, Callable[[], object]]:
    """Forward and backward of both backends through the public function."""
    value, levels, locations, weights = arguments
    inputs = [t.clone().requires_grad_() for t in (value, locations, weights)]
    result: dict[str, Callable[[], object]] = {}
    for backend in ("torch", "cpu"):

        def forward(backend: str = backend) -> Tensor:
            os.environ["IDOL_MSDA_BACKEND"] = backend
            with torch.no_grad():
                return ms_deform_attn(value, levels, locations, weights)

        os.environ["IDOL_MSDA_BACKEND"] = backend
        out = ms_deform_attn(inputs[0], levels, inputs[1], inputs[2])
        grad = torch.randn_like(out)

        def backward(out: Tensor = out, grad: Tensor = grad) -> tuple[Tensor, ...]:
            return torch.autograd.grad(out, inputs, grad, retain_graph=True)

        result[f"{backend} forward"] = forward
        result[f"{backend} backward"] = backward
    return result


def main() -> None:
    """Print one table with the machine above it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=3.0, help="for each row of the table")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    if reason := cpu.missing():
        sys.exit(f"There is nothing to compare: {reason}.")
    import numba

    print(machine.header(f"python -m benchmarks.ms_deform_attn {' '.join(sys.argv[1:])}".rstrip()))
    print(f"numba {numba.__version__}\n")
    print("| milliseconds, float32 | threads | grid_sample fwd / bwd | ours fwd / bwd | ratio |")
    print("|---|---|---|---|---|")
    for threads in options.threads:
        torch.set_num_threads(threads)
        for name, arguments in CASES.items():
            t = measure(functions_of(arguments), options.seconds)
            plain, ours = (
                [t[f"{b} {d}"] for d in ("forward", "backward")] for b in ("torch", "cpu")
            )
            print(
                f"| {name} | {threads} | {plain[0]:.1f} / {plain[1]:.1f} "
                f"| {ours[0]:.2f} / {ours[1]:.2f} "
                f"| {plain[0] / ours[0]:.1f}× / {plain[1] / ours[1]:.1f}× |",
                flush=True,
            )


if __name__ == "__main__":
    main()
