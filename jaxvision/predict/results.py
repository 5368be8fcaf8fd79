"""What a model says of one picture, by task; each can be drawn onto the picture.

Boxes are (x1, y1, x2, y2) in pixels of the picture as it was given, upright.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Integer, UInt8

from jaxvision.data.detection_geometry import resize_masks
from jaxvision.data.geometry import resize
from jaxvision.ops import BoxMasks

LONGEST_DRAWN = 1920
"""Pixels: larger pictures are drawn at this size, or lines and names would be too small to see."""


@dataclass(frozen=True, eq=False)
class Classification:
    """What a classifier says of one picture: `probabilities` [k] over `class_names`."""

    probabilities: np.ndarray
    class_names: tuple[str, ...]

    @property
    def label(self) -> int:
        """The most probable class."""
        return int(self.probabilities.argmax())

    @property
    def name(self) -> str:
        """The name of the most probable class."""
        return self.class_names[self.label]

    @property
    def score(self) -> float:
        """The probability of the most probable class."""
        return float(self.probabilities[self.label])

    def top(self, count: int) -> list[tuple[str, float]]:
        """The `count` most probable classes with their probabilities, the most probable first."""
        order = np.argsort(-self.probabilities, kind="stable")[:count]
        return [(self.class_names[i], float(self.probabilities[i])) for i in order]

    def draw(self, image: UInt8[np.ndarray, "h w c"]) -> UInt8[np.ndarray, "h2 w2 3"]:
        """Returns the picture under the name and probability of its class."""
        from jaxvision.report.label_maps import draw_panels
        from jaxvision.report.overlay import picture_scale

        image, _ = _drawable(image)
        title = f"{self.name} {100 * self.score:.0f} %"
        return draw_panels({title: image}, picture_scale(image.shape[:2]))


@dataclass(frozen=True, eq=False)
class Localization(Classification):
    """What the one object of a picture is, and its `box` [4]."""

    box: Float[np.ndarray, "4"]

    def draw(self, image: UInt8[np.ndarray, "h w c"]) -> UInt8[np.ndarray, "h2 w2 3"]:
        """Returns the picture with the box, its class and that one's probability."""
        from jaxvision.report.overlay import draw_objects

        image, scale = _drawable(image)
        return draw_objects(
            image,
            self.box[None] * scale,
            np.array([self.label]),
            self.class_names,
            scores=np.array([self.score]),
        )


@dataclass(frozen=True, eq=False)
class Detections:
    """The n objects found in one picture of `size` (h, w), best first.

    `boxes` float32 [n, 4], `scores` [n] from 0 to 1, `labels` int [n] into `class_names`, and, of a
    model that finds them, `masks`, each bool [h, w], or `keypoints` [n, p, 2], (x, y) in pixels,
    with their logits `keypoint_scores` [n, p]. Masks are pasted one by one as they are asked for,
    because a hundred of a large picture are gigabytes; `masks.run_lengths()` are small.
    """

    boxes: Float[np.ndarray, "n 4"]
    scores: Float[np.ndarray, "n"]
    labels: Int[np.ndarray, "n"]
    class_names: tuple[str, ...]
    size: tuple[int, int]
    masks: BoxMasks | Bool[np.ndarray, "n h w"] | None = None
    keypoints: Float[np.ndarray, "n p 2"] | None = None
    keypoint_scores: Float[np.ndarray, "n p"] | None = None

    def __len__(self) -> int:
        return len(self.scores)

    def names(self) -> list[str]:
        """The class of each object by name."""
        return [self.class_names[label] for label in self.labels]

    def above(self, threshold: float) -> "Detections":
        """Those whose score is at least `threshold`."""
        stay = self.scores >= threshold

        def chosen(field):
            if isinstance(field, BoxMasks):
                return field.select(stay)
            return None if field is None else field[stay]

        names = ("boxes", "scores", "labels", "masks", "keypoints", "keypoint_scores")
        return replace(self, **{name: chosen(getattr(self, name)) for name in names})

    def as_prediction(self) -> dict[str, Any]:
        """The arrays by name, as `jaxvision.metrics` takes what was found in a picture.

        Masks that are not pixels yet are run lengths there.
        """
        fields = {"boxes": self.boxes, "scores": self.scores, "labels": self.labels}
        if self.keypoints is not None:
            fields["keypoints"] = self.keypoints
        if self.masks is None:
            return fields
        packed = isinstance(self.masks, BoxMasks)
        return {**fields, "masks": self.masks.run_lengths() if packed else self.masks}

    def draw(self, image: UInt8[np.ndarray, "h w c"]) -> UInt8[np.ndarray, "h2 w2 3"]:
        """Returns the picture, a small one enlarged, with all that was found in it."""
        from jaxvision.report.overlay import draw_objects

        image, scale = _drawable(image)
        masks, keypoints, size = self.masks, self.keypoints, image.shape[:2]
        if masks is not None:
            packed = isinstance(masks, BoxMasks)
            masks = masks.resized(size) if packed else resize_masks(masks, size)
        return draw_objects(
            image,
            self.boxes * scale,
            self.labels,
            self.class_names,
            scores=self.scores,
            masks=masks,
            keypoints=None if keypoints is None else keypoints * scale[:2],
        )


@dataclass(frozen=True, eq=False)
class Segmentation:
    """The most probable class of every pixel of the picture: `labels` uint8 [h, w]."""

    labels: Integer[np.ndarray, "h w"]
    class_names: tuple[str, ...]

    def shares(self) -> dict[str, float]:
        """The share of the pixels that each class has, the largest first; absent ones are not."""
        counts = np.bincount(self.labels.reshape(-1), minlength=len(self.class_names))
        order = [int(i) for i in np.argsort(-counts, kind="stable") if counts[i]]
        return {self.class_names[i]: float(counts[i] / self.labels.size) for i in order}

    def draw(self, image: UInt8[np.ndarray, "h w c"]) -> UInt8[np.ndarray, "h2 w2 3"]:
        """Returns the picture beside its map, with a legend of the classes that occur."""
        from jaxvision.report.label_maps import color_labels, draw_legend, draw_panels, map_colors
        from jaxvision.report.overlay import picture_scale

        k = len(self.class_names)
        image, _ = _drawable(image)
        rows, columns = (
            np.arange(new) * old // new
            for new, old in zip(image.shape[:2], self.labels.shape, strict=True)
        )
        labels = self.labels[rows][:, columns]
        panels = {"picture": image, "classes": color_labels(labels, k)}
        drawn = draw_panels(panels, picture_scale(image.shape[:2], shortest=240))
        present = np.unique(self.labels)
        names = [self.class_names[i] for i in present]
        legend = draw_legend(names, map_colors(k)[present], drawn.shape[1])
        return np.concatenate([drawn, legend])


def _drawable(
    image: UInt8[np.ndarray, "h w c"],
) -> tuple[UInt8[np.ndarray, "h2 w2 c"], Float[np.ndarray, "4"]]:
    """Returns the picture, a very large one smaller, and by what boxes on it then shrink."""
    h, w = image.shape[:2]
    factor = min(1.0, LONGEST_DRAWN / max(h, w))
    size = max(1, round(h * factor)), max(1, round(w * factor))
    scale = np.array([size[1] / w, size[0] / h] * 2, np.float32)
    return (image if size == (h, w) else resize(image, size)), scale


Result = Classification | Localization | Detections | Segmentation
