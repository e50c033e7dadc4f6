"""Follow the objects of one video, image folder or camera: a film with identities, and results.

python -m jobs.track video.mp4 --weights shipped --out seen
"""

from __future__ import annotations

import functools
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from idol.config import Speed
from jobs import command, places

if TYPE_CHECKING:
    from pipelines import stream


@dataclass(frozen=True, kw_only=True)
class Track:
    """Segment and follow every object, frame by frame as they come, without Ray.

    OUT gets annotated.mp4 (masks, boxes, captions, one colour for each identity throughout) and
    results.json (the YouTube-VIS form; video_id 1, one mask or null for each frame used). Stopped
    by Ctrl-C or a broken frame, what was finished is written all the same.

    The last line of stdout is one JSON object: frames, tracks, frames_per_second, and the paths of
    what was written.
    """

    source: Annotated[str, tyro.conf.Positional]
    """A video file, a folder of images, or a camera: camera:0."""
    weights: command.Weights
    out: Annotated[Path, places.STREAM]
    """Directory to write, made where it is missing."""
    preset: str | None = None
    """Configuration of a released .pth, which carries none."""
    set: command.Repeated = ()
    """Replace a field of the checkpoint's configuration, SECTION.FIELD=VALUE; repeat for more. For
    example tracker.memory_lifetime=60 or transforms.test_short_side=360."""
    tracker: command.Tracker = None
    every: int = 1
    """Use each n-th frame only."""
    max_frames: int | None = None
    """Stop after so many frames (of those used). Default: at the end; a camera by Ctrl-C."""
    device: command.Device = "auto"
    """Where the network runs. gpu and cuda are the same; auto: on a GPU if there is one."""
    speed: Speed | None = None
    """exact, or fast: 16 bits where the machine has units for them; what it costs is in
    docs/internals/performance.md. Short for --set detect.speed=..."""
    score_threshold: float = 0.3
    """Instances below this score in a frame are not drawn there. results.json has them all; for
    what is followed at all see --set tracker.score_threshold."""
    video: bool = True
    """Write annotated.mp4. --no-video: results.json alone."""
    fps: float | None = None
    """Frames a second of annotated.mp4. Default: those of the video, divided by --every; 10 for
    an image folder."""
    overwrite: bool = False
    """Replace annotated.mp4 and results.json of an earlier run in OUT."""


def _track(job: Track) -> dict[str, object]:
    from pipelines import stream

    summary = stream.Summary()
    try:
        _follow(job, summary)
    except BaseException as error:
        if summary.frames or isinstance(error, KeyboardInterrupt):
            paths = " and ".join(str(path) for path in (summary.results, summary.film) if path)
            there = f"The {summary.frames} frames before are in {paths}."
            error.add_note(there if paths else "Nothing was written.")
        raise
    if summary.film and not summary.drawn and summary.best:
        logging.warning(
            "nothing is drawn: the most certain instance of all frames has score %.2f, below "
            "--score-threshold %g. Lower that, or use weights that know what is to be seen.",
            summary.best,
            job.score_threshold,
        )
    return {
        "frames": summary.frames,
        "tracks": summary.tracks,
        "seconds": round(summary.seconds, 3),
        "frames_per_second": round(summary.frames_per_second, 3),
        "out": str(job.out),
        "results": str(summary.results),
        "video": None if summary.film is None else str(summary.film),
    }


def _follow(job: Track, summary: stream.Summary) -> None:
    import torch

    from idol.segmenter import OnlineSegmenter
    from idol.weights import checkpoint
    from pipelines import configuration, stream
    from pipelines.sources import live

    gpu, number = command.device(job.device)
    wanted = stream.StreamConfig(
        max_frames=job.max_frames, film=job.video, rate=job.fps, drawn_score=job.score_threshold
    )
    opened = live.open_source(job.source, job.every)
    stream.prepare(job.out, overwrite=job.overwrite)
    gpu = torch.cuda.is_available() if gpu is None else gpu
    place = torch.device("cuda", number or 0) if gpu else torch.device("cpu")
    try:
        torch.zeros(1, device=place)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"--device {job.device} cannot be used ({reason}). Use cpu, or gpu where there is one."
        ) from error
    model = checkpoint.load(job.weights, preset=job.preset, device=place)
    changes = [*job.set, *([] if job.speed is None else [f"detect.speed={job.speed}"])]
    config = configuration.changed(model.config, changes, job.tracker)
    stream.run(opened, OnlineSegmenter(model, config=config), job.out, wanted, summary)


main = functools.partial(command.run, "track", Track, _track)

if __name__ == "__main__":
    main()
