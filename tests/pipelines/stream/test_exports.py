"""What people get: rows and the forms of other tools, each read back by the tool it is for."""

from __future__ import annotations

import contextlib
import io
import json
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from pycocotools.coco import COCO

from idol.images import live
from idol.masks import rle
from pipelines import formats, stream
from pipelines.formats import mots
from pipelines.stream import exports, places
from tests.pipelines.stream.drawn import CAR, KITE, LENGTH, NAMES, SIZE, Known, follow


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What became of a folder of which each second frame was used."""
    folder = tmp_path_factory.mktemp("followed")
    follow(folder, every=2, film=False)
    return folder / "out"


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rows_say_who_is_where_and_when(out: Path) -> None:
    rows = read(out / places.ROWS)
    first = rows[0]
    assert {k: v for k, v in first.items() if k != "segmentation"} == {
        "video": "clip", "frame": 0, "time": 0.0, "track_id": CAR, "category": "car",
        "score": 0.9, "box": [2, 10, 22, 30], "area": 20 * 20 - 12,
    }  # fmt: skip
    mask = rle.decode_masks([first["segmentation"]["counts"]], SIZE)[0]
    assert first["segmentation"]["size"] == list(SIZE)
    assert mask.sum() == first["area"]
    # Numbers and times are those of the source: each second frame at 10 a second.
    assert sorted({(row["frame"], row["time"]) for row in rows}) == [
        (2 * n, round(0.2 * n, 4)) for n in range(LENGTH // 2)
    ]


def test_rows_name_a_stream_without_its_secrets(tmp_path: Path) -> None:
    class Camera(list[live.Frame]):
        name, every, frames, rate, images = "http://user:word@host:80/live?key=1", 1, None, 5.0, ()
        endless = False

    source = Camera([live.Frame(0, 0.0, np.zeros((*SIZE, 3), np.uint8))])
    config = stream.StreamConfig(film=False)
    stream.run(source, Known(), tmp_path, config, stream.Summary())  # type: ignore[arg-type]
    assert {row["video"] for row in read(tmp_path / places.ROWS)} == {"live"}
    for path in tmp_path.iterdir():
        assert not {b"word", b"key"} & set(re.findall(rb"\w+", path.read_bytes()))


def test_the_table_has_the_same_rows(out: Path) -> None:
    table = pq.read_table(out / places.TABLE)
    expected = read(out / places.ROWS)
    assert table.num_rows == len(expected)
    for row, other in zip(table.to_pylist(), expected, strict=True):
        assert row["score"] == pytest.approx(other.pop("score"))
        assert {k: v for k, v in row.items() if k != "score"} == other


def test_coco_has_one_object_for_each_track_and_is_read_by_pycocotools(out: Path) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(out / places.COCO))
    assert [one["name"] for one in coco.loadCats(coco.getCatIds())] == list(NAMES)
    kinds: dict[int, set[int]] = {}
    for one in coco.loadAnns(coco.getAnnIds()):
        kinds.setdefault(one["track_id"], set()).add(one["category_id"])
        image = coco.imgs[one["image_id"]]
        assert (image["height"], image["width"]) == SIZE
    # One category for the whole of a track: what it was taken for in the end.
    assert kinds == {CAR: {2}, KITE: {3}}
    assert len(coco.imgs) == LENGTH // 2


def test_coco_is_read_as_videos_by_the_jobs(out: Path) -> None:
    found = formats.dataset(out / places.COCO, out.parent / "clip")
    (video,) = found.videos
    assert {found.categories[one.category_id] for one in video.instances} == {"car", NAMES[2]}
    assert len(video) == LENGTH // 2
    assert [Path(name).name for name in video.frames[:2]] == ["000.png", "002.png"]


def test_mot_has_boxes_of_frames_from_1(out: Path) -> None:
    rows = [line.split(",") for line in (out / places.MOT).read_text().splitlines()]
    assert rows[0] == ["1", str(CAR), "2", "10", "20", "20", "0.9", "-1", "-1", "-1"]
    assert {int(row[0]) for row in rows} == {1, 3, 5, 7, 9, 11}
    assert {len(row) for row in rows} == {10}


def test_mots_gives_every_pixel_to_one_object(out: Path) -> None:
    names = (out / places.MOTS_LABELS).read_text().splitlines()
    taken: dict[int, np.ndarray] = {}
    for line in (out / places.MOTS).read_text().splitlines():
        frame, track_id, number, height, width, counts = line.split()
        assert (int(height), int(width)) == SIZE
        assert names[int(number) - 1] == {CAR: "car", KITE: NAMES[2]}[int(track_id)]
        mask = rle.decode_masks([counts], SIZE)[0].astype(bool)
        before = taken.setdefault(int(frame), np.zeros(SIZE, bool))
        assert not (before & mask).any()
        before |= mask
    assert sorted(taken) == [1, 3, 5, 7, 9, 11]
    assert names[0] == "car"  # the number that KITTI MOTS has for it
    assert mots.is_text(out / places.MOTS)


def test_mots_is_read_by_trackeval(out: Path, tmp_path: Path) -> None:
    trackeval = pytest.importorskip("trackeval")
    text = (out / places.MOTS).read_text()
    assert text
    folder = tmp_path / "results/ours/data"
    folder.mkdir(parents=True)
    (folder / "clip.txt").write_text(text)
    truth = tmp_path / "truth/MOTS-train/clip/gt"
    truth.mkdir(parents=True)
    (truth / "gt.txt").write_text(text)
    (truth.parent / "seqinfo.ini").write_text(f"[Sequence]\nseqLength={LENGTH}\n")
    with contextlib.redirect_stdout(io.StringIO()):
        data = trackeval.datasets.MOTSChallenge(
            {
                "GT_FOLDER": str(tmp_path / "truth"),
                "TRACKERS_FOLDER": str(tmp_path / "results"),
                "TRACKERS_TO_EVAL": ["ours"],
                "SEQ_INFO": {"clip": LENGTH},
                "SKIP_SPLIT_FOL": True,
                "GT_LOC_FORMAT": "{gt_folder}/MOTS-train/{seq}/gt/gt.txt",
            }
        ).get_raw_seq_data("ours", "clip")
    assert sum(len(ids) for ids in data["tracker_ids"]) == len(text.splitlines())


def test_cvat_has_a_polygon_track_for_each_object_and_says_where_it_is_gone(out: Path) -> None:
    found = formats.dataset(out / places.CVAT, out.parent / "clip")
    (video,) = found.videos
    assert len(video) == LENGTH // 2
    tracks = {found.categories[one.category_id]: one for one in video.instances}
    assert set(tracks) == {"car", NAMES[2]}
    # The made-up segmenter counts used frames: in the fifth and sixth of them the car is gone.
    there = [counts is not None for counts in tracks["car"].segmentations]
    assert there == [True] * 4 + [False] * 2
    text = (out / places.CVAT).read_text()
    assert 'outside="1"' in text
    assert text.count("<track ") == 2
    assert 'label="kite &amp; &lt;tail&gt;"' in text


@pytest.mark.parametrize("size", [(1, 1), (1, 3), (9, 1), (2, 8), (4, 4), (20, 20)])
def test_a_box_is_the_same_after_cvat_however_small(size: tuple[int, int]) -> None:
    mask = np.zeros((96, 128), np.uint8)
    mask[10 : 10 + size[0], 30 : 30 + size[1]] = 1
    assert (_read_back(mask) == mask).all()


def test_a_round_mask_keeps_its_area_after_cvat() -> None:
    for radius in (5, 12, 30, 45):
        mask = np.zeros((96, 128), np.uint8)
        cv2.ellipse(mask, (60, 48), (radius, radius * 2 // 3), 30, 0, 360, 1, -1)
        back = _read_back(mask)
        assert abs(int(back.sum()) - int(mask.sum())) <= 0.04 * mask.sum()
        assert (back & mask).sum() >= 0.95 * (back | mask).sum()


def _read_back(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The mask that a polygon of cvat.xml stands for."""
    counts = rle.encode_masks(mask[None])[0].decode("ascii")
    points = exports._outline({"segmentation": {"counts": counts}}, mask.shape)
    flat = [float(value) for point in points.split(";") for value in point.split(",")]
    height, width = mask.shape
    return rle.decode_masks([rle.compress([flat], (height, width))["counts"]], (height, width))[0]


@pytest.mark.parametrize(
    ("wanted", "tracks"),
    [
        ({"min_score": 0.6}, {CAR}),
        ({"classes": ("Kite & <tail>",)}, {KITE}),
        ({"min_score": 0.0}, {CAR, KITE}),
        ({"min_score": 1.0}, set()),
    ],
)
def test_what_is_left_out_is_in_no_file(
    tmp_path: Path, wanted: dict[str, Any], tracks: set[int]
) -> None:
    summary = follow(tmp_path, film=False, **wanted)
    at = tmp_path / "out"
    assert {row["track_id"] for row in read(at / places.ROWS)} == tracks
    coco = json.loads((at / places.COCO).read_text())
    assert {one["track_id"] for one in coco["annotations"]} == tracks
    for name in (places.MOT, places.MOTS):
        lines = (at / name).read_text().replace(",", " ").splitlines()
        assert {int(line.split()[1]) for line in lines} == tracks
    assert (at / places.CVAT).read_text().count("<track ") == len(tracks)
    assert summary.drawn == len(read(at / places.ROWS))


def test_exports_that_nobody_asked_for_are_not_written(tmp_path: Path) -> None:
    summary = follow(tmp_path, film=False, exports=("mot",))
    there = {path.name for path in (tmp_path / "out").iterdir()}
    assert there == {places.ROWS, places.TABLE, places.RESULTS, places.MOT}
    assert {path.name for path in summary.written} == there


def test_rows_are_there_line_by_line_while_frames_come(tmp_path: Path) -> None:
    with stream.rows.RowWriter(tmp_path) as table:
        for n in range(3):
            row = {"video": "a", "frame": n, "time": None, "track_id": 1, "category": "car"}
            mask = {"size": [2, 2], "counts": "04"}
            table.add([{**row, "score": 0.5, "box": [0, 0, 1, 1], "area": 4, "segmentation": mask}])
            assert len(read(tmp_path / places.ROWS)) == n + 1
    # As after an error: rows stay, the table is left out.
    assert [path.name for path in tmp_path.iterdir()] == [places.ROWS]
