"""Objects drawn onto their picture: boxes with names and scores, masks with contours.

Pictures are uint8 [h, w, 3] or [h, w, 1]. A small picture is enlarged first, each pixel to a square
of whole pixels, so that a box's edge is where it is and its name can be read.
"""

import colorsys
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Integer, Shaped, UInt8

from jaxvision.report import theme
from jaxvision.report.draw import as_rgb

LETTER_HEIGHT = 14
"""Of names, in pixels of the drawing."""
_LINE = 2
_DOT = 4
_MASK_OPACITY = 0.4


def class_colors(num_classes: int) -> UInt8[np.ndarray, "k 3"]:
    """Returns one strong colour a class, neighbours far apart in hue; the first ones never change.

    >>> np.array_equal(class_colors(20)[:3], class_colors(3))
    True
    """
    colors = np.zeros((num_classes, 3))
    for i in range(num_classes):
        hue = (0.57 + i * 0.618034) % 1.0  # the golden ratio never comes back to the same hue
        colors[i] = colorsys.hsv_to_rgb(hue, (0.85, 0.6, 0.95)[i % 3], (0.9, 1.0, 0.7)[i % 3])
    # Lighter, because a strong blue is lost on a dark picture.
    return np.round(255 * (0.2 + 0.8 * colors)).astype(np.uint8)


def picture_scale(size: tuple[int, int], shortest: int = 360) -> int:
    """Returns by which whole number to enlarge a picture of `size` (h, w) to about `shortest`.

    >>> picture_scale((128, 128)), picture_scale((375, 500))
    (3, 1)
    """
    return max(1, round(shortest / max(min(size), 1)))


def enlarge(image: Shaped[np.ndarray, "h w *c"], scale: int) -> np.ndarray:
    """Returns the picture with every pixel repeated `scale` times along both sides."""
    return image.repeat(scale, axis=0).repeat(scale, axis=1)


def draw_objects(
    image: UInt8[np.ndarray, "h w c"],
    boxes: Shaped[np.ndarray, "n 4"],
    labels: Integer[np.ndarray, " n"],
    class_names: Sequence[str],
    *,
    scores: Shaped[np.ndarray, " n"] | None = None,
    masks: Sequence[Bool[np.ndarray, "h w"]] | Bool[np.ndarray, "n h w"] | None = None,
    keypoints: Shaped[np.ndarray, "n p 2"] | None = None,
    dashed: Bool[np.ndarray, " n"] | None = None,
    remarks: Sequence[str] | None = None,
    scale: int | None = None,
) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Returns the picture, `scale` times as large, with its objects.

    Boxes are (x1, y1, x2, y2) in the picture's pixels; the line is inside its box, and what is
    outside the picture is cut off. A name is followed by the score in per cent and by the object's
    remark; names are placed so that they cover each other as little as possible. `keypoints` are
    dots at (x, y), none where that is NaN. The best scores, without scores the last objects, are on
    top. Every class has its colour, as `class_colors` says.

    >>> image = np.zeros((2, 4, 3), np.uint8)
    >>> drawn = draw_objects(image, np.array([[0, 0, 2, 2]]), np.array([0]), ["bag"], scale=20)
    >>> drawn.shape, drawn[39, 20].tolist() == class_colors(1)[0].tolist(), drawn[39, 40].tolist()
    ((40, 80, 3), True, [0, 0, 0])
    """
    from PIL import Image, ImageDraw

    scale = picture_scale(image.shape[:2]) if scale is None else scale
    colors = class_colors(len(class_names))
    order = np.arange(len(labels)) if scores is None else np.argsort(scores, kind="stable")
    canvas = enlarge(as_rgb(image), scale)
    for j in order if masks is not None else ():
        _blend_mask(canvas, enlarge(masks[j], scale), colors[labels[j]])
    picture = Image.fromarray(canvas)
    draw = ImageDraw.Draw(picture)
    corners = [_corners(boxes[j], scale) for j in range(len(labels))]
    for j in order:
        if corners[j] is not None:
            color = tuple(colors[labels[j]].tolist())
            _draw_box(draw, corners[j], color, dashed is not None and bool(dashed[j]))
        dots = np.zeros((0, 2)) if keypoints is None else np.asarray(keypoints[j]) * scale
        for x, y in dots[np.isfinite(dots).all(axis=1)].tolist():
            color = tuple(colors[labels[j]].tolist())
            dot = (x - _DOT, y - _DOT, x + _DOT, y + _DOT)
            draw.ellipse(dot, fill=color, outline=readable_on(color))
    taken: list[tuple[int, int, int, int]] = []
    shown = [place for place in corners if place is not None]
    for j in order[::-1]:  # the best score has the first choice of a place
        if corners[j] is None:
            continue
        words = [theme.clean(class_names[labels[j]], 24)]
        if scores is not None:
            words.append(f"{100 * float(scores[j]):.0f} %")
        if remarks is not None and remarks[j]:
            words.append(theme.clean(remarks[j], 24))
        color = tuple(colors[labels[j]].tolist())
        _draw_name(draw, corners[j], " ".join(words), color, taken, shown)
    return np.asarray(picture).copy()


@lru_cache
def letters(height: int = LETTER_HEIGHT) -> "PIL.ImageFont.FreeTypeFont":
    """Returns the font of all drawings: matplotlib's own, the same on every machine."""
    import matplotlib
    from PIL import ImageFont

    return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", height)


def readable_on(color: Sequence[int]) -> str:
    """Returns black or white, whichever is easier to read on `color`."""
    red, green, blue = color[:3]
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "white"


def _corners(box: np.ndarray, scale: int) -> tuple[int, int, int, int] | None:
    """Returns the box's first and last pixel in the drawing, None for an empty box."""
    x1, y1, x2, y2 = (float(value) * scale for value in box)
    if not (x2 > x1 and y2 > y1):
        return None
    left, top = round(x1), round(y1)
    return left, top, max(round(x2) - 1, left), max(round(y2) - 1, top)


def _draw_box(draw, corners: tuple[int, int, int, int], color: tuple, dashed: bool) -> None:
    left, top, right, bottom = corners
    width = min(_LINE, right - left + 1, bottom - top + 1)
    if not dashed:
        # Four filled bars: Pillow's own outline is wrong for a box of one pixel.
        for bar in (
            (left, top, right, top + width - 1),
            (left, bottom - width + 1, right, bottom),
            (left, top, left + width - 1, bottom),
            (right - width + 1, top, right, bottom),
        ):
            draw.rectangle(bar, fill=color)
        return
    for i in range(width):
        for start in range(left, right + 1, 9):
            end = min(start + 4, right)
            draw.line([(start, top + i), (end, top + i)], fill=color)
            draw.line([(start, bottom - i), (end, bottom - i)], fill=color)
        for start in range(top, bottom + 1, 9):
            end = min(start + 4, bottom)
            draw.line([(left + i, start), (left + i, end)], fill=color)
            draw.line([(right - i, start), (right - i, end)], fill=color)


def _draw_name(draw, corners, words: str, color: tuple, taken: list, shown: list) -> None:
    width = round(draw.textlength(words, font=letters())) + 6
    height = LETTER_HEIGHT + 5
    most_left = max(draw.im.size[0] - width, 0)
    left, top, right, bottom = corners
    lowest = max(draw.im.size[1] - height, 0)
    candidates = []
    for x in (left, right + 1 - width):
        # Above the box, within it at the top, under it, within it at the bottom.
        for y in (top - height, top, bottom + 1, bottom + 1 - height):
            x, y = min(max(x, 0), most_left), min(max(y, 0), lowest)
            candidates.append((x, y, x + width, y + height))

    def covered(place: tuple[int, int, int, int]) -> float:
        # Another name must not be covered; an object had better not be.
        names, objects = (sum(_shared(place, other) for other in each) for each in (taken, shown))
        return names + 0.1 * objects

    place = min(candidates, key=covered)
    taken.append(place)
    draw.rectangle((place[0], place[1], place[2] - 1, place[3] - 1), fill=color)
    draw.text((place[0] + 3, place[1] + 1), words, fill=readable_on(color), font=letters())


def _shared(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> int:
    """Returns how many pixels two places share."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return max(width, 0) * max(height, 0)


def _blend_mask(canvas: np.ndarray, mask: np.ndarray, color: np.ndarray) -> None:
    """Tints the mask's pixels in place, and draws its contour, two pixels wide, inside it."""
    canvas[mask] = ((1 - _MASK_OPACITY) * canvas[mask] + _MASK_OPACITY * color).astype(np.uint8)
    inner = np.pad(mask, _LINE)
    for axis in (0, 1):
        shifts = [np.roll(inner, step, axis) for step in range(-_LINE, _LINE + 1)]
        inner = np.logical_and.reduce(shifts)
    canvas[mask & ~inner[_LINE:-_LINE, _LINE:-_LINE]] = color
