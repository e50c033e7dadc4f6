"""Networks of clips through the stages: prepared, trained, validated, evaluated, resumed."""

import json
from pathlib import Path

import pytest
import torch

import idol
from idol import presets
from idol.analysis import score_files
from idol.config import override
from idol.images.synthetic import SyntheticConfig
from idol.images.synthetic_dataset import write_dataset
from idol.ytvis import truth
from pipelines.sources import annotations
from pipelines.stages import evaluate, pairs, train
from pipelines.stages.evaluate import Request
from pipelines.stages.train import Watching
from pipelines.stages.validation import Validation
from pipelines.storage import layout, manifest, reports
from pipelines.training.workers import Workers

pytestmark = [pytest.mark.ray, pytest.mark.slow]

QUICK = (
    "transforms.stretch=[64,96]",
    "model.num_queries=8",
    "model.width=32",
    "train.pairs_per_batch=2",
    "train.report_every=1",
    "train.checkpoint_every=1",
    "clips.score_threshold=0.001",
)


@pytest.fixture(scope="module")
def videos(ray_local, tmp_path_factory) -> str:
    """Two labelled videos."""
    root = tmp_path_factory.mktemp("clips")
    return str(write_dataset(root / "videos", SyntheticConfig.easy(), 2, 6))


@pytest.mark.parametrize("preset", ["seqformer_tiny", "ifc_tiny"])
def test_clips_are_trained_on_validated_and_evaluated(preset, videos, tmp_path):
    config = override(presets.by_name(preset), [*QUICK, "train.steps=2", "pairs.clip=3"])
    pairs.run(annotations.read(videos), tmp_path / "pairs", config.pairs)
    made = train.run(
        tmp_path / "pairs",
        tmp_path / "run",
        config,
        workers=Workers(count=0),
        watching=Watching(validation=Validation(annotations=videos)),
    )
    assert made.extra["best"]["step"] in (1, 2)
    weights = tmp_path / "run" / train.WEIGHTS
    model = idol.clips.load(weights)
    assert model.config.pairs.clip == 3
    assert model.config.categories == ("star", "fish", "flower", "cross")

    request = Request(annotations=videos, checkpoint=weights, overrides=["clips.length=4"])
    out = tmp_path / "evaluated"
    done = evaluate.run(request, out, actors=1, log=False)
    report = reports.EvaluationReport.read(out)
    assert report.videos == 2
    lengths = {video.video_id: len(video) for video in annotations.read(videos).videos}
    assert report.frames == sum(lengths.values())
    assert report.config["clips"]["length"] == 4
    assert done.extra["metrics"] == report.metrics
    # The same numbers as of anybody's results file.
    known = truth.read(Path(videos))
    scored = score_files.run(known, {"x": out / layout.RESULTS}, score_files.Analyses(oracle=(1,)))
    assert scored.files[0].metrics.stats == pytest.approx(report.metrics)
    assert scored.files[0].oracles.frame.stats == pytest.approx(report.frame_oracle)
    # What is there is not computed again.
    assert evaluate.run(request, out, actors=1, log=False) == done
    entries = json.loads((out / layout.RESULTS).read_text())
    assert all(len(e["segmentations"]) == lengths[e["video_id"]] for e in entries)


def test_a_video_that_cannot_be_read_is_left_out_and_told(videos, tmp_path):
    torch.manual_seed(0)
    config = override(presets.by_name("ifc_tiny"), QUICK)
    weights = idol.weights.save(idol.clips.weights.make(config), tmp_path / "w.safetensors")
    data = json.loads(Path(videos).read_text())
    data["videos"][0]["file_names"][3] = "gone.jpg"
    broken = Path(videos).parent / "broken.json"
    broken.write_text(json.dumps(data))
    request = Request(annotations=str(broken), checkpoint=weights)
    evaluate.run(request, tmp_path / "out", actors=1, log=False, reject_limit=0.6)
    report = reports.EvaluationReport.read(tmp_path / "out")
    (reject,) = report.rejects
    assert reject["effect"] == "counted as missed"
    assert report.videos == 1
    assert manifest.read(tmp_path / "out").rejects == 1
