"""What two detectors get wrong, side by side: the figure of YOLO's paper, on your own runs.

    python experiments/error_analysis.py runs/yolo/v1 runs/yolo/yolox

For each class the best detections, as many as there are objects, are correct; or right in the class
and wrong in the place (localisation); or found on an object of a similar class, or of another; or
on nothing (background). That is Hoiem's analysis (ECCV 2012) as YOLO's paper has it
(arXiv:1506.02640, figure 4): there localisation was YOLO's largest error, 19.0 % of its detections
against Fast R-CNN's 8.6 %, and background Fast R-CNN's, 13.6 % against 4.75 %.

The folders are of finished runs of experiments/yolo.py, or another detector's experiment, on the
same data set; predictions.npz there is what they found in the test pictures. The page has the pies
and tables, and for each detector pictures of each kind of mistake.
"""

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import tyro
from detection import read_predictions
from detection_data import DetectionData, load_splits, similar_classes
from rich.console import Console
from rich.table import Table

from jaxvision.errors import UserError, exit_on_user_error
from jaxvision.metrics.errors import ERROR_KINDS, ErrorBreakdown
from jaxvision.report.errors import write_error_report
from jaxvision.train.run import read_config


@dataclass(frozen=True)
class Config:
    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders of detectors, usually two."""
    names: tuple[str, ...] = ()
    """What to call them, by default by their models and folders."""
    out: Path | None = None
    """The page to write, by default errors.html in the first run's folder."""
    source: Path | None = None
    """The folder with the data set's files, where it is not the first run's."""
    data_dir: Path | None = None
    """Where prepared data sets are kept, where it is not the first run's."""


def main(config: Config) -> dict[str, dict[str, float]]:
    if not config.runs:
        raise UserError("expected at least one run folder")
    configs = [read_config(run) for run in config.runs]
    names = names_of(config, configs)
    data = data_of(configs[0], config)
    # Where pictures with masks, or with keypoints, are others, these two are tested on those.
    model = str(configs[0].get("model", ""))
    masks, keypoints = (model.startswith(kind) for kind in ("maskrcnn_", "keypointrcnn_"))
    test = load_splits(data, masks=masks, keypoints=keypoints)["test"]
    found = {
        name: read_predictions(run, test) for name, run in zip(names, config.runs, strict=True)
    }
    out = (config.out or config.runs[0] / "errors").with_suffix(".html")
    breakdowns = write_error_report(
        out,
        title=f"Errors on {test.name}: {' and '.join(names)}",
        class_names=test.class_names,
        detectors=found,
        targets=test.objects,
        image_at=test.image,
        similar=similar_classes(data),
        notes=[f"Of {len(test):,} pictures of {test.name}'s {test.split} set."],
    )
    Console(width=100).print(table_of(breakdowns))
    result = {
        name: {**{k: float(v) for k, v in b.shares.items()}, "missed": float(b.missed_share)}
        for name, b in breakdowns.items()
    }
    path = out.with_suffix(".json")
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"figures: {path}")
    print(f"report: {out}")
    return result


def names_of(config: Config, configs: list[dict[str, Any]]) -> list[str]:
    if config.names and len(config.names) != len(config.runs):
        raise UserError(
            f"expected a name for each of the {len(config.runs)} runs, got {len(config.names)}"
        )
    models = [
        str(each.get("model", run.name)) for each, run in zip(configs, config.runs, strict=True)
    ]
    alike = len(set(models)) < len(models)
    given = [
        f"{model} ({run.name})" if alike else model
        for model, run in zip(models, config.runs, strict=True)
    ]
    names = list(config.names) or given
    if len(set(names)) < len(names):
        raise UserError(f"expected different names, got {', '.join(names)}: give --names")
    return names


def data_of(run: dict[str, Any], config: Config) -> DetectionData:
    """Returns the flags of data that a run was started with."""
    flags = {field.name: run[field.name] for field in fields(DetectionData) if field.name in run}
    if "picture_size" not in flags:
        raise UserError(f"{config.runs[0]}: expected the run folder of a detector's experiment")
    for name in ("source", "data_dir"):
        given = getattr(config, name) or flags.get(name)
        flags[name] = None if given is None else Path(given)
    return DetectionData(**flags)


def table_of(breakdowns: dict[str, ErrorBreakdown]) -> Table:
    table = Table(title="Best detections of each class, in per cent: mean over the classes")
    for heading in ("detector", *ERROR_KINDS, "missed objects"):
        table.add_column(heading, justify="left" if heading == "detector" else "right")
    for name, breakdown in breakdowns.items():
        shares = [breakdown.shares[kind] for kind in ERROR_KINDS]
        table.add_row(name, *(f"{100 * x:.1f}" for x in (*shares, breakdown.missed_share)))
    return table


if __name__ == "__main__":
    with exit_on_user_error():
        main(tyro.cli(Config, description=__doc__))
