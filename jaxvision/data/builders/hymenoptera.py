"""Ants and bees, the pictures of PyTorch's transfer learning tutorial, as a TFDS builder.

244 train and 153 val JPEGs of many sizes, a very small part of ImageNet; kept as the original bytes
and in torchvision's order, by class and then by name. The archive's one GIF, which says that a
picture was not found, is left out as it is there.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from jaxvision.data.prepared import QuietPreparation, track
from jaxvision.errors import UserError

CLASS_NAMES = ("ants", "bees")
URL = "https://download.pytorch.org/tutorial/hymenoptera_data.zip"
ARCHIVE, FOLDER = "hymenoptera_data.zip", "hymenoptera_data"
ARCHIVE_SHA256 = "fbc41b31d544714d18dd1230b1e2b455e1557766e13e67f9f5a7a23af7c02209"
SIZES = {"train": 244, "val": 153}


def unpacked_folder(folder: Path) -> Path | None:
    """`folder`, or the folder of the archive's name in it, whichever has the pictures; or None."""
    for place in (folder, folder / FOLDER):
        if (place / "train" / CLASS_NAMES[0]).is_dir():
            return place
    return None


def list_split(folder: Path, split: str) -> list[tuple[Path, str]]:
    """The pictures of a split with their classes; another number of them raises `UserError`."""
    pictures = [
        (path, name)
        for name in CLASS_NAMES
        for path in sorted((folder / split / name).glob("*"))
        if path.suffix.lower() in (".jpg", ".jpeg") and not path.name.startswith(".")
    ]
    if len(pictures) != SIZES[split]:
        raise UserError(
            f"{folder / split}: expected the {SIZES[split]} pictures of {' and '.join(CLASS_NAMES)}"
            f", got {len(pictures)}: unpack {ARCHIVE} again, or load pictures of your own as "
            "image_folder"
        )
    return pictures


with tfds.core.registered.skip_registration():

    class Hymenoptera(QuietPreparation, tfds.core.GeneratorBasedBuilder):
        """Ants and bees from the unpacked archive. `provenance` says where it came from."""

        name = "hymenoptera"
        VERSION = tfds.core.Version("1.0.0")
        MANUAL_DOWNLOAD_INSTRUCTIONS = f"Unpack {ARCHIVE} and give its folder as manual_dir."
        BUILDER_CONFIGS = (
            tfds.core.BuilderConfig(name="full", description="All 244 + 153 pictures."),
        )

        def __init__(self, *, provenance: str | None = None, **kwargs: Any):
            self._provenance = provenance
            super().__init__(file_format="array_record", **kwargs)

        def _info(self) -> tfds.core.DatasetInfo:
            image = tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg")
            return tfds.core.DatasetInfo(
                builder=self,
                description=__doc__,
                features=tfds.features.FeaturesDict(
                    {
                        "image": image,
                        "label": tfds.features.ClassLabel(names=list(CLASS_NAMES)),
                        "file_name": tfds.features.Text(),
                    }
                ),
                supervised_keys=("image", "label"),
                homepage="https://pytorch.org/tutorials/beginner/transfer_learning_tutorial.html",
                metadata=tfds.core.MetadataDict(source=self._provenance or "unknown"),
                disable_shuffling=True,
            )

        def _split_generators(
            self, dl_manager: tfds.download.DownloadManager
        ) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
            folder = unpacked_folder(Path(dl_manager.manual_dir))
            assert folder is not None, "looked for before"
            return {split: self._generate_examples(folder, split) for split in SIZES}

        def _generate_examples(
            self, folder: Path, split: str
        ) -> Iterator[tuple[int, dict[str, Any]]]:
            pictures = list_split(folder, split)
            for key, (path, label) in enumerate(
                track(pictures, f"preparing {split}", len(pictures))
            ):
                name = path.relative_to(folder).as_posix()
                yield key, {"image": path.read_bytes(), "label": label, "file_name": name}
