"""What the criterion costs in a training step, from made-up outputs of the R50 network's size.

python -m benchmarks.criterion                     this machine's CPU, one thread
python -m benchmarks.criterion --device cuda       a GPU; counts its waits for the device as well
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from benchmarks import machine
from idol import presets
from idol.config import AssignmentConfig
from idol.learning.criterion import Criterion, split
from idol.network.model import IDOL
from idol.structures import Outputs, PairBatch, Targets

PAIRS, TRUTHS = 4, 10
SIZE = (384, 640)
OPTIONS = {
    "released": AssignmentConfig(),
    "exact costs and repair": AssignmentConfig(cost="exact", repair="exact"),
    "paper": AssignmentConfig.paper(),
    "IoU selection": AssignmentConfig(selection="iou"),
}


def made_up(model: IDOL, device: str) -> tuple[Outputs, PairBatch]:
    """Random outputs that need a gradient, and truths of which some compete."""
    config = model.config.model
    g = torch.Generator().manual_seed(0)
    layers, queries, images = config.decoder_layers, config.num_queries, 2 * PAIRS

    def leaf(values: Tensor) -> Tensor:
        return values.to(device).requires_grad_()

    def boxes(*shape: int) -> Tensor:
        centres = torch.rand(*shape, 2, generator=g)
        return torch.cat([centres, 0.05 + 0.3 * torch.rand(*shape, 2, generator=g)], -1)

    def truth() -> Targets:
        mine = boxes(TRUTHS)
        y, x = (torch.arange(side) / side for side in SIZE)
        near_x = (x - mine[:, None, 0]).abs() < mine[:, None, 2] / 2
        near_y = (y - mine[:, None, 1]).abs() < mine[:, None, 3] / 2
        return Targets(
            labels=torch.randint(config.num_classes, (TRUTHS,), generator=g),
            boxes=mine,
            masks=near_y[:, :, None] & near_x[:, None, :],
            present=torch.ones(TRUTHS, dtype=torch.bool),
        )

    shape = (layers, images, queries)
    outputs = Outputs(
        logits=leaf(torch.randn(*shape, config.num_classes, generator=g) - 4),
        boxes=leaf(boxes(*shape)),
        references=torch.rand(*shape, 2, generator=g).to(device),
        refined=boxes(images, queries).to(device),
        embeddings=leaf(0.1 * torch.randn(images, queries, config.embedding_size, generator=g)),
        mask_features=leaf(
            torch.rand(images, config.mask_channels, SIZE[0] // 8, SIZE[1] // 8, generator=g)
        ),
        states=leaf(torch.randn(*shape, config.width, generator=g)),
        sizes=torch.tensor([SIZE] * images, device=device),
        controller=model.controller,
    )
    pictures = torch.zeros(PAIRS, 3, *SIZE)
    padding = torch.zeros(PAIRS, *SIZE, dtype=torch.bool)
    key, reference = ([truth() for _ in range(PAIRS)] for _ in range(2))
    batch = PairBatch(pictures, padding, key, pictures, padding, reference)
    return outputs, batch.to(device)


def milliseconds(call: Callable[[], object], device: str, repeats: int) -> float:
    """Median wall-clock time of a call, after one to warm up."""
    times = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - started))
    return statistics.median(times[1:])


def kept_megabytes(call: Callable[[], object]) -> float:
    """Memory of the tensors that a call keeps for backward, each storage once."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        call()
    return sum(kept.values()) / 1e6


def waits(call: Callable[[], object]) -> int:
    """How often a call waits for a CUDA device."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing" in str(w.message) for w in caught)


def main(argv: Sequence[str] | None = None) -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    base = presets.by_name("ytvis19_r50")
    model = IDOL(base).to(options.device)
    outputs, batch = made_up(model, options.device)

    print(
        machine.header(
            f"python -m {' '.join(['benchmarks.criterion', *sys.argv[1:]])}", options.device
        )
    )
    print(f"{PAIRS} pairs of {SIZE[0]}x{SIZE[1]}, {TRUTHS} truths in each frame, "
          f"{base.model.num_queries} queries, {base.model.decoder_layers} layers\n")  # fmt: skip
    print("| assignment | forward ms | with backward ms | kept for backward MB | waits |")
    print("|---|---|---|---|---|")
    for name, assignment in OPTIONS.items():
        criterion = Criterion(replace(base, assignment=assignment))

        def forward(criterion: Criterion = criterion) -> Tensor:
            key, reference = split(outputs, PAIRS)
            return criterion.total(criterion(model, key, reference, batch, random.Random(0)))

        def both(forward: Callable[[], Tensor] = forward) -> None:
            forward().backward()

        cells = [f"{milliseconds(f, options.device, options.repeats):.0f}" for f in (forward, both)]
        cells.append(f"{kept_megabytes(forward):.0f}")
        cells.append(str(waits(forward)) if options.device == "cuda" else "-")
        print(f"| {' | '.join([name, *cells])} |")


if __name__ == "__main__":
    main()
