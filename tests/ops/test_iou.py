"""IoU and its kin against NumPy: bits, hostile boxes, gradients, dtypes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvision import ops

# Compiled whole: operation by operation takes ten times as long.
box_iou, generalized_box_iou, distance_box_iou, complete_box_iou = MEASURES = [
    jax.jit(measure)
    for measure in (
        ops.box_iou,
        ops.generalized_box_iou,
        ops.distance_box_iou,
        ops.complete_box_iou,
    )
]


def hostile_boxes(count, seed=0):
    """Boxes of any size, of whole numbers, repeated, without area, turned, not finite."""
    rng = np.random.default_rng(seed)
    corner = rng.uniform(-50, 500, (count, 2))
    boxes = np.concatenate([corner, corner + rng.exponential(100, corner.shape)], axis=1)
    boxes[::3] = np.round(boxes[::3] / 50)
    boxes[::5] = boxes[1]
    boxes[::7, 2], boxes[::11, 3] = boxes[::7, 0], boxes[::11, 1]
    boxes[::13] = boxes[::13, [2, 1, 0, 3]]
    boxes[::17, 0], boxes[::19, 3], boxes[::23] = np.nan, np.inf, 0
    return boxes.astype(np.float32)


def slow_iou(boxes1, boxes2):
    """float32, one operation after the other, as torchvision does them."""
    a, b = np.moveaxis(boxes1[:, None], -1, 0), np.moveaxis(boxes2[None], -1, 0)
    with np.errstate(all="ignore"):
        w = np.maximum(np.minimum(a[2], b[2]) - np.maximum(a[0], b[0]), 0)
        h = np.maximum(np.minimum(a[3], b[3]) - np.maximum(a[1], b[1]), 0)
        area1, area2 = ((x[2] - x[0]) * (x[3] - x[1]) for x in (a, b))
        return w * h / (area1 + area2 - w * h)


def test_iou_is_numpys_to_the_last_bit():
    """On the CPU; a multiplication and addition in one rounding changes 2 % of these."""
    boxes = hostile_boxes(1500)
    expected = slow_iou(boxes, boxes[:700])
    np.testing.assert_array_equal(box_iou(boxes, boxes[:700]), expected)
    np.testing.assert_array_equal(box_iou(boxes[:700], boxes), expected.T)
    assert np.isnan(expected).any()


def test_by_hand():
    boxes = np.array([[0, 0, 4, 4], [2, 2, 6, 6], [4, 0, 8, 4], [0, 0, 4, 2]], np.float32)
    np.testing.assert_allclose(box_iou(boxes[:1], boxes), [[1, 4 / 28, 0, 0.5]], rtol=1e-6)
    generalized = [1, 4 / 28 - 8 / 36, 0, 0.5]
    np.testing.assert_allclose(generalized_box_iou(boxes[:1], boxes), [generalized], rtol=1e-5)
    distance = np.array([1, 4 / 28 - 8 / 72, -16 / 80, 0.5 - 1 / 32])
    np.testing.assert_allclose(distance_box_iou(boxes[:1], boxes), [distance], rtol=1e-5)
    v = 4 / np.pi**2 * (np.arctan(2) - np.arctan(1)) ** 2
    distance[3] -= v / (0.5 + v) * v
    np.testing.assert_allclose(complete_box_iou(boxes[:1], boxes), [distance], rtol=1e-5)


def test_boxes_that_touch_or_are_turned_share_nothing():
    boxes = [[0, 0, 4, 4], [4, 0, 8, 4], [4, 4, 8, 8], [3, 1, 1, 3], [3, 3, 1, 1], [0, 0, 0, 0]]
    boxes = np.array(boxes, np.float32)
    assert box_iou(boxes[:1], boxes).tolist() == [[1, 0, 0, 0, 0, 0]]
    assert np.isnan(np.asarray(box_iou(boxes[-1:], boxes))[0, -1])


@pytest.mark.parametrize("measure", MEASURES)
def test_shapes_and_dtypes(measure):
    boxes = np.abs(hostile_boxes(7)).astype(jnp.bfloat16)
    pairs = measure(boxes, boxes[:3])
    assert pairs.dtype == jnp.float32
    wide = boxes.astype(np.float32)
    np.testing.assert_array_equal(pairs, measure(wide, wide[:3]))
    assert measure(boxes[:0], boxes).shape == (0, 7)
    batched = jax.vmap(measure)(np.stack([wide, wide]), np.stack([wide[:3], wide[3:6]]))
    np.testing.assert_allclose(np.asarray(batched)[0], pairs, rtol=1e-6)


@pytest.mark.parametrize("measure", MEASURES)
def test_gradients_equal_finite_differences(measure):
    boxes1 = np.array([[0, 0, 10, 9], [3, 2, 8, 14], [30, 30, 41, 40]], np.float32)
    boxes2 = np.array([[1, 2, 12, 8], [5, 5, 9, 17]], np.float32)
    if measure is complete_box_iou:
        # alpha has no gradient by definition: what is left is that of the distance IoU and of v.
        boxes2 = boxes1[:2] + 1
    numbers = np.concatenate([boxes1, boxes2])
    steps = 0.01 * np.eye(20, dtype=np.float32).reshape(20, 5, 4)

    @jax.jit
    def slopes_and_values(numbers, shifted):
        def value(numbers):
            return measure(numbers[:3], numbers[3:]).sum()

        return jax.grad(value)(numbers), jax.vmap(value)(shifted)

    shifted = np.concatenate([numbers + steps, numbers - steps])
    slopes, values = map(np.asarray, slopes_and_values(numbers, shifted))
    tolerance = 0.02 if measure is complete_box_iou else 2e-3
    np.testing.assert_allclose(slopes.ravel(), (values[:20] - values[20:]) / 0.02, atol=tolerance)
