"""What is scored from stored overlaps is what masks would score, for tracking metrics too."""

import numpy as np
from hypothesis import given, settings

from idol.config import TrackerConfig
from idol.evaluation import tracking_metrics
from idol.evaluation.stored_overlaps import VideoOverlaps
from tests.idol.evaluation.test_matching import CATEGORY_IDS, Scene, assert_same, scenes


@settings(deadline=None, max_examples=40)
@given(scenes)
def test_stored_overlaps_give_the_tracking_metrics_of_masks(scene: Scene) -> None:
    config = TrackerConfig()
    known = VideoOverlaps.read(scene.overlaps(), scene.truth.without_masks())
    from_overlaps = known.tracking(scene.tracks, CATEGORY_IDS, config)
    from_masks = tracking_metrics.count_video(scene.entries(config), scene.truth)
    ours, theirs = (
        tracking_metrics.summarise_tracking([counts]).to_dict()
        for counts in (from_overlaps, from_masks)
    )
    del ours["num_videos"], theirs["num_videos"]
    for name, values in theirs.items():
        np.testing.assert_equal(ours[name], values)


@settings(deadline=None, max_examples=10)
@given(scenes)
def test_one_layout_serves_many_scorings(scene: Scene) -> None:
    known = VideoOverlaps.read(scene.overlaps(), scene.truth)
    for threshold in (0.0, 0.4, 0.0):
        config = TrackerConfig(class_score_threshold=threshold)
        fresh = VideoOverlaps.read(scene.overlaps(), scene.truth)
        assert_same(
            known.matches(scene.tracks, CATEGORY_IDS, config),
            fresh.matches(scene.tracks, CATEGORY_IDS, config),
        )
