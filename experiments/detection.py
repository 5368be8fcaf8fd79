"""What every detector's experiment does after training: find, score, keep, report."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from training import Training, label_digest, milliseconds_a_step, train

from jaxvision.data import DetectionBatches, DetectionDataset, Proposals
from jaxvision.data.batch_shapes import picture_sizes
from jaxvision.data.detection_transforms import PlacementTransform
from jaxvision.errors import UserError
from jaxvision.metrics.coco import coco_scores
from jaxvision.metrics.detection import detection_average_precision
from jaxvision.metrics.errors import ClassGroups, error_breakdown
from jaxvision.models.detection import make_detector
from jaxvision.models.proposal_detection import make_proposal_detector
from jaxvision.ops import BoxMasks
from jaxvision.report import read_records
from jaxvision.report.detection import write_detection_report
from jaxvision.train import TrainState, evaluate, make_eval_step
from jaxvision.train.checkpoint import load_checkpoint
from jaxvision.train.run import Run, read_config, write_json
from jaxvision.types import LossFn, PaddedInstances, PaddedPoses

SHOWN = 500
"""Test pictures that the report's pictures, pies and curves are made of."""
PREDICTIONS = "predictions.npz"
"""In a run folder: what the best checkpoint found in the test pictures."""

Found = dict[str, Any]


@dataclass(frozen=True)
class Thresholds:
    """Which boxes count as found."""

    score_threshold: float = 0.005
    """Boxes of a lower score are left out: average precision wants many."""
    iou_threshold: float | None = None
    """Of two boxes of a class that overlap by more, the better one stays; by default as the
    detector is used to: 0.5, R-CNN 0.3, SSD 0.45, SSDlite 0.55, FCOS 0.6."""
    max_detections: int = 100
    """At most so many boxes a picture."""


class Finder:
    """`variables -> what is found` in every picture of a data set: boxes in its own pixels.

    `prepare` brings the pictures to the one size that the model takes, or to one that fits into
    one of `buckets`. What a model finds with masks has them as run lengths of the whole picture,
    what it finds with keypoints has those; `masks` and `keypoints` are for `batches`, whose objects
    then have theirs, as the loss of such a model wants it.
    A model that is given proposals looks at the first `num_proposals` of `proposals`.
    """

    def __init__(
        self,
        model: nn.Module,
        dataset: DetectionDataset,
        *,
        prepare: PlacementTransform,
        mean: Any,
        std: Any,
        thresholds: Thresholds,
        batch_size: int = 32,
        buckets: Sequence[tuple[int, int]] | None = None,
        masks: bool = False,
        keypoints: bool = False,
        proposals: Proposals | None = None,
        num_proposals: int | None = None,
    ):
        self.dataset = dataset
        sizes = [(int(h), int(w)) for h, w in picture_sizes(dataset)]
        self._placements = [prepare.placement(*size) for size in sizes]
        already = all(p.original == p.canvas for p in self._placements)
        self.batches = DetectionBatches(
            dataset,
            min(batch_size, len(dataset)),
            shuffle=False,
            transform=None if already else prepare,
            buckets=buckets,
            masks=masks,
            keypoints=keypoints,
            proposals=proposals,
            num_proposals=num_proposals,
        )
        self._inputs = ["image", "size"]
        if proposals is not None:
            self._inputs += ["proposals", "proposal_valid"]
        make = make_detector if proposals is None else make_proposal_detector
        self.detect = make(
            model,
            mean=mean,
            std=std,
            score_threshold=thresholds.score_threshold,
            iou_threshold=thresholds.iou_threshold,
            max_detections=thresholds.max_detections,
        )

    def __call__(self, variables: Any) -> list[Found]:
        results: list[Found] = [{} for _ in range(len(self.dataset))]
        variables = jax.device_put(variables)
        slots = self.batches.padded_order(0).reshape(-1, self.batches.batch_size)
        counts = self.batches.valid_slots(0).reshape(slots.shape)
        for step in range(self.batches.steps_per_epoch):
            batch = self.batches(step)
            inputs = (batch[name] for name in self._inputs)
            found = jax.device_get(self.detect(variables, *inputs))
            for row in np.flatnonzero(counts[step]):
                index = slots[step][row]
                placement = self._placements[index]
                boxes = placement.to_original(found.boxes[row])
                # What lies beside the picture, on the canvas of a letterbox, is nothing in it.
                real = found.valid[row] & (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
                results[index] = {
                    "boxes": boxes[real],
                    "scores": found.scores[row][real],
                    "labels": found.labels[row][real],
                }
                if isinstance(found, PaddedInstances):
                    masks = BoxMasks(found.masks[row][real], boxes[real], placement.original)
                    results[index]["masks"] = masks.run_lengths()
                if isinstance(found, PaddedPoses):
                    points = placement.points_to_original(found.keypoints[row][real])
                    results[index]["keypoints"] = points
        return results


def evaluation_of(
    loss_fn: LossFn,
    find: Finder,
    precisions: Callable[[list[Found]], dict[str, float]] | None = None,
) -> Callable[[TrainState], dict[str, float]]:
    """Returns `state -> metrics`: the loss, its terms, and `precisions` of what is found.

    These are by default the mean average precisions of the boxes.
    """
    eval_step = make_eval_step(loss_fn)
    targets, k = find.dataset.objects, len(find.dataset.class_names)
    precisions = precisions or (lambda found: mean_precisions(found, targets, k))

    def evaluation(state: TrainState) -> dict[str, float]:
        batches = (find.batches(step) for step in range(find.batches.steps_per_epoch))
        losses = evaluate(eval_step, state, batches)
        return losses | precisions(find(state.variables))

    return evaluation


def mean_precisions(
    found: Sequence[Mapping[str, Any]], targets: Sequence[Any], num_classes: int
) -> dict[str, float]:
    """Returns the mean average precision at an IoU of 0.5, by VOC's rules of 2007 and of later."""
    area = detection_average_precision(found, targets, num_classes)
    older = detection_average_precision(found, targets, num_classes, method="voc07")
    return {"mAP50": float(area.mean), "mAP50_voc07": float(older.mean)}


def scores_of(
    found: Sequence[Mapping[str, Any]], dataset: DetectionDataset, similar: ClassGroups
) -> dict[str, Any]:
    """Returns all that is said of the test pictures: mAP, COCO's AP, the shares of the errors."""
    names = dataset.class_names
    coco = coco_scores(found, dataset.objects, names)["bbox"].summary
    errors = error_breakdown(found, dataset.objects, names, similar)
    return {
        **mean_precisions(found, dataset.objects, len(names)),
        "coco_ap": float(coco["AP"]),
        "errors": {kind: float(share) for kind, share in errors.shares.items()},
        "missed": float(errors.missed_share),
    }


def save_predictions(
    path: Path, found: Sequence[Mapping[str, Any]], dataset: DetectionDataset
) -> None:
    """Writes what was found, and in which pictures of which data set, as one .npz file."""
    columns = {
        name: np.concatenate([each[name] for each in found])
        for name in ("boxes", "scores", "labels")
    }
    np.savez_compressed(
        path,
        counts=np.array([len(each["scores"]) for each in found]),
        image_ids=dataset.image_ids,
        dataset=np.array([dataset.name, dataset.split]),
        labels_digest=label_digest(dataset),
        class_names=np.array(dataset.class_names),
        **columns,
    )


def read_predictions(run_dir: Path, dataset: DetectionDataset) -> list[Found]:
    """Returns what a run found in the pictures of `dataset`; `UserError` if it was of others."""
    path = run_dir / PREDICTIONS
    if not path.exists():
        raise UserError(
            f"{run_dir} has no {PREDICTIONS}: expected the folder of a detector's run that is "
            "finished (its experiment with --resume finishes it)"
        )
    with np.load(path) as file:
        stored = {name: file[name] for name in file.files}
    same = (
        np.array_equal(stored["image_ids"], dataset.image_ids)
        and stored["class_names"].tolist() == list(dataset.class_names)
        and stored["dataset"].tolist() == [dataset.name, dataset.split]
        and stored.get("labels_digest") in (None, label_digest(dataset))
    )
    if not same:
        name, split = stored["dataset"].tolist()
        raise UserError(
            f"{path}: expected {len(dataset):,} pictures of {dataset.name}'s {dataset.split} set, "
            f"got {len(stored['image_ids']):,} of {name}'s {split} set, or other ones"
        )
    ends = np.cumsum(stored["counts"])[:-1]
    columns = {name: np.split(stored[name], ends) for name in ("boxes", "scores", "labels")}
    return [
        {name: column[i] for name, column in columns.items()} for i in range(len(stored["counts"]))
    ]


def train_and_report(
    config: Any,
    training: Training,
    run: Run,
    test: DetectionDataset,
    find_with: Callable[[nn.Module, Mapping[str, Any]], Finder],
    *,
    similar: ClassGroups,
    more: Callable[[list[Found]], dict[str, float]] | None = None,
    targets: Sequence[Any] | None = None,
) -> dict[str, Any]:
    """Trains in `run`'s folder; returns `report` of what the best checkpoint finds in `test`.

    `find_with` makes the `Finder` of a model and its checkpoint's meta; `more` are scores besides.
    """
    log_every = config.log_every or max(1, training.batches.steps_per_epoch // 5)
    train(training, run, log_every=log_every)
    model, variables, meta = load_checkpoint(run.path, "best")
    found = find_with(model, meta)(variables)
    extra = {"model": training.model, "seed": training.seed, "best_step": int(meta["step"])}
    return report(
        run.path,
        found,
        test,
        title=f"{training.model} on {test.name}",
        similar=similar,
        throughput={"ms_per_step": milliseconds_a_step(run.path, config.batch_size)},
        extra={**(more(found) if more else {}), **extra},
        targets=targets,
    )


def report(
    run_dir: Path,
    found: Sequence[Mapping[str, Any]],
    dataset: DetectionDataset,
    *,
    title: str,
    similar: ClassGroups,
    throughput: Mapping[str, Any],
    extra: Mapping[str, Any],
    targets: Sequence[Any] | None = None,
) -> dict[str, Any]:
    """Writes predictions.npz, result.json and report.html; returns and prints the test scores.

    `targets` are the objects of the test pictures with what the data set's own do not have: masks,
    or keypoints.
    """
    result = {**scores_of(found, dataset, similar), **throughput, **extra}
    save_predictions(run_dir / PREDICTIONS, found, dataset)
    write_json(run_dir / "result.json", result)
    shown = min(SHOWN, len(dataset))
    words = (
        f"mAP@0.5 {result['mAP50']:.4f} (by VOC07's 11 points {result['mAP50_voc07']:.4f}), "
        f"COCO AP {result['coco_ap']:.4f}"
    )
    for kind in ("mask", "keypoint"):
        if f"{kind}_ap" in result:
            words += f", of {kind}s {result[f'{kind}_ap']:.4f}"
    path = write_detection_report(
        run_dir,
        title=title,
        config=read_config(run_dir),
        records=read_records(run_dir / "metrics.jsonl"),
        class_names=dataset.class_names,
        predictions=found[:shown],
        targets=(dataset.objects if targets is None else targets)[:shown],
        image_at=dataset.image,
        similar=similar,
        throughput=throughput,
        notes=[
            f"Of all {len(dataset):,} test pictures: {words}. The tables and pictures below are of "
            f"the first {shown:,}.",
        ],
    )
    print(f"test: {words}")
    print(f"report: {path}")
    return result
