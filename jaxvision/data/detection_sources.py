"""Finds a detection data set and loads it, by name."""

import inspect
import os
from collections.abc import Callable
from typing import Any

from jaxvision.data.detection import DetectionDataset
from jaxvision.data.detection_recipes import DETECTION_RECIPES
from jaxvision.data.scenes import load_garment_scenes
from jaxvision.errors import UserError

DETECTION_DATASETS: dict[str, Callable[..., dict[str, DetectionDataset]]] = {
    "garment_scenes": load_garment_scenes,
    **DETECTION_RECIPES,
}
"""By name, each called with `source`, `data_dir`, `announce` and options of its own."""

FOR_ALL = ("name", "source", "data_dir", "announce")


def load_detection(
    name: str,
    *,
    source: str | os.PathLike[str] | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    announce: Callable[[str], Any] = print,
    **options: Any,
) -> dict[str, DetectionDataset]:
    """Loads every split of a detection data set, by name; prepares it on disk the first time.

    `garment_scenes` is drawn on this machine, and its options are those of `load_garment_scenes`:
    `size`, `counts`, `garments`, `data`, `processes`. voc2007, voc2012, voc0712, penn_fudan and
    coco are the official ones; coco_json, voc_xml and yolo_txt a folder of your own. `source` is a
    folder with the files. Prepared data goes under `data_dir`, by default `$JAXVISION_DATA` or
    `~/.cache/jaxvision/datasets`. `announce` gets a line that names the source that was used.

    Raises `UserError` for an unknown name or option, and where the data can't be had.

    >>> splits = load_detection("garment_scenes", counts={"train": 1000})  # doctest: +SKIP
    >>> splits["train"].images.shape  # doctest: +SKIP
    (1000, 128, 128, 3)
    """
    if name not in DETECTION_DATASETS:
        raise UserError(
            f"expected one of the detection data sets {', '.join(DETECTION_DATASETS)}, got {name!r}"
        )
    known = _options(DETECTION_DATASETS[name])
    unknown = [option for option in options if option not in known]
    if unknown:
        raise UserError(
            f"{name} has no option {', '.join(unknown)}: expected any of "
            f"{', '.join(known) or '(it has none)'}"
        )
    return DETECTION_DATASETS[name](source=source, data_dir=data_dir, announce=announce, **options)


def _options(load: Callable[..., Any]) -> list[str]:
    """The options of a data set's own, also of the reader that a partial hands them on to."""
    readers = [argument for argument in getattr(load, "args", ()) if callable(argument)]
    return [
        option
        for function in (load, *readers)
        for option, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and option not in FOR_ALL
    ]
