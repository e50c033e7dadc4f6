"""What one frame of a stream holds: the instances that have an identity, as NumPy arrays.

for result in idol.track("video.mp4", "shipped"):
    result.boxes, result.masks, result.track_ids, result.names
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from idol.arrays import Bools, Floats32, Ints
from idol.masks import rle

if TYPE_CHECKING:
    import supervision

Image = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class Instances:
    """The n instances of one frame that have an identity, in descending score.

    frame_index:  position in the stream, from 0
    size:         (height, width) of the frame
    track_ids:    (n,)   int64, the same number for the same object in every frame
    labels:       (n,)   int64, best class by the mean scores of the object's frames so far, so that
                  one doubtful frame does not rename it
    scores:       (n,)   float32, score of the best class in this frame
    class_scores: (n, K) float32, of this frame
    boxes:        (n, 4) float32 xyxy, pixels: tight boxes of the masks
    counts:       n compressed RLE counts; `masks` decodes them
    names:        n category names, or the labels' numbers where the model has no names
    image:        (H, W, 3) uint8 RGB, the frame; None where only detections were given
    number:       of the frame in its source, which differs from frame_index where frames are left
                  out
    time:         seconds since the beginning of the source; NaN where nothing says so
    """

    frame_index: int
    size: tuple[int, int]
    track_ids: Ints
    labels: Ints
    scores: Floats32
    class_scores: Floats32
    boxes: Floats32
    counts: tuple[bytes, ...] = field(repr=False)
    names: tuple[str, ...] = ()
    image: Image | None = field(default=None, repr=False)
    number: int = 0
    time: float = float("nan")

    def __len__(self) -> int:
        return len(self.track_ids)

    @property
    def masks(self) -> Bools:
        """(n, H, W) bool, at the size of the frame; decoded at every reading."""
        return rle.decode_masks(self.counts, self.size).astype(np.bool_)

    @property
    def areas(self) -> Ints:
        """(n,) int64, pixels of the masks."""
        return rle.measure(self.counts)[1]

    def chosen(self, rows: Bools | Ints) -> Instances:
        """These rows alone; rows: (n,) bool, or the numbers of some."""
        places = np.arange(len(self))[rows].tolist()
        arrays = ("track_ids", "labels", "scores", "class_scores", "boxes")
        parts = {name: getattr(self, name)[places] for name in arrays}
        counts = tuple(self.counts[i] for i in places)
        names = tuple(self.names[i] for i in places)
        kept = {name: getattr(self, name) for name in ("frame_index", "size", "image")}
        return Instances(
            **kept, **parts, counts=counts, names=names, number=self.number, time=self.time
        )

    def to_coco(self, category_ids: tuple[int, ...] | None = None) -> list[dict[str, Any]]:
        """As annotations of COCO's results form, with `track_id`; image_id is frame_index.

        category_ids: (K,) of the labels; None: label + 1
        """
        corners = self.boxes.astype(float).reshape(-1, 4)
        boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
        return [
            {
                "image_id": self.frame_index,
                "category_id": label + 1 if category_ids is None else category_ids[label],
                "track_id": track_id,
                "score": score,
                "bbox": box,
                "area": area,
                "segmentation": {"size": list(self.size), "counts": counts.decode("ascii")},
            }
            for label, track_id, score, box, area, counts in zip(
                self.labels.tolist(),
                self.track_ids.tolist(),
                self.scores.tolist(),
                boxes.tolist(),
                self.areas.tolist(),
                self.counts,
                strict=True,
            )
        ]

    def to_supervision(self) -> supervision.Detections:
        """As `supervision.Detections`, with masks, tracker_id and data["class_name"].

        Raises: ModuleNotFoundError: the library is not installed.
        """
        try:
            import supervision
        except ModuleNotFoundError as error:
            error.add_note("pip install supervision; it is no dependency of this package.")
            raise
        return supervision.Detections(
            xyxy=self.boxes.astype(np.float32),
            mask=self.masks,
            confidence=self.scores,
            class_id=self.labels.astype(int),
            tracker_id=self.track_ids.astype(int),
            data={"class_name": np.array(self.names, str)},
        )

    def plot(self, *, min_score: float = 0.0) -> Image:
        """The frame with masks, outlines, boxes and captions, (zoom * H, zoom * W, 3) uint8 RGB;
        frames below 480 pixels are enlarged.

        min_score: instances below it are left out
        Raises: ValueError: the frame was not kept.
        """
        from idol.images.painter import Painter

        if self.image is None:
            raise ValueError("these instances come without their frame, so nothing can be drawn on")
        shown = self.chosen(self.scores >= min_score)
        return Painter(trail=0, legend=False).paint(
            self.image, shown.masks, shown.track_ids.tolist(), shown.names, shown.scores.tolist()
        )
