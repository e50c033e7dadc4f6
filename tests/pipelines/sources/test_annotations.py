"""Door 0: what is wrong with a video rejects the video; a meaningless file is an error."""

import json
import os
import tracemalloc

import pytest
from hypothesis import given, settings
from pycocotools import mask as coco

from idol.masks.rle import compile_kernel, decode_masks
from idol.presets import tiny
from idol.ytvis import lazy_rows
from idol.ytvis import truth as truth_file
from pipelines.errors import DatasetError
from pipelines.sources import annotations
from pipelines.stages import pairs, shard_plan
from tests.idol.ytvis.test_annotations import dirty_files
from tests.idol.ytvis.test_lazy_rows import many


def one_reject(videos):
    """The only reject of a dataset whose first of two videos was damaged."""
    dataset = annotations.read(videos.write())
    assert [v.video_id for v in dataset.videos] == [2]
    assert dataset.rejected_videos == {1}
    (reject,) = dataset.rejects
    assert reject.video_id == 1
    return reject._asdict()


def test_a_dataset_is_read_whole(make_videos):
    videos = make_videos([3, 2])
    dataset = annotations.read(videos.write())
    assert dataset.rejects == ()
    # Labels go by category_id, not by the order in the file.
    assert dataset.category_ids == (3, 7)
    assert dataset.category_names == ("person", "car")
    assert dataset.labels == {3: 0, 7: 1}
    first = dataset.videos[0]
    assert (first.video_id, first.size, len(first), first.name) == (1, (24, 36), 3, "v1")
    assert first.frames == tuple(str(videos.frame(1, i)) for i in range(3))
    assert [i.instance_id for i in first.instances] == [11, 12]
    assert [s is None for s in first.instances[0].segmentations] == [True, False, False]
    mask = decode_masks([first.instances[0].segmentations[1]], (24, 36))[0]
    assert mask.sum() == 6 * 8
    assert mask[4:12, 2:8].all()


def test_frames_lie_beside_the_file_where_there_is_no_jpegimages(make_videos):
    videos = make_videos([2])
    for child in (videos.folder / "JPEGImages").iterdir():
        child.rename(videos.folder / child.name)
    (videos.folder / "JPEGImages").rmdir()
    assert annotations.read(videos.write()).rejects == ()


def test_another_frames_root_can_be_given(make_videos, tmp_path):
    videos = make_videos([2])
    (videos.folder / "JPEGImages").rename(tmp_path / "elsewhere")
    assert len(annotations.read(videos.write(), tmp_path / "elsewhere").videos) == 1


def test_a_benchmark_without_truth_is_read(make_videos):
    for value in ("absent", None):
        videos = make_videos([2], folder=str(value))
        videos.content.pop("annotations")
        if value is None:
            videos.content["annotations"] = None
        dataset = annotations.read(videos.write())
        assert dataset.videos[0].instances == ()


# -- one video at fault ---------------------------------------------------------------------------


def test_a_missing_frame_rejects_its_video(make_videos):
    videos = make_videos([3, 2])
    videos.frame(1, 1).unlink()
    assert one_reject(videos) == {
        "video_id": 1,
        "path": str(videos.frame(1, 1)),
        "reason": "the frame does not exist",
    }


@pytest.mark.parametrize(
    "name",
    [
        "../../secret.jpg",
        "..",
        "v1/../../x.jpg",
        "/etc/passwd",
        "",
        "s3://bucket/a.jpg",
        "a\0b.jpg",
        "C:/x.jpg",
    ],
)
def test_a_path_that_leaves_the_root_rejects_its_video(make_videos, name):
    videos = make_videos([3, 2])
    videos.content["videos"][0]["file_names"][1] = name
    reject = one_reject(videos)
    assert "leaves the frames root" in reject["reason"]
    assert reject["path"] == name


def test_backslashes_of_windows_are_turned_round_but_do_not_lead_out_of_the_root(make_videos):
    videos = make_videos([3, 2])
    videos.content["videos"][0]["file_names"][1] = "v1\\001.jpg"
    assert annotations.read(videos.write()).videos[0].frames[1] == str(videos.frame(1, 1))
    for name, path in (("..\\..\\x.jpg", "../../x.jpg"), ("C:\\x.jpg", "C:/x.jpg")):
        videos.content["videos"][0]["file_names"][1] = name
        reject = one_reject(videos)
        assert "leaves the frames root" in reject["reason"]
        assert reject["path"] == path


def test_a_path_that_wanders_inside_the_root_is_fine(make_videos):
    videos = make_videos([3, 2])
    videos.content["videos"][0]["file_names"][1] = "v1/../v1/./001.jpg"
    dataset = annotations.read(videos.write())
    assert dataset.videos[0].frames[1] == str(videos.frame(1, 1))


def test_a_wrong_annotation_rejects_its_video_with_the_reason(make_videos):
    videos = make_videos([3, 2])
    videos.content["annotations"][1]["segmentations"].pop()
    assert one_reject(videos) == {
        "video_id": 1,
        "path": str(videos.folder / "instances.json"),
        "reason": "annotation 12 has 2 segmentations for 3 frames",
    }


def test_a_video_that_names_no_frames_is_rejected(make_videos):
    videos = make_videos([3, 2])
    del videos.content["videos"][0]["file_names"]
    assert one_reject(videos)["reason"] == "file_names must be a list of paths"


# -- the whole file at fault ----------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "9" * 5000, "[1, 2]", '{"videos": []}'])
def test_a_file_that_is_no_json_object_is_refused(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(DatasetError, match="is not"):
        annotations.read(path)


def test_an_absent_file_is_refused(tmp_path):
    with pytest.raises(DatasetError, match="cannot be read"):
        annotations.read(tmp_path / "none.json")
    with pytest.raises(DatasetError, match="cannot be read"):
        annotations.read(tmp_path)


# -- selecting and combining ----------------------------------------------------------------------


def test_a_held_out_split_is_chosen_by_video_id(make_videos):
    path = make_videos([2, 2, 2]).write()
    chosen = annotations.read(path, video_ids=[3, 1])
    assert [v.video_id for v in chosen.videos] == [1, 3]
    assert chosen.input_hash != annotations.read(path).input_hash
    assert chosen.input_hash == annotations.read(path, video_ids=(1, 3)).input_hash
    with pytest.raises(ValueError, match="for example 8"):
        annotations.read(path, video_ids=[1, 8])


def test_a_stride_keeps_every_nth_frame_and_who_is_seen_there(make_videos):
    videos = make_videos([5])
    whole = annotations.read(videos.write()).videos[0]
    # Object 1 is absent from frame 0; with stride 5 nothing of it remains.
    (fast,) = annotations.read(videos.write(), stride=2).videos
    assert fast.frames == whole.frames[::2]
    assert fast.instances[1].segmentations == whole.instances[1].segmentations[::2]
    (still,) = annotations.read(videos.write(), stride=5).videos
    assert [i.instance_id for i in still.instances] == [12]
    with pytest.raises(ValueError, match="at least 1"):
        annotations.read(videos.write(), stride=0)


def test_combined_data_sets_keep_every_video_under_its_own_id(make_videos):
    parts = [annotations.read(make_videos([2, 3], folder=name).write()) for name in "abc"]
    whole = annotations.combine(parts)
    assert [v.video_id for v in whole.videos] == [1, 2, 3, 4, 5, 6]
    assert [v.frames for v in whole.videos] == [v.frames for p in parts for v in p.videos]
    instances = [i.instance_id for v in whole.videos for i in v.instances]
    assert len(set(instances)) == len(instances) == 12
    assert whole.categories == parts[0].categories
    assert annotations.combine(parts[:1]) is parts[0]


def test_combining_keeps_ids_that_do_not_clash(make_videos):
    other = make_videos([2], folder="b")
    other.content["videos"][0]["id"] = 50
    for item in other.content["annotations"]:
        item["video_id"] = 50
    whole = annotations.combine(
        [annotations.read(make_videos([2]).write()), annotations.read(other.write())]
    )
    assert [v.video_id for v in whole.videos] == [1, 50]


def test_combining_refuses_one_number_for_two_categories(make_videos):
    other = make_videos([2], folder="b")
    other.content["categories"][0]["name"] = "cart"
    with pytest.raises(ValueError, match="category 7 is 'car' and 'cart'"):
        annotations.combine(
            [annotations.read(make_videos([2]).write()), annotations.read(other.write())]
        )
    with pytest.raises(ValueError, match="at least one"):
        annotations.combine([])


def test_the_order_in_the_file_does_not_matter_for_the_videos(make_videos):
    videos = make_videos([2, 3])
    straight = tuple(annotations.read(videos.write()).videos)
    videos.content["videos"].reverse()
    assert tuple(annotations.read(videos.write()).videos) == straight


def test_the_real_clips_are_read_without_a_reject(shared):
    root = shared / "data" / "real"
    if not root.is_dir():
        pytest.skip("needs the real clips of the reference data")
    real = annotations.read(root / "instances.json")
    composite = annotations.read(root / "composite" / "instances.json")
    whole = annotations.combine([real, composite])
    assert (real.rejects, composite.rejects) == ((), ())
    assert (len(real.videos), len(composite.videos), len(whole.videos)) == (35, 11, 46)
    truth = json.loads((root / "instances.json").read_text())
    areas = {a["id"]: a["areas"] for a in truth["annotations"]}
    for video in real.videos:
        for instance in video.instances:
            for counts, area in zip(
                instance.segmentations, areas[instance.instance_id], strict=True
            ):
                size = list(video.size)
                found = int(coco.area({"size": size, "counts": counts})) if counts else 0
                assert found == (area or 0)
    assert all(os.path.isfile(frame) for video in whole.videos for frame in video.frames)


# -- truth of what was read -----------------------------------------------------------------------


def test_truth_is_of_the_videos_and_frames_that_were_chosen_and_the_file_is_read_once(
    make_videos, monkeypatch
):
    path = make_videos([5, 2, 3]).write()
    parsed = []
    files, read = annotations.annotation_files, annotations.annotation_files.read_file
    monkeypatch.setattr(files, "read_file", lambda *d: parsed.append(1) or read(*d))
    dataset = annotations.read(path, video_ids=[1, 3], stride=2)
    truth = dataset.truth()
    assert parsed == [1]
    assert {v: t.length for v, t in truth.videos.items()} == {1: 3, 3: 2}
    for record in dataset.videos:
        known = truth.videos[record.video_id]
        assert known.instance_ids.tolist() == [i.instance_id for i in record.instances]
        masks = [tuple(m and m["counts"] for m in row) for row in known.masks]
        assert masks == [i.segmentations for i in record.instances]
    assert truth.categories == {3: "person", 7: "car"}


def test_a_video_without_frames_has_truth_and_one_of_wrong_annotations_has_none(
    make_videos, caplog
):
    videos = make_videos([2, 2, 2])
    videos.frame(1, 0).unlink()
    videos.content["annotations"][2]["category_id"] = 99
    dataset = annotations.read(videos.write())
    assert [v.video_id for v in dataset.videos] == [3]
    assert list(dataset.truth().videos) == [1, 3]
    assert "1 of 3 videos are not scored" in caplog.text
    assert "video 2 (annotation 21 has category_id 99" in caplog.text


@settings(deadline=None, max_examples=40)
@given(dirty_files())
def test_what_one_job_accepts_all_accept(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp() / "same"
    (folder / "v").mkdir(parents=True, exist_ok=True)
    for name in "abc":
        (folder / "v" / f"{name}.jpg").touch()
    (folder / "a.json").write_text(json.dumps(data))
    dataset = annotations.read(folder / "a.json")
    prepared = {v.video_id: [i.instance_id for i in v.instances] for v in dataset.videos}
    evaluated = dataset.truth()
    if not prepared:
        with pytest.raises(ValueError, match="no video with truth"):
            truth_file.read(folder / "a.json")
        return
    scored = truth_file.read(folder / "a.json")
    for truth in (scored, evaluated):
        if truth is not None:  # there is none for evaluation where no video has an instance
            found = {v: t.instance_ids.tolist() for v, t in truth.videos.items()}
            assert found == prepared
            assert truth.left_out == dataset.rejected_videos


def test_an_image_of_coco_is_a_video_of_one_frame(make_images):
    dataset = annotations.read(make_images([3]).write())
    assert [len(video) for video in dataset.videos] == [1, 1, 1]
    # Object 11 is absent from the first image.
    assert [len(video.instances) for video in dataset.videos] == [1, 2, 2]
    assert all(i.segmentations[0] is not None for v in dataset.videos for i in v.instances)


def test_the_memory_of_reading_and_dealing_grows_by_little_with_the_videos(tmp_path, monkeypatch):
    monkeypatch.setattr(lazy_rows, "_WINDOW", 1 << 14)
    config = tiny().pairs

    def peak(count):
        path, _ = many(count, tmp_path)
        (video, *_) = json.loads(path.read_text())["videos"]
        for number in range(1, count + 1):
            (tmp_path / str(number)).mkdir(exist_ok=True)
            for t in range(video["length"]):
                (tmp_path / str(number) / f"{t}.jpg").touch()
        tracemalloc.start()
        try:
            dataset = annotations.read(path)
            shards, _ = pairs.deal(dataset, config, None)
            plan_of = ([(dataset.videos[p.position], p) for p in shard] for shard in shards)
            pairs._write_plan(tmp_path / "plan", plan_of)
            shard_plan.plan(dataset.videos, 16)
            truth = dataset.truth()
            assert sum(len(known) for known in truth.videos.values()) == count
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    compile_kernel()
    peak(10)  # what is imported once
    few, more = peak(10), peak(60)
    # Bytes a video. Garbage that waits for its collector moves the peaks by a few hundred KB.
    assert (more - few) / 50 < 10_000
