"""`predict`: what is in pictures and videos, printed, written and drawn."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.progress import Progress

from jaxvision.cli.inputs import VIDEOS, find_inputs, read_frames, together
from jaxvision.cli.loading import check_thresholds, open_run
from jaxvision.errors import UserError

AT_ONCE, PIXELS_AT_ONCE = 16, 50_000_000
"""So many pictures are predicted together, or fewer where they are large."""


@dataclass(frozen=True)
class Predict:
    """Say what is in pictures and videos, with the checkpoint of a run, or with weights alone.

    `predict RUN PATH…` takes the run's model, whatever its task: classification, localisation,
    detection or segmentation. `predict --model yolox_s --weights COCO PATH…` needs no run. A file
    that cannot be read is named, the others are still predicted, and the exit status is 1.
    """

    paths: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN PATH…")]
    """The run folder (not with --model), then pictures, videos, folders of them, or patterns."""
    which: str = "best"
    """The run's checkpoint: best, latest or a step."""
    model: str | None = None
    """A model's name, to predict with weights and no run."""
    weights: str = "DEFAULT"
    """Of --model: a file, an address, or the name of published weights."""
    class_names: tuple[str, ...] = ()
    """Of --model: what its classes are called, where the weights are your own."""
    top: int = 3
    """Of a classifier, show so many of the most probable classes."""
    threshold: float = 0.3
    """Of a detector, leave out objects of a lower score."""
    iou_threshold: float | None = None
    """Of a detector: of two boxes of a class that overlap by more, the better one stays; by
    default as it is used to, mostly 0.5."""
    max_detections: int | None = None
    """Of a detector, at most so many objects a picture, by default mostly 100."""
    flip: bool = False
    """Of a detector: look at each picture's mirror image too, which takes twice the time."""
    every: int = 1
    """Of a video, every so many frames."""
    out: Path | None = None
    """Draw what was found, into this folder: pictures, and a video for each video. Only earlier
    drawings are written over."""
    frames: bool = False
    """Draw a video's frames as pictures."""
    json: Path | None = None
    """Also write the predictions to this file, masks as COCO's run lengths."""
    csv: Path | None = None
    """Also write them as a table, a row for each object or class."""
    coco: Path | None = None
    """Also write the boxes, masks and keypoints as COCO's results."""


def predict(command: Predict) -> None:
    """Prints a line for each picture, and writes what is asked for."""
    _check(command)
    files = find_inputs(command.paths if command.model else command.paths[1:], command.out)
    predictor = _predictor(command)
    if command.coco is not None and predictor.task not in ("detection", "localization"):
        raise UserError(f"--coco needs a model that finds boxes, got one for {predictor.task}")

    from jaxvision.cli.outputs import (
        Drawings,
        describe,
        to_record,
        write_coco,
        write_csv,
        write_json,
    )

    with_masks = command.json is not None or command.coco is not None
    drawings = None
    if command.out is not None:
        drawings = Drawings(command.out, files, every=command.every, frames=command.frames)
    records: list[dict[str, Any]] = []
    failed: set[Path] = set()

    def report(file: Path, error: UserError) -> None:
        print(f"error: {error}", file=sys.stderr)
        failed.add(file)

    try:
        with _progress(files) as done:
            frames = read_frames(files, command.every, report)
            for some in together(frames, AT_ONCE, PIXELS_AT_ONCE):
                results = predictor([frame.image for frame in some])
                for frame, result in zip(some, results, strict=True):
                    print(f"{frame.name}: {describe(result, command.top)}")
                    records.append(to_record(frame, result, masks=with_masks))
                    if drawings is not None:
                        drawings.add(frame, result)
                done(some[-1].index + 1)
    finally:
        if drawings is not None:
            drawings.close()
    if command.json is not None:
        write_json(command.json, records)
    if command.csv is not None:
        write_csv(command.csv, records, command.top)
    if command.coco is not None:
        write_coco(command.coco, records, predictor.class_names)
    if drawings is not None:
        print(f"drawn: {drawings.count} files in {command.out}")
    if failed:
        what = "files" if any(f.suffix.lower() in VIDEOS for f in files) else "pictures"
        raise UserError(f"{len(failed)} of {len(files)} {what} could not be read")


def _check(command: Predict) -> None:
    """Refuses what cannot be, before anything is loaded."""
    if not command.paths:
        raise UserError("expected a run folder and pictures, or --model NAME and pictures")
    if command.model is None and len(command.paths) < 2:
        raise UserError(f"expected pictures after the run folder {command.paths[0]}, got none")
    if command.model is None and command.class_names:
        raise UserError("--class-names is of --model: a run knows what its classes are called")
    if command.every < 1 or command.top < 1:
        raise UserError("expected --every and --top of at least 1")
    check_thresholds(command)
    for path in (command.json, command.csv, command.coco):
        if path is not None and not path.absolute().parent.is_dir():
            raise UserError(f"cannot write {path}: there is no folder {path.parent}")


def _predictor(command: Predict) -> Any:
    from jaxvision.predict import Predictor
    from jaxvision.train.run import enable_compilation_cache

    thresholds = {
        "score_threshold": command.threshold,
        "iou_threshold": command.iou_threshold,
        "max_detections": command.max_detections,
        "flip": command.flip,
    }
    if command.model is None:
        return open_run(command.paths[0], command.which, **thresholds)
    enable_compilation_cache()
    names = command.class_names or None
    return Predictor.from_weights(command.model, command.weights, class_names=names, **thresholds)


@contextmanager
def _progress(files: list[Path]) -> Iterator[Any]:
    """A bar on a terminal where there is much to do; yields a function that is told how far."""
    few = len(files) < 20 and not any(file.suffix.lower() in VIDEOS for file in files)
    hidden = few or not sys.stderr.isatty()
    with Progress(console=Console(stderr=True), disable=hidden) as progress:
        task = progress.add_task("predicting", total=len(files))
        yield lambda count: progress.update(task, completed=count)
