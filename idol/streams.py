"""Many streams through one network: frames of all share its batches, each has its own tracker.

with Streams.load("shipped", batch=8, window=0.02) as streams:
    streams.add("rtsp://camera/1", name="door")
    streams.add("video.mp4")
    for result in streams:                       # as they come, each stream's in its order
        result.name, result.instances

The network keeps nothing between frames, so a batch may hold frames of any streams that enter it at
one size. Streams are served in turn: none gets a second frame into a batch while another one's
first waits. A camera that is not served in time loses its oldest waiting frame; of a file nothing
is left out. A stream that fails, stalls or ends does not hold up the others. Identities are those
of the stream alone; sums of a batch are in another order, so that scores differ by rounding, and
now and then a pixel on the edge of a mask.
"""

from __future__ import annotations

import itertools
import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch

from idol.addresses import shown
from idol.config import Config, Speed, TrackerConfig
from idol.detection.detector import Detector, Prepared, start_each
from idol.follower import StreamFollower
from idol.images import live
from idol.images.feed import Feed, Given
from idol.images.given import as_rgb
from idol.instances import Image, Instances
from idol.network.model import IDOL
from idol.segmenter import least_detections
from idol.structures import FrameDetections
from idol.weights import checkpoint

_IDLE_S = 0.5  # without frames the loop looks so often whether it was closed
_NUMBERED = "stream-{}"


@dataclass(frozen=True, slots=True, eq=False)
class StreamResult:
    """One frame of a stream, or its end.

    name:      of the stream
    instances: of the frame; None where there is none
    number:    of the frame in its source, counting those left out; -1 at the end of the stream
    error:     why the frame gave nothing, after which the stream goes on, or why the stream ended;
               None at the end of a source
    ended:     nothing more comes of this stream
    delay:     seconds from when the frame had been read to this result
    dropped:   frames of the stream left out so far because newer ones had come
    began:     a new video begins with this frame: its size has changed. Identities are new ones,
               and their numbers go on
    """

    name: str
    instances: Instances | None = None
    number: int = -1
    error: Exception | None = None
    ended: bool = False
    delay: float = 0.0
    dropped: int = 0
    began: bool = False


@dataclass(slots=True, eq=False)
class _Stream:
    """What belongs to one stream alone.

    bgr:       its frames are BGR where they are arrays
    under_way: frames taken from it whose results have not been made
    """

    name: str
    feed: Feed
    follower: StreamFollower
    bgr: bool
    under_way: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class _Taken:
    """A frame on its way through the network; prepared: None where the frame was none."""

    stream: _Stream
    given: Given
    image: Image | None
    prepared: Prepared | None
    error: Exception | None = None


class Streams:
    """Detects and tracks the objects of many streams.

    model:     in eval mode; batches are processed on its device
    tracker:   association; None: config.tracker
    config:    as of OnlineSegmenter
    batch:     frames in a batch at most
    window:    seconds that a frame waits at most for others to share its batch
    ahead:     frames of each stream that wait at most
    patience:  seconds for which a lost camera or stream is tried again
    limit:     streams at the same time at most
    speed:     as of DetectConfig.speed; None: config.detect.speed
    bgr:       arrays and tensors are BGR, as OpenCV reads them
    images:    results carry their frames
    """

    def __init__(
        self,
        model: IDOL,
        tracker: TrackerConfig | None = None,
        *,
        config: Config | None = None,
        batch: int = 8,
        window: float = 0.02,
        ahead: int = 2,
        patience: float = 60.0,
        limit: int = 256,
        speed: Speed | None = None,
        bgr: bool = False,
        images: bool = False,
    ) -> None:
        if batch < 1 or limit < 1 or not 0 <= window < math.inf:
            raise ValueError(
                f"batch and limit must be >= 1 and window a number of seconds >= 0, got {batch}, "
                f"{limit} and {window}"
            )
        self.settings = model.config if config is None else config
        self._tracker = self.settings.tracker if tracker is None else tracker
        self._detector = Detector(
            model, least_detections(self.settings, self._tracker), speed=speed, batch=batch
        )
        self._batch, self._window, self._limit = batch, window, limit
        self._ahead, self._patience = ahead, patience
        self._bgr, self._images = bgr, images
        self._streams: dict[str, _Stream] = {}
        self._numbers = itertools.count()
        self._turn = 0
        self._closed = False
        self._changed = threading.Condition()

    @classmethod
    def load(
        cls,
        weights: str | os.PathLike[str] = "shipped",
        *,
        preset: str | None = None,
        device: str | torch.device = "cpu",
        **options: Any,
    ) -> Self:
        """From weights; weights, preset and device, and errors as of idol.load; others as above."""
        return cls(checkpoint.load(weights, preset=preset, device=device), **options)

    @property
    def names(self) -> list[str]:
        """Of the streams that have not ended."""
        return list(self._streams)

    def add(
        self,
        source: str | os.PathLike[str] | live.Source | Iterable[Any],
        *,
        name: str | None = None,
        every: int = 1,
    ) -> str:
        """Begin a stream, also while others run, from any thread; returns its name.

        source: as of idol.track: a file, a folder, camera:0, an address; or frames in order, read
                in a thread of their own
        name:   None: the next of stream-0, stream-1, ... that is not taken
        every:  use each n-th frame of a file, camera or address; a Source has its own
        Raises:
            SourceError: it cannot be opened.
            ValueError: the name is taken, there are as many streams as allowed, or the source takes
                no every.
            RuntimeError: closed.
        """
        opened: Any = source
        if isinstance(source, str | os.PathLike):
            opened = live.open_source(os.fspath(source), every)
        elif every != 1:
            todo = "leave frames out of the sequence"
            if isinstance(source, live.Source):
                todo = f"open this Source by open_source({shown(source.name)!r}, {every})"
            raise ValueError(f"every is for files and addresses: {todo}")
        with self._changed:
            if self._closed:
                raise RuntimeError("these streams are closed")
            if len(self._streams) >= self._limit:
                raise ValueError(f"{self._limit} streams are running, and limit allows no more")
            if name in self._streams:
                raise ValueError(f"a stream named {name!r} is running. Choose another name.")
            free = (n for n in map(_NUMBERED.format, self._numbers) if n not in self._streams)
            chosen = next(free) if name is None else name
            feed = Feed(opened, ahead=self._ahead, patience=self._patience, notify=self._wake)
            follower = StreamFollower(self.settings, self._tracker)
            bgr = self._bgr and not isinstance(opened, live.Source)
            self._streams[chosen] = _Stream(chosen, feed, follower, bgr)
            self._changed.notify_all()
        return chosen

    def remove(self, name: str) -> None:
        """End a stream now: nothing more of it comes, no frames on their way and no last result.

        Its name is free then, and results of that name are those of the next stream. From another
        thread: the result that the iteration hands out at that moment may still come.
        Raises: KeyError: it is not running.
        """
        with self._changed:
            self._streams.pop(name).feed.close()

    def close(self) -> None:
        """End all streams: the iteration ends after the results of frames that are on their way."""
        with self._changed:
            self._closed = True
            for stream in self._streams.values():
                stream.feed.close()
            self._changed.notify_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[StreamResult]:
        return self.results()

    def results(self, *, wait: bool = False) -> Iterator[StreamResult]:
        """The results of all streams as they come, those of each in the order of its frames.

        wait: go on when the last stream has ended, for others to be added, until close is called
        """
        under_way: Callable[[], Iterator[StreamResult]] | None = None
        while True:
            taken = self._next_batch(patient=under_way is None, wait=wait)
            if taken is None and under_way is None:
                return
            # The next batch is on the device before the results of the last one are made.
            started = self._start(taken) if taken else None
            if under_way is not None:
                yield from under_way()
            under_way = started
            if under_way is not None and not any(s.feed.waiting for s in self._running()):
                yield from under_way()
                under_way = None
            yield from self._ends()

    def _running(self) -> list[_Stream]:
        return list(self._streams.values())

    def _is_running(self, stream: _Stream) -> bool:
        """Whether it was not removed; another one may have its name since."""
        return self._streams.get(stream.name) is stream

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _next_batch(self, *, patient: bool, wait: bool) -> list[_Taken] | None:
        """Frames for the next batch, [] where none has come; None: nothing will come any more."""
        with self._changed:
            while patient and not any(s.feed.waiting or s.feed.ended for s in self._running()):
                if self._closed or not (self._streams or wait):
                    return None
                self._changed.wait(_IDLE_S)
            if any(s.feed.waiting for s in self._running()):
                self._changed.wait_for(self._enough, self._window)
        return self._take() or (None if self._closed and not self._running() else [])

    def _enough(self) -> bool:
        """Whether no frame would come into the batch by waiting."""
        running = self._running()
        waiting = sum(stream.feed.waiting for stream in running)
        return waiting >= self._batch or all(s.feed.waiting or s.feed.ended for s in running)

    def _take(self) -> list[_Taken]:
        """At most a batch of frames: one of each stream in turn, then a second one of each, ..."""
        running = self._running()
        if not running:
            return []
        # From the one after the last that was served.
        turn = self._turn % len(running)
        order = running[turn:] + running[:turn]
        taken: list[_Taken] = []
        while len(taken) < self._batch:
            before = len(taken)
            for stream in order:
                if len(taken) < self._batch and stream.feed.waiting:
                    given = stream.feed.take(0)
                    if given is not None:
                        taken.append(self._prepared(stream, given))
                        self._turn = running.index(stream) + 1
            if len(taken) == before:
                break
        return taken

    def _prepared(self, stream: _Stream, given: Given) -> _Taken:
        stream.under_way += 1
        try:
            image = as_rgb(given.image, bgr=stream.bgr)
            return _Taken(stream, given, image, self._detector.prepare(image))
        except (TypeError, ValueError, OSError) as error:
            return _Taken(stream, given, None, None, error)

    def _start(self, taken: Sequence[_Taken]) -> Callable[[], Iterator[StreamResult]]:
        """Begin the detection of a batch; the call that is returned makes its results."""
        prepared = [one.prepared for one in taken if one.prepared is not None]
        done = start_each(self._detector, prepared)

        def finish() -> Iterator[StreamResult]:
            found = iter(done())
            for one in taken:
                outcome = one.error if one.prepared is None else next(found)
                if self._is_running(one.stream):
                    yield self._result(one, outcome)

        return finish

    @torch.inference_mode()
    def _result(self, one: _Taken, found: FrameDetections | Exception | None) -> StreamResult:
        """Follow the detections of one frame."""
        stream, given = one.stream, one.given
        stream.under_way -= 1
        about: dict[str, Any] = {"number": given.number, "dropped": stream.feed.dropped}
        if not isinstance(found, FrameDetections) or one.image is None:
            delay = time.monotonic() - given.came
            error = found if isinstance(found, Exception) else None
            return StreamResult(stream.name, error=error, delay=delay, **about)
        size = (one.image.shape[0], one.image.shape[1])
        instances, began = stream.follower.add(
            found,
            size,
            image=one.image if self._images else None,
            number=given.number,
            time=given.time,
        )
        delay = time.monotonic() - given.came
        return StreamResult(stream.name, instances, began=began, delay=delay, **about)

    def _ends(self) -> Iterator[StreamResult]:
        """The last results of streams whose sources have ended."""
        for stream in self._running():
            if stream.under_way or not stream.feed.ended:
                continue
            error: Exception | None = None
            try:
                stream.feed.take(0)
            except Exception as raised:
                error = raised
            with self._changed:
                if not self._is_running(stream):  # removed meanwhile
                    continue
                del self._streams[stream.name]
            if not self._closed:
                yield StreamResult(
                    stream.name, error=error, ended=True, dropped=stream.feed.dropped
                )
