"""Label maps in colour, mistakes, legends, and pictures side by side under their titles.

A label map is an integer array [h, w]: 0 the background, then the classes, 255 what is ignored.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Integer, UInt8

from jaxvision.metrics.segmentation import IGNORED
from jaxvision.report import theme
from jaxvision.report.draw import as_rgb
from jaxvision.report.overlay import LETTER_HEIGHT, class_colors, enlarge, letters

BACKGROUND_COLOR = (43, 48, 56)
IGNORED_COLOR = (222, 226, 230)
RIGHT_COLOR = (120, 128, 138)
WRONG_COLOR = (226, 61, 40)
_PAPER = (246, 248, 250)
_INK = (31, 35, 40)
_GAP = 8


def map_colors(num_classes: int) -> UInt8[np.ndarray, "k 3"]:
    """Returns the colour of each label of a map: the background dark, the classes' as in boxes."""
    return np.concatenate(
        [np.array([BACKGROUND_COLOR], np.uint8), class_colors(max(num_classes - 1, 0))]
    )[:num_classes]


def color_labels(
    labels: Integer[np.ndarray, "h w"], num_classes: int
) -> UInt8[np.ndarray, "h w 3"]:
    """Returns the map in its classes' colours; pixels that are ignored are light grey.

    >>> color_labels(np.array([[0, 255]]), num_classes=2).tolist()
    [[[43, 48, 56], [222, 226, 230]]]
    """
    present = np.unique(labels)
    wrong = present[(present != IGNORED) & ((present < 0) | (present >= num_classes))]
    if wrong.size:
        raise ValueError(
            f"expected labels from 0 to {num_classes - 1} or 255, got {wrong.tolist()}"
        )
    table = np.full((256, 3), IGNORED_COLOR, np.uint8)
    table[:num_classes] = map_colors(num_classes)
    return table[labels]


def mark_mistakes(
    labels: Integer[np.ndarray, "h w"], predictions: Integer[np.ndarray, "h w"]
) -> UInt8[np.ndarray, "h w 3"]:
    """Returns a map of what is right (grey), wrong (red) and ignored (light)."""
    right = np.where((labels == predictions)[..., None], RIGHT_COLOR, WRONG_COLOR)
    return np.where((labels == IGNORED)[..., None], IGNORED_COLOR, right).astype(np.uint8)


def draw_panels(
    panels: Mapping[str, UInt8[np.ndarray, "_ _ _"]], scale: int = 1
) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Returns the pictures side by side, `scale` times as large, each under its title.

    >>> draw_panels({"a": np.zeros((4, 9, 3), np.uint8), "b": np.zeros((6, 9, 1), np.uint8)}).shape
    (28, 26, 3)
    """
    from PIL import Image, ImageDraw

    if not panels:
        raise ValueError("expected at least one picture")
    pictures = [enlarge(as_rgb(picture), scale) for picture in panels.values()]
    top = LETTER_HEIGHT + _GAP
    height = top + max(picture.shape[0] for picture in pictures)
    width = sum(picture.shape[1] for picture in pictures) + _GAP * (len(pictures) - 1)
    canvas = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(canvas)
    x = 0
    for title, picture in zip(panels, pictures, strict=True):
        words = theme.clean(title, 60)
        while words and draw.textlength(words, font=letters()) > picture.shape[1]:
            words = words[:-2] + "…" if len(words) > 2 else ""
        draw.text((x, 2), words, fill=_INK, font=letters())
        canvas.paste(Image.fromarray(picture), (x, top))
        x += picture.shape[1] + _GAP
    return np.asarray(canvas).copy()


def draw_legend(
    class_names: Sequence[str], colors: UInt8[np.ndarray, "k 3"], width: int
) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Returns a strip of that many pixels in width with each name beside its colour."""
    from PIL import Image, ImageDraw

    side, line = LETTER_HEIGHT, LETTER_HEIGHT + _GAP
    places, x, y = [], _GAP, 0
    for name in class_names:
        words = theme.clean(name, 30)
        needed = side + 4 + round(letters().getlength(words)) + 2 * _GAP
        if x > _GAP and x + needed > width:
            x, y = _GAP, y + line
        places.append((x, y, words))
        x += needed
    canvas = Image.new("RGB", (width, y + line), _PAPER)
    draw = ImageDraw.Draw(canvas)
    for (x, y, words), color in zip(places, colors, strict=True):
        square = (x, y + _GAP // 2, x + side - 1, y + _GAP // 2 + side - 1)
        draw.rectangle(square, fill=tuple(color.tolist()))
        draw.text((x + side + 4, y + _GAP // 2 - 1), words, fill=_INK, font=letters())
    return np.asarray(canvas).copy()
