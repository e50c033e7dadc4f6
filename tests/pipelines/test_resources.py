"""A stage that asks for more than there is: an error at once, or waiting for an autoscaler."""

from __future__ import annotations

import pytest

from pipelines import resources
from pipelines.errors import ResourcesError


@pytest.mark.ray
def test_missing_resources_are_an_error_and_not_a_wait(ray_local: None) -> None:
    resources.require(4, instead="nothing")
    with pytest.raises(
        ResourcesError,
        match=r"needs 2 CPUs and 3 GPUs, but Ray has 4 and 0\. Use fewer --workers, or a larger",
    ):
        resources.require(2, gpus=1.5, instead="fewer --workers")


@pytest.mark.ray
def test_a_cluster_of_others_is_waited_for_and_nothing_stays_asked_for(
    ray_local: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from ray.util import placement_group_table

    monkeypatch.setenv("RAY_ADDRESS", "as if it had been joined")
    monkeypatch.setenv(resources.WAIT_VARIABLE, "2")
    with pytest.raises(ResourcesError, match=r"No more came within 2 s \(IDOL_WAIT_FOR_NODES_S"):
        resources.require(1, gpus=1, instead="fewer")
    assert "Waiting up to 2 s" in caplog.text
    monkeypatch.setenv(resources.WAIT_VARIABLE, "soon")
    with pytest.raises(ValueError, match="must be a number of seconds, got 'soon'"):
        resources.require(1, gpus=1, instead="fewer")
    assert {group["state"] for group in placement_group_table().values()} <= {"REMOVED"}


@pytest.mark.ray
@pytest.mark.parametrize(
    ("types", "grown"),
    [
        (["node_5f2c"], False),
        (["head"], True),
        (["node_5f2c", "gpu"], True),
        ([], True),
        (None, True),
    ],
)
def test_only_an_autoscaler_is_waited_for(
    ray_local: None, monkeypatch: pytest.MonkeyPatch, types: list[str] | None, grown: bool
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "as if it had been joined")
    monkeypatch.delenv(resources.WAIT_VARIABLE, raising=False)
    monkeypatch.setattr(resources, "_node_types", lambda: types)
    monkeypatch.setattr(resources, "_FIRST_WORD_S", 0.1)
    monkeypatch.setattr(resources, "_WAIT_S", 1.0)
    ending = (
        "No more came within 1 s" if grown else "No autoscaler brings more nodes there. Use fewer"
    )
    with pytest.raises(ResourcesError, match=ending):
        resources.require(1, gpus=1, instead="fewer")


@pytest.mark.ray
def test_the_monitor_of_a_head_started_by_hand_is_no_autoscaler(ray_local: None) -> None:
    assert resources.grows() is False
