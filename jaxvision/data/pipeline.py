"""Batches as a pure function of (seed, step), so that resuming a run needs the step and no more."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from jaxtyping import Bool, Int32

from jaxvision.data.arrays import ArrayDataset
from jaxvision.data.files import FileDataset
from jaxvision.data.mixing import BatchTransform
from jaxvision.data.order import (
    AUGMENTATION,
    MIXING,
    check_batch_size,
    generator,
    padded_order,
    steps_of,
)
from jaxvision.data.transforms import Example, PictureTransform, Transform, as_array
from jaxvision.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class Batches:
    """The batches of a data set: call it with a step, from 0 on without an end.

    `batches(step)` is `{"image": uint8 [b, h, w, c], "label": int32 [b]}`, a pure function of
    `seed` and `step`; step `steps_per_epoch` begins the second epoch. Where `batch_size` does not
    divide the data set, the last batch of an epoch is filled up with examples from the epoch's
    start, and every batch has `valid`, bool [b], False for those; so all batches have one shape and
    evaluation counts each example once. `drop_last` leaves that batch out instead.

    `transform(example, rng)` augments each example on the host, with a generator of its own from
    (seed, epoch, index in the data set), whatever the batch size. For evaluation: `shuffle=False`.
    A `FileDataset` is decoded here, so its transform must bring pictures to one size: see
    `presets`. `batch_transform(batch, rng)` comes last and sees the whole batch (see `mixing`),
    with a generator from (seed, step).

    Raises `UserError` if `batch_size` is below 1 or above the size of the data set; a call raises
    it for a broken picture, by name.

    >>> batches = Batches(train, batch_size=64, seed=0)  # doctest: +SKIP
    >>> batches(0)["image"].shape  # doctest: +SKIP
    (64, 28, 28, 1)
    """

    dataset: ArrayDataset | FileDataset
    batch_size: int
    seed: int = 0
    shuffle: bool = True
    transform: Transform | None = None
    drop_last: bool = False
    batch_transform: BatchTransform | None = None

    def __post_init__(self) -> None:
        where = f"{self.dataset.name}'s {self.dataset.split} set"
        check_batch_size(self.batch_size, len(self.dataset), where)

    @property
    def steps_per_epoch(self) -> int:
        return steps_of(len(self.dataset), self.batch_size, self.drop_last)

    @property
    def has_padding(self) -> bool:
        """Whether an epoch's last batch is filled up, and so every batch has `valid`."""
        return self.steps_per_epoch * self.batch_size > len(self.dataset)

    def padded_order(self, epoch: int) -> Int32[np.ndarray, "slots"]:
        """The index of the example in each slot of an epoch, `steps_per_epoch * batch_size` long.

        Batch s of the epoch is slots `[s * batch_size, (s + 1) * batch_size)`. Read-only.
        """
        slots = self.steps_per_epoch * self.batch_size
        return padded_order(len(self.dataset), slots, self.seed, epoch, self.shuffle)

    @property
    def valid_slots(self) -> Bool[np.ndarray, "slots"]:
        """For each slot of an epoch, whether its example counts; the same in every epoch."""
        return np.arange(self.steps_per_epoch * self.batch_size) < len(self.dataset)

    def arrays(self) -> dict[str, np.ndarray]:
        """What batches are gathered from, where nothing is done to them on the host: an array of
        all examples for each name of a batch. Otherwise raises `ValueError`."""
        augmented = self.transform is not None or self.batch_transform is not None
        if augmented or not isinstance(self.dataset, ArrayDataset):
            raise ValueError(
                "a data set of files, or augmented on the host, has no arrays to gather from and "
                "cannot be resident on the device"
            )
        return {"image": self.dataset.images, "label": self.dataset.labels}

    def __call__(self, step: int) -> dict[str, np.ndarray]:
        if step < 0:
            raise ValueError(f"expected a step of at least 0, got {step}")
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        start = step_in_epoch * self.batch_size
        indices = self.padded_order(epoch)[start : start + self.batch_size]
        if self.transform is None and isinstance(self.dataset, ArrayDataset):
            batch = {"image": self.dataset.images[indices], "label": self.dataset.labels[indices]}
        else:
            batch = self._stack([self._example(epoch, int(index)) for index in indices])
        if self.has_padding:
            batch["valid"] = np.arange(start, start + self.batch_size) < len(self.dataset)
        if self.batch_transform is not None:
            rng = generator(self.seed, epoch, MIXING, step_in_epoch)
            batch = self.batch_transform(batch, rng)
        return batch

    def _example(self, epoch: int, index: int) -> Example:
        dataset, transform = self.dataset, self.transform
        if isinstance(dataset, ArrayDataset):
            # A copy, so that a transform that writes in place can't change the data set.
            label = dataset.labels[index].copy()  # a semantic map may be written to as well
            example = {"image": dataset.images[index].copy(), "label": label}
        else:
            example = {"image": dataset.picture(index), "label": dataset.labels[index]}
            if not isinstance(transform, PictureTransform):
                example = as_array(example)
        if transform is not None:
            rng = generator(self.seed, epoch, AUGMENTATION, index)
            example = transform(example, rng)
        return as_array(example)

    def _stack(self, examples: list[Example]) -> dict[str, np.ndarray]:
        shapes = {example["image"].shape for example in examples}
        if len(shapes) > 1:
            raise UserError(
                f"{self.dataset.name}: expected pictures of one size in a batch, got "
                f"{' and '.join(' x '.join(map(str, shape)) for shape in sorted(shapes)[:2])}: "
                "give a transform that resizes them, such as classification_train()"
            )
        return {name: np.stack([example[name] for example in examples]) for name in examples[0]}


def prefetch(
    batch_at: Callable[[int], T], start: int, stop: int, *, workers: int = 2, depth: int = 4
) -> Iterator[T]:
    """Yields `batch_at(start)` to `batch_at(stop - 1)` in order, made ahead of time by threads.

    At most `depth` batches are being made or waiting, besides the one handed out. An error in a
    worker is raised, with its own traceback, where its batch would have come. Closing the iterator
    ends the threads.

    >>> list(prefetch(lambda step: step * step, 0, 5))
    [0, 1, 4, 9, 16]
    """
    if workers < 1 or depth < 1:
        raise ValueError(f"expected at least 1 worker and depth 1, got {workers} and {depth}")
    return _prefetch(batch_at, start, stop, workers, depth)


def _prefetch(
    batch_at: Callable[[int], T], start: int, stop: int, workers: int, depth: int
) -> Iterator[T]:
    pool = ThreadPoolExecutor(workers, thread_name_prefix="prefetch")
    try:
        first = range(start, min(start + depth, stop))
        pending = deque(pool.submit(batch_at, step) for step in first)
        for step in range(start + depth, stop + depth):
            if not pending:
                break
            batch = pending.popleft().result()
            if step < stop:
                pending.append(pool.submit(batch_at, step))
            yield batch
    finally:
        pool.shutdown(cancel_futures=True)
