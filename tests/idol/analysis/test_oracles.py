"""Oracle experiments: what they leave untouched, where they end, and hand-worked ones."""

import itertools
import tracemalloc
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from idol.analysis import clips, oracles
from idol.config import AnalysisConfig, TrackerConfig
from idol.evaluation import average_precision, matching, upper_bound
from idol.evaluation.overlaps import frame_overlap, truth_of_frame
from idol.evaluation.stored_overlaps import VideoOverlaps
from idol.structures import Track
from idol.ytvis import results
from idol.ytvis.truth import VideoTruth
from tests.idol.analysis.test_clips import cut, entry, moving, strip, video

CONFIG = AnalysisConfig()
LENGTHS = (1, 2, 3, 50)


def ap(entries: list[dict[str, Any]], known: VideoTruth) -> float:
    return average_precision.summarise([matching.match_video(entries, known)]).stats["AP"]


def experiments(
    rows: list[dict[str, Any]], known: VideoTruth, lengths: tuple[int, ...] = LENGTHS
) -> oracles.OracleExperiments:
    predicted = oracles.prediction(rows, range(len(rows)), known, CONFIG)
    return oracles.summarise([oracles.match_oracles(predicted, known, lengths, CONFIG)])


def made(rows: list[dict[str, Any]], known: VideoTruth, length: int) -> list[dict[str, Any]]:
    """Results entries of an oracle."""
    predicted = oracles.prediction(rows, range(len(rows)), known, CONFIG)
    groups = oracles.oracle(predicted, known, length, CONFIG)
    return clips.joined_entries(groups, known.video_id, known.length)


@st.composite
def random_video(draw: st.DrawFn) -> tuple[list[dict[str, Any]], VideoTruth]:
    """Objects, and tracks that follow them, switch between them, break, double or see ghosts."""
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    length, count = int(rng.integers(1, 7)), int(rng.integers(1, 4))
    starts = rng.permutation(4)[:count] * 9
    instances = [
        [strip(int(s), int(s) + 5) if rng.random() < 0.9 else None for _ in range(length)]
        for s in starts
    ]
    rows = []
    for _ in range(rng.integers(0, 7)):
        target = int(rng.integers(0, 4)) * 9
        masks: list[dict[str, Any] | None] = []
        for _ in range(length):
            if rng.random() < 0.2:
                target = int(rng.integers(0, 4)) * 9
            a = max(0, target + int(rng.integers(-3, 4)))
            masks.append(strip(a, a + int(rng.integers(3, 7))) if rng.random() < 0.85 else None)
        # Scores of few values, so that some are equal.
        rows.append(entry(int(rng.integers(1, 5)) / 4, masks, category_id=int(rng.integers(1, 3))))
        if rng.random() < 0.3:
            rows.append({**rows[-1], "category_id": 3 - rows[-1]["category_id"], "score": 0.1})
    return rows, video(length, *instances)


@settings(max_examples=60, deadline=None)
@given(case=random_video())
def test_one_clip_over_the_whole_video_is_the_prediction_itself(case: Any) -> None:
    rows, known = case
    again = made(rows, known, known.length)
    assert [(e["category_id"], e["score"]) for e in again] == [
        (e["category_id"], e["score"]) for e in rows
    ]
    assert ap(again, known) == ap(rows, known)
    done = experiments(rows, known)
    assert done.clips[50].stats == done.predicted.stats
    assert (
        done.predicted.stats
        == average_precision.summarise([matching.match_video(rows, known)]).stats
    )
    assert done.clips[1].stats == done.frame.stats


@settings(max_examples=60, deadline=None)
@given(case=random_video(), length=st.integers(1, 6))
def test_an_oracle_neither_adds_nor_removes_a_mask(case: Any, length: int) -> None:
    rows, known = case
    rows = [{**e, "category_id": 1, "score": 0.5 + k / 100} for k, e in enumerate(rows)]

    def masks(entries: list[dict[str, Any]]) -> Counter[Any]:
        return Counter(
            (t, results._mask(m, "")["counts"])  # type: ignore[index]
            for e in entries
            for t, m in enumerate(e["segmentations"])
            if m is not None
        )

    assert masks(made(rows, known, length)) == masks(rows)


@settings(max_examples=30, deadline=None)
@given(length=st.integers(1, 6), count=st.integers(1, 3), swaps=st.integers(0, 2**16))
def test_perfect_masks_with_any_identities_are_perfect_by_the_frame_oracle(
    length: int, count: int, swaps: int
) -> None:
    rng = np.random.default_rng(swaps)
    instances = [moving(length, 12 * g) for g in range(count)]
    known = video(length, *instances, categories=1)
    orders = [rng.permutation(count) for _ in range(length)]
    rows = [
        entry(0.5 + n / 10, [instances[orders[t][n]][t] for t in range(length)])
        for n in range(count)
    ]
    assert experiments(rows, known).frame.stats["AP"] == pytest.approx(1)


def test_perfect_predictions_are_perfect_in_every_experiment() -> None:
    instances = [moving(5, 0), moving(5, 12), [None, *moving(3, 26), None]]
    known = video(5, *instances)
    rows = [entry(0.9 - g / 9, m, category_id=g % 2 + 1) for g, m in enumerate(instances)]
    done = experiments(rows, known)
    stats = [done.predicted, done.frame, *done.clips.values()]
    assert [m.stats["AP"] for m in stats] == pytest.approx([1.0] * (2 + len(LENGTHS)))
    assert done.lost == 0.0
    assert [n for n, _ in done.curve()] == list(LENGTHS)


def test_a_switch_between_clips_is_mended_and_one_within_a_clip_is_not() -> None:
    # Two objects over 4 frames; the tracks swap after frame 2. Clips of 2 frames end there, so true
    # identities between them mend everything. In clips of 3 frames the first one holds the swap:
    # frames 0, 1 right, frame 2 wrong. Its pieces have IoU 2/4 with their own object (2 of 3 masks
    # shared; union 3 + 3 - 2) and are given to it; frame 3 is given right. Each track then shares
    # 3 of 4 masks: IoU 3/5, found at 0.5, 0.55 and 0.6 of the ten thresholds.
    a, b = moving(4, 0, 0), moving(4, 20, 0)
    known = video(4, a, b, categories=1)
    rows = [entry(0.9, a[:2] + b[2:]), entry(0.8, b[:2] + a[2:])]
    done = experiments(rows, known, (1, 2, 3, 4))
    # Swapped half and half: 2 of 4 masks, IoU 2/6, found at no threshold.
    assert done.predicted.stats["AP"] == 0.0
    assert done.curve() == [(1, 1.0), (2, 1.0), (3, pytest.approx(0.3)), (4, 0.0)]
    assert done.lost == 1.0


def test_what_shows_no_instance_stays_with_the_track_it_was_in() -> None:
    # The third frame's mask is too poor for an identity (IoU 2/8); it stays in the track, as the
    # method put it there, and does not become a false positive of its own.
    a = moving(3, 0, 0)
    known = video(3, a, categories=1)
    rows = [entry(0.9, [a[0], a[1], strip(3, 7)]), entry(0.5, [None, None, strip(30, 33)])]
    assert made(rows, known, 1)[0]["segmentations"][2] is not None
    assert len(made(rows, known, 1)) == 2


def test_the_best_overlap_gets_the_identity_and_the_other_stays_a_duplicate() -> None:
    a = moving(2, 0, 0, 10)
    known = video(2, a, categories=1)
    rows = [entry(0.9, [strip(0, 7)] * 2), entry(0.4, a)]
    best, second = sorted(made(rows, known, 1), key=lambda e: e["score"])
    assert best["segmentations"][0]["counts"] == a[0]["counts"].encode()
    assert len(made(rows, known, 1)) == 2
    assert second["score"] == 0.9


@settings(max_examples=60, deadline=None)
@given(case=random_video(), length=st.integers(1, 6))
def test_sums_over_measured_masks_match_as_the_joined_entries_do(case: Any, length: int) -> None:
    rows, known = case
    done = experiments(rows, known, (length,))
    of_entries = average_precision.summarise(
        [matching.match_video(made(rows, known, length), known)]
    )
    assert done.clips[length].stats == of_entries.stats


@settings(max_examples=60, deadline=None)
@given(case=random_video())
def test_stored_overlaps_give_the_numbers_of_their_results_file(case: Any) -> None:
    rows, known = case
    found = clips.tracks_of(rows, range(len(rows)), known)
    # Entries in the order in which tracks are written: by track, then by label.
    rows = [
        entry(score, [track.masks.get(t) for t in range(known.length)], category_id=category_id)
        for track in found
        for category_id, score in sorted(track.class_scores.items())
    ]
    rows = [
        {**e, "segmentations": [m and {**m, "counts": m["counts"].decode()} for m in masks]}
        for e in rows
        for masks in [e["segmentations"]]
    ]
    overlaps, tracks = [], [Track(n, {}, torch.zeros(2).double()) for n in range(len(found))]
    for t in range(known.length):
        here = [n for n, track in enumerate(found) if t in track.masks]
        masks = [found[n].masks[t]["counts"] for n in here]
        overlaps.append(frame_overlap(masks, truth_of_frame(known, t), known.size, t))
        for row, n in enumerate(here):
            tracks[n].detections[t] = row
    for n, track in enumerate(found):
        for category_id, score in track.class_scores.items():
            tracks[n].class_scores[category_id - 1] = score
    stored = oracles.stored_prediction(
        VideoOverlaps.read(overlaps, known), tracks, [1, 2], TrackerConfig(multi_class=True)
    )
    done = oracles.summarise([oracles.match_oracles(stored, known.without_masks(), (2,), CONFIG)])
    assert done.to_dict() == experiments(rows, known, (2,)).to_dict()


# ---- upper bound --------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(case=random_video(), clip=st.integers(2, 4), stride=st.integers(1, 4))
def test_nothing_that_is_made_of_the_same_masks_scores_above_the_upper_bound(
    case: Any, clip: int, stride: int
) -> None:
    rows, known = case
    for entries in (rows, cut(rows, known.length, clip, min(stride, clip))):
        done = experiments(entries, known)
        for other in (done.predicted, done.frame, *done.clips.values()):
            for name in ("AP", "AP50", "AP75", "AR1", "AR10", "AR100"):
                assert other.stats[name] <= done.bound.stats[name] + 1e-12, name
        assert done.lost >= 0.0 or done.bound.stats["AP"] < 0


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_best_iou_is_that_of_the_best_of_all_choices(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(0, 9))
    frame, area = rng.integers(0, 4, count), rng.integers(1, 20, count).astype(float)
    shared = np.floor(rng.random((count, 2)) * (area[:, None] + 1))
    truth_area = np.array([40, rng.integers(1, 60)])
    choices = [[-1, *np.flatnonzero(frame == t)] for t in range(4)]
    best = np.zeros(2)
    for choice in itertools.product(*choices):
        used = [r for r in choice if r >= 0]
        both = shared[used].sum(axis=0)
        best = np.maximum(best, both / (truth_area + area[used].sum() - both))
    assert upper_bound.best_iou(frame, area, shared, truth_area).tolist() == best.tolist()


def test_a_mask_below_the_identity_threshold_counts_in_the_bound_alone() -> None:
    # Two objects of one class, 5 pixels wide, in 2 frames. The second frame's masks cover 2 pixels
    # of their objects and nothing else (IoU 0.4: no identity), and the tracks swap there, so the
    # prediction and the frame oracle have 5 right pixels of 12: IoU 5/12. The best choice has 7 of
    # 10: IoU 0.7, found at five of the ten thresholds.
    a, b = moving(2, 0, 0), moving(2, 20, 0)
    known = video(2, a, b, categories=1)
    rows = [entry(0.9, [a[0], strip(20, 21)]), entry(0.8, [b[0], strip(0, 1)])]
    done = experiments(rows, known)
    assert (done.predicted.stats["AP"], done.frame.stats["AP"]) == (0.0, 0.0)
    assert done.bound.stats["AP"] == done.lost == pytest.approx(0.5)


# ---- clip predictions ---------------------------------------------------------------------------


def test_clip_predictions_are_joined_by_overlap_or_by_truth() -> None:
    instances = [moving(6, 0), moving(6, 20)]
    known = video(6, *instances)
    whole = [entry(0.9, instances[0]), entry(0.8, instances[1], category_id=2)]
    overlapping = cut(whole, 6, 3, 2)
    done = experiments(overlapping, known)
    stats = [done.predicted, done.frame, *done.clips.values()]
    assert [m.stats["AP"] for m in stats] == pytest.approx([1.0] * (2 + len(LENGTHS)))
    # Without a common frame nothing can be matched; true identities join the clips all the same.
    apart = experiments(cut(whole, 6, 3, 3), known)
    # IoU 3/6 of each half: found at 0.5 alone, where the second half is a duplicate.
    assert apart.predicted.stats["AP"] == pytest.approx(0.1)
    assert apart.clips[3].stats["AP"] == apart.frame.stats["AP"] == pytest.approx(1)


@settings(max_examples=30, deadline=None)
@given(case=random_video())
def test_one_clip_over_the_whole_video_is_a_results_file(case: Any) -> None:
    rows, known = case
    as_clips = [{**e, "first_frame": 0} for e in rows]
    whole, cut_up = experiments(rows, known), experiments(as_clips, known)
    assert cut_up.to_dict() == whole.to_dict()


# ---- borders ------------------------------------------------------------------------------------


def test_nothing_predicted_scores_nothing_in_every_experiment() -> None:
    done = experiments([], video(3, moving(3, 0)))
    assert (done.predicted.stats["AP"], done.frame.stats["AP"], done.lost) == (0.0, 0.0, 0.0)


def test_truth_without_instances_has_no_score() -> None:
    known = video(3)
    done = experiments([entry(0.9, moving(3, 0))], known)
    assert (done.frame.stats["AP"], done.lost) == (-1.0, -1.0)


def test_a_track_without_any_mask_is_kept() -> None:
    known = video(3, moving(3, 0))
    assert len(made([entry(0.9, [None] * 3)], known, 1)) == 1


def test_a_clip_has_at_least_one_frame() -> None:
    known = video(2, moving(2, 0))
    with pytest.raises(ValueError, match="a clip has at least 1 frame, got a clip length of 0"):
        made([], known, 0)
    with pytest.raises(ValueError, match="there is no video to analyse"):
        oracles.summarise([])


def test_thousands_of_equal_tracks_are_as_many_tracks_in_linear_time() -> None:
    known = video(2, moving(2, 0))
    masks = moving(2, 0)
    rows = [entry(0.5, masks) for _ in range(20_000)]
    # Looking for a free place among all earlier copies would take minutes.
    assert len(clips.tracks_of(rows, range(len(rows)), known)) == 20_000


def test_oracles_of_many_tracks_hold_little_beside_what_is_measured() -> None:
    masks = [moving(2, 5 * g, 0) for g in range(8)]
    known = video(2, *(masks[min(g, 7)] for g in range(400)))
    rows = [entry(0.5, masks[n % 7]) for n in range(2000)]
    predicted = oracles.prediction(rows, range(len(rows)), known, CONFIG)
    size = predicted.overlaps.intersection.nbytes  # 4000 masks, 400 instances: 12.8 MB
    tracemalloc.start()
    oracles.match_oracles(predicted, known, (), CONFIG)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * size  # 4.2 times, where pieces and instances were another table
