"""A mask as bytes, bits and counts, and boxes: codec, resizing, overlap. No network, no JSON."""

from typing import TYPE_CHECKING

from idol.lazy import attach

if TYPE_CHECKING:
    from idol.masks.boxes import box_iou, nms
    from idol.masks.resize import decode, encode
    from idol.masks.rle import compress, measure

__all__ = ["box_iou", "compress", "decode", "encode", "measure", "nms"]

__getattr__, __dir__ = attach(__name__)
