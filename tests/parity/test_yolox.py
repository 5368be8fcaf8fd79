"""YOLOX against Megvii's own (yolox-datamint 0.3.1): outputs, boxes, SimOTA, losses, training.

Theirs takes pictures whose colours are blue, green, red; conversion has turned ours around.
"""

import contextlib
import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxvision.losses import yolox_loss, yolox_terms
from jaxvision.models import get_model
from jaxvision.ops import decode_yolox, simota
from jaxvision.ops.detections import select_detections
from jaxvision.ops.yolox import decode_cells, grid_cells, join_levels
from jaxvision.train import create_state, make_train_step
from jaxvision.train.optim import sgd
from jaxvision.weights import from_torch, load_weights, to_torch

from .tensors import from_nchw, relative_errors, to_nchw
from .torchvision_cpu import torchvision

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from loguru import logger
    from yolox.exp import get_exp
    from yolox.models import YOLOPAFPN, YOLOX, YOLOXHead
    from yolox.utils import postprocess
logger.remove()

CLASSES = 7
QUICK = ("yolox_nano", "yolox_darknet53")
NAMES = {"yolox_nano": (64, 96), "yolox_tiny": (64, 96), "yolox_s": (64, 96), "yolox_m": (32, 64)}
NAMES["yolox_darknet53"] = (32, 64)


@contextlib.contextmanager
def quietly():
    """What torch says of Megvii's use of it is not ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def reference(name):
    """Megvii's own network, with its initialisation and non-trivial BatchNorm."""
    torch.manual_seed(0)
    name = {"yolox_darknet53": "yolov3"}.get(name, name)
    with quietly():
        experiment = get_exp(exp_name=name.replace("_", "-"))
        experiment.num_classes = CLASSES
        model = experiment.get_model()
    with torch.no_grad():
        for layer in model.head.reg_preds:
            layer.bias[2:] += 1  # so that the boxes of neighbours overlap
    # SiLU shrinks its input: so that the picture can still be told at the end, BatchNorm grows it.
    return shaken(model, (0.2, 1) if name == "yolov3" else (0.05, 0.2)).eval()


def shaken(model, variances):
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1)
            torch.nn.init.normal_(module.bias, std=0.1)
            torch.nn.init.normal_(module.running_mean, std=0.1)
            torch.nn.init.uniform_(module.running_var, *variances)
            module.num_batches_tracked.fill_(17)
    return model


def bgr(images):
    return to_nchw(images[..., ::-1])


def state_of(model):
    return {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}


# ------------------------------------------------------------------------ the whole network
@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in NAMES]
)
def test_raw_outputs_and_suppressed_boxes(name, monkeypatch):
    monkeypatch.setattr(torchvision.ops.boxes, "_assert_has_ops", lambda: None)
    theirs = reference(name)
    variables = from_torch(name, state_of(theirs), num_classes=CLASSES)
    height, width = NAMES[name]
    x = np.random.default_rng(0).normal(size=(2, height, width, 3)).astype(np.float32)
    raw = {}
    for kind in ("reg", "obj", "cls"):
        for level, layer in enumerate(getattr(theirs.head, f"{kind}_preds")):
            layer.register_forward_hook(
                lambda _, __, y, key=(level, kind): raw.__setitem__(key, y.clone())
            )
    with quietly(), torch.no_grad():
        decoded = theirs(bgr(x))
    model = get_model(name, num_classes=CLASSES)
    outputs = jax.device_get(jax.jit(functools.partial(model.apply, train=False))(variables, x))
    for level, ours in enumerate(outputs):
        wanted = torch.cat([raw[level, kind] for kind in ("reg", "obj", "cls")], dim=1)
        np.testing.assert_allclose(ours, from_nchw(wanted), rtol=0, atol=1e-4)
        assert wanted.std() > 0.1  # the weights do something
    check_detections(outputs, model.strides, decoded)


decode = jax.jit(decode_yolox, static_argnames="strides")
OPTIONS = ("score_threshold", "iou_threshold", "max_detections", "multi_label")
select = jax.jit(select_detections, static_argnames=OPTIONS)


def check_detections(outputs, strides, decoded):
    boxes, scores = jax.device_get(decode(outputs, strides))
    theirs = decoded.clone()
    best = (theirs[..., 4:5] * theirs[..., 5:]).amax(-1)
    np.testing.assert_allclose(scores.max(axis=-1), best.numpy(), atol=1e-5)
    threshold = float(best.quantile(0.5))
    with quietly():
        wanted = postprocess(theirs, scores.shape[-1], threshold, 0.3)
    for i, rows in enumerate(wanted):
        found = select(
            boxes[i],
            scores[i],
            score_threshold=threshold,
            iou_threshold=0.3,
            max_detections=len(boxes[i]),
            multi_label=False,
        )
        ours = jax.device_get(found)
        count = int(ours.valid.sum())
        assert 3 < count == len(rows) < (scores[i].max(axis=1) >= threshold).sum()
        np.testing.assert_allclose(ours.boxes[:count], rows[:, :4], rtol=1e-4, atol=1e-3)
        np.testing.assert_allclose(ours.scores[:count], rows[:, 4] * rows[:, 5], atol=1e-5)
        np.testing.assert_array_equal(ours.labels[:count], rows[:, 6])


def test_megviis_checkpoint_there_and_back(tmp_path):
    theirs = reference("yolox_nano")
    checkpoint = {
        "start_epoch": 300,
        "model": theirs.state_dict(),
        "optimizer": torch.optim.SGD(theirs.parameters(), lr=0.1).state_dict(),
        "best_ap": 0.4,
        "curr_ap": 0.4,
    }
    torch.save(checkpoint, tmp_path / "weights.pth")
    options = {"num_classes": CLASSES}
    variables = load_weights("yolox_nano", tmp_path / "weights.pth", **options)
    back = to_torch("yolox_nano", variables, **options)
    expected = state_of(theirs)
    assert {k: v.tobytes() for k, v in back.items()} == {
        k: v.tobytes() for k, v in expected.items()
    }
    theirs.load_state_dict({k: torch.tensor(v) for k, v in back.items()}, strict=True)


# ------------------------------------------------------------------- SimOTA and the losses
OBJECTS, PICTURES = 6, 6
SIZES, STRIDES = [(12, 16), (6, 8), (3, 4)], (8, 16, 32)  # of pictures of 96 x 128
CELLS, SIDES = grid_cells(SIZES, STRIDES)
KINDS = ["any", "tiny", "narrow", "huge", "overlapping", "none", "sure"]


def objects_of(kind, rng):
    count = 0 if kind == "none" else rng.integers(0, OBJECTS + 1)
    sides = {
        "tiny": rng.uniform(0.05, 3, (count, 2)),
        "narrow": rng.permuted(rng.uniform([1, 30], [4, 90], (count, 2)), axis=1),
        "huge": rng.uniform(90, 200, (count, 2)),
        "overlapping": rng.uniform(20, 30, (count, 2)),
    }.get(kind, rng.uniform(5, 70, (count, 2)))
    spread = (4, 4) if kind == "overlapping" else (60, 45)
    centre = rng.uniform(-1, 1, (count, 2)) * spread + (64, 48)
    return np.concatenate([centre, sides], axis=1)


def batch_of(kind, seed=0):
    """Raw maps, of which most cells' boxes are near an object, and Megvii's targets."""
    rng = np.random.default_rng([KINDS.index(kind), seed])
    targets = np.zeros((PICTURES, OBJECTS, 5))
    raw = rng.normal(size=(PICTURES, len(CELLS), 5 + CLASSES)) * [1, 1, 1, 1, *[2] * (1 + CLASSES)]
    if kind == "sure":
        raw[..., 4:] *= 3
    for i in range(PICTURES):
        objects = objects_of(kind, rng)
        if not len(objects):
            continue
        targets[i, : len(objects), 0] = rng.integers(0, CLASSES, len(objects))
        targets[i, : len(objects), 1:] = objects
        near = objects[rng.integers(len(objects), size=len(CELLS))]
        xy = near[:, :2] + rng.normal(scale=0.1, size=(len(CELLS), 2)) * near[:, 2:]
        wh = np.log(near[:, 2:]) + rng.normal(scale=0.2, size=(len(CELLS), 2))
        close = np.concatenate([xy / SIDES[:, None] - CELLS, wh - np.log(SIDES)[:, None]], axis=1)
        chosen = rng.random(len(CELLS)) < 0.6
        raw[i, chosen, :4] = close[chosen]
    return raw.astype(np.float32), targets.astype(np.float32)


def objects_for_us(targets):
    centre, half = targets[..., 1:3], targets[..., 3:] / 2
    boxes = np.concatenate([centre - half, centre + half], axis=-1)
    return boxes, targets[..., 0].astype(np.int32), targets.sum(-1) > 0


def levels(raw):
    parts = np.split(raw, np.cumsum([h * w for h, w in SIZES])[:-1], axis=1)
    return [p.reshape(len(raw), *size, -1) for p, size in zip(parts, SIZES, strict=True)]


def megvii(raw, targets, use_l1):
    """Returns (losses, the gradient by the raw maps, assignments picture by picture)."""
    head = YOLOXHead(CLASSES, width=0.125)
    head.use_l1 = use_l1
    maps = [to_nchw(x).requires_grad_() for x in levels(raw)]
    outputs, shifts, strides, origins = [], [], [], []
    for k, (level, stride) in enumerate(zip(maps, STRIDES, strict=True)):
        output, grid = head.get_output_and_grid(level * 1, k, stride, "torch.FloatTensor")
        outputs.append(output)
        shifts.append(grid)
        strides.append(torch.full((1, grid.shape[1]), float(stride)))
        origins.append(level[:, :4].permute(0, 2, 3, 1).reshape(len(raw), -1, 4))
    assignments, inner = {}, head.get_assignments

    def spy(index, *args):
        classes, foreground, ious, matched, count = inner(index, *args)
        assignments[index] = (foreground.clone(), matched, ious)
        return classes, foreground, ious, matched, count

    head.get_assignments = spy
    with quietly():
        losses = head.get_losses(
            None,
            [grid[..., 0] for grid in shifts],
            [grid[..., 1] for grid in shifts],
            strides,
            torch.tensor(targets),
            torch.cat(outputs, 1),
            origins,
            torch.float32,
        )
    losses[0].backward()
    gradient = np.concatenate([from_nchw(m.grad).reshape(len(raw), -1, 12) for m in maps], axis=1)
    return [torch.as_tensor(loss).item() for loss in losses], gradient, assignments


@jax.jit
def ours(raw, objects):
    points = (CELLS + 0.5) * SIDES[:, None]
    boxes = decode_cells(raw[..., :4], CELLS, SIDES)
    assign = jax.vmap(simota, in_axes=(0, 0, 0, None, None, 0, 0, 0))
    assignment = assign(boxes, raw[..., 4], raw[..., 5:], points, SIDES, *objects)

    def total(raw):
        terms = yolox_terms(levels_of(raw), STRIDES, *objects, use_l1=True)
        return sum(v for name, v in terms.items() if name.endswith("_loss")), terms

    (_, terms), gradient = jax.value_and_grad(total, has_aux=True)(raw)
    return assignment, terms, gradient


def levels_of(raw):
    ends = np.cumsum([h * w for h, w in SIZES])[:-1].tolist()
    parts = jnp.split(raw, ends, axis=1)
    return [p.reshape(len(raw), *size, -1) for p, size in zip(parts, SIZES, strict=True)]


@pytest.mark.parametrize("kind", KINDS)
def test_assignments_terms_and_gradients(kind):
    several = 0
    # Megvii takes the sides of boxes, we their corners, which round a side of 0.05 pixels.
    precise = 1e-4 if kind == "tiny" else 1e-5
    for seed in range(3):
        raw, targets = batch_of(kind, seed)
        losses, gradient, assignments = megvii(raw, targets, use_l1=True)
        assignment, terms, our_gradient = ours(raw, objects_for_us(targets))
        for i in range(PICTURES):
            wanted, ious = np.full(len(CELLS), -1), np.zeros(len(CELLS))
            if i in assignments:
                foreground, matched, theirs = assignments[i]
                wanted[foreground.numpy()] = matched.numpy()
                ious[foreground.numpy()] = theirs.numpy()
                several += (np.bincount(matched) > 1).sum()
            np.testing.assert_array_equal(assignment.matched[i], wanted, err_msg=f"{seed} {i}")
            np.testing.assert_allclose(assignment.iou[i], ious, atol=10 * precise)
        names = ("iou_loss", "objectness_loss", "class_loss", "l1_loss", "foreground_per_object")
        if kind == "none":
            losses[-1] = 0  # Megvii counts one where there is none
        for name, wanted in zip(names, losses[1:], strict=True):
            assert float(terms[name]) == pytest.approx(wanted, rel=1e-4, abs=1e-5), name
        error = np.linalg.norm(our_gradient - gradient) / np.linalg.norm(gradient)
        assert error < 10 * precise, (seed, error)
    assert several > 3 or kind in ("tiny", "none", "narrow")


# ----------------------------------------------------------------------------- ten steps
STEPS, SIDE = 10, 64
SMALL = {"num_classes": CLASSES, "width": 0.125, "depth": 0.1}


def training_batches():
    rng = np.random.default_rng(3)
    for _ in range(STEPS):
        targets = np.zeros((3, 4, 5))
        image = rng.uniform(size=(3, SIDE, SIDE, 3))
        for i, count in enumerate((3, 0, 2)):
            targets[i, :count, 0] = rng.integers(0, CLASSES, count)
            targets[i, :count, 1:3] = rng.uniform(15, 49, (count, 2))
            targets[i, :count, 3:] = rng.uniform(8, 40, (count, 2))
        yield image, targets


def small_reference():
    torch.manual_seed(1)
    backbone = YOLOPAFPN(SMALL["depth"], SMALL["width"])
    model = YOLOX(backbone, YOLOXHead(CLASSES, SMALL["width"]))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eps, module.momentum = 1e-3, 0.03
    model.head.initialize_biases(1e-2)
    model.head.use_l1 = True
    return model


def train_megvii(model):
    """In float64, but for the costs, which Megvii computes in float32."""
    model = model.double().train()
    optimizer = torch.optim.SGD(
        model.parameters(), lr=1e-4, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    losses = []
    for image, targets in training_batches():
        optimizer.zero_grad()
        with quietly():
            loss = model(bgr(255 * image), torch.tensor(targets))["total_loss"]
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def train_ours(variables):
    model = get_model("yolox_s", **SMALL, dtype="float64")
    tx = sgd(1e-4, momentum=0.9, nesterov=True, weight_decay=5e-4)
    step = make_train_step(yolox_loss(model, std=1 / 255, use_l1=True), tx)
    variables = jax.tree.map(lambda x: x.astype(np.float64) if x.ndim else x, variables)
    state, losses = jax.jit(create_state, static_argnums=1)(variables, tx), []
    for image, targets in training_batches():
        boxes, labels, box_valid = objects_for_us(targets)
        batch = {"image": image, "boxes": boxes, "labels": labels, "box_valid": box_valid}
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    return jax.device_get({"params": state.params, "batch_stats": state.batch_stats}), losses


@pytest.mark.slow
def test_ten_training_steps():
    """In float64 and at a small rate: at 1e-3 rounding errors grow tenfold with every step."""
    model = small_reference()
    convert = functools.partial(from_torch, "yolox_s", **SMALL)
    start = convert(state_of(model))
    wanted = train_megvii(model)
    end = convert(state_of(model.float()))
    with jax.enable_x64(True):
        variables, losses = train_ours(start)
    np.testing.assert_allclose(losses, wanted, rtol=1e-4)
    floats = [jax.tree.map(lambda x: x if x.ndim else np.float64(1), t) for t in (variables, end)]
    errors = relative_errors(*floats)
    worst = max(errors, key=errors.get)
    print(f"worst {errors[worst]:.1e} at {worst}, loss {losses[0]:.3f} to {losses[-1]:.3f}")
    assert errors[worst] < 1e-3, worst
    still = [
        np.array_equal(x, y) for x, y in zip(*map(jax.tree.leaves, (variables, start)), strict=True)
    ]
    assert not any(still)


def test_joined_levels_are_megviis_order():
    raw, _ = batch_of("any")
    np.testing.assert_array_equal(join_levels(levels(raw)), raw)
