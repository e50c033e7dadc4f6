"""Released sampling: what is drawn at each visit, who reads what, and the same after a restart."""

import itertools
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from idol import presets
from idol.config import PairConfig, override, to_dict
from pipelines.batches import loader, stored_frames
from pipelines.batches.stored_frames import clip_of_rows, draw
from pipelines.batches.stored_pairs import clip_of_row
from pipelines.errors import ManifestError, VideoError
from pipelines.sources import annotations
from pipelines.storage import claims, frame_store, layout, manifest, paths
from tests.pipelines.drawn_pairs import frames_of_video, pairs_of_video

CONFIG = override(presets.tiny(), ["transforms.stretch=[32,32]", "transforms.crop_probability=0"])
LENGTHS = [5, 4, 8, 2, 30]


def store(out: Path, rows: list[dict], config: PairConfig, size: int = 9) -> Path:
    """Rows of FRAMES in shards of some rows, written as the stage writes them, without Ray."""
    output = claims.prepare_output(out, layout.PREPARE, to_dict(config), "h")
    cuts = [rows[i : i + size] for i in range(0, len(rows), size)]
    for shard, cut in enumerate(cuts):
        frame_store.commit(cut, output.path, shard)
    output.finish(total_shards=len(cuts))
    return output.path


@pytest.fixture
def rows(make_videos) -> list[dict]:
    dataset = annotations.read(make_videos(LENGTHS).write())
    return [row for v in dataset.videos for row in frames_of_video(v, PairConfig(), dataset.labels)]


@pytest.fixture
def prepared(rows, tmp_path) -> Path:
    return store(tmp_path / "frames", rows, PairConfig(max_gap=3))


def make(path, **options):
    return loader.ClipLoader(path, CONFIG, **{"batch": 3, **options})


def take(iterator, count):
    try:
        return list(itertools.islice(iterator, count))
    finally:
        iterator.close()


def drawn(name: str) -> tuple[int, list[int]]:
    """The video and the frames of a name such as "video 3, frames 4 and 9"."""
    video, _, frames = name.partition(", frames ")
    return int(video.removeprefix("video ")), [int(t) for t in frames.split(" and ")]


# -- drawing --------------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    frames=st.sets(st.integers(0, 40), min_size=2),
    gap=st.integers(1, 12),
    clip=st.integers(2, 6),
    order=st.sampled_from(["released", "any"]),
    seed=st.integers(0, 99),
)
def test_a_clip_is_a_frame_and_others_at_most_max_gap_away(frames, gap, clip, order, seed):
    there = np.array(sorted(frames))
    keys = np.flatnonzero([((abs(there - t) <= gap).sum() > 1) for t in there])
    if not len(keys):
        return
    config = PairConfig(max_gap=gap, clip=clip, order=order)
    found = there[draw(there, keys, config, np.random.default_rng(seed))].tolist()
    assert len(found) == clip
    if order == "released":
        assert found == sorted(found)
        assert any(
            all(0 < abs(t - key) <= gap for t in found[:k] + found[k + 1 :])
            for k, key in enumerate(found)
        )
    else:
        assert all(0 < abs(t - found[0]) <= gap for t in found[1:])


def test_a_distinct_clip_has_no_frame_twice_where_there_are_enough():
    config = PairConfig(max_gap=3, clip=4, distinct=True)
    frames, rng = np.array([0, 1, 2, 9, 10, 11, 12, 13]), np.random.default_rng(0)
    seen = [draw(frames, np.arange(8), config, rng) for _ in range(400)]
    of_three = [found for found in seen if found[0] < 3]
    others = [found for found in seen if found[0] >= 3]
    assert all(set(found) <= {0, 1, 2} for found in of_three)  # three frames for a clip of four
    assert all(len(set(found)) == 4 and found == sorted(found) for found in others)
    assert set().union(*others) == {3, 4, 5, 6, 7}


def test_frames_and_partners_are_uniform():
    config, rng = PairConfig(max_gap=2, order="any"), np.random.default_rng(0)
    frames, keys = np.arange(7), np.arange(7)
    seen = Counter(tuple(draw(frames, keys, config, rng)) for _ in range(7000))
    # 1000 draws of each key; 250 of each partner of frame 3, 5 standard deviations are 68.
    assert {r for k, r in seen if k == 3} == {1, 2, 4, 5}
    assert all(abs(seen[3, r] - 250) < 68 for r in (1, 2, 4, 5))
    assert {r for k, r in seen if k == 0} == {1, 2}
    # 5 standard deviations of 1000 of 7000 are 147.
    assert all(abs(sum(n for (k, _), n in seen.items() if k == t) - 1000) < 147 for t in range(7))


def test_a_still_image_is_its_own_partner():
    config = PairConfig(pseudo=True)
    assert draw(np.array([0]), np.array([0]), config, np.random.default_rng(0)) == [0, 0]


# -- reading --------------------------------------------------------------------------------------


def test_a_clip_of_two_frames_is_the_pair_that_would_have_been_stored(make_videos, rows):
    dataset = annotations.read(make_videos(LENGTHS).write())
    frames = {(row["video_id"], row["frame_index"]): row for row in rows}
    for row in pairs_of_video(dataset.videos[2], PairConfig(), dataset.labels):
        names = [(3, row[f"{side}_index"]) for side in ("key", "reference")]
        ours = clip_of_rows([frames[name] for name in names])
        stored = clip_of_row(row)
        order = np.argsort([one["instance_id"] for one in row["instances"]])
        assert ours.labels.tolist() == stored.labels[order].tolist()
        for mine, theirs in zip(ours.frames, stored.frames, strict=True):
            np.testing.assert_array_equal(mine.image, theirs.image)
            np.testing.assert_array_equal(mine.masks, theirs.masks[order])
            assert mine.boxes is None


def test_videos_count_alike_whatever_their_length(prepared):
    worker = make(prepared, batch=5)
    seen = Counter(drawn(name)[0] for step in range(20) for name in worker.names(step))
    # CONFIG has no groups: each pass of 5 visits has every video.
    assert seen == dict.fromkeys(range(1, 6), 20)


def test_partners_are_drawn_anew_at_each_visit(prepared):
    worker = make(prepared, batch=5)
    found = {drawn(name)[0]: set() for name in worker.names(0)}
    for step in range(60):
        for name in worker.names(step):
            video, frames = drawn(name)
            found[video].add(tuple(frames))
            assert 0 < frames[1] - frames[0] <= 3
    # All pairs of 2 frames, and nearly all of those of 4, 5 and 8 frames at most 3 apart.
    assert len(found[4]) == 1
    assert len(found[2]) == 6
    assert len(found[1]) >= 8
    assert len(found[3]) >= 14
    assert len(found[5]) >= 35


def test_batches_hold_what_their_names_say(prepared):
    worker = make(prepared, batch=20)
    (batch,) = take(worker.batches(), 1)
    # Object 1 of a video (label 1) is absent from frame 0 only.
    for name, targets in zip(worker.names(0), batch.targets, strict=True):
        _, frames = drawn(name)
        for t, truth in zip(frames, targets, strict=True):
            assert truth.labels.tolist() == [1, 0]
            assert truth.present.tolist() == [t != 0, True]


@pytest.mark.parametrize("world_size", [2, 3, 8])
def test_batches_do_not_depend_on_the_number_of_workers(prepared, world_size):
    whole = take(make(prepared, batch=8).batches(), 5)
    parts = [
        take(make(prepared, rank=r, world_size=world_size, batch=8).batches(), 5)
        for r in range(world_size)
    ]
    for step, batch in enumerate(whole):
        assert torch.equal(torch.cat([part[step].images for part in parts]), batch.images)


def test_a_restart_on_another_number_of_workers_goes_on_with_the_same_batches(prepared):
    whole = take(make(prepared, batch=4).batches(), 9)
    for start in (1, 6):
        halves = [
            take(make(prepared, rank=r, world_size=2, batch=4).batches(start), 3) for r in range(2)
        ]
        for step, both in enumerate(zip(*halves, strict=True)):
            assert torch.equal(torch.cat([b.images for b in both]), whole[start + step].images)
    assert not torch.equal(whole[0].images, whole[1].images)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batch=st.integers(1, 9), data=st.data(), seed=st.integers(0, 9))
def test_any_number_of_workers_has_each_place_of_a_batch_once(prepared, batch, data, seed):
    workers, step = data.draw(st.integers(1, batch)), data.draw(st.integers(0, 40))
    whole = make(prepared, batch=batch, seed=seed).names(step)
    parts = [
        make(prepared, rank=r, world_size=workers, batch=batch, seed=seed).names(step)
        for r in range(workers)
    ]
    assert [name for part in parts for name in part] == whole
    assert {len(part) for part in parts} <= {batch // workers, -(-batch // workers)}


def test_threads_do_not_change_the_batches_and_seeds_do(prepared):
    one = take(make(prepared, threads=1).batches(), 6)
    many = take(make(prepared, threads=4).batches(), 6)
    other = take(make(prepared, seed=1).batches(), 6)
    assert all(torch.equal(a.images, b.images) for a, b in zip(one, many, strict=True))
    assert not all(torch.equal(a.images, b.images) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("ranks", [1, 32])
def test_nothing_but_the_drawn_frames_is_read(prepared, monkeypatch, ranks):
    read: list[int] = []
    whole = frame_store.FrameReader.read

    def counted(self, shard, offset, length, checksum):
        read.append(length)
        return whole(self, shard, offset, length, checksum)

    monkeypatch.setattr(frame_store.FrameReader, "read", counted)
    steps = 64 // ranks
    for rank in range(ranks):
        samples = make(prepared, rank=rank, world_size=ranks, batch=ranks)._samples
        for sample in itertools.islice(samples.stream(rank, 0), steps):
            sample()
    assert len(read) == 2 * 64
    # Of each frame, its picture and masks, and at most 2 KB beside.
    stored = sum(path.stat().st_size for path in prepared.glob("frames-*.arrows"))
    assert sum(read) <= len(read) * stored / sum(LENGTHS) * 1.5


def test_wide_and_upright_videos_are_batched_apart(rows, tmp_path):
    turned = [
        {**row, "height": 36, "width": 24} if row["video_id"] in (2, 5) else row for row in rows
    ]
    path = store(tmp_path / "turned", turned, PairConfig())
    config = override(CONFIG, ["train.group_pairs=2"])
    parts = [loader.ClipLoader(path, config, rank=r, world_size=2, batch=4) for r in range(2)]
    whole = loader.ClipLoader(path, config, batch=4)
    seen = Counter()
    for step in range(30):
        names = [name for part in parts for name in part.names(step)]
        assert names == whole.names(step)
        upright = [drawn(name)[0] in (2, 5) for name in names]
        assert upright[0] == upright[1]
        assert upright[2] == upright[3]
        seen.update(upright)
    assert set(seen) == {True, False}


def test_longer_clips_have_their_frames_in_order(rows, tmp_path):
    path = store(tmp_path / "clips", rows, PairConfig(clip=5, max_gap=4))
    worker = make(path)
    for step, batch in enumerate(take(worker.batches(), 6)):
        assert batch.images.shape == (3, 5, 3, 32, 32)
        for name, targets in zip(worker.names(step), batch.targets, strict=True):
            frames = drawn(name)[1]
            assert len(frames) == len(targets) == 5
            assert frames == sorted(frames)
            assert frames[-1] - frames[0] <= 8
        with pytest.raises(ValueError, match="these clips have 5"):
            batch.pairs()


def test_frames_that_are_missing_are_not_drawn(rows, tmp_path):
    kept = [
        row
        for row in rows
        if not (row["video_id"] == 3 and row["frame_index"] in (3, 4, 5, 6))
        and not (row["video_id"] == 4 and row["frame_index"] == 1)
    ]
    path = store(tmp_path / "holes", kept, PairConfig(max_gap=2))
    worker = make(path, batch=4)
    found = Counter(drawn(name)[0] for step in range(20) for name in worker.names(step))
    assert found == dict.fromkeys((1, 2, 3, 5), 20)  # one frame of video 4 is no pair
    of_3 = {tuple(drawn(n)[1]) for step in range(20) for n in worker.names(step) if "video 3" in n}
    assert of_3 == {(0, 1), (0, 2), (1, 2)}  # frame 7 has nothing near


def test_annotated_boxes_of_still_images_are_kept(make_images, tmp_path):
    images = make_images([2])
    for one in images.content["annotations"]:
        one["bbox"] = [1, 2, 30, 20]
    images.content["annotations"][0]["bbox"] = "none"
    dataset = annotations.read(images.write())
    config = PairConfig(pseudo=True)
    rows = [r for v in dataset.videos for r in frames_of_video(v, config, dataset.labels)]
    boxes = [one["box"] for row in rows for one in row["instances"]]
    assert boxes == [None, *[[1, 2, 31, 22]] * (len(boxes) - 1)]
    assert len(boxes) == 3
    half = [
        row
        for v in dataset.videos
        for row in frames_of_video(v, PairConfig(pseudo=True, max_side=18), dataset.labels)
    ]
    assert [0.5, 1, 15.5, 11] in [one["box"] for row in half for one in row["instances"]]
    path = store(tmp_path / "images", rows, config)
    (batch,) = take(make(path, batch=8).batches(), 1)
    expected = torch.tensor([16 / 36, 12 / 24, 30 / 36, 20 / 24])
    truths = [truth for targets in batch.targets for truth in targets]
    assert any((truth.boxes - expected).abs().max(1).values.min() < 1e-5 for truth in truths)


def test_instances_are_numbered_by_video_and_instance(prepared):
    (numbers,) = loader.number_instances(prepared)
    assert sorted(numbers.values()) == list(range(10))
    assert list(numbers) == [(v, 10 * v + n) for v in range(1, 6) for n in (1, 2)]
    worker = make(prepared, batch=5, identities=[{**numbers, (2, 22): -1}])
    (batch,) = take(worker.batches(), 1)
    for name, targets in zip(worker.names(0), batch.targets, strict=True):
        video = drawn(name)[0]
        wanted = [2 * video - 2, -1 if video == 2 else 2 * video - 1]
        assert all(truth.identities.tolist() == wanted for truth in targets)


# -- refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row["instances"][0].update(label=99), "label 99 of"),
        (lambda row: row.update(jpeg=b"garbage"), "not an image"),
        (lambda row: row.update(height=5), "say 5 x 36"),
        (lambda row: row["instances"][0].update(rle=b"garbage"), ""),
    ],
)
def test_frames_that_are_not_what_they_say_are_refused_by_their_file(
    rows, tmp_path, change, message
):
    for row in rows:
        change(row)
    path = store(tmp_path / "bad", rows, PairConfig())
    with pytest.raises(ManifestError, match=rf"frames-\d+\.arrows is damaged.*{message}"):
        next(make(path).batches())


def test_a_fault_in_a_thread_is_raised_where_batches_are_asked(prepared, monkeypatch):
    def broken(rows, identities):
        raise VideoError(1, "a.jpg", "is gone")

    monkeypatch.setattr(stored_frames, "clip_of_rows", broken)
    with pytest.raises(ManifestError, match=r"frames-\d+\.arrows is damaged.*is gone"):
        next(make(prepared).batches())


def test_nothing_to_draw_from_is_refused(rows, tmp_path):
    path = store(tmp_path / "alone", [rows[0], rows[6]], PairConfig())
    with pytest.raises(ManifestError, match="holds no pairs"):
        make(path)
    with pytest.raises(ManifestError, match="holds no pairs"):
        make(store(tmp_path / "empty", [], PairConfig()))


def test_what_an_older_version_stored_is_refused(prepared):
    path = prepared / manifest.MANIFEST
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "schema_version": 1}))
    with pytest.raises(ManifestError, match="schema version 1, this code reads 2"):
        make(prepared)
    assert paths.at(prepared).exists()
