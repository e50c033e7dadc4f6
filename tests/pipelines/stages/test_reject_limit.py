"""A stage goes on without some videos, and not without too many."""

from pathlib import Path

import pytest

from idol.ytvis.videos import Reject
from pipelines.errors import PipelineError
from pipelines.sources.annotations import Dataset, VideoRecord
from pipelines.stages.reject_limit import check_rejects, tell_rejects

READABLE = tuple(VideoRecord(i, (8, 8), ("a.jpg",), ()) for i in (1, 2, 3))
BROKEN = Reject(4, "b.jpg", "is gone")
DATASET = Dataset(READABLE, {}, (BROKEN,), "hash")


def test_videos_with_a_fault_are_named_once_each() -> None:
    again = Reject(4, "c.jpg", "is gone too")
    assert check_rejects(DATASET, [BROKEN, again], 0.25) == {4}
    assert check_rejects(DATASET, [], 0.0) == set()


def test_more_than_the_limit_is_an_error_that_names_the_first_and_the_option() -> None:
    late = Reject(2, "d.jpg", "cannot be decoded")
    with pytest.raises(PipelineError) as caught:
        check_rejects(DATASET, [BROKEN, late], 0.25)
    assert str(caught.value) == (
        "2 of 4 videos have a fault, more than the limit of 25%. The first is video 2: d.jpg: "
        "cannot be decoded. Mend the data, or raise the limit with --reject-limit."
    )
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\], got 10"):
        check_rejects(DATASET, [], 10)


@pytest.mark.parametrize("videos", [1, 9, 10, 30, 70, 100])
def test_a_tenth_of_the_videos_may_have_a_fault(videos: int) -> None:
    faults = [Reject(i, "a.jpg", "is gone") for i in range(1, videos // 10 + 2)]
    dataset = Dataset(tuple(READABLE[0] for _ in range(videos)), {}, (), "hash")
    assert len(check_rejects(dataset, faults[1:])) == videos // 10
    with pytest.raises(PipelineError, match="more than the limit of 10%"):
        check_rejects(dataset, faults)


def test_what_is_left_out_is_told_in_one_line(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    tell_rejects(DATASET, tmp_path, [])
    assert not caplog.records
    again = Reject(4, "c.jpg", "is gone too")
    tell_rejects(DATASET, tmp_path, [BROKEN._asdict(), again._asdict()])
    assert caplog.messages == [
        f"1 of 4 videos left out; the first is video 4: b.jpg: is gone. All are listed in "
        f"{tmp_path}/rejects.parquet"
    ]
    caplog.clear()
    rows = [{**BROKEN._asdict(), "effect": "not scored"}]
    rows += [{**again._asdict(), "video_id": i, "effect": "counted as missed"} for i in (2, 3)]
    tell_rejects(DATASET, tmp_path, rows)
    (message,) = caplog.messages
    told = "1 of 4 videos not scored, 2 of 4 videos counted as missed; the first is video 4: b.jpg"
    assert message.startswith(told)
