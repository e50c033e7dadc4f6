"""Several directories as one: shares of each batch, and what a restart or other workers see."""

import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from idol import presets
from idol.config import PairConfig, override, to_dict
from idol.images import transforms
from pipelines.batches import loader, pair_sets
from pipelines.batches.joint import DirectoryOrder
from pipelines.errors import ManifestError
from pipelines.sources import annotations
from pipelines.storage import claims, frame_store, layout, schemas, tables
from tests.pipelines.drawn_pairs import STORED, frames_of_video, pairs_of_video

CONFIG = override(
    presets.tiny(),
    ["transforms.stretch=[32,32]", "transforms.crop_probability=0", "train.shuffle_rows=6"],
)
PSEUDO = PairConfig(pseudo=True)
NAMES = {"categories": ["car", "person"], "category_ids": [7, 3]}


def store(out: Path, dataset, config: PairConfig) -> Path:
    """What prepare writes of a data set, without Ray."""
    output = claims.prepare_output(out, layout.PREPARE, to_dict(config), out.name)
    for shard, video in enumerate(dataset.videos):
        if config.sampling == "stored":
            rows = list(pairs_of_video(video, config, dataset.labels))
            table = schemas.table(rows, schemas.PAIRS)
            tables.commit(table, output.shard(shard), row_group_size=2)
        else:
            frame_store.commit(frames_of_video(video, config, dataset.labels), output.path, shard)
    output.finish(total_shards=len(dataset.videos), extra=NAMES)
    return output.path


@pytest.fixture
def directories(make_videos, tmp_path) -> list[Path]:
    """Frames, pseudo pairs and stored pairs, of data sets with the same video ids."""
    datasets = [
        annotations.read(make_videos(lengths, name).write())
        for name, lengths in (("a", [5, 4, 8]), ("b", [3, 3]), ("c", [6, 2]))
    ]
    return [
        store(tmp_path / f"pairs-{i}", dataset, config)
        for i, (dataset, config) in enumerate(
            zip(datasets, (PairConfig(), PSEUDO, STORED), strict=True)
        )
    ]


def joined(directories, weights=(3, 2, 1)):
    return pair_sets.given([str(d) for d in directories], weights)


def make(directories, weights=(3, 2, 1), **options):
    config = options.pop("config", CONFIG)
    return loader.ClipLoader(joined(directories, weights), config, **{"batch": 6, **options})


def take(iterator, count):
    try:
        return list(itertools.islice(iterator, count))
    finally:
        iterator.close()


def owner(name: str) -> int:
    """The number of the directory in a name of a loader."""
    return int(name.rpartition("pairs-")[2])


WEIGHTS = st.lists(st.floats(0.05, 20), min_size=1, max_size=5)


@given(WEIGHTS, st.integers(1, 40), st.integers(1, 5), st.integers(0, 99), st.integers(0, 10**6))
def test_every_batch_has_the_shares_to_one_group_and_so_has_every_place(
    weights, batch, group, seed, step
):
    order = DirectoryOrder(weights, batch, group, seed=seed)
    drawn = np.stack([order.directories(place, step, step + 89) for place in range(batch)])
    groups = drawn[::group]
    assert (np.repeat(groups, group, axis=0)[:batch] == drawn).all()
    shares = np.array(weights) / sum(weights)
    for number, share in enumerate(shares):
        of_batch = (groups == number).sum(0)
        assert (abs(of_batch - share * len(groups)) < 1 + 1e-9).all()
        # The discrepancy of 89 (a Fibonacci number of) multiples of the golden ratio is small.
        assert (abs((groups == number).sum(1) - share * 89) <= 3).all()


@settings(max_examples=30)
@given(WEIGHTS, st.integers(1, 6), st.integers(0, 9), st.integers(0, 9000))
def test_what_was_drawn_before_a_step_is_counted_as_it_was_drawn(weights, batch, seed, step):
    order = DirectoryOrder(weights, batch, 1, seed=seed)
    for place in range(batch):
        found = order.directories(place, 0, step)
        expected = np.bincount(found, minlength=len(weights))
        assert order.used(place, step).tolist() == expected.tolist()


def test_seeds_draw_other_directories_first():
    first = {tuple(DirectoryOrder([1, 1], 1, 1, seed=s).directories(0, 0, 9)) for s in range(20)}
    assert len(first) > 5


def test_batches_have_each_directory_as_often_as_its_weight_says(directories):
    whole = make(directories)
    names = [whole.names(step) for step in range(30)]
    assert {tuple(sorted(map(owner, batch))) for batch in names} == {(0, 0, 0, 1, 1, 2)}
    # Of each directory as alone: all of its videos, every one as often.
    videos = Counter(
        (owner(name), name.partition(",")[0]) for name in itertools.chain.from_iterable(names)
    )
    assert all(abs(videos[0, f"video {v}"] - 30) <= 3 for v in (1, 2, 3))
    assert all(abs(videos[1, f"video {v}"] - 30) <= 3 for v in (1, 2))


@pytest.mark.parametrize("workers", [2, 4, 6])
def test_workers_and_restarts_have_the_same_batches(directories, workers):
    whole = take(make(directories).batches(), 7)
    assert not torch.equal(whole[0].images, whole[1].images)
    for start in (0, 4):
        parts = [
            take(make(directories, rank=r, world_size=workers).batches(start), 3)
            for r in range(workers)
        ]
        for step, part in enumerate(zip(*parts, strict=True)):
            images = torch.cat([batch.images for batch in part])
            assert torch.equal(images, whole[start + step].images)


def test_a_batch_holds_what_its_names_say(directories):
    worker = make(directories)
    for step, batch in enumerate(take(worker.batches(), 4)):
        for name, (key, reference) in zip(worker.names(step), batch.targets, strict=True):
            # Object 1 is absent from frame 0 only; of pseudo pairs both frames are one.
            first, second = (int(t) for t in name.partition("frames ")[2].split()[:3:2])
            assert (first == second) == (owner(name) == 1)
            seen = [True] if first == second == 0 else [first != 0, True]
            assert key.present.tolist() == seen
            if first != second:
                seen = [second != 0, True]
            assert reference.present.tolist() == seen


def test_pseudo_pairs_alone_have_separate_draws_for_their_two_frames(directories, monkeypatch):
    seen = []
    whole = transforms.augment

    def augment(clip, config, rng):
        still = np.array_equal(clip.frames[0].image, clip.frames[1].image)
        seen.append((still, config.independent))
        return whole(clip, config, rng)

    monkeypatch.setattr(transforms, "augment", augment)
    for asked in ("true", "false"):
        config = override(CONFIG, [f"transforms.independent={asked}"])
        take(make(directories, config=config).batches(), 2)
    assert set(seen) == {(True, True), (False, False)}


def test_instances_of_two_directories_with_equal_ids_are_told_apart(directories):
    sets = joined(directories)
    found = loader.number_instances(sets)
    assert [set(numbers) for numbers in found] == [
        {(v, 10 * v + i) for v in videos for i in (1, 2)} for videos in ((1, 2, 3), (1, 2), (1, 2))
    ]
    assert sorted(n for numbers in found for n in numbers.values()) == list(range(14))
    worker = loader.ClipLoader(sets, CONFIG, batch=6, identities=found)
    (batch,) = take(worker.batches(), 1)
    for name, (key, _) in zip(worker.names(0), batch.targets, strict=True):
        video = int(name.split()[1].rstrip(","))
        expected = [found[owner(name)][video, 10 * video + i] for i in (1, 2)]
        assert key.identities.tolist() == expected[-len(key.labels) :]  # 1 is not in frame 0


def test_wide_and_upright_groups_are_of_one_directory(directories):
    config = override(CONFIG, ["train.group_pairs=3"])
    worker = make(directories[:2], (1, 1), config=config)
    for step in range(9):
        owners = list(map(owner, worker.names(step)))
        assert sorted(owners) == [0, 0, 0, 1, 1, 1]
        assert len(set(owners[:3])) == 1


def test_one_directory_is_read_as_it_is(directories):
    alone = loader.ClipLoader(directories[0], CONFIG, batch=6)
    named = loader.ClipLoader(joined(directories[:1], ()), CONFIG, batch=6)
    assert alone.names(3) == named.names(3)
    assert "pairs-" not in alone.names(3)[0]


def test_a_directory_without_pairs_is_refused_by_its_name(directories, tmp_path):
    empty = claims.prepare_output(tmp_path / "none", layout.PREPARE, to_dict(STORED), "h")
    empty.finish(extra=NAMES)
    with pytest.raises(ManifestError, match="none holds no pairs"):
        make([*directories[:2], empty.path])
