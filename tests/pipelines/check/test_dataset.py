"""A clean set has no findings; every made fault has its own, with what later jobs do about it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from idol import presets
from idol.config import override
from idol.ytvis import repairs
from pipelines import check
from pipelines.check import dataset, suspicions
from pipelines.errors import DatasetError, PipelineError
from pipelines.report.check_page import CheckReport, Finding
from pipelines.sources import annotations
from pipelines.stages import pairs
from tests.object_storage import BUCKET, S3Server
from tests.pipelines.conftest import SIZE, Videos, rectangle
from tests.pipelines.formats import drawn

LEFT_OUT, NOT_SCORED, LOOK = "left out", "not scored", "to look at"


def checked(path: Path | str, *changes: str, preset: str = "tiny", **options: Any) -> CheckReport:
    config = override(presets.by_name(preset), changes)
    options = {"reject_limit": 1.0, "frames_read": "all", **options}
    report, _ = check.run(check.Request(annotations=str(path), config=config, **options))
    return report


def found(path: Path | str, *changes: str, **options: Any) -> dict[str, tuple[str, int]]:
    """Kind -> (effect, times)."""
    return {f.kind: (f.effect, f.times) for f in checked(path, *changes, **options).findings}


def finding(report: CheckReport, kind: str) -> Finding:
    (one,) = (finding for finding in report.findings if finding.kind == kind)
    return one


@pytest.mark.parametrize("purpose", ["train", "evaluate", "both"])
@pytest.mark.parametrize("frames_read", ["sample", "all", "none"])
def test_a_clean_set_has_no_finding_and_is_counted(
    make_videos: Callable[..., Videos], purpose: Any, frames_read: Any
) -> None:
    videos = make_videos([4, 3])
    videos.content["annotations"][1]["segmentations"][1] = None  # a gap
    report = checked(videos.write(), purpose=purpose, frames_read=frames_read, reject_limit=None)
    assert report.findings == []
    assert not report.refused
    assert report.counts == {
        "videos": 2,
        "usable_videos": 2,
        "frames": 7,
        "frames_a_video": {"min": 3, "median": 3.5, "max": 4},
        "videos_by_height_x_width": {"24x36": 2},
        "categories": 2,
        "tracks": 4,
        "tracks_a_video": {"min": 2, "median": 2.0, "max": 2},
        "tracks_with_gaps": 1,
        "longest_gap_in_frames": 1,
        "crowd_regions": 0,
        "masks": 3 + 3 + 2 + 3,
        "masks_by_occlusion": {},
        "frame_files": {"named": 7, "missing": 0},
        "frames_decoded": 0 if frames_read == "none" else 7,
    }
    assert report.categories == [
        {"category_id": 3, "name": "person", "tracks": 2, "videos": 2, "frames": 6},
        {"category_id": 7, "name": "car", "tracks": 2, "videos": 2, "frames": 5},
    ]
    assert report.histograms["Videos by their frames"] == [("3", 1), ("4", 1)]
    assert report.histograms["Tracks by the root of their mean area, pixels"] == [("4–7", 4)]


# -- what readers, the decoder and stages leave out -----------------------------------------------

FRAMES = "videos whose frames cannot be used"
ANNOTATIONS = "videos whose annotations cannot be used"


def missing(videos: Videos) -> dict[str, tuple[str, int]]:
    videos.frame(1, 1).unlink()
    videos.frame(1, 2).unlink()
    return {FRAMES: (LEFT_OUT, 1), "files of frames that do not exist": (LEFT_OUT, 2)}


def cut_short(videos: Videos) -> dict[str, tuple[str, int]]:
    path = videos.frame(1, 1)
    path.write_bytes(path.read_bytes()[:-60])
    return {"frames that cannot be decoded": (LEFT_OUT, 1)}


def no_image(videos: Videos) -> dict[str, tuple[str, int]]:
    videos.frame(1, 1).write_text("<html>not found</html>")
    return {"frames that cannot be decoded": (LEFT_OUT, 1)}


def other_size(videos: Videos) -> dict[str, tuple[str, int]]:
    drawn.images(videos.frame(1, 1).parent, ["001.jpg", "002.jpg"], (SIZE[1], SIZE[0]))
    return {"frames of another size than the annotations say": (LEFT_OUT, 2)}


def outside(videos: Videos) -> dict[str, tuple[str, int]]:
    videos.content["videos"][0]["file_names"][0] = "../../secret.jpg"
    return {FRAMES: (LEFT_OUT, 1)}


def broken_mask(videos: Videos) -> dict[str, tuple[str, int]]:
    videos.content["annotations"][0]["segmentations"][1]["counts"] = "11"
    return {ANNOTATIONS: (LEFT_OUT, 1)}


def unknown_category(videos: Videos) -> dict[str, tuple[str, int]]:
    videos.content["annotations"][0]["category_id"] = 99
    return {ANNOTATIONS: (LEFT_OUT, 1)}


def no_mask(videos: Videos) -> dict[str, tuple[str, int]]:
    videos.content["annotations"][0]["segmentations"] = [None] * 4
    return {repairs.UNSEEN: ("repaired", 1)}


def same_id(videos: Videos) -> dict[str, tuple[str, int]]:
    for row in videos.content["annotations"]:
        row["id"] = 5
    return {repairs.IDS: ("repaired", 3)}


def other_category(videos: Videos) -> dict[str, tuple[str, int]]:
    videos.content["categories"].append({"id": 9, "name": "bus"})
    return {"categories without a track": (NOT_SCORED, 1)}


def some_occlusion(videos: Videos) -> dict[str, tuple[str, int]]:
    words = [None, "no_occlusion", "slight_occlusion", "severe_occlusion"]
    videos.content["annotations"][0]["occlusion"] = words
    kind = "tracks that do not say how occluded they are, so that AP_so, AP_mo, AP_ho are none"
    return {kind: (NOT_SCORED, 3)}


@pytest.mark.parametrize(
    "fault",
    [
        missing,
        cut_short,
        no_image,
        other_size,
        outside,
        broken_mask,
        unknown_category,
        no_mask,
        same_id,
        other_category,
        some_occlusion,
    ],
)
def test_a_fault_is_one_finding(make_videos: Callable[..., Videos], fault: Any) -> None:
    videos = make_videos([4, 3])
    expected = fault(videos)
    assert found(videos.write()) == expected


@pytest.mark.parametrize("frames_read", ["sample", "all"])
def test_the_rejects_of_the_check_are_those_of_the_reader(
    make_videos: Callable[..., Videos], frames_read: Any
) -> None:
    videos = make_videos([4, 3, 3, 3])
    videos.frame(1, 2).unlink()
    broken_mask(videos)
    videos.content["videos"][2]["width"] = 37
    path = videos.write()
    rejects = annotations.read(path).rejects
    assert len(rejects) == 2
    report = checked(path, frames_read=frames_read)
    told = [place for kind in (ANNOTATIONS, FRAMES) for place in _places(report, kind)]
    assert told == [f"video {video}: {file}: {reason}" for video, file, reason in rejects]


def _places(report: CheckReport, kind: str) -> list[str]:
    return [place for f in report.findings if f.kind == kind for place in f.places]


def test_videos_of_one_frame_have_no_pair_and_are_evaluated(
    make_videos: Callable[..., Videos],
) -> None:
    videos = make_videos([4, 1])
    one = {"videos without a pair to train on": (LEFT_OUT, 1)}
    del videos.content["annotations"][2]  # which has no mask
    assert found(videos.write()) == one
    assert found(videos.write(), purpose="evaluate") == {}
    assert found(videos.write(), "pairs.pseudo=true") == {}


def test_more_than_the_metrics_count_is_told(make_videos: Callable[..., Videos]) -> None:
    videos = make_videos([2])
    videos.content["annotations"] = [
        {
            "id": n + 1,
            "video_id": 1,
            "category_id": (7, 3)[n % 100 == 0],
            "segmentations": [rectangle(n % 30, n // 30, n % 30 + 3, n // 30 + 9), None],
        }
        for n in range(102)
    ]
    for row in videos.content["annotations"]:
        row["segmentations"][1] = row["segmentations"][0]
    kind = "videos with more than {} objects in a frame, as many as are kept".format
    assert found(videos.write(), "detect.max_detections=100") == {kind(100): (NOT_SCORED, 1)}
    assert found(videos.write()) == {}
    for row in videos.content["annotations"][:100]:
        row["category_id"] = 7
    videos.content["annotations"].append({**videos.content["annotations"][100], "id": 103})
    videos.content["annotations"][100]["category_id"] = 7
    told = found(videos.write(), "detect.max_detections=103")
    assert told.pop("videos with more than 100 tracks of a category, as many as count")[1] == 1


# -- refusals -------------------------------------------------------------------------------------


def test_too_many_rejects_are_refused_in_the_words_of_prepare(
    make_videos: Callable[..., Videos], tmp_path: Path
) -> None:
    videos = make_videos([3] * 6)
    videos.frame(2, 0).unlink()
    path = videos.write()
    report = checked(path, reject_limit=None)
    assert report.refused
    with pytest.raises(PipelineError) as refused:
        pairs.run(annotations.read(path), tmp_path / "out", presets.by_name("tiny").pairs)
    for job in ("jobs.prepare", "jobs.evaluate"):
        one = finding(report, f"{job} will end with an error")
        assert (one.effect, one.places) == ("refused", [str(refused.value)])
    assert not checked(path, reject_limit=0.2).refused
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        checked(path, reject_limit=2.0)


def test_damaged_frames_count_for_the_limit(make_videos: Callable[..., Videos]) -> None:
    videos = make_videos([3] * 6)
    cut_short(videos)
    report = checked(videos.write(), reject_limit=None)
    assert [f.kind for f in report.findings if f.effect == "refused"] == [
        "jobs.evaluate will end with an error",
        "jobs.prepare will end with an error",
    ]
    assert not checked(videos.write(), reject_limit=None, frames_read="none").refused


def test_a_set_without_annotations_is_evaluated_and_not_trained_on(
    make_videos: Callable[..., Videos],
) -> None:
    videos = make_videos([4, 3])
    del videos.content["annotations"]
    alone = {"sets without annotations": (NOT_SCORED, 1)}
    assert found(videos.write(), purpose="evaluate") == alone
    report = checked(videos.write())
    assert report.refused
    assert "no usable video has an annotated object" in report.findings[0].places[0]
    videos.content["annotations"] = []
    told = found(videos.write(), purpose="evaluate")
    assert told.pop("sets without an object, so that all metrics are -1") == (NOT_SCORED, 1)
    assert told == {suspicions.NO_TRACKS: (LOOK, 2)}


def test_what_is_no_annotation_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"videos": 3}')
    with pytest.raises(DatasetError, match="is not YouTube-VIS"):
        checked(tmp_path / "a.json")
    with pytest.raises(FileNotFoundError, match=r"b\.json does not exist"):
        checked(tmp_path / "b.json")


# -- which frames are decoded ---------------------------------------------------------------------


def test_a_sample_is_the_same_each_time_and_holds_every_empty_file(
    make_videos: Callable[..., Videos], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset, "_SAMPLE", 3)
    videos = make_videos([9, 9])
    path = videos.write()
    decoded: list[list[str]] = []
    decode = dataset._decode

    def noted(job: Any) -> Any:
        decoded[-1] += job[1]
        return decode(job)

    monkeypatch.setattr(dataset, "_decode", noted)
    for _ in range(2):
        decoded.append([])
        assert checked(path, frames_read="sample").counts["frames_decoded"] == 3
    assert sorted(decoded[0]) == sorted(decoded[1])
    others = {str(videos.frame(v, t)) for v in (1, 2) for t in range(9)} - set(decoded[0])
    empty = sorted(others)[5]
    Path(empty).write_bytes(b"")
    report = checked(path, frames_read="sample")
    assert report.counts["frames_decoded"] == 4
    assert empty in finding(report, "frames that cannot be decoded").places[0]


def test_films_are_decoded_and_one_that_ends_early_is_told(tmp_path: Path) -> None:
    drawn.film(tmp_path / "seen.mp4", 3)
    masks = [rectangle(t, 2, t + 9, 12) for t in range(5)]
    sizes = {"height": SIZE[0], "width": SIZE[1], "length": 5}
    names = [f"seen.mp4#{t}" for t in range(5)]
    content = {
        "videos": [{"id": 1, "file_names": names, **sizes}],
        "categories": [{"id": 1, "name": "car"}],
        "annotations": [{"id": 1, "video_id": 1, "category_id": 1, "segmentations": masks}],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    report = checked(tmp_path / "a.json")
    one = finding(report, "frames that cannot be decoded")
    assert one.times == 2
    assert "seen.mp4#3: the video ends before frame 3" in one.places[0]
    assert report.counts["frame_files"] == {"named": 1, "missing": 0}


# -- other layouts and formats --------------------------------------------------------------------


def test_still_images_want_the_preset_of_still_images(make_images: Callable[..., Videos]) -> None:
    path = make_images([3, 3]).write()
    report = checked(path)
    assert report.refused
    assert "a coco_* preset" in report.findings[0].places[0]
    assert found(path, preset="coco_r50") == {}
    assert found(path, purpose="evaluate") == {}


def test_mask_folders_are_read_and_what_was_left_out_is_told(tmp_path: Path) -> None:
    for name, length in (("bear", 4), ("dog", 3)):
        drawn.images(tmp_path / "JPEGImages" / name, [f"{t:05d}.jpg" for t in range(length)])
        for t in range(length):
            mask = drawn.box(t + 1, 2, t + 9, 12) * 255
            drawn.png(tmp_path / "Annotations" / name / f"{t:05d}.png", mask, "L")
    unnamed = {"objects without a category, named 'object'": ("repaired", 2)}
    assert found(tmp_path) == unnamed
    (tmp_path / "JPEGImages" / "dog").rename(tmp_path / "elsewhere")
    report = checked(tmp_path, format="masks")
    one = finding(report, "videos that cannot be read from their format")
    assert (one.effect, one.times) == (LEFT_OUT, 1)
    assert one.places[0].startswith("dog: there is no folder of images or film")
    assert report.counts["videos"] == 1


def test_only_json_is_read_from_an_address(s3: S3Server) -> None:
    with pytest.raises(ValueError, match="only JSON goes with an address, not --format cvat"):
        checked(f"s3://{BUCKET}/a.xml", format="cvat")


@pytest.mark.parametrize("name", ["real", "real/composite"])
def test_the_real_clips_are_accepted_by_all_jobs(shared: Path, name: str) -> None:
    path = shared / "data" / name / "instances.json"
    if not path.exists():
        pytest.skip("needs the real clips")
    report = checked(path, frames_read="sample", reject_limit=None)
    assert not report.refused
    assert {f.effect for f in report.findings} <= {NOT_SCORED, LOOK}
    read = annotations.read(path)
    assert report.counts["videos"] == len(read.videos)
    assert report.counts["frames"] == sum(map(len, read.videos))
    assert report.counts["frames_decoded"] == min(500, report.counts["frames"])


def test_pictures_are_of_videos_with_findings_first(make_videos: Callable[..., Videos]) -> None:
    videos = make_videos([3] * 9)
    videos.content["annotations"][-1]["segmentations"][1:] = [None, None]
    report, strips = check.run(
        check.Request(annotations=str(videos.write()), config=presets.by_name("tiny"))
    )
    assert [f.kind for f in report.findings] == [suspicions.ONE_FRAME]
    assert len(strips) == 6
    assert strips[0].title == "video 9, v9"
    assert strips[0].caption == suspicions.ONE_FRAME
    assert strips[1].title == "video 1, v1"
    assert strips[1].caption == ""
    assert [len(strip.truth) for strip in strips] == [3] * 6
