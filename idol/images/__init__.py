"""Pixels without a network: augmentation, drawing, synthetic videos."""

from typing import TYPE_CHECKING

from idol.lazy import attach

if TYPE_CHECKING:
    from idol.images.synthetic import SyntheticConfig, SyntheticVideo, make_video, write_dataset
    from idol.images.transforms import Pair, augment, collate, collate_images, normalise
    from idol.images.visualize import overlay

__all__ = [
    "Pair",
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

__getattr__, __dir__ = attach(
    __name__,
    {
        "Pair": "idol.images.transforms",
        "SyntheticConfig": "idol.images.synthetic",
        "SyntheticVideo": "idol.images.synthetic",
        "augment": "idol.images.transforms",
        "collate": "idol.images.transforms",
        "collate_images": "idol.images.transforms",
        "make_video": "idol.images.synthetic",
        "normalise": "idol.images.transforms",
        "overlay": "idol.images.visualize",
        "write_dataset": "idol.images.synthetic",
    },
)
