"""experiments/segmentation.py end to end, tiny: every way, the table, going on after a stop."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_variables import random_variables

from jaxvision.cli import main
from jaxvision.data.arrays import ArrayDataset
from jaxvision.errors import UserError
from jaxvision.models import get_model
from jaxvision.train.checkpoint import load_checkpoint
from jaxvision.weights import to_torch, write_torch

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def segmentation(experiment):
    return experiment("segmentation")


@pytest.fixture
def config(segmentation, data_dir, tmp_path):
    return segmentation.Config(
        widths=(4, 8),
        full_widths=(4, 4),
        num_train=40,
        num_val=8,
        num_test=8,
        epochs=1,
        batch_size=8,
        seeds=1,
        data="embedded",
        data_dir=data_dir,
        run_dir=tmp_path / "run",
    )


def test_several_ways_and_the_table_and_nothing_is_done_twice(segmentation, config, capsys):
    ways = ("full", "nearest", "unet")  # of each kind one; compiling takes all of the time
    config = dataclasses.replace(config, all=True, ways=ways)
    results = segmentation.main(config)
    assert [r["upsampling"] for r in results] == list(ways)
    printed = capsys.readouterr().out
    for way in ways:
        assert f"--- {way}, seed 0" in printed
        folder = config.run_dir / f"{way}-seed0"
        assert (folder / "report.html").stat().st_size > 5000
        assert np.load(folder / "maps.npz")["maps"].shape == (8, 64, 64)
    assert "full, widths 4 8" in printed
    by_way = {r["upsampling"]: r for r in results}
    assert by_way["nearest"]["parameters"] < by_way["unet"]["parameters"]
    assert by_way["nearest"]["multiply_adds"] < by_way["full"]["multiply_adds"]
    assert by_way["nearest"]["multiply_adds"] < by_way["unet"]["multiply_adds"]
    page = (config.run_dir / "report.html").read_text()
    assert all(way in page for way in ways)
    assert json.loads((config.run_dir / "results.json").read_text()) == results

    # As if it had been stopped within the last but one: that is done again, the others are read.
    (config.run_dir / "nearest-seed0" / "result.json").unlink()
    again = segmentation.main(dataclasses.replace(config, resume=True))
    assert "going on from step 5" in capsys.readouterr().out
    for old, new in zip(results, again, strict=True):
        timed = {"ms_per_step"}
        assert {k: v for k, v in old.items() if k not in timed} == {
            k: v for k, v in new.items() if k not in timed
        }


def test_torchvisions_networks_start_from_converted_weights(segmentation, config, tmp_path, capsys):
    file = tmp_path / "fcn.pth"
    model = get_model("fcn_resnet50", num_classes=21, width=8)
    variables = random_variables(model, (32, 32, 3))
    write_torch(file, to_torch("fcn_resnet50", variables, num_classes=21, width=8))
    config = dataclasses.replace(
        config, upsampling="fcn_resnet50", weights=str(file), torchvision_width=8
    )
    training = segmentation.make_training(config, segmentation.load_scenes(config))
    assert "fresh head for 11 classes" in capsys.readouterr().out
    model = get_model(training.model, **training.options)
    outputs = jax.eval_shape(model.apply, training.initial, jnp.zeros((1, 64, 64, 3)))
    assert outputs["out"].shape == (1, 64, 64, 11)
    kept = training.initial["params"]["backbone"]["layer4"]["2"]["conv3"]["kernel"]
    np.testing.assert_array_equal(
        kept, variables["params"]["backbone"]["layer4"]["2"]["conv3"]["kernel"]
    )
    with pytest.raises(UserError, match="expected --weights for fcn_resnet50 or"):
        segmentation.check(dataclasses.replace(config, upsampling="unet"))


def test_one_network_leaves_a_checkpoint_that_predicts(segmentation, config, capsys):
    config = dataclasses.replace(config, upsampling="transposed", full_size=True)
    (result,) = segmentation.main(config)
    model, variables, meta = load_checkpoint(config.run_dir)
    assert model == get_model("encoder_decoder", **meta["options"])
    assert model.upsampling == "transposed"
    assert meta["class_names"][0] == "background"
    assert meta["input_shape"] == [128, 128, 3]
    logits = jax.eval_shape(model.apply, variables, jnp.zeros((1, 128, 128, 3)))["out"]
    assert logits.shape == (1, 128, 128, 11)
    assert 0 <= result["mean_iou"] <= 1
    capsys.readouterr()
    main(["evaluate", str(config.run_dir)])
    figures = f"mean IoU {result['mean_iou']:.4f}, pixel accuracy {result['pixel_accuracy']:.4f}"
    assert f"test: {figures} of 8 pictures" in capsys.readouterr().out
    # Of 3x3 convolutions: 3 -> 4, 4 -> 4, 4 -> 8, 8 -> 8, 8 -> 4, transposed 4 -> 4, 4 -> 4, head.
    full, half = 128 * 128, 64 * 64
    products = full * (9 * (12 + 16 + 16) + 44) + half * 9 * (32 + 64 + 32 + 16)
    # Batch normalisation and ReLU are counted besides, and what the borders cut off is not.
    assert 0.9 * products < result["multiply_adds"] < 1.3 * products


def test_halving_averages_pictures_and_takes_the_majority_of_labels(experiment):
    images = np.arange(16, dtype=np.uint8).reshape(1, 4, 4, 1).repeat(3, axis=-1)
    labels = np.array([[[1, 2, 0, 0], [2, 3, 5, 5], [7, 7, 4, 9], [7, 0, 9, 4]]], np.uint8)
    dataset = ArrayDataset(images, labels, ("background",), "some", "test", "made here")
    half = experiment("segmenter").halved(dataset)
    assert half.images[0, :, :, 0].tolist() == [[3, 5], [11, 13]]  # 2.5 is rounded up
    assert half.labels.tolist() == [[[2, 0], [7, 4]]]


def test_claims_compare_the_worst_with_the_best(segmentation):
    def results(**ious):
        values = {way: (0.3, 0.4) for way in segmentation.WAYS} | ious
        return [
            {"upsampling": way, "mean_iou": iou} for way, pair in values.items() for iou in pair
        ]

    claims = segmentation.claims_of(results(max_unpool=(0.5, 0.6), unet=(0.7, 0.8)))
    assert list(claims.values()) == [True, True]
    claims = segmentation.claims_of(results(max_unpool=(0.35, 0.6), unet=(0.55, 0.8)))
    assert list(claims.values()) == [False, False]
    only_one = [{"upsampling": "unet", "mean_iou": 0.5}]
    assert segmentation.claims_of(only_one) == {}


def test_mistakes_are_refused_before_anything_is_written(segmentation, config, tmp_path):
    for changes, message in (
        ({"full_widths": (4,)}, "expected as many --full-widths as --widths, got 1 and 2"),
        ({"seeds": 0}, "expected --seeds of at least 1, got 0"),
        ({"ways": ("unet", "full", "unet")}, "expected each of --ways once, got unet full unet"),
        ({"boundary": 0}, "expected --boundary of at least 1 pixel, got 0"),
        ({"batch_size": 41}, "batch size of at most 40"),
        ({"epochs": 0}, "at least 1 epoch, got 0"),
        ({"widths": (4,) * 8, "full_widths": (4,) * 8}, "multiples of 128, got 64 x 64"),
    ):
        with pytest.raises(UserError, match=message):
            segmentation.main(dataclasses.replace(config, **changes))
    assert not (tmp_path / "run" / "config.json").exists()
