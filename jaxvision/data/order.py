"""The order of an epoch and its random numbers: pure functions of (seed, epoch).

Randomness comes from Philox, counter-based: its key is (seed, epoch), and its 256-bit counter
starts at a place of its own for the order, for each example's augmentation and for each batch's,
so that no two overlap.
"""

from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Int, Int32

from jaxvision.errors import UserError

ORDER, AUGMENTATION, MIXING, SCALES = range(4)
"""What random numbers are for."""


def epoch_order(
    size: int, *, seed: int, epoch: int, shuffle: bool = True
) -> Int32[np.ndarray, "{size}"]:
    """The order in which an epoch visits `size` examples: a pure function of its arguments.

    It sorts Philox's raw 64-bit words, which NumPy promises never to change; its `permutation` has
    no such promise. So an order stays what it is across NumPy versions and platforms.

    >>> epoch_order(5, seed=0, epoch=0, shuffle=False).tolist()
    [0, 1, 2, 3, 4]
    """
    if not shuffle:
        return np.arange(size, dtype=np.int32)
    words = _philox(seed, epoch, ORDER, 0).random_raw(size)
    return np.argsort(words, kind="stable").astype(np.int32)


def draw(number: int, *, seed: int, purpose: int, index: int) -> int:
    """A number from 0 to `number` - 1, all alike likely; the same on every NumPy version."""
    return int(_philox(seed, 0, purpose, index).random_raw() % number)


def generator(seed: int, epoch: int, purpose: int, index: int) -> np.random.Generator:
    """The random numbers of example or batch number `index`, for one purpose in one epoch."""
    return np.random.Generator(_philox(seed, epoch, purpose, index))


def check_batch_size(batch_size: int, size: int, where: str) -> None:
    """Raises `UserError` unless `where`, of `size` examples, has batches of this size."""
    if batch_size < 1:
        raise UserError(f"expected a batch size of at least 1, got {batch_size}")
    if batch_size > size:
        raise UserError(
            f"expected a batch size of at most {size}, the size of {where}, got {batch_size}: "
            "lower it"
        )


@lru_cache(maxsize=8)
def padded_order(
    size: int, slots: int, seed: int, epoch: int, shuffle: bool
) -> Int32[np.ndarray, "{slots}"]:
    """The epoch's order, cut to `slots` places, or filled up from its start. Read-only."""
    order = np.resize(epoch_order(size, seed=seed, epoch=epoch, shuffle=shuffle), slots)
    order.flags.writeable = False  # every caller gets this one array
    return order


def grouped_order(
    order: Int32[np.ndarray, "n"],
    groups: Int[np.ndarray, "n"],
    batch_size: int,
    *,
    drop_last: bool = False,
) -> tuple[Int32[np.ndarray, "batches b"], Bool[np.ndarray, "batches b"]]:
    """An epoch's order dealt into batches of one group each, and which of their slots count.

    Within a group the order stays what it is. A group's last batch is filled up from the group's
    start, and those slots do not count; or it is left out, with `drop_last`. Batches come in the
    order of their first examples.

    >>> order, groups = np.arange(5, dtype=np.int32), np.array([0, 1, 0, 1, 1])
    >>> [part.tolist() for part in grouped_order(order, groups, 2)]
    [[[0, 2], [1, 3], [4, 1]], [[True, True], [True, True], [True, False]]]
    """
    batches, valid, firsts = [], [], []
    for group in np.unique(groups):
        places = np.flatnonzero(groups[order] == group)
        number = steps_of(len(places), batch_size, drop_last)
        slots = number * batch_size
        batches.append(np.resize(order[places], slots).reshape(number, batch_size))
        valid.append((np.arange(slots) < len(places)).reshape(number, batch_size))
        firsts.append(places[::batch_size][:number])
    by_first = np.argsort(np.concatenate(firsts), kind="stable")
    return np.concatenate(batches)[by_first], np.concatenate(valid)[by_first]


def steps_of(size: int, batch_size: int, drop_last: bool) -> int:
    """How many batches `size` examples make; `drop_last` leaves a partial one out."""
    whole, rest = divmod(size, batch_size)
    return whole + (rest > 0 and not drop_last)


def _philox(seed: int, epoch: int, purpose: int, index: int) -> np.random.Philox:
    key = np.array([seed % 2**64, epoch], np.uint64)
    # The lowest two of the four words are left to count in: 2^128 blocks before the next one's.
    return np.random.Philox(key=key, counter=np.array([0, 0, index, purpose], np.uint64))
