"""Seeded videos of moving, occluding, look-alike objects with exact truth, in YouTube-VIS form.

The difficulty is the paper's: instances of one category that look alike, cross, hide one another
completely, leave and come back. A category is told by its outline, its texture family and a band
of hues together; instances of a category differ within the band, in brightness, in frequency and
orientation of the texture, and in size.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import multiprocessing
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from idol.images import synthetic_looks as looks
from idol.images.synthetic_looks import CATEGORIES, Instance, smooth

Format = Literal["jpeg", "mp4"]

FRAMES_FOLDER: Final = "JPEGImages"
"""Folder beside the JSON below which `file_names` are found, as in YouTube-VIS."""

_SLIGHT: Final = 0.02  # hidden share above which an instance counts as slightly occluded
_SEVERE: Final = 0.5  # and as severely occluded (OVIS: half)


@dataclass(frozen=True, kw_only=True, slots=True)
class SyntheticConfig:
    """Dials of the generated videos. `easy()` is YouTube-VIS-like, `crowded()` OVIS-like."""

    size: tuple[int, int] = (128, 192)
    """(height, width) of every frame, pixels."""
    length: tuple[int, int] = (8, 12)
    """Fewest and most frames of a video."""
    num_objects: tuple[int, int] = (2, 4)
    """Fewest and most objects of a video."""
    num_categories: int = 4
    """The first this many of: star, fish, flower, cross, moon, leaf."""
    diameter: tuple[float, float] = (0.24, 0.42)
    """Smallest and largest object diameter, in units of the frame's shorter side."""
    look_alike: float = 0.5
    """Chance that an object is of the same category as the video's first."""
    variation: float = 1.0
    """How far look-alikes differ in hue, brightness and texture; 0: identical twins."""
    crossing: float = 0.4
    """Chance that an object's path is planned to meet another's in place and time. Half of those
    who meet slow down there, so that the one behind stays hidden for some frames."""
    leaving: float = 0.2
    """Chance that an object's path leads out of the frame and back."""
    speed: float = 0.2
    """Mean motion per frame in object diameters. At 0.05 the last frame's masks alone give every
    identity; at 0.6 they hardly overlap the next frame's, and appearance has to decide."""
    deformation: float = 0.12
    """Strength of stretching, bending and wobbling, as a share of the radius."""
    background_speed: float = 0.015
    """Mean drift of the background per frame, in units of the frame's shorter side."""
    background_contrast: float = 0.5
    """Strength of the background's texture and colours, 0..1."""
    noise: float = 3.0
    """Standard deviation of the sensor noise, grey levels."""
    min_visible: int = 16
    """An instance with fewer visible pixels in a frame counts as absent there."""
    jpeg_quality: int = 92
    """Quality of written JPEG frames, 1..100."""

    def __post_init__(self) -> None:
        for name in ("size", "length", "num_objects"):
            values = getattr(self, name)
            if len(values) != 2 or min(values) < 1:
                raise ValueError(f"{name} must be two integers >= 1, got {values}")
        for name in ("length", "num_objects", "diameter"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name} must be (smallest, largest), both > 0, got {(low, high)}")
        if min(self.size) < 32:
            raise ValueError(f"size must be at least 32 pixels on each side, got {self.size}")
        if self.diameter[1] > 1:
            raise ValueError(f"diameter is a share of the shorter side, <= 1, got {self.diameter}")
        for name in ("look_alike", "crossing", "leaving", "background_contrast"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(self, name)}")
        for name in ("variation", "speed", "background_speed", "noise"):
            if not 0.0 <= getattr(self, name) < np.inf:
                raise ValueError(f"{name} must be >= 0, got {getattr(self, name)}")
        if not 0.0 <= self.deformation <= 0.4:
            raise ValueError(f"deformation must lie in [0, 0.4], got {self.deformation}")
        if not 1 <= self.num_categories <= len(CATEGORIES):
            raise ValueError(
                f"num_categories must lie in [1, {len(CATEGORIES)}], got {self.num_categories}"
            )
        if self.min_visible < 1:
            raise ValueError(f"min_visible must be >= 1, got {self.min_visible}")
        if not 1 <= self.jpeg_quality <= 100:
            raise ValueError(f"jpeg_quality must lie in [1, 100], got {self.jpeg_quality}")

    @classmethod
    def easy(cls) -> SyntheticConfig:
        """Few objects, some look-alikes, short occlusions (YouTube-VIS-like)."""
        return cls()

    @classmethod
    def crowded(cls) -> SyntheticConfig:
        """Mostly look-alikes of one category that meet, hide one another, leave (OVIS-like)."""
        return cls(
            num_objects=(4, 6),
            diameter=(0.26, 0.46),
            look_alike=0.8,
            variation=0.8,
            crossing=0.9,
            leaving=0.25,
        )

    @property
    def categories(self) -> tuple[str, ...]:
        """Category names by label."""
        return tuple(category.name for category in CATEGORIES[: self.num_categories])


@dataclass(frozen=True, slots=True, repr=False)
class SyntheticVideo:
    """One video of T frames with its exact truth. Every instance is visible in some frame.

    frames:    (T, H, W, 3) uint8, RGB
    masks:     (T, G, H, W) bool, visible pixels; all False where the instance is absent;
               no pixel belongs to two instances
    labels:    (G,)         int64, 0..K-1
    whole:     (T, G)       int64, pixels of the instance in the frame, the hidden ones too
    occlusion: G tuples of T: "no_occlusion", "slight_occlusion", "severe_occlusion", or None
               where absent, from the share of the instance's pixels in the frame that are hidden
    """

    frames: NDArray[np.uint8]
    masks: NDArray[np.bool_]
    labels: NDArray[np.int64]
    whole: NDArray[np.int64]
    occlusion: tuple[tuple[str | None, ...], ...]

    def __repr__(self) -> str:
        return (
            f"SyntheticVideo(frames=uint8{self.frames.shape}, masks=bool{self.masks.shape}, "
            f"labels={self.labels.tolist()})"
        )


def make_video(config: SyntheticConfig, seed: int | tuple[int, ...]) -> SyntheticVideo:
    """Draw one video; the same config and seed give the same arrays.

    seed: non-negative; a tuple names a video of a set, as write_dataset does with (seed, index)
    """
    rng = np.random.default_rng(seed)
    height, width = config.size
    num_frames = int(rng.integers(config.length[0], config.length[1], endpoint=True))
    backdrop = looks.background(
        rng, config.size, num_frames, config.background_contrast, config.background_speed
    )
    instances = _instances(rng, config, num_frames)
    shake = smooth(rng, num_frames, 0.008 * min(config.size), size=2)  # a hand-held camera
    light = 1.0 + smooth(rng, num_frames, 0.06)

    frames = np.empty((num_frames, height, width, 3), np.uint8)
    masks = np.zeros((num_frames, len(instances), height, width), np.bool_)
    visible = np.zeros((num_frames, len(instances)), np.int64)
    whole = np.zeros_like(visible)
    for t in range(num_frames):
        canvas = backdrop(t, shake[t])
        # Painter's algorithm: later instances are nearer to the camera.
        for g, instance in enumerate(instances):
            covered = looks.draw(canvas, instance, t, shake[t])
            whole[t, g] = np.count_nonzero(covered)
            masks[t, :g] &= ~covered
            masks[t, g] = covered
        canvas *= light[t]
        canvas += config.noise * rng.standard_normal(canvas.shape, dtype=np.float32)
        frames[t] = np.clip(canvas + 0.5, 0, 255).astype(np.uint8)
        visible[t] = masks[t].sum(axis=(1, 2))

    masks[visible < config.min_visible] = False
    seen = np.flatnonzero((visible >= config.min_visible).any(axis=0))
    return SyntheticVideo(
        frames=frames,
        masks=np.ascontiguousarray(masks[:, seen]),
        labels=np.array([instances[g].label for g in seen], np.int64),
        whole=whole[:, seen],
        occlusion=tuple(
            tuple(_occlusion(visible[t, g], whole[t, g], config) for t in range(num_frames))
            for g in seen
        ),
    )


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

    Frames lie below out/JPEGImages: `video_0000/00000.jpg`, or `video_0000.mp4` whose frames are
    named `video_0000.mp4#0`, `video_0000.mp4#1`, ... The JSON is written last and atomically, so
    where it exists the set is complete. Asking again for the same set returns at once. The bytes
    do not depend on processes.

    num_videos: >= 1; video i is make_video(config, (seed, i)) and has id i + 1
    processes:  how many to draw with; None: one per CPU. More than one are spawned, so the caller
                must be an importable module with its main guarded, as with multiprocessing
    progress:   show a progress bar
    Errors: FileExistsError if out already holds another dataset; OSError if a frame cannot be
    written.
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
    (out / FRAMES_FOLDER).mkdir(parents=True, exist_ok=True)

    draw = functools.partial(
        _write_video, root=out / FRAMES_FOLDER, config=config, seed=seed, format=format
    )
    drawn = list(_map(draw, num_videos, processes, progress))
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
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(document, separators=(",", ":"), sort_keys=True))
    temporary.replace(path)
    return path


def _request_of(path: Path) -> Any:
    """What the dataset at path was made from; None where it is not one of ours."""
    try:
        document = json.loads(path.read_text())
    except (ValueError, OSError):
        return None
    info = document.get("info") if isinstance(document, dict) else None
    return info.get("synthetic") if isinstance(info, dict) else None


_Drawn = tuple[dict[str, Any], list[dict[str, Any]]]


def _map(
    draw: functools.partial[_Drawn], num_videos: int, processes: int | None, progress: bool
) -> Iterator[_Drawn]:
    """draw(0), draw(1), ... in order, in this process or in several."""
    if processes is None:
        processes = os.cpu_count() or 1
    if processes < 1:
        raise ValueError(f"processes must be >= 1, or None for one per CPU, got {processes}")
    processes = min(processes, num_videos)

    def shown(drawn: Iterable[_Drawn]) -> Iterable[_Drawn]:
        if not progress:
            return drawn
        from tqdm import tqdm

        bar: Iterable[_Drawn] = tqdm(drawn, total=num_videos, desc="synthetic videos", unit="video")
        return bar

    if processes == 1:
        yield from shown(map(draw, range(num_videos)))
        return
    # Spawned, not forked: the caller may already run torch or Ray threads.
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        yield from shown(pool.map(draw, range(num_videos), chunksize=4))


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
    rows = []
    for g, label in enumerate(video.labels.tolist()):
        present = [bool(mask.any()) for mask in video.masks[:, g]]
        encoded = coco.encode(np.asfortranarray(video.masks[:, g].transpose(1, 2, 0), np.uint8))
        boxes = coco.toBbox(encoded)
        areas = video.masks[:, g].sum((1, 2))  # coco.area overflows on more than 255 masks
        runs = [{"size": [height, width], "counts": e["counts"].decode("ascii")} for e in encoded]
        rows.append(
            {
                "video_id": index + 1,
                "category_id": label + 1,
                "iscrowd": 0,
                "width": width,
                "height": height,
                "length": len(present),
                "segmentations": [r if p else None for r, p in zip(runs, present, strict=True)],
                "bboxes": [b.tolist() if p else None for b, p in zip(boxes, present, strict=True)],
                "areas": [int(a) if p else None for a, p in zip(areas, present, strict=True)],
                "amodal_areas": [
                    int(a) if p else None for a, p in zip(video.whole[:, g], present, strict=True)
                ],
                "occlusion": list(video.occlusion[g]),
            }
        )
    entry = {
        "id": index + 1,
        "name": name,
        "width": width,
        "height": height,
        "length": len(video.frames),
        "file_names": file_names,
    }
    return entry, rows


def _write_jpegs(
    root: Path, name: str, frames: NDArray[np.uint8], config: SyntheticConfig
) -> list[str]:
    (root / name).mkdir(exist_ok=True)
    file_names = [f"{name}/{t:05d}.jpg" for t in range(len(frames))]
    options = [cv2.IMWRITE_JPEG_QUALITY, config.jpeg_quality]
    for frame, file_name in zip(frames, file_names, strict=True):
        _, encoded = cv2.imencode(".jpg", frame[..., ::-1], options)
        (root / file_name).write_bytes(encoded.tobytes())
    return file_names


def _write_mp4(
    root: Path, name: str, frames: NDArray[np.uint8], config: SyntheticConfig
) -> list[str]:
    height, width = config.size
    path = root / f"{name}.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 6.0, (width, height))
    if not writer.isOpened():
        raise OSError(
            f"cannot write {path}: this OpenCV has no mp4v encoder, or the folder is not "
            "writable. Write JPEG frames instead: format='jpeg'."
        )
    for frame in frames:
        writer.write(np.ascontiguousarray(frame[..., ::-1]))
    writer.release()
    return [f"{path.name}#{t}" for t in range(len(frames))]


def _occlusion(visible: int, whole: int, config: SyntheticConfig) -> str | None:
    if visible < config.min_visible:
        return None
    hidden = 1.0 - visible / whole
    if hidden <= _SLIGHT:
        return "no_occlusion"
    return "slight_occlusion" if hidden < _SEVERE else "severe_occlusion"


class _Motion(NamedTuple):
    """Where an object is at each of T frames."""

    centres: NDArray[np.float64]  # (T, 2) pixels, (x, y)
    headings: NDArray[np.float64]  # (T,) radians
    diameter: float  # pixels


def _instances(
    rng: np.random.Generator, config: SyntheticConfig, num_frames: int
) -> list[Instance]:
    """The objects of a video, from the farthest to the nearest."""
    count = int(rng.integers(config.num_objects[0], config.num_objects[1], endpoint=True))
    labels = [int(rng.integers(config.num_categories))]
    while len(labels) < count:
        alike = rng.random() < config.look_alike
        labels.append(labels[0] if alike else int(rng.integers(config.num_categories)))
    common = rng.uniform(-1, 1, (config.num_categories, 6)).astype(np.float32)
    motions: list[_Motion] = []
    instances = []
    for label in labels:
        # Look-alikes first: a crossing of two categories asks nothing of the embeddings.
        others = [m for m, other in zip(motions, labels, strict=False) if other == label]
        motions.append(_motion(rng, config, num_frames, others or motions))
        growth = 1.0 + smooth(rng, num_frames, config.deformation)
        spin = rng.uniform(-0.12, 0.12) * np.arange(num_frames) + rng.uniform(0, 2 * np.pi)
        instances.append(
            Instance(
                label=label,
                texture=looks.texture(rng, CATEGORIES[label], config.variation, common[label]),
                outline=looks.outline(CATEGORIES[label].outline),
                centres=motions[-1].centres.astype(np.float32),
                radii=(motions[-1].diameter / 2 * growth).astype(np.float32),
                angles=(spin + smooth(rng, num_frames, 0.25)).astype(np.float32),
                stretches=np.exp(smooth(rng, num_frames, config.deformation)),
                bends=smooth(rng, num_frames, 2 * config.deformation),
                wobbles=smooth(rng, num_frames, 0.5 * config.deformation, size=3),
            )
        )
    # The near ones tend to be the large ones, so that some hide others completely.
    nearness = [motion.diameter * np.exp(rng.normal(0, 0.25)) for motion in motions]
    return [instances[i] for i in np.argsort(nearness)]


def _motion(
    rng: np.random.Generator, config: SyntheticConfig, num_frames: int, others: list[_Motion]
) -> _Motion:
    """Draw an object's path through a decisive moment: it meets one of the others there, or goes
    out of the frame to come back, or just passes."""
    limits = np.array([config.size[1], config.size[0]], np.float64)
    diameter = min(config.size) * rng.uniform(*config.diameter)
    moment = int(rng.integers(num_frames))
    point = rng.uniform(np.full(2, diameter / 2), limits - diameter / 2)
    heading = rng.uniform(0, 2 * np.pi)
    lingers = False
    leaves = bool(rng.random() < config.leaving)
    if leaves:
        # Just inside an edge, early enough to return, on the way out.
        axis, far = int(rng.integers(2)), bool(rng.integers(2))
        point[axis] = limits[axis] - 0.3 * diameter if far else 0.3 * diameter
        # Right is 0, down is pi/2 (the frame's y points down); left and up are pi further.
        heading = np.pi / 2 * axis + (0.0 if far else np.pi) + rng.uniform(-0.4, 0.4)
        moment = int(rng.integers(num_frames // 3 + 1))
    elif others and rng.random() < config.crossing:
        other = others[int(rng.integers(len(others)))]
        inside = np.flatnonzero(((other.centres > 0) & (other.centres < limits)).all(axis=1))
        if len(inside):
            moment = int(rng.choice(inside))
            point = other.centres[moment] + rng.normal(0, 0.08 * diameter, 2)
            aside = rng.choice([-1, 1]) * rng.uniform(np.pi / 5, np.pi)
            heading = float(other.headings[moment] + aside)
            lingers = bool(rng.random() < 0.5)

    # Integrated outward from the decisive moment, both ways, on a finer clock.
    fine = 4
    clock = np.arange(num_frames * fine) / fine
    pace = 1.0 + 0.65 * np.sin(2 * np.pi * (clock / rng.uniform(5, 14) + rng.random()))
    if lingers:
        pace *= 1.0 - 0.8 * np.exp(-(((clock - moment) / 1.3) ** 2))
    sway = 0.08 if leaves else 0.2
    turning = rng.uniform(-sway, sway) + sway * np.sin(
        2 * np.pi * (clock / rng.uniform(6, 14) + rng.random())
    )
    headings = np.cumsum(turning) / fine
    headings += heading - headings[moment * fine]
    steps = pace[:, None] * np.stack([np.cos(headings), np.sin(headings)], axis=1)
    travelled = np.cumsum(steps, axis=0) * config.speed * diameter / fine
    points = (point + travelled - travelled[moment * fine])[::fine]
    # Turn back at the edges by folding the plane; those who leave do so beyond the frame, where
    # nothing of them is seen.
    inset = (-0.75 if leaves else 0.25) * diameter
    span = np.maximum(limits - 2 * inset, 1.0)
    centres = inset + span - np.abs((points - inset) % (2 * span) - span)
    return _Motion(centres, headings[::fine], diameter)
