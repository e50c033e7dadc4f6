"""Appearance of synthetic objects and backgrounds: outlines, textures, hues, and drawing."""

from __future__ import annotations

import itertools
from typing import Final, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from idol.arrays import Floats, Floats32

_SUPERSAMPLE: Final = 4  # outline pixels per frame pixel and side: 16 levels of edge coverage
_TEXTURE_SIDE: Final = 96  # pixels of an instance's texture, before it is warped onto the frame
_TEXTURE_REACH: Final = 1.6  # the texture covers [-reach, reach] in units of the object's radius


class Category(NamedTuple):
    """What all instances of a category share."""

    name: str
    outline: str
    texture: str
    hue: float  # degrees, centre of the band


CATEGORIES: Final = (
    Category("star", "star", "stripes", 8.0),
    Category("fish", "fish", "scales", 212.0),
    Category("flower", "flower", "rings", 118.0),
    Category("cross", "cross", "checker", 292.0),
    Category("moon", "moon", "zigzag", 52.0),
    Category("leaf", "leaf", "marble", 165.0),
)


class Instance(NamedTuple):
    """One object: its appearance, and its pose and shape in each of T frames."""

    label: int
    texture: Floats32  # (S, S, 3), S = _TEXTURE_SIDE; RGB 0..255
    outline: Floats32  # (V, 2) in units of the radius
    centres: Floats32  # (T, 2) pixels, (x, y)
    radii: Floats32  # (T,) pixels
    angles: Floats32  # (T,) radians
    stretches: Floats32  # (T,) > 0, width grows by it and height shrinks
    bends: Floats32  # (T,)
    wobbles: Floats32  # (T, 3) amplitudes of the 2nd, 3rd and 4th harmonic


def draw(canvas: Floats32, instance: Instance, t: int, shift: Floats32) -> NDArray[np.bool_]:
    """Paint the instance onto canvas (H, W, 3); returns (H, W) bool, the pixels it covers."""
    height, width = canvas.shape[:2]
    covered = np.zeros((height, width), np.bool_)
    shape = _deformed(instance, t)
    stretch, angle, radius = instance.stretches[t], instance.angles[t], instance.radii[t]
    cos, sin = np.cos(angle) * radius, np.sin(angle) * radius
    # Columns: where the object's own x and y axes point on the frame.
    axes = np.array([[cos * stretch, -sin / stretch], [sin * stretch, cos / stretch]], np.float32)
    centre = instance.centres[t] + shift
    points = shape @ axes.T + centre
    x0, y0 = np.maximum(np.floor(points.min(axis=0)).astype(int) - 1, 0)
    x1, y1 = np.minimum(np.ceil(points.max(axis=0)).astype(int) + 2, (width, height))
    if x0 >= x1 or y0 >= y1:
        return covered

    size = (int(x1 - x0), int(y1 - y0))
    origin = np.array([x0, y0], np.float32)
    alpha = _filled(points - origin, size)
    # A darker rim gives an edge between look-alikes that overlap.
    shade = 0.65 + 0.35 * _filled((points - centre) * 0.86 + centre - origin, size)

    scale = _TEXTURE_SIDE / (2 * _TEXTURE_REACH)
    inverse = np.linalg.inv(axes) * scale
    offset = inverse @ (origin - centre) + (_TEXTURE_SIDE - 1) / 2
    warp = np.concatenate([inverse, offset[:, None]], axis=1)
    colours = _warped(instance.texture, warp, size)
    region = canvas[y0:y1, x0:x1]
    region += alpha[..., None] * (colours * shade[..., None] - region)
    covered[y0:y1, x0:x1] = alpha >= 0.5
    return covered


def _warped(image: Floats32, warp: Floats, size: tuple[int, int]) -> Floats32:
    """The pixels of size (width, height) whose places in the image are warp (2, 3) times theirs."""
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    found: Floats32 = cv2.warpAffine(image, warp, size, flags=flags, borderMode=cv2.BORDER_REFLECT)
    return found


def _filled(polygon: Floats32, size: tuple[int, int]) -> Floats32:
    """The share of each pixel inside the polygon (V, 2), which is drawn finer, then averaged."""
    fine = np.zeros((size[1] * _SUPERSAMPLE, size[0] * _SUPERSAMPLE), np.float32)
    # Pixel centres are integers for OpenCV; the last 4 bits are fractions of a pixel.
    corners = ((polygon + 0.5) * _SUPERSAMPLE - 0.5) * 16
    cv2.fillPoly(fine, [np.rint(corners).astype(np.int32)], 1.0, shift=4)
    share: Floats32 = cv2.resize(fine, size, interpolation=cv2.INTER_AREA)
    return share


def _deformed(instance: Instance, t: int) -> Floats32:
    """The outline (V, 2) at frame t in units of the radius, before stretch and rotation."""
    x, y = instance.outline.T
    direction = np.arctan2(y, x)
    harmonics = np.stack([np.cos(n * direction + n) for n in (2, 3, 4)])
    swell = 1.0 + instance.wobbles[t] @ harmonics
    bend = instance.bends[t] * (x * x - 0.4)
    return np.stack([x * swell, y * swell + bend], axis=1).astype(np.float32)


def outline(shape: str) -> Floats32:
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


def _resampled(points: Floats, count: int) -> Floats:
    """Add vertices along the polygon's sides, so that the sides can bend."""
    closed = np.concatenate([points, points[:1]])
    per_side = max(1, count // len(points))
    steps = np.arange(per_side)[:, None] / per_side
    sides = [a + steps * (b - a) for a, b in itertools.pairwise(closed)]
    return np.concatenate(sides)


def texture(
    rng: np.random.Generator, category: Category, variation: float, common: Floats32
) -> Floats32:
    """An instance's texture (S, S, 3) RGB, drawn within its category's family and band of hues.

    common: (6,) in [-1, 1], the part of the draw shared by this category's instances in this video
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
    tone = 0.5 + 0.5 * np.tanh(2.2 * pattern)  # soft edges, because sharp edges alias when warped
    bright = _rgb(hue, saturation * 0.85, min(1.0, value * 1.15))
    dark = _rgb(hue - 8.0, saturation * 1.1, value * (1.0 - contrast))
    return np.asarray(dark + tone[..., None] * (bright - dark), np.float32)


def _rgb(hue: float, saturation: float, value: float) -> Floats32:
    """One colour, (3,) RGB 0..255; hue in degrees, the others 0..1."""
    channel = (np.array([5.0, 3.0, 1.0]) + hue / 60.0) % 6
    falloff = np.clip(np.minimum(channel, 4 - channel), 0, 1)
    return np.asarray(255 * value * (1 - saturation * falloff), np.float32)


class Background:
    """A textured field larger than the frame, which is a drifting, turning window in it."""

    def __init__(self, field: Floats32, windows: Floats32, size: tuple[int, int]) -> None:
        self._field, self._windows, self._size = field, windows, size

    def __call__(self, t: int, shift: Floats32) -> Floats32:
        """The background (H, W, 3) of frame t, moved by shift pixels."""
        height, width = self._size
        x, y, angle, zoom = self._windows[t]
        cos, sin = zoom * np.cos(angle), zoom * np.sin(angle)
        middle = np.array([self._field.shape[1] / 2 + x, self._field.shape[0] / 2 + y])
        turn = np.array([[cos, -sin], [sin, cos]])
        offset = middle - turn @ (np.array([width / 2, height / 2]) + shift)
        warp = np.concatenate([turn, offset[:, None]], axis=1)
        return _warped(self._field, warp, (width, height))


def background(
    rng: np.random.Generator, size: tuple[int, int], num_frames: int, contrast: float, speed: float
) -> Background:
    """Draw a background for a video of num_frames frames.

    size:     (height, width) of the frames, pixels
    contrast: strength of texture and colours, 0..1
    speed:    mean drift per frame, in units of the shorter side
    """
    height, width = size
    side = min(height, width)
    field_height, field_width = height + side // 2, width + side // 2
    field = np.zeros((field_height, field_width, 3), np.float32)
    # Octaves of smooth noise: the coarse ones give colour, the fine ones texture.
    for octave, cells in enumerate((3, 6, 12, 24, 48)):
        grid = rng.standard_normal((cells, cells * width // height + 1, 3)).astype(np.float32)
        grey = grid.mean(axis=2, keepdims=True)
        colour = 0.75 if octave < 3 else 0.25
        grid = colour * grid + (1 - colour) * 1.7 * grey
        amplitude = contrast * 62.0 * 0.72**octave
        larger = cv2.resize(grid, (field_width, field_height), interpolation=cv2.INTER_CUBIC)
        field += amplitude * larger
    # Patches with the texture and, weaker, the colour of a category, so that neither alone
    # identifies an object.
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
        field += contrast * patch[..., None] * (34.0 * pattern[..., None] + 0.3 * tint)
    field += rng.uniform(85, 150)

    heading = rng.uniform(0, 2 * np.pi)
    drift = speed * side * rng.uniform(0.3, 1.7)
    # Centred on the middle of the field, so that the window rarely leaves it.
    along = (np.arange(num_frames) - num_frames / 2) * drift
    x, y = along * np.cos(heading), along * np.sin(heading)
    angles, zooms = smooth(rng, num_frames, 0.05), 1.0 + smooth(rng, num_frames, 0.04)
    windows = np.stack([x, y, angles, zooms], axis=1)
    return Background(field, windows.astype(np.float32), size)


def smooth(
    rng: np.random.Generator, num_frames: int, strength: float, size: int | None = None
) -> Floats32:
    """A smooth random function of time, (T,) or (T, size), zero mean, about +-strength."""
    columns = size or 1
    t = np.arange(num_frames)[:, None]
    value = np.zeros((num_frames, columns))
    for share in (0.7, 0.3):
        period = rng.uniform(5.0, 16.0, columns)
        value += share * np.sin(2 * np.pi * (t / period + rng.uniform(0, 1, columns)))
    smooth = np.asarray(strength * value, np.float32)
    return smooth if size else smooth[:, 0]
