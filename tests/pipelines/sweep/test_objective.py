"""Objectives: one metric, or a mix that says what it weighs."""

import numpy as np
import pytest

from idol.config import TrackerConfig
from idol.evaluation.matching import match_video
from idol.evaluation.tracking_metrics import VideoTracking, count_video
from pipelines.sweep import objective
from tests.idol.evaluation.test_matching import Scene


def test_one_metric_a_sum_and_a_mix_by_name() -> None:
    assert objective.parse("AP75", occlusion=False).weights == {"AP75": 1.0}
    assert objective.parse("AP_ho", occlusion=True).weights == {"AP_ho": 1.0}
    mix = objective.parse("0.7*AP + 0.3*HOTA", occlusion=False)
    assert mix.weights == {"AP": 0.7, "HOTA": 0.3}
    assert mix.tracking
    assert mix.of({"AP": 0.5, "HOTA": 0.1}) == pytest.approx(0.38)
    assert mix.of({"AP": -1.0, "HOTA": 0.1}) == -1.0
    several = objective.parse("AP, HOTA", occlusion=False)
    assert several.weights == {"AP": 0.5, "HOTA": 0.5}
    assert several.separate == ("AP", "HOTA")
    assert mix.separate == ()
    with pytest.raises(ValueError, match="a list of metrics"):
        objective.parse("AP,0.5*HOTA", occlusion=False)


@pytest.mark.parametrize("text", ["XY", "AP+XY", "AP+AP", "", "2AP", "1.2.3*AP", "0*AP", "AP_ho"])
def test_what_is_no_objective_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"no metric|no number|must not all be 0"):
        objective.parse(text, occlusion=False)


def test_a_draw_of_all_videos_is_the_score_of_all() -> None:
    goal = objective.parse("0.5*AP+0.2*AR10+0.3*AssA", occlusion=False)
    matches, counts = [], []
    for video_id, seed in enumerate((1, 2, 5)):
        scene = Scene(seed, 3, 4, 4, 4)
        entries = scene.entries(TrackerConfig())
        match = match_video(entries, scene.truth)
        object.__setattr__(match, "video_id", video_id)
        matches.append(match)
        counted = count_video(entries, scene.truth)
        counts.append(VideoTracking(video_id, counted.categories, counted.counts))
    whole = goal.of(objective.stats(matches, counts))
    drawn = goal.of_draws(matches, counts, np.array([[1, 1, 1], [2, 0, 1]]))
    assert drawn[0] == pytest.approx(whole)
    assert drawn[1] != pytest.approx(whole)
