"""Pascal VOC 2007 and 2012 from the unpacked official archives, as a TFDS builder.

The JPEGs are kept as the original bytes. 2007 has 5,011 pictures for training and validation and
4,952 for test; of 2012 only the 11,540 for training and validation have published annotations.
"""

import tensorflow_datasets as tfds

from jaxvision.data.builders.annotated_pictures import AnnotatedPictures
from jaxvision.data.formats.voc import CLASS_NAMES

with tfds.core.registered.skip_registration():

    class VOC(AnnotatedPictures):
        """Pascal VOC: 20 classes, boxes with a difficult flag, some with instance masks."""

        name = "voc"
        CLASS_NAMES = CLASS_NAMES
        HOMEPAGE = "http://host.robots.ox.ac.uk/pascal/VOC/"
        BUILDER_CONFIGS = (
            tfds.core.BuilderConfig(name="2007", description="9,963 pictures."),
            tfds.core.BuilderConfig(name="2012", description="11,540 pictures."),
        )
