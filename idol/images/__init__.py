"""Pixels without a network: augmentation, drawing, synthetic videos and data sets."""

from typing import TYPE_CHECKING

from idol.lazy import attach

if TYPE_CHECKING:
    from idol.images.synthetic import SyntheticConfig, SyntheticVideo, make_video
    from idol.images.synthetic_dataset import write_dataset
    from idol.images.transforms import Clip, Frame, augment, collate, collate_images, normalise
    from idol.images.visualize import overlay

__all__ = [
    "Clip",
    "Frame",
    "SyntheticConfig",
    "SyntheticVideo",
    "augment",
    "collate",
    "collate_images",
    "make_video",
    "normalise",
    "overlay",
    "write_dataset",
]

__getattr__, __dir__ = attach(__name__)
