"""Pictures of a method's worst instances, found above true, for the page of scored files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from idol.analysis import clips
from idol.analysis.causes import Instance
from idol.analysis.clips import ClipTrack
from idol.analysis.shares import ErrorShares
from idol.images import visualize
from idol.ytvis.truth import VideoTruth
from pipelines.errors import VideoError
from pipelines.report import strips
from pipelines.report.strips import Image, Strip

_PICTURES = 6  # of each method
_FRAMES = 5  # of a picture
_DRAWN = 4  # tracks of the best scores in a picture, besides the instance's own


class Picture(NamedTuple):
    """One instance over time, with the tracks of a method; place: of the method on the page."""

    method: str
    place: int
    instance_id: int
    strip: Strip


def chosen_instances(errors: ErrorShares) -> list[Instance]:
    """Instances worth a picture: the worst, not more than two of one video."""
    of_video: Counter[int] = Counter()
    out = []
    for instance in errors.instances:
        if instance.lost > 0:
            of_video[instance.video_id] += 1
            if of_video[instance.video_id] <= 2:
                out.append(instance)
    return out[:_PICTURES]


def draw(
    instance: Instance,
    truth: VideoTruth,
    entries: Sequence[Mapping[str, Any]],
    indices: Sequence[int],
    files: Sequence[Path],
    categories: Mapping[int, str],
    video_name: str,
) -> Strip | None:
    """One instance drawn on a few of its frames, the worst among them; None without readable ones.

    entries, indices: results of its video, as of `clips.tracks_of`
    files:            image of each frame
    categories:       category_id -> name
    """
    span = np.linspace(instance.first_frame, instance.last_frame, _FRAMES).round()
    chosen = sorted({*span.astype(int).tolist(), instance.worst_frame})
    images = {t: image for t in chosen if (image := _read(files, t, truth.size)) is not None}
    if not images:
        return None
    name = categories.get(instance.category_id, str(instance.category_id))
    g = truth.instance_ids.tolist().index(instance.instance_id)
    true = [None if mask is None else mask["counts"] for mask in truth.masks[g]]
    found = _tracks(instance, truth.length, clips.tracks_of(entries, indices, truth), categories)
    marks = {instance.worst_frame: ", the worst"}
    return Strip(
        title=f"{name} {instance.instance_id} of video {video_name or truth.video_id}",
        caption=f"{instance.cause}: IoU {instance.iou:.2f}, with true identities "
        f"{instance.joined_iou:.2f}; shown in {instance.shown} of {instance.frames} frames by "
        f"{instance.tracks} {'track' if instance.tracks == 1 else 'tracks'}",
        frame_labels=[f"frame {t}{marks.get(t, '')}" for t in images],
        predictions=strips.draw(images, truth.size, found),
        truth=strips.draw(images, truth.size, [(g, name, true)]),
    )


def _tracks(
    instance: Instance, length: int, tracks: Sequence[ClipTrack], categories: Mapping[int, str]
) -> list[tuple[int, str, list[bytes | None]]]:
    """The tracks of the best scores and the instance's own, as `strips.draw` takes them."""
    best = [max(track.class_scores, key=track.class_scores.__getitem__) for track in tracks]
    scores = [track.class_scores[c] for track, c in zip(tracks, best, strict=True)]
    ranked = sorted(range(len(tracks)), key=lambda n: -scores[n])
    own = [n for n, track in enumerate(tracks) if instance.entry in track.positions.values()]
    out = []
    for n in sorted({*ranked[:_DRAWN], *own}):
        words = visualize.caption(categories.get(best[n], str(best[n])), n, scores[n])
        masks = [tracks[n].masks.get(t) for t in range(length)]
        out.append((n, words, [mask["counts"] if mask else None for mask in masks]))
    return out


def _read(files: Sequence[Path], frame: int, size: tuple[int, int]) -> Image | None:
    """A frame as (H, W, 3) RGB at the truth's size; None where there is no readable one."""
    if frame >= len(files):
        return None
    from pipelines.sources import frames  # with pyarrow, which scores without pictures do not need

    try:
        return frames.read(str(files[frame]), video_id=0, size=size)
    except VideoError:
        return None
