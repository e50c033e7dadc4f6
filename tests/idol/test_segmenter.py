"""Frame by frame: the same results as the whole video, and refusals that leave the stream whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

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
            assert torch.equal(seen[index].boxes[place], found[index].boxes[row])


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
        (np.zeros((*SIZE, 3), np.float32), TypeError, "uint8"),
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
    with pytest.raises(ValueError, match="new OnlineSegmenter"):
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
