"""Frames for the network, decoded and prepared by threads while it computes."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from idol.detection.detector import Detector, Prepared
from pipelines import gauges
from pipelines.errors import VideoError
from pipelines.sources import frames
from pipelines.sources.image_file import check_size
from pipelines.stages.shard_plan import Piece

_DECODE_THREADS = 2  # decoding releases the GIL; two keep ahead of the network


@dataclass(frozen=True, slots=True)
class Frame:
    """A decoded frame: its piece, its place in it, and what the network gets."""

    piece: Piece
    offset: int
    prepared: Prepared

    @property
    def index(self) -> int:
        """Of the frame in its video."""
        return self.piece.start + self.offset


def read_ahead(
    pieces: Sequence[Piece], detector: Detector, depth: int
) -> Iterator[Frame | VideoError]:
    """All frames of the pieces in order; of a video with a fault, the fault once and no more.

    depth: frames decoded before they are asked for
    """
    queue: deque[Future[Frame | VideoError]] = deque()
    faulty: set[int] = set()
    reader: frames.VideoReader | None = None

    def load(piece: Piece, offset: int) -> Frame | VideoError:
        # A fault is returned: it must not stop the frames that are read beside it.
        nonlocal reader
        reference = piece.frames[offset]
        path, number = frames.split(reference)
        try:
            if number is None:
                image = frames.read(reference, video_id=piece.video_id, size=piece.size)
            else:
                # Left open: reopened for each frame, the file would be decoded from its start.
                if reader is None or reader.path != path:
                    reader = None
                    opened.close()
                    reader = opened.enter_context(frames.VideoReader(path, video_id=piece.video_id))
                image = reader.read(number)
                check_size(image.shape, piece.size, video_id=piece.video_id, path=reference)
        except VideoError as fault:
            # Named after this piece: two videos of a dataset may be cut from one file.
            return VideoError(piece.video_id, fault.path, fault.reason)
        return Frame(piece, offset, detector.prepare(image))

    def take() -> Iterator[Frame | VideoError]:
        began = time.monotonic()
        found = queue.popleft().result()
        gauges.count("detect", "stall_seconds", time.monotonic() - began)
        if not isinstance(found, VideoError):
            yield found
        elif found.video_id not in faulty:
            faulty.add(found.video_id)
            yield found

    # A video file is open once, and read forwards by one thread at a time.
    from_files = any(frames.split(piece.frames[0])[1] is not None for piece in pieces)
    threads = 1 if from_files else _DECODE_THREADS
    with contextlib.ExitStack() as opened, ThreadPoolExecutor(threads) as pool:
        for piece in pieces:
            for offset in range(len(piece.frames)):
                if piece.video_id in faulty:
                    break
                queue.append(pool.submit(load, piece, offset))
                if len(queue) >= depth:
                    yield from take()
        while queue:
            yield from take()
