"""Videos → what pairs are drawn from (paper Sec. 3.2): dealt by the driver, made by Ray Data.

Videos are shuffled and fill shards one after the other: so a frame is read and decoded for one
shard alone. A row is a frame or, with pairs.sampling=stored, a pair, and then rows are shuffled in
their shard and the loader mixes shards. The driver writes a plan with a row group per shard, of
which a Ray Data task reads its own, then the frames, and commits the shard. The bytes depend on the
data and the configuration, never on who wrote which shard.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from idol.config import PairConfig, to_dict
from idol.ytvis.videos import Reject
from pipelines import cluster, gauges, preflight, resources
from pipelines.errors import PipelineError, VideoError, carried, raise_carried
from pipelines.sources import frames as frame_files
from pipelines.sources.annotations import Dataset, VideoRecord
from pipelines.stages import shard_rows
from pipelines.stages.reject_limit import check_rejects, tell_rejects
from pipelines.storage import claims, frame_store, layout, manifest, paths, schemas, tables
from pipelines.storage.layout import PREPARE
from pipelines.storage.manifest import Manifest
from pipelines.storage.paths import AnyPath, whole_file

# What the loader deals to workers is a row group: small ones keep its memory small.
_ROWS_PER_GROUP = 16
_PLAN = "_plan.parquet"
_ORDER = "shards of whole videos"

_log = logging.getLogger(__name__)


def usable_frames(video: VideoRecord, config: PairConfig) -> list[int]:
    """The frames that pairs can be drawn from; with config.pseudo those with an object.

    Raises: VideoError: the video has one frame, so no pair.
    """
    length = len(video.frames)
    if config.pseudo:
        objects = [i.segmentations for i in video.instances if not i.iscrowd]
        return [t for t in range(length) if any(masks[t] for masks in objects)]
    if length < 2:
        fault = (
            f"a pair needs 2 frames, the video has {length}; still images want pairs.pseudo=true"
        )
        raise VideoError(video.video_id, video.frames[0], fault)
    return list(range(length))


def rows_of(video: VideoRecord, config: PairConfig) -> list[tuple[int, ...]]:
    """The frames of every row of one video, in order of time. Raises: VideoError: as of `draw`."""
    if config.sampling == "stored":
        return [*sorted(draw(video, config))]
    return [(t,) for t in usable_frames(video, config)]


def draw(video: VideoRecord, config: PairConfig) -> list[tuple[int, int]]:
    """(key, reference) frame indices to store, seeded by the video and not by the worker.

    Each frame, in a random order, gets a partner drawn uniformly from the max_gap frames before
    and after it. With config.pseudo every frame with an object is its own partner.

    Raises: VideoError: the video has one frame, so no pair.
    """
    usable, length = usable_frames(video, config), len(video.frames)
    if config.pseudo:
        return [(t, t) for t in usable]
    rng = np.random.default_rng([config.seed % 2**64, video.video_id % 2**64])
    count = config.pairs_per_video or length
    anchors = np.concatenate([rng.permutation(length) for _ in range(-(-count // length))])[:count]
    drawn = []
    for anchor in anchors.tolist():
        low, high = max(0, anchor - config.max_gap), min(length - 1, anchor + config.max_gap)
        partner = int(rng.integers(low, high))
        partner += partner >= anchor  # the anchor itself is left out
        drawn.append((anchor, partner))
    if config.order == "released":
        return [(min(pair), max(pair)) for pair in drawn]
    return drawn


def run(
    dataset: Dataset,
    out: str | AnyPath,
    config: PairConfig,
    *,
    overwrite: bool = False,
    reject_limit: float | None = None,
    num_cpus: float = 0.5,
) -> Manifest:
    """Write the rows of all videos to out, then the manifest that says they are complete.

    A frame that cannot be read rejects the pairs that need it. A later call completes what an
    interrupted one left.

    reject_limit: see check_rejects; whoever raises it keeps the shards that are done
    num_cpus:     logical CPUs of one task; reading and decoding share their time
    Raises:
        PipelineError: there is no pair, or more than reject_limit of the videos have a fault.
        ManifestError: out holds something else.
    """
    plan, faults = deal(dataset, config, reject_limit)
    content = input_hash(dataset)
    output = claims.prepare_output(
        out, PREPARE, to_dict(config), content, frames=dataset.frames, overwrite=overwrite
    )
    done = output.finished
    if done is None:
        _write_shards(dataset, plan, output, config, num_cpus)
        total = len(plan)
        faults += output.rejects(total)
        rejected = check_rejects(dataset, faults, reject_limit)
        if not output.rows(total):
            _, path, reason = faults[0]
            raise PipelineError(f"no pair could be read. The first fault: {path}: {reason}")
        done = output.finish(
            total_shards=total,
            rejects=faults,
            extra={
                "categories": list(dataset.category_names),
                "category_ids": list(dataset.category_ids),
                "sources": [Path(source).name for source in dataset.sources],
                "videos": len(dataset.videos) + len(dataset.rejected_videos),
                "rejected_videos": len(rejected),
            },
        )
    tell_rejects(dataset, output.path, [r._asdict() for r in tables.read_rejects(output.path)])
    return done


def input_hash(dataset: Dataset) -> str:
    """Names the data set, and the order of the rows: shards in another order do not go together."""
    return manifest.hash_value([dataset.input_hash, _ORDER])


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Some of one video: its rows start..stop-1 in order of time; of nearly all videos, all.

    position: of the video in the data set
    """

    position: int
    start: int
    stop: int


def deal(
    dataset: Dataset, config: PairConfig, reject_limit: float | None
) -> tuple[list[list[Piece]], list[Reject]]:
    """Which rows each shard holds, and the rejects so far: all that is known without a frame.

    A shard is full when the next video does not fit; only a video with more rows than a shard is
    cut, in time, for its pieces then need few frames of each other.

    Raises: PipelineError: as of `run`.
    """
    check_rejects(dataset, dataset.rejects, reject_limit)
    sources = ", ".join(dataset.sources)
    if all(i.iscrowd for video in dataset.videos for i in video.instances):
        raise PipelineError(
            f"{sources}: no usable video has an annotated object, so there is nothing to learn "
            "from. Use the training set's annotations."
        )
    faults = list(dataset.rejects)
    shards: list[list[Piece]] = []
    free = 0
    order = np.random.default_rng(config.seed % 2**64).permutation(len(dataset.videos))
    for position in order.tolist():
        try:
            count = len(rows_of(dataset.videos[position], config))
        except VideoError as error:
            faults.append(Reject(*error.args))
            continue
        for start in range(0, count, config.rows_per_shard):
            stop = min(start + config.rows_per_shard, count)
            if stop - start > free:
                shards.append([])
                free = config.rows_per_shard
            free -= stop - start
            shards[-1].append(Piece(position=position, start=start, stop=stop))
    check_rejects(dataset, faults, reject_limit)
    if not shards:
        raise PipelineError(
            f"{sources}: no video has two frames, so there is no pair. Still images, as of COCO, "
            "are paired with themselves: a coco_* preset, or --set pairs.pseudo=true."
        )
    return shards, faults


def _write_shards(
    dataset: Dataset,
    plan: Sequence[Sequence[Piece]],
    output: claims.Output,
    config: PairConfig,
    num_cpus: float,
) -> None:
    """Hand every missing shard to a Ray Data task."""
    missing = output.missing(len(plan))
    if not missing:
        return
    path = output.path / _PLAN
    # Of all shards, the missing and the others: the same command in another process, which misses
    # other shards, writes the same plan.
    _write_plan(path, ([(dataset.videos[p.position], p) for p in shard] for shard in plan))
    write = partial(
        write_shard, out=output.path.resolve(), config=config, labels=dataset.labels, shards=missing
    )
    with cluster.session(), cluster.progress(len(missing), "prepare", "shards") as bar:
        import ray.data

        resources.require(1, num_cpus, instead="a larger --num-cpus")
        preflight.check(output.path, [frame_files.split(dataset.videos[0].frames[0])[0]])
        cluster.set_up_data()
        # One block per shard: a failed worker then costs one shard, and they spread evenly.
        places = ray.data.range(len(missing), override_num_blocks=len(missing))
        for row in places.map(write, num_cpus=num_cpus).iter_rows():
            raise_carried(row)
            gauges.count("prepare", "rejects", row["rejects"])
            if not row["rejects"]:
                output.note(row["shard"], row["rows"])
            _log.info("shard %d: %d rows, %d rejects", row["shard"], row["rows"], row["rejects"])
            bar.update()
    path.unlink(missing_ok=True)


def _write_plan(path: AnyPath, shards: Iterable[Sequence[tuple[VideoRecord, Piece]]]) -> None:
    """Write what tasks need to know, a row group per shard: the driver holds one at a time."""
    schema = pa.schema([("videos", pa.binary())])
    with whole_file(path) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        for shard in shards:
            writer.write_table(pa.table({"videos": [pickle.dumps(list(shard))]}, schema))


@carried
def write_shard(
    item: Mapping[str, Any],
    *,
    out: AnyPath,
    config: PairConfig,
    labels: Mapping[int, int],
    shards: Sequence[int],
) -> dict[str, Any]:
    """Read the frames of one shard and commit it: the work of one task.

    item:    {"id": position in shards}
    labels:  category_id → label
    shards:  numbers of shards to write
    returns: {"shard", "rows", "rejects"}
    """
    number = shards[item["id"]]
    path = layout.shard_path(out, number)
    if not path.exists():
        try:
            _write_shard(path, number, config, labels)
        except FileNotFoundError:
            # The same command in another process has finished first, and removed the plan.
            if not path.exists():
                raise
    rejects, rows = tables.shard_footer(path)
    return {"shard": number, "rows": rows, "rejects": len(rejects)}


def _write_shard(path: AnyPath, number: int, config: PairConfig, labels: Mapping[int, int]) -> None:
    import cv2

    cv2.setNumThreads(1)  # one task per core is faster than threads that fight for them
    with paths.open_input(path.parent / _PLAN) as plan, pq.ParquetFile(plan) as file:
        pieces = pickle.loads(file.read_row_group(number)["videos"][0].as_py())  # nosec B301
    rows = [
        (video, indices)
        for video, piece in pieces
        for indices in rows_of(video, config)[piece.start : piece.stop]
    ]
    if config.sampling == "released":
        frames = [shard_rows.planned_frame(video, t, labels) for video, (t,) in rows]
        stored, faults = shard_rows.fill_frames(frames, config)
        frame_store.commit(stored, path.parent, number, rejects=faults)
    else:
        pairs = [shard_rows.planned_pair(video, k, r, labels) for video, (k, r) in rows]
        order = np.random.default_rng([config.seed % 2**64, number]).permutation(len(pairs))
        stored, faults = shard_rows.fill_pairs([pairs[i] for i in order], config)
        table = schemas.table(stored, schemas.PAIRS)
        tables.commit(table, path, rejects=faults, row_group_size=_ROWS_PER_GROUP)
