"""Follow every object of videos, image folders, cameras or streams: films and files to work with.

python -m jobs.track video.mp4 --weights ytvis19-r50 --out seen
"""

from __future__ import annotations

import contextlib
import functools
import logging
import re
import signal
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from idol.addresses import shown
from idol.config import Speed
from jobs import USAGE
from jobs.options import command, places

if TYPE_CHECKING:
    from pipelines.stream.following import Summary
    from pipelines.stream.many import Following, Outcome

Export = Literal["coco", "mot", "mots", "cvat"]
_TOLD = 10  # failed sources that the last line names


@dataclass(frozen=True, kw_only=True)
class Track:
    """Segment and follow every object, frame by frame as they come, in memory that does not grow.

    OUT gets annotated.mp4 (masks, outlines, boxes, trails, a line that says who is seen; one colour
    for each identity throughout; H.264, which browsers play), tracks.jsonl and tracks.parquet (a
    row for each object of each frame: time, track id, category, score, box, area, mask), coco.json,
    mot.txt, mots.txt, cvat.xml, and results.json (the YouTube-VIS form, for jobs.score). With
    several sources each has a folder in OUT; one that fails does not stop the others, but the exit
    status is 1 then. Stopped by Ctrl-C, a broken frame or a lost camera, what was finished is
    written all the same.

    The last line of stdout is one JSON object: frames, tracks, frames_per_second, and what was
    written; of several sources how many failed, and which.
    """

    source: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE ...")]
    """Video files, folders of videos or of images, patterns with *, camera:0, rtsp:// or http(s)://
    addresses; videos in object storage."""
    weights: Annotated[str | None, command.WEIGHTS] = None
    out: Annotated[Path, places.STREAM]
    """Directory to write, made where it is missing."""
    preset: str | None = None
    """Configuration of a released .pth, which carries none."""
    set: command.Repeated = ()
    """Replace a field of the checkpoint's configuration, SECTION.FIELD=VALUE; repeat for more. For
    example tracker.memory_lifetime=60. `idol config tracker` lists its fields."""
    tracker: command.Tracker = None
    detections: str | None = None
    """Take the detections from here instead of from a network: OUT/detections of an earlier run
    with --keep-detections, or RUN/detections of jobs.evaluate. Name a --tracker."""
    video_id: int | None = None
    """Which video of --detections. Default: the only one."""
    keep_detections: command.Switch = False
    """Keep what was detected in OUT/detections, so that another tracker needs no network."""
    classes: tuple[str, ...] = ()
    """Only these categories in film, rows and exports. Default: all."""
    min_score: float = 0.3
    """Objects below this score in a frame are neither in the film nor in the rows of that frame.
    results.json has them all; for what is followed at all see --set tracker.score_threshold."""
    every: int = 1
    """Use each n-th frame only."""
    start: str | None = None
    """Begin here: seconds, or minutes:seconds, or hours:minutes:seconds."""
    end: str | None = None
    """Stop before here, written likewise. Default: the end; a camera by Ctrl-C."""
    max_frames: int | None = None
    """Stop after so many frames (of those used)."""
    device: command.Device = "auto"
    """Where the network runs. gpu and cuda are the same; auto: on a GPU if there is one."""
    speed: Speed | None = None
    """exact, or fast: 16 bits where the machine has units for them; what it costs is in
    docs/internals/performance.md. Short for --set detect.speed=..."""
    workers: int = 0
    """Follow so many of several sources at once, by Ray. 0: one after the other, without it."""
    video: bool = True
    """Write annotated.mp4."""
    draw: Literal["overlay", "blur", "cutout"] = "overlay"
    """What the film shows: overlay: masks, outlines, boxes, captions; blur: the objects made
    unrecognisable, nothing drawn; cutout: the objects alone, on grey."""
    trail: int = 20
    """Frames that the trails in the film reach back; 0: none."""
    fps: float | None = None
    """Frames a second of the film. Default: those of the video, divided by --every; 10 for an image
    folder."""
    exports: tuple[Export, ...] = ("coco", "mot", "mots", "cvat")
    """Forms of other tools to write; --exports alone: none."""
    show: command.Switch = False
    """Show the film while it is made, on a page of this machine; its address is printed."""
    overwrite: bool = False
    """Replace what an earlier run wrote to OUT."""


def seconds(text: str) -> float:
    """Seconds of "90", "1:30" or "0:01:30.5". Raises: ValueError: it is none of these."""
    if not re.fullmatch(r"(?:(?:\d+:)?\d+:)?\d+(?:\.\d+)?", text):
        raise ValueError(f"a time is 90, 1:30 or 0:01:30.5 (seconds last), got {text!r}")
    total = 0.0
    for part in text.split(":"):
        total = 60 * total + float(part)
    return total


def _track(job: Track) -> dict[str, object]:
    from idol.images import live

    if not job.source:
        print(
            f"there is no SOURCE. {live.TODO} It stands in front of options that take several "
            "words, such as --classes and --exports. `python -m jobs.track --help` lists all.",
            file=sys.stderr,
        )
        sys.exit(USAGE)
    from pipelines.stream import many

    if threading.current_thread() is threading.main_thread():
        # As Ctrl-C: what stops a service or a container sends it, and files are to be whole.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    how = _how(job)
    plans = many.plans(many.expand(job.source), job.out)
    if how.detections is not None and len(plans) > 1:
        raise ValueError(
            f"--detections are those of one video, but there are {len(plans)} sources. Give one."
        )
    with contextlib.ExitStack() as stack:
        show = None
        if job.show:
            if job.workers:
                raise ValueError("--show shows one film at a time; leave --workers out.")
            from pipelines.stream.show import Show

            show = stack.enter_context(Show())
            print(f"The film is shown at {show.address}", file=sys.stderr, flush=True)
        if len(plans) == 1 and not job.workers:
            return _one(job, plans[0], how, show)
        return _several(job, list(many.follow_all(plans, how, job.workers, show)))


def _how(job: Track) -> Following:
    """The options as pipelines take them. Raises: ValueError: they contradict one another."""
    from pipelines.stream.following import StreamConfig
    from pipelines.stream.many import Following

    if (job.weights is None) == (job.detections is None):
        raise ValueError(
            "give --weights: a file, a name of `idol models`, or shipped; or else --detections of "
            "an earlier run, and a --tracker"
        )
    if job.detections is not None and job.tracker is None:
        raise ValueError("--detections have no tracker of their own; name one with --tracker")
    if job.keep_detections and job.detections is not None:
        raise ValueError("--keep-detections keeps what a network detects; --detections are kept")
    if job.workers < 0:
        raise ValueError(f"--workers must be 0 or more, got {job.workers}")
    gpu, number = command.device(job.device)
    device = "cpu" if gpu is False else f"cuda:{number or 0}" if gpu else None
    speed = [] if job.speed is None else [f"detect.speed={job.speed}"]
    return Following(
        weights=job.weights,
        preset=job.preset,
        device=device,
        overrides=(*job.set, *speed),
        tracker=job.tracker,
        detections=job.detections,
        video_id=job.video_id,
        keep=job.keep_detections,
        every=job.every,
        start=0.0 if job.start is None else seconds(job.start),
        end=None if job.end is None else seconds(job.end),
        overwrite=job.overwrite,
        made=StreamConfig(
            max_frames=job.max_frames,
            min_score=job.min_score,
            classes=job.classes,
            film=job.video,
            rate=job.fps,
            style=job.draw,
            trail=job.trail,
            exports=job.exports,
        ),
    )


def _one(job: Track, plan: Any, how: Following, show: Any) -> dict[str, object]:
    """Follow the only source; its error is the job's, with what was written before."""
    from pipelines.stream import many
    from pipelines.stream.following import Summary

    summary = Summary()
    try:
        many.follow(plan, how, functools.partial(many.load, how), summary, show)
    except BaseException as error:
        if summary.frames or isinstance(error, KeyboardInterrupt):
            there = f"The {summary.frames} frames before are in {job.out}."
            error.add_note(there if summary.written else "Nothing was written.")
        raise
    _warn_of_nothing(job, summary)
    film, results = summary.path("annotated.mp4"), summary.path("results.json")
    return {
        **_figures([summary]),
        "out": str(job.out),
        "results": str(results),
        "video": None if film is None else str(film),
        "files": [path.name for path in summary.written],
    }


def _several(job: Track, outcomes: list[Outcome]) -> dict[str, object]:
    failed = [(shown(one.plan.source), one.error) for one in outcomes if one.error]
    for source, error in failed:
        print(f"{source}: {error}", file=sys.stderr)
    if len(failed) == len(outcomes):
        raise ValueError(f"none of the {len(outcomes)} sources could be followed to its end")
    return {
        **_figures([one.summary for one in outcomes]),
        "sources": len(outcomes),
        "failed": sorted(source for source, _ in failed)[:_TOLD],
        "failures": len(failed),
        "out": str(job.out),
    }


def _figures(summaries: list[Summary]) -> dict[str, object]:
    frames = sum(one.frames for one in summaries)
    spent = sum(one.seconds for one in summaries)
    return {
        "frames": frames,
        "tracks": sum(one.tracks for one in summaries),
        "seconds": round(spent, 3),
        "frames_per_second": round(frames / spent, 3) if spent else 0.0,
    }


def _warn_of_nothing(job: Track, summary: Summary) -> None:
    if not summary.drawn and summary.best:
        logging.warning(
            "nothing is drawn: the most certain object of all frames has score %.2f, below "
            "--min-score %g or of none of --classes. Lower that, or use weights that know what is "
            "to be seen.",
            summary.best,
            job.min_score,
        )


main = functools.partial(command.run, "track", Track, _track)

if __name__ == "__main__":
    main()
