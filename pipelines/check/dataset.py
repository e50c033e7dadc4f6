"""What a data set holds, what later jobs will refuse, leave out or repair, and what looks wrong.

The rules are those of the readers, the decoder and the stages: here they are applied and counted.
"""

from __future__ import annotations

import itertools
from array import array
from collections import Counter
from collections.abc import Container, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from idol.addresses import shown
from idol.analysis.cores import in_order, usable_cores
from idol.config import Config
from idol.ytvis.annotations import parse
from idol.ytvis.results import MAX_TRACKS
from idol.ytvis.truth import average_area, occlusion_score
from idol.ytvis.videos import Reject
from pipelines import cluster, formats
from pipelines.check import suspicions
from pipelines.check.suspicions import title
from pipelines.errors import PipelineError, VideoError
from pipelines.formats import Labels
from pipelines.report import gallery
from pipelines.report.check_page import EFFECTS, CheckReport, Effect, Finding
from pipelines.report.strips import Strip, evenly
from pipelines.sources import annotations as annotation_files
from pipelines.sources import frames as frame_files
from pipelines.sources.annotations import Dataset, VideoRecord
from pipelines.sources.frame_listing import FrameListing
from pipelines.sources.image_file import check_size
from pipelines.stages import pairs
from pipelines.stages.reject_limit import check_rejects
from pipelines.storage import paths

_SAMPLE = 500  # frames to decode: if one in a hundred is damaged, a sample without any is rare
_PICTURES = 6  # videos
_BINS = 12  # of a histogram

_Counts = list[tuple[str, int]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What is checked, and for which later jobs.

    annotations, frames, format: as of formats.read; JSON also at an address
    frames_read:  which frames are decoded; whether all exist is always looked up
    config:       its sections pairs and detect count
    reject_limit: see check_rejects
    """

    annotations: str
    frames: str | None = None
    format: str = "auto"
    frames_read: Literal["sample", "all", "none"] = "sample"
    purpose: Literal["train", "evaluate", "both"] = "both"
    config: Config
    reject_limit: float | None = None


class _Findings(dict[str, Finding]):
    """Kind of fault -> what was found of it; of_video: video_id -> kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.of_video: dict[int | None, dict[str, None]] = {}

    def add(
        self, effect: Effect, kind: str, place: str, video_id: int | None = None, times: int = 1
    ) -> None:
        found = self.setdefault(kind, Finding(effect, kind))
        found.times += times
        found.places.append(place)
        self.of_video.setdefault(video_id, {})[kind] = None


def run(request: Request) -> tuple[CheckReport, list[Strip]]:
    """Check a set; with the report come pictures of a few videos, of those with findings first.

    Raises: ValueError, PipelineError, OSError: it cannot be read as a whole.
    """
    labels, root = _labels(request)
    with annotation_files.judged(labels.origin):
        found = parse(labels.content, labels.origin)
    there, annotated = FrameListing(root), found.videos.items_in_order
    videos, faults = annotation_files.placed(annotated, labels.origin, there)
    dataset = Dataset(
        videos=videos,
        categories=found.categories,
        rejects=(*found.rejects, *faults),
        input_hash="",
        sources=(shown(labels.origin),),
        annotated=annotated,
        labelled=found.listed is not None,
    )
    told = _Findings()
    for name, reason in labels.left_out.items():
        told.add("left out", "videos that cannot be read from their format", f"{name}: {reason}")
    for repair, (times, first) in itertools.chain(labels.notes.items(), found.repairs.items()):
        told.add("repaired", repair, first, times=times)
    for rejects, kind in ((found.rejects, "annotations"), (faults, "frames")):
        for video_id, path, reason in rejects:
            place = f"video {video_id}: {path}: {reason}"
            told.add("left out", f"videos whose {kind} cannot be used", place, video_id)
    of_tracks = map(suspicions.of_tracks, annotated if dataset.labelled else ())
    for kind, place, video in itertools.chain(
        itertools.chain.from_iterable(of_tracks),
        suspicions.of_boxes(labels.content),
        suspicions.of_frames(videos, there),
        suspicions.of_names(annotated, found.categories.values()),
    ):
        told.add("to look at", kind, place, video)
    counts, categories, histograms = _counts(dataset)
    counts |= _listed(told, dataset, labels.origin, there)
    counts["frames_decoded"], unreadable = _decoded(told, videos, there, request.frames_read)
    _stages(told, dataset, unreadable, request)
    if request.purpose != "train":
        _scoring(told, dataset, request.config.detect.max_detections)
    report = CheckReport(
        annotations=shown(request.annotations),
        frames=shown(root),
        counts=counts,
        categories=categories,
        histograms=histograms,
        findings=sorted(told.values(), key=lambda f: (EFFECTS.index(f.effect), f.kind)),
    )
    return report, gallery.examples(dataset, _notes(dataset, told))


def _labels(request: Request) -> tuple[Labels, str]:
    """The labels, and the root of the frames."""
    path, frames = request.annotations, request.frames
    given = paths.as_written(frames) if frames else None
    labels = formats.read(paths.as_written(path), given, request.format)
    return labels, str(labels.frames)


def _listed(
    told: _Findings, dataset: Dataset, origin: str, there: FrameListing
) -> dict[str, dict[str, int]]:
    """How many files of frames are named, and are missing."""
    named = array("q")  # hashes: all names would take too much memory
    missing: dict[str, int] = {}
    for video in dataset.annotated:
        try:
            references = annotation_files.references(video, origin, there.root)
        except VideoError:
            continue  # it is among the rejects
        files = dict.fromkeys(frame_files.split(name)[0] for name in references)
        named.extend(map(hash, files))
        missing |= {path: video.video_id for path in files if there.bytes_of(path) is None}
    for path, video_id in missing.items():
        told.add("left out", "files of frames that do not exist", path, video_id)
    return {"frame_files": {"named": len(np.unique(named)), "missing": len(missing)}}


def _decoded(
    told: _Findings, videos: Sequence[VideoRecord], there: FrameListing, which: str
) -> tuple[int, list[Reject]]:
    """Decode frames: how many, and the rejects that come of it."""
    count = 0 if which == "none" else sum(map(len, videos))
    drawn: Container[int] = range(count)
    expected = count
    if which == "sample":
        drawn = set(np.random.default_rng(0).permutation(count)[:_SAMPLE].tolist())
        expected = min(_SAMPLE, count)

    def jobs() -> Iterator[tuple[VideoRecord, list[str]]]:
        first = 0
        for video in videos if count else ():
            names = [
                # An empty file is no image, and the listing tells of it.
                name
                for n, name in enumerate(video.frames, first)
                if n in drawn or not there.bytes_of(frame_files.split(name)[0])
            ]
            first += len(video)
            if names:
                yield video, names

    rejects, total = [], 0
    bar, cores = cluster.progress(expected, "decode", "frames"), usable_cores()
    with bar, ThreadPoolExecutor(cores) as pool:
        for names, faults in in_order(pool, _decode, jobs(), 4 * cores):
            bar.update(names)
            total += names
            for kind, times, error in faults:
                told.add("left out", kind, f"{error.path}: {error.reason}", error.video_id, times)
                rejects.append(Reject(*error.args))
    return total, rejects


def _decode(job: tuple[VideoRecord, list[str]]) -> tuple[int, list[tuple[str, int, VideoError]]]:
    """How many frames of a video were tried, and (kind, frames, error) of the faults."""
    video, names = job
    faults = []
    for path, group in frame_files.grouped(names):
        done = 0
        try:
            for image in frame_files.read_many(group, video_id=video.video_id):
                done += 1
                try:
                    check_size(image.shape, video.size, video_id=video.video_id, path=path)
                except VideoError as error:
                    faults.append(("frames of another size than the annotations say", 1, error))
        except VideoError as error:  # of a film, later frames are at fault with this one
            faults.append(("frames that cannot be decoded", len(group) - done, error))
    return len(names), faults


def _stages(
    told: _Findings, dataset: Dataset, unreadable: Sequence[Reject], request: Request
) -> None:
    """What jobs.prepare and jobs.evaluate leave out and refuse."""
    limit = request.reject_limit
    if request.purpose != "evaluate":
        for video in dataset.videos:
            try:
                pairs.rows_of(video, request.config.pairs)
            except VideoError as error:
                place = f"{title(video)}: {error.reason}"
                told.add("left out", "videos without a pair to train on", place, video.video_id)
        try:
            _, faults = pairs.deal(dataset, request.config.pairs, limit)
            check_rejects(dataset, [*faults, *unreadable], limit)
        except PipelineError as error:
            told.add("refused", "jobs.prepare will end with an error", str(error))
    if request.purpose != "train":
        try:
            check_rejects(dataset, [*dataset.rejects, *unreadable], limit)
        except PipelineError as error:
            told.add("refused", "jobs.evaluate will end with an error", str(error))


def _scoring(told: _Findings, dataset: Dataset, max_detections: int) -> None:
    """What has no metric, or counts in none."""
    tracks, seen, without = 0, set[int](), list[str]()
    for video in dataset.annotated:
        tracks += len(video.instances)
        seen.update(one.category_id for one in video.instances)
        silent = (occlusion_score(one.occlusion) is None for one in video.instances)
        without += [title(video)] * sum(silent)
        for category_id, count in Counter(i.category_id for i in video.instances).items():
            if count > MAX_TRACKS:
                kind = f"videos with more than {MAX_TRACKS} tracks of a category, as many as count"
                place = f"{title(video)}: {count} of {dataset.categories[category_id]}"
                told.add("not scored", kind, place, video.video_id)
        visible = (video.areas > 0).sum(axis=0)
        if visible.max() > max_detections:
            kind = f"videos with more than {max_detections} objects in a frame, as many as are kept"
            place = f"{title(video)}: {visible.max()} in frame {visible.argmax()}"
            told.add("not scored", kind, place, video.video_id)
    if not tracks:
        what = "an object, so that all metrics are -1" if dataset.labelled else "annotations"
        told.add("not scored", f"sets without {what}", dataset.sources[0])
        return
    if 0 < len(without) < tracks:
        kind = "tracks that do not say how occluded they are, so that AP_so, AP_mo, AP_ho are none"
        told.add("not scored", kind, without[0], times=len(without))
    for category_id in dataset.categories.keys() - seen:
        told.add("not scored", "categories without a track", dataset.categories[category_id])


def _counts(
    dataset: Dataset,
) -> tuple[dict[str, Any], list[dict[str, Any]], dict[str, _Counts]]:
    """Numbers of the whole set, those of each category, and histograms."""
    lengths, of_video, gaps = array("q"), array("q"), array("q")
    crowds = masks = 0
    words, by_size, powers = Counter[str](), Counter[str](), Counter[int]()
    columns = {i: Counter({"tracks": 0, "videos": 0, "frames": 0}) for i in dataset.categories}
    for video in dataset.annotated:
        lengths.append(video.length)
        of_video.append(len(video.instances))
        by_size[f"{video.size[0]}x{video.size[1]}"] += 1
        for one, areas in zip(video.instances, video.areas, strict=True):
            frames = np.flatnonzero(areas)
            gaps.append(int(np.diff(frames).max(initial=1)) - 1)
            masks += len(frames)
            crowds += one.crowd
            words.update(str(word) for word in one.occlusion if word is not None)
            columns[one.category_id].update(tracks=1, frames=len(frames))
        for category_id in {one.category_id for one in video.instances}:
            columns[category_id].update(videos=1)
        sides = (max(1.0, float(area)) ** 0.5 for area in average_area(video.areas))
        powers.update(int(np.log2(side)) for side in sides)
    sizes = by_size.most_common()
    sizes[_BINS:] = [("others", sum(n for _, n in sizes[_BINS:]))] if sizes[_BINS:] else []
    counts = {
        "videos": len(dataset.videos) + len(dataset.rejected_videos),
        "usable_videos": len(dataset.videos),
        "frames": sum(lengths),
        "frames_a_video": _spread(lengths),
        "videos_by_height_x_width": dict(sizes),
        "categories": len(dataset.categories),
        "tracks": len(gaps),
        "tracks_a_video": _spread(of_video),
        "tracks_with_gaps": sum(gap > 0 for gap in gaps),
        "longest_gap_in_frames": max(gaps, default=0),
        "crowd_regions": crowds,
        "masks": masks,
        "masks_by_occlusion": dict(sorted(words.items())),
    }
    histograms = {
        "Videos by their frames": _binned(lengths),
        "Videos by height x width": sizes,
        "Videos by their tracks": _binned(of_video),
        "Tracks by the root of their mean area, pixels": [
            (f"{2**n}–{2 ** (n + 1) - 1}", powers[n])
            for n in range(min(powers, default=0), max(powers, default=-1) + 1)
        ],
    }
    rows = [{"category_id": i, "name": n, **columns[i]} for i, n in dataset.categories.items()]
    return counts, rows, histograms


def _spread(values: Sequence[int]) -> dict[str, float]:
    numbers = np.array(values or [0])
    return {
        "min": int(numbers.min()),
        "median": float(np.median(numbers)),
        "max": int(numbers.max()),
    }


def _binned(values: Sequence[int]) -> _Counts:
    """How many values lie in each of a few ranges of equal width, from the least to the largest."""
    low, high = min(values, default=0), max(values, default=0)
    width = -(-(high - low + 1) // _BINS)
    found = Counter((value - low) // width for value in values)
    starts = range(low, high + 1, width)
    return [
        (f"{s}–{s + width - 1}" if width > 1 else str(s), found[n]) for n, s in enumerate(starts)
    ]


def _notes(dataset: Dataset, told: _Findings) -> dict[int, str]:
    """The videos to draw, with what was found in them: half of them at fault where there are."""
    usable = [video.video_id for video in dataset.videos]
    at_fault = [v for v in usable if v in told.of_video][: _PICTURES // 2]
    others = [v for v in usable if v not in at_fault]
    chosen = [others[place] for place in evenly(len(others), _PICTURES - len(at_fault))]
    return {v: "; ".join(told.of_video.get(v, ())) for v in [*at_fault, *chosen]}
