"""Batch normalisation as torch defines it (Ioffe and Szegedy, arXiv:1502.03167, algorithm 1)."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from jaxvision.ops.precision import at_least_float32
from jaxvision.types import Array

_VALID_ROWS: ContextVar[jax.Array | None] = ContextVar("valid_rows", default=None)


@contextmanager
def valid_rows(valid: Bool[Array, " b"] | None) -> Iterator[None]:
    """Within this context `batch_norm` takes its statistics from the rows where `valid` is True.

    The last batch of an epoch is padded to its fixed size, and the padding must not be seen by the
    rows beside it. Batch normalisation is the one layer where rows see each other.
    """
    token = _VALID_ROWS.set(valid)
    try:
        yield
    finally:
        _VALID_ROWS.reset(token)


def batch_norm(
    x: Float[Array, "b *d c"],
    scale: Float[Array, " c"],
    bias: Float[Array, " c"],
    eps: float = 1e-5,
) -> tuple[Float[Array, "b *d c"], Float[Array, " c"], Float[Array, " c"], Float[Array, ""]]:
    """Returns `(y, mean, var, count)`: x normalised by its statistics over all axes but the last.

    y = (x - mean) / sqrt(var + eps) * scale + bias, with the *biased* variance, as the paper and
    torch have it; what torch stores is the unbiased one, `var * count / (count - 1)`. The
    statistics are float32 also where x is bfloat16, from two passes, because E[x^2] - E[x]^2
    cancels where the mean is large. `count` is the number of values a channel's statistics are
    taken from; where it is 0, the mean is 0 and the variance 1. In a batch that is sharded over
    devices they are those of the whole batch.

    >>> y, mean, var, count = batch_norm(jnp.array([[1.0], [3.0]]), jnp.ones(1), jnp.zeros(1))
    >>> [round(float(v), 3) for v in (y[0, 0], y[1, 0], mean[0], var[0], count)]
    [-1.0, 1.0, 2.0, 1.0, 2.0]
    """
    pixels = math.prod(x.shape[1:-1])
    valid = _VALID_ROWS.get()
    if valid is None:
        count = jnp.asarray(x.shape[0] * pixels, jnp.float32)
        weights = None
    else:
        if valid.shape != x.shape[:1]:
            raise ValueError(f"{x.shape[0]} rows, but valid_rows has {valid.shape[0]}")
        count = jnp.sum(valid, dtype=jnp.float32) * pixels
        weights = valid.reshape(-1, *(1,) * (x.ndim - 1))
    y, mean, var = _batch_norm(x, scale, bias, weights, count, eps)
    return y, mean, var, count


def normalize_by(
    x: Float[Array, "b *d c"],
    mean: Float[Array, " c"],
    var: Float[Array, " c"],
    scale: Float[Array, " c"],
    bias: Float[Array, " c"],
    eps: float = 1e-5,
) -> Float[Array, "b *d c"]:
    """Returns (x - mean) / sqrt(var + eps) * scale + bias, with given statistics, in x's dtype."""
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    mean, var, scale, bias = (a.astype(dtype) for a in (mean, var, scale, bias))
    factor = jax.lax.rsqrt(var + eps) * scale
    return (x * _row(factor, x) + _row(bias - mean * factor, x)).astype(x.dtype)


def _row(channels, x):
    return channels.reshape(*(1,) * (x.ndim - 1), -1)


def _sum(x, weights):
    axes = tuple(range(x.ndim - 1))
    return jnp.sum(x, axes) if weights is None else jnp.sum(jnp.where(weights, x, 0), axes)


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def _batch_norm(x, scale, bias, weights, count, eps):
    return _forward(x, scale, bias, weights, count, eps)[0]


def _forward(x, scale, bias, weights, count, eps):
    x32 = at_least_float32(x)
    number = jnp.maximum(count, 1)
    mean = _sum(x32, weights) / number
    var = _sum(jnp.square(x32 - _row(mean, x)), weights) / number
    if weights is not None:  # what would be magnified may be anything
        var = jnp.where(count > 0, var, 1.0)
    y = normalize_by(x32, mean, var, scale, bias, eps).astype(x.dtype)
    return (y, mean, var), (x, scale, weights, count, mean, var)


def _backward(eps, residuals, cotangents):
    """The closed form of the paper's section 3: autodiff would keep and reread x three times."""
    x, scale, weights, count, mean, var = residuals
    dy, dmean, dvar = cotangents
    rstd = jax.lax.rsqrt(var + eps)
    centred = at_least_float32(x) - _row(mean, x)
    dy32 = at_least_float32(dy)
    if weights is not None:
        # Nobody looks at what became of the other rows, and they may hold NaN.
        dy32, centred = jnp.where(weights, dy32, 0), jnp.where(weights, centred, 0)
    count = jnp.maximum(count, 1)
    dbias = _sum(dy32, None)
    dscale = _sum(dy32 * centred, None) * rstd
    # Through the statistics: each valid value has its share 1 / count in the mean, and
    # 2 (x - mean) / count in the variance.
    shift = (dmean - dbias * rstd * scale) / count
    slope = (2 * dvar - dscale * scale * jnp.square(rstd)) / count
    statistics = centred * _row(slope, x) + _row(shift, x)
    if weights is not None:
        statistics = jnp.where(weights, statistics, 0)
    dx = dy32 * _row(rstd * scale, x) + statistics
    dscale, dbias = dscale.astype(scale.dtype), dbias.astype(scale.dtype)
    return dx.astype(x.dtype), dscale, dbias, None, None


_batch_norm.defvjp(_forward, _backward)
