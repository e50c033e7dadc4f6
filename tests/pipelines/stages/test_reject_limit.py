"""A stage goes on without some videos, and not without too many."""

import pytest

from idol.ytvis.videos import Reject
from pipelines.errors import PipelineError
from pipelines.sources.annotations import Dataset, VideoRecord
from pipelines.stages.reject_limit import check_rejects

READABLE = tuple(VideoRecord(i, (8, 8), ("a.jpg",), ()) for i in (1, 2, 3))
BROKEN = Reject(4, "b.jpg", "is gone")
DATASET = Dataset(READABLE, {}, (BROKEN,), "hash")


def test_videos_with_a_fault_are_named_once_each() -> None:
    again = Reject(4, "c.jpg", "is gone too")
    assert check_rejects(DATASET, [BROKEN, again], 0.25, "detect.reject_limit") == {4}
    assert check_rejects(DATASET, [], 0.0, "detect.reject_limit") == set()


def test_more_than_the_limit_is_an_error_that_names_the_first_and_the_field() -> None:
    late = Reject(2, "d.jpg", "cannot be decoded")
    with pytest.raises(PipelineError) as caught:
        check_rejects(DATASET, [BROKEN, late], 0.25, "detect.reject_limit")
    assert str(caught.value) == (
        "2 of 4 videos have a fault, more than the limit of 25% (detect.reject_limit). "
        "The first is video 2: d.jpg: cannot be decoded. "
        "Mend the data, or raise detect.reject_limit."
    )
