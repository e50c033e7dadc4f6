"""Clip predictions: what they look like, and how overlapping ones are joined."""

import logging
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from idol.analysis import clips
from idol.analysis.clips import Part
from idol.config import AnalysisConfig
from idol.evaluation import average_precision, matching
from idol.masks.rle import decode_masks
from idol.ytvis import results, truth
from idol.ytvis.truth import VideoTruth

SIZE = (1, 40)
CONFIG = AnalysisConfig()


def strip(first: int, last: int) -> dict[str, Any]:
    """A mask in a picture one pixel high: pixels first..last."""
    mask = np.zeros(SIZE, np.uint8)
    mask[0, first : last + 1] = 1
    encoded = coco_mask.encode(np.asfortranarray(mask))
    return {"size": list(SIZE), "counts": encoded["counts"].decode()}


def pixels(mask: dict[str, Any] | None) -> list[int]:
    return [] if mask is None else np.flatnonzero(decode_masks([mask["counts"]], SIZE)).tolist()


def video(length: int, *instances: list[dict[str, Any] | None], categories: int = 2) -> VideoTruth:
    """One video whose instances have these masks, categories 1, 2, 1, 2, ..."""
    data = {
        "videos": [{"id": 1, "height": SIZE[0], "width": SIZE[1], "length": length}],
        "categories": [{"id": c + 1, "name": f"class {c + 1}"} for c in range(categories)],
        "annotations": [
            {"id": g + 1, "video_id": 1, "category_id": g % categories + 1, "segmentations": masks}
            for g, masks in enumerate(instances)
        ],
    }
    return truth.read(data).videos[1]


def entry(score: float, masks: list[dict[str, Any] | None], **changes: Any) -> dict[str, Any]:
    row = {"video_id": 1, "category_id": 1, "score": score, "segmentations": masks}
    return {**row, **changes}


def moving(length: int, start: int, step: int = 1, width: int = 5) -> list[dict[str, Any] | None]:
    return [strip(start + t * step, start + t * step + width - 1) for t in range(length)]


def cut(tracks: list[dict[str, Any]], length: int, clip: int, stride: int) -> list[dict[str, Any]]:
    """Whole tracks as clips of `clip` frames, one every `stride` frames, the last one shorter."""
    return [
        {**e, "first_frame": first, "segmentations": e["segmentations"][first : first + clip]}
        for first in range(0, length, stride)
        for e in tracks
    ]


def join(entries: list[dict[str, Any]], known: VideoTruth) -> list[dict[str, Any]]:
    return clips.join(entries, range(len(entries)), known, CONFIG)


# ---- reading ------------------------------------------------------------------------------------


def test_equal_masks_under_two_classes_are_one_track() -> None:
    known = video(3, moving(3, 0))
    rows = [entry(0.9, moving(3, 0)), entry(0.4, moving(3, 9)), entry(0.3, moving(3, 0))]
    rows[2]["category_id"] = 2
    first, second = clips.tracks_of(rows, [4, 5, 6], known)
    assert first.class_scores == {1: 0.9, 2: 0.3}
    assert first.positions == {1: 4, 2: 6}
    assert second.class_scores == {1: 0.4}


def test_equal_masks_under_one_class_twice_stay_two_tracks() -> None:
    known = video(3, moving(3, 0))
    tracks = clips.tracks_of([entry(0.9, moving(3, 0)), entry(0.8, moving(3, 0))], [0, 1], known)
    assert [track.class_scores for track in tracks] == [{1: 0.9}, {1: 0.8}]


def test_an_empty_mask_is_an_absent_one() -> None:
    known = video(2, moving(2, 0))
    empty = coco_mask.encode(np.zeros(SIZE, np.uint8, order="F"))
    rows = [entry(0.9, [strip(0, 4), {"size": list(SIZE), "counts": empty["counts"].decode()}])]
    assert list(clips.tracks_of(rows, [0], known)[0].masks) == [0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"first_frame": 2}, r"results\[7\] is a clip of 3 frames from frame 2 on, but video 1"),
        ({"first_frame": -1}, r"results\[7\].first_frame must be a whole number from 0, got -1"),
        ({"first_frame": 1.0}, r"first_frame must be a whole number from 0, got 1.0"),
        ({"first_frame": True}, r"first_frame must be a whole number from 0, got True"),
        ({"first_frame": 0, "segmentations": []}, r"results\[7\] is a clip of 0 frames"),
    ],
)
def test_a_clip_outside_its_video_is_refused(changes: dict[str, Any], message: str) -> None:
    known = video(4, moving(4, 0))
    with pytest.raises(ValueError, match=message):
        clips.tracks_of([entry(0.9, moving(3, 0), **changes)], [7], known)


def test_a_clip_has_one_length() -> None:
    known = video(4, moving(4, 0))
    rows = [entry(0.9, moving(3, 0), first_frame=1), entry(0.9, moving(2, 0), first_frame=1)]
    with pytest.raises(ValueError, match=r"results\[1\].segmentations has 2 entries, results\[0\]"):
        clips.tracks_of(rows, [0, 1], known)


def test_clips_and_whole_tracks_do_not_mix_in_a_file() -> None:
    whole, part = entry(0.5, moving(4, 0)), entry(0.5, moving(2, 0), first_frame=0)
    assert clips.are_clips([part, part])
    assert not clips.are_clips([whole])
    assert not clips.are_clips([])
    with pytest.raises(ValueError, match=r"results\[1\] has no 'first_frame', but others have"):
        clips.are_clips([part, whole])


# ---- joining ------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    length=st.integers(2, 9),
    clip=st.integers(2, 6),
    overlap=st.integers(1, 5),
    order=st.randoms(use_true_random=False),
)
def test_overlapping_clips_of_perfect_tracks_are_joined_to_them(
    length: int, clip: int, overlap: int, order: Any
) -> None:
    stride = max(1, clip - overlap)
    instances = [moving(length, 0), moving(length, 25)]
    known = video(length, *instances)
    whole = [entry(0.9, instances[0]), entry(0.8, instances[1], category_id=2)]
    parts = cut(whole, length, clip, stride)
    order.shuffle(parts)
    joined = sorted(join(parts, known), key=lambda e: -e["score"])
    assert [e["category_id"] for e in joined] == [1, 2]
    assert [[pixels(m) for m in e["segmentations"]] for e in joined] == [
        [pixels(m) for m in masks] for masks in instances
    ]
    assert average_precision.summarise([matching.match_video(joined, known)]).stats[
        "AP"
    ] == pytest.approx(1)


def test_whole_tracks_come_back_as_they_were() -> None:
    known = video(3, moving(3, 0))
    rows = [entry(0.2, moving(3, 0)), entry(0.9, moving(3, 9), category_id=2)]
    assert [(e["score"], e["category_id"]) for e in join(rows, known)] == [(0.2, 1), (0.9, 2)]


def test_the_score_is_the_mean_over_clips_of_the_iou_in_the_frames_of_both() -> None:
    # Clip c covers frames 1, 2 and has pixels 10-19. Clip a (frames 0, 1) has 5-14 in frame 1: 5 of
    # 15. Clip b (frames 1, 2) has 10-19 there and nothing in frame 2: 10 of 20. Mean: 5/12.
    known = video(3, moving(3, 0))
    rows = [
        entry(0.9, [strip(5, 14), strip(5, 14)], first_frame=0),
        entry(0.9, [strip(5, 19), strip(30, 35)], first_frame=1),
    ]
    tracks = clips.tracks_of(rows, [0, 1], known)
    third = clips.tracks_of([entry(0.9, [strip(10, 19), None], first_frame=1)], [2], known)
    score = clips._mask_iou([*tracks, *third], [0], [2], [1])
    assert score[0, 0] == pytest.approx(5 / 15)
    score = clips._mask_iou([*tracks, *third], [1], [2], [1, 2])
    assert score[0, 0] == pytest.approx(10 / (15 + 6))


def test_the_assignment_between_clips_is_the_best_in_sum() -> None:
    # In the shared frame a0 = 0-9 and a1 = 8-11. b0 = 2-11 has IoU 8/12 with a0 and 4/10 with a1;
    # b1 = 0-5 has 6/10 with a0 and none with a1. The best sum is a0-b1, a1-b0, though a0-b0 is the
    # best pair.
    known = video(3, moving(3, 0))
    rows = [
        entry(0.9, [strip(0, 9), strip(0, 9)], first_frame=0),
        entry(0.8, [strip(30, 33), strip(8, 11)], first_frame=0),
        entry(0.7, [strip(2, 11), strip(20, 29)], first_frame=1),
        entry(0.6, [strip(0, 5), strip(12, 15)], first_frame=1),
    ]
    tracks = clips.tracks_of(rows, range(4), known)
    assert clips.identities(tracks, CONFIG).tolist() == [0, 1, 1, 0]


def test_a_pair_below_the_threshold_is_not_joined() -> None:
    known = video(3, moving(3, 0))
    rows = [
        entry(0.9, [strip(0, 9), strip(0, 9)], first_frame=0),
        entry(0.7, [strip(9, 18), strip(9, 18)], first_frame=1),  # IoU 1/19
    ]
    tracks = clips.tracks_of(rows, range(2), known)
    assert clips.identities(tracks, CONFIG).tolist() == [0, 0]
    assert clips.identities(tracks, AnalysisConfig(clip_match_iou=0.1)).tolist() == [0, 1]


def test_a_pixel_belongs_where_more_than_half_of_the_clips_have_it() -> None:
    known = video(1, moving(1, 0))
    parts = [
        Part(track, track.clip.frames)
        for masks in ((0, 9), (5, 14), (8, 20))
        for track in clips.tracks_of([entry(0.9, [strip(*masks)])], [0], known)
    ]
    (two,) = clips.joined_entries([parts[:2]], 1, 1)
    assert pixels(two["segmentations"][0]) == list(range(5, 10))
    (three,) = clips.joined_entries([parts], 1, 1)
    assert pixels(three["segmentations"][0]) == list(range(5, 15))


def test_clips_that_cover_a_frame_without_a_mask_have_a_vote() -> None:
    known = video(2, moving(2, 0))
    rows = [
        entry(0.9, [strip(0, 9), strip(0, 9)]),
        entry(0.9, [strip(0, 9), None]),
        entry(0.9, [strip(0, 9), None], category_id=2),
    ]
    first, second = clips.tracks_of(rows, range(3), known)
    parts = [Part(t, t.clip.frames) for t in (first, second, second)]
    made, _ = clips.joined_entries([parts], 1, 2)
    assert [pixels(m) for m in made["segmentations"]] == [list(range(10)), []]
    assert made["segmentations"][1] is None


def test_scores_are_means_over_frames_and_classes_no_more_than_a_part_had() -> None:
    known = video(4, moving(4, 0))
    masks = moving(4, 0)
    rows = [
        entry(0.9, [masks[0], masks[1], masks[2], None]),
        entry(0.5, [None, None, None, masks[3]], category_id=2),
    ]
    parts = [Part(t, t.clip.frames) for t in clips.tracks_of(rows, range(2), known)]
    # Class 1: 0.9 over 3 of 4 frames. Class 2: 0.5 over 1 of 4, and no part had two classes.
    (made,) = clips.joined_entries([parts], 1, 4)
    assert made["category_id"] == 1
    assert made["score"] == pytest.approx(0.675)


def test_clips_without_a_common_frame_are_said_to_stay_apart(
    caplog: pytest.LogCaptureFixture,
) -> None:
    known = video(4, moving(4, 0))
    parts = cut([entry(0.9, moving(4, 0))], 4, 2, 2)
    with caplog.at_level(logging.WARNING):
        assert len(join(parts, known)) == 2
    assert "1 of 2 clips share no frame with earlier ones" in caplog.text


def test_joined_tracks_are_a_results_file(tmp_path: Any) -> None:
    known = video(6, moving(6, 0))
    joined = join(cut([entry(0.9, moving(6, 0))], 6, 3, 2), known)
    results.write(tmp_path / "results.json", joined)
    (back,) = results.read(tmp_path / "results.json")
    assert [pixels(m) for m in back["segmentations"]] == [pixels(m) for m in moving(6, 0)]
