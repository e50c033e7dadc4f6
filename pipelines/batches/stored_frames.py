"""Released sampling (specification 5.1, 5.2): clips drawn at each visit, from frames stored once.

Why frames and not pairs or windows of a video: docs/internals/performance.md, "What is stored for
training".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from idol.arrays import Bools, Floats32, Ints
from idol.config import PairConfig
from idol.images.transforms import Clip, Frame
from idol.masks.rle import decode_masks
from pipelines.batches.samples import (
    Identities,
    Sample,
    check_labels,
    decoding,
    instances_of,
    numbers_of,
)
from pipelines.batches.video_order import VideoOrder, Visit
from pipelines.errors import intact
from pipelines.sources import image_file
from pipelines.storage import frame_store, layout, paths
from pipelines.storage.paths import AnyPath


def number_instances(directory: str | AnyPath) -> set[tuple[int, int]]:
    """(video_id, instance_id) of every instance that is stored."""
    index, _ = frame_store.read_index(directory, ["video_id", "instance_ids"])
    found: set[tuple[int, int]] = set()
    for chunk in index.to_batches():
        lists = chunk.column("instance_ids")
        found |= instances_of(chunk.column("video_id"), lists, lists.flatten())
    return found


def draw(
    frames: npt.NDArray[np.integer[Any]], keys: Ints, config: PairConfig, rng: np.random.Generator
) -> list[int]:
    """The positions of the frames of one clip: key and reference, or more.

    A frame is drawn, and clip - 1 others one by one from the max_gap frames before and after it, as
    networks of clips are trained; of a pair that is the partner of the paper.

    frames: (T,) frame indices of a video, ascending
    keys:   positions in frames of those with another within max_gap
    """
    key = int(rng.choice(keys))
    if config.pseudo:
        return [key] * config.clip
    reach = frames[key] + np.array([-config.max_gap, config.max_gap + 1])
    low, high = np.searchsorted(frames, reach)
    count = config.clip - 1
    if config.distinct and count < high - low:
        others = rng.choice(np.arange(low, high - 1), count, replace=False)
    else:
        others = rng.integers(low, high - 1, count)
    chosen = [key, *(others + (others >= key)).tolist()]  # the frame itself is left out
    return sorted(chosen) if config.order == "released" else chosen


def clip_of_rows(rows: Sequence[Mapping[str, Any]], identities: Identities | None = None) -> Clip:
    """Rows of FRAMES of one video as pixels, with the instances of any of them, by ascending id.

    identities: numbers for Clip.identities, -1 for instances that are not in it; None: no numbers
    Raises: VideoError: a stored frame cannot be decoded.
    """
    video_id = int(rows[0]["video_id"])
    labels = {one["instance_id"]: one["label"] for row in rows for one in row["instances"]}
    places = {instance_id: g for g, instance_id in enumerate(sorted(labels))}
    made: dict[int, Frame] = {}
    for row in rows:
        if row["frame_index"] not in made:
            made[row["frame_index"]] = _frame(row, video_id, places)
    return Clip(
        frames=tuple(made[row["frame_index"]] for row in rows),
        labels=np.array([labels[instance_id] for instance_id in places], np.int64),
        identities=numbers_of(video_id, list(places), identities),
    )


def _frame(row: Mapping[str, Any], video_id: int, places: Mapping[int, int]) -> Frame:
    size, instances = (int(row["height"]), int(row["width"])), row["instances"]
    path = f"frame {row['frame_index']}"
    image = image_file.decode(row["jpeg"], video_id=video_id, path=path, size=size)
    here = [places[one["instance_id"]] for one in instances]
    masks: Bools = np.zeros((len(places), *size), np.bool_)
    masks[here] = decode_masks([one["rle"] for one in instances], size)
    boxes: Floats32 | None = None
    if any(one["box"] is not None for one in instances):
        boxes = np.full((len(places), 4), np.nan, np.float32)
        for place, one in zip(here, instances, strict=True):
            boxes[place] = np.nan if one["box"] is None else one["box"]
    return Frame(image, masks, boxes)


class StoredFrames:
    """The visits to the videos of a directory.

    config:     how clips are drawn
    batch:      clips of a whole batch, of all workers
    group:      see VideoOrder
    classes:    of the network: another label is a fault of the data
    identities: see clip_of_rows
    Raises: ManifestError: the directory is unfinished or damaged.
    """

    def __init__(
        self,
        directory: str | AnyPath,
        config: PairConfig,
        *,
        batch: int,
        group: int,
        seed: int,
        classes: int,
        identities: Identities | None = None,
    ) -> None:
        self._config, self._seed, self._classes = config, seed, classes
        self._identities = identities
        self._folder, self._reader = paths.at(directory), frame_store.FrameReader(directory)
        columns = ["video_id", "frame_index", "height", "width", "offset", "length", "checksum"]
        index, shards = frame_store.read_index(directory, columns)
        facts = {name: index.column(name).to_numpy() for name in columns}
        order = np.lexsort([facts["frame_index"], facts["video_id"]])
        self._videos: npt.NDArray[np.int64] = facts["video_id"][order]
        self._frames: npt.NDArray[np.int32] = facts["frame_index"][order]
        # 33 bytes a frame stay in memory, in every worker.
        facts |= {"shard": shards.astype(np.int32), "checksum": facts["checksum"].astype(np.uint32)}
        where = ("shard", "offset", "length", "checksum")
        self._places = [facts[name][order] for name in where]
        same = self._videos[1:] == self._videos[:-1]  # as the row before
        near = same & (np.diff(self._frames) <= config.max_gap)
        self._usable: Bools = np.append(near, False)[: len(order)]
        self._usable |= np.append(False, near)[: len(order)]
        self._usable |= config.pseudo
        # Of each video that can be visited: its first row, and the row after its last.
        cuts = np.flatnonzero(np.concatenate([[True], ~same, [True]])[: len(order) + 1])
        bounds = np.stack([cuts[:-1], cuts[1:]], 1)
        seen = np.append(0, np.cumsum(self._usable))
        self._bounds = bounds[seen[bounds[:, 1]] > seen[bounds[:, 0]]]
        height, width = (facts[name][order][self._bounds[:, 0]] for name in ("height", "width"))
        self._order = VideoOrder(width > height, batch, group, seed=seed)

    def __len__(self) -> int:
        return len(self._bounds)

    def name(self, rank: int, step: int) -> str:
        """The frames that a place of a step's batch has, for a message."""
        rows, _ = self._drawn(next(self._order.visits(rank, step)))
        return f"video {self._videos[rows[0]]}, frames " + " and ".join(
            str(self._frames[row]) for row in rows
        )

    def stream(self, rank: int, step: int) -> Iterator[Callable[[], Sample]]:
        """What a place of the batch has from a step on; nothing but its frames is read."""
        for visit in self._order.visits(rank, step):
            yield partial(self._sample, visit)

    def _drawn(self, visit: Visit) -> tuple[list[int], np.random.Generator]:
        """The rows of a visit's frames, and what draws on."""
        rng = np.random.default_rng([self._seed % 2**64, visit.number, 4])
        first, stop = self._bounds[visit.video].tolist()
        keys = np.flatnonzero(self._usable[first:stop])
        drawn = draw(self._frames[first:stop], keys, self._config, rng)
        return [first + place for place in drawn], rng

    def _sample(self, visit: Visit) -> Sample:
        places, rng = self._drawn(visit)
        rows = {place: self._row(place) for place in set(places)}
        with decoding(layout.frames_path(self._folder, int(self._places[0][places[0]]))):
            clip = clip_of_rows([rows[place] for place in places], self._identities)
            check_labels(clip, self._classes)
        return Sample(clip, rng)

    def _row(self, place: int) -> dict[str, Any]:
        """A row of FRAMES."""
        where = [int(column[place]) for column in self._places]
        row = self._reader.read(*where)
        stated = (int(self._videos[place]), int(self._frames[place]))
        found = (row["video_id"], row["frame_index"])
        with intact(layout.frames_path(self._folder, where[0])):
            if found != stated:
                raise ValueError(f"it has (video, frame) {found} in the place of {stated}")
        return row
