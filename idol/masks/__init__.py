"""A mask as bytes, bits and counts, and boxes: codec, resizing, IoU. No network, no JSON."""

from typing import TYPE_CHECKING

from idol.lazy import attach

if TYPE_CHECKING:
    from idol.masks.boxes import box_iou, nms
    from idol.masks.iou import mask_iou
    from idol.masks.rle import compress, decode_masks, encode_masks, measure

__all__ = [
    "box_iou",
    "compress",
    "decode_masks",
    "encode_masks",
    "mask_iou",
    "measure",
    "nms",
]

__getattr__, __dir__ = attach(__name__)
