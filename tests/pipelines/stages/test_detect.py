"""Frames become stored detections, once, whatever happens on the way."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import idol
from idol.config import Config, ModelConfig, TransformConfig, override
from idol.detection.detector import Detector
from idol.evaluation.overlaps import frame_overlap
from idol.masks import rle
from pipelines.errors import ManifestError, PipelineError
from pipelines.sources import annotations
from pipelines.sources.annotations import Dataset
from pipelines.stages import detect, shard_plan
from pipelines.storage import claims, layout, manifest, stored, tables
from pipelines.storage.manifest import Manifest


def tiny_config() -> Config:
    """The smallest network there is, on 32 x 64 pixels."""
    base = idol.presets.tiny()
    model: ModelConfig = replace(
        base.model,
        num_classes=2,
        num_queries=6,
        width=16,
        num_heads=2,
        encoder_layers=1,
        decoder_layers=1,
        feedforward=16,
        embedding_size=8,
    )
    config = replace(base, model=model, transforms=replace(base.transforms, stretch=(32, 64)))
    return override(
        config, ["detect.score_floor=0", "detect.batch_frames=3", "detect.frames_per_shard=4"]
    )


@pytest.fixture(scope="module")
def model() -> idol.IDOL:
    torch.manual_seed(0)
    return idol.IDOL(tiny_config()).eval()


@given(n=st.integers(0, 4), g=st.integers(0, 4), seed=st.integers(0, 2**16), absent=st.booleans())
def test_overlaps_are_the_pixel_counts_of_the_masks(n: int, g: int, seed: int, absent: bool):
    rng = np.random.default_rng(seed)
    found, true = rng.random((n, 9, 7)) < 0.4, rng.random((g, 9, 7)) < 0.4
    if n:
        found[0] = False  # a detection may have an empty mask
    counts: list[bytes | None] = list(rle.encode_masks(true))
    if g and absent:
        counts[-1], true[-1] = None, False
    overlap = frame_overlap(rle.encode_masks(found), counts, (9, 7), 5)
    np.testing.assert_array_equal(
        overlap.intersection, np.einsum("nhw,ghw->ng", found * 1, true * 1)
    )
    np.testing.assert_array_equal(overlap.area, found.sum((1, 2)))
    np.testing.assert_array_equal(overlap.truth_area, true.sum((1, 2)))


def test_frames_of_many_videos_share_a_batch_and_each_comes_back_as_if_alone(
    make_videos: Callable[..., Any], model: idol.IDOL
) -> None:
    dataset = annotations.read(make_videos([2, 3]).write())
    together = shard_plan.plan(dataset.videos, 8)
    alone = shard_plan.plan(dataset.videos, 1)
    config = tiny_config()
    rows = detect.detect_pieces(Detector(model, config), together[0], config, truth=True)
    assert [(r["video_id"], r["frame_index"]) for r in rows.detections] == [
        (1, 0), (1, 1), (2, 0), (2, 1), (2, 2)
    ]  # fmt: skip
    for row, shard in zip(rows.detections, alone, strict=True):
        (single,) = detect.detect_pieces(
            Detector(model, config), shard, config, truth=True
        ).detections
        for name in ("scores", "embeddings", "boxes"):
            np.testing.assert_allclose(row[name], single[name], rtol=1e-4, atol=1e-4)
    # The truth of video 1, frame 1: a car of 6 x 8 pixels and a person of the same size.
    np.testing.assert_array_equal(rows.overlaps[1]["truth_area"], [48, 48])
    np.testing.assert_array_equal(rows.overlaps[0]["truth_area"], [0, 48])


def test_a_broken_frame_rejects_its_video_and_no_other(
    make_videos: Callable[..., Any], model: idol.IDOL
) -> None:
    videos = make_videos([2, 3])
    videos.frame(2, 1).write_bytes(b"not a picture")
    (pieces,) = shard_plan.plan(annotations.read(videos.write()).videos, 8)
    rows = detect.detect_pieces(Detector(model, tiny_config()), pieces, tiny_config(), truth=True)
    assert {r["video_id"] for r in rows.detections} == {1} == {r["video_id"] for r in rows.overlaps}
    (reject,) = rows.rejects
    assert reject.video_id == 2
    assert reject.path.endswith("001.jpg")


def test_frames_of_a_video_file_are_read_like_any_others(tmp_path: Path, model: idol.IDOL) -> None:
    from idol.images import synthetic, synthetic_dataset

    config = synthetic.SyntheticConfig(size=(32, 64), length=(5, 5), num_objects=(1, 2))
    path = synthetic_dataset.write_dataset(tmp_path / "mp4", config, 2, 0, format="mp4")
    pieces = [p for shard in shard_plan.plan(annotations.read(path).videos, 3) for p in shard]
    rows = detect.detect_pieces(Detector(model, tiny_config()), pieces, tiny_config(), truth=True)
    assert [(r["video_id"], r["frame_index"]) for r in rows.detections] == [
        (v, i) for v in (1, 2) for i in range(5)
    ]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Four synthetic videos of two categories; a frame of the third is no picture."""
    from idol.images import synthetic, synthetic_dataset

    out = tmp_path_factory.mktemp("videos")
    config = synthetic.SyntheticConfig(
        size=(32, 64), length=(3, 6), num_objects=(1, 2), num_categories=2
    )
    path = synthetic_dataset.write_dataset(out, config, 4, 1)
    read = annotations.read(path)
    Path(read.videos[2].frames[1]).write_bytes(b"not a picture")
    return read


def contents(folder: Path) -> dict[str, bytes]:
    """All files but the manifest, which tells the time it took."""
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != manifest.MANIFEST}


@pytest.fixture(scope="module")
def detected(
    ray_local: None, dataset: Dataset, model: idol.IDOL, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Manifest]:
    """All of it, by two actors."""
    out = tmp_path_factory.mktemp("detections") / "two"
    return out, detect.run(dataset, model, out, tiny_config(), actors=2, reject_limit=0.5)


@pytest.mark.ray
def test_the_poisoned_video_is_a_reject_and_the_others_are_whole(
    detected: tuple[Path, Manifest], dataset: Dataset
) -> None:
    out, found = detected
    source = stored.read(out)
    assert [v.video_id for v in source.videos] == [1, 2, 4]
    assert found.rejects == 1
    (reject,) = tables.read_rejects(out)
    assert reject.video_id == 3
    for position, entry in zip((0, 1, 3), source.videos, strict=True):
        record = dataset.videos[position]
        stored_frames = list(source.frames(entry))
        assert [f.frame_index for f in stored_frames] == list(range(len(record)))
        assert all(len(f) >= 1 for f in stored_frames)
        overlaps = list(source.overlaps(entry))
        assert [len(o.area) for o in overlaps] == [len(f) for f in stored_frames]
        assert all(len(o.truth_area) == len(record.instances) for o in overlaps)
        assert [index for index, _ in source.masks(entry)] == list(range(len(record)))


@pytest.mark.ray
def test_a_killed_run_redoes_only_what_is_missing_and_ends_with_the_same_bytes(
    detected: tuple[Path, Manifest], dataset: Dataset, model: idol.IDOL, tmp_path: Path
) -> None:
    whole, found = detected
    out = tmp_path / "killed"
    # As a kill leaves it: claimed, one shard done, one half written.
    claims.prepare_output(
        out,
        "detect",
        detect.claim(tiny_config()),
        detect.input_hash(dataset, model),
        frames=dataset.frames,
    )
    for prefix in ("shard", "overlap"):
        shutil.copy(layout.shard_path(whole, 1, prefix), out)
    before = layout.shard_path(out, 1).stat().st_mtime_ns
    shutil.copy(layout.shard_path(whole, 0, "overlap"), out)
    (out / ".shard-00000.a1b2c3d4.parquet").write_bytes(b"PAR1")
    with pytest.raises(ManifestError, match="unfinished 'detect'"):
        stored.read(out)
    # One actor where the whole run had two.
    again = detect.run(dataset, model, out, tiny_config(), actors=1, reject_limit=0.5)
    assert layout.shard_path(out, 1).stat().st_mtime_ns == before
    assert contents(out) == contents(whole)
    assert again.hash == found.hash
    # And once it is finished, the same call does nothing.
    assert detect.run(dataset, model, out, tiny_config()) == again


@pytest.mark.ray
def test_other_settings_or_weights_do_not_mix_with_what_is_there(
    detected: tuple[Path, Manifest], dataset: Dataset, model: idol.IDOL
) -> None:
    out, _ = detected
    with pytest.raises(ManifestError, match="box_nms"):
        detect.run(dataset, model, out, override(tiny_config(), ["detect.box_nms=0.5"]))
    with pytest.raises(ManifestError, match="input"):
        detect.run(dataset, idol.IDOL(tiny_config()).eval(), out, tiny_config())


@pytest.mark.slow
@pytest.mark.ray
def test_too_many_rejects_fail_the_job_with_the_first_reason(
    ray_local: None, dataset: Dataset, model: idol.IDOL, tmp_path: Path
) -> None:
    with pytest.raises(PipelineError, match=r"1 of 4 videos .*not an image"):
        detect.run(dataset, model, tmp_path / "out", tiny_config(), actors=1)


@pytest.mark.ray
def test_a_lost_shard_is_noticed_by_the_reader(
    detected: tuple[Path, Manifest], tmp_path: Path
) -> None:
    whole, _ = detected
    out = tmp_path / "damaged"
    shutil.copytree(whole, out)
    layout.shard_path(out, 0, "overlap").unlink()
    with pytest.raises(ManifestError, match="lost overlap-00000"):
        stored.read(out)


def test_the_transforms_of_the_configuration_decide_the_input(
    make_videos: Callable[..., Any], model: idol.IDOL
) -> None:
    (pieces,) = shard_plan.plan(annotations.read(make_videos([1]).write()).videos, 8)
    small, large = (
        replace(tiny_config(), transforms=TransformConfig(stretch=size))
        for size in ((32, 64), (64, 96))
    )
    rows = [
        detect.detect_pieces(Detector(model, c), pieces, c, truth=False).detections
        for c in (small, large)
    ]
    assert not np.array_equal(rows[0][0]["scores"], rows[1][0]["scores"])
