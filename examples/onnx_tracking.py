"""Track a video with an exported network, without torch: onnxruntime and our tracker.

python -m jobs.export --weights shipped --frame first_frame.png --out network.onnx
python examples/onnx_tracking.py network.onnx video.mp4 results.json

The frames must have the size of first_frame.png. results.json has one entry per instance and class,
as the servers of YouTube-VIS take it; of a damaged video those of the frames before, and the exit
status is 1. Where torch is not to be installed: pip install --no-deps idol-vis, then numpy scipy
opencv-python-headless pycocotools numba onnxruntime av pillow simplejpeg.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from idol.detection.exported import ExportedFrames
from idol.images import live
from idol.tracker import TrackAssembler, Tracker
from idol.ytvis import results

VIDEO = 1  # its id in the results


def main() -> None:
    """Detect and track frame by frame, then write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("network", type=Path, help="an .onnx file of jobs.export")
    parser.add_argument("video", help="a video file, or a folder of images")
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    try:
        track(options.network, options.video, options.out)
    except (ValueError, OSError, ImportError) as error:
        raise SystemExit(str(error)) from error


def track(path: Path, video: str, out: Path) -> None:
    """As the usage says.

    Raises: ValueError: a frame has another size than was exported, or the video is damaged, after
        the results of the frames before were written.
    """
    network = ExportedFrames(path)
    config = network.config
    tracker, assembler = Tracker(config.tracker), TrackAssembler(config.tracker, keep_masks=True)
    found, length, damage = [], 0, None
    try:
        for _, _, frame in live.open_source(video):
            detections = network.detect(frame, length)
            found += assembler.add(detections, *tracker.follow(detections), tracker.alive)
            length += 1
    except live.SourceError as error:
        if not length:
            raise
        damage = error
    found += assembler.finish()
    found.sort(key=lambda one: one.position)
    known = config.category_ids or tuple(range(1, config.model.num_classes + 1))
    _, height, width, _ = network.shape
    entries = [
        results.entry(
            VIDEO,
            known[chosen.label],
            chosen.score,
            (found[chosen.track].masks.get(index) for index in range(length)),
            (height, width),
        )
        for chosen in results.class_entries([one.track for one in found], config.tracker)
    ]
    results.write(out, entries)
    if damage is not None:
        raise ValueError(f"{damage} {out} has results of the {length} frames before.") from damage
    print(f"{length} frames, {len(found)} instances: {out}")


if __name__ == "__main__":
    main()
