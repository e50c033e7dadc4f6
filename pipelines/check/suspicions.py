"""What no reader forbids and is seldom meant: copies, boxes off their masks, odd names.

Each is (kind, place, video_id or None). None of it changes what a job does.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from pycocotools import mask as coco_mask

from idol.images import live
from idol.masks import rle
from idol.spool import Mapped
from idol.ytvis.lazy_rows import whole
from idol.ytvis.repairs import Repairs
from idol.ytvis.videos import Video
from pipelines.sources import frames as frame_files
from pipelines.sources.annotations import VideoRecord
from pipelines.sources.frame_listing import FrameListing, blocks

Suspicion: TypeAlias = tuple[str, str, int | None]

SAME = "videos of the same frames as another"
SHARED = "videos that share frames with another"
COPIED = "videos whose files have the content of another's"
REPEATED = "videos that name a frame twice"
UNORDERED = "videos whose frames are not in the order of their names"
NO_TRACKS = "videos without a track"
ONE_FRAME = "tracks that are seen in one frame alone"
EQUAL = "tracks with the masks of another in half of their frames or more"
AREAS = "tracks whose stated areas are not those of their masks"
BOXES = "annotations whose stated boxes are not those of their masks"
NAMES = "names with characters that some systems do not take, or change"

# A polygon's area and box differ from those of its pixels by about its outline.
_AREA_SHARE, _AREA_PIXELS = 0.1, 16
_BOX_SHARE, _BOX_PIXELS = 0.05, 2.0
_ODD = frozenset('\\:*?"<>|#%')


def title(video: Video | VideoRecord) -> str:
    """What messages call a video."""
    return f"video {video.video_id}" + (f" ({video.name})" if video.name else "")


def of_tracks(video: Video) -> Iterator[Suspicion]:
    """What the masks of one video, and the areas stated for them, look like."""
    shown = (video.areas > 0).sum(axis=1).tolist()
    names = [f"{title(video)}: annotation {one.instance_id}" for one in video.instances]
    if not names:
        yield NO_TRACKS, title(video), video.video_id
    for name, frames, one, own in zip(names, shown, video.instances, video.areas, strict=True):
        if frames == 1 < video.length:
            yield ONE_FRAME, name, video.video_id
        stated = own if one.stated_areas is None else one.stated_areas
        room = np.maximum(_AREA_PIXELS, _AREA_SHARE * own)
        for t in np.flatnonzero(abs(stated - own) > room)[:1].tolist():
            place = f"{name}, frame {t}: {stated[t]:g}, the mask has {own[t]}"
            yield AREAS, place, video.video_id
    equal: Counter[tuple[int, int]] = Counter()
    for t in range(video.length):
        first: dict[bytes, int] = {}
        for g in np.flatnonzero(video.areas[:, t]).tolist():
            mask = video.instances[g].masks[t]
            assert mask is not None, "it has an area"
            equal[first.setdefault(mask["counts"], g), g] += 1
    for (f, g), count in sorted(equal.items()):
        if f != g and 2 * count >= min(shown[f], shown[g]):
            place = f"{names[g]}: {count} of {shown[g]} frames as {video.instances[f].instance_id}"
            yield EQUAL, place, video.video_id


def of_boxes(content: Mapping[str, Any]) -> Iterator[Suspicion]:
    """Boxes that parsed JSON states, of tracks or of images; what cannot be read is passed over."""
    sizes = {
        (key, str(row.get("id"))): (row.get("height"), row.get("width"))
        for key in ("video", "image")
        for row in map(whole, _rows(content.get(f"{key}s")))
    }
    for index, row in enumerate(map(whole, _rows(content.get("annotations")))):
        key, masks, boxes = "video", row.get("segmentations"), row.get("bboxes")
        if masks is None:
            key, masks, boxes = "image", [row.get("segmentation")], [row.get("bbox")]
        video = key, str(row.get(f"{key}_id"))
        if not isinstance(masks, list) or not isinstance(boxes, list):
            continue
        for t, (segmentation, box) in enumerate(zip(masks, boxes, strict=False)):
            try:
                own = _box(segmentation, sizes[video])
                stated = np.array(box, np.float64).reshape(4)
            except (ArithmeticError, LookupError, TypeError, ValueError):
                continue
            off = abs(np.append(stated[:2] - own[:2], stated[:2] + stated[2:] - own[:2] - own[2:]))
            if off.max() > max(_BOX_PIXELS, _BOX_SHARE * own[2:].max()):
                where = f"{' '.join(video)}, annotations[{index}], frame {t}"
                yield BOXES, f"{where}: {box}, the mask has {own.tolist()}", None
                break


def _rows(value: Any) -> Iterator[Mapping[str, Any]]:
    rows = value if isinstance(value, list | Mapped) else ()
    return (row for row in rows if isinstance(row, Mapping))


def _box(segmentation: Any, size: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    """x, y, width, height of a mask, 0 without a pixel. Raises: what there is to raise."""
    if isinstance(segmentation, list) and segmentation:
        segmentation = Repairs().polygons(segmentation, size, "")
    mask = rle.compress(segmentation, size)
    if mask is None:
        return np.zeros(4)
    if rle.check([mask])[1] is not None:
        raise ValueError("unreadable, which rejects its video")
    return np.asarray(coco_mask.toBbox(mask))


def of_frames(videos: Sequence[VideoRecord], there: FrameListing) -> Iterator[Suspicion]:
    """Frames that several videos have, by name or by content, and frames out of order."""
    # Hashes of the frames that are named more than once: all names would take too much memory.
    hashes = np.fromiter((hash(frame) for video in videos for frame in video.frames), np.int64)
    values, times = np.unique(hashes, return_counts=True)
    repeated = set(values[times > 1].tolist())
    owners: dict[str, int] = {}  # repeated frame -> place of its first video
    known: dict[int, int] = {}  # hash of the bytes of all files -> place of the first such video
    for place, video in enumerate(videos):
        others = Counter(owners[f] for f in dict.fromkeys(video.frames) if f in owners)
        for other, count in others.items():
            kind = SAME if videos[other].frames == video.frames else SHARED
            told = f"{title(video)}: {count} of {len(video)} frames are of {title(videos[other])}"
            yield kind, told, video.video_id
        if len(set(video.frames)) < len(video):
            yield REPEATED, title(video), video.video_id
        if list(video.frames) != sorted(video.frames, key=live.natural):
            yield UNORDERED, title(video), video.video_id
        for frame in video.frames:
            if hash(frame) in repeated:
                owners.setdefault(frame, place)
        files = [frame_files.split(frame) for frame in video.frames]
        if len(video) == 1 or others:
            continue  # single images of equally many bytes are many by chance
        sizes = hash(tuple((there.bytes_of(path), number) for path, number in files))
        earlier = known.setdefault(sizes, place)
        if earlier != place and _ends(first := videos[earlier], there) == _ends(video, there):
            yield COPIED, f"{title(video)}: as {title(first)}", video.video_id


def _ends(video: VideoRecord, there: FrameListing) -> list[bytes]:
    """Some bytes of the first and of the last file."""
    paths = (frame_files.split(video.frames[t])[0] for t in (0, -1))
    return [blocks(path, there.bytes_of(path) or 0) for path in paths]


def of_names(videos: Iterable[Video], categories: Iterable[str]) -> Iterator[Suspicion]:
    """Names of categories, videos and frames; of a video the first."""
    yield from ((NAMES, f"category {name!r}", None) for name in categories if _is_odd(name))
    for video in videos:
        paths = [frame_files.split(name)[0] for name in video.file_names or ()]
        for name in list(filter(_is_odd, [video.name, *paths]))[:1]:
            yield NAMES, f"{title(video)}: {name!r}", video.video_id


def _is_odd(name: str) -> bool:
    return (
        not name.isprintable()
        or not _ODD.isdisjoint(name)
        or any(part != part.strip() for part in name.split("/"))
        or name != unicodedata.normalize("NFC", name)  # macOS writes file names in another form
    )
