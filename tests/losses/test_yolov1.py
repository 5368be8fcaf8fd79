"""YOLO v1's loss by hand, and against loops like the author's; poison in the padding."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from jaxtyping import TypeCheckError

from jaxvision.losses import yolov1_loss
from jaxvision.losses.yolov1 import cell_targets, responsible_predictors, yolov1_terms
from jaxvision.ops.yolov1 import split_yolov1

TERMS = ("center_loss", "size_loss", "object_loss", "no_object_loss", "class_loss")
CLASSES, BOXES, GRID, SIZE = 3, 2, (3, 4), (60, 80)
CHANNELS = 5 * BOXES + CLASSES
KEY = jax.random.key(0)


class Given(nn.Module):
    """A network whose outputs are its only parameter."""

    num_classes: int = CLASSES
    bounded: bool = False

    @nn.compact
    def __call__(self, x, *, train: bool = False):
        outputs = self.param("outputs", nn.initializers.zeros, (len(x), *GRID, CHANNELS))
        return outputs + 0 * x.sum()


def scenes(b=4, m=5, seed=0):
    rng = np.random.default_rng(seed)
    start = rng.uniform((0, 0), (70, 50), (b, m, 2))
    end = np.minimum(start + rng.uniform(2, 50, (b, m, 2)), [SIZE[1], SIZE[0]])
    return {
        "image": np.zeros((b, *SIZE, 3), np.uint8),
        "boxes": np.concatenate([start, end], axis=2).astype(np.float32),
        "labels": rng.integers(0, CLASSES, (b, m)).astype(np.int32),
        "box_valid": rng.random((b, m)) < 0.7,
    }


def outputs_for(b=4, seed=1):
    """Half of them near what a trained network says, so that boxes touch; half anywhere."""
    rng = np.random.default_rng(seed)
    near = rng.uniform(0, 1, (b, *GRID, CHANNELS))
    far = rng.normal(scale=2, size=near.shape)
    return jnp.asarray(np.where(rng.random(near.shape) < 0.7, near, far), jnp.float32)


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
def run(outputs, batch, bounded=False, class_loss="squared_error", class_weight=1.0):
    loss_fn = yolov1_loss(Given(bounded=bounded), class_loss=class_loss, class_weight=class_weight)

    def loss(outputs):
        value, (_, metrics) = loss_fn({"outputs": outputs}, {}, batch, KEY)
        return value, metrics

    (value, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(outputs)
    return value, metrics, gradient


@pytest.mark.parametrize("bounded", [False, True])
def test_every_term_equals_the_authors_loops(bounded):
    batch, outputs = scenes(b=60), outputs_for(b=60)
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
    _, metrics, _ = run(jnp.asarray(outputs), batch)
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
    truth = jnp.array([[[0.4, 0.4, 0.6, 0.6]]])

    def chosen(*boxes):
        responsible, _ = responsible_predictors(jnp.array([[boxes]]), truth)
        assert int(responsible.sum()) == 1
        return int(responsible[0, 0].argmax())

    half, same = (0.4, 0.4, 0.5, 0.6), (0.4, 0.4, 0.6, 0.6)
    far, near, point = (0.0, 0.0, 0.2, 0.2), (0.7, 0.4, 0.9, 0.6), (0.5, 0.5, 0.5, 0.5)
    assert chosen(half, same) == 1
    assert chosen(same, same) == 0  # of equal IoUs the first
    assert chosen(far, half) == 1
    assert chosen(far, near) == 1  # none touches: the nearer one
    assert chosen(far, point) == 1  # nor does a point, with no area to share
    assert chosen(near, far, half) == 2


def test_of_two_objects_in_a_cell_the_first_is_learnt():
    boxes = jnp.array([[0.0, 0.0, 8.0, 8.0], [1.0, 1.0, 9.0, 9.0], [70.0, 50.0, 80.0, 60.0]])
    targets = cell_targets(boxes, jnp.array([2, 1, 0]), SIZE, GRID)
    assert int(targets.has_object.sum()) == 2
    assert int(targets.labels[0, 0]) == 2
    np.testing.assert_allclose(targets.centers[0, 0], [0.2, 0.2], rtol=1e-5)
    swapped = cell_targets(boxes[::-1], jnp.array([0, 1, 2]), SIZE, GRID)
    assert int(swapped.labels[0, 0]) == 1


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
    targets = cell_targets(jnp.array([box], jnp.float32), jnp.array([1]), SIZE, GRID)
    assert int(targets.has_object.sum()) == (cell is not None)
    if cell is not None:
        assert bool(targets.has_object[cell])
        np.testing.assert_allclose(targets.centers[cell], center, atol=1e-6)
    assert bool(jnp.isfinite(targets.centers).all() & jnp.isfinite(targets.size_roots).all())


@pytest.mark.parametrize("poison", [0.0, 1e9, np.nan])
def test_padding_changes_neither_loss_nor_gradient(poison):
    batch, outputs = scenes(b=3), outputs_for(b=3)
    expected, _, wanted = run(outputs, batch)
    batch["boxes"] = np.where(batch["box_valid"][..., None], batch["boxes"], np.float32(poison))
    batch["labels"] = np.where(batch["box_valid"], batch["labels"], -7)
    padded = {k: np.concatenate([v, np.zeros_like(v[:1])]) for k, v in batch.items()}
    padded["boxes"][3] = poison
    padded["box_valid"][3] = True
    padded["valid"] = np.array([True, True, True, False])
    more = jnp.concatenate([outputs, jnp.full_like(outputs[:1], poison)])
    value, metrics, gradient = run(more, padded)
    assert float(value) == pytest.approx(float(expected), rel=1e-6)
    assert all(np.isfinite(float(m)) for m in metrics.values())
    np.testing.assert_allclose(gradient[:3], wanted, rtol=1e-5, atol=1e-7)
    assert float(jnp.abs(gradient[3]).max()) == 0


def test_a_batch_of_empty_scenes_and_one_of_padding_alone():
    outputs = outputs_for(b=2)
    batch = {**scenes(b=2), "box_valid": np.zeros((2, 5), bool)}
    batch["boxes"] = np.full_like(batch["boxes"], np.nan)
    value, metrics, gradient = run(outputs, batch)
    for name in set(TERMS) - {"no_object_loss"}:
        assert float(metrics[name]) == 0, name
    assert float(value) == float(metrics["no_object_loss"]) > 0
    assert bool(jnp.isfinite(gradient).all())
    value, _, gradient = run(outputs, {**batch, "valid": np.zeros(2, bool)})
    assert (float(value), float(jnp.abs(gradient).max())) == (0, 0)
    no_slots = {k: v[:, :0] for k, v in batch.items() if k != "image"}
    value, _, _ = run(outputs, {**no_slots, "image": batch["image"]})
    assert float(value) == pytest.approx(float(metrics["no_object_loss"]))


@pytest.mark.parametrize("bounded", [False, True])
def test_gradients_equal_finite_differences_with_the_iou_held_fixed(bounded):
    """In float64. The confidence's target, an IoU, moves with the boxes but has no gradient."""
    with jax.enable_x64(True):
        batch = scenes(b=2)
        boxes, labels, valid = (
            jnp.asarray(batch[name]) for name in ("boxes", "labels", "box_valid")
        )
        targets = jax.vmap(lambda b, c, v: cell_targets(b, c, SIZE, GRID, v))(boxes, labels, valid)

        def loss(outputs):
            parts = split_yolov1(outputs, CLASSES, bounded=bounded)
            terms = yolov1_terms(parts, targets)
            terms.pop("object_loss")
            return sum(term.sum() for term in terms.values())

        outputs = jnp.asarray(outputs_for(b=2), jnp.float64)
        check_grads(jax.jit(loss), (outputs,), order=1, modes=["rev"], eps=1e-6, rtol=1e-5)


def test_gradient_of_a_confidence_by_hand():
    """2 (confidence - IoU) for the responsible box, no gradient to the box through its IoU."""
    boxes = jnp.array([[40.0, 22.5, 60.0, 37.5]])
    targets = cell_targets(boxes, jnp.array([1]), SIZE, GRID)
    cell = jnp.array([0, 0, 0, 0, 0.4, 0.5, 0.5, 0.5, 0.5**0.5, 0.7, 0.2, 0.6, 0.1])
    outputs = jnp.zeros((*GRID, CHANNELS)).at[1, 2].set(cell)

    def object_loss(outputs):
        return yolov1_terms(split_yolov1(outputs, CLASSES), targets)["object_loss"]

    gradient = jax.jit(jax.grad(object_loss))(outputs)
    expected = np.zeros((*GRID, CHANNELS))
    expected[1, 2, 9] = 2 * (0.7 - 0.5)
    np.testing.assert_allclose(gradient, expected, atol=1e-6)


def test_cross_entropy_in_the_place_of_squared_errors():
    batch, outputs = scenes(b=3), outputs_for(b=3)
    _, plain, _ = run(outputs, batch, True)
    _, metrics, gradient = run(outputs, batch, True, "cross_entropy", 2.0)
    for name in set(TERMS) - {"class_loss"}:
        assert float(metrics[name]) == pytest.approx(float(plain[name]), rel=1e-6)
    wanted, rows = 0.0, []
    for i in range(3):
        targets = cell_targets(
            *(jnp.asarray(batch[n][i]) for n in ("boxes", "labels")),
            SIZE,
            GRID,
            jnp.asarray(batch["box_valid"][i]),
        )
        for row, column in zip(*np.nonzero(targets.has_object), strict=True):
            logits = np.asarray(outputs[i, row, column, -CLASSES:], np.float64)
            probabilities = np.exp(logits) / np.exp(logits).sum()
            label = int(targets.labels[row, column])
            wanted -= 2 * np.log(probabilities[label]) / 3
            rows.append((i, row, column, 2 * (probabilities - np.eye(CLASSES)[label]) / 3))
    assert float(metrics["class_loss"]) == pytest.approx(wanted, rel=1e-4)
    for i, row, column, expected in rows:
        np.testing.assert_allclose(gradient[i, row, column, -CLASSES:], expected, atol=1e-5)


def test_mistakes_are_refused():
    with pytest.raises(TypeCheckError, match="class_loss"):
        yolov1_loss(Given(), class_loss="l1")
    with pytest.raises(ValueError, match="expected a model with bounded=True"):
        yolov1_loss(Given(), class_loss="cross_entropy")
