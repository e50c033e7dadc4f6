import dataclasses
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from idol.config import TrackerConfig
from idol.evaluation import matching, overlaps
from idol.evaluation.stored_overlaps import match_video_from_overlaps
from idol.masks import rle
from idol.structures import FrameDetections, Track
from idol.ytvis import results, truth

SIZE = (9, 11)
CATEGORY_IDS = [5, 3, 8]


def encode(mask: np.ndarray) -> bytes:
    return coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]


class Scene:
    """A random small video: true instances, detections near them, tracks that mix them up."""

    def __init__(self, seed: int, num_truth: int, num_rows: int, num_tracks: int, length: int):
        rng = np.random.default_rng(seed)
        base = [rng.random(SIZE) < rng.choice([0.2, 0.6]) for _ in range(max(num_truth, 1))]
        self.truth_masks = [
            [base[g] if rng.random() < 0.8 else None for _ in range(length)]
            for g in range(num_truth)
        ]
        self.truth = truth.from_masks(
            7,
            SIZE,
            length,
            CATEGORY_IDS,
            instance_ids=[g + 1 for g in range(num_truth)],
            category_ids=[int(rng.choice(CATEGORY_IDS)) for _ in range(num_truth)],
            crowd=[bool(rng.random() < 0.2) for _ in range(num_truth)],
            segmentations=[
                [None if m is None else encode(m) for m in masks] for masks in self.truth_masks
            ],
        )
        self.masks = [
            [base[rng.integers(len(base))] ^ (rng.random(SIZE) < 0.1) for _ in range(num_rows)]
            for _ in range(length)
        ]
        if num_rows:
            self.masks[0][0] = np.zeros(SIZE, bool)  # a detection without a pixel
        self.frames = [
            FrameDetections(
                frame_index=t,
                scores=torch.linspace(0.9, 0.1, num_rows),
                class_scores=torch.from_numpy(rng.random((num_rows, 3), np.float32)),
                embeddings=torch.zeros(num_rows, 2),
                overlaps=torch.eye(num_rows),
                boxes=torch.zeros(num_rows, 4),
                masks=tuple(encode(m) for m in self.masks[t]),
            )
            for t in range(length)
        ]
        self.tracks = [
            Track(
                n,
                {
                    t: int(rng.integers(num_rows))
                    for t in range(length)
                    if num_rows and rng.random() < 0.7
                },
                # Few different scores, so that there are ties.
                torch.from_numpy(rng.choice([0.01, 0.3, 0.6, 0.9], 3).astype(np.float32)),
            )
            for n in range(num_tracks)
        ]

    def overlaps(self):
        return [
            overlaps.frame_overlap(
                frame.masks,
                overlaps.truth_of_frame(self.truth, frame.frame_index),
                SIZE,
                frame.frame_index,
            )
            for frame in self.frames
        ]

    def entries(self, config):
        return results.to_ytvis(
            self.tracks,
            self.frames,
            video_id=7,
            size=SIZE,
            length=len(self.frames),
            category_ids=CATEGORY_IDS,
            config=config,
        )


scenes = st.builds(
    Scene,
    seed=st.integers(0, 2**16),
    num_truth=st.integers(0, 5),
    num_rows=st.integers(0, 5),
    num_tracks=st.integers(0, 6),
    length=st.integers(1, 4),
)


def assert_same(a: matching.VideoMatches, b: matching.VideoMatches) -> None:
    for name in ("video_id", "categories", "ranges", "has_results"):
        assert getattr(a, name) == getattr(b, name)
    for name in ("scores", "matched", "ignored", "num_truth"):
        ours, theirs = getattr(a, name), getattr(b, name)
        assert ours.keys() == theirs.keys(), name
        for category_id, value in ours.items():
            np.testing.assert_array_equal(value, theirs[category_id], err_msg=name)


@settings(deadline=None, max_examples=60)
@given(scenes)
def test_stored_overlaps_give_the_same_matches_as_masks(scene):
    config = TrackerConfig()
    from_masks = matching.match_video(scene.entries(config), scene.truth)
    from_overlaps = match_video_from_overlaps(
        scene.tracks,
        reversed(scene.overlaps()),
        scene.truth.without_masks(),
        category_ids=CATEGORY_IDS,
        config=config,
    )
    assert_same(from_masks, from_overlaps)


@settings(deadline=None, max_examples=30)
@given(scenes)
def test_intersections_and_areas_are_counts_of_pixels(scene):
    for t, overlap in enumerate(scene.overlaps()):
        for n, mask in enumerate(scene.masks[t]):
            assert overlap.area[n] == mask.sum()
            for g, masks in enumerate(scene.truth_masks):
                shared = 0 if masks[t] is None else (mask & masks[t]).sum()
                assert overlap.intersection[n, g] == shared
                assert overlap.truth_area[g] == (0 if masks[t] is None else masks[t].sum())


def test_matches_travel_between_processes():
    scene = Scene(3, 4, 4, 5, 3)
    matches = matching.match_video(scene.entries(TrackerConfig()), scene.truth)
    assert_same(pickle.loads(pickle.dumps(matches)), matches)


def test_more_than_255_detections_in_a_frame_are_measured():
    # Some pycocotools count masks in 8 bits.
    scene = Scene(1, 3, 300, 1, 1)
    overlap = scene.overlaps()[0]
    assert overlap.area.tolist() == [m.sum() for m in scene.masks[0]]


@settings(deadline=None, max_examples=30)
@given(scenes)
def test_compiled_code_changes_no_match(scene):
    entries = scene.entries(TrackerConfig())
    loaded = rle.compile_kernel()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rle._Read, "kernel", None)
        patch.setattr(rle, "_COMPILE_FROM", 1 << 60)
        plain = matching.match_video(entries, scene.truth)
        measured = overlaps.track_overlaps(entries, scene.truth)
        patch.setattr(rle._Read, "kernel", loaded)
        assert_same(matching.match_video(entries, scene.truth), plain)
        compiled = overlaps.track_overlaps(entries, scene.truth)
    for field in dataclasses.fields(measured):
        np.testing.assert_array_equal(getattr(compiled, field.name), getattr(measured, field.name))


def by_the_rules(iou, ignore, crowd):
    """The matching of one threshold and range, written out: who holds which instance, or None."""
    order = sorted(range(len(ignore)), key=lambda g: ignore[g])
    held = set()
    found = []
    for row in iou:
        best, best_iou = None, matching.IOU_THRESHOLDS[4]
        for g in order:
            if g in held and not crowd[g]:
                continue
            if best is not None and ignore[g] and not ignore[best]:
                break
            if row[g] >= best_iou:
                best, best_iou = g, row[g]
        if best is not None:
            held.add(best)
        found.append(best)
    return found


@settings(deadline=None, max_examples=100)
@given(
    data=st.data(),
    num_tracks=st.integers(0, 7),
    num_truth=st.integers(0, 5),
)
def test_greedy_matching_is_the_rules_written_out(data, num_tracks, num_truth):
    levels = st.sampled_from([0.0, 0.6, 0.7, 0.7000000000000001, 0.72, 1.0])
    iou = np.array(
        [[data.draw(levels) for _ in range(num_truth)] for _ in range(num_tracks)], np.float64
    ).reshape(num_tracks, num_truth)
    crowd = np.array([data.draw(st.booleans()) for _ in range(num_truth)], bool)
    ignore = crowd | np.array([data.draw(st.booleans()) for _ in range(num_truth)], bool)
    matched, ignored = matching._greedy(iou, ignore[None], crowd, np.ones(num_truth, bool))
    expected = by_the_rules(iou, ignore.tolist(), crowd.tolist())
    assert matched[0, 4].tolist() == [g is not None for g in expected]
    assert ignored[0, 4].tolist() == [g is not None and bool(ignore[g]) for g in expected]


def test_only_the_best_hundred_of_a_category_are_kept():
    scene = Scene(5, 1, 1, 0, 1)
    category_id = int(scene.truth.category_ids[0])
    entries = [
        {
            "video_id": 7,
            "category_id": category_id,
            "score": score,
            "segmentations": [None],
        }
        for score in np.linspace(0.1, 0.9, 130)
    ]
    kept = matching.match_video(entries, scene.truth).scores[category_id]
    assert kept.tolist() == np.linspace(0.1, 0.9, 130)[::-1][:100].tolist()


def test_an_error_names_the_position_in_the_whole_file():
    scene = Scene(2, 1, 1, 1, 2)
    entry = {"video_id": 7, "category_id": 5, "score": 0.5, "segmentations": [None]}
    with pytest.raises(ValueError, match=r"results\[41\].segmentations has 1 entries"):
        matching.match_video([entry], scene.truth, [41])


def test_overlaps_of_another_truth_or_too_few_frames_are_refused():
    scene = Scene(11, 3, 3, 2, 3)
    overlaps = scene.overlaps()

    def match(given, of=scene.truth):
        return match_video_from_overlaps(
            scene.tracks, given, of, category_ids=CATEGORY_IDS, config=TrackerConfig()
        )

    with pytest.raises(ValueError, match=r"3 frames, overlaps cover 2; missing: \[1\]"):
        match([overlaps[0], overlaps[2]])
    with pytest.raises(ValueError, match="against another truth"):
        match(overlaps, Scene(11, 2, 3, 2, 3).truth)
    with pytest.raises(ValueError, match="other masks or another order"):
        match(overlaps, Scene(12, 3, 3, 2, 3).truth)
    scene.tracks.append(Track(9, {1: 3}, torch.ones(3)))
    with pytest.raises(ValueError, match="track 9 of video 7 names a detection"):
        match(overlaps)


def test_match_video_says_that_it_needs_masks():
    scene = Scene(11, 3, 3, 2, 3)
    with pytest.raises(ValueError, match="carries no masks"):
        matching.match_video([], scene.truth.without_masks())


def test_an_overlap_checks_its_shape():
    with pytest.raises(ValueError, match=r"\(N, G\) = \(2, 3\), got \(3, 2\)"):
        overlaps.FrameOverlap(0, np.zeros((3, 2)), np.zeros(2), np.zeros(3))
