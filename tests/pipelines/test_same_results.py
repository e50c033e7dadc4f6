"""How the work is dealt out changes nothing: actors not a byte, batches no identity."""

import json
from pathlib import Path

import numpy as np
import pytest

import idol
from idol.images import synthetic, synthetic_dataset
from idol.masks import rle
from pipelines import cluster, configuration
from pipelines.sources import annotations
from pipelines.stages import detect, track
from pipelines.storage import layout, stored


@pytest.mark.slow
@pytest.mark.ray
def test_two_actors_give_the_bytes_of_one_and_batches_of_eight_the_identities_of_single_frames(
    ray_local: None, tmp_path: Path
) -> None:
    drawn = synthetic.SyntheticConfig.crowded()
    dataset = annotations.read(synthetic_dataset.write_dataset(tmp_path / "videos", drawn, 3, 78))
    model = idol.load("shipped")
    ways: dict[str, tuple[int | cluster.Pool, int]] = {
        "one": (1, 8),
        "two": (cluster.Pool(1, 2), 8),
        "single": (2, 1),
    }
    results: dict[str, bytes] = {}
    for name, (actors, batch) in ways.items():
        settings = [f"detect.batch_frames={batch}", "detect.frames_per_shard=6"]
        config = configuration.changed(model.config, settings, None)
        out = tmp_path / name
        detect.run(dataset, model, out / "detections", config, actors=actors)
        track.run(out / "detections", out / "tracks", config.tracker)
        results[name] = (out / "tracks" / layout.RESULTS).read_bytes()
    assert results["one"] == results["two"]

    # Sums in another order differ in their last bits; nothing that is decided by them does.
    whole = stored.read(tmp_path / "two" / "detections")
    for position in range(len(dataset.videos)):
        eight, one = (
            list(stored.read_results(tmp_path / name / "tracks", position, whole))
            for name in ("two", "single")
        )
        assert [(r.track_id, r.label) for r in eight] == [(r.track_id, r.label) for r in one]
        np.testing.assert_allclose([r.score for r in eight], [r.score for r in one], atol=1e-5)
        for ours, theirs in zip(eight, one, strict=True):
            frames = [m is None for m in ours.segmentations]
            assert frames == [m is None for m in theirs.segmentations]
            differing = total = 0
            size = whole.videos[position].size
            for a, b in zip(ours.segmentations, theirs.segmentations, strict=True):
                if a is None or b is None:
                    continue
                pair = rle.decode_masks([a, b], size)
                differing += int((pair[0] != pair[1]).sum())
                total += int(pair[0].sum())
            assert differing <= 1e-3 * total
    assert len(json.loads(results["one"])) > 3
