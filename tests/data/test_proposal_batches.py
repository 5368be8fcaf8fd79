"""Proposals in detection batches: they move with the picture, and are padded."""

import numpy as np
import pytest

from jaxvision.data import compose
from jaxvision.data.batch_shapes import MultiScale
from jaxvision.data.detection import DetectionDataset, Objects
from jaxvision.data.detection_batches import DetectionBatches
from jaxvision.data.detection_geometry import Placement, flip, place
from jaxvision.data.detection_transforms import (
    letterbox,
    random_flip,
    random_iou_crop,
    resize_shortest_side,
    scale_jitter,
)
from jaxvision.data.mosaic import mosaic
from jaxvision.data.proposals import Proposals

BOXES = np.array([[2, 1, 8, 6], [0, 0, 16, 12], [10, 4, 15, 11]], np.float32)


def scenes(counts=(3, 1, 2), size=(12, 16)):
    """Each object's box is a proposal as well, so that what moves together is known."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (len(counts), *size, 3), dtype=np.uint8)
    objects = [Objects.of(BOXES[:count].tolist(), [0] * count) for count in counts]
    dataset = DetectionDataset(
        images=images,
        names=tuple(f"{i}.png" for i in range(len(counts))),
        image_ids=np.arange(len(counts)),
        objects=tuple(objects),
        class_names=("one",),
        name="scenes",
        split="train",
        source="made",
    )
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return dataset, Proposals(np.concatenate([BOXES[:count] for count in counts]), offsets)


TRANSFORMS = {
    "none": None,
    "flip": random_flip(0.5, 0.5),
    "jitter": compose(random_flip(), scale_jitter((16, 16), (0.8, 1.6), spread=True)),
    "letterbox": letterbox((20, 24)),
    "crop": compose(random_iou_crop(), letterbox((16, 16))),
}


@pytest.mark.parametrize("transform", list(TRANSFORMS))
def test_proposals_move_as_the_boxes_do(transform):
    dataset, proposals = scenes()
    batches = DetectionBatches(
        dataset, 3, transform=TRANSFORMS[transform], proposals=proposals, seed=3
    )
    changed = False
    for step in range(6):
        batch = batches(step)
        assert batch["proposals"].dtype == np.float32
        assert batch["proposals"].shape == (3, 3, 4)
        for i in range(3):
            here = batch["proposals"][i][batch["proposal_valid"][i]]
            boxes = {tuple(box) for box in batch["boxes"][i][batch["box_valid"][i]].tolist()}
            # An object may go, by what a cut leaves; a proposal goes only where nothing is left.
            assert boxes <= {tuple(box) for box in here.tolist()}
            assert not batch["proposals"][i][~batch["proposal_valid"][i]].any()
            changed |= not {tuple(box) for box in here.tolist()} <= {tuple(x) for x in BOXES}
    assert changed == (transform != "none")


def test_by_hand():
    example = {"image": np.zeros((12, 16, 3), np.uint8), "boxes": np.zeros((0, 4), np.float32)}
    example |= {"labels": np.zeros(0, np.int32), "difficult": np.zeros(0, bool)}
    example["proposals"] = BOXES
    mirrored = flip(example, horizontal=True)["proposals"]
    assert mirrored.tolist() == [[8, 1, 14, 6], [0, 0, 16, 12], [1, 4, 6, 11]]
    cut = place(example, Placement((12, 16), (24, 32), (20, 16), (-2, 0)))["proposals"]
    # Twice as large, two rows higher; the last lies to the right of the canvas.
    assert cut.tolist() == [[4, 0, 16, 10], [0, 0, 16, 20]]


def test_as_many_as_asked_for_the_first_ones():
    dataset, proposals = scenes()
    plain = DetectionBatches(dataset, 3, shuffle=False, proposals=proposals, num_proposals=2)
    moved = DetectionBatches(
        dataset,
        3,
        shuffle=False,
        proposals=proposals,
        num_proposals=2,
        transform=letterbox((12, 16)),
    )
    for batch in (plain(0), moved(0)):
        assert batch["proposal_valid"].tolist() == [[True, True], [True, False], [True, True]]
        np.testing.assert_array_equal(batch["proposals"][0], BOXES[:2])
        np.testing.assert_array_equal(batch["proposals"][1], [BOXES[0], [0] * 4])


def test_in_buckets_and_at_several_sizes():
    dataset, proposals = scenes()
    buckets = DetectionBatches(
        dataset,
        3,
        shuffle=False,
        proposals=proposals,
        transform=resize_shortest_side(24, 32),
        buckets=[(32, 32)],
    )
    np.testing.assert_array_equal(buckets(0)["proposals"][0], 2 * BOXES)
    scaled = DetectionBatches(
        dataset, 3, shuffle=False, proposals=proposals, multi_scale=MultiScale([(6, 16)])
    )
    np.testing.assert_allclose(scaled(0)["proposals"][0], BOXES * [1, 0.5, 1, 0.5])


def test_pictures_without_proposals():
    dataset, _ = scenes((1, 1))
    nothing = Proposals(np.zeros((0, 4), np.float32), np.zeros(3, np.int64))
    batch = DetectionBatches(dataset, 2, proposals=nothing, transform=letterbox((8, 8)))(0)
    assert batch["proposals"].shape == (2, 1, 4)
    assert not batch["proposal_valid"].any()


def test_what_cannot_be_is_refused():
    dataset, proposals = scenes()
    with pytest.raises(ValueError, match="expected proposals of 2 pictures, got of 3"):
        DetectionBatches(dataset.subset(np.arange(2)), 2, proposals=proposals)
    with pytest.raises(ValueError, match="expected proposals or a mix"):
        DetectionBatches(dataset, 2, proposals=proposals, mix=mosaic((16, 16)))
    with pytest.raises(ValueError, match="with proposals, has no arrays"):
        DetectionBatches(dataset, 2, proposals=proposals).arrays()
