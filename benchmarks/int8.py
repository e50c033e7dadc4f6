"""What 8-bit integers bring an exported network on a CPU, and what they cost: time, then AP.

python -m benchmarks.int8

The whole frame path is exported (jobs.export, ONNX) and quantised by onnxruntime: `dynamic` turns
the weights of linear layers into integers and chooses scales frame by frame, `static` also those of
convolutions, with scales from frames of other videos. All run in turns in one process. AP is of
synthetic videos, tracked as the shipped configuration says.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

import idol
from benchmarks import machine
from benchmarks.plain_loop import plain_loop
from idol import presets
from idol.detection.exported import ExportedFrames
from idol.images.synthetic import SyntheticConfig
from idol.images.synthetic_dataset import write_dataset
from idol.network.model import IDOL
from idol.weights import export
from pipelines.sources import annotations, frames
from pipelines.sources.annotations import VideoRecord

Picture = NDArray[np.uint8]
CALIBRATION, SCORED = 80_000, 90_000  # seeds of the videos
LINEAR, ALL = ["MatMul", "Gemm"], ["Conv", "MatMul", "Gemm"]


def pictures(videos: Sequence[VideoRecord], size: tuple[int, int]) -> Iterator[Picture]:
    """Frames of videos, resized to (height, width)."""
    for video in videos:
        for image in frames.read_many(video.frames, video_id=video.video_id, size=video.size):
            yield np.asarray(cv2.resize(image, size[::-1]), np.uint8)


def quantised(plain: Path, way: str, shown: Sequence[Picture]) -> Path:
    """The .onnx file in 8 bits: dynamic or static."""
    from onnxruntime import quantization as q
    from onnxruntime.quantization.shape_inference import quant_pre_process

    out, ready = plain.with_name(f"{way}.onnx"), plain.with_name("ready.onnx")
    if not ready.exists():
        quant_pre_process(str(plain), str(ready), skip_symbolic_shape=True)
    if way == "dynamic":
        q.quantize_dynamic(ready, out, op_types_to_quantize=LINEAR, per_channel=True)
        return out

    class Shown(q.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = iter(shown)

        def get_next(self) -> dict[str, Any] | None:
            picture = next(self.left, None)
            return None if picture is None else {"frames": picture[None]}

    q.quantize_static(ready, out, Shown(), op_types_to_quantize=ALL, per_channel=True)
    return out


def timed(networks: dict[str, ExportedFrames], given: Picture, rounds: int) -> dict[str, float]:
    """Median ms a frame of each, in turns."""
    spent: dict[str, list[float]] = {name: [] for name in networks}
    for _ in range(rounds):
        for name, network in networks.items():
            began = time.perf_counter()
            network.detect(given, 0)
            spent[name].append(1000 * (time.perf_counter() - began))
    return {name: statistics.median(times) for name, times in spent.items()}


def main(argv: Sequence[str] | None = None) -> None:
    """Print a table of times and, for the shipped weights, one of AP."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path("runs/bench-int8"))
    options = parser.parse_args(argv)
    logging.disable(logging.WARNING)  # onnxruntime's advice on preparing a network
    print(machine.header(machine.command("benchmarks.int8")))
    print("| network | frame | way | MB | ms a frame | ratio | AP |\n|---|---|---|---|---|---|---|")
    config = SyntheticConfig.crowded()
    read = {
        seed: annotations.read(write_dataset(options.out / str(seed), config, count, seed))
        for seed, count in ((CALIBRATION, 8), (SCORED, options.videos))
    }
    for name, size in (("shipped", read[SCORED].videos[0].size), ("ytvis19_r50", (360, 640))):
        torch.manual_seed(0)
        model = idol.load(name) if name == "shipped" else IDOL(presets.by_name(name))
        shown = list(pictures(read[CALIBRATION].videos, size))[::4][:24]
        plain = options.out / name / "plain.onnx"
        plain.parent.mkdir(parents=True, exist_ok=True)
        model.eval().fold()
        export.write(export.WholeFrame(model, size, 1, 20), plain, "onnx")
        files = {"float32": plain} | {w: quantised(plain, w, shown) for w in ("dynamic", "static")}
        networks = {way: ExportedFrames(file) for way, file in files.items()}
        spent = timed(networks, shown[0], options.rounds)
        for way, ms in spent.items():
            ap = "–"
            if name == "shipped":
                one, out = networks[way], options.out / "results.json"
                ap = f"{100 * plain_loop(read[SCORED], one.detect, one.config, out):.1f}"
            megabytes = files[way].stat().st_size / 1e6
            ratio = ms / spent["float32"]
            print(
                f"| {name} | {size[0]}x{size[1]} | {way} | {megabytes:.1f} | {ms:.1f} | "
                f"{ratio:.2f} | {ap} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
