"""Pictures, uint8 [h, w, c], with what a model says of them: captions, marks and grids."""

import io
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

from jaxvision.report import theme

RIGHT_MARK = "✓"
WRONG_MARK = "✗"


def as_rgb(image: UInt8[np.ndarray, "h w c"]) -> UInt8[np.ndarray, "h w 3"]:
    """Returns the picture with three channels; a grey one (c = 1) is repeated.

    >>> as_rgb(np.zeros((2, 4, 1), np.uint8)).shape
    (2, 4, 3)
    """
    check_images(image[None])
    return np.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else image


def check_images(images: np.ndarray) -> None:
    """Raises unless `images` is uint8 [n, h, w, c], with pixels, in one channel or three."""
    expected = "expected uint8 pictures [n, h, w, c] with 1 or 3 channels"
    if images.dtype != np.uint8:
        raise TypeError(f"{expected}, got {images.dtype}")
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or 0 in images.shape[1:]:
        raise ValueError(f"{expected}, got shape {list(images.shape)}")


def prediction_caption(true: str, predicted: str, confidence: float) -> list[str]:
    """Returns a caption's lines: what was predicted, how surely, and the truth where it differs.

    >>> prediction_caption("Shirt", "Coat", 0.913)
    ['✗ Coat', '91.3 % sure', 'true: Shirt']
    >>> prediction_caption("Coat", "Coat", 0.5)
    ['✓ Coat', '50.0 % sure']
    """
    sure = f"{100 * confidence:.1f} % sure"
    if true == predicted:
        return [f"{RIGHT_MARK} {predicted}", sure]
    return [f"{WRONG_MARK} {predicted}", sure, f"true: {true}"]


def encode_picture(image: UInt8[np.ndarray, "h w c"], longest: int = 320) -> tuple[str, bytes]:
    """Returns (MIME type, file) of a picture, shrunk where a side is longer than `longest`.

    Small pictures become PNG, exact to the pixel; others JPEG, or a page of photographs gets heavy.
    """
    from PIL import Image

    picture = Image.fromarray(as_rgb(image))
    kind = "PNG" if max(picture.size) <= 64 else "JPEG"
    picture.thumbnail((longest, longest))
    buffer = io.BytesIO()
    picture.save(buffer, kind, **({"quality": 88} if kind == "JPEG" else {"optimize": True}))
    return f"image/{kind.lower()}", buffer.getvalue()


def encode_drawing(image: UInt8[np.ndarray, "h w c"], largest: int = 200_000) -> tuple[str, bytes]:
    """Returns (MIME type, file) of a picture that was drawn on, at its own size.

    PNG, exact to the pixel, unless that takes more than `largest` bytes; then JPEG with its colours
    at full resolution, because thin lines are lost otherwise.
    """
    from PIL import Image

    picture, buffer = Image.fromarray(as_rgb(image)), io.BytesIO()
    picture.save(buffer, "PNG")
    if buffer.tell() <= largest:
        return "image/png", buffer.getvalue()
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=90, subsampling=0)
    return "image/jpeg", buffer.getvalue()


def picture_grid(
    images: UInt8[np.ndarray, "n h w c"],
    captions: Sequence[Sequence[str]],
    is_right: Sequence[bool] | np.ndarray | None = None,
    columns: int = 6,
) -> "matplotlib.figure.Figure":
    """Draws pictures row by row, each under a frame and over its caption's lines.

    With `is_right`, frame and caption are green where it is true and red where it is false.
    """
    from matplotlib.figure import Figure

    check_images(images)
    if len(captions) != len(images) or (is_right is not None and len(is_right) != len(images)):
        raise ValueError(f"expected a caption and a mark for each of {len(images)} pictures")
    columns = max(min(columns, len(images)), 1)
    rows = max(-(-len(images) // columns), 1)
    figure = Figure(figsize=(1.7 * columns, 2.1 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid[len(images) :]:
        axes.set_axis_off()
    for i, (axes, image, lines) in enumerate(zip(grid, images, captions, strict=False)):
        color = theme.INK
        if is_right is not None:
            color = theme.RIGHT if is_right[i] else theme.WRONG
        axes.imshow(as_rgb(image), interpolation="none")
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set(color=color, linewidth=2)
        text = "\n".join(theme.clean(line, 24) for line in lines)
        axes.set_xlabel(text, fontsize=8, color=color, parse_math=False)
    return figure
