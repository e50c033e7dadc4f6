"""A frame comes from an image or a video file, or the error says which one is at fault."""

import cv2
import numpy as np
import pytest

from pipelines.errors import VideoError
from pipelines.sources import frames, image_file

SIZE = (32, 48)


def smooth(number: int) -> frames.Image:
    """A picture that survives lossy compression, different for every number."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    image = np.stack([x * 5, y * 7, np.full(SIZE, 8 * number % 256)], axis=2)
    return image.astype(np.uint8)


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> str:
    """A video of 150 frames; frame i is smooth(i % 30)."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 10, SIZE[::-1])
    for i in range(150):
        writer.write(cv2.cvtColor(smooth(i % 30), cv2.COLOR_RGB2BGR))
    writer.release()
    return str(path)


def number_of(image: frames.Image) -> int:
    """Which smooth(number) it is; blue says it."""
    return round(float(image[8:24, 8:40, 2].mean()) / 8)


def test_a_reference_is_a_path_or_a_frame_of_a_video_file():
    assert frames.split("a/b.jpg") == ("a/b.jpg", None)
    assert frames.split("a/b.MP4#12") == ("a/b.MP4", 12)
    # A # in an image's name is part of the name.
    assert frames.split("take#3/0.jpg") == ("take#3/0.jpg", None)
    assert frames.split("take#3") == ("take#3", None)


def test_a_png_is_read_exactly_and_in_rgb(tmp_path):
    path = str(tmp_path / "a.png")
    cv2.imwrite(path, cv2.cvtColor(smooth(3), cv2.COLOR_RGB2BGR))
    np.testing.assert_array_equal(frames.read(path, video_id=1, size=SIZE), smooth(3))


def test_a_grey_image_becomes_three_equal_channels(tmp_path):
    path = str(tmp_path / "a.png")
    cv2.imwrite(path, smooth(0)[:, :, 0])
    image = frames.read(path, video_id=1)
    assert image.shape == (*SIZE, 3)
    assert (image[..., 0] == image[..., 2]).all()


def test_a_jpeg_keeps_its_own_bytes(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(frames.encode_jpeg(smooth(1), 50))
    data = frames.read_encoded(str(path), video_id=1, size=SIZE, stored_size=SIZE, quality=95)
    assert data == path.read_bytes()


def test_a_resized_or_other_image_is_encoded(tmp_path, clip):
    jpeg, png = tmp_path / "a.jpg", tmp_path / "a.png"
    jpeg.write_bytes(frames.encode_jpeg(smooth(1), 90))
    cv2.imwrite(str(png), cv2.cvtColor(smooth(1), cv2.COLOR_RGB2BGR))
    for reference, stored in ((str(jpeg), (16, 24)), (str(png), SIZE), (f"{clip}#1", SIZE)):
        data = frames.read_encoded(reference, video_id=1, size=SIZE, stored_size=stored, quality=95)
        assert data[:3] == b"\xff\xd8\xff"
        image = image_file.decode(data, video_id=1, path="")
        assert image.shape[:2] == stored
        assert abs(float(image.mean()) - float(smooth(1).mean())) < 3


def test_frames_of_a_video_file_are_the_same_in_any_order(clip):
    with frames.VideoReader(clip, video_id=1) as reader:
        assert len(reader) == 150
        for number in (0, 1, 7, 3, 149, 80, 148, 0):
            image = reader.read(number)
            assert image.shape == (*SIZE, 3)
            assert number_of(image) == number % 30
        assert [number_of(image) for image in reader] == [i % 30 for i in range(150)]


def test_many_references_stream_in_the_order_given(clip, tmp_path):
    still = tmp_path / "s.jpg"
    still.write_bytes(frames.encode_jpeg(smooth(9), 95))
    wanted = [f"{clip}#4", f"{clip}#5", str(still), f"{clip}#2"]
    found = [number_of(image) for image in frames.read_many(wanted, video_id=1, size=SIZE)]
    assert found == [4, 5, 9, 2]


def test_references_are_grouped_by_file_and_ascend():
    wanted = ["b.mp4#10", "a.jpg", "b.mp4#9", "b.mp4#10"]
    assert frames.grouped(wanted) == [
        ("a.jpg", ["a.jpg"]),
        ("b.mp4", ["b.mp4#9", "b.mp4#10"]),
    ]


def test_a_missing_frame_is_a_video_error(tmp_path):
    for name in ("none.jpg", "none.mp4#0"):
        with pytest.raises(VideoError, match="does not exist"):
            frames.read(str(tmp_path / name), video_id=5)
    with pytest.raises(VideoError, match="cannot be read"):
        frames.read(str(tmp_path), video_id=5)


def test_a_frame_of_another_size_is_a_video_error(clip):
    with pytest.raises(VideoError, match=r"the frame is 32 x 48.*the annotations say 10 x 10"):
        frames.read(f"{clip}#0", video_id=1, size=(10, 10))


def test_a_frame_after_the_end_is_a_video_error(clip):
    for number in (150, 10_000):
        with pytest.raises(VideoError, match=f"before frame {number}.*states 150 frames"):
            frames.read(f"{clip}#{number}", video_id=1)


def test_a_file_that_is_no_video_is_a_video_error(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"no video at all" * 50)
    with pytest.raises(VideoError, match="cannot be opened as a video"):
        frames.read(f"{path}#0", video_id=1)


def test_paths_with_a_scheme_are_read_through_arrow(tmp_path, clip):
    (tmp_path / "v1").mkdir()
    (tmp_path / "v1" / "0.jpg").write_bytes(frames.encode_jpeg(smooth(6), 95))
    root = f"file://{tmp_path}"
    reference = frames.join(root, "v1/0.jpg")
    assert set(frames.files_in(f"{root}/v1")) == {"0.jpg"}
    assert frames.files_in(f"{root}/v2") == {}
    assert frames.is_directory(f"{root}/v1")
    assert number_of(frames.read(reference, video_id=1)) == 6
    assert number_of(frames.read(f"file://{clip}#33", video_id=1)) == 3
    with pytest.raises(VideoError, match="does not exist"):
        frames.read(frames.join(root, "v1/1.jpg"), video_id=1)


def test_files_in_a_folder_are_told_without_its_folders(tmp_path):
    (tmp_path / "v1").mkdir()
    (tmp_path / "a.jpg").touch()
    assert frames.files_in(str(tmp_path)) == {"a.jpg": 0}
    assert frames.files_in(str(tmp_path / "none")) == {}
