"""Seeded videos of moving, occluding, look-alike objects with exact truth.

The difficulty is the paper's: instances of one category that look alike, cross, hide one another
completely, leave and come back. A category has its own outline, texture family and band of hues;
its instances differ in hue within the band, brightness, size, and frequency and orientation of the
texture.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from idol.arrays import Bools, Floats, Ints
from idol.config.checks import not_negative, require, unit, within
from idol.images import synthetic_looks as looks
from idol.images.synthetic_looks import CATEGORIES, Instance, smooth

_OCCLUSIONS: Final = ("no_occlusion", "slight_occlusion", "severe_occlusion")
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
    """Chance that an object's path is planned to meet another's in place and time. Half of these
    objects slow down there, so that the object behind stays hidden for some frames."""
    leaving: float = 0.2
    """Chance that an object's path leads out of the frame and back."""
    speed: float = 0.2
    """Mean motion per frame in object diameters. At 0.05 mask overlap alone gives every identity;
    at 0.6 masks of successive frames hardly overlap, and appearance has to decide."""
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
            ok = len(values) == 2 and min(values) >= 1
            require(ok, f"{name} must be two integers >= 1, got {values}")
        for name in ("length", "num_objects", "diameter"):
            low, high = getattr(self, name)
            ok = 0 < low <= high
            require(ok, f"{name} must be (smallest, largest), both > 0, got {(low, high)}")
        require(min(self.size) >= 32, f"size must be at least 32 on each side, got {self.size}")
        diameter = self.diameter
        require(diameter[1] <= 1, f"diameter is a share of the shorter side, <= 1, got {diameter}")
        unit(self, "look_alike", "crossing", "leaving", "background_contrast")
        not_negative(self, "variation", "speed", "background_speed", "noise")
        within(self, 0, 0.4, "deformation")
        within(self, 1, len(CATEGORIES), "num_categories")
        within(self, 1, 100, "jpeg_quality")
        require(self.min_visible >= 1, f"min_visible must be >= 1, got {self.min_visible}")

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
    masks:     (T, G, H, W) bool, visible pixels, of no two instances; all False where absent
    labels:    (G,)         int64, 0..K-1
    whole:     (T, G)       int64, pixels of the instance in the frame, hidden ones included
    occlusion: G tuples of T: "no_occlusion", "slight_occlusion" or "severe_occlusion" by the
               hidden share of the instance's pixels in the frame; None where absent
    """

    frames: NDArray[np.uint8]
    masks: Bools
    labels: Ints
    whole: Ints
    occlusion: tuple[tuple[str | None, ...], ...]

    def __repr__(self) -> str:
        return (
            f"SyntheticVideo(frames=uint8{self.frames.shape}, masks=bool{self.masks.shape}, "
            f"labels={self.labels.tolist()})"
        )


def make_video(config: SyntheticConfig, seed: int | tuple[int, ...]) -> SyntheticVideo:
    """Draw one video; the same config and seed (>= 0) give the same arrays."""
    rng = np.random.default_rng(seed)
    height, width = config.size
    num_frames = int(rng.integers(*config.length, endpoint=True))
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

    present = visible >= config.min_visible
    masks[~present] = False
    seen = np.flatnonzero(present.any(axis=0))
    hidden = 1.0 - visible / np.maximum(whole, 1)
    degree = (hidden > _SLIGHT).astype(int) + (hidden >= _SEVERE)
    words: Any = np.where(present, np.array(_OCCLUSIONS, object)[degree], None)
    return SyntheticVideo(
        frames=frames,
        masks=np.ascontiguousarray(masks[:, seen]),
        labels=np.array([instances[g].label for g in seen], np.int64),
        whole=whole[:, seen],
        occlusion=tuple(map(tuple, words[:, seen].T)),
    )


class _Motion(NamedTuple):
    """Where an object is at each of T frames."""

    centres: Floats  # (T, 2) pixels, (x, y)
    headings: Floats  # (T,) radians
    diameter: float  # pixels


def _instances(
    rng: np.random.Generator, config: SyntheticConfig, num_frames: int
) -> list[Instance]:
    """The objects of a video, from the farthest to the nearest."""
    count = int(rng.integers(*config.num_objects, endpoint=True))
    labels = [int(rng.integers(config.num_categories))]
    while len(labels) < count:
        alike = rng.random() < config.look_alike
        labels.append(labels[0] if alike else int(rng.integers(config.num_categories)))
    common = rng.uniform(-1, 1, (config.num_categories, 6)).astype(np.float32)
    motions: list[_Motion] = []
    instances = []
    for label in labels:
        # Prefer crossings of look-alikes: embeddings tell different categories apart easily.
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
    # Large objects tend to be nearer, so that some hide others completely.
    nearness = [motion.diameter * np.exp(rng.normal(0, 0.25)) for motion in motions]
    return [instances[i] for i in np.argsort(nearness)]


def _motion(
    rng: np.random.Generator, config: SyntheticConfig, num_frames: int, others: list[_Motion]
) -> _Motion:
    """An object's path around a moment at which it meets another, leaves, or is anywhere."""
    limits = np.array([config.size[1], config.size[0]], np.float64)
    diameter = min(config.size) * rng.uniform(*config.diameter)
    moment = int(rng.integers(num_frames))
    point = rng.uniform(np.full(2, diameter / 2), limits - diameter / 2)
    heading = rng.uniform(0, 2 * np.pi)
    lingers = False
    leaves = bool(rng.random() < config.leaving)
    if leaves:
        # Just inside an edge and heading out, early enough to return.
        axis, far = int(rng.integers(2)), bool(rng.integers(2))
        point[axis] = limits[axis] - 0.3 * diameter if far else 0.3 * diameter
        # Headings: right is 0, down is pi/2 (y points down); left and up are pi more.
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

    # Integrate the motion before and after that moment, in quarters of a frame.
    fine = 4
    clock = np.arange(num_frames * fine) / fine
    pace = 1.0 + 0.65 * np.sin(2 * np.pi * (clock / rng.uniform(5, 14) + rng.random()))
    if lingers:
        pace *= 1.0 - 0.8 * np.exp(-(((clock - moment) / 1.3) ** 2))
    sway = 0.08 if leaves else 0.2
    drift = rng.uniform(-sway, sway)
    turning = drift + sway * np.sin(2 * np.pi * (clock / rng.uniform(6, 14) + rng.random()))
    headings = np.cumsum(turning) / fine
    headings += heading - headings[moment * fine]
    steps = pace[:, None] * np.stack([np.cos(headings), np.sin(headings)], axis=1)
    travelled = np.cumsum(steps, axis=0) * config.speed * diameter / fine
    points = (point + travelled - travelled[moment * fine])[::fine]
    # Fold the path back at the edges of the frame; objects that leave turn back out of sight.
    inset = (-0.75 if leaves else 0.25) * diameter
    span = np.maximum(limits - 2 * inset, 1.0)
    centres = inset + span - np.abs((points - inset) % (2 * span) - span)
    return _Motion(centres, headings[::fine], diameter)
