"""YOLO v1's outputs: what they mean, by hand and against loops over cells."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvision import ops
from jaxvision.ops.yolov1 import cell_boxes, split_yolov1

CLASSES = 3
decode_yolov1 = jax.jit(ops.decode_yolov1, static_argnums=(2,), static_argnames="bounded")


def raw_outputs(b=2, rows=3, columns=4, n=2, seed=0):
    shape = (b, rows, columns, 5 * n + CLASSES)
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def slow_decode(outputs, size, bounded):
    """The paper's section 2, a box at a time."""
    b, rows, columns, channels = outputs.shape
    h, w = size
    n = (channels - CLASSES) // 5
    boxes, scores = [], []
    for picture in np.asarray(outputs, np.float64):
        for row in range(rows):
            for column in range(columns):
                cell = picture[row, column]
                classes = cell[5 * n :]
                if bounded:
                    classes = np.exp(classes) / np.exp(classes).sum()
                for j in range(n):
                    x, y, root_w, root_h, confidence = (
                        1 / (1 + np.exp(-v)) if bounded else v for v in cell[5 * j : 5 * j + 5]
                    )
                    x, y = (column + x) / columns * w, (row + y) / rows * h
                    half_w, half_h = root_w**2 * w / 2, root_h**2 * h / 2
                    boxes.append([x - half_w, y - half_h, x + half_w, y + half_h])
                    scores.append([max(confidence, 0) * max(p, 0) for p in classes])
    return np.reshape(boxes, (b, -1, 4)), np.reshape(scores, (b, -1, CLASSES))


@pytest.mark.parametrize("bounded", [False, True])
def test_decoding_equals_loops(bounded):
    outputs = raw_outputs()
    boxes, scores = decode_yolov1(outputs, (96, 160), CLASSES, bounded=bounded)
    expected_boxes, expected_scores = slow_decode(outputs, (96, 160), bounded)
    assert boxes.shape == (2, 3 * 4 * 2, 4)
    np.testing.assert_allclose(boxes, expected_boxes, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(scores, expected_scores, rtol=1e-5, atol=1e-6)


def test_one_box_by_hand():
    """In the second cell of the first row of 2 x 2: its middle, half as wide as the picture."""
    outputs = jnp.zeros((1, 2, 2, 5 + CLASSES))
    outputs = outputs.at[0, 0, 1].set(jnp.array([0.5, 0.5, 0.5**0.5, 0.5, 0.6, 0.5, 0.0, 0.25]))
    boxes, scores = decode_yolov1(outputs, (100, 200), CLASSES)
    np.testing.assert_allclose(boxes[0, 1], [100, 12.5, 200, 37.5], rtol=1e-5)
    np.testing.assert_allclose(scores[0, 1], [0.3, 0, 0.15], rtol=1e-6)
    # An empty cell's boxes are points in its corner, of score 0.
    np.testing.assert_allclose(boxes[0, 2], [0, 50, 0, 50])
    assert float(scores[0, 2].sum()) == 0


def test_two_negative_numbers_make_no_score():
    outputs = jnp.full((1, 1, 1, 5 + CLASSES), -0.5)
    boxes, scores = decode_yolov1(outputs, (10, 10), CLASSES)
    assert float(jnp.abs(scores).max()) == 0
    np.testing.assert_allclose(boxes[0, 0], [-6.25, -6.25, -3.75, -3.75])  # a root is squared


def test_bounded_outputs_stay_in_their_cells():
    outputs = 30 * raw_outputs(seed=1)
    parts = split_yolov1(outputs, CLASSES, bounded=True)
    assert all(0 <= float(p.min()) <= float(p.max()) <= 1 for p in parts)
    np.testing.assert_allclose(parts.class_scores.sum(axis=-1), 1, rtol=1e-5)
    boxes = cell_boxes(parts.centers, parts.size_roots)
    column = jnp.arange(4).reshape(1, 1, 4, 1)
    centers = (boxes[..., 0] + boxes[..., 2]) / 2 * 4
    assert bool(((centers >= column - 1e-5) & (centers <= column + 1 + 1e-5)).all())


def test_half_precision_is_decoded_in_full():
    outputs = raw_outputs().astype(jnp.bfloat16)
    boxes, scores = decode_yolov1(outputs, (448, 448), CLASSES)
    expected, _ = decode_yolov1(outputs.astype(jnp.float32), (448, 448), CLASSES)
    assert (boxes.dtype, scores.dtype) == (jnp.float32, jnp.float32)
    np.testing.assert_array_equal(boxes, expected)


def test_sizes_may_be_traced_and_one_compile_serves_all():
    decode = jax.jit(lambda outputs, size: ops.decode_yolov1(outputs, size, CLASSES))
    results = [decode(raw_outputs(), (h, w))[0] for h, w in ((64, 64), (128, 64))]
    assert decode._cache_size() == 1
    scale = jnp.array([[[1.0, 2.0, 1.0, 2.0]]])
    np.testing.assert_allclose(results[1], results[0] * scale, rtol=1e-5)


@pytest.mark.parametrize("channels", [CLASSES, CLASSES + 4, CLASSES + 11])
def test_channels_must_be_boxes_and_classes(channels):
    with pytest.raises(ValueError, match=f"got {channels} for 3 classes"):
        ops.decode_yolov1(jnp.zeros((1, 2, 2, channels)), (8, 8), CLASSES)
