"""Penn-Fudan pedestrians from the unpacked official archive, as a TFDS builder: 170 PNGs."""

import tensorflow_datasets as tfds

from jaxvision.data.builders.annotated_pictures import AnnotatedPictures
from jaxvision.data.formats.penn_fudan import CLASS_NAMES

with tfds.core.registered.skip_registration():

    class PennFudan(AnnotatedPictures):
        """Pedestrians with instance masks, at two universities; boxes go round the masks."""

        name = "penn_fudan"
        CLASS_NAMES = CLASS_NAMES
        ENCODING, HOMEPAGE = "png", "https://www.cis.upenn.edu/~jshi/ped_html/"
        BUILDER_CONFIGS = (tfds.core.BuilderConfig(name="full", description="All 170 pictures."),)
