"""TFDS builders, one a data set. Import each from its own module: they load TFDS."""
