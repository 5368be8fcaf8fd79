"""experiments/rcnn.py end to end, tiny: Fast and Faster R-CNN, first weights, and VOC's files."""

import contextlib
import dataclasses
import io
import json
import runpy
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest
from random_variables import random_variables

from jaxvision import cli
from jaxvision.errors import UserError
from jaxvision.models import get_model
from jaxvision.report import read_records
from jaxvision.train.checkpoint import load_checkpoint
from jaxvision.weights import to_torch, write_safetensors

pytestmark = pytest.mark.slow

TERMS = {
    "fast": ("loss_classifier", "loss_box_reg"),
    "faster": ("loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg"),
}


@pytest.fixture(scope="module")
def rcnn(experiment):
    return experiment("rcnn")


@pytest.fixture(scope="module")
def config(rcnn, data_dir, tmp_path_factory):
    return rcnn.Config(
        size=64,
        num_train=8,
        num_val=16,
        num_test=16,
        epochs=2,
        batch_size=4,
        optimizer="sgd",  # the least to compile
        ema_decay=None,
        width=8,
        stem="small",  # three maps
        frozen_norm=True,
        fpn_features=8,
        representation_size=16,
        anchor_sizes=(8, 16, 32),
        pre_nms_top_n=20,
        post_nms_top_n=10,
        num_proposals=40,
        search="single",
        search_workers=1,
        num_rois=16,
        garments="embedded",
        data_dir=data_dir,
        run_dir=tmp_path_factory.mktemp("rcnn") / "faster",
    )


@pytest.fixture(scope="module")
def faster(rcnn, config):
    return rcnn.main(config)


@pytest.fixture(scope="module")
def fast_config(config, faster):
    """Starts from the run of Faster R-CNN: backbone and heads are the same."""
    run_dir = config.run_dir.with_name("fast")
    return dataclasses.replace(config, model="fast", init=str(config.run_dir), run_dir=run_dir)


@pytest.fixture(scope="module")
def fast(rcnn, fast_config):
    with contextlib.redirect_stdout(io.StringIO()) as said:
        result = rcnn.main(fast_config)
    unused = "--anchor-sizes, --pre-nms-top-n, --post-nms-top-n"
    assert f"not used by --model fast: {unused}\n" in said.getvalue()
    return result


@pytest.mark.parametrize("kind", ["faster", "fast"])
def test_a_run_leaves_its_files_and_every_term(kind, config, fast_config, faster, fast):
    run = {"faster": config, "fast": fast_config}[kind].run_dir
    result = {"faster": faster, "fast": fast}[kind]
    assert json.loads((run / "result.json").read_text()) == result
    assert result["model"] == f"{kind}rcnn_resnet18_fpn"
    records = read_records(run / "metrics.jsonl")
    validated = [r for r in records if "val/mAP50" in r]
    assert [r["step"] for r in validated] == [2, 4]
    for term in TERMS[kind]:
        assert all(np.isfinite(r[f"val/{term}"]) for r in validated)
        assert any(f"train/{term}" in r for r in records)
    assert "mAP@0.5" in (run / "report.html").read_text()
    with np.load(run / "predictions.npz") as file:
        assert file["counts"].shape == (16,)
    model, _, meta = load_checkpoint(run)
    assert type(model).__name__ == {"faster": "FasterRCNN", "fast": "FastRCNN"}[kind]
    expected = {"mode": "single", "count": 40} if kind == "fast" else None
    assert meta.get("proposals") == expected
    assert meta["mean"] == 0.5


def test_a_finished_run_gives_the_same_again(rcnn, config, faster, capsys):
    again = rcnn.main(dataclasses.replace(config, resume=True))
    assert "going on from step 4" in capsys.readouterr().out
    assert {**again, "ms_per_step": 0} == {**faster, "ms_per_step": 0}


def test_fast_rcnn_predicts_new_pictures_with_proposals_of_its_own(
    fast_config, fast, capsys, tmp_path
):
    flags = ["--data-dir", str(fast_config.data_dir)]
    cli.main(["evaluate", str(fast_config.run_dir), *flags])
    assert f"VOC12 mAP@0.5 {fast['mAP50']:.4f}" in capsys.readouterr().out
    picture = np.full((90, 120, 3), 90, np.uint8)
    picture[20:60, 30:80] = 200, 30, 90
    cv2.imwrite(str(tmp_path / "one.png"), picture)
    flags = ["--threshold", "0.001", "--json", str(tmp_path / "found.json")]
    cli.main(["predict", str(fast_config.run_dir), str(tmp_path / "one.png"), *flags])
    (record,) = json.loads((tmp_path / "found.json").read_text())
    boxes = np.array([found["box"] for found in record["objects"]])
    assert len(boxes)
    assert (boxes >= 0).all()
    assert (boxes <= [120, 90, 120, 90]).all()


# -------------------------------------------------------------------------------- first weights
def test_weights_that_training_starts_from(rcnn, experiment, config, faster, monkeypatch, tmp_path):
    model, options = rcnn.network_of(config, 10)
    drawn = rcnn.first_weights(config, model, options)
    assert (drawn.mean, drawn.std) == (0.5, 0.25)

    slim = {"num_classes": 7, "width": 8, "stem": "small"}
    classifier = random_variables(get_model("resnet18", **slim), (32, 32, 3))
    file = tmp_path / "pretrained.safetensors"
    write_safetensors(file, to_torch("resnet18", classifier, **slim))
    start = rcnn.first_weights(dataclasses.replace(config, init=str(file)), model, options)
    stem = start.variables["params"]["backbone"]["body"]["conv1"]["kernel"]
    np.testing.assert_array_equal(stem, classifier["params"]["conv1"]["kernel"])
    assert start.mean == (0.485, 0.456, 0.406)
    around = {part: start.variables["params"][part] for part in ("rpn", "roi_heads")}
    around["fpn"] = start.variables["params"]["backbone"]["fpn"]
    wanted = {**drawn.variables["params"], "fpn": drawn.variables["params"]["backbone"]["fpn"]}
    jax.tree.map(np.testing.assert_array_equal, around, {part: wanted[part] for part in around})

    _, trained, _ = load_checkpoint(config.run_dir)
    init = dataclasses.replace(config, init=str(config.run_dir))
    with monkeypatch.context() as nothing_is_drawn:
        nothing_is_drawn.setattr(experiment("detector_init"), "drawn_variables", pytest.fail)
        start = rcnn.first_weights(init, *rcnn.network_of(init, 10))
    jax.tree.map(np.testing.assert_array_equal, start.variables, trained)
    fewer = rcnn.first_weights(init, *rcnn.network_of(init, 3)).variables["params"]
    kernel = fewer["roi_heads"]["box_predictor"]["cls_score"]["kernel"]
    assert np.asarray(kernel).shape == (16, 4)  # drawn, and not only its shape
    assert np.abs(kernel).max() > 0
    head = trained["params"]["roi_heads"]["box_head"]
    jax.tree.map(np.testing.assert_array_equal, fewer["roi_heads"]["box_head"], head)
    wider = dataclasses.replace(init, width=16)
    with pytest.raises(UserError, match="expected a detector with the same backbone"):
        rcnn.first_weights(wider, *rcnn.network_of(wider, 10))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"size": 100}, "multiple of 32, got 100"),
        ({"shortest": 800, "longest": 600}, "--shortest <= --longest"),
        ({"model": "fast", "backbone": "resnet50_v2"}, "for Fast R-CNN, got resnet50_v2"),
        ({"backbone": "vgg16", "stem": "small"}, "--stem is a plain ResNet's"),
        (
            {"backbone": "vgg16"},
            "--width, --fpn-features, --representation-size: a detector on vgg",
        ),
        (
            {"backbone": "resnet50_v2"},
            "--pre-nms-top-n, --post-nms-top-n: a detector on resnet50_v2",
        ),
        ({"num_rois": 0}, "--num-anchors and --num-rois"),
        ({"background_iou": 0.5}, "--background-iou from 0"),
        ({"num_proposals": 0}, "--num-proposals"),
        ({"anchor_sizes": (16, 32)}, "expected 4 or 5 --anchor-sizes, one for each map"),
        ({"data": "voc2007", "stem": "small"}, "expected 3 or 4 --anchor-sizes.*, got 5: 32 64"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(rcnn, config, flags, message, tmp_path):
    plain = {"stem": None, "frozen_norm": None, "anchor_sizes": None, "run_dir": tmp_path / "run"}
    with pytest.raises(UserError, match=message):
        rcnn.main(dataclasses.replace(config, **{**plain, **flags}))
    assert not (tmp_path / "run").exists()


def test_names_and_options_of_networks(rcnn):
    """Nothing is compiled."""
    made = {
        (model, backbone): rcnn.network_of(rcnn.Config(model=model, backbone=backbone), 10)
        for model, names in (("faster", rcnn.FASTER), ("fast", rcnn.FAST))
        for backbone in names
    }
    for name, options in made.values():
        assert options["num_classes"] == 11
        shape = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
        jax.eval_shape(get_model(name, **options).init, jax.random.key(0), shape)
    assert made["faster", "resnet18"][1]["anchor_sizes"] == (16, 32, 64, 96)
    small = rcnn.network_of(rcnn.Config(stem="small", width=16), 10)[1]
    assert small["stages"] == ("layer2", "layer3", "layer4")
    voc = rcnn.network_of(rcnn.Config(data="voc2007", backbone="resnet50"), 20)[1]
    assert voc == {"num_classes": 21, "frozen_norm": False}
    vgg = rcnn.network_of(rcnn.Config(data="voc2007", backbone="vgg16"), 20)
    assert vgg == ("fasterrcnn_vgg16", {"num_classes": 21})


def test_voc2007_keeps_the_shapes_of_its_pictures(
    rcnn, experiment, config, tmp_path, capsys, monkeypatch
):
    files = runpy.run_path(str(Path(__file__).parents[1] / "data" / "detection_files.py"))
    files["make_voc"](tmp_path / "VOCdevkit" / "VOC2007")
    # One picture at once, as `evaluate` has them of each shape: nothing is compiled for it.
    monkeypatch.setattr(experiment("rcnn_data"), "AT_ONCE_LARGE", 1)
    voc = dataclasses.replace(
        config,
        data="voc2007",
        source=tmp_path,
        train_split="trainval",
        size=None,
        shortest=64,
        longest=96,
        batch_size=2,
        epochs=1,
        num_train=None,
        num_val=1,
        num_test=None,
        run_dir=tmp_path / "run",
    )
    result = rcnn.main(voc)
    assert 0 <= result["mAP50_voc07"] <= 1
    records = read_records(tmp_path / "run" / "metrics.jsonl")
    # The batches of both shapes, of which neither has as many pictures as it has room for.
    assert [r["step"] for r in records if "val/mAP50" in r] == [2]
    with np.load(tmp_path / "run" / "predictions.npz") as file:
        assert file["image_ids"].tolist() == [1, 2]  # a high picture and a wide one, in order
        ends = np.cumsum(file["counts"])[:-1]
        for boxes, (h, w) in zip(np.split(file["boxes"], ends), [(40, 30), (30, 40)], strict=True):
            assert len(boxes)
            assert (boxes <= [w, h, w, h]).all()
    _, _, meta = load_checkpoint(tmp_path / "run")
    assert meta["preprocessing"]["kind"] == "shortest_side"
    capsys.readouterr()
    cli.main(["evaluate", str(tmp_path / "run"), "--source", str(tmp_path)])
    assert f"VOC07 mAP@0.5 {result['mAP50_voc07']:.4f}" in capsys.readouterr().out
