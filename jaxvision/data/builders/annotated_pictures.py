"""What the TFDS builders of detection data sets share: pictures with their objects, as records.

A builder writes `AnnotatedPicture`s that were read from the official files, with the names of the
lists (splits) that each is in, so that a picture of both train and trainval is stored once.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from jaxvision.data.formats.annotated import AnnotatedObject, AnnotatedPicture
from jaxvision.data.prepared import CHUNK, QuietPreparation, damaged, track

Listed = Sequence[tuple[AnnotatedPicture, tuple[str, ...]]]
SPLIT = "pictures"


with tfds.core.registered.skip_registration():

    class AnnotatedPictures(
        QuietPreparation, tfds.core.GeneratorBasedBuilder, skip_registration=True
    ):
        """Writes the pictures that it is given; read with `read_annotated`."""

        VERSION = tfds.core.Version("1.0.0")
        CLASS_NAMES: tuple[str, ...] = ()
        ENCODING, HOMEPAGE = "jpeg", ""

        def __init__(self, *, pictures: Listed = (), provenance: str | None = None, **kwargs: Any):
            self._pictures, self._provenance = pictures, provenance
            super().__init__(file_format="array_record", **kwargs)

        def _info(self) -> tfds.core.DatasetInfo:
            image = tfds.features.Image(shape=(None, None, 3), encoding_format=self.ENCODING)
            numbers = {"shape": (None,), "dtype": np.int64}
            return tfds.core.DatasetInfo(
                builder=self,
                description=type(self).__doc__,
                features=tfds.features.FeaturesDict(
                    {
                        "image": image,
                        "file_name": tfds.features.Text(),
                        "image_id": np.int64,
                        "size": tfds.features.Tensor(shape=(2,), dtype=np.int64),
                        "boxes": tfds.features.Tensor(shape=(None, 4), dtype=np.float32),
                        "labels": tfds.features.Tensor(**numbers),
                        "difficult": tfds.features.Tensor(**numbers),
                        "lists": tfds.features.Text(),
                        "instances": tfds.features.Text(),  # a PNG, or nothing
                    }
                ),
                homepage=self.HOMEPAGE,
                metadata=tfds.core.MetadataDict(source=self._provenance or "unknown"),
                disable_shuffling=True,
            )

        def _split_generators(
            self, dl_manager: tfds.download.DownloadManager
        ) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
            return {SPLIT: self._generate_examples()}

        def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
            pictures = track(self._pictures, f"preparing {self.name}", len(self._pictures))
            for key, (picture, lists) in enumerate(pictures):
                objects = picture.objects
                boxes = np.array([each.box for each in objects], np.float32).reshape(-1, 4)
                yield (
                    key,
                    {
                        "image": Path(picture.image).read_bytes(),
                        "file_name": Path(picture.image).name,
                        "image_id": picture.image_id,
                        "size": np.array(picture.size, np.int64),
                        "boxes": boxes,
                        "labels": np.array([each.label for each in objects], np.int64),
                        "difficult": np.array([each.difficult for each in objects], np.int64),
                        "lists": " ".join(lists),
                        "instances": picture.instances or b"",
                    },
                )


def read_annotated(builder: Any) -> dict[str, list[AnnotatedPicture]]:
    """The pictures of each list of a prepared builder, in order; their files stay in memory once.

    A prepared folder that is damaged raises `UserError`.
    """
    from tensorflow_datasets.proto import tf_example_pb2

    lists: dict[str, list[AnnotatedPicture]] = {}
    try:
        raw = tfds.decode.DeserializeMethod.RAW_BYTES
        source = builder.as_data_source(SPLIT, deserialize_method=raw)
        expected = builder.info.splits[SPLIT].num_examples
        for start in range(0, len(source), CHUNK):  # so that records and files are not both there
            for record in source.__getitems__(range(start, min(start + CHUNK, len(source)))):
                feature = tf_example_pb2.Example.FromString(record).features.feature
                names = feature["lists"].bytes_list.value[0].decode().split()
                picture = _from_record(feature, f"{builder.data_path}")
                for name in names:
                    lists.setdefault(name, []).append(picture)
    except Exception as error:  # TFDS, array_record and protobuf each raise their own kinds
        raise damaged(builder.data_path, f"it can't be read ({error})") from error
    if len(source) != expected:
        raise damaged(builder.data_path, f"it holds {len(source)} of {expected} pictures")
    return lists


def _from_record(feature: Any, place: str) -> AnnotatedPicture:
    name = f"{place}: {feature['file_name'].bytes_list.value[0].decode()}"
    boxes = np.array(feature["boxes"].float_list.value, np.float64).reshape(-1, 4)
    labels, difficult = feature["labels"].int64_list.value, feature["difficult"].int64_list.value
    objects = tuple(
        AnnotatedObject(tuple(box), label, f"{name}, object {number}", difficult=bool(hard))
        for number, (box, label, hard) in enumerate(
            zip(boxes.tolist(), labels, difficult, strict=True), start=1
        )
    )
    height, width = feature["size"].int64_list.value
    return AnnotatedPicture(
        image=feature["image"].bytes_list.value[0],
        name=name,
        image_id=feature["image_id"].int64_list.value[0],
        size=(height, width),
        objects=objects,
        instances=feature["instances"].bytes_list.value[0] or None,
    )
