"""Darknet's files against a slow interpreter of them, written back, and broken ones refused."""

import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvision.errors import UserError
from jaxvision.models import abstract_variables, get_model
from jaxvision.models.darknet_layers import FAST_YOLOV1_LAYERS, YOLOV1_LAYERS
from jaxvision.weights import (
    load_weights,
    read_darknet_cfg,
    read_darknet_weights,
    write_darknet_weights,
)
from jaxvision.weights.darknet import DarknetHeader

NET = "[net]\nbatch=1\n# a comment\nheight={h}\nwidth={w}\nchannels=3\nlearning_rate=0.0005\n"
DETECTION = "[detection]\nclasses=3\ncoords=4\nrescore=1\nside=2\nnum=2\nsoftmax={}\nsqrt=1\n"
HEAD = "[connected]\noutput= 52\nactivation=linear\n"  # 2 * 2 * (2 * 5 + 3)
CONV = "[convolutional]\nbatch_normalize=1\nfilters=4\nsize=3\nstride={}\npad=1\nactivation=leaky\n"
PLAIN = "[conv]\nfilters=5\nsize=1\nstride=1\npad=1\nactivation=leaky\n"
POOL = "[maxpool]\nsize=2\nstride=2\n"
LOCAL = "[local]\nsize=3\nstride=1\npad=1\nfilters=6\nactivation=leaky\n"
FULL = "[connected]\noutput=7\nactivation=relu\n"
NETWORKS = {  # layers, (h, w), the header's version
    "conv": (CONV.format(1) + POOL + PLAIN + POOL, (8, 12), (0, 1, 0)),
    "local": (CONV.format(2) + LOCAL + "[dropout]\nprobability=.5\n", (6, 8), (0, 2, 0)),
    "local without padding": (LOCAL.replace("pad=1", "pad=0") + FULL, (6, 5), (0, 2, 5)),
    "connected": (CONV.format(2) + FULL.replace("[conn", "[conn", 1), (4, 6), (0, 2, 0)),
    "connected, normalised": (
        PLAIN + "[connected]\nbatch_normalize=1\noutput=6\nactivation=leaky\n",
        *((3, 4), (2, 0, 0)),
    ),
    "odd sizes": (CONV.format(1) + POOL + "[maxpool]\nsize=3\nstride=1\n", (7, 5), (0, 1, 0)),
    "wide kernel": (
        "[convolutional]\nfilters=4\nsize=5\nstride=2\npadding=1\nactivation=logistic\n",
        *((9, 8), (0, 2, 0)),
    ),
    "flipped": (CONV.format(1) + "flipped=1\n" + POOL, (6, 6), (0, 1, 0)),
    "transposed": (CONV.format(2) + FULL, (6, 6), (0, 1001, 0)),
}


class File:
    """Numbers of a file, one after the other; where none are there yet, it makes them up."""

    def __init__(self, seed=0):
        self.rng, self.parts = np.random.default_rng(seed), []

    def take(self, *shape, positive=False):
        numbers = self.rng.normal(scale=0.5, size=shape).astype(np.float32)
        numbers = np.abs(numbers) + np.float32(0.1) if positive else numbers
        self.parts.append(numbers.tobytes())
        return numbers.astype(np.float64)


def interpret(cfg, image, version, file):
    """Runs a .cfg on one picture [c, h, w] as darknet does, with weights made up on the way."""
    sections = []
    for line in cfg.splitlines():
        line = line.replace(" ", "")
        if line.startswith("["):
            sections.append([line.strip("[]"), {}])
        elif "=" in line and not line.startswith("#"):
            name, value = line.split("=")
            sections[-1][1][name] = value
    x = image
    for kind, options in sections[1:-1]:
        number = lambda name, default=0, options=options: int(options.get(name, default))  # noqa: E731
        size, stride, filters = number("size", 1), number("stride", 1), number("filters", 1)
        if kind == "dropout":
            continue
        if kind == "maxpool":
            x = slow_pool(x, size, stride)
            continue
        if kind in ("conv", "convolutional"):
            padding = size // 2 if number("pad") else number("padding")
            y = convolve(
                x,
                filters,
                size,
                stride,
                padding,
                number("batch_normalize"),
                file,
                flipped=number("flipped"),
            )
        elif kind == "local":
            y = slow_local(x, filters, size, stride, number("pad"), file)
        else:
            y = slow_connected(x, number("output"), number("batch_normalize"), version, file)
        x = {
            "leaky": lambda v: np.where(v > 0, v, 0.1 * v),
            "relu": lambda v: np.maximum(v, 0),
            "logistic": lambda v: 1 / (1 + np.exp(-v)),
            "linear": lambda v: v,
        }[options["activation"]](y)
    return x


def patches(x, size, stride, padding):
    """im2col: [c * size * size, out_h, out_w], the channel first, then the row, then the column."""
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding)))
    out = [(side - size) // stride + 1 for side in x.shape[1:]]
    columns = np.zeros((len(x) * size * size, *out))
    for row in range(len(columns)):
        c, i, j = row // (size * size), row // size % size, row % size
        for h in range(out[0]):
            for w in range(out[1]):
                columns[row, h, w] = x[c, i + stride * h, j + stride * w]
    return columns


def normalise(y, bias, file):
    scale, mean = file.take(len(y)), file.take(len(y))
    var = file.take(len(y), positive=True)
    spread = (1,) * (y.ndim - 1)
    scale, mean, var, bias = (v.reshape(-1, *spread) for v in (scale, mean, var, bias))
    return lambda y: (y - mean) / np.sqrt(var + 1e-5) * scale + bias


def convolve(x, filters, size, stride, padding, normalised, file, flipped):
    columns = patches(x, size, stride, padding)
    shape = (filters, *columns.shape[1:])
    bias = file.take(filters)
    finish = lambda y: y + bias[:, None, None]  # noqa: E731
    if normalised:
        finish = normalise(np.zeros(shape), bias, file)
    weights = file.take(len(columns), filters).T if flipped else file.take(filters, len(columns))
    return finish(np.einsum("kp,phw->khw", weights, columns))


def slow_local(x, filters, size, stride, padding, file):
    columns = patches(x, size, stride, padding)
    places = columns[0].size
    bias = file.take(filters, *columns.shape[1:])
    weights = file.take(places, filters, len(columns))
    flat = columns.reshape(len(columns), places)
    y = np.stack([weights[i] @ flat[:, i] for i in range(places)], axis=1)
    return y.reshape(bias.shape) + bias


def slow_connected(x, outputs, normalised, version, file):
    x = x.reshape(-1)
    bias = file.take(outputs)
    transposed = version[0] > 1000 or version[1] > 1000
    weights = file.take(x.size, outputs).T if transposed else file.take(outputs, x.size)
    y = weights @ x
    return normalise(y, bias, file)(y) if normalised else y + bias


def slow_pool(x, size, stride):
    """Padded by size - 1 in all, half of it in front."""
    before, (channels, h, w) = (size - 1) // 2, x.shape
    out = [(side - 1) // stride + 1 for side in (h, w)]
    y = np.full((channels, *out), -np.inf)
    for i in range(out[0]):
        for j in range(out[1]):
            top, left = i * stride - before, j * stride - before
            window = x[:, max(top, 0) : top + size, max(left, 0) : left + size]
            y[:, i, j] = window.max(axis=(1, 2))
    return y


def header_bytes(version, seen):
    new = version[0] * 10 + version[1] >= 2 and max(version) < 1000
    return struct.pack("<3i" + ("Q" if new else "I"), *version, seen)


def written(folder, name, softmax=0, seed=0):
    """Writes a network's two files; returns their paths, a picture and darknet's outputs of it."""
    layers, (h, w), version = NETWORKS[name]
    cfg = NET.format(h=h, w=w) + layers + HEAD + DETECTION.format(softmax)
    image, file = np.random.default_rng(seed + 9).random((3, h, w)), File(seed)
    outputs = interpret(cfg, image, version, file)
    cfg_path, weights_path = folder / "net.cfg", folder / "net.weights"
    cfg_path.write_text(cfg)
    weights_path.write_bytes(header_bytes(version, 64_000 + seed) + b"".join(file.parts))
    return cfg_path, weights_path, image, outputs


def of_darknet(outputs):
    """[2, 2, 13]: classes of all cells come first, then all confidences, then all boxes."""
    classes, confidences = outputs[:12].reshape(2, 2, 3), outputs[12:20].reshape(2, 2, 2)
    boxes = outputs[20:].reshape(2, 2, 2, 4)
    cells = [
        np.concatenate([*(np.append(boxes[i, j, n], confidences[i, j, n]) for n in (0, 1)),
                        classes[i, j]])
        for i in (0, 1) for j in (0, 1)
    ]  # fmt: skip
    return np.reshape(cells, (2, 2, 13))


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_equal_darknets_and_the_file_is_written_back(name, tmp_path):
    cfg, weights, image, outputs = written(tmp_path, name)
    network = read_darknet_cfg(cfg)
    variables, header = read_darknet_weights(weights, network)
    model = get_model("yolov1", **network.options)
    x = jnp.asarray(image.transpose(1, 2, 0)[None], jnp.float32)
    got = jax.jit(lambda v, x: model.apply(v, x))(variables, x)
    np.testing.assert_allclose(got[0], of_darknet(outputs), rtol=1e-4, atol=1e-5)
    like = abstract_variables(model, x.shape[1:])
    shapes = [jax.tree.map(lambda a: (a.shape, a.dtype.name), tree) for tree in (variables, like)]
    assert shapes[0] == shapes[1]
    assert header.seen == 64_000
    write_darknet_weights(tmp_path / "again.weights", network, variables, header)
    assert (tmp_path / "again.weights").read_bytes() == weights.read_bytes()


def test_load_weights_finds_the_cfg_beside_the_file(tmp_path, capsys):
    cfg, weights, image, outputs = written(tmp_path, "local", softmax=1)
    options = read_darknet_cfg(cfg).options
    assert options["bounded"] is True
    variables = load_weights("yolov1", weights, **options)
    x = jnp.asarray(image.transpose(1, 2, 0)[None], jnp.float32)
    got = jax.jit(get_model("yolov1", **options).apply)(variables, x)
    np.testing.assert_allclose(got[0], of_darknet(outputs), rtol=1e-4, atol=1e-5)
    fresh = load_weights("yolov1", str(weights), **{**options, "num_classes": 8})
    assert "fresh head for 8 classes (the file has 3)" in capsys.readouterr().out
    assert fresh["params"]["head"]["kernel"].shape[1] == 4 * 18
    same = jax.tree.map(
        np.array_equal, fresh["params"]["backbone"], variables["params"]["backbone"]
    )
    assert all(jax.tree.leaves(same))


def test_without_a_cfg_the_file_is_what_the_model_is(tmp_path):
    cfg, weights, *_ = written(tmp_path, "conv")
    options = read_darknet_cfg(cfg).options
    cfg.unlink()
    with pytest.raises(UserError, match=r"net\.weights: expected .* bytes .*got .*cut off"):
        load_weights("fast_yolov1", weights)
    with pytest.raises(UserError, match="cut off"):  # it is as of 448 x 448 pictures
        load_weights("yolov1", weights, **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b[:-4], "cut off"),
        (lambda b: b[:-1], "cut off"),
        (lambda b: b + bytes(4), "longer"),
        (lambda b: b[:7], r"got 7 bytes"),
        (lambda b: b"PK" + bytes([255] * 30), "expected a .weights file"),
    ],
)
def test_files_of_the_wrong_length_are_refused(change, message, tmp_path):
    cfg, weights, *_ = written(tmp_path, "conv")
    weights.write_bytes(change(weights.read_bytes()))
    with pytest.raises(UserError, match=message):
        read_darknet_weights(weights, read_darknet_cfg(cfg))


def test_options_that_differ_from_the_cfg_are_refused(tmp_path):
    cfg, weights, *_ = written(tmp_path, "conv")
    options = read_darknet_cfg(cfg).options
    with pytest.raises(UserError, match=r"layers differs.*read_darknet_cfg"):
        load_weights("yolov1", weights)
    with pytest.raises(UserError, match="num_boxes differs"):
        load_weights("yolov1", weights, **{**options, "num_boxes": 3})
    del options["num_classes"]
    with pytest.raises(UserError, match="3 classes, yolov1's 20: give num_classes=3 to keep"):
        load_weights("yolov1", weights, **options)
    for name in ("yolov1_tiny", "resnet18"):
        with pytest.raises(UserError, match=f"for yolov1 and fast_yolov1.*not for {name}"):
            load_weights(name, weights)
    with pytest.raises(UserError, match="no such file"):
        load_weights("yolov1", tmp_path / "other.weights")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[net]", "[nets]", r"begins with \[net\]"),
        ("height=8", "height=0", "height, width and channels"),
        ("height=8", "height=eight", "height=eight: expected a number"),
        ("sqrt=1", "sqrt=0", "coords=4 and sqrt=1"),
        ("classes=3", "classes=4", "3 boxes|2 boxes and 4 classes"),
        ("[maxpool]", "[route]", r"expected .*\[maxpool\].*got \[route\]"),
        ("filters=4", "filters=4\ngroups=2", "with groups: not known"),
        ("activation=leaky", "activation=mish", "got mish"),
        ("filters=4", "filters=four", r"\[convolutional\] filters=four: expected a number"),
        ("stride=2", "stride=0", r"\[maxpool\] stride=0: expected a number of at least 1"),
        ("num=2", "num=0", "classes, num and side of at least 1"),
        ("size=2\n", "size 2\n", "line .*expected .*name=value"),
        ("[detection]", "[region]", r"ends with \[connected\] and \[detection\]"),
    ],
)
def test_a_cfg_that_is_not_of_yolo_v1_is_refused(old, new, message, tmp_path):
    cfg, *_ = written(tmp_path, "conv")
    cfg.write_text(cfg.read_text().replace(old, new, 1))
    with pytest.raises(UserError, match=message) as raised:
        read_darknet_cfg(cfg)
    assert "net.cfg" in str(raised.value)


def test_a_local_layer_that_darknet_itself_gets_wrong_is_refused(tmp_path):
    cfg, *_ = written(tmp_path, "local")
    cfg.write_text(cfg.read_text().replace("[local]\nsize=3", "[local]\nsize=5"))
    with pytest.raises(UserError, match=r"\[local\] with pad and size=5"):
        read_darknet_cfg(cfg)


def test_layers_that_do_not_fit_the_picture_are_refused(tmp_path):
    cfg, weights, *_ = written(tmp_path, "wide kernel")
    cfg.write_text(cfg.read_text().replace("height=9", "height=2"))
    with pytest.raises(UserError, match=r"fit pictures of \(2, 8, 3\): a kernel of 5"):
        read_darknet_weights(weights, read_darknet_cfg(cfg))


def test_variables_that_do_not_fit_are_not_written(tmp_path):
    cfg, weights, *_ = written(tmp_path, "conv")
    network = read_darknet_cfg(cfg)
    variables, _ = read_darknet_weights(weights, network)
    variables["params"]["head"]["bias"] = np.zeros(3, np.float32)
    with pytest.raises(
        UserError, match=r"params/head/bias: expected the shape \(52,\), got \(3,\)"
    ):
        write_darknet_weights(tmp_path / "new.weights", network, variables)
    assert not (tmp_path / "new.weights").exists()


def section(text):
    kind, *options = text.split()
    return "\n".join([f"[{kind}]", *options, ""])


@pytest.mark.parametrize(
    ("name", "layers", "boxes"),
    [("yolov1", YOLOV1_LAYERS, 3), ("fast_yolov1", FAST_YOLOV1_LAYERS, 2)],
)
def test_the_authors_networks_read_as_the_models_of_that_name(name, layers, boxes, tmp_path):
    """Their .cfg, with spaces and orders of options as there, is the model by default."""
    text = NET.format(h=448, w=448) + "".join(map(section, layers))
    text += f"[connected]\noutput= {49 * (5 * boxes + 20)}\nactivation=linear\n"
    text += (
        f"[detection]\nclasses=20\ncoords=4\nside=7\nnum={boxes}\nsoftmax=0\nsqrt=1\njitter=.2\n"
    )
    text = text.replace("size=3\nstride=1\npad=1\n", "size = 3\npad=1\nstride=1\n")
    (tmp_path / "net.cfg").write_text(text)
    network = read_darknet_cfg(tmp_path / "net.cfg")
    assert network.layers == layers
    assert get_model(name) == get_model(name, **network.options) == network.model
    assert network.meta["preprocessing"]["size"] == [448, 448]


def test_headers():
    assert DarknetHeader(0, 1, 0, 5).size == 16
    assert DarknetHeader(0, 2, 0, 5).size == DarknetHeader(1, 0).size == 20
    assert DarknetHeader(0, 1001).transposed
    assert DarknetHeader(0, 1001).size == 16
    assert not DarknetHeader(0, 2).transposed
