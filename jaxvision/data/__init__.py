"""Data sets, batches, augmentation and downloads, in NumPy: nothing here imports JAX.

TFDS, OpenCV, requests and Pillow are imported when first used, so that this import stays quick.
"""

from jaxvision.data.arrays import ArrayDataset
from jaxvision.data.autoaugment import rand_augment, trivial_augment_wide
from jaxvision.data.color import color_jitter
from jaxvision.data.files import FileDataset, to_arrays
from jaxvision.data.geometry import center_crop, pad, resize
from jaxvision.data.image_folder import load_class_folders, load_image_folder
from jaxvision.data.images import decode_image, read_image
from jaxvision.data.mixing import cutmix, mixup, random_choice
from jaxvision.data.pipeline import Batches, epoch_order, prefetch
from jaxvision.data.presets import classification_eval, classification_train, every_picture
from jaxvision.data.sources import DATASETS, load_dataset, load_splits
from jaxvision.data.transforms import (
    Transform,
    compose,
    random_crop,
    random_erasing,
    random_horizontal_flip,
    random_resized_crop,
    random_vertical_flip,
)

__all__ = [
    "DATASETS",
    "ArrayDataset",
    "Batches",
    "FileDataset",
    "Transform",
    "center_crop",
    "classification_eval",
    "classification_train",
    "color_jitter",
    "compose",
    "cutmix",
    "decode_image",
    "epoch_order",
    "every_picture",
    "load_class_folders",
    "load_dataset",
    "load_image_folder",
    "load_splits",
    "mixup",
    "pad",
    "prefetch",
    "rand_augment",
    "random_choice",
    "random_crop",
    "random_erasing",
    "random_horizontal_flip",
    "random_resized_crop",
    "random_vertical_flip",
    "read_image",
    "resize",
    "to_arrays",
    "trivial_augment_wide",
]
