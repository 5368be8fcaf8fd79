"""Data on the device gives, inside jit, the batches that the host would have made."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvision.data import ArrayDataset, Batches
from jaxvision.data.detection import DetectionDataset, Objects
from jaxvision.data.detection_batches import DetectionBatches
from jaxvision.data.detection_transforms import random_flip
from jaxvision.train import create_state, evaluate, make_eval_step, make_train_step
from jaxvision.train.optim import sgd
from jaxvision.train.resident import ResidentData


def dataset(size=10):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (size, 4, 3, 1), dtype=np.uint8)
    labels = rng.integers(0, 3, size).astype(np.int32)
    return ArrayDataset(images, labels, ("a", "b", "c"), "noise", "train", "made")


def scenes(size=10):
    """Pictures with 0 to 3 objects, and instance maps."""
    rng = np.random.default_rng(0)
    corners = rng.integers(0, 4, (size, 3, 2)).astype(float)
    objects, maps = [], np.zeros((size, 8, 8), np.uint8)
    for i in range(size):
        boxes = np.concatenate([corners[i], corners[i] + [4, 3]], axis=1)[: i % 4].tolist()
        labels = rng.integers(0, 5, len(boxes)).tolist()
        objects.append(Objects.of(boxes, labels, [label == 0 for label in labels]))
        for j, (x1, y1, x2, y2) in enumerate(np.array(boxes, int)):
            maps[i, y1:y2, x1:x2] = j + 1
    return DetectionDataset(
        images=rng.integers(0, 256, (size, 8, 8, 3), dtype=np.uint8),
        names=tuple(map(str, range(size))),
        image_ids=np.arange(50, 50 + size),
        objects=tuple(objects),
        class_names=tuple("abcde"),
        name="scenes",
        split="train",
        source="made",
        masks=maps,
    )


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(
    ("batch_size", "drop_last", "padded"),
    [(5, False, False), (4, False, True), (4, True, False), (10, False, False), (1, False, False)],
)
def test_every_batch_of_two_epochs_equals_the_hosts(batch_size, shuffle, drop_last, padded):
    batches = Batches(dataset(), batch_size, seed=3, shuffle=shuffle, drop_last=drop_last)
    assert batches.has_padding == padded
    check_two_epochs(batches)


@pytest.mark.parametrize("masks", [True, False])
@pytest.mark.parametrize(
    ("batch_size", "drop_last", "max_objects"), [(5, False, None), (4, False, 2), (4, True, 5)]
)
def test_every_detection_batch_of_two_epochs_equals_the_hosts(
    batch_size, drop_last, max_objects, masks
):
    options = {"max_objects": max_objects, "masks": masks, "drop_last": drop_last}
    check_two_epochs(DetectionBatches(scenes(), batch_size, seed=3, **options))


def check_two_epochs(batches):
    data = ResidentData(batches)
    select = jax.jit(data.select)
    for step in range(2 * batches.steps_per_epoch):
        expected = batches(step)
        got = select(data(step), jnp.int32(step))
        assert got.keys() == expected.keys()
        assert ("valid" in got) == batches.has_padding
        for name, array in expected.items():
            assert got[name].dtype == array.dtype
            np.testing.assert_array_equal(got[name], array, err_msg=f"{name} of step {step}")
    assert select._cache_size() == 1


def test_steps_may_come_in_any_order():
    batches = Batches(dataset(), batch_size=4, seed=1)
    data = ResidentData(batches)
    for step in (7, 0, 100, 2, 2):
        got = data.select(data(step), jnp.int32(step))
        np.testing.assert_array_equal(got["image"], batches(step)["image"])


def test_the_pictures_stay_where_they_are():
    batches = Batches(dataset(), batch_size=4)
    data = ResidentData(batches)
    first, same_epoch, next_epoch = data(0), data(2), data(3)
    assert first["image"] is same_epoch["image"] is next_epoch["image"]
    assert first["order"] is same_epoch["order"] is not next_epoch["order"]


def test_host_augmentation_is_refused():
    batches = Batches(dataset(), batch_size=4, transform=lambda example, rng: example)
    with pytest.raises(ValueError, match="augmented on the host"):
        ResidentData(batches)
    with pytest.raises(ValueError, match="augmented on the host"):
        ResidentData(DetectionBatches(scenes(), 4, transform=random_flip()))


def linear_loss(params, batch_stats, batch, key, train=True):
    """Mean over valid examples of (w . image - label)^2, in units of a byte's range."""
    images = batch["image"].reshape(batch["image"].shape[0], -1) / 255.0
    errors = (images @ params["w"] - batch["label"]) ** 2
    valid = batch.get("valid", jnp.ones(errors.shape, bool))
    loss = jnp.sum(errors, where=valid) / jnp.maximum(valid.sum(), 1)
    return loss, (batch_stats, {"error": loss})


def test_train_and_eval_steps_with_select_equal_those_with_batches():
    batches, tx = Batches(dataset(), batch_size=4, seed=2), sgd(0.1, momentum=0.9)
    data = ResidentData(batches)
    start = {"params": {"w": jnp.linspace(-1.0, 1.0, 12)}}
    on_host, on_device = create_state(start, tx), create_state(start, tx)
    host_step = make_train_step(linear_loss, tx)
    device_step = make_train_step(linear_loss, tx, select=data.select)
    for step in range(2 * batches.steps_per_epoch):
        on_host, expected = host_step(on_host, batches(step))
        on_device, got = device_step(on_device, data(step))
        assert float(got["loss"]) == pytest.approx(float(expected["loss"]), rel=1e-6)
    np.testing.assert_allclose(on_device.params["w"], on_host.params["w"], rtol=1e-6)
    assert device_step._cache_size() == 1

    steps = range(batches.steps_per_epoch)
    host_eval = make_eval_step(linear_loss)
    device_eval = make_eval_step(linear_loss, select=data.select)
    expected = evaluate(host_eval, on_host, (batches(n) for n in steps))
    got = evaluate(device_eval, on_host, data.epoch())
    assert got == pytest.approx(expected, rel=1e-6)
    assert device_eval._cache_size() == 1
