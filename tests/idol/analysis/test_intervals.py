"""Intervals over videos: a draw scores what the evaluator gives the drawn videos."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from idol.analysis import intervals
from idol.config import AnalysisConfig
from idol.evaluation.average_precision import summarise
from idol.evaluation.matching import VideoMatches, match_video
from idol.ytvis.truth import read
from tests.idol.evaluation.test_average_precision import dataset, random_case, strip


def matches_of(seed: int, videos: int = 5, occlusion: bool = False) -> list[VideoMatches]:
    truth, entries = random_case(seed, videos, occlusion)
    known = read(truth)
    return [
        match_video([e for e in entries if e["video_id"] == video_id], known.videos[video_id])
        for video_id in known.videos
    ]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**16), occlusion=st.booleans())
def test_a_draw_scores_what_the_evaluator_gives_copies_of_its_videos(
    seed: int, occlusion: bool
) -> None:
    matches = matches_of(seed, occlusion=occlusion)
    weights = intervals.draws(len(matches), AnalysisConfig(resamples=4, seed=seed))
    weights[0] = 1
    scores = intervals.scores_of_draws(matches, weights)
    for b, row in enumerate(weights):
        copies = [m for m, times in zip(matches, row, strict=True) for _ in range(times)]
        expected = summarise(replace(m, video_id=i) for i, m in enumerate(copies)).stats
        for name, values in scores.items():
            want = expected[name]
            assert values[b] == pytest.approx(want) if want >= 0 else np.isnan(values[b])


@pytest.mark.parametrize("only", [["AP"], ["AP_ho", "AP75"], ["AR10"]])
def test_scores_that_are_asked_for_alone_are_the_same(only: list[str]) -> None:
    matches = matches_of(5, occlusion=True)
    weights = intervals.draws(len(matches), AnalysisConfig(resamples=130, seed=5))
    scores = intervals.scores_of_draws(matches, weights)
    alone = intervals.scores_of_draws(matches, weights, only=only)
    for name in only:
        np.testing.assert_array_equal(alone[name], scores[name])
    assert "APs" in scores
    assert "APs" not in alone


def test_draws_have_as_many_videos_and_are_the_same_for_a_seed() -> None:
    config = AnalysisConfig(resamples=50, seed=3)
    weights = intervals.draws(7, config)
    assert weights.shape == (50, 7)
    assert (weights.sum(axis=1) == 7).all()
    np.testing.assert_array_equal(weights, intervals.draws(7, config))
    assert (weights != intervals.draws(7, replace(config, seed=4))).any()


def test_an_interval_holds_the_score_and_narrows_with_the_confidence() -> None:
    matches = matches_of(5, videos=12)
    score = summarise(matches).stats["AP"]
    wide, scores = intervals.intervals(matches, AnalysisConfig())
    narrow, _ = intervals.intervals(matches, AnalysisConfig(confidence=0.5))
    assert wide["AP"].low <= narrow["AP"].low <= score <= narrow["AP"].high <= wide["AP"].high
    assert wide["AP"].low < wide["AP"].high
    assert scores["AP"].shape == (1000,)


def test_the_order_of_videos_changes_nothing() -> None:
    matches = matches_of(6)
    config = AnalysisConfig(resamples=20)
    assert intervals.intervals(matches, config)[0] == intervals.intervals(matches[::-1], config)[0]


def test_blocks_of_draws_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    matches = matches_of(7)
    config = AnalysisConfig(resamples=20)
    whole = intervals.intervals(matches, config)[0]
    monkeypatch.setattr(intervals, "_AT_ONCE", 15)
    in_blocks = intervals.intervals(matches, config)[0]
    assert in_blocks.keys() == whole.keys()
    for name, found in in_blocks.items():
        assert (found.low, found.high) == pytest.approx((whole[name].low, whole[name].high))


def test_perfect_results_have_an_interval_of_one_value() -> None:
    truth, _ = random_case(8, 4)
    known = read(truth)
    perfect = [
        {**{k: a[k] for k in ("video_id", "category_id", "segmentations")}, "score": 0.5}
        for a in truth["annotations"]
        if not a["iscrowd"] and any(a["segmentations"])
    ]
    matches = [
        match_video([e for e in perfect if e["video_id"] == v], known.videos[v])
        for v in known.videos
    ]
    assert summarise(matches).stats["AP"] == pytest.approx(1)
    found = intervals.intervals(matches, AnalysisConfig(resamples=50))[0]["AP"]
    assert (found.low, found.high) == (pytest.approx(1), pytest.approx(1))


def test_one_video_or_no_draw_has_no_interval() -> None:
    assert intervals.intervals(matches_of(1, videos=1), AnalysisConfig()) == ({}, {})
    assert intervals.intervals(matches_of(1), AnalysisConfig(resamples=0)) == ({}, {})


def test_weights_need_one_column_per_video() -> None:
    with pytest.raises(ValueError, match="one column for each of 5 videos"):
        intervals.scores_of_draws(matches_of(1), np.ones((3, 4), np.int64))


def test_a_difference_is_paired() -> None:
    # On every draw the first is better by 0.1, though single draws vary far more.
    rng = np.random.default_rng(0)
    second = rng.uniform(0.2, 0.8, 200)
    found = intervals.difference(second + 0.1, second, 0.1, AnalysisConfig())
    assert found.better == 1.0
    assert found.interval.low == pytest.approx(0.1)
    assert found.interval.high == pytest.approx(0.1)
    same = intervals.difference(second, second, 0.0, AnalysisConfig())
    assert (same.better, same.interval) == (0.5, intervals.Interval(0.0, 0.0))


def test_a_difference_needs_draws_of_both() -> None:
    with pytest.raises(ValueError, match="the same draws"):
        intervals.difference(np.zeros(3), np.zeros(4), 0.0, AnalysisConfig())
    with pytest.raises(ValueError, match="no draw has a score of both"):
        intervals.difference(np.full(3, np.nan), np.zeros(3), 0.0, AnalysisConfig())


def test_draws_say_how_wide_an_interval_is_and_the_score_where() -> None:
    # Draws 0, 0.001, ..., 1: 95 % lie within 0.475 of their median.
    values = np.linspace(0, 1, 1001)
    centred = intervals.interval(values, 0.5, AnalysisConfig())
    assert centred == intervals.Interval(pytest.approx(0.025), pytest.approx(0.975))
    # Nearly every draw beats this score. No score is below 0.
    moved = intervals.interval(values, 0.2, AnalysisConfig())
    assert moved == intervals.Interval(0.0, pytest.approx(0.675))
    gap = intervals.interval(values, 0.2, AnalysisConfig(), lowest=-1.0)
    assert gap == intervals.Interval(pytest.approx(-0.275), pytest.approx(0.675))


def test_many_classes_in_few_videos_each_have_no_vanishing_interval() -> None:
    # Each of 40 classes in two or three videos, tracks with random scores: draws lose classes, and
    # their AP is above the score nearly always.
    rng = np.random.default_rng(0)
    videos = 100
    annotations, entries = [], []
    for v in range(videos):
        category_id = int(rng.integers(1, 41))
        start = int(rng.integers(0, 20))
        truth = {"video_id": v + 1, "category_id": category_id}
        annotations.append({**truth, "segmentations": [strip(start, start + 9)] * 2})
        for moved in (0, 1, 3, 6):
            mask = strip(start + moved, start + moved + 9)
            entries.append({**truth, "score": rng.random(), "segmentations": [mask] * 2})
    data = dataset(annotations, videos)
    data["categories"] = [{"id": c, "name": str(c)} for c in range(1, 41)]
    known = read(data)
    matches = [
        match_video([e for e in entries if e["video_id"] == v], known.videos[v])
        for v in known.videos
    ]
    found, scores = intervals.intervals(matches, AnalysisConfig())
    score = summarise(matches).stats["AP"]
    assert (scores["AP"] < score).mean() < 0.1
    assert found["AP"].low < score < found["AP"].high
    assert found["AP"].high - found["AP"].low > 3 * scores["AP"].std()
