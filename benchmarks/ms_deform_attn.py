"""Time and memory of deformable attention, ours beside other implementations in one run.

python -m benchmarks.ms_deform_attn                         this machine's CPU
python -m benchmarks.ms_deform_attn --device cuda           a GPU: layer by layer
python -m benchmarks.ms_deform_attn --device cuda --variants    our kernels' variants

On the CPU every implementation has a process of its own for its memory; times are of one process in
which the implementations take turns. On a GPU the calls are captured in a graph and replayed, so
that the figure is the kernels' and not that of launching them.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import machine, rivals
from ops import cpu, cuda, ms_deform_attn, reference

Levels = list[tuple[int, int]]
Arguments = tuple[Tensor, Levels, Tensor, Tensor]

# Pixels at strides 8, 16, 32, 64 of 360 × 640 and 720 × 1280, and of the tiny preset's 128 × 192.
LEVELS_360P: Levels = [(45, 80), (23, 40), (12, 20), (6, 10)]
LEVELS_720P: Levels = [(90, 160), (45, 80), (23, 40), (12, 20)]
LEVELS_TINY: Levels = [(16, 24), (8, 12), (4, 6), (2, 3)]

# name: levels, images, heads, channels, queries (None: one for every token, as the encoder does)
CASES: dict[str, tuple[Levels, int, int, int, int | None]] = {
    "360p encoder, 8 × 32": (LEVELS_360P, 1, 8, 32, None),
    "720p encoder, 8 × 32": (LEVELS_720P, 1, 8, 32, None),
    "360p decoder, 300 queries": (LEVELS_360P, 1, 8, 32, 300),
    "tiny encoder, 8 images, 4 × 16": (LEVELS_TINY, 8, 4, 16, None),
}
GPU_CASES: dict[str, tuple[Levels, int, int, int, int | None]] = {
    "360p encoder": (LEVELS_360P, 1, 8, 32, None),
    "720p encoder": (LEVELS_720P, 1, 8, 32, None),
    "360p encoder, 8 images": (LEVELS_360P, 8, 8, 32, None),
    "360p decoder, 300 queries": (LEVELS_360P, 1, 8, 32, 300),
}


def case(
    levels: Levels, images: int, heads: int, channels: int, queries: int | None, points: int = 4
) -> Arguments:
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


def _forced(backend: str) -> rivals.Attention:
    """The public function with one backend."""

    def attend(value: Tensor, shapes: rivals.Shapes, locations: Tensor, weights: Tensor) -> Tensor:
        os.environ["IDOL_MSDA_BACKEND"] = backend
        return ms_deform_attn(value, shapes, locations, weights)

    return attend


# ---------------------------------------------------------------------------------------------
# CPU


def cpu_implementations() -> dict[str, rivals.Attention]:
    """Ours, grid_sample and Hugging Face's, those that are here."""
    found: dict[str, rivals.Attention] = {"ours": _forced("cpu"), "grid_sample": _forced("torch")}
    other = rivals.hugging_face()
    if isinstance(other, str):
        print(f"not measured: Hugging Face ({other})", file=sys.stderr)
    else:
        found["Hugging Face"] = other
    return found


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
    implementations: dict[str, rivals.Attention], arguments: Arguments
) -> dict[str, Callable[[], object]]:
    """Forward and backward of every implementation, as "name forward" and "name backward"."""
    value, levels, locations, weights = arguments
    inputs = [t.clone().requires_grad_() for t in (value, locations, weights)]
    result: dict[str, Callable[[], object]] = {}
    for name, attend in implementations.items():

        def forward(attend: rivals.Attention = attend) -> Tensor:
            with torch.no_grad():
                return attend(value, levels, locations, weights)

        out = attend(inputs[0], levels, inputs[1], inputs[2])
        grad = torch.randn_like(out)

        def backward(out: Tensor = out, grad: Tensor = grad) -> tuple[Tensor, ...]:
            return torch.autograd.grad(out, inputs, grad, retain_graph=True)

        result[f"{name} forward"] = forward
        result[f"{name} backward"] = backward
    return result


def memory(name: str, title: str, threads: int) -> None:
    """Print as JSON the MiB by which this process grew at most, forward and with the backward."""
    torch.set_num_threads(threads)
    value, levels, locations, weights = case(*CASES[title])
    attend = cpu_implementations()[name]
    attend(*case(LEVELS_TINY, 1, *CASES[title][2:4], 4))  # compiles, loads libraries
    inputs = [t.requires_grad_() for t in (value, locations, weights)]
    before = _most(reset=True)
    with torch.no_grad():
        attend(inputs[0], levels, inputs[1], inputs[2])
    forward = _most() - before
    before = _most(reset=True)
    attend(inputs[0], levels, inputs[1], inputs[2]).sum().backward()
    print(json.dumps([forward, _most() - before]))


def _most(*, reset: bool = False) -> float:
    """MiB that this process held at most, since the last reset; Linux only."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 2**10


def _memory_of(name: str, title: str, threads: int) -> list[float]:
    command = [sys.executable, "-m", "benchmarks.ms_deform_attn", "--memory", name, title]
    command += ["--threads", str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    grown: list[float] = json.loads(done.stdout.splitlines()[-1])
    return grown


def on_cpu(options: argparse.Namespace) -> None:
    """The table of this machine's processor."""
    if reason := cpu.missing():
        sys.exit(f"There is nothing to compare: {reason}.")
    import numba

    print(f"numba {numba.__version__}\n")
    print(
        "| float32 | threads | implementation | forward, ms | backward, ms | ours is, × | "
        "MiB it grows by, forward / with backward |"
    )
    print("|---|---|---|---|---|---|---|")
    implementations = cpu_implementations()
    for threads in options.threads:
        torch.set_num_threads(threads)
        for title, numbers in CASES.items():
            t = measure(functions_of(implementations, case(*numbers)), options.seconds)
            for name in implementations:
                grown = _memory_of(name, title, threads)
                ratios = [t[f"{name} {d}"] / t[f"ours {d}"] for d in ("forward", "backward")]
                print(
                    f"| {title} | {threads} | {name} | {t[f'{name} forward']:.2f} "
                    f"| {t[f'{name} backward']:.2f} | {ratios[0]:.1f} / {ratios[1]:.1f} "
                    f"| {grown[0]:.0f} / {grown[1]:.0f} |",
                    flush=True,
                )


# ---------------------------------------------------------------------------------------------
# GPU


def microseconds(function: Callable[[], object], calls: int = 20) -> float:
    """Of one call on the device: the median replay of a graph of so many calls, over their number.

    Launching is not part of it. Errors are the function's own.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            function()
    graph.replay()
    times = []
    for _ in range(15):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(1000 * begin.elapsed_time(end) / calls)
    return sorted(times)[len(times) // 2]


def _peak(function: Callable[[], object]) -> float:
    """MiB that the device's memory grows by at most during a call."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    function()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def fused_case(arguments: Arguments, dtype: torch.dtype) -> list[Tensor]:
    """value, references, offsets and logits that mean the same as value, locations and weights."""
    value, levels, locations, weights = arguments
    sizes = torch.tensor([(w, h) for h, w in levels], dtype=torch.float32)
    references = locations.mean((2, 4))  # (N, Q, L, 2)
    offsets = (locations - references[:, :, None, :, None]) * sizes[:, None]
    return [
        value.cuda().to(dtype),
        references.cuda(),
        offsets.cuda().to(dtype),
        weights.log().cuda().to(dtype),
    ]


def on_cuda(options: argparse.Namespace) -> None:
    """The table of a GPU. Gathered are the four corners of every sample, whichever cache they come
    from: the second cache of an H200 gives 5.5 TB/s, the first ones several times that."""
    others = {"deformops": rivals.deformops()}
    if options.original:
        others["original kernel"] = rivals.original(options.original)
    for name, found in others.items():
        if isinstance(found, str):
            print(f"not measured: {name}: {found}")
    print(
        "| layer | type | implementation | forward, µs | backward, µs | gathered, TB/s | "
        "largest error | MiB, forward / both |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for title, numbers in GPU_CASES.items():
        arguments = case(*numbers)
        exact = reference.ms_deform_attn(
            arguments[0].double(), arguments[1], *(t.double() for t in arguments[2:])
        )
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            ours = dict[str, rivals.Attention]({"ours": _forced("cuda")})
            ours |= {name: f for name, f in others.items() if not isinstance(f, str)}
            ours["plain PyTorch"] = _forced("torch")
            if dtype != torch.float32:
                ours.pop("original kernel", None)
            rows = [(name, _separate(attend, arguments, dtype)) for name, attend in ours.items()]
            rows.insert(0, ("ours, fused", _fused(arguments, dtype)))
            for name, (run, both) in rows:
                try:
                    cells = _cells(run, both, exact, numbers, dtype)
                except Exception as error:  # of somebody else's kernel: it is told, and no more
                    cells = f"failed: {str(error).splitlines()[0][:80]} | | | | "
                print(f"| {title} | {str(dtype)[6:]} | {name} | {cells} |", flush=True)


Pair = tuple[Callable[[], Tensor], Callable[[], object]]


def _separate(attend: rivals.Attention, arguments: Arguments, dtype: torch.dtype) -> Pair:
    """Forward and backward from locations and weights. They keep float32, as autocast does."""
    value, levels, locations, weights = arguments
    inputs = [value.cuda().to(dtype), locations.cuda(), weights.cuda()]
    leaves = [t.clone().requires_grad_() for t in inputs]

    def run() -> Tensor:
        with torch.no_grad():
            return attend(inputs[0], levels, inputs[1], inputs[2])

    return run, _both(lambda: attend(leaves[0], levels, leaves[1], leaves[2]), leaves)


def _fused(arguments: Arguments, dtype: torch.dtype) -> Pair:
    from ops import ms_deform_attn_fused

    levels = arguments[1]
    value, references, offsets, logits = fused_case(arguments, dtype)
    leaves = [t.clone().requires_grad_() for t in (value, offsets, logits)]

    def run() -> Tensor:
        os.environ["IDOL_MSDA_BACKEND"] = "cuda"
        with torch.no_grad():
            return ms_deform_attn_fused(value, levels, references, offsets, logits)

    def again() -> Tensor:
        os.environ["IDOL_MSDA_BACKEND"] = "cuda"
        return ms_deform_attn_fused(leaves[0], levels, references, leaves[1], leaves[2])

    return run, _both(again, leaves)


def _both(forward: Callable[[], Tensor], leaves: Sequence[Tensor]) -> Callable[[], object]:
    """Forward and backward; a graph can capture the two only together."""
    grad = torch.randn_like(forward())
    return lambda: torch.autograd.grad(forward(), leaves, grad)


def _cells(
    run: Callable[[], Tensor],
    both: Callable[[], object],
    exact: Tensor,
    numbers: tuple[Levels, int, int, int, int | None],
    dtype: torch.dtype,
) -> str:
    error = float((run().double().cpu() - exact).abs().max())
    sizes = (_peak(run), _peak(both))
    forward = microseconds(run)
    backward = microseconds(both) - forward
    levels, images, heads, channels, queries = numbers
    pixels = sum(h * w for h, w in levels)
    size = 4 if dtype == torch.float32 else 2
    gathered = images * (queries or pixels) * heads * len(levels) * 4 * 4 * channels * size
    rate = gathered / forward / 1e6
    return (
        f"{forward:.1f} | {backward:.1f} | {rate:.1f} | {error:.1e} "
        f"| {sizes[0]:.0f} / {sizes[1]:.0f}"
    )


def variants(options: argparse.Namespace) -> None:
    """The table of our kernels' variants: what was chosen, and what did not help."""
    print("| layer | type | warps | in flight | blocks | forward, µs |")
    print("|---|---|---|---|---|---|")
    for title in ("360p encoder", "720p encoder"):
        arguments = case(*GPU_CASES[title])
        for dtype in (torch.float32, torch.bfloat16):
            inputs = fused_case(arguments, dtype)
            usual = cuda.specialisation_of(inputs[0], inputs[2], inputs[1])
            for changes in VARIANTS:
                one = dataclasses.replace(usual, **changes)
                took = _variant(one, inputs, arguments[1])
                print(
                    f"| {title} | {str(dtype)[6:]} | {one.warps} "
                    f"| {one.unroll or 'usual'} "
                    f"| {one.blocks or 'usual'} | {took:.1f} |",
                    flush=True,
                )


def _variant(one: cuda.Specialisation, inputs: list[Tensor], levels: Levels) -> float:
    value, references, offsets, logits = inputs
    tensors = (value, offsets, logits, references, None, torch.empty_like(value))
    queries = offsets.shape[1]
    return microseconds(lambda: cuda.launch(0, one, tensors, value, queries, levels))


VARIANTS: list[dict[str, Any]] = [
    {},
    {"warps": 2},
    {"warps": 8},
    {"unroll": 1},
    {"unroll": 2},
    {"unroll": 4},
    {"unroll": 2, "blocks": 4},
    {"unroll": 2, "blocks": 10},
]


def main(argv: Sequence[str] | None = None) -> None:
    """Print one table with the machine above it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--seconds", type=float, default=3.0, help="for each row, on the CPU")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--original", type=Path, help="see benchmarks/rivals.py")
    parser.add_argument("--variants", action="store_true", help="of our kernels, on a GPU")
    parser.add_argument("--memory", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.memory:
        memory(*options.memory, options.threads[0])
        return
    words = " ".join(sys.argv[1:])
    print(machine.header(f"python -m benchmarks.ms_deform_attn {words}".rstrip(), options.device))
    if options.variants:
        variants(options)
    else:
        (on_cuda if options.device == "cuda" else on_cpu)(options)


if __name__ == "__main__":
    main()
