"""Computer vision in JAX and Flax.

Nothing heavy is imported here: take what you need from `jaxvision.models`, `jaxvision.train`,
`jaxvision.losses`, `jaxvision.ops`, `jaxvision.data` and `jaxvision.predict`.
"""

__version__ = "0.1.0"
