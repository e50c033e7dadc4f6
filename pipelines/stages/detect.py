"""Frames to stored detections: the network runs here, once per checkpoint and dataset."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

import idol
from idol.config import Config, to_dict
from idol.detection.detector import Detector
from idol.evaluation.overlaps import frame_overlap
from idol.network.layers import Network
from idol.network.model import IDOL
from idol.spool import Mapped
from idol.structures import FrameDetections
from idol.weights import checkpoint
from idol.ytvis.videos import Reject
from pipelines import actors as actors_of
from pipelines import cluster, gauges, preflight, resources
from pipelines.errors import ResourcesError, VideoError, carried, raise_carried
from pipelines.sources import frames as frame_files
from pipelines.sources.annotations import Dataset
from pipelines.stages import shard_plan
from pipelines.stages.frame_reader import Frame, read_ahead
from pipelines.stages.reject_limit import check_rejects
from pipelines.stages.shard_plan import Piece, Shard
from pipelines.storage import claims, layout, paths, schemas, tables
from pipelines.storage.manifest import Manifest
from pipelines.storage.paths import AnyPath

_NETWORK = "_network.safetensors"
"""The network, for the actors: beside the shards, where every machine and a restarted actor find
it (an object of Ray's store may be lost with its machine)."""
_READ_AHEAD = 2  # batches decoded in advance

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ShardRows:
    """What one shard becomes: rows of DETECTIONS, OVERLAP and REJECTS, in (video, frame) order."""

    detections: list[dict[str, Any]]
    overlaps: list[dict[str, Any]]
    rejects: list[Reject]


def detect_pieces(
    detector: Detector, pieces: Sequence[Piece], config: Config, *, truth: bool
) -> ShardRows:
    """Run the network over the frames of a shard.

    Frames of one shape share a batch, also across videos. Batches never cross shards, so the
    numbers do not depend on how shards are dealt out. A video of which any frame cannot be read
    has no rows, but a reject with the reason.

    truth: also make OVERLAP rows
    """
    rejects: dict[int, VideoError] = {}
    detections: list[dict[str, Any]] = []
    overlaps: list[dict[str, Any]] = []
    for frame, seen in found(detector, pieces, config, rejects):
        piece = frame.piece
        detections.append(schemas.detections_to_row(seen, piece.video_id, piece.size))
        if truth:
            instances = [instance[frame.offset] for instance in piece.truth]
            overlap = frame_overlap(seen.masks, instances, piece.size, frame.index)
            overlaps.append(schemas.overlap_to_row(overlap, piece.video_id))

    def kept(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        rows = [row for row in rows if row["video_id"] not in rejects]
        return sorted(rows, key=lambda row: (row["video_id"], row["frame_index"]))

    faults = [Reject(*fault.args) for fault in rejects.values()]
    return ShardRows(kept(detections), kept(overlaps), faults)


def found(
    detector: Detector, pieces: Sequence[Piece], config: Config, rejects: dict[int, VideoError]
) -> Iterator[tuple[Frame, FrameDetections]]:
    """What the network finds in the frames of pieces, in the order of the batches.

    rejects: gets the faults of videos; frames of theirs may have come before
    """
    yield from _detections(
        detector, _batches(pieces, detector, config.detect.batch_frames, rejects)
    )


def _batches(
    pieces: Sequence[Piece], detector: Detector, size: int, rejects: dict[int, VideoError]
) -> Iterator[list[Frame]]:
    """The frames in batches of one shape; the faults of videos are put into rejects."""
    waiting: dict[object, list[Frame]] = {}
    for frame in read_ahead(pieces, detector, _READ_AHEAD * size):
        if isinstance(frame, VideoError):
            rejects[frame.video_id] = frame
            continue
        shape = frame.prepared.shape
        waiting.setdefault(shape, []).append(frame)
        if len(waiting[shape]) == size:
            yield waiting.pop(shape)
    yield from waiting.values()


def _detections(
    detector: Detector, batches: Iterator[list[Frame]]
) -> Iterator[tuple[Frame, FrameDetections]]:
    """What is found in each frame. A GPU computes the next batch while one is taken from here."""
    before: tuple[list[Frame], Callable[[], list[FrameDetections]]] = ([], lambda: [])
    for batch in batches:
        result = detector.start(
            [frame.prepared for frame in batch], [frame.index for frame in batch]
        )
        yield from zip(before[0], before[1](), strict=True)
        before = (batch, result)
    yield from zip(before[0], before[1](), strict=True)


def run(
    dataset: Dataset,
    model: IDOL,
    out: AnyPath,
    config: Config,
    *,
    actors: cluster.Pool | int | None = None,
    gpu: bool | None = None,
    overwrite: bool = False,
    reject_limit: float | None = None,
    on_shard: Callable[[int], None] | None = None,
) -> Manifest:
    """Write the detections of all videos to out, then the manifest that says they are complete.

    Where the dataset has truth, the OVERLAP table is made in the same pass. An interrupted run is
    continued by the same call: shards that are there are not redone, and the bytes are the same.

    model:     in eval mode
    config:    its transforms and detect sections count here
    actors:    copies of the network, or how many at least and at most; default: one per GPU, else
               one per two logical CPUs
    gpu:       True: on GPUs, waiting for a cluster that grows; False: on CPUs; None: on GPUs where
               the cluster has any now
    overwrite: replace another run's output
    reject_limit: see check_rejects
    on_shard:  called with the number of every shard in out: those of an earlier run, then each new
    Raises:
        ManifestError: out holds something else.
        PipelineError: more than reject_limit of the videos cannot be read.
        ResourcesError: Ray has too few CPUs or GPUs.
    """
    shards = shard_plan.plan(dataset.videos, config.detect.frames_per_shard)
    content = input_hash(dataset, model)
    output = claims.prepare_output(
        out, layout.DETECT, claim(config), content, frames=dataset.frames, overwrite=overwrite
    )
    if output.finished is not None:
        return output.finished
    todo = output.missing(len(shards))
    _log.info("%d of %d shards are there already", len(shards) - len(todo), len(shards))
    on_shard = on_shard or (lambda number: None)
    for number in sorted(set(range(len(shards))) - set(todo)):
        on_shard(number)
    if todo:
        arguments = (config, out.resolve(), dataset.labelled, bool(gpu))
        _detect(model, shards, todo, output, actors, gpu, on_shard, arguments)
    rejects = [*dataset.rejects, *output.rejects(len(shards))]
    rejected = check_rejects(dataset, rejects, reject_limit)
    videos = shard_plan.stored_videos(shards).values()
    return output.finish(
        total_shards=len(shards),
        rejects=dataset.rejects,
        extra={
            "videos": [video.to_json() for video in videos if video.video_id not in rejected],
            "num_classes": config.model.num_classes,
            "embedding_size": config.model.embedding_size,
            "truth": dataset.labelled,
        },
    )


class DetectActor:
    """One copy of the network, in an actor: shards in, finished parquet files out.

    config:      its transforms and detect sections count here
    out:         the directory to write, which also holds the network
    truth:       also make the OVERLAP table
    must_be_gpu: an actor without CUDA is an error
    """

    def __init__(self, config: Config, out: AnyPath, truth: bool, must_be_gpu: bool) -> None:
        import ray

        gpu = torch.cuda.is_available() and bool(ray.get_gpu_ids())
        if must_be_gpu and not gpu:
            raise ResourcesError(
                f"Ray gave this actor GPU {ray.get_gpu_ids()}, but torch {torch.__version__} sees "
                "no CUDA on its node. Install a CUDA build of torch there, or ask for CPUs."
            )
        if not gpu:
            torch.set_num_threads(1)
        self.config, self.out, self.truth = config, out, truth
        again = ray.get_runtime_context().was_current_actor_reconstructed
        gauges.count("detect", "retries", int(again))
        with paths.local_file(out / _NETWORK) as network:
            model = idol.load(network, device="cuda" if gpu else "cpu")
        # On a GPU many frames of few shapes: compiling pays.
        self.detector = Detector(model, config, batch=config.detect.batch_frames, compiled=gpu)

    @carried
    def work(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Detect {shard: its number, pieces: pickled} -> {shard, frames, rejects, rows}."""
        number, pieces = int(row["shard"]), pickle.loads(row["pieces"])  # nosec B301
        rows = detect_pieces(self.detector, pieces, self.config, truth=self.truth)
        if self.truth:
            # First, for a shard counts as done once its detections are there.
            overlaps = schemas.table(rows.overlaps, schemas.OVERLAP)
            tables.commit(overlaps, layout.shard_path(self.out, number, "overlap"))
        detections = schemas.table(rows.detections, schemas.DETECTIONS)
        tables.commit(detections, layout.shard_path(self.out, number), rejects=rows.rejects)
        frames = sum(len(piece.frames) for piece in pieces)
        rejects = len(rows.rejects)
        return {"shard": number, "frames": frames, "rejects": rejects, "rows": detections.num_rows}


def _detect(
    model: IDOL,
    shards: Sequence[Shard],
    todo: Sequence[int],
    output: claims.Output,
    actors: cluster.Pool | int | None,
    gpu: bool | None,
    on_shard: Callable[[int], None],
    arguments: tuple[Config, AnyPath, bool, bool],
) -> None:
    """Hand the missing shards to a pool of actors, and wait for the last one.

    arguments: of DetectActor
    """
    network = arguments[1] / _NETWORK
    with cluster.session():
        pool, share = granted(actors, gpu, len(todo))
        frames = frame_files.split(shards[todo[0]][0].frames[0])[0]
        preflight.check(arguments[1], [frames], gpus=share, network=True)
        with paths.whole_file(network) as written:
            checkpoint.save(model, written)
        rows = Mapped(
            lambda number: {"shard": number, "pieces": pickle.dumps(tuple(shards[number]))},
            shard_plan.longest_first(shards, todo),
        )
        total = sum(shards[number].frames for number in todo)
        made = actors_of.work(DetectActor, arguments, rows, pool, share)
        with contextlib.closing(made), cluster.progress(total, "detect", "frames") as bar:
            for row in made:
                raise_carried(row)
                bar.update(int(row["frames"]))
                gauges.count("detect", "rejects", row["rejects"])
                if not row["rejects"]:
                    output.note(int(row["shard"]), int(row["rows"]))
                on_shard(int(row["shard"]))
    network.unlink()


def room(
    actors: cluster.Pool | int | None, gpu: bool | None, shards: int
) -> tuple[cluster.Pool, float]:
    """The pool, and the share of a GPU that each of its actors holds (0: it runs on a CPU)."""
    gpus = 0 if gpu is False else cluster.gpus()
    # Half of the logical CPUs: a pool that holds all of them starves the tasks that feed it.
    default = gpus or max(1, cluster.cpus() // 2)
    pool = cluster.Pool.of(default if actors is None else actors).within(shards)
    if not gpus:
        return pool, float(bool(gpu))
    share = min(1.0, gpus / pool.least)
    return pool, share if share == 1 else int(share * 100) / 100


def granted(
    actors: cluster.Pool | int | None, gpu: bool | None, shards: int
) -> tuple[cluster.Pool, float]:
    """As room. Raises: ResourcesError: the cluster has not so many CPUs and GPUs."""
    pool, share = room(actors, gpu, shards)
    instead = "--device cpu, or fewer --actors" if share else "fewer --actors"
    resources.require(pool.least, 1.0, share, instead=instead)
    return pool, share


def claim(config: Config) -> dict[str, Any]:
    """What of the configuration the detections depend on: not the tracker, nor the training."""
    whole = to_dict(config)
    parts = ("name", "model", "transforms", "detect", "categories", "category_ids")
    return {part: whole[part] for part in parts}


def input_hash(dataset: Dataset, model: Network) -> str:
    """Hash of the dataset and the weights."""
    digest = hashlib.sha256(dataset.input_hash.encode())
    # Shards are dealt from the usable videos: mending a reject makes it another input.
    digest.update(json.dumps([video.video_id for video in dataset.videos]).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
