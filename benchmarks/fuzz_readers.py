"""Every reader of files, given one damaged file after the other; see `benchmarks.fuzz`."""

from __future__ import annotations

import json
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch

from benchmarks import mutations
from idol import presets
from idol.analysis import score_files
from idol.analysis.score_files import Analyses
from idol.config import AnalysisConfig, override
from idol.evaluation import average_precision
from idol.evaluation.overlaps import frame_overlap
from idol.images.synthetic import SyntheticConfig
from idol.images.synthetic_dataset import write_dataset
from idol.masks import kernels, rle
from idol.network.model import IDOL
from idol.structures import FrameDetections
from idol.weights import checkpoint
from idol.ytvis import truth
from idol.ytvis.truth import VideoTruth
from pipelines.errors import PipelineError
from pipelines.sources import annotations, frames, image_file
from pipelines.storage import claims, layout, manifest, schemas, stored, tables

Outcome = Literal["accepted", "changed", "refused"]
REFUSALS = (PipelineError, ValueError, FileNotFoundError)
"""What a reader may raise for a file at fault."""


class Fault(Exception):
    """A reader took what it should not have."""


Reader = Callable[[random.Random], Outcome]


def annotation_reader(folder: Path) -> Reader:
    """Annotations: a perfect result of whatever is accepted scores 1, and both doors agree."""
    path = _dataset(folder)
    value = json.loads(path.read_text())

    def one(rng: random.Random) -> Outcome:
        path.write_bytes(mutations.text(value, rng))
        known = _or_refusal(lambda: truth.read(path))
        of_records = _or_refusal(lambda: annotations.read(path).truth())
        # Without annotations, or a video with truth that can be read, records may do all the same.
        nothing = isinstance(of_records, Exception) or not (of_records and of_records.videos)
        if isinstance(known, Exception) and nothing:
            return "refused"
        if isinstance(known, Exception) or known.videos.keys() != of_records.videos.keys():
            raise Fault(f"truth: {known!r}, of the records: {of_records!r}"[:500])
        perfect = [e for video in known.videos.values() for e in _perfect(video)]
        found = average_precision.evaluate(known, perfect).stats["AP"]
        if found != -1.0 and abs(found - 1.0) > 1e-9:
            raise Fault(f"a perfect result scores {found}")
        return "accepted"

    return one


def results_reader(folder: Path) -> Reader:
    """Results: read video by video and as a whole they score alike, or both are refused."""
    known, path = truth.read(_dataset(folder)), folder / "results.json"
    value = [e for video in known.videos.values() for e in _perfect(video)]
    value += [{**e, "category_id": value[0]["category_id"], "score": 0.25} for e in value]
    analyses = Analyses(config=AnalysisConfig(resamples=0))

    def one(rng: random.Random) -> Outcome:
        path.write_bytes(mutations.text(value, rng))
        whole = _or_refusal(lambda: average_precision.evaluate(known, path).stats)
        parts = _or_refusal(
            lambda: score_files.run(known, {"r": path}, analyses, workers=1).files[0].metrics.stats
        )
        if isinstance(whole, Exception) and isinstance(parts, Exception):
            return "refused"
        if whole != parts:
            raise Fault(f"as a whole: {whole!r}, by video: {parts!r}"[:500])
        return "accepted"

    return one


def rle_reader(folder: Path) -> Reader:
    """RLE: numpy, the compiled code and pycocotools read the same of what is accepted."""
    from pycocotools import mask as coco

    kernels.prepare()

    def one(rng: random.Random) -> Outcome:
        height, width = rng.randrange(1, 200), rng.randrange(1, 200)
        picture = np.zeros((height, width), np.uint8)
        for _ in range(rng.randrange(4)):
            y, x = rng.randrange(height), rng.randrange(width)
            picture[y : y + rng.randrange(60), x : x + rng.randrange(60)] ^= 1
        canonical = rle.encode_masks(picture[None])[0]
        counts = mutations.damaged(canonical, rng) if rng.random() < 0.7 else canonical
        if rng.random() < 0.5:  # only characters of the alphabet, so that more is readable
            counts = bytes(48 + (c - 48) % 64 for c in counts)
        read = rle.runs(counts)
        here = (-1, 0) if read is None else (int(read.sum()), int(read[1::2].sum()))
        there = tuple(int(n[0]) for n in kernels.measure(counts, np.array([len(counts)])))
        if here != there:
            raise Fault(f"{counts!r}: numpy {here}, compiled {there}")
        pixels, area = here
        if pixels != height * width:
            return "refused"
        mask = {"size": [height, width], "counts": counts}
        decoded = rle.decode_masks([counts], (height, width))[0]
        found = [int(coco.area(mask)), int(coco.decode(mask).sum()), int(decoded.sum())]
        if found != [area] * 3:
            raise Fault(f"{counts!r} {height}x{width}: area {area}, pycocotools and ours {found}")
        everything = np.ones((1, 1), np.bool_)
        measured, shared = kernels.overlap(
            [[counts]], [[canonical]], everything, pixels, 1, per_frame=False
        )
        if [measured.item(), shared.item()] != [area, int((decoded & picture).sum())]:
            raise Fault(f"{counts!r} {height}x{width}: {measured} pixels, shared {shared}")
        return "accepted"

    return one


def checkpoint_reader(folder: Path) -> Reader:
    """Checkpoints, ours and torch's: every tensor is the one that was written, or none is read."""
    small = ["model.width=16", "model.num_heads=2", "model.feedforward=16", "model.num_queries=9"]
    model = IDOL(override(presets.by_name("tiny"), small))
    ours, theirs = folder / "a.safetensors", folder / "a.pth"
    checkpoint.save(model, ours)
    torch.save({"model": model.state_dict()}, theirs)
    wanted = {path: checkpoint.read_file(path) for path in (ours, theirs)}
    intact = {path: path.read_bytes() for path in wanted}

    def one(rng: random.Random) -> Outcome:
        path = rng.choice(list(wanted))
        # Headers and directories are a small part of a file, and most of what is to be read.
        data = intact[path]
        cut = len(data) - rng.choice((len(data), 4000, 20_000))
        start = rng.choice((0, max(0, cut)))
        stop = len(data) if start or rng.random() < 0.3 else 4000
        path.write_bytes(data[:start] + mutations.damaged(data[start:stop], rng) + data[stop:])
        config, state = checkpoint.read_file(path)
        # Without its mark a file is as any other, and read with a preset alone.
        same = config in (None, wanted[path][0]) and state.keys() == wanted[path][1].keys()
        if not same or any(not _equal(state[k], v) for k, v in wanted[path][1].items()):
            raise Fault("the weights or the configuration are others")
        return "accepted"

    return one


def table_reader(folder: Path) -> Reader:
    """Stored tables with a flipped bit: every value is the one written, or none is read."""
    out = _detections(folder)
    wanted = _content(out)
    intact = {path: path.read_bytes() for path in sorted(out.glob("*.parquet"))}

    def one(rng: random.Random) -> Outcome:
        path = rng.choice(list(intact))
        path.write_bytes(mutations.flipped(intact[path], rng))
        try:
            if _content(out) != wanted:
                raise Fault(f"{path.name}: values are others")
        finally:
            path.write_bytes(intact[path])
        return "accepted"

    return one


def manifest_reader(folder: Path) -> Reader:
    """Manifests: whatever stands there, reading the directory ends with a documented error."""
    out = _detections(folder)
    path = out / manifest.MANIFEST
    value, wanted = json.loads(path.read_text()), _content(out)

    def one(rng: random.Random) -> Outcome:
        path.write_bytes(mutations.text(value, rng))
        return "accepted" if _content(out) == wanted else "changed"

    return one


def image_reader(folder: Path) -> Reader:
    """Images: a PNG has checksums; a JPEG that was cut off is not taken for a whole one."""
    noise = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    picture = cv2.GaussianBlur(noise, (9, 9), 3)
    wide = picture.astype(np.uint16) * 257
    pictures = [(".png", picture), (".png", picture[..., 0]), (".png", wide), (".jpg", picture)]
    progressive = [cv2.IMWRITE_JPEG_PROGRESSIVE, 1]
    files = [(ending, cv2.imencode(ending, array)[1].tobytes()) for ending, array in pictures]
    files.append((".jpg", cv2.imencode(".jpg", picture, progressive)[1].tobytes()))
    wanted = [image_file.decode(data, video_id=1, path="x") for _, data in files]

    def one(rng: random.Random) -> Outcome:
        number = rng.randrange(len(files))
        ending, data = files[number]
        cut = rng.random() < 0.2
        damage = data[: rng.randrange(len(data))] if cut else mutations.damaged(data, rng)
        image = image_file.decode(damage, video_id=1, path="x")
        if image.shape == wanted[number].shape and (image == wanted[number]).all():
            return "accepted"
        if cut or (ending == ".png" and not _png_is_sound(damage)):
            raise Fault(f"{ending}, {'cut' if cut else 'a checksum is wrong'}: other pixels")
        return "changed"

    return one


def video_reader(folder: Path) -> Reader:
    """Videos: frames are read or refused; nothing crashes."""
    path = folder / "a.mp4"
    coder = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 10, (64, 48))
    for t in range(12):
        coder.write(np.full((48, 64, 3), 20 * t, np.uint8))
    coder.release()
    intact, names = path.read_bytes(), [f"{path}#{t}" for t in range(12)]
    wanted = list(frames.read_many(names, video_id=1))

    def one(rng: random.Random) -> Outcome:
        path.write_bytes(mutations.damaged(intact, rng))
        found = list(frames.read_many(names, video_id=1, size=(48, 64)))
        same = all((a == b).all() for a, b in zip(found, wanted, strict=True))
        return "accepted" if same else "changed"

    return one


KINDS: dict[str, Callable[[Path], Reader]] = {
    "annotations": annotation_reader,
    "results": results_reader,
    "rle": rle_reader,
    "checkpoints": checkpoint_reader,
    "tables": table_reader,
    "manifests": manifest_reader,
    "images": image_reader,
    "videos": video_reader,
}


# ---- what files are made of ----------------------------------------------------------------------


def _dataset(folder: Path) -> Path:
    return write_dataset(folder, SyntheticConfig(size=(32, 48), length=(3, 3)), 2, 5)


def _perfect(video: VideoTruth) -> list[dict[str, Any]]:
    """Results entries that are the truth itself."""
    return [
        {"video_id": video.video_id, "category_id": int(category_id), "score": 0.5,
         "segmentations": [_written(mask) for mask in masks]}
        for category_id, masks, crowd in zip(
            video.category_ids, video.masks, video.crowd, strict=True
        )
        if not crowd
    ]  # fmt: skip


def _written(mask: Any) -> Any:
    return None if mask is None else {**mask, "counts": mask["counts"].decode()}


def _detections(folder: Path) -> Path:
    """A finished detect directory of two shards."""
    known = truth.read(_dataset(folder))
    output = claims.prepare_output(
        folder / "detections",
        "detect",
        {"category_ids": [1, 2], "detect": {"score_floor": 0.1}},
        "",
    )
    videos = []
    for number, video in enumerate(known.videos.values()):
        rows, overlaps = [], []
        for t in range(video.length):
            present = [None if m[t] is None else m[t]["counts"] for m in video.masks]
            masks = tuple(counts for counts in present if counts is not None)
            frame = _frame(t, masks)
            rows.append(schemas.detections_to_row(frame, video.video_id, video.size))
            measured = frame_overlap(masks, present, video.size, t)
            overlaps.append(schemas.overlap_to_row(measured, video.video_id))
        there = layout.shard_path(output.path, number, "overlap")
        tables.commit(schemas.table(overlaps, schemas.OVERLAP), there)
        tables.commit(schemas.table(rows, schemas.DETECTIONS), output.shard(number))
        videos.append(stored.StoredVideo(
            video_id=video.video_id, size=video.size, length=video.length, shards=(number,)
        ).to_json())  # fmt: skip
    output.finish(
        total_shards=len(videos), rejects=[],
        extra={"videos": videos, "num_classes": 2, "embedding_size": 8, "truth": True},
    )  # fmt: skip
    return folder / "detections"


def _frame(frame_index: int, masks: tuple[bytes, ...]) -> FrameDetections:
    made, count = torch.Generator().manual_seed(frame_index), len(masks)
    return FrameDetections(
        frame_index=frame_index,
        scores=torch.rand(count, generator=made).sort(descending=True).values,
        class_scores=torch.rand(count, 2, generator=made),
        embeddings=torch.rand(count, 8, generator=made),
        overlaps=torch.eye(count),
        boxes=torch.rand(count, 4, generator=made),
        masks=masks,
    )


def _content(out: Path) -> list[Any]:
    """Everything that a detect directory says."""
    source = stored.read(out)
    found: list[Any] = [source.category_ids, source.score_floor, source.videos]
    for video in source.videos:
        for frame in source.frames(video):
            arrays = (frame.scores, frame.class_scores, frame.embeddings, frame.overlaps)
            found.append([frame.frame_index, *(a.tolist() for a in (*arrays, frame.boxes))])
        found += list(source.masks(video))
        for one in source.overlaps(video):
            counts = (one.intersection, one.area, one.truth_area)
            found.append([one.frame_index, *(a.tolist() for a in counts)])
    return found


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and bool((one == other).all())


def _png_is_sound(data: bytes) -> bool:
    """Whether the chunks of a PNG have the checksums that they state, to its end."""
    at = 8
    while at + 12 <= len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        stop = at + 8 + length
        if zlib.crc32(data[at + 4 : stop]).to_bytes(4, "big") != data[stop : stop + 4]:
            return False
        if kind == b"IEND":
            return True
        at = stop + 4
    return False


def _or_refusal(read: Callable[[], Any]) -> Any:
    """What is read, or the documented error."""
    try:
        return read()
    except REFUSALS as error:
        return error
