"""What a frame gives: NumPy throughout, and the forms of other tools, read back by them."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from idol.instances import Instances
from idol.masks import rle

SIZE = (40, 60)


def instances(image: bool = True) -> Instances:
    """Two rectangles: cat 7 above, dog 3."""
    masks = np.zeros((2, *SIZE), bool)
    masks[0, 5:15, 10:30] = True
    masks[1, 20:35, 40:50] = True
    counts = tuple(rle.encode_masks(masks))
    return Instances(
        frame_index=4,
        size=SIZE,
        track_ids=np.array([7, 3]),
        labels=np.array([0, 1]),
        scores=np.array([0.9, 0.4], np.float32),
        class_scores=np.array([[0.9, 0.1], [0.2, 0.4]], np.float32),
        boxes=rle.boxes(counts, SIZE),
        counts=counts,
        names=("cat", "dog"),
        image=np.full((*SIZE, 3), 90, np.uint8) if image else None,
        number=8,
        time=0.8,
    )


def test_boxes_are_those_of_the_masks_and_areas_their_pixels() -> None:
    found = instances()
    assert found.boxes.tolist() == [[10, 5, 30, 15], [40, 20, 50, 35]]
    assert found.areas.tolist() == [200, 150]
    assert found.masks.sum(axis=(1, 2)).tolist() == [200, 150]
    arrays = (found.track_ids, found.labels, found.scores, found.boxes, found.masks, found.areas)
    assert all(isinstance(array, np.ndarray) for array in arrays)


@pytest.mark.parametrize("rows", [np.array([False, True]), np.array([1])])
def test_rows_are_chosen_with_all_that_belongs_to_them(rows: np.ndarray) -> None:
    chosen = instances().chosen(rows)
    assert len(chosen) == 1
    assert (chosen.names, chosen.track_ids.tolist()) == (("dog",), [3])
    assert (chosen.number, chosen.time, chosen.frame_index) == (8, 0.8, 4)
    assert chosen.masks.shape == (1, *SIZE)
    assert len(chosen.chosen(np.array([False]))) == 0


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_coco_annotations_are_read_by_pycocotools() -> None:
    found = instances().to_coco((11, 12))
    assert [one["category_id"] for one in found] == [11, 12]
    assert [one["category_id"] for one in instances().to_coco()] == [1, 2]
    for one, mask in zip(found, instances().masks, strict=True):
        np.testing.assert_array_equal(coco_mask.decode(one["segmentation"]).astype(bool), mask)
        assert coco_mask.area(one["segmentation"]) == one["area"]
        assert coco_mask.toBbox(one["segmentation"]).tolist() == one["bbox"]
    assert instances().chosen(np.array([], np.int64)).to_coco() == []


def test_detections_of_supervision_have_masks_and_identities() -> None:
    supervision = pytest.importorskip("supervision")
    found = instances().to_supervision()
    assert isinstance(found, supervision.Detections)
    assert found.tracker_id.tolist() == [7, 3]
    assert found.data["class_name"].tolist() == ["cat", "dog"]
    only = found[found.tracker_id == 3]
    np.testing.assert_array_equal(only.mask[0], instances().masks[1])
    picture = supervision.BoxAnnotator().annotate(np.zeros((*SIZE, 3), np.uint8), found)
    assert picture.any()
    assert len(instances().chosen(np.array([], np.int64)).to_supervision()) == 0


def test_without_supervision_its_form_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ModuleNotFoundError) as caught:
        instances().to_supervision()
    assert "pip install supervision" in caught.value.__notes__[0]


def test_a_plot_shows_the_instances_above_a_score_on_their_frame() -> None:
    found = instances()
    both, one, none = (found.plot(min_score=score) for score in (0.0, 0.5, 1.0))
    assert both.shape == (12 * SIZE[0], 12 * SIZE[1], 3)
    assert (none == 90).all()
    changed = [(picture != 90).any(axis=2).sum() for picture in (both, one)]
    assert changed[0] > changed[1] > 0
    with pytest.raises(ValueError, match="without their frame"):
        instances(image=False).plot()
