"""One source from its frames to results, rows and an annotated film, frame by frame."""

from __future__ import annotations

import itertools
import logging
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from tqdm import tqdm

from idol.addresses import shown
from idol.config import Config
from idol.config.categories import same
from idol.images.feed import Feed
from idol.images.live import FOLDER_RATE, Frame, Source, SourceError
from idol.images.painter import Painter, Style
from idol.images.visualize import Image
from idol.instances import Instances
from idol.structures import Track
from idol.ytvis import results
from pipelines.errors import ManifestError
from pipelines.report.film import Film
from pipelines.stream import exports, places, rows
from pipelines.stream.exports import Export
from pipelines.stream.show import Show

_log = logging.getLogger(__name__)

ALL_EXPORTS: tuple[Export, ...] = ("coco", "mot", "mots", "cvat")


class Segmenter(Protocol):
    """Frames in, identities out: an OnlineSegmenter, or what stands for one."""

    settings: Config

    def __call__(self, frame: Image, *, number: int, time: float) -> Instances: ...
    def finish(self) -> list[Track]: ...
    def entries(self, video_id: int = 1) -> Iterator[results.Entry]: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamConfig:
    """What is made of a source beside its results."""

    max_frames: int | None = None
    """Stop after so many frames. None: at the end of the source."""
    min_score: float = 0.3
    """Instances with a lower score in a frame are neither in the film nor in the rows of that
    frame, nor in exports. results.json has them."""
    classes: tuple[str, ...] = ()
    """Categories that are in film, rows and exports; empty: all."""
    film: bool = True
    """Write the annotated film."""
    rate: float | None = None
    """Frames a second of the film. None: that of the source, of an image folder 10."""
    style: Style = "overlay"
    """What is drawn in the film."""
    trail: int = 20
    """Frames that trails in the film reach back."""
    exports: tuple[Export, ...] = ALL_EXPORTS
    """Forms of other tools to write in the end."""

    def __post_init__(self) -> None:
        if self.max_frames is not None and self.max_frames < 1:
            raise ValueError(f"max_frames must be 1 or more, got {self.max_frames}")
        if self.rate is not None and not 0 < self.rate <= 1000:
            raise ValueError(f"rate must lie in (0, 1000] frames a second, got {self.rate}")
        if not 0.0 <= self.min_score <= 1.0:
            raise ValueError(f"min_score must lie in [0, 1], got {self.min_score}")
        if not 0 <= self.trail <= 10_000:
            raise ValueError(f"trail must lie in [0, 10000] frames, got {self.trail}")


@dataclass(slots=True)
class Summary:
    """What was made of a source so far; run updates it after every frame.

    tracks:  in the results; 0 until they are written
    seconds: from the first frame on
    drawn:   instances in film and rows, over all frames
    best:    score of the most certain instance of any frame, 0 where there is none
    written: files that are whole, in the order of their writing
    """

    frames: int = 0
    tracks: int = 0
    seconds: float = 0.0
    drawn: int = 0
    best: float = 0.0
    written: list[Path] = field(default_factory=list)

    def path(self, name: str) -> Path | None:
        """A written file by its name; None where it was not written."""
        return next((path for path in self.written if path.name == name), None)


def check(out: Path, *, overwrite: bool = False) -> None:
    """Make out and check that it can be written to; what is in it stays.

    Raises: ManifestError: it holds an earlier output, or cannot be written to.
    """
    old = _old(out)
    if old and not overwrite:
        todo = "Use another --out, or --overwrite to replace what is there."
        raise ManifestError(str(out), f"holds {' and '.join(old)} already", todo)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        reason = f"cannot be written ({error.strerror})"
        raise ManifestError(str(out), reason, "Use another --out.") from error


def prepare(out: Path, *, overwrite: bool = False) -> None:
    """Check out, and delete the earlier output in it. Raises: ManifestError: as check."""
    check(out, overwrite=overwrite)
    for name in _old(out):
        (out / name).unlink()


def _old(out: Path) -> list[str]:
    return [name for name in places.ALL if (out / name).exists()]


def check_classes(classes: Sequence[str], config: Config) -> tuple[str, ...]:
    """The categories of these names, as the network spells them.

    Raises: ValueError: it knows one of them not; the message has those that it knows.
    """
    known = config.categories or tuple(map(str, range(config.model.num_classes)))
    found = []
    for name in classes:
        match = next((one for one in known if same(one, name)), None)
        if match is None:
            raise ValueError(f"these weights know no class {name!r}. They know: {', '.join(known)}")
        found.append(match)
    return tuple(found)


def run(
    source: Source,
    segmenter: Segmenter,
    out: Path,
    config: StreamConfig,
    summary: Summary,
    show: Show | None = None,
) -> None:
    """Segment the source; write what config asks for to out, each file when it is whole.

    segmenter: fresh, with keep_tracks
    out:       as left by prepare
    summary:   updated after every frame, so that the caller has it after an error too
    show:      gets the pictures too
    Raises:
        SourceError: the source has no frames, does not go on, or changes its size.
        Exception: of the segmenter or the disk, KeyboardInterrupt too; what was segmented until
            then has been written.

    Memory holds one frame, some thousand rows, and of each frame of a track some hundred bytes.
    """
    classes = check_classes(config.classes, segmenter.settings)
    started = time.monotonic()
    known = [n for n in (source.frames, config.max_frames) if n is not None]
    address = shown(source.name)
    name = Path(address).name or address
    rate = config.rate or source.rate or FOLDER_RATE
    with Film(out / places.FILM, rate) as film, rows.RowWriter(out) as table:
        made = _Made(name, config, classes, film if config.film else None, table, show)
        try:
            frames = itertools.islice(_frames(source), config.max_frames)
            total = min(known, default=None)
            for frame in tqdm(frames, name, total, unit=" frames", dynamic_ncols=True):
                made.check_size(frame, source)
                found = segmenter(frame.image, number=frame.number, time=frame.time)
                shown_at = frame.time if source.endless else None
                summary.drawn += made.add(found, frame.image, shown_at)
                summary.best = max([summary.best, *found.scores.tolist()])
                summary.frames += 1
                summary.seconds = time.monotonic() - started
        finally:
            # Also after an error: one bad frame does not cost what was segmented before it.
            if made.numbers is not None:
                made.finish(out, segmenter, source, summary)
    if made.numbers is None:
        raise SourceError(f"{address} holds no frames.")


def _frames(source: Source) -> Iterator[Frame]:
    """The frames of a source; of a camera or stream those that there is time for.

    Of an endless source nobody can look up a frame again, so its frames are numbered as they are
    used; their times say what was left out.
    """
    if not source.endless:
        yield from source
        return
    with Feed(source) as feed:
        try:
            for place, frame in enumerate(feed):
                yield Frame(place * source.every, frame.time, frame.image)
        finally:
            if feed.dropped or feed.reopened:
                told = "%s: %d frames were left out, as newer ones had come; reopened %d times"
                _log.warning(told, shown(source.name), feed.dropped, feed.reopened)


class _Made:
    """What is made of a source while its frames come.

    film: None: none is written
    show: None: nobody looks
    """

    def __init__(
        self,
        name: str,
        config: StreamConfig,
        classes: Sequence[str],
        film: Film | None,
        table: rows.RowWriter,
        show: Show | None,
    ) -> None:
        self._name, self._config, self._classes = name, config, classes
        self._film, self._table, self._show = film, table, show
        self._painter = Painter(config.style, trail=config.trail)
        self._size = (0, 0)
        self.numbers: tuple[int, int] | None = None  # of the first and the last frame

    def check_size(self, frame: Frame, source: Source) -> None:
        """Raise SourceError where a frame's size is not that of those before it."""
        size = frame.image.shape[0], frame.image.shape[1]
        if self.numbers is None or size == self._size:
            return
        if source.images:
            image = f" ({source.images[frame.number].name})"
            todo = "Give the images of each video in a folder of their own, or resize these."
        else:
            image, (height, width) = "", self._size
            todo = f"Make them one size first: ffmpeg -i FILE -vf scale={width}:{height} NEW.mp4."
        raise SourceError(
            f"{shown(source.name)}: all frames of a video have one size; frame {frame.number}"
            f"{image} is {size} (height, width), those before it {self._size}. {todo}"
        )

    def add(self, found: Instances, image: Image, seconds: float | None) -> int:
        """Write the next frame, (H, W, 3) uint8 RGB; returns how many instances are in it.

        seconds: as of Film.add
        """
        wanted = found.scores >= self._config.min_score
        if self._classes:
            wanted &= np.isin(np.array(found.names, str), self._classes)
        shown = found.chosen(wanted)
        # Before the rows: an interrupt may come at any line, and no row may be of an unknown frame.
        self._size = found.size
        self.numbers = (self.numbers or (found.number, 0))[0], found.number
        self._table.add(rows.of_frame(self._name, shown))
        if self._film is not None or self._show is not None:
            picture = draw(self._painter, shown, image)
            if self._film is not None:
                self._film.add(picture, seconds)
            if self._show is not None:
                self._show.put(picture)
        return len(shown)

    def finish(self, out: Path, segmenter: Segmenter, source: Source, summary: Summary) -> None:
        """Write what can only be written in the end, the most precious first."""
        self._table.finish()
        summary.written += [out / places.ROWS, out / places.TABLE]
        results.write(out / places.RESULTS, segmenter.entries())
        summary.tracks = len(segmenter.finish())
        summary.written.append(out / places.RESULTS)
        if self._film is not None:
            self._film.finish()
            summary.written.append(out / places.FILM)
        assert self.numbers is not None, "a frame was added"
        about = exports.About(
            name=self._name,
            numbers=range(self.numbers[0], self.numbers[1] + 1, source.every),
            size=self._size,
            images=source.images,
            classes=segmenter.settings.categories,
        )
        summary.written += exports.write(out, about, self._config.exports)


def draw(painter: Painter, shown: Instances, image: Image) -> Image:
    """The picture of a frame; image: (H, W, 3) uint8 RGB."""
    minutes, seconds = divmod(0.0 if np.isnan(shown.time) else shown.time, 60)
    title = f"{int(minutes):02d}:{seconds:05.2f} frame {shown.number}"
    return painter.paint(
        image, shown.masks, shown.track_ids.tolist(), shown.names, shown.scores.tolist(), title
    )
