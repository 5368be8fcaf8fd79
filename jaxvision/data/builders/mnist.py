"""MNIST (LeCun, Cortes, Burges) as a TFDS builder that needs no TensorFlow.

28x28 grey pictures of handwritten digits, 60,000 train and 10,000 test, read from the four official
IDX files in `manual_dir` and kept in their order.
"""

import tensorflow_datasets as tfds

from jaxvision.data.builders.idx_files import Edition, IdxBuilder, SplitFiles

CLASS_NAMES = tuple(str(digit) for digit in range(10))
EDITIONS = {
    "full": Edition(
        "full",
        {
            "train": SplitFiles(
                60_000,
                "train-images-idx3-ubyte",
                "train-labels-idx1-ubyte",
                "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
                "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            ),
            "test": SplitFiles(
                10_000,
                "t10k-images-idx3-ubyte",
                "t10k-labels-idx1-ubyte",
                "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
                "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
            ),
        },
    )
}

with tfds.core.registered.skip_registration():

    class MNIST(IdxBuilder):
        """MNIST from IDX files."""

        name = "mnist"
        VERSION = tfds.core.Version("1.0.0")
        MANUAL_DOWNLOAD_INSTRUCTIONS = "Put the four .gz files of MNIST into manual_dir."
        BUILDER_CONFIGS = (
            tfds.core.BuilderConfig(name="full", description="All 60,000 + 10,000 pictures."),
        )
        EDITIONS = EDITIONS
        CLASS_NAMES = CLASS_NAMES
        DESCRIPTION = __doc__
        HOMEPAGE = "http://yann.lecun.com/exdb/mnist"
        LICENSE = "CC BY-SA 3.0, Yann LeCun and Corinna Cortes"
