"""Box formats, clipping, R-CNN's coder, and boxes that move with their picture."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvision import ops
from jaxvision.ops.boxes import MAX_LOG_SCALE

# Compiled whole: operation by operation takes ten times as long.
clip_boxes = jax.jit(ops.clip_boxes, static_argnums=1)
encode_boxes = jax.jit(ops.encode_boxes, static_argnums=2, static_argnames="weights")
decode_boxes = jax.jit(ops.decode_boxes, static_argnums=2)
rotate_boxes = jax.jit(ops.rotate_boxes, static_argnums=1)

CONVERSIONS = ["xyxy_to_xywh", "xywh_to_xyxy", "xyxy_to_cxcywh", "cxcywh_to_xyxy"]
CONVERSIONS += ["xywh_to_cxcywh", "cxcywh_to_xywh"]


def random_boxes(*shape, seed=0, scale=40.0):
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, scale, (*shape, 2))
    sides = rng.uniform(1, scale, (*shape, 2))
    return np.concatenate([corner, corner + sides], axis=-1).astype(np.float32)


@pytest.mark.parametrize("name", CONVERSIONS)
def test_each_conversion_says_the_same_box(name):
    source, target = name.split("_to_")
    box = {"xyxy": [2.0, 3.0, 12.0, 7.0], "xywh": [2.0, 3.0, 10.0, 4.0]}
    box["cxcywh"] = [7.0, 5.0, 10.0, 4.0]
    boxes = np.broadcast_to(np.array(box[source], np.float32), (2, 3, 4))
    convert = jax.jit(getattr(ops, name))
    converted = np.asarray(convert(boxes))
    assert converted.shape == (2, 3, 4)
    assert converted[1, 2].tolist() == box[target]
    narrow = convert(boxes.astype(jnp.bfloat16))
    assert narrow.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(narrow).astype(np.float32), converted)


@pytest.mark.parametrize("name", CONVERSIONS)
def test_conversions_undo_each_other(name):
    source, target = name.split("_to_")
    boxes = random_boxes(50)
    back = getattr(ops, f"{target}_to_{source}")(getattr(ops, name)(boxes))
    np.testing.assert_allclose(back, boxes, rtol=1e-6, atol=1e-5)


def test_area_and_least_size():
    boxes = [[0, 0, 3, 5], [2, 2, 2, 9], [5, 0, 3, 4], [0, np.nan, 9, 9]]
    boxes = np.array(boxes, np.float32)
    assert ops.box_area(boxes).tolist()[:3] == [15, 0, -8]
    assert ops.box_area(boxes.astype(jnp.bfloat16)).dtype == jnp.float32
    assert ops.boxes_at_least(boxes, 3).tolist() == [True, False, False, False]
    assert ops.boxes_at_least(boxes, 0.0).tolist() == [True, True, False, False]


def test_clipping_keeps_what_is_inside():
    boxes = [[-3.0, -4, 25, 12], [1, 2, 3, 4], [30, -9, 40, -2], [np.nan, 0, 99, 99]]
    boxes = np.array(boxes, np.float32)
    clipped = np.asarray(clip_boxes(boxes, (10, 20)))
    assert clipped[:3].tolist() == [[0, 0, 20, 10], [1, 2, 3, 4], [20, 0, 20, 0]]
    assert np.isnan(clipped[3, 0])  # a diverged box must not turn into a fine one
    sizes = np.array([[10, 20], [100, 200]], np.int32)
    clip_to = jax.jit(jax.vmap(lambda size: ops.clip_boxes(boxes[0], (size[0], size[1]))))
    batched = clip_to(sizes)
    assert batched.tolist() == [[0, 0, 20, 10], [0, 0, 25, 12]]


def test_clipping_passes_gradients_inside_and_on_the_border():
    boxes = np.array([0.0, -1.0, 20.0, 5.0], np.float32)
    gradient = jax.jit(jax.grad(lambda x: clip_boxes(x, (10, 20)).sum()))
    assert gradient(boxes).tolist() == [1, 0, 1, 1]


# ------------------------------------------------------------------------------------- the coder
def test_coder_by_hand():
    anchor, box = np.array([[10, 10, 20, 30], [11, 10, 31, 20]], np.float32)
    # From a centre of (15, 20), 10 wide and 20 high, to (21, 15), 20 wide and 10 high.
    expected = [0.6, -0.25, np.log(2), -np.log(2)]
    np.testing.assert_allclose(encode_boxes(box, anchor), expected, rtol=1e-6)
    weighted = encode_boxes(box, anchor, weights=(10, 10, 5, 5))
    np.testing.assert_allclose(weighted, np.array(expected) * [10, 10, 5, 5], rtol=1e-6)


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)])
def test_decoding_undoes_encoding(weights):
    boxes, anchors = random_boxes(200), random_boxes(200, seed=1)
    decoded = decode_boxes(encode_boxes(boxes, anchors, weights), anchors, weights)
    np.testing.assert_allclose(decoded, boxes, rtol=1e-5, atol=1e-4)


def test_decoded_sides_are_limited():
    anchor = np.array([0.0, 0.0, 16.0, 16.0], np.float32)
    decoded = np.asarray(decode_boxes(np.array([0, 0, 1e9, MAX_LOG_SCALE], np.float32), anchor))
    np.testing.assert_allclose(decoded[2:] - decoded[:2], [1000, 1000], rtol=1e-5)
    # At the limit the gradient passes, beyond it is zero.
    gradient_of = jax.jit(jax.grad(lambda d: decode_boxes(d, anchor)[2:].sum()))
    gradient = np.asarray(gradient_of(np.array([0, 0, 9, MAX_LOG_SCALE], np.float32)))
    assert gradient[2] == 0
    assert gradient[3] > 0


def test_deltas_of_many_classes_broadcast():
    anchors = random_boxes(5)
    deltas = np.random.default_rng(0).normal(size=(5, 3, 4)).astype(np.float32)
    boxes = np.asarray(decode_boxes(deltas, anchors[:, None]))
    assert boxes.shape == (5, 3, 4)
    np.testing.assert_allclose(boxes[:, 1], decode_boxes(deltas[:, 1], anchors), rtol=1e-6)


def test_bfloat16_deltas_of_float32_anchors_give_float32_boxes():
    anchors = random_boxes(5, scale=1000.0)
    deltas = np.random.default_rng(0).normal(size=(5, 4)).astype(jnp.bfloat16)
    boxes = decode_boxes(deltas, anchors)
    assert boxes.dtype == jnp.float32
    np.testing.assert_array_equal(boxes, decode_boxes(deltas.astype(np.float32), anchors))
    narrow = np.asarray(boxes).astype(jnp.bfloat16)
    assert encode_boxes(narrow, anchors).dtype == jnp.bfloat16


# -------------------------------------------------------------------------- along with a picture
def box_around(picture):
    """The box around the pixels that are not zero."""
    rows, columns = np.flatnonzero(picture.any(axis=1)), np.flatnonzero(picture.any(axis=0))
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


def painted(size=(7, 11)):
    """Yields (picture, its box): a filled box on an empty picture."""
    rng = np.random.default_rng(0)
    for _ in range(10):
        picture = np.zeros(size)
        y1, x1 = rng.integers(0, 6), rng.integers(0, 10)
        y2, x2 = rng.integers(y1 + 1, 8), rng.integers(x1 + 1, 12)
        picture[y1:y2, x1:x2] = 1
        yield picture, np.array([x1, y1, x2, y2], np.float32)


def test_flips_follow_the_picture():
    for picture, box in painted():
        assert ops.flip_boxes_horizontally(box, 11).tolist() == box_around(picture[:, ::-1])
        assert ops.flip_boxes_vertically(box, 7).tolist() == box_around(picture[::-1])


@pytest.mark.parametrize("turns", range(-1, 5))
def test_quarter_turns_follow_the_picture(turns):
    for picture, box in painted():
        turned = np.rot90(picture, turns)
        assert ops.rotate_boxes_90(box, (7, 11), turns).tolist() == box_around(turned)


def test_scaling_follows_the_picture():
    for picture, box in painted():
        larger = np.repeat(np.repeat(picture, 2, axis=0), 3, axis=1)
        assert ops.scale_boxes(box, (7, 11), (14, 33)).tolist() == box_around(larger)
        back = ops.scale_boxes(ops.scale_boxes(box, (7, 11), (100, 301)), (100, 301), (7, 11))
        np.testing.assert_allclose(back, box, atol=1e-5)


def test_rotation_by_quarter_turns_about_the_centre_of_a_square():
    boxes = random_boxes(20)
    for turns in range(-2, 4):
        rotated = rotate_boxes(boxes, (64, 64), np.float32(90 * turns))
        np.testing.assert_allclose(rotated, ops.rotate_boxes_90(boxes, (64, 64), turns), atol=1e-4)


def test_rotation_encloses_the_turned_corners():
    boxes, (h, w), degrees = random_boxes(20), (50, 80), np.linspace(-300, 300, 20)
    rotate = jax.jit(jax.vmap(lambda box, angle: ops.rotate_boxes(box, (h, w), angle)))
    rotated = np.asarray(rotate(boxes, degrees.astype(np.float32)))
    for box, angle, got in zip(boxes, np.deg2rad(degrees), rotated, strict=True):
        x, y = box[[0, 2, 0, 2]] - w / 2, box[[1, 1, 3, 3]] - h / 2
        # Anticlockwise on the screen, where y points down.
        turned = np.stack([x * np.cos(angle) + y * np.sin(angle) + w / 2])
        turned = np.append(turned, [y * np.cos(angle) - x * np.sin(angle) + h / 2], axis=0)
        expected = [*turned.min(axis=1), *turned.max(axis=1)]
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-4)
