import json
import os
import stat

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from idol.config import TrackerConfig
from idol.structures import FrameDetections, Track
from idol.ytvis import results, truth

SIZE = (6, 7)


def counts(seed: int) -> bytes:
    mask = np.random.default_rng(seed).random(SIZE) < 0.5
    return coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]


def frame(index: int, rows: int, classes: int = 3) -> FrameDetections:
    return FrameDetections(
        frame_index=index,
        scores=torch.linspace(0.9, 0.5, rows),
        class_scores=torch.rand(rows, classes, generator=torch.Generator().manual_seed(index)),
        embeddings=torch.zeros(rows, 4),
        overlaps=torch.eye(rows),
        boxes=torch.zeros(rows, 4),
        masks=tuple(counts(10 * index + row) for row in range(rows)),
    )


def ytvis(tracks, frames, config=None, **changes):
    arguments = {"video_id": 7, "size": SIZE, "length": 4, "category_ids": [30, 10, 20]}
    return results.to_ytvis(
        tracks, frames, **{**arguments, **changes}, config=config or TrackerConfig()
    )


def entry(**changes):
    mask = {"size": list(SIZE), "counts": counts(1).decode()}
    return {
        "video_id": 7,
        "category_id": 10,
        "score": 0.5,
        "segmentations": [mask, None, None, None],
        **changes,
    }


TRACKS = [
    Track(5, {0: 1, 2: 0}, torch.tensor([0.04, 0.6, 0.05001])),
    Track(2, {3: 0}, torch.tensor([0.01, 0.02, 0.03])),
]
FRAMES = [frame(0, 2), frame(1, 0), frame(2, 1), frame(3, 1)]


def test_a_track_is_one_entry_for_every_class_above_the_threshold():
    entries = ytvis(TRACKS, FRAMES)
    assert [(e["category_id"], round(e["score"], 4)) for e in entries] == [(10, 0.6), (20, 0.05)]
    assert all(e["video_id"] == 7 for e in entries)
    assert entries[0]["segmentations"] == entries[1]["segmentations"]
    assert entries[0]["segmentations"] == [
        {"size": [6, 7], "counts": counts(1).decode()},
        None,
        {"size": [6, 7], "counts": counts(20).decode()},
        None,
    ]


def test_without_multi_class_a_track_is_one_entry_of_its_best_class_whatever_the_score():
    entries = ytvis(TRACKS, FRAMES, TrackerConfig(multi_class=False))
    assert [(e["category_id"], round(e["score"], 4)) for e in entries] == [(10, 0.6), (20, 0.03)]


def test_the_class_score_threshold_is_obeyed():
    entries = ytvis(TRACKS, FRAMES, TrackerConfig(class_score_threshold=0.025))
    assert [e["category_id"] for e in entries] == [30, 10, 20, 20]


@pytest.mark.parametrize(
    ("track", "changes", "message"),
    [
        (Track(1, {4: 0}, torch.ones(3)), {}, "on frame 4, but that video has 4 frames"),
        (Track(1, {1: 0}, torch.ones(3)), {}, "detection 0 on frame 1, but.*carries 0 masks"),
        (Track(1, {0: 0}, torch.ones(2)), {}, "2 class scores, but there are 3 category_ids"),
        (Track(1, {5: 0}, torch.ones(3)), {"length": 9}, "frame 5, but that frame is not given"),
    ],
)
def test_tracks_that_do_not_fit_their_video_are_refused(track, changes, message):
    with pytest.raises(ValueError, match=message):
        ytvis([track], FRAMES, **changes)


def test_written_results_are_read_back_and_the_same_entries_give_the_same_bytes(tmp_path):
    entries = ytvis(TRACKS, FRAMES) + ytvis(TRACKS, FRAMES, video_id=3)
    results.write(tmp_path / "a.json", entries)
    # Videos finish in any order; what is written does not show it.
    results.write(tmp_path / "b.json", entries[2:] + entries[:2])
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    back = results.read(tmp_path / "a.json")
    assert [(e["video_id"], e["category_id"]) for e in back] == [(3, 10), (3, 20), (7, 10), (7, 20)]
    assert sorted(map(json.dumps, back)) == sorted(json.dumps(e, sort_keys=True) for e in entries)
    assert back[0]["score"] == entries[2]["score"]  # to the last digit


def test_numbers_of_numpy_and_bytes_are_written_as_plain_json(tmp_path):
    mask = {"size": SIZE, "counts": counts(1)}
    results.write(
        tmp_path / "r.json",
        [
            entry(
                video_id=np.int64(7),
                score=np.float32(0.5),
                segmentations=[mask, None, None, None],
                extra="dropped",
            )
        ],
    )
    assert list(results.read(tmp_path / "r.json")) == [entry()]


def test_empty_results_are_an_empty_list(tmp_path):
    results.write(tmp_path / "r.json", [])
    assert list(results.read(tmp_path / "r.json")) == []


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "r.json"
    results.write(path, [entry()])
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"results\[1\].score must be finite, got nan"):
        results.write(path, [entry(), entry(score=float("nan"))])
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"]


def test_a_write_that_dies_halfway_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "r.json"
    results.write(path, [entry()])
    before = path.read_bytes()

    def full_disk(_):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="no space"):
        results.write(path, [entry(score=0.1)])
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"]


def test_a_results_file_is_as_readable_as_any_other(tmp_path):
    results.write(tmp_path / "r.json", [])
    (tmp_path / "other").touch()
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("r.json", "other")}
    assert len(modes) == 1


def test_truth_given_as_results_is_recognised():
    with pytest.raises(ValueError, match=r"must be a JSON list, got dict.*other argument"):
        results.read({"videos": []})
    with pytest.raises(ValueError, match=r"got int\.$"):
        results.read(3)


VIDEO = truth.from_masks(
    7, SIZE, 4, [10, 20], instance_ids=[], category_ids=[], crowd=[], segmentations=[]
)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"video_id": 8}, r"results\[3\] has video_id 8"),
        ({"video_id": "7"}, r"results\[3\].video_id must be a whole number, got '7'"),
        ({"category_id": 0}, r"results\[3\] has category_id 0, but the truth has 10, 20"),
        ({"score": float("nan")}, r"results\[3\].score must be finite"),
        ({"score": float("inf")}, r"results\[3\].score must be finite"),
        ({"score": None}, r"results\[3\].score must be a number"),
        ({"segmentations": {}}, r"results\[3\].segmentations must be a list"),
        ({"segmentations": [None] * 3}, r"results\[3\].segmentations has 3 entries.*4 frames"),
        ({"segmentations": [None] * 5}, r"results\[3\].segmentations has 5 entries.*4 frames"),
        (
            {"segmentations": [None, {"size": [7, 6], "counts": "Z1"}, None, None]},
            r"results\[3\].segmentations\[1\] has size \[7, 6\], but video 7 is \[6, 7\]",
        ),
        (
            {"segmentations": [None, {"size": [6, 7], "counts": "Z2"}, None, None]},
            r"results\[3\].segmentations\[1\] is no readable RLE",
        ),
        (
            {"segmentations": [{"size": [6, 7], "counts": [42]}, None, None, None]},
            r"results\[3\].segmentations\[0\] must be a compressed RLE",
        ),
        (
            {"segmentations": [[[0, 0, 3, 0, 3, 3]], None, None, None]},
            r"results\[3\].segmentations\[0\] must be a compressed RLE",
        ),
        (
            {"segmentations": ["Z1", None, None, None]},
            r"results\[3\].segmentations\[0\]: a mask is",
        ),
    ],
)
def test_a_malformed_entry_is_refused_with_its_index(changes, message):
    bad = entry(**changes)

    def check():
        results.check_ids(bad, 3, [VIDEO.video_id], VIDEO.categories, compat=False)
        results.check_video([bad], [3], VIDEO)

    with pytest.raises(ValueError, match=message):
        check()


def test_an_entry_that_is_no_object_is_refused_with_its_index():
    with pytest.raises(ValueError, match=r"results\[3\] must be an object"):
        results.check_ids([], 3, [7], [10], compat=False)
