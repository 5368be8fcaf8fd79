"""RoIAlign and RoI pooling against loops over samples and pixels, on hostile boxes."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvision import ops
from jaxvision.ops import multiscale_roi_align

# One program each: what is called outside of jit is compiled operator by operator.
OPTIONS = ("output_size", "spatial_scale", "sampling_ratio", "aligned")
roi_align = jax.jit(ops.roi_align, static_argnames=OPTIONS)
assign_levels = jax.jit(ops.assign_levels, static_argnums=(1, 2))
# Several tests take these, 20 boxes and features [6, 5, 2]: the same programs.
SMALL = {
    "align": (ops.roi_align, ((2, 2), 0.5, -1, False)),
    "align_2": (ops.roi_align, ((2, 2), 0.5, 2, False)),
    "pool": (ops.roi_pool, ((2, 2), 0.5)),
}


@partial(jax.jit, static_argnums=(0, 1))
def with_gradients(operator, options, features, boxes, cotangent):
    """Returns the RoIs, the gradient of the features and that of the boxes."""
    y, vjp = jax.vjp(lambda f, b: operator(f, b, *options), features, boxes)
    return y, *vjp(cotangent.astype(y.dtype))


def features_of(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def hostile_boxes(number, height, width, seed):
    """Boxes in a picture of that size: any, whole, empty, turned round, outside, enormous, slim."""
    rng = np.random.default_rng(seed)
    kind, size = np.arange(number) % 8, np.array([width, height])
    centre = rng.uniform(0, 1, (number, 2)) * size
    sides = np.exp(rng.uniform(-1, np.log(1.5 * size.max()), (number, 2)))
    boxes = np.concatenate([centre - sides / 2, centre + sides / 2], axis=1)
    boxes[kind == 1] = np.round(boxes[kind == 1])
    boxes[kind == 2, 2:] = boxes[kind == 2, :2]
    boxes[kind == 3] = boxes[kind == 3][:, [2, 1, 0, 3]]
    boxes[kind == 4] += 3 * size.max()
    boxes[kind == 5] = [-20 * width, -width, 30 * width, 7 * width]
    boxes[kind == 6] = np.array([0, 0, width, height]) + rng.integers(-1, 2, (number, 4))[kind == 6]
    boxes[kind == 7, 2] = boxes[kind == 7, 0] + 0.01
    return boxes.astype(np.float32)


def samples_of(low, high, scale, bins, ratio, aligned):
    """Returns where the samples of each bin are, in float32 and in the definition's order."""
    f = np.float32
    start = low * f(scale) - f(0.5 if aligned else 0)
    length = high * f(scale) - f(0.5 if aligned else 0) - start
    length = length if aligned else max(length, f(1))
    size = length / f(bins)
    grid = ratio if ratio > 0 else math.ceil(size)
    return [
        [start + f(p) * size + f(i + 0.5) * size / f(grid) for i in range(grid)]
        for p in range(bins)
    ]


def weights_of(position, size):
    """Returns the share of each pixel in a sample."""
    weights = np.zeros(size)
    if -1 <= position <= size:
        position = min(max(position, 0), size - 1)
        low = int(position)
        weights[low] = 1 - (position - low)
        if position > low:
            weights[low + 1] = position - low
    return weights


def slow_roi_align(features, boxes, cotangent, output_size, scale, ratio, aligned):
    """Returns the RoIs and the features' gradient: of a bin both are linear in its weights."""
    (h, w, c), result = features.shape, []
    gradient = np.zeros(features.shape)
    for (x1, y1, x2, y2), d in zip(boxes, cotangent, strict=True):
        axes = []
        for low, high, size, bins in ((y1, y2, h, output_size[0]), (x1, x2, w, output_size[1])):
            samples = samples_of(low, high, scale, bins, ratio, aligned)
            none = [np.zeros(size)]
            means = [np.mean([weights_of(p, size) for p in s] or none, axis=0) for s in samples]
            axes.append(np.array(means))
        result.append(np.einsum("ih,jw,hwc->ijc", *axes, features.astype(np.float64)))
        gradient += np.einsum("ih,jw,ijc->hwc", *axes, d.astype(np.float64))
    return np.array(result).reshape(len(boxes), *output_size, c), gradient


def slow_roi_pool(features, boxes, output_size, scale, cotangent=None):
    h, w, c = features.shape
    y, gradient = np.zeros((len(boxes), *output_size, c)), np.zeros_like(features)
    for n, box in enumerate(boxes):
        rounded = [int(math.copysign(math.floor(abs(v * np.float32(scale)) + 0.5), v)) for v in box]
        ranges = []
        for low, high, size, bins in zip(
            rounded[1::-1], rounded[:1:-1], (h, w), output_size, strict=True
        ):
            step = np.float32(max(high - low + 1, 1)) / np.float32(bins)
            ranges.append(
                [
                    range(
                        max(math.floor(np.float32(i) * step) + low, 0),
                        min(math.ceil(np.float32(i + 1) * step) + low, size),
                    )
                    for i in range(bins)
                ]
            )
        for i, j, k in np.ndindex(y.shape[1:]):
            best, place = None, None
            for r in ranges[0][i]:
                for q in ranges[1][j]:
                    if (best is None and not np.isnan(features[r, q, k])) or features[r, q, k] > (
                        best if best is not None else np.inf
                    ):
                        best, place = features[r, q, k], (r, q, k)
            if place is not None:
                y[n, i, j, k] = best
                if cotangent is not None:
                    gradient[place] += cotangent[n, i, j, k]
    return y, gradient


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("ratio", [-1, 1, 2, 3])
def test_roi_align_equals_loops(ratio, aligned):
    features, boxes = features_of(0, 9, 7, 2), hostile_boxes(72, 36, 28, seed=ratio + 1)
    options, cotangent = ((3, 2), 0.25, ratio, aligned), features_of(1, 72, 3, 2, 2)
    expected, slow = slow_roi_align(features, boxes, cotangent, *options)
    y, gradient, _ = with_gradients(ops.roi_align, options, features, boxes, cotangent)
    np.testing.assert_allclose(y, expected, atol=1e-5)
    np.testing.assert_allclose(gradient, slow, atol=1e-4)


def test_roi_align_by_hand():
    features = np.arange(25, dtype=np.float32).reshape(5, 5, 1)  # row * 5 + column
    box = np.array([[1.0, 1.0, 3.0, 3.0]], np.float32)
    # Four samples a bin around (1.5, 1.5), (1.5, 2.5), ... whose mean is the value at the centre.
    y = np.asarray(roi_align(features, box, 2, 1.0, 2))
    assert y[0, ..., 0].tolist() == [[9.0, 10.0], [14.0, 15.0]]
    aligned = np.asarray(roi_align(features, box, 2, 1.0, 2, aligned=True))
    assert aligned[0, ..., 0].tolist() == [[6.0, 7.0], [11.0, 12.0]]
    # Samples up to one feature outside take the border's value, and further out are zero.
    corner = [[-1.9, 0.0, -0.9, 1.0], [-0.9, 0.0, 0.1, 1.0], [5.2, 0.0, 6.2, 1.0]]
    rows = roi_align(features + 1, np.array(corner, np.float32), 1, 1.0, 1)
    np.testing.assert_allclose(np.asarray(rows)[:, 0, 0, 0], [0.0, 3.5, 0.0])


@pytest.mark.parametrize("name", ["align", "align_2"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_padding_of_the_boxes_gives_zeros_and_no_gradient(name, bad):
    features, boxes = features_of(0, 6, 5, 2), hostile_boxes(20, 12, 10, 0)
    cotangent = features_of(1, 20, 2, 2, 2)
    cotangent[17:] = 0
    clean, expected, _ = with_gradients(*SMALL[name], features, boxes, cotangent)
    # In copies: jax may still be reading what it was given.
    poisoned, bad_cotangent = boxes.copy(), cotangent.copy()
    poisoned[17:], bad_cotangent[17:] = bad, np.nan
    poisoned[-1, :3] = 1.0
    y, gradient, _ = with_gradients(*SMALL[name], features, poisoned, bad_cotangent)
    np.testing.assert_array_equal(y[:17], clean[:17])
    assert not np.asarray(y[17:]).any()
    np.testing.assert_allclose(gradient, expected, atol=1e-6)


@pytest.mark.parametrize("name", ["align", "pool"])
def test_boxes_have_no_gradient_and_bfloat16_stays(name):
    features, boxes = features_of(0, 6, 5, 2), hostile_boxes(20, 12, 10, 0)
    ones = np.ones((20, 2, 2, 2), np.float32)
    exact = jnp.asarray(features, jnp.bfloat16)
    y, of_features, _ = with_gradients(*SMALL[name], exact, boxes, ones)
    assert y.dtype == of_features.dtype == jnp.bfloat16
    expected, _, gradient = with_gradients(
        *SMALL[name], np.asarray(exact).astype(np.float32), boxes, ones
    )
    assert not np.asarray(gradient).any()
    np.testing.assert_array_equal(y, np.asarray(expected).astype(jnp.bfloat16))


def test_vmap_over_pictures_equals_a_loop():
    features, cotangents = features_of(0, 3, 6, 5, 2), features_of(1, 3, 20, 2, 2, 2)
    boxes = hostile_boxes(60, 12, 10, 3).reshape(3, 20, 4)
    for operator, options in SMALL.values():
        one = partial(with_gradients, operator, options)
        got = [np.asarray(v) for v in jax.vmap(one)(features, boxes, cotangents)]
        for i in range(3):
            y, gradient, _ = one(features[i], boxes[i], cotangents[i])
            np.testing.assert_allclose(got[0][i], y, rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(got[1][i], gradient, rtol=1e-5, atol=1e-5)


def test_one_compile_for_any_number_of_boxes_in_the_padding():
    for name in ("align", "pool"):
        compiled = []
        for valid in (0, 3, 7):
            boxes = hostile_boxes(20, 12, 10, valid)
            boxes[valid:] = np.nan
            ones = np.ones((20, 2, 2, 2), np.float32)
            y, _, _ = with_gradients(*SMALL[name], features_of(valid, 6, 5, 2), boxes, ones)
            assert not np.asarray(y)[valid:].any()
            compiled.append(with_gradients._cache_size())
        assert len(set(compiled)) == 1
    empty = roi_align(np.ones((4, 4, 2), np.float32), np.zeros((0, 4), np.float32), 3)
    assert empty.shape == (0, 3, 3, 2)


@pytest.mark.parametrize("kind", ["noise", "ties", "nan"])
def test_roi_pool_equals_loops(kind):
    features, boxes = features_of(0, 9, 7, 2), hostile_boxes(64, 18, 14, seed=5)
    if kind == "ties":
        features = np.round(features)
    if kind == "nan":
        features[np.random.default_rng(0).random(features.shape) < 0.2] = np.nan
    shape = (len(boxes), 3, 2, 2)
    cotangent = np.random.default_rng(1).integers(-9, 10, shape).astype(np.float32)
    expected, gradient = slow_roi_pool(features, boxes, (3, 2), 0.5, cotangent)
    options = (3, 2), 0.5
    y, got, _ = with_gradients(ops.roi_pool, options, features, boxes, cotangent)
    if kind == "nan":  # a bin of nothing but NaN is torchvision's lowest number
        lowest = np.asarray(y) == np.finfo(np.float32).min
        assert not expected[lowest].any()
        y = np.where(lowest, 0, y)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(got, gradient)


def test_roi_pool_rounds_half_away_from_zero():
    features = np.arange(60, dtype=np.float32).reshape(6, 5, 2)  # row * 10 + column * 2 + channel
    boxes = np.full((20, 4), np.nan, np.float32)
    boxes[:3] = [[0.5, 0.0, 0.5, 0.0], [2.5, 0.0, 2.5, 0.0], [0.49999997, 0.0, 0.4, 0.0]]
    boxes = boxes / np.float32(SMALL["pool"][1][1])  # the scale is a power of two
    y, *_ = with_gradients(*SMALL["pool"], features, boxes, np.ones((20, 2, 2, 2), np.float32))
    # One pixel each, which all four bins take.
    expected = np.array([[2.0, 3.0], [6.0, 7.0], [0.0, 1.0]]).reshape(3, 1, 1, 2)
    np.testing.assert_array_equal(np.asarray(y)[:3], np.broadcast_to(expected, (3, 2, 2, 2)))


def test_levels_by_area():
    sides = np.array([0.0, 1.0, 111.9, 112.0, 223.9, 224.0, 447.9, 448.0, 1e4], np.float32)
    odd = [[0.0, 0.0, -5.0, 5.0], [0.0, 0.0, np.nan, 5.0], [9.0, 9.0, 0.0, 0.0]]
    boxes = np.stack([0 * sides, 0 * sides, sides, sides], 1)
    boxes = np.concatenate([boxes, np.array(odd, np.float32)])
    assert assign_levels(boxes, 2, 5).tolist() == [0, 0, 0, 1, 1, 2, 2, 3, 3, -1, -1, 0]
    assert assign_levels(boxes, 3, 4).tolist()[:9] == [0, 0, 0, 0, 0, 1, 1, 1, 1]


@pytest.mark.parametrize("ratio", [-1, 2])
def test_each_box_is_aligned_on_its_own_level(ratio):
    strides = np.array([4, 8, 16, 32])
    maps = {str(s): features_of(s, 128 // s, 192 // s, 3) for s in strides}
    boxes = hostile_boxes(160, 128, 192, 7) * 2
    levels = np.asarray(assign_levels(boxes, 2, 5))
    assert set(levels) == {-1, 0, 1, 2, 3}
    cotangent = features_of(5, 160, 2, 2, 3)

    @jax.jit
    def several(maps, cotangent):
        scales = [1 / 4, 1 / 8, 1 / 16, 1 / 32]
        y, vjp = jax.vjp(lambda m: multiscale_roi_align(m, boxes, 2, scales, ratio), maps)
        return y, vjp(cotangent)[0]

    # A list's order is the caller's; of a dictionary, jit sorts the keys.
    y, got = several(maps if ratio > 0 else list(maps.values()), cotangent)
    got = got if ratio > 0 else dict(zip(maps, got, strict=True))
    np.testing.assert_array_equal(np.asarray(y)[levels < 0], 0)
    for level, (stride, features) in enumerate(maps.items()):
        mine = levels == level
        expected, gradient = slow_roi_align(
            features, boxes[mine], cotangent[mine], (2, 2), 1 / int(stride), ratio, False
        )
        np.testing.assert_allclose(np.asarray(y)[mine], expected, atol=1e-6)
        np.testing.assert_allclose(got[stride], gradient, atol=1e-5)


@pytest.mark.parametrize("scales", [[1 / 4], [1 / 4, 1 / 16], [1 / 4, 0.1]])
def test_scales_that_do_not_fit_the_pyramid(scales):
    maps = [np.zeros((8, 8, 1), np.float32), np.zeros((4, 4, 1), np.float32)]
    with pytest.raises(ValueError, match=r"expected .*spatial scale"):
        multiscale_roi_align(maps, np.zeros((1, 4), np.float32), 2, scales)
