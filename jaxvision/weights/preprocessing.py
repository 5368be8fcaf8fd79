"""What published networks expect of a picture, before they see it."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Preprocessing:
    """What a network expects of a picture, in this order: resize its shorter side to `resize_size`
    pixels, crop the centre to a square of `crop_size` (None: leave it whole), scale to [0, 1],
    (x - mean) / std."""

    resize_size: int = 256
    crop_size: int | None = 224
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    interpolation: str = "bilinear"
    antialias: bool = True


@dataclass(frozen=True)
class Letterbox:
    """What a detector expects of a picture, in this order: make it as large as fits into `size`
    (height, width) with its aspect kept, put it at the top left, or in the middle where `center` is
    set, on a canvas of the grey level `fill`, scale to [0, 1], (x - mean) / std.

    Megvii's YOLOX takes levels from 0 to 255 as they are: a std of 1/255. It takes them in the
    order blue, green, red, which conversion has already turned around in the weights.
    """

    size: tuple[int, int] = (640, 640)
    fill: int = 114
    center: bool = False
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1 / 255, 1 / 255, 1 / 255)
    interpolation: str = "bilinear"
    antialias: bool = False

    def as_meta(self) -> dict[str, Any]:
        """Returns it as a checkpoint's meta has it under "preprocessing".

        >>> Letterbox((416, 416)).as_meta()["size"]
        [416, 416]
        """
        return {
            "kind": "letterbox",
            "size": list(self.size),
            "fill": self.fill,
            "center": self.center,
        }


@dataclass(frozen=True)
class ShortestSide:
    """What a detector of torchvision's expects of a picture, in this order: resize it so that its
    shorter side has `shortest` pixels, unless the longer one would have more than `longest`; scale
    to [0, 1], (x - mean) / std; pad with zeros to multiples of `multiple`."""

    shortest: int = 800
    longest: int = 1333
    multiple: int = 32
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    interpolation: str = "bilinear"
    antialias: bool = False

    def as_meta(self) -> dict[str, Any]:
        """Returns it as a checkpoint's meta has it under "preprocessing".

        >>> ShortestSide(320, 640).as_meta()["longest"]
        640
        """
        return {
            "kind": "shortest_side",
            "shortest": self.shortest,
            "longest": self.longest,
            "multiple": self.multiple,
            "antialias": self.antialias,
        }


@dataclass(frozen=True)
class Stretch:
    """What a network of one size expects of a picture, in this order: resize it to `size` (height,
    width) whatever its aspect was, scale to [0, 1], (x - mean) / std."""

    size: tuple[int, int] = (300, 300)
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    interpolation: str = "bilinear"
    antialias: bool = False

    def as_meta(self) -> dict[str, Any]:
        """Returns it as a checkpoint's meta has it under "preprocessing".

        >>> Stretch((320, 320)).as_meta()["size"]
        [320, 320]
        """
        return {"kind": "resize", "size": list(self.size), "antialias": self.antialias}


AnyPreprocessing = Preprocessing | Letterbox | ShortestSide | Stretch
