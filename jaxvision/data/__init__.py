"""Data sets, batches, augmentation and downloads, in NumPy: nothing here imports JAX.

TFDS, OpenCV, requests and Pillow are imported when first used, so that this import stays quick.
"""

from jaxvision.data.arrays import ArrayDataset
from jaxvision.data.images import read_image
from jaxvision.data.pipeline import Batches, epoch_order, prefetch
from jaxvision.data.sources import DATASETS, load_dataset, load_splits
from jaxvision.data.transforms import Transform, compose, random_crop, random_horizontal_flip

__all__ = [
    "DATASETS",
    "ArrayDataset",
    "Batches",
    "Transform",
    "compose",
    "epoch_order",
    "load_dataset",
    "load_splits",
    "prefetch",
    "random_crop",
    "random_horizontal_flip",
    "read_image",
]
