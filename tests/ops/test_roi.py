"""RoIAlign and RoI pooling against loops over samples and pixels, on hostile boxes."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvision import ops
from jaxvision.ops import assign_levels, multiscale_roi_align

# One program each: what is called outside of jit is compiled operator by operator.
OPTIONS = ("output_size", "spatial_scale", "sampling_ratio", "aligned")
roi_align = jax.jit(ops.roi_align, static_argnames=OPTIONS)
roi_pool = jax.jit(ops.roi_pool, static_argnames=OPTIONS[:2])


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


def slow_roi_align(features, boxes, output_size, scale, ratio, aligned):
    (h, w, c), result = features.shape, []
    for x1, y1, x2, y2 in boxes:
        axes = []
        for low, high, size, bins in ((y1, y2, h, output_size[0]), (x1, x2, w, output_size[1])):
            samples = samples_of(low, high, scale, bins, ratio, aligned)
            none = [np.zeros(size)]
            means = [np.mean([weights_of(p, size) for p in s] or none, axis=0) for s in samples]
            axes.append(np.array(means))
        result.append(np.einsum("ih,jw,hwc->ijc", *axes, features.astype(np.float64)))
    return np.array(result).reshape(len(boxes), *output_size, c)


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


@partial(jax.jit, static_argnames=("output_size", "scale", "ratio", "aligned"))
def align_with_gradient(features, boxes, cotangent, output_size, scale, ratio, aligned):
    y, vjp = jax.vjp(lambda f: roi_align(f, boxes, output_size, scale, ratio, aligned), features)
    return y, vjp(cotangent)[0]


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("ratio", [-1, 1, 2, 3])
def test_roi_align_equals_loops(ratio, aligned):
    features, boxes = features_of(0, 9, 7, 2), hostile_boxes(72, 36, 28, seed=ratio + 1)
    args = (3, 2), 0.25, ratio, aligned
    expected = slow_roi_align(features, boxes, *args)
    cotangent = features_of(1, *expected.shape)
    y, gradient = align_with_gradient(features, boxes, cotangent, *args)
    np.testing.assert_allclose(y, expected, atol=1e-5)
    # The operator is linear in the features, so loops over their unit vectors give the gradient.
    units = np.eye(63, dtype=np.float32).reshape(63, 9, 7).transpose(1, 2, 0)
    matrix = slow_roi_align(units, boxes, *args)
    slow = np.einsum("nijc,nijp->pc", cotangent, matrix).reshape(features.shape)
    np.testing.assert_allclose(gradient, slow, atol=1e-4)


def test_roi_align_by_hand():
    features = jnp.arange(25.0).reshape(5, 5, 1)  # row * 5 + column
    box = jnp.array([[1.0, 1.0, 3.0, 3.0]])
    # Four samples a bin around (1.5, 1.5), (1.5, 2.5), ... whose mean is the value at the centre.
    assert roi_align(features, box, 2, 1.0, 2)[0, ..., 0].tolist() == [[9.0, 10.0], [14.0, 15.0]]
    aligned = roi_align(features, box, 2, 1.0, 2, aligned=True)
    assert aligned[0, ..., 0].tolist() == [[6.0, 7.0], [11.0, 12.0]]
    # Samples up to one feature outside take the border's value, and further out are zero.
    corner = jnp.array([[-1.9, 0.0, -0.9, 1.0], [-0.9, 0.0, 0.1, 1.0], [5.2, 0.0, 6.2, 1.0]])
    rows = roi_align(features + 1, corner, 1, 1.0, 1)[:, 0, 0, 0]
    np.testing.assert_allclose(rows, [0.0, 3.5, 0.0])


@pytest.mark.parametrize("ratio", [-1, 2])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_padding_of_the_boxes_gives_zeros_and_no_gradient(ratio, bad):
    features, boxes = features_of(0, 6, 5, 2), hostile_boxes(20, 6, 5, 0)
    poisoned = np.concatenate([boxes, np.full((3, 4), bad, np.float32)])
    poisoned[-1, :3] = 1.0
    cotangent = np.concatenate([features_of(1, 20, 2, 2, 2), np.full((3, 2, 2, 2), np.nan)])
    args = (2, 2), 1.0, ratio, False
    y, gradient = align_with_gradient(features, poisoned, cotangent.astype(np.float32), *args)
    clean, expected = align_with_gradient(features, boxes, cotangent[:20].astype(np.float32), *args)
    np.testing.assert_array_equal(y[:20], clean)
    assert not np.asarray(y[20:]).any()
    np.testing.assert_allclose(gradient, expected, atol=1e-6)


@pytest.mark.parametrize(
    "operator", [partial(roi_align, output_size=2), partial(roi_pool, output_size=2)]
)
def test_boxes_have_no_gradient_and_bfloat16_stays(operator):
    features, boxes = jnp.asarray(features_of(0, 6, 5, 2)), jnp.asarray(hostile_boxes(9, 6, 5, 0))
    gradient = jax.jit(jax.grad(lambda b: operator(features, b).sum()))(boxes)
    assert not np.asarray(gradient).any()
    exact = features.astype(jnp.bfloat16)
    y, vjp = jax.vjp(lambda f: operator(f, boxes), exact)
    assert y.dtype == vjp(y)[0].dtype == jnp.bfloat16
    expected = operator(exact.astype(jnp.float32), boxes)
    np.testing.assert_array_equal(y, expected.astype(jnp.bfloat16))


def test_vmap_over_pictures_equals_a_loop():
    features, boxes = jnp.asarray(features_of(0, 3, 6, 5, 2)), hostile_boxes(30, 12, 10, 3)
    boxes = jnp.asarray(boxes.reshape(3, 10, 4))
    for operator in (
        partial(roi_align, output_size=2, spatial_scale=0.5),
        partial(roi_align, output_size=2, spatial_scale=0.5, sampling_ratio=2),
        partial(roi_pool, output_size=2, spatial_scale=0.5),
    ):

        def loss(features, boxes, operator=operator):
            return (operator(features, boxes) ** 2).sum()

        one = jax.value_and_grad(loss)
        got = jax.jit(jax.vmap(one))(features, boxes)
        one = jax.jit(one)
        for i in range(3):
            value, gradient = one(features[i], boxes[i])
            np.testing.assert_allclose(got[0][i], value, rtol=1e-5)
            np.testing.assert_allclose(got[1][i], gradient, rtol=1e-5, atol=1e-5)


def test_one_compile_for_any_number_of_boxes_in_the_padding():
    for operator in (roi_align, roi_pool):
        run = jax.jit(lambda f, b, operator=operator: operator(f, b, 2))
        for valid in (0, 3, 7):
            boxes = hostile_boxes(8, 6, 5, valid)
            boxes[valid:] = np.nan
            y = run(features_of(valid, 6, 5, 2), boxes)
            assert not np.asarray(y[valid:]).any()
        assert run._cache_size() == 1
    assert roi_align(jnp.ones((4, 4, 2)), jnp.zeros((0, 4)), 3).shape == (0, 3, 3, 2)


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
    y, vjp = jax.vjp(
        jax.jit(lambda f: roi_pool(f, jnp.asarray(boxes), (3, 2), 0.5)), jnp.asarray(features)
    )
    if kind == "nan":  # a bin of nothing but NaN is torchvision's lowest number
        lowest = np.asarray(y) == np.finfo(np.float32).min
        assert not expected[lowest].any()
        y = np.where(lowest, 0, y)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(vjp(cotangent)[0], gradient)


def test_roi_pool_rounds_half_away_from_zero():
    features = jnp.arange(16.0).reshape(4, 4, 1)
    boxes = jnp.array([[0.5, 0.0, 0.5, 0.0], [2.5, 0.0, 2.5, 0.0], [0.49999997, 0.0, 0.4, 0.0]])
    assert roi_pool(features, boxes, 1)[:, 0, 0, 0].tolist() == [1.0, 3.0, 0.0]


def test_levels_by_area():
    sides = np.array([0.0, 1.0, 111.9, 112.0, 223.9, 224.0, 447.9, 448.0, 1e4], np.float32)
    boxes = jnp.stack([0 * sides, 0 * sides, sides, sides], 1)
    assert assign_levels(boxes, 2, 5).tolist() == [0, 0, 0, 1, 1, 2, 2, 3, 3]
    assert assign_levels(boxes, 3, 4).tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 1]
    odd = jnp.array([[0.0, 0.0, -5.0, 5.0], [0.0, 0.0, jnp.nan, 5.0], [9.0, 9.0, 0.0, 0.0]])
    assert assign_levels(odd, 2, 5).tolist() == [-1, -1, 0]


@pytest.mark.parametrize("ratio", [-1, 2])
def test_each_box_is_aligned_on_its_own_level(ratio):
    maps = {str(s): jnp.asarray(features_of(s, 128 // s, 192 // s, 3)) for s in (4, 8, 16, 32)}
    scales = [1 / 4, 1 / 8, 1 / 16, 1 / 32]
    boxes = jnp.asarray(hostile_boxes(160, 128, 192, 7) * 2)
    levels = np.asarray(assign_levels(boxes, 2, 5))
    assert set(levels) == {-1, 0, 1, 2, 3}

    def single(maps):
        each = [
            roi_align(m, boxes, 2, scale, ratio)
            for m, scale in zip((maps[s] for s in ("4", "8", "16", "32")), scales, strict=True)
        ]
        chosen = jnp.stack(each)[jnp.maximum(levels, 0), jnp.arange(len(boxes))]
        return jnp.where((levels >= 0).reshape(-1, 1, 1, 1), chosen, 0.0)

    def several(maps):
        return multiscale_roi_align(maps, boxes, 2, scales, ratio)

    @partial(jax.jit, static_argnums=0)
    def with_gradient(function, maps, cotangent):
        y, vjp = jax.vjp(function, maps)
        return y, vjp(cotangent)[0]

    cotangent = jnp.asarray(features_of(5, 160, 2, 2, 3))
    expected, gradients = with_gradient(single, maps, cotangent)
    # A list's order is the caller's; of a dictionary, jit sorts the keys.
    given = maps if ratio > 0 else list(maps.values())
    y, got = with_gradient(several, given, cotangent)
    got = got if ratio > 0 else dict(zip(maps, got, strict=True))
    np.testing.assert_allclose(y, expected, atol=1e-6)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(got[name], gradient, atol=1e-5)


@pytest.mark.parametrize("scales", [[1 / 4], [1 / 4, 1 / 16], [1 / 4, 0.1]])
def test_scales_that_do_not_fit_the_pyramid(scales):
    maps = [jnp.zeros((8, 8, 1)), jnp.zeros((4, 4, 1))]
    with pytest.raises(ValueError, match=r"expected .*spatial scale"):
        multiscale_roi_align(maps, jnp.zeros((1, 4)), 2, scales)
