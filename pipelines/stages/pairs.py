"""Videos → key/reference pairs (paper Sec. 3.2): drawn on the driver, filled with pixels by Ray.

Drawing needs the annotations only. So the driver draws every pair, shuffles them over all videos
and cuts them into shards; a Ray Data task per shard reads the frames of its rows and commits one
parquet file. The bytes depend on the data and the configuration, never on who wrote which shard.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from idol.config import PairConfig, to_dict
from idol.ytvis.videos import Reject
from pipelines import cluster
from pipelines.errors import PipelineError, VideoError, carried, raise_carried
from pipelines.sources.annotations import Dataset, VideoRecord
from pipelines.stages import pair_rows
from pipelines.stages.reject_limit import check_rejects
from pipelines.storage import claims, schemas, tables
from pipelines.storage.layout import PREPARE
from pipelines.storage.manifest import Manifest

# Rows are read by a few training workers at once: small groups keep their memory small.
_ROWS_PER_GROUP = 32

_log = logging.getLogger(__name__)


def draw(video: VideoRecord, config: PairConfig) -> list[tuple[int, int]]:
    """(key, reference) frame indices of one video, seeded by the video and not by the worker.

    Each frame, in a random order, gets a partner drawn uniformly from the max_gap frames before
    and after it. With config.pseudo every frame with an object is its own partner.

    Raises: VideoError: the video has one frame, so no pair.
    """
    length = len(video.frames)
    if config.pseudo:
        objects = [i.segmentations for i in video.instances if not i.iscrowd]
        return [(t, t) for t in range(length) if any(masks[t] for masks in objects)]
    if length < 2:
        fault = (
            f"a pair needs 2 frames, the video has {length}; still images want pairs.pseudo=true"
        )
        raise VideoError(video.video_id, video.frames[0], fault)
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
    out: str | Path,
    config: PairConfig,
    *,
    overwrite: bool = False,
    num_cpus: float = 0.5,
) -> Manifest:
    """Write the pairs of all videos to out, then the manifest that says they are complete.

    Rows are in a seeded random order over all
    videos. A frame that cannot be read rejects the pairs that need it. A later call completes
    what an interrupted one left.

    num_cpus: logical CPUs of one task; reading and decoding share their time
    Raises:
        PipelineError: there is no pair, or more than max_reject_fraction of the videos have a
            fault.
        ManifestError: out holds something else.
    """
    plan, faults = _draw_all(dataset, config)
    recorded = to_dict(config)
    # No row depends on the limit: whoever raises it keeps the shards that are done.
    del recorded["max_reject_fraction"]
    output = claims.prepare_output(
        out, PREPARE, recorded, dataset.input_hash, frames=dataset.frames, overwrite=overwrite
    )
    if output.finished is not None:
        return output.finished
    total = _write_shards(dataset, plan, output, config, num_cpus)
    faults += output.rejects(total)
    rejected = _check_rejects(dataset, faults, config)
    if not any(tables.count_rows(output.shard(number)) for number in range(total)):
        _, path, reason = faults[0]
        raise PipelineError(f"no pair could be read. The first fault: {path}: {reason}")
    return output.finish(
        total_shards=total,
        rejects=faults,
        extra={
            "categories": list(dataset.category_names),
            "category_ids": list(dataset.category_ids),
            "sources": [Path(source).name for source in dataset.sources],
            "videos": len(dataset.videos) + len(dataset.rejected_videos),
            "rejected_videos": len(rejected),
            "max_reject_fraction": config.max_reject_fraction,
        },
    )


def _check_rejects(dataset: Dataset, rejects: Iterable[Reject], config: PairConfig) -> set[int]:
    return check_rejects(dataset, rejects, config.max_reject_fraction, "pairs.max_reject_fraction")


@carried
def write_shard(item: Mapping[str, Any], config: PairConfig) -> dict[str, Any]:
    """Read the frames of one shard's pairs and commit its file: the work of one task.

    item:    {"shard": number, "path": where, "plan": pickled list of PlannedPair}
    returns: {"shard", "rows", "rejects"}
    """
    import cv2

    cv2.setNumThreads(1)  # one task per core is faster than threads that fight for them
    stored, faults = pair_rows.fill(pickle.loads(item["plan"]), config)
    table, path = schemas.table(stored, schemas.PAIRS), Path(item["path"])
    tables.commit(table, path, rejects=faults, row_group_size=_ROWS_PER_GROUP)
    return {"shard": int(item["shard"]), "rows": len(stored), "rejects": len(faults)}


_Plan = list[tuple[int, int, int]]
"""(position of the video, key, reference) of every pair, in the order of the rows."""


def _draw_all(dataset: Dataset, config: PairConfig) -> tuple[_Plan, list[Reject]]:
    """All pairs, shuffled over the videos, and the rejects so far."""
    _check_rejects(dataset, dataset.rejects, config)
    sources = ", ".join(dataset.sources)
    if all(i.iscrowd for video in dataset.videos for i in video.instances):
        raise PipelineError(
            f"{sources}: no usable video has an annotated object, so there is nothing to learn "
            "from. Use the training set's annotations."
        )
    pairs: _Plan = []
    faults = list(dataset.rejects)
    for position, video in enumerate(dataset.videos):
        try:
            pairs += [(position, key, reference) for key, reference in draw(video, config)]
        except VideoError as error:
            faults.append(Reject(*error.args))
    _check_rejects(dataset, faults, config)
    if not pairs:
        raise PipelineError(
            f"{sources}: no video has two frames, so there is no pair. Still images, as of COCO, "
            "are paired with themselves: a coco_* preset, or --set pairs.pseudo=true."
        )
    order = np.random.default_rng(config.seed % 2**64).permutation(len(pairs))
    return [pairs[i] for i in order], faults


def _write_shards(
    dataset: Dataset, plan: _Plan, output: claims.Output, config: PairConfig, num_cpus: float
) -> int:
    """Hand every missing shard to a Ray Data task; the number of shards."""
    total = -(-len(plan) // config.rows_per_shard)
    missing = output.missing(total)
    if not missing:
        return total
    labels = dataset.labels

    def item(shard: int) -> dict[str, Any]:
        start = shard * config.rows_per_shard
        pairs = [
            pair_rows.planned(dataset.videos[position], key, reference, labels)
            for position, key, reference in plan[start : start + config.rows_per_shard]
        ]
        path = str(output.shard(shard).resolve())
        return {"shard": shard, "path": path, "plan": pickle.dumps(pairs)}

    with cluster.session(), cluster.progress(len(missing), "prepare", "shards") as bar:
        import ray.data

        cluster.require(1, num_cpus, instead="a larger --num-cpus")
        cluster.set_up_data()
        # One block per shard: a failed worker then costs one shard, and they spread evenly.
        shards = ray.data.from_items([item(i) for i in missing], override_num_blocks=len(missing))
        done = shards.map(partial(write_shard, config=config), num_cpus=num_cpus)
        for row in done.iter_rows():
            raise_carried(row)
            _log.info("shard %d: %d rows, %d rejects", row["shard"], row["rows"], row["rejects"])
            bar.update()
    return total
