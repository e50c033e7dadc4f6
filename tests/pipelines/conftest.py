"""A small dataset on disk, made to be damaged."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco

SIZE = (24, 36)


def rectangle(left: int, top: int, right: int, bottom: int) -> dict[str, Any]:
    """A compressed RLE of a filled rectangle, as JSON has it."""
    mask = np.zeros(SIZE, np.uint8, order="F")
    mask[top:bottom, left:right] = 1
    encoded = coco.encode(mask)
    return {"size": list(SIZE), "counts": encoded["counts"].decode()}


@dataclass
class Videos:
    """Frames under `folder`/JPEGImages and the JSON that goes with them, not yet written."""

    folder: Path
    content: dict[str, Any]

    def frame(self, video_id: int, index: int) -> Path:
        return self.folder / "JPEGImages" / f"v{video_id}" / f"{index:03d}.jpg"

    def write(self) -> Path:
        path = self.folder / "instances.json"
        path.write_text(json.dumps(self.content))
        return path


@pytest.fixture
def make_videos(tmp_path: Path) -> Callable[..., Videos]:
    """make_videos(lengths, folder="data"): one video per length, two moving objects each.

    Object 1 of a video is a car, absent from frame 0; object 2 is a person.
    """

    def make(lengths: list[int], folder: str = "data") -> Videos:
        root = tmp_path / folder
        rng = np.random.default_rng(0)
        content: dict[str, Any] = {
            "videos": [],
            "categories": [{"id": 7, "name": "car"}, {"id": 3, "name": "person"}],
            "annotations": [],
        }
        videos = Videos(root, content)
        for video_id, length in enumerate(lengths, start=1):
            names = [f"v{video_id}/{i:03d}.jpg" for i in range(length)]
            content["videos"].append(
                {
                    "id": video_id,
                    "height": SIZE[0],
                    "width": SIZE[1],
                    "length": length,
                    "file_names": names,
                }
            )
            for number, category in ((1, 7), (2, 3)):
                content["annotations"].append(
                    {
                        "id": 10 * video_id + number,
                        "video_id": video_id,
                        "category_id": category,
                        "iscrowd": 0,
                        "segmentations": [
                            None
                            if number == 1 and i == 0
                            else rectangle(i + number, 4, i + number + 6, 12)
                            for i in range(length)
                        ],
                    }
                )
            for i in range(length):
                path = videos.frame(video_id, i)
                path.parent.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(path), rng.integers(0, 255, (*SIZE, 3), dtype=np.uint8))
        return videos

    return make


@pytest.fixture
def make_images(make_videos: Callable[..., Videos]) -> Callable[..., Videos]:
    """As make_videos, with every frame an image of its own, as COCO has them."""

    def make(lengths: list[int]) -> Videos:
        videos = make_videos(lengths)
        content = videos.content
        images, annotations = [], []
        for video in content.pop("videos"):
            for index, name in enumerate(video["file_names"]):
                image_id = 100 * video["id"] + index
                images.append(
                    {"id": image_id, "file_name": name, "height": SIZE[0], "width": SIZE[1]}
                )
                for item in content["annotations"]:
                    mask = item["segmentations"][index] if item["video_id"] == video["id"] else None
                    if mask is not None:
                        annotations.append(
                            {
                                "id": 1000 * item["id"] + index,
                                "image_id": image_id,
                                "category_id": item["category_id"],
                                "iscrowd": 0,
                                "segmentation": mask,
                            }
                        )
        content["images"], content["annotations"] = images, annotations
        return videos

    return make
