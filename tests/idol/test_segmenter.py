"""Frame by frame: the same results as the whole video, and refusals that leave the stream whole."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import PIL.Image
import pytest
import torch
from numpy.typing import NDArray

import idol
from idol.config import TrackerConfig
from idol.detection.postprocess import detections
from idol.images.depth import eight_bits
from idol.images.transforms import collate_images, normalise
from idol.network.model import IDOL
from idol.segmenter import OnlineSegmenter
from idol.structures import FrameDetections
from idol.tracker.online import track_video
from idol.weights import checkpoint
from idol.ytvis import results

LENGTH, SIZE = 12, (96, 144)


@pytest.fixture(scope="module")
def model() -> IDOL:
    return checkpoint.load("shipped")


@pytest.fixture(scope="module")
def video() -> list[NDArray[np.uint8]]:
    """Two bright discs that move over a dark texture."""
    rng = np.random.default_rng(0)
    ground = rng.integers(20, 60, (*SIZE, 3))
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    frames = []
    for t in range(LENGTH):
        frame = ground.copy()
        frame[(y - 30) ** 2 + (x - 25 - 5 * t) ** 2 < 200] = (230, 60, 40)
        frame[(y - 65) ** 2 + (x - 120 + 5 * t) ** 2 < 260] = (40, 90, 230)
        frames.append(frame.astype(np.uint8))
    return frames


def whole_video(model: IDOL, video: list[NDArray[np.uint8]]) -> list[FrameDetections]:
    found = []
    for index, frame in enumerate(video):
        image = normalise(frame, model.config.transforms)
        images, padding = collate_images([image], model.config.transforms.size_divisor)
        with torch.inference_mode():
            outputs = model(images, padding)
            input_size = (image.shape[1], image.shape[2])
            found.append(
                detections(outputs, model, 0, index, input_size, SIZE, model.config.detect)
            )
    return found


@pytest.mark.parametrize("tracker", [TrackerConfig.released(), TrackerConfig.robust()])
def test_a_stream_ends_with_the_results_of_the_whole_video(
    model: IDOL, video: list[NDArray[np.uint8]], tracker: TrackerConfig
) -> None:
    segmenter = OnlineSegmenter(model, tracker)
    seen = [segmenter(frame) for frame in video]
    found = whole_video(model, video)
    tracks = track_video(found, tracker)
    expected = results.to_ytvis(
        tracks,
        found,
        video_id=1,
        size=SIZE,
        length=LENGTH,
        category_ids=model.config.category_ids or range(1, model.config.model.num_classes + 1),
        config=tracker,
    )
    assert segmenter.finish_ytvis() == expected
    assert segmenter.finish_ytvis() == expected
    assert any(len(instances) for instances in seen)
    for track in tracks:
        for index, row in track.detections.items():
            place = seen[index].track_ids.tolist().index(track.track_id)
            assert seen[index].counts[place] == found[index].masks[row]


def test_a_frame_of_16_bits_is_seen_as_its_stretched_8_bits(
    model: IDOL, video: list[NDArray[np.uint8]]
) -> None:
    deep = video[0].astype(np.uint16) * 8 + 29_000
    found = OnlineSegmenter(model)(deep)
    expected = OnlineSegmenter(model)(eight_bits(deep))
    assert len(found) >= 2
    assert found.counts == expected.counts


def test_masks_have_the_size_of_the_frame(model: IDOL, video: list[NDArray[np.uint8]]) -> None:
    instances = OnlineSegmenter(model, keep_tracks=False)(video[0])
    assert instances.masks.shape == (len(instances), *SIZE)
    assert instances.masks.dtype == np.bool_
    assert len(instances.names) == len(instances)


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (np.zeros((*SIZE, 3), np.int32), TypeError, "uint8"),
        (np.zeros(SIZE, np.uint8), ValueError, "height, width, 3"),
        (np.zeros((50, 60, 3), np.uint8), ValueError, "those before it"),
        ([[0]], TypeError, "got list"),
    ],
)
def test_a_refused_frame_leaves_the_stream_as_it_was(
    model: IDOL,
    video: list[NDArray[np.uint8]],
    bad: NDArray[np.uint8],
    error: type[Exception],
    message: str,
) -> None:
    whole, broken = OnlineSegmenter(model), OnlineSegmenter(model)
    for index, frame in enumerate(video[:3]):
        whole(frame)
        broken(frame)
        if index == 1:
            with pytest.raises(error, match=message):
                broken(bad)
    assert broken.frames == 3
    assert broken.finish_ytvis() == whole.finish_ytvis()


def test_a_finished_or_forgetful_segmenter_says_so(
    model: IDOL, video: list[NDArray[np.uint8]]
) -> None:
    segmenter = OnlineSegmenter(model)
    assert segmenter.finish() == []
    with pytest.raises(ValueError, match=r"Call reset\(\)"):
        segmenter(video[0])
    with pytest.raises(ValueError, match="keep_tracks=True"):
        OnlineSegmenter(model, keep_tracks=False).finish()


def test_a_threshold_below_what_is_detected_is_refused(model: IDOL) -> None:
    with pytest.raises(ValueError, match="score_floor"):
        OnlineSegmenter(model, TrackerConfig(score_threshold=0.01))


def test_a_frame_without_identities_has_no_masks(
    model: IDOL, video: list[NDArray[np.uint8]]
) -> None:
    nothing = TrackerConfig(first_threshold=1.0, new_threshold=1.0)
    instances = OnlineSegmenter(model, nothing)(video[0])
    assert len(instances) == 0
    assert instances.masks.shape == (0, *SIZE)


def test_a_segmenter_begins_another_video_after_reset(
    model: IDOL, video: list[NDArray[np.uint8]]
) -> None:
    segmenter = OnlineSegmenter(model)
    first = [segmenter(frame).track_ids.tolist() for frame in video]
    entries = segmenter.finish_ytvis()
    segmenter.reset()
    segmenter(np.zeros((50, 60, 3), np.uint8))  # of another size
    segmenter.reset()
    assert segmenter.frames == 0
    assert [segmenter(frame).track_ids.tolist() for frame in video] == first
    assert segmenter.finish_ytvis() == entries


def test_frames_in_any_form_give_the_same(model: IDOL, video: list[NDArray[np.uint8]]) -> None:
    forms = [
        list(video),
        [torch.from_numpy(frame).permute(2, 0, 1) for frame in video],
        [PIL.Image.fromarray(frame) for frame in video],
    ]
    expected = [found.counts for found in idol.track(forms[0], OnlineSegmenter(model))]
    for frames in forms[1:]:
        assert [found.counts for found in idol.track(frames, OnlineSegmenter(model))] == expected
    turned = [frame[..., ::-1] for frame in video]
    bgr = OnlineSegmenter(model, bgr=True)
    assert [found.counts for found in idol.track(turned, bgr)] == expected


def test_detections_that_the_tracker_has_no_use_for_change_nothing(
    model: IDOL, video: list[NDArray[np.uint8]]
) -> None:
    numbers: list[int] = []
    whole = OnlineSegmenter(model, on_detections=lambda found, size: numbers.append(len(found)))
    fewer = OnlineSegmenter(model)
    assert whole.config.score_threshold > whole.settings.detect.score_floor
    for frame in video:
        one, other = whole(frame), fewer(frame)
        assert one.counts == other.counts
        assert one.scores.tolist() == other.scores.tolist()
    assert len(numbers) == LENGTH
    assert whole.finish_ytvis() == fewer.finish_ytvis()


def test_the_name_of_an_object_is_that_of_its_mean_scores(
    model: IDOL, video: list[NDArray[np.uint8]]
) -> None:
    sums: dict[int, NDArray[np.float64]] = {}
    for found in idol.track(video, OnlineSegmenter(model)):
        for track_id, label, scores, name in zip(
            found.track_ids.tolist(), found.labels, found.class_scores, found.names, strict=True
        ):
            sums[track_id] = sums.get(track_id, np.zeros(len(scores))) + scores
            assert label == sums[track_id].argmax()
            assert name == model.config.categories[label]
    assert sums


def test_a_file_is_tracked_with_numbers_and_times(
    video: list[NDArray[np.uint8]], tmp_path: Path
) -> None:
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=4, options={"crf": "1"})
        stream.height, stream.width, stream.pix_fmt = *SIZE, "yuv420p"
        for frame in video:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    found = list(idol.track(path, "shipped", every=3, start=0.5))
    assert [one.number for one in found] == [2, 5, 8, 11]
    assert [one.time for one in found] == [0.5, 1.25, 2.0, 2.75]
    assert [one.frame_index for one in found] == [0, 1, 2, 3]
    assert all(one.image is not None and one.image.shape == (*SIZE, 3) for one in found)


def test_what_cannot_be_tracked_is_told_before_weights_are_loaded(
    model: IDOL, video: list[NDArray[np.uint8]]
) -> None:
    with pytest.raises(ValueError, match=r"absent\.mp4 does not exist"):
        idol.track("absent.mp4", "no-such-weights")
    with pytest.raises(ValueError, match="frames have no time"):
        idol.track(video, OnlineSegmenter(model), start=1.0)
    with pytest.raises(ValueError, match="has its options already, got speed"):
        idol.track(video, OnlineSegmenter(model), speed="fast")
