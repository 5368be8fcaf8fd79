"""Draws the scenes of garment_scenes: pictures of Fashion-MNIST on textured canvases.

A scene is a pure function of its split, its number in it, its size, how many garments it may have
and the pictures they are drawn from. Its random numbers are Philox's raw words, whose stream NumPy
promises never to change, with a counter of its own for each scene: so neither how many scenes are
asked for nor in how many processes they are drawn changes a byte.

Lengths here are in pixels of a scene of 128 x 128; other sizes scale them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int32, UInt8

VERSION = "1.0.0"
"""Of the scenes: whatever changes a byte of one changes this too."""
SEED = 0
SPLITS = ("train", "val", "test")
REFERENCE_SIZE = 128
LONGEST_SIDE = (20.0, 72.0)
ASPECT = (0.8, 1.25)
LEAST_VISIBLE = 0.6
EMPTY_SHARE = 0.03
POSITIONS = 12
"""Places that are tried for a garment before another one is drawn instead."""

SILHOUETTE_ABOVE = 10
"""Grey levels of Fashion-MNIST above this belong to the garment; its background is 0."""
SPECK = 0.1
"""Parts of a silhouette smaller than this share of the largest part are dirt in the picture."""
LEAST_COVERAGE = 0.3
"""Of a pixel on a silhouette's edge: a dark trim, such as a white sole, is not to vanish."""


@dataclass(frozen=True, eq=False)
class Garments:
    """The pictures that a split's scenes are drawn from, and their classes."""

    images: UInt8[np.ndarray, "n 28 28"]
    labels: Int32[np.ndarray, "n"]


@dataclass(frozen=True, eq=False)
class Scene:
    """A picture, and its `m` garments in the order in which they were drawn, the last on top.

    `instances` holds j + 1 where garment j is seen, 0 elsewhere. `boxes` are tight around what is
    seen. `garments` are the numbers of the pictures, and `areas` how many pixels each garment had
    before others hid a part.
    """

    image: UInt8[np.ndarray, "h w 3"]
    instances: UInt8[np.ndarray, "h w"]
    boxes: Float32[np.ndarray, "m 4"]
    labels: Int32[np.ndarray, "m"]
    garments: Int32[np.ndarray, "m"]
    areas: Int32[np.ndarray, "m"]


def draw_scene(
    garments: Garments, split: str, index: int, *, size: int = 128, number: tuple[int, int] = (1, 8)
) -> Scene:
    """Draws scene `index` of a split: `size` x `size` pixels, with `number` (from, to) garments.

    As many as that, but where the two differ, 3 % of the scenes have no garment at all.
    """
    draws = Draws(SPLITS.index(split), index)
    lowest, highest = number
    wanted = lowest + draws.integer(highest - lowest + 1)
    if draws.uniform() < EMPTY_SHARE and lowest < highest:
        wanted = lowest = 0
    canvas = _texture(draws, size)
    _add_clutter(canvas, draws)
    cut_outs, instances, areas = _arrange(garments, draws, size, wanted, lowest)
    image = canvas.astype(np.float32)
    for cut_out in cut_outs:
        y, x = cut_out.place
        h, w = cut_out.alpha.shape
        region = image[y : y + h, x : x + w]
        region += cut_out.alpha[..., None] * (cut_out.colors - region)
    image += draws.uniform(1.0, 7.0) * draws.grain(image.shape)
    chosen = np.array([cut_out.garment for cut_out in cut_outs], np.int32)
    return Scene(
        image=np.clip(np.rint(image), 0, 255).astype(np.uint8),
        instances=instances,
        boxes=tight_boxes(instances, len(cut_outs)),
        labels=garments.labels[chosen],
        garments=chosen,
        areas=np.array(areas, np.int32),
    )


class Draws:
    """The random numbers of one scene, in a fixed order."""

    def __init__(self, stream: int, index: int):
        key = np.array([SEED, stream], np.uint64)
        counter = np.array([0, 0, index, 0], np.uint64)
        self._words = np.random.Philox(key=key, counter=counter).random_raw

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        return low + (high - low) * ((self._words() >> 11) * 2.0**-53)

    def uniforms(
        self, shape: Sequence[int], low: float = 0.0, high: float = 1.0
    ) -> Float64[np.ndarray, "*shape"]:
        words = self._words(int(np.prod(shape))) >> np.uint64(11)
        return low + (high - low) * (words * 2.0**-53).reshape(shape)

    def integer(self, stop: int) -> int:
        """One of 0 to `stop` - 1."""
        return int(self.uniform() * stop)

    def grain(self, shape: Sequence[int]) -> Float32[np.ndarray, "*shape"]:
        """Noise with mean 0 and deviation 1: sums of two bytes, so it costs next to nothing."""
        count = int(np.prod(shape))
        data = self._words(-(-count // 4)).astype("<u8").view(np.uint8)[: 2 * count]
        sums = data[:count].astype(np.float32) + data[count:]
        return ((sums - 255) / 104.51).astype(np.float32).reshape(shape)


# --------------------------------------------------------------------------------------- canvas
def _texture(draws: Draws, size: int) -> UInt8[np.ndarray, "h w 3"]:
    """Smooth colours: random fields of two scales, and waves in every second scene."""
    import cv2

    canvas = np.empty((size, size, 3), np.float32)
    canvas[:] = draws.uniforms((3,), 30.0, 225.0)
    for cells, strongest in ((2 + draws.integer(4), 70.0), (7 + draws.integer(10), 25.0)):
        field = draws.uniforms((cells, cells, 3), -1.0, 1.0).astype(np.float32)
        field *= draws.uniform(0.0, strongest)
        canvas += cv2.resize(field, (size, size), interpolation=cv2.INTER_CUBIC)
    strength, (u, v) = draws.uniform(-15.0, 15.0), draws.uniforms((2,), -40.0, 40.0)
    colors = draws.uniforms((3,), 0.3, 1.0).astype(np.float32)
    if strength > 0:
        axis = np.arange(size, dtype=np.float32) / size
        waves = strength * np.sin(np.float32(v) * axis[:, None] + np.float32(u) * axis)
        canvas += waves[..., None] * colors
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8)


def _add_clutter(canvas: UInt8[np.ndarray, "h w 3"], draws: Draws) -> None:
    """Draws ellipses, polygons and lines of garments' sizes and colours into the canvas."""
    import cv2

    size = len(canvas)
    scale, fraction = size / REFERENCE_SIZE, 3  # bits of a pixel, in OpenCV's fixed point
    for _ in range(draws.integer(7)):
        kind, filled = draws.integer(3), draws.uniform() < 0.7
        color = [int(value) for value in draws.uniforms((3,), 0.0, 256.0)]
        thickness = -1 if filled else max(1, round(scale * draws.uniform(1.0, 3.0)))
        center, radii = (
            draws.uniforms((2,), 0.0, float(size)),
            scale * draws.uniforms((2,), 4.0, 26.0),
        )
        angle = draws.uniform(0.0, 360.0)
        if kind == 0:
            (x, y), axes = _fixed(center, fraction), _fixed(radii, fraction)
            cv2.ellipse(
                canvas, (x, y), axes, angle, 0, 360, color, thickness, cv2.LINE_AA, fraction
            )
            continue
        corners = np.deg2rad(angle + np.arange(2 + kind) * 360 / (2 + kind))
        corners = center + radii * np.stack([np.cos(corners), np.sin(corners)], -1)
        points = np.array([_fixed(corner, fraction) for corner in corners], np.int32)
        if filled:
            cv2.fillPoly(canvas, [points], color, cv2.LINE_AA, fraction)
        else:
            cv2.polylines(canvas, [points], True, color, thickness, cv2.LINE_AA, fraction)
    for _ in range(draws.integer(6)):
        start, end = draws.uniforms((2, 2), -0.1 * size, 1.1 * size)
        color = [int(value) for value in draws.uniforms((3,), 0.0, 256.0)]
        thickness = max(1, round(scale * draws.uniform(0.6, 3.0)))
        ends = _fixed(start, fraction), _fixed(end, fraction)
        cv2.line(canvas, *ends, color, thickness, cv2.LINE_AA, fraction)


def _fixed(point: Float64[np.ndarray, "2"], fraction: int) -> tuple[int, int]:
    x, y = np.rint(point * 2**fraction).astype(int).tolist()
    return x, y


# -------------------------------------------------------------------------------------- garments
@dataclass(frozen=True, eq=False)
class _CutOut:
    """A garment at its size and place in a scene; `alpha` is how much it covers, 0 to 1."""

    garment: int
    colors: Float32[np.ndarray, "h w 3"]
    alpha: Float32[np.ndarray, "h w"]
    place: tuple[int, int]


def _arrange(
    garments: Garments, draws: Draws, size: int, wanted: int, lowest: int
) -> tuple[list[_CutOut], UInt8[np.ndarray, "h w"], list[int]]:
    """Places `wanted` garments, at least `lowest`, so that enough of each is seen.

    Returns them, the map of what is seen of each, and their areas.
    """
    while True:
        cut_outs: list[_CutOut] = []
        areas: list[int] = []
        instances = np.zeros((size, size), np.uint8)
        for _ in range(3 * wanted):
            if len(cut_outs) == wanted:
                break
            garment, colors, alpha = _draw_garment(garments, draws, size / REFERENCE_SIZE)
            mask = alpha > 0.5
            place = _find_place(mask, instances, areas, draws)
            if place is None:
                continue
            y, x = place
            areas.append(int(mask.sum()))
            instances[y : y + mask.shape[0], x : x + mask.shape[1]][mask] = len(areas)
            cut_outs.append(_CutOut(garment, colors, alpha, place))
        if len(cut_outs) >= lowest:
            return cut_outs, instances, areas


def _find_place(
    mask: Bool[np.ndarray, "h w"],
    instances: UInt8[np.ndarray, "size size"],
    areas: Sequence[int],
    draws: Draws,
) -> tuple[int, int] | None:
    """A place (y, x) where the mask leaves enough of each earlier garment to be seen, or None."""
    (h, w), size = mask.shape, len(instances)
    least = LEAST_VISIBLE * np.array(areas)
    seen = np.bincount(instances.ravel(), minlength=len(areas) + 1)
    for _ in range(POSITIONS):
        y, x = draws.integer(size - h + 1), draws.integer(size - w + 1)
        hidden = np.bincount(instances[y : y + h, x : x + w][mask], minlength=len(areas) + 1)
        if (seen[1:] - hidden[1:] >= least).all():
            return y, x
    return None


def _draw_garment(
    garments: Garments, draws: Draws, scale: float
) -> tuple[int, Float32[np.ndarray, "h w 3"], Float32[np.ndarray, "h w"]]:
    """One of the garments, at a random size and aspect, tinted and perhaps flipped."""
    import cv2

    index = draws.integer(len(garments.images))
    longest = scale * draws.uniform(*LONGEST_SIDE)
    aspect = np.exp(draws.uniform(*np.log(ASPECT)))
    flip = draws.uniform() < 0.5
    tint, darkest = draws.uniforms((3,), 60.0, 255.0).astype(np.float32), draws.uniform(0.15, 0.5)

    grey, silhouette = cut_out(garments.images[index])
    h, w = grey.shape[0] - 2, grey.shape[1] - 2  # without the margin
    stretch_x, stretch_y = np.sqrt(aspect), 1 / np.sqrt(aspect)
    zoom = longest / max(w * stretch_x, h * stretch_y)
    shape = (round((w + 2) * zoom * stretch_x), round((h + 2) * zoom * stretch_y))
    how = cv2.INTER_CUBIC if zoom > 1 else cv2.INTER_AREA
    both = cv2.resize(np.stack([grey, silhouette], -1), shape, interpolation=how)
    if flip:
        both = both[:, ::-1]
    shades = np.float32(darkest) + np.float32(1 - darkest) * np.clip(both[..., :1] / 255, 0, 1)
    # Steeper the more it is enlarged, so that an edge is about two pixels wide at every size.
    alpha = np.clip((both[..., 1] - 0.5) * max(1.0, zoom) + 0.5, 0, 1).astype(np.float32)
    return index, shades * tint, alpha


def cut_out(
    picture: UInt8[np.ndarray, "28 28"],
) -> tuple[Float32[np.ndarray, "h w"], Float32[np.ndarray, "h w"]]:
    """The garment of a picture, cropped with a margin of one pixel: its grey levels, silhouette.

    The silhouette (0 to 1, smooth) has its holes filled and specks removed. The pixels on its edge
    are dark where the garment covers a part of them only: that part becomes the silhouette's, and
    they, like those beyond, get the grey of the garment next to them.
    """
    import cv2

    padded = cv2.copyMakeBorder(picture, 3, 3, 3, 3, cv2.BORDER_CONSTANT, value=0)
    solid = _silhouette(padded)
    x, y, w, h = cv2.boundingRect(solid)
    crop = np.s_[y - 1 : y + h + 1, x - 1 : x + w + 1]

    inner = cv2.erode(solid, np.ones((3, 3), np.uint8)).astype(np.float32)
    grey = padded.astype(np.float32)
    weights = cv2.blur(inner, (5, 5))
    next_to_it = cv2.blur(inner * grey, (5, 5)) / np.maximum(weights, 1e-3)
    is_edge = (inner == 0) & (weights > 0)
    coverage = np.clip(grey / np.maximum(next_to_it, 1), LEAST_COVERAGE, 1)
    silhouette = solid * np.where(is_edge, coverage, np.float32(1))
    grey = np.where(is_edge, np.maximum(grey, next_to_it), grey)
    # Thin parts, straps and heels, have no inside: beyond them goes on what they are themselves.
    inside = solid.astype(np.float32)
    outline = cv2.blur(inside * grey, (3, 3)) / np.maximum(cv2.blur(inside, (3, 3)), 1e-3)
    grey = np.where((solid == 0) & ~is_edge, outline, grey)
    return grey[crop], cv2.GaussianBlur(silhouette, (3, 3), 0.5)[crop]


def _silhouette(picture: UInt8[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
    """1 where the garment is, 0 elsewhere; the picture has a margin without any of it."""
    import cv2

    outside = (picture > SILHOUETTE_ABOVE).astype(np.uint8)
    cv2.floodFill(outside, None, (0, 0), 2)
    solid = (outside != 2).astype(np.uint8)
    count, parts, statistics, _ = cv2.connectedComponentsWithStats(solid, connectivity=8)
    if count > 2:
        areas = statistics[:, cv2.CC_STAT_AREA].copy()
        areas[0] = 0  # of the background
        solid = (areas >= SPECK * areas.max())[parts].astype(np.uint8)
    return solid


def tight_boxes(
    instances: UInt8[np.ndarray, "h w"], count: int
) -> Float32[np.ndarray, "{count} 4"]:
    """The box around the pixels of each of an instance map's `count` objects."""
    boxes = np.zeros((count, 4), np.float32)
    for j in range(count):
        mask = instances == j + 1
        ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        boxes[j] = xs[0], ys[0], xs[-1] + 1, ys[-1] + 1
    return boxes
