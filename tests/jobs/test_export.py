"""Exported networks answer as the network does, and what cannot be written is said."""

import contextlib
import io
import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from idol.config import override
from idol.detection.detector import Detector
from idol.detection.exported import OUTPUTS, ExportedFrames
from idol.detection.postprocess import select_queries
from idol.images.synthetic import SyntheticConfig, make_video
from idol.masks import rle
from idol.masks.boxes import cxcywh_to_xyxy
from idol.tracker import TrackAssembler, Tracker
from idol.weights import checkpoint, export
from idol.ytvis import results
from jobs import export as job

SETTINGS = (
    "transforms.stretch=[90,120]",
    "detect.box_nms=0.3",
    "tracker.class_score_threshold=0.3",
)
ROOT = Path(__file__).resolve().parents[2]


def last_line(capsys):
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


@pytest.fixture(scope="module")
def frames() -> list[NDArray[np.uint8]]:
    """A drawn video, (H, W, 3) uint8 RGB, whose height is no multiple of 32."""
    drawn = SyntheticConfig(size=(150, 220), length=(6, 6))
    return [np.asarray(frame) for frame in make_video(drawn, 11).frames]


@pytest.fixture(scope="module")
def frame(frames, tmp_path_factory) -> str:
    """The first of them as a file."""
    path = tmp_path_factory.mktemp("frame") / "frame.png"
    cv2.imwrite(str(path), cv2.cvtColor(frames[0], cv2.COLOR_RGB2BGR))
    return str(path)


@pytest.fixture(scope="module")
def exported(frame, tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    """The whole path of these frames as ONNX, and what the job said of it."""
    pytest.importorskip("onnxruntime")
    out = tmp_path_factory.mktemp("exported") / "network.onnx"
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        job.main(
            ["--weights", "shipped", "--out", str(out), "--frame", frame, "--set",
             SETTINGS[0], "--set", SETTINGS[1], "--set", SETTINGS[2]]
        )  # fmt: skip
    return out, json.loads(told.getvalue().strip().splitlines()[-1])


def model_and_config() -> tuple[Any, Any]:
    """The network that is exported, and its configuration."""
    model = checkpoint.load("shipped").eval()
    return model, override(model.config, SETTINGS)


def test_an_onnx_file_of_the_whole_path_answers_as_the_network_does(exported, frame):
    out, line = exported
    assert line["input"] == [1, 150, 220, 3]
    assert line["shown"] == [90, 120]
    assert set(line["differences"]) == set(OUTPUTS)
    assert max(line["differences"].values()) < 1e-4
    operators = {node.op_type for node in pytest.importorskip("onnx").load(out).graph.node}
    assert "GridSample" in operators
    with pytest.raises(SystemExit, match="Use another --out, or --overwrite"):
        job.main(["--weights", "shipped", "--out", str(out)])


def test_its_detections_are_those_of_a_detector(exported, frames):
    network = ExportedFrames(exported[0])
    model, config = model_and_config()
    assert network.config == config
    detector = Detector(model, config)
    for index, picture in enumerate(frames):
        (right,) = detector.detect([detector.prepare(picture)], [index])
        found = network.detect(picture, index)
        assert found.frame_index == index
        assert len(found) == len(right)
        for name in ("scores", "class_scores", "embeddings", "overlaps", "boxes"):
            a, b = getattr(found, name), getattr(right, name).numpy()
            assert np.allclose(a, b, rtol=1e-3, atol=1e-3), name
        masks, known = (rle.decode_masks(one.masks, (150, 220)) for one in (found, right))
        # A pixel whose logit rounds to zero may differ.
        assert np.count_nonzero(masks != known) <= 2
    with pytest.raises(FileNotFoundError, match=r"jobs\.export writes one"):
        ExportedFrames("missing.onnx")
    with pytest.raises(ValueError, match="--frame of the same size"):
        network.detect(frames[0][:100], 0)


SCRIPT = ROOT / "examples" / "onnx_tracking.py"


@pytest.fixture
def film(frames, tmp_path) -> Path:
    """The drawn video as a file without losses."""
    path = tmp_path / "video.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"FFV1"), 10, (220, 150))
    for picture in frames:
        writer.write(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    writer.release()
    return path


def test_a_video_is_tracked_without_torch_as_with_it(exported, frames, film, tmp_path):
    out = tmp_path / "results.json"
    without = (
        "import runpy, sys; sys.modules['torch'] = None; "
        "runpy.run_path(sys.argv.pop(1), run_name='__main__')"
    )
    words = [str(SCRIPT), str(exported[0]), str(film), str(out)]
    subprocess.run([sys.executable, "-c", without, *words], cwd=ROOT, check=True)

    model, config = model_and_config()
    detector, tracker = Detector(model, config), Tracker(config.tracker)
    assembler = TrackAssembler(config.tracker)
    tracks = []
    for index, picture in enumerate(frames):
        (seen,) = detector.detect([detector.prepare(picture)], [index])
        tracks += assembler.add(seen, *tracker.follow(seen), tracker.alive)
    tracks = sorted(tracks + assembler.finish(), key=lambda one: one.position)
    right = results.class_entries([one.track for one in tracks], config.tracker)
    right.sort(key=lambda chosen: (chosen.label, -chosen.score))  # as results.write does
    found = json.loads(out.read_text())
    assert len(found) == len(right) >= 2
    for entry, chosen in zip(found, right, strict=True):
        assert entry["score"] == pytest.approx(chosen.score, abs=1e-3)
        there = [i for i, mask in enumerate(entry["segmentations"]) if mask is not None]
        assert there == sorted(tracks[chosen.track].track.detections)


def test_a_video_cut_short_is_told_and_its_part_written(exported, film, tmp_path):
    track, out = runpy.run_path(str(SCRIPT))["track"], tmp_path / "results.json"
    data = film.read_bytes()
    film.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"complete\?.*results\.json has results of the") as told:
        track(exported[0], str(film), out)
    (length,) = {len(entry["segmentations"]) for entry in json.loads(out.read_text())}
    assert 1 <= length < 6
    assert f"of the {length} frames before" in str(told.value)
    out.unlink()
    film.write_bytes(data[:100])
    with pytest.raises(ValueError, match=r"video\.avi"):
        track(exported[0], str(film), out)
    assert not out.exists()


@pytest.mark.parametrize("content", [b"", b"this is no network"])
def test_a_file_that_is_no_network_is_told_with_its_path(content, tmp_path):
    pytest.importorskip("onnxruntime")
    path = tmp_path / "text.onnx"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"text\.onnx cannot be loaded by onnxruntime: .*rotobuf"):
        ExportedFrames(path)


def test_a_network_without_our_configuration_is_told(exported, tmp_path):
    onnx = pytest.importorskip("onnx")
    network = onnx.load(str(exported[0]))
    del network.metadata_props[:]
    onnx.save(network, str(tmp_path / "bare.onnx"))
    with pytest.raises(ValueError, match=r"bare\.onnx must return .* hold our configuration.*none"):
        ExportedFrames(tmp_path / "bare.onnx")


@pytest.mark.parametrize("floor", [0.0, 0.2, 0.99])
@pytest.mark.parametrize("overlap", [0.2, 0.7, 1.0])
def test_selection_in_the_graph_is_that_of_the_detector(floor, overlap):
    model = checkpoint.load("shipped").eval()
    settings = [f"detect.score_floor={floor}", f"detect.box_nms={overlap}"]
    network = export.WholeFrame(model, (64, 64), 1, 40, override(model.config, settings))
    rng = np.random.default_rng(int(floor * 10 + overlap * 100))
    count = network.candidates
    scores = np.sort(rng.random(count).astype(np.float32) * 0.9)[::-1].copy()
    labels = rng.integers(0, 2, count)
    # Chains: each box overlaps with the next ones.
    boxes = np.stack(
        [np.linspace(0.2, 0.8, count), np.full(count, 0.5), *np.full((2, count), 0.3)], axis=1
    ).astype(np.float32)[rng.permutation(count)]
    right = select_queries(scores, labels, boxes, network.detect)
    given = (torch.from_numpy(a)[None] for a in (scores, labels, boxes))
    scores_in, labels_in, boxes_in = given
    kept = network._kept(scores_in, labels_in, cxcywh_to_xyxy(boxes_in))[0]
    assert kept.nonzero()[:, 0].tolist() == right.tolist()


@pytest.mark.slow
def test_an_onnx_file_of_the_network_answers_as_it_does(tmp_path, frame, capsys):
    pytest.importorskip("onnxruntime")
    out = tmp_path / "network.onnx"
    # Sides that are no multiples of 32: the padding is part of what is exported.
    job.main(
        ["--weights", "shipped", "--out", str(out), "--frame", frame, "--batch", "2",
         "--part", "network", "--set", "transforms.stretch=[90,120]"]
    )  # fmt: skip
    line = last_line(capsys)
    assert line["input"] == [2, 3, 96, 128]
    assert line["shown"] == [90, 120]
    assert set(line["differences"]) == set(export.PerFrame.outputs)
    assert max(line["differences"].values()) < 1e-4
    with pytest.raises(ValueError, match="--part frame"):
        ExportedFrames(out)


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
    wrong = dict.fromkeys(OUTPUTS, 0.0) | {"boxes": 0.5}
    monkeypatch.setattr(export, "differences", lambda network, answers, right: wrong)
    with pytest.raises(SystemExit, match=r"answers differently.*Do not use it"):
        job.main(["--weights", "shipped", "--out", str(tmp_path / "n.onnx"), "--frame", frame])
