"""Frames to stored detections: the network runs here, once per checkpoint and dataset."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from idol.config import Config, to_dict
from idol.evaluation.overlaps import intersections
from idol.masks import rle
from pipelines import cluster
from pipelines.errors import PipelineError, ResourcesError, VideoError
from pipelines.sources import frames
from pipelines.sources.annotations import Dataset, VideoRecord
from pipelines.storage import claims, layout, schemas, tables
from pipelines.storage.layout import DETECT as STAGE
from pipelines.storage.manifest import Manifest

if TYPE_CHECKING:  # torch takes seconds to import, and the driver's --help never needs it
    from idol.detection.detector import Detector, Prepared
    from idol.network.model import IDOL
    from idol.structures import FrameDetections

_NETWORK = "_network.safetensors"
"""The network, for the actors. Beside the shards, for that place is shared by all machines; and an
actor that is started anew finds it there (what the object store held might have gone)."""
_DECODE_THREADS = 2  # decoding releases the GIL; two keep ahead of the network
_READ_AHEAD = 2  # batches decoded in advance

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Consecutive frames of one video, and its truth there.

    video_id: whose
    size:     (height, width) of every frame
    start:    index of the first frame in the video
    frames:   frame references
    truth:    for each of the G true instances, one compressed RLE or None per frame
    """

    video_id: int
    size: tuple[int, int]
    start: int
    frames: tuple[str, ...]
    truth: tuple[tuple[bytes | None, ...], ...]


@dataclass(frozen=True, slots=True)
class ShardRows:
    """What one shard becomes: rows of DETECTIONS, OVERLAP and rejects, in (video, frame) order."""

    detections: list[dict[str, Any]]
    overlaps: list[dict[str, Any]]
    rejects: list[dict[str, Any]]


def plan(videos: Iterable[VideoRecord], frames_per_shard: int) -> list[list[Piece]]:
    """Deal videos into shards, in order of size and video_id; a long video is cut into several.

    Videos of one size lie together because only frames of one shape share a batch, and because an
    actor on a GPU keeps the graphs of few shapes.
    Depends on the dataset alone, so that a restarted run, or one on more machines, makes the same
    shards. A shard holds at most frames_per_shard frames, and at least one piece.
    """
    shards: list[list[Piece]] = []
    free = 0
    for video in sorted(videos, key=lambda v: (v.size, v.video_id)):
        for start in range(0, len(video.frames), frames_per_shard):
            stop = min(start + frames_per_shard, len(video.frames))
            if stop - start > free:
                shards.append([])
                free = frames_per_shard
            free -= stop - start
            shards[-1].append(_piece(video, start, stop))
    return shards


def detect_pieces(
    detector: Detector, pieces: Sequence[Piece], config: Config, *, truth: bool
) -> ShardRows:
    """Run the network over the frames of a shard.

    Frames of one shape share a batch, also across videos: the network keeps nothing from frame to
    frame. Batches never cross shards, so the numbers do not depend on how shards are dealt out.

    truth:  also make OVERLAP rows
    A video of which any frame cannot be read has no rows, but a reject with the reason.
    """
    detections: list[dict[str, Any]] = []
    overlaps: list[dict[str, Any]] = []
    rejects: dict[int, VideoError] = {}
    waiting: dict[object, list[_Frame]] = {}
    begun: deque[tuple[list[_Frame], Callable[[], list[FrameDetections]]]] = deque()

    def finish() -> None:
        frames, result = begun.popleft()
        for frame, found in zip(frames, result(), strict=True):
            piece = frame.piece
            detections.append(schemas.detections_to_row(found, piece.video_id, piece.size))
            if truth:
                overlap = frame_overlap(
                    found.masks,
                    [instance[frame.offset] for instance in piece.truth],
                    piece.size,
                )
                overlaps.append(
                    schemas.overlap_to_row(
                        schemas.FrameOverlap(piece.video_id, found.frame_index, *overlap)
                    )
                )

    def flush(batch: list[_Frame]) -> None:
        indices = [frame.piece.start + frame.offset for frame in batch]
        begun.append((batch.copy(), detector.start([frame.prepared for frame in batch], indices)))
        batch.clear()
        # A GPU computes the batch just begun while the one before is put into rows.
        if len(begun) > 1:
            finish()

    for frame in _read_ahead(pieces, detector, config):
        if isinstance(frame, VideoError):
            rejects.setdefault(frame.video_id, frame)
            continue
        batch = waiting.setdefault(frame.prepared.shape, [])
        batch.append(frame)
        if len(batch) == config.detect.batch_frames:
            flush(batch)
    for batch in waiting.values():
        if batch:
            flush(batch)
    while begun:
        finish()

    def kept(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        rows = [row for row in rows if row["video_id"] not in rejects]
        return sorted(rows, key=lambda row: (row["video_id"], row["frame_index"]))

    faults = [
        {"video_id": e.video_id, "path": e.path, "reason": e.reason} for e in rejects.values()
    ]
    return ShardRows(kept(detections), kept(overlaps), faults)


def frame_overlap(
    masks: Sequence[bytes], truth: Sequence[bytes | None], size: tuple[int, int]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Shared pixels of the detections and true instances of one frame, without unpacking a mask.

    masks:   N compressed RLEs
    truth:   G compressed RLEs or None
    size:    (height, width) of all of them
    returns: intersection (N, G), area (N,), truth_area (G,), in pixels
    """
    present = [(g, counts) for g, counts in enumerate(truth) if counts is not None]
    columns = [g for g, _ in present]
    true_masks = [counts for _, counts in present]
    area = rle.measure(masks)[1]
    truth_area = np.zeros(len(truth))
    intersection = np.zeros((len(masks), len(truth)))
    if present:
        truth_area[columns] = rle.measure(true_masks)[1]
    if present and len(masks):
        found, there = (
            [{"size": list(size), "counts": counts} for counts in side]
            for side in (masks, true_masks)
        )
        intersection[:, columns] = intersections(found, area, there)
    return (
        intersection.astype(np.float32),
        area.astype(np.float32),
        truth_area.astype(np.float32),
    )


def run(
    dataset: Dataset,
    model: IDOL,
    out: Path,
    config: Config,
    *,
    actors: cluster.Pool | int | None = None,
    gpu: bool | None = None,
    overwrite: bool = False,
    on_shard: Callable[[int], None] | None = None,
) -> Manifest:
    """Write the detections of all videos to out, then the manifest that says they are complete.

    Where the dataset has truth, the OVERLAP table is made in the same pass. An interrupted run is
    continued by the same call: shards that are there are not redone, and the bytes are the same.

    dataset:   what annotations.read returned
    model:     in eval mode
    config:    its transforms and detect sections count here
    actors:    copies of the network, or how many at least and at most; default: one per GPU, else
               one per two logical CPUs
    gpu:       True: on GPUs, and on a cluster that grows wait for them; False: on CPUs; default: on
               GPUs where the cluster has any now
    overwrite: replace another run's output
    on_shard:  called with the number of every shard once it lies in out, also of those that an
               earlier run has left there
    Errors:    ManifestError for a directory with something else in it; PipelineError where more
               than reject_limit of the videos cannot be read; ResourcesError where Ray has too few
    """
    shards = plan(dataset.videos, config.detect.frames_per_shard)
    truth = any(video.instances for video in dataset.videos)
    output = claims.prepare_output(
        out, STAGE, claim(config), input_hash(dataset, model), overwrite=overwrite
    )
    if output.finished is not None:
        return output.finished
    todo = output.missing(len(shards))
    if len(todo) < len(shards):
        logger.info("%d of %d shards are there already", len(shards) - len(todo), len(shards))
    told = on_shard or _nobody
    for index in sorted(set(range(len(shards))) - set(todo)):
        told(index)
    pool = None if actors is None else cluster.Pool.of(actors)
    _detect(model, shards, todo, output, config, truth=truth, pool=pool, gpu=gpu, on_shard=told)
    rejected = {int(row["video_id"]) for row in dataset.rejects}
    for index in range(len(shards)):
        rejected |= {int(r["video_id"]) for r in tables.shard_rejects(output.shard(index))}
    _check_rejects(rejected, len(dataset.videos) + len(dataset.rejects), dataset, output, config)
    return output.finish(
        total_shards=len(shards),
        rejects=dataset.rejects,
        extra={
            "videos": _index(shards, rejected),
            "num_classes": config.model.num_classes,
            "embedding_size": config.model.embedding_size,
            "truth": truth,
        },
    )


class DetectActor:
    """One copy of the network, in an actor: shards in, finished parquet files out."""

    def __init__(self, config: Config, out: str, truth: bool, must_be_gpu: bool) -> None:
        import ray
        import torch

        import idol
        from idol.detection.detector import Detector

        gpu = torch.cuda.is_available() and bool(ray.get_gpu_ids())
        if must_be_gpu and not gpu:
            raise ResourcesError(
                f"Ray gave this actor GPU {ray.get_gpu_ids()}, but torch {torch.__version__} sees "
                "no CUDA on its node. Install a CUDA build of torch there, or ask for CPUs."
            )
        if not gpu:
            torch.set_num_threads(1)
        self.output = claims.Output(Path(out), STAGE, {}, "", "")
        model = idol.load(self.output.path / _NETWORK, device="cuda" if gpu else "cpu")
        # On a GPU many frames of few shapes: compiling pays.
        self.detector = Detector(model, config, batch=config.detect.batch_frames, compiled=gpu)
        self.config = config
        self.truth = truth

    def __call__(self, batch: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Detect one row: {shard: its number, pieces: JSON} -> {shard, frames}."""
        counts = []
        for index, text in zip(batch["shard"], batch["pieces"], strict=True):
            pieces = [_piece_from_json(values) for values in json.loads(text)]
            rows = detect_pieces(self.detector, pieces, self.config, truth=self.truth)
            if self.truth:
                # First, for a shard counts as done once its detections are there.
                tables.commit(
                    schemas.table(rows.overlaps, schemas.OVERLAP),
                    layout.shard_path(self.output.path, int(index), "overlap"),
                )
            tables.commit(
                schemas.table(rows.detections, schemas.DETECTIONS),
                self.output.shard(int(index)),
                rejects=rows.rejects,
            )
            counts.append(sum(len(piece.frames) for piece in pieces))
        return {"shard": batch["shard"], "frames": np.array(counts)}


def _detect(
    model: IDOL,
    shards: Sequence[Sequence[Piece]],
    todo: Sequence[int],
    output: claims.Output,
    config: Config,
    *,
    truth: bool,
    pool: cluster.Pool | None,
    gpu: bool | None,
    on_shard: Callable[[int], None],
) -> None:
    """Hand the missing shards to a pool of actors, and wait for the last one."""
    if not todo:
        return
    from idol.weights import checkpoint

    with cluster.session():
        import ray
        from ray.data import ActorPoolStrategy, DataContext

        pool, share = _room(pool, gpu, len(todo))
        cluster.require(pool.least, 1.0, share)
        checkpoint.save(model, output.path / _NETWORK)
        # Our bar counts frames; Ray's would write over it, and its log tells of every execution.
        DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        rows = [
            {"shard": i, "pieces": json.dumps([_piece_to_json(p) for p in shards[i]])}
            for i in _longest_first(shards, todo)
        ]
        done = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            DetectActor,
            batch_size=1,
            compute=ActorPoolStrategy(
                min_size=pool.least, max_size=pool.most, max_tasks_in_flight_per_actor=2
            ),
            num_cpus=1,
            num_gpus=share,
            fn_constructor_kwargs={
                "config": config,
                "out": str(output.path.resolve()),
                "truth": truth,
                "must_be_gpu": bool(gpu),
            },
        )
        total = sum(len(piece.frames) for i in todo for piece in shards[i])
        with cluster.progress(total, "detect", "frames") as bar:
            for row in done.iter_rows():
                bar.update(int(row["frames"]))
                on_shard(int(row["shard"]))
    (output.path / _NETWORK).unlink()


def _room(pool: cluster.Pool | None, gpu: bool | None, shards: int) -> tuple[cluster.Pool, float]:
    """The pool, and the share of a GPU that each of its actors holds (0: it runs on a CPU)."""
    gpus = 0 if gpu is False else cluster.gpus()
    # Half of the logical CPUs: two actors on a laptop, and never all of them (a pool that holds
    # every CPU starves whatever feeds it).
    pool = pool or cluster.Pool.of(gpus or max(1, cluster.cpus() // 2))
    pool = pool.within(shards)
    if not gpus:
        return pool, float(bool(gpu))
    share = min(1.0, gpus / pool.least)
    return pool, share if share == 1 else int(share * 100) / 100


def _nobody(shard: int) -> None:
    """Listens to no shard."""


def _longest_first(shards: Sequence[Sequence[Piece]], todo: Sequence[int]) -> list[int]:
    """The shards in the order to be computed: those of long videos first, together, for tracking a
    long video begins when its last shard is there, and should not be what all wait for at the end.
    """
    length: dict[int, int] = {}
    for pieces in shards:
        for piece in pieces:
            length[piece.video_id] = length.get(piece.video_id, 0) + len(piece.frames)
    longest = {i: max((length[p.video_id], -p.video_id) for p in shards[i]) for i in todo}
    return sorted(todo, key=lambda i: (-longest[i][0], -longest[i][1], i))


@dataclass(frozen=True, slots=True)
class _Frame:
    """A decoded frame: its piece, its place in it, and what the network gets."""

    piece: Piece
    offset: int
    prepared: Prepared


class _Reader:
    """Reads and prepares frames. A video file stays open, for walking forwards is cheap and
    opening it anew for every frame is not; so one thread at a time may read from video files."""

    def __init__(self, detector: Detector) -> None:
        self._detector = detector
        self._open: frames.VideoReader | None = None

    def load(self, piece: Piece, offset: int) -> _Frame | VideoError:
        """One frame. A fault is returned: it must not stop the frames that are read beside it."""
        reference = piece.frames[offset]
        path, number = frames.split(reference)
        try:
            if number is None:
                image = frames.read(reference, video_id=piece.video_id, size=piece.size)
            else:
                if self._open is None or self._open.path != path:
                    self.close()
                    self._open = frames.VideoReader(path, video_id=piece.video_id)
                image = self._open.read(number)
                frames.check_size(image, piece.size, video_id=piece.video_id, path=reference)
        except VideoError as fault:
            # Named after this piece: two videos of a dataset may be cut from one file.
            return VideoError(piece.video_id, fault.path, fault.reason)
        return _Frame(piece, offset, self._detector.prepare(image))

    def close(self) -> None:
        """Give the open file back."""
        if self._open is not None:
            self._open.close()
            self._open = None


def _read_ahead(
    pieces: Sequence[Piece], detector: Detector, config: Config
) -> Iterator[_Frame | VideoError]:
    """All frames of the pieces in order, decoded by threads while the network is busy.

    The first fault of a video is the last that is heard of it.
    """
    reader = _Reader(detector)
    queue: deque[Future[_Frame | VideoError]] = deque()
    depth = _READ_AHEAD * config.detect.batch_frames
    faulty: set[int] = set()

    def take() -> Iterator[_Frame | VideoError]:
        found = queue.popleft().result()
        if isinstance(found, VideoError):
            if found.video_id in faulty:
                return
            faulty.add(found.video_id)
        yield found

    from_files = any(frames.split(piece.frames[0])[1] is not None for piece in pieces)
    with ThreadPoolExecutor(1 if from_files else _DECODE_THREADS) as pool:
        for piece in pieces:
            for offset in range(len(piece.frames)):
                if piece.video_id in faulty:
                    break
                queue.append(pool.submit(reader.load, piece, offset))
                if len(queue) >= depth:
                    yield from take()
        while queue:
            yield from take()
    reader.close()


def _piece(video: VideoRecord, start: int, stop: int) -> Piece:
    return Piece(
        video_id=video.video_id,
        size=video.size,
        start=start,
        frames=tuple(video.frames[start:stop]),
        truth=tuple(tuple(i.segmentations[start:stop]) for i in video.instances),
    )


def _piece_to_json(piece: Piece) -> dict[str, Any]:
    """RLE counts are ASCII, so JSON can carry them."""
    return {
        "video_id": piece.video_id,
        "size": piece.size,
        "start": piece.start,
        "frames": piece.frames,
        "truth": [[c if c is None else c.decode("ascii") for c in row] for row in piece.truth],
    }


def _piece_from_json(values: Mapping[str, Any]) -> Piece:
    return Piece(
        video_id=values["video_id"],
        size=(values["size"][0], values["size"][1]),
        start=values["start"],
        frames=tuple(values["frames"]),
        truth=tuple(
            tuple(c if c is None else c.encode("ascii") for c in row) for row in values["truth"]
        ),
    )


def claim(config: Config) -> dict[str, Any]:
    """What of the configuration the detections depend on: not the tracker, nor the training."""
    whole = to_dict(config)
    parts = ("name", "model", "transforms", "detect", "categories", "category_ids")
    return {part: whole[part] for part in parts}


def input_hash(dataset: Dataset, model: IDOL) -> str:
    """Names what is read: the annotation file and the weights, wherever they lie."""
    digest = hashlib.sha256(dataset.input_hash.encode())
    # Shards are dealt from the usable videos: mending a reject makes it another input.
    digest.update(json.dumps([video.video_id for video in dataset.videos]).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _index(shards: Sequence[Sequence[Piece]], rejected: set[int]) -> list[dict[str, Any]]:
    """Where the frames of each readable video are: so that a reader opens only those files."""
    videos: dict[int, dict[str, Any]] = {}
    for number, pieces in enumerate(shards):
        for piece in pieces:
            if piece.video_id in rejected:
                continue
            entry = videos.setdefault(
                piece.video_id,
                {
                    "video_id": piece.video_id,
                    "height": piece.size[0],
                    "width": piece.size[1],
                    "length": 0,
                    "shards": [],
                },
            )
            entry["length"] += len(piece.frames)
            if number not in entry["shards"]:
                entry["shards"].append(number)
    return [videos[video_id] for video_id in sorted(videos)]


def _check_rejects(
    rejected: set[int], total: int, dataset: Dataset, output: claims.Output, config: Config
) -> None:
    if len(rejected) <= config.detect.reject_limit * total:
        return
    faults = [*dataset.rejects]
    for path in sorted(output.path.glob("shard-*.parquet")):
        faults += tables.shard_rejects(path)
    first = faults[0]
    raise PipelineError(
        f"{len(rejected)} of {total} videos cannot be read, more than the limit of "
        f"{config.detect.reject_limit:.0%} (detect.reject_limit). The first: video "
        f"{first['video_id']}, {first['path']}: {first['reason']}"
    )
