"""Detections made from true masks: what a network would say, with every kind of error on a dial."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
import torch

from benchmarks.replay import Clip, video_truth
from idol.arrays import Bools, Floats
from idol.evaluation.overlaps import frame_overlap, truth_of_frame
from idol.masks import iou, rle
from idol.structures import FrameDetections

_CLEAR = 0.5  # visible share of its usual size from which an instance counts as in full view


@dataclass(frozen=True, kw_only=True, slots=True)
class NoiseConfig:
    """How far detections are from the truth.

    Set by hand after looking at the tiny network on crowded videos of seed 3001 (medians): cosine
    with the next frame's embedding 0.94, length 3, score 0.73, mask IoU 0.81, 26 % of the instances
    missed, many duplicates. Its look-alikes are farther apart (0.1) than `alike` here: the dial.
    """

    alike: float = 0.7
    """Mean cosine of two instances of one category."""
    between: float = 0.1
    """Mean cosine of two instances of different categories."""
    wander: float = 0.1
    """Length of an embedding's change from frame to frame that lasts, in units of its own."""
    jitter: float = 0.2
    """Length of its change in one frame."""
    mixing: float = 0.6
    """Share that the one in front has in the embedding of one that is almost hidden."""
    length: float = 3.0
    """Length of embeddings; softmax sees products, the square of it."""
    size: int = 64
    """C, numbers of an embedding."""
    miss: float = 0.04
    """Chance that an instance in full view is missed in a frame."""
    miss_hidden: float = 0.5
    """The same of one that is almost hidden."""
    miss_again: float = 0.4
    """Chance that one missed in the last frame is missed again."""
    score: tuple[float, float] = (0.75, 0.12)
    """Mean and standard deviation of the score in full view; almost hidden it is 0.35 lower."""
    wrong_class: float = 0.06
    """Chance that another category has the best score in a frame; three times that when hidden."""
    shift: float = 0.03
    """Standard deviation of a mask's shift, in units of its side; the box's own error likewise."""
    duplicates: float = 0.25
    """Chance that an instance is found twice, the second time in part."""
    false_positives: float = 0.5
    """False positives a frame; half of them stay for up to three frames."""
    junk: float = 1.0
    """Detections below the tracker's threshold a frame, which matter where there is no other."""


def simulate(
    video_id: int,
    bits: Bools,
    labels: Sequence[int],
    num_classes: int,
    config: NoiseConfig,
    seed: tuple[int, ...],
) -> Clip:
    """One clip of seeded detections.

    video_id:    of the truth made from the masks
    bits:        (T, G, H, W) true masks
    labels:      (G,) 0..K-1
    num_classes: K
    config:      the dials
    seed:        the same seed gives the same clip, whatever was drawn before
    """
    known = video_truth(video_id, bits, labels, num_classes)
    world = _World(bits, list(labels), num_classes, config, np.random.default_rng(seed))
    frames = [world.frame(t) for t in range(len(bits))]
    overlaps = [
        frame_overlap(frame.masks, truth_of_frame(known, t), known.size, t)
        for t, frame in enumerate(frames)
    ]
    return Clip(tuple(frames), tuple(overlaps), known.without_masks())


@dataclass(slots=True)
class _Found:
    """What is seen in one frame, a row each."""

    shapes: list[Bools] = field(default_factory=list)
    boxes: list[Floats] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    embeddings: list[Floats] = field(default_factory=list)


class _World:
    """The instances of one video, their looks, and what goes wrong."""

    def __init__(
        self,
        bits: Bools,
        labels: list[int],
        num_classes: int,
        config: NoiseConfig,
        rng: np.random.Generator,
    ) -> None:
        self.bits, self.labels, self.config, self.rng = bits, labels, config, rng
        self.num_classes = num_classes
        common, kinds = self._direction(), self._directions(num_classes)
        # Cosines of sums of independent directions: shared parts add up to `between` and `alike`.
        shares = config.between, config.alike - config.between, 1 - config.alike
        self.kinds = [np.sqrt(shares[:2]) @ np.stack([common, kind]) for kind in kinds]
        self.own = np.sqrt(shares[2]) * self._directions(len(labels))
        self.changed = np.zeros_like(self.own)
        areas = bits.sum(axis=(2, 3))
        usual = np.array([np.median(a[a > 0]) if a.any() else 1 for a in areas.T])
        self.visible = np.minimum(areas / usual, 1)  # (T, G)
        self.missed = np.zeros(len(labels), bool)
        self.ghosts: list[tuple[int, Bools, float, int, Floats]] = []  # frames left, the rest

    def frame(self, t: int) -> FrameDetections:
        config, rng, found = self.config, self.rng, _Found()
        drift = config.wander * self._directions(len(self.labels))
        self.changed = 0.9 * self.changed + drift
        for g, label in enumerate(self.labels):
            shape = self.bits[t, g]
            hidden = float(np.clip(1 - self.visible[t, g] / _CLEAR, 0, 1))
            chance = config.miss + (config.miss_hidden - config.miss) * hidden
            if self.missed[g]:
                chance = max(chance, config.miss_again)
            drawn = rng.random()
            if not shape.any():
                continue
            self.missed[g] = drawn < chance
            if self.missed[g]:
                continue
            front = self._in_front(t, g) if hidden > 0 else None
            mixed = 0.0 if front is None else config.mixing * hidden
            look = (1 - mixed) * self._look(g) + (mixed * self._look(front) if mixed else 0.0)
            mean, spread = config.score
            score = float(np.clip(rng.normal(mean - 0.35 * hidden, spread), 0.05, 0.98))
            self._add(found, shape, score, self._class(label, hidden), look)
            if rng.random() < config.duplicates:
                part = self._half(shape)
                lower = score * rng.uniform(0.3, 0.9)
                self._add(found, part, lower, self._class(label, hidden), look)
        self._false_positives(found)
        return self._collected(t, found)

    def _false_positives(self, found: _Found) -> None:
        config, rng = self.config, self.rng
        for _ in range(rng.poisson(config.false_positives)):
            label = int(rng.integers(self.num_classes))
            kind = self.kinds[label] + np.sqrt(1 - config.alike) * self._direction()
            look = kind if rng.random() < 0.5 else self._direction()
            stays = int(rng.integers(1, 4)) if rng.random() < 0.5 else 1
            self.ghosts.append((stays, self._blob(), float(rng.uniform(0.1, 0.5)), label, look))
        for _, shape, score, label, look in self.ghosts:
            self._add(found, shape, float(score * rng.uniform(0.8, 1)), label, look)
        self.ghosts = [(left - 1, *rest) for left, *rest in self.ghosts if left > 1]
        for _ in range(rng.poisson(config.junk)):
            label = int(rng.integers(self.num_classes))
            look = self.kinds[label] + np.sqrt(1 - config.alike) * self._direction()
            self._add(found, self._blob(), float(rng.uniform(0.05, 0.1)), label, look)

    def _add(self, found: _Found, shape: Bools, score: float, label: int, look: Floats) -> None:
        config, rng = self.config, self.rng
        rows, columns = np.flatnonzero(shape.any(1)), np.flatnonzero(shape.any(0))
        if not len(rows):
            return
        x1, x2, y1, y2 = columns[0], columns[-1] + 1, rows[0], rows[-1] + 1
        side = np.sqrt((x2 - x1) * (y2 - y1))
        dx, dy = rng.normal(0, config.shift * side, 2)
        height, width = shape.shape
        drawn = cv2.warpAffine(
            shape.astype(np.uint8), np.array([[1, 0, dx], [0, 1, dy]]), (width, height),
            flags=cv2.INTER_NEAREST,
        )  # fmt: skip
        reach = round(abs(rng.normal(0, config.shift * side)))
        if reach:
            kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1,) * 2)
            drawn = (cv2.dilate if rng.random() < 0.5 else cv2.erode)(drawn, kernel)
        edges = np.array([x1 + dx, y1 + dy, x2 + dx, y2 + dy])
        edges = edges + rng.normal(0, config.shift * side, 4)
        bounds = np.array([width, height])
        low, high = np.minimum(edges[:2], edges[2:]), np.maximum(edges[:2], edges[2:])
        found.shapes.append(drawn.astype(bool))
        found.boxes.append(np.concatenate([np.clip(low, 0, bounds), np.clip(high, 0, bounds)]))
        found.scores.append(score)
        found.labels.append(label)
        jitter = config.jitter * self._direction()
        found.embeddings.append(config.length * (look + jitter))

    def _collected(self, t: int, found: _Found) -> FrameDetections:
        rng, count = self.rng, len(found.scores)
        best = np.array(found.scores, np.float32)
        order = np.argsort(-best, kind="stable")
        class_scores = best[:, None] * rng.uniform(0, 0.3, (count, self.num_classes))
        class_scores[np.arange(count), np.array(found.labels, int)] = best
        size = self.bits.shape[2:]
        shapes = torch.from_numpy(
            np.stack([found.shapes[i] for i in order]) if count else np.zeros((0, *size), bool)
        )
        boxes = np.array(found.boxes).reshape(count, 4)[order]
        embeddings = np.array(found.embeddings).reshape(count, self.config.size)[order]
        return FrameDetections(
            frame_index=t,
            scores=torch.from_numpy(best[order]),
            class_scores=torch.from_numpy(class_scores[order]).float(),
            embeddings=torch.from_numpy(embeddings).float(),
            overlaps=iou.mask_iou(shapes),
            boxes=torch.from_numpy(boxes).float(),
            masks=tuple(rle.encode_masks(shapes)),
        )

    def _look(self, g: int) -> Floats:
        return self.kinds[self.labels[g]] + self.own[g] + self.changed[g]

    def _in_front(self, t: int, g: int) -> int | None:
        """Whose mask fills most of the box in which g was or is."""
        grown = cv2.dilate(self.bits[t, g].astype(np.uint8), np.ones((9, 9), np.uint8)) > 0
        shared = (self.bits[t] & grown).sum(axis=(1, 2))
        shared[g] = 0
        return int(shared.argmax()) if shared.any() else None

    def _class(self, label: int, hidden: float) -> int:
        if self.rng.random() < self.config.wrong_class * (1 + 2 * hidden):
            return int(self.rng.integers(self.num_classes))
        return label

    def _half(self, shape: Bools) -> Bools:
        """A part of a mask, cut off along an axis."""
        part = shape.copy()
        axis = int(self.rng.integers(2))
        filled = np.flatnonzero(shape.any(axis=1 - axis))
        cut = int(filled[0] + len(filled) * self.rng.uniform(0.3, 0.9))
        if axis == 0:
            part[cut:] = False
        else:
            part[:, cut:] = False
        return part

    def _blob(self) -> Bools:
        height, width = self.bits.shape[2:]
        drawn = np.zeros((height, width), np.uint8)
        centre = int(self.rng.integers(width)), int(self.rng.integers(height))
        low, high = max(2, min(height, width) // 20), max(4, min(height, width) // 6)
        axes = int(self.rng.integers(low, high)), int(self.rng.integers(low, high))
        cv2.ellipse(drawn, centre, axes, float(self.rng.uniform(0, 180)), 0, 360, 1, -1)
        return drawn.astype(bool)

    def _direction(self) -> Floats:
        drawn = self.rng.normal(size=self.config.size)
        return drawn / np.linalg.norm(drawn)

    def _directions(self, count: int) -> Floats:
        return np.array([self._direction() for _ in range(count)]).reshape(count, -1)
