"""Exported networks answer as the network does, and what cannot be written is said."""

import json

import cv2
import numpy as np
import pytest

from idol.weights import export
from jobs import export as job


def last_line(capsys):
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


@pytest.fixture
def frame(tmp_path) -> str:
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (5, 7, 3), np.uint8).repeat(24, 0).repeat(24, 1)
    path = tmp_path / "frame.png"
    cv2.imwrite(str(path), picture)
    return str(path)


def test_an_onnx_file_answers_as_the_network_does(tmp_path, frame, capsys):
    pytest.importorskip("onnxruntime")
    out = tmp_path / "network.onnx"
    # Sides that are no multiples of 32: the padding is part of what is exported.
    job.main(
        ["--weights", "shipped", "--out", str(out), "--frame", frame, "--batch", "2",
         "--set", "transforms.stretch=[90,120]"]
    )  # fmt: skip
    line = last_line(capsys)
    assert line["input"] == [2, 3, 96, 128]
    assert line["shown"] == [90, 120]
    assert set(line["differences"]) == set(export.OUTPUTS)
    assert max(line["differences"].values()) < 1e-4
    operators = {node.op_type for node in pytest.importorskip("onnx").load(out).graph.node}
    assert "GridSample" in operators
    with pytest.raises(SystemExit, match="Use another --out, or --overwrite"):
        job.main(["--weights", "shipped", "--out", str(out)])


@pytest.mark.slow
@pytest.mark.skipif(export.missing("aoti") is not None, reason=str(export.missing("aoti")))
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_package_answers_as_the_network_does(tmp_path, frame, capsys):
    out = tmp_path / "network.pt2"
    job.main(["--weights", "shipped", "--out", str(out), "--frame", frame])
    assert max(last_line(capsys)["differences"].values()) < 1e-3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "network.bin"], r"must end in \.onnx or \.pt2"),
        (["--out", "network.onnx", "--batch", "0"], "must be at least 1"),
        (["--out", "network.onnx", "--frame", "missing.jpg"], "name an image file"),
        (
            ["--out", "network.onnx", "--set", "model.num_queries=3"],
            "cannot change a trained network",
        ),
    ],
)
def test_what_cannot_be_exported_is_said(tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=message):
        job.main(["--weights", "shipped", *words])
    assert not list(tmp_path.glob("*network*"))


def test_a_missing_library_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "missing", lambda form: "onnxscript cannot be imported")
    with pytest.raises(SystemExit, match="onnxscript cannot be imported"):
        job.main(["--weights", "shipped", "--out", str(tmp_path / "network.onnx")])


def test_an_answer_that_differs_is_refused(tmp_path, monkeypatch, frame):
    def write(network, path, form):
        path.write_bytes(b"")

    monkeypatch.setattr(export, "write", write)
    monkeypatch.setattr(export, "run", lambda path, form, images: [])
    wrong = dict.fromkeys(export.OUTPUTS, 0.0) | {"boxes": 0.5}
    monkeypatch.setattr(export, "differences", lambda answers, right: wrong)
    with pytest.raises(SystemExit, match=r"answers differently.*Do not use it"):
        job.main(["--weights", "shipped", "--out", str(tmp_path / "n.onnx"), "--frame", frame])
