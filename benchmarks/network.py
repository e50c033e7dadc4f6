"""How fast the network runs: one forward pass of R50, beside Hugging Face's Deformable DETR.

python -m benchmarks.network                     this machine's CPU: time, processor time, memory
python -m benchmarks.network --device cuda       a GPU: frames/s by batch, eager and compiled

Weights are random, the sizes those of the released R50 on frames of 360×640, padded to 384×640.
Every way runs in a process of its own, so that its peak memory is its own; on the CPU the ways take
turns, so that a busy machine is busy for all of them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import torch

from benchmarks import machine
from idol import presets
from idol.network.model import IDOL

FRAME, PADDED = (360, 640), (384, 640)
PRESET = "ytvis19_r50"
MASKS_PER_IMAGE = 10

WAYS = {
    "ours": "ours, 10 masks a frame (as in detection)",
    "ours-no-fold": "ours, 10 masks, norms not folded",
    "fast": "ours, --speed fast, 10 masks",
    "fast-compiled": "ours, --speed fast and compiled, 10 masks",
    "ours-300": "ours, masks of all 300 queries",
    "hf": "Hugging Face DeformableDetr, no masks",
}


def build(way: str, device: str, batch: int, compiled: bool) -> Callable[[], object]:
    """One forward pass of a way on a batch of random frames."""
    torch.manual_seed(0)
    images = torch.randn(batch, 3, *PADDED, device=device)
    images[:, :, FRAME[0] :] = 0
    step: Callable[[], object]
    if way == "hf":
        network = _hugging_face().eval().to(device)
        mask = torch.zeros(batch, *PADDED, dtype=torch.int64, device=device)
        mask[:, : FRAME[0]] = 1
        network = torch.compile(network) if compiled else network

        def step() -> object:
            return network(pixel_values=images, pixel_mask=mask)

        return step

    model = IDOL(presets.by_name(PRESET)).eval().to(device)
    if way.startswith("fast"):
        return _fast(model, images, way == "fast-compiled")
    if way != "ours-no-fold":
        model.fold()
    geometry = model.geometry(PADDED, [FRAME] * batch, device)
    masks = model.config.model.num_queries if way == "ours-300" else MASKS_PER_IMAGE
    rows = torch.arange(batch, device=device).repeat_interleave(masks)

    def whole() -> object:
        outputs = model(images, geometry=geometry)
        best = outputs.logits[-1].amax(-1).topk(masks).indices.flatten()
        layers = torch.full_like(rows, len(outputs.states) - 1)
        return outputs.boxes, model.mask_logits(outputs, rows, layers, best)

    return torch.compile(whole, fullgraph=True) if compiled else whole


def _fast(model: IDOL, images: torch.Tensor, compiled: bool) -> Callable[[], object]:
    """A pass of speed fast, with masks of the best queries."""
    from idol.network.fast import FastNetwork

    network = FastNetwork(model, batch=len(images), compiled=compiled)
    rows = torch.arange(len(images), device=images.device).repeat_interleave(MASKS_PER_IMAGE)

    def step() -> object:
        found = network(images, FRAME)
        best = found.scores.topk(MASKS_PER_IMAGE).indices.flatten()
        return network.mask_logits(found, rows, best)

    return step


def _hugging_face() -> torch.nn.Module:
    """Deformable DETR R50 with the sizes of ours: 300 queries, 6 + 6 layers, refined boxes."""
    from transformers import DeformableDetrConfig, DeformableDetrForObjectDetection, ResNetConfig

    backbone = ResNetConfig(
        depths=[3, 4, 6, 3], layer_type="bottleneck", out_features=["stage2", "stage3", "stage4"]
    )
    config = DeformableDetrConfig(
        backbone_config=backbone,
        num_queries=300,
        num_feature_levels=4,
        encoder_layers=6,
        decoder_layers=6,
        encoder_ffn_dim=1024,
        decoder_ffn_dim=1024,
        with_box_refine=True,
        two_stage=False,
        num_labels=40,
        disable_custom_kernels=True,
    )
    return DeformableDetrForObjectDetection(config)


def measure(
    way: str, device: str, batch: int, dtype: torch.dtype, compiled: bool, seconds: float
) -> dict[str, float]:
    """Figures of a way in this process: median milliseconds, processor milliseconds, MiB."""
    step = build(way, device, batch, compiled)
    walls: list[float] = []
    works: list[float] = []
    with torch.inference_mode(), torch.autocast(device, dtype, dtype != torch.float32):
        before = _resident()
        for _ in range(3 if device == "cuda" else 1):  # compiles, allocates, chooses algorithms
            step()
        _wait(device)
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        end = time.perf_counter() + seconds
        while len(walls) < 3 or time.perf_counter() < end:
            started, worked = time.perf_counter(), time.process_time()
            step()
            _wait(device)
            walls.append(time.perf_counter() - started)
            works.append(time.process_time() - worked)
    if device == "cuda":
        peak = torch.cuda.max_memory_allocated() / 2**20
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    return {
        "ms": 1000 * statistics.median(walls),
        "work": 1000 * statistics.median(works),
        "peak": peak,
        "extra": peak - before,
    }


def _resident() -> float:
    """MiB this process holds now, or 0 where the system does not tell."""
    with contextlib.suppress(OSError), open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20
    return 0.0


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _apart(options: argparse.Namespace, **case: object) -> dict[str, float] | str:
    """Measure a case in a process of its own; the last line of its complaint if it fails."""
    command = [sys.executable, "-m", "benchmarks.network", "--case", json.dumps(case)]
    command += ["--device", options.device, "--seconds", str(options.seconds)]
    environment = dict(os.environ, TRANSFORMERS_VERBOSITY="error", HF_HUB_OFFLINE="1")
    environment["OMP_NUM_THREADS"] = str(case.get("threads") or os.cpu_count() or 1)
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        return (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1][:80]
    figures: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return figures


def on_cpu(options: argparse.Namespace) -> None:
    """The table of this machine's processor."""
    print("| threads | way | ms a frame | processor ms | peak MiB | of it for the pass | time |")
    print("|---|---|---|---|---|---|---|")
    for threads in options.threads:
        runs: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
        for _ in range(options.rounds):
            for way in WAYS:
                got = _apart(options, way=way, batch=1, threads=threads)
                if isinstance(got, str):
                    print(f"{way}: {got}", file=sys.stderr)
                else:
                    runs[way].append(got)
        best = {way: {k: min(r[k] for r in rs) for k in rs[0]} for way, rs in runs.items() if rs}
        for way, row in best.items():
            ratio = f"{row['ms'] / best['hf']['ms']:.2f} × HF" if "hf" in best else "–"
            print(
                f"| {threads} | {WAYS[way]} | {row['ms']:.0f} | {row['work']:.0f} "
                f"| {row['peak']:.0f} | {row['extra']:.0f} | {ratio} |"
            )


def on_cuda(options: argparse.Namespace) -> None:
    """The table of a GPU."""
    print("| batch | arithmetic | mode | way | ms a batch | frames/s | peak GPU MiB |")
    print("|---|---|---|---|---|---|---|")
    for batch in options.batches:
        for dtype in options.types:
            for compiled in [mode == "compiled" for mode in options.modes]:
                for way in ("ours", "ours-300", "hf"):
                    got = _apart(options, way=way, batch=batch, dtype=dtype, compiled=compiled)
                    row = f"| {batch} | {dtype} | {'compiled' if compiled else 'eager'} "
                    row += f"| {WAYS[way]} "
                    if isinstance(got, str):
                        print(f"{row}| – | – | {got} |", flush=True)
                        continue
                    print(
                        f"{row}| {got['ms']:.1f} | {1000 * batch / got['ms']:.0f} "
                        f"| {got['peak']:.0f} |",
                        flush=True,
                    )


def main(argv: Sequence[str] | None = None) -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--seconds", type=float, default=5.0, help="timed seconds of each run")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each way on the CPU")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32], help="on a GPU")
    kinds = ("float32", "bfloat16")
    parser.add_argument("--types", nargs="+", choices=kinds, default=kinds, help="on a GPU")
    modes = ("eager", "compiled")
    parser.add_argument("--modes", nargs="+", choices=modes, default=modes, help="on a GPU")
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.case:
        case = options.case
        if case.get("threads"):
            torch.set_num_threads(case["threads"])
        dtype = getattr(torch, case.get("dtype", "float32"))
        compiled = bool(case.get("compiled"))
        figures = measure(
            case["way"], options.device, case["batch"], dtype, compiled, options.seconds
        )
        print(json.dumps(figures))
        return
    print(machine.header(f"python -m benchmarks.network {' '.join(sys.argv[1:])}", options.device))
    (on_cuda if options.device == "cuda" else on_cpu)(options)


if __name__ == "__main__":
    main()
