"""What segmentation networks must do besides the contract: sizes, ways of growing, training."""

import re
from functools import cache, partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jaxtyping import TypeCheckError

from jaxvision.errors import UserError
from jaxvision.losses import segmentation_loss
from jaxvision.models import abstract_variables, get_model
from jaxvision.models.deeplab import DeepLabHead
from jaxvision.models.encoder_decoder import EncoderDecoder
from jaxvision.models.fcn import DilatedSegmenter, FCNHead
from jaxvision.models.resnet import Bottleneck, ResNet
from jaxvision.models.segnet import SegNet
from jaxvision.ops import conv2d, unpool_bed_of_nails
from jaxvision.train import create_state, make_train_step
from jaxvision.train.optim import adam

WAYS = ("full", "nearest", "bed_of_nails", "max_unpool", "transposed", "unet")
SIDE = 16
BACKBONE = partial(ResNet, block=Bottleneck, stage_sizes=(1, 1, 1, 1))
TINY = {  # one of each kind, small enough to be run
    **{way: partial(EncoderDecoder, upsampling=way, widths=(8, 12, 16), convs=1) for way in WAYS},
    "segnet": partial(SegNet, widths=(8, 12), stage_sizes=(1, 2)),
    "fcn": partial(DilatedSegmenter, BACKBONE, FCNHead, width=8),
    "deeplab": partial(DilatedSegmenter, BACKBONE, DeepLabHead, width=8),
}
every_kind = pytest.mark.parametrize("kind", TINY)


@cache
def made(kind):
    """Returns the model, tiny, and variables for it, without compiling its initialisation."""
    model = TINY[kind](num_classes=3)
    rng = np.random.default_rng(0)

    def drawn(path, leaf):
        if path[-1].key == "kernel":
            scale = np.sqrt(2 / np.prod(leaf.shape[:-1]))
            return rng.normal(scale=scale, size=leaf.shape).astype(np.float32)
        return np.full(leaf.shape, path[-1].key in ("scale", "var"), leaf.dtype)

    shapes = abstract_variables(model, pictures(1).shape[1:])
    return model, jax.device_put(jax.tree_util.tree_map_with_path(drawn, shapes))


def pictures(count, h=SIDE, w=SIDE, seed=0):
    return np.random.default_rng(seed).normal(size=(count, h, w, 3)).astype(np.float32)


def output_sizes(name, h, w, **options):
    model = get_model(name, **options)
    x = jax.ShapeDtypeStruct((1, h, w, 3), np.float32)
    outputs, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), x)
    return {key: logits.shape for key, logits in outputs.items()}


@every_kind
def test_a_picture_is_judged_alone_and_the_program_compiled_once(kind):
    model, variables = made(kind)
    apply = jax.jit(lambda variables, x: model.apply(variables, x, train=False)["out"])
    x = pictures(2)
    logits = np.asarray(apply(variables, x))  # read before x changes, which jax need not copy
    x[1] = 9
    changed = np.asarray(apply(variables, x))
    assert (logits.shape, logits.dtype) == ((2, SIDE, SIDE, 3), jnp.float32)
    np.testing.assert_allclose(changed[0], logits[0], rtol=1e-5, atol=1e-5)
    assert not np.allclose(changed[1], logits[1], atol=1e-3)
    assert apply._cache_size() == 1


@pytest.mark.parametrize("kind", ["max_unpool", "transposed", "unet", "segnet", "deeplab"])
def test_bfloat16_switches_the_computation_and_not_the_parameters(kind):
    model, variables = TINY[kind](num_classes=3, dtype=jnp.bfloat16), made(kind)[1]
    like = abstract_variables(model, pictures(1).shape[1:])
    assert jax.tree.map(lambda a: a.dtype, like) == jax.tree.map(lambda a: a.dtype, variables)
    text = jax.jit(lambda v, x: model.apply(v, x)["out"]).lower(variables, pictures(1)).as_text()
    products = re.findall(r"stablehlo\.convolution\b.*-> tensor<.*x(\w+)>", text)
    assert len(products) >= 3
    assert set(products) == {"bf16"}


@pytest.mark.parametrize("kind", ["max_unpool", "transposed", "unet", "segnet"])
def test_overfits_one_batch(kind):
    """Noisy pictures of three colours, which are the classes, two of them upside down."""
    model, variables = made(kind)
    rng = np.random.default_rng(0)
    label = np.zeros((4, SIDE, SIDE), np.uint8)
    label[:, 3:, 5:] = 1
    label[:, 3:, 10:] = 2
    label[:2] = label[:2, ::-1, ::-1]
    colors = np.array([[200, 60, 40], [50, 190, 60], [40, 50, 210]])
    image = np.clip(rng.normal(colors[label], 25), 0, 255).astype(np.uint8)
    label[:, :, 5] = 255  # ignored
    tx = optax.flatten(adam(5e-3))
    state = create_state(variables, tx)
    train_step = make_train_step(segmentation_loss(model, mean=0.5, std=0.25), tx)
    for _ in range(80):
        state, metrics = train_step(state, {"image": image, "label": label})
        if float(metrics["pixel_accuracy"]) > 0.95:
            break
    assert float(metrics["pixel_accuracy"]) > 0.95


@pytest.mark.parametrize("kind", ["fcn", "deeplab", "segnet"])
def test_pictures_of_any_size(kind):
    """Also odd ones: logits have the picture's own size."""
    model, variables = made(kind)
    for size in ((33, 65), (24, 47)):
        outputs = jax.eval_shape(model.apply, variables, pictures(1, *size))
        assert {x.shape for x in outputs.values()} == {(1, *size, 3)}


def test_the_backbone_keeps_an_eighth_of_the_size():
    options = {"features_only": True, "replace_stride_with_dilation": (False, True, True)}
    x, key = pictures(1, 65, 97), jax.random.key(0)
    stages, variables = jax.eval_shape(BACKBONE(**options).init_with_output, key, x)
    assert {name: stage.shape for name, stage in stages.items()} == {
        "layer1": (1, 17, 25, 256),
        "layer2": (1, 9, 13, 512),
        "layer3": (1, 9, 13, 1024),
        "layer4": (1, 9, 13, 2048),
    }
    plain = jax.eval_shape(BACKBONE(features_only=True).init, key, x)
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, plain)
    with pytest.raises(ValueError, match=r"a basic block has .* no dilation"):
        jax.eval_shape(get_model("resnet18", **options).init, key, x)


def test_the_auxiliary_head_is_left_out_on_request():
    model, variables = made("fcn")
    assert set(jax.eval_shape(model.apply, variables, pictures(1))) == {"out", "aux"}
    without = jax.eval_shape(model.clone(aux_loss=False).init, jax.random.key(0), pictures(1))
    assert set(variables["params"]) - set(without["params"]) == {"aux_classifier"}
    assert set(jax.eval_shape(model.clone(aux_loss=False).apply, without, pictures(1))) == {"out"}


def parameters(kind):
    return sum(x.size for x in jax.tree.leaves(made(kind)[1]["params"]))


def test_the_ways_have_the_same_parameters_but_for_what_they_learn_more():
    same = {parameters(way) for way in ("full", "nearest", "bed_of_nails", "max_unpool")}
    assert len(same) == 1
    # Transposed 3x3 convolutions of 12 and of 8 channels, each with a normalisation.
    assert parameters("transposed") - same.pop() == 9 * (12**2 + 8**2) + 2 * (12 + 8)
    assert parameters("unet") - parameters("nearest") == 9 * (12**2 + 8**2)  # twice the input


def watched(kind, x):
    """Returns what went into the last decoder block, and what its neighbours had put out."""
    model, variables = made(kind)

    @jax.jit
    def watch(variables, x):
        seen = {}

        def intercept(call, args, kwargs, context):
            y = call(*args, **kwargs)
            if context.method_name == "__call__":
                seen[context.module.name] = args[0], y
            return y

        with nn.intercept_methods(intercept):
            model.apply(variables, x)
        return seen["decoder1"][0], seen["narrow1"][1], seen["encoder1_1"][1]

    return jax.tree.map(np.asarray, watch(variables, x))


def cells(map_, size=2):
    """The map's squares of `size` x `size` pixels: [b, h / size, w / size, c, pixels]."""
    b, h, w, c = map_.shape
    squares = np.asarray(map_).reshape(b, h // size, size, w // size, size, c)
    return squares.transpose(0, 1, 3, 5, 2, 4).reshape(b, h // size, w // size, c, size * size)


def test_each_way_grows_maps_as_it_says():
    x = pictures(2)
    for way in ("nearest", "unet"):
        grown, small, encoded = watched(way, x)
        if way == "unet":
            np.testing.assert_array_equal(grown[..., :8], encoded)
            grown = grown[..., 8:]
        np.testing.assert_array_equal(cells(grown), np.repeat(small[..., None], 4, axis=-1))
    grown, small, _ = watched("bed_of_nails", x)
    np.testing.assert_array_equal(cells(grown)[..., 0], small)
    np.testing.assert_array_equal(cells(grown)[..., 1:], 0)

    grown, small, encoded = watched("max_unpool", x)
    places = np.eye(4)[cells(encoded).argmax(axis=-1)]  # the first of equal ones
    np.testing.assert_array_equal(cells(grown), places * np.asarray(small)[..., None])
    assert len(np.unique(cells(encoded).argmax(axis=-1))) == 4

    grown, small, _ = watched("full", x)
    np.testing.assert_array_equal(grown, small)
    grown, small, _ = watched("transposed", x)
    assert grown.shape == (2, SIDE, SIDE, 8)
    # A nail in the corner and a 3x3 convolution is what a transposed one is.
    _, variables = made("transposed")
    kernel = np.asarray(variables["params"]["grow1"]["kernel"])[::-1, ::-1].swapaxes(2, 3)
    convolve = jax.jit(lambda x: conv2d(unpool_bed_of_nails(x, 2), kernel, padding=(1, 1)))
    # Before the first training step normalisation only divides by sqrt(1 + eps).
    expected = np.maximum(convolve(small), 0) / np.sqrt(np.float32(1 + 1e-5))
    np.testing.assert_allclose(grown, expected, rtol=1e-4, atol=1e-5)


def test_an_unknown_way_is_refused():
    with pytest.raises((UserError, TypeCheckError), match="'bilinear'"):
        output_sizes("encoder_decoder", 32, 32, upsampling="bilinear")


def test_sides_that_do_not_halve_are_refused():
    message = "expected a picture whose sides are multiples of 8, got 64 x 60: resize or pad it"
    with pytest.raises(UserError, match=message):
        output_sizes("encoder_decoder", 64, 60)
    assert output_sizes("encoder_decoder", 63, 61, upsampling="full")["out"] == (1, 63, 61, 11)
