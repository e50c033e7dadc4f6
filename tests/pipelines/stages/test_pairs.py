"""Pairs: drawn by the paper's rule, equal bytes from any number of workers, faults recorded."""

import dataclasses
import os
import shutil
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from idol.config import PairConfig
from idol.masks.rle import decode_masks
from pipelines.batches.stored_pairs import clip_of_row
from pipelines.errors import ManifestError, PipelineError, VideoError, raise_carried
from pipelines.sources import annotations
from pipelines.sources.annotations import InstanceRecord, VideoRecord
from pipelines.stages import pairs
from pipelines.storage import claims, frame_store, layout, manifest, tables
from tests.pipelines.drawn_pairs import pairs_of_video


def video(length: int, video_id: int = 1) -> VideoRecord:
    return VideoRecord(video_id, (4, 6), tuple(f"{i}.jpg" for i in range(length)), ())


def rows_of(path: Path) -> list[dict]:
    """The rows of one file."""
    rows: list[dict] = pq.read_table(path).to_pylist()
    return rows


def read_rows(path: Path) -> list[dict]:
    return [row for shard in manifest.shard_paths(path) for row in rows_of(shard)]


def identity(row: dict) -> tuple[int, int, int]:
    return row["video_id"], row["key_index"], row["reference_index"]


# -- drawing --------------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    length=st.integers(2, 40),
    gap=st.integers(1, 12),
    count=st.integers(0, 90),
    order=st.sampled_from(["released", "any"]),
    seed=st.integers(0, 2**40),
    video_id=st.integers(-5, 2**40),
)
def test_a_pair_is_two_frames_at_most_max_gap_apart(length, gap, count, order, seed, video_id):
    config = PairConfig(max_gap=gap, pairs_per_video=count, order=order, seed=seed)
    drawn = pairs.draw(video(length, video_id), config)
    assert len(drawn) == (count or length)
    for key, reference in drawn:
        assert 0 <= key < length
        assert 0 <= reference < length
        assert 0 < abs(key - reference) <= gap
        assert order == "any" or key < reference
    assert drawn == pairs.draw(video(length, video_id), config)


def test_every_frame_takes_its_turn():
    config = PairConfig(order="any", pairs_per_video=24)
    assert Counter(key for key, _ in pairs.draw(video(12), config)) == dict.fromkeys(range(12), 2)


def test_partners_are_uniform_over_the_neighbourhood():
    config = PairConfig(order="any", max_gap=2, pairs_per_video=7000)
    drawn = Counter(pairs.draw(video(7), config))
    # Frame 3 has partners 1, 2, 4, 5: 1000 draws, 250 each, 5 standard deviations are 68.
    assert {r for k, r in drawn if k == 3} == {1, 2, 4, 5}
    assert all(abs(drawn[3, r] - 250) < 68 for r in (1, 2, 4, 5))
    # Frame 0 has partners 1 and 2 only.
    assert {r for k, r in drawn if k == 0} == {1, 2}


def test_other_seeds_and_other_videos_draw_other_pairs():
    base = pairs.draw(video(30), PairConfig())
    assert base != pairs.draw(video(30), PairConfig(seed=1))
    assert base != pairs.draw(video(30, video_id=2), PairConfig())


def test_a_video_of_one_frame_has_no_pair():
    with pytest.raises(VideoError, match="a pair needs 2 frames, the video has 1"):
        pairs.draw(video(1), PairConfig())


# -- rows of one video ----------------------------------------------------------------------------


def test_a_row_holds_both_frames_and_the_same_instances_in_both(make_videos):
    videos = make_videos([4])
    dataset = annotations.read(videos.write())
    rows = list(pairs_of_video(dataset.videos[0], PairConfig(order="any"), dataset.labels))
    assert len(rows) == 4
    for row in rows:
        key, reference = row["key_index"], row["reference_index"]
        assert row["key_jpeg"] == videos.frame(1, key).read_bytes()
        assert row["reference_jpeg"] == videos.frame(1, reference).read_bytes()
        assert [(i["instance_id"], i["label"]) for i in row["instances"]] == [(11, 1), (12, 0)]
        # Object 11 is absent from frame 0, and only there.
        assert (row["instances"][0]["key_rle"] is None) == (key == 0)
        assert (row["instances"][0]["reference_rle"] is None) == (reference == 0)


def test_crowds_and_objects_seen_in_neither_frame_are_left_out(make_videos):
    videos = make_videos([4])
    videos.content["annotations"][1]["iscrowd"] = 1
    hidden = dict(videos.content["annotations"][0], id=99, segmentations=[None] * 4)
    videos.content["annotations"].append(hidden)
    dataset = annotations.read(videos.write())
    for row in pairs_of_video(dataset.videos[0], PairConfig(), dataset.labels):
        assert [i["instance_id"] for i in row["instances"]] == [11]


def test_a_maximum_side_shrinks_frames_and_masks_alike(make_videos):
    videos = make_videos([3])
    dataset = annotations.read(videos.write())
    config = PairConfig(max_side=18)
    for row in pairs_of_video(dataset.videos[0], config, dataset.labels):
        assert (row["height"], row["width"]) == (12, 18)
        image = cv2.imdecode(np.frombuffer(row["key_jpeg"], np.uint8), cv2.IMREAD_COLOR)
        assert image.shape == (12, 18, 3)
        left = row["key_index"] + 2
        whole = np.zeros((24, 36), bool)
        whole[4:12, left : left + 6] = True
        mask = decode_masks([row["instances"][1]["key_rle"]], (12, 18))[0]
        np.testing.assert_array_equal(mask, whole[1::2, 1::2])


def test_a_side_within_the_maximum_keeps_the_bytes(make_videos):
    videos = make_videos([2])
    dataset = annotations.read(videos.write())
    for row in pairs_of_video(dataset.videos[0], PairConfig(max_side=36), dataset.labels):
        assert row["key_jpeg"] == videos.frame(1, 0).read_bytes()


def test_an_object_that_shrinks_to_nothing_in_both_frames_is_gone(make_videos):
    videos = make_videos([2])
    for item in videos.content["annotations"]:
        item["segmentations"] = [[[0, 0, 1, 0, 1, 1, 0, 1]]] * 2
    dataset = annotations.read(videos.write())
    config = PairConfig(max_side=4)
    rows = list(pairs_of_video(dataset.videos[0], config, dataset.labels))
    assert [row["instances"] for row in rows] == [[], []]


def test_a_corrupt_frame_is_a_video_error(make_videos):
    videos = make_videos([2])
    dataset = annotations.read(videos.write())
    path = videos.frame(1, 1)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(VideoError, match=r"cut short|damaged"):
        list(pairs_of_video(dataset.videos[0], PairConfig(), dataset.labels))


def test_frames_of_a_video_file_become_pairs(tmp_path):
    path = tmp_path / "clip.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 10, (48, 32))
    for i in range(6):
        writer.write(np.full((32, 48, 3), 40 * i, np.uint8))
    writer.release()
    names = tuple(f"{path}#{i}" for i in range(6))
    instance = InstanceRecord(1, 5, False, (None,) * 6)
    record = VideoRecord(1, (32, 48), names, (instance,))
    for row in pairs_of_video(record, PairConfig(), {5: 0}):
        for name in ("key", "reference"):
            data = np.frombuffer(row[f"{name}_jpeg"], np.uint8)
            level = cv2.imdecode(data, cv2.IMREAD_COLOR).mean()
            assert round(level / 40) == row[f"{name}_index"]


# -- the stage ------------------------------------------------------------------------------------


@pytest.mark.ray
def test_the_stage_writes_every_drawn_pair_once_and_shuffled(ray_local, make_videos, tmp_path):
    dataset = annotations.read(make_videos([5, 4, 6]).write())
    config = PairConfig(sampling="stored", rows_per_shard=9)
    written = pairs.run(dataset, tmp_path / "out", config)
    rows = read_rows(tmp_path / "out")
    expected = {
        identity(row): row
        for v in dataset.videos
        for row in pairs_of_video(v, config, dataset.labels)
    }
    drawn = [(v.video_id, *p) for v in dataset.videos for p in pairs.draw(v, config)]
    assert Counter(map(identity, rows)) == Counter(drawn)
    assert all(row == expected[identity(row)] for row in rows)
    assert [identity(row) for row in rows] != drawn
    assert (written.rows, written.shards, written.rejects) == (15, 2, 0)
    assert written.extra["categories"] == ["person", "car"]
    assert written.extra["category_ids"] == [3, 7]
    assert (written.extra["videos"], written.extra["rejected_videos"]) == (3, 0)
    # Again: the manifest is found, nothing is written.
    assert pairs.run(dataset, tmp_path / "out", config) == written


@pytest.mark.ray
def test_the_stage_stores_every_frame_once_and_the_same_in_any_number_of_tasks(
    ray_local, make_videos, tmp_path
):
    videos = make_videos([5, 4, 30])
    corrupt = videos.frame(1, 2)
    corrupt.write_bytes(corrupt.read_bytes()[:200])
    dataset = annotations.read(videos.write())
    config = PairConfig(rows_per_shard=12)
    written = pairs.run(dataset, tmp_path / "out", config, reject_limit=0.5)
    index, shards = frame_store.read_index(tmp_path / "out", ["video_id", "frame_index"])
    found = [tuple(row.values()) for row in index.to_pylist()]
    expected = {(v.video_id, t) for v in dataset.videos for t in range(len(v))} - {(1, 2)}
    assert sorted(found) == sorted(expected)
    assert (written.rows, written.rejects) == (38, 1)
    assert max(Counter(shards.tolist()).values()) <= 12
    # A video lies in one shard, and its frames in order of time; a long one is cut.
    for video in (1, 2):
        assert len({s for s, (v, _) in zip(shards.tolist(), found, strict=True) if v == video}) == 1
    assert [t for v, t in found if v == 2] == [0, 1, 2, 3]
    # In one task at a time, after a death: a shard is there, of another only the frames.
    cut, done = tmp_path / "cut", manifest.read(tmp_path / "out")
    claims.prepare_output(cut, layout.PREPARE, done.config, done.input_hash, frames=dataset.frames)
    for name in ("frames-00000.arrows", "shard-00000.parquet", "frames-00001.arrows"):
        shutil.copy(tmp_path / "out" / name, cut)
    kept = (cut / "frames-00000.arrows").stat().st_mtime_ns
    pairs.run(dataset, cut, config, reject_limit=0.5, num_cpus=4)
    assert (cut / "frames-00000.arrows").stat().st_mtime_ns == kept
    assert sorted(os.listdir(cut)) == sorted(os.listdir(tmp_path / "out"))
    for path in [*cut.glob("*.parquet"), *cut.glob("*.arrows")]:
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes()
    assert manifest.read(cut).hash == done.hash


@pytest.mark.ray
def test_a_frame_is_read_once_and_a_long_video_is_cut_in_time(ray_local, make_videos, tmp_path):
    dataset = annotations.read(make_videos([30, 5, 6, 4]).write())
    config = PairConfig(sampling="stored", rows_per_shard=12, max_gap=2)
    written = pairs.run(dataset, tmp_path / "out", config)
    shards = [
        {(r["video_id"], r[f"{n}_index"]) for r in rows_of(path) for n in ("key", "reference")}
        for path in manifest.shard_paths(tmp_path / "out")
    ]
    assert written.rows == 45
    assert all(len(rows_of(path)) <= 12 for path in manifest.shard_paths(tmp_path / "out"))
    times = Counter(frame for shard in shards for frame in shard)
    assert {video for (video, _), count in times.items() if count > 1} <= {1}
    # Two cuts of the video of 30 frames, and partners at most 2 frames away.
    assert sum(count - 1 for count in times.values()) <= 2 * 2 * 2


@pytest.mark.ray
def test_a_restart_redoes_only_what_is_missing_and_ends_with_equal_bytes(
    ray_local, make_videos, tmp_path
):
    dataset = annotations.read(make_videos([5, 4, 6]).write())
    config = PairConfig(sampling="stored", rows_per_shard=4)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    pairs.run(dataset, whole, config)
    # What a killed driver leaves: the claim, some shards, half a file under a temporary name.
    done = manifest.read(whole)
    claims.prepare_output(cut, layout.PREPARE, done.config, done.input_hash, frames=dataset.frames)
    shutil.copy(whole / "shard-00002.parquet", cut)
    (cut / ".shard-00000.a1b2c3d4.parquet").write_bytes(b"half")
    kept = (cut / "shard-00002.parquet").stat()
    pairs.run(dataset, cut, config, num_cpus=4)  # one task at a time
    assert (cut / "shard-00002.parquet").stat().st_mtime_ns == kept.st_mtime_ns
    assert sorted(os.listdir(cut)) == sorted(os.listdir(whole))
    for path in whole.glob("*.parquet"):
        assert path.read_bytes() == (cut / path.name).read_bytes()


@pytest.mark.ray
@pytest.mark.parametrize("sampling", ["released", "stored"])
def test_two_runs_at_once_write_the_same_shards_whatever_each_of_them_misses(
    make_videos, tmp_path, sampling
):
    dataset = annotations.read(make_videos([4, 5, 3, 6, 4]).write())
    config = PairConfig(rows_per_shard=4, sampling=sampling)
    plan, _ = pairs.deal(dataset, config, None)
    numbers = list(range(len(plan)))

    def claimed(out: Path) -> Path:
        claims.prepare_output(out, layout.PREPARE, {}, "h")
        shards = ([(dataset.videos[p.position], p) for p in shard] for shard in plan)
        pairs._write_plan(out / pairs._PLAN, shards)
        return out

    def write(out: Path, missing: list[int], position: int) -> int:
        shared = {"config": config, "labels": dataset.labels, "shards": missing}
        made = pairs.write_shard({"id": position}, out=out, **shared)
        assert not made["error"]
        return made["rows"]

    alone, together = claimed(tmp_path / "alone"), claimed(tmp_path / "together")
    rows = [write(alone, numbers, number) for number in numbers]
    write(together, numbers, 1)
    # The second begins here and misses other shards; what the first has written it keeps.
    claimed(together)
    others = [number for number in numbers if number != 1]
    assert write(together, others, len(others) - 1) == rows[-1]
    for number in numbers[:-1]:
        assert write(together, numbers, number) == rows[number]
    # The second has ended, and with it the plan.
    (together / pairs._PLAN).unlink()
    assert write(together, numbers, numbers[-1]) == rows[-1]
    for path in alone.glob("*-*"):
        assert path.read_bytes() == (together / path.name).read_bytes()
    layout.shard_path(together, 0).unlink()
    shared = {"config": config, "labels": dataset.labels, "shards": numbers}
    with pytest.raises(FileNotFoundError, match="_plan"):
        raise_carried(pairs.write_shard({"id": 0}, out=together, **shared))


def test_faults_are_recorded_and_the_rest_goes_on(ray_local, make_videos, tmp_path, caplog):
    videos = make_videos([4, 4, 1, 4, 4, 4, 4, 4])
    videos.content["videos"][1]["file_names"][0] = "../../etc/passwd"
    path = videos.write()
    corrupt = videos.frame(1, 2)
    corrupt.write_bytes(corrupt.read_bytes()[:200])
    dataset = annotations.read(path)
    config = PairConfig(sampling="stored", rows_per_shard=5)
    written = pairs.run(dataset, tmp_path / "out", config, reject_limit=0.5)
    told = "3 of 8 videos left out; the first is video 1: "
    assert sum(message.startswith(told) for message in caplog.messages) == 1
    rejects = tables.read_rejects(tmp_path / "out")
    assert [(r.video_id, r.path) for r in rejects] == [
        (1, str(corrupt)),
        (2, "../../etc/passwd"),
        (3, str(videos.frame(3, 0))),
    ]
    assert "cut short" in rejects[0].reason
    assert "a pair needs 2 frames" in rejects[2].reason
    assert (written.rejects, written.extra["rejected_videos"]) == (3, 3)
    rows = read_rows(tmp_path / "out")
    assert {row["video_id"] for row in rows} <= {1, 4, 5, 6, 7, 8}
    assert sum(row["video_id"] >= 4 for row in rows) == 20
    assert not any(row["video_id"] == 1 and 2 in identity(row)[1:] for row in rows)


@pytest.mark.ray
def test_too_many_faults_fail_the_stage_and_nothing_looks_finished(
    ray_local, make_videos, tmp_path
):
    videos = make_videos([4, 4, 4])
    dataset = annotations.read(videos.write())
    for video_id in (1, 3):
        for i in range(4):
            videos.frame(video_id, i).write_bytes(b"\xff\xd8\xff broken")
    with pytest.raises(PipelineError, match=r"2 of 3 videos have a fault.*limit of 50%"):
        pairs.run(dataset, tmp_path / "out", PairConfig(), reject_limit=0.5)
    with pytest.raises(ManifestError, match="unfinished"):
        manifest.read(tmp_path / "out")
    # Whoever accepts them raises the limit, and the shards that are done are kept.
    patient = pairs.run(dataset, tmp_path / "out", PairConfig(), reject_limit=0.7)
    assert patient.rejects == 8


# -- refused before Ray is asked for anything -----------------------------------------------------


def test_a_dataset_without_truth_cannot_be_learned_from(make_videos, tmp_path):
    videos = make_videos([3])
    videos.content["annotations"] = None
    dataset = annotations.read(videos.write())
    with pytest.raises(PipelineError, match="no usable video has an annotated object"):
        pairs.run(dataset, tmp_path / "out", PairConfig())
    assert not (tmp_path / "out").exists()


def test_a_dataset_of_single_frames_has_no_pair(make_videos, tmp_path):
    dataset = annotations.read(make_videos([1, 1]).write())
    with pytest.raises(PipelineError, match=r"2 of 2 videos have a fault.*a pair needs 2 frames"):
        pairs.run(dataset, tmp_path / "out", PairConfig())
    with pytest.raises(PipelineError, match="no video has two frames"):
        pairs.run(dataset, tmp_path / "out", PairConfig(), reject_limit=1)


def test_a_dataset_whose_frames_are_elsewhere_names_the_first(make_videos, tmp_path):
    videos = make_videos([3, 3])
    dataset = annotations.read(videos.write(), tmp_path / "wrong")
    with pytest.raises(PipelineError, match="the frame does not exist"):
        pairs.run(dataset, tmp_path / "out", PairConfig())


def test_another_runs_directory_is_refused(make_videos, tmp_path):
    dataset = annotations.read(make_videos([3]).write())
    recorded = {"max_gap": 3}
    claims.prepare_output(tmp_path / "out", layout.PREPARE, recorded, dataset.input_hash)
    with pytest.raises(ManifestError, match="unfinished output of another run"):
        pairs.run(dataset, tmp_path / "out", PairConfig())
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a.txt").touch()
    with pytest.raises(ManifestError, match="not an output of this project"):
        pairs.run(dataset, tmp_path / "full", PairConfig())


def test_pairs_belong_to_their_frames_wherever_they_lie(make_videos, tmp_path):
    videos, out = make_videos([3]), tmp_path / "out"
    dataset, config = annotations.read(videos.write()), PairConfig()
    recorded = dataclasses.asdict(config)
    claims.prepare_output(
        out, layout.PREPARE, recorded, pairs.input_hash(dataset), frames=dataset.frames
    ).finish()
    root = videos.folder / "JPEGImages"
    other = shutil.copytree(root, tmp_path / "other")
    (other / "v1" / "000.jpg").write_bytes(b"another picture")
    with pytest.raises(ManifestError, match=r"its frames were 3 files .* those given now are 3"):
        pairs.run(annotations.read(videos.write(), other), out, config)
    root.rename(tmp_path / "moved")
    pairs.run(annotations.read(videos.write(), tmp_path / "moved"), out, config)


def test_a_still_image_is_paired_with_itself_and_stored_once(make_images):
    images = make_images([2])
    dataset = annotations.read(images.write())
    config = PairConfig(pseudo=True)
    rows = [r for v in dataset.videos for r in pairs_of_video(v, config, dataset.labels)]
    assert [(r["key_index"], r["reference_index"]) for r in rows] == [(0, 0), (0, 0)]
    for row in rows:
        assert row["reference_jpeg"] == b""
        key, reference = clip_of_row(row).frames
        np.testing.assert_array_equal(key.image, reference.image)
        np.testing.assert_array_equal(key.masks, reference.masks)
        assert key.masks.any((1, 2)).all()


def test_an_image_without_an_object_makes_no_pair(make_images):
    images = make_images([2])
    images.content["annotations"].clear()
    dataset = annotations.read(images.write())
    assert [pairs.draw(v, PairConfig(pseudo=True)) for v in dataset.videos] == [[], []]
