"""Segmentation as the course builds it up: why maps shrink, what each way of growing them loses.

    python experiments/segmentation.py --upsampling unet     # one network
    python experiments/segmentation.py --all --seeds 3       # every way, and the table

One encoder-decoder on the semantic maps of garment_scenes, at half their size (64 x 64), with six
ways to come back to the picture's size: never to leave it (full), repeating pixels (nearest), bed
of nails, max-unpooling with the places of the maxima (SegNet), transposed convolution, and U-Net's
skips. All else is equal: the scenes, their order, the steps, and for one seed the first weights of
the layers that they share. At full resolution every layer has `--full-widths` channels, so that it
costs about as much: what the same widths would cost there is in the table too.

torchvision's fcn_resnet50 and deeplabv3_resnet50 take their place beside these with `--ways`, or
alone, from converted weights or from none:

    python experiments/segmentation.py --upsampling fcn_resnet50 --full-size \\
        --weights COCO_WITH_VOC_LABELS_V1 --learning-rate 1e-3

The table has, of the test scenes, the mean IoU, and the accuracy of the pixels that have a boundary
within `--boundary` pixels; and what a network costs. Runs of `--all` that are finished are not done
again: after an interruption, go on with `--run-dir … --resume`.
"""

import json
import statistics
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table
from segmenter import Evaluation, costs_of, halved, predicted_maps
from training import Training, facts_of, falling_rate, milliseconds_a_step, train

from jaxvision.data import ArrayDataset, Batches
from jaxvision.data.detection_sources import load_detection
from jaxvision.data.semantic import semantic_dataset
from jaxvision.errors import UserError, exit_on_user_error
from jaxvision.losses import segmentation_loss
from jaxvision.models import abstract_variables, get_model
from jaxvision.models.encoder_decoder import Upsampling
from jaxvision.report import read_records
from jaxvision.report.segmentation import write_segmentation_report
from jaxvision.train.checkpoint import load_checkpoint
from jaxvision.train.optim import adam
from jaxvision.train.run import Run, enable_compilation_cache, read_config, write_json
from jaxvision.weights import Preprocessing, load_weights

WAYS = get_args(Upsampling)
Torchvision = Literal["fcn_resnet50", "deeplabv3_resnet50"]
Network = Upsampling | Torchvision
SHOWN = 200
"""Test pictures whose maps are drawn, or kept to be drawn beside another network's."""


@dataclass(frozen=True)
class Config:
    upsampling: Network = "unet"
    """How maps grow, or a network of torchvision's, which does it by bilinear resizing."""
    all: bool = False
    """Train every way of --ways with every seed, and compare them."""
    ways: tuple[Network, ...] = WAYS
    """Of --all; torchvision's networks take many times as long as the others."""
    seeds: int = 3
    """How many seeds --all trains each way with, from --seed on."""
    widths: tuple[int, ...] = (16, 32, 64, 128)
    """Channels of the encoder's stages; between two of them the map halves."""
    full_widths: tuple[int, ...] = (24, 24, 24, 24)
    """Channels of the same stages where the map does not shrink."""
    num_train: int = 8000
    """Training scenes."""
    num_val: int = 500
    num_test: int = 1000
    epochs: int = 2
    batch_size: int = 8
    learning_rate: float = 3e-3
    """Of Adam; it falls to 0 along a half cosine."""
    weights: str | None = None
    """Of torchvision's networks: a .pth file, an address, or a published name such as
    COCO_WITH_VOC_LABELS_V1. The layers that tell classes apart are replaced. By default all
    weights are drawn."""
    torchvision_width: int = 64
    """Channels of the first stage of torchvision's networks; other than 64 for small machines."""
    boundary: int = 2
    """How near a boundary a pixel must be to count for the boundary accuracy."""
    full_size: bool = False
    """Scenes of 128 x 128, as they are."""
    seed: int = 0
    data: Literal["auto", "full", "embedded"] = "auto"
    """The pictures of garments: full, 60,000; embedded, the 11,000 in the package."""
    source: Path | None = None
    """A folder with Fashion-MNIST's four IDX files; else Debian's package, else a download."""
    data_dir: Path | None = None
    """Where prepared data sets are kept."""
    run_dir: Path | None = None
    """The run folder, by default runs/segmentation/<time>."""
    resume: bool = False
    """Go on with the run in --run-dir, or with the newest one."""
    log_every: int | None = None
    """Log every so many steps, by default about five times an epoch."""


def main(config: Config) -> list[dict[str, Any]]:
    check(config)
    flags = {"run_dir": config.run_dir, "resume": config.resume}
    # All ways are compared, and so are trained alike.
    with Run("segmentation", config, **flags, fixed=("epochs",) if config.all else ()) as run:
        splits = load_scenes(config)
        if not config.all:
            result = train_one(config, splits, run)
            print(f"test: {words(result)}")
            print(f"report: {run.path / 'report.html'}")
            return [result]
        run.write_config(**facts_of(splits["train"]))
        results = []
        for seed in range(config.seed, config.seed + config.seeds):
            for way in config.ways:
                print(f"--- {way}, seed {seed}", flush=True)
                results.append(train_or_read(config, splits, run.path, way, seed))
                print(f"test: {words(results[-1])}", flush=True)
        compare(config, splits, run.path, results)
    return results


def load_scenes(config: Config) -> dict[str, ArrayDataset]:
    counts = {"train": config.num_train, "val": config.num_val, "test": config.num_test}
    scenes = load_detection(
        "garment_scenes",
        counts=counts,
        data=config.data,
        source=config.source,
        data_dir=config.data_dir,
    )
    splits = {name: semantic_dataset(dataset) for name, dataset in scenes.items()}
    if config.full_size:
        return splits
    return {name: halved(dataset) for name, dataset in splits.items()}


def train_or_read(
    config: Config, splits: dict[str, ArrayDataset], folder: Path, way: str, seed: int
) -> dict[str, Any]:
    """Trains one network in a folder of its own, or returns what it left there."""
    path = folder / f"{way}-seed{seed}"
    if (path / "result.json").exists():
        return json.loads((path / "result.json").read_text(encoding="utf-8"))
    resume = (path / "config.json").exists()
    one = replace(config, upsampling=way, seed=seed, all=False, run_dir=path, resume=resume)
    with Run("segmentation", one, run_dir=path, resume=resume) as run:
        return train_one(one, splits, run)


def train_one(config: Config, splits: dict[str, ArrayDataset], run: Run) -> dict[str, Any]:
    """Trains one network, evaluates the best checkpoint on the test scenes, writes the report."""
    training = make_training(config, splits)
    log_every = config.log_every or max(1, training.batches.steps_per_epoch // 5)
    train(training, run, log_every=log_every)

    model, variables, meta = load_checkpoint(run.path, "best")
    variables = jax.device_put(variables)
    test, num_classes = splits["test"], len(splits["test"].class_names)
    maps = predicted_maps(model, variables, test, *normalization(config))
    evaluation = Evaluation(model, test, *normalization(config), config.boundary)
    scores = evaluation.scores(maps)
    train_batch = training.batches(0)
    result = {
        "upsampling": config.upsampling,
        "seed": config.seed,
        **scores,
        "best_step": int(meta["step"]),
        "ms_per_step": milliseconds_a_step(run.path, config.batch_size),
        **costs_of(model, training.make_loss(model), training.tx, variables, train_batch),
    }
    np.savez_compressed(run.path / "maps.npz", maps=maps[:SHOWN].astype(np.uint8))
    write_segmentation_report(
        run.path,
        title=f"Segmentation of garment_scenes: {config.upsampling}",
        config=read_config(run.path),
        records=read_records(run.path / "metrics.jsonl"),
        class_names=test.class_names,
        labels=test.labels[:SHOWN],
        predictions=maps[:SHOWN],
        images=np.asarray(test.images[:SHOWN]),
        name=config.upsampling,
        throughput={"ms_per_step": result["ms_per_step"]},
        notes=[
            f"Of all {len(test):,} test scenes: {words(result)}. The tables and pictures below are "
            f"of the first {min(SHOWN, len(test))}, by the best checkpoint, step {meta['step']:,}; "
            f"{num_classes - 1} classes and the background.",
        ],
    )
    write_json(run.path / "result.json", result)
    return result


def make_training(config: Config, splits: dict[str, ArrayDataset]) -> Training:
    train_set = splits["train"]
    batches = Batches(train_set, config.batch_size, seed=config.seed, drop_last=True)
    rate = falling_rate(config.learning_rate, config.epochs, batches)
    mean, std = normalization(config)
    evaluation_options = (splits["val"], mean, std, config.boundary)
    model, options = network_of(config, len(train_set.class_names))
    initial = None
    if config.weights is not None and model != "encoder_decoder":
        initial = load_weights(model, config.weights, seed=config.seed, **options)
    return Training(
        model=model,
        options=options,
        make_loss=lambda model: segmentation_loss(model, mean=mean, std=std),
        make_evaluation=lambda model: Evaluation(model, *evaluation_options),
        batches=batches,
        tx=adam(rate),
        learning_rate=rate,
        epochs=config.epochs,
        seed=config.seed,
        best="val/mean_iou",
        meta={
            "task": "segmentation",
            "mean": mean,
            "std": std,
            # A box filter is the mean of four pixels where a picture is halved, as in training.
            "preprocessing": {
                "kind": "resize",
                "size": train_set.images.shape[1:3],
                "interpolation": "bilinear" if config.full_size else "box",
            },
        },
        initial=initial,
    )


def network_of(config: Config, num_classes: int) -> tuple[str, dict[str, Any]]:
    """Returns the model's name and its options."""
    if config.upsampling in get_args(Torchvision):
        return config.upsampling, {"num_classes": num_classes, "width": config.torchvision_width}
    widths = config.full_widths if config.upsampling == "full" else config.widths
    options = {"num_classes": num_classes, "upsampling": config.upsampling, "widths": widths}
    return "encoder_decoder", options


def normalization(config: Config) -> tuple[Any, Any]:
    """Returns the mean and standard deviation that pictures are normalised by."""
    if config.upsampling in get_args(Torchvision):
        return Preprocessing().mean, Preprocessing().std
    return 0.5, 0.25


def words(result: dict[str, Any]) -> str:
    return (
        f"mean IoU {result['mean_iou']:.4f}, pixel accuracy {result['pixel_accuracy']:.4f}, "
        f"near boundaries {result['boundary_accuracy']:.4f}"
    )


def compare(
    config: Config, splits: dict[str, ArrayDataset], folder: Path, results: list[dict[str, Any]]
) -> None:
    """Prints and writes the table, and draws all ways beside each other."""
    Console(width=120).print(table_of(config, splits, results))
    for claim, holds in claims_of(results).items():
        print(f"{'holds' if holds else 'DOES NOT HOLD'}: {claim}")
    write_json(folder / "results.json", results)
    maps = {}
    for way in config.ways:
        with np.load(folder / f"{way}-seed{config.seed}" / "maps.npz") as file:
            maps[way] = file["maps"]
    test, first = splits["test"], config.ways[-1]
    report = write_segmentation_report(
        folder,
        title="Segmentation of garment_scenes: ways back to the picture's size",
        config=read_config(folder),
        records=read_records(folder / f"{first}-seed{config.seed}" / "metrics.jsonl"),
        class_names=test.class_names,
        labels=test.labels[:SHOWN],
        predictions=maps.pop(first),
        images=np.asarray(test.images[:SHOWN]),
        others=maps,
        name=first,
        notes=[
            *(
                f"{way}: {words(mean_of(results, way))} (means over the seeds)"
                for way in config.ways
            ),
            *(f"{'Holds' if h else 'Does not hold'}: {c}." for c, h in claims_of(results).items()),
            f"The curves are those of {first}; the pictures those of seed {config.seed}.",
        ],
    )
    print(f"figures: {folder / 'results.json'}")
    print(f"report: {report}")


def claims_of(results: list[dict[str, Any]]) -> dict[str, bool]:
    """What the lecture says, and whether it is so here for every seed: a way's worst run against
    the other's best."""
    iou: dict[str, list[float]] = {}
    for result in results:
        iou.setdefault(result["upsampling"], []).append(result["mean_iou"])
    others = [value for way in iou.keys() & set(WAYS) - {"unet"} for value in iou[way]]
    claims = {}
    if "max_unpool" in iou and "bed_of_nails" in iou:
        claims["max-unpooling has a higher mean IoU than bed of nails"] = min(
            iou["max_unpool"]
        ) > max(iou["bed_of_nails"])
    if "unet" in iou and others:
        claims["U-Net's skips have the highest mean IoU"] = min(iou["unet"]) > max(others)
    return claims


def mean_of(results: list[dict[str, Any]], way: str) -> dict[str, float]:
    mine = [r for r in results if r["upsampling"] == way]
    names = ("mean_iou", "pixel_accuracy", "boundary_accuracy")
    return {name: statistics.mean(r[name] for r in mine) for name in names}


def table_of(
    config: Config, splits: dict[str, ArrayDataset], results: list[dict[str, Any]]
) -> Table:
    table = Table(title="Test scenes: mean (lowest to highest) over the seeds, in per cent")
    headings = ("upsampling", "mean IoU", "near boundaries", "parameters", "multiply-adds")
    for heading in (*headings, "ms a step", "memory"):
        table.add_column(heading, justify="left" if heading == "upsampling" else "right")
    for way in config.ways:
        mine = [result for result in results if result["upsampling"] == way]
        table.add_row(
            way,
            spread([100 * result["mean_iou"] for result in mine]),
            spread([100 * result["boundary_accuracy"] for result in mine]),
            f"{mine[0]['parameters']:,}",
            f"{mine[0]['multiply_adds'] / 1e6:,.0f} M",
            f"{statistics.median(result['ms_per_step'] for result in mine):.0f}",
            f"{mine[0]['memory_bytes'] / 1e6:,.0f} MB",
        )
    costs = same_widths_at_full_resolution(config, splits)
    table.add_row(
        f"full, widths {' '.join(map(str, config.widths))}",
        *("not trained", ""),
        f"{costs['parameters']:,}",
        f"{costs['multiply_adds'] / 1e6:,.0f} M",
        "",
        f"{costs['memory_bytes'] / 1e6:,.0f} MB",
    )
    return table


def same_widths_at_full_resolution(
    config: Config, splits: dict[str, ArrayDataset]
) -> dict[str, int]:
    """Counts what the encoder-decoder's own widths would cost if its maps did not shrink."""
    wide = replace(config, upsampling="full", full_widths=config.widths)
    training = make_training(wide, splits)
    model = get_model(training.model, **training.options)
    variables = abstract_variables(model, splits["train"].images.shape[1:])
    loss_fn = training.make_loss(model)
    return costs_of(model, loss_fn, training.tx, variables, training.batches(0))


def spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def check(config: Config) -> None:
    """Refuses what cannot be trained, before any work."""
    if config.seeds < 1:
        raise UserError(f"expected --seeds of at least 1, got {config.seeds}")
    if not config.ways or len(set(config.ways)) < len(config.ways):
        raise UserError(f"expected each of --ways once, got {' '.join(config.ways) or 'none'}")
    networks = config.ways if config.all else (config.upsampling,)
    if config.weights is not None and not set(networks) & set(get_args(Torchvision)):
        raise UserError(
            f"expected --weights for {' or '.join(get_args(Torchvision))}: the encoder-decoder "
            f"({', '.join(networks)}) is trained from the start"
        )
    if config.boundary < 1:
        raise UserError(f"expected --boundary of at least 1 pixel, got {config.boundary}")
    if len(config.full_widths) != len(config.widths):
        raise UserError(
            f"expected as many --full-widths as --widths, got {len(config.full_widths)} and "
            f"{len(config.widths)}"
        )


if __name__ == "__main__":
    with exit_on_user_error():
        enable_compilation_cache()
        main(tyro.cli(Config, description=__doc__))
