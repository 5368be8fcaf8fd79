"""experiments/mask_rcnn.py: what is meant without flags, and a tiny run on Penn-Fudan's archive."""

import dataclasses
import json
import runpy
from pathlib import Path

import jax
import numpy as np
import pytest
from random_variables import random_variables

from jaxvision import cli
from jaxvision.data import detection_recipes
from jaxvision.data.formats import penn_fudan
from jaxvision.errors import UserError
from jaxvision.models import get_model
from jaxvision.ops import decode_masks
from jaxvision.predict import Predictor
from jaxvision.report import read_records
from jaxvision.train import create_state
from jaxvision.train.checkpoint import CheckpointStore, load_checkpoint
from jaxvision.train.optim import sgd
from jaxvision.train.run import Run

FILES = runpy.run_path(str(Path(__file__).parents[1] / "data" / "detection_files.py"))
OPTIONS = {
    "width": 8,
    "frozen_norm": True,
    "stages": ["layer2", "layer3"],
    "fpn_features": 8,
    "representation_size": 16,
    "anchor_sizes": [8, 24],
    "pre_nms_top_n": [40, 40],
    "post_nms_top_n": [12, 12],
}


@pytest.fixture(scope="module")
def mask_rcnn(experiment):
    return experiment("mask_rcnn")


@pytest.fixture(scope="module")
def faster_run(tmp_path_factory):
    """The folder of a run of a Faster R-CNN for garments, as if it had been trained."""
    name, options = "fasterrcnn_resnet18_fpn", {**OPTIONS, "num_classes": 11}
    variables = random_variables(get_model(name, **options), (64, 64, 3))
    meta = {"model": name, "options": options, "input_shape": (128, 128, 3), "task": "detection"}
    meta |= {"mean": 0.5, "std": 0.25, "class_names": [str(k) for k in range(10)]}
    folder = tmp_path_factory.mktemp("faster") / "run"
    with CheckpointStore(folder) as store:
        store.save(create_state(variables, sgd(0.1)), meta=meta)
    return folder


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """The folder of an archive with Penn-Fudan's layout, of five pictures."""
    monkeypatch.setattr(penn_fudan, "PICTURES", 5)
    monkeypatch.setattr(penn_fudan, "TEST_PICTURES", 1)
    folder = FILES["make_penn_fudan"](tmp_path / "made" / "PennFudanPed")
    path = tmp_path / "local" / "PennFudanPed.zip"
    official = detection_recipes.PENN_FUDAN_ARCHIVE
    assert official.file == path.name
    sha256 = FILES["pack"](folder, path, "PennFudanPed")
    genuine = dataclasses.replace(official, sha256=sha256)
    monkeypatch.setattr(detection_recipes, "PENN_FUDAN_ARCHIVE", genuine)
    return path.parent


def test_without_flags_penn_fudan_is_the_tutorial(mask_rcnn, faster_run):
    config = mask_rcnn.settled(mask_rcnn.Config(data="penn_fudan"))
    assert (config.model, config.init) == ("maskrcnn_resnet50_fpn", "COCO_V1")
    assert (config.epochs, config.batch_size, config.optimizer) == (10, 2, "sgd")
    assert (config.learning_rate, config.weight_decay) == (0.005, 0.0005)
    assert mask_rcnn.options_of(config, 1) == {"num_classes": 2, "norm_eps": 0.0}
    rate = mask_rcnn.rate_of(config, type("Batches", (), {"steps_per_epoch": 60}))
    steps = {0: 5e-6, 59: 0.005, 179: 0.005, 180: 0.0005, 360: 5e-5, 599: 5e-6}
    for step, expected in steps.items():
        assert float(rate(step)) == pytest.approx(expected), step
    names = mask_rcnn.trainable_of(config.trainable_layers)
    assert "backbone/body/layer2/**" in names
    assert "backbone/body/layer1/**" not in names
    garments = mask_rcnn.settled(mask_rcnn.Config())
    assert (garments.model, garments.init) == ("maskrcnn_resnet18_fpn", None)
    options = mask_rcnn.options_of(garments, 10)
    assert options["fpn_features"] == 64
    assert options["anchor_sizes"] == (16, 32, 64, 96)
    started = mask_rcnn.settled(mask_rcnn.Config(init=str(faster_run), epochs=7))
    assert (started.model, started.epochs) == ("maskrcnn_resnet18_fpn", 7)
    assert mask_rcnn.options_of(started, 10)["width"] == 8
    wanted = mask_rcnn.Config(init=str(faster_run), model="keypointrcnn_resnet18_fpn")
    options = mask_rcnn.options_of(mask_rcnn.settled(wanted), 10)
    assert (options["head_depth"], options["width"]) == (4, 8)
    large = mask_rcnn.settled(mask_rcnn.Config(model="maskrcnn_resnet50_fpn"))
    assert mask_rcnn.options_of(large, 10)["frozen_norm"] is False
    small = mask_rcnn.settled(
        mask_rcnn.Config(data="penn_fudan", model="keypointrcnn_resnet18_fpn")
    )
    assert (small.init, small.trainable_layers) == ("IMAGENET1K_V1", 3)
    alone = mask_rcnn.settled(mask_rcnn.Config(data="coco_json", init="none"))
    assert alone.trainable_layers == 5
    assert mask_rcnn.options_of(alone, 3) == {"num_classes": 4, "frozen_norm": False}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 100}, "multiple of 32, got 100"),
        ({"num_rois": 2}, "--num-rois of at least 4"),
        ({"trainable_layers": 6}, "--trainable-layers from 0 to 5, got 6"),
        ({"epochs": 0}, "at least 1 epoch, got 0"),
        ({"anchor_sizes": (16, 32)}, "expected 4 or 5 --anchor-sizes"),
        ({"flip": 2.0}, "expected --flip from 0 to 1"),
    ],
)
def test_a_wrong_flag_is_one_line(mask_rcnn, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        mask_rcnn.main(mask_rcnn.Config(run_dir=tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_a_run_gives_its_backbone_to_the_model_on_it(mask_rcnn, faster_run, monkeypatch):
    wrong = mask_rcnn.Config(init=str(faster_run), model="keypointrcnn_resnet50_fpn")
    with pytest.raises(UserError, match=r"another backbone .*: expected keypointrcnn_resnet18_fpn"):
        mask_rcnn.settled(wrong)
    poses = {"model": "keypointrcnn_resnet18_fpn"}
    poses["options"] = {**OPTIONS, "num_keypoints": 4, "head_depth": 4, "head_features": 64}
    monkeypatch.setattr(mask_rcnn, "load_meta", lambda folder: poses)
    masks = mask_rcnn.settled(mask_rcnn.Config(init=str(faster_run), model="maskrcnn_resnet18_fpn"))
    assert mask_rcnn.options_of(masks, 10) == {**OPTIONS, "num_classes": 11}


@pytest.mark.slow
def test_keypoints_of_garments_from_end_to_end(mask_rcnn, faster_run, data_dir, tmp_path, capsys):
    config = mask_rcnn.Config(
        model="keypointrcnn_resnet18_fpn",
        init=str(faster_run),
        garments="embedded",
        data_dir=data_dir,
        num_train=4,
        num_val=1,
        num_test=1,
        num_rois=8,
        epochs=1,
        optimizer="sgd",
        ema_decay=0.0,
        max_detections=10,
        batch_size=2,
        run_dir=tmp_path / "run",
    )
    result = mask_rcnn.main(config)
    assert "its keypoints are the extreme points of its masks" in capsys.readouterr().out
    assert result["model"] == "keypointrcnn_resnet18_fpn"
    assert 0 <= result["keypoint_ap"] <= result["keypoint_ap50"] <= 1
    (record,) = [
        r for r in read_records(tmp_path / "run" / "metrics.jsonl") if "val/keypoint_ap" in r
    ]
    assert np.isfinite(record["val/loss_keypoint"])
    assert "COCO keypoint AP" in (tmp_path / "run" / "report.html").read_text()
    _, _, meta = load_checkpoint(tmp_path / "run")
    assert meta["options"]["num_keypoints"] == 4
    cli.main(["evaluate", str(tmp_path / "run"), "--max-detections", "10"])
    said = f"of keypoints {result['keypoint_ap']:.4f}, of 1 pictures"
    assert said in capsys.readouterr().out


@pytest.mark.slow
def test_masks_are_read_where_they_are_an_option(experiment, mask_rcnn, tmp_path):
    load_splits = experiment("detection_data").load_splits
    places = {
        "coco": FILES["make_coco"](tmp_path / "coco"),
        "voc2007": FILES["make_voc"](tmp_path / "VOCdevkit" / "VOC2007"),
    }
    for name, place in places.items():
        config = mask_rcnn.Config(data=name, source=place)
        assert load_splits(config)["train"].masks is None
        for split in load_splits(config, masks=True).values():
            masks = split.example(0, masks=True)["masks"]
            assert masks.any()


@pytest.mark.slow
def test_errors_are_counted_in_the_pictures_that_have_masks(experiment, mask_rcnn, tmp_path):
    """Of VOC's test pictures those that are annotated for segmentation."""
    detection, analysis = experiment("detection"), experiment("error_analysis")
    place = FILES["make_voc"](tmp_path / "VOCdevkit" / "VOC2007")
    config = mask_rcnn.Config(data="voc2007", source=place, run_dir=tmp_path / "run")
    load_splits = experiment("detection_data").load_splits
    test = load_splits(config, masks=True)["test"]
    assert len(test) < len(load_splits(config)["test"])
    with Run("mask_rcnn", mask_rcnn.settled(config), run_dir=config.run_dir) as run:
        run.write_config()
    nothing = {"boxes": np.zeros((0, 4)), "scores": np.zeros(0), "labels": np.zeros(0, int)}
    found = [nothing] * len(test)
    detection.save_predictions(config.run_dir / "predictions.npz", found, test)
    (shares,) = analysis.main(analysis.Config((config.run_dir,))).values()
    assert shares["missed"] == 1


def test_pictures_without_an_object_to_measure_by_are_refused(mask_rcnn, tmp_path):
    root = FILES["make_coco"](tmp_path / "mine")
    path = root / "annotations" / "instances_val2017.json"
    path.write_text(json.dumps(FILES["coco_content"](annotations=[])))
    config = mask_rcnn.Config(data="coco_json", source=root, run_dir=tmp_path / "run", init="none")
    with pytest.raises(UserError, match=r"in val, got none in its 3 pictures"):
        mask_rcnn.main(config)
    assert not (tmp_path / "run").exists()


def test_penn_fudans_archive_from_end_to_end(mask_rcnn, faster_run, archive, tmp_path, capsys):
    config = mask_rcnn.Config(
        data="penn_fudan",
        source=archive,
        data_dir=tmp_path / "data",
        init=str(faster_run),
        shortest=64,
        longest=64,  # one size for all, so that each step compiles once
        num_rois=8,
        epochs=2,
        batch_size=1,
        max_detections=10,
        run_dir=tmp_path / "run",
    )
    result = mask_rcnn.main(config)
    printed = capsys.readouterr().out
    assert f"fresh, because {faster_run} has none that fits: params/roi_heads/" in printed
    assert json.loads((tmp_path / "run" / "result.json").read_text()) == result
    assert 0 <= result["mask_ap"] <= result["mask_ap50"] <= 1
    records = read_records(tmp_path / "run" / "metrics.jsonl")
    validated = [r for r in records if "val/mask_ap" in r]
    assert [r["step"] for r in validated] == [4, 8]
    for name in ("coco_ap", "mAP50", "loss_mask", "loss_box_reg"):
        assert all(np.isfinite(r[f"val/{name}"]) for r in validated)
    assert "COCO mask AP" in (tmp_path / "run" / "report.html").read_text()

    _, variables, meta = load_checkpoint(tmp_path / "run")
    _, before, _ = load_checkpoint(faster_run)
    assert meta["class_names"] == ["pedestrian"]
    for part, moved in (("conv1", False), ("layer1", False), ("layer3", True)):
        new, old = (x["params"]["backbone"]["body"][part] for x in (variables, before))
        same = jax.tree.map(np.array_equal, new, old)
        assert all(jax.tree.leaves(same)) != moved, part

    # The command line says of masks what the experiment said.
    places = ["--source", str(archive), "--data-dir", str(tmp_path / "data")]
    cli.main(["evaluate", str(tmp_path / "run"), *places, "--max-detections", "10"])
    assert f"of masks {result['mask_ap']:.4f}, of 1 pictures" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.main(["evaluate", str(tmp_path / "run"), *places, "--data", "full"])
    assert "error: --data full is of garments, and the run's" in capsys.readouterr().err
    picture = tmp_path / "made" / "PennFudanPed" / "PNGImages" / "PennPed00001.png"
    files = ["--coco", str(tmp_path / "coco.json"), "--out", str(tmp_path / "drawn")]
    cli.main(["predict", str(tmp_path / "run"), str(picture), "--threshold", "0.05", *files])
    rows = json.loads((tmp_path / "coco.json").read_text())
    assert rows
    found = Predictor.from_checkpoint(tmp_path / "run")(picture)
    packed = [row["segmentation"] for row in rows]
    np.testing.assert_array_equal(decode_masks(packed, (30, 25)), np.stack(list(found.masks)))
    assert (tmp_path / "drawn" / "PennPed00001.jpg").exists()
