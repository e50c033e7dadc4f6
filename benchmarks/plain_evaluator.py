"""Average precision of tracks computed the plain way: the yardstick of benchmarks.scoring.

The official evaluator's algorithm (ytvoseval), written anew from a description of its rules, with
what it leans on: the whole of both files as Python objects, a union and an intersection by
pycocotools for every pair of masks in every frame, and Python loops over thresholds, tracks and
instances. It does nothing else, so it flatters the official one, if anything.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
RANGES = ((0, 1e10), (0, 128**2), (128**2, 256**2), (256**2, 1e10))
MOST = (1, 10, 100)

Track = dict[str, Any]


def evaluate(truth_path: Path, results_path: Path) -> dict[str, float]:
    """AP, AP50 and AP75 of a results file."""
    truth = json.loads(truth_path.read_text())
    results = json.loads(results_path.read_text())
    instances: dict[tuple[int, int], list[Track]] = defaultdict(list)
    for instance in truth["annotations"]:
        instance["average"] = _average(instance["areas"])
        instances[instance["video_id"], instance["category_id"]].append(instance)
    tracks: dict[tuple[int, int], list[Track]] = defaultdict(list)
    for track in results:
        masks = track["segmentations"]
        track["average"] = _average([0 if m is None else coco_mask.area(m) for m in masks])
        tracks[track["video_id"], track["category_id"]].append(track)
    videos = sorted(video["id"] for video in truth["videos"])
    categories = sorted(category["id"] for category in truth["categories"])
    overlaps = {}
    for key in {*instances, *tracks}:
        tracks[key] = sorted(tracks[key], key=lambda track: -track["score"])[: MOST[-1]]
        overlaps[key] = [[_iou(d, g) for g in instances[key]] for d in tracks[key]]
    precision = np.full((len(THRESHOLDS), len(RECALLS), len(categories), len(RANGES), 3), -1.0)
    for k, category in enumerate(categories):
        for a, area in enumerate(RANGES):
            matched = [
                _match(tracks[video, category], instances[video, category], found, area)
                for video in videos
                if (found := overlaps.get((video, category))) is not None
            ]
            for m, most in enumerate(MOST):
                _accumulate(matched, most, precision[:, :, k, a, m])
    kept = precision[:, :, :, 0, 2]

    def mean(values: NDArray[np.float64]) -> float:
        return float(values[values > -1].mean())

    return {"AP": mean(kept), "AP50": mean(kept[0]), "AP75": mean(kept[5])}


def _average(areas: list[Any]) -> float:
    there = [area for area in areas if area]
    return float(np.mean(there)) if there else 0.0


def _iou(track: Track, instance: Track) -> float:
    shared = union = 0.0
    for one, other in zip(track["segmentations"], instance["segmentations"], strict=True):
        if one and other:
            shared += coco_mask.area(coco_mask.merge([one, other], True))
            union += coco_mask.area(coco_mask.merge([one, other], False))
        elif one or other:
            union += coco_mask.area(one or other)
    return shared / union if union else 0.0


def _match(
    tracks: list[Track],
    instances: list[Track],
    overlaps: list[list[float]],
    area: tuple[float, float],
) -> tuple[list[float], NDArray[Any], NDArray[Any], int]:
    """Scores; (10, R) whether matched; (10, R) whether ignored; instances to be found."""
    low, high = area
    ignore = [bool(g["iscrowd"]) or not low <= g["average"] <= high for g in instances]
    order = sorted(range(len(instances)), key=lambda g: ignore[g])
    matched = np.zeros((len(THRESHOLDS), len(tracks)), bool)
    ignored = np.zeros_like(matched)
    for t, threshold in enumerate(THRESHOLDS):
        taken: set[int] = set()
        for d, track in enumerate(tracks):
            best, at = min(threshold, 1 - 1e-10), -1
            for g in order:
                if g in taken and not instances[g]["iscrowd"]:
                    continue
                if at >= 0 and not ignore[at] and ignore[g]:
                    break
                if overlaps[d][g] >= best:
                    best, at = overlaps[d][g], g
            if at >= 0:
                taken.add(at)
                matched[t, d], ignored[t, d] = True, ignore[at]
            else:
                ignored[t, d] = not low <= track["average"] <= high
    return [track["score"] for track in tracks], matched, ignored, len(ignore) - sum(ignore)


def _accumulate(
    videos: list[tuple[list[float], NDArray[Any], NDArray[Any], int]],
    most: int,
    precision: NDArray[np.float64],
) -> None:
    number = sum(video[3] for video in videos)
    if not number:
        return
    scores = np.concatenate([video[0][:most] for video in videos])
    order = np.argsort(-scores, kind="mergesort")
    matched = np.concatenate([video[1][:, :most] for video in videos], axis=1)[:, order]
    ignored = np.concatenate([video[2][:, :most] for video in videos], axis=1)[:, order]
    right = np.cumsum(matched & ~ignored, axis=1).astype(float)
    wrong = np.cumsum(~matched & ~ignored, axis=1).astype(float)
    for t in range(len(THRESHOLDS)):
        precise = right[t] / (right[t] + wrong[t] + np.spacing(1))
        for n in range(len(precise) - 1, 0, -1):
            precise[n - 1] = max(precise[n - 1], precise[n])
        row = np.zeros(len(RECALLS))
        for r, at in enumerate(np.searchsorted(right[t] / number, RECALLS, side="left")):
            if at < len(precise):
                row[r] = precise[at]
        precision[t] = row
