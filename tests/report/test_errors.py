"""The page of two detectors' errors, read back."""

import numpy as np
import pytest

from jaxvision.metrics.errors import BACKGROUND, CORRECT, LOCALISATION
from jaxvision.report.errors import write_error_report

from .test_classification import Texts
from .test_detection import IMAGES, NAMES, OTHER, PREDICTIONS, TARGETS


def test_two_detectors_side_by_side(tmp_path):
    detectors = {"ours": PREDICTIONS, "<other>": OTHER}
    breakdowns = write_error_report(
        tmp_path / "errors.html",
        title="Two",
        class_names=NAMES,
        detectors=detectors,
        targets=TARGETS,
        image_at=lambda i: IMAGES[i],
        notes=["three pictures"],
    )
    # Of two coats one is found, and the second best detection of coats is on nothing; the shirt's
    # box has an IoU of 0.4.
    ours = breakdowns["ours"].counts
    assert ours[0, CORRECT] == 1
    assert ours[0, BACKGROUND] == 1
    assert ours[1, LOCALISATION] == 1
    assert breakdowns["<other>"].counts[:, CORRECT].sum() == 0
    document = (tmp_path / "errors.html").read_text("utf-8")
    assert "<other>" not in document
    assert "<script" not in document
    page = Texts(document)
    for words in ("three pictures", "Mistakes of ours", "Mistakes of <other>", "Localisation"):
        assert any(words in text for text in page.words), words
    # Each mistake of either detector is drawn once, and each object that one of them missed.
    drawn = sum(len(b.missed_index) + int((b.kind != CORRECT).sum()) for b in breakdowns.values())
    assert len(page.pictures) == drawn


def test_without_detectors_there_is_no_page(tmp_path):
    with pytest.raises(ValueError, match="at least one detector"):
        write_error_report(
            tmp_path / "errors.html",
            title="None",
            class_names=NAMES,
            detectors={},
            targets=TARGETS,
            image_at=lambda i: np.zeros((4, 4, 3), np.uint8),
        )
