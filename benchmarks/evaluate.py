"""What evaluation and sweeps cost: detection, tracking, a sweep, end to end, and a large cluster.

python -m benchmarks.evaluate
python -m benchmarks.evaluate --annotations REAL/instances.json --checkpoint real.safetensors

Every figure is measured in this run, on stored synthetic videos (crowded) unless told otherwise,
but for the last table: a simulated cluster, fed with the times measured here, and with --gpu-ms
for what a frame costs on a GPU.
"""

from __future__ import annotations

import argparse
import heapq
import json
import shutil
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import idol
from benchmarks import machine
from benchmarks.plain_loop import plain_loop
from idol.config import TrackerConfig
from idol.detection.detector import Detector
from idol.images.synthetic import SyntheticConfig
from idol.images.synthetic_dataset import write_dataset
from pipelines import cluster
from pipelines.sources import annotations
from pipelines.sources.annotations import Dataset, VideoRecord
from pipelines.stages import detect, evaluate, shard_plan, stored_metrics, track
from pipelines.storage import layout, stored
from pipelines.sweep import objective, space, tracker_sweep
from pipelines.sweep.search import SearchConfig
from pipelines.sweep.tracker_trials import TrackerTrials

VALIDATION = {
    "YouTube-VIS 2019": (302, 27.4, 36, (720, 1280)),
    "OVIS": (140, 69.5, 500, (1080, 1920)),
}
"""Videos of the validation set, mean and longest frames of the data set, size: from their papers.
The videos' own lengths are drawn."""
GPUS = (1, 2, 4, 8, 16, 32, 64)
CPUS_PER_GPU = 8


@dataclass
class Measured:
    """Seconds measured in this run.

    frame:    detect, one frame in the network with all around it
    start:    an actor, from its request to the first finished shard's beginning
    tracking: a frame of a video, masks and RESULTS included
    scoring:  a frame
    tail:     a video, on the driver alone: results.json, report, page
    driver:   once: reading annotations and weights, and at the end the page's frame and MLflow
    """

    frame: float = 0.0
    start: float = 0.0
    tracking: float = 0.0
    scoring: float = 0.0
    tail: float = 0.0
    driver: float = 0.0


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print five tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--annotations", help="default: synthetic crowded videos")
    parser.add_argument("--checkpoint", default="shipped")
    parser.add_argument("--videos", type=int, default=120, help="synthetic videos")
    parser.add_argument("--configurations", type=int, default=200)
    parser.add_argument("--gpu-ms", type=float, nargs="+", default=[5.0, 20.0])
    parser.add_argument("--loop-threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/bench-evaluate"))
    options = parser.parse_args(argv)
    out: Path = options.out
    shutil.rmtree(out / "work", ignore_errors=True)
    path = options.annotations or str(
        write_dataset(out / "crowded", SyntheticConfig.crowded(), options.videos, 90_000)
    )
    print(machine.header(machine.command("benchmarks.evaluate")))
    dataset = annotations.read(path)
    model = idol.load(options.checkpoint)
    config = evaluate.with_categories(model.config, dataset)
    times = Measured()
    count = sum(len(video.frames) for video in dataset.videos)
    print(f"{len(dataset.videos)} videos, {count} frames of {path}\n")
    with cluster.session():
        detection(dataset, model, config, out / "work", count, times)
        tracking(out / "work" / "actors-2", path, count, times)
        threads = options.loop_threads
        end_to_end(path, options.checkpoint, dataset, model, config, out / "work", times, threads)
        whole_sweep(out / "work", options.configurations, count, times)
    simulated(times, options.gpu_ms)


def detection(
    dataset: Any, model: Any, config: Any, out: Path, count: int, times: Measured
) -> None:
    """(a) Frames a second with one and two actors, and how long the model waits for data."""
    waited, spent = waiting(dataset, model, config)
    print("(a) detect, frames a second once the actors run, and with their start\n")
    print("| actors | frames/s | with start | seconds to the first shard |\n|---|---|---|---|")
    for actors in (1, 2):
        marks: list[tuple[float, int]] = []
        shards = shard_plan.plan(dataset.videos, config.detect.frames_per_shard)
        sizes = [sum(len(piece.frames) for piece in pieces) for pieces in shards]
        began = time.monotonic()
        detect.run(
            dataset,
            model,
            out / f"actors-{actors}",
            config,
            actors=actors,
            on_shard=lambda n, m=marks, s=sizes: m.append((time.monotonic(), s[n])),  # type: ignore[misc]
        )
        ended = time.monotonic()
        # The first shards of all actors bear their start. Fewer than four more each: no rate.
        rest = marks[actors:]
        first = marks[0][0] - began
        steady = "–"  # a few shards end all at once, and say nothing about a rate
        if len(rest) >= 4 * actors:
            rate = sum(n for _, n in rest) / (marks[-1][0] - marks[actors - 1][0])
            steady = f"{rate:.1f}"
        print(f"| {actors} | {steady} | {count / (ended - began):.1f} | {first:.1f} |")
        if actors == 1:
            times.start = max(0.0, first - marks[0][1] * spent / count)
    print(
        f"\nOne process without Ray: {count / spent:.1f} frames/s; the network waits for data "
        f"{100 * waited / spent:.1f} % of the time.\n"
    )
    times.frame = spent / count


def waiting(dataset: Any, model: Any, config: Any) -> tuple[float, float]:
    """Seconds that the network waits for decoded frames, and all seconds, in this process."""
    torch.set_num_threads(1)
    detector = Detector(model, config, batch=config.detect.batch_frames)
    ahead = detect.read_ahead
    waited = 0.0

    def timed(*arguments: Any) -> Iterator[Any]:
        nonlocal waited
        source = ahead(*arguments)
        while True:
            began = time.monotonic()
            frame = next(source, None)
            waited += time.monotonic() - began
            if frame is None:
                return
            yield frame

    truth = any(video.instances for video in dataset.videos)
    pieces = shard_plan.plan(dataset.videos, config.detect.frames_per_shard)
    detect.detect_pieces(detector, pieces[0][:1], config, truth=truth)  # warm
    detect.read_ahead = timed  # type: ignore[assignment]
    began = time.monotonic()
    for shard in pieces:
        detect.detect_pieces(detector, shard, config, truth=truth)
    spent = time.monotonic() - began
    detect.read_ahead = ahead
    return waited, spent


def tracking(detections: Path, path: str, count: int, times: Measured) -> None:
    """(b) Seconds per tracking configuration from stored detections."""
    source = stored.read(detections)
    truth = annotations.read(path).truth()
    assert truth is not None
    order = [video.video_id for video in source.videos]
    truths = {i: truth.videos[i].without_masks() for i in order}
    goal = objective.parse("AP", occlusion=False)
    trials = TrackerTrials(source, truths, {}, order, TrackerConfig(), goal, [len(order)], 0)
    began = time.monotonic()
    videos = trials.load()
    loading = time.monotonic() - began
    print("(b) one configuration on stored detections, one process\n")
    print("| tracker | seconds | ms a frame |\n|---|---|---|")
    trackers = {
        "released": TrackerConfig.released(),
        "paper": TrackerConfig.paper(),
        "robust": TrackerConfig.robust(),
    }
    for name, tracker in trackers.items():
        seconds = []
        for _ in range(5):
            began = time.monotonic()
            trials.score(videos, order, tracker)
            seconds.append(time.monotonic() - began)
        middle = statistics.median(seconds)
        print(f"| {name} | {middle:.3f} | {1000 * middle / count:.2f} |")
    print(f"\nLoading once: {loading:.2f} s for {count} frames.\n")
    began = time.monotonic()
    for video in source.videos:
        track.results_of_video(source, video, TrackerConfig.robust())
    times.tracking = (time.monotonic() - began) / count
    began = time.monotonic()
    for video in source.videos:
        stored_metrics.measure_video(source, video, truths[video.video_id], TrackerConfig.robust())
    times.scoring = (time.monotonic() - began) / count


def end_to_end(
    path: str,
    checkpoint: str,
    dataset: Any,
    model: Any,
    config: Any,
    out: Path,
    times: Measured,
    loop_threads: Sequence[int],
) -> None:
    """(d) The whole evaluation against a plain loop over the videos, in the same run."""
    print("(d) from files to results and scores\n")
    print("| way | seconds | ratio |\n|---|---|---|")
    loops, detector = {}, Detector(model, config)
    for threads in loop_threads:
        torch.set_num_threads(threads)
        began = time.monotonic()
        loop_ap = plain_loop(
            dataset,
            lambda image, index: detector.detect([detector.prepare(image)], [index])[0],
            config,
            out / "loop.json",
        )
        loops[threads] = time.monotonic() - began
    loop = min(loops.values())
    torch.set_num_threads(1)
    began = time.monotonic()
    done = evaluate.run(
        evaluate.Request(annotations=path, checkpoint=checkpoint),
        out / "evaluate",
        actors=2,
        log_to=out / "log",
    )
    whole = time.monotonic() - began
    detected = stage_seconds(out / "evaluate" / layout.DETECTIONS)
    for threads, seconds in loops.items():
        print(
            f"| a loop over videos, frame by frame, then scores; {threads} threads | "
            f"{seconds:.1f} | {loop / seconds:.2f} |"
        )
    print(
        f"| jobs.evaluate inside a running Ray, 2 actors, with scores, page and log | "
        f"{whole:.1f} | {loop / whole:.2f} |"
    )
    print(f"| of it detect | {detected:.1f} | {loop / detected:.2f} |")
    ap = done.extra["metrics"]["AP"]
    print(f"\nAP {loop_ap:.4f} by the loop, {ap:.4f} by jobs.evaluate.\n")
    video = cost_of_video(path, checkpoint, dataset, out)
    # What is left of the whole is spent once in a job, imports included (it came first).
    times.driver = max(0.0, whole - detected - len(dataset.videos) * video)
    # So few frames are tracked and scored by the driver itself, which the cluster's tasks do there.
    frames_of_video = sum(len(v.frames) for v in dataset.videos) / len(dataset.videos)
    times.tail = max(0.0, video - frames_of_video * (times.tracking + times.scoring))
    print(
        f"Besides detection the driver spends {times.driver:.1f} s once and {1000 * video:.0f} ms "
        f"a video, {1000 * times.tail:.0f} ms of it neither tracking nor scoring.\n"
    )


def stage_seconds(folder: Path) -> float:
    """Seconds that a finished stage took, by its manifest."""
    return float(json.loads((folder / "_manifest.json").read_text())["seconds"])


def cost_of_video(path: str, checkpoint: str, dataset: Dataset, out: Path) -> float:
    """Seconds for a video besides detection: of a line through two parts of the set."""
    sizes, besides = [], []
    for share in (8, 2):
        some = [video.video_id for video in dataset.videos[: max(1, len(dataset.videos) // share)]]
        part = out / f"part-{share}"
        seconds = []
        for _ in range(2):  # the quicker of two, for a machine may be busy with something else
            began = time.monotonic()
            evaluate.run(
                evaluate.Request(annotations=path, checkpoint=checkpoint, video_ids=some),
                part,
                actors=2,
                overwrite=True,
                log_to=out / "log",
            )
            seconds.append(time.monotonic() - began - stage_seconds(part / layout.DETECTIONS))
        besides.append(min(seconds))
        sizes.append(len(some))
    return max(0.0, (besides[1] - besides[0]) / (sizes[1] - sizes[0]))


def whole_sweep(out: Path, configurations: int, count: int, times: Measured) -> None:
    """(c) A sweep against running everything for every configuration."""
    evaluated = out / "evaluate"
    base = tracker_sweep.base_config(evaluated)
    wanted = tracker_sweep.TrackerSweep(
        evaluated=evaluated,
        base=base,
        space=space.association(base),
        search=SearchConfig(method="random", samples=configurations - 1),
    )
    began = time.monotonic()
    done = tracker_sweep.run(wanted, out / "sweep", log_to=out / "log")
    spent = time.monotonic() - began
    once = count * (times.frame + times.tracking + times.scoring)
    every = stage_seconds(evaluated)
    trials = done.extra["configurations"]
    print(f"(c) {trials} configurations, cross-validated, with page and log\n")
    print("| way | seconds | times the sweep |\n|---|---|---|")
    print(f"| the sweep, 2 processes, start included | {spent:.1f} | 1 |")
    for name, seconds in (
        (f"{trials} × detect, track, score in one process, without any start", once),
        (f"{trials} × jobs.evaluate inside a running Ray, 2 actors", every),
    ):
        print(f"| {name} | {trials * seconds:.0f} | {trials * seconds / spent:.0f} |")
    print()


def simulated(times: Measured, gpu_ms: Sequence[float]) -> None:
    """(e) A discrete-event cluster: shards on GPUs, tracking and scoring on their CPUs, a tail."""
    print("(e) simulated: seconds, and efficiency against one GPU; actors' start included\n")
    print(
        f"Measured here: start of an actor {times.start:.1f} s, tracking "
        f"{1000 * times.tracking:.2f} and scoring {1000 * times.scoring:.2f} ms a frame, driver "
        f"{times.driver:.1f} s and {1000 * times.tail:.0f} ms a video. Assumed: a "
        f"frame on a GPU as named, {CPUS_PER_GPU} CPUs a GPU, shards of 64 frames.\n"
    )
    heads = " | ".join(f"{n} GPUs" for n in GPUS)
    print(f"| set | ms a frame | {heads} |\n|---|---{'|---' * len(GPUS)}|")
    for name, (videos, mean, longest, size) in VALIDATION.items():
        rng = np.random.default_rng(0)
        shape = 2.0
        drawn = np.clip(rng.gamma(shape, mean / shape, videos).round(), 4, longest)
        lengths = [int(n) for n in drawn * (mean / drawn.mean())]
        records = [
            VideoRecord(i, size, tuple(["x"] * max(1, n)), ()) for i, n in enumerate(lengths)
        ]
        for milliseconds in gpu_ms:
            cells = []
            with_gpu = replace(times, frame=milliseconds / 1000)
            alone = simulate(records, with_gpu, 1)
            for gpus in GPUS:
                seconds = simulate(records, with_gpu, gpus)
                cells.append(f"{seconds:.0f} s, {100 * alone / (gpus * seconds):.0f} %")
            print(f"| {name} | {milliseconds:g} | {' | '.join(cells)} |")


def simulate(videos: Sequence[VideoRecord], times: Measured, gpus: int) -> float:
    """Seconds of an evaluation on a cluster: shards in the real order, each on the first free GPU;
    a video is tracked on the first free CPU once its last shard is there; scoring follows when all
    are tracked; the driver's tail is serial.
    """
    shards = shard_plan.plan(videos, 64)
    free = [times.driver + times.start] * gpus
    heapq.heapify(free)
    ready: dict[int, float] = {}
    for index in shard_plan.longest_first(shards, range(len(shards))):
        begin = heapq.heappop(free)
        end = begin + times.frame * sum(len(p.frames) for p in shards[index])
        heapq.heappush(free, end)
        for piece in shards[index]:
            ready[piece.video_id] = max(ready.get(piece.video_id, 0.0), end)
    cpus = [0.0] * (gpus * CPUS_PER_GPU)
    length = {video.video_id: len(video.frames) for video in videos}
    tracked = 0.0
    for video_id, when in sorted(ready.items(), key=lambda item: item[1]):
        end = max(heapq.heappop(cpus), when) + times.tracking * length[video_id]
        heapq.heappush(cpus, end)
        tracked = max(tracked, end)
    cpus = [tracked] * (gpus * CPUS_PER_GPU)
    scored = tracked
    for frames_of in sorted(length.values(), reverse=True):
        end = heapq.heappop(cpus) + times.scoring * frames_of
        heapq.heappush(cpus, end)
        scored = max(scored, end)
    return scored + times.tail * len(videos)


if __name__ == "__main__":
    main()
