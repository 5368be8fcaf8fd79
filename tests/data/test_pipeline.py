import threading
import time
import traceback
import weakref

import numpy as np
import pytest
from jaxtyping import TypeCheckError

from jaxvision.data import ArrayDataset, Batches, epoch_order, prefetch, random_crop
from jaxvision.errors import UserError


def dataset(size):
    """Picture i holds i in its corner and label i, so that a batch shows which examples it has."""
    images = np.zeros((size, 5, 4, 1), np.uint8)
    images[:, 0, 0, 0] = np.arange(size)
    return ArrayDataset(images, np.arange(size, dtype=np.int32), ("a",), "numbers", "train", "made")


def noise(example, rng):
    return {**example, "image": rng.integers(0, 256, (5, 4, 1), dtype=np.uint8)}


def test_an_order_is_a_permutation_that_depends_on_seed_and_epoch_only():
    order = epoch_order(1000, seed=3, epoch=2)
    assert order.dtype == np.int32
    assert sorted(order) == list(range(1000))
    np.testing.assert_array_equal(order, epoch_order(1000, seed=3, epoch=2))
    for other in ({"seed": 4, "epoch": 2}, {"seed": 3, "epoch": 3}, {"seed": 2, "epoch": 3}):
        assert (epoch_order(1000, **other) == order).mean() < 0.02
    np.testing.assert_array_equal(epoch_order(4, seed=3, epoch=2, shuffle=False), [0, 1, 2, 3])


def test_orders_never_change_between_versions():
    """A run that is resumed after an upgrade must see the batches that it would have seen."""
    assert epoch_order(8, seed=0, epoch=0).tolist() == [0, 2, 1, 5, 4, 3, 6, 7]
    assert epoch_order(8, seed=-1, epoch=6).tolist() == [3, 4, 0, 5, 1, 6, 7, 2]


def test_orders_are_uniform():
    firsts = [epoch_order(5, seed=0, epoch=epoch)[0] for epoch in range(2000)]
    assert np.all(np.abs(np.bincount(firsts, minlength=5) - 400) < 5 * np.sqrt(400 * 0.8))


def test_each_epoch_holds_each_example_once():
    batches = Batches(dataset(12), batch_size=4, seed=1)
    assert batches.steps_per_epoch == 3
    assert not batches.has_padding
    epochs = [[batches(3 * epoch + s) for s in range(3)] for epoch in range(2)]
    labels = [np.concatenate([b["label"] for b in epoch]) for epoch in epochs]
    for epoch, seen in enumerate(labels):
        assert sorted(seen) == list(range(12))
        np.testing.assert_array_equal(seen, batches.padded_order(epoch))
    assert list(labels[0]) != list(labels[1])
    batch = epochs[0][0]
    assert set(batch) == {"image", "label"}
    assert (batch["image"].dtype, batch["label"].dtype) == (np.uint8, np.int32)
    np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], batch["label"])


def test_a_batch_depends_on_seed_and_step_only():
    one, other = (Batches(dataset(10), batch_size=3, seed=5, transform=noise) for _ in range(2))
    expected = [one(step) for step in range(9)]
    for step in (8, 0, 4, 4):
        got = other(step)
        assert got.keys() == expected[step].keys()
        for name, array in got.items():
            np.testing.assert_array_equal(array, expected[step][name])


def test_the_last_batch_is_padded_with_real_examples_and_marked():
    batches = Batches(dataset(10), batch_size=4, shuffle=False)
    assert batches.steps_per_epoch == 3
    assert batches.has_padding
    got = [batches(step) for step in range(3)]
    assert [b["valid"].tolist() for b in got] == [
        [True] * 4,
        [True] * 4,
        [True, True, False, False],
    ]
    assert got[0]["valid"].dtype == np.bool_
    assert got[2]["label"].tolist() == [8, 9, 0, 1]
    assert got[2]["image"][:, 0, 0, 0].tolist() == [8, 9, 0, 1]
    np.testing.assert_array_equal(batches.valid_slots, np.concatenate([b["valid"] for b in got]))
    assert batches(3)["label"].tolist() == [0, 1, 2, 3]


def test_drop_last_leaves_the_partial_batch_out():
    batches = Batches(dataset(10), batch_size=4, drop_last=True)
    assert batches.steps_per_epoch == 2
    assert "valid" not in batches(1)
    assert batches.padded_order(0).tolist() == epoch_order(10, seed=0, epoch=0)[:8].tolist()
    assert batches.valid_slots.all()


def test_the_shared_order_cannot_be_written():
    with pytest.raises(ValueError, match="read-only"):
        Batches(dataset(10), batch_size=4).padded_order(0)[0] = 3


@pytest.mark.parametrize(
    ("size", "batch_size", "message"),
    [
        (10, 11, "at most 10, .* got 11"),
        (10, 0, "at least 1, got 0"),
        (0, 1, "at most 0, .* got 1"),
    ],
)
def test_impossible_batch_sizes(size, batch_size, message):
    with pytest.raises(UserError, match=message):
        Batches(dataset(size), batch_size=batch_size)


def test_augmentation_belongs_to_the_example_not_to_the_batch():
    def by_example(batch_size, epoch):
        batches = Batches(dataset(12), batch_size=batch_size, seed=7, transform=noise)
        steps = range(epoch * batches.steps_per_epoch, (epoch + 1) * batches.steps_per_epoch)
        return {
            int(label): image.tobytes()
            for step in steps
            for image, label in zip(*list(batches(step).values())[:2], strict=True)
        }

    assert by_example(3, 0) == by_example(4, 0) == by_example(5, 0)
    assert len(set(by_example(3, 0).values())) == 12
    assert not set(by_example(3, 0).values()) & set(by_example(3, 1).values())


def test_augmentation_cannot_change_the_data_set():
    def blacken(example, rng):
        example["image"][:] = 0
        return example

    data = dataset(4)
    Batches(data, batch_size=4, transform=blacken)(0)
    assert data.images[:, 0, 0, 0].tolist() == [0, 1, 2, 3]


def test_a_transform_may_change_the_size_of_the_pictures():
    batch = Batches(dataset(4), batch_size=4, transform=random_crop((3, 2)))(0)
    assert batch["image"].shape == (4, 3, 2, 1)
    assert batch["label"].dtype == np.int32


def test_subset_and_mismatched_arrays():
    assert dataset(5).subset(np.array([3, 1])).labels.tolist() == [3, 1]
    # jaxtyping's checks, which only the tests turn on, are quicker than our own.
    with pytest.raises((ValueError, TypeCheckError), match="labels"):
        ArrayDataset(dataset(5).images, dataset(4).labels, ("a",), "n", "s", "")


# prefetch


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("depth", [1, 3, 50])
def test_prefetch_keeps_the_order(workers, depth):
    def slow_at_first(step):
        time.sleep(0.01 / (1 + step))
        return step

    got = list(prefetch(slow_at_first, 3, 23, workers=workers, depth=depth))
    assert got == list(range(3, 23))
    assert list(prefetch(slow_at_first, 5, 5, workers=workers, depth=depth)) == []


def test_prefetch_gives_the_same_augmented_batches_whatever_the_workers():
    batches = Batches(dataset(10), batch_size=3, transform=noise)
    got = list(prefetch(batches, 0, 8, workers=4, depth=8))
    for step, batch in enumerate(got):
        np.testing.assert_array_equal(batch["image"], batches(step)["image"])


def test_an_error_surfaces_at_its_step_with_its_traceback():
    def exploding(step):
        if step == 3:
            raise KeyError("no such picture")
        return step

    steps = prefetch(exploding, 0, 10)
    assert [next(steps) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(KeyError, match="no such picture") as caught:
        next(steps)
    assert "exploding" in [frame.name for frame in traceback.extract_tb(caught.tb)]


def test_closing_stops_the_threads():
    before = threading.active_count()
    started = []
    steps = prefetch(
        lambda step: started.append(step) or time.sleep(0.02), 0, 99, workers=3, depth=40
    )
    next(steps)
    assert threading.active_count() > before
    steps.close()
    assert threading.active_count() == before
    assert len(started) < 20  # what was waiting is not made


def test_at_most_depth_batches_wait():
    class Batch:
        pass

    alive = weakref.WeakSet()
    made = []

    def make(step):
        batch = Batch()
        alive.add(batch)
        made.append(step)
        return batch

    steps = prefetch(make, 0, 100, workers=2, depth=3)
    for taken in range(1, 20):
        batch = next(steps)
        time.sleep(0.002)
        assert len(made) <= taken + 3
        assert len(alive) <= 4
    del batch
    steps.close()


def test_prefetch_checks_its_arguments_at_once():
    with pytest.raises(ValueError, match="got 0 and 4"):
        prefetch(abs, 0, 5, workers=0)
