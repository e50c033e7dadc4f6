"""All videos of some evaluations, as what the player of a page reads."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any, Final

from idol import spool
from idol.spool import Spool
from pipelines.errors import VideoError
from pipelines.report.strips import evenly
from pipelines.report.viewer import clip, timeline
from pipelines.report.viewer.timeline import Span, Timeline
from pipelines.sources import frames
from pipelines.sources.annotations import Dataset, VideoRecord
from pipelines.storage import stored
from pipelines.storage.paths import AnyPath
from pipelines.storage.reports import EvaluationReport, VideoMetrics
from pipelines.storage.schemas import ResultTrack
from pipelines.storage.stored import StoredDetections

_DRAWN_SCORE: Final = 0.3  # tracks below it are many and would hide the picture
_AT_LEAST: Final = 3  # tracks of a video in which none reaches that score


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How large the clips of a page may become."""

    total: int = 26_000_000
    """Characters of all clips; with the rest a page stays below 30 MB."""
    most: int = 700_000
    """Characters of one video's clip."""
    least: int = 40_000
    """Where there is less for each video, only some videos get a clip."""

    def __post_init__(self) -> None:
        if min(self.total, self.most, self.least) < 0 or self.least > self.most:
            raise ValueError(f"a budget must be 0 or more, and least at most most, got {self}")

    def share(self, videos: int) -> tuple[int, int]:
        """(videos that get a clip, characters for each)."""
        clips = videos if self.least == 0 else min(videos, self.total // self.least)
        return clips, min(self.most, self.total // max(1, clips))


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """A finished evaluation, opened.

    name:   how the page calls it
    tracks: its track directory, made from source
    """

    name: str
    report: EvaluationReport
    dataset: Dataset
    source: StoredDetections
    tracks: AnyPath


@dataclass(frozen=True, slots=True, kw_only=True)
class Viewer:
    """What the player reads.

    data:  plain JSON types: runs, sets, videos; see `templates/viewer.js`
    parts: name -> film or map as base64, read when its video is opened
    note:  which videos have no clip, and why; or nothing
    """

    data: Mapping[str, Any] = field(default_factory=lambda: {"runs": [], "sets": [], "videos": []})
    parts: Mapping[str, str] = field(default_factory=dict)
    note: str = ""


def collect(runs: Sequence[Evaluated], budget: Budget | None = None) -> Viewer:
    """All videos of these evaluations; those of the same videos and frames stand side by side.

    Raises: ManifestError: stored results are damaged. Frames that cannot be read any more are no
    error: the page says which videos have no pictures.
    """
    sets: dict[str, list[int]] = {}
    for number, run in enumerate(runs):
        sets.setdefault(run.report.selection.input_hash, []).append(number)
    jobs = [
        _Job(place, video, {number: runs[number] for number in numbers})
        for place, numbers in enumerate(sets.values())
        for video in runs[numbers[0]].dataset.videos
    ]
    count, share = (budget or Budget()).share(len(jobs))
    # From the worst to the best, evenly, so that neither fills the page.
    ranked = sorted(range(len(jobs)), key=lambda n: (jobs[n].worst, n))
    chosen = {ranked[place] for place in evenly(len(ranked), count)} if count else set()
    jobs = [replace(job, budget=share if n in chosen else 0) for n, job in enumerate(jobs)]
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        made = list(pool.map(_Job.entry, jobs))
    parts: dict[str, str] = {}
    for number, (entry, found) in enumerate(made):
        if found is None:
            continue
        named = {"film": found.film, **found.maps}
        entry["clip"] = f"clip-{number}"
        entry["frames"], entry["pixels"] = list(found.frames), list(found.size)
        parts |= {
            f"clip-{number}-{name}": base64.b64encode(data).decode("ascii")
            for name, data in named.items()
        }
    entries = [entry for entry, _ in made]
    data = {
        "runs": [
            {"name": run.name, "set": list(sets).index(run.report.selection.input_hash)}
            for run in runs
        ],
        "sets": [_set_name([runs[n] for n in numbers]) for numbers in sets.values()],
        "videos": entries,
    }
    return Viewer(data=data, parts=parts, note=_note(entries, chosen))


@dataclass(frozen=True, slots=True)
class _Job:
    """One video with all runs on it: number -> run; budget in characters, 0: no clip."""

    place: int
    video: VideoRecord
    runs: Mapping[int, Evaluated]
    budget: int = 0

    @property
    def worst(self) -> float:
        """The lowest AP that a run has here; 2 without truth."""
        rows = [_metrics(run, self.video.video_id) for run in self.runs.values()]
        return min((row.stats["AP"] for row in rows if row is not None), default=2.0)

    def entry(self) -> tuple[dict[str, Any], clip.Clip | None]:
        """The video for the page, and its clip where it has one."""
        video, names = self.video, next(iter(self.runs.values())).dataset.categories
        instances = video.instances[: clip.MOST_LAYERS]
        entry: dict[str, Any] = {
            "set": self.place,
            "id": video.video_id,
            "name": video.name,
            "length": len(video),
            "truth": [
                {
                    "name": names[one.category_id],
                    "spans": _flat(timeline.presence(one.segmentations), value=False),
                }
                for one in instances
            ],
            "runs": {},
        }
        layers: dict[str, list[timeline.Masks]] = {}
        if instances:
            layers["truth"] = [one.segmentations for one in instances]
        for number, run in self.runs.items():
            entry["runs"][str(number)], drawn = _run(run, video)
            layers[f"run{number}"] = [result.segmentations for result in drawn]
        if not self.budget:
            return entry, None
        budget = self.budget * 3 // 4  # base64 makes 4 characters of 3 bytes
        size = clip.clip_size(video.size, budget)
        shown = clip.shown_frames(len(video))
        references = [video.frames[t] for t in shown]
        try:
            read = frames.read_many(references, video_id=video.video_id, size=video.size)
            images = [clip.shrunk(image, size) for image in read]
        except VideoError as error:
            entry["why"] = str(error)
            return entry, None
        return entry, clip.make(images, shown, layers, video.size, budget)


def _run(run: Evaluated, video: VideoRecord) -> tuple[dict[str, Any], list[ResultTrack]]:
    """What one run found in a video, and the tracks that are drawn, the best first."""
    positions = {known.video_id: n for n, known in enumerate(run.source.videos)}
    if video.video_id not in positions:
        return {"tracks": [], "shown": [], "switches": [], "found": 0}, []
    results = stored.read_results(run.tracks, positions[video.video_id], run.source)
    best: dict[int, ResultTrack] = {}
    store = Spool[bytes | None]()
    for result in results:  # every track once, under its best class
        if result.track_id not in best or result.score > best[result.track_id].score:
            best[result.track_id] = replace(
                result, segmentations=spool.stored(store, result.segmentations)
            )
    instances = [one.segmentations for one in video.instances[: clip.MOST_LAYERS]]
    belong = timeline.follow({n: r.segmentations for n, r in best.items()}, instances, video.size)
    drawn = _drawn(list(best.values()), belong)
    position = {result.track_id: n for n, result in enumerate(drawn)}
    names, metrics = run.dataset.category_names, _metrics(run, video.video_id)
    return {
        "ap": None if metrics is None else round(metrics.stats["AP"], 4),
        "counted": None if metrics is None else metrics.switches,
        "found": len(best),
        "tracks": [
            {
                "id": result.track_id,
                "name": names[result.label],
                "score": round(result.score, 3),
                "truth": belong.partner.get(result.track_id),
                "spans": _flat(timeline.presence(result.segmentations), value=False),
            }
            for result in drawn
        ],
        "shown": [
            _flat(s._replace(value=position[s.value]) for s in row if s.value in position)
            for row in belong.shown
        ],
        "switches": [list(switch) for switch in belong.switches],
    }, drawn


def _drawn(results: Sequence[ResultTrack], belong: Timeline) -> list[ResultTrack]:
    """What is worth drawing, by score: strong tracks, and those that show a true instance."""
    ranked = sorted(results, key=lambda result: (-result.score, result.track_id))
    showing = {span.value for row in belong.shown for span in row}
    strong = [r for r in ranked if r.score >= _DRAWN_SCORE or r.track_id in showing]
    return (strong or ranked[:_AT_LEAST])[: clip.MOST_LAYERS]


def _flat(spans: Iterable[Span], *, value: bool = True) -> list[int]:
    """first, last and value of each span in a row; a third shorter without the value."""
    return [number for span in spans for number in (span if value else span[:2])]


def _metrics(run: Evaluated, video_id: int) -> VideoMetrics | None:
    """The metrics of one video; None without truth."""
    return next((row for row in run.report.per_video if row.video_id == video_id), None)


def _set_name(runs: Sequence[Evaluated]) -> str:
    """The run's name where it is alone on its videos, else the folder of the labels."""
    if len(runs) == 1:
        return runs[0].name
    path = PurePosixPath(runs[0].report.selection.annotations)
    return path.parent.name or path.stem


def _note(videos: Sequence[Mapping[str, Any]], chosen: set[int]) -> str:
    """Which videos have no clip, in words."""
    said = []
    if len(chosen) < len(videos):
        said.append(
            f"Clips of {len(chosen)} of {len(videos)} videos, evenly from the worst to the best by "
            "AP: more would make the page too large. The others have their timelines."
        )
    unread = [video["why"] for video in videos if "why" in video]
    if unread:
        said.append(f"Of {len(unread)} videos the frames cannot be read here: {unread[0]}")
    return " ".join(said)
