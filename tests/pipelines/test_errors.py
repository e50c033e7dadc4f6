"""Errors cross processes: whoever catches them elsewhere sees the same fields and words."""

import pickle

import pytest

from pipelines.errors import DatasetError, ManifestError, PipelineError, VideoError


@pytest.mark.parametrize(
    "error",
    [
        PipelineError("nothing to do"),
        DatasetError("a.json", "has no videos.", "Give another."),
        VideoError(3, "a/0.jpg", "the frame does not exist"),
        VideoError(video_id=3, path="a/0.jpg", reason="by name"),
        ManifestError("out", "holds no finished 'prepare' output", "Run it first."),
    ],
)
def test_an_error_is_rebuilt_whole_in_another_process(error):
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is type(error)
    assert isinstance(back, PipelineError)
    assert str(back) == str(error)
    assert vars(back) == vars(error)


def test_the_message_names_what_where_and_what_to_do():
    text = str(ManifestError("out", "holds no finished 'prepare' output", "Run it first."))
    assert text == "out holds no finished 'prepare' output. Run it first."
    assert str(VideoError(3, "a/0.jpg", "is gone")) == "video 3: a/0.jpg: is gone"
