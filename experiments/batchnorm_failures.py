"""What goes wrong with batch normalisation, made to happen: experiments/batchnorm.py, 3 to 5."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from batchnorm_network import DeepNetwork, Trained, Trainer, logits_of, re_estimated, scores
from findings import Finding

from jaxvision.data import ArrayDataset
from jaxvision.ops import batch_norm
from jaxvision.report.lines import Line, line_chart


def small_batches(
    models: dict[str, DeepNetwork],
    train: ArrayDataset,
    test: ArrayDataset,
    *,
    sizes: Sequence[int],
    pictures: int,
    learning_rate: float,
    seed: int,
) -> Finding:
    """The statistics of few examples are noise, and of two they are all that is left."""
    finding = Finding(
        "3. Small batches",
        (
            "A batch's mean is off the true one by about 1/sqrt(m) standard deviations, and with "
            "m = 2 nothing but the sign of x_1 - x_2 survives: the normalised values are 1 and -1, "
            "however far apart the two pictures are. Both networks see the same pictures, "
            f"{pictures:,} of them, with a learning rate in proportion to the batch.",
        ),
    )
    rng = np.random.default_rng(seed)
    pairs = rng.normal(size=(2, 1000)).astype(np.float32)
    normalised = np.asarray(batch_norm(jnp.asarray(pairs), jnp.ones(1000), jnp.zeros(1000))[0])
    apart = np.abs(pairs[0] - pairs[1]) > 0.1
    finding.check(
        "two examples that differ by more than 0.1 are normalised to 1 and -1, within 0.003",
        np.all(np.abs(np.abs(normalised[:, apart]) - 1) < 0.003),
    )
    seen = train.subset(np.arange(min(2000, len(train))))
    rows, found = [], {}
    for m in sizes:
        rate = learning_rate * m / max(sizes)
        row = [m, f"{m**-0.5:.2f}", f"{rate:.5f}"]
        for name, model in models.items():
            trainer = Trainer(model, train, batch_size=m, seed=seed)
            trained = trainer.train(rate, pictures // m)
            result: dict[str, float | None] = {"test_accuracy": None}
            if trained.diverged_at is None:
                variables = trained.state.variables
                stored, _ = scores(model, variables, seen, batch=min(1000, len(seen)))
                _, accuracy = scores(model, variables, test, batch=min(1000, len(test)))
                result = {"test_accuracy": accuracy, "stored_loss": stored}
                if model.norm != "none":
                    result["batch_loss"] = scores(model, variables, seen, batch=m, train=True)[0]
            found[f"{name}, {m}"] = result
            if model.norm != "none":
                row += [_loss(result.get("batch_loss")), _loss(result.get("stored_loss"))]
            row.append(_percent(result["test_accuracy"]))
        rows.append(row)
    header = ["m", "1/sqrt(m)", "learning rate"]
    for name, model in models.items():
        if model.norm != "none":
            header += ["loss, batch's", "loss, stored"]
        header.append(f"accuracy {name}")
    finding.table(
        "After the training: the loss of the same training pictures by the statistics of their "
        "batch of m and by the stored ones, and the accuracy on the test set",
        header,
        rows,
    )
    sizes_x = np.array(sizes)
    lines = [
        Line(
            name,
            sizes_x,
            100 * np.array([found[f"{name}, {m}"]["test_accuracy"] for m in sizes], float),
        )
        for name in models
    ]
    chart = line_chart(lines, "Batch size", "Test accuracy (%)", logx=True, ylim=(0.0, 100.0))
    words = f"Accuracy after {pictures:,} pictures, by the size of the batches."
    finding.charts.append((chart, words))
    finding.numbers = found
    return finding


def forgotten_flag(
    trainer: Trainer,
    trained: Trained,
    train: ArrayDataset,
    test: ArrayDataset,
    *,
    batch_size: int,
    learning_rate: float,
    steps: int,
) -> Finding:
    """`train=True` left in evaluation, left out of training, and the new state thrown away."""
    finding = Finding(
        "4. A forgotten train flag",
        (
            "Evaluated with train=True, a network normalises by whatever pictures happen to stand "
            "in the same batch: what it says of one depends on its neighbours, and one picture "
            "alone cannot be normalised at all.",
            "Trained with train=False it is not normalised: the stored mean 0 and variance 1 stay "
            "as they were, and the network is a plain one. The third way is JAX's own: train=True, "
            "but the new batch_stats that apply returns are not kept. Training looks perfect then, "
            "because it never needs them; evaluation does.",
        ),
    )
    model, variables = trainer.model, trained.state.variables
    by_class = test.subset(np.argsort(test.labels, kind="stable"))
    largest = min(1000, len(test))
    smaller = [size for size in (128, 32, 8, 2) if size < largest]
    cases = [
        ("train=False, as it should be", test, largest, False),
        *((f"train=True, batches of {size}", test, size, True) for size in (largest, *smaller)),
        ("train=True, batches of 32, sorted by class", by_class, 32, True),
    ]
    rows, found = [], {}
    for name, data, size, flag in cases:
        loss, accuracy = scores(model, variables, data, batch=size, train=flag)
        rows.append((name, f"{100 * accuracy:.1f} %", f"{loss:.3f}"))
        found[name] = accuracy
    finding.table("The same weights, evaluated", ("how", "accuracy", "loss"), rows)
    _neighbours(finding, model, variables, test)

    trainers = {"nothing": trainer}
    for forget, name in (("train", "train=True"), ("update", "the update")):
        trainers[name] = Trainer(
            model, train, batch_size=batch_size, seed=trainer.seed, forget=forget
        )
    rows = []
    for rate in (learning_rate, 10 * learning_rate):
        for name, forgetter in trainers.items():
            result = forgetter.train(rate, steps)
            accuracy = None
            if result.diverged_at is None:
                _, accuracy = scores(model, result.state.variables, test, batch=largest)
            found[f"forgot {name}, {rate:g}"] = accuracy
            rows.append((f"{rate:g}", name, final_loss(result), _percent(accuracy)))
    finding.table(
        f"Trained for {steps} steps, and something forgotten; evaluated as it should be",
        ("learning rate", "forgotten", "training loss", "test accuracy"),
        rows,
    )
    finding.numbers = found
    return finding


def _neighbours(finding: Finding, model: DeepNetwork, variables: Any, test: ArrayDataset) -> None:
    """One picture in three companies, and alone."""
    picture, label = test.images[:1], int(test.labels[0])
    others = np.arange(1, len(test))
    same = others[test.labels[1:] == label]
    companies = {
        "7 pictures": others[:7],
        "7 other pictures": others[7:14],
        "7 of its own class": same[:7],
    }
    rows, logits = [], {False: [], True: []}
    for name, chosen in companies.items():
        images = np.concatenate([picture, test.images[chosen]])
        cells = []
        for flag in (False, True):
            found = logits_of(model, variables, images, train=flag)[0]
            logits[flag].append(np.asarray(found))
            share = jax.nn.softmax(found)
            best = test.class_names[int(share.argmax())]
            cells.append(f"{best}, {100 * float(share.max()):.1f} %")
        rows.append((name, *cells))
    finding.table(
        f"What is said of the first test picture ({test.class_names[label]}), beside",
        ("neighbours", "train=False", "train=True"),
        rows,
    )
    changes = {
        flag: max(np.abs(found - logits[flag][0]).max() for found in logits[flag])
        for flag in logits
    }
    finding.check("with train=False its logits do not depend on the others", changes[False] < 1e-4)
    finding.check("with train=True they do", changes[True] > 1e-2)
    try:
        logits_of(model, variables, picture, train=True)
    except ValueError as error:
        finding.check(f"alone, with train=True, it is refused: {error}", "at least 2" in str(error))
    else:
        finding.check("alone, with train=True, it is refused", False)


def drifting_inputs(
    networks: dict[str, tuple[DeepNetwork, Any]],
    train: ArrayDataset,
    test: ArrayDataset,
    *,
    shifts: Sequence[float] = (0.0, 0.1, 0.2, 0.3, 0.4),
) -> Finding:
    """Brighter pictures than in training: stored statistics no longer fit; new ones repair it."""
    finding = Finding(
        "5. Inputs that drift",
        (
            "The test pictures get brighter, as with another lamp (added to every pixel, and cut "
            "off at white). The stored statistics are those of the darker ones. Re-estimated on "
            "2,000 bright training pictures, without their labels and without touching a weight, "
            "they fit again, as far as the pictures have not lost anything.",
        ),
    )
    batch = min(250, len(train))
    unlabelled = train.images[:2000]
    rows, found = [], {}
    for shift in shifts:
        bright = dataclasses.replace(test, images=brighter(test.images, shift))
        row = [f"+{shift:.1f}"]
        for name, (model, variables) in networks.items():
            ways = {"stored": variables}
            if model.norm != "none":
                ways["re-estimated"] = re_estimated(
                    model, variables, brighter(unlabelled, shift), batch=batch
                )
            for way, chosen in ways.items():
                _, accuracy = scores(model, chosen, bright, batch=min(1000, len(test)))
                found.setdefault(f"{name}, {way}" if len(ways) > 1 else name, []).append(accuracy)
                row.append(f"{100 * accuracy:.1f} %")
        rows.append(row)
    finding.table("Accuracy on the brighter test set", ("brightness", *found), rows)
    lines = [Line(name, np.array(shifts), 100 * np.array(y)) for name, y in found.items()]
    chart = line_chart(lines, "Added brightness", "Test accuracy (%)", ylim=(0.0, 100.0))
    finding.charts.append((chart, "Accuracy when the test pictures are brighter than training's."))
    finding.numbers = found
    return finding


def brighter(images: np.ndarray, shift: float) -> np.ndarray:
    """Adds `shift` (of white, 1) to every byte, and stops at white."""
    return np.minimum(images.astype(np.int32) + round(255 * shift), 255).astype(np.uint8)


def final_loss(trained: Trained) -> str:
    """The mean of the last twenty steps' losses, or where training broke off."""
    if trained.diverged_at is not None:
        return f"not finite at step {trained.diverged_at}"
    return f"{trained.losses[-20:].mean():.3f}"


def _percent(accuracy: float | None) -> str:
    return "-" if accuracy is None else f"{100 * accuracy:.1f} %"


def _loss(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
