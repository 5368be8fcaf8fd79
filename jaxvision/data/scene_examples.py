"""The scenes of a split as garment_scenes keeps them, drawn in parallel processes.

Here and not beside the TFDS builder, because a process that draws need not load TFDS.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int64

from jaxvision.data.parallel import map_in_processes
from jaxvision.data.scene_drawing import Garments, draw_scene

VAL_EVERY = 12
CHUNK = 50
"""Scenes that a process draws at a time."""
CHUNKS_PER_PROCESS = 4
"""At least: starting a process takes as long as drawing some hundred scenes."""


def numbers_of_split(split: str, count: int) -> Int64[np.ndarray, "n"]:
    """Which of the `count` pictures of Fashion-MNIST's split are for scenes of this split.

    val has every twelfth picture of the train split, train the others; test has the test split's.

    >>> numbers_of_split("val", 30).tolist()
    [11, 23]
    """
    numbers = np.arange(count)
    if split == "test":
        return numbers
    is_val = numbers % VAL_EVERY == VAL_EVERY - 1
    return numbers[is_val if split == "val" else ~is_val]


@dataclass(frozen=True, eq=False)
class SceneEncoder:
    """Draws and encodes the scenes of some numbers; it can be sent to another process."""

    garments: Garments
    numbers: Int64[np.ndarray, "n"]
    split: str
    size: int
    number: tuple[int, int]

    @classmethod
    def of(
        cls, pictures: Mapping[str, Any], split: str, size: int, number: tuple[int, int]
    ) -> "SceneEncoder":
        """Draws a split's scenes from the pictures of Fashion-MNIST (train, test) for it."""
        dataset = pictures["test" if split == "test" else "train"]
        numbers = numbers_of_split(split, len(dataset.images))
        garments = Garments(dataset.images[numbers, ..., 0], dataset.labels[numbers])
        return cls(garments, numbers, split, size, tuple(number))

    def __call__(self, indices: range) -> list[dict[str, Any]]:
        return [self.example(index) for index in indices]

    def example(self, index: int) -> dict[str, Any]:
        import cv2

        scene = draw_scene(self.garments, self.split, index, size=self.size, number=self.number)
        return {
            "image": cv2.imencode(".png", scene.image[..., ::-1])[1].tobytes(),
            "instances": cv2.imencode(".png", scene.instances)[1].tobytes(),
            "boxes": scene.boxes,
            "labels": scene.labels.tolist(),
            "garments": self.numbers[scene.garments].tolist(),
        }


def encode_scenes(encoder: SceneEncoder, count: int, *, processes: int) -> Iterator[dict[str, Any]]:
    """Yields scenes 0 to `count` - 1 in order, drawn in at most `processes` processes."""
    chunks = [range(i, min(i + CHUNK, count)) for i in range(0, count, CHUNK)]
    enough = -(-len(chunks) // CHUNKS_PER_PROCESS)
    for chunk in map_in_processes(encoder, chunks, processes=min(processes, enough)):
        yield from chunk
