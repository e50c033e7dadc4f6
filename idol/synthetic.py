"""Seeded videos of moving, occluding, look-alike objects with exact truth, in YouTube-VIS form.

The difficulty is the paper's: instances of one category that look alike, cross, hide one another
completely, leave and come back. A category is told by its outline, its texture family and a band
of hues together; instances of a category differ within the band, in brightness, in frequency and
orientation of the texture, and in size.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
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

Floats = NDArray[np.float32]
Format = Literal["jpeg", "mp4"]

FRAMES_FOLDER: Final = "JPEGImages"
"""Folder beside the JSON below which `file_names` are found, as in YouTube-VIS."""

_SUPERSAMPLE: Final = 4  # outline pixels per frame pixel and side: 16 levels of edge coverage
_TEXTURE_SIDE: Final = 96  # pixels of an instance's texture, before it is warped onto the frame
_TEXTURE_REACH: Final = 1.6  # the texture covers [-reach, reach] in units of the object's radius
_SLIGHT: Final = 0.02  # hidden share above which an instance counts as slightly occluded
_SEVERE: Final = 0.5  # and as severely occluded (OVIS: half)


class _Category(NamedTuple):
    """What all instances of a category share."""

    name: str
    outline: str
    texture: str
    hue: float  # degrees, centre of the band


_CATEGORIES: Final = (
    _Category("star", "star", "stripes", 8.0),
    _Category("fish", "fish", "scales", 212.0),
    _Category("flower", "flower", "rings", 118.0),
    _Category("cross", "cross", "checker", 292.0),
    _Category("moon", "moon", "zigzag", 52.0),
    _Category("leaf", "leaf", "marble", 165.0),
)


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
        if not 1 <= self.num_categories <= len(_CATEGORIES):
            raise ValueError(
                f"num_categories must lie in [1, {len(_CATEGORIES)}], got {self.num_categories}"
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
        return tuple(category.name for category in _CATEGORIES[: self.num_categories])


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


class _Instance(NamedTuple):
    """One object: its looks, and where and how it is at each of T frames."""

    label: int
    texture: Floats  # (S, S, 3), S = _TEXTURE_SIDE; RGB 0..255
    outline: Floats  # (V, 2) in units of the radius
    centres: Floats  # (T, 2) pixels, (x, y)
    radii: Floats  # (T,) pixels
    angles: Floats  # (T,) radians
    stretches: Floats  # (T,) > 0, width grows by it and height shrinks
    bends: Floats  # (T,)
    wobbles: Floats  # (T, 3) amplitudes of the 2nd, 3rd and 4th harmonic


def make_video(config: SyntheticConfig, seed: int | tuple[int, ...]) -> SyntheticVideo:
    """Draw one video; the same config and seed give the same arrays.

    seed: non-negative; a tuple names a video of a set, as write_dataset does with (seed, index)
    """
    rng = np.random.default_rng(seed)
    height, width = config.size
    num_frames = int(rng.integers(config.length[0], config.length[1], endpoint=True))
    background = _background(rng, config, num_frames)
    instances = _instances(rng, config, num_frames)
    shake = _smooth(rng, num_frames, 0.008 * min(config.size), size=2)  # a hand-held camera
    light = 1.0 + _smooth(rng, num_frames, 0.06)

    frames = np.empty((num_frames, height, width, 3), np.uint8)
    masks = np.zeros((num_frames, len(instances), height, width), np.bool_)
    visible = np.zeros((num_frames, len(instances)), np.int64)
    whole = np.zeros_like(visible)
    for t in range(num_frames):
        canvas = background(t, shake[t])
        # Painter's algorithm: later instances are nearer to the camera.
        for g, instance in enumerate(instances):
            covered = _draw(canvas, instance, t, shake[t])
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
        "info": {"description": "synthetic videos of idol.synthetic", "synthetic": request},
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
        boxes, areas = coco.toBbox(encoded), coco.area(encoded)
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


# Drawing -----------------------------------------------------------------------------------------


def _draw(canvas: Floats, instance: _Instance, t: int, shift: Floats) -> NDArray[np.bool_]:
    """Paint the instance onto canvas (H, W, 3); returns (H, W) bool, the pixels it covers."""
    height, width = canvas.shape[:2]
    covered = np.zeros((height, width), np.bool_)
    outline = _deformed(instance, t)
    stretch, angle, radius = instance.stretches[t], instance.angles[t], instance.radii[t]
    cos, sin = np.cos(angle) * radius, np.sin(angle) * radius
    # Columns: where the object's own x and y axes point on the frame.
    axes = np.array([[cos * stretch, -sin / stretch], [sin * stretch, cos / stretch]], np.float32)
    centre = instance.centres[t] + shift
    points = outline @ axes.T + centre
    x0, y0 = np.maximum(np.floor(points.min(axis=0)).astype(int) - 1, 0)
    x1, y1 = np.minimum(np.ceil(points.max(axis=0)).astype(int) + 2, (width, height))
    if x0 >= x1 or y0 >= y1:
        return covered

    # Coverage of each pixel of the box: the polygon drawn finer, then averaged.
    size = (int(x1 - x0), int(y1 - y0))
    origin = np.array([x0, y0], np.float32)
    inside = _filled(points - origin, size)
    alpha = cv2.resize(inside, size, interpolation=cv2.INTER_AREA)
    # The rim is darker, so that two look-alikes in front of one another have an edge between them.
    shade = 0.65 + 0.35 * cv2.resize(
        _filled((points - centre) * 0.86 + centre - origin, size),
        size,
        interpolation=cv2.INTER_AREA,
    )

    scale = _TEXTURE_SIDE / (2 * _TEXTURE_REACH)
    inverse = np.linalg.inv(axes) * scale
    offset = inverse @ (origin - centre) + (_TEXTURE_SIDE - 1) / 2
    warp = np.concatenate([inverse, offset[:, None]], axis=1)
    colours = cv2.warpAffine(
        instance.texture,
        warp,
        size,
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REFLECT,
    )
    region = canvas[y0:y1, x0:x1]
    region += alpha[..., None] * (colours * shade[..., None] - region)
    covered[y0:y1, x0:x1] = alpha >= 0.5
    return covered


def _filled(polygon: Floats, size: tuple[int, int]) -> Floats:
    """1 inside the polygon (V, 2), 0 outside, on a grid _SUPERSAMPLE times finer than size."""
    fine = np.zeros((size[1] * _SUPERSAMPLE, size[0] * _SUPERSAMPLE), np.float32)
    # Pixel centres are integers for OpenCV; the last 4 bits are fractions of a pixel.
    corners = ((polygon + 0.5) * _SUPERSAMPLE - 0.5) * 16
    cv2.fillPoly(fine, [np.rint(corners).astype(np.int32)], 1.0, shift=4)
    return fine


def _deformed(instance: _Instance, t: int) -> Floats:
    """The outline (V, 2) at frame t in units of the radius, before stretch and rotation."""
    x, y = instance.outline.T
    direction = np.arctan2(y, x)
    harmonics = np.stack([np.cos(n * direction + n) for n in (2, 3, 4)])
    swell = 1.0 + instance.wobbles[t] @ harmonics
    return np.stack([x * swell, y * swell + instance.bends[t] * (x * x - 0.4)], axis=1).astype(
        np.float32
    )


def _outline(shape: str) -> Floats:
    """Vertices (V, 2) of a category's outline, about 1 from the centre at the farthest."""
    turn = np.linspace(0, 2 * np.pi, 80, endpoint=False)
    circle = np.stack([np.cos(turn), np.sin(turn)], axis=1)
    if shape == "star":
        wave = np.abs((turn * 5 / (2 * np.pi)) % 1 - 0.5) * 2  # 1 at the five tips
        points = circle * (0.48 + 0.58 * wave**1.2)[:, None]
    elif shape == "flower":
        points = circle * (0.8 + 0.2 * np.cos(6 * turn))[:, None]
    elif shape == "fish":
        body = np.array([1.0, 0.52]) * circle * [0.8, 1.0] + [0.24, 0.0]
        tail = [[-0.45, 0.16], [-1.05, 0.62], [-0.85, 0.0], [-1.05, -0.62], [-0.45, -0.16]]
        keep = body[:, 0] > -0.45
        body = np.roll(body, 40, axis=0)[np.roll(keep, 40)]  # from lower left round to upper left
        points = np.concatenate([body, np.array(tail)])
    elif shape == "cross":
        arm, reach = 0.34, 0.98
        corner = np.array([[reach, -arm], [reach, arm], [arm, arm]])
        quarter = np.array([[0, 1], [-1, 0]])
        turns = [np.linalg.matrix_power(quarter, k) for k in range(4)]
        points = _resampled(np.concatenate([corner @ r for r in turns]), 80)
    elif shape == "moon":
        outer = circle[(turn > 0.7) & (turn < 2 * np.pi - 0.7)]
        inner = outer[::-1] * [0.62, 0.72] + [0.28, 0.0]
        points = np.concatenate([outer, inner]) + np.array([0.12, 0.0])
    else:  # leaf
        points = np.stack([circle[:, 0], 0.62 * np.sign(circle[:, 1]) * circle[:, 1] ** 2], axis=1)
    return np.ascontiguousarray(points, np.float32)


def _resampled(points: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """More vertices along the polygon's sides, so that bending bends them."""
    closed = np.concatenate([points, points[:1]])
    per_side = max(1, count // len(points))
    steps = np.arange(per_side)[:, None] / per_side
    sides = [a + steps * (b - a) for a, b in itertools.pairwise(closed)]
    return np.concatenate(sides)


def _texture(
    rng: np.random.Generator, category: _Category, variation: float, common: Floats
) -> Floats:
    """An instance's own texture (S, S, 3) RGB: its category's family, hue band and its own draw.

    common: (6,) in [-1, 1], what the instances of this category in this video have in common
    """
    own = np.clip(common * 0.35 + rng.uniform(-1, 1, 6) * variation, -1, 1)
    hue = category.hue + 20.0 * own[0]
    value = 0.72 + 0.2 * own[1]
    saturation = 0.68 + 0.14 * own[2]
    frequency = 2.0 * 2.0 ** (0.65 * own[3])  # periods per radius
    orientation = np.pi / 2 * own[4]
    contrast = 0.55 + 0.2 * own[5]

    line = np.linspace(-_TEXTURE_REACH, _TEXTURE_REACH, _TEXTURE_SIDE, dtype=np.float32)
    x, y = np.meshgrid(line, line)
    cos, sin = np.cos(orientation), np.sin(orientation)
    u, v = frequency * (cos * x + sin * y), frequency * (cos * y - sin * x)
    turn = 2 * np.pi
    if category.texture == "stripes":
        pattern = np.sin(turn * u)
    elif category.texture == "scales":
        row = np.floor(v * 1.2)
        dx, dy = (u + 0.5 * (row % 2)) % 1 - 0.5, (v * 1.2) % 1 - 0.5
        pattern = 1.6 - 5.0 * np.hypot(dx, dy)
    elif category.texture == "rings":
        pattern = np.sin(turn * np.hypot(u, v * 1.15) + own[4])
    elif category.texture == "checker":
        pattern = 1.8 * np.sin(np.pi * u) * np.sin(np.pi * v)
    elif category.texture == "zigzag":
        pattern = np.sin(turn * (u + 0.5 * np.abs((2 * v) % 2 - 1)))
    else:  # marble
        pattern = np.sin(turn * (0.7 * u + 0.35 * np.sin(4 * v) + 0.25 * np.sin(7 * u + 3 * v)))
    tone = 0.5 + 0.5 * np.tanh(2.2 * pattern)  # soft edges: sharp ones alias when warped
    bright = _rgb(hue, saturation * 0.85, min(1.0, value * 1.15))
    dark = _rgb(hue - 8.0, saturation * 1.1, value * (1.0 - contrast))
    return np.asarray(dark + tone[..., None] * (bright - dark), np.float32)


def _rgb(hue: float, saturation: float, value: float) -> Floats:
    """One colour, (3,) RGB 0..255; hue in degrees, the others 0..1."""
    channel = (np.array([5.0, 3.0, 1.0]) + hue / 60.0) % 6
    falloff = np.clip(np.minimum(channel, 4 - channel), 0, 1)
    return np.asarray(255 * value * (1 - saturation * falloff), np.float32)


class _Background:
    """A textured field, larger than the frame, seen through a window that drifts and turns."""

    def __init__(self, field: Floats, windows: Floats, size: tuple[int, int]) -> None:
        self._field, self._windows, self._size = field, windows, size

    def __call__(self, t: int, shift: Floats) -> Floats:
        """The background (H, W, 3) of frame t, moved by shift pixels."""
        height, width = self._size
        x, y, angle, zoom = self._windows[t]
        cos, sin = zoom * np.cos(angle), zoom * np.sin(angle)
        middle = np.array([self._field.shape[1] / 2 + x, self._field.shape[0] / 2 + y])
        turn = np.array([[cos, -sin], [sin, cos]])
        offset = middle - turn @ (np.array([width / 2, height / 2]) + shift)
        canvas: Floats = cv2.warpAffine(
            self._field,
            np.concatenate([turn, offset[:, None]], axis=1),
            (width, height),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REFLECT,
        )
        return canvas


def _background(rng: np.random.Generator, config: SyntheticConfig, num_frames: int) -> _Background:
    height, width = config.size
    side = min(height, width)
    field_height, field_width = height + side // 2, width + side // 2
    field = np.zeros((field_height, field_width, 3), np.float32)
    strength = config.background_contrast
    # Octaves of smooth noise: coarse ones carry colour, fine ones carry texture.
    for octave, cells in enumerate((3, 6, 12, 24, 48)):
        grid = rng.standard_normal((cells, cells * width // height + 1, 3)).astype(np.float32)
        grey = grid.mean(axis=2, keepdims=True)
        colour = 0.75 if octave < 3 else 0.25
        grid = colour * grid + (1 - colour) * 1.7 * grey
        amplitude = strength * 62.0 * 0.72**octave
        field += amplitude * cv2.resize(
            grid, (field_width, field_height), interpolation=cv2.INTER_CUBIC
        )
    # Patches with the texture and, weaker, the colour of a category: no cue alone gives objects.
    y, x = np.mgrid[:field_height, :field_width].astype(np.float32) / side
    for _ in range(3):
        angle, frequency = rng.uniform(0, np.pi), rng.uniform(5, 14)
        pattern = np.sin(2 * np.pi * frequency * (np.cos(angle) * x + np.sin(angle) * y))
        if rng.random() < 0.5:
            pattern *= np.sin(2 * np.pi * frequency * (np.cos(angle) * y - np.sin(angle) * x))
        where_x, where_y = rng.uniform(0, x.max()), rng.uniform(0, y.max())
        reach = rng.uniform(0.15, 0.4)
        patch = np.exp(-((x - where_x) ** 2 + (y - where_y) ** 2) / (2 * reach**2))
        tint = _rgb(rng.uniform(0, 360), 0.8, 1.0) - 160.0
        field += strength * patch[..., None] * (34.0 * pattern[..., None] + 0.3 * tint)
    field += rng.uniform(85, 150)

    heading = rng.uniform(0, 2 * np.pi)
    drift = config.background_speed * side * rng.uniform(0.3, 1.7)
    # Around the middle, so that the window stays inside the field for as long as possible.
    along = (np.arange(num_frames) - num_frames / 2) * drift
    windows = np.stack(
        [
            along * np.cos(heading),
            along * np.sin(heading),
            _smooth(rng, num_frames, 0.05),
            1.0 + _smooth(rng, num_frames, 0.04),
        ],
        axis=1,
    )
    return _Background(field, windows.astype(np.float32), config.size)


# Motion ------------------------------------------------------------------------------------------


def _smooth(
    rng: np.random.Generator, num_frames: int, strength: float, size: int | None = None
) -> Floats:
    """A smooth random function of time, (T,) or (T, size), zero mean, about +-strength."""
    columns = size or 1
    t = np.arange(num_frames)[:, None]
    value = np.zeros((num_frames, columns))
    for share in (0.7, 0.3):
        period = rng.uniform(5.0, 16.0, columns)
        value += share * np.sin(2 * np.pi * (t / period + rng.uniform(0, 1, columns)))
    smooth = np.asarray(strength * value, np.float32)
    return smooth if size else smooth[:, 0]


class _Motion(NamedTuple):
    """Where an object is at each of T frames."""

    centres: NDArray[np.float64]  # (T, 2) pixels, (x, y)
    headings: NDArray[np.float64]  # (T,) radians
    diameter: float  # pixels


def _instances(
    rng: np.random.Generator, config: SyntheticConfig, num_frames: int
) -> list[_Instance]:
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
        growth = 1.0 + _smooth(rng, num_frames, config.deformation)
        spin = rng.uniform(-0.12, 0.12) * np.arange(num_frames) + rng.uniform(0, 2 * np.pi)
        instances.append(
            _Instance(
                label=label,
                texture=_texture(rng, _CATEGORIES[label], config.variation, common[label]),
                outline=_outline(_CATEGORIES[label].outline),
                centres=motions[-1].centres.astype(np.float32),
                radii=(motions[-1].diameter / 2 * growth).astype(np.float32),
                angles=(spin + _smooth(rng, num_frames, 0.25)).astype(np.float32),
                stretches=np.exp(_smooth(rng, num_frames, config.deformation)),
                bends=_smooth(rng, num_frames, 2 * config.deformation),
                wobbles=_smooth(rng, num_frames, 0.5 * config.deformation, size=3),
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
