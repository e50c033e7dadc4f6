"""Every difference between stored tensors and a network is reported, and the report travels."""

import pickle

import pytest
import torch
from torch import nn

from idol.weights.report import CheckpointError, LoadReport, compare


@pytest.fixture
def network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


def test_the_networks_own_weights_fit(network):
    report = compare(network, network.state_dict())
    assert report.fits
    assert report == LoadReport()
    assert report.lines() == []


def test_each_kind_of_difference_is_reported_completely(network):
    state = dict(network.state_dict())
    del state["0.bias"]
    state["other.weight"] = torch.zeros(1)
    state["0.weight"] = torch.zeros(5, 3)
    state["1.weight"] = torch.tensor([1, 2])
    state["1.bias"] = torch.tensor([1.0, float("nan")])
    state["1.running_mean"] = torch.tensor([float("-inf"), 0.0])
    state["more"] = torch.tensor(float("inf"))
    report = compare(network, state)
    assert report == LoadReport(
        missing=("0.bias",),
        unexpected=("other.weight", "more"),
        reshaped=(("0.weight", (5, 3), (2, 3)),),
        retyped=(("1.weight", "int64", "float32"),),
        not_finite=("1.bias", "1.running_mean", "more"),
    )
    assert report.count == 8
    assert not report.fits


def test_other_precision_is_no_difference_and_empty_tensors_are_finite(network):
    state = {k: v.half() if v.is_floating_point() else v for k, v in network.state_dict().items()}
    state["1.num_batches_tracked"] = torch.tensor(3, dtype=torch.int32)
    assert compare(network, state).fits
    assert compare(network, {"none": torch.zeros(0)}).not_finite == ()


def test_a_network_without_memory_is_enough_to_compare(network):
    state = network.state_dict()
    with torch.device("meta"):
        empty = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    assert compare(empty, state).fits
    assert compare(network, {k: v.to("meta") for k, v in state.items()}).fits


def test_long_lists_are_shortened_in_words_and_complete_in_the_report():
    report = LoadReport(missing=tuple(f"layer.{i}" for i in range(100)), not_finite=("x",))
    lines = report.lines(limit=2)
    assert lines == [
        "100 missing:", "  layer.0", "  layer.1", "  ... and 98 more",
        "1 with NaN or infinite values:", "  x",
    ]  # fmt: skip
    assert len(report.lines(limit=None)) == 103
    assert len(report.missing) == 100


def test_the_error_keeps_its_report_across_processes():
    error = CheckpointError("does not fit", LoadReport(missing=("a",)))
    copy = pickle.loads(pickle.dumps(error))
    assert isinstance(copy, CheckpointError)
    assert str(copy) == "does not fit"
    assert copy.report == error.report
    assert pickle.loads(pickle.dumps(CheckpointError("damaged"))).report is None
