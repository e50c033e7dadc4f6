"""Errors cross processes: whoever catches them elsewhere sees the same fields and words."""

import pickle

import pytest

from jobs.options import command
from pipelines import cluster
from pipelines.errors import (
    DatasetError,
    ManifestError,
    PipelineError,
    VideoError,
    carried,
    origin,
    raise_carried,
)
from tests.jobs.test_command import Options


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


FULL = OSError(28, "No space left on device", "/out/shard-00000.parquet")
DAMAGED = ManifestError("out", "is damaged", "Make it again.")


def _fail(error, item=None):
    raise error


@pytest.mark.ray
@pytest.mark.parametrize("error", [FULL, DAMAGED])
def test_an_error_of_a_task_ends_a_job_as_one_line_with_its_path(ray_local, error):
    def work(job):
        list(cluster.tasks(_fail, error, [1]))

    with pytest.raises(SystemExit) as stopped:
        command.run("nothing", Options, work, [])
    assert stopped.value.code == f"{type(error).__name__}: {error}"


@pytest.mark.ray
@pytest.mark.parametrize("error", [FULL, DAMAGED])
def test_an_error_of_a_row_passes_ray_data_whole(ray_local, error):
    import ray

    @carried
    def work(row):
        raise error

    cluster.set_up_data()
    (row,) = ray.data.from_items([{"a": 1}]).map(work).iter_rows()
    with pytest.raises(type(error)) as caught:
        raise_carried(row)
    assert str(caught.value) == str(error)


def test_a_bug_is_not_carried():
    assert carried(lambda row: {"a": 1})({}) == {"a": 1, "error": b""}
    with pytest.raises(KeyError):
        carried(lambda row: row["b"])({})


def test_the_error_of_a_training_worker_is_found():
    from ray.train import WorkerGroupError

    assert origin(WorkerGroupError("rank 0 failed", {0: FULL})) is FULL
    assert origin(DAMAGED) is DAMAGED


def test_an_error_of_ours_that_ray_tune_replaces_is_found():
    from ray.tune.error import TuneError

    def fit():
        try:
            raise FULL
        except OSError:
            raise TuneError("Traceback ...")  # noqa: B904 - as Ray Tune does

    with pytest.raises(TuneError) as caught:
        fit()
    assert origin(caught.value) is FULL
