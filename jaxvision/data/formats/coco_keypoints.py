"""The keypoints of COCO's annotations: what their categories call them, and where they are."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxvision.data.run_lengths import is_finite
from jaxvision.errors import UserError

SHOWN_NAMES = 4


def keypoint_names_of(
    categories: Mapping[int, Mapping[str, Any]], chosen: Sequence[int], path: Path
) -> tuple[str, ...]:
    """The names of the keypoints, which all of the categories that have any must have alike."""
    lists = {tuple(map(str, categories[number].get("keypoints", ()))) for number in chosen} - {()}
    if len(lists) != 1:
        got = "; ".join(", ".join(names[:SHOWN_NAMES]) for names in sorted(lists)) or "none"
        raise UserError(
            f"{path}: expected one list of keypoints in its categories, got {got}: give the "
            "person_keypoints file, or classes that share their keypoints"
        )
    return lists.pop()


def keypoints_of(
    entry: Mapping[str, Any], count: int, where: str
) -> tuple[tuple[float, float, float], ...]:
    """An annotation's keypoints (x, y, visibility); () where it has none, as a crowd."""
    numbers = entry.get("keypoints", ()) if count else ()
    if not numbers:
        return ()
    if len(numbers) != 3 * count or not all(is_finite(x) for x in numbers):
        raise UserError(
            f"{where}: expected {count} keypoints as {3 * count} finite numbers x, y, visibility, "
            f"got {len(numbers)}: correct or remove them"
        )
    triples = zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True)
    return tuple(
        (float(x), float(y), float(v)) if v > 0 else (0.0, 0.0, 0.0) for x, y, v in triples
    )
