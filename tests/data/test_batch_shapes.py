"""How an order is dealt into batches of one bucket each."""

import numpy as np
import pytest

from jaxvision.data.batch_shapes import bucket_of
from jaxvision.data.order import SCALES, draw, grouped_order
from jaxvision.errors import UserError


def test_grouped_orders_against_a_plain_loop():
    rng = np.random.default_rng(0)
    for _ in range(100):
        size, b = int(rng.integers(1, 30)), int(rng.integers(1, 6))
        order, groups = rng.permutation(size).astype(np.int32), rng.integers(0, 4, size)
        batches, valid = grouped_order(order, groups, b)
        assert sorted(batches[valid]) == list(range(size))
        for group in range(4):
            rows = groups[batches[:, 0]] == group
            members = [i for i in order if groups[i] == group]
            assert batches[rows][valid[rows]].tolist() == members
            assert (groups[batches[rows]] == group).all()
            assert rows.sum() == -(-len(members) // b)
        dropped, all_valid = grouped_order(order, groups, b, drop_last=True)
        assert all_valid.all()
        assert dropped.tolist() == batches[valid.all(axis=1)].tolist()


def test_the_smallest_bucket_that_holds_a_picture():
    sizes = np.array([[8, 8], [8, 9], [1, 1], [9, 8]])
    assert bucket_of(sizes, [(9, 9), (8, 8), (8, 9)], "abcd").tolist() == [1, 2, 1, 0]
    with pytest.raises(UserError, match=r"^b: .* buckets 8 x 8 .* got 8 x 9 .* as 1 others are"):
        bucket_of(sizes, [(8, 8)], "abcd")


def test_draws_never_change_between_versions_and_are_even():
    assert [draw(7, seed=3, purpose=SCALES, index=i) for i in range(6)] == [3, 1, 3, 1, 5, 2]
    drawn = [draw(5, seed=0, purpose=SCALES, index=i) for i in range(2000)]
    assert np.all(np.abs(np.bincount(drawn, minlength=5) - 400) < 5 * np.sqrt(400 * 0.8))
