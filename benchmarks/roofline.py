"""Where a frame's time goes, against what this processor can do: operations and bytes of each part.

python -m benchmarks.roofline                        ResNet-50 at 360p, exact, one thread
python -m benchmarks.roofline --way fast             16 bits where the processor multiplies them

Every operator is timed by itself on the processor's own clock and counted by its arguments: what it
computes (additions and products), and what it has to read and write at least. The peaks are those
of a large product of matrices in the same type and of a copy of memory, measured first. A part
that is near neither peak waits: for memory in small pieces, or for the calls themselves.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from benchmarks import machine, network

PARTS = {
    "convolutions": ("convolution", "conv2d"),
    "linear layers": ("_linear_pointwise", "linear", "addmm", "mm", "bmm", "baddbmm", "matmul"),
    "deformable attention": ("ms_deform_attn",),
    "attention among queries": ("_scaled_dot_product", "scaled_dot_product"),
    "norms and softmax": ("native_layer", "native_group", "layer", "group", "_softmax", "softmax"),
    "copies and casts": ("copy_", "_to_copy", "clone", "contiguous", "cat", "stack"),
}
"""By what operators' names begin with; all others move and change numbers one by one."""
REST = "element by element"
_SAMPLE = 10  # additions and products for a channel of a sampling point: four corners, the weight


@dataclass(slots=True)
class Cost:
    """Seconds, operations and bytes of a part."""

    seconds: float = 0.0
    operations: float = 0.0
    bytes: float = 0.0


class Ledger(TorchDispatchMode):
    """Books every operator under its part."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: dict[str, Cost] = defaultdict(Cost)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        began = time.thread_time()
        out = func(*args, **(kwargs or {}))
        spent = time.thread_time() - began
        name = func.overloadpacket.__name__
        if func.is_view:
            return out
        cost = self.parts[part_of(name)]
        cost.seconds += spent
        cost.operations += operations(func, name, args, kwargs or {}, out)
        held = [x for x in tree_leaves([args, kwargs, out]) if isinstance(x, Tensor)]
        cost.bytes += sum(tensor.numel() * tensor.element_size() for tensor in held)
        return out


def part_of(name: str) -> str:
    """The part that an operator belongs to."""
    for part, beginnings in PARTS.items():
        if name.startswith(beginnings):
            return part
    return REST


def operations(func: Any, name: str, args: Any, kwargs: Any, out: Any) -> float:
    """Additions and products of a call; one for each number where nothing else is known."""
    # Inside torch.inference_mode whole layers come by, elsewhere what they are made of.
    if name == "conv2d":
        return 2.0 * out.numel() * args[1][0].numel()
    if name in ("_linear_pointwise", "linear"):
        x, weight = args[0], args[1]
        return 2.0 * x.numel() * len(weight)
    if name.startswith("ms_deform_attn"):
        value, locations = args[0], args[2]
        # (B, Q, heads, L, P, 2) points, each read in the channels of its head.
        return float(_SAMPLE * locations.numel() / 2 * value.shape[-1])
    if func.overloadpacket in flop_registry:
        return float(flop_registry[func.overloadpacket](*args, **kwargs, out_val=out))
    first = next((x for x in tree_leaves(out) if isinstance(x, Tensor)), None)
    return 0.0 if first is None or part_of(name).startswith("copies") else float(first.numel())


def peaks(dtype: torch.dtype) -> tuple[float, float]:
    """Operations a second of a product of matrices, bytes a second of a copy."""
    side = 2048
    a, b = (torch.randn(side, side).to(dtype) for _ in range(2))
    source, target = torch.ones(2, 2**26)  # 256 MiB each: no cache holds them
    product, copied = best(lambda: a @ b), best(lambda: target.copy_(source))
    return 2 * side**3 / product, 2 * source.numel() * 4 / copied


def best(work: Callable[[], object], times: int = 5) -> float:
    """Seconds of the thread, the least of several."""
    found = []
    for _ in range(times):
        began = time.thread_time()
        work()
        found.append(time.thread_time() - began)
    return min(found)


def main(argv: Sequence[str] | None = None) -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--way", choices=("ours", "fast"), default="ours")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    step = network.build(options.way, "cpu", 1, compiled=False)
    dtype = torch.float32
    if options.way == "fast":
        from idol.network.fast import best_type

        dtype = best_type(torch.device("cpu"))
    operations_s, bytes_s = peaks(dtype)
    with torch.no_grad():
        step()
        with Ledger() as ledger:
            for _ in range(options.rounds):
                step()
    print(machine.header(machine.command("benchmarks.roofline")))
    print(
        f"\nPeaks, one thread: {operations_s / 1e9:.0f} GFLOP/s ({str(dtype)[6:]}), "
        f"{bytes_s / 1e9:.1f} GB/s.\n"
    )
    print("| part | ms a frame | share | GFLOP | of the peak | MB | of the peak |")
    print("|---|---|---|---|---|---|---|")
    whole = Cost()
    for part in ledger.parts.values():
        whole.seconds += part.seconds
        whole.operations += part.operations
        whole.bytes += part.bytes
    ordered = sorted(ledger.parts.items(), key=lambda item: -item[1].seconds)
    for name, cost in [*ordered, ("together", whole)]:
        n = options.rounds
        print(
            f"| {name} | {1e3 * cost.seconds / n:.1f} | {cost.seconds / whole.seconds:.0%} | "
            f"{cost.operations / n / 1e9:.2f} | "
            f"{cost.operations / cost.seconds / operations_s:.0%} | "
            f"{cost.bytes / n / 1e6:.0f} | {cost.bytes / cost.seconds / bytes_s:.0%} |"
        )


if __name__ == "__main__":
    main()
