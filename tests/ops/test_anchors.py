"""Anchors: values worked by hand, rounding, order, levels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvision.ops import anchors_of_levels, base_anchors, grid_anchors
from jaxvision.ops.anchors import ASPECT_RATIOS


def test_ratios_are_height_over_width_and_areas_equal():
    tall, square, wide = base_anchors([100], (2.0, 1.0, 0.5))
    assert square.tolist() == [-50, -50, 50, 50]
    assert tall.tolist() == [-35, -71, 35, 71]  # 100 / sqrt(2) / 2 = 35.36
    assert wide.tolist() == [-71, -35, 71, 35]
    assert ASPECT_RATIOS == (0.5, 1.0, 2.0)  # 2:1, 1:1, 1:2 as width to height


def test_order_is_ratio_by_ratio_with_the_sizes_within():
    sides = base_anchors([8, 16], (1.0, 4.0))[:, 2:] * 2
    assert sides.tolist() == [[8, 8], [16, 16], [4, 16], [8, 32]]


def test_halves_are_rounded_to_even():
    assert base_anchors([5], (1.0,)).tolist() == [[-2, -2, 2, 2]]
    assert base_anchors([7], (1.0,)).tolist() == [[-4, -4, 4, 4]]


def test_cells_go_row_by_row_with_the_anchors_within():
    base = base_anchors([16], (1.0, 0.25))
    grid = grid_anchors((2, 3), (10, 20), base)
    assert grid.dtype == np.float32
    assert grid.shape == (12, 4)
    for row, column, anchor in np.ndindex(2, 3, 2):
        shift = np.array([20 * column, 10 * row] * 2)
        np.testing.assert_array_equal(grid[(row * 3 + column) * 2 + anchor], base[anchor] + shift)


def test_levels_have_their_strides_sizes_and_ratios():
    grids, sizes = [(13, 10), (7, 5)], [[32, 64], [128]]
    first, second = anchors_of_levels(grids, (100, 82), sizes, [[1.0], [0.5, 2.0]])
    # 100 // 13 = 7 and 82 // 10 = 8; 100 // 7 = 14 and 82 // 5 = 16.
    expected = grid_anchors((13, 10), (7, 8), base_anchors([32, 64], [1.0]))
    np.testing.assert_array_equal(first, expected)
    expected = grid_anchors((7, 5), (14, 16), base_anchors([128], [0.5, 2.0]))
    np.testing.assert_array_equal(second, expected)
    assert [len(a) for a in anchors_of_levels(grids, (100, 82), sizes)] == [780, 105]


def test_levels_must_be_as_many():
    with pytest.raises(ValueError, match="1 feature maps, 2 sets of sizes and 2 of aspect"):
        anchors_of_levels([(2, 2)], (32, 32), [[32], [64]])


def test_inside_jit_they_are_a_constant():
    @jax.jit
    def areas(features):
        (anchors,) = anchors_of_levels([features.shape[:2]], (64, 64), [[32]])
        return jnp.sum((anchors[:, 2] - anchors[:, 0]) * (anchors[:, 3] - anchors[:, 1]))

    assert float(areas(jnp.zeros((4, 4, 8)))) == 16 * (32 * 32 + 2 * 46 * 22)
    assert "iota" not in str(jax.make_jaxpr(areas)(jnp.zeros((4, 4, 8))))
