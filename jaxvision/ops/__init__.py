"""Array operators in pure jnp: fixed shapes, usable under jit, vmap and grad."""

from jaxvision.ops.color import normalize_images
from jaxvision.ops.convolution import conv2d, conv_output_size
from jaxvision.ops.pooling import max_pool

__all__ = ["conv2d", "conv_output_size", "max_pool", "normalize_images"]
