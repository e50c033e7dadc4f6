"""Batches of stored pairs: every row once a pass, none on two workers, the same after a restart."""

import itertools
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from idol import presets
from idol.config import override, to_dict
from pipelines.batches import loader, stored_pairs
from pipelines.batches.stored_pairs import StoredPairs, clip_of_row
from pipelines.errors import ManifestError, VideoError
from pipelines.sources import annotations
from pipelines.storage import claims, layout, manifest, schemas, tables
from tests.pipelines.drawn_pairs import STORED, pairs_of_video

CONFIG = override(
    presets.tiny(),
    ["transforms.stretch=[32,32]", "train.shuffle_rows=6", "transforms.crop_probability=0"],
)


@pytest.fixture
def prepared(make_videos, tmp_path) -> Path:
    """17 rows in shards of 5, written as the stage writes them, without Ray."""
    dataset = annotations.read(make_videos([5, 4, 8]).write())
    rows = [
        row for video in dataset.videos for row in pairs_of_video(video, STORED, dataset.labels)
    ]
    output = claims.prepare_output(tmp_path / "pairs", layout.PREPARE, to_dict(STORED), "h")
    for shard, start in enumerate(range(0, len(rows), 5)):
        table = schemas.table(rows[start : start + 5], schemas.PAIRS)
        tables.commit(table, output.shard(shard), row_group_size=2)
    output.finish(total_shards=4)
    return output.path


def make(path, **options):
    return loader.ClipLoader(path, CONFIG, **{"batch": 3, **options})


def take(iterator, count):
    try:
        return list(itertools.islice(iterator, count))
    finally:
        iterator.close()


def same(a, b) -> bool:
    return torch.equal(a.images, b.images)


def test_decoding_gives_pixels_and_masks_of_the_same_instances(make_videos):
    videos = make_videos([3])
    dataset = annotations.read(videos.write())
    for row in pairs_of_video(dataset.videos[0], STORED, dataset.labels):
        pair = clip_of_row(row)
        key, reference = pair.frames
        assert key.image.shape == (24, 36, 3)
        assert key.image.dtype == np.uint8
        assert pair.labels.tolist() == [1, 0]
        expected = np.zeros((24, 36), bool)
        left = row["reference_index"] + 1
        expected[4:12, left : left + 6] = True
        np.testing.assert_array_equal(reference.masks[0], expected)
        assert key.masks[0].any() == (row["key_index"] != 0)


def test_a_pair_without_instances_decodes(make_videos):
    dataset = annotations.read(make_videos([2]).write())
    row = next(pairs_of_video(dataset.videos[0], STORED, dataset.labels))
    pair = clip_of_row({**row, "instances": []})
    assert pair.frames[0].masks.shape == (0, 24, 36)


def test_a_stored_frame_that_is_broken_names_its_video_and_frame(make_videos):
    dataset = annotations.read(make_videos([2]).write())
    row = next(pairs_of_video(dataset.videos[0], STORED, dataset.labels))
    with pytest.raises(VideoError, match="video 1: key frame 0"):
        clip_of_row({**row, "key_jpeg": row["key_jpeg"][:100]})


@pytest.mark.parametrize("world_size", [2, 3, 8])
def test_batches_do_not_depend_on_the_number_of_workers(prepared, world_size):
    whole = take(make(prepared, batch=8).batches(), 5)
    parts = [
        take(make(prepared, rank=r, world_size=world_size, batch=8).batches(), 5)
        for r in range(world_size)
    ]
    for step, batch in enumerate(whole):
        images = [unpadded(part[step]) for part in parts]
        assert [i for image in images for i in image] == unpadded(batch)


def unpadded(batch) -> list[bytes]:
    """The pixels of every key image: what is padded depends on the images beside it."""
    pairs = batch.pairs()
    return [
        image[:, ~padding.all(1)][:, :, ~padding.all(0)].numpy().tobytes()
        for image, padding in zip(pairs.key_images, pairs.key_padding, strict=True)
    ]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_every_row_is_visited_about_equally_often(prepared, world_size):
    workers = [
        make(prepared, rank=rank, world_size=world_size, batch=world_size)
        for rank in range(world_size)
    ]
    steps = 10 * 17 // world_size
    seen = Counter(n for step in range(steps) for w in workers for n in w.names(step))
    # Two of the 17 rows are of the same frames.
    once = Counter(make(prepared, batch=1).names(step)[0] for step in range(17))
    assert sorted(once.values()) == [1] * 15 + [2]
    assert all(abs(seen[name] - 10 * count) <= 2 * count for name, count in once.items())


def test_passes_differ_in_order_and_not_in_content(prepared):
    worker = make(prepared, batch=1)
    first, second = ([worker.names(s)[0] for s in range(a, a + 17)] for a in (0, 17))
    assert first != second
    assert sorted(first) == sorted(second)


def test_every_row_group_is_read_by_one_worker_and_once_a_pass(prepared, monkeypatch):
    read: list[int] = []
    whole = StoredPairs._read

    def counted(self, group, places, columns=None):
        read.append(group)
        return whole(self, group, places, columns)

    monkeypatch.setattr(StoredPairs, "_read", counted)
    for rank in range(3):
        rows = make(prepared, rank=rank, world_size=3, batch=3)._samples
        expected = rows._order.groups(rank, 0).tolist()
        read.clear()
        stream = rows._rows(rank, 0)
        while next(stream)[0] == 0:
            pass
        assert read[: len(expected)] == expected


def test_32_ranks_read_each_row_group_about_once_a_pass(prepared, monkeypatch):
    read: list[int] = []
    whole = StoredPairs._read

    def counted(self, group, *more):
        read.append(group)
        return whole(self, group, *more)

    monkeypatch.setattr(StoredPairs, "_read", counted)
    passes, ranks = 64, 32
    rows = make(prepared, batch=ranks)._samples
    given = 0
    for rank in range(ranks):
        for number, _, _ in rows._rows(rank, 0):
            if number >= passes:  # not every rank has rows in every pass
                break
            given += 1
    assert given == 17 * passes
    # The groups of a pass more are begun; those of 17 rows are 10.
    assert len(read) <= 1.1 * 10 * passes


def test_a_restart_goes_on_with_the_batch_it_would_have_had(prepared):
    whole = take(make(prepared).batches(), 14)  # more than two epochs of 17 rows
    for start in (1, 5, 6, 11):
        rest = take(make(prepared).batches(start), 3)
        assert all(same(a, b) for a, b in zip(rest, whole[start:], strict=False))
    assert not same(whole[0], whole[1])


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
    one = take(make(prepared, threads=1).batches(), 7)
    many = take(make(prepared, threads=4).batches(), 7)
    other = take(make(prepared, seed=1).batches(), 7)
    assert all(same(a, b) for a, b in zip(one, many, strict=True))
    assert not all(same(a, b) for a, b in zip(one, other, strict=True))


def test_batches_hold_what_rows_of_says(prepared):
    worker = make(prepared, batch=17)
    (batch,) = take(worker.batches(), 1)
    names = worker.names(0)
    assert len(names) == len(batch.targets) == 17
    # Object 11/21/31 (label 1) is absent from frame 0 only, so its presence tells the key frame.
    for name, (targets, _) in zip(names, batch.targets, strict=True):
        starts_at_zero = "frames 0 and" in name
        assert targets.present.tolist() == [not starts_at_zero, True]


def test_instances_are_numbered_by_video_and_instance(prepared):
    # Videos 1, 2, 3 have the instances 11, 12, 21, 22, 31, 32.
    (found,) = loader.number_instances(prepared)
    assert found == {
        (video, 10 * video + number): 2 * (video - 1) + number - 1
        for video in (1, 2, 3)
        for number in (1, 2)
    }


def test_numbers_of_instances_do_not_depend_on_the_shards(make_videos, tmp_path):
    dataset = annotations.read(make_videos([3, 2]).write())
    rows = [
        row for video in dataset.videos for row in pairs_of_video(video, STORED, dataset.labels)
    ]
    found = []
    for size in (1, 2, 5):
        out = tmp_path / f"by{size}"
        output = claims.prepare_output(out, layout.PREPARE, to_dict(STORED), "h")
        mixed = rows[::2] + rows[1::2] if size == 2 else rows
        cuts = [mixed[i : i + size] for i in range(0, len(mixed), size)]
        # One without instances: its list is empty, not missing.
        cuts[-1] = [{**row, "instances": []} for row in cuts[-1]] if size == 1 else cuts[-1]
        for shard, cut in enumerate(cuts):
            tables.commit(schemas.table(cut, schemas.PAIRS), output.shard(shard))
        output.finish(total_shards=len(cuts))
        found += loader.number_instances(output.path)
    assert found[0] == found[1] == found[2] == {(1, 11): 0, (1, 12): 1, (2, 21): 2, (2, 22): 3}


def test_batches_carry_the_numbers_of_their_instances_in_both_frames(prepared):
    (known,) = loader.number_instances(prepared)
    del known[2, 22]
    worker = make(prepared, batch=17, identities=[known])
    (batch,) = take(worker.batches(), 1)
    videos = [int(name.split()[1].rstrip(",")) for name in worker.names(0)]
    expected = {1: [0, 1], 2: [2, -1], 3: [4, 5]}
    for side in range(2):
        found = [targets[side].identities.tolist() for targets in batch.targets]
        assert found == [expected[v] for v in videos]
    (plain,) = take(make(prepared, batch=17).batches(), 1)
    assert all(t.identities.tolist() == [-1, -1] for t, _ in plain.targets)


def test_closing_the_batches_stops_the_threads(prepared):
    before = set(threading.enumerate())
    iterator = make(prepared).batches()
    next(iterator)
    assert set(threading.enumerate()) - before
    iterator.close()
    assert set(threading.enumerate()) == before


def test_a_fault_in_a_thread_is_raised_where_batches_are_asked(prepared, monkeypatch):
    def broken(row, identities):
        raise VideoError(1, "a.jpg", "is gone")

    monkeypatch.setattr(stored_pairs, "clip_of_row", broken)
    iterator = make(prepared).batches()
    with pytest.raises(ManifestError, match=r"shard-.*\.parquet is damaged.*is gone"):
        next(iterator)


@pytest.mark.parametrize(
    ("column", "change", "message"),
    [
        ("label", lambda row: row["instances"][0].update(label=99), "label 99 of"),
        ("label", lambda row: row["instances"][0].update(label=-1), "label -1 of"),
        ("key_rle", lambda row: row["instances"][0].update(key_rle=b"garbage"), ""),
        ("key_jpeg", lambda row: row.update(key_jpeg=b"garbage"), "not an image"),
        ("height", lambda row: row.update(height=0), "'height' holds a number"),
        ("height", lambda row: row.update(height=5), "say 5 x 36"),
    ],
)
def test_pairs_that_were_changed_are_refused_by_the_name_of_their_file(
    prepared, column, change, message
):
    for path in manifest.shard_paths(prepared, "prepare"):
        rows = pq.read_table(path).to_pylist()
        for row in rows:
            change(row)
        pq.write_table(pa.Table.from_pylist(rows, schema=schemas.PAIRS), path)
    with pytest.raises(ManifestError, match=rf"shard-\d+\.parquet is damaged.*{message}"):
        next(make(prepared).batches())


def test_pairs_that_are_there_twice_are_refused(prepared):
    path = manifest.shard_paths(prepared, "prepare")[0]
    table = pq.read_table(path)
    pq.write_table(pa.concat_tables([table, table]), path)
    with pytest.raises(ManifestError, match="its manifest has another number"):
        make(prepared)


def test_a_file_that_vanishes_while_reading_is_raised_too(prepared):
    worker = make(prepared)
    for path in prepared.glob("shard-*"):
        path.unlink()
    with pytest.raises(FileNotFoundError):
        next(worker.batches())


def test_an_unfinished_directory_is_refused(prepared):
    (prepared / manifest.MANIFEST).unlink()
    with pytest.raises(ManifestError, match="is missing"):
        make(prepared)


def test_a_directory_without_pairs_is_refused(tmp_path):
    claims.prepare_output(tmp_path / "none", layout.PREPARE, to_dict(STORED), "h").finish()
    with pytest.raises(ManifestError, match="holds no pairs"):
        make(tmp_path / "none")


def test_more_workers_than_rows_are_served(prepared):
    batches = take(make(prepared, rank=17, world_size=18, batch=18).batches(), 3)
    assert [len(batch.targets) for batch in batches] == [1, 1, 1]


@pytest.mark.parametrize(
    "options", [{"rank": 1}, {"rank": -1}, {"batch": 0}, {"world_size": 4}, {"threads": 0}]
)
def test_impossible_numbers_are_refused(prepared, options):
    with pytest.raises(ValueError, match=r"workers, got|must be at least"):
        make(prepared, **options)
