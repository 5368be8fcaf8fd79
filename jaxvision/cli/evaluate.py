"""`evaluate`: the figures of a run's checkpoint on a data set, by the run's task."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
from rich.console import Console
from rich.progress import track
from rich.table import Table

from jaxvision.cli.loading import check_thresholds, open_run
from jaxvision.errors import UserError

FASHION_MNIST = ("auto", "full", "embedded")
AT_ONCE = 32
TOP_CLASSES = 40
"""Classes that the table of a detector has at most."""


@dataclass(frozen=True)
class Evaluate:
    """Evaluate the checkpoint of a run folder, on the data set that it was trained for or another.

    Classifiers: loss, accuracy, the scores of each class. Detectors: VOC's mAP and COCO's AP, also
    of masks or keypoints where model and data set have them.
    Localisation: accuracy, mean IoU, top-1 localisation error. Segmentation: mean IoU and pixel
    accuracy, in the pictures' own pixels.
    """

    run: tyro.conf.Positional[Path]
    """The run folder."""
    which: str = "best"
    """The checkpoint: best, latest or a step."""
    split: str | None = None
    """By default its test set, or where it has none its validation set."""
    data: str = "auto"
    """Which data: by default the run's. Of a detector another data set by name: garment_scenes,
    voc2007, voc2012, voc0712, penn_fudan, coco, coco_json, voc_xml or yolo_txt. Full or embedded:
    which of Fashion-MNIST's pictures."""
    source: Path | None = None
    """A folder with the data set's original files, or, for coco_json and the like, with yours."""
    data_dir: Path | None = None
    """Where prepared data sets are kept."""
    picture_size: Literal[128, 224] | None = None
    """Of garment_scenes, in pixels; by default as in training."""
    count: int | None = None
    """At most so many pictures, by default as many as the run was told, or all."""
    score_threshold: float = 0.005
    """Of a detector: objects of a lower score do not count. Average precision wants many."""
    iou_threshold: float | None = None
    """Of a detector: of two boxes of a class that overlap by more, the better one stays; by
    default as it is used to, mostly 0.5."""
    max_detections: int = 100
    """Of a detector, at most so many objects a picture."""
    flip: bool = False
    """Of a detector: look at each picture's mirror image too, which takes twice the time."""


def evaluate(command: Evaluate) -> None:
    """Prints tables and one line with the figures."""
    if command.count is not None and command.count < 1:
        raise UserError(f"expected --count of at least 1, got {command.count}")
    check_thresholds(command)
    predictor = open_run(
        command.run,
        command.which,
        score_threshold=command.score_threshold,
        iou_threshold=command.iou_threshold,
        max_detections=command.max_detections,
        flip=command.flip,
    )
    tasks = {
        "classification": _classification,
        "detection": _detection,
        "localization": _localization,
        "segmentation": _segmentation,
    }
    tasks[predictor.task](command, predictor)


# ---------------------------------------------------------------------------------- classification
def _classification(command: Evaluate, predictor: Any) -> None:
    from jaxvision.data import FileDataset, load_splits, to_arrays
    from jaxvision.metrics import confusion_matrix, per_class_scores

    name = predictor.meta.get("dataset")
    if name is None:
        raise UserError(f"the checkpoint in {command.run} does not name its data set")
    if command.data not in FASHION_MNIST:
        raise UserError(
            f"expected --data auto, full or embedded for a classifier, got {command.data}"
        )
    kept = _config_of(command.run)
    which = kept.get("data") if command.data == "auto" else command.data
    splits = load_splits(
        name,
        data=which if which in FASHION_MNIST else "auto",
        source=command.source or kept.get("source"),
        data_dir=command.data_dir or kept.get("data_dir"),
    )
    dataset = _split(splits, command, name)
    _check_classes(predictor.class_names, dataset.class_names, name)
    if command.count is not None:
        raise UserError("--count is for detection, localisation and segmentation")
    if isinstance(dataset, FileDataset):
        images = to_arrays(dataset, lambda picture: predictor.prepare(np.asarray(picture))).images
    else:
        images = np.stack([predictor.prepare(image) for image in dataset.images])
    probabilities = predictor.probabilities(images)
    predicted = probabilities.argmax(axis=-1)
    chosen = probabilities[np.arange(len(dataset)), dataset.labels]
    loss = float(-np.log(np.maximum(chosen, 1e-30)).mean())
    confusion = np.asarray(confusion_matrix(dataset.labels, predicted, len(dataset.class_names)))
    scores = per_class_scores(confusion)
    table = Table("class", "precision", "recall", "F1", "pictures")
    for row in zip(dataset.class_names, *scores, strict=True):
        table.add_row(row[0], *(f"{value:.3f}" for value in row[1:4]), str(int(row[4])))
    Console().print(table)
    accuracy = float((predicted == dataset.labels).mean())
    split = dataset.split
    print(f"{split}: loss {loss:.4f}, accuracy {accuracy:.2%} of {len(dataset):,} pictures")


# --------------------------------------------------------------------------------------- detection
def _detection(command: Evaluate, predictor: Any) -> None:
    from jaxvision.metrics.coco import coco_scores
    from jaxvision.metrics.detection import detection_average_precision
    from jaxvision.ops import encode_masks

    points = tuple(predictor.meta.get("keypoint_names", ()))
    masks = predictor.meta["model"].startswith("maskrcnn")
    dataset = _scenes(command, predictor, masks=masks, keypoint_names=points)
    _check_classes(predictor.class_names, dataset.class_names, dataset.name)
    found = [result.as_prediction() for result in _results(predictor, dataset)]
    names, targets = dataset.class_names, dataset.objects
    by_area = detection_average_precision(found, targets, len(names))
    by_eleven = detection_average_precision(found, targets, len(names), method="voc07")
    with_masks = dataset.masks is not None and all("masks" in each for each in found)
    if points:
        both = zip(targets, dataset.keypoints, strict=True)
        targets = [{**vars(objects), "keypoints": there} for objects, there in both]
    elif with_masks:
        targets = [
            {**vars(objects), "masks": encode_masks(dataset.example(i, masks=True)["masks"])}
            for i, objects in enumerate(targets)
        ]
    more = "keypoints" if points else "segm" if with_masks else None
    kinds = coco_scores(found, targets, names, ("bbox", more) if more else ("bbox",))
    coco, called = kinds["bbox"], {"bbox": "boxes", "segm": "masks", "keypoints": "keypoints"}
    table = Table("class", "objects", "VOC07 AP", "VOC12 AP", "COCO AP")
    columns = (by_area.num_objects, by_eleven.ap, by_area.ap, coco.per_class)
    for name, count, *scores in list(zip(names, *columns, strict=True))[:TOP_CLASSES]:
        table.add_row(name, f"{int(count):,}", *(f"{score:.3f}" for score in scores))
    Console().print(table)
    if len(names) > TOP_CLASSES:
        print(f"(and {len(names) - TOP_CLASSES} classes more)")
    table = Table("COCO", *(called[kind] for kind in kinds))
    for name in dict.fromkeys(name for kind in kinds.values() for name in kind.summary):
        columns = (kind.summary.get(name) for kind in kinds.values())
        table.add_row(name, *("" if value is None else f"{value:.4f}" for value in columns))
    Console().print(table)
    besides = f", of {called[more]} {kinds[more].summary['AP']:.4f}," if more else ""
    print(
        f"{dataset.split}: VOC07 mAP@0.5 {by_eleven.mean:.4f}, VOC12 mAP@0.5 {by_area.mean:.4f}, "
        f"COCO AP {coco.summary['AP']:.4f}{besides} of {len(dataset):,} pictures"
    )


# ------------------------------------------------------------------------------------ localisation
def _localization(command: Evaluate, predictor: Any) -> None:
    import jax.numpy as jnp

    from jaxvision.losses.localization import localization_metrics

    dataset = _scenes(command, predictor, garments=(1, 1))
    _check_classes(predictor.class_names, dataset.class_names, dataset.name)
    if any(len(objects) != 1 for objects in dataset.objects):
        raise UserError(f"{dataset.name}: expected one object in each picture")
    results = list(_results(predictor, dataset))
    arrays = (
        np.stack([result.probabilities for result in results]),
        np.stack([result.box for result in results]),
        np.concatenate([objects.labels for objects in dataset.objects]),
        np.concatenate([objects.boxes for objects in dataset.objects]),
    )
    metrics = localization_metrics(*map(jnp.asarray, arrays))
    print(
        f"{dataset.split}: accuracy {float(metrics['accuracy']):.4f}, mean IoU "
        f"{float(metrics['iou']):.4f}, top-1 localisation error "
        f"{float(metrics['localization_error']):.4f} of {len(dataset):,} pictures"
    )


# ------------------------------------------------------------------------------------ segmentation
def _segmentation(command: Evaluate, predictor: Any) -> None:
    from jaxvision.data import semantic_map
    from jaxvision.metrics.segmentation import segmentation_confusion, segmentation_scores

    dataset = _scenes(command, predictor, masks=True)
    _check_classes(predictor.class_names, ("background", *dataset.class_names), dataset.name)
    names = predictor.class_names
    confusion = np.zeros((len(names), len(names)), np.int64)
    for index, result in enumerate(_results(predictor, dataset)):
        masks = dataset.example(index, masks=True)["masks"]
        labels = semantic_map(masks, dataset.objects[index].labels)
        confusion += np.asarray(
            segmentation_confusion(labels[None], result.labels[None], len(names))
        )
    scores = segmentation_scores(confusion)
    table = Table("class", "IoU", "accuracy")
    for name, iou, accuracy in zip(names, scores.iou, scores.accuracy, strict=True):
        table.add_row(name, f"{iou:.3f}", f"{accuracy:.3f}")
    Console().print(table)
    print(
        f"{dataset.split}: mean IoU {scores.mean_iou:.4f}, pixel accuracy "
        f"{scores.pixel_accuracy:.4f} of {len(dataset):,} pictures"
    )


# ----------------------------------------------------------------------------------------- for all
def _config_of(run: Path) -> dict[str, Any]:
    """The run's config, which has the flags that name its data; {} for a checkpoint alone."""
    from jaxvision.train.run import read_config

    try:
        return read_config(run)
    except UserError:
        return {}


def _scenes(
    command: Evaluate,
    predictor: Any,
    *,
    masks: bool = False,
    keypoint_names: tuple[str, ...] = (),
    **options: Any,
) -> Any:
    """The split of the detection data set that the command or else the run's own config names.

    With `masks` its objects have them where the data set has, with `keypoint_names` they have those
    keypoints.
    """
    from jaxvision.data import load_detection
    from jaxvision.data.detection_recipes import WITH_MASKS
    from jaxvision.data.keypoints import IN_FILES

    config = _config_of(command.run)
    own = predictor.meta.get("dataset")
    given = command.data if command.data not in FASHION_MNIST else own
    if given is None:
        raise UserError(
            f"the checkpoint in {command.run} does not name its data set: say --data NAME"
        )
    if command.data in ("full", "embedded") and given != "garment_scenes":
        raise UserError(f"--data {command.data} is of garments, and the run's data set is {given}")
    kept = config if given == own else {}  # another data set has other files
    places = {
        "source": command.source or kept.get("source"),
        "data_dir": command.data_dir or kept.get("data_dir"),
    }
    if given == "garment_scenes":
        pictures = command.data if command.data in ("full", "embedded") else kept.get("garments")
        pictures = pictures or (kept["data"] if kept.get("data") in FASHION_MNIST else "auto")
        # As many as the run was told of every split: the same scenes are then found prepared.
        counts = {name: kept.get(f"num_{name}") for name in ("train", "val", "test")}
        options["counts"] = {name: n for name, n in counts.items() if n is not None}
        options["size"] = command.picture_size or kept.get("picture_size") or 128
        options["data"] = pictures
    else:
        extreme = bool(keypoint_names) and given not in IN_FILES
        options = dict(WITH_MASKS.get(given, {})) if masks or extreme else {}
        if keypoint_names and not extreme:
            options["keypoints"] = True
    splits = load_detection(given, **places, **options)
    held_out = [name for name in ("test", "val") if name in splits]
    dataset = _split(splits, command, given, *held_out[:1])
    count = command.count or kept.get(f"num_{command.split or 'test'}")
    if count is not None and count < len(dataset):
        dataset = dataset.subset(np.arange(count))
    return _with_keypoints(dataset, keypoint_names) if keypoint_names else dataset


def _with_keypoints(dataset: Any, names: tuple[str, ...]) -> Any:
    from jaxvision.data.keypoints import with_extreme_points

    if dataset.keypoints is None:
        dataset = with_extreme_points(dataset)
    if dataset.keypoint_names != names:
        raise UserError(
            f"expected a data set with the model's keypoints, {', '.join(names)}, got "
            f"{dataset.name} with {', '.join(dataset.keypoint_names)}"
        )
    return dataset


def _results(predictor: Any, dataset: Any) -> Iterator[Any]:
    """What the model says of each picture, in order."""
    starts = range(0, len(dataset), AT_ONCE)
    hidden = len(dataset) < 10 * AT_ONCE
    for first in track(starts, "evaluating", console=Console(stderr=True), disable=hidden):
        rows = range(first, min(first + AT_ONCE, len(dataset)))
        yield from predictor([dataset.image(row) for row in rows])


def _split(splits: dict[str, Any], command: Evaluate, name: str, default: str | None = None) -> Any:
    split = command.split or default or list(splits)[-1]
    if split not in splits:
        raise UserError(f"{name} has no split {split!r}; it has {', '.join(splits)}")
    dataset = splits[split]
    return dataset if dataset.split == split else dataclasses.replace(dataset, split=split)


def _check_classes(known: tuple[str, ...], there: tuple[str, ...], name: str) -> None:
    if known != tuple(there):
        raise UserError(
            f"the model knows the classes {', '.join(known)}; {name} has {', '.join(there)}"
        )
