"""What annotation JSON holds, typed: categories, videos, instances with their masks."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from idol.masks import rle
from idol.spool import Keyed
from idol.ytvis.repairs import Repairs

Rle: TypeAlias = dict[str, Any]
"""{"size": [height, width], "counts": compressed bytes}, as pycocotools takes it."""


_FARTHEST = 1 << 16  # pixels: no side of a frame is longer

Box: TypeAlias = tuple[float, float, float, float]
"""(x, y, width, height) in pixels."""


class Reject(NamedTuple):
    """A video that cannot be used: its id, the file at fault, the rule and what came instead."""

    video_id: int
    path: str
    reason: str


@dataclass(frozen=True, slots=True, eq=False)
class Instance:
    """One annotation of a video of T frames.

    instance_id:  unique in the file and not 0; in compat mode the file's own
    masks:        (T,) RLE of the video's size, None where absent; in compat mode as many as given
    stated_areas: (T,) pixels that the file states, 0 where it says null; None: states none
    occlusion:    (T,) OVIS's words, None where absent; (): none
    boxes:        (T,) stated (x, y, width, height) in pixels of images, None where unusable; (): of
                  videos, whose boxes are those of their masks
    """

    instance_id: int
    category_id: int
    crowd: bool
    masks: tuple[Rle | None, ...]
    stated_areas: NDArray[np.float64] | None = None
    occlusion: tuple[Any, ...] = ()
    boxes: tuple[Box | None, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Video:
    """One video of T frames with G instances, in the file's order.

    size:       (height, width) in pixels
    file_names: (T,) relative paths of the frames; None: the file names none
    name:       what the file calls it, or ""
    areas:      (G, T) pixels of every mask, 0 where absent
    """

    video_id: int
    size: tuple[int, int]
    length: int
    file_names: tuple[str, ...] | None
    name: str
    instances: tuple[Instance, ...]
    areas: NDArray[np.int64]

    def strided(self, stride: int) -> Video:
        """Frames 0, stride, 2·stride, ... of it, and the instances that are seen there."""
        if stride == 1:
            return self
        areas = self.areas[:, ::stride]
        seen: list[bool] = (areas.sum(axis=1) > 0).tolist()
        every = slice(None, None, stride)
        return dataclasses.replace(
            self,
            length=len(range(0, self.length, stride)),
            file_names=self.file_names and self.file_names[every],
            areas=areas[np.array(seen, bool)],
            instances=tuple(
                dataclasses.replace(
                    one,
                    masks=one.masks[every],
                    stated_areas=None if one.stated_areas is None else one.stated_areas[every],
                    occlusion=one.occlusion[every],
                    boxes=one.boxes[every],
                )
                for one in itertools.compress(self.instances, seen)
            ),
        )


@dataclass(frozen=True, slots=True, eq=False)
class Annotations:
    """What a file holds, everything ascending by id.

    origin:     the file's name
    categories: category_id -> name, both unique
    videos:     video_id -> Video, read again at each access
    rejects:    videos left out
    listed:     annotations in the file; None: it has no such list, as where truth is not public
    """

    origin: str
    categories: dict[int, str]
    videos: Keyed[Video]
    rejects: tuple[Reject, ...]
    repairs: Repairs
    listed: int | None


def checked_areas(
    tracks: Sequence[Sequence[Rle | None]], length: int, names: Sequence[str]
) -> NDArray[np.int64]:
    """Areas (G, length) of G tracks' masks, 0 where absent.

    names:  (G,) what messages call the tracks
    Raises: ValueError: a mask does not fill its size.
    """
    areas, wrong = rle.check_tracks(tracks, length)
    if wrong is not None:
        mask = tracks[wrong[0]][wrong[1]]
        assert mask is not None
        covered = int(rle.measure([mask["counts"]])[0][0])
        height, width = mask["size"]
        raise ValueError(
            f"{names[wrong[0]]}, frame {wrong[1]}: the RLE "
            f"{'is unreadable' if covered < 0 else f'covers {covered} pixels'}, "
            f"a frame has {height * width} pixels"
        )
    return areas


def stated_box(stated: Any) -> Box | None:
    """A box as a file states it; None where it is none, and the mask's own has to do."""
    if not isinstance(stated, list) or len(stated) != 4:
        return None
    if not all(type(side) in (int, float) and abs(side) <= _FARTHEST for side in stated):
        return None
    x, y, width, height = map(float, stated)
    return (x, y, width, height) if min(width, height) >= 0 else None
