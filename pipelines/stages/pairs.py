"""Videos → key/reference pairs (paper Sec. 3.2): drawn on the driver, filled with pixels by Ray.

Drawing needs the annotations only. So the driver draws every pair, shuffles them over all videos
and cuts them into shards; a Ray Data task per shard reads the frames of its rows and commits one
parquet file. The bytes depend on the data and the configuration, never on who wrote which shard.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines import cluster
from pipelines.errors import PipelineError, VideoError
from pipelines.sources import frames
from pipelines.storage import claims, schemas, tables
from pipelines.storage.layout import PREPARE as STAGE

if TYPE_CHECKING:  # workers read, resize and encode: none of that needs torch, which idol imports
    from idol.config import PairConfig
    from pipelines.sources.annotations import Dataset, VideoRecord
from pipelines.storage.manifest import Manifest

# Rows are read by a few training workers at once: small groups keep their memory small.
_ROWS_PER_GROUP = 32

# A pair before its frames are read: PAIRS with references in place of the bytes.
_PLAN = pa.schema(
    [
        schemas.PAIRS.field("video_id"),
        schemas.PAIRS.field("key_index"),
        schemas.PAIRS.field("reference_index"),
        schemas.PAIRS.field("height"),
        schemas.PAIRS.field("width"),
        pa.field("key_frame", pa.string(), nullable=False),
        pa.field("reference_frame", pa.string(), nullable=False),
        schemas.PAIRS.field("instances"),
    ]
)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Storage:
    """How frames are stored: what a worker needs of PairConfig.

    max_side:     longer side at most this, in pixels; 0: as they are
    jpeg_quality: of frames that must be encoded
    """

    max_side: int
    jpeg_quality: int


def draw(video: VideoRecord, config: PairConfig) -> list[tuple[int, int]]:
    """(key, reference) frame indices of one video, seeded by the video and not by the worker.

    One frame after the other, in a random order, gets a partner drawn uniformly from the
    max_gap frames before and after it. With config.pseudo every frame is its own partner, and
    frames without an object are left out.
    Errors: VideoError for a video of one frame, which has no pair
    """
    length = len(video.frames)
    if config.pseudo:
        seen = [any(i.segmentations[t] for i in video.instances if not i.iscrowd)
                for t in range(length)]  # fmt: skip
        return [(t, t) for t in range(length) if seen[t]]
    if length < 2:
        raise VideoError(
            video.video_id,
            video.frames[0],
            f"a pair needs 2 frames, the video has {length}; still images want pairs.pseudo=true",
        )
    rng = np.random.default_rng([config.seed % 2**64, video.video_id % 2**64])
    count = config.pairs_per_video or length
    anchors = np.concatenate([rng.permutation(length) for _ in range(-(-count // length))])[:count]
    drawn = []
    for anchor in anchors.tolist():
        low, high = max(0, anchor - config.max_gap), min(length - 1, anchor + config.max_gap)
        partner = int(rng.integers(low, high))
        partner += partner >= anchor  # the anchor itself is left out
        if config.order == "released":
            drawn.append((min(anchor, partner), max(anchor, partner)))
        else:
            drawn.append((anchor, partner))
    return drawn


def pairs_of_video(
    video: VideoRecord, config: PairConfig, labels: Mapping[int, int]
) -> Iterator[dict[str, Any]]:
    """Yield the PAIRS rows of one video, in the order drawn.

    labels: category_id → label
    Errors: VideoError where the video has one frame, or a frame cannot be read
    """
    storage = Storage(config.max_side, config.jpeg_quality)
    for key, reference in draw(video, config):
        plan = _plan_row(video, key, reference, labels)
        stored, faults = _fill([plan], storage)
        if faults:
            raise VideoError(**faults[0])
        yield from stored


def run(
    dataset: Dataset,
    out: str | Path,
    config: PairConfig,
    *,
    overwrite: bool = False,
    num_cpus: float = 0.5,
    progress: Any = None,
) -> Manifest:
    """Write the pairs of all videos to out, then the manifest that says they are complete.

    Ray must be running (pipelines.cluster.session). Rows are in a seeded random order over all
    videos. A frame that cannot be read rejects the pairs that need it.
    out:       a new directory, or one left by the same call, which is then completed
    overwrite: delete an earlier output first
    num_cpus:  logical CPUs of one task; reading and decoding share their time
    progress:  called with the number of shards to do; gives a bar with update() and close()
    returns:   the manifest; extra has the categories and the counts of videos
    Errors:    PipelineError where no pair can be drawn, or more than max_reject_fraction of the
               videos have a fault; ManifestError where out holds something else
    """
    from idol.config import to_dict

    _refuse_rejects(dataset, {row["video_id"]: row for row in dataset.rejects}, config)
    if not any(not i.iscrowd for video in dataset.videos for i in video.instances):
        raise PipelineError(
            f"{', '.join(dataset.sources)}: no usable video has an annotated object, so there is "
            "nothing to learn from. Use the training set's annotations."
        )
    plan, faults = _draw_all(dataset, config)
    _refuse_rejects(dataset, {row["video_id"]: row for row in faults}, config)
    if not plan:
        raise PipelineError(
            f"{', '.join(dataset.sources)}: no video has two frames, so there is no pair. Still "
            "images, as of COCO, are paired with themselves: a coco_* preset, or "
            "--set pairs.pseudo=true."
        )
    recorded = to_dict(config)
    # No row depends on the limit: whoever raises it keeps the shards that are done.
    del recorded["max_reject_fraction"]
    output = claims.prepare_output(out, STAGE, recorded, dataset.input_hash, overwrite=overwrite)
    if output.finished is not None:
        return output.finished
    total = -(-len(plan) // config.rows_per_shard)
    _write_shards(dataset, plan, output, total, config, num_cpus, progress)

    faults += [row for i in range(total) for row in tables.shard_rejects(output.shard(i))]
    rejected = {int(row["video_id"]): row for row in faults}
    _refuse_rejects(dataset, rejected, config)
    if not any(tables.count_rows(output.shard(i)) for i in range(total)):
        raise PipelineError(
            f"no pair could be read. The first fault: {faults[0]['path']}: {faults[0]['reason']}"
        )
    return output.finish(
        total_shards=total,
        rejects=faults,
        extra={
            "categories": list(dataset.category_names),
            "category_ids": list(dataset.category_ids),
            "sources": [Path(source).name for source in dataset.sources],
            "videos": len(_all_videos(dataset)),
            "rejected_videos": len(rejected),
            "max_reject_fraction": config.max_reject_fraction,
        },
    )


def write_shard(item: Mapping[str, Any], storage: Storage) -> dict[str, int]:
    """Read the frames of one shard's pairs and commit its file: the work of one task.

    item:    {"shard": number, "path": where, "plan": an Arrow IPC stream of planned rows}
    returns: {"shard", "rows", "rejects"}
    """
    import cv2

    cv2.setNumThreads(1)  # one task per core is faster than threads that fight for them
    with pa.ipc.open_stream(item["plan"]) as stream:
        plan = stream.read_all().to_pylist()
    stored, faults = _fill(plan, storage)
    tables.commit(
        schemas.table(stored, schemas.PAIRS),
        Path(str(item["path"])),
        rejects=faults,
        row_group_size=_ROWS_PER_GROUP,
    )
    return {"shard": int(item["shard"]), "rows": len(stored), "rejects": len(faults)}


def _draw_all(
    dataset: Dataset, config: PairConfig
) -> tuple[list[tuple[int, int, int]], list[dict[str, Any]]]:
    """(position of the video, key, reference) of every pair, shuffled; and the rejects so far."""
    pairs: list[tuple[int, int, int]] = []
    faults = list(dataset.rejects)
    for position, video in enumerate(dataset.videos):
        try:
            pairs += [(position, key, reference) for key, reference in draw(video, config)]
        except VideoError as error:
            faults.append(_reject(error))
    order = np.random.default_rng(config.seed % 2**64).permutation(len(pairs))
    return [pairs[i] for i in order], faults


def _write_shards(
    dataset: Dataset,
    plan: Sequence[tuple[int, int, int]],
    output: claims.Output,
    total: int,
    config: PairConfig,
    num_cpus: float,
    progress: Any,
) -> None:
    """Hand every missing shard to a Ray Data task."""
    missing = output.missing(total)
    if not missing:
        return
    cluster.require(1, num_cpus)
    import ray.data

    labels = dataset.labels

    def item(shard: int) -> dict[str, Any]:
        cut = plan[shard * config.rows_per_shard : (shard + 1) * config.rows_per_shard]
        rows = [_plan_row(dataset.videos[v], key, reference, labels) for v, key, reference in cut]
        sink = io.BytesIO()
        with pa.ipc.new_stream(sink, _PLAN) as stream:
            stream.write_table(schemas.table(rows, _PLAN))
        path = str(output.shard(shard).resolve())
        return {"shard": shard, "path": path, "plan": sink.getvalue()}

    context = ray.data.DataContext.get_current()
    bars = context.enable_progress_bars
    context.enable_progress_bars = False  # ours counts shards; Ray's would draw over it
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    bar = progress(len(missing)) if progress is not None else None
    try:
        # One block per shard: a failed worker then costs one shard, and they spread evenly.
        shards = ray.data.from_items([item(i) for i in missing], override_num_blocks=len(missing))
        storage = Storage(config.max_side, config.jpeg_quality)
        done = shards.map(partial(write_shard, storage=storage), num_cpus=num_cpus)
        for row in done.iter_rows():
            log.info("shard %d: %d rows, %d rejects", row["shard"], row["rows"], row["rejects"])
            if bar is not None:
                bar.update(1)
    finally:
        context.enable_progress_bars = bars
        if bar is not None:
            bar.close()


def _plan_row(
    video: VideoRecord, key: int, reference: int, labels: Mapping[int, int]
) -> dict[str, Any]:
    """One pair before its frames are read. Objects seen in neither frame, and crowds, are out."""
    instances = [
        {
            "instance_id": instance.instance_id,
            "label": labels[instance.category_id],
            "key_rle": instance.segmentations[key],
            "reference_rle": instance.segmentations[reference] if reference != key else None,
        }
        for instance in video.instances
        if not instance.iscrowd
        and (instance.segmentations[key] or instance.segmentations[reference])
    ]
    return {
        "video_id": video.video_id,
        "key_index": key,
        "reference_index": reference,
        "height": video.size[0],
        "width": video.size[1],
        "key_frame": video.frames[key],
        "reference_frame": video.frames[reference],
        "instances": instances,
    }


def _fill(
    plan: Sequence[Mapping[str, Any]], storage: Storage
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Planned rows with their frames read, and the rejects of those that cannot be.

    Every frame is read once, video files forwards.
    """
    wanted: dict[str, tuple[int, tuple[int, int]]] = {}
    for row in plan:
        for name in (row["key_frame"], row["reference_frame"]):
            wanted[name] = (row["video_id"], (row["height"], row["width"]))
    encoded: dict[str, bytes] = {}
    faults: dict[str, dict[str, Any]] = {}
    for _, group in frames.grouped(list(wanted)):
        reader: frames.VideoReader | None = None
        try:
            for reference in group:
                video_id, size = wanted[reference]
                try:
                    path, number = frames.split(reference)
                    if number is not None and reader is None:
                        reader = frames.VideoReader(path, video_id=video_id)
                    encoded[reference] = frames.read_encoded(
                        reference,
                        video_id=video_id,
                        size=size,
                        stored_size=_stored_size(size, storage.max_side),
                        quality=storage.jpeg_quality,
                        reader=reader,
                    )
                except VideoError as error:
                    faults[reference] = _reject(error)
        finally:
            if reader is not None:
                reader.close()
    stored = [
        _stored_row(row, encoded, storage.max_side)
        for row in plan
        if row["key_frame"] in encoded and row["reference_frame"] in encoded
    ]
    return stored, [faults[name] for name in sorted(faults)]


def _stored_row(
    row: Mapping[str, Any], encoded: Mapping[str, bytes], max_side: int
) -> dict[str, Any]:
    size = (row["height"], row["width"])
    stored = _stored_size(size, max_side)
    instances = row["instances"]
    if stored != size:
        instances = [
            {
                **instance,
                "key_rle": _resize_mask(instance["key_rle"], size, stored),
                "reference_rle": _resize_mask(instance["reference_rle"], size, stored),
            }
            for instance in instances
        ]
        # A few pixels may vanish; an object that is in neither frame any more is none.
        instances = [i for i in instances if i["key_rle"] or i["reference_rle"]]
    return {
        "video_id": row["video_id"],
        "key_index": row["key_index"],
        "reference_index": row["reference_index"],
        "height": stored[0],
        "width": stored[1],
        "key_jpeg": encoded[row["key_frame"]],
        # A frame paired with itself is stored once.
        "reference_jpeg": b"" if _is_pseudo(row) else encoded[row["reference_frame"]],
        "instances": instances,
    }


def _is_pseudo(row: Mapping[str, Any]) -> bool:
    """Whether key and reference of a row are one frame."""
    return bool(row["key_index"] == row["reference_index"])


def _stored_size(size: tuple[int, int], max_side: int) -> tuple[int, int]:
    """(height, width) with the longer side at most max_side; never larger. 0: unchanged."""
    if max_side == 0 or max(size) <= max_side:
        return size
    scale = max_side / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _resize_mask(
    counts: bytes | None, size: tuple[int, int], stored: tuple[int, int]
) -> bytes | None:
    """A mask at the stored size, nearest pixel; None where nothing of it is left."""
    if counts is None:
        return None
    from idol.masks import resize

    mask = resize.decode([counts], size)[0]
    small = mask[np.ix_(_centres(size[0], stored[0]), _centres(size[1], stored[1]))]
    return resize.encode(small[None])[0] if small.any() else None


def _centres(source: int, target: int) -> npt.NDArray[np.intp]:
    """The source pixel under the centre of each target pixel."""
    middle = (np.arange(target) + 0.5) * source / target
    return np.minimum(middle, source - 1).astype(np.intp)


def _reject(error: VideoError) -> dict[str, Any]:
    return {"video_id": error.video_id, "path": error.path, "reason": error.reason}


def _all_videos(dataset: Dataset) -> set[int]:
    return {video.video_id for video in dataset.videos} | dataset.rejected_videos


def _refuse_rejects(
    dataset: Dataset, rejected: Mapping[int, Mapping[str, Any]], config: PairConfig
) -> None:
    """Fail the stage where too many videos have a fault: then the data set is at fault."""
    total = len(_all_videos(dataset))
    if len(rejected) > config.max_reject_fraction * total:
        first = rejected[min(rejected)]
        raise PipelineError(
            f"{len(rejected)} of {total} videos have a fault, more than the limit of "
            f"{config.max_reject_fraction:.0%}. The first is video {min(rejected)}: "
            f"{first['path']}: {first['reason']}. Mend the data, or raise "
            "pairs.max_reject_fraction."
        )
