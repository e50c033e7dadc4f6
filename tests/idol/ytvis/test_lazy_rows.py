"""What is read row by row is what reading the whole file gives, and takes memory by the video."""

import json
import random
import tracemalloc
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import mutations
from idol import files
from idol.evaluation import average_precision
from idol.masks.rle import compile_kernel
from idol.ytvis import annotations, lazy_rows, results, truth
from idol.ytvis.annotations import InvalidAnnotations, InvalidJson
from tests.idol.ytvis.test_annotations import images, minimal, rle


def two_videos() -> dict[str, Any]:
    """OVIS's words, ids and annotations out of order, a video without annotations."""
    data = minimal()
    (first,) = data["annotations"]
    data["videos"] += [
        {"id": 2, "height": 8, "width": 10, "file_names": ["w/1.jpg", "w/2.jpg"], "name": "w"},
        {"id": 3, "height": 8, "width": 10, "length": 1, "file_names": ["x.mp4#7"]},
    ]
    words = ["no_occlusion", None, "severe_occlusion"]
    data["annotations"] = [
        {**first, "id": 3, "occlusion": words},
        {**first, "id": 1, "video_id": 2, "segmentations": [None, rle(0)], "areas": [None, 7.5]},
        {**first, "id": 0, "category_id": 2, "segmentations": [[[1, 0, 3, 0, 3, 8]], None, rle(4)]},
    ]
    return {"info": {"year": 2021}, **data}


def cocovid() -> dict[str, Any]:
    """Two videos and three tracks, frames in another order than images, a frame without a mask."""
    data = images()
    data["videos"] = [{"id": 1, "name": "a", "height": 8, "width": 10}, {"id": 2}]
    frame = {"height": 8, "width": 10}
    data["images"] = [
        {"id": n, **frame, "file_name": f"v/{n}.jpg", "video_id": 1 + (n > 3), "frame_id": 5 - n}
        for n in range(1, 6)
    ]
    row = {"category_id": 1, "bbox": [1, 2, 3, 4], "iscrowd": 0}
    data["annotations"] = [
        {"id": k, **row, "image_id": 1 + k % 5, "instance_id": 1 + k // 5, "segmentation": rle(k)}
        for k in range(10)
    ]
    data["annotations"][3] |= {"segmentation": None, "bbox": None}
    return data


def coco_of_tracks() -> dict[str, Any]:
    """The same as a label tool writes it."""
    data = cocovid()
    del data["videos"]
    for image in data["images"]:
        del image["video_id"], image["frame_id"]
    for row in data["annotations"]:
        row["attributes"] = {"occluded": False, "track_id": row.pop("instance_id")}
    return data


def facts(value: Any) -> Any:
    """All that something holds, comparable."""
    if isinstance(value, np.ndarray):
        return repr(value.tolist())
    if hasattr(value, "__dataclass_fields__"):
        return {field.name: facts(getattr(value, field.name)) for field in fields(value)}
    if hasattr(value, "items"):
        return type(value).__name__, [(key, facts(one)) for key, one in value.items()]
    return [facts(one) for one in value] if isinstance(value, list | tuple) else repr(value)


def outcome(read: Callable[[], Any]) -> Any:
    try:
        return facts(read())
    except (InvalidAnnotations, InvalidJson) as error:
        return type(error), str(error)
    except ValueError as error:  # compat
        return ValueError, str(error)


def whole(path: Path, compat: bool) -> Any:
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        words = {RecursionError: "lists or objects are nested too deeply"}
        raise InvalidJson(words.get(type(error), str(error))) from error
    return annotations.parse(content, "a.json", compat=compat)


@pytest.mark.parametrize("compat", [False, True])
@pytest.mark.parametrize("make", [minimal, two_videos, images, cocovid, coco_of_tracks])
@pytest.mark.parametrize("window", [100, 1 << 18])
def test_any_file_row_by_row_is_as_read_whole(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make: Callable[[], dict[str, Any]],
    compat: bool,
    window: int,
) -> None:
    monkeypatch.setattr(lazy_rows, "_WINDOW", window)
    value, path, lazy = make(), tmp_path / "a.json", 0
    for seed in range(-1, 150):
        path.write_bytes(
            json.dumps(value).encode()
            if seed < 0
            else mutations.text(value, random.Random(f"{make.__name__} {seed}"))
        )
        expected = outcome(lambda: whole(path, compat))
        assert outcome(lambda: annotations.read_file(path, "a.json", compat=compat)) == expected
        try:
            lazy += isinstance(lazy_rows.load(path), dict)
        except lazy_rows.UnusualLayout:
            continue
    assert lazy > 50


def test_the_real_annotations_row_by_row_are_as_read_whole(shared: Path) -> None:
    for path in sorted((shared / "data").rglob("instances.json")):
        found = facts(annotations.read_file(path, "a.json"))
        assert found == facts(annotations.parse(json.loads(path.read_bytes()), "a.json"))


def test_a_row_that_is_no_json_makes_the_file_none_and_rejects_no_video(tmp_path: Path) -> None:
    text = json.dumps(two_videos())
    path = tmp_path / "a.json"
    path.write_text(text.replace('"iscrowd": 0', f'"iscrowd": {"1" * 5000}', 1))
    assert lazy_rows.load(path)  # numbers are looked at when their row is read
    with pytest.raises(ValueError, match=r"a\.json is not valid JSON: a number has thousands of"):
        annotations.read(path)
    path.write_bytes(text.encode().replace(b'"fish"', b'"\xff"'))
    with pytest.raises(ValueError, match=r"a\.json is not valid JSON: 'utf-8' codec"):
        annotations.read(path)


def many(count: int, folder: Path) -> tuple[Path, Path]:
    """Truth and perfect results of as many videos."""
    data: dict[str, Any] = {**minimal(), "videos": [], "annotations": []}
    (video,), (row,) = minimal()["videos"], minimal()["annotations"]
    masks = [rle(1, 5), rle(2), rle(3, 8)] * 40
    for n in range(1, count + 1):
        names = [f"{n}/{t}.jpg" for t in range(len(masks))]
        data["videos"].append({**video, "id": n, "length": len(masks), "file_names": names})
        own = {"id": n, "video_id": n, "segmentations": masks, "areas": [1] * len(masks)}
        data["annotations"].append({**row, **own})
    paths = folder / f"truth-{count}.json", folder / f"results-{count}.json"
    paths[0].write_text(json.dumps(data))
    found = [
        {"video_id": n, "category_id": 9, "score": 0.5, "segmentations": masks}
        for n in range(1, count + 1)
    ]
    paths[1].write_text(json.dumps(found))
    return paths


def test_memory_grows_by_little_with_the_videos(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lazy_rows, "_WINDOW", 1 << 14)

    def peak(work: Callable[[], Any]) -> int:
        tracemalloc.start()
        try:
            work()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    few, more = many(20, tmp_path), many(120, tmp_path)
    text = (more[0].stat().st_size - few[0].stat().st_size) / 100
    parsed = [peak(partial(files.load_json, paths[0], "truth")) for paths in (few, more)]
    assert (parsed[1] - parsed[0]) / 100 > 2 * text > 5000  # as a whole, for comparison

    def score(paths: tuple[Path, Path]) -> None:
        assert average_precision.evaluate(*paths).stats["AP"] == 1

    def write(paths: tuple[Path, Path]) -> None:
        results.write(tmp_path / "again.json", results.read(paths[1]))

    compile_kernel()
    for work, limit in ((lambda paths: truth.read(paths[0]), 5000), (score, 20_000), (write, 5000)):
        work(more)  # what is imported once
        first, second = (peak(partial(work, paths)) for paths in (few, more))
        assert (second - first) / 100 < limit  # bytes a video; of scores, the sum over all entries
