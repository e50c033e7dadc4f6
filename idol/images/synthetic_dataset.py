"""Synthetic videos written as a data set in YouTube-VIS form."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import multiprocessing
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, Final, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from idol.files import write_whole
from idol.images.synthetic import SyntheticConfig, make_video

Format = Literal["jpeg", "mp4"]
Frames = NDArray[np.uint8]  # (T, H, W, 3) RGB

FRAMES_FOLDER: Final = "JPEGImages"
"""Folder beside the JSON that holds `file_names`, as in YouTube-VIS."""

_FRAMES_PER_SECOND: Final = 6.0
_Drawn = tuple[dict[str, Any], list[dict[str, Any]]]


def write_dataset(
    out: Path | str,
    config: SyntheticConfig,
    num_videos: int,
    seed: int,
    format: Format = "jpeg",
    processes: int | None = 1,
    progress: bool = False,
) -> Path:
    """Write videos and their truth as a YouTube-VIS dataset; returns the path of its JSON.

    Frames are in out/JPEGImages: `video_0000/00000.jpg`, or `video_0000.mp4` whose frames are named
    `video_0000.mp4#0`, `video_0000.mp4#1`, ... The JSON is written last and whole: once it exists,
    the set is complete, and another call for the same set returns at once. The bytes do not depend
    on processes.

    num_videos: >= 1; video i is make_video(config, (seed, i)) and has id i + 1
    processes:  how many to draw with; None: one per CPU. More than one are spawned, so the caller
                must be an importable module with its main guarded
    progress:   show a progress bar
    Raises:
        ValueError: a bad number of videos or processes, seed or format.
        FileExistsError: out already holds another dataset.
        OSError: a frame cannot be written.
    """
    out = Path(out)
    if num_videos < 1:
        raise ValueError(f"num_videos must be >= 1, got {num_videos}")
    if seed < 0:
        raise ValueError(f"seed must be >= 0, got {seed}")
    if format not in ("jpeg", "mp4"):
        raise ValueError(f"format must be 'jpeg' or 'mp4', got {format!r}")
    path = out / "instances.json"
    request = {"config": dataclasses.asdict(config), "num_videos": num_videos, "seed": seed}
    request = json.loads(json.dumps(request | {"format": format}))
    if path.exists():
        if _request_of(path) == request:
            return path
        raise FileExistsError(
            f"{path} already holds another dataset. Choose an empty folder, or remove this one."
        )
    root = out / FRAMES_FOLDER
    root.mkdir(parents=True, exist_ok=True)
    draw = functools.partial(_write_video, root=root, config=config, seed=seed, format=format)
    drawn = _draw_all(draw, num_videos, processes, progress)
    annotations = [annotation for _, rows in drawn for annotation in rows]
    document = {
        "info": {"description": "synthetic videos of idol.images.synthetic", "synthetic": request},
        "licenses": [{"id": 0, "name": "generated; no rights reserved", "url": ""}],
        "videos": [video for video, _ in drawn],
        "categories": [
            {"id": label + 1, "name": name, "supercategory": "synthetic"}
            for label, name in enumerate(config.categories)
        ],
        "annotations": [{"id": i, **a} for i, a in enumerate(annotations, start=1)],
    }
    write_whole(path, json.dumps(document, separators=(",", ":"), sort_keys=True).encode())
    return path


def _request_of(path: Path) -> Any:
    """What the dataset at path was made from; None if it is not a synthetic one."""
    with contextlib.suppress(ValueError, OSError, TypeError, LookupError):
        return json.loads(path.read_text())["info"]["synthetic"]
    return None


def _draw_all(
    draw: Callable[[int], _Drawn], num_videos: int, processes: int | None, progress: bool
) -> list[_Drawn]:
    """draw(0), draw(1), ... in order, in this process or in several."""
    from tqdm import tqdm

    processes = (os.cpu_count() or 1) if processes is None else processes
    if processes < 1:
        raise ValueError(f"processes must be >= 1, or None for one per CPU, got {processes}")
    with contextlib.ExitStack() as stack:
        drawn: Iterable[_Drawn] = map(draw, range(num_videos))
        if min(processes, num_videos) > 1:
            # Spawned, not forked: the caller may already run torch or Ray threads.
            spawn = multiprocessing.get_context("spawn")
            pool = ProcessPoolExecutor(min(processes, num_videos), spawn)
            drawn = stack.enter_context(pool).map(draw, range(num_videos), chunksize=4)
        options = {"unit": "video", "disable": not progress}
        return list(tqdm(drawn, "synthetic videos", num_videos, **options))


def _write_video(
    index: int, *, root: Path, config: SyntheticConfig, seed: int, format: Format
) -> _Drawn:
    """Draw video index and write its frames; returns its `videos` and `annotations` entries."""
    from pycocotools import mask as coco

    video = make_video(config, (seed, index))
    name = f"video_{index:04d}"
    write = _write_jpegs if format == "jpeg" else _write_mp4
    file_names = write(root, name, video.frames, config)
    height, width = config.size
    shape = {"width": width, "height": height, "length": len(video.frames)}
    rows = []
    for g, label in enumerate(video.labels.tolist()):
        masks = video.masks[:, g]
        present = [bool(mask.any()) for mask in masks]
        encoded = coco.encode(np.asfortranarray(masks.transpose(1, 2, 0), np.uint8))
        runs = [{"size": [height, width], "counts": e["counts"].decode("ascii")} for e in encoded]
        areas = masks.sum((1, 2))  # coco.area overflows on more than 255 masks
        rows.append(
            {
                "video_id": index + 1,
                "category_id": label + 1,
                "iscrowd": 0,
                **shape,
                "segmentations": _where(present, runs),
                "bboxes": _where(present, coco.toBbox(encoded).tolist()),
                "areas": _where(present, areas.tolist()),
                "amodal_areas": _where(present, video.whole[:, g].tolist()),
                "occlusion": list(video.occlusion[g]),
            }
        )
    return {"id": index + 1, "name": name, **shape, "file_names": file_names}, rows


def _where(present: Sequence[bool], values: Sequence[Any]) -> list[Any]:
    """The values of the frames in which the instance is present, None for the others."""
    return [value if here else None for here, value in zip(present, values, strict=True)]


def _write_jpegs(root: Path, name: str, frames: Frames, config: SyntheticConfig) -> list[str]:
    (root / name).mkdir(exist_ok=True)
    file_names = [f"{name}/{t:05d}.jpg" for t in range(len(frames))]
    options = [cv2.IMWRITE_JPEG_QUALITY, config.jpeg_quality]
    for frame, file_name in zip(frames, file_names, strict=True):
        _, encoded = cv2.imencode(".jpg", frame[..., ::-1], options)
        (root / file_name).write_bytes(encoded.tobytes())
    return file_names


def _write_mp4(root: Path, name: str, frames: Frames, config: SyntheticConfig) -> list[str]:
    path = root / f"{name}.mp4"
    codec = cv2.VideoWriter.fourcc(*"mp4v")
    writer = cv2.VideoWriter(str(path), codec, _FRAMES_PER_SECOND, config.size[::-1])
    if not writer.isOpened():
        raise OSError(
            f"cannot write {path}: this OpenCV has no mp4v encoder, or the folder is not "
            "writable. Write JPEG frames instead: format='jpeg'."
        )
    for frame in frames:
        writer.write(np.ascontiguousarray(frame[..., ::-1]))
    writer.release()
    return [f"{path.name}#{t}" for t in range(len(frames))]
