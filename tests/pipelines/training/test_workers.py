"""What a caller may ask of the training processes."""

import pytest

from pipelines.cluster import Pool
from pipelines.errors import ResourcesError
from pipelines.training.workers import Workers


def test_a_range_is_elastic_for_ray_train_and_a_number_is_fixed():
    scaling = Workers(count=Pool(2, 8), gpus=True, cpus=3, labels={"market-type": "spot"}).scaling()
    assert scaling.num_workers == (2, 8)
    assert scaling.resources_per_worker == {"CPU": 3, "GPU": 1}
    assert scaling.label_selector == {"market-type": "spot"}
    fixed = Workers(count=2).scaling()
    assert (fixed.num_workers, fixed.use_gpu, fixed.label_selector) == (2, False, None)
    assert Workers(count=Pool(3, 3)).scaling().num_workers == 3


@pytest.mark.parametrize(
    ("given", "message"), [({"count": -1}, "0 or more, got -1"), ({"cpus": 0}, "1 CPU or more")]
)
def test_impossible_numbers_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        Workers(**given)


@pytest.mark.ray
def test_labels_that_no_node_has_are_refused_where_none_can_come(ray_local, monkeypatch, caplog):
    absent = Workers(labels={"market-type": "spot"})
    with pytest.raises(ResourcesError, match="no node of 1 has the labels market-type=spot"):
        absent.check_labels()
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    absent.check_labels()
    assert "training begins when nodes that have them join" in caplog.text
    caplog.clear()
    Workers().check_labels()
    Workers(labels={"market-type": "!spot"}).check_labels()
    assert not caplog.records
