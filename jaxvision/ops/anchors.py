"""Anchors: the boxes of a few sizes and shapes that a detector looks for at every cell.

They follow from shapes alone, which are static under jit, so they are numpy: inside a jitted
function they are constants. Boxes are (x1, y1, x2, y2) in pixels of the picture, float32. The
order is torchvision's: levels one after the other, in each the cells row by row, in each cell the
aspect ratios one after the other and the sizes within them.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32

ASPECT_RATIOS = (0.5, 1.0, 2.0)
"""Height over width: 2:1, 1:1 and 1:2 as width to height, Faster R-CNN's three shapes."""


def base_anchors(
    sizes: Sequence[int | float], aspect_ratios: Sequence[int | float] = ASPECT_RATIOS
) -> Float32[np.ndarray, "a 4"]:
    """Returns the anchors of one cell about (0, 0): one of each size for each aspect ratio.

    An anchor of size s and ratio r (height over width) is s / sqrt(r) wide and s * sqrt(r) high, so
    its area is s^2; its corners are rounded to whole pixels, half to even, as in torchvision's
    AnchorGenerator.

    >>> base_anchors([32]).tolist()
    [[-23.0, -11.0, 23.0, 11.0], [-16.0, -16.0, 16.0, 16.0], [-11.0, -23.0, 11.0, 23.0]]
    """
    scales = np.asarray(sizes, np.float32)[None, :]
    # Each step in float32: a corner near a half would else be rounded the other way than in torch.
    heights = np.sqrt(np.asarray(aspect_ratios, np.float32))[:, None]
    widths = np.float32(1) / heights
    w, h = (widths * scales).reshape(-1), (heights * scales).reshape(-1)
    return np.round(np.stack([-w, -h, w, h], axis=1) / np.float32(2))


def grid_anchors(
    grid_size: tuple[int, int],
    stride: tuple[int, int],
    base: Float32[np.ndarray, "a 4"],
) -> Float32[np.ndarray, "n 4"]:
    """Returns the `base` anchors at each cell of a feature map of `grid_size` (h, w), h * w * a.

    The first cell's are about (0, 0), the next ones' a `stride` (down, right) apart.

    >>> grid_anchors((1, 2), (16, 16), base_anchors([32], [1.0])).tolist()
    [[-16.0, -16.0, 16.0, 16.0], [0.0, -16.0, 32.0, 16.0]]
    """
    y, x = np.indices(grid_size, np.float32) * np.asarray(stride, np.float32)[:, None, None]
    shifts = np.stack([x, y, x, y], axis=-1)
    return (shifts[:, :, None, :] + base[None, None, :, :]).reshape(-1, 4)


def anchors_of_levels(
    grid_sizes: Sequence[tuple[int, int]],
    image_size: tuple[int, int],
    sizes: Sequence[Sequence[int | float]],
    aspect_ratios: Sequence[int | float] | Sequence[Sequence[int | float]] = ASPECT_RATIOS,
) -> list[Float32[np.ndarray, "n 4"]]:
    """Returns the anchors of each feature map of a padded picture of `image_size` (h, w).

    `sizes` are those of each level; `aspect_ratios` are the same for all levels, or given for each.
    A level's stride is the picture's size over the level's, rounded down, as in torchvision.

    >>> [len(a) for a in anchors_of_levels([(8, 8), (4, 4)], (64, 64), sizes=[[32], [64]])]
    [192, 48]
    """
    ratios = list(aspect_ratios)
    if not ratios or not isinstance(ratios[0], Sequence):
        ratios = [aspect_ratios] * len(sizes)
    if not len(grid_sizes) == len(sizes) == len(ratios):
        raise ValueError(
            f"expected as many levels of each, got {len(grid_sizes)} feature maps, {len(sizes)} "
            f"sets of sizes and {len(ratios)} of aspect ratios"
        )
    h, w = image_size
    return [
        grid_anchors((rows, columns), (h // rows, w // columns), base_anchors(*shape))
        for (rows, columns), *shape in zip(grid_sizes, sizes, ratios, strict=True)
    ]


def default_boxes(
    grid_sizes: Sequence[tuple[int, int]],
    image_size: tuple[int, int],
    scales: Sequence[float],
    aspect_ratios: Sequence[Sequence[int | float]],
    steps: Sequence[int] | None = None,
) -> list[Float32[np.ndarray, "n 4"]]:
    """Returns SSD's default boxes of each feature map (arXiv:1512.02325, section 2.2).

    At the middle of each cell there are two squares, whose sides are scale s_k and sqrt(s_k
    s_{k+1}), and for each aspect ratio r of the map two boxes of s_k sqrt(r) by s_k / sqrt(r), one
    lying and one standing; scales are shares of the picture of `image_size` (h, w), in each
    direction its own, and there is one more of them than there are maps. Cells are `steps` pixels
    apart, or where these are not given fill the picture. No side is longer than the picture's; what
    sticks out stays.

    >>> boxes = default_boxes([(1, 2)], (100, 200), [0.2, 0.8], [[4]])
    >>> [box.round(3).tolist() for box in boxes[0][:2]]
    [[30.0, 40.0, 70.0, 60.0], [10.0, 30.0, 90.0, 70.0]]
    >>> boxes[0][2:4].round(3).tolist()
    [[10.0, 45.0, 90.0, 55.0], [40.0, 30.0, 60.0, 70.0]]
    """
    if not len(grid_sizes) == len(aspect_ratios) == len(scales) - 1:
        raise ValueError(
            f"expected a scale more than feature maps, got {len(scales)} scales, {len(grid_sizes)} "
            f"feature maps and {len(aspect_ratios)} sets of aspect ratios"
        )
    h, w = image_size
    levels = []
    for k, (rows, columns) in enumerate(grid_sizes):
        y_cells, x_cells = (rows, columns) if steps is None else (h / steps[k], w / steps[k])
        # Each step in float32, as in torch.
        y = (np.arange(rows, dtype=np.float32) + np.float32(0.5)) / np.float32(y_cells)
        x = (np.arange(columns, dtype=np.float32) + np.float32(0.5)) / np.float32(x_cells)
        centres = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 1, 2)
        half = np.float32(0.5) * _shares(scales[k], scales[k + 1], aspect_ratios[k])[None]
        boxes = np.concatenate([centres - half, centres + half], axis=-1)
        levels.append(boxes.reshape(-1, 4) * np.array([w, h, w, h], np.float32))
    return levels


def _shares(
    scale: float, next_scale: float, aspect_ratios: Sequence[int | float]
) -> Float32[np.ndarray, "a 2"]:
    """Returns the (width, height) of one cell's default boxes as shares of the picture's."""
    between = math.sqrt(scale * next_scale)
    pairs = [(scale, scale), (between, between)]
    for ratio in aspect_ratios:
        long, short = scale * math.sqrt(ratio), scale / math.sqrt(ratio)
        pairs += [(long, short), (short, long)]
    return np.clip(np.asarray(pairs, np.float32), 0, 1)
