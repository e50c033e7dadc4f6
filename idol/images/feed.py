"""Frames of a source, read in a thread of its own: they wait for whoever takes them, or give way.

A camera goes on whether its frames are taken or not. Of a live source the oldest waiting frame is
left out when another one comes and there is no room, so that what is taken is never old; a file or
a sequence of pictures waits, and no frame of it is left out.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from idol.images.live import Source, SourceError

_log = logging.getLogger(__name__)

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 10.0
"""Before a lost source is opened again: the first pause, then twice as long each time."""


class Given(NamedTuple):
    """A frame as it came.

    number: in its source, from 0, counting those left out
    time:   seconds since the source's first frame; NaN where nothing says so
    image:  what the source gave: (H, W, 3) uint8 RGB, or any form of a picture
    came:   time.monotonic() when it had been read
    """

    number: int
    time: float
    image: Any
    came: float


class Feed:
    """Reads a source ahead, from its creation on; close it, or use it in a `with`.

    source:    a Source, or pictures in order
    ahead:     frames that wait at most
    patience:  seconds for which a lost camera or stream is tried again before that is an error; its
               frames go on counting, and its time too. 0: it is not tried again
    notify:    called in the reading thread whenever a frame has come, or the source has ended
    dropped:   frames left out so far because nobody had taken the ones before
    reopened:  how often a lost source was there again
    """

    def __init__(
        self,
        source: Source | Iterable[Any],
        *,
        ahead: int = 2,
        patience: float = 60.0,
        notify: Callable[[], None] = lambda: None,
    ) -> None:
        if ahead < 1 or not patience >= 0:
            raise ValueError(f"ahead must be >= 1 and patience >= 0, got {ahead} and {patience}")
        self.dropped = self.reopened = 0
        self.live = isinstance(source, Source) and source.endless
        self._source, self._patience, self._notify, self._ahead = source, patience, notify, ahead
        self._waiting: deque[Given] = deque()
        self._changed = threading.Condition()
        self._ended = self._closed = False
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._read, name="feed", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Frames that can be taken at once."""
        return len(self._waiting)

    @property
    def ended(self) -> bool:
        """Whether nothing waits and nothing will come; take then returns None or raises."""
        return self._ended and not self._waiting

    def take(self, timeout: float | None = None) -> Given | None:
        """The next frame; waits for it, at most so many seconds.

        returns: None: there is none in this time, or the source has ended
        Raises: SourceError and whatever else the source raised, after the frames before it.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._ended, timeout)
            if self._waiting:
                self._changed.notify_all()
                return self._waiting.popleft()
            if self._error is not None:
                raise self._error
            return None

    def __iter__(self) -> Iterator[Given]:
        while (frame := self.take()) is not None:
            yield frame

    def close(self) -> None:
        """Read no more. A source that gives nothing is left to its own time limit."""
        with self._changed:
            self._closed = self._ended = True
            self._waiting.clear()
            self._changed.notify_all()

    def __enter__(self) -> Feed:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    def _read(self) -> None:
        try:
            for number, seconds, image in self._frames():
                if not self._put(Given(number, seconds, image, time.monotonic())):
                    return
        except Exception as error:
            self._error = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()
            self._notify()

    def _put(self, frame: Given) -> bool:
        """Let a frame wait; False: the feed is closed."""
        with self._changed:
            if not self.live:
                self._changed.wait_for(lambda: len(self._waiting) < self._ahead or self._closed)
            if self._closed:
                return False
            if len(self._waiting) >= self._ahead:
                self._waiting.popleft()
                self.dropped += 1
            self._waiting.append(frame)
            self._changed.notify_all()
        self._notify()
        return True

    def _frames(self) -> Iterator[tuple[int, float, Any]]:
        if not isinstance(self._source, Source):
            for number, image in enumerate(self._source):
                yield number, float("nan"), image
        elif self.live:
            yield from self._of_live(self._source)
        else:
            yield from self._source

    def _of_live(self, source: Source) -> Iterator[tuple[int, float, Any]]:
        """The frames of a camera or stream; where it is lost, those after it is there again."""
        last, started, offset = -1, 0.0, 0.0
        lost, pause = 0.0, _FIRST_PAUSE_S  # since when
        opened = source
        while True:
            first = last + 1
            try:
                for frame in opened:
                    now = time.monotonic()
                    if last < 0:
                        started = now - frame.time
                    elif lost:
                        offset = now - started - frame.time
                        self.reopened += 1
                    lost, pause, last = 0.0, _FIRST_PAUSE_S, first + frame.number
                    yield last, offset + frame.time, frame.image
                return
            except SourceError as error:
                now = time.monotonic()
                lost = lost or now
                if last < 0 or self._closed or now - lost >= self._patience:
                    raise
                _log.warning("%s It is tried again in %.1f s.", error, pause)
                with self._changed:
                    self._changed.wait_for(lambda: self._closed, pause)
                pause = min(2 * pause, _LONGEST_PAUSE_S)
                # Seconds count from the first frame of all, but of what is opened from its own.
                opened = replace(source, start=0.0, end=source.end - (time.monotonic() - started))
