"""experiments/save_and_load.py end to end on a tiny VGG16, its files read back by other hands."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxvision.errors import UserError
from jaxvision.train.checkpoint import load_checkpoint
from jaxvision.weights import read_torch

OPTIONS = ("hidden=16", "widths=[4,4,8,8,8]", "num_classes=20")


@pytest.fixture(scope="module")
def script(experiment):
    return experiment("save_and_load")


@pytest.fixture(scope="module")
def files(experiment):
    return experiment("weight_files")


@pytest.fixture(scope="module")
def kept(script, tmp_path_factory):
    """(folder, findings) of a whole run whose files were kept."""
    run_dir = tmp_path_factory.mktemp("saved") / "run"
    config = script.Config(options=OPTIONS, picture_size=32, run_dir=run_dir, keep=True)
    return run_dir, script.main(config)


def test_every_file_holds_the_same_weights(kept, files):
    folder, _ = kept
    by_torch = read_torch(folder / "weights.pth")
    assert by_torch["classifier.6.weight"].shape == (20, 16)
    by_library = load_file(folder / "weights.safetensors")
    assert by_torch.keys() == by_library.keys()
    for name, array in by_torch.items():
        np.testing.assert_array_equal(array, by_library[name])
    model, variables, meta = load_checkpoint(folder / "checkpoint")
    assert (model.hidden, model.widths, meta["model"]) == (16, (4, 4, 8, 8, 8), "vgg16")
    kernel = variables["params"]["features"]["0"]["kernel"]
    np.testing.assert_array_equal(np.transpose(kernel, (3, 2, 0, 1)), by_torch["features.0.weight"])
    model, loaded = files.load_described(folder / "model.safetensors")
    assert model.num_classes == 20
    assert files.same(loaded, variables)


def test_sizes_times_and_devices_are_reported(kept):
    folder, (sizes, flag, wrong, devices) = kept
    assert sizes.numbers["weights.pth"]["bytes"] == (folder / "weights.pth").stat().st_size
    assert sizes.numbers["checkpoint"]["bytes"] > 4 * 12_424
    assert all(way["save"] > 0 and way["load"] > 0 for way in sizes.numbers.values())
    assert len(sizes.numbers) == 5
    assert flag.numbers["train=False, again"] == 0 < flag.numbers["train=True"]
    assert len(wrong.checks) == 7
    assert devices.numbers["copies"]["devices"] == devices.numbers["pieces"]["devices"] == 4
    whole = devices.numbers["copies"]["bytes_per_device"]
    assert whole == 4 * 12_424
    assert whole / 4 <= devices.numbers["pieces"]["bytes_per_device"] < whole / 3
    assert json.loads((folder / "devices.json").read_text())[0]["same"] is True


def test_a_weight_that_comes_back_changed_is_found(
    experiment, script, files, tmp_path, monkeypatch
):
    config = script.Config(options=OPTIONS, picture_size=32)
    options = files.parse_options(OPTIONS)
    model, _ = files.blueprint("vgg16", options, 32)
    variables = script.start_weights(config, model, options)
    picture = files.make_picture(32, 0)
    logits = np.asarray(files.predict(model, variables, picture))
    right = files.load_weights

    def one_bit_off(name, path, **options):
        loaded = right(name, path, **options)
        loaded["params"]["features"]["0"]["bias"].view(np.uint32)[0] ^= 1
        return loaded

    monkeypatch.setattr(files, "load_weights", one_bit_off)
    error = experiment("findings").CheckError
    with pytest.raises(error, match=r"weights\.safetensors: every weight is the same"):
        script.files(config, options, variables, logits, picture, tmp_path)


def test_a_network_without_dropout_but_with_batch_norm(script, files):
    options = {**files.parse_options(OPTIONS), "dropout": 0.0}
    model, _ = files.blueprint("vgg11_bn", options, 32)
    config = script.Config(model="vgg11_bn", picture_size=32)
    variables = script.start_weights(config, model, options)
    finding = script.train_flag(model, variables, files.make_picture(32, 0))
    assert not any("dropout" in claim for claim in finding.checks)
    assert finding.numbers["train=True"] == finding.numbers["train=True, again"] > 0


def test_weights_may_come_from_a_file(kept, script, files):
    folder, _ = kept
    config = script.Config(weights=str(folder / "weights.pth"), picture_size=32, seed=5)
    options = files.parse_options(OPTIONS)
    model, like = files.blueprint("vgg16", options, 32)
    variables = script.start_weights(config, model, options)
    assert files.same(variables, script.load_variables(folder / "weights.orbax", like))


def test_the_folder_is_emptied_unless_its_files_are_to_be_kept(script, tmp_path):
    for name, keep in (("new", False), ("new", True), ("temporary", False)):
        run_dir = None if name == "temporary" else tmp_path / name
        with script.folder(script.Config(run_dir=run_dir, keep=keep), 10) as work:
            (work / "weights.pth").write_bytes(b"x")
            (work / "weights.orbax").mkdir()
        assert work.exists() == keep
    with pytest.raises(UserError, match="expected an empty or new folder"):
        script.folder(script.Config(run_dir=tmp_path / "new"), 10).__enter__()
    assert (tmp_path / "new" / "weights.pth").exists()
    (tmp_path / "empty").mkdir()
    with (
        pytest.raises(UserError, match="GB of room"),
        script.folder(script.Config(run_dir=tmp_path / "empty"), 10**18),
    ):
        pass
    assert list((tmp_path / "empty").iterdir()) == []


@pytest.mark.parametrize(
    "other",
    [
        {"a": jnp.array([0.0, 1.0])},  # -0 and 0 are equal, but not the same
        {"a": jnp.array([-0.0, 1.0, 1.0])},
        {"a": jnp.array([-0.0, 1.0], jnp.bfloat16)},
        {"b": jnp.array([-0.0, 1.0])},
        {"a": jnp.array([-0.0, 1.0]), "b": jnp.zeros(1)},
    ],
)
def test_same_and_digest_see_every_difference(files, other):
    one = {"a": jnp.array([-0.0, 1.0])}
    assert files.same(one, jax.tree.map(np.array, one))
    assert files.digest(one) == files.digest(jax.tree.map(np.array, one))
    assert not files.same(one, other)
    assert files.digest(one) != files.digest(other)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"options": ("hidden",)}, r"such as hidden=32 .*'hidden', which has no ="),
        ({"options": ("hidden=[3",)}, "is not JSON"),
        ({"options": ("hiden=3",)}, "has no option hiden"),
        ({"model": "vgg61"}, "no conversion .* is known for the model 'vgg61'"),
        ({"model": "mlp"}, "no conversion from or to torch"),
        ({"other_model": "vgg16"}, "another one than vgg16"),
        ({"other_model": "vgg31"}, "unknown model 'vgg31'"),
        ({"devices": 1}, "at least 2, got 1"),
    ],
)
def test_mistakes_are_one_line_before_any_work(script, tmp_path, changes, message):
    config = script.Config(run_dir=tmp_path / "run", **changes)
    with pytest.raises(UserError, match=message):
        script.main(config)
    assert not (tmp_path / "run").exists()
