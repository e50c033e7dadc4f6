"""A short film and the masks of its frames, as few bytes as a page can carry for many videos.

Measured on 12 real clips at 320 pixels across (benchmarks/report_page.py): 6.5 kB a frame as WebP,
9.0 kB as JPEG, 1.3 to 2.3 kB as VP9, whose decoder every browser brings (that of H.264 some builds
leave out). Masks are a map of identities, one byte a pixel: 0.3 kB a frame when deflated.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from idol.masks import rle
from pipelines.report.strips import evenly
from pipelines.report.viewer.timeline import Masks

Image = NDArray[np.uint8]

RATE: Final = 10
"""Frames a second of a film: only a clock for seeking, the page plays at its own speed."""
MOST_LAYERS: Final = 250
"""Tracks or instances of one map: its bytes stand for positions, 0 for none."""
_MOST_FRAMES: Final = 48
_FEWEST_FRAMES: Final = 4
_QUALITIES: Final = (40, 48)  # of VP9, 0 best to 63, in the order in which they are tried
_WIDE, _NARROW = 480, 320  # pixels across; narrower videos keep their width
_WIDE_FROM: Final = 200_000  # bytes for one video that allow _WIDE
_DEFLATE: Final = 7  # level; 9 makes maps a tenth smaller in six times the time


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """Some frames of a video.

    frames: their numbers in the video, ascending
    size:   (height, width) of film and maps
    film:   WebM, VP9, one picture a frame, RATE frames a second
    maps:   name -> deflated (len(frames), height, width) uint8, 1 + position of what is visible
    """

    frames: tuple[int, ...]
    size: tuple[int, int]
    film: bytes
    maps: Mapping[str, bytes]

    @property
    def bytes(self) -> int:
        """Size of it all."""
        return len(self.film) + sum(map(len, self.maps.values()))


def shown_frames(length: int) -> list[int]:
    """The frames of a video that a clip has if it may be large: all of a short one."""
    return evenly(length, _MOST_FRAMES)


def clip_size(size: tuple[int, int], budget: int) -> tuple[int, int]:
    """(height, width) of a clip of a video of this (height, width); even, as VP9 needs it."""
    width = min(size[1], _WIDE if budget >= _WIDE_FROM else _NARROW)
    return tuple(max(2, 2 * round(side * width / size[1] / 2)) for side in size)  # type: ignore[return-value]


def make(
    images: Sequence[Image],
    frames: Sequence[int],
    layers: Mapping[str, Sequence[Masks]],
    size: tuple[int, int],
    budget: int,
) -> Clip:
    """A clip of at most `budget` bytes where that is possible with _FEWEST_FRAMES.

    images: (h, w, 3) uint8 RGB of the frames, at the clip's size
    frames: their numbers in the video
    layers: name -> masks of every frame of the video, the best first: it is drawn on top
    size:   (height, width) of the masks
    """
    height, width = images[0].shape[:2]
    maps = {name: _map(masks, frames, size, (height, width)) for name, masks in layers.items()}
    chosen = list(range(len(frames)))
    tried = 0
    while True:
        made = Clip(
            frames=tuple(frames[n] for n in chosen),
            size=(height, width),
            film=film([images[n] for n in chosen], _QUALITIES[min(tried, len(_QUALITIES) - 1)]),
            maps={
                name: zlib.compress(whole[chosen].tobytes(), _DEFLATE)
                for name, whole in maps.items()
            },
        )
        tried += 1
        if made.bytes <= budget or len(chosen) <= _FEWEST_FRAMES:
            return made
        if tried >= len(_QUALITIES):
            fewer = min(len(chosen) - 1, int(0.9 * len(chosen) * budget / made.bytes))
            chosen = evenly(len(frames), max(_FEWEST_FRAMES, fewer))


def film(images: Sequence[Image], quality: int) -> bytes:
    """Images of one size, (h, w, 3) uint8 RGB with even sides, as WebM; equal bytes every time."""
    out = io.BytesIO()
    # Otherwise every file has a random number and a date.
    with av.open(out, "w", format="webm", options={"fflags": "bitexact"}) as container:
        stream = container.add_stream("libvpx-vp9", rate=RATE)
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.options = {
            "crf": str(quality),
            "b": "0",
            "deadline": "realtime",
            "cpu-used": "8",
            "lag-in-frames": "0",  # a third faster, and the same bytes
            "threads": "1",
        }
        stream.codec_context.flags |= av.codec.context.Flags.bitexact
        for image in images:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return out.getvalue()


def shrunk(image: Image, size: tuple[int, int]) -> Image:
    """An image at the (height, width) of its clip."""
    if image.shape[:2] == size:
        return image
    return np.asarray(cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA), np.uint8)


def _map(
    tracks: Sequence[Masks],
    frames: Sequence[int],
    size: tuple[int, int],
    shown: tuple[int, int],
) -> NDArray[np.uint8]:
    """(len(frames), h, w): 1 + the position of the first track that covers a pixel; 0: none."""
    rows, columns = (
        ((np.arange(few) + 0.5) * many / few).astype(int)
        for few, many in zip(shown, size, strict=True)
    )
    out = np.zeros((len(frames), *shown), np.uint8)
    for picture, frame in zip(out, frames, strict=True):
        here = [(n, counts) for n, masks in enumerate(tracks) if (counts := masks[frame])]
        for n, counts in reversed(here):
            mask = rle.decode_masks([counts], size)[0][rows][:, columns]
            picture[mask > 0] = n + 1
    return out
