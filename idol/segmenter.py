"""Online segmentation: frames in, identities with masks out, frame by frame, without Ray.

segmenter = OnlineSegmenter.load("shipped")
for frame in source:                    # (H, W, 3) uint8 RGB, or any other form of a picture
    instances = segmenter(frame)        # identities, masks, boxes, classes of this frame
entries = segmenter.finish_ytvis()      # the whole video, as a YouTube-VIS results file has it
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

import torch

from idol.config import Config, Speed, TrackerConfig
from idol.detection.detector import Detector
from idol.follower import Follower
from idol.images import live
from idol.images.given import as_rgb
from idol.instances import Image, Instances
from idol.network.model import IDOL
from idol.structures import FrameDetections, Track
from idol.weights import checkpoint
from idol.ytvis import results

if TYPE_CHECKING:
    from idol.images.given import Given

__all__ = ["Instances", "OnlineSegmenter", "track"]


class OnlineSegmenter:
    """Detects and tracks the objects of one video or endless stream, then after reset of another.

    model:       in eval mode; frames are processed on its device, one at a time
    tracker:     association; None: config.tracker
    config:      sizes, detection and categories; its section model must be the model's. None:
                 model.config
    keep_tracks: keep what finish needs, see Follower; without it, memory does not grow
    speed:       as of DetectConfig.speed; None: config.detect.speed
    bgr:         arrays and tensors are BGR, as OpenCV reads them
    on_detections: called with the detections of every frame and its (height, width), before
                 tracking, down to detect.score_floor. None: those that the tracker has no use for
                 are not made, which changes nothing else
    """

    def __init__(
        self,
        model: IDOL,
        tracker: TrackerConfig | None = None,
        *,
        config: Config | None = None,
        keep_tracks: bool = True,
        speed: Speed | None = None,
        bgr: bool = False,
        on_detections: Callable[[FrameDetections, tuple[int, int]], None] | None = None,
    ) -> None:
        self.model = model.eval()
        self.settings = model.config if config is None else config
        if self.settings.model != model.config.model:
            raise ValueError(
                "config.model describes another network than model. Change other sections of "
                "model.config, or load the checkpoint that belongs to it."
            )
        self.config = self.settings.tracker if tracker is None else tracker
        detected = least_detections(self.settings, self.config)
        if on_detections is not None:
            detected = self.settings
        self.bgr = bgr
        self._detector = Detector(self.model, detected, speed=speed)
        self._on_detections = on_detections
        self._follower = Follower(self.settings, self.config, keep_tracks=keep_tracks)
        self._size: tuple[int, int] | None = None

    @classmethod
    def load(
        cls,
        weights: str | os.PathLike[str] = "shipped",
        *,
        preset: str | None = None,
        device: str | torch.device = "cpu",
        tracker: TrackerConfig | None = None,
        keep_tracks: bool = True,
        speed: Speed | None = None,
        bgr: bool = False,
    ) -> Self:
        """From weights; arguments weights, preset and device, and errors as of idol.load."""
        model = checkpoint.load(weights, preset=preset, device=device)
        return cls(model, tracker, keep_tracks=keep_tracks, speed=speed, bgr=bgr)

    from_pretrained = load
    """load under the name that other libraries give it."""

    @property
    def frames(self) -> int:
        """Frames of this video seen so far."""
        return self._follower.frames

    def reset(self) -> None:
        """Begin another video, of any size: identities count from 0 again."""
        self._follower.reset()
        self._size = None

    @torch.inference_mode()
    def __call__(
        self, frame: Given, *, number: int | None = None, time: float = float("nan")
    ) -> Instances:
        """The instances of the next frame.

        frame:  an array or tensor (H, W, 3) or (3, H, W), a PIL image, or the path of an image
                file, see idol.images.given.as_rgb; all of one size
        number, time: of the frame in its source, as of Instances
        Raises:
            TypeError: another type or dtype.
            ValueError: another shape, a changed size, outputs that are not finite, after finish.
        After an error the stream can continue with the next frame.
        """
        if self._follower.closed:
            raise ValueError("this video is finished. Call reset() before the next one.")
        image = as_rgb(frame, bgr=self.bgr)
        size = self._check(image)
        prepared = self._detector.prepare(image)
        (found,) = self._detector.detect([prepared], [self.frames])
        if self._on_detections is not None:
            self._on_detections(found, size)
        instances = self._follower.add(found, size, image=image, number=number, time=time)
        self._size = size
        return instances

    def finish(self) -> list[Track]:
        """End the video: its tracks in the order of their creation, equal to track_video's.

        Raises: ValueError: keep_tracks is off.
        """
        return self._follower.finish()

    def entries(self, video_id: int = 1) -> Iterator[results.Entry]:
        """End the video: as finish_ytvis, with one entry in memory at a time."""
        return self._follower.entries(video_id)

    def finish_ytvis(self, video_id: int = 1) -> list[results.Entry]:
        """End the video: entries for results.write, as jobs.evaluate makes them of a whole video.

        Categories without a data set's ids count from 1.
        Raises: ValueError: as finish.
        """
        return list(self.entries(video_id))

    def _check(self, image: Image) -> tuple[int, int]:
        size = (image.shape[0], image.shape[1])
        if self._size is not None and size != self._size:
            raise ValueError(
                f"all frames of a video have one size; frame {self.frames} is {size} (height, "
                f"width), those before it {self._size}. Resize it; in Python, call reset() of the "
                "segmenter before another video."
            )
        return size


def least_detections(settings: Config, tracker: TrackerConfig) -> Config:
    """The configuration with which a detector leaves out what a tracker has no use for.

    Suppression is greedy by score: what is left out had suppressed none that is kept.
    Raises: ValueError: the tracker wants what is not detected.
    """
    floor = settings.detect.score_floor
    if tracker.score_threshold < floor:
        raise ValueError(
            f"tracker.score_threshold is {tracker.score_threshold}, but detections end at "
            f"detect.score_floor = {floor}. Lower the floor or raise the threshold."
        )
    return replace(settings, detect=replace(settings.detect, score_floor=tracker.score_threshold))


def track(
    source: str | os.PathLike[str] | Iterable[Any],
    weights: str | os.PathLike[str] | OnlineSegmenter,
    *,
    every: int = 1,
    start: float = 0.0,
    end: float | None = None,
    **options: Any,
) -> Iterator[Instances]:
    """Segment and follow every object of a video, frame by frame, in memory that does not grow.

    source:  a video file, a folder of images, camera:0, an rtsp:// or http(s):// address; or
             frames: arrays, tensors, PIL images or paths of images, in order
    weights: what idol.load takes, such as a name of idol.models(); or a segmenter, which is reset
    every:   use each n-th frame only
    start, end: seconds of a file or stream
    options: of OnlineSegmenter.load: preset, device, tracker, speed, bgr
    returns: the Instances of each frame, as they come
    Raises: ValueError, FileNotFoundError: of the source, the weights or a frame.
    """
    # Looked at before the network is loaded, which takes longer.
    opened = (
        live.open_source(os.fspath(source), every, start=start, end=end)
        if isinstance(source, str | os.PathLike)
        else None
    )
    if opened is None and (start > 0 or end is not None):
        raise ValueError("start and end are seconds of a file or stream; frames have no time")
    if isinstance(weights, OnlineSegmenter):
        if options:
            raise ValueError(f"a segmenter has its options already, got {', '.join(options)}")
        segmenter = weights
        segmenter.reset()
    else:
        segmenter = OnlineSegmenter.load(weights, keep_tracks=False, **options)
    if opened is None:
        return _of_frames(iter(source), segmenter, every)  # type: ignore[arg-type]
    return _of_source(opened, segmenter)


def _of_frames(
    frames: Iterator[Any], segmenter: OnlineSegmenter, every: int
) -> Iterator[Instances]:
    for number, frame in enumerate(frames):
        if number % every == 0:
            yield segmenter(frame, number=number)


def _of_source(source: live.Source, segmenter: OnlineSegmenter) -> Iterator[Instances]:
    bgr, segmenter.bgr = segmenter.bgr, False  # a source gives RGB
    try:
        for number, time, image in source:
            yield segmenter(image, number=number, time=time)
    finally:
        segmenter.bgr = bgr
