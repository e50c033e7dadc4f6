"""The truth of a video data set as scoring needs it."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from idol.spool import Keyed, Mapped
from idol.ytvis import annotations as annotation_files
from idol.ytvis.videos import Reject, Rle, Video, checked_areas

OCCLUSION_SCORES = {"no_occlusion": 0.0, "slight_occlusion": 0.25, "severe_occlusion": 0.75}
"""OVIS's score of each per-frame word."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class VideoTruth:
    """The G true instances of one video of T frames, in the file's order. Picklable.

    size:          (height, width) in pixels
    length:        T
    categories:    category_id of every class of the data set, ascending
    instance_ids, category_ids, crowd: (G,)
    average_areas: (G,) mean of the file's `areas` over frames with any, as the official
                   evaluator has it; of the masks where the file states none
    occlusion:     (G,) OVIS occlusion score in [0, 1], or None where the data set has none
    areas:         (G, T) pixels of every mask, 0 where absent
    masks:         G tuples of T masks, None where absent; () after without_masks. In compat mode
                   a tuple has as many masks as the file, and areas as many columns as the longest
    file_names:    (T,) relative paths of the frames; (): none are named, or after without_masks
    """

    video_id: int
    size: tuple[int, int]
    length: int
    categories: tuple[int, ...]
    instance_ids: NDArray[np.int64]
    category_ids: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    average_areas: NDArray[np.float64]
    occlusion: NDArray[np.float64] | None
    areas: NDArray[np.int64]
    masks: tuple[tuple[Rle | None, ...], ...]
    file_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.instance_ids)

    def without_masks(self) -> VideoTruth:
        """The same for scoring from stored overlaps: small enough to send with every task."""
        return dataclasses.replace(self, masks=(), file_names=())


@dataclass(frozen=True, slots=True, eq=False)
class Truth:
    """A data set's truth.

    categories: category_id -> name, ascending
    videos:     video_id -> VideoTruth, ascending; made again at each access, see idol.spool
    left_out:   ids of videos whose truth cannot be read: neither they nor their results are scored
    names:      video_id -> what the file calls the video, or the folder of its first frame, or ""
    """

    categories: dict[int, str]
    videos: Mapping[int, VideoTruth]
    left_out: frozenset[int] = frozenset()
    names: dict[int, str] = field(default_factory=dict)

    def leaves_out(self, entry: Any) -> bool:
        """Whether an entry of results.json is of a video that is not scored."""
        video_id = entry.get("video_id") if isinstance(entry, Mapping) else None
        return isinstance(video_id, int) and video_id in self.left_out


def average_area(areas: NDArray[Any]) -> NDArray[np.float64]:
    """(N,) mean over the frames in which there is any area, 0 where there never is.

    areas: (N, T) pixels per frame
    """
    mean: NDArray[np.float64] = areas.sum(axis=1) / np.maximum((areas > 0).sum(axis=1), 1)
    return mean


def read(source: Truth | Mapping[str, Any] | str | Path, *, compat: bool = False) -> Truth:
    """Read the truth of annotations; rules as of `annotations.parse`.

    source: path of the JSON, the parsed JSON, or a Truth (returned as it is)
    compat: score what the official evaluator scores, as it does
    Raises:
        FileNotFoundError, IsADirectoryError: the path names no file.
        ValueError: the file is no annotation file, holds no truth, or none that can be read.
    """
    if isinstance(source, Truth):
        return source
    found = annotation_files.read(source, compat=compat)
    if found.listed is None and not compat:
        raise ValueError(
            f"{found.origin} has no annotations: the truth of this split is not public. Submit the "
            "results to the benchmark's server, or score on a split that has truth."
        )
    if not found.videos:
        first = found.rejects[0]
        raise ValueError(
            f"{found.origin} has no video with truth that can be read. The first, video "
            f"{first.video_id}: {first.reason}"
        )
    return of_videos(found.categories, found.videos.items_in_order, found.rejects)


def of_videos(
    categories: Mapping[int, str], videos: Sequence[Video], rejects: Iterable[Reject] = ()
) -> Truth:
    """The truth of videos read from annotations.

    categories: category_id -> name, ascending
    rejects:    videos whose truth cannot be read, which a warning names
    """
    left_out = {row.video_id: f"video {row.video_id} ({row.reason})" for row in rejects}
    if left_out:
        _log.warning(
            "%d of %d videos are not scored, for their truth cannot be read: %s%s",
            len(left_out),
            len(left_out) + len(videos),
            ", ".join(list(left_out.values())[:10]),
            ", ..." if len(left_out) > 10 else "",
        )
    names: dict[int, str] = {}
    scores: dict[int, list[float | None]] = {}
    for video in videos:
        first = (video.file_names or ("",))[0]
        names[video.video_id] = video.name or first.rpartition("/")[0]
        scores[video.video_id] = [occlusion_score(one.occlusion) for one in video.instances]
    ids, ascending = list(names), sorted(names)
    if not any(scores.values()):
        _log.warning(
            "the truth has no object in any of %d videos, so there is nothing to find: AP and the "
            "other metrics are -1. Where a benchmark keeps its truth, submit the results instead",
            len(videos),
        )
    occlusion = _occlusion({video_id: scores[video_id] for video_id in ascending})
    make = partial(_of_video, categories=tuple(categories), occlusion=occlusion)
    order = sorted(range(len(ids)), key=ids.__getitem__)
    return Truth(
        categories=dict(categories),
        videos=Keyed(ascending, Mapped(make, videos, order)),
        left_out=frozenset(left_out),
        names={video_id: names[video_id] for video_id in ascending},
    )


def from_masks(
    video_id: int,
    size: tuple[int, int],
    length: int,
    categories: Iterable[int],
    *,
    instance_ids: Sequence[int],
    category_ids: Sequence[int],
    crowd: Sequence[bool],
    segmentations: Sequence[Sequence[bytes | None]],
) -> VideoTruth:
    """Truth of one video from masks at hand: selected frames, merged data sets, generated videos.

    instance_ids, category_ids, crowd: (G,)
    segmentations: G lists of T compressed RLE counts of this size, or None
    returns:       average areas are those of the masks, and there is no occlusion
    Raises:        ValueError: a mask cannot be read or is of another size, or lengths differ.
    """
    if not len(instance_ids) == len(category_ids) == len(crowd) == len(segmentations):
        raise ValueError("instance_ids, category_ids, crowd and segmentations differ in length")
    masks = tuple(
        tuple(None if c is None else {"size": list(size), "counts": c} for c in counts)
        for counts in segmentations
    )
    areas = checked_areas(masks, length, [f"instance {i}" for i in instance_ids])
    return VideoTruth(
        video_id=video_id,
        size=size,
        length=length,
        categories=tuple(sorted(int(c) for c in categories)),
        instance_ids=np.array(instance_ids, np.int64),
        category_ids=np.array(category_ids, np.int64),
        crowd=np.array(crowd, bool),
        average_areas=average_area(areas),
        occlusion=None,
        areas=areas,
        masks=masks,
    )


def without_instances(video_id: int, size: tuple[int, int], length: int) -> VideoTruth:
    """A video without instances: all that checking its results needs to know."""
    return from_masks(
        video_id,
        size,
        length,
        (),
        instance_ids=(),
        category_ids=(),
        crowd=(),
        segmentations=(),
    )


def _of_video(
    video: Video, categories: tuple[int, ...], occlusion: Mapping[int, list[float]] | None
) -> VideoTruth:
    rows = video.instances
    averages = average_area(video.areas)
    for g, instance in enumerate(rows):
        if instance.stated_areas is not None:
            # Summed as the official code does: entries that are null or 0 do not count.
            kept = instance.stated_areas[instance.stated_areas != 0]
            averages[g] = kept.mean() if len(kept) else 0.0
    return VideoTruth(
        video_id=video.video_id,
        size=video.size,
        length=video.length,
        categories=categories,
        instance_ids=np.array([i.instance_id for i in rows], np.int64),
        category_ids=np.array([i.category_id for i in rows], np.int64),
        crowd=np.array([i.crowd for i in rows], bool),
        average_areas=averages,
        occlusion=None if occlusion is None else np.array(occlusion[video.video_id], np.float64),
        areas=video.areas,
        masks=tuple(i.masks for i in rows),
        file_names=video.file_names or (),
    )


def _occlusion(scores: Mapping[int, list[float | None]]) -> dict[int, list[float]] | None:
    """The (G,) occlusion scores by video_id; None unless every instance has one."""
    known = {v: [s for s in row if s is not None] for v, row in scores.items()}
    total, having = (sum(map(len, rows.values())) for rows in (scores, known))
    if 0 < having < total:
        _log.warning(
            "no occlusion metrics: %d of %d instances do not say how occluded they are, the first "
            "in video %d, which needs per frame null or one of %s, at least once not null",
            total - having,
            total,
            next(v for v, row in scores.items() if None in row),
            ", ".join(OCCLUSION_SCORES),
        )
    return known if 0 < having == total else None


def occlusion_score(words: Sequence[Any]) -> float | None:
    """OVIS score of one instance, the mean of the upper half of its frames; None without words."""
    present = [word for word in words if word is not None]
    if not present or any(not isinstance(w, str) or w not in OCCLUSION_SCORES for w in present):
        return None
    scores = sorted((OCCLUSION_SCORES[word] for word in present), reverse=True)
    upper = scores[: (len(scores) + 1) // 2]
    return sum(upper) / len(upper)
