"""A data set that fits in memory: pictures and labels as NumPy arrays."""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float32, Int, Int32, UInt8


@dataclass(frozen=True, eq=False)
class ArrayDataset:
    """Labelled pictures in memory, and where they came from.

    `images` are uint8 in [0, 255], or float32 where they are features that a network computed (with
    h = w = 1). `labels` index into `class_names`: one a picture, or for segmentation one a pixel,
    with 255 for pixels that do not count. `source` is one sentence for people, such as
    "full set, local files in /usr/share/datasets/fashion-mnist".
    """

    images: UInt8[np.ndarray, "n h w c"] | Float32[np.ndarray, "n h w c"]
    labels: Int32[np.ndarray, "n"] | UInt8[np.ndarray, "n h w"]
    class_names: tuple[str, ...]
    name: str
    split: str
    source: str

    def __post_init__(self) -> None:
        if len(self.images) != len(self.labels):
            raise ValueError(f"{len(self.images)} images but {len(self.labels)} labels")

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, indices: Int[np.ndarray, "m"]) -> "ArrayDataset":
        """The examples at `indices`, in that order: for a validation split or a quick run.

        >>> small = dataset.subset(np.arange(100))  # doctest: +SKIP
        """
        return replace(self, images=self.images[indices], labels=self.labels[indices])
