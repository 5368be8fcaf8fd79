"""One jitted function for equal models: linen modules are values, and jit knows functions."""

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import TypeVar

import numpy as np

from jaxvision.types import PerChannel

Made = TypeVar("Made", bound=Callable)


def one_for_equal(make: Callable[..., Made]) -> Callable[..., Made]:
    """Decorates what makes a jitted function of its arguments: equal ones get the same function.

    What validation has compiled for a model then serves the test, and what a checkpoint is restored
    into need not be traced again. The last few are kept. Where an argument has no hash, as a
    module with a list among its fields, a new function is made.

    >>> import jax
    >>> made = one_for_equal(lambda factor: jax.jit(lambda x: factor * x))
    >>> made(2) is made(2), made(2) is made(3)
    (True, False)
    """
    kept = lru_cache(maxsize=4)(make)

    @wraps(make)
    def made(*args) -> Made:
        try:
            hash(args)
        except TypeError:
            return make(*args)
        return kept(*args)

    return made


def hashable(value: PerChannel) -> float | tuple[float, ...]:
    """Returns one number for all channels as a float, several as a tuple.

    >>> hashable(0.5), hashable([0.25, 0.5])
    (0.5, (0.25, 0.5))
    """
    numbers = np.asarray(value, np.float64).tolist()
    return tuple(numbers) if isinstance(numbers, list) else numbers
