"""Hierarchical grouping of regions, the heart of Selective Search, with its four similarities.

J. Uijlings, K. van de Sande, T. Gevers and A. Smeulders, "Selective Search for Object Recognition",
IJCV 2013, section 3: from a picture's starting regions, the two neighbours that are most similar
become one, again and again, until one region is left. The similarity of regions i and j is the sum
(equation 6) of any of these, each between 0 and 1:

    C  colour   sum over bins of min(c_i, c_j), of histograms with sum 1       equation 1
    T  texture  sum over bins of min(t_i, t_j), likewise                       equation 3
    S  size     1 - (size_i + size_j) / size of the picture                    equation 4
    F  fill     1 - (size of both regions' box - size_i - size_j) / picture    equation 5

The union's histogram is the mean of both, weighted by their sizes (equation 2). Sizes and boxes are
in pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int, Int32, UInt8

COLOR_BINS = 25
TEXTURE_BINS = 10
ORIENTATIONS = 8
SIGMA = 1.0
"""Of the Gaussian derivatives that texture is measured with, in pixels."""
CORNER_SIGNS = np.array([-1, -1, 1, 1], np.int32)
LOCKSTEP = 16
"""Groupings that go on together: more need more memory, fewer more calls of NumPy."""


@dataclass(frozen=True, eq=False)
class Regions:
    """The `n` starting regions of a picture, and what the similarities compare of them.

    `labels` says which region a pixel belongs to. `neighbors` are the pairs, smaller number first,
    that share a side of a pixel.
    """

    labels: Int32[np.ndarray, "h w"]
    sizes: Float32[np.ndarray, "n"]
    boxes: Int32[np.ndarray, "n 4"]
    neighbors: Int[np.ndarray, "pairs 2"]
    color: Float32[np.ndarray, "n color_bins"]
    texture: Float32[np.ndarray, "n texture_bins"]

    def __len__(self) -> int:
        return len(self.sizes)


@dataclass(frozen=True, eq=False)
class Hierarchy:
    """All regions of one grouping: `n` starting ones, then one a merge; the last is the picture.

    Region n + t came of merge t, of the two regions in `merges[t]`, whose similarity was
    `similarities[t]`.
    """

    labels: Int32[np.ndarray, "h w"]
    boxes: Int32[np.ndarray, "regions 4"]
    merges: Int32[np.ndarray, "steps 2"]
    similarities: Float32[np.ndarray, "steps"]

    def level(self, count: int) -> Int32[np.ndarray, "h w"]:
        """Which region each pixel belongs to when `count` regions are left (at most n).

        >>> hierarchy.level(1).max() == len(hierarchy.boxes) - 1  # doctest: +SKIP
        True
        """
        n = len(self.merges) + 1
        if not 1 <= count <= n:
            raise ValueError(f"expected a number of regions from 1 to {n}, got {count}")
        owner = np.arange(2 * n - 1, dtype=np.int32)
        for step in range(n - count - 1, -1, -1):  # from the top down, so that owners are final
            owner[self.merges[step]] = owner[n + step]
        return owner[self.labels]


@dataclass(frozen=True, eq=False)
class PixelBins:
    """Which bins of a region's histograms each of its pixels counts in.

    One bin for each map of `bins`: a map a channel for colour, numbered from 0 to `color_width`,
    then one for each direction and channel for texture, up to `width`.
    """

    bins: Int[np.ndarray, "maps pixels"]
    color_width: int
    width: int


def bin_pixels(image: UInt8[np.ndarray, "h w c"]) -> PixelBins:
    """Measures colour and texture of each pixel, for a picture in any colour space.

    Colour: 25 bins a channel. Texture: for each channel and each of eight directions 10 bins of the
    Gaussian derivative's positive part, as a share of the channel's steepest slope in this picture.
    """
    channels = image.shape[-1]
    planes = np.ascontiguousarray(image.reshape(-1, channels).T)
    color = planes.astype(np.intp) * COLOR_BINS >> 8
    slopes = _slopes(image).reshape(ORIENTATIONS // 2, channels, -1)
    steepest = np.maximum(np.abs(slopes).max(axis=(0, 2)), 1e-6)
    strengths = (slopes * (TEXTURE_BINS / steepest)[:, None]).astype(np.int8)  # towards 0
    texture = np.concatenate([strengths, -strengths]).clip(0, TEXTURE_BINS - 1)
    color_width = channels * COLOR_BINS
    width = color_width + channels * ORIENTATIONS * TEXTURE_BINS
    bins = np.concatenate([color, texture.reshape(-1, planes.shape[1])])
    bins[:channels] += np.arange(0, color_width, COLOR_BINS)[:, None]
    bins[channels:] += np.arange(color_width, width, TEXTURE_BINS)[:, None]
    return PixelBins(bins, color_width, width)


def _slopes(image: UInt8[np.ndarray, "h w c"]) -> Float32[np.ndarray, "directions c h w"]:
    """How much brighter it gets to the right, to the right and down, down, to the left and down.

    Those are 0, 45, 90 and 135 degrees; the other four directions are their opposites.
    """
    import cv2

    x = np.arange(-4, 5)
    bell = np.exp(-(x**2) / (2 * SIGMA**2))
    bell /= bell.sum()
    slope = x * bell / SIGMA**2  # OpenCV correlates: positive where it gets brighter
    border = cv2.BORDER_REPLICATE
    planes = np.moveaxis(image, -1, 0).astype(np.float32, order="C")
    right = [cv2.sepFilter2D(plane, -1, slope, bell, borderType=border) for plane in planes]
    down = [cv2.sepFilter2D(plane, -1, bell, slope, borderType=border) for plane in planes]
    right, down, diagonal = np.stack(right), np.stack(down), np.float32(0.5**0.5)
    return np.stack([right, (right + down) * diagonal, down, (down - right) * diagonal])


def describe_regions(labels: Int32[np.ndarray, "h w"], bins: PixelBins) -> Regions:
    """Measures the regions of a picture, numbered from 0 without gaps.

    >>> labels = np.array([[0, 0, 1]], np.int32)
    >>> regions = describe_regions(labels, bin_pixels(np.zeros((1, 3, 1), np.uint8)))
    >>> regions.sizes.tolist(), regions.boxes.tolist(), regions.neighbors.tolist()
    ([2.0, 1.0], [[0, 0, 2, 1], [2, 0, 3, 1]], [[0, 1]])
    """
    flat = labels.reshape(-1).astype(np.intp)
    n = int(flat.max()) + 1
    sizes = np.bincount(flat, minlength=n).astype(np.float32)
    rows, columns = np.indices(labels.shape, np.int32).reshape(2, -1)
    boxes = np.empty((n, 4), np.int32)
    boxes[:, :2], boxes[:, 2:] = max(labels.shape), 0
    np.minimum.at(boxes[:, 0], flat, columns)
    np.minimum.at(boxes[:, 1], flat, rows)
    np.maximum.at(boxes[:, 2], flat, columns + 1)
    np.maximum.at(boxes[:, 3], flat, rows + 1)
    places = (bins.bins + flat * bins.width).reshape(-1)
    counts = np.bincount(places, minlength=n * bins.width).reshape(n, bins.width)
    return Regions(
        labels=labels,
        sizes=sizes,
        boxes=boxes,
        neighbors=_neighbors(labels, n),
        color=_with_sum_1(counts[:, : bins.color_width]),
        texture=_with_sum_1(counts[:, bins.color_width :]),
    )


def _with_sum_1(counts: Int[np.ndarray, "n width"]) -> Float32[np.ndarray, "n width"]:
    return (counts / counts.sum(axis=1, keepdims=True)).astype(np.float32)


def _neighbors(labels: Int32[np.ndarray, "h w"], n: int) -> Int[np.ndarray, "pairs 2"]:
    touch = np.zeros((n, n), bool)
    touch[labels[:, :-1], labels[:, 1:]] = True
    touch[labels[:-1], labels[1:]] = True
    return np.argwhere(np.triu(touch | touch.T, 1))


def group_regions(regions: Sequence[Regions], similarities: Sequence[str]) -> list[Hierarchy]:
    """Groups each of `regions` by the similarities beside it, such as "CTSF" or "F".

    Where two pairs are equally similar, the one with the smaller numbers goes first.

    >>> labels = np.array([[0, 1, 2]], np.int32)
    >>> picture = np.array([[[0], [200], [201]]], np.uint8)
    >>> group_regions([describe_regions(labels, bin_pixels(picture))], ["C"])[0].merges.tolist()
    [[1, 2], [0, 3]]
    """
    # Longest first, so that those still under way are always the first few of a lockstep.
    order = sorted(range(len(regions)), key=lambda i: -len(regions[i]))
    hierarchies: dict[int, Hierarchy] = {}
    for start in range(0, len(order), LOCKSTEP):
        chosen = order[start : start + LOCKSTEP]
        grouped = _Lockstep([regions[i] for i in chosen], [similarities[i] for i in chosen]).run()
        hierarchies |= dict(zip(chosen, grouped, strict=True))
    return [hierarchies[i] for i in range(len(regions))]


class _Lockstep:
    """Several groupings at once, so that one call of NumPy merges a pair in each.

    A region lives in a slot, one row of each array: those of grouping g are rows g * n to
    g * n + n - 1. A union takes the slot of its first part; the second's is empty from then on.
    `similar` has a column for each slot of the same grouping, -inf where two are no neighbours.
    """

    def __init__(self, regions: Sequence[Regions], similarities: Sequence[str]):
        b, n = len(regions), len(regions[0])
        self.n, self.regions = n, regions
        self.counts = np.array([len(each) for each in regions])
        # Weighting a histogram weights the intersection: so one array serves colour and texture,
        # and a grouping without them has zeros.
        parts = [
            np.concatenate([each.color * ("C" in kinds), each.texture * ("T" in kinds)], axis=1)
            for each, kinds in zip(regions, similarities, strict=True)
        ]
        self.histograms = np.zeros((b * n, max(part.shape[1] for part in parts)), np.float32)
        self.sizes = np.ones(b * n, np.float32)
        # (-x1, -y1, x2, y2), so that the larger of two in each place is their union.
        self.corners = np.zeros((b * n, 4), np.float32)
        for start, part, each in zip(range(0, b * n, n), parts, regions, strict=True):
            rows = slice(start, start + len(each))
            self.histograms[rows, : part.shape[1]] = part
            self.sizes[rows], self.corners[rows] = each.sizes, each.boxes * CORNER_SIGNS
        size, fill = (np.array([float(kind in kinds) for kinds in similarities]) for kind in "SF")
        areas = [each.labels.size for each in regions]
        # S + F is size + fill - (size - fill) * pixels - fill * box, in shares of the picture.
        terms = np.stack([size + fill, (fill - size) / areas, -fill / areas])
        self.terms = np.repeat(terms.astype(np.float32), n, axis=1)

        self.similar = np.full((b * n, n), -np.inf, np.float32)
        pairs = np.concatenate([r.neighbors + i * n for i, r in enumerate(regions)])
        self._compare(pairs[:, 0], pairs[:, 1])
        self.best = self.similar.max(axis=1)

    def _compare(self, first: np.ndarray, second: np.ndarray) -> None:
        """Writes down how similar the regions in rows `first` and `second` are."""
        corners = np.maximum(self.corners[first], self.corners[second])
        box = (corners[:, 0] + corners[:, 2]) * (corners[:, 1] + corners[:, 3])
        constant, by_pixels, by_box = self.terms.take(first, axis=1)
        values = constant + by_pixels * (self.sizes[first] + self.sizes[second]) + by_box * box
        shared = self.histograms.take(first, axis=0)
        np.minimum(shared, self.histograms.take(second, axis=0), out=shared)
        values += shared.sum(axis=1)
        self.similar[first, second % self.n] = self.similar[second, first % self.n] = values

    def run(self) -> list[Hierarchy]:
        b, n = len(self.counts), self.n
        merges = np.zeros((b, n - 1, 2), np.int32)
        values = np.zeros((b, n - 1), np.float32)
        unions = np.zeros((b, n - 1, 4), np.float32)
        numbers = np.tile(np.arange(n, dtype=np.int32), b)
        # The longest grouping comes first, so those under way are always the first few.
        under_way = (self.counts > np.arange(1, n)[:, None]).sum(axis=1)
        starts, by_grouping = np.arange(0, b * n, n), self.best.reshape(b, n)
        for step, active in enumerate(under_way):
            start = starts[:active]
            # The smallest row that holds the maximum: the matrix is symmetric, so first < second.
            first = by_grouping[:active].argmax(axis=1) + start
            second = self.similar[first].argmax(axis=1) + start
            values[:active, step] = self.best[first]
            merges[:active, step, 0] = numbers[first]
            merges[:active, step, 1] = numbers[second]
            numbers[first] = self.counts[:active] + step
            self._merge(first, second)
            unions[:active, step] = self.corners[first]
        boxes = (unions * CORNER_SIGNS).astype(np.int32)
        return [
            Hierarchy(
                labels=each.labels,
                boxes=np.concatenate([each.boxes, boxes[i, : len(each) - 1]]),
                merges=merges[i, : len(each) - 1],
                similarities=values[i, : len(each) - 1],
            )
            for i, each in enumerate(self.regions)
        ]

    def _merge(self, first: np.ndarray, second: np.ndarray) -> None:
        """Unites the regions in rows `first` and `second`, one pair a grouping under way."""
        a, b = self.sizes[first], self.sizes[second]
        union = a[:, None] * self.histograms[first] + b[:, None] * self.histograms[second]
        self.histograms[first] = union / (a + b)[:, None]
        self.sizes[first] = a + b
        self.corners[first] = np.maximum(self.corners[first], self.corners[second])

        active, n = len(first), self.n
        here = np.arange(active)
        touched = np.maximum(self.similar[first], self.similar[second]) > -np.inf
        touched[here, first % n] = touched[here, second % n] = False
        which, others = np.nonzero(touched)
        others += which * n
        self.similar[second] = -np.inf
        self.similar.reshape(-1, n, n)[here, :, second % n] = -np.inf
        self._compare(first[which], others)
        # Only the rows of the union and its neighbours have changed.
        self.best[second] = -np.inf
        changed = np.concatenate([first, others])
        self.best[changed] = self.similar.take(changed, axis=0).max(axis=1)
