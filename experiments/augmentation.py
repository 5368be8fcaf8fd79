"""The flags that say how a detector's training pictures are changed, and the change itself."""

from dataclasses import dataclass

from jaxvision.data import compose, drop_difficult, hsv_jitter, random_flip, scale_jitter
from jaxvision.data.detection_transforms import PlacementTransform
from jaxvision.data.transforms import Transform
from jaxvision.errors import UserError


@dataclass(frozen=True)
class Augmentation:
    flip: float = 0.5
    """The probability of mirroring."""
    scale: tuple[float, float] = (0.8, 1.25)
    """Pictures are resized by a factor from this range, then cut or padded. 1 1: not at all."""
    colors: float = 1.0
    """How much hue, saturation and value change; 0: not at all, 1: as in the paper of YOLO v1."""


def augment(
    config: Augmentation, placement: PlacementTransform, size: tuple[int, int]
) -> Transform:
    """Returns what is done to training pictures; `placement` brings them to `size` (h, w).

    Objects marked as difficult, such as COCO's crowds, are not learnt.
    """
    still, colors = config.scale == (1.0, 1.0), config.colors
    steps: list[Transform] = [
        drop_difficult(),
        random_flip(config.flip),
        placement if still else scale_jitter(size, config.scale, spread=True),
    ]
    if colors:
        steps.append(hsv_jitter(0.1 * colors, 1 + 0.5 * colors, 1 + 0.5 * colors))
    return compose(*steps)


def check_augmentation(config: Augmentation) -> None:
    """Refuses what makes no sense, before any work."""
    if not 0 <= config.flip <= 1:
        raise UserError(f"expected --flip from 0 to 1, got {config.flip}")
    if not 0 <= config.colors <= 5:
        raise UserError(f"expected --colors from 0 to 5, got {config.colors}")
    low, high = config.scale
    if not 0 < low <= high:
        raise UserError(f"expected --scale above 0, the lower bound first, got {low} {high}")
