"""Several sources: which a command line means, and each followed in turn or by a pool of actors."""

from __future__ import annotations

import contextlib
import glob
import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from idol.addresses import is_remote, shown
from idol.images import live
from pipelines import actors, cluster, configuration, resources
from pipelines.errors import PipelineError
from pipelines.sources import video_cache
from pipelines.stream import following
from pipelines.stream.following import StreamConfig, Summary
from pipelines.stream.show import Show
from pipelines.stream.stored_segmenter import DetectionWriter, StoredSegmenter

if TYPE_CHECKING:
    from idol.network.model import IDOL

DETECTIONS = "detections"
"""Folder of a source where its detections are kept."""

_SMALL = 10_000_000
"""Parameters below which a second thread does not pay (benchmarks/end_to_end.py): its waiting costs
as much as it saves, and on a busy machine more."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """One source, and where what is made of it goes."""

    source: str
    out: Path


@dataclass(frozen=True, kw_only=True, slots=True)
class Following:
    """How sources are followed; small and plain, so that it travels to actors.

    weights, preset: as of idol.load; weights None: from stored detections
    device:     "cpu", "cuda", "cuda:1"; None: a GPU where there is one
    overrides:  "section.field=value"
    tracker:    see configuration.tracker_config; None: the checkpoint's
    detections: a finished detect directory to take detections from; None: the network makes them
    video_id:   which of its videos; None: the only one
    keep:       write the detections of each source into its folder
    every, start, end: as of open_source
    """

    weights: str | None
    preset: str | None = None
    device: str | None = None
    overrides: tuple[str, ...] = ()
    tracker: str | None = None
    detections: str | None = None
    video_id: int | None = None
    keep: bool = False
    every: int = 1
    start: float = 0.0
    end: float | None = None
    overwrite: bool = False
    made: StreamConfig = field(default_factory=StreamConfig)

    def opened(self, source: str) -> contextlib.AbstractContextManager[live.Source]:
        """The source, which a remote video file is copied to this machine for."""
        return _opened(source, self.every, self.start, self.end)


def expand(names: Sequence[str]) -> list[str]:
    """The sources that arguments stand for, in natural order, each once.

    names: files, folders of images, cameras and addresses stand for themselves; a folder of videos
           for those in it; one of folders of images for those; a pattern with * for what it fits
    Raises: SourceError: one is empty or stands for nothing, a folder holds both videos and images,
        or neither.
    """
    found: list[str] = []
    for name in names:
        live.check_name(name)  # Path would take "" for the working directory
        if name.startswith(live.CAMERA) or is_remote(name) or Path(name).exists():
            found += _inside(name)
            continue
        if not glob.has_magic(name):
            raise live.SourceError(f"{name} does not exist. {live.TODO}")
        fitting = sorted(glob.glob(name, recursive=True), key=live.natural)
        if not fitting:
            raise live.SourceError(f"nothing fits the pattern {name}.")
        for one in fitting:
            found += _inside(one)
    return list(dict.fromkeys(found))


def _inside(name: str) -> list[str]:
    if name.startswith(live.CAMERA) or is_remote(name) or not Path(name).is_dir():
        return [name]
    entries = [path for path in Path(name).iterdir() if not path.name.startswith(".")]
    videos = [str(p) for p in entries if p.suffix.lower() in live.VIDEO_SUFFIXES]
    images = any(path.suffix.lower() in live.IMAGE_SUFFIXES for path in entries)
    if passed := live.passed_over(entries):
        _log.warning(
            "of folder %s these are passed over, as their suffixes are of no video that is known: "
            "%s. Name a file to try it.",
            name,
            ", ".join(path.name for path in passed),
        )
    if videos and images:
        raise live.SourceError(
            f"{name} holds videos and images. Is it one video or several? Give {name}/*.mp4, or a "
            "folder that holds the images alone."
        )
    if videos:
        return sorted(videos, key=live.natural)
    if images:
        return [name]
    folders = [str(p) for p in entries if p.is_dir() and _has_images(p)]
    if not folders:
        there = f"holds {len(entries)} entries, of which none is" if entries else "is empty: give"
        raise live.SourceError(
            f"{name} {there} a video, an image or a folder of images. What lies deeper is given by "
            f"a pattern: '{name}/**/*.mp4'."
        )
    return sorted(folders, key=live.natural)


def _has_images(folder: Path) -> bool:
    return any(path.suffix.lower() in live.IMAGE_SUFFIXES for path in folder.iterdir())


def plans(sources: Sequence[str], out: Path) -> list[Plan]:
    """Where each source's files go: out where it is the only one, else a folder of its name."""
    if len(sources) == 1:
        return [Plan(source=sources[0], out=out)]
    made, taken = [], set()
    for source in sources:
        place = shown(source).partition("://")[2] if is_remote(source) else source
        path = Path(place)
        stem = path.stem if path.suffix.lower() in live.VIDEO_SUFFIXES else path.name
        name = base = re.sub(r"[^\w.\-]+", "-", stem).strip("-.") or "source"
        number = 1
        while name.lower() in taken:
            number += 1
            name = f"{base}-{number}"
        taken.add(name.lower())
        made.append(Plan(source=source, out=out / name))
    return made


def follow(
    plan: Plan,
    how: Following,
    network: Callable[[], IDOL | None],
    summary: Summary,
    show: Show | None = None,
) -> None:
    """Follow one source.

    network: gives the network, once the source is open and plan.out is free; None: how.detections
             are used
    summary: updated after every frame, so that the caller has it after an error too
    Raises: as of following.run and network; ValueError, PipelineError: of how.
    """
    with how.opened(plan.source) as source:
        following.check(plan.out, overwrite=how.overwrite)
        model = network()
        if model is None:
            stored = how.detections or "", how.video_id, how.overrides, how.tracker or ""
            again = StoredSegmenter(*stored, source)
            following.check_classes(how.made.classes, again.settings)
            following.prepare(plan.out, overwrite=how.overwrite)
            following.run(source, again, plan.out, how.made, summary, show)
            if how.end is None and how.made.max_frames is None:
                again.check_end(summary.frames)
            return
        from idol.segmenter import OnlineSegmenter

        config = configuration.changed(model.config, how.overrides, how.tracker)
        following.check_classes(how.made.classes, config)
        following.prepare(plan.out, overwrite=how.overwrite)
        kept: DetectionWriter | None = None
        if how.keep:
            at = plan.out / DETECTIONS
            kept = DetectionWriter(at, config, source, overwrite=how.overwrite)
        add = None if kept is None else kept.add
        segmenter = OnlineSegmenter(model, config=config, on_detections=add)
        try:
            following.run(source, segmenter, plan.out, how.made, summary, show)
        finally:
            if kept is not None and summary.frames:
                kept.finish()


def load(how: Following) -> IDOL | None:
    """The network; None where stored detections are used. A small one gets one thread of the CPU.

    Raises: ValueError: the device cannot be used; as of idol.load.
    """
    if how.weights is None:
        return None
    import torch

    from idol.weights import checkpoint

    place = how.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.zeros(1, device=place)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"device {place} cannot be used ({reason}). Use cpu, or gpu where there is one."
        ) from error
    model = checkpoint.load(how.weights, preset=how.preset, device=place)
    size = sum(parameter.numel() for parameter in model.parameters())
    if place == "cpu" and size < _SMALL and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
    return model


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one source; error: why it was not followed to its end, "" where it was."""

    plan: Plan
    summary: Summary
    error: str = ""


def follow_all(
    given: Sequence[Plan], how: Following, workers: int = 0, show: Show | None = None
) -> Iterator[Outcome]:
    """Follow every source; one with a fault, or with an earlier output, does not stop the others.
    A folder in which nothing was written is not left.

    workers: 0: one after the other in this process; else that many actors of Ray
    Raises: ValueError, FileNotFoundError: of the weights or the device.
    """
    free = []
    try:
        for plan in given:
            try:
                following.check(plan.out, overwrite=how.overwrite)
            except PipelineError as error:
                yield Outcome(plan, Summary(), f"{type(error).__name__}: {error}")
            else:
                free.append(plan)
        if free and not workers:
            model = load(how)
            for plan in free:
                yield _outcome(plan, how, model, show)
        elif free:
            yield from _spread(free, how, workers)
    finally:
        for plan in free:  # the check made them
            with contextlib.suppress(OSError):  # it is not empty
                plan.out.rmdir()


def _spread(given: Sequence[Plan], how: Following, workers: int) -> Iterator[Outcome]:
    """Follow every source by a pool of actors, in the order in which they end."""
    with cluster.session(max(workers, 2)):
        gpus = 1.0 if how.device != "cpu" and cluster.gpus() else 0.0
        pool = cluster.Pool(1, min(workers, len(given)))
        resources.require(1, 1.0, gpus, instead="--device cpu")
        place = Path.cwd()
        absolute = [_absolute(plan, place) for plan in given]
        made = actors.work(_Worker, (_plain(how, place),), absolute, pool, gpus)
        with contextlib.closing(made), cluster.progress(len(given), "track", "sources") as bar:
            for outcome in made:
                yield outcome
                bar.update()


def _outcome(plan: Plan, how: Following, model: IDOL | None, show: Show | None) -> Outcome:
    summary = Summary()
    try:
        follow(plan, how, lambda: model, summary, show)
    except (PipelineError, ValueError, OSError) as error:
        return Outcome(plan, summary, f"{type(error).__name__}: {error}")
    return Outcome(plan, summary)


class _Worker:
    """An actor: one copy of the network, sources in, their files out."""

    def __init__(self, how: Following) -> None:
        import torch

        torch.set_num_threads(1)
        self._how, self._model = how, load(how)

    def work(self, plan: Plan) -> Outcome:
        """Follow one source."""
        return _outcome(plan, self._how, self._model, None)


def _absolute(plan: Plan, place: Path) -> Plan:
    """With paths that hold in another working directory."""
    local = not plan.source.startswith(live.CAMERA) and not is_remote(plan.source)
    source = str(place / plan.source) if local else plan.source
    return replace(plan, source=source, out=place / plan.out)


def _plain(how: Following, place: Path) -> Following:
    weights = how.weights
    if weights and not is_remote(weights) and (place / weights).is_file():
        weights = str(place / weights)
    tracker = how.tracker
    if tracker is not None and (place / tracker).is_file():
        tracker = str(place / tracker)
    return replace(how, weights=weights, tracker=tracker)


@contextlib.contextmanager
def _opened(name: str, every: int, start: float, end: float | None) -> Iterator[live.Source]:
    if not is_remote(name) or live.is_stream(name):
        yield live.open_source(name, every, start=start, end=end)
        return
    try:
        copy = video_cache.held(name)
    except (OSError, ValueError) as error:
        raise live.SourceError(f"{shown(name)}: the file cannot be read ({error})") from error
    with copy:
        yield live.open_source(copy.name, every, start=start, end=end)
