"""Fashion-MNIST (arXiv:1708.07747) as a TFDS builder that needs no TensorFlow.

28x28 grey pictures of garments in ten classes. Two configs: `full` (60,000 train, 10,000 test),
read from the four official IDX files in `manual_dir`, and `embedded` (11,000 and 2,000 of them),
read from the package. Examples are kept in the order of the original files, which TFDS would
otherwise shuffle: unshuffled training must see what torchvision's data set gives.
"""

import tensorflow_datasets as tfds

from jaxvision.data.builders.idx_files import Edition, IdxBuilder, SplitFiles

CLASS_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle Boot",
)


FULL = Edition(
    "full",
    {
        "train": SplitFiles(
            60_000,
            "train-images-idx3-ubyte",
            "train-labels-idx1-ubyte",
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        ),
        "test": SplitFiles(
            10_000,
            "t10k-images-idx3-ubyte",
            "t10k-labels-idx1-ubyte",
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        ),
    },
)
EMBEDDED = Edition(
    "embedded",
    {
        "train": SplitFiles(
            11_000,
            "train-images-idx3-ubyte",
            "train-labels-idx1-ubyte",
            "469f9cac911ef67b2fc9d1a2914431d128f591c2f7cdfaac36bc20bb41b97d5d",
            "f7d6461abdf45b7a9f122c56ddb0381d861f6a010631cf79ddf644643c02b29b",
        ),
        "test": SplitFiles(
            2_000,
            "t10k-images-idx3-ubyte",
            "t10k-labels-idx1-ubyte",
            "15a92dd1e9b16ea361928086e77df4dfa890c255c00b5a8c8162c1040ce8eef1",
            "234596aeb6eb48133ec99a62541f90bc0728c9559a681f1e0638037462458f2c",
        ),
    },
)
EDITIONS = {edition.name: edition for edition in (FULL, EMBEDDED)}


# TFDS registers every builder under its name; ours must not take the place of TFDS's own.
with tfds.core.registered.skip_registration():

    class FashionMNIST(IdxBuilder):
        """Fashion-MNIST from IDX files.

        >>> builder = FashionMNIST(config="embedded", data_dir="datasets")  # doctest: +SKIP
        >>> builder.download_and_prepare()  # doctest: +SKIP
        >>> builder.as_data_source(split="train")[0]["image"].shape  # doctest: +SKIP
        (28, 28, 1)
        """

        name = "fashion_mnist"
        VERSION = tfds.core.Version("1.0.0")
        MANUAL_DOWNLOAD_INSTRUCTIONS = "Put the four .gz files of Fashion-MNIST into manual_dir."
        BUILDER_CONFIGS = (
            tfds.core.BuilderConfig(name="full", description="All 60,000 + 10,000 pictures."),
            tfds.core.BuilderConfig(name="embedded", description="11,000 + 2,000 of them."),
        )
        EDITIONS = EDITIONS
        CLASS_NAMES = CLASS_NAMES
        DESCRIPTION = __doc__
        HOMEPAGE = "https://github.com/zalandoresearch/fashion-mnist"
        LICENSE = "MIT, Copyright (c) 2017 Zalando SE"
