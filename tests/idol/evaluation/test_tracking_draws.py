"""Draws of videos are scored as the videos themselves would be."""

import numpy as np
import pytest

from idol.config import TrackerConfig
from idol.evaluation import tracking_metrics
from idol.evaluation.tracking_metrics import VideoTracking
from tests.idol.evaluation.test_matching import Scene


@pytest.fixture
def counts() -> list[VideoTracking]:
    found = []
    for video_id, seed in enumerate((3, 4, 5, 9)):
        scene = Scene(seed, 3, 4, 4, 4)
        counted = tracking_metrics.count_video(scene.entries(TrackerConfig()), scene.truth)
        found.append(VideoTracking(video_id, counted.categories, counted.counts))
    return found


def test_a_draw_is_the_summary_of_its_videos(counts: list[VideoTracking]) -> None:
    weights = np.array([[1, 1, 1, 1], [1, 0, 1, 0], [0, 0, 0, 1]])
    drawn = tracking_metrics.tracking_of_draws(counts[::-1], weights)
    for row, chosen in enumerate(weights):
        whole = tracking_metrics.summarise_tracking(
            [c for c, weight in zip(counts, chosen, strict=True) if weight]
        ).present_averaged.values
        for name in tracking_metrics.DRAWN:
            assert drawn[name][row] == pytest.approx(whole[name]), name
    assert drawn["HOTA"][0] > 0


def test_a_draw_without_truth_has_no_score(counts: list[VideoTracking]) -> None:
    drawn = tracking_metrics.tracking_of_draws(counts, np.zeros((1, 4), np.int64))
    assert np.isnan(drawn["HOTA"]).all()
    with pytest.raises(ValueError, match="one column for each of 4 videos"):
        tracking_metrics.tracking_of_draws(counts, np.ones((1, 3), np.int64))
