"""Every error has the cause that was built into it."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from idol.analysis import causes as error_causes
from idol.analysis.causes import CAUSES, NO_CAUSE, VideoErrors
from idol.config import AnalysisConfig
from idol.evaluation.matching import match_video
from idol.ytvis.truth import VideoTruth, read
from tests.idol.analysis.test_clips import SIZE, cut, entry, moving, strip, video
from tests.idol.analysis.test_oracles import random_video

CONFIG = AnalysisConfig()
A, B = moving(4, 0, 0, 10), moving(4, 20, 0, 10)


def errors(rows: list[dict[str, Any]], known: VideoTruth) -> VideoErrors:
    return error_causes.causes_of_video(rows, range(len(rows)), known, CONFIG)


def causes(rows: list[dict[str, Any]], known: VideoTruth, t: int = 0) -> list[str]:
    """Of the entries in the order given, whose scores must fall; "" where there is no error."""
    found = errors(rows, known)
    by_score = {score: found.cause[t, k] for k, score in enumerate(found.scores.tolist())}
    numbers = [by_score[row["score"]] for row in rows]
    return ["" if n == NO_CAUSE else CAUSES[n] for n in numbers]


def untried(rows: list[dict[str, Any]], known: VideoTruth, t: int = 0) -> list[str]:
    numbers = errors(rows, known).truth_cause[t].tolist()
    return ["" if n == NO_CAUSE else CAUSES[n] for n in numbers]


def one(masks: list[Any] = A) -> VideoTruth:
    return video(4, masks)


def two() -> VideoTruth:
    return video(4, A, B, categories=1)


def test_a_perfect_track_has_no_error() -> None:
    assert causes([entry(0.9, A)], one()) == [""]
    assert untried([entry(0.9, A)], one()) == [""]


def test_the_same_object_twice_is_a_duplicate() -> None:
    assert causes([entry(0.9, A), entry(0.8, A)], one()) == ["", "duplicate"]


def test_the_right_masks_under_another_class_are_an_error_of_class() -> None:
    rows = [entry(0.9, A, category_id=2)]
    assert causes(rows, one()) == ["class"]
    assert untried(rows, one()) == [""]


def test_poor_masks_in_every_frame_are_an_error_of_masks() -> None:
    # 4 of 10 pixels: IoU 0.4, no frame reaches 0.5.
    assert causes([entry(0.9, [strip(0, 3)] * 4)], one()) == ["mask"]
    # 7 of 10 pixels: found up to 0.7.
    rows = [entry(0.9, [strip(0, 6)] * 4)]
    assert [causes(rows, one(), t)[0] for t in (0, 4, 5, 9)] == ["", "", "mask", "mask"]


def test_frames_in_which_nobody_found_anything_are_an_error_of_masks() -> None:
    assert causes([entry(0.9, [A[0], None, None, None])], one()) == ["mask"]


def test_a_track_elsewhere_is_background_and_the_object_missed() -> None:
    rows = [entry(0.9, [strip(30, 35)] * 4)]
    assert causes(rows, one()) == ["background"]
    assert untried(rows, one()) == ["missed"]


def test_wrong_class_and_poor_masks_are_both() -> None:
    rows = [entry(0.9, [strip(0, 3)] * 4, category_id=2)]
    assert causes(rows, one()) == ["both"]
    assert untried(rows, one()) == ["missed"]


def test_a_track_in_pieces_is_fragmented() -> None:
    # A quarter each: no piece reaches 0.5, together they are perfect.
    pieces = [[m if t == k else None for t, m in enumerate(A)] for k in range(4)]
    rows = [entry(0.9 - k / 10, piece) for k, piece in enumerate(pieces)]
    assert causes(rows, one()) == ["fragmentation"] * 4
    # Three quarters are found at 0.5; at 0.8 that piece too wants the rest.
    rows = [entry(0.9, [*A[:3], None]), entry(0.5, [None, None, None, A[3]])]
    assert causes(rows, one()) == ["", "fragmentation"]
    assert causes(rows, one(), 6) == ["fragmentation", "fragmentation"]


def test_pieces_so_short_that_they_hardly_overlap_are_fragments_too() -> None:
    # 1 frame of 12: IoU 1/12 is below the 0.1 of background, but the frame is the object's.
    masks = moving(12, 0, 0, 10)
    known = video(12, masks)
    rows = [entry(1 - k / 20, [m if t == k else None for t, m in enumerate(masks)])
            for k in range(12)]  # fmt: skip
    assert causes(rows, known) == ["fragmentation"] * 12


def test_two_tracks_that_swap_their_objects_are_switches() -> None:
    rows = [entry(0.9, A[:2] + B[2:]), entry(0.8, B[:2] + A[2:])]
    assert causes(rows, two()) == ["switch", "switch"]
    found = errors(rows, two())
    # Each tries the object it began with, and no object is left without a try.
    assert sorted(found.target[0].tolist()) == [0, 1]
    assert untried(rows, two()) == ["", ""]


def test_an_object_hidden_in_the_track_of_another_is_a_switch_not_missed() -> None:
    # The track shows B for three frames and A for one; in that frame nobody shows B. A is visible
    # in that frame alone, all of which is in the track.
    a = [A[0], None, None, None]
    known = video(4, a, B, categories=1)
    rows = [entry(0.9, [A[0], *B[1:]])]
    assert causes(rows, known) == [""]
    assert untried(rows, known) == ["switch", ""]
    assert errors(rows, known).hidden_scores.tolist() == [0.9, 0.9]


def test_a_partial_second_track_over_shown_frames_is_a_duplicate() -> None:
    rows = [entry(0.9, A), entry(0.5, [A[0], A[1], None, None][:1] + [None] * 3)]
    assert causes(rows, one()) == ["", "duplicate"]


def test_a_try_goes_to_an_object_that_is_still_to_be_found() -> None:
    # Both entries overlap A most; the second has as many pixels of B, which nobody else tries.
    known = two()
    rows = [
        entry(0.9, [strip(0, 3)] * 4),
        entry(0.8, [A[0], B[1], strip(0, 3), strip(20, 23)]),
    ]
    found = errors(rows, known)
    assert sorted(found.target[0].tolist()) == [0, 1]


def test_crowds_are_neither_missed_nor_tried() -> None:
    data = {
        "videos": [{"id": 1, "height": SIZE[0], "width": SIZE[1], "length": 4}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [
            {"id": 1, "video_id": 1, "category_id": 1, "segmentations": A, "iscrowd": 1}
        ],
    }
    known = read(data).videos[1]
    found = errors([entry(0.9, A), entry(0.8, A), entry(0.7, [strip(0, 3)] * 4)], known)
    assert (~found.right).all()
    assert found.wrong[0].tolist() == [False, False, True]
    assert CAUSES[found.cause[0, 2]] == "background"
    assert found.instances == ()


def test_an_instance_says_where_it_failed() -> None:
    rows = [entry(0.3, [A[0], strip(0, 3), None, None]), entry(0.2, [None, None, A[2], A[3]])]
    (found,) = errors(rows, one()).instances
    # First entry: 14 of 40 pixels; second: 20 of 40. Shown in frames 0, 2 and 3: 30 of 40.
    assert (found.iou, found.entry, found.joined_iou) == (0.5, 1, 0.75)
    assert (found.tracks, found.switches, found.shown, found.frames) == (2, 1, 3, 4)
    assert (found.first_frame, found.last_frame, found.worst_frame) == (0, 3, 0)
    assert found.lost == pytest.approx(0.9)  # found at 0.5 alone
    assert found.cause == "fragmentation"  # at 0.55 to 0.75; masks from 0.8 on


def test_nothing_predicted_is_all_missed() -> None:
    found = errors([], two())
    assert [CAUSES[n] for n in found.truth_cause[0]] == ["missed", "missed"]
    assert [(i.entry, i.iou, i.cause) for i in found.instances] == [(None, 0.0, "missed")] * 2


def test_a_video_without_instances_has_background_alone() -> None:
    found = errors([entry(0.9, A)], video(4))
    assert CAUSES[found.cause[0, 0]] == "background"
    assert found.instances == ()


def test_clip_predictions_are_joined_first() -> None:
    rows = cut([entry(0.9, A)], 4, 3, 2)
    assert errors(rows, one()).right.all()


def test_only_the_best_hundred_of_a_class_count() -> None:
    rows = [entry(k / 200, [strip(30, 35)] * 4) for k in range(120)]
    found = errors(rows, one())
    assert found.scores.min() == pytest.approx(0.1)
    assert len(found.scores) == 100


@settings(max_examples=60, deadline=None)
@given(case=random_video())
def test_what_is_right_is_what_the_evaluator_matches(case: Any) -> None:
    rows, known = case
    found = errors(rows, known)
    official = match_video(rows, known)
    for category_id, matched in official.matched.items():
        of_class = found.category_ids == category_id
        np.testing.assert_array_equal(found.right[:, of_class], matched[0])
        np.testing.assert_array_equal(found.scores[of_class], official.scores[category_id])


@settings(max_examples=60, deadline=None)
@given(case=random_video())
def test_every_error_has_one_cause_and_everything_else_none(case: Any) -> None:
    rows, known = case
    found = errors(rows, known)
    np.testing.assert_array_equal(found.cause != NO_CAUSE, found.wrong)
    tried = np.zeros_like(found.found)
    for t, targets in enumerate(found.target):
        tried[t, targets[targets >= 0]] = True
    assert (found.cause[found.target >= 0] != CAUSES.index("background")).all()
    np.testing.assert_array_equal(found.truth_cause != NO_CAUSE, ~found.found & ~tried)
    for instance in found.instances:
        assert (instance.cause == "") == (instance.lost == 0)
