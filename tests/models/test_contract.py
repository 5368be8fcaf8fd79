"""What every model of the zoo must do. A new model needs one line in MODELS here."""

import json
import math
import re
from functools import cache, partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from random_variables import random_variables

from jaxvision.errors import UserError
from jaxvision.losses import classification_loss
from jaxvision.models import Head, get_model, init_variables, list_models
from jaxvision.models.fcn import DilatedSegmenter
from jaxvision.models.resnet import ResNet
from jaxvision.train import create_state, make_train_step
from jaxvision.weights.catalog import CATALOG

NARROW = "convolutional filters=8 size=3 stride=32 pad=1 activation=leaky"
MODELS = {  # parameters with the default options, [h, w, c] of a picture, other options to try
    "alexnet": (61_100_840, (64, 64, 3), {"dropout": 0.2}),
    "deeplabv3_resnet50": (42_004_074, (32, 32, 3), {"width": 16}),
    "deeplabv3_resnet101": (60_996_202, (32, 32, 3), {"aux_loss": False}),
    "encoder_decoder": (439_787, (32, 32, 3), {"widths": [8, 16], "upsampling": "unet"}),
    "fast_yolov1": (27_095_374, (448, 448, 3), {"layers": [NARROW]}),
    "fastrcnn_resnet18_fpn": (28_145_671, (32, 32, 3), {"svd_ranks": [64, 16]}),
    "fastrcnn_resnet50_fpn": (41_161_351, (32, 32, 3), {"fpn_features": 32}),
    "fastrcnn_vgg16": (134_690_729, (32, 32, 3), {"hidden": 32, "pooling": "align"}),
    "fasterrcnn_mobilenet_v3_large_320_fpn": (19_386_354, (32, 32, 3), {"width_mult": 0.5}),
    "fasterrcnn_mobilenet_v3_large_fpn": (19_386_354, (32, 32, 3), {"fpn_features": 32}),
    "fasterrcnn_resnet18_fpn": (28_739_606, (32, 32, 3), {"anchor_sizes": [[8], 9, 32, 64, 96]}),
    "fasterrcnn_resnet50_fpn": (41_755_286, (32, 32, 3), {"norm_eps": 0.0, "width": 16}),
    "fasterrcnn_resnet50_fpn_v2": (43_712_278, (32, 32, 3), {"width": 16}),
    "fasterrcnn_vgg16": (137_073_622, (32, 32, 3), {"hidden": 32, "pooling": "align"}),
    "fcos_resnet18_fpn": (19_303_072, (32, 32, 3), {"head_depth": 1, "width": 16}),
    "fcos_resnet50_fpn": (32_269_600, (32, 32, 3), {"fpn_features": 16}),
    "fcn_resnet50": (35_322_218, (32, 32, 3), {"width": 16}),
    "fcn_resnet101": (54_314_346, (32, 32, 3), {"aux_loss": False}),
    "keypointrcnn_resnet18_fpn": (46_121_578, (32, 32, 3), {"head_depth": 1, "head_features": 8}),
    "keypointrcnn_resnet50_fpn": (59_137_258, (32, 32, 3), {"num_keypoints": 5, "width": 16}),
    "lenet": (44_426, (28, 28, 1), {"features": [4, 8, 8], "kernel_sizes": [3, 3, 3]}),
    "localizer": (11_189_966, (32, 32, 3), {"backbone_options": {"width": 16}}),
    "maskrcnn_resnet18_fpn": (31_385_713, (32, 32, 3), {"anchor_sizes": [[8], 9, 32, 64, 96]}),
    "maskrcnn_resnet50_fpn": (44_401_393, (32, 32, 3), {"norm_eps": 0.0, "width": 16}),
    "maskrcnn_resnet50_fpn_v2": (46_359_409, (32, 32, 3), {"width": 16}),
    "mobilenet_v3_large": (5_483_032, (32, 32, 3), {"width_mult": 0.5}),
    "mobilenet_v3_small": (2_542_856, (32, 32, 3), {"reduced_tail": True}),
    "mlp": (669_706, (28, 28, 1), {"hidden": [32, 16, 8]}),
    "rcnn": (13_193_892, (32, 32, 3), {"backbone_options": {"width": 16}}),
    "resnet18": (11_689_512, (32, 32, 3), {"stem": "small"}),
    "resnet34": (21_797_672, (32, 32, 3), {"width": 16}),
    "resnet50": (25_557_032, (32, 32, 3), {"width": 16, "stage_sizes": [1, 1, 2, 1]}),
    "resnet101": (44_549_160, (32, 32, 3), {"width": 16, "stage_sizes": [1, 1, 2, 1]}),
    "resnet152": (60_192_808, (32, 32, 3), {"width": 16, "stage_sizes": [1, 1, 2, 1]}),
    "resnext50_32x4d": (25_028_904, (32, 32, 3), {"width": 16, "stage_sizes": [1, 1, 2, 1]}),
    "resnext101_32x8d": (88_791_336, (32, 32, 3), {"width": 16, "stage_sizes": [1, 1, 2, 1]}),
    "resnext101_64x4d": (83_455_272, (32, 32, 3), {"width": 16, "stage_sizes": [1, 1, 2, 1]}),
    "retinanet_resnet18_fpn": (21_048_471, (32, 32, 3), {"anchor_sizes": [8, 16, 32, 64, 96]}),
    "retinanet_resnet50_fpn": (34_014_999, (32, 32, 3), {"norm_eps": 0.0, "width": 16}),
    "retinanet_resnet50_fpn_v2": (38_198_935, (32, 32, 3), {"width": 16, "fpn_features": 48}),
    "segnet": (29_447_189, (32, 32, 3), {"widths": [8, 16], "stage_sizes": [1, 2]}),
    "ssd300_vgg16": (35_641_826, (300, 300, 3), {"widths": [8, 8, 8, 8, 16]}),
    "ssdlite320_mobilenet_v3_large": (3_440_060, (32, 32, 3), {"width_mult": 0.5}),
    "vgg11": (132_863_336, (32, 32, 3), {"hidden": 32}),
    "vgg11_bn": (132_868_840, (32, 32, 3), {"widths": [8, 8, 8, 8, 16]}),
    "vgg13": (133_047_848, (32, 32, 3), {"hidden": 32}),
    "vgg13_bn": (133_053_736, (32, 32, 3), {"hidden": 32}),
    "vgg16": (138_357_544, (32, 32, 3), {"hidden": 32}),
    "vgg16_bn": (138_365_992, (32, 32, 3), {"hidden": 32}),
    "vgg19": (143_667_240, (32, 32, 3), {"hidden": 32}),
    "vgg19_bn": (143_678_248, (32, 32, 3), {"hidden": 32}),
    "wide_resnet50_2": (68_883_240, (32, 32, 3), {"width": 16, "stage_sizes": [1, 1, 2, 1]}),
    "wide_resnet101_2": (126_886_696, (32, 32, 3), {"width": 16, "stage_sizes": [1, 1, 2, 1]}),
    "yolov1": (197_301_875, (448, 448, 3), {"bounded": True, "layers": [NARROW]}),
    "yolov1_tiny": (1_132_468, (32, 32, 3), {"grid_size": 2}),
    "yolox_darknet53": (63_724_767, (32, 32, 3), {"width": 0.125}),
    "yolox_l": (54_208_895, (32, 32, 3), {"depth": 0.33}),
    "yolox_m": (25_326_495, (32, 32, 3), {"depth": 0.33}),
    "yolox_nano": (912_159, (32, 32, 3), {"width": 0.125}),
    "yolox_s": (8_968_255, (32, 32, 3), {"depthwise": True}),
    "yolox_tiny": (5_055_855, (32, 32, 3), {"width": 0.25}),
    "yolox_x": (99_071_455, (32, 32, 3), {"depth": 0.33}),
}
SHALLOW = {"stage_sizes": (2, 1), "stem": "small", "num_classes": 10}  # a block with a shortcut
SMALL_VGG = {"stage_sizes": (1, 2, 1), "widths": (8, 8, 16), "hidden": 64}
SMALL_VGG |= {"dropout": 0.0, "num_classes": 10}
TINY = {  # one of each kind, small enough to be run and not only traced
    "lenet": {},
    "mlp": {},
    "resnet18": {"width": 8, **SHALLOW},
    "resnet50": {"width": 8, **SHALLOW},
    "resnext50_32x4d": {"width": 16, **SHALLOW},
    "vgg11": SMALL_VGG,
    "vgg11_bn": SMALL_VGG,
}

SEGMENTERS = {n for n in MODELS if n.startswith(("deeplab", "fcn"))} | {"encoder_decoder", "segnet"}

PROPOSALS = {  # as many as there are anchors in such a picture; the picture itself without any
    "fastrcnn_resnet18_fpn": 1,
    "fastrcnn_resnet50_fpn": 1,
    "fastrcnn_vgg16": 1,
    "fasterrcnn_mobilenet_v3_large_320_fpn": 45,
    "fasterrcnn_mobilenet_v3_large_fpn": 45,
    "fasterrcnn_resnet18_fpn": 258,
    "fasterrcnn_resnet50_fpn": 258,
    "fasterrcnn_resnet50_fpn_v2": 258,
    "fasterrcnn_vgg16": 36,
    "keypointrcnn_resnet18_fpn": 258,
    "keypointrcnn_resnet50_fpn": 258,
    "maskrcnn_resnet18_fpn": 258,
    "maskrcnn_resnet50_fpn": 258,
    "maskrcnn_resnet50_fpn_v2": 258,
}
ANCHORS = {"fcos": 1, "retinanet": 9, "ssd300": 4, "ssdlite320": 6}  # of the coarsest map
YOLO_V1 = {"fast_yolov1": (7, 2), "yolov1": (7, 3), "yolov1_tiny": (2, 2)}  # cells, boxes

# A model's tests run one after the other: what one has traced need not be traced again by the next.
every_model = pytest.mark.parametrize("name", list_models(), scope="module")
every_kind = pytest.mark.parametrize("name", TINY)


@cache
def made(name):
    """Returns the model, tiny, and its variables as they are at first, or near enough."""
    model = get_model(name, **TINY[name])
    if name in ("resnet50", "resnext50_32x4d", "vgg11_bn"):  # initialised as resnet18 and vgg11 are
        return model, random_variables(model, MODELS[name][1])
    return model, init_variables(model, jax.random.key(0), MODELS[name][1])


@cache
def evaluated(model):
    """Returns jitted `(variables, pictures) -> logits`."""
    return jax.jit(partial(model.apply, train=False))


def traced(model, name):
    """Returns the shapes of the model's outputs and variables for two pictures."""
    x = jax.ShapeDtypeStruct((2, *MODELS[name][1]), jnp.float32)
    return jax.eval_shape(model.init_with_output, jax.random.key(0), x)


def with_fewer_blocks(model):
    """Returns the model, and what it is built on, with a block or two a stage."""
    fields = {name: getattr(model, name) for name in type(model).__dataclass_fields__}
    inner = {k: v for k, v in fields.items() if k != "parent" and isinstance(v, nn.Module)}
    changed = {name: with_fewer_blocks(module) for name, module in inner.items()}
    if isinstance(model, ResNet):
        changed["stage_sizes"] = (1, 2, 1, 1)
    elif isinstance(model, DilatedSegmenter):
        changed["make_backbone"] = partial(model.make_backbone, stage_sizes=(1, 2, 1, 1))
    elif "blocks" in fields:  # of a MobileNet
        changed["blocks"] = tuple(size for size in model.blocks if size.stride > 1 or size.tail)
    return model.clone(**changed)


def logits_of(outputs):
    """The model's main output: of segmentation there is one more, of localisation a box, and of
    YOLOX the coarsest level, of Faster R-CNN the classes' boxes."""
    if isinstance(getattr(outputs, "class_logits", None), tuple):
        return outputs.class_logits[-1]
    if isinstance(outputs, tuple):
        return outputs[-1]
    return outputs.get("out", outputs.get("logits")) if isinstance(outputs, dict) else outputs


def logits_shape(name, size, num_classes):
    if name in PROPOSALS:
        return (size, PROPOSALS[name], num_classes, 4)
    if name.split("_")[0] in ANCHORS:
        return (size, ANCHORS[name.split("_")[0]], num_classes)
    if name == "rcnn":  # of one region, without the background
        return (size, 1, num_classes - 1, 4)
    if name in YOLO_V1:
        cells, num_boxes = YOLO_V1[name]
        return (size, cells, cells, 5 * num_boxes + num_classes)
    if name.startswith("yolox"):
        return (size, 1, 1, 5 + num_classes)
    pixels = MODELS[name][1][:2] if name in SEGMENTERS else ()
    return (size, *pixels, num_classes)


def pictures(name, size, seed=0):
    rng = np.random.default_rng(seed)
    return rng.random((size, *MODELS[name][1])).astype(np.float32)


def modules(params, path=()):
    """Yields (path, parameters) of each layer that has a kernel."""
    if "kernel" in params:
        yield "/".join(path), params
    for key, inner in params.items():
        if isinstance(inner, dict):
            yield from modules(inner, (*path, key))


def test_every_model_is_tested():
    assert list_models() == sorted(MODELS)


@every_model
def test_parameter_count_and_dtype(name):
    leaves = jax.tree.leaves(traced(get_model(name), name)[1]["params"])
    assert sum(x.size for x in leaves) == MODELS[name][0]
    assert {x.num_params for x in CATALOG.get(name, {}).values()} <= {MODELS[name][0]}
    assert {x.dtype for x in leaves} == {jnp.dtype("float32")}


@every_kind
def test_evaluation_and_training_mode(name):
    model, variables = made(name)
    x = pictures(name, 4)
    logits = np.asarray(evaluated(model)(variables, x))
    rngs = {"dropout": jax.random.key(1)}
    trained, updated = jax.eval_shape(
        lambda x: model.apply(variables, x, train=True, mutable=["batch_stats"], rngs=rngs), x
    )
    assert trained.shape == logits.shape
    assert jax.tree.structure(updated.get("batch_stats", {})) == jax.tree.structure(
        variables.get("batch_stats", {})
    )
    # In evaluation a picture's logits do not depend on its neighbours in the batch.
    x[2:] = 9
    changed = np.asarray(evaluated(model)(variables, x))
    np.testing.assert_allclose(changed[:2], logits[:2], rtol=1e-5, atol=1e-6)


@every_kind
def test_compiles_once(name):
    model, variables = made(name)
    apply = evaluated(model)
    results = [apply(variables, pictures(name, 4, seed)) for seed in range(3)]
    assert apply._cache_size() == 1
    assert not np.array_equal(results[0], results[1])


@every_kind
def test_bfloat16_switches_the_computation_and_not_the_parameters(name):
    model, variables = get_model(name, **TINY[name], dtype=jnp.bfloat16), made(name)[1]
    x = pictures(name, 4)
    like = traced(model, name)[1]
    assert jax.tree.map(lambda a: a.dtype, like) == jax.tree.map(lambda a: a.dtype, variables)
    assert {p.dtype for p in jax.tree.leaves(like["params"])} == {jnp.dtype("float32")}

    def loss(params):
        return model.apply({**variables, "params": params}, x, train=False).sum()

    lowered = jax.jit(jax.value_and_grad(loss)).lower(variables["params"])
    products = re.findall(
        r"stablehlo\.(?:dot_general|convolution)\b.*-> tensor<.*x(\w+)>", lowered.as_text()
    )
    assert len(products) >= 3
    assert set(products) == {"bf16"}
    assert {g.dtype for g in jax.tree.leaves(lowered.out_info[1])} == {jnp.dtype("float32")}
    logits, expected = (evaluated(m)(variables, x) for m in (model, made(name)[0]))
    scale = max(1, np.abs(expected).max())
    np.testing.assert_allclose(np.float32(logits), expected, atol=0.02 * scale)
    assert logits.dtype == jnp.bfloat16


@pytest.mark.parametrize("name", ["lenet", "mlp"])
def test_initial_values_are_torchs_uniform(name):
    shares = []
    for path, layer in modules(made(name)[1]["params"]):
        bound = 1 / math.sqrt(math.prod(layer["kernel"].shape[:-1]))
        kernel, bias = (np.asarray(layer[key]).ravel() / bound for key in ("kernel", "bias"))
        assert np.abs(kernel).max() <= 1, path
        assert np.abs(bias).max() <= 1, path
        assert np.abs(kernel).max() > 0.9, path
        assert abs(kernel.std() * math.sqrt(3) - 1) < 4 / math.sqrt(kernel.size), path
        assert abs(kernel.mean()) < 4 / math.sqrt(3 * kernel.size), path
        shares.append(bias)
    biases = np.concatenate(shares)  # each layer has few
    assert np.abs(biases).max() > 0.9
    assert abs(biases.std() * math.sqrt(3) - 1) < 4 / math.sqrt(biases.size)


@every_kind
def test_overfits_one_batch(name):
    model, variables = made(name)
    rng = np.random.default_rng(0)
    h, w, c = MODELS[name][1]
    if TINY[name].get("stem") == "small":
        h, w = h // 2, w // 2
    batch = {
        "image": rng.integers(0, 256, (8, h, w, c), dtype=np.uint8),
        "label": rng.integers(0, 10, 8).astype(np.int32),
    }
    tx = optax.flatten(optax.adam(2e-3))  # one array to update, and to compile the update of
    state = create_state(variables, tx)
    train_step = make_train_step(classification_loss(model, mean=0.5, std=0.5), tx)
    for _ in range(200):
        state, metrics = train_step(state, batch)
        if float(metrics["accuracy"]) > 0.95 and float(metrics["loss"]) < 0.4:
            break
    assert float(metrics["accuracy"]) > 0.95
    assert float(metrics["loss"]) < 0.5


@every_model
def test_options_from_json_build_the_same_module_and_its_output(name):
    options = {**MODELS[name][2], "num_classes": 7, "dtype": "bfloat16"}
    read = get_model(name, **json.loads(json.dumps(options)))
    written = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
    assert read == get_model(name, **written)
    hash(read)  # jit needs it of a static argument, and a list has none
    outputs, _ = traced(with_fewer_blocks(read), name)
    logits = logits_of(outputs)
    assert (logits.shape, logits.dtype) == (logits_shape(name, 2, 7), jnp.bfloat16)


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        ("resnet18", 65, {"layer1": (17, 64), "layer2": (9, 128), "layer4": (3, 512)}),
        ("resnet50", 64, {"layer1": (16, 256), "layer3": (4, 1024), "layer4": (2, 2048)}),
        ("vgg16", 65, {"stage1": (65, 64), "stage3": (16, 256), "stage5": (4, 512)}),
        ("mobilenet_v3_large", 64, {"C1": (16, 24), "C3": (4, 80), "C5": (2, 960)}),
        ("alexnet", 65, {"stage1": (15, 64), "stage2": (7, 192), "stage3": (3, 256)}),
    ],
)
def test_stage_outputs_for_detectors(name, size, expected):
    x = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
    model = get_model(name, features_only=True)
    stages, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), x)
    for stage, (side, channels) in expected.items():
        assert stages[stage].shape == (2, side, side, channels), stage
    assert not {"fc", "classifier"} & set(variables["params"])


@pytest.mark.parametrize("name", ["resnet18", "vgg11_bn"])
def test_the_head_alone_on_features_gives_the_networks_logits(name):
    model, variables = made(name)
    x = pictures(name, 4)
    location = ("fc",) if name == "resnet18" else ("classifier", "6")
    body, head = evaluated(model.clone(num_classes=0)), evaluated(Head(10, location))
    logits = head(variables, np.asarray(body(variables, x))[:, None, None, :])
    expected = evaluated(model)(variables, x)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)


def test_unknown_names_and_options():
    with pytest.raises(UserError, match=r"unknown model 'lennet'; did you mean lenet or alexnet"):
        get_model("lennet")
    with pytest.raises(UserError, match=r"unknown model 'zzz'; known: .*lenet.*mlp"):
        get_model("zzz")
    with pytest.raises(UserError, match=r"'mlp' has no option depth, width; it has .*hidden"):
        get_model("mlp", width=3, depth=2)
    with pytest.raises(UserError, match="no option parent"):  # linen's own field
        get_model("mlp", parent=None)


def test_first_variables_are_those_of_init():
    model, variables = made("resnet18")
    drawn = init_variables(model, jax.random.key(0), MODELS["resnet18"][1])
    # To the bit, but where the tests have what is compiled optimised even less.
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-6), drawn, variables)
    other = init_variables(model, jax.random.key(1), MODELS["resnet18"][1])
    assert not np.array_equal(other["params"]["fc"]["kernel"], drawn["params"]["fc"]["kernel"])
