"""Synthetic videos: same seed, same bytes; exact truth; dials that do what they say."""

import collections
import dataclasses
import hashlib
import itertools
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco

from idol.images.synthetic import SyntheticConfig, make_video
from idol.images.synthetic_dataset import FRAMES_FOLDER, write_dataset

EASY, CROWDED = SyntheticConfig.easy(), SyntheticConfig.crowded()
SMALL = dataclasses.replace(EASY, size=(48, 64), length=(3, 4))


def digest(folder: Path) -> str:
    """One hash over the names and bytes of all files below folder."""
    total = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        total.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return total.hexdigest()


def severe_share(config: SyntheticConfig, seeds: range) -> float:
    """Share of the instance-frames of some videos that are severely occluded."""
    levels = [
        level
        for seed in seeds
        for instance in make_video(config, seed).occlusion
        for level in instance
        if level
    ]
    return levels.count("severe_occlusion") / len(levels)


def last_frame_overlap(config: SyntheticConfig, seeds: range) -> float:
    """Mean mask IoU of an instance with itself one frame earlier."""
    values = []
    for seed in seeds:
        masks = make_video(config, seed).masks
        before, after = masks[:-1], masks[1:]
        both = before.any(axis=(2, 3)) & after.any(axis=(2, 3))
        union = (before | after).sum(axis=(2, 3))
        values.append(((before & after).sum(axis=(2, 3))[both] / union[both]).ravel())
    return float(np.concatenate(values).mean())


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31), crowded=st.booleans())
def test_every_video_is_consistent_with_its_own_truth(seed: int, crowded: bool) -> None:
    config = dataclasses.replace(CROWDED if crowded else EASY, size=(64, 96))
    video = make_video(config, seed)
    frames, count = len(video.frames), len(video.labels)
    assert video.frames.dtype == np.uint8
    assert video.frames.shape == (frames, 64, 96, 3)
    assert video.masks.dtype == np.bool_
    assert video.masks.shape == (frames, count, 64, 96)
    assert config.length[0] <= frames <= config.length[1]
    assert 1 <= count <= config.num_objects[1]
    assert set(video.labels.tolist()) <= set(range(config.num_categories))
    # Visible pixels belong to one instance; an instance has enough of them in a frame or none.
    assert video.masks.sum(axis=1).max() <= 1
    areas = video.masks.sum(axis=(2, 3))
    assert ((areas == 0) | (areas >= config.min_visible)).all()
    assert areas.any(axis=0).all()
    # A level of occlusion stands exactly where something is visible.
    present = [[level is not None for level in instance] for instance in video.occlusion]
    np.testing.assert_array_equal(np.array(present).T, areas > 0)


def test_the_same_seed_gives_the_same_video_and_another_seed_another() -> None:
    first, again, other = make_video(SMALL, 5), make_video(SMALL, 5), make_video(SMALL, 6)
    np.testing.assert_array_equal(first.frames, again.frames)
    np.testing.assert_array_equal(first.masks, again.masks)
    assert first.occlusion == again.occlusion
    assert first.frames.shape != other.frames.shape or (first.frames != other.frames).any()


def test_masks_are_the_pixels_in_which_an_object_is_seen() -> None:
    # One object on a uniform background without noise: whatever differs from a corner's colour
    # by more than the blur of an edge is the object, and nothing else is.
    plain = dataclasses.replace(EASY, num_objects=(1, 1), background_contrast=0.0, noise=0.0)
    compared = 0
    for seed in range(8):
        video = make_video(plain, seed)
        for frame, mask in zip(video.frames.astype(int), video.masks[:, 0], strict=True):
            values, counts = np.unique(frame.reshape(-1, 3), axis=0, return_counts=True)
            background = values[counts.argmax()]
            differs = (np.abs(frame - background) > 1).any(axis=2)
            if not mask.any():
                assert differs.sum() < 4 * plain.min_visible
                continue
            near = cv2.dilate(mask.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
            # A tip thinner than half a pixel shows faintly and belongs to no mask.
            assert np.count_nonzero(differs & ~near) <= 10
            inner = cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
            # Inside, texture may happen to cross the background's grey, but hardly anywhere.
            assert np.count_nonzero(inner & ~differs) <= 0.03 * np.count_nonzero(inner)
            compared += 1
    assert compared > 50


def test_what_is_hidden_is_labelled_by_its_share() -> None:
    counts: collections.Counter[str] = collections.Counter()
    for seed in range(4):
        video = make_video(CROWDED, seed)
        visible = video.masks.sum(axis=(2, 3))
        assert (visible <= video.whole).all()
        # The nearest instance hides others and is never hidden itself.
        assert (visible == video.whole).all(axis=0).any()
        for (t, g), area in np.ndenumerate(visible):
            hidden = 1 - area / max(1, video.whole[t, g])
            level = video.occlusion[g][t]
            if level is not None:
                low, high = {
                    "no_occlusion": (0.0, 0.02),
                    "slight_occlusion": (0.02, 0.5),
                    "severe_occlusion": (0.5, 1.0),
                }[level]
                assert low <= hidden <= high
                counts[level] += 1
    assert min(counts.values()) >= 10
    assert len(counts) == 3


def test_crowded_has_more_objects_look_alikes_and_occlusion_than_easy() -> None:
    seeds = range(12)
    easy, crowded = ([make_video(c, s) for s in seeds] for c in (EASY, CROWDED))
    assert np.mean([len(v.labels) for v in crowded]) > np.mean([len(v.labels) for v in easy]) + 1
    alike = [
        np.mean([np.bincount(v.labels).max() - 1 for v in videos]) for videos in (easy, crowded)
    ]
    assert alike[1] > alike[0] + 1
    assert severe_share(CROWDED, seeds) > 1.5 * severe_share(EASY, seeds)


def test_objects_vanish_and_come_back() -> None:
    returns = 0
    for seed in range(15):
        for instance in make_video(CROWDED, seed).occlusion:
            seen = [t for t, level in enumerate(instance) if level is not None]
            returns += any(b - a > 1 for a, b in itertools.pairwise(seen))
    assert returns >= 5


def test_speed_decides_what_the_last_frame_tells() -> None:
    overlaps = [
        last_frame_overlap(dataclasses.replace(EASY, speed=speed), range(8))
        for speed in (0.0, 0.2, 0.6)
    ]
    assert overlaps[0] > 0.7
    assert 0.3 < overlaps[1] < 0.6
    assert overlaps[2] < 0.2


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_a_dataset_is_valid_youtube_vis_json_with_its_frames_beside_it(tmp_path: Path) -> None:
    path = write_dataset(tmp_path / "set", CROWDED, num_videos=3, seed=4)
    document = json.loads(path.read_text())
    assert [c["id"] for c in document["categories"]] == [1, 2, 3, 4]
    assert [v["id"] for v in document["videos"]] == [1, 2, 3]
    assert [a["id"] for a in document["annotations"]] == list(
        range(1, len(document["annotations"]) + 1)
    )
    for entry in document["videos"]:
        video = make_video(CROWDED, (4, entry["id"] - 1))
        rows = [a for a in document["annotations"] if a["video_id"] == entry["id"]]
        assert len(rows) == len(video.labels)
        assert entry["length"] == len(entry["file_names"]) == len(video.frames)
        for t, name in enumerate(entry["file_names"]):
            frame = cv2.imread(str(path.parent / FRAMES_FOLDER / name))[..., ::-1]
            assert frame.shape == (entry["height"], entry["width"], 3)
            assert np.abs(frame.astype(int) - video.frames[t]).mean() < 8  # JPEG loses a little
        for g, row in enumerate(rows):
            assert row["category_id"] == video.labels[g] + 1
            columns = (row["segmentations"], row["bboxes"], row["areas"], row["occlusion"])
            for t, (run, box, area, level) in enumerate(zip(*columns, strict=True)):
                mask = video.masks[t, g]
                if not mask.any():
                    assert run is box is area is level is None
                    continue
                np.testing.assert_array_equal(coco.decode(run), mask)
                assert area == mask.sum()
                ys, xs = np.nonzero(mask)
                assert box == [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]
                assert level == video.occlusion[g][t]


def test_bytes_do_not_depend_on_the_number_of_processes(tmp_path: Path) -> None:
    for processes in (1, 2):
        write_dataset(tmp_path / str(processes), SMALL, 5, seed=0, processes=processes)
    assert digest(tmp_path / "1") == digest(tmp_path / "2")


def test_a_long_video_has_the_area_of_every_mask(tmp_path: Path) -> None:
    config = SyntheticConfig(size=(32, 48), length=(260, 260), num_objects=(1, 1), leaving=0.0)
    (row,) = json.loads(write_dataset(tmp_path, config, 1, 5).read_text())["annotations"]
    assert len(row["areas"]) == 260
    for area, mask in zip(row["areas"], row["segmentations"], strict=True):
        assert area == (None if mask is None else int(coco.area(mask)))


def test_a_video_file_holds_the_same_frames_by_number(tmp_path: Path) -> None:
    path = write_dataset(tmp_path, EASY, num_videos=1, seed=2, format="mp4")
    (entry,) = json.loads(path.read_text())["videos"]
    assert entry["file_names"][3] == "video_0000.mp4#3"
    capture = cv2.VideoCapture(str(tmp_path / FRAMES_FOLDER / "video_0000.mp4"))
    truth = make_video(EASY, (2, 0)).frames
    for frame in truth:
        found, decoded = capture.read()
        assert found
        assert np.abs(decoded[..., ::-1].astype(int) - frame).mean() < 16
    assert not capture.read()[0]
    capture.release()


def test_asking_twice_is_free_and_asking_for_another_set_is_refused(tmp_path: Path) -> None:
    path = write_dataset(tmp_path, SMALL, 2, seed=0)
    written = path.stat().st_mtime_ns
    assert write_dataset(tmp_path, SMALL, 2, seed=0) == path
    assert path.stat().st_mtime_ns == written
    with pytest.raises(FileExistsError, match="another dataset"):
        write_dataset(tmp_path, SMALL, 2, seed=1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": (16, 64)}, "at least 32"),
        ({"num_objects": (5, 2)}, "num_objects must be"),
        ({"diameter": (0.5, 2.0)}, "diameter is a share"),
        ({"look_alike": 1.5}, r"look_alike must lie in \[0, 1\], got 1.5"),
        ({"speed": -1.0}, "speed must be >= 0"),
        ({"num_categories": 7}, r"num_categories must lie in \[1, 6\], got 7"),
        ({"jpeg_quality": 0}, "jpeg_quality"),
        ({"deformation": 0.9}, "deformation"),
        ({"min_visible": 0}, "min_visible"),
    ],
)
def test_a_dial_out_of_range_is_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SyntheticConfig(**changes)  # type: ignore[arg-type]


def test_bad_requests_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    out = tmp_path / "set"
    with pytest.raises(ValueError, match="num_videos"):
        write_dataset(out, SMALL, 0, seed=0)
    with pytest.raises(ValueError, match="seed"):
        write_dataset(out, SMALL, 1, seed=-1)
    with pytest.raises(ValueError, match="format"):
        write_dataset(out, SMALL, 1, seed=0, format="gif")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="processes"):
        write_dataset(out, SMALL, 1, seed=0, processes=0)
    assert not (out / "instances.json").exists()


def test_all_six_categories_can_be_drawn() -> None:
    config = dataclasses.replace(SMALL, num_categories=6, look_alike=0.0, num_objects=(4, 6))
    labels = np.concatenate([make_video(config, seed).labels for seed in range(12)])
    assert set(labels.tolist()) == set(range(6))
    assert config.categories == ("star", "fish", "flower", "cross", "moon", "leaf")
