"""Random pictures with objects and detections, for the tests of detection's metrics."""

import numpy as np


def random_pictures(
    seed, pictures=6, num_classes=3, most_objects=6, most_found=20, side=64, integer=False
):
    """Returns (predictions, targets): objects, detections near them and anywhere, ties in score.

    Some pictures have no object, some no detection; some boxes are empty, some objects are found
    twice, some labels are wrong. With `integer` all boxes are on a coarse grid, so that IoUs tie
    and hit 0.5.
    """
    rng = np.random.default_rng(seed)
    predictions, targets = [], []
    for _ in range(pictures):
        m = int(rng.integers(0, most_objects + 1))
        low = rng.uniform(0, 0.7 * side, (m, 2))
        boxes = np.concatenate([low, low + rng.uniform(4, 0.5 * side, (m, 2))], axis=1)
        labels = rng.integers(0, num_classes, m)

        n = int(rng.integers(0, most_found + 1))
        low = rng.uniform(-5, 0.8 * side, (n, 2))
        found = np.concatenate([low, low + rng.uniform(0, 0.5 * side, (n, 2))], axis=1)
        found_labels = rng.integers(0, num_classes, n)
        if m:
            near = rng.random(n) < 0.7
            of = rng.integers(0, m, n)
            jitter = rng.normal(0, rng.choice([0.5, 3.0, 8.0], (n, 1)), (n, 4))
            found = np.where(near[:, None], boxes[of] + jitter, found)
            right = near & (rng.random(n) < 0.8)
            found_labels = np.where(right, labels[of], found_labels)
        if integer:
            boxes, found = (4 * np.round(x / 4) for x in (boxes, found))
        scores = rng.random(n) if rng.random() < 0.5 else rng.integers(0, 4, n) / 4
        predictions.append(
            {
                "boxes": found.astype(np.float32),
                "scores": scores.astype(np.float32),
                "labels": found_labels.astype(np.int32),
            }
        )
        targets.append(
            {
                "boxes": boxes.astype(np.float32),
                "labels": labels.astype(np.int32),
                "difficult": rng.random(m) < 0.2,
            }
        )
    return predictions, targets


def nothing():
    """A picture in which nothing was found."""
    return {"boxes": np.zeros((0, 4)), "scores": np.zeros(0), "labels": np.zeros(0, int)}


def found(*rows):
    """A prediction of rows (label, score, x1, y1, x2, y2)."""
    return {
        "boxes": np.array([row[2:] for row in rows], np.float32).reshape(-1, 4),
        "scores": np.array([row[1] for row in rows], np.float32),
        "labels": np.array([row[0] for row in rows], np.int32),
    }


def there(*rows, difficult=()):
    """A target of rows (label, x1, y1, x2, y2); `difficult` lists the rows that are."""
    return {
        "boxes": np.array([row[1:] for row in rows], np.float32).reshape(-1, 4),
        "labels": np.array([row[0] for row in rows], np.int32),
        "difficult": np.isin(np.arange(len(rows)), difficult),
    }
