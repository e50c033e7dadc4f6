"""One video from its source to results and an annotated film, frame by frame, without Ray."""

from __future__ import annotations

import itertools
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from idol.images import visualize
from idol.segmenter import Instances, OnlineSegmenter
from idol.ytvis import results
from pipelines.errors import ManifestError, PipelineError
from pipelines.report.film import Film
from pipelines.sources.frames import Image
from pipelines.sources.live import Source

RESULTS = "results.json"
FILM = "annotated.mp4"
_RATE = 10.0  # frames a second of a film whose source names no rate
_READABLE = 480
"""Smaller pictures are enlarged in the film, for texts have a least size."""
_LARGEST = 1920
"""Pixels of the longer side up to which a picture is enlarged."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamConfig:
    """What is made of a stream beside its results."""

    max_frames: int | None = None
    """Stop after so many frames. None: at the end of the source."""
    film: bool = True
    """Write the annotated film."""
    rate: float | None = None
    """Frames a second of the film. None: that of the source, of an image folder 10."""
    drawn_score: float = 0.3
    """Instances with a lower score in a frame are not drawn there; the results have them."""

    def __post_init__(self) -> None:
        if self.max_frames is not None and self.max_frames < 1:
            raise ValueError(f"max_frames must be 1 or more, got {self.max_frames}")
        if self.rate is not None and not 0 < self.rate <= 1000:
            raise ValueError(f"rate must lie in (0, 1000] frames a second, got {self.rate}")
        if not 0.0 <= self.drawn_score <= 1.0:
            raise ValueError(f"the drawn score must lie in [0, 1], got {self.drawn_score}")


@dataclass(slots=True)
class Summary:
    """What was made of a stream so far; run updates it after every frame.

    tracks:  in the results; 0 until they are written
    seconds: from the first frame on
    drawn:   instances in the film, over all frames
    best:    score of the most certain instance of any frame, 0 where there is none
    results, film: None until they are written
    """

    frames: int = 0
    tracks: int = 0
    seconds: float = 0.0
    drawn: int = 0
    best: float = 0.0
    results: Path | None = None
    film: Path | None = None

    @property
    def frames_per_second(self) -> float:
        """Of everything: decoding, network, association, drawing."""
        return self.frames / self.seconds if self.seconds > 0 else 0.0


def prepare(out: Path, *, overwrite: bool = False) -> None:
    """Make out and check that it can be written to, before a network is loaded.

    Raises: ManifestError: it holds an earlier output, or cannot be written to.
    """
    old = [name for name in (RESULTS, FILM) if (out / name).exists()]
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
    for name in old:
        (out / name).unlink()


def run(
    source: Source, segmenter: OnlineSegmenter, out: Path, config: StreamConfig, summary: Summary
) -> None:
    """Segment the source; write RESULTS and FILM to out, each when it is whole.

    segmenter: fresh, with keep_tracks
    out:       as left by prepare
    summary:   updated after every frame, so that the caller has it after an error too
    Raises:
        PipelineError: the source has no frames.
        Exception: of the source, the segmenter or the disk, KeyboardInterrupt too; what was
            segmented until then has been written.

    Memory holds one frame and the tracks' compressed masks; nothing else grows.
    """
    started = time.monotonic()
    rate = config.rate or source.rate or _RATE
    with Film(out / FILM, rate) as film:
        try:
            images = itertools.islice(source, config.max_frames)
            known = [n for n in (source.frames, config.max_frames) if n is not None]
            shown, total = Path(source.name).name, min(known, default=None)
            for image in tqdm(images, shown, total, unit=" frames", dynamic_ncols=True):
                instances = segmenter(image)
                if config.film:
                    film.add(draw(image, instances, config.drawn_score))
                    summary.drawn += int((instances.scores >= config.drawn_score).sum())
                summary.best = max([summary.best, *instances.scores.tolist()])
                summary.frames = segmenter.frames
                summary.seconds = time.monotonic() - started
        finally:
            # Also after an error: one bad frame does not cost what was segmented before it.
            if segmenter.frames:
                results.write(out / RESULTS, segmenter.finish_ytvis())
                summary.tracks = len(segmenter.finish())
                summary.results = out / RESULTS
                if config.film:
                    film.finish()
                    summary.film = out / FILM
    if not segmenter.frames:
        raise PipelineError(f"{source.name} holds no frames.")


def draw(image: Image, instances: Instances, drawn_score: float) -> Image:
    """The frame with masks, boxes and captions, each identity in its colour.

    image:       (H, W, 3) uint8 RGB
    drawn_score: less certain instances are left out
    returns:     (zoom * H, zoom * W, 3) uint8 RGB; frames below 480 pixels are enlarged
    """
    short, long = sorted(image.shape[:2])
    # The most certain last, on top.
    rows = (instances.scores >= drawn_score).nonzero()[:, 0].tolist()[::-1]
    ids, scores = instances.track_ids.tolist(), instances.scores.tolist()
    return visualize.overlay(
        image,
        instances.masks[rows],
        [ids[row] for row in rows],
        [visualize.caption(instances.names[row], ids[row], scores[row]) for row in rows],
        boxes=instances.boxes[rows].numpy().astype(np.float64),
        zoom=max(1, min(round(_READABLE / short), _LARGEST // long)),
    )
