"""Array operators in pure jnp: fixed shapes, usable under jit, vmap and grad."""

from jaxvision.ops.color import normalize_images
from jaxvision.ops.convolution import conv2d, conv_output_size
from jaxvision.ops.normalization import batch_norm, normalize_by, valid_rows
from jaxvision.ops.pooling import adaptive_avg_pool, max_pool

__all__ = [
    "adaptive_avg_pool",
    "batch_norm",
    "conv2d",
    "conv_output_size",
    "max_pool",
    "normalize_by",
    "normalize_images",
    "valid_rows",
]
