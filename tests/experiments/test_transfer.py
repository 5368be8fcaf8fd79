"""The transfer experiments, tiny: a folder of pictures, a pretrained .pth, every strategy."""

import dataclasses
import json
import shutil

import cv2
import jax
import numpy as np
import pytest
from random_variables import random_variables

from jaxvision.data import load_splits
from jaxvision.errors import UserError
from jaxvision.models import get_model
from jaxvision.predict import Predictor
from jaxvision.report import read_records
from jaxvision.train.checkpoint import CheckpointStore, load_checkpoint
from jaxvision.train.run import Run
from jaxvision.weights import Preprocessing, load_weights, to_torch, write_torch

OPTIONS = {"stem": "small", "width": 8}
COLORS = {"blue": (200, 60, 40), "green": (50, 190, 60), "red": (40, 50, 210)}  # BGR


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """24 training and 9 validation pictures of three colours, of several sizes."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 3)):
        for name, color in COLORS.items():
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                size = (int(rng.integers(20, 40)), int(rng.integers(20, 40)), 3)
                image = np.clip(rng.normal(color, 30, size), 0, 255).astype(np.uint8)
                assert cv2.imwrite(str(folder / f"{i}.png"), image)
    return root


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A .pth of a network for seven classes."""
    model = get_model("resnet18", num_classes=7, **OPTIONS)
    variables = random_variables(model, (16, 16, 3))
    path = tmp_path_factory.mktemp("weights") / "seven.pth"
    write_torch(path, to_torch("resnet18", variables, num_classes=7, **OPTIONS))
    return path


@pytest.fixture
def config(experiment, pictures, weights, tmp_path):
    return experiment("transfer").Config(
        data="image_folder",
        source=pictures,
        init=str(weights),
        crop=16,
        epochs=2,
        learning_rate=0.02,
        run_dir=tmp_path / "run",
        workers=1,
        **OPTIONS,
    )


def with_changes(config, **changes):
    return dataclasses.replace(config, **changes)


def bits(tree):
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(tree)]


def test_head_trains_the_head_alone_on_features_computed_once(experiment, config, weights, capsys):
    metrics = experiment("transfer").main(with_changes(config, strategy="head", epochs=6))
    printed = capsys.readouterr().out
    assert "fresh head for 3 classes" in printed
    assert "features of 33 pictures computed" in printed
    assert metrics["best_accuracy"] >= max(0.5, metrics["accuracy"])  # colours, untrained features
    start = load_weights("resnet18", weights, num_classes=3, **OPTIONS)
    _, end, meta = load_checkpoint(config.run_dir)
    assert bits(end["batch_stats"]) == bits(start["batch_stats"])
    for name, leaves in end["params"].items():
        assert (bits(leaves) == bits(start["params"][name])) == (name != "fc"), name
    assert meta["trained_parameters"] == 64 * 3 + 3
    assert meta["optimizer_bytes"] == 4 * (64 * 3 + 3) + 4
    assert (config.run_dir / "report.html").stat().st_size > 5000
    assert cv2.imread(str(config.run_dir / "predictions.png")) is not None
    records = read_records(config.run_dir / "metrics.jsonl")
    assert [r["epoch"] for r in records if "val/accuracy" in r] == [1, 2, 3, 4, 5, 6]


def test_the_checkpoint_predicts_pictures_as_it_was_validated(experiment, config, pictures):
    """From the files: resized, cropped and normalised as in training."""
    experiment("transfer").main(with_changes(config, strategy="head", report=False))
    with CheckpointStore(config.run_dir, read_only=True) as store:
        expected = store.metrics("best")["val/accuracy"]
    predictor = Predictor.from_checkpoint(config.run_dir)
    val = load_splits("image_folder", source=pictures)["val"]
    right = [
        predictor(path).label == label for path, label in zip(val.files, val.labels, strict=True)
    ]
    assert np.mean(right) == pytest.approx(expected)


def test_cached_features_train_as_the_whole_network_does(experiment, config):
    """Without the cache, by freezing all but the head of the same network."""
    module = experiment("transfer")
    classifier = experiment("classifier")
    config = with_changes(config, strategy="head", report=False)
    splits = module.load_data(config)
    task = module.make_task(config, splits, module.preprocessing_of(config, splits["train"]))
    assert task.head == ("fc",)
    results = []
    for i, head in enumerate((task.head, None)):
        with Run("transfer", config, run_dir=config.run_dir / str(i)) as run:
            changed = dataclasses.replace(task, head=head)
            classifier.train_classifier(changed, run, title="", log_every=6, report=False)
            results.append(load_checkpoint(run.path, "latest")[1]["params"]["fc"])
    for ours, theirs in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("strategy", ["last-stage", "all"])
def test_fine_tuning_and_resuming(experiment, config, weights, strategy, capsys):
    transfer = experiment("transfer")
    config = with_changes(config, strategy=strategy, report=False)
    transfer.main(with_changes(config, epochs=1))
    transfer.main(with_changes(config, resume=True))
    assert "going on from step 6" in capsys.readouterr().out
    start = load_weights("resnet18", weights, num_classes=3, **OPTIONS)
    _, end, _ = load_checkpoint(config.run_dir, "latest")
    changed = {n for n in end["params"] if bits(end["params"][n]) != bits(start["params"][n])}
    stats = {
        n
        for n in end["batch_stats"]
        if bits(end["batch_stats"][n]) != bits(start["batch_stats"][n])
    }
    everything = set(end["params"])
    assert changed == (everything if strategy == "all" else {"layer4", "fc"})
    expected = everything - {"conv1", "fc"} if strategy == "all" else {"layer4"}
    assert stats == expected


def test_none_shows_the_network_as_it_is(experiment, config, pictures, weights, capsys):
    transfer = experiment("transfer")
    with pytest.raises(UserError, match=r"its head has 7 classes.*num_classes=7"):
        transfer.main(with_changes(config, strategy="none"))
    path = weights.with_name("thousand.pth")
    model = get_model("resnet18", **OPTIONS)
    variables = random_variables(model, (16, 16, 3))
    write_torch(path, to_torch("resnet18", variables, **OPTIONS))
    config = with_changes(config, strategy="none", init=str(path))
    capsys.readouterr()
    assert transfer.main(config) == {}
    assert "the network has no classes of these names" in capsys.readouterr().out
    assert cv2.imread(str(config.run_dir / "predictions.png")) is not None
    known = config.run_dir.with_name("known")
    for old, new in zip(COLORS, ("goldfish", "hen", "Ostrich"), strict=True):
        for split in ("train", "val"):
            shutil.copytree(pictures / split / old, known / split / new)
    again = with_changes(config, source=known, run_dir=config.run_dir.with_name("again"))
    metrics = transfer.main(again)
    assert 0 <= metrics["accuracy"] <= metrics["accuracy_among"] <= 1
    assert f"{metrics['accuracy_among']:.2%} among these 3" in capsys.readouterr().out
    module = experiment("transfer_pretrained")
    known = ("ant, emmet", "Reds", "blue", "sea_green")
    assert module.own_classes(("red", "Blue"), known).tolist() == [1, 2]
    assert module.own_classes(("red", "yellow"), known) is None


def test_advice(experiment, config, capsys):
    accuracies = experiment("transfer").main(with_changes(config, advise=True, epochs=1))
    printed = capsys.readouterr().out
    assert "this data is small" in printed
    assert "advice: --strategy" in printed
    assert set(accuracies) == {"probe", "tuned"}
    assert not config.run_dir.exists()  # it trains nothing that stays


@pytest.mark.parametrize(
    ("size", "probe", "tuned", "case"),
    [
        (2000, 0.95, 0.96, (True, True, "last-stage")),
        (2000, 0.60, 0.90, (True, False, "all")),
        (80, 0.94, 0.93, (False, True, "head")),
        (80, 0.55, 0.90, (False, False, "last-stage")),
        (80, 0.50, 0.50, (False, False, "last-stage")),  # at chance, nothing is similar
    ],
)
def test_the_four_cases(experiment, size, probe, tuned, case):
    advice = experiment("transfer_advice").judge(size, probe, tuned, chance=0.5)
    assert (advice.large, advice.similar, advice.strategy) == case


def test_choosing_classes_and_pictures(experiment, data_dir):
    module = experiment("transfer_data")
    full = load_splits("fashion_mnist", data="embedded", data_dir=data_dir)["train"]
    some = module.select_classes(full, ("Shirt", "Bag"))
    assert some.class_names == ("Shirt", "Bag")
    np.testing.assert_array_equal(some.images[some.labels == 1], full.images[full.labels == 8])
    drawn = module.draw_examples(some, 245, seed=1)
    assert sorted(np.bincount(drawn.labels)) == [122, 123]
    again = module.draw_examples(some, 245, seed=1)
    np.testing.assert_array_equal(drawn.images, again.images)
    assert not np.array_equal(drawn.images, module.draw_examples(some, 245, seed=2).images)
    rest, kept = module.held_out(drawn, 0.2, seed=0)
    assert (len(rest), len(kept)) == (196, 49)
    with pytest.raises(UserError, match=r"no class Hat; it has T-shirt/top"):
        module.select_classes(full, ("Bag", "Hat"))
    with pytest.raises(UserError, match="expected 1 to"):
        module.draw_examples(some, 10**6, seed=0)


def test_the_offline_table(experiment, data_dir, tmp_path, capsys, monkeypatch):
    module = experiment("transfer_offline")
    config = module.Config(
        num_pictures=24,
        seeds=(0,),
        ways=("head", "scratch"),
        epochs=1,
        pretrain_epochs=1,
        prenum_pictures=300,
        pretrain_batch_size=100,
        width=4,
        data="embedded",
        data_dir=data_dir,
        run_dir=tmp_path / "run",
    )
    with monkeypatch.context() as stopped:
        stopped.setattr(module, "transfer_once", interrupted)
        with pytest.raises(KeyboardInterrupt):
            module.main(config)
    with pytest.raises(UserError, match="epochs was 1, now 2"):
        module.main(with_changes(config, resume=True, epochs=2))
    config = with_changes(config, resume=True)
    capsys.readouterr()
    results = module.main(config)
    assert "pretraining" not in capsys.readouterr().out
    assert [r["way"] for r in results] == ["head", "scratch"]
    assert json.loads((config.run_dir / "results.json").read_text()) == results
    head, scratch = results
    assert head["trained_parameters"] == 32 * 3 + 3 < scratch["trained_parameters"]
    assert head["optimizer_bytes"] < scratch["optimizer_bytes"]
    # What is finished is read and not done again.
    assert module.main(config) == results
    printed = capsys.readouterr().out
    assert "Transfer to three new classes" in printed
    assert "pretraining" not in printed
    other = {"resume": False, "run_dir": tmp_path / "other"}
    with pytest.raises(UserError, match="--new-classes"):
        module.main(with_changes(config, new_classes=("Hat",), **other))
    other["run_dir"] = tmp_path / "more"
    with pytest.raises(UserError, match="--num-pictures 9999: expected 1 to 3300"):
        module.main(with_changes(config, num_pictures=9999, **other))
    assert not (tmp_path / "more" / "pretrain").exists()


def interrupted(*arguments):
    raise KeyboardInterrupt


def test_grey_pictures_that_are_too_many_to_prepare_have_three_channels(
    experiment, data_dir, monkeypatch
):
    module = experiment("transfer_data")
    monkeypatch.setattr(module, "RESIDENT_LIMIT", 0)
    grey = load_splits("fashion_mnist", data="embedded", data_dir=data_dir)["test"]
    preset = module.preset_of(Preprocessing(crop_size=40, resize_size=40))
    options = {"batch_size": 4, "seed": 0, "augment": False, "workers": 1}
    batch = module.training_batches(grey, preset, **options)(0)
    assert batch["image"].shape == (4, 40, 40, 3)
