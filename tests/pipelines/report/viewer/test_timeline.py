"""Who shows whom in a video, worked by hand on masks of a few columns."""

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from idol.masks import rle
from pipelines.report.viewer import timeline
from pipelines.report.viewer.timeline import Span, Switch

SIZE = (4, 8)


def columns(first: int, last: int) -> bytes:
    """A mask that covers these columns."""
    mask = np.zeros((1, *SIZE), np.uint8)
    mask[0, :, first : last + 1] = 1
    return rle.encode_masks(mask)[0]


LEFT, RIGHT = columns(0, 2), columns(5, 7)


def test_a_switch_is_where_another_track_shows_the_instance() -> None:
    # Track 4 shows the left one in frames 0 and 1, is away, and comes back on the right one.
    tracks = {4: [LEFT, LEFT, None, RIGHT, RIGHT], 9: [RIGHT, RIGHT, RIGHT, LEFT, LEFT]}
    instances = [[LEFT] * 5, [RIGHT] * 5]
    found = timeline.follow(tracks, instances, SIZE)
    assert found.shown == (
        (Span(0, 1, 4), Span(3, 4, 9)),
        (Span(0, 2, 9), Span(3, 4, 4)),
    )
    assert sorted(found.switches) == [Switch(3, 0, 4, 9), Switch(3, 1, 9, 4)]
    # 9 shows the right one for three frames, so 4 belongs to the left one.
    assert found.partner == {4: 0, 9: 1}


def test_a_mask_that_covers_less_than_half_shows_nothing() -> None:
    found = timeline.follow({0: [columns(0, 0)]}, [[columns(0, 3)]], SIZE)
    assert found == timeline.Timeline(((),), (), {})


def test_two_tracks_of_one_instance_do_not_both_get_its_colour() -> None:
    found = timeline.follow({0: [LEFT, None, None], 1: [None, LEFT, LEFT]}, [[LEFT] * 3], SIZE)
    assert found.partner == {1: 0}
    assert [switch.frame for switch in found.switches] == [1]


def test_without_truth_there_is_nothing_to_compare() -> None:
    assert timeline.follow({0: [LEFT]}, [], SIZE) == timeline.Timeline((), (), {})
    assert timeline.follow({}, [[LEFT]], SIZE).shown == ((),)


@given(st.lists(st.sampled_from([None, 0, 1]), max_size=30))
def test_spans_hold_every_frame_once_and_neighbours_differ(values: list[int | None]) -> None:
    kept = [(frame, value) for frame, value in enumerate(values) if value is not None]
    found = timeline.spans(kept)
    assert [(t, s.value) for s in found for t in range(s.first, s.last + 1)] == kept
    for one, two in itertools.pairwise(found):
        assert two.first > one.last + 1 or two.value != one.value


def test_presence_is_where_there_is_a_mask() -> None:
    assert timeline.presence([LEFT, None, RIGHT, RIGHT]) == (Span(0, 0, 0), Span(2, 3, 0))
