"""YOLO v1's loss by hand, and against loops like the author's; poison in the padding."""

from functools import partial

import flax.linen as nn
import jax
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from jaxvision.losses import yolov1, yolov1_loss
from jaxvision.losses.yolov1 import yolov1_terms
from jaxvision.ops.yolov1 import split_yolov1

TERMS = ("center_loss", "size_loss", "object_loss", "no_object_loss", "class_loss")
CLASSES, BOXES, GRID, SIZE = 3, 2, (3, 4), (60, 80)
CHANNELS = 5 * BOXES + CLASSES
KEY = jax.random.key(0)
COUNT = 60  # of a batch's pictures, alike in all tests: another number is another program

# Compiled whole: operation by operation takes ten times as long.
cell_targets = jax.jit(yolov1.cell_targets, static_argnums=(2, 3))
responsible_predictors = jax.jit(yolov1.responsible_predictors)


@jax.jit
def targets_of_all(boxes, labels, valid):
    return jax.vmap(lambda *picture: yolov1.cell_targets(*picture[:2], SIZE, GRID, picture[2]))(
        boxes, labels, valid
    )


class Given(nn.Module):
    """A network whose outputs are its only parameter."""

    num_classes: int = CLASSES
    bounded: bool = False

    @nn.compact
    def __call__(self, x, *, train: bool = False):
        outputs = self.param("outputs", nn.initializers.zeros, (len(x), *GRID, CHANNELS))
        return outputs + 0 * x.sum()


def scenes(b=COUNT, m=5, seed=0):
    rng = np.random.default_rng(seed)
    start = rng.uniform((0, 0), (70, 50), (b, m, 2))
    end = np.minimum(start + rng.uniform(2, 50, (b, m, 2)), [SIZE[1], SIZE[0]])
    return {
        "image": np.zeros((b, *SIZE, 3), np.uint8),
        "boxes": np.concatenate([start, end], axis=2).astype(np.float32),
        "labels": rng.integers(0, CLASSES, (b, m)).astype(np.int32),
        "box_valid": rng.random((b, m)) < 0.7,
    }


def outputs_for(b=COUNT, seed=1):
    """Half of them near what a trained network says, so that boxes touch; half anywhere."""
    rng = np.random.default_rng(seed)
    near = rng.uniform(0, 1, (b, *GRID, CHANNELS))
    far = rng.normal(scale=2, size=near.shape)
    return np.where(rng.random(near.shape) < 0.7, near, far).astype(np.float32)


def slow_loss(outputs, batch, *, bounded=False, lambda_coord=5.0, lambda_noobj=0.5):
    """The loops of darknet's detection layer with the sums of the paper's equation 3."""
    totals = dict.fromkeys(TERMS, 0.0)
    rows, columns = GRID
    h, w = SIZE
    for i, picture in enumerate(np.asarray(outputs, np.float64)):
        cells = {}
        for box, label, ok in zip(
            batch["boxes"][i], batch["labels"][i], batch["box_valid"][i], strict=True
        ):
            if not ok:
                continue
            x1, y1, x2, y2 = (float(v) for v in box)
            x, y = (x1 + x2) / 2 * columns / w, (y1 + y2) / 2 * rows / h
            cell = min(int(y), rows - 1), min(int(x), columns - 1)
            cells.setdefault(cell, (x, y, (x2 - x1) / w, (y2 - y1) / h, int(label)))
        for row in range(rows):
            for column in range(columns):
                numbers = picture[row, column]
                boxes, classes = numbers[: 5 * BOXES].reshape(BOXES, 5), numbers[5 * BOXES :]
                if bounded:
                    boxes = 1 / (1 + np.exp(-boxes))
                    classes = np.exp(classes) / np.exp(classes).sum()
                responsible = None
                if (row, column) in cells:
                    x, y, width, height, label = cells[row, column]
                    truth = (x / columns, y / rows, width, height)
                    guesses = [
                        ((column + b[0]) / columns, (row + b[1]) / rows, b[2] ** 2, b[3] ** 2)
                        for b in boxes
                    ]
                    ious = [slow_iou(guess, truth) for guess in guesses]
                    responsible = first_best(ious, guesses, truth)
                    b = boxes[responsible]
                    totals["center_loss"] += lambda_coord * (
                        (b[0] - (x - column)) ** 2 + (b[1] - (y - row)) ** 2
                    )
                    totals["size_loss"] += lambda_coord * (
                        (b[2] - width**0.5) ** 2 + (b[3] - height**0.5) ** 2
                    )
                    totals["object_loss"] += (b[4] - ious[responsible]) ** 2
                    for k in range(CLASSES):
                        totals["class_loss"] += (classes[k] - (k == label)) ** 2
                for j in range(BOXES):
                    if j != responsible:
                        totals["no_object_loss"] += lambda_noobj * boxes[j][4] ** 2
    return {name: total / len(outputs) for name, total in totals.items()}


def slow_iou(a, b):
    sides = [
        min(a[i] + a[i + 2] / 2, b[i] + b[i + 2] / 2)
        - max(a[i] - a[i + 2] / 2, b[i] - b[i + 2] / 2)
        for i in (0, 1)
    ]
    overlap = max(sides[0], 0) * max(sides[1], 0)
    union = a[2] * a[3] + b[2] * b[3] - overlap
    return overlap / union if union else 0.0


def first_best(ious, guesses, truth):
    best, best_iou, best_rmse = None, 0.0, np.inf
    for j, (iou, guess) in enumerate(zip(ious, guesses, strict=True)):
        rmse = sum((p - q) ** 2 for p, q in zip(guess, truth, strict=True)) ** 0.5
        if best_iou > 0 or iou > 0:
            if iou > best_iou:
                best, best_iou = j, iou
        elif rmse < best_rmse:
            best, best_rmse = j, rmse
    return best


@partial(jax.jit, static_argnames=("bounded", "class_loss", "class_weight"))
def run(outputs, batch, bounded, class_loss="squared_error", class_weight=1.0):
    loss_fn = yolov1_loss(Given(bounded=bounded), class_loss=class_loss, class_weight=class_weight)

    def loss(outputs):
        value, (_, metrics) = loss_fn({"outputs": outputs}, {}, batch, KEY)
        return value, metrics

    (value, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(outputs)
    return value, metrics, gradient


@pytest.mark.parametrize("bounded", [False, True])
def test_every_term_equals_the_authors_loops(bounded):
    batch, outputs = scenes(), outputs_for()
    value, metrics, _ = run(outputs, batch, bounded)
    expected = slow_loss(outputs, batch, bounded=bounded)
    for name in TERMS:
        assert float(metrics[name]) == pytest.approx(expected[name], rel=1e-4), name
    assert float(value) == pytest.approx(sum(expected.values()), rel=1e-4)
    assert float(metrics["loss"]) == float(value)


def test_one_object_by_hand():
    """A cell of 20 x 20 pixels; the box is in the middle of cell (1, 2), 20 wide and 15 high."""
    batch = {
        "image": np.zeros((1, *SIZE, 3), np.uint8),
        "boxes": np.array([[[40, 22.5, 60, 37.5]]], np.float32),
        "labels": np.array([[1]], np.int32),
    }
    outputs = np.zeros((1, *GRID, CHANNELS), np.float32)
    # The second box is right but for its height, 30 pixels: IoU 0.5. The first is a point.
    outputs[0, 1, 2] = [0, 0, 0, 0, 0.4, 0.5, 0.5, 0.5, 0.5**0.5, 0.7, 0.2, 0.6, 0.1]
    outputs[0, 0, 0, 4] = 0.3
    _, metrics, _ = run(outputs, batch, False)
    expected = {
        "center_loss": 0.0,
        "size_loss": 5 * (0.5**0.5 - 0.25**0.5) ** 2,
        "object_loss": (0.7 - 0.5) ** 2,
        "no_object_loss": 0.5 * (0.4**2 + 0.3**2),
        "class_loss": 0.2**2 + 0.4**2 + 0.1**2,
    }
    for name in TERMS:
        assert float(metrics[name]) == pytest.approx(expected[name], rel=1e-5, abs=1e-7), name


def test_responsible_by_iou_then_first_then_distance():
    truth = np.array([[[0.4, 0.4, 0.6, 0.6]]], np.float32)

    def chosen(*boxes):
        responsible, _ = responsible_predictors(np.array([[boxes]], np.float32), truth)
        (place,) = np.flatnonzero(responsible)
        return place

    half, same = (0.4, 0.4, 0.5, 0.6), (0.4, 0.4, 0.6, 0.6)
    far, near, point = (0.0, 0.0, 0.2, 0.2), (0.7, 0.4, 0.9, 0.6), (0.5, 0.5, 0.5, 0.5)
    assert chosen(half, same) == 1
    assert chosen(same, same) == 0  # of equal IoUs the first
    assert chosen(far, half) == 1
    assert chosen(far, near) == 1  # none touches: the nearer one
    assert chosen(far, point) == 1  # nor does a point, with no area to share
    assert chosen(near, far, half) == 2


def test_of_two_objects_in_a_cell_the_first_is_learnt():
    boxes = np.array([[0, 0, 8, 8], [1, 1, 9, 9], [70, 50, 80, 60]], np.float32)
    labels = np.array([2, 1, 0], np.int32)
    targets = jax.device_get(cell_targets(boxes, labels, SIZE, GRID))
    assert targets.has_object.sum() == 2
    assert targets.labels[0, 0] == 2
    np.testing.assert_allclose(targets.centers[0, 0], [0.2, 0.2], rtol=1e-5)
    swapped = cell_targets(boxes[::-1], labels[::-1], SIZE, GRID)
    assert np.asarray(swapped.labels)[0, 0] == 1


@pytest.mark.parametrize(
    ("box", "cell", "center"),
    [
        ((15, 15, 25, 25), (1, 1), (0, 0)),  # on the lines between cells: right and below
        ((80, 60, 80, 60), (2, 3), (1, 1)),  # on the picture's far corner: the last cell
        ((70, 50, 90, 70), (2, 3), (1, 1)),
        ((-5, -5, 5, 5), (0, 0), (0, 0)),
        ((75, 10, 95, 20), None, None),  # its centre is outside
    ],
)
def test_objects_on_borders(box, cell, center):
    boxes, labels = np.array([box], np.float32), np.array([1], np.int32)
    targets = jax.device_get(cell_targets(boxes, labels, SIZE, GRID))
    assert targets.has_object.sum() == (cell is not None)
    if cell is not None:
        assert targets.has_object[cell]
        np.testing.assert_allclose(targets.centers[cell], center, atol=1e-6)
    assert np.isfinite(targets.centers).all()
    assert np.isfinite(targets.size_roots).all()


@pytest.mark.parametrize("poison", [0.0, 1e9, np.nan])
def test_padding_changes_neither_loss_nor_gradient(poison):
    batch, outputs = scenes(), outputs_for()
    expected, _, wanted = run(outputs, batch, False)
    batch["boxes"] = np.where(batch["box_valid"][..., None], batch["boxes"], np.float32(poison))
    batch["labels"] = np.where(batch["box_valid"], batch["labels"], -7)
    padded = {k: np.concatenate([v, np.zeros_like(v[:1])]) for k, v in batch.items()}
    padded["boxes"][-1] = poison
    padded["box_valid"][-1] = True
    padded["valid"] = np.arange(COUNT + 1) < COUNT
    more = np.concatenate([outputs, np.full_like(outputs[:1], poison)])
    value, metrics, gradient = run(more, padded, False)
    assert float(value) == pytest.approx(float(expected), rel=1e-6)
    assert all(np.isfinite(float(m)) for m in metrics.values())
    gradient = np.asarray(gradient)
    np.testing.assert_allclose(gradient[:-1], wanted, rtol=1e-5, atol=5e-9)
    assert np.abs(gradient[-1]).max() == 0


def test_a_batch_of_empty_scenes_and_one_of_padding_alone():
    outputs = outputs_for()
    batch = {**scenes(), "box_valid": np.zeros((COUNT, 5), bool)}
    batch["boxes"] = np.full_like(batch["boxes"], np.nan)
    value, metrics, gradient = run(outputs, batch, False)
    for name in set(TERMS) - {"no_object_loss"}:
        assert float(metrics[name]) == 0, name
    assert float(value) == float(metrics["no_object_loss"]) > 0
    assert np.isfinite(gradient).all()
    no_slots = {k: v[:, :0] for k, v in batch.items() if k != "image"}
    value, _, _ = run(outputs, {**no_slots, "image": batch["image"]}, False)
    assert float(value) == pytest.approx(float(metrics["no_object_loss"]))
    # As many pictures as the test of padding has.
    outputs, batch = outputs_for(COUNT + 1), scenes(COUNT + 1)
    batch |= {"box_valid": np.zeros((COUNT + 1, 5), bool), "valid": np.zeros(COUNT + 1, bool)}
    batch["boxes"] = np.full_like(batch["boxes"], np.nan)
    value, _, gradient = run(outputs, batch, False)
    assert (float(value), np.abs(gradient).max()) == (0, 0)


@pytest.mark.parametrize("bounded", [False, True])
def test_gradients_equal_finite_differences_with_the_iou_held_fixed(bounded):
    """In float64. The confidence's target, an IoU, moves with the boxes but has no gradient."""
    with jax.enable_x64(True):
        batch = scenes(b=2)
        targets = targets_of_all(batch["boxes"], batch["labels"], batch["box_valid"])

        def loss(outputs):
            parts = split_yolov1(outputs, CLASSES, bounded=bounded)
            terms = yolov1_terms(parts, targets)
            terms.pop("object_loss")
            return sum(term.sum() for term in terms.values())

        outputs = outputs_for(b=2).astype(np.float64)
        loss_and_gradient = jax.jit(jax.value_and_grad(loss))
        direction = np.random.default_rng(2).normal(size=outputs.shape)
        up, down = (
            float(loss_and_gradient(outputs + step)[0])
            for step in (1e-6 * direction, -1e-6 * direction)
        )
        slope = (np.asarray(loss_and_gradient(outputs)[1]) * direction).sum()
    np.testing.assert_allclose((up - down) / 2e-6, slope, rtol=1e-5, atol=1e-5)


def test_gradient_of_a_confidence_by_hand():
    """2 (confidence - IoU) for the responsible box, no gradient to the box through its IoU."""
    boxes = np.array([[40, 22.5, 60, 37.5]], np.float32)
    targets = cell_targets(boxes, np.array([1], np.int32), SIZE, GRID)
    outputs = np.zeros((*GRID, CHANNELS), np.float32)
    outputs[1, 2] = [0, 0, 0, 0, 0.4, 0.5, 0.5, 0.5, 0.5**0.5, 0.7, 0.2, 0.6, 0.1]

    def object_loss(outputs):
        return yolov1_terms(split_yolov1(outputs, CLASSES), targets)["object_loss"]

    gradient = jax.jit(jax.grad(object_loss))(outputs)
    expected = np.zeros((*GRID, CHANNELS))
    expected[1, 2, 9] = 2 * (0.7 - 0.5)
    np.testing.assert_allclose(gradient, expected, atol=1e-6)


def test_cross_entropy_in_the_place_of_squared_errors():
    batch, outputs = scenes(), outputs_for()
    _, plain, _ = run(outputs, batch, True)
    _, metrics, gradient = run(outputs, batch, True, "cross_entropy", 2.0)
    for name in set(TERMS) - {"class_loss"}:
        assert float(metrics[name]) == pytest.approx(float(plain[name]), rel=1e-6)
    targets = jax.device_get(targets_of_all(batch["boxes"], batch["labels"], batch["box_valid"]))
    cells = np.nonzero(targets.has_object)
    logits = outputs[cells][:, -CLASSES:].astype(np.float64)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    truth = np.eye(CLASSES)[targets.labels[cells]]
    wanted = -2 * np.log(probabilities[truth == 1]).sum() / COUNT
    assert float(metrics["class_loss"]) == pytest.approx(wanted, rel=1e-4)
    np.testing.assert_allclose(
        np.asarray(gradient)[cells][:, -CLASSES:], 2 * (probabilities - truth) / COUNT, atol=5e-7
    )


def test_mistakes_are_refused():
    with pytest.raises(TypeCheckError, match="class_loss"):
        yolov1_loss(Given(), class_loss="l1")
    with pytest.raises(ValueError, match="expected a model with bounded=True"):
        yolov1_loss(Given(), class_loss="cross_entropy")
